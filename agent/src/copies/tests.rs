//! How a comparison queues what it finds and what it brings back, and what a copy proves; over stores in memory.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use walkeep_core::WalFileName;
use walkeep_core::artifact::{ArtifactId, ArtifactPlace};
use walkeep_core::expiry::{End, ExpiredWal, Expiry, ExpiryEnd};
use walkeep_core::layout::{ObjectName, PartName};
use walkeep_core::{Lsn, TimelineId};
use walkeep_store::several::{Follow, Guide, StoredWhen};
use walkeep_store::{Fault, FaultyStore, Key, MemoryStore, Operation, Rule, SharedStore, Store};

use super::copy::{self, Copied, CopyOptions};
use super::*;
use crate::config::{Config, Selection};
use crate::encryption::Encryption;
use crate::repository::Repository;
use crate::repository::tests::{memory, over, record, segment};

/// A configuration with two repositories, its spool in `folder`.
fn cluster(folder: &Path) -> ClusterConfig {
    configured(folder, &["one", "other"])
}

fn configured(folder: &Path, repositories: &[&str]) -> ClusterConfig {
    let path = folder.join("walkeep.toml");
    let tables: String = repositories.iter().map(|name| format!("[[cluster.main.repository]]\nurl = \"s3://{name}\"\n")).collect();
    let text = format!("[cluster.main]\nspool = \"{}\"\n{tables}", folder.display());
    std::fs::write(&path, text).unwrap();
    Config::load(&Selection { path: Some(path), ..Selection::default() }).unwrap().cluster
}

/// What is in a store, but for the marker.
async fn keys(store: &MemoryStore) -> Vec<String> {
    let page = walkeep_store::list_all(store, walkeep_store::ListRequest::default()).await.unwrap();
    page.objects.into_iter().map(|listed| listed.key.to_string()).filter(|key| key != "walkeep.json").collect()
}

async fn put(repository: &ClusterRepository, number: u64) {
    repository.put_wal(WalFileName::Segment(segment(number)), Bytes::from(vec![number as u8; 1 << 20])).await.unwrap();
}

async fn put_part(repository: &ClusterRepository, number: u64) {
    let part = PartName { segment: segment(number), from: 0, to: 10, epoch: 1 };
    repository.put_part(part, Bytes::from(vec![1; 10])).await.unwrap();
}

/// Two places, of which nobody has brought anything to the second, and what each has.
async fn two() -> (Arc<ClusterRepository>, Several, Arc<MemoryStore>, Arc<MemoryStore>) {
    let (one, other) = (Arc::new(MemoryStore::new()), Arc::new(MemoryStore::new()));
    over(other.clone()).await;
    let several = Several::new(vec![one.clone(), other.clone()], StoredWhen::Primary, Follow::Queued);
    // A queue that is lost, as with a killed agent.
    let lost = Several::new(vec![one.clone(), other.clone()], StoredWhen::Primary, Follow::Queued);
    let repository = over(Arc::new(lost)).await;
    let repository = ClusterRepository::new(
        Repository::reached(Arc::new(several.clone())),
        repository.cluster().clone(),
        repository.identity().clone(),
        3,
    );
    (Arc::new(repository), several, one, other)
}

/// The same repository over one place by itself.
async fn alone(repository: &ClusterRepository, index: usize) -> ClusterRepository {
    repository.each().swap_remove(index)
}

