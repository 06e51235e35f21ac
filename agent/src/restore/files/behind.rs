//! What was written goes to the disk at once, and leaves memory if there is too much of it.
//!
//! All that a restore writes is waited for at its end: so the system is told to write each stretch from now on, beside what else is done. Recovery reads much of
//! it soon: so it stays in memory, unless it is more than half of that. Then each stretch gives its memory up a while later, for the next one, instead of that
//! of other programs. It is advice: what becomes of it does not matter. What of a stretch is on the disk already leaves memory at once: of a file that was there
//! before, the pages around what differed.

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
#[derive(Debug)]
pub struct Behind {
    /// Whether memory is given up.
    scarce: bool,
    waiting: Mutex<Waiting>,
}

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
    /// For a restore of so many bytes.
    pub fn new(bytes: u64) -> Self {
        let system = rustix::system::sysinfo();
        let memory = system.totalram.saturating_mul(u64::from(system.mem_unit));
        Self { scarce: bytes > memory / 2, waiting: Mutex::default() }
    }

    /// `length` bytes of `file` were written at `offset`.
    pub fn wrote(&self, file: &Arc<File>, offset: u64, length: u64) {
        let stretch = Stretch { file: file.clone(), offset, length };
        stretch.advise();
        if !self.scarce || length < SHORT {
            return;
        }
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fits_stays_and_little_is_kept_open_of_what_does_not() {
        let file = Arc::new(tempfile::tempfile().unwrap());
        let wrote = |behind: &Behind, length: u64| (0..1000).for_each(|index| behind.wrote(&file, index * length, length));
        for (bytes, length, stretches, kept) in [
            (1 << 20, 1 << 20, 0, 0),
            (1 << 60, 1 << 20, 64, KEPT),
            (1 << 60, SHORT, OPEN, OPEN as u64 * SHORT),
            (1 << 60, SHORT - 1, 0, 0),
        ] {
            let behind = Behind::new(bytes);
            wrote(&behind, length);
            let waiting = behind.waiting.into_inner().unwrap();
            assert_eq!((waiting.stretches.len(), waiting.bytes), (stretches, kept), "{bytes} {length}");
        }
    }
}
