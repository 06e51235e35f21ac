//! Records as `pg_waldump` prints them, and ours in the same form.

use std::path::Path;

use walkeep_core::record::{Content, Fork, List, Record, RelFileLocator, TransactionEnd};
use walkeep_core::{Lsn, PgTimestamp};
use walkeep_tests::postgres::own_client;
use walkeep_tests::user;
use walkeep_tests::walkeep::run;

use crate::support::lsn;

/// What both say of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    pub start: u64,
    previous: u64,
    manager: String,
    length: usize,
    xid: u32,
    blocks: Vec<String>,
    end: Option<End>,
}

/// A transaction's end.
#[derive(Debug, Clone, PartialEq, Eq)]
struct End {
    kind: &'static str,
    time: String,
    /// Of a prepared transaction.
    xid: Option<u32>,
    subtransactions: Vec<u32>,
    /// Database and file number.
    files: Vec<String>,
    statistics: usize,
    invalidations: usize,
}

/// What the version's own `pg_waldump` prints from `start` on; `None` where there is none.
pub fn dump(version: u32, folder: &Path, timeline: u32, start: u64) -> Option<Vec<Line>> {
    let start = Lsn::new(start).to_string();
    let mut command = user::command(own_client(version, "pg_waldump")?);
    command.env("TZ", "UTC").arg("-p").arg(folder).args(["-t", &timeline.to_string(), "-s", &start]);
    // It ends with an error at the end of what is written.
    let text = run(&mut command).stdout;
    let lines: Vec<_> = text.lines().filter(|line| line.starts_with("rmgr:")).map(parse).collect();
    assert!(!lines.is_empty(), "pg_waldump {version} printed no record: {text}");
    Some(lines)
}

fn between<'a>(line: &'a str, from: &str, to: &str) -> &'a str {
    let rest = line.split_once(from).unwrap_or_else(|| panic!("no {from:?} in {line}")).1;
    rest.split_once(to).map_or(rest, |(found, _)| found).trim()
}

fn parse(line: &str) -> Line {
    let length = between(line, "(rec/tot):", ",").split_once('/').unwrap().1.trim();
    let description = line.split_once("desc: ").unwrap().1;
    let blocks = description.split("blkref #").skip(1).map(|text| {
        let text = text.trim_end().trim_end_matches(',');
        let (text, image) = text.split_once(" FPW").map_or((text, ""), |(text, _)| (text, " FPW"));
        let (id, place) = text.split_once(": rel ").unwrap();
        let place = if place.contains(" fork ") { place.to_owned() } else { place.replace(" blk ", " fork main blk ") };
        format!("{id} {place}{image}")
    });
    let manager = between(line, "rmgr: ", " ").to_owned();
    Line {
        start: lsn(between(line, "lsn: ", ",")),
        previous: lsn(between(line, "prev ", ",")),
        length: length.parse().unwrap(),
        xid: between(line, "tx:", ",").parse().unwrap(),
        blocks: blocks.collect(),
        end: (manager == "Transaction").then(|| parse_end(description)).flatten(),
        manager,
    }
}

/// `COMMIT_PREPARED 733: 2026-11-21 11:11:11.123456 UTC; rels: base/5/16384; subxacts: 736 737; inval msgs: catcache 55 relcache 16384`
fn parse_end(description: &str) -> Option<End> {
    const KINDS: [&str; 5] = ["COMMIT_PREPARED", "ABORT_PREPARED", "PREPARE", "COMMIT", "ABORT"];
    let kind = KINDS.into_iter().find(|kind| description.split(' ').next() == Some(kind))?;
    let list = |name: &str| {
        let found = description.split("; ").find_map(|part| part.strip_prefix(name)?.strip_prefix(": "));
        found.map(|text| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>()).unwrap_or_default()
    };
    let rest = description.strip_prefix(kind).unwrap();
    let time = rest.split("; ").next().unwrap();
    let time = time.find(" UTC").map(|end| time[..end].trim()).unwrap_or_else(|| panic!("no time in {description}"));
    // A prepared transaction's number or name stands before the time, which has 26 characters.
    let (before, time) = time.split_at(time.len() - 26);
    let mut files: Vec<_> =
        ["rels", "rels(commit)", "rels(abort)"].iter().flat_map(|name| list(name)).map(|path| database_and_file(&path)).collect();
    files.sort();
    let messages = ["catcache", "catalog", "relcache", "smgr", "relmap", "snapshot", "relsync", "unrecognized"];
    let invalidations = list("inval msgs").iter().filter(|word| messages.contains(&word.as_str())).count();
    let statistics = ["dropped stats", "commit dropped stats", "abort dropped stats"].map(|name| list(name).len()).iter().sum();
    Some(End {
        kind,
        time: time.to_owned(),
        xid: before.trim().strip_suffix(':').and_then(|xid| xid.parse().ok()),
        subtransactions: list("subxacts").iter().map(|xid| xid.parse().unwrap()).collect(),
        files,
        statistics,
        invalidations,
    })
}

