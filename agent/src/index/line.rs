//! The index of one timeline, as it grows: summaries of the window under way, and when they are stored.

use std::sync::Arc;
use std::time::{Duration, Instant};

use walkeep_core::index::{BlockMap, BlocksName, Digest, DigestName, IndexedSegment, Indexer, Level, Run, Summary, cover};
use walkeep_core::{Lsn, SegmentNumber, SegmentSize, TimelineId, WalFileName};

use crate::repository::wal::WalFile;
use crate::repository::{ClusterRepository, Error, Result};

/// Segments after which what was learnt is stored.
const BATCH: usize = 16;
/// What was learnt is stored at the latest after this.
const AGE: Duration = Duration::from_secs(300);
/// How far back a new beginning reads, for transactions that were open and the record that was not whole.
const READ_BACK: u64 = 64;

/// The index of one timeline, as it grows.
#[derive(Debug)]
pub(super) struct Line {
    repository: Arc<ClusterRepository>,
    timeline: TimelineId,
    /// `None` while a segment is read on a blocking thread.
    indexer: Option<Indexer>,
    next: SegmentNumber,
    /// Of the window under way.
    summaries: Vec<Summary>,
    /// How many of them are not stored.
    pending: usize,
    /// Of these segments the blocks that they change. More than one where something is missing between: a map has no holes.
    maps: Vec<(Run, BlockMap)>,
    since: Instant,
}

impl Line {
    /// Begins at `first`, knowing nothing.
    pub(super) fn new(repository: Arc<ClusterRepository>, timeline: TimelineId, first: SegmentNumber) -> Self {
        let size = repository.identity().segment_size;
        Self {
            repository,
            timeline,
            indexer: Some(Indexer::new(first, size)),
            next: first,
            summaries: Vec::new(),
            pending: 0,
            maps: Vec::new(),
            since: Instant::now(),
        }
    }

    /// Goes on where the stored index ends, if that is at most `reach` segments before `wanted`; else at `wanted`.
    pub(super) async fn resume(
        repository: Arc<ClusterRepository>,
        timeline: TimelineId,
        wanted: SegmentNumber,
        reach: u64,
    ) -> Result<Self> {
        let size = repository.identity().segment_size;
        let oldest = Level::SEGMENTS.window(SegmentNumber::new(wanted.get().saturating_sub(reach))).first;
        let names = repository.list_digests(timeline, Level::SEGMENTS, Some(oldest.start(size))).await?;
        let Some(newest) = cover::best_of_each_window(&names, size).pop() else { return Ok(Self::new(repository, timeline, wanted)) };
        let digest = match repository.get_digest(newest).await {
            Ok(Some(digest)) => digest,
            Ok(None) => return Ok(Self::new(repository, timeline, wanted)),
            Err(Error::Corrupt { key, reason }) => {
                tracing::warn!(key, reason, "the newest digest of the index is damaged; the index goes on behind it");
                return Ok(Self::new(repository, timeline, wanted));
            }
            // The host's own copy is lost.
            Err(Error::CannotDecrypt { .. }) => return Ok(Self::new(repository, timeline, wanted)),
            Err(error) => return Err(error),
        };
        let mut line = Self::new(repository, timeline, newest.span(size).end);
        if line.next < Level::SEGMENTS.window(newest.span(size).first).end {
            line.summaries.clone_from(&digest.summaries);
        } else if let Some(above) = Level::SEGMENTS.above() {
            // The former agent may have died before it did.
            if let Some(last) = line.next.previous().filter(|last| above.window(*last) != above.window(line.next)) {
                line.fold(above, last).await;
            }
        }
        if let Some(last) = digest.summaries.last() {
            line.read_back(last).await?;
        }
        Ok(line)
    }

    /// Reads what came before once more, for what was open at the end of `last`.
    async fn read_back(&mut self, last: &Summary) -> Result<()> {
        let size = self.size();
        let (first, next) = (size.segment_of(last.resume_from()), self.next);
        let oldest = SegmentNumber::new(next.get().saturating_sub(READ_BACK));
        let mut indexer = match first >= oldest {
            true => Indexer::resume(last, size),
            false => Indexer::new(oldest, size),
        };
        while indexer.next() < next {
            let name = WalFileName::Segment(indexer.next().name(self.timeline, size));
            // The stream gives what comes; only what was open when an agent began is missing then.
            let read = stored(&self.repository, name).await;
            let Some(wal) = self.repository.if_readable(read, "what came before the index goes on")?.flatten() else {
                indexer.pass_over(next);
                break;
            };
            indexer = on_blocking_thread(move || {
                let read = indexer.segment(&wal.content);
                (indexer, read.is_ok())
            })
            .await?
            .0;
        }
        self.indexer = Some(indexer);
        Ok(())
    }

