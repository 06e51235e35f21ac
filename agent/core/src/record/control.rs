//! Records about the WAL itself: checkpoints, restore points, promotions, settings (`pg_control.h`, `xlog_internal.h`).

use crate::identity::{MajorVersion, TimelineId};
use crate::le::{i64_at, u32_at, u64_at};
use crate::lsn::Lsn;
use crate::time::PgTimestamp;

/// A checkpoint (`CheckPoint`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Checkpoint {
    /// Replay from here gives the state at the checkpoint.
    pub redo: Lsn,
    /// The timeline it was made on.
    pub timeline: TimelineId,
    /// The timeline before, where this is a timeline's first record; else the same.
    pub previous_timeline: TimelineId,
    /// Whether the server was shutting down.
    pub shutdown: bool,
    /// `wal_level` at that moment: 0 minimal, 1 replica, 2 logical. 17 and later.
    pub wal_level: Option<u32>,
    /// The next transaction's number, with its epoch in the upper half.
    pub next_xid: u64,
    /// Seconds since 1970 by the server's clock when it began.
    pub unix_time: i64,
}

impl Checkpoint {
    pub(super) fn parse(data: &[u8], shutdown: bool, version: MajorVersion) -> Option<Self> {
        Some(Self {
            redo: Lsn::new(u64_at(data, 0)?),
            timeline: timeline_at(data, 8)?,
            previous_timeline: timeline_at(data, 12)?,
            shutdown,
            // In what was padding before.
            wal_level: if has_wal_level(version) { Some(u32_at(data, 20)?) } else { None },
            next_xid: u64_at(data, 24)?,
            unix_time: i64_at(data, 64)?,
        })
    }
}

/// The first record of a timeline (`xl_end_of_recovery`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EndOfRecovery {
    /// The new timeline.
    pub timeline: TimelineId,
    /// The timeline it grew out of.
    pub previous_timeline: TimelineId,
    /// The server's clock at that moment.
    pub time: PgTimestamp,
    /// `wal_level` from here on. 17 and later.
    pub wal_level: Option<u32>,
}

impl EndOfRecovery {
    pub(super) fn parse(data: &[u8], version: MajorVersion) -> Option<Self> {
        Some(Self {
            time: time_at(data, 0)?,
            timeline: timeline_at(data, 8)?,
            previous_timeline: timeline_at(data, 12)?,
            wal_level: if has_wal_level(version) { Some(u32_at(data, 16)?) } else { None },
        })
    }
}

/// `pg_create_restore_point` (`xl_restore_point`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RestorePoint<'a> {
    /// The name given, in the encoding of the database it was made from, which WAL does not tell.
    pub name: &'a [u8],
    /// The server's clock at that moment.
    pub time: PgTimestamp,
}

impl<'a> RestorePoint<'a> {
    pub(super) fn parse(data: &'a [u8]) -> Option<Self> {
        let name = data.get(8..8 + 64)?.split(|&byte| byte == 0).next()?;
        Some(Self { name, time: time_at(data, 0)? })
    }
}

/// A record whose end was lost in a crash will never be finished (`xl_overwrite_contrecord`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OverwriteContrecord {
    /// Where the void record begins.
    pub overwritten: Lsn,
    /// The server's clock when it was found.
    pub time: PgTimestamp,
}

impl OverwriteContrecord {
    pub(super) fn parse(data: &[u8]) -> Option<Self> {
        Some(Self { overwritten: Lsn::new(u64_at(data, 0)?), time: time_at(data, 8)? })
    }
}

fn has_wal_level(version: MajorVersion) -> bool {
    version.get() >= 17
}

fn time_at(data: &[u8], offset: usize) -> Option<PgTimestamp> {
    i64_at(data, offset).map(PgTimestamp::from_micros)
}

fn timeline_at(data: &[u8], offset: usize) -> Option<TimelineId> {
    u32_at(data, offset).and_then(TimelineId::new)
}
