//! The directories a restore fills: chosen and checked before the first byte, and finished after the last.
//!
//! Nothing is ever written outside of them, and none of them had anything in it, but with `--delta` ([`super::delta`]). All that is followed on the way is this module's own links
//! to tablespaces, which are made when the files are written.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use rustix::fs::{Access, AtFlags};
use walkeep_core::Lsn;
use walkeep_core::backup::BackupRecord;
use walkeep_core::plan::RestorePlan;
use walkeep_core::relative_path::RelativePath;

use super::layout::{CONTROL, Layout, SIGNALS, Small, TABLESPACE_MAP};
use super::surroundings::{self, InUse};
use super::{Options, Refusal};
use crate::durable;

/// pg_control's name until everything else is durable.
pub(super) const CONTROL_WAITING: &str = "global/.pg_control.walkeep-restore";

/// A tablespace outside the data directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Space {
    /// Its OID.
    pub oid: u32,
    /// Where it goes.
    pub new: PathBuf,
    /// Whether it was said to go there, and is not only where it was.
    pub named: bool,
}

/// Where everything goes.
#[derive(Debug, Clone)]
pub struct Target {
    /// The data directory.
    pub data: PathBuf,
    /// Tablespaces outside it.
    pub tablespaces: Vec<Space>,
    /// Directories in which recovery will create tablespaces. It empties what it finds there (PostgreSQL 13, 14) or writes beside it, and
    /// stops where there is none.
    pub replayed: Vec<(PathBuf, Lsn)>,
    /// Mode of folders: 0700, or 0750 where the group may read.
    pub dir_mode: u32,
    /// What is there already is used.
    pub delta: bool,
    /// The data directory is that of the configured server.
    pub is_server: bool,
}

/// The right to fill these directories, until it is dropped. The kernel lets go of it however the process ends.
#[derive(Debug, Default)]
pub struct Locks(Vec<(PathBuf, fs::File)>);

impl Target {
    /// Decides where everything goes.
    pub fn choose(options: &Options, plan: &RestorePlan, record: &BackupRecord, layout: &Layout, small: &Small) -> Result<Self> {
        let absolute = |path: &Path| std::path::absolute(path).with_context(|| format!("make {} absolute", path.display()));
        let data = absolute(&options.to)?;
        let known = || match record.tablespaces.as_slice() {
            [] => "none".to_owned(),
            spaces => spaces.iter().map(|space| space.path.as_str()).collect::<Vec<_>>().join(", "),
        };
        if let Some((old, _)) = options.tablespaces.iter().find(|(old, _)| !record.tablespaces.iter().any(|s| Path::new(&s.path) == old)) {
            bail!(Refusal::NoSuchTablespace { path: old.clone(), known: known() });
        }
        let mut tablespaces: Vec<Space> = Vec::new();
        for space in &record.tablespaces {
            let old = Path::new(&space.path);
            let named = options.tablespaces.iter().find(|(from, _)| from == old).map(|(_, to)| to.as_path());
            let new = absolute(named.unwrap_or(old))?;
            let refuse = |reason: String| Refusal::Directory { path: new.clone(), reason };
            if surroundings::overlap(&new, &data) {
                bail!(refuse("a tablespace and the data directory must not lie in one another; give it a place with --tablespace".into()));
            }
            if let Some(other) = tablespaces.iter().find(|other| surroundings::overlap(&new, &other.new)) {
                bail!(refuse(format!("it and the tablespace at {} lie in one another", other.new.display())));
            }
            tablespaces.push(Space { oid: space.oid, new, named: named.is_some() });
        }
        if !tablespaces.is_empty() && small.tablespace_map.is_none() {
            let reason = "it has tablespaces and no tablespace_map".to_owned();
            bail!(Refusal::Backup { backup: record.id.to_string(), reason });
        }
        let replayed = plan.replayed_tablespaces.iter().map(|space| (PathBuf::from(&space.location), space.lsn)).collect();
        let dir_mode = if layout.group_access { 0o750 } else { durable::PRIVATE_DIR };
        let is_server = options.data_directory.as_ref().is_some_and(|server| surroundings::is_same(server, &data));
        Ok(Self { data, tablespaces, replayed, dir_mode, delta: options.delta, is_server })
    }

