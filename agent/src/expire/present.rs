//! What the present is taken to be where something would go for ever.
//!
//! This host's clock alone does not say that a time of grace is over: one that is ahead would remove what can still be brought back. What the server is known to
//! have done, and when something was stored last, have to bear it out. In doubt the objects stay.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use chrono::{DateTime, Utc};
use walkeep_core::retention;

use crate::planning::View;
use crate::repository::ClusterRepository;
use crate::repository::expiry::KnownExpiry;

/// The earliest of what this host, the newest backup or commit that is known of the server, and the newest object of all by the store's clock say.
pub async fn known(repository: &Arc<ClusterRepository>, expiries: &[KnownExpiry], host_now: DateTime<Utc>) -> Result<DateTime<Utc>> {
    let view = View::load_listing(repository.clone(), u64::MAX).await?;
    let catalog = view.catalog();
    let newest_backup = catalog.backups().iter().map(|backup| backup.ended_at).max();
    let newest_commit = catalog.newest_timeline().and_then(|timeline| view.index().last_moment(timeline)?.to_utc());
    let stored_at = newest_object(repository, expiries).await.context("ask when something was stored last")?;
    Ok(retention::present(host_now, newest_backup.max(newest_commit), stored_at.map(by_whole_seconds)))
}

/// The latest that an object of this time was stored: S3 tells whole seconds.
pub fn by_whole_seconds(at: SystemTime) -> DateTime<Utc> {
    (at + Duration::from_secs(1)).into()
}

async fn newest_object(repository: &ClusterRepository, expiries: &[KnownExpiry]) -> Result<Option<SystemTime>> {
    let mut newest = expiries.iter().map(|known| known.put).max();
    newest = newest.max(repository.backup_times().await?.into_iter().map(|found| found.last).max());
    for name in repository.artifact_names().await? {
        newest = newest.max(repository.artifacts_stored(&name).await?.into_values().max());
    }
    Ok(newest)
}
