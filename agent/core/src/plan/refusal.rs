//! Why a target cannot be reached, and what can be reached instead.

use std::fmt;

use chrono::{DateTime, Utc};
use serde::Serialize;

use crate::backup::BackupRecord;
use crate::catalog::{Catalog, FirstMissing, GapRecord, WalRange};
use crate::identity::TimelineId;
use crate::layout::BackupId;
use crate::lsn::Lsn;
use crate::segment::SegmentName;
use crate::target::{MinimalWal, TargetKind, Transaction, print_time};

use super::{EarlierPass, Unproven};

/// A state that can be restored.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Reachable {
    /// From this backup.
    pub backup: BackupId,
    /// At this position.
    pub lsn: Lsn,
    /// The server's clock then.
    pub time: DateTime<Utc>,
}

impl Reachable {
    /// The first state a backup offers.
    pub(super) fn from_backup(backup: &BackupRecord) -> Self {
        Self { backup: backup.id.clone(), lsn: backup.stop_lsn, time: backup.ended_at }
    }
}

impl fmt::Display for Reachable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (LSN {}, the end of backup {})", self.time.format("%Y-%m-%d %H:%M:%S+00"), self.lsn, self.backup)
    }
}

/// WAL that is not there.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Hole {
    /// The first missing position.
    pub at: Lsn,
    /// Where WAL of the same history is stored again.
    pub resumes: Option<Lsn>,
    /// The first file missing or too short.
    pub first: SegmentName,
    /// The last one, where the hole ends.
    pub last: Option<SegmentName>,
    /// A timeline into whose WAL PostgreSQL would stray from here.
    pub strays: Option<TimelineId>,
    /// What the agent recorded about it.
    pub gap: Option<GapRecord>,
    /// It lies in the parts of a segment that was being written.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub in_parts: bool,
}

impl Hole {
    pub(super) fn new(catalog: &Catalog, missing: &FirstMissing) -> Self {
        let size = catalog.segment_size();
        let last_byte = missing.resumes.and_then(|at| at.get().checked_sub(1)).map(Lsn::new);
        Self {
            at: missing.at,
            resumes: missing.resumes,
            first: missing.segment,
            last: last_byte.map(|lsn| size.segment_of(lsn).name(missing.segment.timeline(), size)),
            strays: missing.strays,
            gap: missing.gap.clone(),
            in_parts: catalog.hole_in_parts(missing.segment.timeline()).is_some_and(|hole| hole.from == missing.at),
        }
    }
}

impl fmt::Display for Hole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let forbidden = self.gap.as_ref().filter(|gap| gap.blocks()).and_then(|gap| Some((gap.name.to, gap.cause.words()?)));
        match (forbidden, self.last) {
            (Some((to, words)), _) => write!(f, "the WAL from {} to {to} {words}", self.at)?,
            (None, Some(last)) if last != self.first => write!(f, "WAL is missing from {}: {} to {last}", self.at, self.first)?,
            (None, _) if self.in_parts => write!(
                f,
                "WAL is missing from {}: of the unfinished {} parts are stored behind it, so more was committed than can be restored",
                self.at, self.first
            )?,
            (None, _) => write!(f, "WAL is missing from {}: {}", self.at, self.first)?,
        }
        if let Some(strays) = self.strays {
            write!(f, " (PostgreSQL would read on in timeline {strays}, which this history has left)")?;
        }
        if let Some(gap) = self.gap.as_ref().filter(|gap| !gap.blocks()) {
            write!(f, "; recorded {} as {:?}", gap.recorded_at.format("%Y-%m-%d %H:%M:%S+00"), gap.cause)?;
        }
        Ok(())
    }
}

