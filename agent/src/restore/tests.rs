use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use bytes::Bytes;
use walkeep_core::WalFileName;
use walkeep_core::backup::Tablespace;
use walkeep_core::layout::ObjectName;
use walkeep_core::manifest::{Entry, EntryKind};
use walkeep_core::plan;
use walkeep_core::relative_path::RelativePath;
use walkeep_core::sha256::Sha256Sum;
use walkeep_core::target::{RecoveryTarget, SearchOutcome, TargetKind};
use walkeep_store::{Fault, FaultyStore, MemoryStore, Operation, Rule, SharedStore, Store};

use super::*;
use crate::backup::pack::{EXTENT, FileFacts, Older, Packed, Packer};
use crate::backup::workers::Workers;
use crate::repository::tests::{over, record, segment};
use crate::transfer::unwatched;

const SPACE: u32 = 16400;

pub(super) type Content = (&'static str, Vec<u8>);

/// The control file of a real server, with the system identifier of these tests and a change of its content.
pub(super) fn control(change: impl FnOnce(&mut [u8])) -> Vec<u8> {
    const CRC: usize = 288;
    let mut bytes = include_bytes!("../../core/tests/fixtures/pg_control-15.bin").to_vec();
    bytes[..8].copy_from_slice(&7u64.to_le_bytes());
    change(&mut bytes);
    let crc = crc32c::crc32c(&bytes[..CRC]);
    bytes[CRC..CRC + 4].copy_from_slice(&crc.to_le_bytes());
    bytes.resize(8192, 0);
    bytes
}

/// The files of a small cluster with another control file.
fn cluster_with(control: Vec<u8>) -> Vec<Content> {
    let mut files = cluster();
    files.retain(|(name, _)| *name != "global/pg_control");
    files.push(("global/pg_control", control));
    files
}

/// The files of a small cluster.
pub(super) fn cluster() -> Vec<Content> {
    let noise = |len: usize| (0..len).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect::<Vec<_>>();
    vec![
        ("pg_tblspc/16400/PG_15/1/1", noise(9000)),
        ("PG_VERSION", b"15\n".to_vec()),
        ("backup_label", b"label".to_vec()),
        ("tablespace_map", b"16400 /srv/fast\n".to_vec()),
        ("postgresql.conf", b"max_connections = 10\n".to_vec()),
        ("postgresql.auto.conf", b"work_mem = '4MB'\nrecovery_target_time = '2020-01-01 00:00+00'\n".to_vec()),
        ("standby.signal", Vec::new()),
        ("base/1/1", noise(3 * EXTENT + 5)),
        ("base/1/2", vec![0; 2 * EXTENT]),
        ("base/1/3", Vec::new()),
        ("global/pg_control", control(|_| {})),
    ]
}

pub(super) struct World {
    pub repository: Arc<ClusterRepository>,
    pub faulty: Arc<FaultyStore>,
    memory: Arc<MemoryStore>,
    pub plan: RestorePlan,
    pub dir: tempfile::TempDir,
}

/// A repository with one backup of these files and the WAL it needs.
pub(super) async fn world(files: Vec<Content>, change: impl FnOnce(&mut BackupRecord)) -> World {
    let memory = Arc::new(MemoryStore::new());
    let shared: SharedStore = memory.clone();
    let faulty = Arc::new(FaultyStore::new(shared));
    let repository = Arc::new(over(faulty.clone()).await);
    let mut record = record(2);
    let workers = Workers::start(2, 1).unwrap();
    let mut packer = Packer::new(repository.clone(), record.id.clone(), workers, Older::default(), CancellationToken::new()).unwrap();
    let path = |text: &str| RelativePath::parse(text).unwrap();
    packer.other(Entry { path: path("pg_tblspc/16400"), mode: 0o700, mtime: None, kind: EntryKind::Tablespace }).await.unwrap();
    packer.other(Entry { path: path("pg_replslot"), mode: 0o700, mtime: None, kind: EntryKind::Dir }).await.unwrap();
    for (name, content) in files {
        packer.data(&content).await.unwrap();
        packer.file(FileFacts { path: path(name), mode: 0o600, mtime: None }).await.unwrap();
    }
    let Packed { last, trailer, totals, .. } = packer.finish().await.unwrap();
    (record.manifest_sha256, record.manifest_pieces) = (trailer.sha256, last.number);
    (record.files, record.bytes) = (totals.files, totals.bytes);
    record.tablespaces = vec![Tablespace { oid: SPACE, path: "/srv/fast".into(), bytes: 9000 }];
    change(&mut record);
    repository.put_manifest(&record.id, &last).await.unwrap();
    repository.put_wal(WalFileName::Segment(segment(2)), Bytes::from(vec![1; 1 << 20])).await.unwrap();
    repository.commit_backup(&record).await.unwrap();
    let catalog = repository.load_catalog().await.unwrap().catalog;
    let target = RecoveryTarget::new(TargetKind::Latest);
    let candidate = plan::candidates(&catalog, &target).unwrap().remove(0);
    let plan = plan::finish(&candidate, &SearchOutcome::Skipped, &catalog, &plan::Witness::NotAsked).unwrap();
    World { repository, faulty, memory, plan, dir: tempfile::tempdir().unwrap() }
}

impl World {
    pub fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    pub fn options(&self) -> Options {
        let mut options = Options::new(self.data(), "cp '/a b/%f' %p");
        options.tablespaces = vec![("/srv/fast".into(), self.dir.path().join("space"))];
        options
    }

    pub async fn restore(&self, options: Options) -> Result<Summary> {
        restore(self.repository.clone(), &self.plan, options, &unwatched, &CancellationToken::new()).await
    }

    pub async fn refusal(&self, options: Options) -> String {
        let error = self.restore(options).await.unwrap_err();
        assert!(error.is::<Refusal>(), "{error:#}");
        error.to_string()
    }

    fn not_started(&self) -> bool {
        !self.data().join("global/pg_control").exists()
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[tokio::test]
async fn every_file_comes_back_and_is_ready_to_start() {
    let world = world(cluster(), |_| {}).await;
    let summary = world.restore(world.options()).await.unwrap();
    let data = world.data();
    for (name, content) in cluster() {
        let path = match name.strip_prefix("pg_tblspc/16400/") {
            Some(rest) => world.dir.path().join("space").join(rest),
            None => data.join(name),
        };
        if !["tablespace_map", "postgresql.auto.conf", "standby.signal"].contains(&name) {
            assert!(fs::read(&path).unwrap() == content, "{name}");
            assert_eq!(mode(&path), 0o600, "{name}");
        }
    }
    let space = world.dir.path().join("space");
    assert_eq!(fs::read_to_string(data.join("tablespace_map")).unwrap(), format!("16400 {}\n", space.display()));
    assert_eq!(fs::read_link(data.join("pg_tblspc/16400")).unwrap(), space);
    assert!(data.join("recovery.signal").exists() && !data.join("standby.signal").exists());
    let conf = fs::read_to_string(data.join("postgresql.auto.conf")).unwrap();
    assert!(conf.starts_with("work_mem = '4MB'\n# Added by walkeep"), "{conf}");
    assert!(!conf.contains("2020-01-01"), "{conf}");
    for line in ["restore_command = 'cp ''/a b/%f'' %p'", "archive_mode = 'off'", "recovery_target_timeline = '1'", "primary_conninfo = ''"]
    {
        assert!(conf.lines().any(|found| found == line), "{line}: {conf}");
    }
    for folder in ["", "global", "base/1", "pg_wal/archive_status", "pg_replslot"] {
        assert_eq!(mode(&data.join(folder)), 0o700, "{folder}");
    }
    let left = fs::read_dir(data.join("global")).unwrap().count();
    assert_eq!((summary.files, left), (11, 1), "pg_control's other name is gone");
}

#[tokio::test]
async fn nothing_is_written_where_something_is() {
    let world = world(cluster(), |_| {}).await;
    let inside = |name: &str| world.dir.path().join(name);
    fs::create_dir(inside("full")).unwrap();
    fs::write(inside("full/x"), "").unwrap();
    fs::create_dir(inside("empty")).unwrap();
    std::os::unix::fs::symlink(inside("empty"), inside("link")).unwrap();
    for (to, reason) in [("full", "is not empty; nothing was touched"), ("link", "is a symbolic link"), ("full/x", "is not a directory")] {
        let text = world.refusal(Options { to: inside(to), ..world.options() }).await;
        assert!(text.contains(reason), "{text}");
    }
    let spaces = |new: &str| Options { tablespaces: vec![("/srv/fast".into(), inside(new))], ..world.options() };
    assert!(world.refusal(spaces("full")).await.contains("--tablespace OLD=NEW"));
    assert!(world.refusal(spaces("data/space")).await.contains("must not lie in one another"));
    let unknown = Options { tablespaces: vec![("/srv/slow".into(), inside("x"))], ..world.options() };
    assert!(world.refusal(unknown).await.contains("it has: /srv/fast"));
    fs::write(inside("full/postmaster.pid"), "1").unwrap();
    assert!(world.refusal(Options { to: inside("full"), ..world.options() }).await.contains("a server is running"));
    assert_eq!(fs::read_dir(inside("full")).unwrap().count(), 2);
    assert!(!world.data().exists());
    assert_eq!(
        world.faulty.calls().iter().filter(|(operation, key)| *operation == Operation::Get && key.contains("packs/")).count(),
        3 * 7,
        "small files only were read"
    );
    world.restore(Options { to: inside("empty"), ..world.options() }).await.expect("an empty directory will do");
}

#[tokio::test]
async fn what_does_not_fit_is_refused() {
    let huge = world(cluster(), |record| record.tablespaces[0].path = "/srv/fast".into()).await;
    let mut plan = huge.plan.clone();
    plan.restore_bytes += 1;
    let other = World { plan, ..huge };
    assert!(other.refusal(other.options()).await.contains("make a new plan"));
    let wrong = world(cluster(), |record| record.major_version = walkeep_core::MajorVersion::new(16)).await;
    assert!(wrong.refusal(wrong.options()).await.contains("its PG_VERSION says \"15\", its record PostgreSQL 16"));
    let fewer = world(cluster(), |record| record.files += 1).await;
    assert!(fewer.refusal(fewer.options()).await.contains("its manifest has"));
    let unlabelled = world(cluster().into_iter().filter(|(name, _)| *name != "backup_label").collect(), |_| {}).await;
    assert!(unlabelled.refusal(unlabelled.options()).await.contains("no backup_label"));
    let twice = world(cluster().into_iter().chain([("base/1/1", vec![1])]).collect(), |_| {}).await;
    assert!(twice.refusal(twice.options()).await.contains("base/1/1 twice"));
    let below = world(cluster().into_iter().chain([("PG_VERSION/x", vec![1])]).collect(), |_| {}).await;
    assert!(below.refusal(below.options()).await.contains("PG_VERSION as a file and as a folder"));
    for world in [other, wrong, fewer, unlabelled, twice, below] {
        assert!(!world.data().exists());
    }
}

/// What no server here could be started with. PostgreSQL would say so too, after everything was fetched.
#[tokio::test]
async fn the_cluster_of_another_machine_is_refused() {
    let other_byte_order = {
        let mut bytes = control(|_| {});
        for field in [0..8, 8..12, 12..16] {
            bytes[field].reverse();
        }
        bytes
    };
    let torn = {
        let mut bytes = control(|_| {});
        bytes[40] ^= 1;
        bytes
    };
    for (control, reason) in [
        (other_byte_order, "written on a machine of the other byte order"),
        (torn, "expected CRC"),
        (vec![0; 10], "takes at least 12 bytes"),
        (control(|bytes| bytes[0] = 8), "says system identifier 8 and segments of 1048576 bytes, its record 7 and 1048576"),
        (control(|bytes| bytes[228..232].copy_from_slice(&(16u32 << 20).to_le_bytes())), "segments of 16777216 bytes"),
        (include_bytes!("../../core/tests/fixtures/pg_control-17.bin").to_vec(), "version 1700, which PostgreSQL 15 does not write"),
    ] {
        let world = world(cluster_with(control), |_| {}).await;
        let refusal = world.refusal(world.options()).await;
        assert!(refusal.contains(reason), "{reason}: {refusal}");
        assert!(!world.data().exists() && !world.dir.path().join("space").exists(), "{reason}");
    }
    // How PostgreSQL was built is not known here: it is told, not refused.
    let world = world(cluster_with(control(|bytes| bytes[216..220].copy_from_slice(&32_768u32.to_le_bytes()))), |_| {}).await;
    let summary = world.restore(world.options()).await.unwrap();
    assert!(summary.warnings.iter().any(|warning| warning.contains("blocks of 32768 bytes")), "{:?}", summary.warnings);
}

#[tokio::test]
async fn a_disk_that_is_too_small_is_refused() {
    let world = world(cluster(), |_| {}).await;
    let mut layout = Layout::default();
    layout.written = u64::MAX / 2;
    let target =
        Target { data: world.data(), tablespaces: Vec::new(), replayed: Vec::new(), dir_mode: 0o700, delta: false, is_server: false };
    let error = target.check(&layout, 0, 0).unwrap_err();
    assert!(matches!(error.downcast_ref(), Some(Refusal::Space { .. })), "{error}");
}

#[tokio::test]
async fn files_that_are_not_needed_get_their_length_and_nothing_is_read_of_them() {
    let mut files = cluster();
    files.push(("base/5/7", vec![9; 20_000]));
    let world = world(files, |_| {}).await;
    let mut options = world.options();
    options.needed = Needed::Databases([5].into());
    options.throw_away = true;
    let summary = world.restore(options).await.unwrap();
    let data = world.data();
    assert_eq!(fs::read(data.join("base/5/7")).unwrap(), vec![9; 20_000]);
    for path in [data.join("base/1/1"), world.dir.path().join("space/PG_15/1/1")] {
        let content = fs::read(&path).unwrap();
        let length = if path.starts_with(&data) { 3 * EXTENT + 5 } else { 9000 };
        assert_eq!((content.len(), content.iter().any(|byte| *byte != 0)), (length, false), "{}", path.display());
    }
    assert_eq!(fs::read(data.join("PG_VERSION")).unwrap(), b"15\n");
    assert!(summary.fetched < summary.stored && summary.bytes < 40_000, "{summary:?}");
    // Nothing of the original's settings is left.
    let conf = fs::read_to_string(data.join("postgresql.auto.conf")).unwrap();
    assert!(!conf.contains("work_mem") && conf.contains("restore_command") && data.join("recovery.signal").exists(), "{conf}");
}

/// The manifest of the world's backup with one text in it exchanged, and the record that fits.
async fn with_manifest(world: &World, from: &str, to: &str) {
    let keys = |name: ObjectName| world.repository.layout().key(&name).parse::<walkeep_store::Key>().unwrap();
    let id = world.plan.backup.id.clone();
    let manifest = keys(ObjectName::BackupManifest(id.clone(), 1));
    let object = world.memory.get(&manifest, None).await.unwrap();
    let text = String::from_utf8(zstd::decode_all(&object[..]).unwrap()).unwrap();
    assert!(text.contains(from), "{text}");
    let text = text.replace(from, to);
    // The attacker closes the manifest properly.
    let (body, trailer) = text.trim_end().rsplit_once('\n').unwrap();
    let body = format!("{body}\n");
    let (start, _) = trailer.rsplit_once("\"sha256\":").unwrap();
    let sum = crate::codec::sha256(body.as_bytes());
    let text = format!("{body}{start}\"sha256\":\"{}\"}}\n", hex::encode(sum));
    world.memory.overwrite(&manifest, zstd::encode_all(text.as_bytes(), 1).unwrap().into());
    let mut record = world.repository.backup(&id).await.unwrap().unwrap();
    record.manifest_sha256 = Sha256Sum::new(sum);
    world.memory.overwrite(&keys(ObjectName::BackupRecord(id)), record.to_json().unwrap().into());
}

#[tokio::test]
async fn a_hostile_manifest_writes_nothing() {
    for to in ["../../evil", "/tmp/evil", "base/../../evil", "base//3", "./base/1/3"] {
        let world = world(cluster(), |_| {}).await;
        with_manifest(&world, "\"base/1/3\"", &format!("\"{to}\"")).await;
        let error = world.restore(world.options()).await.unwrap_err();
        assert!(format!("{error:#}").contains("manifest"), "{error:#}");
        assert!(!world.data().exists(), "{to}");
    }
    let world = world(cluster(), |_| {}).await;
    with_manifest(&world, "\"pg_tblspc/16400\"", "\"pg_tblspc/16499\"").await;
    assert!(world.refusal(world.options()).await.contains("pg_tblspc/16499, that its record has not"));
}

#[tokio::test]
async fn a_damaged_extent_names_pack_and_file_and_nothing_can_start() {
    let world = world(cluster(), |_| {}).await;
    let entries = world.repository.get_manifest(&record_of(&world).await).await.unwrap();
    let entry = entries.iter().unwrap().map(Result::unwrap).find(|entry| entry.path.as_str() == "base/1/1").unwrap();
    let EntryKind::File { content, .. } = entry.kind else { panic!("a file") };
    let extents = content.extents();
    let key = world.repository.layout().key(&ObjectName::Pack(extents[1].pack)).parse().unwrap();
    let mut pack = world.memory.get(&key, None).await.unwrap().to_vec();
    pack[extents[1].offset as usize + 50] ^= 1;
    world.memory.overwrite(&key, pack.into());
    let error = world.restore(world.options()).await.unwrap_err();
    let text = format!("{error:#}");
    assert!(text.contains(key.as_str()) && text.contains("base/1/1"), "{text}");
    assert!(world.not_started());
    assert!(world.refusal(world.options()).await.contains("did not come to its end"));
}

async fn record_of(world: &World) -> BackupRecord {
    world.repository.backup(&world.plan.backup.id).await.unwrap().unwrap()
}

#[tokio::test]
async fn damage_on_the_way_is_read_again() {
    let world = world(cluster(), |_| {}).await;
    world.faulty.inject(Rule::new(Operation::Get, Fault::Flip(100)).on("packs/").from_call(4).times(1));
    world.restore(world.options()).await.unwrap();
}

#[tokio::test]
async fn a_restore_cut_at_any_request_cannot_start() {
    for call in 1.. {
        let world = world(cluster(), |_| {}).await;
        world.faulty.inject(Rule::new(Operation::Get, Fault::Hang).from_call(call));
        let cancel = CancellationToken::new();
        let restoring = restore(world.repository.clone(), &world.plan, world.options(), &unwatched, &cancel);
        let result = tokio::time::timeout(std::time::Duration::from_millis(300), restoring).await;
        if result.is_ok_and(|result| result.is_ok()) {
            assert!(call > 5);
            return;
        }
        assert!(world.not_started(), "request {call}");
    }
}
