//! WAL segments: their size, their number in the stream and their names.
//!
//! A name can be read without knowing the segment size; turning it into a position needs the size, which is a fact of the
//! cluster (`initdb --wal-segsize`) and never assumed.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::identity::{TimelineId, parse_hex8};
use crate::lsn::Lsn;

/// Bytes in one WAL segment: a power of two from 1 MiB to 1 GiB.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct SegmentSize(u64);

/// The number is not a segment size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{bytes} bytes is not a WAL segment size: expected a power of two from 1 MiB to 1 GiB")]
pub struct SegmentSizeError {
    bytes: u64,
}

impl SegmentSize {
    /// PostgreSQL's default, 16 MiB.
    pub const DEFAULT: SegmentSize = SegmentSize(16 << 20);

    /// A segment size of `bytes`.
    pub fn new(bytes: u64) -> Result<Self, SegmentSizeError> {
        let valid = bytes.is_power_of_two() && (1 << 20..=1 << 30).contains(&bytes);
        valid.then_some(Self(bytes)).ok_or(SegmentSizeError { bytes })
    }

    /// Bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }

    /// Segments in one 4 GiB log, the middle part of a segment's name.
    const fn per_log(self) -> u64 {
        (1 << 32) / self.0
    }

    /// The segment that holds the byte at `lsn`.
    pub const fn segment_of(self, lsn: Lsn) -> SegmentNumber {
        SegmentNumber(lsn.get() / self.0)
    }

    /// Bytes from the start of the segment that holds `lsn` to `lsn`.
    pub const fn offset_of(self, lsn: Lsn) -> u64 {
        lsn.get() % self.0
    }

    /// The first position of the segment that holds `lsn`.
    pub const fn align_down(self, lsn: Lsn) -> Lsn {
        Lsn::new(lsn.get() - lsn.get() % self.0)
    }
}

impl TryFrom<u64> for SegmentSize {
    type Error = SegmentSizeError;

    fn try_from(bytes: u64) -> Result<Self, Self::Error> {
        Self::new(bytes)
    }
}

impl From<SegmentSize> for u64 {
    fn from(size: SegmentSize) -> u64 {
        size.0
    }
}

/// The position of a segment in the WAL stream, counted from 0 in whole segments.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SegmentNumber(u64);

impl SegmentNumber {
    /// The segment with this number.
    pub const fn new(value: u64) -> Self {
        Self(value)
    }

    /// The number itself.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The first position in the segment. Saturates beyond the address space, where no segment can be.
    pub const fn start(self, size: SegmentSize) -> Lsn {
        Lsn::new(self.0.saturating_mul(size.0))
    }

    /// The first position after the segment.
    pub const fn end(self, size: SegmentSize) -> Lsn {
        self.start(size).saturating_add(size.0)
    }

    /// The following segment.
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }

    /// The preceding segment; `None` before the first.
    pub fn previous(self) -> Option<Self> {
        self.0.checked_sub(1).map(Self)
    }

    /// This segment's name on `timeline`.
    pub const fn name(self, timeline: TimelineId, size: SegmentSize) -> SegmentName {
        // The address space ends at 2^64, so both parts fit 32 bits for every position a server can write.
        SegmentName { timeline, log: (self.0 / size.per_log()) as u32, segment: (self.0 % size.per_log()) as u32 }
    }
}

/// A segment's 24-digit file name: timeline, log, segment.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentName {
    timeline: TimelineId,
    log: u32,
    segment: u32,
}

impl SegmentName {
    /// The timeline of the name. The first pages of a timeline's first segment may belong to its parent.
    pub const fn timeline(self) -> TimelineId {
        self.timeline
    }

    /// The middle eight digits: the 4 GiB log.
    pub const fn log(self) -> u32 {
        self.log
    }

