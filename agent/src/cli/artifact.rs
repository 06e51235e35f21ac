//! `walkeep artifact` and `walkeep dump`: what is kept beside WAL and base backups.

mod get;
mod list;

use std::sync::Arc;

use anyhow::{Context, anyhow};
use clap::{Args, Subcommand};
use tokio_util::sync::CancellationToken;
use walkeep_core::artifact::ArtifactName;

use super::failure::Failure;
use super::trail::Told;
use super::{Global, output, setup};
use crate::artifact::Made;
use crate::artifact::dump::Dumper;
use crate::artifact::maker::Maker;
use crate::config::{ClusterConfig, DumpConfig};
use crate::repository::ClusterRepository;
pub use get::{GetArgs, get};
pub use list::{ListArgs, list};

/// What to do with artifacts.
#[derive(Debug, Subcommand)]
pub enum ArtifactCommand {
    /// Make one now
    #[command(
        after_help = "Example:\n  walkeep artifact run etc\n\nA command that fails, takes too long or prints nothing stores nothing: exit code 1."
    )]
    Run(RunArgs),
    /// Get one back, proven by its hashes
    #[command(after_help = "\
Examples:
  walkeep artifact get etc --to /tmp/etc.tar
  walkeep artifact get dump.shop@20261121T034712Z-5f0c12ab --to shop.dump
  walkeep artifact get etc --at '2026-11-20 14:30:00+01' --to - | tar -tv")]
    Get(GetArgs),
}

/// Arguments of `walkeep artifact run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Its name: [[cluster.NAME.artifact]] name
    name: ArtifactName,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Arguments of `walkeep dump`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  walkeep dump                      every database of [cluster.NAME.dump]
  walkeep dump --database shop      only this one
  walkeep artifact get dump.shop --to shop.dump && pg_restore -l shop.dump

Dumps are artifacts: `walkeep artifacts` lists them. pg_dump must be as new as the server.")]
pub struct DumpArgs {
    /// Only this database; may be given several times
    #[arg(long, value_name = "NAME")]
    database: Vec<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

fn maker(repository: &Arc<ClusterRepository>) -> Maker {
    Maker::new(repository.clone(), setup::bucket_opener())
}

/// Runs `walkeep artifact run`.
pub async fn run(global: &Global, args: RunArgs, told: &Told<'_>) -> Result<(), Failure> {
    told.of("artifact", &args.name);
    let config = setup::config(global)?;
    let known = &config.cluster.artifacts;
    let artifact = known.iter().find(|artifact| artifact.name == args.name).ok_or_else(|| {
        let names = known.iter().map(|artifact| artifact.name.as_str()).collect::<Vec<_>>().join(", ");
        let reason = anyhow!("no [[cluster.{}.artifact]] is called {}; there are: {names}", config.cluster.name, args.name);
        Failure::usage(reason).hint("Dumps of databases are made by `walkeep dump`.")
    })?;
    let stop = setup::stop_on_signals()?;
    let repository = Arc::new(setup::cluster_repository(&config.cluster, &CancellationToken::new()).await?);
    let made = maker(&repository).artifact(artifact, None, &stop).await.with_context(|| format!("make {}", args.name))?;
    told.of("id", &made.record.id);
    report(&[made], args.json)
}

/// Runs `walkeep dump`.
pub async fn dump(global: &Global, args: DumpArgs, told: &Told<'_>) -> Result<(), Failure> {
    let config = setup::config(global)?;
    let Some(dump) = &config.cluster.dump else {
        let reason = anyhow!("there is no [cluster.{}.dump]", config.cluster.name);
        return Err(Failure::usage(reason).hint("an empty table dumps every database in pg_dump's custom format"));
    };
    let dumper = dumper(&config.cluster, dump.clone())?;
    let (databases, with) = dumper.look().await.context("look at the server")?;
    let databases = if args.database.is_empty() { databases } else { args.database };
    told.of("databases", databases.join(", "));
    let stop = setup::stop_on_signals()?;
    let repository = Arc::new(setup::cluster_repository(&config.cluster, &CancellationToken::new()).await?);
    let maker = maker(&repository);
    let (mut made, mut failed): (Vec<Made>, Vec<&str>) = Default::default();
    for database in &databases {
        match maker.dump(&dumper, &with, database, None, &stop).await {
            Ok(dumped) => made.push(dumped),
            // The others are worth having all the same. What pg_dump says, a query for example, is for who looks, and not for the audit trail.
            Err(error) => {
                output::tell!("{database}: {error:#}");
                failed.push(database);
            }
        }
    }
    report(&made, args.json)?;
    match failed.as_slice() {
        [] => Ok(()),
        failed => Err(Failure::from(anyhow!("not dumped: {}", failed.join(", "))).hint("Why is told above, for each.")),
    }
}

fn dumper(cluster: &ClusterConfig, dump: DumpConfig) -> Result<Dumper, Failure> {
    Ok(Dumper::new(dump, cluster.connection.clone(), setup::connection(cluster)?, cluster.data_directory.clone()))
}

fn report(made: &[Made], json: bool) -> Result<(), Failure> {
    if json {
        return Ok(output::json(&made.iter().map(|made| &made.record).collect::<Vec<_>>())?);
    }
    for Made { record, notes } in made {
        output::say!("{}: {}, stored as {}", record.place(), output::bytes(record.bytes), output::bytes(record.bytes_stored));
        for note in notes {
            output::tell!("note: {note}");
        }
        let more = record.notes.saturating_sub(notes.len() as u64);
        if more > 0 {
            output::tell!("note: and {more} more of the kind");
        }
    }
    Ok(())
}
