//! `protect = "primary"`: gives the slot up when it holds back too much on the server, which then may remove its WAL.
//!
//! [`walkeep_core::slot::Guard`] decides; this looks every [`PERIOD`] while the stream does not read, and drops. It is a task of its own, from the agent's
//! first moment on: an agent that was restarted in the middle of an outage has no stream, as that waits for the repository, but a server to protect. What follows
//! (storing the spool, making the slot anew, recording what the server has removed) is the stream's usual way of beginning.
//!
//! A note in the spool says of which cluster the slot is, so that none of another server is ever dropped, and whether it was given up.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use walkeep_core::Lsn;
use walkeep_core::audit::{Kind, Outcome};
use walkeep_core::slot::{Guard, Look, Reason, Stream};

use super::position::read_slot;
use crate::audit::{Deed, Recorder};
use crate::config::{ClusterConfig, Protect};
use crate::durable;
use crate::metrics::Metrics;
use crate::postgres::ConnectionParams;
use crate::postgres::replication::{Options, ReplicationConnection, ReplicationError};
use crate::progress::{Phase, Progress, SlotHold};
use crate::repository::ClusterIdentity;
use crate::spool::Spool;

/// Between two looks. Each is a connection to the server, so there are none while the stream reads.
const PERIOD: Duration = Duration::from_secs(2);
/// One look must not take longer.
const DEADLINE: Duration = Duration::from_secs(8);
/// Within this time the stream has let go of the slot, and it can be dropped.
const LETS_GO: Duration = Duration::from_secs(15);
/// The note's name in the spool.
const FILE: &str = "slot.json";
/// The note's format.
const FORMAT: u32 = 1;

/// What the agent knows of its slot, also while the repository is away.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Note {
    format: u32,
    slot: String,
    identity: ClusterIdentity,
    /// It was given up, and the stream has not come back since.
    #[serde(default)]
    pub given_up: Option<GivenUp>,
}

/// How it was when the slot was given up.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct GivenUp {
    /// From here on the slot held WAL back.
    pub restart_lsn: Lsn,
    /// The end of the server's WAL.
    pub server_at: Lsn,
    /// When, by this host's clock; for people.
    pub at: DateTime<Utc>,
}

impl Note {
    /// The note in the spool of this cluster, if there is one that can be read.
    pub fn load(cluster: &ClusterConfig) -> Option<Self> {
        let path = path(&cluster.spool);
        let content = match std::fs::read(&path) {
            Ok(content) => content,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
            Err(error) => {
                tracing::warn!(file = %path.display(), %error, "cannot read what is known of the slot");
                return None;
            }
        };
        let parsed = serde_json::from_slice::<Self>(&content);
        let unreadable =
            |error: &serde_json::Error| tracing::warn!(file = %path.display(), %error, "cannot read what is known of the slot");
        parsed.inspect_err(unreadable).ok().filter(|note| note.format == FORMAT && note.slot == cluster.slot)
    }

    fn save(&self, spool: &Path) -> Result<()> {
        durable::write_file(&path(spool), &serde_json::to_vec(self)?, durable::PRIVATE_FILE)
    }
}

fn path(spool: &Path) -> PathBuf {
    spool.join(FILE)
}

/// Notes for later of which cluster the slot is; nothing where the slot is never given up.
pub(super) fn note_identity(cluster: &ClusterConfig, identity: &ClusterIdentity) -> Result<()> {
    if cluster.protect == Protect::Archive {
        return match std::fs::remove_file(path(&cluster.spool)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error).context("remove the note of the slot"),
            _ => Ok(()),
        };
    }
    if Note::load(cluster).is_some_and(|note| note.identity.same_cluster(identity)) {
        return Ok(());
    }
    Note { format: FORMAT, slot: cluster.slot.clone(), identity: identity.clone(), given_up: None }.save(&cluster.spool)
}

/// The guard of one cluster's server.
#[derive(Debug)]
pub struct SlotGuard {
    cluster: ClusterConfig,
    limit: u64,
    params: ConnectionParams,
    metrics: Arc<Metrics>,
    progress: Arc<Progress>,
    recorder: Recorder,
}

