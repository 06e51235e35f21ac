//! PostgreSQL's checksum of a data page, and what a page that was read from under a running server is worth.
//!
//! The sum is FNV-1a in 32 lanes, folded into 16 bits and mixed with the block's number within its relation (`checksum_impl.h`). A page may be torn by
//! the server's write, or be newer than the backup's start; of both the WAL holds a whole image, so neither is damage. Which files have pages,
//! and who reads a page again before it is called bad, is not known here.

use crate::le::{u16_at, u32_at};
use crate::lsn::Lsn;

const LANES: usize = 32;
/// Bytes that all lanes take at once.
const ROW: usize = LANES * 4;
const PRIME: u32 = 16_777_619;
/// What the lanes begin with.
const BEGIN: [u32; LANES] = [
    0x5B1F_36E9,
    0xB852_5960,
    0x02AB_50AA,
    0x1DE6_6D2A,
    0x79FF_467A,
    0x9BB9_F8A3,
    0x217E_7CD2,
    0x83E1_3D2C,
    0xF8D4_474F,
    0xE39E_B970,
    0x42C6_AE16,
    0x9932_16FA,
    0x7B09_3B5D,
    0x98DA_FF3C,
    0xF718_902A,
    0x0B1C_9CDB,
    0xE58F_764B,
    0x1876_36BC,
    0x5D7B_3BB1,
    0xE73D_E7DE,
    0x92BE_C979,
    0xCCA6_C0B2,
    0x304A_0979,
    0x85AA_43D4,
    0x7831_25BB,
    0x6CA8_EAA2,
    0xE407_EAC6,
    0x4B5C_FC3E,
    0x9FBF_8C76,
    0x15CA_20BE,
    0xF2CA_9FD3,
    0x959B_D756,
];

const CHECKSUM_AT: usize = 8;
const UPPER_AT: usize = 14;

/// What a page is worth.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// It has the sum it says.
    Fine,
    /// It was never written: all zeros.
    New,
    /// It was changed behind the backup's start: WAL brings it whole, torn or not.
    Newer,
    /// It is not what the server wrote; or it was read while the server wrote it, and is another when it is read again.
    Bad,
}

/// The sum of a page whose block has this number in its relation, all segments counted.
///
/// A page has a multiple of 128 bytes; what is beyond the last is not summed.
pub fn checksum(page: &[u8], block: u32) -> u16 {
    let mut sums = BEGIN;
    let (rows, _) = page.as_chunks::<ROW>();
    if let Some((first, others)) = rows.split_first() {
        let mut first = *first;
        // The sum cannot be part of itself.
        first[CHECKSUM_AT..CHECKSUM_AT + 2].fill(0);
        take(&mut sums, &first);
        for row in others {
            take(&mut sums, row);
        }
    }
    for _ in 0..2 {
        take(&mut sums, &[0; ROW]);
    }
    let sum = sums.iter().fold(block, |folded, sum| folded ^ sum);
    // Below 2^16 by the remainder; never 0, which stands for no sum.
    (sum % 65_535 + 1) as u16
}

/// Written so that compilers make vectors of the lanes.
#[inline(always)]
fn take(sums: &mut [u32; LANES], row: &[u8; ROW]) {
    let (words, _) = row.as_chunks::<4>();
    for (sum, word) in sums.iter_mut().zip(words) {
        let mixed = *sum ^ u32::from_le_bytes(*word);
        *sum = mixed.wrapping_mul(PRIME) ^ (mixed >> 17);
    }
}

/// What a page is worth that was read while a backup ran which began at `start`.
pub fn verdict(page: &[u8], block: u32, start: Lsn) -> Verdict {
    let (Some(high), Some(low), Some(upper), Some(stored)) =
        (u32_at(page, 0), u32_at(page, 4), u16_at(page, UPPER_AT), u16_at(page, CHECKSUM_AT))
    else {
        return Verdict::Bad;
    };
    if upper == 0 && page.iter().all(|byte| *byte == 0) {
        return Verdict::New;
    }
    // Two halves, each in the machine's order, the high one first.
    if Lsn::new(u64::from(high) << 32 | u64::from(low)) >= start {
        return Verdict::Newer;
    }
    if checksum(page, block) == stored { Verdict::Fine } else { Verdict::Bad }
}

