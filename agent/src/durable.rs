//! The only code that writes local files: whole, or not at all.
//!
//! A file written here is either absent or complete after a crash: bytes go to a temporary name beside the target, are fsynced, and
//! only then take the name; the folder is fsynced so that the name itself survives. A failed fsync means the bytes are lost (Linux
//! drops the dirty pages), so it is an error and never repeated on the same file. Segment files that grow while WAL streams in are the
//! spool's own (see [`crate::spool`]), with the same rules.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use walkeep_store::write;

/// Mode of files that hold WAL, data or secrets.
pub const PRIVATE_FILE: u32 = 0o600;
/// Mode of folders that hold such files.
pub const PRIVATE_DIR: u32 = 0o700;

/// How the names of files end that are still being written.
const TEMPORARY: &str = ".walkeep-tmp";

/// Writes `content` to `path`, replacing a file of that name at once or not at all.
pub fn write_file(path: &Path, content: &[u8], mode: u32) -> Result<()> {
    Staged::write(path, content, mode)?.publish()?;
    sync_parent(path)
}

/// A file that is whole and fsynced but does not have its name yet. Dropped without [`Staged::publish`], it is removed.
#[derive(Debug)]
pub struct Staged {
    temporary: PathBuf,
    path: PathBuf,
    /// Keeps the temporary file locked: how [`remove_abandoned`] knows it from one whose writer died.
    file: File,
}

impl Staged {
    /// Writes `content` under a temporary name beside `path`.
    pub fn write(path: &Path, content: &[u8], mode: u32) -> Result<Self> {
        Self::written(path, content, mode, File::sync_all)
    }

    /// The same for a file that its reader makes durable, or throws away after a crash: no fsync.
    pub fn write_volatile(path: &Path, content: &[u8], mode: u32) -> Result<Self> {
        Self::written(path, content, mode, |_| Ok(()))
    }

    fn written(path: &Path, content: &[u8], mode: u32, sync: fn(&File) -> io::Result<()>) -> Result<Self> {
        let create = || -> Result<Self> {
            let (temporary, file) = loop {
                let temporary = temporary_name(path)?;
                match create_private(&temporary, mode) {
                    // Left by a process of this number that was killed, as every process in a container may be.
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                    created => break (temporary, created?),
                }
            };
            let staged = Self { temporary, path: path.to_owned(), file };
            if let Err(TryLockError::WouldBlock) = staged.file.try_lock() {
                bail!("{} was taken for a leftover", staged.temporary.display());
            }
            write::write_all(&staged.file, content)?;
            sync(&staged.file)?;
            Ok(staged)
        };
        create().with_context(|| format!("write {}", path.display()))
    }

    /// Makes it another user's. Fails where the caller may not.
    pub fn give_to(&self, user: u32, group: u32) -> Result<()> {
        let (user, group) = (rustix::fs::Uid::from_raw(user), rustix::fs::Gid::from_raw(group));
        let given = rustix::fs::fchown(&self.file, Some(user), Some(group));
        given.with_context(|| format!("give {} to its owner", self.temporary.display()))
    }

    /// Gives the file its name, in the place of a file that had it, at once or not at all. Whether the name survives a crash is open until
    /// [`sync_parent`]; that the content does, is certain.
    pub fn publish(self) -> Result<()> {
        std::fs::rename(&self.temporary, &self.path).with_context(|| format!("give {} its name", self.path.display()))
    }

    /// The same, but only if no file has the name; else `false`, and nothing is changed.
    pub fn publish_new(self) -> Result<bool> {
        use rustix::fs::{AtFlags, CWD, RenameFlags, linkat, renameat_with};
        use rustix::io::Errno;
        let (from, to) = (&self.temporary, &self.path);
        let renamed = match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
            // Where that is unknown (NFS, FUSE), a hard link takes a name only if it is free; the other name goes with `self`.
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => linkat(CWD, from, CWD, to, AtFlags::empty()),
            outcome => outcome,
        };
        match renamed {
            Ok(()) => Ok(true),
            Err(Errno::EXIST) => Ok(false),
            Err(error) => Err(error).with_context(|| format!("give {} its name", self.path.display())),
        }
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        remove_leftover(&self.temporary);
    }
}

