//! Plans over small hand-made repositories, and over random ones against the catalog's oracle.

use proptest::prelude::*;

use super::*;
use crate::backup::tests::record;
use crate::catalog::{CatalogBuilder, GapCause, GapRecord};
use crate::event::{WalEvent, WalEventKind};
use crate::identity::SystemIdentifier;
use crate::layout::{GapName, ObjectName, PartName};
use crate::segment::{SegmentNumber, SegmentSize};
use crate::target::{RecoverySettings, TargetAction, TargetSearch};
use crate::wal_file::WalFileName;

const MIB: u64 = 1 << 20;

fn tli(value: u32) -> TimelineId {
    TimelineId::new(value).expect("not zero")
}

fn size() -> SegmentSize {
    SegmentSize::new(MIB).expect("a size")
}

/// The moment `second` seconds into 2026-11-21, the day of the test backups.
fn at(second: i64) -> PgTimestamp {
    PgTimestamp::from_utc(DateTime::from_timestamp(1_795_219_200 + second, 0).expect("a time"))
}

struct Repository(CatalogBuilder);

impl Repository {
    fn new() -> Self {
        Self(Catalog::builder("main".parse().expect("a name"), SystemIdentifier::new(7), size()))
    }

    fn segments(mut self, timeline: u32, numbers: impl IntoIterator<Item = u64>) -> Self {
        for number in numbers {
            let name = SegmentNumber::new(number).name(tli(timeline), size());
            self.0.object(&ObjectName::Wal(WalFileName::Segment(name)), 1000);
        }
        self
    }

    fn parts(mut self, timeline: u32, number: u64, parts: &[(u32, u32)]) -> Self {
        let segment = SegmentNumber::new(number).name(tli(timeline), size());
        for (from, to) in parts {
            self.0.object(&ObjectName::Part(PartName { segment, from: *from, to: *to, epoch: 1 }), 10);
        }
        self
    }

    fn history(mut self, timeline: u32, ancestors: &[(u32, u64)]) -> Self {
        let lines = ancestors.iter().map(|(parent, switch)| format!("{parent}\t{}\tpromoted\n", Lsn::new(*switch)));
        self.0.history(TimelineHistory::parse(tli(timeline), lines.collect::<String>().as_bytes()).expect("a history"));
        self
    }

    fn backup(mut self, timeline: u32, start: u64, stop: u64, seconds: (i64, i64)) -> Self {
        self.0.backup(record(timeline, start, stop, seconds));
        self
    }

    fn gap(mut self, timeline: u32, from: u64, to: u64, cause: GapCause) -> Self {
        let name = GapName { timeline: tli(timeline), from: Lsn::new(from), to: Lsn::new(to) };
        self.0.gap(GapRecord { name, cause, recorded_at: DateTime::from_timestamp(0, 0).expect("a time"), closed_at: None });
        self
    }

    fn build(self) -> Catalog {
        self.0.build()
    }
}

fn lsn(value: u64) -> RecoveryTarget {
    RecoveryTarget::new(TargetKind::Lsn(Lsn::new(value)))
}

fn time(second: i64) -> RecoveryTarget {
    RecoveryTarget::new(TargetKind::Time(at(second)))
}

fn on(timeline: u32, target: RecoveryTarget) -> RecoveryTarget {
    RecoveryTarget { timeline: Some(tli(timeline)), ..target }
}

fn commit(start: u64, xid: u32, second: i64) -> WalEvent {
    WalEvent { start: Lsn::new(start), end: Lsn::new(start + 0x30), kind: WalEventKind::Commit { xid, time: at(second) } }
}

fn restore_point(start: u64, name: &str, second: i64) -> WalEvent {
    let kind = WalEventKind::RestorePoint { name: name.into(), time: at(second) };
    WalEvent { start: Lsn::new(start), end: Lsn::new(start + 0x60), kind }
}

fn named(name: &str) -> RecoveryTarget {
    RecoveryTarget::new(TargetKind::RestorePoint(RestorePointName::parse(name).expect("a name")))
}

fn searched(candidate: &Candidate, events: &[WalEvent]) -> SearchOutcome {
    let mut search = TargetSearch::new(&candidate.target, candidate.backup.stop_lsn);
    let range = candidate.search;
    for event in events.iter().filter(|event| event.start >= range.from && event.end <= range.to) {
        search.event(event);
    }
    search.finish(range.to)
}

/// What the agent does: the candidates in order, each searched, until one gives a plan.
fn plan(catalog: &Catalog, target: &RecoveryTarget, events: &[WalEvent]) -> Result<RestorePlan, Refusal> {
    plan_with(catalog, target, events, &Witness::NotAsked)
}

