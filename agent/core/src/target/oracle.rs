//! The search beside a replay that follows PostgreSQL's source line by line: random transactions at arbitrary times, every kind of target.

use proptest::prelude::*;

use super::clock::SAME_MOMENT;
use super::*;
use crate::event::{WalEvent, WalEventKind};

/// A name that restore points have.
const NAME: &str = "mark";

/// A record, as replay sees it.
#[derive(Clone, Copy, Debug)]
enum Act {
    Commit(u32),
    Abort(u32),
    Mark,
    Other,
}

#[derive(Clone, Copy, Debug)]
struct Rec {
    act: Act,
    /// Its time in microseconds, if it has one.
    time: i64,
    start: u64,
    end: u64,
}

impl Rec {
    fn event(&self) -> WalEvent {
        let time = PgTimestamp::from_micros(self.time);
        let kind = match self.act {
            Act::Commit(xid) => WalEventKind::Commit { xid, time },
            Act::Abort(xid) => WalEventKind::Abort { xid, time },
            Act::Mark => WalEventKind::RestorePoint { name: NAME.into(), time },
            Act::Other => WalEventKind::Other,
        };
        WalEvent { start: Lsn::new(self.start), end: Lsn::new(self.end), kind }
    }

    fn ends_transaction(&self) -> bool {
        matches!(self.act, Act::Commit(_) | Act::Abort(_))
    }

    fn commits(&self) -> bool {
        matches!(self.act, Act::Commit(_))
    }

    fn transaction(&self) -> Option<Transaction> {
        let xid = match self.act {
            Act::Commit(xid) | Act::Abort(xid) => xid,
            _ => return None,
        };
        let (start, end) = (Lsn::new(self.start), Lsn::new(self.end));
        Some(Transaction { xid, time: PgTimestamp::from_micros(self.time), start, end, committed: self.commits() })
    }
}

/// `recoveryStopsBefore`, with `reachedConsistency` as it is before the record.
fn stops_before(target: &RecoveryTarget, record: &Rec, consistent: bool) -> bool {
    if target.kind == TargetKind::Immediate && consistent {
        return true;
    }
    if let TargetKind::Lsn(lsn) = target.kind
        && !target.inclusive
        && record.start >= lsn.get()
    {
        return true;
    }
    let (Act::Commit(xid) | Act::Abort(xid)) = record.act else { return false };
    match target.kind {
        TargetKind::Xid(wanted) if !target.inclusive => xid == wanted,
        TargetKind::Time(time) if target.inclusive => record.time > time.micros(),
        TargetKind::Time(time) => record.time >= time.micros(),
        _ => false,
    }
}

/// `recoveryStopsAfter`, with `reachedConsistency` as it is after the record.
fn stops_after(target: &RecoveryTarget, record: &Rec, consistent: bool) -> bool {
    if matches!(target.kind, TargetKind::RestorePoint(_)) && matches!(record.act, Act::Mark) {
        return true;
    }
    if let TargetKind::Lsn(lsn) = target.kind
        && target.inclusive
        && record.start >= lsn.get()
    {
        return true;
    }
    if let (Act::Commit(xid) | Act::Abort(xid), TargetKind::Xid(wanted)) = (record.act, &target.kind)
        && target.inclusive
        && xid == *wanted
    {
        return true;
    }
    target.kind == TargetKind::Immediate && consistent
}

/// How many records PostgreSQL replays before it stops; `None` if it comes to the end.
fn replays(target: &RecoveryTarget, records: &[Rec], consistent: u64) -> Option<usize> {
    for (done, record) in records.iter().enumerate() {
        if stops_before(target, record, record.start >= consistent) {
            return Some(done);
        }
        if stops_after(target, record, record.end >= consistent) {
            return Some(done + 1);
        }
    }
    None
}

/// Records of varying length, one behind the other, at times that cross a few moments again and again.
fn records() -> impl Strategy<Value = Vec<Rec>> {
    let moment = prop_oneof![Just(0i64), Just(SAME_MOMENT * 3), Just(-SAME_MOMENT * 3)];
    let time = (moment, -3i64..4).prop_map(|(moment, around)| moment + around);
    let act = prop_oneof![4 => Just(0u8), 2 => Just(1u8), 1 => Just(2u8), 2 => Just(3u8)];
    prop::collection::vec((act, time, 1u64..5), 0..60).prop_map(|drawn| {
        let mut at = 800;
        let each = drawn.into_iter().zip(1u32..).map(|((act, time, length), xid)| {
            let start = at;
            at += length * 8;
            let act = [Act::Commit(xid), Act::Abort(xid), Act::Mark, Act::Other][usize::from(act)];
            Rec { act, time, start, end: at }
        });
        each.collect()
    })
}

