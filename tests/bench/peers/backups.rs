//! Base backups and restores of a running server. Each tool has a repository of its own; between the tools' turns nothing changes in the server, and
//! between the works the same share of its rows.

use std::fs::File;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use walkeep_tests::postgres::default_version;
use walkeep_tests::{Cluster, Scratch, wait_until};

use crate::Plan;
use crate::data::copy_tree;
use crate::meter::{Job, Step, measure as run};
use crate::original::{differing, rest};
use crate::table::{Sample, Table};
use crate::tool::{Kind, StoreKind, Tool, prepare};

/// The works of this module, in their order.
pub const WORKS: [&str; 7] = ["full", "incr-nothing", "incr-range", "incr-scattered", "restore", "delta-nothing", "delta-1pct"];

/// How long an agent may take to store what came while it stood still.
const CATCH_UP: Duration = Duration::from_secs(120);
const BLOCK: u64 = 8192;
/// Smaller files are not spoilt.
const BIG: u64 = 1000;

/// Measures what the plan has of them.
pub fn measure(plan: &Plan, table: &mut Table) {
    if !WORKS.iter().any(|work| plan.has(work)) {
        return;
    }
    let host = Host::new(plan);
    for round in 0..u64::from(plan.rounds) {
        let kinds = plan.tools.iter().filter(|(kind, _)| *kind != Kind::Nothing);
        let mut turn = Turn { host: &host, plan, table: &mut *table, tools: Vec::new() };
        turn.tools = kinds.map(|(kind, store)| (*kind, *store, prepare(*kind, *store, host.server.data(), Some(&host.server)))).collect();
        rest(&host.server);
        turn.backups("full", |tool| tool.full());
        // Later works count only for who has a backup to build on.
        turn.tools.retain(|(_, _, tool)| tool.place().bytes() > 0);
        turn.backups("incr-nothing", |tool| tool.incremental());
        if plan.has("incr-range") {
            let from = host.rows / 2 + round * host.rows / 100;
            host.change(&format!("aid BETWEEN {from} AND {from} + {}", host.rows / 100));
            turn.backups("incr-range", |tool| tool.incremental());
        }
        if plan.has("incr-scattered") {
            host.change(&format!("aid % 100 = {}", 7 + round));
            turn.backups("incr-scattered", |tool| tool.incremental());
        }
        turn.restores();
    }
}

/// The server, a copy of the data that was made.
struct Host {
    server: Cluster,
    scratch: Scratch,
    rows: u64,
    bytes: u64,
}

impl Host {
    fn new(plan: &Plan) -> Self {
        let scratch = Scratch::new();
        let data = scratch.join("data");
        copy_tree(&plan.data.cluster(), &data);
        let server = Cluster::adopt(default_version(), data);
        // What would write into data files, or give up agents that stand still while others are measured.
        let settings = [
            ("fsync", "on"),
            ("autovacuum", "off"),
            ("shared_buffers", "512MB"),
            ("max_wal_size", "4GB"),
            ("wal_sender_timeout", "0"),
            ("max_wal_senders", "20"),
            ("max_replication_slots", "20"),
            ("archive_command", "/bin/true"),
        ];
        settings.iter().for_each(|(name, value)| server.write_conf(name, value));
        server.start();
        let rows = server.value("SELECT count(*) FROM pgbench_accounts");
        let bytes = server.value("SELECT sum(pg_database_size(oid)) FROM pg_database");
        Self { server, scratch, rows, bytes }
    }

    fn change(&self, rows: &str) {
        self.server.set("archive_command", "/bin/true");
        self.server.sql(&format!("UPDATE pgbench_accounts SET abalance = abalance + 1 WHERE {rows}"));
        rest(&self.server);
    }

    fn job(&self, tool: &dyn Tool, command: String) -> Job {
        let mut environment = vec![("PATH".to_owned(), "/usr/local/bin:/usr/bin:/bin".to_owned()), ("LC_ALL".to_owned(), "C".to_owned())];
        environment.extend(tool.environment());
        let steps = vec![Step { command, rename: None }];
        Job { folder: self.scratch.path().to_owned(), environment, steps, beside: tool.beside(), ..Job::default() }
    }
}

/// A round: every tool once, at each work.
struct Turn<'a> {
    host: &'a Host,
    plan: &'a Plan,
    table: &'a mut Table,
    tools: Vec<(Kind, StoreKind, Box<dyn Tool>)>,
}

