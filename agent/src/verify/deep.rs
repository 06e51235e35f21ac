//! Everything read: every object of WAL, of the index and of names, every pack with all extents that manifests say are in it.
//!
//! A page of a listing is read at a time, so that memory does not grow with the repository; packs in as many rounds as it takes to keep in memory what manifests
//! say of a round's packs. What was read whole is remembered ([`Memory`]), also if it ends early.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use futures::{StreamExt, stream};
use serde::Serialize;
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;
use walkeep_core::backup::BackupRecord;
use walkeep_core::catalog::legs;
use walkeep_core::layout::{BackupId, ObjectName, PackId};
use walkeep_core::manifest::{EntryKind, Extent};
use walkeep_core::verify::{Finding, Findings, Judge, Kind, Severity, possible_bytes};
use walkeep_core::{TimelineHistory, WalFileName};
use walkeep_store::{ListRequest, Listed};

use super::contents::Contents;
use super::memory::Memory;
use super::pace::{Pace, Room};
use super::quick::Quick;
use crate::repository::prove::{PackProof, Proof};
use crate::repository::{ClusterRepository, Error, Result};
use crate::retry::{Backoff, retry};

/// Extents in memory at a time: some 50 MB.
const EXTENTS: u64 = 500_000;
/// What seems to be damaged is read so often: the way to it may be what is.
const READS: u32 = 3;
const BETWEEN_READS: Duration = Duration::from_millis(200);
/// For so long the repository may be out of reach.
const PATIENCE: Duration = Duration::from_secs(300);
const DAY: i64 = 24 * 3600;
/// What is remembered is written so often.
const KEPT_EVERY: Duration = Duration::from_secs(60);
/// Between two looks whether there still is something more urgent.
const HELD: Duration = Duration::from_secs(1);

/// What a reading reads: records and manifests are read by each look.
pub fn is_read(name: &ObjectName) -> bool {
    matches!(name, ObjectName::Wal(_) | ObjectName::OtherPartial { .. } | ObjectName::Part(_) | ObjectName::Pack(_))
        || matches!(name, ObjectName::Digest(_) | ObjectName::Blocks(_) | ObjectName::Names(_))
        || matches!(name, ObjectName::ArtifactPiece(..) | ObjectName::ArtifactSummary(_))
        || matches!(name, ObjectName::DrillReport(..) | ObjectName::Sample(_))
}

/// How it is read.
pub struct Deep<'a> {
    /// What.
    pub repository: &'a Arc<ClusterRepository>,
    /// This backup alone, and what it needs.
    pub backup: Option<&'a BackupId>,
    /// What was read whole less long ago is left out.
    pub older_than: Option<Duration>,
    /// Bytes a second.
    pub pace: &'a Pace,
    /// Objects at a time.
    pub parallel: usize,
    /// No further object is read once so many bytes were.
    pub most: Option<u64>,
    /// Whether to wait, as something else is more urgent.
    pub hold: &'a (dyn Fn() -> bool + Sync),
    /// What the other repositories hold, and this one's number.
    pub contents: Option<(&'a Contents, usize)>,
    /// Set when nobody lets us look at locks.
    pub locks_are_hidden: &'a AtomicBool,
    /// Ends it; what was read until then is remembered.
    pub cancel: &'a CancellationToken,
    /// Is told how far it is.
    pub tell: &'a (dyn Fn(&Done) + Sync),
}

/// What was read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Done {
    /// Objects.
    pub objects: u64,
    /// Their stored bytes.
    pub bytes: u64,
    /// Objects that were read whole lately, and not again.
    pub known: u64,
    /// Bytes of those.
    pub known_bytes: u64,
    /// Objects that this host cannot decrypt. Packs among them have the hash that names them.
    pub unreadable: u64,
    /// Objects that lie in an archived storage class, and were not read.
    pub archived: u64,
    /// Objects that were listed and have gone since.
    pub gone: u64,
    /// Whether it ended before its end.
    pub interrupted: bool,
}

