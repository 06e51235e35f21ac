//! `walkeep backup`: a base backup, with progress.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use chrono::{DateTime, Utc};
use clap::Args;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use walkeep_core::backup::{BackupRecord, DamageReport, Keep, check_label};

use super::failure::{Exit, Failure};
use super::trail::Told;
use super::{Global, output, progress, setup};
use crate::backup::lock::{BackupLock, LockError};
use crate::backup::{self, Method, Options, waiting};
use crate::config::ClusterConfig;
use crate::index::Queue;
use crate::metrics::Metrics;
use crate::postgres::ConnectionParams;
use crate::progress::Progress;
use crate::recent::Recent;
use crate::repository::ClusterRepository;
use crate::stream::Streamer;

/// Damaged pages that are named on the terminal.
const SHOWN: usize = 5;

/// Arguments of `walkeep backup`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  walkeep backup
  walkeep backup --label before-upgrade --keep forever
  walkeep backup --label pre-migration --keep 30d
  walkeep backup --max-rate 50000 --spread-checkpoint     be gentle with the server
  walkeep backup --method protocol                        over the wire, whatever is on this host

The backup exists once all WAL it needs is in the repository. Where no agent answers, this command streams that WAL itself.
One backup at a time: while the agent or another command takes one, this is refused with exit code 3.
Backups by the clock are the agent's: [[cluster.NAME.backup]] in the configuration.")]
pub struct BackupArgs {
    /// Read and store every file anew, whatever older backups have
    #[arg(long)]
    full: bool,
    /// Where the files come from: the data directory if it can be read here and is the server's (auto), only from there (local), or the server sends
    /// them (protocol)
    #[arg(long, value_enum, default_value_t = MethodArg::Auto)]
    method: MethodArg,
    /// Threads that read, check, hash and compress, of low priority [default: one for each core]
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=64))]
    jobs: Option<u8>,
    /// Words to know it by
    #[arg(long, default_value = "walkeep")]
    label: String,
    /// Keep it beyond the retention policy: for ever, or for a time such as 30d
    #[arg(long, value_name = "30d|forever")]
    keep: Option<String>,
    /// The most that is read or sent, in kB a second (32 to 1048576)
    #[arg(long, value_name = "KB")]
    max_rate: Option<u32>,
    /// Let the starting checkpoint take its time instead of hurrying it
    #[arg(long)]
    spread_checkpoint: bool,
    /// How long to wait for the backup's WAL once its files are stored
    #[arg(long, default_value = "10min", value_parser = humantime::parse_duration)]
    wal_timeout: Duration,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// [`Method`] in words of the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum MethodArg {
    Auto,
    Local,
    Protocol,
}

impl From<MethodArg> for Method {
    fn from(arg: MethodArg) -> Self {
        match arg {
            MethodArg::Auto => Self::Auto,
            MethodArg::Local => Self::Local,
            MethodArg::Protocol => Self::Protocol,
        }
    }
}

/// Runs the command.
pub async fn run(global: &Global, args: BackupArgs, told: &Told<'_>) -> Result<(), Failure> {
    let keep = args.keep.as_deref().map(|text| parse_keep(text, Utc::now())).transpose().map_err(Failure::usage)?;
    check_label(&args.label).map_err(|error| Failure::usage(anyhow!(error).context("--label")))?;
    told.of("label", &args.label);
    let config = setup::config(global)?;
    setup::refuse_past(&config.cluster)?;
    crate::logging::start(&crate::config::LogConfig { level: quiet(&config.log.level), ..config.log.clone() })?;
    let stop = setup::stop_on_signals()?;
    let repository = Arc::new(setup::cluster_repository(&config.cluster, &CancellationToken::new()).await?);
    let params = setup::connection(&config.cluster)?;
    let mut options = Options::for_cluster(&config.cluster, args.label);
    options.method = args.method.into();
    options.jobs = args.jobs.map_or(options.jobs, usize::from);
    options.tell = |text| output::tell!("{text}");
    options.keep = keep;
    options.full = args.full;
    options.max_rate_kb = args.max_rate;
    options.fast_checkpoint = !args.spread_checkpoint;
    options.wal_timeout = args.wal_timeout;
    let lock = Arc::new(lock(&config.cluster).await?);
    let own_stream = OwnStream::start_if_needed(&config.cluster, &params, &repository).await?;
    let bar = progress::Bar::new("backing up");
    let taken = backup::take(waiting::told(&repository, &lock), &params, options, &|state| bar.show(state), &stop).await;
    bar.finish();
    own_stream.stop().await;
    let record = taken.context("take the base backup")?;
    told.of("backup", &record.id);
    told.of("bytes_stored", record.bytes_stored);
    if args.json {
        output::json(&record)?;
    } else {
        print(&record);
    }
    match &record.damage {
        None => Ok(()),
        Some(damage) => Err(damaged(damage)),
    }
}

