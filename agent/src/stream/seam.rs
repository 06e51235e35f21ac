//! A stream that is to go on where the server has removed what is stored before: nothing can be compared there.
//!
//! It may be a server that was put back to an older copy of its data directory and has written other WAL since. As long as it has the WAL in which
//! the two histories part, it is refused by comparison, and nothing is recorded: the first one may go on. Once it has removed that, it is the server
//! that there is, and is archived: but the place is recorded as a gap before anything is stored behind it. [`walkeep_core::seam`] tells by the records.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use tokio_util::sync::CancellationToken;
use walkeep_core::catalog::{GapCause, legs};
use walkeep_core::layout::GapName;
use walkeep_core::resume::Position;
use walkeep_core::seam::{Misfit, Seam, Verdict};
use walkeep_core::{Lsn, SegmentNumber, TimelineHistory, TimelineId, WalFileName};

use super::position::Start;
use super::{Streamer, is_removed};
use crate::postgres::replication::{Event, ReplicationConnection, Started};
use crate::progress::Phase;
use crate::repository::Error;

/// A server that was silent for so long is asked for a sign of life, and after as long again its connection is dead.
const SILENT: Duration = Duration::from_secs(15);

/// What became of a look at the server's WAL.
enum Look {
    Says(Verdict),
    /// The server has nothing there that could be stored.
    Nothing,
    /// The agent stops.
    Stopped,
}

impl Streamer {
    /// Makes sure, before anything is stored from `start` on, that the server's WAL continues what is stored before, if no byte is compared. Where it
    /// does not, that is recorded as a gap. False if the agent stops before.
    pub(super) async fn prove_seam(&self, start: &Start, history: &TimelineHistory, stop: &CancellationToken) -> Result<bool> {
        let at = start.frontier;
        // The usual ways, for which nothing is asked. But where a gap was recorded and nothing stored behind it, the first history's server may be back.
        let proven = start.confirmed || start.only_compares_first();
        // That is compared, whoever stored it.
        let stored_behind = start.known.back().is_some_and(|unfinished| !unfinished.bytes.is_empty());
        let Some(last) = at.lsn.get().checked_sub(1).map(Lsn::new) else { return Ok(true) };
        if stored_behind || (proven && !start.behind_gap) {
            return Ok(true);
        }
        let owner = history.timeline_at(last);
        let recorded = self.repository.other_histories(|gap| gap.timeline == owner && gap.to == at.lsn).await?;
        let open = recorded.iter().find(|(_, closed)| !closed).map(|(gap, _)| *gap);
        if proven && open.is_none() {
            return Ok(true);
        }
        let Some(seam) = self.stored_before(at, history).await? else { return Ok(true) };
        let verdict = match self.look(seam, at, history, stop).await? {
            Look::Stopped => return Ok(false),
            Look::Nothing => return Ok(true),
            Look::Says(verdict) => verdict,
        };
        tokio::select! {
            done = self.act_on(verdict, start, open, &recorded, history) => done.map(|()| true),
            // A lease may be waited for.
            () = stop.cancelled() => Ok(false),
        }
    }

    /// What the verdict changes: a gap is `recorded` where there is none that is `open`, and closed where there is none any more.
    async fn act_on(
        &self,
        verdict: Verdict,
        start: &Start,
        open: Option<GapName>,
        recorded: &[(GapName, bool)],
        history: &TimelineHistory,
    ) -> Result<()> {
        let at = start.frontier;
        match (verdict, open) {
            (Verdict::Continues, None) => {
                tracing::info!(timeline = at.timeline.get(), at = %at.lsn, "the server's records go on where what is stored ends");
                Ok(())
            }
            (Verdict::Continues, Some(gap)) => {
                self.assure_writer(start).await?;
                tracing::info!(timeline = gap.timeline.get(), at = %at.lsn, "the history that is stored goes on: the gap before another one is none");
                self.repository.close_gap(gap).await.context("close a gap")?;
                self.count_gaps().await;
                Ok(())
            }
            (Verdict::Parts { why, .. }, Some(_)) => self.refuse_if_comparable(at, history, &why).await,
            (Verdict::Parts { from, why }, None) => {
                self.refuse_if_comparable(at, history, &why).await?;
                self.assure_writer(start).await?;
                self.record_seam(at.lsn, from, recorded, history, &why).await
            }
        }
    }

