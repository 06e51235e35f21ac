//! One extent, on a worker's thread: read, looked at, hashed, and compressed if it has to be stored.

use std::collections::HashMap;
use std::sync::Arc;

use anyhow::{Context, Result};
use walkeep_core::blake3::Blake3Sum;
use walkeep_core::manifest::Extent;

use crate::codec::{self, Compressor};

/// Bytes of a file, as they were read.
#[derive(Debug, Default)]
pub struct Plain {
    /// The bytes.
    pub bytes: Vec<u8>,
    /// Blocks of the file whose checksum is wrong, by their number in the file.
    pub bad_blocks: Vec<u32>,
}

/// Extents that are stored already, by what they hold: of an older backup, or of one that was interrupted.
#[derive(Debug, Clone, Default)]
pub struct Older(Arc<HashMap<Blake3Sum, Extent>>);

impl Older {
    /// These.
    pub fn new(extents: HashMap<Blake3Sum, Extent>) -> Self {
        Self(Arc::new(extents))
    }

    /// These and the other's.
    pub fn join(self, other: &Self) -> Self {
        if other.0.is_empty() {
            return self;
        }
        let mut all = Arc::unwrap_or_clone(self.0);
        all.extend(other.0.iter().map(|(hash, extent)| (*hash, *extent)));
        Self::new(all)
    }

    fn get(&self, hash: &Blake3Sum, plain: u64) -> Option<Extent> {
        self.0.get(hash).copied().filter(|extent| extent.plain == plain)
    }
}

/// An extent that was read.
pub struct Made {
    pub what: What,
    /// Plain bytes.
    pub plain: u64,
    pub bad_blocks: Vec<u32>,
}

/// What has to be stored of it.
pub enum What {
    /// It has no bytes: the file ended before.
    Nothing,
    Zeros,
    /// It is there already.
    Older(Extent),
    New {
        hash: Blake3Sum,
        frame: Vec<u8>,
    },
}

/// Hashes what was read, and compresses what is not stored yet.
pub fn make(plain: Plain, expected: Option<Extent>, older: &Older, compressor: &mut Compressor) -> Result<Made> {
    let Plain { bytes, bad_blocks } = plain;
    let length = bytes.len() as u64;
    let what = if bytes.is_empty() {
        What::Nothing
    } else if is_zeros(&bytes) {
        What::Zeros
    } else {
        let hash = codec::blake3(&bytes);
        let same = expected.filter(|extent| extent.hash == hash && extent.plain == length).or_else(|| older.get(&hash, length));
        match same {
            Some(extent) => What::Older(extent),
            None => What::New { hash, frame: compressor.compress(&bytes).context("compress")? },
        }
    };
    Ok(Made { what, plain: length, bad_blocks })
}

fn is_zeros(bytes: &[u8]) -> bool {
    // Most extents are told from zeros by their first bytes.
    let (chunks, rest) = bytes.as_chunks::<64>();
    chunks.iter().all(|chunk| *chunk == [0; 64]) && rest.iter().all(|byte| *byte == 0)
}