/// A file in a folder that has no name yet and vanishes with the process that writes it: nothing can be left over. It is not fsynced.
#[derive(Debug)]
pub struct Unnamed {
    folder: PathBuf,
    file: File,
}

impl Unnamed {
    /// Makes such a file, empty. Fails also where the file system knows none.
    pub fn begin(folder: &Path) -> io::Result<Self> {
        use rustix::fs::{CWD, Mode, OFlags, openat};
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let file = File::from(openat(CWD, folder, flags, Mode::from_raw_mode(PRIVATE_FILE))?);
        set_mode(&file, PRIVATE_FILE)?;
        Ok(Self { folder: folder.to_owned(), file })
    }

    /// Writes `bytes` behind what is in it.
    pub fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        write::write_all(&self.file, bytes)
    }

    /// The folder it is in.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// What is in it.
    pub fn read(mut self) -> io::Result<Vec<u8>> {
        use std::io::{Read, Seek};
        let mut content = Vec::new();
        self.file.rewind()?;
        self.file.read_to_end(&mut content)?;
        Ok(content)
    }

    /// Gives it the name `path` in its folder, in the place of a file that has it, at once or not at all.
    pub fn publish(self, path: &Path) -> Result<()> {
        let temporary = temporary_name(path)?;
        // Locked as in [`Staged`].
        let named = self.file.lock().and_then(|()| link_over(&self.file, &temporary, path));
        named.with_context(|| format!("give {} its name", path.display()))
    }
}

/// A file beside `path` that is filled bit by bit, with [`Filled::publish`] for when all is in it. Dropped without, it is removed.
#[derive(Debug)]
pub struct Filled {
    /// Its name meanwhile, if it has one.
    temporary: Option<PathBuf>,
    path: PathBuf,
    /// As in [`Staged`].
    file: File,
}

impl Filled {
    /// Makes the file, empty and private, with a name by which another program can fill it. One that a killed process left for the same path goes.
    pub fn begin(path: &Path) -> Result<Self> {
        let temporary = temporary_name(path)?;
        remove_abandoned_for(path);
        let file = create_private(&temporary, PRIVATE_FILE).with_context(|| format!("create a file beside {}", path.display()))?;
        if let Err(TryLockError::WouldBlock) = file.try_lock() {
            bail!("{} was taken for a leftover", temporary.display());
        }
        Ok(Self { temporary: Some(temporary), path: path.to_owned(), file })
    }

    /// The same without a name where the file system knows that: whoever is killed leaves nothing.
    pub fn begin_unnamed(path: &Path) -> Result<Self> {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        match Unnamed::begin(folder) {
            // By that path it gets its name.
            Ok(Unnamed { file, .. }) if by_descriptor(&file).exists() => {
                remove_abandoned_for(path);
                Ok(Self { temporary: None, path: path.to_owned(), file })
            }
            _ => Self::begin(path),
        }
    }

    /// Where to write meanwhile, if it has a name.
    pub fn temporary(&self) -> Option<&Path> {
        self.temporary.as_deref()
    }

    /// To write into.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Makes the content durable and gives it the name, in the place of a file that has it only if `replace`.
    pub fn publish(self, replace: bool) -> Result<()> {
        self.file.sync_all().with_context(|| format!("fsync what is to be {}", self.path.display()))?;
        let temporary = temporary_name(&self.path)?;
        let named = match (&self.temporary, replace) {
            (Some(temporary), true) => std::fs::rename(temporary, &self.path),
            (Some(temporary), false) => std::fs::hard_link(temporary, &self.path),
            (None, true) => self.file.lock().and_then(|()| link_over(&self.file, &temporary, &self.path)),
            (None, false) => link(&self.file, &self.path),
        };
        named.with_context(|| format!("give {} its name", self.path.display()))?;
        sync_parent(&self.path)
    }
}

impl Drop for Filled {
    fn drop(&mut self) {
        self.temporary.iter().for_each(|temporary| remove_leftover(temporary));
    }
}

