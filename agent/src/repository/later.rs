//! A repository that could not be reached yet: every call to it tries to open it first.
//!
//! For a stream that goes on into the spool meanwhile. Nothing is put and nothing is called absent before the repository was opened as ever, with
//! its marker, and found to mean the same cluster.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::BoxFuture;
use tokio::sync::OnceCell;
use walkeep_core::layout::ClusterName;
use walkeep_store::several::{Proof, Several};
use walkeep_store::{
    Error as StoreError, ErrorKind, Key, ListRequest, Lock, Locked, Page, Probed, Put, Readiness, Result as StoreResult, SharedStore,
    Store, Thaw,
};

use super::{ClusterIdentity, ClusterRepository, Error, Repository};

/// How to open the repository; called again until it succeeds.
pub type OpenRepository = Arc<dyn Fn() -> BoxFuture<'static, anyhow::Result<ClusterRepository>> + Send + Sync>;

impl ClusterRepository {
    /// The repository at `url` that `open` opens, once it can. Until then every call fails as opening it does.
    pub fn later(url: String, cluster: ClusterName, identity: ClusterIdentity, level: i32, open: OpenRepository) -> Self {
        let store = LaterStore { url, identity: identity.clone(), open, opened: Arc::default(), proof: None };
        Self::new(Repository { store: Arc::new(store) }, cluster, identity, level)
    }
}

/// The store of such a repository.
struct LaterStore {
    url: String,
    identity: ClusterIdentity,
    open: OpenRepository,
    /// One for all views of it: what one removes must not wait in another one's queue.
    opened: Arc<OnceCell<SharedStore>>,
    /// What proves that something is absent, where it lies in several places.
    proof: Option<Proof>,
}

impl LaterStore {
    async fn store(&self) -> StoreResult<SharedStore> {
        let open = async || {
            let repository = (self.open)().await.map_err(|error| self.not_opened(error))?;
            let same = repository.identity().same_cluster(&self.identity) && repository.identity().form == self.identity.form;
            if !same || repository.repository().url() != self.url {
                return Err(self.not_opened(anyhow::anyhow!(
                    "{} keeps {} under the name {}, and the spool is of {} for {}: restart the agent",
                    repository.repository().url(),
                    repository.identity().system_identifier,
                    repository.cluster(),
                    self.identity.system_identifier,
                    self.url
                )));
            }
            tracing::info!(repository = self.url, "repository opened");
            Ok(repository.repository().store().clone())
        };
        let store = self.opened.get_or_try_init(open).await?;
        Ok(self.proof.and_then(|proof| store.demanding(proof)).unwrap_or_else(|| store.clone()))
    }

    /// Never "not found": that is said of an object by a repository that was reached.
    fn not_opened(&self, error: anyhow::Error) -> StoreError {
        let kind = match error.downcast_ref::<Error>() {
            Some(Error::Store(error)) => Some(error.kind()),
            _ => error.downcast_ref::<StoreError>().map(StoreError::kind),
        };
        let kind = kind.filter(|kind| matches!(kind, ErrorKind::Transient | ErrorKind::Denied | ErrorKind::Cancelled));
        StoreError::at(kind.unwrap_or(ErrorKind::Unusable), "open", &self.url).because(format!("{error:#}"))
    }
}

impl fmt::Debug for LaterStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LaterStore").field("url", &self.url).field("opened", &self.opened.initialized()).finish_non_exhaustive()
    }
}

#[async_trait]
impl Store for LaterStore {
    fn url(&self) -> String {
        self.url.clone()
    }

    async fn put_if_absent(&self, key: &Key, body: Bytes) -> StoreResult<Put> {
        self.store().await?.put_if_absent(key, body).await
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

    async fn readiness(&self, key: &Key) -> StoreResult<Readiness> {
        self.store().await?.readiness(key).await
    }

    async fn thaw(&self, key: &Key, thaw: Thaw) -> StoreResult<Readiness> {
        self.store().await?.thaw(key, thaw).await
    }

    async fn probe(&self, scratch: &Key) -> StoreResult<Probed> {
        self.store().await?.probe(scratch).await
    }

    fn lock_of(&self, key: &Key) -> Option<Lock> {
        self.opened.get()?.lock_of(key)
    }

    async fn locked(&self, key: &Key) -> StoreResult<Option<Locked>> {
        self.store().await?.locked(key).await
    }

    async fn lock_anew(&self, key: &Key) -> StoreResult<()> {
        self.store().await?.lock_anew(key).await
    }

    fn several(&self) -> Option<&Several> {
        self.opened.get().and_then(|store| store.several())
    }

    /// Whether it lies in several places is not known yet.
    fn demanding(&self, proof: Proof) -> Option<SharedStore> {
        let (open, opened) = (self.open.clone(), self.opened.clone());
        Some(Arc::new(Self { url: self.url.clone(), identity: self.identity.clone(), open, opened, proof: Some(proof) }))
    }
}
