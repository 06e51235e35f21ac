//! The WAL stored of one timeline, as ranges.
//!
//! Segments are merged into ranges, so that questions cost as many steps as there are ranges, not segments. Which timeline a byte
//! belongs to is not known here; see [`super::coverage`].

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::index::Run;
use crate::layout::PartName;
use crate::lsn::Lsn;
use crate::parts::{Link, apart, longest_chain};
use crate::segment::{SegmentNumber, SegmentSize};

/// WAL without a hole: `[from, to)`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct WalRange {
    /// The first position.
    pub from: Lsn,
    /// The first position after.
    pub to: Lsn,
}

impl WalRange {
    /// Bytes.
    pub fn bytes(&self) -> u64 {
        self.to.bytes_since(self.from)
    }
}

/// Parts of an unfinished segment that together hold its bytes from the beginning.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Chain {
    /// Bytes from the segment's beginning.
    pub len: u64,
    /// The parts needed, with their stored sizes.
    pub parts: Vec<(PartName, u64)>,
}

/// What is stored of one timeline.
#[derive(Clone, Default, Debug)]
pub(crate) struct Stored {
    segments: BTreeMap<SegmentNumber, u64>,
    parts: BTreeMap<SegmentNumber, Vec<(PartName, u64)>>,
    /// Whole segments in a row, `[from, to)`, keyed by the first.
    runs: BTreeMap<SegmentNumber, SegmentNumber>,
    chains: BTreeMap<SegmentNumber, Chain>,
    ranges: Vec<WalRange>,
    /// What parts of the last segment hold behind a hole.
    apart: Option<WalRange>,
}

/// What is stored at and after a position's segment.
pub(crate) enum Supply<'a> {
    /// The segment is whole, and so are all before the given one.
    Whole { until: SegmentNumber },
    /// Parts hold its beginning.
    Parts(&'a Chain),
}

impl Stored {
    pub fn add_segment(&mut self, number: SegmentNumber, bytes: u64) {
        self.segments.insert(number, bytes);
    }

    /// Segments that are there, of sizes that are not known.
    pub fn add_run(&mut self, run: Run) {
        self.runs.insert(run.first, run.end);
    }

    pub fn add_part(&mut self, number: SegmentNumber, part: PartName, bytes: u64) {
        self.parts.entry(number).or_default().push((part, bytes));
    }

