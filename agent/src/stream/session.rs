//! One connection's worth of streaming: from the first byte asked for to the end of the timeline, the connection or the agent.
//!
//! It receives, writes to the spool, hands over to [`Uploads`] and reports. It does not decide where to begin (see
//! [`super::Streamer`]) and does not connect.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use walkeep_core::layout::PartName;
use walkeep_core::resume::Position;
use walkeep_core::{Lsn, TimelineId, page};

use super::alone::Notes;
use super::position::{Known, Start};
use super::uploads::Uploads;
use crate::config::Acknowledge;
use crate::metrics::Metrics;
use crate::postgres::ConnectionParams;
use crate::postgres::replication::{Event, Options, ReplicationConnection};
use crate::progress::{Phase, Progress};
use crate::repository::{self, ClusterIdentity};
use crate::spool::{SegmentWriter, Spool};

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
/// The most one part holds.
pub(super) const PART_LIMIT: u64 = 16 << 20;
/// The writer epoch in the names of parts. Leases with rising epochs come with parts that are stored every second.
pub(super) const EPOCH: u32 = 1;

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

/// What a session is told.
pub struct Session<'a> {
    /// The connection, on which the stream was started.
    pub connection: &'a mut ReplicationConnection,
    /// Where the stream begins, and what is stored there.
    pub start: Start,
    /// What flush means.
    pub acknowledge: Acknowledge,
    /// Files.
    pub spool: &'a Spool,
    /// The most they may be.
    pub spool_limit: u64,
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
struct Receiving<'a> {
    session: Session<'a>,
    /// The next byte expected.
    at: Lsn,
    /// The end of what is fsynced.
    spooled: Lsn,
    /// The end of what is durable in the repository.
    durable: Lsn,
    segment: Option<Segment>,
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

/// The segment being received.
struct Segment {
    writer: SegmentWriter,
    /// What is known of it already; received bytes must be equal.
    stored: Bytes,
    /// Where that lies.
    known: Known,
    /// How far it was handed over in parts or is stored in them.
    handed_over: u64,
}

