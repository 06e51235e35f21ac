//! Files below the root: created whole, durable before anybody is told, never changed.
//!
//! What protects from which crash:
//! - before the rename: the object is not there; a temporary file may remain, which listings cannot see (`~` is no letter of keys) and a
//!   later start removes;
//! - the bytes are fsynced before the rename, so a file with an object's name is never torn;
//! - after the rename, before the folder's fsync: the object may be there or not, nobody was told;
//! - a folder's own entry is fsynced in its parent before the first object below it is reported.
//!
//! An fsync that failed is never repeated in the hope that it succeeds: Linux reports a lost write once and forgets it. The bytes are
//! written again from the start. Where that was another writer's object and its bytes are not at hand, what can be read of it is written again, and it is in
//! doubt from then on, for every process: an empty file below [`DOUBT`] says so until somebody puts the right bytes.

use std::collections::{BTreeSet, HashSet};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, RenameFlags, Stat};
use rustix::io::Errno;

use super::temporary::FILE_MODE;
use super::{parent, relative};
use crate::Put;

const FOLDER_MODE: Mode = Mode::from_raw_mode(0o700);
/// What lies below it says that the object of the same path is in doubt. Not a key's component.
pub(super) const DOUBT: &str = ".doubt~";

/// The root, opened.
#[derive(Debug)]
pub(super) struct Files {
    pub(super) root: OwnedFd,
    /// Where it lay then, and what lay there.
    path: PathBuf,
    place: Place,
    /// Folders whose path from the root is known to be durable.
    pub(super) durable: Mutex<HashSet<String>>,
    /// Objects whose bytes are durable but whose name is not: the fsync of their folder failed.
    doubtful: Mutex<HashSet<String>>,
    /// Whether any object was in doubt, as far as this process has seen.
    any_in_doubt: AtomicBool,
}

/// What a put found, where the name is taken or was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It is there, durably.
    Put(Put),
    /// Other bytes are.
    Other {
        /// Nobody knows whether they are what was put.
        in_doubt: bool,
    },
}

/// A directory, whatever it is called: its file system and its number there.
type Place = (u64, u64);