#[tokio::test]
async fn a_comparison_brings_what_is_missing_and_not_what_was_let_go() {
    let folder = tempfile::tempdir().unwrap();
    let (repository, several, one, other) = two().await;
    let (first, second) = (alone(&repository, 0).await, alone(&repository, 1).await);
    for number in 1..=5 {
        put(&first, number).await;
    }
    first.commit_backup(&record(2)).await.unwrap();
    first.commit_backup(&record(1)).await.unwrap();
    // Parts of a whole segment are on their way out, those of another one are not.
    put_part(&first, 3).await;
    put_part(&first, 6).await;
    // Segment 1 and the first backup are being removed; what may still be taken back is copied.
    let wal =
        |number: u64| vec![ExpiredWal { timeline: TimelineId::FIRST, from: Lsn::new(number << 20), to: Lsn::new((number + 1) << 20) }];
    let expiry = |number: u32, wal, backups| Expiry { backups, wal, ..Expiry::new(number, chrono::DateTime::UNIX_EPOCH, "db1".into()) };
    let place = |chance| ArtifactPlace { name: "etc".parse().unwrap(), id: ArtifactId::new(chrono::DateTime::UNIX_EPOCH, chance) };
    let let_go = Expiry { artifacts: vec![place(1)], ..expiry(1, wal(1), vec![record(1).id]) };
    first.put_expiry(&let_go).await.unwrap();
    first
        .end_expiry(1, &ExpiryEnd { number: Some(1), end: End::Removing, at: chrono::DateTime::UNIX_EPOCH, host: "db1".into() })
        .await
        .unwrap();
    first.put_expiry(&Expiry { artifacts: vec![place(3)], ..expiry(2, wal(2), Vec::new()) }).await.unwrap();
    // The second one has something that the primary lost, something that was let go, and something that is nobody's.
    put(&second, 7).await;
    put(&second, 1).await;
    put_part(&second, 5).await;
    for chance in [1, 2, 3] {
        second.begin_artifact(&place(chance), "db1").await.unwrap();
    }
    other.overwrite(&"main/7/stranger".parse().unwrap(), Bytes::new());
    one.overwrite(&"main/7/wal/stranger".parse().unwrap(), Bytes::new());

    let stop = CancellationToken::new();
    let followers: Vec<_> =
        [0, 1].map(|index| tokio::spawn(follow(repository.clone(), cluster(folder.path()), index, stop.clone()))).into();
    let mut cursor = Cursor::load(&cluster(folder.path()), "s3://other");
    assert!(cursor.is_due(Duration::from_secs(1000)));
    let began = several.begin_comparing();
    assert!(compare_once(&repository, &several, 1, &mut cursor).await.unwrap());
    several.note_compared(1, began);
    several.drained(0).await;
    several.drained(1).await;
    let has = async |store: &ClusterRepository, number: u64| store.get_wal(WalFileName::Segment(segment(number))).await.unwrap().is_some();
    for (number, brought) in [(1, true), (2, true), (3, true), (4, true), (5, true), (7, true)] {
        assert_eq!(has(&second, number).await, brought, "{number}");
    }
    assert!(has(&first, 7).await, "what only the second had");
    let begun = |chance| first.layout().key(&ObjectName::ArtifactBegun(place(chance)));
    let there = keys(&one).await;
    let came = [1, 2, 3].map(|chance| there.contains(&begun(chance)));
    assert_eq!(came, [false, true, true], "an artifact that was let go does not come back, and one that may be taken back does");
    assert!(second.backup(&record(2).id).await.unwrap().is_some());
    assert_eq!(second.backup(&record(1).id).await.unwrap(), None, "it is being removed");
    assert_eq!(second.list_parts(segment(3)).await.unwrap(), []);
    assert_eq!(second.list_parts(segment(6)).await.unwrap().len(), 1);
    assert_eq!(first.list_parts(segment(5)).await.unwrap(), []);
    assert!(!keys(&other).await.contains(&"main/7/wal/stranger".to_owned()) && !keys(&one).await.contains(&"main/7/stranger".to_owned()));
    // What is noted outlives the process, and nothing is found any more.
    let mut again = Cursor::load(&cluster(folder.path()), "s3://other");
    assert!(!again.is_due(Duration::from_secs(1000)));
    let before = (keys(&one).await, keys(&other).await);
    assert!(compare_once(&repository, &several, 1, &mut again).await.unwrap());
    assert_eq!((several.states()[0].queued, several.states()[1].queued), (0, 0));
    assert_eq!((keys(&one).await, keys(&other).await), before);
    stop.cancel();
    for follower in followers {
        follower.await.unwrap();
    }
}

