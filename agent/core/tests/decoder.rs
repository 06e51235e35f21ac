//! The decoder against WAL that PostgreSQL 15.18 wrote and `pg_waldump` of the same version read.
//!
//! `fixtures/wal-15.bin` holds segments 6 to C of a cluster with 1 MiB segments (zstd, concatenated): `initdb`, transactions
//! committed, aborted and prepared, with subtransactions and dropped tables, restore points, segment switches, a base backup, a
//! record of 2.5 MB and a restart. `fixtures/wal-15.events` is what `pg_waldump -p wal -s 0/600028` said of the kinds that become
//! events. It counted 3742 records and stopped at 0/C03460.

use std::fmt::Write;
use std::sync::LazyLock;

use proptest::prelude::*;
use walkeep_core::decoder::{DecodeError, Decoder};
use walkeep_core::event::{WalEvent, WalEventKind};
use walkeep_core::page::{SegmentHeader, check_segment};
use walkeep_core::{Lsn, MajorVersion, SegmentNumber, SegmentSize, SystemIdentifier, TimelineHistory, TimelineId};

const START: Lsn = Lsn::new(0x60_0000);
const VALID_END: Lsn = Lsn::new(0xC0_3460);
const SYSTEM: SystemIdentifier = SystemIdentifier::new(7_710_471_828_323_784_901);
const EXPECTED: &str = include_str!("fixtures/wal-15.events");

static WAL: LazyLock<Vec<u8>> =
    LazyLock::new(|| zstd::decode_all(&include_bytes!("fixtures/wal-15.bin")[..]).expect("the fixture is zstd"));

fn size() -> SegmentSize {
    SegmentSize::new(1 << 20).expect("a valid size")
}

fn from(lsn: u64) -> &'static [u8] {
    &WAL[(lsn - START.get()) as usize..]
}

/// Shows all of `wal` in `chunk`s.
fn run(decoder: &mut Decoder, wal: &[u8], chunk: usize) -> Result<Vec<WalEvent>, DecodeError> {
    let mut events = Vec::new();
    for mut bytes in wal.chunks(chunk) {
        while let Some(event) = decoder.next_event(&mut bytes)? {
            events.push(event);
        }
        assert!(bytes.is_empty(), "all are used up");
    }
    Ok(events)
}

fn decode(start: Lsn, wal: &[u8]) -> (Decoder, Vec<WalEvent>) {
    let mut decoder = Decoder::new(start, size());
    let events = run(&mut decoder, wal, 1 << 20).expect("decodes");
    (decoder, events)
}

/// Events in the form of the fixture.
fn text(events: &[WalEvent]) -> String {
    let mut text = String::new();
    for WalEvent { start, kind, .. } in events {
        let line = match kind {
            WalEventKind::Other => "other".to_owned(),
            WalEventKind::Commit { xid, time } => format!("commit {xid} {time}"),
            WalEventKind::Abort { xid, time } => format!("abort {xid} {time}"),
            WalEventKind::RestorePoint { name, .. } => format!("restore_point {name}"),
            WalEventKind::BackupEnd { start } => format!("backup_end {start}"),
            WalEventKind::Checkpoint { redo, timeline, shutdown, .. } => {
                format!("checkpoint {redo} {timeline} {}", if *shutdown { "shutdown" } else { "online" })
            }
            WalEventKind::EndOfRecovery { timeline, previous, time, .. } => format!("end_of_recovery {timeline} {previous} {time}"),
            WalEventKind::TablespaceCreated { oid, location } => format!("tablespace {oid} {location}"),
            WalEventKind::Switch => "switch".to_owned(),
            WalEventKind::CheckpointRedo { .. } => "checkpoint_redo".to_owned(),
            WalEventKind::ParameterChange { wal_level } => {
                format!("wal_level {}", ["minimal", "replica", "logical"][*wal_level as usize])
            }
        };
        writeln!(text, "{start} {line}").expect("a String takes all");
    }
    text
}

