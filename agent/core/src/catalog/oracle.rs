//! The catalog's answers compared with a naive reading of every byte, file by file, as PostgreSQL does it.
//!
//! The oracle knows no ranges: WAL is a row of cells, each a quarter of a segment; a stored file says for each of its cells which
//! timeline wrote it; replay opens files by PostgreSQL's rule and compares cell by cell with what the path should hold.

use std::collections::BTreeMap;

use chrono::DateTime;
use proptest::prelude::*;

use super::*;
use crate::layout::{GapName, PartName};
use crate::segment::SegmentNumber;

/// Cells of a segment.
pub(crate) const CELLS: u64 = 4;
const SEGMENT: u64 = 1 << 20;
const CELL: u64 = SEGMENT / CELLS;
/// Segments in play; the first is number 1, as PostgreSQL's.
const SEGMENTS: u64 = 8;
pub(crate) const END_CELL: u64 = (SEGMENTS + 1) * CELLS;

pub(crate) fn tli(value: u32) -> TimelineId {
    TimelineId::new(value).expect("not zero")
}

pub(crate) fn cell(index: u64) -> Lsn {
    Lsn::new(index * CELL)
}

/// A timeline: its parent and the cell at which it left it, and which of its files are stored.
#[derive(Clone, Debug)]
pub(crate) struct Branch {
    parent: u32,
    switch: u64,
    /// For each segment: whether it is stored whole, else how many cells its parts hold, with a hole after.
    files: Vec<(bool, u64, bool)>,
}

#[derive(Clone, Debug)]
pub(crate) struct World {
    branches: Vec<Branch>,
    /// Cells of a timeline that were written with `wal_level = minimal`.
    minimal: Option<(u32, u64, u64)>,
    /// Timeline, start and stop cell of each backup.
    pub backups: Vec<(u32, u64, u64)>,
}

pub(crate) fn world() -> impl Strategy<Value = World> {
    let file = prop_oneof![6 => Just((true, 0, false)), 2 => (Just(false), 0..=CELLS, any::<bool>())];
    let branch = (0u32..4, CELLS + 1..END_CELL, prop::collection::vec(file, SEGMENTS as usize))
        .prop_map(|(parent, switch, files)| Branch { parent, switch, files });
    let minimal = prop::option::weighted(0.2, (1u32..5, CELLS..END_CELL, 1u64..4));
    let backup = (1u32..5, CELLS..END_CELL, 1u64..5).prop_map(|(timeline, start, len)| (timeline, start, start + len));
    (prop::collection::vec(branch, 1..5), minimal, prop::collection::vec(backup, 0..4)).prop_map(|(mut branches, minimal, backups)| {
        for index in 0..branches.len() {
            // A timeline grows out of an older one, after that one began.
            let parent = branches[index].parent % (index as u32).max(1);
            let begins = if index == 0 || parent == 0 { CELLS } else { branches[parent as usize].switch };
            branches[index].parent = parent + 1;
            branches[index].switch = branches[index].switch.max(begins);
        }
        branches[0].switch = 0;
        World { branches, minimal: minimal.map(|(timeline, from, len)| (timeline, from, from + len)), backups }
    })
}

impl World {
    pub fn timelines(&self) -> u32 {
        self.branches.len() as u32
    }

    fn branch(&self, timeline: u32) -> &Branch {
        &self.branches[timeline as usize - 1]
    }

    /// The timelines of a history with the cell at which each begins, newest first.
    fn ancestry(&self, timeline: u32) -> Vec<(u32, u64)> {
        let mut row = vec![(timeline, self.branch(timeline).switch)];
        let mut at = timeline;
        while at != 1 {
            at = self.branch(at).parent;
            row.push((at, self.branch(at).switch));
        }
        row
    }

    /// Which timeline wrote a cell, in the history of `timeline`.
    fn writer(&self, timeline: u32, cell: u64) -> u32 {
        self.ancestry(timeline).iter().find(|(_, begins)| *begins <= cell).map_or(1, |(timeline, _)| *timeline)
    }

    /// How many cells of a segment a timeline's file offers, if there is a file.
    fn file(&self, timeline: u32, segment: u64) -> Option<u64> {
        let (whole, parts, _) = *self.branch(timeline).files.get(segment.checked_sub(1)? as usize)?;
        // A timeline has no file before the segment in which it began.
        if self.branch(timeline).switch / CELLS > segment {
            return None;
        }
        if whole { Some(CELLS) } else { (parts > 0).then_some(parts) }
    }

