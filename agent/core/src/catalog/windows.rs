//! From when to when each timeline can be restored: what `walkeep status` and `walkeep timelines` show.

use chrono::{DateTime, Utc};
use serde::Serialize;

use crate::backup::BackupRecord;
use crate::history::TimelineHistory;
use crate::identity::TimelineId;
use crate::layout::BackupId;
use crate::lsn::Lsn;

use super::Catalog;
use super::coverage::FirstMissing;
use super::stored::WalRange;

/// The earliest state a window offers.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Restorable {
    /// The backup it is restored from.
    pub backup: BackupId,
    /// Its stop, the first possible target.
    pub lsn: Lsn,
    /// The server's clock then.
    pub time: DateTime<Utc>,
}

/// Every position from the end of a backup to the end of the WAL that follows it without a hole.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Window {
    /// Where it begins.
    pub earliest: Restorable,
    /// Where its WAL ends.
    pub latest: Lsn,
    /// The backups one can begin from.
    pub backups: Vec<BackupId>,
    /// What ends it.
    pub ends: FirstMissing,
}

/// What can be restored along the history of one timeline.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct TimelineReport {
    /// The timeline.
    pub timeline: TimelineId,
    /// The timeline it grew out of, and where.
    pub parent: Option<(TimelineId, Lsn)>,
    /// Whether it is known what it grew out of: the first timeline out of nothing, the others by their stored history. Without that
    /// nothing can be restored along it.
    pub ancestry_known: bool,
    /// The end of what is stored under its own name.
    pub frontier: Option<Lsn>,
    /// Holes in what is stored under its own name.
    pub holes: Vec<WalRange>,
    /// What can be restored, oldest first.
    pub windows: Vec<Window>,
    /// Backups of this history of which nothing can be restored, since WAL of their own range is missing.
    pub unusable: Vec<BackupId>,
}

impl Catalog {
    /// Whether a backup's start and end are both part of `path`, so that replay along it can begin there.
    pub fn is_on(&self, backup: &BackupRecord, path: &TimelineHistory) -> bool {
        path.contains(backup.timeline, backup.start_lsn) && path.contains(backup.stops_on(), backup.stop_lsn)
    }

    /// What can be restored along `path`, oldest first, and the backups that are of no use there.
    pub fn windows(&self, path: &TimelineHistory) -> (Vec<Window>, Vec<BackupId>) {
        let (mut windows, mut unusable) = (Vec::<Window>::new(), Vec::new());
        for backup in self.backups().iter().filter(|backup| self.is_on(backup, path)) {
            // A backup that begins in WAL already followed shares its end.
            let shared = windows.last_mut().filter(|window| backup.start_lsn >= window.earliest.lsn && backup.stop_lsn <= window.latest);
            if let Some(window) = shared {
                window.backups.push(backup.id.clone());
                continue;
            }
            let reach = self.reach(path, backup.start_lsn);
            if reach.to < backup.stop_lsn {
                unusable.push(backup.id.clone());
                continue;
            }
            match windows.last_mut().filter(|window| window.latest == reach.to) {
                Some(window) => window.backups.push(backup.id.clone()),
                None => windows.push(Window {
                    earliest: Restorable { backup: backup.id.clone(), lsn: backup.stop_lsn, time: backup.ended_at },
                    latest: reach.to,
                    backups: vec![backup.id.clone()],
                    ends: reach.missing,
                }),
            }
        }
        (windows, unusable)
    }

    /// What is known and can be restored of every timeline.
    pub fn report(&self) -> Vec<TimelineReport> {
        let one = |timeline: TimelineId| {
            let history = self.history(timeline);
            let (windows, unusable) = history.as_ref().map(|path| self.windows(path)).unwrap_or_default();
            TimelineReport {
                timeline,
                parent: history.as_ref().and_then(|path| path.parent()).map(|parent| (parent.timeline, parent.switch)),
                ancestry_known: history.is_some(),
                frontier: self.frontier(timeline),
                holes: self.holes(timeline),
                windows,
                unusable,
            }
        };
        self.timelines().into_iter().map(one).collect()
    }
}
