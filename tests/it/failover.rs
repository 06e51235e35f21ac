//! The primary changes: a crash, a switchover there and back, a rewind. One agent follows by a connection string with several hosts, and every timeline is
//! stored to its last byte.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use walkeep_tests::postgres::Builder;
use walkeep_tests::{Agent, Cluster, Repository, Stop, Walkeep, compare_fetched, wait_until};

use crate::story::{self, Restored};
use crate::support::{Offered, SERVER_GONE, assert_calm, fetch, lsn, offer, segments_in, switch_and_store, wait_durable};

const SOON: Duration = Duration::from_secs(30);
/// What an agent says when it comes to a server that was a standby until now: the slot is made there.
const FOLLOWED: [&str; 3] = [SERVER_GONE[0], SERVER_GONE[1], "the replication slot is gone"];

/// A connection string that names these servers, in this order.
fn either(servers: &[&Cluster], attrs: &str) -> String {
    let list = |of: &dyn Fn(&Cluster) -> String| servers.iter().map(|server| of(server)).collect::<Vec<_>>().join(",");
    let (hosts, ports) = (list(&|server| server.socket_dir().display().to_string()), list(&|server| server.port().to_string()));
    format!("host={hosts} port={ports} user=postgres dbname=postgres target_session_attrs={attrs}")
}

fn builder() -> Builder {
    Cluster::builder().segment_mib(1).conf("autovacuum", "off").conf("wal_keep_size", "256MB")
}

/// Walkeep with a local repository for whichever of two servers is the primary.
fn follower(first: &Cluster, second: &Cluster, attrs: &str) -> Walkeep {
    let mut walkeep = Walkeep::local(first);
    walkeep.connection = either(&[first, second], attrs);
    walkeep.data_directory = None;
    walkeep.write_config();
    walkeep.ok(&["init"]);
    walkeep
}

