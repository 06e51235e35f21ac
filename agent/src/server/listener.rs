//! The socket's place in the file system: one agent for one path, and nobody else's files touched.
//!
//! The directory must be the agent's own with mode 0700: between `bind` and `chmod` a socket has whatever mode the umask gives it, and
//! in a directory that others may write anybody could put another socket there. A lock file beside the socket, held while the agent
//! lives, decides between two agents; it is never removed, because whoever removes a lock file may remove another's lock.

use std::fs::{DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, ErrorKind, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use tokio::net::{UnixListener, UnixStream};

/// Why the agent cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The path is relative, or has no directory.
    #[error("{} is not an absolute path in a directory", .0.display())]
    NotAbsolute(PathBuf),
    /// The directory is open to others.
    #[error("{} has mode {mode:03o} and belongs to user {owner}; the agent's socket needs a directory of its own user ({user}) with mode 700", directory.display())]
    OpenDirectory {
        /// The directory.
        directory: PathBuf,
        /// Its mode.
        mode: u32,
        /// Whose it is.
        owner: u32,
        /// Who we are.
        user: u32,
    },
    /// Another agent has this socket.
    #[error("another agent ({holder}) serves {}", path.display())]
    Taken {
        /// The socket.
        path: PathBuf,
        /// Its process, as far as known.
        holder: String,
    },
    /// Something else has this name.
    #[error("{} is there and is not a socket; move it away, or configure another socket", .0.display())]
    NotASocket(PathBuf),
    /// The system refuses.
    #[error("cannot {action} {}", path.display())]
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

fn because(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> BindError {
    move |cause| BindError::Io { action, path: path.to_owned(), cause }
}

/// The agent's socket; its file goes when this is dropped.
#[derive(Debug)]
pub struct Listener {
    // In the order in which they are dropped: the lock last.
    name: SocketName,
    socket: UnixListener,
    lock: SocketLock,
}

/// The right to a socket's path.
#[derive(Debug)]
pub(super) struct SocketLock {
    _file: File,
}

/// The file of a socket that is ours.
#[derive(Debug)]
struct SocketName(PathBuf);

impl Drop for SocketName {
    fn drop(&mut self) {
        // One that stays behind is found stale by the next agent.
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Listener {
    /// Listens on `path`. Makes its directory if that is missing, and removes what an agent that is gone left behind. Within a runtime.
    pub fn bind(path: &Path) -> Result<Self, BindError> {
        let directory = path.parent().filter(|_| path.is_absolute()).ok_or_else(|| BindError::NotAbsolute(path.to_owned()))?;
        own_directory(directory)?;
        let lock = take_lock(path)?;
        remove_stale(path)?;
        let socket = UnixListener::bind(path).map_err(because("listen on", path))?;
        let name = SocketName(path.to_owned());
        std::fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(because("set the mode of", path))?;
        Ok(Self { name, socket, lock })
    }

    pub(super) async fn accept(&self) -> io::Result<UnixStream> {
        self.socket.accept().await.map(|(stream, _)| stream)
    }

    /// Refuses connections from now on, but keeps the right to the path.
    pub(super) fn close(self) -> SocketLock {
        let Self { name, socket, lock } = self;
        drop(name);
        drop(socket);
        lock
    }
}

fn own_directory(directory: &Path) -> Result<(), BindError> {
    match DirBuilder::new().mode(0o700).create(directory) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
        Err(error) => return Err(because("create the directory", directory)(error)),
    }
    let found = std::fs::metadata(directory).map_err(because("look at", directory))?;
    let (mode, owner, user) = (found.mode() & 0o7777, found.uid(), rustix::process::geteuid().as_raw());
    if mode & 0o077 != 0 || owner != user {
        return Err(BindError::OpenDirectory { directory: directory.to_owned(), mode, owner, user });
    }
    Ok(())
}

fn take_lock(socket: &Path) -> Result<SocketLock, BindError> {
    let mut path = socket.as_os_str().to_owned();
    path.push(".lock");
    let path = PathBuf::from(path);
    let no_follow = OFlags::NOFOLLOW.bits().cast_signed();
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600).custom_flags(no_follow);
    let mut file = options.open(&path).map_err(because("open", &path))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            let known = file.take(20).read_to_string(&mut holder).is_ok() && !holder.trim().is_empty();
            let holder = if known { format!("process {}", holder.trim()) } else { "its process is not known yet".into() };
            return Err(BindError::Taken { path: socket.to_owned(), holder });
        }
        Err(TryLockError::Error(error)) => return Err(because("lock", &path)(error)),
    }
    let pid = format!("{}\n", std::process::id());
    file.set_len(0).and_then(|()| file.rewind()).and_then(|()| file.write_all(pid.as_bytes())).map_err(because("write", &path))?;
    Ok(SocketLock { _file: file })
}

/// Removes a socket on which nobody answers; anything else stays.
fn remove_stale(path: &Path) -> Result<(), BindError> {
    match path.symlink_metadata() {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(because("look at", path)(error)),
        Ok(found) if !found.file_type().is_socket() => return Err(BindError::NotASocket(path.to_owned())),
        Ok(_) => {}
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(because("ask whether anybody listens on", path)(error)),
        Ok(_) => return Err(BindError::Taken { path: path.to_owned(), holder: "which holds no lock".into() }),
    }
    std::fs::remove_file(path).map_err(because("remove the stale socket", path))
}
