//! Which local files may be touched for whoever speaks on the socket: those directly in the `pg_wal` of a data directory of this cluster.
//!
//! The shims send whole paths, and the agent may be allowed more than the request should be. So a path must end in `pg_wal/NAME`, with
//! a NAME that PostgreSQL uses, and the directory around `pg_wal` must hold this cluster's `global/pg_control`. Several data directories,
//! such as a standby's on the same host, may share one agent. `pg_wal` itself may be a symbolic link (`initdb --waldir`); the file may not.
//!
//! What is checked stays true only against mistakes, not against the user who owns the directory: he can do all this himself.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};

use rustix::fs::OFlags;
use rustix::io::Errno;
use walkeep_core::{SystemIdentifier, WalFileName};

/// Where PostgreSQL lets restore_command put things.
const SCRATCH: [&str; 2] = ["RECOVERYXLOG", "RECOVERYHISTORY"];

/// Why a path is refused.
#[derive(Debug, thiserror::Error)]
pub enum WalPathError {
    /// Relative, or with `..`.
    #[error("{} is not an absolute path without ..", .0.display())]
    NotAbsolute(PathBuf),
    /// Somewhere else.
    #[error("{} does not lie directly in a pg_wal directory", .0.display())]
    NotInPgWal(PathBuf),
    /// No name that PostgreSQL uses here.
    #[error("{} does not have the name of {expected}", path.display())]
    WrongName {
        /// The path.
        path: PathBuf,
        /// What may be there.
        expected: &'static str,
    },
    /// A segment that the server has not finished: what it holds now is not what it will hold.
    #[error("{} is not finished: the server has marked it neither .ready nor .done in archive_status", .0.display())]
    NotFinished(PathBuf),
    /// A symbolic link, a directory, a device.
    #[error("{} is not a regular file", .0.display())]
    NotAFile(PathBuf),
    /// A file of that name is there, and it is WAL.
    #[error("{} exists and is not overwritten", .0.display())]
    Exists(PathBuf),
    /// The data directory of another cluster.
    #[error("{} belongs to the cluster with system identifier {found}; this agent serves {expected}", directory.display())]
    OtherCluster {
        /// The data directory.
        directory: PathBuf,
        /// Whose it is.
        found: SystemIdentifier,
        /// Whose it must be.
        expected: SystemIdentifier,
    },
    /// Nothing tells whose directory it is: `global/pg_control` cannot be read.
    #[error("cannot tell which cluster it belongs to: {}: {cause}", control_file.display())]
    UnknownCluster {
        /// The control file.
        control_file: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// The file, or `pg_wal`, cannot be read.
    #[error("cannot read {}: {cause}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
}

impl WalPathError {
    /// Whether the same path will be refused again, whatever becomes of the disk.
    pub fn is_permanent(&self) -> bool {
        match self {
            Self::NotAbsolute(_) | Self::NotInPgWal(_) | Self::WrongName { .. } | Self::OtherCluster { .. } => true,
            Self::NotFinished(_) | Self::NotAFile(_) | Self::Exists(_) | Self::UnknownCluster { .. } | Self::Unreadable { .. } => false,
        }
    }

    /// Whether the file is simply not there.
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Unreadable { cause, .. } if cause.kind() == ErrorKind::NotFound)
    }
}

/// A file that may be archived, opened: what is read is what was checked.
#[derive(Debug)]
pub struct Source {
    /// Its name.
    pub name: WalFileName,
    /// The file, open for reading at its start.
    pub file: File,
    /// Its length when it was opened.
    pub bytes: u64,
    /// Where it was opened.
    pub path: PathBuf,
    /// Which file it is.
    pub stamp: Stamp,
}

/// A file's inode, length and times: as long as they are the same, so is its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    inode: (u64, u64),
    length: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    /// Of what an open file is now.
    pub fn of(found: &std::fs::Metadata) -> Self {
        Self {
            inode: (found.dev(), found.ino()),
            length: found.len(),
            modified: (found.mtime(), found.mtime_nsec()),
            changed: (found.ctime(), found.ctime_nsec()),
        }
    }
}

