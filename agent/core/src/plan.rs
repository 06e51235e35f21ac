//! Which backup and which WAL lead to a recovery target, or why none do.
//!
//! Decided in two steps, so that the agent can read WAL in between and this module stays pure: [`candidates`] names backups that may
//! lead there, best first, with the WAL to search; [`finish`] turns one of them and what the search found into a [`RestorePlan`].
//! A plan never crosses a hole. Where a target cannot be reached the [`Refusal`] says why, and what can be reached instead.
//!
//! An agent goes through the candidates in order and takes the first plan; after a refusal that [`Refusal::tries_older`] it goes on.

pub mod estimate;
mod refusal;
#[cfg(test)]
mod tests;
mod witness;

use chrono::{DateTime, Utc};
use serde::Serialize;

use crate::backup::BackupRecord;
use crate::catalog::{Catalog, FirstMissing, NeededFile, WalRange, legs};
use crate::history::TimelineHistory;
use crate::identity::{MajorVersion, TimelineId};
use crate::layout::BackupId;
use crate::lsn::Lsn;
use crate::target::{
    Backwards, ClockReport, MinimalWal, RecoveryTarget, ReplayedTablespace, RestorePointName, SearchOutcome, Stop, StopAt, TargetKind,
    Transaction,
};
use crate::time::PgTimestamp;

pub use estimate::Estimate;
pub use refusal::{Hole, Reachable, Refusal};
pub use witness::{ServerNow, Unproven, Witness};

/// A backup that may lead to the target.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// The backup.
    pub backup: BackupRecord,
    /// The history to replay along.
    pub path: TimelineHistory,
    /// What was asked for.
    pub target: RecoveryTarget,
    /// The WAL in which to search for the target, along `path`: `[from, to)`.
    pub search: WalRange,
    /// Everything from the backup's start to here can be replayed.
    pub covered_to: Lsn,
    /// What comes there.
    pub missing: FirstMissing,
    /// Newer backups that would have led there, and the WAL of their own range that is missing.
    pub passed_over: Vec<(BackupId, FirstMissing)>,
}

/// A target as PostgreSQL is told.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ResolvedTarget {
    /// No target: everything that is stored.
    EndOfWal,
    /// `recovery_target = immediate`.
    Immediate,
    /// `recovery_target_time`.
    Time {
        /// The moment.
        time: PgTimestamp,
        /// With what stands exactly there.
        inclusive: bool,
    },
    /// `recovery_target_lsn`.
    Lsn {
        /// The position.
        lsn: Lsn,
        /// With the record that begins there.
        inclusive: bool,
    },
    /// `recovery_target_xid`.
    Xid {
        /// The transaction.
        xid: u32,
        /// With the transaction itself.
        inclusive: bool,
    },
    /// `recovery_target_name`.
    RestorePoint {
        /// The name.
        name: RestorePointName,
    },
}

/// The backup of a plan.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct PlannedBackup {
    /// Its name.
    pub id: BackupId,
    /// The operator's words.
    pub label: String,
    /// Its timeline at the start.
    pub timeline: TimelineId,
    /// Where replay begins.
    pub start_lsn: Lsn,
    /// From where on it is consistent.
    pub stop_lsn: Lsn,
    /// The server's clock at the start.
    pub started_at: DateTime<Utc>,
    /// The server's clock at the stop.
    pub ended_at: DateTime<Utc>,
    /// The major version that can run it.
    pub major_version: MajorVersion,
}

/// A stretch of the timeline path.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct PathLeg {
    /// The timeline.
    pub timeline: TimelineId,
    /// Replayed from here.
    pub from: Lsn,
    /// To here.
    pub to: Lsn,
}

