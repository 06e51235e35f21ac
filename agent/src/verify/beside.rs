//! What lies beside WAL and backups: artifacts with all their pieces, and the audit trail.

use walkeep_core::artifact::ArtifactPlace;
use walkeep_core::audit::chain;
use walkeep_core::layout::ObjectName;
use walkeep_core::verify::{ArtifactFolder, Finding, Judge, Kind};

use crate::repository::look::Seen;
use crate::repository::{ClusterRepository, Error, Result};

/// So many missing pieces of one artifact are named.
const NAMED: u32 = 20;

/// What is wrong with them.
pub async fn findings(repository: &ClusterRepository, seen: &Seen, judge: &Judge<'_>) -> Result<Vec<Finding>> {
    let mut found = trail(repository).await?;
    for (place, folder) in seen.listing.artifacts.iter().filter(|(_, folder)| folder.recorded) {
        found.extend(artifact(repository, place, folder).await?);
    }
    Ok(found.into_iter().filter_map(|(kind, name, reason)| judge.finding(kind, &name, reason)).collect())
}

async fn artifact(
    repository: &ClusterRepository,
    place: &ArtifactPlace,
    folder: &ArtifactFolder,
) -> Result<Vec<(Kind, ObjectName, String)>> {
    let record = match repository.artifact(place).await {
        Ok(Some(record)) => record,
        // Retention removed it meanwhile.
        Ok(None) => return Ok(Vec::new()),
        Err(Error::Corrupt { reason, .. }) => return Ok(vec![(Kind::Content, ObjectName::ArtifactRecord(place.clone()), reason)]),
        Err(error) => return Err(error),
    };
    let mut found = Vec::new();
    if !folder.summary {
        let reason = "the artifact has a record, and this is gone".to_owned();
        found.push((Kind::Missing, ObjectName::ArtifactSummary(place.clone()), reason));
    }
    let gone = (1..=record.pieces).filter(|piece| !folder.pieces.contains(piece)).take(NAMED as usize);
    found.extend(gone.map(|piece| {
        let reason = format!("the artifact has a record, and this piece of its {} is gone", record.pieces);
        (Kind::Missing, ObjectName::ArtifactPiece(place.clone(), piece), reason)
    }));
    Ok(found)
}

/// The chain of records.
async fn trail(repository: &ClusterRepository) -> Result<Vec<(Kind, ObjectName, String)>> {
    let records = repository.audit_records().await?;
    let bodies = records.iter().map(|(number, body)| (*number, body.as_ref()));
    let checked = chain::check(repository.cluster().as_str(), repository.identity().system_identifier, bodies, None);
    let told = checked.findings.iter().filter_map(|finding| {
        let kind = if matches!(finding, chain::Finding::Missing { .. }) { Kind::Missing } else { Kind::Content };
        Some((kind, ObjectName::Audit(finding.number()?), finding.to_string()))
    });
    Ok(told.collect())
}
