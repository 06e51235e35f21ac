use proptest::prelude::*;

use super::*;
use crate::catalog::oracle::{CELLS, END_CELL, cell, tli, world};
use crate::expiry::{Expired, Expiry};
use crate::layout::ObjectName;
use crate::segment::SegmentNumber;
use crate::wal_file::WalFileName;

const MIB: u64 = 1 << 20;
const DAY: i64 = 24 * 3600;

fn at(second: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_795_219_200 + second, 0).expect("a time")
}

fn policy(window_days: i64) -> Policy {
    Policy { window: TimeDelta::days(window_days), daily: 0, weekly: 0, monthly: 0, yearly: 0, minimum: 1, zone: Tz::UTC }
}

/// A backup a day on timeline 1, the first on day 0, each in a segment of its own with another one behind it.
fn daily(days: u64) -> Catalog {
    let mut builder =
        Catalog::builder("main".parse().expect("a name"), crate::SystemIdentifier::new(7), SegmentSize::new(MIB).expect("a size"));
    for day in 0..days {
        let start = (2 * day + 1) * MIB + 40;
        builder.backup(without_hold(crate::backup::tests::record(1, start, start + 100, (day as i64 * DAY, day as i64 * DAY + 60))));
        for number in [2 * day + 1, 2 * day + 2] {
            let name = SegmentNumber::new(number).name(TimelineId::FIRST, SegmentSize::new(MIB).expect("a size"));
            builder.object(&ObjectName::Wal(WalFileName::Segment(name)), 10);
        }
    }
    builder.build()
}

fn without_hold(record: BackupRecord) -> BackupRecord {
    BackupRecord { keep: None, ..record }
}

struct Asked {
    now: DateTime<Utc>,
    holds: BTreeMap<BackupId, Option<Keep>>,
    last_moments: BTreeMap<TimelineId, DateTime<Utc>>,
    under_way: Vec<Lsn>,
}

impl Asked {
    fn on(now: DateTime<Utc>) -> Self {
        Self { now, holds: BTreeMap::new(), last_moments: BTreeMap::new(), under_way: Vec::new() }
    }

    fn plan(&self, policy: &Policy, catalog: &Catalog) -> RetentionPlan {
        let Self { now, holds, last_moments, under_way } = self;
        plan(policy, &Facts { catalog, now: *now, holds, last_moments, under_way })
    }
}

/// The days of the backups that stay.
fn kept(plan: &RetentionPlan, catalog: &Catalog) -> Vec<i64> {
    let day = |kept: &Kept| (catalog.backup(&kept.id).expect("a backup").ended_at - at(0)).num_days();
    plan.kept.iter().map(day).collect()
}

fn after(catalog: &Catalog, plan: &RetentionPlan) -> Catalog {
    let mut expired = Expired::default();
    expired.add(&Expiry { backups: plan.expired.clone(), wal: plan.wal.clone(), ..Expiry::new(1, at(0), String::new()) });
    catalog.without(&expired)
}

#[test]
fn a_window_keeps_the_backup_it_begins_with_and_all_wal_from_there() {
    let catalog = daily(20);
    let plan = Asked::on(at(19 * DAY + 3600)).plan(&policy(7), &catalog);
    assert_eq!(kept(&plan, &catalog), [12, 13, 14, 15, 16, 17, 18, 19]);
    assert_eq!(plan.kept[0].reasons, [Reason::BeginsWindow]);
    assert_eq!(plan.kept.last().expect("one").reasons, [Reason::Window, Reason::Minimum]);
    // Of backup 12 on, which begins in segment 25.
    let wal = ExpiredWal { timeline: TimelineId::FIRST, from: Lsn::new(MIB), to: Lsn::new(25 * MIB) };
    assert_eq!((plan.wal.clone(), plan.segments, plan.wal_bytes), (vec![wal], 24, 240));
    let rest = after(&catalog, &plan);
    assert_eq!(rest.backups().len(), 8);
    assert_eq!(rest.stored_ranges(TimelineId::FIRST)[0].from, Lsn::new(25 * MIB));
    assert!(Asked::on(at(19 * DAY + 3600)).plan(&policy(7), &rest).is_empty(), "a second run has nothing to do");
}

