//! A stream of bytes from whatever makes them: chunks through a bounded queue, and how it ended.

use std::path::PathBuf;

use anyhow::{Context, Result};
use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::Instrument;
use walkeep_core::artifact::PIECE;
use walkeep_core::identifier::printable;

use crate::scratch_server::Place;

/// Chunks that wait.
pub(super) const WAITING: usize = 8;
/// Notes that are kept in words.
const NAMED: usize = 100;

/// What was passed over, or changed while it was read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Notes {
    /// The first of them.
    pub named: Vec<String>,
    /// How many there were.
    pub count: u64,
}

impl Notes {
    /// One more.
    pub fn add(&mut self, note: &str) {
        self.count += 1;
        if self.named.len() < NAMED {
            self.named.push(printable(note));
        }
    }
}

/// How a stream ended well.
#[derive(Debug, Clone, Default)]
pub struct Ended {
    /// Files in it.
    pub files: Option<u64>,
    /// What there is to say of it.
    pub notes: Notes,
    /// The end of what a command said on standard error.
    pub stderr: Option<String>,
}

/// A stream. Dropped, it ends what makes it.
#[derive(Debug)]
pub struct Flow {
    chunks: mpsc::Receiver<Bytes>,
    /// The end of a chunk that the last piece had no room for.
    rest: Bytes,
    maker: JoinHandle<Result<Ended>>,
    _cancel: DropGuard,
    /// Where the bytes come from, to be removed behind them.
    place: Option<Place>,
}

/// The end of a stream where chunks are put in.
#[derive(Debug)]
pub struct Source {
    chunks: mpsc::Sender<Bytes>,
    /// Nobody wants them any more.
    pub cancelled: CancellationToken,
}

impl Source {
    /// Puts a chunk in; an error if nobody wants it any more.
    pub async fn put(&self, chunk: Bytes) -> Result<()> {
        self.chunks.send(chunk).await.context("cancelled")
    }

    /// The same on a thread of its own.
    pub fn put_blocking(&self, chunk: Bytes) -> Result<()> {
        self.chunks.blocking_send(chunk).context("cancelled")
    }
}

impl Flow {
    /// What `make` puts in.
    pub fn of<F: Future<Output = Result<Ended>> + Send + 'static>(make: impl FnOnce(Source) -> F) -> Self {
        Self::with(|source| tokio::spawn(make(source).in_current_span()))
    }

    /// The same for what works on a thread of its own.
    pub fn blocking(make: impl FnOnce(Source) -> Result<Ended> + Send + 'static) -> Self {
        Self::with(|source| tokio::task::spawn_blocking(move || make(source)))
    }

    fn with(start: impl FnOnce(Source) -> JoinHandle<Result<Ended>>) -> Self {
        let (sender, chunks) = mpsc::channel(WAITING);
        let cancelled = CancellationToken::new();
        let maker = start(Source { chunks: sender, cancelled: cancelled.clone() });
        Self { chunks, rest: Bytes::new(), maker, _cancel: cancelled.drop_guard(), place: None }
    }

    /// The same out of a folder that is not needed behind it.
    pub fn out_of(self, place: Place) -> Self {
        Self { place: Some(place), ..self }
    }

    /// The next piece: as long as pieces are, or what is left.
    pub async fn piece(&mut self) -> Result<Bytes> {
        let mut piece: Vec<u8> = Vec::new();
        loop {
            let chunk = match std::mem::take(&mut self.rest) {
                rest if !rest.is_empty() => rest,
                _ => match self.chunks.recv().await {
                    Some(chunk) => chunk,
                    None => return Ok(Bytes::from(piece)),
                },
            };
            let room = PIECE as usize - piece.len();
            if piece.capacity() < piece.len() + chunk.len() && piece.len() > PIECE as usize / 4 {
                // No more than there will be.
                piece.reserve_exact(room);
            }
            let (now, later) = chunk.split_at(chunk.len().min(room));
            piece.extend_from_slice(now);
            if piece.len() as u64 == PIECE {
                self.rest = chunk.slice(chunk.len() - later.len()..);
                return Ok(Bytes::from(piece));
            }
        }
    }

    /// How it ended: an error, where what made it failed.
    pub async fn ended(mut self) -> Result<Ended> {
        let ended = (&mut self.maker).await.context("what makes it died")?;
        if let Some(place) = self.place.take() {
            tokio::task::spawn_blocking(|| place.close()).await.context("remove its scratch folder")??;
        }
        ended
    }
}

/// Where a file is, for people.
pub fn shown(path: &std::path::Path) -> String {
    printable(&path.to_string_lossy())
}

/// The same of a name in a folder.
pub fn shown_in(folder: &[u8], name: &[u8]) -> String {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    shown(&PathBuf::from(OsStr::from_bytes(folder)).join(OsStr::from_bytes(name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn pieces_are_as_long_as_pieces_are_whatever_the_chunks() {
        let most = PIECE as usize;
        for (total, chunk) in [(0, 1), (10, 3), (most, 1 << 20), (most + 1, (1 << 20) + 7), (2 * most + 5, 3 << 20)] {
            let flow = |source: Source| async move {
                let mut left = total;
                while left > 0 {
                    let now = left.min(chunk);
                    source.put(Bytes::from(vec![(left % 251) as u8; now])).await?;
                    left -= now;
                }
                Ok(Ended::default())
            };
            let mut flow = Flow::of(flow);
            let mut lengths = Vec::new();
            loop {
                let piece = flow.piece().await.unwrap();
                lengths.push(piece.len());
                if piece.len() < most {
                    break;
                }
            }
            assert_eq!(lengths.iter().sum::<usize>(), total);
            assert!(lengths[..lengths.len() - 1].iter().all(|length| *length == most), "{lengths:?}");
            flow.ended().await.unwrap();
        }
    }
}
