//! Decodes a stream of WAL into its records, and finds where valid WAL ends.
//!
//! Sans I/O: the caller feeds bytes in any chunking and asks for records, or for the events that recovery can stop at, until there is
//! none. Every page header and every record's checksum is verified on the way. What records say is the business of [`crate::record`].

mod error;
mod pages;

use std::ops::Range;

use crate::event::{WalEvent, WalEventKind};
use crate::identity::{MajorVersion, TimelineId};
use crate::le::u32_at;
use crate::lsn::Lsn;
use crate::page::{PAGE_SIZE, PageBeginning, PageError, PageHeader};
use crate::record::{self, HEADER_SIZE, MAX_SIZE, Record, RecordHeader};
use crate::segment::SegmentSize;

pub use error::DecodeError;
pub use pages::first_record;

use pages::PageSequence;

/// Records begin at multiples of this: the server's `MAXIMUM_ALIGNOF`.
const ALIGNMENT: u64 = 8;
/// No WAL reaches so far. Stopping here keeps every sum below from overflowing.
const ADDRESS_LIMIT: Lsn = Lsn::new(u64::MAX - (1 << 33));
/// A buffer that grew beyond this for one long record is given back afterwards.
const KEPT_BUFFER: usize = 1 << 20;

/// Turns WAL bytes into records. Holds what was fed and not yet asked for, and at most one unfinished record.
///
/// Nothing is allocated for a record that lies on one page; one that goes on is collected in a buffer that is used again. Feed pieces that
/// fit the processor's cache, 64 KiB to 1 MiB.
///
/// ```
/// # use walkeep_core::{Lsn, SegmentSize, decoder::{Decoder, DecodeError}, record::Content};
/// # fn example(segments: Vec<Vec<u8>>) -> Result<Lsn, DecodeError> {
/// let mut decoder = Decoder::new(Lsn::new(0x300_0000), SegmentSize::DEFAULT);
/// for segment in segments {
///     for piece in segment.chunks(1 << 18) {
///         decoder.feed(piece);
///         while let Some(record) = decoder.next_record()? {
///             if let Content::Commit(commit) = record.content() {
///                 println!("{} {} {}", record.start, commit.xid, commit.time);
///             }
///             for block in record.blocks() {
///                 println!("{} {} {}", block.relation, block.fork, block.block);
///             }
///         }
///     }
/// }
/// # Ok(
/// decoder.position()
/// # )
/// # }
/// ```
///
/// Segments can be decoded in parallel, one decoder each: begun at a segment's start a decoder passes over the rest of the record before
/// ([`first_record`] says up to where), and it is done once its [position](Decoder::position) has reached the segment's end; for the last
/// record it may need the beginning of the next segment. Only the link between two segments is then unchecked:
/// [`Record::previous`] of the one's first record must be [`Record::start`] of the other's last.
#[derive(Debug)]
pub struct Decoder {
    pages: PageSequence,
    input: Vec<u8>,
    /// Bytes of `input` that are done with; the next one is the byte at `at`.
    consumed: usize,
    at: Lsn,
    /// What to do with the byte at `at`, if it is not a page's header.
    state: State,
    /// Where the first record of interest may begin.
    start: Lsn,
    /// The record that continues on the next page.
    record: Vec<u8>,
    record_start: Lsn,
    record_size: usize,
    previous: Option<Lsn>,
    position: Lsn,
    records: u64,
    /// Whether records of no interest are answered too.
    every_record: bool,
}

#[derive(Clone, Debug)]
enum State {
    /// At the header of the first page, when nothing is known.
    First,
    /// A record begins here.
    Record,
    /// `record` lacks bytes that follow here.
    Continuation,
    /// This many bytes remain of a record whose beginning was not seen.
    Unseen(u32),
    /// Nothing of interest up to a position in this page or, after a switch, up to the next segment. The pages between have no
    /// headers worth a check: servers write zeros there.
    Skip { to: Lsn },
    /// WAL ended.
    Ended,
    /// It cannot be read on.
    Failed(DecodeError),
}

impl Decoder {
    /// A decoder of WAL from `start`: the beginning of a segment or page (an unfinished record's rest there is skipped), or of a
    /// record. The bytes to feed begin at [`Decoder::reads_from`].
    pub fn new(start: Lsn, segment_size: SegmentSize) -> Self {
        let page = Lsn::new(start.get() - start.get() % PAGE_SIZE);
        Self {
            pages: PageSequence::new(segment_size),
            input: Vec::new(),
            consumed: 0,
            at: page,
            state: State::First,
            start,
            record: Vec::new(),
            record_start: start,
            record_size: 0,
            previous: None,
            position: start,
            records: 0,
            every_record: false,
        }
    }

