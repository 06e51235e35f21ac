//! What of a data directory belongs to a base backup, by the names in it; the same that PostgreSQL's own `BASE_BACKUP` sends (`basebackup.c`).
//!
//! Decided folder by folder, so that a database of a hundred thousand relations takes the memory of one folder's names. Nothing is read here, and
//! what becomes of files that vanish meanwhile is for the code that reads them.

use std::collections::HashSet;

use crate::identity::MajorVersion;
use crate::record::Fork;
use crate::relation_file::{FileName, database_folder, is_temporary};

/// The folder of a backup that has configuration files from outside the data directory. A restore puts it into the data directory, where no
/// server looks; what lies there under this name is an earlier restore's and belongs to no backup.
pub const CONFIG_FOLDER: &str = "walkeep_config";

/// Folders of the data directory of which a server makes the content anew.
const EMPTIED: [&str; 7] = ["pg_stat_tmp", "pg_replslot", "pg_dynshmem", "pg_notify", "pg_serial", "pg_snapshots", "pg_subtrans"];
/// Files that belong to a running server, or to another backup, wherever they lie.
const LEFT: [&str; 8] = [
    "postgresql.auto.conf.tmp",
    "current_logfiles.tmp",
    "backup_label",
    "tablespace_map",
    "backup_manifest",
    "postmaster.pid",
    "postmaster.opts",
    ".DS_Store",
];
/// What the names of such files begin with.
const LEFT_PREFIXES: [&str; 2] = ["pgsql_tmp", "pg_internal.init"];

/// What an entry of a folder is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// A regular file.
    File,
    /// A folder.
    Folder,
    /// A symbolic link.
    Link,
    /// A device, a pipe, a socket.
    Special,
}

/// What becomes of an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Take {
    /// It is a file of the backup.
    File,
    /// It is a file of the backup, and read when all others were.
    Last,
    /// The folder is in the backup with what it has.
    Folder,
    /// The folder is in the backup, empty but for these; it may be a link here.
    Emptied(&'static [&'static str]),
    /// The tablespace of this OID lies behind the link.
    Tablespace(u32),
    /// It is no part of a backup.
    Leave,
    /// It is no part of a backup either, and somebody may miss it.
    LeaveAndTell,
}

/// What must be known of the cluster.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rules {
    version_folder: String,
    wal_folders: &'static [&'static str],
    stats_folder: Option<String>,
}

impl Rules {
    /// For a cluster of this version. `stats_folder` is what `stats_temp_directory` says, below the data directory; servers up to 14 have it.
    pub fn new(version: MajorVersion, catalog_version: u32, stats_folder: Option<&str>) -> Self {
        Self {
            version_folder: format!("PG_{version}_{catalog_version}"),
            wal_folders: if version.get() >= 17 { &["archive_status", "summaries"] } else { &["archive_status"] },
            stats_folder: stats_folder.map(|folder| folder.trim_start_matches("./").trim_end_matches('/').to_owned()),
        }
    }

    /// Decides about all entries of `folder`, a path below the data directory (`""`: the data directory itself); the answers are in the same order.
    pub fn choose(&self, folder: &str, entries: &[(String, Kind)]) -> Vec<Take> {
        let unlogged = database_folder(folder).map(|_| entries.iter().filter_map(|(name, _)| unlogged(name)).collect::<HashSet<u32>>());
        let take = |(name, kind): &(String, Kind)| match &unlogged {
            Some(unlogged) if *kind == Kind::File => relation(name, unlogged),
            _ => self.other(folder, name, *kind),
        };
        entries.iter().map(take).collect()
    }

    fn other(&self, folder: &str, name: &str, kind: Kind) -> Take {
        let within = |name: &str| if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") };
        let of_tablespace = folder.strip_prefix("pg_tblspc/").is_some_and(|oid| !oid.contains('/'));
        match (folder, kind) {
            _ if is_left(name) => Take::Leave,
            ("", _) if name == CONFIG_FOLDER || name == "lost+found" => Take::Leave,
            ("", Kind::Folder | Kind::Link) if name == "pg_wal" => Take::Emptied(self.wal_folders),
            ("", Kind::Folder | Kind::Link) if EMPTIED.contains(&name) => Take::Emptied(&[]),
            (_, Kind::Folder | Kind::Link) if self.stats_folder.as_ref().is_some_and(|stats| *stats == within(name)) => Take::Emptied(&[]),
            ("pg_tblspc", Kind::Link) => name.parse().map_or(Take::LeaveAndTell, Take::Tablespace),
            // In a tablespace other servers' folders may lie too.
            (_, Kind::Folder) if of_tablespace && name == self.version_folder => Take::Folder,
            _ if of_tablespace => Take::Leave,
            ("global", Kind::File) if name == "pg_control" => Take::Last,
            (_, Kind::File) => Take::File,
            (_, Kind::Folder) => Take::Folder,
            (_, Kind::Link | Kind::Special) => Take::LeaveAndTell,
        }
    }

    /// The one folder of a tablespace that is this cluster's.
    pub fn version_folder(&self) -> &str {
        &self.version_folder
    }
}

