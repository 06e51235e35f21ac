//! WAL page headers, and whether a file is the segment that its name promises.
//!
//! WAL is written in pages of 8 KiB. Each begins with a short header; the first of a segment has a long one that also names the
//! cluster. Records are the business of [`crate::decoder`].

use crate::history::TimelineHistory;
use crate::identity::{MajorVersion, SystemIdentifier, TimelineId};
use crate::le::{u16_at, u32_at, u64_at};
use crate::lsn::Lsn;
use crate::segment::{SegmentName, SegmentSize, SegmentSizeError};

/// Bytes in a WAL page: `XLOG_BLCKSZ` of every packaged PostgreSQL, and the only size Walkeep reads.
pub const PAGE_SIZE: u64 = 8192;
/// Bytes of the header of a page that is not a segment's first.
pub const SHORT_HEADER_SIZE: usize = 24;
/// Bytes of the header of a segment's first page.
pub const LONG_HEADER_SIZE: usize = 40;

/// The page begins with the rest of a record from the page before.
const FIRST_IS_CONTRECORD: u16 = 0x01;
const LONG_HEADER: u16 = 0x02;
/// The record left unfinished on the page before will never be finished; a new one begins here.
const FIRST_IS_OVERWRITE_CONTRECORD: u16 = 0x08;
const KNOWN_FLAGS: u16 = 0x0F;

/// The header of a WAL page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PageHeader {
    /// The server that wrote the page.
    pub version: MajorVersion,
    /// The timeline on which the page was begun.
    pub timeline: TimelineId,
    /// The page's own position.
    pub start: Lsn,
    /// How the page begins.
    pub begins: PageBeginning,
    /// What only a segment's first page tells.
    pub long: Option<LongHeader>,
}

/// What follows a page's header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PageBeginning {
    /// A record, or nothing yet.
    Record,
    /// The rest of a record that began on an earlier page.
    Continuation {
        /// Bytes of that record from here on, on this page and later ones.
        remaining: u32,
    },
    /// A record; the one left unfinished on the page before was lost in a crash and is void.
    Overwrite,
}

/// The part of the header that only a segment's first page has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LongHeader {
    /// The cluster.
    pub system: SystemIdentifier,
    /// The cluster's segment size.
    pub segment_size: SegmentSize,
}

/// The bytes are not the header of a WAL page.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PageError {
    /// There are fewer bytes than the header has.
    #[error("a page header takes {expected} bytes, found {found}")]
    TooShort {
        /// Bytes of the header.
        expected: usize,
        /// Bytes given.
        found: usize,
    },
    /// The page was never written.
    #[error("the page is empty: its header is zero")]
    Zero,
    /// The magic number is none of PostgreSQL 13 to 18.
    #[error("page magic {found:04X} is not that of PostgreSQL 13 to 18")]
    Magic {
        /// The number in the header.
        found: u16,
    },
    /// Flags that no known version sets, or a continuation of zero bytes.
    #[error("page flags {flags:04X} with {remaining} bytes of a continued record cannot be")]
    Flags {
        /// The header's flags.
        flags: u16,
        /// The header's count of continued bytes.
        remaining: u32,
    },
    /// The timeline is 0.
    #[error("the page is on timeline 0, which does not exist")]
    Timeline,
    /// The long header's segment size is none.
    #[error("in the page's long header: {0}")]
    SegmentSize(#[from] SegmentSizeError),
    /// The server was built with another WAL page size.
    #[error("expected WAL pages of {PAGE_SIZE} bytes, found {found}")]
    BlockSize {
        /// The size in the long header.
        found: u32,
    },
}

/// The version whose pages have this magic number.
fn version_of(magic: u16) -> Option<MajorVersion> {
    let major = match magic {
        0xD106 => 13,
        0xD10D => 14,
        0xD110 => 15,
        0xD113 => 16,
        0xD116 => 17,
        0xD118 => 18,
        _ => return None,
    };
    Some(MajorVersion::new(major))
}

