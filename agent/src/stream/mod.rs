//! The WAL stream: a physical replication client that brings every byte into the repository.
//!
//! [`Streamer`] connects, decides where to begin (the decision itself is `walkeep_core::resume`), follows the server from timeline to
//! timeline, and begins again with backoff when anything fails. One connection's work is [`session`]; storing is [`uploads`]. It never
//! skips anything silently: WAL that the server no longer has is recorded as a gap before the stream goes on behind it, and so is a place behind which
//! the server's WAL is another history's ([`seam`]).

mod alike;
pub mod alone;
mod behind;
mod ends;
mod gap;
pub mod guard;
mod history;
mod lease;
mod position;
#[cfg(test)]
mod promise;
mod promotion;
mod reaper;
mod refill;
mod seam;
mod session;
mod tail;
mod uploads;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use tokio_util::sync::CancellationToken;
use walkeep_core::audit::Kind;
use walkeep_core::decoder::valid_end;
use walkeep_core::lease::Writer;
use walkeep_core::resume::Position;
use walkeep_core::{Lsn, SegmentName, TimelineHistory, page};

use crate::audit::{Deed, Recorder};
use crate::config::{ByteSize, ClusterConfig};
use crate::index::Queue;
use crate::metrics::Metrics;
use crate::postgres::ConnectionParams;
use crate::postgres::replication::{Identity, Options, ReplicationConnection, ReplicationError, Started};
use crate::progress::{Phase, Progress};
use crate::recent::Recent;
use crate::repository::wal::same_bytes;
use crate::repository::{self, ClusterRepository};
use crate::retry::Backoff;
use crate::spool::Spool;
use crate::writer;
use alone::Notes;
use lease::{Lease, Unused};
use position::Start;
use reaper::Reaper;
use session::{Ended, Session};
use uploads::{Destination, Replaced, Uploads};

/// Waits between connections.
const RECONNECT: Backoff = Backoff { first: Duration::from_millis(500), most: Duration::from_secs(15), deadline: None };
/// A connection that lasted this long starts the backoff anew.
const STABLE: Duration = Duration::from_secs(30);

/// The stream of one cluster.
#[derive(Debug)]
pub struct Streamer {
    cluster: ClusterConfig,
    params: ConnectionParams,
    repository: Arc<ClusterRepository>,
    spool: Spool,
    recent: Arc<Recent>,
    metrics: Arc<Metrics>,
    progress: Arc<Progress>,
    /// The server had invalidated the slot: the cause of a gap that shows soon after.
    slot_was_lost: AtomicBool,
    /// We had given the slot up ourselves, to protect the server: as well.
    slot_was_given_up: AtomicBool,
    /// The note in the spool of how far the stream is.
    notes: Notes,
    /// At this position the server could not be compared with what is stored before it.
    incomparable: Mutex<Option<Position>>,
    /// Whether parts that an earlier agent left were looked for.
    swept: AtomicBool,
    /// Who writes.
    writer: Writer,
    /// The lease of the live timeline.
    lease: Mutex<Option<Arc<Lease>>>,
    /// The slot of another writer's lease was seen unused.
    unused: Mutex<Option<Unused>>,
    /// Where stored segments go to be indexed.
    index: Queue,
    /// Where is told what the audit trail is to have.
    recorder: Recorder,
}