    /// Where the segment lies in the stream; `None` if a cluster with this segment size cannot have such a name.
    pub fn number(self, size: SegmentSize) -> Option<SegmentNumber> {
        let segment = u64::from(self.segment);
        (segment < size.per_log()).then(|| SegmentNumber(u64::from(self.log) * size.per_log() + segment))
    }
}

impl fmt::Display for SegmentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{:08X}{:08X}", self.timeline.hex(), self.log, self.segment)
    }
}

impl fmt::Debug for SegmentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not a segment's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not the name of a WAL segment: expected 24 upper-case hexadecimal digits")]
pub struct ParseSegmentNameError {
    text: String,
}

impl FromStr for SegmentName {
    type Err = ParseSegmentNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let timeline = TimelineId::parse_hex(text.get(0..8)?)?;
            let (log, segment) = (parse_hex8(text.get(8..16)?)?, parse_hex8(text.get(16..)?)?);
            Some(SegmentName { timeline, log, segment })
        };
        parse().ok_or_else(|| ParseSegmentNameError { text: text.chars().take(64).collect() })
    }
}

impl Serialize for SegmentName {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for SegmentName {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn size(mib: u64) -> SegmentSize {
        SegmentSize::new(mib << 20).expect("a valid size")
    }

    #[test]
    fn names_follow_the_segment_size() {
        let tli = TimelineId::FIRST;
        let name = |mib, lsn: u64| size(mib).segment_of(Lsn::new(lsn)).name(tli, size(mib)).to_string();
        assert_eq!(name(16, 0x1_0000_0000), "000000010000000100000000");
        assert_eq!(name(16, 0xFF00_0000), "0000000100000000000000FF");
        assert_eq!(name(1, 0xFFF0_0000), "000000010000000000000FFF");
        assert_eq!(name(64, 0xFC00_0000), "00000001000000000000003F");
        assert_eq!(name(1024, 0xC000_0000), "000000010000000000000003");
        assert_eq!(name(1024, 0x1_0000_0000), "000000010000000100000000");
    }

    #[test]
    fn a_name_of_another_segment_size_has_no_number() {
        let name: SegmentName = "000000010000000000000100".parse().expect("a name");
        assert_eq!(name.number(size(16)), None, "16 MiB segments end at FF");
        assert_eq!(name.number(size(1)).map(SegmentNumber::get), Some(0x100));
    }

    #[test]
    fn refuses_what_is_not_a_name() {
        for text in [
            "",
            "00000001000000000000000",
            "0000000100000000000000001",
            "000000000000000000000001",
            "00000001000000000000000a",
            "0000000100000000000000é",
        ] {
            assert!(text.parse::<SegmentName>().is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_are_powers_of_two() {
        for bytes in [0, 1, 1 << 19, 3 << 20, 1 << 31, 1 << 63, u64::MAX] {
            assert!(SegmentSize::new(bytes).is_err(), "{bytes}");
        }
    }

    proptest! {
        #[test]
        fn number_and_name_round_trip(lsn: u64, exponent in 20u32..=30, tli in 1u32..) {
            let size = SegmentSize::new(1 << exponent).expect("a valid size");
            let number = size.segment_of(Lsn::new(lsn));
            let name = number.name(TimelineId::new(tli).expect("not zero"), size);
            prop_assert_eq!(name.number(size), Some(number));
            prop_assert_eq!(name.to_string().parse::<SegmentName>(), Ok(name));
            prop_assert!(number.start(size) <= Lsn::new(lsn));
        }

        #[test]
        fn names_sort_as_their_positions(a: u64, b: u64) {
            let size = SegmentSize::DEFAULT;
            let name = |lsn| size.segment_of(Lsn::new(lsn)).name(TimelineId::FIRST, size).to_string();
            let (first, second) = (size.segment_of(Lsn::new(a)), size.segment_of(Lsn::new(b)));
            prop_assert_eq!(first.cmp(&second), name(a).cmp(&name(b)));
        }
    }
}
