//! Where a stream goes on: a pure decision from what the server has, what its slot holds back and what is stored.
//!
//! The rule: never past anything that is not stored. The agent asks the server for WAL from the answered position; only if the server then
//! says that this WAL is gone is there a gap, and [`unstored`] says which positions it consists of.

use crate::history::TimelineHistory;
use crate::identity::TimelineId;
use crate::lsn::Lsn;
use crate::segment::{SegmentNumber, SegmentSize};

/// A position on a timeline.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Position {
    /// The timeline.
    pub timeline: TimelineId,
    /// The position.
    pub lsn: Lsn,
}

/// What is known before a stream begins.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Known<'a> {
    /// The history of the timeline the server is on.
    pub server: &'a TimelineHistory,
    /// Up to where the server has flushed WAL.
    pub flushed: Lsn,
    /// The slot's `restart_lsn`: the server keeps WAL from here. `None` without a slot or for one that never reserved.
    pub slot: Option<Lsn>,
    /// For timelines of that history, the end of the newest whole segment stored.
    pub stored: &'a [Position],
}

/// Where to begin, and what it means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Begin {
    /// The first position wanted; aligned to a segment.
    pub position: Position,
    /// Whether WAL of this history was stored before: if the server no longer has the WAL from here, that is a gap.
    pub continues: bool,
}

/// Where the stream has to begin so that nothing is left out.
///
/// From the slot's position if that lies before what is stored (segments that are stored already are then skipped, and holes filled), else
/// from the end of what is stored on the newest timeline of the server's history; for a cluster never seen before, from the slot's
/// position, or the server's own where there is no slot.
pub fn begin(known: &Known<'_>, size: SegmentSize) -> Begin {
    let newest_stored = known
        .stored
        .iter()
        .filter_map(|stored| {
            let end = known.server.leaves(stored.timeline)?;
            // What the old timeline wrote after it was left is not part of this history. Its segment with the switch point is wanted up to
            // that point: a whole segment of that number ends after it.
            Some(Position { timeline: stored.timeline, lsn: end.map_or(stored.lsn, |end| stored.lsn.min(end)) })
        })
        .max();
    let slot = known.slot.filter(|lsn| !lsn.is_zero());
    let lsn = match (slot, newest_stored) {
        (Some(slot), Some(stored)) => slot.min(stored.lsn),
        (Some(slot), None) => slot,
        (None, Some(stored)) => stored.lsn,
        (None, None) => known.flushed,
    };
    let timeline = match (slot, newest_stored) {
        (_, Some(stored)) if stored.lsn == lsn && Some(Some(lsn)) != known.server.leaves(stored.timeline) => stored.timeline,
        _ => known.server.timeline_at(lsn),
    };
    Begin { position: Position { timeline, lsn: size.align_down(lsn) }, continues: newest_stored.is_some() }
}

/// The search for the oldest segment that a server still has. Servers remove the oldest first, so half of what is in question is decided by each answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bisection {
    /// A segment that is removed.
    pub missing: SegmentNumber,
    /// A later one that is there: once nothing is left to ask, the oldest.
    pub there: SegmentNumber,
}

impl Bisection {
    /// The segment to ask the server for, if anything is in question.
    pub fn ask(&self) -> Option<SegmentNumber> {
        let between = self.there.get().saturating_sub(self.missing.get());
        (between > 1).then(|| SegmentNumber::new(self.missing.get() + between / 2))
    }

    /// What it said of that segment.
    pub fn answer(&mut self, asked: SegmentNumber, is_there: bool) {
        match is_there {
            true => self.there = asked,
            false => self.missing = asked,
        }
    }
}

