//! `walkeep verify`: is everything there that restores need?

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use anyhow::anyhow;
use chrono::{DateTime, Utc};
use clap::Args;
use serde::Serialize;
use tokio_util::sync::CancellationToken;
use walkeep_core::layout::BackupId;
use walkeep_core::verify::Severity;

use super::failure::{Exit, Failure};
use super::trail::Told;
use super::{Global, ask, output, progress, setup};
use crate::config::{ByteSize, ClusterConfig, Config};
use crate::copies;
use crate::repository::ClusterRepository;
use crate::transfer::{Stage, Transfer};
use crate::verify::memory::{self, Memory};
use crate::verify::pace::Pace;
use crate::verify::repair::{Outcome, Plan, Step};
use crate::verify::{self, Done, Everywhere, Found, OfOne, Overall, Place, Read, Wish, numbered, repair};

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
  walkeep verify --deep --repair --dry-run    of several repositories: what can be put back from another one
  walkeep verify --json | jq -r '.findings[] | select(.severity == \"damage\") | .key'

Of several repositories each is verified by itself. Nothing is changed without --repair, which puts proven copies where another
repository has something damaged or missing. Exit code 4: something is damaged or missing, and is named; 1: it could not be looked at to the end.")]
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
    /// Put the good copy of another repository where one has something damaged or missing
    #[arg(long)]
    repair: bool,
    /// Only say what a repair would do
    #[arg(long, requires = "repair")]
    dry_run: bool,
    /// Do not ask before a repair
    #[arg(long, requires = "repair")]
    yes: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl VerifyArgs {
    /// Whether something may be changed.
    pub fn repairs(&self) -> bool {
        self.repair
    }
}

fn rate(text: &str) -> Result<u64, String> {
    let bytes: ByteSize = text.strip_suffix("/s").unwrap_or(text).parse().map_err(|error: anyhow::Error| error.to_string())?;
    (bytes.0 > 0).then_some(bytes.0).ok_or_else(|| "at least 1B/s".to_owned())
}

/// Runs the command.
pub async fn run(global: &Global, args: VerifyArgs) -> Result<(), Failure> {
    let opened = Opened::new(global).await?;
    let mut places = opened.places();
    let (report, _) = look(&opened, &args, &mut places, args.deep).await?;
    match args.json {
        true => output::json(&report)?,
        false => print(&report),
    }
    judge(&report, &args, opened.repository.can_read())
}

/// Runs it with `--repair`.
pub async fn mend(global: &Global, args: VerifyArgs, told: &Told<'_>) -> Result<(), Failure> {
    told.nothing();
    let opened = Opened::new(global).await?;
    setup::refuse_past(&opened.config.cluster)?;
    let mut places = opened.places();
    if places.len() < 2 {
        let name = &opened.config.cluster.name;
        return Err(Failure::usage(anyhow!("[cluster.{name}] has one repository: there is no other one to take good copies from"))
            .hint("`walkeep verify` names what is damaged and says what to do; a second [[cluster.NAME.repository]] would have a copy"));
    }
    let (mut report, everywhere) = look(&opened, &args, &mut places, args.deep).await?;
    let mut plan = repair::plan(&everywhere, &report).await?;
    if !args.json {
        print(&report);
        print_plan(&plan);
    }
    let (mut everywhere, mut next) = (everywhere, plan.clone());
    // What was put may be what something else waited for: it goes on as long as that helps.
    while !args.dry_run && !next.steps.is_empty() {
        let is_first = plan.steps.iter().all(|step| step.outcome.is_none());
        match if is_first || !plan.has_all_of(&next) { agreed(&next, &args).await } else { Ok(()) } {
            Err(refused) if is_first => return Err(refused),
            // What was agreed to is done.
            Err(_) => break,
            Ok(()) => {}
        }
        told.something();
        told.of("objects", plan.steps.len());
        told.begins().await;
        let tell = |step: &Step| {
            if !args.json {
                output::say!("{}", step_words(step));
            }
        };
        let done = repair::carry_out(&mut next, &everywhere, &mut places, &opened.stop, &tell).await;
        let put = next.put();
        plan.and(std::mem::take(&mut next));
        told.of("objects", plan.steps.len());
        told.of("objects_put", plan.put());
        // Behind it everything is looked at anew, and what was damaged is read again.
        let behind = match done {
            Ok(()) => look(&opened, &args, &mut places, false).await,
            Err(error) => Err(error.into()),
        };
        match behind {
            Ok((after, seen)) => {
                if put > 0 {
                    next = repair::plan(&seen, &after).await?;
                    plan.without = next.without.clone();
                }
                (report, everywhere) = (after.with_unread_of(&report), seen);
            }
            Err(failure) => {
                // What was done until then was done.
                match args.json {
                    true => output::json(&Repaired { report: &report, repair: &plan })?,
                    false => output::say!("\n{} put; it was not looked at behind that", output::count(plan.put() as u64, "object")),
                }
                return Err(failure);
            }
        }
        if !args.json {
            output::say!("\n{} put; behind it:", output::count(put as u64, "object"));
            print(&report);
            print_plan(&next);
        }
    }
    if args.json {
        output::json(&Repaired { report: &report, repair: &plan })?;
    }
    judge(&report, &args, opened.repository.can_read())
}