impl Turn<'_> {
    fn backups(&mut self, work: &'static str, command: impl Fn(&dyn Tool) -> Option<String>) {
        for (kind, store, tool) in &self.tools {
            // A restore, or an incremental backup, needs one that comes before it.
            let Some(command) = command(tool.as_ref()) else { continue };
            self.hold_but(tool.as_ref());
            self.host
                .server
                .set("archive_command", &tool.archive().filter(|_| has_own_archive(*kind)).unwrap_or_else(|| "/bin/true".to_owned()));
            let sample = backup(self.host, tool.as_ref(), command);
            if self.plan.has(work) || sample.is_err() {
                self.table.add(work, *kind, *store, sample);
            }
        }
        self.host.server.set("archive_command", "/bin/true");
    }

    fn restores(&mut self) {
        for (kind, store, tool) in &self.tools {
            let folder = self.host.scratch.join("restored");
            let _ = std::fs::remove_dir_all(&folder);
            self.host.scratch.dir("restored");
            std::fs::set_permissions(&folder, PermissionsExt::from_mode(0o700)).expect("set the mode of an own folder");
            self.hold_but(tool.as_ref());
            let Some(command) = tool.restore(&folder).filter(|_| self.plan.works.iter().any(|work| is_restore(work))) else { continue };
            // Who only copies has copied what was there before the changes.
            let copied = match tool.full().filter(|_| tool.incremental().is_none()) {
                Some(again) => run(&self.host.job(tool.as_ref(), again)).map(drop),
                None => Ok(()),
            };
            let sample = copied.and_then(|()| restore(self.host, tool.as_ref(), command, &folder));
            let failed = sample.is_err();
            self.table.add("restore", *kind, *store, sample);
            let Some(command) = tool.delta(&folder).filter(|_| !failed) else { continue };
            if self.plan.has("delta-nothing") {
                self.table.add("delta-nothing", *kind, *store, restore(self.host, tool.as_ref(), command.clone(), &folder));
            }
            if self.plan.has("delta-1pct") {
                let sample = spoil(&folder).and_then(|()| restore(self.host, tool.as_ref(), command, &folder));
                self.table.add("delta-1pct", *kind, *store, sample);
            }
        }
        let _ = std::fs::remove_dir_all(self.host.scratch.join("restored"));
    }

    /// Lets this tool go on and holds the others.
    fn hold_but(&self, tool: &dyn Tool) {
        self.tools.iter().for_each(|(_, _, other)| other.hold(true));
        tool.hold(false);
        // The WAL that came while it stood still is no part of its next work.
        if let Some(slot) = tool.slot() {
            let now = self.host.server.sql("SELECT pg_current_wal_flush_lsn()");
            let stored = format!("SELECT restart_lsn >= '{now}' FROM pg_replication_slots WHERE slot_name = '{slot}'");
            wait_until("what the agent was not there for is stored", CATCH_UP, || self.host.server.sql(&stored) == "t");
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.tools.iter().for_each(|(_, _, tool)| tool.hold(false));
    }
}

fn is_restore(work: &str) -> bool {
    matches!(work, "all" | "restore" | "delta-nothing" | "delta-1pct")
}

fn has_own_archive(kind: Kind) -> bool {
    matches!(kind, Kind::Walkeep | Kind::PgBackRest(_))
}

fn backup(host: &Host, tool: &dyn Tool, command: String) -> Result<Sample> {
    // What was waiting for this tool's archive_command, or its stream, is not the backup's.
    let mut job = host.job(tool, command);
    job.warm = vec![Step { command: "sleep 1".to_owned(), rename: None }];
    let before = at_rest(tool);
    let measured = run(&job)?;
    Ok(Sample { bytes: host.bytes, growth: Some(tool.place().bytes().saturating_sub(before)), ..Sample::of(measured) })
}

/// Bytes in the tool's place once they stay the same for a while.
fn at_rest(tool: &dyn Tool) -> u64 {
    let mut bytes = tool.place().bytes();
    wait_until("nothing is stored any more", CATCH_UP, || {
        std::thread::sleep(Duration::from_secs(1));
        std::mem::replace(&mut bytes, tool.place().bytes()) == bytes
    });
    bytes
}

fn restore(host: &Host, tool: &dyn Tool, command: String, folder: &Path) -> Result<Sample> {
    let measured = run(&host.job(tool, command))?;
    Ok(Sample { bytes: host.bytes, differing: differing(host.server.data(), folder), ..Sample::of(measured) })
}

/// Changes one block of each hundred of the big files, as an old copy of the cluster would differ.
fn spoil(folder: &Path) -> Result<()> {
    let mut databases: Vec<PathBuf> = std::fs::read_dir(folder.join("base"))?.flatten().map(|entry| entry.path()).collect();
    databases.sort();
    for file in databases.iter().flat_map(|database| std::fs::read_dir(database).into_iter().flatten().flatten()) {
        let blocks = file.metadata()?.len() / BLOCK;
        if blocks > BIG {
            let open = File::options().write(true).open(file.path()).with_context(|| format!("open {}", file.path().display()))?;
            for hundred in 0..blocks / 100 {
                open.write_all_at(b"spoilt!!", (hundred * 100 + hundred * 7919 % 100) * BLOCK + 4000)?;
            }
        }
    }
    Ok(())
}
