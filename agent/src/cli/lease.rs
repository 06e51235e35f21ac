//! `walkeep lease`: which agent may write each timeline, and the operator's word that this one may.

use clap::{Args, Subcommand};
use walkeep_core::TimelineId;
use walkeep_core::lease::{LeaseName, LeaseRecord};

use super::failure::Failure;
use super::trail::Told;
use super::{Global, output, setup};
use crate::writer;

/// Arguments of `walkeep lease`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  walkeep lease                 who writes which timeline
  walkeep lease take            this host's agent shall go on with the newest timeline

An agent that begins again, on the same spool or with the same replication slot, needs no such word. `take` is for a server that has taken
another one's place on the same timeline (a disk image started elsewhere) with an agent that lost its spool.")]
pub struct LeaseArgs {
    #[command(subcommand)]
    command: Option<LeaseCommand>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What to do with a lease.
#[derive(Debug, Subcommand)]
enum LeaseCommand {
    /// Let the agent of this configuration write a timeline; whoever wrote it is refused from then on
    Take {
        /// The timeline [default: the newest one that was written]
        #[arg(long)]
        timeline: Option<u32>,
    },
}

/// Runs `walkeep lease`.
pub async fn run(global: &Global, args: LeaseArgs, told: &Told<'_>) -> Result<(), Failure> {
    if args.command.is_none() {
        told.nothing();
    }
    let config = setup::config(global)?;
    let stop = setup::stop_on_signals()?;
    let repository = setup::cluster_repository(&config.cluster, &stop).await?;
    let leases = repository.newest_leases().await?;
    let Some(LeaseCommand::Take { timeline }) = args.command else {
        return show(&leases, args.json);
    };
    let timeline = match timeline {
        Some(number) => {
            TimelineId::new(number).ok_or_else(|| Failure::usage(anyhow::anyhow!("timeline {number}: timelines count from 1")))?
        }
        None => {
            let newest = leases.last().map(|lease| lease.name.timeline);
            newest.ok_or_else(|| Failure::refused("no lease was ever taken: the agent needs no word to begin"))?
        }
    };
    told.of("timeline", timeline);
    let before = leases.iter().find(|lease| lease.name.timeline == timeline);
    let params = setup::connection(&config.cluster)?;
    crate::spool::Spool::open(&config.cluster.spool, repository.identity().segment_size)?;
    let writer = writer::this_process(&config.cluster.spool, &params, &config.cluster.slot)?;
    if let Some(before) = before.filter(|before| before.writer.id == writer.id && before.by_operator) {
        told.nothing();
        output::say!("timeline {timeline} is this agent's already, epoch {}", before.name.epoch);
        return Ok(());
    }
    let name = LeaseName { timeline, epoch: before.map_or(1, |before| before.name.epoch + 1) };
    told.of("epoch", name.epoch);
    let lease = LeaseRecord { name, writer, taken_at: chrono::Utc::now(), by_operator: true };
    if !repository.put_lease(&lease).await? {
        return Err(Failure::refused(format!(
            "epoch {} of timeline {timeline} was taken by another one at this moment; look again",
            name.epoch
        )));
    }
    if args.json {
        return Ok(output::json(&lease)?);
    }
    output::say!("timeline {timeline}, epoch {}: {} may write it", name.epoch, lease.writer);
    if let Some(before) = before {
        output::say!("until now it was {}; it is refused from its next upload on", before.writer);
    }
    Ok(())
}

fn show(leases: &[LeaseRecord], json: bool) -> Result<(), Failure> {
    if json {
        return Ok(output::json(&leases)?);
    }
    if leases.is_empty() {
        output::say!("no lease was taken yet: no agent has streamed into this repository");
    }
    for lease in leases {
        let word = if lease.by_operator { ", by an operator's word" } else { "" };
        let (name, since) = (lease.name, output::time(lease.taken_at));
        output::say!("timeline {}, epoch {}: {}, since {since}{word}", name.timeline, name.epoch, lease.writer);
    }
    Ok(())
}
