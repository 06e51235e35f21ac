//! Parts of an unfinished segment: how far they reach without a hole, and what to store next.
//!
//! Which names are joined and which are dropped is decided here, for every reader alike; contents are the readers' business.

use crate::layout::PartName;
use crate::segment::SegmentName;

/// This many neighbours of one size class become one object of the next, so that an hour at one part a second leaves at most 24.
const FAN: usize = 6;
/// Larger roll-ups, which cost a request and their bytes once more, wait until there are more parts than this.
const MANY: usize = 18;
/// A roll-up of at most this many bytes is stored together with the new bytes at its end: it costs no request of its own.
const FOLD: u32 = 256 << 10;

/// A part as a link of a chain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Link {
    /// The part.
    pub part: PartName,
    /// Up to this offset in the segment its bytes count.
    pub to: u32,
}

/// The parts, in order, that together hold the most bytes from offset 0 without a hole. Parts may adjoin or overlap (an agent that
/// was killed may store a stretch again, cut differently); each one in the answer adds bytes.
///
/// A later epoch's writer compared what was stored with what its server sends, up to where its own parts begin. So from there on the parts of
/// earlier epochs count no more: whoever wrote them was no longer the writer.
pub fn longest_chain(parts: &[PartName]) -> Vec<Link> {
    let links: Vec<Link> = links(parts).collect();
    let mut chain: Vec<Link> = Vec::new();
    let mut reached = 0;
    // Greedy is best: whatever begins at or before the reached offset and goes furthest leaves the most choice.
    while let Some(next) = links.iter().filter(|link| link.part.from <= reached && link.to > reached).max_by_key(|link| link.to) {
        reached = next.to;
        chain.push(*next);
    }
    chain
}

/// Each part, and up to where its bytes count.
fn links(parts: &[PartName]) -> impl Iterator<Item = Link> {
    let counts_to = |part: &PartName| {
        let later = parts.iter().filter(|other| other.epoch > part.epoch).map(|other| other.from);
        later.min().map_or(part.to, |begins| part.to.min(begins))
    };
    parts.iter().map(move |part| Link { part: *part, to: counts_to(part) })
}

/// Bytes of a segment that parts hold behind a hole.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Apart {
    /// Where the hole begins: so many bytes are there from offset 0.
    pub reached: u32,
    /// Where it ends: here parts begin again.
    pub resumes: u32,
    /// Where the last part ends that counts.
    pub to: u32,
}

/// What the parts hold behind the first hole; `None` where they end with [`longest_chain`]. What a later epoch cut off is no more than that.
///
/// Parts are stored side by side: while one writer is at work a hole may be there for a moment, and one that was killed, its server with it, may leave it.
/// What was acknowledged lies before it then. Whoever finds one looks again until the parts of before are reached up to [`Apart::to`]; a hole that stays is
/// taken for lost WAL, as nobody can tell the two apart.
pub fn apart(parts: &[PartName]) -> Option<Apart> {
    let reached = reach(parts);
    let behind: Vec<Link> = links(parts).filter(|link| link.part.from > reached && link.to > link.part.from).collect();
    let resumes = behind.iter().map(|link| link.part.from).min()?;
    let to = behind.iter().map(|link| link.to).max()?;
    Some(Apart { reached, resumes, to })
}

/// How many bytes from offset 0 the parts hold without a hole.
pub fn reach(parts: &[PartName]) -> u32 {
    longest_chain(parts).last().map_or(0, |link| link.to)
}

/// An object to store, and the parts that nobody needs once it is stored.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Step {
    /// What to store.
    pub part: PartName,
    /// What it holds besides new bytes.
    pub replaces: Vec<PartName>,
}

/// The parts of the segment being written, as one writer stores them.
#[derive(Clone, Debug)]
pub struct Ledger {
    segment: SegmentName,
    epoch: u32,
    live: Vec<Live>,
    /// Up to here the ledger reached when it last put an object in the place of earlier epochs' parts.
    took_over: u32,
}

#[derive(Clone, Copy, Debug)]
struct Live {
    part: PartName,
    /// Where its bytes end to count.
    to: u32,
    /// How often it was rolled up.
    level: u8,
}

impl Ledger {
    /// For a segment of which `chain` is stored; it may be empty.
    pub fn new(segment: SegmentName, epoch: u32, chain: &[Link]) -> Self {
        let live = chain.iter().map(|link| Live { part: link.part, to: link.to, level: 0 }).collect();
        Self { segment, epoch, live, took_over: 0 }
    }

