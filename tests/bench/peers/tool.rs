//! The tools under comparison: what each can do, and by which command.

use std::path::Path;
use std::process::Command;
use std::str::FromStr;

use anyhow::Result;
use walkeep_tests::{Bucket, Cluster, S3Server, Scratch, cache, process};

use crate::copies::{BaseBackup, Copy, Nothing, Rclone};
use crate::peer::Peer;
use crate::walkeep::Ours;

/// Where a repository lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreKind {
    /// A bucket, by TLS.
    S3,
    /// A local folder.
    Directory,
}

/// A tool, in one of its variants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Ours.
    Walkeep,
    /// With this compression.
    PgBackRest(&'static str),
    /// Plain format.
    BaseBackup,
    /// A plain copy to S3 by one process.
    Rclone,
    /// A plain copy.
    Copy,
    /// Starting a process, nothing else.
    Nothing,
}

/// The tool and variant that others are compared with.
pub const REFERENCE: Kind = Kind::PgBackRest("zst");

const NAMES: [(&str, Kind); 7] = [
    ("walkeep", Kind::Walkeep),
    ("pgbackrest:zst", REFERENCE),
    ("pgbackrest:lz4", Kind::PgBackRest("lz4")),
    ("pg_basebackup", Kind::BaseBackup),
    ("rclone", Kind::Rclone),
    ("cp", Kind::Copy),
    ("true", Kind::Nothing),
];

impl Kind {
    /// As it is asked for and shown.
    pub fn name(self) -> &'static str {
        NAMES.iter().find(|(_, kind)| *kind == self).map_or("?", |(name, _)| name)
    }

    /// The stores it can use.
    pub fn stores(self) -> &'static [StoreKind] {
        match self {
            Self::Walkeep | Self::PgBackRest(_) => &[StoreKind::S3, StoreKind::Directory],
            Self::Rclone => &[StoreKind::S3],
            Self::BaseBackup | Self::Copy | Self::Nothing => &[StoreKind::Directory],
        }
    }
}

impl FromStr for Kind {
    type Err = ();

    fn from_str(name: &str) -> Result<Self, ()> {
        NAMES.iter().find(|(known, _)| *known == name).map(|(_, kind)| *kind).ok_or(())
    }
}

impl StoreKind {
    /// As it is asked for and shown.
    pub fn name(self) -> &'static str {
        match self {
            Self::S3 => "s3",
            Self::Directory => "dir",
        }
    }
}

impl FromStr for StoreKind {
    type Err = ();

    fn from_str(name: &str) -> Result<Self, ()> {
        [Self::S3, Self::Directory].into_iter().find(|kind| kind.name() == name).ok_or(())
    }
}

/// An empty place for a repository; gone when dropped.
#[derive(Debug)]
pub enum Place {
    /// A bucket of the test server.
    Bucket(Bucket),
    /// A folder.
    Folder(Scratch),
}

impl Place {
    /// A new one.
    pub fn new(kind: StoreKind) -> Self {
        match kind {
            StoreKind::S3 => Self::Bucket(S3Server::get().bucket()),
            StoreKind::Directory => {
                let scratch = Scratch::new();
                scratch.dir("repo");
                Self::Folder(scratch)
            }
        }
    }

    /// Bytes of everything in it.
    pub fn bytes(&self) -> u64 {
        match self {
            Self::Bucket(bucket) => bucket.list("").iter().map(|(_, size)| size).sum(),
            Self::Folder(scratch) => bytes_below(&scratch.join("repo")),
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Self::Bucket(bucket) = self {
            // Some gigabytes each: they would fill the disk.
            bucket.remove();
        }
    }
}

fn bytes_below(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let size = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(found) if found.is_dir() => bytes_below(&entry.path()),
        Ok(found) => found.len(),
        Err(_) => 0,
    };
    entries.map(size).sum()
}

/// A tool with an empty repository, ready to be told what to do. Commands are a shell's, with PostgreSQL's `%p` and `%f`; what it cannot do has none.
pub trait Tool {
    /// Its repository.
    fn place(&self) -> &Place;

    /// archive_command.
    fn archive(&self) -> Option<String> {
        None
    }

    /// restore_command.
    fn fetch(&self) -> Option<String> {
        None
    }

    /// A full backup of the server it was made for.
    fn full(&self) -> Option<String> {
        None
    }

    /// What a further backup costs.
    fn incremental(&self) -> Option<String> {
        None
    }

    /// The newest backup into an empty folder.
    fn restore(&self, _to: &Path) -> Option<String> {
        None
    }

    /// The newest backup into a folder that has most of it.
    fn delta(&self, _to: &Path) -> Option<String> {
        None
    }

    /// Variables of every command.
    fn environment(&self) -> Vec<(String, String)> {
        Vec::new()
    }

    /// A process of it that runs all the time.
    fn beside(&self) -> Option<u32> {
        None
    }

    /// Forgets what it fetched ahead.
    fn fetch_anew(&mut self) {}

    /// The slot through which it is sent WAL all the time.
    fn slot(&self) -> Option<&str> {
        None
    }

    /// Stands still while others are measured, or goes on.
    fn hold(&self, _still: bool) {}
}

/// The tool for a data directory, whose server runs if it is given.
pub fn prepare(kind: Kind, store: StoreKind, data: &Path, server: Option<&Cluster>) -> Box<dyn Tool> {
    let place = Place::new(store);
    match kind {
        Kind::Walkeep => Box::new(Ours::new(place, data, server)),
        Kind::PgBackRest(compression) => Box::new(Peer::new(place, data, server, compression)),
        Kind::BaseBackup => Box::new(BaseBackup::new(place, server)),
        Kind::Rclone => Box::new(Rclone::new(place, data)),
        Kind::Copy => Box::new(Copy::new(place, data)),
        Kind::Nothing => Box::new(Nothing::new(place)),
    }
}

/// Whether the tool is here; a line that says so where it is not.
pub fn is_installed(kind: Kind) -> bool {
    let program = match kind {
        Kind::PgBackRest(_) => "pgbackrest".into(),
        Kind::Rclone => rclone(),
        _ => return true,
    };
    let there = process::run(Command::new(&program).arg("version")).is_ok();
    if !there {
        println!("SKIPPED {}: not installed (tests/setup.sh --bench)", kind.name());
    }
    there
}

/// Where tests/setup.sh puts it.
pub fn rclone() -> std::path::PathBuf {
    cache().join("peers/bin/rclone")
}
