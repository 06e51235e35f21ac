//! The index of the WAL: making it while WAL is archived ([`writer`]) or out of what is stored ([`rebuild`]), and asking it ([`reader`]).
//!
//! What a summary says is `walkeep_core::index`'s. Nothing waits for the index and nothing fails with it: whoever archives [offers](Queue::offer)
//! a segment that was just stored and goes on; what is lost on the way is read back out of the repository, and what the index does
//! not tell, a plan reads from the WAL.

mod line;
pub mod reader;
pub mod rebuild;
pub mod writer;

pub use line::fold;

use std::fs::File;

use tokio::sync::mpsc;
use walkeep_core::SegmentName;

use crate::wal_path::Stamp;

/// Segments that wait to be indexed, each an open file. One that finds no room is read back later.
const WAITING: usize = 32;

/// A segment's bytes.
#[derive(Debug)]
pub(crate) struct Content {
    /// An open file, which may be removed meanwhile.
    file: File,
    /// What it must still be, if others may write to it.
    stamp: Option<Stamp>,
}

/// A segment that was just stored.
#[derive(Debug)]
pub(crate) struct Offered {
    segment: SegmentName,
    content: Content,
}

/// Where segments are brought to once they are stored.
#[derive(Debug, Clone, Default)]
pub struct Queue(Option<mpsc::Sender<Offered>>);

impl Queue {
    /// A queue, and the end where [`writer::run`] takes from it.
    pub fn new() -> (Self, writer::Offers) {
        let (queue, offers) = mpsc::channel(WAITING);
        (Self(Some(queue)), writer::Offers(offers))
    }

    /// Nobody makes an index here.
    pub fn nobody() -> Self {
        Self(None)
    }

    /// Brings a segment that is stored, whole. Never waits.
    pub fn offer(&self, segment: SegmentName, file: impl FnOnce() -> std::io::Result<File>) {
        let Some(queue) = &self.0 else { return };
        let Ok(place) = queue.try_reserve() else { return };
        match file() {
            Ok(file) => place.send(Offered { segment, content: Content { file, stamp: None } }),
            Err(error) => tracing::debug!(%segment, %error, "not at hand for the index; it is read back later"),
        }
    }

    /// The same of a file that its owner may write anew once the segment is archived: if it is not as it was by then, it is read back.
    pub fn offer_while_it_is(&self, segment: SegmentName, file: File, stamp: Stamp) {
        let Some(queue) = &self.0 else { return };
        if let Ok(place) = queue.try_reserve() {
            place.send(Offered { segment, content: Content { file, stamp: Some(stamp) } });
        }
    }
}
