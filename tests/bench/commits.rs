//! What a commit costs that waits: one row each, beside asynchronous commits and beside pg_receivewal --synchronous.

use std::time::Duration;

use walkeep_tests::postgres::client;
use walkeep_tests::process::{Process, run};
use walkeep_tests::{Agent, Cluster, Repository, S3Server, Scratch, Walkeep, user, wait_until};

use crate::host::server;
use crate::load::{SCRIPT, create_table};
use crate::numbers::median;
use crate::options::Options;
use crate::rpo::be_synchronous;

/// Who streams, and what commits wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Nobody,
    Asynchronous,
    Repository,
    Spool,
    PgReceivewal,
}

const WAYS: [Way; 5] = [Way::Nobody, Way::Asynchronous, Way::Repository, Way::Spool, Way::PgReceivewal];

impl Way {
    fn name(self) -> &'static str {
        match self {
            Self::Nobody => "asynchronous, nothing streams",
            Self::Asynchronous => "asynchronous, Walkeep streams to S3",
            Self::Repository => "synchronous, Walkeep, acknowledge = \"repository\" (S3)",
            Self::Spool => "synchronous, Walkeep, acknowledge = \"spool\"",
            Self::PgReceivewal => "synchronous, pg_receivewal --synchronous",
        }
    }
}

/// `commits`.
pub fn run_every_way(options: &mut Options) -> Result<bool, String> {
    let (rounds, seconds) = (options.take("rounds", 3_u32)?, options.take("seconds", 10_u32)?);
    let clients = options.list::<u32>("clients", "1,8,32")?;
    options.end()?;
    println!("commits: one row each, {seconds} s, {rounds} rounds, the ways taking turns");
    let cluster = server().start();
    create_table(&cluster);
    let script = cluster.scratch().write("insert.sql", SCRIPT, 0o644).display().to_string();
    // The first to run shall not pay for cold files.
    cluster.pgbench_run(&["-c", "8", "-j", "2", "-T", "5", "-D", "n=0", "-f", &script]);
    let mut found = vec![vec![Vec::new(); clients.len()]; WAYS.len()];
    for round in 1..=rounds {
        for (way, found) in WAYS.iter().zip(&mut found) {
            let standby = Standby::start(*way, &cluster);
            for (clients, found) in clients.iter().zip(found) {
                cluster.sql("TRUNCATE commits");
                let (clients, threads, seconds) = (clients.to_string(), (*clients).min(2).to_string(), seconds.to_string());
                let report = cluster.pgbench_run(&["-c", &clients, "-j", &threads, "-T", &seconds, "-D", "n=0", "-f", &script]);
                let tps = tps(&report).unwrap_or_else(|| panic!("no tps in {report}"));
                println!("round {round}: {}, {clients} clients: {tps:.0}/s", way.name());
                found.push(tps);
            }
            standby.end(&cluster);
        }
    }
    println!("\n| commits/s, median of {rounds} | {} |", clients.iter().map(|n| format!("{n} clients")).collect::<Vec<_>>().join(" | "));
    println!("|---|{}", "---|".repeat(clients.len()));
    for (way, found) in WAYS.iter().zip(&found) {
        let cells: Vec<_> = found.iter().map(|values| format!("{:.0}", median(values))).collect();
        println!("| {} | {} |", way.name(), cells.join(" | "));
    }
    Ok(true)
}

fn tps(report: &str) -> Option<f64> {
    let line = report.lines().find(|line| line.starts_with("tps = "))?;
    line.split(' ').nth(2)?.parse().ok()
}

/// The agent asks the server now and then whether commits wait for it; from then on it stores at once.
pub fn wait_until_told(agent: &Agent) {
    wait_until("the agent knows that commits wait", Duration::from_secs(60), || agent.metric("walkeep_commits_wait") == Some(1.0));
}

/// Whoever streams from the server, with nothing behind.
enum Standby {
    Nobody,
    Walkeep(Box<(Agent, Walkeep)>),
    PgReceivewal(Process, Scratch),
}

const SLOT: &str = "bench";

impl Standby {
    fn start(way: Way, cluster: &Cluster) -> Self {
        match way {
            Way::Nobody => Self::Nobody,
            Way::PgReceivewal => {
                let scratch = Scratch::new();
                let receiver = || {
                    let mut command = user::command(client(cluster.version(), "pg_receivewal"));
                    command.args(["-d", &cluster.connection(), "--slot", SLOT]);
                    command
                };
                run(receiver().arg("--create-slot")).expect("create a slot");
                let mut command = receiver();
                command.arg("--synchronous").arg("-D").arg(scratch.dir("wal"));
                let process = Process::start(command, &scratch.join("log")).expect("start pg_receivewal");
                be_synchronous(cluster, "pg_receivewal");
                Self::PgReceivewal(process, scratch)
            }
            Way::Asynchronous | Way::Repository | Way::Spool => {
                let mut walkeep = Walkeep::new(cluster, Repository::s3(S3Server::get().endpoint(), &S3Server::get().bucket()));
                walkeep.slot = SLOT.to_owned();
                walkeep.upload_interval = "1s".to_owned();
                walkeep.acknowledge = if way == Way::Spool { "spool" } else { "repository" }.to_owned();
                walkeep.write_config();
                walkeep.ok(&["init"]);
                let agent = walkeep.agent();
                if way != Way::Asynchronous {
                    be_synchronous(cluster, "walkeep");
                    wait_until_told(&agent);
                }
                Self::Walkeep(Box::new((agent, walkeep)))
            }
        }
    }

    fn end(self, cluster: &Cluster) {
        cluster.set("synchronous_standby_names", "");
        match self {
            Self::Nobody => return,
            Self::Walkeep(walkeep) => walkeep.0.stop(),
            Self::PgReceivewal(process, _scratch) => drop(process),
        }
        // Another's slot would keep WAL while this one is not there.
        wait_until("the slot is free", Duration::from_secs(60), || {
            cluster.try_sql(&format!("SELECT pg_drop_replication_slot('{SLOT}')")).is_ok()
        });
    }
}
