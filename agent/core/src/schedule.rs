//! When a backup is due: cron expressions in a time zone, jitter, what was missed.
//!
//! All of it is arithmetic: the time comes from the caller, the zone's rules are a value, and which run was the last one stands in the
//! repository's records as the moment for which it was due ([`crate::backup::BackupRecord::due`]). So a record answers for a moment of the
//! schedule whatever clock its host had, and any host that reads the repository decides the same. Taking backups is the agent's.

mod cron;
mod local;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use chrono_tz::Tz;
use sha2::{Digest, Sha256};

pub use cron::{Cron, CronError};
use local::first_moment;

use crate::backup::BackupRecord;

/// What is not done so long after it was to begin is overdue.
pub const GRACE: Duration = Duration::from_secs(3600);
/// Without catching up a moment that was seen so late is a missed one.
const LATE: TimeDelta = TimeDelta::minutes(5);
/// More than so many missed runs are not counted.
const MOST_MISSED: usize = 1000;

/// When backups of one kind are due.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Schedule {
    /// The cluster's name; it is part of what jitter comes from.
    pub cluster: String,
    /// The label of its backups, by which their records are found.
    pub label: String,
    /// On which days, at which minutes.
    pub cron: Cron,
    /// Where clocks show them.
    pub zone: Tz,
    /// Each run begins so much later at the most, and before the next one is due.
    pub jitter: Duration,
    /// Whether a missed run is made up for.
    pub catch_up: bool,
}

/// One run of a schedule.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fire {
    /// The moment that the expression means.
    pub due: DateTime<Utc>,
    /// When it begins: with jitter.
    pub at: DateTime<Utc>,
}

/// What is known of a schedule's runs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Past {
    /// For which moments those that are recorded were due. All of them: which is the last one depends on the clock, and that may be set.
    pub done: BTreeSet<DateTime<Utc>>,
    /// Since when the cluster is kept: before, nothing was due.
    pub since: DateTime<Utc>,
    /// Since when the schedule is watched by this process.
    pub watched: DateTime<Utc>,
    /// For which moment it was tried last by this process.
    pub tried: Option<DateTime<Utc>>,
}

impl Past {
    /// The moment of the last run. One that is still to come is passed over: the clock was ahead then, or is behind now.
    pub fn last(&self, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        self.done.range(..=now).next_back().copied()
    }

    /// The clock shows `now`: if that is before the schedule was watched, it was ahead when that began.
    pub fn seen_at(&mut self, now: DateTime<Utc>) {
        self.watched = self.watched.min(now);
    }

    /// Behind which moment a run is missing.
    fn base(&self, now: DateTime<Utc>, catch_up: bool) -> DateTime<Utc> {
        // Since when there is such a schedule nobody wrote down: one that never ran has missed what lies behind the cluster's beginning.
        let began = if catch_up && self.since <= now { self.since } else { self.watched };
        self.last(now).unwrap_or(began)
    }
}

/// What is to be done now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Decision {
    /// A backup for this moment; `missed` before it are not made up for.
    Take {
        /// The newest run that is due.
        fire: Fire,
        /// How many runs before it were not done.
        missed: usize,
    },
    /// Nothing until the next.
    Wait,
}

impl Schedule {
    /// The first run behind `after`.
    pub fn next(&self, after: DateTime<Utc>) -> Option<Fire> {
        // With its jitter the one before may begin behind it still.
        let before = self.due_until(after).map(|due| self.fire(due)).filter(|fire| fire.at > after);
        before.or_else(|| self.due_after(after).map(|due| self.fire(due)))
    }

    /// Whether a backup is to be taken now, and for which moment.
    pub fn decide(&self, now: DateTime<Utc>, past: &Past) -> Decision {
        let base = past.base(now, self.catch_up);
        let Some(fire) = self.begun(now).filter(|fire| fire.due > base) else { return Decision::Wait };
        if !self.catch_up && now - fire.at > LATE && past.tried != Some(fire.due) {
            return Decision::Wait;
        }
        let earlier = std::iter::successors(self.due_after(base), |due| self.due_after(*due));
        Decision::Take { fire, missed: earlier.take_while(|due| *due < fire.due).take(MOST_MISSED).count() }
    }

    /// Since when a run is missing, if it is for so long that somebody has to know. One that is under way is given until the next is due.
    pub fn overdue(&self, now: DateTime<Utc>, past: &Past, running: bool) -> Option<DateTime<Utc>> {
        let missing = self.fire(self.due_after(past.base(now, self.catch_up))?);
        let until = missing.at.checked_add_signed(TimeDelta::from_std(GRACE).ok()?)?;
        let until = if running { self.due_after(missing.due).map_or(until, |next| until.max(next)) } else { until };
        (until < now).then_some(missing.due)
    }

    /// Those of these backups that are this schedule's, by the moments for which they were due.
    pub fn runs<'a>(&self, records: impl IntoIterator<Item = &'a BackupRecord>) -> BTreeMap<DateTime<Utc>, &'a BackupRecord> {
        let ours = records.into_iter().filter(|record| record.label == self.label);
        ours.filter_map(|record| Some((record.due?, record))).collect()
    }

    /// The newest run that has begun by `now`.
    fn begun(&self, now: DateTime<Utc>) -> Option<Fire> {
        let newest = self.fire(self.due_until(now)?);
        if newest.at <= now {
            return Some(newest);
        }
        // It begins before the next one is due, so the one before has begun.
        self.due_until(newest.due - TimeDelta::seconds(1)).map(|due| self.fire(due))
    }

    /// The moment that the expression means next, behind `after`.
    pub fn due_after(&self, after: DateTime<Utc>) -> Option<DateTime<Utc>> {
        // Whatever clocks show then, they have shown what lies before it.
        self.moments_behind(after).find(|due| *due > after)
    }

    /// The newest moment that the expression means, at `until` or before.
    pub fn due_until(&self, until: DateTime<Utc>) -> Option<DateTime<Utc>> {
        // Where clocks were put back they have shown later times before.
        let shown_before = self.moments_behind(until).take_while(|due| *due <= until).last();
        shown_before.or_else(|| self.cron.times_until(self.shown(until)).find_map(|local| first_moment(&self.zone, local)))
    }

    /// What clocks of the zone show at a moment.
    fn shown(&self, moment: DateTime<Utc>) -> chrono::NaiveDateTime {
        moment.with_timezone(&self.zone).naive_local()
    }

    /// The moments of all times of the expression behind what clocks show at `moment`.
    fn moments_behind(&self, moment: DateTime<Utc>) -> impl Iterator<Item = DateTime<Utc>> {
        self.cron.times_behind(self.shown(moment)).filter_map(|local| first_moment(&self.zone, local))
    }

    /// The run for a moment. Its jitter comes from the cluster, the label and the moment: the same after a restart and on another host.
    fn fire(&self, due: DateTime<Utc>) -> Fire {
        let room = self.due_after(due).and_then(|next| (next - due).to_std().ok());
        let span = self.jitter.min(room.unwrap_or(self.jitter)).as_secs();
        let hash = Sha256::digest(format!("{}\0{}\0{}", self.cluster, self.label, due.timestamp()));
        let chance = hash.iter().take(8).fold(0u64, |number, byte| number << 8 | u64::from(*byte));
        let late = i64::try_from(chance.checked_rem(span).unwrap_or(0)).unwrap_or(0);
        Fire { due, at: due + TimeDelta::seconds(late) }
    }
}