fn by_descriptor(file: &File) -> PathBuf {
    use std::os::fd::AsRawFd;
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

/// Gives a file without a name one that is free.
fn link(file: &File, path: &Path) -> io::Result<()> {
    use rustix::fs::{AtFlags, CWD, linkat};
    Ok(linkat(CWD, by_descriptor(file), CWD, path, AtFlags::SYMLINK_FOLLOW)?)
}

/// The same in the place of a file that has it: a link cannot take that, a name beside it can.
fn link_over(file: &File, temporary: &Path, path: &Path) -> io::Result<()> {
    link(file, temporary)?;
    std::fs::rename(temporary, path).inspect_err(|_| remove_leftover(temporary))
}

/// Removes the temporary files of this path whose writers died. What hinders that hinders nothing else.
fn remove_abandoned_for(path: &Path) {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let (Some(name), Ok(entries)) = (path.file_name(), std::fs::read_dir(folder)) else { return };
    let begins = [b".", name.as_encoded_bytes(), b"."].concat();
    let is_numbers =
        |text: &[u8]| text.split(|byte| *byte == b'-').all(|number| !number.is_empty() && number.iter().all(u8::is_ascii_digit));
    for entry in entries.flatten() {
        let found = entry.file_name();
        let middle = found.as_encoded_bytes().strip_prefix(begins.as_slice()).and_then(|rest| rest.strip_suffix(TEMPORARY.as_bytes()));
        if middle.is_some_and(is_numbers) && entry.file_type().is_ok_and(|kind| kind.is_file()) {
            remove_if_abandoned(&entry.path());
        }
    }
}

fn remove_if_abandoned(path: &Path) {
    // Its writer may just have given it its name.
    if let Ok(file) = File::open(path)
        && file.try_lock().is_ok()
    {
        tracing::info!(path = %path.display(), "removing what a killed process left");
        remove_leftover(path);
    }
}

/// Removes the temporary files in `folder` whose writers died. Those being written are locked and stay.
pub fn remove_abandoned(folder: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let ours = name.as_encoded_bytes().starts_with(b".") && name.as_encoded_bytes().ends_with(TEMPORARY.as_bytes());
        if ours && entry.file_type()?.is_file() {
            remove_if_abandoned(&entry.path());
        }
    }
    Ok(())
}

/// Creates a file that must not exist yet, with exactly this mode whatever the umask.
pub fn create_private(path: &Path, mode: u32) -> io::Result<File> {
    let file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    set_mode(&file, mode)?;
    Ok(file)
}

/// Gives an open file or folder exactly this mode, whatever the umask made of it.
pub fn set_mode(file: &File, mode: u32) -> io::Result<()> {
    rustix::fs::fchmod(file, rustix::fs::Mode::from_raw_mode(mode)).map_err(io::Error::from)
}

/// Creates a folder, and those above it that are missing, each with exactly this mode; an existing folder keeps its own.
pub fn create_dir(path: &Path, mode: u32) -> Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        create_dir(parent, mode)?;
    }
    match std::fs::create_dir(path) {
        Ok(()) => {
            let open_and_set = || File::open(path).and_then(|folder| set_mode(&folder, mode));
            open_and_set().with_context(|| format!("set the mode of {}", path.display()))?;
            sync_parent(path)
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        Err(error) => Err(error).with_context(|| format!("create the folder {}", path.display())),
    }
}

/// Makes the names in a folder durable.
pub fn sync_dir(path: &Path) -> Result<()> {
    File::open(path).and_then(|folder| folder.sync_all()).with_context(|| format!("fsync the folder {}", path.display()))
}

/// Makes the name of `path` durable.
pub fn sync_parent(path: &Path) -> Result<()> {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => sync_dir(parent),
        _ => sync_dir(Path::new(".")),
    }
}

