use std::time::Duration;

use chrono::{DateTime, NaiveDateTime, TimeDelta, Utc};
use chrono_tz::Tz;
use proptest::prelude::*;

use super::*;
use crate::backup::tests::record;

fn schedule(cron: &str, zone: &str) -> Schedule {
    Schedule {
        cluster: "main".into(),
        label: "nightly".into(),
        cron: cron.parse().unwrap(),
        zone: zone.parse().unwrap(),
        jitter: Duration::ZERO,
        catch_up: true,
    }
}

fn at(text: &str) -> DateTime<Utc> {
    text.parse().unwrap()
}

fn past(done: Option<&str>) -> Past {
    Past { done: done.map(at).into_iter().collect(), since: at("2026-01-01T00:00:00Z"), watched: at("2026-01-01T00:00:00Z"), tried: None }
}

#[test]
fn clocks_that_are_put_forward_and_back() {
    for (cron, zone, after, due) in [
        ("30 2 * * *", "Europe/Berlin", "2026-03-28T12:00:00Z", "2026-03-29T01:00:00Z"), // left out: the first moment after the gap
        ("30 2 * * *", "Europe/Berlin", "2026-03-29T01:00:00Z", "2026-03-30T00:30:00Z"),
        ("*/10 2 * * *", "Europe/Berlin", "2026-03-28T12:00:00Z", "2026-03-29T01:00:00Z"), // six times left out fire once
        ("*/10 2 * * *", "Europe/Berlin", "2026-03-29T01:00:00Z", "2026-03-30T00:00:00Z"),
        ("30 2 * * *", "Europe/Berlin", "2026-10-24T12:00:00Z", "2026-10-25T00:30:00Z"), // there twice: the first time
        ("30 2 * * *", "Europe/Berlin", "2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"),
        ("0 0 30 12 *", "Pacific/Apia", "2011-12-01T00:00:00Z", "2011-12-30T10:00:00Z"), // a day that was left out
        ("0 0 * * *", "Africa/Cairo", "2026-04-23T12:00:00Z", "2026-04-23T22:00:00Z"),   // midnight is left out
        ("15 2 * * *", "Australia/Lord_Howe", "2026-10-03T12:00:00Z", "2026-10-03T15:30:00Z"), // half an hour is left out
        ("0 3 29 2 *", "UTC", "2026-01-01T00:00:00Z", "2028-02-29T03:00:00Z"),
        ("0 3 29 2 */7", "UTC", "2088-03-01T00:00:00Z", "2128-02-29T03:00:00Z"), // a Sunday, over a century that leaves the day out
    ] {
        let schedule = schedule(cron, zone);
        assert_eq!(schedule.due_after(at(after)), Some(at(due)), "{cron} in {zone} after {after}");
        assert_eq!(schedule.due_until(at(due)), Some(at(due)), "{cron} in {zone} at {due}");
    }
}

#[test]
fn the_newest_missed_run_is_made_up_for_once() {
    let nightly = schedule("0 3 * * *", "UTC");
    let (on_time, late) = (at("2026-11-21T03:00:01Z"), at("2026-11-21T11:00:00Z"));
    let due = at("2026-11-21T03:00:00Z");
    let fire = Fire { due, at: due };
    for now in [on_time, late] {
        assert_eq!(nightly.decide(now, &past(Some("2026-11-20T03:00:00Z"))), Decision::Take { fire, missed: 0 });
        assert_eq!(nightly.decide(now, &past(Some("2026-11-17T03:00:00Z"))), Decision::Take { fire, missed: 3 });
        assert_eq!(nightly.decide(now, &past(Some("2026-11-21T03:00:00Z"))), Decision::Wait);
    }
    let never = Past { since: at("2026-11-21T02:00:00Z"), ..past(None) };
    assert_eq!(nightly.decide(late, &never), Decision::Take { fire, missed: 0 });
    assert_eq!(nightly.decide(late, &Past { since: at("2026-11-21T10:00:00Z"), ..never.clone() }), Decision::Wait, "nothing was due yet");

    let only_on_time = Schedule { catch_up: false, ..nightly };
    let before = past(Some("2026-11-20T03:00:00Z"));
    assert_eq!(only_on_time.decide(on_time, &before), Decision::Take { fire, missed: 0 });
    assert_eq!(only_on_time.decide(late, &before), Decision::Wait);
    let tried = Past { tried: Some(due), ..before };
    assert_eq!(only_on_time.decide(late, &tried), Decision::Take { fire, missed: 0 }, "begun in time, and failed since");
    assert_eq!(only_on_time.decide(at("2026-11-22T03:10:00Z"), &tried), Decision::Wait, "until the next");
}