fn kind() -> impl Strategy<Value = TargetKind> {
    let name = RestorePointName::parse(NAME).expect("a name");
    prop_oneof![
        4 => (-5i64..6).prop_map(|micros| TargetKind::Time(PgTimestamp::from_micros(micros))),
        1 => (790u64..1600).prop_map(|lsn| TargetKind::Lsn(Lsn::new(lsn))),
        1 => (1u32..61).prop_map(TargetKind::Xid),
        1 => Just(TargetKind::RestorePoint(name)),
        1 => Just(TargetKind::Immediate),
        1 => Just(TargetKind::Latest),
    ]
}

fn searched(target: &RecoveryTarget, records: &[Rec], consistent: u64, end: u64) -> SearchOutcome {
    let mut search = TargetSearch::new(target, Lsn::new(consistent));
    for record in records {
        search.event(&record.event());
    }
    search.finish(Lsn::new(end))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn stops_where_postgresql_stops(records in records(), kind in kind(), inclusive: bool, consistent in 0usize..12) {
        let target = RecoveryTarget { inclusive, ..RecoveryTarget::new(kind) };
        // Consistent at the start of some early record.
        let consistent = records.get(consistent).map_or(800, |record| record.start);
        let end = records.last().map_or(800, |record| record.end);
        let outcome = searched(&target, &records, consistent, end);
        let last_commit = |replayed: &[Rec]| replayed.iter().rev().find(|record| record.commits()).and_then(Rec::transaction);
        let Some(done) = replays(&target, &records, consistent) else {
            let SearchOutcome::NotFound { last_commit: found, last_end, .. } = outcome else {
                return Err(TestCaseError::fail(format!("it does not stop, and {outcome:?}")));
            };
            prop_assert_eq!(found, last_commit(&records));
            prop_assert_eq!(last_end, records.iter().rev().find_map(Rec::transaction));
            return Ok(());
        };
        let (replayed, rest) = records.split_at(done);
        let position = rest.first().map_or(end, |record| record.start);
        let (stop, early) = match outcome {
            SearchOutcome::Found(stop) => (stop, false),
            SearchOutcome::BeforeConsistency(stop) => (stop, true),
            other => return Err(TestCaseError::fail(format!("PostgreSQL stops at {position}, and {other:?}"))),
        };
        prop_assert_eq!(stop.at.lsn().get(), position);
        prop_assert_eq!(early, position < consistent);
        prop_assert_eq!(stop.last_replayed, last_commit(replayed));
        prop_assert_eq!(stop.first_not_replayed, rest.iter().find_map(Rec::transaction));

        let TargetKind::Time(time) = target.kind else {
            prop_assert_eq!(stop.clock, None);
            return Ok(());
        };
        let of_time = |record: &&Rec| record.commits() && (record.time < time.micros() || inclusive && record.time == time.micros());
        let lost = rest.iter().filter(of_time).count() as u64;
        prop_assert_eq!(stop.clock.as_ref().map_or(0, |clock| clock.lost), lost);
        let Some(clock) = stop.clock else { return Ok(()) };
        prop_assert!(clock.candidates.len() <= 8);
        prop_assert!(clock.candidates.windows(2).all(|pair| pair[0].lsn < pair[1].lsn && !pair[0].safe));
        for candidate in &clock.candidates {
            // What PostgreSQL replays when it is told `--lsn` of the candidate.
            let chosen = RecoveryTarget::new(TargetKind::Lsn(candidate.lsn));
            let Some(done) = replays(&chosen, &records, consistent) else {
                return Err(TestCaseError::fail(format!("{candidate:?} is not reached")));
            };
            let (with, without) = records.split_at(done);
            prop_assert_eq!(Some(candidate.last), last_commit(with));
            let behind_stop = &with[replayed.len()..];
            prop_assert_eq!(candidate.gained, behind_stop.iter().filter(of_time).count() as u64);
            prop_assert_eq!(candidate.lost, without.iter().filter(of_time).count() as u64);
            let later = behind_stop.iter().filter(|record| record.commits() && !of_time(record)).count() as u64;
            prop_assert_eq!(candidate.later, later);
            prop_assert_eq!(candidate.safe, candidate.lost == 0, "the safe one alone loses none");
        }
        // Set back, where a commit of the time asked for follows a time that is later by more than a moment.
        let mut highest = i64::MIN;
        let mut back = 0;
        for record in rest.iter().filter(|record| record.ends_transaction()) {
            if of_time(&record) {
                back = back.max(highest.saturating_sub(record.time));
                highest = i64::MIN;
            } else if record.time > time.micros() || !inclusive && record.time == time.micros() {
                highest = highest.max(record.time);
            }
        }
        prop_assert_eq!(clock.cause == Backwards::SetBack, back >= SAME_MOMENT);
        prop_assert_eq!(clock.candidates.iter().map(|candidate| candidate.back_micros).max(), Some(back));
    }
}
