use super::*;
use crate::identity::TimelineId;
use crate::time::PgTimestamp;
use proptest::prelude::*;

const XLOG: u8 = 0;
const XACT: u8 = 1;
const DATABASE: u8 = 4;
const HEAP: u8 = 10;

fn le(numbers: &[u32]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}

/// A record with these block headers, their data, and short main data.
fn record(manager: u8, info: u8, headers: &[u8], blocks_data: &[u8], data: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; HEADER_SIZE];
    bytes[4] = 7;
    (bytes[16], bytes[17]) = (info, manager);
    bytes.extend(headers);
    if !data.is_empty() {
        bytes.extend([255, data.len() as u8]);
    }
    bytes.extend(blocks_data);
    bytes.extend(data);
    bytes
}

fn parse(bytes: &[u8], version: u32) -> Result<Record<'_>, &'static str> {
    let header = RecordHeader::decode(bytes).expect("a header");
    Record::parse(Lsn::new(80), Lsn::new(160), &header, bytes, MajorVersion::new(version))
}

/// The error for main data of a kind without its layout.
fn refused(manager: u8, info: u8, data: &[u8], version: u32) -> Option<&'static str> {
    parse(&record(manager, info, &[], &[], data), version).err()
}

/// A commit's data with every part; the parts' elements are numbered.
fn every_part(statistic: usize) -> Vec<u8> {
    let mut data = 5i64.to_le_bytes().to_vec();
    data.extend(le(&[0x01 | 0x02 | 0x04 | 0x08 | 0x10 | 0x20 | 0x80 | 0x100]));
    data.extend(le(&[16384, 1663]));
    data.extend(le(&[2, 101, 102]));
    data.extend(le(&[1, 1663, 16384, 30000]));
    data.extend(le(&[1]));
    data.extend(&le(&[2, 16384, 30001, 1])[..statistic]);
    data.extend(le(&[2]));
    data.extend(le(&[0xFE, 16384, 30002, 0]));
    data.extend(le(&[55, 16384, 0xABCD, 0]));
    data.extend(le(&[733]));
    data.extend(b"gid\0");
    data.extend(99u64.to_le_bytes());
    data.extend(6i64.to_le_bytes());
    data
}

fn check_every_part(end: &TransactionEnd<'_>, object: u64) {
    assert_eq!((end.xid, end.time, end.prepared), (733, PgTimestamp::from_micros(5), true));
    assert_eq!(end.database, Some((16384, 1663)));
    assert_eq!(end.subtransactions.iter().collect::<Vec<_>>(), [101, 102]);
    assert_eq!(end.dropped_files.iter().map(|file| file.to_string()).collect::<Vec<_>>(), ["1663/16384/30000"]);
    assert_eq!(end.dropped_statistics.iter().collect::<Vec<_>>(), [DroppedStatistics { kind: 2, database: 16384, object }]);
    let relation = Invalidation::Relation { database: 16384, relation: 30002 };
    let row = Invalidation::CatalogRow { cache: 55, database: 16384, hash: 0xABCD };
    assert_eq!(end.invalidations.iter().collect::<Vec<_>>(), [relation, row]);
    assert_eq!(end.gid, Some(&b"gid"[..]));
    assert_eq!(end.origin, Some((Lsn::new(99), PgTimestamp::from_micros(6))));
}

#[test]
fn reads_every_part_of_a_commit() {
    for (version, statistic, object) in [(15, 12, 30001), (17, 12, 30001), (18, 16, (1 << 32) + 30001)] {
        for (info, commits) in [(0xB0, true), (0xC0, false)] {
            let bytes = record(XACT, info, &[253, 1, 0, 252, 9, 0, 0, 0], &[], &every_part(statistic));
            let record = parse(&bytes, version).expect("well formed");
            assert_eq!((record.origin(), record.top_level_xid(), record.xid), (Some(1), Some(9), 7));
            match record.content() {
                Content::Commit(end) if commits => check_every_part(&end, object),
                Content::Abort(end) if !commits => check_every_part(&end, object),
                other => panic!("{other:?}"),
            }
            let files = RelFileLocator { tablespace: 1663, database: 16384, number: 30000 };
            assert_eq!(record.file_changes().collect::<Vec<_>>(), [FileChange::Relation { relation: files, fork: None, from: 0 }]);
        }
    }
    assert_eq!(refused(XACT, 0xB0, &every_part(16)[..60], 18), Some("commit of a prepared transaction"));
}

#[test]
fn a_record_without_its_layout_is_named() {
    assert_eq!(refused(XACT, 0x00, &[0; 7], 15), Some("commit"));
    assert_eq!(refused(XACT, 0x30, &[0; 12], 15), Some("commit of a prepared transaction"));
    assert_eq!(refused(XACT, 0x10, &[0; 71], 15), Some("preparation of a transaction"));
    assert_eq!(refused(XLOG, 0x70, &[0; 71], 15), Some("restore point"));
    assert_eq!(refused(XLOG, 0x10, &[0; 88], 15), Some("online checkpoint"), "timeline 0");
    assert_eq!(refused(XLOG, 0x30, &[], 15), None);
    assert_eq!(parse(&[0; HEADER_SIZE + 3], 15).err(), Some("block references"));
    let mut lists = 5i64.to_le_bytes().to_vec();
    lists.extend(le(&[0x02, u32::MAX, 1]));
    assert_eq!(refused(XACT, 0x80, &lists, 15), Some("commit"), "four billion subtransactions");
}

