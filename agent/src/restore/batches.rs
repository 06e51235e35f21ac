//! Which stretches of which packs are read, in what order: the extents of a manifest's files, with neighbours joined to one request.
//!
//! Pure bookkeeping. A file that was put together over many backups has extents in many packs; files that lie side by side in a directory come from the same
//! few. So several requests are kept open, one a pack, until they are large enough or others are more recent.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use walkeep_core::layout::PackId;
use walkeep_core::manifest::Extent;
use walkeep_core::manifest::content::Placement;

/// The most stored bytes read in one request, unless one extent has more.
pub const READ: u64 = 4 << 20;
/// The most plain bytes that may come of one request.
const PLAIN: u64 = 32 << 20;
/// Bytes between two extents that are read and thrown away rather than asking twice: a request costs more than this.
const GAP: u64 = 128 << 10;
/// Requests that are open for more.
const OPEN: usize = 24;

/// An extent and where its bytes belong.
#[derive(Debug)]
pub struct Piece<F> {
    pub file: Arc<F>,
    pub extent: Extent,
    pub placements: Vec<Placement>,
}

/// Pieces that lie near each other in one pack, in its order.
#[derive(Debug)]
pub struct Batch<F> {
    pub pack: PackId,
    pub range: Range<u64>,
    plain: u64,
    pub pieces: Vec<Piece<F>>,
}

/// Joins pieces to batches.
#[derive(Debug)]
pub struct Batches<F> {
    /// The most recent last.
    open: VecDeque<Batch<F>>,
}

impl<F> Batches<F> {
    /// None yet.
    pub fn new() -> Self {
        Self { open: VecDeque::new() }
    }

    /// Adds a piece. Answers a batch that will not grow any more.
    pub fn add(&mut self, piece: Piece<F>) -> Option<Batch<F>> {
        if let Some(at) = self.open.iter().position(|batch| batch.takes(&piece.extent)) {
            let mut batch = self.open.remove(at)?;
            batch.range.end = piece.extent.offset + piece.extent.stored;
            batch.plain += piece.extent.plain;
            batch.pieces.push(piece);
            if batch.range.end - batch.range.start >= READ || batch.plain >= PLAIN {
                return Some(batch);
            }
            self.open.push_back(batch);
            return None;
        }
        let Extent { pack, offset, stored, plain, .. } = piece.extent;
        self.open.push_back(Batch { pack, range: offset..offset + stored, plain, pieces: vec![piece] });
        (self.open.len() > OPEN).then(|| self.open.pop_front()).flatten()
    }

    /// The rest.
    pub fn finish(self) -> impl Iterator<Item = Batch<F>> {
        self.open.into_iter()
    }
}

impl<F> Batch<F> {
    fn takes(&self, extent: &Extent) -> bool {
        let bytes = extent.offset.saturating_add(extent.stored).saturating_sub(self.range.start);
        extent.pack == self.pack
            && extent.offset >= self.range.end
            && extent.offset - self.range.end <= GAP
            && bytes <= READ
            && self.plain + extent.plain <= PLAIN
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use walkeep_core::blake3::Blake3Sum;

    fn piece(pack: u8, offset: u64, stored: u64) -> Piece<()> {
        let extent = Extent { pack: PackId::new([pack; 32]), offset, stored, plain: 1 << 20, hash: Blake3Sum::new([0; 32]) };
        Piece { file: Arc::new(()), extent, placements: Vec::new() }
    }

    fn run(pieces: impl IntoIterator<Item = Piece<()>>) -> Vec<(u8, Range<u64>, usize)> {
        let mut batches = Batches::new();
        let mut done: Vec<_> = pieces.into_iter().filter_map(|piece| batches.add(piece)).collect();
        done.extend(batches.finish());
        done.iter().map(|batch| (batch.pack.sha256()[0], batch.range.clone(), batch.pieces.len())).collect()
    }

    #[test]
    fn neighbours_are_one_request_and_strangers_are_not() {
        assert_eq!(run((0..10).map(|i| piece(1, i * 1000, 1000))), [(1, 0..10_000, 10)]);
        assert_eq!(run([piece(1, 0, 10), piece(1, 10 + GAP, 10), piece(1, 30 + 3 * GAP, 10)]).len(), 2);
        let two_packs = (0..20).map(|i| piece(1 + (i % 2) as u8, i * 500, 500 + 500 * (i % 2)));
        assert_eq!(run(two_packs).len(), 2, "files that come from two packs in turns");
        assert_eq!(run([piece(1, 100, 10), piece(1, 100, 10)]).len(), 2, "the same extent twice");
    }

    #[test]
    fn a_request_is_bounded() {
        let done = run((0..100).map(|i| piece(1, i * 500_000, 500_000)));
        assert!(done.iter().all(|(_, range, _)| range.end - range.start <= READ), "{done:?}");
        assert!(run((0..100).map(|i| piece(1, i * 100, 100))).iter().all(|(_, _, pieces)| *pieces <= 32));
        assert_eq!(run((0..100).map(|i| piece(i as u8, 0, 100))).len(), 100);
    }
}
