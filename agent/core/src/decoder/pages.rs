//! That pages agree with each other, and where records begin behind their headers.

use crate::identity::{MajorVersion, SystemIdentifier, TimelineId};
use crate::lsn::Lsn;
use crate::page::{LONG_HEADER_SIZE, PAGE_SIZE, PageBeginning, PageHeader, SHORT_HEADER_SIZE};
use crate::segment::SegmentSize;

use super::{ADDRESS_LIMIT, DecodeError, align};

/// What every page has to agree with.
#[derive(Clone, Debug)]
pub(super) struct PageSequence {
    pub(super) size: SegmentSize,
    version: Option<MajorVersion>,
    timeline: Option<TimelineId>,
    system: Option<SystemIdentifier>,
}

impl PageSequence {
    pub(super) fn new(size: SegmentSize) -> Self {
        Self { size, version: None, timeline: None, system: None }
    }

    /// The version of the pages seen so far.
    pub(super) fn version(&self) -> Option<MajorVersion> {
        self.version
    }

    /// The timeline of the last page seen.
    pub(super) fn timeline(&self) -> Option<TimelineId> {
        self.timeline
    }

    /// Checks the header of the page at `lsn`, which is not older than its place.
    pub(super) fn check(&mut self, lsn: Lsn, header: &PageHeader) -> Result<(), DecodeError> {
        let size = self.size;
        if header.start != lsn {
            return Err(DecodeError::PageStart { lsn, found: header.start });
        }
        let first_of_segment = size.offset_of(lsn) == 0;
        if first_of_segment != header.long.is_some() || header.long.is_some_and(|long| long.segment_size != size) {
            return Err(DecodeError::Segment { lsn, size });
        }
        if let Some(expected) = self.version.filter(|version| *version != header.version) {
            return Err(DecodeError::Version { lsn, expected, found: header.version });
        }
        if let Some(expected) = self.timeline.filter(|timeline| *timeline > header.timeline) {
            return Err(DecodeError::Timeline { lsn, expected, found: header.timeline });
        }
        if let Some(found) = header.long.map(|long| long.system) {
            let expected = *self.system.get_or_insert(found);
            if found != expected {
                return Err(DecodeError::System { lsn, expected, found });
            }
        }
        (self.version, self.timeline) = (Some(header.version), Some(header.timeline));
        Ok(())
    }
}

/// Bytes of the header of the page at `lsn`.
pub(super) fn header_size(lsn: Lsn, size: SegmentSize) -> usize {
    if size.offset_of(lsn) == 0 { LONG_HEADER_SIZE } else { SHORT_HEADER_SIZE }
}

/// Where a record that may begin at `lsn` does begin: at a page's start behind the page's header. Two positions for which this is the same
/// have no record between them.
pub fn record_begin(lsn: Lsn, size: SegmentSize) -> Lsn {
    let header = if lsn.get().is_multiple_of(PAGE_SIZE) { header_size(lsn, size) as u64 } else { 0 };
    lsn.saturating_add(header)
}

/// Where the first record that begins on this page or behind it lies, going by the page's header; it may be in a later segment. Of a
/// segment's first page this is where the segment can be decoded from by itself; whether it needs the segment before it for its first
/// bytes, [`PageBeginning::Continuation`] says.
pub fn first_record(header: &PageHeader, size: SegmentSize) -> Lsn {
    let mut remaining = if let PageBeginning::Continuation { remaining } = header.begins { u64::from(remaining) } else { 0 };
    let mut page = header.start;
    while page < ADDRESS_LIMIT {
        let data = header_size(page, size) as u64;
        let end = align(page.saturating_add(data + remaining));
        // A record that would begin right at the next page begins behind that page's header.
        if end.bytes_since(page) < PAGE_SIZE {
            return end;
        }
        remaining = remaining.saturating_sub(PAGE_SIZE - data);
        page = page.saturating_add(PAGE_SIZE);
    }
    page
}
