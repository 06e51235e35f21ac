//! A verification as a whole: the look, what is remembered of earlier ones, the reading.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant, SystemTime};

use chrono::Utc;
use tokio_util::sync::CancellationToken;
use walkeep_core::layout::{BackupId, ObjectName};
use walkeep_core::verify::{Finding, Findings, Kind, Severity};
use walkeep_core::{Lsn, TimelineId};

use super::Report;
use super::contents::Contents;
use super::deep::{Deep, Done, deep};
use super::memory::Memory;
use super::pace::Pace;
use super::quick::{Look, Quick, confirmed};
use super::refused::Refused;
use crate::repository::prove::Proof;
use crate::repository::{ClusterRepository, Error, Result};

/// So much of what was damaged is read again by a look.
const READ_AGAIN: usize = 100;

/// What is to be verified.
pub struct Wish<'a> {
    /// This backup alone, and what it needs.
    pub backup: Option<&'a BackupId>,
    /// Whether everything is read, and how.
    pub read: Option<Read<'a>>,
    /// Ends it.
    pub cancel: &'a CancellationToken,
    /// Is told how many objects were listed.
    pub listed: &'a (dyn Fn(u64) + Sync),
    /// Is told how far reading is, of how many bytes.
    pub reading: &'a (dyn Fn(&Done, u64) + Sync),
    /// A timeline and up to where its WAL is known to be stored; nothing where nobody says so.
    pub durable: &'a (dyn Fn() -> Option<(TimelineId, Lsn)> + Sync),
    /// Since when a repository, by its url, lacks what another one has and is about to be brought there.
    pub behind: &'a (dyn Fn(&str) -> Option<SystemTime> + Sync),
}

impl<'a> Wish<'a> {
    /// A look at everything.
    pub fn look(cancel: &'a CancellationToken) -> Self {
        Self { backup: None, read: None, cancel, listed: &|_| {}, reading: &|_, _| {}, durable: &|| None, behind: &|_| None }
    }
}

/// How everything is read.
pub struct Read<'a> {
    /// What was read whole less long ago is left out.
    pub older_than: Option<Duration>,
    /// Bytes a second.
    pub pace: &'a Pace,
    /// Objects at a time.
    pub parallel: usize,
    /// No further object is read once so many bytes were, given how many are stored.
    pub most: Option<&'a (dyn Fn(u64) -> u64 + Sync)>,
    /// Whether to wait, as something else is more urgent.
    pub hold: &'a (dyn Fn() -> bool + Sync),
    /// Whether the repository of this number is read at all.
    pub of: &'a (dyn Fn(usize) -> bool + Sync),
}

impl<'a> Read<'a> {
    /// Everything, of every repository.
    pub fn all(pace: &'a Pace, parallel: usize) -> Self {
        Self { older_than: None, pace, parallel, most: None, hold: &|| false, of: &|_| true }
    }
}

/// Verifies one repository, and remembers what came of it.
pub async fn verify(repository: &Arc<ClusterRepository>, wish: &Wish<'_>, memory: &mut Memory) -> Result<Report> {
    verify_one(repository, 1, wish, memory, None).await.map(|(report, _)| report)
}

