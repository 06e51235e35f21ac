//! The store goes away under full write load: what the server notices of it, what the agent needs meanwhile, and whether anything is missing afterwards.

use std::path::Path;
use std::time::{Duration, Instant};

use walkeep_tests::process::Process;
use walkeep_tests::{Agent, Cluster, Repository, S3Server, Walkeep, compare_fetched, wait_until};

use crate::host::server;
use crate::numbers::{largest, median};
use crate::options::Options;

/// Left out after each change of phase.
const SETTLE: f64 = 20.0;
const MIB: f64 = (1 << 20) as f64;
/// Less room than this on the disk ends the outage early: others work there too.
const ROOM: u64 = 6 << 30;

/// `outage`.
pub fn run(options: &mut Options) -> Result<bool, String> {
    let mut seconds = |name, default| options.take(name, default).map(Duration::from_secs);
    let (before, outage, after) = (seconds("before", 120)?, seconds("outage", 600)?, seconds("after", 60)?);
    let (clients, scale) = (options.take("clients", 2_u32)?, options.take("scale", 20_u32)?);
    let acknowledge = options.take("acknowledge", "repository".to_owned())?;
    options.end()?;
    println!(
        "outage: two servers with {clients} clients of pgbench each at full speed, scale {scale}; one has an agent with acknowledge = \"{acknowledge}\"; \
         {} s, then {} s without the store",
        before.as_secs(),
        outage.as_secs()
    );
    let (proxy, bucket) = (S3Server::get().proxy(), S3Server::get().bucket());
    let (alone, cluster) = (prepared(scale), prepared(scale));
    let mut walkeep = Walkeep::new(&cluster, Repository::s3(proxy.endpoint(), &bucket));
    walkeep.upload_interval = "1s".to_owned();
    walkeep.acknowledge = acknowledge;
    walkeep.write_config();
    walkeep.ok(&["init"]);
    let first = cluster.sql("SELECT pg_walfile_name(restart_lsn) FROM pg_replication_slots");
    let agent = walkeep.agent();
    let mut watch = Watch { agent: &agent, walkeep: &walkeep, cluster: &cluster, alone: &alone, samples: Vec::new() };
    let (mut beside, mut load) = (start(&alone, clients), start(&cluster, clients));
    watch.look("before", before);
    proxy.close();
    let from = Instant::now();
    watch.look("outage", outage);
    let outage = from.elapsed();
    proxy.open();
    watch.look("after", after);
    let phases = Phases { split: before.as_secs_f64(), end: before.as_secs_f64() + outage.as_secs_f64() };
    let (with_agent, without) = (tps(&load), tps(&beside));
    load.kill();
    beside.kill();
    cluster.switch_wal();
    let end: u64 = cluster.value("SELECT (pg_current_wal_flush_lsn() - '0/0')::bigint");
    let behind = |agent: &Agent| end as f64 - agent.metric("walkeep_wal_durable_bytes").unwrap_or(0.0);
    println!("the load ends {:.0} s after the store's return; {:.0} MiB are not stored yet", after.as_secs_f64(), behind(&agent) / MIB);
    let draining = Instant::now();
    wait_until("everything is stored", Duration::from_secs(3600), || behind(&agent) <= 0.0);
    println!("all stored {:.1} s later", draining.elapsed().as_secs_f64());
    watch.look("drained", Duration::from_secs(1));

    let ours = phases.report("with the agent", &with_agent);
    let theirs = phases.report("without any agent", &without);
    println!("what the outage left of the throughput, with the agent over without: {:.3}", ours / theirs);
    println!("\n| phase | VmRSS MiB: median (max) | VmHWM MiB | spool MiB: median (max) | pg_wal MiB (max) |\n|---|---|---|---|---|");
    for phase in ["before", "outage", "after", "drained"] {
        watch.row(phase);
    }
    wait_until("archive_command's copies are there", Duration::from_secs(600), || {
        cluster.sql("SELECT count(*) FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready'") == "0"
    });
    // What is older than the slot was never to be streamed.
    remove_files(&cluster.oracle(), |name| name < first.as_str());
    let same = compare_fetched(&cluster.oracle(), &walkeep);
    println!("\n{same} files of a cp archive fetched from S3: every byte the same");
    agent.stop();
    Ok(same > 0)
}

/// A server with pgbench's tables, and a plain copy of every segment.
fn prepared(scale: u32) -> Cluster {
    let cluster = server().archiving().conf("checkpoint_timeout", "15min").start();
    cluster.pgbench_init(scale);
    cluster.archive_by(None);
    cluster.sql("CHECKPOINT");
    cluster
}

