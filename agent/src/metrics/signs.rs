//! What the metrics say, as signs of what is wrong: the same numbers that the alerts for Prometheus ask for.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use chrono::{DateTime, Utc};
use prometheus::proto::MetricType;
use walkeep_core::alarm::{
    ArtifactSigns, ClockSigns, DrillSigns, EndSigns, ExpireSigns, RepositorySigns, ScheduleSigns, Signs, SlotSigns, VerifySigns,
};

use super::Metrics;
use crate::config::ClusterConfig;
use crate::progress::{Phase, Progress, SlotHold};

impl Metrics {
    /// What there is to judge; the process began at `began`.
    pub fn signs(&self, cluster: &ClusterConfig, progress: &Progress, began: DateTime<Utc>) -> Signs {
        self.refresh(progress);
        let samples = Samples::of(self);
        let now = progress.snapshot();
        // A number that is not known is below 0, as a metric.
        let known = |value: i64| u64::try_from(value).ok();
        let slot = samples.has("walkeep_slot_wal_status").then(|| SlotSigns {
            status: samples
                .labelled("walkeep_slot_wal_status")
                .find(|(_, value)| *value == 1.0)
                .map(|(status, _)| status)
                .unwrap_or_default(),
            safe: known(self.slot_safe_bytes.get()),
            retained: known(self.slot_retained_bytes.get()),
        });
        let spool = [samples.one("walkeep_spool_bytes"), samples.one("walkeep_spool_limit_bytes")];
        let last_run = samples.time("walkeep_verify_last_run_timestamp_seconds", "");
        // That of no look at all anything is known is known only once there was time for one.
        let looked = last_run.is_some() || Utc::now() - began > chrono::Duration::days(3);
        Signs {
            began,
            receives: matches!(now.phase, Phase::Streaming | Phase::Off | Phase::Waiting),
            streaming: now.phase == Phase::Streaming,
            possible_loss: now.possible_loss(),
            lag: now.lag,
            lag_bytes: now.lag_bytes(),
            problem: now.problem,
            commits_wait: progress.commits_wait(),
            ready_files: known(self.ready_files.get()).unwrap_or_default(),
            oldest_ready: seconds(self.oldest_ready.get()),
            slot: slot.or_else(|| (!cluster.stream).then(SlotSigns::default)),
            slot_given_up: progress.slot() != SlotHold::Held,
            pg_wal_free: samples.of_label("walkeep_disk_free_bytes", "pg_wal").map(|free| free as u64),
            spool: Some(spool.map(|value| value as u64)).filter(|spool| spool[1] > 0).map(Into::into),
            gaps: self.known.gaps.load(Ordering::Relaxed).then(|| known(self.gaps.get())).flatten(),
            conflicts: self.conflicts.get(),
            errors: samples.labelled("walkeep_errors_total").map(|(kind, count)| (kind, count as u64)).collect(),
            verify: looked.then(|| VerifySigns {
                damaged: samples.one("walkeep_verify_damaged_objects") as u64,
                short_locks: samples.one("walkeep_verify_short_locks") as u64,
                looked_at: last_run,
            }),
            schedules: schedules(cluster, &samples),
            backup_due: self.backup_due.get() == 1,
            bad_pages: self.known.backup.load(Ordering::Relaxed).then(|| known(self.backup_bad_pages.get())).flatten(),
            expire: expire(cluster, &samples),
            artifacts: artifacts(cluster, &samples),
            drill: drill(cluster, &samples),
            repositories: repositories(cluster, &samples),
            clocks: clocks(&samples),
            certificates: ends(&samples, "walkeep_certificate_expiry_timestamp_seconds"),
            credentials: ends(&samples, "walkeep_credentials_expiry_timestamp_seconds"),
        }
    }
}

fn schedules(cluster: &ClusterConfig, samples: &Samples) -> Option<Vec<ScheduleSigns>> {
    // It is there once the schedule was looked at, with what is stored.
    let looked_at = samples.has("walkeep_backup_next_timestamp_seconds") || cluster.backups.is_empty();
    let one = |(label, _): (String, f64)| ScheduleSigns {
        overdue: samples.of_label("walkeep_backup_overdue", &label) == Some(1.0),
        success: samples.time("walkeep_backup_last_success_timestamp_seconds", &label),
        failure: samples.time("walkeep_backup_last_failure_timestamp_seconds", &label),
        next: samples.time("walkeep_backup_next_timestamp_seconds", &label),
        label,
    };
    looked_at.then(|| samples.labelled("walkeep_backup_next_timestamp_seconds").map(one).collect())
}

fn expire(cluster: &ClusterConfig, samples: &Samples) -> Option<ExpireSigns> {
    let is_automatic = cluster.retention.as_ref().is_some_and(|retention| retention.automatic);
    let ended = ExpireSigns {
        success: samples.time("walkeep_expire_last_success_timestamp_seconds", ""),
        failure: samples.time("walkeep_expire_last_failure_timestamp_seconds", ""),
    };
    (!is_automatic || ended != ExpireSigns::default()).then_some(ended)
}

