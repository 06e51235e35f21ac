//! Resource managers: which part of the server wrote a record (`rmgrlist.h`).

use std::fmt;

use crate::identity::MajorVersion;

/// A resource manager's number. The built-in ones are the same in all versions.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ResourceManager(u8);

const NAMES: [&str; 22] = [
    "XLOG",
    "Transaction",
    "Storage",
    "CLOG",
    "Database",
    "Tablespace",
    "MultiXact",
    "RelMap",
    "Standby",
    "Heap2",
    "Heap",
    "Btree",
    "Hash",
    "Gin",
    "Gist",
    "Sequence",
    "SPGist",
    "BRIN",
    "CommitTs",
    "ReplicationOrigin",
    "Generic",
    "LogicalMessage",
];

impl ResourceManager {
    /// The WAL itself.
    pub const XLOG: Self = Self(0);
    /// Transactions.
    pub const TRANSACTION: Self = Self(1);
    /// Relation files.
    pub const STORAGE: Self = Self(2);
    /// Databases.
    pub const DATABASE: Self = Self(4);
    /// Tablespaces.
    pub const TABLESPACE: Self = Self(5);
    /// The files of mapped relations.
    pub const RELATION_MAP: Self = Self(7);
    /// Rows of tables.
    pub const HEAP: Self = Self(10);
    /// Extensions' resource managers have the numbers from here, in 15 and later.
    const FIRST_CUSTOM: u8 = 128;

    pub(super) const fn new(number: u8) -> Self {
        Self(number)
    }

    /// The number.
    pub const fn get(self) -> u8 {
        self.0
    }

    /// Whether `version` can have one of this number.
    pub fn exists(self, version: MajorVersion) -> bool {
        usize::from(self.0) < NAMES.len() || (self.0 >= Self::FIRST_CUSTOM && version.get() >= 15)
    }
}

/// As `pg_waldump` names it.
impl fmt::Display for ResourceManager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match NAMES.get(usize::from(self.0)) {
            Some(name) => f.pad(name),
            None => f.pad(&format!("custom{:03}", self.0)),
        }
    }
}
