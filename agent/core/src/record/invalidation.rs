//! Messages by which a commit tells other sessions what to forget (`sinval.h`).
//!
//! To an observer of the WAL they name what a transaction touched: a relation's oid, where the files have only numbers.

use crate::le::u32_at;

use super::list::Element;
use super::relation::{Oid, RelFileLocator};

/// A shared invalidation message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Invalidation {
    /// A row of a system catalog, by a hash of its key. Numbers of caches differ between versions.
    CatalogRow {
        /// The cache.
        cache: u8,
        /// The database; 0 for shared catalogs.
        database: Oid,
        /// The hash.
        hash: u32,
    },
    /// All rows of a system catalog.
    Catalog {
        /// The database; 0 for shared catalogs.
        database: Oid,
        /// The catalog.
        catalog: Oid,
    },
    /// A relation: created, altered or dropped.
    Relation {
        /// The database; 0 for a shared relation.
        database: Oid,
        /// The relation; 0 for all.
        relation: Oid,
    },
    /// A relation's files.
    Files(RelFileLocator),
    /// The map of a database's mapped relations.
    RelationMap {
        /// The database; 0 for the shared map.
        database: Oid,
    },
    /// Snapshots for a relation.
    Snapshot {
        /// The database.
        database: Oid,
        /// The relation.
        relation: Oid,
    },
    /// What a relation publishes (18 and later).
    Publication {
        /// The database.
        database: Oid,
        /// The relation; 0 for all.
        relation: Oid,
    },
    /// A kind that none of the versions has.
    Unknown(i8),
}

impl Invalidation {
    /// Bytes in a record.
    pub(super) const SIZE: usize = 16;
}

impl Element for Invalidation {
    fn read(bytes: &[u8]) -> Option<Self> {
        let id = i8::from_le_bytes([*bytes.first()?]);
        let (database, second) = (u32_at(bytes, 4)?, u32_at(bytes, 8)?);
        Some(match id {
            0.. => Self::CatalogRow { cache: id.unsigned_abs(), database, hash: second },
            -1 => Self::Catalog { database, catalog: second },
            -2 => Self::Relation { database, relation: second },
            -3 => Self::Files(RelFileLocator::read_at(bytes, 4)?),
            -4 => Self::RelationMap { database },
            -5 => Self::Snapshot { database, relation: second },
            -6 => Self::Publication { database, relation: second },
            _ => Self::Unknown(id),
        })
    }
}
