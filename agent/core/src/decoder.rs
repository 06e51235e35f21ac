//! Decodes a stream of WAL into its records, and finds where valid WAL ends.
//!
//! Sans I/O: the caller shows bytes in any chunking and takes records, or the events that recovery can stop at, until all bytes are used
//! up. Every page header and every record's checksum is verified on the way. What records say is the business of [`crate::record`].

mod error;
mod pages;

use crate::event::{WalEvent, WalEventKind};
use crate::identity::{MajorVersion, TimelineId};
use crate::le::u32_at;
use crate::lsn::Lsn;
use crate::page::{LONG_HEADER_SIZE, PAGE_SIZE, PageBeginning, PageError, PageHeader};
use crate::record::{self, HEADER_SIZE, MAX_SIZE, Record, RecordHeader};
use crate::segment::SegmentSize;

pub use error::DecodeError;
pub use pages::{first_record, record_begin};

use pages::PageSequence;

/// Records begin at multiples of this: the server's `MAXIMUM_ALIGNOF`.
const ALIGNMENT: u64 = 8;
/// No WAL reaches so far. Stopping here keeps every sum below from overflowing.
const ADDRESS_LIMIT: Lsn = Lsn::new(u64::MAX - (1 << 33));
/// A buffer that grew beyond this for one long record is given back afterwards.
const KEPT_BUFFER: usize = 1 << 20;

