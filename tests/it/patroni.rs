//! A real Patroni cluster of two members with etcd, by what `packaging/patroni` says: each member has an agent beside it, the leader dies, the archive goes
//! on at the new leader, and a new cluster is made out of the repository.

mod member;

use std::time::Duration;

use walkeep_tests::{S3Server, wait_until};

use crate::failover::assert_no_gap;
use crate::story::{PATIENCE, Restored, insert_statement, stored};
use crate::support::{assert_calm, lsn};
use member::{Dcs, Member, Role};

pub const VERSION: u32 = 15;
/// Until another member has the lead: the dead leader's key lives for `ttl`, of which Patroni takes no less than 20 s.
const FAILOVER: Duration = Duration::from_secs(90);
/// Until WAL flows from a server that was promoted.
const TAKES_OVER: Duration = Duration::from_secs(10);
/// What an agent says until its server is there, and when that goes.
const NO_SERVER: [&str; 2] = ["the stream ended", "cannot look at the slot"];

const ROWS: &str = "SELECT count(*), max(i) FROM t";

#[track_caller]
fn wait_streams(member: &Member, within: Duration) {
    wait_until("the leader's agent streams", within, || member.agent().metric("walkeep_stream_phase{phase=\"streaming\"}") == Some(1.0));
}

/// Everything that the leader has written is in the repository, as far as its own agent says, and another process finds.
#[track_caller]
fn wait_all_stored(leader: &Member, timeline: u64) {
    let end = lsn(&leader.sql("SELECT pg_current_wal_flush_lsn()"));
    wait_until("everything is stored", PATIENCE, || stored(&leader.walkeep, timeline) >= Some(end));
}

/// A replica's agent waits for its promotion: it has nothing to lose, nothing to complain of, and no alarm.
#[track_caller]
fn assert_stands_by(replica: &Member) {
    let metric = |name: &str| replica.agent().metric(name);
    wait_until("the replica's agent stands by", PATIENCE, || metric("walkeep_stream_phase{phase=\"waiting\"}") == Some(1.0));
    assert_eq!((metric("walkeep_possible_loss_seconds"), metric("walkeep_wal_lag_bytes")), (Some(-1.0), Some(0.0)));
    let (status, said) = replica.agent().get("/readyz").unwrap();
    assert!(status == 503 && said.contains("target_session_attrs=primary"), "{status} {said}");
}

/// That the archive is whole: no gap, no hole, nothing missing or damaged, and the old timeline is stored up to where the new one left it.
#[track_caller]
fn assert_whole(leader: &Member, timelines: usize) {
    assert_no_gap(&leader.walkeep);
    let listed = leader.walkeep.ok(&["timelines", "--json"]).json();
    let listed = listed.as_array().unwrap();
    assert_eq!(listed.len(), timelines, "{listed:?}");
    for pair in listed.windows(2) {
        let (end, switch) = (pair[0]["frontier"].as_str().unwrap(), pair[1]["parent"][1].as_str().unwrap());
        assert!(lsn(end) >= lsn(switch), "{listed:?}");
    }
    leader.walkeep.ok(&["verify", "--deep"]);
}

