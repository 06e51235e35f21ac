//! The spool: WAL on this host that is not yet in the repository.
//!
//! A segment being received is `<segment>.writing`; when its last byte is there it is fsynced and renamed to `<segment>`, so a file with a
//! whole name is a whole, durable segment, also after a crash. Received bytes count as spooled once fsynced. The spool knows files and
//! bytes; what is in the repository, and when a file may go, its users say. Bounded: see [`Spool::bytes`].

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use walkeep_core::blake3::Blake3Sum;
use walkeep_core::{SegmentName, SegmentSize};
use walkeep_store::write;

use crate::codec;
use crate::durable;

/// The suffix of a segment that is being received.
const WRITING: &str = "writing";

/// The spool's folder.
#[derive(Debug, Clone)]
pub struct Spool {
    folder: PathBuf,
    size: SegmentSize,
}

/// What an earlier run left.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Leftovers {
    /// Whole segments, in the order of their names.
    pub whole: Vec<SegmentName>,
    /// Segments that were being received.
    pub unfinished: Vec<SegmentName>,
}

impl Spool {
    /// Opens the folder, creating it (mode 0700) if it is missing. Fails if nothing can be written there: better now than with the first
    /// segment.
    pub fn open(folder: &Path, size: SegmentSize) -> Result<Self> {
        let user = rustix::process::geteuid().as_raw();
        let open = || -> Result<()> {
            durable::create_dir(folder, durable::PRIVATE_DIR)?;
            let probe = durable::temporary_name(&folder.join("probe"))?;
            durable::create_private(&probe, durable::PRIVATE_FILE).and_then(|_| std::fs::remove_file(&probe)).context("write into it")
        };
        open().with_context(|| format!("the spool {} cannot be used; it must be a directory of user {user}", folder.display()))?;
        Ok(Self { folder: folder.to_owned(), size })
    }

    /// The folder as it is, to look at only.
    pub fn at(folder: &Path, size: SegmentSize) -> Self {
        Self { folder: folder.to_owned(), size }
    }

    /// What an earlier run left. Files with other names are not touched.
    pub fn leftovers(&self) -> Result<Leftovers> {
        let mut leftovers = Leftovers::default();
        for (name, _) in self.files()? {
            if let Ok(segment) = name.parse::<SegmentName>() {
                leftovers.whole.push(segment);
            } else if let Some(Ok(segment)) = name.strip_suffix(".writing").map(str::parse::<SegmentName>) {
                leftovers.unfinished.push(segment);
            }
        }
        leftovers.whole.sort_unstable();
        leftovers.unfinished.sort_unstable();
        Ok(leftovers)
    }

    /// Bytes of WAL in the spool now.
    pub fn bytes(&self) -> Result<u64> {
        Ok(self.files()?.iter().map(|(_, bytes)| bytes).sum())
    }

    /// Whether another segment fits, into `limit` and onto the disk.
    pub fn has_room(&self, limit: u64) -> Result<bool> {
        let disk = rustix::fs::statvfs(&self.folder).with_context(|| format!("ask for the room in {}", self.folder.display()))?;
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        Ok(free >= self.size.bytes() && self.bytes()? + self.size.bytes() <= limit)
    }

    fn files(&self) -> Result<Vec<(String, u64)>> {
        let read = || -> io::Result<Vec<(String, u64)>> {
            let mut files = Vec::new();
            for entry in std::fs::read_dir(&self.folder)? {
                let entry = entry?;
                let metadata = match entry.metadata() {
                    Ok(metadata) => metadata,
                    // Stored and removed since the folder was read.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    Err(error) => return Err(error),
                };
                if metadata.is_file()
                    && let Ok(name) = entry.file_name().into_string()
                {
                    files.push((name, metadata.len()));
                }
            }
            Ok(files)
        };
        read().with_context(|| format!("list the spool {}", self.folder.display()))
    }

    /// Where a whole segment lies.
    pub fn path(&self, segment: SegmentName) -> PathBuf {
        self.folder.join(segment.to_string())
    }

    /// Where a segment being received lies.
    pub fn writing_path(&self, segment: SegmentName) -> PathBuf {
        self.folder.join(format!("{segment}.{WRITING}"))
    }