#[test]
fn sees_what_pg_waldump_sees() {
    let (decoder, events) = decode(START, &WAL);
    assert_eq!(text(&events), EXPECTED);
    assert_eq!(decoder.records(), 3742);
    assert_eq!(decoder.position(), VALID_END);
    assert_eq!(decoder.end(), Some(VALID_END));
}

#[test]
fn ends_are_where_the_next_record_begins() {
    let (_, events) = decode(START, &WAL);
    let end_of = |start: u64| events.iter().find(|event| event.start == Lsn::new(start)).map(|event| event.end);
    assert_eq!(end_of(0x65_7658), Some(Lsn::new(0x65_76C0)), "what pg_create_restore_point returned");
    assert_eq!(end_of(0x66_76E0), Some(Lsn::new(0x70_0000)), "a switch ends where the next segment begins");
    assert!(events.iter().all(|event| event.start < event.end && event.end.get() % 8 == 0));
}

#[test]
fn starts_at_a_record_and_within_one() {
    let (decoder, events) = decode(Lsn::new(0x66_76E0), from(0x66_6000));
    assert_eq!(text(&events), EXPECTED[EXPECTED.find("0/6676E0").expect("the switch")..]);
    assert_eq!(decoder.reads_from(), Lsn::new(0x66_6000));
    assert_eq!(decoder.position(), VALID_END);

    // The 2.5 MB record began in segment 9 and covers all of A.
    let (decoder, events) = decode(Lsn::new(0xA0_0000), from(0xA0_0000));
    assert_eq!(text(&events), EXPECTED[EXPECTED.find("0/B65B88").expect("the commit after it")..]);
    assert_eq!(decoder.position(), VALID_END);
}

#[test]
fn a_page_begins_wherever_a_decoder_is_asked_to() {
    // Not beyond the switch, where pages are empty.
    for page in (START.get()..0x66_8000).step_by(8192) {
        let (decoder, events) = decode(Lsn::new(page), from(page));
        assert_eq!(decoder.position(), VALID_END, "from {page:X}");
        assert!(EXPECTED.ends_with(&text(&events)), "from {page:X}");
    }
}

#[test]
fn waits_for_more_in_the_middle() {
    let (mut decoder, mut events) = decode(START, &WAL[..0x45_0000]);
    assert_eq!(decoder.end(), None, "in the middle of the long record");
    let mut rest = &WAL[0x45_0000..];
    while let Some(event) = decoder.next_event(&mut rest).expect("decodes") {
        events.push(event);
    }
    assert_eq!(text(&events), EXPECTED);
}

#[test]
fn nothing_shown_is_kept_but_an_unfinished_record() {
    let mut decoder = Decoder::new(START, size());
    let mut rest = &WAL[..0x20_0000];
    let (shown, mut views) = (rest.as_ptr_range(), 0);
    while let Some(record) = decoder.next_record(&mut rest).expect("decodes") {
        let data = record.main_data().as_ptr_range();
        views += u64::from(shown.contains(&data.start) && data.end <= shown.end);
    }
    assert!(decoder.memory() < 0x4000, "{} bytes of memory for 2 MiB shown", decoder.memory());
    assert!(decoder.records() - views <= 2 * 0x20_0000 / 8192, "{views} of {} are views of what was shown", decoder.records());
    // Where the bytes end within a record, so much is kept and no more.
    let mut decoder = Decoder::new(START, size());
    let mut rest = &WAL[..0x5_7658 + 30];
    while decoder.next_record(&mut rest).expect("decodes").is_some() {}
    assert_eq!(decoder.unfinished().map(|(start, _)| start), Some(Lsn::new(0x65_7658)));
    assert_eq!(decoder.position(), Lsn::new(0x65_7658));
}

#[test]
fn a_recycled_segment_is_an_end() {
    let mut wal = WAL[..0x40_0000].to_vec();
    wal.extend_from_slice(&WAL[..0x10_0000]);
    let (decoder, _) = decode(START, &wal);
    let end = decoder.end().expect("stale pages");
    assert!(end < Lsn::new(0xA0_0000), "the record that goes on there is not whole");
    assert_eq!(decoder.position(), end);
}