    /// The same, answering every record as an event: those of no interest as [`WalEventKind::Other`].
    pub fn every_record(mut self) -> Self {
        self.every_record = true;
        self
    }

    /// Where the first byte fed must lie: the beginning of the page that holds the start, since its header is needed.
    pub fn reads_from(&self) -> Lsn {
        Lsn::new(self.start.get() - self.start.get() % PAGE_SIZE)
    }

    /// Takes the next bytes of WAL. Ask [`Decoder::next_record`] until it has none before feeding more: bytes are kept until then.
    pub fn feed(&mut self, bytes: &[u8]) {
        if matches!(self.state, State::Ended | State::Failed(_)) {
            return;
        }
        self.input.drain(..self.consumed);
        self.consumed = 0;
        self.input.extend_from_slice(bytes);
    }

    /// The next record. `None` when more bytes are needed, and for good once [`Decoder::end`] is known. An error is final and
    /// repeats.
    pub fn next_record(&mut self) -> Result<Option<Record<'_>>, DecodeError> {
        let found = match self.find() {
            Ok(Some(found)) => found,
            Ok(None) => return Ok(None),
            Err(error) => {
                self.fail(&error);
                return Err(error);
            }
        };
        let Found { start, ref bytes, ref header, version } = found;
        let bytes = bytes.clone().map_or(&self.record[..], |range| &self.input[range]);
        let aligned = align(self.at);
        let size = self.pages.size;
        let end = if header.is_switch() && size.offset_of(aligned) != 0 {
            size.align_down(aligned).saturating_add(size.bytes())
        } else {
            aligned
        };
        match Record::parse(start, end, header, bytes, version) {
            Ok(record) => {
                self.previous = Some(start);
                self.position = end;
                self.records += 1;
                self.state = State::Skip { to: end };
                Ok(Some(record))
            }
            Err(kind) => {
                let error = DecodeError::Malformed { lsn: start, kind };
                self.state = State::Failed(error.clone());
                Err(error)
            }
        }
    }

    /// The next record of interest for recovery, as an event; else as [`Decoder::next_record`].
    pub fn next_event(&mut self) -> Result<Option<WalEvent>, DecodeError> {
        let every = self.every_record;
        while let Some(record) = self.next_record()? {
            let other = || every.then_some(WalEvent { start: record.start, end: record.end, kind: WalEventKind::Other });
            if let Some(event) = WalEvent::of(&record).or_else(other) {
                return Ok(Some(event));
            }
        }
        Ok(None)
    }

    /// Where the next record begins or may begin: the end of the last whole one (PostgreSQL's `EndRecPtr`), or the start.
    /// The rest of a record whose beginning was not seen counts as whole, since nothing in it can be checked.
    pub fn position(&self) -> Lsn {
        self.position
    }

    /// Where WAL ended, once that was reached: no record follows, only space never written or left over from a recycled segment.
    /// A finished segment has no end within it, so one that shows an end has lost its tail.
    pub fn end(&self) -> Option<Lsn> {
        matches!(self.state, State::Ended).then_some(self.position)
    }

    /// Whole records seen, of interest or not.
    pub fn records(&self) -> u64 {
        self.records
    }

    /// The timeline of the last page seen.
    pub fn timeline(&self) -> Option<TimelineId> {
        self.pages.timeline()
    }

    /// The server that wrote the pages.
    pub fn version(&self) -> Option<MajorVersion> {
        self.pages.version()
    }

    /// The record that is not whole yet: where it begins, and how many of its bytes are still to come.
    pub fn unfinished(&self) -> Option<(Lsn, usize)> {
        matches!(self.state, State::Continuation).then(|| (self.record_start, self.record_size - self.record.len()))
    }

    /// Bytes of memory held: what was fed last and the unfinished record.
    pub fn memory(&self) -> usize {
        self.input.capacity() + self.record.capacity()
    }

    fn unread(&self) -> &[u8] {
        &self.input[self.consumed..]
    }

    /// Bytes from `at` to the end of its page.
    fn rest_of_page(&self) -> u64 {
        PAGE_SIZE - self.at.get() % PAGE_SIZE
    }

    fn consume(&mut self, bytes: usize) {
        self.consumed += bytes;
        self.at = self.at.saturating_add(bytes as u64);
    }

    fn fail(&mut self, error: &DecodeError) {
        self.state = State::Failed(error.clone());
        self.release();
    }

    fn end_here(&mut self) {
        self.state = State::Ended;
        self.release();
    }

    fn release(&mut self) {
        self.input = Vec::new();
        self.consumed = 0;
        self.record = Vec::new();
    }

    /// The next whole record whose checksum is right, consumed up to its end.
    fn find(&mut self) -> Result<Option<Found>, DecodeError> {
        // Given back late: the record before lay in it.
        if self.record.capacity() > KEPT_BUFFER && !matches!(self.state, State::Continuation) {
            self.record = Vec::new();
        }
        loop {
            if let State::Failed(error) = &self.state {
                return Err(error.clone());
            }
            if matches!(self.state, State::Ended) || self.unread().is_empty() {
                return Ok(None);
            }
            if self.at >= ADDRESS_LIMIT {
                self.end_here();
                return Ok(None);
            }
            if let State::Skip { to } = self.state {
                let bytes = self.unread().len().min(usize::try_from(to.bytes_since(self.at)).unwrap_or(usize::MAX));
                self.consume(bytes);
                if self.at >= to {
                    self.state = State::Record;
                }
                continue;
            }
            if self.at.get().is_multiple_of(PAGE_SIZE) {
                if !self.page()? {
                    return Ok(None);
                }
                continue;
            }
            match self.state {
                State::Record => match self.record()? {
                    Progress::Found(found) => return Ok(Some(found)),
                    Progress::More => continue,
                    Progress::Wait => return Ok(None),
                },
                State::Continuation => {
                    if let Some(found) = self.continuation()? {
                        return Ok(Some(found));
                    }
                }
                State::Unseen(remaining) => self.unseen(remaining),
                State::First | State::Skip { .. } | State::Ended | State::Failed(_) => return Ok(None),
            }
        }
    }

    /// Reads the page header at `at`; `false` if it is not all there, or if WAL ends before this page.
    fn page(&mut self) -> Result<bool, DecodeError> {
        let (lsn, size) = (self.at, self.pages.size);
        let header_size = pages::header_size(lsn, size);
        let Some(bytes) = self.unread().get(..header_size) else { return Ok(false) };
        let header = match PageHeader::decode(bytes) {
            Ok(header) => header,
            Err(PageError::Zero) => {
                self.end_here();
                return Ok(false);
            }
            // A long header where a short one belongs.
            Err(PageError::TooShort { .. }) => return Err(DecodeError::Segment { lsn, size }),
            Err(reason) => return Err(DecodeError::Page { lsn, reason }),
        };
        // A recycled segment holds the pages of its former life until they are overwritten.
        if header.start < lsn {
            self.end_here();
            return Ok(false);
        }
        self.pages.check(lsn, &header)?;
        self.consume(header_size);
        self.state = self.state_after_header(lsn, header.begins)?;
        Ok(true)
    }

    /// Brings together what the page before left and what this page begins with.
    fn state_after_header(&self, lsn: Lsn, begins: PageBeginning) -> Result<State, DecodeError> {
        let found = if let PageBeginning::Continuation { remaining } = begins { remaining } else { 0 };
        let expected = match self.state {
            State::First if self.start > self.at => return Ok(State::Skip { to: align(self.start) }),
            State::First if found > 0 => return Ok(State::Unseen(found)),
            State::Continuation => (self.record_size - self.record.len()) as u64,
            State::Unseen(remaining) => remaining.into(),
            _ => 0,
        };
        match begins {
            // Whatever was unfinished is void.
            PageBeginning::Overwrite => Ok(State::Record),
            _ if u64::from(found) != expected => Err(DecodeError::Continuation { lsn, expected, found }),
            _ if expected == 0 => Ok(State::Record),
            _ => Ok(self.state.clone()),
        }
    }

    /// Passes over what this page has of a record whose beginning was not seen.
    fn unseen(&mut self, remaining: u32) {
        let here = usize::try_from(u64::from(remaining).min(self.rest_of_page())).unwrap_or(usize::MAX).min(self.unread().len());
        self.consume(here);
        let remaining = remaining - here as u32;
        self.state = if remaining > 0 {
            State::Unseen(remaining)
        } else {
            self.position = align(self.at);
            State::Skip { to: self.position }
        };
    }

    /// Finds the record that begins at `at` if its page holds all of it, else begins to collect it.
    #[inline]
    fn record(&mut self) -> Result<Progress, DecodeError> {
        let lsn = self.at;
        // Alignment keeps the length, the first field, from being split by the page's end.
        let Some(length) = u32_at(self.unread(), 0) else { return Ok(Progress::Wait) };
        if length == 0 {
            self.end_here();
            return Ok(Progress::Wait);
        }
        if length < HEADER_SIZE as u32 || length > MAX_SIZE {
            return Err(DecodeError::Length { lsn, length });
        }
        let size = length as usize;
        if u64::from(length) > self.rest_of_page() {
            self.record.clear();
            (self.record_start, self.record_size) = (lsn, size);
            self.state = State::Continuation;
            return Ok(Progress::More);
        }
        let Some(bytes) = self.unread().get(..size) else { return Ok(Progress::Wait) };
        let (header, version) = self.check_record(lsn, bytes)?;
        let bytes = Some(self.consumed..self.consumed + size);
        self.consume(size);
        Ok(Progress::Found(Found { start: lsn, bytes, header, version }))
    }

    /// Collects what this page has of the unfinished record, and decodes it once it is whole.
    fn continuation(&mut self) -> Result<Option<Found>, DecodeError> {
        let lsn = self.record_start;
        let collected = self.record.len();
        let rest_of_page = usize::try_from(self.rest_of_page()).unwrap_or(usize::MAX);
        let here = (self.record_size - collected).min(rest_of_page).min(self.unread().len());
        self.record.extend_from_slice(&self.input[self.consumed..self.consumed + here]);
        self.consume(here);
        if collected < HEADER_SIZE && self.record.len() >= HEADER_SIZE {
            // Before much is collected for what may be no record at all.
            self.check_header(lsn, &self.record)?;
        }
        if self.record.len() < self.record_size {
            return Ok(None);
        }
        let (header, version) = self.check_record(lsn, &self.record)?;
        Ok(Some(Found { start: lsn, bytes: None, header, version }))
    }

    #[inline]
    fn check_header(&self, lsn: Lsn, bytes: &[u8]) -> Result<(RecordHeader, MajorVersion), DecodeError> {
        // Neither can lack: a header was read of every page, and the callers have a record's header.
        let (Some(header), Some(version)) = (RecordHeader::decode(bytes), self.pages.version()) else {
            return Err(DecodeError::Length { lsn, length: bytes.len() as u32 });
        };
        let found = header.previous;
        match self.previous {
            Some(expected) if found != expected => return Err(DecodeError::Link { lsn, expected, found }),
            None if found >= lsn => return Err(DecodeError::ForwardLink { lsn, found }),
            _ => {}
        }
        if !header.resource_manager.exists(version) {
            return Err(DecodeError::ResourceManager { lsn, version, found: header.resource_manager.get() });
        }
        Ok((header, version))
    }

    #[inline]
    fn check_record(&self, lsn: Lsn, bytes: &[u8]) -> Result<(RecordHeader, MajorVersion), DecodeError> {
        let (header, version) = self.check_header(lsn, bytes)?;
        let found = record::checksum(bytes);
        if found != header.crc {
            return Err(DecodeError::Checksum { lsn, expected: header.crc, found });
        }
        Ok((header, version))
    }
}

/// A whole record, of which `at` is the end.
struct Found {
    start: Lsn,
    /// Where it lies in `input`; `None` for the record that was collected.
    bytes: Option<Range<usize>>,
    header: RecordHeader,
    version: MajorVersion,
}

enum Progress {
    Found(Found),
    More,
    Wait,
}

fn align(lsn: Lsn) -> Lsn {
    Lsn::new(lsn.get().next_multiple_of(ALIGNMENT))
}

/// How far `bytes`, WAL from the segment start `start` on, hold whole records. What lies behind was never written, or only in part.
pub fn valid_end(start: Lsn, segment_size: SegmentSize, bytes: &[u8]) -> Lsn {
    let mut decoder = Decoder::new(start, segment_size);
    for piece in bytes.chunks(1 << 18) {
        decoder.feed(piece);
        while let Ok(Some(_)) = decoder.next_record() {}
    }
    // The position behind a switch is the next segment, also where the rest of this one was not received yet.
    decoder.position().min(start.saturating_add(bytes.len() as u64))
}
