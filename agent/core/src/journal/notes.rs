//! Notes on open transactions: how much WAL they wrote, and what they did to files and to the catalogs of relations.
//!
//! Kept from a transaction's first record to its end, by the xid of each subtransaction, and joined at the end. Transactions that a crash
//! ended have no record of it; their notes go when the server is seen to have ended.

use std::collections::{HashMap, HashSet};

use crate::identity::MajorVersion;
use crate::lsn::Lsn;
use crate::record::{Content, Fork, HeapOperation, Oid, Record, RelFileLocator, ResourceManager, TupleId};

use super::entry::Happening;

/// OIDs of the catalogs followed, all mapped: their files are named by the relation map, and by their OID until they are rewritten.
const PG_CLASS: Oid = 1259;
const PG_TYPE: Oid = 1247;
const PG_DATABASE: Oid = 1262;
const HEAP2: u8 = 9;
/// More rows of `pg_database` are not kept.
const MARKED: usize = 10_000;
/// `DATCONNLIMIT_INVALID_DB` of `pg_database.h`.
const INVALID_DATABASE: i32 = -2;

/// A catalog whose rows are followed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Followed {
    /// A row for each relation.
    Class,
    /// A row for each type, the row types of tables among them.
    Type,
    /// A row for each database; shared by all.
    Database,
}

/// What a transaction did.
#[derive(Clone, Debug)]
pub(super) enum Step {
    /// It made files.
    Created(RelFileLocator),
    /// It changed a row: the version that ends, the version that begins.
    Row {
        catalog: Followed,
        database: Oid,
        old: Option<TupleId>,
        new: Option<TupleId>,
    },
    /// It gave mapped relations other files: it rewrote a catalog.
    Remapped,
    /// It deleted a database's row, which was marked as of a database that is being dropped before, there.
    DatabaseMarked(Lsn),
    DatabaseCreated {
        database: Oid,
        tablespace: Oid,
        end: Lsn,
    },
    DatabaseDropped {
        database: Oid,
        tablespaces: Vec<Oid>,
        end: Lsn,
    },
}

/// A transaction's notes.
#[derive(Clone, Debug, Default)]
pub(super) struct Note {
    /// Bytes of its records.
    pub(super) wal_bytes: u64,
    /// What it did, and where.
    pub(super) steps: Vec<(Lsn, Step)>,
    /// Its new files that did not stay empty, and whether the first to write there was a table's own code.
    pub(super) written: HashMap<RelFileLocator, bool>,
    /// Whether some of it was not seen.
    pub(super) incomplete: bool,
}

impl Note {
    fn join(&mut self, other: Self) {
        self.wal_bytes += other.wal_bytes;
        self.steps.extend(other.steps);
        self.written.extend(other.written);
        self.incomplete |= other.incomplete;
    }

    /// The files it made.
    pub(super) fn created(&self) -> HashSet<RelFileLocator> {
        let created = |step: &(Lsn, Step)| if let Step::Created(file) = step.1 { Some(file) } else { None };
        self.steps.iter().filter_map(created).collect()
    }

    /// What it did to databases: start and end of the record.
    pub(super) fn databases(&self, committed: bool) -> Vec<(Lsn, Lsn, Happening)> {
        let made = |step: &(Lsn, Step)| if let Step::DatabaseCreated { database, .. } = step.1 { Some(database) } else { None };
        let made: HashSet<Oid> = self.steps.iter().filter_map(made).collect();
        let (mut all, mut marked) = (Vec::new(), None);
        for (lsn, step) in &self.steps {
            match step {
                Step::DatabaseMarked(lsn) => marked = Some(*lsn),
                Step::DatabaseCreated { database, tablespace, end } => {
                    all.push((*lsn, *end, Happening::DatabaseCreated { database: *database, tablespace: *tablespace, committed }));
                }
                Step::DatabaseDropped { database, tablespaces, end } => {
                    let (database, tablespaces) = (*database, tablespaces.clone());
                    let what = match made.contains(&database) {
                        true => Happening::DatabaseMoved { database, tablespaces, committed },
                        false => Happening::DatabaseDropped { database, tablespaces, committed },
                    };
                    all.push((marked.take().unwrap_or(*lsn), *end, what));
                }
                _ => {}
            }
        }
        all
    }
}

