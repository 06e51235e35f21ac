//! Into the repository side by side, acknowledged in order.
//!
//! What the stream hands over (whole segments, and parts of the one being received) is stored with bounded parallelism, each tried again until it
//! succeeds or cannot. The answer "durable up to here" is given in the order of handing over, so it never runs ahead of a slower
//! neighbour.
//!
//! The first segment goes alone. If its name holds other content, another server has gone another way from there on, and nothing
//! behind it may be stored: it would be mixed with the other's WAL.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesOrdered;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};
use walkeep_core::SegmentName;
use walkeep_core::layout::PartName;
use walkeep_core::parts::Step;
use walkeep_core::resume::Position;

use super::lease::Lease;
use super::reaper::Reaper;
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
}

/// Uploads under way.
#[derive(Debug)]
pub struct Uploads {
    to: Destination,
    permits: Arc<Semaphore>,
    cancel: CancellationToken,
    /// The first segment was handed over.
    begun: bool,
    /// The first segment was stored.
    proven: watch::Sender<bool>,
    under_way: FuturesOrdered<AbortOnDropHandle<Result<Done, Error>>>,
    /// Every task, to wait for the last.
    tasks: TaskTracker,
}

/// What was stored.
#[derive(Debug)]
struct Done {
    /// The position after it.
    end: Position,
    /// Parts whose place it took.
    replaces: Vec<PartName>,
}

impl Uploads {
    /// At most `parallelism` at a time; all end when `cancel` fires.
    pub fn new(to: Destination, parallelism: usize, cancel: CancellationToken) -> Self {
        let permits = Arc::new(Semaphore::new(parallelism));
        Self {
            to,
            permits,
            cancel,
            begun: false,
            proven: watch::Sender::new(false),
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

    /// Stores a whole segment from the spool, then removes it there, and later its `parts`. `end` is the position after it.
    /// With a lease, only under it.
    pub(super) fn segment(&mut self, segment: SegmentName, end: Position, parts: Vec<PartName>, lease: Option<Arc<Lease>>) {
        let (to, permits, cancel) = (self.to.clone(), self.permits.clone(), self.cancel.clone());
        let turn = self.turn();
        let (first, proven) = (!self.begun, self.proven.clone());
        self.begun = true;
        self.push(async move {
            turn.wait(&cancel, segment).await?;
            let _permit = permits.acquire_owned().await;
            store_segment(&to, segment, lease.as_deref(), &cancel).await?;
            if first {
                proven.send_replace(true);
            }
            Ok(Done { end, replaces: parts })
        });
    }

    /// Stores bytes of the segment being received, and later removes the parts whose place they take. `end` is the position after them.
    pub(super) fn part(&mut self, step: Step, content: Bytes, end: Position, lease: Option<Arc<Lease>>) {
        let Step { part, replaces } = step;
        let (to, permits, cancel) = (self.to.clone(), self.permits.clone(), self.cancel.clone());
        let turn = self.turn();
        self.push(async move {
            turn.wait(&cancel, part.segment).await?;
            let _permit = permits.acquire_owned().await;
            let put = || async {
                assure(lease.as_deref()).await?;
                to.repository.put_part(part, content.clone()).await
            };
            let stored = retried(&to, &format!("storing part {:08X}-{:08X} of {}", part.from, part.to, part.segment), &cancel, put).await?;
            to.metrics.stored(Source::Part, stored);
            Ok(Done { end, replaces })
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
        self.under_way.push_back(AbortOnDropHandle::new(self.tasks.spawn(upload)));
    }

    fn turn(&self) -> Turn {
        Turn(self.begun.then(|| self.proven.subscribe()))
    }

    /// The next acknowledgement, in order: everything handed over up to this position is durable. Never ready while nothing is under way.
    /// Safe to drop and call again.
    pub async fn next(&mut self) -> Result<Position, Error> {
        match self.under_way.next().await {
            // In order: what is replaced was stored before, and is not stored once more after it was removed.
            Some(Ok(Ok(Done { end, replaces }))) => {
                self.to.reaper.replaced(replaces);
                Ok(end)
            }
            Some(Ok(Err(error))) => Err(error),
            Some(Err(died)) => Err(Error::Internal(format!("an upload died: {died}"))),
            None => std::future::pending().await,
        }
    }
}

/// When an upload may begin: at once, or when the first segment is stored.
struct Turn(Option<watch::Receiver<bool>>);

impl Turn {
    async fn wait(self, cancel: &CancellationToken, segment: SegmentName) -> Result<(), Error> {
        let Some(mut proven) = self.0 else { return Ok(()) };
        tokio::select! {
            waited = proven.wait_for(|proven| *proven) => waited.map(drop).map_err(|_| Error::cancelled("put", segment)),
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

async fn store_segment(to: &Destination, segment: SegmentName, lease: Option<&Lease>, cancel: &CancellationToken) -> Result<(), Error> {
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
        assure(lease).await?;
        to.repository.put_segment(&packed).await
    };
    let stored = retried(to, &format!("storing {segment}"), cancel, put).await?;
    to.metrics.stored(Source::Stream, stored);
    to.recent.note(segment, hash);
    match stored {
        Stored::New { bytes } => tracing::info!(%segment, bytes, ms = began.elapsed().as_millis() as u64, "stored"),
        Stored::Already => tracing::info!(%segment, "was stored already, with the same content"),
    }
    remove_from_spool(to, segment);
    Ok(())
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
    let counted = async || put().await.inspect_err(|error| to.metrics.error(error.kind()));
    retry(what, Backoff::FOREVER, cancel, Error::is_mendable, counted).await
}
