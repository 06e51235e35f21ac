//! Lets go what the retention policy does not keep: decides it by what is stored ([`look`]), takes it out of the catalog ([`take_out`]), and removes the
//! objects once the time of grace is over ([`carry_out`]).
//!
//! What may go is `walkeep_core::retention`'s to decide; here is what it needs to know, and the order in which objects go. A record that hides is put before
//! any object goes and merged away when all are gone: whoever is killed in between, or runs beside another, leaves a record that the next run carries on. In
//! doubt nothing goes: a record that cannot be read, a backup under way that began before the record was put.

mod carry_out;
mod present;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};
use chrono::{DateTime, Utc};
use walkeep_core::artifact::ArtifactPlace;
use walkeep_core::backup::BackupBegun;
use walkeep_core::catalog::{Catalog, WalRange};
use walkeep_core::expiry::{End, Expired, ExpiredWal, Expiry, ExpiryEnd};
use walkeep_core::layout::{BackupId, ObjectName};
use walkeep_core::plan::estimate::Rates;
use walkeep_core::retention::{self, Facts, Policy, RetentionPlan};
use walkeep_core::target::{RecoveryTarget, TargetKind};
use walkeep_core::{Lsn, TimelineId, WalFileName};

use crate::backup::lock::BackupLock;
use crate::backup::sweep;
use crate::planning::{Around, Share, View};
use crate::repository::expiry::KnownExpiry;
use crate::repository::holds::Hold;
use crate::repository::unfinished::BackupTimes;
use crate::repository::{self, ClusterRepository};
use crate::writer;

pub use carry_out::{CarriedOut, Scope, Waits, carry_out};

/// So long the agent lets go by itself, at most: what it takes beside waits meanwhile. What is left is carried on by the next one.
const BY_ITSELF: Duration = Duration::from_secs(6 * 3600);
/// Tries to find a free number for a record while others take them.
const TRIES: usize = 5;

/// Why nothing may go.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// What it names may be needed or not.
    #[error("{key} cannot be believed ({reason}): what it needs is not known, so nothing may go")]
    Damaged {
        /// The record's key.
        key: String,
        /// What is wrong with it.
        reason: String,
    },
    /// It was decided by what is not so any more.
    #[error("{what} since this was looked at: nothing was changed")]
    Changed {
        /// What happened.
        what: String,
    },
}

/// What is stored, and what of it may go.
#[derive(Debug)]
pub struct Look {
    /// What stays and what goes.
    pub plan: RetentionPlan,
    /// What is stored.
    pub catalog: Catalog,
    /// What will be in the catalog behind it.
    pub after: Catalog,
    /// What left the catalog before and is not gone yet.
    pub pending: Vec<KnownExpiry>,
    /// The numbers of the records that hide something.
    hiding: Vec<u32>,
    /// The present by which it was decided.
    pub now: DateTime<Utc>,
    /// When the backup before the newest ended, if that is so long ago that a clock may have jumped.
    pub jumped: Option<DateTime<Utc>>,
    /// What this host's clock said, where that is much later.
    pub clock_ahead: Option<DateTime<Utc>>,
}

/// What the agent does by itself, within its time. It may be broken off anywhere, as by a kill.
pub async fn in_time<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let too_long = |_| anyhow::anyhow!("not done within {} hours: broken off, and carried on the next time", BY_ITSELF.as_secs() / 3600);
    tokio::time::timeout(BY_ITSELF, work).await.map_err(too_long)?
}

/// Looks at what is stored. Changes nothing. By the lock in `spool` it knows of a backup of this host that it was interrupted.
pub async fn look(repository: &Arc<ClusterRepository>, policy: &Policy, spool: &Path, host_now: DateTime<Utc>) -> Result<Look> {
    // Before everything else: who begins a backup behind this has a start that is kept anyway.
    let under_way = under_way(repository, spool).await?;
    let holds = repository.holds().await.context("read the holds")?;
    let mut view = View::load_listing(repository.clone(), u64::MAX).await?;
    let is_record = |key: &str| {
        let history = |name: &ObjectName| matches!(name, ObjectName::Wal(WalFileName::History(_)));
        repository.layout().parse(key).is_some_and(|name| history(&name) || matches!(name, ObjectName::BackupRecord(_)))
    };
    if let Some(damaged) = view.loaded().damaged.iter().find(|damaged| is_record(&damaged.key)) {
        bail!(Refusal::Damaged { key: damaged.key.clone(), reason: damaged.reason.clone() });
    }
    let last_moments = last_moments(&mut view).await?;
    let catalog = view.catalog().clone();
    let newest_backup = catalog.backups().iter().map(|backup| backup.ended_at).max();
    let newest_commit = catalog.newest_timeline().and_then(|timeline| last_moments.get(&timeline).copied());
    let stored_at = repository.backup_times().await.context("ask when backups were stored")?.into_iter().map(|found| found.last).max();
    let now = retention::present(host_now, newest_backup.max(newest_commit), stored_at.map(present::by_whole_seconds));
    let holds = holds.into_iter().map(|(id, Hold { keep, .. })| (id, keep)).collect();
    let plan =
        retention::plan(policy, &Facts { catalog: &catalog, now, holds: &holds, last_moments: &last_moments, under_way: &under_way });
    let after = catalog.without(&named_by(&plan));
    let (known, _) = repository.expiries().await.context("read what left the catalog before")?;
    let hiding = hiding(&known);
    let pending = known.into_iter().filter(KnownExpiry::is_pending).collect();
    let jumped = retention::jumped(policy, &catalog, now);
    let clock_ahead = (host_now - now > chrono::TimeDelta::days(1)).then_some(host_now);
    Ok(Look { plan, catalog, after, pending, hiding, now, jumped, clock_ahead })
}

