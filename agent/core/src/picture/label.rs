//! What a picture says of an entry of the log: the one place that puts an accident into a few words.

use crate::journal::{Entry, Happening, RelationFile};

use super::MarkKind;

/// Names in one label.
const NAMED: usize = 4;

/// The mark of an entry, and its words. `None` for what a picture does not show: indexes that went alone, rewrites, shutdowns.
pub fn label(entry: &Entry) -> Option<(MarkKind, String)> {
    match &entry.what {
        Happening::RestorePoint { name } => Some((MarkKind::RestorePoint, name.clone())),
        Happening::DatabaseDropped { database, committed, .. } => {
            let ending = if *committed { "" } else { ", rolled back, but its files are gone" };
            Some((MarkKind::DatabaseDropped, format!("database {database} dropped{ending}")))
        }
        Happening::Removed { dropped, truncated, unclear, .. } => {
            // Indexes, sequences and TOAST tables that go with a table are not worth a name here; alone they are no accident.
            let tables: Vec<_> = dropped.iter().filter(|file| file.table != Some(false)).map(|file| file.file).collect();
            let kinds = [
                (MarkKind::Dropped, "dropped", &tables),
                (MarkKind::Truncated, "truncated", truncated),
                (MarkKind::Unclear, "dropped or rewritten", unclear),
            ];
            let told: Vec<_> = kinds.into_iter().filter(|(_, _, files)| !files.is_empty()).collect();
            let words: Vec<_> = told.iter().map(|(_, what, files)| format!("{} {what}", names(files))).collect();
            told.first().map(|(kind, ..)| (*kind, words.join("; ")))
        }
        _ => None,
    }
}

fn names(files: &[RelationFile]) -> String {
    let named: Vec<_> = files.iter().take(NAMED).map(|file| format!("{}/{}/{}", file.tablespace, file.database, file.number)).collect();
    let more = if files.len() > NAMED { format!(" and {} more", files.len() - NAMED) } else { String::new() };
    format!("{}{more}", named.join(", "))
}
