//! A restore into a directory that has something in it: what may be kept, what does not belong there and goes.
//!
//! Looked at first, so that it can be told and asked for before anything is touched ([`survey`]); then cleared ([`Survey::clear`]), pg_control before all,
//! so that a directory that is neither the one nor the other starts no server. No link is ever followed: links go, what they lead to stays as it is. Which
//! bytes of the files that stay are right is found out by [`super::files`].

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use rustix::fs::{Access, AtFlags};
use walkeep_core::backup::BackupRecord;
use walkeep_core::control::ControlFile;
use walkeep_core::manifest::EntryKind;

use super::Refusal;
use super::layout::CONTROL;
use super::target_dir::{CONTROL_WAITING, Target};
use crate::durable;
use crate::repository::manifest::ManifestEntries;

/// How many of what goes are named.
const NAMED: usize = 10;

/// What a directory has that a restore would change.
#[derive(Debug, Clone, Default, serde::Serialize)]
pub struct Survey {
    /// Files that the backup has too: what differs of them is overwritten.
    pub files: u64,
    /// Their bytes, as far as they are needed.
    pub bytes: u64,
    /// Files, links and folders that the backup does not have: they are removed.
    pub removed: u64,
    /// The first of them.
    pub named: Vec<PathBuf>,
    /// Directories of tablespaces that have something in them.
    pub outside: Vec<PathBuf>,
    /// How many of those are WAL.
    pub wal: u64,
    /// How many of these were not archived yet, as the server's `.ready` files say.
    pub unarchived: u64,
    #[serde(skip)]
    remove: Vec<PathBuf>,
    #[serde(skip)]
    control: Option<PathBuf>,
}

impl Survey {
    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.files == 0 && self.removed == 0
    }

    /// Removes what does not belong there.
    pub fn clear(&self) -> Result<()> {
        if let Some(control) = &self.control {
            remove(control)?;
            durable::sync_parent(control)?;
        }
        self.remove.iter().try_for_each(|path| remove(path))
    }
}

fn remove(path: &Path) -> Result<()> {
    let removed = match fs::symlink_metadata(path) {
        // Does not follow links in it.
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error).with_context(|| format!("remove {}", path.display())),
        _ => Ok(()),
    }
}

/// Looks at the directories of `target`, and changes nothing. Refuses what is not a data directory of this cluster without a server.
pub fn survey(target: &Target, manifest: &ManifestEntries, record: &BackupRecord) -> Result<Survey> {
    let mut survey = Survey::default();
    for path in [&target.data].into_iter().chain(target.tablespaces.iter().map(|space| &space.new)) {
        is_directory(path)?;
    }
    if !is_empty(&target.data)? {
        is_of_cluster(&target.data, record)?;
        no_server(&target.data)?;
    }
    for space in &target.tablespaces {
        let link = target.link(space);
        if !is_empty(&space.new)? && fs::read_link(&link).ok().as_ref() != Some(&space.new) {
            let reason =
                format!("is not empty, and {} does not lead there; choose another place with --tablespace OLD=NEW", link.display());
            bail!(Refusal::Directory { path: space.new.clone(), reason });
        }
        if is_empty(&space.new)? {
            continue;
        }
        // A copy of a data directory has the links of the original, which may be running.
        let proven = target.is_server || space.named || target.data.join(CONTROL_WAITING).exists();
        if !proven {
            let reason = format!(
                "is not empty, and nothing tells whether it is {}'s: a copy of a data directory has links to the tablespaces of the original. Give it \
                 another place with --tablespace OLD=NEW, or name this one so if it shall be overwritten; nothing was touched",
                target.data.display()
            );
            bail!(Refusal::Directory { path: space.new.clone(), reason });
        }
        survey.outside.push(space.new.clone());
    }
    let (mut files, mut folders): (HashSet<PathBuf>, HashSet<PathBuf>) = Default::default();
    let mut sizes = 0_u64;
    folders.extend(["", "global", "pg_tblspc", "pg_wal", "pg_wal/archive_status"].map(|folder| target.data.join(folder)));
    for entry in manifest.iter()? {
        let entry = entry?;
        let Some(path) = target.place(&entry.path) else { continue };
        folders.extend(path.ancestors().skip(1).map(Path::to_owned).take_while(|folder| folder.starts_with(&target.data)));
        match entry.kind {
            EntryKind::Tablespace => {}
            EntryKind::Dir => drop(folders.insert(path)),
            EntryKind::File { content, .. } => {
                if let Ok(found) = fs::symlink_metadata(&path)
                    && found.is_file()
                {
                    survey.files += 1;
                    sizes += found.len().min(content.size());
                    changeable(&path)?;
                }
                files.insert(path);
            }
        }
    }
    survey.bytes = sizes;
    for space in &target.tablespaces {
        folders
            .extend(files.iter().filter(|file| file.starts_with(&space.new)).flat_map(|file| file.ancestors().skip(1).map(Path::to_owned)));
    }
    for root in [&target.data].into_iter().chain(target.tablespaces.iter().map(|space| &space.new)) {
        walk(root, &files, &folders, target, &mut survey)?;
    }
    survey.remove.sort_unstable();
    survey.removed = survey.remove.len() as u64;
    survey.named = survey.remove.iter().filter(|path| Some(*path) != survey.control.as_ref()).take(NAMED).cloned().collect();
    let wal = target.data.join("pg_wal");
    survey.wal = survey.remove.iter().filter(|path| path.parent() == Some(wal.as_path())).count() as u64;
    let status = wal.join("archive_status");
    let ready = |path: &&PathBuf| path.parent() == Some(status.as_path()) && path.extension().is_some_and(|end| end == "ready");
    survey.unarchived = survey.remove.iter().filter(ready).count() as u64;
    Ok(survey)
}