/// The server's clock showed a time before the chosen backup was taken already, and was set back. Only backups tell here: a pass of the
/// clock in which none was taken is not noticed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct EarlierPass {
    /// An older backup, which ended at a later time than the one asked for.
    pub seen_by: BackupId,
    /// When it ended, by the server's clock.
    pub ended_at: DateTime<Utc>,
    /// A backup from before, from which replay stops when the clock comes to the time for the first time; `None` if there is none.
    pub from: Option<BackupId>,
}

impl std::fmt::Display for EarlierPass {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ended = self.ended_at.format("%Y-%m-%d %H:%M:%S+00");
        write!(
            f,
            "the server's clock had shown that time before, and was set back: backup {}, an older one, ended at {ended}",
            self.seen_by
        )?;
        match &self.from {
            Some(backup) => write!(f, "; its first coming is reached with --backup {backup}"),
            None => f.write_str("; no backup from before leads to its first coming"),
        }
    }
}

fn earlier_pass(catalog: &Catalog, candidate: &Candidate) -> Option<EarlierPass> {
    let TargetKind::Time(time) = candidate.target.kind else { return None };
    let older = |backup: &&BackupRecord| backup.stop_lsn <= candidate.backup.start_lsn && catalog.is_on(backup, &candidate.path);
    let past = |backup: &BackupRecord| PgTimestamp::from_utc(backup.ended_at) > time;
    let seen_by = catalog.backups().iter().filter(older).find(|backup| past(backup))?;
    // A hole between would be found out by the plan from there.
    let mut before =
        catalog.backups().iter().filter(|backup| catalog.is_on(backup, &candidate.path) && backup.stop_lsn <= seen_by.start_lsn);
    let from = before.rfind(|backup| !past(backup)).map(|backup| backup.id.clone());
    Some(EarlierPass { seen_by: seen_by.id.clone(), ended_at: seen_by.ended_at, from })
}

/// What says that a time is reached though no later commit is stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ProvenBy {
    /// A record of a later time: a checkpoint, a restore point, a promotion.
    Record {
        /// Where it begins.
        lsn: Lsn,
        /// Its time.
        time: PgTimestamp,
    },
    /// The running server, all of whose WAL is stored.
    Server(ServerNow),
}

/// How a target will be reached. Accepted means that every object it needs is stored.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct RestorePlan {
    /// The cluster.
    pub cluster: String,
    /// Where it begins.
    pub backup: PlannedBackup,
    /// The timeline whose history is followed: `recovery_target_timeline`.
    pub timeline: TimelineId,
    /// That history, as far as it is replayed.
    pub path: Vec<PathLeg>,
    /// What was asked for.
    pub target: RecoveryTarget,
    /// What PostgreSQL is told.
    pub resolved: ResolvedTarget,
    /// Everything before this position is replayed.
    pub stop_lsn: Lsn,
    /// Whether WAL was read to find the stop; otherwise the transactions are not known.
    pub searched: bool,
    /// The last commit that will be there.
    pub last_replayed: Option<Transaction>,
    /// The first commit or abort that will not; `None` if none is stored behind the stop, up to `looked_to`.
    pub first_not_replayed: Option<Transaction>,
    /// How far WAL was looked at behind the stop.
    pub looked_to: Lsn,
    /// Commits of the time asked for that lie behind the stop, and the positions that have them.
    pub clock: Option<ClockReport>,
    /// The time was passed before the backup already, by a clock that was set back.
    pub earlier_pass: Option<EarlierPass>,
    /// What says that nothing else was committed up to the time asked for, where no later commit is stored.
    pub proven_by: Option<ProvenBy>,
    /// The WAL files PostgreSQL will ask for, in order.
    pub wal: Vec<NeededFile>,
    /// Objects of WAL to fetch: segments and parts.
    pub wal_objects: u64,
    /// Bytes of WAL to fetch.
    pub wal_bytes: u64,
    /// Bytes to fetch in all.
    pub fetch_bytes: u64,
    /// Bytes the data directory has before replay.
    pub restore_bytes: u64,
    /// Bytes of WAL to replay.
    pub replay_bytes: u64,
    /// How long it may take, as far as that was measured; set by whoever knows the measurements.
    pub estimate: Option<Estimate>,
    /// Tablespaces that replay will create, each where it was created the first time. The place must be free where this is restored.
    pub replayed_tablespaces: Vec<ReplayedTablespace>,
    /// Whether the WAL behind the stop ends in a hole rather than in the end of what is stored. A server that reads ahead of its replay
    /// would ask for what is missing there.
    pub hole_follows: bool,
    /// A newer timeline that is stored without its history. A server that opens for writes asks for the histories of the timelines behind its own, to choose a
    /// number that is free: it cannot, until this one is stored. It can be read where it pauses.
    pub history_missing: Option<TimelineId>,
    /// What the operator should know.
    pub warnings: Vec<String>,
}

