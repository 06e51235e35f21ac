//! The last backup of each day, week, month, year.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use chrono::{DateTime, Datelike, Utc};
use chrono_tz::Tz;

use crate::backup::BackupRecord;

/// A stretch of the calendar.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Period {
    Day,
    /// From Monday on (ISO 8601).
    Week,
    Month,
    Year,
}

impl Period {
    /// The period in which something ended, as a number that grows with time.
    fn of(self, ended: DateTime<Utc>, zone: Tz) -> (i32, u32) {
        let date = ended.with_timezone(&zone).date_naive();
        match self {
            Self::Day => (date.year(), date.ordinal()),
            Self::Week => (date.iso_week().year(), date.iso_week().week()),
            Self::Month => (date.year(), date.month()),
            Self::Year => (date.year(), 0),
        }
    }
}

/// The last backup of each of the newest `count` periods that have one. Periods without a backup are not counted, so that nothing goes only since
/// nothing comes. Among those of one period one that `preferred` has goes before others.
pub(super) fn last_of_each<'a>(
    period: Period,
    zone: Tz,
    count: u32,
    backups: &[&'a BackupRecord],
    preferred: &impl Fn(&BackupRecord) -> bool,
) -> Vec<&'a BackupRecord> {
    let rank = |backup: &BackupRecord| (preferred(backup), backup.ended_at, backup.stop_lsn);
    let mut last: BTreeMap<(i32, u32), &BackupRecord> = BTreeMap::new();
    for backup in backups {
        let found = last.entry(period.of(backup.ended_at, zone)).or_insert(backup);
        if rank(backup) > rank(found) {
            *found = backup;
        }
    }
    last.into_values().rev().take(count as usize).collect()
}

/// The last of each of the newest `count` periods of whatever has a time.
pub(crate) fn last_of_periods<T: Ord>(
    period: Period,
    zone: Tz,
    count: u32,
    all: impl IntoIterator<Item = (DateTime<Utc>, T)>,
) -> impl Iterator<Item = T> {
    let mut last: BTreeMap<(i32, u32), (DateTime<Utc>, T)> = BTreeMap::new();
    for one in all {
        match last.entry(period.of(one.0, zone)) {
            Entry::Vacant(place) => drop(place.insert(one)),
            Entry::Occupied(mut found) if one > *found.get() => drop(found.insert(one)),
            Entry::Occupied(_) => {}
        }
    }
    last.into_values().rev().take(count as usize).map(|(_, one)| one)
}
