use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::*;
use crate::artifact::{ArtifactId, ArtifactPlace};
use crate::backup::BackupRecord;
use crate::backup::tests::record;
use crate::catalog::{Catalog, GapCause, GapRecord, WalRange};
use crate::expiry::{Expired, ExpiredWal};
use crate::history::TimelineHistory;
use crate::identity::{SystemIdentifier, TimelineId};
use crate::index::{DigestName, Level};
use crate::layout::{BackupId, ClusterLayout, Form, GapName, ObjectName, PackId, PartName};
use crate::lease::LeaseName;
use crate::lsn::Lsn;
use crate::segment::{SegmentName, SegmentNumber, SegmentSize};
use crate::wal_file::WalFileName;

const MIB: u64 = 1 << 20;

fn size() -> SegmentSize {
    SegmentSize::new(1 << 20).expect("a size")
}

fn layout() -> ClusterLayout {
    ClusterLayout::new(&"main".parse().expect("a name"), SystemIdentifier::new(7))
}

fn timeline(number: u32) -> TimelineId {
    TimelineId::new(number).expect("not zero")
}

fn segment(on: u32, number: u64) -> SegmentName {
    SegmentNumber::new(number).name(timeline(on), size())
}

fn wal(on: u32, number: u64) -> ObjectName {
    ObjectName::Wal(WalFileName::Segment(segment(on, number)))
}

fn range(from: u64, to: u64) -> WalRange {
    WalRange { from: Lsn::new(from), to: Lsn::new(to) }
}

/// What is stored in a test.
#[derive(Default)]
struct Stored {
    objects: Vec<ObjectName>,
    backups: Vec<BackupRecord>,
    histories: Vec<TimelineHistory>,
    gaps: Vec<GapName>,
    filled: BTreeSet<GapName>,
    expired: Vec<ExpiredWal>,
    /// Of those that do not have 1000 bytes.
    sizes: BTreeMap<ObjectName, u64>,
    packs: HashMap<PackId, u64>,
}

impl Stored {
    /// Segments of timeline 1, a backup in segment 2 and one in segment 6.
    fn of(segments: impl IntoIterator<Item = u64>) -> Self {
        let at = |number: u64| record(1, number * MIB + 40, number * MIB + 500, (number as i64 * 100, number as i64 * 100 + 9));
        Self { objects: segments.into_iter().map(|number| wal(1, number)).collect(), backups: vec![at(2), at(6)], ..Self::default() }
    }

    fn found(&self) -> Vec<Finding> {
        let ((catalog, listing), layout) = (self.seen(), layout());
        continuity(&Judge::new(&catalog, &layout), &listing, &self.filled).into_sorted()
    }

    /// What it lacks of the other one.
    fn lacks(&self, other: &Self) -> Vec<(String, Option<(u64, u64)>)> {
        self.lacks_of(other, &[], None)
    }

    fn lacks_of(&self, other: &Self, known: &[Stretch], of: Option<&BackupId>) -> Vec<(String, Option<(u64, u64)>)> {
        let (own_packs, other_packs) = (&self.packs, &other.packs);
        let (own, other, layout) = (self.seen(), other.seen(), layout());
        let (own, other) = (side(&own, own_packs), side(&other, other_packs));
        let found = lacking(&Judge::new(own.catalog, &layout), own, other, known, of).into_sorted();
        assert!(found.iter().all(|finding| finding.kind == Kind::Missing));
        let in_mib = |stretch: Stretch| (stretch.from.get() / MIB, stretch.to.get() / MIB);
        found.into_iter().map(|finding| (finding.key, finding.stretch.map(in_mib))).collect()
    }

    fn seen(&self) -> (Catalog, Listing) {
        let mut catalog = Catalog::builder("main".parse().expect("a name"), SystemIdentifier::new(7), size());
        let mut expired = Expired::default();
        self.expired.iter().for_each(|wal| expired.add_wal(*wal));
        catalog.expired(expired);
        self.backups.iter().for_each(|backup| catalog.backup(backup.clone()));
        let mut listing = Listing::new(layout(), Form::Zstd, size());
        let histories = self.histories.iter().map(|history| ObjectName::Wal(WalFileName::History(history.timeline())));
        for name in self.objects.iter().cloned().chain(histories) {
            let bytes = self.sizes.get(&name).copied().unwrap_or(1000);
            assert_eq!(listing.object(&layout().key(&name), bytes, &mut catalog), Some(name));
        }
        self.histories.iter().for_each(|history| catalog.history(history.clone()));
        let at = chrono::DateTime::UNIX_EPOCH;
        let gap = |name: &GapName| GapRecord { name: *name, cause: GapCause::SlotLost, recorded_at: at, closed_at: None };
        self.gaps.iter().for_each(|name| catalog.gap(gap(name)));
        (catalog.build(), listing)
    }
}

