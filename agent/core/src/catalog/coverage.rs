//! Which objects replay along a timeline's history needs, and where it would have to stop.
//!
//! The rule is PostgreSQL's own (`XLogFileReadAnyTLI`): for each segment it asks for the file of the newest timeline of the history
//! first, and only for timelines that began in that segment or before it. So the segment in which a timeline began is read from the
//! child's file where there is one, its first pages being copies of the parent's; otherwise from the parent's, and that is good only up
//! to the switch point. A `.partial` never counts: PostgreSQL does not ask for it, and after the switch point it may hold anything.

use serde::Serialize;

use crate::history::TimelineHistory;
use crate::identity::TimelineId;
use crate::layout::PartName;
use crate::lsn::Lsn;
use crate::segment::{SegmentName, SegmentNumber, SegmentSize};

use super::Catalog;
use super::gap::GapRecord;
use super::stored::{Chain, Supply, WalRange};

/// A file PostgreSQL will ask for, and what it is made of.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct NeededFile {
    /// The segment, under the timeline whose file is read.
    pub segment: SegmentName,
    /// Bytes to fetch for it.
    pub stored: u64,
    /// The parts it is assembled from; empty for a finished segment.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<PartName>,
}

/// The first position along a history that cannot be replayed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct FirstMissing {
    /// The position.
    pub at: Lsn,
    /// The file whose absence, or whose end, it is.
    pub segment: SegmentName,
    /// Where WAL of the same history is stored again; `None` if this is simply the end of what is stored.
    pub resumes: Option<Lsn>,
    /// Whether PostgreSQL would read on here in a file of the parent timeline, into WAL that is not of this history.
    pub strays: Option<TimelineId>,
    /// What the agent recorded about it.
    pub gap: Option<GapRecord>,
}

impl FirstMissing {
    /// Whether this is the end of what is stored, so that PostgreSQL ends recovery here by itself.
    pub fn is_end_of_wal(&self) -> bool {
        self.resumes.is_none() && self.strays.is_none() && self.gap.as_ref().is_none_or(|gap| !gap.blocks())
    }
}

/// How far replay can go from some position.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Reach {
    /// Everything before is there.
    pub to: Lsn,
    /// What stops it there.
    pub missing: FirstMissing,
}

/// A run of segments all read from one timeline's files.
struct Run<'a> {
    timeline: TimelineId,
    first: SegmentNumber,
    /// How far its bytes are good.
    good_to: Lsn,
    /// Set where parts make up the one segment.
    chain: Option<&'a Chain>,
}

impl Catalog {
    /// The objects needed to replay `[from, to)` along `path`, in order.
    pub fn coverage(&self, path: &TimelineHistory, from: Lsn, to: Lsn) -> Result<Vec<NeededFile>, Box<FirstMissing>> {
        let mut files = Vec::new();
        let mut at = from;
        let blocked = self.blocked(path);
        while at < to {
            let Some(run) = self.next_run(path, at, &blocked) else {
                return Err(Box::new(self.missing(path, at)));
            };
            let end = run.good_to.min(to);
            match run.chain {
                Some(chain) => files.push(NeededFile {
                    segment: run.first.name(run.timeline, self.segment_size()),
                    stored: chain.parts.iter().map(|(_, bytes)| bytes).sum(),
                    parts: chain.parts.iter().map(|(part, _)| *part).collect(),
                }),
                None => {
                    let past = past_end(end, self.segment_size());
                    let segments = self.stored(run.timeline).into_iter().flat_map(|stored| stored.segments_in(run.first, past));
                    let file = |(number, stored): (SegmentNumber, u64)| NeededFile {
                        segment: number.name(run.timeline, self.segment_size()),
                        stored,
                        parts: Vec::new(),
                    };
                    files.extend(segments.map(file));
                }
            }
            at = end;
        }
        Ok(files)
    }

    /// How far replay along `path` can go from `from`.
    pub fn reach(&self, path: &TimelineHistory, from: Lsn) -> Reach {
        let blocked = self.blocked(path);
        let mut at = from;
        while let Some(run) = self.next_run(path, at, &blocked) {
            at = run.good_to;
        }
        Reach { to: at, missing: self.missing(path, at) }
    }

    /// The first position at or after `from` that belongs to `path` and is stored under its own timeline.
    pub fn resumes(&self, path: &TimelineHistory, from: Lsn) -> Option<Lsn> {
        legs(path).into_iter().find_map(|(timeline, leg)| {
            let begin = leg.from.max(from);
            self.stored(timeline)?.first_in(begin, leg.to)
        })
    }

