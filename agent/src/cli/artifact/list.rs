//! `walkeep artifacts`: what there is, and when the next one is made.

use std::time::Duration;

use chrono::{DateTime, Utc};
use clap::Args;
use serde::Serialize;
use walkeep_core::artifact::{ArtifactName, ArtifactRecord};
use walkeep_core::identifier::printable;
use walkeep_core::schedule::Past;

use crate::artifact::retention;
use crate::cli::failure::Failure;
use crate::cli::{Global, output, setup};
use crate::config::{ClusterConfig, Runs};

/// Shorter is not told.
const SECOND: Duration = Duration::from_secs(1);

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
    /// For which moment one is missing, for more than an hour.
    overdue: Option<DateTime<Utc>>,
}

/// Runs `walkeep artifacts`.
pub async fn list(global: &Global, args: ListArgs) -> Result<(), Failure> {
    let config = setup::config(global)?;
    let stop = setup::stop_on_signals()?;
    let repository = setup::cluster_repository(&config.cluster, &stop).await?;
    let (records, damaged) = repository.artifacts(args.name.as_ref()).await?;
    let now = Utc::now();
    // Of one name alone the others' records were not read.
    let schedules = match &args.name {
        None => schedules(&config.cluster, &records, repository.identity().since, now),
        Some(_) => Vec::new(),
    };
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
            printable(from),
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
    for Scheduled { name, schedule, next, last, overdue } in &schedules {
        let when = schedule.as_ref().map_or_else(|| "by hand".to_owned(), |schedule| schedule.clone());
        let next = next.map_or_else(String::new, |next| format!(", next {}", output::time(next)));
        let last = last.map_or_else(|| ", none made yet".to_owned(), |last| format!(", last {}", output::time(last)));
        output::say!("{name}: {when}{next}{last}");
        if let Some(due) = overdue {
            output::say!("    OVERDUE: none for {}; the agent's log says why", output::time(*due));
        }
    }
    Ok(())
}

fn schedules(cluster: &ClusterConfig, records: &[ArtifactRecord], since: DateTime<Utc>, now: DateTime<Utc>) -> Vec<Scheduled> {
    let of = |name: &str, runs: &Runs, is_of: &dyn Fn(&ArtifactRecord) -> bool| Scheduled {
        name: name.to_owned(),
        schedule: runs.schedule.as_ref().map(|schedule| format!("{} {}", schedule.cron, schedule.zone)),
        next: runs.schedule.as_ref().and_then(|schedule| schedule.next(now)).map(|fire| fire.at),
        last: records.iter().filter(|record| is_of(record)).map(|record| record.ended_at).max(),
        overdue: runs.schedule.as_ref().and_then(|schedule| {
            let done = records.iter().filter(|record| is_of(record)).filter_map(|record| record.due).collect();
            schedule.overdue(now, &Past { done, since, watched: now, tried: None }, false)
        }),
    };
    let artifacts =
        cluster.artifacts.iter().map(|artifact| of(artifact.name.as_str(), &artifact.runs, &|record| record.name == artifact.name));
    artifacts.chain(cluster.dump.iter().map(|dump| of("dump", &dump.runs, &|record| record.name.is_dump()))).collect()
}
