//! Gaps: exact where they are recorded, closed where they are filled.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};
use walkeep_tests::{Agent, Cluster, Stop, Walkeep, wait_until};

use crate::story;
use crate::support::{Offered, assert_calm, copies, end_of, fetch, lsn, offer, segments_in, switch_and_store, wait_durable};

const SOON: Duration = Duration::from_secs(30);
const MIB: u64 = 1 << 20;

fn start_of(segment: &str) -> u64 {
    end_of(segment, 1) - MIB
}

fn segment_of(timeline: u64, at: u64) -> String {
    format!("{timeline:08X}{:08X}{:08X}", at >> 32, (at & 0xFFFF_FFFF) / MIB)
}

#[track_caller]
fn recorded(walkeep: &Walkeep) -> Vec<Value> {
    walkeep.ok(&["status", "--json"]).json()["gaps"].as_array().unwrap().clone()
}

fn place(gap: &Value) -> (u64, u64, u64) {
    let position = |key: &str| lsn(gap["name"][key].as_str().unwrap());
    (gap["name"]["timeline"].as_u64().unwrap(), position("from"), position("to"))
}

/// The agent stores all there is and ends; where that is.
#[track_caller]
fn stop_with_all_stored(cluster: &Cluster, walkeep: &Walkeep, agent: Agent, timeline: u64) -> u64 {
    wait_durable(&agent, lsn(&cluster.sql("SELECT pg_current_wal_flush_lsn()")), SOON);
    agent.stop();
    story::stored(walkeep, timeline).unwrap()
}

#[track_caller]
fn launch_into_gap(walkeep: &Walkeep) -> Agent {
    let agent = walkeep.launch_agent().unwrap();
    wait_until("the gap is told", SOON, || agent.log().contains("GAP in the archive"));
    wait_until("and it streams again", SOON, || agent.get("/readyz").is_ok_and(|(status, _)| status == 200));
    agent
}

/// Writes until the server has removed the segment at `at`; the oldest segment that it still has.
#[track_caller]
fn lose(cluster: &Cluster, at: u64) -> String {
    let oldest = || segments_in(&cluster.pg_wal()).into_iter().min_by_key(|name| start_of(name)).unwrap();
    wait_until("the WAL is removed", SOON, || {
        for _ in 0..4 {
            cluster.switch_wal();
        }
        cluster.sql("CHECKPOINT");
        start_of(&oldest()) > at
    });
    oldest()
}

/// The finished segments that the server has, with their content: it may remove them at its next checkpoint. Without those in which a timeline ended, which
/// hold anything behind that.
#[track_caller]
fn finished(cluster: &Cluster, walkeep: &Walkeep) -> Vec<(String, PathBuf)> {
    let writes = start_of(&cluster.sql("SELECT pg_walfile_name(pg_current_wal_insert_lsn())"));
    let mut names = segments_in(&cluster.pg_wal());
    names.sort_by_key(|name| (start_of(name), name.clone()));
    let ended: Vec<_> = names.windows(2).filter(|pair| start_of(&pair[0]) == start_of(&pair[1])).map(|pair| pair[0].clone()).collect();
    names.retain(|name| start_of(name) < writes && !ended.contains(name));
    let folder = copies(walkeep, "kept", &cluster.pg_wal(), &names);
    names.into_iter().map(|name| (name.clone(), folder.join(name))).collect()
}

#[track_caller]
fn assert_stored(walkeep: &Walkeep, kept: &[(String, PathBuf)]) {
    for (name, copy) in kept {
        assert!(fetch(walkeep, name) == std::fs::read(copy).unwrap(), "{name}");
    }
}

