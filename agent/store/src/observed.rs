//! A store whose calls are told to an observer: counts, sizes, times and failures, for metrics.

use std::fmt::{self, Debug};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;

use crate::several::{Proof, Several};
use crate::{Error, ErrorKind, Key, ListRequest, Lock, Locked, Noticed, Page, Probed, Put, Readiness, Result, SharedStore, Store, Thaw};

/// A store's calls, for counting them and for naming one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    /// [`Store::put_if_absent`].
    Put,
    /// [`Store::get`].
    Get,
    /// [`Store::list`].
    List,
    /// [`Store::delete`].
    Delete,
    /// [`Store::probe`], and what is asked and said of locks.
    Probe,
}

impl Operation {
    /// Every operation.
    pub const ALL: [Self; 5] = [Self::Put, Self::Get, Self::List, Self::Delete, Self::Probe];

    /// A short word for logs and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Put => "put",
            Self::Get => "get",
            Self::List => "list",
            Self::Delete => "delete",
            Self::Probe => "probe",
        }
    }
}

/// Is told of every call that ended, once: what a store tries again by itself, as S3's does, is one call until it answers its caller. A call that was
/// dropped did not end.
pub trait Observer: Send + Sync + 'static {
    /// `operation` ended after `elapsed`, with this failure or none; `bytes` of a body went or came.
    fn ended(&self, operation: Operation, elapsed: Duration, bytes: u64, failure: Option<ErrorKind>);
}

/// A store with an observer.
pub struct ObservedStore {
    inner: SharedStore,
    observer: Arc<dyn Observer>,
}

impl ObservedStore {
    /// `inner`, watched by `observer`.
    pub fn new(inner: SharedStore, observer: Arc<dyn Observer>) -> Self {
        Self { inner, observer }
    }

    async fn watch<T>(&self, operation: Operation, call: impl Future<Output = Result<T>>, bytes: impl FnOnce(&T) -> usize) -> Result<T> {
        let start = Instant::now();
        let outcome = call.await;
        let (bytes, failure) = match &outcome {
            Ok(answer) => (bytes(answer) as u64, None),
            Err(error) => (0, Some(error.kind())),
        };
        self.observer.ended(operation, start.elapsed(), bytes, failure);
        outcome
    }
}

impl Debug for ObservedStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ObservedStore").field("inner", &self.inner).finish_non_exhaustive()
    }
}

#[async_trait]
impl Store for ObservedStore {
    fn url(&self) -> String {
        self.inner.url()
    }

    async fn put_if_absent(&self, key: &Key, body: Bytes) -> Result<Put> {
        let size = body.len();
        self.watch(Operation::Put, self.inner.put_if_absent(key, body), |_| size).await
    }

    async fn replace_in_doubt(&self, key: &Key, body: Bytes) -> Result<bool> {
        let size = body.len();
        self.watch(Operation::Put, self.inner.replace_in_doubt(key, body), |_| size).await
    }

    async fn get(&self, key: &Key, range: Option<Range<u64>>) -> Result<Bytes> {
        self.watch(Operation::Get, self.inner.get(key, range), Bytes::len).await
    }

    async fn list(&self, request: &ListRequest) -> Result<Page> {
        self.watch(Operation::List, self.inner.list(request), |_| 0).await
    }

    async fn delete(&self, key: &Key) -> Result<()> {
        self.watch(Operation::Delete, self.inner.delete(key), |()| 0).await
    }

    async fn delete_many(&self, keys: &[Key]) -> Result<Vec<(Key, Error)>> {
        self.watch(Operation::Delete, self.inner.delete_many(keys), |_| 0).await
    }

    /// Not told: no request of a server's.
    async fn remove_folder(&self, prefix: &str) -> Result<()> {
        self.inner.remove_folder(prefix).await
    }

    /// Not told: the agent, which counts, never asks.
    async fn readiness(&self, key: &Key) -> Result<Readiness> {
        self.inner.readiness(key).await
    }

    async fn thaw(&self, key: &Key, thaw: Thaw) -> Result<Readiness> {
        self.inner.thaw(key, thaw).await
    }

    async fn probe(&self, scratch: &Key) -> Result<Probed> {
        self.watch(Operation::Probe, self.inner.probe(scratch), |_| 0).await
    }

    fn lock_of(&self, key: &Key) -> Option<Lock> {
        self.inner.lock_of(key)
    }

    async fn locked(&self, key: &Key) -> Result<Option<Locked>> {
        self.watch(Operation::Probe, self.inner.locked(key), |_| 0).await
    }

    async fn lock_anew(&self, key: &Key) -> Result<()> {
        self.watch(Operation::Probe, self.inner.lock_anew(key), |()| 0).await
    }

    async fn noticed(&self) -> Noticed {
        self.inner.noticed().await
    }

    fn several(&self) -> Option<&Several> {
        self.inner.several()
    }

    fn demanding(&self, proof: Proof) -> Option<SharedStore> {
        let inner = self.inner.demanding(proof)?;
        Some(Arc::new(Self { inner, observer: self.observer.clone() }))
    }
}
