//! The folder of a throw-away server, which does not outlive the process that made it.
//!
//! Each has a marker, locked by its process for as long as that lives: the kernel lets go of the lock however the process ends, and no pid has to be
//! trusted. At a usual end the folder is removed by its owner; after kill -9 by the watcher, a process that waits for the end of its input; if that
//! was killed too, by the next that makes such a folder in the same place. What has no marker is never touched.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::durable;

const PREFIX: &str = "walkeep-scratch-";
const MARKER: &str = "walkeep-scratch.json";
/// The longest path of a socket is 107 bytes; behind the folder comes `/s/.s.PGSQL.5432`.
const PATH_MAX: usize = 107 - "/s/.s.PGSQL.5432".len();
/// What is on its way when the folder goes comes within this time.
const LATE: Duration = Duration::from_millis(50);
const TRIES: usize = 20;
/// How long a server has for an immediate shutdown before it is killed.
const PATIENCE: Duration = Duration::from_secs(5);

/// A private folder. Dropped, it is removed with everything in it, its server ended first.
#[derive(Debug)]
pub struct Place {
    path: PathBuf,
    /// Locked.
    _marker: File,
    watcher: Option<Child>,
}

impl Place {
    /// Makes one in `parent`, after removing what dead processes left there. Answers it with what was removed.
    pub fn make(parent: &Path, what_for: &str) -> Result<(Self, Vec<PathBuf>)> {
        durable::create_dir(parent, durable::PRIVATE_DIR)?;
        let parent = fs::canonicalize(parent).with_context(|| format!("look at {}", parent.display()))?;
        let removed = sweep(&parent)?;
        for number in 0..1000 {
            let path = parent.join(format!("{PREFIX}{}-{number}", std::process::id()));
            if path.as_os_str().len() > PATH_MAX {
                bail!("{} is too long a path for a server's socket: name a shorter place with --scratch", path.display());
            }
            match fs::create_dir(&path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                made => made.with_context(|| format!("create {}", path.display()))?,
            }
            let made = Self::mark(path.clone(), what_for);
            if made.is_err() {
                let _ = fs::remove_dir_all(&path);
            }
            return Ok((made?, removed));
        }
        bail!("{} is full of folders named {PREFIX}*", parent.display())
    }

    fn mark(path: PathBuf, what_for: &str) -> Result<Self> {
        let folder = File::open(&path)?;
        durable::set_mode(&folder, durable::PRIVATE_DIR)?;
        // Locked before it has its name: whoever sees it must not take it for a dead process's.
        let unnamed = path.join(".marker");
        let mut marker = durable::create_private(&unnamed, durable::PRIVATE_FILE)?;
        marker.try_lock().context("lock the marker")?;
        let text = serde_json::json!({ "process": std::process::id(), "for": what_for, "since": chrono::Utc::now().to_rfc3339() });
        writeln!(marker, "{text}")?;
        fs::rename(&unnamed, path.join(MARKER)).context("give the marker its name")?;
        fs::create_dir(path.join("s")).context("make the socket's folder")?;
        let watcher = start_watcher(&path).inspect_err(|error| tracing::warn!(%error, "no watcher for {}", path.display())).ok();
        Ok(Self { path, _marker: marker, watcher })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The data directory, to be made.
    pub fn data(&self) -> PathBuf {
        self.path.join("data")
    }

    /// The folder of the server's socket.
    pub fn sockets(&self) -> PathBuf {
        self.path.join("s")
    }

    /// Ends the server and removes what is in the folder, for another try.
    pub fn empty(&self) -> Result<()> {
        empty(&self.path)?;
        fs::create_dir(self.sockets()).context("make the socket's folder")
    }

    /// Ends the server and removes the folder, and says what went wrong.
    pub fn close(mut self) -> Result<()> {
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        let mut removed = Ok(());
        // A restore that was cut off may be making its next folder still, with this one around it.
        for _ in 0..TRIES {
            removed = if self.path.exists() { remove(&self.path) } else { Ok(()) };
            std::thread::sleep(LATE);
            if removed.is_ok() && !self.path.exists() {
                break;
            }
        }
        if let Some(mut watcher) = self.watcher.take() {
            drop(watcher.stdin.take());
            watcher.wait().context("wait for the watcher")?;
        }
        removed.with_context(|| format!("remove {}", self.path.display()))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            tracing::error!("{error:#}");
        }
    }
}

fn start_watcher(path: &Path) -> Result<Child> {
    let mut command = Command::new(std::env::current_exe().context("find this program")?);
    command.arg("scratch-watch").arg(path).current_dir("/").process_group(0);
    Ok(command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?)
}