fn walk(folder: &Path, files: &HashSet<PathBuf>, folders: &HashSet<PathBuf>, target: &Target, survey: &mut Survey) -> Result<()> {
    let context = || format!("look into {}", folder.display());
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.with_context(context)?,
    };
    allowed(folder, Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK)?;
    for entry in entries {
        let entry = entry.with_context(context)?;
        let (path, kind) = (entry.path(), entry.file_type().with_context(context)?);
        if kind.is_dir() && folders.contains(&path) {
            walk(&path, files, folders, target, survey)?;
        } else if !(leads_to_tablespace(target, &path) || kind.is_file() && files.contains(&path)) {
            if path.ends_with(CONTROL) {
                survey.control = Some(path.clone());
            }
            removable(&path, kind)?;
            survey.remove.push(path);
        }
    }
    Ok(())
}

/// Refuses what could not be removed: in the middle of the work it would be found out too late.
fn removable(path: &Path, kind: fs::FileType) -> Result<()> {
    if kind.is_symlink() {
        return Ok(());
    }
    if !kind.is_dir() {
        // Who may write into the folder may remove it, but for one that nobody may change.
        return match rustix::fs::accessat(rustix::fs::CWD, path, Access::WRITE_OK, AtFlags::EACCESS) {
            Err(rustix::io::Errno::PERM) => bail!(not_allowed(path, "cannot be removed: it is immutable (chattr -i)")),
            _ => Ok(()),
        };
    }
    allowed(path, Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK)?;
    for entry in fs::read_dir(path).with_context(|| format!("look into {}", path.display()))? {
        let entry = entry.with_context(|| format!("look into {}", path.display()))?;
        removable(&entry.path(), entry.file_type().with_context(|| format!("look at {}", entry.path().display()))?)?;
    }
    Ok(())
}

/// Refuses a file that could neither be written nor replaced. One that its owner may only read (a server's key, say) is replaced: who may write
/// into its folder, which is looked at too, may do so.
fn changeable(path: &Path) -> Result<()> {
    allowed(path, Access::READ_OK)?;
    match rustix::fs::accessat(rustix::fs::CWD, path, Access::WRITE_OK, AtFlags::EACCESS) {
        Err(rustix::io::Errno::ACCESS) => Ok(()),
        _ => allowed(path, Access::WRITE_OK),
    }
}

