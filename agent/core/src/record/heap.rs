//! What records say of single rows (`heapam_xlog.h`): which row of which file, not what is in it.
//!
//! Enough to follow a system catalog: a row of `pg_class` that is deleted is a dropped relation, one that is updated a rewritten or
//! altered one.

use crate::le::{u16_at, u32_at};

use super::list::List;
use super::relation::{Fork, Oid, RelFileLocator};
use super::{Record, ResourceManager};

/// What is done to a row.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HeapOperation {
    /// A row is added.
    Insert,
    /// A row is removed.
    Delete,
    /// A row is replaced by another version of it.
    Update,
    /// The same, on the same page and without a change of indexed columns.
    HotUpdate,
    /// A row is changed where it lies, for all transactions at once; system catalogs only.
    Inplace,
}

/// Where a row version lies: PostgreSQL's `ctid`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct TupleId {
    /// The page.
    pub block: u32,
    /// The line pointer on it, from 1.
    pub offset: u16,
}

/// A change of one row.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HeapChange<'a> {
    /// What is done.
    pub operation: HeapOperation,
    /// The table's files.
    pub relation: RelFileLocator,
    /// The version that ends; `None` for an insert.
    pub old: Option<TupleId>,
    /// The version that begins; `None` for a delete.
    pub new: Option<TupleId>,
    /// The new version as the record holds it: of an insert `xl_heap_header` (5 bytes) and the row behind its fixed header; of updates
    /// without what it shares with the old version. Empty where only the page's image has it.
    pub row: &'a [u8],
}

impl<'a> HeapChange<'a> {
    /// `None` for a record that changes no row, or many at once.
    pub(super) fn of(record: &Record<'a>) -> Option<Self> {
        if record.resource_manager != ResourceManager::HEAP {
            return None;
        }
        // The highest bit says that the page is made anew.
        let operation = match record.info & 0x70 {
            0x00 => HeapOperation::Insert,
            0x10 => HeapOperation::Delete,
            0x20 => HeapOperation::Update,
            0x40 => HeapOperation::HotUpdate,
            0x70 => HeapOperation::Inplace,
            _ => return None,
        };
        let (data, mut blocks) = (record.main_data(), record.blocks());
        let first = blocks.next().filter(|block| block.id == 0)?;
        let here = |offset| Some(TupleId { block: first.block, offset: u16_at(data, offset)? });
        let (old, new) = match operation {
            HeapOperation::Insert => (None, Some(here(0)?)),
            HeapOperation::Delete => (Some(here(4)?), None),
            HeapOperation::Inplace => (Some(here(0)?), Some(here(0)?)),
            HeapOperation::Update | HeapOperation::HotUpdate => {
                // The page of the old version comes second, if it is another. Late minor versions refer to the visibility map too.
                let other = blocks.find(|block| block.id == 1 && block.fork == Fork::Main).map_or(first.block, |block| block.block);
                (Some(TupleId { block: other, offset: u16_at(data, 4)? }), Some(here(12)?))
            }
        };
        Some(Self { operation, relation: first.relation, old, new, row: first.data })
    }
}

/// `TRUNCATE` of tables, written beside all else with `wal_level = logical` only (`xl_heap_truncate`).
#[derive(Clone, Copy, Debug)]
pub struct Truncate<'a> {
    /// The database.
    pub database: Oid,
    /// The tables, then the sequences that begin anew.
    pub relations: List<'a, Oid>,
    /// With `CASCADE`.
    pub cascade: bool,
    /// With `RESTART IDENTITY`.
    pub restart_sequences: bool,
}

impl<'a> Truncate<'a> {
    pub(super) fn parse(data: &'a [u8]) -> Option<Self> {
        let flags = *data.get(8)?;
        let (relations, _) = List::split(data.get(12..)?, u32_at(data, 4)?, 4)?;
        Some(Self { database: u32_at(data, 0)?, relations, cascade: flags & 1 != 0, restart_sequences: flags & 2 != 0 })
    }
}
