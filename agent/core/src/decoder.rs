//! Decodes a stream of WAL into the events that recovery can stop at, and finds where valid WAL ends.
//!
//! Sans I/O: the caller feeds bytes in any chunking and asks for events until there is none. Every page header and every record's
//! checksum is verified on the way. Records' effects on data pages are not looked at.

use crate::event::{WalEvent, WalEventKind};
use crate::identity::{MajorVersion, SystemIdentifier, TimelineId};
use crate::le::u32_at;
use crate::lsn::Lsn;
use crate::page::{LONG_HEADER_SIZE, PAGE_SIZE, PageBeginning, PageError, PageHeader, SHORT_HEADER_SIZE};
use crate::record::{self, HEADER_SIZE, MAX_SIZE, RecordHeader};
use crate::segment::SegmentSize;

/// Records begin at multiples of this: the server's `MAXIMUM_ALIGNOF`.
const ALIGNMENT: u64 = 8;
/// No WAL reaches so far. Stopping here keeps every sum below from overflowing.
const ADDRESS_LIMIT: Lsn = Lsn::new(u64::MAX - (1 << 32));
/// A buffer that grew beyond this for one long record is given back afterwards.
const KEPT_BUFFER: usize = 1 << 20;

/// Turns WAL bytes into events. Holds what was fed and not yet asked for, and at most one unfinished record.
///
/// ```
/// # use walkeep_core::{Lsn, SegmentSize, decoder::{Decoder, DecodeError}};
/// # fn example(segments: Vec<Vec<u8>>) -> Result<Lsn, DecodeError> {
/// let mut decoder = Decoder::new(Lsn::new(0x300_0000), SegmentSize::DEFAULT);
/// for segment in segments {
///     decoder.feed(&segment);
///     while let Some(event) = decoder.next_event()? {
///         println!("{} {:?}", event.start, event.kind);
///     }
/// }
/// # Ok(
/// decoder.position()
/// # )
/// # }
/// ```
#[derive(Debug)]
pub struct Decoder {
    size: SegmentSize,
    input: Vec<u8>,
    /// Bytes of `input` that are done with; the next one is the byte at `at`.
    consumed: usize,
    at: Lsn,
    /// What to do with the byte at `at`, if it is not a page's header.
    state: State,
    /// Where the first record of interest may begin.
    start: Lsn,
    /// From the pages seen so far.
    stream: Option<Stream>,
    system: Option<SystemIdentifier>,
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

/// What every page has to agree with.
#[derive(Clone, Copy, Debug)]
struct Stream {
    version: MajorVersion,
    timeline: TimelineId,
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

/// WAL that cannot be read on. Everything before [`Decoder::position`] was whole.
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

impl Decoder {
    /// A decoder of WAL from `start`: the beginning of a segment or page (an unfinished record's rest there is skipped), or of a
    /// record. The bytes to feed begin at [`Decoder::reads_from`].
    pub fn new(start: Lsn, segment_size: SegmentSize) -> Self {
        let page = Lsn::new(start.get() - start.get() % PAGE_SIZE);
        Self {
            size: segment_size,
            input: Vec::new(),
            consumed: 0,
            at: page,
            state: State::First,
            start,
            stream: None,
            system: None,
            record: Vec::new(),
            record_start: start,
            record_size: 0,
            previous: None,
            position: start,
            records: 0,
            every_record: false,
        }
    }

    /// The same, answering every record: those of no interest as [`WalEventKind::Other`].
    pub fn every_record(mut self) -> Self {
        self.every_record = true;
        self
    }

    /// Where the first byte fed must lie: the beginning of the page that holds the start, since its header is needed.
    pub fn reads_from(&self) -> Lsn {
        Lsn::new(self.start.get() - self.start.get() % PAGE_SIZE)
    }

    /// Takes the next bytes of WAL. Ask [`Decoder::next_event`] until it has none before feeding more: bytes are kept until then.
    pub fn feed(&mut self, bytes: &[u8]) {
        if matches!(self.state, State::Ended | State::Failed(_)) {
            return;
        }
        self.input.drain(..self.consumed);
        self.consumed = 0;
        self.input.extend_from_slice(bytes);
    }

    /// The next event. `None` when more bytes are needed, and for good once [`Decoder::end`] is known. An error is final and
    /// repeats.
    pub fn next_event(&mut self) -> Result<Option<WalEvent>, DecodeError> {
        if let State::Failed(error) = &self.state {
            return Err(error.clone());
        }
        self.advance().inspect_err(|error| {
            self.state = State::Failed(error.clone());
            self.release();
        })
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

    fn end_here(&mut self) {
        self.state = State::Ended;
        self.release();
    }

    fn release(&mut self) {
        self.input = Vec::new();
        self.consumed = 0;
        self.record = Vec::new();
    }

    fn advance(&mut self) -> Result<Option<WalEvent>, DecodeError> {
        loop {
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
                    Progress::Event(event) => return Ok(Some(event)),
                    Progress::More => continue,
                    Progress::Wait => return Ok(None),
                },
                State::Continuation => {
                    if let Some(event) = self.continuation()? {
                        return Ok(Some(event));
                    }
                }
                State::Unseen(remaining) => self.unseen(remaining),
                State::First | State::Skip { .. } | State::Ended | State::Failed(_) => return Ok(None),
            }
        }
    }

