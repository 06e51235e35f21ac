//! The server, its load, the agent with every job, the two repositories; and what must be true of them in the end.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use walkeep_tests::postgres::{bin, client, default_version};
use walkeep_tests::process::{self, Process};
use walkeep_tests::{Agent, Cluster, FaultProxy, Keys, Pair, Repository, S3Server, Stop, Walkeep, try_wait_for, wait_until};

const PATIENCE: Duration = Duration::from_secs(300);
/// What is compared between the server and what was restored of it.
const ROWS: &str = "SELECT (SELECT count(*) FROM pgbench_history), (SELECT sum(abalance) FROM pgbench_accounts), (SELECT md5(string_agg(h::text, ',' ORDER BY h::text)) FROM pgbench_history h)";
/// The agent's log must never say this.
const NEVER: [&str; 3] = ["panicked", "GAP in the archive", "other content"];
/// Samples of `/metrics` that must not be 0, as something ran.
const RAN: [&str; 7] = [
    "walkeep_backup_attempts_total{result=\"done\",schedule=\"often\"}",
    "walkeep_backup_attempts_total{result=\"done\",schedule=\"whole\"}",
    "walkeep_expire_last_success_timestamp_seconds",
    "walkeep_artifact_last_success_timestamp_seconds{name=\"echo\"}",
    "walkeep_drill_last_success_timestamp_seconds",
    "walkeep_verify_bytes_total",
    "walkeep_repository_copied_objects_total",
];

/// All of it.
pub struct World {
    // The agent ends before the server, this before its folders.
    pub agent: Agent,
    load: Option<Process>,
    cluster: Cluster,
    pub proxy: FaultProxy,
    walkeep: Walkeep,
    second: PathBuf,
    /// For everything temporary: empty at the end.
    temporary: PathBuf,
}

impl World {
    pub fn new(variable: Option<(&str, &str)>) -> Self {
        let cluster = Cluster::builder().segment_mib(1).archiving().conf("max_wal_size", "64MB").conf("wal_sender_timeout", "10s").start();
        cluster.pgbench_init(3);
        let (server, bucket) = (S3Server::get(), S3Server::get().bucket());
        let proxy = server.proxy();
        let mut walkeep = Walkeep::new(&cluster, Repository::s3(proxy.endpoint(), &bucket));
        let (second, temporary) = (walkeep.scratch().dir("second"), walkeep.scratch().dir("temporary"));
        walkeep.repositories.push(Repository::Local(second.clone()));
        let pair = Pair::generate();
        walkeep.keys = Some(Keys { recipients: vec![pair.recipient.clone()], identities: vec![pair.identity] });
        walkeep.environment.push(("TMPDIR".to_owned(), temporary.display().to_string()));
        walkeep.environment.extend(variable.map(|(name, value)| (name.to_owned(), value.to_owned())));
        walkeep.cluster_lines.push_str("acknowledge_rule = \"primary\"\ncompare_interval = \"2min\"\n");
        let version = default_version();
        let tools = format!("{}:{}", bin(version).unwrap().display(), client(version, "pg_amcheck").parent().unwrap().display());
        walkeep.more = jobs(&tools, &temporary);
        walkeep.write_config();
        walkeep.ok(&["init"]);
        let agent = walkeep.agent();
        cluster.archive_by(Some(&walkeep.archive_command()));
        let mut world = Self { agent, load: None, cluster, proxy, walkeep, second, temporary };
        world.start_load();
        world
    }

    fn start_load(&mut self) {
        self.load = Some(self.cluster.pgbench_spawn(&["-c", "4", "-j", "1", "-R", "150", "-T", "86400"]));
    }

    // ---- what breaks

    pub fn stop_server(&mut self) {
        self.load = None;
        self.cluster.stop(Stop::Immediate);
    }

    pub fn start_server(&mut self) {
        self.cluster.start();
        self.start_load();
    }

    pub fn cut_stream(&self) {
        self.cluster.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_replication");
    }

    pub fn write_much(&self) {
        self.cluster.sql("CREATE TABLE burst AS SELECT i, md5(i::text) FROM generate_series(1, 200000) i; DROP TABLE burst");
    }

    fn aside(&self) -> PathBuf {
        self.second.with_extension("aside")
    }

    pub fn take_second_away(&self) {
        fs::rename(&self.second, self.aside()).unwrap();
    }

    pub fn bring_second_back(&self) {
        // Nobody may have made an empty one in its place: what was stored there would be lost.
        fs::rename(self.aside(), &self.second).unwrap();
    }

    // ---- who asks

    /// What people and monitoring ask all the time. Answers may be refusals: things are broken.
    pub fn ask(&self) {
        for path in ["/metrics", "/", "/page/status.json", "/readyz"] {
            self.agent.get(path).unwrap();
        }
        // Who connects and goes away.
        let [address, socket] = [self.walkeep.http_address(), self.walkeep.socket().display().to_string()];
        drop(std::net::TcpStream::connect(address).unwrap());
        drop(std::os::unix::net::UnixStream::connect(socket).unwrap());
        self.walkeep.run(&["status", "--json"]);
    }

    // ---- the end