/// A name beside `path` that nobody else uses: the process and a counter are in it.
pub fn temporary_name(path: &Path) -> Result<PathBuf> {
    use std::sync::atomic::{AtomicU64, Ordering};
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let name = path.file_name().with_context(|| format!("{} has no file name", path.display()))?;
    let mut temporary = std::ffi::OsString::from(".");
    temporary.push(name);
    temporary.push(format!(".{}-{}{TEMPORARY}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed)));
    Ok(path.with_file_name(temporary))
}

fn remove_leftover(path: &Path) {
    if let Err(error) = std::fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(path = %path.display(), %error, "could not remove a temporary file");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_file_appears_whole_and_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        write_file(&path, b"one", PRIVATE_FILE).unwrap();
        write_file(&path, b"two", PRIVATE_FILE).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file is left");
    }

    #[test]
    fn a_failed_write_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        std::fs::create_dir(&path).unwrap();
        assert!(write_file(&path, b"x", PRIVATE_FILE).is_err(), "a folder has the name");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_staged_file_has_no_name_until_it_is_published() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        drop(Staged::write(&path, b"one", PRIVATE_FILE).unwrap());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        let staged = Staged::write(&path, b"two", PRIVATE_FILE).unwrap();
        assert!(!path.exists());
        staged.publish().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
    }

    #[test]
    fn a_staged_file_can_leave_alone_what_has_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        let staged = |content: &[u8]| Staged::write(&path, content, PRIVATE_FILE).unwrap();
        assert!(staged(b"one").publish_new().unwrap());
        assert!(!staged(b"two").publish_new().unwrap());
        assert_eq!(std::fs::read(&path).unwrap(), b"one");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file is left");
    }

    #[test]
    fn an_unnamed_file_takes_the_place_of_another_and_is_never_seen_before() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        let unnamed = |content: &[u8]| {
            let mut file = Unnamed::begin(dir.path()).unwrap();
            content.chunks(2).for_each(|piece| file.append(piece).unwrap());
            file
        };
        let (one, two) = (unnamed(b"one"), unnamed(b"two"));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        one.publish(&path).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"one");
        two.publish(&path).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(unnamed(b"three").read().unwrap(), b"three");
        std::fs::create_dir(dir.path().join("b")).unwrap();
        assert!(unnamed(b"x").publish(&dir.path().join("b")).is_err(), "a folder has the name");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2, "no temporary file is left");
    }

    #[test]
    fn only_what_nobody_writes_is_abandoned() {
        let dir = tempfile::tempdir().unwrap();
        let staged = Staged::write(&dir.path().join("a"), b"one", PRIVATE_FILE).unwrap();
        std::fs::write(dir.path().join(".b.1-1.walkeep-tmp"), b"torn").unwrap();
        std::fs::write(dir.path().join("b.walkeep-tmp"), b"not ours").unwrap();
        remove_abandoned(dir.path()).unwrap();
        staged.publish().unwrap();
        let mut names: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["a", "b.walkeep-tmp"]);
    }

    #[test]
    fn what_is_filled_has_its_name_when_it_is_whole_and_nothing_is_left() {
        use std::io::Write;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        let names = || {
            let mut names: Vec<_> =
                std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        };
        // Of killed processes: two for this path, and what is not for it or not ours.
        let others = [".a.b.1-1.walkeep-tmp", ".a.x-1.walkeep-tmp", ".b.1-1.walkeep-tmp", "a.1-1.walkeep-tmp"];
        for name in others.iter().chain(&[".a.1-1.walkeep-tmp", ".a.77-0.walkeep-tmp"]) {
            std::fs::write(dir.path().join(name), b"torn").unwrap();
        }
        let running = Filled::begin(&path).unwrap();
        let its_name = running.temporary().unwrap().file_name().unwrap().to_str().unwrap().to_owned();
        let mut there: Vec<String> = others.iter().map(|name| (*name).to_owned()).chain([its_name]).collect();
        there.sort();
        assert_eq!(names(), there);
        let filled = |content: &[u8], unnamed: bool| {
            let filled = if unnamed { Filled::begin_unnamed(&path) } else { Filled::begin(&path) }.unwrap();
            filled.file().write_all(content).unwrap();
            filled
        };
        let one = filled(b"one", true);
        assert!(one.temporary().is_none(), "this file system knows files without a name");
        assert_eq!(names(), there, "a running one's stays, and this has none");
        one.publish(false).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"one");
        for unnamed in [true, false] {
            assert!(filled(b"two", unnamed).publish(false).is_err(), "nothing is overwritten");
            assert_eq!(std::fs::read(&path).unwrap(), b"one");
            filled(b"three", unnamed).publish(true).unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), b"three");
            filled(b"one", unnamed).publish(true).unwrap();
        }
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        drop(running);
        assert_eq!(names(), [&others[..3], &["a", "a.1-1.walkeep-tmp"]].concat());
    }

    #[test]
    fn folders_have_their_mode() {
        let dir = tempfile::tempdir().unwrap();
        create_dir(&dir.path().join("a/b"), PRIVATE_DIR).unwrap();
        for folder in ["a", "a/b"] {
            assert_eq!(std::fs::metadata(dir.path().join(folder)).unwrap().permissions().mode() & 0o777, 0o700);
        }
    }
}