fn side<'a>((catalog, listing): &'a (Catalog, Listing), packs: &'a HashMap<PackId, u64>) -> Side<'a> {
    Side { catalog, listing, packs }
}

/// What does not have the same size in all of these, which are counted from 1.
fn unlike_of(all: &[&Stored], of: Option<&BackupId>) -> Vec<(ObjectName, Vec<(usize, u64)>)> {
    let seen: Vec<_> = all.iter().map(|one| one.seen()).collect();
    let sides: Vec<_> = (1..).zip(seen.iter().zip(all).map(|(seen, one)| side(seen, &one.packs))).collect();
    unlike(&sides, of).into_iter().map(|found| (found.name, found.sizes.into_iter().collect())).collect()
}

fn gap(from: u64, to: u64) -> GapName {
    GapName { timeline: timeline(1), from: Lsn::new(from * MIB), to: Lsn::new(to * MIB) }
}

#[test]
fn a_whole_archive_has_no_findings() {
    assert_eq!(Stored::of(1..10).found(), []);
    assert_eq!(Stored { backups: Vec::new(), ..Stored::of([]) }.found(), []);
}

#[test]
fn a_missing_segment_is_named_with_what_is_lost() {
    let stored = Stored::of([1, 2, 3, 5, 6, 7]);
    let (early, late) = (&stored.backups[0], &stored.backups[1]);
    let found = stored.found();
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].severity, found[0].kind, &found[0].key), (Severity::Damage, Kind::Missing, &layout().key(&wal(1, 4))));
    let lost = LostWal {
        timeline: timeline(1),
        from: Lsn::new(4 * MIB),
        to: late.stop_lsn,
        after: Some(early.ended_at),
        until: Some(late.ended_at),
    };
    assert_eq!(found[0].lost, Lost { backups: Vec::new(), wal: vec![lost] });
    let text = found[0].lost.to_string();
    assert!(text.contains("no moment from 0/400000 to 0/6001F4 is within reach (some time after 2026-"), "{text}");

    // A backup's own.
    let found = Stored::of([1, 3, 4, 5, 6, 7]).found();
    assert_eq!(found.len(), 1);
    assert_eq!((&found[0].key, &found[0].lost.backups), (&layout().key(&wal(1, 2)), &vec![early.id.clone()]));
    // The last one, behind which nothing is.
    let found = Stored::of([1, 2, 3, 4, 5]).found();
    assert_eq!((found.len(), &found[0].key, &found[0].lost.backups), (1, &layout().key(&wal(1, 6)), &vec![late.id.clone()]));
    // Before every backup nobody needs it.
    let found = Stored::of([0, 2, 3, 4, 5, 6]).found();
    assert_eq!((found.len(), found[0].severity, &found[0].key), (1, Severity::Minor, &layout().key(&wal(1, 1))));
}

#[test]
fn what_is_known_to_be_missing_is_none() {
    let mut stored = Stored::of([1, 2, 3, 5, 6, 7]);
    stored.gaps = vec![gap(4, 5)];
    assert_eq!(stored.found(), []);
    // It was filled, and is missing again.
    stored.filled.insert(gap(4, 5));
    assert_eq!(stored.found().len(), 1);
    stored.gaps.clear();
    let expired = |from, to| ExpiredWal { timeline: timeline(1), from: Lsn::new(from * MIB), to: Lsn::new(to * MIB) };
    stored.expired = vec![expired(4, 5)];
    assert_eq!(stored.found(), []);
    // Only a part of it.
    let mut stored = Stored::of([1, 2, 6, 7]);
    stored.gaps = vec![gap(3, 5)];
    let found = stored.found();
    assert_eq!((found.len(), &found[0].key), (1, &layout().key(&wal(1, 5))));
}

