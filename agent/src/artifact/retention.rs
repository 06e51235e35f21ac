//! What goes of artifacts by their own `keep`: decided in `walkeep_core::artifact::retention`, removed here, each with its record first.

use anyhow::{Context, Result};
use chrono::{DateTime, TimeDelta, Utc};
use serde::Serialize;
use walkeep_core::artifact::retention::{Keep, plan};
use walkeep_core::artifact::{ArtifactId, ArtifactName, ArtifactPlace};

use crate::config::ClusterConfig;
use crate::repository::ClusterRepository;

/// What stays and goes of one name.
#[derive(Debug, Clone, Serialize)]
pub struct Share {
    /// The name.
    pub name: ArtifactName,
    /// How many stay.
    pub kept: usize,
    /// What goes, the oldest first.
    pub expired: Vec<ArtifactId>,
    /// Stored bytes of what goes.
    pub bytes: u64,
}

impl Share {
    /// Where that lies which goes.
    pub fn places(&self) -> impl Iterator<Item = ArtifactPlace> {
        self.expired.iter().map(|id| ArtifactPlace { name: self.name.clone(), id: id.clone() })
    }

    /// Whether so many go at once that somebody should have a look: more than half, and more than two.
    pub fn is_much(&self) -> bool {
        self.expired.len() > 2 && self.expired.len() > self.kept
    }
}

/// Whether the configuration lets any artifact go.
pub fn is_configured(cluster: &ClusterConfig) -> bool {
    let of_artifacts = cluster.artifacts.iter().any(|artifact| !artifact.runs.keep.is_everything());
    of_artifacts || cluster.dump.as_ref().is_some_and(|dump| !dump.runs.keep.is_everything())
}

/// What stays and goes of all names of which something may go.
pub async fn look(repository: &ClusterRepository, cluster: &ClusterConfig, now: DateTime<Utc>) -> Result<Vec<Share>> {
    if !is_configured(cluster) {
        return Ok(Vec::new());
    }
    let mut shares = Vec::new();
    for name in repository.artifact_names().await.context("look for artifacts")? {
        if let Some(keep) = keep_of(cluster, &name).filter(|keep| !keep.is_everything()) {
            shares.extend(share(repository, &name, keep, now).await?);
        }
    }
    Ok(shares)
}

/// The same of one name; `None` if nothing goes.
pub async fn share(repository: &ClusterRepository, name: &ArtifactName, keep: &Keep, now: DateTime<Utc>) -> Result<Option<Share>> {
    // One whose record cannot be read is not counted, and stays.
    let (mut records, _) = repository.artifacts(Some(name)).await.context("look for artifacts")?;
    let stored = repository.artifacts_stored(name).await.context("ask when artifacts were stored")?;
    // A host's clock may have been ahead: none is newer than it was stored.
    for record in &mut records {
        let at = stored.get(&record.id).map(|at| DateTime::<Utc>::from(*at) + TimeDelta::seconds(1));
        record.ended_at = at.map_or(record.ended_at, |at| record.ended_at.min(at));
    }
    let mut plan = plan(&records, keep, now);
    // Or behind: what was stored last stays, whatever it says of its age.
    if let Some((last, _)) = stored.iter().max_by_key(|(_, at)| **at) {
        let before = plan.expired.len();
        plan.expired.retain(|id| id != last);
        plan.kept.extend((before > plan.expired.len()).then(|| last.clone()));
    }
    let bytes = records.iter().filter(|record| plan.expired.contains(&record.id)).map(|record| record.bytes_stored).sum();
    let share = Share { name: name.clone(), kept: plan.kept.len(), expired: plan.expired, bytes };
    Ok((!share.expired.is_empty()).then_some(share))
}

/// What is to be kept under a name; `None` where the configuration does not know it: then all of it stays.
pub fn keep_of<'a>(cluster: &'a ClusterConfig, name: &ArtifactName) -> Option<&'a Keep> {
    if name.is_dump() {
        return cluster.dump.as_ref().map(|dump| &dump.runs.keep);
    }
    cluster.artifacts.iter().find(|artifact| artifact.name == *name).map(|artifact| &artifact.runs.keep)
}
