//! Timelines change and WAL gets lost: followed where it can be, recorded and told where it cannot.

use std::path::Path;
use std::time::Duration;

use walkeep_tests::{Cluster, Fault, Repository, S3Server, Stop, Walkeep, When, compare_fetched, wait_until};

use crate::story::{Restored, Story, object, plan, refused, wait_for_file};
use crate::support::{
    SERVER_GONE, STORES, Store, assert_calm, end_of, fetch, lsn, segments_in, switch_and_store, uninitialised, wait_durable,
};

const SOON: Duration = Duration::from_secs(30);

/// The position at which timeline 2 begins, out of its history file.
fn switch_point(history: &[u8]) -> u64 {
    let text = String::from_utf8_lossy(history).into_owned();
    lsn(text.lines().last().unwrap().split('\t').nth(1).unwrap())
}

/// Where a file of the archive lies in a local repository, and when it was put there.
fn stored_at(repository: &Path, name: &str) -> Option<std::time::SystemTime> {
    let output = std::process::Command::new("find").arg(repository).args(["-name", &crate::story::object(name)]).output().unwrap();
    let path = String::from_utf8(output.stdout).unwrap();
    std::fs::metadata(path.trim()).ok()?.modified().ok()
}

/// Everything of `cluster` from `from` on, up to its newest finished segment, compared with pg_wal.
fn compare_with_pg_wal(cluster: &Cluster, walkeep: &Walkeep, from: &str, last: &str) -> usize {
    let names: Vec<_> = segments_in(&cluster.pg_wal()).into_iter().filter(|name| (from..=last).contains(&name.as_str())).collect();
    for name in &names {
        assert!(fetch(walkeep, name) == std::fs::read(cluster.pg_wal().join(name)).unwrap(), "{name}");
    }
    names.len()
}

/// G3: the agent streams from a standby, which is promoted in the middle of a segment.
#[test]
fn a_promotion_is_followed() {
    for store in STORES {
        let primary = Cluster::builder().segment_mib(1).conf("wal_keep_size", "512MB").start();
        let standby = primary.standby();
        let walkeep = uninitialised(&standby, store);
        walkeep.ok(&["init"]);
        let agent = walkeep.agent();
        primary.pgbench_init(1);
        primary.switch_wal();
        primary.sql("CREATE TABLE t AS SELECT generate_series(1, 1000)");
        primary.wait_replayed(&standby);
        standby.promote();
        standby.pgbench_run(&["-c", "2", "-t", "200"]);
        let last = switch_and_store(&standby, &agent, 1);
        assert!(last.starts_with("00000002"), "{last}");
        // The history is the server's, and it was there before the first segment of its timeline.
        let history = fetch(&walkeep, "00000002.history");
        assert_eq!(history, std::fs::read(standby.pg_wal().join("00000002.history")).unwrap());
        let switch = switch_point(&history);
        let of_switch = |timeline: &str| format!("{timeline}{:08X}{:08X}", switch >> 32, (switch & 0xFFFF_FFFF) >> 20);
        if matches!(store, Store::Local) {
            let moment = |name: &str| stored_at(&walkeep.local_repository(), name).unwrap_or_else(|| panic!("{name} is stored"));
            assert!(moment("00000002.history") <= moment(&of_switch("00000002")));
        }
        // The old timeline up to the switch point.
        let old = fetch(&walkeep, &of_switch("00000001"));
        let offset = (switch % (1 << 20)) as usize;
        let new = std::fs::read(standby.pg_wal().join(of_switch("00000002"))).unwrap();
        assert!(offset > 0 && old[..offset] == new[..offset], "the old timeline's tail up to {switch:X}");
        assert!(old[offset..].iter().all(|byte| *byte == 0), "and nothing behind it");
        // The new timeline from its first segment on, and the old one's whole segments.
        assert!(compare_with_pg_wal(&standby, &walkeep, &of_switch("00000002"), &last) >= 1);
        let old_names: Vec<_> = segments_in(&primary.pg_wal()).into_iter().filter(|name| *name < of_switch("00000001")).collect();
        let streamed: Vec<_> =
            old_names.iter().filter(|name| walkeep.run(&["wal", "fetch", name, "/dev/null/x"]).code != Some(1)).collect();
        assert!(streamed.len() > 5, "{streamed:?} of {old_names:?}");
        let status = walkeep.ok(&["status", "--json"]).json();
        assert_eq!(status["gaps"], serde_json::json!([]), "{status}");
        assert_calm(&agent, &[]);
        agent.stop();
    }
}