#[test]
fn a_timeline_is_followed_over_its_switch() {
    let history = |text: &str| TimelineHistory::parse(timeline(2), text.as_bytes()).expect("a history");
    let mut stored = Stored::of(1..8);
    stored.objects.extend([wal(2, 7), wal(2, 8)]);
    stored.histories = vec![history("1\t0/700100\tno reason\n")];
    assert_eq!(stored.found(), []);
    // The child's first segment holds its parent's pages, and is asked for first.
    stored.objects.retain(|name| *name != wal(1, 7));
    assert_eq!(stored.found(), []);
    stored.objects.retain(|name| *name != wal(2, 7));
    let keys: Vec<_> = stored.found().into_iter().map(|found| found.key).collect();
    assert_eq!(keys, [layout().key(&wal(1, 7)), layout().key(&wal(2, 7))]);
    // Without its history nothing is recovered along it.
    stored.histories.clear();
    let found = stored.found();
    assert_eq!((found.len(), &found[0].key), (1, &layout().key(&ObjectName::Wal(WalFileName::History(timeline(2))))));
}

#[test]
fn what_the_index_tells_of_was_stored() {
    let mut stored = Stored::of(1..8);
    let digest = |from, to| DigestName { timeline: timeline(1), level: Level::TOP, from: Lsn::new(from * MIB), to: Lsn::new(to * MIB) };
    stored.objects.push(ObjectName::Digest(digest(1, 8)));
    assert_eq!(stored.found(), []);
    stored.objects.push(ObjectName::Digest(digest(1, 9)));
    let found = stored.found();
    assert_eq!((found.len(), &found[0].key, found[0].severity), (1, &layout().key(&wal(1, 8)), Severity::Damage));
    // Of what came before the first backup nobody needs anything.
    let mut stored = Stored::of(2..8);
    stored.objects.push(ObjectName::Digest(digest(1, 8)));
    let found = stored.found();
    assert_eq!((found.len(), &found[0].key, found[0].severity), (1, &layout().key(&wal(1, 1)), Severity::Minor));
}

#[test]
fn parts_behind_missing_ones_and_leases_behind_missing_ones_are_told() {
    let part = |from, to, epoch| ObjectName::Part(PartName { segment: segment(1, 8), from, to, epoch });
    let with = |more: &[ObjectName]| {
        let mut stored = Stored::of(1..8);
        stored.objects.extend(more.iter().cloned());
        stored.found()
    };
    assert_eq!(with(&[part(0, 10, 1), part(10, 20, 1), part(5, 7, 1)]), []);
    // A later writer cuts off what an earlier one stored behind its beginning.
    assert_eq!(with(&[part(0, 10, 1), part(50, 60, 1), part(10, 20, 2)]), []);
    let found = with(&[part(0, 10, 1), part(20, 30, 1)]);
    assert_eq!((found.len(), &found[0].key, found[0].lost.wal[0].from), (1, &layout().key(&wal(1, 8)), Lsn::new(8 * MIB + 10)));
    let lease = |on, epoch| ObjectName::Lease(LeaseName { timeline: timeline(on), epoch });
    assert_eq!(with(&[lease(1, 1), lease(1, 2), lease(2, 1)]), []);
    let found = with(&[lease(1, 1), lease(1, 4), lease(2, 2)]);
    let keys: Vec<_> = found.into_iter().map(|found| found.key).collect();
    assert_eq!(keys, [layout().key(&lease(1, 2)), layout().key(&lease(2, 1))]);
}

#[test]
fn objects_of_impossible_sizes_and_strangers_are_named() {
    let mut catalog = Catalog::builder("main".parse().expect("a name"), SystemIdentifier::new(7), size());
    let mut listing = Listing::new(layout(), Form::Zstd, size());
    for (number, bytes) in [(1, 0), (2, 119), (3, 120), (4, MIB), (5, 2 * MIB)] {
        listing.object(&layout().key(&wal(1, number)), bytes, &mut catalog);
    }
    assert_eq!(listing.object("main/7/wal/notes.txt", 3, &mut catalog), None);
    let named: Vec<_> = listing.impossible().map(|(name, _)| name.clone()).collect();
    assert_eq!(named, [wal(1, 1), wal(1, 2), wal(1, 5)]);
    let strangers = listing.strangers().into_sorted();
    assert_eq!((listing.foreign, strangers.len(), strangers[0].severity), (1, 1, Severity::Note));
}

#[test]
fn only_what_every_look_finds_is_told() {
    let catalog = Catalog::builder("main".parse().expect("a name"), SystemIdentifier::new(7), size()).build();
    let layout = layout();
    let judge = Judge::new(&catalog, &layout);
    let look = |numbers: &[u64]| {
        let mut found = Findings::default();
        found.extend(numbers.iter().map(|number| judge.missing(timeline(1), range(number * MIB, (number + 1) * MIB), "gone".into())));
        found
    };
    let both = look(&[1, 2, 3]).seen_by(&look(&[2, 4]));
    assert_eq!(both.iter().map(|found| found.key.clone()).collect::<Vec<_>>(), [layout.key(&wal(1, 2))]);
    assert_eq!((both.count(Severity::Minor), both.count(Severity::Damage)), (1, 0));
}

