//! Entries of the journal with names, and the accidents among them that a table's name leads to.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use super::naming::{Found, Group, GroupKind, Question, Subject};
use super::relation::RelationName;
use super::wanted::Wanted;
use crate::identifier::shown;
use crate::journal::{Entry, Happening, RelationFile};
use crate::lsn::Lsn;
use crate::record::Oid;
use crate::time::PgTimestamp;

/// Files, and the relation that had them.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct NamedFile {
    /// The files.
    #[serde(flatten)]
    pub file: RelationFile,
    /// Whether it was a table; of dropped ones only. Certain where there is a name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub table: Option<Option<bool>>,
    /// The name; `None` if no snapshot saw it.
    #[serde(flatten)]
    pub name: Option<RelationName>,
}

/// A schema or a partitioned table of which every table went, the last of them here.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Whole {
    /// Which of both.
    pub kind: GroupKind,
    /// Its database.
    pub database_name: String,
    /// The schema.
    pub schema: String,
    /// The partitioned table.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// How many tables it had.
    pub tables: u64,
}

impl fmt::Display for Whole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", shown(&self.database_name), shown(&self.schema))?;
        self.name.iter().try_for_each(|name| write!(f, ".{}", shown(name)))
    }
}

/// [`Happening::Removed`] with names.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct NamedRemoval {
    /// As in [`Entry`].
    pub lsn: Lsn,
    /// As in [`Entry`].
    pub end: Lsn,
    /// As in [`Entry`].
    pub time: Option<PgTimestamp>,
    /// As in [`Entry`].
    pub xid: Option<u32>,
    what: &'static str,
    /// Dropped.
    pub dropped: Vec<NamedFile>,
    /// Truncated.
    pub truncated: Vec<NamedFile>,
    /// Dropped, truncated or rewritten.
    pub unclear: Vec<NamedFile>,
    /// Files of relations that have others now.
    pub rewritten: u64,
    /// Schemas and partitioned tables of which no table that the snapshot knows is left. Whether what held them was dropped too, is not told.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub dropped_whole: Vec<Whole>,
    /// The same of truncated ones.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub truncated_whole: Vec<Whole>,
}

/// An entry with the names that are known.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(untagged)]
pub enum NamedEntry<'a> {
    /// Relations were removed.
    Removed(NamedRemoval),
    /// Something was done to a database.
    Database {
        /// What.
        #[serde(flatten)]
        entry: &'a Entry,
        /// Its name.
        #[serde(skip_serializing_if = "Option::is_none")]
        database_name: Option<String>,
    },
    /// What has no names to be found.
    Other(&'a Entry),
}

impl NamedEntry<'_> {
    /// Where its record begins.
    pub fn lsn(&self) -> Lsn {
        match self {
            Self::Removed(removal) => removal.lsn,
            Self::Database { entry, .. } | Self::Other(entry) => entry.lsn,
        }
    }

    /// When.
    pub fn time(&self) -> Option<PgTimestamp> {
        match self {
            Self::Removed(removal) => removal.time,
            Self::Database { entry, .. } | Self::Other(entry) => entry.time,
        }
    }

    /// Whose.
    pub fn xid(&self) -> Option<u32> {
        match self {
            Self::Removed(removal) => removal.xid,
            Self::Database { entry, .. } | Self::Other(entry) => entry.xid,
        }
    }
}

fn subjects(entry: &Entry) -> Vec<Subject> {
    match &entry.what {
        Happening::Removed { dropped, truncated, unclear, .. } => {
            let files = dropped.iter().map(|file| file.file).chain(truncated.iter().copied()).chain(unclear.iter().copied());
            files.map(Subject::File).collect()
        }
        Happening::DatabaseDropped { database, .. } | Happening::DatabaseMoved { database, .. } => vec![Subject::Database(*database)],
        _ => Vec::new(),
    }
}