fn start(cluster: &Cluster, clients: u32) -> Process {
    cluster.pgbench_spawn(&["-c", &clients.to_string(), "-j", "1", "-T", "86400", "-P", "1"])
}

/// Second and transactions in it.
fn tps(load: &Process) -> Vec<(f64, f64)> {
    let log = load.log();
    let number = |text: Option<&str>| text?.trim().split(' ').next()?.parse::<f64>().ok();
    let lines = log.lines().filter_map(|line| {
        let mut fields = line.strip_prefix("progress:")?.split(',');
        Some((number(fields.next())?, number(fields.next())?))
    });
    lines.collect()
}

/// The outage's begin and end, in seconds of the load.
struct Phases {
    split: f64,
    end: f64,
}

impl Phases {
    /// Prints a server's throughput; its share during the outage.
    fn report(&self, who: &str, tps: &[(f64, f64)]) -> f64 {
        let mean = |from: f64, to: f64| {
            let within: Vec<_> = tps.iter().filter(|(at, _)| *at > from && *at <= to).map(|(_, tps)| *tps).collect();
            within.iter().sum::<f64>() / within.len().max(1) as f64
        };
        let (before, during) = (mean(SETTLE, self.split), mean(self.split + SETTLE, self.end));
        println!("{who}: {before:.0} transactions/s before, {during:.0}/s during the outage: {:.3} of it", during / before);
        let minutes = (0..(self.end / 60.0) as u32).map(f64::from);
        let minutes: Vec<_> = minutes.map(|minute| format!("{:.0}", mean(minute * 60.0, (minute + 1.0) * 60.0))).collect();
        println!("{who}, by minute: {}", minutes.join(" "));
        during / before
    }
}

fn remove_files(folder: &Path, which: impl Fn(&str) -> bool) {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    for entry in entries.filter(|entry| entry.file_name().to_str().is_some_and(&which)) {
        let _ = std::fs::remove_file(entry.path());
    }
}

struct Sample {
    phase: &'static str,
    resident: f64,
    peak: f64,
    spool: f64,
    pg_wal: f64,
}

struct Watch<'a> {
    agent: &'a Agent,
    walkeep: &'a Walkeep,
    cluster: &'a Cluster,
    alone: &'a Cluster,
    samples: Vec<Sample>,
}

impl Watch<'_> {
    /// Looks each second; less long where the disk is nearly full.
    fn look(&mut self, phase: &'static str, time: Duration) {
        let began = Instant::now();
        while began.elapsed() < time {
            self.samples.push(Sample {
                phase,
                resident: memory(self.agent.pid(), "VmRSS:"),
                peak: memory(self.agent.pid(), "VmHWM:"),
                spool: size(&self.walkeep.spool()),
                pg_wal: size(&self.cluster.pg_wal()),
            });
            // Made for the sake of the same work; nobody compares them.
            remove_files(&self.alone.oracle(), |name| !name.starts_with('.'));
            if free(self.cluster.scratch().path()).is_some_and(|free| free < ROOM) {
                println!("{phase}: ended after {:.0} s: the disk is nearly full", began.elapsed().as_secs_f64());
                return;
            }
            std::thread::sleep(Duration::from_secs(1));
        }
    }

    fn row(&self, phase: &str) {
        let of = |value: fn(&Sample) -> f64| self.samples.iter().filter(|sample| sample.phase == phase).map(value).collect::<Vec<_>>();
        let (resident, spool) = (of(|sample| sample.resident), of(|sample| sample.spool));
        println!(
            "| {phase} | {:.0} ({:.0}) | {:.0} | {:.0} ({:.0}) | {:.0} |",
            median(&resident),
            largest(&resident),
            largest(&of(|sample| sample.peak)),
            median(&spool),
            largest(&spool),
            largest(&of(|sample| sample.pg_wal)),
        );
    }
}

/// A field of `/proc/PID/status`, in MiB.
fn memory(pid: u32, field: &str) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(field));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<f64>().ok()).unwrap_or(0.0) / 1024.0
}

/// The files in a folder, in MiB.
fn size(folder: &Path) -> f64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.metadata().ok()).filter(|data| data.is_file()).map(|data| data.len()).sum::<u64>() as f64 / MIB
}

/// Bytes free on the disk of this folder.
fn free(folder: &Path) -> Option<u64> {
    let text = walkeep_tests::process::run(std::process::Command::new("df").args(["--output=avail", "-B1"]).arg(folder)).ok()?;
    text.lines().nth(1)?.trim().parse().ok()
}
