//! A store that is opened when it is first asked, and again until that succeeds: whoever uses it goes on with others, or waits, meanwhile.
//!
//! What it takes to open it is another's business ([`Open`]): one of several repositories ([`super::place`]), or the whole of them ([`super::later`]).

use std::fmt;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::OnceCell;
use walkeep_store::several::{Proof, Several};
use walkeep_store::{
    Error as StoreError, ErrorKind, Key, ListRequest, Lock, Locked, Noticed, Page, Probed, Put, Readiness, Result as StoreResult,
    SharedStore, Store, Thaw,
};

/// How such a store is opened.
#[async_trait]
pub trait Open: Send + Sync + 'static {
    /// Why it cannot be.
    type Error: fmt::Display + Send;

    /// Where it is.
    fn url(&self) -> &str;

    /// Opens it, and proves that it is the right one.
    async fn open(&self) -> Result<SharedStore, Self::Error>;

    /// How an object is locked that is put there, as far as that is known before it is opened.
    fn lock_of(&self, _key: &Key) -> Option<Lock> {
        None
    }

    /// What a call is told that had to open it. Never "not found": that is said of an object by a repository that was reached.
    fn kind(error: &Self::Error) -> ErrorKind;
}

/// Such a store.
pub struct OpenedStore<O> {
    open: Arc<O>,
    /// One for all views of it: what one removes must not wait in another one's queue.
    opened: Arc<OnceCell<SharedStore>>,
    /// What proves that something is absent, where it lies in several places; and the store that demands it, once it is opened.
    proof: Option<Proof>,
    demanding: OnceLock<SharedStore>,
}

impl<O: Open> OpenedStore<O> {
    /// Not opened yet.
    pub fn new(open: O) -> Self {
        Self { open: Arc::new(open), opened: Arc::default(), proof: None, demanding: OnceLock::new() }
    }

    /// Opens it, unless that was done.
    pub async fn ready(&self) -> Result<(), O::Error> {
        self.opened.get_or_try_init(|| self.open.open()).await.map(drop)
    }

    async fn store(&self) -> StoreResult<SharedStore> {
        let not_opened = |error: O::Error| StoreError::at(O::kind(&error), "open", self.open.url()).because(format!("{error:#}"));
        let store = self.opened.get_or_try_init(|| self.open.open()).await.map_err(not_opened)?;
        Ok(self.as_demanded(store).clone())
    }

    /// The store as this view of it is: whoever asks it which proof it wants must be told the one that was demanded.
    fn as_demanded<'s>(&'s self, store: &'s SharedStore) -> &'s SharedStore {
        match self.proof {
            Some(proof) => self.demanding.get_or_init(|| store.demanding(proof).unwrap_or_else(|| store.clone())),
            None => store,
        }
    }
}

impl<O: Open> fmt::Debug for OpenedStore<O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenedStore").field("url", &self.open.url()).field("opened", &self.opened.initialized()).finish_non_exhaustive()
    }
}

#[async_trait]
impl<O: Open> Store for OpenedStore<O> {
    fn url(&self) -> String {
        self.open.url().to_owned()
    }

    async fn put_if_absent(&self, key: &Key, body: Bytes) -> StoreResult<Put> {
        self.store().await?.put_if_absent(key, body).await
    }

    async fn replace_in_doubt(&self, key: &Key, body: Bytes) -> StoreResult<bool> {
        self.store().await?.replace_in_doubt(key, body).await
    }

    async fn get(&self, key: &Key, range: Option<Range<u64>>) -> StoreResult<Bytes> {
        self.store().await?.get(key, range).await
    }

    async fn list(&self, request: &ListRequest) -> StoreResult<Page> {
        self.store().await?.list(request).await
    }

    async fn delete(&self, key: &Key) -> StoreResult<()> {
        self.store().await?.delete(key).await
    }

    async fn delete_many(&self, keys: &[Key]) -> StoreResult<Vec<(Key, StoreError)>> {
        self.store().await?.delete_many(keys).await
    }

    async fn remove_folder(&self, prefix: &str) -> StoreResult<()> {
        self.store().await?.remove_folder(prefix).await
    }

    async fn readiness(&self, key: &Key) -> StoreResult<Readiness> {
        self.store().await?.readiness(key).await
    }

    async fn thaw(&self, key: &Key, thaw: Thaw) -> StoreResult<Readiness> {
        self.store().await?.thaw(key, thaw).await
    }

    fn lock_of(&self, key: &Key) -> Option<Lock> {
        match self.opened.get() {
            Some(store) => store.lock_of(key),
            None => self.open.lock_of(key),
        }
    }

    async fn locked(&self, key: &Key) -> StoreResult<Option<Locked>> {
        self.store().await?.locked(key).await
    }

    async fn lock_anew(&self, key: &Key) -> StoreResult<()> {
        self.store().await?.lock_anew(key).await
    }

    async fn probe(&self, scratch: &Key) -> StoreResult<Probed> {
        self.store().await?.probe(scratch).await
    }

    async fn noticed(&self) -> Noticed {
        match self.opened.get() {
            Some(store) => store.noticed().await,
            None => Noticed::default(),
        }
    }

    fn several(&self) -> Option<&Several> {
        self.opened.get().and_then(|store| self.as_demanded(store).several())
    }

    /// Whether it lies in several places is not known yet.
    fn demanding(&self, proof: Proof) -> Option<SharedStore> {
        let (open, opened) = (self.open.clone(), self.opened.clone());
        Some(Arc::new(Self { open, opened, proof: Some(proof), demanding: OnceLock::new() }))
    }
}
