//! What listings, records and manifests say, without reading WAL or packs.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::{StreamExt, TryStreamExt, stream};
use tokio_util::sync::CancellationToken;
use walkeep_core::layout::{BackupId, ObjectName};
use walkeep_core::verify::{self, Finding, Findings, Judge, Kind, Lost, Severity, Stretch};
use walkeep_core::{Lsn, TimelineId};

use super::manifests::{self, Faults};
use super::memory::Memory;
use super::{Listed, beside, deep};
use crate::repository::look::Seen;
use crate::repository::{ClusterRepository, Error, Result};

/// Between two looks at what seems to be wrong: what is on its way has arrived, or is known to have gone.
const PAUSES: [u64; 5] = [1, 4, 10, 20, 30];
/// Behind so many of them only WAL is still doubtful that later WAL may have overtaken: together they are longer than a store's call.
const ALL: usize = 2;
/// So many segments may overtake one.
const OVERTAKE: u64 = 64;

/// The locks of so many objects are looked at by a look, others each day.
const LOCKS: usize = 100;
/// Requests for locks at a time.
const ASKED: usize = 8;

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
    /// Whether this host cannot read which packs a backup needs.
    pub unread: bool,
    /// Of what a repair took away, what is there again.
    pub mended: BTreeSet<String>,
    /// Since when the object that was read longest ago was not read, or lies there unread.
    pub unread_since: Option<SystemTime>,
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
    /// Records of the audit trail that were read less long ago are left out; none of them.
    pub older_than: Option<Duration>,
    /// A timeline and up to where its WAL is known to be stored: what lies behind may be on its way.
    pub durable: &'a (dyn Fn() -> Option<(TimelineId, Lsn)> + Sync),
}

/// Looks until what is wrong is wrong each time.
pub async fn confirmed(look: &Look<'_>, memory: &mut Memory) -> Result<Quick> {
    let mut quick = once(look, memory).await?;
    for (looks, pause) in PAUSES.into_iter().enumerate() {
        let doubtful = |finding: &Finding| finding.severity > Severity::Note && (looks < ALL || quick.may_arrive(finding, memory));
        if !quick.findings.iter().any(doubtful) {
            break;
        }
        tokio::select! {
            () = tokio::time::sleep(Duration::from_secs(pause)) => {}
            () = look.cancel.cancelled() => return Err(Error::cancelled("verify", look.repository.cluster())),
        }
        let before = std::mem::take(&mut quick.findings);
        quick = once(look, memory).await?;
        quick.findings = quick.findings.seen_by(&before);
    }
    Ok(quick)
}

/// One look.
async fn once(look: &Look<'_>, memory: &mut Memory) -> Result<Quick> {
    let repository = look.repository;
    // Asked before anything is listed: what is listed may be more.
    let durable = (look.durable)();
    let (mut objects, mut audit, mut mended, mut unread_since) = (0u64, BTreeMap::new(), BTreeSet::new(), None::<SystemTime>);
    let mut sample = BTreeMap::new();
    let day = chrono::Utc::now().timestamp() / (24 * 3600);
    let seen = repository
        .see(&mut |name, listed| {
            objects += 1;
            if objects.is_multiple_of(1000) {
                (look.tell)(objects);
            }
            if let ObjectName::Audit(number) = name {
                audit.insert(*number, listed.clone());
            }
            if memory.mending().contains(listed.key.as_str()) {
                mended.insert(listed.key.to_string());
            }
            if look.backup.is_none() && repository.lock_promised(name).is_some() {
                // The first in an order that is another one each day.
                let mut place = blake3::Hasher::new();
                place.update(listed.key.as_str().as_bytes()).update(&day.to_le_bytes());
                sample.insert(*place.finalize().as_bytes(), (name.clone(), listed.modified));
                if sample.len() > LOCKS {
                    sample.pop_last();
                }
            }
            if deep::is_read(name) {
                let since = memory.read_at(listed).unwrap_or(listed.modified);
                unread_since = Some(unread_since.map_or(since, |known| known.min(since)));
            }
        })
        .await?;
    (look.tell)(objects);
    let mut quick = Quick { findings: Findings::default(), extents: 0, not_checked: 0, unread: false, seen, mended, unread_since };
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
        let mut holes = verify::continuity(&judge, &seen.listing, &seen.filled);
        // Nobody was told that this is stored.
        let is_promised = |stretch: Stretch| durable.is_none_or(|(timeline, to)| stretch.timeline != timeline || stretch.from < to);
        holes.retain(|finding| finding.stretch.is_none_or(is_promised));
        findings.extend(holes.into_sorted());
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
        let trail = beside::trail(repository, &audit, memory, look.older_than).await?;
        for (name, reason) in unlocked(repository, sample.into_values()).await? {
            findings.add(judge.unlocked(&name, reason));
        }
        findings.extend(trail.into_iter().filter_map(|(kind, name, reason)| judge.finding(kind, &name, reason)));
    }
    if let Some(backup) = look.backup {
        let prefix = repository.layout().backup_prefix(backup);
        findings.retain(|finding| finding.lost.backups.contains(backup) || finding.key.starts_with(&prefix));
    }
    Ok(quick)
}

/// What of these is not locked as was promised.
async fn unlocked(
    repository: &Arc<ClusterRepository>,
    sample: impl Iterator<Item = (ObjectName, SystemTime)>,
) -> Result<Vec<(ObjectName, String)>> {
    let one = |(name, put): (ObjectName, SystemTime)| async move {
        match repository.lock_fault(&name, put, None).await {
            Ok(fault) => Ok(fault.map(|fault| (name, fault))),
            // Told where everything is read.
            Err(error) if error.is_denied() => Ok(None),
            Err(error) => Err(error),
        }
    };
    let asked: Vec<_> = sample.map(one).collect();
    let found: Vec<_> = stream::iter(asked).buffered(ASKED).try_collect().await?;
    Ok(found.into_iter().flatten().collect())
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
            Err(Error::CannotDecrypt { .. }) => {
                quick.unread = true;
                // Without any identity they were counted above.
                quick.not_checked += if look.repository.can_read() { u64::from(record.manifest_pieces) } else { 0 };
            }
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
        stretch: None,
        lost: Lost::default(),
        advice: "what an unfinished backup left is removed by itself behind a later one".to_owned(),
    })
}

impl Quick {
    /// Whether it is a hole that later WAL may have made by overtaking what is still on its way: at the end of a timeline, and nobody has seen the WAL there.
    fn may_arrive(&self, finding: &Finding, memory: &Memory) -> bool {
        finding.stretch.is_some_and(|stretch| {
            let catalog = &self.seen.catalog;
            let seen_whole = memory.outcome.whole_to.get(&stretch.timeline.get()).is_some_and(|to| stretch.from < *to);
            let end = catalog.frontier(stretch.timeline).unwrap_or_default();
            !seen_whole && end <= stretch.to.saturating_add(OVERTAKE * catalog.segment_size().bytes())
        })
    }

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