#[test]
fn a_repository_lacks_what_another_one_has_also_where_nothing_of_its_own_tells() {
    let key = |name: &ObjectName| layout().key(name);
    let all = Stored::of(1..10);
    assert_eq!(all.lacks(&Stored::of(1..10)), []);
    // At both ends, where there is no hole.
    let short = Stored { backups: vec![all.backups[0].clone()], ..Stored::of(3..8) };
    let record = key(&ObjectName::BackupRecord(all.backups[1].id.clone()));
    let mut lacks = short.lacks(&all);
    lacks.sort();
    assert_eq!(lacks, [(record.clone(), None), (key(&wal(1, 1)), Some((1, 3))), (key(&wal(1, 8)), Some((8, 10)))]);
    assert_eq!(all.lacks(&short), []);
    // All of it, to the last name.
    let small = |name: ObjectName| Stored { objects: vec![name], backups: Vec::new(), ..Stored::default() };
    let (lease, expiry) = (LeaseName { timeline: timeline(1), epoch: 1 }, |number| ObjectName::Expiry(number));
    let artifact = ArtifactPlace { name: "etc".parse().expect("a name"), id: ArtifactId::new(chrono::DateTime::UNIX_EPOCH, 1) };
    for name in [
        ObjectName::Lease(lease),
        ObjectName::Gap(gap(3, 4)),
        ObjectName::GapClosing(gap(3, 4)),
        ObjectName::Audit(7),
        ObjectName::ArtifactRecord(artifact.clone()),
        ObjectName::Wal(WalFileName::Partial(segment(1, 5))),
        ObjectName::Wal(WalFileName::History(timeline(2))),
        expiry(4),
    ] {
        assert_eq!(Stored::default().lacks(&small(name.clone())), [(key(&name), None)], "{name:?}");
        assert_eq!(small(name.clone()).lacks(&small(name.clone())), [], "{name:?}");
    }
    // What was never finished, what can be made again, and what a later one took over has to be nowhere.
    let digest = DigestName { timeline: timeline(1), from: Lsn::new(MIB), to: Lsn::new(2 * MIB), level: Level::SEGMENTS };
    for name in [ObjectName::ArtifactPiece(artifact, 1), ObjectName::BackupBegun(all.backups[0].id.clone()), ObjectName::Digest(digest)] {
        assert_eq!(Stored::default().lacks(&small(name.clone())), [], "{name:?}");
    }
    assert_eq!(small(expiry(5)).lacks(&small(expiry(4))), []);
    assert_eq!(small(expiry(5)).lacks(&small(ObjectName::ExpiryEnd(5))), [(key(&ObjectName::ExpiryEnd(5)), None)]);
    // Unless that one does not say what it said.
    let let_go = vec![ExpiredWal { timeline: timeline(1), from: Lsn::new(MIB), to: Lsn::new(4 * MIB) }];
    let knows = |number, expired: &[ExpiredWal]| Stored { expired: expired.to_vec(), ..small(expiry(number)) };
    assert_eq!(small(expiry(5)).lacks(&knows(4, &let_go)), [(key(&expiry(4)), None)]);
    assert_eq!(knows(5, &let_go).lacks(&knows(4, &let_go)), []);
}

#[test]
fn what_was_let_go_or_is_known_to_be_missing_is_not_lacking() {
    let all = Stored::of(1..10);
    let let_go = || vec![ExpiredWal { timeline: timeline(1), from: Lsn::new(MIB), to: Lsn::new(4 * MIB) }];
    let one = |segments: std::ops::Range<u64>| Stored { backups: all.backups.clone(), ..Stored::of(segments) };
    // By either of the two.
    assert_eq!(Stored { expired: let_go(), ..one(4..10) }.lacks(&all), []);
    assert_eq!(one(4..10).lacks(&Stored { expired: let_go(), ..one(1..10) }), []);
    assert_eq!(Stored { expired: let_go(), ..one(5..10) }.lacks(&all), [(layout().key(&wal(1, 4)), Some((4, 5)))]);
    let known = Stretch { timeline: timeline(1), from: Lsn::new(4 * MIB), to: Lsn::new(5 * MIB) };
    let mut holey = one(3..10);
    holey.objects.retain(|name| *name != wal(1, 4));
    assert_eq!(holey.lacks_of(&one(3..10), &[known], None), []);
    assert_eq!(holey.lacks(&one(3..10)).len(), 1);
    // Of one backup: it, and its own WAL.
    let late = &all.backups[1];
    let record = layout().key(&ObjectName::BackupRecord(late.id.clone()));
    let early = Stored { backups: vec![all.backups[0].clone()], ..Stored::of(1..6) };
    let mut lacks = early.lacks_of(&all, &[], Some(&late.id));
    lacks.sort();
    assert_eq!(lacks, [(record, None), (layout().key(&wal(1, 6)), Some((6, 6)))]);
    assert_eq!(early.lacks_of(&all, &[], Some(&all.backups[0].id)), []);
}

