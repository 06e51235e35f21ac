//! One connection's worth of streaming: from the first byte asked for to the end of the timeline, the connection or the agent.
//!
//! It receives, writes to the spool, hands over to [`Uploads`] and reports. It does not decide where to begin (see
//! [`super::Streamer`]) and does not connect.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use walkeep_core::resume::Position;
use walkeep_core::{Lsn, TimelineId};

use super::alone::Notes;
use super::position::Start;
use super::tail::{Cadence, Handed, Tail};
use super::uploads::Uploads;
use crate::config::Acknowledge;
use crate::metrics::Metrics;
use crate::postgres::ConnectionParams;
use crate::postgres::replication::{Event, Options, ReplicationConnection, ReplicationError};
use crate::progress::{Phase, Progress, SlotHold};
use crate::repository::{self, ClusterIdentity};
use crate::spool::Spool;

/// Received bytes are fsynced, and the server told how far we are, at least this often. Well below a third of the smallest sensible
/// `wal_sender_timeout`.
const TICK: Duration = Duration::from_secs(1);
/// An answer that waits for a part to be stored is given after this long all the same.
const ANSWER_DELAY: Duration = Duration::from_millis(100);
/// A server that asks for a reply again as soon as it has one is shutting down and waits for us. If the tail cannot be stored within this
/// time, we let go: the slot keeps the WAL, the spool its bytes, and a shutdown does not hang on us. All of it has to be over within 5 s.
const SHUTDOWN_PATIENCE: Duration = Duration::from_secs(3);
/// Requests closer than this make a row. An idle server asks once in half a `wal_sender_timeout`.
const ASKING_AGAIN: Duration = Duration::from_secs(1);
/// A server answers within this time, or the connection is dead: a host that vanished says nothing.
const SERVER_SILENT: Duration = Duration::from_secs(45);
/// Time to store the tail when the agent stops; SIGTERM has to be over within 5 s.
const DRAIN: Duration = Duration::from_secs(4);
/// Parts under way while commits wait for them. With two, the second gathers what comes during the first's request; more would be more requests for
/// the same bytes.
const PARTS_AT_ONCE: usize = 2;

/// Why a session ended well.
#[derive(Debug)]
pub enum Ended {
    /// The timeline ended; the next one begins at `switch`.
    Timeline {
        /// The next timeline.
        next: TimelineId,
        /// The first position that is not on the old one.
        switch: Lsn,
    },
    /// The agent stops.
    Stopped,
}

/// The server's end of a stream that was started; each as [`ReplicationConnection`] has it.
pub trait Walsender: Send {
    /// The next event. Safe to drop and call again.
    fn next_event(&mut self) -> impl Future<Output = Result<Event, ReplicationError>> + Send;
    /// Says how far we are.
    fn send_status(
        &mut self,
        write: Lsn,
        flush: Lsn,
        apply: Lsn,
        reply_now: bool,
    ) -> impl Future<Output = Result<(), ReplicationError>> + Send;
    /// Ends the stream from our side.
    fn stop(&mut self) -> impl Future<Output = Result<(), ReplicationError>> + Send;
}

impl Walsender for ReplicationConnection {
    async fn next_event(&mut self) -> Result<Event, ReplicationError> {
        self.next_event().await
    }

    async fn send_status(&mut self, write: Lsn, flush: Lsn, apply: Lsn, reply_now: bool) -> Result<(), ReplicationError> {
        self.send_status(write, flush, apply, reply_now).await
    }

    async fn stop(&mut self) -> Result<(), ReplicationError> {
        self.stop().await
    }
}

/// What a session is told.
pub struct Session<'a, S> {
    /// The connection, on which the stream was started.
    pub connection: &'a mut S,
    /// Where the stream begins, and what is stored there.
    pub start: Start,
    /// What flush means.
    pub acknowledge: Acknowledge,
    /// Files.
    pub spool: &'a Spool,
    /// The most they may be.
    pub spool_limit: u64,
    /// At the latest so long after they came, received bytes are stored.
    pub upload_interval: Duration,
    /// Uploads at a time.
    pub upload_parallelism: usize,
    /// Which cluster.
    pub identity: &'a ClusterIdentity,
    /// Where finished things go.
    pub uploads: &'a mut Uploads,
    /// Where watermarks are noted.
    pub progress: &'a Progress,
    /// Where the note is kept of how far the stream is.
    pub notes: &'a Notes,
    /// The way to the server.
    pub params: &'a ConnectionParams,
    /// Where a conflict is counted.
    pub metrics: &'a Metrics,
}

