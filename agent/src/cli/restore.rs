//! `walkeep restore`: the plan, then a data directory that starts and recovers to the target.

use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::{Context, Result, anyhow};
use clap::{Args, ValueEnum};
use walkeep_core::partial::Needed;
use walkeep_core::plan::RestorePlan;
use walkeep_core::target::TargetAction;

use super::failure::Failure;
use super::target::TargetArgs;
use super::thaw::{HowArgs, Job};
use super::trail::Told;
use super::{Global, ask, only_database, output, plan, progress, setup, thaw};
use crate::config::{ClusterConfig, Config, RepositoryConfig};
use crate::planning::Share;
use crate::rates::RatesFile;
use crate::restore::{self, InUse, Options, Refusal, Summary, Survey};

/// Arguments of `walkeep restore`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  walkeep restore --to /var/lib/postgresql/15/restored
  walkeep restore --at '2026-11-20 14:30:00+01' --to /srv/restored --action pause
  walkeep restore --before-drop shop.public.orders --to /srv/restored
  walkeep restore --to /srv/restored --tablespace /mnt/fast=/srv/restored-fast
  walkeep restore --at '2026-11-20 14:30:00+01' --to /var/lib/postgresql/15/main --delta
  walkeep restore --to /srv/restored --only-database shop
  walkeep restore --at '2026-03-01 14:30:00+01' --to /srv/restored --thaw --tier bulk

