use super::content::Placement;
use super::*;
use crate::lsn::Lsn;

fn id() -> BackupId {
    BackupId::new(DateTime::from_timestamp(1_795_232_832, 0).expect("a time"), Lsn::new(0x200_0028))
}

fn sum(byte: u8) -> Blake3Sum {
    Blake3Sum::new([byte; 32])
}

fn extent(pack: u8, offset: u64, plain: u64) -> Extent {
    Extent { pack: PackId::new([pack; 32]), offset, stored: 100, plain, hash: sum(7) }
}

/// Three blocks: one of an older extent, a changed one, zeros.
fn patched() -> Content {
    let of = |index, from| Source::Extent { index, from };
    let runs =
        vec![Run { source: of(0, 4000), length: 4192 }, Run { source: of(1, 0), length: 8 }, Run { source: Source::Zeros, length: 90 }];
    Content::new(vec![extent(1, 0, 8192), extent(2, 700, 8)], runs).expect("a content")
}

fn entries() -> Vec<Entry> {
    let path = |text| RelativePath::parse(text).expect("a path");
    let file = |extents| EntryKind::File { content: Content::in_order(extents).expect("a content"), bad_blocks: Vec::new() };
    let entry = |text, kind| Entry { path: path(text), mode: 0o600, mtime: None, kind };
    vec![
        entry("base", EntryKind::Dir),
        entry("base/1", file(vec![extent(1, 0, 8192), extent(2, 0, 7808)])),
        entry("pg_tblspc/16400", EntryKind::Tablespace),
        Entry { mtime: DateTime::from_timestamp(5, 6), ..entry("pg_tblspc/16400/a \"b\"\n", file(vec![extent(1, 100, 5)])) },
        entry("base/empty", file(vec![])),
        entry("base/patched", EntryKind::File { content: patched(), bad_blocks: vec![3, 9] }),
    ]
}

fn written() -> String {
    let (mut writer, mut text) = ManifestWriter::new(id(), 8192).expect("a header");
    for entry in entries() {
        text.push_str(&writer.entry(&entry).expect("an entry"));
    }
    text + &writer.finish().expect("a trailer").0
}

fn read(text: &str) -> Result<Vec<ManifestLine>, ManifestError> {
    let mut reader = ManifestReader::new(id());
    let lines = text.lines().map(|line| reader.line(line)).collect::<Result<_, _>>()?;
    reader.finish().map(|()| lines)
}

#[test]
fn what_is_written_is_read() {
    let lines = read(&written()).expect("reads");
    let read: Vec<_> =
        lines.iter().filter_map(|line| if let ManifestLine::Entry(entry) = line { Some(entry.clone()) } else { None }).collect();
    assert_eq!(read, entries());
    let packs = lines.iter().filter(|line| matches!(line, ManifestLine::Pack(_))).count();
    assert_eq!(packs, 2, "a pack is introduced once");
    assert!(matches!(lines.last(), Some(ManifestLine::Trailer(ManifestTrailer { entries: 6, bytes: 20_295, .. }))));
}

#[test]
fn every_change_of_a_byte_is_seen() {
    let text = written();
    for at in 0..text.len() {
        let mut bytes = text.clone().into_bytes();
        bytes[at] ^= 1;
        if let Ok(changed) = String::from_utf8(bytes) {
            assert!(read(&changed).is_err(), "byte {at}");
        }
    }
}

#[test]
fn a_cut_or_a_missing_line_is_seen() {
    let text = written();
    let lines: Vec<&str> = text.lines().collect();
    for cut in 0..lines.len() {
        assert!(read(&lines[..cut].join("\n")).is_err(), "cut at {cut}");
        let without: Vec<&str> = lines.iter().enumerate().filter(|(i, _)| *i != cut).map(|(_, line)| *line).collect();
        assert!(read(&without.join("\n")).is_err(), "without {cut}");
    }
    assert!(read(&(text.clone() + "{}\n")).is_err(), "something follows");
}

#[test]
fn hostile_lines_are_refused() {
    let sum = sum(1);
    let file = |rest: &str| format!(r#"{{"path":"a","kind":"file","mode":384,{rest}}}"#);
    let nine = |runs: &str| file(&format!(r#""size":9,"extents":[[0,0,9,9,"{sum}"]],"runs":{runs}"#));
    for line in [
        r#"{"path":"../../etc/passwd","kind":"dir","mode":448}"#.to_owned(),
        r#"{"path":"/etc/passwd","kind":"dir","mode":448}"#.into(),
        r#"{"path":"a/./b","kind":"dir","mode":448}"#.into(),
        r#"{"path":"a","kind":"symlink","mode":448,"target":"/etc"}"#.into(),
        r#"{"path":"a","kind":"dir","mode":2541}"#.into(),
        r#"{"path":"base/5","kind":"tablespace","mode":448}"#.into(),
        r#"{"path":"base/5","kind":"dir","mode":448,"bad_blocks":[1]}"#.into(),
        r#"{"path":"pg_tblspc/16400/x","kind":"tablespace","mode":448}"#.into(),
        file(r#""size":1"#),
        file(r#""size":1,"extents":[]"#),
        file(&format!(r#""size":9,"extents":[[1,0,9,9,"{sum}"]]"#)),
        file(&format!(r#""size":9999,"extents":[[0,0,9,9999,"{sum}"]]"#)),
        file(&format!(r#""size":9,"extents":[[0,18446744073709551615,9,9,"{sum}"]]"#)),
        file(&format!(r#""size":9,"extents":[[0,-1,9,9,"{sum}"]]"#)),
        nine("[[0,1,9]]"),
        nine("[[0,18446744073709551615,9]]"),
        nine("[[1,0,9]]"),
        nine("[[9]]"),
        nine("[[0,0,9],[0]]"),
        nine("[[0,0,9],[18446744073709551615]]"),
        nine("[[0,0,8]]"),
        r#"{"pack":7,"id":"00"}"#.into(),
    ] {
        let (_, header) = ManifestWriter::new(id(), 8192).expect("a header");
        let mut reader = ManifestReader::new(id());
        reader.line(header.trim_end()).expect("a header");
        reader.line(&format!(r#"{{"pack":0,"id":"{sum}"}}"#)).expect("a pack");
        assert!(reader.line(&line).is_err(), "{line}");
        assert!(reader.line(&nine("[[0,2,7],[0,0,2]]")).is_ok());
    }
}

#[test]
fn runs_say_where_bytes_go() {
    let placed = patched().placements();
    assert_eq!(placed[0], [Placement { offset: 0, from: 4000, length: 4192 }]);
    assert_eq!(placed[1], [Placement { offset: 4192, from: 0, length: 8 }]);
    assert_eq!((patched().size(), patched().stored(), patched().is_in_order()), (4290, 200, false));
    assert!(Content::in_order(vec![extent(1, 0, 5), extent(1, 100, 6)]).expect("a content").is_in_order());
}