impl Streamer {
    /// Prepares the stream; opens the spool, connects to nothing.
    pub fn new(
        mut cluster: ClusterConfig,
        params: ConnectionParams,
        repository: Arc<ClusterRepository>,
        recent: Arc<Recent>,
        metrics: Arc<Metrics>,
        progress: Arc<Progress>,
        index: Queue,
    ) -> Result<Self> {
        let segment_size = repository.identity().segment_size;
        let spool = Spool::open(&cluster.spool, segment_size)?;
        // One segment being received and one being stored: with less room the stream could never go on.
        let least = ByteSize(2 * segment_size.bytes());
        if cluster.spool_limit < least {
            tracing::warn!(limit = cluster.spool_limit.0, using = least.0, "spool_limit is less than two WAL segments");
            cluster.spool_limit = least;
        }
        let notes = Notes::new(&cluster.spool, cluster.acknowledge, &repository)?;
        let writer = writer::this_process(&cluster.spool, &params, &cluster.slot)?;
        guard::note_identity(&cluster, repository.identity())?;
        Ok(Self {
            notes,
            writer,
            index,
            recorder: Recorder::nobody(),
            cluster,
            params,
            repository,
            spool,
            recent,
            metrics,
            progress,
            slot_was_lost: AtomicBool::new(false),
            slot_was_given_up: AtomicBool::new(false),
            incomparable: Mutex::new(None),
            swept: AtomicBool::new(false),
            lease: Mutex::new(None),
            unused: Mutex::new(None),
        })
    }

    /// The same, telling what it did.
    pub fn recording(self, recorder: Recorder) -> Self {
        Self { recorder, ..self }
    }

