use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use chrono_tz::Tz;
use tokio_util::sync::CancellationToken;
use walkeep_core::backup::{BackupBegun, BackupRecord, Keep};
use walkeep_core::layout::{BackupId, ObjectName};
use walkeep_core::relative_path::RelativePath;
use walkeep_core::{SegmentNumber, WalFileName};
use walkeep_store::{ErrorKind, Fault, FaultyStore, Key, ListRequest, MemoryStore, Operation, Rule, SharedStore, list_all};

use super::*;
use crate::backup::pack::{FileFacts, Older, Packer};
use crate::backup::workers::Workers;
use crate::repository::tests::{memory, over, record, segment};

const DAY: Duration = Duration::from_secs(86_400);
const NEVER: Duration = Duration::from_secs(365 * 86_400);

/// Of a host that takes no backups: whoever began one may still end it.
fn no_spool() -> &'static Path {
    Path::new("/nonexistent")
}

fn policy() -> Policy {
    let window = chrono::TimeDelta::zero();
    Policy { window, daily: 0, weekly: 0, monthly: 0, yearly: 0, minimum: 1, zone: Tz::UTC }
}

/// Backup `number` with a pack of its own, and the WAL that it needs: segment `number`.
pub(crate) async fn backup(repository: &Arc<ClusterRepository>, number: u64) -> BackupId {
    let record = packed(repository, number).await;
    repository.commit_backup(&record).await.unwrap();
    record.id
}

/// The same without its record.
async fn packed(repository: &Arc<ClusterRepository>, number: u64) -> BackupRecord {
    let mut record = record(number);
    let begun = BackupBegun { format: 1, label: "nightly".into(), host: "db1".into(), process: 1, at: Utc::now(), writer: None };
    repository.begin_backup(&record.id, &begun).await.unwrap();
    let workers = Workers::start(1, 1).unwrap();
    let mut packer = Packer::new(repository.clone(), record.id.clone(), workers, Older::default(), CancellationToken::new()).unwrap();
    packer.data(format!("what is in backup {number}").as_bytes()).await.unwrap();
    packer.file(FileFacts { path: RelativePath::parse("PG_VERSION").unwrap(), mode: 0o600, mtime: None }).await.unwrap();
    let packed = packer.finish().await.unwrap();
    repository.put_manifest(&record.id, &packed.last).await.unwrap();
    (record.manifest_sha256, record.manifest_pieces) = (packed.trailer.sha256, packed.last.number);
    put_segment(repository, number).await;
    record
}

async fn put_segment(repository: &ClusterRepository, number: u64) {
    repository.put_wal(WalFileName::Segment(segment(number)), Bytes::from(vec![number as u8; 1 << 20])).await.unwrap();
}

/// Five backups, and a segment behind the last.
async fn five(repository: &Arc<ClusterRepository>) -> Vec<BackupId> {
    let mut ids = Vec::new();
    for number in 1..=5 {
        ids.push(backup(repository, number).await);
    }
    put_segment(repository, 6).await;
    ids
}

async fn letting_go(repository: &Arc<ClusterRepository>) -> Expiry {
    let look = look(repository, &policy(), no_spool(), Utc::now()).await.unwrap();
    take_out(repository, &look, Utc::now()).await.unwrap()
}

async fn carried_out(repository: &Arc<ClusterRepository>, grace: Duration) -> Result<CarriedOut> {
    carry_out(repository, Scope::Everything, (grace, no_spool()), Utc::now(), &CancellationToken::new(), &|_| {}).await
}

async fn keys(store: &MemoryStore, part: &str) -> Vec<String> {
    let all = list_all(store, ListRequest::default()).await.unwrap().objects;
    all.into_iter().map(|listed| listed.key.to_string()).filter(|key| key.contains(part)).collect()
}

/// Whether everything that a backup's manifest names is there.
async fn is_whole(repository: &ClusterRepository, id: &BackupId) -> bool {
    let record = repository.backup(id).await.unwrap().unwrap();
    repository.lost_packs(&record).await.unwrap().is_nothing()
}

