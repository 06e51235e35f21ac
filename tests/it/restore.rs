//! The whole story of each version: archive, stream, back up, work on, plan, restore, start, and every row is there.

use serde_json::Value;
use walkeep_tests::postgres::versions;
use walkeep_tests::{Repository, S3Server, user};

use crate::story::{STATE, Story, builder, insert_statement, plan};

fn whole_story(version: u32, repository: Option<Repository>) {
    if !versions().contains(&version) {
        return;
    }
    let story = Story::begin(builder(version), repository);
    story.insert(50);
    // Work goes on while the backup is taken.
    let mut working = story.cluster.session();
    working.send(&insert_statement(200));
    let backup = story.backup();
    working.finish();
    drop(working);
    story.insert(30);
    let (before, time) = (story.cluster.sql(STATE), story.commit_time(280));
    story.insert(20);
    story.settle();
    story.insert(5);
    let end = story.cluster.sql(STATE);
    assert_eq!(end.split('|').next(), Some("305"));
    story.settle();

    let planned = plan(&story.walkeep, &["--at", &time]);
    assert_eq!(planned["backup"]["id"], Value::from(backup.as_str()));
    assert_eq!(planned["last_replayed"]["xid"].to_string(), story.xid(280));
    assert_eq!(planned["first_not_replayed"]["xid"].to_string(), story.xid(281));
    assert!(story.walkeep.ok(&["plan", "--at", &time]).stdout.contains("Every object this needs is in the repository"));

    for (target, wanted) in [(vec!["--latest"], end), (vec!["--at", &time], before)] {
        let restored = story.restore(&target);
        restored.verify();
        restored.start();
        assert_eq!(restored.state(), wanted, "{target:?}");
        // It is a server like any other: it writes, on a timeline of its own.
        restored.cluster.sql("INSERT INTO t VALUES (0, 'restored')");
        assert!(restored.cluster.switch_wal().starts_with("00000002"));
    }
    story.end(&[]);
}

macro_rules! versions {
    ($($name:ident $version:literal)*) => {$(
        #[test]
        fn $name() {
            whole_story($version, None);
        }
    )*};
}

versions! {
    postgres_13_is_restored 13
    postgres_14_is_restored 14
    postgres_15_is_restored 15
    postgres_16_is_restored 16
    postgres_17_is_restored 17
    postgres_18_is_restored 18
}

fn s3() -> Option<Repository> {
    let server = S3Server::get();
    Some(Repository::s3(server.endpoint(), &server.bucket()))
}

#[test]
fn postgres_15_is_restored_from_s3() {
    whole_story(15, s3());
}

#[test]
fn postgres_18_is_restored_from_s3_by_tls() {
    let server = S3Server::get();
    whole_story(18, Some(Repository::s3_tls(&server.bucket())));
}

/// What the original's configuration says of recoveries and places must not reach the copy, wherever it stands: one setting too many keeps the
/// server from starting, and `data_directory` has it start on the original's files.
#[test]
fn settings_in_included_files_do_not_reach_the_copy() {
    for version in [13, 15, 18].into_iter().filter(|version| versions().contains(version)) {
        let story = Story::local(version);
        let data = story.cluster.data().to_owned();
        let pid_file = story.cluster.scratch().join("external.pid");
        let lines = [
            "restore_command = 'false'".to_owned(),
            "archive_cleanup_command = 'false'".into(),
            "recovery_min_apply_delay = '1h'".into(),
            format!("external_pid_file = '{}'", pid_file.display()),
            format!("hba_file = '{}/pg_hba.conf'", data.display()),
            format!("ident_file '{}/pg_ident.conf' # no equals sign", data.display()),
        ];
        std::fs::create_dir(data.join("conf.d")).unwrap();
        std::fs::write(data.join("conf.d/10-places.conf"), lines.join("\n")).unwrap();
        std::fs::write(data.join("conf.d/20-more.conf"), "include_if_exists 'nowhere'\ninclude 'deeper/target'\n").unwrap();
        std::fs::create_dir(data.join("conf.d/deeper")).unwrap();
        let target = "Recovery_Target_Time = '2020-01-01 00:00:00+00'\n";
        let (below, elsewhere) = if version == 15 { ("", target) } else { (target, "") };
        std::fs::write(data.join("conf.d/deeper/target"), below).unwrap();
        // Outside of the data directory: nothing there can be changed.
        let outside = story.cluster.scratch().join("outside.conf");
        let lines = format!("data_directory = '{}'\nrecovery_target_action = 'shutdown'\n{elsewhere}", data.display());
        std::fs::write(&outside, &lines).unwrap();
        for path in [data.join("conf.d"), data.join("conf.d/deeper"), outside.clone()] {
            user::give(&path);
        }
        story.cluster.write_conf("data_directory", &data.display().to_string());
        story.cluster.write_conf("include_dir", "conf.d");
        story.cluster.write_conf("include", &outside.display().to_string());
        story.cluster.restart();
        assert!(pid_file.exists());
        story.insert(20);
        story.backup();
        story.insert(10);
        let (time, lsn) = (story.commit_time(25), story.cluster.lsn());
        story.insert(10);
        story.settle();
        let xid = story.xid(22);
        let was = std::fs::read_to_string(&pid_file).unwrap();
        for (target, rows) in [(vec!["--at", &time], 25), (vec!["--lsn", &lsn], 30), (vec!["--xid", &xid], 22), (vec!["--latest"], 40)] {
            let restored = story.restore(&target);
            restored.start();
            assert_eq!(restored.rows(), rows, "{version} {target:?}");
            let copy = restored.cluster.data().display().to_string();
            assert_eq!(restored.cluster.sql("SHOW data_directory"), copy);
            assert_eq!(restored.cluster.sql("SHOW hba_file"), format!("{copy}/pg_hba.conf"));
            assert_eq!(restored.cluster.sql("SHOW ident_file"), format!("{copy}/pg_ident.conf"));
            assert_eq!(std::fs::read_to_string(&pid_file).unwrap(), was, "the original's file is left alone");
            restored.cluster.restart();
            assert_eq!(restored.rows(), rows);
        }
        assert_eq!(std::fs::read_to_string(&outside).unwrap(), lines, "nothing outside is touched");
        story.end(&["the stream ended", "cannot look at the slot"]);
    }
}
