//! WAL records once they are whole: header, checksum, and the few kinds that become a [`WalEvent`](crate::event::WalEvent).
//!
//! Layouts are those of PostgreSQL 13 to 18 on a little-endian machine. Records that change pages are only checked, not understood.

use crate::event::WalEventKind;
use crate::identity::{MajorVersion, TimelineId};
use crate::le::{i64_at, u32_at, u64_at};
use crate::lsn::Lsn;
use crate::time::PgTimestamp;

/// Bytes of a record's header.
pub(crate) const HEADER_SIZE: usize = 24;
/// The longest record: 16 and later refuse to write more than 1020 MiB, earlier ones what does not fit one allocation.
pub(crate) const MAX_SIZE: u32 = (1 << 30) - 1;

const XLOG: u8 = 0;
const XACT: u8 = 1;
const TABLESPACE: u8 = 5;
/// The last resource manager built into any of the versions (`LogicalMessage`).
const LAST_BUILTIN: u8 = 21;
/// Extensions' resource managers have the numbers from here, in 15 and later.
const FIRST_CUSTOM: u8 = 128;

/// The part of the header that is needed before the record is whole.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RecordHeader {
    xid: u32,
    /// Where the record before this one begins.
    pub(crate) previous: Lsn,
    info: u8,
    pub(crate) resource_manager: u8,
    pub(crate) crc: u32,
}

impl RecordHeader {
    /// Reads the header; `None` if there are not enough bytes.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let (&info, &resource_manager) = (bytes.get(16)?, bytes.get(17)?);
        Some(Self { xid: u32_at(bytes, 4)?, previous: Lsn::new(u64_at(bytes, 8)?), info, resource_manager, crc: u32_at(bytes, 20)? })
    }

    /// Whether `version` can have a resource manager of this number.
    pub(crate) fn resource_manager_exists(&self, version: MajorVersion) -> bool {
        self.resource_manager <= LAST_BUILTIN || (self.resource_manager >= FIRST_CUSTOM && version.get() >= 15)
    }

    /// Whether the rest of the segment is unused.
    pub(crate) fn is_switch(&self) -> bool {
        self.resource_manager == XLOG && self.info & 0xF0 == 0x40
    }
}

/// The CRC-32C that a record must carry: of everything after the header, then of the header before its own CRC.
pub(crate) fn checksum(record: &[u8]) -> u32 {
    let (header, body) = record.split_at_checked(HEADER_SIZE).unwrap_or((record, &[]));
    crc32c::crc32c_append(crc32c::crc32c(body), &header[..header.len().min(20)])
}

/// What the record says, if it is of interest. The error names the kind of a record that does not have its kind's layout.
pub(crate) fn event(header: &RecordHeader, record: &[u8], version: MajorVersion) -> Result<Option<WalEventKind>, &'static str> {
    type Parser = fn(&RecordHeader, &[u8], MajorVersion) -> Option<WalEventKind>;
    let (kind, parse): (&'static str, Parser) = match (header.resource_manager, header.info & 0xF0) {
        (XLOG, 0x00) => ("shutdown checkpoint", |_, data, _| checkpoint(data, true)),
        (XLOG, 0x10) => ("online checkpoint", |_, data, _| checkpoint(data, false)),
        (XLOG, 0x40) => return Ok(Some(WalEventKind::Switch)),
        (XLOG, 0x50) => ("end of backup", |_, data, _| Some(WalEventKind::BackupEnd { start: Lsn::new(u64_at(data, 0)?) })),
        (XLOG, 0x60) => ("parameter change", |_, data, _| Some(WalEventKind::ParameterChange { wal_level: u32_at(data, 20)? })),
        (XLOG, 0x70) => ("restore point", |_, data, _| restore_point(data)),
        (XLOG, 0x90) => ("end of recovery", |_, data, _| end_of_recovery(data)),
        // The highest bit of a transaction's record says that more than the time follows.
        (XACT, 0x00 | 0x80) => ("commit", |header, data, _| Some(WalEventKind::Commit { xid: header.xid, time: time_at(data, 0)? })),
        (XACT, 0x20 | 0xA0) => ("abort", |header, data, _| Some(WalEventKind::Abort { xid: header.xid, time: time_at(data, 0)? })),
        (XACT, 0x30 | 0xB0) => ("commit of a prepared transaction", |header, data, version| {
            Some(WalEventKind::Commit { xid: prepared_xid(header, data, version)?, time: time_at(data, 0)? })
        }),
        (XACT, 0x40 | 0xC0) => ("abort of a prepared transaction", |header, data, version| {
            Some(WalEventKind::Abort { xid: prepared_xid(header, data, version)?, time: time_at(data, 0)? })
        }),
        (TABLESPACE, 0x00) => ("creation of a tablespace", |_, data, _| tablespace_created(data)),
        _ => return Ok(None),
    };
    main_data(record).and_then(|data| parse(header, data, version)).map(Some).ok_or(kind)
}

