//! Where the server's clock ran backwards around a time that is asked for.
//!
//! PostgreSQL stops at the first commit or abort past the time. If the clock went back later, commits behind that stop carry times up
//! to the one asked for too, and are lost by it. Here they are put together into positions that can be chosen, each by its LSN. That
//! sessions which commit at the same moment write their records in another order than they read the clock is normal, and told apart
//! from a clock that was set back. What to choose is a person's decision: the clock told two stories, and only the order is certain.

use serde::Serialize;

use crate::lsn::Lsn;
use crate::time::PgTimestamp;

use super::Transaction;

/// Times so little apart belong to one moment: a session reads the clock a little before it writes its commit. Microseconds. A busy
/// server was seen to take milliseconds; one that is stopped in between takes longer, and a clock that is set back by so little changes
/// nothing that a person could tell.
pub const SAME_MOMENT: i64 = 5_000_000;

/// Positions offered at the most. The last one is always among them.
const CANDIDATES: usize = 8;

/// Why commits of the time asked for lie behind the stop.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Backwards {
    /// Sessions committed at the same moment.
    SameMoment,
    /// The server's clock was set back.
    SetBack,
}

/// A position behind PostgreSQL's own stop, after the last of some commits of the time asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct ClockCandidate {
    /// `--lsn` of this stops after that commit.
    pub lsn: Lsn,
    /// That commit.
    pub last: Transaction,
    /// Commits of the time asked for that it has and PostgreSQL's own stop has not.
    pub gained: u64,
    /// Commits of the time asked for that follow even behind it, as far as WAL was read.
    pub lost: u64,
    /// Commits whose time is later than the one asked for, and which come along.
    pub later: u64,
    /// How it came that they lie behind the stop.
    pub cause: Backwards,
    /// By how many microseconds the clock went back.
    pub back_micros: i64,
    /// Whether it loses nothing that was committed, by any of the clock's times, up to the one asked for.
    pub safe: bool,
}

/// What the clock did behind the stop.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct ClockReport {
    /// Commits of the time asked for that come after PostgreSQL's stop, as far as WAL was read.
    pub lost: u64,
    /// The worst of the causes.
    pub cause: Backwards,
    /// The positions that can be chosen, in WAL order. The last one is the safe one.
    pub candidates: Vec<ClockCandidate>,
    /// Further positions, for which there was no room before the last.
    pub left_out: u64,
}

/// Collects them, fed with the ends of transactions from PostgreSQL's stop on.
#[derive(Clone, Debug, Default)]
pub(super) struct Passes {
    candidates: Vec<ClockCandidate>,
    left_out: u64,
    gained: u64,
    later: u64,
    /// The highest time since the last commit of the time asked for.
    highest: Option<PgTimestamp>,
    /// Whether the newest end of a transaction was of the time asked for.
    within: bool,
}

impl Passes {
    /// Takes the end of a transaction that is not replayed; `of_time`: its time is up to the one asked for.
    pub(super) fn transaction(&mut self, ended: Transaction, of_time: bool) {
        self.within = of_time;
        if !of_time {
            self.highest = self.highest.max(Some(ended.time));
            self.later += u64::from(ended.committed);
            return;
        }
        if !ended.committed {
            return;
        }
        self.gained += 1;
        let back_micros = self.highest.take().map_or(0, |highest| highest.micros().saturating_sub(ended.time.micros()).max(0));
        let cause = if back_micros < SAME_MOMENT { Backwards::SameMoment } else { Backwards::SetBack };
        let (gained, later) = (self.gained, self.later);
        let now = ClockCandidate { lsn: ended.start, last: ended, gained, lost: 0, later, cause, back_micros, safe: false };
        let full = self.candidates.len() >= CANDIDATES;
        match self.candidates.last_mut() {
            Some(last) if cause == Backwards::SameMoment || full => {
                self.left_out += u64::from(cause == Backwards::SetBack);
                let back_micros = last.back_micros.max(back_micros);
                let cause = if last.cause == Backwards::SetBack { last.cause } else { cause };
                *last = ClockCandidate { back_micros, cause, ..now };
            }
            _ => self.candidates.push(now),
        }
    }

