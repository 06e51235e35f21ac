//! The slot is at risk, the slot is lost, a gap.

use walkeep_tests::{Walkeep, wait_until};

use super::stage::{Place, Stage, server};
use super::text::RUNBOOK;
use crate::story::PATIENCE;

pub const PLACES: [Place; 3] =
    [(RUNBOOK, "The slot is at risk or lost", 1), (RUNBOOK, "The slot is at risk or lost", 2), (RUNBOOK, "A gap", 1)];

#[test]
fn the_slot_is_lost() {
    let settings = [("archive_mode", "off"), ("max_slot_wal_keep_size", "4MB"), ("max_wal_size", "4MB"), ("min_wal_size", "2MB")];
    let cluster = server(&settings);
    let walkeep = Walkeep::local(&cluster);
    let mut stage = Stage::archiving(&PLACES, cluster, walkeep);
    stage.walkeep.ok(&["backup"]);
    stage.settle();
    stage.stop_agent();
    let lost = "SELECT count(*) FROM pg_replication_slots WHERE wal_status = 'lost'";
    wait_until("the slot is lost", PATIENCE, || {
        for _ in 0..4 {
            stage.cluster.switch_wal();
        }
        stage.cluster.sql("CHECKPOINT");
        stage.cluster.sql(lost) == "1"
    });
    let checked = stage.walkeep.run(&["check"]).expect_code(1);
    assert!(checked.stdout.contains("FAIL  slot"), "{checked:?}");
    stage.promised(RUNBOOK, "The slot is at risk or lost", "the slot walkeep is lost", &checked.stdout);

    // What is to be done while it is only at risk; it needs no restart.
    stage.open(PLACES[0]);
    stage.run("psql -c \"ALTER SYSTEM SET max_slot_wal_keep_size");
    wait_until("the limit is another", PATIENCE, || stage.cluster.sql("SHOW max_slot_wal_keep_size") == "200GB");

    stage.start_agent();
    let told = "GAP in the archive: nothing in it can be restored ... from=0/28000060 to=0/34000000 cause=SlotInvalidated";
    stage.promised(RUNBOOK, "The slot is at risk or lost", told, &stage.agent().log());
    stage.open(PLACES[1]);
    stage.run("walkeep status").says("GAP");
    stage.run("walkeep backup");
    stage.run("walkeep check");
    stage.open(PLACES[2]);
    stage.run("walkeep status").says("GAP");
    stage.run("walkeep backup");
    // What comes is recoverable from its end on.
    let at = stage.now();
    stage.settle();
    stage.walkeep.ok(&["plan", "--at", &at]);
    stage.end();
}