    /// The stored WAL that ends at `at`, back to a segment in which a record is whole. `None` where nothing is stored right before, or where it
    /// cannot be read.
    async fn stored_before(&self, at: Position, history: &TimelineHistory) -> Result<Option<Seam>> {
        let size = self.repository.identity().segment_size;
        let end = size.segment_of(at.lsn);
        let mut next = end;
        // A record may cover segments: then it is looked for where it begins.
        let (mut number, mut seam) = loop {
            let Some(number) = next.previous() else { return Ok(None) };
            let Some(content) = self.whole_stored(number, history).await? else { return Ok(None) };
            let mut seam = Seam::behind(number, size);
            if let Err(error) = seam.stored(&content) {
                return Ok(self.unproven(at, error));
            }
            if seam.has_record() {
                break (number.next(), seam);
            }
            next = number;
        };
        while number < end {
            let Some(content) = self.whole_stored(number, history).await? else { return Ok(None) };
            if let Err(error) = seam.stored(&content) {
                return Ok(self.unproven(at, error));
            }
            number = number.next();
        }
        Ok(Some(seam))
    }

    fn unproven(&self, at: Position, reason: impl std::fmt::Display) -> Option<Seam> {
        tracing::warn!(
            timeline = at.timeline.get(), up_to = %at.lsn, %reason,
            "what is stored cannot be compared with this server's WAL, nor its last records be read: going on behind it. Be sure that it is not a \
             copy of the server that was archived before"
        );
        None
    }

    /// A segment that is stored to its last byte, in the file that replay along `history` reads.
    async fn whole_stored(&self, number: SegmentNumber, history: &TimelineHistory) -> Result<Option<Bytes>> {
        let size = self.repository.identity().segment_size;
        let name = number.name(history.timeline_at(Lsn::new(number.end(size).get() - 1)), size);
        let stored = match self.repository.get_wal(WalFileName::Segment(name)).await {
            Ok(Some(whole)) => return Ok(Some(whole.content)),
            Ok(None) => self.repository.get_tail(name).await,
            Err(error) => Err(error),
        };
        match stored {
            Ok(tail) => Ok(Some(tail).filter(|tail| tail.len() as u64 == size.bytes())),
            Err(error @ Error::Corrupt { .. }) => {
                tracing::error!(segment = %name, %error, hint = error.hint(), "what the server has cannot be compared with what is stored");
                Ok(None)
            }
            Err(error) => {
                let read = self.repository.if_readable(Err(error), "where what is stored ends with where the server's WAL goes on");
                Ok(read?)
            }
        }
    }

    /// Shows the server's WAL from `at` on to the seam, until that has a verdict. A server that has just ended a segment may take its time.
    async fn look(&self, mut seam: Seam, at: Position, history: &TimelineHistory, stop: &CancellationToken) -> Result<Look> {
        // Where timelines end in the segment, its bytes may be there under a later one's name only.
        let heir = self.ends_within_segment(at, history).map(|ends| ends.heir());
        for timeline in [Some(at.timeline), heir].into_iter().flatten() {
            let mut connection = self.connect().await?;
            tokio::select! {
                looked = self.look_on(&mut connection, timeline, at.lsn, &mut seam) => match looked {
                    Err(error) if is_removed(&error) => {}
                    looked => {
                        connection.close().await;
                        return looked;
                    }
                },
                () = stop.cancelled() => return Ok(Look::Stopped),
            }
        }
        // Removed too: whoever asks for it next is told so, and nothing is stored.
        Ok(Look::Nothing)
    }