#[test]
fn absence_of_success_is_overdue() {
    let nightly = schedule("0 3 * * *", "UTC");
    let known = past(Some("2026-11-20T03:00:00Z"));
    let due = Some(at("2026-11-21T03:00:00Z"));
    assert_eq!(nightly.overdue(at("2026-11-21T03:59:00Z"), &known, false), None);
    assert_eq!(nightly.overdue(at("2026-11-21T04:01:00Z"), &known, false), due);
    assert_eq!(nightly.overdue(at("2026-11-21T23:00:00Z"), &known, true), None, "it takes its time");
    assert_eq!(nightly.overdue(at("2026-11-22T03:01:00Z"), &known, true), due);
    // Each is younger than the grace, and yet none was done for hours.
    let often = schedule("*/10 * * * *", "UTC");
    assert_eq!(often.overdue(at("2026-11-21T09:05:00Z"), &past(Some("2026-11-21T03:00:00Z")), false), Some(at("2026-11-21T03:10:00Z")));
    let on_time = Schedule { catch_up: false, ..nightly };
    let fresh = Past { watched: at("2026-11-21T12:00:00Z"), ..past(None) };
    assert_eq!(on_time.overdue(at("2026-11-21T13:30:00Z"), &fresh, false), None, "a new schedule has missed nothing");
    assert_eq!(on_time.overdue(at("2026-11-22T04:30:00Z"), &fresh, false), Some(at("2026-11-22T03:00:00Z")));
}

#[test]
fn the_last_run_is_what_the_records_say() {
    let nightly = schedule("0 3 * * *", "UTC");
    let taken = |label: &str, due: Option<&str>| BackupRecord { label: label.into(), due: due.map(at), ..record(1, 40, 80, (0, 9)) };
    let records = [
        taken("nightly", Some("2026-11-20T03:00:00Z")),
        taken("nightly", Some("2026-11-19T03:00:00Z")),
        taken("weekly", Some("2026-11-21T03:00:00Z")),
        taken("nightly", None),
        taken("nightly", Some("2027-11-20T03:00:00Z")),
    ];
    let past = Past { done: nightly.runs(&records).into_keys().collect(), ..past(None) };
    let last = |now: &str| past.last(at(now));
    assert_eq!(
        last("2026-11-21T12:00:00Z"),
        Some(at("2026-11-20T03:00:00Z")),
        "by hand, of others and of a clock that was ahead: none of them"
    );
    assert_eq!(last("2026-11-18T12:00:00Z"), None);
}

#[test]
fn a_run_under_a_clock_that_was_ahead_takes_nothing_from_the_right_one() {
    let nightly = schedule("0 3 * * *", "UTC");
    let ahead = Past { done: ["2026-11-20T03:00:00Z", "2027-12-25T03:00:00Z"].map(at).into(), ..past(None) };
    let due = at("2026-11-21T03:00:00Z");
    assert_eq!(nightly.decide(at("2026-11-20T15:00:00Z"), &ahead), Decision::Wait, "what was done before it counts");
    assert_eq!(nightly.decide(at("2026-11-21T03:00:01Z"), &ahead).fire_due(), Some(due));
    assert_eq!(nightly.overdue(at("2026-11-21T03:59:00Z"), &ahead, false), None);
    assert_eq!(nightly.overdue(at("2026-11-21T04:01:00Z"), &ahead, false), Some(due));
    assert_eq!(nightly.decide(at("2027-12-25T03:00:01Z"), &ahead), Decision::Wait, "and that moment is done when it comes");
}

