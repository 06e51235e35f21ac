//! Into the repository side by side, acknowledged in order.
//!
//! What the stream hands over (whole segments, and parts of the one being received) is stored with bounded parallelism, each tried again until it
//! succeeds or cannot. The answer "durable up to here" is given in the order of handing over, so it never runs ahead of a slower
//! neighbour.
//!
//! Whole segments may overtake each other, with two exceptions, in which what is behind waits until all before is stored:
//!
//! - The first segment goes alone. If its name holds other content, another server has gone another way from there on, and nothing behind it
//!   may be stored: it would be mixed with the other's WAL.
//! - Nothing is put behind a segment that is stored in parts only, and no part behind a segment that is not stored. What was confirmed out of
//!   parts is restored from them only where nothing lies behind: else there is a hole, at which a recovery must stop. Should agent and server
//!   be lost together, this very moment counts.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesOrdered;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};
use tracing::Instrument;
use walkeep_core::SegmentName;
use walkeep_core::layout::PartName;
use walkeep_core::parts::Step;
use walkeep_core::resume::Position;

use super::lease::Lease;
use super::reaper::Reaper;
use crate::index::Queue;
use crate::metrics::{Metrics, Source};
use crate::recent::Recent;
use crate::repository::wal::Stored;
use crate::repository::{ClusterRepository, Error};
use crate::retry::{Backoff, retry};
use crate::spool::Spool;

/// What an upload needs besides the bytes.
#[derive(Debug, Clone)]
pub struct Destination {
    /// Where to.
    pub repository: Arc<ClusterRepository>,
    /// Where whole segments wait.
    pub spool: Spool,
    /// What was stored lately, for the archive command's question.
    pub recent: Arc<Recent>,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Where parts go that nobody needs any more.
    pub reaper: Reaper,
    /// Where segments go to be indexed.
    pub index: Queue,
}

/// Uploads under way.
#[derive(Debug)]
pub struct Uploads {
    to: Destination,
    permits: Arc<Semaphore>,
    cancel: CancellationToken,
    /// How many whole segments were handed over.
    segments: usize,
    /// How many of them were stored.
    stored: watch::Sender<usize>,
    /// So many must be stored before another one begins.
    barrier: usize,
    under_way: FuturesOrdered<AbortOnDropHandle<Result<Done, Error>>>,
    /// Every task, to wait for the last.
    tasks: TaskTracker,
}

/// What was stored.
#[derive(Debug)]
struct Done {
    /// The position after it.
    end: Position,
    /// Whose place it took.
    replaces: Replaced,
}

/// What nobody needs any more once something is stored.
#[derive(Debug)]
pub enum Replaced {
    /// These parts, which this agent stored.
    Parts(Vec<PartName>),
    /// All parts of the segment that are the same as its bytes, those too that an earlier agent did not live to remove.
    AllParts(SegmentName),
    /// These parts, which this host cannot read, or the whole segment, which it cannot either. What takes their place is compared by fingerprints, before a
    /// lease is taken: whoever is refused by that shall have disturbed nobody.
    Unread(Vec<PartName>),
}

impl Replaced {
    /// Whether there may be parts of the segment.
    fn is_any(&self) -> bool {
        match self {
            Self::Parts(parts) => !parts.is_empty(),
            Self::AllParts(_) | Self::Unread(_) => true,
        }
    }
}

impl Uploads {
    /// At most `parallelism` at a time; all end when `cancel` fires.
    pub fn new(to: Destination, parallelism: usize, cancel: CancellationToken) -> Self {
        let permits = Arc::new(Semaphore::new(parallelism));
        Self {
            to,
            permits,
            cancel,
            segments: 0,
            stored: watch::Sender::new(0),
            barrier: 0,
            under_way: FuturesOrdered::new(),
            tasks: TaskTracker::new(),
        }
    }

    /// Where parts go that nobody needs any more.
    pub fn reaper(&self) -> Reaper {
        self.to.reaper.clone()
    }

    /// How many are not yet acknowledged.
    pub fn len(&self) -> usize {
        self.under_way.len()
    }

