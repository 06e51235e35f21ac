//! What changed between two backups, against copies of a real server's data directory: no block that differs may be left out.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use tokio_util::sync::CancellationToken;
use walkeep::backup::changes::{Known, Limits, Now, since};
use walkeep::index::rebuild::rebuild;
use walkeep::repository::{ClusterIdentity, ClusterRepository, Repository};
use walkeep_core::backup::{BackupMethod, BackupRecord};
use walkeep_core::changes::{Changes, Verdict};
use walkeep_core::control::ControlFile;
use walkeep_core::index::BlockChanges;
use walkeep_core::layout::{BackupId, PartName};
use walkeep_core::record::Fork;
use walkeep_core::relation_file::RelationFile;
use walkeep_core::relative_path::RelativePath;
use walkeep_core::sha256::Sha256Sum;
use walkeep_core::{Lsn, MajorVersion, SegmentName, SegmentNumber, SegmentSize, TimelineHistory, TimelineId, WalFileName};
use walkeep_store::MemoryStore;
use walkeep_tests::postgres::{own_client, versions};
use walkeep_tests::{Cluster, Scratch, Stop, user};

const BLOCK: usize = 8192;

fn size() -> SegmentSize {
    SegmentSize::new(1 << 20).unwrap()
}

fn builder(version: u32) -> walkeep_tests::postgres::Builder {
    let builder = Cluster::builder().version(version).segment_mib(1).conf("wal_keep_size", "1GB").conf("autovacuum", "off");
    builder.conf("max_prepared_transactions", 5)
}

/// A copy of the data directory, made as a backup makes it.
struct Copied {
    folder: Scratch,
    start: Lsn,
    stop: Lsn,
}

/// Takes a copy; `meanwhile` is what the server does between the start and the copying of files.
fn copy(cluster: &Cluster, meanwhile: impl FnOnce()) -> Copied {
    let folder = Scratch::new();
    let mut session = cluster.session();
    let new = cluster.version() >= 15;
    let start = session.sql(if new { "SELECT pg_backup_start('x', true)" } else { "SELECT pg_start_backup('x', true, false)" });
    meanwhile();
    let copied = user::command("cp").args(["-a", "-L"]).arg(cluster.data()).arg(folder.join("data")).output().unwrap();
    assert!(folder.join("data/global/pg_control").exists(), "{}", String::from_utf8_lossy(&copied.stderr));
    let stop = session.sql(if new { "SELECT lsn FROM pg_backup_stop(false)" } else { "SELECT lsn FROM pg_stop_backup(false, false)" });
    Copied { folder, start: start.trim().parse().unwrap(), stop: stop.trim().parse().unwrap() }
}

fn control(cluster: &Cluster) -> ControlFile {
    ControlFile::parse(&std::fs::read(cluster.data().join("global/pg_control")).unwrap()).unwrap()
}

fn record(cluster: &Cluster, copied: &Copied) -> BackupRecord {
    let now = chrono::Utc::now();
    let control = control(cluster);
    BackupRecord {
        format: BackupRecord::FORMAT,
        id: BackupId::new(now, copied.start),
        cluster: "main".into(),
        system_identifier: control.system,
        label: String::new(),
        timeline: TimelineId::FIRST,
        stop_timeline: None,
        start_lsn: copied.start,
        stop_lsn: copied.stop,
        checkpoint_lsn: None,
        started_at: now,
        ended_at: now,
        server_version_num: cluster.version() * 10000,
        major_version: MajorVersion::new(cluster.version()),
        segment_size: size(),
        method: BackupMethod::DataDirectory,
        from_standby: false,
        files: 0,
        bytes: 0,
        bytes_stored: 0,
        bytes_referenced: 0,
        tablespaces: Vec::new(),
        manifest_sha256: Sha256Sum::new([0; 32]),
        manifest_pieces: 1,
        parent: None,
        keep: None,
        due: None,
        damage: None,
        data_checksums: Some(control.checksum_version != 0),
    }
}

/// An empty repository for this cluster.
async fn repository(cluster: &Cluster) -> Arc<ClusterRepository> {
    let identity = ClusterIdentity {
        system_identifier: control(cluster).system,
        major_version: MajorVersion::new(cluster.version()),
        segment_size: size(),
        since: chrono::Utc::now(),
        form: Default::default(),
    };
    let repository = Repository::create(Arc::new(MemoryStore::new())).await.unwrap();
    Arc::new(ClusterRepository::new(repository, "main".parse().unwrap(), identity, 1))
}

