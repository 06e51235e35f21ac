//! `[[cluster.NAME.backup]]`: backups by the clock.
//!
//! What was done is read from the repository, at the start and again before each backup, so that a new host, or a second agent, knows it
//! too. What failed is tried again until the next one is due, which then takes its place.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use chrono::{DateTime, Utc};
use walkeep_core::backup::BackupRecord;
use walkeep_core::schedule::{Decision, Fire, Past};

use super::{Again, Taker, is_held};
use crate::backup::Options;
use crate::config::ScheduledBackup;
use crate::metrics::Metrics;
use crate::retry::Backoff;

/// Between two tries of a backup. What fails at once is worth a second try soon; what takes hours to fail waits longer and longer.
const AGAIN: Backoff = Backoff { first: Duration::from_secs(10), most: Duration::from_secs(3600), deadline: None };
/// How soon it is seen that a backup that somebody else takes is over.
const TURN: Duration = Duration::from_secs(5);
/// Between two looks at what the metrics show.
const SHOWN: Duration = Duration::from_secs(5);
/// Clocks further apart than this are worth a word.
const SKEW_S: i64 = 300;

/// All schedules of the cluster.
pub struct Schedules {
    all: Vec<One>,
}

/// A schedule and how far it is.
struct One {
    config: ScheduledBackup,
    state: Mutex<State>,
}

struct State {
    past: Past,
    /// Whether the repository was asked what was done.
    asked: bool,
    /// Whether a backup of it is being taken.
    running: bool,
    /// The moment to come for which one is recorded, as far as it was told.
    ahead: Option<DateTime<Utc>>,
    again: Again,
}

impl Schedules {
    /// Those of the configuration; what was done is not known yet.
    pub fn new(taker: &Taker) -> Self {
        let (now, since) = (Utc::now(), taker.repository.identity().since);
        let one = |config: &ScheduledBackup| {
            taker.metrics.backups.begin(&config.schedule.label);
            let past = Past { done: BTreeSet::new(), since, watched: now, tried: None };
            let state = State { past, asked: false, running: false, ahead: None, again: Again::new(AGAIN) };
            One { config: config.clone(), state: Mutex::new(state) }
        };
        Self { all: taker.cluster.backups.iter().map(one).collect() }
    }

    /// Until which it is worth to sleep, at most `longest`.
    pub fn next_look(&self, now: DateTime<Utc>, longest: Duration) -> Duration {
        let next = self.all.iter().filter_map(|one| one.config.schedule.next(now)).map(|fire| fire.at).min();
        // Not before it: a moment's fraction later it is due.
        let wait = next.and_then(|at| (at - now).to_std().ok()).map(|wait| wait + Duration::from_millis(1));
        wait.map_or(longest, |wait| wait.min(longest))
    }

    /// Takes what is due, one after the other.
    pub async fn look(&self, taker: &Taker) {
        for one in &self.all {
            if !taker.stop.is_cancelled() {
                one.look(taker).await;
            }
        }
    }

    /// Shows what comes next and what is overdue, also while a backup is being taken.
    pub async fn keep_shown(&self, metrics: &Metrics) {
        loop {
            self.all.iter().for_each(|one| one.show(metrics));
            tokio::time::sleep(SHOWN).await;
        }
    }
}

impl One {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The time, and the state as it is then: the clock may have been set since the last look.
    fn now(&self) -> (DateTime<Utc>, MutexGuard<'_, State>) {
        let mut state = self.state();
        let now = Utc::now();
        state.past.seen_at(now);
        (now, state)
    }

    fn label(&self) -> &str {
        &self.config.schedule.label
    }

    fn show(&self, metrics: &Metrics) {
        let (now, state) = self.now();
        let next = self.config.schedule.next(now).map(|fire| fire.at);
        // Before the repository was asked nothing is known to be missing; what cannot be asked is an alarm of its own.
        let overdue = state.asked && self.config.schedule.overdue(now, &state.past, state.running).is_some();
        metrics.backups.planned(self.label(), next, overdue);
    }

    async fn look(&self, taker: &Taker) {
        let asked = self.state().asked;
        if !asked {
            if self.state().again.is_time() {
                let asked = self.ask(taker).await;
                self.settle(asked.map(|()| self.tell_plan()), "what the schedule has done is not known yet", taker);
            }
            return;
        }
        self.tell_ahead();
        let Some((fire, _)) = self.due() else { return };
        {
            let mut state = self.state();
            if state.past.tried != Some(fire.due) {
                state.past.tried = Some(fire.due);
                state.again.begin_anew();
            }
            if !state.again.is_time() {
                return;
            }
            state.running = true;
        }
        let taken = self.take(taker, fire).await;
        self.state().running = false;
        self.settle(taken, "the scheduled backup is not done", taker);
        self.show(&taker.metrics);
    }

