//! Going on without the repository, with `acknowledge = "spool"`: what a commit waits for is this host's disk, and an outage of the store must not
//! hold it up.
//!
//! Where the stream stands is noted in the spool. Everything before that position was received by this agent: it is stored, or is in the
//! spool and handed over first. So nothing is skipped, and durable is only what the uploads say. An agent without such a note cannot know
//! what is stored, and a new timeline's history must be stored first: both wait for the repository.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use walkeep_core::decoder::valid_end;
use walkeep_core::resume::Position;
use walkeep_core::{Lsn, TimelineId, page};

use super::Streamer;
use super::lease::Writing;
use super::position::{Known, KnownSegment, Start};
use super::uploads::Uploads;
use crate::config::Acknowledge;
use crate::durable;
use crate::postgres::replication::{Identity, ReplicationConnection};
use crate::repository::{self, ClusterIdentity, ClusterRepository};
use crate::spool::Leftovers;

/// The repository has this long to answer before the stream goes on without it.
pub const PATIENCE: Duration = Duration::from_secs(5);
/// Between two tries to reach the server while uploads are under way.
const RECONNECT: Duration = Duration::from_secs(5);
/// The note's name in the spool.
const FILE: &str = "stream.json";
/// Bytes at the front of a segment that every server of a cluster writes alike.
const LONG_HEADER: usize = 40;
/// The note's format.
const FORMAT: u32 = 1;

/// What the agent knows of itself: where its stream stands, and of which cluster and repository.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Note {
    format: u32,
    /// Which repository.
    pub repository: String,
    /// Which cluster.
    pub identity: ClusterIdentity,
    timeline: TimelineId,
    /// Everything before the start of this segment was received.
    received: Lsn,
    /// Everything before this was seen to be stored. What lies between is only as safe as the spool's files.
    #[serde(default)]
    stored: Option<Lsn>,
    /// The epoch that this writer held last on the timeline.
    #[serde(default)]
    epoch: Option<u32>,
}

impl Note {
    /// The note in the spool, if there is one that can be read.
    pub fn load(spool: &Path) -> Option<Self> {
        let path = spool.join(FILE);
        let content = match std::fs::read(&path) {
            Ok(content) => content,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
            Err(error) => {
                tracing::warn!(file = %path.display(), %error, "cannot read where the stream stood");
                return None;
            }
        };
        match serde_json::from_slice::<Self>(&content) {
            Ok(note) if note.format == FORMAT => Some(note),
            Ok(note) => {
                tracing::warn!(file = %path.display(), format = note.format, "where the stream stood is noted in a format of another version");
                None
            }
            Err(error) => {
                tracing::warn!(file = %path.display(), %error, "cannot read where the stream stood");
                None
            }
        }
    }
}

/// Writes the note, with `acknowledge = "spool"`.
#[derive(Debug)]
pub(super) struct Notes {
    file: Option<PathBuf>,
    repository: String,
    identity: ClusterIdentity,
}

impl Notes {
    /// With another `acknowledge` there is no note, and an old one goes: what it says would be old as well.
    pub(super) fn new(spool: &Path, acknowledge: Acknowledge, repository: &ClusterRepository) -> Result<Self> {
        let path = spool.join(FILE);
        let file = match acknowledge {
            Acknowledge::Spool => Some(path),
            Acknowledge::Repository => match std::fs::remove_file(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error).with_context(|| format!("remove {}", path.display()));
                }
                _ => None,
            },
        };
        Ok(Self { file, repository: repository.repository().url(), identity: repository.identity().clone() })
    }

    /// Everything before `position`, the start of a segment, is stored or fsynced in the spool; before `stored`, it is stored.
    pub(super) fn received(&self, position: Position, stored: Option<Lsn>, writing: &Writing) -> Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        let Position { timeline, lsn: received } = position;
        let epoch = writing.lease.as_ref().and_then(|lease| lease.last_epoch());
        let (repository, identity) = (self.repository.clone(), self.identity.clone());
        let note = Note { format: FORMAT, repository, identity, timeline, received, stored, epoch };
        durable::write_file(file, &serde_json::to_vec(&note)?, durable::PRIVATE_FILE)
    }
}

/// Where the stream could go on by what is on this host.
#[derive(Debug)]
pub(super) struct Alone {
    at: Position,
    /// What the spool has of the segment there, as far as it is whole records.
    bytes: Bytes,
    /// How far it was received; at most so far was it confirmed.
    received: Lsn,
    /// Everything before this is stored.
    durable: Lsn,
    /// As the note has it.
    noted: Option<Lsn>,
    /// As the note has it.
    epoch: Option<u32>,
}

impl Streamer {
    /// The note in the spool, if it is of this cluster and repository.
    fn note(&self) -> Option<Note> {
        let of_this =
            |note: &Note| note.identity.same_cluster(self.repository.identity()) && note.repository == self.repository.repository().url();
        Note::load(&self.cluster.spool).filter(of_this)
    }

    /// Up to where everything was seen to be stored, whatever has become of the spool since. The slot does not tell: it follows what is in the spool.
    pub(super) fn noted_as_stored(&self) -> Option<Lsn> {
        self.note()?.stored
    }