/// A repository with the WAL up to `to`: of the last segment only a part, as of one that is being written.
async fn with_wal(cluster: &Cluster, to: Lsn) -> Arc<ClusterRepository> {
    let repository = repository(cluster).await;
    put_wal(&repository, cluster, TimelineId::FIRST, to).await;
    repository
}

/// Puts there what this server has of a timeline.
async fn put_wal(repository: &Arc<ClusterRepository>, cluster: &Cluster, timeline: TimelineId, to: Lsn) {
    let last = size().segment_of(to);
    for entry in std::fs::read_dir(cluster.pg_wal()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let Some(segment) = name.parse::<SegmentName>().ok().filter(|segment| segment.timeline() == timeline) else { continue };
        let number = segment.number(size()).unwrap();
        let content = || Bytes::from(std::fs::read(cluster.pg_wal().join(&name)).unwrap());
        if number < last {
            repository.put_wal(WalFileName::Segment(segment), content()).await.unwrap();
        } else if number == last {
            let end = size().offset_of(to) as u32 + 100;
            let part = PartName { segment, from: 0, to: end, epoch: 1 };
            repository.put_part(part, content().slice(..end as usize)).await.unwrap();
        }
    }
}

struct Question<'a> {
    cluster: &'a Cluster,
    path: TimelineHistory,
    before: BackupRecord,
    start: Lsn,
}

fn root() -> TimelineHistory {
    TimelineHistory::root(TimelineId::FIRST)
}

impl Question<'_> {
    async fn ask(&self, repository: &Arc<ClusterRepository>, pg_wal: Option<&Path>, wal: u64) -> Known {
        let control = control(self.cluster);
        let now = Now { path: &self.path, start: self.start, control: &control, pg_wal };
        let limits = Limits { wal, ..Limits::default() };
        since(repository, &self.before, now, limits, &CancellationToken::new()).await.unwrap()
    }

    async fn known(&self, repository: &Arc<ClusterRepository>, pg_wal: Option<&Path>) -> Changes {
        match self.ask(repository, pg_wal, u64::MAX).await {
            Known::Changes(changes) => changes,
            Known::Unknown(reason) => panic!("{reason}"),
        }
    }

    async fn unknown(&self, repository: &Arc<ClusterRepository>, pg_wal: Option<&Path>, wal: u64) -> String {
        match self.ask(repository, pg_wal, wal).await {
            Known::Changes(_) => panic!("it cannot be known"),
            Known::Unknown(reason) => reason,
        }
    }
}

/// The files of relations in a copy: where each is, by its path. Those of unlogged relations only where they are in a backup.
fn files(copied: &Copied) -> BTreeMap<String, PathBuf> {
    let data = copied.folder.join("data");
    let mut todo: Vec<String> = ["base", "global", "pg_tblspc"].map(str::to_owned).to_vec();
    let mut files = BTreeMap::new();
    while let Some(folder) = todo.pop() {
        for entry in std::fs::read_dir(data.join(&folder)).unwrap() {
            let entry = entry.unwrap();
            let path = format!("{folder}/{}", entry.file_name().to_string_lossy());
            match entry.file_type().unwrap().is_dir() {
                true => todo.push(path),
                false => drop(files.insert(path, entry.path())),
            }
        }
    }
    let unlogged: Vec<String> = files.keys().filter_map(|path| path.strip_suffix("_init")).map(str::to_owned).collect();
    let is_unlogged = |path: &String| unlogged.iter().any(|of| path == of || path.starts_with(&format!("{of}.")));
    files.retain(|path, _| !is_unlogged(path));
    files
}

/// What was compared.
#[derive(Debug, Default)]
struct Compared {
    differing: u64,
    told: u64,
    blocks: u64,
    same_lsn: u64,
    /// Blocks that differ and are not told.
    missed: Vec<String>,
}

