//! What WAL records say that a recovery can stop at, or that a plan has to know.
//!
//! The decoder makes events from bytes; the search for a recovery target reads them.

use crate::identity::TimelineId;
use crate::lsn::Lsn;
use crate::time::PgTimestamp;

/// A record of interest.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WalEvent {
    /// Where the record begins: what PostgreSQL compares with `recovery_target_lsn`.
    pub start: Lsn,
    /// Where the following record may begin: everything before is replayed once this record is.
    pub end: Lsn,
    /// What it says.
    pub kind: WalEventKind,
}

/// What a record of interest says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum WalEventKind {
    /// A transaction committed (also `COMMIT PREPARED`, then with the prepared transaction's xid).
    Commit {
        /// The transaction.
        xid: u32,
        /// The server's clock at that moment; not monotonic in LSN order.
        time: PgTimestamp,
    },
    /// A transaction rolled back (also `ROLLBACK PREPARED`).
    Abort {
        /// The transaction.
        xid: u32,
        /// The server's clock at that moment.
        time: PgTimestamp,
    },
    /// `pg_create_restore_point`.
    RestorePoint {
        /// The name given; the first of a name is where PostgreSQL stops.
        name: String,
        /// The server's clock at that moment.
        time: PgTimestamp,
    },
    /// A base backup that began at `start` ended: from here on a restore of it is consistent.
    BackupEnd {
        /// The backup's start LSN.
        start: Lsn,
    },
    /// A checkpoint, of a shutdown or online.
    Checkpoint {
        /// Replay from here gives the state at the checkpoint.
        redo: Lsn,
        /// The timeline it was made on.
        timeline: TimelineId,
        /// Whether the server was shutting down.
        shutdown: bool,
    },
    /// A promotion: the first record of a new timeline.
    EndOfRecovery {
        /// The new timeline.
        timeline: TimelineId,
        /// The timeline it grew out of.
        previous: TimelineId,
        /// The server's clock at that moment.
        time: PgTimestamp,
    },
    /// `pg_switch_wal`: the rest of the segment is unused.
    Switch,
    /// `CREATE TABLESPACE`. Replay makes the same tablespace at the same place, wherever the data directory is.
    TablespaceCreated {
        /// The tablespace.
        oid: u32,
        /// The absolute path, or empty for a tablespace inside the data directory. WAL does not tell its encoding; what is not UTF-8 is
        /// replaced by U+FFFD.
        location: String,
    },
    /// Any other record; only where the decoder was asked for every one.
    Other,
    /// Settings that recovery must know changed, `wal_level` among them.
    ParameterChange {
        /// 0 minimal, 1 replica, 2 logical.
        wal_level: u32,
    },
}
