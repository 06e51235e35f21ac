//! The decoder of walkeep-core against WAL that each version's server wrote just now: every record as `pg_waldump` of the same version prints it, where there is one;
//! what was dropped, truncated, rewritten and prepared as the server itself told before; and damaged WAL.

mod summary;
mod waldump;

use std::collections::BTreeSet;

use walkeep_core::decoder::{Decoder, first_record};
use walkeep_core::page::{PageHeader, SegmentHeader};
use walkeep_core::record::{Content, HeapOperation, Invalidation, Record, ResourceManager};
use walkeep_core::{Lsn, SegmentSize};
use walkeep_tests::postgres::{Builder, versions};
use walkeep_tests::{Cluster, Scratch, Stop, user};

use crate::support::{lsn, segments_in};
use waldump::{Line, assert_same, dump, line, moment};

fn builder(version: u32) -> Builder {
    // Half of the versions with what only logical decoding needs.
    let level = if version.is_multiple_of(2) { "logical" } else { "replica" };
    let builder = Cluster::builder().version(version).segment_mib(1).conf("wal_level", level).conf("track_commit_timestamp", "on");
    builder.conf("max_prepared_transactions", 5).conf("wal_keep_size", "1GB").conf("autovacuum", "off").conf("TimeZone", "UTC")
}

/// What the server told of what it did.
struct Told {
    start: u64,
    class_file: u32,
    dropped: Dropped,
    truncated: Rewritten,
    rewritten: Rewritten,
    in_schema: BTreeSet<u32>,
    cut_file: u32,
    database: u32,
    nested: Vec<u32>,
    prepared: (u32, u32),
    /// Every transaction that has a commit time.
    commits: Vec<(u32, String)>,
}

struct Dropped {
    xid: u32,
    oid: u32,
    files: BTreeSet<u32>,
}

struct Rewritten {
    xid: u32,
    before: u32,
    after: u32,
}