/// Which blocks of `later` differ from `earlier`, and are told or not. One that only differs in what is not logged has its LSN.
fn compare(earlier: &Copied, later: &Copied, changes: &Changes) -> Compared {
    let (before, after) = (files(earlier), files(later));
    let mut compared = Compared::default();
    for (path, file) in after {
        let relative = RelativePath::parse(&path).unwrap();
        let is_main = RelationFile::parse(relative.as_str()).is_some_and(|file| matches!(file.fork, Fork::Main | Fork::Init));
        let old = before.get(&path).map(|file| std::fs::read(file).unwrap());
        let verdict = changes.of(&relative, old.as_ref().map(|old| old.len() as u64));
        if !is_main {
            assert_eq!(verdict, Verdict::ReadAll, "{path}");
            continue;
        }
        let new = std::fs::read(file).unwrap();
        let length = (new.len() / BLOCK) as u32;
        compared.blocks += u64::from(length);
        let Verdict::Blocks(told) = verdict else {
            compared.told += u64::from(length);
            continue;
        };
        compared.told += u64::from(told.count(length));
        let old = old.unwrap_or_default();
        for (block, page) in new.chunks_exact(BLOCK).enumerate() {
            let of_before = old.get(block * BLOCK..(block + 1) * BLOCK);
            if of_before == Some(page) {
                continue;
            }
            compared.differing += 1;
            let lsn = |page: &[u8]| page[..8].to_vec();
            match told.contains(block as u32) {
                true => {}
                false if of_before.map(lsn) == Some(lsn(page)) => compared.same_lsn += 1,
                false => compared.missed.push(format!("block {block} of {path}")),
            }
        }
    }
    compared
}

/// Tables and all else that the load changes.
fn prepare(cluster: &Cluster, places: &Scratch) {
    cluster.sql(
        "CREATE TABLE untouched AS SELECT i, md5(i::text) t FROM generate_series(1, 5000) i; CREATE INDEX ON untouched (t);
         CREATE TABLE big AS SELECT i, repeat(md5(i::text), 20) t FROM generate_series(1, 5000) i; CREATE INDEX ON big (i);
         CREATE TABLE many (i int PRIMARY KEY, p point, a int[], t text, r int4range) WITH (fillfactor = 70);
         INSERT INTO many SELECT i, point(i, i), ARRAY[i, i % 10], md5(i::text), int4range(i, i + 3) FROM generate_series(1, 4000) i;
         CREATE INDEX ON many USING gist (p); CREATE INDEX ON many USING spgist (r); CREATE INDEX ON many USING gin (a);
         CREATE INDEX ON many USING hash (t); CREATE INDEX ON many USING brin (i);
         CREATE TABLE cut AS SELECT i, repeat('x', 500) FROM generate_series(1, 3000) i; CREATE TABLE gone AS SELECT 1 i;
         CREATE TABLE emptied AS SELECT generate_series(1, 2000) i; CREATE TABLE rewritten AS SELECT generate_series(1, 2000) i;
         CREATE TABLE moved AS SELECT generate_series(1, 2000) i; CREATE SEQUENCE s; SELECT nextval('s');
         CREATE TABLE toasted (t text); ALTER TABLE toasted ALTER t SET STORAGE EXTERNAL; CREATE UNLOGGED TABLE u AS SELECT 1 i;
         CREATE TABLE two_phase (i int); CREATE TABLE nested (i int)",
    );
    cluster.sql(&format!("CREATE TABLESPACE away LOCATION '{}'", places.dir("away").display()));
    cluster.sql("CREATE TABLE far TABLESPACE away AS SELECT generate_series(1, 2000) i");
    cluster.sql("CREATE DATABASE dropped");
    cluster.sql("CREATE DATABASE moving");
    cluster.sql("VACUUM (FREEZE, ANALYZE)");
    cluster.sql("SELECT count(*) FROM untouched; SELECT count(*) FROM big; SELECT count(*) FROM untouched WHERE t = 'x'");
}

/// Changes of all kinds; `round` makes them others each time.
fn work(cluster: &Cluster, round: u32) {
    cluster.sql(&format!(
        "SELECT setseed(0.{round}); UPDATE many SET p = point(i, -i * {round}), a = ARRAY[i, {round}], r = int4range(i, i + {round} + 9)
           WHERE random() < 0.1;
         DELETE FROM many WHERE random() < 0.05;
         INSERT INTO many SELECT i, point(i, i), ARRAY[i, i % 10], md5(i::text), int4range(i, i + 3)
           FROM generate_series({round} * 100000, {round} * 100000 + 2000) i;
         UPDATE far SET i = i + 1 WHERE i % 50 = {round}; SELECT nextval('s') FROM generate_series(1, 50);
         INSERT INTO toasted SELECT repeat(md5(i::text), 400) FROM generate_series(1, 20) i"
    ));
    cluster.sql("DELETE FROM toasted WHERE random() < 0.3; SELECT count(*) FROM many; SELECT count(*) FROM toasted");
    let mut session = cluster.session();
    session.sql("BEGIN; INSERT INTO nested VALUES (0); SAVEPOINT a; CREATE TABLE never AS SELECT generate_series(1, 3000) i");
    session.sql("ROLLBACK TO a; INSERT INTO nested VALUES (1); COMMIT");
    session.sql("BEGIN; CREATE TABLE never (i int); INSERT INTO never SELECT generate_series(1, 3000); ROLLBACK");
    session.sql(&format!("BEGIN; CREATE TABLE undone (i int); INSERT INTO two_phase VALUES (1); PREPARE TRANSACTION 'undone {round}'"));
    session
        .sql(&format!("ROLLBACK PREPARED 'undone {round}'; BEGIN; INSERT INTO two_phase VALUES (2); PREPARE TRANSACTION 'kept {round}'"));
    session.sql(&format!("COMMIT PREPARED 'kept {round}'"));
    cluster.sql("VACUUM many");
}