fn hiding(known: &[KnownExpiry]) -> Vec<u32> {
    known.iter().filter(|known| known.hides()).map(|known| known.record.number).collect()
}

fn named_by(plan: &RetentionPlan) -> Expired {
    let mut expired = Expired::default();
    let nameless = Expiry::new(0, DateTime::<Utc>::MIN_UTC, String::new());
    expired.add(&Expiry { backups: plan.expired.clone(), wal: plan.wal.clone(), ..nameless });
    expired
}

/// Where backups began that may still get a record.
async fn under_way(repository: &ClusterRepository, spool: &Path) -> Result<Vec<Lsn>> {
    let mut starts = Vec::new();
    for found in alive(repository).await? {
        if !is_over(repository, &found.id, spool).await? {
            starts.push(found.id.start());
        }
    }
    Ok(starts)
}

/// Backups that may still get a record: by the time of what was put last, since this host's clock may be ahead.
async fn alive(repository: &ClusterRepository) -> Result<Vec<BackupTimes>> {
    let times = repository.backup_times().await.context("look for backups under way")?;
    let now = times.iter().map(|found| found.last).max().unwrap_or(SystemTime::UNIX_EPOCH);
    Ok(times.into_iter().filter(|found| !found.recorded && !sweep::is_left(found, now)).collect())
}

/// Whether a backup without a record, which was listed as such, was cancelled or killed on this host: its lock was held in the folder `spool`, and is free. It
/// gets no record any more, and what it stored is found by its manifest.
async fn is_over(repository: &ClusterRepository, id: &BackupId, spool: &Path) -> Result<bool> {
    let begun = repository.begun(id).await.context("look who takes a backup")?;
    let here = writer::known_identity(spool).ok().flatten();
    let ours = |begun: &BackupBegun| here.is_some() && begun.writer == here && begun.host == writer::host();
    let spool = spool.to_owned();
    let is_free = || tokio::task::spawn_blocking(move || BackupLock::is_free(&spool));
    if !begun.as_ref().is_some_and(ours) || !is_free().await.context("look at the lock")? {
        return Ok(false);
    }
    // It may have been recorded between the listing and the look at its lock.
    Ok(alive(repository).await?.iter().any(|found| found.id == *id))
}

/// The last moment of each timeline, as far as the index or the WAL tells it to the end.
async fn last_moments(view: &mut View) -> Result<BTreeMap<TimelineId, DateTime<Utc>>> {
    let around = Around { server: Err("retention does not ask it".into()), rates: Rates::default(), share: Share::Part };
    let mut last = BTreeMap::new();
    for timeline in view.catalog().timelines() {
        let size = view.catalog().segment_size();
        let told_to = view.index().runs(timeline).map(|run| run.end.start(size)).max();
        let told = view.index().last_moment(timeline).and_then(|time| time.to_utc());
        // Of the newest a moment that is too early lets nothing go.
        let told_all = told_to.is_some() && told_to >= view.catalog().frontier(timeline);
        if told_all || view.catalog().newest_timeline() == Some(timeline) {
            last.extend(told.map(|told| (timeline, told)));
            continue;
        }
        // Its last segment was never finished: the plan for its end reads it.
        let target = RecoveryTarget { timeline: Some(timeline), ..RecoveryTarget::new(TargetKind::Latest) };
        match view.plan(&target, &around, &mut |_, _| {}).await {
            Ok(Ok(plan)) if plan.searched => {
                let commit = plan.last_replayed.and_then(|commit| commit.time.to_utc());
                last.extend(commit.max(told).map(|moment| (timeline, moment)));
            }
            Ok(_) => {}
            Err(error) if error.chain().any(is_transient) => return Err(error),
            Err(error) => {
                tracing::warn!(%timeline, error = format!("{error:#}"), "retention: when this timeline ended cannot be read: it is kept");
            }
        }
    }
    Ok(last)
}