/// The blocks of a stretch of a relation's file that are bad, of which the first has the number `first`. Bytes behind the last whole page
/// are no page.
pub fn bad_blocks(bytes: &[u8], first: u32, block_size: usize, start: Lsn) -> Vec<u32> {
    if block_size == 0 {
        return Vec::new();
    }
    let numbered = (first..).zip(bytes.chunks_exact(block_size));
    numbered.filter(|(block, page)| verdict(page, *block, start) == Verdict::Bad).map(|(block, _)| block).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PAGE: usize = 8192;
    const LATER: Lsn = Lsn::new(u64::MAX);

    /// Blocks 0 and 1 of a table, written by PostgreSQL 15.18 with checksums, and block 131072 + 2 of another (its file `.1`).
    const PAGES: &[u8] = include_bytes!("../tests/fixtures/checksum-pages-15.bin");
    const NUMBERS: [u32; 3] = [0, 1, 131_074];

    #[test]
    fn postgresql_s_sums_are_found_again() {
        for (page, block) in PAGES.chunks(PAGE).zip(NUMBERS) {
            assert_eq!(Some(checksum(page, block)), u16_at(page, CHECKSUM_AT), "block {block}");
            assert_eq!(verdict(page, block, LATER), Verdict::Fine);
            assert_eq!(verdict(page, block + 1, LATER), Verdict::Bad, "a page in another's place");
        }
    }

    #[test]
    fn a_stretch_is_judged_page_by_page() {
        let mut stretch = PAGES[..2 * PAGE].to_vec();
        stretch.extend(vec![0; PAGE]);
        stretch.extend(&PAGES[..100]);
        assert_eq!(bad_blocks(&stretch, 0, PAGE, LATER), [0_u32; 0], "what is cut off at the end is no page");
        stretch[PAGE + 4000] ^= 4;
        stretch[2 * PAGE + 4000] ^= 4;
        assert_eq!(bad_blocks(&stretch, 0, PAGE, LATER), [1, 2], "a page with an empty header that is not empty is none");
        assert_eq!(bad_blocks(&stretch, 7, PAGE, LATER), [7, 8, 9]);
        assert_eq!(bad_blocks(&stretch, 0, 0, LATER), [0_u32; 0]);
    }

    #[test]
    fn what_wal_brings_anyway_is_not_judged() {
        let mut page = PAGES[..PAGE].to_vec();
        page[5000] ^= 1;
        let changed = Lsn::new(u64::from(u32_at(&page, 0).unwrap()) << 32 | u64::from(u32_at(&page, 4).unwrap()));
        assert_eq!(verdict(&page, 0, changed), Verdict::Newer);
        assert_eq!(verdict(&page, 0, Lsn::new(changed.get() + 1)), Verdict::Bad);
        assert_eq!(verdict(&[0; PAGE], 0, changed), Verdict::New);
    }

    proptest! {
        #[test]
        fn every_flipped_bit_is_found(bit in 0..PAGE * 8, which in 0..3_usize) {
            let mut page = PAGES[which * PAGE..][..PAGE].to_vec();
            page[bit / 8] ^= 1 << (bit % 8);
            prop_assert_eq!(verdict(&page, NUMBERS[which], LATER), Verdict::Bad);
        }

        #[test]
        fn any_bytes_are_answered(bytes in proptest::collection::vec(any::<u8>(), 0..600), size in 0..300_usize, block in any::<u32>()) {
            let _ = (verdict(&bytes, block, LATER), bad_blocks(&bytes, block.min(u32::MAX - 600), size, LATER));
        }
    }
}
