//! A store whose calls end: at a deadline, or as soon as the agent is asked to stop.

use std::ops::Range;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use crate::{Error, ErrorKind, Key, ListRequest, Lock, Locked, Noticed, Page, Probed, Put, Readiness, Result, SharedStore, Store, Thaw};

/// A store with a deadline for each call and a way to stop them all.
///
/// A put that is stopped may have created its object, whole: the caller must not conclude that it did not.
#[derive(Debug)]
pub struct GuardedStore {
    inner: SharedStore,
    deadline: Duration,
    stop: CancellationToken,
}

impl GuardedStore {
    /// `inner`, of which no call lasts longer than `deadline` nor goes on after `stop`.
    pub fn new(inner: SharedStore, deadline: Duration, stop: CancellationToken) -> Self {
        Self { inner, deadline, stop }
    }

    async fn guard<T>(&self, action: &'static str, place: &str, call: impl Future<Output = Result<T>>) -> Result<T> {
        tokio::select! {
            biased;
            () = self.stop.cancelled() => Err(Error::at(ErrorKind::Cancelled, action, place)),
            outcome = tokio::time::timeout(self.deadline, call) => outcome.unwrap_or_else(|_| {
                let cause = format!("no answer within {:?}", self.deadline);
                Err(Error::at(ErrorKind::Transient, action, place).because(cause))
            }),
        }
    }
}

#[async_trait]
impl Store for GuardedStore {
    fn url(&self) -> String {
        self.inner.url()
    }

    async fn put_if_absent(&self, key: &Key, body: Bytes) -> Result<Put> {
        self.guard("put", key.as_str(), self.inner.put_if_absent(key, body)).await
    }

    async fn replace_in_doubt(&self, key: &Key, body: Bytes) -> Result<bool> {
        self.guard("replace", key.as_str(), self.inner.replace_in_doubt(key, body)).await
    }

    async fn get(&self, key: &Key, range: Option<Range<u64>>) -> Result<Bytes> {
        self.guard("get", key.as_str(), self.inner.get(key, range)).await
    }

    async fn list(&self, request: &ListRequest) -> Result<Page> {
        self.guard("list", &request.prefix, self.inner.list(request)).await
    }

    async fn delete(&self, key: &Key) -> Result<()> {
        self.guard("delete", key.as_str(), self.inner.delete(key)).await
    }

    /// The deadline is for each thousand of them.
    async fn delete_many(&self, keys: &[Key]) -> Result<Vec<(Key, Error)>> {
        let mut stay = Vec::new();
        for batch in keys.chunks(1000) {
            let place = batch.first().map_or("", Key::as_str);
            stay.extend(self.guard("delete", place, self.inner.delete_many(batch)).await?);
        }
        Ok(stay)
    }

    async fn remove_folder(&self, prefix: &str) -> Result<()> {
        self.guard("delete", prefix, self.inner.remove_folder(prefix)).await
    }

    async fn readiness(&self, key: &Key) -> Result<Readiness> {
        self.guard("head", key.as_str(), self.inner.readiness(key)).await
    }

    async fn thaw(&self, key: &Key, thaw: Thaw) -> Result<Readiness> {
        self.guard("thaw", key.as_str(), self.inner.thaw(key, thaw)).await
    }

    async fn probe(&self, scratch: &Key) -> Result<Probed> {
        self.guard("probe", scratch.as_str(), self.inner.probe(scratch)).await
    }

    fn lock_of(&self, key: &Key) -> Option<Lock> {
        self.inner.lock_of(key)
    }

    async fn locked(&self, key: &Key) -> Result<Option<Locked>> {
        self.guard("look at the lock of", key.as_str(), self.inner.locked(key)).await
    }

    async fn lock_anew(&self, key: &Key) -> Result<()> {
        self.guard("lock", key.as_str(), self.inner.lock_anew(key)).await
    }

    /// What it asks the source of credentials has a deadline of its own.
    async fn noticed(&self) -> Noticed {
        self.inner.noticed().await
    }
}
