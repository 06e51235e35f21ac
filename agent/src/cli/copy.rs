//! `walkeep copy`: the history from one repository into another.

use clap::Args;
use tokio_util::sync::CancellationToken;

use super::failure::{Exit, Failure};
use super::setup::{self, Missing};
use super::trail::Told;
use super::{Global, output};
use crate::config::{ByteSize, ClusterConfig, RepositoryConfig};
use crate::copies::copy::{self, Copied, CopyOptions};
use crate::repository::ClusterRepository;

/// Archived objects that are named for people: there may be very many.
const NAMED: usize = 20;
/// What to do about them.
const THAW: &str = "`walkeep thaw` with a target makes readable what a restore to there needs; all of a bucket, the store's own batch jobs do. Then run the same \
                    command again: it goes on with what the target lacks. All else was copied.";

/// Arguments of `walkeep copy`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  walkeep copy --to 2                              everything that the second repository lacks
  walkeep copy --from 2 --to 1 --dry-run           what the first one lacks
  walkeep copy --to s3://other/prefix --rate 20MiB

Interrupted, it goes on where it was when it is run again. Each object is proven before it is stored, nothing is overwritten,
and no server or agent is needed. Exit code 4: something is damaged, or the target has other content under a name;
a backup or an artifact that needs such an object is not copied. Exit code 1: something lies in an archived storage class
and was left out, with what needs it; once it is thawed, run again.")]
pub struct CopyArgs {
    /// The repository to copy from: its number in the configuration, counted from 1, or its url
    #[arg(long, default_value = "1", value_name = "N|URL")]
    from: String,
    /// The repository to copy into
    #[arg(long, value_name = "N|URL")]
    to: String,
    /// Only say what there is to do
    #[arg(long)]
    dry_run: bool,
    /// At most so many bytes a second (20MiB)
    #[arg(long, value_name = "SIZE", value_parser = byte_size)]
    rate: Option<ByteSize>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub async fn run(global: &Global, args: CopyArgs, told: &Told<'_>) -> Result<(), Failure> {
    if args.dry_run {
        told.nothing();
    }
    let config = setup::config(global)?;
    let cluster = &config.cluster;
    let (from, to) = (chosen(cluster, &args.from)?, chosen(cluster, &args.to)?);
    if from == to {
        return Err(Failure::usage(anyhow::anyhow!("--from and --to mean the same repository")));
    }
    let stop = setup::stop_on_signals()?;
    let keys = setup::keys(cluster)?;
    let end = CancellationToken::new();
    let missing = if args.dry_run { Missing::Fail } else { Missing::Create };
    let source = setup::store(repository(cluster, from), Missing::Fail, &end).await?;
    let target = setup::store(repository(cluster, to), missing, &end).await?;
    let urls = (source.url(), target.url());
    told.of("from", &urls.0);
    told.of("to", &urls.1);
    let options = CopyOptions { dry_run: args.dry_run, rate_kb: args.rate.map(|rate| u32::try_from(rate.0 / 1024).unwrap_or(u32::MAX)) };
    let with = |repository, identity| {
        ClusterRepository::new(repository, cluster.name.clone(), identity, cluster.compression_level).with_encryption(keys.clone())
    };
    // On standard error, and nothing where that is no terminal.
    let bar = indicatif::ProgressBar::new_spinner();
    let tell = |copied: &Copied| {
        let (objects, bytes) = (output::count(copied.objects, "object"), output::bytes(copied.bytes));
        bar.set_message(format!("copied {objects} ({bytes}), {} were there already", copied.there_already));
        bar.tick();
    };
    let copied = copy::copy(source, target, &cluster.name, options, &with, &stop, &tell).await;
    bar.finish_and_clear();
    let copied = copied?;
    told.of("objects", copied.objects);
    told.of("bytes", copied.bytes);
    if args.json {
        output::json(&copied)?;
    } else {
        print(&copied, &urls, args.dry_run);
    }
    if copied.is_whole() || (args.dry_run && !copied.is_damaged()) {
        return Ok(());
    }
    if !copied.is_damaged() && !copied.archived.is_empty() {
        let (objects, bytes) = (output::count(copied.archived.len() as u64, "object"), output::bytes(copied.archived_bytes));
        let left = match copied.incomplete.len() {
            0 => String::new(),
            records => format!(", and so {records} backups or artifacts without all that they need"),
        };
        let error = anyhow::anyhow!("not all was copied: {objects} ({bytes}) in archived storage classes{left}");
        return Err(Failure::from(error).hint(THAW));
    }
    let (damaged, differing, incomplete) = (copied.damaged.len(), copied.differing.len(), copied.incomplete.len());
    let error = anyhow::anyhow!(
        "{damaged} damaged at the source, {differing} with other content at the target, {incomplete} backups or artifacts without all that they need"
    );
    Err(Failure { exit: Exit::Damaged, error, hint: Some("Nothing was overwritten. All else was copied.".to_owned()) })
}

fn print(copied: &Copied, (from, to): &(String, String), dry_run: bool) {
    let (objects, bytes) = (output::count(copied.objects, "object"), output::bytes(copied.bytes));
    match dry_run {
        true => output::say!("{to} lacks {objects} ({bytes}) of {from}, and has {} alike", copied.there_already),
        false => output::say!("copied {objects} ({bytes}) from {from} to {to}; {} were there already", copied.there_already),
    }
    let archived = copied.archived.iter().map(String::as_str);
    archived.clone().take(NAMED).for_each(|key| output::say!("ARCHIVED, to be thawed first: {key}"));
    if archived.len() > NAMED {
        output::say!("ARCHIVED, to be thawed first: {} more, which --json names", archived.len() - NAMED);
    }
    copied.damaged.iter().for_each(|damaged| output::say!("DAMAGED in {from}: {damaged}"));
    copied.incomplete.iter().for_each(|record| output::say!("NOT COPIED, as the target lacks what it names: {record}"));
    copied.differing.iter().for_each(|key| output::say!("OTHER CONTENT in {to}: {key}"));
}

fn byte_size(text: &str) -> Result<ByteSize, String> {
    ByteSize::parse(text).map_err(|error| error.to_string())
}

/// The number of a repository, counted from 0.
fn chosen(cluster: &ClusterConfig, text: &str) -> Result<usize, Failure> {
    let count = cluster.repositories().count();
    let by_number = text.parse::<usize>().ok().filter(|number| (1..=count).contains(number)).map(|number| number - 1);
    let by_url = || cluster.repositories().position(|repository| repository.url() == text.trim_end_matches('/'));
    by_number.or_else(by_url).ok_or_else(|| {
        let known: Vec<_> =
            (1..).zip(cluster.repositories()).map(|(number, repository)| format!("{number}: {}", repository.url())).collect();
        Failure::usage(anyhow::anyhow!("{text:?} is no repository of [cluster.{}], which has {}", cluster.name, known.join(", ")))
    })
}

fn repository(cluster: &ClusterConfig, index: usize) -> &RepositoryConfig {
    cluster.repositories().nth(index).unwrap_or(&cluster.repository)
}
