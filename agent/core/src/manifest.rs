//! A base backup's manifest: which files it has and where their bytes lie.
//!
//! One JSON value a line (read it with `zstd -d | jq`), so that both ends need memory for one line and the table of packs only:
//!
//! ```text
//! {"format":1,"backup":"20261121T034712Z-0000000002000028","extent_max":1048576}
//! {"pack":0,"id":"3a7b…"}
//! {"path":"base/5","kind":"dir","mode":448}
//! {"path":"base/5/1234","kind":"file","mode":384,"size":8192,"sha256":"…","extents":[[0,0,2211,8192,"…"]]}
//! {"entries":2,"bytes":8192,"sha256":"…"}
//! ```
//!
//! An extent is `[pack, offset, stored length, plain length, SHA-256 of the plain bytes]`; the number of a pack is that of the line
//! which introduced it. The last line closes the manifest: it counts the entries and carries the SHA-256 of all lines before it,
//! their line feeds included. Everything read is checked, since a manifest is input. Reading does not see two entries of one path
//! (that would need memory for all of them): whoever writes the files must refuse to create one twice.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::layout::{BackupId, PackId};
use crate::relative_path::RelativePath;
use crate::sha256::Sha256Sum;

/// The form written by this version.
pub const MANIFEST_FORMAT: u32 = 1;
/// No extent is longer, whatever a header says: a reader may hold one in memory.
pub const EXTENT_LIMIT: u64 = 64 << 20;

/// The first line.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ManifestHeader {
    /// [`MANIFEST_FORMAT`].
    pub format: u32,
    /// The backup the manifest belongs to.
    pub backup: BackupId,
    /// No extent has more plain bytes.
    pub extent_max: u64,
}

/// A stretch of a file that lies in one piece in one pack.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Extent {
    /// The pack.
    pub pack: PackId,
    /// The frame's offset in the pack.
    pub offset: u64,
    /// The frame's length in the pack.
    pub stored: u64,
    /// Bytes of the file it holds.
    pub plain: u64,
    /// Of those bytes.
    pub sha256: Sha256Sum,
}

/// What an entry is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum EntryKind {
    /// A folder.
    Dir,
    /// The link of a tablespace, always `pg_tblspc/<oid>`; where it led is in the backup's record. No other link is kept.
    Tablespace,
    /// A file.
    File {
        /// Bytes: the sum of its extents.
        size: u64,
        /// Of the whole file.
        sha256: Sha256Sum,
        /// Its bytes in order.
        extents: Vec<Extent>,
    },
}

/// A file, folder or link.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Below the data directory; a tablespace's files below `pg_tblspc/<oid>/`.
    pub path: RelativePath,
    /// Permission bits, at most 0o777.
    pub mode: u32,
    /// When it was last changed, by the server's clock.
    pub mtime: Option<DateTime<Utc>>,
    /// What it is.
    pub kind: EntryKind,
}

/// The last line.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ManifestTrailer {
    /// Entries of every kind.
    pub entries: u64,
    /// Bytes of all files.
    pub bytes: u64,
    /// Of every line before this one, with their line feeds.
    pub sha256: Sha256Sum,
}

/// What a line told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ManifestLine {
    /// The first line.
    Header(ManifestHeader),
    /// A pack that later lines refer to.
    Pack(PackId),
    /// A file, folder or link.
    Entry(Entry),
    /// The last line: the manifest is whole.
    Trailer(ManifestTrailer),
}

