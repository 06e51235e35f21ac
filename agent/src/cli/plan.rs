//! `walkeep plan`: what a restore would do, without doing it.

use std::io::IsTerminal;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use serde::Serialize;
use walkeep_core::partial::Needed;
use walkeep_core::plan::estimate::{MeasuredBy, Part};
use walkeep_core::plan::{self, Estimate, ProvenBy, Refusal, RestorePlan};
use walkeep_core::target::{Backwards, ClockReport, Transaction};

use super::before::{self, NotOne};
use super::failure::{Exit, Failure};
use super::target::TargetArgs;
use super::{Global, output, setup, thaw};
use crate::config::ClusterConfig;
use crate::planning::{Around, Share, View};
use crate::postgres::ConnectionParams;
use crate::rates::RatesFile;
use crate::repository::ClusterRepository;

/// How often a plan is made anew while the last WAL is being stored.
const WAITS: u32 = 3;
/// The time between.
const WAIT: Duration = Duration::from_secs(1);

/// Arguments of `walkeep plan`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  walkeep plan                                        to the end of what is stored
  walkeep plan --at '2026-11-20 14:30:00+01'          to a moment; a zone is needed
  walkeep plan --xid 4711 --exclusive                 to just before a transaction
  walkeep plan --lsn 16/B374D848 --timeline 2
  walkeep plan --restore-point before_migration --json
  walkeep plan --before-drop shop.public.orders       to the last commit before the table was dropped

Exit code 3 if the target cannot be reached; the reason and the nearest reachable moment are printed.")]
pub struct PlanArgs {
    #[command(flatten)]
    target: TargetArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// A plan for programs.
#[derive(Serialize)]
struct Shown<'a> {
    #[serde(flatten)]
    plan: &'a RestorePlan,
    /// What of it cannot be read at once.
    archived: Vec<crate::thaw::Share>,
}

/// Runs the command.
pub async fn run(global: &Global, args: PlanArgs) -> Result<(), Failure> {
    args.target.check().map_err(Failure::usage)?;
    let config = setup::config(global)?;
    let stop = setup::stop_on_signals()?;
    let repository = Arc::new(setup::what_is_left(&config.cluster, &stop).await?);
    let planned = make(&repository, &config.cluster, &args.target, Share::Whole).await;
    if args.json {
        planned.as_ref().err().map_or(Ok(()), json_refusal)?;
    }
    let plan = planned?;
    let frozen = crate::thaw::of_plan(&repository, &plan, &Needed::Everything, &stop).await?;
    setup::tell_fallbacks(&repository);
    if args.json {
        output::json(&Shown { plan: &plan, archived: frozen.shares() })?;
        return Ok(());
    }
    print(&plan);
    thaw::print(&frozen);
    match frozen.is_nothing() {
        true => {
            output::say!("\nEvery object this needs is in the repository. To do it: walkeep restore with the same target and --to DIR.")
        }
        false => output::say!(
            "\nEvery object this needs is in the repository. To do it: walkeep restore with the same target, --to DIR and --thaw; or walkeep thaw first."
        ),
    }
    Ok(())
}

/// Makes the plan, showing how far the reading of WAL has come. Refused is also what cannot be planned as something archived has to be read.
pub async fn make(
    repository: &Arc<ClusterRepository>,
    cluster: &ClusterConfig,
    target: &TargetArgs,
    share: Share,
) -> Result<RestorePlan, Failure> {
    // A plan is made without a server, and on hosts where its connection cannot be used: then it is not asked.
    let server = setup::connection(cluster).map_err(|failure| format!("{:#}", failure.error));
    planned(repository, cluster, target, share, server).await.map_err(thaw::refuse)
}

/// The same without asking the server anything.
pub async fn make_alone(
    repository: &Arc<ClusterRepository>,
    cluster: &ClusterConfig,
    target: &TargetArgs,
    share: Share,
) -> Result<RestorePlan, Failure> {
    let server = Err("it is not asked by a drill".to_owned());
    planned(repository, cluster, target, share, server).await.map_err(thaw::refuse)
}

