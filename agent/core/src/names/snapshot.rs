//! A catalog snapshot as a value and as text.
//!
//! JSON lines: a header, then for each database a line of it, and behind it a line for each schema and an array for each relation.
//!
//! ```text
//! {"format":1,"timeline":1,"lsn":"0/30000D8","until":"0/30001A0","taken_at":"2026-11-21T13:40:02.118204Z","left_out":0}
//! {"database":5,"name":"postgres","tablespace":1663}
//! {"schema":2200,"name":"public"}
//! [16385,16391,0,"r","p",2200,"orders",0]
//! {"database":16400,"name":"payroll","tablespace":1663,"unread":"FATAL: ..."}
//! ```
//!
//! A relation is oid, number of its files (0: it has none), tablespace (0: the database's), kind and persistence in PostgreSQL's letters, oid
//! of its schema, name, and the oid of what it belongs to (0: nothing): an index's, a TOAST table's or a column's sequence's table, a
//! partition's parent. System catalogs and temporary relations are not in it. 100,000 relations are some 5 MB of text, and a fifth of that
//! or less compressed.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};

use super::naming::{Group, GroupKind};
use super::relation::{RelationKind, RelationName};
use crate::identifier::shown;
use crate::identity::TimelineId;
use crate::journal::RelationFile;
use crate::lsn::Lsn;
use crate::record::Oid;
use crate::time::PgTimestamp;

/// The first line.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Header {
    /// Version of this text: 1.
    pub format: u32,
    /// The timeline the server was on.
    pub timeline: TimelineId,
    /// Where the server's WAL stood before the first catalog was read: whatever other sessions could see by then is shown. Of commits whose
    /// record lies before it only those are missing that nobody could see yet, as one that waits for a synchronous standby.
    pub lsn: Lsn,
    /// Where it stood after the last one was read: nothing that was committed behind it is shown.
    pub until: Lsn,
    /// The server's clock.
    pub taken_at: PgTimestamp,
    /// Relations for which there was no room.
    pub left_out: u64,
}

impl Header {
    /// The present format.
    pub const FORMAT: u32 = 1;
}

/// The text is no snapshot.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    /// A line that is none of those above.
    #[error("line {line} of the catalog snapshot cannot be read: {problem}")]
    Line {
        /// Which, from 1.
        line: usize,
        /// What is wrong.
        problem: String,
    },
    /// Of a later Walkeep.
    #[error("the catalog snapshot has format {0}; this Walkeep reads format 1: upgrade Walkeep")]
    Format(u32),
}

/// A relation's line.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Relation {
    /// `pg_class.oid`.
    pub oid: Oid,
    /// `pg_class.relfilenode`; 0 without files.
    pub file: u32,
    /// The tablespace; 0 for the database's.
    pub tablespace: Oid,
    /// What it is.
    pub kind: RelationKind,
    /// `p` permanent, `u` unlogged.
    pub persistence: char,
    /// Its schema.
    pub schema: Oid,
    /// Its name.
    pub name: String,
    /// What it belongs to; 0 for nothing.
    pub owner: Oid,
}

#[derive(Serialize, Deserialize)]
struct RelationLine<T>(Oid, u32, Oid, char, char, Oid, T, Oid);

#[derive(Serialize, Deserialize)]
struct DatabaseLine<T> {
    database: Oid,
    name: T,
    tablespace: Oid,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    unread: Option<T>,
}

#[derive(Serialize, Deserialize)]
struct SchemaLine<T> {
    schema: Oid,
    name: T,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum ObjectLine {
    Database(DatabaseLine<String>),
    Schema(SchemaLine<String>),
}

/// Writes the lines behind the header.
#[derive(Debug, Default)]
pub struct SnapshotWriter {
    body: String,
    relations: u64,
    left_out: u64,
}

impl SnapshotWriter {
    /// No snapshot has more relations.
    pub const MOST: u64 = 500_000;
    /// No snapshot's text is longer: a relation's line has at most some 460 bytes, where each byte of its name is escaped.
    pub const LONGEST: u64 = Self::MOST * 460;

    /// A database begins; `unread` says why its relations are not here.
    pub fn database(&mut self, oid: Oid, name: &str, tablespace: Oid, unread: Option<&str>) {
        self.line(&DatabaseLine { database: oid, name, tablespace, unread });
    }

    /// A schema of it, before its relations.
    pub fn schema(&mut self, oid: Oid, name: &str) {
        self.line(&SchemaLine { schema: oid, name });
    }

    /// A relation of it.
    pub fn relation(&mut self, relation: &Relation) {
        if self.relations >= Self::MOST {
            self.left_out += 1;
            return;
        }
        self.relations += 1;
        let Relation { oid, file, tablespace, kind, persistence, schema, name, owner } = relation;
        self.line(&RelationLine(*oid, *file, *tablespace, kind.letter(), *persistence, *schema, name.as_str(), *owner));
    }

