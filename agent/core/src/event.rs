//! What WAL records say that a recovery can stop at, or that a plan has to know.
//!
//! Made from [records](crate::record) by the decoder; the search for a recovery target reads them.

use crate::identity::TimelineId;
use crate::lsn::Lsn;
use crate::record::{Content, Record};
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
        /// `wal_level` at that moment. 17 and later.
        wal_level: Option<u32>,
        /// The server's clock when it began, cut to the second.
        time: Option<PgTimestamp>,
    },
    /// Where an online checkpoint's replay will begin (17 and later).
    CheckpointRedo {
        /// 0 minimal, 1 replica, 2 logical.
        wal_level: u32,
    },
    /// A promotion: the first record of a new timeline.
    EndOfRecovery {
        /// The new timeline.
        timeline: TimelineId,
        /// The timeline it grew out of.
        previous: TimelineId,
        /// The server's clock at that moment.
        time: PgTimestamp,
        /// `wal_level` from here on. 17 and later.
        wal_level: Option<u32>,
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

impl WalEvent {
    /// The event of a record; `None` if it is of no interest here.
    pub fn of(record: &Record<'_>) -> Option<Self> {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let kind = match record.content() {
            Content::Commit(end) => WalEventKind::Commit { xid: end.xid, time: end.time },
            Content::Abort(end) => WalEventKind::Abort { xid: end.xid, time: end.time },
            Content::RestorePoint(point) => WalEventKind::RestorePoint { name: text(point.name), time: point.time },
            Content::BackupEnd { start } => WalEventKind::BackupEnd { start },
            Content::Checkpoint(point) => WalEventKind::Checkpoint {
                redo: point.redo,
                timeline: point.timeline,
                shutdown: point.shutdown,
                wal_level: point.wal_level,
                time: PgTimestamp::from_unix_seconds(point.unix_time),
            },
            Content::CheckpointRedo { wal_level } => WalEventKind::CheckpointRedo { wal_level },
            Content::EndOfRecovery(end) => WalEventKind::EndOfRecovery {
                timeline: end.timeline,
                previous: end.previous_timeline,
                time: end.time,
                wal_level: end.wal_level,
            },
            Content::Switch => WalEventKind::Switch,
            Content::TablespaceCreated(space) => WalEventKind::TablespaceCreated { oid: space.tablespace, location: text(space.location) },
            Content::ParameterChange { wal_level } => WalEventKind::ParameterChange { wal_level },
            _ => return None,
        };
        Some(Self { start: record.start, end: record.end, kind })
    }
}
