//! Every cluster of a repository, each in a line: whether it is safe, and by what. There is no central service: whoever can read the repository can tell it,
//! and of its own clusters an agent knows more.

use std::sync::Arc;

use anyhow::{Context, Result};
use chrono::{DateTime, Utc};
use futures::StreamExt;
use futures::future::BoxFuture;
use serde::Serialize;
use walkeep_core::layout::ClusterName;
use walkeep_core::safety::{self, Heard, Level, Safety};
use walkeep_core::{Lsn, MajorVersion, TimelineId};

use crate::repository::ClusterRepository;

/// Clusters that are looked at at the same time.
const AT_ONCE: usize = 4;

/// How the part of a repository is opened that is this cluster's, for reading.
pub type OpenCluster = Arc<dyn Fn(ClusterName) -> BoxFuture<'static, Result<ClusterRepository>> + Send + Sync>;

/// A cluster.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// Its name.
    pub cluster: String,
    /// Where it is kept.
    pub repository: String,
    /// Whether it is safe.
    pub safety: Safety,
    /// What is stored of it; `None` if that could not be read.
    pub stored: Option<Stored>,
}

/// What is stored of a cluster.
#[derive(Debug, Clone, Serialize)]
pub struct Stored {
    /// PostgreSQL's major version.
    pub major_version: MajorVersion,
    /// How many base backups.
    pub backups: usize,
    /// When the newest one ended.
    pub newest_backup_at: Option<DateTime<Utc>>,
    /// The newest timeline.
    pub timeline: Option<TimelineId>,
    /// How far its WAL is stored.
    pub until: Option<Lsn>,
    /// When WAL was stored last, by the store's clock.
    pub stored_at: Option<DateTime<Utc>>,
}

/// A cluster by what the repository has, and by what its agent says if there is one to ask.
pub async fn row(cluster: &ClusterName, repository: Result<ClusterRepository>, heard: Option<&Heard>, url: &str) -> Row {
    let read = async {
        let repository = repository?;
        let stored = stored(&repository).await?;
        anyhow::Ok((repository.repository().url(), stored))
    };
    let (cluster, url) = (cluster.to_string(), url.to_owned());
    match read.await {
        Ok((repository, (stored, timelines))) => {
            let safety = safety::judge(&timelines, heard, stored.stored_at);
            Row { cluster, repository, safety, stored: Some(stored) }
        }
        Err(error) => {
            let safety = Safety { level: Level::Unknown, text: format!("what is stored cannot be read: {error:#}"), more: Vec::new() };
            Row { cluster, repository: url, safety, stored: None }
        }
    }
}

async fn stored(repository: &ClusterRepository) -> Result<(Stored, Vec<walkeep_core::catalog::TimelineReport>)> {
    let catalog = repository.load_catalog().await.context("read the catalog")?.catalog;
    let timeline = catalog.newest_timeline();
    let stored_at = match timeline {
        Some(timeline) => repository.last_stored(timeline).await.context("ask when WAL was stored last")?,
        None => None,
    };
    let stored = Stored {
        major_version: repository.identity().major_version,
        backups: catalog.backups().len(),
        newest_backup_at: catalog.backups().iter().map(|backup| backup.ended_at).max(),
        timeline,
        until: timeline.and_then(|timeline| catalog.frontier(timeline)),
        stored_at: stored_at.map(Into::into),
    };
    Ok((stored, catalog.report()))
}

/// The clusters that lie in the repository beside `known`, one of them, but for those that are `known`.
pub async fn others(known: &[ClusterName], one: &ClusterRepository, open: &OpenCluster) -> Result<Vec<Row>> {
    let names = one.neighbours().await.context("list the clusters of the repository")?;
    let url = one.repository().url();
    let looks = names.into_iter().filter(|name| !known.contains(name)).map(|name| {
        let (open, url) = (open.clone(), url.clone());
        async move {
            let opened = open(name.clone()).await;
            row(&name, opened, None, &url).await
        }
    });
    let mut rows: Vec<Row> = futures::stream::iter(looks).buffer_unordered(AT_ONCE).collect().await;
    rows.sort_by(|one, other| one.cluster.cmp(&other.cluster));
    Ok(rows)
}