/// Does what an accident may consist of, and more, and tells what it was.
fn work(cluster: &Cluster, places: &Scratch) -> Told {
    cluster.sql("CHECKPOINT");
    let file = |name: &str| cluster.value::<u32>(&format!("SELECT pg_relation_filenode('{name}')"));
    let start = lsn(&cluster.sql("SELECT pg_current_wal_insert_lsn()"));
    cluster.sql(
        "CREATE TABLE gone (id serial PRIMARY KEY, t text); CREATE TABLE emptied AS SELECT generate_series(1, 200) i;
         CREATE TABLE rewritten (i int PRIMARY KEY, p point, a int[], t text);
         INSERT INTO rewritten SELECT i, point(i, i), ARRAY[i], md5(i::text) FROM generate_series(1, 800) i;
         CREATE INDEX ON rewritten USING gist (p); CREATE INDEX ON rewritten USING spgist (p);
         CREATE INDEX ON rewritten USING gin (a); CREATE INDEX ON rewritten USING hash (t); CREATE INDEX ON rewritten USING brin (i);
         CREATE SCHEMA lost; CREATE TABLE lost.a (i int); CREATE TABLE lost.b (i int); CREATE UNLOGGED TABLE lost.u (i int);
         CREATE TABLE cut AS SELECT i, repeat('x', 500) FROM generate_series(1, 500) i; CREATE TEMPORARY TABLE mine (i int)",
    );
    cluster
        .sql("UPDATE rewritten SET p = point(i, -i), a = ARRAY[i, -i]; DELETE FROM rewritten WHERE i > 700; DELETE FROM cut WHERE i > 100");
    // A record of many pages, and of several segments.
    cluster.sql("SELECT pg_logical_emit_message(false, 'test', repeat('x', 2500000))");

    let mut session = cluster.session();
    session.sql("CREATE TABLE nested (i int); BEGIN; INSERT INTO nested VALUES (0); SAVEPOINT a; INSERT INTO nested VALUES (1)");
    session.sql("SAVEPOINT b; INSERT INTO nested VALUES (2); COMMIT");
    session.sql("BEGIN; CREATE TABLE never (i int); SAVEPOINT c; INSERT INTO never VALUES (1); ROLLBACK");
    let prepare = |session: &mut walkeep_tests::Session, name: &str, work: &str| -> u32 {
        session.sql(&format!("BEGIN; {work}; SAVEPOINT s; INSERT INTO nested VALUES (3)"));
        let xid = session.sql("SELECT txid_current()");
        session.sql(&format!("PREPARE TRANSACTION '{name}'"));
        xid.parse().unwrap()
    };
    cluster.sql("CREATE TABLE two_phase (i int)");
    let prepared =
        (prepare(&mut session, "kept name", "DROP TABLE two_phase"), prepare(&mut session, "undone", "CREATE TABLE undone (i int)"));
    session.sql("COMMIT PREPARED 'kept name'; ROLLBACK PREPARED 'undone'");
    let nested =
        cluster.rows("SELECT DISTINCT xmin::text::int FROM nested ORDER BY 1").concat().iter().map(|xid| xid.parse().unwrap()).collect();

    let of_table = "SELECT pg_relation_filenode(c.oid) FROM pg_class c LEFT JOIN pg_index x ON c.oid = x.indexrelid
                    WHERE c.oid = 'gone'::regclass OR x.indrelid = 'gone'::regclass OR c.relname = 'gone_id_seq'
                    OR c.oid = (SELECT reltoastrelid FROM pg_class WHERE oid = 'gone'::regclass)
                    OR x.indrelid = (SELECT reltoastrelid FROM pg_class WHERE oid = 'gone'::regclass)";
    let files = |query: &str| cluster.rows(query).concat().iter().map(|file| file.parse().unwrap()).collect();
    let (gone_files, oid) = (files(of_table), cluster.value("SELECT 'gone'::regclass::oid"));
    let with_xid = |statement: &str| -> u32 {
        let mut session = cluster.session();
        session.sql("BEGIN; INSERT INTO nested VALUES (9)");
        let xid = session.sql("SELECT txid_current()");
        session.sql(&format!("{statement}; COMMIT"));
        xid.parse().unwrap()
    };
    let dropped = Dropped { xid: with_xid("DROP TABLE gone"), oid, files: gone_files };
    let before = file("emptied");
    let truncated = Rewritten { xid: with_xid("TRUNCATE emptied"), before, after: file("emptied") };
    let before = file("rewritten");
    cluster.sql("VACUUM FULL rewritten");
    let rewritten =
        Rewritten { xid: cluster.value("SELECT xmin FROM pg_class WHERE oid = 'rewritten'::regclass"), before, after: file("rewritten") };
    let in_schema = files("SELECT pg_relation_filenode(oid) FROM pg_class WHERE relnamespace = 'lost'::regnamespace AND relkind = 'r'");
    cluster.sql("DROP SCHEMA lost CASCADE");
    cluster.sql("VACUUM cut");
    cluster.sql("CREATE DATABASE other");
    if cluster.version() >= 15 {
        cluster.sql("CREATE DATABASE copied STRATEGY file_copy");
    }
    let database = cluster.value("SELECT oid FROM pg_database WHERE datname = 'other'");
    cluster.sql("DROP DATABASE other");
    cluster.sql(&format!("CREATE TABLESPACE away LOCATION '{}'", places.dir("away").display()));
    cluster.sql("CREATE TABLE far TABLESPACE away AS SELECT 1; DROP TABLE far");
    cluster.sql("DROP TABLESPACE away");
    let class_file = file("pg_class");
    cluster.sql("VACUUM FULL pg_class");
    cluster.sql("SELECT pg_create_restore_point('after all')");
    cluster.sql("SELECT pg_switch_wal()");
    cluster.sql("CREATE TABLE last (i int)");
    let commits = cluster.rows(
        "SELECT DISTINCT xmin::text, pg_xact_commit_timestamp(xmin)::timestamp FROM (SELECT xmin FROM nested UNION ALL SELECT xmin FROM cut) t",
    );
    let commits = commits.into_iter().map(|row| (row[0].parse().unwrap(), row[1].clone())).collect();
    Told { start, class_file, dropped, truncated, rewritten, in_schema, cut_file: file("cut"), database, nested, prepared, commits }
}

