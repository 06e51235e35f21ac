//! Removes the objects of what left the catalog: once its time of grace is over, and no backup is under way that may refer to them.
//!
//! First the records of backups, so that they do not come back whatever happens next; then WAL, manifests and what was said of the backups; packs at last, by
//! [`sweep`], which keeps those that any manifest names. What the store does not let go stays named by the record, and is tried again by the next run.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use chrono::{DateTime, Utc};
use serde::Serialize;
use tokio_util::sync::CancellationToken;
use walkeep_core::artifact::ArtifactPlace;
use walkeep_core::expiry::{End, Expired, ExpiredWal, Expiry, ExpiryEnd};
use walkeep_core::layout::BackupId;
use walkeep_store::Key;

use super::{alive, held, is_over, present};
use crate::backup::sweep::{self, Swept};
use crate::repository::ClusterRepository;
use crate::repository::expiry::KnownExpiry;

/// Keys that are removed together.
const BATCH: usize = 1000;
/// A backup that began so shortly behind a record may not have seen it in a listing yet.
const UNSEEN: Duration = Duration::from_secs(600);
/// So many of what could not be removed are named.
const NAMED: usize = 10;

/// What was removed, and what was not.
#[derive(Debug, Clone, Default, Serialize)]
pub struct CarriedOut {
    /// Backups.
    pub backups: Vec<BackupId>,
    /// Artifacts.
    pub artifacts: Vec<ArtifactPlace>,
    /// Objects, but for packs.
    pub objects: u64,
    /// Packs, and their bytes.
    pub packs: u64,
    /// Bytes of packs.
    pub pack_bytes: u64,
    /// Objects that the store did not let go.
    pub refused: u64,
    /// The first of them, with the store's reason.
    pub refused_named: Vec<String>,
    /// Records whose objects stay for now.
    pub waits: Vec<Waits>,
    /// Why packs were not looked at, if they were not.
    pub packs_wait: Option<String>,
}

/// Of which records objects are removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Of all, and packs that nothing needs.
    Everything,
    /// Of those that took out nothing but artifacts.
    Artifacts,
}

impl CarriedOut {
    /// Logs what stays since no other clock bears out this host's.
    pub fn log_doubts(&self) {
        for Waits { number, until, known, .. } in &self.waits {
            if let (Some(until), Some(known)) = (until, known) {
                tracing::info!(
                    number, until = %until.to_rfc3339(), known = %known.to_rfc3339(),
                    "retention: the time of grace is over by this host's clock, and by nothing that is known of the server and the store: the objects stay"
                );
            }
        }
    }
}

/// A record whose objects stay for now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Waits {
    /// Its number.
    pub number: u32,
    /// When its time of grace is over.
    pub until: Option<DateTime<Utc>>,
    /// What is known of the present, where it is over by this host's clock and by nothing else.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub known: Option<DateTime<Utc>>,
    /// The backup without a record that may be under way, and refer to them.
    pub for_backup: Option<BackupId>,
    /// If it is not, they go behind this moment: so long after it stored something it is given up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub given_up: Option<DateTime<Utc>>,
}

