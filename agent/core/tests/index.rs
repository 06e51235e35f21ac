//! The index over WAL that PostgreSQL 15.18 wrote, in segments of 1 MiB; see `decoder.rs` for the fixtures.

use std::collections::BTreeSet;

use proptest::prelude::*;
use walkeep_core::catalog::WalRange;
use walkeep_core::changes::holes;
use walkeep_core::decoder::Decoder;
use walkeep_core::index::{BlockChanges, BlockMap, Digest, DigestName, IndexedSegment, Indexer, Level, Summary};
use walkeep_core::journal::{Journal, Limits, Window};
use walkeep_core::record::{Content, FileChange};
use walkeep_core::{Lsn, SegmentNumber, SegmentSize, TimelineId};

const FIRST: SegmentNumber = SegmentNumber::new(6);

fn size() -> SegmentSize {
    SegmentSize::new(1 << 20).expect("a valid size")
}

/// The fixtures' whole segments.
fn wal(fixture: &[u8]) -> Vec<u8> {
    let mut wal = zstd::decode_all(fixture).expect("the fixture is zstd");
    wal.truncate(wal.len() / (1 << 20) * (1 << 20));
    wal
}

fn plain() -> Vec<u8> {
    wal(include_bytes!("fixtures/wal-15.bin"))
}

fn promoted() -> Vec<u8> {
    wal(include_bytes!("fixtures/wal-15-promoted.bin"))
}

fn indexed(wal: &[u8]) -> Vec<IndexedSegment> {
    let mut indexer = Indexer::new(FIRST, size());
    wal.chunks(1 << 20).map(|segment| indexer.segment(segment).expect("decodes")).collect()
}

fn digest(segments: &[IndexedSegment]) -> Digest {
    let summaries = segments.iter().map(|segment| segment.summary.clone()).collect();
    Digest::of(TimelineId::FIRST, Level::SEGMENTS, summaries, size()).expect("there are some")
}

#[test]
fn the_fixtures_have_segments_enough() {
    assert!(plain().len() >= 2 << 20 && promoted().len() >= 2 << 20, "{} {}", plain().len() >> 20, promoted().len() >> 20);
}

#[test]
fn summaries_hold_what_the_journal_tells() {
    for wal in [plain(), promoted()] {
        let mut journal = Journal::new(Window::default(), Limits::default());
        let mut decoder = Decoder::new(FIRST.start(size()), size());
        let mut bytes = &wal[..];
        let (mut commits, mut records) = (Vec::new(), 0);
        while let Some(record) = decoder.next_record(&mut bytes).expect("decodes") {
            records += 1;
            journal.record(&record);
            if let Content::Commit(end) = record.content() {
                commits.push((end.xid, record.start));
            }
        }
        let told = journal.finish();
        let folded = digest(&indexed(&wal)).folded().expect("there are some");
        let mut entries = folded.entries.clone();
        entries.sort_by_key(|entry| entry.lsn);
        assert_eq!(entries, told.entries);
        assert_eq!((folded.count, folded.checkpoints), (records, told.checkpoints));
        let ended = folded.transactions.expect("transactions ended");
        assert_eq!(ended.commits, commits.len() as u64);
        let last = ended.last_commit.expect("some committed");
        assert_eq!(Some(&(last.xid, last.start)), commits.last());
        assert!(commits.iter().all(|(xid, _)| ended.may_have(*xid)) && !ended.may_have(ended.newest_xid + 1));
        let in_minutes: u64 = told.minutes.iter().map(|minute| minute.commits).sum();
        assert_eq!(in_minutes, folded.rates.iter().map(|rate| rate.commits).sum::<u64>());
    }
}

#[test]
fn a_summary_says_where_decoding_its_segment_begins() {
    let wal = plain();
    for segment in indexed(&wal).into_iter().skip(1) {
        let summary = segment.summary;
        let end = summary.span().end.start(size());
        let mut decoder = Decoder::new(summary.records.from, size());
        let at = |lsn: Lsn| lsn.bytes_since(FIRST.start(size())) as usize;
        let mut bytes = &wal[at(decoder.reads_from())..at(end)];
        let mut count = 0;
        while let Some(record) = decoder.next_record(&mut bytes).expect("decodes") {
            assert!(record.end > summary.span().first.start(size()), "it ends in the segment");
            count += 1;
        }
        assert_eq!((count, decoder.position()), (summary.count, summary.records.to));
    }
}

#[test]
fn block_maps_hold_every_reference_and_come_back() {
    let wal = plain();
    let mut all = BlockChanges::default();
    indexed(&wal).into_iter().for_each(|segment| all.join(segment.blocks));
    let mut decoder = Decoder::new(FIRST.start(size()), size());
    let mut bytes = &wal[..];
    let mut seen = BTreeSet::new();
    while let Some(record) = decoder.next_record(&mut bytes).expect("decodes") {
        for block in record.blocks() {
            seen.insert((block.relation, block.fork, block.block));
            assert!(all.is_changed(block.relation, block.fork, block.block));
        }
        for change in record.file_changes() {
            match change {
                FileChange::Relation { relation, fork, from } => {
                    assert!(all.is_changed(relation, fork.unwrap_or(walkeep_core::record::Fork::Main), from));
                }
                FileChange::Database { .. } => {}
            }
        }
    }
    assert_eq!(all.count(), seen.len() as u64);
    let relation = seen.iter().next().expect("some").0;
    let unknown = walkeep_core::record::RelFileLocator { database: 77, ..relation };
    assert!(!all.touches(unknown, walkeep_core::record::Fork::Main));
    let range = WalRange { from: FIRST.start(size()), to: decoder.position() };
    for (records, minimal) in [(Some(range), true), (None, false)] {
        let map = BlockMap { records, minimal, changes: all.clone() };
        assert_eq!(BlockMap::from_json_lines(&map.to_json_lines().expect("JSON")).expect("reads"), map);
    }
    let old = BlockMap::from_json_lines(b"{\"format\":1}\n").expect("a map of an earlier version reads");
    assert_eq!((old.records, old.minimal), (None, false));
}