#[tokio::test]
async fn what_goes_leaves_the_catalog_first_and_its_objects_go_behind_the_grace() {
    let (repository, store) = memory().await;
    let repository = Arc::new(repository);
    let ids = five(&repository).await;
    repository.put_hold(&Hold { backup: ids[1].clone(), keep: Some(Keep::Forever), at: Utc::now(), host: "db1".into() }).await.unwrap();
    let record = letting_go(&repository).await;
    assert_eq!(record.backups, [ids[0].clone(), ids[2].clone(), ids[3].clone()]);
    let catalog = repository.load_catalog().await.unwrap().catalog;
    assert_eq!(catalog.backups().iter().map(|backup| backup.id.clone()).collect::<Vec<_>>(), [ids[1].clone(), ids[4].clone()]);
    assert!(catalog.holes(TimelineId::FIRST).is_empty(), "what left on purpose is no hole");

    let done = carried_out(&repository, NEVER).await.unwrap();
    assert_eq!((done.objects, done.waits.len()), (0, 1));
    assert_eq!(keys(&store, "/backup.json").await.len(), 5, "nothing goes within the grace");

    let done = carried_out(&repository, Duration::ZERO).await.unwrap();
    assert_eq!((done.backups.len(), done.refused, done.packs), (3, 0, 0), "packs are too young");
    assert_eq!(keys(&store, "/backups/").await.len(), 7, "of two backups what they have, and a hold");
    assert_eq!(keys(&store, "/wal/").await.len(), 3);
    store.age(sweep::LEFT + DAY);
    let newest = backup(&repository, 7).await;
    sweep::sweep_unneeded(&repository, &CancellationToken::new()).await.unwrap();
    assert_eq!(keys(&store, "/packs/").await.len(), 3);
    for id in [&ids[1], &ids[4], &newest] {
        assert!(is_whole(&repository, id).await);
    }
    let (known, _) = repository.expiries().await.unwrap();
    assert_eq!(known.len(), 1, "one record that says what is gone");
    assert!(known[0].record.is_memory() && known[0].record.gone.len() == 2);
    assert_eq!(known[0].record.gone_backups.len(), 3, "and no repository that was away brings these back");
    assert!(repository.load_catalog().await.unwrap().catalog.holes(TimelineId::FIRST).is_empty());
}

/// This host's clock alone does not end a time of grace: what the server and the store say has to bear it out.
#[tokio::test]
async fn a_clock_that_is_ahead_ends_no_grace() {
    const HOUR: Duration = Duration::from_secs(3600);
    let (repository, store) = memory().await;
    let repository = Arc::new(repository);
    five(&repository).await;
    let objects = keys(&store, "").await.len();
    let let_go = letting_go(&repository).await;
    let at = async |host_now| {
        carry_out(&repository, Scope::Everything, (HOUR, no_spool()), host_now, &CancellationToken::new(), &|_| {}).await.unwrap()
    };
    let newest = async |number| {
        let mut record = packed(&repository, number).await;
        (record.started_at, record.ended_at) = (Utc::now(), Utc::now());
        repository.commit_backup(&record).await.unwrap();
    };
    newest(7).await;
    let done = at(Utc::now() + 2 * DAY).await;
    let [Waits { until: Some(until), known: Some(known), for_backup: None, .. }] = &done.waits[..] else { panic!("{done:?}") };
    assert!(until > known && *known < Utc::now() + DAY && done.objects == 0, "{done:?}");
    assert!(keys(&store, "").await.len() > objects, "all of it is there");
    assert!(undo(&repository, let_go.number, Utc::now()).await.unwrap().unwrap().1, "as was promised");

    // Where all clocks say that the grace is over, it is.
    let look = look(&repository, &policy(), no_spool(), Utc::now()).await.unwrap();
    take_out(&repository, &look, Utc::now() - 2 * HOUR).await.unwrap();
    store.age(2 * HOUR);
    let done = at(Utc::now()).await;
    assert!(done.waits[0].known.is_some() && done.objects == 0, "nothing was stored since: {done:?}");
    newest(8).await;
    let done = at(Utc::now()).await;
    assert!(done.waits.is_empty() && done.backups.len() == 5, "{done:?}");
}