/// Removes what may be removed now. In the folder `spool` backups of this host hold their lock.
pub async fn carry_out(
    repository: &Arc<ClusterRepository>,
    scope: Scope,
    (grace, spool): (Duration, &Path),
    host_now: DateTime<Utc>,
    cancel: &CancellationToken,
    tell: &(dyn Fn(u64) + Sync),
) -> Result<CarriedOut> {
    let (known, _) = repository.expiries().await.context("read what left the catalog")?;
    let mut work = Work { repository, spool, cancel, tell, done: CarriedOut::default() };
    let mut over = Vec::new();
    // Asked for where something would go, and not before.
    let mut now = None;
    let all = known.clone();
    for known in known {
        let number = known.record.number;
        // Memories too: or each run would add one.
        if scope == Scope::Artifacts && !known.record.is_of_artifacts() && !known.record.is_memory() {
            continue;
        }
        if !known.hides() || known.record.is_memory() {
            over.push(known);
            continue;
        }
        if known.merged {
            // What a repository that was away still has of it.
            if work.remove(&known.record).await? {
                over.push(known);
            }
            continue;
        }
        if known.end.is_none() {
            let mut waits = Work::in_grace(&known, grace, host_now, None)?;
            if waits.is_none() {
                let now = match now {
                    Some(now) => now,
                    None => *now.insert(present::known(repository, &all, host_now).await.context("find out how late it is")?),
                };
                waits = match Work::in_grace(&known, grace, now, Some(now))? {
                    None => work.waits_for_backup(&known).await?,
                    doubted => doubted,
                };
            }
            if let Some(waits) = waits {
                work.done.waits.push(waits);
                continue;
            }
            if let Some(kept) = held(repository, &known.record, now.unwrap_or(host_now)).await? {
                tracing::warn!(number, %kept, "retention: a backup that left the catalog is to be kept: all that left with it is taken back");
                super::undo(repository, number, host_now).await?;
                continue;
            }
            let end = ExpiryEnd { number: Some(number), end: End::Removing, at: host_now, host: crate::writer::host() };
            if repository.end_expiry(number, &end).await.context("begin to remove")? == End::Undone {
                continue;
            }
        }
        if work.remove(&known.record).await? {
            over.push(known);
        }
    }
    merge(repository, over, host_now).await?;
    let mut done = work.done;
    if scope == Scope::Artifacts {
        return Ok(done);
    }
    // In every run: packs that were too young when their backup went, and those of a run that was killed.
    match sweep::sweep_unneeded(repository, cancel).await {
        Ok(Swept { packs, bytes, waits_for, .. }) => {
            (done.packs, done.pack_bytes) = (packs, bytes);
            done.packs_wait = waits_for.map(|id| {
                format!(
                    "the backup {id} was begun and has no record: if it was interrupted, packs are looked through once it is a week old"
                )
            });
        }
        Err(error) => done.packs_wait = Some(format!("{error:#}")),
    }
    Ok(done)
}

struct Work<'a> {
    repository: &'a Arc<ClusterRepository>,
    spool: &'a Path,
    cancel: &'a CancellationToken,
    tell: &'a (dyn Fn(u64) + Sync),
    done: CarriedOut,
}