impl PageHeader {
    /// Reads the header at the beginning of `bytes`.
    pub fn decode(bytes: &[u8]) -> Result<Self, PageError> {
        let too_short = |expected| PageError::TooShort { expected, found: bytes.len() };
        let fields = || Some((u16_at(bytes, 0)?, u16_at(bytes, 2)?, u32_at(bytes, 4)?, u64_at(bytes, 8)?, u32_at(bytes, 16)?));
        let header = bytes.get(..SHORT_HEADER_SIZE).ok_or(too_short(SHORT_HEADER_SIZE))?;
        let (magic, flags, timeline, start, remaining) = fields().ok_or(too_short(SHORT_HEADER_SIZE))?;
        if header.iter().all(|&byte| byte == 0) {
            return Err(PageError::Zero);
        }
        let version = version_of(magic).ok_or(PageError::Magic { found: magic })?;
        let begins = match (flags & FIRST_IS_CONTRECORD != 0, flags & FIRST_IS_OVERWRITE_CONTRECORD != 0) {
            (false, false) if remaining == 0 => PageBeginning::Record,
            (false, true) if remaining == 0 => PageBeginning::Overwrite,
            (true, false) if remaining != 0 => PageBeginning::Continuation { remaining },
            _ => return Err(PageError::Flags { flags, remaining }),
        };
        if flags & !KNOWN_FLAGS != 0 {
            return Err(PageError::Flags { flags, remaining });
        }
        let timeline = TimelineId::new(timeline).ok_or(PageError::Timeline)?;
        let long = if flags & LONG_HEADER != 0 { Some(LongHeader::decode(bytes)?) } else { None };
        Ok(Self { version, timeline, start: Lsn::new(start), begins, long })
    }
}

impl LongHeader {
    fn decode(bytes: &[u8]) -> Result<Self, PageError> {
        let fields = || Some((u64_at(bytes, 24)?, u32_at(bytes, 32)?, u32_at(bytes, 36)?));
        let (system, segment_size, block_size) = fields().ok_or(PageError::TooShort { expected: LONG_HEADER_SIZE, found: bytes.len() })?;
        let segment_size = SegmentSize::new(segment_size.into())?;
        if u64::from(block_size) != PAGE_SIZE {
            return Err(PageError::BlockSize { found: block_size });
        }
        Ok(Self { system: SystemIdentifier::new(system), segment_size })
    }
}

/// What a segment says of itself in its first page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SegmentHeader {
    /// The cluster that wrote it.
    pub system: SystemIdentifier,
    /// That cluster's segment size.
    pub segment_size: SegmentSize,
    /// The server that wrote it.
    pub version: MajorVersion,
    /// The timeline of the first page; on the first segment of a timeline it may still be an ancestor.
    pub timeline: TimelineId,
    /// The segment's position.
    pub start: Lsn,
}

impl SegmentHeader {
    /// Reads the header of the segment whose first bytes (at least [`LONG_HEADER_SIZE`]) are given.
    pub fn read(bytes: &[u8]) -> Result<Self, SegmentError> {
        let header = PageHeader::decode(bytes)?;
        let long = header.long.ok_or(SegmentError::NotFirstPage { start: header.start })?;
        let (version, timeline, start) = (header.version, header.timeline, header.start);
        Ok(Self { system: long.system, segment_size: long.segment_size, version, timeline, start })
    }
}

