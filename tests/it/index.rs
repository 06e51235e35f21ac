//! The index of the WAL: it tells what the WAL tells, however it came to be, and losing it loses nothing.

use std::path::{Path, PathBuf};

use serde_json::Value;
use walkeep_tests::{Cluster, Walkeep, user, wait_until, walkeep::run};

use crate::story::{PATIENCE, Story, listing};
use crate::support::{SERVER_GONE, switch_and_store};

/// Writes so many segments of 1 MiB, each its own transaction.
fn write_segments(cluster: &Cluster, segments: u32) {
    for _ in 0..segments {
        cluster.sql(
            "INSERT INTO t SELECT coalesce(max(i), 0) + n, repeat(md5(random()::text), 8) FROM t, generate_series(1, 1500) n GROUP BY n",
        );
        cluster.switch_wal();
    }
}

/// What is told, by the index and without it, which must be the same.
fn told(walkeep: &Walkeep, args: &[&str]) -> Value {
    let by = |more: &[&str]| {
        let mut log = walkeep.ok(&[&["log", "--json"], args, more].concat()).json();
        // The picture samples the clock, by what was read.
        ["read", "picture"].iter().for_each(|key| drop(log.as_object_mut().unwrap().remove(*key)));
        log
    };
    let (with, without) = (by(&[]), by(&["--no-index"]));
    assert_eq!(with["entries"], without["entries"], "{args:?}");
    assert_eq!(with, without, "{args:?}");
    with
}

/// Finished segments, and how many of them the index tells of.
fn indexed(story: &Story) -> (u64, u64) {
    let told = story.walkeep.ok(&["index", "--json"]).json();
    (told[0]["segments"].as_u64().unwrap(), told[0]["indexed"].as_u64().unwrap())
}

/// The index's objects.
fn objects(story: &Story) -> Vec<PathBuf> {
    let repository = story.walkeep.local_repository();
    let lines = listing(&repository);
    let paths = lines
        .iter()
        .filter_map(|line| line.split(' ').next())
        .filter(|path| path.contains("/index/") && path.ends_with(walkeep_tests::keys::suffix()));
    paths.map(|path| repository.join(path)).collect()
}

fn kinds(log: &Value) -> Vec<&str> {
    log["entries"].as_array().unwrap().iter().map(|entry| entry["what"].as_str().unwrap()).collect()
}

#[test]
fn it_tells_what_the_wal_tells_and_is_rebuilt() {
    for version in [13, 15, 18] {
        eprintln!("PostgreSQL {version}");
        tells_what_the_wal_tells(version);
    }
}

