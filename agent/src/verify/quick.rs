//! What listings, records and manifests say, without reading WAL or packs.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use walkeep_core::layout::{BackupId, ObjectName};
use walkeep_core::verify::{self, Finding, Findings, Judge, Kind, Lost, Severity};

use super::manifests::{self, Faults};
use super::{Listed, beside};
use crate::repository::look::Seen;
use crate::repository::{ClusterRepository, Error, Result};

/// Between two looks at what seems to be wrong: what is on its way has arrived, or is known to have gone.
const PAUSES: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(4)];

/// So many pieces of a manifest that are gone are named.
const NAMED: usize = 100;

/// What one look saw.
#[derive(Debug)]
pub struct Quick {
    /// What is stored.
    pub seen: Seen,
    /// What is wrong with it.
    pub findings: Findings,
    /// Extents of all manifests together.
    pub extents: u64,
    /// Pieces of manifests that this host cannot decrypt, whether it has a copy of its own or not.
    pub not_checked: u64,
}

/// How it is looked.
pub struct Look<'a> {
    /// At what.
    pub repository: &'a Arc<ClusterRepository>,
    /// At this backup alone, and what it needs.
    pub backup: Option<&'a BackupId>,
    /// Ends it.
    pub cancel: &'a CancellationToken,
    /// Is told how many objects were listed.
    pub tell: &'a (dyn Fn(u64) + Sync),
}

/// Looks until what is wrong is wrong each time.
pub async fn confirmed(look: &Look<'_>) -> Result<Quick> {
    let mut quick = once(look).await?;
    for pause in PAUSES {
        if quick.findings.count(Severity::Minor) == 0 {
            break;
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = look.cancel.cancelled() => return Err(Error::cancelled("verify", look.repository.cluster())),
        }
        let before = std::mem::take(&mut quick.findings);
        quick = once(look).await?;
        quick.findings = quick.findings.seen_by(&before);
    }
    Ok(quick)
}

/// One look.
async fn once(look: &Look<'_>) -> Result<Quick> {
    let repository = look.repository;
    let mut objects = 0u64;
    let seen = repository
        .see(&mut |_, _| {
            objects += 1;
            if objects.is_multiple_of(1000) {
                (look.tell)(objects);
            }
        })
        .await?;
    (look.tell)(objects);
    let mut quick = Quick { findings: Findings::default(), extents: 0, not_checked: 0, seen };
    let (faults, of_manifests) = read_manifests(look, &mut quick).await?;
    let Quick { seen, findings, .. } = &mut quick;
    let judge = Judge::new(&seen.catalog, repository.layout());
    findings.extend(seen.listing.strangers().iter().cloned());
    for (name, reason) in seen.listing.impossible() {
        findings.extend(judge.finding(Kind::Size, name, reason));
    }
    let mut expiry_is_known = true;
    for damaged in &seen.damaged {
        let name = repository.layout().parse(&damaged.key);
        expiry_is_known &= !matches!(name, Some(ObjectName::Expiry(_) | ObjectName::ExpiryEnd(_)));
        findings.extend(name.and_then(|name| judge.finding(Kind::Content, &name, damaged.reason.clone())));
    }
    // What was let go would seem to be missing.
    if expiry_is_known {
        findings.extend(verify::continuity(&judge, &seen.listing, &seen.filled).into_sorted());
    }
    for (kind, name, reason) in of_manifests {
        findings.extend(judge.finding(kind, &name, reason));
    }
    for (pack, fault) in faults.iter() {
        let kind = if fault.is_cut_off() { Kind::Size } else { Kind::Missing };
        let key = repository.layout().key(&ObjectName::Pack(pack));
        findings.add(judge.pack(kind, key, fault.reason(), fault.backups.iter().cloned()));
    }
    findings.extend(unfinished(repository, seen));
    if look.backup.is_none() {
        findings.extend(beside::findings(repository, seen, &judge).await?);
    }
    if let Some(backup) = look.backup {
        let prefix = repository.layout().backup_prefix(backup);
        findings.retain(|finding| finding.lost.backups.contains(backup) || finding.key.starts_with(&prefix));
    }
    Ok(quick)
}

type OfManifests = Vec<(Kind, ObjectName, String)>;

/// Reads the manifests of all backups in the catalog.
async fn read_manifests(look: &Look<'_>, quick: &mut Quick) -> Result<(Faults, OfManifests)> {
    let (mut faults, mut found) = (Faults::default(), OfManifests::new());
    let packs = Arc::new(std::mem::take(&mut quick.seen.packs));
    for record in quick.seen.catalog.backups().iter().filter(|record| look.backup.is_none_or(|backup| *backup == record.id)) {
        if look.cancel.is_cancelled() {
            return Err(Error::cancelled("verify", &record.id));
        }
        if record.id.start() != record.start_lsn {
            let reason = format!("it says that the backup began at {}, and its name {}", record.start_lsn, record.id.start());
            found.push((Kind::Content, ObjectName::BackupRecord(record.id.clone()), reason));
        }
        let listed = quick.seen.listing.backups.get(&record.id).map_or(&[][..], |folder| folder.pieces.as_slice());
        let gone = (1..=record.manifest_pieces.max(1)).filter(|piece| !listed.contains(piece)).take(NAMED).collect::<Vec<_>>();
        if !gone.is_empty() {
            let reason = || "the backup has a record, and this piece of its manifest is gone".to_owned();
            found.extend(gone.into_iter().map(|piece| (Kind::Missing, ObjectName::BackupManifest(record.id.clone(), piece), reason())));
            continue;
        }
        if !look.repository.can_read() {
            quick.not_checked += u64::from(record.manifest_pieces);
        }
        let read;
        (faults, read) = manifests::read(look.repository, record, packs.clone(), faults).await;
        match read {
            Ok(read) => {
                quick.extents += read.extents;
                found.extend(read.contradiction.map(|reason| (Kind::Content, ObjectName::BackupRecord(record.id.clone()), reason)));
            }
            Err(Error::CannotDecrypt { .. }) if !look.repository.can_read() => {}
            Err(Error::CannotDecrypt { .. }) => quick.not_checked += u64::from(record.manifest_pieces),
            Err(Error::Corrupt { reason, .. }) => {
                found.push((Kind::Content, manifests::damaged_piece(look.repository, record).await?, reason));
            }
            Err(error) => return Err(error),
        }
    }
    quick.seen.packs = Arc::into_inner(packs).unwrap_or_default();
    Ok((faults, found))
}

/// Backups without a record: no damage.
fn unfinished<'a>(repository: &'a ClusterRepository, seen: &'a Seen) -> impl Iterator<Item = Finding> + 'a {
    let expired = seen.catalog.expired();
    let left = seen.listing.backups.iter().filter(|(id, folder)| !folder.recorded && !expired.has_backup(id));
    left.map(|(id, _)| Finding {
        severity: Severity::Note,
        kind: Kind::Leftover,
        key: repository.layout().backup_prefix(id),
        reason: "the backup has no record: it is under way, or was never finished".to_owned(),
        lost: Lost::default(),
        advice: "what an unfinished backup left is removed by itself behind a later one".to_owned(),
    })
}

impl Quick {
    /// What is listed, in numbers.
    pub fn listed(&self) -> Listed {
        let (catalog, listing) = (&self.seen.catalog, &self.seen.listing);
        Listed {
            objects: listing.objects,
            bytes: listing.bytes,
            backups: catalog.backups().len() as u64,
            segments: catalog.timelines().into_iter().map(|timeline| catalog.segment_totals(timeline).0).sum(),
            foreign: listing.foreign,
        }
    }
}