impl Done {
    /// Together with what was read elsewhere.
    pub fn and(self, other: Self) -> Self {
        Self {
            objects: self.objects + other.objects,
            bytes: self.bytes + other.bytes,
            known: self.known + other.known,
            known_bytes: self.known_bytes + other.known_bytes,
            unreadable: self.unreadable + other.unreadable,
            archived: self.archived + other.archived,
            gone: self.gone + other.gone,
            interrupted: self.interrupted || other.interrupted,
        }
    }
}

/// Counts of the tasks.
#[derive(Default)]
struct Counts {
    objects: AtomicU64,
    bytes: AtomicU64,
    known: AtomicU64,
    known_bytes: AtomicU64,
    unreadable: AtomicU64,
    archived: AtomicU64,
    gone: AtomicU64,
}

impl Counts {
    fn done(&self, interrupted: bool) -> Done {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Done {
            objects: of(&self.objects),
            bytes: of(&self.bytes),
            known: of(&self.known),
            known_bytes: of(&self.known_bytes),
            unreadable: of(&self.unreadable),
            archived: of(&self.archived),
            gone: of(&self.gone),
            interrupted,
        }
    }
}

/// An object's damage, as it was read.
struct Damage {
    name: ObjectName,
    reason: String,
}

/// What is read of one backup.
struct Wanted {
    prefix: String,
    keys: HashSet<String>,
    packs: HashSet<PackId>,
}

/// Reads; adds what is damaged to what was found, and notes in `memory` what is whole.
pub async fn deep(how: &Deep<'_>, quick: &Quick, memory: &mut Memory, findings: &mut Findings) -> Result<Done> {
    let wanted = match how.backup {
        Some(backup) => Some(wanted(how.repository, quick, backup).await?),
        None => None,
    };
    let mut reading = Reading {
        how,
        memory,
        counts: Counts::default(),
        room: Room::default(),
        damage: Vec::new(),
        unlocked: Vec::new(),
        not_seen: Vec::new(),
        wrong: BTreeMap::new(),
        differs: Vec::new(),
        kept: Instant::now(),
    };
    let read = reading.everything(quick, wanted.as_ref()).await;
    let Reading { damage, unlocked, not_seen, wrong, differs, counts, .. } = reading;
    memory.keep().await;
    let interrupted = match read {
        Ok(is_all) => !is_all,
        Err(_) if how.cancel.is_cancelled() => true,
        Err(error) => return Err(error),
    };
    let mut judged = judge(how, quick, damage, wrong).await?;
    let judge = Judge::new(&quick.seen.catalog, how.repository.layout());
    judged.extend(unlocked.into_iter().map(|(name, reason)| judge.unlocked(&name, reason)));
    judged.extend(differs.into_iter().map(|(name, other)| judge.differs(&name, other)));
    judged.extend(not_seen);
    judged.iter().for_each(|finding| memory.damaged(finding));
    findings.extend(judged);
    Ok(counts.done(interrupted))
}

struct Reading<'a, 'h> {
    how: &'a Deep<'h>,
    memory: &'a mut Memory,
    counts: Counts,
    room: Room,
    damage: Vec<Damage>,
    /// What is whole and not locked as was promised.
    unlocked: Vec<(ObjectName, String)>,
    /// What is known to be wrong with objects that cannot be read at once.
    not_seen: Vec<Finding>,
    /// Backups whose manifests say something else than packs that are whole, with the first pack.
    wrong: BTreeMap<BackupId, PackId>,
    /// What holds something else than in another repository.
    differs: Vec<(ObjectName, usize)>,
    kept: Instant,
}

/// A backup, and when it ended.
type Backup = (BackupId, SystemTime);

/// Extents of the packs of a round, each with the number of a backup that has it.
type Extents = BTreeMap<PackId, Vec<(Extent, u32)>>;