async fn planned(
    repository: &Arc<ClusterRepository>,
    cluster: &ClusterConfig,
    target: &TargetArgs,
    share: Share,
    server: Result<ConnectionParams, String>,
) -> Result<RestorePlan, Failure> {
    let around = Around { server, rates: RatesFile::of(cluster).load(), share };
    let mut waits = 0;
    loop {
        let mut view = View::load(repository.clone()).await?;
        setup::tell_loaded(view.loaded());
        let backups: Vec<_> = view.catalog().backups().iter().map(|backup| backup.id.clone()).collect();
        let target = match target.sought().map_err(Failure::usage)? {
            Some(sought) => {
                let accident = before::find(repository, view.index(), view.catalog(), target.timeline(), &sought).await?;
                target.just_before(accident, &backups)
            }
            None => target.target(&backups),
        };
        let target = target.map_err(Failure::usage)?;
        let mut on_progress = wal_progress("to find the target");
        let planned = view.plan(&target, &around, &mut on_progress).await?;
        match planned {
            // What the server wrote a moment ago is on its way to the repository.
            Err(refusal) if refusal.is_a_matter_of_time() && waits < WAITS => {
                waits += 1;
                tokio::time::sleep(WAIT).await;
            }
            planned => return planned.map_err(refused),
        }
    }
}

/// Shows on a terminal how far the reading of WAL has come, and what for.
pub fn wal_progress(what_for: &'static str) -> impl FnMut(u64, u64) + Send {
    let shown = std::io::stderr().is_terminal();
    move |done, total| {
        if shown {
            let end = if done == total { "\n" } else { "" };
            output::error_line(format_args!("\rreading WAL {what_for}: {done} of {total} segments{end}"));
        }
    }
}

/// A refusal for programs: its words, and what they are made of. Other failures have none.
pub fn json_refusal(failure: &Failure) -> anyhow::Result<()> {
    let refusal = failure.error.downcast_ref::<Refusal>().map(serde_json::to_value);
    let not_one = failure.error.downcast_ref::<NotOne>().map(serde_json::to_value);
    let archived = thaw::archived_in(&failure.error).map(|key| Ok(serde_json::json!({ "archived": key })));
    match refusal.or(not_one).or(archived).transpose()? {
        Some(reason) => output::json(&serde_json::json!({ "refused": failure.error.to_string(), "reason": reason })),
        None => Ok(()),
    }
}

fn refused(refusal: Refusal) -> Failure {
    Failure { exit: Exit::Refused, error: anyhow::Error::new(refusal), hint: None }
}

/// Prints a plan for people.
pub fn print(plan: &RestorePlan) {
    let RestorePlan { backup, .. } = plan;
    output::say!("target        {}", plan.target.kind);
    if let Some(accident) = &plan.target.before {
        output::say!("before        {accident}");
    }
    let age = (chrono::Utc::now() - backup.ended_at).to_std().unwrap_or_default();
    output::say!("backup        {} {:?}, ended {} ({} ago)", backup.id, backup.label, output::time(backup.ended_at), output::duration(age));
    for leg in &plan.path {
        output::say!("timeline      {}: {} to {}", leg.timeline, leg.from, leg.to);
    }
    output::say!("stops at      {}", plan.stop_lsn);
    match (plan.searched, &plan.last_replayed) {
        (true, Some(last)) => output::say!("last commit   {}", transaction(last)),
        (true, None) => output::say!("last commit   none between the backup's start and the stop"),
        (false, _) => {}
    }
    match (plan.searched, &plan.first_not_replayed) {
        (true, Some(first)) => output::say!("not replayed  {}, and what follows", transaction(first)),
        (true, None) => {
            output::say!("not replayed  nothing: no transaction ends behind the stop in what is stored, up to {}", plan.looked_to)
        }
        (false, _) => {}
    }
    match &plan.proven_by {
        Some(ProvenBy::Record { lsn, time }) => output::say!("proven by     the record at {lsn}, of {time}: no other commit came before"),
        Some(ProvenBy::Server(now)) => {
            output::say!("proven by     the server: at {} by its clock it wrote at {}, and all before is stored", now.clock, now.writes_at);
        }
        None => {}
    }
    if let Some(clock) = &plan.clock {
        print_clock(plan, clock);
    }
    let (files, objects) = (output::count(plan.wal.len() as u64, "file"), output::count(plan.wal_objects, "object"));
    output::say!("WAL           {files}, {objects}, {}", output::bytes(plan.wal_bytes));
    output::say!("to fetch      {} in all; data directory {}", output::bytes(plan.fetch_bytes), output::bytes(plan.restore_bytes));
    if let Some(estimate) = &plan.estimate {
        output::say!("time          {}", estimated(estimate));
    }
    for space in &plan.replayed_tablespaces {
        output::say!("tablespace    {} is created by the WAL at {}, which must be free where this is restored", space.oid, space.location);
    }
    for warning in &plan.warnings {
        output::say!("warning       {warning}");
    }
}

