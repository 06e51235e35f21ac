//! Records of transactions' ends (`xact.h`: `xl_xact_commit`, `xl_xact_abort`, `xl_xact_prepare`; the order of the parts is that of
//! `ParseCommitRecord` and `ParsePrepareRecord`).

use crate::identity::MajorVersion;
use crate::le::{i64_at, u16_at, u32_at, u64_at};
use crate::lsn::Lsn;
use crate::time::PgTimestamp;

use super::invalidation::Invalidation;
use super::list::{Element, List};
use super::relation::{Oid, RelFileLocator};

const HAS_DATABASE: u32 = 0x01;
const HAS_SUBTRANSACTIONS: u32 = 0x02;
const HAS_RELATIONS: u32 = 0x04;
const HAS_INVALIDATIONS: u32 = 0x08;
const HAS_TWO_PHASE: u32 = 0x10;
const HAS_ORIGIN: u32 = 0x20;
const HAS_GID: u32 = 0x80;
const HAS_STATISTICS: u32 = 0x100;

/// A commit or an abort, of a prepared transaction too.
#[derive(Clone, Copy, Debug)]
pub struct TransactionEnd<'a> {
    /// The transaction; of a prepared one the xid that was prepared, not that of the session which ended it.
    pub xid: u32,
    /// The server's clock at that moment; not monotonic in LSN order.
    pub time: PgTimestamp,
    /// Whether it had been prepared: `COMMIT PREPARED`, `ROLLBACK PREPARED`.
    pub prepared: bool,
    /// The session's database and that database's default tablespace. Only told with invalidations, or for logical decoding.
    pub database: Option<(Oid, Oid)>,
    /// Its subtransactions, which end with it.
    pub subtransactions: List<'a, u32>,
    /// Relation files that it removes: of dropped and rewritten relations at a commit, of those it had created at an abort.
    pub dropped_files: List<'a, RelFileLocator>,
    /// Statistics that go with what is dropped (15 and later).
    pub dropped_statistics: List<'a, DroppedStatistics>,
    /// What other sessions must forget. Commits only.
    pub invalidations: List<'a, Invalidation>,
    /// The name it was prepared under; written only with `wal_level = logical`.
    pub gid: Option<&'a [u8]>,
    /// Where it came from by logical replication: the position and time of its commit there.
    pub origin: Option<(Lsn, PgTimestamp)>,
}

impl<'a> TransactionEnd<'a> {
    pub(super) fn parse(data: &'a [u8], record_xid: u32, info: u8, prepared: bool, version: MajorVersion) -> Option<Self> {
        let mut end = Self {
            xid: record_xid,
            time: time_at(data, 0)?,
            prepared,
            database: None,
            subtransactions: List::EMPTY,
            dropped_files: List::EMPTY,
            dropped_statistics: List::EMPTY,
            invalidations: List::EMPTY,
            gid: None,
            origin: None,
        };
        if info & 0x80 == 0 {
            return (!prepared).then_some(end);
        }
        let has = u32_at(data, 8)?;
        let mut rest = &data[12..];
        if has & HAS_DATABASE != 0 {
            end.database = Some((u32_at(rest, 0)?, u32_at(rest, 4)?));
            rest = &rest[8..];
        }
        if has & HAS_SUBTRANSACTIONS != 0 {
            (end.subtransactions, rest) = List::split_counted(rest, 4)?;
        }
        if has & HAS_RELATIONS != 0 {
            (end.dropped_files, rest) = List::split_counted(rest, RelFileLocator::SIZE)?;
        }
        if has & HAS_STATISTICS != 0 {
            (end.dropped_statistics, rest) = List::split_counted(rest, DroppedStatistics::size(version))?;
        }
        if has & HAS_INVALIDATIONS != 0 {
            (end.invalidations, rest) = List::split_counted(rest, Invalidation::SIZE)?;
        }
        if has & HAS_TWO_PHASE != 0 {
            end.xid = u32_at(rest, 0)?;
            rest = &rest[4..];
        } else if prepared {
            return None;
        }
        if has & HAS_GID != 0 {
            let length = rest.iter().position(|&byte| byte == 0)?;
            end.gid = Some(&rest[..length]);
            rest = &rest[length + 1..];
        }
        if has & HAS_ORIGIN != 0 {
            end.origin = Some((Lsn::new(u64_at(rest, 0)?), time_at(rest, 8)?));
        }
        Some(end)
    }
}

