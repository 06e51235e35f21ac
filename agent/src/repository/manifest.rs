//! A manifest as objects: the lines of [`walkeep_core::manifest`] as zstd files, one after the other, written and read as streams.
//!
//! A cluster may have millions of files, and thousands of gigabytes. So a manifest is several objects where it must be, each a zstd file; joined, they
//! are one (`cat` and `zstd -d` read it). What is in memory is a piece or two and one line; nothing here knows stores.

use std::io::{BufRead, BufReader, Cursor, Read, Write};

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use walkeep_core::backup::BackupRecord;
use walkeep_core::layout::{BackupId, ObjectName};
use walkeep_core::manifest::{Entry, EntryKind, ManifestLine, ManifestReader, ManifestTrailer, ManifestWriter};
use walkeep_core::sha256::Sha256Sum;

use super::{ClusterRepository, Error, Result};

/// No line is longer: the extents of a file of about a terabyte.
const LINE_LIMIT: u64 = 128 << 20;
/// A piece of a manifest is ended when it has this many bytes.
const PIECE: usize = 4 << 20;
/// Or when its files have this many bytes, or this share of all before them: an interrupted backup is gone on with from its pieces, and they shall be
/// few in a large one.
const PIECE_OF: (u64, u64) = (64 << 20, 64);
/// Pieces of a manifest that are kept, if they are no more than this together.
const KEPT: usize = 32 << 20;
/// Pieces read ahead.
const AHEAD: usize = 2;

/// One object of a manifest.
#[derive(Debug, Clone)]
pub struct Piece {
    /// Counted from 1.
    pub number: u32,
    /// The object.
    pub bytes: Bytes,
}

/// Makes the objects of a manifest.
pub struct ManifestEncoder {
    lines: ManifestWriter,
    zstd: zstd::stream::write::Encoder<'static, Vec<u8>>,
    level: i32,
    /// The piece under way.
    number: u32,
    /// Bytes of the files in it, and in those before.
    files: (u64, u64),
}

impl ManifestEncoder {
    /// Begins the manifest of `backup`, whose extents have at most `extent_max` plain bytes.
    pub fn new(backup: BackupId, extent_max: u64, level: i32) -> Result<Self> {
        let (lines, header) = ManifestWriter::new(backup, extent_max).map_err(Error::encode)?;
        let mut zstd = new_frame(level)?;
        zstd.write_all(header.as_bytes()).map_err(Error::encode)?;
        Ok(Self { lines, zstd, level, number: 1, files: (0, 0) })
    }

    /// Adds an entry. Answers a piece that is complete with it.
    pub fn entry(&mut self, entry: &Entry) -> Result<Option<Piece>> {
        let text = self.lines.entry(entry).map_err(Error::encode)?;
        self.zstd.write_all(text.as_bytes()).map_err(Error::encode)?;
        if let EntryKind::File { content, .. } = &entry.kind {
            self.files.0 = self.files.0.saturating_add(content.size());
        }
        let (here, before) = self.files;
        if here < PIECE_OF.0.max(before / PIECE_OF.1) && self.zstd.get_ref().len() < PIECE {
            return Ok(None);
        }
        self.files = (0, before.saturating_add(here));
        let full = std::mem::replace(&mut self.zstd, new_frame(self.level)?);
        let piece = Piece { number: self.number, bytes: Bytes::from(full.finish().map_err(Error::encode)?) };
        self.number += 1;
        Ok(Some(piece))
    }

    /// The last piece, and what its last line says.
    pub fn finish(mut self) -> Result<(Piece, ManifestTrailer)> {
        let (text, trailer) = self.lines.finish().map_err(Error::encode)?;
        self.zstd.write_all(text.as_bytes()).map_err(Error::encode)?;
        let bytes = self.zstd.finish().map_err(Error::encode)?;
        Ok((Piece { number: self.number, bytes: Bytes::from(bytes) }, trailer))
    }
}

fn new_frame(level: i32) -> Result<zstd::stream::write::Encoder<'static, Vec<u8>>> {
    let mut zstd = zstd::stream::write::Encoder::new(Vec::new(), level).map_err(Error::encode)?;
    zstd.include_checksum(true).map_err(Error::encode)?;
    Ok(zstd)
}

