//! Whether several repositories hold the same under one name: each may be whole by itself, and one of them not be what the server wrote.
//!
//! For one reading of all of them. A few bytes of a hash are kept of each name and of what it holds; the index may be made anew by each repository's own
//! reader, and is left out.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use walkeep_core::blake3::Blake3Sum;
use walkeep_core::layout::ObjectName;

/// So many objects are compared.
const MOST: usize = 4 << 20;

/// What was read of each object first, and in which repository.
#[derive(Debug, Default)]
pub struct Contents(Mutex<HashMap<u64, (u64, usize)>>);

impl Contents {
    /// The number of the repository that holds something else under this name, if one does.
    pub fn differs(&self, number: usize, name: &ObjectName, key: &str, content: &Blake3Sum) -> Option<usize> {
        if matches!(name, ObjectName::Digest(_) | ObjectName::Blocks(_) | ObjectName::Names(_)) {
            return None;
        }
        let (place, content) = (first(blake3::hash(key.as_bytes()).as_bytes()), first(content.bytes()));
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match known.get(&place) {
            Some((there, other)) => (*there != content && *other != number).then_some(*other),
            None => {
                if known.len() < MOST {
                    known.insert(place, (content, number));
                }
                None
            }
        }
    }
}

fn first(hash: &[u8; 32]) -> u64 {
    hash[..8].iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
}
