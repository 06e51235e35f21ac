//! Removes parts that nobody needs any more, a while after what took their place was stored.
//!
//! A reader lists parts and then reads them; the grace is for whoever has just listed. What is not removed does no harm, so nothing waits for
//! it: what an agent leaves behind the next one removes when it begins.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;
use walkeep_core::layout::PartName;
use walkeep_core::{SegmentName, WalFileName};
use walkeep_store::ErrorKind;

use crate::repository::{ClusterRepository, Error};

/// From the moment a part is not needed to its removal.
const GRACE: Duration = Duration::from_secs(10);

/// Where names of parts are brought to.
#[derive(Debug, Clone)]
pub(super) struct Reaper(mpsc::UnboundedSender<Work>);

#[derive(Debug)]
enum Work {
    /// What took the place of these is stored since this moment.
    Replaced(Instant, Vec<PartName>),
    /// It is stored whole since this moment, and perhaps in parts that an earlier agent left.
    Leftovers(Instant, SegmentName),
}

impl Reaper {
    /// Begins to work; ends when `stop` fires or nobody can bring anything any more.
    pub(super) fn start(repository: Arc<ClusterRepository>, stop: CancellationToken) -> Self {
        let (names, queue) = mpsc::unbounded_channel();
        tokio::spawn(async move { stop.run_until_cancelled(work(repository, queue)).await }.in_current_span());
        Self(names)
    }

    /// What took the place of these parts is stored.
    pub(super) fn replaced(&self, parts: Vec<PartName>) {
        if !parts.is_empty() {
            self.bring(Work::Replaced(Instant::now(), parts));
        }
    }

    /// This segment is stored whole, and perhaps in parts that an earlier agent left.
    pub(super) fn leftovers(&self, segment: SegmentName) {
        self.bring(Work::Leftovers(Instant::now(), segment));
    }

    fn bring(&self, work: Work) {
        // It ends only where the agent ends.
        let _ = self.0.send(work);
    }
}

async fn work(repository: Arc<ClusterRepository>, mut queue: mpsc::UnboundedReceiver<Work>) {
    while let Some(work) = queue.recv().await {
        let done = match work {
            Work::Replaced(since, parts) => {
                tokio::time::sleep_until(since + GRACE).await;
                remove(&repository, &parts).await
            }
            Work::Leftovers(since, segment) => {
                tokio::time::sleep_until(since + GRACE).await;
                remove_leftovers(&repository, segment).await
            }
        };
        match done {
            Ok(()) => {}
            Err(Error::Store(error)) if error.kind() == ErrorKind::Denied => {
                tracing::warn!(
                    error = %error,
                    "parts that are not needed any more cannot be removed; they do no harm. To have them removed allow it (packaging/iam has a \
                     policy), and start the agent anew"
                );
                // What comes is dropped: no request that is known to be refused.
                queue.close();
                while queue.recv().await.is_some() {}
            }
            Err(error) => tracing::debug!(%error, "a part stays that is not needed any more"),
        }
    }
}

async fn remove(repository: &ClusterRepository, parts: &[PartName]) -> Result<(), Error> {
    let mut failed = None;
    for part in parts {
        match repository.remove_part(*part).await {
            Ok(()) => {
                tracing::debug!(segment = %part.segment, from = part.from, to = part.to, "removed a part that is not needed any more")
            }
            Err(Error::Store(error)) if error.kind() == ErrorKind::Denied => return Err(error.into()),
            // Of several repositories one may be out of reach: in the others the rest goes all the same.
            Err(error) => drop(failed.get_or_insert(error)),
        }
    }
    failed.map_or(Ok(()), Err)
}

