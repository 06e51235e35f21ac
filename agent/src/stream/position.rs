//! Where to begin: gathers what the pure decision needs. What is missing where the server no longer has what was decided is [`super::gap`]'s.

use std::collections::VecDeque;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use anyhow::{Context, Result};
use bytes::Bytes;
use walkeep_core::catalog::WalRange;
use walkeep_core::layout::GapName;
use walkeep_core::parts::{Link, longest_chain};
use walkeep_core::resume::{self, Position};
use walkeep_core::{Lsn, SegmentNumber, TimelineHistory, TimelineId, WalFileName};

use super::Streamer;
use super::lease::Writing;
use crate::postgres::replication::{Created, Identity, ReplicationConnection};
use crate::postgres::{ConnectionParams, Host, sql};
use crate::progress::SlotHold;
use crate::repository::Error;

/// Segments before the newest one among which a stream looks for holes when it begins: one page of a listing.
const HOLES_WITHIN: u64 = 500;

/// Where a stream begins, and what is known of its first segment.
#[derive(Debug)]
pub(super) struct Start {
    /// The position to ask the server for; the start of a segment.
    pub at: Position,
    /// The first segment that is not stored begins here: at `at`, or one segment behind it.
    pub frontier: Position,
    /// What is known of the segment at `at`, and of those behind it, in order.
    pub known: VecDeque<KnownSegment>,
    /// Everything before this is in the repository.
    pub durable: Lsn,
    /// Without the repository: what the note says of that, which nothing adds to until the repository was asked.
    pub noted: Option<Option<Lsn>>,
    /// Under which epoch the stream stores what follows.
    pub writing: Writing,
    /// The slot stands where only this agent moves it: the server is the one that was archived before.
    pub confirmed: bool,
    /// A recorded gap ends at `frontier`.
    pub behind_gap: bool,
}

/// What is known of a segment from its first byte on; received bytes must be equal.
#[derive(Debug)]
pub(super) struct KnownSegment {
    /// The bytes.
    pub bytes: Bytes,
    /// Where they lie.
    pub known: Known,
    /// The parts they lie in, if they do.
    pub chain: Vec<Link>,
    /// Whether there are more parts, which the chain does without: whoever stored what replaces them did not live to remove them.
    pub more_parts: bool,
    /// The chain's bytes are encrypted for others: what comes in their place is stored once more.
    pub unread: bool,
}

impl KnownSegment {
    /// Bytes that lie in no part.
    pub(super) fn without_parts(bytes: Bytes, known: Known) -> Self {
        Self { bytes, known, chain: Vec::new(), more_parts: false, unread: false }
    }
}

impl Start {
    /// Whether the first segment is received only to be compared with the repository's.
    pub(super) fn only_compares_first(&self) -> bool {
        self.known.front().is_some_and(|first| matches!(first.known, Known::Whole | Known::Unread))
    }

    /// How many bytes are known.
    pub(super) fn known_bytes(&self) -> usize {
        self.known.iter().map(|segment| segment.bytes.len()).sum()
    }
}

impl Known {
    /// Whether it is durable.
    pub(super) fn in_repository(self) -> bool {
        matches!(self, Self::Whole | Self::InParts)
    }

    /// Whether the segment is received only to be compared.
    pub(super) fn is_whole(self) -> bool {
        matches!(self, Self::Whole | Self::WholeInSpool)
    }
}

/// Where what is known of a segment lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Known {
    /// In the repository, whole: the segment is asked for only to be compared.
    Whole,
    /// In the repository, as parts.
    InParts,
    /// In the spool, as far as it was received.
    InSpool,
    /// In the repository, whole, and encrypted for others: it is offered once more, and compared by its fingerprint.
    Unread,
    /// In the spool, whole: as [`Known::Whole`].
    WholeInSpool,
}

/// The slot's position. `None`: no slot. `Some(None)`: a slot that holds no WAL.
pub(super) async fn read_slot(
    connection: &mut ReplicationConnection,
    params: &ConnectionParams,
    slot: &str,
) -> Result<Option<Option<Lsn>>> {
    if connection.server_version_num().await? >= 150_000 {
        return Ok(connection.read_slot(slot).await?.map(|slot| slot.restart_lsn));
    }
    let client = sql::connect_sql(params).await.context("connect for SQL (READ_REPLICATION_SLOT needs PostgreSQL 15)")?;
    Ok(sql::slot_state(&client, slot).await?.map(|slot| slot.restart_lsn))
}