#[test]
fn a_clock_that_was_ahead_from_the_start_is_followed_back() {
    let tomorrow = at("2026-11-21T12:00:00Z");
    let (due, on_time, late) = (at("2026-11-21T03:00:00Z"), at("2026-11-21T03:00:01Z"), at("2026-11-21T04:01:00Z"));
    for (catch_up, since) in [(true, "2026-01-01T00:00:00Z"), (true, "2026-11-21T12:00:00Z"), (false, "2026-11-21T12:00:00Z")] {
        let nightly = Schedule { catch_up, ..schedule("0 3 * * *", "UTC") };
        let mut known = Past { done: [tomorrow].into(), since: at(since), watched: tomorrow, ..past(None) };
        known.seen_at(at("2026-11-20T12:00:00Z"));
        known.seen_at(on_time);
        assert_eq!(nightly.decide(on_time, &known).fire_due(), Some(due), "{catch_up} {since}");
        assert!(nightly.overdue(late, &known, false).is_some(), "{catch_up} {since}");
    }
    let fresh = Past { since: tomorrow, watched: at("2026-11-20T12:00:00Z"), ..past(None) };
    let nightly = schedule("0 3 * * *", "UTC");
    assert_eq!(
        nightly.decide(at("2026-11-20T12:00:00Z"), &fresh),
        Decision::Wait,
        "made under that clock, the cluster has missed nothing yet"
    );
}

#[test]
fn jitter_is_the_same_each_time_and_spreads() {
    let spread = Schedule { jitter: Duration::from_secs(1800), ..schedule("0 3 * * *", "Europe/Berlin") };
    let mut lateness = Vec::new();
    let mut now = at("2026-11-20T12:00:00Z");
    for _ in 0..30 {
        let fire = spread.next(now).unwrap();
        assert_eq!(spread.next(now), Some(fire));
        assert_eq!(spread.next(fire.due), Some(fire), "due and not begun: still the next");
        assert_eq!(spread.decide(fire.at - TimeDelta::seconds(1), &past(Some("2026-11-20T02:00:00Z"))).fire_due(), spread.before(fire));
        lateness.push((fire.at - fire.due).num_seconds());
        now = fire.at;
    }
    assert!(lateness.iter().all(|late| (0..1800).contains(late)), "{lateness:?}");
    let (least, most) = (lateness.iter().min().unwrap(), lateness.iter().max().unwrap());
    assert!(most - least > 900, "{lateness:?}");
    let elsewhere = Schedule { cluster: "other".into(), ..spread.clone() };
    assert_ne!(elsewhere.next(now).unwrap().at, spread.next(now).unwrap().at);
}

impl Decision {
    fn fire_due(self) -> Option<DateTime<Utc>> {
        match self {
            Self::Take { fire, .. } => Some(fire.due),
            Self::Wait => None,
        }
    }
}

impl Schedule {
    /// What is due, and not done, before `fire` begins: the run before it, unless that is the done one.
    fn before(&self, fire: Fire) -> Option<DateTime<Utc>> {
        self.due_until(fire.due - TimeDelta::seconds(1)).filter(|due| *due > at("2026-11-20T02:00:00Z"))
    }
}

/// What a person with a clock on the wall would do, minute by minute: fire when the clock shows a time of the expression for the first time,
/// or has leapt over one.
/// The zones' changes since 2000 are at whole minutes.
fn by_the_clock(cron: &Cron, zone: Tz, from: DateTime<Utc>, to: DateTime<Utc>) -> Vec<DateTime<Utc>> {
    let shows = |moment: DateTime<Utc>| moment.with_timezone(&zone).naive_local();
    let minute = TimeDelta::minutes(1);
    let mut highest = NaiveDateTime::MIN;
    let mut fires = Vec::new();
    let mut moment = from - TimeDelta::days(2);
    while moment <= to {
        let shown = shows(moment);
        if highest != NaiveDateTime::MIN {
            let leapt = std::iter::successors(Some(highest + minute), |local| Some(*local + minute)).take_while(|local| *local <= shown);
            if leapt.into_iter().any(|local| cron.fires_at(local)) && moment > from {
                fires.push(moment);
            }
        }
        highest = highest.max(shown);
        moment += minute;
    }
    fires
}

