//! Rows counted by the clock: `sample` of `[cluster.NAME.drill]`, for drills to compare with.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use chrono::{DateTime, Utc};
use tokio_util::sync::CancellationToken;

use crate::config::ClusterConfig;
use crate::postgres::ConnectionParams;
use crate::progress::{Phase, Progress};
use crate::repository::{ClusterRepository, Error};
use crate::sample;
use crate::writer;

/// Between two looks at the clock.
const PERIOD: Duration = Duration::from_secs(30);
/// What failed is tried again after so long.
const AGAIN: Duration = Duration::from_secs(600);
/// Before a drill it is waited so long until the sample's WAL is stored.
const STORED: Duration = Duration::from_secs(60);

/// Counts and stores.
pub struct Samples {
    cluster: ClusterConfig,
    params: ConnectionParams,
    repository: Arc<ClusterRepository>,
    progress: Arc<Progress>,
}

impl Samples {
    /// Of this cluster, into this repository.
    pub fn new(cluster: ClusterConfig, params: ConnectionParams, repository: Arc<ClusterRepository>, progress: Arc<Progress>) -> Self {
        Self { cluster, params, repository, progress }
    }

    /// Counts by the clock until `stop`, where the configuration wants that.
    pub async fn run(&self, stop: CancellationToken) {
        let Some(every) = self.cluster.drill.sample else { return };
        let (mut last, mut asked, mut wait) = (None, false, PERIOD.min(every));
        loop {
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = stop.cancelled() => return,
            }
            wait = PERIOD.min(every);
            if self.cluster.stream && self.progress.snapshot().phase != Phase::Streaming {
                continue;
            }
            let sampled = async {
                if !asked {
                    last = self.newest().await?;
                    asked = true;
                }
                if sample::is_due(last, every, Utc::now()) {
                    self.count().await?;
                    last = Some(Utc::now());
                }
                anyhow::Ok(())
            };
            match stop.run_until_cancelled(sampled).await {
                None => return,
                Some(Ok(())) => {}
                Some(Err(error)) => {
                    wait = AGAIN.min(every);
                    tracing::warn!(
                        error = format!("{error:#}"),
                        "rows cannot be counted: drills compare with an earlier count, or with none"
                    );
                }
            }
        }
    }

    /// Counts now, where the configuration wants counts, and waits until a drill can use it.
    pub async fn take(&self) -> Result<()> {
        if self.cluster.drill.sample.is_none() {
            return Ok(());
        }
        let lsn = self.count().await?;
        let stored = async {
            while self.cluster.stream && self.progress.snapshot().durable < lsn {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        };
        tokio::time::timeout(STORED, stored).await.context("the WAL up to there is not stored yet")
    }

    async fn count(&self) -> Result<walkeep_core::Lsn> {
        let system = self.repository.identity().system_identifier;
        let sample = sample::take(&self.params, system, self.cluster.drill.sample_limit).await?;
        ensure!(self.may_write(&sample).await?, "another agent writes the timeline: a copied server's rows are not this one's");
        self.repository.put_sample(&sample).await.context("store the count")?;
        let tables: usize = sample.databases.iter().map(|database| database.tables.len()).sum();
        tracing::info!(lsn = %sample.name.lsn, databases = sample.databases.len(), tables, "rows were counted for drills");
        for (database, why) in &sample.left_out {
            tracing::debug!(database, why, "rows of a database were not counted");
        }
        Ok(sample.name.lsn)
    }

    /// When rows were counted last, if that can be read here.
    async fn newest(&self) -> Result<Option<DateTime<Utc>>> {
        let Some(name) = self.repository.samples().await.context("list the counts of rows")?.pop() else { return Ok(None) };
        match self.repository.sample(name).await {
            Ok(sample) => Ok(Some(sample.taken_at)),
            Err(Error::CannotDecrypt { .. } | Error::Corrupt { .. }) => Ok(None),
            Err(error) => Err(error).context("read the newest count of rows"),
        }
    }

    async fn may_write(&self, sample: &walkeep_core::drill::rows::RowSample) -> Result<bool> {
        if !self.cluster.stream {
            return Ok(true);
        }
        let lease = self.repository.newest_lease(sample.name.timeline).await.context("look who writes the timeline")?;
        let ours = writer::known_identity(&self.cluster.spool)?;
        Ok(lease.is_none_or(|lease| ours.is_some_and(|id| id == lease.writer.id)))
    }
}
