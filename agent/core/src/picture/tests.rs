//! Pictures of made-up repositories: what stands where, and that no repository and no name breaks a drawing.

use proptest::prelude::*;

use super::*;
use crate::catalog::oracle::{World, cell, tli, world};
use crate::catalog::{GapCause, GapRecord};
use crate::identity::SystemIdentifier;
use crate::journal::{DroppedFile, Entry, Happening, RelationFile};
use crate::layout::{GapName, ObjectName};
use crate::names::{NamedEntry, named, questions};
use crate::segment::{SegmentNumber, SegmentSize};
use crate::wal_file::WalFileName;

const SEGMENT: u64 = 1 << 20;

fn lsn(segment: f64) -> Lsn {
    Lsn::new((segment * SEGMENT as f64) as u64)
}

fn file(number: u32) -> RelationFile {
    RelationFile { database: 5, tablespace: 1663, number }
}

fn entry(at: Lsn, time: Option<PgTimestamp>, what: Happening) -> Entry {
    Entry { lsn: at, end: at.saturating_add(64), time, xid: None, what }
}

fn dropped(number: u32) -> Happening {
    let dropped = vec![DroppedFile { file: file(number), table: Some(true) }, DroppedFile { file: file(number + 1), table: Some(false) }];
    Happening::Removed { dropped, truncated: Vec::new(), unclear: Vec::new(), rewritten: 0 }
}

/// Segments 1 to 40 of timeline 1 without 11 and 12, 31 to 60 of timeline 2, which left it at 30.5; backups every ten segments, which are
/// 1000 s each.
fn scene() -> Catalog {
    let size = SegmentSize::new(SEGMENT).expect("a size");
    let mut builder = Catalog::builder("main".parse().expect("a name"), SystemIdentifier::new(7), size);
    for (timeline, segments) in [(1, (1..=40).collect::<Vec<_>>()), (2, (30..=60).collect())] {
        for number in segments.into_iter().filter(|number| ![11, 12].contains(number)) {
            let name = SegmentNumber::new(number).name(tli(timeline), size);
            builder.object(&ObjectName::Wal(WalFileName::Segment(name)), 100);
        }
    }
    builder.history(TimelineHistory::parse(tli(2), format!("1\t{}\tno reason\n", lsn(30.5)).as_bytes()).expect("a history"));
    for (timeline, at) in [(1, 5.0), (1, 10.5), (1, 15.0), (1, 25.0), (2, 35.0), (2, 45.0)] {
        let seconds = (at as i64 * 1000, at as i64 * 1000 + 100);
        builder.backup(crate::backup::tests::record(timeline, lsn(at).get(), lsn(at + if at == 10.5 { 1.0 } else { 0.1 }).get(), seconds));
    }
    let name = GapName { timeline: tli(1), from: lsn(11.0), to: lsn(13.0) };
    let recorded_at = chrono::DateTime::from_timestamp(0, 0).expect("a time");
    builder.gap(GapRecord { name, cause: GapCause::SlotLost, recorded_at, closed_at: None });
    builder.build()
}

fn plain(width: usize, ascii: bool) -> TextStyle {
    TextStyle { width, ascii, colour: false }
}

/// What happened on timeline 2's history between segments 24 and 50.
/// The entries as they are where no snapshot knows a name.
fn without_names(entries: &[Entry]) -> Vec<NamedEntry<'_>> {
    let entries: Vec<&Entry> = entries.iter().collect();
    named(&entries, vec![None; questions(&entries).len()])
}

