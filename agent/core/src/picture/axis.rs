//! The axis of a picture: time where times are known, else position.
//!
//! Before the first and behind the last known time positions have no time. What lies there is drawn by its bytes, as if WAL were always
//! written as fast as between the known times; where that leads beyond the times known of any timeline it has zones of its own at both
//! ends, so that nothing seems to have happened at a time that nobody knows.

use serde::Serialize;

use crate::lsn::Lsn;
use crate::time::PgTimestamp;

use super::clock::Place;

/// The least and the most of the width that a zone without times takes.
const ZONE: (f64, f64) = (0.06, 0.8);

/// What the axis counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum By {
    /// The server's clock.
    Time,
    /// Bytes of WAL.
    Position,
}

/// What positions along the picture mean.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Axis {
    /// What it counts.
    pub by: By,
    /// The first position shown.
    pub from_lsn: Lsn,
    /// The last.
    pub to_lsn: Lsn,
    /// The earliest known time of what is shown.
    pub from_time: Option<PgTimestamp>,
    /// The latest.
    pub to_time: Option<PgTimestamp>,
    /// Where the zone with times begins and ends, from 0 to 1; with [`By::Position`] it is empty.
    pub timed: (f64, f64),
    /// Microseconds for a byte whose time is not known.
    #[serde(skip)]
    pace: f64,
    /// Where all ends if there were times everywhere.
    #[serde(skip)]
    reach: (f64, f64),
}

impl Axis {
    /// An axis on which all of these have a place.
    pub(super) fn of(points: &[(Lsn, Option<Place>)]) -> Self {
        let lsns = points.iter().map(|(lsn, _)| *lsn);
        let (from_lsn, to_lsn) = (lsns.clone().min().unwrap_or(Lsn::ZERO), lsns.max().unwrap_or(Lsn::ZERO));
        let places: Vec<Place> = points.iter().filter_map(|(_, place)| *place).collect();
        let first = places.iter().map(|place| place.micros).fold(f64::INFINITY, f64::min);
        let last = places.iter().map(|place| place.micros).fold(f64::NEG_INFINITY, f64::max);
        let known = |micros: f64| micros.is_finite().then(|| PgTimestamp::from_micros(micros as i64));
        let (from_time, to_time) = (known(first), known(last));
        let can_be_told = |time: Option<PgTimestamp>| time.is_some_and(|time| time.to_utc().is_some());
        // Whole microseconds are what is shown; less than one is no stretch of time.
        let by_time = from_time < to_time && places.len() == points.len() && can_be_told(from_time) && can_be_told(to_time);
        let of_known = |pick: fn(u64, u64) -> u64| {
            let known = points.iter().filter(|(_, place)| place.is_some_and(|place| place.head == 0 && place.tail == 0));
            known.map(|(lsn, _)| lsn.get()).reduce(pick).unwrap_or(0)
        };
        let bytes = of_known(u64::max).saturating_sub(of_known(u64::min));
        let pace = if by_time && bytes > 0 { (last - first) / bytes as f64 } else { 1.0 };
        let reaches = places.iter().map(|place| place.at_pace(pace));
        let reach = (reaches.clone().fold(first, f64::min), reaches.fold(last, f64::max));
        let zone = |beyond: f64| if beyond > 0.0 { (beyond / (reach.1 - reach.0)).clamp(ZONE.0, ZONE.1) } else { 0.0 };
        let (mut left, mut right) = (zone(first - reach.0), zone(reach.1 - last));
        if left + right > ZONE.1 {
            let both = left + right;
            (left, right) = (left / both * ZONE.1, right / both * ZONE.1);
        }
        let timed = if by_time { (left, 1.0 - right) } else { (0.0, 0.0) };
        let by = if by_time { By::Time } else { By::Position };
        Self { by, from_lsn, to_lsn, from_time, to_time, timed, pace, reach }
    }

    /// Where a position stands, from 0 to 1.
    pub(super) fn at(&self, lsn: Lsn, place: Option<Place>) -> f64 {
        let at = match (self.by, place, self.from_time, self.to_time) {
            (By::Time, Some(place), Some(first), Some(last)) => {
                let (micros, first, last) = (place.at_pace(self.pace), first.micros() as f64, last.micros() as f64);
                let (begins, ends) = self.timed;
                match micros {
                    early if early < first => (early - self.reach.0) / (first - self.reach.0) * begins,
                    late if late > last => ends + (late - last) / (self.reach.1 - last) * (1.0 - ends),
                    within => begins + self.share(within) * (ends - begins),
                }
            }
            _ => lsn.bytes_since(self.from_lsn) as f64 / self.to_lsn.bytes_since(self.from_lsn).max(1) as f64,
        };
        at.clamp(0.0, 1.0)
    }

