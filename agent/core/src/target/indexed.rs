//! The search for a target by what an index tells of segments, in place of their records.
//!
//! Everything that decides a stop is read from records. A summary only shows that nothing of that lies in its segments, and what of them
//! counts: the last transaction, the first one behind the stop, tablespaces.

use crate::index::Summary;
use crate::journal::Happening;
use crate::lsn::Lsn;

use super::TargetKind;
use super::search::{Progress, TargetSearch};

impl TargetSearch {
    /// Whether the records of these segments need not be looked at one by one, coming next.
    pub fn suffices(&self, summary: &Summary) -> bool {
        match self.progress() {
            Progress::Searching => self.does_not_stop_in(summary) && self.tells_no_other_level(summary),
            Progress::Found | Progress::Settled => self.is_all_later(summary) && !self.ends_minimal(summary),
        }
    }

    fn does_not_stop_in(&self, summary: &Summary) -> bool {
        let ended = summary.transactions.as_ref();
        let is_point = |wanted: &str| {
            let named = |what: &Happening| matches!(what, Happening::RestorePoint { name } if name == wanted);
            summary.entries_left_out > 0 || summary.entries.iter().any(|entry| named(&entry.what))
        };
        let before = |position: Lsn| summary.records.to <= position;
        match &self.kind {
            TargetKind::Latest => true,
            TargetKind::Lsn(target) => before(*target),
            // A record that ends there stops it too.
            TargetKind::Immediate => summary.records.to < self.consistent,
            TargetKind::Time(_) => !summary.highest_time().is_some_and(|time| self.after_target(time)),
            TargetKind::Xid(xid) => !ended.is_some_and(|ended| ended.may_have(*xid)),
            TargetKind::RestorePoint(name) => !is_point(name.as_str()),
        }
    }

    /// Where `wal_level` is minimal, and where it is no more, is told by records.
    fn tells_no_other_level(&self, summary: &Summary) -> bool {
        summary.wal_levels.iter().all(|at| at.level != 0) && !self.ends_minimal(summary)
    }

    fn ends_minimal(&self, summary: &Summary) -> bool {
        let is_minimal = self.minimal.as_ref().is_some_and(|minimal| minimal.to.is_none());
        is_minimal && summary.wal_levels.iter().any(|at| at.level != 0)
    }

    /// Behind the stop: whether no transaction in it is of the time asked for.
    fn is_all_later(&self, summary: &Summary) -> bool {
        let is_time = matches!(self.kind, TargetKind::Time(_));
        !is_time || summary.transactions.as_ref().is_none_or(|ended| self.after_target(ended.lowest))
    }