    /// A writer for what belongs to one database, to be appended once it is whole.
    pub fn part(&self) -> Self {
        Self { body: String::new(), relations: self.relations, left_out: 0 }
    }

    /// Adds what a [`SnapshotWriter::part`] of this one has.
    pub fn append(&mut self, part: Self) {
        self.body.push_str(&part.body);
        self.relations = part.relations;
        self.left_out += part.left_out;
    }

    /// How many relations it has.
    pub fn relations(&self) -> u64 {
        self.relations
    }

    /// Relations for which there was no room.
    pub fn left_out(&self) -> u64 {
        self.left_out
    }

    /// What is written so far.
    pub fn body(&self) -> &str {
        &self.body
    }

    /// The whole text.
    pub fn finish(self, header: &Header) -> String {
        let mut text = serde_json::to_string(header).unwrap_or_default();
        text.push('\n');
        text.push_str(&self.body);
        text
    }

    fn line(&mut self, line: &impl Serialize) {
        // Numbers and strings: it cannot fail.
        self.body.push_str(&serde_json::to_string(line).unwrap_or_default());
        self.body.push('\n');
    }
}

/// What is behind the header: two snapshots with the same body say the same.
pub fn body(text: &str) -> &str {
    text.split_once('\n').map_or("", |(_, body)| body)
}

/// One database.
#[derive(Clone, Debug)]
pub struct Database {
    /// `pg_database.oid`.
    pub oid: Oid,
    /// Its name.
    pub name: String,
    /// Its default tablespace.
    pub tablespace: Oid,
    /// Why its relations are not known.
    pub unread: Option<String>,
    schemas: BTreeMap<Oid, String>,
    relations: Vec<Relation>,
    by_oid: HashMap<Oid, usize>,
    by_file: HashMap<(Oid, u32), usize>,
    /// Tables of a schema, and of a partitioned table.
    tables: HashMap<(GroupKind, Oid), u64>,
}

impl Database {
    fn new(line: DatabaseLine<String>) -> Self {
        let DatabaseLine { database: oid, name, tablespace, unread } = line;
        let (schemas, relations) = (BTreeMap::new(), Vec::new());
        Self { oid, name, tablespace, unread, schemas, relations, by_oid: HashMap::new(), by_file: HashMap::new(), tables: HashMap::new() }
    }

    fn add(&mut self, relation: Relation) {
        let at = self.relations.len();
        self.by_oid.insert(relation.oid, at);
        if relation.file != 0 {
            let tablespace = if relation.tablespace == 0 { self.tablespace } else { relation.tablespace };
            self.by_file.insert((tablespace, relation.file), at);
        }
        self.relations.push(relation);
    }

    fn count(&mut self) {
        let mut tables = HashMap::new();
        for relation in self.relations.iter().filter(|relation| relation.kind.is_table() && relation.file != 0) {
            for group in self.groups_of(relation) {
                *tables.entry(group).or_default() += 1;
            }
        }
        self.tables = tables;
    }

    /// The schema of a table, and the partitioned tables it is in.
    fn groups_of(&self, table: &Relation) -> Vec<(GroupKind, Oid)> {
        let parents = self.owners(table).filter(|owner| owner.kind == RelationKind::PartitionedTable);
        let partitioned = parents.map(|parent| (GroupKind::PartitionedTable, parent.oid));
        std::iter::once((GroupKind::Schema, table.schema)).chain(partitioned).collect()
    }

    /// What it belongs to, from near to far.
    fn owners<'a>(&'a self, relation: &'a Relation) -> impl Iterator<Item = &'a Relation> {
        // A damaged snapshot may have a ring.
        const DEEPEST: usize = 32;
        let owner = |relation: &Relation| self.by_oid.get(&relation.owner).map(|at| &self.relations[*at]);
        std::iter::successors(owner(relation), move |relation| owner(relation)).take(DEEPEST)
    }

    fn schema(&self, oid: Oid) -> String {
        self.schemas.get(&oid).cloned().unwrap_or_else(|| oid.to_string())
    }

    fn name_of(&self, relation: &Relation, named_at: Lsn) -> RelationName {
        let table = |owner: &&Relation| owner.kind.is_table() || owner.kind == RelationKind::PartitionedTable;
        let attached = !relation.kind.is_table() && relation.kind != RelationKind::PartitionedTable;
        let owner = if attached { self.owners(relation).find(table) } else { None };
        RelationName {
            database_name: self.name.clone(),
            schema: self.schema(relation.schema),
            name: relation.name.clone(),
            kind: relation.kind,
            belongs_to: owner.map(|owner| format!("{}.{}", shown(&self.schema(owner.schema)), shown(&owner.name))),
            named_at,
        }
    }

