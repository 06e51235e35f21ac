//! Finding a target in the WAL, by the rule PostgreSQL itself stops by (`recoveryStopsBefore`, `recoveryStopsAfter`).
//!
//! Fed with what the decoder says, in LSN order along the timeline path, from a backup's start. PostgreSQL applies its rule from the
//! first record on, consistent or not, and gives up with FATAL where it would stop too early; so the search does not skip the backup's
//! own range either, but reports [`SearchOutcome::BeforeConsistency`], and an older backup is needed.

use serde::{Deserialize, Serialize};

use crate::event::{WalEvent, WalEventKind};
use crate::lsn::Lsn;
use crate::time::PgTimestamp;

use super::clock::{ClockReport, Passes};
use super::{RecoveryTarget, TargetKind};

/// A transaction's end, as its record tells.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Transaction {
    /// The transaction.
    pub xid: u32,
    /// The server's clock.
    pub time: PgTimestamp,
    /// Where the record begins.
    pub start: Lsn,
    /// Where it ends.
    pub end: Lsn,
    /// Whether it committed.
    pub committed: bool,
}

/// A tablespace that replay will create, where it was created the first time: no mapping applies to it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ReplayedTablespace {
    /// The tablespace.
    pub oid: u32,
    /// The absolute path on whatever host replays.
    pub location: String,
    /// Where the record begins: stopping before it leaves the place alone.
    pub lsn: Lsn,
}

/// On which side of a record recovery stops.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StopAt {
    /// Before the record that begins here.
    Before(Lsn),
    /// After the record that ends here.
    After(Lsn),
}

impl StopAt {
    /// Everything before this position is replayed, nothing after.
    pub fn lsn(self) -> Lsn {
        match self {
            Self::Before(lsn) | Self::After(lsn) => lsn,
        }
    }
}

/// Where recovery stops.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Stop {
    /// The side of the record.
    pub at: StopAt,
    /// WAL is read up to here to know it: the end of that record.
    pub read_to: Lsn,
    /// The last commit that is replayed.
    pub last_replayed: Option<Transaction>,
    /// The first commit or abort that is not, as far as the search was fed.
    pub first_not_replayed: Option<Transaction>,
    /// How far WAL was looked at behind the stop.
    pub looked_to: Lsn,
    /// For a time: commits up to it that come after the stop, as far as the search was fed. They are lost although they belong to the
    /// time asked for: the server's clock ran backwards.
    pub clock: Option<ClockReport>,
    /// Replay would cross WAL that PostgreSQL refuses to replay.
    pub minimal: Option<MinimalWal>,
    /// Tablespaces outside the data directory that are created on the way.
    pub tablespaces: Vec<ReplayedTablespace>,
}

impl Stop {
    /// A stop of which nothing more is known.
    pub fn new(at: StopAt, read_to: Lsn) -> Self {
        let (looked_to, tablespaces) = (read_to, Vec::new());
        Self { at, read_to, last_replayed: None, first_not_replayed: None, looked_to, clock: None, minimal: None, tablespaces }
    }
}

/// Proof that the server's clock passed the time asked for, where no transaction ended after it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct ClockPassed {
    /// Where a record of a later time begins. Stopping before it gives the state at the time asked for.
    pub start: Lsn,
    /// Where it ends.
    pub end: Lsn,
    /// Its time.
    pub time: PgTimestamp,
}

/// WAL that was written with `wal_level = minimal`: it lacks what replay needs. PostgreSQL 14 and later end with FATAL when they come to
/// its beginning, 13 warns and goes on with data missing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct MinimalWal {
    /// Where the record begins by which the server said so. Everything before can be replayed.
    pub from: Lsn,
    /// Where the server was seen to write more again.
    pub to: Option<Lsn>,
    /// The last commit before.
    pub last_commit: Option<Transaction>,
}