/// A stored manifest.
#[derive(Debug, Clone)]
pub struct ManifestEntries {
    repository: ClusterRepository,
    key: String,
    backup: BackupId,
    expected: Sha256Sum,
    /// How many there are.
    pieces: u32,
    /// The first ones.
    kept: Vec<Bytes>,
}

impl ManifestEntries {
    pub(super) async fn open(repository: ClusterRepository, record: &BackupRecord) -> Result<Self> {
        let pieces = record.manifest_pieces.max(1);
        let mut kept = Vec::new();
        for number in 1..=pieces {
            kept.push(repository.get_manifest_piece(&record.id, number).await?);
            if kept.iter().map(Bytes::len).sum::<usize>() > KEPT {
                break;
            }
        }
        let key = repository.key(&ObjectName::BackupManifest(record.id.clone(), 1))?.as_str().to_owned();
        Ok(Self { repository, key, backup: record.id.clone(), expected: record.manifest_sha256, pieces, kept })
    }

    /// The pieces of a manifest that has no end.
    pub(super) fn unfinished(repository: ClusterRepository, backup: BackupId, kept: Vec<Bytes>) -> Self {
        let key = repository.layout().key(&ObjectName::BackupManifest(backup.clone(), 1));
        Self { repository, key, backup, expected: Sha256Sum::new([0; 32]), pieces: kept.len() as u32, kept }
    }

    /// The entries in order, each checked; the last answer is an error unless the manifest is whole and the one its record names.
    /// CPU work, and of a large manifest waiting for its pieces: call it on a blocking thread.
    pub fn iter(&self) -> Result<impl Iterator<Item = Result<Entry>> + Send + 'static> {
        let later = (self.kept.len() as u32 + 1..=self.pieces).peekable();
        let mut later = later;
        let receiver = later.peek().is_some().then(|| self.read_ahead(later));
        let pieces = Pieces { kept: self.kept.clone().into_iter(), later: receiver, present: Cursor::new(Bytes::new()) };
        let zstd = zstd::stream::read::Decoder::new(pieces).map_err(|error| Error::corrupt(self.key.clone(), error))?;
        Ok(Entries {
            key: self.key.clone(),
            expected: self.expected,
            input: BufReader::with_capacity(256 << 10, zstd),
            lines: Some(ManifestReader::new(self.backup.clone())),
            buffer: Vec::new(),
        })
    }

    /// Fetches pieces for a reader on a blocking thread.
    fn read_ahead(&self, numbers: impl Iterator<Item = u32> + Send + 'static) -> mpsc::Receiver<Result<Bytes>> {
        let (sender, receiver) = mpsc::channel(AHEAD);
        let (repository, backup) = (self.repository.clone(), self.backup.clone());
        Handle::current().spawn(async move {
            for number in numbers {
                let piece = repository.get_manifest_piece(&backup, number).await;
                let failed = piece.is_err();
                if sender.send(piece).await.is_err() || failed {
                    return;
                }
            }
        });
        receiver
    }
}

/// The bytes of all pieces in order.
struct Pieces {
    kept: std::vec::IntoIter<Bytes>,
    later: Option<mpsc::Receiver<Result<Bytes>>>,
    present: Cursor<Bytes>,
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        loop {
            let read = self.present.read(buffer)?;
            if read > 0 || buffer.is_empty() {
                return Ok(read);
            }
            let next = match self.kept.next() {
                Some(piece) => piece,
                None => match self.later.as_mut().and_then(mpsc::Receiver::blocking_recv) {
                    Some(piece) => piece.map_err(std::io::Error::other)?,
                    None => return Ok(0),
                },
            };
            self.present = Cursor::new(next);
        }
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
            let read = Read::by_ref(&mut self.input).take(LINE_LIMIT).read_until(b'\n', &mut self.buffer);
            let read = read.map_err(|error| match error.downcast::<Error>() {
                // A piece that could not be read says nothing about the manifest.
                Ok(error) => error,
                Err(error) => corrupt(&error),
            })?;
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
mod tests;