/// Why there is no plan.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// Nothing to begin from.
    #[error("cluster {cluster} has no base backup: nothing can be restored; take one with walkeep backup")]
    NoBackups {
        /// The cluster.
        cluster: String,
    },
    /// A timeline nobody has heard of.
    #[error("timeline {timeline} is unknown; known are {}", list(known))]
    UnknownTimeline {
        /// The timeline asked for.
        timeline: TimelineId,
        /// Those known.
        known: Vec<TimelineId>,
    },
    /// A timeline whose ancestors are not known.
    #[error(
        "the history of timeline {timeline} is not stored, and PostgreSQL cannot recover to a timeline without it. A server of that timeline has {}.history in \
         its pg_wal: store it with `walkeep wal push`{}",
        timeline.hex(),
        older.map(|older| format!(". What is on timeline {older} can be looked at meanwhile: --timeline {older} with a target, and --action pause")).unwrap_or_default()
    )]
    NoHistory {
        /// The timeline.
        timeline: TimelineId,
        /// The newest one whose history is known.
        older: Option<TimelineId>,
    },
    /// A backup nobody has heard of.
    #[error("backup {backup} does not exist{}", newest.as_ref().map(|id| format!("; the newest is {id}")).unwrap_or_default())]
    UnknownBackup {
        /// The backup asked for.
        backup: BackupId,
        /// The newest there is.
        newest: Option<BackupId>,
    },
    /// The backup asked for is not part of the history.
    #[error(
        "backup {backup} ended at {stop}, which is not part of the history of timeline {timeline}; it can be used with --timeline {}",
        list(reachable_on)
    )]
    NotAncestor {
        /// The backup asked for.
        backup: BackupId,
        /// Its stop.
        stop: Lsn,
        /// The timeline to follow.
        timeline: TimelineId,
        /// Timelines it is part of.
        reachable_on: Vec<TimelineId>,
    },
    /// No backup is part of the history.
    #[error("no backup is part of the history of timeline {timeline}; there are some for --timeline {}", list(reachable_on))]
    NoBackupOnTimeline {
        /// The timeline to follow.
        timeline: TimelineId,
        /// Timelines with backups.
        reachable_on: Vec<TimelineId>,
    },
    /// The target lies before the first state any backup offers.
    #[error("{target} lies before the end of the first backup for timeline {timeline}{}", earliest_text(earliest))]
    BeforeFirstBackup {
        /// The target.
        target: TargetKind,
        /// The timeline to follow.
        timeline: TimelineId,
        /// The earliest state that can be restored.
        earliest: Option<Reachable>,
    },
    /// The target lies within the backup's own range.
    #[error("{target} would stop replay at {stop}, before backup {backup} is consistent; its earliest reachable state is {reachable}")]
    BeforeConsistency {
        /// The target.
        target: TargetKind,
        /// Where PostgreSQL would stop.
        stop: Lsn,
        /// The backup.
        backup: BackupId,
        /// The first state it offers.
        reachable: Reachable,
    },
    /// Every backup that ended in time lacks WAL of its own range.
    #[error("no backup for timeline {timeline} can be made consistent: {}", unusable_text(holes))]
    BackupsUnusable {
        /// The timeline to follow.
        timeline: TimelineId,
        /// The backups, newest first, and what they lack.
        holes: Vec<(BackupId, Hole)>,
    },
    /// Something that the backup refers to is lost or damaged.
    #[error("backup {backup} cannot be restored whole: {reason}")]
    BackupDamaged {
        /// The backup.
        backup: BackupId,
        /// What is.
        reason: String,
    },
    /// There is a hole before the target.
    #[error("{target} cannot be reached along timeline {timeline} from backup {backup}: {hole}; {}", latest_text(hole.at, last_commit))]
    WalMissing {
        /// The target.
        target: TargetKind,
        /// The timeline to follow.
        timeline: TimelineId,
        /// The hole.
        hole: Box<Hole>,
        /// The best backup.
        backup: BackupId,
        /// The last commit before the hole, where WAL was read.
        last_commit: Option<Transaction>,
    },
    /// The WAL ends before the target.
    #[error("{target} lies after the end of the stored WAL of timeline {timeline}; {}, or --latest for everything stored", latest_text(*end, last_commit))]
    AfterEndOfWal {
        /// The target.
        target: TargetKind,
        /// The timeline to follow.
        timeline: TimelineId,
        /// The end of the WAL.
        end: Lsn,
        /// The best backup.
        backup: BackupId,
        /// The last commit, where WAL was read.
        last_commit: Option<Transaction>,
    },
    /// A transaction or restore point that is not in the WAL.
    #[error("{target} is not in the WAL of timeline {timeline} from {} to {}{}; the earliest reachable is {earliest}", searched.from, searched.to, not_found_text(hole, last_commit))]
    NotFound {
        /// The target.
        target: TargetKind,
        /// The timeline to follow.
        timeline: TimelineId,
        /// What was searched.
        searched: WalRange,
        /// A hole behind which it may be.
        hole: Option<Box<Hole>>,
        /// The last commit searched.
        last_commit: Option<Transaction>,
        /// The first state that the oldest backup searched from offers.
        earliest: Box<Reachable>,
    },
    /// A time after the last stored commit, where nothing says that there was no other.
    #[error(
        "{target} lies after the last commit that is stored of timeline {timeline}, and what was committed until then is not known: {unproven}; {}; or --latest for everything stored{}",
        last_text(last_commit),
        earlier_text(earlier_pass)
    )]
    TimeNotReached {
        /// The target.
        target: TargetKind,
        /// The timeline to follow.
        timeline: TimelineId,
        /// The end of the last record that is stored.
        end: Lsn,
        /// The best backup.
        backup: BackupId,
        /// The last commit.
        last_commit: Option<Transaction>,
        /// Why it is not known.
        unproven: Unproven,
        /// The time was passed before the backup already, by a clock that was set back.
        earlier_pass: Option<Box<EarlierPass>>,
    },
    /// Replay would cross WAL that was written with `wal_level = minimal`.
    #[error("{target} cannot be reached along timeline {timeline} from backup {backup}: {}", minimal_text(minimal))]
    MinimalWal {
        /// The target.
        target: TargetKind,
        /// The timeline to follow.
        timeline: TimelineId,
        /// The best backup.
        backup: BackupId,
        /// The WAL.
        minimal: Box<MinimalWal>,
    },
    /// A target that only the WAL can tell.
    #[error("{target} can be planned only by reading WAL")]
    NotSearched {
        /// The target.
        target: TargetKind,
    },
}

