//! What a picture says of an entry of the log: the one place that puts an accident into a few words.

use crate::identifier::shown;
use crate::journal::{Entry, Happening};
use crate::names::{NamedEntry, NamedFile};

use super::MarkKind;

/// Names in one label.
const NAMED: usize = 4;

/// The mark of an entry, and its words. `None` for what a picture does not show: indexes that went alone, rewrites, shutdowns.
pub fn label(entry: &NamedEntry<'_>) -> Option<(MarkKind, String)> {
    match entry {
        NamedEntry::Other(Entry { what: Happening::RestorePoint { name }, .. }) => Some((MarkKind::RestorePoint, name.clone())),
        NamedEntry::Database { entry: Entry { what: Happening::DatabaseDropped { database, committed, .. }, .. }, database_name } => {
            let ending = if *committed { "" } else { ", rolled back, but its files are gone" };
            let name = database_name.as_deref().map_or_else(|| database.to_string(), shown);
            Some((MarkKind::DatabaseDropped, format!("database {name} dropped{ending}")))
        }
        NamedEntry::Removed(removal) => {
            // Indexes, sequences and TOAST tables that go with a table are not worth a name here; alone they are no accident.
            let is_table = |file: &&NamedFile| file.table.flatten() != Some(false);
            let tables: Vec<_> = removal.dropped.iter().filter(is_table).collect();
            let of_tables = |files: &'_ [NamedFile]| -> Vec<NamedFile> {
                let of_a_table = |file: &&NamedFile| file.name.as_ref().is_none_or(|name| name.kind.is_table());
                files.iter().filter(of_a_table).cloned().collect()
            };
            let (truncated, unclear) = (of_tables(&removal.truncated), of_tables(&removal.unclear));
            let kinds = [
                (MarkKind::Dropped, "dropped", tables),
                (MarkKind::Truncated, "truncated", truncated.iter().collect()),
                (MarkKind::Unclear, "dropped or rewritten", unclear.iter().collect()),
            ];
            let told: Vec<_> = kinds.into_iter().filter(|(_, _, files)| !files.is_empty()).collect();
            let words: Vec<_> = told.iter().map(|(_, what, files)| format!("{} {what}", names(files))).collect();
            told.first().map(|(kind, ..)| (*kind, words.join("; ")))
        }
        _ => None,
    }
}

fn names(files: &[&NamedFile]) -> String {
    let name = |file: &&NamedFile| {
        let number = || format!("{}/{}/{}", file.file.tablespace, file.file.database, file.file.number);
        file.name.as_ref().map_or_else(number, ToString::to_string)
    };
    let named: Vec<_> = files.iter().take(NAMED).map(name).collect();
    let more = if files.len() > NAMED { format!(" and {} more", files.len() - NAMED) } else { String::new() };
    format!("{}{more}", named.join(", "))
}
