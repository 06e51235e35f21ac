//! Which digests tell of the most WAL with the fewest reads.
//!
//! Digests of a window may be stored several times, each longer than the one before, as a window is written bit by bit; and every window of a
//! level is told of again one level up once it is over.

use std::collections::BTreeMap;

use crate::lsn::Lsn;
use crate::segment::{SegmentNumber, SegmentSize};

use super::digest::{DigestName, Level};

/// Of several digests of each window the one that tells most, in order of LSN.
pub fn best_of_each_window(names: &[DigestName], size: SegmentSize) -> Vec<DigestName> {
    let mut best: BTreeMap<SegmentNumber, DigestName> = BTreeMap::new();
    for name in names.iter().filter(|name| name.is_sound(size)) {
        let window = name.level.window(name.span(size).first).first;
        let longer = |other: &DigestName| name.to.bytes_since(name.from) > other.to.bytes_since(other.from);
        match best.get(&window) {
            Some(other) if !longer(other) => {}
            _ => drop(best.insert(window, *name)),
        }
    }
    best.into_values().collect()
}

/// The digests to read for everything that the given ones of one timeline tell: a higher one instead of those below it.
pub fn choose(names: &[DigestName], size: SegmentSize) -> Vec<DigestName> {
    let mut chosen: Vec<DigestName> = Vec::new();
    for level in Level::DOWNWARDS {
        let of_level: Vec<DigestName> = names.iter().copied().filter(|name| name.level == level).collect();
        let within = |name: &DigestName, higher: &DigestName| higher.from <= name.from && name.to <= higher.to;
        let new: Vec<DigestName> = best_of_each_window(&of_level, size)
            .into_iter()
            .filter(|name| !chosen.iter().any(|higher| higher.level > level && within(name, higher)))
            .collect();
        chosen.extend(new);
    }
    chosen.sort_by_key(|name| (name.from, name.to));
    chosen
}

/// From where on digests of the level below are of interest, given all of one level: where they begin to leave something out.
pub fn told_up_to(names: &[DigestName], size: SegmentSize) -> Option<Lsn> {
    let best = best_of_each_window(names, size);
    let mut told = best.first()?.to;
    for pair in best.windows(2) {
        if pair[1].from != told {
            break;
        }
        told = pair[1].to;
    }
    Some(told)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::TimelineId;

    const SIZE: SegmentSize = SegmentSize::DEFAULT;

    fn name(level: u8, first: u64, end: u64) -> DigestName {
        let at = |number| SegmentNumber::new(number).start(SIZE);
        DigestName { timeline: TimelineId::FIRST, level: Level::new(level).expect("a level"), from: at(first), to: at(end) }
    }

    #[test]
    fn the_longest_of_a_window_counts() {
        let names = [name(0, 3, 16), name(0, 3, 40), name(0, 3, 20), name(0, 64, 65), name(0, 60, 70)];
        assert_eq!(best_of_each_window(&names, SIZE), [name(0, 3, 40), name(0, 64, 65)], "one over a window's end is none");
    }

    #[test]
    fn higher_ones_stand_for_those_below() {
        let names = [name(0, 0, 64), name(0, 64, 128), name(1, 0, 2048), name(0, 2048, 2100), name(0, 1984, 2048)];
        assert_eq!(choose(&names, SIZE), [name(1, 0, 2048), name(0, 2048, 2100)]);
    }

    #[test]
    fn a_hole_in_a_level_is_looked_for_below() {
        let names = [name(1, 0, 2048), name(1, 2048, 4096), name(1, 6144, 8192)];
        assert_eq!(told_up_to(&names, SIZE), Some(SegmentNumber::new(4096).start(SIZE)));
        assert_eq!(told_up_to(&[], SIZE), None);
    }
}
