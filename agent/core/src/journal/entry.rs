//! What an entry of the log is.

use serde::Serialize;

use crate::identity::TimelineId;
use crate::lsn::Lsn;
use crate::record::{Oid, RelFileLocator};
use crate::time::PgTimestamp;

/// One end of a window.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Edge {
    /// By the server's clock.
    Time(PgTimestamp),
    /// By position.
    Lsn(Lsn),
}

/// From when to when the log is asked for. A position at the end does not belong to it, a time does.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Window {
    /// The beginning.
    pub from: Option<Edge>,
    /// The end.
    pub to: Option<Edge>,
}

impl Window {
    /// Whether a record at `lsn` of this time belongs to it. What has no time belongs to every time.
    pub fn contains(&self, lsn: Lsn, time: Option<PgTimestamp>) -> bool {
        let after = match self.from {
            Some(Edge::Lsn(from)) => lsn >= from,
            Some(Edge::Time(from)) => time.is_none_or(|time| time >= from),
            None => true,
        };
        let before = match self.to {
            Some(Edge::Lsn(to)) => lsn < to,
            Some(Edge::Time(to)) => time.is_none_or(|time| time <= to),
            None => true,
        };
        after && before
    }
}

/// Something that happened.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Entry {
    /// Where its record begins: of what a transaction did, the commit's. Stopping a recovery before it is stopping before it happened.
    pub lsn: Lsn,
    /// Where its record ends.
    pub end: Lsn,
    /// The server's clock; of what has none, that of the entry or the transaction before.
    pub time: Option<PgTimestamp>,
    /// The transaction.
    pub xid: Option<u32>,
    /// What it was.
    #[serde(flatten)]
    pub what: Happening,
}

/// What happened.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(tag = "what", rename_all = "snake_case")]
pub enum Happening {
    /// `pg_create_restore_point`.
    RestorePoint {
        /// Its name.
        name: String,
    },
    /// The server was shut down; or a crash recovery ended.
    ShutdownCheckpoint,
    /// A promotion.
    TimelineSwitch {
        /// The timeline that was left.
        from: TimelineId,
        /// The timeline from here on.
        to: TimelineId,
    },
    /// `wal_level` is another, or is seen for the first time.
    WalLevel {
        /// What it was, as far as that was read.
        from: Option<&'static str>,
        /// What it is.
        to: &'static str,
    },
    /// A transaction removed files of relations, and not only to rewrite these.
    Removed {
        /// Files of dropped relations.
        dropped: Vec<DroppedFile>,
        /// Files of tables that were truncated, and of their TOAST tables.
        truncated: Vec<RelationFile>,
        /// Files of which the WAL alone does not tell whether their relation was dropped, truncated or rewritten.
        unclear: Vec<RelationFile>,
        /// How many files were removed because their relations have others now.
        rewritten: u64,
    },
    /// `CREATE DATABASE`.
    DatabaseCreated {
        /// The database.
        database: Oid,
        /// Its default tablespace.
        tablespace: Oid,
        /// Whether the transaction committed.
        committed: bool,
    },
    /// `DROP DATABASE`. The record itself removes the files at replay, so it is its position that stands in the entry, not the commit's; and
    /// where the server marked the database as one that is being dropped before, after which nobody can connect to it, that record's.
    DatabaseDropped {
        /// The database.
        database: Oid,
        /// The tablespaces it had files in.
        tablespaces: Vec<Oid>,
        /// Whether the transaction committed.
        committed: bool,
    },
    /// `ALTER DATABASE SET TABLESPACE`, as one of its two records tells.
    DatabaseMoved {
        /// The database.
        database: Oid,
        /// The tablespaces it left.
        tablespaces: Vec<Oid>,
        /// Whether the transaction committed.
        committed: bool,
    },
    /// A transaction that wrote much WAL.
    BigTransaction {
        /// Bytes of its records, full page images among them.
        wal_bytes: u64,
        /// Subtransactions that ended with it.
        subtransactions: u64,
        /// Whether it committed.
        committed: bool,
    },
    /// WAL is missing.
    Hole,
}

impl Happening {
    /// How many files it names.
    pub(super) fn files(&self) -> usize {
        match self {
            Self::Removed { dropped, truncated, unclear, .. } => dropped.len() + truncated.len() + unclear.len(),
            _ => 0,
        }
    }
}

/// The files of a relation, by number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
pub struct RelationFile {
    /// The database; 0 for relations that all databases share.
    pub database: Oid,
    /// The tablespace; 1663 is `pg_default`.
    pub tablespace: Oid,
    /// The number of its files, `pg_class.relfilenode`.
    pub number: u32,
}

impl From<RelFileLocator> for RelationFile {
    fn from(file: RelFileLocator) -> Self {
        Self { database: file.database, tablespace: file.tablespace, number: file.number }
    }
}

/// Files of a dropped relation.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct DroppedFile {
    /// The files.
    #[serde(flatten)]
    pub file: RelationFile,
    /// Whether the relation had a row type and an array type, as tables and materialized views do, and indexes, sequences and TOAST tables
    /// do not. `None` where the WAL does not tell.
    pub table: Option<bool>,
}

/// A relation got other files: it was rewritten or truncated.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct Move {
    /// Where the transaction's commit record begins.
    pub lsn: Lsn,
    /// The files it had.
    pub old: RelationFile,
    /// The files it has from then on.
    pub new: RelationFile,
}
