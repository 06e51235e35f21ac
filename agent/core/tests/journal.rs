//! The journal over WAL that PostgreSQL 15.18 wrote; see `decoder.rs` for the fixtures.

use walkeep_core::decoder::Decoder;
use walkeep_core::journal::{Edge, Happening, Journal, Limits, Summary, Window};
use walkeep_core::{Lsn, SegmentSize};

const EXPECTED: &str = include_str!("fixtures/wal-15.events");

fn journal(window: Window, limits: Limits) -> Summary {
    read(include_bytes!("fixtures/wal-15.bin"), window, limits)
}

fn read(fixture: &[u8], window: Window, limits: Limits) -> Summary {
    let wal = zstd::decode_all(fixture).expect("the fixture is zstd");
    let mut journal = Journal::new(window, limits);
    let mut decoder = Decoder::new(Lsn::new(0x60_0000), SegmentSize::new(1 << 20).expect("a valid size"));
    let mut rest = &wal[..];
    while let Some(record) = decoder.next_record(&mut rest).expect("decodes") {
        journal.record(&record);
    }
    journal.finish()
}

fn lines(kind: &str) -> usize {
    EXPECTED.lines().filter(|line| line.split(' ').nth(1) == Some(kind)).count()
}

#[test]
fn counts_what_pg_waldump_counts() {
    let summary = journal(Window::default(), Limits::default());
    let (commits, aborts) = summary.minutes.iter().fold((0, 0), |sum, minute| (sum.0 + minute.commits, sum.1 + minute.aborts));
    assert_eq!((commits as usize, aborts as usize), (lines("commit"), lines("abort")));
    assert_eq!(summary.checkpoints as usize, lines("checkpoint"));
    let points = summary.entries.iter().filter(|entry| matches!(entry.what, Happening::RestorePoint { .. }));
    assert_eq!(points.count(), lines("restore_point"));
    assert_eq!((summary.left_out, summary.not_followed), (0, 0));
    assert!(summary.entries.is_sorted_by_key(|entry| entry.lsn));
}

#[test]
fn a_crash_and_a_promotion_are_told() {
    let summary = read(include_bytes!("fixtures/wal-15-promoted.bin"), Window::default(), Limits::default());
    let told = |what: &Happening| match what {
        Happening::ShutdownCheckpoint => Some("shutdown".to_owned()),
        Happening::TimelineSwitch { from, to } => Some(format!("{from} to {to}")),
        _ => None,
    };
    let told: Vec<_> = summary.entries.iter().filter_map(|entry| Some(format!("{} {}", entry.lsn, told(&entry.what)?))).collect();
    assert_eq!(told, ["0/600768 shutdown", "0/700058 shutdown", "0/700138 shutdown", "0/7001B0 1 to 2", "0/700350 shutdown"]);
}

#[test]
fn a_window_shows_only_its_own() {
    let point = Lsn::new(0x65_7658);
    let window = Window { from: Some(Edge::Lsn(point)), to: Some(Edge::Lsn(Lsn::new(0x65_76C0))) };
    let summary = journal(window, Limits::default());
    let what: Vec<_> = summary.entries.iter().map(|entry| (entry.lsn, entry.what.clone())).collect();
    assert_eq!(what, [(point, Happening::RestorePoint { name: "before the flood".to_owned() })]);
    assert!(summary.minutes.is_empty());
}

#[test]
fn bounds_are_kept_and_told() {
    let all = journal(Window::default(), Limits { big_transaction: 1 << 16, ..Limits::default() });
    let big = all.entries.iter().filter(|entry| matches!(entry.what, Happening::BigTransaction { .. })).count();
    assert!(big > 0, "transaction 724 wrote 140 kB or more: {:?}", all.entries);
    let few = journal(Window::default(), Limits { big_transaction: 1, entries: 3, ..Limits::default() });
    assert_eq!(few.entries.len(), 3);
    assert!(few.left_out > 0);
    let none = journal(Window::default(), Limits { notes: 0, ..Limits::default() });
    assert!(none.not_followed > 0);
    let dropped = none.entries.iter().find_map(|entry| match &entry.what {
        Happening::Removed { dropped, truncated, .. } => Some(dropped.len() + truncated.len()),
        _ => None,
    });
    assert_eq!(dropped.unwrap_or(0), 0, "what was not followed is unclear: {:?}", none.entries);
    assert!(none.entries.iter().any(|entry| matches!(&entry.what, Happening::Removed { unclear, .. } if !unclear.is_empty())));
}