#[tokio::test]
async fn a_comparison_of_an_earlier_process_goes_on_and_a_whole_one_follows() {
    let folder = tempfile::tempdir().unwrap();
    let config = cluster(folder.path());
    let mut cursor = Cursor::load(&config, "s3://other");
    assert_eq!(cursor.begin(), Mark::default());
    let mark = Mark { pass: 0, folder: "main/7/wal/00000001/".into() };
    cursor.note(&mark);
    let mut next = Cursor::load(&config, "s3://other");
    assert_eq!(next.begin(), mark);
    assert!(!next.complete(), "what came meanwhile into the folders before is not known");
    assert!(next.is_due(Duration::from_secs(1000)));
    assert_eq!(next.begin(), Mark::default());
    assert!(next.complete() && !next.is_due(Duration::from_secs(1000)));
    assert!(Cursor::load(&config, "s3://another").is_due(Duration::from_secs(1000)));
}

#[tokio::test]
async fn a_command_leaves_a_note_for_the_agent() {
    let folder = tempfile::tempdir().unwrap();
    let config = cluster(folder.path());
    assert!(!left_behind::take(&config, "s3://other"));
    let Follow::Awaited { left, .. } = left_behind::follow(&config, left_behind::PATIENCE) else { panic!("a command waits") };
    left(1);
    assert!(!left_behind::take(&config, "s3://one") && left_behind::take(&config, "s3://other"));
    left(1);
    let several = two().await.1;
    left_behind::pass_over_dead(&config, &several);
    assert_eq!(several.states().iter().map(|state| state.down.is_some()).collect::<Vec<_>>(), [false, true]);
}

/// Three places of a cluster, and somebody who compares and brings for each.
struct Three {
    folder: tempfile::TempDir,
    repository: Arc<ClusterRepository>,
    several: Several,
    stores: [Arc<FaultyStore>; 3],
    stop: CancellationToken,
}

