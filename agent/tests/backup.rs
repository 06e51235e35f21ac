//! Backup and restore with a real server: what comes back is what was there, and what was interrupted shows nothing.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio_util::sync::CancellationToken;
use walkeep::backup::wal::WalMissing;
use walkeep::postgres::ConnectionParams;
use walkeep::repository::{ClusterIdentity, ClusterRepository, Repository};
use walkeep::transfer::unwatched;
use walkeep::{backup, restore};
use walkeep_core::backup::{BackupRecord, Keep};
use walkeep_core::plan::{self, RestorePlan};
use walkeep_core::target::{RecoveryTarget, SearchOutcome, TargetKind};
use walkeep_core::{MajorVersion, SegmentSize, SystemIdentifier, WalFileName};
use walkeep_store::LocalStore;
use walkeep_tests::{Cluster, postgres, user, wait_until};

const PATIENCE: Duration = Duration::from_secs(60);

/// An empty repository for this cluster.
async fn repository(cluster: &Cluster) -> Arc<ClusterRepository> {
    let store = LocalStore::create(cluster.scratch().join("repository")).await.unwrap();
    let identity = ClusterIdentity {
        system_identifier: SystemIdentifier::new(cluster.system_identifier()),
        major_version: MajorVersion::new(cluster.version()),
        segment_size: SegmentSize::new(1 << 20).unwrap(),
        since: chrono::Utc::now(),
        form: Default::default(),
    };
    let repository = Repository::create(Arc::new(store)).await.unwrap();
    Arc::new(ClusterRepository::new(repository, "main".parse().unwrap(), identity, 1))
}

