//! A WAL record once it is whole: its header, which blocks it refers to, and what it says.
//!
//! A [`Record`] is a view of the bytes, made by the [decoder](crate::decoder) after the checksum was verified; nothing is copied.
//! Layouts are those of PostgreSQL 13 to 18 on a little-endian machine, each cited where it is read. What records do to pages is not
//! understood here, only to which.

mod blocks;
mod changes;
mod control;
mod heap;
mod invalidation;
mod list;
mod manager;
mod relation;
mod storage;
#[cfg(test)]
mod tests;
mod transaction;

use crate::identity::MajorVersion;
use crate::le::{u32_at, u64_at};
use crate::lsn::Lsn;

pub use blocks::{BlockReference, Blocks, Compression, PageImage};
pub use changes::FileChange;
pub use control::{Checkpoint, EndOfRecovery, OverwriteContrecord, RestorePoint};
pub use heap::{HeapChange, HeapOperation, Truncate, TupleId};
pub use invalidation::Invalidation;
pub use list::{Element, List};
pub use manager::ResourceManager;
pub use relation::{Fork, Oid, RelFileLocator};
pub use storage::{DatabaseCreated, DatabaseDropped, FileCreated, FileTruncated, Mapping, RelationMap, TablespaceCreated};
pub use transaction::{DroppedStatistics, Prepare, TransactionEnd};

use storage::DatabaseRecord;

/// Bytes of a record's header.
pub(crate) const HEADER_SIZE: usize = 24;
/// The longest record: 16 and later refuse to write more than 1020 MiB, earlier ones what does not fit one allocation.
pub(crate) const MAX_SIZE: u32 = (1 << 30) - 1;

/// A whole record, in the bytes that the decoder was shown, or in its memory.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    /// Where it begins: what PostgreSQL compares with `recovery_target_lsn`.
    pub start: Lsn,
    /// Where the following record may begin: everything before is replayed once this record is.
    pub end: Lsn,
    /// Where the record before begins.
    pub previous: Lsn,
    /// The transaction or subtransaction that wrote it; 0 for none.
    pub xid: u32,
    /// Who wrote it.
    pub resource_manager: ResourceManager,
    /// The resource manager's operation in the upper half, `XLogInsert`'s flags in the lower.
    pub info: u8,
    /// The server that wrote it.
    pub version: MajorVersion,
    bytes: &'a [u8],
    envelope: blocks::Envelope,
}

