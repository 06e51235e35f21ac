//! Verdicts over hand-made notes, one for each way in which rows and files go together; bounds and windows over real WAL are in
//! `tests/journal.rs`.

use crate::lsn::Lsn;
use crate::record::{RelFileLocator, TupleId};

use super::entry::{Happening, Window};
use super::notes::{Followed, Note, Step};
use super::removal::{judge, moves};
use super::{Edge, PgTimestamp};

const BEFORE: u16 = 1;

fn file(number: u32) -> RelFileLocator {
    RelFileLocator { tablespace: 1663, database: 5, number }
}

fn row(catalog: Followed, old: Option<u16>, new: Option<u16>) -> Step {
    let tuple = |offset| TupleId { block: 0, offset };
    Step::Row { catalog, database: 5, old: old.map(tuple), new: new.map(tuple) }
}

fn class(old: Option<u16>, new: Option<u16>) -> Step {
    row(Followed::Class, old, new)
}

fn note(steps: Vec<Step>) -> Note {
    let steps = steps.into_iter().enumerate().map(|(at, step)| (Lsn::new(at as u64 * 8), step)).collect();
    Note { steps, ..Note::default() }
}

/// Numbers of dropped, truncated and unclear files, and how many were rewritten.
type Verdict = (Vec<u32>, Vec<u32>, Vec<u32>, u64);

fn verdict(note: &Note, files: &[u32]) -> Option<Verdict> {
    let files: Vec<_> = files.iter().copied().map(file).collect();
    judge(note, &files).map(|what| match what {
        Happening::Removed { dropped, truncated, unclear, rewritten } => (
            dropped.iter().map(|file| file.file.number).collect(),
            truncated.iter().map(|file| file.number).collect(),
            unclear.iter().map(|file| file.number).collect(),
            rewritten,
        ),
        other => panic!("{other:?}"),
    })
}

#[test]
fn a_deleted_row_is_a_drop() {
    let types = [row(Followed::Type, Some(9), None), row(Followed::Type, Some(8), None)];
    let steps = [&[class(Some(BEFORE), None)][..], &types, &[class(Some(2), None)]].concat();
    assert_eq!(verdict(&note(steps.clone()), &[20, 10]), Some((vec![10, 20], vec![], vec![], 0)));
    let Some(Happening::Removed { dropped, .. }) = judge(&note(steps), &[file(20), file(10)]) else { panic!("nothing") };
    assert_eq!(dropped.iter().map(|file| file.table).collect::<Vec<_>>(), [Some(false), Some(true)]);
}

#[test]
fn new_files_that_stay_empty_are_a_truncation() {
    let mut note = note(vec![
        Step::Created(file(11)),
        class(Some(BEFORE), Some(5)),
        Step::Created(file(12)),
        class(Some(2), Some(6)),
        Step::Created(file(13)),
        class(Some(3), Some(7)),
    ]);
    note.written.insert(file(12), false);
    note.written.insert(file(13), true);
    // An index has its first page at once; a table's own rows do not make it less truncated.
    assert_eq!(verdict(&note, &[30, 20, 10]), Some((vec![], vec![10, 30], vec![], 1)));
}

#[test]
fn a_move_to_another_tablespace_is_none() {
    let elsewhere = RelFileLocator { tablespace: 16400, ..file(11) };
    assert_eq!(verdict(&note(vec![Step::Created(elsewhere), class(Some(BEFORE), Some(5))]), &[10]), None);
}

/// VACUUM FULL: a transient relation with the new files, which has the old ones when it is dropped.
#[test]
fn a_transient_relation_is_a_rewrite() {
    let steps = vec![
        Step::Created(file(11)),
        row(Followed::Type, None, Some(8)),
        class(None, Some(5)),
        class(Some(5), Some(6)),
        class(Some(BEFORE), Some(7)),
        row(Followed::Type, Some(8), None),
        class(Some(6), None),
    ];
    assert_eq!(verdict(&note(steps.clone()), &[10]), None);
    // With a drop in the same transaction both are told apart by their order.
    let both = [vec![class(Some(2), None)], steps].concat();
    assert_eq!(verdict(&note(both), &[10, 20]), Some((vec![20], vec![], vec![], 1)));
}

/// From old files to new ones, by number.
fn moved(steps: Vec<Step>, files: &[u32]) -> Vec<(u32, u32)> {
    let files: Vec<_> = files.iter().copied().map(file).collect();
    moves(&note(steps), &files).iter().map(|(old, new)| (old.number, new.number)).collect()
}

