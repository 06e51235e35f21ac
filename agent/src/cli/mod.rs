//! The command line: what can be said, one module a command, and the one place where a failure becomes an exit code.
//!
//! Commands print for people, or JSON with `--json`; they contain no logic of their own beyond that.

mod agent;
mod artifact;
mod ask;
mod audit;
mod backup;
mod before;
mod catalog;
mod check;
mod closed;
mod copy;
mod demo;
mod drill;
mod end_to_end;
mod expire;
mod extract;
pub mod failure;
mod fleet;
mod generate;
mod index;
mod init;
mod keep;
mod key;
mod lease;
mod log;
mod notify;
mod only_database;
mod output;
mod picture;
mod plan;
mod progress;
mod removal;
mod restore;
mod runs;
mod schedules;
mod scratch;
mod setup;
mod slot;
mod stored;
mod target;
mod thaw;
mod trail;
mod verify;
mod waiting;
mod wal;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use walkeep_core::audit::Kind;

use crate::config::Selection;
use failure::{Exit, Failure};
use trail::recorded_as;

/// WAL archiving and point-in-time recovery for PostgreSQL.
#[derive(Debug, Parser)]
#[command(
    name = "walkeep",
    version,
    long_version = generate::LONG_VERSION.as_str(),
    about,
    max_term_width = 100,
    after_help = "\
Examples:
  walkeep init                          prepare repository and slot, print the lines for postgresql.conf
  walkeep agent                         stream WAL, serve archive_command and restore_command
  walkeep backup                        take a base backup
  walkeep plan --at '2026-11-20 14:30:00+01'
  walkeep restore --at '2026-11-20 14:30:00+01' --to /var/lib/postgresql/15/restored
  walkeep extract --table shop.orders --at '2026-11-20 14:30:00+01' --into 'dbname=shop'

Exit codes: 0 done; 1 failed; 2 wrong usage or configuration; 3 refused because it cannot or must not be done;
4 verification found damage."
)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Options of every command.
#[derive(Debug, Clone, Args)]
struct Global {
    /// Configuration file [default: /etc/walkeep/walkeep.toml]
    #[arg(long, global = true, env = "WALKEEP_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Which [cluster.NAME] of the configuration, if it has several
    #[arg(long, global = true, env = "WALKEEP_CLUSTER", value_name = "NAME")]
    cluster: Option<String>,
    /// Read a bucket that keeps versions as it was at this time, with its zone: what was deleted since is there again. Nothing is written
    #[arg(long, global = true, value_name = "TIME")]
    as_of: Option<String>,
}

