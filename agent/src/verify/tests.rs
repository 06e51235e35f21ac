use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio_util::sync::CancellationToken;
use walkeep_core::audit::{Actor, Entry, Kind as Deed, Outcome};
use walkeep_core::layout::ObjectName;
use walkeep_core::verify::{Kind, Severity};
use walkeep_core::{Lsn, TimelineId, WalFileName};
use walkeep_store::several::{Follow, StoredWhen};
use walkeep_store::{
    ErrorKind, Fault, FaultyStore, Key, ListRequest, Lock, LockMode, Locked, MemoryStore, Operation, Rule, Several, SharedStore, Store,
};

use super::memory::Memory;
use super::pace::Pace;
use super::*;
use crate::encryption::tests::writer_and_reader;
use crate::repository::ClusterRepository;
use crate::repository::manifest::ManifestEncoder;
use crate::repository::tests::{encrypted, over, record, segment};

/// A repository in two places.
pub(super) struct Two {
    pub stores: [Arc<MemoryStore>; 2],
    /// The second one.
    pub faulty: Arc<FaultyStore>,
    pub both: ClusterRepository,
}

impl Two {
    /// With segments 1 to 5 in each.
    pub async fn begin() -> Self {
        let stores = [Arc::new(MemoryStore::new()), Arc::new(MemoryStore::new())];
        let faulty = Arc::new(FaultyStore::new(stores[1].clone()));
        let several = Several::new(vec![stores[0].clone(), faulty.clone()], StoredWhen::All, Follow::Queued);
        let both = over(Arc::new(several)).await;
        put(&both, 1..6).await;
        Self { stores, faulty, both }
    }

    pub fn places(&self) -> Vec<Place> {
        self.remembering(None)
    }

    /// What is remembered lies in this folder.
    pub fn remembering(&self, folder: Option<&std::path::Path>) -> Vec<Place> {
        remembered(&Arc::new(self.both.clone()), folder, &["one", "two"])
    }
}

/// Each where it is said to lie.
pub(super) fn remembered(all: &Arc<ClusterRepository>, folder: Option<&std::path::Path>, named: &[&str]) -> Vec<Place> {
    let place = |(number, repository): (usize, Arc<ClusterRepository>)| {
        let memory = Memory::at(folder.map(|folder| (folder.to_owned(), String::new())), named[number - 1]);
        Place { number, repository, all: all.clone(), memory }
    };
    numbered(all).map(place).collect()
}

/// Two places of an encrypted cluster with segments 1 to 5 in each: as who only writes sees them, as who reads does, and the stores.
async fn sealed(folder: &std::path::Path) -> ([Arc<ClusterRepository>; 2], [Arc<MemoryStore>; 2]) {
    let stores = [(); 2].map(|()| Arc::new(MemoryStore::new()));
    let several = || Several::new(stores.iter().map(|store| store.clone() as SharedStore).collect(), StoredWhen::All, Follow::Queued);
    let (writer, reader) = writer_and_reader(folder);
    let writer = Arc::new(encrypted(Arc::new(several()), writer).await);
    put(&writer, 1..6).await;
    (([writer, Arc::new(encrypted(Arc::new(several()), reader).await)]), stores)
}

/// What is wrong, by repository and key, who has it whole, and who lists it.
fn told(report: &Overall) -> Vec<(usize, String, Vec<usize>, Vec<usize>)> {
    let wrong = report.findings.iter().filter(|found| found.finding.severity > Severity::Note);
    wrong.map(|found| (found.repository, found.finding.key.clone(), found.whole_in.clone(), found.listed_in.clone())).collect()
}

async fn cut(store: &MemoryStore, key: &Key, bytes: usize) {
    let whole = store.get(key, None).await.unwrap();
    store.overwrite(key, whole.slice(..whole.len() - bytes));
}

pub(super) async fn put(repository: &ClusterRepository, numbers: std::ops::Range<u64>) {
    for number in numbers {
        repository.put_wal(WalFileName::Segment(segment(number)), content(number)).await.unwrap();
    }
}

/// A segment as it begins on the server.
fn content(number: u64) -> Bytes {
    let mut page = vec![0; 1 << 20];
    page[..2].copy_from_slice(&0xD110u16.to_le_bytes());
    page[2..4].copy_from_slice(&2u16.to_le_bytes());
    page[4..8].copy_from_slice(&1u32.to_le_bytes());
    page[8..16].copy_from_slice(&(number << 20).to_le_bytes());
    page[24..32].copy_from_slice(&7u64.to_le_bytes());
    page[32..36].copy_from_slice(&(1u32 << 20).to_le_bytes());
    page[36..40].copy_from_slice(&8192u32.to_le_bytes());
    page.into()
}

/// A record of the audit trail.
pub(super) fn entry() -> Entry {
    Entry {
        time: chrono::DateTime::UNIX_EPOCH,
        actor: Actor { uid: 26, user: None, login: None, sudo_user: None, ssh_from: None, host: "db1".into(), pid: 1 },
        program: "walkeep".into(),
        command: "backup".into(),
        kind: Deed::BACKUP,
        subject: BTreeMap::new(),
        outcome: Outcome::Done,
        message: None,
        begun: None,
    }
}

