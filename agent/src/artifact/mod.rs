//! Artifacts: dumps of databases, folders, prefixes of buckets, what commands print. Made here, read back in [`get`], let go in [`retention`].
//!
//! Whatever it comes from is one stream ([`flow`]), stored in pieces while it flows, so memory holds two pieces and not the whole. It exists when its
//! record is stored, last of all: a command that fails, takes too long or says nothing leaves none.

pub mod bucket;
pub mod command;
pub mod dump;
pub mod flow;
pub mod folder;
pub mod get;
pub mod maker;
mod processes;
pub mod retention;

use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use chrono::{DateTime, Utc};
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;
use walkeep_core::artifact::{ArtifactId, ArtifactName, ArtifactPlace, ArtifactRecord, ArtifactSummary, Content, PIECE};
use walkeep_core::blake3::Blake3Sum;
use walkeep_core::sha256::Sha256Sum;
use walkeep_core::tar_header;

use crate::config::Runs;
use crate::repository::{self, ClusterRepository};
use crate::retry::{Backoff, retry};
use crate::writer;
use flow::{Ended, Flow};

/// What lies there without a record for so long, by the store's clock, was given up: no artifact may take half of it.
const GIVEN_UP: Duration = Duration::from_secs(48 * 3600);
/// A repository that is away is tried again for so long with each piece.
const AWAY: Duration = Duration::from_secs(300);
/// Removing what a failed one has stored takes no longer.
const TIDYING: Duration = Duration::from_secs(30);

/// What is to be made, and how much of it.
#[derive(Debug, Clone)]
pub struct Job {
    /// Its name.
    pub name: ArtifactName,
    /// What it is made from, as it is told.
    pub source: String,
    /// The database, if it is a dump.
    pub database: Option<String>,
    /// For which moment it is due, if a schedule asks for it.
    pub due: Option<DateTime<Utc>>,
    /// Its bounds.
    pub runs: Runs,
    /// Whether nothing at all may be right.
    pub allow_empty: bool,
}

/// A stream that has begun.
#[derive(Debug)]
pub struct Started {
    /// What it is.
    pub content: Content,
    /// The stream.
    pub flow: Flow,
    /// What makes it, with its version.
    pub program: Option<String>,
}

/// An artifact that is stored.
#[derive(Debug)]
pub struct Made {
    /// Its record.
    pub record: ArtifactRecord,
    /// What was passed over or changed while it was read.
    pub notes: Vec<String>,
}

/// Makes an artifact of the stream that `start` begins. Of one that fails nothing is left, as far as the store lets go of it.
pub async fn make(
    repository: &ClusterRepository,
    job: &Job,
    start: impl Future<Output = Result<Started>>,
    stop: &CancellationToken,
) -> Result<Made> {
    let began = Utc::now();
    let id = ArtifactId::new(began, writer::random_number()?);
    let place = ArtifactPlace { name: job.name.clone(), id };
    repository.begin_artifact(&place, &writer::host()).await.context("say that it begins")?;
    match repository.sweep_artifacts(&job.name, GIVEN_UP).await {
        Ok(_) => {}
        // Who keeps an archive may deny it on purpose.
        Err(error) if error.is_denied() => {
            tracing::debug!(artifact = %job.name, %error, "what is left of artifacts that were given up stays")
        }
        Err(error) => tracing::warn!(artifact = %job.name, %error, "what is left of artifacts that were given up stays for now"),
    }
    let made = tokio::select! {
        made = tokio::time::timeout(job.runs.timeout, fill(repository, job, &place, began, start)) => {
            made.with_context(|| format!("it took longer than {}", humantime::format_duration(job.runs.timeout))).flatten()
        }
        () = stop.cancelled() => Err(anyhow::anyhow!("cancelled")),
    };
    if made.is_err() {
        match tokio::time::timeout(TIDYING, repository.remove_artifact(&place)).await {
            Ok(Ok(_)) => {}
            // The next one finds it, days later.
            Ok(Err(error)) => tracing::debug!(artifact = %place, %error, "what was stored of it stays for now"),
            Err(_) => tracing::debug!(artifact = %place, "what was stored of it stays for now"),
        }
    }
    made
}

