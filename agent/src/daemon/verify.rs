//! What the agent verifies by itself: a look at everything once a day, and a share of what is stored read each day, so that all of it is read once in the time
//! that the configuration says.
//!
//! It waits for quiet: while the stream is behind or a backup is taken it neither begins nor reads on, and it reads no faster than it is told to. Where another agent writes
//! the archive, that one does it. When it was done last is remembered beside the spool, so an agent that is started often does not begin anew each time.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use tokio_util::sync::CancellationToken;
use walkeep_core::verify::{Kind, Severity};

use crate::config::ClusterConfig;
use crate::copies;
use crate::metrics::Metrics;
use crate::progress::{Phase, Progress};
use crate::repository::{self, ClusterRepository};
use crate::verify::memory::{Memory, Outcome};
use crate::verify::pace::Pace;
use crate::verify::{self, Found, Overall, Place, Read, Wish, numbered};
use crate::writer;

/// A share of everything is read so often.
const SHARES: Duration = Duration::from_secs(86_400);
/// Between two looks at the clock.
const PERIOD: Duration = Duration::from_secs(60);
/// Not so soon after the agent's start: it has better to do.
const FIRST: Duration = Duration::from_secs(600);
/// What failed is tried again after so long.
const AGAIN: Duration = Duration::from_secs(3600);
/// WAL may wait for so long while objects are read.
const BEHIND: Duration = Duration::from_secs(30);
/// A share is no less than this.
const LEAST: u64 = 64 << 20;
/// So much damage is named in the log.
const NAMED: usize = 20;

/// Verifies until `stop`.
pub async fn run(
    cluster: ClusterConfig,
    repository: Arc<ClusterRepository>,
    metrics: Arc<Metrics>,
    progress: Arc<Progress>,
    stop: CancellationToken,
) {
    let verifying = Verifying { pace: Pace::of(Some(cluster.verify.rate)), cluster, repository, metrics, progress, stop: stop.clone() };
    tokio::select! {
        () = verifying.forever() => {}
        () = stop.cancelled() => {}
    }
}

struct Verifying {
    cluster: ClusterConfig,
    repository: Arc<ClusterRepository>,
    metrics: Arc<Metrics>,
    progress: Arc<Progress>,
    pace: Pace,
    stop: CancellationToken,
}

impl Verifying {
    async fn forever(&self) {
        let (check, scrub) = (self.cluster.verify.check, self.cluster.verify.scrub);
        let shares = scrub.map(|scrub| scrub.min(SHARES));
        let Some(shortest) = check.into_iter().chain(shares).min() else { return };
        let began = Instant::now();
        let mut outcomes: Vec<(String, Outcome)> = numbered(&self.repository)
            .map(|(_, repository)| {
                let outcome = Memory::outcome_of(&self.cluster, &repository).unwrap_or_default();
                (repository.repository().url(), outcome)
            })
            .collect();
        self.metrics.verify.stands(&outcomes);
        self.metrics.stored.stands(&outcomes, |url| self.cluster.prices_of(url));
        // When a share was last begun is remembered by this process alone; another one reads only what is due.
        let (mut shared_at, mut failed_at) = (None::<Instant>, None::<Instant>);
        loop {
            tokio::time::sleep(PERIOD.min(shortest / 4)).await;
            let rests = failed_at.is_some_and(|at| at.elapsed() < AGAIN.min(shortest));
            if began.elapsed() < FIRST.min(shortest) || rests || self.is_busy() {
                continue;
            }
            let share = shares.filter(|every| shared_at.is_none_or(|at| at.elapsed() >= *every));
            let last = outcomes.iter().map(|(_, outcome)| outcome.looked_at).min().flatten();
            let look = check.is_some_and(|every| is_due(last, every, Utc::now()));
            if share.is_none() && !look {
                continue;
            }
            let verified = async {
                if self.is_elsewhere().await? {
                    return Ok(None);
                }
                // Which they are is known only once they could be opened.
                let mut places = Place::all(&self.cluster, &self.repository);
                let report = self.verify(share, &mut places).await?;
                let outcomes = places.into_iter().map(|place| (place.url(), place.memory.outcome)).collect();
                Ok::<_, repository::Error>(Some((report, outcomes)))
            };
            match verified.await {
                Ok(Some((report, now))) => {
                    outcomes = now;
                    self.metrics.verify.stands(&outcomes);
                    self.metrics.stored.stands(&outcomes, |url| self.cluster.prices_of(url));
                    log(&report);
                    failed_at = report.problem().map(|_| Instant::now());
                    if let Some((repository, error)) = report.problem() {
                        tracing::warn!(repository, error, "verify: this repository could not be looked at to the end; it is tried again");
                        continue;
                    }
                }
                Ok(None) => tracing::debug!("verify: another agent writes the archive, and verifies it"),
                Err(_) if self.stop.is_cancelled() => return,
                Err(error) => {
                    failed_at = Some(Instant::now());
                    tracing::warn!(
                        error = format!("{error:#}"),
                        "verify: the repository could not be looked at to the end; it is tried again"
                    );
                    continue;
                }
            }
            if share.is_some() {
                shared_at = Some(Instant::now());
            }
        }
    }

