//! What was verified and when: so that nothing is read again before its time, and damage stays told until it was seen to be gone.
//!
//! Two files for each repository beside the spool, or where there is none in the user's cache: `verify-HASH.json` says how it went, for people and `walkeep status`;
//! `verified-HASH` has for each object that was read whole 8 bytes of a hash of its key, size and time, and the minute. Both are replaced whole. What cannot be read counts as not
//! verified, what cannot be written is lost: a help, and nothing rests on it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use walkeep_core::artifact::ArtifactPlace;
use walkeep_core::audit::Head;
use walkeep_core::layout::{BackupId, ObjectName};
use walkeep_core::verify::{self, Finding, Findings, Judge, Kind, Listing, Severity, Tally};
use walkeep_core::{Lsn, TimelineId, WalFileName};
use walkeep_store::Listed;

use crate::config::ClusterConfig;
use crate::durable::Staged;
use crate::repository::ClusterRepository;
use crate::repository::look::Seen;

/// Other users read it too: the operator, who asks for the status.
const MODE: u32 = 0o644;
/// So many objects are remembered; of more those that were verified longest ago are forgotten.
const MOST: usize = 4 << 20;
/// So many findings are.
const MOST_FINDINGS: usize = 1000;
/// So many records are.
const MOST_RECORDS: usize = 100_000;
/// What the file begins with: its form, and the length of what follows.
const MAGIC: &[u8; 8] = b"walkeep1";
/// Bytes of an entry.
const ENTRY: usize = 12;

/// How the last verifications of a cluster went.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// The repository it is of, and the cluster's identity.
    pub repository: String,
    /// When everything was looked at last, by this host's clock.
    pub looked_at: Option<DateTime<Utc>>,
    /// When that last found nothing wrong.
    pub whole_at: Option<DateTime<Utc>>,
    /// What listings, records and manifests last said is wrong.
    pub damage: Vec<Finding>,
    /// What was read and is damaged: now, or once and not seen to be mended.
    pub read_damage: Vec<Finding>,
    /// When everything was last read to its end in one run.
    #[serde(default)]
    pub read_at: Option<DateTime<Utc>>,
    /// Objects that could not be checked at the last look.
    pub not_checked: u64,
    /// The highest number of an expiry.
    #[serde(default)]
    pub expiries: u32,
    /// Backups that were recorded.
    #[serde(default)]
    pub backups: BTreeSet<BackupId>,
    /// Records that are there for ever: their keys.
    #[serde(default)]
    pub records: BTreeSet<String>,
    /// Expiries that were taken back.
    #[serde(default)]
    pub undone: BTreeSet<u32>,
    /// How far WAL of each timeline was stored.
    #[serde(default)]
    pub frontiers: BTreeMap<u32, Lsn>,
    /// Up to where WAL of each timeline was once seen without a hole that nothing explains.
    #[serde(default)]
    pub whole_to: BTreeMap<u32, Lsn>,
    /// The newest artifact of each name, which retention never lets go: keys of their records.
    #[serde(default)]
    pub artifacts: BTreeSet<String>,
    /// Where the audit trail ended.
    #[serde(default)]
    pub trail: Option<Head>,
    /// Records of the trail that were not the same in all repositories, or of which a later one says so.
    #[serde(default)]
    pub questioned: BTreeSet<u32>,
    /// Since when the object that was read longest ago was not read, or lies there unread.
    #[serde(default)]
    pub unread_since: Option<DateTime<Utc>>,
    /// What is damaged or missing here and whole in another repository: keys.
    #[serde(default)]
    pub whole_elsewhere: BTreeSet<String>,
    /// The same of what another repository lists, and this host cannot prove.
    #[serde(default)]
    pub listed_elsewhere: BTreeSet<String>,
    /// What was stored when it was looked at last.
    #[serde(default)]
    pub tally: Option<Tally>,
}