/// A file is not the segment that its name promises.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SegmentError {
    /// The name cannot occur in a cluster with this segment size.
    #[error("no cluster with segments of {} bytes has a segment {name}", size.bytes())]
    Name {
        /// The file's name.
        name: SegmentName,
        /// The cluster's segment size.
        size: SegmentSize,
    },
    /// The file is not as long as a segment.
    #[error("expected {expected} bytes, found {found}")]
    Length {
        /// The cluster's segment size.
        expected: u64,
        /// The file's.
        found: u64,
    },
    /// The first page has no readable header.
    #[error(transparent)]
    Page(#[from] PageError),
    /// The first page has a short header.
    #[error("the file begins with an inner page of a segment, of {start}")]
    NotFirstPage {
        /// Where that page says it lies.
        start: Lsn,
    },
    /// Another cluster's segment.
    #[error("expected WAL of the cluster with system identifier {expected}, found {found}")]
    System {
        /// The cluster's.
        expected: SystemIdentifier,
        /// The file's.
        found: SystemIdentifier,
    },
    /// Written with another segment size.
    #[error("expected a segment size of {} bytes in the header, found {}", expected.bytes(), found.bytes())]
    SegmentSize {
        /// The cluster's.
        expected: SegmentSize,
        /// The file's.
        found: SegmentSize,
    },
    /// Another segment's content: recycled and not yet written, or renamed.
    #[error("expected WAL from {expected}, found WAL from {found}")]
    Start {
        /// Where a segment of this name begins.
        expected: Lsn,
        /// Where this one does.
        found: Lsn,
    },
    /// A timeline later than the name's.
    #[error("expected WAL of timeline {expected} or an ancestor, found timeline {found}")]
    LaterTimeline {
        /// The name's.
        expected: TimelineId,
        /// The first page's.
        found: TimelineId,
    },
    /// Not the timeline that the history gives for this position.
    #[error("expected WAL of timeline {expected} at {start}, as in the timeline's history, found timeline {found}")]
    Timeline {
        /// The segment's position.
        start: Lsn,
        /// The history's timeline there.
        expected: TimelineId,
        /// The first page's.
        found: TimelineId,
    },
}

/// Checks that `bytes` is the whole segment `name` of the cluster, by its length and its first page.
///
/// `history`, if known, is that of the name's timeline: it tells on which timeline the first page must be. Without it any timeline
/// up to the name's is believed, since a new timeline's first segment begins with its parent's pages.
pub fn check_segment(
    name: SegmentName,
    size: SegmentSize,
    system: SystemIdentifier,
    history: Option<&TimelineHistory>,
    bytes: &[u8],
) -> Result<(), SegmentError> {
    check_length(size, bytes)?;
    check_partial_segment(name, size, system, history, bytes)
}

/// Checks by its first page that `bytes` is from segment `name` of the cluster. For `.partial` files, whose length says nothing:
/// a server keeps them as long as a segment, but other tools need not.
pub fn check_partial_segment(
    name: SegmentName,
    size: SegmentSize,
    system: SystemIdentifier,
    history: Option<&TimelineHistory>,
    bytes: &[u8],
) -> Result<(), SegmentError> {
    let expected = name.number(size).ok_or(SegmentError::Name { name, size })?.start(size);
    let header = SegmentHeader::read(bytes)?;
    if header.system != system {
        return Err(SegmentError::System { expected: system, found: header.system });
    }
    if header.segment_size != size {
        return Err(SegmentError::SegmentSize { expected: size, found: header.segment_size });
    }
    if header.start != expected {
        return Err(SegmentError::Start { expected, found: header.start });
    }
    if header.timeline > name.timeline() {
        return Err(SegmentError::LaterTimeline { expected: name.timeline(), found: header.timeline });
    }
    match history.map(|history| history.timeline_at(expected)) {
        Some(timeline) if timeline != header.timeline => {
            Err(SegmentError::Timeline { start: expected, expected: timeline, found: header.timeline })
        }
        _ => Ok(()),
    }
}