impl Global {
    fn selection(&self) -> Selection {
        Selection { path: self.config.clone(), cluster: self.cluster.clone(), as_of: self.as_of.clone() }
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Prepare the repository and the replication slot; print the lines for postgresql.conf
    Init(init::InitArgs),
    /// Run the daemon: stream WAL, serve the archive and restore commands, metrics
    Agent(agent::AgentArgs),
    /// Prove end to end that archiving works, or say what is wrong and how to mend it
    Check(check::CheckArgs),
    /// Take a base backup
    Backup(backup::BackupArgs),
    /// What can be recovered: backups, WAL per timeline, gaps
    Status(catalog::StatusArgs),
    /// The base backups
    Backups(catalog::BackupsArgs),
    /// The timelines: where each began, what is stored of it
    Timelines(catalog::TimelinesArgs),
    /// Which agent may write each timeline
    Lease(lease::LeaseArgs),
    /// Who may read what is stored: keys of age
    #[command(subcommand)]
    Key(key::KeyCommand),
    /// What the WAL says happened when: drops, truncations, restore points, switches, commits per minute
    Log(log::LogArgs),
    /// Of which WAL the index tells; make it anew
    Index(index::IndexArgs),
    /// What a restore would do: the dry run
    Plan(plan::PlanArgs),
    /// Lay down a data directory, ready to start and recover to the target
    Restore(restore::RestoreArgs),
    /// Make readable what a restore needs and lies in archived storage classes
    Thaw(thaw::ThawArgs),
    /// One table, or the rows of a query, out of the past, beside the running server
    Extract(extract::ExtractArgs),
    /// Rehearse a restore: carry it out beside the running server, look at it, throw it away, write a report
    Drill(drill::DrillArgs),
    /// What drills said
    Drills(drill::ListArgs),
    /// Let go what the retention policy does not keep: print it, ask, take it out of the catalog, remove it later
    Expire(expire::ExpireArgs),
    /// Keep a backup beyond the retention policy
    Keep(keep::KeepArgs),
    /// Leave a backup to the retention policy again
    Release(keep::ReleaseArgs),
    /// Dump databases, each an artifact
    Dump(artifact::DumpArgs),
    /// Make an artifact, or get one back
    #[command(subcommand)]
    Artifact(artifact::ArtifactCommand),
    /// The artifacts: dumps, folders, what commands printed
    Artifacts(artifact::ListArgs),
    /// Who did what: backups, restores, expiries, keys, refused requests; and whether that record is whole
    Audit(audit::AuditArgs),
    /// Is everything there that restores need? Names what is damaged or missing, and what is lost with it
    Verify(verify::VerifyArgs),
    /// Who is told when something is wrong, and whether that arrives
    Notify(notify::NotifyArgs),
    /// Copy the history from one repository into another
    Copy(copy::CopyArgs),
    /// Single WAL files, without an agent
    #[command(subcommand)]
    Wal(wal::WalCommand),
    /// The whole story on a throw-away server: stream, back up, an accident, plan, restore, proof
    Demo(demo::DemoArgs),
    /// Completions for a shell
    Completions(generate::CompletionsArgs),
    /// Man pages, into a directory
    Man(generate::ManArgs),
    /// Serve restore_command where no agent runs; started by walkeep-restore-cmd, leaves after idling
    #[command(hide = true)]
    FetchService(agent::FetchServiceArgs),
    /// Remove a scratch folder when its owner has died; started by extract and drill
    #[command(hide = true)]
    ScratchWatch(extract::WatchArgs),
}

/// Reads the arguments, runs the command, answers the exit code.
pub fn main() -> ExitCode {
    closed::close();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version come this way too, and are no failure.
            let _ = error.print();
            let fetching = std::env::args().skip(1).any(|argument| argument == "fetch");
            return match error.exit_code() {
                0 => ExitCode::SUCCESS,
                // A misspelt restore_command must not look like the end of the archive.
                _ if fetching => Exit::NotFetched.into(),
                _ => Exit::Usage.into(),
            };
        }
    };
    let fetching = matches!(cli.command, Command::Wal(wal::WalCommand::Fetch(_)));
    if fetching {
        // A panic's own exit code is 101, which PostgreSQL reads as the end of the archive.
        let told = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            told(panic);
            std::process::exit(Exit::NOT_FETCHED.into());
        }));
    }
    let ended = run(cli).and_then(|()| Ok(output::finish()?));
    if let Err(failure) = &ended {
        failure.print();
    }
    output::tell_rest();
    match ended.map_err(|failure| failure.exit) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Exit::Absent) => Exit::Absent.into(),
        // Whatever goes wrong, must not look like the end of the archive.
        Err(_) if fetching => Exit::NotFetched.into(),
        Err(exit) => exit.into(),
    }
}

/// A thread for blocking work ends after so long without any. The pool wakes its threads in turn: with tokio's 10 seconds an agent that always has a little to do
/// would keep as many as its busiest moment had, and the memory of each.
const IDLE_THREAD: Duration = Duration::from_millis(500);

