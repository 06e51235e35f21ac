//! Which blocks of which relation files the records of some segments change.
//!
//! What a block reference does not tell is added as [`crate::record::FileChange`] lists it. What no record tells stays the reader's to know:
//! free space maps, visibility maps and all that is no relation file are to be taken as changed, and so is everything across a stretch that
//! is in no map.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use roaring::RoaringBitmap;

use crate::record::{FileChange, Fork, Oid, Record, RelFileLocator};

/// What a file takes in memory beside its blocks, about.
const FILE_MEMORY: u64 = 160;

/// The files of a relation's fork, in the order in which they are stored.
pub(super) type File = (RelFileLocator, Fork);

/// Changes of blocks.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct BlockChanges {
    pub(super) files: BTreeMap<File, Changed>,
    /// Relations of which all files were made anew or removed.
    pub(super) relations: BTreeSet<RelFileLocator>,
    /// Databases, each in a tablespace, of which all files were.
    pub(super) databases: BTreeSet<(Oid, Oid)>,
}

/// Changes of a file.
#[derive(Clone, PartialEq, Debug, Default)]
pub(super) struct Changed {
    /// Everything from here on.
    pub(super) from: Option<u32>,
    pub(super) blocks: RoaringBitmap,
}

impl BlockChanges {
    /// Adds what a record changes.
    pub fn record(&mut self, record: &Record<'_>) {
        record.blocks().for_each(|block| self.block(block.relation, block.fork, block.block));
        record.file_changes().for_each(|change| self.file(change));
    }

    /// Adds a block.
    pub(crate) fn block(&mut self, relation: RelFileLocator, fork: Fork, block: u32) {
        self.files.entry((relation, fork)).or_default().blocks.insert(block);
    }

    /// Adds what happened to files.
    pub(crate) fn file(&mut self, change: FileChange) {
        match change {
            FileChange::Relation { relation, fork: Some(fork), from } => {
                let limit = &mut self.files.entry((relation, fork)).or_default().from;
                *limit = Some(limit.map_or(from, |limit| limit.min(from)));
            }
            FileChange::Relation { relation, fork: None, .. } => _ = self.relations.insert(relation),
            FileChange::Database { database, tablespace } => _ = self.databases.insert((database, tablespace)),
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
        let told = |changed: &Changed| changed.from.is_some_and(|from| block >= from) || changed.blocks.contains(block);
        self.is_whole(relation) || self.files.get(&(relation, fork)).is_some_and(told)
    }

    /// Whether anything of a relation's fork may be another than before.
    pub fn touches(&self, relation: RelFileLocator, fork: Fork) -> bool {
        self.is_whole(relation) || self.files.contains_key(&(relation, fork))
    }

    /// Whether all of a relation's files are others than before, or gone.
    pub fn is_whole(&self, relation: RelFileLocator) -> bool {
        self.relations.contains(&relation) || self.databases.contains(&(relation.database, relation.tablespace))
    }

    /// From which block on nothing of a relation's fork is what it was, where that is told.
    pub fn limit(&self, relation: RelFileLocator, fork: Fork) -> Option<u32> {
        self.files.get(&(relation, fork))?.from
    }

    /// The blocks of a relation's fork within `range` that are told one by one, as rows.
    pub fn rows(&self, relation: RelFileLocator, fork: Fork, range: Range<u32>) -> Vec<Range<u32>> {
        let Some(changed) = self.files.get(&(relation, fork)) else { return Vec::new() };
        let mut rows: Vec<Range<u32>> = Vec::new();
        for block in changed.blocks.range(range) {
            match rows.last_mut() {
                Some(row) if row.end == block => row.end = block.saturating_add(1),
                _ => rows.push(block..block.saturating_add(1)),
            }
        }
        rows
    }

    /// About how many bytes it takes in memory.
    pub fn memory(&self) -> u64 {
        let of_files: u64 = self.files.values().map(|changed| FILE_MEMORY + changed.blocks.serialized_size() as u64).sum();
        of_files + FILE_MEMORY * (self.relations.len() + self.databases.len()) as u64
    }
}
