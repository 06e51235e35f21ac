//! From what a clock on the wall shows to a moment, where clocks are put forward and back.

use chrono::{DateTime, LocalResult, NaiveDateTime, TimeDelta, TimeZone, Utc};

/// Wider than any zone is from UTC, and than any clock was ever put forward: Samoa left a whole day out.
const FAR: TimeDelta = TimeDelta::hours(39);

/// The first moment at which clocks of the zone show `local` or more: of a time that they show twice the first, of one that they leave out
/// the end of what is left out. Hence a later `local` never has an earlier moment.
pub(super) fn first_moment<Z: TimeZone>(zone: &Z, local: NaiveDateTime) -> Option<DateTime<Utc>> {
    match zone.from_local_datetime(&local) {
        LocalResult::Single(moment) => Some(moment.to_utc()),
        LocalResult::Ambiguous(first, _) => Some(first.to_utc()),
        LocalResult::None => after_gap(zone, local),
    }
}

/// The moment of the leap over `local`, to the second.
fn after_gap<Z: TimeZone>(zone: &Z, local: NaiveDateTime) -> Option<DateTime<Utc>> {
    let shows = |moment: DateTime<Utc>| moment.with_timezone(zone).naive_local();
    let (mut before, mut after) = (local.and_utc().checked_sub_signed(FAR)?, local.and_utc().checked_add_signed(FAR)?);
    while (after - before).num_seconds() > 1 {
        let middle = before + TimeDelta::seconds((after - before).num_seconds() / 2);
        if shows(middle) < local {
            before = middle;
        } else {
            after = middle;
        }
    }
    Some(after)
}