/// A promotion while no agent runs.
#[test]
fn a_promotion_meanwhile_is_followed() {
    let primary = Cluster::builder().segment_mib(1).conf("wal_keep_size", "512MB").start();
    let standby = primary.standby();
    let walkeep = uninitialised(&standby, Store::Local);
    walkeep.ok(&["init"]);
    let agent = walkeep.agent();
    primary.pgbench_init(1);
    primary.wait_replayed(&standby);
    agent.stop();
    primary.pgbench_run(&["-c", "2", "-t", "300"]);
    primary.wait_replayed(&standby);
    standby.promote();
    standby.pgbench_run(&["-c", "2", "-t", "300"]);
    let agent = walkeep.agent();
    let last = switch_and_store(&standby, &agent, 1);
    assert!(compare_with_pg_wal(&standby, &walkeep, "000000020000000000000000", &last) >= 1);
    let status = walkeep.ok(&["status", "--json"]).json();
    assert_eq!(status["gaps"], serde_json::json!([]), "{status}");
    for timeline in status["timelines"].as_array().unwrap() {
        assert_eq!(timeline["holes"], serde_json::json!([]), "{status}");
    }
    assert_calm(&agent, &[]);
    // And the server restarts, as the leader of its timeline.
    standby.restart();
    let last = switch_and_store(&standby, &agent, 1);
    assert!(last.starts_with("00000002"));
    assert_calm(&agent, &SERVER_GONE);
    agent.stop();
}

/// G7: the slot is dropped and the server removes WAL while no agent runs.
#[test]
fn lost_wal_is_a_recorded_gap() {
    for store in STORES {
        let cluster = Cluster::builder().segment_mib(1).conf("max_wal_size", "4MB").conf("min_wal_size", "2MB").start();
        let walkeep = uninitialised(&cluster, store);
        walkeep.ok(&["init"]);
        let agent = walkeep.agent();
        let before = switch_and_store(&cluster, &agent, 1);
        agent.stop();
        cluster.sql("SELECT pg_drop_replication_slot('walkeep')");
        cluster.pgbench_init(1);
        cluster.switch_wal();
        cluster.sql("CHECKPOINT");
        cluster.switch_wal();
        cluster.sql("CHECKPOINT");
        let agent = walkeep.launch_agent().unwrap();
        wait_until("the gap is told", SOON, || agent.log().contains("GAP in the archive"));
        wait_until("and it streams again", SOON, || agent.get("/readyz").is_ok_and(|(status, _)| status == 200));
        let after = switch_and_store(&cluster, &agent, 1);
        let status = walkeep.ok(&["status", "--json"]).json();
        let gaps = status["gaps"].as_array().unwrap();
        assert_eq!(gaps.len(), 1, "{status}");
        assert!(status.to_string().to_lowercase().contains("slot"), "the cause is told: {status}");
        let gap = &gaps[0];
        let (from, to) = (lsn(gap["name"]["from"].as_str().unwrap()), lsn(gap["name"]["to"].as_str().unwrap()));
        assert!(from <= end_of(&before, 1) + (1 << 20) && from >= end_of(&before, 1), "{gap}");
        assert!(to < end_of(&after, 1) && to > from, "{gap}");
        assert!(walkeep.ok(&["status"]).stdout.contains("GAP"));
        assert!(!fetch(&walkeep, &after).is_empty());
        // restore_command must not take the gap for the end of the archive.
        let missing = format!("{}{:08X}", &before[..16], u32::from_str_radix(&before[16..], 16).unwrap() + 2);
        let to = walkeep.scratch().join("missing");
        assert!(walkeep.run(&["wal", "fetch", &missing, &to.to_string_lossy()]).code.unwrap() > 125);
        // The alarm does not wait for the next look at all gaps, which comes every 5 minutes.
        wait_until("the gap is in the metrics at once", SOON, || agent.metric("walkeep_gaps") == Some(1.0));
        // A restart of the agent records it no second time, and its metric tells of it.
        agent.stop();
        let agent = walkeep.agent();
        wait_until("the gap is in the metrics", SOON, || agent.metric("walkeep_gaps") == Some(1.0));
        switch_and_store(&cluster, &agent, 1);
        assert_eq!(walkeep.ok(&["status", "--json"]).json()["gaps"].as_array().unwrap().len(), 1);
        assert_calm(&agent, &[]);
        agent.stop();
    }
}

