//! Whether what was restored is what was backed up: relation files and transaction status, byte by byte, of a server that has not changed since.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use walkeep_tests::Cluster;

/// Folders whose files a backup of a server at rest has as they are. The others hold what every start writes anew, or WAL.
const COMPARED: [&str; 5] = ["base", "global", "pg_xact", "pg_multixact", "pg_tblspc"];
/// Files that are each server's own.
const OWN: [&str; 2] = ["pg_control", "pg_internal.init"];

/// Brings a server to rest: what readers would still note in the catalogs' pages is noted, everything is on disk, and the WAL so far is in finished segments:
/// nobody's next backup has to bring it.
pub fn rest(server: &Cluster) {
    let catalogs = server.sql(
        "SELECT string_agg(c.oid::regclass::text, ', ') FROM pg_class c WHERE c.relkind = 'r' AND c.relnamespace = 'pg_catalog'::regnamespace",
    );
    server.sql(&format!("VACUUM {catalogs}"));
    server.sql("CHECKPOINT");
    server.sql("SELECT pg_switch_wal()");
}

/// Files that differ, are missing, or are too many.
pub fn differing(original: &Path, restored: &Path) -> usize {
    let files = |root: &Path| COMPARED.iter().flat_map(|folder| below(root, Path::new(folder))).collect::<BTreeSet<_>>();
    let (ours, theirs) = (files(original), files(restored));
    let differ = |file: &&PathBuf| {
        let same = same_bytes(&original.join(file), &restored.join(file));
        if !same {
            eprintln!("differs: {}", file.display());
        }
        !same
    };
    ours.union(&theirs).filter(differ).count()
}

fn below(root: &Path, folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(root.join(folder)).into_iter().flatten().flatten() {
        let (name, path) = (entry.file_name().to_string_lossy().into_owned(), folder.join(entry.file_name()));
        if entry.path().is_dir() {
            if !name.starts_with("pgsql_tmp") {
                found.extend(below(root, &path));
            }
        } else if !OWN.contains(&&*name) {
            found.push(path);
        }
    }
    found
}

fn same_bytes(one: &Path, other: &Path) -> bool {
    matches!((std::fs::read(one), std::fs::read(other)), (Ok(one), Ok(other)) if one == other)
}
