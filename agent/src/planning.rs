//! Planning a restore: reads the WAL that a target has to be found in, and lets the core decide.
//!
//! The decision is pure (`walkeep_core::plan`); what is done here is loading the catalog and feeding WAL to the decoder, segment after
//! segment with a little read-ahead, each proven by its hash. So a plan has read every byte of WAL up to its stop, and knows what replay
//! will do outside the data directory.

use std::sync::Arc;

use anyhow::{Context, Result};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use walkeep_core::catalog::{Catalog, NeededFile};
use walkeep_core::decoder::{DecodeError, Decoder};
use walkeep_core::plan::{self, Candidate, Refusal, RestorePlan};
use walkeep_core::target::{Progress, RecoveryTarget, SearchOutcome, TargetKind, TargetSearch};
use walkeep_core::{Lsn, WalFileName};

use crate::repository::{ClusterRepository, Error};

/// Segments read ahead of the decoder.
const READ_AHEAD: usize = 4;
/// Segments read behind the stop: enough to see a clock that was set back, few enough not to read the whole archive.
const READ_BEHIND: u64 = 16;

/// Told while WAL is read: segments read, and segments to read.
pub type OnProgress<'a> = &'a mut (dyn FnMut(u64, u64) + Send);

/// The plan for `target`, or why there is none.
pub async fn plan(
    repository: &Arc<ClusterRepository>,
    catalog: &Catalog,
    target: &RecoveryTarget,
    on_progress: OnProgress<'_>,
) -> Result<Result<RestorePlan, Refusal>> {
    let candidates = match plan::candidates(catalog, target) {
        Ok(candidates) => candidates,
        Err(refusal) => return Ok(Err(refusal)),
    };
    let mut last_refusal = None;
    for candidate in candidates {
        let outcome = search(repository, catalog, &candidate, on_progress).await?;
        match plan::finish(&candidate, &outcome, catalog) {
            Ok(plan) => return Ok(Ok(plan)),
            Err(refusal) if refusal.tries_older() => last_refusal = last_refusal.or(Some(refusal)),
            Err(refusal) => return Ok(Err(refusal)),
        }
    }
    let none_left = || anyhow::anyhow!("no backup leads to the target, and none said why: a defect of Walkeep");
    Ok(Err(last_refusal.ok_or_else(none_left)?))
}

/// Reads the candidate's WAL until the target is found or the WAL ends.
async fn search(
    repository: &Arc<ClusterRepository>,
    catalog: &Catalog,
    candidate: &Candidate,
    on_progress: OnProgress<'_>,
) -> Result<SearchOutcome> {
    let range = candidate.search;
    let covered = catalog.coverage(&candidate.path, range.from, range.to);
    let files = covered.map_err(|missing| anyhow::anyhow!("WAL is missing at {} within what was covered", missing.at))?;
    let total = files.len() as u64;
    let size = catalog.segment_size();
    let decoder = Decoder::new(range.from, size);
    // PostgreSQL compares a position with the bounds of every record.
    let positional = matches!(candidate.target.kind, TargetKind::Lsn(_) | TargetKind::Immediate);
    let mut decoder = if positional { decoder.every_record() } else { decoder };
    let mut search = TargetSearch::new(&candidate.target, candidate.backup.stop_lsn);
    let mut contents = stream::iter(files).map(|file| read(repository.clone(), file)).buffered(READ_AHEAD);
    let mut done = 0;
    let mut found_at = None;
    let mut next_byte = decoder.reads_from();
    while let Some((file, content)) = contents.try_next().await? {
        let start = file.segment.number(size).map_or(Lsn::ZERO, |number| number.start(size));
        let skip = next_byte.bytes_since(start).min(content.len() as u64) as usize;
        let (fed, fed_decoder, fed_search) = tokio::task::spawn_blocking(move || {
            let fed = feed(&mut decoder, &mut search, &content[skip..]);
            (fed, decoder, search)
        })
        .await?;
        (decoder, search) = (fed_decoder, fed_search);
        next_byte = start.saturating_add(size.bytes());
        let fed_progress = fed.with_context(|| format!("decode {}", file.segment))?;
        done += 1;
        on_progress(done, total);
        if found_at.is_some_and(|found| done >= found + READ_BEHIND) {
            break;
        }
        if found_at.is_none() && fed_progress == Progress::Found {
            found_at = Some(done);
        }
    }
    let end = decoder.position().min(range.to);
    Ok(search.finish(end))
}

/// A segment's bytes, whole or as far as its parts reach.
async fn read(repository: Arc<ClusterRepository>, file: NeededFile) -> Result<(NeededFile, Bytes)> {
    let wanted = file.parts.iter().map(|part| part.to as usize).max();
    if let Some(wanted) = wanted {
        let tail = repository.get_tail(file.segment).await?;
        if tail.len() >= wanted {
            return Ok((file, tail.slice(..wanted)));
        }
    }
    // While the plan is made the agent goes on: a segment that was listed in parts may be stored whole by now, and its parts be removed.
    let found = repository.get_wal(WalFileName::Segment(file.segment)).await?;
    let content = found.map(|found| found.content).filter(|content| wanted.is_none_or(|wanted| wanted <= content.len()));
    let content = content.ok_or_else(|| Error::corrupt(file.segment.to_string(), "it was listed and is gone"))?;
    let wanted = wanted.unwrap_or(content.len());
    Ok((file, content.slice(..wanted)))
}

fn feed(decoder: &mut Decoder, search: &mut TargetSearch, bytes: &[u8]) -> Result<Progress, DecodeError> {
    let mut progress = Progress::Searching;
    // Piece by piece: the decoder keeps what it is fed until it is read.
    for piece in bytes.chunks(1 << 20) {
        decoder.feed(piece);
        while let Some(event) = decoder.next_event()? {
            progress = search.event(&event);
        }
    }
    Ok(progress)
}

#[cfg(test)]
mod tests {
    use walkeep_core::layout::PartName;

    use super::*;
    use crate::repository::tests::{memory, segment};

    /// A plan that read less than it counts on would not see the last commits, nor a tablespace that replay creates.
    #[tokio::test]
    async fn parts_that_went_while_the_plan_was_made_are_read_from_the_whole_segment() {
        let (repository, _) = memory().await;
        let repository = Arc::new(repository);
        let (name, content) = (segment(1), Bytes::from(vec![7; 1 << 20]));
        let part = PartName { segment: name, from: 0, to: 100, epoch: 1 };
        let file = || NeededFile { segment: name, parts: vec![part], stored: 1 };
        assert!(read(repository.clone(), file()).await.is_err(), "neither is there");
        repository.put_part(part, content.slice(..100)).await.unwrap();
        assert_eq!(read(repository.clone(), file()).await.unwrap().1, content.slice(..100));
        repository.put_wal(WalFileName::Segment(name), content.clone()).await.unwrap();
        repository.remove_part(part).await.unwrap();
        assert_eq!(read(repository.clone(), file()).await.unwrap().1, content.slice(..100), "no more than was listed");
    }
}