/// The bytes of these segments, one after the other.
fn bytes_of(cluster: &Cluster, names: &[String]) -> Vec<u8> {
    names.iter().flat_map(|name| std::fs::read(cluster.pg_wal().join(name)).unwrap()).collect()
}

fn size() -> SegmentSize {
    SegmentSize::new(1 << 20).unwrap()
}

/// Every record from `start` on, `wal` beginning with its segment.
fn decode(wal: &[u8], start: u64, mut each: impl FnMut(&Record<'_>)) -> Decoder {
    let mut decoder = Decoder::new(Lsn::new(start), size());
    let skip = decoder.reads_from().get() - SegmentHeader::read(wal).unwrap().start.get();
    for mut piece in wal[skip as usize..].chunks(100_000) {
        while let Some(record) = decoder.next_record(&mut piece).unwrap() {
            each(&record);
        }
    }
    decoder
}

fn lines(wal: &[u8], start: u64) -> Vec<Line> {
    let mut lines = Vec::new();
    decode(wal, start, |record| lines.push(line(record)));
    lines
}

#[test]
fn every_version_is_read_as_its_server_and_pg_waldump_read_it() {
    for version in versions() {
        let (places, cluster) = (Scratch::new(), builder(version).start());
        let told = work(&cluster, &places);
        cluster.stop(Stop::Fast);
        let all = segments_in(&cluster.pg_wal());
        let first = told.start / size().bytes() % 4096;
        let names: Vec<_> = all.into_iter().filter(|name| u64::from_str_radix(&name[16..], 16).unwrap() >= first).collect();
        let wal = bytes_of(&cluster, &names);
        let ours = lines(&wal, told.start);
        assert!(ours.len() > 2000, "PostgreSQL {version}: {} records", ours.len());
        if let Some(theirs) = dump(version, &cluster.pg_wal(), 1, told.start) {
            assert_same(&ours, &theirs, &format!("PostgreSQL {version}"));
            eprintln!("PostgreSQL {version}: {} records as pg_waldump's", ours.len());
        }
        check_told(version, &wal, &told);
        check_apart(&wal, &ours);
        damage(version, &wal);
    }
}

/// What the server told is in the WAL, in the transaction that did it.
fn check_told(version: u32, wal: &[u8], told: &Told) {
    let (mut deleted, mut updated, mut created) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    let (mut seen, mut commits, mut cut, mut moved_class) = (BTreeSet::new(), Vec::new(), false, false);
    decode(wal, told.start, |record| {
        if let Some(change) = record.heap_change().filter(|change| change.relation.number == told.class_file) {
            match change.operation {
                HeapOperation::Delete => deleted.insert(record.xid),
                HeapOperation::Update | HeapOperation::HotUpdate => updated.insert(record.xid),
                HeapOperation::Insert | HeapOperation::Inplace => false,
            };
        }
        match record.content() {
            Content::Commit(end) => {
                commits.push((end.xid, moment(end.time)));
                let files: BTreeSet<u32> = end.dropped_files.iter().map(|file| file.number).collect();
                if end.xid == told.dropped.xid {
                    assert_eq!(files, told.dropped.files, "files of the dropped table");
                    let named = end
                        .invalidations
                        .iter()
                        .any(|message| matches!(message, Invalidation::Relation { relation, .. } if relation == told.dropped.oid));
                    assert!(named, "the dropped table's oid is in {:?}", end.invalidations);
                    if version >= 15 {
                        let statistics: Vec<_> = end.dropped_statistics.iter().collect();
                        assert!(
                            statistics.iter().any(|item| item.kind == 2 && item.object == u64::from(told.dropped.oid)),
                            "{statistics:?}"
                        );
                    }
                    seen.insert("dropped");
                }
                for (name, rewritten) in [("truncated", &told.truncated), ("rewritten", &told.rewritten)] {
                    if end.xid == rewritten.xid && files.contains(&rewritten.before) {
                        assert!(!files.contains(&rewritten.after));
                        seen.insert(name);
                    }
                }
                if files.is_superset(&told.in_schema) && !files.is_empty() {
                    seen.insert("schema");
                }
                if end.xid == told.nested[0] {
                    assert_eq!(end.subtransactions.iter().collect::<Vec<_>>(), told.nested[1..3]);
                    seen.insert("nested");
                }
                if end.xid == told.prepared.0 {
                    assert!(end.prepared && end.dropped_files.len() == 1 && end.subtransactions.len() == 1, "{end:?}");
                    assert_eq!(end.gid, version.is_multiple_of(2).then_some(&b"kept name"[..]));
                    seen.insert("prepared and committed");
                }
            }
            Content::Abort(end) if end.xid == told.prepared.1 => {
                assert!(end.prepared && end.dropped_files.len() == 1, "{end:?}");
                seen.insert("prepared and undone");
            }
            Content::Prepare(prepare) => {
                let (xid, dropped, made) = (prepare.xid, prepare.dropped_at_commit.len(), prepare.dropped_at_abort.len());
                match prepare.gid {
                    b"kept name" => assert_eq!((xid, dropped, made), (told.prepared.0, 1, 0)),
                    b"undone" => assert_eq!((xid, dropped, made), (told.prepared.1, 0, 1)),
                    other => panic!("{other:?}"),
                }
                assert_eq!(prepare.subtransactions.len(), 1);
                seen.insert("prepared");
            }
            Content::FileCreated(file) => _ = created.insert((record.xid, file.relation.number)),
            Content::FileTruncated(file) => cut |= file.main && file.relation.number == told.cut_file && (1..30).contains(&file.blocks),
            Content::DatabaseDropped(dropped) if dropped.database == told.database => {
                assert_eq!(dropped.tablespaces.iter().collect::<Vec<_>>(), [1663]);
                seen.insert("database dropped");
            }
            Content::DatabaseCreated(made) if made.database == told.database => {
                assert_eq!(made.copied_from.is_some(), version < 15, "{made:?}");
                seen.insert("database");
            }
            Content::DatabaseCreated(made) => assert!(made.copied_from.is_some(), "{made:?}"),
            Content::RelationMap(map) => moved_class |= map.mappings.iter().any(|of| of.relation == 1259 && of.number != told.class_file),
            Content::Truncate(truncate) => {
                assert_eq!(truncate.relations.len(), 1);
                seen.insert("truncate");
            }
            Content::TablespaceCreated(space) => assert!(space.location.ends_with(b"/away") && seen.insert("tablespace")),
            Content::TablespaceDropped { .. } => _ = seen.insert("tablespace dropped"),
            Content::RestorePoint(point) => assert!(point.name == b"after all" && seen.insert("restore point")),
            Content::Checkpoint(point) => {
                assert_eq!(point.wal_level, (version >= 17).then(|| if version.is_multiple_of(2) { 2 } else { 1 }));
                assert!((400..100_000).contains(&point.next_xid) && point.unix_time > 1_700_000_000, "{point:?}");
                seen.insert(if point.shutdown { "shutdown" } else { "checkpoint" });
            }
            Content::Switch => _ = seen.insert("switch"),
            _ => {}
        }
    });
    let mut expected = BTreeSet::from(["dropped", "truncated", "rewritten", "schema", "nested", "prepared", "prepared and committed"]);
    expected.extend(["prepared and undone", "database", "database dropped", "tablespace", "tablespace dropped", "restore point", "switch"]);
    expected.extend(["shutdown"]);
    expected.extend(version.is_multiple_of(2).then_some("truncate"));
    // Before 15 making a database is a checkpoint too; so it may be where files are copied.
    seen.remove("checkpoint");
    assert_eq!(seen, expected, "PostgreSQL {version}");
    assert!(cut && moved_class, "PostgreSQL {version}: cut {cut}, pg_class moved {moved_class}");
    // What tells a drop from a rewrite.
    assert!(deleted.contains(&told.dropped.xid), "the dropped table's row is deleted");
    for (rewritten, only) in [(&told.truncated, true), (&told.rewritten, false)] {
        assert!(updated.contains(&rewritten.xid) && !(only && deleted.contains(&rewritten.xid)));
        assert!(created.contains(&(rewritten.xid, rewritten.after)), "the new file is made in the transaction");
    }
    for (xid, time) in &told.commits {
        let of = |time: &str| time.trim_end_matches('0').to_owned();
        let found = commits.iter().find(|commit| commit.0 == *xid);
        // Subtransactions have their parent's time, and no commit of their own.
        if !told.nested.contains(xid) || *xid == told.nested[0] {
            assert_eq!(found.map(|commit| of(&commit.1)), Some(of(time)), "commit of {xid}");
        }
    }
}

/// Segments decoded each by itself give the same records.
fn check_apart(wal: &[u8], ours: &[Line]) {
    let segment = size().bytes() as usize;
    let mut apart: Vec<Line> = Vec::new();
    let start = SegmentHeader::read(wal).unwrap().start;
    for at in (0..wal.len()).step_by(segment) {
        // Behind the last segment lie those that were made ready beforehand, or recycled.
        let Some(header) = PageHeader::decode(&wal[at..]).ok().filter(|header| header.start.bytes_since(start) == at as u64) else { break };
        let end = header.start.saturating_add(size().bytes());
        let mut decoder = Decoder::new(header.start, size());
        let mut found = Vec::new();
        for mut piece in wal[at..].chunks(8192) {
            while decoder.position() < end
                && let Some(record) = decoder.next_record(&mut piece).unwrap()
            {
                found.push(line(&record));
            }
            if decoder.position() >= end || decoder.end().is_some() {
                break;
            }
        }
        found.retain(|line| line.start < end.get());
        assert!(found.first().is_none_or(|line| Lsn::new(line.start) == first_record(&header, size())));
        apart.extend(found);
    }
    apart.retain(|line| line.start >= ours[0].start);
    assert_same(&apart, ours, "segments by themselves");
}

/// No bytes make the decoder panic or take memory beyond measure.
fn damage(version: u32, wal: &[u8]) {
    let wal = &wal[..wal.len().min(3 << 20)];
    let start = SegmentHeader::read(wal).unwrap().start;
    let mut places = Vec::new();
    decode(wal, start.get(), |record| {
        // Those of one page, whose checksum can be set right again.
        let at = record.start.bytes_since(start) as usize;
        if at % 8192 + record.len() <= 8192 && record.resource_manager <= ResourceManager::HEAP {
            places.push((at, record.len()));
        }
    });
    let mut seed = 0x9E37_79B9_7F4A_7C15u64 ^ u64::from(version);
    let mut random = |below: usize| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        (seed % below as u64) as usize
    };
    for round in 0..100 {
        let mut damaged = wal.to_vec();
        match round % 4 {
            0 => damaged[random(wal.len())] ^= 1 + random(255) as u8,
            1 => damaged.truncate(random(wal.len())),
            2 => {
                let (from, to, length) = (random(wal.len() - 9000), random(wal.len() - 9000), random(9000));
                damaged.copy_within(from..from + length, to);
            }
            // Sound by their checksums, but not by what they say.
            _ => {
                for _ in 0..200 {
                    let (at, length) = places[random(places.len())];
                    if length > 24 {
                        damaged[at + 24 + random(length - 24)] ^= 1 + random(255) as u8;
                    }
                    damaged[at + 16] ^= random(256) as u8 & 0xF0;
                    let crc = crc32c::crc32c_append(crc32c::crc32c(&damaged[at + 24..at + length]), &damaged[at..at + 20]);
                    damaged[at + 20..at + 24].copy_from_slice(&crc.to_le_bytes());
                }
            }
        }
        // From each segment, as an error ends it.
        for begin in (0..damaged.len()).step_by(1 << 20) {
            let some = damaged.len().min(begin + (3 << 19));
            read_all(&damaged[begin..some], start.saturating_add(begin as u64));
        }
    }
}