/// Turns WAL bytes into records. Holds at most one unfinished record; no bytes that it has handed out.
///
/// A record that lies on one page of the bytes shown is a view of just these, and nothing is copied or allocated for it; one that goes on
/// behind them, or on another page, is collected in a buffer that is used again. Pieces may be as long as one likes.
///
/// ```
/// # use walkeep_core::{Lsn, SegmentSize, decoder::{Decoder, DecodeError}, record::Content};
/// # fn example(segments: Vec<Vec<u8>>) -> Result<Lsn, DecodeError> {
/// let mut decoder = Decoder::new(Lsn::new(0x300_0000), SegmentSize::DEFAULT);
/// for segment in segments {
///     for mut piece in segment.chunks(1 << 18) {
///         while let Some(record) = decoder.next_record(&mut piece)? {
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
    /// The position of the next byte that is not done with.
    at: Lsn,
    /// The bytes from `at` on that were shown last, where these were too few for a page's header or a record's length.
    few: Vec<u8>,
    /// What to do with the byte at `at`, if it is not a page's header.
    state: State,
    /// Where the first record of interest may begin.
    start: Lsn,
    /// The record of which not all was shown on one page.
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
    /// record. The bytes to show begin at [`Decoder::reads_from`].
    pub fn new(start: Lsn, segment_size: SegmentSize) -> Self {
        let page = Lsn::new(start.get() - start.get() % PAGE_SIZE);
        Self {
            pages: PageSequence::new(segment_size),
            at: page,
            few: Vec::new(),
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

    /// Where the first byte shown must lie: the beginning of the page that holds the start, since its header is needed.
    pub fn reads_from(&self) -> Lsn {
        Lsn::new(self.start.get() - self.start.get() % PAGE_SIZE)
    }

    /// The next record. `bytes` are the next ones of WAL, and lose what was used up; call it with the same slice until that is empty, which
    /// it is when there is no further record in it. For good there is none once [`Decoder::end`] is known. An error is final and repeats.
    pub fn next_record<'d, 'b: 'd>(&'d mut self, bytes: &mut &'b [u8]) -> Result<Option<Record<'d>>, DecodeError> {
        let Found { start, whole, header, version } = match self.find(bytes) {
            Ok(Some(found)) => found,
            Ok(None) => {
                *bytes = &[];
                return Ok(None);
            }
            Err(error) => {
                *bytes = &[];
                self.fail(&error);
                return Err(error);
            }
        };
        let aligned = align(self.at);
        let size = self.pages.size;
        let is_switch = header.is_switch() && size.offset_of(aligned) != 0;
        let end = if is_switch { size.align_down(aligned).saturating_add(size.bytes()) } else { aligned };
        // What aligns the next record is passed over at once where it is there.
        let padding = aligned.bytes_since(self.at) as usize;
        self.state = match bytes.split_at_checked(padding) {
            Some((_, rest)) if !is_switch => {
                (*bytes, self.at) = (rest, aligned);
                State::Record
            }
            _ => State::Skip { to: end },
        };
        match Record::parse(start, end, &header, whole.unwrap_or(&self.record), version) {
            Ok(record) => {
                self.previous = Some(start);
                self.position = end;
                self.records += 1;
                Ok(Some(record))
            }
            Err(kind) => {
                let error = DecodeError::Malformed { lsn: start, kind };
                *bytes = &[];
                self.state = State::Failed(error.clone());
                Err(error)
            }
        }
    }

    /// The next record of interest for recovery, as an event; else as [`Decoder::next_record`].
    pub fn next_event(&mut self, bytes: &mut &[u8]) -> Result<Option<WalEvent>, DecodeError> {
        let every = self.every_record;
        while let Some(record) = self.next_record(bytes)? {
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

    /// Bytes of memory held: the unfinished record.
    pub fn memory(&self) -> usize {
        self.record.capacity() + self.few.capacity()
    }

    /// Bytes from `at` to the end of its page.
    fn rest_of_page(&self) -> u64 {
        PAGE_SIZE - self.at.get() % PAGE_SIZE
    }

    /// Passes over the first of these bytes.
    fn consume(&mut self, bytes: &mut &[u8], number: usize) {
        *bytes = &bytes[number..];
        self.at = self.at.saturating_add(number as u64);
    }

    /// Keeps the bytes until there are more.
    fn wait(&mut self, bytes: &mut &[u8]) {
        self.few.extend_from_slice(bytes);
        *bytes = &[];
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
        self.few = Vec::new();
        self.record = Vec::new();
    }

    /// The next whole record whose checksum is right, consumed up to its end.
    #[inline]
    fn find<'b>(&mut self, bytes: &mut &'b [u8]) -> Result<Option<Found<'b>>, DecodeError> {
        // Given back late: the record before lay in it.
        if self.record.capacity() > KEPT_BUFFER && !matches!(self.state, State::Continuation) {
            self.record = Vec::new();
        }
        loop {
            if let State::Failed(error) = &self.state {
                return Err(error.clone());
            }
            if matches!(self.state, State::Ended) || bytes.is_empty() {
                return Ok(None);
            }
            if self.at >= ADDRESS_LIMIT {
                self.end_here();
                return Ok(None);
            }
            if let State::Skip { to } = self.state {
                let skipped = bytes.len().min(usize::try_from(to.bytes_since(self.at)).unwrap_or(usize::MAX));
                self.consume(bytes, skipped);
                if self.at >= to {
                    self.state = State::Record;
                }
                continue;
            }
            if self.at.get().is_multiple_of(PAGE_SIZE) {
                if !self.page(bytes)? {
                    return Ok(None);
                }
                continue;
            }
            match self.state {
                State::Record => match self.record(bytes)? {
                    Progress::Found(found) => return Ok(Some(found)),
                    Progress::More => continue,
                    Progress::Wait => return Ok(None),
                },
                State::Continuation => {
                    if let Some(found) = self.continuation(bytes)? {
                        return Ok(Some(found));
                    }
                }
                State::Unseen(remaining) => self.unseen(bytes, remaining),
                State::First | State::Skip { .. } | State::Ended | State::Failed(_) => return Ok(None),
            }
        }
    }

    /// Reads the page header at `at`; `false` if it is not all there, or if WAL ends before this page.
    fn page(&mut self, bytes: &mut &[u8]) -> Result<bool, DecodeError> {
        let (lsn, size) = (self.at, self.pages.size);
        let header_size = pages::header_size(lsn, size);
        let few = self.few.len();
        let Some(here) = bytes.get(..header_size - few) else {
            self.wait(bytes);
            return Ok(false);
        };
        let mut joined = [0; LONG_HEADER_SIZE];
        let whole = if few == 0 {
            here
        } else {
            joined[..few].copy_from_slice(&self.few);
            joined[few..header_size].copy_from_slice(here);
            &joined[..header_size]
        };
        let header = match PageHeader::decode(whole) {
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
        self.few.clear();
        *bytes = &bytes[header_size - few..];
        self.at = lsn.saturating_add(header_size as u64);
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
    fn unseen(&mut self, bytes: &mut &[u8], remaining: u32) {
        let here = usize::try_from(u64::from(remaining).min(self.rest_of_page())).unwrap_or(usize::MAX).min(bytes.len());
        self.consume(bytes, here);
        let remaining = remaining - here as u32;
        self.state = if remaining > 0 {
            State::Unseen(remaining)
        } else {
            self.position = align(self.at);
            State::Skip { to: self.position }
        };
    }

    /// Finds the record that begins at `at` if its page holds all of it and the page is shown so far, else begins to collect it.
    #[inline]
    fn record<'b>(&mut self, bytes: &mut &'b [u8]) -> Result<Progress<'b>, DecodeError> {
        let lsn = self.at;
        // Alignment keeps the length, the first field, from being split by the page's end.
        let length = match u32_at(bytes, 0).filter(|_| self.few.is_empty()) {
            Some(length) => length,
            None => match self.split_length(bytes) {
                Some(length) => length,
                None => return Ok(Progress::Wait),
            },
        };
        if length == 0 {
            self.end_here();
            return Ok(Progress::Wait);
        }
        if length < HEADER_SIZE as u32 || length > MAX_SIZE {
            return Err(DecodeError::Length { lsn, length });
        }
        let size = length as usize;
        if let Some((whole, rest)) = bytes.split_at_checked(size)
            && u64::from(length) <= self.rest_of_page()
            && self.few.is_empty()
        {
            let (header, version) = self.check_record(lsn, whole)?;
            (*bytes, self.at) = (rest, lsn.saturating_add(size as u64));
            return Ok(Progress::Found(Found { start: lsn, whole: Some(whole), header, version }));
        }
        self.record.clear();
        self.record.append(&mut self.few);
        self.at = lsn.saturating_add(self.record.len() as u64);
        (self.record_start, self.record_size) = (lsn, size);
        self.state = State::Continuation;
        Ok(Progress::More)
    }

    /// The length of a record whose first bytes were shown one by one; `None` while they are too few.
    #[cold]
    fn split_length(&mut self, bytes: &mut &[u8]) -> Option<u32> {
        let mut length = [0; 4];
        let (before, behind) = length.split_at_mut(self.few.len());
        let Some(here) = bytes.get(..behind.len()) else {
            self.wait(bytes);
            return None;
        };
        before.copy_from_slice(&self.few);
        behind.copy_from_slice(here);
        Some(u32::from_le_bytes(length))
    }

    /// Collects what this page has of the unfinished record, and decodes it once it is whole.
    fn continuation<'b>(&mut self, bytes: &mut &[u8]) -> Result<Option<Found<'b>>, DecodeError> {
        let lsn = self.record_start;
        let collected = self.record.len();
        let rest_of_page = usize::try_from(self.rest_of_page()).unwrap_or(usize::MAX);
        let here = (self.record_size - collected).min(rest_of_page).min(bytes.len());
        self.record.extend_from_slice(&bytes[..here]);
        self.consume(bytes, here);
        if collected < HEADER_SIZE && self.record.len() >= HEADER_SIZE {
            // Before much is collected for what may be no record at all.
            self.check_header(lsn, &self.record)?;
        }
        if self.record.len() < self.record_size {
            return Ok(None);
        }
        let (header, version) = self.check_record(lsn, &self.record)?;
        Ok(Some(Found { start: lsn, whole: None, header, version }))
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
struct Found<'b> {
    start: Lsn,
    /// Its bytes; `None` for the record that was collected.
    whole: Option<&'b [u8]>,
    header: RecordHeader,
    version: MajorVersion,
}

enum Progress<'b> {
    Found(Found<'b>),
    More,
    Wait,
}

fn align(lsn: Lsn) -> Lsn {
    Lsn::new(lsn.get().next_multiple_of(ALIGNMENT))
}

/// How far `bytes`, WAL from the segment start `start` on, hold whole records. What lies behind was never written, or only in part.
pub fn valid_end(start: Lsn, segment_size: SegmentSize, bytes: &[u8]) -> Lsn {
    let mut decoder = Decoder::new(start, segment_size);
    let mut rest = bytes;
    while let Ok(Some(_)) = decoder.next_record(&mut rest) {}
    // The position behind a switch is the next segment, also where the rest of this one was not received yet.
    decoder.position().min(start.saturating_add(bytes.len() as u64))
}
