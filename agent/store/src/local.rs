//! Objects as files below a directory: a disk, a mounted NFS or CIFS share.
//!
//! The directory is opened once and everything happens relative to that handle. So a root that is unmounted or renamed while the agent
//! runs is never quietly replaced by whatever lies at its path then, and nothing is called stored in it any more; whether the right directory was opened is
//! for the caller to prove with the repository's marker. How files become durable is in `files`, how they are listed in `walk`.
//!
//! One key must not be a folder of another (`a` and `a/b`): a file system cannot hold both.

mod files;
mod temporary;
mod walk;

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use rustix::io::Errno;

use crate::{Error, ErrorKind, Key, ListRequest, Page, Probed, Put, Result, Store};
use files::{Files, Outcome};

/// A store in a local directory.
#[derive(Debug, Clone)]
pub struct LocalStore {
    root: PathBuf,
    files: Arc<Files>,
}

impl LocalStore {
    /// Opens the store below an existing directory; writes nothing, so a read-only file system will do for reading.
    ///
    /// Fails with [`ErrorKind::Unusable`] if there is no such directory: perhaps it is not mounted, and creating it would hide that.
    pub async fn open(root: impl Into<PathBuf>) -> Result<Self> {
        let root = root.into();
        blocking("open", &root.display().to_string(), move || {
            let files = Arc::new(Files::open(&root)?);
            Ok(Self { root, files })
        })
        .await
    }

    /// Creates the directory, with its parents, if it is missing (mode 0700), and opens the store.
    pub async fn create(root: impl Into<PathBuf>) -> Result<Self> {
        let root = root.into();
        let path = root.clone();
        blocking("create", &root.display().to_string(), move || files::create_root(&path)).await?;
        Self::open(root).await
    }

    /// Runs `work` where it may block. Dropping the call does not stop it: a put then ends by itself, whole or not at all.
    async fn run<T, W>(&self, action: &'static str, place: &str, work: W) -> Result<T>
    where
        T: Send + 'static,
        W: FnOnce(&Files) -> io::Result<T> + Send + 'static,
    {
        let files = Arc::clone(&self.files);
        // The whole path: which disk is full, and whose directory is closed, is what the operator looks for.
        blocking(action, &self.root.join(place).display().to_string(), move || work(&files)).await
    }
}

#[async_trait]
impl Store for LocalStore {
    fn url(&self) -> String {
        format!("file://{}", self.root.display())
    }

    async fn put_if_absent(&self, key: &Key, body: Bytes) -> Result<Put> {
        let path = key.clone();
        let put = self.run("put", key.as_str(), move |files| files.create(path.as_str(), &body)).await?;
        match put {
            Outcome::Put(put) => Ok(put),
            Outcome::Other { in_doubt: false } => Err(Error::new(ErrorKind::AlreadyExists, "put", key)),
            Outcome::Other { in_doubt: true } => Err(Error::new(ErrorKind::AlreadyExists, "put", key).in_doubt()),
        }
    }

    async fn replace_in_doubt(&self, key: &Key, body: Bytes) -> Result<bool> {
        let path = key.clone();
        self.run("replace", key.as_str(), move |files| files.replace_in_doubt(path.as_str(), &body)).await
    }

    async fn get(&self, key: &Key, range: Option<Range<u64>>) -> Result<Bytes> {
        let path = key.clone();
        let body = self.run("get", key.as_str(), move |files| files.read(path.as_str(), range)).await?;
        body.map(Bytes::from).ok_or_else(|| Error::new(ErrorKind::NotFound, "get", key))
    }

    async fn list(&self, request: &ListRequest) -> Result<Page> {
        let wanted = request.clone();
        self.run("list", &request.prefix, move |files| walk::list(files, &wanted)).await
    }

    async fn delete(&self, key: &Key) -> Result<()> {
        let path = key.clone();
        self.run("delete", key.as_str(), move |files| files.delete(path.as_str())).await
    }