pub(super) fn key(repository: &ClusterRepository, number: u64) -> Key {
    repository.layout().wal_key(WalFileName::Segment(segment(number))).parse().unwrap()
}

/// What is wrong, by repository and key, and who has it whole.
pub(super) fn wrong(report: &Overall) -> Vec<(usize, String, Kind, Vec<usize>)> {
    let wrong = report.findings.iter().filter(|found| found.finding.severity > Severity::Note);
    wrong.map(|found| (found.repository, found.finding.key.clone(), found.finding.kind, found.whole_in.clone())).collect()
}

#[tokio::test(start_paused = true)]
async fn lost_is_only_what_no_repository_has_whole() {
    let (two, cancel, pace) = (Two::begin().await, CancellationToken::new(), Pace::of(None));
    let deep = || Wish { read: Some(Read::all(&pace, 2)), ..Wish::look(&cancel) };
    let mut places = two.places();
    let (report, _) = everywhere(&deep(), &mut places).await.unwrap();
    assert!(report.whole && report.repositories.len() == 2 && report.listed.segments == 5, "{report:?}");
    let (second, third) = (key(&two.both, 2), key(&two.both, 3));
    two.stores[0].overwrite(&second, Bytes::from(vec![7; 4000]));
    two.stores[1].delete(&third).await.unwrap();
    let (report, _) = everywhere(&deep(), &mut places).await.unwrap();
    let (damaged, missing) = (second.to_string(), third.to_string());
    assert_eq!(wrong(&report), [(1, damaged.clone(), Kind::Content, vec![2]), (2, missing.clone(), Kind::Missing, vec![1])]);
    assert!(!report.whole && report.findings.iter().all(|found| found.finding.lost.is_nothing()));
    assert_eq!(report.repositories.iter().map(|one| one.damaged).collect::<Vec<_>>(), [1, 1]);
    assert_eq!(places[0].memory.outcome.whole_elsewhere.iter().collect::<Vec<_>>(), [&damaged]);
    // What is listed with the right size elsewhere and is not whole there is no copy.
    two.stores[1].overwrite(&second, Bytes::from(vec![8; 4000]));
    let (report, _) = everywhere(&Wish::look(&cancel), &mut places).await.unwrap();
    assert_eq!(wrong(&report), [(1, damaged.clone(), Kind::Content, vec![]), (2, missing.clone(), Kind::Missing, vec![1])]);
    // A stretch is whole elsewhere only if all of it is.
    two.stores[1].delete(&key(&two.both, 4)).await.unwrap();
    let (report, _) = everywhere(&Wish::look(&cancel), &mut places).await.unwrap();
    assert_eq!(wrong(&report)[1], (2, missing.clone(), Kind::Missing, vec![1]));
    two.stores[0].delete(&key(&two.both, 4)).await.unwrap();
    let (report, _) = everywhere(&Wish::look(&cancel), &mut places).await.unwrap();
    assert!(wrong(&report).iter().any(|found| *found == (2, missing.clone(), Kind::Missing, vec![])), "{:?}", wrong(&report));
}

#[tokio::test(start_paused = true)]
async fn what_was_put_while_a_repository_is_behind_is_not_missing_there() {
    let (two, cancel) = (Two::begin().await, CancellationToken::new());
    let since = std::time::SystemTime::now();
    let lacks = key(&two.both, 3);
    two.stores[1].delete(&lacks).await.unwrap();
    let behind = |url: &str| (url == two.stores[1].url()).then_some(since);
    let wish = Wish { behind: &behind, ..Wish::look(&cancel) };
    let (report, _) = everywhere(&wish, &mut two.places()).await.unwrap();
    assert!(report.whole && wrong(&report).is_empty(), "{report:?}");
    // What was there before that is.
    two.stores[0].age(Duration::from_secs(3600));
    let (report, _) = everywhere(&wish, &mut two.places()).await.unwrap();
    assert_eq!(wrong(&report), [(2, lacks.to_string(), Kind::Missing, vec![1])]);
}

#[tokio::test(start_paused = true)]
async fn a_repository_that_is_away_is_told_and_the_others_are_looked_at() {
    let (two, cancel) = (Two::begin().await, CancellationToken::new());
    two.faulty.inject(Rule::new(Operation::List, Fault::Fail(ErrorKind::Transient)));
    let (report, _) = everywhere(&Wish::look(&cancel), &mut two.places()).await.unwrap();
    assert!(!report.whole && report.problem().is_some() && report.repositories[0].whole, "{report:?}");
    assert_eq!(wrong(&report), []);
}