/// What has to be asked to name these entries.
pub fn questions(entries: &[&Entry]) -> Vec<Question> {
    let of = |entry: &&Entry| {
        let at = entry.lsn;
        subjects(entry).into_iter().map(move |subject| Question { at, subject })
    };
    entries.iter().flat_map(of).collect()
}

/// The entries, in LSN order, with the answers to [`questions`] about them.
pub fn named<'a>(entries: &[&'a Entry], answers: Vec<Option<Found>>) -> Vec<NamedEntry<'a>> {
    let (mut answers, mut gone) = (answers.into_iter(), Gone::new());
    let name = |entry: &&'a Entry| match &entry.what {
        Happening::Removed { dropped, truncated, unclear, rewritten } => {
            let (dropped, groups) = list(dropped.iter().map(|file| (file.file, Some(file.table))), &mut answers);
            let dropped_whole = whole(&groups, &mut gone);
            let (truncated, groups) = list(truncated.iter().map(|file| (*file, None)), &mut answers);
            // These are still there.
            let truncated_whole = whole(&groups, &mut Gone::new());
            let (unclear, _) = list(unclear.iter().map(|file| (*file, None)), &mut answers);
            let Entry { lsn, end, time, xid, .. } = **entry;
            let (what, rewritten) = ("removed", *rewritten);
            NamedEntry::Removed(NamedRemoval {
                lsn,
                end,
                time,
                xid,
                what,
                dropped,
                truncated,
                unclear,
                rewritten,
                dropped_whole,
                truncated_whole,
            })
        }
        Happening::DatabaseDropped { .. } | Happening::DatabaseMoved { .. } => {
            let database_name = match answers.next().flatten() {
                Some(Found::Database(name)) => Some(name),
                _ => None,
            };
            NamedEntry::Database { entry, database_name }
        }
        _ => NamedEntry::Other(entry),
    };
    entries.iter().map(name).collect()
}

/// Files with the next answers, and the groups that their tables are in.
fn list(
    files: impl Iterator<Item = (RelationFile, Option<Option<bool>>)>,
    answers: &mut impl Iterator<Item = Option<Found>>,
) -> (Vec<NamedFile>, Vec<(Lsn, Group)>) {
    let (mut named, mut all) = (Vec::new(), Vec::new());
    for (file, table) in files {
        let Some(Found::Relation(name, groups)) = answers.next().flatten() else {
            named.push(NamedFile { file, table, name: None });
            continue;
        };
        all.extend(groups.into_iter().map(|group| (name.named_at, group)));
        named.push(NamedFile { file, table: table.map(|_| Some(name.kind.is_table())), name: Some(name) });
    }
    (named, all)
}

/// Tables of groups that went: by the snapshot that named them, and the group.
type Gone = BTreeMap<(Lsn, GroupKind, Oid, Oid), u64>;

/// Groups of which nothing is left after these tables went, and those before.
fn whole(groups: &[(Lsn, Group)], gone: &mut Gone) -> Vec<Whole> {
    let mut all = Vec::new();
    for (named_at, group) in groups {
        let went = gone.entry((*named_at, group.kind, group.database, group.oid)).or_default();
        *went += 1;
        if *went == group.tables {
            let Group { kind, database_name, schema, name, tables, .. } = group.clone();
            all.push(Whole { kind, database_name, schema, name, tables });
        }
    }
    all
}

/// What an operator wants to be before.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Sought {
    /// A drop of a table.
    Drop(Wanted),
    /// A truncation of a table.
    Truncate(Wanted),
    /// A drop of a database, by its name.
    DropDatabase(String),
}

impl fmt::Display for Sought {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Drop(wanted) => write!(f, "a drop of {wanted}"),
            Self::Truncate(wanted) => write!(f, "a truncation of {wanted}"),
            Self::DropDatabase(name) => write!(f, "a drop of the database {}", shown(name)),
        }
    }
}