    fn share(&self, micros: f64) -> f64 {
        match (self.from_time, self.to_time) {
            (Some(from), Some(to)) => (micros - from.micros() as f64) / (to.micros() as f64 - from.micros() as f64),
            _ => 0.0,
        }
    }

    /// Whether the axis has no times at this place.
    pub(super) fn is_untimed(&self, at: f64) -> bool {
        self.by == By::Time && !(self.timed.0..=self.timed.1).contains(&at)
    }

    /// At most `most` labels, each with its place.
    pub(super) fn ticks(&self, most: usize) -> Vec<(f64, String)> {
        match (self.by, self.from_time, self.to_time) {
            (By::Time, Some(from), Some(to)) => {
                let begins_and_ends = self.timed;
                let step = step(from, to, most);
                let first = i128::from(from.micros()).div_euclid(step) * step;
                let times = (0..=most as i128 + 1).map(|number| first + number * step);
                let within = times.filter(|time| (i128::from(from.micros())..=i128::from(to.micros())).contains(time));
                let label = |time: i128| {
                    let text = tick(PgTimestamp::from_micros(time as i64), step)?;
                    Some((begins_and_ends.0 + self.share(time as f64) * (begins_and_ends.1 - begins_and_ends.0), text))
                };
                within.filter_map(label).take(most).collect()
            }
            _ => {
                let number = most.clamp(1, 5);
                let steps = (number - 1).max(1) as u64;
                let bytes = self.to_lsn.bytes_since(self.from_lsn);
                let at = |index: u64| {
                    let lsn = self.from_lsn.saturating_add((u128::from(bytes) * u128::from(index) / u128::from(steps)) as u64);
                    (index as f64 / steps as f64, lsn.to_string())
                };
                (0..number as u64).map(at).collect()
            }
        }
    }

    /// What the picture shows, in one line.
    pub(super) fn words(&self) -> String {
        match (self.by, self.from_time, self.to_time) {
            (By::Time, Some(from), Some(to)) => {
                let (from, to) = (whole(from), whole(to));
                let to = if from.get(..10) == to.get(..10) { to.get(11..).unwrap_or(&to) } else { &to };
                format!("{from} to {to} UTC")
            }
            _ => format!("{} to {}, by position", self.from_lsn, self.to_lsn),
        }
    }
}

fn whole(time: PgTimestamp) -> String {
    time.to_utc().map_or_else(|| time.to_string(), |time| time.format("%Y-%m-%d %H:%M:%S").to_string())
}

const SECOND: i128 = 1_000_000;
const MINUTE: i128 = 60 * SECOND;
const HOUR: i128 = 60 * MINUTE;
const DAY: i128 = 24 * HOUR;
/// Distances between labels that people find even.
const STEPS: [i128; 30] = [
    1_000,
    10_000,
    100_000,
    SECOND,
    2 * SECOND,
    5 * SECOND,
    10 * SECOND,
    15 * SECOND,
    30 * SECOND,
    MINUTE,
    2 * MINUTE,
    5 * MINUTE,
    10 * MINUTE,
    15 * MINUTE,
    30 * MINUTE,
    HOUR,
    2 * HOUR,
    3 * HOUR,
    6 * HOUR,
    12 * HOUR,
    DAY,
    2 * DAY,
    4 * DAY,
    7 * DAY,
    14 * DAY,
    28 * DAY,
    56 * DAY,
    91 * DAY,
    182 * DAY,
    365 * DAY,
];

fn step(from: PgTimestamp, to: PgTimestamp, most: usize) -> i128 {
    let span = i128::from(to.micros()) - i128::from(from.micros());
    let enough = |step: &i128| span / step < most.max(1) as i128;
    STEPS.into_iter().find(enough).unwrap_or((span / most.max(1) as i128 / DAY + 1) * DAY)
}

fn tick(time: PgTimestamp, step: i128) -> Option<String> {
    let form = match step {
        DAY.. => "%Y-%m-%d",
        MINUTE.. => "%m-%d %H:%M",
        SECOND.. => "%H:%M:%S",
        _ => "%H:%M:%S%.3f",
    };
    time.to_utc().map(|time| time.format(form).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn less_than_a_microsecond_is_no_stretch_of_time() {
        let at = |lsn: u64, micros: f64| (Lsn::new(lsn), Some(Place { micros, head: 0, tail: 0 }));
        let axis = Axis::of(&[at(10, 49.1), at(30, 49.9)]);
        assert_eq!((axis.by, axis.at(Lsn::new(20), at(20, 49.5).1)), (By::Position, 0.5));
    }
}