/// What is done once.
fn upheaval(cluster: &Cluster) {
    cluster.sql("UPDATE big SET t = 'one' WHERE i = 2500");
    cluster.sql("DELETE FROM cut WHERE i > 500");
    cluster.sql("VACUUM cut");
    cluster.sql("INSERT INTO cut SELECT i, repeat('y', 500) FROM generate_series(1, 1500) i");
    cluster.sql("DROP TABLE gone; TRUNCATE emptied; INSERT INTO emptied SELECT generate_series(1, 3000)");
    cluster.sql("VACUUM FULL rewritten");
    cluster.sql("ALTER TABLE moved SET TABLESPACE away; ALTER TABLE far SET TABLESPACE pg_default; ALTER TABLE u SET LOGGED");
    cluster.sql("CREATE INDEX again ON many (t); DROP INDEX again; REINDEX INDEX many_pkey; CREATE UNLOGGED TABLE v AS SELECT 1 i");
    cluster.sql("VACUUM FULL pg_class");
    cluster.sql("DROP DATABASE dropped");
    cluster.sql("ALTER DATABASE moving SET TABLESPACE away");
    cluster.sql("CREATE DATABASE made");
    if cluster.version() >= 15 {
        cluster.sql("CREATE DATABASE made_by_copy STRATEGY file_copy");
    }
    cluster.try_sql_in("made", "CREATE TABLE t AS SELECT generate_series(1, 2000) i").unwrap();
    cluster.sql("SELECT pg_logical_emit_message(false, 'test', repeat('x', 2500000))");
}

/// Where this relation's file is.
fn path_of(cluster: &Cluster, relation: &str) -> String {
    cluster.sql(&format!("SELECT pg_relation_filepath('{relation}')"))
}

/// How many blocks of a relation have to be read, of how many; `None` for all.
fn to_read(cluster: &Cluster, changes: &Changes, relation: &str) -> (Option<u32>, u32) {
    let bytes: u64 = cluster.value(&format!("SELECT pg_relation_size('{relation}')"));
    let blocks = (bytes / BLOCK as u64) as u32;
    match changes.of(&RelativePath::parse(&path_of(cluster, relation)).unwrap(), Some(bytes)) {
        Verdict::ReadAll => (None, blocks),
        Verdict::Blocks(told) => (Some(told.count(blocks)), blocks),
    }
}

#[tokio::test]
async fn no_block_that_differs_is_left_out() {
    for version in versions() {
        proves_itself(version, false).await;
    }
    // Without checksums hint bits change pages of which no record tells.
    if own_client(15, "pg_checksums").is_some() {
        proves_itself(15, true).await;
    }
}