    /// Refuses directories that another restore is at work in, and keeps others out of those that are there, where the file system can.
    pub fn lock(&self, locks: &mut Locks) -> Result<()> {
        for path in [&self.data].into_iter().chain(self.tablespaces.iter().map(|space| &space.new)) {
            if locks.0.iter().any(|(locked, _)| locked == path) {
                continue;
            }
            // What is not there yet, or cannot be opened: the one is locked once it is there, of the other the checks say what is wrong.
            let Ok(folder) = fs::File::open(path) else { continue };
            match folder.try_lock() {
                Ok(()) => locks.0.push((path.clone(), folder)),
                Err(fs::TryLockError::WouldBlock) => {
                    let reason = "another restore is at work in it; nothing was touched".to_owned();
                    bail!(Refusal::Directory { path: path.clone(), reason })
                }
                // As on NFS, which lets no folder be locked. It must not keep anybody from a restore.
                Err(fs::TryLockError::Error(error)) => {
                    tracing::warn!(directory = %path.display(), %error, "restore: another restore into this directory at the same time would not be noticed");
                }
            }
        }
        Ok(())
    }

    /// Refuses directories that lie where they must not.
    pub fn check_surroundings(&self, in_use: &[InUse]) -> Result<()> {
        surroundings::check(&self.data, in_use)?;
        for space in &self.tablespaces {
            surroundings::check(&space.new, in_use).map_err(|refusal| match refusal {
                Refusal::Directory { path, reason } => Refusal::Directory { path, reason: format!("{reason} with --tablespace OLD=NEW") },
                other => other,
            })?;
        }
        Ok(())
    }

    /// Refuses directories that have something in them or cannot be written, and disks that are too full. What is used again (`kept` bytes) needs no room.
    pub fn check(&self, layout: &Layout, headroom: u64, kept: u64) -> Result<()> {
        if !self.delta {
            check_empty(&self.data, None)?;
        }
        let outside: u64 = layout.outside.values().sum();
        let mut needs = vec![(&self.data, layout.written.saturating_sub(outside).saturating_sub(kept).saturating_add(headroom))];
        for space in &self.tablespaces {
            if !self.delta {
                check_empty(&space.new, Some("choose another place for it with --tablespace OLD=NEW"))?;
            }
            needs.push((&space.new, layout.outside.get(&space.oid).copied().unwrap_or_default()));
        }
        for (path, lsn) in &self.replayed {
            let advice = format!(
                "replay of the WAL at {lsn} creates a tablespace right there, and PostgreSQL cannot be told another place: restore where this \
                 path is free (on another host), or to a target before {lsn}"
            );
            if path.to_string_lossy().contains(char::REPLACEMENT_CHARACTER) {
                let reason = format!("the path is not UTF-8, so whether it is free cannot be checked; {advice}");
                bail!(Refusal::Directory { path: path.clone(), reason });
            }
            check_empty(path, Some(&advice))?;
            check_writable(path)?;
        }
        // What lies on one disk is added up.
        let mut disks: HashMap<u64, (PathBuf, u64)> = HashMap::new();
        for (path, bytes) in needs {
            let existing = path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
            check_writable(path)?;
            let device = fs::metadata(existing).with_context(|| format!("look at {}", existing.display()))?.dev();
            let sum = &mut disks.entry(device).or_insert_with(|| (existing.to_owned(), 0)).1;
            *sum = sum.saturating_add(bytes);
        }
        for (path, needed) in disks.into_values() {
            let disk = rustix::fs::statvfs(&path).with_context(|| format!("ask for the room on {}", path.display()))?;
            let available = disk.f_bavail.saturating_mul(disk.f_frsize);
            if available < needed {
                bail!(Refusal::Space { path, needed, available });
            }
        }
        Ok(())
    }

    /// The data directory and those of tablespaces.
    pub fn roots(&self) -> impl Iterator<Item = &PathBuf> {
        let spaces = self.tablespaces.iter().map(|space| &space.new);
        [&self.data].into_iter().chain(spaces).chain(self.replayed.iter().map(|(path, _)| path))
    }

    /// Makes the directories themselves, empty. They keep no mode they had.
    pub fn create_roots(&self) -> Result<()> {
        for path in self.roots() {
            durable::create_dir(path, self.dir_mode)?;
            let open_and_set = || fs::File::open(path).and_then(|folder| durable::set_mode(&folder, self.dir_mode));
            open_and_set().with_context(|| format!("set the mode of {}", path.display()))?;
        }
        for folder in ["global", "pg_tblspc", "pg_wal", "pg_wal/archive_status"] {
            durable::create_dir(&self.data.join(folder), self.dir_mode)?;
        }
        Ok(())
    }

    /// Where an entry of the manifest goes while files are written; `None` for what is not restored as it is.
    pub fn place(&self, path: &RelativePath) -> Option<PathBuf> {
        if path.as_str() == TABLESPACE_MAP || SIGNALS.contains(&path.as_str()) {
            return None;
        }
        if path.as_str() == CONTROL {
            return Some(self.data.join(CONTROL_WAITING));
        }
        let space = path.tablespace().and_then(|(oid, rest)| Some((self.tablespaces.iter().find(|space| space.oid == oid)?, rest)));
        Some(match space {
            Some((space, None)) => space.new.clone(),
            Some((space, Some(rest))) => space.new.join(rest),
            None => self.data.join(path.as_str()),
        })
    }

