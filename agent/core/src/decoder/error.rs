//! Why WAL cannot be read on, and where.

use crate::identity::{MajorVersion, SystemIdentifier, TimelineId};
use crate::lsn::Lsn;
use crate::page::PageError;
use crate::segment::SegmentSize;

/// WAL that cannot be read on. Everything before [`Decoder::position`](crate::decoder::Decoder::position) was whole.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// A page header cannot be read.
    #[error("WAL page at {lsn}: {reason}")]
    Page {
        /// The page.
        lsn: Lsn,
        /// What is wrong with its header.
        reason: PageError,
    },
    /// The page belongs to a later position.
    #[error("WAL page at {lsn}: it says that it lies at {found}")]
    PageStart {
        /// Where it lies.
        lsn: Lsn,
        /// Where it says it does.
        found: Lsn,
    },
    /// Another version's page among the pages of one.
    #[error("WAL page at {lsn}: expected one of PostgreSQL {expected}, found {found}")]
    Version {
        /// The page.
        lsn: Lsn,
        /// The version of the pages before.
        expected: MajorVersion,
        /// This page's.
        found: MajorVersion,
    },
    /// Timelines never fall along a history.
    #[error("WAL page at {lsn}: expected timeline {expected} or a later one, found {found}")]
    Timeline {
        /// The page.
        lsn: Lsn,
        /// The timeline of the page before.
        expected: TimelineId,
        /// This page's.
        found: TimelineId,
    },
    /// Another cluster's segment among those of one.
    #[error("WAL segment at {lsn}: expected system identifier {expected}, found {found}")]
    System {
        /// The segment's first page.
        lsn: Lsn,
        /// That of the segments before.
        expected: SystemIdentifier,
        /// This segment's.
        found: SystemIdentifier,
    },
    /// The segment's first page has a short header, another page a long one, or the size is another.
    #[error("WAL page at {lsn}: its header does not fit segments of {} bytes", size.bytes())]
    Segment {
        /// The page.
        lsn: Lsn,
        /// The segment size the decoder was given.
        size: SegmentSize,
    },
    /// The page does not go on with the record that the page before left unfinished, or goes on with one that does not exist.
    #[error("WAL page at {lsn}: expected {expected} bytes of a record from the page before, found {found}")]
    Continuation {
        /// The page.
        lsn: Lsn,
        /// Bytes of the unfinished record; 0 if there is none.
        expected: u64,
        /// Bytes according to the page.
        found: u32,
    },
    /// No record has this length.
    #[error("WAL record at {lsn}: a length of {length} bytes is not possible")]
    Length {
        /// The record.
        lsn: Lsn,
        /// Its length.
        length: u32,
    },
    /// The record does not follow the one before it.
    #[error("WAL record at {lsn}: expected a link back to {expected}, found {found}")]
    Link {
        /// The record.
        lsn: Lsn,
        /// Where the record before begins.
        expected: Lsn,
        /// Where the link leads.
        found: Lsn,
    },
    /// The first record's link does not lead back.
    #[error("WAL record at {lsn}: its link to the record before leads forward, to {found}")]
    ForwardLink {
        /// The record.
        lsn: Lsn,
        /// Where the link leads.
        found: Lsn,
    },
    /// The version knows no such resource manager.
    #[error("WAL record at {lsn}: PostgreSQL {version} has no resource manager {found}")]
    ResourceManager {
        /// The record.
        lsn: Lsn,
        /// The pages' version.
        version: MajorVersion,
        /// The record's resource manager.
        found: u8,
    },
    /// The record's bytes are not those that were written.
    #[error("WAL record at {lsn}: expected CRC {expected:08X}, found {found:08X}")]
    Checksum {
        /// The record.
        lsn: Lsn,
        /// What the record says.
        expected: u32,
        /// What its bytes give.
        found: u32,
    },
    /// The record is sound, but its content does not have the layout of its kind.
    #[error("WAL record at {lsn}: malformed {kind}")]
    Malformed {
        /// The record.
        lsn: Lsn,
        /// What it should have been.
        kind: &'static str,
    },
}
