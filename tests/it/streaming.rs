//! WAL in: by the stream, by archive_command, by both at once; every segment equal to what a plain `cp` kept.

use std::time::{Duration, Instant};

use walkeep_tests::postgres::{bin, versions};
use walkeep_tests::{Cluster, Stop, Walkeep, compare_fetched, process, user, wait_until};

use crate::support::{
    MIB, SERVER_GONE, STORES, Store, assert_calm, copies, end_of, fetch, lsn, segments_in, switch_and_store, uninitialised, wait_durable,
    walkeep,
};

const LOAD: [&str; 4] = ["-c", "2", "-T", "3"];
const SOON: Duration = Duration::from_secs(30);

/// Load, with both ways on; at the end everything is compared with the plain copies.
fn both_ways(cluster: &Cluster, walkeep: &Walkeep, mib: u64) {
    walkeep.ok(&["init"]);
    let agent = walkeep.agent();
    cluster.archive_by(Some(&walkeep.archive_command()));
    cluster.pgbench_init(1);
    cluster.pgbench_run(&LOAD);
    let last = cluster.archive_now();
    wait_durable(&agent, end_of(&last, mib), SOON);
    let compared = compare_fetched(&cluster.oracle(), walkeep);
    assert!(compared as u64 >= 8 / mib, "{compared} files");
    let streamed = agent.metric("walkeep_stored_objects_total{source=\"stream\"}").unwrap();
    let archived = agent.metric("walkeep_stored_objects_total{source=\"archive\"}").unwrap();
    // Whoever came first has stored it; nothing is stored twice.
    assert!((streamed + archived) as usize <= compared, "{streamed} + {archived} objects for {compared} files");
    assert_eq!(agent.metric("walkeep_conflicts_total"), Some(0.0));
    assert_eq!(cluster.value::<u64>("SELECT failed_count FROM pg_stat_archiver"), 0);
    assert_eq!(segments_in(&walkeep.spool()), Vec::<String>::new(), "what is stored is gone from the spool");
    assert_calm(&agent, &[]);
    agent.stop();
}

#[test]
fn both_ways_at_once_store_what_cp_keeps() {
    for store in STORES {
        let cluster = Cluster::builder().segment_mib(1).archiving().start();
        both_ways(&cluster, &uninitialised(&cluster, store), 1);
    }
}

#[test]
fn large_segments() {
    let cluster = Cluster::builder().segment_mib(64).archiving().conf("min_wal_size", "128MB").start();
    both_ways(&cluster, &uninitialised(&cluster, Store::S3), 64);
}

#[test]
fn acknowledging_from_the_spool_loses_nothing_either() {
    let cluster = Cluster::builder().segment_mib(1).archiving().start();
    let mut walkeep = uninitialised(&cluster, Store::Local);
    walkeep.acknowledge = "spool".to_owned();
    walkeep.write_config();
    both_ways(&cluster, &walkeep, 1);
    // Flush follows what is fsynced, without waiting for the end of a segment.
    let agent = walkeep.agent();
    cluster.pgbench_run(&["-c", "1", "-t", "20"]);
    let wanted = cluster.lsn();
    let flushed = format!("SELECT coalesce(max(flush_lsn) >= '{wanted}', false) FROM pg_stat_replication");
    wait_until("flush follows the spool", Duration::from_secs(5), || cluster.sql(&flushed) == "t");
    assert_calm(&agent, &[]);
    agent.stop();
}

#[test]
fn the_stream_alone() {
    for store in STORES {
        let cluster = Cluster::builder().segment_mib(1).archiving().start();
        let walkeep = walkeep(&cluster, store);
        cluster.archive_by(None);
        let agent = walkeep.agent();
        cluster.pgbench_init(1);
        cluster.pgbench_run(&LOAD);
        switch_and_store(&cluster, &agent, 1);
        cluster.archive_now();
        assert!(compare_fetched(&cluster.oracle(), &walkeep) >= 12);
        assert_eq!(agent.metric("walkeep_stored_objects_total{source=\"archive\"}"), Some(0.0));
        assert_calm(&agent, &[]);
        agent.stop();
    }
}

#[test]
fn the_stream_alone_without_any_archiving() {
    let cluster = Cluster::builder().segment_mib(1).conf("wal_keep_size", "1GB").start();
    let walkeep = walkeep(&cluster, Store::Local);
    let agent = walkeep.agent();
    cluster.pgbench_init(1);
    let last = switch_and_store(&cluster, &agent, 1);
    let names: Vec<_> = segments_in(&cluster.pg_wal()).into_iter().filter(|name| *name <= last).collect();
    assert!(compare_fetched(&copies(&walkeep, "kept", &cluster.pg_wal(), &names), &walkeep) >= 12);
    // The slot follows what is stored, and never runs ahead of it.
    let durable = agent.metric("walkeep_wal_durable_bytes").unwrap();
    let restart = lsn(&cluster.sql("SELECT restart_lsn FROM pg_replication_slots"));
    assert!(restart as f64 <= durable, "{restart} {durable}");
    wait_until("the slot follows", SOON, || lsn(&cluster.sql("SELECT restart_lsn FROM pg_replication_slots")) >= end_of(&last, 1));
    assert_calm(&agent, &[]);
    agent.stop();
}