impl Streamer {
    /// Where to begin: at the first byte of the first segment that is not stored, or one segment before it.
    pub(super) async fn position(
        &self,
        connection: &mut ReplicationConnection,
        identity: &Identity,
        history: &TimelineHistory,
    ) -> Result<Start> {
        let stored = self.newest_stored(history).await?;
        let slot = self.slot_position(connection, !stored.is_empty()).await?;
        self.position_by(slot, &stored, (connection.host(), identity), history).await
    }

    /// The same, with what the server said and what is `stored`.
    pub(super) async fn position_by(
        &self,
        slot: Option<Lsn>,
        stored: &[Position],
        (host, server): (&Host, &Identity),
        history: &TimelineHistory,
    ) -> Result<Start> {
        let flushed = server.flush;
        // A position that the server has not reached is another history's: it says nothing of what is kept here.
        let slot = slot.filter(|slot| *slot <= flushed);
        let size = self.repository.identity().segment_size;
        // A slot that follows the spool says nothing of what the spool has lost.
        let noted = self.noted_as_stored().filter(|noted| *noted <= flushed);
        let hole = self.newest_hole(history.timeline()).await?;
        let kept = slot.into_iter().chain(noted).chain(hole).min();
        let begin = resume::begin(&resume::Known { server: history, flushed, slot: kept, stored }, size);
        let gaps = self.repository.gaps().await?;
        let mut frontier = begin.position;
        loop {
            let behind = self.skip_stored(self.behind_known_gaps(frontier, &gaps, history), history).await?;
            if behind == frontier {
                break;
            }
            frontier = behind;
        }
        self.refuse_unlike()?;
        let size = self.repository.identity().segment_size;
        self.repository.refuse_let_go(size.segment_of(frontier.lsn).name(frontier.timeline, size)).await?;
        let start = self.back_to_prove(frontier, slot, host, server).await?;
        Ok(Start { behind_gap: gaps.iter().any(|gap| gap.to == frontier.lsn), ..start })
    }

    /// Where WAL is missing between stored segments of `timeline`, not long before the newest one: somebody deleted it, or brought an older copy of
    /// the repository back. The server may still have it; if not, that is a gap. Holes that are recorded are passed over like any gap; what left the
    /// catalog is none.
    async fn newest_hole(&self, timeline: TimelineId) -> Result<Option<Lsn>> {
        let Some(newest) = self.repository.newest_segment(timeline).await? else { return Ok(None) };
        let from = SegmentNumber::new(newest.get().saturating_sub(HOLES_WITHIN));
        let stretches = self.repository.stored_stretches(timeline, from).await?;
        let holes: Vec<WalRange> = stretches.windows(2).map(|pair| WalRange { from: pair[0].1, to: pair[1].0 }).collect();
        if holes.is_empty() {
            return Ok(None);
        }
        let expired = self.repository.expired().await?;
        Ok(holes.into_iter().flat_map(|hole| expired.without(timeline, hole)).map(|hole| hole.from).next())
    }

    /// The end of the newest whole segment on each timeline of the history. Where there is none at all, the start of the segment that an agent had begun
    /// to store.
    pub(super) async fn newest_stored(&self, history: &TimelineHistory) -> Result<Vec<Position>> {
        let size = self.repository.identity().segment_size;
        let mut stored = Vec::new();
        for timeline in history.lineage() {
            if let Some(number) = self.repository.newest_segment(timeline).await? {
                stored.push(Position { timeline, lsn: number.end(size) });
            }
        }
        for timeline in history.lineage() {
            if stored.is_empty()
                && let Some(number) = self.repository.first_parts(timeline).await?
            {
                stored.push(Position { timeline, lsn: number.start(size) });
            }
        }
        Ok(stored)
    }

