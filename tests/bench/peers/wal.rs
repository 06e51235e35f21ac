//! archive_command and restore_command, called as PostgreSQL calls them, on a data directory that no server runs in: a server's own work would be in
//! every figure.

use std::path::{Path, PathBuf};

use anyhow::Result;
use walkeep_tests::{Scratch, user};

use crate::Plan;
use crate::data::Data;
use crate::meter::{Job, Measured, Step, measure as run};
use crate::table::{Sample, Table};
use crate::tool::{Kind, Tool, prepare};

/// The works of this module.
pub const WORKS: [&str; 3] = ["push", "idle", "get"];

/// How often PostgreSQL's archiver is imitated before a tool is given up.
const TRIES: u32 = 20;
/// Segments of the two smaller works.
const IDLE: usize = 48;

/// Measures what the plan has of them.
pub fn measure(plan: &Plan, table: &mut Table) {
    let all = plan.data.segments();
    let segments = &all[..plan.segments.min(all.len())];
    let few = &segments[..segments.len().min(IDLE)];
    for _ in 0..plan.rounds {
        for (kind, store) in plan.tools.iter().copied() {
            if kind == Kind::BaseBackup {
                continue;
            }
            let host = Host::new(&plan.data, segments);
            if plan.has("push") {
                let tool = prepare(kind, store, host.data(), None);
                let sample = push(&host, tool.as_ref(), segments);
                table.add("push", kind, store, sample);
            }
            if plan.has("idle") && kind != Kind::Rclone && kind != Kind::Copy {
                let host = Host::new(&plan.data, few);
                let tool = prepare(kind, store, host.data(), None);
                table.add("idle", kind, store, idle(&host, tool.as_ref(), few));
            }
            if plan.has("get") {
                let host = Host::new(&plan.data, few);
                let mut tool = prepare(kind, store, host.data(), None);
                table.add(
                    "get",
                    kind,
                    store,
                    push(&host, tool.as_ref(), few).and_then(|_| get(&plan.data, kind, tool.as_mut(), few, &host)),
                );
            }
        }
    }
}

/// A data directory as an archiver sees it: pg_control, pg_wal, archive_status.
struct Host {
    scratch: Scratch,
    data: PathBuf,
}

impl Host {
    fn new(data: &Data, segments: &[String]) -> Self {
        let scratch = Scratch::new();
        let host = Self { data: scratch.join("data"), scratch };
        for folder in ["data/global", "data/pg_wal/archive_status", "got"] {
            host.scratch.dir(folder);
        }
        for file in ["PG_VERSION", "global/pg_control"] {
            let copy = host.data().join(file);
            std::fs::copy(data.cluster().join(file), &copy).expect("copy a small file");
            user::give(&copy);
        }
        for name in segments {
            let (from, to) = (data.wal().join(name), host.segment(name));
            if std::fs::hard_link(&from, &to).is_err() {
                std::fs::copy(&from, &to).expect("copy a segment");
                user::give(&to);
            }
            host.scratch.write(Path::new("data/pg_wal/archive_status").join(format!("{name}.ready")), "", 0o600);
        }
        host
    }

    fn data(&self) -> &Path {
        &self.data
    }

    fn segment(&self, name: &str) -> PathBuf {
        self.scratch.join("data/pg_wal").join(name)
    }

    fn status(&self, name: &str, state: &str) -> PathBuf {
        self.scratch.join("data/pg_wal/archive_status").join(format!("{name}.{state}"))
    }

    fn job(&self, tool: &dyn Tool, steps: Vec<Step>) -> Job {
        let mut environment = vec![("PATH".to_owned(), "/usr/local/bin:/usr/bin:/bin".to_owned()), ("LC_ALL".to_owned(), "C".to_owned())];
        environment.extend(tool.environment());
        Job { folder: self.data().to_owned(), environment, steps, tries: TRIES, beside: tool.beside(), ..Job::default() }
    }

    /// archive_command for each segment; `done`: and note that, as the archiver does.
    fn archive(&self, command: &str, segments: &[String], done: bool) -> Vec<Step> {
        let step = |name: &String| Step {
            command: filled(command, name, &format!("pg_wal/{name}")),
            rename: done.then(|| (self.status(name, "ready"), self.status(name, "done"))),
        };
        segments.iter().map(step).collect()
    }
}

fn push(host: &Host, tool: &dyn Tool, segments: &[String]) -> Result<Sample> {
    let command = tool.archive().expect("each tool that is asked archives");
    let before = tool.place().bytes();
    let measured = run(&host.job(tool, host.archive(&command, segments, true)))?;
    let bytes = size_of(host, segments);
    Ok(Sample { bytes, growth: Some(tool.place().bytes() - before), ..Sample::of(measured) })
}

fn idle(host: &Host, tool: &dyn Tool, segments: &[String]) -> Result<Sample> {
    let command = tool.archive().expect("each tool that is asked archives");
    let mut steps = host.archive(&command, segments, false);
    let mut job = host.job(tool, steps.split_off(1));
    job.warm = steps;
    let measured = run(&job)?;
    Ok(Sample { calls_only: true, ..Sample::of(measured) })
}

fn get(data: &Data, kind: Kind, tool: &mut dyn Tool, segments: &[String], host: &Host) -> Result<Sample> {
    tool.fetch_anew();
    let command = tool.fetch().expect("each tool that is asked fetches");
    let bytes = size_of(host, segments);
    for name in segments {
        std::fs::remove_file(host.segment(name))?;
    }
    let (scratch, got) = (host.segment("RECOVERYXLOG"), |name: &str| host.scratch.join("got").join(name));
    let steps = segments.iter().map(|name| Step {
        command: filled(&command, name, "pg_wal/RECOVERYXLOG"),
        rename: (kind != Kind::Nothing).then(|| (scratch.clone(), got(name))),
    });
    let measured: Measured = run(&host.job(tool, steps.collect()))?;
    let same = |name: &&String| std::fs::read(got(name)).ok() == std::fs::read(data.wal().join(name)).ok();
    let differing = if kind == Kind::Nothing { 0 } else { segments.iter().filter(|name| !same(name)).count() };
    Ok(Sample { bytes, differing, ..Sample::of(measured) })
}

fn filled(command: &str, name: &str, path: &str) -> String {
    command.replace("%p", path).replace("%f", name)
}

fn size_of(host: &Host, segments: &[String]) -> u64 {
    segments.iter().map(|name| std::fs::metadata(host.segment(name)).map_or(0, |found| found.len())).sum()
}
