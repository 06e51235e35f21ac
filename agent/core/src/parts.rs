//! Parts of an unfinished segment, and how far they reach without a hole.

use crate::layout::PartName;

/// The parts, in order, that together hold the most bytes from offset 0 without a hole. Parts may adjoin or overlap (an agent that
/// was killed may store a stretch again, cut differently); each one in the answer adds bytes.
pub fn longest_chain(parts: &[PartName]) -> Vec<PartName> {
    let mut chain: Vec<PartName> = Vec::new();
    let mut reached = 0;
    // Greedy is best: whatever begins at or before the reached offset and goes furthest leaves the most choice.
    while let Some(next) = parts.iter().filter(|part| part.from <= reached && part.to > reached).max_by_key(|part| part.to) {
        reached = next.to;
        chain.push(*next);
    }
    chain
}

/// How many bytes from offset 0 the parts hold without a hole.
pub fn reach(parts: &[PartName]) -> u32 {
    longest_chain(parts).last().map_or(0, |part| part.to)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn part(from: u32, to: u32) -> PartName {
        PartName { segment: "000000010000000000000001".parse().expect("a name"), from, to, epoch: 1 }
    }

    #[test]
    fn a_hole_ends_the_chain() {
        assert_eq!(reach(&[]), 0);
        assert_eq!(reach(&[part(10, 20)]), 0);
        assert_eq!(reach(&[part(0, 10), part(10, 20), part(30, 40)]), 20);
        assert_eq!(longest_chain(&[part(0, 10), part(0, 15), part(5, 12), part(10, 20)]), vec![part(0, 15), part(10, 20)]);
    }

    proptest! {
        #[test]
        fn reaches_what_a_byte_map_reaches(parts in proptest::collection::vec((0u32..60, 1u32..20), 0..20)) {
            let parts: Vec<PartName> = parts.into_iter().map(|(from, length)| part(from, from + length)).collect();
            let mut map = [false; 100];
            for part in &parts {
                map[part.from as usize..part.to as usize].fill(true);
            }
            let expected = map.iter().take_while(|held| **held).count() as u32;
            prop_assert_eq!(reach(&parts), expected);
        }
    }
}
