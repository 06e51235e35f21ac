//! `protect = "primary"`: a new base backup behind a gap, taken by the agent itself.
//!
//! What is written behind a gap can only be restored from a backup that begins there. Whether one is due is read from the repository
//! ([`walkeep_core::catalog::without_backup_behind`]), so nothing is forgotten with the agent, and a backup that somebody else took counts.

use std::time::Duration;

use anyhow::{Context, Result};
use walkeep_core::Lsn;
use walkeep_core::catalog::without_backup_behind;

use super::{Again, Taker, is_held};
use crate::metrics::Metrics;
use crate::progress::{Phase, Progress};
use crate::retry::Backoff;

/// Between two tries of a backup: each is hours of work for a large server.
const AGAIN: Backoff = Backoff { first: Duration::from_secs(60), most: Duration::from_secs(3600), deadline: None };
/// Who takes a backup without being asked says why.
const LABEL: &str = "walkeep: behind a gap";

/// What was seen of gaps so far.
pub struct Behind {
    gaps_known: i64,
    /// The end of the next gap that the stream is not behind yet.
    ahead: Option<Lsn>,
    again: Again,
}

impl Behind {
    /// Nothing is known yet.
    pub fn new(metrics: &Metrics) -> Self {
        metrics.backups.begin(LABEL);
        Self { gaps_known: 0, ahead: None, again: Again::new(AGAIN) }
    }

    /// Takes a backup if one is due.
    pub async fn look(&mut self, taker: &Taker, progress: &Progress) {
        let gaps = taker.metrics.gaps_counted();
        let now = progress.snapshot();
        let unsettled = self.again.not_before.is_some();
        let something_new = gaps != self.gaps_known || unsettled || self.ahead.is_some_and(|end| end <= now.received);
        // Only as the stream goes on: the backup waits for its WAL.
        if !something_new || !self.again.is_time() || now.phase != Phase::Streaming {
            return;
        }
        match take_if_due(taker, now.received).await {
            Ok(ahead) => {
                (self.gaps_known, self.ahead) = (gaps, ahead);
                self.again.begin_anew();
            }
            Err(_) if taker.stop.is_cancelled() => {}
            Err(error) if is_held(&error) => {
                // What is being taken may begin behind the gap.
                let wait_s = self.again.rest(AGAIN.first).as_secs();
                tracing::info!(reason = format!("{error:#}"), wait_s, "a base backup behind the gap waits for its turn");
            }
            Err(error) => {
                let wait_s = self.again.failed().as_secs();
                tracing::error!(error = format!("{error:#}"), wait_s, "no base backup behind the gap yet; trying again");
            }
        }
    }
}

/// Answers the end of the next gap that the stream is not behind yet, if there is one.
async fn take_if_due(taker: &Taker, reached: Lsn) -> Result<Option<Lsn>> {
    let gaps = taker.repository.open_gaps().await.context("look for gaps")?;
    let ahead = gaps.iter().map(|gap| gap.to).filter(|end| *end > reached).min();
    if !gaps.is_empty() {
        let records = taker.repository.backups().await.context("look for backups")?.records;
        let starts: Vec<_> = records.iter().map(|record| record.start_lsn).collect();
        if let Some(gap) = without_backup_behind(&gaps, &starts, reached) {
            taker.metrics.backup_due(true);
            tracing::warn!(
                timeline = gap.timeline.get(), from = %gap.from, to = %gap.to,
                "no base backup begins behind the gap: taking one"
            );
            let record = taker.take(taker.options(LABEL)).await?;
            taker.metrics.backups.newest(LABEL, &record);
        }
    }
    taker.metrics.backup_due(false);
    Ok(ahead)
}