/// What a search found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SearchOutcome {
    /// Recovery stops here.
    Found(Stop),
    /// Recovery would stop here, before the backup is consistent: an older backup is needed.
    BeforeConsistency(Stop),
    /// Recovery would not stop.
    NotFound {
        /// The last commit seen.
        last_commit: Option<Transaction>,
        /// The last commit or abort seen.
        last_end: Option<Transaction>,
        /// How far the WAL was searched.
        end: Lsn,
        /// For a time: proof that it had passed before that end.
        passed: Option<ClockPassed>,
        /// Tablespaces outside the data directory that are created before that end.
        tablespaces: Vec<ReplayedTablespace>,
        /// WAL before that end that PostgreSQL refuses to replay.
        minimal: Option<MinimalWal>,
    },
    /// No WAL was read. Enough for the position of the end of the WAL, of an LSN and of the end of a backup, not for what lies before.
    Skipped,
}

/// Whether more WAL must be read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Progress {
    /// The stop is not found yet.
    Searching,
    /// The stop is found. Feeding on tells what comes first after it, and more of the commits that a clock set back left there.
    Found,
    /// The stop is found, and the first end of a transaction after it. Feeding on tells, for a time, whether the clock ran backwards.
    Settled,
}

/// The search for one target from one backup.
#[derive(Clone, Debug)]
pub struct TargetSearch {
    pub(super) kind: TargetKind,
    pub(super) inclusive: bool,
    pub(super) consistent: Lsn,
    pub(super) stop: Option<Stop>,
    pub(super) last_commit: Option<Transaction>,
    pub(super) last_end: Option<Transaction>,
    pub(super) passed: Option<ClockPassed>,
    pub(super) passes: Passes,
    pub(super) minimal: Option<MinimalWal>,
    pub(super) tablespaces: Vec<ReplayedTablespace>,
    pub(super) end: Lsn,
}

impl TargetSearch {
    /// A search for `target` from a backup that is consistent at `consistent`, its stop.
    pub fn new(target: &RecoveryTarget, consistent: Lsn) -> Self {
        let (kind, inclusive) = (target.kind.clone(), target.inclusive);
        Self {
            kind,
            inclusive,
            consistent,
            stop: None,
            last_commit: None,
            last_end: None,
            passed: None,
            passes: Passes::default(),
            minimal: None,
            tablespaces: Vec::new(),
            end: Lsn::ZERO,
        }
    }

    /// Takes any record's bounds. Events need not be given here too. Without the bounds of every record, a search for an LSN or for
    /// the end of a backup whose server was a standby stops at the first *event* from there on, which is later than PostgreSQL does.
    pub fn record(&mut self, start: Lsn, end: Lsn) -> Progress {
        if self.stop.is_none() {
            match self.kind {
                TargetKind::Lsn(target) if !self.inclusive && start >= target => self.found(StopAt::Before(start), end),
                TargetKind::Lsn(target) if self.inclusive && start >= target => self.found(StopAt::After(end), end),
                TargetKind::Immediate if start >= self.consistent => self.found(StopAt::Before(start), end),
                TargetKind::Immediate if end >= self.consistent => self.found(StopAt::After(end), end),
                _ => {}
            }
        }
        self.end = self.end.max(end);
        self.progress()
    }

