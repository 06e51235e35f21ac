//! The walk through a data directory: every file that belongs to a backup, opened, in the order of its path.
//!
//! A thread of its own walks ahead of whoever reads, by as many open files as the channel holds: memory is that of one folder's names. What
//! vanishes between listing and opening was dropped, and the WAL knows; whatever else goes wrong ends the backup and names the file. Which entries
//! belong to a backup, the core decides.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use chrono::DateTime;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Stat, openat, readlinkat, statat};
use tokio::sync::mpsc::{Receiver, Sender, channel};
use walkeep_core::data_directory::{Kind, Rules, Take, sort};
use walkeep_core::relative_path::RelativePath;

use super::directory::{DataDirectory, list, open_file, open_folder};
use crate::backup::pack::FileFacts;

/// Files open and not read yet.
const AHEAD: usize = 64;
const NINE_BITS: u32 = 0o777;

/// What was met on the way.
#[derive(Debug)]
pub enum Found {
    /// A folder; what is in it follows.
    Folder { path: RelativePath, mode: u32 },
    /// A file.
    File(FoundFile),
    /// A tablespace behind a link; what is in it follows.
    Tablespace { oid: u32, location: PathBuf },
    /// It is no part of the backup, and somebody may miss it.
    Skipped { path: String, kind: Kind },
}

/// A file, open for reading at its start.
#[derive(Debug)]
pub struct FoundFile {
    pub facts: FileFacts,
    pub file: File,
    /// Its length when it was opened: what it grows by later, the WAL has.
    pub size: u64,
}

/// Begins the walk, which passes over tablespaces that are not among `tablespaces`. It ends by itself when the receiver is dropped.
pub fn start(directory: &DataDirectory, rules: Rules, tablespaces: BTreeSet<String>) -> Result<Receiver<Result<Found>>> {
    let (out, found) = channel(AHEAD);
    let root = directory.fd().try_clone().context("keep the data directory open")?;
    let walk = Walk { rules, tablespaces, out, root_path: directory.path().to_owned() };
    std::thread::Builder::new()
        .name("backup-walk".into())
        .spawn(move || walk.run(&root))
        .context("start the walk through the data directory")?;
    Ok(found)
}

/// The receiver is gone: nobody wants to know more.
struct Unwanted;

struct Walk {
    rules: Rules,
    tablespaces: BTreeSet<String>,
    out: Sender<Result<Found>>,
    root_path: PathBuf,
}

type Step = std::result::Result<(), Unwanted>;

impl Walk {
    fn run(&self, root: &OwnedFd) {
        // There is nobody left to tell.
        let _ = self.folder(root, "");
    }

    fn tell(&self, found: Result<Found>) -> Step {
        self.out.blocking_send(found).map_err(|_| Unwanted)
    }

    /// Tells what is wrong: the last thing that anybody hears of this walk.
    fn fail(&self, path: &str, doing: &str, error: impl Into<anyhow::Error>) -> Step {
        let place = self.root_path.join(path);
        self.tell(Err(error.into().context(format!("{doing} {}", place.display()))))?;
        Err(Unwanted)
    }

    fn folder(&self, folder: &OwnedFd, path: &str) -> Step {
        let entries = match self.entries(folder) {
            Ok(entries) => entries,
            Err(error) => return self.fail(path, "list the folder", error),
        };
        let taken = self.rules.choose(path, &entries);
        for ((name, kind), take) in entries.into_iter().zip(taken) {
            if path == "pg_tblspc" && !self.tablespaces.contains(&name) {
                continue;
            }
            let below = if path.is_empty() { name.clone() } else { format!("{path}/{name}") };
            match take {
                // pg_control comes last, by another way.
                Take::Leave | Take::Last => {}
                Take::LeaveAndTell => self.tell(Ok(Found::Skipped { path: below, kind }))?,
                Take::File => self.file(folder, &name, &below)?,
                Take::Folder => self.enter(folder, &name, &below)?,
                Take::Emptied(kept) => self.emptied(folder, &name, &below, kept)?,
                Take::Tablespace(oid) => self.tablespace(folder, &name, &below, oid)?,
            }
        }
        Ok(())
    }

    fn entries(&self, folder: &OwnedFd) -> Result<Vec<(String, Kind)>> {
        let mut entries = Vec::new();
        for (name, kind) in list(folder)? {
            // A path that is no UTF-8 has its own words for that.
            entries.push((RelativePath::from_bytes(&name)?.as_str().to_owned(), kind));
        }
        sort(&mut entries);
        Ok(entries)
    }

