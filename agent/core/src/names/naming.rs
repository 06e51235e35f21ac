//! From the number of a file that went to a name: which snapshots are asked, in which order, and when the answer is that none knows.
//!
//! A snapshot shows whatever could be seen when it began and nothing that was committed after it ended. So the newest one that ended before
//! a file went knows it, unless its relation came after that; of one that was being taken just then the one before is asked too. A file
//! that no snapshot knows may be what a rewrite gave to a relation: then it is asked for the file from before, as of the rewrite.

use std::collections::{BTreeMap, HashMap};

use super::relation::RelationName;
use super::snapshot::Snapshot;
use crate::journal::{Move, RelationFile};
use crate::lsn::Lsn;
use crate::record::Oid;

/// So many snapshots are asked for one file at most: a database that cannot be read is in none of them.
const MOST_ASKED: u32 = 16;
/// So many rewrites of one relation are followed.
const MOST_MOVES: u32 = 1000;

/// Whose name is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Subject {
    /// The relation of these files.
    File(RelationFile),
    /// A database.
    Database(Oid),
}

/// A question: what was this called just before?
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Question {
    /// Before this position.
    pub at: Lsn,
    /// What.
    pub subject: Subject,
}

/// What makes tables one thing, to drop them all is to drop that.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum GroupKind {
    /// A schema.
    Schema,
    /// A partitioned table.
    PartitionedTable,
}

/// A schema, or a partitioned table, that a table belongs to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Group {
    /// Which of both.
    pub kind: GroupKind,
    /// Its database.
    pub database: Oid,
    /// Its oid there.
    pub oid: Oid,
    /// The database's name.
    pub database_name: String,
    /// The schema.
    pub schema: String,
    /// The partitioned table.
    pub name: Option<String>,
    /// How many tables with files it had.
    pub tables: u64,
}

/// An answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Found {
    /// A relation, and what it is a part of.
    Relation(RelationName, Vec<Group>),
    /// A database's name.
    Database(String),
}

#[derive(Debug)]
struct Pending {
    id: usize,
    question: Question,
    asked: u32,
    moves: u32,
}

/// Answers questions out of snapshots, which it asks for one at a time, newest first, and each once.
#[derive(Debug)]
pub struct Naming {
    /// Positions of the snapshots, ascending.
    snapshots: Vec<Lsn>,
    /// From new files to those before.
    moves: HashMap<RelationFile, Vec<(Lsn, RelationFile)>>,
    /// By the snapshot to ask next.
    waiting: BTreeMap<usize, Vec<Pending>>,
    found: Vec<Option<Found>>,
}

impl Naming {
    /// Begins. `snapshots` are where the stored ones along a timeline path stand, ascending.
    pub fn new(snapshots: Vec<Lsn>, moves: &[Move], questions: &[Question]) -> Self {
        let mut before: HashMap<_, Vec<_>> = HashMap::new();
        moves.iter().for_each(|moved| before.entry(moved.new).or_default().push((moved.lsn, moved.old)));
        let mut naming = Self { snapshots, moves: before, waiting: BTreeMap::new(), found: vec![None; questions.len()] };
        for (id, question) in questions.iter().enumerate() {
            naming.ask(Pending { id, question: *question, asked: 0, moves: 0 });
        }
        naming
    }

    /// The snapshot to show next; `None` once all is answered that can be.
    pub fn wants(&self) -> Option<usize> {
        self.waiting.last_key_value().map(|(at, _)| *at)
    }

    /// Shows the snapshot asked for; `None` if it cannot be read.
    pub fn show(&mut self, at: usize, snapshot: Option<&Snapshot>) {
        while let Some(waiting) = self.waiting.remove(&at) {
            waiting.into_iter().for_each(|pending| self.look(at, snapshot, pending));
        }
    }

    /// The answers, in the order of the questions.
    pub fn finish(self) -> Vec<Option<Found>> {
        self.found
    }

    fn look(&mut self, at: usize, snapshot: Option<&Snapshot>, pending: Pending) {
        let Question { at: lsn, subject } = pending.question;
        let (found, database) = match subject {
            Subject::File(file) => {
                (snapshot.and_then(|it| it.relation(file)).map(|(name, groups)| Found::Relation(name, groups)), file.database)
            }
            Subject::Database(oid) => {
                (snapshot.and_then(|it| it.database(oid)).map(|database| Found::Database(database.name.clone())), oid)
            }
        };
        if found.is_some() {
            self.found[pending.id] = found;
            return;
        }
        // It has looked everywhere there, and ended before the file went: older ones know no more.
        let looked = |it: &&Snapshot| it.header.left_out == 0 && it.database(database).is_none_or(|database| database.unread.is_none());
        let settled = snapshot.filter(looked).is_some_and(|it| it.header.until <= lsn);
        let last = at == 0 || pending.asked >= MOST_ASKED;
        if settled || last {
            self.follow(pending);
            return;
        }
        self.waiting.entry(at - 1).or_default().push(Pending { asked: pending.asked + 1, ..pending });
    }

