//! How long a restore may take, out of rates that were measured; without a measurement there is no number.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

/// Work that was timed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Measured {
    /// Bytes that were moved.
    pub bytes: u64,
    /// The time it took, in milliseconds.
    pub millis: u64,
    /// When, by this host's clock: for people.
    pub at: DateTime<Utc>,
    /// Where it was measured.
    pub by: MeasuredBy,
}

/// Which work it was.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MeasuredBy {
    /// A restore's files, fetched and written.
    Restore,
    /// A recovery's WAL, from the first segment handed out to the last.
    Recovery,
    /// The WAL that this plan was made from, fetched and read.
    Plan,
}

/// Measurements that differ more than this in size are not compared: the larger is believed.
const COMPARABLE: u64 = 10;

impl Measured {
    /// The rate; `None` if nothing was measured.
    pub fn bytes_per_second(&self) -> Option<u64> {
        let rate = u128::from(self.bytes) * 1000 / u128::from(self.millis.max(1));
        u64::try_from(rate).ok().filter(|rate| *rate > 0)
    }

    /// Whether this, the newer one, takes the place of `known`. A short measurement says little.
    pub fn replaces(&self, known: Option<&Self>) -> bool {
        self.bytes_per_second().is_some() && known.is_none_or(|known| self.bytes >= known.bytes / COMPARABLE)
    }
}

/// What was measured on this host.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Rates {
    /// Of fetching and writing the files of a backup, as they are stored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fetch: Option<Measured>,
    /// Of fetching and replaying WAL, as PostgreSQL reads it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replay: Option<Measured>,
}

/// A part of the work.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct Part {
    /// How many bytes.
    pub bytes: u64,
    /// How long they will take; `None` where nothing was measured.
    pub seconds: Option<u64>,
    /// At this rate.
    pub bytes_per_second: Option<u64>,
    /// Out of this.
    pub measured: Option<Measured>,
}

impl Part {
    fn new(bytes: u64, measured: Option<Measured>) -> Self {
        let bytes_per_second = measured.as_ref().and_then(Measured::bytes_per_second);
        Self { bytes, seconds: bytes_per_second.map(|rate| bytes.div_ceil(rate)), bytes_per_second, measured }
    }
}

/// How long until the server is ready.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct Estimate {
    /// Fetching the files of the backup.
    pub fetch: Part,
    /// Fetching and replaying WAL.
    pub replay: Part,
    /// Both; `None` unless both were measured.
    pub seconds: Option<u64>,
}

impl Estimate {
    /// The estimate for so many bytes of a backup and of WAL. `this_plan`: how fast the repository was read while the plan was made, for
    /// want of better.
    pub fn new(fetch_bytes: u64, replay_bytes: u64, rates: &Rates, this_plan: Option<Measured>) -> Self {
        let fetch = Part::new(fetch_bytes, rates.fetch.or(this_plan));
        let replay = Part::new(replay_bytes, rates.replay);
        let seconds = fetch.seconds.zip(replay.seconds).map(|(fetch, replay)| fetch.saturating_add(replay));
        Self { fetch, replay, seconds }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(bytes: u64, millis: u64, by: MeasuredBy) -> Measured {
        Measured { bytes, millis, at: DateTime::UNIX_EPOCH, by }
    }

    #[test]
    fn what_was_not_measured_has_no_number() {
        let plan = measured(3000, 1500, MeasuredBy::Plan);
        let bare = Estimate::new(10_000, 500, &Rates::default(), None);
        assert_eq!((bare.fetch.seconds, bare.replay.seconds, bare.seconds), (None, None, None));
        let by_plan = Estimate::new(10_000, 500, &Rates::default(), Some(plan));
        assert_eq!((by_plan.fetch.seconds, by_plan.fetch.measured, by_plan.seconds), (Some(5), Some(plan), None));
        let rates = Rates { fetch: Some(measured(100, 1000, MeasuredBy::Restore)), replay: Some(measured(10, 1000, MeasuredBy::Recovery)) };
        let both = Estimate::new(10_000, 501, &rates, Some(plan));
        assert_eq!((both.fetch.seconds, both.replay.seconds, both.seconds), (Some(100), Some(51), Some(151)));
        assert_eq!(Estimate::new(1, 1, &Rates { fetch: Some(measured(0, 7, MeasuredBy::Restore)), ..rates }, None).fetch.seconds, None);
    }

    #[test]
    fn a_short_measurement_does_not_replace_a_long_one() {
        let long = measured(1_000_000, 1000, MeasuredBy::Restore);
        assert!(long.replaces(None) && long.replaces(Some(&long)));
        assert!(measured(100_000, 1, MeasuredBy::Restore).replaces(Some(&long)));
        assert!(!measured(99_999, 1, MeasuredBy::Restore).replaces(Some(&long)));
        assert!(!measured(0, 1, MeasuredBy::Restore).replaces(None));
        assert_eq!(measured(u64::MAX, 0, MeasuredBy::Plan).bytes_per_second(), None, "beyond all measure");
    }
}