/// The backups that may lead to `target`, best first.
pub fn candidates(catalog: &Catalog, target: &RecoveryTarget) -> Result<Vec<Candidate>, Refusal> {
    let path = choose_path(catalog, target)?;
    let backups = choose_backups(catalog, target, &path)?;
    let (mut found, mut passed_over): (Vec<Candidate>, Vec<(BackupId, FirstMissing)>) = Default::default();
    for backup in backups {
        let reach = catalog.reach(&path, backup.start_lsn);
        if reach.to < backup.stop_lsn {
            passed_over.push((backup.id.clone(), reach.missing));
            continue;
        }
        // What a newer candidate covers from its end on it has searched already.
        let to = found.last().map_or(reach.to, |newer| newer.backup.stop_lsn.min(reach.to));
        found.push(Candidate {
            search: WalRange { from: backup.start_lsn, to },
            backup: backup.clone(),
            path: path.clone(),
            target: target.clone(),
            covered_to: reach.to,
            missing: reach.missing,
            passed_over: passed_over.clone(),
        });
    }
    // The newest reaches furthest: they share one path.
    let Some(furthest) = found.first() else {
        let holes = passed_over.into_iter().map(|(backup, missing)| (backup, Hole::new(catalog, &missing))).collect();
        return Err(Refusal::BackupsUnusable { timeline: path.timeline(), holes });
    };
    match target.kind {
        TargetKind::Latest if !furthest.missing.is_end_of_wal() => return Err(unreachable(catalog, furthest, None)),
        TargetKind::Lsn(lsn) if furthest.covered_to <= lsn => return Err(unreachable(catalog, furthest, None)),
        _ => {}
    }
    match target.kind {
        TargetKind::Latest => found.retain(|candidate| candidate.missing.is_end_of_wal()),
        TargetKind::Lsn(lsn) => found.retain(|candidate| candidate.covered_to > lsn),
        _ => {}
    }
    Ok(found)
}