#[test]
fn a_lost_record_is_void_when_the_page_says_so() {
    // Segment 9 ends within the long record. Behind it, a page that says the record will never be finished, and a copy of an online
    // checkpoint's record.
    let mut wal = WAL[..0x40_0000].to_vec();
    let (before, events) = decode(START, &wal);
    let previous = events.last().map(|event| event.start).expect("the switch to segment 9");
    let mut page = WAL[0x60_0000..0x60_2000].to_vec();
    page[2] = 0x02 | 0x08;
    page[8..16].copy_from_slice(&0xA0_0000u64.to_le_bytes());
    page[40..].fill(0);
    page[40..40 + 114].copy_from_slice(&WAL[0x3A8..0x3A8 + 114]);
    page[48..56].copy_from_slice(&previous.get().to_le_bytes());
    let crc = crc32c::crc32c_append(crc32c::crc32c(&page[64..154]), &page[40..60]);
    page[60..64].copy_from_slice(&crc.to_le_bytes());
    wal.extend_from_slice(&page);

    let (decoder, events) = decode(START, &wal);
    assert_eq!(events.last().map(|event| event.start), Some(Lsn::new(0xA0_0028)));
    assert_eq!(decoder.records(), before.records() + 1);

    // Without the flag the same page contradicts the one before.
    wal[0x40_0002] = 0x02;
    let error = run(&mut Decoder::new(START, size()), &wal, 8192).expect_err("refused");
    assert!(matches!(error, DecodeError::Continuation { found: 0, .. }), "{error}");
}

/// Segment 6 of timeline 1 and 7 of timeline 2 of a server that crashed, lost the end of a record, started again
/// (`OVERWRITE_CONTRECORD`) and was promoted; checked against `pg_waldump` one segment at a time, as it follows no promotion.
#[test]
fn follows_a_crash_and_a_promotion() {
    let wal = zstd::decode_all(&include_bytes!("fixtures/wal-15-promoted.bin")[..]).expect("the fixture is zstd");
    let (decoder, events) = decode(START, &wal);
    assert_eq!(text(&events), include_str!("fixtures/wal-15-promoted.events"));
    assert_eq!((decoder.records(), decoder.end()), (64, Some(Lsn::new(0x70_03C8))));
    let second = SegmentNumber::new(7).name(TimelineId::new(2).expect("not zero"), size());
    let system = SegmentHeader::read(&wal).expect("a header").system;
    let history = TimelineHistory::parse(second.timeline(), b"1\t0/7001B0\tno recovery target specified\n").expect("a history");
    assert_eq!(check_segment(second, size(), system, Some(&history), &wal[1 << 20..]), Ok(()), "begins with its parent's page");
}

#[test]
fn a_broken_record_is_named() {
    let mut wal = WAL.clone();
    wal[0x5_7658 + 40] ^= 1;
    let mut decoder = Decoder::new(START, size());
    let error = run(&mut decoder, &wal, 1 << 20).expect_err("broken");
    assert!(matches!(error, DecodeError::Checksum { lsn, .. } if lsn == Lsn::new(0x65_7658)), "{error}");
    assert_eq!(decoder.position(), Lsn::new(0x65_7658));
    assert_eq!(decoder.next_event(&mut &[][..]), Err(error), "it stays broken");
}

#[test]
fn an_absurd_length_is_refused_before_it_is_collected() {
    // A commit that claims a gigabyte, with the right link but no resource manager: refused within its first page.
    let mut wal = WAL[..0x10_0000].to_vec();
    let at = 0x5_7630;
    wal[at..at + 4].copy_from_slice(&0x3FFF_0000u32.to_le_bytes());
    wal[at + 17] = 77;
    let error = run(&mut Decoder::new(START, size()), &wal[..at + 32], 1).expect_err("refused");
    assert!(matches!(error, DecodeError::ResourceManager { found: 77, .. }), "{error}");
    wal[at + 3] = 0x7F;
    let error = run(&mut Decoder::new(START, size()), &wal[..at + 32], 1).expect_err("refused");
    assert!(matches!(error, DecodeError::Length { length: 0x7FFF_0000, .. }), "{error}");
}

