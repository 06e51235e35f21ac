use proptest::prelude::*;

use super::*;
use crate::blake3::Blake3Sum;
use crate::layout::PackId;

/// A store of extents, so that a file can be put together for real.
#[derive(Default)]
struct World {
    extents: Vec<Vec<u8>>,
}

impl World {
    fn store(&mut self, bytes: Vec<u8>) -> Extent {
        let number = self.extents.len() as u64;
        let extent =
            Extent { pack: PackId::new([0; 32]), offset: number, stored: 1, plain: bytes.len() as u64, hash: Blake3Sum::new([0; 32]) };
        self.extents.push(bytes);
        extent
    }

    /// Reads what the recipe says out of `file`, and makes the content of it.
    fn carry_out(&mut self, recipe: &Recipe, file: &[u8]) -> Content {
        let mut extents = recipe.kept.clone();
        for ranges in &recipe.fresh {
            let bytes: Vec<u8> = ranges.iter().flat_map(|range| file[range.start as usize..range.end as usize].to_vec()).collect();
            assert!(bytes.len() as u64 <= EXTENT);
            extents.push(self.store(bytes));
        }
        let run = |part: &Part| match *part {
            Part::Kept(run) => run,
            Part::Fresh { index, from, length } => Run { source: Source::Extent { index: index + recipe.kept.len() as u32, from }, length },
        };
        Content::new(extents, recipe.parts.iter().map(run).collect()).expect("a content")
    }

    fn read(&self, content: &Content) -> Vec<u8> {
        let mut bytes = Vec::new();
        for run in content.runs() {
            match run.source {
                Source::Zeros => bytes.resize(bytes.len() + run.length as usize, 0),
                Source::Extent { index, from } => {
                    let extent = &self.extents[content.extents()[index as usize].offset as usize];
                    bytes.extend_from_slice(&extent[from as usize..(from + run.length) as usize]);
                }
            }
        }
        bytes
    }
}

const BLOCK: usize = 8192;

/// One block, as the only stretch that changed.
fn changed(at: usize) -> Vec<Range<u64>> {
    vec![Range { start: at as u64, end: (at + BLOCK) as u64 }]
}

fn assert_whole_enough(content: &Content) {
    let size = content.size();
    assert!(content.extents().len() <= most_extents(size), "{} extents of {size} bytes", content.extents().len());
    let plain: u64 = content.extents().iter().map(|extent| extent.plain).sum();
    assert!(plain <= most_plain(size), "{plain} plain bytes for {size}");
}

#[test]
fn a_changed_block_costs_a_block() {
    let mut world = World::default();
    let mut file = vec![1; 5 * EXTENT as usize];
    let full = world.carry_out(&Recipe::anew(file.len() as u64), &file);
    assert_eq!((full.extents().len(), full.is_in_order()), (5, true));
    file[3_000_000] = 2;
    let block = 3_000_000 / BLOCK * BLOCK;
    let recipe = Recipe::of(&full, file.len() as u64, &changed(block));
    assert_eq!((recipe.bytes_read(), recipe.kept.len()), (BLOCK as u64, 5));
    let content = world.carry_out(&recipe, &file);
    assert!(world.read(&content) == file);
    let same = Recipe::of(&content, file.len() as u64, &[]);
    assert_eq!(same.bytes_read(), 0);
    let content = world.carry_out(&same, &file);
    assert!(world.read(&content) == file);
}

#[test]
fn what_is_mostly_gone_is_not_kept() {
    let mut world = World::default();
    let mut file = vec![1; 2 * EXTENT as usize];
    let full = world.carry_out(&Recipe::anew(file.len() as u64), &file);
    let blocks = EXTENT as usize / BLOCK;
    for (count, kept, read) in [(blocks / 2, 2, EXTENT / 2), (blocks / 2 + 1, 1, EXTENT)] {
        let mut every_other: Vec<Range<u64>> = (0..count).flat_map(|n| changed(if n * 2 < blocks { n * 2 } else { 1 } * BLOCK)).collect();
        every_other.sort_by_key(|range| range.start);
        for range in &every_other {
            file[range.start as usize] = 9;
        }
        let recipe = Recipe::of(&full, file.len() as u64, &every_other);
        assert_eq!((recipe.kept.len(), recipe.bytes_read()), (kept, read), "{count} of {blocks} blocks");
        let content = world.carry_out(&recipe, &file);
        assert!(world.read(&content) == file);
    }
}

#[test]
fn an_empty_file_has_nothing() {
    assert_eq!(Recipe::anew(0), Recipe::default());
    let mut world = World::default();
    let full = world.carry_out(&Recipe::anew(10), &[1; 10]);
    assert_eq!(Recipe::of(&full, 0, &changed(0)), Recipe::default());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// Whatever changes, for many backups: the file is what it should be, and never falls to pieces.
    #[test]
    fn years_of_changes(
        blocks in 1_usize..500,
        days in prop::collection::vec((prop::collection::vec((0_usize..700, 1_usize..40), 0..12), -60_isize..60), 1..60),
    ) {
        let mut world = World::default();
        let mut file = vec![0_u8; blocks * BLOCK];
        let mut content = world.carry_out(&Recipe::anew(file.len() as u64), &file);
        for (day, (changes, grown)) in days.into_iter().enumerate() {
            let now = (file.len() / BLOCK).saturating_add_signed(grown);
            // What a file grows by is not told as changed.
            let stamp = day as u8 + 1;
            file.resize(now * BLOCK, stamp);
            let mut changed = Vec::new();
            for (at, count) in changes {
                changed.push((at * BLOCK) as u64..((at + count) * BLOCK) as u64);
                for byte in file.iter_mut().skip(at * BLOCK).take(count * BLOCK) {
                    *byte = stamp;
                }
            }
            let recipe = Recipe::of(&content, file.len() as u64, &joined(changed));
            content = world.carry_out(&recipe, &file);
            prop_assert!(world.read(&content) == file);
            assert_whole_enough(&content);
        }
    }
}

/// One block a day, another each time, for ten years.
#[test]
fn one_block_a_day() {
    let mut world = World::default();
    let mut file = vec![0_u8; 4 * EXTENT as usize];
    let mut content = world.carry_out(&Recipe::anew(file.len() as u64), &file);
    let mut read = 0;
    for day in 0..3650_usize {
        let block = day * 37 % 512;
        file[block * BLOCK] = day as u8;
        let recipe = Recipe::of(&content, file.len() as u64, &changed(block * BLOCK));
        read += recipe.bytes_read();
        content = world.carry_out(&recipe, &file);
        assert_whole_enough(&content);
    }
    assert!(world.read(&content) == file);
    assert!(read < 3650 * 40 * BLOCK as u64, "{read} bytes were read, {} for each changed one", read / 3650 / BLOCK as u64);
}
