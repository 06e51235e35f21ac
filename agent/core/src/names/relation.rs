//! What a relation is called, and what it is.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::identifier::shown;
use crate::lsn::Lsn;

/// What a relation is: `pg_class.relkind`, as far as it has files or parts that have.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RelationKind {
    /// An ordinary table, or a partition.
    Table,
    /// An index.
    Index,
    /// A sequence.
    Sequence,
    /// Where a table's long values lie.
    ToastTable,
    /// A materialized view.
    MaterializedView,
    /// A table made of partitions; it has no files of its own.
    PartitionedTable,
}

impl RelationKind {
    /// By PostgreSQL's letter.
    pub const fn of_letter(letter: char) -> Option<Self> {
        Some(match letter {
            'r' => Self::Table,
            'i' => Self::Index,
            'S' => Self::Sequence,
            't' => Self::ToastTable,
            'm' => Self::MaterializedView,
            'p' => Self::PartitionedTable,
            _ => return None,
        })
    }

    /// PostgreSQL's letter.
    pub const fn letter(self) -> char {
        match self {
            Self::Table => 'r',
            Self::Index => 'i',
            Self::Sequence => 'S',
            Self::ToastTable => 't',
            Self::MaterializedView => 'm',
            Self::PartitionedTable => 'p',
        }
    }

    /// Whether it holds rows that somebody may miss.
    pub const fn is_table(self) -> bool {
        matches!(self, Self::Table | Self::MaterializedView)
    }

    /// In words.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Table => "table",
            Self::Index => "index",
            Self::Sequence => "sequence",
            Self::ToastTable => "TOAST table",
            Self::MaterializedView => "materialized view",
            Self::PartitionedTable => "partitioned table",
        }
    }
}

/// A relation's full name.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct RelationName {
    /// The database.
    pub database_name: String,
    /// The schema.
    pub schema: String,
    /// The relation.
    pub name: String,
    /// What it is.
    pub kind: RelationKind,
    /// The table that an index, a TOAST table or a column's sequence belongs to, with its schema.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub belongs_to: Option<String>,
    /// The snapshot that knew the name: since then the relation may have been renamed.
    pub named_at: Lsn,
}

impl fmt::Display for RelationName {
    /// As one may write it in SQL: `shop.public."Order"`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", shown(&self.database_name), shown(&self.schema), shown(&self.name))
    }
}