async fn proves_itself(version: u32, without_checksums: bool) {
    let (places, cluster) = (Scratch::new(), builder(version).create());
    if without_checksums {
        let disabled =
            user::command(own_client(15, "pg_checksums").unwrap()).args(["--disable", "-D"]).arg(cluster.data()).output().unwrap();
        assert!(disabled.status.success(), "{}", String::from_utf8_lossy(&disabled.stderr));
    }
    cluster.start();
    prepare(&cluster, &places);
    let earlier = copy(&cluster, || {
        work(&cluster, 1);
        cluster.sql("CHECKPOINT");
    });
    work(&cluster, 2);
    cluster.sql("CHECKPOINT");
    upheaval(&cluster);
    work(&cluster, 3);
    let later = copy(&cluster, || ());
    let question = Question { cluster: &cluster, path: root(), before: record(&cluster, &earlier), start: later.start };

    let what = format!("PostgreSQL {version}");
    let (nothing, stored) = (repository(&cluster).await, with_wal(&cluster, later.start).await);
    let local = question.known(&nothing, Some(&cluster.pg_wal())).await;
    let compared = compare(&earlier, &later, &local);
    eprintln!("{what}, without checksums {without_checksums}: {compared:?}");
    assert!(compared.missed.is_empty() && compared.differing > 400 && compared.told < compared.blocks / 4 * 3, "{what}: {compared:?}");
    let blind = Changes::new(BlockChanges::default(), &control(&cluster)).unwrap();
    assert!(compare(&earlier, &later, &blind).missed.len() > 300, "{what}: what is not told is seen to be missed");
    assert_eq!(to_read(&cluster, &local, "untouched").0, Some(0), "{what}: an untouched table");
    assert_eq!(to_read(&cluster, &local, "untouched_t_idx").0, Some(0), "{what}: its index");
    let (big, of) = to_read(&cluster, &local, "big");
    assert!(big.is_some_and(|big| (1..4).contains(&big)) && of > 100, "{what}: {big:?} of {of} blocks for one row");

    // Out of the repository the same.
    assert!(question.known(&stored, None).await == local, "{what}: what is stored tells the same");
    let bytes = later.start.bytes_since(earlier.start);
    let reason = question.unknown(&stored, None, bytes - 1).await;
    assert!(reason.contains("index --rebuild"), "{reason}");
    let reason = question.unknown(&nothing, None, u64::MAX).await;
    assert!(reason.contains("neither in pg_wal nor in the repository"), "{reason}");

    // By maps, but for the tail.
    let catalog = stored.load_catalog().await.unwrap().catalog;
    rebuild(&stored, &catalog, TimelineId::FIRST, &CancellationToken::new(), &mut |_, _| {}).await.unwrap();
    for pg_wal in [None, Some(cluster.pg_wal())] {
        let Known::Changes(by_maps) = question.ask(&stored, pg_wal.as_deref(), bytes - 1).await else { panic!("{what}: no maps") };
        assert_eq!(compare(&earlier, &later, &by_maps).missed, [""; 0], "{what}, by maps");
        assert_eq!(to_read(&cluster, &by_maps, "untouched").0, Some(0), "{what}: an untouched table");
    }
    damaged(&question, &stored, &local).await;
    cluster.stop(Stop::Fast);
}

/// Files of `pg_wal` that are not what their names say are not believed, and maps without one in the middle leave a hole.
async fn damaged(question: &Question<'_>, stored: &Arc<ClusterRepository>, truth: &Changes) {
    let copy = Scratch::new();
    let pg_wal = copy.join("pg_wal");
    let copied = user::command("cp").args(["-a", "-L"]).arg(question.cluster.pg_wal()).arg(&pg_wal).output().unwrap();
    assert!(copied.status.success(), "{}", String::from_utf8_lossy(&copied.stderr));
    let first = size().segment_of(question.before.start_lsn).get();
    let file = |number: u64| pg_wal.join(SegmentNumber::new(number).name(TimelineId::FIRST, size()).to_string());
    let mut bytes = std::fs::read(file(first + 2)).unwrap();
    bytes[600_000..600_100].fill(7);
    std::fs::write(file(first + 2), bytes).unwrap();
    std::fs::copy(file(first + 1), file(first + 4)).unwrap();
    std::fs::remove_file(file(first + 5)).unwrap();
    std::os::unix::fs::symlink(file(first + 1), file(first + 5)).unwrap();
    std::fs::remove_file(file(first)).unwrap();
    let maps = stored.list_blocks(TimelineId::FIRST, None).await.unwrap();
    let nothing = repository(question.cluster).await;
    let reason = question.unknown(&nothing, Some(&pg_wal), u64::MAX).await;
    assert!(reason.contains("is needed to know what changed"), "{reason}");
    stored.remove_index(TimelineId::FIRST).await.unwrap();
    assert!(question.known(stored, Some(&pg_wal)).await == *truth, "damaged files are passed over");
    assert!(!maps.is_empty());
}