#[tokio::test(start_paused = true)]
async fn wal_that_later_wal_overtook_is_waited_for() {
    let store = Arc::new(MemoryStore::new());
    let repository = Arc::new(over(store.clone()).await);
    let cancel = CancellationToken::new();
    put(&repository, 1..4).await;
    put(&repository, 5..8).await;
    let late = repository.clone();
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_secs(40)).await;
        put(&late, 4..5).await;
    });
    let mut memory = Memory::nowhere(&repository);
    let report = verify(&repository, &Wish::look(&cancel), &mut memory).await.unwrap();
    assert!(report.whole, "{:?}", report.findings);
    // What was seen to be there once does not come late: that is told at once.
    store.delete(&key(&repository, 4)).await.unwrap();
    let began = tokio::time::Instant::now();
    let report = verify(&repository, &Wish::look(&cancel), &mut memory).await.unwrap();
    assert!(!report.whole && began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    // Of what nobody has seen that is told in the end too; and not where the agent itself says that nothing there is stored yet.
    let report = verify(&repository, &Wish::look(&cancel), &mut Memory::nowhere(&repository)).await.unwrap();
    assert_eq!(report.findings[0].key, key(&repository, 4).to_string());
    let durable = || Some((TimelineId::FIRST, Lsn::new(4 << 20)));
    let wish = Wish { durable: &durable, ..Wish::look(&cancel) };
    let report = verify(&repository, &wish, &mut Memory::nowhere(&repository)).await.unwrap();
    assert!(report.whole, "{:?}", report.findings);
}

#[tokio::test(start_paused = true)]
async fn a_look_at_the_trail_reads_what_is_new_and_knows_where_it_ended() {
    let store = Arc::new(FaultyStore::new(Arc::new(MemoryStore::new())));
    let repository = Arc::new(over(store.clone()).await);
    let (cancel, mut head) = (CancellationToken::new(), None);
    for _ in 0..20 {
        repository.append_audit(&mut head, &entry()).await.unwrap();
    }
    let mut memory = Memory::nowhere(&repository);
    let audit =
        |from: usize| store.calls()[from..].iter().filter(|(kind, place)| *kind == Operation::Get && place.contains("/audit/")).count();
    let mut look = async |reads: std::ops::RangeInclusive<usize>| {
        let from = store.calls().len();
        let report = verify(&repository, &Wish::look(&cancel), &mut memory).await.unwrap();
        assert!(reads.contains(&audit(from)), "{} records were read", audit(from));
        report.findings
    };
    assert_eq!(look(20..=20).await, []);
    assert_eq!(look(1..=1).await, []);
    repository.append_audit(&mut head, &entry()).await.unwrap();
    assert_eq!(look(2..=2).await, []);
    // The end is cut off.
    let name = |number| ObjectName::Audit(number);
    let last = repository.layout().key(&name(21)).parse::<Key>().unwrap();
    let body = store.get(&last, None).await.unwrap();
    store.delete(&last).await.unwrap();
    let found = look(1..=10).await;
    assert_eq!((found.len(), &found[0].key, found[0].kind), (1, &last.to_string(), Kind::Missing));
    store.put_if_absent(&last, body).await.unwrap();
    assert_eq!(look(1..=3).await, []);
    store.delete(&repository.layout().key(&name(7)).parse().unwrap()).await.unwrap();
    let found = look(1..=10).await;
    assert_eq!((found.len(), &found[0].key), (1, &repository.layout().key(&name(7))));
}

#[tokio::test(start_paused = true)]
async fn locks_that_are_shorter_than_promised_are_told() {
    let lock = Lock { mode: LockMode::Compliance, days: 30 };
    let store = Arc::new(MemoryStore::locking(lock));
    let faulty = Arc::new(FaultyStore::new(store.clone()));
    let repository = Arc::new(over(faulty.clone()).await);
    put(&repository, 1..6).await;
    let (cancel, pace, mut memory) = (CancellationToken::new(), Pace::of(None), Memory::nowhere(&repository));
    let mut look = async |deep: bool| {
        let read = deep.then(|| Read::all(&pace, 2));
        let report = verify(&repository, &Wish { read, ..Wish::look(&cancel) }, &mut memory).await.unwrap();
        report.findings.into_iter().map(|found| (found.severity, found.kind, found.key)).collect::<Vec<_>>()
    };
    let unlocked = |number: u64| (Severity::Minor, Kind::Lock, key(&repository, number).to_string());
    assert_eq!((look(false).await, look(true).await), (vec![], vec![]));
    let now = std::time::SystemTime::now();
    store.set_lock(&key(&repository, 2), None);
    store.set_lock(&key(&repository, 3), Some(Locked { mode: LockMode::Compliance, until: now + Duration::from_secs(29 * 86_400) }));
    store.set_lock(&key(&repository, 4), Some(Locked { mode: LockMode::Governance, until: now + lock.time() }));
    assert_eq!(look(false).await, [unlocked(2), unlocked(3), unlocked(4)]);
    assert_eq!(look(true).await, [unlocked(2), unlocked(3), unlocked(4)]);
    // It stays told until it was read again.
    store.set_lock(&key(&repository, 2), Some(Locked { mode: LockMode::Compliance, until: now + lock.time() }));
    assert_eq!(look(true).await, [unlocked(3), unlocked(4)]);
    // By so little it is not locked anew.
    faulty.lock_anew(&key(&repository, 3)).await.unwrap();
    assert_eq!(look(true).await, [unlocked(3), unlocked(4)]);
    store.set_lock(&key(&repository, 3), None);
    for number in [3, 4] {
        faulty.lock_anew(&key(&repository, number)).await.unwrap();
    }
    assert_eq!(look(true).await, []);
    // A promise that is over is none, and who may not look at locks does not call it damage.
    store.set_lock(&key(&repository, 2), None);
    store.age(lock.time());
    assert_eq!(look(true).await, []);
    let put_now = store.get(&key(&repository, 2), None).await.unwrap();
    store.overwrite(&key(&repository, 2), put_now);
    store.set_lock(&key(&repository, 2), None);
    faulty.inject(Rule::new(Operation::Probe, Fault::Fail(ErrorKind::Denied)));
    assert_eq!((look(false).await, look(true).await), (vec![], vec![]));
}

