//! Asking the index: what lies in a stretch of WAL, by summaries where they say enough and by the WAL itself elsewhere.
//!
//! Only digests that are needed are read: those of the highest level that tell of a stretch, and below them whatever the visitor looks
//! into. A digest that is missing or damaged is no error: its WAL is read.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use futures::{StreamExt, TryStreamExt, stream};
use walkeep_core::catalog::{WalRange, legs};
use walkeep_core::decoder::Decoder;
use walkeep_core::index::{Digest, DigestName, Level, Summary, cover};
use walkeep_core::{Lsn, PgTimestamp, SegmentNumber, SegmentSize, TimelineHistory, TimelineId};

use crate::repository::backups::Damaged;
use crate::repository::{ClusterRepository, Error};
use crate::wal_walk::{OnProgress, Stored, Visitor};

/// Digests read at the same time.
const READS: usize = 16;

/// Whoever looks at WAL with an index at hand.
pub trait Guided: Visitor {
    /// Whether the summary says enough of its segments. `level` is that of the digest that it sums up, `None` for a single segment.
    fn suffices(&self, summary: &Summary, level: Option<Level>) -> bool;

    /// Takes a summary in place of its segments.
    fn pass(&mut self, summary: &Summary);

    /// Whether enough was seen.
    fn is_done(&self) -> bool;

    /// The decoder for WAL that goes on at `at`. It may begin before that, not before `least`, for a visitor who has to know what was open.
    fn begin(&mut self, at: Lsn, size: SegmentSize, least: Lsn) -> Decoder {
        let _ = least;
        Decoder::new(at, size)
    }
}

/// What one summary is of.
#[derive(Debug, Clone)]
struct Node {
    timeline: TimelineId,
    /// The level of the digest that it sums up; `None` for a single segment.
    level: Option<Level>,
    summary: Arc<Summary>,
    /// The first segment that does not belong to this timeline's stretch of the path.
    limit: SegmentNumber,
}

/// The index of the timelines of a path.
#[derive(Debug)]
pub struct Index {
    repository: Arc<ClusterRepository>,
    /// What is told of each timeline, by the fewest summaries.
    told: BTreeMap<TimelineId, Vec<Node>>,
    /// Digests that could not be believed.
    damaged: Mutex<Vec<Damaged>>,
}

impl Index {
    /// Without anything in it: all WAL is read.
    pub fn none(repository: Arc<ClusterRepository>) -> Self {
        Self { repository, told: BTreeMap::new(), damaged: Mutex::default() }
    }

    /// Reads the highest digests of the timelines of a path.
    pub async fn open_along(repository: Arc<ClusterRepository>, path: &TimelineHistory) -> Result<Self, Error> {
        let timelines: Vec<_> = legs(path).into_iter().map(|(timeline, _)| timeline).collect();
        Self::open(repository, &timelines).await
    }

    /// Reads the highest digests of these timelines.
    pub async fn open(repository: Arc<ClusterRepository>, timelines: &[TimelineId]) -> Result<Self, Error> {
        let mut index = Self::none(repository);
        for timeline in timelines {
            let names = names(&index.repository, *timeline).await?;
            let digests = stream::iter(names).map(|name| index.read(name)).buffered(READS);
            let digests: Vec<Option<Digest>> = digests.try_collect().await?;
            let nodes = digests.into_iter().flatten().flat_map(|digest| nodes(digest, SegmentNumber::new(u64::MAX))).collect();
            index.told.insert(*timeline, nodes);
        }
        Ok(index)
    }

    /// Digests that could not be believed, so that their WAL was read instead. `walkeep index --rebuild` mends them.
    pub fn damaged(&self) -> Vec<Damaged> {
        self.damaged.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A digest that can be believed.
    async fn read(&self, name: DigestName) -> Result<Option<Digest>, Error> {
        match self.repository.get_digest(name).await {
            Err(Error::Corrupt { key, reason }) => {
                self.damaged.lock().unwrap_or_else(PoisonError::into_inner).push(Damaged { key, reason });
                Ok(None)
            }
            // From before this host's key was added, perhaps: its WAL is read, and that says it where it matters.
            Err(Error::CannotDecrypt { key, reason }) => {
                tracing::debug!(key, reason, "a digest is passed over");
                Ok(None)
            }
            read => read,
        }
    }

    /// Stretches of a timeline that it tells of, as segments.
    pub fn runs(&self, timeline: TimelineId) -> impl Iterator<Item = walkeep_core::index::Run> + '_ {
        self.told.get(&timeline).into_iter().flatten().flat_map(|node| node.summary.segments.iter().copied())
    }

    /// The latest moment that it tells of a timeline.
    pub fn last_moment(&self, timeline: TimelineId) -> Option<PgTimestamp> {
        let of = |node: &Node| node.summary.transactions.as_ref().map(|ended| ended.highest).max(node.summary.clock);
        self.told.get(&timeline).into_iter().flatten().filter_map(of).max()
    }