/// The parts of `[from, to)` along `history` that none of the `stored` stretches cover, cut at timeline switches.
pub fn unstored(history: &TimelineHistory, from: Lsn, to: Lsn, stored: &[(TimelineId, Lsn, Lsn)]) -> Vec<(TimelineId, Lsn, Lsn)> {
    let mut missing = Vec::new();
    let mut at = from;
    while at < to {
        let timeline = history.timeline_at(at);
        let end_of_timeline = history.leaves(timeline).flatten().unwrap_or(Lsn::MAX).min(to);
        let covering = stored.iter().filter(|(tli, a, b)| *tli == timeline && *a <= at && at < *b).map(|(_, _, b)| *b).max();
        if let Some(end) = covering {
            at = end.min(end_of_timeline);
            continue;
        }
        let next_stored = stored.iter().filter(|(tli, a, _)| *tli == timeline && *a > at).map(|(_, a, _)| *a).min();
        let end = next_stored.unwrap_or(Lsn::MAX).min(end_of_timeline);
        missing.push((timeline, at, end));
        at = end;
    }
    missing
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: SegmentSize = SegmentSize::DEFAULT;
    const SEG: u64 = 16 << 20;

    fn tli(value: u32) -> TimelineId {
        TimelineId::new(value).expect("not zero")
    }

    fn at(timeline: u32, lsn: u64) -> Position {
        Position { timeline: tli(timeline), lsn: Lsn::new(lsn) }
    }

    fn history(timeline: u32, text: &str) -> TimelineHistory {
        TimelineHistory::parse(tli(timeline), text.as_bytes()).expect("a history")
    }

    fn begins(server: &TimelineHistory, slot: Option<u64>, stored: &[Position]) -> (Position, bool) {
        let known = Known { server, flushed: Lsn::new(9 * SEG + 5), slot: slot.map(Lsn::new), stored };
        let begin = begin(&known, SIZE);
        (begin.position, begin.continues)
    }

    #[test]
    fn a_new_cluster_begins_at_its_slot() {
        let one = TimelineHistory::root(tli(1));
        assert_eq!(begins(&one, Some(2 * SEG + 40), &[]), (at(1, 2 * SEG), false));
        assert_eq!(begins(&one, None, &[]), (at(1, 9 * SEG), false));
        assert_eq!(begins(&one, Some(0), &[]), (at(1, 9 * SEG), false), "0/0 is no position");
    }

    #[test]
    fn never_past_what_is_stored() {
        let one = TimelineHistory::root(tli(1));
        assert_eq!(begins(&one, Some(2 * SEG + 1), &[at(1, 5 * SEG)]), (at(1, 2 * SEG), true), "the slot holds older WAL: look for holes");
        assert_eq!(begins(&one, Some(8 * SEG), &[at(1, 5 * SEG)]), (at(1, 5 * SEG), true), "the slot ran ahead");
        assert_eq!(begins(&one, None, &[at(1, 5 * SEG)]), (at(1, 5 * SEG), true), "the slot is gone");
    }

    #[test]
    fn follows_the_server_to_its_new_timeline_from_the_old_ones_end() {
        let two = history(2, &format!("1\t0/{:X}\tpromoted\n", 6 * SEG + 100));
        assert_eq!(begins(&two, Some(6 * SEG + 100), &[at(1, 6 * SEG)]), (at(1, 6 * SEG), true));
        assert_eq!(begins(&two, Some(7 * SEG), &[at(1, 6 * SEG), at(2, 7 * SEG)]), (at(2, 7 * SEG), true));
    }

    #[test]
    fn an_old_timeline_that_went_on_does_not_count_beyond_the_switch() {
        let two = history(2, &format!("1\t0/{:X}\tpromoted\n", 6 * SEG + 100));
        assert_eq!(begins(&two, Some(8 * SEG), &[at(1, 9 * SEG)]), (at(2, 6 * SEG), true), "timeline 2 begins in segment 6");
        assert_eq!(begins(&two, Some(8 * SEG), &[at(3, 20 * SEG)]), (at(2, 8 * SEG), false), "timeline 3 is no ancestor");
    }

    #[test]
    fn the_oldest_segment_is_found_with_few_questions() {
        for oldest in 11..=1010 {
            let mut search = Bisection { missing: SegmentNumber::new(10), there: SegmentNumber::new(1010) };
            let mut questions = 0;
            while let Some(segment) = search.ask() {
                search.answer(segment, segment.get() >= oldest);
                questions += 1;
            }
            assert_eq!(search.there.get(), oldest);
            assert!(questions <= 10, "{questions} for {oldest}");
        }
        let nothing_between = Bisection { missing: SegmentNumber::new(4), there: SegmentNumber::new(4) };
        assert_eq!(nothing_between.ask(), None, "and none if it is known");
    }

    #[test]
    fn what_is_missing_is_cut_at_switches_and_stored_stretches() {
        let two = history(2, "1\t0/600\tpromoted\n");
        let missing = |from, to, stored: &[(u32, u64, u64)]| {
            let stored: Vec<_> = stored.iter().map(|(t, a, b)| (tli(*t), Lsn::new(*a), Lsn::new(*b))).collect();
            let missing = unstored(&two, Lsn::new(from), Lsn::new(to), &stored);
            missing.into_iter().map(|(t, a, b)| (t.get(), a.get(), b.get())).collect::<Vec<_>>()
        };
        assert_eq!(missing(0x400, 0x900, &[]), [(1, 0x400, 0x600), (2, 0x600, 0x900)]);
        assert_eq!(
            missing(0x400, 0x900, &[(1, 0x300, 0x500), (2, 0x700, 0x800)]),
            [(1, 0x500, 0x600), (2, 0x600, 0x700), (2, 0x800, 0x900)]
        );
        assert_eq!(missing(0x400, 0x900, &[(1, 0, 0x1000), (2, 0, 0x1000)]), []);
        assert_eq!(missing(0x900, 0x400, &[]), []);
    }
}