/// What `wal_level = minimal` leaves out of the WAL is not taken for unchanged.
#[tokio::test]
async fn a_stretch_of_minimal_wal_is_unknown() {
    for version in [13, 18] {
        let cluster = builder(version).start();
        cluster.sql("CREATE TABLE t AS SELECT generate_series(1, 1000) i");
        let earlier = copy(&cluster, || ());
        for (level, senders) in [("minimal", "0"), ("replica", "10")] {
            cluster.write_conf("wal_level", level);
            cluster.write_conf("max_wal_senders", senders);
            cluster.restart();
            cluster.sql("BEGIN; TRUNCATE t; INSERT INTO t SELECT generate_series(1, 5000); COMMIT; SELECT pg_switch_wal()");
        }
        let later = copy(&cluster, || ());
        let question = Question { cluster: &cluster, path: root(), before: record(&cluster, &earlier), start: later.start };
        let (nothing, stored) = (repository(&cluster).await, with_wal(&cluster, later.start).await);
        for (repository, pg_wal) in [(&nothing, Some(cluster.pg_wal())), (&stored, None)] {
            let reason = question.unknown(repository, pg_wal.as_deref(), u64::MAX).await;
            assert!(reason.contains("wal_level is minimal"), "{reason}");
        }
        let catalog = stored.load_catalog().await.unwrap().catalog;
        rebuild(&stored, &catalog, TimelineId::FIRST, &CancellationToken::new(), &mut |_, _| {}).await.unwrap();
        let reason = question.unknown(&stored, None, u64::MAX).await;
        assert!(reason.contains("wal_level is minimal"), "{reason}");
        // Behind it all is known again.
        let next = copy(&cluster, || drop(cluster.sql("INSERT INTO t VALUES (1)")));
        let question = Question { cluster: &cluster, path: root(), before: record(&cluster, &later), start: next.start };
        question.known(&nothing, Some(&cluster.pg_wal())).await;
        cluster.stop(Stop::Fast);
    }
}

/// Over a promotion, while the old primary goes on by itself: what that writes is of another history.
#[tokio::test]
async fn the_servers_own_history_is_followed() {
    for version in [13, 15, 18] {
        let cluster = builder(version).start();
        cluster.sql("CREATE TABLE other AS SELECT generate_series(1, 50000) i");
        cluster.sql("VACUUM FREEZE other");
        let standby = cluster.standby();
        let earlier = copy(&cluster, || drop(cluster.sql("CREATE TABLE t AS SELECT generate_series(1, 20000) i")));
        cluster.sql("UPDATE t SET i = -i WHERE i % 500 = 0");
        cluster.wait_replayed(&standby);
        standby.promote();
        // Of the lost branch, in full segments: what is only changed there is no change here.
        cluster.sql("UPDATE other SET i = -i WHERE i % 500 = 0");
        let lost = copy(&cluster, || ());
        (0..4).for_each(|_| drop(cluster.switch_wal()));
        standby.sql("UPDATE t SET i = 7 WHERE i % 700 = 0; INSERT INTO t SELECT generate_series(1, 30000)");
        let later = copy(&standby, || ());
        let two = TimelineId::new(2).unwrap();
        let history = TimelineHistory::parse(two, &std::fs::read(standby.pg_wal().join("00000002.history")).unwrap()).unwrap();
        let question = |before: &Copied, path: &TimelineHistory| Question {
            cluster: &standby,
            path: path.clone(),
            before: record(&cluster, before),
            start: later.start,
        };
        let asked = question(&earlier, &history);
        let nothing = repository(&standby).await;
        let truth = asked.known(&nothing, Some(&standby.pg_wal())).await;
        let compared = compare(&earlier, &later, &truth);
        eprintln!("PostgreSQL {version}, promoted: {compared:?}");
        assert!(compared.missed.is_empty() && compared.differing > 5, "{compared:?}");
        assert_eq!(to_read(&standby, &truth, "other").0, Some(0), "changed on the lost branch only");

        // The lost branch's segments are stored too.
        let stored = repository(&standby).await;
        put_wal(&stored, &cluster, TimelineId::FIRST, lost.stop).await;
        put_wal(&stored, &standby, two, later.start).await;
        assert!(asked.known(&stored, None).await == truth, "PostgreSQL {version}: what is stored tells the same");
        let catalog = stored.load_catalog().await.unwrap().catalog;
        for timeline in [TimelineId::FIRST, two] {
            rebuild(&stored, &catalog, timeline, &CancellationToken::new(), &mut |_, _| {}).await.unwrap();
        }
        let by_maps = asked.known(&stored, None).await;
        assert_eq!(compare(&earlier, &later, &by_maps).missed, [""; 0], "PostgreSQL {version}, by maps");

        // A backup of the lost branch is not comparable.
        let reason = question(&lost, &history).unknown(&stored, None, u64::MAX).await;
        assert!(reason.contains("which the server's history has left"), "{reason}");
        cluster.stop(Stop::Fast);
    }
}
