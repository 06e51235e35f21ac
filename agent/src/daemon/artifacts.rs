//! Artifacts by the clock: `schedule` of `[[cluster.NAME.artifact]]` and of `[cluster.NAME.dump]`.
//!
//! As with backups, what was done is read from the repository's records, so that a new host and a second agent know it, and what failed is tried again
//! until the next one is due. A run of dumps is done when every database has one for its moment.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use chrono::{DateTime, Utc};
use futures::future::join_all;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use walkeep_core::artifact::{ArtifactName, ArtifactRecord};
use walkeep_core::audit::{Kind, Outcome};
use walkeep_core::schedule::{Decision, Past, Schedule};
use walkeep_store::several::Proof;

use super::backups::Again;
use crate::artifact::dump::{Dumper, PgDump};
use crate::artifact::maker::Maker;
use crate::artifact::{Made, retention};
use crate::audit::{Deed, Recorder, in_public};
use crate::config::{ArtifactConfig, ClusterConfig};
use crate::expire::{self, Scope};
use crate::metrics::Metrics;
use crate::postgres::ConnectionParams;
use crate::retry::Backoff;

/// Between two looks at the clock.
const PERIOD: Duration = Duration::from_secs(2);
/// Between two tries of what failed.
const AGAIN: Backoff = Backoff { first: Duration::from_secs(10), most: Duration::from_secs(3600), deadline: None };
/// Artifacts made at the same time: each has two pieces in memory.
const AT_ONCE: usize = 2;
/// Records that are looked at for what was done: the newest.
const NEWEST: usize = 20;
/// What the dumps' own samples are called.
const DUMP: &str = "dump";

/// All schedules of the cluster.
pub struct Artifacts {
    cluster: ClusterConfig,
    maker: Maker,
    metrics: Arc<Metrics>,
    recorder: Recorder,
    stop: CancellationToken,
    turns: Semaphore,
    all: Vec<One>,
}

struct One {
    schedule: Schedule,
    what: What,
    state: Mutex<State>,
}

enum What {
    Artifact(Box<ArtifactConfig>),
    Dump(Box<Dumper>),
}

struct State {
    past: Past,
    asked: bool,
    running: bool,
    again: Again,
}

impl Artifacts {
    /// Those of the configuration.
    pub fn new(
        cluster: ClusterConfig,
        params: &ConnectionParams,
        maker: Maker,
        metrics: Arc<Metrics>,
        recorder: Recorder,
        stop: CancellationToken,
    ) -> Self {
        let since = maker.repository().identity().since;
        let one = |schedule: &Schedule, what: What| {
            metrics.artifacts.begin(&schedule.label);
            let past = Past { done: BTreeSet::new(), since, watched: Utc::now(), tried: None };
            let state = State { past, asked: false, running: false, again: Again::new(AGAIN) };
            One { schedule: schedule.clone(), what, state: Mutex::new(state) }
        };
        let scheduled = |artifact: &ArtifactConfig| {
            let schedule = artifact.runs.schedule.as_ref()?;
            Some(one(schedule, What::Artifact(Box::new(artifact.clone()))))
        };
        let mut all: Vec<One> = cluster.artifacts.iter().filter_map(scheduled).collect();
        all.extend(cluster.dump.as_ref().and_then(|dump| {
            let dumper = Dumper::new(dump.clone(), cluster.connection.clone(), params.clone(), cluster.data_directory.clone());
            Some(one(dump.runs.schedule.as_ref()?, What::Dump(Box::new(dumper))))
        }));
        Self { cluster, maker, metrics, recorder, stop, turns: Semaphore::new(AT_ONCE), all }
    }

    /// Whether there is anything to do.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Makes what is due until the agent stops; what is being made then is given up.
    pub async fn run(self) {
        let work = join_all(self.all.iter().map(|one| self.watch(one)));
        self.stop.run_until_cancelled(work).await;
    }

    async fn watch(&self, one: &One) {
        let schedule = &one.schedule;
        let next = schedule.next(Utc::now()).map(|fire| fire.at.to_rfc3339());
        tracing::info!(artifact = schedule.label, schedule = %schedule.cron, timezone = %schedule.zone, next, "artifacts by schedule");
        loop {
            let looked = self.look(one).await;
            one.settle(looked, self);
            one.show(&self.metrics);
            tokio::time::sleep(one.next_look()).await;
        }
    }

