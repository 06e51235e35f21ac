//! The last backup of each day, week, month, year.

use std::collections::BTreeMap;

use chrono::Datelike;
use chrono_tz::Tz;

use crate::backup::BackupRecord;

/// A stretch of the calendar.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Period {
    Day,
    /// From Monday on (ISO 8601).
    Week,
    Month,
    Year,
}

impl Period {
    /// The period in which a backup ended, as a number that grows with time.
    fn of(self, backup: &BackupRecord, zone: Tz) -> (i32, u32) {
        let date = backup.ended_at.with_timezone(&zone).date_naive();
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
        let found = last.entry(period.of(backup, zone)).or_insert(backup);
        if rank(backup) > rank(found) {
            *found = backup;
        }
    }
    last.into_values().rev().take(count as usize).collect()
}