/// Whether PostgreSQL has marked the segment at `path` as one to be archived.
pub fn is_ready(path: &Path) -> bool {
    Place::of(path).is_ok_and(|place| place.is_marked(".ready"))
}

/// Opens the file at `path` if it may be archived for the cluster `system`.
pub fn check_source(path: &Path, system: SystemIdentifier) -> Result<Source, WalPathError> {
    let place = Place::of(path)?;
    let expected = "a file that PostgreSQL archives";
    let name = place.wal_name().ok_or_else(|| WalPathError::WrongName { path: path.to_owned(), expected })?;
    // First, or a file that is not there would be called another cluster's, or unfinished.
    if let Err(cause) = path.symlink_metadata()
        && cause.kind() == ErrorKind::NotFound
    {
        return Err(WalPathError::Unreadable { path: path.to_owned(), cause });
    }
    place.check_cluster(system)?;
    if matches!(name, WalFileName::Segment(_)) && !place.is_marked_finished() {
        return Err(WalPathError::NotFinished(path.to_owned()));
    }
    let unreadable = |cause| WalPathError::Unreadable { path: path.to_owned(), cause };
    // Without NONBLOCK a named pipe would hold us until somebody writes to it.
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(|cause| match Errno::from_io_error(&cause) {
        // What NOFOLLOW says to a link, and NONBLOCK to a socket.
        Some(Errno::LOOP | Errno::NXIO) => WalPathError::NotAFile(path.to_owned()),
        _ => unreadable(cause),
    })?;
    let found = file.metadata().map_err(unreadable)?;
    if !found.is_file() {
        return Err(WalPathError::NotAFile(path.to_owned()));
    }
    Ok(Source { name, file, bytes: found.len(), path: path.to_owned(), stamp: Stamp::of(&found) })
}

/// Whether the file at `path` is PostgreSQL's own scratch.
pub fn is_scratch(path: &Path) -> bool {
    SCRATCH.iter().any(|name| path.file_name() == Some(OsStr::new(name)))
}

/// Checks that a file may be put at `path` in the cluster `system`. PostgreSQL's scratch files are replaced; with the name of WAL
/// (pg_rewind fetches so) nothing may be there yet.
pub fn check_destination(path: &Path, system: SystemIdentifier) -> Result<(), WalPathError> {
    let place = Place::of(path)?;
    let scratch = is_scratch(path);
    if !scratch && place.wal_name().is_none() {
        let expected = "a file that PostgreSQL restores: RECOVERYXLOG, RECOVERYHISTORY or WAL";
        return Err(WalPathError::WrongName { path: path.to_owned(), expected });
    }
    place.check_cluster(system)?;
    match path.symlink_metadata().map(|found| found.is_file()) {
        Ok(true) if scratch => Ok(()),
        Ok(true) => Err(WalPathError::Exists(path.to_owned())),
        Ok(false) => Err(WalPathError::NotAFile(path.to_owned())),
        Err(cause) if cause.kind() == ErrorKind::NotFound => check_directory(place.pg_wal),
        Err(cause) => Err(WalPathError::Unreadable { path: path.to_owned(), cause }),
    }
}

/// A file that is to appear needs its directory.
fn check_directory(pg_wal: &Path) -> Result<(), WalPathError> {
    match std::fs::metadata(pg_wal) {
        Ok(found) if found.is_dir() => Ok(()),
        Ok(_) => Err(WalPathError::NotInPgWal(pg_wal.to_owned())),
        Err(cause) => Err(WalPathError::Unreadable { path: pg_wal.to_owned(), cause }),
    }
}

/// A path taken apart, by its text only.
struct Place<'a> {
    data_directory: &'a Path,
    pg_wal: &'a Path,
    name: &'a OsStr,
}