fn plan_with(catalog: &Catalog, target: &RecoveryTarget, events: &[WalEvent], witness: &Witness) -> Result<RestorePlan, Refusal> {
    let mut refusal = None;
    for candidate in candidates(catalog, target)? {
        match finish(&candidate, &searched(&candidate, events), catalog, witness) {
            Err(reason) if reason.tries_older() => refusal = Some(refusal.map_or(reason.clone(), |newer: Refusal| newer.and_older(reason))),
            done => return done,
        }
    }
    Err(refusal.expect("there is a candidate"))
}

fn plan_unsearched(catalog: &Catalog, target: &RecoveryTarget) -> Result<RestorePlan, Refusal> {
    finish(&candidates(catalog, target)?[0], &SearchOutcome::Skipped, catalog, &Witness::NotAsked)
}

fn files(plan: &RestorePlan) -> Vec<(u32, u64)> {
    plan.wal.iter().map(|file| (file.segment.timeline().get(), file.segment.number(size()).expect("a number").get())).collect()
}

/// Two backups on timeline 1, WAL to the end of segment 9: commits 1000.. one a segment, at 100, 200, ... seconds.
fn simple() -> Repository {
    Repository::new().segments(1, 2..10).backup(1, 2 * MIB + 40, 2 * MIB + 400, (10, 20)).backup(1, 5 * MIB + 40, 5 * MIB + 400, (410, 420))
}

fn simple_events() -> Vec<WalEvent> {
    (2..10).map(|segment| commit(segment * MIB + 0x800, 1000 + segment as u32, (segment as i64 - 1) * 100)).collect()
}

#[test]
fn the_newest_backup_that_ended_before_the_target_is_taken() {
    let catalog = simple().build();
    let late = plan(&catalog, &time(650), &simple_events()).expect("a plan");
    assert_eq!(late.backup.start_lsn, Lsn::new(5 * MIB + 40));
    assert_eq!(late.last_replayed.map(|commit| commit.xid), Some(1007));
    assert_eq!(late.first_not_replayed.map(|commit| commit.xid), Some(1008));
    assert_eq!(late.stop_lsn, Lsn::new(8 * MIB + 0x800));
    assert_eq!(files(&late), [(1, 5), (1, 6), (1, 7), (1, 8)]);
    assert_eq!((late.wal_objects, late.wal_bytes, late.fetch_bytes), (4, 4000, 9_004_000));
    let early = plan(&catalog, &time(350), &simple_events()).expect("a plan");
    assert_eq!(early.backup.start_lsn, Lsn::new(2 * MIB + 40));
    assert_eq!(early.last_replayed.map(|commit| commit.xid), Some(1004));
}

#[test]
fn a_time_exactly_at_a_commit() {
    let mut events = simple_events();
    events.insert(6, commit(7 * MIB + 0x900, 2000, 600));
    let catalog = simple().build();
    let with = plan(&catalog, &time(600), &events).expect("a plan");
    assert_eq!(with.last_replayed.map(|commit| commit.xid), Some(2000), "both commits of the microsecond");
    let without = plan(&catalog, &RecoveryTarget { inclusive: false, ..time(600) }, &events).expect("a plan");
    assert_eq!(without.last_replayed.map(|commit| commit.xid), Some(1006), "neither");
    assert_eq!(without.first_not_replayed.map(|commit| commit.xid), Some(1007));
}