/// The slot is lost, and the server keeps more than a new slot would: the gap is what is lost, to the byte, and no more.
#[test]
fn a_gap_is_exactly_what_is_lost() {
    for version in walkeep_tests::postgres::versions().into_iter().filter(|version| [13, 15, 18].contains(version)) {
        let builder = Cluster::builder().version(version).segment_mib(1).conf("autovacuum", "off").conf("wal_keep_size", "5MB");
        let cluster = builder.conf("max_wal_size", "4MB").conf("min_wal_size", "2MB").start();
        let walkeep = Walkeep::local(&cluster);
        walkeep.ok(&["init"]);
        let agent = walkeep.agent();
        cluster.sql("CREATE TABLE t AS SELECT generate_series(1, 100)");
        let from = stop_with_all_stored(&cluster, &walkeep, agent, 1);
        assert!(!from.is_multiple_of(MIB), "in the middle of a segment: {from:X}");
        cluster.sql("SELECT pg_drop_replication_slot('walkeep')");
        let oldest = lose(&cluster, from);
        let kept = finished(&cluster, &walkeep);
        assert!(kept.len() >= 5, "{version}: {}", kept.len());
        let agent = launch_into_gap(&walkeep);
        switch_and_store(&cluster, &agent, 1);
        let gaps = recorded(&walkeep);
        assert_eq!(gaps.iter().map(place).collect::<Vec<_>>(), [(1, from, start_of(&oldest))], "{version}: {gaps:?}");
        assert_stored(&walkeep, &kept);
        agent.stop();
    }
}

/// The primary dies while no agent runs, and the promoted standby, which has no slot, has removed WAL that was not stored.
#[test]
fn what_a_promoted_standby_has_removed_is_a_gap() {
    let small = Cluster::builder().segment_mib(1).conf("autovacuum", "off").conf("max_wal_size", "4MB").conf("min_wal_size", "2MB");
    let primary = small.conf("wal_keep_size", "3MB").start();
    let standby = primary.standby();
    let mut walkeep = Walkeep::local(&primary);
    walkeep.ok(&["init"]);
    let agent = walkeep.agent();
    primary.sql("CREATE TABLE t AS SELECT generate_series(1, 100)");
    let from = stop_with_all_stored(&primary, &walkeep, agent, 1);
    // The slot holds everything on the primary. The standby knows nothing of it.
    wait_until("the standby has removed it", SOON, || {
        for _ in 0..4 {
            primary.switch_wal();
        }
        primary.sql("CHECKPOINT");
        primary.wait_replayed(&standby);
        standby.sql("CHECKPOINT");
        segments_in(&standby.pg_wal()).iter().all(|name| start_of(name) > from)
    });
    primary.stop(Stop::Immediate);
    standby.promote();
    standby.sql("CHECKPOINT");
    let oldest = segments_in(&standby.pg_wal()).into_iter().min_by_key(|name| start_of(name)).unwrap();
    let kept = finished(&standby, &walkeep);
    walkeep.connection = standby.connection();
    walkeep.write_config();
    let agent = launch_into_gap(&walkeep);
    let last = switch_and_store(&standby, &agent, 1);
    assert!(last.starts_with("00000002"), "{last}");
    let gaps = recorded(&walkeep);
    assert_eq!(gaps.iter().map(place).collect::<Vec<_>>(), [(1, from, start_of(&oldest))], "{gaps:?}");
    assert_stored(&walkeep, &kept);
    agent.stop();
}