    /// The cells that parts of a timeline's last segment hold behind a hole.
    fn island(&self, timeline: u32) -> Option<std::ops::Range<u64>> {
        let last = (1..=SEGMENTS).rev().find(|segment| self.file(timeline, *segment).is_some())?;
        let (whole, cells, island) = self.branch(timeline).files[last as usize - 1];
        let begins = last * CELLS + cells + 1;
        (!whole && island && cells + 1 < CELLS).then_some(begins..(last + 1) * CELLS)
    }

    /// Replays from a cell along the history of `timeline`, and says before which cell it ends and whether it was then about to read
    /// a cell of another history, rather than none.
    pub fn replay(&self, timeline: u32, from: u64) -> (u64, bool) {
        let ancestry = self.ancestry(timeline);
        let (mut at, mut newest_read) = (from, 0);
        loop {
            let writer = self.writer(timeline, at);
            if self.minimal.is_some_and(|(on, from, to)| on == writer && (from..to).contains(&at)) {
                return (at, false);
            }
            let segment = at / CELLS;
            let asked = ancestry.iter().filter(|(_, begins)| begins / CELLS <= segment).map(|(timeline, _)| *timeline);
            let opened = asked.take_while(|asked| *asked >= newest_read).find_map(|asked| Some((asked, self.file(asked, segment)?)));
            let Some((opened, cells)) = opened else { return (at, false) };
            if cells <= at % CELLS {
                return (at, false);
            }
            if self.writer(opened, at) != writer {
                return (at, true);
            }
            newest_read = opened;
            at += 1;
        }
    }

    pub fn history(&self, timeline: u32) -> TimelineHistory {
        let mut ancestry = self.ancestry(timeline);
        ancestry.reverse();
        let lines = ancestry.windows(2).map(|pair| format!("{}\t{}\tno reason\n", pair[0].0, cell(pair[1].1)));
        TimelineHistory::parse(tli(timeline), lines.collect::<String>().as_bytes()).expect("a history")
    }

    pub fn catalog(&self) -> Catalog {
        self.built(|index, _| (index as i64, index as i64 + 1))
    }

    /// The same with backups, none of them held, that ended when the cell of their stop was written.
    pub fn timed_catalog(&self, moment: impl Fn(u64) -> DateTime<chrono::Utc>) -> Catalog {
        let seconds = |index: u64| (moment(index) - DateTime::from_timestamp(1_795_219_200, 0).expect("a time")).num_seconds();
        let mut catalog = self.built(|_, stop| (seconds(stop) - 1, seconds(stop)));
        catalog.backups.iter_mut().for_each(|backup| backup.keep = None);
        // Two with one name would be one object.
        let mut names = std::collections::BTreeSet::new();
        catalog.backups.retain(|backup| names.insert(backup.id.clone()));
        catalog
    }

