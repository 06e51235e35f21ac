//! A store that a person waits for: when nothing comes from it for a while, it is said which one is being waited for.
//!
//! For commands only. The agent waits as a matter of course, and its log tells what fails.

use std::ops::Range;
use std::pin::pin;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use walkeep_store::{Key, ListRequest, Lock, Locked, Page, Probed, Put, Readiness, Result, SharedStore, Store, Thaw};

use super::output;

/// Silence after which the first line comes.
const FIRST: Duration = Duration::from_secs(4);
/// And the further ones.
const AGAIN: Duration = Duration::from_secs(30);

/// A store with a word for whoever waits.
#[derive(Debug)]
pub struct WaitedFor {
    inner: SharedStore,
    /// Where its answers come from.
    place: String,
    /// When it answered last, or when it was told that it does not. Of all calls: one that takes long while others are answered is no news.
    last: Mutex<Instant>,
}

impl WaitedFor {
    /// `inner`, which lies at `place`.
    pub fn new(inner: SharedStore, place: String) -> Self {
        Self { inner, place, last: Mutex::new(Instant::now()) }
    }

    async fn wait<T>(&self, action: &str, key: &str, call: impl Future<Output = T> + Send) -> T {
        let began = Instant::now();
        let mut call = pin!(call);
        let mut patience = FIRST;
        loop {
            tokio::select! {
                answer = &mut call => {
                    self.note();
                    return answer;
                }
                () = tokio::time::sleep(patience) => {}
            }
            if self.silence() >= FIRST {
                self.note();
                output::tell!("waiting for {}: no answer to {action} {key} for {} s", self.place, began.elapsed().as_secs());
                patience = AGAIN;
            }
        }
    }

    fn note(&self) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    fn silence(&self) -> Duration {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }
}

#[async_trait]
impl Store for WaitedFor {
    fn url(&self) -> String {
        self.inner.url()
    }

    async fn put_if_absent(&self, key: &Key, body: Bytes) -> Result<Put> {
        self.wait("put", key.as_str(), self.inner.put_if_absent(key, body)).await
    }

    async fn replace_in_doubt(&self, key: &Key, body: Bytes) -> Result<bool> {
        self.wait("replace", key.as_str(), self.inner.replace_in_doubt(key, body)).await
    }

    async fn get(&self, key: &Key, range: Option<Range<u64>>) -> Result<Bytes> {
        self.wait("get", key.as_str(), self.inner.get(key, range)).await
    }

    async fn list(&self, request: &ListRequest) -> Result<Page> {
        self.wait("list", &request.prefix, self.inner.list(request)).await
    }

    async fn delete(&self, key: &Key) -> Result<()> {
        self.wait("delete", key.as_str(), self.inner.delete(key)).await
    }

    async fn delete_many(&self, keys: &[Key]) -> Result<Vec<(Key, walkeep_store::Error)>> {
        let place = keys.first().map_or("", Key::as_str);
        self.wait("delete", place, self.inner.delete_many(keys)).await
    }

    async fn readiness(&self, key: &Key) -> Result<Readiness> {
        self.wait("head", key.as_str(), self.inner.readiness(key)).await
    }

    async fn thaw(&self, key: &Key, thaw: Thaw) -> Result<Readiness> {
        self.wait("thaw", key.as_str(), self.inner.thaw(key, thaw)).await
    }

    async fn probe(&self, scratch: &Key) -> Result<Probed> {
        self.wait("probe", scratch.as_str(), self.inner.probe(scratch)).await
    }

    fn lock_of(&self, key: &Key) -> Option<Lock> {
        self.inner.lock_of(key)
    }

    async fn locked(&self, key: &Key) -> Result<Option<Locked>> {
        self.wait("look at the lock of", key.as_str(), self.inner.locked(key)).await
    }

    async fn lock_anew(&self, key: &Key) -> Result<()> {
        self.wait("lock", key.as_str(), self.inner.lock_anew(key)).await
    }
}