/// A manifest that cannot be believed.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Not the JSON expected there.
    #[error("line {line} of the manifest is malformed: {cause}")]
    Malformed {
        /// Counted from 1.
        line: u64,
        /// What the JSON reader said.
        cause: serde_json::Error,
    },
    /// Written by a later Walkeep.
    #[error("the manifest has format {found}, this version reads {MANIFEST_FORMAT}: use a newer walkeep")]
    Format {
        /// The format found.
        found: u64,
    },
    /// The manifest of another backup.
    #[error("the manifest of backup {expected} names {found}: the object was moved or exchanged")]
    Backup {
        /// The backup it was read for.
        expected: BackupId,
        /// The backup it names.
        found: BackupId,
    },
    /// A rule of the format is broken.
    #[error("line {line} of the manifest breaks a rule: {rule}")]
    Rule {
        /// Counted from 1; 0 for an entry that was to be written.
        line: u64,
        /// The rule.
        rule: &'static str,
    },
    /// The closing line does not fit what came before.
    #[error("the manifest is damaged: its last line does not fit the {lines} lines before it")]
    Damaged {
        /// Lines read.
        lines: u64,
    },
    /// The closing line is missing.
    #[error("the manifest ends after {lines} lines without its closing line: it was cut off")]
    CutOff {
        /// Lines read.
        lines: u64,
    },
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPack {
    pack: u32,
    id: PackId,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum RawKind {
    Dir,
    Tablespace,
    File,
}

/// Pack, offset, stored length, plain length, SHA-256.
type RawExtent = (u32, u64, u64, u64, Sha256Sum);

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEntry {
    path: RelativePath,
    kind: RawKind,
    mode: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mtime: Option<DateTime<Utc>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sha256: Option<Sha256Sum>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    extents: Option<Vec<RawExtent>>,
}

/// What both ends count.
#[derive(Default)]
struct Totals {
    lines: u64,
    entries: u64,
    bytes: u64,
    hasher: Sha256,
}

impl Totals {
    fn line(&mut self, line: &str) {
        self.lines += 1;
        self.hasher.update(line.as_bytes());
        self.hasher.update(b"\n");
    }

    fn entry(&mut self, entry: &Entry) {
        self.entries += 1;
        if let EntryKind::File { size, .. } = entry.kind {
            self.bytes = self.bytes.saturating_add(size);
        }
    }

    fn trailer(&self) -> ManifestTrailer {
        let sha256 = Sha256Sum::new(self.hasher.clone().finalize().into());
        ManifestTrailer { entries: self.entries, bytes: self.bytes, sha256 }
    }
}

/// The rules an entry keeps, written or read; the broken one otherwise.
fn check_entry(entry: &Entry, extent_max: u64) -> Result<(), &'static str> {
    if entry.mode > 0o777 {
        return Err("a mode has the nine permission bits only");
    }
    let link = entry.path.tablespace().is_some_and(|(_, below)| below.is_none());
    match &entry.kind {
        EntryKind::Dir => Ok(()),
        EntryKind::Tablespace if !link => Err("a tablespace's link is pg_tblspc/<oid>"),
        EntryKind::Tablespace => Ok(()),
        EntryKind::File { size, extents, .. } => {
            let mut sum = 0u64;
            for extent in extents {
                if extent.plain == 0 || extent.plain > extent_max || extent.stored == 0 || extent.stored > 2 * EXTENT_LIMIT {
                    return Err("an extent is neither empty nor longer than the header allows");
                }
                if extent.offset.checked_add(extent.stored).is_none() {
                    return Err("an extent ends beyond any pack");
                }
                sum = sum.checked_add(extent.plain).ok_or("a file is longer than any file")?;
            }
            if sum == *size { Ok(()) } else { Err("a file's size is the sum of its extents") }
        }
    }
}

/// Makes the lines of a manifest, in order.
pub struct ManifestWriter {
    totals: Totals,
    extent_max: u64,
    packs: HashMap<PackId, u32>,
}

impl ManifestWriter {
    /// Begins a manifest: the first line comes with the writer. Lines end with a line feed.
    pub fn new(backup: BackupId, extent_max: u64) -> Result<(Self, String), ManifestError> {
        if extent_max == 0 || extent_max > EXTENT_LIMIT {
            return Err(ManifestError::Rule { line: 0, rule: "extents have 1 byte to 64 MiB" });
        }
        let mut writer = Self { totals: Totals::default(), extent_max, packs: HashMap::new() };
        let mut text = String::new();
        writer.push(&mut text, &ManifestHeader { format: MANIFEST_FORMAT, backup, extent_max })?;
        Ok((writer, text))
    }

    /// The lines of an entry: those of packs not named before, then its own.
    pub fn entry(&mut self, entry: &Entry) -> Result<String, ManifestError> {
        check_entry(entry, self.extent_max).map_err(|rule| ManifestError::Rule { line: 0, rule })?;
        let mut text = String::new();
        let (kind, file) = match &entry.kind {
            EntryKind::Dir => (RawKind::Dir, None),
            EntryKind::Tablespace => (RawKind::Tablespace, None),
            EntryKind::File { size, sha256, extents } => {
                let mut raw = Vec::with_capacity(extents.len());
                for extent in extents {
                    let pack = self.pack(&mut text, extent.pack)?;
                    raw.push((pack, extent.offset, extent.stored, extent.plain, extent.sha256));
                }
                (RawKind::File, Some((*size, *sha256, raw)))
            }
        };
        let (size, sha256, extents) = match file {
            Some((size, sha256, extents)) => (Some(size), Some(sha256), Some(extents)),
            None => (None, None, None),
        };
        let raw = RawEntry { path: entry.path.clone(), kind, mode: entry.mode, mtime: entry.mtime, size, sha256, extents };
        self.push(&mut text, &raw)?;
        self.totals.entry(entry);
        Ok(text)
    }