    /// The link to a tablespace.
    pub fn link(&self, space: &Space) -> PathBuf {
        self.data.join("pg_tblspc").join(space.oid.to_string())
    }

    /// Makes the links to tablespaces. They come before the files, so that a restore that is cut off can be told to go on: they say whose the
    /// directories are.
    pub fn link_tablespaces(&self) -> Result<()> {
        for space in &self.tablespaces {
            let link = self.link(space);
            if fs::read_link(&link).ok().as_ref() != Some(&space.new) {
                std::os::unix::fs::symlink(&space.new, &link).with_context(|| format!("make the link {}", link.display()))?;
            }
        }
        Ok(())
    }

    /// Writes the map from which recovery makes the links anew.
    pub fn map_tablespaces(&self, map: Option<&[u8]>) -> Result<()> {
        if map.is_some() {
            let mut text = Vec::new();
            for space in &self.tablespaces {
                text.extend_from_slice(format!("{} ", space.oid).as_bytes());
                for byte in space.new.as_os_str().as_encoded_bytes() {
                    // As PostgreSQL escapes what would end a line.
                    if matches!(byte, b'\n' | b'\r' | b'\\') {
                        text.push(b'\\');
                    }
                    text.push(*byte);
                }
                text.push(b'\n');
            }
            durable::write_file(&self.data.join(TABLESPACE_MAP), &text, durable::PRIVATE_FILE)?;
        }
        Ok(())
    }

    /// Gives pg_control its name: from here on a server starts.
    pub fn publish_control(&self) -> Result<()> {
        let (waiting, control) = (self.data.join(CONTROL_WAITING), self.data.join(CONTROL));
        fs::rename(&waiting, &control).with_context(|| format!("rename {}", waiting.display()))?;
        durable::sync_parent(&control)?;
        durable::sync_dir(&self.data)
    }
}

/// Refuses a directory that no restore could fill: something is in it, it lies where it must not, or it cannot be written or made.
pub fn check_directory(path: &Path, in_use: &[InUse]) -> Result<()> {
    check_empty(path, None)?;
    surroundings::check(path, in_use)?;
    check_writable(path)
}

/// Files must be allowed where they go, or what was written before that is found out lies about. A read-only file system is noticed too.
fn check_writable(path: &Path) -> Result<()> {
    let existing = path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    let allowed = Access::WRITE_OK | Access::EXEC_OK;
    match rustix::fs::accessat(rustix::fs::CWD, existing, allowed, AtFlags::EACCESS) {
        Ok(()) if existing.is_dir() => Ok(()),
        Ok(()) => bail!(Refusal::Directory {
            path: path.to_owned(),
            reason: format!("cannot be made: {} is not a directory", existing.display())
        }),
        Err(error) => {
            let user = rustix::process::geteuid().as_raw();
            let what = if existing == path { "cannot be written" } else { "does not exist, and cannot be made" };
            let reason = format!("{what} by user {user}: {}: {}", existing.display(), io::Error::from(error));
            bail!(Refusal::Directory { path: path.to_owned(), reason })
        }
    }
}

/// A directory to be filled must be absent, or a real, empty directory.
fn check_empty(path: &Path, advice: Option<&str>) -> Result<()> {
    let refuse = |reason: String| {
        let reason = advice.map_or(reason.clone(), |advice| format!("{reason}; {advice}"));
        anyhow::Error::from(Refusal::Directory { path: path.to_owned(), reason })
    };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(refuse(format!("cannot be looked at: {error}"))),
        Ok(found) if found.is_symlink() => return Err(refuse("is a symbolic link; name the directory itself".into())),
        Ok(found) if !found.is_dir() => return Err(refuse("is not a directory".into())),
        Ok(_) => {}
    }
    let mut entries = fs::read_dir(path).map_err(|error| refuse(format!("cannot be read: {error}")))?;
    if entries.next().is_none() {
        return Ok(());
    }
    Err(refuse(if path.join("postmaster.pid").exists() {
        "is not empty: a server is running there, or was; nothing was touched".into()
    } else if path.join(CONTROL_WAITING).exists() || path.join("PG_VERSION").exists() && !path.join(CONTROL).exists() {
        "is not empty: a restore into it did not come to its end. Empty it and restore again; nothing was touched".into()
    } else if path.join("PG_VERSION").exists() {
        "is not empty: it is a data directory already; nothing was touched".into()
    } else {
        "is not empty; nothing was touched".into()
    }))
}