    /// Streams until `stop`. Every failure is told in the log and the progress note, and tried again.
    pub async fn run(self, stop: CancellationToken) {
        let reaper = Reaper::start(self.repository.clone(), stop.clone());
        let mut failures = 0;
        while !stop.is_cancelled() {
            let began = Instant::now();
            let Err(error) = self.stream_until_it_ends(&reaper, &stop).await else { break };
            failures = if began.elapsed() > STABLE { 1 } else { failures + 1 };
            let wait = RECONNECT.wait(failures);
            let text = format!("{error:#}");
            if stop.is_cancelled() {
                tracing::info!(error = text, "the stream ended, and the agent stops");
                break;
            }
            if self.waits_for_promotion(&error) {
                self.stand_by(text);
                failures = 0;
                tokio::select! {
                    () = tokio::time::sleep(promotion::LOOK) => {}
                    () = stop.cancelled() => {}
                }
                continue;
            }
            tracing::error!(error = text, wait_ms = wait.as_millis() as u64, hint = hint(&error), "the stream ended; beginning again");
            if let Some(reason) = error.chain().find_map(|cause| cause.downcast_ref::<repository::Error>()?.refusal()) {
                self.recorder.refused(reason, Deed::refused(Kind::STREAM).saying(&text));
            }
            self.progress.set_phase(Phase::Connecting);
            self.progress.set_problem(Some(text));
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = stop.cancelled() => {}
            }
        }
        self.progress.set_phase(Phase::Stopped);
    }

    /// One life of the uploads: connections follow each other over ends of timelines, until a failure or the stop.
    async fn stream_until_it_ends(&self, reaper: &Reaper, stop: &CancellationToken) -> Result<()> {
        // Where to begin is decided by what the repository says; what was stored before must not speak against that.
        self.recent.forget();
        let to = Destination {
            repository: self.repository.clone(),
            spool: self.spool.clone(),
            recent: self.recent.clone(),
            metrics: self.metrics.clone(),
            reaper: reaper.clone(),
            index: self.index.clone(),
        };
        let mut uploads = Uploads::new(to, self.cluster.upload_parallelism, CancellationToken::new());
        let ended = self.stream_with(&mut uploads, stop).await;
        // What they have not stored is in the spool and handed over again, once none of them is at work on it any more.
        uploads.end().await;
        ended
    }

    async fn stream_with(&self, uploads: &mut Uploads, stop: &CancellationToken) -> Result<()> {
        let leftovers = self.spool.leftovers()?;
        let mut alone = self.alone(&leftovers)?;
        self.hand_over_leftovers(leftovers.whole, uploads).await?;
        let settled = self.unless_alone(alone.is_some(), self.settle_spool(uploads, stop)).await?;
        if settled == Some(false) {
            return Ok(());
        }
        let mut reached = settled.is_some();
        let Some(mut connection) = self.connect_while_storing(uploads, stop).await? else { return Ok(()) };
        loop {
            let identity = connection.identify_system().await?;
            let mut decided = None;
            if reached {
                decided = self.unless_alone(alone.is_some(), self.decide(&mut connection, &identity, stop)).await?;
                if decided.is_none() {
                    // A question to the server may have been cut off.
                    connection = self.connect().await?;
                }
            }
            let (history, start) = match decided {
                Some((history, start)) => (Some(history), start),
                None => match self.start_alone(&mut connection, &identity, alone.take()).await? {
                    Some(start) => (None, start),
                    None => {
                        tracing::warn!("this server is not where the spool's stream stood: waiting for the repository");
                        if !self.settle_spool(uploads, stop).await? {
                            return Ok(());
                        }
                        reached = true;
                        connection = self.connect().await?;
                        continue;
                    }
                },
            };
            (alone, reached) = (None, true);
            if let Some(history) = &history {
                self.sweep(&uploads.reaper(), &start, history).await;
            }
            if history.is_some() && self.is_behind(&mut connection, &identity, start.frontier.lsn).await? {
                if !self.wait_for_standby(&mut connection, &identity, start.frontier.lsn, stop).await? {
                    return Ok(());
                }
                continue;
            }
            if let Some(history) = &history {
                self.refill(history, stop).await;
                if !self.prove_seam(&start, history, stop).await? {
                    return Ok(());
                }
            }
            let (begin, frontier, only_compares_first) = (start.at, start.frontier, start.only_compares_first());
            let started = match connection.start_physical(Some(&self.cluster.slot), begin.lsn, begin.timeline).await {
                Ok(Started::EndOfTimeline { next, switch }) => Ok(Ended::Timeline { next, switch }),
                Ok(Started::Streaming) => {
                    tracing::info!(
                        timeline = begin.timeline.get(), from = %begin.lsn, server_at = %identity.flush, stored = start.known_bytes(), "streaming"
                    );
                    let session = Session {
                        connection: &mut connection,
                        start,
                        acknowledge: self.cluster.acknowledge,
                        spool: &self.spool,
                        spool_limit: self.cluster.spool_limit.0,
                        upload_interval: self.cluster.upload_interval,
                        upload_parallelism: self.cluster.upload_parallelism,
                        identity: self.repository.identity(),
                        uploads,
                        progress: &self.progress,
                        notes: &self.notes,
                        params: &self.params,
                        metrics: &self.metrics,
                    };
                    session.run(stop).await
                }
                Err(error @ ReplicationError::SlotLost(_)) => {
                    self.drop_if_lost().await.with_context(|| format!("after: {error}"))?;
                    Err(error.into())
                }
                Err(error) => Err(error.into()),
            };
            let ended = match started {
                Ok(ended) => ended,
                Err(error) if only_compares_first && uploads.is_empty() && self.is_removed_at(begin.lsn, &error) => {
                    self.cannot_compare(frontier).await?;
                    connection = self.connect().await?;
                    continue;
                }
                Err(error) => {
                    let removed = uploads.is_empty() && self.is_removed_at(frontier.lsn, &error);
                    // Without the repository nothing is decided. And what came before is stored first: the next attempt then stands where the WAL ends,
                    // sees what a later timeline has of it, and the slot has followed.
                    let Some(history) = history.as_ref().filter(|_| removed) else { return Err(error) };
                    if let Some(ends) = self.ends_within_segment(frontier, history) {
                        match self.store_ends(ends).await {
                            Ok(()) => {
                                connection = self.connect().await?;
                                continue;
                            }
                            // No later timeline has it either.
                            Err(other) if is_removed(&other) => {}
                            Err(other) => return Err(other),
                        }
                    }
                    return Err(self.explain(error, frontier, history).await);
                }
            };
            match ended {
                Ended::Stopped => return Ok(()),
                Ended::Timeline { next, switch } => {
                    tracing::info!(timeline = begin.timeline.get(), next = next.get(), %switch, "the timeline ended; following to the next");
                    if !self.settle_uploads(uploads, stop).await? {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Brings parts to removal that an earlier agent did not live to remove, on this timeline and, where they ended, on those before. Once in
    /// the life of an agent.
    async fn sweep(&self, reaper: &Reaper, start: &Start, history: &TimelineHistory) {
        if self.swept.swap(true, Ordering::Relaxed) {
            return;
        }
        let ends = history.ancestors().iter().map(|ancestor| Position { timeline: ancestor.timeline, lsn: ancestor.switch });
        for Position { timeline, lsn } in ends.filter(|end| end.timeline < start.frontier.timeline).chain([start.frontier]) {
            match self.repository.whole_with_parts(timeline, lsn).await {
                Ok(segments) => segments.into_iter().for_each(|segment| reaper.leftovers(segment)),
                Err(error) => tracing::debug!(%error, "cannot look for parts that are not needed any more"),
            }
        }
    }

    /// Waits until everything in the spool is stored, unfinished segments too; false if the agent stops before.
    async fn settle_spool(&self, uploads: &mut Uploads, stop: &CancellationToken) -> Result<bool> {
        // Before anything is reported as durable: what an earlier run received comes before it.
        if !self.settle_uploads(uploads, stop).await? {
            return Ok(false);
        }
        // Last, so that nothing behind a conflict is stored.
        for segment in self.spool.leftovers()?.unfinished {
            self.store_unfinished(segment).await?;
        }
        Ok(true)
    }

    /// Where to begin, by what the repository and the server have.
    async fn decide(
        &self,
        connection: &mut ReplicationConnection,
        identity: &Identity,
        stop: &CancellationToken,
    ) -> Result<(TimelineHistory, Start)> {
        self.wait_until_alike(stop).await;
        let history = self.store_histories(connection, identity.timeline).await?;
        let start = self.position(connection, identity, &history).await?;
        Ok((history, start))
    }

    /// Connects and makes sure that it is the same cluster.
    async fn connect(&self) -> Result<ReplicationConnection> {
        if !self.progress.stands_by() {
            self.progress.set_phase(Phase::Connecting);
        }
        let options = Options { application_name: Some(self.cluster.application_name.clone()), wal_sender_timeout: None };
        let mut connection = ReplicationConnection::connect(&self.params, &options).await.context("connect for replication")?;
        let identity = connection.identify_system().await?;
        let expected = self.repository.identity();
        if identity.system != expected.system_identifier {
            bail!(
                "the server has system identifier {}, the repository keeps {} under the name {}: another cluster answers there, or it was initialised \
                 anew or upgraded. Nothing is stored; check `connection`, or run `walkeep init --new-identity` if the name shall mean this server now",
                identity.system,
                expected.system_identifier,
                self.cluster.name
            );
        }
        let size = connection.segment_size().await?;
        if size != expected.segment_size {
            bail!("the server's WAL segments have {} bytes, those in the repository {}", size.bytes(), expected.segment_size.bytes());
        }
        Ok(connection)
    }

    /// Hands over the whole segments that an earlier run left in the spool.
    async fn hand_over_leftovers(&self, whole: Vec<SegmentName>, uploads: &mut Uploads) -> Result<()> {
        let size = self.repository.identity().segment_size;
        for segment in whole {
            let Some(number) = segment.number(size) else { continue };
            let end = Position { timeline: segment.timeline(), lsn: number.end(size) };
            let spool = self.spool.clone();
            let identity = self.repository.identity().clone();
            let checked = tokio::task::spawn_blocking(move || {
                let bytes = spool.read(segment)?;
                page::check_segment(segment, identity.segment_size, identity.system_identifier, None, &bytes).map_err(anyhow::Error::new)
            });
            if let Err(reason) = checked.await.context("look at the spool")? {
                // It may be the only copy of what was confirmed: what cannot be read is tried again, not put away nor passed over.
                if reason.root_cause().is::<std::io::Error>() {
                    return Err(reason);
                }
                self.spool.set_aside(&self.spool.path(segment), &reason)?;
                continue;
            }
            tracing::info!(%segment, "in the spool since an earlier run; storing it");
            // Whoever looks for what an earlier agent left finds its parts.
            uploads.segment(segment, end, Replaced::Parts(Vec::new()), None);
        }
        Ok(())
    }

    /// Bytes that were confirmed out of the spool, or that a dead server can no longer give, are stored as a part before anything else is
    /// written there: as far as they are whole WAL records.
    async fn store_unfinished(&self, segment: SegmentName) -> Result<()> {
        let identity = self.repository.identity();
        let Some(number) = segment.number(identity.segment_size) else { return Ok(()) };
        let bytes = self.spool.read_unfinished(segment)?;
        let checked = page::check_partial_segment(segment, identity.segment_size, identity.system_identifier, None, &bytes);
        if let Err(reason) = checked {
            // Hardly begun, or never fsynced before a power loss: the server still has it. WAL of another cluster is somebody's, though.
            return match bytes.iter().any(|byte| *byte != 0) {
                true => self.spool.set_aside(&self.spool.writing_path(segment), &reason.into()),
                false => self.spool.remove_unfinished(segment),
            };
        }
        let end =
            valid_end(number.start(identity.segment_size), identity.segment_size, &bytes).bytes_since(number.start(identity.segment_size));
        const UNPROVEN: &str = "what an earlier run received with what is stored of it";
        let whole = self.repository.get_wal(walkeep_core::WalFileName::Segment(segment)).await;
        let stored = match self.repository.if_readable(whole, UNPROVEN)? {
            Some(Some(whole)) => whole.content,
            Some(None) => match self.repository.if_readable(self.repository.get_tail(segment).await, UNPROVEN)? {
                Some(tail) => tail,
                None => {
                    self.repository.compare_with_parts(segment, &bytes[..end as usize]).await?;
                    Bytes::new()
                }
            },
            // It is there to its last byte.
            None => return self.spool.remove_unfinished(segment),
        };
        // Another writer may have gone on with it, on a copy of the server: its bytes and these are not one history.
        same_bytes(segment, 0, &stored, &bytes[..end as usize]).inspect_err(|error| self.metrics.refused(error))?;
        let from = stored.len();
        if end > from as u64 {
            let epoch = self.epoch_of_leftovers(segment.timeline()).await?;
            let part = walkeep_core::layout::PartName { segment, from: from as u32, to: end as u32, epoch };
            let content = Bytes::copy_from_slice(&bytes[from..end as usize]);
            tracing::info!(%segment, from, to = end, "storing what an earlier run received of it");
            self.repository.put_part(part, content).await?;
        }
        self.spool.remove_unfinished(segment)
    }

    /// Waits until everything handed over is stored; false if the agent stops before.
    async fn settle_uploads(&self, uploads: &mut Uploads, stop: &CancellationToken) -> Result<bool> {
        while !uploads.is_empty() {
            tokio::select! {
                // Not noted as durable: the next stream says where it begins, on its own timeline.
                stored = uploads.next() => drop(stored.context("store WAL")?),
                () = stop.cancelled() => return Ok(false),
            }
        }
        Ok(true)
    }

    /// Whether the server no longer has the WAL at `lsn`, all before being received.
    fn is_removed_at(&self, lsn: Lsn, error: &anyhow::Error) -> bool {
        is_removed(error) && self.progress.snapshot().received == lsn
    }

    /// WAL that the server no longer has becomes a recorded gap.
    async fn explain(&self, error: anyhow::Error, begin: Position, history: &TimelineHistory) -> anyhow::Error {
        match self.record_gap(begin, history).await {
            Ok(()) => error,
            Err(failed) => failed.context(format!("record a gap after: {error:#}")),
        }
    }
}

/// Whether the server no longer has the WAL that was asked for.
fn is_removed(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref::<ReplicationError>(), Some(ReplicationError::WalRemoved(_)))
}

/// What the operator can do, for the log.
fn hint(error: &anyhow::Error) -> &'static str {
    if let Some(error) = error.downcast_ref::<repository::Error>() {
        return error.hint();
    }
    let of_server = crate::postgres::hint(error);
    of_server.unwrap_or("See the message; `walkeep check` tests each step.")
}