/// The plan that begins with `candidate`, a search of its WAL having had this outcome. The server's witness is needed only after
/// [`Refusal::asks_server`].
pub fn finish(candidate: &Candidate, outcome: &SearchOutcome, catalog: &Catalog, witness: &Witness) -> Result<RestorePlan, Refusal> {
    let Candidate { target, backup, covered_to, .. } = candidate;
    let mut proven_by = None;
    let (resolved, stop, read_to) = match (&target.kind, outcome) {
        (_, SearchOutcome::BeforeConsistency(stop)) => return Err(before_consistency(candidate, stop.at.lsn())),
        (TargetKind::Latest, outcome) => {
            if !candidate.missing.is_end_of_wal() {
                return Err(unreachable(catalog, candidate, None));
            }
            (ResolvedTarget::EndOfWal, known(outcome, StopAt::Before(*covered_to)), *covered_to)
        }
        (TargetKind::Immediate, outcome) => {
            let stop = known(outcome, StopAt::After(backup.stop_lsn));
            (ResolvedTarget::Immediate, stop.clone(), stop.read_to)
        }
        (TargetKind::Lsn(lsn), SearchOutcome::Skipped) => {
            let Some(past) = lsn.checked_add(1).filter(|past| past <= covered_to) else {
                return Err(unreachable(catalog, candidate, None));
            };
            (resolve(target), known(outcome, StopAt::Before(*lsn)), past)
        }
        (TargetKind::Time(_), SearchOutcome::NotFound { passed: Some(passed), .. }) => {
            // No transaction ended after the time asked for, which PostgreSQL would take for a target never reached.
            proven_by = Some(ProvenBy::Record { lsn: passed.start, time: passed.time });
            let stop = Stop { read_to: passed.end, ..known(outcome, StopAt::Before(passed.start)) };
            (ResolvedTarget::Lsn { lsn: passed.start, inclusive: false }, stop, passed.end)
        }
        (_, SearchOutcome::Found(stop)) => (resolve(target), stop.clone(), stop.read_to),
        (TargetKind::Time(time), SearchOutcome::NotFound { last_commit, last_end, end, minimal, .. }) => {
            if let Some(minimal) = minimal {
                return Err(minimal_wal(candidate, minimal));
            }
            if !candidate.missing.is_end_of_wal() {
                return Err(unreachable(catalog, candidate, *last_commit));
            }
            if let Err(unproven) = witness.proves(*time, candidate.path.timeline(), *end, catalog.segment_size()) {
                return Err(Refusal::TimeNotReached {
                    target: target.kind.clone(),
                    timeline: candidate.path.timeline(),
                    end: *end,
                    backup: backup.id.clone(),
                    last_commit: *last_commit,
                    unproven,
                    earlier_pass: earlier_pass(catalog, candidate).map(Box::new),
                });
            }
            if let Witness::Answered(now) = witness {
                proven_by = Some(ProvenBy::Server(*now));
            }
            // Not the end of the WAL: there may be more of it by the time that it is replayed.
            match last_end.filter(|ended| ended.end >= backup.stop_lsn) {
                Some(ended) => {
                    let stop = known(outcome, StopAt::After(ended.end));
                    (ResolvedTarget::Lsn { lsn: ended.start, inclusive: true }, stop, ended.end)
                }
                None => (ResolvedTarget::Immediate, known(outcome, StopAt::After(backup.stop_lsn)), backup.stop_lsn),
            }
        }
        (TargetKind::Lsn(_), SearchOutcome::NotFound { last_commit, .. }) => {
            return Err(unreachable(catalog, candidate, *last_commit));
        }
        (_, SearchOutcome::NotFound { last_commit, end, .. }) => {
            return Err(Refusal::NotFound {
                target: target.kind.clone(),
                timeline: candidate.path.timeline(),
                searched: WalRange { from: candidate.search.from, to: *end },
                hole: (!candidate.missing.is_end_of_wal()).then(|| Box::new(Hole::new(catalog, &candidate.missing))),
                last_commit: *last_commit,
                earliest: Box::new(Reachable::from_backup(backup)),
            });
        }
        (_, SearchOutcome::Skipped) => return Err(Refusal::NotSearched { target: target.kind.clone() }),
    };
    let (resolved, stop) = match stop.minimal.filter(|minimal| minimal.from < stop.at.lsn()) {
        // Nothing was committed between: a moment at which the server was down, say.
        Some(minimal) if matches!(target.kind, TargetKind::Time(_)) && minimal.last_commit == stop.last_replayed => {
            let tablespaces = stop.tablespaces.iter().filter(|space| space.lsn < minimal.from).cloned().collect();
            let stop = Stop { at: StopAt::Before(minimal.from), tablespaces, ..stop };
            (ResolvedTarget::Lsn { lsn: minimal.from, inclusive: false }, stop)
        }
        Some(minimal) => return Err(minimal_wal(candidate, &minimal)),
        None => (resolved, stop),
    };
    if stop.at.lsn() < backup.stop_lsn {
        return Err(before_consistency(candidate, stop.at.lsn()));
    }
    // Asked once more, of the catalog itself: whatever a search claims, no plan crosses a hole.
    let wal = catalog
        .coverage(&candidate.path, backup.start_lsn, read_to)
        .map_err(|missing| unreachable(catalog, &Candidate { missing: *missing, ..candidate.clone() }, stop.last_replayed))?;
    let searched = !matches!(outcome, SearchOutcome::Skipped);
    Ok(RestorePlan { proven_by, ..assemble(candidate, catalog, resolved, stop, wal, searched) })
}

