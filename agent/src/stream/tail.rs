//! The segment being received: what is written of it, what is stored of it, and when its next part is due.
//!
//! It writes to the spool and says what to store; storing is [`super::uploads`]' work, and talking to the server [`super::session`]'s.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bytes::Bytes;
use walkeep_core::parts::{Ledger, Link, Step};
use walkeep_core::{SegmentName, page};

use super::position::{Known, KnownSegment};
use super::uploads::Replaced;
use crate::repository::ClusterIdentity;
use crate::repository::wal::same_bytes;
use crate::spool::{SegmentWriter, Spool};

/// The most one part holds.
pub(super) const PART_LIMIT: u64 = 16 << 20;
/// So many bytes are stored before the interval is over, or a sixteenth of a segment where that is more.
const PART_SIZE: u64 = 1 << 20;
/// The first page of a segment holds its long header.
const FIRST_PAGE: u64 = 8192;

/// How soon received bytes are to be stored.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cadence {
    /// At the latest so long after they came.
    pub interval: Duration,
    /// A commit waits for them.
    pub at_once: bool,
}

/// A part to store.
pub(super) struct Handed {
    /// Its name, and what need not be kept when it is stored.
    pub step: Step,
    /// Its bytes.
    pub content: Bytes,
    /// It takes the place of parts that this host cannot read.
    pub instead_of_unread: bool,
}

/// The segment being received.
pub(super) struct Tail {
    writer: SegmentWriter,
    size: u64,
    /// What is known of it already; received bytes must be equal.
    known_bytes: Bytes,
    /// Where that lies.
    known: Known,
    ledger: Ledger,
    /// Of what is only compared, nothing is stored up to here.
    only_compared: u64,
    /// Parts that this host cannot read. What takes their place reaches as far at least: it cuts them off.
    unread: Vec<Link>,
    /// There are parts that the ledger does not know.
    more_parts: bool,
    /// When its first byte came.
    begun: Instant,
    /// When the first byte came that is in no part yet.
    waiting_since: Option<Instant>,
}

impl Tail {
    /// Begins to receive `segment`. What was known of it when the stream began is told, if anything was asked for. Its parts bear `epoch`.
    pub(super) fn begin(
        spool: &Spool,
        segment: SegmentName,
        identity: &ClusterIdentity,
        known: Option<KnownSegment>,
        epoch: u32,
    ) -> Result<Self> {
        let known = known.unwrap_or_else(|| KnownSegment::without_parts(Bytes::new(), Known::InParts));
        let KnownSegment { bytes: known_bytes, known, chain, more_parts, unread } = known;
        let (chain, unread) = if unread { (Vec::new(), chain) } else { (chain, Vec::new()) };
        let writer = if known == Known::InSpool { spool.receive_again(segment)? } else { spool.create(segment)? };
        Ok(Self {
            writer,
            size: identity.segment_size.bytes(),
            more_parts,
            unread,
            only_compared: match known {
                Known::Unread => identity.segment_size.bytes(),
                known if known.is_whole() => known_bytes.len() as u64,
                _ => 0,
            },
            known_bytes,
            known,
            ledger: Ledger::new(segment, epoch, &chain),
            begun: Instant::now(),
            waiting_since: None,
        })
    }

    /// Its name.
    pub(super) fn segment(&self) -> SegmentName {
        self.writer.segment()
    }

    /// Whether its last byte is there.
    pub(super) fn is_whole(&self) -> bool {
        self.writer.is_whole()
    }

    /// Whether it was received only to be compared.
    pub(super) fn is_only_compared(&self) -> bool {
        self.known.is_whole()
    }

    /// Writes received bytes. Answers the offset up to which it is proven that the repository has what the server has, once it is.
    pub(super) fn append(&mut self, bytes: &[u8]) -> Result<Option<u64>> {
        let from = self.writer.written() as usize;
        let known = self.known_bytes.get(from..).unwrap_or_default();
        same_bytes(self.segment(), from, known, bytes)?;
        self.writer.append(bytes)?;
        if self.writer.written() > self.handed_over() {
            self.waiting_since.get_or_insert_with(Instant::now);
        }
        let compared = self.known_bytes.len() as u64;
        if compared == 0 || self.writer.written() < compared {
            return Ok(None);
        }
        self.known_bytes = Bytes::new();
        Ok(self.known.in_repository().then_some(compared))
    }

