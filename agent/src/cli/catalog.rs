//! `walkeep status`, `backups`, `timelines`: what is in the repository, for people and as JSON.

use std::sync::Arc;

use clap::Args;
use serde::Serialize;
use walkeep_core::backup::BackupRecord;
use walkeep_core::catalog::{Catalog, GapReport, TimelineReport};
use walkeep_core::picture::Picture;
use walkeep_core::safety::{self, Safety};

use super::drill::LastDrill;
use super::failure::Failure;
use super::picture::PictureArgs;
use super::schedules::{self, ScheduleReport};
use super::slot::{self, SlotReport};
use super::stored::Stored;
use super::verify::Verified;
use super::{Global, fleet, output, setup};
use crate::backup::lock::BackupLock;
use crate::copies::{self, PlaceReport};

/// Arguments of `walkeep status`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  walkeep status
  walkeep status --json | jq -r .safety.level
  walkeep status --all                       every cluster of the configuration and its repositories, a line each
  walkeep status --svg window.svg            the picture of it, for a browser")]
pub struct StatusArgs {
    #[command(flatten)]
    picture: PictureArgs,
    /// Every cluster of the configuration, and every other one in their repositories, a line each
    #[arg(long, conflicts_with = "svg")]
    all: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Arguments of `walkeep backups`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  walkeep backups --json | jq -r '.[-1].id'")]
pub struct BackupsArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Arguments of `walkeep timelines`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  walkeep timelines")]
pub struct TimelinesArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What `walkeep status --json` prints.
#[derive(Debug, Serialize)]
struct Status {
    cluster: String,
    /// Whether what was committed can be had back.
    safety: Safety,
    repository: String,
    /// Each of several; none with one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    repositories: Vec<PlaceReport>,
    system_identifier: walkeep_core::SystemIdentifier,
    major_version: walkeep_core::MajorVersion,
    segment_bytes: u64,
    backups: usize,
    newest_backup: Option<BackupRecord>,
    timelines: Vec<TimelineReport>,
    gaps: Vec<GapReport>,
    schedules: Vec<ScheduleReport>,
    /// Who takes a backup on this host now.
    backup_running: Option<String>,
    /// What the newest drill said, whoever carried it out.
    last_drill: Option<LastDrill>,
    agent: &'static str,
    slot: Option<SlotReport>,
    /// What was verified from this host, and when.
    verified: Option<Verified>,
    /// How much is stored, as it was counted then.
    stored: Vec<Stored>,
    #[serde(skip_serializing_if = "Option::is_none")]
    picture: Option<Picture>,
}

async fn load(global: &Global) -> Result<(crate::config::Config, crate::repository::ClusterRepository, Catalog), Failure> {
    let config = setup::config(global)?;
    let stop = setup::stop_on_signals()?;
    let repository = setup::what_is_left(&config.cluster, &stop).await?;
    let catalog = setup::catalog(&repository).await?;
    Ok((config, repository, catalog))
}

/// Runs `walkeep status`.
pub async fn status(global: &Global, args: StatusArgs) -> Result<(), Failure> {
    if args.all {
        return fleet::show(global, args.json).await;
    }
    args.picture.check()?;
    let (config, repository, catalog) = load(global).await.inspect_err(|_| {
        // What it would say of the repository cannot be said; this can.
        if let Some(text) = setup::config(global).ok().and_then(|config| slot::given_up(&config.cluster)) {
            output::tell!("slot        {text}");
        }
    })?;
    let identity = repository.identity();
    let heard = setup::ask_agent(&config.cluster).await;
    let answers = heard.is_some();
    let timelines = catalog.report();
    let stored_at = match catalog.newest_timeline().filter(|_| !answers) {
        Some(timeline) => repository.last_stored(timeline).await?.map(Into::into),
        None => None,
    };
    let picture = Picture::of(&catalog, None);
    let backup_running = BackupLock::holder(&config.cluster.spool);
    let last_drill = LastDrill::of(&repository).await;
    if let Err(error) = &last_drill {
        output::tell!("warning: what drills said is not known: {error:#}");
    }
    let drills_are_known = last_drill.is_ok();
    let status = Status {
        cluster: catalog.cluster().to_string(),
        safety: safety::judge(&timelines, heard.flatten().as_ref(), stored_at),
        repository: config.cluster.repository.url(),
        repositories: copies::reports(&config.cluster, repository.repository().store().several()),
        system_identifier: identity.system_identifier,
        major_version: identity.major_version,
        segment_bytes: identity.segment_size.bytes(),
        backups: catalog.backups().len(),
        newest_backup: catalog.backups().last().cloned(),
        timelines,
        gaps: catalog.gap_reports(),
        schedules: schedules::report(&config.cluster, catalog.backups(), identity.since, backup_running.is_some()),
        backup_running,
        last_drill: last_drill.ok().flatten(),
        agent: if answers { "answers" } else { "does not answer" },
        slot: slot::report(&config.cluster).await,
        verified: Verified::of(&config.cluster, &Arc::new(repository.clone())),
        stored: Stored::of(&config.cluster, &Arc::new(repository.clone())),
        picture: args.picture.for_json(&picture),
    };
    if args.json {
        output::json(&status)?;
        return write_picture(&args, &picture, &status.cluster);
    }
    output::say!("{}: {}", status.safety.level, status.safety.text);
    status.safety.more.iter().for_each(|more| output::say!("    {more}"));
    output::say!("\ncluster     {} (PostgreSQL {}, system identifier {})", status.cluster, status.major_version, status.system_identifier);
    match status.repositories.as_slice() {
        [] => output::say!("repository  {}", status.repository),
        several => several.iter().for_each(print_repository),
    }
    if let Some(verified) = &status.verified {
        verified.print();
    }
    for stored in &status.stored {
        output::say!("stored      {}", stored.words(status.stored.len() > 1, chrono::Utc::now()));
    }
    output::say!("agent       {} on {}", status.agent, config.cluster.socket.display());
    if let Some(slot) = &status.slot {
        output::say!("slot        {}", slot.text);
    }
    match &status.newest_backup {
        Some(backup) => {
            let age = (chrono::Utc::now() - backup.ended_at).to_std().unwrap_or_default();
            output::say!("backups     {}, the newest {} ended {} ago", status.backups, backup.id, output::duration(age));
        }
        None => output::say!("backups     none: nothing can be restored yet; take one with `walkeep backup`"),
    }
    if let Some(holder) = &status.backup_running {
        output::say!("            one is being taken: {holder}");
    }
    schedules::print(&status.schedules, answers);
    if drills_are_known {
        output::say!("drill       {}", LastDrill::words(status.last_drill.as_ref(), chrono::Utc::now()));
    }
    for report in &status.timelines {
        print_timeline(report);
    }
    print_gaps(&status.gaps);
    args.picture.draw(&picture);
    write_picture(&args, &picture, &status.cluster)
}

fn write_picture(args: &StatusArgs, picture: &Option<Picture>, cluster: &str) -> Result<(), Failure> {
    args.picture.write(picture, &format!("What can be restored of {cluster}"))
}

fn print_repository(report: &PlaceReport) {
    let what = if report.primary { "repository " } else { "           " };
    let answers = if report.answers { "answers" } else { "DOES NOT ANSWER" };
    let lag = match (report.queue_objects, report.behind_seconds) {
        (Some(0), _) if report.compared_at.is_some() || report.primary => ", nothing waits for it".to_owned(),
        (Some(0), _) => ", nothing is known to wait for it, not compared yet".to_owned(),
        (Some(objects), behind) => {
            let behind = output::duration(std::time::Duration::from_secs(behind.unwrap_or_default()));
            format!(", BEHIND: {} wait for it, the oldest for {behind}", output::count(objects as u64, "object"))
        }
        (None, _) => ", no agent of this host says how far it is".to_owned(),
    };
    output::say!("{what} {}: {answers}{lag}", report.url);
    if let Some(stuck) = report.stuck_objects.filter(|stuck| *stuck > 0) {
        let stuck = output::count(stuck as u64, "object");
        output::say!(
            "            {stuck} of that no other repository can give, damaged there or archived: the agent's log names them, and `walkeep verify`"
        );
    }
    if let Some(problem) = &report.problem {
        output::say!("            {problem}");
    }
}

fn print_timeline(report: &TimelineReport) {
    let origin = match &report.parent {
        Some((parent, at)) => format!("left timeline {parent} at {at}"),
        None if report.ancestry_known => "the first".into(),
        None => "its history is missing: nothing can be restored along it".into(),
    };
    output::say!("\ntimeline {} ({origin})", report.timeline);
    match report.frontier {
        Some(end) => output::say!("  WAL stored up to {end}"),
        None => output::say!("  no WAL stored"),
    }
    for hole in &report.holes {
        output::say!("  HOLE: WAL from {} to {} is missing", hole.from, hole.to);
    }
    for window in &report.windows {
        let earliest = &window.earliest;
        output::say!(
            "  recoverable from {} ({}) to {}, {}",
            output::time(earliest.time),
            earliest.lsn,
            window.latest,
            output::count(window.backups.len() as u64, "backup")
        );
        if let Some((gap, words)) = window.ends.gap.as_ref().filter(|gap| gap.blocks()).and_then(|gap| Some((gap.name, gap.cause.words()?)))
        {
            output::say!("  GAP: the WAL from {} to {} {words}", gap.from, gap.to);
        }
    }
    if report.windows.is_empty() {
        output::say!("  nothing recoverable: no backup with all its WAL");
    }
    for backup in &report.unusable {
        output::say!("  backup {backup} is of no use: WAL of its own range is missing");
    }
}

fn print_gaps(gaps: &[GapReport]) {
    for GapReport { record, open, missing } in gaps {
        let name = record.name;
        let place = format!("timeline {} from {} to {} ({:?})", name.timeline, name.from, name.to, record.cause);
        let noticed = output::time(record.recorded_at);
        match record.closed_at {
            _ if *open => output::say!("\nGAP: {place}, noticed {noticed}"),
            Some(closed) => output::say!("\nclosed gap: {place}, noticed {noticed}, seen to be filled {}", output::time(closed)),
            None => output::say!("\nclosed gap: {place}, noticed {noticed}, filled since"),
        }
        // Filled in part.
        if missing.iter().any(|range| (range.from, range.to) != (name.from, name.to)) {
            missing.iter().for_each(|range| output::say!("  still missing: from {} to {}", range.from, range.to));
        }
    }
}

/// Runs `walkeep backups`.
pub async fn backups(global: &Global, args: BackupsArgs) -> Result<(), Failure> {
    let (config, repository, catalog) = load(global).await?;
    let mut backups = catalog.backups().to_vec();
    // What was said last of a backup holds.
    for (id, hold) in repository.holds().await? {
        backups.iter_mut().filter(|backup| backup.id == id).for_each(|backup| backup.keep = hold.keep);
    }
    if args.json {
        return Ok(output::json(&backups)?);
    }
    match backups.is_empty() {
        true => output::say!("no backups; take one with `walkeep backup`"),
        false => print_backups(&backups),
    }
    let running = BackupLock::holder(&config.cluster.spool);
    for unfinished in repository.backup_times().await?.into_iter().filter(|found| !found.recorded) {
        let since = output::time(unfinished.first.into());
        let what = running.as_ref().map_or("it was interrupted, or another host takes it", |_| "it is under way, or was interrupted");
        output::say!("{}: begun {since}, no backup yet: {what}", unfinished.id);
    }
    Ok(())
}

fn print_backups(backups: &[BackupRecord]) {
    let mut table = output::table(&["ID", "label", "ended", "timeline", "start", "stop", "size", "stored", "kept"]);
    for backup in backups {
        table.add_row([
            backup.id.to_string(),
            backup.label.clone(),
            output::time(backup.ended_at),
            backup.timeline.to_string(),
            backup.start_lsn.to_string(),
            backup.stop_lsn.to_string(),
            output::bytes(backup.bytes),
            output::bytes(backup.bytes_stored),
            backup.keep.as_ref().map(output::kept).unwrap_or_default(),
        ]);
    }
    output::say!("{table}");
    for (backup, damage) in backups.iter().filter_map(|backup| Some((backup, backup.damage.as_ref()?))) {
        let pages = output::count(damage.pages, "page");
        output::say!("{}: {pages} had wrong checksums on the server (--json names them)", backup.id);
    }
}

/// Runs `walkeep timelines`.
pub async fn timelines(global: &Global, args: TimelinesArgs) -> Result<(), Failure> {
    let (_, _, catalog) = load(global).await?;
    let report = catalog.report();
    if args.json {
        return Ok(output::json(&report)?);
    }
    if report.is_empty() {
        output::say!("no WAL stored yet");
    }
    for timeline in &report {
        print_timeline(timeline);
    }
    Ok(())
}