impl<'a> Place<'a> {
    fn of(path: &'a Path) -> Result<Self, WalPathError> {
        let plain = |component| matches!(component, Component::RootDir | Component::Normal(_));
        if !path.is_absolute() || !path.components().all(plain) {
            return Err(WalPathError::NotAbsolute(path.to_owned()));
        }
        let elsewhere = || WalPathError::NotInPgWal(path.to_owned());
        let name = path.file_name().ok_or_else(elsewhere)?;
        let pg_wal = path.parent().filter(|parent| parent.file_name() == Some(OsStr::new("pg_wal"))).ok_or_else(elsewhere)?;
        let data_directory = pg_wal.parent().ok_or_else(elsewhere)?;
        Ok(Self { data_directory, pg_wal, name })
    }

    fn wal_name(&self) -> Option<WalFileName> {
        self.name.to_str().and_then(|name| name.parse().ok())
    }

    /// PostgreSQL marks a segment before it offers it, and keeps the mark until the file is recycled.
    fn is_marked_finished(&self) -> bool {
        self.is_marked(".ready") || self.is_marked(".done")
    }

    fn is_marked(&self, suffix: &str) -> bool {
        let mut mark = self.name.to_owned();
        mark.push(suffix);
        self.pg_wal.join("archive_status").join(mark).exists()
    }

