//! What an agent asks of the store, by kind, and what Amazon would bill for it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use walkeep_tests::process::Process;
use walkeep_tests::{Agent, Cluster, FaultProxy, Repository, Request, S3Server, Walkeep, wait_until};

use crate::host::server;
use crate::options::Options;

/// AWS S3 Standard, us-east-1, list prices in USD for a thousand: PUT, COPY, POST, LIST; and GET with all others. DELETE is free.
const WRITE: f64 = 0.005;
const READ: f64 = 0.0004;
const HOURS_A_MONTH: f64 = 730.0;

/// How much WAL a server writes.
struct Kind {
    name: &'static str,
    /// Commits a second and the payload of each, in units of 32 bytes; none: nobody works.
    load: Option<(u32, u32)>,
    archive_timeout: u32,
}

const KINDS: [Kind; 4] = [
    Kind { name: "idle", load: None, archive_timeout: 0 },
    Kind { name: "1 KiB/s", load: Some((4, 4)), archive_timeout: 0 },
    Kind { name: "1 KiB/s, archive_timeout = 60", load: Some((4, 4)), archive_timeout: 60 },
    Kind { name: "2 MiB/s", load: Some((32, 2048)), archive_timeout: 0 },
];

/// `requests`.
pub fn run(options: &mut Options) -> Result<bool, String> {
    let (minutes, interval) = (options.take("minutes", 10.0_f64)?, options.take("interval", "1s".to_owned())?);
    options.end()?;
    println!("requests: {minutes} minutes, upload_interval {interval}, all servers at the same time");
    let sides: Vec<_> = KINDS.iter().map(|kind| Side::start(kind, &interval)).collect();
    // What a new server does by itself at first (autovacuum's first rounds) is over, and what the agent's start brought about.
    std::thread::sleep(Duration::from_secs(90));
    let began = Instant::now();
    let from: Vec<_> = sides.iter().map(Side::begin).collect();
    std::thread::sleep(Duration::from_secs_f64(minutes * 60.0));
    let hours = began.elapsed().as_secs_f64() / 3600.0;
    println!(
        "\n| WAL | written, KiB/s | PUT parts | PUT segments | PUT other | LIST | GET, HEAD | DELETE | each hour: PUT and LIST | GET | DELETE | USD a month |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|---|");
    for ((kind, side), from) in KINDS.iter().zip(&sides).zip(from) {
        let written = side.written() - from;
        let count = Count::of(&side.proxy.requests());
        let (write, read) = (count.write() / hours, count.read() / hours);
        println!(
            "| {} | {:.3} | {} | {} | {} | {} | {} | {} | {write:.0} | {read:.0} | {:.0} | {:.2} |",
            kind.name,
            written as f64 / 1024.0 / (hours * 3600.0),
            count.get("PUT part"),
            count.get("PUT segment"),
            count.get("PUT other"),
            count.get("LIST"),
            count.get("GET"),
            count.get("DELETE"),
            f64::from(count.get("DELETE")) / hours,
            (write * WRITE + read * READ) / 1000.0 * HOURS_A_MONTH,
        );
    }
    for (kind, side) in KINDS.iter().zip(&sides) {
        let complaints = side.agent.complaints(&[]);
        if !complaints.is_empty() {
            println!("{}: the agent complained:\n{}", kind.name, complaints.join("\n"));
        }
    }
    Ok(true)
}

/// A server with its agent, load and proxy.
struct Side {
    _load: Option<Process>,
    agent: Agent,
    cluster: Cluster,
    _walkeep: Walkeep,
    proxy: FaultProxy,
}

impl Side {
    fn start(kind: &Kind, interval: &str) -> Self {
        let (proxy, bucket) = (S3Server::get().proxy(), S3Server::get().bucket());
        let cluster = server().archiving().conf("archive_timeout", kind.archive_timeout).start();
        let mut walkeep = Walkeep::new(&cluster, Repository::s3(proxy.endpoint(), &bucket));
        walkeep.upload_interval = interval.to_owned();
        walkeep.write_config();
        walkeep.ok(&["init"]);
        let agent = walkeep.agent();
        cluster.set("archive_command", &format!("{} %p", walkeep.archive_command()));
        let load = kind.load.map(|(rate, units)| {
            let statement = format!("SELECT pg_logical_emit_message(true, 'bench', repeat(md5(random()::text), {units}));\n");
            let script = cluster.scratch().write("write.sql", statement, 0o644).display().to_string();
            cluster.pgbench_spawn(&["-c", "1", "-T", "86400", "-R", &rate.to_string(), "-f", &script])
        });
        wait_until("the agent asks for something", Duration::from_secs(60), || !proxy.requests().is_empty());
        Self { _load: load, agent, cluster, _walkeep: walkeep, proxy }
    }

    /// From here on it counts.
    fn begin(&self) -> u64 {
        self.proxy.forget();
        self.written()
    }

    /// The position up to which WAL is written.
    fn written(&self) -> u64 {
        self.cluster.value("SELECT (pg_current_wal_lsn() - '0/0')::bigint")
    }
}

/// Requests by kind.
struct Count(BTreeMap<&'static str, u32>);

impl Count {
    fn of(requests: &[Request]) -> Self {
        let mut count = BTreeMap::new();
        for request in requests {
            let kind = match request.method.as_str() {
                "PUT" if request.path.contains(".parts/") => "PUT part",
                "PUT" if request.path.contains("/wal/") => "PUT segment",
                "PUT" => "PUT other",
                "GET" if request.query.contains("list-type=2") => "LIST",
                "GET" | "HEAD" => "GET",
                "DELETE" => "DELETE",
                _ => "other",
            };
            *count.entry(kind).or_default() += 1;
        }
        Self(count)
    }

    fn get(&self, kind: &str) -> u32 {
        self.0.get(kind).copied().unwrap_or(0)
    }

    fn write(&self) -> f64 {
        ["PUT part", "PUT segment", "PUT other", "LIST", "other"].iter().map(|kind| f64::from(self.get(kind))).sum()
    }

    fn read(&self) -> f64 {
        f64::from(self.get("GET"))
    }
}