    async fn delete_many(&self, keys: &[Key]) -> Result<Vec<(Key, Error)>> {
        let paths: Vec<String> = keys.iter().map(|key| key.as_str().to_owned()).collect();
        let first = keys.first().map_or("", Key::as_str);
        let stay = self.run("delete", first, move |files| files.delete_all(&paths)).await?;
        let told = |(number, error): (usize, io::Error)| {
            let key: &Key = keys.get(number)?;
            let place = self.root.join(key.as_str()).display().to_string();
            Some((key.clone(), Error::at(kind_of(&error), "delete", place).because(error)))
        };
        Ok(stay.into_iter().filter_map(told).collect())
    }

    async fn remove_folder(&self, prefix: &str) -> Result<()> {
        let folder = prefix.trim_end_matches('/').to_owned();
        self.run("delete", prefix, move |files| files.remove_folder(&folder)).await
    }

    async fn probe(&self, scratch: &Key) -> Result<Probed> {
        crate::probe::probe(self, scratch).await
    }
}

async fn blocking<T: Send + 'static>(
    action: &'static str,
    place: &str,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(Error::at(kind_of(&error), action, place).because(error)),
        // The runtime is shutting down, or the work panicked, which the panic hook has told.
        Err(error) => Err(Error::at(ErrorKind::Transient, action, place).because(error)),
    }
}

/// What a caller can do about a failed system call.
///
/// A full disk may be emptied without us. EIO is transient: on NFS and FUSE it is a time-out as often as a bad block, and calling
/// it corrupt would report damage that nobody has proven. ENOENT gets here only where it is about the root, see `files`.
fn kind_of(error: &io::Error) -> ErrorKind {
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::ACCESS | Errno::PERM) => ErrorKind::Denied,
        Some(Errno::NOSPC | Errno::DQUOT) => ErrorKind::Full,
        Some(
            Errno::ROFS
            | Errno::NOENT
            | Errno::NOTDIR
            | Errno::ISDIR
            | Errno::LOOP
            | Errno::NAMETOOLONG
            | Errno::INVAL
            | Errno::OPNOTSUPP
            | Errno::NOSYS
            | Errno::FBIG
            | Errno::NODEV
            | Errno::XDEV,
        ) => ErrorKind::Unusable,
        Some(_) => ErrorKind::Transient,
        None if error.kind() == io::ErrorKind::InvalidInput => ErrorKind::Unusable,
        None if error.kind() == io::ErrorKind::UnexpectedEof => ErrorKind::Corrupt,
        None => ErrorKind::Transient,
    }
}

/// The folder part of a path relative to the root; empty for the root itself.
fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(folder, _)| folder)
}

/// The path by which the root's handle knows a folder.
fn relative(folder: &str) -> &Path {
    Path::new(if folder.is_empty() { "." } else { folder })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_full_disk_is_called_so_with_the_path() {
        let error = blocking::<()>("put", "/srv/r/a.zst", || Err(Errno::NOSPC.into())).await.unwrap_err();
        assert_eq!(format!("{error:#}"), "put /srv/r/a.zst: the disk is full: No space left on device (os error 28)");
        assert!(error.is_of_a_directory() && error.kind().is_transient());
    }

    #[test]
    fn failures_are_named_after_what_helps() {
        for (errno, kind) in [
            (Errno::NOSPC, ErrorKind::Full),
            (Errno::DQUOT, ErrorKind::Full),
            (Errno::IO, ErrorKind::Transient),
            (Errno::MFILE, ErrorKind::Transient),
            (Errno::ROFS, ErrorKind::Unusable),
            (Errno::NOENT, ErrorKind::Unusable),
            (Errno::ACCESS, ErrorKind::Denied),
            (Errno::PERM, ErrorKind::Denied),
        ] {
            assert_eq!(kind_of(&errno.into()), kind, "{errno:?}");
        }
    }
}
