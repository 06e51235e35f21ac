//! Which point a drill restores, and what it compares with. The running server is not asked for any of it.

use std::sync::Arc;

use anyhow::anyhow;
use chrono::{DateTime, Utc};
use walkeep_core::drill::random;
use walkeep_core::drill::rows::{RowSample, SampleName};
use walkeep_core::plan::RestorePlan;

use super::DrillArgs;
use crate::cli::failure::{Exit, Failure};
use crate::cli::plan;
use crate::cli::target::TargetArgs;
use crate::config::{ClusterConfig, DrillConfig, DrillPoint};
use crate::planning::Share;
use crate::repository::{ClusterRepository, Error};
use crate::writer;

/// So many points are tried: some lie where nothing was written any more.
const TRIES: usize = 8;

/// Which point is asked for.
#[derive(Debug)]
pub enum Asked {
    /// By the configuration, or in one word.
    Point(DrillPoint),
    /// On the command line.
    Target(Box<TargetArgs>),
}

/// A point that was chosen.
pub struct Chosen {
    /// The plan that leads there.
    pub plan: RestorePlan,
    /// When the newest transaction ended that could be recovered.
    pub newest_at: Option<DateTime<Utc>>,
    /// What to know of the choice.
    pub notes: Vec<String>,
}

impl Asked {
    /// By these arguments; without any, by the configuration.
    pub fn of(args: &DrillArgs, config: &DrillConfig) -> Self {
        match (args.random, args.sampled) {
            (true, _) => Self::Point(DrillPoint::Random),
            (_, true) => Self::Point(DrillPoint::Sampled),
            _ if args.target.says_nothing() => Self::Point(config.point),
            _ if args.target.words() == "--latest" => Self::Point(DrillPoint::Newest),
            _ => Self::Target(Box::new(args.target.clone())),
        }
    }

    /// In words, for records.
    pub fn words(&self) -> String {
        match self {
            Self::Point(DrillPoint::Newest) => "newest".to_owned(),
            Self::Point(DrillPoint::Random) => "random".to_owned(),
            Self::Point(DrillPoint::Sampled) => "sampled".to_owned(),
            Self::Target(target) => target.words(),
        }
    }

    /// Whether somebody named a target.
    pub fn is_by_hand(&self) -> bool {
        matches!(self, Self::Target(_))
    }

    /// The plan. That there is none for what nobody named is a failure of the drill, and no refusal.
    pub async fn choose(&self, repository: &Arc<ClusterRepository>, cluster: &ClusterConfig) -> Result<Chosen, Failure> {
        let planned = |target: TargetArgs| async move { plan::make_alone(repository, cluster, &target, Share::Whole).await };
        let newest = planned(TargetArgs::latest()).await;
        let newest_at = newest.as_ref().ok().and_then(last_at);
        let mut notes = Vec::new();
        let plan = match self {
            Self::Target(target) => return Ok(Chosen { plan: planned((**target).clone()).await?, newest_at, notes }),
            Self::Point(DrillPoint::Newest) => newest,
            Self::Point(DrillPoint::Random) => random_plan(repository, cluster).await,
            Self::Point(DrillPoint::Sampled) => match repository.samples().await?.last() {
                Some(sample) => match planned(TargetArgs::at_lsn(sample.lsn)).await {
                    // Nothing was written behind it, or another history went on: what is newest has it, or says why not.
                    Err(failure) if failure.exit == Exit::Refused => newest,
                    planned => planned,
                },
                None => {
                    notes.push("the agent has not counted rows yet: the newest point was restored".to_owned());
                    newest
                }
            },
        };
        match plan {
            Ok(plan) => Ok(Chosen { plan, newest_at, notes }),
            Err(failure) if failure.exit == Exit::Refused => {
                let error = anyhow!("there is nothing that can be restored: {:#}", failure.error);
                Err(Failure { exit: Exit::Failed, error, hint: failure.hint })
            }
            Err(failure) => Err(failure),
        }
    }
}

fn last_at(plan: &RestorePlan) -> Option<DateTime<Utc>> {
    plan.last_replayed.and_then(|last| last.time.to_utc())
}

async fn random_plan(repository: &Arc<ClusterRepository>, cluster: &ClusterConfig) -> Result<RestorePlan, Failure> {
    let catalog = crate::cli::setup::catalog(repository).await?;
    // Along the history that the server has now: others were given up.
    let report = catalog.report().into_iter().next_back();
    let windows = report.map(|report| report.windows).unwrap_or_default();
    let mut refused = None;
    for _ in 0..TRIES {
        let chance = u64::from(writer::random_number()?) << 32 | u64::from(writer::random_number()?);
        let Some(lsn) = random::point(&windows, chance) else { break };
        match plan::make_alone(repository, cluster, &TargetArgs::at_lsn(lsn), Share::Whole).await {
            Err(failure) if failure.exit == Exit::Refused => refused = Some(failure),
            planned => return planned,
        }
    }
    match refused {
        // All that was tried lies behind the last record.
        Some(_) => plan::make_alone(repository, cluster, &TargetArgs::latest(), Share::Whole).await,
        None => Err(Failure::refused("no backup can be restored along the newest timeline")),
    }
}

/// The newest sample that the plan's state can be compared with, or why there is none.
pub async fn sample(repository: &ClusterRepository, plan: &RestorePlan) -> Result<RowSample, String> {
    let samples = repository.samples().await.map_err(|error| format!("samples of rows could not be listed: {error}"))?;
    let is_before = |sample: &&SampleName| {
        plan.path.iter().any(|leg| leg.timeline == sample.timeline && sample.lsn <= leg.to) && sample.lsn <= plan.stop_lsn
    };
    match samples.iter().rev().find(is_before) {
        None if samples.is_empty() => Err("the agent has not counted rows yet (sample in [cluster.NAME.drill])".to_owned()),
        None => Err("rows were counted only behind the point that was restored".to_owned()),
        Some(name) => repository.sample(*name).await.map_err(|error| match error {
            Error::CannotDecrypt { .. } => "the sample of rows cannot be decrypted here".to_owned(),
            error => format!("the sample of rows cannot be read: {error}"),
        }),
    }
}
