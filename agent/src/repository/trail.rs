//! Whether a record of the audit trail, which has no sum of its own, is the one that was written: that only the records beside it tell.

use bytes::Bytes;
use walkeep_core::audit::{Record, hash};
use walkeep_core::layout::ObjectName;

use super::{ClusterRepository, Result};

/// Whether the record that lies there is where it belongs: it follows the one before it, and the one behind it names it. Then another one was changed.
pub async fn has_its_place(repository: &ClusterRepository, number: u32, record: &Bytes) -> Result<bool> {
    Ok(follows(repository, repository, number, record).await? == Some(true) && is_named(repository, number, record).await? == Some(true))
}

/// Why this copy must not take the place of another record, if it must not: rotten it may be as well.
pub async fn doubt(source: &ClusterRepository, target: &ClusterRepository, number: u32, record: &Bytes) -> Result<Option<String>> {
    let before = number.saturating_sub(1);
    for (repository, whose) in [(source, "its own"), (target, "the damaged one's")] {
        if follows(source, repository, number, record).await? != Some(true) {
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

/// Why the record that lies there is not believed, if it is not: it was changed, or it may have been. The last one of a trail is believed by the record before it.
pub async fn misplaced(repository: &ClusterRepository, number: u32, record: &Bytes) -> Result<Option<String>> {
    if read(repository, number, record).is_none() {
        return Ok(Some("it is no record of this place in this cluster's trail".to_owned()));
    }
    let behind = number.saturating_add(1);
    match is_named(repository, number, record).await? {
        Some(true) => return Ok(None),
        Some(false) if !is_changed(repository, behind).await? => {
            return Ok(Some(format!("record {behind} names another hash: it was changed since it was written, or that one was")));
        }
        Some(false) | None => {}
    }
    let reason = || format!("it does not follow record {}: one of the two was changed since it was written", number.saturating_sub(1));
    Ok((follows(repository, repository, number, record).await? == Some(false)).then(reason))
}

/// Whether this record was surely changed: then what it names proves nothing.
async fn is_changed(repository: &ClusterRepository, number: u32) -> Result<bool> {
    let Some(bytes) = repository.stored_object(&ObjectName::Audit(number)).await? else { return Ok(false) };
    Ok(read(repository, number, &bytes).is_none() || is_named(repository, number, &bytes).await? == Some(false))
}

/// Whether it follows the record before it, as that lies in `repository`; `None` if that is not there.
async fn follows(of: &ClusterRepository, repository: &ClusterRepository, number: u32, record: &Bytes) -> Result<Option<bool>> {
    let Some(record) = read(of, number, record) else { return Ok(Some(false)) };
    let before = match number.saturating_sub(1) {
        0 => return Ok(Some(record.previous.is_none())),
        before => repository.stored_object(&ObjectName::Audit(before)).await?,
    };
    Ok(before.map(|before| record.previous == Some(hash(&before))))
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