/// The day before the zone's clocks are next put forward or back; as it is where they never are.
fn before_a_change(zone: Tz, from: DateTime<Utc>) -> DateTime<Utc> {
    use chrono::{Offset, TimeZone};
    let offset = |moment: DateTime<Utc>| zone.offset_from_utc_datetime(&moment.naive_utc()).fix();
    let days = (0..400).map(|day| from + TimeDelta::days(day));
    days.clone().zip(days.skip(1)).find(|(day, next)| offset(*day) != offset(*next)).map_or(from, |(day, _)| day - TimeDelta::hours(20))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn fires_are_those_of_a_clock_on_the_wall(
        minute in prop::sample::select(vec!["*", "0", "30", "*/7", "15-45/10", "59", "0,1,30"]),
        hour in prop::sample::select(vec!["*", "0", "1", "2", "2-3", "23", "*/5", "0,3"]),
        day in prop::sample::select(vec!["*", "1-7", "*/2", "28-31"]),
        weekday in prop::sample::select(vec!["*", "sun", "mon-fri", "0,6"]),
        zone in prop::sample::select(vec![
            "UTC", "Europe/Berlin", "America/New_York", "America/St_Johns", "America/Havana", "America/Santiago", "Africa/Cairo",
            "Africa/Casablanca", "Asia/Kathmandu", "Asia/Tehran", "Australia/Lord_Howe", "Pacific/Apia", "Antarctica/Troll",
        ]),
        minutes in 15_778_080i64..31_000_000,
        until in 0i64..5760,
    ) {
        let schedule = schedule(&format!("{minute} {hour} {day} * {weekday}"), zone);
        let from = before_a_change(schedule.zone, DateTime::from_timestamp(minutes * 60, 0).unwrap());
        let to = from + TimeDelta::days(4);
        let wanted = by_the_clock(&schedule.cron, schedule.zone, from, to);
        let found: Vec<_> = std::iter::successors(schedule.due_after(from), |due| schedule.due_after(*due)).take_while(|due| *due <= to).collect();
        prop_assert_eq!(&found, &wanted);
        // Backwards it is the same row.
        let then = from + TimeDelta::minutes(until);
        let last = schedule.due_until(then).unwrap();
        prop_assert!(last <= then);
        if let Some(newest) = wanted.iter().rev().find(|due| **due <= then) {
            prop_assert_eq!(last, *newest);
        }
        prop_assert!(schedule.due_after(last).unwrap() > then);
    }

    #[test]
    fn jitter_keeps_the_order(jitter in 0u64..100_000, minutes in 15_778_080i64..31_000_000, cron in prop::sample::select(vec!["* * * * *", "*/7 2 * * *", "0 3 * * *"])) {
        let schedule = Schedule { jitter: Duration::from_secs(jitter), ..schedule(cron, "Europe/Berlin") };
        let mut now = DateTime::from_timestamp(minutes * 60, 0).unwrap();
        let mut due: Option<DateTime<Utc>> = None;
        for _ in 0..10 {
            let fire = schedule.next(now).unwrap();
            prop_assert!(fire.at > now && fire.at >= fire.due);
            let following = schedule.due_after(fire.due).unwrap();
            prop_assert!(fire.at < following);
            // None is left out: the next is due right behind the one before.
            prop_assert!(due.is_none_or(|due| schedule.due_after(due) == Some(fire.due)));
            let known = Past { done: due.into_iter().collect(), since: fire.due - TimeDelta::days(9), ..past(None) };
            prop_assert_eq!(schedule.decide(fire.at, &known).fire_due(), Some(fire.due));
            (now, due) = (fire.at, Some(fire.due));
        }
    }
}
