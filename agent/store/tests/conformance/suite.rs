//! What every store must do.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use tokio::task::JoinSet;
use walkeep_store::{ErrorKind, Key, ListRequest, Probed, Put, SharedStore, Store, list_all};

/// How a store's server sorts what it lists.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Sorts {
    /// By the keys' bytes, as S3 does.
    Keys,
    /// Folder by folder, as SeaweedFS does: `a/` before `a.b`.
    Folders,
}

/// The whole suite; `many` keys for the listings, more than a page holds.
pub async fn run(store: SharedStore, many: usize, sorts: Sorts) {
    creates_once(&*store).await;
    reads_ranges(&*store).await;
    proves_absence(&*store).await;
    keeps_odd_sizes(&*store).await;
    one_of_many_wins(&store).await;
    lists(&*store, sorts).await;
    lists_by_folder(&*store).await;
    lists_many(&store, many).await;
    deletes(&*store).await;
    deletes_many(&store, many).await;
    probes(&*store).await;
}

pub fn key(text: &str) -> Key {
    text.parse().unwrap()
}

async fn put(store: &dyn Store, name: &str) {
    store.put_if_absent(&key(name), Bytes::from(name.to_owned())).await.unwrap();
}

async fn creates_once(store: &dyn Store) {
    let key = key("create/object");
    assert_eq!(store.put_if_absent(&key, Bytes::from_static(b"one")).await.unwrap(), Put::Created);
    assert_eq!(store.put_if_absent(&key, Bytes::from_static(b"one")).await.unwrap(), Put::AlreadySame);
    for other in [&b"two"[..], b"on", b"one!", b""] {
        let error = store.put_if_absent(&key, Bytes::copy_from_slice(other)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AlreadyExists, "{error:?}");
    }
    assert_eq!(store.get(&key, None).await.unwrap(), "one");
}

async fn reads_ranges(store: &dyn Store) {
    let key = key("range/object");
    store.put_if_absent(&key, Bytes::from_static(b"0123456789")).await.unwrap();
    for (range, expected) in [
        (0..10, "0123456789"),
        (0..1, "0"),
        (9..10, "9"),
        (3..6, "345"),
        (7..100, "789"),
        (10..20, ""),
        (50..60, ""),
        (4..4, ""),
        (0..0, ""),
    ] {
        assert_eq!(store.get(&key, Some(range.clone())).await.unwrap(), expected, "{range:?}");
    }
}

async fn proves_absence(store: &dyn Store) {
    put(store, "absent/there").await;
    for name in ["absent/nothing", "nowhere/at/all", "absent/ther", "absent/there.not"] {
        for range in [None, Some(0..5), Some(0..0)] {
            let error = store.get(&key(name), range).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::NotFound, "{name}: {error:?}");
        }
    }
}

/// Put in this run, by a clock that is about right.
fn is_recent(at: SystemTime) -> bool {
    let off = at.duration_since(SystemTime::now()).unwrap_or_else(|before| before.duration());
    off < Duration::from_secs(600)
}

async fn keeps_odd_sizes(store: &dyn Store) {
    for size in [0, 1, 4095, 4097, 20 << 20] {
        let key = key(&format!("size/{size}"));
        let body: Bytes = (0..size).map(|i| (i * 7 + i / 251) as u8).collect::<Vec<u8>>().into();
        assert_eq!(store.put_if_absent(&key, body.clone()).await.unwrap(), Put::Created);
        assert_eq!(store.put_if_absent(&key, body.clone()).await.unwrap(), Put::AlreadySame);
        assert!(store.get(&key, None).await.unwrap() == body, "{size} bytes came back changed");
        let listed = store.list(&ListRequest { prefix: key.to_string(), ..Default::default() }).await.unwrap();
        assert!(listed.objects.iter().any(|object| object.key == key && object.size == size));
        assert!(listed.objects.iter().all(|object| is_recent(object.modified)), "{listed:?}");
    }
    assert_eq!(store.get(&key("size/0"), Some(0..5)).await.unwrap(), "");
    assert_eq!(store.get(&key("size/20971520"), Some(20971519..20971530)).await.unwrap().len(), 1);
}

/// Two writers put the same name at the same instant, over and over; several such pairs side by side.
pub async fn one_of_two_wins(store: &SharedStore, rounds: usize) {
    const PAIRS: usize = 4;
    let mut pairs = JoinSet::new();
    for pair in 0..PAIRS {
        let store = store.clone();
        pairs.spawn(async move { duels(&store, (pair..rounds).step_by(PAIRS)).await });
    }
    let won = pairs.join_all().await.into_iter().fold([0, 0], |[a, b], [c, d]| [a + c, b + d]);
    eprintln!("{won:?} won");
    assert_eq!(won.iter().sum::<usize>(), rounds);
}