/// Copies of the lost segments turn up: some are pushed by hand, the rest by archive_command. What is still missing is told, and at the end nothing is.
#[test]
fn a_gap_is_closed_by_what_fills_it() {
    let builder = story::builder(15).conf("max_wal_size", "4MB").conf("min_wal_size", "2MB");
    let cluster = builder.start();
    cluster.archive_by(None);
    let walkeep = Walkeep::local(&cluster);
    walkeep.ok(&["init"]);
    let agent = walkeep.agent();
    cluster.sql("CREATE TABLE t (i int PRIMARY KEY, filler text)");
    story::insert(&cluster, 10);
    story::backup(&walkeep);
    story::insert(&cluster, 10);
    let from = stop_with_all_stored(&cluster, &walkeep, agent, 1);
    cluster.sql("SELECT pg_drop_replication_slot('walkeep')");
    for _ in 0..4 {
        story::insert(&cluster, 1);
        cluster.archive_now();
    }
    let lost = lose(&cluster, from + 3 * MIB);
    let agent = launch_into_gap(&walkeep);
    story::insert(&cluster, 10);
    story::settle(&cluster, &walkeep);
    let gaps = recorded(&walkeep);
    let to = start_of(&lost);
    assert_eq!(gaps.iter().map(place).collect::<Vec<_>>(), [(1, from, to)]);
    let refused = story::refused(&walkeep, &["--timeline", "1", "--lsn", &format!("0/{:X}", to + 100)]);
    assert!(refused.contains("SlotLost"), "{refused}");

    let offered = Offered::of(&cluster);
    let missing: Vec<_> = (from / MIB..to / MIB).map(|number| segment_of(1, number * MIB)).collect();
    let copy = |name: &String| offered.file(name, &std::fs::read(cluster.oracle().join(name)).unwrap());
    let (by_hand, rest) = missing.split_at(missing.len() / 2);
    assert!(!by_hand.is_empty() && !rest.is_empty(), "{missing:?}");
    for name in by_hand {
        walkeep.ok(&["wal", "push", &copy(name).to_string_lossy()]);
    }
    let gap = &recorded(&walkeep)[0];
    let left = |gap: &Value| (lsn(gap["missing"][0]["from"].as_str().unwrap()), lsn(gap["missing"][0]["to"].as_str().unwrap()));
    assert_eq!((&gap["open"], left(gap)), (&json!(true), (start_of(&rest[0]), to)), "{gap}");
    let said = walkeep.ok(&["status"]).stdout;
    assert!(said.contains("\nGAP: ") && said.contains("still missing: from"), "{said}");
    story::refused(&walkeep, &["--timeline", "1", "--lsn", &format!("0/{:X}", to + 100)]);
    assert_eq!(agent.metric("walkeep_gaps"), Some(1.0));

    for name in rest {
        offer(&walkeep, &copy(name)).expect_code(0);
    }
    wait_until("the metric sees it", SOON, || agent.metric("walkeep_gaps") == Some(0.0));
    let gap = &recorded(&walkeep)[0];
    assert_eq!((&gap["open"], &gap["missing"]), (&json!(false), &json!([])), "{gap}");
    assert!(gap["closed_at"].is_string() && gap["recorded_at"].is_string(), "{gap}");
    let said = walkeep.ok(&["status"]).stdout;
    assert!(said.contains("\nclosed gap: ") && !said.contains("GAP") && !said.contains("HOLE"), "{said}");
    assert_eq!(story::Restored::by(&walkeep, 15, &["--latest"]).start().rows(), 34);
    // An agent that begins anew does not take it for open, nor passes over anything.
    agent.stop();
    let agent = walkeep.agent();
    switch_and_store(&cluster, &agent, 1);
    assert_eq!(agent.metric("walkeep_gaps"), Some(0.0));
    assert_calm(&agent, &[]);
    agent.stop();
}

/// Ends the server's recovery anew, which makes the next timeline.
#[track_caller]
fn next_timeline(cluster: &Cluster) {
    cluster.stop(Stop::Fast);
    cluster.write_conf("restore_command", "false");
    std::fs::write(cluster.data().join("recovery.signal"), "").unwrap();
    walkeep_tests::user::give(&cluster.data().join("recovery.signal"));
    cluster.start();
    wait_until("the server writes", SOON, || cluster.sql("SELECT pg_is_in_recovery()") == "f");
}

/// The timelines' starts, by the newest history.
fn switches(cluster: &Cluster, timeline: u64) -> Vec<u64> {
    let text = std::fs::read_to_string(cluster.pg_wal().join(format!("{timeline:08X}.history"))).unwrap();
    text.lines().filter_map(|line| line.split('\t').nth(1)).map(lsn).collect()
}