    /// `seconds` says when a backup began and ended, of its number and the cell of its stop.
    fn built(&self, seconds: impl Fn(usize, u64) -> (i64, i64)) -> Catalog {
        let size = SegmentSize::new(SEGMENT).expect("a size");
        let mut builder = Catalog::builder("main".parse().expect("a name"), SystemIdentifier::new(7), size);
        for timeline in 1..=self.timelines() {
            builder.history(self.history(timeline));
            for segment in 1..=SEGMENTS {
                let name = SegmentNumber::new(segment).name(tli(timeline), size);
                match (self.file(timeline, segment), self.branch(timeline).files[segment as usize - 1]) {
                    (None, _) => {}
                    (Some(_), (true, ..)) => builder.object(&ObjectName::Wal(WalFileName::Segment(name)), 100),
                    (Some(cells), (_, _, island)) => {
                        let mut part = |from: u64, to: u64| {
                            let (from, to) = ((from * CELL) as u32, (to * CELL) as u32);
                            builder.object(&ObjectName::Part(PartName { segment: name, from, to, epoch: 1 }), 10);
                        };
                        part(cells / 2, cells);
                        part(0, cells.div_ceil(2));
                        // Behind a hole: given to nobody.
                        if island && cells + 1 < CELLS {
                            part(cells + 1, CELLS);
                        }
                    }
                }
            }
        }
        if let Some((timeline, from, to)) = self.minimal {
            let name = GapName { timeline: tli(timeline), from: cell(from), to: cell(to) };
            let recorded_at = DateTime::from_timestamp(0, 0).expect("a time");
            builder.gap(GapRecord { name, cause: GapCause::MinimalWal, recorded_at, closed_at: None });
        }
        for (index, (timeline, start, stop)) in self.backups.iter().enumerate() {
            let timeline = (*timeline).min(self.timelines());
            builder.backup(crate::backup::tests::record(timeline, cell(*start).get(), cell(*stop).get(), seconds(index, *stop)));
        }
        builder.build()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn coverage_is_what_replay_reads(world in world(), timeline in 1u32..5, from in CELLS..END_CELL, len in 1u64..40) {
        let catalog = world.catalog();
        let timeline = timeline.min(world.timelines());
        let path = world.history(timeline);
        let (reached, _) = world.replay(timeline, from);
        let reach = catalog.reach(&path, cell(from));
        prop_assert_eq!(reach.to, cell(reached));
        let to = from + len;
        match catalog.coverage(&path, cell(from), cell(to)) {
            Ok(files) => {
                prop_assert!(to <= reached);
                let segments: Vec<u64> = files.iter().map(|f| f.segment.number(catalog.segment_size()).expect("a number").get()).collect();
                prop_assert_eq!(segments, (from / CELLS..=(to - 1) / CELLS).collect::<Vec<_>>());
            }
            Err(missing) => {
                prop_assert!(to > reached);
                prop_assert_eq!(missing.at, cell(reached));
            }
        }
    }

    #[test]
    fn the_end_of_wal_is_where_replay_ends_by_itself(world in world(), timeline in 1u32..5, from in CELLS..END_CELL) {
        let timeline = timeline.min(world.timelines());
        let (reached, strayed) = world.replay(timeline, from);
        let reach = world.catalog().reach(&world.history(timeline), cell(from));
        if reached > from && strayed {
            prop_assert!(!reach.missing.is_end_of_wal(), "PostgreSQL would read on in another history");
        }
        // Behind the end nothing of this history may be stored under its own timeline, nor behind a hole in its last segment.
        let stored = |at: u64| {
            let writer = world.writer(timeline, at);
            let given = world.file(writer, at / CELLS).is_some_and(|cells| at % CELLS < cells);
            given || world.island(writer).is_some_and(|island| island.contains(&at))
        };
        let more = (reached..END_CELL).find(|at| stored(*at));
        if reach.missing.is_end_of_wal() {
            prop_assert_eq!(more, None);
        } else if reached > from {
            let forbidden = reach.missing.gap.is_some();
            prop_assert!(strayed || more.is_some() || forbidden, "a plain end was taken for a hole");
        }
    }

    #[test]
    fn windows_are_what_replay_reaches(world in world(), timeline in 1u32..5) {
        let timeline = timeline.min(world.timelines());
        let (catalog, path) = (world.catalog(), world.history(timeline));
        let (windows, unusable) = catalog.windows(&path);
        for backup in catalog.backups().iter().filter(|backup| catalog.is_on(backup, &path)) {
            let (reached, _) = world.replay(timeline, backup.start_lsn.get() / CELL);
            let window = windows.iter().find(|window| window.backups.contains(&backup.id));
            prop_assert_eq!(window.is_none(), cell(reached) < backup.stop_lsn);
            prop_assert_eq!(window.is_none(), unusable.contains(&backup.id));
            if let Some(window) = window {
                prop_assert_eq!(window.latest, cell(reached));
                prop_assert!(window.earliest.lsn <= backup.stop_lsn);
            }
        }
    }
}

#[test]
fn a_hundred_thousand_segments_are_a_few_ranges() {
    let size = SegmentSize::DEFAULT;
    let mut builder = Catalog::builder("main".parse().expect("a name"), SystemIdentifier::new(7), size);
    for number in (1..100_001).filter(|number| *number != 50_000) {
        builder.object(&ObjectName::Wal(WalFileName::Segment(SegmentNumber::new(number).name(tli(1), size))), 1);
    }
    let catalog = builder.build();
    let path = TimelineHistory::root(tli(1));
    assert_eq!(catalog.stored_ranges(tli(1)).len(), 2);
    assert_eq!(catalog.holes(tli(1)).len(), 1);
    assert_eq!(catalog.frontier(tli(1)), Some(SegmentNumber::new(100_001).start(size)));
    let mut answers = BTreeMap::new();
    for number in 1..100_000 {
        let reach = catalog.reach(&path, SegmentNumber::new(number).start(size));
        *answers.entry(reach.to).or_insert(0) += 1;
    }
    assert_eq!(answers.len(), 2, "each answer is one step: {answers:?}");
    assert_eq!(
        catalog.coverage(&path, SegmentNumber::new(50_001).start(size), SegmentNumber::new(100_001).start(size)).expect("whole").len(),
        50_000
    );
}