    /// Takes the next event.
    pub fn event(&mut self, event: &WalEvent) -> Progress {
        let was_found = self.stop.is_some();
        self.record(event.start, event.end);
        let (start, end) = (event.start, event.end);
        match &event.kind {
            WalEventKind::Commit { xid, time } => {
                self.transaction(Transaction { xid: *xid, time: *time, start, end, committed: true }, was_found)
            }
            WalEventKind::Abort { xid, time } => {
                self.transaction(Transaction { xid: *xid, time: *time, start, end, committed: false }, was_found)
            }
            WalEventKind::RestorePoint { name, time } => {
                if matches!(&self.kind, TargetKind::RestorePoint(target) if target.as_str() == name) && self.stop.is_none() {
                    self.found(StopAt::After(end), end);
                }
                self.clock(ClockPassed { start, end, time: *time });
            }
            WalEventKind::TablespaceCreated { oid, location } if !location.is_empty() && self.replays(end, was_found) => {
                self.tablespaces.push(ReplayedTablespace { oid: *oid, location: location.clone(), lsn: start });
            }
            WalEventKind::EndOfRecovery { time, wal_level, .. } => {
                self.clock(ClockPassed { start, end, time: *time });
                self.wal_level(event, *wal_level, was_found);
            }
            WalEventKind::Checkpoint { redo, time, wal_level, .. } => {
                // Its time was read before its redo position was taken, and cut to the second, so the clock had reached it by then. What
                // ended behind that position ended later, or the clock was set back while the checkpoint ran: then it proves nothing.
                let nothing_since = self.last_end.is_none_or(|ended| ended.start < *redo);
                if let Some(time) = time.filter(|_| nothing_since) {
                    self.clock(ClockPassed { start, end, time });
                }
                self.wal_level(event, *wal_level, was_found);
            }
            WalEventKind::CheckpointRedo { wal_level } | WalEventKind::ParameterChange { wal_level } => {
                self.wal_level(event, Some(*wal_level), was_found);
            }
            _ => {}
        }
        self.progress()
    }

    /// What was found, all WAL before `end` having been read.
    pub fn finish(self, end: Lsn) -> SearchOutcome {
        let Self { tablespaces, last_commit, last_end, passed, minimal, .. } = self;
        let end = self.end.max(end);
        let Some(stop) = self.stop else {
            return SearchOutcome::NotFound { last_commit, last_end, end, passed, tablespaces, minimal };
        };
        let stop = Stop { tablespaces, minimal, clock: self.passes.report(), looked_to: end, ..stop };
        if stop.at.lsn() < self.consistent { SearchOutcome::BeforeConsistency(stop) } else { SearchOutcome::Found(stop) }
    }

    pub(super) fn progress(&self) -> Progress {
        match &self.stop {
            None => Progress::Searching,
            Some(stop) if stop.first_not_replayed.is_none() || self.passes.within() => Progress::Found,
            Some(_) => Progress::Settled,
        }
    }

    fn found(&mut self, at: StopAt, read_to: Lsn) {
        self.stop = Some(Stop { last_replayed: self.last_commit, ..Stop::new(at, read_to) });
    }

    /// Whether the record that ends at `end` is replayed. `was_found`: whether the stop lies before this record rather than at it.
    fn replays(&self, end: Lsn, was_found: bool) -> bool {
        self.stop.as_ref().is_none_or(|stop| !was_found && stop.at == StopAt::After(end))
    }

    fn transaction(&mut self, ended: Transaction, was_found: bool) {
        if self.stop.is_none() {
            match self.kind {
                TargetKind::Time(_) if self.after_target(ended.time) => self.found(StopAt::Before(ended.start), ended.end),
                TargetKind::Xid(xid) if ended.xid == xid && !self.inclusive => self.found(StopAt::Before(ended.start), ended.end),
                TargetKind::Xid(xid) if ended.xid == xid => self.found(StopAt::After(ended.end), ended.end),
                _ => {}
            }
        }
        let replayed = self.replays(ended.end, was_found);
        if replayed {
            self.passed = None;
            self.last_end = Some(ended);
            if ended.committed {
                self.last_commit = Some(ended);
            }
        }
        if !replayed && matches!(self.kind, TargetKind::Time(_)) {
            self.passes.transaction(ended, !self.after_target(ended.time));
        }
        if let Some(stop) = &mut self.stop {
            match replayed {
                true => stop.last_replayed = self.last_commit,
                false => drop(stop.first_not_replayed.get_or_insert(ended)),
            }
        }
    }

    fn wal_level(&mut self, event: &WalEvent, level: Option<u32>, was_found: bool) {
        const MINIMAL: u32 = 0;
        let Some(level) = level else { return };
        let replayed = self.replays(event.end, was_found);
        match &mut self.minimal {
            None if level == MINIMAL && replayed => {
                self.minimal = Some(MinimalWal { from: event.start, to: None, last_commit: self.last_commit });
            }
            Some(minimal) if level != MINIMAL => drop(minimal.to.get_or_insert(event.start)),
            _ => {}
        }
    }

