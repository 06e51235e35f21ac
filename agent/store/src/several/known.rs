//! Of which places it is known what they lack: then all of that is in their queues.
//!
//! A place is in doubt from the beginning, and again whenever something may be missing there that no queue holds: more than there was room for, or what
//! another process left behind. A comparison that began later finds it. Moments are counted here, and no clock is asked.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// The first moment: every place is in doubt.
const FIRST: u64 = 1;

/// What is known of each place, by its number.
#[derive(Debug)]
pub struct Known(Mutex<State>);

#[derive(Debug)]
struct State {
    now: u64,
    /// When each came into doubt last.
    doubted: Vec<u64>,
    /// When the last comparison of each with the primary began that came to its end; of the primary itself there is none.
    compared: Vec<u64>,
}

impl Known {
    pub fn new(places: usize) -> Self {
        Self(Mutex::new(State { now: FIRST, doubted: vec![FIRST; places], compared: vec![0; places] }))
    }

    /// Something may be missing at this place that no queue holds.
    pub fn doubt(&self, place: usize) {
        let mut state = self.state();
        state.now += 1;
        let now = state.now;
        if let Some(doubted) = state.doubted.get_mut(place) {
            *doubted = now;
        }
    }

    /// A comparison begins.
    pub fn begin(&self) -> u64 {
        let mut state = self.state();
        state.now += 1;
        state.now
    }

    /// Of a comparison of this place with the primary, which began then, everything is queued.
    pub fn compared(&self, place: usize, began: u64) {
        if let Some(compared) = self.state().compared.get_mut(place) {
            *compared = began;
        }
    }

    /// When something came into doubt last that a comparison of this place with the primary tells about.
    pub fn doubted(&self, place: usize) -> u64 {
        let state = self.state();
        state.doubted.first().max(state.doubted.get(place)).copied().unwrap_or(FIRST)
    }

    /// Whether this place was compared since it came into doubt; the primary with each that `counts`.
    pub fn is_settled(&self, place: usize, counts: impl Fn(usize) -> bool) -> bool {
        let state = self.state();
        let Some(doubted) = state.doubted.get(place) else { return false };
        let mut of =
            state.compared.iter().enumerate().skip(1).filter(|(other, _)| if place == 0 { counts(*other) } else { *other == place });
        of.all(|(_, began)| began > doubted)
    }

    /// Whether it is known what this place lacks: by its own comparison, and as it may be another place alone that has something, by the others'. What is
    /// missing here and not at the primary, its own finds.
    pub fn is_known(&self, place: usize) -> bool {
        let state = self.state();
        let (Some(primary), Some(own)) = (state.doubted.first(), state.doubted.get(place)) else { return false };
        let both = primary.min(own);
        state.compared.iter().enumerate().skip(1).all(|(other, began)| began > if other == place { own } else { both })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compare(known: &Known, place: usize) {
        let began = known.begin();
        known.compared(place, began);
    }

    fn all(known: &Known) -> [bool; 3] {
        [0, 1, 2].map(|place| known.is_known(place))
    }

    #[test]
    fn a_doubt_is_settled_by_the_comparisons_that_can_tell() {
        let known = Known::new(3);
        compare(&known, 1);
        assert_eq!(all(&known), [false; 3], "the third may have what both lack");
        assert!(known.is_settled(1, |_| true) && !known.is_settled(0, |_| true) && known.is_settled(0, |other| other == 1));
        compare(&known, 2);
        assert_eq!(all(&known), [true; 3]);
        // What the primary lacks, the others need not.
        known.doubt(0);
        assert_eq!(all(&known), [false, true, true]);
        compare(&known, 1);
        assert_eq!(all(&known), [false, true, true]);
        compare(&known, 2);
        assert_eq!(all(&known), [true; 3]);
        // The primary has what the second lacks.
        known.doubt(1);
        assert_eq!(all(&known), [true, false, true]);
        compare(&known, 1);
        assert_eq!(all(&known), [true; 3]);
        // It may be the third alone that has it.
        known.doubt(0);
        known.doubt(1);
        compare(&known, 1);
        assert_eq!(all(&known), [false, false, true]);
        // One that began before knows nothing of it.
        let began = known.begin();
        known.doubt(2);
        known.compared(2, began);
        assert_eq!(all(&known), [true, true, false]);
        assert!(!known.is_settled(2, |_| true));
    }
}