#[test]
fn older_backups_keep_just_the_wal_that_makes_them_consistent() {
    let catalog = daily(40);
    let policy = Policy { weekly: 3, monthly: 2, ..policy(2) };
    // Day 0 is Saturday, 2026-11-21.
    let plan = Asked::on(at(39 * DAY + 3600)).plan(&policy, &catalog);
    assert_eq!(kept(&plan, &catalog), [9, 29, 36, 37, 38, 39], "{plan:?}");
    let reasons = |day: i64| {
        plan.kept.iter().find(|kept| catalog.backup(&kept.id).expect("one").ended_at == at(day * DAY + 60)).map(|k| &k.reasons[..])
    };
    assert_eq!(reasons(9), Some(&[Reason::Monthly][..]));
    assert_eq!(reasons(29), Some(&[Reason::Weekly][..]));
    assert_eq!(reasons(36), Some(&[Reason::Weekly][..]));
    let rest = after(&catalog, &plan);
    let path = TimelineHistory::root(TimelineId::FIRST);
    let (windows, unusable) = rest.windows(&path);
    assert_eq!((windows.len(), unusable.len()), (4, 0));
    assert_eq!(windows[0].latest, Lsn::new(20 * MIB), "of backup 9 its one segment");
}

#[test]
fn holds_are_kept_until_they_are_released() {
    let catalog = daily(5);
    let ids: Vec<BackupId> = catalog.backups().iter().map(|backup| backup.id.clone()).collect();
    let mut asked = Asked::on(at(4 * DAY + 3600));
    asked.holds.insert(ids[0].clone(), Some(Keep::Forever));
    asked.holds.insert(ids[1].clone(), Some(Keep::Until(at(4 * DAY + 3599))));
    asked.holds.insert(ids[2].clone(), None);
    let plan = asked.plan(&policy(0), &catalog);
    assert_eq!(kept(&plan, &catalog), [0, 4]);
    assert_eq!(plan.kept[0].reasons, [Reason::Held(Keep::Forever)]);
    asked.holds.insert(ids[0].clone(), None);
    assert_eq!(kept(&asked.plan(&policy(0), &catalog), &catalog), [4]);
}

#[test]
fn the_minimum_counts_backups_that_can_be_restored() {
    let whole = daily(4);
    let mut holed = Catalog::builder("main".parse().expect("a name"), crate::SystemIdentifier::new(7), whole.segment_size());
    whole.backups().iter().for_each(|backup| holed.backup(backup.clone()));
    for number in 1..=6 {
        let name = SegmentNumber::new(number).name(TimelineId::FIRST, whole.segment_size());
        holed.object(&ObjectName::Wal(WalFileName::Segment(name)), 10);
    }
    // The WAL of the newest backup, in segment 7, is not there.
    let catalog = holed.build();
    let plan = Asked::on(at(400 * DAY)).plan(&Policy { minimum: 2, ..policy(7) }, &catalog);
    assert_eq!(kept(&plan, &catalog), [1, 2]);
    let none = Asked::on(at(400 * DAY)).plan(&Policy { minimum: 0, ..policy(7) }, &catalog);
    assert_eq!(kept(&none, &catalog), [2], "one at least: {none:?}");
}

#[test]
fn no_wal_goes_while_nothing_can_be_restored() {
    let size = SegmentSize::new(MIB).expect("a size");
    let mut builder = Catalog::builder("main".parse().expect("a name"), crate::SystemIdentifier::new(7), size);
    for number in 1..10 {
        builder.object(&ObjectName::Wal(WalFileName::Segment(SegmentNumber::new(number).name(TimelineId::FIRST, size))), 10);
    }
    assert!(Asked::on(at(900 * DAY)).plan(&policy(1), &builder.build()).is_empty());
}

#[test]
fn a_backup_under_way_keeps_its_wal() {
    let catalog = daily(10);
    let mut asked = Asked::on(at(9 * DAY + 3600));
    asked.under_way.push(Lsn::new(5 * MIB + 40));
    let plan = asked.plan(&policy(0), &catalog);
    assert_eq!(kept(&plan, &catalog), [9]);
    assert_eq!(plan.wal, [ExpiredWal { timeline: TimelineId::FIRST, from: Lsn::new(MIB), to: Lsn::new(5 * MIB) }]);
}

#[test]
fn a_clock_that_is_ahead_lets_nothing_go() {
    let catalog = daily(10);
    let newest = catalog.backups().last().map(|backup| backup.ended_at);
    let ahead = present(at(2 * 365 * DAY), newest, None);
    assert_eq!(Some(ahead), newest);
    assert!(Asked::on(ahead).plan(&policy(14), &catalog).is_empty());
    assert_eq!(present(at(3), newest, None), at(3), "one that is behind keeps more");
    // Server and host are one machine; the store is another.
    assert_eq!(present(at(900 * DAY), Some(at(900 * DAY)), Some(at(9 * DAY))), at(9 * DAY));
    assert_eq!(jumped(&policy(14), &catalog, at(9 * DAY + 60)), None);
    assert_eq!(jumped(&policy(14), &catalog, at(29 * DAY)), Some(at(8 * DAY + 60)), "more than the whole window behind the backup before");
}

