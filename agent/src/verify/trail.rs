//! Which of two records of the audit trail that differ is the one that was written: that only the records beside it tell.

use bytes::Bytes;
use walkeep_core::audit::{Record, hash};
use walkeep_core::layout::ObjectName;

use crate::repository::{ClusterRepository, Result};

/// Whether the record that lies there is where it belongs: it follows the one before it, and the one behind it names it. Then another one was changed.
pub async fn has_its_place(repository: &ClusterRepository, number: u32, record: &Bytes) -> Result<bool> {
    Ok(follows(repository, repository, number, record).await? && is_named(repository, number, record).await? == Some(true))
}

/// Why this copy must not take the place of another record, if it must not: rotten it may be as well.
pub async fn doubt(source: &ClusterRepository, target: &ClusterRepository, number: u32, record: &Bytes) -> Result<Option<String>> {
    let before = number.saturating_sub(1);
    for (repository, whose) in [(source, "its own"), (target, "the damaged one's")] {
        if !follows(source, repository, number, record).await? {
            return Ok(Some(format!("it does not follow record {before} of {whose} repository: which one was changed cannot be told")));
        }
    }
    let behind = number.saturating_add(1);
    Ok(match is_named(source, number, record).await? {
        Some(true) => None,
        Some(false) => Some(format!("record {behind} there names another hash: which one was changed cannot be told")),
        None => Some(format!("there is no record {behind} there, whose hash would prove it")),
    })
}

/// Whether it follows the record before it, as that lies in `repository`.
async fn follows(of: &ClusterRepository, repository: &ClusterRepository, number: u32, record: &Bytes) -> Result<bool> {
    let Some(record) = read(of, number, record) else { return Ok(false) };
    let before = match number.saturating_sub(1) {
        0 => return Ok(record.previous.is_none()),
        before => repository.stored_object(&ObjectName::Audit(before)).await?,
    };
    Ok(before.is_some_and(|before| record.previous == Some(hash(&before))))
}

/// Whether the record behind it names its hash; `None` if there is none.
async fn is_named(repository: &ClusterRepository, number: u32, record: &Bytes) -> Result<Option<bool>> {
    let behind = number.saturating_add(1);
    let Some(bytes) = repository.stored_object(&ObjectName::Audit(behind)).await? else { return Ok(None) };
    Ok(Some(read(repository, behind, &bytes).is_some_and(|behind| behind.previous == Some(hash(record)))))
}

fn read(repository: &ClusterRepository, number: u32, bytes: &[u8]) -> Option<Record> {
    let record: Record = serde_json::from_slice(bytes).ok()?;
    let system = repository.identity().system_identifier;
    let is_ours = record.cluster == repository.cluster().as_str() && record.system_identifier == system;
    (is_ours && record.format == Record::FORMAT && record.number == number).then_some(record)
}
