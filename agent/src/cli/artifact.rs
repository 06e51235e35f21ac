//! `walkeep artifact run|get`, `walkeep artifacts` and `walkeep dump`: what is kept beside WAL and base backups.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, anyhow};
use chrono::{DateTime, Utc};
use clap::{Args, Subcommand};
use serde::Serialize;
use tokio_util::sync::CancellationToken;
use walkeep_core::artifact::{ArtifactName, ArtifactRecord};
use walkeep_core::target::parse_time;

use super::failure::{Exit, Failure};
use super::trail::Told;
use super::{Global, output, setup};
use crate::artifact::dump::Dumper;
use crate::artifact::get::{self, Which};
use crate::artifact::maker::Maker;
use crate::artifact::{Made, retention};
use crate::config::{ClusterConfig, Runs};
use crate::durable::Filled;
use crate::repository;

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

/// Arguments of `walkeep artifact get`.
#[derive(Debug, Args)]
pub struct GetArgs {
    /// Its name, and which one [default: the newest]; `walkeep artifacts` lists them
    #[arg(value_name = "NAME[@ID]")]
    artifact: String,
    /// The newest that had ended at this moment, with its zone
    #[arg(long, value_name = "TIME")]
    at: Option<String>,
    /// The file to make, or - for standard output
    #[arg(long, value_name = "PATH")]
    to: PathBuf,
}

