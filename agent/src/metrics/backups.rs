//! What is counted of the backups that the agent takes: one row of samples for each schedule, by its label.

use std::sync::{Mutex, MutexGuard, PoisonError};

use chrono::{DateTime, Utc};
use prometheus::{GaugeVec, IntCounterVec, IntGauge, IntGaugeVec, Opts};

use walkeep_core::backup::BackupRecord;

use super::Maker;
use super::common_names::LastBackup;

/// The metrics of scheduled backups.
#[derive(Debug)]
pub struct BackupMetrics {
    running: IntGauge,
    attempts: IntCounterVec,
    success: IntGaugeVec,
    failure: IntGaugeVec,
    duration: GaugeVec,
    next: IntGaugeVec,
    overdue: IntGaugeVec,
    expire_success: IntGauge,
    expire_failure: IntGauge,
    last: Mutex<LastBackup>,
}

impl BackupMetrics {
    pub(super) fn new(maker: &Maker<'_>) -> prometheus::Result<Self> {
        let by_schedule = |name: &str, help: &str| maker.int_gauge_vec(name, help, "schedule");
        Ok(Self {
            running: maker.int_gauge("walkeep_backup_running", "1 while the agent takes a base backup.")?,
            attempts: maker.registered(IntCounterVec::new(
                Opts::new("walkeep_backup_attempts_total", "Base backups that the agent has begun, by how they ended."),
                &["schedule", "result"],
            )?)?,
            success: by_schedule(
                "walkeep_backup_last_success_timestamp_seconds",
                "When the schedule's newest backup ended, by the server's clock, as a Unix time; 0 if there is none.",
            )?,
            failure: by_schedule(
                "walkeep_backup_last_failure_timestamp_seconds",
                "When a backup of the schedule failed last, as a Unix time; 0 if none did since the agent's start.",
            )?,
            duration: maker.registered(GaugeVec::new(
                Opts::new("walkeep_backup_last_duration_seconds", "How long the schedule's last backup took, failed or not."),
                &["schedule"],
            )?)?,
            next: by_schedule(
                "walkeep_backup_next_timestamp_seconds",
                "When the schedule's next backup begins, jitter included, as a Unix time.",
            )?,
            overdue: by_schedule(
                "walkeep_backup_overdue",
                "1 while a backup that the schedule asked for is missing for more than an hour: alarm on it.",
            )?,
            expire_success: maker.int_gauge(
                "walkeep_expire_last_success_timestamp_seconds",
                "When the agent last did what the retention policy asks for, as a Unix time; 0 if it did not since its start.",
            )?,
            expire_failure: maker.int_gauge(
                "walkeep_expire_last_failure_timestamp_seconds",
                "When it last did not, or not all of it, as a Unix time; 0 if that did not happen since its start.",
            )?,
            last: Mutex::default(),
        })
    }

    /// Every sample of this schedule exists from now on.
    pub fn begin(&self, label: &str) {
        for result in ["done", "failed"] {
            self.attempts.with_label_values(&[label, result]).reset();
        }
        self.success.with_label_values(&[label]).set(0);
        self.failure.with_label_values(&[label]).set(0);
        self.duration.with_label_values(&[label]).set(0.0);
        self.overdue.with_label_values(&[label]).set(0);
    }

    /// Whether a backup is being taken.
    pub fn running(&self, running: bool) {
        self.running.set(i64::from(running));
    }

    /// Whether one is being taken.
    pub fn is_running(&self) -> bool {
        self.running.get() > 0
    }

    /// One was begun and has ended.
    pub fn ended(&self, label: &str, done: bool, seconds: f64, now: DateTime<Utc>) {
        self.attempts.with_label_values(&[label, if done { "done" } else { "failed" }]).inc();
        self.duration.with_label_values(&[label]).set(seconds);
        if !done {
            self.failure.with_label_values(&[label]).set(now.timestamp());
        }
        let mut last = self.locked();
        *last = LastBackup { ended: Some(now), failed: !done, seconds, ..*last };
    }

    /// The newest one that is recorded.
    pub fn newest(&self, label: &str, record: &BackupRecord) {
        self.success.with_label_values(&[label]).set(record.ended_at.timestamp());
        let mut last = self.locked();
        if last.ended.is_none_or(|ended| ended < record.ended_at) {
            // Of an earlier process, or another's.
            let seconds = (record.ended_at - record.started_at).as_seconds_f64();
            *last = LastBackup { ended: Some(record.ended_at), failed: false, seconds, ..*last };
        }
        if last.success.is_none_or(|success| success < record.ended_at) {
            *last = LastBackup { success: Some(record.ended_at), bytes: record.bytes_stored, ..*last };
        }
    }

    /// The last one of all schedules.
    pub(super) fn last(&self) -> LastBackup {
        *self.locked()
    }

    fn locked(&self) -> MutexGuard<'_, LastBackup> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The retention policy was followed, or not.
    pub fn let_go(&self, done: bool, now: DateTime<Utc>) {
        let gauge = if done { &self.expire_success } else { &self.expire_failure };
        gauge.set(now.timestamp());
    }

    /// What the schedule's next run is, and whether one is missing.
    pub fn planned(&self, label: &str, next: Option<DateTime<Utc>>, overdue: bool) {
        self.next.with_label_values(&[label]).set(next.map_or(0, |next| next.timestamp()));
        self.overdue.with_label_values(&[label]).set(i64::from(overdue));
    }
}