/// What kind of accident.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AccidentKind {
    /// Tables were dropped.
    Drop,
    /// Tables were truncated.
    Truncate,
    /// A database was dropped.
    DropDatabase,
    /// Files went, and the WAL does not tell whether their table was dropped, truncated or rewritten.
    Unclear,
}

impl AccidentKind {
    /// In words.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Drop => "DROP of",
            Self::Truncate => "TRUNCATE of",
            Self::DropDatabase => "DROP of database",
            Self::Unclear => "DROP, TRUNCATE or only a rewrite (the WAL does not tell) of",
        }
    }
}

/// An accident that a name led to.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Accident {
    /// What happened.
    pub what: AccidentKind,
    /// To what: full names.
    pub names: Vec<String>,
    /// Stopping just before this position is stopping before it happened.
    pub lsn: Lsn,
    /// When, by the server's clock.
    pub time: Option<PgTimestamp>,
    /// Whose doing it was.
    pub xid: Option<u32>,
    /// The oldest of the catalog snapshots that knew the names: what was renamed since then is told by its former name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub named_at: Option<Lsn>,
    /// Tables that went, by all that was looked at, and of which no snapshot knew the name: it may have been one of these.
    pub unnamed: usize,
}

impl fmt::Display for Accident {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// Names in one line for people.
        const NAMED: usize = 8;
        write!(f, "{} {}", self.what.as_str(), self.names[..self.names.len().min(NAMED)].join(", "))?;
        if self.names.len() > NAMED {
            write!(f, " and {} more", self.names.len() - NAMED)?;
        }
        self.xid.iter().try_for_each(|xid| write!(f, ", xid {xid}"))?;
        self.time.iter().try_for_each(|time| write!(f, ", at {time}"))?;
        write!(f, ", LSN {}", self.lsn)?;
        self.named_at.iter().try_for_each(|at| write!(f, "; so called when the catalogs were read at {at}"))?;
        match self.unnamed {
            0 => Ok(()),
            1 => f.write_str("; but a table went of which no snapshot knew the name, see `walkeep log --dropped`"),
            more => write!(f, "; but {more} tables went of which no snapshot knew the name, see `walkeep log --dropped`"),
        }
    }
}

/// The accidents that are meant, in LSN order.
pub fn accidents(entries: &[NamedEntry<'_>], sought: &Sought) -> Vec<Accident> {
    let mut found: Vec<(Accident, bool)> = entries.iter().flat_map(|entry| of_entry(entry, sought)).collect();
    // Who asks for a schema means the moment when all of it went, if there is one.
    if found.iter().any(|(_, whole)| *whole) {
        found.retain(|(_, whole)| *whole);
    }
    let nameless = |file: &&NamedFile| file.name.is_none() && file.table.flatten() != Some(false);
    let of_removal = |entry: &NamedEntry<'_>| match (entry, sought) {
        (NamedEntry::Removed(removal), Sought::Drop(_)) => removal.dropped.iter().chain(&removal.unclear).filter(nameless).count(),
        (NamedEntry::Removed(removal), Sought::Truncate(_)) => removal.truncated.iter().chain(&removal.unclear).filter(nameless).count(),
        _ => 0,
    };
    let unnamed = entries.iter().map(of_removal).sum();
    let mut accidents: Vec<_> = found.into_iter().map(|(accident, _)| Accident { unnamed, ..accident }).collect();
    accidents.sort_by_key(|accident| accident.lsn);
    accidents
}

