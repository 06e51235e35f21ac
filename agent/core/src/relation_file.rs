//! Files of relations, by their paths below the data directory: which relation, which fork, which segment (`relpath.c`).
//!
//! What such a file holds is not known here, nor whether it belongs to a backup.

use crate::record::{Fork, RelFileLocator};

/// `pg_default`'s OID: what lies in `base`.
const PG_DEFAULT: u32 = 1663;
/// `pg_global`'s OID.
const PG_GLOBAL: u32 = 1664;
/// What the names of folders that servers make in tablespaces begin with.
const VERSION_FOLDER: &str = "PG_";

/// One file of a relation.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct RelationFile {
    /// Whose it is.
    pub relation: RelFileLocator,
    /// Which of the relation's files.
    pub fork: Fork,
    /// Its number among the files of the fork; each but the last has the same length.
    pub segment: u32,
}

impl RelationFile {
    /// Reads a path: `global/1262`, `base/5/1234_vm.1`, `pg_tblspc/16400/PG_15_202209061/5/1234`.
    pub fn parse(path: &str) -> Option<Self> {
        let (tablespace, database, name) = match path.strip_prefix("global/") {
            Some(name) => (PG_GLOBAL, 0, name),
            None => {
                let (tablespace, database, name) = database_path(path)?;
                (tablespace, database, name)
            }
        };
        let FileName { number, fork, segment } = FileName::parse(name)?;
        Some(Self { relation: RelFileLocator { tablespace, database, number }, fork, segment })
    }

    /// The number of the file's first block, where a file of the relation has at most so many blocks.
    pub fn first_block(&self, blocks: u32) -> u32 {
        self.segment.saturating_mul(blocks)
    }
}

/// The tablespace, the database and the file's name of `base/<database>/<file>` and `pg_tblspc/<oid>/<version>/<database>/<file>`.
pub(crate) fn database_path(path: &str) -> Option<(u32, u32, &str)> {
    let (folder, name) = path.rsplit_once('/')?;
    let (tablespace, database) = database_folder(folder)?;
    Some((tablespace, database, name))
}

/// The tablespace and the database of `base/<database>` and `pg_tblspc/<oid>/<version>/<database>`.
pub(crate) fn database_folder(path: &str) -> Option<(u32, u32)> {
    if let Some(database) = path.strip_prefix("base/") {
        return Some((PG_DEFAULT, database.parse().ok()?));
    }
    let (oid, rest) = path.strip_prefix("pg_tblspc/")?.split_once('/')?;
    let (version, database) = rest.split_once('/')?;
    version.starts_with(VERSION_FOLDER).then_some(())?;
    Some((oid.parse().ok()?, database.parse().ok()?))
}

/// The name of a relation's file, without its folder.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct FileName {
    pub number: u32,
    pub fork: Fork,
    pub segment: u32,
}

impl FileName {
    pub fn parse(name: &str) -> Option<Self> {
        let digits = name.bytes().take_while(u8::is_ascii_digit).count();
        let (number, rest) = name.split_at(digits);
        let (fork, segment) = rest.split_once('.').map_or((rest, None), |(fork, segment)| (fork, Some(segment)));
        let fork = match fork {
            "" => Fork::Main,
            "_fsm" => Fork::FreeSpaceMap,
            "_vm" => Fork::VisibilityMap,
            "_init" => Fork::Init,
            _ => return None,
        };
        let above_zero = |text| plain_number(text).filter(|number| *number > 0 && !text.starts_with('0'));
        Some(Self { number: above_zero(number)?, fork, segment: segment.map_or(Some(0), above_zero)? })
    }
}

/// Whether a file in a database's folder is a temporary relation's: `t<backend>_<number>` and its forks and segments.
pub(crate) fn is_temporary(name: &str) -> bool {
    let of_backend = name.strip_prefix('t').and_then(|rest| rest.split_once('_'));
    of_backend.is_some_and(|(backend, file)| plain_number(backend).is_some() && FileName::parse(file).is_some())
}

fn plain_number(text: &str) -> Option<u32> {
    // "+1" would be a number too.
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(tablespace: u32, database: u32, number: u32, fork: Fork, segment: u32) -> Option<RelationFile> {
        Some(RelationFile { relation: RelFileLocator { tablespace, database, number }, fork, segment })
    }

    #[test]
    fn paths_name_relations() {
        assert_eq!(RelationFile::parse("global/1262"), file(1664, 0, 1262, Fork::Main, 0));
        assert_eq!(RelationFile::parse("base/5/1234.12"), file(1663, 5, 1234, Fork::Main, 12));
        assert_eq!(RelationFile::parse("base/5/1234_vm.1"), file(1663, 5, 1234, Fork::VisibilityMap, 1));
        let apart = RelationFile::parse("pg_tblspc/16400/PG_15_202209061/5/7_fsm");
        assert_eq!(apart, file(16400, 5, 7, Fork::FreeSpaceMap, 0));
        assert_eq!(RelationFile::parse("base/5/1234.2").map(|file| file.first_block(131_072)), Some(262_144));
    }

    #[test]
    fn other_files_are_none() {
        for path in [
            "",
            "global",
            "global/pg_control",
            "global/1262_other",
            "base/5/PG_VERSION",
            "base/5/t3_1234",
            "base/5/1234.",
            "base/5/1234.0",
            "base/5/1234.01",
            "base/5/01234",
            "base/5/pg_filenode.map",
            "pg_xact/0000",
            "base/5/1234.+1",
            "base/5/99999999999",
            "base/x/1234",
            "base/5/6/1234",
            "pg_tblspc/16400/other/5/1234",
            "pg_tblspc/16400/PG_15_202209061/1234",
            "walkeep_config/base/5/1234",
        ] {
            assert_eq!(RelationFile::parse(path), None, "{path}");
        }
    }

    #[test]
    fn temporary_relations_are_known_by_their_names() {
        for name in ["t3_1234", "t0_1", "t12_16384_fsm", "t3_1234_vm.1"] {
            assert!(is_temporary(name), "{name}");
        }
        for name in ["1234", "t_1234", "t3_", "t3_1234_x", "table", "t-3_1234", "t3_PG_VERSION"] {
            assert!(!is_temporary(name), "{name}");
        }
    }
}