/// The main data of a record without block references, as every record of interest is.
fn main_data(record: &[u8]) -> Option<&[u8]> {
    let mut rest = record.get(HEADER_SIZE..)?;
    loop {
        let (&id, after) = rest.split_first()?;
        let (data, length) = match id {
            // Replication origin; the top-level transaction of a subtransaction (14 and later).
            253 => {
                rest = after.get(2..)?;
                continue;
            }
            252 => {
                rest = after.get(4..)?;
                continue;
            }
            255 => (after.get(1..)?, usize::from(*after.first()?)),
            254 => (after.get(4..)?, usize::try_from(u32_at(after, 0)?).ok()?),
            _ => return None,
        };
        return (data.len() == length).then_some(data);
    }
}

fn time_at(data: &[u8], offset: usize) -> Option<PgTimestamp> {
    i64_at(data, offset).map(PgTimestamp::from_micros)
}

fn timeline_at(data: &[u8], offset: usize) -> Option<TimelineId> {
    u32_at(data, offset).and_then(TimelineId::new)
}

fn checkpoint(data: &[u8], shutdown: bool) -> Option<WalEventKind> {
    Some(WalEventKind::Checkpoint { redo: Lsn::new(u64_at(data, 0)?), timeline: timeline_at(data, 8)?, shutdown })
}

fn restore_point(data: &[u8]) -> Option<WalEventKind> {
    let name = data.get(8..8 + 64)?;
    let name = name.split(|&byte| byte == 0).next()?;
    // In the encoding of the database it was made from, which WAL does not tell.
    Some(WalEventKind::RestorePoint { name: String::from_utf8_lossy(name).into_owned(), time: time_at(data, 0)? })
}

fn tablespace_created(data: &[u8]) -> Option<WalEventKind> {
    let location = data.get(4..)?.split(|&byte| byte == 0).next()?;
    Some(WalEventKind::TablespaceCreated { oid: u32_at(data, 0)?, location: String::from_utf8_lossy(location).into_owned() })
}

fn end_of_recovery(data: &[u8]) -> Option<WalEventKind> {
    Some(WalEventKind::EndOfRecovery { timeline: timeline_at(data, 8)?, previous: timeline_at(data, 12)?, time: time_at(data, 0)? })
}