    /// The parts that were added of a segment.
    pub fn parts_of(&self, number: SegmentNumber) -> impl Iterator<Item = PartName> + '_ {
        self.parts.get(&number).into_iter().flatten().map(|(part, _)| *part)
    }

    /// The last segment of which anything was added, if it is parts.
    pub fn last_in_parts(&self) -> Option<SegmentNumber> {
        let (number, _) = self.parts.last_key_value()?;
        let whole = self.segments.last_key_value().map(|(last, _)| last.next()).max(self.runs.values().next_back().copied());
        whole.is_none_or(|end| end <= *number).then_some(*number)
    }

    /// These parts of a segment in the place of those that were added.
    pub fn set_parts(&mut self, number: SegmentNumber, parts: &[(PartName, u64)]) {
        self.parts.insert(number, parts.to_vec());
    }

    /// Makes ranges of what was added. Parts of a finished segment count no more: they are on their way out.
    pub fn seal(&mut self, size: SegmentSize) {
        self.apart = self.last_in_parts().and_then(|number| {
            let names: Vec<PartName> = self.parts_of(number).filter(|part| u64::from(part.to) <= size.bytes()).collect();
            let at = |offset: u32| number.start(size).saturating_add(u64::from(offset));
            apart(&names).map(|apart| WalRange { from: at(apart.resumes), to: at(apart.to) })
        });
        let listed = self.segments.keys().map(|number| (*number, number.next()));
        let mut all: Vec<(SegmentNumber, SegmentNumber)> = std::mem::take(&mut self.runs).into_iter().chain(listed).collect();
        all.sort_unstable();
        for (first, end) in all {
            match self.runs.values_mut().next_back() {
                Some(last) if *last >= first => *last = end.max(*last),
                _ => drop(self.runs.insert(first, end)),
            }
        }
        for (number, parts) in std::mem::take(&mut self.parts) {
            if !self.is_whole(number)
                && let Some(chain) = chain(&parts, size)
            {
                self.chains.insert(number, chain);
            }
        }
        let runs = self.runs.iter().map(|(first, end)| (first.start(size), end.start(size)));
        let tails = self.chains.iter().map(|(number, chain)| (number.start(size), number.start(size).saturating_add(chain.len)));
        let mut stretches: Vec<(Lsn, Lsn)> = runs.chain(tails).collect();
        stretches.sort_unstable();
        for (from, to) in stretches {
            match self.ranges.last_mut() {
                Some(range) if range.to == from => range.to = to,
                _ => self.ranges.push(WalRange { from, to }),
            }
        }
    }

    fn is_whole(&self, number: SegmentNumber) -> bool {
        self.runs.range(..=number).next_back().is_some_and(|(_, end)| number < *end)
    }

    /// Stretches without a hole, in order.
    pub fn ranges(&self) -> &[WalRange] {
        &self.ranges
    }

    /// What a reader asking for the segment is given.
    pub fn supply(&self, number: SegmentNumber) -> Option<Supply<'_>> {
        let run = self.runs.range(..=number).next_back().filter(|(_, end)| number < **end);
        match run {
            Some((_, end)) => Some(Supply::Whole { until: *end }),
            None => self.chains.get(&number).map(Supply::Parts),
        }
    }

    /// What parts of the last segment hold behind a hole: nobody can be given it, but it says that this is not where the WAL ended.
    pub fn apart(&self) -> Option<WalRange> {
        self.apart
    }

    /// The first stored position in `[from, to)`.
    pub fn first_in(&self, from: Lsn, to: Lsn) -> Option<Lsn> {
        let index = self.ranges.partition_point(|range| range.to <= from);
        let range = self.ranges.get(index).copied().or(self.apart.filter(|apart| from < apart.to));
        range.map(|range| range.from.max(from)).filter(|at| *at < to)
    }

    /// Whether the byte at `at` is stored.
    pub fn holds(&self, at: Lsn) -> bool {
        let index = self.ranges.partition_point(|range| range.to <= at);
        self.ranges.get(index).is_some_and(|range| range.from <= at)
    }

    /// Whole segments in `[from, to)` with their stored sizes; 0 for one that was not listed.
    pub fn segments_in(&self, from: SegmentNumber, to: SegmentNumber) -> impl Iterator<Item = (SegmentNumber, u64)> {
        self.within(from, to).map(|number| (number, self.segments.get(&number).copied().unwrap_or(0)))
    }

    fn within(&self, from: SegmentNumber, to: SegmentNumber) -> impl Iterator<Item = SegmentNumber> {
        let clip = move |(first, end): (&SegmentNumber, &SegmentNumber)| first.get().max(from.get())..end.get().min(to.get());
        let first = self.runs.range(..=from).next_back().map_or(from, |(first, _)| *first);
        self.runs.range(first..to.max(first)).flat_map(clip).map(SegmentNumber::new)
    }

    /// Whole segments.
    pub fn numbers(&self) -> impl Iterator<Item = SegmentNumber> + '_ {
        self.within(SegmentNumber::new(0), SegmentNumber::new(u64::MAX))
    }

    /// Segments of which parts hold the beginning, with their stored sizes.
    pub fn unfinished(&self) -> impl Iterator<Item = (SegmentNumber, u64)> + '_ {
        self.chains.iter().map(|(number, chain)| (*number, chain.parts.iter().map(|(_, bytes)| bytes).sum()))
    }

    /// The same without some segments.
    pub fn without(&self, is_gone: impl Fn(SegmentNumber) -> bool, size: SegmentSize) -> Self {
        let mut rest = Self::default();
        let all = self.segments_in(SegmentNumber::new(0), SegmentNumber::new(u64::MAX));
        all.filter(|(number, _)| !is_gone(*number)).for_each(|(number, bytes)| rest.add_segment(number, bytes));
        for (number, chain) in self.chains.iter().filter(|(number, _)| !is_gone(**number)) {
            chain.parts.iter().for_each(|(part, bytes)| rest.add_part(*number, *part, *bytes));
        }
        rest.seal(size);
        rest.apart = self.apart.filter(|apart| !is_gone(size.segment_of(apart.from)));
        rest
    }

    /// How many whole segments are stored, and their stored bytes.
    pub fn segment_totals(&self) -> (u64, u64) {
        (self.runs.iter().map(|(first, end)| end.get() - first.get()).sum(), self.segments.values().sum())
    }
}

/// What a reader asking for the unfinished segment is given.
fn chain(parts: &[(PartName, u64)], size: SegmentSize) -> Option<Chain> {
    let names: Vec<PartName> = parts.iter().map(|(part, _)| *part).filter(|part| u64::from(part.to) <= size.bytes()).collect();
    let links = longest_chain(&names);
    let len = u64::from(links.last()?.to);
    let stored = |link: &Link| parts.iter().find(|(part, _)| *part == link.part).copied();
    Some(Chain { len, parts: links.iter().filter_map(stored).collect() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::TimelineId;

    fn chain_of(parts: &[(u32, u32)]) -> Option<(u64, Vec<(u32, u32)>)> {
        let segment = SegmentNumber::new(3).name(TimelineId::FIRST, SegmentSize::DEFAULT);
        let parts: Vec<_> = parts.iter().map(|(from, to)| (PartName { segment, from: *from, to: *to, epoch: 1 }, 1)).collect();
        chain(&parts, SegmentSize::DEFAULT).map(|chain| (chain.len, chain.parts.iter().map(|(part, _)| (part.from, part.to)).collect()))
    }

    #[test]
    fn chains_have_the_sizes_of_their_parts() {
        assert_eq!(chain_of(&[(0, 10), (10, 20), (0, 20), (20, 25)]), Some((25, vec![(0, 20), (20, 25)])));
        assert_eq!(chain_of(&[(1, 10)]), None);
        assert_eq!(chain_of(&[]), None);
    }

    #[test]
    fn a_part_longer_than_the_segment_is_not_believed() {
        assert_eq!(chain_of(&[(0, 10), (0, u32::MAX)]), Some((10, vec![(0, 10)])));
    }
}
