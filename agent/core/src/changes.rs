//! Which blocks of which files can be others in a backup than in the one before, as far as the WAL between the two tells.
//!
//! What the WAL does not tell is said here too: free space maps, visibility maps and whatever is no relation file are read as wholes, and so
//! is each block behind the former end of its file, since pages that are only added are not logged. What no rule covers (a page that
//! only had hint bits set, an empty page that was initialised, a cache in an index's first page) may be taken as it was: it is what a crash
//! would have left. Where the WAL comes from, and whether it is whole, is the agent's business.

use std::ops::Range;

use crate::catalog::WalRange;
use crate::control::ControlFile;
use crate::decoder::record_begin;
use crate::index::BlockChanges;
use crate::page::PAGE_SIZE;
use crate::record::Fork;
use crate::relation_file::RelationFile;
use crate::relative_path::RelativePath;
use crate::segment::SegmentSize;

/// Bytes of a relation's block.
pub const BLOCK_SIZE: u32 = 8192;

/// What changed since another backup.
#[derive(Clone, PartialEq, Debug)]
pub struct Changes {
    blocks: BlockChanges,
    blocks_per_file: u32,
}

/// What of a file has to be read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Everything: nothing is known of it, or all of it is new.
    ReadAll,
    /// These blocks; the others are what they were.
    Blocks(FileBlocks),
}

/// Blocks of one file, counted from its own beginning.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FileBlocks {
    /// Rows of blocks, in order, all before `all_from`.
    pub rows: Vec<Range<u32>>,
    /// From here on every block.
    pub all_from: u32,
}

impl FileBlocks {
    /// Whether the block has to be read.
    pub fn contains(&self, block: u32) -> bool {
        let row = self.rows.partition_point(|row| row.end <= block);
        block >= self.all_from || self.rows.get(row).is_some_and(|row| row.contains(&block))
    }

    /// How many blocks of a file of `length` blocks have to be read.
    pub fn count(&self, length: u32) -> u32 {
        let within = |row: &Range<u32>| row.end.min(length).saturating_sub(row.start);
        self.rows.iter().map(within).sum::<u32>() + length.saturating_sub(self.all_from)
    }
}

impl Changes {
    /// These, of the cluster with this control file; `None` if its blocks are not of the usual size, for which nothing is known.
    pub fn new(blocks: BlockChanges, control: &ControlFile) -> Option<Self> {
        let usual = control.block_size == BLOCK_SIZE && control.blocks_per_file > 0;
        usual.then_some(Self { blocks, blocks_per_file: control.blocks_per_file })
    }

    /// What of the file at `path` has to be read. `before` is its length in bytes in the former backup; `None` if that does not have it.
    pub fn of(&self, path: &RelativePath, before: Option<u64>) -> Verdict {
        self.blocks_of(path, before).map_or(Verdict::ReadAll, Verdict::Blocks)
    }

    /// `None` for all of it.
    fn blocks_of(&self, path: &RelativePath, before: Option<u64>) -> Option<FileBlocks> {
        let RelationFile { relation, fork, segment: part } = RelationFile::parse(path.as_str())?;
        if !matches!(fork, Fork::Main | Fork::Init) || self.blocks.is_whole(relation) {
            return None;
        }
        let first = part.checked_mul(self.blocks_per_file)?;
        let limit = match self.blocks.limit(relation, fork) {
            Some(limit) if limit <= first => return None,
            Some(limit) => limit - first,
            None => self.blocks_per_file,
        };
        let length = u32::try_from(before? / u64::from(BLOCK_SIZE)).ok()?;
        let all_from = length.min(limit).min(self.blocks_per_file);
        let rows = self.blocks.rows(relation, fork, first..first.checked_add(all_from)?);
        Some(FileBlocks { rows: rows.into_iter().map(|row| row.start - first..row.end - first).collect(), all_from })
    }

    /// Blocks that are told one by one, of all files.
    pub fn count(&self) -> u64 {
        self.blocks.count()
    }
}

