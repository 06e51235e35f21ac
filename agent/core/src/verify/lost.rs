//! What of restores is lost with an object.

use std::fmt;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::catalog::{Catalog, WalRange, legs};
use crate::history::TimelineHistory;
use crate::identity::TimelineId;
use crate::layout::BackupId;
use crate::lsn::Lsn;

/// What cannot be restored.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Lost {
    /// Backups that are of no use.
    pub backups: Vec<BackupId>,
    /// Stretches of which no moment is within reach.
    pub wal: Vec<LostWal>,
}

/// Such a stretch.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct LostWal {
    /// The timeline that one recovers to.
    pub timeline: TimelineId,
    /// Where it begins: everything before is within reach.
    pub from: Lsn,
    /// Where it ends: at the end of the next backup, or of what is stored.
    pub to: Lsn,
    /// A moment before it: when the last backup before ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<DateTime<Utc>>,
    /// When the backup with which it ends did; none: it reaches to the present.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<DateTime<Utc>>,
}

impl Lost {
    /// These backups.
    pub fn backups(backups: impl IntoIterator<Item = BackupId>) -> Self {
        let mut backups: Vec<BackupId> = backups.into_iter().collect();
        backups.sort();
        backups.dedup();
        Self { backups, wal: Vec::new() }
    }

    /// Whether nothing is.
    pub fn is_nothing(&self) -> bool {
        self.backups.is_empty() && self.wal.is_empty()
    }

    /// Adds what else is.
    pub fn merge(&mut self, other: Self) {
        self.backups.extend(other.backups);
        self.backups.sort();
        self.backups.dedup();
        self.wal.extend(other.wal);
        self.wal.sort();
        self.wal.dedup();
    }
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut apart = "";
        if let Some(first) = self.backups.first() {
            match self.backups.len() - 1 {
                0 => write!(f, "backup {first} is of no use")?,
                more => write!(f, "backup {first} and {more} more are of no use")?,
            }
            apart = "; ";
        }
        for LostWal { timeline, from, to, after, until } in &self.wal {
            write!(f, "{apart}on timeline {timeline} no moment from {from} to {to} is within reach")?;
            let time = |time: &DateTime<Utc>| time.format("%Y-%m-%d %H:%M:%S UTC").to_string();
            match (after.as_ref().map(time), until.as_ref().map(time)) {
                (Some(after), Some(until)) => write!(f, " (some time after {after}, until {until})")?,
                (Some(after), None) => write!(f, " (some time after {after}, up to the newest)")?,
                (None, Some(until)) => write!(f, " (until {until})")?,
                (None, None) => {}
            }
            apart = "; ";
        }
        Ok(())
    }
}

/// A path of timelines and the backups on it, with how far each reaches.
#[derive(Debug)]
pub(super) struct Path {
    history: TimelineHistory,
    backups: Vec<Reaching>,
    end: Lsn,
}

#[derive(Debug)]
struct Reaching {
    id: BackupId,
    start: Lsn,
    stop: Lsn,
    ended: DateTime<Utc>,
    reach: Lsn,
}

impl Path {
    /// Those of a catalog.
    pub fn all(catalog: &Catalog) -> Vec<Self> {
        let histories = catalog.timelines().into_iter().filter_map(|timeline| catalog.history(timeline));
        let one = |history: TimelineHistory| {
            let on_it = catalog.backups().iter().filter(|backup| catalog.is_on(backup, &history));
            let reaching = on_it.map(|backup| Reaching {
                id: backup.id.clone(),
                start: backup.start_lsn,
                stop: backup.stop_lsn,
                ended: backup.ended_at,
                reach: catalog.reach(&history, backup.start_lsn).to,
            });
            let backups = reaching.collect();
            let end = legs(&history).iter().filter_map(|(timeline, _)| catalog.frontier(*timeline)).max().unwrap_or(Lsn::ZERO);
            Self { history, backups, end }
        };
        histories.map(one).collect()
    }

    /// What is lost on it with a stretch of a timeline's files.
    pub fn lost_with(&self, catalog: &Catalog, timeline: TimelineId, stretch: WalRange, lost: &mut Lost) {
        let size = catalog.segment_size();
        for (_, leg) in legs(&self.history).into_iter().filter(|(owner, _)| *owner == timeline) {
            // The segment in which it begins is read from its own file, with the pages of its parent.
            let (from, to) = (stretch.from.max(size.align_down(leg.from)), stretch.to.min(leg.to));
            // Of no other backup's window is it a part.
            let reaching = || self.backups.iter().filter(|backup| backup.start < to && backup.reach >= from);
            if from >= to || reaching().next().is_none() {
                continue;
            }
            lost.backups.extend(reaching().filter(|backup| backup.stop > from).map(|backup| backup.id.clone()));
            let next = self.backups.iter().filter(|backup| backup.start >= to).min_by_key(|backup| backup.stop);
            let before = self.backups.iter().filter(|backup| backup.stop <= from).max_by_key(|backup| backup.stop);
            lost.wal.push(LostWal {
                timeline: self.history.timeline(),
                from,
                to: next.map_or(self.end.max(to), |backup| backup.stop),
                after: before.map(|backup| backup.ended),
                until: next.map(|backup| backup.ended),
            });
        }
    }

    /// Whether it goes by this timeline.
    pub fn has(&self, timeline: TimelineId) -> bool {
        self.history.lineage().any(|one| one == timeline)
    }

    /// The names of its backups.
    pub fn backups(&self) -> impl Iterator<Item = BackupId> + '_ {
        self.backups.iter().map(|backup| backup.id.clone())
    }
}
