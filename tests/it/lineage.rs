//! Another history behind the same address: a server restored in place, another cluster under the same name. What is known of the one must
//! never be confirmed, or stored, as the other's.

use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use walkeep_tests::{Cluster, Repository, S3Server, Stop, Walkeep, compare_fetched, user, wait_until};

use crate::support::{SERVER_GONE, Store, assert_calm, end_of, fetch, lsn, segments_in, switch_and_store, uninitialised, wait_durable};

const SOON: Duration = Duration::from_secs(30);

fn slot_and_server(cluster: &Cluster) -> (u64, u64) {
    let row = cluster.sql("SELECT restart_lsn, pg_current_wal_flush_lsn() FROM pg_replication_slots WHERE slot_name = 'walkeep'");
    let (slot, server) = row.trim().split_once('|').unwrap();
    (lsn(slot), lsn(server))
}

fn fill(cluster: &Cluster, segments: u32) {
    for _ in 0..segments {
        cluster.sql("INSERT INTO t SELECT generate_series(1, 100)");
        cluster.switch_wal();
    }
}

/// The agent runs all the time; the server goes back to an earlier point, on a new timeline, behind the same address.
#[test]
fn a_server_restored_in_place_is_confirmed_only_what_it_sent() {
    let cluster = Cluster::builder().segment_mib(1).start();
    let walkeep = uninitialised(&cluster, Store::Local);
    walkeep.ok(&["init"]);
    let agent = walkeep.agent();
    cluster.sql("CREATE TABLE t (n int)");
    walkeep.ok(&["backup"]);
    cluster.sql("SELECT pg_create_restore_point('rp')");
    fill(&cluster, 12);
    switch_and_store(&cluster, &agent, 1);
    cluster.stop(Stop::Fast);
    let data = cluster.data();
    std::fs::rename(data, data.with_extension("old")).unwrap();
    walkeep.ok(&["restore", "--restore-point", "rp", "--to", data.to_str().unwrap()]);
    cluster.start();
    wait_until("the restored server is open", SOON, || cluster.sql("SELECT pg_is_in_recovery()").trim() == "f");
    // Until then the metrics speak of the server that was.
    let streams = "SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'walkeep' AND active";
    wait_until("the agent streams again", SOON, || cluster.sql(streams).trim() == "1");
    wait_until("its metrics too", SOON, || agent.metric("walkeep_stream_phase{phase=\"streaming\"}") == Some(1.0));
    cluster.sql("INSERT INTO t SELECT generate_series(1, 100)");
    let name = switch_and_store(&cluster, &agent, 1);
    assert!(name.starts_with("00000002"), "{name}");
    let (slot, server) = slot_and_server(&cluster);
    assert!(slot <= server, "the slot is at {slot:X}, the server at {server:X}");
    assert_eq!(fetch(&walkeep, &name), std::fs::read(cluster.pg_wal().join(&name)).unwrap());
    assert_eq!(walkeep.ok(&["status", "--json"]).json()["gaps"], serde_json::json!([]));
    // What happened along the new history, and along the one that was left: the restore point is in both, the switch in one.
    for (timeline, switches) in [("2", serde_json::json!([[1, 2]])), ("1", serde_json::json!([]))] {
        let log = walkeep.ok(&["log", "--json", "--timeline", timeline]).json();
        let of = |what: &str| log["entries"].as_array().unwrap().iter().filter(|entry| entry["what"] == what).collect::<Vec<_>>();
        assert_eq!(of("restore_point").len(), 1, "{log}");
        let told: Vec<_> = of("timeline_switch").iter().map(|entry| serde_json::json!([entry["from"], entry["to"]])).collect();
        assert_eq!(serde_json::Value::from(told), switches, "{log}");
    }
    let begun = Instant::now();
    cluster.stop(Stop::Fast);
    assert!(begun.elapsed() < Duration::from_secs(20), "the shutdown took {:?}", begun.elapsed());
    let expected: Vec<&str> = SERVER_GONE.into_iter().chain(["the replication slot is gone"]).collect();
    assert_calm(&agent, &expected);
    agent.stop();
}