impl Reading<'_, '_> {
    /// Whether all of it was read.
    async fn everything(&mut self, quick: &Quick, wanted: Option<&Wanted>) -> Result<bool> {
        // A share begins with the one on one day and with the other on the next: where more WAL comes than a share reads, packs have their turn all the same.
        let packs_first = self.how.most.is_some() && (chrono::Utc::now().timestamp() / DAY) % 2 == 0;
        for packs in [packs_first, !packs_first] {
            let is_all = if packs { self.packs(quick, wanted).await? } else { self.but_packs(wanted).await? };
            if !is_all {
                return Ok(false);
            }
        }
        Ok(true)
    }

    async fn but_packs(&mut self, wanted: Option<&Wanted>) -> Result<bool> {
        let layout = self.how.repository.layout().clone();
        // A share is not spent on what this host cannot open.
        let opens = self.how.most.is_none() || self.how.repository.can_read();
        for prefix in [layout.wal_prefix(), layout.index_prefix(), layout.names_prefix(), layout.artifacts_prefix()] {
            let is_wanted = |name: &ObjectName, key: &str| {
                let is_wanted = wanted.is_none_or(|wanted| wanted.keys.contains(key));
                is_wanted && !matches!(name, ObjectName::Pack(_)) && (opens || !name.holds_data())
            };
            if !self.pages(prefix, &is_wanted, &Extents::new(), &[]).await? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    async fn packs(&mut self, quick: &Quick, wanted: Option<&Wanted>) -> Result<bool> {
        let layout = self.how.repository.layout().clone();
        let rounds = quick.extents.div_ceil(EXTENTS).max(1);
        let backups: Vec<Backup> = quick.seen.catalog.backups().iter().map(|backup| (backup.id.clone(), backup.ended_at.into())).collect();
        for round in 0..rounds {
            let in_round = move |pack: &PackId| u64::from(u16::from_be_bytes([pack.sha256()[0], pack.sha256()[1]])) % rounds == round;
            let extents = self.extents(quick, &in_round).await?;
            let is_wanted = |name: &ObjectName, _: &str| match name {
                ObjectName::Pack(pack) => in_round(pack) && wanted.is_none_or(|wanted| wanted.packs.contains(pack)),
                _ => false,
            };
            if !self.pages(layout.packs_prefix(), &is_wanted, &extents, &backups).await? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// What manifests say of the packs of a round. One that cannot be read was told of.
    async fn extents(&self, quick: &Quick, in_round: &(impl Fn(&PackId) -> bool + Clone + Send + Sync + 'static)) -> Result<Extents> {
        let mut extents = Extents::new();
        for (number, record) in quick.seen.catalog.backups().iter().enumerate() {
            let manifest = match self.how.repository.get_manifest(record).await {
                Ok(manifest) => manifest,
                Err(Error::Corrupt { .. } | Error::CannotDecrypt { .. }) => continue,
                Err(error) => return Err(error),
            };
            let (in_round, number) = (in_round.clone(), number as u32);
            let gathered = spawn_blocking(move || {
                let Ok(entries) = manifest.iter() else { return extents };
                for entry in entries.map_while(std::result::Result::ok) {
                    let EntryKind::File { content, .. } = entry.kind else { continue };
                    for extent in content.extents().iter().filter(|extent| in_round(&extent.pack)) {
                        extents.entry(extent.pack).or_default().push((*extent, number));
                    }
                }
                // What several backups share is looked at once.
                for of_pack in extents.values_mut() {
                    // Of those that share it the newest, which counts for locks.
                    of_pack.sort_unstable_by_key(|(extent, number)| {
                        (extent.offset, extent.stored, extent.plain, extent.hash, Reverse(*number))
                    });
                    of_pack.dedup_by_key(|(extent, _)| *extent);
                }
                extents
            });
            extents = gathered.await.map_err(|error| Error::Internal(error.to_string()))?;
        }
        Ok(extents)
    }

    /// Reads what is wanted of a listing, page by page. Whether it came to the end.
    async fn pages(
        &mut self,
        prefix: String,
        is_wanted: &(dyn Fn(&ObjectName, &str) -> bool + Sync),
        extents: &Extents,
        backups: &[Backup],
    ) -> Result<bool> {
        let repository = self.how.repository;
        let mut request = ListRequest { prefix, ..ListRequest::default() };
        loop {
            let page = repository.list_page(&request).await?;
            let mut due = Vec::new();
            for listed in page.objects {
                let Some(name) = repository.layout().parse(listed.key.as_str()).filter(|name| is_wanted(name, listed.key.as_str())) else {
                    continue;
                };
                if self.how.older_than.is_some_and(|time| self.memory.is_known(&listed, time)) {
                    self.counts.known.fetch_add(1, Ordering::Relaxed);
                    self.counts.known_bytes.fetch_add(listed.size, Ordering::Relaxed);
                    continue;
                }
                due.push((name, listed));
            }
            if !self.read(due, extents, backups).await? {
                return Ok(false);
            }
            match page.next {
                Some(next) => request.start_after = Some(next),
                None => return Ok(true),
            }
        }
    }

    /// Reads these, several at a time. Whether all of them were.
    async fn read(&mut self, due: Vec<(ObjectName, Listed)>, extents: &Extents, backups: &[Backup]) -> Result<bool> {
        let (how, counts, room) = (self.how, &self.counts, &self.room);
        let enough = || how.cancel.is_cancelled() || how.most.is_some_and(|most| counts.bytes.load(Ordering::Relaxed) >= most);
        let one = |(name, listed): (ObjectName, Listed)| async move {
            if enough() {
                return Ok(None);
            }
            while (how.hold)() && !how.cancel.is_cancelled() {
                tokio::select! {
                    () = tokio::time::sleep(HELD) => {}
                    () = how.cancel.cancelled() => return Ok(None),
                }
            }
            how.pace.wait(listed.size, how.cancel).await;
            let _room = room.take(listed.size).await;
            let read = prove(how, &name, &listed, extents).await;
            let lock = match &read {
                Ok(PackProof { proof: Proof::Whole | Proof::Unreadable, .. }) => lock_fault(how, &name, &listed, extents, backups).await?,
                _ => None,
            };
            counts.objects.fetch_add(1, Ordering::Relaxed);
            counts.bytes.fetch_add(listed.size, Ordering::Relaxed);
            (how.tell)(&counts.done(false));
            Ok::<_, Error>(Some((name, listed, read, lock)))
        };
        let mut reads = stream::iter(due.into_iter().map(one)).buffer_unordered(how.parallel.max(1));
        let mut is_all = true;
        while let Some(read) = reads.next().await {
            let Some((name, listed, read, lock)) = read? else {
                is_all = false;
                continue;
            };
            self.unlocked.extend(lock.iter().map(|reason| (name.clone(), reason.clone())));
            match read {
                Ok(PackProof { proof: Proof::Whole, others, content }) => {
                    let compared = how.contents.zip(content);
                    let differs =
                        compared.and_then(|((contents, number), content)| contents.differs(number, &name, listed.key.as_str(), &content));
                    self.differs.extend(differs.map(|other| (name.clone(), other)));
                    // With a manifest that says something else of it than it has it is to be read again: which of them, only that tells.
                    if others.is_empty() && lock.is_none() && differs.is_none() {
                        self.memory.whole(&listed);
                    }
                    if let (ObjectName::Pack(pack), false) = (&name, others.is_empty()) {
                        let of_pack = extents.get(pack).map(Vec::as_slice).unwrap_or_default();
                        for (_, number) in others.iter().filter_map(|other| of_pack.get(*other)) {
                            self.wrong.extend(backups.get(*number as usize).map(|(backup, _)| (backup.clone(), *pack)));
                        }
                    }
                }
                Ok(PackProof { proof: Proof::Unreadable, .. }) => {
                    // A pack has the hash that names it, and more cannot be known here.
                    if matches!(name, ObjectName::Pack(_)) && lock.is_none() {
                        self.memory.whole(&listed);
                    }
                    counts.unreadable.fetch_add(1, Ordering::Relaxed);
                }
                Ok(PackProof { proof: Proof::Gone, .. }) => {
                    counts.gone.fetch_add(1, Ordering::Relaxed);
                    self.memory.forget_damage(listed.key.as_str());
                }
                Err(Error::Corrupt { reason, .. }) => self.damage.push(Damage { name, reason }),
                Err(error) if error.archived().is_some() => {
                    counts.archived.fetch_add(1, Ordering::Relaxed);
                    // It was read before it was archived: nobody has seen it mended.
                    let known = self.memory.outcome.read_damage.iter().find(|finding| finding.key == listed.key.as_str());
                    self.not_seen.extend(known.cloned());
                }
                Err(error) => return Err(error),
            }
        }
        if self.kept.elapsed() >= KEPT_EVERY {
            self.memory.keep().await;
            self.kept = Instant::now();
        }
        Ok(is_all)
    }
}

/// Reads one, again where the way to it may be at fault.
async fn prove(how: &Deep<'_>, name: &ObjectName, listed: &Listed, extents: &Extents) -> Result<PackProof> {
    let (repository, identity) = (how.repository, how.repository.identity());
    if !possible_bytes(name, identity.segment_size, identity.form).contains(&listed.size) {
        return Err(Error::corrupt(listed.key.as_str(), format!("it has {} bytes, which no such object has", listed.size)));
    }
    let once = || async {
        match name {
            ObjectName::Pack(pack) => {
                let of_pack = extents.get(pack).map(|of_pack| of_pack.iter().map(|(extent, _)| *extent).collect());
                repository.prove_pack(*pack, of_pack.unwrap_or_default()).await
            }
            name => {
                let proven = repository.prove_with_content(name).await;
                proven.map(|(proof, content)| PackProof { proof, others: Vec::new(), content })
            }
        }
    };
    for read in 1.. {
        let proven = retry("verify", Backoff::within(PATIENCE), how.cancel, Error::is_transient, once).await;
        match proven {
            Err(Error::Corrupt { .. }) if read < READS => tokio::time::sleep(BETWEEN_READS).await,
            proven => return proven,
        }
    }
    unreachable!("the last read is answered")
}

/// What of its lock is not as promised; of a pack the newest backup that uses it counts. Who may not look at locks is told of it, once for each reading.
async fn lock_fault(how: &Deep<'_>, name: &ObjectName, listed: &Listed, extents: &Extents, backups: &[Backup]) -> Result<Option<String>> {
    if how.repository.lock_promised(name).is_none() || how.locks_are_hidden.load(Ordering::Relaxed) {
        return Ok(None);
    }
    let used = match name {
        ObjectName::Pack(pack) => {
            let of_pack = extents.get(pack).map(Vec::as_slice).unwrap_or_default();
            of_pack.iter().filter_map(|(_, number)| backups.get(*number as usize)).map(|(_, ended)| *ended).max()
        }
        _ => None,
    };
    let ask = || how.repository.lock_fault(name, listed.modified, used);
    match retry("verify", Backoff::within(PATIENCE), how.cancel, Error::is_transient, ask).await {
        Err(error) if error.is_denied() => {
            if !how.locks_are_hidden.swap(true, Ordering::Relaxed) {
                tracing::warn!(%error, "verify: locks are not looked at: that needs s3:GetObjectRetention");
            }
            Ok(None)
        }
        looked => looked,
    }
}

/// What the damage means.
async fn judge(how: &Deep<'_>, quick: &Quick, damage: Vec<Damage>, wrong: BTreeMap<BackupId, PackId>) -> Result<Vec<Finding>> {
    let (repository, catalog) = (how.repository, &quick.seen.catalog);
    let judge = Judge::new(catalog, repository.layout());
    let packs: HashSet<PackId> = damage
        .iter()
        .filter_map(|damage| match damage.name {
            ObjectName::Pack(pack) => Some(pack),
            _ => None,
        })
        .collect();
    let mut users: BTreeMap<PackId, BTreeSet<BackupId>> = BTreeMap::new();
    // Whoever stops cannot ask any more whose they are.
    let is_known = !how.cancel.is_cancelled();
    if !packs.is_empty() && is_known {
        for record in catalog.backups() {
            for pack in packs_of(repository, record).await?.intersection(&packs) {
                users.entry(*pack).or_default().insert(record.id.clone());
            }
        }
    }
    let mut found: Vec<Finding> = Vec::new();
    for Damage { name, reason } in damage {
        match name {
            ObjectName::Pack(pack) => {
                let key = repository.layout().key(&name);
                let mut finding = judge.pack(Kind::Content, key, reason, users.remove(&pack).unwrap_or_default());
                if !is_known {
                    (finding.severity, finding.advice) = (Severity::Damage, "which backups need it was not looked up".to_owned());
                }
                found.push(finding);
            }
            name => found.extend(judge.finding(Kind::Content, &name, reason)),
        }
    }
    for (backup, pack) in wrong {
        let reason = format!("it says something else of {} than is stored there", repository.layout().key(&ObjectName::Pack(pack)));
        found.extend(judge.finding(Kind::Content, &ObjectName::BackupManifest(backup, 1), reason));
    }
    Ok(found)
}

/// The packs that a backup needs, as far as its manifest can be read.
async fn packs_of(repository: &ClusterRepository, record: &BackupRecord) -> Result<HashSet<PackId>> {
    Ok(packs_named_by(repository, record).await?.0)
}

/// How much of a manifest could be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Known {
    /// All of it.
    All,
    /// Not all, as it is damaged.
    Part,
    /// Nothing, as this host cannot decrypt it.
    Nothing,
}

/// The packs that a backup's manifest names, and how much of it could be read.
pub(super) async fn packs_named_by(repository: &ClusterRepository, record: &BackupRecord) -> Result<(HashSet<PackId>, Known)> {
    let manifest = match repository.get_manifest(record).await {
        Ok(manifest) => manifest,
        Err(Error::Corrupt { .. }) => return Ok((HashSet::new(), Known::Part)),
        Err(Error::CannotDecrypt { .. }) => return Ok((HashSet::new(), Known::Nothing)),
        Err(error) => return Err(error),
    };
    let gathered = spawn_blocking(move || {
        let mut packs = HashSet::new();
        for entry in manifest.iter().into_iter().flatten() {
            match entry.map(|entry| entry.kind) {
                Ok(EntryKind::File { content, .. }) => packs.extend(content.extents().iter().map(|extent| extent.pack)),
                Ok(_) => {}
                Err(_) => return (packs, Known::Part),
            }
        }
        (packs, Known::All)
    });
    gathered.await.map_err(|error| Error::Internal(error.to_string()))
}

/// What one backup needs: its packs, its own WAL, the histories that lead to it.
async fn wanted(repository: &Arc<ClusterRepository>, quick: &Quick, backup: &BackupId) -> Result<Wanted> {
    let catalog = &quick.seen.catalog;
    let mut wanted = Wanted { prefix: repository.layout().backup_prefix(backup), keys: HashSet::new(), packs: HashSet::new() };
    let Some(record) = catalog.backup(backup) else { return Ok(wanted) };
    wanted.packs = packs_of(repository, record).await?;
    let path: Option<TimelineHistory> = catalog.history(record.stops_on());
    for (timeline, _) in path.iter().flat_map(legs) {
        wanted.keys.insert(repository.layout().wal_key(WalFileName::History(timeline)));
    }
    let files = path.and_then(|path| catalog.coverage(&path, record.start_lsn, record.stop_lsn).ok());
    for file in files.into_iter().flatten() {
        wanted.keys.insert(repository.layout().wal_key(WalFileName::Segment(file.segment)));
        wanted.keys.extend(file.parts.iter().map(|part| repository.layout().key(&ObjectName::Part(*part))));
    }
    Ok(wanted)
}

impl std::fmt::Debug for Wanted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} with {} files of WAL and {} packs", self.prefix, self.keys.len(), self.packs.len())
    }
}
