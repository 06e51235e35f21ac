//! What lies beside WAL and backups: artifacts with all their pieces, drills with their reports, and the audit trail.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use walkeep_core::artifact::ArtifactPlace;
use walkeep_core::audit::{Head, chain};
use walkeep_core::drill::Form;
use walkeep_core::layout::ObjectName;
use walkeep_core::verify::{ArtifactFolder, Finding, Judge, Kind};
use walkeep_store::Listed;

use super::memory::Memory;
use crate::repository::look::Seen;
use crate::repository::{ClusterRepository, Error, Result};

/// So many missing pieces of one artifact are named.
const NAMED: u32 = 20;
/// So many missing records of the trail are.
const NAMED_RECORDS: usize = 1000;

/// What is wrong with them.
pub async fn findings(repository: &ClusterRepository, seen: &Seen, judge: &Judge<'_>) -> Result<Vec<Finding>> {
    let mut found = Vec::new();
    let stays = |place: &ArtifactPlace| !seen.catalog.expired().has_artifact(place);
    for (place, folder) in seen.listing.artifacts.iter().filter(|(place, folder)| folder.recorded && stays(place)) {
        found.extend(artifact(repository, place, folder).await?);
    }
    for (id, folder) in seen.listing.drills.iter().filter(|(_, folder)| folder.recorded) {
        let gone = Form::ALL.into_iter().filter(|form| !folder.forms.contains(form));
        let reason = || "the drill has a record, and this form of its report is gone".to_owned();
        found.extend(gone.map(|form| (Kind::Missing, ObjectName::DrillReport(id.clone(), form), reason())));
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

/// The trail: that no number is missing up to the highest that was ever seen, and of each record that is new, changed or due that it is itself and linked with
/// those beside it. What was read before and is listed as it was then is not read again, so that a look at a long trail is no long one; but for what was found
/// wrong, and what lies beside that: it stays wrong until it is seen to be right. What is to be compared with other repositories is noted.
pub async fn trail(
    repository: &ClusterRepository,
    listed: &BTreeMap<u32, Listed>,
    memory: &mut Memory,
    older_than: Option<Duration>,
) -> Result<Vec<(Kind, ObjectName, String)>> {
    let before = memory.outcome.trail;
    let last = listed.last_key_value().map(|(number, _)| *number).unwrap_or_default();
    let highest = before.map_or(last, |head| head.number.max(last));
    let missing = (1..=highest).filter(|number| !listed.contains_key(number)).take(NAMED_RECORDS);
    let mut found: Vec<_> =
        missing.map(|number| (Kind::Missing, ObjectName::Audit(number), format!("record {number} of {highest} is missing"))).collect();
    let is_due = |listed: &Listed| older_than.is_none_or(|time| !memory.is_known(listed, time));
    let due: BTreeSet<u32> = listed.iter().filter(|(_, listed)| is_due(listed)).map(|(number, _)| *number).collect();
    let beside = due.iter().flat_map(|number| [number.saturating_sub(1), *number, number.saturating_add(1)]);
    let ends = [last].into_iter().chain(before.map(|head| head.number));
    let wanted: BTreeSet<u32> = beside.chain(ends).filter(|number| listed.contains_key(number)).collect();
    let (records, damaged) = repository.audit_records_and_damaged(wanted).await?;
    found.extend(damaged.into_iter().map(|(number, reason)| (Kind::Content, ObjectName::Audit(number), reason)));
    let bodies = records.iter().map(|(number, body)| (*number, body.as_ref()));
    let checked = chain::check(repository.cluster().as_str(), repository.identity().system_identifier, bodies, None);
    // What is missing was told by the listing, and between the records that were read there are others.
    let told = checked.findings.iter().filter(|finding| !matches!(finding, chain::Finding::Missing { .. }));
    found.extend(told.filter_map(|finding| Some((Kind::Content, ObjectName::Audit(finding.number()?), finding.to_string()))));
    let now = |head: Head| records.iter().find(|(number, _)| *number == head.number).map(|(number, body)| Head::of(*number, body));
    if let Some(head) = before.filter(|head| now(*head).is_some_and(|now| now != *head)) {
        let reason = format!("record {} is not the one that was there when it was looked at before", head.number);
        found.push((Kind::Content, ObjectName::Audit(head.number), reason));
    }
    let is_wrong = found.iter().filter(|(kind, ..)| *kind == Kind::Content).filter_map(|(_, name, _)| match name {
        ObjectName::Audit(number) => Some(*number),
        _ => None,
    });
    let doubtful: BTreeSet<u32> = is_wrong.flat_map(|number| [number.saturating_sub(1), number, number.saturating_add(1)]).collect();
    doubtful.iter().filter_map(|number| listed.get(number)).for_each(|listed| memory.in_doubt(listed));
    for (number, listed) in due.difference(&doubtful).filter_map(|number| Some((number, listed.get(number)?))) {
        if records.iter().any(|(read, _)| read == number) {
            memory.whole(listed);
        }
    }
    memory.outcome.questioned.extend(checked.questioned());
    if found.is_empty() {
        memory.outcome.trail = records.last().map(|(number, body)| Head::of(*number, body)).or(before);
    }
    Ok(found)
}