fn tells_what_the_wal_tells(version: u32) {
    let mut story = Story::local(version);
    story.backup();
    story
        .cluster
        .sql("CREATE TABLE gone (i int PRIMARY KEY, x text); CREATE TABLE late (i int PRIMARY KEY, x text); CREATE TABLE emptied (i int)");
    write_segments(&story.cluster, 10);
    story.cluster.sql("SELECT pg_create_restore_point('one')");
    story.cluster.sql("DROP TABLE gone");
    // Open while the agent dies: what it did before is known to the next agent all the same.
    let mut open = story.cluster.session();
    open.sql("BEGIN");
    open.sql("DROP TABLE late");
    write_segments(&story.cluster, 40);
    story.settle();
    wait_until("most of it is indexed", PATIENCE, || {
        let (segments, indexed) = indexed(&story);
        indexed > 0 && segments - indexed < 17
    });
    story.kill_agent();
    write_segments(&story.cluster, 5);
    story.start_agent();
    story.cluster.sql("TRUNCATE emptied");
    write_segments(&story.cluster, 20);
    open.sql("COMMIT");
    story.cluster.sql("INSERT INTO t SELECT i, repeat('x', 1000) FROM generate_series(1000000, 1021000) i");
    story.settle();
    let log = told(&story.walkeep, &[]);
    assert_eq!(kinds(&log), ["restore_point", "removed", "removed", "removed", "big_transaction"], "{log}");
    let late = &log["entries"][3];
    let is_table = |file: &Value| file["table"] == true;
    assert!(late["unclear"].as_array().unwrap().is_empty() && late["dropped"].as_array().unwrap().iter().any(is_table), "{late}");

    // In windows.
    let point = log["entries"][0]["lsn"].as_str().unwrap().to_owned();
    let drop_time = log["entries"][1]["time"].as_str().unwrap().to_owned();
    let late_time = late["time"].as_str().unwrap().to_owned();
    told(&story.walkeep, &["--from", &point, "--to", late["lsn"].as_str().unwrap()]);
    let between = told(&story.walkeep, &["--from", &drop_time, "--to", &late_time]);
    assert_eq!(kinds(&between), ["removed", "removed", "removed"]);
    told(&story.walkeep, &["--dropped"]);

    // An agent that ends stores what it has learnt.
    story.stop_agent(&[]);
    let (segments, of_them) = indexed(&story);
    assert!(segments - of_them < 3, "{of_them} of {segments}");
    let whole = told(&story.walkeep, &[]);

    // Damaged: told, and read from the WAL.
    let digests: Vec<_> = objects(&story).into_iter().filter(|path| path.to_string_lossy().contains("/0/")).collect();
    digests.iter().for_each(|digest| std::fs::write(digest, b"garbage").unwrap());
    let damaged = story.walkeep.ok(&["log", "--json"]);
    assert!(damaged.stderr.contains("cannot be believed"), "{}", damaged.stderr);
    assert_eq!(damaged.json()["entries"], whole["entries"]);

    // Lost: the same. And rebuilt.
    story.walkeep.ok(&["index", "--rebuild"]);
    assert_eq!(indexed(&story), (segments, segments));
    assert_eq!(told(&story.walkeep, &[])["entries"], whole["entries"]);
    let before = objects(&story);
    before.iter().for_each(|path| std::fs::remove_file(path).unwrap());
    assert_eq!(indexed(&story), (segments, 0));
    assert_eq!(told(&story.walkeep, &[])["entries"], whole["entries"]);
    let rebuilt = story.walkeep.ok(&["index", "--rebuild", "--json"]).json();
    assert_eq!((rebuilt[0]["segments"].as_u64(), rebuilt[0]["removed"].as_u64()), (Some(segments), Some(0)));
    assert_eq!(indexed(&story), (segments, segments));
    assert_eq!(told(&story.walkeep, &[])["entries"], whole["entries"]);
    opens_without_walkeep(&before[0]);
    story.end(&[]);
}

fn opens_without_walkeep(object: &Path) {
    if walkeep_tests::keys::is_everything_encrypted() {
        // `encryption` opens every kind by hand.
        return;
    }
    let text = run(user::command("zstd").args(["-dc"]).arg(object)).expect_code(0).stdout;
    assert!(text.starts_with("{\"format\":1"), "{text}");
}

#[test]
fn wal_that_archive_command_brings_is_indexed_too() {
    let mut story = Story::pushed(15);
    story.cluster.sql("CREATE TABLE gone (i int PRIMARY KEY)");
    write_segments(&story.cluster, 20);
    story.cluster.sql("DROP TABLE gone");
    write_segments(&story.cluster, 20);
    story.settle();
    wait_until("it is indexed", PATIENCE, || indexed(&story).1 >= 32);
    assert_eq!(kinds(&told(&story.walkeep, &["--dropped"])), ["removed"]);
    told(&story.walkeep, &[]);
    // What is brought while no agent runs is read back by the next.
    story.stop_agent(&[]);
    story.cluster.archive_by(Some(&story.walkeep.push_command()));
    write_segments(&story.cluster, 20);
    story.settle();
    let (segments, of_them) = indexed(&story);
    assert!(of_them + 15 < segments, "{of_them} of {segments}");
    story.cluster.archive_by(Some(&story.walkeep.archive_command()));
    story.start_agent();
    write_segments(&story.cluster, 20);
    story.settle();
    wait_until("all of it is indexed", PATIENCE, || {
        let (segments, indexed) = indexed(&story);
        segments - indexed < 17
    });
    told(&story.walkeep, &[]);
    story.end(&SERVER_GONE);
}