/// The spool of a killed agent holds WAL of a cluster that is no more; the name now means another one.
#[test]
fn the_spool_of_another_cluster_is_set_aside() {
    let cluster = Cluster::builder().segment_mib(1).start();
    let walkeep = uninitialised(&cluster, Store::Local);
    walkeep.ok(&["init"]);
    let mut agent = walkeep.agent();
    cluster.sql("CREATE TABLE t (n int)");
    fill(&cluster, 3);
    switch_and_store(&cluster, &agent, 1);
    cluster.sql("INSERT INTO t SELECT generate_series(1, 1000)");
    let end = lsn(cluster.sql("SELECT pg_current_wal_flush_lsn()").trim());
    wait_until("it is received", SOON, || agent.metric("walkeep_wal_received_bytes").unwrap() >= end as f64);
    agent.kill9();
    // A whole segment, too: as when the repository was out of reach.
    let whole = segments_in(&cluster.pg_wal()).into_iter().rfind(|name| !walkeep.spool().join(format!("{name}.writing")).exists()).unwrap();
    let copy = walkeep.spool().join(&whole);
    std::fs::copy(cluster.pg_wal().join(&whole), &copy).unwrap();
    user::give(&copy);
    let unfinished = segments_in(&cluster.pg_wal());
    assert!(!unfinished.is_empty());
    cluster.stop(Stop::Immediate);

    let other = Cluster::builder().segment_mib(1).fresh().start();
    let mut moved = walkeep;
    moved.connection = other.connection();
    moved.write_config();
    moved.ok(&["init", "--new-identity"]);
    let agent = moved.agent();
    other.sql("CREATE TABLE t (n int)");
    let name = switch_and_store(&other, &agent, 1);
    assert_eq!(fetch(&moved, &name), std::fs::read(other.pg_wal().join(&name)).unwrap());
    let (slot, server) = slot_and_server(&other);
    assert!(slot <= server, "the slot is at {slot:X}, the server at {server:X}");
    assert!(set_aside(&moved) >= 2, "what was there is kept");
    assert_eq!(agent.metric("walkeep_conflicts_total"), Some(0.0));
    assert_calm(&agent, &["not this cluster's WAL"]);
    agent.stop();
}

/// What was confirmed out of the spool and cannot be read for a while is not taken for another cluster's.
#[test]
fn a_spool_that_cannot_be_read_is_tried_again() {
    let cluster = Cluster::builder().segment_mib(1).archiving().start();
    let proxy = S3Server::get().proxy();
    let mut walkeep = Walkeep::new(&cluster, Repository::s3(proxy.endpoint(), &S3Server::get().bucket()));
    walkeep.acknowledge = "spool".to_owned();
    walkeep.write_config();
    walkeep.ok(&["init"]);
    cluster.archive_by(None);
    let mut agent = walkeep.agent();
    cluster.sql("CREATE TABLE t (i int)");
    proxy.close();
    fill(&cluster, 3);
    wait_until("the spool has them", SOON, || segments_in(&walkeep.spool()).len() >= 3);
    agent.kill9();
    let first = walkeep.spool().join(&segments_in(&walkeep.spool())[0]);
    std::fs::set_permissions(&first, PermissionsExt::from_mode(0o000)).unwrap();
    proxy.open();
    let agent = walkeep.launch_agent().unwrap();
    wait_until("it says so", SOON, || agent.log().contains("Permission denied"));
    assert!(first.exists() && set_aside(&walkeep) == 0, "{}", agent.log());
    std::fs::set_permissions(&first, PermissionsExt::from_mode(0o600)).unwrap();
    let last = cluster.archive_now();
    wait_durable(&agent, end_of(&last, 1), Duration::from_secs(60));
    assert!(compare_fetched(&cluster.oracle(), &walkeep) >= 4);
    assert_calm(&agent, &SERVER_GONE);
    agent.stop();
}

fn set_aside(walkeep: &Walkeep) -> usize {
    let files = std::fs::read_dir(walkeep.spool()).unwrap().flatten();
    files.filter(|file| file.file_name().to_string_lossy().contains(".set-aside-")).count()
}
