//! Reading an extent of a file, its pages checked where they have checksums.
//!
//! A page whose sum is wrong may be torn: the server wrote it just then. It is read once more after a short pause, and only then called bad; it goes into the
//! backup as it is. Blocking: this is done on threads for it.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::fs::Advice;
use walkeep_core::Lsn;
use walkeep_core::control::ControlFile;
use walkeep_core::page_checksum::{Verdict, bad_blocks, verdict};
use walkeep_core::relation_file::RelationFile;
use walkeep_core::relative_path::RelativePath;

use crate::backup::damage::Damage;
use crate::backup::pack::Plain;

/// Before a page is read again.
const PAUSE: Duration = Duration::from_millis(50);
/// Pauses of one backup; of a disk that is bad all over nobody wants to wait for each page.
const PAUSES: u32 = 100;
/// Files from this length on are announced to the kernel as read from begin to end.
const LONG: u64 = 256 << 10;

/// How pages are checked.
#[derive(Debug, Clone, Copy)]
pub struct Pages {
    /// Where the backup begins: what is newer is WAL's to bring.
    pub start: Lsn,
    block_size: usize,
    blocks_per_file: u32,
}

impl Pages {
    /// By a cluster's control file; `None` without checksums.
    pub fn of(control: &ControlFile, start: Lsn) -> Option<Self> {
        let block_size = usize::try_from(control.block_size).ok().filter(|size| size.is_power_of_two() && (512..=65_536).contains(size))?;
        (control.checksum_version != 0).then_some(Self { start, block_size, blocks_per_file: control.blocks_per_file })
    }
}

/// What all reads of a backup share.
#[derive(Debug)]
pub struct Reading {
    pages: Option<Pages>,
    damage: Damage,
    pauses: AtomicU32,
}

impl Reading {
    /// Nothing is read yet.
    pub fn new(pages: Option<Pages>) -> Self {
        Self { pages, damage: Damage::default(), pauses: AtomicU32::new(0) }
    }

    /// The bad pages so far.
    pub fn damage(&self) -> &Damage {
        &self.damage
    }
}

/// A file that is being read.
#[derive(Debug)]
pub struct Source {
    file: File,
    path: RelativePath,
    /// The number of its first block, if it has pages to be checked.
    first_block: Option<u32>,
    reading: Arc<Reading>,
}

impl Source {
    /// A file below the data directory, `size` bytes long.
    pub fn new(file: File, path: RelativePath, size: u64, reading: Arc<Reading>) -> Self {
        if size >= LONG {
            // Advice: what becomes of it does not matter. NOREUSE keeps what we read from pushing out of the page cache what the server reads.
            let _ = rustix::fs::fadvise(&file, 0, None, Advice::Sequential);
            let _ = rustix::fs::fadvise(&file, 0, None, Advice::NoReuse);
        }
        let relation = reading.pages.and_then(|pages| Some(RelationFile::parse(path.as_str())?.first_block(pages.blocks_per_file)));
        Self { file, path, first_block: relation, reading }
    }

    /// Reads a stretch. What the file was cut off by meanwhile is read as zeros, as BASE_BACKUP sends it: WAL cuts it off again.
    pub fn extent(&self, offset: u64, length: usize) -> Result<Plain> {
        let mut bytes = vec![0; length];
        self.read(&mut bytes, offset)?;
        let bad_blocks = match (self.first_block, self.reading.pages) {
            (Some(first), Some(pages)) => self.check(&mut bytes, offset, first, pages)?,
            _ => Vec::new(),
        };
        self.reading.damage.note(&self.path, &bad_blocks);
        let first = self.first_block.unwrap_or_default();
        Ok(Plain { bytes, bad_blocks: bad_blocks.iter().map(|block| block - first).collect() })
    }

    /// Reads several stretches, one behind the other, as one extent.
    pub fn extents(&self, ranges: &[Range<u64>]) -> Result<Plain> {
        let mut all = Plain::default();
        for range in ranges {
            let plain = self.extent(range.start, (range.end - range.start) as usize)?;
            all.bytes.extend_from_slice(&plain.bytes);
            all.bad_blocks.extend(plain.bad_blocks);
        }
        Ok(all)
    }

