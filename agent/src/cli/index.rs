//! `walkeep index`: of which WAL the index tells, and making it anew.

use std::sync::Arc;

use clap::Args;
use serde::Serialize;
use walkeep_core::catalog::{Catalog, WalRange};
use walkeep_core::{SegmentNumber, TimelineId};

use super::failure::Failure;
use super::trail::Told as Deed;
use super::{Global, output, plan, setup};
use crate::index::reader::Index;
use crate::index::rebuild;
use crate::repository::ClusterRepository;

/// Arguments of `walkeep index`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  walkeep index                         of which WAL the index tells
  walkeep index --rebuild               make it anew out of the stored WAL, of every timeline
  walkeep index --rebuild --timeline 2

The agent makes the index while it archives. It says what happened in the WAL, so that plans and `walkeep log` need not read all of it; what it does
not tell is read from the WAL. Rebuilding removes the objects of the index and no others, and reads every stored segment.")]
pub struct IndexArgs {
    /// Remove the index and make it anew out of the stored WAL
    #[arg(long)]
    rebuild: bool,
    /// Only of this timeline [default: all]
    #[arg(long, value_name = "N")]
    timeline: Option<TimelineId>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What the index tells of a timeline.
#[derive(Debug, Serialize)]
struct Told {
    timeline: TimelineId,
    /// Finished segments that are stored.
    segments: u64,
    /// Those that it tells of.
    indexed: u64,
    /// Stored stretches that it does not tell of.
    not_indexed: Vec<WalRange>,
}

/// Runs the command.
pub async fn run(global: &Global, args: IndexArgs, deed: &Deed<'_>) -> Result<(), Failure> {
    if !args.rebuild {
        deed.nothing();
    }
    let config = setup::config(global)?;
    let stop = setup::stop_on_signals()?;
    let repository = Arc::new(setup::cluster_repository(&config.cluster, &stop).await?);
    let catalog = setup::catalog(&repository).await?;
    let timelines = match args.timeline {
        Some(timeline) if !catalog.timelines().contains(&timeline) => {
            return Err(Failure::refused(format!("nothing is stored of timeline {timeline}")));
        }
        Some(timeline) => vec![timeline],
        None => catalog.timelines(),
    };
    if args.rebuild {
        deed.of("timelines", timelines.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "));
        let mut all = Vec::new();
        for timeline in timelines {
            let mut on_progress = plan::wal_progress("to make the index");
            let rebuilt = rebuild::rebuild(&repository, &catalog, timeline, &stop, &mut on_progress).await.map_err(anyhow::Error::new)?;
            if !args.json {
                let (segments, removed) = (output::count(rebuilt.segments, "segment"), output::count(rebuilt.removed, "object"));
                output::say!("timeline {timeline}: {segments} indexed, {removed} of the former index removed");
                if rebuilt.left_out > 0 {
                    output::say!("  LEFT OUT: {}, damaged or gone; the log names them", output::count(rebuilt.left_out, "segment"));
                }
            }
            all.push(rebuilt);
        }
        return if args.json { Ok(output::json(&all)?) } else { Ok(()) };
    }
    let told = told(&repository, &catalog, &timelines).await?;
    if args.json {
        return Ok(output::json(&told)?);
    }
    if told.is_empty() {
        output::say!("no WAL stored yet");
    }
    for Told { timeline, segments, indexed, not_indexed } in &told {
        output::say!("timeline {timeline}: {indexed} of {} indexed", output::count(*segments, "finished segment"));
        not_indexed.iter().for_each(|range| output::say!("  not from {} to {}: read from the WAL when asked for", range.from, range.to));
    }
    Ok(())
}

async fn told(repository: &Arc<ClusterRepository>, catalog: &Catalog, timelines: &[TimelineId]) -> Result<Vec<Told>, Failure> {
    let index = Index::open(repository.clone(), timelines).await.map_err(anyhow::Error::new)?;
    setup::tell_damaged(&index);
    let size = catalog.segment_size();
    let of = |timeline: &TimelineId| {
        let runs: Vec<_> = index.runs(*timeline).collect();
        let is_told = |number: &SegmentNumber| runs.iter().any(|run| run.contains(*number));
        let (told, not): (Vec<SegmentNumber>, Vec<SegmentNumber>) = catalog.segments(*timeline).partition(is_told);
        let mut not_indexed: Vec<WalRange> = Vec::new();
        for number in &not {
            match not_indexed.last_mut() {
                Some(range) if range.to == number.start(size) => range.to = number.end(size),
                _ => not_indexed.push(WalRange { from: number.start(size), to: number.end(size) }),
            }
        }
        Told { timeline: *timeline, segments: (told.len() + not.len()) as u64, indexed: told.len() as u64, not_indexed }
    };
    Ok(timelines.iter().map(of).collect())
}
