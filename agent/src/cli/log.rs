//! `walkeep log`: what the WAL says happened when, for people and as JSON.

use std::sync::Arc;

use anyhow::{Result, ensure};
use clap::Args;
use serde::Serialize;
use walkeep_core::catalog::{Catalog, WalRange};
use walkeep_core::identifier::shown;
use walkeep_core::journal::{Edge, Entry, Happening, Minute, Window, rate};
use walkeep_core::names::NamedEntry;
use walkeep_core::picture::{Picture, Told};
use walkeep_core::target::parse_time;
use walkeep_core::{Lsn, PgTimestamp, TimelineHistory, TimelineId};

use super::failure::Failure;
use super::picture::PictureArgs;
use super::{Global, output, plan, removal, setup};
use crate::index::reader::Index;
use crate::journal::{self, Account};
use crate::names;

/// Arguments of `walkeep log`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  walkeep log                                            since the newest backup began
  walkeep log --dropped --from '2026-11-20 14:00:00+01'  what was dropped or truncated since
  walkeep log --restore-points
  walkeep log --from 16/B0000000 --to 16/B374D848 --json
  walkeep log --from '2026-11-20 14:00:00+01' --svg accident.svg
  walkeep plan --lsn 16/B374D848 --exclusive             just before an entry of that LSN
  walkeep plan --before-drop shop.public.orders          the same by the table's name

What happened is told by the index of the WAL (`walkeep index`), and where that does not reach by the WAL itself.
WAL has no names of relations: these are from the catalog snapshots that the agent and each backup store. A relation that came
and went between two snapshots is told by the number of its files, tablespace/database/file, as in pg_class.relfilenode.
Exit code 3 if no WAL of the timeline is stored.")]
pub struct LogArgs {
    /// From this moment, with its zone, or this LSN [default: the start of the newest backup before --to]
    #[arg(long, value_name = "TIME|LSN")]
    from: Option<String>,
    /// To this moment, with its zone, or before this LSN [default: the end of what is stored]
    #[arg(long, value_name = "TIME|LSN")]
    to: Option<String>,
    /// Along this timeline's history [default: the newest]
    #[arg(long, value_name = "N")]
    timeline: Option<TimelineId>,
    /// Only restore points
    #[arg(long)]
    restore_points: bool,
    /// Only dropped and truncated relations and dropped databases, and where the WAL alone does not tell
    #[arg(long)]
    dropped: bool,
    /// Read the WAL itself, whatever the index tells
    #[arg(long)]
    no_index: bool,
    #[command(flatten)]
    picture: PictureArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What `walkeep log --json` prints.
#[derive(Debug, Serialize)]
struct Log<'a> {
    cluster: String,
    timeline: TimelineId,
    /// The WAL that was read.
    read: WalRange,
    holes: &'a [WalRange],
    entries: &'a [NamedEntry<'a>],
    /// How many catalog snapshots there were to have names from.
    snapshots: usize,
    damaged_snapshots: &'a [String],
    minutes: &'a [Minute],
    checkpoints: u64,
    entries_left_out: u64,
    transactions_not_followed: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    picture: Option<Picture>,
}

