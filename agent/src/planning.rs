//! Planning a restore: reads the WAL that a target has to be found in, and lets the core decide.
//!
//! The decision is pure (`walkeep_core::plan`); what is done here is having WAL read ([`crate::wal_walk`]) until it shows the target. So a
//! plan has read every byte of WAL up to its stop, and knows what replay will do outside the data directory.

use std::sync::Arc;

use anyhow::Result;
use walkeep_core::catalog::Catalog;
use walkeep_core::decoder::{DecodeError, Decoder};
use walkeep_core::plan::{self, Candidate, Refusal, RestorePlan};
use walkeep_core::target::{Progress, RecoveryTarget, SearchOutcome, TargetKind, TargetSearch};

use crate::repository::ClusterRepository;
use crate::wal_walk::{OnProgress, Stored, Visitor};

/// Segments read behind the stop: enough to see a clock that was set back, few enough not to read the whole archive.
const READ_BEHIND: u64 = 16;

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
    let decoder = Decoder::new(range.from, catalog.segment_size());
    // PostgreSQL compares a position with the bounds of every record.
    let positional = matches!(candidate.target.kind, TargetKind::Lsn(_) | TargetKind::Immediate);
    let decoder = if positional { decoder.every_record() } else { decoder };
    let search = TargetSearch::new(&candidate.target, candidate.backup.stop_lsn);
    let looking = Looking { search, found: false, found_at: None };
    let stored = Stored { repository, catalog, path: &candidate.path };
    let (looking, end) = stored.walk(range, decoder, looking, on_progress).await?;
    Ok(looking.search.finish(end))
}

/// A target being looked for.
struct Looking {
    search: TargetSearch,
    found: bool,
    /// How many segments it took.
    found_at: Option<u64>,
}

impl Visitor for Looking {
    fn drain(&mut self, decoder: &mut Decoder, mut bytes: &[u8]) -> Result<(), DecodeError> {
        while let Some(event) = decoder.next_event(&mut bytes)? {
            self.found |= self.search.event(&event) == Progress::Found;
        }
        Ok(())
    }

    fn goes_on(&mut self, segments: u64) -> bool {
        let enough = self.found_at.is_some_and(|found| segments >= found + READ_BEHIND);
        if self.found {
            self.found_at.get_or_insert(segments);
        }
        !enough
    }
}
