//! The lease under which the live end of a timeline is written: promised when a stream begins, taken with the first object, looked after with each.
//!
//! An idle agent asks nothing. A writer that was followed learns it before it stores anything, if it has not looked for [`LOOK_AGAIN`]; what it
//! stores within that time bears its own epoch, and is told apart by every reader. Who may write is decided by `walkeep_core::lease`.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::sync::Mutex;
use walkeep_core::layout::{ObjectName, PartName};
use walkeep_core::lease::{LeaseName, LeaseRecord, Refusal, Verdict, Writer, judge};
use walkeep_core::{SegmentName, TimelineId, parts};

use super::Streamer;
use crate::postgres::Host;
use crate::postgres::sql;
use crate::repository::{ClusterRepository, Error};

/// The epoch where no lease was ever taken.
const FIRST: u32 = 1;
/// So long after a look nobody else is taken to have followed.
const LOOK_AGAIN: Duration = Duration::from_secs(20);
/// A holder's slot must be unused for this long. Longer than any pause between its connections.
const UNUSED_FOR: Duration = Duration::from_secs(60);

/// So many leases before parts that are there may have been lost: each that is missing is put.
const EPOCHS_LOST: u32 = 64;

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
    /// `first` is the lowest epoch of which no lease is known.
    Promised { segment: SegmentName, compared: u32, not_before: Instant, first: u32 },
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
        let mut looked = Instant::now();
        match *state {
            State::Promised { segment, compared, not_before, first } => {
                if not_before > looked {
                    tracing::info!(timeline = self.name.timeline.get(), "waiting until the writer before has looked, {LOOK_AGAIN:?}");
                    tokio::time::sleep_until(not_before.into()).await;
                    looked = Instant::now();
                }
                self.take(segment, compared, first).await?;
            }
            State::Held { looked } if looked.elapsed() < LOOK_AGAIN => return Ok(()),
            State::Held { .. } => self.look().await?,
        }
        *state = State::Held { looked };
        self.taken.store(true, Ordering::Relaxed);
        Ok(())
    }

    async fn take(&self, segment: SegmentName, compared: u32, first: u32) -> Result<(), Error> {
        // What came meanwhile was not compared: its writer is at work.
        let stored = self.repository.list_parts(segment).await?;
        if parts::reach(&stored) > compared || free_epoch(self.name.epoch, &stored) != self.name.epoch {
            return Err(Error::Overtaken { segment, compared });
        }
        let lease_of = |epoch| {
            let name = LeaseName { epoch, ..self.name };
            LeaseRecord { name, writer: self.writer.clone(), taken_at: chrono::Utc::now(), by_operator: false }
        };
        // Whoever holds the one before the first looks for that one. One that comes to light is of a writer that was followed.
        for epoch in first..self.name.epoch {
            self.repository.put_lease(&lease_of(epoch)).await?;
        }
        let lease = lease_of(self.name.epoch);
        if !self.repository.put_lease(&lease).await? {
            return self.settle_taken().await;
        }
        tracing::info!(timeline = self.name.timeline.get(), epoch = self.name.epoch, "took the lease of the timeline");
        Ok(())
    }

    /// The name is taken: by this process, whose put's answer was lost, or by somebody else.
    async fn settle_taken(&self) -> Result<(), Error> {
        match self.repository.lease(self.name).await? {
            Some(holder) if holder.writer.life == self.writer.life => Ok(()),
            Some(holder) => Err(self.followed_by(holder)),
            // There a moment ago and gone: whose it is cannot be told, so it is not ours.
            None => Err(Error::corrupt(format!("the lease of {:?}", self.name), "it cannot be created and is not there")),
        }
    }

    /// Fails if somebody has followed.
    async fn look(&self) -> Result<(), Error> {
        let next = LeaseName { epoch: self.name.epoch.saturating_add(1), ..self.name };
        self.repository.lease(next).await?.map_or(Ok(()), |holder| Err(self.followed_by(holder)))
    }

    fn followed_by(&self, holder: LeaseRecord) -> Error {
        let reason = if holder.writer.id == self.writer.id { Refusal::Twin } else { Refusal::Followed };
        Error::Lease { holder: Box::new(holder), me: Box::new(self.writer.clone()), reason }
    }
}

/// The epoch to take, where `next` is the one behind the newest lease: nobody has stored parts in it, or in a later one.
fn free_epoch(next: u32, stored: &[PartName]) -> u32 {
    stored.iter().map(|part| part.epoch.saturating_add(1)).fold(next, u32::max)
}