/// The stretches of `wanted` in which records begin that are told of nowhere: each of `told` has every record that begins in it.
pub fn holes(wanted: WalRange, told: &[WalRange], size: SegmentSize) -> Vec<WalRange> {
    let mut told = told.to_vec();
    told.sort_by_key(|range| (range.from, range.to));
    let (mut at, mut holes) = (wanted.from, Vec::new());
    let mut hole = |from, to| {
        if record_begin(from, size) < record_begin(to, size) {
            holes.push(WalRange { from, to });
        }
    };
    for range in told {
        if range.to > at && range.from < wanted.to {
            hole(at, range.from.max(at));
            at = range.to;
        }
    }
    hole(at, wanted.to);
    holes
}

const _: () = assert!(PAGE_SIZE == BLOCK_SIZE as u64, "the map's pages are the relations' blocks");

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decoder::Decoder;
    use crate::lsn::Lsn;
    use crate::record::FileChange;
    use crate::record::RelFileLocator;
    use proptest::prelude::*;

    const PER_FILE: u32 = 100;

    fn relation(number: u32) -> RelFileLocator {
        RelFileLocator { tablespace: 1663, database: 5, number }
    }

    fn changes(blocks: &[(u32, Fork, u32)], more: &[FileChange]) -> Changes {
        let mut all = BlockChanges::default();
        blocks.iter().for_each(|(number, fork, block)| all.block(relation(*number), *fork, *block));
        more.iter().for_each(|change| all.file(*change));
        Changes { blocks: all, blocks_per_file: PER_FILE }
    }

    fn of(changes: &Changes, path: &str, blocks: u32) -> Verdict {
        changes.of(&RelativePath::parse(path).expect("a path"), Some(u64::from(blocks) * 8192))
    }

    fn some(rows: &[(u32, u32)], all_from: u32) -> Verdict {
        Verdict::Blocks(FileBlocks { rows: rows.iter().map(|(start, end)| *start..*end).collect(), all_from })
    }

    #[test]
    fn blocks_are_told_to_the_file_they_lie_in() {
        let main = [3, 4, 99, 100, 250].map(|block| (7, Fork::Main, block));
        let changes = changes(&main, &[]);
        assert_eq!(of(&changes, "base/5/7", 100), some(&[(3, 5), (99, 100)], 100));
        assert_eq!(of(&changes, "base/5/7.1", 100), some(&[(0, 1)], 100));
        assert_eq!(of(&changes, "base/5/7.2", 60), some(&[(50, 51)], 60));
        assert_eq!(of(&changes, "base/5/7.2", 50), some(&[], 50), "what is behind the former end is read anyway");
        assert_eq!(of(&changes, "base/5/8", 10), some(&[], 10), "untouched");
        assert_eq!(of(&changes, "base/6/7", 10), some(&[], 10), "of another database");
        assert_eq!(of(&changes, "pg_tblspc/1663/PG_15_1/5/7", 10), some(&[(3, 5)], 10));
        assert_eq!(of(&changes, "base/5/7_init", 10), some(&[], 10), "of another fork");
        let half = changes.of(&RelativePath::parse("base/5/8").expect("a path"), Some(8192 * 3 + 5));
        assert_eq!(half, some(&[], 3), "a block that is not whole is read");
    }

    #[test]
    fn what_the_wal_does_not_tell_is_read() {
        let changes = changes(&[], &[]);
        let all =
            ["base/5/7_fsm", "base/5/7_vm", "base/5/pg_filenode.map", "global/pg_control", "pg_xact/0000", "base/5/t3_7", "base/5/7.x"];
        all.into_iter().for_each(|path| assert_eq!(of(&changes, path, 10), Verdict::ReadAll, "{path}"));
        assert_eq!(changes.of(&RelativePath::parse("base/5/7").expect("a path"), None), Verdict::ReadAll, "not in the former backup");
        assert_eq!(of(&changes, "base/5/7.42949673", 10), Verdict::ReadAll, "no block has such a number");
    }

    #[test]
    fn files_that_are_made_cut_or_removed() {
        let file = |number, fork, from| FileChange::Relation { relation: relation(number), fork, from };
        let other = FileChange::Database { database: 6, tablespace: 1663 };
        let changes = changes(
            &[(7, Fork::Main, 20), (7, Fork::Main, 160), (7, Fork::Main, 190)],
            &[file(7, Some(Fork::Main), 170), file(7, Some(Fork::Main), 180), file(8, None, 0), file(9, Some(Fork::Init), 0), other],
        );
        assert_eq!(of(&changes, "base/5/7", 100), some(&[(20, 21)], 100));
        assert_eq!(of(&changes, "base/5/7.1", 100), some(&[(60, 61)], 70), "cut at 170");
        assert_eq!(of(&changes, "base/5/7.2", 100), Verdict::ReadAll);
        assert_eq!(of(&changes, "base/5/8", 100), Verdict::ReadAll);
        assert_eq!((of(&changes, "base/5/9_init", 1), of(&changes, "base/5/9", 1)), (Verdict::ReadAll, some(&[], 1)));
        assert_eq!((of(&changes, "base/6/1", 1), of(&changes, "base/5/1", 1)), (Verdict::ReadAll, some(&[], 1)));
    }

    #[test]
    fn a_verdict_counts_what_it_contains() {
        let blocks = FileBlocks { rows: vec![3..5, 9..10], all_from: 12 };
        let contained: Vec<u32> = (0..15).filter(|block| blocks.contains(*block)).collect();
        assert_eq!(contained, [3, 4, 9, 12, 13, 14]);
        assert_eq!((blocks.count(15), blocks.count(4), blocks.count(0)), (6, 1, 0));
    }

    #[test]
    fn a_pages_header_is_no_hole() {
        let size = SegmentSize::DEFAULT;
        let range = |from: u64, to: u64| WalRange { from: Lsn::new(from), to: Lsn::new(to) };
        let wanted = range(0x100_0028, 0x300_0028);
        assert_eq!(holes(wanted, &[range(0x100_0028, 0x200_0000), range(0x200_0028, 0x300_0000)], size), []);
        assert_eq!(holes(wanted, &[], size), [wanted]);
        let told = [range(0x250_0000, 0x280_0000), range(0x100_0000, 0x1FF_FFF8)];
        assert_eq!(
            holes(wanted, &told, size),
            [range(0x1FF_FFF8, 0x250_0000), range(0x280_0000, 0x300_0028)],
            "a record of which only the last eight bytes lie before the segment is one"
        );
        assert_eq!(holes(wanted, &[range(0, u64::MAX)], size), []);
        assert_eq!(holes(range(5, 5), &[], size), []);
    }

    proptest! {
        /// Whatever maps there are, each record of the fixture that begins in the range is in one of them or in a hole.
        #[test]
        fn no_record_is_forgotten(cuts in proptest::collection::vec((0_usize..400, 0_usize..400), 0..6), from in 0_usize..400, to in 0_usize..400) {
            let size = SegmentSize::new(1 << 20).expect("a size");
            let wal = zstd::decode_all(&include_bytes!("../tests/fixtures/wal-15.bin")[..]).expect("zstd");
            let mut decoder = Decoder::new(Lsn::new(6 << 20), size);
            let mut bytes = &wal[..];
            let mut records = Vec::new();
            while let Ok(Some(record)) = decoder.next_record(&mut bytes) {
                records.push((record.start, record.end));
            }
            let step = records.len() / 400;
            let range = |a: usize, b: usize| WalRange { from: records[a.min(b) * step].0, to: records[a.max(b) * step].1 };
            let told: Vec<WalRange> = cuts.into_iter().map(|(a, b)| range(a, b)).collect();
            let wanted = range(from, to);
            let holes = holes(wanted, &told, size);
            let within = |at: Lsn, ranges: &[WalRange]| ranges.iter().any(|range| range.from <= at && at < range.to);
            for (start, _) in records.iter().filter(|(start, _)| within(*start, &[wanted])) {
                prop_assert!(within(*start, &told) || within(*start, &holes), "{start}");
                prop_assert!(!(within(*start, &told) && within(*start, &holes)), "{start} is looked for in vain");
            }
        }
    }
}