fn is_transient(cause: &(dyn std::error::Error + 'static)) -> bool {
    cause.downcast_ref::<repository::Error>().is_some_and(repository::Error::is_transient)
}

/// Takes what the plan names out of the catalog; answers the record. Nothing is removed by it. Refused if something was let go, brought back or kept since it
/// was looked at.
pub async fn take_out(repository: &ClusterRepository, look: &Look, host_now: DateTime<Utc>) -> Result<Expiry> {
    let plan = &look.plan;
    for _ in 0..TRIES {
        let (known, number) = repository.expiries().await.context("read what left the catalog before")?;
        if hiding(&known) != look.hiding {
            bail!(Refusal::Changed { what: "something left the catalog or was brought back".into() });
        }
        let mut before = Expired::default();
        known.iter().filter(|known| known.hides()).for_each(|known| before.add(&known.record));
        // Only what this record hides comes back with it.
        let rest = |wal: &ExpiredWal| before.without(wal.timeline, WalRange { from: wal.from, to: wal.to });
        let wal = plan.wal.iter().flat_map(|wal| rest(wal).into_iter().map(|range| ExpiredWal { from: range.from, to: range.to, ..*wal }));
        let record = Expiry { backups: plan.expired.clone(), wal: wal.collect(), ..Expiry::new(number, host_now, crate::writer::host()) };
        if repository.put_expiry(&record).await.context("note what leaves the catalog")? {
            // Whoever keeps one from here on sees the record; whoever did before is seen here.
            if let Some(kept) = held(repository, &record, look.now).await? {
                undo(repository, number, host_now).await?;
                bail!(Refusal::Changed { what: format!("{kept} is kept") });
            }
            return Ok(record);
        }
    }
    bail!("others let go at the same time, again and again; try it once more")
}

/// Takes artifacts out of the catalog; answers the record. Nothing is removed by it.
pub async fn take_out_artifacts(repository: &ClusterRepository, artifacts: Vec<ArtifactPlace>, host_now: DateTime<Utc>) -> Result<Expiry> {
    for _ in 0..TRIES {
        let (known, number) = repository.expiries().await.context("read what left the catalog before")?;
        let mut before = Expired::default();
        known.iter().filter(|known| known.hides()).for_each(|known| before.add(&known.record));
        // What another record hides would not come back with this one.
        if artifacts.iter().any(|place| before.has_artifact(place)) {
            bail!(Refusal::Changed { what: "some of these artifacts left the catalog".into() });
        }
        let record = Expiry { artifacts: artifacts.clone(), ..Expiry::new(number, host_now, crate::writer::host()) };
        if repository.put_expiry(&record).await.context("note what leaves the catalog")? {
            return Ok(record);
        }
    }
    bail!("others let go at the same time, again and again; try it once more")
}

/// What left the catalog before and is not gone yet.
pub async fn pending(repository: &ClusterRepository) -> Result<Vec<KnownExpiry>> {
    let (known, _) = repository.expiries().await.context("read what left the catalog before")?;
    Ok(known.into_iter().filter(KnownExpiry::is_pending).collect())
}

/// The number under which a backup left the catalog, as long as it can be brought back.
pub async fn left_with(repository: &ClusterRepository, backup: &BackupId) -> Result<Option<u32>> {
    let can_be_brought_back = |known: &KnownExpiry| known.end.is_none() && known.record.backups.contains(backup);
    Ok(pending(repository).await?.into_iter().find(can_be_brought_back).map(|known| known.record.number))
}

/// A backup of the record that somebody has said to keep.
async fn held(repository: &ClusterRepository, record: &Expiry, now: DateTime<Utc>) -> Result<Option<BackupId>> {
    let holds = repository.holds().await.context("read the holds")?;
    let is_held = |id: &&BackupId| holds.get(*id).and_then(|hold| hold.keep).is_some_and(|keep| retention::holds(keep, now));
    Ok(record.backups.iter().find(is_held).cloned())
}

/// Takes a record back: what it names is in the catalog again. Answers false if its objects are being removed already, and nothing where nothing would come
/// back: nothing is changed then.
pub async fn undo(repository: &ClusterRepository, number: u32, host_now: DateTime<Utc>) -> Result<Option<(Expiry, bool)>> {
    let (known, _) = repository.expiries().await.context("read what left the catalog")?;
    let is_it = |known: &KnownExpiry| known.record.number == number && !known.record.is_memory() && !known.merged;
    let Some(known) = known.into_iter().find(is_it) else { return Ok(None) };
    let lie = repository.backups().await.context("read the backups")?;
    let named = &known.record.backups;
    if !named.is_empty() && lie.damaged.is_empty() && !lie.records.iter().chain(&lie.expired).any(|record| named.contains(&record.id)) {
        return Ok(None);
    }
    let end = ExpiryEnd { number: Some(number), end: End::Undone, at: host_now, host: crate::writer::host() };
    let decided = repository.end_expiry(number, &end).await.context("take it back")?;
    Ok(Some((known.record, decided == End::Undone)))
}

#[cfg(test)]
pub(crate) mod tests;