impl Streamer {
    /// The epoch for the end of a timeline that is over: without a lease.
    pub(super) async fn epoch_of_ended(&self, timeline: TimelineId) -> Result<u32> {
        Ok(self.repository.newest_lease(timeline).await?.map_or(FIRST, |lease| lease.name.epoch))
    }

    /// What a stream stores is stored under the timeline's lease, if this server writes that timeline at this moment and nobody else stores it.
    /// Of `segment`, where it begins, so much is stored as `compared` says.
    pub(super) async fn writing(&self, server: &Host, segment: SegmentName, compared: u32) -> Result<Writing> {
        let timeline = segment.timeline();
        let newest = self.repository.newest_lease(timeline).await?;
        let held = self.lease_of(timeline);
        let me = self.writer_at(server);
        let (epoch, after_a_look) = match judge(newest, &me, held.as_ref().and_then(|lease| lease.held_epoch())) {
            Verdict::Keep => return Ok(Writing::under(held.context("a lease is kept that is not held")?)),
            Verdict::Refused { holder, reason } => return Err(self.refused(holder, reason).into()),
            Verdict::TakeIfUnused { epoch, holder } => {
                self.unused_for_long(holder).await?;
                (epoch, false)
            }
            Verdict::Take { epoch, follows, after_a_look } => {
                if let Some(before) = follows {
                    tracing::warn!(timeline = timeline.get(), epoch, %before, "following another writer, whose slot this agent has");
                }
                (epoch, after_a_look)
            }
        };
        // With several repositories a lease may have been lost with one of them, and parts of its epoch be in another.
        let parts = self.repository.list_parts(segment).await?;
        let free = free_epoch(epoch, &parts);
        if free - epoch > EPOCHS_LOST {
            let stray = parts.iter().max_by_key(|part| part.epoch).map(|part| self.repository.layout().key(&ObjectName::Part(*part)));
            bail!(
                "{} tells of epoch {}, and the newest lease of the timeline is of {}: somebody has put it there, or many leases are lost. Move it away",
                stray.unwrap_or_default(),
                free - 1,
                epoch - 1
            );
        }
        let name = LeaseName { timeline, epoch: free };
        let not_before = Instant::now() + if after_a_look { LOOK_AGAIN } else { Duration::ZERO };
        Ok(Writing::under(self.promise(name, me, State::Promised { segment, compared, not_before, first: epoch })))
    }

