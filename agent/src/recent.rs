//! Which segments were stored lately, and their hashes: so that archive_command's question about a segment the stream has stored is
//! answered without a request to the store, and so that the two do not store one segment at the same time.

pub mod sides;

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::OwnedMutexGuard;
use walkeep_core::SegmentName;
use walkeep_core::blake3::Blake3Sum;

use sides::Sides;

/// Segments remembered: the archiver is rarely further behind, and a forgotten one only costs a request.
const REMEMBERED: usize = 4096;

/// The memory, shared by the stream and the archive command's side.
#[derive(Debug, Default)]
pub struct Recent {
    state: Mutex<(HashMap<SegmentName, Blake3Sum>, VecDeque<SegmentName>)>,
    turns: Mutex<HashMap<SegmentName, Weak<tokio::sync::Mutex<()>>>>,
    sides: Arc<Sides>,
}

/// The right to store one segment; the next in turn finds it stored.
pub type Turn = OwnedMutexGuard<()>;

impl Recent {
    /// `segment` is durable in the repository, with this content.
    pub fn note(&self, segment: SegmentName, hash: Blake3Sum) {
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

    /// Whose turn it is: that of parts, or of segments ahead of archive_command.
    pub fn sides(&self) -> &Arc<Sides> {
        &self.sides
    }

    /// Forgets everything: the repository is asked anew, and may have been put back to an older copy.
    pub fn forget(&self) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = Default::default();
    }

    /// Waits until nobody else is storing `segment`. Ask [`Recent::hash_of`] after it, not before.
    pub async fn turn(&self, segment: SegmentName) -> Turn {
        let turn = {
            let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
            turns.retain(|_, turn| turn.strong_count() > 0);
            let known = turns.get(&segment).and_then(Weak::upgrade);
            known.unwrap_or_else(|| {
                let turn = Arc::default();
                turns.insert(segment, Arc::downgrade(&turn));
                turn
            })
        };
        turn.lock_owned().await
    }

    /// The content with which `segment` was stored, if that was lately.
    pub fn hash_of(&self, segment: SegmentName) -> Option<Blake3Sum> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).0.get(&segment).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_at_a_time_for_each_segment() {
        let recent = Recent::default();
        let segment = "000000010000000000000001".parse().unwrap();
        let first = recent.turn(segment).await;
        let _other = recent.turn("000000010000000000000002".parse().unwrap()).await;
        let mut second = Box::pin(recent.turn(segment));
        assert!(futures::poll!(&mut second).is_pending());
        drop(first);
        assert!(futures::poll!(&mut second).is_ready());
    }

    #[test]
    fn forgets_the_oldest_beyond_its_size() {
        let recent = Recent::default();
        let name = |number: usize| format!("00000001{:08X}{:08X}", number / 256, number % 256).parse::<SegmentName>().unwrap();
        for number in 0..=REMEMBERED {
            recent.note(name(number), Blake3Sum::new([number as u8; 32]));
        }
        assert_eq!(recent.hash_of(name(0)), None);
        assert_eq!(recent.hash_of(name(REMEMBERED)), Some(Blake3Sum::new([REMEMBERED as u8; 32])));
    }
}