/// The same, of the one with this number, and with what was seen there.
pub(super) async fn verify_one(
    repository: &Arc<ClusterRepository>,
    number: usize,
    wish: &Wish<'_>,
    memory: &mut Memory,
    contents: Option<&Contents>,
) -> Result<(Report, Quick)> {
    let (began, clock) = (Utc::now(), Instant::now());
    let (repository, refused) = Refused::over(repository);
    let repository = &repository;
    let reading = wish.read.as_ref().filter(|reading| (reading.of)(number));
    let older_than = reading.map_or(Some(Duration::MAX), |reading| reading.older_than);
    let look = Look { repository, backup: wish.backup, cancel: wish.cancel, tell: wish.listed, older_than, durable: wish.durable };
    let mut quick = looked(&look, &refused, memory).await?;
    let mut read = None;
    if let Some(reading) = reading {
        let total = quick.seen.listing.bytes;
        let how = Deep {
            repository,
            backup: wish.backup,
            older_than: reading.older_than,
            pace: reading.pace,
            parallel: reading.parallel,
            most: reading.most.map(|most| most(total)),
            // Only where all of each is read.
            contents: contents.filter(|_| reading.older_than.is_none() && reading.most.is_none()).map(|contents| (contents, number)),
            hold: reading.hold,
            locks_are_hidden: &AtomicBool::new(false),
            cancel: wish.cancel,
            tell: &|done| (wish.reading)(done, total),
        };
        let (mut damaged, known) = (Findings::default(), memory.outcome.read_damage.clone());
        let done = deep(&how, &quick, memory, &mut damaged).await?;
        // Whether it is damaged nobody knows; what was, is until it was read.
        let was_known = |finding: &Finding| known.iter().any(|known| known.key == finding.key);
        damaged.retain(|finding| !refused.has(&finding.key) || was_known(finding));
        memory.outcome.read_damage.retain(|finding| !refused.has(&finding.key) || was_known(finding));
        if !done.interrupted && wish.backup.is_none() && reading.most.is_none() {
            // All of it was seen now, and what could not be read stays as it was known.
            memory.outcome.read_damage = damaged.iter().cloned().collect();
            memory.outcome.read_at = Some(began);
            if reading.older_than.is_none() {
                memory.outcome.unread_since = Some(began);
            }
        }
        if done.gone > 0 && !done.interrupted {
            // On its way out, or lost.
            quick = looked(&look, &refused, memory).await?;
        }
        quick.not_checked += done.unreadable;
        read = Some(done);
    } else {
        quick.not_checked += quick.seen.unreadable;
        if wish.backup.is_none() {
            read_again(repository, memory, wish.cancel).await?;
        }
    }
    let mut findings = quick.findings.clone();
    let prefix = wish.backup.map(|backup| repository.layout().backup_prefix(backup));
    for finding in &memory.outcome.read_damage {
        let belongs = |backup: &BackupId| finding.lost.backups.contains(backup);
        if wish.backup.is_none_or(belongs) || prefix.as_ref().is_some_and(|prefix| finding.key.starts_with(prefix)) {
            findings.add(finding.clone());
        }
    }
    let unharmed = findings.count(Severity::Minor) == 0;
    // What nobody here can open is not called whole.
    let whole = unharmed && quick.not_checked == 0 && refused.count() == 0 && read.as_ref().is_none_or(|read| read.archived == 0);
    if read.is_some() {
        memory.outcome.not_checked = quick.not_checked;
    }
    memory.keep().await;
    let (listed, more_findings) = (quick.listed(), findings.unnamed());
    let report = Report {
        cluster: repository.cluster().to_string(),
        repository: repository.repository().url(),
        system_identifier: repository.identity().system_identifier,
        began,
        seconds: clock.elapsed().as_secs_f64(),
        backup: wish.backup.cloned(),
        backup_is_known: wish.backup.is_some_and(|backup| quick.seen.catalog.backup(backup).is_some()),
        whole,
        listed,
        read,
        not_checked: quick.not_checked,
        refused: refused.count(),
        problem: refused.words(),
        findings: findings.into_sorted(),
        more_findings,
    };
    Ok((report, quick))
}

/// A look, with what was there before and has vanished.
async fn looked(look: &Look<'_>, refused: &Refused, memory: &mut Memory) -> Result<Quick> {
    let known = async |memory: &mut Memory| {
        let mut quick = confirmed(look, memory).await?;
        quick.findings.retain(|finding| !refused.has(&finding.key));
        Ok::<_, Error>(quick)
    };
    let mut quick = known(memory).await?;
    if look.backup.is_none() {
        let mut vanished = memory.vanished(&quick.seen, &quick.mended);
        if vanished.count(Severity::Minor) > 0 {
            // What let it go may have been noted between two of the look's listings.
            quick = known(memory).await?;
            vanished = memory.vanished(&quick.seen, &quick.mended).seen_by(&vanished);
        }
        quick.findings.extend(vanished.into_sorted());
        memory.looked(&quick.seen, &quick.findings, Utc::now());
        memory.outcome.unread_since = quick.unread_since.map(Into::into);
    }
    Ok(quick)
}

/// Reads again what was damaged when it was last read: it may have been mended.
async fn read_again(repository: &Arc<ClusterRepository>, memory: &mut Memory, cancel: &CancellationToken) -> Result<()> {
    // Of locks only a reading knows until when they are to last, and what others hold.
    let damaged = memory.outcome.read_damage.iter().filter(|finding| !matches!(finding.kind, Kind::Lock | Kind::Differs));
    let keys: Vec<String> = damaged.take(READ_AGAIN).map(|finding| finding.key.clone()).collect();
    for key in keys {
        if cancel.is_cancelled() {
            return Err(Error::cancelled("verify", key));
        }
        let proof = match repository.layout().parse(&key) {
            Some(ObjectName::Pack(pack)) => repository.prove_pack(pack, Vec::new()).await.map(|pack| pack.proof),
            // What a manifest says of packs only reading these tells.
            Some(ObjectName::BackupManifest(..)) => continue,
            Some(name) => repository.prove(&name).await,
            None => Ok(Proof::Gone),
        };
        match proof {
            Ok(Proof::Whole | Proof::Gone) => memory.forget_damage(&key),
            Ok(Proof::Unreadable) | Err(Error::Corrupt { .. }) => {}
            // Nobody knows until it is thawed.
            Err(error) if error.archived().is_some() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