/// Absent during three promotions: where the server has all WAL, all of it is stored.
#[test]
fn three_promotions_meanwhile_leave_no_gap() {
    let cluster = Cluster::builder().segment_mib(1).conf("wal_keep_size", "512MB").start();
    let walkeep = Walkeep::local(&cluster);
    walkeep.ok(&["init"]);
    let agent = walkeep.agent();
    let first = switch_and_store(&cluster, &agent, 1);
    agent.stop();
    for table in ["two", "three", "four"] {
        cluster.switch_wal();
        cluster.sql(&format!("CREATE TABLE {table} AS SELECT generate_series(1, 1000)"));
        next_timeline(&cluster);
    }
    let agent = walkeep.agent();
    let last = switch_and_store(&cluster, &agent, 1);
    let switches = switches(&cluster, 4);
    assert!(last.starts_with("00000004") && switches.len() == 3, "{last} {switches:X?}");
    for (timeline, switch) in (1u64..).zip(&switches) {
        let begin = if timeline == 1 { start_of(&first) } else { switches[timeline as usize - 2] };
        for at in (begin / MIB..=switch / MIB).map(|number| number * MIB) {
            let (stored, end) = (fetch(&walkeep, &segment_of(timeline, at)), (switch - at).min(MIB) as usize);
            // The end of a timeline lies in the next one's segment too.
            let whole = cluster.pg_wal().join(segment_of(timeline, at));
            let of = if whole.exists() { whole } else { cluster.pg_wal().join(segment_of(timeline + 1, at)) };
            assert!(stored[..end] == std::fs::read(&of).unwrap()[..end], "timeline {timeline} at {at:X}");
        }
        let history = format!("{:08X}.history", timeline + 1);
        assert_eq!(fetch(&walkeep, &history), std::fs::read(cluster.pg_wal().join(&history)).unwrap());
    }
    assert_eq!(recorded(&walkeep), [json!(null); 0]);
    assert_calm(&agent, &[]);
    agent.stop();
}

/// Absent during three promotions, and the server has removed the WAL up to the middle of the third timeline.
#[test]
fn a_gap_over_promotions_is_exact_on_each_timeline() {
    let cluster = Cluster::builder()
        .segment_mib(1)
        .conf("autovacuum", "off")
        .conf("wal_keep_size", "8MB")
        .conf("max_wal_size", "4MB")
        .conf("min_wal_size", "2MB")
        .start();
    let walkeep = Walkeep::local(&cluster);
    walkeep.ok(&["init"]);
    let agent = walkeep.agent();
    cluster.sql("CREATE TABLE t AS SELECT generate_series(1, 100)");
    let from = stop_with_all_stored(&cluster, &walkeep, agent, 1);
    cluster.sql("SELECT pg_drop_replication_slot('walkeep')");
    cluster.switch_wal();
    next_timeline(&cluster);
    cluster.switch_wal();
    next_timeline(&cluster);
    let begin = lsn(&cluster.sql("SELECT pg_current_wal_insert_lsn()"));
    lose(&cluster, begin);
    cluster.switch_wal();
    next_timeline(&cluster);
    let oldest = lose(&cluster, begin);
    let switches = switches(&cluster, 4);
    let kept = finished(&cluster, &walkeep);
    let agent = launch_into_gap(&walkeep);
    let last = switch_and_store(&cluster, &agent, 1);
    assert!(last.starts_with("00000004"), "{last}");
    assert!(oldest.starts_with("00000003"), "{oldest}");
    let gaps = recorded(&walkeep);
    let expected = [(1, from, switches[0]), (2, switches[0], switches[1]), (3, switches[1], start_of(&oldest))];
    assert_eq!(gaps.iter().map(place).collect::<Vec<_>>(), expected, "{gaps:?}");
    assert_stored(&walkeep, &kept);
    // Nothing else is missing.
    let timelines = walkeep.ok(&["timelines", "--json"]).json();
    for report in timelines.as_array().unwrap() {
        assert_eq!(report["holes"], json!([]), "{timelines}");
    }
    agent.stop();
}
