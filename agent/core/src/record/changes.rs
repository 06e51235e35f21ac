//! What records do to relation files beside the blocks they refer to: what a map of changed blocks has to add.
//!
//! Beside this and [`Record::blocks`] such a map must take as changed: the free space map and the visibility map as wholes, all that is no
//! relation file, blocks behind the file's former end, and everything across a stretch of `wal_level = minimal`.

use super::relation::{Fork, Oid, RelFileLocator};
use super::{Content, Record};

/// Blocks that are not what they were, without a reference to each.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FileChange {
    /// Of one relation's files.
    Relation {
        /// The files.
        relation: RelFileLocator,
        /// Which of them; `None` for all.
        fork: Option<Fork>,
        /// The first of the blocks. Those written from here on have references.
        from: u32,
    },
    /// All files of a database in a tablespace.
    Database {
        /// The database.
        database: Oid,
        /// The tablespace.
        tablespace: Oid,
    },
}

/// The changes of one record.
pub(super) fn of<'a>(record: &Record<'a>) -> impl Iterator<Item = FileChange> + use<'a> {
    let relation = |relation, fork, from| Some(FileChange::Relation { relation, fork, from });
    let (mut single, mut files, mut database) = ([None, None], None, None);
    match record.content() {
        Content::Commit(end) | Content::Abort(end) => files = Some(end.dropped_files),
        Content::FileCreated(created) => single[0] = relation(created.relation, Some(created.fork), 0),
        Content::FileTruncated(cut) => {
            single[0] = cut.main.then(|| relation(cut.relation, Some(Fork::Main), cut.blocks)).flatten();
            single[1] = cut.visibility_map.then(|| relation(cut.relation, Some(Fork::VisibilityMap), cut.first_map_page())).flatten();
        }
        Content::DatabaseCreated(created) => {
            single[0] = Some(FileChange::Database { database: created.database, tablespace: created.tablespace });
        }
        Content::DatabaseDropped(dropped) => database = Some(dropped),
        _ => {}
    }
    let dropped = files.into_iter().flat_map(|files| files.iter()).map(|relation| FileChange::Relation { relation, fork: None, from: 0 });
    let of_databases = database.into_iter().flat_map(|dropped| {
        dropped.tablespaces.iter().map(move |tablespace| FileChange::Database { database: dropped.database, tablespace })
    });
    single.into_iter().flatten().chain(dropped).chain(of_databases)
}