    /// What is due now, and how many runs before it were missed.
    fn due(&self) -> Option<(Fire, usize)> {
        let (now, state) = self.now();
        match self.config.schedule.decide(now, &state.past) {
            Decision::Take { fire, missed } => Some((fire, missed)),
            Decision::Wait => None,
        }
    }

    /// Looks in the repository for what was done.
    async fn ask(&self, taker: &Taker) -> Result<()> {
        let records = taker.repository.backups().await.context("look for backups in the repository")?.records;
        let runs = self.config.schedule.runs(&records);
        let (now, mut state) = self.now();
        if let Some((_, newest)) = runs.range(..=now).next_back() {
            taker.metrics.backups.newest(self.label(), newest);
        }
        state.past.done = runs.into_keys().collect();
        state.asked = true;
        Ok(())
    }

    /// Says once that one is recorded for a moment that is still to come.
    fn tell_ahead(&self) {
        let (now, mut state) = self.now();
        let ahead = state.past.done.last().copied().filter(|due| *due > now);
        if let Some(due) = ahead.filter(|_| state.ahead != ahead) {
            tracing::warn!(
                label = self.label(), due = %due.to_rfc3339(),
                "a backup is recorded for a moment that is still to come: this host's clock was ahead then, or is behind now. It does not count before"
            );
        }
        state.ahead = ahead;
    }

    fn tell_plan(&self) {
        let schedule = &self.config.schedule;
        let (now, state) = self.now();
        let (next, last) = (schedule.next(now), state.past.last(now));
        tracing::info!(
            label = self.label(), schedule = %schedule.cron, timezone = %schedule.zone,
            last = last.map(|due| due.to_rfc3339()),
            next = next.map(|fire| fire.at.to_rfc3339()),
            next_there = next.map(|fire| fire.at.with_timezone(&schedule.zone).to_rfc3339()),
            "backups by schedule"
        );
    }

    /// Takes the backup, unless the repository has it by now.
    async fn take(&self, taker: &Taker, fire: Fire) -> Result<()> {
        // Asks nobody while it has to wait, perhaps for hours.
        taker.see_free().await?;
        self.ask(taker).await?;
        let Some((fire, missed)) = self.due().filter(|(now, _)| now.due >= fire.due) else {
            tracing::info!(label = self.label(), due = %fire.due.to_rfc3339(), "the scheduled backup was taken by another agent");
            return Ok(());
        };
        let now = Utc::now();
        let late_s = (now - fire.at).num_seconds();
        tracing::info!(label = self.label(), due = %fire.due.to_rfc3339(), late_s, missed, "a scheduled backup begins");
        let record = taker.take(self.options(taker, fire, now)?).await?;
        self.state().past.done.insert(fire.due);
        taker.metrics.backups.newest(self.label(), &record);
        self.compare_clocks(now, &record);
        let next = self.config.schedule.next(Utc::now()).map(|fire| fire.at.to_rfc3339());
        tracing::info!(label = self.label(), backup = %record.id, next, "the scheduled backup is done");
        Ok(())
    }

    fn options(&self, taker: &Taker, fire: Fire, now: DateTime<Utc>) -> Result<Options> {
        let keep = self.config.keep.map(|keep| keep.from(now).context("`keep` of the schedule is too long")).transpose()?;
        Ok(Options {
            due: Some(fire.due),
            keep,
            full: self.config.full,
            max_rate_kb: self.config.max_rate_kb,
            fast_checkpoint: !self.config.spread_checkpoint,
            ..taker.options(self.label())
        })
    }

    /// Schedules follow this host's clock; that it is wrong shows beside the server's.
    fn compare_clocks(&self, began: DateTime<Utc>, record: &BackupRecord) {
        let ahead_s = (began - record.started_at).num_seconds();
        if ahead_s.abs() > SKEW_S {
            tracing::warn!(
                label = self.label(),
                ahead_s,
                "this host's clock, which schedules follow, and the server's are minutes apart: look which one is wrong"
            );
        }
    }

    /// What follows from how a try ended.
    fn settle(&self, ended: Result<()>, what: &str, taker: &Taker) {
        let mut state = self.state();
        let error = match ended {
            Ok(()) => return state.again.begin_anew(),
            Err(_) if taker.stop.is_cancelled() => return,
            Err(error) => error,
        };
        let label = self.label();
        if is_held(&error) {
            let first = state.again.not_before.is_none();
            let wait_s = state.again.rest(TURN).as_secs();
            if first {
                tracing::warn!(label, reason = format!("{error:#}"), wait_s, "the scheduled backup waits for its turn");
            }
            return;
        }
        let wait_s = state.again.failed().as_secs();
        let failures = state.again.failures;
        tracing::error!(label, failures, wait_s, error = format!("{error:#}"), "{what}; trying again");
    }
}