#[test]
fn archive_command_alone() {
    for store in STORES {
        let cluster = Cluster::builder().segment_mib(1).archiving().start();
        let mut walkeep = uninitialised(&cluster, store);
        walkeep.cluster_lines = "stream = false\n".to_owned();
        walkeep.write_config();
        let init = walkeep.ok(&["init"]);
        assert!(init.stdout.contains("stream = false"), "{}", init.stdout);
        assert_eq!(cluster.sql("SELECT count(*) FROM pg_replication_slots"), "0", "a slot nobody reads would fill the server's disk");
        let agent = walkeep.agent();
        cluster.archive_by(Some(&walkeep.archive_command()));
        cluster.pgbench_init(1);
        cluster.pgbench_run(&LOAD);
        cluster.archive_now();
        let compared = compare_fetched(&cluster.oracle(), &walkeep);
        assert_eq!(agent.metric("walkeep_stored_objects_total{source=\"archive\"}"), Some(compared as f64));
        assert_eq!(agent.metric("walkeep_stream_phase{phase=\"off\"}"), Some(1.0));
        assert_calm(&agent, &[]);
        agent.stop();
    }
}

#[test]
fn without_an_agent_by_wal_push() {
    let cluster = Cluster::builder().segment_mib(1).archiving().start();
    let walkeep = walkeep(&cluster, Store::S3);
    cluster.archive_by(Some(&walkeep.push_command()));
    for _ in 0..3 {
        cluster.archive_now();
    }
    assert!(compare_fetched(&cluster.oracle(), &walkeep) >= 3);
}

/// G6: after the last segment of a log file comes the next log file.
#[test]
fn names_go_on_where_a_log_file_ends() {
    for (mib, last_of_log) in [(1, "0000000100000000000000FF"), (16, "0000000100000003000000FE"), (1, "000000010000000100000FFE")] {
        let cluster = Cluster::builder().segment_mib(mib).archiving().create();
        let resetwal = bin(cluster.version()).unwrap().join("pg_resetwal");
        process::run(user::command(resetwal).args(["-l", last_of_log, "-D"]).arg(cluster.data())).unwrap();
        cluster.start();
        let walkeep = walkeep(&cluster, Store::Local);
        cluster.archive_by(None);
        let agent = walkeep.agent();
        let names: Vec<_> = (0..4).map(|_| switch_and_store(&cluster, &agent, u64::from(mib))).collect();
        cluster.archive_now();
        assert!(names.iter().any(|name| name.ends_with("00000000")) || mib == 1, "{names:?}");
        assert!(compare_fetched(&cluster.oracle(), &walkeep) >= 4);
        let holes = walkeep.ok(&["status", "--json"]).json()["timelines"][0]["holes"].clone();
        assert_eq!(holes, serde_json::json!([]));
        assert_calm(&agent, &[]);
        agent.stop();
    }
}

/// The unfinished segment, out of the repository and out of pg_wal: equal up to this position.
#[track_caller]
fn compare_tail(cluster: &Cluster, walkeep: &Walkeep, name: &str, upto: u64) {
    let (stored, kept) = (fetch(walkeep, name), std::fs::read(cluster.pg_wal().join(name)).unwrap());
    assert_eq!(stored.len(), kept.len(), "{name}: restore_command gets whole segments");
    let length = match (upto % kept.len() as u64) as usize {
        0 => kept.len(),
        length => length,
    };
    assert!(stored[..length] == kept[..length], "{name} differs within its first {length} bytes");
}

/// The end of the shutdown checkpoint, the last record of a server that is down.
fn end_of_wal(cluster: &Cluster, segment_mib: u64) -> u64 {
    // The same place in pg_control since PostgreSQL 11: ControlFileData.checkPoint.
    let control = std::fs::read(cluster.data().join("global/pg_control")).unwrap();
    let checkpoint = u64::from_ne_bytes(control[32..40].try_into().unwrap());
    let name = segments_in(&cluster.pg_wal()).into_iter().find(|name| end_of(name, segment_mib) > checkpoint).unwrap();
    let content = std::fs::read(cluster.pg_wal().join(name)).unwrap();
    let offset = (checkpoint % (segment_mib * MIB)) as usize;
    let length = u64::from(u32::from_ne_bytes(content[offset..offset + 4].try_into().unwrap()));
    let crosses = checkpoint % 8192 + length > 8192;
    (checkpoint + length + if crosses { 24 } else { 0 }).next_multiple_of(8)
}