The directory must be absent or empty; nothing is ever overwritten, but with --delta: then a data directory of the same
cluster, without a server, gets what differs, and what does not belong there is removed, after a question. Archiving is switched off in the restored server
unless --keep-archiving is given. Start the server on the directory: it fetches WAL by walkeep-restore-cmd and recovers.")]
pub struct RestoreArgs {
    #[command(flatten)]
    target: TargetArgs,
    /// The data directory to make
    #[arg(long, value_name = "DIR")]
    to: PathBuf,
    /// Another place for a tablespace; may be given several times
    #[arg(long, value_name = "OLD=NEW")]
    tablespace: Vec<String>,
    /// What the server does once the target is reached
    #[arg(long, value_enum, default_value_t = Action::Promote)]
    action: Action,
    /// Into a data directory of this cluster: fetch only what differs, remove what does not belong there
    #[arg(long)]
    delta: bool,
    /// Overwrite and remove without asking
    #[arg(long, requires = "delta")]
    yes: bool,
    /// Only this database's files, and what all databases share; the others are there, empty, and have to be dropped. May be given several times
    #[arg(long, value_name = "NAME")]
    only_database: Vec<String>,
    /// Have thawed what is needed and lies in an archived storage class, and wait for it
    #[arg(long)]
    thaw: bool,
    #[command(flatten)]
    how: HowArgs,
    /// Leave archive_mode as it was
    #[arg(long)]
    keep_archiving: bool,
    /// Leave synchronous_standby_names as it was
    #[arg(long)]
    keep_synchronous_standbys: bool,
    /// Files read at the same time
    #[arg(long, default_value_t = 8)]
    parallel: usize,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Action {
    /// Open for writes, on a new timeline
    Promote,
    /// Stay in recovery, readable; pg_wal_replay_resume() goes on
    Pause,
    /// Shut down
    Shutdown,
}

/// Runs the command.
pub async fn run(global: &Global, args: RestoreArgs, told: &Told<'_>) -> Result<(), Failure> {
    args.target.check().map_err(Failure::usage)?;
    if args.how.is_given() && !args.thaw {
        return Err(Failure::usage(anyhow!("--thaw-days, --tier, --thaw-timeout and --no-wait go with --thaw")));
    }
    told.of("target", args.target.words());
    told.of("to", args.to.display());
    if args.target.is_latest() && !matches!(args.action, Action::Promote) {
        let reason = anyhow!("--action pause and shutdown go with a target: at the end of the WAL PostgreSQL always opens for writes");
        return Err(Failure::usage(reason));
    }
    let config = setup::config(global)?;
    let to = std::path::absolute(&args.to).context("make the path absolute")?;
    let tablespaces = args.tablespace.iter().map(|text| mapping(text)).collect::<Result<Vec<_>>>().map_err(Failure::usage)?;
    for (at, (old, _)) in tablespaces.iter().enumerate() {
        if tablespaces[..at].iter().any(|(other, _)| other == old) {
            return Err(Failure::usage(anyhow!("--tablespace {}=... is given twice", old.display())));
        }
    }
    if let Some(path) = [&to]
        .into_iter()
        .chain(tablespaces.iter().map(|(_, new)| new))
        .find(|path| path.components().any(|part| part == Component::ParentDir))
    {
        return Err(Failure::usage(anyhow!("{}: write the path without `..`", path.display())));
    }
    // Before WAL is read, which may take long. All is looked at again, with the room on the disks, before anything is written.
    let in_use = in_use(&config.cluster, Some(&to));
    for directory in [&to].into_iter().chain(tablespaces.iter().map(|(_, new)| new)).filter(|_| !args.delta) {
        restore::check_directory(directory, &in_use).map_err(refusal_or_failure)?;
    }
    let stop = setup::stop_on_signals()?;
    let repository = Arc::new(setup::what_is_left(&config.cluster, &stop).await?);
    let wanted = if args.only_database.is_empty() { Share::Whole } else { Share::Part };
    let job = Job {
        repository: &repository,
        cluster: &config.cluster,
        target: &args.target,
        share: wanted,
        how: &args.how,
        stop: &stop,
        quiet: args.json,
    };
    let planned = if args.thaw { thawed(&job, told).await } else { plan_at_hand(&job).await };
    if args.json {
        planned.as_ref().err().map_or(Ok(()), plan::json_refusal)?;
    }
    let plan = planned?;
    told.of("backup", &plan.backup.id);
    if !args.json {
        plan::print(&plan);
    }
    let mut options = Options::new(to, restore_command(&config)?);
    (options.tablespaces, options.in_use) = (tablespaces, in_use);
    options.data_directory.clone_from(&config.cluster.data_directory);
    options.action = match args.action {
        Action::Promote => TargetAction::Promote,
        Action::Pause => TargetAction::Pause,
        Action::Shutdown => TargetAction::Shutdown,
    };
    options.keep_archiving = args.keep_archiving;
    options.keep_synchronous_standbys = args.keep_synchronous_standbys;
    options.parallelism = args.parallel.clamp(1, 64);
    options.delta = args.delta;
    options.readable = true;
    if !args.only_database.is_empty() {
        told.of("databases", args.only_database.join(", "));
        options.needed = only_database::needed(&repository, &plan, &args.only_database, &stop).await?;
    }
    if args.delta {
        let survey = restore::look_over(&repository, &plan, &options, &stop).await.map_err(refusal_or_failure)?;
        agree(&survey, &args, &options.to).await?;
    }
    told.begins().await;
    let bar = progress::Bar::new("restoring");
    let restored = restore::restore(repository.clone(), &plan, options, &|state| bar.show(state), &stop).await;
    bar.finish();
    setup::tell_fallbacks(&repository);
    let summary = restored.map_err(refusal_or_failure)?;
    RatesFile::of(&config.cluster).note(summary.measured);
    if args.json {
        output::json(&summary)?;
    } else {
        print(&summary);
    }
    Ok(())
}

/// The plan, if all that it needs can be read at once. Which files are needed of some databases only is not known yet: then it is asked for all.
async fn plan_at_hand(job: &Job<'_>) -> Result<RestorePlan, Failure> {
    let plan = plan::make(job.repository, job.cluster, job.target, job.share).await?;
    let frozen = crate::thaw::of_plan(job.repository, &plan, &Needed::Everything, job.stop).await?;
    match frozen.ends_too_early(plan.estimate.as_ref(), SystemTime::now()) {
        _ if !frozen.is_nothing() => Err(thaw::refusal(&frozen)),
        Some(until) => Err(thaw::too_early(until)),
        None => Ok(plan),
    }
}

/// The plan, once all that it needs was thawed.
async fn thawed(job: &Job<'_>, told: &Told<'_>) -> Result<RestorePlan, Failure> {
    let not_yet = || {
        Failure::refused("nothing was restored: what it needs is being thawed, and --no-wait says not to wait".to_owned())
            .hint("Run it again without --no-wait, or later: what is thawed by then is not asked for twice")
    };
    thaw::thaw(job, told).await?.plan.ok_or_else(not_yet)
}

/// What Walkeep itself has on this host, and its server, unless it is that server's directory that is to be filled.
pub(super) fn in_use(cluster: &ClusterConfig, to: Option<&Path>) -> Vec<InUse> {
    let other = cluster.data_directory.as_ref().filter(|server| !to.is_some_and(|to| restore::is_same(server, to)));
    let server = other.map(|server| restore::of_server(server)).unwrap_or_default();
    let spool = InUse { path: cluster.spool.clone(), what: "the spool" };
    let repositories = cluster.repositories().filter_map(|repository| match repository {
        RepositoryConfig::Local { path } => Some(InUse { path: path.clone(), what: "the repository" }),
        RepositoryConfig::S3(_) => None,
    });
    [spool].into_iter().chain(repositories).chain(server).collect()
}

/// Says what will be lost, and asks.
async fn agree(survey: &Survey, args: &RestoreArgs, to: &Path) -> Result<(), Failure> {
    if survey.is_empty() || args.yes && args.json {
        return Ok(());
    }
    let to = to.display();
    output::tell!(
        "{to} has {} of the backup ({}); what differs is overwritten",
        output::count(survey.files, "file"),
        output::bytes(survey.bytes)
    );
    survey.outside.iter().for_each(|space| output::tell!("so is what differs in its tablespace at {}", space.display()));
    if survey.removed > 0 {
        let all =
            if survey.removed == 1 { "1 file, link or folder".into() } else { format!("{} files, links and folders", survey.removed) };
        output::tell!("what the backup does not have is removed: {all}");
        survey.named.iter().for_each(|path| output::tell!("  {}", named(path)));
        if survey.removed > survey.named.len() as u64 {
            output::tell!("  ...");
        }
    }
    if survey.wal > 0 {
        output::tell!("among them {} in pg_wal: recovery fetches WAL from the repository", output::count(survey.wal, "file"));
    }
    if survey.unarchived > 0 {
        let count = output::count(survey.unarchived, "file");
        output::tell!(
            "ATTENTION: the server had not archived {count} of it (archive_status/*.ready): copy pg_wal elsewhere first if they are wanted"
        );
    }
    if args.yes {
        return Ok(());
    }
    if !ask::possible() {
        let reason =
            format!("what differs in {to} is overwritten, and what does not belong there removed, and nobody is there to be asked");
        return Err(Failure::refused(reason).hint("--yes says that this is wanted"));
    }
    match ask::ask(format!("{to} becomes the backup.")).await? {
        true => Ok(()),
        false => Err(Failure::refused("not done: nothing was touched".to_owned())),
    }
}

/// A path and what it is: a link is removed, not what it leads to, a folder with all that is in it.
fn named(path: &Path) -> String {
    match std::fs::read_link(path) {
        Ok(leads_to) => format!("{} -> {}", path.display(), leads_to.display()),
        Err(_) if path.is_dir() => format!("{}/", path.display()),
        Err(_) => path.display().to_string(),
    }
}

pub(super) fn refusal_or_failure(error: anyhow::Error) -> Failure {
    match error.downcast::<Refusal>() {
        Ok(refusal) => Failure::refused(refusal.to_string()),
        Err(error) => error.into(),
    }
}

fn print(summary: &Summary) {
    let files = output::count(summary.files, "file");
    output::say!("\nrestored      {files}, {} in {:.1} s", output::bytes(summary.bytes), summary.seconds);
    output::say!("to            {}", summary.data_directory.display());
    for (oid, place) in &summary.tablespaces {
        output::say!("tablespace    {oid} at {}", place.display());
    }
    for warning in &summary.warnings {
        output::say!("warning       {warning}");
    }
    output::say!("\nStart the server on it; it recovers by itself: pg_ctl -D {} start", summary.data_directory.display());
}

fn mapping(text: &str) -> Result<(PathBuf, PathBuf)> {
    let (old, new) = text.split_once('=').ok_or_else(|| anyhow!("--tablespace {text:?}: write OLD=NEW"))?;
    let path = |text: &str| -> Result<PathBuf> {
        let path = Path::new(text);
        if path.is_absolute() { Ok(path.to_owned()) } else { Err(anyhow!("--tablespace: {text:?} is not an absolute path")) }
    };
    Ok((path(old)?, path(new)?))
}

/// The command that the restored server fetches WAL with: the shim beside this program, else the one on the server's PATH.
pub(super) fn restore_command(config: &Config) -> Result<String> {
    let beside = std::env::current_exe().context("find this program")?.with_file_name("walkeep-restore-cmd");
    let shim = if beside.is_file() { word(&beside)? } else { "walkeep-restore-cmd".into() };
    let place = match &config.path {
        Some(path) => format!("--config {} --cluster {}", word(path)?, config.cluster.name),
        None => format!("--socket {}", word(&config.cluster.socket)?),
    };
    let Some(at) = config.cluster.repository.as_of() else { return Ok(format!("{shim} {place} %f %p")) };
    // Not the agent's socket: it reads the present. And one for each moment: the service goes on for a while.
    let mut socket = config.cluster.socket.clone().into_os_string();
    socket.push(format!(".as-of-{}", at.timestamp()));
    let (socket, at) = (word(Path::new(&socket))?, at.format("%Y-%m-%dT%H:%M:%SZ"));
    let config = config.path.as_ref().map(|_| place).unwrap_or_default();
    Ok(format!("WALKEEP_REPOSITORY_AS_OF={at} {shim} {config} --socket {socket} %f %p"))
}

/// A path as one word for the shell, with PostgreSQL's `%` doubled.
fn word(path: &Path) -> Result<String> {
    let text = path.to_str().with_context(|| format!("{} is not UTF-8, so it cannot stand in restore_command", path.display()))?;
    let plain = text.bytes().all(|b| b.is_ascii_alphanumeric() || b"/._-".contains(&b));
    let quoted = if plain { text.to_owned() } else { format!("'{}'", text.replace('\'', r"'\''")) };
    Ok(quoted.replace('%', "%%"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_words_for_the_shell() {
        assert_eq!(word(Path::new("/a/b.toml")).unwrap(), "/a/b.toml");
        assert_eq!(word(Path::new("/a b/100%'s")).unwrap(), r"'/a b/100%%'\''s'");
    }

    #[test]
    fn tablespaces_are_mapped_by_absolute_paths() {
        assert_eq!(mapping("/a=/b").unwrap(), (PathBuf::from("/a"), PathBuf::from("/b")));
        assert!(mapping("/a").is_err() && mapping("a=/b").is_err() && mapping("/a=b").is_err());
    }
}