    /// Takes transactions that are all of a later time: how many committed, and the highest of their times.
    pub(super) fn all_later(&mut self, commits: u64, highest: PgTimestamp) {
        self.within = false;
        self.highest = self.highest.max(Some(highest));
        self.later += commits;
    }

    /// Whether commits of the time asked for may follow at once: WAL is worth reading on.
    pub(super) fn within(&self) -> bool {
        self.within
    }

    /// What was found; `None` if nothing lies behind the stop.
    pub(super) fn report(mut self) -> Option<ClockReport> {
        let lost = self.gained;
        for candidate in &mut self.candidates {
            candidate.lost = lost - candidate.gained;
        }
        self.candidates.last_mut()?.safe = true;
        let set_back = self.candidates.iter().any(|candidate| candidate.cause == Backwards::SetBack);
        let cause = if set_back { Backwards::SetBack } else { Backwards::SameMoment };
        Some(ClockReport { lost, cause, candidates: self.candidates, left_out: self.left_out })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ends of transactions, `(seconds, committed)` at LSN 1, 2, ...; the time asked for is 100 s.
    fn report(ends: &[(i64, bool)]) -> Option<ClockReport> {
        let mut passes = Passes::default();
        for (number, (seconds, committed)) in (1u64..).zip(ends) {
            let time = PgTimestamp::from_micros(seconds * 1_000_000);
            let (start, end) = (Lsn::new(number), Lsn::new(number + 1));
            passes.transaction(Transaction { xid: number as u32, time, start, end, committed: *committed }, *seconds <= 100);
        }
        passes.report()
    }

    #[test]
    fn a_clock_that_only_runs_forwards_gives_nothing() {
        assert_eq!(report(&[(101, true), (102, false), (150, true)]), None);
        assert_eq!(report(&[(101, true), (99, false)]), None, "what aborted is not missed");
    }

    #[test]
    fn sessions_of_one_moment_are_no_clock_that_was_set_back() {
        let report = report(&[(101, true), (100, true), (102, true), (99, true), (103, true)]).expect("a report");
        assert_eq!((report.lost, report.cause, report.candidates.len()), (2, Backwards::SameMoment, 1));
        let only = report.candidates[0];
        assert_eq!((only.lsn, only.gained, only.lost, only.later, only.back_micros, only.safe), (Lsn::new(4), 2, 0, 2, 3_000_000, true));
    }

    #[test]
    fn each_pass_of_the_clock_is_a_candidate_and_the_last_is_safe() {
        let ends = [(7200, true), (7300, true), (90, true), (95, true), (120, false), (3600, true), (60, true), (130, true)];
        let report = report(&ends).expect("a report");
        assert_eq!((report.lost, report.cause, report.left_out), (3, Backwards::SetBack, 0));
        let told = |c: &ClockCandidate| (c.lsn.get(), c.gained, c.lost, c.later, c.back_micros / 1_000_000, c.safe);
        assert_eq!(report.candidates.iter().map(told).collect::<Vec<_>>(), [(4, 2, 1, 2, 7210, false), (7, 3, 0, 3, 3540, true)]);
    }

    #[test]
    fn the_list_is_bounded_and_keeps_the_safe_one() {
        let ends: Vec<_> = (0..40).map(|n| (if n % 2 == 0 { 500 } else { 50 }, true)).collect();
        let report = report(&ends).expect("a report");
        assert_eq!((report.candidates.len(), report.left_out), (CANDIDATES, 12));
        let safe = report.candidates[CANDIDATES - 1];
        assert_eq!((safe.lsn, safe.safe, safe.gained, safe.later), (Lsn::new(40), true, 20, 20));
    }
}