    fn writer_at(&self, server: &Host) -> Writer {
        Writer { at: Some(server.server_name(&self.writer.host)), ..self.writer.clone() }
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
    pub(super) fn writing_alone(&self, server: &Host, noted: Option<u32>, segment: SegmentName, compared: u32) -> Writing {
        let timeline = segment.timeline();
        let me = self.writer_at(server);
        let held = self.lease_of(timeline).filter(|lease| lease.held_epoch().is_some());
        let last = noted.max(held.as_ref().and_then(|lease| lease.held_epoch()));
        let held = held.filter(|lease| lease.writer.at == me.at);
        let name = LeaseName { timeline, epoch: last.map_or(FIRST, |epoch| epoch.saturating_add(1)) };
        let promised = State::Promised { segment, compared, not_before: Instant::now(), first: name.epoch };
        Writing::under(held.unwrap_or_else(|| self.promise(name, me, promised)))
    }

    fn lease_of(&self, timeline: TimelineId) -> Option<Arc<Lease>> {
        self.lease.lock().unwrap_or_else(PoisonError::into_inner).clone().filter(|lease| lease.name.timeline == timeline)
    }

    fn promise(&self, name: LeaseName, writer: Writer, promised: State) -> Arc<Lease> {
        let (repository, state) = (self.repository.clone(), Mutex::new(promised));
        let lease = Arc::new(Lease { repository, name, writer, state, taken: AtomicBool::new(false) });
        *self.lease.lock().unwrap_or_else(PoisonError::into_inner) = Some(lease.clone());
        lease
    }

    fn refused(&self, holder: LeaseRecord, reason: Refusal) -> Error {
        let refused = Error::Lease { holder: Box::new(holder), me: Box::new(self.writer.clone()), reason };
        self.metrics.refused(&refused);
        refused
    }

    /// Fails as long as the holder's slot is in use at one of the servers at which it may be, or was not long ago.
    async fn unused_for_long(&self, holder: LeaseRecord) -> Result<()> {
        let in_use = match self.is_at_work(&holder.writer).await {
            Ok(in_use) => in_use,
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

    /// Whether a server at which that writer may be has its slot in use.
    async fn is_at_work(&self, writer: &Writer) -> Result<bool> {
        for server in writer.places() {
            let params =
                self.params.only(server, &self.writer.host).with_context(|| format!("{server} is none of this agent's servers"))?;
            let client = sql::connect_sql(&params).await.with_context(|| format!("ask {server} for the writer's slot"))?;
            if sql::slot_state(&client, &writer.slot).await?.is_some_and(|slot| slot.active) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

impl Writing {
    fn under(lease: Arc<Lease>) -> Self {
        Self { epoch: lease.name.epoch, lease: Some(lease) }
    }
}

#[cfg(test)]
mod tests {
    use walkeep_store::{ErrorKind, Fault, FaultyStore, MemoryStore, Operation, Rule};

    use super::*;
    use crate::repository::tests::{over, segment};

    const NAME: LeaseName = LeaseName { timeline: TimelineId::FIRST, epoch: 1 };

    fn writer(life: &str) -> Writer {
        let (id, host) = ("a".to_owned(), "db1".to_owned());
        Writer { id, life: life.to_owned(), host, pid: 1, servers: vec!["db1:5432".to_owned()], at: None, slot: "walkeep".to_owned() }
    }

    fn lease(repository: &Arc<ClusterRepository>, epoch: u32, life: &str) -> Lease {
        let state = Mutex::new(State::Promised { segment: segment(1), compared: 0, not_before: Instant::now(), first: epoch });
        let name = LeaseName { epoch, ..NAME };
        Lease { repository: repository.clone(), name, writer: writer(life), state, taken: AtomicBool::new(false) }
    }

    #[tokio::test]
    async fn what_cannot_be_taken_is_not_held() {
        let store = Arc::new(FaultyStore::new(Arc::new(MemoryStore::new())));
        let repository = Arc::new(over(store.clone()).await);
        let mine = lease(&repository, 1, "1");
        store.inject(Rule::new(Operation::Put, Fault::Fail(ErrorKind::AlreadyExists)).on("leases/").times(1));
        assert!(matches!(mine.assure().await, Err(Error::Corrupt { .. })), "the store says that it exists, and does not have it");
        assert_eq!(mine.held_epoch(), None);
        mine.assure().await.expect("taken");
        assert_eq!(mine.held_epoch(), Some(1));
        // The same name by another life; and by this one, whose put's answer was lost.
        let refused = lease(&repository, 1, "2").assure().await;
        assert!(matches!(refused, Err(Error::Lease { reason: Refusal::Twin, .. })), "{refused:?}");
        lease(&repository, 1, "1").assure().await.expect("its own");
    }

    /// Of several repositories the one is gone that had the lease of epoch 2, and another has parts of it.
    #[tokio::test(start_paused = true)]
    async fn an_epoch_that_only_parts_tell_of_is_not_taken_again() {
        let repository = Arc::new(over(Arc::new(MemoryStore::new())).await);
        let before = lease(&repository, 1, "1");
        before.assure().await.expect("taken");
        let part = PartName { segment: segment(1), from: 0, to: 10, epoch: 2 };
        repository.put_part(part, bytes::Bytes::from_static(b"0123456789")).await.unwrap();
        let compared = |name: LeaseName, first| {
            let state = State::Promised { segment: segment(1), compared: 10, not_before: Instant::now(), first };
            Lease { repository: repository.clone(), name, writer: writer("3"), state: Mutex::new(state), taken: AtomicBool::new(false) }
        };
        let twice = compared(LeaseName { epoch: 2, ..NAME }, 2).assure().await;
        assert!(matches!(twice, Err(Error::Overtaken { .. })), "{twice:?}");
        let epoch = free_epoch(2, &repository.list_parts(segment(1)).await.unwrap());
        assert_eq!((epoch, free_epoch(4, &[part])), (3, 4));
        compared(LeaseName { epoch, ..NAME }, 2).assure().await.expect("taken");
        assert_eq!(repository.newest_lease(TimelineId::FIRST).await.unwrap().unwrap().name.epoch, 3);
        *before.state.lock().await = State::Held { looked: Instant::now() - LOOK_AGAIN };
        assert!(matches!(before.assure().await, Err(Error::Lease { reason: Refusal::Twin, .. })), "it was followed");
    }

    #[tokio::test(start_paused = true)]
    async fn a_writer_that_was_followed_learns_it_at_its_next_look() {
        let repository = Arc::new(over(Arc::new(MemoryStore::new())).await);
        let mine = lease(&repository, 1, "1");
        mine.assure().await.expect("taken");
        lease(&repository, 2, "2").assure().await.expect("followed");
        *mine.state.lock().await = State::Held { looked: Instant::now() - LOOK_AGAIN };
        assert!(matches!(mine.assure().await, Err(Error::Lease { reason: Refusal::Twin, .. })));
    }
}
