//! One backup at a time of one cluster on this host, whoever takes it: a locked file in the spool folder.
//!
//! The kernel holds the lock for as long as its process lives and no longer; what stands in the file is for people. The file is never
//! removed, because whoever removes a lock file may remove another's lock. Of other hosts it knows nothing.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Read, Seek};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use chrono::Utc;
use rustix::fs::OFlags;

const FILE: &str = "backup.lock";
/// Whoever only looks holds the lock for a moment.
const LOOKS: u32 = 5;
const BETWEEN_LOOKS: Duration = Duration::from_millis(40);
/// More is not read of what the holder says of itself.
const LONGEST: u64 = 500;

/// Why the lock cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another backup is under way.
    #[error("another backup of this cluster is under way: {holder} (it holds {})", path.display())]
    Held {
        /// The file.
        path: PathBuf,
        /// Who says to be at it.
        holder: String,
    },
    /// The system refuses.
    #[error("cannot {action} {}, by which two backups at a time are kept apart: does `spool` lead to a folder that belongs to this user?", path.display())]
    Io {
        /// A verb.
        action: &'static str,
        /// Of what.
        path: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
}

/// The right to take a backup, until it is dropped.
#[derive(Debug)]
pub struct BackupLock {
    file: File,
    /// Who has it.
    holder: String,
}

impl BackupLock {
    /// Takes it, or says who has it. `who` is told to whoever comes meanwhile. Blocks for a fifth of a second at most.
    pub fn take(spool: &Path, who: &str) -> Result<Self, LockError> {
        let path = spool.join(FILE);
        let because = |action| {
            let path = path.clone();
            move |cause| LockError::Io { action, path, cause }
        };
        DirBuilder::new().recursive(true).mode(0o700).create(spool).map_err(because("make the folder of"))?;
        let mut file = open(spool, &path).map_err(because("open"))?;
        for look in 1.. {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) if look < LOOKS => std::thread::sleep(BETWEEN_LOOKS),
                Err(TryLockError::WouldBlock) => return Err(LockError::Held { holder: told(&mut file), path }),
                Err(TryLockError::Error(error)) => return Err(because("lock")(error)),
            }
        }
        let holder = format!("process {}, {who}, since {}", std::process::id(), Utc::now().format("%Y-%m-%d %H:%M:%S UTC"));
        let lock = Self { file, holder };
        lock.note(None).map_err(because("write"))?;
        Ok(lock)
    }

    /// Tells whoever comes what the backup waits for, until it is noted that it goes on.
    pub fn note(&self, waits: Option<&str>) -> io::Result<()> {
        let waits = waits.map_or_else(String::new, |waits| format!("; {waits}"));
        let line = format!("{}{waits}\n", self.holder);
        // In this order there is a whole line at any time: only the first one is read.
        self.file.write_all_at(line.as_bytes(), 0)?;
        self.file.set_len(line.len() as u64)
    }

    /// An error while somebody takes a backup.
    pub fn see_free(spool: &Path) -> Result<(), LockError> {
        Self::holder(spool).map_or(Ok(()), |holder| Err(LockError::Held { path: spool.join(FILE), holder }))
    }

    /// Whether it is proven that nobody takes a backup now.
    pub fn is_free(spool: &Path) -> bool {
        let file = OpenOptions::new().read(true).custom_flags(OFlags::NOFOLLOW.bits().cast_signed()).open(spool.join(FILE));
        file.is_ok_and(|file| file.try_lock_shared().is_ok())
    }

    /// Who takes a backup now, if anybody does and this user may know.
    pub fn holder(spool: &Path) -> Option<String> {
        let mut file = OpenOptions::new().read(true).custom_flags(OFlags::NOFOLLOW.bits().cast_signed()).open(spool.join(FILE)).ok()?;
        match file.try_lock_shared() {
            Err(TryLockError::WouldBlock) => Some(told(&mut file)),
            _ => None,
        }
    }
}

/// The file, which belongs to whom the folder belongs to: root may take a backup before the agent does.
fn open(spool: &Path, path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600).custom_flags(OFlags::NOFOLLOW.bits().cast_signed());
    match options.clone().create_new(true).open(path) {
        Ok(file) => {
            if rustix::process::geteuid().is_root() {
                let folder = std::fs::metadata(spool)?;
                fchown(&file, Some(folder.uid()), Some(folder.gid()))?;
            }
            Ok(file)
        }
        Err(error) if error.kind() == ErrorKind::AlreadyExists => options.open(path),
        Err(error) => Err(error),
    }
}

/// What the holder says of itself.
fn told(file: &mut File) -> String {
    let mut text = String::new();
    let read = file.rewind().and_then(|()| file.take(LONGEST).read_to_string(&mut text));
    match text.lines().next().unwrap_or_default().trim() {
        told if read.is_ok() && !told.is_empty() => told.into(),
        _ => "it has not said yet which".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_is_told_of_the_first() {
        let folder = tempfile::tempdir().unwrap();
        let spool = folder.path().join("deep/spool");
        assert_eq!(BackupLock::holder(&spool), None);
        let first = BackupLock::take(&spool, "`walkeep backup`").unwrap();
        let Err(LockError::Held { holder, .. }) = BackupLock::take(&spool, "the agent") else { panic!("two at a time") };
        let us = format!("process {}, `walkeep backup`, since 2", std::process::id());
        assert!(holder.starts_with(&us), "{holder}");
        assert_eq!(BackupLock::holder(&spool), Some(holder));
        let told = || BackupLock::holder(&spool).unwrap();
        first.note(Some("it waits for the repository (put: full)")).unwrap();
        assert!(told().starts_with(&us) && told().ends_with(" UTC; it waits for the repository (put: full)"), "{}", told());
        first.note(None).unwrap();
        assert!(told().starts_with(&us) && told().ends_with(" UTC"), "{}", told());
        drop(first);
        assert_eq!(BackupLock::holder(&spool), None, "what stands in the file is of the past");
        let second = BackupLock::take(&spool, "the agent, \"nightly\"").unwrap();
        assert!(BackupLock::holder(&spool).unwrap().contains("nightly"));
        drop(second);
    }

    #[test]
    fn the_file_belongs_to_whom_the_folder_belongs_to() {
        let spool = tempfile::tempdir().unwrap();
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(spool.path(), Some(4321), Some(4321)).unwrap();
        }
        drop(BackupLock::take(spool.path(), "root, before the agent does").unwrap());
        let owner = |path: &Path| std::fs::metadata(path).map(|found| (found.uid(), found.gid())).unwrap();
        assert_eq!(owner(&spool.path().join(FILE)), owner(spool.path()));
    }

    #[test]
    fn what_hinders_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let spool = folder.path().join("spool");
        std::fs::write(&spool, "a file").unwrap();
        let error = BackupLock::take(&spool, "me").unwrap_err().to_string();
        assert!(error.contains("spool/backup.lock") && error.contains("`spool`"), "{error}");
    }
}
