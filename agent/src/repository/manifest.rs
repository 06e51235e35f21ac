//! A manifest as an object: the lines of [`walkeep_core::manifest`] as one zstd file, written and read as streams.
//!
//! A cluster may have millions of files. What is in memory is the compressed object and one line of it; nothing here knows stores.

use std::io::{BufRead, BufReader, Cursor, Read, Write};

use bytes::Bytes;
use walkeep_core::backup::BackupRecord;
use walkeep_core::layout::BackupId;
use walkeep_core::manifest::{Entry, ManifestLine, ManifestReader, ManifestTrailer, ManifestWriter};
use walkeep_core::sha256::Sha256Sum;

use super::{Error, Result};

/// No line is longer: the extents of a file of about a terabyte.
const LINE_LIMIT: u64 = 128 << 20;

/// Makes the object of a manifest.
pub struct ManifestEncoder {
    lines: ManifestWriter,
    zstd: zstd::stream::write::Encoder<'static, Vec<u8>>,
}

impl ManifestEncoder {
    /// Begins the manifest of `backup`, whose extents have at most `extent_max` plain bytes.
    pub fn new(backup: BackupId, extent_max: u64, level: i32) -> Result<Self> {
        let (lines, header) = ManifestWriter::new(backup, extent_max).map_err(Error::encode)?;
        let mut zstd = zstd::stream::write::Encoder::new(Vec::new(), level).map_err(Error::encode)?;
        zstd.include_checksum(true).map_err(Error::encode)?;
        zstd.write_all(header.as_bytes()).map_err(Error::encode)?;
        Ok(Self { lines, zstd })
    }

    /// Adds an entry.
    pub fn entry(&mut self, entry: &Entry) -> Result<()> {
        let text = self.lines.entry(entry).map_err(Error::encode)?;
        self.zstd.write_all(text.as_bytes()).map_err(Error::encode)
    }

    /// The object, and what its last line says.
    pub fn finish(mut self) -> Result<(Bytes, ManifestTrailer)> {
        let (text, trailer) = self.lines.finish().map_err(Error::encode)?;
        self.zstd.write_all(text.as_bytes()).map_err(Error::encode)?;
        let object = self.zstd.finish().map_err(Error::encode)?;
        Ok((Bytes::from(object), trailer))
    }
}

/// A stored manifest.
#[derive(Debug, Clone)]
pub struct ManifestEntries {
    key: String,
    backup: BackupId,
    expected: Sha256Sum,
    object: Bytes,
}

impl ManifestEntries {
    pub(super) fn new(key: &str, record: &BackupRecord, object: Bytes) -> Self {
        Self { key: key.to_owned(), backup: record.id.clone(), expected: record.manifest_sha256, object }
    }

    /// The entries in order, each checked; the last answer is an error unless the manifest is whole and the one its record names.
    /// CPU work.
    pub fn iter(&self) -> Result<impl Iterator<Item = Result<Entry>> + Send + 'static> {
        let corrupt = |error: std::io::Error| Error::corrupt(self.key.clone(), error);
        let zstd = zstd::stream::read::Decoder::with_buffer(Cursor::new(self.object.clone())).map_err(corrupt)?;
        Ok(Entries {
            key: self.key.clone(),
            expected: self.expected,
            input: BufReader::with_capacity(256 << 10, zstd),
            lines: Some(ManifestReader::new(self.backup.clone())),
            buffer: Vec::new(),
        })
    }
}

struct Entries<R> {
    key: String,
    expected: Sha256Sum,
    input: R,
    /// Taken at the end.
    lines: Option<ManifestReader>,
    buffer: Vec<u8>,
}

impl<R: BufRead> Entries<R> {
    fn next_entry(&mut self) -> Result<Option<Entry>> {
        let corrupt = |reason: &dyn std::fmt::Display| Error::corrupt(self.key.clone(), reason);
        while let Some(lines) = &mut self.lines {
            self.buffer.clear();
            let read =
                Read::by_ref(&mut self.input).take(LINE_LIMIT).read_until(b'\n', &mut self.buffer).map_err(|error| corrupt(&error))?;
            if read == 0 {
                let finished = self.lines.take().map_or(Ok(()), ManifestReader::finish);
                return finished.map(|()| None).map_err(|error| corrupt(&error));
            }
            let text = std::str::from_utf8(&self.buffer).ok().and_then(|text| text.strip_suffix('\n'));
            let text = text.ok_or_else(|| corrupt(&"a line is cut off, too long or not UTF-8"))?;
            match lines.line(text).map_err(|error| corrupt(&error))? {
                ManifestLine::Entry(entry) => return Ok(Some(entry)),
                ManifestLine::Trailer(trailer) if trailer.sha256 != self.expected => {
                    return Err(corrupt(&"it is not the manifest that the backup's record names"));
                }
                ManifestLine::Header(_) | ManifestLine::Pack(_) | ManifestLine::Trailer(_) => {}
            }
        }
        Ok(None)
    }
}

impl<R: BufRead> Iterator for Entries<R> {
    type Item = Result<Entry>;

    fn next(&mut self) -> Option<Self::Item> {
        let next = self.next_entry().transpose();
        if matches!(next, Some(Err(_))) {
            self.lines = None;
        }
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::tests::record;
    use walkeep_core::manifest::EntryKind;
    use walkeep_core::relative_path::RelativePath;

    fn entry(path: &str) -> Entry {
        Entry { path: RelativePath::parse(path).unwrap(), mode: 0o700, mtime: None, kind: EntryKind::Dir }
    }

    fn manifest() -> (BackupRecord, Bytes) {
        let mut record = record(1);
        let mut encoder = ManifestEncoder::new(record.id.clone(), 1 << 20, 3).unwrap();
        for path in ["base", "base/1", "global"] {
            encoder.entry(&entry(path)).unwrap();
        }
        let (object, trailer) = encoder.finish().unwrap();
        record.manifest_sha256 = trailer.sha256;
        (record, object)
    }

    fn read(record: &BackupRecord, object: Bytes) -> Result<Vec<Entry>> {
        ManifestEntries::new("m", record, object).iter()?.collect()
    }

    #[test]
    fn what_is_written_is_read_and_zstd_opens_it() {
        let (record, object) = manifest();
        assert_eq!(read(&record, object.clone()).unwrap(), [entry("base"), entry("base/1"), entry("global")]);
        let text = String::from_utf8(zstd::decode_all(&object[..]).unwrap()).unwrap();
        assert_eq!(text.lines().count(), 5);
    }

    #[test]
    fn any_damage_is_seen() {
        let (mut record, object) = manifest();
        for at in 0..object.len() {
            let mut bytes = object.to_vec();
            bytes[at] ^= 1;
            // A flip in a part of the frame that means nothing leaves the entries as they are.
            if let Ok(entries) = read(&record, bytes.into()) {
                assert_eq!(entries.len(), 3, "byte {at}");
            }
            assert!(read(&record, object.slice(..at)).is_err(), "cut at {at}");
        }
        record.manifest_sha256 = Sha256Sum::new([7; 32]);
        assert!(read(&record, object).unwrap_err().to_string().contains("record names"));
    }
}