    async fn look(&self, one: &One) -> Result<()> {
        if !one.state().asked {
            if !one.state().again.is_time() {
                return Ok(());
            }
            let done = self.done(one).await.context("look for what was made").inspect_err(|_| {
                // As with a pg_dump that is older than the server: nothing will be made.
                self.metrics.artifacts.ended(&one.schedule.label, false, 0.0, Utc::now());
            })?;
            let mut state = one.state();
            (state.past.done, state.asked) = (done, true);
        }
        let due = one.due().filter(|_| one.state().again.is_time());
        let Some(due) = due else { return Ok(()) };
        let turn = self.turns.acquire().await.context("wait for a turn")?;
        one.state().running = true;
        let ran = self.make(one, due).await;
        one.state().running = false;
        drop(turn);
        ran?;
        one.state().past.done.insert(due);
        Ok(())
    }

    /// For which moments everything was made. Asked once, when nothing is known yet.
    async fn done(&self, one: &One) -> Result<BTreeSet<DateTime<Utc>>> {
        let names = match &one.what {
            What::Artifact(config) => vec![config.name.clone()],
            What::Dump(dumper) => {
                let (databases, _) = dumper.look().await.context("look at the server")?;
                databases.iter().map(|database| ArtifactName::of_dump(database)).collect()
            }
        };
        self.metrics.artifacts.begin(&one.schedule.label);
        let mut all: Option<BTreeSet<DateTime<Utc>>> = None;
        for name in &names {
            self.metrics.artifacts.begin(name.as_str());
            let done = self.done_of(name).await?;
            all = Some(all.map_or_else(|| done.clone(), |all| all.intersection(&done).copied().collect()));
        }
        Ok(all.unwrap_or_default())
    }

    async fn done_of(&self, name: &ArtifactName) -> Result<BTreeSet<DateTime<Utc>>> {
        let records = self.maker.repository().newest_artifacts(name, NEWEST).await?;
        if let Some(newest) = records.iter().max_by_key(|record| record.ended_at) {
            self.metrics.artifacts.newest(name.as_str(), newest.ended_at, newest.bytes);
        }
        Ok(records.iter().filter_map(|record| record.due).collect())
    }

    async fn make(&self, one: &One, due: DateTime<Utc>) -> Result<()> {
        match &one.what {
            What::Artifact(config) => {
                if self.done_of(&config.name).await?.contains(&due) {
                    tracing::info!(artifact = %config.name, due = %due.to_rfc3339(), "it was made by another agent");
                    return Ok(());
                }
                self.one(&config.name, Kind::ARTIFACT, self.maker.artifact(config, Some(due), &self.stop)).await
            }
            What::Dump(dumper) => {
                let began = Instant::now();
                let dumped = self.dump(dumper, due).await;
                self.metrics.artifacts.ended(DUMP, dumped.is_ok(), began.elapsed().as_secs_f64(), Utc::now());
                dumped
            }
        }
    }

    async fn dump(&self, dumper: &Dumper, due: DateTime<Utc>) -> Result<()> {
        let (databases, with): (Vec<String>, PgDump) = dumper.look().await.context("look at the server").inspect_err(|error| {
            self.recorder.done(Deed::new("agent", Kind::DUMP, Outcome::Failed).saying(in_public(error)));
        })?;
        let mut failed = Vec::new();
        for database in &databases {
            let name = ArtifactName::of_dump(database);
            // Of a run that failed those that were dumped are not dumped again.
            if self.done_of(&name).await?.contains(&due) {
                continue;
            }
            if let Err(error) = self.one(&name, Kind::DUMP, self.maker.dump(dumper, &with, database, Some(due), &self.stop)).await {
                failed.push(format!("{database}: {error:#}"));
            }
        }
        if failed.is_empty() { Ok(()) } else { Err(anyhow!(failed.join("; "))) }
    }

    async fn one(&self, name: &ArtifactName, kind: Kind, make: impl Future<Output = Result<Made>>) -> Result<()> {
        let began = Instant::now();
        let given_up = self.recorder.if_given_up(Deed::new("agent", kind.clone(), Outcome::Failed).of("artifact", name));
        let made = make.await;
        given_up.ended();
        self.metrics.artifacts.ended(name.as_str(), made.is_ok(), began.elapsed().as_secs_f64(), Utc::now());
        let deed = Deed::of_agent(kind, &made).of("artifact", name);
        let made = match made {
            Ok(made) => made,
            Err(error) => {
                self.recorder.done(deed);
                return Err(error);
            }
        };
        let ArtifactRecord { id, bytes, bytes_stored, ended_at, notes, .. } = &made.record;
        self.recorder.done(deed.of("id", id));
        self.metrics.artifacts.newest(name.as_str(), *ended_at, *bytes);
        tracing::info!(artifact = %name, %id, bytes, bytes_stored, notes, "an artifact is stored");
        for note in &made.notes {
            tracing::warn!(artifact = %name, note, "not all is as it was found");
        }
        self.let_go(name).await;
        Ok(())
    }