/// `base/5/16384`, `global/1262` or `pg_tblspc/16390/PG_15_202209061/5/16384`.
fn database_and_file(path: &str) -> String {
    let parts: Vec<_> = path.trim_end_matches([',', ';']).split('/').collect();
    let database = if parts[0] == "global" { "0" } else { parts[parts.len() - 2] };
    format!("{database}/{}", parts[parts.len() - 1])
}

/// The same of a record of ours.
pub fn line(record: &Record<'_>) -> Line {
    let blocks = record.blocks().map(|block| {
        assert!(matches!(block.fork, Fork::Main | Fork::FreeSpaceMap | Fork::VisibilityMap | Fork::Init));
        let image = if block.image.is_some() { " FPW" } else { "" };
        format!("{} {} fork {} blk {}{image}", block.id, block.relation, block.fork, block.block)
    });
    Line {
        start: record.start.get(),
        previous: record.previous.get(),
        manager: record.resource_manager.to_string(),
        length: record.len(),
        xid: record.xid,
        blocks: blocks.collect(),
        end: end(record),
    }
}

fn end(record: &Record<'_>) -> Option<End> {
    let files = |lists: &[List<'_, RelFileLocator>]| {
        let mut files: Vec<_> =
            lists.iter().flat_map(|list| list.iter()).map(|file| format!("{}/{}", file.database, file.number)).collect();
        files.sort();
        files
    };
    let ended = |end: TransactionEnd<'_>, kind, prepared_kind| End {
        kind: if end.prepared { prepared_kind } else { kind },
        time: moment(end.time),
        xid: end.prepared.then_some(end.xid),
        subtransactions: end.subtransactions.iter().collect(),
        files: files(&[end.dropped_files]),
        statistics: end.dropped_statistics.len(),
        invalidations: end.invalidations.len(),
    };
    match record.content() {
        Content::Commit(end) => Some(ended(end, "COMMIT", "COMMIT_PREPARED")),
        Content::Abort(end) => Some(ended(end, "ABORT", "ABORT_PREPARED")),
        Content::Prepare(prepare) => Some(End {
            kind: "PREPARE",
            time: moment(prepare.time),
            xid: None,
            subtransactions: prepare.subtransactions.iter().collect(),
            files: files(&[prepare.dropped_at_commit, prepare.dropped_at_abort]),
            statistics: prepare.statistics_at_commit.len() + prepare.statistics_at_abort.len(),
            invalidations: prepare.invalidations.len(),
        }),
        _ => None,
    }
}

/// As `timestamptz_to_str` prints it.
pub fn moment(time: PgTimestamp) -> String {
    time.to_string().replace('T', " ").replace('Z', "")
}

/// Panics with the first difference.
#[track_caller]
pub fn assert_same(ours: &[Line], theirs: &[Line], what: &str) {
    for (ours, theirs) in ours.iter().zip(theirs) {
        assert_eq!(ours, theirs, "{what}: ours and pg_waldump's differ");
    }
    assert_eq!(ours.len(), theirs.len(), "{what}: records of ours, and of pg_waldump");
}
