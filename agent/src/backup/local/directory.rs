//! The data directory: that it is the running server's, and reading in it without leaving it.
//!
//! Everything is opened by descriptors, one name after the other, and no link is followed but those that a data directory has for tablespaces. A
//! directory that is not the server's (a copy, a standby's beside it, an old one) must never be read under the server's backup mode: the files would fit
//! no WAL. So several things must agree, of which the last changes with every checkpoint.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{CWD, Dir, FileType, Mode, OFlags, openat};
use walkeep_core::control::{ControlError, ControlFile};
use walkeep_core::data_directory::Kind;

use super::session::{ControlSeen, ServerFacts, Session};

/// pg_control is one page; the server writes it in one piece, which a reader may see torn.
const CONTROL_BYTES: u64 = 8192;
const CONTROL: &str = "global/pg_control";
/// How often pg_control is read again, and how long apart.
const CONTROL_READS: u32 = 200;
const CONTROL_PAUSE: Duration = Duration::from_millis(10);
/// Between what a server notes as its start when it takes its lock and what it says later lies the set-up of its shared memory.
const START_SPREAD: i64 = 600;

/// A data directory, open.
#[derive(Debug)]
pub struct DataDirectory {
    path: PathBuf,
    fd: OwnedFd,
}

impl DataDirectory {
    /// Opens it; what it is, is not looked at yet.
    pub fn open(path: &Path) -> Result<Self> {
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let fd = openat(CWD, path, flags, Mode::empty()).map_err(io::Error::from).with_context(|| format!("open {}", path.display()))?;
        Ok(Self { path: path.to_owned(), fd })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The folder itself.
    pub fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    /// What `pg_tblspc` has now. Asked as soon as the server is in backup mode: a tablespace that is made later has no place in its `tablespace_map`, and need have
    /// none in the backup, since replay makes it.
    pub fn tablespaces(&self) -> Result<BTreeSet<String>> {
        let names = || {
            let folder = open_folder(&self.fd, "pg_tblspc")?;
            let names = list(&folder)?.into_iter().filter_map(|(name, _)| String::from_utf8(name).ok());
            Ok::<_, io::Error>(names.collect())
        };
        names().with_context(|| format!("list pg_tblspc in {}", self.path.display()))
    }

    /// Reads pg_control until it is whole. Its bytes and what they say.
    pub fn control(&self) -> Result<(Vec<u8>, ControlFile)> {
        let mut tries = 0;
        loop {
            let mut bytes = Vec::new();
            let file = open_below(&self.fd, CONTROL).with_context(|| format!("open {CONTROL} in {}", self.path.display()))?;
            file.take(CONTROL_BYTES).read_to_end(&mut bytes).with_context(|| format!("read {CONTROL} in {}", self.path.display()))?;
            tries += 1;
            match ControlFile::parse(&bytes) {
                Ok(control) => return Ok((bytes, control)),
                Err(ControlError::Checksum { .. } | ControlError::TooShort { .. }) if tries < CONTROL_READS => {
                    std::thread::sleep(CONTROL_PAUSE)
                }
                Err(error) => return Err(error).with_context(|| format!("read {CONTROL} in {}, {tries} times", self.path.display())),
            }
        }
    }

    /// Refuses a directory that is not the one of the server that the session leads to.
    pub async fn prove(&self, session: &Session, server: &ServerFacts) -> Result<()> {
        let place = self.path.display();
        let (_, control) = self.control()?;
        ensure!(
            control.system == server.system,
            "{place} belongs to the cluster with system identifier {}, the server that `connection` leads to has {}",
            control.system,
            server.system
        );
        if let Some(theirs) = &server.data_directory
            && let (Ok(own), Ok(theirs_found)) = (rustix::fs::fstat(&self.fd), std::fs::metadata(theirs))
        {
            let same = (own.st_dev, own.st_ino) == (theirs_found.dev(), theirs_found.ino());
            ensure!(same, "{place} is another directory than that of the server that `connection` leads to, {theirs}");
        }
        self.check_lock(server)?;
        self.prove_control(session).await
    }

    /// The server's lock file: its start and its port.
    fn check_lock(&self, server: &ServerFacts) -> Result<()> {
        let place = self.path.display();
        let mut text = String::new();
        let lock = open_below(&self.fd, "postmaster.pid").with_context(|| format!("no server runs in {place}: open postmaster.pid"))?;
        lock.take(CONTROL_BYTES).read_to_string(&mut text).with_context(|| format!("read postmaster.pid in {place}"))?;
        let line = |number: usize| text.lines().nth(number).and_then(|line| line.trim().parse::<i64>().ok());
        let (Some(started), Some(port)) = (line(2), line(3)) else { bail!("postmaster.pid in {place} is not a running server's") };
        ensure!(
            port == i64::from(server.port),
            "the server that runs in {place} has port {port}, the one that `connection` leads to port {}",
            server.port
        );
        ensure!(
            (started - 1..=started + START_SPREAD).contains(&server.started),
            "the server that runs in {place} was started at another time than the one that `connection` leads to"
        );
        Ok(())
    }

    /// What the server reads in its pg_control is what stands here. A checkpoint may end between the two looks.
    pub async fn prove_control(&self, session: &Session) -> Result<()> {
        for _ in 0..CONTROL_READS {
            let before = session.control().await?;
            let (_, file) = self.control()?;
            if ControlSeen::of(&file) == before {
                return Ok(());
            }
            if session.control().await? == before {
                bail!(
                    "pg_control in {} is another than the one the server writes (its last checkpoint is {}): it is a copy of the server's data directory",
                    self.path.display(),
                    file.checkpoint
                );
            }
        }
        bail!("pg_control changed at each of {CONTROL_READS} looks: no telling whether {} is the server's", self.path.display())
    }
}

/// An entry of a folder.
pub fn list(folder: &OwnedFd) -> io::Result<Vec<(Vec<u8>, Kind)>> {
    let mut entries = Vec::new();
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let found = match entry.file_type() {
            FileType::Unknown => match rustix::fs::statat(folder, name, rustix::fs::AtFlags::SYMLINK_NOFOLLOW) {
                Ok(found) => FileType::from_raw_mode(found.st_mode),
                Err(rustix::io::Errno::NOENT) => continue,
                Err(error) => return Err(error.into()),
            },
            known => known,
        };
        let kind = match found {
            FileType::RegularFile => Kind::File,
            FileType::Directory => Kind::Folder,
            FileType::Symlink => Kind::Link,
            _ => Kind::Special,
        };
        entries.push((name.to_bytes().to_owned(), kind));
    }
    Ok(entries)
}

/// Opens a folder in a folder; never through a link.
pub fn open_folder(folder: &impl AsFd, name: &str) -> io::Result<OwnedFd> {
    Ok(openat(folder, name, OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
}

/// Opens a file in a folder; never through a link. Without NONBLOCK a pipe would hold us until somebody writes to it.
pub fn open_file(folder: &impl AsFd, name: &str) -> io::Result<File> {
    Ok(File::from(openat(folder, name, OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?))
}

/// Opens a file by a path below a folder, each part without following a link.
fn open_below(folder: &OwnedFd, path: &str) -> io::Result<File> {
    match path.split_once('/') {
        Some((first, rest)) => open_below(&open_folder(folder, first)?, rest),
        None => open_file(folder, path),
    }
}
