//! What the wrapping stores add.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio_util::sync::CancellationToken;
use walkeep_store::{
    ErrorKind, Fault, FaultyStore, GuardedStore, ListRequest, MemoryStore, ObservedStore, Observer, Operation, Put, Rule, Store,
};

use crate::suite::key;

fn faulty() -> Arc<FaultyStore> {
    Arc::new(FaultyStore::new(Arc::new(MemoryStore::new())))
}

#[tokio::test]
async fn rules_strike_the_calls_they_name() {
    let store = faulty();
    store.inject(Rule::new(Operation::Put, Fault::Fail(ErrorKind::Transient)).on("wal/").from_call(2).times(1));
    let put = async |name: &str| store.put_if_absent(&key(name), Bytes::from_static(b"abc")).await.map_err(|error| error.kind());
    assert_eq!(put("wal/1").await, Ok(Put::Created));
    assert_eq!(put("other").await, Ok(Put::Created));
    assert_eq!(put("wal/2").await, Err(ErrorKind::Transient));
    assert_eq!(put("wal/2").await, Ok(Put::Created), "nothing had happened");
    assert_eq!(store.count(Operation::Put), 4);
    assert_eq!(store.calls().last(), Some(&(Operation::Put, "wal/2".to_owned())));

    store.inject(Rule::new(Operation::Put, Fault::LoseAnswer).times(1));
    assert_eq!(put("lost").await, Err(ErrorKind::Transient));
    assert_eq!(put("lost").await, Ok(Put::AlreadySame), "it had landed");

    store.inject(Rule::new(Operation::Get, Fault::Truncate(2)).times(1));
    store.inject(Rule::new(Operation::Get, Fault::Flip(4)).times(1));
    assert_eq!(store.get(&key("lost"), None).await.unwrap(), "ab");
    assert_eq!(store.get(&key("lost"), None).await.unwrap(), "acc");
    assert_eq!(store.get(&key("lost"), None).await.unwrap(), "abc");

    store.inject(Rule::new(Operation::List, Fault::Fail(ErrorKind::Denied)));
    assert_eq!(store.list(&ListRequest::default()).await.unwrap_err().kind(), ErrorKind::Denied);
    store.heal();
    assert!(store.list(&ListRequest::default()).await.is_ok());
}

#[tokio::test]
async fn guarded_calls_end() {
    let store = faulty();
    store.inject(Rule::new(Operation::Get, Fault::Hang));
    let stop = CancellationToken::new();
    let guarded = GuardedStore::new(store.clone(), Duration::from_millis(50), stop.clone());
    assert_eq!(guarded.get(&key("a"), None).await.unwrap_err().kind(), ErrorKind::Transient);

    let guarded = GuardedStore::new(store.clone(), Duration::from_secs(60), stop.clone());
    let start = Instant::now();
    let (key, other) = (key("a"), key("b"));
    let (outcome, ()) = tokio::join!(guarded.get(&key, None), async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        stop.cancel();
    });
    assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Cancelled);
    assert!(start.elapsed() < Duration::from_secs(5));
    assert_eq!(guarded.put_if_absent(&other, Bytes::new()).await.unwrap_err().kind(), ErrorKind::Cancelled);
    assert_eq!(store.count(Operation::Put), 0, "a stopped store asks nobody");
}

#[tokio::test]
async fn observers_hear_of_every_call() {
    type Heard = (Operation, u64, Option<ErrorKind>);
    #[derive(Default)]
    struct Ear(Mutex<Vec<Heard>>);
    impl Observer for Ear {
        fn ended(&self, operation: Operation, _: Duration, bytes: u64, failure: Option<ErrorKind>) {
            self.0.lock().unwrap().push((operation, bytes, failure));
        }
    }
    let ear = Arc::new(Ear::default());
    let store = ObservedStore::new(Arc::new(MemoryStore::new()), ear.clone());
    store.put_if_absent(&key("a"), Bytes::from_static(b"abc")).await.unwrap();
    store.get(&key("a"), Some(0..2)).await.unwrap();
    store.get(&key("b"), None).await.unwrap_err();
    assert_eq!(
        *ear.0.lock().unwrap(),
        [(Operation::Put, 3, None), (Operation::Get, 2, None), (Operation::Get, 0, Some(ErrorKind::NotFound))]
    );
}