    /// Whether all are acknowledged.
    pub fn is_empty(&self) -> bool {
        self.under_way.is_empty()
    }

    /// Stores a whole segment from the spool, then removes it there, and later what it `replaces`. `end` is the position after it. With a lease, only
    /// under it.
    pub(super) fn segment(&mut self, segment: SegmentName, end: Position, replaces: Replaced, lease: Option<Arc<Lease>>) {
        let (to, permits, cancel) = (self.to.clone(), self.permits.clone(), self.cancel.clone());
        let in_parts = replaces.is_any();
        let compare = lease.is_none() || matches!(replaces, Replaced::Unread(_));
        let turn = self.turn(if in_parts { self.segments } else { self.barrier });
        let stored = self.stored.clone();
        self.segments += 1;
        if in_parts || self.segments == 1 {
            self.barrier = self.segments;
        }
        self.push(async move {
            turn.wait(&cancel, segment).await?;
            let _permit = permits.acquire_owned().await;
            store_segment(&to, segment, lease.as_deref(), compare, &cancel).await?;
            stored.send_modify(|stored| *stored += 1);
            Ok(Done { end, replaces })
        });
    }

    /// Stores bytes of the segment being received, and later removes the parts whose place they take. `end` is the position after them. With `compare`, what is
    /// stored of the segment is compared first.
    pub(super) fn part(&mut self, step: Step, content: Bytes, end: Position, lease: Option<Arc<Lease>>, compare: bool) {
        let Step { part, replaces } = step;
        let (to, permits, cancel) = (self.to.clone(), self.permits.clone(), self.cancel.clone());
        let turn = self.turn(self.segments);
        self.push(async move {
            turn.wait(&cancel, part.segment).await?;
            let _permit = permits.acquire_owned().await;
            let _side = to.recent.sides().part().await;
            let put = || async {
                if compare {
                    to.repository.compare_with_parts(part.segment, &content).await?;
                }
                assure(lease.as_deref()).await?;
                to.repository.put_part(part, content.clone()).await
            };
            let stored = retried(&to, &format!("storing part {:08X}-{:08X} of {}", part.from, part.to, part.segment), &cancel, put).await?;
            to.metrics.stored(Source::Part, stored);
            Ok(Done { end, replaces: Replaced::Parts(replaces) })
        });
    }

    /// Ends all that is under way and waits until it has ended: nobody takes anything from the spool afterwards. A put that was cut off may
    /// have created its object.
    pub async fn end(mut self) {
        self.cancel.cancel();
        self.under_way.clear();
        self.tasks.close();
        self.tasks.wait().await;
    }

    fn push(&mut self, upload: impl Future<Output = Result<Done, Error>> + Send + 'static) {
        self.under_way.push_back(AbortOnDropHandle::new(self.tasks.spawn(upload.in_current_span())));
    }

    /// A count is enough: a segment behind a part of its own, or behind a barrier, waits as well, so the first `after` to be stored are those that
    /// were handed over first.
    fn turn(&self, after: usize) -> Turn {
        Turn { after, stored: self.stored.subscribe() }
    }

    /// The next acknowledgement, in order: everything handed over up to this position is durable. Never ready while nothing is under way.
    /// Safe to drop and call again.
    pub async fn next(&mut self) -> Result<Position, Error> {
        match self.under_way.next().await {
            // In order: what is replaced was stored before, and is not stored once more after it was removed.
            Some(Ok(Ok(Done { end, replaces }))) => {
                match replaces {
                    Replaced::Parts(parts) | Replaced::Unread(parts) => self.to.reaper.replaced(parts),
                    Replaced::AllParts(segment) => self.to.reaper.leftovers(segment),
                }
                Ok(end)
            }
            Some(Ok(Err(error))) => Err(error),
            Some(Err(died)) => Err(Error::Internal(format!("an upload died: {died}"))),
            None => std::future::pending().await,
        }
    }
}

/// When an upload may begin: when so many segments are stored, which are those handed over first.
struct Turn {
    after: usize,
    stored: watch::Receiver<usize>,
}

