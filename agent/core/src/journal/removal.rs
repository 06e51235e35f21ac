//! What became of the relations whose files a commit removes: dropped, truncated, or only rewritten.
//!
//! A commit lists its files, last one first, as `RelationDropStorage` was called for them, and each call belongs to a change of a row of
//! `pg_class` in the same transaction (`heap.c`, `index.c`, `cluster.c`, `relcache.c`):
//!
//! - a row that was there before is deleted: the relation is dropped;
//! - new files are made and a row that was there before is updated: `RelationSetNewRelfilenumber`, by TRUNCATE, REINDEX or a change of
//!   tablespace. Of these only TRUNCATE leaves a table's new files empty, or has rows put into them;
//! - a row that the transaction itself added is deleted: the transient relation of VACUUM FULL, CLUSTER, REFRESH and ALTER TABLE, which by
//!   then has the old files; or a relation that came and went within the transaction.
//!
//! ALTER TABLE that rewrites drops the table's indexes and its TOAST table and makes others: rows without types of their own.
//!
//! So both lists match one to one, but for relations without files in the WAL: views, partitioned and temporary tables. Where that leaves
//! more than one answer, the files are unclear. Files of temporary tables are in no commit record.

use std::collections::{HashMap, HashSet};

use crate::record::{RelFileLocator, TupleId};

use super::entry::{DroppedFile, Happening};
use super::notes::{Followed, Note, Step};

/// Why files go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Cause {
    /// Their relation is dropped; with its row type, if it has one.
    Dropped { table: bool },
    /// Their relation has these from here on.
    Replaced { new: RelFileLocator },
    /// They were the transaction's own, or those of a relation that has the transaction's own now: these, if that is seen.
    Own { new: Option<RelFileLocator> },
}

/// A row of `pg_class`, as far as the transaction touched it.
#[derive(Clone, Copy, Debug)]
struct Row {
    /// Whether it was there before.
    before: bool,
    /// The files it was added with, if the WAL tells of them.
    files: Option<RelFileLocator>,
    /// The cause that took the files it had before.
    replaced: Option<usize>,
}

/// What the commit of `note`'s transaction did by removing `files`; `None` if it dropped and truncated nothing.
pub(super) fn judge(note: &Note, files: &[RelFileLocator]) -> Option<Happening> {
    let (mut dropped, mut truncated, mut unclear, mut rewritten) = (Vec::new(), Vec::new(), Vec::new(), 0);
    let created = note.created();
    let remapped = note.steps.iter().any(|(_, step)| matches!(step, Step::Remapped));
    // A rewritten catalog's own rows have moved, so that they cannot be followed; nobody drops tables in the same transaction.
    let matched = if remapped { Some(vec![Cause::Own { new: None }; files.len()]) } else { matching(note, &causes(note), files) };
    for (position, file) in files.iter().rev().enumerate() {
        match matched.as_ref().map(|causes| causes[position]) {
            _ if created.contains(file) => {}
            Some(Cause::Dropped { table }) => dropped.push(DroppedFile { file: (*file).into(), table: Some(table) }),
            Some(Cause::Replaced { new }) if is_truncation(note, *file, new) => truncated.push((*file).into()),
            Some(Cause::Replaced { .. } | Cause::Own { .. }) => rewritten += 1,
            None => unclear.push((*file).into()),
        }
    }
    // With views or temporary tables among what was dropped, which of the rest are tables is open.
    if !dropped.is_empty() && causes(note).len() != files.len() {
        dropped.iter_mut().for_each(|file| file.table = None);
    }
    let nothing = dropped.is_empty() && truncated.is_empty() && unclear.is_empty();
    (!nothing).then_some(Happening::Removed { dropped, truncated, unclear, rewritten })
}

/// Which files took the place of which: the relations that were rewritten, or truncated, and are still there.
pub(super) fn moves(note: &Note, files: &[RelFileLocator]) -> Vec<(RelFileLocator, RelFileLocator)> {
    let matched = matching(note, &causes(note), files).unwrap_or_default();
    let pair = |(file, cause): (&RelFileLocator, Cause)| match cause {
        Cause::Replaced { new } | Cause::Own { new: Some(new) } if new != *file => Some((*file, new)),
        _ => None,
    };
    files.iter().rev().zip(matched).filter_map(pair).collect()
}

