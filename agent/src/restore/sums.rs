//! CRC-32C of files that are written in pieces, in any order, by several threads: what PostgreSQL's `backup_manifest` wants to know.
//!
//! Sums of neighbouring pieces are joined by arithmetic, so nothing is read twice.

use std::collections::BTreeMap;

/// The sums of a file's pieces.
#[derive(Debug, Default)]
pub struct Sums {
    /// By where they begin: where they end, and their sum. Neighbours are one.
    pieces: BTreeMap<u64, (u64, u32)>,
}

impl Sums {
    /// Adds a piece, which has `length` bytes and this sum.
    pub fn add(&mut self, offset: u64, length: u64, crc32c: u32) {
        // A batch of which a piece was damaged is written once more.
        if self.pieces.range(..=offset).next_back().is_some_and(|(_, (end, _))| *end >= offset + length) {
            return;
        }
        let (mut start, mut end, mut sum) = (offset, offset + length, crc32c);
        if let Some((before, (at, first))) = self.pieces.range(..offset).next_back().map(|(before, piece)| (*before, *piece))
            && at == offset
        {
            self.pieces.remove(&before);
            (start, sum) = (before, crc32c::crc32c_combine(first, sum, length as usize));
        }
        if let Some((behind, second)) = self.pieces.remove(&end) {
            sum = crc32c::crc32c_combine(sum, second, (behind - end) as usize);
            end = behind;
        }
        self.pieces.insert(start, (end, sum));
    }

    /// The sum of the file, once all of its `size` bytes were added.
    pub fn of(&self, size: u64) -> Option<u32> {
        if size == 0 {
            return Some(0);
        }
        self.pieces.get(&0).filter(|(end, _)| *end == size).map(|(_, sum)| *sum)
    }
}

/// The sum of so many zeros.
pub fn zeros(mut length: u64) -> u32 {
    const ZEROS: [u8; 8192] = [0; 8192];
    let mut sum = 0;
    while length > 0 {
        let step = length.min(ZEROS.len() as u64);
        sum = crc32c::crc32c_append(sum, &ZEROS[..step as usize]);
        length -= step;
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn in_any_order(bytes in prop::collection::vec(any::<u8>(), 1..2000), cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8), turn in any::<prop::sample::Index>()) {
            let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len())).chain([0, bytes.len()]).collect();
            at.sort_unstable();
            at.dedup();
            let mut pieces: Vec<_> = at.windows(2).map(|pair| pair[0]..pair[1]).collect();
            let half = turn.index(pieces.len());
            pieces.rotate_left(half);
            let mut sums = Sums::default();
            let again = pieces[0].clone();
            for piece in pieces {
                prop_assert_eq!(sums.of(bytes.len() as u64), None);
                sums.add(piece.start as u64, piece.len() as u64, crc32c::crc32c(&bytes[piece]));
            }
            prop_assert_eq!(sums.of(bytes.len() as u64), Some(crc32c::crc32c(&bytes)));
            sums.add(again.start as u64, again.len() as u64, crc32c::crc32c(&bytes[again]));
            prop_assert_eq!(sums.of(bytes.len() as u64), Some(crc32c::crc32c(&bytes)), "what is written once more changes nothing");
        }
    }

    #[test]
    fn of_zeros() {
        assert_eq!(zeros(20_000), crc32c::crc32c(&[0; 20_000]));
        assert_eq!((zeros(0), Sums::default().of(0)), (0, Some(0)));
    }
}