/// What is remembered.
#[derive(Debug, Default)]
pub struct Memory {
    folder: Option<(PathBuf, String)>,
    /// What tells its files from those of other repositories: the first digits of a hash of where it lies. So what is known stays known in whatever order the
    /// configuration has them.
    mark: String,
    /// How it went.
    pub outcome: Outcome,
    /// What a repair was about to take away for a good copy: keys. In a file of its own, which only repairs write: an agent that verifies meanwhile writes down what
    /// it knew when it began.
    mending: BTreeSet<String>,
    verified: HashMap<u64, u32>,
    now: u32,
}

impl Outcome {
    /// Everything that is known to be damaged or missing.
    pub fn all_damage(&self) -> impl Iterator<Item = &Finding> {
        self.all_wrong().filter(|finding| finding.kind != Kind::Lock)
    }

    /// How much is whole and locked for less than was promised.
    pub fn short_locks(&self) -> u64 {
        let keys = self.all_wrong().filter(|finding| finding.kind == Kind::Lock).map(|finding| &finding.key);
        keys.collect::<BTreeSet<_>>().len() as u64
    }

    fn all_wrong(&self) -> impl Iterator<Item = &Finding> {
        self.damage.iter().chain(&self.read_damage)
    }
}

impl Memory {
    /// That of a cluster, about this repository, of several this one.
    pub fn of(cluster: &ClusterConfig, repository: &ClusterRepository) -> Self {
        Self::at(folder_of(cluster), &name_of(repository))
    }

    /// In no folder: forgotten with the value.
    pub fn nowhere(repository: &ClusterRepository) -> Self {
        Self::at(None, &name_of(repository))
    }

    pub(super) fn at(folder: Option<(PathBuf, String)>, repository: &str) -> Self {
        let mut memory = Self { folder, mark: mark_of(repository), now: minute(SystemTime::now()), ..Self::default() };
        let outcome = memory.read_outcome(repository);
        let verified = outcome.as_ref().and_then(|_| decode(&memory.read("verified")?));
        memory.outcome = outcome.unwrap_or_else(|| Outcome { repository: repository.to_owned(), ..Outcome::default() });
        memory.verified = verified.unwrap_or_default();
        let mending = memory.read("mending.json").and_then(|text| serde_json::from_slice::<(String, BTreeSet<String>)>(&text).ok());
        memory.mending = mending.filter(|(of, _)| of == repository).map(|(_, keys)| keys).unwrap_or_default();
        memory
    }

    /// Only how it went, for who tells it; `None` if nothing was verified yet.
    pub fn outcome_of(cluster: &ClusterConfig, repository: &ClusterRepository) -> Option<Outcome> {
        let name = name_of(repository);
        let memory = Self { folder: folder_of(cluster), mark: mark_of(&name), ..Self::default() };
        memory.read_outcome(&name).filter(|outcome| outcome.looked_at.is_some())
    }

    fn read_outcome(&self, repository: &str) -> Option<Outcome> {
        let outcome: Outcome = serde_json::from_slice(&self.read("verify.json")?).ok()?;
        // Of another repository it says nothing.
        (outcome.repository == repository).then_some(outcome)
    }

    fn read(&self, name: &str) -> Option<Vec<u8>> {
        std::fs::read(self.path(name)?).ok()
    }

    /// Whether an object was read whole less than `time` ago, as it is listed now.
    pub fn is_known(&self, listed: &Listed, time: Duration) -> bool {
        let minutes = u32::try_from(time.as_secs() / 60).unwrap_or(u32::MAX);
        // Of a clock that was ahead nothing is believed.
        self.verified.get(&place(listed)).is_some_and(|at| *at <= self.now && self.now - at < minutes.max(1))
    }

    /// When an object was read whole, as it is listed now.
    pub fn read_at(&self, listed: &Listed) -> Option<SystemTime> {
        let minute = self.verified.get(&place(listed)).filter(|at| **at <= self.now)?;
        Some(SystemTime::UNIX_EPOCH + Duration::from_secs(u64::from(*minute) * 60))
    }