/// The backup is there, and so is the damage.
fn damaged(damage: &DamageReport) -> Failure {
    let shown = damage.named.iter().take(SHOWN).map(|page| {
        let relation = page.relation.as_ref().map_or_else(String::new, |name| format!(" ({name})"));
        format!("block {} of {}{relation}", page.block, page.file)
    });
    let more = if damage.pages > SHOWN as u64 { ", and more: see `walkeep backups --json`" } else { "" };
    let pages = output::count(damage.pages, "page");
    let named: Vec<_> = shown.collect();
    let error =
        anyhow!("{pages} of the server had wrong checksums: {}{more}. The backup is kept, with these pages as they were", named.join(", "));
    let hint = "the server's data is damaged: find out why (disk, memory, file system), and compare with an older backup: `walkeep extract` brings single tables back";
    Failure { exit: Exit::Damaged, error, hint: None }.hint(hint)
}

/// The right to be the one who takes a backup on this host.
async fn lock(cluster: &ClusterConfig) -> Result<BackupLock, Failure> {
    let spool = cluster.spool.clone();
    match tokio::task::spawn_blocking(move || BackupLock::take(&spool, "`walkeep backup`")).await.context("wait for the lock")? {
        Ok(lock) => Ok(lock),
        Err(held @ LockError::Held { .. }) => {
            Err(Failure::refused(held.to_string()).hint("Wait until it is over; `walkeep backups` shows it then."))
        }
        Err(error) => Err(anyhow!(error).into()),
    }
}

fn print(record: &BackupRecord) {
    let took = (record.ended_at - record.started_at).to_std().unwrap_or_default();
    output::say!("backup {}", record.id);
    let files = output::count(record.files, "file");
    output::say!("  {files}, {}, stored as {}", output::bytes(record.bytes), output::bytes(record.bytes_stored));
    output::say!("  timeline {}, {} to {}, {}", record.timeline, record.start_lsn, record.stop_lsn, output::duration(took));
    if let Some(keep) = &record.keep {
        output::say!("  kept {}", output::kept(keep));
    }
    output::say!("  all WAL it needs is in the repository: it can be restored from {} on", output::time(record.ended_at));
}

/// What the terminal should not be flooded with.
fn quiet(level: &str) -> String {
    if level == "info" { "warn".into() } else { level.into() }
}

fn parse_keep(text: &str, now: DateTime<Utc>) -> Result<Keep> {
    let keep = crate::config::keep_for(text).context("--keep")?;
    keep.from(now).ok_or_else(|| anyhow!("--keep {text} is too long"))
}

/// The stream that brings the backup's WAL where no agent does.
struct OwnStream {
    stop: CancellationToken,
    task: Option<JoinHandle<()>>,
}

impl OwnStream {
    async fn start_if_needed(cluster: &ClusterConfig, params: &ConnectionParams, repository: &Arc<ClusterRepository>) -> Result<Self> {
        let stop = CancellationToken::new();
        if !cluster.stream || setup::agent_answers(cluster).await {
            return Ok(Self { stop, task: None });
        }
        output::tell!("no agent answers on {}: streaming the backup's WAL from here", cluster.socket.display());
        let metrics = Arc::new(Metrics::new()?);
        let streamer = Streamer::new(
            cluster.clone(),
            params.clone(),
            repository.clone(),
            Arc::new(Recent::default()),
            metrics,
            Arc::new(Progress::default()),
            Queue::nobody(),
        )?;
        let task = tokio::spawn(streamer.run(stop.clone()));
        Ok(Self { stop, task: Some(task) })
    }

    async fn stop(self) {
        self.stop.cancel();
        if let Some(task) = self.task
            && let Err(error) = task.await
        {
            tracing::error!(%error, "the stream of the backup's WAL died");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keep_is_forever_or_a_time() {
        let now = DateTime::from_timestamp(0, 0).unwrap();
        assert_eq!(parse_keep("forever", now).unwrap(), Keep::Forever);
        assert_eq!(parse_keep("30d", now).unwrap(), Keep::Until(now + chrono::Duration::days(30)));
        assert!(parse_keep("30", now).is_err());
        assert!(parse_keep("99999999999y", now).is_err());
    }
}