    fn check(&self, bytes: &mut [u8], offset: u64, first: u32, pages: Pages) -> Result<Vec<u32>> {
        let first = first.saturating_add(u32::try_from(offset / pages.block_size as u64).unwrap_or(u32::MAX));
        let mut bad = bad_blocks(bytes, first, pages.block_size, pages.start);
        if bad.is_empty() {
            return Ok(bad);
        }
        if self.reading.pauses.fetch_add(1, Ordering::Relaxed) < PAUSES {
            std::thread::sleep(PAUSE);
        }
        let mut still = Ok(());
        bad.retain(|block| {
            let at = (block - first) as usize * pages.block_size;
            let page = &mut bytes[at..at + pages.block_size];
            still = std::mem::replace(&mut still, Ok(())).and_then(|()| self.read(page, offset + at as u64));
            verdict(page, *block, pages.start) == Verdict::Bad
        });
        still.map(|()| bad)
    }

    fn read(&self, mut bytes: &mut [u8], mut offset: u64) -> Result<()> {
        while !bytes.is_empty() {
            match self.file.read_at(bytes, offset) {
                Ok(0) => {
                    bytes.fill(0);
                    return Ok(());
                }
                Ok(read) => {
                    bytes = &mut bytes[read..];
                    offset += read as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error).with_context(|| format!("read {} at byte {offset}", self.path)),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: usize = 8192;
    const PAGES: &[u8] = include_bytes!("../../../core/tests/fixtures/checksum-pages-15.bin");

    fn source(content: &[u8], path: &str) -> (tempfile::NamedTempFile, Source) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), content).unwrap();
        let pages = Pages { start: Lsn::new(u64::MAX), block_size: PAGE, blocks_per_file: 131_072 };
        let path = RelativePath::parse(path).unwrap();
        let source = Source::new(file.reopen().unwrap(), path, content.len() as u64, Arc::new(Reading::new(Some(pages))));
        (file, source)
    }

    #[test]
    fn bad_pages_are_counted_within_the_relation() {
        let mut content = PAGES[..2 * PAGE].to_vec();
        content[PAGE + 77] ^= 1;
        let (_file, read) = source(&content, "base/5/16384");
        let plain = read.extent(0, content.len()).unwrap();
        assert_eq!((plain.bytes, plain.bad_blocks), (content.clone(), vec![1]));
        assert_eq!(read.extent(PAGE as u64, PAGE).unwrap().bad_blocks, [1]);
        let (_file, read) = source(&PAGES[2 * PAGE..].repeat(3), "base/5/16384.1");
        assert_eq!(read.extent(0, 3 * PAGE).unwrap().bad_blocks, [0, 1], "of the file");
        let told: Vec<_> = read.reading.damage.blocks();
        assert_eq!(told, [131_072, 131_073], "of the relation");
        let (_file, other) = source(&content, "base/5/PG_VERSION");
        assert_eq!(other.extent(0, content.len()).unwrap().bad_blocks, [0_u32; 0]);
    }

    #[test]
    fn what_was_cut_off_is_read_as_zeros() {
        let (file, read) = source(&PAGES[..2 * PAGE], "base/5/16384");
        file.as_file().set_len(PAGE as u64).unwrap();
        let plain = read.extent(0, 2 * PAGE).unwrap();
        assert_eq!((&plain.bytes[..PAGE], &plain.bytes[PAGE..]), (&PAGES[..PAGE], &[0; PAGE][..]));
        assert_eq!(plain.bad_blocks, [0_u32; 0]);
    }

    #[test]
    fn a_torn_page_is_read_again() {
        let mut torn = PAGES[..PAGE].to_vec();
        torn[5000] ^= 1;
        let (file, read) = source(&torn, "base/5/16384");
        let writer = file.reopen().unwrap();
        let read = std::thread::scope(|scope| {
            let reader = scope.spawn(|| read.extent(0, PAGE).unwrap());
            std::thread::sleep(PAUSE / 5);
            writer.write_all_at(&PAGES[..PAGE], 0).unwrap();
            reader.join().unwrap()
        });
        assert_eq!((read.bytes, read.bad_blocks), (PAGES[..PAGE].to_vec(), vec![]));
    }
}