    /// Begins to receive a segment from its first byte. What an earlier run left of it is discarded: the caller has made sure that
    /// the server still has it, or has stored it.
    pub fn create(&self, segment: SegmentName) -> Result<SegmentWriter> {
        self.open_writer(segment, true)
    }

    /// Begins to receive a segment anew of which the file here may be the only copy: its bytes stay until the same bytes take their
    /// place. That they are the same, the caller makes sure before each [`SegmentWriter::append`].
    pub fn receive_again(&self, segment: SegmentName) -> Result<SegmentWriter> {
        self.open_writer(segment, false)
    }

    fn open_writer(&self, segment: SegmentName, anew: bool) -> Result<SegmentWriter> {
        let path = self.writing_path(segment);
        let open = || OpenOptions::new().read(true).write(true).create(true).truncate(anew).mode(durable::PRIVATE_FILE).open(&path);
        let file = open().with_context(|| format!("create {} in the spool", path.display()))?;
        durable::set_mode(&file, durable::PRIVATE_FILE).with_context(|| format!("set the mode of {}", path.display()))?;
        durable::sync_dir(&self.folder)?;
        Ok(SegmentWriter { segment, size: self.size, file, path, whole_path: self.path(segment), written: 0, synced: 0, broken: false })
    }

    /// Takes a file out of the way that is not what its name says, and keeps it: it may be the only copy of another cluster's WAL.
    pub fn set_aside(&self, path: &Path, reason: &anyhow::Error) -> Result<()> {
        let seconds = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let mut aside = path.as_os_str().to_owned();
        aside.push(format!(".set-aside-{seconds}"));
        tracing::error!(file = %path.display(), to = %aside.display(), reason = format!("{reason:#}"), "not this cluster's WAL: set aside, not stored");
        std::fs::rename(path, &aside).with_context(|| format!("rename {}", path.display()))?;
        durable::sync_dir(&self.folder)
    }

    /// Reads a whole segment.
    pub fn read(&self, segment: SegmentName) -> Result<Vec<u8>> {
        let path = self.path(segment);
        let bytes = std::fs::read(&path).with_context(|| format!("read {} from the spool", path.display()))?;
        let expected = self.size.bytes();
        ensure!(bytes.len() as u64 == expected, "{} has {} bytes instead of {expected}", path.display(), bytes.len());
        Ok(bytes)
    }

    /// The hash of a whole segment.
    pub fn hash(&self, segment: SegmentName) -> Result<Blake3Sum> {
        let path = self.path(segment);
        let hash = || codec::blake3_of(&mut File::open(&path)?);
        let (hash, length) = hash().with_context(|| format!("read {} from the spool", path.display()))?;
        let expected = self.size.bytes();
        ensure!(length == expected, "{} has {length} bytes instead of {expected}", path.display());
        Ok(hash)
    }

    /// Reads what there is of a segment that was being received.
    pub fn read_unfinished(&self, segment: SegmentName) -> Result<Vec<u8>> {
        let path = self.writing_path(segment);
        std::fs::read(&path).with_context(|| format!("read {} from the spool", path.display()))
    }

    /// Removes a whole segment that is stored.
    pub fn remove(&self, segment: SegmentName) -> Result<()> {
        remove(&self.path(segment))
    }

    /// Removes an unfinished segment that is stored, or that the server will send again.
    pub fn remove_unfinished(&self, segment: SegmentName) -> Result<()> {
        remove(&self.writing_path(segment))
    }
}

fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).with_context(|| format!("remove {} from the spool", path.display())),
    }
}

/// A segment being received.
#[derive(Debug)]
pub struct SegmentWriter {
    segment: SegmentName,
    size: SegmentSize,
    file: File,
    path: PathBuf,
    whole_path: PathBuf,
    written: u64,
    synced: u64,
    /// A write or fsync failed: what the file holds is unknown, and nothing may be promised of it any more.
    broken: bool,
}

impl SegmentWriter {
    /// The segment.
    pub fn segment(&self) -> SegmentName {
        self.segment
    }

    /// Bytes received.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Bytes fsynced.
    pub fn synced(&self) -> u64 {
        self.synced
    }

    /// Whether the last byte was received.
    pub fn is_whole(&self) -> bool {
        self.written == self.size.bytes()
    }