    /// An object was read and is whole.
    pub fn whole(&mut self, listed: &Listed) {
        self.verified.insert(place(listed), self.now);
        self.forget_damage(listed.key.as_str());
    }

    /// An object is to be read again by the next look.
    pub fn in_doubt(&mut self, listed: &Listed) {
        self.verified.remove(&place(listed));
    }

    /// What was said of an object is so no more: it is whole, or it is gone, and what that means is another finding.
    pub fn forget_damage(&mut self, key: &str) {
        self.outcome.read_damage.retain(|finding| finding.key != key);
    }

    /// Something is damaged.
    pub fn damaged(&mut self, finding: &Finding) {
        self.forget_damage(&finding.key);
        if self.outcome.read_damage.len() < MOST_FINDINGS && finding.severity > Severity::Note {
            self.outcome.read_damage.push(finding.clone());
        }
    }

    /// What a look at everything found to be wrong, and what is there.
    pub fn looked(&mut self, seen: &Seen, findings: &Findings, at: DateTime<Utc>) {
        let outcome = &mut self.outcome;
        outcome.damage = findings.iter().filter(|finding| finding.severity > Severity::Note).take(MOST_FINDINGS).cloned().collect();
        outcome.looked_at = Some(at);
        outcome.tally = Some(seen.tally.clone());
        let layout = seen.layout();
        let keys = for_ever(&seen.listing).map(|name| layout.key(&name));
        let room = MOST_RECORDS.saturating_sub(outcome.records.len());
        outcome.records.extend(keys.take(room));
        let missing = |id: &BackupId| findings.iter().any(|finding| finding.key == layout.key(&ObjectName::BackupRecord(id.clone())));
        outcome.backups.retain(missing);
        outcome.backups.extend(seen.catalog.backups().iter().map(|backup| backup.id.clone()));
        outcome.undone.extend(&seen.undone);
        outcome.expiries = outcome.expiries.max(expiries(&seen.listing));
        let found = |key: &String| findings.iter().any(|finding| finding.key == *key);
        outcome.artifacts.retain(found);
        outcome.artifacts.extend(newest_artifacts(&seen.listing));
        for timeline in seen.catalog.timelines() {
            let stored = outcome.frontiers.entry(timeline.get()).or_default();
            *stored = seen.catalog.frontier(timeline).unwrap_or_default().max(*stored);
            let has_hole = findings.iter().any(|finding| finding.stretch.is_some_and(|stretch| stretch.timeline == timeline));
            if !has_hole {
                let whole = outcome.whole_to.entry(timeline.get()).or_default();
                *whole = (*stored).max(*whole);
            }
        }
    }