    fn clock(&mut self, seen: ClockPassed) {
        if self.stop.is_none() && self.after_target(seen.time) {
            self.passed = Some(seen);
        }
    }

    pub(super) fn after_target(&self, time: PgTimestamp) -> bool {
        match self.kind {
            TargetKind::Time(target) if self.inclusive => time > target,
            TargetKind::Time(target) => time >= target,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::target::RestorePointName;

    fn at(micros: i64) -> PgTimestamp {
        PgTimestamp::from_micros(micros)
    }

    fn event(start: u64, kind: WalEventKind) -> WalEvent {
        WalEvent { start: Lsn::new(start), end: Lsn::new(start + 10), kind }
    }

    fn commit(start: u64, xid: u32, micros: i64) -> WalEvent {
        event(start, WalEventKind::Commit { xid, time: at(micros) })
    }

    fn abort(start: u64, xid: u32, micros: i64) -> WalEvent {
        event(start, WalEventKind::Abort { xid, time: at(micros) })
    }

    fn search(kind: TargetKind, inclusive: bool, consistent: u64, events: &[WalEvent]) -> SearchOutcome {
        let target = RecoveryTarget { inclusive, ..RecoveryTarget::new(kind) };
        let mut search = TargetSearch::new(&target, Lsn::new(consistent));
        for event in events {
            search.event(event);
        }
        search.finish(Lsn::new(1000))
    }

    /// Where it stops, the last commit replayed and the first transaction that is not.
    fn stop(kind: TargetKind, inclusive: bool, events: &[WalEvent]) -> (StopAt, Option<u32>, Option<u32>) {
        match search(kind, inclusive, 0, events) {
            SearchOutcome::Found(stop) => (stop.at, stop.last_replayed.map(|t| t.xid), stop.first_not_replayed.map(|t| t.xid)),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn times_stop_before_the_first_later_commit_or_abort() {
        let before = |lsn| StopAt::Before(Lsn::new(lsn));
        let events = [commit(100, 1, 50), commit(200, 2, 60), commit(300, 3, 60), abort(400, 4, 70), commit(500, 5, 80)];
        assert_eq!(stop(TargetKind::Time(at(60)), true, &events), (before(400), Some(3), Some(4)));
        assert_eq!(stop(TargetKind::Time(at(60)), false, &events), (before(200), Some(1), Some(2)));
        assert_eq!(stop(TargetKind::Time(at(75)), true, &events), (before(500), Some(3), Some(5)));
        assert!(matches!(search(TargetKind::Time(at(80)), true, 0, &events), SearchOutcome::NotFound { passed: None, .. }));
    }

    #[test]
    fn transactions_stop_after_or_before_their_own_end() {
        let events = [commit(100, 1, 50), abort(200, 2, 60), commit(300, 3, 60)];
        let xid = TargetKind::Xid;
        assert_eq!(stop(xid(1), true, &events), (StopAt::After(Lsn::new(110)), Some(1), Some(2)));
        assert_eq!(stop(xid(1), false, &events), (StopAt::Before(Lsn::new(100)), None, Some(1)));
        assert_eq!(stop(xid(2), true, &events), (StopAt::After(Lsn::new(210)), Some(1), Some(3)), "an abort is an end too");
        assert!(matches!(search(xid(9), true, 0, &events), SearchOutcome::NotFound { .. }));
    }

    #[test]
    fn positions_compare_with_where_a_record_begins() {
        let events = [commit(100, 1, 50), commit(110, 2, 60), commit(120, 3, 60)];
        let lsn = |value| TargetKind::Lsn(Lsn::new(value));
        assert_eq!(stop(lsn(110), true, &events), (StopAt::After(Lsn::new(120)), Some(2), Some(3)));
        assert_eq!(stop(lsn(110), false, &events), (StopAt::Before(Lsn::new(110)), Some(1), Some(2)));
        assert_eq!(stop(lsn(105), true, &events), (StopAt::After(Lsn::new(120)), Some(2), Some(3)), "within a record: the next one");
        assert!(matches!(search(lsn(121), true, 0, &events), SearchOutcome::NotFound { .. }));
    }

    #[test]
    fn records_without_events_stop_positions_too() {
        let mut search = TargetSearch::new(&RecoveryTarget::new(TargetKind::Lsn(Lsn::new(105))), Lsn::ZERO);
        assert_eq!(search.record(Lsn::new(100), Lsn::new(106)), Progress::Searching);
        assert_eq!(search.record(Lsn::new(106), Lsn::new(120)), Progress::Found);
        assert!(matches!(search.finish(Lsn::new(120)), SearchOutcome::Found(Stop { at: StopAt::After(end), .. }) if end == Lsn::new(120)));
    }

    #[test]
    fn restore_points_stop_after_the_first_of_the_name() {
        let mark = |start, name: &str| event(start, WalEventKind::RestorePoint { name: name.into(), time: at(1) });
        let events = [mark(100, "other"), mark(200, "it"), commit(300, 7, 3), mark(400, "it")];
        let name = TargetKind::RestorePoint(RestorePointName::parse("it").expect("a name"));
        for inclusive in [true, false] {
            assert_eq!(stop(name.clone(), inclusive, &events), (StopAt::After(Lsn::new(210)), None, Some(7)));
        }
    }

    #[test]
    fn immediate_stops_where_the_backup_is_consistent() {
        let events = [commit(100, 1, 50), event(200, WalEventKind::BackupEnd { start: Lsn::new(90) }), commit(210, 2, 60)];
        match search(TargetKind::Immediate, true, 210, &events) {
            SearchOutcome::Found(stop) => assert_eq!((stop.at, stop.last_replayed.map(|t| t.xid)), (StopAt::After(Lsn::new(210)), Some(1))),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn tablespaces_are_those_created_before_the_stop() {
        let created =
            |start, location: &str| event(start, WalEventKind::TablespaceCreated { oid: start as u32, location: location.into() });
        let events = [created(100, "/a"), created(200, ""), commit(300, 1, 50), created(400, "/b"), commit(500, 2, 60), created(600, "/c")];
        let found = |kind, inclusive| match search(kind, inclusive, 0, &events) {
            SearchOutcome::Found(Stop { tablespaces, .. }) | SearchOutcome::NotFound { tablespaces, .. } => {
                tablespaces.iter().map(|space| space.location.clone()).collect::<Vec<_>>()
            }
            other => panic!("{other:?}"),
        };
        assert_eq!(found(TargetKind::Latest, true), ["/a", "/b", "/c"], "one inside the data directory is none of them");
        assert_eq!(found(TargetKind::Xid(1), true), ["/a"]);
        assert_eq!(found(TargetKind::Time(at(55)), true), ["/a", "/b"]);
        assert_eq!(found(TargetKind::Lsn(Lsn::new(400)), true), ["/a", "/b"], "the record itself is replayed");
        assert_eq!(found(TargetKind::Lsn(Lsn::new(400)), false), ["/a"]);
    }

    #[test]
    fn a_stop_within_the_backup_is_no_stop() {
        let events = [commit(100, 1, 50), commit(200, 2, 60)];
        assert!(matches!(search(TargetKind::Time(at(55)), true, 201, &events), SearchOutcome::BeforeConsistency(_)));
        assert!(matches!(search(TargetKind::Time(at(55)), true, 200, &events), SearchOutcome::Found(_)));
        assert!(matches!(search(TargetKind::Xid(1), true, 200, &events), SearchOutcome::BeforeConsistency(_)));
    }

    #[test]
    fn commits_of_the_time_asked_for_that_come_after_the_stop_are_counted() {
        let events = [commit(100, 1, 50), commit(200, 2, 600), commit(300, 3, 55), abort(400, 4, 55)];
        match search(TargetKind::Time(at(60)), true, 0, &events) {
            SearchOutcome::Found(stop) => assert_eq!(stop.clock.map(|clock| clock.lost), Some(1)),
            other => panic!("{other:?}"),
        }
    }
}