    /// What supplies the bytes from `at` on; `None` if nothing does.
    fn next_run<'a>(&'a self, path: &TimelineHistory, at: Lsn, blocked: &[WalRange]) -> Option<Run<'a>> {
        let size = self.segment_size();
        let number = size.segment_of(at);
        let mut limit = blocked.iter().find(|range| range.to > at).map_or(Lsn::MAX, |range| range.from);
        for (timeline, leg) in legs(path).into_iter().rev() {
            let begins = size.align_down(leg.from);
            if begins > number.start(size) {
                // Not asked for this segment, but for the one it begins in.
                limit = limit.min(begins);
                continue;
            }
            let Some(supply) = self.stored(timeline).and_then(|stored| stored.supply(number)) else { continue };
            let (end, chain) = match supply {
                Supply::Whole { until } => (until.start(size), None),
                Supply::Parts(chain) => (number.start(size).saturating_add(chain.len), Some(chain)),
            };
            let good_to = end.min(leg.to).min(limit);
            // PostgreSQL has its file and asks no older timeline, whether it holds the byte or not.
            return (good_to > at).then_some(Run { timeline, first: number, good_to, chain });
        }
        None
    }

    /// Stretches of `path` that must not be replayed whatever is stored, in order.
    fn blocked(&self, path: &TimelineHistory) -> Vec<WalRange> {
        let legs = legs(path);
        let clip = |gap: &GapRecord| {
            let (_, leg) = legs.iter().find(|(timeline, _)| *timeline == gap.name.timeline)?;
            let range = WalRange { from: gap.name.from.max(leg.from), to: gap.name.to.min(leg.to) };
            (range.from < range.to).then_some(range)
        };
        let mut ranges: Vec<WalRange> = self.gaps().iter().filter(|gap| gap.blocks()).filter_map(clip).collect();
        ranges.sort_unstable_by_key(|range| (range.from, range.to));
        ranges
    }

    /// The timeline whose file PostgreSQL is given for a segment.
    fn supplier(&self, path: &TimelineHistory, number: SegmentNumber) -> Option<TimelineId> {
        let size = self.segment_size();
        let asked = legs(path).into_iter().rev().filter(|(_, leg)| size.align_down(leg.from) <= number.start(size));
        let mut asked = asked.map(|(timeline, _)| timeline);
        asked.find(|timeline| self.stored(*timeline).is_some_and(|stored| stored.supply(number).is_some()))
    }

    fn missing(&self, path: &TimelineHistory, at: Lsn) -> FirstMissing {
        let size = self.segment_size();
        let number = size.segment_of(at);
        let owner = path.timeline_at(at);
        // An older timeline's file is opened only while no newer one's has been read (`curFileTLI`).
        let before = at.get().checked_sub(1).and_then(|last| self.supplier(path, size.segment_of(Lsn::new(last))));
        let foreign = |timeline: &TimelineId| path.leaves(*timeline).flatten().is_some_and(|leave| leave <= at);
        let strays = self.supplier(path, number).filter(foreign).filter(|timeline| before.is_none_or(|before| before <= *timeline));
        // The parent's file may end before: then there is nothing to stray into.
        let strays = strays.filter(|timeline| self.stored(*timeline).is_some_and(|stored| stored.holds(at)));
        let on_owner = |gap: &&GapRecord| gap.name.timeline == owner && gap.name.from <= at && at < gap.name.to && gap.closed_at.is_none();
        let gap = self.gaps().iter().find(on_owner).cloned();
        // Where a recorded gap forbids replay the bytes may be there: what counts is where the gap ends.
        let after = gap.as_ref().filter(|gap| gap.blocks()).map_or(at, |gap| gap.name.to);
        FirstMissing { at, segment: number.name(owner, size), resumes: self.resumes(path, after), strays, gap }
    }
}

/// The timelines of a history with the stretch that belongs to each, oldest first.
pub fn legs(path: &TimelineHistory) -> Vec<(TimelineId, WalRange)> {
    let mut from = Lsn::ZERO;
    let mut legs = Vec::with_capacity(path.ancestors().len() + 1);
    for ancestor in path.ancestors() {
        legs.push((ancestor.timeline, WalRange { from, to: ancestor.switch }));
        from = ancestor.switch;
    }
    legs.push((path.timeline(), WalRange { from, to: Lsn::MAX }));
    legs
}

/// The first segment wholly at or after `end`.
fn past_end(end: Lsn, size: SegmentSize) -> SegmentNumber {
    let number = size.segment_of(end);
    if size.offset_of(end) == 0 { number } else { number.next() }
}