#[test]
fn a_relation_is_followed_to_its_new_files() {
    // VACUUM FULL of one table, TRUNCATE of another, and one dropped.
    let steps = vec![
        Step::Created(file(11)),
        class(None, Some(5)),
        class(Some(5), Some(6)),
        class(Some(BEFORE), Some(7)),
        class(Some(6), None),
        Step::Created(file(21)),
        class(Some(2), Some(8)),
        class(Some(3), None),
    ];
    assert_eq!(moved(steps, &[30, 20, 10]), [(10, 11), (20, 21)]);
    // Truncated twice: from file to file.
    let twice = vec![Step::Created(file(11)), class(Some(BEFORE), Some(5)), Step::Created(file(12)), class(Some(5), Some(6))];
    assert_eq!(moved(twice, &[11, 10]), [(10, 11), (11, 12)]);
    // What came and went has moved nowhere, and what cannot be told apart either.
    assert_eq!(moved(vec![Step::Created(file(11)), class(None, Some(5)), class(Some(5), None)], &[11]), []);
    assert_eq!(moved(vec![class(Some(1), None), class(Some(2), None), Step::Created(file(11)), class(Some(3), Some(5))], &[20, 10]), []);
}

#[test]
fn a_dropped_database_is_before_its_mark() {
    let dropped = |steps: Vec<(u64, Step)>| {
        let steps = steps.into_iter().map(|(lsn, step)| (Lsn::new(lsn), step)).collect();
        Note { steps, ..Note::default() }.databases(true)[0].0.get()
    };
    let drop = || (80, Step::DatabaseDropped { database: 9, tablespaces: vec![1663], end: Lsn::new(88) });
    assert_eq!(dropped(vec![drop()]), 80);
    assert_eq!(dropped(vec![(48, Step::DatabaseMarked(Lsn::new(40))), drop()]), 40);
}

#[test]
fn what_came_and_went_in_a_transaction_is_nothing() {
    assert_eq!(verdict(&note(vec![Step::Created(file(11)), class(None, Some(5)), class(Some(5), None)]), &[11]), None);
}

#[test]
fn a_table_truncated_and_then_dropped_is_dropped() {
    let steps = vec![Step::Created(file(11)), class(Some(BEFORE), Some(5)), class(Some(5), None)];
    assert_eq!(verdict(&note(steps), &[11, 10]), Some((vec![10], vec![], vec![], 0)));
}

#[test]
fn what_has_no_files_does_not_confuse() {
    // A view and a table dropped: which file is the table's is known, whether it is a table is not.
    let steps = vec![class(Some(BEFORE), None), class(Some(2), None)];
    let Some(Happening::Removed { dropped, .. }) = judge(&note(steps.clone()), &[file(10)]) else { panic!("nothing") };
    assert_eq!(dropped.iter().map(|file| file.table).collect::<Vec<_>>(), [None]);
    // A temporary table dropped, and a table truncated.
    let steps = [steps, vec![Step::Created(file(11)), class(Some(3), Some(5))]].concat();
    assert_eq!(verdict(&note(steps), &[10]), Some((vec![], vec![10], vec![], 0)));
    // A temporary table made and dropped.
    assert_eq!(verdict(&note(vec![class(None, Some(5)), class(Some(5), None), class(Some(1), None)]), &[10]).map(|v| v.0), Some(vec![10]));
}

#[test]
fn what_cannot_be_decided_is_unclear() {
    let unclear = |files: &[u32]| Some((vec![], vec![], files.to_vec(), 0));
    // Two dropped, one of them without files, and one truncated.
    let mixed = vec![class(Some(1), None), class(Some(2), None), Step::Created(file(11)), class(Some(3), Some(5))];
    assert_eq!(verdict(&note(mixed), &[20, 10]), unclear(&[10, 20]));
    // Nothing of it was seen: pg_class may have had files of another number.
    assert_eq!(verdict(&note(vec![]), &[10]), unclear(&[10]));
    // Its beginning was not seen.
    let partial = Note { incomplete: true, ..note(vec![class(Some(1), None)]) };
    assert_eq!(verdict(&partial, &[20, 10]), unclear(&[10, 20]));
    assert_eq!(verdict(&partial, &[10]), Some((vec![10], vec![], vec![], 0)), "as many causes as files");
}

#[test]
fn a_rewritten_catalog_is_no_drop() {
    assert_eq!(verdict(&note(vec![Step::Created(file(11)), class(Some(1), None), Step::Remapped]), &[1259, 10]), None);
}

#[test]
fn a_window_has_its_times_and_not_its_last_position() {
    let (time, lsn) = (|micros| Some(PgTimestamp::from_micros(micros)), Lsn::new);
    let times = Window { from: time(5).map(Edge::Time), to: time(7).map(Edge::Time) };
    assert_eq!([4, 5, 7, 8].map(|at| times.contains(lsn(0), time(at))), [false, true, true, false]);
    assert!(times.contains(lsn(0), None));
    let places = Window { from: Some(Edge::Lsn(lsn(5))), to: Some(Edge::Lsn(lsn(7))) };
    assert_eq!([4, 5, 6, 7].map(|at| places.contains(lsn(at), None)), [false, true, true, false]);
}