fn allowed(path: &Path, access: Access) -> Result<()> {
    match rustix::fs::accessat(rustix::fs::CWD, path, access, AtFlags::EACCESS) {
        Ok(()) => Ok(()),
        Err(error) => {
            let user = rustix::process::geteuid().as_raw();
            bail!(not_allowed(path, &format!("cannot be changed by user {user}: {}", io::Error::from(error))))
        }
    }
}

fn not_allowed(path: &Path, what: &str) -> Refusal {
    Refusal::Directory { path: path.to_owned(), reason: format!("{what}; nothing was touched") }
}

/// Such a link stays: it says whose the tablespace's directory is, should this restore be cut off.
fn leads_to_tablespace(target: &Target, path: &Path) -> bool {
    target.tablespaces.iter().any(|space| target.link(space) == path && fs::read_link(path).ok().as_ref() == Some(&space.new))
}

fn is_directory(path: &Path) -> Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Ok(found) if found.is_dir() => Ok(()),
        Ok(found) => {
            let what = if found.is_symlink() { "is a symbolic link; name the directory itself" } else { "is not a directory" };
            bail!(Refusal::Directory { path: path.to_owned(), reason: what.to_owned() })
        }
        Err(error) => bail!(Refusal::Directory { path: path.to_owned(), reason: format!("cannot be looked at: {error}") }),
    }
}

fn is_empty(path: &Path) -> Result<bool> {
    match fs::read_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(error) => bail!(Refusal::Directory { path: path.to_owned(), reason: format!("cannot be read: {error}") }),
        Ok(mut entries) => Ok(entries.next().is_none()),
    }
}

/// What is overwritten must have been this cluster, or a restore of it that did not come to its end.
fn is_of_cluster(data: &Path, record: &BackupRecord) -> Result<()> {
    let refuse = |reason: String| Refusal::Directory { path: data.to_owned(), reason: format!("{reason}; nothing was touched") };
    let control = [CONTROL, CONTROL_WAITING].into_iter().find_map(|name| fs::read(data.join(name)).ok());
    match control.as_deref().map(ControlFile::parse) {
        Some(Ok(control)) if control.system == record.system_identifier => {}
        Some(Ok(control)) => {
            bail!(refuse(format!("is the data directory of another cluster, with system identifier {}", control.system)))
        }
        // A file that a restore had begun to write, or a torn one: PG_VERSION is all there is to go by.
        Some(Err(_)) | None if data.join("PG_VERSION").is_file() => {}
        Some(Err(_)) | None => bail!(refuse("is not empty, and is no data directory".into())),
    }
    match fs::read_to_string(data.join("PG_VERSION")) {
        // A restore gives its files their lengths first.
        Ok(version) if version.bytes().all(|byte| byte == 0) => Ok(()),
        Ok(version) if version.trim() != record.major_version.to_string() => {
            let version = version.trim().escape_default().to_string();
            bail!(refuse(format!("is a data directory of PostgreSQL {}, the backup of {}", version.trim(), record.major_version)))
        }
        _ => Ok(()),
    }
}

/// A server on the directory writes to it: whatever is restored would be overwritten, or worse. `postmaster.pid` names its process in its first line.
fn no_server(data: &Path) -> Result<()> {
    let path = data.join("postmaster.pid");
    let text = match fs::read_to_string(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        text => text.with_context(|| format!("read {}", path.display()))?,
    };
    let refuse = |reason: String| Refusal::Directory { path: data.to_owned(), reason: format!("{reason}; nothing was touched") };
    let pid = text.lines().next().and_then(|line| line.trim().parse::<i32>().ok()).and_then(rustix::process::Pid::from_raw);
    let Some(pid) = pid else {
        bail!(refuse("its postmaster.pid cannot be read: make sure that no server runs there, and remove it".into()))
    };
    // Another user's process may not be signalled, and is there all the same.
    let gone = rustix::process::test_kill_process(pid) == Err(rustix::io::Errno::SRCH);
    if gone {
        return Ok(());
    }
    bail!(refuse(format!(
        "a server is running there (process {}, as its postmaster.pid says): stop it first; if that process is no PostgreSQL, remove the file",
        pid.as_raw_nonzero()
    )))
}

#[cfg(test)]
mod tests;
