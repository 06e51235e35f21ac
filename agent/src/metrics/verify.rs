//! What is counted of verifications by the agent.

use chrono::{DateTime, Utc};
use prometheus::{IntCounter, IntGauge};

use super::Maker;

/// The metrics of verifications.
#[derive(Debug)]
pub struct VerifyMetrics {
    last_run: IntGauge,
    last_success: IntGauge,
    damaged: IntGauge,
    not_checked: IntGauge,
    objects: IntCounter,
    bytes: IntCounter,
}

impl VerifyMetrics {
    pub(super) fn new(maker: &Maker<'_>) -> prometheus::Result<Self> {
        Ok(Self {
            last_run: maker.int_gauge(
                "walkeep_verify_last_run_timestamp_seconds",
                "When the repository was last looked at as a whole from this host, as a Unix time; 0: never.",
            )?,
            last_success: maker.int_gauge(
                "walkeep_verify_last_success_timestamp_seconds",
                "When that last found nothing damaged or missing, as a Unix time; 0: never.",
            )?,
            damaged: maker.int_gauge("walkeep_verify_damaged_objects", "Objects known to be damaged or missing: alarm on any.")?,
            not_checked: maker.int_gauge(
                "walkeep_verify_not_checked_objects",
                "Objects that could not be checked when they were last looked at, as this host cannot decrypt them.",
            )?,
            objects: maker.counter("walkeep_verify_objects_total", "Objects that the agent read to verify them.")?,
            bytes: maker.counter("walkeep_verify_bytes_total", "Stored bytes of those objects.")?,
        })
    }

    /// How it stands, as it is remembered.
    pub fn stands(&self, looked_at: Option<DateTime<Utc>>, whole_at: Option<DateTime<Utc>>, damaged: u64, not_checked: u64) {
        let seconds = |at: Option<DateTime<Utc>>| at.map_or(0, |at| at.timestamp());
        self.last_run.set(seconds(looked_at));
        self.last_success.set(seconds(whole_at));
        self.damaged.set(i64::try_from(damaged).unwrap_or(i64::MAX));
        self.not_checked.set(i64::try_from(not_checked).unwrap_or(i64::MAX));
    }

    /// Objects were read.
    pub fn read(&self, objects: u64, bytes: u64) {
        self.objects.inc_by(objects);
        self.bytes.inc_by(bytes);
    }
}
