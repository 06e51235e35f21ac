//! What happens to a file on its disk: created, looked at, filled, made durable. All of it blocks.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use walkeep_core::manifest::content::Placement;
use walkeep_core::manifest::{Content, Extent, Source};
use walkeep_store::write as steps;

use super::super::batches::{Batch, Piece};
use super::super::sums::{self, Sums};
use super::behind::Behind;
use crate::codec::{self, Decompressor};

/// What is zero is left out, and what is there already is not written again, in steps of so many bytes.
const STEP: usize = 4096;

/// A file of the restore.
#[derive(Debug)]
pub struct FileAt {
    /// As the manifest has it.
    pub name: String,
    pub path: PathBuf,
    /// Its place among the files of the manifest.
    pub number: usize,
    pub size: u64,
    /// It was there before, and may have the right bytes already.
    pub existed: bool,
    sums: Mutex<Sums>,
}

impl FileAt {
    pub fn new(name: String, path: PathBuf, number: usize, content: &Content, existed: bool) -> Self {
        let mut sums = Sums::default();
        for (range, run) in content.located().filter(|(_, run)| run.source == Source::Zeros) {
            sums.add(range.start, run.length, sums::zeros(run.length));
        }
        Self { name, path, number, size: content.size(), existed, sums: Mutex::new(sums) }
    }

    /// Its CRC-32C, once everything is written.
    pub fn sum(&self) -> Option<u32> {
        self.sums.lock().unwrap_or_else(PoisonError::into_inner).of(self.size)
    }

    fn note(&self, placements: &[Placement], plain: &[u8]) {
        let mut sums = self.sums.lock().unwrap_or_else(PoisonError::into_inner);
        for place in placements {
            sums.add(place.offset, place.length, crc32c::crc32c(stretch(plain, place)));
        }
    }

    fn open(&self) -> Result<File> {
        let nofollow = rustix::fs::OFlags::NOFOLLOW.bits() as i32;
        let open = || OpenOptions::new().read(self.existed).write(true).custom_flags(nofollow).open(&self.path);
        open().with_context(|| format!("open {}", self.path.display()))
    }
}

/// The bytes of an extent that go to one place. A manifest's runs lie within their extents.
fn stretch<'a>(plain: &'a [u8], place: &Placement) -> &'a [u8] {
    let from = place.from as usize;
    plain.get(from..from + place.length as usize).unwrap_or_default()
}

/// The file that was opened last: pieces of one file come in a row.
#[derive(Default)]
struct Opened(Option<(Arc<FileAt>, Arc<File>)>);

impl Opened {
    fn get(&mut self, file: &Arc<FileAt>) -> Result<&Arc<File>> {
        let again = matches!(&self.0, Some((opened, _)) if Arc::ptr_eq(opened, file));
        if !again {
            self.0 = Some((file.clone(), Arc::new(file.open()?)));
        }
        self.0.as_ref().map(|(_, handle)| handle).context("a file that was just opened")
    }
}

/// Bytes that were written or found right, files that are complete, and the sums of those.
#[derive(Debug, Default)]
pub struct Done {
    pub bytes: u64,
    pub written: u64,
    pub files: Vec<(usize, u32)>,
}

impl Done {
    fn piece(&mut self, piece: &Piece<FileAt>) {
        self.bytes += bytes_of(piece);
        if let Some(sum) = piece.file.sum() {
            self.files.push((piece.file.number, sum));
        }
    }

    pub fn add(&mut self, other: Self) {
        self.bytes += other.bytes;
        self.written += other.written;
        self.files.extend(other.files);
    }
}

fn bytes_of(piece: &Piece<FileAt>) -> u64 {
    piece.placements.iter().map(|place| place.length).sum()
}

/// Whether its places have every byte of the extent, once.
fn is_whole(piece: &Piece<FileAt>) -> bool {
    let mut stretches: Vec<(u64, u64)> = piece.placements.iter().map(|place| (place.from, place.length)).collect();
    stretches.sort_unstable();
    let end = stretches.iter().try_fold(0, |at, (from, length)| (*from == at).then_some(from + length));
    end == Some(piece.extent.plain)
}

