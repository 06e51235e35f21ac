//! Digests: rows of summaries, and summaries of digests.
//!
//! A digest of the first level has a summary for each of up to 64 segments, one of the second a summary for each of up to 32 of those, one of the
//! third for each of 32 of these: 65,536 segments, 1 TiB of WAL. Where a window begins and ends is a matter of segment numbers alone, so
//! whoever makes digests makes the same ones.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::identity::TimelineId;
use crate::lsn::Lsn;
use crate::segment::{SegmentNumber, SegmentSize};

use super::summary::{Run, Summary};

/// The format of digests and block maps.
const FORMAT: u32 = 1;
const MINUTE: i64 = 60_000_000;

/// How many segments a digest may cover.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(into = "u8", try_from = "u8")]
pub struct Level(u8);

impl Level {
    /// Its summaries are of single segments.
    pub const SEGMENTS: Self = Self(0);
    /// The highest.
    pub const TOP: Self = Self(2);

    /// All, the highest first.
    pub const DOWNWARDS: [Self; 3] = [Self(2), Self(1), Self(0)];

    /// The level with this number.
    pub fn new(number: u8) -> Option<Self> {
        (number <= Self::TOP.0).then_some(Self(number))
    }

    /// Its number.
    pub fn get(self) -> u8 {
        self.0
    }

    /// The one that has summaries of these.
    pub fn above(self) -> Option<Self> {
        Self::new(self.0 + 1)
    }

    /// The one of whose digests this has summaries.
    pub fn below(self) -> Option<Self> {
        self.0.checked_sub(1).map(Self)
    }

    /// Segments of a whole window.
    pub fn segments(self) -> u64 {
        [64, 64 * 32, 64 * 32 * 32][usize::from(self.0)]
    }

    /// The window that a segment lies in.
    pub fn window(self, number: SegmentNumber) -> Run {
        let first = number.get() - number.get() % self.segments();
        Run { first: SegmentNumber::new(first), end: SegmentNumber::new(first + self.segments()) }
    }

    /// The width of a rate's time in it.
    fn bucket(self) -> i64 {
        [MINUTE, 60 * MINUTE, 24 * 60 * MINUTE][usize::from(self.0)]
    }
}

impl From<Level> for u8 {
    fn from(level: Level) -> u8 {
        level.0
    }
}

impl TryFrom<u8> for Level {
    type Error = String;

    fn try_from(number: u8) -> Result<Self, Self::Error> {
        Self::new(number).ok_or_else(|| format!("there is no level {number}"))
    }
}

/// Which WAL a digest tells of.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct DigestName {
    /// The timeline whose files were read.
    pub timeline: TimelineId,
    /// The level.
    pub level: Level,
    /// Where its first segment begins.
    pub from: Lsn,
    /// Where its last segment ends.
    pub to: Lsn,
}

impl DigestName {
    /// The segments from the first to the last.
    pub fn span(&self, size: SegmentSize) -> Run {
        Run { first: size.segment_of(self.from), end: size.segment_of(self.to) }
    }

    /// Whether such a digest can be: whole segments within one window.
    pub fn is_sound(&self, size: SegmentSize) -> bool {
        let span = self.span(size);
        let aligned = size.offset_of(self.from) == 0 && size.offset_of(self.to) == 0;
        aligned && self.from < self.to && span.end <= self.level.window(span.first).end
    }
}

impl fmt::Display for DigestName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "digest {} of timeline {} from {} to {}", self.level.0, self.timeline, self.from, self.to)
    }
}

/// Which WAL a block map tells of.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct BlocksName {
    /// The timeline whose files were read.
    pub timeline: TimelineId,
    /// Where its first segment begins.
    pub from: Lsn,
    /// Where its last segment ends.
    pub to: Lsn,
}

/// A row of summaries.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Digest {
    /// Which WAL it tells of.
    pub name: DigestName,
    /// In order: of single segments, or of the digests of the level below.
    pub summaries: Vec<Summary>,
}

/// The bytes are not a digest.
#[derive(Debug, thiserror::Error)]
pub enum ReadDigestError {
    /// Not its JSON.
    #[error("it is no digest: {0}")]
    Json(#[from] serde_json::Error),
    /// Of a later Walkeep.
    #[error("it has format {0}; this Walkeep reads format {FORMAT}")]
    Format(u32),
    /// It does not hold what its name says.
    #[error("it holds {0}")]
    OtherName(DigestName),
    /// Its summaries are not in order, or not of its window.
    #[error("its summaries are out of order")]
    Disorder,
}

#[derive(Serialize, Deserialize)]
struct Head {
    format: u32,
    #[serde(flatten)]
    name: DigestName,
}

impl Digest {
    /// Of these summaries of one window, which are in order. `None` if there are none.
    pub fn of(timeline: TimelineId, level: Level, summaries: Vec<Summary>, size: SegmentSize) -> Option<Self> {
        let (first, last) = (summaries.first()?.span().first, summaries.last()?.span().end);
        let name = DigestName { timeline, level, from: first.start(size), to: last.start(size) };
        Some(Self { name, summaries })
    }

    /// One summary of all.
    pub fn folded(&self) -> Option<Summary> {
        let bucket = self.name.level.above().unwrap_or(Level::TOP).bucket();
        let first = self.summaries.first()?;
        let mut folded = Summary::empty(first.span().first, first.records.from);
        folded.segments.clear();
        self.summaries.iter().for_each(|summary| folded.join(summary, bucket));
        Some(folded)
    }

    /// As it is stored: a line of JSON that says what it is, and a line for each summary.
    pub fn to_json_lines(&self) -> serde_json::Result<Vec<u8>> {
        let mut lines = serde_json::to_vec(&Head { format: FORMAT, name: self.name })?;
        for summary in &self.summaries {
            lines.push(b'\n');
            serde_json::to_writer(&mut lines, summary)?;
        }
        lines.push(b'\n');
        Ok(lines)
    }

    /// Reads what [`Digest::to_json_lines`] wrote, and proves that it is the one called `name`.
    pub fn from_json_lines(name: DigestName, bytes: &[u8], size: SegmentSize) -> Result<Self, ReadDigestError> {
        let mut lines = bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        let head: Head = serde_json::from_slice(lines.next().unwrap_or_default())?;
        if head.format != FORMAT {
            return Err(ReadDigestError::Format(head.format));
        }
        if head.name != name {
            return Err(ReadDigestError::OtherName(head.name));
        }
        let summaries = lines.map(serde_json::from_slice).collect::<Result<Vec<Summary>, _>>()?;
        let in_order = |summary: &Summary| summary.segments.iter().all(|run| run.first < run.end) && !summary.segments.is_empty();
        let follows = |pair: &[Summary]| pair[0].span().end <= pair[1].span().first;
        let ends = summaries.first().map(|first| first.span().first.start(size)) == Some(name.from)
            && summaries.last().map(|last| last.span().end.start(size)) == Some(name.to);
        if !ends || !name.is_sound(size) || !summaries.iter().all(in_order) || !summaries.windows(2).all(follows) {
            return Err(ReadDigestError::Disorder);
        }
        Ok(Self { name, summaries })
    }
}