/// Whoever left them, and whoever stored the segment: only what is the same as there goes.
async fn remove_leftovers(repository: &ClusterRepository, segment: SegmentName) -> Result<(), Error> {
    let parts = repository.list_parts(segment).await?;
    if parts.is_empty() {
        return Ok(());
    }
    let whole = repository.get_wal(WalFileName::Segment(segment)).await;
    let Some(Some(whole)) = repository.if_readable(whole, "parts with the segment that took their place: they stay")? else {
        return Ok(());
    };
    for part in parts {
        let content = repository.get_part(part).await?.content;
        if whole.content.get(part.from as usize..part.to as usize) == Some(&content[..]) {
            remove(repository, &[part]).await?;
        } else {
            tracing::error!(
                %segment, from = part.from, to = part.to,
                "a part is not the same as the segment that is stored whole: two servers wrote this archive. It is kept"
            );
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use walkeep_store::{Fault, FaultyStore, MemoryStore, Operation, Rule};

    use super::*;
    use crate::repository::tests::{over, segment};

    const SIZE: usize = 1 << 20;

    async fn repository() -> (Arc<ClusterRepository>, Arc<FaultyStore>) {
        let store = Arc::new(FaultyStore::new(Arc::new(MemoryStore::new())));
        (Arc::new(over(store.clone()).await), store)
    }

    async fn put(repository: &ClusterRepository, from: u32, to: u32, byte: u8) -> PartName {
        let part = PartName { segment: segment(1), from, to, epoch: 1 };
        repository.put_part(part, Bytes::from(vec![byte; (to - from) as usize])).await.unwrap();
        part
    }

    /// Until the queue is empty and its last work done.
    async fn finish(reaper: Reaper, stop: CancellationToken) {
        tokio::time::sleep(GRACE * 5).await;
        drop(reaper);
        stop.cancel();
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_replaced_goes_after_the_grace() {
        let (repository, _) = repository().await;
        let stop = CancellationToken::new();
        let reaper = Reaper::start(repository.clone(), stop.clone());
        let (old, new) = (put(&repository, 0, 10, 1).await, put(&repository, 0, 20, 1).await);
        reaper.replaced(vec![old]);
        tokio::time::sleep(GRACE / 2).await;
        assert_eq!(repository.list_parts(segment(1)).await.unwrap(), [old, new], "a reader may have listed it just now");
        finish(reaper, stop).await;
        assert_eq!(repository.list_parts(segment(1)).await.unwrap(), [new]);
    }

    #[tokio::test(start_paused = true)]
    async fn leftovers_go_only_if_the_segment_has_the_same() {
        let (repository, _) = repository().await;
        let stop = CancellationToken::new();
        let reaper = Reaper::start(repository.clone(), stop.clone());
        repository.put_wal(WalFileName::Segment(segment(1)), Bytes::from(vec![1; SIZE])).await.unwrap();
        put(&repository, 0, 10, 1).await;
        let other = put(&repository, 10, 20, 2).await;
        reaper.leftovers(segment(1));
        // Not stored whole: all it has are its parts.
        let only = PartName { segment: segment(2), from: 0, to: 5, epoch: 1 };
        repository.put_part(only, Bytes::from(vec![1; 5])).await.unwrap();
        reaper.leftovers(segment(2));
        finish(reaper, stop).await;
        assert_eq!(repository.list_parts(segment(1)).await.unwrap(), [other]);
        assert_eq!(repository.list_parts(segment(2)).await.unwrap(), [only]);
    }

    #[tokio::test(start_paused = true)]
    async fn denied_once_it_asks_no_more() {
        let (repository, store) = repository().await;
        store.inject(Rule::new(Operation::Delete, Fault::Fail(ErrorKind::Denied)));
        let stop = CancellationToken::new();
        let reaper = Reaper::start(repository.clone(), stop.clone());
        let parts = [put(&repository, 0, 10, 1).await, put(&repository, 10, 20, 1).await];
        reaper.replaced(vec![parts[0]]);
        tokio::time::sleep(GRACE * 2).await;
        reaper.replaced(vec![parts[1]]);
        finish(reaper, stop).await;
        assert_eq!(store.count(Operation::Delete), 1);
        assert_eq!(repository.list_parts(segment(1)).await.unwrap(), parts);
    }
}