/// Position and timeline of the newest switch that `server` knows of.
fn last_switch(server: &Cluster) -> (u64, u64) {
    let histories = std::fs::read_dir(server.pg_wal()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let newest = histories.filter(|name| name.ends_with(".history")).max().expect("a history");
    let text = std::fs::read_to_string(server.pg_wal().join(&newest)).unwrap();
    let at = text.lines().last().unwrap().split('\t').nth(1).map(lsn).unwrap();
    (at, u64::from_str_radix(&newest[..8], 16).unwrap())
}

fn segment_of(timeline: u64, at: u64) -> String {
    format!("{timeline:08X}{:08X}{:08X}", at >> 32, (at & 0xFFFF_FFFF) >> 20)
}

/// The newest timeline's history is `server`'s; the timeline before is stored up to the switch, byte for byte, and the newest from its first
/// segment to `last`.
#[track_caller]
fn assert_whole(walkeep: &Walkeep, server: &Cluster, last: &str) {
    let (switch, timeline) = last_switch(server);
    let history = format!("{timeline:08X}.history");
    assert_eq!(fetch(walkeep, &history), std::fs::read(server.pg_wal().join(&history)).unwrap());
    let end = (switch & 0xF_FFFF) as usize;
    if end > 0 {
        let old = fetch(walkeep, &segment_of(timeline - 1, switch));
        let new = std::fs::read(server.pg_wal().join(segment_of(timeline, switch))).unwrap();
        assert!(old[..end] == new[..end], "timeline {} up to {switch:X}", timeline - 1);
    }
    let first = segment_of(timeline, switch);
    let names: Vec<_> = segments_in(&server.pg_wal()).into_iter().filter(|name| (first.as_str()..=last).contains(&name.as_str())).collect();
    assert!(!names.is_empty() && names[0] == first, "{first} in {names:?}");
    for name in &names {
        assert!(fetch(walkeep, name) == std::fs::read(server.pg_wal().join(name)).unwrap(), "{name}");
    }
}

#[track_caller]
pub fn assert_no_gap(walkeep: &Walkeep) {
    let status = walkeep.ok(&["status", "--json"]).json();
    assert_eq!(status["gaps"], serde_json::json!([]), "{status}");
    for timeline in status["timelines"].as_array().unwrap() {
        assert_eq!(timeline["holes"], serde_json::json!([]), "{status}");
    }
}

#[track_caller]
fn wait_streaming(agent: &Agent, server: &Cluster) {
    let streams = "SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'walkeep' AND active";
    wait_until("the agent streams from there", SOON, || server.try_sql(streams).is_ok_and(|count| count == "1"));
    wait_until("and says so", SOON, || agent.metric("walkeep_stream_phase{phase=\"streaming\"}") == Some(1.0));
}

/// Everything the server has written is in the repository, in parts or whole.
#[track_caller]
fn wait_all_durable(agent: &Agent, server: &Cluster) -> u64 {
    let end = lsn(&server.sql("SELECT pg_current_wal_flush_lsn()"));
    wait_durable(agent, end, SOON);
    end
}

/// The primary crashes for good; its standby is promoted. A host that accepts and says nothing, and one where nobody listens, come before both.
#[test]
fn a_crashed_primary_is_left_for_the_promoted_standby() {
    let primary = builder().start();
    let standby = primary.standby();
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let nobody = { TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port() };
    let mut walkeep = Walkeep::local(&primary);
    let (sockets, ports) = ([&primary, &standby].map(Cluster::socket_dir), [&primary, &standby].map(Cluster::port));
    walkeep.connection = format!(
        "host=127.0.0.1,127.0.0.1,{},{} port={},{nobody},{},{} user=postgres dbname=postgres connect_timeout=1 target_session_attrs=read-write",
        sockets[0].display(),
        sockets[1].display(),
        silent.local_addr().unwrap().port(),
        ports[0],
        ports[1],
    );
    walkeep.data_directory = None;
    walkeep.write_config();
    walkeep.ok(&["init"]);
    let agent = walkeep.agent();
    primary.sql("CREATE TABLE t AS SELECT generate_series(1, 1000)");
    switch_and_store(&primary, &agent, 1);
    primary.sql("INSERT INTO t SELECT generate_series(1, 1000)");
    primary.wait_replayed(&standby);
    assert_eq!(standby.sql("SELECT count(*) FROM pg_replication_slots"), "0");
    primary.stop(Stop::Immediate);
    standby.promote();
    wait_streaming(&agent, &standby);
    standby.sql("INSERT INTO t SELECT generate_series(1, 1000)");
    let last = switch_and_store(&standby, &agent, 1);
    assert!(last.starts_with("00000002"), "{last}");
    assert_whole(&walkeep, &standby, &last);
    assert_no_gap(&walkeep);
    // The old primary comes back as the standby of the new one, and the new one restarts: a standby is passed over.
    primary.rewind(&standby);
    primary.follow(&standby);
    standby.restart();
    wait_streaming(&agent, &standby);
    let last = switch_and_store(&standby, &agent, 1);
    assert_whole(&walkeep, &standby, &last);
    assert_no_gap(&walkeep);
    assert_calm(&agent, &FOLLOWED);
    agent.stop();
}

/// A clean stop of the primary, its standby promoted, the old one back as the standby of the new; and all of it the other way round.
#[test]
fn a_switchover_and_back_is_followed() {
    let first = story::builder(15).conf("wal_keep_size", "256MB").start();
    let second = first.standby();
    let walkeep = follower(&first, &second, "read-write");
    let agent = walkeep.agent();
    first.sql("CREATE TABLE t (i int PRIMARY KEY, filler text)");
    story::insert(&first, 10);
    story::backup(&walkeep);
    let (mut old, mut new) = (&first, &second);
    for (timeline, rows) in [(2, 20), (3, 30)] {
        story::insert(old, 5);
        old.wait_replayed(new);
        let begun = Instant::now();
        old.stop(Stop::Fast);
        assert!(begun.elapsed() < Duration::from_secs(20), "the shutdown took {:?}", begun.elapsed());
        new.promote();
        old.follow(new);
        wait_streaming(&agent, new);
        story::insert(new, 5);
        let last = switch_and_store(new, &agent, 1);
        assert!(last.starts_with(&format!("{timeline:08X}")), "{last}");
        assert_whole(&walkeep, new, &last);
        assert_eq!(new.value::<u32>("SELECT count(*) FROM t"), rows);
        (old, new) = (new, old);
    }
    assert_no_gap(&walkeep);
    // `old` is the primary now.
    assert_eq!(old.sql("SELECT pg_is_in_recovery()"), "f");
    let restored = Restored::by(&walkeep, 15, &["--latest"]);
    assert_eq!(restored.start().rows(), 30);
    assert_calm(&agent, &FOLLOWED);
    agent.stop();
}

/// The primary crashes with WAL that the standby never got, but the agent did. The old primary is rewound, follows, and becomes the primary again.
#[test]
fn a_rewound_primary_follows_and_archives_again() {
    let first = story::builder(15).conf("wal_keep_size", "256MB").start();
    let second = first.standby();
    let walkeep = follower(&first, &second, "primary");
    let agent = walkeep.agent();
    first.archive_by(Some(&walkeep.archive_command()));
    second.write_conf("archive_command", &first.sql("SHOW archive_command"));
    second.reload();
    first.sql("CREATE TABLE t (i int PRIMARY KEY, filler text)");
    story::insert(&first, 10);
    story::backup(&walkeep);
    story::insert(&first, 5);
    first.wait_replayed(&second);
    // From here on the standby hears nothing.
    second.set("primary_conninfo", "");
    wait_until("the standby is alone", SOON, || second.sql("SELECT count(*) FROM pg_stat_wal_receiver") == "0");
    story::insert(&first, 3);
    // Whole segments of timeline 1, and a tail, behind the point at which timeline 2 will begin.
    first.archive_now();
    story::insert(&first, 4);
    let end_of_one = wait_all_durable(&agent, &first);
    first.kill9();
    second.promote();
    let (switch, _) = last_switch(&second);
    assert!(switch >> 20 < end_of_one >> 20, "{switch:X} {end_of_one:X}");
    wait_streaming(&agent, &second);
    story::insert(&second, 7);
    let last = switch_and_store(&second, &agent, 1);
    assert_whole(&walkeep, &second, &last);

    first.rewind(&second);
    first.follow(&second);
    story::insert(&second, 1);
    second.wait_replayed(&first);
    second.stop(Stop::Fast);
    first.promote();
    second.follow(&first);
    wait_streaming(&agent, &first);
    story::insert(&first, 2);
    let last = first.archive_now();
    wait_all_durable(&agent, &first);
    assert!(last.starts_with("00000003"), "{last}");
    assert_whole(&walkeep, &first, &last);
    assert_eq!(first.value::<u64>("SELECT failed_count FROM pg_stat_archiver"), 0);
    assert_eq!(agent.metric("walkeep_conflicts_total"), Some(0.0));
    assert!(compare_fetched(&first.oracle(), &walkeep) >= 3);
    assert_no_gap(&walkeep);
    for (args, rows) in [(&["--latest"][..], 25), (&["--timeline", "2"], 23), (&["--timeline", "1"], 22)] {
        let restored = Restored::by(&walkeep, 15, args);
        assert_eq!(restored.start().rows(), rows, "{args:?}");
    }
    assert_calm(&agent, &FOLLOWED);
    agent.stop();
}

/// The agent streams from a cascading standby. What is stored is ahead of that standby for a while: it waits for it, and says nothing.
#[test]
fn a_standby_that_is_behind_is_waited_for() {
    let primary = builder().start();
    let middle = primary.standby();
    let last = middle.standby();
    let mut walkeep = Walkeep::local(&primary);
    walkeep.ok(&["init"]);
    let agent = walkeep.agent();
    switch_and_store(&primary, &agent, 1);
    primary.wait_replayed(&last);
    // The cascade stands still while the agent stores what the primary writes.
    middle.set("primary_conninfo", "");
    wait_until("the standby is alone", SOON, || middle.sql("SELECT count(*) FROM pg_stat_wal_receiver") == "0");
    primary.sql("CREATE TABLE t AS SELECT generate_series(1, 100)");
    switch_and_store(&primary, &agent, 1);
    switch_and_store(&primary, &agent, 1);
    primary.sql("INSERT INTO t SELECT generate_series(1, 100)");
    let ahead = wait_all_durable(&agent, &primary);
    agent.stop();
    walkeep.connection = last.connection();
    walkeep.repositories = vec![Repository::Local(walkeep.local_repository())];
    walkeep.write_config();
    let agent = walkeep.launch_agent().unwrap();
    wait_until("it waits", SOON, || {
        agent.get("/readyz").is_ok_and(|(status, why)| status == 503 && why.contains("waiting: the standby is at"))
    });
    assert_eq!(agent.metric("walkeep_stream_phase{phase=\"waiting\"}"), Some(1.0));
    middle.set("primary_conninfo", &primary.connection());
    primary.sql("INSERT INTO t SELECT generate_series(1, 100)");
    primary.wait_replayed(&last);
    let end = lsn(&primary.sql("SELECT pg_current_wal_flush_lsn()"));
    assert!(end > ahead);
    wait_durable(&agent, end, SOON);
    assert_no_gap(&walkeep);
    assert_calm(&agent, &["the replication slot is gone"]);
    agent.stop();
}

/// S2: two standbys are promoted, neither knowing of the other, each with an agent: two timelines 2. The second is refused, both are described, and nothing
/// of it is stored.
#[test]
fn of_two_promotions_to_one_timeline_the_second_is_refused() {
    let primary = builder().start();
    let (first, second) = (primary.standby(), primary.standby());
    let walkeep = follower(&primary, &first, "read-write");
    let agent = walkeep.agent();
    primary.sql("CREATE TABLE t AS SELECT generate_series(1, 1000)");
    switch_and_store(&primary, &agent, 1);
    primary.wait_replayed(&first);
    primary.wait_replayed(&second);
    // The first hears nothing of what the second still gets.
    first.set("primary_conninfo", "");
    wait_until("the standby is alone", SOON, || first.sql("SELECT count(*) FROM pg_stat_wal_receiver") == "0");
    primary.sql("INSERT INTO t SELECT generate_series(1, 1000)");
    primary.wait_replayed(&second);
    wait_all_durable(&agent, &primary);
    primary.stop(Stop::Immediate);
    first.promote();
    wait_streaming(&agent, &first);
    let last = switch_and_store(&first, &agent, 1);
    assert_whole(&walkeep, &first, &last);

    second.promote();
    let mut other = Walkeep::new(&second, walkeep.repositories[0].clone());
    other.slot = "other".to_owned();
    other.write_config();
    // What the first has to store meanwhile must not be taken for the second's.
    agent.signal("STOP");
    std::thread::sleep(Duration::from_millis(300));
    let (switches, before) = ([last_switch(&first).0, last_switch(&second).0], story::archive(&walkeep));
    assert!(switches[0] < switches[1], "{switches:X?}");
    let other_agent = other.launch_agent().unwrap();
    wait_until("it is refused, and again", SOON, || other_agent.log().matches("00000002.history is already").count() >= 2);
    let log = other_agent.log();
    for switch in switches {
        assert!(log.contains(&format!("timeline 1 up to {:X}/{:X} (", switch >> 32, switch & 0xFFFF_FFFF)), "{switch:X} in {log}");
    }
    assert!(other_agent.metric("walkeep_conflicts_total").unwrap() >= 1.0);
    other_agent.stop();
    assert_eq!(story::archive(&walkeep), before, "nothing of the second is stored");
    agent.signal("CONT");
    // archive_command is refused with the same words.
    let offered = Offered::of(&second);
    let history = offered.file("00000002.history", &std::fs::read(second.pg_wal().join("00000002.history")).unwrap());
    let refused = offer(&walkeep, &history).expect_code(1).stderr;
    assert!(refused.matches("timeline 1 up to ").count() == 2, "{refused}");

    first.sql("INSERT INTO t SELECT generate_series(1, 1000)");
    let last = switch_and_store(&first, &agent, 1);
    assert_whole(&walkeep, &first, &last);
    assert_no_gap(&walkeep);
    assert_calm(&agent, &[&FOLLOWED[..], &["failed request="]].concat());
    agent.stop();
}

/// A standby has streamed, and replayed, more of the unfinished segment than the repository has of it, and asks for it by its restore_command. PostgreSQL puts
/// what that brings in the place of what was streamed: the promotion ended in a panic, and commits were gone that the primary's clients had been told of.
#[test]
fn a_standby_keeps_what_it_has_streamed_and_nobody_has_stored() {
    let primary = builder().start();
    let standby = primary.standby();
    let mut walkeep = Walkeep::local(&primary);
    walkeep.upload_interval = "1h".to_owned();
    walkeep.write_config();
    walkeep.ok(&["init"]);
    let agent = walkeep.agent();
    primary.sql("CREATE TABLE t AS SELECT generate_series(1, 1000)");
    switch_and_store(&primary, &agent, 1);
    primary.sql("INSERT INTO t SELECT generate_series(1, 1000)");
    let written = lsn(&primary.sql("SELECT pg_current_wal_flush_lsn()"));
    wait_until("it is received", SOON, || agent.metric("walkeep_wal_received_bytes") >= Some(written as f64));
    agent.stop();
    // From here on the agent only gives.
    walkeep.cluster_lines.push_str("stream = false\n");
    walkeep.write_config();
    let agent = walkeep.agent();
    standby.set("restore_command", &walkeep.restore_command());
    primary.sql("INSERT INTO t SELECT generate_series(1, 1000)");
    primary.wait_replayed(&standby);
    primary.stop(Stop::Immediate);
    wait_until("the standby has asked for it", SOON, || standby.log().contains("has nothing that pg_wal lacks"));
    standby.promote();
    assert_eq!(standby.sql("SELECT count(*) FROM t"), "3000");
    assert_calm(&agent, &[]);
    agent.stop();
}

/// G10: a server where nothing happens is no alarm: no lag, in bytes or seconds, while it is heard of; no gap, and nothing is said.
#[test]
fn an_idle_server_is_no_alarm() {
    let cluster = builder().conf("wal_sender_timeout", "2s").start();
    let walkeep = Walkeep::local(&cluster);
    walkeep.ok(&["init"]);
    let agent = walkeep.agent();
    cluster.sql("CREATE TABLE t AS SELECT generate_series(1, 1000)");
    let end = wait_all_durable(&agent, &cluster);
    // The names of what was made before may come yet.
    let files = || -> Vec<String> {
        let all = story::listing(&walkeep.local_repository());
        all.into_iter().filter(|line| line.contains(" f ") && !line.contains("/names/")).collect()
    };
    let listed = files();
    // Signs of life, several times over what one needs: the server asks each second.
    for _ in 0..3 {
        let heard = |within: fn(f64) -> bool| agent.metric("walkeep_server_contact_seconds").is_some_and(within);
        wait_until("the server was silent for a while", SOON, || heard(|age| age > 0.5));
        wait_until("the server is heard of again", SOON, || heard(|age| age < 0.5));
        wait_until("nothing lags", SOON, || {
            ["walkeep_wal_lag_bytes", "walkeep_wal_lag_seconds"].into_iter().all(|lag| agent.metric(lag) == Some(0.0))
        });
    }
    assert_eq!(agent.get("/readyz").unwrap().0, 200);
    assert_eq!(agent.metric("walkeep_gaps"), Some(0.0));
    assert!(lsn(&cluster.sql("SELECT pg_current_wal_flush_lsn()")) > end || files() == listed);
    assert_calm(&agent, &[]);
    agent.stop();
}