/// The xid that was prepared: the record's own is that of the session that ended it. It follows lists of varying length.
fn prepared_xid(header: &RecordHeader, data: &[u8], version: MajorVersion) -> Option<u32> {
    const DATABASE: u32 = 0x01;
    const SUBTRANSACTIONS: u32 = 0x02;
    const RELATIONS: u32 = 0x04;
    const INVALIDATIONS: u32 = 0x08;
    const PREPARED: u32 = 0x10;
    const DROPPED_STATISTICS: u32 = 0x100;

    let contents = if header.info & 0x80 != 0 { u32_at(data, 8)? } else { return None };
    let statistics_size = if version.get() >= 18 { 16 } else { 12 };
    let lists = [(SUBTRANSACTIONS, 4), (RELATIONS, 12), (DROPPED_STATISTICS, statistics_size), (INVALIDATIONS, 16)];
    let mut offset = if contents & DATABASE != 0 { 20 } else { 12 };
    for (flag, element_size) in lists {
        if contents & flag != 0 {
            let count = usize::try_from(u32_at(data, offset)?).ok()?;
            offset = count.checked_mul(element_size)?.checked_add(offset + 4).filter(|&end| end <= data.len())?;
        }
    }
    if contents & PREPARED != 0 { u32_at(data, offset) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(resource_manager: u8, info: u8) -> RecordHeader {
        RecordHeader { xid: 7, previous: Lsn::ZERO, info, resource_manager, crc: 0 }
    }

    /// A record with a replication origin, a top-level xid and short main data.
    fn record(data: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; HEADER_SIZE];
        bytes.extend([253, 1, 0, 252, 9, 0, 0, 0, 255, data.len() as u8]);
        bytes.extend(data);
        bytes
    }

    #[test]
    fn finds_the_prepared_xid_behind_every_list() {
        let time = 5i64.to_le_bytes();
        let statistics = |element: usize| {
            let mut data = time.to_vec();
            data.extend((0x01u32 | 0x02 | 0x04 | 0x08 | 0x10 | 0x20 | 0x80 | 0x100).to_le_bytes());
            data.extend([0xEE; 8]);
            for element in [4, 12, element, 16] {
                data.extend(2u32.to_le_bytes());
                data.extend(vec![0xEE; 2 * element]);
            }
            data.extend(733u32.to_le_bytes());
            data.extend(b"gid\0");
            record(&data)
        };
        let commit = Ok(Some(WalEventKind::Commit { xid: 733, time: PgTimestamp::from_micros(5) }));
        let abort = Ok(Some(WalEventKind::Abort { xid: 733, time: PgTimestamp::from_micros(5) }));
        assert_eq!(event(&header(XACT, 0xB0), &statistics(12), MajorVersion::new(17)), commit);
        assert_eq!(event(&header(XACT, 0xB0), &statistics(16), MajorVersion::new(18)), commit);
        assert_eq!(event(&header(XACT, 0xC0), &statistics(12), MajorVersion::new(15)), abort);
        assert_ne!(event(&header(XACT, 0xB0), &statistics(16), MajorVersion::new(17)), commit);
    }

    #[test]
    fn a_record_without_its_layout_is_named() {
        let version = MajorVersion::new(15);
        assert_eq!(event(&header(XACT, 0x00), &record(&[0; 7]), version), Err("commit"));
        assert_eq!(event(&header(XACT, 0x30), &record(&[0; 12]), version), Err("commit of a prepared transaction"));
        assert_eq!(event(&header(XLOG, 0x70), &record(&[0; 71]), version), Err("restore point"));
        assert_eq!(event(&header(XLOG, 0x10), &record(&[0; 88]), version), Err("online checkpoint"), "timeline 0");
        assert_eq!(event(&header(XLOG, 0x50), &[0; HEADER_SIZE + 3], version), Err("end of backup"), "a block reference");
        assert_eq!(event(&header(XLOG, 0x30), &[0; HEADER_SIZE], version), Ok(None));
    }

    #[test]
    fn reads_a_promotion() {
        let mut data = 5i64.to_le_bytes().to_vec();
        data.extend([2, 0, 0, 0, 1, 0, 0, 0]);
        let (timeline, previous) = (TimelineId::new(2).expect("not zero"), TimelineId::FIRST);
        let expected = WalEventKind::EndOfRecovery { timeline, previous, time: PgTimestamp::from_micros(5) };
        assert_eq!(event(&header(XLOG, 0x90), &record(&data), MajorVersion::new(13)), Ok(Some(expected)));
    }
}
