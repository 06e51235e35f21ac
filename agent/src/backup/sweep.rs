//! Removes what backups left that were never finished.
//!
//! A backup that was interrupted leaves packs, which the next one uses ([`super::former`]). What nobody used in [`LEFT`] is removed here: the packs that no
//! manifest names, then what there is of the backup's own. One rule keeps this apart from backups that other hosts take at the same time: what may be removed
//! is older than what may still be taken up ([`TAKEN_UP`]), and a backup that stood still for nearly as long is not recorded ([`STANDSTILL`], asked of the store when
//! its record is put). Each pack belongs to one backup, so nobody comes to name an old one by storing the same bytes again. In doubt nothing is removed: an
//! unreadable manifest or record, a backup under way for long, clocks that contradict each other, listings that do.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;
use walkeep_core::layout::{BackupId, PackId};
use walkeep_core::manifest::EntryKind;
use walkeep_store::several::Proof;

use crate::repository::ClusterRepository;
use crate::repository::manifest::ManifestEntries;
use crate::repository::unfinished::BackupTimes;

const DAY: Duration = Duration::from_secs(24 * 3600);
/// A backup that stored nothing for so long is given up, whatever its process thinks.
pub const LEFT: Duration = DAY.saturating_mul(7);
/// So long after its last object a backup may use what an interrupted one stored.
pub const TAKEN_UP: Duration = DAY.saturating_mul(5);
/// A backup of which nothing was stored for so long (a suspended machine) is not recorded: others may soon have removed what it stored.
pub const STANDSTILL: Duration = DAY.saturating_mul(6);
/// A backup under way for longer may have taken up what is now left.
const LONG: Duration = DAY;
/// The store's clock and this host's may differ by so much.
const SKEW: Duration = DAY;

/// What was removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Swept {
    /// The backups.
    pub backups: Vec<BackupId>,
    /// Packs.
    pub packs: u64,
    /// Their bytes.
    pub bytes: u64,
    /// The backup that may be under way and need what nothing names, so that nothing was removed.
    pub waits_for: Option<BackupId>,
}

/// Removes what is left of unfinished backups. The backup `newest` has just been recorded: its time is the store's present.
pub async fn sweep(repository: &Arc<ClusterRepository>, newest: &BackupId, cancel: &CancellationToken) -> Result<Swept> {
    let times = repository.backup_times().await?;
    sweep_by(repository, times, newest, cancel, Wanted::Leftovers).await
}

/// The same, and all packs that nothing needs any more: for who has removed backups.
pub async fn sweep_unneeded(repository: &Arc<ClusterRepository>, cancel: &CancellationToken) -> Result<Swept> {
    let times = repository.backup_times().await?;
    let Some(newest) = times.iter().filter(|found| found.recorded).max_by_key(|found| found.last).map(|found| found.id.clone()) else {
        return Ok(Swept::default());
    };
    sweep_by(repository, times, &newest, cancel, Wanted::AllPacks).await
}

/// What is looked for.
#[derive(PartialEq)]
enum Wanted {
    /// What unfinished backups left; where there are none, nothing.
    Leftovers,
    AllPacks,
}

async fn sweep_by(
    repository: &Arc<ClusterRepository>,
    times: Vec<BackupTimes>,
    newest: &BackupId,
    cancel: &CancellationToken,
    wanted: Wanted,
) -> Result<Swept> {
    // Of several repositories each must say what is in it.
    let repository = &repository.demanding(Proof::Every);
    let Some(now) = times.iter().find(|found| found.recorded && found.id == *newest).map(|found| found.last) else {
        return Ok(Swept::default());
    };
    let recorded: Vec<BackupId> = times.iter().filter(|found| found.recorded).map(|found| found.id.clone()).collect();
    let (left, alive): (Vec<_>, Vec<_>) = times.into_iter().filter(|found| !found.recorded).partition(|found| is_left(found, now));
    if left.is_empty() && wanted == Wanted::Leftovers {
        return Ok(Swept::default());
    }
    let skew = age(now, SystemTime::now()).max(age(SystemTime::now(), now));
    ensure!(skew <= SKEW, "the store's clock and this host's differ by {} hours: what is old is not known", skew.as_secs() / 3600);
    if let Some(long) = alive.iter().find(|found| age(found.first, now) > LONG) {
        tracing::info!(backup = %long.id, "backup: leftovers are kept while another backup may be under way that uses them");
        return Ok(Swept { waits_for: Some(long.id.clone()), ..Swept::default() });
    }
    let before = now.checked_sub(LEFT).context("the store's clock is before all backups")?;
    // Listed before it is read what is named: nobody begins to name an old pack meanwhile.
    let mut unnamed: HashMap<PackId, u64> = repository.packs_before(before).await?.into_iter().map(|pack| (pack.id, pack.bytes)).collect();
    let known = repository.backups().await?;
    ensure!(known.damaged.is_empty(), "{} cannot be read: it may name packs that seem to be left over", known.damaged[0].key);
    // A listing may lag behind, and one answer be wrong: what was once seen to be recorded must be read.
    let stored = || known.records.iter().chain(&known.expired);
    if let Some(missed) = recorded.iter().find(|id| !stored().any(|record| record.id == **id)) {
        bail!("the record of {missed} was listed and cannot be read");
    }
    // Of what left the catalog too: it may be taken back.
    for record in stored() {
        unnamed = strike(unnamed, repository.get_manifest(record).await?, true).await?;
    }
    for backup in &alive {
        if let Some(manifest) = repository.unfinished_manifest(&backup.id).await? {
            unnamed = strike(unnamed, manifest, false).await?;
        }
    }
    let mut swept = Swept::default();
    for (id, bytes) in unnamed {
        ensure!(!cancel.is_cancelled(), "Walkeep stops");
        repository.remove_pack(id).await?;
        (swept.packs, swept.bytes) = (swept.packs + 1, swept.bytes + bytes);
    }
    for backup in left {
        repository.remove_unfinished(&backup.id).await?;
        swept.backups.push(backup.id);
    }
    Ok(swept)
}

/// Whether a backup without a record stood still for so long that it will not get one.
pub fn is_left(found: &BackupTimes, now: SystemTime) -> bool {
    age(found.last, now) > LEFT
}

/// What lies in the future is new.
fn age(at: SystemTime, now: SystemTime) -> Duration {
    now.duration_since(at).unwrap_or_default()
}

/// Takes out what a manifest names. Of one that is not `whole`, up to where it ends.
async fn strike(mut unnamed: HashMap<PackId, u64>, manifest: ManifestEntries, whole: bool) -> Result<HashMap<PackId, u64>> {
    spawn_blocking(move || {
        for entry in manifest.iter()? {
            let entry = match entry {
                Ok(entry) => entry,
                Err(error) if whole => return Err(error.into()),
                Err(_) => break,
            };
            if let EntryKind::File { content, .. } = entry.kind {
                for extent in content.extents() {
                    unnamed.remove(&extent.pack);
                }
            }
        }
        Ok(unnamed)
    })
    .await?
}

#[cfg(test)]
mod tests;
