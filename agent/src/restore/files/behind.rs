//! What was written leaves memory.
//!
//! A restore writes more than the machine has memory for, and all of it is waited for at the end. So the system is told to write each stretch to the disk from
//! now on, beside what else is done, and a while later to give its memory up: for the next stretch, instead of that of other programs. It is advice: what becomes
//! of it does not matter.

use std::collections::VecDeque;
use std::fs::File;
use std::num::NonZeroU64;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{Advice, fadvise};

/// Bytes that are left to the disk before their memory is asked for.
const KEPT: u64 = 64 << 20;
/// Files that are kept open for that.
const OPEN: usize = 256;
/// Shorter stretches are many, and not worth it.
const SHORT: u64 = 64 << 10;

/// What was written last.
#[derive(Debug, Default)]
pub struct Behind(Mutex<Waiting>);

#[derive(Debug, Default)]
struct Waiting {
    stretches: VecDeque<Stretch>,
    bytes: u64,
}

#[derive(Debug)]
struct Stretch {
    file: Arc<File>,
    offset: u64,
    length: u64,
}

impl Stretch {
    /// Begins to write what is not on the disk yet, and frees what is.
    fn advise(&self) {
        let _ = fadvise(&self.file, self.offset, NonZeroU64::new(self.length), Advice::DontNeed);
    }
}

impl Behind {
    /// `length` bytes of `file` were written at `offset`.
    pub fn wrote(&self, file: &Arc<File>, offset: u64, length: u64) {
        let stretch = Stretch { file: file.clone(), offset, length };
        stretch.advise();
        if length < SHORT {
            return;
        }
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.stretches.push_back(stretch);
        waiting.bytes += length;
        let mut due = Vec::new();
        while (waiting.bytes > KEPT || waiting.stretches.len() > OPEN)
            && let Some(first) = waiting.stretches.pop_front()
        {
            waiting.bytes -= first.length;
            due.push(first);
        }
        drop(waiting);
        due.iter().for_each(Stretch::advise);
    }
}