/// What one look found: the slot holds WAL back from here to there.
#[derive(Debug, Clone, Copy)]
struct Retained {
    restart_lsn: Lsn,
    server_at: Lsn,
}

impl SlotGuard {
    /// The guard, if the configuration asks for one. What an earlier agent gave up is known to `progress` from here on.
    pub fn new(cluster: &ClusterConfig, params: &ConnectionParams, metrics: &Arc<Metrics>, progress: &Arc<Progress>) -> Option<Self> {
        let Protect::Primary { slot_limit } = cluster.protect else { return None };
        if Note::load(cluster).is_some_and(|note| note.given_up.is_some()) {
            progress.set_slot(SlotHold::GivenUp);
        }
        let (cluster, params, metrics, progress) = (cluster.clone(), params.clone(), metrics.clone(), progress.clone());
        Some(Self { cluster, limit: slot_limit.0, params, metrics, progress, recorder: Recorder::nobody() })
    }

    /// The same, telling what it did. What an earlier agent gave up is told again: that one may have ended before it could tell.
    pub fn recording(self, recorder: Recorder) -> Self {
        let guard = Self { recorder, ..self };
        if let Some(given_up) = Note::load(&guard.cluster).and_then(|note| note.given_up) {
            guard.tell(&given_up, "given up to protect the server, before this agent began");
        }
        guard
    }

    fn tell(&self, GivenUp { restart_lsn, server_at, at }: &GivenUp, what: &str) {
        let deed = Deed::new("agent", Kind::SLOT, Outcome::Done).of("slot", &self.cluster.slot).of("held_back_from", restart_lsn);
        self.recorder.done(Deed { time: *at, ..deed }.of("to", server_at).of("limit", self.limit).saying(what));
    }

