//! An artifact on its way out: every piece is proven before a byte of it is written, and all of them together before the file has its name.

use std::io::Write;

use anyhow::{Context, Result, bail, ensure};
use chrono::{DateTime, Utc};
use futures::{StreamExt, stream};
use walkeep_core::artifact::{ArtifactId, ArtifactName, ArtifactPlace, ArtifactRecord, ArtifactSummary};
use walkeep_core::layout::ObjectName;

use super::Sums;
use crate::repository::{ClusterRepository, Error};

/// Pieces read ahead.
const AHEAD: usize = 2;

/// Which of a name's artifacts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Which {
    /// The newest.
    Newest,
    /// The newest that had ended by then.
    At(DateTime<Utc>),
    /// This one.
    Id(ArtifactId),
}

/// What was found.
#[derive(Debug)]
pub struct Found {
    /// The artifact; `None` if there is none.
    pub record: Option<ArtifactRecord>,
    /// Keys of records that cannot be believed, of which one may be what was asked for: they began later.
    pub left_out: Vec<String>,
}

/// Finds one.
pub async fn find(repository: &ClusterRepository, name: &ArtifactName, which: &Which) -> Result<Found> {
    let (records, damaged) = repository.artifacts(Some(name)).await.context("look for artifacts")?;
    for key in &damaged {
        tracing::warn!(key, "the record of an artifact is damaged and left out");
    }
    let fits = |record: &&ArtifactRecord| match which {
        Which::Newest => true,
        Which::At(time) => record.ended_at <= *time,
        Which::Id(id) => record.id == *id,
    };
    let found = records.iter().filter(fits).max_by_key(|record| (record.ended_at, record.id.clone())).cloned();
    // Somebody asked for just this one: it is there, and what is wrong with it is told.
    if let (None, Which::Id(id)) = (&found, which)
        && let Some(key) = damaged.iter().find(|key| key.contains(id.as_str()))
    {
        bail!(Error::corrupt(key.clone(), "its record cannot be read"));
    }
    let may_be_it = |key: &String| {
        let Some(ObjectName::ArtifactRecord(ArtifactPlace { id, .. })) = repository.layout().parse(key) else { return true };
        let is_in_time = !matches!(which, Which::At(time) if id.began().is_some_and(|began| began > *time));
        is_in_time && found.as_ref().is_none_or(|found| id > found.id)
    };
    let left_out = if matches!(which, Which::Id(_)) { Vec::new() } else { damaged.into_iter().filter(may_be_it).collect() };
    Ok(Found { record: found, left_out })
}

/// Writes its stream. An error says that what was written is not all of it, or not what was stored.
pub async fn write(repository: &ClusterRepository, record: &ArtifactRecord, to: &mut (dyn Write + Send)) -> Result<ArtifactSummary> {
    let summary = repository.artifact_summary(record).await.context("read its summary")?;
    let mut pieces = stream::iter((1..=record.pieces).map(|number| repository.artifact_piece(record, number))).buffered(AHEAD);
    let mut sums = Sums::default();
    while let Some(piece) = pieces.next().await {
        let piece = piece.context("read it")?;
        sums = sums.and(piece.clone()).await?;
        to.write_all(&piece).context("write it")?;
    }
    to.flush().context("write it")?;
    let (sha256, blake3, bytes) = sums.finish();
    ensure!(
        (sha256, blake3, bytes) == (summary.sha256, summary.blake3, record.bytes),
        Error::corrupt(record.place().to_string(), "its pieces together are not what was stored")
    );
    Ok(summary)
}