    /// Whether it tells of all of `range`, and each of the summaries is one that `is_nothing`.
    pub fn rules_out(&self, path: &TimelineHistory, range: WalRange, is_nothing: impl Fn(&Summary) -> bool) -> bool {
        let size = self.repository.identity().segment_size;
        let mut told_to = size.align_down(range.from);
        let mut read_to = None;
        for node in self.along(path, size).iter().rev() {
            let (span, summary) = (node.summary.span(), &node.summary);
            if span.end.start(size) <= told_to {
                continue;
            }
            let connected = read_to.is_none_or(|read_to| summary.follows(read_to));
            if span.first.start(size) > told_to || span.end > node.limit || !summary.is_whole() || !connected || !is_nothing(summary) {
                return false;
            }
            (told_to, read_to) = (span.end.start(size), Some(summary.records.to));
            if told_to >= range.to {
                return true;
            }
        }
        false
    }

    /// Shows `range` of the stored WAL to the visitor, until that is done: by summaries where these suffice. Answers how far was looked.
    pub async fn walk<V: Guided>(
        &self,
        stored: Stored<'_>,
        range: WalRange,
        mut visitor: V,
        on_progress: OnProgress<'_>,
    ) -> Result<(V, Lsn)> {
        let size = stored.catalog.segment_size();
        let mut todo = self.along(stored.path, size);
        let mut at = range.from;
        while at < range.to && !visitor.is_done() {
            match self.next(&mut todo, at, range.to, size, &visitor).await? {
                Next::Pass(summary) => {
                    visitor.pass(&summary);
                    at = summary.records.to;
                }
                Next::Read(to) => {
                    let decoder = visitor.begin(at, size, range.from);
                    let range_read = WalRange { from: decoder.position(), to };
                    let (read, end) = stored.walk(range_read, decoder, visitor, on_progress).await?;
                    visitor = read;
                    if to == range.to {
                        at = end;
                        break;
                    }
                    if end <= at {
                        // A record that is longer than what was read: no summary helps before it ends.
                        todo.clear();
                    }
                    at = at.max(end);
                }
            }
        }
        Ok((visitor, at.min(range.to)))
    }

    /// What is told along a path, the last first: each timeline's own stretch, the segment of a switch being the child's.
    fn along(&self, path: &TimelineHistory, size: SegmentSize) -> Vec<Node> {
        let mut all = Vec::new();
        for (timeline, leg) in legs(path) {
            let limit = if leg.to == Lsn::MAX { SegmentNumber::new(u64::MAX) } else { size.segment_of(leg.to) };
            let of_leg = self.told.get(&timeline).into_iter().flatten().filter(|node| node.summary.span().first < limit);
            all.extend(of_leg.map(|node| Node { limit, ..node.clone() }));
        }
        all.reverse();
        all
    }

    /// What comes at `at`: a summary to pass, or WAL to read up to a position.
    async fn next(&self, todo: &mut Vec<Node>, at: Lsn, to: Lsn, size: SegmentSize, visitor: &impl Guided) -> Result<Next> {
        while let Some(Node { timeline, level, summary, limit }) = todo.pop() {
            let (first, end) = (summary.span().first, summary.span().end.start(size));
            if end <= at || first >= limit {
                continue;
            }
            let is_ours = summary.span().end <= limit && end <= to;
            if is_ours && summary.is_whole() && summary.follows(at) && visitor.suffices(&summary, level) {
                return Ok(Next::Pass(summary));
            }
            if first.start(size) > at && !summary.follows(at) {
                // Nothing is told up to there.
                let begins = first.start(size);
                todo.push(Node { timeline, level, summary, limit });
                return Ok(Next::Read(begins.min(to)));
            }
            let Some(level) = level else { return Ok(Next::Read(end.min(to))) };
            let name = DigestName { timeline, level, from: first.start(size), to: end };
            if let Some(digest) = self.read(name).await? {
                todo.extend(nodes(digest, limit).into_iter().rev());
            }
        }
        Ok(Next::Read(to))
    }
}

enum Next {
    Pass(Arc<Summary>),
    Read(Lsn),
}

/// The digests to read first: the highest, and lower ones where these do not reach.
async fn names(repository: &ClusterRepository, timeline: TimelineId) -> Result<Vec<DigestName>, Error> {
    let size = repository.identity().segment_size;
    let (mut names, mut told): (Vec<DigestName>, Option<Lsn>) = Default::default();
    for level in Level::DOWNWARDS {
        let listed = repository.list_digests(timeline, level, told).await?;
        let first = cover::best_of_each_window(&listed, size).first().map(|name| name.from);
        // Behind a hole in this level the level below is asked from the hole on.
        if told.is_none() || first == told {
            told = cover::told_up_to(&listed, size).or(told);
        }
        // Windows begin before what the timeline has of them.
        names.extend(listed);
    }
    Ok(cover::choose(&names, size))
}

fn nodes(digest: Digest, limit: SegmentNumber) -> Vec<Node> {
    let (timeline, level) = (digest.name.timeline, digest.name.level.below());
    digest.summaries.into_iter().map(|summary| Node { timeline, level, summary: Arc::new(summary), limit }).collect()
}
