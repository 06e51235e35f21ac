//! Drills by the clock: `schedule` of `[cluster.NAME.drill]`, and what the metrics say of drills, whoever carried them out.
//!
//! A drill is a process of its own, `walkeep drill`: its memory, its files and its end are not the agent's, which streams meanwhile. As with backups,
//! what was done is read from the repository's records.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use chrono::{DateTime, Utc};
use tokio::io::AsyncReadExt;
use tokio::process::{Child, Command};
use tokio_util::sync::CancellationToken;
use walkeep_core::drill::{DrillRecord, Verdict};
use walkeep_core::schedule::{Decision, Past, Schedule};

use super::backups::Again;
use super::samples::Samples;
use crate::config::ClusterConfig;
use crate::metrics::Metrics;
use crate::repository::ClusterRepository;
use crate::retry::Backoff;

/// Between two looks at the clock.
const PERIOD: Duration = Duration::from_secs(2);
/// Between two looks at what others have stored.
const LOOK: Duration = Duration::from_secs(3600);
/// Between two tries of one that could not be carried out.
const AGAIN: Backoff = Backoff { first: Duration::from_secs(600), most: Duration::from_secs(6 * 3600), deadline: None };
/// Records that are looked at: the newest.
const NEWEST: usize = 50;
/// A stop of the agent waits so long for the drill to remove what it made. What is left then it removes by itself.
const STOPPING: Duration = Duration::from_secs(4);
/// The end of what it says that the log has.
const TAIL: usize = 2000;

/// The schedule of the cluster, if it has one.
pub struct Drills {
    cluster: ClusterConfig,
    config_path: Option<PathBuf>,
    repository: Arc<ClusterRepository>,
    metrics: Arc<Metrics>,
    samples: Arc<Samples>,
    stop: CancellationToken,
    past: Past,
    again: Again,
    looked: Option<Instant>,
}

impl Drills {
    /// Of this cluster; the drill reads its configuration where the agent has read it.
    pub fn new(
        cluster: ClusterConfig,
        config_path: Option<PathBuf>,
        repository: Arc<ClusterRepository>,
        metrics: Arc<Metrics>,
        samples: Arc<Samples>,
        stop: CancellationToken,
    ) -> Self {
        let past = Past { done: BTreeSet::new(), since: repository.identity().since, watched: Utc::now(), tried: None };
        Self { cluster, config_path, repository, metrics, samples, stop, past, again: Again::new(AGAIN), looked: None }
    }

    /// Carries out what is due until the agent stops.
    pub async fn run(mut self) {
        let schedule = self.cluster.drill.schedule.clone();
        if let Some(schedule) = &schedule {
            let next = schedule.next(Utc::now()).map(|fire| fire.at.to_rfc3339());
            tracing::info!(schedule = %schedule.cron, timezone = %schedule.zone, next, "drills by schedule");
        }
        let stop = self.stop.clone();
        while !stop.is_cancelled() {
            if self.looked.is_none_or(|at| at.elapsed() >= LOOK) {
                match stop.run_until_cancelled(self.look()).await {
                    None => return,
                    Some(Ok(())) => {}
                    Some(Err(error)) => tracing::debug!(error = format!("{error:#}"), "cannot look what drills said"),
                }
            }
            if let Some(schedule) = &schedule {
                self.drill_if_due(schedule).await;
            }
            tokio::select! {
                () = tokio::time::sleep(PERIOD) => {}
                () = stop.cancelled() => return,
            }
        }
    }

    /// What is stored.
    async fn look(&mut self) -> Result<()> {
        // One that fails is tried again with the next, and not with each look at the clock.
        self.looked = Some(Instant::now());
        let (records, damaged) = self.repository.drills(NEWEST).await?;
        for key in damaged {
            tracing::warn!(key, "the record of a drill is damaged and left out");
        }
        self.metrics.drills.stands(&records);
        self.past.done = records.iter().filter(|record| is_done(record)).filter_map(|record| record.facts.due).collect();
        Ok(())
    }

