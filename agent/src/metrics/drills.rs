//! What is told of drills: those of this agent's schedule, and the newest report in the repository, whoever put it there.

use chrono::{DateTime, Utc};
use prometheus::{Gauge, IntGauge};
use walkeep_core::drill::{DrillRecord, Verdict};

use super::Maker;

/// The metrics of drills.
#[derive(Debug)]
pub struct DrillMetrics {
    status: IntGauge,
    run: IntGauge,
    success: IntGauge,
    duration: Gauge,
    rto: Gauge,
    rpo: Gauge,
    next: IntGauge,
    overdue: IntGauge,
}

impl DrillMetrics {
    pub(super) fn new(maker: &Maker<'_>) -> prometheus::Result<Self> {
        let metrics = Self {
            status: maker.int_gauge(
                "walkeep_drill_last_run_status",
                "1 if the newest drill passed, 0 if it failed or could not be carried out: alarm on it. 1 if there was none yet.",
            )?,
            run: maker.int_gauge("walkeep_drill_last_run_timestamp_seconds", "When the newest drill ended, as a Unix time; 0: never.")?,
            success: maker.int_gauge(
                "walkeep_drill_last_success_timestamp_seconds",
                "When the newest drill that passed ended, as a Unix time; 0: never.",
            )?,
            duration: maker.gauge("walkeep_drill_last_duration_seconds", "How long the newest drill took, all checks included.")?,
            rto: maker.gauge(
                "walkeep_drill_rto_seconds",
                "Of the newest drill: from its beginning to the first query that the restored server answered; -1: it did not answer.",
            )?,
            rpo: maker.gauge(
                "walkeep_drill_rpo_seconds",
                "Of the newest drill: age of the newest transaction that could be recovered when it began; -1: not known.",
            )?,
            next: maker.int_gauge(
                "walkeep_drill_next_timestamp_seconds",
                "When the schedule's next drill begins, jitter included, as a Unix time; 0 without a schedule.",
            )?,
            overdue: maker.int_gauge(
                "walkeep_drill_overdue",
                "1 while a drill that the schedule asked for is missing for more than an hour: alarm on it.",
            )?,
        };
        metrics.status.set(1);
        metrics.rto.set(-1.0);
        metrics.rpo.set(-1.0);
        Ok(metrics)
    }

    /// What is stored, oldest first. One that was cancelled says nothing.
    pub fn stands(&self, records: &[DrillRecord]) {
        let mut facts = records.iter().rev().map(|record| &record.facts).filter(|facts| facts.verdict != Verdict::Cancelled);
        if let Some(passed) = facts.clone().find(|facts| facts.verdict == Verdict::Passed) {
            self.success.set(passed.ended_at.timestamp());
        }
        let Some(newest) = facts.next() else { return };
        self.status.set(i64::from(newest.verdict == Verdict::Passed));
        self.run.set(newest.ended_at.timestamp());
        self.duration.set((newest.ended_at - newest.started_at).as_seconds_f64());
        self.rto.set(newest.rto_seconds.unwrap_or(-1.0));
        self.rpo.set(newest.rpo_seconds.unwrap_or(-1.0));
    }

    /// The newest one's status, and when the newest that passed ended.
    pub(super) fn last(&self) -> (i64, i64) {
        (self.status.get(), self.success.get())
    }

    /// One could not be carried out, and has left no report.
    pub fn failed(&self) {
        self.status.set(0);
    }

    /// When the next one is, and whether one is missing.
    pub fn planned(&self, next: Option<DateTime<Utc>>, overdue: bool) {
        self.next.set(next.map_or(0, |next| next.timestamp()));
        self.overdue.set(i64::from(overdue));
    }
}
