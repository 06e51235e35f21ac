//! Base backups of a standby: they hold what the primary holds, wait for the primary's WAL, and are none when it is promoted meanwhile.

use std::time::Duration;

use walkeep_tests::process::Process;
use walkeep_tests::{Cluster, wait_until};

use crate::story::{self, PATIENCE, Story, backups, plan};

const VERSION: u32 = 15;

/// A primary with its agent, and a standby that `walkeep backup` connects to.
fn with_standby() -> (Story, Cluster) {
    let mut story = Story::without_parts(VERSION);
    story.insert(10);
    let standby = story.cluster.standby();
    story.cluster.wait_replayed(&standby);
    connect_to(&mut story, &standby);
    (story, standby)
}

/// The running agent keeps what it read at its start.
fn connect_to(story: &mut Story, server: &Cluster) {
    story.walkeep.connection = server.connection();
    story.walkeep.write_config();
}

fn start_backup(story: &Story, args: &[&str]) -> Process {
    let log = story.walkeep.scratch().join("standby-backup.log");
    Process::start(story.walkeep.command(&[&["backup"], args].concat()), &log).unwrap()
}

#[test]
fn a_backup_of_a_standby_is_one() {
    let (story, standby) = with_standby();
    story.insert(5);
    story.cluster.wait_replayed(&standby);
    // A standby cannot end a segment, and here the primary does not.
    let output = story.walkeep.run(&["backup", "--wal-timeout", "1s"]).expect_code(1);
    assert!(output.stderr.contains("pg_switch_wal()") && output.stderr.contains("standby"), "{}", output.stderr);
    assert_eq!(backups(&story.walkeep), [""; 0]);

    let mut backup = start_backup(&story, &[]);
    wait_until("the backup is complete", PATIENCE, || {
        // Work goes on.
        story.insert(1);
        story.cluster.switch_wal();
        backup.ended().is_some()
    });
    assert!(backup.ended().is_some_and(|status| status.success()), "{}", backup.log());
    assert!(!backup.log().contains("no catalog snapshot"), "{}", backup.log());
    let listed = story.walkeep.ok(&["backups", "--json"]).json();
    assert_eq!((listed.as_array().unwrap().len(), &listed[0]["from_standby"]), (1, &serde_json::json!(true)));
    story.insert(10);
    story.settle();
    let rows: u32 = story.cluster.value("SELECT count(*) FROM t");
    let time = story.commit_time(rows - 3);
    for (args, wanted) in [(vec![], rows), (vec!["--at", &time], rows - 3)] {
        let restored = story.restore(&args);
        restored.verify();
        // Not a standby of the primary's.
        assert!(!restored.cluster.data().join("standby.signal").exists());
        assert_eq!(restored.start().rows(), wanted, "{args:?}");
        assert_eq!(restored.cluster.sql("SHOW primary_conninfo"), "");
    }
    assert_eq!(standby.sql("SELECT pg_is_in_recovery()"), "t");
    story.end(&[]);
}

#[test]
fn a_standby_that_is_promoted_meanwhile_gives_no_backup() {
    let (mut story, standby) = with_standby();
    // 23 MB take some seconds.
    let mut backup = start_backup(&story, &["--max-rate", "6000"]);
    let sending = "SELECT count(*) FROM pg_stat_progress_basebackup WHERE phase = 'streaming database files'";
    wait_until("files are sent", PATIENCE, || {
        assert!(backup.ended().is_none(), "{}", backup.log());
        standby.sql(sending) == "1"
    });
    standby.promote();
    let status = backup.wait(PATIENCE).unwrap();
    assert_eq!(status.code(), Some(1), "{}", backup.log());
    assert!(backup.log().contains("the standby was promoted during online backup"), "{}", backup.log());
    assert_eq!(backups(&story.walkeep), [""; 0]);
    assert!(story::refused(&story.walkeep, &[]).contains("no base backup"));
    let ended = || standby.sql("SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'BASE_BACKUP%'") == "0";
    wait_until("the server has ended the backup", Duration::from_secs(30), ended);
    // What it left does not stand in the way of the primary's.
    story.walkeep.connection = story.cluster.connection();
    story.walkeep.write_config();
    let id = story.backup();
    story.insert(5);
    story.settle();
    // The promoted one archives too, by the settings it was copied with: its timeline is the newest, and no backup belongs to it.
    assert_eq!(plan(&story.walkeep, &["--timeline", "1"])["backup"]["id"], serde_json::json!(id));
    assert_eq!(story.restore(&["--timeline", "1"]).start().rows(), 15);
    story.end(&[]);
}