fn read_all(wal: &[u8], start: Lsn) {
    let mut decoder = Decoder::new(start, size());
    for mut piece in wal.chunks(1 << 16) {
        while let Ok(Some(record)) = decoder.next_record(&mut piece) {
            let touched = record.blocks().map(|block| block.data.len()).sum::<usize>() + record.file_changes().count();
            std::hint::black_box((touched, record.heap_change(), format!("{:?}", record.content()).len()));
        }
        assert!(decoder.memory() <= 2 * wal.len() + (1 << 20), "{} bytes of memory", decoder.memory());
    }
}

/// A promotion in the middle of a segment, and an unfinished record of a crash before it.
#[test]
fn promotions_are_read_as_pg_waldump_reads_them() {
    for version in versions() {
        let cluster = builder(version).start();
        cluster.sql("CREATE TABLE t AS SELECT generate_series(1, 1000) i");
        let start = lsn(&cluster.sql("SELECT pg_current_wal_insert_lsn()"));
        cluster.sql("INSERT INTO t SELECT generate_series(1, 20000)");
        cluster.stop(Stop::Fast);
        std::fs::write(cluster.data().join("standby.signal"), "").unwrap();
        user::give(&cluster.data().join("standby.signal"));
        cluster.start();
        cluster.promote();
        cluster.sql("INSERT INTO t SELECT generate_series(1, 20000)");
        cluster.stop(Stop::Fast);

        let names = segments_in(&cluster.pg_wal());
        let number = |name: &String| name[8..].to_owned();
        let first = start / size().bytes();
        let new: Vec<_> = names.iter().filter(|name| name.starts_with("00000002")).cloned().collect();
        let branch = u64::from_str_radix(&new[0][16..], 16).unwrap() * size().bytes();
        let old = names.iter().filter(|name| name.starts_with("00000001") && number(name) < number(&new[0]));
        let path: Vec<_> = old.filter(|name| u64::from_str_radix(&name[16..], 16).unwrap() >= first).chain(&new).cloned().collect();
        let wal = bytes_of(&cluster, &path);
        let mut promotions = Vec::new();
        let decoder = decode(&wal, start, |record| match record.content() {
            Content::EndOfRecovery(end) => promotions.push((end.timeline.get(), end.wal_level)),
            Content::Checkpoint(point) if point.timeline != point.previous_timeline => {
                promotions.push((point.timeline.get(), point.wal_level))
            }
            _ => {}
        });
        let level = if version.is_multiple_of(2) { 2 } else { 1 };
        assert_eq!(promotions, [(2, (version >= 17).then_some(level))], "PostgreSQL {version}");
        assert_eq!(decoder.timeline().map(|timeline| timeline.get()), Some(2));
        let ours = lines(&wal, start);
        if let Some(mut theirs) = dump(version, &cluster.pg_wal(), 1, start) {
            theirs.retain(|line| line.start < branch);
            theirs.extend(dump(version, &cluster.pg_wal(), 2, branch).into_iter().flatten());
            assert_same(&ours, &theirs, &format!("PostgreSQL {version}"));
        }
    }
}