/// Runs the command.
pub async fn run(global: &Global, args: LogArgs) -> Result<(), Failure> {
    let window = window(&args).map_err(Failure::usage)?;
    args.picture.check()?;
    let config = setup::config(global)?;
    let stop = setup::stop_on_signals()?;
    let repository = Arc::new(setup::what_is_left(&config.cluster, &stop).await?);
    let catalog = setup::catalog(&repository).await?;
    let path = path(&catalog, args.timeline)?;
    let timeline = path.timeline();
    let window = match (window.from, journal::backup_before(&catalog, &path, window.to)) {
        (None, Some(newest)) => Window { from: Some(Edge::Lsn(newest.start_lsn)), ..window },
        _ => window,
    };
    let mut on_progress = plan::wal_progress("to tell what happened");
    let index = match args.no_index {
        true => Index::none(repository.clone()),
        false => Index::open_along(repository.clone(), &path).await.map_err(anyhow::Error::new)?,
    };
    let account = journal::read(&repository, &index, &catalog, &path, window, &mut on_progress).await?;
    setup::tell_damaged(&index);
    let account = account.ok_or_else(|| Failure::refused(format!("no WAL of timeline {timeline} is stored")))?;
    let read = WalRange { from: account.from, to: account.to };
    let all: Vec<&Entry> = account.summary.entries.iter().collect();
    let (entries, asked) = names::name_entries(&repository, &path, &all, &account.summary.moves).await?;
    let told = Told { read, path: &path, entries: &entries, clock: &account.summary.clock };
    let picture = Picture::of(&catalog, Some(told));
    let write_picture = || args.picture.write(&picture, &format!("What happened to {}, and what can be restored", catalog.cluster()));
    let entries: Vec<NamedEntry<'_>> = entries.into_iter().filter(|entry| is_wanted(&args, entry)).collect();
    if args.json {
        let log = Log {
            cluster: catalog.cluster().to_string(),
            timeline,
            read,
            holes: &account.holes,
            entries: &entries,
            snapshots: asked.snapshots,
            damaged_snapshots: &asked.damaged,
            minutes: &account.summary.minutes,
            checkpoints: account.summary.checkpoints,
            entries_left_out: account.summary.left_out,
            transactions_not_followed: account.summary.not_followed,
            picture: args.picture.for_json(&picture),
        };
        output::json(&log)?;
        return write_picture();
    }
    print(&args, &account, timeline, &entries);
    asked.damaged.iter().for_each(|damaged| output::say!("a catalog snapshot cannot be read: {damaged}"));
    args.picture.draw(&picture);
    write_picture()
}

fn window(args: &LogArgs) -> Result<Window> {
    let edge = |text: &String| match text.parse::<Lsn>() {
        Ok(lsn) => Ok(Edge::Lsn(lsn)),
        Err(_) => parse_time(text).map(Edge::Time).map_err(anyhow::Error::from),
    };
    let window = Window { from: args.from.as_ref().map(edge).transpose()?, to: args.to.as_ref().map(edge).transpose()? };
    let turned = match (window.from, window.to) {
        (Some(Edge::Lsn(from)), Some(Edge::Lsn(to))) => from >= to,
        (Some(Edge::Time(from)), Some(Edge::Time(to))) => from > to,
        _ => false,
    };
    ensure!(!turned, "--from is not before --to");
    Ok(window)
}

/// The history of `timeline`, or of the newest.
pub fn path(catalog: &Catalog, timeline: Option<TimelineId>) -> Result<TimelineHistory, Failure> {
    let newest = || catalog.newest_timeline().ok_or_else(|| Failure::refused("no WAL is stored yet"));
    let timeline = timeline.map_or_else(newest, Ok)?;
    let known = || catalog.timelines().iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let why = || format!("timeline {timeline} is unknown, or its history is not stored; known are {}", known());
    catalog.history(timeline).ok_or_else(|| Failure::refused(why()))
}

fn is_wanted(args: &LogArgs, entry: &NamedEntry<'_>) -> bool {
    let all = !args.restore_points && !args.dropped;
    match entry {
        NamedEntry::Removed(_) => all || args.dropped,
        NamedEntry::Database { entry, .. } | NamedEntry::Other(entry) => match entry.what {
            Happening::RestorePoint { .. } => all || args.restore_points,
            Happening::DatabaseDropped { .. } => all || args.dropped,
            // What was not read is missing from every list.
            Happening::Hole => true,
            _ => all,
        },
    }
}