    /// Reads the page header at `at`; `false` if it is not all there, or if WAL ends before this page.
    fn page(&mut self) -> Result<bool, DecodeError> {
        let lsn = self.at;
        let first_of_segment = self.size.offset_of(lsn) == 0;
        let header_size = if first_of_segment { LONG_HEADER_SIZE } else { SHORT_HEADER_SIZE };
        let Some(bytes) = self.unread().get(..header_size) else { return Ok(false) };
        let header = match PageHeader::decode(bytes) {
            Ok(header) => header,
            Err(PageError::Zero) => {
                self.end_here();
                return Ok(false);
            }
            // A long header where a short one belongs.
            Err(PageError::TooShort { .. }) => return Err(DecodeError::Segment { lsn, size: self.size }),
            Err(reason) => return Err(DecodeError::Page { lsn, reason }),
        };
        // A recycled segment holds the pages of its former life until they are overwritten.
        if header.start < lsn {
            self.end_here();
            return Ok(false);
        }
        self.check_page(lsn, first_of_segment, &header)?;
        self.consume(header_size);
        self.state = self.state_after_header(lsn, header.begins)?;
        Ok(true)
    }

    fn check_page(&mut self, lsn: Lsn, first_of_segment: bool, header: &PageHeader) -> Result<(), DecodeError> {
        if header.start != lsn {
            return Err(DecodeError::PageStart { lsn, found: header.start });
        }
        if first_of_segment != header.long.is_some() || header.long.is_some_and(|long| long.segment_size != self.size) {
            return Err(DecodeError::Segment { lsn, size: self.size });
        }
        if let Some(stream) = self.stream {
            if header.version != stream.version {
                return Err(DecodeError::Version { lsn, expected: stream.version, found: header.version });
            }
            if header.timeline < stream.timeline {
                return Err(DecodeError::Timeline { lsn, expected: stream.timeline, found: header.timeline });
            }
        }
        if let Some(found) = header.long.map(|long| long.system) {
            let expected = *self.system.get_or_insert(found);
            if found != expected {
                return Err(DecodeError::System { lsn, expected, found });
            }
        }
        self.stream = Some(Stream { version: header.version, timeline: header.timeline });
        Ok(())
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

    /// Decodes the record that begins at `at` if its page holds all of it, else begins to collect it.
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
        let (header, kind) = self.check_record(lsn, bytes)?;
        self.consume(size);
        Ok(self.finish(lsn, &header, kind).map_or(Progress::More, Progress::Event))
    }

    /// Collects what this page has of the unfinished record, and decodes it once it is whole.
    fn continuation(&mut self) -> Result<Option<WalEvent>, DecodeError> {
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
        let (header, kind) = self.check_record(lsn, &self.record)?;
        if self.record.capacity() > KEPT_BUFFER {
            self.record = Vec::new();
        }
        Ok(self.finish(lsn, &header, kind))
    }

    fn check_header(&self, lsn: Lsn, bytes: &[u8]) -> Result<(RecordHeader, MajorVersion), DecodeError> {
        // Neither can lack: a header was read of every page, and the callers have a record's header.
        let (Some(header), Some(Stream { version, .. })) = (RecordHeader::decode(bytes), self.stream) else {
            return Err(DecodeError::Length { lsn, length: bytes.len() as u32 });
        };
        let found = header.previous;
        match self.previous {
            Some(expected) if found != expected => return Err(DecodeError::Link { lsn, expected, found }),
            None if found >= lsn => return Err(DecodeError::ForwardLink { lsn, found }),
            _ => {}
        }
        if !header.resource_manager_exists(version) {
            return Err(DecodeError::ResourceManager { lsn, version, found: header.resource_manager });
        }
        Ok((header, version))
    }

    fn check_record(&self, lsn: Lsn, bytes: &[u8]) -> Result<(RecordHeader, Option<WalEventKind>), DecodeError> {
        let (header, version) = self.check_header(lsn, bytes)?;
        let found = record::checksum(bytes);
        if found != header.crc {
            return Err(DecodeError::Checksum { lsn, expected: header.crc, found });
        }
        let kind = record::event(&header, bytes, version).map_err(|kind| DecodeError::Malformed { lsn, kind })?;
        Ok((header, kind))
    }

    /// Goes on behind a whole record, of which `at` is the end.
    fn finish(&mut self, start: Lsn, header: &RecordHeader, kind: Option<WalEventKind>) -> Option<WalEvent> {
        let aligned = align(self.at);
        let end = if header.is_switch() && self.size.offset_of(aligned) != 0 {
            self.size.align_down(aligned).saturating_add(self.size.bytes())
        } else {
            aligned
        };
        self.previous = Some(start);
        self.position = end;
        self.records += 1;
        self.state = State::Skip { to: end };
        kind.or(self.every_record.then_some(WalEventKind::Other)).map(|kind| WalEvent { start, end, kind })
    }
}

enum Progress {
    Event(WalEvent),
    More,
    Wait,
}

fn align(lsn: Lsn) -> Lsn {
    Lsn::new(lsn.get().next_multiple_of(ALIGNMENT))
}
/// How far `bytes`, WAL from the segment start `start` on, hold whole records. What lies behind was never written, or only in part.
pub fn valid_end(start: Lsn, segment_size: SegmentSize, bytes: &[u8]) -> Lsn {
    let mut decoder = Decoder::new(start, segment_size);
    for piece in bytes.chunks(1 << 20) {
        decoder.feed(piece);
        while let Ok(Some(_)) = decoder.next_event() {}
    }
    // The position behind a switch is the next segment, also where the rest of this one was not received yet.
    decoder.position().min(start.saturating_add(bytes.len() as u64))
}