impl Work<'_> {
    /// Whether the time of grace of a record still runs at `now`; `known` if that is not this host's clock.
    fn in_grace(record: &KnownExpiry, grace: Duration, now: DateTime<Utc>, known: Option<DateTime<Utc>>) -> Result<Option<Waits>> {
        // Of two clocks the one by which it is younger.
        let began = record.record.at.max(record.put.into());
        let over = began.checked_add_signed(chrono::TimeDelta::from_std(grace)?).context("a time of grace beyond all years")?;
        // Without a grace it does not matter by how little a clock is ahead.
        let runs = now < over && !grace.is_zero();
        Ok(runs.then_some(Waits { number: record.record.number, until: Some(over), known, for_backup: None, given_up: None }))
    }

    /// The backup under way for which the objects of a record stay for now.
    async fn waits_for_backup(&self, known: &KnownExpiry) -> Result<Option<Waits>> {
        if known.record.is_of_artifacts() {
            return Ok(None);
        }
        let may_refer = |began: SystemTime| began <= known.put + UNSEEN;
        for backup in alive(self.repository).await?.into_iter().filter(|found| may_refer(found.first)) {
            if !is_over(self.repository, &backup.id, self.spool).await? {
                let (number, given_up) = (known.record.number, Some((backup.last + sweep::LEFT).into()));
                return Ok(Some(Waits { number, until: None, known: None, for_backup: Some(backup.id), given_up }));
            }
        }
        Ok(None)
    }

    /// Removes what a record names; whether all of it is gone.
    async fn remove(&mut self, record: &Expiry) -> Result<bool> {
        let refused = self.done.refused;
        let records = self.repository.records_of(&record.backups)?;
        for batch in records.chunks(BATCH) {
            self.delete(batch).await.context("remove records of backups")?;
        }
        for wal in &record.wal {
            self.remove_wal(*wal).await.with_context(|| format!("remove WAL of timeline {} before {}", wal.timeline, wal.to))?;
        }
        for id in &record.backups {
            self.remove_backup(id).await.with_context(|| format!("remove backup {id}"))?;
        }
        for place in &record.artifacts {
            self.remove_artifact(place).await.with_context(|| format!("remove artifact {place}"))?;
        }
        Ok(self.done.refused == refused)
    }

    async fn remove_wal(&mut self, wal: ExpiredWal) -> Result<()> {
        let mut next = Some(self.repository.expired_wal(wal));
        while let Some(from) = next {
            let (keys, rest) = self.repository.expired_wal_page(wal, from).await?;
            self.delete(&keys).await?;
            next = rest;
        }
        let keys = self.repository.expired_blocks(wal).await?;
        for batch in keys.chunks(BATCH) {
            self.delete(batch).await?;
        }
        Ok(())
    }

    async fn remove_backup(&mut self, id: &BackupId) -> Result<()> {
        let refused = self.done.refused;
        for batch in self.repository.rest_of_backup(id).await?.chunks(BATCH) {
            self.delete(batch).await?;
        }
        if self.done.refused == refused {
            self.done.backups.push(id.clone());
        }
        Ok(())
    }

    async fn remove_artifact(&mut self, place: &ArtifactPlace) -> Result<()> {
        let refused = self.done.refused;
        // Its record first, and last what it is found by as long as anything of it is there.
        for step in self.repository.steps_to_remove(place).await? {
            for batch in step.chunks(BATCH) {
                self.delete(batch).await?;
            }
            if self.done.refused > refused {
                return Ok(());
            }
        }
        self.done.artifacts.push(place.clone());
        Ok(())
    }

    async fn delete(&mut self, keys: &[Key]) -> Result<()> {
        ensure!(!self.cancel.is_cancelled(), "Walkeep stops; the next `walkeep expire` goes on");
        if keys.is_empty() {
            return Ok(());
        }
        let stay = self.repository.remove_objects(keys).await?;
        self.done.objects += (keys.len() - stay.len()) as u64;
        self.done.refused += stay.len() as u64;
        let room = NAMED.saturating_sub(self.done.refused_named.len());
        self.done.refused_named.extend(stay.iter().take(room).map(|(_, error)| error.to_string()));
        (self.tell)(self.done.objects);
        Ok(())
    }
}

/// Makes one record of those whose objects are gone, which says so, and removes them. What was taken back stays for ever: whoever read it before must find
/// that it was, and its number is used up.
async fn merge(repository: &ClusterRepository, over: Vec<KnownExpiry>, host_now: DateTime<Utc>) -> Result<()> {
    let over: Vec<_> = over.into_iter().filter(KnownExpiry::hides).collect();
    // One that is alone and says only what is gone is what this would make.
    if over.len() > 1 || over.iter().any(|known| !known.record.is_memory()) {
        let mut all = Expired::default();
        over.iter().for_each(|known| all.add(&known.record));
        let number = repository.expiries().await?.1;
        let (gone, gone_backups) = (all.wal(), all.backups().cloned().collect());
        let is_remembered = |place: &&ArtifactPlace| place.id.began().is_some_and(|began| host_now - began < Expiry::REMEMBERED);
        let gone_artifacts = all.artifacts().filter(is_remembered).cloned().collect();
        let merged = Expiry { gone, gone_backups, gone_artifacts, ..Expiry::new(number, host_now, crate::writer::host()) };
        // Taken by somebody else at this moment: the next run does it.
        if !repository.put_expiry(&merged).await.context("note what is gone")? {
            return Ok(());
        }
        for known in over {
            repository.remove_expiry(known.record.number).await.context("remove a record of what is gone")?;
        }
    }
    Ok(())
}