impl Three {
    async fn begin(rule: StoredWhen) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let stores = [(); 3].map(|()| Arc::new(FaultyStore::new(Arc::new(MemoryStore::new()))));
        let places: Vec<SharedStore> = stores.iter().map(|store| store.clone() as SharedStore).collect();
        // What every one of them has from its beginning.
        over(Arc::new(Several::new(places.clone(), StoredWhen::All, Follow::Queued))).await;
        let several = Several::new(places, rule, Follow::Queued);
        let repository = Arc::new(over(Arc::new(several.clone())).await);
        let stop = CancellationToken::new();
        let config = configured(folder.path(), &["one", "second", "third"]);
        for index in 0..3 {
            tokio::spawn(follow(repository.clone(), config.clone(), index, stop.clone()));
            if index > 0 {
                tokio::spawn(compare(repository.clone(), config.clone(), index, stop.clone()));
            }
        }
        Self { folder, repository, several, stores, stop }
    }

    fn config(&self) -> ClusterConfig {
        configured(self.folder.path(), &["one", "second", "third"])
    }

    async fn place(&self, index: usize) -> ClusterRepository {
        alone(&self.repository, index).await
    }

    fn fail(&self, index: usize) {
        for operation in Operation::ALL {
            self.stores[index].inject(Rule::new(operation, Fault::Fail(walkeep_store::ErrorKind::Transient)));
        }
    }

    /// Waits a while for this to be so.
    async fn until(&self, what: &str, so: impl AsyncFn() -> bool) {
        for _ in 0..300 {
            if so().await {
                return;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        panic!("never: {what}; {:?}", self.several.states());
    }

    fn compared(&self) -> Vec<bool> {
        self.several.states().iter().map(|state| state.compared).collect()
    }
}

impl Drop for Three {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn has(repository: &ClusterRepository, number: u64) -> bool {
    repository.get_wal(WalFileName::Segment(segment(number))).await.unwrap().is_some()
}

#[tokio::test(start_paused = true)]
async fn what_another_process_left_behind_is_looked_for_in_every_repository() {
    let three = Three::begin(StoredWhen::Any).await;
    three.until("all are compared", async || three.compared() == [true; 3]).await;
    put(&three.place(2).await, 1).await;
    let Follow::Awaited { left, .. } = left_behind::follow(&three.config(), left_behind::PATIENCE) else { panic!("a command waits") };
    left(0);
    left(1);
    let places = [three.place(0).await, three.place(1).await];
    three.until("what only the third had", async || has(&places[0], 1).await && has(&places[1], 1).await).await;
    three.until("all are compared", async || three.compared() == [true; 3]).await;
    // A note about a primary that cannot be asked says nothing of the second.
    three.fail(0);
    left(0);
    three.until("the note is taken", async || !three.compared()[0]).await;
    tokio::time::sleep(Duration::from_secs(100)).await;
    assert_eq!(three.compared(), [false, true, true]);
    put(&three.repository, 2).await;
    assert!(!has(&three.repository, 3).await, "it is known to be absent");
}

#[tokio::test]
async fn a_backup_of_which_a_pack_is_damaged_is_not_copied() {
    let (repository, store) = memory().await;
    let repository = Arc::new(repository);
    repository.repository().add_identity(&"main".parse().unwrap(), 1, repository.identity()).await.unwrap();
    let ids = [crate::expire::tests::backup(&repository, 1).await, crate::expire::tests::backup(&repository, 2).await];
    let manifest = repository.get_manifest(&repository.backup(&ids[0]).await.unwrap().unwrap()).await.unwrap();
    let entries: Vec<_> = tokio::task::spawn_blocking(move || manifest.iter().unwrap().map(Result::unwrap).collect()).await.unwrap();
    let pack = entries.iter().find_map(|entry| match &entry.kind {
        walkeep_core::manifest::EntryKind::File { content, .. } => content.extents().first().map(|extent| extent.pack),
        _ => None,
    });
    let key = |name: &ObjectName| -> Key { repository.layout().key(name).parse().unwrap() };
    let pack = key(&ObjectName::Pack(pack.unwrap()));
    store.overwrite(&pack, Bytes::from_static(b"bad"));
    let target = Arc::new(MemoryStore::new());
    let done = copied(store.clone(), target.clone(), false, None).await.unwrap();
    assert_eq!((done.damaged.len(), done.incomplete.len(), done.is_whole()), (1, 1, false), "{done:?}");
    assert!(done.incomplete[0].contains(pack.as_str()) && done.incomplete[0].contains(ids[0].as_str()), "{done:?}");
    let has = |id: &walkeep_core::layout::BackupId| target.contains(&key(&ObjectName::BackupRecord(id.clone())));
    assert!(!has(&ids[0]) && has(&ids[1]), "{:?}", keys(&target).await);
}

async fn copied(from: SharedStore, to: SharedStore, dry_run: bool, keys: Option<Arc<Encryption>>) -> anyhow::Result<Copied> {
    let cluster = "main".parse().unwrap();
    let with =
        |repository, identity| ClusterRepository::new(repository, "main".parse().unwrap(), identity, 3).with_encryption(keys.clone());
    let options = CopyOptions { dry_run, rate_kb: None };
    copy::copy(from, to, &cluster, options, &with, &CancellationToken::new(), &|_| {}).await
}

/// A repository that knows its cluster, with segments and a backup.
async fn filled() -> (ClusterRepository, Arc<MemoryStore>) {
    let (repository, store) = memory().await;
    repository.repository().add_identity(&"main".parse().unwrap(), 1, repository.identity()).await.unwrap();
    for number in 1..=30 {
        put(&repository, number).await;
    }
    let pack = repository.pack_object(Bytes::from_static(b"a pack")).await.unwrap();
    repository.put_pack(&pack).await.unwrap();
    repository.commit_backup(&record(1)).await.unwrap();
    (repository, store)
}

#[tokio::test]
async fn a_copy_that_was_broken_off_goes_on_and_never_has_a_backup_without_its_data() {
    let (repository, store) = filled().await;
    let target = Arc::new(MemoryStore::new());
    let faulty = Arc::new(FaultyStore::new(target.clone()));
    let dry = copied(store.clone(), target.clone(), true, None).await.unwrap();
    assert_eq!((dry.objects, target.len()), (32, 0));
    let record_key: Key = repository.layout().key(&ObjectName::BackupRecord(record(1).id)).parse().unwrap();
    for at in [5, 9, 16] {
        faulty.inject(Rule::new(Operation::Put, Fault::Fail(walkeep_store::ErrorKind::Denied)).from_call(at));
        assert!(copied(store.clone(), faulty.clone(), false, None).await.is_err());
        assert!(!target.contains(&record_key), "its data first");
        faulty.heal();
    }
    let there = target.len() as u64;
    let rest = copied(store.clone(), faulty.clone(), false, None).await.unwrap();
    assert!(there > 10 && rest.there_already + rest.objects == 32 && rest.objects < 32, "{there} {rest:?}");
    assert_eq!(faulty.calls().iter().rfind(|(operation, _)| *operation == Operation::Put).unwrap().1, record_key.as_str());
    assert_eq!(keys(&store).await, keys(&target).await);
    assert_eq!(copied(store.clone(), target.clone(), false, None).await.unwrap().objects, 0);
}

/// The source has missed that the target let go: nothing of it comes back, nor the record of it.
#[tokio::test]
async fn what_the_target_has_let_go_is_not_brought_there() {
    let (repository, store) = filled().await;
    let target = Arc::new(MemoryStore::new());
    let wal = vec![ExpiredWal { timeline: TimelineId::FIRST, from: Lsn::new(1 << 20), to: Lsn::new(21 << 20) }];
    let expiry = Expiry { backups: vec![record(1).id], wal, ..Expiry::new(1, chrono::DateTime::UNIX_EPOCH, "db1".into()) };
    repository.put_expiry(&expiry).await.unwrap();
    copied(store.clone(), target.clone(), false, None).await.unwrap();
    let before = keys(&target).await.len();
    let there = Repository::open(target.clone()).await.unwrap();
    let there = Arc::new(ClusterRepository::new(there, "main".parse().unwrap(), repository.identity().clone(), 3));
    let (scope, none, stop) = (crate::expire::Scope::Everything, Duration::ZERO, CancellationToken::new());
    let let_go = async || {
        crate::expire::carry_out(&there, scope, (none, std::path::Path::new("/nonexistent")), chrono::Utc::now(), &stop, &|_| {})
            .await
            .unwrap()
    };
    assert_eq!(let_go().await.objects, 21);
    let left = keys(&target).await;
    assert_eq!(left.len(), before - 21, "one record took the place of the other");
    for dry_run in [true, false] {
        assert_eq!(copied(store.clone(), target.clone(), dry_run, None).await.unwrap().objects, 0);
    }
    assert_eq!(keys(&target).await, left);
    // One that comes back all the same is carried out already: nobody is offered to take it back, and the next run clears it away.
    there.put_expiry(&expiry).await.unwrap();
    assert!(crate::expire::pending(&there).await.unwrap().is_empty());
    assert_eq!(crate::expire::undo(&there, 1, chrono::Utc::now()).await.unwrap(), None);
    put(&there, 40).await;
    there.commit_backup(&record(1)).await.unwrap();
    let_go().await;
    let (known, _) = there.expiries().await.unwrap();
    assert!(known.len() == 1 && known[0].record.is_memory() && known[0].record.gone_backups == expiry.backups, "{known:?}");
    assert_eq!(there.backup(&record(1).id).await.unwrap(), None, "what another one still had of it goes too");
}

#[tokio::test]
async fn damage_is_not_copied_and_nothing_is_overwritten() {
    let (repository, store) = filled().await;
    let key = |number| -> Key { repository.layout().wal_key(WalFileName::Segment(segment(number))).parse().unwrap() };
    let whole = store.get(&key(1), None).await.unwrap();
    store.overwrite(&key(2), whole.clone());
    let mut flipped = whole.to_vec();
    *flipped.last_mut().unwrap() ^= 1;
    store.overwrite(&key(1), flipped.into());
    let pack = repository.packs().await.unwrap();
    assert!(!format!("{pack:?}").is_empty());
    let target = Arc::new(MemoryStore::new());
    target.overwrite(&key(3), Bytes::from_static(b"other"));
    let done = copied(store.clone(), target.clone(), false, None).await.unwrap();
    assert_eq!((done.damaged.len(), done.differing.clone()), (2, vec![key(3).to_string()]));
    assert!(!target.contains(&key(1)) && !target.contains(&key(2)), "{done:?}");
    assert_eq!(target.get(&key(3), None).await.unwrap(), "other");

    // Another cluster's repository is left alone.
    let (other, strange) = memory().await;
    let mut identity = other.identity().clone();
    identity.system_identifier = walkeep_core::SystemIdentifier::new(8);
    other.repository().add_identity(&"main".parse().unwrap(), 1, &identity).await.unwrap();
    let before = keys(&strange).await;
    let refused = copied(store, strange.clone(), false, None).await.unwrap_err();
    assert!(format!("{refused:#}").contains("do not agree"), "{refused:#}");
    assert_eq!(keys(&strange).await, before);
}

/// A record that was edited is as good JSON as before: the records beside it tell.
#[tokio::test]
async fn a_record_of_the_trail_that_was_edited_is_not_copied() {
    let (repository, store) = filled().await;
    let mut head = None;
    for pid in 1..=6 {
        repository.append_audit(&mut head, &crate::repository::audit::tests::entry(pid)).await.unwrap();
    }
    let key = |number| -> Key { repository.layout().key(&ObjectName::Audit(number)).parse().unwrap() };
    let whole = copied(store.clone(), Arc::new(MemoryStore::new()), false, None).await.unwrap();
    assert!(whole.is_whole() && whole.objects == 38, "{whole:?}");
    let guide = Contents::new(Arc::new(repository.clone()));
    // One in the middle, one that cannot be read any more, the first, and the last, with whom it or the one before may have been changed.
    for (number, from, to, told) in
        [(3, "db1", "db2", vec![3]), (3, "{", "", vec![3]), (1, "db1", "db2", vec![1]), (4, "", "", vec![]), (5, "db1", "db2", vec![5, 6])]
    {
        let before = store.get(&key(number), None).await.unwrap();
        let edited = String::from_utf8(before.to_vec()).unwrap().replacen(from, to, 1);
        store.overwrite(&key(number), edited.clone().into());
        let target = Arc::new(MemoryStore::new());
        let done = copied(store.clone(), target.clone(), false, None).await.unwrap();
        let names = |number: &u32| done.damaged.iter().any(|damaged| damaged.starts_with(key(*number).as_str()));
        assert!(done.damaged.len() == told.len() && told.iter().all(names), "{number}: {done:?}");
        assert!((1..=6).all(|number| target.contains(&key(number)) != told.contains(&number)), "{number}");
        assert_eq!(guide.prove(&key(number), &edited.into()).await.is_err(), !told.is_empty(), "nor is it brought by the agent");
        store.overwrite(&key(number), before);
    }
}

/// What is archived is left out with what needs it, and comes when it is thawed; all else is copied at once.
#[tokio::test]
async fn a_copy_goes_on_behind_what_is_archived() {
    let (repository, store) = memory().await;
    let repository = Arc::new(repository);
    repository.repository().add_identity(&"main".parse().unwrap(), 1, repository.identity()).await.unwrap();
    for number in 1..=5 {
        put(&repository, number).await;
    }
    let ids = [crate::expire::tests::backup(&repository, 1).await, crate::expire::tests::backup(&repository, 2).await];
    let key = |name: &ObjectName| -> Key { repository.layout().key(name).parse().unwrap() };
    let cold = key(&ObjectName::Wal(WalFileName::Segment(segment(2))));
    let manifest = key(&ObjectName::BackupManifest(ids[1].clone(), 1));
    let source = Arc::new(FaultyStore::new(store.clone()));
    let freeze = || {
        for key in [&cold, &manifest] {
            source.inject(Rule::new(Operation::Get, Fault::Fail(walkeep_store::ErrorKind::Archived)).on(key.as_str()));
        }
    };
    freeze();
    let target = Arc::new(MemoryStore::new());
    let done = copied(source.clone(), target.clone(), false, None).await.unwrap();
    let mut archived = vec![cold.to_string(), manifest.to_string()];
    archived.sort();
    let mut told = done.archived.clone();
    told.sort();
    assert_eq!((told, done.is_whole(), done.is_damaged()), (archived, false, false), "{done:?}");
    let stored = [store.get(&cold, None).await.unwrap().len(), store.get(&manifest, None).await.unwrap().len()];
    assert_eq!(done.archived_bytes, stored.iter().sum::<usize>() as u64);
    assert!(done.incomplete.len() == 1 && done.incomplete[0].contains(manifest.as_str()), "{done:?}");
    let has = |id: &walkeep_core::layout::BackupId| target.contains(&key(&ObjectName::BackupRecord(id.clone())));
    assert!(has(&ids[0]) && !has(&ids[1]) && !target.contains(&cold) && !target.contains(&manifest));
    assert_eq!(store.len() - target.len(), 3, "all else is there");
    source.heal();
    let rest = copied(source.clone(), target.clone(), false, None).await.unwrap();
    assert_eq!((rest.objects, rest.is_whole(), keys(&store).await), (3, true, keys(&target).await), "{rest:?}");
    // What the target has archived, in another size, cannot be compared: told, and nothing is lost.
    target.overwrite(&cold, Bytes::from_static(b"short"));
    let frozen = Arc::new(FaultyStore::new(target.clone()));
    frozen.inject(Rule::new(Operation::Put, Fault::Fail(walkeep_store::ErrorKind::Archived)).on(cold.as_str()));
    assert_eq!(copied(store, frozen, false, None).await.unwrap().archived, [cold.to_string()]);
}

#[tokio::test]
async fn the_guide_knows_what_is_kept() {
    let (repository, _) = memory().await;
    let guide = Contents::new(Arc::new(repository.clone()));
    let key = |name: &ObjectName| -> Key { repository.layout().key(name).parse().unwrap() };
    let (wal, backup) = (ObjectName::Wal(WalFileName::Segment(segment(1))), ObjectName::BackupRecord(record(1).id));
    assert!(guide.wants(0, &key(&wal)) && !guide.wants(1, &key(&wal)));
    assert!(guide.wants(1, &key(&backup)) && !guide.wants(0, &key(&backup)) && guide.alone(&key(&backup)));
    assert!(!guide.alone(&key(&wal)) && guide.alone(&key(&ObjectName::Wal(WalFileName::History(TimelineId::FIRST)))));
    for stranger in ["main/cluster.json", "main/probe-1-2", "main/8/wal/00000001.history.zst", "walkeep.json"] {
        assert!(!guide.wants(0, &stranger.parse().unwrap()), "{stranger}");
    }
}
