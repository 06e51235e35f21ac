//! `walkeep expire`: what the retention policy lets go, told and asked for before it goes.

mod artifacts;

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow};
use chrono::{DateTime, Utc};
use clap::Args;
use serde::Serialize;
use tokio_util::sync::CancellationToken;
use walkeep_core::TimelineId;
use walkeep_core::audit::Kind;
use walkeep_core::backup::BackupRecord;
use walkeep_core::catalog::{Catalog, Window};
use walkeep_core::expiry::Expiry;
use walkeep_core::retention::{Reason, RetentionPlan};
use walkeep_store::several::Proof;

use super::failure::Failure;
use super::trail::{Told, is_denied};
use super::{Global, ask, output, progress, setup};
use crate::artifact::retention::{self, Share};
use crate::backup::lock::BackupLock;
use crate::config::{ClusterConfig, GRACE, Retention};
use crate::expire::{self, CarriedOut, Look, Scope};
use crate::repository::ClusterRepository;
use crate::repository::expiry::KnownExpiry;

/// Said where the store did not let something go.
const DENIED: &str = "this role needs s3:DeleteObject (packaging/iam/s3-policy-expire.json); what is locked goes when its lock has run out. The next run goes on";

/// Arguments of `walkeep expire`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  walkeep expire --dry-run            what would go and what stays, and why
  walkeep expire                      print it, ask, take it out of the catalog
  walkeep expire --yes                the same from cron
  walkeep expire --undo 3             bring back what number 3 took out, while its time of grace runs

What goes leaves the catalog at once, and can be brought back for the time of grace ([cluster.NAME.retention] grace, a day by default). The first
`walkeep expire` behind that removes the objects. More than half of all backups at once go only if --allow says how many.")]
pub struct ExpireArgs {
    /// Change nothing
    #[arg(long, conflicts_with_all = ["undo", "yes"])]
    dry_run: bool,
    /// Do not ask
    #[arg(long)]
    yes: bool,
    /// Let so many backups go at most, should it be more than half of them
    #[arg(long, value_name = "N")]
    allow: Option<usize>,
    /// Bring back what was taken out under this number
    #[arg(long, value_name = "NUMBER", conflicts_with = "allow")]
    undo: Option<u32>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl ExpireArgs {
    /// What it is to the audit trail.
    pub fn kind(&self) -> Kind {
        if self.undo.is_some() { Kind::UNDO } else { Kind::EXPIRE }
    }
}

/// What `walkeep expire --json` prints.
#[derive(Debug, Serialize)]
struct Report<'a> {
    now: DateTime<Utc>,
    plan: &'a RetentionPlan,
    /// What can be restored of each timeline before and behind it.
    windows: Vec<Windows>,
    /// What left the catalog before, and is not removed yet.
    pending: Vec<&'a Expiry>,
    /// What left it now.
    taken_out: Option<Expiry>,
    carried_out: Option<&'a CarriedOut>,
    /// What goes, or went, of artifacts.
    artifacts: &'a [Share],
    /// The record by which it went.
    artifacts_taken_out: Option<&'a Expiry>,
}

#[derive(Debug, Serialize)]
struct Windows {
    timeline: TimelineId,
    before: Vec<Window>,
    after: Vec<Window>,
}