impl Turn {
    async fn wait(mut self, cancel: &CancellationToken, segment: SegmentName) -> Result<(), Error> {
        tokio::select! {
            waited = self.stored.wait_for(|stored| *stored >= self.after) => waited.map(drop).map_err(|_| Error::cancelled("put", segment)),
            () = cancel.cancelled() => Err(Error::cancelled("put", segment)),
        }
    }
}

async fn assure(lease: Option<&Lease>) -> Result<(), Error> {
    match lease {
        Some(lease) => lease.assure().await,
        None => Ok(()),
    }
}

async fn store_segment(
    to: &Destination,
    segment: SegmentName,
    lease: Option<&Lease>,
    compare: bool,
    cancel: &CancellationToken,
) -> Result<(), Error> {
    let spool = to.spool.clone();
    let hashed = tokio::task::spawn_blocking(move || spool.hash(segment)).await;
    let hash = hashed.map_err(|died| Error::Internal(died.to_string()))?.map_err(|error| Error::Internal(format!("{error:#}")))?;
    let _turn = to.recent.turn(segment).await;
    if to.recent.hash_of(segment) == Some(hash) {
        tracing::debug!(%segment, "archive_command brought it first");
        remove_from_spool(to, segment);
        return Ok(());
    }
    let began = Instant::now();
    let path = to.spool.path(segment);
    let packed = to.repository.pack_segment(segment, hash, move || std::fs::File::open(path)).await?;
    let put = || async {
        // Another writer may have followed, and gone another way.
        if compare {
            if to.repository.has_segment(segment, hash).await? {
                return Ok(Stored::Already);
            }
            compare_with_parts(to, segment).await?;
        }
        assure(lease).await?;
        to.repository.put_segment(&packed).await
    };
    let stored = retried(to, &format!("storing {segment}"), cancel, put).await?;
    to.metrics.stored(Source::Stream, stored);
    to.recent.note(segment, hash);
    // Opened before it is removed: the index reads it in its own time.
    to.index.offer(segment, || std::fs::File::open(to.spool.path(segment)));
    match stored {
        Stored::New { bytes } => tracing::info!(%segment, bytes, ms = began.elapsed().as_millis() as u64, "stored"),
        Stored::Already => tracing::info!(%segment, "was stored already, with the same content"),
    }
    remove_from_spool(to, segment);
    Ok(())
}

async fn compare_with_parts(to: &Destination, segment: SegmentName) -> Result<(), Error> {
    let spool = to.spool.clone();
    let read = tokio::task::spawn_blocking(move || spool.read(segment)).await;
    let content = read.map_err(|died| Error::Internal(died.to_string()))?.map_err(|error| Error::Internal(format!("{error:#}")))?;
    to.repository.compare_with_parts(segment, &content).await
}

fn remove_from_spool(to: &Destination, segment: SegmentName) {
    if let Err(error) = to.spool.remove(segment) {
        tracing::warn!(%segment, error = %format_args!("{error:#}"), "it is stored, but stays in the spool");
    }
}