    /// The closing line.
    pub fn finish(mut self) -> Result<(String, ManifestTrailer), ManifestError> {
        let trailer = self.totals.trailer();
        let mut text = String::new();
        self.push(&mut text, &trailer)?;
        Ok((text, trailer))
    }

    fn pack(&mut self, text: &mut String, id: PackId) -> Result<u32, ManifestError> {
        if let Some(known) = self.packs.get(&id) {
            return Ok(*known);
        }
        let pack = u32::try_from(self.packs.len()).map_err(|_| ManifestError::Rule { line: 0, rule: "at most 2^32 packs" })?;
        self.push(text, &RawPack { pack, id })?;
        self.packs.insert(id, pack);
        Ok(pack)
    }

    fn push<T: Serialize>(&mut self, text: &mut String, value: &T) -> Result<(), ManifestError> {
        let line = serde_json::to_string(value).map_err(|cause| ManifestError::Malformed { line: 0, cause })?;
        self.totals.line(&line);
        text.push_str(&line);
        text.push('\n');
        Ok(())
    }
}

/// Reads the lines of a manifest, in order, and believes none unchecked.
pub struct ManifestReader {
    backup: BackupId,
    totals: Totals,
    extent_max: Option<u64>,
    packs: Vec<PackId>,
    closed: bool,
}

impl ManifestReader {
    /// A reader for the manifest of `backup`.
    pub fn new(backup: BackupId) -> Self {
        Self { backup, totals: Totals::default(), extent_max: None, packs: Vec::new(), closed: false }
    }

    /// Reads the next line, given without its line feed.
    pub fn line(&mut self, line: &str) -> Result<ManifestLine, ManifestError> {
        let number = self.totals.lines + 1;
        let malformed = |cause| ManifestError::Malformed { line: number, cause };
        let rule = |rule| ManifestError::Rule { line: number, rule };
        if self.closed {
            return Err(rule("nothing follows the closing line"));
        }
        let Some(extent_max) = self.extent_max else {
            let header = self.header(line)?;
            self.totals.line(line);
            return Ok(ManifestLine::Header(header));
        };
        // Each kind of line has its first key, as the writer puts it.
        if line.starts_with("{\"path\"") {
            let raw: RawEntry = serde_json::from_str(line).map_err(malformed)?;
            let entry = self.resolve(raw).map_err(rule)?;
            check_entry(&entry, extent_max).map_err(rule)?;
            self.totals.line(line);
            self.totals.entry(&entry);
            Ok(ManifestLine::Entry(entry))
        } else if line.starts_with("{\"pack\"") {
            let raw: RawPack = serde_json::from_str(line).map_err(malformed)?;
            if raw.pack as usize != self.packs.len() {
                return Err(rule("packs are numbered from 0 without a break"));
            }
            self.packs.push(raw.id);
            self.totals.line(line);
            Ok(ManifestLine::Pack(raw.id))
        } else {
            let trailer: ManifestTrailer = serde_json::from_str(line).map_err(malformed)?;
            if trailer != self.totals.trailer() {
                return Err(ManifestError::Damaged { lines: self.totals.lines });
            }
            self.closed = true;
            Ok(ManifestLine::Trailer(trailer))
        }
    }

    /// Says that there are no more lines.
    pub fn finish(self) -> Result<(), ManifestError> {
        if self.closed { Ok(()) } else { Err(ManifestError::CutOff { lines: self.totals.lines }) }
    }

    fn header(&mut self, line: &str) -> Result<ManifestHeader, ManifestError> {
        #[derive(Deserialize)]
        struct Form {
            format: u64,
        }
        let malformed = |cause| ManifestError::Malformed { line: 1, cause };
        let form: Form = serde_json::from_str(line).map_err(malformed)?;
        if form.format != u64::from(MANIFEST_FORMAT) {
            return Err(ManifestError::Format { found: form.format });
        }
        let header: ManifestHeader = serde_json::from_str(line).map_err(malformed)?;
        if header.backup != self.backup {
            return Err(ManifestError::Backup { expected: self.backup.clone(), found: header.backup });
        }
        if header.extent_max == 0 || header.extent_max > EXTENT_LIMIT {
            return Err(ManifestError::Rule { line: 1, rule: "extents have 1 byte to 64 MiB" });
        }
        self.extent_max = Some(header.extent_max);
        Ok(header)
    }