    async fn look_on(&self, connection: &mut ReplicationConnection, timeline: TimelineId, from: Lsn, seam: &mut Seam) -> Result<Look> {
        // Without the slot: it must not move before this is decided, as it says next time that all was confirmed.
        if connection.start_physical(None, from, timeline).await? != Started::Streaming {
            return Ok(Look::Nothing);
        }
        let (mut at, mut asked) = (from, false);
        loop {
            let Ok(event) = tokio::time::timeout(SILENT, connection.next_event()).await else {
                ensure!(!asked, "the server says nothing of its WAL from {from} on");
                asked = true;
                connection.send_status(at, Lsn::ZERO, Lsn::ZERO, true).await?;
                continue;
            };
            asked = false;
            match event? {
                Event::Wal { start, data, .. } => {
                    ensure!(start == at, "the server sent WAL from {start} where {at} was expected");
                    if let Some(verdict) = seam.offered(&data) {
                        return Ok(Look::Says(verdict));
                    }
                    at = at.saturating_add(data.len() as u64);
                }
                Event::Keepalive { server_end, reply_requested, .. } => {
                    if reply_requested {
                        connection.send_status(at, Lsn::ZERO, Lsn::ZERO, false).await?;
                    }
                    // All that it has is stored: nothing lags here.
                    if server_end <= from {
                        self.progress.begin(timeline, from, from);
                        self.progress.set_phase(Phase::Waiting);
                        self.progress.set_problem(Some(format!("waiting for the server's first record behind {from}")));
                    }
                }
                Event::EndOfTimeline { .. } => return Ok(Look::Nothing),
                Event::Ended => bail!("the server ended the stream at {at}"),
            }
        }
    }

    /// A conflict, where the server still has the segment before, which is not the stored one, or where more is stored behind: then it is not the end
    /// of what is stored that it would go on from. Nothing is recorded of that: the first history may go on.
    async fn refuse_if_comparable(&self, at: Position, history: &TimelineHistory, why: &Misfit) -> Result<()> {
        let size = self.repository.identity().segment_size;
        let Some(before) = size.segment_of(at.lsn).previous() else { return Ok(()) };
        let mut connection = self.connect().await?;
        let identity = connection.identify_system().await?;
        let has_before = self.has(&mut connection, &identity, before, history).await?;
        connection.close().await;
        // What an old timeline wrote after it was left is not of this history.
        let end = |stored: Position| history.leaves(stored.timeline).flatten().map_or(stored.lsn, |left| stored.lsn.min(left));
        let stored_behind = self.newest_stored(history).await?.into_iter().any(|stored| end(stored) > at.lsn);
        if !has_before && !stored_behind {
            return Ok(());
        }
        let conflict = Error::Conflict {
            name: format!("{} and before", before.name(history.timeline_at(before.start(size)), size)),
            stored: format!("WAL up to {}", at.lsn),
            offered: format!("WAL that does not continue it: {why}"),
        };
        self.metrics.refused(&conflict);
        Err(conflict.into())
    }

    /// Only whoever may store what follows may say what it is.
    async fn assure_writer(&self, start: &Start) -> Result<()> {
        match &start.writing.lease {
            Some(lease) => Ok(lease.assure().await.inspect_err(|error| self.metrics.refused(error))?),
            None => self.epoch_of_leftovers(start.frontier.timeline).await.map(drop),
        }
    }

    /// Records that what follows `to` is another history.
    async fn record_seam(&self, to: Lsn, from: Lsn, recorded: &[(GapName, bool)], history: &TimelineHistory, why: &Misfit) -> Result<()> {
        let last = Lsn::new(to.get() - 1);
        let Some((timeline, leg)) = legs(history).into_iter().rfind(|(_, leg)| leg.from <= last) else { return Ok(()) };
        // A record is never changed: where this one was closed, another one takes its place.
        let begins = [from, self.repository.identity().segment_size.align_down(last)].map(|from| from.max(leg.from));
        let mut names = begins.map(|from| GapName { timeline, from, to }).into_iter();
        let Some(gap) = names.find(|gap| recorded.iter().all(|(other, _)| other != gap)) else {
            bail!("the server's WAL does not continue what is stored up to {to}, and that it does was noted twice: {why}")
        };
        self.repository
            .put_gap(gap, GapCause::OtherHistory)
            .await
            .with_context(|| format!("record the gap from {} to {}", gap.from, gap.to))?;
        self.tell_gap(gap, &GapCause::OtherHistory);
        tracing::error!(
            timeline = timeline.get(), from = %gap.from, to = %gap.to, cause = ?GapCause::OtherHistory, reason = %why,
            "GAP in the archive: the server was put back to an older state and wrote other WAL than what is stored, and has removed the WAL in which the \
             two part. What is stored before can be restored up to here, nothing behind it from backups before it; take a new base backup"
        );
        self.count_gaps().await;
        Ok(())
    }
}
