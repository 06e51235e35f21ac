//! Whether a record of the audit trail, which has no sum of its own, is the one that was written: that only the records beside it tell, and of the last one only
//! who compares the repositories.

use bytes::Bytes;
use walkeep_core::audit::{Record, hash};
use walkeep_core::layout::ObjectName;

use super::{ClusterRepository, Result};

/// What lies where a record is to be put.
#[derive(Debug, Clone, Copy)]
pub enum Lies<'a> {
    Nothing,
    /// The store itself says that it is damaged.
    Unreadable,
    Bytes(&'a Bytes),
}

/// What the record behind one says of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Named {
    /// It names it, and its writer knew that to be the only one.
    Proven,
    /// It names it, or says that it was there beside another one: what was changed before that was written is named as well.
    InDoubt,
    /// It names another one.
    Not,
    /// There is none.
    ByNobody,
}

/// Whether the record that lies there is where it belongs: it follows the one before it, and the one behind it proves it. Then another one was changed.
pub async fn has_its_place(repository: &ClusterRepository, number: u32, record: &Bytes) -> Result<bool> {
    Ok(follows(repository, repository, number, record).await? == Some(true) && named(repository, number, record).await? == Named::Proven)
}

/// Why this copy must not be put where that lies, if it must not: rotten, or forged, it may be as well. `others`: the further repositories, with their numbers.
pub async fn doubt(
    source: &ClusterRepository,
    target: &ClusterRepository,
    others: &[(usize, ClusterRepository)],
    number: u32,
    record: &Bytes,
    lies: Lies<'_>,
) -> Result<Option<String>> {
    if matches!(lies, Lies::Bytes(bytes) if bytes == record) {
        return Ok(None);
    }
    let (mut alike, mut unlike) = (Vec::new(), Vec::new());
    for (other, repository) in others {
        match (repository.stored_object(&ObjectName::Audit(number)).await, lies) {
            (Ok(Some(bytes)), Lies::Bytes(lying)) if bytes == *lying => alike.push(other.to_string()),
            (Ok(Some(bytes)), _) if bytes != *record => unlike.push(other.to_string()),
            (Ok(_), _) => {}
            (Err(error), _) if error.is_damage() => {}
            (Err(error), _) => return Err(error),
        }
    }
    match lies {
        Lies::Bytes(lying) if !alike.is_empty() && follows(target, target, number, lying).await? == Some(true) => {
            let reason = format!("what lies there lies in repository {} too: which one was changed cannot be told", alike.join(" and "));
            return Ok(Some(reason));
        }
        // Nobody says anything else.
        Lies::Nothing if unlike.is_empty() => return Ok(None),
        Lies::Nothing => {
            return Ok(Some(format!("repository {} has another one: which one was changed cannot be told", unlike.join(" and "))));
        }
        _ => {}
    }
    let before = number.saturating_sub(1);
    for (repository, whose) in [(source, "its own"), (target, "the damaged one's")] {
        if follows(source, repository, number, record).await? != Some(true) {
            return Ok(Some(format!("it does not follow record {before} of {whose} repository: which one was changed cannot be told")));
        }
    }
    let behind = number.saturating_add(1);
    match named(source, number, record).await? {
        Named::Proven => {}
        Named::InDoubt => {
            let reason = "repositories had different ones already, or only one could be asked, when that was written";
            return Ok(Some(format!("record {behind} there names it and does not prove it: {reason}")));
        }
        Named::Not => return Ok(Some(format!("record {behind} there names another hash: which one was changed cannot be told"))),
        Named::ByNobody => return Ok(Some(format!("there is no record {behind} there, whose hash would prove it"))),
    }
    // What is no record there says nothing against it.
    let says_otherwise = named(target, number, record).await? == Named::Not && !is_changed(target, behind).await?;
    let reason = || format!("record {behind} of the damaged one's repository names another hash: which one was changed cannot be told");
    Ok(says_otherwise.then(reason))
}

/// Why the record that lies there is not believed, if it is not: it was changed, or it may have been. The last one of a trail is believed by the record before it.
pub async fn misplaced(repository: &ClusterRepository, number: u32, record: &Bytes) -> Result<Option<String>> {
    if read(repository, number, record).is_none() {
        return Ok(Some("it is no record of this place in this cluster's trail".to_owned()));
    }
    let behind = number.saturating_add(1);
    match named(repository, number, record).await? {
        Named::Proven | Named::InDoubt => return Ok(None),
        Named::Not if !is_changed(repository, behind).await? => {
            return Ok(Some(format!("record {behind} names another hash: it was changed since it was written, or that one was")));
        }
        Named::Not | Named::ByNobody => {}
    }
    let reason = || format!("it does not follow record {}: one of the two was changed since it was written", number.saturating_sub(1));
    Ok((follows(repository, repository, number, record).await? == Some(false)).then(reason))
}

/// Whether this record was surely changed: then what it names proves nothing.
async fn is_changed(repository: &ClusterRepository, number: u32) -> Result<bool> {
    let Some(bytes) = repository.stored_object(&ObjectName::Audit(number)).await? else { return Ok(false) };
    Ok(read(repository, number, &bytes).is_none() || named(repository, number, &bytes).await? == Named::Not)
}

/// Whether it follows the record before it, as that lies in `repository`; `None` if that is not there.
async fn follows(of: &ClusterRepository, repository: &ClusterRepository, number: u32, record: &Bytes) -> Result<Option<bool>> {
    let Some(record) = read(of, number, record) else { return Ok(Some(false)) };
    let before = match number.saturating_sub(1) {
        0 => return Ok(Some(record.previous.is_none())),
        before => repository.stored_object(&ObjectName::Audit(before)).await?,
    };
    Ok(before.map(|before| record.follows(Some(hash(&before)))))
}

/// What the record behind it says of it.
async fn named(repository: &ClusterRepository, number: u32, record: &Bytes) -> Result<Named> {
    let behind = number.saturating_add(1);
    let Some(bytes) = repository.stored_object(&ObjectName::Audit(behind)).await? else { return Ok(Named::ByNobody) };
    Ok(match read(repository, behind, &bytes) {
        Some(behind) if !behind.follows(Some(hash(record))) => Named::Not,
        Some(behind) if behind.proves() => Named::Proven,
        Some(_) => Named::InDoubt,
        None => Named::Not,
    })
}

fn read(repository: &ClusterRepository, number: u32, bytes: &[u8]) -> Option<Record> {
    let record: Record = serde_json::from_slice(bytes).ok()?;
    let system = repository.identity().system_identifier;
    let is_ours = record.cluster == repository.cluster().as_str() && record.system_identifier == system;
    (is_ours && record.format == Record::FORMAT && record.number == number).then_some(record)
}