/// A higher timeline is a stray promotion: the lower one lives, and is quiet.
#[test]
fn a_quiet_timeline_with_a_fresh_backup_keeps_its_end() {
    let size = SegmentSize::new(MIB).expect("a size");
    let mut builder = Catalog::builder("main".parse().expect("a name"), crate::SystemIdentifier::new(7), size);
    builder.history(TimelineHistory::parse(tli(2), format!("1\t{}\tx\n", Lsn::new(3 * MIB)).as_bytes()).expect("a history"));
    for (timeline, number) in [(1, 1), (1, 2), (1, 3), (1, 4), (1, 5), (1, 6), (2, 3)] {
        builder.object(&ObjectName::Wal(WalFileName::Segment(SegmentNumber::new(number).name(tli(timeline), size))), 10);
    }
    for (number, day) in [(1, 0), (4, 30)] {
        builder.backup(without_hold(crate::backup::tests::record(1, number * MIB + 40, number * MIB + 100, (day * DAY, day * DAY + 60))));
    }
    let mut asked = Asked::on(at(30 * DAY + 3600));
    asked.last_moments.insert(tli(1), at(20 * DAY));
    let plan = asked.plan(&policy(2), &builder.build());
    assert!(plan.wal.iter().all(|wal| wal.timeline != tli(1) || wal.to <= Lsn::new(4 * MIB)), "{plan:?}");
}

#[test]
fn what_is_not_known_stays() {
    let size = SegmentSize::new(MIB).expect("a size");
    let mut builder = Catalog::builder("main".parse().expect("a name"), crate::SystemIdentifier::new(7), size);
    // The history of timeline 2 is lost.
    for (timeline, number, day) in [(2, 3, 0), (2, 5, 1), (1, 1, 2), (1, 7, 3)] {
        builder.backup(without_hold(crate::backup::tests::record(
            timeline,
            number * MIB + 40,
            number * MIB + 100,
            (day * DAY, day * DAY + 60),
        )));
    }
    let lost = builder.build();
    let plan = Asked::on(at(90 * DAY)).plan(&policy(1), &lost);
    assert!(plan.is_empty(), "nothing can be restored, so nothing goes: {plan:?}");
    let mut builder = lost.without_wal();
    for number in 1..9 {
        builder.object(&ObjectName::Wal(WalFileName::Segment(SegmentNumber::new(number).name(tli(1), size))), 10);
    }
    let plan = Asked::on(at(90 * DAY)).plan(&policy(1), &builder.build());
    let unknown = plan.kept.iter().filter(|kept| kept.reasons == [Reason::Unknown]).count();
    assert_eq!((unknown, plan.expired.len()), (2, 1), "{plan:?}");
}

#[test]
fn a_clock_that_was_set_back_makes_no_backup_older() {
    let size = SegmentSize::new(MIB).expect("a size");
    let mut builder = Catalog::builder("main".parse().expect("a name"), crate::SystemIdentifier::new(7), size);
    // The second backup was taken with a clock that was 300 days behind.
    for (number, day) in [(1, 310), (3, 11), (5, 312)] {
        builder.backup(without_hold(crate::backup::tests::record(1, number * MIB + 40, number * MIB + 100, (day * DAY, day * DAY + 60))));
    }
    for number in 1..8 {
        builder.object(&ObjectName::Wal(WalFileName::Segment(SegmentNumber::new(number).name(TimelineId::FIRST, size))), 10);
    }
    let plan = Asked::on(at(312 * DAY + 3600)).plan(&policy(10), &builder.build());
    assert!(plan.is_empty(), "{plan:?}");
}

#[test]
fn a_timeline_without_moments_in_the_window_goes_and_what_grew_out_of_it_stays() {
    // Timeline 2 left timeline 1 in segment 6; 1 went on up to segment 9.
    let size = SegmentSize::new(MIB).expect("a size");
    let mut builder = Catalog::builder("main".parse().expect("a name"), crate::SystemIdentifier::new(7), size);
    builder.history(TimelineHistory::parse(tli(2), format!("1\t{}\tx\n", Lsn::new(6 * MIB + 100)).as_bytes()).expect("a history"));
    let mut segments = |timeline: u32, numbers: std::ops::Range<u64>| {
        for number in numbers {
            builder.object(&ObjectName::Wal(WalFileName::Segment(SegmentNumber::new(number).name(tli(timeline), size))), 10);
        }
    };
    segments(1, 1..10);
    segments(2, 6..20);
    for (timeline, number, day) in [(1, 1, 0), (1, 4, 5), (1, 8, 7), (2, 15, 40)] {
        builder.backup(without_hold(crate::backup::tests::record(
            timeline,
            number * MIB + 40,
            number * MIB + 100,
            (day * DAY, day * DAY + 60),
        )));
    }
    let catalog = builder.build();
    let mut asked = Asked::on(at(45 * DAY));
    asked.last_moments.insert(tli(1), at(8 * DAY));
    let plan = asked.plan(&policy(10), &catalog);
    // The window of timeline 2 begins with the backup of day 5, before it left timeline 1.
    assert_eq!(kept(&plan, &catalog), [5, 40]);
    let expired =
        |timeline: u32, from: u64, to: u64| ExpiredWal { timeline: tli(timeline), from: Lsn::new(from * MIB), to: Lsn::new(to * MIB) };
    assert_eq!(plan.wal, [expired(1, 1, 4), expired(1, 7, 10)]);
    // While it is not known when timeline 1 ended, it stays.
    asked.last_moments.clear();
    let plan = asked.plan(&policy(10), &catalog);
    assert_eq!(kept(&plan, &catalog), [5, 7, 40]);
    assert_eq!(plan.wal, [expired(1, 1, 4), expired(1, 7, 8)], "what lies between the two windows");
}