    fn resolve(&self, raw: RawEntry) -> Result<Entry, &'static str> {
        let kind = match (raw.kind, raw.size, raw.sha256, raw.extents) {
            (RawKind::Dir, None, None, None) => EntryKind::Dir,
            (RawKind::Tablespace, None, None, None) => EntryKind::Tablespace,
            (RawKind::File, Some(size), Some(sha256), Some(raw)) => {
                let extent = |(pack, offset, stored, plain, sha256): RawExtent| {
                    let pack = *self.packs.get(pack as usize)?;
                    Some(Extent { pack, offset, stored, plain, sha256 })
                };
                let extents = raw.into_iter().map(extent).collect::<Option<_>>();
                EntryKind::File { size, sha256, extents: extents.ok_or("a pack is introduced before it is used")? }
            }
            _ => return Err("files, and only files, have size, sha256 and extents"),
        };
        Ok(Entry { path: raw.path, mode: raw.mode, mtime: raw.mtime, kind })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lsn::Lsn;

    fn id() -> BackupId {
        BackupId::new(DateTime::from_timestamp(1_795_232_832, 0).expect("a time"), Lsn::new(0x200_0028))
    }

    fn sum(byte: u8) -> Sha256Sum {
        Sha256Sum::new([byte; 32])
    }

    fn entries() -> Vec<Entry> {
        let path = |text| RelativePath::parse(text).expect("a path");
        let extent = |pack, offset, plain| Extent { pack: PackId::new([pack; 32]), offset, stored: 100, plain, sha256: sum(7) };
        let file = |size, extents| EntryKind::File { size, sha256: sum(9), extents };
        let entry = |text, kind| Entry { path: path(text), mode: 0o600, mtime: None, kind };
        vec![
            entry("base", EntryKind::Dir),
            entry("base/1", file(16_000, vec![extent(1, 0, 8192), extent(2, 0, 7808)])),
            entry("pg_tblspc/16400", EntryKind::Tablespace),
            Entry { mtime: DateTime::from_timestamp(5, 6), ..entry("pg_tblspc/16400/a \"b\"\n", file(5, vec![extent(1, 100, 5)])) },
            entry("base/empty", file(0, vec![])),
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
        assert!(matches!(lines.last(), Some(ManifestLine::Trailer(ManifestTrailer { entries: 5, bytes: 16_005, .. }))));
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
        let file = |rest: &str| format!(r#"{{"path":"a","kind":"file","mode":384,"sha256":"{sum}",{rest}}}"#);
        for line in [
            r#"{"path":"../../etc/passwd","kind":"dir","mode":448}"#.to_owned(),
            r#"{"path":"/etc/passwd","kind":"dir","mode":448}"#.into(),
            r#"{"path":"a/./b","kind":"dir","mode":448}"#.into(),
            r#"{"path":"a","kind":"symlink","mode":448,"target":"/etc"}"#.into(),
            r#"{"path":"a","kind":"dir","mode":2541}"#.into(),
            r#"{"path":"base/5","kind":"tablespace","mode":448}"#.into(),
            r#"{"path":"pg_tblspc/16400/x","kind":"tablespace","mode":448}"#.into(),
            file(r#""size":1"#),
            file(r#""size":1,"extents":[]"#),
            file(&format!(r#""size":9,"extents":[[1,0,9,9,"{sum}"]]"#)),
            file(&format!(r#""size":9999,"extents":[[0,0,9,9999,"{sum}"]]"#)),
            file(&format!(r#""size":9,"extents":[[0,18446744073709551615,9,9,"{sum}"]]"#)),
            file(&format!(r#""size":9,"extents":[[0,-1,9,9,"{sum}"]]"#)),
            r#"{"pack":7,"id":"00"}"#.into(),
        ] {
            let (_, header) = ManifestWriter::new(id(), 8192).expect("a header");
            let mut reader = ManifestReader::new(id());
            reader.line(header.trim_end()).expect("a header");
            reader.line(&format!(r#"{{"pack":0,"id":"{sum}"}}"#)).expect("a pack");
            assert!(reader.line(&line).is_err(), "{line}");
        }
    }
}