    /// Where the stream could go on without the repository; `None` with another `acknowledge`, and where nothing is known.
    pub(super) fn alone(&self, leftovers: &Leftovers) -> Result<Option<Alone>> {
        if self.cluster.acknowledge != Acknowledge::Spool {
            return Ok(None);
        }
        let identity = self.repository.identity();
        let size = identity.segment_size;
        let Some(note) = self.note() else { return Ok(None) };
        let mut at = Position { timeline: note.timeline, lsn: size.align_down(note.received) };
        let mut durable = note.stored.map_or(at.lsn, |stored| stored.min(at.lsn));
        for segment in &leftovers.whole {
            let start = segment.number(size).map(|number| number.start(size));
            let Some(start) = start.filter(|start| segment.timeline() == at.timeline && *start <= at.lsn) else { return Ok(None) };
            durable = durable.min(start);
            // Sealed, and not noted any more.
            if start == at.lsn {
                at.lsn = start.saturating_add(size.bytes());
            }
        }
        let segment = size.segment_of(at.lsn).name(at.timeline, size);
        let mut alone = Alone { at, bytes: Bytes::new(), received: at.lsn, durable, noted: note.stored, epoch: note.epoch };
        if leftovers.unfinished.contains(&segment) {
            let mut bytes = self.spool.read_unfinished(segment)?;
            alone.received = at.lsn.saturating_add(bytes.len() as u64);
            if page::check_partial_segment(segment, size, identity.system_identifier, None, &bytes).is_ok() {
                bytes.truncate(valid_end(at.lsn, size, &bytes).bytes_since(at.lsn) as usize);
                alone.bytes = Bytes::from(bytes);
            }
        }
        Ok(Some(alone))
    }

    /// Where to begin without the repository, if this server is where the stream stood: on its timeline, with the slot where it was left.
    pub(super) async fn start_alone(
        &self,
        connection: &mut ReplicationConnection,
        identity: &Identity,
        alone: Option<Alone>,
    ) -> Result<Option<Start>> {
        let Some(Alone { at, bytes, received, durable, noted, epoch }) = alone else { return Ok(None) };
        if identity.timeline != at.timeline || identity.flush < at.lsn {
            return Ok(None);
        }
        let Some(slot) = self.read_slot(connection).await?.flatten() else { return Ok(None) };
        // Only we move the slot: beyond what was received here it is another's. Before the segment, the server has restarted, or is a copy: what
        // it sends must be compared with a record at least.
        if slot > received {
            return Ok(None);
        }
        let size = self.repository.identity().segment_size;
        // What is stored of the segment, this agent has received.
        let compared = received.bytes_since(at.lsn) as u32;
        let writing = self.writing_alone(connection.host(), epoch, size.segment_of(at.lsn).name(at.timeline, size), compared);
        if slot >= at.lsn || bytes.len() > LONG_HEADER {
            let known = [KnownSegment::without_parts(bytes, Known::InSpool)].into();
            return Ok(Some(Start { at, frontier: at, known, durable, noted: Some(noted), writing, confirmed: true, behind_gap: false }));
        }
        let Some(before) = size.segment_of(at.lsn).previous() else { return Ok(None) };
        // Not there any more if it is stored; the repository answers then, or has just gone.
        let Ok(stored) = self.spool.read(before.name(at.timeline, size)) else { return Ok(None) };
        let back = Position { lsn: before.start(size), ..at };
        let known = [KnownSegment::without_parts(Bytes::from(stored), Known::WholeInSpool)].into();
        Ok(Some(Start {
            at: back,
            frontier: at,
            known,
            durable: durable.min(back.lsn),
            noted: Some(noted),
            writing,
            confirmed: true,
            behind_gap: false,
        }))
    }

    /// `work` on the repository; `None` if the stream may go on without it and the repository does not answer in time.
    pub(super) async fn unless_alone<T>(&self, may: bool, work: impl Future<Output = Result<T>>) -> Result<Option<T>> {
        if !may {
            return work.await.map(Some);
        }
        let reason = match tokio::time::timeout(PATIENCE, work).await {
            Ok(Ok(done)) => return Ok(Some(done)),
            Ok(Err(error)) if error.downcast_ref::<repository::Error>().is_some_and(repository::Error::is_mendable) => format!("{error:#}"),
            Ok(Err(error)) => return Err(error),
            Err(_) => format!("no answer within {PATIENCE:?}"),
        };
        tracing::warn!(reason, "the repository is out of reach: going on into the spool");
        Ok(None)
    }

    /// Connects. If the server is away as well as the repository, what waits is still stored as soon as that works; `None` if the agent
    /// stops meanwhile.
    pub(super) async fn connect_while_storing(
        &self,
        uploads: &mut Uploads,
        stop: &CancellationToken,
    ) -> Result<Option<ReplicationConnection>> {
        loop {
            let error = match self.connect().await {
                Ok(connection) => return Ok(Some(connection)),
                Err(error) if uploads.is_empty() => return Err(error),
                Err(error) => error,
            };
            tracing::error!(
                error = format!("{error:#}"),
                waiting = uploads.len(),
                "neither the repository nor the server is there; trying again"
            );
            match tokio::time::timeout(RECONNECT, self.settle_uploads(uploads, stop)).await {
                Ok(Ok(true)) => return Err(error),
                Ok(Ok(false)) => return Ok(None),
                Ok(Err(error)) => return Err(error),
                Err(_) => {}
            }
        }
    }
}