    fn group(&self, (kind, oid): (GroupKind, Oid)) -> Group {
        let tables = self.tables.get(&(kind, oid)).copied().unwrap_or_default();
        let (schema, name) = match kind {
            GroupKind::Schema => (self.schema(oid), None),
            GroupKind::PartitionedTable => {
                let relation = self.by_oid.get(&oid).map(|at| &self.relations[*at]);
                (relation.map_or_else(String::new, |relation| self.schema(relation.schema)), relation.map(|relation| relation.name.clone()))
            }
        };
        Group { kind, database: self.oid, oid, database_name: self.name.clone(), schema, name, tables }
    }
}

/// What the catalogs said at a moment.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// When and where.
    pub header: Header,
    databases: BTreeMap<Oid, Database>,
}

impl Snapshot {
    /// Reads the text of a snapshot.
    pub fn parse(text: &str) -> Result<Self, SnapshotError> {
        let bad = |at: usize, problem: String| SnapshotError::Line { line: at + 1, problem };
        let mut lines = text.lines().enumerate();
        let (_, first) = lines.next().ok_or_else(|| bad(0, "there is none".to_owned()))?;
        #[derive(Deserialize)]
        struct Version {
            format: u32,
        }
        let version: Version = serde_json::from_str(first).map_err(|error| bad(0, error.to_string()))?;
        if version.format != Header::FORMAT {
            return Err(SnapshotError::Format(version.format));
        }
        let header = serde_json::from_str(first).map_err(|error| bad(0, error.to_string()))?;
        let (mut databases, mut current) = (BTreeMap::new(), None::<Database>);
        for (at, line) in lines {
            if line.starts_with('[') {
                let RelationLine(oid, file, tablespace, kind, persistence, schema, name, owner) =
                    serde_json::from_str::<RelationLine<String>>(line).map_err(|error| bad(at, error.to_string()))?;
                let kind = RelationKind::of_letter(kind).ok_or_else(|| bad(at, format!("{kind:?} is no kind of relation")))?;
                let database = current.as_mut().ok_or_else(|| bad(at, "a relation of no database".to_owned()))?;
                database.add(Relation { oid, file, tablespace, kind, persistence, schema, name, owner });
                continue;
            }
            match serde_json::from_str(line).map_err(|error| bad(at, error.to_string()))? {
                ObjectLine::Database(line) => {
                    if let Some(done) = current.replace(Database::new(line)) {
                        databases.insert(done.oid, done);
                    }
                }
                ObjectLine::Schema(line) => {
                    let database = current.as_mut().ok_or_else(|| bad(at, "a schema of no database".to_owned()))?;
                    database.schemas.insert(line.schema, line.name);
                }
            }
        }
        databases.extend(current.map(|last| (last.oid, last)));
        databases.values_mut().for_each(Database::count);
        Ok(Self { header, databases })
    }

    /// A database.
    pub fn database(&self, oid: Oid) -> Option<&Database> {
        self.databases.get(&oid)
    }

    /// All databases.
    pub fn databases(&self) -> impl Iterator<Item = &Database> {
        self.databases.values()
    }

    /// The relation that has these files, and the groups it is one of.
    pub fn relation(&self, file: RelationFile) -> Option<(RelationName, Vec<Group>)> {
        let database = self.databases.get(&file.database)?;
        let relation = database.by_file.get(&(file.tablespace, file.number)).map(|at| &database.relations[*at])?;
        let groups = if relation.kind.is_table() { database.groups_of(relation) } else { Vec::new() };
        let groups = groups.into_iter().map(|group| database.group(group)).collect();
        Some((database.name_of(relation, self.header.lsn), groups))
    }

    /// Every relation's name.
    pub fn names(&self) -> impl Iterator<Item = RelationName> {
        let of = |database: &'_ Database| -> Vec<RelationName> {
            database.relations.iter().map(|relation| database.name_of(relation, self.header.lsn)).collect()
        };
        self.databases.values().flat_map(of)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(crate) fn header(lsn: u64, until: u64) -> Header {
        let (lsn, until, taken_at) = (Lsn::new(lsn), Lsn::new(until), PgTimestamp::from_micros(0));
        Header { format: 1, timeline: TimelineId::FIRST, lsn, until, taken_at, left_out: 0 }
    }

    fn relation(oid: Oid, kind: RelationKind, name: &str, owner: Oid) -> Relation {
        let file = if kind == RelationKind::PartitionedTable { 0 } else { oid + 1000 };
        Relation { oid, file, tablespace: 0, kind, persistence: 'p', schema: 2200, name: name.to_owned(), owner }
    }

