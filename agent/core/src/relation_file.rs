//! Which relation's file a path of a data directory is (`relpath.h`): tablespace, database, number, fork, and which part of the fork.
//!
//! What the catalogs call the relation is not known here. Files of temporary relations (`t3_16384`) are none of these: no backup has them.

use crate::record::{Fork, Oid, RelFileLocator};
use crate::relative_path::RelativePath;

/// `pg_default`.
const DEFAULT_TABLESPACE: Oid = 1663;
/// `pg_global`.
const GLOBAL_TABLESPACE: Oid = 1664;
/// The database of relations that all databases share.
pub const SHARED: Oid = 0;

/// A file of a relation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RelationFile {
    /// The relation's files.
    pub relation: RelFileLocator,
    /// Which of them.
    pub fork: Fork,
    /// Which part of it: 0 for the file without a suffix, 1 for `.1`.
    pub part: u32,
}

impl RelationFile {
    /// Reads `base/<database>/<file>`, `global/<file>` and `pg_tblspc/<oid>/<version>/<database>/<file>`; `None` for every other path.
    pub fn parse(path: &RelativePath) -> Option<Self> {
        let parts: Vec<&str> = path.as_str().split('/').collect();
        let (tablespace, database, file) = match parts.as_slice() {
            ["global", file] => (GLOBAL_TABLESPACE, SHARED, file),
            ["base", database, file] => (DEFAULT_TABLESPACE, plain(database)?, file),
            ["pg_tblspc", tablespace, version, database, file] if version.starts_with("PG_") => {
                (plain(tablespace)?, plain(database)?, file)
            }
            _ => return None,
        };
        let (name, part) = match file.split_once('.') {
            Some((name, part)) => (name, plain(part)?),
            None => (*file, 0),
        };
        let (number, fork) = match name.split_once('_') {
            None => (name, Fork::Main),
            Some((number, "fsm")) => (number, Fork::FreeSpaceMap),
            Some((number, "vm")) => (number, Fork::VisibilityMap),
            Some((number, "init")) => (number, Fork::Init),
            Some(_) => return None,
        };
        Some(Self { relation: RelFileLocator { tablespace, database, number: plain(number)? }, fork, part })
    }
}

/// A number above 0 as PostgreSQL writes it in names.
fn plain(text: &str) -> Option<u32> {
    let is_plain = !text.starts_with('0') && text.bytes().all(|byte| byte.is_ascii_digit());
    is_plain.then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(path: &str) -> Option<(u32, u32, u32, Fork, u32)> {
        let RelationFile { relation, fork, part } = RelationFile::parse(&RelativePath::parse(path).expect("a path"))?;
        Some((relation.tablespace, relation.database, relation.number, fork, part))
    }

    #[test]
    fn names_of_relations_files() {
        assert_eq!(parse("base/5/16384"), Some((1663, 5, 16384, Fork::Main, 0)));
        assert_eq!(parse("base/5/16384.12"), Some((1663, 5, 16384, Fork::Main, 12)));
        assert_eq!(parse("base/5/16384_vm.1"), Some((1663, 5, 16384, Fork::VisibilityMap, 1)));
        assert_eq!(parse("base/5/16384_fsm"), Some((1663, 5, 16384, Fork::FreeSpaceMap, 0)));
        assert_eq!(parse("global/1262"), Some((1664, 0, 1262, Fork::Main, 0)));
        assert_eq!(parse("pg_tblspc/16500/PG_15_202209061/5/16384_init"), Some((16500, 5, 16384, Fork::Init, 0)));
    }

    #[test]
    fn everything_else_is_none() {
        let others = [
            "base/5/PG_VERSION",
            "base/5/pg_filenode.map",
            "base/5/t3_16384",
            "base/5/16384.0",
            "base/5/16384.01",
            "base/5/016384",
            "base/5/16384_x",
            "base/5/16384.",
            "base/5/4294967296",
            "base/5",
            "base/x/16384",
            "global/pg_control",
            "pg_tblspc/16500/16384",
            "pg_tblspc/16500/x/5/16384",
            "pg_xact/0000",
            "pg_wal/000000010000000000000001",
            "16384",
        ];
        others.into_iter().for_each(|path| assert_eq!(parse(path), None, "{path}"));
    }
}