    /// Everything settles; what is not as it must be.
    pub fn end(mut self) -> Vec<String> {
        let mut told = Vec::new();
        self.load = None;
        self.cluster.switch_wal();
        wait_until("the server has no clients", PATIENCE, || {
            self.cluster.sql("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgbench'") == "0"
        });
        let end: f64 = self.cluster.value("SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint");
        let settled = try_wait_for(PATIENCE, || {
            let metric = |name: &str| self.agent.metric(name);
            let calm = metric("walkeep_wal_durable_bytes")? >= end
                && ["walkeep_wal_lag_bytes", "walkeep_backup_running", "walkeep_ready_files"].iter().all(|name| metric(name) == Some(0.0))
                && self
                    .agent
                    .metrics()
                    .lines()
                    .filter(|line| line.starts_with("walkeep_repository_queue_objects"))
                    .all(|line| line.ends_with(" 0"));
            calm.then_some(())
        });
        if settled.is_none() {
            told.push(format!("not everything is stored in both repositories {PATIENCE:?} after the last fault"));
        }
        told.extend(RAN.iter().filter(|name| !self.has_run(name)).map(|name| format!("{name} says that it never ran")));
        let log = self.agent.log();
        told.extend(NEVER.iter().filter(|text| log.contains(**text)).map(|text| format!("the agent's log says {text:?}")));
        println!(
            "{} lines in the agent's log, {} of them WARN, {} ERROR",
            log.lines().count(),
            count(&log, " WARN "),
            count(&log, " ERROR ")
        );
        self.agent.stop();
        told.extend(left_in(&self.temporary).into_iter().map(|path| format!("{} was left", path.display())));
        let spool = left_in(&self.walkeep.spool());
        println!("in the spool: {spool:?}");
        told.extend(left_over(&self.second).into_iter().map(|path| format!("{} was left in the repository", path.display())));
        let verified = self.walkeep.run(&["verify", "--deep"]);
        println!("verify --deep: exit {:?}\n{}", verified.code, verified.stdout);
        if !verified.ok() {
            told.push(format!("verify --deep: {}", verified.stderr));
        }
        told.extend(restored(&self.walkeep, &self.cluster).err());
        told
    }

    fn has_run(&self, sample: &str) -> bool {
        let (name, label) = sample.split_once('{').unwrap_or((sample, ""));
        let label = label.trim_end_matches('}');
        self.agent
            .metrics()
            .lines()
            .any(|line| line.starts_with(name) && label.split(',').all(|label| line.contains(label)) && !line.ends_with(" 0"))
    }
}

/// Every job of the agent's, as often as cron can say it.
fn jobs(tools: &str, temporary: &Path) -> String {
    format!(
        r#"
[[cluster.main.backup]]
schedule = "* * * * *"
label = "often"

[[cluster.main.backup]]
schedule = "*/5 * * * *"
label = "whole"
full = true

[cluster.main.retention]
window = "2min"
minimum_backups = 2
grace = "1min"
automatic = true

[cluster.main.verify]
check = "1min"
scrub = "1h"

[cluster.main.drill]
schedule = "*/4 * * * *"
target = "random"
sample = "1min"
bin_dir = "{tools}"
scratch = "{}"

[[cluster.main.drill.check]]
name = "the bank's sums agree"
query = "SELECT (SELECT sum(abalance) FROM pgbench_accounts) = (SELECT coalesce(sum(delta), 0) FROM pgbench_history)"

[cluster.main.dump]
schedule = "*/3 * * * *"
bin_dir = "{tools}"
keep_last = 2

[[cluster.main.artifact]]
name = "echo"
command = "date; head -c 100000 /dev/urandom"
schedule = "* * * * *"
keep_last = 3

[notify]
command = ["true"]
wait = "1s"
most_an_hour = 3600
possible_loss = "2s"
"#,
        temporary.display()
    )
}

fn count(log: &str, word: &str) -> usize {
    log.lines().filter(|line| line.contains(word)).count()
}

fn left_in(folder: &Path) -> Vec<PathBuf> {
    let mut left: Vec<_> = fs::read_dir(folder).unwrap().flatten().map(|entry| entry.path()).collect();
    left.sort_unstable();
    left
}

/// Files that were being written when something broke, and nobody has taken away.
fn left_over(repository: &Path) -> Vec<PathBuf> {
    let found = process::run(std::process::Command::new("find").arg(repository).args(["-name", "*walkeep-tmp*"])).unwrap();
    found.lines().map(PathBuf::from).collect()
}

/// Restores to the end of the WAL, from the repositories alone, and compares every row.
fn restored(walkeep: &Walkeep, cluster: &Cluster) -> Result<(), String> {
    let folder = walkeep_tests::Scratch::new();
    let data = folder.join("data");
    let output = walkeep.run(&["restore", "--latest", "--to", &data.to_string_lossy()]);
    if !output.ok() {
        return Err(format!("restore: {}", output.stderr));
    }
    let server = Cluster::adopt(cluster.version(), data);
    let environment: Vec<_> = walkeep.environment.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    server.start_with(&environment).map_err(|error| format!("start what was restored: {error:#}"))?;
    wait_until("the restored server writes", PATIENCE, || server.sql("SELECT pg_is_in_recovery()") == "f");
    let (there, here) = (cluster.sql(ROWS), server.sql(ROWS));
    println!("rows, sum, hash: {there}; restored: {here}");
    if there == here { Ok(()) } else { Err(format!("the restored server has {here}, the server {there}")) }
}