fn is_left(name: &str) -> bool {
    LEFT.contains(&name) || LEFT_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// The number of a relation that is unlogged: it has an init fork, and a server makes its others from that one.
fn unlogged(name: &str) -> Option<u32> {
    FileName::parse(name).filter(|file| file.fork == Fork::Init).map(|file| file.number)
}

/// A file in a database's folder.
fn relation(name: &str, unlogged: &HashSet<u32>) -> Take {
    let remade = FileName::parse(name).is_some_and(|file| file.fork != Fork::Init && unlogged.contains(&file.number));
    if is_left(name) || is_temporary(name) || remade { Take::Leave } else { Take::File }
}

/// Brings entries of a folder into the order in which they are taken: then files come in the order of their whole paths.
pub fn sort(entries: &mut [(String, Kind)]) {
    entries.sort_by_cached_key(|(name, kind)| {
        let below = matches!(kind, Kind::Folder | Kind::Link);
        if below { format!("{name}/") } else { name.clone() }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules() -> Rules {
        Rules::new(MajorVersion::new(15), 202_209_061, None)
    }

    #[track_caller]
    fn one(folder: &str, name: &str, kind: Kind) -> Take {
        rules().choose(folder, &[(name.to_owned(), kind)])[0]
    }

    #[test]
    fn what_a_server_makes_anew_is_left() {
        for folder in EMPTIED {
            assert_eq!(one("", folder, Kind::Folder), Take::Emptied(&[]), "{folder}");
            assert_eq!(one("", folder, Kind::Link), Take::Emptied(&[]), "{folder}");
        }
        assert_eq!(one("", "pg_wal", Kind::Link), Take::Emptied(&["archive_status"]));
        let later = Rules::new(MajorVersion::new(17), 202_406_281, None);
        assert_eq!(later.choose("", &[("pg_wal".to_owned(), Kind::Folder)]), [Take::Emptied(&["archive_status", "summaries"])]);
        for name in LEFT.into_iter().chain(["pgsql_tmp", "pgsql_tmp1234.0", "pg_internal.init", "pg_internal.init.77"]) {
            for folder in ["", "global", "base/5", "pg_tblspc/16400/PG_15_202209061/5"] {
                assert_eq!(one(folder, name, Kind::File), Take::Leave, "{folder}/{name}");
            }
        }
        assert_eq!(one("base", "pgsql_tmp", Kind::Folder), Take::Leave);
        assert_eq!(one("", CONFIG_FOLDER, Kind::Folder), Take::Leave);
        for name in ["backup_label.old", "current_logfiles", "PG_VERSION", "postgresql.auto.conf", "standby.signal"] {
            assert_eq!(one("", name, Kind::File), Take::File, "{name}");
        }
        assert_eq!(one("global", "pg_control", Kind::File), Take::Last);
        assert_eq!(one("base/5", "pg_control", Kind::File), Take::File);
    }

    #[test]
    fn temporary_and_unlogged_relations_are_left() {
        let names =
            ["100", "100.1", "100_fsm", "100_init", "101", "101_vm", "t3_102", "t3_102_fsm", "PG_VERSION", "pg_filenode.map", "10x"];
        let entries: Vec<_> = names.iter().map(|name| ((*name).to_owned(), Kind::File)).collect();
        for folder in ["base/5", "pg_tblspc/16400/PG_15_202209061/5"] {
            let taken = rules().choose(folder, &entries);
            let taken: Vec<_> = names.iter().zip(taken).filter(|(_, take)| *take == Take::File).map(|(name, _)| *name).collect();
            assert_eq!(taken, ["100_init", "101", "101_vm", "PG_VERSION", "pg_filenode.map", "10x"], "{folder}");
        }
        // Elsewhere such names mean nothing.
        assert!(rules().choose("own", &entries).iter().all(|take| *take == Take::File));
    }

    #[test]
    fn links_and_special_files_are_told() {
        for kind in [Kind::Link, Kind::Special] {
            for (folder, name) in [("", "log"), ("base/5", "1234"), ("global", "pg_control"), ("base", "5")] {
                assert_eq!(one(folder, name, kind), Take::LeaveAndTell, "{folder}/{name} {kind:?}");
            }
        }
        assert_eq!(one("pg_tblspc", "16400", Kind::Link), Take::Tablespace(16400));
        assert_eq!(one("pg_tblspc", "own", Kind::Link), Take::LeaveAndTell);
        assert_eq!(one("pg_tblspc", "16400", Kind::Folder), Take::Folder, "a tablespace in place");
    }

    #[test]
    fn of_a_tablespace_only_the_servers_own_folder_is_taken() {
        assert_eq!(one("pg_tblspc/16400", "PG_15_202209061", Kind::Folder), Take::Folder);
        for (name, kind) in [("PG_14_202107181", Kind::Folder), ("lost+found", Kind::Folder), ("x", Kind::File), ("y", Kind::Link)] {
            assert_eq!(one("pg_tblspc/16400", name, kind), Take::Leave, "{name}");
        }
        assert_eq!(one("pg_tblspc/16400/PG_15_202209061", "5", Kind::Folder), Take::Folder);
    }

    #[test]
    fn statistics_of_earlier_versions_may_lie_elsewhere() {
        for written in ["own/stats", "./own/stats/"] {
            let rules = Rules::new(MajorVersion::new(13), 202_007_201, Some(written));
            assert_eq!(rules.choose("own", &[("stats".to_owned(), Kind::Folder)]), [Take::Emptied(&[])]);
            assert_eq!(rules.choose("", &[("stats".to_owned(), Kind::Folder)]), [Take::Folder]);
        }
    }

    #[test]
    fn files_come_in_the_order_of_their_paths() {
        let mut entries =
            [("a", Kind::Folder), ("a.x", Kind::File), ("a0", Kind::File), ("a-", Kind::Folder)].map(|(n, k)| (n.to_owned(), k));
        sort(&mut entries);
        assert_eq!(entries.map(|(name, _)| name), ["a-", "a.x", "a", "a0"], "a-/f < a.x < a/f < a0");
    }
}
