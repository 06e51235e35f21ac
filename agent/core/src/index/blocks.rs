//! Which blocks of which relation files the records of some segments change.
//!
//! What a block reference does not tell is added as [`crate::record::FileChange`] lists it. What no record tells stays the reader's to know:
//! free space maps, visibility maps and all that is no relation file are to be taken as changed, and so is everything across a stretch that
//! is in no map.

use std::collections::{BTreeMap, BTreeSet};

use roaring::RoaringBitmap;
use serde::{Deserialize, Serialize};

use crate::record::{FileChange, Fork, Oid, Record, RelFileLocator};

const FORMAT: u32 = 1;

/// The files of a relation's fork, in the order in which they are stored.
type File = (RelFileLocator, Fork);

/// Changes of blocks.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct BlockChanges {
    files: BTreeMap<File, Changed>,
    /// Relations of which all files were made anew or removed.
    relations: BTreeSet<RelFileLocator>,
    /// Databases, each in a tablespace, of which all files were.
    databases: BTreeSet<(Oid, Oid)>,
}

/// Changes of a file.
#[derive(Clone, PartialEq, Debug, Default)]
struct Changed {
    /// Everything from here on.
    from: Option<u32>,
    blocks: RoaringBitmap,
}

/// The bytes are not a block map.
#[derive(Debug, thiserror::Error)]
pub enum ReadBlocksError {
    /// Not its JSON.
    #[error("it is no block map: {0}")]
    Json(#[from] serde_json::Error),
    /// Of a later Walkeep.
    #[error("it has format {0}; this Walkeep reads format {FORMAT}")]
    Format(u32),
    /// It names a fork that there is not.
    #[error("it names fork {0:?}")]
    Fork(String),
}

#[derive(Serialize, Deserialize)]
struct Head {
    format: u32,
}

/// A line of a stored map.
#[derive(Serialize, Deserialize, Default)]
struct Line {
    tablespace: Oid,
    database: Oid,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    file: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    fork: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    from: Option<u32>,
    /// Blocks in a row: the first, and how many.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    blocks: Vec<(u32, u32)>,
}

impl BlockChanges {
    /// Adds what a record changes.
    pub fn record(&mut self, record: &Record<'_>) {
        for block in record.blocks() {
            self.files.entry((block.relation, block.fork)).or_default().blocks.insert(block.block);
        }
        for change in record.file_changes() {
            match change {
                FileChange::Relation { relation, fork: Some(fork), from } => {
                    let limit = &mut self.files.entry((relation, fork)).or_default().from;
                    *limit = Some(limit.map_or(from, |limit| limit.min(from)));
                }
                FileChange::Relation { relation, fork: None, .. } => _ = self.relations.insert(relation),
                FileChange::Database { database, tablespace } => _ = self.databases.insert((database, tablespace)),
            }
        }
    }

    /// Adds all of another's.
    pub fn join(&mut self, other: Self) {
        for (file, changed) in other.files {
            let all = self.files.entry(file).or_default();
            all.from = all.from.into_iter().chain(changed.from).min();
            all.blocks |= changed.blocks;
        }
        self.relations.extend(other.relations);
        self.databases.extend(other.databases);
    }

    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty() && self.relations.is_empty() && self.databases.is_empty()
    }

    /// Blocks that are told one by one.
    pub fn count(&self) -> u64 {
        self.files.values().map(|changed| changed.blocks.len()).sum()
    }

    /// Whether a block may be another than before.
    pub fn is_changed(&self, relation: RelFileLocator, fork: Fork, block: u32) -> bool {
        let whole = self.relations.contains(&relation) || self.databases.contains(&(relation.database, relation.tablespace));
        let told = |changed: &Changed| changed.from.is_some_and(|from| block >= from) || changed.blocks.contains(block);
        whole || self.files.get(&(relation, fork)).is_some_and(told)
    }

    /// Whether anything of a relation's fork may be another than before.
    pub fn touches(&self, relation: RelFileLocator, fork: Fork) -> bool {
        let whole = self.relations.contains(&relation) || self.databases.contains(&(relation.database, relation.tablespace));
        whole || self.files.contains_key(&(relation, fork))
    }

    /// As it is stored: a line of JSON that says what it is, and a line for each file.
    pub fn to_json_lines(&self) -> serde_json::Result<Vec<u8>> {
        let mut lines = serde_json::to_vec(&Head { format: FORMAT })?;
        let databases =
            self.databases.iter().map(|(database, tablespace)| Line { tablespace: *tablespace, database: *database, ..Line::default() });
        let relation = |relation: &RelFileLocator| Line {
            tablespace: relation.tablespace,
            database: relation.database,
            file: Some(relation.number),
            ..Line::default()
        };
        let files = self.files.iter().map(|((file, fork), changed)| Line {
            fork: Some(fork.to_string()),
            from: changed.from,
            blocks: rows(&changed.blocks),
            ..relation(file)
        });
        for line in databases.chain(self.relations.iter().map(relation)).chain(files) {
            lines.push(b'\n');
            serde_json::to_writer(&mut lines, &line)?;
        }
        lines.push(b'\n');
        Ok(lines)
    }

    /// Reads what [`BlockChanges::to_json_lines`] wrote.
    pub fn from_json_lines(bytes: &[u8]) -> Result<Self, ReadBlocksError> {
        let mut lines = bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        let Head { format } = serde_json::from_slice(lines.next().unwrap_or_default())?;
        if format != FORMAT {
            return Err(ReadBlocksError::Format(format));
        }
        let mut all = Self::default();
        for line in lines {
            let line: Line = serde_json::from_slice(line)?;
            let Line { tablespace, database, file: Some(number), .. } = line else {
                all.databases.insert((line.database, line.tablespace));
                continue;
            };
            let relation = RelFileLocator { tablespace, database, number };
            let Some(fork) = line.fork else {
                all.relations.insert(relation);
                continue;
            };
            let known =
                [Fork::Main, Fork::FreeSpaceMap, Fork::VisibilityMap, Fork::Init].into_iter().find(|known| known.to_string() == fork);
            let file = all.files.entry((relation, known.ok_or(ReadBlocksError::Fork(fork))?)).or_default();
            file.from = line.from;
            for (first, count) in line.blocks {
                file.blocks.insert_range(first..=first.saturating_add(count.saturating_sub(1)));
            }
        }
        Ok(all)
    }
}

/// Blocks that follow each other as one.
fn rows(blocks: &RoaringBitmap) -> Vec<(u32, u32)> {
    let mut rows: Vec<(u32, u32)> = Vec::new();
    for block in blocks {
        match rows.last_mut() {
            Some((first, count)) if first.checked_add(*count) == Some(block) => *count += 1,
            _ => rows.push((block, 1)),
        }
    }
    rows
}