async fn retried<F, Fut>(to: &Destination, what: &str, cancel: &CancellationToken, put: F) -> Result<Stored, Error>
where
    F: Fn() -> Fut,
    Fut: Future<Output = Result<Stored, Error>>,
{
    let counted = async || put().await.inspect_err(|error| to.metrics.refused(error));
    retry(what, Backoff::FOREVER, cancel, Error::is_mendable, counted).await
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use walkeep_core::{Lsn, TimelineId};
    use walkeep_store::{ErrorKind, Fault, FaultyStore, MemoryStore, Operation, Rule};

    use super::*;
    use crate::repository::tests::{over, segment};

    const SIZE: u64 = 1 << 20;

    /// A spool with these segments, uploads out of it, and the store below.
    async fn uploads(folder: &std::path::Path, segments: &[u64]) -> (Uploads, Arc<FaultyStore>) {
        let store = Arc::new(FaultyStore::new(Arc::new(MemoryStore::new())));
        let repository = Arc::new(over(store.clone()).await);
        let spool = Spool::open(&folder.join("spool"), repository.identity().segment_size).unwrap();
        for number in segments {
            let mut writer = spool.create(segment(*number)).unwrap();
            writer.append(&vec![*number as u8; SIZE as usize]).unwrap();
            writer.seal().unwrap();
        }
        let reaper = Reaper::start(repository.clone(), CancellationToken::new());
        let (recent, metrics) = (Arc::default(), Arc::new(Metrics::new().unwrap()));
        (
            Uploads::new(Destination { repository, spool, recent, metrics, reaper, index: Queue::nobody() }, 4, CancellationToken::new()),
            store,
        )
    }

    fn whole(uploads: &mut Uploads, number: u64, parts: Vec<PartName>) {
        let end = Position { timeline: TimelineId::FIRST, lsn: Lsn::new((number + 1) * SIZE) };
        uploads.segment(segment(number), end, Replaced::Parts(parts), None);
    }

    fn part(uploads: &mut Uploads, number: u64, from: u32, to: u32) -> PartName {
        let part = PartName { segment: segment(number), from, to, epoch: 1 };
        let end = Position { timeline: TimelineId::FIRST, lsn: Lsn::new(number * SIZE + u64::from(to)) };
        uploads.part(Step { part, replaces: Vec::new() }, Bytes::from(vec![number as u8; (to - from) as usize]), end, None, false);
        part
    }

    /// Until all is acknowledged: the keys, in the order in which they were put for good.
    async fn order(uploads: &mut Uploads, store: &FaultyStore, segments: &[u64]) -> Vec<u64> {
        while !uploads.is_empty() {
            uploads.next().await.unwrap();
        }
        let puts = store.calls().into_iter().filter(|(operation, _)| *operation == Operation::Put).map(|(_, key)| key);
        let numbers = puts.filter_map(|key| segments.iter().copied().find(|number| key.contains(&segment(*number).to_string())));
        numbers.collect()
    }

    /// Whoever loses agent and server must find nothing behind what was confirmed of a segment: that would be a hole.
    #[tokio::test(start_paused = true)]
    async fn nothing_is_put_behind_a_segment_that_is_stored_in_parts_only() {
        let folder = tempfile::tempdir().unwrap();
        let (mut uploads, store) = uploads(folder.path(), &[1, 2, 3]).await;
        whole(&mut uploads, 1, Vec::new());
        uploads.next().await.unwrap();
        let known = part(&mut uploads, 2, 0, 100);
        uploads.next().await.unwrap();
        store.inject(Rule::new(Operation::Put, Fault::Fail(ErrorKind::Transient)).on(format!("{}.zst", segment(2))).times(3));
        whole(&mut uploads, 2, vec![known]);
        whole(&mut uploads, 3, Vec::new());
        part(&mut uploads, 4, 0, 100);
        assert_eq!(order(&mut uploads, &store, &[2, 3, 4]).await, [2, 2, 2, 2, 2, 3, 4]);
    }

    /// Nor a part of a segment before those in front of it are stored.
    #[tokio::test(start_paused = true)]
    async fn parts_wait_for_the_segments_before() {
        let folder = tempfile::tempdir().unwrap();
        let (mut uploads, store) = uploads(folder.path(), &[1, 2, 3]).await;
        whole(&mut uploads, 1, Vec::new());
        uploads.next().await.unwrap();
        store.inject(Rule::new(Operation::Put, Fault::Fail(ErrorKind::Transient)).on(format!("{}.zst", segment(2))));
        whole(&mut uploads, 2, Vec::new());
        whole(&mut uploads, 3, Vec::new());
        part(&mut uploads, 4, 0, 100);
        let is_put =
            |number: u64| store.calls().iter().any(|(done, key)| *done == Operation::Put && key.contains(&segment(number).to_string()));
        // Whole segments need not wait: nothing of them is confirmed before their turn.
        while !is_put(3) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        // Time enough for what does not wait.
        tokio::time::sleep(Duration::from_secs(600)).await;
        assert!(!is_put(4), "the segment before is not stored");
        store.heal();
        assert_eq!(order(&mut uploads, &store, &[2, 3, 4]).await.last(), Some(&4));
    }
}
