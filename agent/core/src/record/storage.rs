//! Records that make, cut and remove files without referring to their blocks (`storage_xlog.h`, `dbcommands_xlog.h`, `relmapper.h`).

use crate::identity::MajorVersion;
use crate::le::u32_at;

use super::list::{Element, List};
use super::relation::{Fork, Oid, RelFileLocator};

/// Heap pages that one page of the visibility map covers: `HEAPBLOCKS_PER_PAGE` of `visibilitymap.c`.
const HEAP_BLOCKS_PER_MAP_PAGE: u32 = (8192 - 24) * 4;

/// A new file of a relation (`xl_smgr_create`). Files of temporary relations are not logged; unlogged ones only by their init fork.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FileCreated {
    /// The relation's files.
    pub relation: RelFileLocator,
    /// Which of them.
    pub fork: Fork,
}

impl FileCreated {
    pub(super) fn parse(data: &[u8]) -> Option<Self> {
        Some(Self { relation: RelFileLocator::read_at(data, 0)?, fork: Fork::of_number(u32_at(data, 12)?)? })
    }
}

/// A relation's files are cut off (`xl_smgr_truncate`): by VACUUM, or by TRUNCATE of a table that the same transaction made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FileTruncated {
    /// The relation's files.
    pub relation: RelFileLocator,
    /// Pages that the main fork keeps.
    pub blocks: u32,
    /// Whether the main fork is cut.
    pub main: bool,
    /// Whether the visibility map is.
    pub visibility_map: bool,
    /// Whether the free space map is.
    pub free_space_map: bool,
}

impl FileTruncated {
    pub(super) fn parse(data: &[u8]) -> Option<Self> {
        let flags = u32_at(data, 16)?;
        let flag = |bit| flags & bit != 0;
        let (main, visibility_map, free_space_map) = (flag(1), flag(2), flag(4));
        Some(Self { blocks: u32_at(data, 0)?, relation: RelFileLocator::read_at(data, 4)?, main, visibility_map, free_space_map })
    }

    /// The first page of the visibility map that is not what it was: cut off, or its bits cleared behind the last heap page.
    pub(super) fn first_map_page(&self) -> u32 {
        self.blocks / HEAP_BLOCKS_PER_MAP_PAGE
    }
}

/// `CREATE DATABASE`, `ALTER DATABASE SET TABLESPACE` too.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DatabaseCreated {
    /// The database.
    pub database: Oid,
    /// Its default tablespace.
    pub tablespace: Oid,
    /// Database and tablespace whose files were copied, of which no record tells more. `None` where each page is logged (15 and later).
    pub copied_from: Option<(Oid, Oid)>,
}

/// A database's folders are removed (`xl_dbase_drop_rec`): by `DROP DATABASE`, and `ALTER DATABASE SET TABLESPACE` for the old place.
#[derive(Clone, Copy, Debug)]
pub struct DatabaseDropped<'a> {
    /// The database.
    pub database: Oid,
    /// The tablespaces in which it had files.
    pub tablespaces: List<'a, Oid>,
}

/// What a record of the resource manager `Database` says; 15 changed the numbers.
pub(super) enum DatabaseRecord<'a> {
    Created(DatabaseCreated),
    Dropped(DatabaseDropped<'a>),
}

impl<'a> DatabaseRecord<'a> {
    /// Whether `info` is of a known kind is told by the outer `Option`.
    pub(super) fn parse(data: &'a [u8], info: u8, version: MajorVersion) -> Option<Option<Self>> {
        let copied = || -> Option<Self> {
            let copied_from = Some((u32_at(data, 8)?, u32_at(data, 12)?));
            Some(Self::Created(DatabaseCreated { database: u32_at(data, 0)?, tablespace: u32_at(data, 4)?, copied_from }))
        };
        let logged = || -> Option<Self> {
            Some(Self::Created(DatabaseCreated { database: u32_at(data, 0)?, tablespace: u32_at(data, 4)?, copied_from: None }))
        };
        let dropped = || -> Option<Self> {
            let (tablespaces, _) = List::split_counted(data.get(4..)?, 4)?;
            Some(Self::Dropped(DatabaseDropped { database: u32_at(data, 0)?, tablespaces }))
        };
        match (info & 0xF0, version.get() >= 15) {
            (0x00, _) => Some(copied()),
            (0x10, true) => Some(logged()),
            (0x10, false) | (0x20, true) => Some(dropped()),
            _ => None,
        }
    }
}

/// `CREATE TABLESPACE`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TablespaceCreated<'a> {
    /// The tablespace.
    pub tablespace: Oid,
    /// The absolute path, or empty for one inside the data directory. WAL does not tell its encoding.
    pub location: &'a [u8],
}

impl<'a> TablespaceCreated<'a> {
    pub(super) fn parse(data: &'a [u8]) -> Option<Self> {
        Some(Self { tablespace: u32_at(data, 0)?, location: data.get(4..)?.split(|&byte| byte == 0).next()? })
    }
}

/// A database's mapped relations, `pg_class` among them, have these files from here on (`xl_relmap_update`).
#[derive(Clone, Copy, Debug)]
pub struct RelationMap<'a> {
    /// The database; 0 for the map of shared relations.
    pub database: Oid,
    /// Its default tablespace, where the map and the files lie.
    pub tablespace: Oid,
    /// The whole map.
    pub mappings: List<'a, Mapping>,
}

impl<'a> RelationMap<'a> {
    pub(super) fn parse(data: &'a [u8]) -> Option<Self> {
        // The map's file: a magic number, a count, the entries, room for more, a checksum.
        let file = data.get(12..)?.get(..usize::try_from(u32_at(data, 8)?).ok()?)?;
        let (mappings, _) = List::split_counted(file.get(4..)?, Mapping::SIZE)?;
        Some(Self { database: u32_at(data, 0)?, tablespace: u32_at(data, 4)?, mappings })
    }
}

/// A mapped relation's file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mapping {
    /// The relation.
    pub relation: Oid,
    /// The number of its files.
    pub number: u32,
}

impl Mapping {
    const SIZE: usize = 8;
}

impl Element for Mapping {
    fn read(bytes: &[u8]) -> Option<Self> {
        Some(Self { relation: u32_at(bytes, 0)?, number: u32_at(bytes, 4)? })
    }
}