/// Positions that have more of the commits of the time asked for than PostgreSQL's own stop.
fn print_clock(plan: &RestorePlan, clock: &ClockReport) {
    for candidate in &clock.candidates {
        let back = output::duration(Duration::from_micros(candidate.back_micros.unsigned_abs()));
        let how = match candidate.cause {
            Backwards::SameMoment => format!("sessions committed at the same moment, {back} apart"),
            Backwards::SetBack => format!("the server's clock was set back by {back}"),
        };
        let gained = output::count(candidate.gained, "more commit");
        let lost = if candidate.lost > 0 { format!(", still without {}", candidate.lost) } else { String::new() };
        let later = if candidate.later > 0 { format!(", and {} of a later time", candidate.later) } else { String::new() };
        let safe = match candidate.safe {
            true => format!("; loses nothing of the time asked for, as far as WAL was read: to {}", plan.looked_to),
            false => String::new(),
        };
        output::say!(
            "or            {}: {gained} of the time asked for{lost}{later}; {how}{safe}",
            plan::option(&plan.target, candidate.lsn)
        );
    }
    if clock.left_out > 0 {
        output::say!("or            ({} left out)", output::count(clock.left_out, "position"));
    }
}

/// How long it may take, and where that is from.
fn estimated(estimate: &Estimate) -> String {
    let parts = [part(&estimate.fetch, "fetch the files"), part(&estimate.replay, "replay the WAL")];
    let total = estimate.seconds.map(|seconds| format!("about {}: ", seconds_text(seconds))).unwrap_or_default();
    format!("{total}{}", parts.join(", "))
}

fn part(part: &Part, what: &str) -> String {
    let bytes = output::bytes(part.bytes);
    let (Some(seconds), Some(rate), Some(measured)) = (part.seconds, part.bytes_per_second, part.measured) else {
        return format!("to {what}, {bytes}: not measured here yet");
    };
    let on = output::bytes(measured.bytes);
    let measured = match measured.by {
        MeasuredBy::Plan => format!("as fast as this plan read {on} of WAL"),
        MeasuredBy::Restore | MeasuredBy::Recovery => format!("measured here {} on {on}", measured.at.format("%Y-%m-%d")),
    };
    format!("{} to {what}, {bytes} at {}/s ({measured})", seconds_text(seconds), output::bytes(rate))
}

fn seconds_text(seconds: u64) -> String {
    if seconds == 0 { "no time".to_owned() } else { output::duration(Duration::from_secs(seconds)) }
}

fn transaction(transaction: &Transaction) -> String {
    let ended = if transaction.committed { "committed" } else { "aborted" };
    format!("xid {}, {ended} {} at {}", transaction.xid, transaction.time, transaction.start)
}