impl Refusal {
    /// Whether an older candidate may still lead to the target.
    pub fn tries_older(&self) -> bool {
        matches!(self, Self::BeforeConsistency { .. } | Self::NotFound { .. } | Self::BackupDamaged { .. })
    }

    /// Whether the running server may know what is missing for a plan: its [`Witness`](super::Witness) is then worth asking for.
    pub fn asks_server(&self) -> bool {
        matches!(self, Self::TimeNotReached { unproven: Unproven::NotAsked, .. })
    }

    /// Whether what is missing will be stored soon, if the agent is well.
    pub fn is_a_matter_of_time(&self) -> bool {
        matches!(self, Self::TimeNotReached { unproven: Unproven::Behind { .. }, .. })
    }

    /// What is said where an older candidate refuses too. One that came across the target knows more than one that did not.
    pub fn and_older(self, older: Self) -> Self {
        match (self, older) {
            (Self::NotFound { target, timeline, searched, hole, last_commit, .. }, Self::NotFound { searched: before, earliest, .. }) => {
                let searched = WalRange { from: before.from, to: searched.to };
                Self::NotFound { target, timeline, searched, hole, last_commit, earliest }
            }
            (Self::NotFound { .. }, older) => older,
            (newer, _) => newer,
        }
    }
}

fn list(timelines: &[TimelineId]) -> String {
    match timelines {
        [] => "none".to_owned(),
        some => some.iter().map(TimelineId::to_string).collect::<Vec<_>>().join(", "),
    }
}

fn earliest_text(earliest: &Option<Reachable>) -> String {
    match earliest {
        Some(earliest) => format!("; the earliest reachable is {earliest}"),
        None => "; no backup there can be made consistent, since WAL of its own range is missing".to_owned(),
    }
}

fn unusable_text(holes: &[(BackupId, Hole)]) -> String {
    holes.iter().map(|(backup, hole)| format!("{backup}: {hole}")).collect::<Vec<_>>().join("; ")
}

fn commit_text(commit: &Transaction) -> String {
    let time = print_time(commit.time).unwrap_or_else(|| commit.time.to_string());
    format!("transaction {} at {time} (--xid {})", commit.xid, commit.xid)
}

fn earlier_text(pass: &Option<Box<EarlierPass>>) -> String {
    pass.as_ref().map(|pass| format!(". But {pass}")).unwrap_or_default()
}

fn last_text(last_commit: &Option<Transaction>) -> String {
    match last_commit {
        Some(commit) => format!("the last commit is {}", commit_text(commit)),
        None => "no commit is stored behind the backup".to_owned(),
    }
}

fn latest_text(end: Lsn, last_commit: &Option<Transaction>) -> String {
    match last_commit {
        Some(commit) => format!("the latest reachable commit is {}, before {end}", commit_text(commit)),
        None => format!("the latest reachable position lies before {end}"),
    }
}

fn minimal_text(minimal: &MinimalWal) -> String {
    let to = minimal.to.map(|to| format!(" to {to}")).unwrap_or_default();
    let before = match &minimal.last_commit {
        Some(commit) => format!("the last commit before is {}", commit_text(commit)),
        None => "there is no commit before".to_owned(),
    };
    let from = minimal.from;
    format!(
        "the WAL from {from}{to} was written with wal_level = minimal, which lacks what replay needs; {before}, and everything before is reached \
         with --lsn {from} --exclusive. What came after needs a backup that was taken after wal_level was raised"
    )
}

fn not_found_text(hole: &Option<Box<Hole>>, last_commit: &Option<Transaction>) -> String {
    let hole = hole.as_ref().map(|hole| format!("; what follows could not be searched: {hole}")).unwrap_or_default();
    let commit = last_commit.as_ref().map(|commit| format!("; the last commit there is {}", commit_text(commit))).unwrap_or_default();
    hole + &commit
}