/// The notes of all open transactions.
#[derive(Debug)]
pub(super) struct Notes {
    limit: usize,
    /// Transactions and steps.
    kept: usize,
    open: HashMap<u32, Note>,
    prepared: HashSet<u32>,
    /// New files of open transactions, and whose they are.
    watched: HashMap<RelFileLocator, u32>,
    mapped: HashMap<(Oid, Followed), u32>,
    /// Rows of `pg_database` that were changed where they lie, and whether that is known to mark them.
    marked: HashMap<TupleId, (Lsn, Option<bool>)>,
    /// All transactions from this one on began where it was seen.
    seen_from: Option<u32>,
    not_followed: u64,
}

impl Notes {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            limit,
            kept: 0,
            open: HashMap::new(),
            prepared: HashSet::new(),
            watched: HashMap::new(),
            mapped: HashMap::new(),
            marked: HashMap::new(),
            seen_from: None,
            not_followed: 0,
        }
    }

    /// Transactions for which there was no room.
    pub(super) fn not_followed(&self) -> u64 {
        self.not_followed
    }

    pub(super) fn record(&mut self, record: &Record<'_>) {
        if let Content::RelationMap(map) = record.content() {
            for mapping in map.mappings.iter() {
                let catalog = match mapping.relation {
                    PG_CLASS => Followed::Class,
                    PG_TYPE => Followed::Type,
                    PG_DATABASE => Followed::Database,
                    _ => continue,
                };
                self.mapped.insert((map.database, catalog), mapping.number);
            }
        }
        if let Content::DatabaseCreated(created) = record.content()
            && let Some((template, _)) = created.copied_from
        {
            for catalog in [Followed::Class, Followed::Type] {
                match self.mapped.get(&(template, catalog)).copied() {
                    Some(number) => self.mapped.insert((created.database, catalog), number),
                    None => self.mapped.remove(&(created.database, catalog)),
                };
            }
        }
        if !self.watched.is_empty() {
            self.watch(record);
        }
        // The transaction may have no number yet.
        self.mark(record);
        let xid = record.xid;
        if xid == 0 {
            return;
        }
        let (unseen, length) = (self.seen_from.is_none(), record.len() as u64);
        if !self.open.contains_key(&xid) {
            if self.kept >= self.limit {
                self.not_followed += 1;
                return;
            }
            self.kept += 1;
        }
        let step = self.step(record);
        let note = self.open.entry(xid).or_insert_with(|| Note { incomplete: unseen, ..Note::default() });
        note.wal_bytes += length;
        let Some(step) = step else { return };
        if self.kept >= self.limit {
            note.incomplete = true;
            return;
        }
        self.kept += 1;
        if let Step::Created(file) = step {
            self.watched.insert(file, xid);
        }
        note.steps.push((record.start, step));
    }

    /// Takes the end of a transaction, and gives what was noted of it and of the subtransactions that end with it.
    pub(super) fn end(&mut self, xid: u32, subtransactions: impl Iterator<Item = u32>) -> Note {
        let mut joined = self.take(xid).unwrap_or(Note { incomplete: true, ..Note::default() });
        let begun_before = |xid: u32| self.seen_from.is_none_or(|from| (xid.wrapping_sub(from) as i32) < 0);
        joined.incomplete |= begun_before(xid);
        for subtransaction in subtransactions {
            // One without a record of its own has nothing to say.
            if let Some(note) = self.take(subtransaction) {
                joined.join(note);
            }
        }
        joined.steps.sort_by_key(|(lsn, _)| *lsn);
        joined
    }

    /// A transaction outlives the server from here on.
    pub(super) fn prepared(&mut self, xid: u32, subtransactions: impl Iterator<Item = u32>) {
        self.prepared.insert(xid);
        self.prepared.extend(subtransactions.filter(|xid| self.open.contains_key(xid)));
    }

    pub(super) fn checkpoint(&mut self, next_xid: u32, shutdown: bool) {
        self.seen_from.get_or_insert(next_xid);
        if shutdown {
            self.server_ended();
        }
    }

    /// No transaction is open but the prepared ones.
    pub(super) fn server_ended(&mut self) {
        let ended: Vec<u32> = self.open.keys().copied().filter(|xid| !self.prepared.contains(xid)).collect();
        ended.into_iter().for_each(|xid| drop(self.take(xid)));
    }

    /// Something was not seen.
    pub(super) fn forget(&mut self) {
        *self = Self { not_followed: self.not_followed, ..Self::new(self.limit) };
    }

    fn take(&mut self, xid: u32) -> Option<Note> {
        self.prepared.remove(&xid);
        let note = self.open.remove(&xid)?;
        self.kept -= 1 + note.steps.len();
        for (_, step) in &note.steps {
            if let Step::Created(file) = step {
                self.watched.remove(file);
            }
        }
        Some(note)
    }

    /// Notes which new files get a first page.
    fn watch(&mut self, record: &Record<'_>) {
        for block in record.blocks() {
            if !matches!(block.fork, Fork::Main | Fork::Init) {
                continue;
            }
            if let Some(note) = self.watched.get(&block.relation).and_then(|xid| self.open.get_mut(xid)) {
                let by_table = record.resource_manager == ResourceManager::HEAP || record.resource_manager.get() == HEAP2;
                note.written.entry(block.relation).or_insert(by_table);
            }
        }
    }

    /// Since its minor releases of 2023 PostgreSQL marks the row of a database that is being dropped, so that nobody connects any more, before it
    /// deletes the row and removes the files: behind the mark the database is of no use. VACUUM changes the row in place too.
    fn mark(&mut self, record: &Record<'_>) {
        if record.resource_manager != ResourceManager::HEAP {
            return;
        }
        let Some(change) = record.heap_change().filter(|change| change.operation == HeapOperation::Inplace) else { return };
        let Some(row) = change.old.filter(|_| self.is_of_databases(change.relation)) else { return };
        if self.marked.len() >= MARKED {
            self.marked.clear();
        }
        self.marked.insert(row, (record.start, connection_limit(change.row, record.version).map(|limit| limit == INVALID_DATABASE)));
    }

    fn is_of_databases(&self, file: RelFileLocator) -> bool {
        file.database == 0 && file.number == self.mapped.get(&(0, Followed::Database)).copied().unwrap_or(PG_DATABASE)
    }

    /// Where the row of a database that is deleted at `lsn` was marked. Where only an image of the page tells, it is the change just before.
    fn marked_at(&self, row: TupleId, lsn: Lsn) -> Option<Lsn> {
        const JUST_BEFORE: u64 = 16 << 20;
        let (at, is_mark) = self.marked.get(&row).copied()?;
        is_mark.unwrap_or(lsn.bytes_since(at) <= JUST_BEFORE).then_some(at)
    }

    fn step(&self, record: &Record<'_>) -> Option<Step> {
        match record.content() {
            Content::FileCreated(created) => Some(Step::Created(created.relation)),
            Content::RelationMap(_) => Some(Step::Remapped),
            Content::DatabaseCreated(created) => {
                Some(Step::DatabaseCreated { database: created.database, tablespace: created.tablespace, end: record.end })
            }
            Content::DatabaseDropped(dropped) => {
                let tablespaces = dropped.tablespaces.iter().collect();
                Some(Step::DatabaseDropped { database: dropped.database, tablespaces, end: record.end })
            }
            _ => {
                let change = record.heap_change().filter(|change| change.operation != HeapOperation::Inplace)?;
                if change.operation == HeapOperation::Delete && self.is_of_databases(change.relation) {
                    return change.old.and_then(|row| self.marked_at(row, record.start)).map(Step::DatabaseMarked);
                }
                let (database, number) = (change.relation.database, change.relation.number);
                let file = |catalog, oid| self.mapped.get(&(database, catalog)).copied().unwrap_or(oid);
                let catalog = match number {
                    _ if database == 0 => return None,
                    number if number == file(Followed::Class, PG_CLASS) => Followed::Class,
                    number if number == file(Followed::Type, PG_TYPE) => Followed::Type,
                    _ => return None,
                };
                Some(Step::Row { catalog, database, old: change.old, new: change.new })
            }
        }
    }
}

/// `datconnlimit` of a row of `pg_database` as a change in place holds it, from its first column on; `None` where only the page's image has it.
fn connection_limit(row: &[u8], version: MajorVersion) -> Option<i32> {
    // Behind oid, datname, datdba and encoding: until 14 collation and type as names, then flags.
    let at = if version.get() >= 15 { 80 } else { 208 };
    row.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map(i32::from_le_bytes)
}
