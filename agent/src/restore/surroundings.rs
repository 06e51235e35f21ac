//! What a directory to be filled must not lie in: a data directory, a tablespace, a repository, a spool.
//!
//! An empty folder in there looks as free as any. But a server does not expect files beside its own, and its next base backup takes them along; a
//! repository is Walkeep's alone. What holds a cluster is known by the files that PostgreSQL marks it with, whosever server it is; links on the way are
//! followed, as they will be when files are written.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use walkeep_core::layout::MARKER_KEY;

use super::Refusal;

/// A place that is in use for something else, and what for.
#[derive(Debug, Clone)]
pub struct InUse {
    /// The place.
    pub path: PathBuf,
    /// What lies there: `the repository`.
    pub what: &'static str,
}

/// Refuses a directory that lies in one of these, or around one, or in any cluster or repository.
pub fn check(path: &Path, in_use: &[InUse]) -> Result<(), Refusal> {
    let refuse = |reason: String| Err(Refusal::Directory { path: path.to_owned(), reason });
    if let Some(InUse { path: place, what }) = in_use.iter().find(|place| overlap(path, &place.path)) {
        return refuse(format!("it and {what}, {}, must not lie in one another; choose another place", place.display()));
    }
    for above in resolve(path).ancestors().skip(1) {
        if let Some(what) = holds(above) {
            return refuse(format!("it lies within {}, which is {what}; choose another place", above.display()));
        }
    }
    Ok(())
}

/// What a server has: its data directory, and its tablespaces outside it, as far as they can be seen.
pub fn of_server(data_directory: &Path) -> Vec<InUse> {
    let links = fs::read_dir(data_directory.join("pg_tblspc")).into_iter().flatten().flatten();
    let spaces = links.filter_map(|link| fs::read_link(link.path()).ok()).filter(|place| place.is_absolute());
    // One that was moved away has left its place to others.
    let spaces = spaces.filter(|place| fs::read_dir(place).is_ok_and(|mut entries| entries.next().is_some()));
    let spaces = spaces.map(|path| InUse { path, what: "a tablespace of the configured server" });
    std::iter::once(InUse { path: data_directory.to_owned(), what: "the configured server's data directory" }).chain(spaces).collect()
}

/// Whether both lead to one place.
pub fn is_same(one: &Path, other: &Path) -> bool {
    resolve(one) == resolve(other)
}

/// Whether one lies in the other, or they are the same.
pub fn overlap(one: &Path, other: &Path) -> bool {
    let (one, other) = (resolve(one), resolve(other));
    one.starts_with(&other) || other.starts_with(&one)
}

/// The path without links, as far as there is something.
fn resolve(path: &Path) -> PathBuf {
    let found = path.ancestors().find_map(|existing| Some((existing, existing.canonicalize().ok()?)));
    match found {
        Some((existing, real)) => path.strip_prefix(existing).map_or_else(|_| path.to_owned(), |rest| real.join(rest)),
        None => path.to_owned(),
    }
}

/// What a folder is that nothing else must be put into.
fn holds(folder: &Path) -> Option<&'static str> {
    if folder.join("PG_VERSION").is_file() {
        return Some("PostgreSQL's");
    }
    if folder.join(MARKER_KEY).is_file() {
        return Some("a repository of Walkeep");
    }
    let mut entries = fs::read_dir(folder).ok()?.flatten();
    entries.any(|entry| is_version_folder(&entry.file_name())).then_some("a tablespace of PostgreSQL")
}

/// Whether a tablespace has a folder of this name: `PG_15_202209061`.
fn is_version_folder(name: &OsStr) -> bool {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let version = name.to_str().and_then(|name| name.strip_prefix("PG_")?.split_once('_'));
    version.is_some_and(|(major, catalog)| digits(major) && digits(catalog))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_servers_places_are_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir_all(at("data/pg_tblspc")).unwrap();
        fs::create_dir_all(at("space/PG_15_202209061")).unwrap();
        fs::create_dir_all(at("left")).unwrap();
        std::os::unix::fs::symlink(at("left"), at("data/pg_tblspc/16401")).unwrap();
        std::os::unix::fs::symlink(at("space"), at("data/pg_tblspc/16400")).unwrap();
        std::os::unix::fs::symlink(dir.path(), at("other")).unwrap();
        let in_use = of_server(&at("data"));
        for name in ["data", "space", "space/x", "other/space", "other/data/x"] {
            assert!(check(&at(name), &in_use).is_err(), "{name}");
        }
        check(&at("elsewhere"), &in_use).unwrap();
        check(&at("left"), &in_use).unwrap();
        assert!(is_same(&at("other/space"), &at("space")) && overlap(&at("other/space/new"), &at("space")));
        assert!(!overlap(&at("space"), &at("space2")));
        assert_eq!(of_server(&at("nowhere")).len(), 1);
    }

    #[test]
    fn nothing_is_laid_into_clusters_and_repositories() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for folder in ["data/base/5", "space/PG_15_202209061", "repository/x", "spool", "free/PG_x_1", "free/PG_15"] {
            fs::create_dir_all(at(folder)).unwrap();
        }
        fs::write(at("data/PG_VERSION"), "15\n").unwrap();
        fs::write(at("repository").join(MARKER_KEY), "{}").unwrap();
        std::os::unix::fs::symlink(at("data/base"), at("link")).unwrap();
        let in_use = [InUse { path: at("spool"), what: "the spool" }];
        let told = |name: &str| check(&at(name), &in_use).map_err(|refusal| refusal.to_string());
        for (name, reason) in [
            ("data/new", "which is PostgreSQL's"),
            ("data/base/5/a/b", "which is PostgreSQL's"),
            ("link/new", "which is PostgreSQL's"),
            ("space/new", "which is a tablespace of PostgreSQL"),
            ("repository/x/y", "which is a repository of Walkeep"),
            ("spool", "it and the spool"),
            ("spool/x", "must not lie in one another"),
            ("", "must not lie in one another"),
        ] {
            let refused = told(name).unwrap_err();
            assert!(refused.contains(reason), "{name}: {refused}");
        }
        for name in ["data", "space", "free/new", "new/newer", "spool-2"] {
            assert_eq!(told(name), Ok(()), "{name}");
        }
    }
}