    fn size(&self) -> SegmentSize {
        self.repository.identity().segment_size
    }

    /// The segment that is wanted next.
    pub(super) fn next(&self) -> SegmentNumber {
        self.next
    }

    /// Up to where it tells, stored or not.
    pub(super) fn reaches(&self) -> Lsn {
        self.next.start(self.size())
    }

    /// Takes the segment wanted next. One that cannot be decoded is left out.
    pub(super) async fn take(&mut self, content: impl AsRef<[u8]> + Send + 'static) -> Result<()> {
        let number = self.next;
        let mut indexer = self.indexer.take().unwrap_or_else(|| Indexer::new(number, self.size()));
        self.next = number.next();
        let (indexer, indexed) = on_blocking_thread(move || {
            let indexed = indexer.segment(content.as_ref());
            (indexer, indexed)
        })
        .await?;
        self.indexer = Some(indexer);
        match indexed {
            Ok(indexed) => {
                if self.pending == 0 {
                    self.since = Instant::now();
                }
                self.pending += 1;
                self.summaries.push(indexed.summary.clone());
                self.add_to_map(number, indexed);
            }
            Err(error) => {
                let segment = number.name(self.timeline, self.size());
                tracing::warn!(%segment, %error, "it cannot be decoded, so the index leaves it out");
            }
        }
        if self.pending >= BATCH || self.is_window_over() {
            self.store().await?;
        }
        Ok(())
    }

    /// Adds to the map under way what a segment changes, or begins a new one with it.
    fn add_to_map(&mut self, number: SegmentNumber, indexed: IndexedSegment) {
        let rest = match self.maps.last_mut() {
            Some((run, map)) if run.end == number => match map.take(indexed) {
                Ok(()) => {
                    run.end = number.next();
                    return;
                }
                Err(indexed) => *indexed,
            },
            _ => indexed,
        };
        let mut map = BlockMap::default();
        if map.take(rest).is_ok() {
            self.maps.push((Run::single(number), map));
        }
    }

    /// What comes next begins at `next`: WAL between is missing, or too much to be read back now.
    pub(super) async fn pass_over(&mut self, next: SegmentNumber) -> Result<()> {
        self.store().await?;
        self.next = next;
        match &mut self.indexer {
            Some(indexer) => indexer.pass_over(next),
            None => self.indexer = Some(Indexer::new(next, self.size())),
        }
        self.leave_windows().await;
        Ok(())
    }

    /// Whether what was learnt has waited long enough.
    pub(super) fn is_due(&self) -> bool {
        self.pending > 0 && (self.pending >= BATCH || self.since.elapsed() >= AGE)
    }

    fn is_window_over(&self) -> bool {
        Level::SEGMENTS.window(self.next).first == self.next
    }

    /// Stores what was learnt and is not stored, and what finished windows add up to. Nothing is forgotten if that fails.
    pub(super) async fn store(&mut self) -> Result<()> {
        let size = self.size();
        if self.pending > 0 {
            // More than one where a window's end could not be stored in its time.
            let same_window = |one: &Summary, next: &Summary| window_of(one) == window_of(next);
            for summaries in self.summaries.chunk_by(same_window) {
                let Some(digest) = Digest::of(self.timeline, Level::SEGMENTS, summaries.to_vec(), size) else { continue };
                self.repository.put_digest(&digest).await?;
            }
            for (run, map) in &self.maps {
                let name = BlocksName { timeline: self.timeline, from: run.first.start(size), to: run.end.start(size) };
                self.repository.put_blocks(name, map).await?;
            }
            self.pending = 0;
            self.maps.clear();
        }
        self.leave_windows().await;
        Ok(())
    }

    /// Folds the windows that are behind, and forgets what was in them.
    async fn leave_windows(&mut self) {
        let now = Level::SEGMENTS.window(self.next).first;
        let behind = self.summaries.partition_point(|summary| summary.span().first < now);
        let left: Vec<SegmentNumber> = self.summaries.drain(..behind).map(|summary| summary.span().first).collect();
        for last in left.chunk_by(|one, next| Level::SEGMENTS.window(*one) == Level::SEGMENTS.window(*next)).filter_map(|of| of.last()) {
            let mut level = Level::SEGMENTS.above();
            while let Some(above) = level.filter(|level| level.window(*last) != level.window(self.next)) {
                self.fold(above, *last).await;
                level = above.above();
            }
        }
    }

    /// Not worth an error: what is not folded is read unfolded.
    async fn fold(&self, level: Level, number: SegmentNumber) {
        match fold(&self.repository, self.timeline, level, number).await {
            Ok(Some(name)) => tracing::debug!(digest = %name, "index: folded"),
            Ok(None) => {}
            Err(error) => tracing::warn!(%error, level = level.get(), "the index could not be folded"),
        }
    }
}