    /// Looks, and reads a share where that is due.
    async fn verify(&self, share: Option<Duration>, places: &mut [Place]) -> repository::Result<Overall> {
        let counted = Mutex::new((0u64, 0u64));
        let scrub = self.cluster.verify.scrub.unwrap_or(SHARES);
        // A little more than its share, as not every day is quiet.
        let most = |total: u64| {
            let part = share.unwrap_or(SHARES).as_secs_f64() / scrub.as_secs_f64();
            if part >= 1.0 { u64::MAX } else { LEAST.max((total as f64 * part * 1.2) as u64) }
        };
        let reads = |number: usize| self.cluster.repositories().nth(number - 1).is_some_and(|place| self.cluster.verify.reads(place));
        let hold = || self.is_busy();
        let read = Read { older_than: Some(scrub), most: Some(&most), hold: &hold, of: &reads, ..Read::all(&self.pace, 1) };
        let durable = || {
            let now = self.progress.snapshot();
            now.timeline.filter(|_| self.cluster.stream && !now.durable.is_zero()).map(|timeline| (timeline, now.durable))
        };
        let wish = Wish {
            read: share.map(|_| read),
            reading: &|done, _| {
                let mut counted = counted.lock().unwrap_or_else(PoisonError::into_inner);
                // Of the next repository it begins anew.
                if done.objects < counted.0 {
                    *counted = (0, 0);
                }
                self.metrics.verify.read(done.objects.saturating_sub(counted.0), done.bytes.saturating_sub(counted.1));
                *counted = (done.objects, done.bytes);
            },
            durable: &durable,
            behind: &|url| copies::behind_since(&self.cluster, url),
            ..Wish::look(&self.stop)
        };
        verify::everywhere(&wish, places).await.map(|(overall, _)| overall)
    }

    /// Whether something else is more urgent.
    fn is_busy(&self) -> bool {
        let now = self.progress.snapshot();
        let streams = self.cluster.stream && (now.phase != Phase::Streaming || now.lag > BEHIND);
        streams || self.metrics.backups.is_running()
    }

    /// Whether another agent writes the newest timeline.
    async fn is_elsewhere(&self) -> repository::Result<bool> {
        let ours = writer::known_identity(&self.cluster.spool).unwrap_or_default();
        let newest = self.repository.newest_leases().await;
        match newest {
            Ok(leases) => Ok(leases.last().is_some_and(|lease| self.cluster.stream && ours.is_none_or(|id| id != lease.writer.id))),
            // What is wrong with it is to be told.
            Err(repository::Error::Corrupt { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// Whether something that was done then is due again. A time that is still to come is of a clock that was ahead.
fn is_due(done: Option<DateTime<Utc>>, every: Duration, now: DateTime<Utc>) -> bool {
    let every = TimeDelta::from_std(every).unwrap_or(TimeDelta::MAX);
    done.is_none_or(|done| done > now || now - done >= every)
}

fn log(report: &Overall) {
    let wrong = report.findings.iter().filter(|found| found.finding.severity > Severity::Note);
    let (unlocked, damaged): (Vec<&Found>, Vec<_>) = wrong.partition(|found| found.finding.kind == Kind::Lock);
    for Found { url, finding, .. } in unlocked.iter().take(NAMED) {
        let (key, reason, advice) = (&finding.key, &finding.reason, &finding.advice);
        tracing::warn!(repository = url, key, reason, advice, "verify: something that is stored is not locked as was promised");
    }
    for Found { url, finding, .. } in damaged.iter().take(NAMED) {
        let (key, reason, lost, advice) = (&finding.key, &finding.reason, finding.lost.to_string(), &finding.advice);
        tracing::error!(repository = url, key, reason, lost, advice, "verify: something that is stored is damaged or missing");
    }
    let read = report.read.unwrap_or_default();
    tracing::info!(
        whole = report.whole,
        damaged = report.damaged(Severity::Minor) - unlocked.len() as u64,
        short_locks = unlocked.len(),
        objects = report.listed.objects,
        read = read.objects,
        read_bytes = read.bytes,
        seconds = report.seconds,
        "verify: the repository was looked at"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_done_is_due_again_after_its_time() {
        let now = DateTime::from_timestamp(1_000_000, 0).unwrap();
        let ago = |seconds: i64| Some(now - TimeDelta::seconds(seconds));
        let day = Duration::from_secs(86_400);
        assert!(is_due(None, day, now));
        assert!(!is_due(ago(86_399), day, now));
        assert!(is_due(ago(86_400), day, now));
        assert!(is_due(ago(-1), day, now));
    }
}
