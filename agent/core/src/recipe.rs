//! How a file that changed since an older backup is put together: which bytes come from that backup's extents, which are read and stored anew.
//!
//! Only bytes are moved about here: what changed is told by the caller, with proof. Changed stretches are gathered, in the file's order, into extents
//! of up to [`EXTENT`] bytes, so that a few changed blocks cost about those blocks. A file made so for years would fall to pieces: of each
//! file no more than [`most_extents`] are used, and none of them brings more than twice the file's bytes. Beyond that the extents of which least is still used are
//! given up, and what was used of them is read and stored with the changed blocks. An extent of which less than half is used is given up at once: a restore would
//! fetch and open more than it writes, and could not tell by its hash that a file has it already. So a restore needs at most [`most_extents`] ranged reads a file, 2 for each MiB
//! and 4 more, however many backups came before.

use std::ops::Range;

use crate::manifest::{Content, Extent, Run, Source};

/// No extent has more plain bytes.
pub const EXTENT: u64 = 1 << 20;

/// The most extents that a file of `size` bytes is made of.
pub fn most_extents(size: u64) -> usize {
    usize::try_from(2 * size.div_ceil(EXTENT) + 4).unwrap_or(usize::MAX)
}

/// The most plain bytes that the extents of a file of `size` bytes have together.
fn most_plain(size: u64) -> u64 {
    size.saturating_mul(2).saturating_add(4 * EXTENT)
}

/// A stretch of a file to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Part {
    /// Of the older backup's extents.
    Kept(Run),
    /// Of an extent that is made now.
    Fresh {
        /// Which, counted from 0.
        index: u32,
        /// Where in it.
        from: u64,
        /// Bytes.
        length: u64,
    },
}

/// A file to be.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Recipe {
    /// Extents of the older backup that are used.
    pub kept: Vec<Extent>,
    /// What each extent that is made now holds: stretches of the file, read one after the other.
    pub fresh: Vec<Vec<Range<u64>>>,
    /// The file in order. Indexes of kept runs are of `kept`.
    pub parts: Vec<Part>,
}

impl Recipe {
    /// The whole file anew.
    pub fn anew(size: u64) -> Self {
        Self::of(&Content::default(), size, &[])
    }

    /// A file of `size` bytes that was `before`, and in which these stretches may have changed since. What lies beyond
    /// the end it had is read in any case.
    pub fn of(before: &Content, size: u64, changed: &[Range<u64>]) -> Self {
        let mut read: Vec<Range<u64>> =
            changed.iter().map(|range| range.start..range.end.min(size)).filter(|range| !range.is_empty()).collect();
        if before.size() < size {
            read.push(before.size()..size);
        }
        let read = joined(read);
        let given_up = give_up(before, size, &read);
        let mut again: Vec<Range<u64>> = read;
        for (range, run) in before.located() {
            let range = range.start..range.end.min(size);
            if !range.is_empty() && matches!(run.source, Source::Extent { index, .. } if given_up[index as usize]) {
                again.push(range);
            }
        }
        let read = joined(again);
        Self::put_together(before, size, &read)
    }

    /// Bytes that are read.
    pub fn bytes_read(&self) -> u64 {
        self.fresh.iter().flatten().map(|range| range.end - range.start).sum()
    }

    fn put_together(before: &Content, size: u64, read: &[Range<u64>]) -> Self {
        let mut recipe = Self::default();
        let mut kept: Vec<Option<u32>> = vec![None; before.extents().len()];
        let runs: Vec<(Range<u64>, Run)> = before.located().collect();
        let (mut first, mut at, mut filled) = (0, 0, EXTENT);
        for range in read.iter().cloned().chain(std::iter::once(size..size)) {
            let stretch = at..range.start;
            first += runs[first..].partition_point(|(place, _)| place.end <= stretch.start);
            let within = runs[first..].iter().take_while(|(place, _)| place.start < stretch.end && !stretch.is_empty());
            for (place, run) in within {
                let (start, end) = (place.start.max(stretch.start), place.end.min(stretch.end));
                recipe.keep(before, *run, start - place.start, end - start, &mut kept);
            }
            at = range.end;
            recipe.read(range, &mut filled);
        }
        recipe
    }

