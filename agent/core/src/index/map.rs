//! A block map as it is stored: the changes of the records of some segments, and which records these are.
//!
//! The name of a map tells the segments in which its records end. Which those are it tells itself: whoever began to read in the middle of
//! the WAL has not seen the record that was under way there, and that one is in no map.

use roaring::RoaringBitmap;
use serde::{Deserialize, Serialize};

use crate::catalog::WalRange;
use crate::record::{Fork, Oid, RelFileLocator};

use super::blocks::BlockChanges;
use super::indexer::IndexedSegment;

const FORMAT: u32 = 1;

/// The changes of the records of some segments.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct BlockMap {
    /// Every record that begins in this range is in it. `None` in maps that were made before this was told.
    pub records: Option<WalRange>,
    /// Whether a record says that `wal_level` is minimal: then there are changes of which no record tells.
    pub minimal: bool,
    /// The changes.
    pub changes: BlockChanges,
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
    #[serde(default, skip_serializing_if = "Option::is_none")]
    records: Option<WalRange>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    minimal: bool,
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

impl BlockMap {
    /// Takes in the segment that follows. Gives it back where its first record is not the one that comes next: a map has no holes.
    pub fn take(&mut self, segment: IndexedSegment) -> Result<(), Box<IndexedSegment>> {
        let summary = &segment.summary;
        let records = match self.records {
            Some(records) if !summary.follows(records.to) => return Err(Box::new(segment)),
            Some(records) => WalRange { from: records.from, to: summary.records.to },
            None => summary.records,
        };
        self.minimal |= summary.wal_levels.iter().any(|at| at.level == 0);
        self.records = Some(records);
        self.changes.join(segment.blocks);
        Ok(())
    }

    /// As it is stored: a line of JSON that says what it is, and a line for each file.
    pub fn to_json_lines(&self) -> serde_json::Result<Vec<u8>> {
        let mut lines = serde_json::to_vec(&Head { format: FORMAT, records: self.records, minimal: self.minimal })?;
        let databases = self.changes.databases.iter().map(|(database, tablespace)| Line {
            tablespace: *tablespace,
            database: *database,
            ..Line::default()
        });
        let relation = |relation: &RelFileLocator| Line {
            tablespace: relation.tablespace,
            database: relation.database,
            file: Some(relation.number),
            ..Line::default()
        };
        let files = self.changes.files.iter().map(|((file, fork), changed)| Line {
            fork: Some(fork.to_string()),
            from: changed.from,
            blocks: rows(&changed.blocks),
            ..relation(file)
        });
        for line in databases.chain(self.changes.relations.iter().map(relation)).chain(files) {
            lines.push(b'\n');
            serde_json::to_writer(&mut lines, &line)?;
        }
        lines.push(b'\n');
        Ok(lines)
    }

    /// Reads what [`BlockMap::to_json_lines`] wrote.
    pub fn from_json_lines(bytes: &[u8]) -> Result<Self, ReadBlocksError> {
        let mut lines = bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        let Head { format, records, minimal } = serde_json::from_slice(lines.next().unwrap_or_default())?;
        if format != FORMAT {
            return Err(ReadBlocksError::Format(format));
        }
        let mut all = BlockChanges::default();
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
        Ok(Self { records, minimal, changes: all })
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
