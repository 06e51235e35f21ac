//! Tablespaces, pg_wal on another disk, and other sizes of WAL segments.

use std::path::Path;

use walkeep_tests::postgres::versions;
use walkeep_tests::{Cluster, Scratch, Stop, Walkeep, compare_fetched};

use crate::story::{self, Restored, Story};
use crate::support::SERVER_GONE;

const VERSION: u32 = 15;

#[test]
fn tablespaces_go_where_they_are_told() {
    let story = Story::local(VERSION);
    let places = Scratch::new();
    let old = places.dir("old");
    story.far_table(&old);
    story.insert(10);
    story.backup();
    story.cluster.sql("INSERT INTO far SELECT generate_series(1001, 1500)");
    story.settle();

    let before = story::listing(&old);
    let to = places.join("data");
    let (to_text, old_text) = (to.to_str().unwrap(), old.to_str().unwrap());
    let new = places.join("new");
    let full = places.dir("full");
    places.write("full/file", "precious", 0o600);
    let refusals = [
        (vec![], "--tablespace OLD=NEW", 3),
        (vec![format!("/nowhere={}", new.display())], "no tablespace of the backup was at /nowhere", 3),
        (vec![format!("{old_text}={}", full.display())], "is not empty", 3),
        (vec![format!("{old_text}={to_text}/within")], "must not lie in one another", 3),
        (vec![format!("{old_text}=new")], "is not an absolute path", 2),
    ];
    for (mappings, says, code) in refusals {
        let mut args = vec!["restore", "--to", to_text];
        mappings.iter().for_each(|mapping| args.extend(["--tablespace", mapping]));
        let output = story.walkeep.run(&args).expect_code(code);
        assert!(output.stderr.contains(says), "{mappings:?}: {}", output.stderr);
        assert!(!to.exists() && !new.exists(), "{mappings:?}");
    }
    let mapping = format!("{old_text}={}", new.display());
    let restored = story.restore(&["--tablespace", &mapping]);
    restored.start();
    assert_eq!(restored.cluster.sql("SELECT count(*) FROM far"), "1500");
    let location = "SELECT pg_tablespace_location(oid) FROM pg_tablespace WHERE spcname = 'apart'";
    assert_eq!(restored.cluster.sql(location), new.display().to_string());
    restored.cluster.sql("INSERT INTO far VALUES (0)");
    restored.cluster.stop(Stop::Fast);
    assert_eq!(story::listing(&old), before, "the original was touched");
    assert_eq!(story.cluster.sql("SELECT count(*) FROM far"), "1500");

    // The place they had is right where nothing is there any more.
    story.cluster.stop(Stop::Fast);
    std::fs::rename(&old, places.join("moved away")).unwrap();
    let again = story.restore(&[]);
    again.start();
    assert_eq!(again.cluster.sql("SELECT count(*) FROM far"), "1500");
    assert_eq!(again.cluster.sql(location), old_text);
    drop(again);
    story.end(&SERVER_GONE);
}

/// Replay creates a tablespace where it was created the first time: 13 and 14 empty what they find there, later ones write beside it.
#[test]
fn a_tablespace_created_after_the_backup_is_not_shared_with_the_original() {
    for version in [13, 15, 18].into_iter().filter(|version| versions().contains(version)) {
        late_tablespace(version);
    }
}

fn late_tablespace(version: u32) {
    let story = Story::local(version);
    let places = Scratch::new();
    let late = places.dir("late");
    let late_text = late.to_str().unwrap();
    story.insert(10);
    story.backup();
    story.insert(5);
    // A time would not do: its record comes before its commit, so replay to the time before that commit has met it.
    story.cluster.sql("SELECT pg_create_restore_point('before')");
    story.cluster.sql(&format!("CREATE TABLESPACE late LOCATION '{late_text}'"));
    story.cluster.sql("CREATE TABLE far TABLESPACE late AS SELECT generate_series(1, 1000) AS i");
    story.cluster.sql("CHECKPOINT");
    let point = story.cluster.sql("SELECT pg_create_restore_point('after')");
    story.insert(1);
    story.settle();
    let before = story::listing(&late);
    let to = places.join("data");

    // Every kind of target behind it.
    for target in [&[][..], &["--restore-point", "after"], &["--lsn", &point]] {
        let plan = story::plan(&story.walkeep, target);
        assert_eq!(plan["replayed_tablespaces"][0]["location"], late_text, "{target:?}");
        let mut args = vec!["restore", "--to", to.to_str().unwrap()];
        args.extend(target);
        let refused = story.walkeep.run(&args).expect_code(3);
        assert!(refused.stderr.contains(late_text) && refused.stderr.contains("another host"), "{target:?}: {}", refused.stderr);
        assert!(!to.exists(), "{target:?}");
    }
    assert_eq!(story::listing(&late), before, "the original was touched");

    // Before it there is nothing to fear, beside the running original.
    assert_eq!(story.restore(&["--restore-point", "before"]).start().rows(), 15, "PostgreSQL {version}");
    assert_eq!(story::listing(&late), before, "the original was touched");

    // Where the place is free the tablespace comes back.
    story.cluster.stop(Stop::Fast);
    std::fs::rename(&late, places.join("moved away")).unwrap();
    let restored = story.restore(&[]);
    assert_eq!(restored.start().cluster.sql("SELECT count(*) FROM far"), "1000", "PostgreSQL {version}");
    assert_eq!(restored.cluster.sql("SELECT pg_tablespace_location(oid) FROM pg_tablespace WHERE spcname = 'late'"), late_text);
    drop(restored);
    story.end(&SERVER_GONE);
}

