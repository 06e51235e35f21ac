//! Whether two directories are one place, however they are spelled: a repository that is its own copy protects nothing, and one within another is taken for a part of it.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

/// How a directory lies to another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shared {
    /// It is the same.
    Same,
    /// It lies within the other.
    Within,
    /// The other lies within it.
    Around,
}

/// How `one` lies to `other`, if they are not apart. What does not exist yet is judged by the nearest that does.
pub fn shared(one: &Path, other: &Path) -> Option<Shared> {
    let (one, other) = (real(one), real(other));
    match (lies_in(&one, &other), lies_in(&other, &one)) {
        (true, true) => Some(Shared::Same),
        (true, false) => Some(Shared::Within),
        (false, true) => Some(Shared::Around),
        (false, false) => None,
    }
}

/// Whether `inner` is `outer` or lies in it: by its path, or, where something is mounted at two places, by device and inode.
fn lies_in(inner: &Path, outer: &Path) -> bool {
    let id = |metadata: Metadata| (metadata.dev(), metadata.ino());
    let outer_id = outer.metadata().ok().map(id);
    let is_outer = |folder: &Path| outer_id.is_some() && folder.metadata().ok().map(id) == outer_id;
    inner.starts_with(outer) || inner.ancestors().any(is_outer)
}

/// The path without links, `.` and `..`, as far as it exists; of the rest just its words.
fn real(path: &Path) -> PathBuf {
    let mut real = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            // What is gone through is real already: its parent is what the system means.
            Component::ParentDir => drop(real.pop()),
            component => {
                real.push(component);
                real = real.canonicalize().unwrap_or(real);
            }
        }
    }
    real
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_directory_is_known_under_every_spelling() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        std::fs::create_dir_all(root.join("a/b")).unwrap();
        std::os::unix::fs::symlink(root.join("a"), root.join("link")).unwrap();
        std::os::unix::fs::symlink("/nowhere/at/all", root.join("dangling")).unwrap();
        let judged = |one: &str, other: &str| shared(&root.join(one), &root.join(other));
        for other in ["a", "a/", "./a", "a/.", "x/../a", "a/b/..", "link", "link/", "link/b/../../a"] {
            assert_eq!((judged("a", other), judged(other, "a")), (Some(Shared::Same), Some(Shared::Same)), "{other}");
        }
        for (inner, outer) in [("a/b", "a"), ("link/b", "a"), ("a/not/yet", "link"), ("new/main/", "new"), ("a", "")] {
            assert_eq!((judged(inner, outer), judged(outer, inner)), (Some(Shared::Within), Some(Shared::Around)), "{inner} {outer}");
        }
        for (one, other) in [("a", "ab"), ("a/b", "a/c"), ("new", "new2"), ("dangling", "a")] {
            assert_eq!((judged(one, other), judged(other, one)), (None, None), "{one} {other}");
        }
        assert_eq!(judged("new", "./x/../new"), Some(Shared::Same), "what does not exist yet");
    }
}
