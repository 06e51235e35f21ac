//! A repository that could not be reached yet: every call to it tries to open it first.
//!
//! For a stream that goes on into the spool meanwhile. Nothing is put and nothing is called absent before the repository was opened as ever, with
//! its marker, and found to mean the same cluster.

use std::sync::Arc;

use async_trait::async_trait;
use futures::future::BoxFuture;
use walkeep_core::layout::ClusterName;
use walkeep_store::{Error as StoreError, ErrorKind, SharedStore};

use super::opened::{Open, OpenedStore};
use super::{ClusterIdentity, ClusterRepository, Error, Repository};

/// How to open the repository; called again until it succeeds.
pub type OpenRepository = Arc<dyn Fn() -> BoxFuture<'static, anyhow::Result<ClusterRepository>> + Send + Sync>;

impl ClusterRepository {
    /// The repository at `url` that `open` opens, once it can. Until then every call fails as opening it does.
    pub fn later(url: String, cluster: ClusterName, identity: ClusterIdentity, level: i32, open: OpenRepository) -> Self {
        let store = OpenedStore::new(OpenLater { url, identity: identity.clone(), open });
        Self::new(Repository { store: Arc::new(store) }, cluster, identity, level)
    }
}

/// How such a repository is opened.
struct OpenLater {
    url: String,
    identity: ClusterIdentity,
    open: OpenRepository,
}

#[async_trait]
impl Open for OpenLater {
    type Error = anyhow::Error;

    fn url(&self) -> &str {
        &self.url
    }

    async fn open(&self) -> anyhow::Result<SharedStore> {
        let repository = (self.open)().await?;
        let same = repository.identity().same_cluster(&self.identity) && repository.identity().form == self.identity.form;
        anyhow::ensure!(
            same && repository.repository().url() == self.url,
            "{} keeps {} under the name {}, and the spool is of {} for {}: restart the agent",
            repository.repository().url(),
            repository.identity().system_identifier,
            repository.cluster(),
            self.identity.system_identifier,
            self.url
        );
        tracing::info!(repository = self.url, "repository opened");
        Ok(repository.repository().store().clone())
    }

    fn kind(error: &anyhow::Error) -> ErrorKind {
        let kind = match error.downcast_ref::<Error>() {
            Some(Error::Store(error)) => Some(error.kind()),
            _ => error.downcast_ref::<StoreError>().map(StoreError::kind),
        };
        let kind = kind.filter(|kind| matches!(kind, ErrorKind::Transient | ErrorKind::Denied | ErrorKind::Cancelled));
        kind.unwrap_or(ErrorKind::Unusable)
    }
}
