//! What a plan is made from: the index, and a catalog that is listed as far as the plan needs it.
//!
//! Where the index tells of very many segments, listing them all would take longer than everything else. So the first plan believes it, and
//! then what that plan needs is listed: if something is missing there, the next plan knows. A refusal is only made from a full listing.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context, Result};
use walkeep_core::catalog::Catalog;
use walkeep_core::index::Run;
use walkeep_core::plan::{Refusal, RestorePlan};
use walkeep_core::target::RecoveryTarget;
use walkeep_core::{SegmentNumber, TimelineId};

use super::Around;
use crate::index::reader::Index;
use crate::repository::ClusterRepository;
use crate::repository::catalog::LoadedCatalog;
use crate::wal_walk::OnProgress;

/// Up to so many segments are simply listed: 20 requests of 1,000 keys.
const LISTED: u64 = 20_000;
/// Plans made in a row, each finding that something it needs is missing, before everything is listed.
const TRIES: usize = 4;

/// What a plan is made from.
#[derive(Debug)]
pub struct View {
    repository: Arc<ClusterRepository>,
    loaded: LoadedCatalog,
    index: Index,
    /// Segments that are in the catalog by the index's word alone.
    believed: BTreeMap<TimelineId, Vec<Run>>,
}

impl View {
    /// Reads the index, the small objects, and lists what the index does not tell of; of a small archive everything.
    pub async fn load(repository: Arc<ClusterRepository>) -> Result<Self> {
        Self::load_listing(repository, LISTED).await
    }

    /// The same, everything being listed up to so many segments.
    pub async fn load_listing(repository: Arc<ClusterRepository>, listed: u64) -> Result<Self> {
        repository.repository().prove_reached().await.context("read the catalog")?;
        let (timelines, _, _) = repository.list_timelines().await.context("read the catalog")?;
        let index = Index::open(repository.clone(), &timelines).await.context("read the index")?;
        let mut believed: BTreeMap<TimelineId, Vec<Run>> =
            timelines.iter().map(|timeline| (*timeline, index.runs(*timeline).collect())).collect();
        if believed.values().flatten().map(Run::count).sum::<u64>() <= listed {
            believed.clear();
        }
        let loaded = match believed.is_empty() {
            true => repository.load_catalog().await,
            false => repository.sketch_catalog(&believed).await,
        };
        Ok(Self { loaded: loaded.context("read the catalog")?, repository, index, believed })
    }

    /// What is stored, and what of it is damaged.
    pub fn loaded(&self) -> &LoadedCatalog {
        &self.loaded
    }

    /// What is stored.
    pub fn catalog(&self) -> &Catalog {
        &self.loaded.catalog
    }

    /// What the WAL says.
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// The plan for `target`, or why there is none. Every object that it needs was listed.
    pub async fn plan(
        &mut self,
        target: &RecoveryTarget,
        around: &Around,
        on_progress: OnProgress<'_>,
    ) -> Result<Result<RestorePlan, Refusal>> {
        for _ in 0..TRIES {
            let planned = super::plan(&self.repository, &self.index, self.catalog(), target, around, on_progress).await?;
            let believes = !self.believed.is_empty();
            match &planned {
                Ok(plan) if believes && self.lists(plan) => {}
                // Of what is only believed no refusal is made.
                Err(_) if believes => break,
                _ => return Ok(planned),
            }
            self.loaded.catalog = self.repository.list_again(self.catalog(), &self.believed).await.context("list what the plan needs")?;
        }
        self.believed.clear();
        self.loaded = self.repository.load_catalog().await.context("read the catalog")?;
        super::plan(&self.repository, &self.index, self.catalog(), target, around, on_progress).await
    }