#[test]
fn a_failover_leaves_no_gap_and_a_cluster_is_made_of_the_repository() {
    let Some(dcs) = Dcs::start() else { return };
    let bucket = S3Server::get().bucket();
    let (mut one, mut two) = (Member::new("one", &dcs, &bucket), Member::new("two", &dcs, &bucket));

    // A cluster that is there already gets what is dynamic.
    one.configure("demo", Role::Initdb);
    one.launch();
    one.wait_leader(FAILOVER);
    one.patronictl(&["edit-config", "demo", "--force", "--quiet", "--apply", &member::packaged("dynamic.yml").to_string_lossy()]);
    wait_until("Patroni has read it", PATIENCE, || one.rest("/patroni").contains("\"pending_restart\""));
    one.patronictl(&["restart", "demo", "one", "--force"]);
    assert_eq!(one.sql("SHOW archive_command"), "walkeep-archive-cmd %p");
    let slot = "SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'walkeep' AND slot_type = 'physical'";
    wait_until("the slot is there, by Patroni's hand", PATIENCE, || one.sql(slot) == "1");

    one.sql(member::GRANTS);
    one.walkeep.ok(&["init"]);
    one.launch_agent();
    wait_streams(&one, PATIENCE);
    one.walkeep.ok(&["check"]);
    one.walkeep.ok(&["backup"]);
    one.sql("CREATE TABLE t (i int PRIMARY KEY, filler text)");
    one.sql(&insert_statement(50));

    // The replica is made of the repository.
    two.configure("demo", Role::Replica);
    two.launch_agent();
    two.launch();
    wait_until("the replica is made", PATIENCE, || two.log().contains("replica has been created using"));
    assert!(two.log().contains("replica has been created using walkeep"), "{}", two.log());
    let streaming = "SELECT count(*) FROM pg_stat_replication WHERE application_name <> 'walkeep' AND state = 'streaming'";
    wait_until("it streams", PATIENCE, || one.sql(streaming) == "1");
    assert_stands_by(&two);
    wait_until("Patroni keeps the slot on the replica too", PATIENCE, || two.sql(slot) == "1");

    // The leader's whole host is gone, in the midst of work that nobody has stored yet, perhaps.
    one.sql(&insert_statement(200));
    let written = one.sql("SELECT pg_current_wal_flush_lsn()");
    wait_until("the replica has it", PATIENCE, || two.sql(&format!("SELECT pg_last_wal_replay_lsn() >= '{written}'")) == "t");
    one.kill9();
    two.wait_leader(FAILOVER);
    wait_streams(&two, TAKES_OVER);
    assert_eq!(two.sql(ROWS), "250|250");
    two.sql(&insert_statement(100));
    wait_all_stored(&two, 2);
    assert_whole(&two, 2);
    two.walkeep.ok(&["check"]);

    // The old leader comes back, is rewound or not, and follows; its agent has nothing to do.
    one.launch_agent();
    one.launch();
    wait_until("the old leader follows", PATIENCE, || two.sql(streaming) == "1");
    wait_until("and has all rows", PATIENCE, || one.try_sql(ROWS).is_some_and(|rows| rows == "350|350"));
    assert_stands_by(&one);

    // And back, as an operator does it.
    one.patronictl(&["switchover", "demo", "--leader", "two", "--candidate", "one", "--force"]);
    one.wait_leader(FAILOVER);
    wait_streams(&one, TAKES_OVER);
    one.sql(&insert_statement(10));
    wait_all_stored(&one, 3);
    assert_whole(&one, 3);
    wait_until("the other one follows", PATIENCE, || one.sql(streaming) == "1");
    assert_stands_by(&two);
    for member in [&one, &two] {
        assert_calm(member.agent(), &[&NO_SERVER[..], &["the replication slot is gone"]].concat());
    }

    let restored = Restored::by(&one.walkeep, VERSION, &[]);
    restored.start();
    assert_eq!(restored.cluster.sql(ROWS), "360|360");
    drop(restored);

    // All of it is lost. A cluster of that name is made out of the repository, and its archive goes on.
    one.kill9();
    two.kill9();
    let mut three = Member::new("three", &dcs, &bucket);
    three.configure("again", Role::Restored);
    three.launch_agent();
    three.launch();
    three.wait_leader(FAILOVER);
    assert_eq!(three.sql(ROWS), "360|360");
    assert_eq!(three.sql("SHOW archive_mode"), "on");
    wait_streams(&three, PATIENCE);
    three.sql(&insert_statement(40));
    wait_all_stored(&three, 4);
    assert_whole(&three, 4);
    // Nothing of the restore's is left to stand above Patroni's own settings.
    let left = "SELECT count(*) FROM pg_file_settings WHERE sourcefile LIKE '%postgresql.auto.conf'";
    assert_eq!(three.sql(left), "0");
    three.walkeep.ok(&["check"]);
    three.walkeep.ok(&["backup"]);
}
