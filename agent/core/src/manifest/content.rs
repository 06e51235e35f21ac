//! What a file of a backup is made of: extents, and which stretches of them lie where in the file.

use std::ops::Range;

use super::Extent;

/// Where bytes come from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Source {
    /// Nothing is stored: they are zeros.
    Zeros,
    /// A stretch of an extent.
    Extent {
        /// Which, counted from 0.
        index: u32,
        /// Its first byte, counted in the extent's plain bytes.
        from: u64,
    },
}

/// Some bytes of a file that come from one place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Run {
    /// Where they come from.
    pub source: Source,
    /// How many.
    pub length: u64,
}

/// A stretch of an extent, and where it goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Placement {
    /// Where it goes in the file.
    pub offset: u64,
    /// Where it begins in the extent's plain bytes.
    pub from: u64,
    /// Bytes.
    pub length: u64,
}

/// The bytes of a file, by where they are stored.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Content {
    size: u64,
    extents: Vec<Extent>,
    runs: Vec<Run>,
}

impl Content {
    /// Extents, one after the other.
    pub fn in_order(extents: Vec<Extent>) -> Result<Self, &'static str> {
        let run = |(index, extent): (usize, &Extent)| {
            let index = u32::try_from(index).map_err(|_| TOO_MANY)?;
            Ok::<_, &'static str>(Run { source: Source::Extent { index, from: 0 }, length: extent.plain })
        };
        let runs = extents.iter().enumerate().map(run).collect::<Result<_, _>>()?;
        Self::new(extents, runs)
    }

    /// These runs of these extents, each of which is used. The broken rule otherwise.
    pub fn new(extents: Vec<Extent>, runs: Vec<Run>) -> Result<Self, &'static str> {
        let mut used = vec![false; extents.len()];
        let mut size = 0_u64;
        for run in &runs {
            if run.length == 0 {
                return Err("a run is not empty");
            }
            if let Source::Extent { index, from } = run.source {
                let extent = extents.get(index as usize).ok_or("a run is of an extent of the same file")?;
                if from.checked_add(run.length).is_none_or(|end| end > extent.plain) {
                    return Err("a run ends where its extent does, or before");
                }
                used[index as usize] = true;
            }
            size = size.checked_add(run.length).ok_or("a file is longer than any file")?;
        }
        if used.contains(&false) {
            return Err("every extent of a file is used");
        }
        Ok(Self { size, extents, runs })
    }

    /// Bytes of the file.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The extents it needs.
    pub fn extents(&self) -> &[Extent] {
        &self.extents
    }

    /// Its bytes in order.
    pub fn runs(&self) -> &[Run] {
        &self.runs
    }

    /// Whether it is its extents, one after the other, each whole.
    pub fn is_in_order(&self) -> bool {
        let whole = |(at, (run, extent)): (usize, (&Run, &Extent))| {
            run.length == extent.plain && matches!(run.source, Source::Extent { index, from: 0 } if index as usize == at)
        };
        self.runs.len() == self.extents.len() && self.runs.iter().zip(&self.extents).enumerate().all(whole)
    }

    /// Stored bytes of its extents.
    pub fn stored(&self) -> u64 {
        self.extents.iter().fold(0, |sum, extent| sum.saturating_add(extent.stored))
    }

    /// Where the bytes of each extent go, by its index.
    pub fn placements(&self) -> Vec<Vec<Placement>> {
        let mut placements = vec![Vec::new(); self.extents.len()];
        for (range, run) in self.located() {
            if let Source::Extent { index, from } = run.source {
                placements[index as usize].push(Placement { offset: range.start, from, length: run.length });
            }
        }
        placements
    }

    /// The runs, each with the stretch of the file that it is.
    pub fn located(&self) -> impl Iterator<Item = (Range<u64>, Run)> + '_ {
        self.runs.iter().scan(0, |at, run| {
            let start = *at;
            *at += run.length;
            Some((start..*at, *run))
        })
    }
}

const TOO_MANY: &str = "a file has at most 2^32 extents";