    fn shop() -> String {
        let mut writer = SnapshotWriter::default();
        writer.database(5, "shop", 1663, None);
        writer.schema(2200, "public");
        writer.relation(&relation(1, RelationKind::Table, "Orders", 0));
        writer.relation(&relation(2, RelationKind::ToastTable, "pg_toast_1", 1));
        writer.relation(&relation(3, RelationKind::Index, "pg_toast_1_index", 2));
        writer.relation(&relation(4, RelationKind::PartitionedTable, "log", 0));
        writer.relation(&relation(5, RelationKind::Table, "log_1", 4));
        writer.relation(&Relation { tablespace: 16_400, ..relation(6, RelationKind::Table, "log_2", 4) });
        writer.database(6, "closed", 1663, Some("not let in"));
        writer.finish(&header(100, 110))
    }

    fn file(tablespace: Oid, number: u32) -> RelationFile {
        RelationFile { database: 5, tablespace, number }
    }

    #[test]
    fn a_file_has_its_relations_name() {
        let snapshot = Snapshot::parse(&shop()).expect("a snapshot");
        let (name, groups) = snapshot.relation(file(1663, 1001)).expect("orders");
        assert_eq!((name.to_string().as_str(), name.kind, name.named_at), ("shop.public.\"Orders\"", RelationKind::Table, Lsn::new(100)));
        assert_eq!(groups.iter().map(|group| (group.kind, group.tables)).collect::<Vec<_>>(), [(GroupKind::Schema, 3)]);
        let (name, groups) = snapshot.relation(file(1663, 1003)).expect("the index of its TOAST table");
        assert_eq!((name.belongs_to.as_deref(), groups.len()), (Some("public.\"Orders\""), 0));
        let (name, groups) = snapshot.relation(file(16_400, 1006)).expect("a partition elsewhere");
        assert_eq!((name.belongs_to, groups[1].name.as_deref(), groups[1].tables), (None, Some("log"), 2));
        assert!(snapshot.relation(file(1663, 1006)).is_none() && snapshot.relation(file(1663, 0)).is_none());
        assert_eq!(snapshot.database(6).and_then(|database| database.unread.as_deref()), Some("not let in"));
    }

    #[test]
    fn what_is_no_snapshot_is_refused() {
        let later = shop().replacen("\"format\":1", "\"format\":2", 1);
        assert_eq!(Snapshot::parse(&later).map(|_| ()), Err(SnapshotError::Format(2)));
        let header = shop().lines().next().expect("a header").to_owned();
        for line in ["[1,2]", "{}", "[1,2,0,\"r\",\"p\",2200,\"x\",0]", "{\"schema\":1,\"name\":\"x\"}", "[", "nothing"] {
            assert!(Snapshot::parse(&format!("{header}\n{line}\n")).is_err(), "{line}");
        }
        assert!(Snapshot::parse("").is_err());
    }

    #[test]
    fn a_ring_of_owners_ends() {
        let mut writer = SnapshotWriter::default();
        writer.database(5, "shop", 1663, None);
        writer.relation(&relation(1, RelationKind::Index, "one", 2));
        writer.relation(&relation(2, RelationKind::Index, "two", 1));
        let snapshot = Snapshot::parse(&writer.finish(&header(1, 1))).expect("a snapshot");
        assert_eq!(snapshot.relation(file(1663, 1001)).expect("one").0.belongs_to, None);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(relations in proptest::collection::vec((1u32.., 0u32.., 0u32..3, 0usize..6, "\\PC{0,63}", any::<u32>()), 0..40)) {
            let kinds = ['r', 'i', 'S', 't', 'm', 'p'];
            let mut writer = SnapshotWriter::default();
            writer.database(5, "a\"b\n", 1663, None);
            let relations: Vec<_> = relations.into_iter().map(|(oid, file, tablespace, kind, name, owner)| {
                let kind = RelationKind::of_letter(kinds[kind]).expect("a kind");
                Relation { oid, file, tablespace, kind, persistence: 'u', schema: 9, name, owner }
            }).collect();
            relations.iter().for_each(|relation| writer.relation(relation));
            let text = writer.finish(&header(1, 2));
            let snapshot = Snapshot::parse(&text).expect("a snapshot");
            prop_assert_eq!(&snapshot.database(5).expect("the database").relations, &relations);
            let names: Vec<_> = snapshot.names().map(|name| name.name).collect();
            prop_assert_eq!(names, relations.iter().map(|relation| relation.name.clone()).collect::<Vec<_>>());
        }

        #[test]
        fn any_text_is_an_error_or_a_snapshot(text in "\\PC{0,200}", cut in any::<prop::sample::Index>()) {
            let _ = Snapshot::parse(&text);
            let shop = shop();
            let cut = cut.index(shop.len());
            if shop.is_char_boundary(cut) {
                let _ = Snapshot::parse(&format!("{}{text}", &shop[..cut]));
            }
        }
    }
}
