//! temporary
use super::{ClusterRepository, Result};
use walkeep_core::catalog::Catalog;
impl ClusterRepository {
    /// temporary
    pub async fn load_catalog(&self) -> Result<Catalog> {
        Ok(Catalog::builder(self.cluster().clone(), self.identity().system_identifier, self.identity().segment_size).build())
    }
}
