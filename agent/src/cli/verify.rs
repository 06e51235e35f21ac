//! `walkeep verify`: is everything there that restores need?

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use anyhow::anyhow;
use chrono::{DateTime, Utc};
use clap::Args;
use serde::Serialize;
use walkeep_core::layout::BackupId;
use walkeep_core::verify::Severity;

use super::failure::{Exit, Failure};
use super::{Global, output, progress, setup};
use crate::config::{ByteSize, ClusterConfig};
use crate::repository::ClusterRepository;
use crate::transfer::{Stage, Transfer};
use crate::verify::memory::{Memory, Outcome};
use crate::verify::pace::Pace;
use crate::verify::{self, Done, Read, Report, Wish};

/// So many findings are printed for people; all of them are in the JSON.
const PRINTED: usize = 50;

/// Arguments of `walkeep verify`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  walkeep verify                              listings, records, manifests, continuity: seconds
  walkeep verify --deep --rate 50MiB/s        reads all that is stored, and remembers what it read whole
  walkeep verify --deep --older-than 30d      only what was not read whole for 30 days
  walkeep verify --deep --backup 20261121T034712Z-0000000002000028
  walkeep verify --json | jq -r '.findings[] | select(.severity == \"damage\") | .key'

Nothing in the repository is changed. Exit code 4: something is damaged or missing, and is named; 1: it could not be looked at to the end.")]
pub struct VerifyArgs {
    /// Read everything: WAL, packs, index, names
    #[arg(long)]
    deep: bool,
    /// This backup alone, and what it needs
    #[arg(long, value_name = "ID")]
    backup: Option<BackupId>,
    /// Leave out what was read whole less long ago
    #[arg(long, value_name = "TIME", requires = "deep", value_parser = humantime::parse_duration)]
    older_than: Option<Duration>,
    /// Read at most so much a second, such as 50MiB/s
    #[arg(long, value_name = "BYTES", requires = "deep", value_parser = rate)]
    rate: Option<u64>,
    /// Read so many objects at a time
    #[arg(long, value_name = "N", requires = "deep", default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..=64))]
    parallel: u8,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

fn rate(text: &str) -> Result<u64, String> {
    let bytes: ByteSize = text.strip_suffix("/s").unwrap_or(text).parse().map_err(|error: anyhow::Error| error.to_string())?;
    (bytes.0 > 0).then_some(bytes.0).ok_or_else(|| "at least 1B/s".to_owned())
}

/// Runs the command.
pub async fn run(global: &Global, args: VerifyArgs) -> Result<(), Failure> {
    let config = setup::config(global)?;
    let stop = setup::stop_on_signals()?;
    let repository = Arc::new(setup::cluster_repository(&config.cluster, &stop).await?);
    let mut memory = Memory::of(&config.cluster, &repository);
    let pace = Pace::of(args.rate);
    let (count, bar, began) = (progress::Count::new("listing"), OnceLock::new(), Instant::now());
    let reading = |done: &Done, total: u64| {
        let bar = bar.get_or_init(|| {
            count.finish();
            progress::Bar::new("reading")
        });
        let (elapsed, done_bytes) = (began.elapsed(), done.bytes + done.known_bytes);
        bar.show(&Transfer { stage: Stage::Copying, done: done_bytes, total: Some(total), files: done.objects, elapsed, moving: elapsed });
    };
    let read = Read { older_than: args.older_than, pace: &pace, parallel: args.parallel.into(), most: None };
    let wish = Wish {
        backup: args.backup.as_ref(),
        read: args.deep.then_some(read),
        cancel: &stop,
        listed: &|objects| count.show(objects),
        reading: &reading,
    };
    let verified = verify::verify(&repository, &wish, &mut memory).await;
    count.finish();
    if let Some(bar) = bar.get() {
        bar.finish();
    }
    let report = verified?;
    if let Some(backup) = args.backup.as_ref().filter(|_| !report.backup_is_known && report.findings.is_empty()) {
        return Err(Failure::usage(anyhow!("there is no backup {backup}")).hint("`walkeep backups` lists them"));
    }
    match args.json {
        true => output::json(&report)?,
        false => print(&report),
    }
    match report.damaged(Severity::Minor) {
        0 if report.read.is_some_and(|read| read.interrupted) => {
            let hint =
                "what was read is remembered where there is a spool or a cache folder: `walkeep verify --deep --older-than 1d` goes on";
            Err(Failure::from(anyhow!("it was stopped before everything was read")).hint(hint))
        }
        // On a host that reads, what it cannot open is encrypted for others only, or its header is damaged: nobody can tell which.
        0 if args.deep && repository.can_read() && report.not_checked > 0 => {
            let hint = "Give it every identity that things were encrypted for (`walkeep key list`). What none of them opens is lost if its header is damaged.";
            let error = anyhow!("{} not opened by any identity of this host: not checked", are(report.not_checked));
            Err(Failure::from(error).hint(hint))
        }
        0 => Ok(()),
        damaged => Err(Failure {
            exit: Exit::Damaged,
            error: anyhow!("{} damaged or missing", are(damaged)),
            hint: Some("each is named above with what is lost and what to do".to_owned()),
        }),
    }
}

fn are(objects: u64) -> String {
    format!("{} {}", output::count(objects, "object"), if objects == 1 { "is" } else { "are" })
}

fn print(report: &Report) {
    let (broken, damaged) = (report.damaged(Severity::Damage), report.damaged(Severity::Minor));
    let what = report.backup.as_ref().map_or_else(|| "everything".to_owned(), |backup| format!("backup {backup} with all it needs"));
    // What was left out was read whole before.
    let archived = report.read.map_or(0, |read| read.archived);
    let read_all = report.read.is_some_and(|read| !read.interrupted);
    match (broken, damaged) {
        (0, 0) if read_all && archived > 0 => output::say!("{what} that can be read at once is there and whole"),
        (0, 0) if read_all && report.not_checked == 0 => output::say!("{what} is there and whole: all of it was read"),
        (0, 0) if report.read.is_some_and(|read| read.interrupted) => {
            output::say!("{what} is there as far as it was read, which is not to the end")
        }
        (0, 0) if read_all => output::say!("{what} that this host can decrypt is there and whole"),
        (0, 0) => output::say!("{what} is there, as far as listings, records and manifests tell"),
        (0, minor) => output::say!("{what} that restores need is there; {} damaged or missing that none needs", are(minor)),
        (broken, _) => output::say!("NOT everything is there: {} damaged or missing that restores need", are(broken)),
    }
    let listed = &report.listed;
    output::say!(
        "looked at {} ({}) in {}: {}, {}",
        output::count(listed.objects, "object"),
        output::bytes(listed.bytes),
        report.repository,
        output::count(listed.backups, "backup"),
        output::count(listed.segments, "segment")
    );
    if let Some(read) = &report.read {
        output::say!(
            "read {} ({}, {} a second); {} ({}) read whole before and left out",
            output::count(read.objects, "object"),
            output::bytes(read.bytes),
            output::bytes((read.bytes as f64 / report.seconds.max(0.001)) as u64),
            output::count(read.known, "object"),
            output::bytes(read.known_bytes)
        );
    }
    if archived > 0 {
        output::say!("NOT READ: {}, in archived storage classes", output::count(archived, "object"));
    }
    if report.not_checked > 0 {
        output::say!("NOT CHECKED: {}, which this host cannot decrypt", output::count(report.not_checked, "object"));
    }
    for finding in report.findings.iter().take(PRINTED) {
        let word = match finding.severity {
            Severity::Damage => "DAMAGE",
            Severity::Minor => "minor",
            Severity::Note => "note",
        };
        output::say!("\n{word}  {}\n        {}", finding.key, finding.reason);
        if !finding.lost.is_nothing() {
            output::say!("        lost: {}", finding.lost);
        }
        if !finding.advice.is_empty() {
            output::say!("        to do: {}", finding.advice);
        }
    }
    let unprinted = report.findings.len().saturating_sub(PRINTED) as u64 + report.more_findings;
    if unprinted > 0 {
        output::say!("\nand {} more: --json has them", unprinted);
    }
    if listed.foreign > 0 {
        output::say!("\n{} there are none of Walkeep's", output::count(listed.foreign, "object"));
    }
}

/// What was verified from this host, for `walkeep status`.
#[derive(Debug, Serialize)]
pub struct Verified {
    looked_at: Option<DateTime<Utc>>,
    whole_at: Option<DateTime<Utc>>,
    read_at: Option<DateTime<Utc>>,
    damaged: Vec<String>,
    not_checked: u64,
}

impl Verified {
    /// As it is remembered; `None` if nothing was verified yet.
    pub fn of(cluster: &ClusterConfig, repository: &ClusterRepository) -> Option<Self> {
        let outcome = Memory::outcome_of(cluster, repository)?;
        let damaged = outcome.all_damage().map(|finding| finding.key.clone()).collect();
        let Outcome { looked_at, whole_at, read_at, not_checked, .. } = outcome;
        Some(Self { looked_at, whole_at, read_at, damaged, not_checked })
    }

    /// Prints it.
    pub fn print(&self) {
        let ago = |at: &Option<DateTime<Utc>>| {
            at.map_or_else(|| "never".to_owned(), |at| format!("{} ago", output::duration((Utc::now() - at).to_std().unwrap_or_default())))
        };
        match self.damaged.split_first() {
            None => {
                let locked = match self.not_checked {
                    0 => String::new(),
                    objects => format!("; {} not opened here", are(objects)),
                };
                output::say!("verified    nothing missing {}, all read {}{locked}", ago(&self.whole_at), ago(&self.read_at))
            }
            Some((first, more)) => {
                let more = if more.is_empty() { String::new() } else { format!(" and {} more", more.len()) };
                output::say!("verified    DAMAGED: {first}{more}, seen {}: `walkeep verify` tells what is lost", ago(&self.looked_at));
            }
        }
    }
}