    /// The control file begins with the system identifier, in the byte order of the server's machine, which is ours.
    fn check_cluster(&self, expected: SystemIdentifier) -> Result<(), WalPathError> {
        let control_file = self.data_directory.join("global/pg_control");
        let mut bytes = [0; 8];
        let read = File::open(&control_file).and_then(|mut file| file.read_exact(&mut bytes));
        read.map_err(|cause| WalPathError::UnknownCluster { control_file, cause })?;
        let found = SystemIdentifier::new(u64::from_ne_bytes(bytes));
        if found != expected {
            return Err(WalPathError::OtherCluster { directory: self.data_directory.to_owned(), found, expected });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    const SEGMENT: &str = "000000010000000000000003";
    const SYSTEM: SystemIdentifier = SystemIdentifier::new(0x6ABC_DEF0_1234_5678);

    /// A data directory as far as this module looks.
    struct Cluster(tempfile::TempDir);

    impl Cluster {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            fs::create_dir_all(directory.path().join("data/global")).unwrap();
            fs::create_dir_all(directory.path().join("data/pg_wal/archive_status")).unwrap();
            fs::write(directory.path().join(format!("data/pg_wal/archive_status/{SEGMENT}.ready")), "").unwrap();
            fs::write(directory.path().join("data/global/pg_control"), SYSTEM.get().to_ne_bytes()).unwrap();
            fs::write(directory.path().join("secret"), "secret").unwrap();
            Self(directory)
        }

        fn path(&self, path: &str) -> PathBuf {
            self.0.path().join(path)
        }

        fn wal(&self, name: &str) -> PathBuf {
            self.path("data/pg_wal").join(name)
        }

        fn with_segment() -> Self {
            let cluster = Self::new();
            fs::write(cluster.wal(SEGMENT), "wal").unwrap();
            cluster
        }
    }

    #[test]
    fn archives_what_postgresql_offers() {
        let cluster = Cluster::with_segment();
        let mut source = check_source(&cluster.wal(SEGMENT), SYSTEM).unwrap();
        let mut read = String::new();
        source.file.read_to_string(&mut read).unwrap();
        assert_eq!((source.name.to_string().as_str(), source.bytes, read.as_str()), (SEGMENT, 3, "wal"));
        let missing = check_source(&cluster.wal("00000002.history"), SYSTEM).unwrap_err();
        assert!(missing.is_missing(), "{missing}");
    }

    #[test]
    fn pg_wal_may_be_a_link() {
        let cluster = Cluster::with_segment();
        fs::rename(cluster.path("data/pg_wal"), cluster.path("wal_disk")).unwrap();
        symlink(cluster.path("wal_disk"), cluster.path("data/pg_wal")).unwrap();
        check_source(&cluster.wal(SEGMENT), SYSTEM).unwrap();
        check_destination(&cluster.wal("RECOVERYXLOG"), SYSTEM).unwrap();
    }

    #[test]
    fn refuses_every_other_source() {
        let cluster = Cluster::with_segment();
        symlink(cluster.path("secret"), cluster.wal("000000010000000000000004")).unwrap();
        fs::create_dir(cluster.wal("000000010000000000000005")).unwrap();
        fs::create_dir(cluster.wal("pg_wal")).unwrap();
        fs::write(cluster.wal("pg_wal").join(SEGMENT), "wal").unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            cluster.wal("000000010000000000000006"),
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        for path in [
            PathBuf::from("/etc/shadow"),
            PathBuf::from("/"),
            PathBuf::new(),
            PathBuf::from(format!("pg_wal/{SEGMENT}")),
            cluster.path("secret"),
            cluster.wal("RECOVERYXLOG"),
            cluster.wal("../../secret"),
            cluster.wal(&format!("../pg_wal/{SEGMENT}")),
            cluster.wal(&format!("archive_status/{SEGMENT}")),
            cluster.wal(&format!("pg_wal/{SEGMENT}")),
            cluster.wal("000000010000000000000004"),
            cluster.wal("000000010000000000000005"),
            cluster.wal("000000010000000000000006"),
            cluster.wal(""),
        ] {
            let error = check_source(&path, SYSTEM).expect_err(&path.display().to_string());
            assert!(!error.is_missing(), "{}: {error}", path.display());
        }
        assert_eq!(fs::read(cluster.path("secret")).unwrap(), b"secret");
    }

    #[test]
    fn refuses_another_cluster() {
        let cluster = Cluster::with_segment();
        let other = SystemIdentifier::new(7);
        assert!(matches!(check_source(&cluster.wal(SEGMENT), other), Err(WalPathError::OtherCluster { .. })));
        assert!(matches!(check_destination(&cluster.wal("RECOVERYXLOG"), other), Err(WalPathError::OtherCluster { .. })));
        fs::write(cluster.path("data/global/pg_control"), "short").unwrap();
        assert!(matches!(check_source(&cluster.wal(SEGMENT), SYSTEM), Err(WalPathError::UnknownCluster { .. })));
    }

    #[test]
    fn fetches_only_to_where_postgresql_wants_it() {
        let cluster = Cluster::with_segment();
        fs::write(cluster.wal("RECOVERYXLOG"), "an older one").unwrap();
        for name in ["RECOVERYXLOG", "RECOVERYHISTORY", "000000010000000000000009"] {
            check_destination(&cluster.wal(name), SYSTEM).expect(name);
        }
        fs::remove_file(cluster.wal("RECOVERYXLOG")).unwrap();
        symlink(cluster.path("secret"), cluster.wal("RECOVERYXLOG")).unwrap();
        symlink(cluster.path("nowhere"), cluster.wal("000000010000000000000008")).unwrap();
        fs::create_dir(cluster.wal("RECOVERYHISTORY")).unwrap();
        for path in [
            PathBuf::from("/etc/shadow"),
            PathBuf::from("pg_wal/RECOVERYXLOG"),
            cluster.path("data/postgresql.conf"),
            cluster.path("data/RECOVERYXLOG"),
            cluster.wal("postgresql.conf"),
            cluster.wal("../postgresql.conf"),
            cluster.wal("archive_status/RECOVERYXLOG"),
            cluster.wal("RECOVERYXLOG"),
            cluster.wal("RECOVERYHISTORY"),
            cluster.wal("000000010000000000000008"),
            cluster.wal(SEGMENT),
        ] {
            assert!(check_destination(&path, SYSTEM).is_err(), "{}", path.display());
        }
    }
}