    /// Takes `length` bytes of a run, `skip` from its start on, as they were.
    fn keep(&mut self, before: &Content, run: Run, skip: u64, length: u64, kept: &mut [Option<u32>]) {
        let source = match run.source {
            Source::Zeros => Source::Zeros,
            Source::Extent { index, from } => {
                let new = *kept[index as usize].get_or_insert_with(|| {
                    self.kept.push(before.extents()[index as usize]);
                    (self.kept.len() - 1) as u32
                });
                Source::Extent { index: new, from: from + skip }
            }
        };
        self.parts.push(Part::Kept(Run { source, length }));
    }

    /// Reads a stretch of the file into the extents that are made now, of which the last has `filled` bytes.
    fn read(&mut self, range: Range<u64>, filled: &mut u64) {
        let mut from = range.start;
        while from < range.end {
            if *filled == EXTENT {
                self.fresh.push(Vec::new());
                *filled = 0;
            }
            let length = (range.end - from).min(EXTENT - *filled);
            self.parts.push(Part::Fresh { index: (self.fresh.len() - 1) as u32, from: *filled, length });
            if let Some(extent) = self.fresh.last_mut() {
                extent.push(from..from + length);
            }
            *filled += length;
            from += length;
        }
    }
}

/// Ranges in order, with those that touch joined.
fn joined(mut ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    ranges.sort_by_key(|range| range.start);
    let mut joined: Vec<Range<u64>> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match joined.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => joined.push(range),
        }
    }
    joined
}

/// Which extents are not used any more, beyond those of which nothing is left: the least used first, until the file is whole enough again. Some more than
/// that are given up then, so that the next backup need not.
fn give_up(before: &Content, size: u64, read: &[Range<u64>]) -> Vec<bool> {
    let mut live = vec![0_u64; before.extents().len()];
    let mut reads = read.iter().peekable();
    for (range, run) in before.located() {
        let Source::Extent { index, .. } = run.source else { continue };
        let range = range.start..range.end.min(size);
        if range.is_empty() {
            continue;
        }
        let mut left = range.end - range.start;
        while let Some(read) = reads.peek() {
            let overlap = read.end.min(range.end).saturating_sub(read.start.max(range.start));
            left -= overlap;
            if read.end > range.end {
                break;
            }
            reads.next();
        }
        live[index as usize] += left;
    }
    let plain = |index: usize| before.extents()[index].plain;
    let mut used: Vec<usize> = (0..live.len()).filter(|index| live[*index] > 0).collect();
    let mut given_up = vec![false; live.len()];
    let mut tally = Tally { bytes_read: read.iter().map(|range| range.end - range.start).sum(), extents: used.len(), plain: 0 };
    tally.plain = tally.bytes_read + used.iter().map(|index| plain(*index)).sum::<u64>();
    let mut give_up = |index: usize, tally: &mut Tally| {
        given_up[index] = true;
        tally.extents -= 1;
        tally.bytes_read += live[index];
        tally.plain = tally.plain + live[index] - plain(index);
    };
    used.retain(|index| {
        let mostly_used = live[*index] * 2 >= plain(*index);
        if !mostly_used {
            give_up(*index, &mut tally);
        }
        mostly_used
    });
    if tally.all_extents() > most_extents(size) {
        used.sort_by_key(|index| live[*index]);
        let enough = most_extents(size) / 4 * 3;
        let many = used.iter().take_while(|index| {
            let more = tally.all_extents() > enough;
            if more {
                give_up(**index, &mut tally);
            }
            more
        });
        let count = many.count();
        used.drain(..count);
    }
    if tally.plain > most_plain(size) {
        // By the share that is still used, compared without a division.
        used.sort_by(|a, b| (u128::from(live[*a]) * u128::from(plain(*b))).cmp(&(u128::from(live[*b]) * u128::from(plain(*a)))));
        for index in used {
            if tally.plain <= most_plain(size) / 4 * 3 {
                break;
            }
            give_up(index, &mut tally);
        }
    }
    given_up
}

/// What a file will be made of.
struct Tally {
    /// Bytes that are stored anew.
    bytes_read: u64,
    /// Older extents.
    extents: usize,
    /// Plain bytes of all extents.
    plain: u64,
}

impl Tally {
    fn all_extents(&self) -> usize {
        self.extents + usize::try_from(self.bytes_read.div_ceil(EXTENT)).unwrap_or(usize::MAX)
    }
}

#[cfg(test)]
mod tests;