    /// What its `keep` lets go, where the agent does that by itself. Nothing that hinders it makes the new one less.
    async fn let_go(&self, name: &ArtifactName) {
        let Some(retention) = self.cluster.retention.as_ref().filter(|retention| retention.automatic) else { return };
        let work = async {
            let let_go = self.try_let_go(name).await;
            // Also where none goes now: of earlier ones the time may be over.
            let_go.and(self.remove(retention.grace).await)
        };
        if let Err(error) = expire::in_time(work).await {
            tracing::error!(artifact = %name, error = format!("{error:#}"), "older artifacts are not let go, or not all of them");
            let deed = Deed::new("agent", Kind::EXPIRE, Outcome::Failed).of("artifact", name);
            self.recorder.done(deed.saying(format!("{error:#}")));
        }
    }

    async fn try_let_go(&self, name: &ArtifactName) -> Result<()> {
        let Some(keep) = retention::keep_of(&self.cluster, name) else { return Ok(()) };
        // Of several repositories each must say what is in it: nothing is let go by half of the truth.
        let repository = self.maker.repository().demanding(Proof::Every);
        let Some(share) = retention::share(&repository, name, keep, Utc::now()).await? else { return Ok(()) };
        if share.is_much() {
            let (goes, kept) = (share.expired.len(), share.kept);
            anyhow::bail!("{goes} of {} would go at once: look at `walkeep expire --dry-run`, and say --allow by hand", goes + kept);
        }
        let record = expire::take_out_artifacts(&repository, share.places().collect(), Utc::now()).await?;
        tracing::info!(
            artifact = %name, number = record.number, artifacts = record.artifacts.len(),
            "older artifacts left the catalog; `walkeep expire --undo` with the number brings them back within the grace"
        );
        let ids = share.expired.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        let deed = Deed::new("agent", Kind::EXPIRE, Outcome::Done).of("number", record.number).of("artifact", name);
        self.recorder.done(deed.of("ids", ids).saying("left the catalog"));
        Ok(())
    }

    /// Removes the objects of those whose time of grace is over.
    async fn remove(&self, grace: Duration) -> Result<()> {
        let repository = Arc::new(self.maker.repository().demanding(Proof::Every));
        let done = expire::carry_out(&repository, Scope::Artifacts, (grace, &self.cluster.spool), Utc::now(), &self.stop, &|_| {}).await?;
        done.log_doubts();
        if !done.artifacts.is_empty() {
            let artifacts = done.artifacts.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
            tracing::info!(artifacts, objects = done.objects, "removed what was let go of artifacts");
            self.recorder
                .done(Deed::new("agent", Kind::EXPIRE, Outcome::Done).of("artifacts", artifacts).of("objects_removed", done.objects));
        }
        match done.refused_named.first() {
            Some(first) => anyhow::bail!("the store does not let go of {} objects, such as {first}", done.refused),
            None => Ok(()),
        }
    }
}

impl One {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The moment for which it is due now.
    fn due(&self) -> Option<DateTime<Utc>> {
        let (now, mut state) = (Utc::now(), self.state());
        state.past.seen_at(now);
        let Decision::Take { fire, missed } = self.schedule.decide(now, &state.past) else { return None };
        if state.past.tried != Some(fire.due) {
            state.past.tried = Some(fire.due);
            state.again.begin_anew();
            tracing::info!(artifact = self.schedule.label, due = %fire.due.to_rfc3339(), missed, "an artifact is due");
        }
        Some(fire.due)
    }

    fn next_look(&self) -> Duration {
        let next = self.schedule.next(Utc::now()).and_then(|fire| (fire.at - Utc::now()).to_std().ok());
        next.map_or(PERIOD, |wait| PERIOD.min(wait + Duration::from_millis(1)))
    }

    fn show(&self, metrics: &Metrics) {
        let (now, state) = (Utc::now(), self.state());
        let next = self.schedule.next(now).map(|fire| fire.at);
        let overdue = state.asked && self.schedule.overdue(now, &state.past, state.running).is_some();
        metrics.artifacts.planned(&self.schedule.label, next, overdue);
    }

    fn settle(&self, looked: Result<()>, of: &Artifacts) {
        let error = match looked {
            Ok(()) => return,
            Err(_) if of.stop.is_cancelled() => return,
            Err(error) => error,
        };
        let wait_s = self.state().again.failed().as_secs();
        let label = &self.schedule.label;
        tracing::error!(artifact = label, wait_s, error = format!("{error:#}"), "the artifact is not made; trying again");
    }
}
