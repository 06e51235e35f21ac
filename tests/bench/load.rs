//! Clients that commit, one row each, and know which commits were confirmed to them and when.

use std::collections::BTreeSet;
use std::time::Duration;

use walkeep_tests::process::Process;
use walkeep_tests::{Cluster, Scratch, wait_until};

/// A commit: the client, and its how-manieth this is.
pub type Commit = (u32, u64);

/// A commit that a client got its answer for.
#[derive(Debug, Clone, Copy)]
pub struct Confirmed {
    /// Which.
    pub commit: Commit,
    /// When, in seconds since 1970.
    pub at: f64,
}

/// The clients, as one pgbench. Its log has, for each answer, client, number and time: the row that was inserted has the same two numbers.
pub struct Load {
    pgbench: Process,
    folder: Scratch,
}

/// One row for each commit.
pub const SCRIPT: &str = "\\set n :n + 1\nINSERT INTO commits VALUES (:client_id, :n);\n";

/// The table of commits.
pub fn create_table(cluster: &Cluster) {
    cluster.sql("CREATE TABLE commits (client int, n bigint, PRIMARY KEY (client, n))");
}

/// The commits that are in the table.
pub fn commits(cluster: &Cluster) -> BTreeSet<Commit> {
    let number = |text: &str| text.parse::<u64>().expect("psql prints numbers");
    let rows = cluster.rows("SELECT client, n FROM commits");
    rows.iter().map(|row| (u32::try_from(number(&row[0])).expect("a client's number is small"), number(&row[1]))).collect()
}

impl Load {
    /// Starts so many clients, together at so many commits a second where a rate is given, and waits until they commit.
    pub fn start(cluster: &Cluster, clients: u32, rate: Option<f64>) -> Self {
        let folder = Scratch::new();
        let script = folder.write("insert.sql", SCRIPT, 0o644);
        let (clients, threads) = (clients.to_string(), clients.min(2).to_string());
        let (script, prefix) = (script.display().to_string(), format!("--log-prefix={}", folder.join("log").display()));
        let mut args = vec!["-c", &clients, "-j", &threads, "-T", "86400", "-D", "n=0", "-f", &script, "-l", &prefix];
        let rate = rate.map(|rate| rate.to_string());
        if let Some(rate) = &rate {
            args.extend(["-R", rate]);
        }
        let load = Self { pgbench: cluster.pgbench_spawn(&args), folder };
        wait_until("the clients commit", Duration::from_secs(60), || cluster.sql("SELECT count(*) FROM commits") != "0");
        load
    }

    /// What was confirmed in all. The server has died, so the clients end, and then write what their log still lacked.
    pub fn after_the_crash(mut self) -> Vec<Confirmed> {
        self.pgbench.wait(Duration::from_secs(60)).expect("the clients end with their server");
        let entries = std::fs::read_dir(self.folder.path()).expect("read an own folder").flatten();
        let logs = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("log."));
        let text: String = logs.map(|entry| std::fs::read_to_string(entry.path()).expect("read pgbench's log")).collect();
        text.lines().map(|line| confirmed(line).unwrap_or_else(|| panic!("{line:?} in pgbench's log"))).collect()
    }
}

/// `client number latency script seconds microseconds ...`
fn confirmed(line: &str) -> Option<Confirmed> {
    let fields: Vec<_> = line.split(' ').collect();
    let at = fields.get(4)?.parse::<f64>().ok()? + fields.get(5)?.parse::<f64>().ok()? / 1e6;
    Some(Confirmed { commit: (fields[0].parse().ok()?, fields[1].parse().ok()?), at })
}