    /// What a comparison with the other repositories found: what they have and this one does not, and has otherwise. Each look compares anew.
    pub fn compared<'a>(&mut self, found: impl Iterator<Item = &'a Finding>) {
        let room = MOST_FINDINGS.saturating_sub(self.outcome.damage.len());
        self.outcome.damage.extend(found.take(room).cloned());
    }

    /// What was there when it was last looked at, should be there still, and is not. `mended`: of what a repair took away, what is there again.
    pub fn vanished(&self, seen: &Seen, mended: &BTreeSet<String>) -> Findings {
        let (outcome, layout, listing) = (&self.outcome, seen.layout(), &seen.listing);
        let judge = Judge::new(&seen.catalog, layout);
        let mut found = Findings::default();
        let listed: BTreeSet<String> = for_ever(listing).map(|name| layout.key(&name)).collect();
        let records = outcome.records.iter().filter(|key| !listed.contains(*key)).filter_map(|key| layout.parse(key));
        // What was said of a backup goes with it.
        let stays = |name: &ObjectName| !matches!(name, ObjectName::Hold(id, _) if seen.catalog.backup(id).is_none());
        for name in records.filter(stays) {
            found.extend(judge.finding(Kind::Missing, &name, "it was there, and such a record is never removed".to_owned()));
        }
        for (timeline, to) in &outcome.frontiers {
            if let Some(timeline) = TimelineId::new(*timeline) {
                found.extend(verify::vanished(&judge, &seen.filled, timeline, *to).into_sorted());
            }
        }
        for number in &outcome.undone {
            let has = |name: &ObjectName| listing.records.contains(name);
            if has(&ObjectName::Expiry(*number)) && !has(&ObjectName::ExpiryEnd(*number)) {
                let reason =
                    "the expiry was taken back, and the note of that is gone: what it names is out of the catalog again".to_owned();
                found.extend(judge.finding(Kind::Missing, &ObjectName::ExpiryEnd(*number), reason));
            }
        }
        for name in outcome.artifacts.iter().filter_map(|key| layout.parse(key)) {
            let ObjectName::ArtifactRecord(place) = &name else { continue };
            let as_new = |other: &ArtifactPlace| other.name == place.name && other.id >= place.id;
            if !recorded_artifacts(listing).any(as_new) && !seen.catalog.expired().has_artifact(place) {
                let reason = "it was the newest of its name, which retention never lets go, and it is gone".to_owned();
                found.extend(judge.finding(Kind::Missing, &name, reason));
            }
        }
        for key in self.mending.iter().filter(|key| !mended.contains(*key)) {
            let reason = "a repair took the damaged one away and did not put the good one yet".to_owned();
            found.extend(layout.parse(key).and_then(|name| judge.finding(Kind::Missing, &name, reason)));
        }
        // What retention lets go is named by an expiry, and forgotten by a later one.
        let let_go = expiries(listing) > outcome.expiries;
        for id in &outcome.backups {
            let folder = listing.backups.get(id);
            let recorded = folder.is_some_and(|folder| folder.recorded);
            let left = folder.is_some_and(|folder| !folder.pieces.is_empty());
            if !recorded && !seen.catalog.expired().has_backup(id) && (left || !let_go) {
                let name = ObjectName::BackupRecord(id.clone());
                found.extend(judge.finding(Kind::Missing, &name, "the backup had a record, and nothing let it go".to_owned()));
            }
        }
        found
    }

    /// What a repair was about to take away.
    pub fn mending(&self) -> &BTreeSet<String> {
        &self.mending
    }

    /// A repair takes this object away now, or has put the good one. Whether that is written down.
    pub async fn note_mending(&mut self, key: &str, goes: bool) -> bool {
        match goes {
            true => drop(self.mending.insert(key.to_owned())),
            false => drop(self.mending.remove(key)),
        }
        let Some(path) = self.path("mending.json") else { return false };
        let Ok(text) = serde_json::to_vec(&(&self.outcome.repository, &self.mending)) else { return false };
        let written = tokio::task::spawn_blocking(move || write(&path, &text)).await;
        written.is_ok_and(|written| written.is_ok())
    }

    /// Writes it down, on a thread for such work: it is fsynced, and may have megabytes. Whether it is written.
    pub async fn keep(&mut self) -> bool {
        self.now = minute(SystemTime::now());
        if self.verified.len() > MOST {
            let mut minutes: Vec<u32> = self.verified.values().copied().collect();
            let (_, oldest, _) = minutes.select_nth_unstable(self.verified.len() - MOST);
            let oldest = *oldest;
            self.verified.retain(|_, at| *at > oldest);
        }
        let Some((json, path)) = self.path("verify.json").zip(self.path("verified")) else { return false };
        let (outcome, verified) = (serde_json::to_vec(&self.outcome).context("write it as JSON"), std::mem::take(&mut self.verified));
        let shown = json.display().to_string();
        let written = tokio::task::spawn_blocking(move || {
            let written = outcome.and_then(|outcome| write(&json, &outcome)).and_then(|()| write(&path, &encode(&verified)));
            (verified, written)
        });
        let kept = match written.await {
            Ok((verified, written)) => {
                self.verified = verified;
                written
            }
            Err(error) => Err(error.into()),
        };
        if let Err(error) = &kept {
            tracing::debug!(path = shown, error = format!("{error:#}"), "what was verified is not remembered");
        }
        kept.is_ok()
    }

    fn path(&self, name: &str) -> Option<PathBuf> {
        let name = match name.split_once('.') {
            Some((name, ending)) => format!("{name}-{}.{ending}", self.mark),
            None => format!("{name}-{}", self.mark),
        };
        self.folder.as_ref().map(|(folder, prefix)| folder.join(format!("{prefix}{name}")))
    }
}