/// G7: the slot is invalidated under a running server, by max_slot_wal_keep_size.
#[test]
fn an_invalidated_slot_is_a_recorded_gap() {
    let cluster = Cluster::builder()
        .segment_mib(1)
        .conf("max_wal_size", "4MB")
        .conf("min_wal_size", "2MB")
        .conf("max_slot_wal_keep_size", "2MB")
        .start();
    let walkeep = uninitialised(&cluster, Store::Local);
    walkeep.ok(&["init"]);
    let agent = walkeep.agent();
    switch_and_store(&cluster, &agent, 1);
    agent.stop();
    cluster.pgbench_init(1);
    cluster.switch_wal();
    cluster.sql("CHECKPOINT");
    wait_until("the slot is lost", SOON, || {
        cluster.switch_wal();
        cluster.sql("CHECKPOINT");
        cluster.sql("SELECT wal_status FROM pg_replication_slots") == "lost"
    });
    let agent = walkeep.launch_agent().unwrap();
    wait_until("the gap is told", SOON, || agent.log().contains("GAP in the archive"));
    wait_until("and it streams again", SOON, || agent.get("/readyz").is_ok_and(|(status, _)| status == 200));
    switch_and_store(&cluster, &agent, 1);
    assert_eq!(walkeep.ok(&["status", "--json"]).json()["gaps"].as_array().unwrap().len(), 1);
    assert_eq!(cluster.sql("SELECT wal_status FROM pg_replication_slots"), "reserved");
    agent.stop();
}

/// The slot is lost, but archive_command has stored everything: no gap.
#[test]
fn what_archive_command_stored_is_no_gap() {
    let cluster = Cluster::builder().segment_mib(1).archiving().conf("max_wal_size", "4MB").conf("min_wal_size", "2MB").start();
    let walkeep = uninitialised(&cluster, Store::Local);
    walkeep.ok(&["init"]);
    let agent = walkeep.agent();
    switch_and_store(&cluster, &agent, 1);
    agent.stop();
    cluster.archive_by(Some(&walkeep.push_command()));
    cluster.sql("SELECT pg_drop_replication_slot('walkeep')");
    cluster.pgbench_init(1);
    cluster.archive_now();
    cluster.sql("CHECKPOINT");
    let agent = walkeep.agent();
    let last = switch_and_store(&cluster, &agent, 1);
    cluster.wait_archived(&last, SOON);
    compare_fetched(&cluster.oracle(), &walkeep);
    let status = walkeep.ok(&["status", "--json"]).json();
    assert_eq!((&status["gaps"], &status["timelines"][0]["holes"]), (&serde_json::json!([]), &serde_json::json!([])));
    wait_durable(&agent, end_of(&last, 1), SOON);
    cluster.stop(Stop::Fast);
    assert_calm(&agent, &["the replication slot is gone", "cannot be compared", SERVER_GONE[0], SERVER_GONE[1]]);
    agent.stop();
}

/// Two promotions within one segment while no agent runs. A server that archives renames the middle timeline's segment to `.partial`, so that it
/// cannot send the older ones' ends any more; but its own segment begins with the same bytes.
#[test]
fn two_promotions_within_one_segment_are_followed() {
    for archiving in [false, true] {
        let builder = Cluster::builder().segment_mib(1).conf("wal_keep_size", "512MB");
        let builder = if archiving { builder.archiving().conf("archive_command", "true") } else { builder };
        let primary = builder.start();
        let first = primary.standby();
        let second = first.standby();
        let walkeep = uninitialised(&second, Store::Local);
        walkeep.ok(&["init"]);
        let agent = walkeep.agent();
        primary.pgbench_init(1);
        primary.switch_wal();
        primary.wait_replayed(&second);
        let stored = end_of(&segments_in(&second.pg_wal()).last().unwrap().clone(), 1) - (1 << 20);
        wait_durable(&agent, stored, SOON);
        agent.stop();
        primary.sql("CREATE TABLE on_one AS SELECT generate_series(1, 500)");
        primary.wait_replayed(&second);
        first.promote();
        first.sql("CREATE TABLE on_two AS SELECT generate_series(1, 500)");
        first.wait_replayed(&second);
        second.promote();
        second.sql("CREATE TABLE on_three AS SELECT generate_series(1, 500)");
        let agent = walkeep.agent();
        let last = switch_and_store(&second, &agent, 1);
        assert!(last.starts_with("00000003"), "{last}");
        let history = fetch(&walkeep, "00000003.history");
        let switches: Vec<_> = String::from_utf8_lossy(&history).lines().filter_map(|line| line.split('\t').nth(1)).map(lsn).collect();
        assert!(switches.len() == 2 && switches[0] >> 20 == switches[1] >> 20, "both within one segment: {switches:X?}");
        let of = |timeline: u32| format!("{timeline:08X}{:08X}{:08X}", switches[0] >> 32, (switches[0] & 0xFFFF_FFFF) >> 20);
        let newest = std::fs::read(second.pg_wal().join(of(3))).unwrap();
        for (timeline, switch) in [(1, switches[0]), (2, switches[1])] {
            let end = (switch % (1 << 20)) as usize;
            let stored = fetch(&walkeep, &of(timeline));
            assert!(stored[..end] == newest[..end], "archiving {archiving}: timeline {timeline} up to {switch:X}");
            assert!(stored[end..].iter().all(|byte| *byte == 0), "and nothing behind it");
        }
        assert!(fetch(&walkeep, &of(3)) == newest);
        let status = walkeep.ok(&["status", "--json"]).json();
        assert_eq!(status["gaps"], serde_json::json!([]), "{status}");
        for timeline in status["timelines"].as_array().unwrap() {
            assert_eq!(timeline["holes"], serde_json::json!([]), "{status}");
        }
        assert_eq!(agent.log().contains("out of a later one"), archiving, "{}", agent.log());
        assert_calm(&agent, &[]);
        agent.stop();
    }
}