#[test]
fn reads_a_promotion() {
    let mut data = 5i64.to_le_bytes().to_vec();
    data.extend(le(&[2, 1, 1]));
    let expected = |wal_level| EndOfRecovery {
        timeline: TimelineId::new(2).expect("not zero"),
        previous_timeline: TimelineId::FIRST,
        time: PgTimestamp::from_micros(5),
        wal_level,
    };
    for (version, wal_level) in [(13, None), (17, Some(1))] {
        match parse(&record(XLOG, 0x90, &[], &[], &data), version).expect("well formed").content() {
            Content::EndOfRecovery(end) => assert_eq!(end, expected(wal_level)),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn databases_have_other_numbers_before_15() {
    let content = |info, version, data: &[u32]| {
        let bytes = record(DATABASE, info, &[], &[], &le(data));
        let changes: Vec<_> = parse(&bytes, version).expect("well formed").file_changes().collect();
        (format!("{:?}", parse(&bytes, version).expect("well formed").content()), changes)
    };
    let whole = |tablespace| FileChange::Database { database: 5, tablespace };
    for version in [14, 15] {
        let (text, changes) = content(0x00, version, &[5, 1663, 1, 1664]);
        assert!(text.contains("copied_from: Some((1, 1664))"), "{text}");
        assert_eq!(changes, [whole(1663)]);
    }
    let (text, changes) = content(0x10, 15, &[5, 1663]);
    assert!(text.contains("copied_from: None"), "{text}");
    assert_eq!(changes, [whole(1663)]);
    for (info, version) in [(0x10, 14), (0x20, 18)] {
        let (text, changes) = content(info, version, &[5, 2, 1663, 20000]);
        assert!(text.starts_with("DatabaseDropped"), "{text}");
        assert_eq!(changes, [whole(1663), whole(20000)]);
    }
}

/// A block header: number, flags, length of data, and an image's header.
fn block(id: u8, flags: u8, data_length: u16, image: &[u8], relation: &[u32], number: u32) -> Vec<u8> {
    let mut bytes = vec![id, flags];
    bytes.extend(data_length.to_le_bytes());
    bytes.extend(image);
    bytes.extend(le(relation));
    bytes.extend(number.to_le_bytes());
    bytes
}

#[test]
fn images_are_told_apart_by_version() {
    // Before 15: hole and compressed, with the hole's length; from 15 on: hole and apply, without.
    let old = [3, 0, 100, 0, 0x03 | 0x04, 200, 0];
    let new = [3, 0, 100, 0, 0x01 | 0x02];
    for (version, image, hole, compression) in
        [(14, &old[..], 200, Some(Compression::Pglz)), (15, &new[..], 8189, None), (13, &[3, 0, 100, 0, 0x05][..], 8189, None)]
    {
        let mut headers = block(0, 0x10, 0, image, &[1663, 5, 1259], 4);
        headers.extend(block(2, 0x20 | 0x40 | 0x80 | 2, 2, &[], &[], 9));
        headers.extend(block(7, 0x00, 0, &[], &[1663, 5, 2619], 1));
        let bytes = record(HEAP, 0, &headers, b"imgxy", &[1, 0, 0]);
        let record = parse(&bytes, version).expect("well formed");
        assert_eq!(record.main_data(), [1, 0, 0]);
        let blocks: Vec<_> = record.blocks().collect();
        assert_eq!(blocks.len(), 3);
        let image = blocks[0].image.expect("an image");
        assert_eq!((image.bytes, image.hole_offset, image.hole_length), (&b"img"[..], 100, hole));
        assert_eq!((image.compression, image.apply), (compression, true));
        assert_eq!((blocks[1].fork, blocks[1].block, blocks[1].data), (Fork::VisibilityMap, 9, &b"xy"[..]));
        assert_eq!((blocks[1].relation, blocks[1].will_init), (blocks[0].relation, true));
        assert_eq!((blocks[2].id, blocks[2].relation.number, blocks[2].data), (7, 2619, &b""[..]));
    }
}

#[test]
fn block_references_that_cannot_be_are_refused() {
    let refused = |headers: &[u8], data: &[u8]| parse(&record(HEAP, 0x60, headers, data, &[0; 8]), 15).err() == Some("block references");
    let good = block(0, 0x20, 2, &[], &[1663, 5, 1259], 4);
    assert!(!refused(&good, b"xy"));
    assert!(refused(&good, b"xyz"), "a byte too many");
    assert!(refused(&block(33, 0x20, 2, &[], &[1663, 5, 1259], 4), b"xy"), "no such number");
    assert!(refused(&block(0, 0x20 | 0x80, 2, &[], &[], 4), b"xy"), "the same relation as none");
    assert!(refused(&block(0, 0x24, 2, &[], &[1663, 5, 1259], 4), b"xy"), "no such fork");
    assert!(refused(&block(0, 0x20, 0, &[], &[1663, 5, 1259], 4), b""), "data of no length");
    assert!(refused(&[good.clone(), block(0, 0x80, 0, &[], &[], 5)].concat(), b"xy"), "twice the same number");
}

#[test]
fn heap_changes_name_both_versions_of_a_row() {
    let mut update = le(&[7]);
    update.extend([3, 0, 0, 0, 0, 0, 0, 0, 8, 0]);
    let headers = [block(0, 0x20, 2, &[], &[1663, 5, 1259], 4), block(1, 0x80, 0, &[], &[], 2), block(2, 0x82, 0, &[], &[], 0)].concat();
    let bytes = record(HEAP, 0x20, &headers, b"xy", &update);
    let change = parse(&bytes, 18).expect("well formed").heap_change().expect("a change");
    assert_eq!((change.operation, change.relation.number, change.row), (HeapOperation::Update, 1259, &b"xy"[..]));
    assert_eq!(change.old, Some(TupleId { block: 2, offset: 3 }));
    assert_eq!(change.new, Some(TupleId { block: 4, offset: 8 }));

    // A visibility map's page in second place is no heap page.
    let headers = [block(0, 0x20, 2, &[], &[1663, 5, 1259], 4), block(1, 0x82, 0, &[], &[], 0)].concat();
    let bytes = record(HEAP, 0x20, &headers, b"xy", &update);
    let change = parse(&bytes, 18).expect("well formed").heap_change().expect("a change");
    assert_eq!(change.old, Some(TupleId { block: 4, offset: 3 }), "on the same page");

    let bytes = record(HEAP, 0x10, &block(0, 0x00, 0, &[], &[1663, 5, 1259], 4), &[], &[7, 0, 0, 0, 9, 0, 0, 0]);
    let change = parse(&bytes, 18).expect("well formed").heap_change().expect("a change");
    assert_eq!((change.operation, change.old, change.new), (HeapOperation::Delete, Some(TupleId { block: 4, offset: 9 }), None));
    assert_eq!(parse(&record(HEAP, 0x60, &[], &[], &[0; 8]), 18).expect("well formed").heap_change(), None);
}

#[test]
fn a_cut_heap_changes_its_visibility_map() {
    let mut data = le(&[32_672 * 2 + 5, 1663, 5, 20000, 7]);
    let relation = RelFileLocator { tablespace: 1663, database: 5, number: 20000 };
    let of = |fork, from| FileChange::Relation { relation, fork: Some(fork), from };
    let changes = |data: &[u8]| parse(&record(2, 0x20, &[], &[], data), 15).expect("well formed").file_changes().collect::<Vec<_>>();
    assert_eq!(changes(&data), [of(Fork::Main, 32_672 * 2 + 5), of(Fork::VisibilityMap, 2)]);
    data[16] = 1;
    assert_eq!(changes(&data), [of(Fork::Main, 32_672 * 2 + 5)]);
}

/// Everything that can be asked of a record.
fn ask(bytes: &[u8], version: u32) {
    if let Ok(record) = parse(bytes, version) {
        let blocks = record.blocks().map(|block| block.data.len() + block.image.map_or(0, |image| image.bytes.len())).sum::<usize>();
        assert!(blocks + record.main_data().len() <= bytes.len());
        assert_eq!(record.blocks().count(), record.blocks().size_hint().0);
        assert!(record.file_changes().count() <= bytes.len());
        assert!(format!("{:?}{:?}", record.content(), record.heap_change()).len() > 4);
    }
}

proptest! {
    #[test]
    fn any_main_data_is_answered(
        manager in prop_oneof![0u8..12, any::<u8>()],
        info: u8,
        version in 13u32..=18,
        data in proptest::collection::vec(prop_oneof![3 => Just(0u8), 1 => 0u8..4, 2 => any::<u8>()], 0..200),
    ) {
        ask(&record(manager, info, &[], &[], &data), version);
    }

    #[test]
    fn any_headers_are_answered(
        manager in prop_oneof![0u8..12, any::<u8>()],
        info: u8,
        version in 13u32..=18,
        body in proptest::collection::vec(prop_oneof![3 => 0u8..3, 1 => 252u8..=255, 2 => any::<u8>()], 0..100),
    ) {
        ask(&record(manager, info, &body, &[], &[]), version);
    }

    #[test]
    fn a_damaged_commit_is_answered(at in 0usize..160, value: u8, cut in 0usize..160, version in 13u32..=18, info: u8) {
        let mut bytes = record(XACT, info, &[], &[], &every_part(16));
        let length = bytes.len();
        bytes[HEADER_SIZE + at % (length - HEADER_SIZE)] = value;
        bytes[16] = info;
        ask(&bytes, version);
        ask(&bytes[..HEADER_SIZE + cut % (length - HEADER_SIZE)], version);
    }
}