fn window_of(summary: &Summary) -> Run {
    Level::SEGMENTS.window(summary.span().first)
}

/// Makes the digest of `level` of the window that `number` lies in out of those below; `None` if there are none, or it is there.
pub async fn fold(repository: &ClusterRepository, timeline: TimelineId, level: Level, number: SegmentNumber) -> Result<Option<DigestName>> {
    let size = repository.identity().segment_size;
    let window = level.window(number);
    let Some(below) = level.below() else { return Ok(None) };
    let within = |names: Vec<DigestName>| {
        let names: Vec<_> = names.into_iter().filter(|name| name.to <= window.end.start(size)).collect();
        cover::best_of_each_window(&names, size)
    };
    if !within(repository.list_digests(timeline, level, Some(window.first.start(size))).await?).is_empty() {
        return Ok(None);
    }
    let mut children = within(repository.list_digests(timeline, below, Some(window.first.start(size))).await?);
    if below > Level::SEGMENTS {
        // What could not be folded in its time is folded now: else it would be left out for good.
        let is_there = |first: SegmentNumber| children.iter().any(|name| below.window(name.span(size).first).first == first);
        let windows = (window.first.get()..window.end.get()).step_by(below.segments() as usize).map(SegmentNumber::new);
        for first in windows.filter(|first| !is_there(*first)).collect::<Vec<_>>() {
            children.extend(Box::pin(fold(repository, timeline, below, first)).await?);
        }
        children.sort_by_key(|name| name.from);
    }
    let mut summaries = Vec::new();
    for name in children {
        if let Some(summary) = repository.get_digest(name).await?.and_then(|digest| digest.folded()) {
            summaries.push(summary);
        }
    }
    let Some(digest) = Digest::of(timeline, level, summaries, size) else { return Ok(None) };
    repository.put_digest(&digest).await?;
    Ok(Some(digest.name))
}

/// A stored segment; `None` if it is not there, or damaged, which is told.
pub(super) async fn stored(repository: &ClusterRepository, name: WalFileName) -> Result<Option<WalFile>> {
    match repository.get_wal(name).await {
        Err(Error::Corrupt { key, reason }) => {
            tracing::warn!(key, reason, "a segment is damaged: the index leaves it out");
            Ok(None)
        }
        read => read,
    }
}

async fn on_blocking_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|died| crate::repository::Error::Internal(died.to_string()))
}

#[cfg(test)]
mod tests {
    use walkeep_store::{ErrorKind, Fault, FaultyStore, MemoryStore, Operation, Rule};

    use super::*;
    use crate::repository::tests::{memory, over};

    /// Stores a digest of each window of 64 segments from `first` on.
    async fn digests(repository: &ClusterRepository, first: u64, windows: u64) {
        let size = repository.identity().segment_size;
        for window in 0..windows {
            let summary = |number: u64| {
                let number = SegmentNumber::new(number);
                let mut summary = Summary::empty(number, number.start(size));
                summary.records.to = number.end(size);
                summary
            };
            let begin = first + window * 64;
            let summaries = (begin..begin + 64).map(summary).collect();
            let digest = Digest::of(TimelineId::FIRST, Level::SEGMENTS, summaries, size).unwrap();
            repository.put_digest(&digest).await.unwrap();
        }
    }

    /// Else its segments would be left out of the index for good, as nobody asks the lower levels where a higher one tells.
    #[tokio::test]
    async fn what_was_not_folded_in_its_time_is_folded_with_the_level_above() {
        let (repository, _) = memory().await;
        let (one, two) = (Level::new(1).unwrap(), Level::TOP);
        let last = two.segments() - one.segments();
        digests(&repository, 0, 32).await;
        digests(&repository, last, 32).await;
        assert!(fold(&repository, TimelineId::FIRST, one, SegmentNumber::new(last)).await.unwrap().is_some());
        let name = fold(&repository, TimelineId::FIRST, two, SegmentNumber::new(0)).await.unwrap().unwrap();
        let digest = repository.get_digest(name).await.unwrap().unwrap();
        let runs: Vec<_> =
            digest.summaries.iter().flat_map(|summary| &summary.segments).map(|run| (run.first.get(), run.end.get())).collect();
        assert_eq!(runs, [(0, one.segments()), (last, two.segments())]);
        assert_eq!(repository.list_digests(TimelineId::FIRST, one, None).await.unwrap().len(), 2);
        assert!(fold(&repository, TimelineId::FIRST, two, SegmentNumber::new(0)).await.unwrap().is_none(), "it is there");
    }

