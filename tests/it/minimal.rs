//! G9: the server ran with wal_level = minimal for a while. Its WAL may be stored without a hole, and cannot be replayed.

use walkeep_tests::postgres::Stop;
use walkeep_tests::{Walkeep, wait_until};

use crate::story::{self, PATIENCE, Restored, plan, refused};
use crate::support::{lsn, wait_durable};

fn a_stretch_of_minimal_wal(version: u32) {
    let cluster = story::builder(version).start();
    let walkeep = Walkeep::local(&cluster);
    walkeep.ok(&["init"]);
    let agent = walkeep.agent();
    cluster.archive_by(Some(&walkeep.archive_command()));
    cluster.sql("CREATE TABLE t (i int PRIMARY KEY, filler text)");
    story::insert(&cluster, 5);
    story::backup(&walkeep);
    story::insert(&cluster, 5);
    story::settle(&cluster, &walkeep);
    let before = cluster.sql("SELECT pg_xact_commit_timestamp(xmin) FROM t WHERE i = 8");
    let xid = cluster.sql("SELECT xmin FROM t WHERE i = 8");
    agent.stop();
    let between = cluster.sql("SELECT clock_timestamp()");
    // No server starts so with a slot, nor archives.
    let slot = cluster.sql("SELECT slot_name FROM pg_replication_slots");
    cluster.sql(&format!("SELECT pg_drop_replication_slot('{slot}')"));
    // A long archive outage would do the same to the segments: here the server keeps them, and hands them over later.
    cluster.stop(Stop::Fast);
    for (name, value) in [("wal_level", "minimal"), ("max_wal_senders", "0"), ("archive_mode", "off"), ("wal_keep_size", "1GB")] {
        cluster.write_conf(name, value);
    }
    cluster.start();
    let began = cluster.lsn();
    story::insert(&cluster, 5);
    let within = cluster.sql("SELECT pg_xact_commit_timestamp(xmin) FROM t WHERE i = 13");
    cluster.stop(Stop::Fast);
    for (name, value) in [("wal_level", "replica"), ("max_wal_senders", "10"), ("archive_mode", "on")] {
        cluster.write_conf(name, value);
    }
    cluster.start();
    story::insert(&cluster, 5);
    let after = cluster.sql("SELECT pg_xact_commit_timestamp(xmin) FROM t WHERE i = 18");
    let last = cluster.sql("SELECT xmin FROM t WHERE i = 18");
    story::insert(&cluster, 2);
    let agent = walkeep.agent();
    cluster.archive_by(Some(&walkeep.archive_command()));
    cluster.archive_now();
    wait_durable(&agent, lsn(&cluster.sql("SELECT pg_current_wal_flush_lsn()")), PATIENCE);
    // What was written in between is brought, so that there is no hole; or else the hole is what the plan tells.
    wait_until("no hole is left", PATIENCE, || walkeep.ok(&["status", "--json"]).json()["timelines"][0]["holes"] == serde_json::json!([]));

    // Before it all is as ever, up to the last byte.
    assert_eq!(Restored::by(&walkeep, version, &["--at", &before]).start().rows(), 8);
    assert_eq!(Restored::by(&walkeep, version, &["--at", &between]).start().rows(), 10, "the last moment before");
    let behind = cluster.sql("SELECT pg_current_wal_flush_lsn()");
    let mut from = String::new();
    for target in [vec!["--at", &within], vec!["--at", &after], vec!["--xid", &last], vec!["--latest"], vec!["--lsn", &began]] {
        let why = refused(&walkeep, &target);
        assert!(
            why.contains("was written with wal_level = minimal") && why.contains("needs a backup that was taken after"),
            "{target:?}: {why}"
        );
        from = why.split_once("the WAL from ").unwrap().1.split_once(' ').unwrap().0.to_owned();
        assert!(lsn(&from) < lsn(&began) && lsn(&began) < lsn(&behind), "{from} {began}");
    }
    assert_eq!(Restored::by(&walkeep, version, &["--lsn", &from, "--exclusive"]).start().rows(), 10, "what the refusal offers");
    assert_eq!(Restored::by(&walkeep, version, &["--xid", &xid, "--exclusive"]).start().rows(), 7);
    // A backup behind it opens what follows.
    story::backup(&walkeep);
    story::insert(&cluster, 3);
    story::settle(&cluster, &walkeep);
    assert_eq!(Restored::by(&walkeep, version, &["--latest"]).start().rows(), 25);
    let time = cluster.sql("SELECT pg_xact_commit_timestamp(xmin) FROM t WHERE i = 24");
    assert_eq!(plan(&walkeep, &["--at", &time])["last_replayed"]["xid"].to_string(), cluster.sql("SELECT xmin FROM t WHERE i = 24"));
    assert_eq!(Restored::by(&walkeep, version, &["--at", &time]).start().rows(), 24);
    agent.stop();
}

#[test]
fn a_stretch_of_minimal_wal_on_13() {
    a_stretch_of_minimal_wal(13);
}

#[test]
fn a_stretch_of_minimal_wal_on_15() {
    a_stretch_of_minimal_wal(15);
}

#[test]
fn a_stretch_of_minimal_wal_on_18() {
    a_stretch_of_minimal_wal(18);
}
