//! Which segments were stored lately, and their hashes: so that archive_command's question about a segment the stream has stored is
//! answered without a request to the store.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};

use walkeep_core::SegmentName;

use crate::codec::Hash;

/// Segments remembered: the archiver is rarely further behind, and a forgotten one only costs a request.
const REMEMBERED: usize = 4096;

/// The memory, shared by the stream and the archive command's side.
#[derive(Debug, Default)]
pub struct Recent {
    state: Mutex<(HashMap<SegmentName, Hash>, VecDeque<SegmentName>)>,
}

impl Recent {
    /// `segment` is durable in the repository, with this content.
    pub fn note(&self, segment: SegmentName, hash: Hash) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (hashes, order) = &mut *state;
        if hashes.insert(segment, hash).is_none() {
            order.push_back(segment);
        }
        if order.len() > REMEMBERED
            && let Some(oldest) = order.pop_front()
        {
            hashes.remove(&oldest);
        }
    }

    /// The content with which `segment` was stored, if that was lately.
    pub fn hash_of(&self, segment: SegmentName) -> Option<Hash> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).0.get(&segment).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forgets_the_oldest_beyond_its_size() {
        let recent = Recent::default();
        let name = |number: usize| format!("00000001{:08X}{:08X}", number / 256, number % 256).parse::<SegmentName>().unwrap();
        for number in 0..=REMEMBERED {
            recent.note(name(number), [number as u8; 32]);
        }
        assert_eq!(recent.hash_of(name(0)), None);
        assert_eq!(recent.hash_of(name(REMEMBERED)), Some([REMEMBERED as u8; 32]));
    }
}