/// When a cell was written, on whatever timeline.
fn moment(index: u64) -> DateTime<Utc> {
    at(index as i64 * 100)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    /// Whatever could be restored of the window before an expiry can be afterwards, and so can every backup that is kept; on any tree of timelines.
    #[test]
    fn no_promise_is_broken(
        world in world(),
        window in 0i64..4000,
        counts in (0u32..3, 0u32..3, 0u32..2),
        minimum in 0u32..3,
        held in prop::collection::vec(any::<bool>(), 4),
        known in prop::collection::vec(any::<bool>(), 5),
        under_way in prop::option::of(CELLS..END_CELL),
    ) {
        let before = world.timed_catalog(moment);
        let policy = Policy {
            window: TimeDelta::seconds(window), daily: counts.0, weekly: counts.1, monthly: counts.2, yearly: 0, minimum, zone: Tz::UTC,
        };
        let mut asked = Asked::on(moment(END_CELL));
        for (backup, held) in before.backups().iter().zip(&held) {
            asked.holds.insert(backup.id.clone(), held.then_some(Keep::Forever));
        }
        for timeline in (1..=world.timelines()).filter(|timeline| known[*timeline as usize - 1]) {
            // No cell of it is written later than the end of what is stored of it.
            if let Some(end) = before.frontier(tli(timeline)) {
                asked.last_moments.insert(tli(timeline), moment(end.get() / (MIB / CELLS)));
            }
        }
        asked.under_way.extend(under_way.map(cell));
        let plan = asked.plan(&policy, &before);
        let rest = after(&before, &plan);
        let kept = |id: &BackupId| plan.kept.iter().any(|kept| kept.id == *id);
        // Every backup either stays or goes, and those that are held stay.
        prop_assert_eq!(plan.kept.len() + plan.expired.len(), before.backups().len());
        for (backup, held) in before.backups().iter().zip(&held) {
            prop_assert!(!held || kept(&backup.id));
        }
        for timeline in 1..=world.timelines() {
            let path = world.history(timeline);
            let on_path = |catalog: &Catalog| catalog.backups().iter().filter(|backup| catalog.is_on(backup, &path)).cloned().collect::<Vec<_>>();
            // A kept backup that could be restored can be.
            for backup in on_path(&before).iter().filter(|backup| kept(&backup.id)) {
                let whole = before.reach(&path, backup.start_lsn).to >= backup.stop_lsn;
                prop_assert!(!whole || rest.reach(&path, backup.start_lsn).to >= backup.stop_lsn);
            }
            // Every moment of the window that could be restored can be.
            for index in CELLS..END_CELL {
                if moment(index) < plan.window_from {
                    continue;
                }
                let reaches = |catalog: &Catalog| {
                    let reaches = |backup: &BackupRecord| backup.stop_lsn <= cell(index) && catalog.reach(&path, backup.start_lsn).to > cell(index);
                    on_path(catalog).iter().any(reaches)
                };
                prop_assert!(!reaches(&before) || reaches(&rest), "cell {index} of timeline {timeline} was within reach: {plan:?}");
            }
        }
        // As many as there must be, if there were.
        let paths: Vec<TimelineHistory> = (1..=world.timelines()).map(|timeline| world.history(timeline)).collect();
        let usable = |catalog: &Catalog| catalog.backups().iter().filter(|backup| is_usable(catalog, &paths, backup)).count();
        prop_assert!(usable(&rest) >= usable(&before).min(policy.minimum.max(1) as usize));
        if let Some(start) = under_way {
            prop_assert!(plan.wal.iter().all(|wal| wal.to <= cell(start)));
        }
        // Who asks again is told that nothing is left to do.
        let again = asked.plan(&policy, &rest);
        prop_assert!(again.expired.is_empty(), "{again:?}");
    }
}