impl<'a> Session<'a> {
    /// Streams until something ends it. What was received and not yet stored stays in the spool.
    pub async fn run(self, stop: &CancellationToken) -> Result<Ended> {
        let begin = self.start.at;
        self.progress.begin(begin.timeline, begin.lsn, self.start.durable);
        self.notes.received(self.start.frontier, self.start.noted.unwrap_or(Some(self.start.durable)))?;
        let durable = self.start.durable;
        let mut receiving = Receiving {
            session: self,
            at: begin.lsn,
            spooled: begin.lsn,
            durable,
            segment: None,
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

impl Receiving<'_> {
    async fn receive(&mut self, stop: &CancellationToken) -> Result<Ended> {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let answer_at = self.answer_at;
            tokio::select! {
                biased;
                () = stop.cancelled() => return self.stop().await,
                acknowledged = self.session.uploads.next() => self.acknowledged(acknowledged).await?,
                () = wait_until(answer_at), if answer_at.is_some() => self.send_status().await?,
                _ = tick.tick() => self.tick().await?,
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
        let size = self.session.identity.segment_size;
        let timeline = self.session.start.at.timeline;
        let segment = match &mut self.segment {
            Some(segment) => segment,
            none => {
                let name = size.segment_of(self.at).name(timeline, size);
                ensure!(size.offset_of(self.at) == 0, "the stream begins in the middle of {name}");
                let first = self.at == self.session.start.at.lsn;
                let stored = std::mem::take(&mut self.session.start.stored);
                let known = self.session.start.known;
                let (writer, handed_over) = match known {
                    Known::InSpool if first => (self.session.spool.receive_again(name)?, 0),
                    _ => (self.session.spool.create(name)?, stored.len() as u64),
                };
                none.insert(Segment { writer, stored, known: if first { known } else { Known::InParts }, handed_over })
            }
        };
        let from = segment.writer.written() as usize;
        let stored = segment.stored.get(from..).unwrap_or_default();
        let overlap = stored.len().min(bytes.len());
        if bytes[..overlap] != stored[..overlap] {
            let conflict = repository::Error::Conflict {
                name: format!("{} from byte {from}", segment.writer.segment()),
                stored: "what was stored before".into(),
                offered: "what the server sends now".into(),
            };
            self.session.metrics.error(conflict.kind());
            return Err(conflict.into());
        }
        segment.writer.append(bytes)?;
        self.at = self.at.saturating_add(bytes.len() as u64);
        if !segment.stored.is_empty() && segment.writer.written() >= segment.stored.len() as u64 {
            // Everything known before is confirmed to be what the server has; in the repository, it is durable without storing it again.
            if segment.known.in_repository() {
                let start = size.align_down(Lsn::new(self.at.get() - 1));
                let end = start.saturating_add(segment.stored.len() as u64);
                self.durable = self.durable.max(end);
                self.session.progress.durable(end);
            }
            segment.stored = Bytes::new();
        }
        if segment.writer.is_whole() {
            self.seal()?;
        }
        Ok(())
    }

    fn seal(&mut self) -> Result<()> {
        let Some(segment) = self.segment.take() else { return Ok(()) };
        let identity = self.session.identity;
        let name = segment.writer.segment();
        let first_page = segment.writer.read(0, FIRST_PAGE)?;
        page::check_partial_segment(name, identity.segment_size, identity.system_identifier, None, &first_page)
            .with_context(|| format!("refuse {name} as streamed"))?;
        if segment.known.is_whole() {
            tracing::info!(segment = %name, "the server has the same as was received before");
            self.spooled = self.at;
            self.session.progress.spooled(self.at);
            return self.session.spool.remove_unfinished(name);
        }
        let name = segment.writer.seal()?;
        self.spooled = self.at;
        self.session.progress.spooled(self.at);
        let end = Position { timeline: name.timeline(), lsn: self.at };
        self.session.notes.received(end, self.session.start.noted.unwrap_or(Some(self.durable)))?;
        self.session.uploads.segment(name, end);
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
        if let Some(segment) = &mut self.segment {
            tokio::task::block_in_place(|| segment.writer.sync())?;
            self.spooled = self.at;
            self.session.progress.spooled(self.at);
        }
        Ok(())
    }

    /// The server wants to know how far we are, above all when it shuts down: it waits until everything is flushed. So the tail is stored.
    async fn asked_for_reply(&mut self, server_end: Lsn) -> Result<()> {
        self.hand_over_tail()?;
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
        let size = self.session.identity.segment_size;
        let Some(segment) = &mut self.segment else { return Ok(()) };
        let name = segment.writer.segment();
        if segment.handed_over == 0 && segment.writer.written() >= FIRST_PAGE {
            let first_page = segment.writer.read(0, FIRST_PAGE)?;
            let identity = self.session.identity;
            page::check_partial_segment(name, identity.segment_size, identity.system_identifier, None, &first_page)
                .with_context(|| format!("refuse {name} as streamed"))?;
        }
        while segment.handed_over < segment.writer.written() {
            let to = segment.writer.written().min(segment.handed_over + PART_LIMIT);
            let content = Bytes::from(tokio::task::block_in_place(|| segment.writer.read(segment.handed_over, to))?);
            let part = PartName { segment: name, from: segment.handed_over as u32, to: to as u32, epoch: EPOCH };
            let start = size.align_down(Lsn::new(self.at.get() - 1));
            let end = Position { timeline: name.timeline(), lsn: start.saturating_add(to) };
            tracing::debug!(segment = %name, from = part.from, to = part.to, "storing the tail as a part");
            self.session.uploads.part(part, content, end);
            segment.handed_over = to;
        }
        Ok(())
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

/// The first page of a segment holds its long header.
const FIRST_PAGE: u64 = 8192;

async fn wait_until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment.into()).await,
        None => std::future::pending().await,
    }
}
