//! `walkeep drills`: what drills said, and whole reports.

use anyhow::anyhow;
use chrono::{DateTime, Utc};
use clap::{Args, ValueEnum};
use serde::Serialize;
use walkeep_core::drill::{DrillId, DrillRecord, Form, Verdict};
use walkeep_core::identifier::printable;
use walkeep_core::schedule::Past;

use crate::cli::failure::Failure;
use crate::cli::{Global, output, setup};
use crate::config::ClusterConfig;

/// Arguments of `walkeep drills`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  walkeep drills
  walkeep drills 20261121T034712Z-5f0c12ab
  walkeep drills --newest --form html > drill.html")]
pub struct ListArgs {
    /// Print the report of this drill
    id: Option<DrillId>,
    /// Print the report of the newest drill
    #[arg(long, conflicts_with = "id")]
    newest: bool,
    /// How the report is written
    #[arg(long, value_enum, default_value_t = FormArg::Text)]
    form: FormArg,
    /// How many are listed, the newest
    #[arg(long, default_value_t = 20)]
    last: usize,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum FormArg {
    /// For a terminal
    Text,
    /// For a browser
    Html,
    /// For programs
    Json,
}

#[derive(Debug, Serialize)]
struct Listed<'a> {
    drills: &'a [DrillRecord],
    damaged: &'a [String],
    next: Option<DateTime<Utc>>,
    /// For which moment one is missing, for more than an hour.
    overdue: Option<DateTime<Utc>>,
}

/// Runs `walkeep drills`.
pub async fn list(global: &Global, args: ListArgs) -> Result<(), Failure> {
    let config = setup::config(global)?;
    let stop = setup::stop_on_signals()?;
    let repository = setup::what_is_left(&config.cluster, &stop).await?;
    let (records, damaged) = match &args.id {
        None => repository.drills(if args.newest { 1 } else { args.last }).await?,
        Some(id) => (repository.drill(id).await?.into_iter().collect(), Vec::new()),
    };
    if args.newest || args.id.is_some() {
        let record = records.last().ok_or_else(|| match &args.id {
            Some(id) => Failure::from(anyhow!("there is no drill {id}; `walkeep drills` lists them")),
            None => Failure::from(anyhow!("there was no drill yet; `walkeep drill` carries one out")),
        })?;
        let form = match args.form {
            _ if args.json => Form::Json,
            FormArg::Text => Form::Text,
            FormArg::Html => Form::Html,
            FormArg::Json => Form::Json,
        };
        let report = repository.drill_report(record, form).await?;
        output::say!("{}", String::from_utf8_lossy(&report).trim_end());
        return Ok(());
    }
    let (next, overdue) = schedule(&config.cluster, &records, repository.identity().since, Utc::now());
    if args.json {
        return Ok(output::json(&Listed { drills: &records, damaged: &damaged, next, overdue })?);
    }
    let mut table = output::table(&["drill", "began", "verdict", "asked for", "RTO", "RPO", "checks", ""]);
    for DrillRecord { facts, .. } in &records {
        let seconds = |seconds: Option<f64>| seconds.map_or_else(String::new, |seconds| format!("{seconds:.0} s"));
        let checks = format!("{} of {}", facts.checks.passed, facts.checks.passed + facts.checks.failed);
        table.add_row([
            facts.id.to_string(),
            output::time(facts.started_at),
            facts.verdict.to_string(),
            printable(&facts.asked),
            seconds(facts.rto_seconds),
            seconds(facts.rpo_seconds),
            checks,
            printable(facts.reason.as_deref().unwrap_or_default()),
        ]);
    }
    if records.is_empty() {
        output::say!("no drills")
    } else {
        output::say!("{table}")
    }
    for key in &damaged {
        output::tell!("warning: {key} cannot be believed and is left out");
    }
    if let Some(next) = next {
        output::say!("next by schedule: {}", output::time(next));
    }
    if let Some(due) = overdue {
        output::say!("OVERDUE: none for {}; the agent's log says why", output::time(due));
    }
    Ok(())
}

fn schedule(
    cluster: &ClusterConfig,
    records: &[DrillRecord],
    since: DateTime<Utc>,
    now: DateTime<Utc>,
) -> (Option<DateTime<Utc>>, Option<DateTime<Utc>>) {
    let Some(schedule) = &cluster.drill.schedule else { return (None, None) };
    let ended = records.iter().filter(|record| record.facts.verdict != Verdict::Cancelled);
    let done = ended.filter_map(|record| record.facts.due).collect();
    let past = Past { done, since, watched: now, tried: None };
    (schedule.next(now).map(|fire| fire.at), schedule.overdue(now, &past, false))
}