/// The watcher's work: waits for the end of `input`, which is its starter's, and removes the folder if that died before it could.
pub fn watch(path: &Path, input: &mut impl Read) -> Result<()> {
    let mut byte = [0; 64];
    // An error is an end too.
    while input.read(&mut byte).is_ok_and(|read| read > 0) {}
    // The starter's lock goes when its last thread has ended, which may be a moment after its end of the pipe.
    let began = Instant::now();
    while path.join(MARKER).exists() && !remove_left(path)? {
        if began.elapsed() > Duration::from_secs(60) {
            bail!("{} is locked by another process", path.display());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// Removes what dead processes left in `parent`.
fn sweep(parent: &Path) -> Result<Vec<PathBuf>> {
    let mut removed = Vec::new();
    for entry in fs::read_dir(parent).with_context(|| format!("read {}", parent.display()))? {
        let path = entry?.path();
        if path.file_name().and_then(OsStr::to_str).is_some_and(|name| name.starts_with(PREFIX)) {
            match remove_left(&path) {
                Ok(true) => removed.push(path),
                Ok(false) => {}
                Err(error) => tracing::warn!("{} could not be removed: {error:#}", path.display()),
            }
        }
    }
    Ok(removed)
}

/// Removes the folder if it is ours by its marker, and whoever made it is dead. Answers whether it was.
pub fn remove_left(path: &Path) -> Result<bool> {
    let own = |found: &fs::Metadata| found.uid() == rustix::process::geteuid().as_raw();
    // No link is followed.
    if !fs::symlink_metadata(path).is_ok_and(|found| found.is_dir() && own(&found)) {
        return Ok(false);
    }
    let Ok(marker) = File::open(path.join(MARKER)) else { return Ok(false) };
    if !marker.metadata().is_ok_and(|found| found.is_file() && own(&found)) || marker.try_lock().is_err() {
        return Ok(false);
    }
    remove(path).map(|()| true)
}

/// The marker goes last, so that a removal that is cut off is done again. What is made meanwhile goes too.
fn remove(path: &Path) -> Result<()> {
    let began = Instant::now();
    loop {
        empty(path)?;
        match fs::remove_file(path.join(MARKER)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        match fs::remove_dir(path) {
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty && began.elapsed() < PATIENCE => {}
            removed => return Ok(removed?),
        }
    }
}

/// Everything but the marker.
fn empty(path: &Path) -> Result<()> {
    end_servers(&path.join("data"));
    let began = Instant::now();
    loop {
        // A restore_command that was under way may still be putting its file.
        match try_empty(path) {
            Err(error) if began.elapsed() > PATIENCE => return Err(error).context("remove its files"),
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
            Ok(()) => return Ok(()),
        }
    }
}

fn try_empty(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_name() == MARKER {
            continue;
        }
        if entry.file_type()?.is_dir() { fs::remove_dir_all(entry.path())? } else { fs::remove_file(entry.path())? }
    }
    Ok(())
}

/// Ends the server on this data directory: by an immediate shutdown, and by force after a while.
fn end_servers(data: &Path) {
    for (signal, patience) in [(Signal::QUIT, PATIENCE), (Signal::KILL, PATIENCE)] {
        let running = servers(data);
        for pid in &running {
            // It may just have ended.
            let _ = kill_process(*pid, signal);
        }
        let began = Instant::now();
        while !servers(data).is_empty() && began.elapsed() < patience {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// The processes of PostgreSQL that work in this data directory, as all of a server do.
fn servers(data: &Path) -> Vec<Pid> {
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let here = |pid: &i32| {
        let proc = PathBuf::from(format!("/proc/{pid}"));
        fs::read_link(proc.join("cwd")).is_ok_and(|cwd| cwd == data)
            && fs::read_link(proc.join("exe"))
                .is_ok_and(|exe| exe.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"postgres")))
    };
    pids.filter(here).filter_map(Pid::from_raw).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a dead process leaves: a marker that nobody has locked.
    fn leftover(parent: &Path, name: &str, marker: bool) -> PathBuf {
        let path = parent.join(name);
        fs::create_dir_all(path.join("data/base")).unwrap();
        fs::write(path.join("data/base/1"), b"x").unwrap();
        if marker {
            fs::write(path.join(MARKER), b"{}").unwrap();
        }
        path
    }

    #[test]
    fn leftovers_go_and_nothing_else() {
        let parent = tempfile::tempdir().unwrap();
        let dead = leftover(parent.path(), "walkeep-scratch-1-0", true);
        let unmarked = leftover(parent.path(), "walkeep-scratch-1-1", false);
        let other = leftover(parent.path(), "other", true);
        let target = leftover(parent.path(), "elsewhere", true);
        let link = parent.path().join("walkeep-scratch-1-2");
        std::os::unix::fs::symlink(&target, &link).unwrap();
        let (alive, removed) = Place::make(parent.path(), "a test").unwrap();
        assert_eq!(removed, [fs::canonicalize(parent.path()).unwrap().join("walkeep-scratch-1-0")]);
        assert!(!dead.exists() && unmarked.exists() && other.exists() && link.exists() && target.join("data/base/1").exists());
        // One that lives is left alone, until it does not.
        assert!(!remove_left(alive.path()).unwrap());
        let path = alive.path().to_owned();
        fs::create_dir(alive.data()).unwrap();
        alive.empty().unwrap();
        assert!(alive.sockets().exists() && !alive.data().exists());
        alive.close().unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn what_is_made_meanwhile_goes_too() {
        let parent = tempfile::tempdir().unwrap();
        let (place, _) = Place::make(parent.path(), "a test").unwrap();
        let (path, data) = (place.path().to_owned(), place.data());
        let began = Instant::now();
        let writer = std::thread::spawn(move || {
            while began.elapsed() < Duration::from_millis(300) {
                // It may be gone just then.
                let _ = fs::create_dir_all(data.join("base")).and_then(|()| fs::write(data.join("base/1"), b"x"));
            }
        });
        place.close().unwrap();
        writer.join().unwrap();
        assert!(began.elapsed() >= Duration::from_millis(300) && !path.exists());
    }

    #[test]
    fn a_watcher_removes_what_its_starter_left() {
        let parent = tempfile::tempdir().unwrap();
        let dead = leftover(parent.path(), "walkeep-scratch-1-0", true);
        watch(&dead, &mut io::empty()).unwrap();
        assert!(!dead.exists());
        watch(&dead, &mut io::empty()).unwrap();
    }

    #[test]
    fn a_path_too_long_for_a_socket_is_refused() {
        let parent = tempfile::tempdir().unwrap();
        let error = Place::make(&parent.path().join("x".repeat(100)), "a test").unwrap_err();
        assert!(error.to_string().contains("--scratch"), "{error}");
    }
}