fn before_consistency(candidate: &Candidate, stop: Lsn) -> Refusal {
    let Candidate { target, backup, .. } = candidate;
    let (target, reachable) = (target.kind.clone(), Reachable::from_backup(backup));
    Refusal::BeforeConsistency { target, stop, backup: backup.id.clone(), reachable }
}

fn minimal_wal(candidate: &Candidate, minimal: &MinimalWal) -> Refusal {
    let (target, timeline) = (candidate.target.kind.clone(), candidate.path.timeline());
    Refusal::MinimalWal { target, timeline, backup: candidate.backup.id.clone(), minimal: Box::new(*minimal) }
}

/// The stop of a search, or where no WAL need be read the stop known without one.
fn known(outcome: &SearchOutcome, at: StopAt) -> Stop {
    match outcome {
        SearchOutcome::Found(stop) => stop.clone(),
        SearchOutcome::NotFound { last_commit, tablespaces, minimal, end, .. } => {
            let tablespaces = tablespaces.iter().filter(|space| space.lsn < at.lsn()).cloned().collect();
            Stop { last_replayed: *last_commit, looked_to: *end, minimal: *minimal, tablespaces, ..Stop::new(at, at.lsn()) }
        }
        _ => Stop::new(at, at.lsn()),
    }
}

fn choose_path(catalog: &Catalog, target: &RecoveryTarget) -> Result<TimelineHistory, Refusal> {
    let known = catalog.timelines();
    let timeline = match target.timeline {
        Some(timeline) if !known.contains(&timeline) => return Err(Refusal::UnknownTimeline { timeline, known }),
        Some(timeline) => timeline,
        None if catalog.backups().is_empty() => return Err(Refusal::NoBackups { cluster: catalog.cluster().to_string() }),
        // The last one, whether or not it can be followed: PostgreSQL would take its number a second time if it were passed over.
        None => match known.last().copied() {
            Some(timeline) => timeline,
            None => return Err(Refusal::NoBackups { cluster: catalog.cluster().to_string() }),
        },
    };
    catalog.history(timeline).ok_or_else(|| Refusal::NoHistory { timeline, older: catalog.newest_timeline() })
}