/// PostgreSQL 15 sends them with no base backup that has a tablespace map; from 16 on it does. Neither may lose rows in silence.
#[test]
fn tablespaces_in_place_move_along_or_are_refused() {
    for version in [15, 16, 18].into_iter().filter(|version| versions().contains(version)) {
        // The recovery wants the setting too.
        let story = Story::begin(story::builder(version).conf("allow_in_place_tablespaces", "on"), None);
        story.cluster.sql("CREATE TABLESPACE within LOCATION ''");
        story.cluster.sql("CREATE TABLE near TABLESPACE within AS SELECT generate_series(1, 500) AS i");
        if version == 15 {
            let output = story.walkeep.run(&["backup", "--method", "protocol"]).expect_code(1);
            assert!(output.stderr.contains("within") && output.stderr.contains("allow_in_place_tablespaces"), "{}", output.stderr);
            assert_eq!(story::backups(&story.walkeep), Vec::<String>::new());
        } else {
            story.backup();
            story.cluster.sql("INSERT INTO near SELECT generate_series(501, 600)");
            story.settle();
            assert_eq!(story.restore(&[]).start().cluster.sql("SELECT count(*), sum(i) FROM near"), "600|180300", "PostgreSQL {version}");
        }
        story.end(&[]);
    }
}

/// A data directory's pg_wal becomes a link to another place, as by `initdb --waldir`.
fn move_pg_wal(data: &Path, to: &Path) {
    let pg_wal = data.join("pg_wal");
    std::fs::rename(&pg_wal, to).unwrap();
    std::os::unix::fs::symlink(to, &pg_wal).unwrap();
}

#[test]
fn pg_wal_may_be_a_link() {
    let cluster = story::builder(VERSION).create();
    move_pg_wal(cluster.data(), &cluster.scratch().join("waldir"));
    cluster.start();
    let walkeep = Walkeep::local(&cluster);
    walkeep.ok(&["init"]);
    let agent = walkeep.agent();
    cluster.archive_by(Some(&walkeep.archive_command()));
    cluster.sql("CREATE TABLE t (i int PRIMARY KEY, filler text)");
    story::insert(&cluster, 10);
    story::backup(&walkeep);
    story::insert(&cluster, 10);
    cluster.archive_now();
    let path = cluster.pg_wal().join(cluster.switch_wal());
    walkeep.ok(&["wal", "push", &path.to_string_lossy()]);
    story::settle(&cluster, &walkeep);
    assert!(compare_fetched(&cluster.oracle(), &walkeep) >= 2);
    assert_eq!(agent.metric("walkeep_ready_files"), Some(0.0));

    let restored = Restored::by(&walkeep, VERSION, &[]);
    assert!(restored.cluster.pg_wal().symlink_metadata().unwrap().is_dir(), "the link is not restored, what it led to is another server's");
    restored.verify();
    assert_eq!(restored.start().rows(), 20);
    // An operator may make it a link again.
    let restored = Restored::by(&walkeep, VERSION, &[]);
    move_pg_wal(restored.cluster.data(), &restored.cluster.scratch().join("waldir"));
    assert_eq!(restored.start().rows(), 20);
    assert_eq!(agent.complaints(&[]), [""; 0]);
    agent.stop();
}

#[test]
fn segments_of_64_megabytes() {
    segments(64);
}

#[test]
fn segments_of_16_megabytes() {
    segments(16);
}

fn segments(mib: u32) {
    let builder = Cluster::builder().version(VERSION).segment_mib(mib).archiving();
    let story = Story::begin(builder.conf("track_commit_timestamp", "on"), None);
    story.insert(10);
    let backup = story.backup();
    // Across several segments.
    story.cluster.sql("CREATE TABLE big AS SELECT i, repeat(md5(i::text), 60) AS filler FROM generate_series(1, 40000) AS i");
    story.insert(10);
    let time = story.commit_time(20);
    story.insert(10);
    story.settle();
    assert_eq!(story.walkeep.ok(&["status", "--json"]).json()["segment_bytes"], u64::from(mib) << 20);
    let restored = story.restore(&["--at", &time]);
    restored.verify();
    assert_eq!(restored.start().rows(), 20);
    assert_eq!(restored.cluster.sql("SELECT count(*) FROM big"), "40000");
    assert_eq!(restored.cluster.sql("SHOW wal_segment_size"), format!("{mib}MB"));
    drop(restored);
    let latest = Restored::by(&story.walkeep, VERSION, &["--backup", &backup]);
    assert_eq!(latest.start().rows(), 30);
    story.end(&[]);
}