#[tokio::test(start_paused = true)]
async fn damage_that_was_archived_since_stays_known_and_hinders_no_look() {
    let store = Arc::new(MemoryStore::new());
    let faulty = Arc::new(FaultyStore::new(store.clone()));
    let repository = Arc::new(over(faulty.clone()).await);
    put(&repository, 1..6).await;
    let (cancel, pace, mut memory) = (CancellationToken::new(), Pace::of(None), Memory::nowhere(&repository));
    let mut look = async |deep: bool| {
        let read = deep.then(|| Read::all(&pace, 2));
        let report = verify(&repository, &Wish { read, ..Wish::look(&cancel) }, &mut memory).await.unwrap();
        report.findings.into_iter().map(|found| (found.kind, found.key)).collect::<Vec<_>>()
    };
    let second = key(&repository, 2);
    let whole = store.get(&second, None).await.unwrap();
    store.overwrite(&second, Bytes::from(vec![7; 4000]));
    let known = [(Kind::Content, second.to_string())];
    assert_eq!(look(true).await, known);
    faulty.inject(Rule::new(Operation::Get, Fault::Fail(ErrorKind::Archived)).on(second.as_str()));
    assert_eq!(look(false).await, known);
    assert_eq!((look(true).await, look(false).await), (known.to_vec(), known.to_vec()));
    faulty.heal();
    store.overwrite(&second, whole);
    assert_eq!(look(false).await, []);
}

#[tokio::test(start_paused = true)]
async fn what_one_never_had_or_lost_before_anybody_looked_is_missing_there() {
    let (two, cancel) = (Two::begin().await, CancellationToken::new());
    let mut head = None;
    for _ in 0..3 {
        two.both.append_audit(&mut head, &entry()).await.unwrap();
    }
    let last: Key = two.both.layout().key(&ObjectName::Audit(3)).parse().unwrap();
    let partial: Key = two.both.layout().wal_key(WalFileName::Partial(segment(6))).parse().unwrap();
    two.both.put_wal(WalFileName::Partial(segment(6)), content(6)).await.unwrap();
    let lost = [key(&two.both, 1), key(&two.both, 5), last, partial];
    for key in &lost {
        two.stores[1].delete(key).await.unwrap();
    }
    let mut places = two.places();
    let (report, _) = everywhere(&Wish::look(&cancel), &mut places).await.unwrap();
    let mut told = wrong(&report);
    let mut expected = lost.clone().map(|key| (2, key.to_string(), Kind::Missing, vec![1]));
    told.sort();
    expected.sort();
    assert_eq!(told, expected);
    assert!(!report.whole && report.repositories[0].whole && !report.repositories[1].whole && report.repositories[1].damaged == 4);
    // It is remembered for the status, until it is there.
    assert_eq!(places[1].memory.outcome.all_damage().count(), 4);
    assert!(places[0].memory.outcome.whole_at.is_some() && places[1].memory.outcome.whole_at.is_none());
    for key in &lost {
        two.stores[1].put_if_absent(key, two.stores[0].get(key, None).await.unwrap()).await.unwrap();
    }
    let (report, _) = everywhere(&Wish::look(&cancel), &mut places).await.unwrap();
    assert!(report.whole && places[1].memory.outcome.all_damage().count() == 0, "{report:?}");
}

#[tokio::test(start_paused = true)]
async fn what_comes_while_it_is_looked_is_not_lacking() {
    let (two, cancel) = (Two::begin().await, CancellationToken::new());
    let late = key(&two.both, 5);
    let good = two.stores[1].get(&late, None).await.unwrap();
    for (place, after) in [(1, 3), (1, 50), (0, 50)] {
        two.stores[place].delete(&late).await.unwrap();
        let (store, late, good) = (two.stores[place].clone(), late.clone(), good.clone());
        let comes = tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(after)).await;
            store.put_if_absent(&late, good).await.unwrap();
        });
        let (report, _) = everywhere(&Wish::look(&cancel), &mut two.places()).await.unwrap();
        assert!(report.whole, "behind {after} s in {place}: {:?}", report.findings);
        comes.await.unwrap();
    }
    // What went from the other one meanwhile is lacking nowhere.
    two.stores[1].delete(&late).await.unwrap();
    let store = two.stores[0].clone();
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_secs(2)).await;
        store.delete(&late).await.unwrap();
    });
    let (report, _) = everywhere(&Wish::look(&cancel), &mut two.places()).await.unwrap();
    assert!(report.whole, "{:?}", report.findings);
}

