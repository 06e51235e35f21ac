//! Where to begin: gathers what the pure decision needs, and records a gap when the server no longer has what was decided.

use std::sync::atomic::Ordering;

use anyhow::{Context, Result};
use walkeep_core::catalog::GapCause;
use walkeep_core::layout::GapName;
use walkeep_core::resume::{self, Known, Position};
use walkeep_core::{Lsn, TimelineHistory};

use super::Streamer;
use crate::postgres::replication::{Created, Identity, ReplicationConnection};
use crate::postgres::sql;

impl Streamer {
    /// The position to ask the server for: the first byte of the first segment that is not stored.
    pub(super) async fn position(
        &self,
        connection: &mut ReplicationConnection,
        identity: &Identity,
        history: &TimelineHistory,
    ) -> Result<Position> {
        let stored = self.newest_stored(history).await?;
        let slot = self.slot_position(connection, !stored.is_empty()).await?;
        // A position that the server has not reached is another history's: it says nothing of what is kept here.
        let slot = slot.filter(|slot| *slot <= identity.flush);
        let size = self.repository.identity().segment_size;
        let begin = resume::begin(&Known { server: history, flushed: identity.flush, slot, stored: &stored }, size);
        let begin = self.behind_known_gaps(begin.position, history).await?;
        let position = self.skip_stored(begin, history).await?;
        Ok(self.back_to_prove(begin, position, slot))
    }

    /// The end of the newest whole segment on each timeline of the history.
    async fn newest_stored(&self, history: &TimelineHistory) -> Result<Vec<Position>> {
        let size = self.repository.identity().segment_size;
        let mut stored = Vec::new();
        let ancestors = history.ancestors().iter().map(|ancestor| ancestor.timeline);
        for timeline in ancestors.chain([history.timeline()]) {
            if let Some(number) = self.repository.newest_segment(timeline).await? {
                stored.push(Position { timeline, lsn: number.end(size) });
            }
        }
        Ok(stored)
    }

    /// The slot's position; makes the slot if it is missing. Whether WAL was lost with it shows when the stream begins: it begins at
    /// what is stored, not at the new slot.
    async fn slot_position(&self, connection: &mut ReplicationConnection, known_cluster: bool) -> Result<Option<Lsn>> {
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
        } else if known_cluster {
            tracing::error!(slot, "the replication slot is gone: making it anew; if WAL was lost meanwhile, a gap will be recorded");
        }
        let created = connection.create_physical_slot(slot).await.with_context(|| format!("create the replication slot {slot}"))?;
        if created == Created::New {
            tracing::info!(slot, "created the replication slot");
        }
        Ok(self.read_slot(connection).await?.flatten())
    }

    /// `None`: no slot. `Some(None)`: a slot that holds no WAL.
    async fn read_slot(&self, connection: &mut ReplicationConnection) -> Result<Option<Option<Lsn>>> {
        if connection.server_version_num().await? >= 150_000 {
            return Ok(connection.read_slot(&self.cluster.slot).await?.map(|slot| slot.restart_lsn));
        }
        let client = sql::connect_sql(&self.params).await.context("connect for SQL (READ_REPLICATION_SLOT needs PostgreSQL 15)")?;
        Ok(sql::slot_state(&client, &self.cluster.slot).await?.map(|slot| slot.restart_lsn))
    }

    /// If the position lies in a gap that is recorded already, behind it.
    async fn behind_known_gaps(&self, mut position: Position, history: &TimelineHistory) -> Result<Position> {
        let size = self.repository.identity().segment_size;
        let gaps = self.repository.gaps().await?;
        while let Some(gap) =
            gaps.iter().find(|gap| gap.timeline == position.timeline && size.align_down(gap.from) <= position.lsn && position.lsn < gap.to)
        {
            let timeline = history.timeline_at(gap.to);
            position = Position { timeline, lsn: size.align_down(gap.to) };
            if position.lsn < gap.to && position.timeline == gap.timeline {
                break;
            }
        }
        Ok(position)
    }

    /// One segment back where segments were skipped because they are stored: the server sends the last of them once more, and storing it shows
    /// whether it is the same. A copied server with the same system identifier and timeline would otherwise go on where the original
    /// is, and mix its WAL into the archive. Only as far back as the slot keeps WAL.
    fn back_to_prove(&self, begin: Position, position: Position, slot: Option<Lsn>) -> Position {
        let back =
            Position { lsn: Lsn::new(position.lsn.get().saturating_sub(self.repository.identity().segment_size.bytes())), ..position };
        let skipped = begin.timeline == position.timeline && begin.lsn <= back.lsn;
        let kept = slot.is_some_and(|slot| self.repository.identity().segment_size.align_down(slot) <= back.lsn);
        if skipped && kept { back } else { position }
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

    /// Records what is missing between `begin` and what the server still has.
    pub(super) async fn record_gap(&self, begin: Position, history: &TimelineHistory) -> Result<()> {
        let cause = if self.slot_was_lost.load(Ordering::Relaxed) { GapCause::SlotInvalidated } else { GapCause::SlotLost };
        let size = self.repository.identity().segment_size;
        let mut connection = self.connect().await?;
        let identity = connection.identify_system().await?;
        let mut slot = self.slot_position(&mut connection, true).await?;
        if slot.is_none_or(|restart| size.align_down(restart) <= begin.lsn) {
            // The slot claims to keep what the server has removed: it protects nothing.
            connection.drop_slot(&self.cluster.slot).await.context("drop a slot that keeps nothing")?;
            slot = self.slot_position(&mut connection, true).await?;
        }
        // Never beyond what the server has: what is not written yet cannot be lost.
        let resumes = size.align_down(slot.map_or(identity.flush, |slot| slot.min(identity.flush)));
        let mut stored = Vec::new();
        let ancestors = history.ancestors().iter().map(|ancestor| ancestor.timeline);
        for timeline in ancestors.chain([history.timeline()]) {
            let stretches = self.repository.stored_stretches(timeline, size.segment_of(begin.lsn)).await?;
            stored.extend(stretches.into_iter().map(|(from, to)| (timeline, from, to)));
        }
        let parts = self.repository.list_parts(size.segment_of(begin.lsn).name(begin.timeline, size)).await?;
        let tail = u64::from(walkeep_core::parts::reach(&parts));
        if tail > 0 {
            stored.push((begin.timeline, begin.lsn, begin.lsn.saturating_add(tail)));
        }
        for (timeline, from, to) in resume::unstored(history, begin.lsn, resumes, &stored) {
            let gap = GapName { timeline, from, to };
            self.repository.put_gap(gap, cause.clone()).await.with_context(|| format!("record the gap from {from} to {to}"))?;
            tracing::error!(
                timeline = timeline.get(), %from, %to, cause = ?cause,
                "GAP in the archive: nothing in it can be restored, and no backup from before it beyond it; take a new base backup"
            );
        }
        // An alarm must not wait for the watcher's next look.
        match self.repository.open_gaps().await {
            Ok(open) => self.metrics.open_gaps(open.len()),
            Err(error) => tracing::warn!(error = format!("{error:#}"), "cannot count the gaps"),
        }
        Ok(())
    }
}