/// The session's own state.
struct Receiving<'a, S> {
    session: Session<'a, S>,
    /// The next byte expected.
    at: Lsn,
    /// The end of what is fsynced.
    spooled: Lsn,
    /// The end of what is durable in the repository.
    durable: Lsn,
    tail: Option<Tail>,
    /// When the first and the last of a row of requests for a reply came that could not be answered with everything being durable.
    asked: Option<(Instant, Instant)>,
    /// A look, while the spool is full, whether the server is shutting down.
    looking: Option<AbortOnDropHandle<bool>>,
    /// An answer is owed at this moment.
    answer_at: Option<Instant>,
    spool_full: bool,
    /// When the server was last heard.
    heard: Instant,
}

impl<S: Walsender> Session<'_, S> {
    /// Streams until something ends it. What was received and not yet stored stays in the spool.
    pub async fn run(self, stop: &CancellationToken) -> Result<Ended> {
        let begin = self.start.at;
        self.progress.begin(begin.timeline, begin.lsn, self.start.durable);
        self.notes.received(self.start.frontier, self.start.noted.unwrap_or(Some(self.start.durable)), &self.start.writing)?;
        let durable = self.start.durable;
        let mut receiving = Receiving {
            session: self,
            at: begin.lsn,
            spooled: begin.lsn,
            durable,
            tail: None,
            asked: None,
            looking: None,
            answer_at: None,
            spool_full: false,
            heard: Instant::now(),
        };
        receiving.send_status().await?;
        receiving.receive(stop).await
    }
}