fn told(entries: &[Entry], read: impl Fn(Told<'_>) -> Option<Picture>) -> Picture {
    let path = TimelineHistory::parse(tli(2), format!("1\t{}\tno reason\n", lsn(30.5)).as_bytes()).expect("a history");
    let clock: Vec<_> = (24..50).map(|at| (lsn(f64::from(at)), second(at * 1000))).collect();
    read(Told { read: WalRange { from: lsn(24.0), to: lsn(50.0) }, path: &path, entries: &without_names(entries), clock: &clock })
        .expect("a picture")
}

fn second(second: i32) -> PgTimestamp {
    PgTimestamp::from_utc(chrono::DateTime::from_timestamp(1_795_219_200 + i64::from(second), 0).expect("a time"))
}

fn accidents() -> Vec<Entry> {
    let truncated = Happening::Removed { dropped: Vec::new(), truncated: vec![file(7)], unclear: Vec::new(), rewritten: 0 };
    let index = Happening::Removed {
        dropped: vec![DroppedFile { file: file(9), table: Some(false) }],
        truncated: Vec::new(),
        unclear: Vec::new(),
        rewritten: 1,
    };
    let point = |name: &str| Happening::RestorePoint { name: name.to_owned() };
    vec![
        entry(lsn(28.0), Some(second(28_000)), dropped(16384)),
        entry(lsn(28.001), Some(second(28_001)), truncated),
        entry(lsn(33.0), Some(second(33_000)), index),
        entry(lsn(40.0), Some(second(40_000)), point("<script>alert('x')</script> & \u{1b}[31m")),
        entry(lsn(48.0), Some(second(48_000)), Happening::DatabaseDropped { database: 17, tablespaces: vec![1663], committed: true }),
    ]
}

#[test]
fn each_thing_has_its_place() {
    let picture = Picture::of(&scene(), None).expect("a picture");
    assert_eq!(picture.text(plain(80, true)), include_str!("expected/status.txt"));
    assert_eq!(picture.text(plain(30, true)), include_str!("expected/narrow.txt"));
    let with_accidents = told(&accidents(), |told| Picture::of(&scene(), Some(told)));
    assert_eq!(with_accidents.text(plain(80, false)), include_str!("expected/log.txt"));
    let kinds: Vec<_> = with_accidents.lanes.iter().flat_map(|lane| &lane.marks).map(|mark| (mark.kind, mark.label.clone())).collect();
    let accident = |kind, words: &str| kinds.contains(&(kind, words.to_owned()));
    assert!(accident(MarkKind::Dropped, "1663/5/16384 dropped"), "without its index: {kinds:?}");
    assert!(accident(MarkKind::Truncated, "1663/5/7 truncated") && accident(MarkKind::DatabaseDropped, "database 17 dropped"), "{kinds:?}");
    assert_eq!(kinds.iter().filter(|(kind, _)| kind.is_accident()).count(), 3, "an index alone is none: {kinds:?}");
}

#[test]
fn a_time_has_its_place_on_every_timeline() {
    let picture = Picture::of(&scene(), None).expect("a picture");
    let at = |lane: usize, mark: usize| picture.lanes[lane].marks[mark].point.at;
    // Seconds of the axis are those of the marks, on either timeline.
    let per_second = (at(1, 1) - at(1, 0)) / 10_000.0;
    assert!((at(0, 3) - at(0, 2) - per_second * 10_000.0).abs() < 1e-9);
    // The switch lies between the last backup before it and the first behind it, at the same place on both.
    let switch = picture.lanes[1].parent.expect("a parent").point;
    assert!(at(0, 3) < switch.at && switch.at < at(1, 0), "{switch:?}");
    // What lies behind the last known time has a zone of its own.
    assert!((picture.axis.timed.1 - at(1, 1)).abs() < 1e-9 && picture.lanes[1].to.at == 1.0, "{:?}", picture.axis);
}

#[test]
fn colour_adds_nothing_but_colour() {
    let picture = told(&accidents(), |told| Picture::of(&scene(), Some(told)));
    let coloured = picture.text(TextStyle { colour: true, ..plain(80, false) });
    assert_eq!(without_colour(&coloured), picture.text(plain(80, false)));
    assert!(coloured.contains("\u{1b}[1;31m"));
}

fn without_colour(text: &str) -> String {
    let mut parts = text.split('\u{1b}');
    let first = parts.next().unwrap_or_default().to_owned();
    parts
        .fold(first, |text, part| text + part.split_once('m').map_or("", |(_, rest)| rest))
        .lines()
        .fold(String::new(), |text, line| text + line.trim_end() + "\n")
}

#[test]
fn a_name_is_text_in_the_svg() {
    let picture = told(&accidents(), |told| Picture::of(&scene(), Some(told)));
    let svg = picture.svg("main & <others>");
    assert!(svg.contains("&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt; &amp; \u{fffd}[31m"), "{svg}");
    assert!(svg.contains("main &amp; &lt;others&gt;"));
    assert!(!svg.contains("<script") && !svg.contains('\u{1b}') && !svg.contains("href"), "{svg}");
}

#[test]
fn a_hole_is_seen_under_a_backup_and_beside_an_accident() {
    let missing = Point { lsn: lsn(5.0), time: None, at: 0.5 };
    let span = |kind, from, to| Span { kind, from, to, label: String::new() };
    let (from, to) = (Point { at: 0.0, ..missing }, Point { at: 1.0, ..missing });
    let at = |at: f64, kind| Mark { kind, point: Point { at, ..missing }, label: String::new() };
    let mark = |kind| at(0.5, kind);
    let picture_of = |hole: f64, marks: Vec<Mark>| {
        let spans = vec![span(SpanKind::Stored, from, to), span(SpanKind::Missing, missing, Point { at: hole, ..missing })];
        let lane = Lane { timeline: tli(1), parent: None, from, to, more_before: false, more_after: false, spans, marks };
        let axis = Picture::of(&scene(), None).expect("a picture").axis;
        Picture { axis, lanes: vec![lane] }.text(plain(20, true)).lines().find(|line| line.starts_with("1 ")).map(str::to_owned)
    };
    let picture = |marks| picture_of(0.5, marks);
    assert_eq!(picture(Vec::new()).as_deref(), Some("1 ---------.--------"));
    assert_eq!(picture(vec![mark(MarkKind::Backup), mark(MarkKind::RestorePoint)]).as_deref(), Some("1 ---------.--------"));
    assert_eq!(picture(vec![mark(MarkKind::Dropped)]).as_deref(), Some("1 ---------2--------"));
    // Two columns, a mark in each.
    let both = |one, other| picture_of(0.56, vec![mark(one), at(0.56, other)]);
    assert_eq!(both(MarkKind::Backup, MarkKind::Backup).as_deref(), Some("1 ---------.B-------"));
    assert_eq!(both(MarkKind::Dropped, MarkKind::Backup).as_deref(), Some("1 ---------X.-------"));
    assert_eq!(both(MarkKind::Dropped, MarkKind::Truncated).as_deref(), Some("1 ---------2T-------"));
}

#[test]
fn nothing_stored_is_no_picture() {
    let size = SegmentSize::new(SEGMENT).expect("a size");
    let empty = Catalog::builder("main".parse().expect("a name"), SystemIdentifier::new(7), size).build();
    assert_eq!(Picture::of(&empty, None), None);
}

/// Things that happened somewhere in the world, at any time.
fn happenings() -> impl Strategy<Value = Vec<Entry>> {
    let what = prop_oneof![
        Just(dropped(7)),
        ".{0,40}".prop_map(|name| Happening::RestorePoint { name }),
        Just(Happening::DatabaseDropped { database: 1, tablespaces: Vec::new(), committed: false }),
        Just(Happening::Hole),
    ];
    let time = prop_oneof![Just(None), (-100i64..100).prop_map(Some), any::<i64>().prop_map(Some)];
    let entry = (0u64..40, 0u64..1 << 18, time, what)
        .prop_map(|(at, within, time, what)| entry(cell(at).saturating_add(within), time.map(PgTimestamp::from_micros), what));
    prop::collection::vec(entry, 0..12)
}

fn check(world: &World, entries: &[Entry], range: (u64, u64), width: usize) -> Result<(), TestCaseError> {
    let catalog = world.catalog();
    let path = world.history(world.timelines());
    let clock: Vec<_> = entries.iter().filter_map(|entry| Some((entry.lsn, entry.time?))).collect();
    let read = WalRange { from: cell(range.0.min(range.1)), to: cell(range.0.max(range.1)) };
    for told in [None, Some(Told { read, path: &path, entries: &without_names(entries), clock: &clock })] {
        let Some(picture) = Picture::of(&catalog, told) else { continue };
        for ascii in [false, true] {
            let text = picture.text(plain(width, ascii));
            for line in text.lines() {
                prop_assert!(line.chars().count() <= width, "{width}: {line:?}");
                prop_assert!(!ascii || line.is_ascii(), "{line:?}");
            }
            let colour = TextStyle { colour: true, ..plain(width, ascii) };
            prop_assert_eq!(without_colour(&picture.text(colour)), text);
        }
        let missing = |span: &Span| span.kind == SpanKind::Missing;
        if picture.lanes.iter().any(|lane| lane.spans.iter().any(missing)) {
            prop_assert!(picture.text(plain(width, true)).contains("MISSING"), "a hole is never hidden");
        }
        for lane in &picture.lanes {
            let points = lane.spans.iter().flat_map(|span| [span.from, span.to]).chain(lane.marks.iter().map(|mark| mark.point));
            let mut points: Vec<_> = points.collect();
            points.sort_by_key(|point| point.lsn);
            for pair in points.windows(2) {
                prop_assert!(pair[0].at <= pair[1].at + 1e-9, "what comes later stands behind: {pair:?}");
            }
            prop_assert!(points.iter().all(|point| (0.0..=1.0).contains(&point.at)), "{points:?}");
        }
        let svg = picture.svg("main");
        prop_assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        prop_assert!(!svg.chars().any(|letter| letter < ' ' && letter != '\n'), "{svg:?}");
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_repository_is_drawn(world in world(), entries in happenings(), from in 0u64..40, to in 0u64..40, width in 20usize..200) {
        check(&world, &entries, (from, to), width)?;
    }
}
