//! `protect = "primary"`: a new base backup behind a gap, taken by the agent itself.
//!
//! What is written behind a gap can only be restored from a backup that begins there. Whether one is due is read from the repository
//! ([`walkeep_core::catalog::without_backup_behind`]), so nothing is forgotten with the agent, and a backup that somebody else took counts.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio_util::sync::CancellationToken;
use walkeep_core::Lsn;
use walkeep_core::catalog::without_backup_behind;

use crate::backup::{self, Options};
use crate::metrics::Metrics;
use crate::postgres::ConnectionParams;
use crate::progress::{Phase, Progress};
use crate::repository::ClusterRepository;
use crate::retry::Backoff;

/// Between two looks at how many gaps are open, which asks nobody.
const PERIOD: Duration = Duration::from_secs(2);
/// Between two tries of a backup: each is hours of work for a large server.
const AGAIN: Backoff = Backoff { first: Duration::from_secs(60), most: Duration::from_secs(3600), deadline: None };
/// Who takes a backup without being asked says why.
const LABEL: &str = "walkeep: behind a gap";

/// Takes a backup whenever one is due, until `stop`.
pub async fn run(
    repository: Arc<ClusterRepository>,
    params: ConnectionParams,
    metrics: Arc<Metrics>,
    progress: Arc<Progress>,
    stop: CancellationToken,
) {
    let (mut known, mut failures, mut ahead) = (0, 0, None);
    loop {
        let wait = if failures == 0 { PERIOD } else { AGAIN.wait(failures) };
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = stop.cancelled() => return,
        }
        let gaps = metrics.gaps_counted();
        let now = progress.snapshot();
        let something_new = gaps != known || failures > 0 || ahead.is_some_and(|end| end <= now.received);
        // Only as the stream goes on: the backup waits for its WAL.
        if !something_new || now.phase != Phase::Streaming {
            continue;
        }
        match take_if_due(&repository, &params, &metrics, now.received, &stop).await {
            Ok(next) => (known, failures, ahead) = (gaps, 0, next),
            Err(_) if stop.is_cancelled() => return,
            Err(error) => {
                failures += 1;
                let wait_s = AGAIN.wait(failures).as_secs();
                tracing::error!(error = format!("{error:#}"), wait_s, "no base backup behind the gap yet; trying again");
            }
        }
    }
}

/// Answers the end of the next gap that the stream is not behind yet, if there is one.
async fn take_if_due(
    repository: &Arc<ClusterRepository>,
    params: &ConnectionParams,
    metrics: &Metrics,
    reached: Lsn,
    stop: &CancellationToken,
) -> Result<Option<Lsn>> {
    let gaps = repository.open_gaps().await.context("look for gaps")?;
    let ahead = gaps.iter().map(|gap| gap.to).filter(|end| *end > reached).min();
    if !gaps.is_empty() {
        let records = repository.backups().await.context("look for backups")?.records;
        let starts: Vec<_> = records.iter().map(|record| record.start_lsn).collect();
        if let Some(gap) = without_backup_behind(&gaps, &starts, reached) {
            metrics.backup_due(true);
            tracing::warn!(
                timeline = gap.timeline.get(), from = %gap.from, to = %gap.to,
                "no base backup begins behind the gap: taking one"
            );
            let taken = backup::take(repository.clone(), params, Options::new(LABEL), &|_| {}, stop).await;
            metrics.backup_taken(&taken.context("take the base backup")?);
        }
    }
    metrics.backup_due(false);
    Ok(ahead)
}
