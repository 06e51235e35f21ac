//! `walkeep thaw`: what a restore to a target needs and lies in archived storage classes is made readable, without restoring; and the same for
//! `restore --thaw`.
//!
//! A plan may have to read WAL that is archived itself. Then that is thawed first, with what is known to be needed beside it, and the plan is made again.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use clap::{Args, ValueEnum};
use serde::Serialize;
use tokio_util::sync::CancellationToken;
use walkeep_core::WalFileName;
use walkeep_core::partial::Needed;
use walkeep_core::plan::RestorePlan;
use walkeep_store::{Thaw, Tier};

use super::failure::{Exit, Failure};
use super::progress::Count;
use super::target::TargetArgs;
use super::trail::Told;
use super::{Global, output, plan, setup};
use crate::config::ClusterConfig;
use crate::planning::{Share, Unread};
use crate::repository::{self, ClusterRepository};
use crate::thaw::{self, Asked, Frozen, Waited};

/// Copies stay so long, unless something else is asked for.
const DAYS: u32 = 7;
/// Segments that are thawed with one that something other than a plan stumbled over.
const BEHIND: u64 = 64;
/// So long is waited at least.
const LEAST: Duration = Duration::from_secs(600);
/// Between two lines where nobody watches a terminal.
const TELL: Duration = Duration::from_secs(60);
/// Plans made in a row of which each meets something archived that is gone when it is looked for.
const TRIES: u32 = 3;

/// Arguments of `walkeep thaw`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  walkeep thaw                                         all that a restore to the end of what is stored needs
  walkeep thaw --at '2026-03-01 14:30:00+01' --tier bulk --no-wait
  walkeep restore --at '2026-03-01 14:30:00+01' --to /srv/restored --thaw
  walkeep thaw --wal 000000010000000000000004          a file that archive_command offers again, to be compared

Asked for again it goes on where it is: what is being thawed or can be read is not asked for twice. `walkeep plan` says how much it is, and how long
it takes.")]
pub struct ThawArgs {
    #[command(flatten)]
    target: TargetArgs,
    /// Only this file of the archive, by its name; may be given several times
    #[arg(long, value_name = "NAME", conflicts_with_all = ["TargetArgs", "KindArgs"])]
    wal: Vec<WalFileName>,
    #[command(flatten)]
    how: HowArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// How it is thawed.
#[derive(Debug, Clone, Args)]
pub struct HowArgs {
    /// Days for which thawed copies stay [default: 7]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=3650))]
    thaw_days: Option<u32>,
    /// How fast and how dear [default: standard]
    #[arg(long, value_enum)]
    tier: Option<TierArg>,
    /// Wait no longer than this [default: twice what it takes as a rule]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    thaw_timeout: Option<Duration>,
    /// Ask, say how long it takes, and do not wait
    #[arg(long)]
    no_wait: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum TierArg {
    /// The cheapest: hours, up to two days
    Bulk,
    /// Hours
    Standard,
    /// Minutes; not for DEEP_ARCHIVE
    Expedited,
}

impl HowArgs {
    /// Whether any of it was given.
    pub fn is_given(&self) -> bool {
        self.thaw_days.is_some() || self.tier.is_some() || self.thaw_timeout.is_some() || self.no_wait
    }

