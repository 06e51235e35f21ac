//! Which artifacts of a name stay: by number, age, and the last of days, weeks, months and years; never fewer than the newest one.

use std::collections::BTreeSet;

use chrono::{DateTime, TimeDelta, Utc};
use chrono_tz::Tz;
use serde::Serialize;

use super::{ArtifactId, ArtifactRecord};
use crate::retention::{Period, last_of_periods};

/// What is to be kept.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Keep {
    /// So many of the newest.
    pub last: Option<u32>,
    /// Everything so young.
    pub time: Option<TimeDelta>,
    /// Of so many days the last one.
    pub daily: u32,
    /// Of so many weeks.
    pub weekly: u32,
    /// Of so many months.
    pub monthly: u32,
    /// Of so many years.
    pub yearly: u32,
    /// Where days begin.
    pub zone: Tz,
}

impl Keep {
    /// Whether nothing is said: then everything stays.
    pub fn is_everything(&self) -> bool {
        self.last.is_none() && self.time.is_none() && [self.daily, self.weekly, self.monthly, self.yearly] == [0; 4]
    }
}

/// What stays and what goes of one name.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Plan {
    /// What stays, the newest first.
    pub kept: Vec<ArtifactId>,
    /// What goes, the oldest first.
    pub expired: Vec<ArtifactId>,
}

/// Decides it for the artifacts of one name. The present is `now`, or the end of the newest where a clock is behind.
pub fn plan(records: &[ArtifactRecord], keep: &Keep, now: DateTime<Utc>) -> Plan {
    let mut sorted: Vec<&ArtifactRecord> = records.iter().collect();
    sorted.sort_by(|a, b| (b.ended_at, &b.id).cmp(&(a.ended_at, &a.id)));
    let mut kept: BTreeSet<&ArtifactId> = sorted.first().map(|newest| &newest.id).into_iter().collect();
    if keep.is_everything() {
        kept.extend(sorted.iter().map(|record| &record.id));
    }
    kept.extend(sorted.iter().take(keep.last.unwrap_or(0) as usize).map(|record| &record.id));
    // A clock that is ahead must not make everything old: an age is counted from the newest one there is, if that is earlier.
    let present = sorted.first().map_or(now, |newest| now.min(newest.ended_at));
    if let Some(time) = keep.time {
        // Further back than time itself: nothing is so old.
        let from = present.checked_sub_signed(time);
        kept.extend(sorted.iter().filter(|record| from.is_none_or(|from| record.ended_at >= from)).map(|record| &record.id));
    }
    let periods = [(Period::Day, keep.daily), (Period::Week, keep.weekly), (Period::Month, keep.monthly), (Period::Year, keep.yearly)];
    for (period, count) in periods {
        kept.extend(last_of_periods(period, keep.zone, count, sorted.iter().map(|record| (record.ended_at, &record.id))));
    }
    let (stays, goes): (Vec<&ArtifactRecord>, Vec<_>) = sorted.into_iter().partition(|record| kept.contains(&record.id));
    let ids = |records: Vec<&ArtifactRecord>| records.into_iter().map(|record| record.id.clone()).collect::<Vec<_>>();
    let mut expired = ids(goes);
    expired.reverse();
    Plan { kept: ids(stays), expired }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::artifact::Content;
    use crate::identity::SystemIdentifier;
    use crate::sha256::Sha256Sum;

    const HOUR: i64 = 3600;

    fn record(hour: i64) -> ArtifactRecord {
        let at = DateTime::from_timestamp(1_795_219_200 + hour * HOUR, 0).expect("a time");
        ArtifactRecord {
            format: ArtifactRecord::FORMAT,
            name: "etc".parse().expect("a name"),
            id: ArtifactId::new(at, hour as u32),
            cluster: "main".into(),
            system_identifier: SystemIdentifier::new(7),
            source: "/etc".into(),
            content: Content::Tar,
            database: None,
            due: None,
            started_at: at,
            ended_at: at,
            bytes: 1,
            bytes_stored: 1,
            pieces: 1,
            files: None,
            notes: 0,
            host: "db1".into(),
            summary_sha256: Sha256Sum::new([0; 32]),
        }
    }

    fn kept(hours: &[i64], keep: &Keep, now: i64) -> Vec<i64> {
        let records: Vec<_> = hours.iter().map(|hour| record(*hour)).collect();
        let plan = plan(&records, keep, record(now).ended_at);
        let mut kept: Vec<_> = hours.iter().copied().filter(|hour| plan.kept.contains(&record(*hour).id)).collect();
        assert_eq!(plan.kept.len() + plan.expired.len(), hours.len());
        kept.sort_unstable();
        kept
    }

    #[test]
    fn what_is_asked_for_stays_and_no_more() {
        let hours: Vec<i64> = (0..10).map(|n| n * 12).collect();
        assert_eq!(kept(&hours, &Keep::default(), 1000), hours);
        assert_eq!(kept(&hours, &Keep { last: Some(2), ..Keep::default() }, 1000), [96, 108]);
        assert_eq!(kept(&hours, &Keep { last: Some(0), ..Keep::default() }, 1000), [108]);
        assert_eq!(kept(&hours, &Keep { time: Some(TimeDelta::hours(24)), ..Keep::default() }, 108), [84, 96, 108]);
        let endless = Keep { time: Some(TimeDelta::days(365_000_000)), ..Keep::default() };
        assert_eq!(kept(&hours, &endless, 108), hours, "nothing is older than time itself");
        // The last one of each day, which begins at midnight.
        assert_eq!(kept(&hours, &Keep { daily: 3, ..Keep::default() }, 1000), [60, 84, 108]);
        assert_eq!(kept(&hours, &Keep { last: Some(1), daily: 2, ..Keep::default() }, 1000), [84, 108]);
    }

    #[test]
    fn a_clock_that_is_ahead_lets_nothing_more_go() {
        let keep = Keep { time: Some(TimeDelta::hours(24)), ..Keep::default() };
        assert_eq!(kept(&[0, 12, 24, 36], &keep, 1_000_000), [12, 24, 36]);
    }

    proptest! {
        #[test]
        fn the_newest_always_stays(hours in proptest::collection::btree_set(0i64..5000, 1..40), last in proptest::option::of(0u32..5), time in proptest::option::of(0i64..500), daily in 0u32..4, now in 0i64..10_000) {
            let hours: Vec<i64> = hours.into_iter().collect();
            let keep = Keep { last, time: time.map(TimeDelta::hours), daily, ..Keep::default() };
            let kept = kept(&hours, &keep, now);
            prop_assert_eq!(kept.last(), hours.last());
            prop_assert!(kept.len() >= hours.len().min(last.unwrap_or(1) as usize));
        }
    }
}