    /// The slot's position; makes the slot if it is missing. Whether WAL was lost with it shows when the stream begins: it begins at
    /// what is stored, not at the new slot.
    pub(super) async fn slot_position(&self, connection: &mut ReplicationConnection, known_cluster: bool) -> Result<Option<Lsn>> {
        let slot = &self.cluster.slot;
        if let Some(position) = self.read_slot(connection).await? {
            match position {
                Some(restart) => return Ok(Some(restart)),
                // It never reserved WAL, or was invalidated: it protects nothing, so another one takes its place.
                None => {
                    self.slot_was_lost.store(known_cluster, Ordering::Relaxed);
                    tracing::error!(
                        slot,
                        "the replication slot holds no WAL (invalidated, or created without RESERVE_WAL): making it anew"
                    );
                    connection.drop_slot(slot).await.with_context(|| format!("drop the lost slot {slot}"))?;
                }
            }
        } else if self.progress.slot() == SlotHold::GivenUp {
            self.slot_was_given_up.store(true, Ordering::Relaxed);
            tracing::warn!(slot, "making the slot anew that was given up; if the server has removed WAL meanwhile, a gap will be recorded");
        } else if known_cluster {
            tracing::error!(slot, "the replication slot is gone: making it anew; if WAL was lost meanwhile, a gap will be recorded");
        }
        self.create_slot(connection).await
    }

    /// Makes the slot, unless somebody was faster; its position.
    pub(super) async fn create_slot(&self, connection: &mut ReplicationConnection) -> Result<Option<Lsn>> {
        let slot = &self.cluster.slot;
        let created = connection.create_physical_slot(slot).await.with_context(|| format!("create the replication slot {slot}"))?;
        if created == Created::New {
            tracing::info!(slot, "created the replication slot");
        }
        Ok(self.read_slot(connection).await?.flatten())
    }

    /// A slot may be invalidated and show its position all the same (since PostgreSQL 18, for having been idle): only the start of a stream tells. It
    /// is dropped for the next attempt to make it anew, if the server says of our own slot that it is lost.
    pub(super) async fn drop_if_lost(&self) -> Result<()> {
        let slot = &self.cluster.slot;
        let client = sql::connect_sql(&self.params).await.context("connect for SQL, to look at the slot")?;
        if sql::slot_state(&client, slot).await?.and_then(|slot| slot.wal_status).as_deref() == Some("lost") {
            self.slot_was_lost.store(true, Ordering::Relaxed);
            tracing::error!(
                slot,
                "the server has invalidated the replication slot: making it anew; if WAL was lost meanwhile, a gap will be recorded"
            );
            self.connect().await?.drop_slot(slot).await.with_context(|| format!("drop the lost slot {slot}"))?;
        }
        Ok(())
    }

    /// `None`: no slot. `Some(None)`: a slot that holds no WAL.
    pub(super) async fn read_slot(&self, connection: &mut ReplicationConnection) -> Result<Option<Option<Lsn>>> {
        read_slot(connection, &self.params, &self.cluster.slot).await
    }

    /// If the position lies in a gap that is recorded already, behind it.
    fn behind_known_gaps(&self, mut position: Position, gaps: &[GapName], history: &TimelineHistory) -> Position {
        let size = self.repository.identity().segment_size;
        while let Some(gap) =
            gaps.iter().find(|gap| gap.timeline == position.timeline && size.align_down(gap.from) <= position.lsn && position.lsn < gap.to)
        {
            let timeline = history.timeline_at(gap.to);
            position = Position { timeline, lsn: size.align_down(gap.to) };
            if position.lsn < gap.to && position.timeline == gap.timeline {
                break;
            }
        }
        position
    }

