//! Whether a server's WAL continues what is stored directly before it, where no byte of the two can be compared.
//!
//! A server that was put back to an older copy of its data directory writes other WAL on the same timeline. Where it still has the WAL in which the
//! two histories part, that is compared. Where it has removed that, the records tell: each says where the one before it begins, and one that goes on
//! over the seam has a checksum over both its sides.
//!
//! It is as good a proof as PostgreSQL itself has when it replays: two histories whose last records before the seam begin at the very same place
//! are not told apart.

use crate::decoder::{DecodeError, Decoder};
use crate::lsn::Lsn;
use crate::segment::{SegmentNumber, SegmentSize};

/// The place at which stored WAL ends and a server's is to go on.
#[derive(Debug)]
pub struct Seam {
    decoder: Decoder,
    /// Where the last record begins of which something is stored.
    last: Lsn,
}

/// What the records say.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// The server's WAL continues what is stored.
    Continues,
    /// It does not.
    Parts {
        /// Where the last record begins of which something is stored: replay can come up to here.
        from: Lsn,
        /// What does not fit.
        why: Misfit,
    },
}

/// What does not fit.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Misfit {
    /// Server's and stored WAL cannot be read on as one.
    #[error(transparent)]
    Unreadable(#[from] DecodeError),
    /// No record of the stored WAL leads up to the seam.
    #[error("the stored WAL ends at {0}")]
    EndsBefore(Lsn),
}

impl Seam {
    /// Behind the stored WAL from this segment on, which is shown next.
    pub fn behind(first: SegmentNumber, size: SegmentSize) -> Self {
        let start = first.start(size);
        Self { decoder: Decoder::new(start, size), last: start }
    }

    /// Takes the stored WAL, segment by segment up to the seam. What cannot be read proves nothing.
    pub fn stored(&mut self, mut bytes: &[u8]) -> Result<(), DecodeError> {
        while let Some(record) = self.decoder.next_record(&mut bytes)? {
            self.last = record.start;
        }
        if let Some((start, _)) = self.decoder.unfinished() {
            self.last = start;
        }
        Ok(())
    }

    /// Whether a whole record was seen, so that the next one's link can be proven. One record may be longer than many segments.
    pub fn has_record(&self) -> bool {
        self.decoder.records() > 0
    }

    /// Takes what the server sends from the seam on, until there is a verdict: the first whole record brings it.
    pub fn offered(&mut self, mut bytes: &[u8]) -> Option<Verdict> {
        let from = self.last;
        let why = match self.decoder.next_record(&mut bytes) {
            Ok(Some(_)) => return Some(Verdict::Continues),
            Ok(None) => Misfit::EndsBefore(self.decoder.end()?),
            Err(error) => error.into(),
        };
        Some(Verdict::Parts { from, why })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use super::*;
    use crate::le::u32_at;
    use crate::record::{HEADER_SIZE, checksum};

    /// Segments 6 to C; see `core/tests/decoder.rs`. A record of 2.5 MB begins with segment 9, covers A and ends in B; 6, 7 and 8 end by a switch.
    static WAL: LazyLock<Vec<u8>> =
        LazyLock::new(|| zstd::decode_all(&include_bytes!("../tests/fixtures/wal-15.bin")[..]).expect("the fixture is zstd"));

    fn size() -> SegmentSize {
        SegmentSize::new(1 << 20).expect("a valid size")
    }

    fn segment(number: u64) -> &'static [u8] {
        let at = ((number - 6) << 20) as usize;
        &WAL[at..at + (1 << 20)]
    }

    /// The seam behind these stored segments.
    fn behind(stored: std::ops::RangeInclusive<u64>) -> Seam {
        let mut seam = Seam::behind(SegmentNumber::new(*stored.start()), size());
        stored.for_each(|number| seam.stored(segment(number)).expect("it can be read"));
        seam
    }

    /// Shows all that the server has, in small pieces.
    fn verdict(mut seam: Seam, bytes: &[u8]) -> Option<Verdict> {
        bytes.chunks(1000).find_map(|piece| seam.offered(piece))
    }

    /// Where the last record begins that begins before the end of this segment.
    fn last_record(number: u64) -> Lsn {
        let (mut decoder, mut last, mut bytes) =
            (Decoder::new(SegmentNumber::new(number).start(size()), size()), Lsn::ZERO, segment(number));
        while let Some(record) = decoder.next_record(&mut bytes).expect("it can be read") {
            last = record.start;
        }
        decoder.unfinished().map_or(last, |(start, _)| start)
    }

