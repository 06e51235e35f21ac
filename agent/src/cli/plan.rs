//! `walkeep plan`: what a restore would do, without doing it.

use std::io::IsTerminal;
use std::sync::Arc;

use clap::Args;
use walkeep_core::plan::{Refusal, RestorePlan};
use walkeep_core::target::Transaction;

use super::before::{self, NotOne};
use super::failure::{Exit, Failure};
use super::target::TargetArgs;
use super::{Global, output, setup};
use crate::planning;
use crate::repository::ClusterRepository;

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

/// Runs the command.
pub async fn run(global: &Global, args: PlanArgs) -> Result<(), Failure> {
    args.target.check().map_err(Failure::usage)?;
    let config = setup::config(global)?;
    let stop = setup::stop_on_signals()?;
    let repository = Arc::new(setup::cluster_repository(&config.cluster, &stop).await?);
    let planned = make(&repository, &args.target).await;
    if args.json {
        planned.as_ref().err().map_or(Ok(()), json_refusal)?;
        output::json(&planned?)?;
    } else {
        print(&planned?);
        output::say!("\nEvery object this needs is in the repository. To do it: walkeep restore with the same target and --to DIR.");
    }
    Ok(())
}

/// Makes the plan, showing how far the reading of WAL has come.
pub async fn make(repository: &Arc<ClusterRepository>, target: &TargetArgs) -> Result<RestorePlan, Failure> {
    let catalog = setup::catalog(repository).await?;
    let backups: Vec<_> = catalog.backups().iter().map(|backup| backup.id.clone()).collect();
    let target = match target.sought().map_err(Failure::usage)? {
        Some(sought) => {
            let accident = before::find(repository, &catalog, target.timeline(), &sought).await?;
            target.just_before(accident, &backups)
        }
        None => target.target(&backups),
    };
    let target = target.map_err(Failure::usage)?;
    let mut on_progress = wal_progress("to find the target");
    let planned = planning::plan(repository, &catalog, &target, &mut on_progress).await?;
    planned.map_err(refused)
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
    match refusal.or(not_one).transpose()? {
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
        (true, None) => output::say!("last commit   none after the backup"),
        (false, _) => {}
    }
    if let Some(first) = &plan.first_not_replayed {
        output::say!("not replayed  {}", transaction(first));
    }
    let (files, objects) = (output::count(plan.wal.len() as u64, "file"), output::count(plan.wal_objects, "object"));
    output::say!("WAL           {files}, {objects}, {}", output::bytes(plan.wal_bytes));
    output::say!("to fetch      {} in all; data directory {}", output::bytes(plan.fetch_bytes), output::bytes(plan.restore_bytes));
    for space in &plan.replayed_tablespaces {
        output::say!("tablespace    {} is created by the WAL at {}, which must be free where this is restored", space.oid, space.location);
    }
    for warning in &plan.warnings {
        output::say!("warning       {warning}");
    }
}

fn transaction(transaction: &Transaction) -> String {
    let ended = if transaction.committed { "committed" } else { "aborted" };
    format!("xid {}, {ended} {} at {}", transaction.xid, transaction.time, transaction.start)
}
