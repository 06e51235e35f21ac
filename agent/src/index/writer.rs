//! Makes the index while WAL is archived: takes segments as they are stored, in order, and reads back what it missed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::{StreamExt, stream};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use walkeep_core::{SegmentName, SegmentNumber, TimelineId, WalFileName};

use super::line::{Line, stored};
use super::{Content, Offered};
use crate::metrics::Metrics;
use crate::repository::{ClusterRepository, Result};
use crate::wal_path::Stamp;

/// How far behind the index may be and still be completed by reading back, in segments. Beyond that `walkeep index --rebuild` is for it.
const REACH: u64 = 1024;
/// Segments that came before their predecessors and wait for these, side by side uploads having overtaken each other.
const AHEAD: usize = 6;
/// After this a predecessor is read out of the repository.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often what is due is looked for.
const TICK: Duration = Duration::from_secs(5);
/// A stop waits so long for what was learnt last.
const LAST: Duration = Duration::from_secs(2);
/// Segments read back at the same time.
const READS: usize = 2;

/// The end of a [`super::Queue`] where segments are taken from.
#[derive(Debug)]
pub struct Offers(pub(super) mpsc::Receiver<Offered>);

/// Makes the index of what is offered, until `stop` fires; then stores what it has learnt, if that is quickly done.
pub async fn run(repository: Arc<ClusterRepository>, mut offers: Offers, metrics: Arc<Metrics>, stop: CancellationToken) {
    let mut writer = Writer { repository, metrics, lines: BTreeMap::new(), ahead: BTreeMap::new() };
    let mut tick = tokio::time::interval(TICK);
    let mut waits = false;
    loop {
        let step = async {
            tokio::select! {
                offered = offers.0.recv() => match offered {
                    Some(offered) => Some(writer.offered(offered).await),
                    None => None,
                },
                _ = tick.tick() => Some(writer.tick().await),
            }
        };
        // What is cut off is read back by the next agent.
        let Some(Some(worked)) = stop.run_until_cancelled(step).await else { break };
        match worked {
            Ok(()) => waits = false,
            Err(error) => {
                writer.metrics.refused(&error);
                match std::mem::replace(&mut waits, true) {
                    false => tracing::warn!(%error, "the index of the WAL waits; archiving does not need it"),
                    true => tracing::debug!(%error, "the index of the WAL waits"),
                }
            }
        }
    }
    let last = async {
        for line in writer.lines.values_mut() {
            line.store().await?;
        }
        Result::Ok(())
    };
    match tokio::time::timeout(LAST, last).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "what the index has learnt last is not stored; it will be read back"),
        Err(_) => tracing::debug!("what the index has learnt last could not be stored in time; it will be read back"),
    }
}

struct Writer {
    repository: Arc<ClusterRepository>,
    metrics: Arc<Metrics>,
    lines: BTreeMap<TimelineId, Line>,
    /// What waits for its predecessors, and since when.
    ahead: BTreeMap<SegmentName, (Instant, Content)>,
}

impl Writer {
    async fn offered(&mut self, Offered { segment, content }: Offered) -> Result<()> {
        let size = self.repository.identity().segment_size;
        let Some(number) = segment.number(size) else { return Ok(()) };
        let timeline = segment.timeline();
        if !self.lines.contains_key(&timeline) {
            let line = Line::resume(self.repository.clone(), timeline, number, REACH).await?;
            self.lines.insert(timeline, line);
        }
        let Some(line) = self.lines.get_mut(&timeline) else { return Ok(()) };
        if number < line.next() {
            return Ok(());
        }
        self.ahead.insert(segment, (Instant::now(), content));
        self.advance(timeline).await?;
        if self.ahead.len() > AHEAD { self.read_back(timeline).await } else { Ok(()) }
    }

    async fn tick(&mut self) -> Result<()> {
        let late = |(since, _): &(Instant, Content)| since.elapsed() >= PATIENCE;
        let waiting: Vec<TimelineId> = self.ahead.iter().filter(|(_, ahead)| late(ahead)).map(|(segment, _)| segment.timeline()).collect();
        for timeline in waiting {
            self.read_back(timeline).await?;
        }
        for line in self.lines.values_mut().filter(|line| line.is_due()) {
            line.store().await?;
        }
        Ok(())
    }

