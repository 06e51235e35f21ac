use super::*;
use crate::backup::pack::{FileFacts, Older, Packer};
use crate::backup::workers::Workers;
use crate::repository::tests::{memory, record};
use chrono::Utc;
use walkeep_core::backup::BackupBegun;
use walkeep_core::relative_path::RelativePath;
use walkeep_store::{MemoryStore, Store};

/// Takes backup `number`, of one file with these bytes, up to its record if `recorded`, else up to its manifest if `listed`.
async fn backup(repository: &Arc<ClusterRepository>, number: u64, bytes: &[u8], listed: bool, recorded: bool) -> BackupId {
    let mut record = record(number);
    let id = record.id.clone();
    let begun = BackupBegun { format: 1, label: "nightly".into(), host: "db1".into(), process: 1, at: Utc::now(), writer: None };
    repository.begin_backup(&id, &begun).await.unwrap();
    let workers = Workers::start(1, 1).unwrap();
    let mut packer = Packer::new(repository.clone(), id.clone(), workers, Older::default(), CancellationToken::new()).unwrap();
    packer.data(bytes).await.unwrap();
    packer.file(FileFacts { path: RelativePath::parse("PG_VERSION").unwrap(), mode: 0o600, mtime: None }).await.unwrap();
    let packed = packer.finish().await.unwrap();
    if listed || recorded {
        repository.put_manifest(&id, &packed.last).await.unwrap();
    }
    if recorded {
        (record.manifest_sha256, record.manifest_pieces) = (packed.trailer.sha256, packed.last.number);
        repository.commit_backup(&record).await.unwrap();
    }
    id
}

async fn with_store() -> (Arc<ClusterRepository>, Arc<MemoryStore>) {
    let (repository, store) = memory().await;
    (Arc::new(repository), store)
}

async fn swept(repository: &Arc<ClusterRepository>, newest: &BackupId) -> Swept {
    sweep(repository, newest, &CancellationToken::new()).await.unwrap()
}

async fn packs(repository: &ClusterRepository) -> usize {
    repository.packs_before(SystemTime::now() + DAY).await.unwrap().len()
}

#[tokio::test]
async fn what_was_never_finished_goes_once_it_is_old_and_nothing_else() {
    let (repository, store) = with_store().await;
    let kept = backup(&repository, 1, b"15", true, true).await;
    let listed = backup(&repository, 2, b"the same bytes", true, false).await;
    let unlisted = backup(&repository, 3, b"the same bytes", false, false).await;
    let last = backup(&repository, 4, b"the same bytes", true, true).await;
    assert_eq!(packs(&repository).await, 4, "each backup has packs of its own");
    assert_eq!(swept(&repository, &last).await, Swept::default(), "the next backup may use it");

    store.age(LEFT + DAY);
    let fresh = backup(&repository, 5, b"interrupted today", false, false).await;
    let newest = backup(&repository, 6, b"15 too", true, true).await;
    let gone = swept(&repository, &newest).await;
    assert_eq!((gone.packs, &gone.backups), (2, &vec![listed.clone(), unlisted.clone()]));
    let times = repository.backup_times().await.unwrap();
    assert_eq!(times.iter().map(|found| found.id.clone()).collect::<Vec<_>>(), [kept, last.clone(), fresh, newest.clone()]);
    assert_eq!(packs(&repository).await, 4);
    let manifest = repository.get_manifest(&repository.backup(&last).await.unwrap().unwrap()).await.unwrap();
    for entry in manifest.iter().unwrap() {
        let EntryKind::File { content, .. } = entry.unwrap().kind else { panic!("a file") };
        for extent in content.extents() {
            repository.get_extents(extent.pack, extent.offset..extent.offset + extent.stored).await.unwrap();
        }
    }
    assert_eq!(swept(&repository, &newest).await, Swept::default());
}

#[tokio::test]
async fn what_an_old_backup_under_way_names_stays() {
    let (repository, store) = with_store().await;
    let left = backup(&repository, 1, b"left", true, false).await;
    store.age(LEFT + DAY);
    let alive = backup(&repository, 2, b"alive", true, false).await;
    store.age(DAY * 2);
    let newest = backup(&repository, 3, b"15", true, true).await;
    let waits = Swept { waits_for: Some(alive), ..Swept::default() };
    assert_eq!(swept(&repository, &newest).await, waits, "it may have taken up what {left} left");
    assert_eq!(packs(&repository).await, 3);
}

#[tokio::test]
async fn a_backup_that_stood_still_is_not_unbroken() {
    let (repository, store) = with_store().await;
    let id = backup(&repository, 1, b"15", true, false).await;
    let is_unbroken = async |pieces| repository.is_unbroken(&id, pieces, STANDSTILL).await.unwrap();
    assert!(is_unbroken(1).await);
    assert!(!is_unbroken(2).await, "a piece is missing");
    store.age(STANDSTILL + DAY);
    assert!(is_unbroken(1).await, "all of it is old");
    let mut late = record(1);
    late.label = "late".into();
    repository.commit_backup(&late).await.unwrap();
    assert!(!is_unbroken(1).await, "the record came days after the rest");
    repository.remove_record(&id).await.unwrap();
    assert!(is_unbroken(1).await);
    store.age(DAY);
    repository.remove_unfinished(&id).await.unwrap();
    assert!(!is_unbroken(0).await, "others have removed it");
}

#[tokio::test]
async fn in_doubt_nothing_goes() {
    let (repository, store) = with_store().await;
    let id = backup(&repository, 1, b"15", true, true).await;
    backup(&repository, 2, b"left", true, false).await;
    store.age(LEFT + DAY);
    let newest = backup(&repository, 3, b"15", true, true).await;
    let count = store.len();
    let manifest = format!("{}manifest.zst", repository.layout().backup_prefix(&id)).parse().unwrap();
    let record = format!("{}backup.json", repository.layout().backup_prefix(&id)).parse().unwrap();
    for damaged in [&manifest, &record] {
        let whole = store.get(damaged, None).await.unwrap();
        store.overwrite(damaged, whole.slice(..whole.len() / 2));
        sweep(&repository, &newest, &CancellationToken::new()).await.unwrap_err();
        store.overwrite(damaged, whole);
    }
    assert_eq!(store.len(), count);
    assert_eq!(swept(&repository, &newest).await.packs, 1);
}