#[test]
fn each_timeline_has_its_own() {
    let primary = Cluster::builder().segment_mib(1).conf("wal_keep_size", "512MB").start();
    let standby = primary.standby();
    let walkeep = Walkeep::local(&standby);
    walkeep.ok(&["init"]);
    let agent = walkeep.agent();
    primary.sql("CREATE TABLE t (i int, filler text); CREATE TABLE gone (i int)");
    write_segments(&primary, 20);
    primary.wait_replayed(&standby);
    standby.promote();
    standby.sql("DROP TABLE gone");
    write_segments(&standby, 20);
    switch_and_store(&standby, &agent, 1);
    agent.stop();
    let second = told(&walkeep, &["--timeline", "2"]);
    assert_eq!(kinds(&second), ["timeline_switch", "removed"], "{second}");
    assert_eq!(kinds(&told(&walkeep, &["--timeline", "1"])), [""; 0]);
    let of_each = walkeep.ok(&["index", "--json"]).json();
    for told in of_each.as_array().unwrap() {
        let count = |key: &str| told[key].as_u64().unwrap();
        assert!(count("indexed") > 10 && count("segments") - count("indexed") < 3, "{of_each}");
    }
    walkeep.ok(&["index", "--rebuild"]);
    assert_eq!(told(&walkeep, &["--timeline", "2"]), second);
}

#[test]
fn plans_by_the_index_are_those_of_the_wal() {
    let mut story = Story::local(15);
    let backup = story.backup();
    let mut targets: Vec<Vec<String>> = vec![vec!["--latest".into()], vec!["--immediate".into(), "--backup".into(), backup]];
    for round in 0..3 {
        write_segments(&story.cluster, 7);
        story.insert(3);
        let last: u32 = story.cluster.value("SELECT max(i) FROM t");
        let mut pause = |target: [String; 2]| {
            targets.push(target.to_vec());
            if target[0] != "--restore-point" {
                targets.push([&target[..], &["--exclusive".to_owned()]].concat());
            }
        };
        pause(["--at".into(), story.commit_time(last)]);
        pause(["--xid".into(), story.xid(last)]);
        pause(["--lsn".into(), story.cluster.lsn()]);
        story.cluster.sql(&format!("SELECT pg_create_restore_point('point {round}')"));
        pause(["--restore-point".into(), format!("point {round}")]);
        write_segments(&story.cluster, 7);
    }
    targets.push(vec!["--at".into(), story.cluster.sql("SELECT clock_timestamp()")]);
    targets.push(vec!["--xid".into(), "4000000".into()]);
    story.insert(1);
    story.settle();
    story.stop_agent(&[]);
    let (segments, of_them) = indexed(&story);
    assert!(of_them > 30 && segments - of_them < 3, "{of_them} of {segments}");
    let plans = |story: &Story| -> Vec<Value> {
        let plan = |target: &Vec<String>| {
            let target: Vec<&str> = target.iter().map(String::as_str).collect();
            let mut plan = story.walkeep.run(&[&["plan", "--json"], &target[..]].concat()).json();
            if let Some(plan) = plan.as_object_mut() {
                // How long it takes is another matter, and how far was looked behind the stop.
                plan.remove("estimate");
                plan.remove("looked_to");
            }
            plan
        };
        targets.iter().map(plan).collect()
    };
    let by_index = plans(&story);
    let repository = story.walkeep.local_repository();
    let digests: Vec<_> = objects(&story).into_iter().filter(|path| path.to_string_lossy().contains("/0/")).collect();
    digests.iter().for_each(|path| std::fs::remove_file(path).unwrap());
    assert!(!digests.is_empty() && repository.exists());
    let by_wal = plans(&story);
    for ((target, index), wal) in targets.iter().zip(&by_index).zip(&by_wal) {
        assert_eq!(index, wal, "{target:?}");
    }
    // The index is of use: what lies between is not read.
    story.walkeep.ok(&["index", "--rebuild"]);
    let middle = listing(&repository).into_iter().filter_map(|line| line.split(' ').next().map(|path| repository.join(path)));
    let middle: Vec<_> = middle
        .filter(|path| path.to_string_lossy().contains("/wal/") && path.to_string_lossy().ends_with(walkeep_tests::keys::suffix()))
        .collect();
    let damaged = &middle[middle.len() / 2];
    std::fs::write(damaged, b"garbage").unwrap();
    let last = targets[targets.len() - 3].iter().map(String::as_str).collect::<Vec<_>>();
    story.walkeep.ok(&[&["plan"], &last[..]].concat());
    story.end(&[]);
}