    async fn drill_if_due(&mut self, schedule: &Schedule) {
        let now = Utc::now();
        self.past.seen_at(now);
        let next = schedule.next(now).map(|fire| fire.at);
        self.metrics.drills.planned(next, schedule.overdue(now, &self.past, false).is_some());
        let Decision::Take { fire, missed } = schedule.decide(now, &self.past) else { return };
        // A backup reads and writes as much: it goes first.
        if self.metrics.backups.is_running() {
            return;
        }
        if self.past.tried != Some(fire.due) {
            self.past.tried = Some(fire.due);
            self.again.begin_anew();
            tracing::info!(due = %fire.due.to_rfc3339(), missed, "a drill is due");
        }
        if !self.again.is_time() {
            return;
        }
        // Another agent, or another host, may have done it.
        if self.look().await.is_ok() && self.past.done.contains(&fire.due) {
            return;
        }
        self.metrics.drills.planned(next, false);
        if let Some(Err(error)) = self.stop.clone().run_until_cancelled(self.samples.take()).await {
            tracing::warn!(
                error = format!("{error:#}"),
                "rows could not be counted before the drill: it compares with an earlier count, or with none"
            );
        }
        let began = Instant::now();
        let carried_out = self.carry_out(fire.due).await;
        if self.stop.is_cancelled() {
            return;
        }
        let looked = self.look().await;
        match carried_out.and(looked) {
            Ok(()) if self.past.done.contains(&fire.due) => tracing::info!(seconds = began.elapsed().as_secs(), "the drill passed"),
            carried_out => {
                let error = carried_out.err().map_or_else(|| "it left no verdict".to_owned(), |error| format!("{error:#}"));
                self.metrics.drills.failed();
                if self.past.done.contains(&fire.due) {
                    tracing::error!(error, "the drill failed: `walkeep drills --newest` has its report");
                } else {
                    let wait_s = self.again.failed().as_secs();
                    tracing::error!(error, wait_s, "the drill could not be carried out; trying again");
                }
            }
        }
    }

    /// Runs the command. An error says how it ended.
    async fn carry_out(&self, due: DateTime<Utc>) -> Result<()> {
        let mut command = Command::new(std::env::current_exe().context("find this program")?);
        command.args(["drill", "--json", "--until-input-ends", "--due", &due.to_rfc3339(), "--cluster", self.cluster.name.as_str()]);
        if let Some(path) = &self.config_path {
            command.arg("--config").arg(path);
        }
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).process_group(0);
        let mut child = command.spawn().context("start walkeep drill")?;
        let ended = tokio::select! {
            ended = ended(&mut child) => ended,
            () = self.stop.cancelled() => {
                // The end of its input ends it.
                drop(child.stdin.take());
                let _ = tokio::time::timeout(STOPPING, child.wait()).await;
                bail!("the agent stops");
            }
        };
        ended
    }
}

/// Whether it is to count as carried out: it passed, or it found what is not as it should be, and would find that again.
fn is_done(record: &DrillRecord) -> bool {
    match record.facts.verdict {
        Verdict::Passed => true,
        Verdict::Failed => record.facts.checks.failed > 0,
        Verdict::Cancelled => false,
    }
}

async fn ended(child: &mut Child) -> Result<()> {
    let mut said = Vec::new();
    let mut stderr = child.stderr.take().context("its standard error")?;
    // Not more than a pipe's worth is kept, however much it says.
    let mut chunk = [0; 4096];
    loop {
        let read = stderr.read(&mut chunk).await?;
        if read == 0 {
            break;
        }
        said.extend_from_slice(&chunk[..read]);
        said.drain(..said.len().saturating_sub(TAIL));
    }
    let status = child.wait().await.context("wait for walkeep drill")?;
    if status.success() {
        return Ok(());
    }
    bail!("walkeep drill ended with {status}: {}", String::from_utf8_lossy(&said).trim())
}