    /// Everything before this offset is stored or on its way.
    pub fn reached(&self) -> u32 {
        self.live.last().map_or(0, |live| live.to)
    }

    /// The object for the bytes up to `to`, which must lie behind [`Ledger::reached`]. Where small parts before them are due to be rolled up
    /// it reaches back over those.
    pub fn append(&mut self, to: u32) -> Step {
        let from = self.reached();
        self.live.push(Live { part: PartName { segment: self.segment, from, to, epoch: self.epoch }, to, level: 0 });
        let new = self.live.len() - 1;
        let mut step = Step { part: self.live[new].part, replaces: Vec::new() };
        while let Some(first) = self.live.len().checked_sub(FAN).filter(|first| to - self.live[*first].part.from <= FOLD) {
            let Some(merged) = self.merged(first) else { break };
            step.replaces.splice(0..0, self.live[first..].iter().map(|live| live.part).filter(|part| *part != step.part));
            step.part = merged.part;
            self.live.truncate(first);
            self.live.push(merged);
        }
        self.note_takeover(&step);
        step
    }

    /// The object that replaces a row of neighbours, if there are too many parts. Of what was handed over, everything before `acknowledged` is
    /// stored.
    ///
    /// An object in the place of earlier epochs' parts cuts off what they hold behind it. What took their place there is stored first: objects are
    /// acknowledged in the order in which they reach on.
    pub fn roll_up(&mut self, acknowledged: u32) -> Option<Step> {
        if self.live.len() <= MANY {
            return None;
        }
        // The smallest that there is: the last ones are.
        let (first, merged) = (0..=self.live.len() - FAN).rev().find_map(|first| Some((first, self.merged(first)?)))?;
        let row = first..first + FAN;
        if row.end < self.live.len()
            && self.live[row.clone()].iter().any(|live| self.is_earlier(&live.part))
            && acknowledged <= self.took_over
        {
            return None;
        }
        let replaces = self.live.splice(row, [merged]).map(|live| live.part).collect();
        let step = Step { part: merged.part, replaces };
        self.note_takeover(&step);
        Some(step)
    }

    fn is_earlier(&self, part: &PartName) -> bool {
        part.epoch != self.epoch
    }

    fn note_takeover(&mut self, step: &Step) {
        if step.replaces.iter().any(|part| self.is_earlier(part)) {
            self.took_over = self.reached();
        }
    }

    /// All that is live: what the whole segment replaces.
    pub fn live(&self) -> impl Iterator<Item = PartName> {
        self.live.iter().map(|live| live.part)
    }