/// Brings what the cluster archives into the repository until the token fires: the agent's part in these tests.
async fn archive(repository: Arc<ClusterRepository>, from: PathBuf, stop: CancellationToken) {
    let mut done = std::collections::HashSet::new();
    while !stop.is_cancelled() {
        for entry in std::fs::read_dir(&from).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            if let Ok(file) = name.parse::<WalFileName>()
                && done.insert(name.clone())
            {
                repository.put_wal(file, Bytes::from(std::fs::read(from.join(name)).unwrap())).await.unwrap();
            }
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn params(cluster: &Cluster) -> ConnectionParams {
    ConnectionParams::parse(&cluster.connection(), &|_| None).unwrap()
}

async fn take(repository: &Arc<ClusterRepository>, cluster: &Cluster, options: backup::Options) -> anyhow::Result<BackupRecord> {
    backup::take(repository.clone(), &params(cluster), options, &unwatched, &CancellationToken::new()).await
}

/// The plan to the end of what is stored.
async fn latest(repository: &ClusterRepository) -> RestorePlan {
    let catalog = repository.load_catalog().await.unwrap().catalog;
    let candidate = plan::candidates(&catalog, &RecoveryTarget::new(TargetKind::Latest)).unwrap().remove(0);
    plan::finish(&candidate, &SearchOutcome::Skipped, &catalog, &plan::Witness::NotAsked).unwrap()
}

fn give_all(path: &Path) {
    let account = user::account();
    let owner = format!("{}:{}", account.uid, account.gid);
    assert!(Command::new("chown").arg("-Rh").arg(owner).arg(path).status().unwrap().success());
}

fn verify(cluster: &Cluster, data: &Path) {
    let mut command = Command::new(postgres::client(cluster.version(), "pg_verifybackup"));
    // What a restore is meant to change.
    for changed in ["postgresql.auto.conf", "recovery.signal", "tablespace_map"] {
        command.arg("-i").arg(changed);
    }
    let output = command.arg("-n").arg(data).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_server_with_a_tablespace_comes_back() {
    let cluster = Cluster::builder().segment_mib(1).archiving().start();
    cluster.archive_by(None);
    cluster.pgbench_init(2);
    let space = cluster.scratch().dir("space");
    cluster.sql(&format!("CREATE TABLESPACE fast LOCATION '{}'", space.display()));
    cluster.sql("CREATE TABLE in_space TABLESPACE fast AS SELECT n, repeat('x', 100) AS t FROM generate_series(1, 20000) AS n");
    let repository = repository(&cluster).await;
    let stop = CancellationToken::new();
    let archiving = tokio::spawn(archive(repository.clone(), cluster.oracle(), stop.clone()));

    let load = cluster.pgbench_spawn(&["-c", "2", "-T", "600", "-R", "200"]);
    let mut options = backup::Options::new("it's \"nightly\"");
    options.keep = Some(Keep::Forever);
    let switching = async {
        // A stop on a primary ends the segment by itself; this is for the archiver not to lag far behind.
        for _ in 0..3 {
            tokio::time::sleep(Duration::from_millis(300)).await;
            tokio::task::block_in_place(|| cluster.switch_wal());
        }
    };
    let (record, ()) = tokio::join!(take(&repository, &cluster, options), switching);
    let record = record.unwrap();
    assert_eq!(repository.backups().await.unwrap().records, std::slice::from_ref(&record));
    assert_eq!((record.label.as_str(), record.from_standby, record.keep), ("it's \"nightly\"", false, Some(Keep::Forever)));
    assert!(record.tablespaces.len() == 1 && record.tablespaces[0].bytes > 2_000_000, "{record:?}");
    assert!(record.bytes > 30_000_000 && record.bytes_stored < record.bytes, "{record:?}");
    assert!(record.started_at < record.ended_at && record.data_checksums == Some(true), "{record:?}");

    // Something happens after the backup, and all of it is archived.
    cluster.sql("INSERT INTO in_space SELECT n, 'after the backup' FROM generate_series(1, 5000) AS n");
    drop(load);
    let question = "SELECT (SELECT count(*) FROM pgbench_history), (SELECT sum(abalance) FROM pgbench_accounts), \
                    (SELECT count(*) || ' ' || sum(n) || ' ' || md5(string_agg(t, ',' ORDER BY n, t)) FROM in_space)";
    wait_until("pgbench has left", PATIENCE, || {
        cluster.sql("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgbench'") == "0"
    });
    let answer = cluster.sql(question);
    let last: WalFileName = cluster.archive_now().parse().unwrap();
    while repository.get_stored_wal(last).await.unwrap().is_none() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }

    let plan = latest(&repository).await;
    let (data, new_space) = (cluster.scratch().join("restored"), cluster.scratch().join("restored-space"));
    let mut options = restore::Options::new(&data, format!("cp {}/%f %p", cluster.oracle().display()));
    let cancel = CancellationToken::new();
    // The original's tablespace is in use: it must not be written into by accident.
    let error = restore::restore(repository.clone(), &plan, options.clone(), &unwatched, &cancel).await.unwrap_err();
    assert!(error.is::<restore::Refusal>() && error.to_string().contains("--tablespace"), "{error}");
    assert!(!data.exists());

    options.tablespaces = vec![(space, new_space.clone())];
    let summary = restore::restore(repository.clone(), &plan, options.clone(), &unwatched, &cancel).await.unwrap();
    assert_eq!((summary.files, summary.bytes), (record.files, record.bytes));
    verify(&cluster, &data);
    let again = restore::restore(repository.clone(), &plan, options, &unwatched, &cancel).await.unwrap_err();
    assert!(again.is::<restore::Refusal>(), "{again}");

    give_all(&data);
    give_all(&new_space);
    let restored = Cluster::adopt(cluster.version(), &data);
    restored.start();
    wait_until("recovery ends", PATIENCE, || restored.sql("SELECT pg_is_in_recovery()") == "f");
    assert_eq!(restored.sql(question), answer);
    assert_eq!(restored.sql("SHOW archive_mode"), "off");
    assert_eq!(
        restored.sql("SELECT pg_tablespace_location(oid) FROM pg_tablespace WHERE spcname = 'fast'"),
        new_space.display().to_string()
    );
    stop.cancel();
    archiving.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_cut_anywhere_shows_nothing() {
    let cluster = Cluster::builder().segment_mib(1).archiving().start();
    cluster.archive_by(None);
    cluster.pgbench_init(1);
    let repository = repository(&cluster).await;

    // Nobody archives: the backup says so and does not exist.
    let mut options = backup::Options::new("no WAL");
    options.wal_timeout = Duration::from_millis(500);
    let error = take(&repository, &cluster, options).await.unwrap_err();
    assert!(matches!(error.downcast_ref(), Some(WalMissing::Segment { .. })), "{error:#}");

    for milliseconds in [0, 20, 50, 100, 150, 200, 300, 400, 600, 900] {
        let cancel = CancellationToken::new();
        let killer = cancel.clone();
        let mut options = backup::Options::new("to be cut");
        options.max_rate_kb = Some(40_000);
        let params = params(&cluster);
        let backup = backup::take(repository.clone(), &params, options, &unwatched, &cancel);
        let cut = async {
            tokio::time::sleep(Duration::from_millis(milliseconds)).await;
            killer.cancel();
        };
        let (result, ()) = tokio::join!(backup, cut);
        assert!(result.unwrap_err().to_string().contains("was cancelled"), "after {milliseconds} ms");
        let backups = repository.backups().await.unwrap();
        assert!(backups.records.is_empty() && backups.damaged.is_empty(), "after {milliseconds} ms");
        assert!(repository.load_catalog().await.unwrap().catalog.backups().is_empty());
    }
    wait_until("the server has ended its backups", PATIENCE, || {
        cluster.sql("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'walsender'") == "0"
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_pages_are_told_and_another_cluster_is_refused() {
    let cluster = Cluster::builder().segment_mib(1).archiving().start();
    cluster.archive_by(None);
    cluster.sql("CREATE TABLE t AS SELECT generate_series(1, 10000) AS n; CHECKPOINT");
    let file = cluster.sql("SELECT pg_relation_filepath('t')");
    let path = cluster.data().join(&file);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[8192 + 5000] ^= 0xFF;
    std::fs::write(&path, bytes).unwrap();
    let repository = repository(&cluster).await;
    let stop = CancellationToken::new();
    let archiving = tokio::spawn(archive(repository.clone(), cluster.oracle(), stop.clone()));
    let record = take(&repository, &cluster, backup::Options::new("x")).await.unwrap();
    let damage = record.damage.expect("damage is told");
    assert_eq!((damage.pages, damage.named[0].file.as_str(), damage.named[0].block), (1, file.as_str(), 1));
    assert_eq!(damage.named[0].relation.as_deref(), Some("postgres.public.t"));

    let other = Cluster::builder().segment_mib(1).fresh().start();
    let error = take(&repository, &other, backup::Options::new("x")).await.unwrap_err();
    assert!(error.to_string().contains("another cluster answers there"), "{error}");
    assert_eq!(repository.backups().await.unwrap().records.len(), 1);
    stop.cancel();
    archiving.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_can_be_backed_up_and_its_copy_is_none() {
    let cluster = Cluster::builder().segment_mib(1).archiving().start();
    cluster.archive_by(None);
    cluster.sql("CREATE TABLE t AS SELECT n FROM generate_series(1, 20000) AS n");
    let standby = cluster.standby();
    cluster.wait_replayed(&standby);
    let repository = repository(&cluster).await;
    let stop = CancellationToken::new();
    let archiving = tokio::spawn(archive(repository.clone(), cluster.oracle(), stop.clone()));
    cluster.sql("INSERT INTO t SELECT n FROM generate_series(1, 1000) AS n");
    cluster.sql("CHECKPOINT");
    let mut taking = std::pin::pin!(take(&repository, &standby, backup::Options::new("of the standby")));
    // The primary's WAL completes it, and a standby cannot end a segment.
    let record = loop {
        match tokio::time::timeout(Duration::from_millis(200), &mut taking).await {
            Ok(record) => break record.unwrap(),
            Err(_) => drop(tokio::task::block_in_place(|| cluster.switch_wal())),
        }
    };
    assert!(record.from_standby);

    let to = cluster.scratch().join("restored");
    let options = restore::Options::new(&to, format!("cp {}/%f %p", cluster.oracle().display()));
    let plan = latest(&repository).await;
    restore::restore(repository.clone(), &plan, options, &unwatched, &CancellationToken::new()).await.unwrap();
    assert!(to.join("recovery.signal").exists() && !to.join("standby.signal").exists());
    give_all(&to);
    let restored = Cluster::adopt(cluster.version(), &to);
    restored.start();
    wait_until("recovery ends", PATIENCE, || restored.sql("SELECT pg_is_in_recovery()") == "f");
    let question = "SELECT count(*), sum(n) FROM t";
    assert_eq!(restored.sql(question), cluster.sql(question));
    assert_eq!(restored.sql("SHOW primary_conninfo"), "");
    stop.cancel();
    archiving.await.unwrap();
}
