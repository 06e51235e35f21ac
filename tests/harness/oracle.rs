//! Comparing what Walkeep gives back with plain copies.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crate::Walkeep;

/// Fetches every file of `oracle` (a folder of plain copies, [`crate::Cluster::oracle`]) by `walkeep wal fetch` and compares the bytes.
/// Panics with all differences; the number of files otherwise.
#[track_caller]
pub fn compare_fetched(oracle: &Path, walkeep: &Walkeep) -> usize {
    let folder = walkeep.scratch().dir("fetched");
    let mut wrong = Vec::new();
    // One at a time: an archive may be larger than the memory.
    let names = names(oracle);
    for name in &names {
        let to = folder.join(name);
        let _ = std::fs::remove_file(&to);
        let output = walkeep.run(&["wal", "fetch", name, &to.to_string_lossy()]);
        if !output.ok() {
            wrong.push(format!("{name}: exit {:?}: {}", output.code, output.stderr.trim()));
        } else {
            let content = std::fs::read(oracle.join(name)).expect("read an own file");
            wrong.extend(difference(&content, &std::fs::read(&to).unwrap_or_default()).map(|what| format!("{name}: {what}")));
        }
        let _ = std::fs::remove_file(&to);
    }
    assert!(wrong.is_empty(), "{} of {} files differ from the plain copies:\n{}", wrong.len(), names.len(), wrong.join("\n"));
    names.len()
}

/// Compares two folders of files, names and bytes. Panics with all differences; the number of files otherwise.
#[track_caller]
pub fn compare_archives(one: &Path, other: &Path) -> usize {
    let (left, right) = (files(one), files(other));
    let mut wrong = Vec::new();
    for name in left.keys().chain(right.keys().filter(|name| !left.contains_key(*name))) {
        match (left.get(name), right.get(name)) {
            (Some(a), Some(b)) => wrong.extend(difference(a, b).map(|what| format!("{name}: {what}"))),
            (Some(_), None) => wrong.push(format!("{name} is only in {}", one.display())),
            _ => wrong.push(format!("{name} is only in {}", other.display())),
        }
    }
    assert!(wrong.is_empty(), "{} and {} differ:\n{}", one.display(), other.display(), wrong.join("\n"));
    left.len()
}

/// Files by name.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let read = |name: String| (std::fs::read(folder.join(&name)).map(|content| (name, content))).expect("read an own file");
    names(folder).into_iter().map(read).collect()
}

/// The files' names; not hidden ones, which are being written.
fn names(folder: &Path) -> BTreeSet<String> {
    let entries = std::fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let named = entries.filter_map(|entry| {
        let entry = entry.ok()?;
        let name = entry.file_name().to_string_lossy().into_owned();
        (!name.starts_with('.') && entry.file_type().ok()?.is_file()).then_some(name)
    });
    named.collect()
}

fn difference(one: &[u8], other: &[u8]) -> Option<String> {
    if one == other {
        return None;
    }
    let at = one.iter().zip(other).position(|(a, b)| a != b).unwrap_or(one.len().min(other.len()));
    Some(format!("{} and {} bytes, different from byte {at} on", one.len(), other.len()))
}
