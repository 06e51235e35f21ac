//! What is counted of artifacts: one row of samples for each name.

use chrono::{DateTime, Utc};
use prometheus::{GaugeVec, IntGaugeVec, Opts};

use super::Maker;

/// The metrics of artifacts.
#[derive(Debug)]
pub struct ArtifactMetrics {
    status: IntGaugeVec,
    success: IntGaugeVec,
    failure: IntGaugeVec,
    duration: GaugeVec,
    bytes: IntGaugeVec,
    next: IntGaugeVec,
    overdue: IntGaugeVec,
}

impl ArtifactMetrics {
    pub(super) fn new(maker: &Maker<'_>) -> prometheus::Result<Self> {
        let by_name = |name: &str, help: &str| maker.int_gauge_vec(name, help, "name");
        Ok(Self {
            status: by_name(
                "walkeep_artifact_last_run_status",
                "1 if the last run of the artifact that ended since the agent's start succeeded, or none has ended; 0 if it failed: alarm on it.",
            )?,
            success: by_name(
                "walkeep_artifact_last_success_timestamp_seconds",
                "When the artifact's newest one was stored, as a Unix time; 0 if there is none.",
            )?,
            failure: by_name(
                "walkeep_artifact_last_failure_timestamp_seconds",
                "When a run failed last, as a Unix time; 0 if none did since the agent's start.",
            )?,
            duration: maker.registered(GaugeVec::new(
                Opts::new("walkeep_artifact_last_duration_seconds", "How long the artifact's last run took, failed or not."),
                &["name"],
            )?)?,
            bytes: by_name("walkeep_artifact_last_bytes", "Bytes of the artifact's newest one, before compression.")?,
            next: by_name(
                "walkeep_artifact_next_timestamp_seconds",
                "When the schedule's next run begins, jitter included, as a Unix time.",
            )?,
            overdue: by_name(
                "walkeep_artifact_overdue",
                "1 while a run that the schedule asked for is missing for more than an hour: alarm on it.",
            )?,
        })
    }

    /// Every sample of this name exists from now on.
    pub fn begin(&self, name: &str) {
        // One that did not come to its end yet did not fail: whether one is missing, `overdue` says.
        self.status.with_label_values(&[name]).set(1);
        for gauge in [&self.success, &self.failure, &self.bytes] {
            gauge.with_label_values(&[name]).set(0);
        }
        self.duration.with_label_values(&[name]).set(0.0);
    }

    /// One run has ended.
    pub fn ended(&self, name: &str, done: bool, seconds: f64, now: DateTime<Utc>) {
        self.status.with_label_values(&[name]).set(i64::from(done));
        self.duration.with_label_values(&[name]).set(seconds);
        if !done {
            self.failure.with_label_values(&[name]).set(now.timestamp());
        }
    }

    /// The newest one was stored then, and has so many bytes.
    pub fn newest(&self, name: &str, ended: DateTime<Utc>, bytes: u64) {
        self.success.with_label_values(&[name]).set(ended.timestamp());
        self.bytes.with_label_values(&[name]).set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    /// What the schedule's next run is, and whether one is missing.
    pub fn planned(&self, name: &str, next: Option<DateTime<Utc>>, overdue: bool) {
        self.next.with_label_values(&[name]).set(next.map_or(0, |next| next.timestamp()));
        self.overdue.with_label_values(&[name]).set(i64::from(overdue));
    }
}
