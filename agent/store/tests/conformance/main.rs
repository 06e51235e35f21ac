//! One suite over every store, and what only S3 or only a file system can get wrong.
//!
//! The S3 tests start a real server (SeaweedFS, see [`weed`]); without one they fail, for a test that silently did nothing is worse than
//! none. `WALKEEP_SKIP_S3=1` leaves them out and says so.
// Helpers outside test functions unwrap as the tests do.
#![allow(clippy::unwrap_used)]

mod decorators;
mod local;
mod s3;
mod s3_faults;
mod s3_versions;
mod stub;
mod suite;
mod weed;

use std::sync::Arc;
use std::time::Duration;

use suite::Sorts;
use tokio_util::sync::CancellationToken;
use walkeep_store::several::{Follow, Proof, StoredWhen};
use walkeep_store::{FaultyStore, GuardedStore, LocalStore, MemoryStore, ObservedStore, Observer, Several, SharedStore};

#[tokio::test]
async fn memory() {
    suite::run(Arc::new(MemoryStore::new()), 2500, Sorts::Keys).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn local_directory() {
    let folder = tempfile::tempdir().unwrap();
    suite::run(Arc::new(LocalStore::open(folder.path()).await.unwrap()), 2500, Sorts::Keys).await;
}

/// Two directories, of which both or the first have everything.
async fn two_directories(folder: &tempfile::TempDir, when: StoredWhen) -> Several {
    let mut places: Vec<SharedStore> = Vec::new();
    for name in ["one", "other"] {
        places.push(Arc::new(LocalStore::create(folder.path().join(name)).await.unwrap()));
    }
    Several::new(places, when, Follow::Queued)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_places() {
    for when in [StoredWhen::All, StoredWhen::Primary, StoredWhen::Any] {
        let folder = tempfile::tempdir().unwrap();
        suite::run(Arc::new(two_directories(&folder, when).await.demanding(Proof::Every)), 1100, Sorts::Keys).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_places_of_two_writers() {
    for when in [StoredWhen::All, StoredWhen::Primary, StoredWhen::Any] {
        let folder = tempfile::tempdir().unwrap();
        let store: SharedStore = Arc::new(two_directories(&folder, when).await);
        suite::one_of_two_wins(&store, DUELS / 5).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s3_server() {
    let Some(weed) = weed::server() else { return };
    suite::run(Arc::new(weed.store("conformance").await), 1100, Sorts::Folders).await;
}

/// S3 of the fault catalogue; the same by two shims is a story of fewer rounds.
const DUELS: usize = 1000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn local_directory_of_two_writers() {
    let folder = tempfile::tempdir().unwrap();
    let store: SharedStore = Arc::new(LocalStore::open(folder.path()).await.unwrap());
    suite::one_of_two_wins(&store, DUELS).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s3_server_of_two_writers() {
    let Some(weed) = weed::server() else { return };
    let store: SharedStore = Arc::new(weed.store("duels").await);
    suite::one_of_two_wins(&store, DUELS).await;
}

#[tokio::test]
async fn decorators() {
    struct Nobody;
    impl Observer for Nobody {
        fn ended(&self, _: walkeep_store::Operation, _: Duration, _: u64, _: Option<walkeep_store::ErrorKind>) {}
    }
    let store: SharedStore = Arc::new(MemoryStore::new());
    let store: SharedStore = Arc::new(FaultyStore::new(store));
    let store: SharedStore = Arc::new(ObservedStore::new(store, Arc::new(Nobody)));
    suite::run(Arc::new(GuardedStore::new(store, Duration::from_secs(60), CancellationToken::new())), 2500, Sorts::Keys).await;
}