/// Arguments of `walkeep artifacts`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  walkeep artifacts --json")]
pub struct ListArgs {
    /// Only those of this name
    name: Option<ArtifactName>,
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

/// What makes artifacts for a command or the agent.
pub fn maker(repository: &Arc<crate::repository::ClusterRepository>) -> Maker {
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
    let (mut made, mut failed) = (Vec::new(), Vec::new());
    for database in &databases {
        match maker.dump(&dumper, &with, database, None, &stop).await {
            Ok(dumped) => made.push(dumped),
            // The others are worth having all the same.
            Err(error) => failed.push(format!("{database}: {error:#}")),
        }
    }
    report(&made, args.json)?;
    match failed.as_slice() {
        [] => Ok(()),
        failed => Err(anyhow!("not dumped: {}", failed.join("; ")).into()),
    }
}

/// What dumps the databases of a cluster.
pub fn dumper(cluster: &ClusterConfig, dump: crate::config::DumpConfig) -> Result<Dumper, Failure> {
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

/// Runs `walkeep artifact get`.
pub async fn get(global: &Global, args: GetArgs, told: &Told<'_>) -> Result<(), Failure> {
    let (name, which) = args.which()?;
    told.of("artifact", &args.artifact);
    told.of("to", args.to.display());
    let config = setup::config(global)?;
    let to_stdout = args.to == Path::new("-");
    if !to_stdout && std::fs::symlink_metadata(&args.to).is_ok() {
        return Err(Failure::refused(format!("{} exists: nothing is overwritten", args.to.display())));
    }
    let stop = setup::stop_on_signals()?;
    let repository = setup::cluster_repository(&config.cluster, &stop).await?;
    let found = get::find(&repository, &name, &which).await.map_err(failure)?;
    let Some(record) = found else {
        return Err(Failure::refused(format!("there is no artifact {}", args.artifact)).hint("`walkeep artifacts` lists them"));
    };
    told.of("id", &record.id);
    if to_stdout {
        // A reader that has gone took what it wanted, and says so itself.
        get::write(&repository, &record, &mut std::io::stdout()).await.map_err(failure)?;
        return Ok(());
    }
    let file = Filled::begin(&args.to)?;
    let mut to = std::io::BufWriter::with_capacity(1 << 20, file.file());
    get::write(&repository, &record, &mut to).await.map_err(failure)?;
    to.flush().context("write it")?;
    drop(to);
    file.publish(false).with_context(|| format!("make {}", args.to.display()))?;
    output::tell!("{}: {} in {}", record.place(), output::bytes(record.bytes), args.to.display());
    Ok(())
}

/// What is not what was stored is damage.
fn failure(error: anyhow::Error) -> Failure {
    let damaged = error.chain().any(|cause| matches!(cause.downcast_ref(), Some(repository::Error::Corrupt { .. })));
    let failure = Failure::from(error);
    if damaged { Failure { exit: Exit::Damaged, ..failure } } else { failure }
}

impl GetArgs {
    fn which(&self) -> Result<(ArtifactName, Which), Failure> {
        let usage = |error: anyhow::Error| Failure::usage(error);
        let (name, id) = self.artifact.split_once('@').map_or((self.artifact.as_str(), None), |(name, id)| (name, Some(id)));
        let name = name.parse().map_err(|error| usage(anyhow!("{error}")))?;
        let which = match (id, &self.at) {
            (Some(_), Some(_)) => return Err(usage(anyhow!("either an ID or --at"))),
            (Some(id), None) => Which::Id(id.parse().map_err(|error| usage(anyhow!("{error}")))?),
            (None, Some(time)) => {
                let time = parse_time(time).map_err(|error| usage(anyhow!("{error}")))?;
                Which::At(time.to_utc().context("--at is no moment").map_err(usage)?)
            }
            (None, None) => Which::Newest,
        };
        Ok((name, which))
    }
}

#[derive(Debug, Serialize)]
struct Listed<'a> {
    artifacts: &'a [ArtifactRecord],
    damaged: &'a [String],
    schedules: Vec<Scheduled>,
    expired: Vec<retention::Share>,
}

#[derive(Debug, Serialize)]
struct Scheduled {
    name: String,
    schedule: Option<String>,
    next: Option<DateTime<Utc>>,
    last: Option<DateTime<Utc>>,
}

/// Runs `walkeep artifacts`.
pub async fn list(global: &Global, args: ListArgs) -> Result<(), Failure> {
    let config = setup::config(global)?;
    let stop = setup::stop_on_signals()?;
    let repository = setup::cluster_repository(&config.cluster, &stop).await?;
    let (records, damaged) = repository.artifacts(args.name.as_ref()).await?;
    let now = Utc::now();
    let schedules = schedules(&config.cluster, &records, now);
    if args.json {
        let expired = retention::look(&repository, &config.cluster, now).await?;
        return Ok(output::json(&Listed { artifacts: &records, damaged: &damaged, schedules, expired })?);
    }
    let mut table = output::table(&["artifact", "made", "age", "bytes", "stored", "from", ""]);
    for record in &records {
        let from = record.database.as_ref().unwrap_or(&record.source);
        let age = (now - record.ended_at).to_std().map_or_else(|_| "in the future".to_owned(), |age| output::duration(age.max(SECOND)));
        let notes = if record.notes > 0 { output::count(record.notes, "note") } else { String::new() };
        table.add_row([
            record.place().to_string(),
            output::time(record.ended_at),
            age,
            output::bytes(record.bytes),
            output::bytes(record.bytes_stored),
            walkeep_core::identifier::printable(from),
            notes,
        ]);
    }
    if records.is_empty() {
        output::say!("no artifacts");
    } else {
        output::say!("{table}");
    }
    for key in &damaged {
        output::tell!("warning: {key} cannot be believed and is left out");
    }
    for Scheduled { name, schedule, next, last } in &schedules {
        let when = schedule.as_ref().map_or_else(|| "by hand".to_owned(), |schedule| schedule.clone());
        let next = next.map_or_else(String::new, |next| format!(", next {}", output::time(next)));
        let last = last.map_or_else(|| ", none made yet".to_owned(), |last| format!(", last {}", output::time(last)));
        output::say!("{name}: {when}{next}{last}");
    }
    Ok(())
}

/// Shorter is not told.
const SECOND: std::time::Duration = std::time::Duration::from_secs(1);

fn schedules(cluster: &ClusterConfig, records: &[ArtifactRecord], now: DateTime<Utc>) -> Vec<Scheduled> {
    let of = |name: &str, runs: &Runs, is_of: &dyn Fn(&ArtifactRecord) -> bool| Scheduled {
        name: name.to_owned(),
        schedule: runs.schedule.as_ref().map(|schedule| format!("{} {}", schedule.cron, schedule.zone)),
        next: runs.schedule.as_ref().and_then(|schedule| schedule.next(now)).map(|fire| fire.at),
        last: records.iter().filter(|record| is_of(record)).map(|record| record.ended_at).max(),
    };
    let artifacts =
        cluster.artifacts.iter().map(|artifact| of(artifact.name.as_str(), &artifact.runs, &|record| record.name == artifact.name));
    artifacts.chain(cluster.dump.iter().map(|dump| of("dump", &dump.runs, &|record| record.name.is_dump()))).collect()
}
