//! The backups that the agent takes by itself, one after the other: by schedule ([`scheduled`]) and behind a gap ([`gap`]).
//!
//! [`Taker`] is the only way to one. When a backup is due is decided in [`walkeep_core::schedule`]; here the clock is read and the work done.
//! The clock is looked at every [`PERIOD`]: it may be set, and the host may sleep, without a timer that notices.

mod gap;
mod retention;
mod scheduled;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use chrono::Utc;
use tokio_util::sync::CancellationToken;
use walkeep_core::audit::{Kind, Outcome};
use walkeep_core::backup::BackupRecord;

use crate::audit::{Deed, Recorder};
use crate::backup::lock::{BackupLock, LockError};
use crate::backup::{self, Options, waiting};
use crate::config::{ClusterConfig, Protect};
use crate::metrics::Metrics;
use crate::postgres::ConnectionParams;
use crate::progress::Progress;
use crate::repository::ClusterRepository;
use crate::retry::Backoff;
use scheduled::Schedules;

/// Between two looks at the clock and at how many gaps are open, which ask nobody.
const PERIOD: Duration = Duration::from_secs(2);

/// Takes backups, each with the lock that other processes respect.
pub struct Taker {
    cluster: ClusterConfig,
    params: ConnectionParams,
    repository: Arc<ClusterRepository>,
    metrics: Arc<Metrics>,
    recorder: Recorder,
    stop: CancellationToken,
}

impl Taker {
    /// Of this cluster, into this repository, until `stop`.
    pub fn new(
        cluster: ClusterConfig,
        params: ConnectionParams,
        repository: Arc<ClusterRepository>,
        metrics: Arc<Metrics>,
        stop: CancellationToken,
    ) -> Self {
        Self { cluster, params, repository, metrics, recorder: Recorder::nobody(), stop }
    }

    /// The same, telling what it did.
    pub fn recording(self, recorder: Recorder) -> Self {
        Self { recorder, ..self }
    }

    /// Whether the agent has reasons to take backups by itself.
    pub fn has_reasons(&self) -> bool {
        !self.cluster.backups.is_empty() || self.guards()
    }

    /// How this cluster's backups are taken.
    fn options(&self, label: &str) -> Options {
        Options::for_cluster(&self.cluster, label)
    }

    /// A gap that the agent makes to protect the server is followed by a backup.
    fn guards(&self) -> bool {
        self.cluster.stream && self.cluster.protect != Protect::Archive
    }

    /// Answers an error while another process takes a backup on this host.
    async fn see_free(&self) -> Result<()> {
        let spool = self.cluster.spool.clone();
        Ok(tokio::task::spawn_blocking(move || BackupLock::see_free(&spool)).await.context("look at the lock")??)
    }

    /// Takes one. It ends soon after the agent is told to stop.
    async fn take(&self, options: Options) -> Result<BackupRecord> {
        let (spool, who) = (self.cluster.spool.clone(), format!("the agent, {:?}", options.label));
        let lock = Arc::new(tokio::task::spawn_blocking(move || BackupLock::take(&spool, &who)).await.context("wait for the lock")??);
        let (label, began) = (options.label.clone(), Instant::now());
        self.metrics.backups.running(true);
        let deed = Deed::new("agent", Kind::BACKUP, Outcome::Failed).of("label", &label);
        let given_up = self.recorder.if_given_up(deed);
        let taken = backup::take(waiting::told(&self.repository, &lock), &self.params, options, &|_| {}, &self.stop).await;
        self.metrics.backups.running(false);
        drop(lock);
        if let Ok(record) = &taken {
            self.metrics.backup_taken(record);
        }
        // A stop is no failure: the next agent goes on with it.
        if taken.is_ok() || !self.stop.is_cancelled() {
            given_up.ended();
            self.metrics.backups.ended(&label, taken.is_ok(), began.elapsed().as_secs_f64(), Utc::now());
            let deed = Deed::of_agent(Kind::BACKUP, &taken).of("label", &label);
            self.recorder.done(taken.iter().fold(deed, |deed, record| deed.of("backup", &record.id)));
        }
        if taken.is_ok() {
            retention::let_go(self).await;
        }
        taken.context("take the base backup")
    }
}

/// Takes what is due until the agent stops.
pub async fn run(taker: Taker, progress: Arc<Progress>) {
    let schedules = Schedules::new(&taker);
    let work = async {
        let mut gap = taker.guards().then(|| gap::Behind::new(&taker.metrics));
        loop {
            tokio::time::sleep(schedules.next_look(Utc::now(), PERIOD)).await;
            // The primary's agent takes them.
            if progress.stands_by() {
                continue;
            }
            if let Some(gap) = &mut gap {
                gap.look(&taker, &progress).await;
            }
            schedules.look(&taker).await;
        }
    };
    tokio::select! {
        // All of it may be dropped at any time: a backup that is under way does not get into the catalog.
        () = taker.stop.cancelled() => {}
        () = work => {}
        () = schedules.keep_shown(&taker.metrics) => {}
    }
    if taker.metrics.backups.is_running() {
        tracing::info!("a base backup was under way; it is given up, and the next agent goes on with it");
    }
}

/// When something that failed is tried again.
pub(super) struct Again {
    backoff: Backoff,
    failures: u32,
    not_before: Option<Instant>,
}

impl Again {
    pub(super) const fn new(backoff: Backoff) -> Self {
        Self { backoff, failures: 0, not_before: None }
    }

    pub(super) fn is_time(&self) -> bool {
        self.not_before.is_none_or(|then| then <= Instant::now())
    }

    /// It failed once more: for how long it rests.
    pub(super) fn failed(&mut self) -> Duration {
        self.failures += 1;
        self.rest(self.backoff.wait(self.failures))
    }

    /// It could not be tried, and rests so long.
    fn rest(&mut self, wait: Duration) -> Duration {
        self.not_before = Some(Instant::now() + wait);
        wait
    }

    pub(super) fn begin_anew(&mut self) {
        (self.failures, self.not_before) = (0, None);
    }
}

/// Whether somebody else takes a backup: no failure of ours.
fn is_held(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| matches!(cause.downcast_ref(), Some(LockError::Held { .. })))
}