#[test]
fn a_map_of_blocks_has_every_record_of_its_range() {
    let wal = plain();
    let segments = indexed(&wal);
    let mut map = BlockMap::default();
    segments.iter().for_each(|segment| map.take(segment.clone()).expect("it follows"));
    let told = map.records.expect("some");
    assert_eq!((told.from, told.to), (segments[0].summary.records.from, segments.last().expect("some").summary.records.to));
    // A record goes through the fourth segment to the end of the sixth: who begins with the seventh has not seen it.
    const BEHIND: usize = 6;
    let number = (0..BEHIND).fold(FIRST, |number, _| number.next());
    let seventh = Indexer::new(number, size()).segment(&wal[BEHIND << 20..]).expect("decodes");
    let mut other = BlockMap::default();
    segments[..3].iter().for_each(|segment| other.take(segment.clone()).expect("it follows"));
    let before = other.records.expect("some");
    assert!(other.take(seventh.clone()).is_err(), "a record lies between");
    assert_eq!(other.records, Some(before), "nothing of it is taken");
    let mut alone = BlockMap::default();
    alone.take(seventh).expect("the first");
    let alone = alone.records.expect("some");
    assert_eq!(holes(told, &[before, alone], size()), [WalRange { from: before.to, to: alone.from }]);
}

#[test]
fn whoever_goes_on_in_the_middle_knows_its_own_segments() {
    let wal = plain();
    let whole = indexed(&wal);
    let mut later = Indexer::new(FIRST, size());
    later.segment(&wal[..1 << 20]).expect("decodes");
    let second = later.segment(&wal[1 << 20..2 << 20]).expect("decodes");
    assert_eq!(second, whole[1]);
    let mut anew = Indexer::new(FIRST.next(), size());
    let alone = anew.segment(&wal[1 << 20..2 << 20]).expect("decodes").summary;
    let known = &whole[1].summary;
    assert!(alone.count + 1 >= known.count, "but for the record that began before");
    assert_eq!(alone.records.to, known.records.to);
}

#[test]
fn broken_wal_is_an_error_and_the_next_segment_a_new_beginning() {
    let mut wal = plain();
    wal[5000] ^= 0xff;
    let mut indexer = Indexer::new(FIRST, size());
    assert!(indexer.segment(&wal[..1 << 20]).is_err());
    assert_eq!(indexer.next(), FIRST.next());
    assert!(indexer.segment(&wal[1 << 20..2 << 20]).expect("decodes").summary.count > 0);
}

/// A summary without anything but these segments.
fn bare(first: u64, end: u64) -> Summary {
    let number = SegmentNumber::new(first);
    let mut summary = Summary::empty(number, number.start(size()));
    summary.segments[0].end = SegmentNumber::new(end);
    summary.records.to = SegmentNumber::new(end).start(size());
    summary
}

#[test]
fn digests_come_back_and_others_are_refused() {
    let digest = digest(&indexed(&plain()));
    let lines = digest.to_json_lines().expect("JSON");
    assert_eq!(Digest::from_json_lines(digest.name, &lines, size()).expect("reads"), digest);
    let other = DigestName { timeline: TimelineId::new(2).expect("a timeline"), ..digest.name };
    assert!(Digest::from_json_lines(other, &lines, size()).expect_err("another").to_string().contains("it holds digest 0 of timeline 1"));
    let cut = lines.len() - lines.iter().rev().skip(1).position(|byte| *byte == b'\n').expect("lines") - 1;
    assert!(Digest::from_json_lines(digest.name, &lines[..cut], size()).is_err(), "a lost line");
    let turned = Digest { summaries: vec![bare(7, 8), bare(6, 7)], ..digest.clone() };
    assert!(Digest::from_json_lines(turned.name, &turned.to_json_lines().expect("JSON"), size()).is_err());
}

#[test]
fn what_is_not_known_shows_as_a_second_run() {
    let of = |summaries| Digest::of(TimelineId::FIRST, Level::SEGMENTS, summaries, size()).expect("some").folded().expect("some");
    assert!(of(vec![bare(0, 1), bare(1, 2), bare(2, 3)]).is_whole());
    let holed = of(vec![bare(0, 1), bare(2, 3)]);
    assert!(!holed.is_whole() && holed.span().end == SegmentNumber::new(3));
    // Read apart: the record that lies across their border is in neither.
    let mut behind = bare(1, 2);
    behind.records.from = Lsn::new(behind.records.from.get() + 48);
    assert!(!of(vec![bare(0, 1), behind]).is_whole());
}

proptest! {
    #[test]
    fn any_bytes_are_an_error_not_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), from: u32, to: u32) {
        let name = DigestName { timeline: TimelineId::FIRST, level: Level::SEGMENTS, from: Lsn::new(from.into()), to: Lsn::new(to.into()) };
        prop_assert!(Digest::from_json_lines(name, &bytes, size()).is_err());
        let _ = BlockMap::from_json_lines(&bytes);
    }

    #[test]
    fn a_damaged_digest_is_an_error_or_still_its_own(at: prop::sample::Index, byte: u8) {
        let digest = digest(&indexed(&plain()[..2 << 20]));
        let mut lines = digest.to_json_lines().expect("JSON");
        let at = at.index(lines.len());
        lines[at] = byte;
        if let Ok(read) = Digest::from_json_lines(digest.name, &lines, size()) {
            prop_assert_eq!(read.name, digest.name);
        }
    }
}
