//! Names of relations, which WAL does not tell: catalog snapshots, and how a file's number becomes a name.
//!
//! A [`Snapshot`] is what `pg_class`, `pg_namespace` and `pg_database` said at a moment, user relations only. [`Naming`] asks for the
//! snapshots it needs, newest first, and names files that went by what the newest snapshot before that knew; files that were rewritten in
//! between are followed by what the [journal](crate::journal) saw. [`Wanted`] is a table as an operator writes it. Who takes snapshots,
//! and where they are stored, is not known here.

mod named;
mod naming;
mod relation;
mod snapshot;
mod wanted;

pub use named::{Accident, AccidentKind, NamedEntry, NamedFile, NamedRemoval, Sought, Whole, accidents, named, questions, similar};
pub use naming::{Found, Group, GroupKind, Naming, Question, Subject};
pub use relation::{RelationKind, RelationName};
pub use snapshot::{Database, Header, Relation, Snapshot, SnapshotError, SnapshotWriter, body};
pub use wanted::{Wanted, WantedError};