/// What is never removed, or only with its backup.
fn for_ever(listing: &Listing) -> impl Iterator<Item = ObjectName> + '_ {
    let stays =
        |name: &&ObjectName| matches!(name, ObjectName::Gap(_) | ObjectName::GapClosing(_) | ObjectName::Lease(_) | ObjectName::Hold(..));
    let histories = listing.histories.iter().map(|timeline| ObjectName::Wal(WalFileName::History(*timeline)));
    listing.records.iter().filter(stays).cloned().chain(histories)
}

fn recorded_artifacts(listing: &Listing) -> impl Iterator<Item = &ArtifactPlace> {
    listing.artifacts.iter().filter(|(_, folder)| folder.recorded).map(|(place, _)| place)
}

/// The newest artifact of each name that has a record: the keys of these.
fn newest_artifacts(listing: &Listing) -> Vec<String> {
    let mut newest: BTreeMap<_, &ArtifactPlace> = BTreeMap::new();
    // Ids begin with a time: a later one of the same name is newer.
    for place in recorded_artifacts(listing) {
        let known = newest.entry(&place.name).or_insert(place);
        *known = (*known).max(place);
    }
    newest.into_values().map(|place| listing.layout().key(&ObjectName::ArtifactRecord(place.clone()))).collect()
}

/// The highest number of an expiry.
fn expiries(listing: &Listing) -> u32 {
    let numbers = listing.records.iter().filter_map(|name| match name {
        ObjectName::Expiry(number) | ObjectName::ExpiryEnd(number) => Some(*number),
        _ => None,
    });
    numbers.max().unwrap_or_default()
}

/// What tells it from others: another identity of a cluster has other objects.
fn name_of(repository: &ClusterRepository) -> String {
    format!("{}/{}", repository.repository().url(), repository.layout().root())
}

fn mark_of(repository: &str) -> String {
    blake3::hash(repository.as_bytes()).to_hex()[..8].to_owned()
}

/// Where things are kept of a cluster, and what their names begin with.
fn folder_of(cluster: &ClusterConfig) -> Option<(PathBuf, String)> {
    let env = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let cache = || env("XDG_CACHE_HOME").or_else(|| env("HOME").map(|home| home.join(".cache")));
    match cluster.spool.is_dir() {
        true => Some((cluster.spool.clone(), String::new())),
        false => cache().map(|cache| (cache.join("walkeep"), format!("{}.", cluster.name))),
    }
}

fn minute(at: SystemTime) -> u32 {
    let seconds = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    u32::try_from(seconds / 60).unwrap_or(u32::MAX)
}

/// Where an object is remembered: other bytes or another time are another object.
fn place(listed: &Listed) -> u64 {
    let at = listed.modified.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let mut hash = blake3::Hasher::new();
    hash.update(listed.key.as_str().as_bytes()).update(&listed.size.to_le_bytes()).update(&at.to_le_bytes());
    let mut first = [0; 8];
    first.copy_from_slice(&hash.finalize().as_bytes()[..8]);
    u64::from_le_bytes(first)
}

fn encode(verified: &HashMap<u64, u32>) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(MAGIC.len() + verified.len() * ENTRY + 32);
    bytes.extend_from_slice(MAGIC);
    for (place, at) in verified {
        bytes.extend_from_slice(&place.to_le_bytes());
        bytes.extend_from_slice(&at.to_le_bytes());
    }
    let sum = blake3::hash(&bytes);
    bytes.extend_from_slice(sum.as_bytes());
    bytes
}