#[tokio::test(start_paused = true)]
async fn what_the_store_does_not_let_be_read_hides_no_other_damage() {
    let (two, cancel, pace) = (Two::begin().await, CancellationToken::new(), Pace::of(None));
    let deep = || Wish { read: Some(Read::all(&pace, 2)), ..Wish::look(&cancel) };
    let mut head = None;
    for _ in 0..3 {
        two.both.append_audit(&mut head, &entry()).await.unwrap();
    }
    let record = two.both.layout().key(&ObjectName::Audit(2));
    let (damaged, denied) = (key(&two.both, 2), key(&two.both, 3));
    two.stores[1].overwrite(&damaged, Bytes::from(vec![7; 4000]));
    for key in [denied.as_str(), &record] {
        two.faulty.inject(Rule::new(Operation::Get, Fault::Fail(ErrorKind::Denied)).on(key));
    }
    let mut places = two.places();
    let (report, _) = everywhere(&deep(), &mut places).await.unwrap();
    assert_eq!(wrong(&report), [(2, damaged.to_string(), Kind::Content, vec![1])]);
    let (url, problem) = report.problem().unwrap();
    assert!(url == two.stores[1].url() && problem.contains(&record) && problem.contains("1 more"), "{problem}");
    assert_eq!((report.whole, report.repositories[0].whole, report.repositories[1].refused), (false, true, 2));
    assert!(places[1].memory.outcome.read_damage.iter().all(|finding| finding.key == damaged.as_str()));
    // What was damaged when it could be read stays so.
    two.faulty.inject(Rule::new(Operation::Get, Fault::Fail(ErrorKind::Denied)).on(damaged.as_str()));
    let (report, _) = everywhere(&deep(), &mut places).await.unwrap();
    assert_eq!(wrong(&report), [(2, damaged.to_string(), Kind::Content, vec![1])]);
    two.faulty.heal();
    let good = two.stores[0].get(&damaged, None).await.unwrap();
    two.stores[1].overwrite(&damaged, good);
    let (report, _) = everywhere(&deep(), &mut places).await.unwrap();
    assert!(report.whole && report.problem().is_none(), "{report:?}");
}

#[tokio::test(start_paused = true)]
async fn two_that_hold_something_else_under_one_name_are_told_of_by_a_reading() {
    let (two, cancel, pace) = (Two::begin().await, CancellationToken::new(), Pace::of(None));
    let deep = || Wish { read: Some(Read::all(&pace, 2)), ..Wish::look(&cancel) };
    // As another server would have written it.
    let mut other = content(2).to_vec();
    other[500_000] ^= 1;
    let elsewhere = Arc::new(MemoryStore::new());
    over(elsewhere.clone()).await.put_wal(WalFileName::Segment(segment(2)), other.into()).await.unwrap();
    let (second, good) = (key(&two.both, 2), two.stores[1].get(&key(&two.both, 2), None).await.unwrap());
    two.stores[1].overwrite(&second, elsewhere.get(&second, None).await.unwrap());
    let folder = tempfile::tempdir().unwrap();
    let mut places = two.remembering(Some(folder.path()));
    let differs = [(2, second.to_string(), Kind::Differs, vec![])];
    let (report, seen) = everywhere(&deep(), &mut places).await.unwrap();
    assert_eq!(wrong(&report), differs);
    assert!(report.damaged(Severity::Damage) == 1 && report.findings[0].finding.reason.contains("in repository 1"), "{report:?}");
    // No copy is better than the other one, and it is known until both were read again.
    assert!(repair::plan(&seen, &report).await.unwrap().steps.is_empty());
    assert_eq!(wrong(&everywhere(&Wish::look(&cancel), &mut places).await.unwrap().0), differs);
    two.stores[1].overwrite(&second, good);
    assert_eq!(wrong(&everywhere(&deep(), &mut places).await.unwrap().0), []);
    assert_eq!(wrong(&everywhere(&Wish::look(&cancel), &mut places).await.unwrap().0), []);
}