    /// Looks until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        tokio::select! {
            () = self.watch() => {}
            // In the middle of giving up: the note is there, the slot too or not, and the next agent goes on from what it finds.
            () = stop.cancelled() => {}
        }
    }

    async fn watch(&self) {
        let began = Instant::now();
        let (mut judge, mut complained) = (None, false);
        loop {
            tokio::time::sleep(PERIOD).await;
            // Without a note nothing was ever streamed from here: it comes with the first sight of the repository.
            let Some(note) = Note::load(&self.cluster) else { continue };
            if self.progress.slot() == SlotHold::Held && note.given_up.is_some() {
                self.is_back(&note);
            }
            let judge = judge.get_or_insert_with(|| Guard::new(self.limit, note.identity.segment_size.bytes()));
            match self.look(&note, judge, began).await {
                Ok(Some((reason, retained))) => self.give_up(note, reason, retained).await,
                Ok(None) => complained = false,
                Err(error) => {
                    let error = format!("{error:#}");
                    if complained {
                        tracing::debug!(error, "cannot see what the slot holds back");
                    } else {
                        tracing::warn!(error, "cannot see what the slot holds back, so it is not given up; trying again");
                    }
                    complained = true;
                }
            }
        }
    }

    async fn look(&self, note: &Note, judge: &mut Guard, began: Instant) -> Result<Option<(Reason, Retained)>> {
        let stream = self.stream(note);
        let (at, stored) = (began.elapsed(), self.metrics.objects_stored());
        if stream == Stream::Reads {
            judge.look(Look { at, stream, retained: 0, stored });
            return Ok(None);
        }
        let looked = tokio::time::timeout(DEADLINE, self.retained(note)).await.context("no answer in time")??;
        let Some(retained) = looked else { return Ok(None) };
        let bytes = retained.server_at.bytes_since(retained.restart_lsn);
        Ok(judge.look(Look { at, stream, retained: bytes, stored }).map(|reason| (reason, retained)))
    }

    fn stream(&self, note: &Note) -> Stream {
        let phase = self.progress.snapshot().phase;
        let spool = Spool::at(&self.cluster.spool, note.identity.segment_size);
        // A spool that cannot be looked at cannot be used.
        match (phase, spool.has_room(self.cluster.spool_limit.0)) {
            // A standby that is behind what is stored is waited for: all that it has is stored.
            (Phase::Off | Phase::Stopped | Phase::Streaming | Phase::Waiting, _) => Stream::Reads,
            (Phase::SpoolFull, _) | (_, Ok(false)) => Stream::SpoolFull,
            (Phase::Connecting, _) => Stream::Stands,
        }
    }

    async fn connect(&self, note: &Note) -> Result<(ReplicationConnection, Lsn)> {
        let mut connection = ReplicationConnection::connect(&self.params, &Options::default()).await.context("connect for replication")?;
        let identity = connection.identify_system().await?;
        if identity.system != note.identity.system_identifier {
            bail!("the server has system identifier {}, the slot was one of {}", identity.system, note.identity.system_identifier);
        }
        Ok((connection, identity.flush))
    }

    /// `None` if there is no slot, or none that holds anything back.
    async fn retained(&self, note: &Note) -> Result<Option<Retained>> {
        let (mut connection, server_at) = self.connect(note).await?;
        let slot = read_slot(&mut connection, &self.params, &self.cluster.slot).await;
        connection.close().await;
        Ok(slot?.flatten().map(|restart_lsn| Retained { restart_lsn, server_at }))
    }

    /// Notes it, has the stream let go, and drops the slot. What fails leaves everything as it was, for the next look.
    async fn give_up(&self, note: Note, reason: Reason, Retained { restart_lsn, server_at }: Retained) {
        let slot = &self.cluster.slot;
        let retained = server_at.bytes_since(restart_lsn);
        let given_up = Note { given_up: Some(GivenUp { restart_lsn, server_at, at: Utc::now() }), ..note.clone() };
        if let Err(error) = given_up.save(&self.cluster.spool) {
            // As on a full disk. The server comes first; what follows a restart is then taken for a slot that others dropped.
            tracing::warn!(error = format!("{error:#}"), "cannot note that the slot is given up");
        }
        self.progress.set_slot(SlotHold::GivingUp);
        match self.drop_slot(&note).await {
            Ok(()) => {
                self.progress.set_slot(SlotHold::GivenUp);
                self.tell(&GivenUp { restart_lsn, server_at, at: Utc::now() }, "given up to protect the server");
                tracing::error!(
                    slot, ?reason, retained, limit = self.limit, from = %restart_lsn, to = %server_at,
                    "SLOT GIVEN UP to protect the server (protect = \"primary\"): it may remove WAL that is not stored. What the spool has is stored when the \
                     repository is back; then the slot is made anew, what is missing is recorded as a gap, and a base backup is taken behind it"
                );
            }
            Err(error) => {
                self.progress.set_slot(SlotHold::Held);
                tracing::error!(
                    slot,
                    retained,
                    error = format!("{error:#}"),
                    "the slot should be given up, but cannot be dropped; trying again"
                );
                if let Err(error) = note.save(&self.cluster.spool) {
                    tracing::warn!(error = format!("{error:#}"), "cannot note that the slot is still there");
                }
            }
        }
    }

    async fn drop_slot(&self, note: &Note) -> Result<()> {
        let deadline = Instant::now() + LETS_GO;
        let (mut connection, _) = tokio::time::timeout(DEADLINE, self.connect(note)).await.context("no answer in time")??;
        // Not with WAIT: a server that waits for us would drop it at some later time, when nobody wants that any more.
        loop {
            match connection.drop_slot(&self.cluster.slot).await {
                Ok(()) | Err(ReplicationError::SlotMissing(_)) => break,
                Err(ReplicationError::SlotInUse { .. }) if Instant::now() < deadline => {}
                Err(error) => return Err(error.into()),
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        connection.close().await;
        Ok(())
    }

    fn is_back(&self, note: &Note) {
        match (Note { given_up: None, ..note.clone() }).save(&self.cluster.spool) {
            Ok(()) => tracing::info!(slot = self.cluster.slot, "WAL comes by the slot again"),
            Err(error) => tracing::warn!(error = format!("{error:#}"), "cannot note that the slot is back"),
        }
    }
}
