//! What the server's clock said along a timeline's history: how a position gets its place on an axis of time.
//!
//! Between two positions whose times are known, time is shared out by bytes: good enough for the eye, and used for nothing else. A clock
//! that was set back stands still here, so that what came later never stands before what came earlier.

use crate::lsn::Lsn;
use crate::time::PgTimestamp;

/// Where a position stands in time.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct Place {
    /// Microseconds of the server's clock.
    pub micros: f64,
    /// Bytes before the first position whose time is known.
    pub head: u64,
    /// Bytes behind the last.
    pub tail: u64,
}

impl Place {
    /// Where it stands in time if a byte without a time takes so many microseconds.
    pub fn at_pace(&self, pace: f64) -> f64 {
        self.micros + (self.tail as f64 - self.head as f64) * pace
    }
}

/// Positions along one history, and their times.
#[derive(Clone, Debug)]
pub(super) struct Clock {
    known: Vec<(Lsn, f64)>,
}

impl Clock {
    /// The clock of these positions, in any order.
    pub fn new(known: impl Iterator<Item = (Lsn, PgTimestamp)>) -> Self {
        let mut known: Vec<_> = known.map(|(lsn, time)| (lsn, time.micros())).collect();
        known.sort_unstable();
        let mut latest = i64::MIN;
        let rising = known.into_iter().map(|(lsn, micros)| {
            latest = latest.max(micros);
            (lsn, latest as f64)
        });
        Self { known: rising.collect() }
    }

    /// Whether no time is known.
    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    /// Where `lsn` stands; `None` if no time is known at all.
    pub fn place(&self, lsn: Lsn) -> Option<Place> {
        let behind = self.known.partition_point(|(known, _)| *known < lsn);
        let before = behind.checked_sub(1).map(|index| self.known[index]);
        match (before, self.known.get(behind)) {
            (_, Some((known, micros))) if *known == lsn => Some(Place { micros: *micros, head: 0, tail: 0 }),
            (Some((from, early)), Some((to, late))) => {
                let share = lsn.bytes_since(from) as f64 / to.bytes_since(from) as f64;
                Some(Place { micros: early + (late - early) * share, head: 0, tail: 0 })
            }
            (None, Some((first, micros))) => Some(Place { micros: *micros, head: first.bytes_since(lsn), tail: 0 }),
            (Some((last, micros)), None) => Some(Place { micros, head: 0, tail: lsn.bytes_since(last) }),
            (None, None) => None,
        }
    }

    /// The time of `lsn`, if it lies between two that are known.
    pub fn between(&self, lsn: Lsn) -> Option<PgTimestamp> {
        let place = self.place(lsn).filter(|place| place.head == 0 && place.tail == 0)?;
        Some(PgTimestamp::from_micros(place.micros as i64))
    }
}