#[test]
fn what_has_another_size_in_another_repository_is_told_with_both() {
    let part = |from: u64, to: u64| ObjectName::Part(PartName { segment: segment(1, 9), from: from as u32, to: to as u32, epoch: 1 });
    let whole = || {
        let mut stored = Stored::of(1..9);
        let manifest = ObjectName::BackupManifest(stored.backups[1].id.clone(), 1);
        stored.objects.extend([part(0, MIB / 2), part(MIB / 2, MIB), manifest]);
        stored.packs = HashMap::from([(PackId::new([1; 32]), 500), (PackId::new([2; 32]), 600)]);
        stored
    };
    let (one, mut other) = (whole(), whole());
    assert_eq!(unlike_of(&[&one, &other], None), []);
    let manifest = ObjectName::BackupManifest(one.backups[1].id.clone(), 1);
    for (name, bytes) in [(wal(1, 4), 900), (wal(1, 6), 901), (part(0, MIB / 2), 902), (manifest.clone(), 903)] {
        other.sizes.insert(name, bytes);
    }
    other.packs.insert(PackId::new([2; 32]), 599);
    let mut expected: Vec<_> = other.sizes.iter().map(|(name, bytes)| (name.clone(), vec![(1, 1000), (2, *bytes)])).collect();
    expected.push((ObjectName::Pack(PackId::new([2; 32])), vec![(1, 600), (2, 599)]));
    expected.sort();
    assert_eq!(unlike_of(&[&one, &other], None), expected);
    // A third one does not decide, and is named.
    let told = unlike_of(&[&one, &other, &whole()], None);
    assert!(told.contains(&(wal(1, 4), vec![(1, 1000), (2, 900), (3, 1000)])), "{told:?}");
    // Of one backup: its manifest and its own WAL.
    let of_late: Vec<_> = unlike_of(&[&one, &other], Some(&one.backups[1].id)).into_iter().map(|(name, _)| name).collect();
    assert_eq!(of_late, [wal(1, 6), manifest]);
    // What is let go goes everywhere, sooner or later; what one never had is another matter.
    other.expired = vec![ExpiredWal { timeline: timeline(1), from: Lsn::new(0), to: Lsn::new(5 * MIB) }];
    assert!(!unlike_of(&[&one, &other], None).iter().any(|(name, _)| *name == wal(1, 4)));
    other.objects.retain(|name| *name != wal(1, 6));
    assert!(!unlike_of(&[&one, &other], None).iter().any(|(name, _)| *name == wal(1, 6)));
    // The index may be made anew in each.
    let digest =
        ObjectName::Digest(DigestName { level: Level::SEGMENTS, timeline: timeline(1), from: Lsn::new(MIB), to: Lsn::new(2 * MIB) });
    let with = |bytes| {
        let mut stored = Stored::of(1..9);
        stored.objects.push(digest.clone());
        stored.sizes.insert(digest.clone(), bytes);
        stored
    };
    assert_eq!(unlike_of(&[&with(1000), &with(2000)], None), []);
}

#[test]
fn packs_that_only_one_has_belong_to_the_backup_that_was_taken_then() {
    let (mut one, other) = (Stored::of(1..9), Stored::of(1..9));
    one.packs = [3, 1, 2].map(|byte| (PackId::new([byte; 32]), 500)).into();
    let (own, another) = (other.seen(), one.seen());
    let (own, another) = (side(&own, &other.packs), side(&another, &one.packs));
    assert_eq!(packs_lacking(own, another), [1, 2, 3].map(|byte| PackId::new([byte; 32])));
    assert_eq!(packs_lacking(another, own), []);
    let late = &one.backups[1];
    let second = chrono::TimeDelta::seconds(1);
    let taken = |at| taken_when(&one.backups, at).map(|backup| backup.id.clone());
    assert_eq!(taken(late.started_at + second), Some(late.id.clone()));
    assert_eq!((taken(late.ended_at + second * 100), taken(one.backups[0].started_at - second * 100)), (None, None));
}