    /// Takes the segments of the plan out of what is only believed; whether there were any.
    fn lists(&mut self, plan: &RestorePlan) -> bool {
        let size = self.loaded.catalog.segment_size();
        let mut needed: BTreeMap<TimelineId, Run> = BTreeMap::new();
        for file in &plan.wal {
            let Some(number) = file.segment.number(size) else { continue };
            needed.entry(file.segment.timeline()).or_insert(Run::single(number)).end = number.next();
        }
        let mut any = false;
        for (timeline, needed) in needed {
            let Some(believed) = self.believed.get_mut(&timeline) else { continue };
            let rest = believed.iter().flat_map(|run| without(*run, needed)).collect();
            any |= *believed != rest;
            *believed = rest;
        }
        any
    }
}

/// What is left of a run without those of another.
fn without(run: Run, other: Run) -> impl Iterator<Item = Run> {
    let clip = |first: SegmentNumber, end: SegmentNumber| Run { first: first.max(run.first), end: end.min(run.end) };
    let parts = [clip(run.first, other.first), clip(other.end, run.end)];
    parts.into_iter().filter(|run| run.first < run.end)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use walkeep_core::WalFileName;
    use walkeep_core::index::{Digest, Level, Summary};
    use walkeep_core::plan::estimate::Rates;
    use walkeep_core::target::TargetKind;

    use super::super::Share;
    use super::*;
    use crate::repository::tests::{memory, record, segment};

    /// The index tells of segments 1 to 9, and a plan needs all of them.
    async fn view(listed: u64, lost: Option<u64>) -> (View, Result<RestorePlan, Refusal>) {
        let (repository, _) = memory().await;
        let size = repository.identity().segment_size;
        let summary = |number: u64| {
            let mut summary = Summary::empty(SegmentNumber::new(number), SegmentNumber::new(number).start(size));
            (summary.records.to, summary.count) = (SegmentNumber::new(number).end(size), 1);
            summary
        };
        let digest = Digest::of(TimelineId::FIRST, Level::SEGMENTS, (1..10).map(summary).collect(), size).unwrap();
        repository.put_digest(&digest).await.unwrap();
        for number in (1..10).filter(|number| Some(*number) != lost) {
            repository.put_wal(WalFileName::Segment(segment(number)), Bytes::from(vec![1; 1 << 20])).await.unwrap();
        }
        repository.commit_backup(&record(1)).await.unwrap();
        let mut view = View::load_listing(Arc::new(repository), listed).await.unwrap();
        let around = Around { server: Err("not asked".into()), rates: Rates::default(), share: Share::Part };
        let planned = view.plan(&RecoveryTarget::new(TargetKind::Latest), &around, &mut |_, _| {}).await.unwrap();
        (view, planned)
    }

    #[tokio::test]
    async fn what_is_only_believed_is_listed_before_a_plan_is_given_out() {
        for listed in [0, 100] {
            let (view, planned) = view(listed, None).await;
            let plan = planned.unwrap();
            assert_eq!((plan.wal.len(), plan.wal.iter().all(|file| file.stored > 0)), (9, true), "sizes are those of a listing");
            assert!(view.believed.values().flatten().next().is_none());
            // Deleted since it was indexed.
            let (_, planned) = self::view(listed, Some(5)).await;
            let refusal = planned.unwrap_err().to_string();
            assert!(refusal.contains(&segment(5).to_string()), "{refusal}");
        }
    }

    #[test]
    fn what_a_plan_needs_is_taken_out() {
        let run = |first, end| Run { first: SegmentNumber::new(first), end: SegmentNumber::new(end) };
        let left = |one, other| without(one, other).collect::<Vec<_>>();
        assert_eq!(left(run(10, 20), run(12, 15)), [run(10, 12), run(15, 20)]);
        assert_eq!(left(run(10, 20), run(5, 15)), [run(15, 20)]);
        assert_eq!(left(run(10, 20), run(0, 5)), [run(10, 20)]);
        assert_eq!(left(run(10, 20), run(20, 25)), [run(10, 20)]);
        assert_eq!(left(run(10, 20), run(0, 30)), []);
    }
}