    /// Takes a summary that [suffices](TargetSearch::suffices) in place of its records.
    pub fn pass(&mut self, summary: &Summary) -> Progress {
        self.end = self.end.max(summary.records.to);
        let ended = summary.transactions.as_ref();
        match &mut self.stop {
            None => {
                if let Some(ended) = ended {
                    self.passed = None;
                    self.last_end = Some(ended.last);
                    self.last_commit = ended.last_commit.or(self.last_commit);
                }
                self.tablespaces.extend(summary.tablespaces.iter().cloned());
            }
            Some(stop) => {
                if let Some(ended) = ended {
                    stop.first_not_replayed.get_or_insert(ended.first);
                    if matches!(self.kind, TargetKind::Time(_)) {
                        self.passes.all_later(ended.commits, ended.highest);
                    }
                }
            }
        }
        self.progress()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::event::{WalEvent, WalEventKind};
    use crate::index::{Digest, Level, Summary};
    use crate::journal::Entry;
    use crate::target::{RecoveryTarget, RestorePointName};
    use crate::{PgTimestamp, SegmentNumber, SegmentSize, TimelineId};

    const SIZE: u64 = 1 << 20;

    fn kinds() -> impl Strategy<Value = WalEventKind> {
        let time = || (0i64..40).prop_map(PgTimestamp::from_micros);
        let location = String::from("/x");
        prop_oneof![
            6 => (1u32..30, time()).prop_map(|(xid, time)| WalEventKind::Commit { xid, time }),
            2 => (1u32..30, time()).prop_map(|(xid, time)| WalEventKind::Abort { xid, time }),
            1 => ("[ab]", time()).prop_map(|(name, time)| WalEventKind::RestorePoint { name, time }),
            1 => (0u32..2).prop_map(|wal_level| WalEventKind::ParameterChange { wal_level }),
            1 => Just(WalEventKind::TablespaceCreated { oid: 1, location }),
            1 => (time(), proptest::option::of(0u32..2)).prop_map(|(time, wal_level)| WalEventKind::Checkpoint {
                redo: Lsn::ZERO, timeline: TimelineId::FIRST, shutdown: false, wal_level, time: Some(time)
            }),
            4 => Just(WalEventKind::Other),
        ]
    }

    fn targets() -> impl Strategy<Value = RecoveryTarget> {
        let name = |text: String| RestorePointName::parse(&text).map(TargetKind::RestorePoint);
        let kind = prop_oneof![
            4 => (0i64..42).prop_map(|time| TargetKind::Time(PgTimestamp::from_micros(time))),
            2 => (1u32..32).prop_map(TargetKind::Xid),
            2 => (0u64..9 * SIZE).prop_map(|lsn| TargetKind::Lsn(Lsn::new(lsn))),
            1 => "[abc]".prop_map(move |text| name(text).expect("a name")),
            1 => Just(TargetKind::Immediate),
            1 => Just(TargetKind::Latest),
        ];
        (kind, any::<bool>()).prop_map(|(kind, inclusive)| RecoveryTarget { inclusive, ..RecoveryTarget::new(kind) })
    }

    /// The records of some segments, one list a segment.
    fn wal() -> impl Strategy<Value = Vec<Vec<WalEvent>>> {
        let place = |segment: usize, kinds: Vec<WalEventKind>| -> Vec<WalEvent> {
            let at = |number: usize| Lsn::new(segment as u64 * SIZE + 64 * number as u64);
            kinds.into_iter().enumerate().map(|(number, kind)| WalEvent { start: at(number), end: at(number + 1), kind }).collect()
        };
        proptest::collection::vec(proptest::collection::vec(kinds(), 1..6), 1..8)
            .prop_map(move |segments| segments.into_iter().enumerate().map(|(number, kinds)| place(number, kinds)).collect())
    }

    fn summary(number: usize, events: &[WalEvent]) -> Summary {
        let number = SegmentNumber::new(number as u64);
        let mut summary = Summary::empty(number, Lsn::new(number.get() * SIZE));
        for event in events {
            summary.record(event.start, event.end);
            summary.event(event);
            if let WalEventKind::RestorePoint { name, time } = &event.kind {
                let what = Happening::RestorePoint { name: name.clone() };
                summary.entries.push(Entry { lsn: event.start, end: event.end, time: Some(*time), xid: None, what });
            }
        }
        summary
    }

    proptest! {
        /// Whatever is told by summaries, of single segments or of two at once, the search finds what the records say.
        #[test]
        fn summaries_stand_for_their_records(wal in wal(), target in targets(), consistent in 0u64..3 * SIZE, pairs: bool) {
            let mut by_records = TargetSearch::new(&target, Lsn::new(consistent));
            wal.iter().flatten().for_each(|event| _ = by_records.event(event));
            let mut by_index = TargetSearch::new(&target, Lsn::new(consistent));
            let mut passed = 0;
            let (width, size) = (if pairs { 2 } else { 1 }, SegmentSize::new(SIZE).expect("a size"));
            for (number, segments) in wal.chunks(width).enumerate() {
                let summaries: Vec<Summary> = segments.iter().enumerate().map(|(at, events)| summary(number * width + at, events)).collect();
                let folded = Digest::of(TimelineId::FIRST, Level::SEGMENTS, summaries, size).and_then(|digest| digest.folded()).expect("some");
                if by_index.suffices(&folded) {
                    by_index.pass(&folded);
                    passed += 1;
                } else {
                    segments.iter().flatten().for_each(|event| _ = by_index.event(event));
                }
            }
            let end = Lsn::new(20 * SIZE);
            prop_assert_eq!(by_index.finish(end), by_records.finish(end), "{} passed", passed);
            prop_assert!(target.kind != TargetKind::Latest || wal.iter().flatten().any(|event| matches!(
                event.kind, WalEventKind::ParameterChange { .. } | WalEventKind::Checkpoint { .. }
            )) || passed > 0, "it is of use");
        }
    }
}
