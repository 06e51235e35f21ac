//! `walkeep wal push` and `walkeep wal fetch`: the shims' work without an agent.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, anyhow};
use clap::{Args, Subcommand};
use walkeep_core::WalFileName;

use super::failure::{Exit, Failure};
use super::{Global, output, setup};
use crate::archive::{ArchiveError, Archiver};
use crate::fetch::{FetchConfig, FetchMode, Fetcher, Outcome};
use crate::index::Queue;
use crate::metrics::Metrics;
use crate::repository::wal::Stored;
use crate::{recent::Recent, wal_path};

/// Single WAL files.
#[derive(Debug, Subcommand)]
pub enum WalCommand {
    /// Store one file of pg_wal, as archive_command would
    #[command(after_help = "Example (in postgresql.conf, where no agent runs):\n  archive_command = 'walkeep wal push %p'")]
    Push(PushArgs),
    /// Fetch one file by name: segments, .history, .backup, .partial
    #[command(after_help = "\
Example:
  walkeep wal fetch 000000010000000000000003 /tmp/000000010000000000000003

Exit codes as restore_command needs them: 0 done, 1 proven absent, 126 everything else.")]
    Fetch(FetchArgs),
}

/// Arguments of `walkeep wal push`.
#[derive(Debug, Args)]
pub struct PushArgs {
    /// The file, in the pg_wal of a data directory of this cluster (%p)
    path: PathBuf,
}

/// Arguments of `walkeep wal fetch`.
#[derive(Debug, Args)]
pub struct FetchArgs {
    /// The file's name (%f)
    name: String,
    /// Where to put it; must not exist
    destination: PathBuf,
}

/// Runs the command.
pub async fn run(global: &Global, command: WalCommand) -> Result<(), Failure> {
    let config = setup::config(global)?;
    crate::logging::start(&config.log).map_err(Failure::usage)?;
    let stop = setup::stop_on_signals()?;
    let repository = Arc::new(setup::cluster_repository(&config.cluster, &stop).await?);
    match command {
        WalCommand::Push(args) => {
            let path = std::path::absolute(&args.path).context("make the path absolute")?;
            let source = wal_path::check_source(&path, repository.identity().system_identifier);
            let source = source.map_err(ArchiveError::from).map_err(anyhow::Error::new)?;
            let metrics = Arc::new(Metrics::new().map_err(anyhow::Error::new)?);
            let name = source.name;
            let archiver = Archiver::new(repository, Arc::new(Recent::default()), metrics, Queue::nobody(), stop);
            match archiver.archive(source).await.map_err(anyhow::Error::new)? {
                Stored::New { bytes } => output::say!("{name}: stored, {bytes} bytes"),
                Stored::Already => output::say!("{name}: was stored already, with the same content"),
            }
            Ok(())
        }
        WalCommand::Fetch(args) => {
            let name: WalFileName = args.name.parse().map_err(anyhow::Error::new)?;
            if args.destination.symlink_metadata().is_ok() {
                return Err(Failure::refused(format!("{} exists already; nothing was overwritten", args.destination.display())));
            }
            let destination = std::path::absolute(&args.destination).context("make the path absolute")?;
            let fetcher = Fetcher::new(repository, FetchConfig::one_file(), &stop);
            match fetcher.fetch(name, &destination, FetchMode { standby: false }).await {
                Outcome::Done => Ok(()),
                Outcome::Absent { why } => Err(Failure { exit: Exit::Absent, error: anyhow!(why), hint: None }),
                Outcome::Failed { why, hint, .. } => Err(Failure { exit: Exit::Failed, error: why, hint: Some(hint) }),
            }
        }
    }
}