/// The same with whole segments of the old timeline before its end, and a slow repository: the end is met in the middle of a stream, with everything
/// before it still under way. The slot is well, and all that the server has is stored.
#[test]
fn an_end_met_in_the_middle_of_a_stream_is_no_gap() {
    let primary = Cluster::builder().segment_mib(1).conf("wal_keep_size", "512MB").archiving().conf("archive_command", "true").start();
    let first = primary.standby();
    let second = first.standby();
    let proxy = S3Server::get().proxy();
    let walkeep = Walkeep::new(&second, Repository::s3(proxy.endpoint(), &S3Server::get().bucket()));
    walkeep.ok(&["init"]);
    let slot = "SELECT restart_lsn FROM pg_replication_slots";
    let began = lsn(&second.sql(slot));
    for table in ["a", "b", "c"] {
        primary.sql(&format!("CREATE TABLE {table} ()"));
        primary.switch_wal();
    }
    primary.sql("CREATE TABLE on_one ()");
    primary.wait_replayed(&second);
    first.promote();
    first.sql("CREATE TABLE on_two ()");
    first.wait_replayed(&second);
    second.promote();
    for table in ["d", "e"] {
        second.sql(&format!("CREATE TABLE {table} ()"));
        second.switch_wal();
    }
    // A slot made anew would begin here.
    second.sql("CHECKPOINT");
    let switches: Vec<_> = std::fs::read_to_string(second.pg_wal().join("00000003.history"))
        .unwrap()
        .lines()
        .filter_map(|line| line.split('\t').nth(1).map(lsn))
        .collect();
    assert!(switches.len() == 2 && switches[0] >> 20 == switches[1] >> 20, "both within one segment: {switches:X?}");
    assert!(switches[0] & 0xF_FFFF > 0 && began >> 20 < switches[0] >> 20, "not the first: {began:X}");
    let slow = proxy.arm(When::put(), Fault::Delay(Duration::from_millis(700)));
    let agent = walkeep.launch_agent().unwrap();
    wait_until("the end was met", SOON, || agent.log().contains("has already been removed"));
    proxy.disarm(slow);
    let last = switch_and_store(&second, &agent, 1);
    assert!(last.starts_with("00000003"), "{last}");
    let status = walkeep.ok(&["status", "--json"]).json();
    assert_eq!(status["gaps"], serde_json::json!([]), "{status}");
    for timeline in status["timelines"].as_array().unwrap() {
        assert_eq!(timeline["holes"], serde_json::json!([]), "{status}");
    }
    let of_three = format!("00000003{:08X}{:08X}", switches[0] >> 32, (switches[0] & 0xFFFF_FFFF) >> 20);
    assert!(compare_with_pg_wal(&second, &walkeep, &of_three, &last) >= 3);
    assert!(!agent.log().contains("slot is gone"), "{}", agent.log());
    agent.stop();
}

