//! The lease under which the live end of a timeline is written: promised when a stream begins, taken with the first object, looked after with each.
//!
//! An idle agent asks nothing. A writer that was followed learns it before it stores anything, if it has not looked for [`LOOK_AGAIN`]; what it
//! stores within that time bears its own epoch, and is told apart by every reader. Who may write is decided by `walkeep_core::lease`.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::sync::Mutex;
use walkeep_core::lease::{LeaseName, LeaseRecord, Refusal, Verdict, Writer, judge};
use walkeep_core::{SegmentName, TimelineId, parts};

use super::Streamer;
use crate::postgres::sql;
use crate::repository::{ClusterRepository, Error};

/// The epoch where no lease was ever taken.
const FIRST: u32 = 1;
/// So long after a look nobody else is taken to have followed.
const LOOK_AGAIN: Duration = Duration::from_secs(20);
/// A holder's slot must be unused for this long. Longer than any pause between its connections.
const UNUSED_FOR: Duration = Duration::from_secs(60);

/// One epoch of this process on one timeline.
#[derive(Debug)]
pub(super) struct Lease {
    repository: Arc<ClusterRepository>,
    name: LeaseName,
    writer: Writer,
    state: Mutex<State>,
    taken: AtomicBool,
}

#[derive(Debug)]
enum State {
    /// Not needed yet. Of this segment so much was stored when its bytes were compared with the server's.
    Promised { segment: SegmentName, compared: u32 },
    /// Ours, and nobody had followed at this moment.
    Held { looked: Instant },
}

/// A holder's slot that was seen unused.
#[derive(Debug)]
pub(super) struct Unused {
    lease: LeaseRecord,
    since: Instant,
}

/// Under which epoch a stream stores parts.
#[derive(Debug, Clone)]
pub(super) struct Writing {
    /// The epoch in their names.
    pub epoch: u32,
    /// The lease to look after; without one on a timeline that has ended: its bytes up to the switch point are the same whoever stores them.
    pub lease: Option<Arc<Lease>>,
}

impl Lease {
    /// The epoch, if it was taken.
    fn held_epoch(&self) -> Option<u32> {
        self.taken.load(Ordering::Relaxed).then_some(self.name.epoch)
    }

    /// The highest epoch that is known to have been taken.
    pub(super) fn last_epoch(&self) -> Option<u32> {
        self.held_epoch().or_else(|| self.name.epoch.checked_sub(1).filter(|epoch| *epoch >= FIRST))
    }

    /// Makes sure, before something is stored, that this process may store it.
    pub(super) async fn assure(&self) -> Result<(), Error> {
        let mut state = self.state.lock().await;
        match *state {
            State::Promised { segment, compared } => self.take(segment, compared).await?,
            State::Held { looked } if looked.elapsed() < LOOK_AGAIN => return Ok(()),
            State::Held { .. } => self.look().await?,
        }
        *state = State::Held { looked: Instant::now() };
        self.taken.store(true, Ordering::Relaxed);
        Ok(())
    }

    async fn take(&self, segment: SegmentName, compared: u32) -> Result<(), Error> {
        // What came meanwhile was not compared: its writer is at work.
        let stored = parts::reach(&self.repository.list_parts(segment).await?);
        if stored > compared {
            return Err(Error::Overtaken { segment, compared });
        }
        let lease = LeaseRecord { name: self.name, writer: self.writer.clone(), taken_at: chrono::Utc::now(), by_operator: false };
        if !self.repository.put_lease(&lease).await? {
            return self.look_at(self.name).await;
        }
        tracing::info!(timeline = self.name.timeline.get(), epoch = self.name.epoch, "took the lease of the timeline");
        Ok(())
    }

    async fn look(&self) -> Result<(), Error> {
        self.look_at(LeaseName { epoch: self.name.epoch.saturating_add(1), ..self.name }).await
    }

    /// Fails if there is such a lease.
    async fn look_at(&self, name: LeaseName) -> Result<(), Error> {
        let Some(holder) = self.repository.lease(name).await? else { return Ok(()) };
        // Taken under this name by this process: the put's answer was lost.
        if holder.name == self.name && holder.writer.life == self.writer.life {
            return Ok(());
        }
        let reason = if holder.writer.id == self.writer.id { Refusal::Twin } else { Refusal::Followed };
        Err(Error::Lease { holder: Box::new(holder), me: Box::new(self.writer.clone()), reason })
    }
}