/// What `walkeep verify --repair --json` prints: how it is behind the repair, or was before one that did not come to its end.
#[derive(Serialize)]
struct Repaired<'a> {
    #[serde(flatten)]
    report: &'a Overall,
    repair: &'a Plan,
}

/// What the command works with.
struct Opened {
    config: Config,
    stop: CancellationToken,
    repository: Arc<ClusterRepository>,
}

impl Opened {
    async fn new(global: &Global) -> Result<Self, Failure> {
        let config = setup::config(global)?;
        let stop = setup::stop_on_signals()?;
        match setup::cluster_repository(&config.cluster, &stop).await {
            Ok(repository) => Ok(Self { config, stop, repository: Arc::new(repository) }),
            Err(_) if stop.is_cancelled() => Err(stopped()),
            Err(error) => Err(error.into()),
        }
    }

    fn places(&self) -> Vec<Place> {
        Place::all(&self.config.cluster, &self.repository)
    }
}

async fn look(opened: &Opened, args: &VerifyArgs, places: &mut [Place], deep: bool) -> Result<(Overall, Everywhere), Failure> {
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
    // What was read whole less than no time ago is nothing.
    let older_than = args.older_than.filter(|time| !time.is_zero());
    let read = Read { older_than, ..Read::all(&pace, args.parallel.into()) };
    let wish = Wish {
        backup: args.backup.as_ref(),
        read: deep.then_some(read),
        listed: &|objects| count.show(objects),
        reading: &reading,
        behind: &|url| copies::behind_since(&opened.config.cluster, url),
        ..Wish::look(&opened.stop)
    };
    let verified = verify::everywhere(&wish, places).await;
    count.finish();
    if let Some(bar) = bar.get() {
        bar.finish();
    }
    let (report, everywhere) = match verified {
        Err(_) if opened.stop.is_cancelled() => return Err(stopped()),
        verified => verified?,
    };
    if let Some(backup) = args.backup.as_ref().filter(|_| !report.backup_is_known && report.findings.is_empty()) {
        return Err(Failure::usage(anyhow!("there is no backup {backup}")).hint("`walkeep backups` lists them"));
    }
    Ok((report, everywhere))
}

/// Ctrl-C before there was anything to tell.
fn stopped() -> Failure {
    Failure::from(anyhow!("it was stopped before everything was looked at")).hint("nothing is known by it: run it again")
}