#[test]
fn a_server_that_stops_waits_for_the_tail_and_not_longer() {
    for (store, acknowledge) in [(Store::Local, "repository"), (Store::S3, "repository"), (Store::S3, "spool")] {
        let cluster = Cluster::builder().start();
        let mut walkeep = uninitialised(&cluster, store);
        walkeep.acknowledge = acknowledge.to_owned();
        // The tail does not wait for the interval to be over: the server that waits for it would be let go first.
        walkeep.upload_interval = "1h".to_owned();
        walkeep.write_config();
        walkeep.ok(&["init"]);
        let agent = walkeep.agent();
        cluster.pgbench_init(1);
        cluster.pgbench_run(&["-c", "2", "-T", "1"]);
        let begun = Instant::now();
        cluster.stop(Stop::Fast);
        assert!(begun.elapsed() < Duration::from_secs(10), "the stop took {:?}", begun.elapsed());
        let end = end_of_wal(&cluster, 16);
        if acknowledge == "repository" {
            assert!(agent.metric("walkeep_wal_durable_bytes").unwrap() >= end as f64, "everything was stored before the server went");
        }
        let name = segments_in(&cluster.pg_wal()).into_iter().find(|name| end_of(name, 16) >= end).unwrap();
        // What was only in the spool is stored without the server.
        let writing = walkeep.spool().join(format!("{name}.writing"));
        wait_until("the tail leaves the spool", SOON, || !writing.exists());
        compare_tail(&cluster, &walkeep, &name, end);
        assert_calm(&agent, &SERVER_GONE);
        // And goes on when the server is back.
        cluster.start();
        cluster.pgbench_run(&["-c", "2", "-T", "1"]);
        switch_and_store(&cluster, &agent, 16);
        agent.stop();
    }
}

#[test]
fn an_agent_that_stops_under_load_stores_the_tail() {
    for store in STORES {
        let cluster = Cluster::builder().conf("wal_keep_size", "512MB").start();
        let walkeep = walkeep(&cluster, store);
        cluster.pgbench_init(1);
        let mut stored = 0;
        for _ in 0..3 {
            let agent = walkeep.agent();
            let load = cluster.pgbench_spawn(&["-c", "2", "-T", "60"]);
            wait_until("the stream has received something new", SOON, || {
                agent.metric("walkeep_wal_received_bytes").unwrap() > (stored + 2 * MIB) as f64
            });
            // Panics when it takes more than 5 s.
            agent.stop();
            drop(load);
            let log = std::fs::read_to_string(walkeep.scratch().join("agent.log")).unwrap();
            let stopped = log.lines().rfind(|line| line.contains("stream stopped")).unwrap();
            let word = |key: &str| lsn(stopped.split(key).nth(1).unwrap().split_whitespace().next().unwrap());
            let received = word("received=");
            assert_eq!(word("durable="), received, "{stopped}");
            let name = segments_in(&cluster.pg_wal()).into_iter().find(|name| end_of(name, 16) >= received).unwrap();
            compare_tail(&cluster, &walkeep, &name, received);
            stored = received;
        }
        // The next agent finds the parts equal to what the server sends, and seals the segment.
        let agent = walkeep.agent();
        let last = switch_and_store(&cluster, &agent, 16);
        let names: Vec<_> = segments_in(&cluster.pg_wal()).into_iter().filter(|name| *name <= last).collect();
        compare_fetched(&copies(&walkeep, "kept", &cluster.pg_wal(), &names), &walkeep);
        assert_calm(&agent, &[]);
        agent.stop();
    }
}

#[test]
fn every_version_streams() {
    for version in versions() {
        let cluster = Cluster::builder().version(version).segment_mib(1).archiving().start();
        let walkeep = walkeep(&cluster, Store::Local);
        cluster.archive_by(None);
        let agent = walkeep.agent();
        cluster.pgbench_init(1);
        switch_and_store(&cluster, &agent, 1);
        cluster.archive_now();
        assert!(compare_fetched(&cluster.oracle(), &walkeep) >= 10, "PostgreSQL {version}");
        let begun = Instant::now();
        cluster.stop(Stop::Fast);
        assert!(begun.elapsed() < Duration::from_secs(10), "PostgreSQL {version}: the stop took {:?}", begun.elapsed());
        assert!(agent.metric("walkeep_wal_durable_bytes").unwrap() >= end_of_wal(&cluster, 1) as f64, "PostgreSQL {version}");
        assert_calm(&agent, &SERVER_GONE);
        agent.stop();
    }
}