#[tokio::test(start_paused = true)]
async fn what_was_to_be_the_good_copy_and_is_damaged_is_known_from_then_on() {
    let (two, cancel, folder) = (Two::begin().await, CancellationToken::new(), tempfile::tempdir().unwrap());
    // At the end, where nothing but the other's listing tells of it; only a repair reads that one.
    let last = key(&two.both, 5);
    two.stores[0].overwrite(&last, Bytes::from(vec![7; 4000]));
    two.stores[1].delete(&last).await.unwrap();
    let mut places = two.remembering(Some(folder.path()));
    let (report, seen) = everywhere(&Wish::look(&cancel), &mut places).await.unwrap();
    let mut plan = repair::plan(&seen, &report).await.unwrap();
    repair::carry_out(&mut plan, &seen, &mut places, &cancel, &|_| {}).await.unwrap();
    let (report, _) = everywhere(&Wish::look(&cancel), &mut places).await.unwrap();
    let told = wrong(&report);
    assert!(told.contains(&(1, last.to_string(), Kind::Content, vec![])), "{told:?}");
    assert!(told.iter().all(|(_, _, _, whole)| whole.is_empty()), "{told:?}");
}

/// Three places with two records of the trail in each, and the last one changed in the first; its key, as it was, as it is.
async fn three_with_a_changed_end() -> ([Arc<MemoryStore>; 3], Arc<ClusterRepository>, Key, [Bytes; 2]) {
    let stores = [(); 3].map(|()| Arc::new(MemoryStore::new()));
    let several = Several::new(stores.iter().map(|store| store.clone() as SharedStore).collect(), StoredWhen::All, Follow::Queued);
    let all = Arc::new(over(Arc::new(several)).await);
    put(&all, 1..3).await;
    for _ in 0..2 {
        all.append_audit(&mut None, &entry()).await.unwrap();
    }
    let second: Key = all.layout().key(&ObjectName::Audit(2)).parse().unwrap();
    let good = stores[0].get(&second, None).await.unwrap();
    let changed = Bytes::from(String::from_utf8(good.to_vec()).unwrap().replace("db1", "db2"));
    stores[0].overwrite(&second, changed.clone());
    (stores, all, second, [good, changed])
}

#[tokio::test(start_paused = true)]
async fn a_last_record_that_is_not_the_same_everywhere_is_told_and_what_follows_proves_nothing() {
    let (stores, all, second, [good, changed]) = three_with_a_changed_end().await;
    let (cancel, pace, folder) = (CancellationToken::new(), Pace::of(None), tempfile::tempdir().unwrap());
    let differs: Vec<_> = (1..=3).map(|number| (number, second.to_string(), Kind::Differs, vec![])).collect();
    let look = async |deep: bool| {
        let read = deep.then(|| Read::all(&pace, 2));
        let mut places = remembered(&all, Some(folder.path()), &["one", "two", "three"]);
        let (report, seen) = everywhere(&Wish { read, ..Wish::look(&cancel) }, &mut places).await.unwrap();
        assert!(repair::plan(&seen, &report).await.unwrap().steps.is_empty(), "no repair touches it");
        report
    };
    let report = look(false).await;
    assert_eq!(wrong(&report), differs);
    let reason = &report.findings[0].finding.reason;
    assert!(reason.contains("in repositories 2 and 3, sha256") && reason.ends_with("in repository 1"), "{reason}");
    // Another one behind it, by somebody who reads all of them.
    all.append_audit(&mut None, &entry()).await.unwrap();
    all.append_audit(&mut None, &entry()).await.unwrap();
    for deep in [false, true, false, false] {
        assert_eq!(wrong(&look(deep).await), differs);
    }
    let at_second = async |store: usize| stores[store].get(&second, None).await.unwrap();
    assert_eq!([at_second(0).await, at_second(1).await, at_second(2).await], [changed.clone(), good.clone(), good.clone()]);
    // Put right by hand, whichever it is.
    for store in &stores[1..] {
        store.overwrite(&second, changed.clone());
    }
    assert_eq!(wrong(&look(false).await), []);
    assert_eq!(wrong(&look(true).await), []);
}

/// As an attacker with the credentials, or a version that compares nothing, leaves it: the next record names the changed one as if it were the only one.
#[tokio::test(start_paused = true)]
async fn what_the_others_agree_on_is_not_removed_for_a_record_that_the_next_one_names() {
    let (stores, all, second, [good, changed]) = three_with_a_changed_end().await;
    let (cancel, folder) = (CancellationToken::new(), tempfile::tempdir().unwrap());
    let mut head = Some(walkeep_core::audit::Head::of(2, &changed));
    all.append_audit(&mut head, &entry()).await.unwrap();
    let damaged = [2, 3].map(|number| (number, second.to_string(), Kind::Content, vec![]));
    for _ in 0..3 {
        // Also what a repair found and left is told again and again.
        let mut places = remembered(&all, Some(folder.path()), &["one", "two", "three"]);
        let (report, seen) = everywhere(&Wish::look(&cancel), &mut places).await.unwrap();
        assert_eq!(wrong(&report), damaged);
        let mut plan = repair::plan(&seen, &report).await.unwrap();
        repair::carry_out(&mut plan, &seen, &mut places, &cancel, &|_| {}).await.unwrap();
        let of_second: Vec<_> =
            plan.steps.iter().filter(|step| step.key == second.as_str()).map(|step| step.outcome.clone().unwrap()).collect();
        assert_eq!(of_second.len(), 2);
        let left = |done: &repair::Outcome| matches!(done, repair::Outcome::NotDone(why) if why.contains("lies in repository"));
        assert!(of_second.iter().all(left), "{of_second:?}");
    }
    for (store, bytes) in stores.iter().zip([&changed, &good, &good]) {
        assert_eq!(store.get(&second, None).await.unwrap(), *bytes);
    }
    // Nor is a lost one taken from whoever comes first.
    stores[2].delete(&second).await.unwrap();
    let mut places = remembered(&all, Some(folder.path()), &["one", "two", "three"]);
    let (report, seen) = everywhere(&Wish::look(&cancel), &mut places).await.unwrap();
    let mut plan = repair::plan(&seen, &report).await.unwrap();
    repair::carry_out(&mut plan, &seen, &mut places, &cancel, &|_| {}).await.unwrap();
    assert_ne!(stores[2].get(&second, None).await.ok(), Some(changed), "{plan:?}");
}