fn artifacts(cluster: &ClusterConfig, samples: &Samples) -> Option<Vec<ArtifactSigns>> {
    let are_none = cluster.artifacts.is_empty() && cluster.dump.is_none();
    let one = |(name, status): (String, f64)| ArtifactSigns {
        failed: status == 0.0,
        overdue: samples.of_label("walkeep_artifact_overdue", &name) == Some(1.0),
        success: samples.time("walkeep_artifact_last_success_timestamp_seconds", &name),
        failure: samples.time("walkeep_artifact_last_failure_timestamp_seconds", &name),
        next: samples.time("walkeep_artifact_next_timestamp_seconds", &name),
        name,
    };
    let all: Vec<_> = samples.labelled("walkeep_artifact_last_run_status").map(one).collect();
    (are_none || !all.is_empty()).then_some(all)
}

fn drill(cluster: &ClusterConfig, samples: &Samples) -> Option<DrillSigns> {
    // Its report is read a while after the agent's start.
    let (overdue, run) = (samples.one("walkeep_drill_overdue") == 1.0, samples.time("walkeep_drill_last_run_timestamp_seconds", ""));
    (cluster.drill.schedule.is_none() || overdue || run.is_some()).then(|| DrillSigns {
        failed: samples.one("walkeep_drill_last_run_status") == 0.0,
        overdue,
        success: samples.time("walkeep_drill_last_success_timestamp_seconds", ""),
        next: samples.time("walkeep_drill_next_timestamp_seconds", ""),
    })
}

fn repositories(cluster: &ClusterConfig, samples: &Samples) -> Option<Vec<RepositorySigns>> {
    let one = |(url, up): (String, f64)| RepositorySigns {
        up: up == 1.0,
        behind: seconds(samples.of_label("walkeep_repository_behind_seconds", &url).unwrap_or_default()),
        wrong: samples.of_label("walkeep_repository_differing_objects_total", &url).unwrap_or_default() as u64
            + samples.of_label("walkeep_repository_fallbacks_total", &format!("{url} damaged")).unwrap_or_default() as u64,
        url,
    };
    let all: Vec<_> = samples.labelled("walkeep_repository_up").map(one).collect();
    (cluster.further.is_empty() || !all.is_empty()).then_some(all)
}

fn clocks(samples: &Samples) -> Option<Vec<ClockSigns>> {
    let name = "walkeep_clock_offset_seconds";
    let one = |(labels, ahead): (String, f64)| ClockSigns { whose: whose(&labels), ahead };
    samples.has(name).then(|| samples.labelled(name).map(one).collect())
}

/// Of what ends: 0 is no end.
fn ends(samples: &Samples, name: &str) -> Option<Vec<EndSigns>> {
    let one = |(labels, _): (String, f64)| Some(EndSigns { at: samples.time(name, &labels)?, whose: whose(&labels) });
    samples.has(name).then(|| samples.labelled(name).filter_map(one).collect())
}

/// A repository by its URL: it stands before the word that says that it is one.
fn whose(labels: &str) -> String {
    labels.trim().split(' ').next().unwrap_or_default().to_owned()
}

fn seconds(value: f64) -> Duration {
    Duration::try_from_secs_f64(value.max(0.0)).unwrap_or_default()
}

/// Every gauge and counter, by name and by its labels' values, in the order of their names, with spaces between.
struct Samples(BTreeMap<String, BTreeMap<String, f64>>);

impl Samples {
    fn of(metrics: &Metrics) -> Self {
        let mut all: BTreeMap<String, BTreeMap<String, f64>> = BTreeMap::new();
        for family in metrics.registry.gather() {
            let kind = family.get_field_type();
            for metric in family.get_metric() {
                let value = match kind {
                    MetricType::GAUGE => metric.get_gauge().get_value(),
                    MetricType::COUNTER => metric.get_counter().get_value(),
                    _ => continue,
                };
                let labels: Vec<_> = metric.get_label().iter().map(|label| label.value()).collect();
                // Labels stand in the order of their names: `reason` before `repository`.
                let labels = if labels.len() == 2 { [labels[1], labels[0]].join(" ") } else { labels.concat() };
                all.entry(family.name().to_owned()).or_default().insert(labels, value);
            }
        }
        Self(all)
    }

    fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    fn labelled(&self, name: &str) -> impl Iterator<Item = (String, f64)> + '_ {
        self.0.get(name).into_iter().flatten().map(|(label, value)| (label.clone(), *value))
    }

    fn of_label(&self, name: &str, label: &str) -> Option<f64> {
        self.0.get(name)?.get(label).copied()
    }

    fn one(&self, name: &str) -> f64 {
        self.of_label(name, "").unwrap_or_default()
    }

    /// 0 is no moment.
    fn time(&self, name: &str, label: &str) -> Option<DateTime<Utc>> {
        self.of_label(name, label).filter(|seconds| *seconds > 0.0).and_then(|seconds| DateTime::from_timestamp(seconds as i64, 0))
    }
}