    fn thaw(&self) -> Thaw {
        let tier = match self.tier.unwrap_or(TierArg::Standard) {
            TierArg::Bulk => Tier::Bulk,
            TierArg::Standard => Tier::Standard,
            TierArg::Expedited => Tier::Expedited,
        };
        Thaw { days: self.thaw_days.unwrap_or(DAYS), tier }
    }
}

/// What is thawed for whom.
pub struct Job<'a> {
    /// Of this cluster.
    pub repository: &'a Arc<ClusterRepository>,
    /// Its configuration.
    pub cluster: &'a ClusterConfig,
    /// For a restore to this target.
    pub target: &'a TargetArgs,
    /// Of the whole backup, or a part.
    pub share: Share,
    /// How.
    pub how: &'a HowArgs,
    /// Ends the wait.
    pub stop: &'a CancellationToken,
    /// Whether lines are for people.
    pub quiet: bool,
}

/// What became of it.
#[derive(Debug, Serialize)]
pub struct Thawed {
    /// What was asked for.
    #[serde(flatten)]
    asked: Asked,
    /// What is not readable yet.
    waiting_for: Vec<thaw::Share>,
    /// The plan, if everything that it needs can be read.
    #[serde(skip)]
    pub plan: Option<RestorePlan>,
}

/// Runs the command.
pub async fn run(global: &Global, args: ThawArgs, told: &Told<'_>) -> Result<(), Failure> {
    args.target.check().map_err(Failure::usage)?;
    if !args.wal.is_empty() {
        return run_for_files(global, args, told).await;
    }
    told.of("target", args.target.words());
    let config = setup::config(global)?;
    let stop = setup::stop_on_signals()?;
    let repository = Arc::new(setup::what_is_left(&config.cluster, &stop).await?);
    let job = Job {
        repository: &repository,
        cluster: &config.cluster,
        target: &args.target,
        share: Share::Whole,
        how: &args.how,
        stop: &stop,
        quiet: args.json,
    };
    let thawed = thaw(&job, told).await?;
    setup::tell_fallbacks(&repository);
    if thawed.asked.objects + thawed.asked.prolonged == 0 {
        told.nothing();
    }
    match (args.json, thawed.plan.is_some()) {
        (true, _) => output::json(&thawed)?,
        (false, true) => {
            output::say!("everything that a restore to this target needs can be read: walkeep restore with the same target and --to DIR")
        }
        (false, false) => output::say!("not waited for: `walkeep thaw` with the same target waits, and `walkeep plan` says how far it is"),
    }
    Ok(())
}

/// Thaws single files of the archive.
async fn run_for_files(global: &Global, args: ThawArgs, told: &Told<'_>) -> Result<(), Failure> {
    told.of("wal", args.wal.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "));
    let config = setup::config(global)?;
    let stop = setup::stop_on_signals()?;
    let repository = Arc::new(setup::what_is_left(&config.cluster, &stop).await?);
    let mut objects = Vec::new();
    for file in &args.wal {
        objects.extend(repository.archived_at(&repository.layout().wal_key(*file), 0).await?);
    }
    let frozen = thaw::look(&repository, objects, &stop).await?;
    let job = Job {
        repository: &repository,
        cluster: &config.cluster,
        target: &args.target,
        share: Share::Whole,
        how: &args.how,
        stop: &stop,
        quiet: args.json,
    };
    let (asked, mut rest) = request(&job, frozen, told).await?;
    told.of("objects", asked.objects);
    told.of("bytes", asked.bytes);
    if asked.objects + asked.prolonged == 0 {
        told.nothing();
    }
    if !args.how.no_wait {
        wait(&job, &mut rest).await?;
    }
    let is_ready = rest.is_nothing();
    match args.json {
        true => output::json(&Thawed { asked, waiting_for: rest.shares(), plan: None })?,
        false if is_ready => output::say!("what is stored of these files can be read"),
        false => output::say!("not waited for: the same without --no-wait waits"),
    }
    Ok(())
}

/// Plans, and has thawed what the plan needs, until that can be read; without `--no-wait`.
pub async fn thaw(job: &Job<'_>, told: &Told<'_>) -> Result<Thawed, Failure> {
    let (mut asked, mut met) = (Asked::default(), 0);
    loop {
        let (plan, frozen) = match plan::make(job.repository, job.cluster, job.target, job.share).await {
            Ok(plan) => {
                let frozen = thaw::of_plan(job.repository, &plan, &Needed::Everything, job.stop).await?;
                (Some(plan), frozen)
            }
            Err(failure) => match met_by(job, &failure.error).await? {
                // Whatever that was, waiting for it would not end.
                Some(frozen) if frozen.is_nothing() && met >= TRIES => return Err(failure),
                Some(frozen) => (None, frozen),
                None => return Err(failure),
            },
        };
        met += 1;
        let (now, mut rest) = request(job, frozen, told).await?;
        (asked.objects, asked.bytes) = (asked.objects + now.objects, asked.bytes + now.bytes);
        asked.prolonged += now.prolonged;
        told.of("objects", asked.objects);
        told.of("bytes", asked.bytes);
        if job.how.no_wait && !rest.is_nothing() {
            return Ok(Thawed { asked, waiting_for: rest.shares(), plan: None });
        }
        wait(job, &mut rest).await?;
        if plan.is_some() {
            return Ok(Thawed { asked, waiting_for: Vec::new(), plan });
        }
    }
}

/// What a plan could not read, with what else is known to be needed. `None` if it failed of something else.
async fn met_by(job: &Job<'_>, error: &anyhow::Error) -> Result<Option<Frozen>, Failure> {
    let Some(key) = archived_in(error) else { return Ok(None) };
    let mut objects = match error.downcast_ref::<Unread>() {
        Some(Unread { backup, wal }) => {
            let mut objects = job.repository.archived_wal(wal).await?;
            // What its manifest says is not known while that itself is archived.
            match job.repository.archived_packs(backup, &Needed::Everything).await {
                Err(error) if error.archived().is_some() => {}
                packs => objects.extend(packs?),
            }
            objects
        }
        None => Vec::new(),
    };
    if !objects.iter().any(|object| object.key.as_str() == key) {
        objects.extend(job.repository.archived_at(key, BEHIND).await?);
    }
    objects.sort();
    objects.dedup();
    Ok(Some(thaw::look(job.repository, objects, job.stop).await?))
}

/// The key of the archived object that a command met.
pub fn archived_in(error: &anyhow::Error) -> Option<&str> {
    error.chain().find_map(|cause| cause.downcast_ref::<repository::Error>()?.archived())
}

/// Refuses where a plan could not be made for want of something archived; other failures stay as they are.
pub fn refuse(failure: Failure) -> Failure {
    match archived_in(&failure.error) {
        Some(_) => Failure { exit: Exit::Refused, ..failure },
        None => failure,
    }
}

async fn request(job: &Job<'_>, frozen: Frozen, told: &Told<'_>) -> Result<(Asked, Frozen), Failure> {
    let thaw = job.how.thaw();
    if let Some(class) = frozen.without(thaw.tier) {
        return Err(Failure::usage(anyhow::anyhow!("--tier {}: {class} has no such tier: take standard or bulk", thaw.tier.as_str())));
    }
    if frozen.is_nothing() && frozen.thawed.is_empty() {
        return Ok((Asked::default(), frozen));
    }
    told.begins().await;
    let shares = frozen.shares();
    let (asked, rest) = thaw::ask(job.repository, frozen, thaw, job.stop).await?;
    if !job.quiet {
        for share in shares {
            let (objects, bytes) = (output::count(share.objects, "object"), output::bytes(share.bytes));
            let takes = share.seconds.get(thaw.tier.as_str()).map(|span| took(*span)).unwrap_or_default();
            output::say!("thawing       {objects}, {bytes}, in {}: {} takes {takes}", share.class, thaw.tier.as_str());
        }
        if asked.prolonged > 0 {
            output::say!("thawed        {} before; kept for {} days from now", output::count(asked.prolonged, "object"), thaw.days);
        }
    }
    Ok((asked, rest))
}

async fn wait(job: &Job<'_>, rest: &mut Frozen) -> Result<(), Failure> {
    let total = rest.totals().0;
    let most = job.how.thaw_timeout.unwrap_or_else(|| (rest.longest(job.how.thaw().tier) * 2).max(LEAST));
    let (bar, last) = (Count::new("objects thawed"), Mutex::new((Instant::now(), 0)));
    let tell = |frozen: &Frozen| {
        let done = total - frozen.totals().0;
        bar.show(done);
        let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
        if !job.quiet && done > last.1 && (done == total || last.0.elapsed() >= TELL) {
            *last = (Instant::now(), done);
            output::tell!("thawed {done} of {}", output::count(total, "object"));
        }
    };
    let waited = thaw::wait(job.repository, rest, most, job.stop, &tell).await;
    bar.finish();
    let left = rest.to_string();
    match waited? {
        Waited::Ready => Ok(()),
        Waited::TooLong => {
            let reason = anyhow::anyhow!("after {} there are still archived: {left}", output::duration(most));
            Err(Failure::from(reason).hint("The thaw goes on without this command: run it again to wait on, with a longer --thaw-timeout"))
        }
        Waited::Cancelled => {
            Err(Failure::from(anyhow::anyhow!("stopped; still archived: {left}")).hint("The thaw goes on: run it again to wait on"))
        }
    }
}

/// The refusal of a restore that cannot read what it needs.
pub fn refusal(frozen: &Frozen) -> Failure {
    let reason = format!("{frozen} cannot be read at once, and have to be thawed first ({})", tiers(frozen));
    Failure::refused(reason).hint("--thaw asks for exactly these, waits, and restores; `walkeep thaw` with the same target only thaws")
}

/// The refusal of a restore that may last longer than the copies that it needs.
pub fn too_early(until: SystemTime) -> Failure {
    let until = output::time(until.into());
    Failure::refused(format!("thawed copies that it needs end from {until} on, and it may take longer than that"))
        .hint("--thaw has them kept longer, and restores; `walkeep thaw` with the same target only has them kept")
}

/// What is archived of a plan, and how long each tier takes.
pub fn print(frozen: &Frozen) {
    for share in frozen.shares() {
        let thawing = if share.thawing > 0 { format!("; {} being thawed", share.thawing) } else { String::new() };
        output::say!(
            "archived      {}, {}, in {}{thawing}",
            output::count(share.objects, "object"),
            output::bytes(share.bytes),
            share.class
        );
        output::say!("              thawing takes {}", tiers_of(&share));
    }
}

fn tiers(frozen: &Frozen) -> String {
    frozen.shares().iter().map(|share| format!("{}: {}", share.class, tiers_of(share))).collect::<Vec<_>>().join("; ")
}

fn tiers_of(share: &thaw::Share) -> String {
    let known = Tier::ALL.into_iter().filter_map(|tier| Some((tier.as_str(), share.seconds.get(tier.as_str())?)));
    known.map(|(tier, span)| format!("{tier} {}", took(*span))).collect::<Vec<_>>().join(", ")
}

fn took((from, to): (u64, u64)) -> String {
    let (unit, word) = if to < 3600 { (60, "minutes") } else { (3600, "hours") };
    match from {
        0 => format!("up to {} {word}", to / unit),
        from => format!("{} to {} {word}", from / unit, to / unit),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_for_people() {
        assert_eq!(took((60, 300)), "1 to 5 minutes");
        assert_eq!(took((3 * 3600, 5 * 3600)), "3 to 5 hours");
        assert_eq!(took((0, 48 * 3600)), "up to 48 hours");
    }
}