fn print(args: &LogArgs, account: &Account, timeline: TimelineId, entries: &[NamedEntry<'_>]) {
    output::say!("timeline {timeline}, WAL read from {} to {}", account.from, account.to);
    let asked = [("from", &args.from), ("to", &args.to)].into_iter().filter_map(|(word, edge)| Some(format!("{word} {}", edge.as_ref()?)));
    let asked: Vec<String> = asked.collect();
    if !asked.is_empty() {
        output::say!("asked for: {}", asked.join(" "));
    }
    if entries.is_empty() && account.summary.minutes.is_empty() && !asked.is_empty() {
        let clock = &account.summary.clock;
        let known = clock
            .first()
            .zip(clock.last())
            .map_or_else(String::new, |(first, last)| format!("; transactions in it ended from {} to {}", time(first.1), time(last.1)));
        output::say!("nothing is stored of what was asked for, or nothing happened then{known}");
    } else if entries.is_empty() {
        output::say!("nothing of the kind in it");
    } else {
        let mut table = output::table(&["time", "LSN", "xid", "what"]);
        for entry in entries {
            table.add_row([
                entry.time().map_or_else(String::new, time),
                entry.lsn().to_string(),
                entry.xid().map_or_else(String::new, |xid| xid.to_string()),
                words(entry),
            ]);
        }
        output::say!("{table}");
    }
    let summary = &account.summary;
    if !args.restore_points && !args.dropped {
        for stretch in rate::stretches(&summary.minutes) {
            let (low, high) = stretch.commits;
            let rate = if low == high { low.to_string() } else { format!("{low} to {high}") };
            let (minutes, aborts) = (output::count(stretch.minutes, "minute"), output::count(stretch.aborts, "rollback"));
            output::say!("commits from {}, {minutes}: {rate} a minute, {} in all, {aborts}", time(stretch.from), stretch.total);
        }
        output::say!("{}", output::count(summary.checkpoints, "checkpoint"));
    }
    if summary.left_out > 0 {
        output::say!("LEFT OUT: {} more; ask for a shorter time", output::count(summary.left_out, "entry"));
    }
    if summary.not_followed > 0 {
        let transactions = output::count(summary.not_followed, "transaction");
        output::say!("NOT FOLLOWED: {transactions}, since too many were open; what they removed is unclear");
    }
}

fn time(time: PgTimestamp) -> String {
    time.to_utc().map_or_else(|| time.to_string(), |time| time.format("%Y-%m-%d %H:%M:%S%.6f UTC").to_string())
}

fn words(entry: &NamedEntry<'_>) -> String {
    match entry {
        NamedEntry::Removed(removal) => removal::words(removal),
        NamedEntry::Database { entry, database_name } => happening(&entry.what, database_name.as_deref()),
        NamedEntry::Other(entry) => happening(&entry.what, None),
    }
}

fn happening(what: &Happening, name: Option<&str>) -> String {
    let ending = |committed: bool| if committed { "" } else { ", ROLLED BACK" };
    let tablespaces = |all: &[u32]| all.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    match what {
        Happening::RestorePoint { name } => format!("restore point {name:?}"),
        Happening::ShutdownCheckpoint => "shutdown, or the end of a crash recovery".to_owned(),
        Happening::TimelineSwitch { from, to } => format!("promoted: timeline {from} ends, {to} begins"),
        Happening::WalLevel { from: Some(from), to } => format!("wal_level was {from} and is {to}"),
        Happening::WalLevel { from: None, to } => format!("wal_level is {to}"),
        // It has names, or has none to be found.
        Happening::Removed { .. } => String::new(),
        Happening::DatabaseCreated { database, committed, .. } => format!("database {database} created{}", ending(*committed)),
        Happening::DatabaseDropped { database, committed, .. } => match name {
            Some(name) => format!("DATABASE {} DROPPED{}", shown(name), ending(*committed)),
            None => format!("DATABASE {database} DROPPED{} {}", ending(*committed), removal::UNSEEN),
        },
        Happening::DatabaseMoved { database, tablespaces: left, committed } => {
            let database = name.map_or_else(|| database.to_string(), shown);
            format!("database {database} left tablespace {}{}", tablespaces(left), ending(*committed))
        }
        Happening::BigTransaction { wal_bytes, subtransactions, committed } => {
            let with =
                if *subtransactions > 0 { format!(", {}", output::count(*subtransactions, "subtransaction")) } else { String::new() };
            format!("{} of WAL{with}{}", output::bytes(*wal_bytes), ending(*committed))
        }
        Happening::Hole => "WAL IS MISSING from here".to_owned(),
    }
}