    /// The neighbours from `first` on as one, if they are of one size class.
    fn merged(&self, first: usize) -> Option<Live> {
        let row = self.live.get(first..first + FAN)?;
        let (begin, end) = (row.first()?, row.last()?);
        let part = PartName { segment: self.segment, from: begin.part.from, to: end.to, epoch: self.epoch };
        row.iter().all(|live| live.level == end.level).then_some(Live { part, to: end.to, level: end.level + 1 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn segment() -> SegmentName {
        "000000010000000000000001".parse().expect("a name")
    }

    fn of_epoch(epoch: u32, from: u32, to: u32) -> PartName {
        PartName { segment: segment(), from, to, epoch }
    }

    fn part(from: u32, to: u32) -> PartName {
        of_epoch(1, from, to)
    }

    fn names(parts: &[PartName]) -> Vec<PartName> {
        longest_chain(parts).iter().map(|link| link.part).collect()
    }

    #[test]
    fn a_hole_ends_the_chain() {
        assert_eq!(reach(&[]), 0);
        assert_eq!(reach(&[part(10, 20)]), 0);
        assert_eq!(reach(&[part(0, 10), part(10, 20), part(30, 40)]), 20);
        assert_eq!(names(&[part(0, 10), part(0, 15), part(5, 12), part(10, 20)]), [part(0, 15), part(10, 20)]);
    }

    #[test]
    fn a_later_writer_cuts_off_the_earlier_one() {
        let (old, new) = (|from, to| of_epoch(1, from, to), |from, to| of_epoch(2, from, to));
        assert_eq!(reach(&[old(0, 10), new(10, 20)]), 20, "it goes on where the other ended");
        let overtaken = [old(0, 10), old(10, 30), new(10, 20)];
        assert_eq!(names(&overtaken), [old(0, 10), new(10, 20)]);
        assert_eq!(reach(&overtaken), 20, "what the other stored behind that is not the archive's");
        let within = longest_chain(&[old(0, 15), new(10, 20)]);
        assert_eq!(within, [Link { part: old(0, 15), to: 10 }, Link { part: new(10, 20), to: 20 }]);
        assert_eq!(reach(&[old(0, 10), new(15, 20)]), 10, "a hole stays a hole");
        assert_eq!(reach(&[old(0, 10), new(0, 5)]), 5);
    }

    #[test]
    fn what_lies_behind_a_hole_is_told_from_what_was_cut_off() {
        let (old, new) = (|from, to| of_epoch(1, from, to), |from, to| of_epoch(2, from, to));
        let hole = |reached, resumes, to| Some(Apart { reached, resumes, to });
        assert_eq!((apart(&[]), apart(&[old(0, 10), old(10, 20), old(5, 8)])), (None, None));
        assert_eq!(apart(&[old(0, 10), old(20, 30), old(40, 50)]), hole(10, 20, 50));
        assert_eq!(apart(&[old(10, 20)]), hole(0, 10, 20), "without a beginning");
        assert_eq!(apart(&[old(0, 10), old(20, 30), new(10, 15)]), None, "a later writer went on before it");
        assert_eq!(apart(&[old(0, 10), new(20, 30)]), hole(10, 20, 30));
        assert_eq!(
            apart(&[old(0, 10), old(15, 18), new(20, 30)]),
            hole(10, 15, 30),
            "what the earlier one stored lies before the later one's"
        );
    }

    #[test]
    fn an_hour_at_one_part_a_second() {
        let (mut ledger, mut stored, mut objects) = (Ledger::new(segment(), 1, &[]), BTreeSet::new(), 0);
        for second in 1..=3600 {
            let steps: Vec<Step> = [Some(ledger.append(second * 4000)), ledger.roll_up(second * 4000)].into_iter().flatten().collect();
            for step in steps {
                objects += 1;
                stored.insert(step.part);
                step.replaces.iter().for_each(|part| assert!(stored.remove(part), "{part:?} was never stored"));
            }
            assert!(stored.len() <= 24, "{} after {second} s", stored.len());
        }
        assert_eq!(reach(&Vec::from_iter(stored)), 14_400_000);
        // 6 * 6 * 4000 bytes fit into one request with the new bytes; only the larger roll-ups cost one of their own.
        assert!(objects <= 3620, "{objects}");
    }

    #[test]
    fn an_earlier_writers_parts_are_rolled_up_too() {
        let stored: Vec<PartName> = (0..5).map(|at| of_epoch(1, at * 10, at * 10 + 10)).collect();
        let mut ledger = Ledger::new(segment(), 2, &longest_chain(&stored));
        assert_eq!(ledger.reached(), 50);
        assert_eq!(ledger.append(60), Step { part: of_epoch(2, 0, 60), replaces: stored });
    }

    #[test]
    fn an_earlier_writers_row_waits_for_what_took_the_place_of_the_next() {
        const PART: u32 = 300_000;
        let stored: Vec<PartName> = (0..24).map(|at| of_epoch(1, at * PART, at * PART + PART)).collect();
        let mut ledger = Ledger::new(segment(), 2, &longest_chain(&stored));
        ledger.append(25 * PART);
        let last = ledger.roll_up(24 * PART).expect("too many");
        assert_eq!(last.part, of_epoch(2, 19 * PART, 25 * PART));
        ledger.append(26 * PART);
        // Stored before the last one, it would cut off what that has not yet taken the place of.
        assert_eq!((ledger.roll_up(24 * PART), ledger.roll_up(25 * PART)), (None, None));
        assert_eq!(ledger.roll_up(26 * PART).map(|step| step.part), Some(of_epoch(2, 13 * PART, 19 * PART)));
    }

    proptest! {
        #[test]
        fn reaches_what_a_byte_map_reaches(parts in proptest::collection::vec((0u32..60, 1u32..20, 1u32..4), 0..20)) {
            let parts: Vec<PartName> = parts.into_iter().map(|(from, length, epoch)| of_epoch(epoch, from, from + length)).collect();
            let mut map = [false; 100];
            for part in &parts {
                let end = parts.iter().filter(|other| other.epoch > part.epoch).map(|other| other.from).min().unwrap_or(u32::MAX);
                (part.from..part.to.min(end)).for_each(|at| map[at as usize] = true);
            }
            let expected = map.iter().take_while(|held| **held).count() as u32;
            prop_assert_eq!(reach(&parts), expected);
            let behind = (expected as usize..100).filter(|at| map[*at]);
            let held = behind.clone().min().zip(behind.max()).map(|(first, last)| (expected, first as u32, last as u32 + 1));
            prop_assert_eq!(apart(&parts).map(|apart| (apart.reached, apart.resumes, apart.to)), held);
        }

        /// Whatever the sizes, and wherever a writer was killed and went on: all is there, nothing is taken away that is needed.
        #[test]
        fn a_ledger_keeps_everything(sizes in proptest::collection::vec((1u32..300_000, 0u8..10), 1..120)) {
            let mut ledger = Ledger::new(segment(), 1, &[]);
            let mut stored: BTreeSet<PartName> = BTreeSet::new();
            let (mut at, mut killed) = (0, 0);
            for (size, fate) in sizes {
                at += size;
                let steps: Vec<Step> = [Some(ledger.append(at)), ledger.roll_up(u32::MAX)].into_iter().flatten().collect();
                for step in steps {
                    prop_assert!(step.part.to <= at && stored.insert(step.part));
                    // Killed between a put and the removals: the next one finds both.
                    if fate == 0 {
                        continue;
                    }
                    stored.retain(|part| !step.replaces.contains(part));
                }
                let listed: Vec<PartName> = stored.iter().copied().collect();
                prop_assert_eq!((reach(&listed), apart(&listed)), (at, None));
                if fate == 0 {
                    killed += 1;
                    ledger = Ledger::new(segment(), 1 + killed, &longest_chain(&listed));
                    prop_assert_eq!(ledger.reached(), at);
                }
            }
            prop_assert!(ledger.live().count() <= 24);
        }

        /// One that is taken away of what one writer stored, not the last one, leaves a hole that is found.
        #[test]
        fn a_part_that_is_lost_leaves_a_hole(sizes in proptest::collection::vec(1u32..300_000, 2..60), lost in any::<prop::sample::Index>()) {
            let mut ledger = Ledger::new(segment(), 1, &[]);
            let mut at = 0;
            for size in sizes {
                at += size;
                ledger.append(at);
                ledger.roll_up(u32::MAX);
            }
            let mut live: Vec<PartName> = ledger.live().collect();
            prop_assume!(live.len() > 1);
            let gone = live.remove(lost.index(live.len() - 1));
            prop_assert_eq!(apart(&live), Some(Apart { reached: gone.from, resumes: gone.to, to: at }));
        }

        /// Objects are stored side by side and acknowledged in order. Whichever of those under way come to be stored first: all that was acknowledged is
        /// reached.
        #[test]
        fn nothing_acknowledged_is_out_of_reach_while_others_are_stored(
            sizes in proptest::collection::vec((1u32..300_000, 0u8..40), 1..200),
            window in 1usize..6,
            seed in any::<u64>(),
        ) {
            let mut random = seed;
            let mut ledger = Ledger::new(segment(), 1, &[]);
            let mut stored: BTreeSet<PartName> = BTreeSet::new();
            let mut under_way: Vec<Step> = Vec::new();
            let (mut at, mut acknowledged, mut epoch) = (0, 0, 1);
            for (size, fate) in sizes {
                at += size;
                under_way.extend([Some(ledger.append(at)), ledger.roll_up(acknowledged)].into_iter().flatten());
                for _ in 0..under_way.len() / 2 {
                    random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    stored.insert(under_way[(random >> 33) as usize % under_way.len()].part);
                    let reached = reach(&Vec::from_iter(stored.iter().copied()));
                    prop_assert!(reached >= acknowledged, "{reached} of {acknowledged}: {under_way:?}");
                }
                while under_way.len() >= window || under_way.first().is_some_and(|first| stored.contains(&first.part)) {
                    let done = under_way.remove(0);
                    stored.insert(done.part);
                    stored.retain(|part| !done.replaces.contains(part));
                    acknowledged = acknowledged.max(done.part.to);
                }
                if fate == 0 {
                    // Killed; what was under way is stored or not.
                    under_way.clear();
                    epoch += 1;
                    let chain = longest_chain(&Vec::from_iter(stored.iter().copied()));
                    ledger = Ledger::new(segment(), epoch, &chain);
                    at = ledger.reached();
                }
            }
        }
    }
}