    /// An outage of the store at a window's end must not leave a hole in the index.
    #[tokio::test]
    async fn a_windows_end_that_could_not_be_stored_is_stored_later() {
        let store = Arc::new(FaultyStore::new(Arc::new(MemoryStore::new())));
        let repository = Arc::new(over(store.clone()).await);
        let size = repository.identity().segment_size;
        let mut line = Line::new(repository.clone(), TimelineId::FIRST, SegmentNumber::new(60));
        let learn = |line: &mut Line, number: u64| {
            let mut summary = Summary::empty(SegmentNumber::new(number), SegmentNumber::new(number).start(size));
            summary.records.to = SegmentNumber::new(number).end(size);
            line.summaries.push(summary);
            line.pending += 1;
            line.next = SegmentNumber::new(number + 1);
        };
        store.inject(Rule::new(Operation::Put, Fault::Fail(ErrorKind::Denied)));
        (60..64).for_each(|number| learn(&mut line, number));
        assert!(line.store().await.is_err());
        (64..67).for_each(|number| learn(&mut line, number));
        assert!(line.store().await.is_err());
        store.heal();
        line.store().await.unwrap();
        let names = repository.list_digests(TimelineId::FIRST, Level::SEGMENTS, None).await.unwrap();
        let spans: Vec<_> =
            names.iter().map(|name| (name.is_sound(size), name.span(size).first.get(), name.span(size).end.get())).collect();
        assert_eq!(spans, [(true, 60, 64), (true, 64, 67)]);
        assert_eq!((line.pending, line.summaries.len()), (0, 3), "what is behind is forgotten");
    }

    /// Else what the segment between changes would be taken for unchanged.
    #[tokio::test]
    async fn a_map_of_blocks_has_no_hole_though_it_could_not_be_stored_in_time() {
        let store = Arc::new(FaultyStore::new(Arc::new(MemoryStore::new())));
        let repository = Arc::new(over(store.clone()).await);
        let (size, first) = (repository.identity().segment_size, SegmentNumber::new(6));
        let wal = zstd::decode_all(&include_bytes!("../../core/tests/fixtures/wal-15.bin")[..]).unwrap();
        let segment = |number: usize| wal[number << 20..(number + 1) << 20].to_vec();
        let mut line = Line::new(repository.clone(), TimelineId::FIRST, first);
        store.inject(Rule::new(Operation::Put, Fault::Fail(ErrorKind::Denied)));
        line.take(segment(0)).await.unwrap();
        let _ = line.take(vec![7; 1 << 20]).await;
        let mut last = Indexer::new(line.next(), size);
        let indexed = last.segment(&shifted(&segment(0), 2)).unwrap();
        line.take(shifted(&segment(0), 2)).await.unwrap();
        store.heal();
        line.store().await.unwrap();
        let names = repository.list_blocks(TimelineId::FIRST, None).await.unwrap();
        let spans: Vec<_> = names.iter().map(|name| (size.segment_of(name.from).get(), size.segment_of(name.to).get())).collect();
        assert_eq!(spans, [(6, 7), (8, 9)]);
        let map = repository.get_blocks(names[1]).await.unwrap().unwrap();
        assert_eq!((map.records, map.changes), (Some(indexed.summary.records), indexed.blocks));
    }

    /// The segment as if it were so many later, all its pages but the first being unwritten.
    fn shifted(segment: &[u8], by: u64) -> Vec<u8> {
        let mut bytes = vec![0; segment.len()];
        bytes[..24].copy_from_slice(&segment[..24]);
        bytes[24..40].copy_from_slice(&segment[24..40]);
        // No unfinished record at its beginning, and none in it.
        bytes[2] &= !1;
        let start = u64::from_le_bytes(bytes[8..16].try_into().unwrap()) + (by << 20);
        bytes[8..16].copy_from_slice(&start.to_le_bytes());
        bytes[16..20].fill(0);
        bytes
    }

    #[tokio::test]
    async fn a_damaged_segment_does_not_keep_a_new_agent_from_going_on() {
        let (repository, store) = memory().await;
        let (repository, size) = (Arc::new(repository), SegmentSize::new(1 << 20).unwrap());
        let mut summary = Summary::empty(SegmentNumber::new(2), SegmentNumber::new(2).start(size));
        summary.open_since = Some(SegmentNumber::new(1).start(size));
        repository.put_digest(&Digest::of(TimelineId::FIRST, Level::SEGMENTS, vec![summary], size).unwrap()).await.unwrap();
        let name = WalFileName::Segment(SegmentNumber::new(1).name(TimelineId::FIRST, size));
        store.overwrite(&repository.layout().wal_key(name).parse().unwrap(), bytes::Bytes::from_static(b"garbage"));
        let line = Line::resume(repository, TimelineId::FIRST, SegmentNumber::new(5), 100).await.unwrap();
        assert_eq!(line.next().get(), 3);
    }
}
