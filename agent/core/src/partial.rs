//! Which files of a backup a throw-away server needs that is asked about one database only.
//!
//! Relation files of other databases can be left empty at their full length. Replay is told to pass over pages that it finds empty
//! (`ignore_invalid_pages`): a page's first change after the backup's checkpoint is a full image or makes the page anew, and where it is not
//! (`full_page_writes = off`, visibility without checksums) the change is left out, of a database that nobody will read. What replay of the
//! whole files would read, so that a page left empty there would be a wrong result, is found out: PostgreSQL names every such page in its
//! log, and [`reference()`] reads that. The databases of a backup are known by its own `pg_database` file ([`names`]), which may be older than
//! the target, or torn: whoever goes by it compares with what the recovered server says.

use std::collections::BTreeSet;

use crate::relation_file::{RelationFile, database_folder, database_path};
use crate::relative_path::RelativePath;

/// `pg_database`'s OID.
pub const PG_DATABASE: u32 = 1262;
/// `pg_authid`'s OID.
pub const PG_AUTHID: u32 = 1260;
/// The OID of the role that initdb made, a superuser for ever.
pub const BOOTSTRAP_ROLE: u32 = 10;
/// Where the file numbers of shared catalogs are.
pub const SHARED_MAP: &str = "global/pg_filenode.map";

const MAP_MAGIC: u32 = 0x0059_2717;
const PAGE: usize = 8192;
const PAGE_HEADER: usize = 24;
const TUPLE_HEADER: usize = 23;
const NAME: usize = 64;
const LINE_POINTER_NORMAL: u32 = 1;

/// The files whose content is needed.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum Needed {
    /// All.
    #[default]
    Everything,
    /// The relations of these databases, and whatever belongs to no database.
    Databases(BTreeSet<u32>),
}

impl Needed {
    /// Whether a file's content is needed; otherwise only its length is.
    pub fn content(&self, path: &RelativePath) -> bool {
        match self {
            Self::Everything => true,
            Self::Databases(oids) => of_database(path.as_str()).is_none_or(|database| oids.contains(&database)),
        }
    }

    /// Whether an invalid page of this database may be passed over.
    pub fn may_lack(&self, database: Option<u32>) -> bool {
        match self {
            Self::Everything => false,
            Self::Databases(oids) => database.is_some_and(|database| !oids.contains(&database)),
        }
    }
}

/// The database of which nobody needs this file who does not need that database: its relations, and the map of its catalogs. `None` for shared relations and
/// for every other file. Without the map a connection to that database is refused; with it, and without catalogs, PostgreSQL would PANIC and take all others down.
fn of_database(path: &str) -> Option<u32> {
    match path.strip_suffix("/pg_filenode.map") {
        Some(folder) => database_folder(folder).map(|(_, database)| database),
        None => RelationFile::parse(path).map(|file| file.relation.database).filter(|database| *database != 0),
    }
}

/// A line of a server's log that names a page which replay did not find.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Reference {
    /// The database; `None` for a shared relation, and where the path is not understood.
    pub database: Option<u32>,
    /// The line.
    pub line: String,
}

/// Reads a line of the log (in English: `lc_messages = 'C'`); `None` if it is about something else.
pub fn reference(line: &str) -> Option<Reference> {
    let (before, after) = line.split_once(" of relation ")?;
    let told = after.ends_with(" is uninitialized") || after.ends_with(" does not exist");
    if !told || !before.contains("page ") {
        return None;
    }
    let path = after.split(' ').next().unwrap_or_default();
    Some(Reference { database: database_path(path).map(|(_, database, _)| database), line: line.to_owned() })
}

/// The file numbers in a relation map's file, by OID of the catalog.
pub fn relation_map(file: &[u8]) -> Option<Vec<(u32, u32)>> {
    let word = |at: usize| Some(u32::from_le_bytes(file.get(at..at + 4)?.try_into().ok()?));
    if word(0)? != MAP_MAGIC {
        return None;
    }
    let count = word(4)? as usize;
    (0..count.min(PAGE)).map(|index| Some((word(8 + 8 * index)?, word(12 + 8 * index)?))).collect()
}

/// OID and name of every row version in a catalog whose rows begin with these two, as `pg_database` and `pg_authid` do. Rows that were
/// deleted are among them, and of a torn page whatever can be read.
pub fn names(file: &[u8]) -> Vec<(u32, String)> {
    file.chunks_exact(PAGE).flat_map(page_names).collect()
}

fn page_names(page: &[u8]) -> Vec<(u32, String)> {
    let short = |at: usize| Some(u16::from_le_bytes(page.get(at..at + 2)?.try_into().ok()?));
    let lower = usize::from(short(12).unwrap_or_default()).min(PAGE);
    let pointers = page.get(PAGE_HEADER..lower).unwrap_or_default().chunks_exact(4);
    let pointers = pointers.filter_map(|word| Some(u32::from_le_bytes(word.try_into().ok()?)));
    pointers.filter(|word| (word >> 15) & 3 == LINE_POINTER_NORMAL).filter_map(|word| row(page, word)).collect()
}