#[tokio::test]
async fn what_is_taken_back_is_as_it_was() {
    let (repository, _) = memory().await;
    let repository = Arc::new(repository);
    five(&repository).await;
    let record = letting_go(&repository).await;
    assert!(undo(&repository, record.number, Utc::now()).await.unwrap().unwrap().1);
    assert_eq!(carried_out(&repository, Duration::ZERO).await.unwrap().objects, 0);
    let catalog = repository.load_catalog().await.unwrap().catalog;
    assert_eq!((catalog.backups().len(), catalog.segment_totals(TimelineId::FIRST).0), (5, 6));
    assert!(undo(&repository, record.number, Utc::now()).await.unwrap().unwrap().1, "it stays so");
    let again = letting_go(&repository).await;
    assert_eq!((again.number, &again.backups), (record.number + 1, &record.backups), "a number is used once");
    let _ = carried_out(&repository, Duration::ZERO).await.unwrap();
    assert!(undo(&repository, again.number, Utc::now()).await.unwrap().is_none(), "it is gone");
}

/// Killed at each of its calls that change something, and run again: nothing that is kept is harmed, all that goes is gone.
#[tokio::test]
async fn killed_anywhere_the_next_run_goes_on() {
    for step in 0.. {
        let inner = Arc::new(MemoryStore::new());
        let faulty = Arc::new(FaultyStore::new(inner.clone() as SharedStore));
        let repository = Arc::new(over(faulty.clone()).await);
        let ids = five(&repository).await;
        letting_go(&repository).await;
        faulty.inject(Rule::new(Operation::Delete, Fault::Fail(ErrorKind::Transient)).from_call(step + 1));
        let failed = carried_out(&repository, Duration::ZERO).await.is_err();
        faulty.heal();
        for id in &repository.load_catalog().await.unwrap().catalog.backups().iter().map(|found| found.id.clone()).collect::<Vec<_>>() {
            assert!(*id == ids[4] && is_whole(&repository, id).await, "step {step}: {id} is back in the catalog");
        }
        carried_out(&repository, Duration::ZERO).await.unwrap();
        assert_eq!(keys(&inner, "/backup.json").await.len(), 1, "step {step}");
        assert_eq!(keys(&inner, "/backups/").await.len(), 3, "step {step}");
        assert_eq!(keys(&inner, "/wal/").await.len(), 2, "step {step}");
        assert!(is_whole(&repository, &ids[4]).await);
        if !failed {
            assert!(step > 10, "only {step} steps were tried");
            return;
        }
    }
}

#[tokio::test]
async fn a_backup_that_began_before_keeps_everything_until_it_is_over() {
    let (repository, store) = memory().await;
    let repository = Arc::new(repository);
    five(&repository).await;
    // It has looked at what there is, and may refer to it in what it has not stored yet.
    let under_way = packed(&repository, 6).await;
    let expiry = letting_go(&repository).await;
    let done = carried_out(&repository, Duration::ZERO).await.unwrap();
    let [Waits { number, for_backup: Some(waits_for), given_up: Some(given_up), .. }] = &done.waits[..] else { panic!("{done:?}") };
    assert_eq!((*number, waits_for), (expiry.number, &under_way.id));
    assert!((*given_up - Utc::now()).num_days() >= 6, "it may be another host's: {given_up}");
    assert_eq!(keys(&store, "/backup.json").await.len(), 5);
    repository.commit_backup(&under_way).await.unwrap();
    let done = carried_out(&repository, Duration::ZERO).await.unwrap();
    assert_eq!((done.waits.len(), done.backups.len()), (0, 4));
    assert!(is_whole(&repository, &under_way.id).await);
}

