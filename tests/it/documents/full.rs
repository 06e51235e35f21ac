//! The archive is full, and the disk of pg_wal: sections that have their commands in the text.

use walkeep_tests::{Walkeep, wait_until};

use super::said::matches;
use super::stage::{Stage, server};
use super::text::RUNBOOK;
use crate::story::PATIENCE;
use crate::support::Tmpfs;

const ARCHIVE: &str = "The archive is full";
const PG_WAL: &str = "The disk of pg_wal fills up";

#[test]
fn the_archive_is_full() {
    let cluster = server(&[]);
    let walkeep = Walkeep::local(&cluster);
    let Some(disk) = Tmpfs::mount(&walkeep.local_repository(), "12m") else { return };
    let mut stage = Stage::archiving(&[], cluster, walkeep);
    stage.walkeep.more = "\n[cluster.main.retention]\nwindow = \"14d\"\n".to_owned();
    stage.walkeep.write_config();
    stage.walkeep.ok(&["backup"]);
    stage.settle();
    // What does not compress.
    let fill = "INSERT INTO orders SELECT i, string_agg(md5(random()::text), '') FROM generate_series(2001, 6000) i, generate_series(1, 60) GROUP BY i";
    stage.in_shop(fill);
    let metric = |name: &str| stage.agent().metric(name).unwrap_or_default();
    let told = "WARN storing ... failed; trying again ... the disk is full: No space left on device";
    wait_until("the disk is full", PATIENCE, || matches(&stage.agent().log(), told));
    stage.promised(RUNBOOK, ARCHIVE, told, &stage.agent().log());
    wait_until("it is counted", PATIENCE, || metric("walkeep_errors_total{kind=\"full\"}") > 0.0);
    wait_until("what would be lost is more and more", PATIENCE, || metric("walkeep_possible_loss_seconds") > 1.0);
    wait_until("the stream goes on", PATIENCE, || metric("walkeep_wal_received_bytes") >= crate::support::lsn(&stage.cluster.lsn()) as f64);
    stage.inline(RUNBOOK, ARCHIVE, "walkeep expire --dry-run").never_says("GOES");

    disk.remount("size=64m");
    wait_until("all of it is stored", PATIENCE, || stage.agent().metric("walkeep_wal_lag_bytes") == Some(0.0));
    stage.settle();
    stage.inline(RUNBOOK, ARCHIVE, "walkeep verify");

    // What holds WAL; and the last resort, with the agent stopped: a gap. What is stored from now on begins behind it.
    let slots = stage.spans(RUNBOOK, PG_WAL).into_iter().find(|span| span.starts_with("psql -c 'SELECT slot_name")).unwrap();
    stage.inline(RUNBOOK, PG_WAL, &slots).says("walkeep");
    stage.stop_agent();
    stage.inline(RUNBOOK, PG_WAL, "psql -c \"SELECT pg_drop_replication_slot('walkeep')\"");
    stage.inline(RUNBOOK, PG_WAL, &slots).never_says("walkeep");
    stage.end();
}