impl Streamer {
    /// What a stream stores is stored under the timeline's lease, if the server writes that timeline at this moment (`live`) and nobody else stores it.
    /// Of `segment`, where it begins, so much is stored as `compared` says.
    pub(super) async fn writing(&self, live: bool, segment: SegmentName, compared: u32) -> Result<Writing> {
        let timeline = segment.timeline();
        let newest = self.repository.newest_lease(timeline).await?;
        if !live {
            return Ok(Writing { epoch: newest.map_or(FIRST, |lease| lease.name.epoch), lease: None });
        }
        let held = self.lease_of(timeline);
        let epoch = match judge(newest, &self.writer, held.as_ref().and_then(|lease| lease.held_epoch())) {
            Verdict::Keep => return Ok(Writing::under(held.context("a lease is kept that is not held")?)),
            Verdict::Refused { holder, reason } => return Err(self.refused(holder, reason).into()),
            Verdict::TakeIfUnused { epoch, holder } => {
                self.unused_for_long(holder).await?;
                epoch
            }
            Verdict::Take { epoch, follows } => {
                if let Some(before) = follows {
                    tracing::warn!(timeline = timeline.get(), epoch, %before, "following another writer, whose slot this agent has");
                }
                epoch
            }
        };
        Ok(Writing::under(self.promise(LeaseName { timeline, epoch }, segment, compared)))
    }

    /// The epoch for bytes that an earlier process received, of which nobody else has stored more. Not for what another writer may have gone on with.
    pub(super) async fn epoch_of_leftovers(&self, timeline: TimelineId) -> Result<u32> {
        match self.repository.newest_lease(timeline).await? {
            Some(holder) if holder.writer.id != self.writer.id => Err(self.refused(holder, Refusal::Followed).into()),
            newest => Ok(newest.map_or(FIRST, |lease| lease.name.epoch)),
        }
    }

    /// As [`Streamer::writing`], without the repository: `noted` is the last epoch that this writer held. Whether it may write shows when the repository
    /// is there again.
    pub(super) fn writing_alone(&self, noted: Option<u32>, segment: SegmentName, compared: u32) -> Writing {
        let timeline = segment.timeline();
        let held = self.lease_of(timeline).filter(|lease| lease.held_epoch().is_some());
        let name = LeaseName { timeline, epoch: noted.map_or(FIRST, |epoch| epoch.saturating_add(1)) };
        Writing::under(held.unwrap_or_else(|| self.promise(name, segment, compared)))
    }

    fn lease_of(&self, timeline: TimelineId) -> Option<Arc<Lease>> {
        self.lease.lock().unwrap_or_else(PoisonError::into_inner).clone().filter(|lease| lease.name.timeline == timeline)
    }

    fn promise(&self, name: LeaseName, segment: SegmentName, compared: u32) -> Arc<Lease> {
        let state = Mutex::new(State::Promised { segment, compared });
        let (repository, writer) = (self.repository.clone(), self.writer.clone());
        let lease = Arc::new(Lease { repository, name, writer, state, taken: AtomicBool::new(false) });
        *self.lease.lock().unwrap_or_else(PoisonError::into_inner) = Some(lease.clone());
        lease
    }

    fn refused(&self, holder: LeaseRecord, reason: Refusal) -> Error {
        let refused = Error::Lease { holder: Box::new(holder), me: Box::new(self.writer.clone()), reason };
        self.metrics.error(refused.kind());
        refused
    }

    /// Fails as long as the holder's slot on this server is in use, or was not long ago.
    async fn unused_for_long(&self, holder: LeaseRecord) -> Result<()> {
        let slot = &holder.writer.slot;
        let asked = async {
            let client = sql::connect_sql(&self.params).await?;
            sql::slot_state(&client, slot).await
        };
        let in_use = match asked.await {
            Ok(state) => state.is_some_and(|slot| slot.active),
            Err(error) => {
                return Err(error).context(self.refused(holder, Refusal::Unknown));
            }
        };
        let since = {
            let mut unused = self.unused.lock().unwrap_or_else(PoisonError::into_inner);
            if in_use || unused.as_ref().is_none_or(|unused| unused.lease != holder) {
                *unused = (!in_use).then(|| Unused { lease: holder.clone(), since: Instant::now() });
            }
            unused.as_ref().map(|unused| unused.since)
        };
        match since {
            None => Err(self.refused(holder, Refusal::InUse).into()),
            Some(since) if since.elapsed() < UNUSED_FOR => Err(self.refused(holder, Refusal::NotLongEnough).into()),
            Some(_) => {
                tracing::warn!(timeline = holder.name.timeline.get(), before = %holder.writer, "following another writer, whose slot is not in use any more");
                Ok(())
            }
        }
    }
}

impl Writing {
    fn under(lease: Arc<Lease>) -> Self {
        Self { epoch: lease.name.epoch, lease: Some(lease) }
    }
}
