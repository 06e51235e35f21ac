use std::path::Path;
use std::time::Duration;

use walkeep_tests::postgres::versions;
use walkeep_tests::{Cluster, Stop, compare_archives, process, user, wait_until};

#[test]
fn every_version_starts_and_stops() {
    for version in versions() {
        let cluster = Cluster::builder().version(version).segment_mib(1).start();
        assert_eq!(cluster.value::<u32>("SHOW server_version_num") / 10_000, version);
        assert_eq!(cluster.sql("SHOW wal_segment_size"), "1MB");
        assert_eq!(cluster.sql("SHOW data_checksums"), "on");
        cluster.restart();
        cluster.stop(Stop::Smart);
        assert!(!cluster.running());
    }
}

#[test]
fn a_server_runs_as_no_root_and_ends_with_its_value() {
    let cluster = Cluster::builder().start();
    let (pid, scratch) = (cluster.pid(), cluster.scratch().path().to_owned());
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let uid = status.lines().find(|line| line.starts_with("Uid:")).unwrap();
    assert!(uid.contains(&user::account().uid.to_string()) && !uid.contains("\t0"), "{uid}");
    let children = process::descendants(pid);
    assert!(children.len() > 3, "{children:?}");
    drop(cluster);
    assert!(!process::alive(pid) && children.iter().all(|pid| !process::alive(*pid)));
    assert!(!scratch.exists());
}

#[test]
fn what_is_archived_is_kept_as_a_copy() {
    let cluster = Cluster::builder().segment_mib(1).archiving().start();
    cluster.archive_by(None);
    let first = cluster.archive_now();
    let second = cluster.archive_now();
    let copy = cluster.scratch().dir("second");
    for name in [&first, &second] {
        assert_eq!(std::fs::metadata(cluster.oracle().join(name)).unwrap().len(), 1 << 20);
        std::fs::copy(cluster.oracle().join(name), copy.join(name)).unwrap();
    }
    assert_eq!(compare_archives(&cluster.oracle(), &copy), 2);
}

#[test]
fn a_failing_archive_command_keeps_no_copy() {
    let cluster = Cluster::builder().segment_mib(1).archiving().start();
    cluster.archive_by(Some("false"));
    let name = cluster.switch_wal();
    wait_until("the failure is counted", Duration::from_secs(30), || cluster.value::<u32>("SELECT failed_count FROM pg_stat_archiver") > 0);
    assert!(!cluster.oracle().join(&name).exists());
    cluster.archive_by(None);
    cluster.restart();
    cluster.wait_archived(&name, Duration::from_secs(30));
}

#[test]
fn a_crash_loses_nothing_committed() {
    let cluster = Cluster::builder().start();
    cluster.sql("CREATE TABLE t AS SELECT generate_series(1, 1000) AS i");
    let mut open = cluster.session();
    open.sql("BEGIN");
    assert_eq!(open.sql("INSERT INTO t VALUES (0) RETURNING i"), "0");
    cluster.crash();
    assert_eq!(cluster.sql("SELECT count(*), min(i) FROM t"), "1000|1");
    assert!(cluster.log().contains("redo done") || cluster.log().contains("redo is not required"));
}

#[test]
fn a_standby_follows_and_is_promoted() {
    let primary = Cluster::builder().segment_mib(1).start();
    let standby = primary.standby();
    primary.pgbench_init(1);
    primary.pgbench_run(&["-c", "2", "-t", "50"]);
    primary.wait_replayed(&standby);
    assert_eq!(standby.sql("SELECT count(*) FROM pgbench_history"), "100");
    standby.promote();
    standby.sql("CREATE TABLE after_promotion ()");
    assert!(standby.switch_wal().starts_with("00000002"));
    assert_eq!(primary.system_identifier(), standby.system_identifier());
}

#[test]
fn a_copied_or_fresh_cluster_is_what_it_says() {
    let cluster = Cluster::builder().start();
    cluster.stop(Stop::Fast);
    let copy = cluster.copy();
    let fresh = Cluster::builder().fresh().start();
    copy.start();
    cluster.start();
    assert_eq!(cluster.system_identifier(), copy.system_identifier());
    assert_ne!(cluster.system_identifier(), fresh.system_identifier());
    copy.stop(Stop::Fast);
    let adopted = Cluster::adopt(copy.version(), copy.data());
    adopted.start();
    drop(adopted);
    assert!(Path::new(copy.data()).join("PG_VERSION").exists());
}