    /// Asks for the file that the relation had before this one.
    fn follow(&mut self, pending: Pending) {
        let Question { at, subject: Subject::File(file) } = pending.question else { return };
        let moves = self.moves.get(&file).into_iter().flatten();
        let newest = moves.filter(|(lsn, _)| *lsn <= at).max_by_key(|(lsn, _)| *lsn).copied();
        if let Some((lsn, old)) = newest.filter(|_| pending.moves < MOST_MOVES) {
            let question = Question { at: lsn, subject: Subject::File(old) };
            self.ask(Pending { question, asked: 0, moves: pending.moves + 1, ..pending });
        }
    }

    fn ask(&mut self, pending: Pending) {
        let before = self.snapshots.partition_point(|lsn| *lsn <= pending.question.at);
        match before.checked_sub(1) {
            Some(at) => self.waiting.entry(at).or_default().push(pending),
            None => self.follow(pending),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::identity::TimelineId;
    use crate::names::{Header, Relation, RelationKind, SnapshotWriter};
    use crate::time::PgTimestamp;

    fn file(number: u32) -> RelationFile {
        RelationFile { database: 5, tablespace: 1663, number }
    }

    /// A snapshot from `lsn` to `until` with these tables; `None`: the database could not be read.
    fn snapshot(lsn: u64, until: u64, tables: Option<&[(u32, &str)]>) -> Snapshot {
        let mut writer = SnapshotWriter::default();
        writer.database(5, "shop", 1663, tables.is_none().then_some("not let in"));
        writer.schema(2200, "public");
        for (number, name) in tables.unwrap_or_default() {
            let (kind, name) = (RelationKind::Table, (*name).to_owned());
            let relation = Relation { oid: *number, file: *number, tablespace: 0, kind, persistence: 'p', schema: 2200, name, owner: 0 };
            writer.relation(&relation);
        }
        let (lsn, until, taken_at) = (Lsn::new(lsn), Lsn::new(until), PgTimestamp::from_micros(0));
        let text = writer.finish(&Header { format: 1, timeline: TimelineId::FIRST, lsn, until, taken_at, left_out: 0 });
        Snapshot::parse(&text).expect("a snapshot")
    }

    /// What the file is called that went at `at`, and which snapshots were asked.
    fn name(snapshots: &[Snapshot], moves: &[(u64, u32, u32)], at: u64, number: u32) -> (Option<String>, Vec<usize>) {
        let moves: Vec<_> = moves.iter().map(|(lsn, old, new)| Move { lsn: Lsn::new(*lsn), old: file(*old), new: file(*new) }).collect();
        let places = snapshots.iter().map(|snapshot| snapshot.header.lsn).collect();
        let question = Question { at: Lsn::new(at), subject: Subject::File(file(number)) };
        let (mut naming, mut asked) = (Naming::new(places, &moves, &[question]), Vec::new());
        while let Some(at) = naming.wants() {
            asked.push(at);
            naming.show(at, Some(&snapshots[at]));
        }
        let found = naming.finish().remove(0).map(|found| match found {
            Found::Relation(name, _) => name.name,
            Found::Database(name) => name,
        });
        (found, asked)
    }

    #[test]
    fn the_newest_snapshot_before_it_knows_the_name() {
        let all = [snapshot(10, 11, Some(&[(1, "old")])), snapshot(20, 21, Some(&[(1, "new")])), snapshot(30, 31, Some(&[(1, "later")]))];
        assert_eq!(name(&all, &[], 25, 1), (Some("new".to_owned()), vec![1]));
        assert_eq!(name(&all, &[], 9, 1), (None, vec![]));
        // It ended before: an older one is not asked.
        assert_eq!(name(&all, &[], 25, 2), (None, vec![1]));
    }

    #[test]
    fn a_snapshot_that_was_being_taken_may_have_come_too_late() {
        let all = [snapshot(10, 11, Some(&[(1, "t")])), snapshot(20, 29, Some(&[]))];
        assert_eq!(name(&all, &[], 25, 1), (Some("t".to_owned()), vec![1, 0]));
        assert_eq!(name(&all, &[], 29, 1), (None, vec![1]));
    }

    #[test]
    fn a_database_that_could_not_be_read_is_looked_for_before() {
        let all = [snapshot(10, 11, Some(&[(1, "t")])), snapshot(20, 21, None)];
        assert_eq!(name(&all, &[], 25, 1), (Some("t".to_owned()), vec![1, 0]));
    }

    /// What befell a table.
    #[derive(Clone, Copy, Debug)]
    enum Act {
        Create,
        Rewrite(usize),
        Drop(usize),
        /// A snapshot, which shows what is there as it is half done, and ends so many acts later.
        Snapshot(u64, u64),
    }

    fn act() -> impl Strategy<Value = Act> {
        prop_oneof![
            2 => Just(Act::Create),
            3 => any::<usize>().prop_map(Act::Rewrite),
            2 => any::<usize>().prop_map(Act::Drop),
            2 => (0u64..3, 0u64..3).prop_map(|(shown, end)| Act::Snapshot(shown, end)),
        ]
    }

    proptest! {
        /// Whatever happens, and whenever snapshots are taken: a dropped table has its name if and only if one of them saw it.
        #[test]
        fn a_table_that_was_seen_has_its_name(acts in proptest::collection::vec(act(), 1..60)) {
            let (mut alive, mut made, mut files) = (Vec::<(u32, String)>::new(), 0, 0);
            let (mut snapshots, mut taking) = (Vec::new(), None::<(u64, u64, u64)>);
            let (mut moves, mut seen, mut drops) = (Vec::new(), BTreeSet::<String>::new(), Vec::new());
            let mut shown = None;
            for (at, act) in acts.iter().enumerate() {
                let lsn = at as u64 * 10;
                if let Some((begun, show, end)) = taking {
                    // Before this act, as it may be.
                    if show == 0 && shown.is_none() {
                        shown = Some(alive.clone());
                        seen.extend(alive.iter().map(|(_, name)| name.clone()));
                    }
                    taking = Some((begun, show.saturating_sub(1), if show == 0 { end.saturating_sub(1) } else { end }));
                    if show == 0 && end == 0 && let Some(alive) = shown.take() {
                        let tables: Vec<_> = alive.iter().map(|(file, name)| (*file, name.as_str())).collect();
                        snapshots.push(snapshot(begun, lsn - 5, Some(&tables)));
                        taking = None;
                    }
                }
                match *act {
                    Act::Create => {
                        (made, files) = (made + 1, files + 1);
                        alive.push((files, format!("t{made}")));
                    }
                    Act::Rewrite(which) if !alive.is_empty() => {
                        files += 1;
                        let which = which % alive.len();
                        let old = std::mem::replace(&mut alive[which].0, files);
                        moves.push((lsn, old, files));
                    }
                    Act::Drop(which) if !alive.is_empty() => {
                        let (file, name) = alive.swap_remove(which % alive.len());
                        drops.push((lsn, file, seen.contains(&name).then_some(name)));
                    }
                    Act::Snapshot(show, end) if taking.is_none() => taking = Some((lsn, show, end)),
                    _ => {}
                }
            }
            // One that was not finished is not stored.
            let stored: BTreeSet<String> = snapshots.iter().flat_map(|it| it.names().map(|name| name.name).collect::<Vec<_>>()).collect();
            for (lsn, file, name_then) in drops {
                let expected = name_then.filter(|name| stored.contains(name));
                prop_assert_eq!(name(&snapshots, &moves, lsn, file).0, expected, "dropped at {}", lsn);
            }
        }
    }

    #[test]
    fn rewrites_are_followed() {
        let all = [snapshot(10, 11, Some(&[(1, "t")])), snapshot(50, 51, Some(&[(4, "t")]))];
        let moves = [(15, 1, 2), (16, 2, 3), (40, 3, 4)];
        assert_eq!(name(&all, &moves, 20, 3), (Some("t".to_owned()), vec![0]));
        assert_eq!(name(&all, &moves, 60, 4), (Some("t".to_owned()), vec![1]));
        assert_eq!(name(&all, &moves, 15, 3), (None, vec![0]), "only what was rewritten by then");
        // The rewrite is from the time of the snapshot, which shows what was before.
        let racing = [snapshot(10, 19, Some(&[(1, "t")]))];
        assert_eq!(name(&racing, &[(15, 1, 2)], 25, 2).0, Some("t".to_owned()));
        // Numbers in a ring end.
        assert_eq!(name(&all, &[(15, 8, 9), (15, 9, 8)], 20, 8).0, None);
    }
}
