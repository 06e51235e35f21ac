//! How much might have been lost, over the last hours: the worst of each minute.

use std::collections::VecDeque;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

/// A step, in seconds.
const STEP: i64 = 60;
/// A day of them.
const STEPS: usize = 24 * 60;

/// The worst of one minute.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Worst {
    /// When it began, as a Unix time.
    pub at: i64,
    /// Milliseconds of commits that would have been lost; `None` if nobody knows.
    pub loss_ms: Option<u64>,
    /// WAL that was not stored.
    pub bytes: u64,
}

/// The last hours. A minute in which nobody looked has no entry.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct LagHistory {
    minutes: VecDeque<Worst>,
}

impl LagHistory {
    /// What an agent before this one has seen, as far as it is not too old `now`.
    pub fn of(mut minutes: Vec<Worst>, now: DateTime<Utc>) -> Self {
        minutes.sort_by_key(|minute| minute.at);
        minutes.retain(|minute| !is_old(minute, now.timestamp()));
        Self { minutes: minutes.into() }
    }

    /// What was seen at `now`.
    pub fn add(&mut self, now: DateTime<Utc>, loss: Option<Duration>, bytes: u64) {
        let at = now.timestamp().div_euclid(STEP) * STEP;
        // What a clock that was ahead has noted is in nobody's way.
        while self.minutes.back().is_some_and(|last| last.at > at) {
            self.minutes.pop_back();
        }
        let loss_ms = loss.map(|loss| u64::try_from(loss.as_millis()).unwrap_or(u64::MAX));
        match self.minutes.back_mut().filter(|last| last.at == at) {
            Some(last) => {
                last.loss_ms = last.loss_ms.max(loss_ms);
                last.bytes = last.bytes.max(bytes);
            }
            None => self.minutes.push_back(Worst { at, loss_ms, bytes }),
        }
        while self.minutes.len() > STEPS || self.minutes.front().is_some_and(|first| is_old(first, at)) {
            self.minutes.pop_front();
        }
    }

    /// Oldest first.
    pub fn minutes(&self) -> Vec<Worst> {
        self.minutes.iter().copied().collect()
    }
}

fn is_old(minute: &Worst, now: i64) -> bool {
    minute.at <= now - STEP * STEPS as i64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_of_each_minute_is_kept_for_a_day() {
        let mut history = LagHistory::default();
        let at = |seconds: i64| DateTime::from_timestamp(1_800_000_000 + seconds, 0).unwrap();
        let second = Duration::from_secs(1);
        history.add(at(0), None, 5);
        history.add(at(10), Some(second), 1);
        history.add(at(20), Some(second / 2), 9);
        history.add(at(180), Some(Duration::ZERO), 0);
        let worst = |at: i64, loss_ms, bytes| Worst { at: 1_800_000_000 + at, loss_ms, bytes };
        assert_eq!(history.minutes(), [worst(0, Some(1000), 9), worst(180, Some(0), 0)]);
        history.add(at(60), None, 1);
        assert_eq!(history.minutes(), [worst(0, Some(1000), 9), worst(60, None, 1)], "the clock was set back");
        (0..3000).for_each(|minute| history.add(at(minute * 60), None, 0));
        assert_eq!((history.minutes().len(), history.minutes()[0].at), (STEPS, 1_800_000_000 + 60 * 1560));
        let mut after_a_pause = LagHistory::of(vec![worst(120, Some(7), 1), worst(-90_000, None, 2), worst(0, None, 2)], at(120));
        assert_eq!(after_a_pause.minutes(), [worst(0, None, 2), worst(120, Some(7), 1)]);
        after_a_pause.add(at(24 * 3600), None, 3);
        assert_eq!(after_a_pause.minutes(), [worst(120, Some(7), 1), worst(24 * 3600, None, 3)], "what is older than a day is gone");
    }
}
