//! Which clusters a repository has.

use walkeep_core::layout::ClusterName;
use walkeep_store::{ListRequest, SharedStore, list_all};

use super::{ClusterRepository, Result};

/// Their names, in order. Folders that nobody made a cluster's may be among them.
pub async fn cluster_names(store: &SharedStore) -> Result<Vec<ClusterName>> {
    let page = list_all(store.as_ref(), ListRequest { by_folder: true, ..ListRequest::default() }).await?;
    Ok(page.folders.iter().filter_map(|folder| folder.trim_end_matches('/').parse().ok()).collect())
}

impl ClusterRepository {
    /// The same of the repository that this cluster is in.
    pub async fn neighbours(&self) -> Result<Vec<ClusterName>> {
        cluster_names(self.store()).await
    }
}