impl Files {
    pub(super) fn open(root: &Path) -> io::Result<Self> {
        let path = std::path::absolute(root)?;
        let root = rustix::fs::open(&path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let place = place(&rustix::fs::fstat(&root)?);
        let files = Self { root, path, place, durable: Mutex::default(), doubtful: Mutex::default(), any_in_doubt: AtomicBool::default() };
        files.any_in_doubt.store(files.stat(DOUBT)?.is_some(), Ordering::Relaxed);
        files.remove_old_temporaries();
        Ok(files)
    }

    /// Creates the file durably, unless one is there.
    pub(super) fn create(&self, path: &str, body: &[u8]) -> io::Result<Outcome> {
        let created = self.create_or_compare(path, body).map_err(|error| self.blame_root(error))?;
        // Not before it is sure that it lies where everybody else will look for it.
        self.prove_root()?;
        Ok(created)
    }

    fn create_or_compare(&self, path: &str, body: &[u8]) -> io::Result<Outcome> {
        // Asked first, so that a repeated put costs no second writing. The rename below decides.
        if let Some(answer) = self.compare(path, body)? {
            return Ok(answer);
        }
        let temporary = self.write_temporary(body)?;
        let renamed = self.rename_into_place(&temporary, path);
        if !matches!(renamed, Ok(true)) {
            self.remove_quietly(&temporary);
        }
        if renamed? {
            self.sync_name(path)?;
            return Ok(Outcome::Put(Put::Created));
        }
        match self.compare(path, body)? {
            Some(answer) => Ok(answer),
            None => Err(io::Error::other("the object came and went while it was being created")),
        }
    }

    /// Reads the file, or a part of it; `None` if there is no such file.
    pub(super) fn read(&self, path: &str, range: Option<Range<u64>>) -> io::Result<Option<Vec<u8>>> {
        let Some(mut file) = self.open_object(path).map_err(|error| self.blame_root(error))? else {
            return self.prove_root().map(|()| None);
        };
        let size = file.metadata()?.len();
        let range = range.map_or(0..size, |range| range.start.min(size)..range.end.min(size));
        let length = range.end.saturating_sub(range.start);
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(usize::try_from(length).unwrap_or(usize::MAX)).map_err(|_| io::Error::from(Errno::NOMEM))?;
        file.seek(SeekFrom::Start(range.start))?;
        file.take(length).read_to_end(&mut bytes)?;
        if bytes.len() as u64 != length {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file shrank while it was read"));
        }
        Ok(Some(bytes))
    }

    /// Removes the file, durably; folders stay, for another writer may be about to use them.
    pub(super) fn delete(&self, path: &str) -> io::Result<()> {
        self.prove_root()?;
        match rustix::fs::unlinkat(&self.root, path, AtFlags::empty()) {
            Ok(()) => {
                self.sync_folder(parent(path))?;
                self.end_doubt(path);
                Ok(())
            }
            Err(Errno::NOENT | Errno::NOTDIR | Errno::ISDIR) => self.prove_root(),
            Err(error) => Err(error.into()),
        }
    }

    /// The same for many, each folder made durable once. Answers the numbers of those that may not be removed, with the reason; fails at anything else, with
    /// what is gone by then gone durably.
    pub(super) fn delete_all(&self, paths: &[String]) -> io::Result<Vec<(usize, io::Error)>> {
        self.prove_root()?;
        let (mut stay, mut folders, mut failed) = (Vec::new(), BTreeSet::new(), None::<io::Error>);
        for (number, path) in paths.iter().enumerate() {
            match rustix::fs::unlinkat(&self.root, path, AtFlags::empty()) {
                Ok(()) => drop(folders.insert(parent(path))),
                Err(Errno::NOENT | Errno::NOTDIR | Errno::ISDIR) => {
                    if let Err(error) = self.prove_root() {
                        failed = Some(error);
                        break;
                    }
                }
                Err(error @ (Errno::ACCESS | Errno::PERM)) => stay.push((number, error.into())),
                Err(error) => {
                    failed = Some(error.into());
                    break;
                }
            }
        }
        // What is gone from the others is to be gone for good, whatever hinders one of them.
        for folder in folders {
            if let Err(error) = self.sync_folder(folder) {
                failed.get_or_insert(error);
            }
        }
        if failed.is_none() {
            let gone = paths.iter().enumerate().filter(|(number, _)| !stay.iter().any(|(stays, _)| stays == number));
            gone.for_each(|(_, path)| self.end_doubt(path));
        }
        failed.map_or(Ok(stay), Err)
    }

    /// The entries of a folder; none if there is no such folder.
    pub(super) fn entries(&self, folder: &str) -> io::Result<Option<Dir>> {
        match rustix::fs::openat(&self.root, relative(folder), OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()) {
            Ok(folder) => Ok(Some(Dir::new(folder)?)),
            Err(Errno::NOENT | Errno::NOTDIR) => self.prove_root().map(|()| None),
            Err(error) => Err(error.into()),
        }
    }

    /// What lies at the path, without following a symbolic link; `None` if nothing does.
    pub(super) fn stat(&self, path: &str) -> io::Result<Option<rustix::fs::Stat>> {
        match rustix::fs::statat(&self.root, path, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether the file's bytes are these, and durable; `None` if there is no file.
    fn compare(&self, path: &str, body: &[u8]) -> io::Result<Option<Outcome>> {
        let mut file = loop {
            match self.open_object(path)? {
                Some(file) => break file,
                None => match self.stat(path)?.map(|stat| FileType::from_raw_mode(stat.st_mode)) {
                    None => return Ok(None),
                    // Created since it was looked for.
                    Some(FileType::RegularFile) => {}
                    // A folder, a link, a device: whatever it is, it is not to be overwritten.
                    Some(_) => return Ok(Some(Outcome::Other { in_doubt: false })),
                },
            }
        };
        if !same_bytes(&mut file, body)? {
            // Compressed or encrypted otherwise they may hold the same: whoever finds that counts on them.
            self.sync_other(path, &file)?;
            return Ok(Some(Outcome::Other { in_doubt: self.is_in_doubt(path)? }));
        }
        // Another writer may have put it there and not have come to its folder's fsync yet, or have died before.
        if file.sync_all().is_err() || locked(&self.doubtful).contains(path) || self.is_in_doubt(path)? {
            // The bytes or the name were lost once already, and a second fsync, a later process's too, would not say so: write it again, now. The
            // bytes are the same.
            self.put_over(path, body)?;
        }
        self.make_folder(parent(path))?;
        self.sync_name(path)?;
        Ok(Some(Outcome::Put(Put::AlreadySame)))
    }

    /// Puts these bytes in the place of an object that is in doubt; false if it is not.
    pub(super) fn replace_in_doubt(&self, path: &str, body: &[u8]) -> io::Result<bool> {
        if !self.is_in_doubt(path)? {
            return Ok(false);
        }
        self.put_over(path, body).map(|()| true)
    }

    /// Puts the right bytes in the place of an object's, durably, and ends any doubt.
    fn put_over(&self, path: &str, body: &[u8]) -> io::Result<()> {
        let temporary = self.write_temporary(body)?;
        let renamed = self.make_folder(parent(path)).and_then(|()| Ok(rustix::fs::renameat(&self.root, &temporary, &self.root, path)?));
        if let Err(error) = renamed {
            self.remove_quietly(&temporary);
            return Err(error);
        }
        self.sync_name(path)?;
        self.end_doubt(path);
        Ok(())
    }

    /// Whether an fsync of the object has failed, in any process, and nobody has put it since who had its bytes.
    fn is_in_doubt(&self, path: &str) -> io::Result<bool> {
        let in_doubt = self.stat(&doubt(path))?.is_some();
        self.any_in_doubt.fetch_or(in_doubt, Ordering::Relaxed);
        Ok(in_doubt)
    }

    /// From now on it is, durably.
    fn begin_doubt(&self, path: &str) -> io::Result<()> {
        let doubt = doubt(path);
        self.any_in_doubt.store(true, Ordering::Relaxed);
        self.make_folder(parent(&doubt))?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        File::from(rustix::fs::openat(&self.root, doubt.as_str(), flags, FILE_MODE)?).sync_all()?;
        self.sync_folder(parent(&doubt))
    }

    /// The object has its right bytes, or is gone. One that stays in doubt all the same, after a crash, is put once more.
    fn end_doubt(&self, path: &str) {
        if self.any_in_doubt.load(Ordering::Relaxed)
            && let Err(error) = rustix::fs::unlinkat(&self.root, doubt(path), AtFlags::empty())
            && !matches!(error, Errno::NOENT | Errno::NOTDIR)
        {
            tracing::warn!(path, %error, "an object is in doubt no more, and that could not be noted");
        }
    }

    /// Makes an object durable that another writer may have left before it was. Its right bytes are not at hand: where an fsync fails, what can be read of
    /// it is written anew, as a second fsync, a later process's too, would not tell of the loss. What the kernel has dropped by then is not in that, so it is in
    /// doubt.
    fn sync_other(&self, path: &str, file: &File) -> io::Result<()> {
        if locked(&self.doubtful).contains(path) {
            if !self.is_in_doubt(path)? {
                return Err(io::Error::other("an fsync of the object that is there has failed: it may be lost when the machine stops"));
            }
            self.write_again(path, file)?;
        }
        if let Err(error) = file.sync_all() {
            if let Err(again) = self.begin_doubt(path).and_then(|()| self.write_again(path, file)) {
                tracing::warn!(path, error = %again, "an object could not be written anew after an fsync of it had failed");
                locked(&self.doubtful).insert(path.to_owned());
            }
            return Err(error);
        }
        self.make_folder(parent(path))?;
        self.sync_name(path)
    }

    /// Puts a new file with the same bytes in the place of an object's.
    fn write_again(&self, path: &str, mut file: &File) -> io::Result<()> {
        let mut bytes = Vec::new();
        file.rewind()?;
        file.read_to_end(&mut bytes)?;
        let temporary = self.write_temporary(&bytes)?;
        let renamed = self.is_named(path, file).and_then(|()| Ok(rustix::fs::renameat(&self.root, &temporary, &self.root, path)?));
        if let Err(error) = renamed {
            self.remove_quietly(&temporary);
            return Err(error);
        }
        self.sync_name(path)
    }

    /// Fails if the name is not the opened file's any more: a removal, or another object put there since, is not to be undone.
    fn is_named(&self, path: &str, file: &File) -> io::Result<()> {
        let opened = rustix::fs::fstat(file)?;
        match self.stat(path)? {
            Some(there) if (there.st_dev, there.st_ino) == (opened.st_dev, opened.st_ino) => Ok(()),
            _ => Err(io::Error::other("the object was removed, or another put in its place, meanwhile")),
        }
    }

    /// The object's file, opened; `None` if there is no regular file of that name.
    pub(super) fn open_object(&self, path: &str) -> io::Result<Option<File>> {
        // NONBLOCK: opening a pipe that somebody put there must not wait for its writer.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match rustix::fs::openat(&self.root, path, flags, Mode::empty()) {
            Ok(file) => File::from(file),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NXIO) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        Ok(file.metadata()?.is_file().then_some(file))
    }

    /// Gives the temporary file its name if that is free; false if it is not.
    fn rename_into_place(&self, temporary: &str, path: &str) -> io::Result<bool> {
        // Twice: somebody may have removed an empty folder between its making and its use.
        for _ in 0..2 {
            self.make_folder(parent(path))?;
            match self.rename_if_free(temporary, path) {
                Err(Errno::NOENT) => locked(&self.durable).clear(),
                Ok(()) => return Ok(true),
                Err(Errno::EXIST) => return Ok(false),
                Err(error) => return Err(error.into()),
            }
        }
        Err(io::Error::other("the folder vanished while an object was being created in it"))
    }

    fn rename_if_free(&self, temporary: &str, path: &str) -> Result<(), Errno> {
        match rustix::fs::renameat_with(&self.root, temporary, &self.root, path, RenameFlags::NOREPLACE) {
            // NFS, FUSE and others cannot; there a hard link is the way to create a name only if it is free.
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                rustix::fs::linkat(&self.root, temporary, &self.root, path, AtFlags::empty())?;
                self.remove_quietly(temporary);
                Ok(())
            }
            outcome => outcome,
        }
    }

    /// Makes the folder and those above it, each durable in its parent.
    pub(super) fn make_folder(&self, folder: &str) -> io::Result<()> {
        if folder.is_empty() || locked(&self.durable).contains(folder) {
            return Ok(());
        }
        self.make_folder(parent(folder))?;
        match rustix::fs::mkdirat(&self.root, folder, FOLDER_MODE) {
            Ok(()) => rustix::fs::chmodat(&self.root, folder, FOLDER_MODE, AtFlags::empty())?,
            Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        // Also if it was there already: whoever made it may not have come to this.
        if let Err(error) = self.sync_folder(parent(folder)) {
            // Made anew by the next try, which a second fsync alone would not do. Not if it holds something; then it has served before.
            let _ = rustix::fs::unlinkat(&self.root, folder, AtFlags::REMOVEDIR);
            return Err(error);
        }
        locked(&self.durable).insert(folder.to_owned());
        Ok(())
    }

    /// Removes the folder if it is empty. Nobody is to put anything into it: who knows it to be durable does not make it again.
    pub(super) fn remove_folder(&self, folder: &str) -> io::Result<()> {
        match rustix::fs::unlinkat(&self.root, folder, AtFlags::REMOVEDIR) {
            Ok(()) => drop(locked(&self.durable).remove(folder)),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::NOTEMPTY | Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// Makes the object's name durable.
    fn sync_name(&self, path: &str) -> io::Result<()> {
        let outcome = self.sync_folder(parent(path));
        match &outcome {
            Ok(()) => locked(&self.doubtful).remove(path),
            Err(_) => locked(&self.doubtful).insert(path.to_owned()),
        };
        outcome
    }

    fn sync_folder(&self, folder: &str) -> io::Result<()> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = rustix::fs::openat(&self.root, relative(folder), flags, Mode::empty())?;
        Ok(rustix::fs::fsync(folder)?)
    }

    /// Fails if the root was removed, or lies at its path no more: moved, unmounted, or another one put there. Then that a file is not there proves
    /// nothing, and one that is there is nowhere for all others.
    pub(super) fn prove_root(&self) -> io::Result<()> {
        if rustix::fs::fstat(&self.root)?.st_nlink == 0 {
            return Err(root_is_gone());
        }
        match rustix::fs::stat(&self.path) {
            Ok(there) if place(&there) == self.place => Ok(()),
            Ok(_) | Err(Errno::NOENT | Errno::NOTDIR) => Err(root_is_gone()),
            // Whoever may not look there any more, or cannot for a moment, has the handle.
            Err(_) => Ok(()),
        }
    }

    fn blame_root(&self, error: io::Error) -> io::Error {
        match self.prove_root() {
            Err(root) if error.kind() == io::ErrorKind::NotFound => root,
            _ => error,
        }
    }
}

fn doubt(path: &str) -> String {
    format!("{DOUBT}/{path}")
}

/// Creates the root and the folders above it that are missing, durably.
pub(super) fn create_root(root: &Path) -> io::Result<()> {
    use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
    match root.metadata() {
        Ok(there) if there.is_dir() => return Ok(()),
        Ok(_) => return Err(Errno::NOTDIR.into()),
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Err(_) => {}
    }
    let above = match root.parent() {
        Some(above) if above.as_os_str().is_empty() => Path::new("."),
        Some(above) => above,
        None => return Err(Errno::NOENT.into()),
    };
    create_root(above)?;
    match std::fs::DirBuilder::new().mode(0o700).create(root) {
        Ok(()) => std::fs::set_permissions(root, std::fs::Permissions::from_mode(0o700))?,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error),
    }
    File::open(above)?.sync_all()
}

fn place(found: &Stat) -> Place {
    (found.st_dev, found.st_ino)
}

fn root_is_gone() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidInput,
        "the store's root directory was moved, unmounted or removed since it was opened, or another put in its place: put it back, or, if what lies there \
         now is to be used, start this program anew",
    )
}

/// Whether the file holds exactly these bytes, read in pieces.
fn same_bytes(file: &mut File, body: &[u8]) -> io::Result<bool> {
    if file.metadata()?.len() != body.len() as u64 {
        return Ok(false);
    }
    let mut piece = vec![0; 128 * 1024];
    for expected in body.chunks(piece.len()) {
        let Some(read) = piece.get_mut(..expected.len()) else { return Ok(false) };
        file.read_exact(read)?;
        if read != expected {
            return Ok(false);
        }
    }
    Ok(true)
}

pub(super) fn locked(set: &Mutex<HashSet<String>>) -> MutexGuard<'_, HashSet<String>> {
    // A set of names is whole after any panic.
    set.lock().unwrap_or_else(PoisonError::into_inner)
}