/// Which pieces of files that were there before are as they should be, by their hash; and the others.
pub fn look(pieces: Vec<Piece<FileAt>>) -> Result<(Done, Vec<Piece<FileAt>>)> {
    let (mut done, mut wrong, mut opened) = (Done::default(), Vec::new(), Opened::default());
    let mut plain = Vec::new();
    for piece in pieces {
        // An extent of which the file has a part only has no hash of that part.
        if !piece.file.existed || !is_whole(&piece) {
            wrong.push(piece);
            continue;
        }
        // Every byte of it is read below: what is left of the piece before does not matter.
        plain.resize(piece.extent.plain as usize, 0);
        let file = opened.get(&piece.file)?;
        let read = |place: &Placement, plain: &mut Vec<u8>| {
            let from = place.from as usize;
            file.read_exact_at(&mut plain[from..from + place.length as usize], place.offset)
        };
        piece
            .placements
            .iter()
            .try_for_each(|place| read(place, &mut plain))
            .with_context(|| format!("read {}", piece.file.path.display()))?;
        if codec::blake3(&plain) == piece.extent.hash {
            piece.file.note(&piece.placements, &plain);
            done.piece(&piece);
        } else {
            wrong.push(piece);
        }
    }
    Ok((done, wrong))
}

/// Opens, proves and writes the pieces of a batch; or answers which piece is damaged.
pub fn fill(batch: &Batch<FileAt>, bytes: &[u8], behind: &Behind) -> Result<std::result::Result<Done, usize>> {
    let (mut done, mut opened, mut zstd) = (Done::default(), Opened::default(), Decompressor::new().context("prepare to decompress")?);
    for (index, piece) in batch.pieces.iter().enumerate() {
        let Extent { offset, stored, plain, hash, .. } = piece.extent;
        let at = (offset - batch.range.start) as usize;
        let frame = bytes.get(at..at + stored as usize).unwrap_or_default();
        let plain = zstd.decompress(frame, plain as usize).ok().filter(|plain| codec::blake3(plain) == hash);
        let Some(plain) = plain else { return Ok(Err(index)) };
        let file = opened.get(&piece.file)?;
        for place in &piece.placements {
            done.written += write(file, &piece.file, place.offset, stretch(plain, place))?;
            behind.wrote(file, place.offset, place.length);
        }
        piece.file.note(&piece.placements, plain);
        done.piece(piece);
    }
    Ok(Ok(done))
}

/// Writes what is not there yet; a new file has zeros everywhere. Answers how many bytes it wrote.
fn write(file: &File, at: &FileAt, offset: u64, bytes: &[u8]) -> Result<u64> {
    let context = || format!("write {}", at.path.display());
    let mut before = Vec::new();
    if at.existed {
        before.resize(bytes.len(), 0);
        file.read_exact_at(&mut before, offset).with_context(|| format!("read {}", at.path.display()))?;
    }
    let is_there = |from: usize, step: &[u8]| match at.existed {
        true => before.get(from..from + step.len()) == Some(step),
        false => step.iter().all(|byte| *byte == 0),
    };
    // What has to be written is written in pieces as long as possible.
    let (mut from, mut written) = (None, 0);
    let mut flush = |range: std::ops::Range<usize>| {
        written += range.len() as u64;
        steps::write_all_at(file, &bytes[range.clone()], offset + range.start as u64).with_context(context)
    };
    for (index, step) in bytes.chunks(STEP).enumerate() {
        match (is_there(index * STEP, step), from) {
            (true, Some(start)) => {
                flush(start..index * STEP)?;
                from = None;
            }
            (false, None) => from = Some(index * STEP),
            _ => {}
        }
    }
    if let Some(start) = from {
        flush(start..bytes.len())?;
    }
    Ok(written)
}

/// Makes zeros of what should be zeros in a file that was there before.
pub fn clear(path: &Path, content: &Content) -> Result<()> {
    let nofollow = rustix::fs::OFlags::NOFOLLOW.bits() as i32;
    let context = || format!("write zeros to {}", path.display());
    let mut file = None;
    for (range, _) in content.located().filter(|(_, run)| run.source == Source::Zeros) {
        let file = match &mut file {
            Some(file) => file,
            None => file.insert(OpenOptions::new().read(true).write(true).custom_flags(nofollow).open(path).with_context(context)?),
        };
        let (mut at, mut buffer) = (range.start, vec![0; 1 << 16]);
        while at < range.end {
            let step = (range.end - at).min(buffer.len() as u64) as usize;
            file.read_exact_at(&mut buffer[..step], at).with_context(context)?;
            if buffer[..step].iter().any(|byte| *byte != 0) {
                buffer.fill(0);
                file.write_all_at(&buffer[..step], at).with_context(context)?;
            }
            at += step as u64;
        }
    }
    Ok(())
}
