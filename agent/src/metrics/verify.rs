//! What is counted of verifications by the agent.

use chrono::{DateTime, Utc};
use prometheus::{IntCounter, IntGauge, IntGaugeVec};

use super::Maker;
use crate::verify::memory::Outcome;

/// The metrics of verifications.
#[derive(Debug)]
pub struct VerifyMetrics {
    last_run: IntGauge,
    last_success: IntGauge,
    damaged: IntGauge,
    short_locks: IntGauge,
    not_checked: IntGauge,
    of_each: IntGaugeVec,
    unread_since: IntGauge,
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
            short_locks: maker.int_gauge(
                "walkeep_verify_short_locks",
                "Objects known to be whole and locked for less time, or less strictly, than object_lock promises.",
            )?,
            not_checked: maker.int_gauge(
                "walkeep_verify_not_checked_objects",
                "Objects that could not be checked when they were last looked at, as this host cannot decrypt them.",
            )?,
            of_each: maker.int_gauge_vec(
                "walkeep_verify_repository_damaged_objects",
                "Objects known to be damaged or missing in one of several repositories.",
                "repository",
            )?,
            unread_since: maker.int_gauge(
                "walkeep_verify_unread_since_timestamp_seconds",
                "Since when the object that was read longest ago was not read, or lies there unread, as a Unix time; 0: not known.",
            )?,
            objects: maker.counter("walkeep_verify_objects_total", "Objects that the agent read to verify them.")?,
            bytes: maker.counter("walkeep_verify_bytes_total", "Stored bytes of those objects.")?,
        })
    }

    /// How it stands, as it is remembered of each repository: of times the worst, of numbers all together.
    pub fn stands(&self, outcomes: &[(String, Outcome)]) {
        let seconds = |of: &dyn Fn(&Outcome) -> Option<DateTime<Utc>>| {
            outcomes.iter().map(|(_, outcome)| of(outcome).map_or(0, |at| at.timestamp())).min().unwrap_or_default()
        };
        let sum =
            |of: &dyn Fn(&Outcome) -> u64| i64::try_from(outcomes.iter().map(|(_, outcome)| of(outcome)).sum::<u64>()).unwrap_or(i64::MAX);
        self.last_run.set(seconds(&|outcome| outcome.looked_at));
        self.last_success.set(seconds(&|outcome| outcome.whole_at));
        self.unread_since.set(seconds(&|outcome| outcome.unread_since));
        self.damaged.set(sum(&|outcome| outcome.all_damage().count() as u64));
        self.short_locks.set(sum(&|outcome| outcome.short_locks()));
        self.not_checked.set(sum(&|outcome| outcome.not_checked));
        for (url, outcome) in outcomes.iter().filter(|_| outcomes.len() > 1) {
            let damaged = i64::try_from(outcome.all_damage().count()).unwrap_or(i64::MAX);
            self.of_each.with_label_values(&[url.as_str()]).set(damaged);
        }
    }

    /// Objects were read.
    pub fn read(&self, objects: u64, bytes: u64) {
        self.objects.inc_by(objects);
        self.bytes.inc_by(bytes);
    }
}