fn of_entry(entry: &NamedEntry<'_>, sought: &Sought) -> Vec<(Accident, bool)> {
    let accident = |what, names| {
        let (lsn, time, xid) = (entry.lsn(), entry.time(), entry.xid());
        Accident { what, names, lsn, time, xid, named_at: None, unnamed: 0 }
    };
    let (wanted, what) = match (sought, entry) {
        (Sought::DropDatabase(wanted), NamedEntry::Database { entry: Entry { what, .. }, database_name: Some(name) }) => {
            let dropped = matches!(what, Happening::DatabaseDropped { .. }) && name == wanted;
            let found = dropped.then(|| (accident(AccidentKind::DropDatabase, vec![shown(name)]), false));
            return found.into_iter().collect();
        }
        (Sought::DropDatabase(_), _) => return Vec::new(),
        (Sought::Drop(wanted), _) => (wanted, AccidentKind::Drop),
        (Sought::Truncate(wanted), _) => (wanted, AccidentKind::Truncate),
    };
    let NamedEntry::Removed(removal) = entry else { return Vec::new() };
    let (files, wholes) = match what {
        AccidentKind::Truncate => (&removal.truncated, &removal.truncated_whole),
        _ => (&removal.dropped, &removal.dropped_whole),
    };
    let whole: Vec<&Whole> = wholes
        .iter()
        .filter(|whole| {
            whole.name.is_none() == wanted.is_schema() && wanted.fits(&whole.database_name, &whole.schema, whole.name.as_deref())
        })
        .collect();
    let partitioned = whole.iter().filter(|whole| whole.name.is_some()).map(ToString::to_string);
    let mut found = Vec::new();
    let named_at = |files| matching(files, wanted).map(|name| name.named_at).min();
    let names: Vec<String> = matching(files, wanted).map(ToString::to_string).chain(partitioned).collect();
    if !names.is_empty() {
        found.push((Accident { named_at: named_at(files), ..accident(what, names) }, wanted.is_schema() && !whole.is_empty()));
    }
    let unclear: Vec<String> = matching(&removal.unclear, wanted).map(ToString::to_string).collect();
    if !unclear.is_empty() {
        found.push((Accident { named_at: named_at(&removal.unclear), ..accident(AccidentKind::Unclear, unclear) }, false));
    }
    found
}

fn matching<'a>(files: &'a [NamedFile], wanted: &'a Wanted) -> impl Iterator<Item = &'a RelationName> + 'a {
    let names = files.iter().filter_map(|file| file.name.as_ref());
    names.filter(|name| wanted.is(name) && (!wanted.is_schema() || name.kind.is_table()))
}