#[tokio::test(start_paused = true)]
async fn known_damage_goes_with_its_repository_in_whatever_order_they_are() {
    let (two, cancel, pace, folder) = (Two::begin().await, CancellationToken::new(), Pace::of(None), tempfile::tempdir().unwrap());
    let second = key(&two.both, 2);
    two.stores[1].overwrite(&second, Bytes::from(vec![7; 4000]));
    let mut places = two.remembering(Some(folder.path()));
    let (report, _) = everywhere(&Wish { read: Some(Read::all(&pace, 2)), ..Wish::look(&cancel) }, &mut places).await.unwrap();
    assert_eq!(wrong(&report), [(2, second.to_string(), Kind::Content, vec![1])]);
    let stores = [two.stores[1].clone(), two.stores[0].clone()].map(|store| store as SharedStore);
    let around = Arc::new(over(Arc::new(Several::new(stores.to_vec(), StoredWhen::All, Follow::Queued))).await);
    // Alone, without it, and with both again.
    let alone = Arc::new(over(stores[1].clone()).await);
    let around_known = vec![(1, second.to_string(), Kind::Content, vec![2])];
    let looks = [
        (&around, &["two", "one"][..], around_known.clone()),
        (&alone, &["one"][..], vec![]),
        (&around, &["two", "one"][..], around_known),
    ];
    for (repository, named, expected) in looks {
        let mut places = remembered(repository, Some(folder.path()), named);
        let (report, _) = everywhere(&Wish::look(&cancel), &mut places).await.unwrap();
        assert_eq!(wrong(&report), expected);
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_listed_elsewhere_and_cannot_be_opened_here_is_neither_lost_nor_whole() {
    let folder = tempfile::tempdir().unwrap();
    let ([writer, reader], stores) = sealed(folder.path()).await;
    let (cancel, lacks) = (CancellationToken::new(), key(&writer, 3));
    stores[0].delete(&lacks).await.unwrap();
    let of = |repository: &Arc<ClusterRepository>| remembered(repository, None, &["one", "two"]);
    let (report, seen) = everywhere(&Wish::look(&cancel), &mut of(&writer)).await.unwrap();
    assert_eq!(told(&report), [(1, lacks.to_string(), vec![], vec![2])]);
    let finding = &report.findings[0].finding;
    assert!(finding.reason.starts_with("missing in repository 1, listed in 2, not proven from here: "), "{finding:?}");
    assert!(finding.lost.is_nothing() && !finding.advice.contains("base backup") && report.damaged(Severity::Damage) == 0, "{finding:?}");
    // Nothing is put that was not proven, and nobody waits for that.
    let plan = repair::plan(&seen, &report).await.unwrap();
    assert!(plan.steps.is_empty() && plan.without.len() == 1 && plan.without[0].unproven, "{plan:?}");
    let (report, seen) = everywhere(&Wish::look(&cancel), &mut of(&reader)).await.unwrap();
    assert_eq!(told(&report), [(1, lacks.to_string(), vec![2], vec![])]);
    assert_eq!(repair::plan(&seen, &report).await.unwrap().steps.len(), 1);
    // What none lists is lost, whoever looks.
    stores[1].delete(&lacks).await.unwrap();
    let (report, _) = everywhere(&Wish::look(&cancel), &mut of(&writer)).await.unwrap();
    assert!(told(&report).contains(&(1, lacks.to_string(), vec![], vec![])), "{report:?}");
}

#[tokio::test(start_paused = true)]
async fn of_two_sizes_one_is_damaged_and_who_can_open_them_says_which() {
    let folder = tempfile::tempdir().unwrap();
    let ([writer, reader], stores) = sealed(folder.path()).await;
    let (cancel, pace, third) = (CancellationToken::new(), Pace::of(None), key(&writer, 3));
    let good = stores[0].get(&third, None).await.unwrap();
    cut(&stores[0], &third, 100).await;
    let of = |repository: &Arc<ClusterRepository>| remembered(repository, None, &["one", "two"]);
    for deep in [false, true] {
        let wish = || Wish { read: deep.then(|| Read::all(&pace, 2)), ..Wish::look(&cancel) };
        let (report, seen) = everywhere(&wish(), &mut of(&writer)).await.unwrap();
        assert_eq!(told(&report), [(1, third.to_string(), vec![], vec![2]), (2, third.to_string(), vec![], vec![1])]);
        let reason = &report.findings[0].finding.reason;
        let (short, long) = (good.len() - 100, good.len());
        assert!(reason.contains(&format!("{short} bytes here and {long} in repository 2")), "{reason}");
        assert!(report.repositories.iter().all(|one| one.damaged == 1 && !one.whole), "{report:?}");
        assert!(repair::plan(&seen, &report).await.unwrap().steps.is_empty());
        let (report, _) = everywhere(&wish(), &mut of(&reader)).await.unwrap();
        assert_eq!(told(&report), [(1, third.to_string(), vec![2], vec![])]);
    }
    // A pack has its name to be compared with.
    stores[0].overwrite(&third, good.clone());
    let pack = writer.pack_object(Bytes::from(vec![9; 5000])).await.unwrap();
    writer.put_pack(&pack).await.unwrap();
    let pack: Key = writer.layout().key(&ObjectName::Pack(pack.id())).parse().unwrap();
    cut(&stores[1], &pack, 10).await;
    let (report, _) = everywhere(&Wish::look(&cancel), &mut of(&writer)).await.unwrap();
    assert_eq!(told(&report), [(2, pack.to_string(), vec![1], vec![])]);
    stores[1].overwrite(&pack, stores[0].get(&pack, None).await.unwrap());
    let (report, _) = everywhere(&Wish::look(&cancel), &mut of(&writer)).await.unwrap();
    assert_eq!(told(&report), []);
}

#[tokio::test(start_paused = true)]
async fn packs_that_one_lacks_are_missed_without_a_key_where_a_backup_that_is_there_was_taken_then() {
    let folder = tempfile::tempdir().unwrap();
    let ([writer, reader], stores) = sealed(folder.path()).await;
    let cancel = CancellationToken::new();
    let pack = writer.pack_object(Bytes::from(vec![9; 5000])).await.unwrap();
    writer.put_pack(&pack).await.unwrap();
    let pack: Key = writer.layout().key(&ObjectName::Pack(pack.id())).parse().unwrap();
    stores.iter().for_each(|store| store.age(Duration::from_secs(3600)));
    // Of another host: there is no copy of the manifest here.
    let mut backup = record(2);
    let (piece, _) = ManifestEncoder::new(backup.id.clone(), 1 << 20, 3).unwrap().finish().unwrap();
    reader.put_manifest(&backup.id, &piece).await.unwrap();
    let put = stores[1].list(&ListRequest { prefix: pack.to_string(), ..ListRequest::default() }).await.unwrap().objects[0].modified;
    let look = async || {
        let (report, _) = everywhere(&Wish::look(&cancel), &mut remembered(&writer, None, &["one", "two"])).await.unwrap();
        let notes: Vec<_> = report.findings.iter().filter(|found| found.finding.severity == Severity::Note).map(key_of).collect();
        (told(&report), notes)
    };
    for (ended, missing) in [(put + Duration::from_secs(30), true), (put - Duration::from_secs(3000), false)] {
        (backup.started_at, backup.ended_at) = ((ended - Duration::from_secs(600)).into(), ended.into());
        let of_backup: Key = writer.layout().key(&ObjectName::BackupRecord(backup.id.clone())).parse().unwrap();
        for store in &stores {
            store.delete(&of_backup).await.unwrap();
        }
        reader.commit_backup(&backup).await.unwrap();
        assert_eq!(look().await, (vec![], vec![]), "both have it");
        let whole = stores[1].get(&pack, None).await.unwrap();
        stores[0].delete(&pack).await.unwrap();
        let lacks = (1, pack.to_string());
        // Put then it is that backup's; put at any other time it may be what no backup needs.
        let expected = match missing {
            true => (vec![(1, pack.to_string(), vec![2], vec![])], vec![]),
            false => (vec![], vec![lacks]),
        };
        assert_eq!(look().await, expected);
        stores[0].put_if_absent(&pack, whole).await.unwrap();
        stores[0].age(Duration::from_secs(3600));
    }
}

fn key_of(found: &Found) -> (usize, String) {
    (found.repository, found.finding.key.clone())
}

#[tokio::test(start_paused = true)]
async fn who_stops_it_is_not_sent_to_the_agent() {
    let (two, cancel) = (Two::begin().await, CancellationToken::new());
    two.stores[1].delete(&key(&two.both, 3)).await.unwrap();
    cancel.cancel();
    let stopped = everywhere(&Wish::look(&cancel), &mut two.places()).await.map(|_| ()).unwrap_err();
    assert!(!stopped.hint().contains("agent"), "{}", stopped.hint());
}