/// Runs the command.
pub async fn run(global: &Global, args: ExpireArgs, told: &Told<'_>) -> Result<(), Failure> {
    if args.dry_run {
        told.nothing();
    }
    let config = setup::config(global)?;
    let stop = setup::stop_on_signals()?;
    // Of several repositories each must say what is in it: nothing is let go by half of the truth.
    let repository = Arc::new(setup::cluster_repository(&config.cluster, &stop).await?.demanding(Proof::Every));
    if let Some(number) = args.undo {
        told.of("number", number);
        return undo(&repository, number, args.json).await;
    }
    let Some(retention) = &config.cluster.retention else {
        if retention::is_configured(&config.cluster) {
            return of_artifacts(&repository, &config.cluster, &args, told, &stop).await;
        }
        let name = &config.cluster.name;
        return Err(Failure::usage(anyhow!("there is no [cluster.{name}.retention]: everything is kept"))
            .hint(format!("say what is to be kept, for example: [cluster.{name}.retention] window = \"14d\", weekly = 8, monthly = 12")));
    };
    let now = Utc::now();
    let looked = expire::look(&repository, &retention.policy, &config.cluster.spool, now).await;
    let look = looked.map_err(refused_or_failed)?;
    if !args.json {
        print(&look, retention);
    }
    let mut taken_out = None;
    if !args.dry_run {
        if !look.plan.is_empty() {
            told.of("backups", look.plan.expired.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "));
            told.of("segments", look.plan.segments);
            agreed(&look, &args).await?;
        }
        if !look.plan.is_empty() || !look.pending.is_empty() {
            told.begins().await;
        }
        if !look.plan.is_empty() {
            let record = expire::take_out(&repository, &look, now).await.map_err(refused_or_failed)?;
            told.of("number", record.number);
            taken_out = Some(record);
        }
    }
    say_left(taken_out.as_ref(), retention.grace, &args);
    // What is refused of them holds up nothing else.
    let artifacts = artifacts::take_out(&repository, &config.cluster, &args, now, told).await;
    say_left(artifacts.as_ref().ok().and_then(|let_go| let_go.taken_out.as_ref()), retention.grace, &args);
    let carried_out = match args.dry_run {
        true => None,
        false => Some(carry_out(&repository, Scope::Everything, (retention.grace, &config.cluster), &stop, &args).await?),
    };
    if args.json {
        let pending = look.pending.iter().map(|known| &known.record).collect();
        let windows = windows(&look);
        let (artifacts, artifacts_taken_out) =
            artifacts.as_ref().map(|let_go| (let_go.shares.as_slice(), let_go.taken_out.as_ref())).unwrap_or_default();
        let (now, plan, carried_out) = (look.now, &look.plan, carried_out.as_ref());
        output::json(&Report { now, plan, windows, pending, taken_out, carried_out, artifacts, artifacts_taken_out })?;
    }
    let judged = carried_out.as_ref().map_or(Ok(()), |done| judge(done, told));
    artifacts.map(drop).and(judged)
}

/// The same where nothing but artifacts has something that goes.
async fn of_artifacts(
    repository: &Arc<ClusterRepository>,
    cluster: &ClusterConfig,
    args: &ExpireArgs,
    told: &Told<'_>,
    stop: &CancellationToken,
) -> Result<(), Failure> {
    let pending = expire::pending(repository).await?;
    if !args.json {
        print_pending(&pending, GRACE);
    }
    if !args.dry_run && !pending.is_empty() {
        told.begins().await;
    }
    let artifacts = artifacts::take_out(repository, cluster, args, Utc::now(), told).await;
    say_left(artifacts.as_ref().ok().and_then(|let_go| let_go.taken_out.as_ref()), GRACE, args);
    let carried_out = match args.dry_run {
        true => None,
        false => Some(carry_out(repository, Scope::Artifacts, (GRACE, cluster), stop, args).await?),
    };
    if args.json {
        let (artifacts, taken_out) =
            artifacts.as_ref().map(|let_go| (let_go.shares.as_slice(), let_go.taken_out.as_ref())).unwrap_or_default();
        output::json(&serde_json::json!({ "artifacts": artifacts, "artifacts_taken_out": taken_out, "carried_out": carried_out }))?;
    }
    let judged = carried_out.as_ref().map_or(Ok(()), |done| judge(done, told));
    artifacts.map(drop).and(judged)
}

/// Says what left, once it did: whatever fails behind it, it can be brought back.
fn say_left(record: Option<&Expiry>, grace: Duration, args: &ExpireArgs) {
    if let Some(Expiry { number, at, .. }) = record.filter(|_| !args.json) {
        if grace.is_zero() {
            output::say!("\nnumber {number} left the catalog; without a time of grace its objects go at once");
            return;
        }
        let until = output::time(*at + grace);
        output::say!("\nnumber {number} left the catalog; until {until} `walkeep expire --undo {number}` brings it back");
    }
}

async fn carry_out(
    repository: &Arc<ClusterRepository>,
    scope: Scope,
    (grace, cluster): (Duration, &ClusterConfig),
    stop: &CancellationToken,
    args: &ExpireArgs,
) -> Result<CarriedOut, Failure> {
    let bar = progress::Count::new("removing");
    let done = expire::carry_out(repository, scope, (grace, &cluster.spool), Utc::now(), stop, &|objects| bar.show(objects)).await;
    bar.finish();
    let done = done.context("remove what left the catalog").map_err(|error| match is_denied(&error) {
        true => Failure::from(error).hint(DENIED),
        false => Failure::from(error),
    })?;
    if !args.json {
        print_carried_out(&done, BackupLock::holder(&cluster.spool).as_deref());
    }
    Ok(done)
}

fn judge(done: &CarriedOut, told: &Told<'_>) -> Result<(), Failure> {
    told.of("objects_removed", done.objects + done.packs);
    match done.refused {
        0 => Ok(()),
        refused => {
            let error = anyhow!(
                "{} could not be removed; they are out of the catalog, and the next run tries again",
                output::count(refused, "object")
            );
            Err(Failure::from(error).hint(DENIED))
        }
    }
}

fn refused_or_failed(error: anyhow::Error) -> Failure {
    match error.downcast_ref::<expire::Refusal>() {
        Some(refusal @ expire::Refusal::Damaged { .. }) => Failure::refused(refusal.to_string())
            .hint("mend or remove that object; a backup whose record is lost cannot be restored, and may be removed with its folder"),
        Some(refusal @ expire::Refusal::Changed { .. }) => Failure::refused(refusal.to_string()).hint("run it again"),
        None => Failure::from(error.context("look at what is stored")),
    }
}

/// Asks, and refuses what looks like a mistake.
async fn agreed(look: &Look, args: &ExpireArgs) -> Result<(), Failure> {
    let plan = &look.plan;
    let (goes, expected) = (plan.expired.len(), plan.expected());
    if goes > expected && args.allow.is_none_or(|allowed| allowed < goes) {
        let of = output::count((goes + plan.kept.len()) as u64, "backup");
        return Err(Failure::refused(format!("{goes} of {of} would go at once, more than half: nothing was changed"))
            .hint(format!("is the policy what you mean, and are the clocks right? --allow {goes} says that this is wanted")));
    }
    if let Some(before) = look.jumped.filter(|_| args.allow.is_none()) {
        let (before, now) = (output::time(before), output::time(look.now));
        return Err(Failure::refused(format!(
            "the present is taken to be {now}, and the backup before the newest ended {before}: nothing was changed"
        ))
        .hint(format!("did a clock jump, or was there none for so long? If it is right, --allow {goes} says so")));
    }
    if args.yes {
        return Ok(());
    }
    if !ask::possible() {
        return Err(Failure::refused("this leaves the catalog, and nobody is there to be asked: nothing was changed")
            .hint("--yes says that it is wanted"));
    }
    match ask::ask("This leaves the catalog.".to_owned()).await? {
        true => Ok(()),
        false => Err(Failure::refused("not done: nothing was changed")),
    }
}

async fn undo(repository: &ClusterRepository, number: u32, json: bool) -> Result<(), Failure> {
    match expire::undo(repository, number, Utc::now()).await? {
        None => Err(Failure::refused(format!("nothing left the catalog under number {number}, or all of it is gone"))
            .hint("`walkeep expire --dry-run` lists what can be brought back")),
        Some((_, false)) => Err(Failure::refused(format!("the time of grace of number {number} is over: its objects are being removed"))),
        Some((record, true)) if json => Ok(output::json(&record)?),
        Some((record, true)) => {
            output::say!("number {number} is taken back: {} are in the catalog again", content(&record));
            output::say!("the next expire decides by the policy again: `walkeep keep` what is to stay, or change it before");
            let catalog = setup::catalog(repository).await?;
            let on_path = |backup: &BackupRecord| {
                let paths = catalog.timelines().into_iter().filter_map(|timeline| catalog.history(timeline));
                paths.into_iter().any(|path| catalog.is_on(backup, &path) && catalog.reach(&path, backup.start_lsn).to >= backup.stop_lsn)
            };
            let lacking: Vec<_> = record.backups.iter().filter(|id| catalog.backup(id).is_none_or(|backup| !on_path(backup))).collect();
            if let Some(first) = lacking.first() {
                return Err(Failure::refused(format!("{first} and all in all {} lack WAL of their own range", lacking.len()))
                    .hint("another number may have taken it out: `walkeep expire --dry-run` lists them; undo it too"));
            }
            Ok(())
        }
    }
}

fn print(look: &Look, retention: &Retention) {
    let Look { plan, catalog, .. } = look;
    if let Some(host) = look.clock_ahead {
        output::tell!(
            "note: this host's clock shows {}; the newest that is known of the server is of {}, and the window is counted from there",
            output::time(host),
            output::time(look.now)
        );
    }
    output::say!("of what is within reach every second since {} stays", output::time(plan.window_from));
    let mut table = output::table(&["", "backup", "label", "ended", "why"]);
    for backup in catalog.backups() {
        let kept = plan.kept.iter().find(|kept| kept.id == backup.id);
        let why = kept.map(|kept| kept.reasons.iter().map(words).collect::<Vec<_>>().join(", ")).unwrap_or_default();
        let verb = if kept.is_some() { "stays" } else { "GOES" };
        table.add_row([verb.to_owned(), backup.id.to_string(), backup.label.clone(), output::time(backup.ended_at), why]);
    }
    output::say!("{table}");
    for timeline in &plan.unknown {
        output::tell!("note: the history of timeline {timeline} is not stored: all of its WAL stays");
    }
    print_pending(&look.pending, retention.grace);
    if plan.is_empty() {
        output::say!("nothing goes");
        return;
    }
    let referenced = |record: &&BackupRecord| plan.expired.contains(&record.id);
    let stored: u64 = catalog.backups().iter().filter(referenced).map(|record| record.bytes_stored).sum();
    output::say!(
        "{} go, which added {} when they were taken (what others use of it stays), and {} of WAL, {}",
        output::count(plan.expired.len() as u64, "backup"),
        output::bytes(stored),
        output::count(plan.segments, "segment"),
        output::bytes(plan.wal_bytes)
    );
    for windows in windows(look) {
        let changed = windows.before != windows.after;
        if changed {
            output::say!("\ntimeline {}: within reach behind it", windows.timeline);
            reachable(&windows.after);
            output::say!("  before it");
            reachable(&windows.before);
        }
    }
}

fn print_pending(pending: &[KnownExpiry], grace: Duration) {
    for KnownExpiry { record, end, .. } in pending {
        let state = match end {
            None if record.at + grace <= Utc::now() => {
                format!("its time of grace is over: --undo {} brings it back as long as nothing of it was removed", record.number)
            }
            None => format!("--undo {} brings it back until {}", record.number, output::time(record.at + grace)),
            Some(_) => "being removed".to_owned(),
        };
        output::say!("number {} left the catalog {}: {}; {state}", record.number, output::time(record.at), content(record));
    }
}

/// What left with a record, in words.
fn content(record: &Expiry) -> String {
    let artifacts = output::count(record.artifacts.len() as u64, "artifact");
    match (record.is_of_artifacts(), record.artifacts.is_empty()) {
        (true, _) => artifacts,
        (false, true) => format!("{} and WAL", output::count(record.backups.len() as u64, "backup")),
        (false, false) => format!("{}, WAL and {artifacts}", output::count(record.backups.len() as u64, "backup")),
    }
}

fn reachable(windows: &[Window]) {
    if windows.is_empty() {
        output::say!("    nothing");
    }
    for window in windows {
        output::say!("    from {} ({}) to {}", output::time(window.earliest.time), window.earliest.lsn, window.latest);
    }
}

fn windows(look: &Look) -> Vec<Windows> {
    let of = |catalog: &Catalog, timeline: TimelineId| catalog.history(timeline).map(|path| catalog.windows(&path).0).unwrap_or_default();
    let one = |timeline: TimelineId| Windows { timeline, before: of(&look.catalog, timeline), after: of(&look.after, timeline) };
    look.catalog.timelines().into_iter().map(one).collect()
}

fn words(reason: &Reason) -> String {
    match reason {
        Reason::Held(keep) => format!("kept {}", output::kept(keep)),
        Reason::Window => "in the window".into(),
        Reason::BeginsWindow => "the window begins with it".into(),
        Reason::Daily => "last of a day".into(),
        Reason::Weekly => "last of a week".into(),
        Reason::Monthly => "last of a month".into(),
        Reason::Yearly => "last of a year".into(),
        Reason::Minimum => "minimum_backups".into(),
        Reason::Unknown => "its timeline's history is not stored".into(),
    }
}

fn print_carried_out(done: &CarriedOut, running: Option<&str>) {
    for waits in &done.waits {
        match (&waits.until, &waits.known, &waits.for_backup) {
            (Some(until), None, _) => output::say!("number {}: its objects go behind {}", waits.number, output::time(*until)),
            (Some(until), Some(known), _) => output::tell!(
                "note: number {}: its objects stay until {}: by this host's clock that is over, but the newest that is known of the server and the store is of {}; \
                 the next backup may settle it",
                waits.number,
                output::time(*until),
                output::time(*known)
            ),
            (None, _, Some(backup)) => {
                let what = running.map_or_else(
                    || "was interrupted, or another host takes it".to_owned(),
                    |holder| format!("may be under way here ({holder}), or was interrupted, or another host takes it"),
                );
                let given_up = waits.given_up.map(output::time).unwrap_or_default();
                output::say!(
                    "number {}: its objects stay, as backup {backup} may use them, which {what}: until it ends, or {given_up}",
                    waits.number
                )
            }
            (None, _, None) => {}
        }
    }
    if done.objects > 0 || done.packs > 0 {
        output::say!(
            "removed {} of {}, {} and WAL, and {} that nothing needs any more, {}",
            output::count(done.objects, "object"),
            output::count(done.backups.len() as u64, "backup"),
            output::count(done.artifacts.len() as u64, "artifact"),
            output::count(done.packs, "pack"),
            output::bytes(done.pack_bytes)
        );
    }
    if let Some(why) = &done.packs_wait {
        output::tell!("warning: packs were not looked through: {why}");
    }
    for named in &done.refused_named {
        output::tell!("not removed: {named}");
    }
}