/// PostgreSQL 18 invalidates a slot that nobody used for a while, and goes on showing its position: it is made anew, and nothing is missing as long as the
/// server has the WAL.
#[test]
fn a_slot_invalidated_for_being_idle_is_made_anew() {
    if !walkeep_tests::postgres::versions().contains(&18) {
        eprintln!("SKIPPED: PostgreSQL 18 is not here");
        return;
    }
    let cluster =
        Cluster::builder().version(18).segment_mib(1).conf("wal_keep_size", "256MB").conf("idle_replication_slot_timeout", "1s").start();
    let walkeep = uninitialised(&cluster, Store::Local);
    walkeep.ok(&["init"]);
    let agent = walkeep.agent();
    let first = switch_and_store(&cluster, &agent, 1);
    agent.stop();
    cluster.sql("CREATE TABLE t ()");
    let reason = "SELECT invalidation_reason FROM pg_replication_slots";
    wait_until("the slot is invalidated", SOON, || {
        cluster.switch_wal();
        cluster.sql("CHECKPOINT");
        cluster.sql(reason) == "idle_timeout"
    });
    let agent = walkeep.launch_agent().unwrap();
    let last = switch_and_store(&cluster, &agent, 1);
    assert_eq!(cluster.sql("SELECT wal_status FROM pg_replication_slots"), "reserved");
    assert!(compare_with_pg_wal(&cluster, &walkeep, &first, &last) >= 3);
    let status = walkeep.ok(&["status", "--json"]).json();
    assert_eq!((&status["gaps"], &status["timelines"][0]["holes"]), (&serde_json::json!([]), &serde_json::json!([])));
    agent.stop();
}

/// The repository was put back to an older copy under a running agent. What it lacks now is received again at the next connection, and stored: what the agent
/// remembers of having stored it does not count.
#[test]
fn what_a_repository_put_back_lacks_is_stored_again() {
    let cluster = Cluster::builder().segment_mib(1).conf("wal_keep_size", "256MB").start();
    let mut walkeep = uninitialised(&cluster, Store::Local);
    walkeep.upload_interval = "1h".to_owned();
    walkeep.write_config();
    walkeep.ok(&["init"]);
    let agent = walkeep.agent();
    let first = switch_and_store(&cluster, &agent, 1);
    let lost: Vec<_> = ["a", "b", "c"]
        .map(|table| {
            cluster.sql(&format!("CREATE TABLE {table} ()"));
            switch_and_store(&cluster, &agent, 1)
        })
        .into();
    for name in &lost {
        let found =
            std::process::Command::new("find").arg(walkeep.local_repository()).args(["-name", &crate::story::object(name)]).output();
        std::fs::remove_file(String::from_utf8(found.unwrap().stdout).unwrap().trim()).unwrap();
    }
    cluster.restart();
    let last = switch_and_store(&cluster, &agent, 1);
    assert!(compare_with_pg_wal(&cluster, &walkeep, &first, &last) >= 5);
    agent.stop();
}

/// A history that is gone while WAL of its timeline is stored: that timeline is not passed over, nor is its number taken a second time.
#[test]
fn a_timeline_without_its_history_is_not_passed_over() {
    let mut story = Story::local(15);
    story.insert(5);
    story.backup();
    story.insert(5);
    let before = story.cluster.lsn();
    story.cluster.switch_wal();
    story.settle();
    story.cluster.stop(Stop::Fast);
    std::fs::write(story.cluster.data().join("standby.signal"), "").unwrap();
    story.cluster.start();
    story.cluster.promote();
    story.insert(5);
    story.cluster.switch_wal();
    story.settle();
    story.stop_agent(&SERVER_GONE);
    let walkeep = &story.walkeep;
    let history = wait_for_file(&walkeep.local_repository(), &object("00000002.history"));
    let aside = walkeep.scratch().join("aside");
    std::fs::rename(&history, &aside).unwrap();
    for target in [&[][..], &["--latest"], &["--lsn", &before]] {
        let why = refused(walkeep, target);
        assert!(why.contains("00000002.history") && why.contains("--timeline 1"), "{why}");
    }
    // Asked for by name, the older one can be read, and not opened: the server would take the number 2.
    let older = ["--timeline", "1", "--lsn", &before];
    let planned = plan(walkeep, &older);
    assert_eq!(planned["history_missing"], 2, "{planned}");
    let to = walkeep.scratch().join("x").display().to_string();
    let promoted = walkeep.run(&[&["restore", "--to", &to], &older[..]].concat()).expect_code(3);
    assert!(promoted.stderr.contains("--action pause") && !Path::new(&to).exists(), "{promoted:?}");
    let paused = Restored::by(walkeep, 15, &[&older[..], &["--action", "pause"]].concat());
    assert_eq!(paused.start_paused().rows(), 10);
    drop(paused);
    std::fs::rename(&aside, &history).unwrap();
    assert_eq!(Restored::by(walkeep, 15, &["--latest"]).start().rows(), 15);
}