#[test]
fn the_segments_are_those_of_their_names() {
    for (index, bytes) in WAL.chunks(1 << 20).enumerate() {
        let number = SegmentNumber::new(6 + index as u64);
        let name = number.name(TimelineId::FIRST, size());
        assert_eq!(check_segment(name, size(), SYSTEM, None, bytes), Ok(()));
        let header = SegmentHeader::read(bytes).expect("a header");
        assert_eq!((header.version, header.start), (MajorVersion::new(15), number.start(size())));
        assert!(check_segment(number.next().name(TimelineId::FIRST, size()), size(), SYSTEM, None, bytes).is_err());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn chunking_changes_nothing(chunk in prop_oneof![1usize..64, 64usize..20_000, 20_000usize..3_000_000]) {
        let mut decoder = Decoder::new(START, size());
        let events = run(&mut decoder, &WAL, chunk).expect("decodes");
        prop_assert_eq!(text(&events), EXPECTED);
        prop_assert_eq!((decoder.records(), decoder.position()), (3742, VALID_END));
    }

    #[test]
    fn a_truncated_stream_gives_a_prefix(length in 0usize..0x60_4000) {
        let (decoder, events) = decode(START, &WAL[..length]);
        prop_assert!(EXPECTED.starts_with(&text(&events)));
        // A switch ends at the next segment's beginning.
        prop_assert!(decoder.position().get() <= (START.get() + length as u64).next_multiple_of(1 << 20).min(VALID_END.get()));
    }

    #[test]
    fn a_changed_byte_never_changes_an_event(at in 0usize..0x60_3460, flip in 1u8..) {
        let mut wal = WAL.clone();
        wal[at] ^= flip;
        let mut decoder = Decoder::new(START, size());
        let mut events = Vec::new();
        let mut rest = &wal[..];
        let failed = loop {
            match decoder.next_event(&mut rest) {
                Ok(Some(event)) => events.push(event),
                Ok(None) => break false,
                Err(_) => break true,
            }
        };
        prop_assert!(EXPECTED.starts_with(&text(&events)));
        // Unused bytes (padding, the space after a switch) may change unseen.
        prop_assert!(failed || decoder.end().is_some());
    }

    #[test]
    fn any_bytes_are_answered(
        start: u64,
        chunk in 1usize..9000,
        noise in proptest::collection::vec(any::<u8>(), 0..300),
        at in 0usize..0x10_0000,
    ) {
        let _ = run(&mut Decoder::new(Lsn::new(start), size()), &noise, chunk);
        let mut wal = WAL[..0x18_0000].to_vec();
        wal[at..at + noise.len()].copy_from_slice(&noise);
        let _ = run(&mut Decoder::new(START, size()), &wal, chunk);
    }
}

#[test]
fn the_valid_end_never_lies_behind_the_bytes() {
    // Also right behind a switch record, whose own end is the next segment.
    let segment = size().bytes() as usize;
    for start in [START.get(), START.get() + size().bytes()] {
        let whole = &from(start)[..segment];
        for length in (0..segment).step_by(4099).chain([segment]) {
            let end = walkeep_core::decoder::valid_end(Lsn::new(start), size(), &whole[..length]);
            assert!((Lsn::new(start)..=Lsn::new(start + length as u64)).contains(&end), "{length}: {end}");
        }
    }
}

#[test]
fn every_record_is_answered_on_request() {
    let mut decoder = Decoder::new(START, size()).every_record();
    let every = run(&mut decoder, &WAL, 1 << 20).expect("decodes");
    assert_eq!(every.len() as u64, decoder.records());
    let of_interest: Vec<WalEvent> = every.into_iter().filter(|event| event.kind != WalEventKind::Other).collect();
    assert_eq!(of_interest, decode(START, &WAL).1);
}
