//! What `walkeep status` says of schedules: the next run, the last one that was done, what is missing.
//!
//! It is worked out from the configuration, the repository's records and the clock: it can be said where no agent runs, too.

use chrono::{DateTime, Utc};
use serde::Serialize;
use walkeep_core::backup::BackupRecord;
use walkeep_core::layout::BackupId;
use walkeep_core::schedule::{Fire, Past, Schedule};

use super::output;
use crate::config::ClusterConfig;

/// A schedule, as `walkeep status --json` shows it.
#[derive(Debug, Serialize)]
pub struct ScheduleReport {
    label: String,
    schedule: String,
    timezone: String,
    catch_up: bool,
    next: Option<Moment>,
    last: Option<Last>,
    /// One that is recorded for a moment still to come: a clock was ahead, or is behind. It does not count before.
    ahead: Option<Last>,
    /// For which moment a backup is missing, for more than an hour.
    overdue: Option<DateTime<Utc>>,
}

/// A run to come.
#[derive(Debug, Serialize)]
struct Moment {
    due: DateTime<Utc>,
    /// With its jitter.
    begins: DateTime<Utc>,
    /// What clocks of the schedule's zone show then.
    begins_there: String,
    #[serde(skip)]
    shown: String,
}

/// A run that was done.
#[derive(Debug, Serialize)]
struct Last {
    backup: BackupId,
    due: Option<DateTime<Utc>>,
    ended_at: DateTime<Utc>,
}

/// What is to be said of each schedule of the cluster.
pub fn report(cluster: &ClusterConfig, backups: &[BackupRecord], since: DateTime<Utc>, running: bool) -> Vec<ScheduleReport> {
    let now = Utc::now();
    cluster.backups.iter().map(|backup| of(&backup.schedule, backups, now, since, running)).collect()
}

fn of(schedule: &Schedule, backups: &[BackupRecord], now: DateTime<Utc>, since: DateTime<Utc>, running: bool) -> ScheduleReport {
    let runs = schedule.runs(backups);
    let run =
        |(_, record): (&DateTime<Utc>, &&BackupRecord)| Last { backup: record.id.clone(), due: record.due, ended_at: record.ended_at };
    let last = runs.range(..=now).next_back().map(run);
    let ahead = runs.last_key_value().filter(|(due, _)| **due > now).map(run);
    let past = Past { done: runs.into_keys().collect(), since, watched: now, tried: None };
    let moment = |Fire { due, at }| {
        let there = at.with_timezone(&schedule.zone);
        let shown = format!("{} ({})", output::time(at), there.format("%a %Y-%m-%d %H:%M:%S %Z"));
        Moment { due, begins: at, begins_there: there.to_rfc3339(), shown }
    };
    ScheduleReport {
        label: schedule.label.clone(),
        schedule: schedule.cron.to_string(),
        timezone: schedule.zone.to_string(),
        catch_up: schedule.catch_up,
        next: schedule.next(now).map(moment),
        last,
        ahead,
        overdue: schedule.overdue(now, &past, running),
    }
}

/// Prints them; `answers` tells whether an agent is there to take the backups.
pub fn print(reports: &[ScheduleReport], answers: bool) {
    for report in reports {
        let ScheduleReport { label, schedule, timezone, next, last, ahead, overdue, .. } = report;
        output::say!("schedule    {label}: {schedule} {timezone}");
        match next {
            Some(next) => output::say!("            next {}{}", next.shown, if answers { "" } else { ", if an agent runs then" }),
            None => output::say!("            it has no next run"),
        }
        match last {
            Some(last) => output::say!("            last {}, ended {}", last.backup, output::time(last.ended_at)),
            None => output::say!("            none taken yet"),
        }
        if let Some((ahead, due)) = ahead.as_ref().and_then(|ahead| Some((ahead, ahead.due?))) {
            output::say!(
                "            {} is recorded for {}, which is still to come: it does not count before",
                ahead.backup,
                output::time(due)
            );
        }
        if let Some(due) = overdue {
            output::say!("            OVERDUE: no backup for {}; the agent's log says why", output::time(*due));
        }
    }
}