fn row(page: &[u8], pointer: u32) -> Option<(u32, String)> {
    let (offset, length) = ((pointer & 0x7FFF) as usize, (pointer >> 17) as usize);
    let tuple = page.get(offset..offset + length)?;
    let begin = usize::from(*tuple.get(TUPLE_HEADER - 1)?);
    let oid = u32::from_le_bytes(tuple.get(begin..begin + 4)?.try_into().ok()?);
    let name = tuple.get(begin + 4..begin + 4 + NAME)?;
    let name = name.split(|byte| *byte == 0).next()?;
    Some((oid, std::str::from_utf8(name).ok().filter(|name| !name.is_empty())?.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn needed(path: &str) -> bool {
        Needed::Databases(BTreeSet::from([5, 16384])).content(&RelativePath::parse(path).expect("a path"))
    }

    #[test]
    fn only_relation_files_of_other_databases_are_left_empty() {
        for path in ["base/16385/1", "base/16385/16390.1", "base/1/2619_fsm", "base/4/7_vm", "base/4/7_init", "base/4/7_vm.2"] {
            assert!(!needed(path), "{path}");
        }
        assert!(!needed("pg_tblspc/16500/PG_15_202209061/16385/16390"));
        assert!(!needed("base/16385/pg_filenode.map") && needed("base/5/pg_filenode.map") && needed("global/pg_filenode.map"));
        let whole = [
            "base/16384/1",
            "base/5/16390.1",
            "pg_tblspc/16500/PG_15_202209061/16384/16390",
            "base/16385/PG_VERSION",
            "base/16385/pg_internal.init",
            "base/16385/7_other",
            "base/16385/7.x",
            "global/1262",
            "pg_xact/0000",
            "backup_label",
            "base/16385",
            "pg_tblspc/16500/other/16385/16390",
        ];
        for path in whole {
            assert!(needed(path), "{path}");
        }
        assert!(Needed::Everything.content(&RelativePath::parse("base/16385/1").expect("a path")));
    }

    #[test]
    fn the_log_names_pages() {
        let line = "2026-11-20 14:30:00 UTC [77] WARNING:  page 7 of relation base/16385/16390_vm does not exist";
        assert_eq!(reference(line).expect("a reference").database, Some(16385));
        let line = "WARNING:  page 0 of relation pg_tblspc/16500/PG_15_202209061/16384/16390 is uninitialized";
        assert_eq!(reference(line).expect("a reference").database, Some(16384));
        let line = "WARNING:  page 0 of relation global/1262 is uninitialized";
        let shared = reference(line).expect("a reference");
        assert_eq!(shared.database, None);
        let needed = Needed::Databases(BTreeSet::from([16384]));
        assert!(!needed.may_lack(shared.database) && !needed.may_lack(Some(16384)) && needed.may_lack(Some(16385)));
        assert!(!Needed::Everything.may_lack(Some(16385)));
        assert_eq!(reference("LOG:  redo starts at 0/2000028"), None);
        assert_eq!(reference("ERROR:  column \"page 1\" of relation \"t\" does not exist in this life"), None);
    }

    #[test]
    fn a_row_is_oid_and_name() {
        let mut page = vec![0; PAGE];
        let tuple_at = PAGE - 200;
        page[12..14].copy_from_slice(&32_u16.to_le_bytes());
        let pointer = (tuple_at as u32) | (LINE_POINTER_NORMAL << 15) | (200 << 17);
        page[24..28].copy_from_slice(&pointer.to_le_bytes());
        page[tuple_at + 22] = 24;
        page[tuple_at + 24..tuple_at + 28].copy_from_slice(&16384_u32.to_le_bytes());
        page[tuple_at + 28..tuple_at + 32].copy_from_slice(b"shop");
        assert_eq!(names(&page), [(16384, "shop".to_owned())]);
        let mut map = [MAP_MAGIC, 1, PG_DATABASE, 99].map(u32::to_le_bytes).concat();
        assert_eq!(relation_map(&map), Some(vec![(PG_DATABASE, 99)]));
        map[0] = 0;
        assert_eq!(relation_map(&map), None);
    }

    proptest! {
        #[test]
        fn damage_is_read_without_panic(mut page in proptest::collection::vec(any::<u8>(), PAGE), lower in any::<u16>(), line in ".{0,80}") {
            page[12..14].copy_from_slice(&lower.to_le_bytes());
            let _ = (names(&page), relation_map(&page), reference(&line), of_database(&line));
        }
    }
}