    /// One segment back if that one is stored: the server sends it once more, and what it sends must be the same. A copied server with the same
    /// system identifier and timeline would otherwise go on where the original is, and mix its WAL into the archive.
    ///
    /// Not needed where the slot stands exactly where we have confirmed everything: only we move it there, while the slot of a copied
    /// server, and one made just now, begins at some checkpoint. Not possible where the server has removed that segment: see
    /// [`Streamer::cannot_compare`], and [`super::seam`] for what is proven then.
    async fn back_to_prove(&self, frontier: Position, slot: Option<Lsn>, host: &Host, server: &Identity) -> Result<Start> {
        let size = self.repository.identity().segment_size;
        let segment = size.segment_of(frontier.lsn);
        let name = segment.name(frontier.timeline, size);
        let parts = self.repository.list_parts(name).await?;
        let confirmed =
            |slot: Lsn| slot == frontier.lsn || parts.iter().any(|part| frontier.lsn.saturating_add(u64::from(part.to)) == slot);
        let chain = longest_chain(&parts);
        let read = self.repository.get_chain(name, &chain).await;
        let read = self.repository.if_readable(read, "the unfinished segment with what the server sends, but by fingerprints")?;
        let (bytes, unread) = (read.clone().unwrap_or_default(), read.is_none());
        let more_parts = parts.len() > chain.len();
        let writing = match frontier.timeline == server.timeline {
            true => self.writing(host, name, chain.last().map_or(0, |last| last.to)).await?,
            false => Writing { epoch: self.epoch_of_ended(frontier.timeline).await?, lease: None },
        };
        let unfinished = KnownSegment { bytes, known: Known::InParts, chain, more_parts, unread };
        let confirmed = slot.is_some_and(confirmed);
        let before = segment.previous().filter(|_| frontier.lsn <= server.flush && !confirmed && !self.is_incomparable(frontier));
        if let Some(before) = before {
            let name = before.name(frontier.timeline, size);
            let whole = match self.repository.get_wal(WalFileName::Segment(name)).await {
                Ok(Some(stored)) => Some(KnownSegment::without_parts(stored.content, Known::Whole)),
                Ok(None) => None,
                Err(error @ Error::Corrupt { .. }) => {
                    tracing::error!(segment = %name, %error, hint = error.hint(), "what the server has cannot be compared with what is stored");
                    None
                }
                // Offered once more, it is compared by its fingerprint.
                Err(Error::CannotDecrypt { .. }) if self.repository.knows_fingerprint(name).await? => {
                    Some(KnownSegment::without_parts(Bytes::new(), Known::Unread))
                }
                Err(error) => {
                    self.repository.if_readable(Err::<(), _>(error), "the last segment with what the server has")?;
                    None
                }
            };
            if let Some(whole) = whole {
                let at = Position { lsn: before.start(size), ..frontier };
                // What is stored of the next one goes on, and is compared too: a copy may have gone its own way there.
                let known = [whole, unfinished].into();
                return Ok(Start { at, frontier, known, durable: at.lsn, noted: None, writing, confirmed, behind_gap: false });
            }
        }
        Ok(Start {
            at: frontier,
            frontier,
            known: [unfinished].into(),
            durable: frontier.lsn,
            noted: None,
            writing,
            confirmed,
            behind_gap: false,
        })
    }

    fn is_incomparable(&self, frontier: Position) -> bool {
        *self.incomparable.lock().unwrap_or_else(PoisonError::into_inner) == Some(frontier)
    }

    /// The server no longer has the last segment that is stored: the next attempt begins behind it.
    pub(super) async fn cannot_compare(&self, frontier: Position) -> Result<()> {
        *self.incomparable.lock().unwrap_or_else(PoisonError::into_inner) = Some(frontier);
        let size = self.repository.identity().segment_size;
        let next = size.segment_of(frontier.lsn).name(frontier.timeline, size);
        if walkeep_core::parts::reach(&self.repository.list_parts(next).await?) > 0 {
            tracing::debug!(segment = %next, "the server has removed the segment before; what is stored of this one is compared");
            return Ok(());
        }
        tracing::info!(
            timeline = frontier.timeline.get(), up_to = %frontier.lsn,
            "the server has removed the last segment that is stored: its records must show that they go on behind it"
        );
        Ok(())
    }

    /// Past the segments that are stored already, on to the next timeline where one ends.
    async fn skip_stored(&self, begin: Position, history: &TimelineHistory) -> Result<Position> {
        let size = self.repository.identity().segment_size;
        let mut at = begin;
        loop {
            let end_of_timeline = history.leaves(at.timeline).flatten();
            let stretches = self.repository.stored_stretches(at.timeline, size.segment_of(at.lsn)).await?;
            if let Some((_, end)) = stretches.first().filter(|(start, _)| *start <= at.lsn) {
                at.lsn = *end;
            }
            let Some(switch) = end_of_timeline else { return Ok(at) };
            // The segment with the switch point is stored to its last byte of this timeline, whole or in parts: on to the next one.
            let tail = self.repository.list_parts(size.segment_of(at.lsn).name(at.timeline, size)).await?;
            let tail_end = at.lsn.saturating_add(u64::from(walkeep_core::parts::reach(&tail)));
            if at.lsn < switch && tail_end < switch {
                return Ok(at);
            }
            at = Position { timeline: history.timeline_at(switch), lsn: size.align_down(switch) };
        }
    }
}
