//! Makes summaries out of segments, fed one after the other along a timeline's files.

use crate::decoder::{DecodeError, Decoder};
use crate::event::WalEvent;
use crate::journal::{Journal, Limits, Window};
use crate::segment::{SegmentNumber, SegmentSize};

use super::blocks::BlockChanges;
use super::summary::Summary;

/// What a segment says.
#[derive(Clone, PartialEq, Debug)]
pub struct IndexedSegment {
    /// Its summary.
    pub summary: Summary,
    /// The blocks that its records change.
    pub blocks: BlockChanges,
}

/// Makes summaries out of segments.
#[derive(Debug)]
pub struct Indexer {
    size: SegmentSize,
    decoder: Decoder,
    journal: Journal,
    next: SegmentNumber,
}

impl Indexer {
    /// Begins at a segment, knowing nothing of what was before: of its first record only what follows the segment's beginning is there, so it is
    /// passed over, and transactions that began before are not followed. Begin some segments before the first one that counts, where
    /// that matters ([`Summary::open_since`]).
    pub fn new(first: SegmentNumber, size: SegmentSize) -> Self {
        let journal = Journal::new(Window::default(), Limits::default());
        Self { size, decoder: Decoder::new(first.start(size), size), journal, next: first }
    }

    /// Begins at the segment of [`Summary::resume_from`], to go on behind `last`: as if it had never been interrupted. Feed up to the end of `last` and
    /// throw that away.
    pub fn resume(last: &Summary, size: SegmentSize) -> Self {
        let mut indexer = Self::new(size.segment_of(last.resume_from()), size);
        indexer.journal.resume(last.records.to, &last.mapped, &last.written);
        indexer
    }

    /// The segment to be fed next.
    pub fn next(&self) -> SegmentNumber {
        self.next
    }

    /// Takes the next segment, whole. After an error the next one is taken as a new beginning.
    pub fn segment(&mut self, content: &[u8]) -> Result<IndexedSegment, DecodeError> {
        let number = self.next;
        self.next = number.next();
        let indexed = self.read(number, content);
        if indexed.is_err() {
            self.begin_anew();
        }
        indexed
    }

    /// WAL is missing, or could not be read, up to `next`: a new beginning.
    pub fn pass_over(&mut self, next: SegmentNumber) {
        self.next = next;
        self.begin_anew();
    }

    fn begin_anew(&mut self) {
        let start = self.next.start(self.size);
        self.journal.lose_track();
        self.decoder = Decoder::new(start, self.size);
    }

    fn read(&mut self, number: SegmentNumber, content: &[u8]) -> Result<IndexedSegment, DecodeError> {
        let mut summary = Summary::empty(number, self.decoder.position());
        let mut blocks = BlockChanges::default();
        let mut content = content;
        while let Some(record) = self.decoder.next_record(&mut content)? {
            summary.record(record.start, record.end);
            WalEvent::of(&record).iter().for_each(|event| summary.event(event));
            blocks.record(&record);
            self.journal.record(&record);
        }
        summary.records.to = self.decoder.position();
        let told = self.journal.take();
        summary.entries = told.entries;
        summary.moves = told.moves;
        summary.entries_left_out = told.left_out;
        summary.rates = told.minutes;
        summary.checkpoints = told.checkpoints;
        summary.not_followed = told.not_followed;
        summary.open_since = self.journal.open_since();
        summary.mapped = self.journal.mapped();
        summary.written = self.journal.written();
        Ok(IndexedSegment { summary, blocks })
    }
}