fn check_length(size: SegmentSize, bytes: &[u8]) -> Result<(), SegmentError> {
    let found = bytes.len() as u64;
    (found == size.bytes()).then_some(()).ok_or(SegmentError::Length { expected: size.bytes(), found })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SYSTEM: SystemIdentifier = SystemIdentifier::new(7_710_471_828_323_784_901);

    fn size() -> SegmentSize {
        SegmentSize::new(1 << 20).expect("a valid size")
    }

    fn name(text: &str) -> SegmentName {
        text.parse().expect("a name")
    }

    /// Segment 3 of 1 MiB, begun on timeline 2.
    fn segment() -> Vec<u8> {
        let mut bytes = vec![0; 1 << 20];
        bytes[0..2].copy_from_slice(&0xD110u16.to_le_bytes());
        bytes[2] = 0x02;
        bytes[4] = 2;
        bytes[8..16].copy_from_slice(&0x30_0000u64.to_le_bytes());
        bytes[24..32].copy_from_slice(&SYSTEM.get().to_le_bytes());
        bytes[32..36].copy_from_slice(&(1u32 << 20).to_le_bytes());
        bytes[36..40].copy_from_slice(&8192u32.to_le_bytes());
        bytes
    }

    fn check(file: &str, bytes: &[u8]) -> Result<(), SegmentError> {
        check_segment(name(file), size(), SYSTEM, None, bytes)
    }

    #[test]
    fn accepts_the_segment_of_the_name() {
        let header = SegmentHeader::read(&segment()[..LONG_HEADER_SIZE]).expect("a header");
        assert_eq!((header.system, header.segment_size, header.start), (SYSTEM, size(), Lsn::new(0x30_0000)));
        assert_eq!((header.version, header.timeline), (MajorVersion::new(15), TimelineId::new(2).expect("not zero")));
        assert_eq!(check("000000020000000000000003", &segment()), Ok(()));
        assert_eq!(check("000000050000000000000003", &segment()), Ok(()), "an ancestor's page");
    }

    #[test]
    fn says_what_is_wrong() {
        let text = |file: &str, bytes: &[u8]| check(file, bytes).expect_err("refused").to_string();
        let file = "000000020000000000000003";
        assert_eq!(text(file, &segment()[1..]), "expected 1048576 bytes, found 1048575");
        assert_eq!(text("000000020000000000000004", &segment()), "expected WAL from 0/400000, found WAL from 0/300000");
        assert_eq!(text("000000010000000000000003", &segment()), "expected WAL of timeline 1 or an ancestor, found timeline 2");
        assert_eq!(
            text("000000020000000000001000", &segment()),
            "no cluster with segments of 1048576 bytes has a segment 000000020000000000001000"
        );
        assert_eq!(text(file, &vec![0; 1 << 20]), "the page is empty: its header is zero");

        let changed = |offset: usize, value: u8| {
            let mut bytes = segment();
            bytes[offset] = value;
            text(file, &bytes)
        };
        assert_eq!(changed(0, 0x11), "page magic D111 is not that of PostgreSQL 13 to 18");
        assert_eq!(changed(2, 0x00), "the file begins with an inner page of a segment, of 0/300000");
        assert_eq!(changed(2, 0x03), "page flags 0003 with 0 bytes of a continued record cannot be");
        assert_eq!(changed(2, 0x22), "page flags 0022 with 0 bytes of a continued record cannot be");
        assert_eq!(changed(4, 0), "the page is on timeline 0, which does not exist");
        assert_eq!(changed(24, 0), "expected WAL of the cluster with system identifier 7710471828323784901, found 7710471828323784704");
        assert_eq!(changed(34, 0x20), "expected a segment size of 1048576 bytes in the header, found 2097152");
        assert_eq!(
            changed(34, 0x30),
            "in the page's long header: 3145728 bytes is not a WAL segment size: expected a power of two from 1 MiB to 1 GiB"
        );
        assert_eq!(changed(37, 0x40), "expected WAL pages of 8192 bytes, found 16384");
    }

    #[test]
    fn a_history_decides_the_timeline() {
        let three = TimelineId::new(3).expect("not zero");
        let check = |history: &str| {
            let history = TimelineHistory::parse(three, history.as_bytes()).expect("a history");
            check_segment(name("000000030000000000000003"), size(), SYSTEM, Some(&history), &segment())
        };
        assert_eq!(check("1\t0/200000\tx\n2\t0/300028\ty\n"), Ok(()), "left within this segment");
        assert!(matches!(check("1\t0/200000\tx\n2\t0/300000\ty\n"), Err(SegmentError::Timeline { .. })));
        assert!(matches!(check("1\t0/300100\tx\n"), Err(SegmentError::Timeline { .. })));
    }

    #[test]
    fn a_partial_may_be_short() {
        let partial = |bytes: &[u8]| check_partial_segment(name("000000020000000000000003"), size(), SYSTEM, None, bytes);
        assert_eq!(partial(&segment()[..8192]), Ok(()));
        assert_eq!(partial(&segment()[..39]), Err(PageError::TooShort { expected: 40, found: 39 }.into()));
        assert_eq!(partial(&[]), Err(PageError::TooShort { expected: 24, found: 0 }.into()));
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = SegmentHeader::read(&bytes);
        }
    }
}