    fn enter(&self, parent: &OwnedFd, name: &str, path: &str) -> Step {
        let opened = open_folder(parent, name).and_then(|folder| Ok((rustix::fs::fstat(&folder)?, folder)));
        match opened {
            Ok((found, folder)) => {
                self.tell_folder(path, found.st_mode)?;
                self.folder(&folder, path)
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            Err(error) => self.fail(path, "open the folder", error),
        }
    }

    fn emptied(&self, parent: &OwnedFd, name: &str, path: &str, kept: &[&str]) -> Step {
        // It may be a link, which is followed for its mode only.
        let mode = match statat(parent, name, AtFlags::empty()) {
            Ok(found) if FileType::from_raw_mode(found.st_mode) == FileType::Directory => found.st_mode,
            Ok(_) => return self.tell(Ok(Found::Skipped { path: path.to_owned(), kind: Kind::Link })),
            Err(error) => return self.fail(path, "look at the folder", io::Error::from(error)),
        };
        self.tell_folder(path, mode)?;
        kept.iter().try_for_each(|kept| self.tell_folder(&format!("{path}/{kept}"), mode))
    }

    fn tell_folder(&self, path: &str, mode: u32) -> Step {
        match RelativePath::parse(path) {
            Ok(path) => self.tell(Ok(Found::Folder { path, mode: mode & NINE_BITS })),
            Err(error) => self.fail(path, "take the folder", error),
        }
    }

    fn file(&self, folder: &OwnedFd, name: &str, path: &str) -> Step {
        let opened = open_file(folder, name).and_then(|file| Ok((rustix::fs::fstat(&file)?, file)));
        match opened.map_err(anyhow::Error::from).and_then(|(found, file)| found_file(path, file, &found)) {
            Ok(file) => self.tell(Ok(Found::File(file))),
            Err(error) if gone(&error) => Ok(()),
            Err(error) => self.fail(path, "open", error),
        }
    }

    fn tablespace(&self, folder: &OwnedFd, name: &str, path: &str, oid: u32) -> Step {
        let location = match readlinkat(folder, name, Vec::new()) {
            Ok(target) => PathBuf::from(std::ffi::OsString::from_vec(target.into_bytes())),
            Err(rustix::io::Errno::NOENT) => return Ok(()),
            Err(error) => return self.fail(path, "read the link", io::Error::from(error)),
        };
        if !location.is_absolute() {
            return self.fail(path, "follow the link", anyhow::anyhow!("it leads to {}, which is no absolute path", location.display()));
        }
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        match openat(CWD, &location, flags, Mode::empty()) {
            Ok(space) => {
                self.tell(Ok(Found::Tablespace { oid, location }))?;
                self.folder(&space, path)
            }
            Err(error) => {
                let error = anyhow::Error::from(io::Error::from(error));
                self.fail(
                    path,
                    "open the tablespace of",
                    error.context(format!("it lies in {}, as the server sees it", location.display())),
                )
            }
        }
    }
}

fn gone(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == ErrorKind::NotFound)
}

fn found_file(path: &str, file: File, found: &Stat) -> Result<FoundFile> {
    // It was a file when the folder was listed.
    ensure!(FileType::from_raw_mode(found.st_mode) == FileType::RegularFile, "it is no regular file any more");
    let mtime = DateTime::from_timestamp(found.st_mtime, 0);
    let facts = FileFacts { path: RelativePath::parse(path)?, mode: found.st_mode & NINE_BITS, mtime };
    Ok(FoundFile { facts, file, size: u64::try_from(found.st_size).unwrap_or_default() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;
    use walkeep_core::MajorVersion;

    fn walked(directory: &DataDirectory) -> Vec<Result<Found>> {
        let mut found = start(directory, Rules::new(MajorVersion::new(15), 202_209_061, None), directory.tablespaces().unwrap()).unwrap();
        std::iter::from_fn(|| found.blocking_recv()).collect()
    }

    fn told(found: &Result<Found>) -> String {
        match found {
            Ok(Found::Folder { path, .. }) => format!("{path}/"),
            Ok(Found::File(file)) => format!("{} {}", file.facts.path, file.size),
            Ok(Found::Tablespace { oid, .. }) => format!("tablespace {oid}"),
            Ok(Found::Skipped { path, .. }) => format!("skipped {path}"),
            Err(error) => format!("{error:#}"),
        }
    }

    #[test]
    fn files_are_found_where_they_are_and_no_link_is_followed() {
        let folder = tempfile::tempdir().unwrap();
        let (data, apart, wal) = (folder.path().join("data"), folder.path().join("apart"), folder.path().join("wal"));
        for made in ["base/5", "pg_tblspc", "global", "pg_replslot/slot"] {
            fs::create_dir_all(data.join(made)).unwrap();
        }
        fs::create_dir_all(apart.join("PG_15_202209061/5")).unwrap();
        fs::create_dir_all(apart.join("PG_14_202107181/5")).unwrap();
        fs::create_dir_all(&wal).unwrap();
        for (file, content) in [
            ("data/base/5/1", "12345"),
            ("data/base/5/1.1", ""),
            ("data/base/5/t1_7", "x"),
            ("data/PG_VERSION", "15\n"),
            ("data/global/pg_control", "later"),
            ("data/pg_replslot/slot/state", "x"),
            ("apart/PG_15_202209061/5/9", "123"),
            ("apart/PG_14_202107181/5/9", "another server's"),
            ("wal/000000010000000000000001", "x"),
            ("secret", "secret"),
        ] {
            fs::write(folder.path().join(file), content).unwrap();
        }
        symlink(&apart, data.join("pg_tblspc/16400")).unwrap();
        symlink(&wal, data.join("pg_wal")).unwrap();
        symlink(folder.path().join("secret"), data.join("postgresql.conf")).unwrap();
        symlink(folder.path(), data.join("base/6")).unwrap();
        let found: Vec<_> = walked(&DataDirectory::open(&data).unwrap()).iter().map(told).collect();
        let expected = [
            "PG_VERSION 3",
            "base/",
            "base/5/",
            "base/5/1 5",
            "base/5/1.1 0",
            "skipped base/6",
            "global/",
            "pg_replslot/",
            "pg_tblspc/",
            "tablespace 16400",
            "pg_tblspc/16400/PG_15_202209061/",
            "pg_tblspc/16400/PG_15_202209061/5/",
            "pg_tblspc/16400/PG_15_202209061/5/9 3",
            "pg_wal/",
            "pg_wal/archive_status/",
            "skipped postgresql.conf",
        ];
        assert_eq!(found, expected);

        fs::remove_dir_all(&apart).unwrap();
        let lost = walked(&DataDirectory::open(&data).unwrap());
        let last = told(lost.last().unwrap());
        assert!(last.contains("pg_tblspc/16400") && last.contains("apart"), "{last}");
    }
}