    /// Takes what is at hand and comes next.
    async fn advance(&mut self, timeline: TimelineId) -> Result<()> {
        let size = self.repository.identity().segment_size;
        let Some(line) = self.lines.get_mut(&timeline) else { return Ok(()) };
        while let Some((_, content)) = self.ahead.remove(&line.next().name(timeline, size)) {
            match read(content).await? {
                Some(bytes) => line.take(bytes).await?,
                None => break,
            }
        }
        let next = line.next();
        self.ahead.retain(|segment, _| segment.timeline() != timeline || segment.number(size).is_some_and(|number| number >= next));
        self.metrics.set_indexed(line.reaches());
        Ok(())
    }

    /// Reads what is missing before the first of those that wait.
    async fn read_back(&mut self, timeline: TimelineId) -> Result<()> {
        let size = self.repository.identity().segment_size;
        let first = self.ahead.keys().find(|segment| segment.timeline() == timeline).and_then(|segment| segment.number(size));
        let (Some(line), Some(first)) = (self.lines.get_mut(&timeline), first) else { return Ok(()) };
        if first.get().saturating_sub(line.next().get()) > REACH {
            tracing::warn!(
                %timeline, from = %line.reaches(), to = %first.start(size),
                "the index is too far behind to read this back beside the archiving: `walkeep index --rebuild` completes it"
            );
            line.pass_over(first).await?;
        }
        let repository = &self.repository;
        let missing = (line.next().get()..first.get()).map(SegmentNumber::new);
        let get =
            |number: SegmentNumber| async move { (number, stored(repository, WalFileName::Segment(number.name(timeline, size))).await) };
        let mut contents = stream::iter(missing.map(get)).buffered(READS);
        while let Some((number, found)) = contents.next().await {
            match found? {
                Some(wal) if line.next() == number => line.take(wal.content).await?,
                Some(_) => {}
                // A gap, or damage; or it is stored later, and the plan reads it then.
                None => line.pass_over(number.next()).await?,
            }
        }
        drop(contents);
        self.advance(timeline).await
    }
}

/// The whole file; `None` if that cannot be: it is read back.
async fn read(content: Content) -> Result<Option<Bytes>> {
    let read = move || {
        use std::io::{Error, Read, Seek};
        let Content { mut file, stamp } = content;
        let mut bytes = Vec::new();
        file.rewind()?;
        file.read_to_end(&mut bytes)?;
        match stamp {
            Some(stamp) if Stamp::of(&file.metadata()?) != stamp => Err(Error::other("it is another segment's file by now")),
            _ => Ok(bytes),
        }
    };
    match tokio::task::spawn_blocking(read).await {
        Ok(Ok(bytes)) => Ok(Some(bytes.into())),
        Ok(Err(error)) => {
            tracing::debug!(%error, "a segment could not be read for the index; it is read back later");
            Ok(None)
        }
        Err(died) => Err(crate::repository::Error::Internal(died.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// PostgreSQL recycles an archived segment's file: what it holds then is another segment.
    #[tokio::test]
    async fn a_file_that_was_written_anew_is_not_taken() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("segment");
        std::fs::write(&path, "archived").unwrap();
        let content = || {
            let file = std::fs::File::open(&path).unwrap();
            let stamp = Some(Stamp::of(&file.metadata().unwrap()));
            Content { file, stamp }
        };
        assert_eq!(read(content()).await.unwrap().unwrap(), "archived");
        let (renamed, written) = (content(), content());
        // Times of files move in steps of some milliseconds.
        let probe = || {
            std::fs::write(folder.path().join("probe"), "").unwrap();
            std::fs::metadata(folder.path().join("probe")).unwrap().modified().unwrap()
        };
        let before = probe();
        while probe() == before {
            tokio::task::yield_now().await;
        }
        std::fs::rename(&path, folder.path().join("recycled")).unwrap();
        assert!(read(renamed).await.unwrap().is_none());
        std::fs::write(folder.path().join("recycled"), "another one").unwrap();
        assert!(read(written).await.unwrap().is_none());
    }
}
