//! Versions and locks of a real server: what was removed is read as it was, and what is locked stays.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use walkeep_store::s3::{Lock, LockMode, PastS3Store, Placement, Placing};
use walkeep_store::{ErrorKind, ListRequest, S3Options, S3Store, Store, list_all};

use crate::suite::key;
use crate::weed;

/// S3 tells whole seconds.
async fn next_second() -> SystemTime {
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let now = SystemTime::now();
    tokio::time::sleep(Duration::from_millis(1100)).await;
    now
}

#[tokio::test]
async fn what_was_removed_is_read_as_it_was() {
    let Some(weed) = weed::server() else { return };
    let bucket = weed.locking_bucket("past").await;
    let options = || S3Options { bucket: bucket.clone(), ..weed.options("p") };
    let open = async || S3Store::open(options()).await.unwrap();
    let store = open().await;
    for name in ["a/1", "a/2", "b", "b/c/d"] {
        store.put_if_absent(&key(name), Bytes::from(name.to_owned())).await.unwrap();
    }
    let whole = next_second().await;
    store.delete(&key("a/2")).await.unwrap();
    assert!(store.delete_many(&[key("b/c/d"), key("b")]).await.unwrap().is_empty());
    let emptied = next_second().await;
    store.put_if_absent(&key("b"), Bytes::from_static(b"put over")).await.unwrap();

    let names = async |store: &PastS3Store, request: ListRequest| {
        let page = list_all(store, request).await.unwrap();
        let objects: Vec<String> = page.objects.iter().map(|listed| listed.key.to_string()).collect();
        (objects, page.folders)
    };
    let all = ListRequest::default;
    let past = PastS3Store::new(open().await, whole);
    assert_eq!(names(&past, all()).await.0, ["a/1", "a/2", "b", "b/c/d"]);
    let folders = ListRequest { by_folder: true, ..all() };
    assert_eq!(names(&past, folders.clone()).await, (vec!["b".to_owned()], vec!["a/".to_owned(), "b/".to_owned()]));
    assert_eq!(
        names(&past, ListRequest { prefix: "a/".into(), start_after: Some("a/1".into()), limit: Some(1), ..all() }).await.0,
        ["a/2"]
    );
    assert_eq!(names(&past, ListRequest { limit: Some(1), ..all() }).await.0.len(), 4, "page by page");
    for name in ["a/1", "a/2", "b", "b/c/d"] {
        assert_eq!(past.get(&key(name), None).await.unwrap(), name);
        // Asked for without a listing before.
        assert_eq!(PastS3Store::new(open().await, whole).get(&key(name), Some(0..1)).await.unwrap(), name[..1]);
    }
    let later = PastS3Store::new(open().await, emptied);
    assert_eq!(names(&later, all()).await.0, ["a/1"]);
    assert_eq!(later.get(&key("b"), None).await.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(PastS3Store::new(open().await, SystemTime::now()).get(&key("b"), None).await.unwrap(), "put over");
    let before = PastS3Store::new(open().await, SystemTime::UNIX_EPOCH);
    assert_eq!(names(&before, folders).await, (Vec::new(), Vec::new()));
    // It only reads.
    assert_eq!(past.put_if_absent(&key("x"), Bytes::new()).await.unwrap_err().kind(), ErrorKind::Misconfigured);
    assert_eq!(past.delete(&key("a/1")).await.unwrap_err().kind(), ErrorKind::Misconfigured);
}

#[tokio::test]
async fn what_is_locked_cannot_be_removed_for_good() {
    let Some(weed) = weed::server() else { return };
    let bucket = weed.locking_bucket("locked").await;
    let placing = |mode: LockMode, days: u32| {
        Placing::by(move |key| match key.as_str().starts_with("locked/") {
            true => Placement { lock: Some(Lock { mode, days }), ..Placement::default() },
            false => Placement::default(),
        })
    };
    let locking = |mode, days| S3Options { bucket: bucket.clone(), placing: Some(placing(mode, days)), ..weed.options("") };
    let store = S3Store::open(locking(LockMode::Compliance, 1)).await.unwrap();
    for name in ["locked/a", "free/a"] {
        store.put_if_absent(&key(name), Bytes::from_static(b"x")).await.unwrap();
    }
    let told = weed.lock_of(&bucket, "locked/a").await.expect("it is locked");
    let left = told.duration_since(SystemTime::now()).unwrap();
    assert!(left > Duration::from_secs(23 * 3600) && left <= Duration::from_secs(24 * 3600), "{left:?}");
    assert_eq!(weed.lock_of(&bucket, "free/a").await, None);
    let whole = next_second().await;
    // The store says it as the server does; and prolongs it, only where it is to be locked.
    let found = store.locked(&key("locked/a")).await.unwrap().expect("it is locked");
    assert_eq!((found.mode, found.until), (LockMode::Compliance, told));
    assert_eq!((store.locked(&key("free/a")).await.unwrap(), store.lock_of(&key("free/a"))), (None, None));
    tokio::time::sleep(std::time::Duration::from_millis(2100)).await;
    store.lock_anew(&key("locked/a")).await.unwrap();
    assert_eq!(weed.lock_of(&bucket, "locked/a").await, Some(told), "it is locked for nearly as long");
    let longer = S3Store::open(locking(LockMode::Compliance, 3)).await.unwrap();
    longer.lock_anew(&key("locked/a")).await.unwrap();
    longer.lock_anew(&key("free/a")).await.unwrap();
    let anew = weed.lock_of(&bucket, "locked/a").await.expect("it is locked");
    assert!(anew > told + Duration::from_secs(24 * 3600) && weed.lock_of(&bucket, "free/a").await.is_none());
    // Whoever promises less makes it neither shorter nor less strict.
    let less = S3Store::open(locking(LockMode::Governance, 1)).await.unwrap();
    less.lock_anew(&key("locked/a")).await.unwrap();
    let found = store.locked(&key("locked/a")).await.unwrap().expect("it is locked");
    assert_eq!((found.mode, found.until), (LockMode::Compliance, anew));
    assert_eq!(store.lock_anew(&key("locked/b")).await.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(store.locked(&key("locked/b")).await.unwrap_err().kind(), ErrorKind::NotFound);
    assert!(weed.remove_versions(&bucket, "locked/a").await.is_err(), "the version itself stays");
    weed.remove_versions(&bucket, "free/a").await.unwrap();
    // Hidden it can be, and is found again.
    store.delete(&key("locked/a")).await.unwrap();
    assert_eq!(store.get(&key("locked/a"), None).await.unwrap_err().kind(), ErrorKind::NotFound);
    // This server gives an object whose lock is prolonged another time, so that it seems to have come later; of what is the same whenever it was put that is no matter.
    let past = PastS3Store::new(S3Store::open(S3Options { bucket, ..weed.options("") }).await.unwrap(), whole);
    let past = past.with_timeless(|name| name == "locked/a");
    assert_eq!(past.get(&key("locked/a"), None).await.unwrap(), "x");
    let listed = list_all(&past, ListRequest::default()).await.unwrap().objects;
    assert_eq!(listed.iter().map(|listed| listed.key.as_str()).collect::<Vec<_>>(), ["locked/a"]);

    // A bucket without locks refuses the first put, and says why.
    let placing = Placing::by(|_| Placement { lock: Some(Lock { mode: LockMode::Governance, days: 1 }), ..Placement::default() });
    let plain = S3Store::open(S3Options { placing: Some(placing), ..weed.options("no-locks") }).await.unwrap();
    let refused = plain.put_if_absent(&key("a"), Bytes::from_static(b"x")).await.unwrap_err();
    assert!(format!("{refused:#}").to_lowercase().contains("lock"), "{refused:#}");
}