/// Full names, near to what is sought, of what went, nearest first.
pub fn similar(entries: &[NamedEntry<'_>], sought: &Sought) -> Vec<String> {
    const MOST: usize = 8;
    let mut near: Vec<(usize, String)> = Vec::new();
    for entry in entries {
        match (entry, sought) {
            (NamedEntry::Removed(removal), Sought::Drop(wanted) | Sought::Truncate(wanted)) => {
                let files = removal.dropped.iter().chain(&removal.truncated).chain(&removal.unclear);
                let names = files.filter_map(|file| file.name.as_ref()).filter(|name| name.kind.is_table());
                near.extend(names.filter_map(|name| wanted.distance(name).map(|distance| (distance, name.to_string()))));
            }
            (NamedEntry::Database { database_name: Some(name), .. }, Sought::DropDatabase(_)) => near.push((0, shown(name))),
            _ => {}
        }
    }
    near.sort();
    near.dedup();
    near.into_iter().take(MOST).map(|(_, name)| name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::DroppedFile;
    use crate::names::RelationKind;

    fn name(schema: &str, name: &str, kind: RelationKind) -> RelationName {
        let (database_name, schema, name) = ("shop".to_owned(), schema.to_owned(), name.to_owned());
        RelationName { database_name, schema, name, kind, belongs_to: None, named_at: Lsn::ZERO }
    }

    fn group(schema: &str, tables: u64) -> Group {
        let (database_name, schema) = ("shop".to_owned(), schema.to_owned());
        Group { kind: GroupKind::Schema, database: 5, oid: 9, database_name, schema, name: None, tables }
    }

    fn file(number: u32) -> RelationFile {
        RelationFile { database: 5, tablespace: 1663, number }
    }

    fn dropped(lsn: u64, files: &[u32], truncated: &[u32]) -> Entry {
        let dropped = files.iter().map(|number| DroppedFile { file: file(*number), table: None }).collect();
        let truncated = truncated.iter().map(|number| file(*number)).collect();
        let what = Happening::Removed { dropped, truncated, unclear: Vec::new(), rewritten: 0 };
        Entry { lsn: Lsn::new(lsn), end: Lsn::new(lsn + 8), time: None, xid: Some(lsn as u32), what }
    }

    fn relation(schema: &str, of: &str, tables: u64) -> Option<Found> {
        Some(Found::Relation(name(schema, of, RelationKind::Table), vec![group(schema, tables)]))
    }

    fn found(entries: &[NamedEntry<'_>], text: &str) -> Vec<(u64, usize)> {
        let sought = Sought::Drop(text.parse().expect(text));
        accidents(entries, &sought).iter().map(|accident| (accident.lsn.get(), accident.names.len())).collect()
    }

    #[test]
    fn a_name_leads_to_what_dropped_it() {
        let entries = [dropped(10, &[1], &[]), dropped(20, &[2, 3], &[4]), dropped(30, &[5], &[])];
        let entries: Vec<&Entry> = entries.iter().collect();
        assert_eq!(questions(&entries).len(), 5);
        let answers = vec![relation("s", "a", 2), relation("s", "a", 2), relation("s", "b", 2), relation("s", "c", 3), None];
        let named = named(&entries, answers);
        assert_eq!(found(&named, "a"), [(10, 1), (20, 1)], "dropped twice");
        assert_eq!((found(&named, "s.b"), found(&named, "t.b"), found(&named, "c")), (vec![(20, 1)], vec![], vec![]));
        assert_eq!(found(&named, "s.*"), [(20, 2)], "the whole schema went there");
        let truncated = accidents(&named, &Sought::Truncate("c".parse().expect("a table")));
        assert_eq!(truncated.iter().map(|accident| accident.what).collect::<Vec<_>>(), [AccidentKind::Truncate]);
        assert_eq!(similar(&named, &Sought::Drop("B".parse().expect("a table"))), ["shop.s.b", "shop.s.a", "shop.s.c"], "nearest first");
        let NamedEntry::Removed(removal) = &named[1] else { panic!("{named:?}") };
        assert_eq!((removal.dropped_whole[0].to_string(), removal.truncated_whole.len()), ("shop.s".to_owned(), 0));
        assert_eq!(removal.dropped[0].table, Some(Some(true)), "certain");

        // One by one: with the last of them all are gone.
        let entries = [dropped(10, &[1], &[2]), dropped(20, &[2], &[])];
        let entries: Vec<&Entry> = entries.iter().collect();
        let step = super::named(&entries, vec![relation("s", "a", 2), relation("s", "b", 2), relation("s", "b", 2)]);
        let wholes = |entry: &NamedEntry<'_>| if let NamedEntry::Removed(removal) = entry { removal.dropped_whole.len() } else { 9 };
        assert_eq!((wholes(&step[0]), wholes(&step[1]), found(&step, "s.*")), (0, 1, vec![(20, 1)]));
    }

    #[test]
    fn json_has_names_beside_the_numbers() {
        let entry = dropped(10, &[1, 2], &[3]);
        let named = named(&[&entry], vec![relation("s", "a", 2), None, relation("s", "b", 2)]);
        let json = serde_json::to_value(&named).expect("JSON");
        let first = &json[0]["dropped"][0];
        assert_eq!((&first["number"], &first["name"], &first["database_name"]), (&1.into(), &"a".into(), &"shop".into()));
        assert_eq!((&first["schema"], &first["kind"], &first["table"]), (&"s".into(), &"table".into(), &true.into()));
        let second = &json[0]["dropped"][1];
        assert!(second["table"].is_null() && second.get("table").is_some() && second.get("name").is_none(), "{json}");
        assert!(json[0]["truncated"][0].get("table").is_none() && json[0]["what"] == "removed", "{json}");
    }
}
