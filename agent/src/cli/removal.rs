//! What was dropped and truncated, in words: tables by name, with what belongs to them; by number what no snapshot knew.

use std::collections::{BTreeMap, BTreeSet};

use walkeep_core::identifier::shown;
use walkeep_core::journal::RelationFile;
use walkeep_core::names::{GroupKind, NamedEntry, NamedFile, NamedRemoval, RelationKind, RelationName, Whole};

use super::output;

/// Names in one line for people; all are in the JSON.
const NAMED: usize = 8;

/// Said of what has no name.
pub const UNSEEN: &str = "(no snapshot saw it)";

/// How many files have no name.
pub fn unnamed(entries: &[NamedEntry<'_>]) -> usize {
    let of = |entry: &NamedEntry<'_>| match entry {
        NamedEntry::Removed(removal) => {
            let files = removal.dropped.iter().chain(&removal.truncated).chain(&removal.unclear);
            files.filter(|file| file.name.is_none()).count()
        }
        _ => 0,
    };
    entries.iter().map(of).sum()
}

/// A removal in words, several lines.
pub fn words(removal: &NamedRemoval) -> String {
    let mut lines = section(["DROPPED", "dropped"], &removal.dropped, &removal.dropped_whole);
    lines.extend(section(["TRUNCATED", "TRUNCATED"], &removal.truncated, &removal.truncated_whole));
    let unclear = "UNCLEAR, dropped or rewritten:";
    lines.extend(section([unclear, unclear], &removal.unclear, &[]));
    if removal.rewritten > 0 {
        lines.push(format!("rewritten: {}", output::count(removal.rewritten, "relation")));
    }
    lines.join("\n")
}

/// `verbs` are for tables, and for what a table can be without.
fn section([of_table, of_other]: [&str; 2], files: &[NamedFile], whole: &[Whole]) -> Vec<String> {
    let mut lines = Vec::new();
    let names: Vec<&RelationName> = files.iter().filter_map(|file| file.name.as_ref()).collect();
    let tables: BTreeSet<_> = names.iter().filter(|name| name.kind.is_table()).map(|name| itself(name)).collect();
    let attached =
        |name: &RelationName| name.belongs_to.as_ref().is_some_and(|owner| tables.contains(&(name.database_name.clone(), owner.clone())));
    // A TOAST table's index is a part of it that nobody thinks of.
    let of_toast = |name: &RelationName| name.kind == RelationKind::Index && name.schema == "pg_toast";
    let with = counted(names.iter().filter(|name| attached(name) && !of_toast(name)).map(|name| name.kind));
    for kind in [RelationKind::Table, RelationKind::MaterializedView] {
        let mut of_kind: Vec<String> = names.iter().filter(|name| name.kind == kind).map(ToString::to_string).collect();
        of_kind.sort();
        if !of_kind.is_empty() {
            lines.push(format!("{of_table} {} {}", kind.as_str(), short(&of_kind)));
        }
    }
    if !with.is_empty() {
        lines.push(format!("  with {with}"));
    }
    for whole in whole.iter().filter(|whole| whole.tables > 0) {
        let what = match whole.kind {
            GroupKind::Schema => "table that the schema",
            GroupKind::PartitionedTable => "partition that",
        };
        lines.push(format!("  with it went every {what} {whole} had"));
    }
    for kind in [RelationKind::Index, RelationKind::Sequence, RelationKind::ToastTable] {
        let loose =
            names.iter().filter(|name| name.kind == kind && !attached(name) && !of_toast(name)).map(|name| match &name.belongs_to {
                Some(owner) => format!("{name} of {owner}"),
                None => name.to_string(),
            });
        let loose: Vec<String> = loose.collect();
        if !loose.is_empty() {
            lines.push(format!("{of_other} {} {}", kind.as_str(), short(&loose)));
        }
    }
    let unseen = |table: Option<bool>| -> Vec<String> {
        let of_it = files.iter().filter(|file| file.name.is_none() && file.table.flatten() == table);
        of_it.map(|file| number(file.file)).collect()
    };
    for (what, files) in [
        (format!("{of_table} table"), unseen(Some(true))),
        (format!("{of_other} index or other"), unseen(Some(false))),
        (of_table.to_owned(), unseen(None)),
    ] {
        if !files.is_empty() {
            lines.push(format!("{what} {} {UNSEEN}", short(&files)));
        }
    }
    lines
}

/// As what belongs to it calls it.
fn itself(name: &RelationName) -> (String, String) {
    (name.database_name.clone(), format!("{}.{}", shown(&name.schema), shown(&name.name)))
}

fn number(file: RelationFile) -> String {
    format!("{}/{}/{}", file.tablespace, file.database, file.number)
}

fn short(names: &[String]) -> String {
    let more = if names.len() > NAMED { format!(" and {} more", names.len() - NAMED) } else { String::new() };
    format!("{}{more}", names[..names.len().min(NAMED)].join(", "))
}

fn counted(kinds: impl Iterator<Item = RelationKind>) -> String {
    let mut counts: BTreeMap<RelationKind, u64> = BTreeMap::new();
    kinds.for_each(|kind| *counts.entry(kind).or_default() += 1);
    let words = counts.into_iter().map(|(kind, count)| match (kind, count) {
        (RelationKind::Index, count) if count > 1 => format!("{count} indexes"),
        (kind, count) => output::count(count, kind.as_str()),
    });
    words.collect::<Vec<_>>().join(", ")
}
