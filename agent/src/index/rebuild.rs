//! Makes the index of WAL that is stored already: of an archive from before there was an index, or in place of one that was lost or damaged.

use std::sync::Arc;

use futures::{StreamExt, stream};
use serde::Serialize;
use tokio_util::sync::CancellationToken;
use walkeep_core::catalog::Catalog;
use walkeep_core::{SegmentNumber, TimelineId, WalFileName};

use super::line::{Line, stored};
use crate::repository::{ClusterRepository, Error, Result};

/// Segments read ahead.
const READS: usize = 4;

/// What was done for one timeline.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Rebuilt {
    /// The timeline.
    pub timeline: TimelineId,
    /// Objects of the former index that were removed.
    pub removed: u64,
    /// Segments read.
    pub segments: u64,
    /// Segments that are damaged, or went meanwhile.
    pub left_out: u64,
}

/// Removes the index of `timeline` and makes it anew out of every finished segment that is stored. `on_progress` is told how many were read, of how many.
pub async fn rebuild(
    repository: &Arc<ClusterRepository>,
    catalog: &Catalog,
    timeline: TimelineId,
    stop: &CancellationToken,
    on_progress: &mut (dyn FnMut(u64, u64) + Send),
) -> Result<Rebuilt> {
    let size = catalog.segment_size();
    let segments: Vec<SegmentNumber> = catalog.segments(timeline).collect();
    // What cannot be decrypted here could not be read again when the index is gone.
    for end in [segments.first(), segments.last()].into_iter().flatten() {
        stored(repository, WalFileName::Segment(end.name(timeline, size))).await?;
    }
    let mut rebuilt = Rebuilt { timeline, removed: repository.remove_index(timeline).await?, segments: 0, left_out: 0 };
    let Some(first) = segments.first() else { return Ok(rebuilt) };
    let total = segments.len() as u64;
    let mut line = Line::new(repository.clone(), timeline, *first);
    let get = |number: SegmentNumber| async move { (number, stored(repository, WalFileName::Segment(number.name(timeline, size))).await) };
    let mut contents = stream::iter(segments.into_iter().map(get)).buffered(READS);
    while let Some((number, found)) = contents.next().await {
        if stop.is_cancelled() {
            return Err(Error::cancelled("index", timeline));
        }
        match found? {
            Some(wal) => {
                if number != line.next() {
                    line.pass_over(number).await?;
                }
                line.take(wal.content).await?;
                rebuilt.segments += 1;
            }
            None => rebuilt.left_out += 1,
        }
        on_progress(rebuilt.segments + rebuilt.left_out, total);
    }
    line.store().await?;
    Ok(rebuilt)
}
