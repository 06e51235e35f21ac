//! WAL that the server no longer has: what is lost, to the byte, and the record of it.
//!
//! The server is asked by attempts to stream, without a slot: that needs no more rights than the stream has, and works with every version. Where the
//! stream goes on afterwards is [`super::position`]'s, by the record.

use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use walkeep_core::audit::{Kind, Outcome};
use walkeep_core::catalog::GapCause;
use walkeep_core::layout::GapName;
use walkeep_core::resume::{self, Bisection, Position};
use walkeep_core::{Lsn, SegmentNumber, TimelineHistory, TimelineId};

use super::Streamer;
use crate::audit::Deed;
use crate::postgres::replication::{Identity, ReplicationConnection, ReplicationError, Started};

/// A server sends the first byte of WAL that it has, or says that it has not, within this time.
const PROBE: Duration = Duration::from_secs(30);

impl Streamer {
    /// Records what is missing between `begin`, which the server has removed, and the oldest WAL that it still has.
    pub(super) async fn record_gap(&self, begin: Position, history: &TimelineHistory) -> Result<()> {
        let cause = match (self.slot_was_given_up.load(Ordering::Relaxed), self.slot_was_lost.load(Ordering::Relaxed)) {
            (true, _) => GapCause::SlotGivenUp,
            (false, true) => GapCause::SlotInvalidated,
            (false, false) => GapCause::SlotLost,
        };
        let size = self.repository.identity().segment_size;
        let mut connection = self.connect().await?;
        let identity = connection.identify_system().await?;
        // A slot holds what is there now, while it is looked for what that is.
        let mut slot = self.slot_position(&mut connection, true).await?;
        if slot.is_none_or(|restart| size.align_down(restart) <= begin.lsn) {
            // The slot claims to keep what the server has removed: it protects nothing. A first status of an attempt to stream from there, sent before
            // the server refused, is enough: PostgreSQL moves a physical slot back too.
            tracing::info!(slot = self.cluster.slot, removed = %begin.lsn, "the replication slot stands at WAL that the server has removed: making it anew");
            connection.drop_slot(&self.cluster.slot).await.context("drop a slot that keeps nothing")?;
            slot = self.create_slot(&mut connection).await?;
        }
        // A new slot keeps less than the server may have.
        let kept = size.segment_of(slot.map_or(identity.flush, |slot| slot.min(identity.flush)));
        let resumes = self.oldest_on_server(&mut connection, &identity, size.segment_of(begin.lsn), kept, history).await?.start(size);
        let catalog = self.repository.wal_catalog(history, size.segment_of(begin.lsn)).await?;
        let stored: Vec<_> = history
            .lineage()
            .flat_map(|timeline| catalog.stored_ranges(timeline).iter().map(move |range| (timeline, range.from, range.to)))
            .collect();
        for (timeline, from, to) in resume::unstored(history, begin.lsn, resumes, &stored) {
            let gap = GapName { timeline, from, to };
            self.repository.put_gap(gap, cause.clone()).await.with_context(|| format!("record the gap from {from} to {to}"))?;
            self.tell_gap(gap, &cause);
            tracing::error!(
                timeline = timeline.get(), %from, %to, cause = ?cause,
                "GAP in the archive: nothing in it can be restored, and no backup from before it beyond it; take a new base backup"
            );
        }
        self.count_gaps().await;
        Ok(())
    }

    pub(super) fn tell_gap(&self, gap: GapName, cause: &GapCause) {
        let deed = Deed::new("agent", Kind::GAP, Outcome::Done).of("timeline", gap.timeline).of("from", gap.from).of("to", gap.to);
        self.recorder.done(deed.of("cause", format!("{cause:?}")));
    }

    /// An alarm must not wait for the watcher's next look.
    pub(super) async fn count_gaps(&self) {
        match self.repository.open_gaps().await {
            Ok(open) => self.metrics.open_gaps(open.len()),
            Err(error) => tracing::warn!(error = format!("{error:#}"), "cannot count the gaps"),
        }
    }

    /// The oldest segment behind `removed` that the server still has, looked for up to `kept`, or to where it writes should that be gone too.
    pub(super) async fn oldest_on_server(
        &self,
        connection: &mut ReplicationConnection,
        identity: &Identity,
        removed: SegmentNumber,
        kept: SegmentNumber,
        history: &TimelineHistory,
    ) -> Result<SegmentNumber> {
        let size = self.repository.identity().segment_size;
        let writes = size.segment_of(identity.flush);
        let there = if kept >= writes || self.has(connection, identity, kept, history).await? { kept.min(writes) } else { writes };
        let mut search = Bisection { missing: removed, there };
        while let Some(segment) = search.ask() {
            search.answer(segment, self.has(connection, identity, segment, history).await?);
        }
        tracing::info!(removed = %removed.start(size), oldest = %search.there.start(size), "the oldest WAL that the server still has");
        Ok(search.there)
    }

    /// Whether the server has a segment that it wrote: under the name of its first byte's timeline, or, where timelines end within it, of the one that
    /// went on.
    pub(super) async fn has(
        &self,
        connection: &mut ReplicationConnection,
        identity: &Identity,
        segment: SegmentNumber,
        history: &TimelineHistory,
    ) -> Result<bool> {
        let start = segment.start(self.repository.identity().segment_size);
        if start >= identity.flush {
            return Ok(true);
        }
        let at = Position { timeline: history.timeline_at(start), lsn: start };
        if sends(connection, at.lsn, at.timeline).await? {
            return Ok(true);
        }
        match self.ends_within_segment(at, history) {
            Some(ends) => sends(connection, start, ends.heir()).await,
            None => Ok(false),
        }
    }
}

/// Whether the server sends WAL of `timeline` from `start` on, which it has written. The slot has no part in it.
async fn sends(connection: &mut ReplicationConnection, start: Lsn, timeline: TimelineId) -> Result<bool> {
    let asked = async {
        if connection.start_physical(None, start, timeline).await? == Started::Streaming {
            // The refusal may come only now.
            connection.next_event().await?;
            connection.stop().await?;
        }
        Ok(())
    };
    match tokio::time::timeout(PROBE, asked).await {
        Ok(Ok(())) => Ok(true),
        Ok(Err(ReplicationError::WalRemoved(_))) => Ok(false),
        Ok(Err(error)) => Err(error).context("ask whether the server has WAL"),
        Err(_) => bail!("the server does not say within {} s whether it has WAL from {start} on", PROBE.as_secs()),
    }
}
