use std::fs;

use bytes::Bytes;
use tokio_util::sync::CancellationToken;
use walkeep_core::layout::PartName;
use walkeep_core::{SegmentSize, WalFileName};
use walkeep_store::{ErrorKind, Fault, FaultyStore, MemoryStore, Operation, Rule};

use super::*;
use crate::archive::Archiver;
use crate::index::Queue;
use crate::metrics::Metrics;
use crate::recent::Recent;
use crate::repository::ClusterRepository;
use crate::repository::tests::{over, segment};

/// A data directory with ready segments, and the archiver.
struct Rig {
    folder: tempfile::TempDir,
    store: Arc<FaultyStore>,
    repository: Arc<ClusterRepository>,
    archiver: Archiver,
}

impl Rig {
    async fn with(ready: impl IntoIterator<Item = u64>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Arc::new(FaultyStore::new(Arc::new(MemoryStore::new())));
        let repository = Arc::new(over(store.clone()).await);
        let system = repository.identity().system_identifier;
        fs::create_dir_all(folder.path().join("global")).unwrap();
        fs::create_dir_all(folder.path().join("pg_wal/archive_status")).unwrap();
        fs::write(folder.path().join("global/pg_control"), system.get().to_ne_bytes()).unwrap();
        let (recent, metrics) = (Arc::new(Recent::default()), Arc::new(Metrics::new().unwrap()));
        let archiver = Archiver::new(repository.clone(), recent, metrics, Queue::nobody(), CancellationToken::new()).looking_ahead();
        let rig = Self { folder, store, repository, archiver };
        for number in ready {
            fs::write(rig.path(number), content(&rig.repository, number, 0)).unwrap();
            fs::write(rig.mark(number, "ready"), "").unwrap();
        }
        rig
    }

    fn path(&self, number: u64) -> PathBuf {
        self.folder.path().join("pg_wal").join(segment(number).to_string())
    }

    fn mark(&self, number: u64, state: &str) -> PathBuf {
        self.folder.path().join(format!("pg_wal/archive_status/{}.{state}", segment(number)))
    }

    /// As archive_command does; waits until nothing more goes on ahead.
    async fn offer(&self, number: u64) -> Result<Stored, ArchiveError> {
        let source = wal_path::check_source(&self.path(number), self.repository.identity().system_identifier).unwrap();
        let answer = self.archiver.archive(source).await;
        let ahead = self.archiver.ahead.clone().unwrap();
        let under_way = |entry: &Entry| entry.borrow().is_none() && entry.has_changed().is_ok();
        while ahead.looking.load(Ordering::Acquire) || ahead.entries().values().any(under_way) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        answer
    }

    async fn stored(&self) -> Vec<u64> {
        let mut stored = Vec::new();
        for number in 1..=DEPTH as u64 + 10 {
            let file = self.repository.get_wal(WalFileName::Segment(segment(number))).await.unwrap();
            if let Some(file) = file {
                assert!(file.content == content(&self.repository, number, 0), "segment {number} is exact");
                stored.push(number);
            }
        }
        stored
    }

    /// Calls for segments, and not for the marker.
    fn calls(&self) -> usize {
        self.store.calls().iter().filter(|(_, place)| place.contains("/wal/")).count()
    }
}

/// A segment of PostgreSQL 15, as far as its first page shows; `other` makes other ones of the same name.
fn content(repository: &ClusterRepository, number: u64, other: u8) -> Bytes {
    let size = repository.identity().segment_size.bytes();
    let header = [
        &0xD110u16.to_le_bytes()[..],
        &2u16.to_le_bytes(),
        &1u32.to_le_bytes(),
        &(number * size).to_le_bytes(),
        &[0; 8],
        &repository.identity().system_identifier.get().to_le_bytes(),
        &(size as u32).to_le_bytes(),
        &8192u32.to_le_bytes(),
    ]
    .concat();
    let mut content = vec![number as u8 ^ other; size as usize];
    content[..header.len()].copy_from_slice(&header);
    content.into()
}

#[tokio::test]
async fn what_is_ready_is_stored_before_it_is_offered_and_asked_for_once() {
    let rig = Rig::with(1..=6).await;
    assert!(matches!(rig.offer(1).await.unwrap(), Stored::New { .. }));
    assert_eq!(rig.stored().await, [1, 2, 3, 4, 5, 6]);
    let calls = rig.calls();
    for number in 2..=6 {
        assert_eq!(rig.offer(number).await.unwrap(), Stored::Already);
    }
    assert_eq!(rig.calls(), calls, "the answers come from memory");
}

#[tokio::test]
async fn so_much_goes_ahead_and_more_with_each_question() {
    let rig = Rig::with(1..=DEPTH as u64 + 9).await;
    rig.offer(1).await.unwrap();
    assert_eq!(rig.stored().await.last(), Some(&(1 + DEPTH as u64)));
    rig.offer(2).await.unwrap();
    assert_eq!(rig.stored().await.last(), Some(&(2 + DEPTH as u64)));
}