#[test]
fn t1_a_target_before_the_first_backup_ended_is_refused_with_the_earliest() {
    let catalog = simple().build();
    for target in [time(19), lsn(2 * MIB + 399), lsn(0)] {
        match plan(&catalog, &target, &simple_events()) {
            Err(refusal @ Refusal::BeforeFirstBackup { .. }) => {
                assert!(refusal.to_string().contains("earliest reachable is 2026-11-21 00:00:20+00 (LSN 0/200190"), "{refusal}");
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(plan_unsearched(&catalog, &lsn(2 * MIB + 400)).is_ok(), "the stop itself is reachable");
    // Between the two backups' ends the older one leads there.
    assert_eq!(plan_unsearched(&catalog, &lsn(5 * MIB + 399)).expect("a plan").backup.start_lsn, Lsn::new(2 * MIB + 40));
    let asked = RecoveryTarget { backup: Some(catalog.backups()[1].id.clone()), ..lsn(5 * MIB + 399) };
    assert!(matches!(candidates(&catalog, &asked), Err(Refusal::BeforeFirstBackup { earliest: Some(_), .. })));
}

#[test]
fn t2_a_gap_before_the_target_is_refused_with_the_last_reachable_commit() {
    let gapped = Repository::new().segments(1, (2..5).chain(7..10)).backup(1, 2 * MIB + 40, 2 * MIB + 400, (10, 20));
    let catalog = gapped.gap(1, 5 * MIB, 7 * MIB, GapCause::SlotLost).build();
    match plan(&catalog, &time(650), &simple_events()) {
        Err(refusal @ Refusal::WalMissing { .. }) => {
            let text = refusal.to_string();
            assert!(text.contains("000000010000000000000005 to 000000010000000000000006"), "{text}");
            assert!(text.contains("transaction 1004 at 2026-11-21 00:05:00.000000+00 (--xid 1004)") && text.contains("SlotLost"), "{text}");
        }
        other => panic!("{other:?}"),
    }
    for target in [lsn(5 * MIB), lsn(6 * MIB), lsn(8 * MIB), RecoveryTarget::new(TargetKind::Latest)] {
        assert!(matches!(candidates(&catalog, &target), Err(Refusal::WalMissing { .. })), "{target:?}");
    }
    assert!(plan(&catalog, &time(250), &simple_events()).is_ok(), "before the gap");
    assert!(plan_unsearched(&catalog, &lsn(5 * MIB - 1)).is_ok());
    match plan(&catalog, &RecoveryTarget::new(TargetKind::Xid(1008)), &simple_events()) {
        Err(Refusal::NotFound { hole: Some(hole), .. }) => assert_eq!(hole.resumes, Some(Lsn::new(7 * MIB))),
        other => panic!("{other:?}"),
    }
}

#[test]
fn g9_wal_of_a_minimal_server_is_a_gap_though_it_is_stored() {
    let catalog = simple().gap(1, 6 * MIB, 6 * MIB + 100, GapCause::MinimalWal).build();
    assert!(plan_unsearched(&catalog, &lsn(6 * MIB - 1)).is_ok());
    match candidates(&catalog, &lsn(7 * MIB)) {
        Err(refusal @ Refusal::WalMissing { .. }) => assert!(refusal.to_string().contains("wal_level = minimal"), "{refusal}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_another_history_wrote_behind_is_not_replayed() {
    let catalog = simple().gap(1, 7 * MIB - 100, 7 * MIB, GapCause::OtherHistory).backup(1, 8 * MIB, 8 * MIB + 100, (800, 810)).build();
    assert!(plan_unsearched(&catalog, &lsn(7 * MIB - 101)).is_ok(), "the first history can be restored up to its end");
    match candidates(&catalog, &lsn(7 * MIB + 100)) {
        Err(refusal @ Refusal::WalMissing { .. }) => {
            let text = refusal.to_string();
            assert!(text.contains("put back to an older state") && !text.contains("minimal"), "{text}");
        }
        other => panic!("{other:?}"),
    }
    assert!(plan_unsearched(&catalog, &lsn(9 * MIB)).is_ok(), "from the backup behind it");
    let windows = catalog.report()[0].windows.iter().map(|window| (window.earliest.lsn, window.latest)).collect::<Vec<_>>();
    assert_eq!(windows[0].1, Lsn::new(7 * MIB - 100));
    assert_eq!(windows[1].0, Lsn::new(8 * MIB + 100));
}

#[test]
fn t3_a_target_after_the_end_is_refused_with_the_latest() {
    let catalog = simple().build();
    match plan(&catalog, &time(5000), &simple_events()) {
        Err(refusal @ Refusal::TimeNotReached { .. }) => assert!(refusal.to_string().contains("--xid 1009"), "{refusal}"),
        other => panic!("{other:?}"),
    }
    for target in [lsn(10 * MIB), lsn(u64::MAX)] {
        assert!(matches!(candidates(&catalog, &target), Err(Refusal::AfterEndOfWal { .. })));
    }
    let latest = plan_unsearched(&catalog, &RecoveryTarget::new(TargetKind::Latest)).expect("a plan");
    assert_eq!((latest.stop_lsn, latest.resolved), (Lsn::new(10 * MIB), ResolvedTarget::EndOfWal));
}

#[test]
fn t3_an_idle_tail_is_reached_where_the_clock_is_known_to_have_passed() {
    let mut events = simple_events();
    events.push(restore_point(9 * MIB + 0x900, "noon", 3000));
    let catalog = simple().build();
    let idle = plan(&catalog, &time(2000), &events).expect("a plan");
    assert_eq!(idle.resolved, ResolvedTarget::Lsn { lsn: Lsn::new(9 * MIB + 0x900), inclusive: false });
    assert_eq!(idle.last_replayed.map(|commit| commit.xid), Some(1009));
    // A commit behind the mark takes the proof away: it belongs to the time asked for.
    events.push(commit(9 * MIB + 0xA00, 3000, 1999));
    assert!(matches!(plan(&catalog, &time(2000), &events), Err(Refusal::TimeNotReached { .. })));
}

#[test]
fn t9_a_backup_lacking_wal_of_its_own_is_passed_over() {
    let events = [restore_point(4 * MIB, "before", 350)];
    let broken = Repository::new().segments(1, (2..6).chain(7..10)).backup(1, 2 * MIB + 40, 2 * MIB + 400, (10, 20));
    let catalog = broken.backup(1, 5 * MIB + 40, 6 * MIB + 400, (410, 420)).build();
    let older = plan(&catalog, &named("before"), &events).expect("a plan");
    assert_eq!(older.backup.start_lsn, Lsn::new(2 * MIB + 40));
    assert!(older.warnings[0].contains("of no use"), "{:?}", older.warnings);
    let immediate = plan_unsearched(&catalog, &RecoveryTarget::new(TargetKind::Immediate)).expect("a plan");
    assert_eq!(immediate.stop_lsn, Lsn::new(2 * MIB + 400));
    assert!(matches!(candidates(&catalog, &lsn(8 * MIB)), Err(Refusal::WalMissing { .. })));
    let asked = RecoveryTarget { backup: Some(catalog.backups()[1].id.clone()), ..RecoveryTarget::new(TargetKind::Immediate) };
    assert!(matches!(candidates(&catalog, &asked), Err(Refusal::BackupsUnusable { .. })));
}

#[test]
fn a_restore_point_within_the_newer_backup_is_reached_from_the_older() {
    let events = [restore_point(5 * MIB + 100, "within", 415), restore_point(3 * MIB, "early", 200), restore_point(7 * MIB, "late", 600)];
    let catalog = simple().build();
    for (name, backup) in [("within", 2), ("early", 2), ("late", 5)] {
        let mut events = events.to_vec();
        events.sort_by_key(|event| event.start);
        let plan = plan(&catalog, &named(name), &events).expect(name);
        assert_eq!(plan.backup.start_lsn, Lsn::new(backup * MIB + 40), "{name}");
    }
}

/// Timeline 2 left 1 in the middle of segment 5, and 3 left 1 in the middle of segment 4; 4 left 3 in segment 6. Timeline 1 went on.
fn tree() -> Repository {
    let half = MIB / 2;
    Repository::new()
        .segments(1, 2..9)
        .segments(2, 5..8)
        .segments(3, 4..7)
        .segments(4, 6..9)
        .history(2, &[(1, 5 * MIB + half)])
        .history(3, &[(1, 4 * MIB + half)])
        .history(4, &[(1, 4 * MIB + half), (3, 6 * MIB + half)])
        .backup(1, 2 * MIB + 40, 2 * MIB + 400, (10, 20))
        .backup(2, 6 * MIB + 40, 6 * MIB + 400, (610, 620))
}

#[test]
fn g5_every_branch_of_a_tree_is_restorable_by_its_own_lineage() {
    let catalog = tree().build();
    assert_eq!(catalog.children(tli(1)), [tli(2), tli(3)]);
    let along = |timeline| plan_unsearched(&catalog, &on(timeline, RecoveryTarget::new(TargetKind::Latest))).expect("a plan");
    assert_eq!(files(&along(1)), (2..9).map(|n| (1, n)).collect::<Vec<_>>());
    assert_eq!(files(&along(2)), [(2, 6), (2, 7)], "its own backup");
    assert_eq!(files(&along(3)), [(1, 2), (1, 3), (3, 4), (3, 5), (3, 6)]);
    assert_eq!(files(&along(4)), [(1, 2), (1, 3), (3, 4), (3, 5), (4, 6), (4, 7), (4, 8)]);
    let newest = plan_unsearched(&catalog, &RecoveryTarget::new(TargetKind::Latest)).expect("a plan");
    assert_eq!(newest.timeline, tli(4));
    let legs: Vec<_> = newest.path.iter().map(|leg| (leg.timeline.get(), leg.from.get(), leg.to.get())).collect();
    let (first, second) = (4 * MIB + MIB / 2, 6 * MIB + MIB / 2);
    assert_eq!(legs, [(1, 2 * MIB + 40, first), (3, first, second), (4, second, 9 * MIB)]);
}

#[test]
fn t4_an_abandoned_sibling_is_reached_only_by_name() {
    let catalog = tree().build();
    let target = lsn(7 * MIB + 5);
    let named = plan_unsearched(&catalog, &on(2, target.clone())).expect("a plan");
    assert_eq!((named.timeline, named.backup.timeline), (tli(2), tli(2)));
    let newest = plan_unsearched(&catalog, &target).expect("a plan");
    assert_eq!(newest.timeline, tli(4));
    assert!(newest.warnings.iter().any(|warning| warning.contains("reached with --timeline 1")), "{:?}", newest.warnings);
    let wrong = RecoveryTarget { backup: Some(catalog.backups()[1].id.clone()), ..on(4, target) };
    match candidates(&catalog, &wrong) {
        Err(Refusal::NotAncestor { reachable_on, .. }) => assert_eq!(reachable_on, [tli(2)]),
        other => panic!("{other:?}"),
    }
}

#[test]
fn targets_exactly_at_a_switch_point() {
    let catalog = tree().build();
    let switch = 5 * MIB + MIB / 2;
    for target in [switch - 1, switch, switch + 1] {
        let plan = plan_unsearched(&catalog, &on(2, lsn(target))).expect("a plan");
        assert_eq!(files(&plan).last(), Some(&(2, 5)), "the child's file holds both sides");
    }
    // Without the child's file the parent's is good up to the switch point only.
    let bare = Repository::new().segments(1, 2..9).history(2, &[(1, switch)]).backup(1, 2 * MIB + 40, 2 * MIB + 400, (10, 20)).build();
    let before = plan_unsearched(&bare, &on(2, lsn(switch - 1))).expect("a plan");
    assert_eq!(files(&before).last(), Some(&(1, 5)));
    match candidates(&bare, &on(2, lsn(switch))) {
        Err(Refusal::WalMissing { hole, .. }) => assert_eq!((hole.at, hole.strays), (Lsn::new(switch), Some(tli(1)))),
        other => panic!("{other:?}"),
    }
    assert!(matches!(candidates(&bare, &RecoveryTarget::new(TargetKind::Latest)), Err(Refusal::WalMissing { .. })), "it would stray");
    assert!(plan_unsearched(&bare, &on(1, RecoveryTarget::new(TargetKind::Latest))).is_ok());
}

#[test]
fn a_target_stored_only_in_the_next_timelines_segment() {
    let switch = 5 * MIB + MIB / 2;
    let repository = Repository::new().segments(1, 2..5).segments(2, 5..7).history(2, &[(1, switch)]);
    let catalog = repository.backup(1, 2 * MIB + 40, 2 * MIB + 400, (10, 20)).build();
    let plan = plan_unsearched(&catalog, &lsn(switch - 100)).expect("a plan");
    assert_eq!(files(&plan), [(1, 2), (1, 3), (1, 4), (2, 5)]);
    assert!(matches!(candidates(&catalog, &on(1, lsn(switch - 100))), Err(Refusal::AfterEndOfWal { .. })));
}

#[test]
fn a_plan_knows_of_the_hole_behind_it() {
    let whole = Repository::new().segments(1, 2..8).backup(1, 2 * MIB + 40, 2 * MIB + 400, (10, 20)).build();
    let broken = Repository::new().segments(1, 2..5).segments(1, 6..8).backup(1, 2 * MIB + 40, 2 * MIB + 400, (10, 20)).build();
    for (catalog, hole) in [(whole, false), (broken, true)] {
        let mut plan = plan_unsearched(&catalog, &lsn(4 * MIB + 100)).expect("a plan");
        assert_eq!(plan.hole_follows, hole);
        let reads_ahead = |plan: &RestorePlan| {
            let settings = RecoverySettings::new(plan, TargetAction::Promote);
            settings.settings().iter().all(|(name, _)| *name != "recovery_prefetch")
        };
        assert_eq!(reads_ahead(&plan), !hole);
        plan.backup.major_version = MajorVersion::new(14);
        assert!(reads_ahead(&plan), "14 knows no such setting");
    }
}

#[test]
fn a_tail_of_parts_is_reached_to_its_last_byte() {
    let with = |parts: &[(u32, u32)]| {
        Repository::new().segments(1, 2..4).parts(1, 4, parts).backup(1, 2 * MIB + 40, 2 * MIB + 400, (10, 20)).build()
    };
    let catalog = with(&[(0, 4096), (4096, 8192), (2048, 9000)]);
    let latest = plan_unsearched(&catalog, &RecoveryTarget::new(TargetKind::Latest)).expect("a plan");
    assert_eq!(latest.stop_lsn, Lsn::new(4 * MIB + 9000));
    assert_eq!((latest.wal_objects, latest.wal_bytes), (4, 2020), "two segments and the two parts that suffice");
    assert!(plan_unsearched(&catalog, &lsn(4 * MIB + 8999)).is_ok());
    assert!(matches!(candidates(&catalog, &lsn(4 * MIB + 9000)), Err(Refusal::AfterEndOfWal { .. })));

    let catalog = with(&[(0, 4096), (4096, 8192), (2048, 9000), (9500, 10_000)]);
    for target in [RecoveryTarget::new(TargetKind::Latest), lsn(4 * MIB + 9000), lsn(4 * MIB + 9600)] {
        let Err(Refusal::WalMissing { hole, .. }) = candidates(&catalog, &target) else { panic!("{target:?} is not refused for the hole") };
        assert_eq!((hole.at, hole.resumes, hole.in_parts), (Lsn::new(4 * MIB + 9000), Some(Lsn::new(4 * MIB + 9500)), true));
    }
    let before = plan_unsearched(&catalog, &lsn(4 * MIB + 8999)).expect("a plan");
    assert!(before.hole_follows, "a server must not read ahead into it");
    assert_eq!(catalog.holes(TimelineId::FIRST), [WalRange { from: Lsn::new(4 * MIB + 9000), to: Lsn::new(4 * MIB + 9500) }]);
    // Without a beginning.
    let catalog = with(&[(9500, 10_000)]);
    assert!(matches!(candidates(&catalog, &RecoveryTarget::new(TargetKind::Latest)), Err(Refusal::WalMissing { .. })));
    assert_eq!(catalog.holes(TimelineId::FIRST), [WalRange { from: Lsn::new(4 * MIB), to: Lsn::new(4 * MIB + 9500) }]);
}

#[test]
fn what_is_unknown_is_refused() {
    let catalog = simple().segments(3, 9..10).build();
    let unknown = |target: RecoveryTarget| candidates(&catalog, &target).expect_err("unknown");
    assert!(matches!(unknown(on(2, lsn(0))), Refusal::UnknownTimeline { .. }));
    assert!(matches!(unknown(on(3, lsn(0))), Refusal::NoHistory { .. }));
    let other = record(1, 77, 99, (0, 1)).id;
    assert!(matches!(unknown(on(1, RecoveryTarget { backup: Some(other), ..lsn(0) })), Refusal::UnknownBackup { newest: Some(_), .. }));
    assert!(matches!(candidates(&Repository::new().build(), &lsn(0)), Err(Refusal::NoBackups { .. })));
    // The newest timeline is meant, and nobody knows where it began.
    for target in [RecoveryTarget::new(TargetKind::Latest), lsn(3 * MIB), time(650)] {
        let refusal = unknown(target);
        assert!(matches!(refusal, Refusal::NoHistory { older: Some(TimelineId::FIRST), .. }), "{refusal:?}");
        assert!(refusal.to_string().contains("00000003.history") && refusal.to_string().contains("--timeline 1"), "{refusal}");
    }
    let plan = plan_unsearched(&catalog, &on(1, RecoveryTarget::new(TargetKind::Latest))).expect("a plan");
    assert_eq!(plan.history_missing, Some(tli(3)), "it cannot be opened for writes");
    assert!(plan.warnings.iter().any(|warning| warning.contains("stored without its history")), "{:?}", plan.warnings);
    let plan = plan_unsearched(&tree().build(), &on(1, lsn(3 * MIB))).expect("a plan");
    assert_eq!(plan.history_missing, None, "every timeline has its history");
}

#[test]
fn only_a_search_tells_times_transactions_and_names() {
    let catalog = simple().build();
    for target in [time(650), RecoveryTarget::new(TargetKind::Xid(5)), named("x")] {
        assert!(matches!(plan_unsearched(&catalog, &target), Err(Refusal::NotSearched { .. })));
    }
}

#[test]
fn c1_a_clock_that_ran_backwards_is_reported() {
    let events = [commit(6 * MIB, 1, 500), commit(6 * MIB + 0x100, 2, 9000), commit(6 * MIB + 0x200, 3, 510)];
    let plan = plan(&simple().build(), &time(520), &events).expect("a plan");
    assert_eq!(plan.last_replayed.map(|commit| commit.xid), Some(1));
    assert!(plan.warnings[0].contains("the time asked for, 1, are written after"), "{:?}", plan.warnings);
}

#[test]
fn c1_the_safe_position_is_offered_with_its_option() {
    let events = [commit(6 * MIB, 1, 500), commit(6 * MIB + 0x100, 2, 9000), commit(6 * MIB + 0x200, 3, 510)];
    let plan = plan(&simple().build(), &on(1, time(520)), &events).expect("a plan");
    let clock = plan.clock.expect("a report");
    assert_eq!((clock.cause, clock.candidates.len()), (Backwards::SetBack, 1));
    assert_eq!(option(&plan.target, clock.candidates[0].lsn), "--lsn 0/600200 --timeline 1");
    assert!(plan.warnings[0].ends_with("set back; with all of them: --lsn 0/600200 --timeline 1"), "{:?}", plan.warnings);
}

#[test]
fn c1_a_time_that_an_older_backup_had_passed() {
    // The clock was ahead when the second backup was taken, and was set back before the third.
    let backups = simple().backup(1, 7 * MIB + 40, 7 * MIB + 400, (150, 160));
    let events = [commit(6 * MIB, 1, 500), commit(8 * MIB, 2, 170), commit(9 * MIB, 3, 500)];
    let catalog = backups.build();
    let pass = plan(&catalog, &time(300), &events).expect("a plan").earlier_pass.expect("it is told");
    assert_eq!((pass.seen_by, pass.from), (catalog.backups()[1].id.clone(), Some(catalog.backups()[0].id.clone())));
    assert_eq!(plan(&catalog, &time(450), &events).expect("a plan").earlier_pass, None);
    let future = plan(&catalog, &time(419), &events[..2]).expect_err("not proven");
    assert!(future.to_string().contains(&format!("--backup {}", catalog.backups()[0].id)), "{future}");
}

#[test]
fn t3_a_running_server_proves_what_lies_before_its_clock() {
    let catalog = simple().build();
    let says = |clock, writes_at| {
        let (writes_at, flushed_to) = (Lsn::new(writes_at), Lsn::new(writes_at));
        Witness::Answered(ServerNow { timeline: tli(1), clock: at(clock), writes_at, flushed_to, flush_delay: 0 })
    };
    let asked = |target: &RecoveryTarget, events: &[WalEvent], witness| plan_with(&catalog, target, events, &witness);
    let proven = asked(&time(2000), &simple_events(), says(2001, 10 * MIB)).expect("a plan");
    // By the last commit and not by the end of the WAL: by the time it is replayed there may be more.
    assert_eq!(proven.resolved, ResolvedTarget::Lsn { lsn: Lsn::new(9 * MIB + 0x800), inclusive: true });
    assert_eq!((proven.last_replayed.map(|commit| commit.xid), proven.first_not_replayed), (Some(1009), None));
    assert!(matches!(proven.proven_by, Some(ProvenBy::Server(_))));
    let idle = asked(&time(2000), &[], says(2001, 10 * MIB)).expect("a plan");
    assert_eq!((idle.resolved, idle.stop_lsn), (ResolvedTarget::Immediate, Lsn::new(5 * MIB + 400)), "nothing came behind the backup");
    let why = |target: &RecoveryTarget, witness| match asked(target, &simple_events(), witness) {
        Err(Refusal::TimeNotReached { unproven, last_commit, .. }) => {
            assert_eq!(last_commit.map(|commit| commit.xid), Some(1009));
            unproven
        }
        other => panic!("{other:?}"),
    };
    assert!(matches!(why(&time(2000), says(2000, 10 * MIB)), Unproven::Future { .. }));
    assert!(matches!(why(&time(2000), says(2001, 10 * MIB + 100)), Unproven::Behind { .. }));
    assert!(matches!(why(&time(2000), Witness::Silent { reason: "gone".to_owned() }), Unproven::Silent { .. }));
    assert!(finish(&candidates(&catalog, &time(2000)).expect("one")[0], &SearchOutcome::Skipped, &catalog, &says(2001, 0)).is_err());
}

#[test]
fn t3_a_checkpoint_proves_the_seconds_before_it() {
    let checkpoint = |start: u64, redo: u64, second| {
        let kind =
            WalEventKind::Checkpoint { redo: Lsn::new(redo), timeline: tli(1), shutdown: false, wal_level: None, time: Some(at(second)) };
        WalEvent { start: Lsn::new(start), end: Lsn::new(start + 0x70), kind }
    };
    let catalog = simple().build();
    let mut events = simple_events();
    events.push(checkpoint(9 * MIB + 0x900, 9 * MIB + 0x880, 1000));
    let idle = plan(&catalog, &time(999), &events).expect("a plan");
    assert_eq!(idle.resolved, ResolvedTarget::Lsn { lsn: Lsn::new(9 * MIB + 0x900), inclusive: false });
    // Its second is cut off: it began within it, or at its end.
    assert!(plan(&catalog, &time(1000), &events).expect_err("not proven").asks_server());
    assert!(plan(&catalog, &RecoveryTarget { inclusive: false, ..time(1000) }, &events).is_ok());
    // A commit while it ran, of an earlier time: the clock was set back.
    *events.last_mut().expect("one") = checkpoint(9 * MIB + 0x900, 9 * MIB + 0x800, 1000);
    assert!(plan(&catalog, &time(999), &events).expect_err("not proven").asks_server());
}

#[test]
fn g9_replay_stops_before_wal_of_a_minimal_server() {
    let level = |start: u64, wal_level| {
        let kind = WalEventKind::ParameterChange { wal_level };
        WalEvent { start: Lsn::new(start), end: Lsn::new(start + 0x40), kind }
    };
    let mut events = simple_events();
    events.extend([level(6 * MIB + 0x900, 0), level(7 * MIB + 0x900, 1)]);
    events.sort_by_key(|event| event.start);
    let catalog = simple().build();
    for target in
        [time(650), lsn(8 * MIB + 0x800), RecoveryTarget::new(TargetKind::Xid(1008)), RecoveryTarget::new(TargetKind::Latest), time(5000)]
    {
        match plan(&catalog, &target, &events) {
            Err(refusal @ Refusal::MinimalWal { .. }) => {
                let text = refusal.to_string();
                let told = ["the WAL from 0/600900 to 0/700900 was", "(--xid 1006)", "--lsn 0/600900 --exclusive"];
                assert!(told.iter().all(|told| text.contains(told)), "{text}");
            }
            other => panic!("{target:?}: {other:?}"),
        }
    }
    for target in [time(550), lsn(6 * MIB + 0x800), RecoveryTarget::new(TargetKind::Xid(1006)), RecoveryTarget::new(TargetKind::Immediate)]
    {
        assert!(plan(&catalog, &target, &events).is_ok(), "{target:?}");
    }
    let between = plan(&catalog, &time(550), &events).expect("a plan");
    assert_eq!(
        between.resolved,
        ResolvedTarget::Lsn { lsn: Lsn::new(6 * MIB + 0x900), inclusive: false },
        "PostgreSQL itself would go on to the next commit"
    );
    assert_eq!(
        (between.last_replayed.map(|commit| commit.xid), between.first_not_replayed.map(|commit| commit.xid)),
        (Some(1006), Some(1007))
    );
    let before = RecoveryTarget { inclusive: false, ..lsn(6 * MIB + 0x900) };
    assert_eq!(plan(&catalog, &before, &events).expect("a plan").last_replayed.map(|commit| commit.xid), Some(1006));
    // A backup behind it does not cross it.
    let behind = simple().backup(1, 8 * MIB + 40, 8 * MIB + 400, (690, 695)).build();
    assert!(plan(&behind, &RecoveryTarget::new(TargetKind::Latest), &events).is_ok());
}

#[test]
fn what_no_backup_finds_was_searched_from_the_oldest() {
    let catalog = simple().build();
    match plan(&catalog, &RecoveryTarget::new(TargetKind::Xid(7)), &simple_events()) {
        Err(Refusal::NotFound { searched, earliest, .. }) => {
            assert_eq!((searched.from, searched.to), (Lsn::new(2 * MIB + 40), Lsn::new(10 * MIB)));
            assert_eq!(earliest.lsn, Lsn::new(2 * MIB + 400));
        }
        other => panic!("{other:?}"),
    }
    // One that lies in the oldest backup's own range is told as such.
    let within = [commit(2 * MIB + 100, 7, 15)];
    assert!(matches!(plan(&catalog, &RecoveryTarget::new(TargetKind::Xid(7)), &within), Err(Refusal::BeforeConsistency { .. })));
}

#[test]
fn a_plan_is_json() {
    let plan = plan(&simple().build(), &time(650), &simple_events()).expect("a plan");
    let json: serde_json::Value = serde_json::to_value(&plan).expect("serializes");
    assert_eq!(json["stop_lsn"], "0/800800");
    assert_eq!(json["wal"][0]["segment"], "000000010000000000000005");
    assert_eq!(json["last_replayed"]["xid"], 1007);
    assert_eq!(json["target"]["kind"]["time"], "2026-11-21T00:10:50.000000Z");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn a_plan_never_crosses_a_hole(
        world in crate::catalog::oracle::world(),
        timeline in 1u32..5,
        target in 0u64..crate::catalog::oracle::END_CELL,
    ) {
        use crate::catalog::oracle::cell;
        let catalog = world.catalog();
        let timeline = timeline.min(world.timelines());
        let path = world.history(timeline);
        // Every backup of the history that is consistent before the target, and that replay takes through the target's cell.
        let usable = |record: &&BackupRecord| {
            let start = record.start_lsn.get() / cell(1).get();
            let (reached, _) = world.replay(timeline, start);
            catalog.is_on(record, &path) && record.stop_lsn <= cell(target) && reached > target
        };
        let best = catalog.backups().iter().rev().find(usable);
        let chosen = RecoveryTarget { timeline: Some(tli(timeline)), ..RecoveryTarget::new(TargetKind::Lsn(cell(target))) };
        match plan_unsearched(&catalog, &chosen) {
            Ok(plan) => prop_assert_eq!(Some(&plan.backup.id), best.map(|record| &record.id)),
            Err(refusal) => prop_assert!(best.is_none(), "{} although {:?}", refusal, best),
        }
        let latest = RecoveryTarget { timeline: Some(tli(timeline)), ..RecoveryTarget::new(TargetKind::Latest) };
        if let Ok(plan) = plan_unsearched(&catalog, &latest) {
            let (reached, strayed) = world.replay(timeline, plan.backup.start_lsn.get() / cell(1).get());
            prop_assert_eq!((plan.stop_lsn, strayed), (cell(reached), false));
        }
        let immediate = RecoveryTarget { timeline: Some(tli(timeline)), ..RecoveryTarget::new(TargetKind::Immediate) };
        if let Ok(plan) = plan_unsearched(&catalog, &immediate) {
            let (reached, _) = world.replay(timeline, plan.backup.start_lsn.get() / cell(1).get());
            prop_assert!(plan.stop_lsn <= cell(reached));
        }
    }
}