async fn duels(store: &SharedStore, rounds: impl Iterator<Item = usize>) -> [usize; 2] {
    let mut won = [0, 0];
    for round in rounds {
        let key = key(&format!("duel/{round}"));
        let start = std::sync::Arc::new(tokio::sync::Barrier::new(2));
        let put = |writer: &'static str| {
            let (store, key, start) = (store.clone(), key.clone(), start.clone());
            tokio::spawn(async move {
                start.wait().await;
                store.put_if_absent(&key, Bytes::from_static(writer.as_bytes())).await
            })
        };
        let [one, other] = ["one", "other"].map(put);
        let outcomes = [("one", one.await.unwrap()), ("other", other.await.unwrap())];
        let winner = outcomes.iter().position(|(_, outcome)| outcome.is_ok()).unwrap();
        let (name, put) = &outcomes[winner];
        assert_eq!(*put.as_ref().unwrap(), Put::Created);
        let refused = outcomes[1 - winner].1.as_ref().unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::AlreadyExists, "round {round}: {refused:?}");
        assert_eq!(store.get(&key, None).await.unwrap(), *name, "round {round}");
        won[winner] += 1;
    }
    won
}

async fn one_of_many_wins(store: &SharedStore) {
    for round in 0..3 {
        let key = key(&format!("race/{round}/deep/folder/object"));
        let mut racers = JoinSet::new();
        for racer in 0..32 {
            let (store, key) = (store.clone(), key.clone());
            racers.spawn(async move { (racer, store.put_if_absent(&key, Bytes::from(format!("racer {racer}"))).await) });
        }
        let mut winners = Vec::new();
        for (racer, outcome) in racers.join_all().await {
            match outcome {
                Ok(put) => {
                    assert_eq!(put, Put::Created);
                    winners.push(racer);
                }
                Err(error) => assert_eq!(error.kind(), ErrorKind::AlreadyExists, "{error:?}"),
            }
        }
        assert_eq!(winners.len(), 1, "{winners:?}");
        assert_eq!(store.get(&key, None).await.unwrap(), format!("racer {}", winners[0]));
    }
    // The same bytes: all succeed, one of them by creating.
    let key = key("race/same");
    let mut racers = JoinSet::new();
    for _ in 0..16 {
        let (store, key) = (store.clone(), key.clone());
        racers.spawn(async move { store.put_if_absent(&key, Bytes::from_static(b"same")).await.unwrap() });
    }
    assert_eq!(racers.join_all().await.iter().filter(|put| **put == Put::Created).count(), 1);
}

async fn names(store: &dyn Store, request: ListRequest) -> Vec<String> {
    let page = list_all(store, request).await.unwrap();
    page.objects.iter().map(|object| object.key.to_string()).chain(page.folders).collect()
}

async fn lists(store: &dyn Store, sorts: Sorts) {
    // In the order of bytes `-` < `.` < `/` < digits < capitals < `_` < small letters.
    let sorted = ["list/a-b", "list/a.b", "list/a/b", "list/a/c/d", "list/a0", "list/aB", "list/a_b", "list/ab", "list/b"];
    for name in sorted.iter().rev() {
        put(store, name).await;
    }
    let under = |prefix: &str| ListRequest { prefix: prefix.to_owned(), ..Default::default() };
    assert_eq!(names(store, under("list/")).await, sorted);
    assert_eq!(names(store, under("list/a/")).await, ["list/a/b", "list/a/c/d"]);
    assert_eq!(names(store, under("list/a.")).await, ["list/a.b"]);
    assert_eq!(names(store, under("list/zzz")).await, [""; 0]);
    assert_eq!(names(store, under("no/such/folder/")).await, [""; 0]);
    for limit in 1..4 {
        assert_eq!(names(store, ListRequest { limit: Some(limit), ..under("list/") }).await, sorted, "limit {limit}");
    }
    for after in ["list/a/", "list/a/b", "list/a/b0", "list/a0", "list/", "a", "list/zzz", "z"] {
        let expected: Vec<_> = sorted.iter().copied().filter(|name| *name > after).collect();
        if sorts == Sorts::Keys {
            assert_eq!(
                names(store, ListRequest { start_after: Some(after.to_owned()), ..under("list/") }).await,
                expected,
                "after {after}"
            );
        }
    }
    for name in ["flat/1", "flat/2", "flat/3.x", "flat/4"] {
        put(store, name).await;
    }
    for (after, expected) in [("flat/", 4), ("flat/1", 3), ("flat/10", 3), ("flat/3", 2), ("flat/3.x", 1), ("flat/4", 0), ("flat/5", 0)] {
        let request = ListRequest { start_after: Some(after.to_owned()), limit: Some(1), ..under("flat/") };
        assert_eq!(names(store, request).await.len(), expected, "after {after}");
    }
}