async fn fill(
    repository: &ClusterRepository,
    job: &Job,
    place: &ArtifactPlace,
    began: DateTime<Utc>,
    start: impl Future<Output = Result<Started>>,
) -> Result<Made> {
    let Started { content, mut flow, program } = start.await?;
    let (mut sums, mut pieces, mut bytes_stored) = (Sums::default(), 0u32, 0u64);
    let mut next = flow.piece().await?;
    loop {
        pieces = pieces.checked_add(1).context("it has too many pieces")?;
        sums = sums.and(next.clone()).await?;
        if let Some(most) = job.runs.max_size.filter(|most| sums.bytes > most.0) {
            bail!("it has more than {} bytes (max_size)", most.0);
        }
        let is_last = (next.len() as u64) < PIECE;
        let put = put(repository, place, pieces, next);
        if is_last {
            bytes_stored += put.await?;
            break;
        }
        let (stored, following) = tokio::try_join!(put, flow.piece())?;
        bytes_stored += stored;
        if following.is_empty() {
            break;
        }
        next = following;
    }
    let Ended { files, notes, stderr } = flow.ended().await?;
    if is_empty(content, files, sums.bytes) && !job.allow_empty {
        bail!(
            "{}it is empty (allow_empty = true, if that is right)",
            if content == Content::Tar { "nothing is in it, as where nothing is mounted: " } else { "" }
        );
    }
    let (sha256, blake3, bytes) = sums.finish();
    let own = format!("walkeep {}", env!("CARGO_PKG_VERSION"));
    let programs = [own].into_iter().chain(program).collect();
    let (format, salt) = (ArtifactRecord::FORMAT, writer::random_id()?);
    let summary = ArtifactSummary { format, sha256, blake3, notes: notes.named.clone(), stderr, programs, salt };
    let summary_sha256 = repository.put_artifact_summary(place, &summary).await.context("store its summary")?;
    let record = ArtifactRecord {
        format,
        name: job.name.clone(),
        id: place.id.clone(),
        cluster: repository.cluster().to_string(),
        system_identifier: repository.identity().system_identifier,
        source: job.source.clone(),
        content,
        database: job.database.clone(),
        due: job.due,
        started_at: began,
        ended_at: Utc::now(),
        bytes,
        bytes_stored,
        pieces,
        files,
        notes: notes.count,
        host: writer::host(),
        summary_sha256,
    };
    repository.commit_artifact(&record).await.context("store its record")?;
    Ok(Made { record, notes: notes.named })
}

/// Whether there is nothing in it: a tar file of the folder itself alone, or of no object, holds nothing either.
fn is_empty(content: Content, files: Option<u64>, bytes: u64) -> bool {
    let folder_alone = tar_header::BLOCK + tar_header::END.len();
    bytes == 0 || content == Content::Tar && files == Some(0) && bytes <= folder_alone as u64
}

async fn put(repository: &ClusterRepository, place: &ArtifactPlace, number: u32, plain: Bytes) -> Result<u64> {
    let never = CancellationToken::new();
    let again = |error: &repository::Error| error.is_transient();
    let put = retry("storing a piece of an artifact", Backoff::within(AWAY), &never, again, || {
        repository.put_artifact_piece(place, number, plain.clone())
    });
    put.await.with_context(|| format!("store piece {number}"))
}

/// The hashes of a stream.
#[derive(Default)]
struct Sums {
    sha256: Sha256,
    blake3: blake3::Hasher,
    bytes: u64,
}

impl Sums {
    fn add(&mut self, piece: &[u8]) {
        self.sha256.update(piece);
        self.blake3.update(piece);
        self.bytes += piece.len() as u64;
    }

    /// The same behind another piece. Hashing is CPU work.
    async fn and(mut self, piece: Bytes) -> Result<Self> {
        let hashed = tokio::task::spawn_blocking(move || {
            self.add(&piece);
            self
        });
        hashed.await.context("hash a piece")
    }

    fn finish(self) -> (Sha256Sum, Blake3Sum, u64) {
        (Sha256Sum::new(self.sha256.finalize().into()), Blake3Sum::new(*self.blake3.finalize().as_bytes()), self.bytes)
    }
}

#[cfg(test)]
mod tests;