    /// The segment with another link back in its first record, as another server would have written it.
    fn linked_elsewhere(number: u64) -> Vec<u8> {
        let mut bytes = segment(number).to_vec();
        let start = SegmentNumber::new(number).start(size());
        let mut decoder = Decoder::new(start, size());
        let mut all = segment(number);
        let record = decoder.next_record(&mut all).expect("it can be read").expect("a record begins in it");
        let at = record.start.bytes_since(start) as usize;
        let length = u32_at(&bytes, at).expect("a length") as usize;
        let previous = at + 8;
        bytes[previous..previous + 8].copy_from_slice(&(record.previous.get() - 8).to_le_bytes());
        let crc = checksum(&bytes[at..at + length]);
        bytes[at + HEADER_SIZE - 4..at + HEADER_SIZE].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    #[test]
    fn a_history_that_goes_on_is_proven_by_its_first_record() {
        for number in [6, 7, 11] {
            assert_eq!(verdict(behind(number..=number), segment(number + 1)), Some(Verdict::Continues), "behind {number}");
        }
        assert_eq!(verdict(behind(7..=7), &segment(8)[..60]), None, "nothing is said before a whole record is there");
    }

    #[test]
    fn a_link_that_leads_elsewhere_parts_them() {
        // A segment that was ended by a switch: what follows begins with a record.
        let offered = linked_elsewhere(7);
        match verdict(behind(6..=6), &offered) {
            Some(Verdict::Parts { from, why: Misfit::Unreadable(DecodeError::Link { expected, .. }) }) => {
                assert_eq!((from, expected), (last_record(6), last_record(6)));
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_record_over_the_seam_must_go_on() {
        let begins = last_record(9);
        // To its last byte, behind segments in which no record ends.
        let mut seam = behind(8..=10);
        assert_eq!(seam.offered(&segment(11)[..8192]), None, "its checksum is not known before its end");
        assert_eq!(seam.offered(&segment(11)[8192..]), Some(Verdict::Continues));
        assert!(!behind(9..=10).has_record(), "what is before must be looked at too");
        assert!(behind(8..=10).has_record());
        // Other bytes of the same length.
        let mut other = segment(11).to_vec();
        other[4096] ^= 1;
        match verdict(behind(8..=10), &other) {
            Some(Verdict::Parts { from, why: Misfit::Unreadable(DecodeError::Checksum { lsn, .. }) }) => {
                assert_eq!((from, lsn), (begins, begins))
            }
            verdict => panic!("{verdict:?}"),
        }
        // A page that begins with a record, or goes on with another one's rest.
        for remaining in [0, 1000u32] {
            let mut other = segment(11).to_vec();
            other[16..20].copy_from_slice(&remaining.to_le_bytes());
            match verdict(behind(8..=10), &other) {
                Some(Verdict::Parts { from, .. }) => assert_eq!(from, begins),
                verdict => panic!("{verdict:?}"),
            }
        }
    }

    #[test]
    fn a_page_that_goes_on_with_nothing_that_is_stored() {
        let mut other = segment(7).to_vec();
        // XLP_FIRST_IS_CONTRECORD, and the rest's length.
        other[2] |= 1;
        other[16..20].copy_from_slice(&100u32.to_le_bytes());
        let verdict = verdict(behind(6..=6), &other);
        assert!(matches!(verdict, Some(Verdict::Parts { why: Misfit::Unreadable(DecodeError::Continuation { .. }), .. })), "{verdict:?}");
    }

    #[test]
    fn stored_wal_that_ends_before_the_seam_is_continued_by_nothing() {
        // The fixture's last segment ends with what was never written.
        let mut seam = behind(12..=12);
        let ends = Lsn::new(0xC0_3460);
        assert!(matches!(seam.offered(&[0; 64]), Some(Verdict::Parts { why: Misfit::EndsBefore(at), .. }) if at == ends));
        let mut damaged = segment(7).to_vec();
        damaged[20_000] ^= 1;
        assert!(Seam::behind(SegmentNumber::new(7), size()).stored(&damaged).is_err(), "what cannot be read proves nothing");
    }
}
