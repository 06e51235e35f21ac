//! Reading stored WAL in order: the segments that cover a stretch of a timeline path, with a little read-ahead, each proven by its hash,
//! shown to a decoder.
//!
//! What is looked for is the visitor's business: a recovery target ([`crate::planning`]), or what happened when ([`crate::journal`]).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use walkeep_core::catalog::{Catalog, NeededFile, WalRange};
use walkeep_core::decoder::{DecodeError, Decoder};
use walkeep_core::{Lsn, TimelineHistory, WalFileName};

use crate::repository::{ClusterRepository, Error};

/// Segments read ahead of the decoder.
const READ_AHEAD: usize = 4;

/// Told while WAL is read: segments read, and segments to read.
pub type OnProgress<'a> = &'a mut (dyn FnMut(u64, u64) + Send);

/// Whoever looks at WAL.
pub trait Visitor: Send + 'static {
    /// Takes all that the decoder finds in the next bytes.
    fn drain(&mut self, decoder: &mut Decoder, bytes: &[u8]) -> Result<(), DecodeError>;

    /// Asked after each segment, with how many there were: whether to go on.
    fn goes_on(&mut self, segments: u64) -> bool;
}

/// What was fetched, and how long that and looking at it took.
#[derive(Debug, Default)]
pub struct Traffic {
    bytes: AtomicU64,
    micros: AtomicU64,
}

impl Traffic {
    /// Stored bytes that were fetched.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// In this time.
    pub fn time(&self) -> Duration {
        Duration::from_micros(self.micros.load(Ordering::Relaxed))
    }

    fn add(&self, bytes: u64, time: Duration) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.micros.fetch_add(u64::try_from(time.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

/// Where WAL is read from.
#[derive(Clone, Copy, Debug)]
pub struct Stored<'a> {
    /// The repository.
    pub repository: &'a Arc<ClusterRepository>,
    /// What it holds.
    pub catalog: &'a Catalog,
    /// The history to follow.
    pub path: &'a TimelineHistory,
    /// What is fetched is counted here.
    pub traffic: &'a Traffic,
}

impl Stored<'_> {
    /// Shows `range`, in which nothing may be missing, to the visitor, until that has seen enough. Answers how far was decoded.
    pub async fn walk<V: Visitor>(
        &self,
        range: WalRange,
        decoder: Decoder,
        mut visitor: V,
        on_progress: OnProgress<'_>,
    ) -> Result<(V, Lsn)> {
        let covered = self.catalog.coverage(self.path, range.from, range.to);
        let files = covered.map_err(|missing| anyhow!("WAL is missing at {} within what was covered", missing.at))?;
        let (total, size) = (files.len() as u64, self.catalog.segment_size());
        let mut decoder = decoder;
        let mut contents = stream::iter(files).map(|file| read(self.repository.clone(), file)).buffered(READ_AHEAD);
        let mut done = 0;
        let mut since = Instant::now();
        let mut next_byte = decoder.reads_from();
        while let Some((file, content)) = contents.try_next().await? {
            let start = file.segment.number(size).map_or(Lsn::ZERO, |number| number.start(size));
            let skip = next_byte.bytes_since(start).min(content.len() as u64) as usize;
            let (fed, fed_decoder, fed_visitor) = tokio::task::spawn_blocking(move || {
                let fed = visitor.drain(&mut decoder, &content[skip..]);
                (fed, decoder, visitor)
            })
            .await?;
            (decoder, visitor) = (fed_decoder, fed_visitor);
            next_byte = start.saturating_add(size.bytes());
            fed.with_context(|| format!("decode {}", file.segment))?;
            done += 1;
            self.traffic.add(file.stored, std::mem::replace(&mut since, Instant::now()).elapsed());
            on_progress(done, total);
            if !visitor.goes_on(done) {
                break;
            }
        }
        let end = decoder.position().min(range.to);
        Ok((visitor, end))
    }
}

/// A segment's bytes, whole or as far as its parts reach.
async fn read(repository: Arc<ClusterRepository>, file: NeededFile) -> Result<(NeededFile, Bytes)> {
    let wanted = file.parts.iter().map(|part| part.to as usize).max();
    if let Some(wanted) = wanted {
        let tail = repository.get_tail(file.segment).await?;
        if tail.len() >= wanted {
            return Ok((file, tail.slice(..wanted)));
        }
    }
    // While the plan is made the agent goes on: a segment that was listed in parts may be stored whole by now, and its parts be removed.
    let found = repository.get_wal(WalFileName::Segment(file.segment)).await?;
    let content = found.map(|found| found.content).filter(|content| wanted.is_none_or(|wanted| wanted <= content.len()));
    let content = content.ok_or_else(|| Error::corrupt(file.segment.to_string(), "it was listed and is gone"))?;
    let wanted = wanted.unwrap_or(content.len());
    Ok((file, content.slice(..wanted)))
}

#[cfg(test)]
mod tests {
    use walkeep_core::layout::PartName;

    use super::*;
    use crate::repository::tests::{memory, segment};

    /// A plan that read less than it counts on would not see the last commits, nor a tablespace that replay creates.
    #[tokio::test]
    async fn parts_that_went_while_the_plan_was_made_are_read_from_the_whole_segment() {
        let (repository, _) = memory().await;
        let repository = Arc::new(repository);
        let (name, content) = (segment(1), Bytes::from(vec![7; 1 << 20]));
        let part = PartName { segment: name, from: 0, to: 100, epoch: 1 };
        let file = || NeededFile { segment: name, parts: vec![part], stored: 1 };
        assert!(read(repository.clone(), file()).await.is_err(), "neither is there");
        repository.put_part(part, content.slice(..100)).await.unwrap();
        assert_eq!(read(repository.clone(), file()).await.unwrap().1, content.slice(..100));
        repository.put_wal(WalFileName::Segment(name), content.clone()).await.unwrap();
        repository.remove_part(part).await.unwrap();
        assert_eq!(read(repository.clone(), file()).await.unwrap().1, content.slice(..100), "no more than was listed");
    }
}