/// `PREPARE TRANSACTION`: what is written to `pg_twophase` once the transaction is prepared.
#[derive(Clone, Copy, Debug)]
pub struct Prepare<'a> {
    /// The transaction.
    pub xid: u32,
    /// The server's clock at that moment.
    pub time: PgTimestamp,
    /// The name it was prepared under.
    pub gid: &'a [u8],
    /// Its database.
    pub database: Oid,
    /// The role that prepared it.
    pub owner: Oid,
    /// Its subtransactions.
    pub subtransactions: List<'a, u32>,
    /// Relation files that its commit will remove.
    pub dropped_at_commit: List<'a, RelFileLocator>,
    /// Relation files that its abort will remove.
    pub dropped_at_abort: List<'a, RelFileLocator>,
    /// Statistics that its commit will remove (15 and later).
    pub statistics_at_commit: List<'a, DroppedStatistics>,
    /// Statistics that its abort will remove (15 and later).
    pub statistics_at_abort: List<'a, DroppedStatistics>,
    /// What other sessions must forget at its commit.
    pub invalidations: List<'a, Invalidation>,
    /// Where it came from by logical replication.
    pub origin: Option<(Lsn, PgTimestamp)>,
}

impl<'a> Prepare<'a> {
    pub(super) fn parse(data: &'a [u8], version: MajorVersion) -> Option<Self> {
        // 15 put two counts of statistics before that of invalidations.
        let statistics = version.get() >= 15;
        let (invalidations, header_size) = if statistics { (48, 72) } else { (40, 64) };
        let count = |offset| u32_at(data, offset);
        let statistics_count = |offset| if statistics { count(offset) } else { Some(0) };
        let gid_length = usize::from(u16_at(data, invalidations + 6)?);
        let origin = (Lsn::new(u64_at(data, header_size - 16)?), time_at(data, header_size - 8)?);
        let mut rest = Aligned { data, at: header_size };
        // The length counts the zero at the end.
        let gid = rest.take(gid_length)?.split(|&byte| byte == 0).next()?;
        Some(Self {
            xid: u32_at(data, 8)?,
            database: u32_at(data, 12)?,
            time: time_at(data, 16)?,
            owner: u32_at(data, 24)?,
            gid,
            subtransactions: rest.list(count(28)?, 4)?,
            dropped_at_commit: rest.list(count(32)?, RelFileLocator::SIZE)?,
            dropped_at_abort: rest.list(count(36)?, RelFileLocator::SIZE)?,
            statistics_at_commit: rest.list(statistics_count(40)?, DroppedStatistics::size(version))?,
            statistics_at_abort: rest.list(statistics_count(44)?, DroppedStatistics::size(version))?,
            invalidations: rest.list(count(invalidations)?, Invalidation::SIZE)?,
            origin: (origin.0 != Lsn::ZERO).then_some(origin),
        })
    }
}

/// The parts of a [`Prepare`], each of which begins at a multiple of 8.
struct Aligned<'a> {
    data: &'a [u8],
    at: usize,
}

impl<'a> Aligned<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let part = self.data.get(self.at..self.at.checked_add(length)?)?;
        self.at = (self.at + length).next_multiple_of(8);
        Some(part)
    }

    fn list<T: Element>(&mut self, count: u32, element_size: usize) -> Option<List<'a, T>> {
        let part = self.take(usize::try_from(count).ok()?.checked_mul(element_size)?)?;
        List::split(part, count, element_size).map(|(list, _)| list)
    }
}

/// `xl_xact_stats_item`: statistics of something that was dropped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DroppedStatistics {
    /// Of what (`PgStat_Kind`): 1 a database, 2 a relation, 3 a function; 18 has more.
    pub kind: u32,
    /// The database.
    pub database: Oid,
    /// The object in that database.
    pub object: u64,
}

impl DroppedStatistics {
    fn size(version: MajorVersion) -> usize {
        if version.get() >= 18 { 16 } else { 12 }
    }
}

impl Element for DroppedStatistics {
    fn read(bytes: &[u8]) -> Option<Self> {
        // 18 made the object's number longer.
        let high = u32_at(bytes, 12).unwrap_or(0);
        Some(Self { kind: u32_at(bytes, 0)?, database: u32_at(bytes, 4)?, object: u64::from(high) << 32 | u64::from(u32_at(bytes, 8)?) })
    }
}

fn time_at(data: &[u8], offset: usize) -> Option<PgTimestamp> {
    i64_at(data, offset).map(PgTimestamp::from_micros)
}
