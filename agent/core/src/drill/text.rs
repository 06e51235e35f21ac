//! A report as text: what it comes to first, then what was looked at, then what took how long.

use std::fmt::Write;

use chrono::{DateTime, SecondsFormat, Utc};

use super::{Checked, DrillReport, Facts};
use crate::identifier::printable;

/// The report as text.
pub fn of(report: &DrillReport) -> String {
    let mut text = format!("Drill {} of cluster {}: {}\n\n", report.facts.id, report.facts.cluster, report.facts.verdict);
    let line = |text: &mut String, name: &str, value: &str| {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{name:<14}{value}");
    };
    for (name, value) in facts(&report.facts) {
        line(&mut text, name, &printable(&value));
    }
    text.push('\n');
    for checked in &report.results {
        line(&mut text, &format!("[{}]", checked.outcome), &printable(&format!("{}: {}", checked.name, checked.says)));
        for (name, value) in answers(checked) {
            for shown in value.lines() {
                line(&mut text, "", &format!("{name} {}", printable(shown)));
            }
        }
    }
    text.push('\n');
    for step in &report.steps {
        line(&mut text, "took", &format!("{} to {}", seconds(step.seconds), step.step));
    }
    for note in &report.notes {
        line(&mut text, "note", &printable(note));
    }
    line(&mut text, "signed off by", &printable(&signature(&report.facts)));
    text
}

/// What there is to say above all checks, each with its name.
pub(super) fn facts(facts: &Facts) -> Vec<(&'static str, String)> {
    let mut told = Vec::new();
    told.extend(facts.reason.clone().map(|reason| ("reason", reason)));
    told.push(("asked for", facts.asked.clone()));
    told.extend(facts.due.map(|due| ("due", time(due))));
    told.push(("began", time(facts.started_at)));
    told.push(("ended", time(facts.ended_at)));
    if let Some(restored) = &facts.restored {
        told.push(("backup", restored.backup.to_string()));
        told.push(("planned up to", format!("{} on timeline {}", restored.stop_lsn, restored.timeline)));
        let last = restored.last_transaction_at.map_or_else(|| "none behind the backup's start".to_owned(), time);
        told.push(("last commit", last));
        told.push(("restored", format!("{} MiB, and {} files of WAL to replay", restored.bytes >> 20, restored.wal_files)));
    }
    let not_known = || "not known".to_owned();
    let rto = facts.rto_seconds.map(|rto| format!("{} from the beginning to the first query that was answered", seconds(rto)));
    told.push(("RTO", rto.unwrap_or_else(not_known)));
    let rpo = facts.rpo_seconds.map(|rpo| {
        let newest = facts.newest_transaction_at.map(time).unwrap_or_default();
        format!("{} at most: the newest transaction that could be recovered ended at {newest}", seconds(rpo))
    });
    told.push(("RPO", rpo.unwrap_or_else(not_known)));
    let checks = facts.checks;
    told.push(("checks", format!("{} passed, {} failed, {} not done", checks.passed, checks.failed, checks.not_done)));
    told
}

/// What was expected and what was found, where a query was asked.
pub(super) fn answers(checked: &Checked) -> Vec<(&'static str, &str)> {
    let both = [("expected", &checked.expected), ("found", &checked.found)];
    both.into_iter().filter_map(|(name, value)| Some((name, value.as_deref()?))).collect()
}

/// Who says so, when, with what.
pub(super) fn signature(facts: &Facts) -> String {
    format!("{}, {} with {}", facts.signed_off_by, time(facts.ended_at), facts.program)
}

pub(super) fn time(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Secs, true)
}

pub(super) fn seconds(seconds: f64) -> String {
    let whole = seconds.max(0.0) as u64;
    match whole {
        0..=119 => format!("{seconds:.1} s"),
        120..=7199 => format!("{} min {} s", whole / 60, whole % 60),
        _ => format!("{} h {} min", whole / 3600, whole / 60 % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drill::tests::report;

    #[test]
    fn the_verdict_comes_first_and_every_check_is_told() {
        let text = of(&report());
        assert!(text.starts_with("Drill 20261121T034712Z-000000ab of cluster main: FAILED\n"), "{text}");
        for line in [
            "reason        not as it should be: orders\n",
            "RTO           12.2 s from the beginning",
            "RPO           5.0 s at most: the newest transaction that could be recovered ended at 2026-11-21T03:47:07Z\n",
            "checks        1 passed, 1 failed, 1 not done\n",
            "[passed]      recovery: stopped at 0/3000060\n",
            "[FAILED]      orders: says otherwise\n",
            "              expected 1\n",
            "[not done]    checksums: the cluster has none\n",
            "signed off by postgres@db<1>, 2026-11-21T03:48:12Z with walkeep 0.1.0\n",
        ] {
            assert!(text.contains(line), "{line} in\n{text}");
        }
    }

    #[test]
    fn times_are_told_as_long_as_they_are() {
        assert_eq!([0.04, 119.0, 120.0, 7325.0].map(seconds), ["0.0 s", "119.0 s", "2 min 0 s", "2 h 2 min"]);
    }
}
