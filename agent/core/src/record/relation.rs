//! Which file of the data directory a record speaks of (`relfilelocator.h`, `relpath.h`).

use std::fmt;

use crate::le::u32_at;

use super::list::Element;

/// An object's number in its catalog; PostgreSQL's `Oid`.
pub type Oid = u32;

/// The files of a relation: those of all its forks. Not the relation itself, which gets other files when it is rewritten.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RelFileLocator {
    /// The tablespace; 1663 is `pg_default`, 1664 `pg_global`.
    pub tablespace: Oid,
    /// The database; 0 for relations that all databases share.
    pub database: Oid,
    /// The file's number. That of a new table is its oid, until it is rewritten.
    pub number: u32,
}

impl RelFileLocator {
    /// Bytes in a record.
    pub(super) const SIZE: usize = 12;

    pub(super) fn read_at(bytes: &[u8], offset: usize) -> Option<Self> {
        Self::read(bytes.get(offset..)?.first_chunk::<{ Self::SIZE }>()?)
    }
}

impl Element for RelFileLocator {
    fn read(bytes: &[u8]) -> Option<Self> {
        Some(Self { tablespace: u32_at(bytes, 0)?, database: u32_at(bytes, 4)?, number: u32_at(bytes, 8)? })
    }
}

impl fmt::Display for RelFileLocator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.tablespace, self.database, self.number)
    }
}

/// Which of a relation's files.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Fork {
    /// The rows, or the index.
    Main,
    /// Where there is room. WAL does not tell all of its changes.
    FreeSpaceMap,
    /// Which pages everybody sees. WAL of most minor versions does not refer to its blocks where bits are cleared.
    VisibilityMap,
    /// What an unlogged relation is after a crash.
    Init,
}

impl Fork {
    pub(super) fn of_number(number: u32) -> Option<Self> {
        Some(match number {
            0 => Self::Main,
            1 => Self::FreeSpaceMap,
            2 => Self::VisibilityMap,
            3 => Self::Init,
            _ => return None,
        })
    }
}

impl fmt::Display for Fork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Main => "main",
            Self::FreeSpaceMap => "fsm",
            Self::VisibilityMap => "vm",
            Self::Init => "init",
        })
    }
}