    /// Adds bytes behind those received. They must not reach beyond the segment.
    pub fn append(&mut self, bytes: &[u8]) -> Result<()> {
        ensure!(self.written + bytes.len() as u64 <= self.size.bytes(), "{} would grow beyond its size", self.segment);
        self.guarded("write", |file, written| write::write_all_at(file, bytes, written))?;
        self.written += bytes.len() as u64;
        Ok(())
    }

    /// Makes the received bytes durable.
    pub fn sync(&mut self) -> Result<()> {
        if self.synced < self.written {
            self.guarded("fsync", |file, _| file.sync_data())?;
            self.synced = self.written;
        }
        Ok(())
    }

    /// Bytes `[from, to)` of what was received.
    pub fn read(&self, from: u64, to: u64) -> Result<Vec<u8>> {
        ensure!(from <= to && to <= self.written, "bytes {from} to {to} of {} were not received", self.segment);
        let mut bytes = vec![0; (to - from) as usize];
        self.file.read_exact_at(&mut bytes, from).with_context(|| format!("read {}", self.path.display()))?;
        Ok(bytes)
    }

    /// Ends a whole segment: durable under its own name.
    pub fn seal(mut self) -> Result<SegmentName> {
        ensure!(self.is_whole(), "{} has {} of {} bytes", self.segment, self.written, self.size.bytes());
        self.sync()?;
        std::fs::rename(&self.path, &self.whole_path).with_context(|| format!("rename {}", self.path.display()))?;
        durable::sync_parent(&self.whole_path)?;
        Ok(self.segment)
    }

    /// After a failed write or fsync the page cache may be clean and wrong (a second fsync would succeed): the file is given up, and the
    /// caller receives the segment anew.
    fn guarded(&mut self, action: &str, work: impl FnOnce(&File, u64) -> io::Result<()>) -> Result<()> {
        if self.broken {
            bail!("{} cannot be trusted after an earlier failure", self.path.display());
        }
        work(&self.file, self.written).map_err(|error| {
            self.broken = true;
            anyhow::Error::new(error).context(format!("{action} {}", self.path.display()))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    const MIB: usize = 1 << 20;

    fn spool(dir: &Path) -> Spool {
        Spool::open(&dir.join("spool"), SegmentSize::new(MIB as u64).unwrap()).unwrap()
    }

    fn segment(number: u8) -> SegmentName {
        format!("0000000100000000000000{number:02X}").parse().unwrap()
    }

    #[test]
    fn a_segment_is_whole_only_when_sealed() {
        let dir = tempfile::tempdir().unwrap();
        let spool = spool(dir.path());
        let mut writer = spool.create(segment(1)).unwrap();
        writer.append(&vec![1; MIB - 1]).unwrap();
        assert_eq!((writer.written(), writer.synced()), (MIB as u64 - 1, 0));
        assert_eq!(spool.leftovers().unwrap(), Leftovers { whole: vec![], unfinished: vec![segment(1)] });
        writer.append(&[2]).unwrap();
        assert!(writer.append(&[3]).is_err(), "no byte beyond the segment");
        assert_eq!(writer.read(MIB as u64 - 2, MIB as u64).unwrap(), [1, 2]);
        assert_eq!(writer.seal().unwrap(), segment(1));
        assert_eq!(spool.leftovers().unwrap(), Leftovers { whole: vec![segment(1)], unfinished: vec![] });
        assert_eq!(spool.read(segment(1)).unwrap().len(), MIB);
        assert_eq!(spool.bytes().unwrap(), MIB as u64);
        let mode = std::fs::metadata(spool.path(segment(1))).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        spool.remove(segment(1)).unwrap();
        assert_eq!(spool.bytes().unwrap(), 0);
    }

    #[test]
    fn an_unfinished_segment_is_not_sealed() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = spool(dir.path()).create(segment(1)).unwrap();
        writer.append(b"some").unwrap();
        assert!(writer.seal().is_err());
        assert!(spool(dir.path()).leftovers().unwrap().whole.is_empty());
    }

    #[test]
    fn foreign_files_are_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let spool = spool(dir.path());
        std::fs::write(dir.path().join("spool/notes.txt"), "x").unwrap();
        assert_eq!(spool.leftovers().unwrap(), Leftovers::default());
    }
}
