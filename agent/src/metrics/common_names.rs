//! The names under which dashboards for backup scripts know these things, for who asks for them (`[metrics] backup_names`): what is told by other metrics, once more.
//!
//! Of the backups and drills that this agent knows of: those of its schedules, and drills whoever carried them out.

use std::sync::OnceLock;

use chrono::{DateTime, Utc};
use prometheus::{Gauge, IntGauge};

use super::{Maker, Metrics};

/// They are there once they were asked for.
#[derive(Debug, Default)]
pub struct CommonNames(OnceLock<Names>);

#[derive(Debug)]
struct Names {
    status: IntGauge,
    success: IntGauge,
    duration: Gauge,
    bytes: IntGauge,
    replication: OnceLock<IntGauge>,
    test_status: IntGauge,
    test_success: IntGauge,
}

/// The last of the backups, of whichever schedule.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct LastBackup {
    /// When the last one ended, failed or not.
    pub ended: Option<DateTime<Utc>>,
    /// Whether it failed.
    pub failed: bool,
    /// How long it took.
    pub seconds: f64,
    /// When the newest that succeeded ended.
    pub success: Option<DateTime<Utc>>,
    /// What that one stored.
    pub bytes: u64,
}

impl Metrics {
    /// They are told from now on.
    pub fn offer_common_names(&self) -> prometheus::Result<()> {
        let maker = Maker(&self.registry);
        let names = Names {
            status: maker.int_gauge("backup_last_run_status", "1 if the last backup succeeded, or there was none yet; 0 if it failed.")?,
            success: maker
                .int_gauge("backup_last_success_timestamp_seconds", "When the last good backup ended, as a Unix time; 0: never.")?,
            duration: maker.gauge("backup_duration_seconds", "How long the last backup took.")?,
            bytes: maker.int_gauge("backup_size_bytes", "Bytes that the last good backup stored.")?,
            replication: OnceLock::new(),
            test_status: maker.int_gauge(
                "backup_recovery_test_last_run_status",
                "1 if the newest drill passed, or there was none yet; 0 if it failed or could not be carried out.",
            )?,
            test_success: maker.int_gauge(
                "backup_recovery_test_last_success_timestamp_seconds",
                "When the newest drill that passed ended, as a Unix time; 0: never.",
            )?,
        };
        let _ = self.common_names.0.set(names);
        Ok(())
    }

    /// For a scrape.
    pub(super) fn refresh_common_names(&self) {
        let Some(names) = self.common_names.0.get() else { return };
        let last = self.backups.last();
        names.status.set(i64::from(!last.failed));
        names.success.set(last.success.map_or(0, |at| at.timestamp()));
        names.duration.set(last.seconds);
        names.bytes.set(i64::try_from(last.bytes).unwrap_or(i64::MAX));
        let (status, success) = self.drills.last();
        names.test_status.set(status);
        names.test_success.set(success);
        // With one repository there is nothing to be told of.
        let Some(alike) = self.repositories.are_alike() else { return };
        if names.replication.get().is_none() {
            let help = "1 if every repository answers, and lacks nothing for longer than an hour that another one has.";
            let made = Maker(&self.registry).int_gauge("backup_cross_region_replication_status", help);
            let _ = made.map(|gauge| names.replication.set(gauge));
        }
        if let Some(replication) = names.replication.get() {
            replication.set(i64::from(alike));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::tests::page_of;

    fn told(metrics: &Metrics) -> Vec<String> {
        page_of(metrics).lines().filter(|line| line.starts_with("backup_")).map(str::to_owned).collect()
    }

    #[test]
    fn they_are_told_where_they_are_asked_for() {
        let metrics = Metrics::new().unwrap();
        assert_eq!(told(&metrics), [""; 0]);
        metrics.offer_common_names().unwrap();
        let expected = [
            "backup_duration_seconds 0",
            "backup_last_run_status 1",
            "backup_last_success_timestamp_seconds 0",
            "backup_recovery_test_last_run_status 1",
            "backup_recovery_test_last_success_timestamp_seconds 0",
            "backup_size_bytes 0",
        ];
        assert_eq!(told(&metrics), expected, "with one repository there is no copy");
        metrics.backups.ended("nightly", false, 2.5, DateTime::from_timestamp(500, 0).unwrap());
        metrics.drills.failed();
        let told = told(&metrics);
        for line in ["backup_last_run_status 0", "backup_duration_seconds 2.5", "backup_recovery_test_last_run_status 0"] {
            assert!(told.iter().any(|found| found == line), "{line} in {told:?}");
        }
    }
}