/// `None` for what is not as it was written.
fn decode(bytes: &[u8]) -> Option<HashMap<u64, u32>> {
    let (content, sum) = bytes.split_at_checked(bytes.len().checked_sub(32)?)?;
    let entries = content.strip_prefix(MAGIC)?;
    if *blake3::hash(content).as_bytes() != *sum || !entries.len().is_multiple_of(ENTRY) {
        return None;
    }
    let entry = |bytes: &[u8]| Some((u64::from_le_bytes(bytes[..8].try_into().ok()?), u32::from_le_bytes(bytes[8..].try_into().ok()?)));
    entries.chunks_exact(ENTRY).map(entry).collect()
}

fn write(path: &Path, content: &[u8]) -> Result<()> {
    let folder = path.parent().context("it has no folder")?;
    std::fs::create_dir_all(folder)?;
    Staged::write(path, content, MODE)?.publish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(key: &str, size: u64, at: u64) -> Listed {
        Listed {
            key: key.parse().unwrap(),
            size,
            modified: SystemTime::UNIX_EPOCH + Duration::from_secs(at),
            class: None,
            storage_class: None,
        }
    }

    fn finding(key: &str) -> Finding {
        Finding {
            severity: Severity::Damage,
            kind: Kind::Content,
            key: key.to_owned(),
            reason: "flipped".to_owned(),
            stretch: None,
            lost: Default::default(),
            advice: String::new(),
        }
    }

    #[test]
    fn a_short_lock_is_no_damage() {
        let lock = |key: &str| Finding { severity: Severity::Minor, kind: Kind::Lock, ..finding(key) };
        let outcome = Outcome { damage: vec![lock("a"), finding("b")], read_damage: vec![lock("a"), lock("c")], ..Outcome::default() };
        assert_eq!(outcome.all_damage().map(|finding| finding.key.as_str()).collect::<Vec<_>>(), ["b"]);
        assert_eq!(outcome.short_locks(), 2);
    }

    #[tokio::test]
    async fn what_was_verified_is_known_again_as_long_as_it_is_the_same_object() {
        let folder = tempfile::tempdir().unwrap();
        let at = || Memory::at(Some((folder.path().to_owned(), "main.".to_owned())), "file:///srv");
        let day = Duration::from_secs(86_400);
        let mut memory = at();
        memory.whole(&listed("a", 7, 100));
        memory.damaged(&finding("b"));
        assert!(memory.keep().await);
        let mut memory = at();
        assert!(memory.is_known(&listed("a", 7, 100), day));
        for other in [listed("a", 8, 100), listed("a", 7, 101), listed("c", 7, 100)] {
            assert!(!memory.is_known(&other, day), "{other:?}");
        }
        assert_eq!(memory.outcome.read_damage, [finding("b")]);
        memory.now += 24 * 60;
        assert!(!memory.is_known(&listed("a", 7, 100), day));
        assert!(memory.is_known(&listed("a", 7, 100), 2 * day));
        memory.now -= 25 * 60;
        assert!(!memory.is_known(&listed("a", 7, 100), 2 * day), "it lies in the future");
        memory.whole(&listed("b", 1, 1));
        assert_eq!(memory.outcome.read_damage, []);
        assert!(memory.keep().await);
        // Of another repository, or damaged: nothing is known.
        let mut other = Memory::at(Some((folder.path().to_owned(), "main.".to_owned())), "file:///other");
        assert!(!other.is_known(&listed("b", 1, 1), day));
        // Beside each other: neither takes the other's place.
        assert!(other.keep().await && at().is_known(&listed("b", 1, 1), day));
        let path = at().path("verified").unwrap();
        assert_eq!(path, folder.path().join(format!("main.verified-{}", mark_of("file:///srv"))));
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[9] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        assert!(!at().is_known(&listed("b", 1, 1), day));
    }
}