/// The backups of `path` that ended before the target, newest first.
fn choose_backups<'a>(catalog: &'a Catalog, target: &RecoveryTarget, path: &TimelineHistory) -> Result<Vec<&'a BackupRecord>, Refusal> {
    let timeline = path.timeline();
    let on_path: Vec<&BackupRecord> = catalog.backups().iter().rev().filter(|backup| catalog.is_on(backup, path)).collect();
    let elsewhere = |backup: &BackupRecord| -> Vec<TimelineId> {
        let paths = catalog.timelines().into_iter().filter_map(|timeline| catalog.history(timeline));
        paths.filter(|path| catalog.is_on(backup, path)).map(|path| path.timeline()).collect()
    };
    let asked = match &target.backup {
        None => on_path,
        Some(id) => {
            let record = catalog.backup(id);
            let record = record
                .ok_or_else(|| Refusal::UnknownBackup { backup: id.clone(), newest: catalog.backups().last().map(|b| b.id.clone()) })?;
            if !catalog.is_on(record, path) {
                return Err(Refusal::NotAncestor { backup: id.clone(), stop: record.stop_lsn, timeline, reachable_on: elsewhere(record) });
            }
            vec![record]
        }
    };
    if asked.is_empty() {
        if catalog.backups().is_empty() {
            return Err(Refusal::NoBackups { cluster: catalog.cluster().to_string() });
        }
        let mut reachable_on: Vec<TimelineId> = catalog.backups().iter().flat_map(elsewhere).collect();
        reachable_on.sort_unstable();
        reachable_on.dedup();
        return Err(Refusal::NoBackupOnTimeline { timeline, reachable_on });
    }
    let ended: Vec<&BackupRecord> = asked.iter().copied().filter(|backup| ended_before(backup, &target.kind)).collect();
    if ended.is_empty() {
        let earliest = match &target.backup {
            Some(_) => asked.first().map(|backup| Reachable::from_backup(backup)),
            None => asked.iter().rev().find(|b| catalog.reach(path, b.start_lsn).to >= b.stop_lsn).map(|b| Reachable::from_backup(b)),
        };
        return Err(Refusal::BeforeFirstBackup { target: target.kind.clone(), timeline, earliest });
    }
    Ok(ended)
}

fn ended_before(backup: &BackupRecord, target: &TargetKind) -> bool {
    match target {
        TargetKind::Time(time) => PgTimestamp::from_utc(backup.ended_at) <= *time,
        TargetKind::Lsn(lsn) => backup.stop_lsn <= *lsn,
        TargetKind::Latest | TargetKind::Immediate | TargetKind::Xid(_) | TargetKind::RestorePoint(_) => true,
    }
}

fn resolve(target: &RecoveryTarget) -> ResolvedTarget {
    let inclusive = target.inclusive;
    match &target.kind {
        TargetKind::Latest => ResolvedTarget::EndOfWal,
        TargetKind::Immediate => ResolvedTarget::Immediate,
        TargetKind::Time(time) => ResolvedTarget::Time { time: *time, inclusive },
        TargetKind::Lsn(lsn) => ResolvedTarget::Lsn { lsn: *lsn, inclusive },
        TargetKind::Xid(xid) => ResolvedTarget::Xid { xid: *xid, inclusive },
        TargetKind::RestorePoint(name) => ResolvedTarget::RestorePoint { name: name.clone() },
    }
}

/// The refusal of a target that lies behind what the candidate can reach.
fn unreachable(catalog: &Catalog, candidate: &Candidate, last_commit: Option<Transaction>) -> Refusal {
    let (target, backup) = (candidate.target.kind.clone(), candidate.backup.id.clone());
    let timeline = candidate.path.timeline();
    match candidate.missing.is_end_of_wal() {
        true => Refusal::AfterEndOfWal { target, timeline, end: candidate.covered_to, backup, last_commit },
        false => Refusal::WalMissing { target, timeline, hole: Box::new(Hole::new(catalog, &candidate.missing)), backup, last_commit },
    }
}