#[tokio::test]
async fn what_is_not_ready_is_not_passed_by() {
    let rig = Rig::with([1, 2, 4]).await;
    // PostgreSQL still writes to it.
    fs::write(rig.path(3), content(&rig.repository, 3, 0)).unwrap();
    rig.offer(1).await.unwrap();
    assert_eq!(rig.stored().await, [1, 2]);
}

/// Its parts may be confirmed: whole WAL behind it would make a hole of them.
#[tokio::test]
async fn nothing_goes_past_a_segment_that_is_stored_in_parts() {
    let rig = Rig::with(1..=5).await;
    let part = PartName { segment: segment(3), from: 0, to: 100, epoch: 1 };
    rig.repository.put_part(part, content(&rig.repository, 3, 0).slice(..100)).await.unwrap();
    rig.offer(1).await.unwrap();
    assert_eq!(rig.stored().await, [1, 2]);
    // Nor the next time it is looked.
    rig.offer(2).await.unwrap();
    assert_eq!(rig.stored().await, [1, 2]);
    rig.offer(3).await.unwrap();
    assert_eq!(rig.stored().await, [1, 2, 3, 4, 5]);
}

#[tokio::test]
async fn nothing_goes_ahead_while_the_stream_stores_parts() {
    let rig = Rig::with(1..=3).await;
    let part = rig.archiver.archives.recent.sides().part().await;
    rig.offer(1).await.unwrap();
    assert_eq!(rig.stored().await, [1]);
    drop(part);
    rig.offer(2).await.unwrap();
    assert_eq!(rig.stored().await, [1, 2, 3]);
}

#[tokio::test]
async fn a_file_that_is_another_when_it_is_offered_is_looked_at_itself() {
    let rig = Rig::with(1..=2).await;
    rig.offer(1).await.unwrap();
    // Another inode: times of files may stand still for some milliseconds.
    let other = rig.folder.path().join("other");
    fs::write(&other, content(&rig.repository, 2, 9)).unwrap();
    fs::rename(&other, rig.path(2)).unwrap();
    let refused = rig.offer(2).await.unwrap_err();
    assert!(refused.to_string().contains(&segment(2).to_string()), "{refused}");
    assert_eq!(rig.stored().await, [1, 2]);
}

#[tokio::test]
async fn what_was_stored_long_ago_is_looked_at_once_more() {
    let rig = Rig::with(1..=2).await;
    rig.offer(1).await.unwrap();
    let known = rig.archiver.ahead.as_ref().unwrap().claim(segment(2)).await.unwrap();
    let stamp = wal_path::check_source(&rig.path(2), rig.repository.identity().system_identifier).unwrap().stamp;
    assert!(known.is_of(stamp));
    let Some(before) = Instant::now().checked_sub(FRESH) else { return };
    assert!(!Known { at: before, ..known }.is_of(stamp));
}

/// PostgreSQL learns of it when it offers the file, and nothing that comes later hides it.
#[tokio::test]
async fn what_fails_ahead_fails_when_it_is_offered_or_is_stored_then() {
    let rig = Rig::with(1..=8).await;
    rig.store.inject(Rule::new(Operation::Put, Fault::Fail(ErrorKind::Denied)).on(segment(2).to_string()));
    rig.offer(1).await.unwrap();
    assert!(!rig.stored().await.contains(&2));
    rig.offer(2).await.unwrap_err();
    rig.store.heal();
    rig.offer(2).await.unwrap();
    assert_eq!(rig.stored().await, [1, 2, 3, 4, 5, 6, 7, 8]);
}

/// Two servers with one past: what one has stored is the other's too, up to where they part.
#[tokio::test]
async fn nothing_is_stored_behind_a_segment_in_which_another_server_went_its_own_way() {
    let rig = Rig::with(1..=4).await;
    let put = |number, other| rig.repository.put_wal(WalFileName::Segment(segment(number)), content(&rig.repository, number, other));
    put(1, 0).await.unwrap();
    put(2, 9).await.unwrap();
    assert_eq!(rig.offer(1).await.unwrap(), Stored::Already);
    rig.offer(2).await.unwrap_err();
    for number in [3, 4] {
        let file = rig.repository.get_wal(WalFileName::Segment(segment(number))).await.unwrap();
        assert!(file.is_none(), "segment {number} is not stored");
    }
}

#[tokio::test]
async fn segments_too_large_for_the_memory_go_one_by_one() {
    let rig = Rig::with([]).await;
    let mut identity = rig.repository.identity().clone();
    identity.segment_size = SegmentSize::new(1 << 30).unwrap();
    let repository = ClusterRepository::new(rig.repository.repository().clone(), "main".parse().unwrap(), identity, 3);
    let (recent, metrics) = (Arc::new(Recent::default()), Arc::new(Metrics::new().unwrap()));
    let archiver = Archiver::new(Arc::new(repository), recent, metrics, Queue::nobody(), CancellationToken::new()).looking_ahead();
    assert!(archiver.ahead.is_none());
}