fn run(cli: Cli) -> Result<(), Failure> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().thread_keep_alive(IDLE_THREAD).build().map_err(anyhow::Error::new)?;
    let Cli { global, command } = cli;
    let result = runtime.block_on(async {
        match command {
            Command::Init(args) => recorded_as(&global, "init", Kind::INIT, async |told| init::run(&global, args, told).await).await,
            Command::Agent(args) => agent::run(&global, args).await,
            Command::Check(args) => check::run(&global, args).await,
            Command::Backup(args) => {
                recorded_as(&global, "backup", Kind::BACKUP, async |told| backup::run(&global, args, told).await).await
            }
            Command::Status(args) => catalog::status(&global, args).await,
            Command::Backups(args) => catalog::backups(&global, args).await,
            Command::Timelines(args) => catalog::timelines(&global, args).await,
            Command::Lease(args) => recorded_as(&global, "lease", Kind::LEASE, async |told| lease::run(&global, args, told).await).await,
            Command::Key(command) => recorded_as(&global, "key", Kind::KEY, async |told| key::run(&global, &command, told)).await,
            Command::Log(args) => log::run(&global, args).await,
            Command::Index(args) => recorded_as(&global, "index", Kind::INDEX, async |told| index::run(&global, args, told).await).await,
            Command::Plan(args) => plan::run(&global, args).await,
            Command::Restore(args) => {
                recorded_as(&global, "restore", Kind::RESTORE, async |told| restore::run(&global, args, told).await).await
            }
            Command::Thaw(args) => recorded_as(&global, "thaw", Kind::THAW, async |told| thaw::run(&global, args, told).await).await,
            Command::Extract(args) => {
                recorded_as(&global, "extract", Kind::EXTRACT, async |told| extract::run(&global, args, told).await).await
            }
            Command::Drill(args) => recorded_as(&global, "drill", Kind::DRILL, async |told| drill::run(&global, args, told).await).await,
            Command::Drills(args) => drill::list(&global, args).await,
            Command::ScratchWatch(args) => extract::watch(&args),
            Command::Expire(args) => {
                let kind = args.kind();
                recorded_as(&global, "expire", kind, async |told| expire::run(&global, args, told).await).await
            }
            Command::Keep(args) => recorded_as(&global, "keep", Kind::KEEP, async |told| keep::keep(&global, args, told).await).await,
            Command::Release(args) => {
                recorded_as(&global, "release", Kind::RELEASE, async |told| keep::release(&global, args, told).await).await
            }
            Command::Dump(args) => recorded_as(&global, "dump", Kind::DUMP, async |told| artifact::dump(&global, args, told).await).await,
            Command::Artifact(artifact::ArtifactCommand::Run(args)) => {
                recorded_as(&global, "artifact run", Kind::ARTIFACT, async |told| artifact::run(&global, args, told).await).await
            }
            Command::Artifact(artifact::ArtifactCommand::Get(args)) => {
                recorded_as(&global, "artifact get", Kind::ARTIFACT_GET, async |told| artifact::get(&global, args, told).await).await
            }
            Command::Artifacts(args) => artifact::list(&global, args).await,
            Command::Audit(args) => audit::run(&global, args).await,
            Command::Verify(args) if args.repairs() => {
                let mended = recorded_as(&global, "verify --repair", Kind::REPAIR, async |told| verify::mend(&global, args, told).await);
                runs::told(&global, "verify", mended).await
            }
            Command::Verify(args) => runs::told(&global, "verify", verify::run(&global, args)).await,
            Command::Copy(args) => recorded_as(&global, "copy", Kind::COPY, async |told| copy::run(&global, args, told).await).await,
            Command::Notify(args) => notify::run(&global, args).await,
            Command::Wal(command) => wal::run(&global, command).await,
            Command::Demo(args) => demo::run(args).await,
            Command::Completions(args) => generate::completions(&args),
            Command::Man(args) => generate::man(&args),
            Command::FetchService(args) => agent::fetch_service(&global, args).await,
        }
    });
    // Blocking work that hangs (a dead file system) must not hold up the exit.
    runtime.shutdown_timeout(Duration::from_millis(200));
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }
}