    /// Fsyncs what was written.
    pub(super) fn sync(&mut self) -> Result<()> {
        tokio::task::block_in_place(|| self.writer.sync())
    }

    /// When its next part is to be handed over; `None` if everything is.
    pub(super) fn due(&self, cadence: Cadence) -> Option<Instant> {
        // A part of a later epoch cuts off what is stored behind its first byte: it must not be shorter than that.
        let since = self.waiting_since.filter(|_| self.known_bytes.is_empty() && self.writer.written() >= self.unread_to())?;
        let waiting = self.writer.written() - self.handed_over();
        let much = waiting >= PART_SIZE.max(self.size / 16) && !self.fills_within(cadence.interval);
        Some(if cadence.at_once || much { since } else { since + cadence.interval })
    }

    /// The next part, with what was written up to now. None before everything is compared that was known, and received that is to be stored once more.
    pub(super) fn next_part(&mut self, identity: &ClusterIdentity) -> Result<Option<Handed>> {
        if !self.known_bytes.is_empty() || self.writer.written() < self.unread_to() {
            return Ok(None);
        }
        let from = self.handed_over();
        let to = self.writer.written().min((from + PART_LIMIT).max(self.unread_to()));
        if to <= from {
            self.waiting_since = None;
            return Ok(None);
        }
        if from == 0 && to >= FIRST_PAGE {
            self.check_first_page(identity)?;
        }
        let mut step = self.ledger.append(to as u32);
        let unread = std::mem::take(&mut self.unread);
        step.replaces.extend(unread.iter().map(|link| link.part));
        Ok(Some(Handed { instead_of_unread: !unread.is_empty(), ..self.handed(step)? }))
    }

    /// The part that takes the place of several, if there are too many. Everything before `acknowledged` is stored.
    pub(super) fn roll_up(&mut self, acknowledged: u64) -> Result<Option<Handed>> {
        self.ledger.roll_up(acknowledged.min(self.size) as u32).map(|step| self.handed(step)).transpose()
    }

    /// Ends it, with its last byte written: a whole segment of the spool, and what nobody needs once it is stored. Of one that was received only
    /// to be compared nothing stays.
    pub(super) fn seal(self, spool: &Spool, identity: &ClusterIdentity) -> Result<(SegmentName, Replaced)> {
        self.check_first_page(identity)?;
        let segment = self.segment();
        if self.is_only_compared() {
            tracing::info!(%segment, "the server has the same as was received before");
            spool.remove_unfinished(segment)?;
            return Ok((segment, Replaced::Parts(Vec::new())));
        }
        let parts = self.ledger.live().chain(self.unread.iter().map(|link| link.part));
        let replaced = match (self.unread.is_empty() && self.known != Known::Unread, self.more_parts) {
            (false, _) => Replaced::Unread(parts.collect()),
            (true, true) => Replaced::AllParts(segment),
            (true, false) => Replaced::Parts(parts.collect()),
        };
        Ok((self.writer.seal()?, replaced))
    }

    fn unread_to(&self) -> u64 {
        self.unread.last().map_or(0, |last| u64::from(last.to))
    }

    fn handed_over(&self) -> u64 {
        u64::from(self.ledger.reached()).max(self.only_compared)
    }

    fn handed(&self, step: Step) -> Result<Handed> {
        let read = || self.writer.read(u64::from(step.part.from), u64::from(step.part.to));
        Ok(Handed { content: Bytes::from(tokio::task::block_in_place(read)?), step, instead_of_unread: false })
    }

    /// At the speed it has come so far. Then it is stored whole soon, and parts of it would be stored for nothing.
    fn fills_within(&self, interval: Duration) -> bool {
        let written = self.writer.written() as f64;
        self.begun.elapsed().as_secs_f64() * self.size as f64 <= interval.as_secs_f64() * written
    }

    fn check_first_page(&self, identity: &ClusterIdentity) -> Result<()> {
        let name = self.segment();
        let first_page = self.writer.read(0, FIRST_PAGE)?;
        page::check_partial_segment(name, identity.segment_size, identity.system_identifier, None, &first_page)
            .with_context(|| format!("refuse {name} as streamed"))
    }
}