/// One that was cancelled or killed on this host has let go of its lock: nothing waits for it.
#[tokio::test]
async fn a_backup_that_died_here_holds_up_nothing() {
    let (repository, store) = memory().await;
    let repository = Arc::new(repository);
    five(&repository).await;
    let spool = tempfile::tempdir().unwrap();
    std::fs::write(spool.path().join("writer.json"), r#"{"id": "this spool"}"#).unwrap();
    let six = packed(&repository, 6).await;
    let begun = |host: String, writer: Option<&str>| BackupBegun {
        format: 1,
        label: "nightly".into(),
        host,
        process: 1,
        at: Utc::now(),
        writer: writer.map(str::to_owned),
    };
    letting_go(&repository).await;
    let key = repository.layout().key(&ObjectName::BackupBegun(six.id.clone())).parse().unwrap();
    let waits = async || {
        let cancel = CancellationToken::new();
        carry_out(&repository, Scope::Everything, (Duration::ZERO, spool.path()), Utc::now(), &cancel, &|_| {}).await.unwrap().waits.len()
    };
    let lock = BackupLock::take(spool.path(), "a test").unwrap();
    for (host, id) in [
        ("db2".into(), Some("this spool")),
        (writer::host(), Some("another")),
        (writer::host(), None),
        (writer::host(), Some("this spool")),
    ] {
        store.overwrite(&key, walkeep_core::sealed::to_json(&begun(host, id)).unwrap().into());
        assert_eq!(waits().await, 1, "the lock is held");
    }
    drop(lock);
    for (host, id) in [("db2".into(), Some("this spool")), (writer::host(), Some("another")), (writer::host(), None)] {
        store.overwrite(&key, walkeep_core::sealed::to_json(&begun(host, id)).unwrap().into());
        assert_eq!(waits().await, 1, "somebody else may take it");
        assert_eq!(under_way(&repository, spool.path()).await.unwrap(), [six.id.start()], "the WAL from its start on stays");
    }
    assert_eq!(keys(&store, "/backup.json").await.len(), 5);
    store.overwrite(&key, walkeep_core::sealed::to_json(&begun(writer::host(), Some("this spool"))).unwrap().into());
    assert_eq!(under_way(&repository, spool.path()).await.unwrap(), [], "and no WAL stays for it");
    assert_eq!(waits().await, 0);
    assert_eq!(keys(&store, "/backup.json").await.len(), 1);
    // What it stored is there still, for the next one.
    repository.commit_backup(&six).await.unwrap();
    assert!(is_whole(&repository, &six.id).await);
}

#[tokio::test]
async fn what_the_store_does_not_let_go_is_told_and_tried_again() {
    let inner = Arc::new(MemoryStore::new());
    let faulty = Arc::new(FaultyStore::new(inner.clone() as SharedStore));
    let repository = Arc::new(over(faulty.clone()).await);
    five(&repository).await;
    letting_go(&repository).await;
    faulty.inject(Rule::new(Operation::Delete, Fault::Fail(ErrorKind::Denied)).on("00000002.zst").times(1));
    let done = carried_out(&repository, Duration::ZERO).await.unwrap();
    assert_eq!((done.refused, done.refused_named.len()), (1, 1));
    assert_eq!(keys(&inner, "/wal/").await.len(), 3, "the others went");
    assert_eq!(repository.load_catalog().await.unwrap().catalog.segment_totals(TimelineId::FIRST).0, 2, "it stays out of the catalog");
    let done = carried_out(&repository, Duration::ZERO).await.unwrap();
    assert_eq!((done.refused, keys(&inner, "/wal/").await.len()), (0, 2));
}

#[tokio::test]
async fn thousands_of_segments_go_page_by_page() {
    let (repository, store) = memory().await;
    let repository = Arc::new(repository);
    five(&repository).await;
    for number in 7..1500 {
        let key = repository.layout().wal_key(WalFileName::Segment(segment(number)));
        store.overwrite(&key.parse().unwrap(), Bytes::from_static(b"never read here"));
    }
    backup(&repository, 1500).await;
    letting_go(&repository).await;
    let done = carried_out(&repository, Duration::ZERO).await.unwrap();
    assert!(done.objects > 1499 && done.refused == 0, "{done:?}");
    let left = keys(&store, "/wal/").await;
    assert_eq!(
        left,
        [repository.layout().wal_key(WalFileName::Segment(SegmentNumber::new(1500).name(TimelineId::FIRST, segment_size(&repository))))]
    );
}

fn segment_size(repository: &ClusterRepository) -> walkeep_core::SegmentSize {
    repository.identity().segment_size
}

#[tokio::test]
async fn a_record_that_cannot_be_read_stops_everything() {
    let (repository, store) = memory().await;
    let repository = Arc::new(repository);
    let ids = five(&repository).await;
    let key: Key = repository.layout().key(&ObjectName::BackupRecord(ids[2].clone())).parse().unwrap();
    store.overwrite(&key, Bytes::from_static(b"{"));
    let refused = look(&repository, &policy(), no_spool(), Utc::now()).await.unwrap_err();
    assert!(refused.downcast_ref::<Refusal>().is_some(), "{refused:#}");
}

#[tokio::test]
async fn what_was_decided_by_what_is_not_so_any_more_is_refused() {
    let (repository, _) = memory().await;
    let repository = Arc::new(repository);
    let ids = five(&repository).await;
    let now = Utc::now();
    let (one, two) =
        (look(&repository, &policy(), no_spool(), now).await.unwrap(), look(&repository, &policy(), no_spool(), now).await.unwrap());
    let keep = |id: &BackupId| Hold { backup: id.clone(), keep: Some(Keep::Forever), at: now, host: "db1".into() };
    repository.put_hold(&keep(&ids[0])).await.unwrap();
    let refused = take_out(&repository, &one, now).await.unwrap_err();
    assert!(refused.to_string().contains(&format!("{} is kept", ids[0])), "{refused:#}");
    assert_eq!(repository.load_catalog().await.unwrap().catalog.backups().len(), 5, "nothing left");
    // What was taken back is no change; what left is.
    let three = look(&repository, &policy(), no_spool(), now).await.unwrap();
    let first = take_out(&repository, &three, now).await.unwrap();
    assert_eq!(first.backups, ids[1..4]);
    assert!(matches!(take_out(&repository, &two, now).await.unwrap_err().downcast_ref(), Some(Refusal::Changed { .. })));
    // Kept within the grace after all.
    repository.put_hold(&keep(&ids[2])).await.unwrap();
    assert_eq!(carried_out(&repository, Duration::ZERO).await.unwrap().objects, 0);
    assert_eq!(repository.load_catalog().await.unwrap().catalog.backups().len(), 5);
}

#[tokio::test]
async fn what_is_taken_back_has_its_wal_whatever_left_behind_it() {
    let (repository, _) = memory().await;
    let repository = Arc::new(repository);
    let ids = five(&repository).await;
    let first = letting_go(&repository).await;
    backup(&repository, 7).await;
    let second = letting_go(&repository).await;
    assert_eq!(second.backups, ids[4..]);
    let one = |wal: &[walkeep_core::expiry::ExpiredWal]| wal.iter().map(|wal| (wal.from, wal.to)).collect::<Vec<_>>();
    assert!(one(&second.wal).iter().all(|(from, _)| one(&first.wal).iter().all(|(_, to)| to <= from)), "{first:?} {second:?}");
    undo(&repository, first.number, Utc::now()).await.unwrap();
    let catalog = repository.load_catalog().await.unwrap().catalog;
    let path = walkeep_core::TimelineHistory::root(TimelineId::FIRST);
    for id in &first.backups {
        let record = catalog.backup(id).unwrap();
        assert!(catalog.reach(&path, record.start_lsn).to >= record.stop_lsn, "{id}");
    }
}

/// A store that does not answer must not keep the agent from all that comes behind.
#[tokio::test(start_paused = true)]
async fn what_the_agent_does_by_itself_has_an_end() {
    let faulty = Arc::new(FaultyStore::new(Arc::new(MemoryStore::new())));
    let repository = Arc::new(over(faulty.clone()).await);
    let began = tokio::time::Instant::now();
    let look = async || in_time(look(&repository, &policy(), no_spool(), Utc::now())).await.map(drop);
    look().await.unwrap();
    faulty.inject(Rule::new(Operation::List, Fault::Hang));
    let error = look().await.unwrap_err();
    assert!(error.to_string().contains("6 hours") && began.elapsed() < Duration::from_secs(7 * 3600), "{error:#}");
}