async fn lists_by_folder(store: &dyn Store) {
    for name in ["fold/a/1", "fold/a/2/x", "fold/b/1", "fold/bb", "fold/c", "fold/d/e/f/g"] {
        put(store, name).await;
    }
    let request = ListRequest { prefix: "fold/".to_owned(), by_folder: true, ..Default::default() };
    for limit in [None, Some(1), Some(2)] {
        let page = list_all(store, ListRequest { limit, ..request.clone() }).await.unwrap();
        assert_eq!(page.folders, ["fold/a/", "fold/b/", "fold/d/"], "limit {limit:?}");
        assert_eq!(page.objects.iter().map(|object| object.key.as_str()).collect::<Vec<_>>(), ["fold/bb", "fold/c"], "limit {limit:?}");
    }
    assert_eq!(names(store, ListRequest { prefix: "fold/b".to_owned(), ..request.clone() }).await, ["fold/bb", "fold/b/"]);
    assert_eq!(names(store, ListRequest { start_after: Some("fold/bb".to_owned()), ..request.clone() }).await, ["fold/c", "fold/d/"]);
    assert_eq!(names(store, ListRequest { prefix: "fold/a/2/".to_owned(), ..request }).await, ["fold/a/2/x"]);
}

async fn lists_many(store: &SharedStore, many: usize) {
    let mut tasks = JoinSet::new();
    for worker in 0..8 {
        let store = store.clone();
        tasks.spawn(async move {
            for i in (worker..many).step_by(8) {
                store.put_if_absent(&key(&format!("many/{:02}/{i:05}", i % 3)), Bytes::from_static(b"x")).await.unwrap();
            }
        });
    }
    tasks.join_all().await;
    let request = ListRequest { prefix: "many/".to_owned(), ..Default::default() };
    let first = store.list(&request).await.unwrap();
    assert!(first.next.is_some(), "one page held {} keys", first.objects.len());
    let all = list_all(&**store, request.clone()).await.unwrap();
    assert_eq!(all.objects.len(), many);
    assert!(all.objects.is_sorted_by(|a, b| a.key < b.key), "keys out of order or twice");
    let by_folder = list_all(&**store, ListRequest { by_folder: true, ..request }).await.unwrap();
    assert_eq!(by_folder.folders, ["many/00/", "many/01/", "many/02/"]);
}

async fn deletes(store: &dyn Store) {
    let key = key("delete/me");
    store.put_if_absent(&key, Bytes::from_static(b"x")).await.unwrap();
    for _ in 0..3 {
        store.delete(&key).await.unwrap();
        assert_eq!(store.get(&key, None).await.unwrap_err().kind(), ErrorKind::NotFound);
    }
    assert_eq!(store.put_if_absent(&key, Bytes::from_static(b"y")).await.unwrap(), Put::Created, "the name is free again");
}

/// Behind [`lists_many`]: more keys than one request takes.
async fn deletes_many(store: &SharedStore, many: usize) {
    let request = ListRequest { prefix: "many/".to_owned(), ..Default::default() };
    let mut keys: Vec<Key> = list_all(&**store, request.clone()).await.unwrap().objects.into_iter().map(|listed| listed.key).collect();
    assert_eq!(keys.len(), many);
    let left = keys.split_off(many - 2);
    keys.push(key("many/that/is/not/there"));
    assert!(store.delete_many(&keys).await.unwrap().is_empty());
    let rest: Vec<Key> = list_all(&**store, request).await.unwrap().objects.into_iter().map(|listed| listed.key).collect();
    assert_eq!(rest, left, "what was not named stays");
    assert!(store.delete_many(&[]).await.unwrap().is_empty());
}

async fn probes(store: &dyn Store) {
    let scratch = key("probe/scratch");
    for _ in 0..2 {
        assert_eq!(store.probe(&scratch).await.unwrap(), Probed::Removed);
        assert_eq!(store.get(&scratch, None).await.unwrap_err().kind(), ErrorKind::NotFound, "the probe left something");
    }
    // A probe whose object could not be removed: the next one meets it and is content.
    store.put_if_absent(&scratch, Bytes::from_static(b"left behind")).await.unwrap();
    store.probe(&scratch).await.unwrap();
}
