//! Temporary files: written and fsynced here before they get an object's name, and cleaned up after a crash.

use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::time::{Duration, SystemTime};

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use super::files::{Files, locked};
use crate::write;

/// Not a key's component, so no object can ever be in it.
pub(super) const TEMP: &str = ".tmp~";
const TEMP_PREFIX: &str = "put-";
/// A temporary file so old has no writer any more: every put has a deadline far below, and of two hosts' clocks one may be a day ahead.
const TEMP_AGE: Duration = Duration::from_secs(3 * 24 * 3600);
pub(super) const FILE_MODE: Mode = Mode::from_raw_mode(0o600);

impl Files {
    /// A new file with these bytes, fsynced; its path. Removed again if anything fails.
    pub(super) fn write_temporary(&self, body: &[u8]) -> io::Result<String> {
        let (path, file) = self.new_temporary()?;
        // fchmod: a hostile umask takes from the mode given to open.
        let written = rustix::fs::fchmod(&file, FILE_MODE).map_err(io::Error::from);
        match written.and_then(|()| write::write_all(&file, body)).and_then(|()| file.sync_all()) {
            Ok(()) => Ok(path),
            Err(error) => {
                self.remove_quietly(&path);
                Err(error)
            }
        }
    }

    fn new_temporary(&self) -> io::Result<(String, File)> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        for _ in 0..3 {
            self.make_folder(TEMP)?;
            // Random and not the process id alone: several hosts may share the folder.
            let path = format!("{TEMP}/{TEMP_PREFIX}{:016x}", RandomState::new().hash_one(std::process::id()));
            match rustix::fs::openat(&self.root, path.as_str(), flags, FILE_MODE) {
                Ok(file) => return Ok((path, File::from(file))),
                Err(Errno::EXIST) => {}
                // Somebody tidied up: what was known of folders no longer holds.
                Err(Errno::NOENT) => locked(&self.durable).clear(),
                Err(error) => return Err(error.into()),
            }
        }
        Err(io::Error::other("the folder for temporary files vanishes again and again"))
    }

    pub(super) fn remove_quietly(&self, temporary: &str) {
        // A leftover costs space until a later start; the put's own outcome matters more.
        if let Err(error) = rustix::fs::unlinkat(&self.root, temporary, AtFlags::empty()) {
            tracing::debug!(temporary, %error, "could not remove a temporary file");
        }
    }

    /// Removes what crashed puts left: only our own pattern, only regular files, only old ones.
    pub(super) fn remove_old_temporaries(&self) {
        let Ok(Some(folder)) = self.entries(TEMP) else { return };
        for name in folder.flatten().filter_map(|entry| entry.file_name().to_str().map(str::to_owned).ok()) {
            let path = format!("{TEMP}/{name}");
            let ours = name.strip_prefix(TEMP_PREFIX).is_some_and(|rest| rest.len() == 16 && rest.bytes().all(|b| b.is_ascii_hexdigit()));
            let Some(file) = self.open_object(&path).ok().flatten().filter(|_| ours) else { continue };
            let age = file.metadata().and_then(|meta| meta.modified()).map(|at| SystemTime::now().duration_since(at).unwrap_or_default());
            if age.is_ok_and(|age| age > TEMP_AGE) {
                self.remove_quietly(&path);
            }
        }
    }
}