/// What a record says.
#[derive(Clone, Copy, Debug)]
pub enum Content<'a> {
    /// Nothing of interest beside its block references; [`Record::heap_change`] tells of rows.
    Other,
    /// A transaction committed.
    Commit(TransactionEnd<'a>),
    /// A transaction rolled back.
    Abort(TransactionEnd<'a>),
    /// A transaction was prepared.
    Prepare(Prepare<'a>),
    /// A command of a running transaction made others forget something (14 and later, `wal_level = logical`).
    Invalidations(List<'a, Invalidation>),
    /// A checkpoint.
    Checkpoint(Checkpoint),
    /// Where an online checkpoint's replay will begin (17 and later).
    CheckpointRedo {
        /// 0 minimal, 1 replica, 2 logical.
        wal_level: u32,
    },
    /// A promotion.
    EndOfRecovery(EndOfRecovery),
    /// `pg_create_restore_point`.
    RestorePoint(RestorePoint<'a>),
    /// A base backup that began at `start` ended: from here on a restore of it is consistent.
    BackupEnd {
        /// The backup's start LSN.
        start: Lsn,
    },
    /// Settings that recovery must know changed, `wal_level` among them (`xl_parameter_change`).
    ParameterChange {
        /// 0 minimal, 1 replica, 2 logical.
        wal_level: u32,
    },
    /// `pg_switch_wal`: the rest of the segment is unused.
    Switch,
    /// A record before was lost in a crash.
    OverwriteContrecord(OverwriteContrecord),
    /// A new relation file.
    FileCreated(FileCreated),
    /// Relation files are cut off.
    FileTruncated(FileTruncated),
    /// A new database.
    DatabaseCreated(DatabaseCreated),
    /// A database is removed.
    DatabaseDropped(DatabaseDropped<'a>),
    /// A new tablespace. Replay makes the same at the same place, wherever the data directory is.
    TablespaceCreated(TablespaceCreated<'a>),
    /// A tablespace is removed.
    TablespaceDropped {
        /// The tablespace.
        tablespace: Oid,
    },
    /// Mapped relations have other files.
    RelationMap(RelationMap<'a>),
    /// `TRUNCATE`, with `wal_level = logical`.
    Truncate(Truncate<'a>),
}

impl<'a> Record<'a> {
    /// The record of these bytes, whose checksum is verified. The error names what does not have its layout.
    pub(crate) fn parse(start: Lsn, end: Lsn, header: &RecordHeader, bytes: &'a [u8], version: MajorVersion) -> Result<Self, &'static str> {
        let RecordHeader { xid, previous, info, resource_manager, .. } = *header;
        let envelope = blocks::Envelope::parse(bytes, version).ok_or("block references")?;
        // Only looked at here: most records have none, and the others' would be carried about with each.
        Content::parse(resource_manager, info, xid, envelope.main_data(bytes), version)?;
        Ok(Self { start, end, previous, xid, resource_manager, info, version, bytes, envelope })
    }

    /// Its length, without page headers that interrupt it.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// What it says, where that is of interest.
    #[inline]
    pub fn content(&self) -> Content<'a> {
        // That it has its layout was seen when the record was made.
        Content::parse(self.resource_manager, self.info, self.xid, self.main_data(), self.version).unwrap_or(Content::Other)
    }

    /// The pages it changes, or needs.
    #[inline]
    pub fn blocks(&self) -> Blocks<'a> {
        self.envelope.blocks(self.bytes, self.version)
    }

    /// What its resource manager says of it as a whole.
    pub fn main_data(&self) -> &'a [u8] {
        self.envelope.main_data(self.bytes)
    }

    /// The replication origin whose change it is, if it came by logical replication.
    pub fn origin(&self) -> Option<u16> {
        self.envelope.origin()
    }

    /// The transaction to which the subtransaction [`Record::xid`] belongs, in the subtransaction's first record
    /// (14 and later, `wal_level = logical`).
    pub fn top_level_xid(&self) -> Option<u32> {
        self.envelope.top_level_xid()
    }

    /// Relation files that change beside [`Record::blocks`].
    pub fn file_changes(&self) -> impl Iterator<Item = FileChange> + use<'a> {
        changes::of(self)
    }

    /// The one row it changes, if it is such a record.
    pub fn heap_change(&self) -> Option<HeapChange<'a>> {
        HeapChange::of(self)
    }
}

impl<'a> Content<'a> {
    /// The error names the kind of a record that does not have its kind's layout.
    #[inline]
    fn parse(manager: ResourceManager, info: u8, xid: u32, data: &'a [u8], version: MajorVersion) -> Result<Self, &'static str> {
        match manager {
            ResourceManager::XLOG => Self::control(info, data, version),
            ResourceManager::TRANSACTION => Self::transaction(xid, info, data, version),
            ResourceManager::STORAGE => match info & 0xF0 {
                0x10 => FileCreated::parse(data).map(Self::FileCreated).ok_or("creation of a relation file"),
                0x20 => FileTruncated::parse(data).map(Self::FileTruncated).ok_or("truncation of a relation file"),
                _ => Ok(Self::Other),
            },
            ResourceManager::DATABASE => match DatabaseRecord::parse(data, info, version) {
                Some(Some(DatabaseRecord::Created(created))) => Ok(Self::DatabaseCreated(created)),
                Some(Some(DatabaseRecord::Dropped(dropped))) => Ok(Self::DatabaseDropped(dropped)),
                Some(None) => Err("creation or removal of a database"),
                None => Ok(Self::Other),
            },
            ResourceManager::TABLESPACE => match info & 0xF0 {
                0x00 => TablespaceCreated::parse(data).map(Self::TablespaceCreated).ok_or("creation of a tablespace"),
                0x10 => u32_at(data, 0).map(|tablespace| Self::TablespaceDropped { tablespace }).ok_or("removal of a tablespace"),
                _ => Ok(Self::Other),
            },
            ResourceManager::RELATION_MAP if info & 0xF0 == 0 => RelationMap::parse(data).map(Self::RelationMap).ok_or("relation map"),
            ResourceManager::HEAP if info & 0x70 == 0x30 => Truncate::parse(data).map(Self::Truncate).ok_or("truncation of tables"),
            _ => Ok(Self::Other),
        }
    }

    fn control(info: u8, data: &'a [u8], version: MajorVersion) -> Result<Self, &'static str> {
        match info & 0xF0 {
            0x00 => Checkpoint::parse(data, true, version).map(Self::Checkpoint).ok_or("shutdown checkpoint"),
            0x10 => Checkpoint::parse(data, false, version).map(Self::Checkpoint).ok_or("online checkpoint"),
            0x40 => Ok(Self::Switch),
            0x50 => u64_at(data, 0).map(|start| Self::BackupEnd { start: Lsn::new(start) }).ok_or("end of backup"),
            0x60 => u32_at(data, 20).map(|wal_level| Self::ParameterChange { wal_level }).ok_or("parameter change"),
            0x70 => RestorePoint::parse(data).map(Self::RestorePoint).ok_or("restore point"),
            0x90 => EndOfRecovery::parse(data, version).map(Self::EndOfRecovery).ok_or("end of recovery"),
            0xD0 => OverwriteContrecord::parse(data).map(Self::OverwriteContrecord).ok_or("note of a lost record"),
            0xE0 if version.get() >= 17 => {
                u32_at(data, 0).map(|wal_level| Self::CheckpointRedo { wal_level }).ok_or("beginning of a checkpoint")
            }
            _ => Ok(Self::Other),
        }
    }

    fn transaction(xid: u32, info: u8, data: &'a [u8], version: MajorVersion) -> Result<Self, &'static str> {
        let end = |prepared| TransactionEnd::parse(data, xid, info, prepared, version);
        // The highest bit says that more than the time follows.
        match info & 0x70 {
            0x00 => end(false).map(Self::Commit).ok_or("commit"),
            0x10 => Prepare::parse(data, version).map(Self::Prepare).ok_or("preparation of a transaction"),
            0x20 => end(false).map(Self::Abort).ok_or("abort"),
            0x30 => end(true).map(Self::Commit).ok_or("commit of a prepared transaction"),
            0x40 => end(true).map(Self::Abort).ok_or("abort of a prepared transaction"),
            0x60 if version.get() >= 14 => {
                let list = List::split_counted(data, Invalidation::SIZE);
                list.map(|(list, _)| Self::Invalidations(list)).ok_or("invalidations")
            }
            _ => Ok(Self::Other),
        }
    }
}

/// `XLogRecord`, but for the length: what is needed before the record is whole.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RecordHeader {
    xid: u32,
    /// Where the record before this one begins.
    pub(crate) previous: Lsn,
    info: u8,
    pub(crate) resource_manager: ResourceManager,
    pub(crate) crc: u32,
}

impl RecordHeader {
    /// Reads the header; `None` if there are not enough bytes.
    #[inline]
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.first_chunk::<HEADER_SIZE>()?;
        let (info, resource_manager) = (bytes[16], ResourceManager::new(bytes[17]));
        Some(Self { xid: u32_at(bytes, 4)?, previous: Lsn::new(u64_at(bytes, 8)?), info, resource_manager, crc: u32_at(bytes, 20)? })
    }

    /// Whether the rest of the segment is unused.
    pub(crate) fn is_switch(&self) -> bool {
        self.resource_manager == ResourceManager::XLOG && self.info & 0xF0 == 0x40
    }
}

/// The CRC-32C that a record must carry: of everything after the header, then of the header before its own CRC.
#[inline]
pub(crate) fn checksum(record: &[u8]) -> u32 {
    let (header, body) = record.split_at_checked(HEADER_SIZE).unwrap_or((record, &[]));
    crc32c::crc32c_append(crc32c::crc32c(body), &header[..header.len().min(20)])
}