fn assemble(
    candidate: &Candidate,
    catalog: &Catalog,
    resolved: ResolvedTarget,
    stop: Stop,
    wal: Vec<NeededFile>,
    searched: bool,
) -> RestorePlan {
    let backup = &candidate.backup;
    let stop_lsn = stop.at.lsn();
    let clip = |(timeline, leg): (TimelineId, WalRange)| {
        let (from, to) = (leg.from.max(backup.start_lsn), leg.to.min(stop_lsn));
        (from < to).then_some(PathLeg { timeline, from, to })
    };
    let wal_bytes = wal.iter().map(|file| file.stored).sum();
    RestorePlan {
        cluster: catalog.cluster().to_string(),
        backup: PlannedBackup {
            id: backup.id.clone(),
            label: backup.label.clone(),
            timeline: backup.timeline,
            start_lsn: backup.start_lsn,
            stop_lsn: backup.stop_lsn,
            started_at: backup.started_at,
            ended_at: backup.ended_at,
            major_version: backup.major_version,
        },
        timeline: candidate.path.timeline(),
        path: legs(&candidate.path).into_iter().filter_map(clip).collect(),
        target: candidate.target.clone(),
        warnings: warnings(candidate, catalog, &stop, searched),
        resolved,
        stop_lsn,
        searched,
        last_replayed: stop.last_replayed,
        first_not_replayed: stop.first_not_replayed,
        looked_to: stop.looked_to,
        clock: stop.clock,
        earlier_pass: earlier_pass(catalog, candidate),
        proven_by: None,
        wal_objects: wal.iter().map(|file| file.parts.len().max(1) as u64).sum(),
        wal_bytes,
        fetch_bytes: backup.bytes_referenced.saturating_add(wal_bytes),
        restore_bytes: backup.bytes,
        replay_bytes: stop_lsn.bytes_since(backup.start_lsn),
        estimate: None,
        replayed_tablespaces: stop.tablespaces,
        hole_follows: !candidate.missing.is_end_of_wal(),
        history_missing: history_missing(catalog, &candidate.path),
        wal,
    }
}

fn history_missing(catalog: &Catalog, path: &TimelineHistory) -> Option<TimelineId> {
    catalog.timelines().into_iter().find(|timeline| *timeline > path.timeline() && catalog.history(*timeline).is_none())
}

/// The options that choose a position along the same history.
pub fn option(target: &RecoveryTarget, lsn: Lsn) -> String {
    let timeline = target.timeline.map(|timeline| format!(" --timeline {timeline}")).unwrap_or_default();
    let backup = target.backup.as_ref().map(|backup| format!(" --backup {backup}")).unwrap_or_default();
    format!("--lsn {lsn}{timeline}{backup}")
}

fn warnings(candidate: &Candidate, catalog: &Catalog, stop: &Stop, searched: bool) -> Vec<String> {
    let mut warnings = Vec::new();
    for (backup, missing) in &candidate.passed_over {
        warnings.push(format!(
            "backup {backup} is newer but of no use: WAL of its own range is missing from {} ({})",
            missing.at, missing.segment
        ));
    }
    if let Some(clock) = &stop.clock {
        let (commits, stop) = (clock.lost, stop.at.lsn());
        let why = match clock.cause {
            Backwards::SameMoment => {
                "sessions committed at the same moment, and wrote their commits in another order than they read the clock"
            }
            Backwards::SetBack => "the server's clock was set back",
        };
        let safe = clock.candidates.last().map(|safe| format!("; with all of them: {}", option(&candidate.target, safe.lsn)));
        warnings.push(format!(
            "commits that belong to the time asked for, {commits}, are written after {stop}, where recovery stops at a later one, and will not be there: \
             {why}{}",
            safe.unwrap_or_default()
        ));
    }
    warnings.extend(earlier_pass(catalog, candidate).map(|pass| pass.to_string()));
    if candidate.target.timeline.is_none() {
        for (timeline, leg) in legs(&candidate.path) {
            let beyond = catalog.frontier(timeline).filter(|frontier| *frontier > leg.to && stop.at.lsn() >= leg.to);
            if let Some(frontier) = beyond {
                warnings.push(format!(
                    "timeline {timeline}, which was left at {}, is stored up to {frontier}: that WAL is reached with --timeline {timeline}",
                    leg.to
                ));
            }
        }
    }
    if let Some(timeline) = history_missing(catalog, &candidate.path) {
        warnings.push(format!(
            "timeline {timeline} is newer and stored without its history: a server restored here cannot be opened for writes until {}.history is stored, \
             and with --action pause it can be read",
            timeline.hex()
        ));
    }
    if !searched && matches!(candidate.target.kind, TargetKind::Lsn(_)) {
        warnings.push("no WAL was read: that a record begins at or after the LSN is not proven".to_owned());
    }
    warnings
}