impl<S: Walsender> Receiving<'_, S> {
    async fn receive(&mut self, stop: &CancellationToken) -> Result<Ended> {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let (answer_at, part_due) = (self.answer_at, self.part_due());
            tokio::select! {
                biased;
                () = stop.cancelled() => return self.stop().await,
                acknowledged = self.session.uploads.next() => self.acknowledged(acknowledged).await?,
                () = wait_until(answer_at), if answer_at.is_some() => self.send_status().await?,
                _ = tick.tick() => self.tick().await?,
                () = wait_until(part_due), if part_due.is_some() => { self.hand_over_part()?; }
                event = self.session.connection.next_event(), if !self.spool_full => {
                    if let Some(ended) = self.handle(event.context("receive WAL")?).await? {
                        return Ok(ended);
                    }
                }
                // Last in order: the socket has nothing more at this moment. One fsync serves all that came, and commits wait for it.
                () = std::future::ready(()), if self.commits_wait_for_fsync() => {
                    self.sync()?;
                    self.send_status().await?;
                }
            }
        }
    }

    async fn handle(&mut self, event: Event) -> Result<Option<Ended>> {
        self.heard = Instant::now();
        match event {
            Event::Wal { start, server_end, data, .. } => {
                self.session.progress.heard(server_end.max(start.saturating_add(data.len() as u64)));
                ensure!(start == self.at, "the server sent WAL from {start} where {} was expected", self.at);
                self.session.progress.slot_serves();
                self.asked = None;
                self.write(&data)?;
            }
            Event::Keepalive { server_end, reply_requested, .. } => {
                self.session.progress.heard(server_end);
                if reply_requested {
                    self.asked_for_reply(server_end).await?;
                }
            }
            Event::EndOfTimeline { next, switch } => {
                ensure!(
                    self.at == switch,
                    "timeline {} ends at {switch}, but WAL up to {} was received",
                    self.session.start.at.timeline,
                    self.at
                );
                self.hand_over_tail()?;
                return Ok(Some(Ended::Timeline { next, switch }));
            }
            Event::Ended => bail!("the server ended the stream"),
        }
        Ok(None)
    }

    /// Writes received bytes to the spool, segment by segment.
    fn write(&mut self, data: &[u8]) -> Result<()> {
        tokio::task::block_in_place(|| {
            let mut rest = data;
            while !rest.is_empty() {
                let size = self.session.identity.segment_size;
                let room = size.bytes() - size.offset_of(self.at);
                let (now, later) = rest.split_at(rest.len().min(room as usize));
                self.write_within_segment(now)?;
                rest = later;
            }
            self.session.progress.received(self.at);
            Ok(())
        })
    }

    fn write_within_segment(&mut self, bytes: &[u8]) -> Result<()> {
        let Session { identity, spool, start, .. } = &mut self.session;
        let size = identity.segment_size;
        let tail = match &mut self.tail {
            Some(tail) => tail,
            none => {
                let name = size.segment_of(self.at).name(start.at.timeline, size);
                ensure!(size.offset_of(self.at) == 0, "the stream begins in the middle of {name}");
                none.insert(Tail::begin(spool, name, identity, start.known.pop_front(), start.writing.epoch)?)
            }
        };
        let proven = tail.append(bytes).inspect_err(|error| {
            if let Some(error) = error.downcast_ref::<repository::Error>() {
                self.session.metrics.refused(error);
            }
        })?;
        self.at = self.at.saturating_add(bytes.len() as u64);
        if let Some(offset) = proven {
            // Everything known before is confirmed to be what the server has: it is durable without storing it again.
            let end = size.align_down(Lsn::new(self.at.get() - 1)).saturating_add(offset);
            self.durable = self.durable.max(end);
            self.session.progress.durable(end);
        }
        if tail.is_whole() { self.seal() } else { Ok(()) }
    }

    fn seal(&mut self) -> Result<()> {
        let Some(tail) = self.tail.take() else { return Ok(()) };
        let only_compared = tail.is_only_compared();
        let (name, replaced) = tail.seal(self.session.spool, self.session.identity)?;
        self.spooled = self.at;
        self.session.progress.spooled(self.at);
        if only_compared {
            return Ok(());
        }
        let end = Position { timeline: name.timeline(), lsn: self.at };
        self.session.notes.received(end, self.session.start.noted.unwrap_or(Some(self.durable)), &self.session.start.writing)?;
        let lease = self.session.start.writing.lease.clone();
        self.session.uploads.segment(name, end, replaced, lease);
        self.check_spool()
    }

    /// Another segment must fit, or the stream pauses.
    fn check_spool(&mut self) -> Result<()> {
        let bytes = self.session.spool.bytes()?;
        let full = bytes + self.session.identity.segment_size.bytes() > self.session.spool_limit;
        if full != self.spool_full {
            self.spool_full = full;
            self.session.progress.set_phase(if full { Phase::SpoolFull } else { Phase::Streaming });
            if full {
                tracing::warn!(bytes, limit = self.session.spool_limit, "the spool is full: not reading on, the server keeps the WAL");
            } else {
                // What was not read meanwhile is not the server's silence.
                self.heard = Instant::now();
                tracing::info!(bytes, "the spool has room again: reading on");
            }
        }
        Ok(())
    }

    async fn acknowledged(&mut self, result: Result<Position, repository::Error>) -> Result<()> {
        let position = result.context("store WAL")?;
        self.durable = self.durable.max(position.lsn);
        self.session.progress.durable(self.durable);
        if self.spool_full {
            self.check_spool()?;
        }
        self.send_status().await
    }

    async fn tick(&mut self) -> Result<()> {
        self.sync()?;
        if self.session.progress.slot() == SlotHold::GivingUp {
            bail!("letting go of the slot, which is given up to protect the server; what the spool has is stored as soon as that works");
        }
        if self.spool_full {
            self.check_spool()?;
            if self.spool_full {
                // Silent: should the look below fail, wal_sender_timeout ends this. What is stored meanwhile is still reported.
                return self.look_for_shutdown().await;
            }
        } else if self.heard.elapsed() > SERVER_SILENT {
            bail!("the server has not been heard of for {} s: taking the connection for dead", SERVER_SILENT.as_secs());
        }
        self.send_status().await
    }

    /// With a full spool nothing is read, so the server's requests for a reply are not seen. A server that shuts down refuses new connections.
    async fn look_for_shutdown(&mut self) -> Result<()> {
        if self.looking.as_ref().is_some_and(|looking| !looking.is_finished()) {
            return Ok(());
        }
        if let Some(looked) = self.looking.take()
            && looked.await.is_ok_and(|shuts_down| shuts_down)
        {
            bail!(
                "the server is shutting down while the spool is full: letting go, so that it does not wait for us; its slot keeps the WAL"
            );
        }
        let params = self.session.params.clone();
        self.looking = Some(AbortOnDropHandle::new(tokio::spawn(async move {
            match ReplicationConnection::connect(&params, &Options::default()).await {
                Ok(connection) => {
                    connection.close().await;
                    false
                }
                // cannot_connect_now; a server that starts or recovers from a crash has ended our connection before.
                Err(error) => error.server().is_some_and(|error| error.code == "57P03"),
            }
        })));
        Ok(())
    }

    fn sync(&mut self) -> Result<()> {
        if let Some(tail) = &mut self.tail {
            tail.sync()?;
            self.spooled = self.at;
            self.session.progress.spooled(self.at);
        }
        Ok(())
    }

    /// The server wants to know how far we are, above all when it shuts down: it waits until everything is flushed. So the tail is stored.
    async fn asked_for_reply(&mut self, server_end: Lsn) -> Result<()> {
        self.sync()?;
        // A part is in memory until it is stored: in an outage no more than a few wait. A server that shuts down asks again, and gets the next.
        while self.session.uploads.len() < self.session.upload_parallelism && self.hand_over_part()? {}
        if self.flushed() >= server_end {
            self.asked = None;
            return self.send_status().await;
        }
        let now = Instant::now();
        let since = self.asked.filter(|(_, last)| now.duration_since(*last) < ASKING_AGAIN).map_or(now, |(first, _)| first);
        self.asked = Some((since, now));
        if now.duration_since(since) > SHUTDOWN_PATIENCE {
            bail!(
                "the server is shutting down and waits for WAL up to {server_end} to be confirmed, but the repository has only {}: letting go, so \
                 that it does not wait longer; its slot keeps the WAL",
                self.durable
            );
        }
        // A server that shuts down asks again at every answer: a pause keeps that from becoming a busy loop.
        if self.answer_at.is_none() {
            self.answer_at = Some(now + ANSWER_DELAY);
        }
        Ok(())
    }

    /// Hands over what was received of the unfinished segment and is not yet stored, as parts.
    fn hand_over_tail(&mut self) -> Result<()> {
        self.sync()?;
        while self.hand_over_part()? {}
        Ok(())
    }

    /// Hands over the next part; whether there was one.
    fn hand_over_part(&mut self) -> Result<bool> {
        let Some(tail) = &mut self.tail else { return Ok(false) };
        let Some(next) = tail.next_part(self.session.identity)? else { return Ok(false) };
        let start = self.session.identity.segment_size.align_down(Lsn::new(self.at.get() - 1));
        let acknowledged = self.durable.max(start).bytes_since(start);
        for Handed { step, content, instead_of_unread } in [Some(next), tail.roll_up(acknowledged)?].into_iter().flatten() {
            let segment = step.part.segment;
            let end = Position { timeline: segment.timeline(), lsn: start.saturating_add(u64::from(step.part.to)) };
            tracing::debug!(%segment, from = step.part.from, to = step.part.to, instead_of = step.replaces.len(), "storing a part");
            self.session.uploads.part(step, content, end, self.session.start.writing.lease.clone(), instead_of_unread);
        }
        Ok(true)
    }

    /// When the next part is to be handed over. Not while others wait for the store: what is received meanwhile goes into one.
    fn part_due(&self) -> Option<Instant> {
        let at_once = self.session.acknowledge == Acknowledge::Repository && self.session.progress.commits_wait();
        let most = if at_once { PARTS_AT_ONCE } else { self.session.upload_parallelism };
        let cadence = Cadence { interval: self.session.upload_interval, at_once };
        self.tail.as_ref().filter(|_| self.session.uploads.len() < most).and_then(|tail| tail.due(cadence))
    }

    fn commits_wait_for_fsync(&self) -> bool {
        self.session.acknowledge == Acknowledge::Spool && self.spooled < self.at
    }

    /// The position up to which the server may forget.
    fn flushed(&self) -> Lsn {
        let flushed = match self.session.acknowledge {
            Acknowledge::Repository => self.durable,
            Acknowledge::Spool => self.spooled.max(self.durable),
        };
        // Never beyond what this connection has sent: a position of another history means nothing here, and the server would believe it.
        flushed.min(self.at)
    }

    async fn send_status(&mut self) -> Result<()> {
        self.answer_at = None;
        let flushed = self.flushed();
        // Nothing is applied here: with remote_apply a commit would never return, as with pg_receivewal.
        // A server that is silent is asked for a sign of life.
        let ask = self.heard.elapsed() > SERVER_SILENT / 3;
        let sent = self.session.connection.send_status(self.at, flushed, Lsn::ZERO, ask).await;
        sent.context("tell the server how far we are")
    }

    /// Stores the tail, confirms it, and says goodbye.
    async fn stop(&mut self) -> Result<Ended> {
        self.hand_over_tail()?;
        let deadline = tokio::time::Instant::now() + DRAIN;
        while !self.session.uploads.is_empty() {
            match tokio::time::timeout_at(deadline, self.session.uploads.next()).await {
                Ok(result) => self.acknowledged(result).await?,
                Err(_) => {
                    let waiting = self.session.uploads.len();
                    tracing::warn!(
                        waiting,
                        "stopping before everything was stored; what was confirmed is in the spool, the server's slot keeps the rest"
                    );
                    break;
                }
            }
        }
        self.send_status().await?;
        match tokio::time::timeout(Duration::from_millis(500), self.session.connection.stop()).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::debug!(%error, "ending the stream"),
            Err(_) => tracing::debug!("the server did not end the stream in time"),
        }
        tracing::info!(durable = %self.durable, received = %self.at, "stream stopped");
        Ok(Ended::Stopped)
    }
}

async fn wait_until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment.into()).await,
        None => std::future::pending().await,
    }
}