/// A table's new files are empty, or its own code was the first to write there: an index and a sequence get a page at once, and what is
/// moved or copied comes as images of pages.
fn is_truncation(note: &Note, old: RelFileLocator, new: RelFileLocator) -> bool {
    old.tablespace == new.tablespace && note.written.get(&new).is_none_or(|by_table| *by_table)
}

/// A cause for each of the files, in the order of the calls; `None` if the WAL alone cannot decide.
fn matching(note: &Note, causes: &[Cause], files: &[RelFileLocator]) -> Option<Vec<Cause>> {
    let created = note.created();
    let is_drop = |cause: &Cause| matches!(cause, Cause::Dropped { .. });
    let fits = |causes: &[Cause]| {
        let pairs = files.iter().rev().zip(causes);
        causes.len() == files.len() && pairs.into_iter().all(|(file, cause)| !is_drop(cause) || !created.contains(file))
    };
    if fits(causes) {
        return Some(causes.to_vec());
    }
    if note.incomplete || causes.is_empty() {
        return None;
    }
    let others: Vec<Cause> = causes.iter().copied().filter(|cause| !is_drop(cause)).collect();
    if others.is_empty() && causes.len() > files.len() {
        // Only drops, of relations without files too.
        return Some(vec![Cause::Dropped { table: true }; files.len()]);
    }
    if fits(&others) {
        // What was dropped has no files in the WAL.
        return Some(others);
    }
    let rewrites_only = others.len() == causes.len() && !others.iter().any(|cause| matches!(cause, Cause::Replaced { .. }));
    rewrites_only.then(|| vec![Cause::Own { new: None }; files.len()])
}

/// Why files may go, in the order in which the transaction said so.
fn causes(note: &Note) -> Vec<Cause> {
    let mut causes = Vec::new();
    let mut rows: HashMap<(u32, TupleId), Row> = HashMap::new();
    let mut own_types: HashSet<(u32, TupleId)> = HashSet::new();
    let (mut made, mut types_dropped) = (None::<RelFileLocator>, 0);
    for (_, step) in &note.steps {
        match *step {
            Step::Created(file) => made = Some(file),
            Step::Row { catalog: Followed::Type, database, old, new } => {
                // A table's array type and row type are dropped just before the table. TOAST tables and sequences of 13 have a row type only.
                let own = old.is_some_and(|old| own_types.remove(&(database, old)));
                match new {
                    Some(new) if own || old.is_none() => _ = own_types.insert((database, new)),
                    Some(_) => {}
                    None => types_dropped += u32::from(!own),
                }
            }
            Step::Row { catalog: Followed::Class, database, old, new } => {
                let existing = Row { before: true, files: None, replaced: None };
                let taken = old.map(|old| rows.remove(&(database, old)).unwrap_or(existing));
                match (taken, new) {
                    (None, Some(new)) => {
                        let row = Row { before: false, files: made.take(), replaced: None };
                        rows.insert((database, new), row);
                    }
                    (Some(mut row), Some(new)) => {
                        if let Some(new_files) = made.take_if(|file| file.database == database) {
                            match row {
                                Row { before: true, replaced: None, .. } => {
                                    row.replaced = Some(causes.len());
                                    causes.push(Cause::Replaced { new: new_files });
                                }
                                _ => causes.push(Cause::Own { new: Some(new_files) }),
                            }
                        }
                        rows.insert((database, new), row);
                    }
                    (Some(row), None) => {
                        let dropped = Cause::Dropped { table: std::mem::take(&mut types_dropped) >= 2 };
                        match row {
                            // Truncated, then dropped: it is the old files that were lost with it.
                            Row { before: true, replaced: Some(cause), .. } => {
                                causes[cause] = dropped;
                                causes.push(Cause::Own { new: None });
                            }
                            Row { before: true, .. } => causes.push(dropped),
                            Row { files: Some(new), .. } => causes.push(Cause::Own { new: Some(new) }),
                            Row { files: None, .. } => {}
                        }
                    }
                    (None, None) => {}
                }
            }
            Step::Row { catalog: Followed::Database, .. }
            | Step::Remapped
            | Step::DatabaseMarked(_)
            | Step::DatabaseCreated { .. }
            | Step::DatabaseDropped { .. } => {}
        }
    }
    causes
}