/// How the command ends.
fn judge(report: &Overall, args: &VerifyArgs, can_read: bool) -> Result<(), Failure> {
    match report.damaged(Severity::Minor) {
        0 if let Some((repository, error)) = report.problem() => {
            let error = anyhow!("the repository {repository} could not be looked at to the end: {error}");
            Err(Failure::from(error).hint("What could be looked at is there. If it is gone for good, take it out of the configuration."))
        }
        0 if report.read.is_some_and(|read| read.interrupted) => {
            let hint =
                "what was read is remembered where there is a spool or a cache folder: `walkeep verify --deep --older-than 1d` goes on";
            Err(Failure::from(anyhow!("it was stopped before everything was read")).hint(hint))
        }
        // On a host that reads, what it cannot open is encrypted for others only, or its header is damaged: nobody can tell which.
        0 if args.deep && can_read && report.not_checked > 0 => {
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

/// Asks.
async fn agreed(plan: &Plan, args: &VerifyArgs) -> Result<(), Failure> {
    if args.yes {
        return Ok(());
    }
    if !ask::possible() {
        return Err(Failure::refused("this changes what is stored, and nobody is there to be asked: nothing was changed")
            .hint("--yes says that it is wanted"));
    }
    let objects = output::count(plan.steps.len() as u64, "object");
    match ask::ask(format!("This puts {objects}, and takes away what lies there damaged.")).await? {
        true => Ok(()),
        false => Err(Failure::refused("not done: nothing was changed")),
    }
}

fn print_plan(plan: &Plan) {
    if plan.steps.is_empty() && plan.without.is_empty() {
        return;
    }
    let bytes = plan.steps.iter().map(|step| step.bytes).sum();
    output::say!("\nto put from another repository: {} ({})", output::count(plan.steps.len() as u64, "object"), output::bytes(bytes));
    for step in plan.steps.iter().take(PRINTED) {
        let from = step.from.iter().map(ToString::to_string).collect::<Vec<_>>().join(" or ");
        let state = if step.damaged { "damaged" } else { "missing" };
        output::say!("  repository {}: {} ({state}), from {from}", step.repository, step.key);
    }
    if plan.steps.len() > PRINTED {
        output::say!("  and {} more: --json has them", plan.steps.len() - PRINTED);
    }
    for without in plan.without.iter().take(PRINTED) {
        let why = match (without.lacks_others, without.unproven) {
            (_, true) => "another repository lists it, and only a host with an identity can prove it",
            (true, false) => "another repository has it, and something that it names is whole in none",
            (false, false) => "no other repository has it whole",
        };
        output::say!("  repository {}: {}: {why}; it is left as it is", without.repository, without.key);
    }
}

fn step_words(step: &Step) -> String {
    let said = match &step.outcome {
        Some(Outcome::Put) if !step.only_for.is_empty() => format!(
            "put, and read back; LOOK AT IT: none of the recipients that are configured now opens it, and {} does (`walkeep key list`)",
            step.only_for.join(" and ")
        ),
        Some(Outcome::Put) => "put, and read back".to_owned(),
        Some(Outcome::WasWhole) => "whole when it was looked at again: left as it is".to_owned(),
        Some(Outcome::NotDone(reason)) => format!("NOT MENDED, nothing was changed: {reason}"),
        Some(Outcome::Unfinished(reason)) => {
            format!("NOT MENDED: the damaged one was taken away, or may have been, and the next run puts the good one: {reason}")
        }
        None => "not done".to_owned(),
    };
    format!("repository {}: {}: {said}", step.repository, step.key)
}

fn are(objects: u64) -> String {
    format!("{} {}", output::count(objects, "object"), if objects == 1 { "is" } else { "are" })
}

fn of_repositories(count: u64) -> String {
    if count == 1 { "1 repository".to_owned() } else { format!("{count} repositories") }
}

fn print(report: &Overall) {
    let (broken, damaged) = (report.damaged(Severity::Damage), report.damaged(Severity::Minor));
    let what = report.backup.as_ref().map_or_else(|| "everything".to_owned(), |backup| format!("backup {backup} with all it needs"));
    let counted = |of: &dyn Fn(&Found) -> bool| report.findings.iter().filter(|found| of(found)).count() as u64;
    let (elsewhere, unproven) = (counted(&|found| !found.whole_in.is_empty()), counted(&|found| !found.listed_in.is_empty()));
    // What was left out was read whole before.
    let archived = report.read.map_or(0, |read| read.archived);
    let read_all = report.read.is_some_and(|read| !read.interrupted);
    let blind = report.repositories.iter().filter(|one| one.problem.is_some()).count() as u64;
    match (broken, damaged) {
        (0, 0) if blind > 0 => {
            output::say!("nothing is damaged or missing where it was looked; {} could not be looked at to the end", of_repositories(blind))
        }
        (0, 0) if read_all && archived > 0 => output::say!("{what} that can be read at once is there and whole"),
        (0, 0)
            if report.not_checked == 0
                && let Some(read) = report.read.filter(|read| read_all && read.known > 0) =>
        {
            output::say!(
                "{what} is there: {} ({}) read now, and whole; {} ({}) left out, read whole before",
                output::count(read.objects, "object"),
                output::bytes(read.bytes),
                output::count(read.known, "object"),
                output::bytes(read.known_bytes)
            )
        }
        (0, 0) if read_all && report.not_checked == 0 => output::say!("{what} is there and whole: all of it was read"),
        (0, 0) if report.read.is_some_and(|read| read.interrupted) => {
            output::say!("{what} is there as far as it was read, which is not to the end")
        }
        (0, 0) if read_all => {
            output::say!(
                "{what} that this host can decrypt is there and whole; of all else listings and records tell that it is there, and no more"
            )
        }
        (0, 0) if report.not_checked > 0 => {
            output::say!("{what} is there, as far as listings, records and those manifests tell that can be read here")
        }
        (0, 0) => output::say!("{what} is there, as far as listings, records and manifests tell"),
        (0, minor) if unproven > 0 && elsewhere + unproven == minor => {
            output::say!(
                "nothing is known to be lost of {what}; {} damaged or missing in one repository, and whether another one has it whole cannot be told from here of {unproven}",
                are(minor)
            )
        }
        (0, minor) if elsewhere == minor => {
            output::say!("{what} is whole in one repository at least; {} damaged or missing in another, and to be mended", are(minor))
        }
        (0, minor) => output::say!("{what} that restores need is there; {} damaged or missing that none needs", are(minor)),
        (broken, _) => output::say!("NOT everything is there: {} damaged or missing that restores need", are(broken)),
    }
    for OfOne { number, url, listed, damaged, refused, problem, .. } in &report.repositories {
        let place = if report.repositories.len() > 1 { format!("repository {number}, {url}") } else { url.clone() };
        match problem {
            Some(problem) if *refused == 0 => {
                output::say!("NOT LOOKED AT: {place}: {problem}");
                continue;
            }
            Some(problem) => output::say!("NOT READ: {} in {place}: {problem}", output::count(*refused, "object")),
            None => {}
        }
        let bad =
            if report.repositories.len() > 1 && *damaged > 0 { format!("; {} damaged or missing", are(*damaged)) } else { String::new() };
        output::say!(
            "looked at {} ({}) in {place}: {}, {}{bad}",
            output::count(listed.objects, "object"),
            output::bytes(listed.bytes),
            output::count(listed.backups, "backup"),
            output::count(listed.segments, "segment")
        );
    }
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
    for Found { repository, finding, .. } in report.findings.iter().take(PRINTED) {
        let word = match finding.severity {
            Severity::Damage => "DAMAGE",
            Severity::Minor => "minor",
            Severity::Note => "note",
        };
        let place = if report.repositories.len() > 1 { format!("{repository}: ") } else { String::new() };
        output::say!("\n{word}  {place}{}\n        {}", finding.key, finding.reason);
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
    if report.listed.foreign > 0 {
        output::say!("\n{} there are none of Walkeep's", output::count(report.listed.foreign, "object"));
    }
}

/// What was verified from this host, for `walkeep status`.
#[derive(Debug, Serialize)]
pub struct Verified {
    looked_at: Option<DateTime<Utc>>,
    whole_at: Option<DateTime<Utc>>,
    read_at: Option<DateTime<Utc>>,
    damaged: Vec<String>,
    /// Damaged or missing in one repository and whole in another.
    to_mend: Vec<String>,
    /// The same, listed in another and not proven there, as this host cannot decrypt it.
    unproven: Vec<String>,
    /// Whole, and locked for less than was promised.
    short_locks: u64,
    not_checked: u64,
}

impl Verified {
    /// As it is remembered of all repositories; `None` if one of them was never looked at.
    pub fn of(cluster: &ClusterConfig, repository: &Arc<ClusterRepository>) -> Option<Self> {
        let outcomes: Option<Vec<memory::Outcome>> =
            numbered(repository).map(|(_, repository)| Memory::outcome_of(cluster, &repository)).collect();
        let outcomes = outcomes?;
        let oldest = |of: &dyn Fn(&memory::Outcome) -> Option<DateTime<Utc>>| outcomes.iter().map(of).min().flatten();
        // Each once: first what is lost, then what another repository has.
        let keys = |wanted: (bool, bool)| {
            let of_one = |outcome: &memory::Outcome| -> Vec<String> {
                let keys = outcome.all_damage().map(|finding| finding.key.clone());
                let had = |key: &String| (outcome.whole_elsewhere.contains(key), outcome.listed_elsewhere.contains(key));
                keys.filter(|key| had(key) == wanted).collect()
            };
            let mut keys: Vec<String> = outcomes.iter().flat_map(of_one).collect();
            keys.sort();
            keys.dedup();
            keys
        };
        Some(Self {
            looked_at: oldest(&|outcome| outcome.looked_at),
            whole_at: oldest(&|outcome| outcome.whole_at),
            read_at: oldest(&|outcome| outcome.read_at),
            damaged: keys((false, false)),
            to_mend: keys((true, false)),
            unproven: keys((false, true)),
            short_locks: outcomes.iter().map(memory::Outcome::short_locks).sum(),
            not_checked: outcomes.iter().map(|outcome| outcome.not_checked).sum(),
        })
    }

    /// Prints it.
    pub fn print(&self) {
        let ago = |at: &Option<DateTime<Utc>>| {
            at.map_or_else(|| "never".to_owned(), |at| format!("{} ago", output::duration((Utc::now() - at).to_std().unwrap_or_default())))
        };
        match self.damaged.split_first() {
            None if let Some(first) = self.unproven.first() => {
                let others = self.unproven.len() + self.to_mend.len() - 1;
                let more = if others > 0 { format!(" and {others} more") } else { String::new() };
                let mend = "`walkeep verify` on a host with an identity tells whether it is whole there";
                output::say!(
                    "verified    DAMAGED in one repository, listed in another: {first}{more}, seen {}: {mend}",
                    ago(&self.looked_at)
                );
            }
            None if let Some(first) = self.to_mend.first() => {
                let more = if self.to_mend.len() > 1 { format!(" and {} more", self.to_mend.len() - 1) } else { String::new() };
                let mend = "`walkeep verify --repair` mends it";
                output::say!(
                    "verified    DAMAGED in one repository, whole in another: {first}{more}, seen {}: {mend}",
                    ago(&self.looked_at)
                );
            }
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
        if self.short_locks > 0 {
            let objects = are(self.short_locks);
            output::say!("locks       {objects} whole and locked for less than object_lock promises: `walkeep verify` names them");
        }
    }
}
