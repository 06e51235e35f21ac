//! The demo's PostgreSQL servers.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::Command;

use super::stage::Stage;
use super::within;
use crate::cli::output;
use crate::postgres::{ConnectionParams, connect_sql};

/// The port is only the socket's number: nothing listens on the network.
const PORT: u16 = 5432;

/// A server with its own data directory and a socket in its own folder.
pub struct Server {
    bin: PathBuf,
    data: PathBuf,
    sockets: PathBuf,
    log: PathBuf,
    running: bool,
}

impl Server {
    /// A new cluster.
    pub fn create(stage: &Stage, name: &str, settings: &[String]) -> Result<Self> {
        let server = Self::place(stage, name)?;
        let made = std::process::Command::new(server.bin.join("initdb"))
            .args(["--auth=trust", "--username=postgres", "--data-checksums", "--no-sync", "-D"])
            .arg(&server.data)
            .output()
            .with_context(|| format!("run {}", server.bin.join("initdb").display()))?;
        ensure!(made.status.success(), "initdb failed: {}", String::from_utf8_lossy(&made.stderr));
        let mut file = OpenOptions::new().append(true).open(server.data.join("postgresql.conf"))?;
        writeln!(file, "listen_addresses = ''\nunix_socket_directories = '{}'\nport = {PORT}", server.sockets.display())?;
        for line in settings {
            writeln!(file, "{line}")?;
        }
        Ok(server)
    }

    /// A cluster that was restored.
    pub fn adopt(stage: &Stage, name: &str) -> Result<Self> {
        Self::place(stage, name)
    }

    fn place(stage: &Stage, name: &str) -> Result<Self> {
        let sockets = stage.path(&format!("{name}.run"));
        std::fs::create_dir(&sockets)?;
        let log = stage.path(&format!("{name}.log"));
        Ok(Self { bin: stage.pg_bin().to_owned(), data: stage.path(name), sockets, log, running: false })
    }

    /// The data directory.
    pub fn data(&self) -> &std::path::Path {
        &self.data
    }

    /// How to connect.
    pub fn connection(&self) -> String {
        format!("host={} port={PORT} user=postgres dbname=postgres", self.sockets.display())
    }

    /// Starts it; a restored one begins to recover.
    pub async fn start(&mut self) -> Result<()> {
        let options = format!("-c unix_socket_directories={} -c listen_addresses= -c port={PORT}", self.sockets.display());
        let mut start = self.pg_ctl();
        start.args(["-w", "-t", "120", "-l"]).arg(&self.log).arg("-o").arg(options).arg("start");
        let started = start.output().await.context("run pg_ctl")?;
        ensure!(started.status.success(), "the server did not start; its log is {}", self.log.display());
        self.running = true;
        Ok(())
    }

    fn pg_ctl(&self) -> Command {
        let mut command = Command::new(self.bin.join("pg_ctl"));
        command.arg("-D").arg(&self.data);
        command
    }

    /// A connection.
    pub async fn connect(&self) -> Result<tokio_postgres::Client> {
        Ok(connect_sql(&ConnectionParams::parse(&self.connection(), &|_| None)?).await?)
    }

    /// Runs a statement.
    pub async fn sql(&self, statement: &str) -> Result<()> {
        self.connect().await?.batch_execute(statement).await.with_context(|| format!("run {statement:?}"))
    }

    /// One text out of the server.
    pub async fn one(&self, query: &str) -> Result<String> {
        let row = self.connect().await?.query_one(query, &[]).await.with_context(|| format!("run {query:?}"))?;
        Ok(row.try_get(0)?)
    }

    /// Waits until recovery is over.
    pub async fn wait_until_writable(&self, time: Duration) -> Result<()> {
        within("the recovery", time, async || Ok(self.one("select pg_is_in_recovery()::text").await.is_ok_and(|text| text == "false")))
            .await
    }

    /// The accident.
    pub fn kill_and_delete(&mut self) -> Result<()> {
        self.kill()?;
        self.running = false;
        std::fs::remove_dir_all(&self.data).context("delete the data directory")
    }

    /// SIGKILL for the server and all its processes at once, as a power cut would have it.
    fn kill(&self) -> Result<()> {
        let file = std::fs::read_to_string(self.data.join("postmaster.pid")).context("read postmaster.pid")?;
        let server: i32 = file.lines().next().unwrap_or_default().parse().context("read the postmaster's id")?;
        let children = std::fs::read_to_string(format!("/proc/{server}/task/{server}/children")).unwrap_or_default();
        let all = [server].into_iter().chain(children.split_whitespace().filter_map(|pid| pid.parse().ok()));
        let all: Vec<_> = all.filter_map(Pid::from_raw).collect();
        for (index, pid) in all.iter().enumerate() {
            let killed = kill_process(*pid, Signal::KILL);
            // A child may have ended meanwhile.
            ensure!(killed.is_ok() || index > 0, "the server cannot be killed: {killed:?}");
        }
        // What is dead has no command line any more, even where nobody reaps it.
        let gone = |pid: &Pid| std::fs::read(format!("/proc/{pid}/cmdline")).map_or(true, |line| line.is_empty());
        let began = Instant::now();
        while !all.iter().all(gone) {
            ensure!(began.elapsed() < Duration::from_secs(30), "the server's processes do not end");
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Stops it in good order.
    pub async fn stop(&mut self) -> Result<()> {
        let mut stop = self.pg_ctl();
        stop.args(["-w", "-m", "fast", "stop"]);
        let stopped = stop.output().await.context("run pg_ctl")?;
        ensure!(stopped.status.success(), "the server did not stop");
        self.running = false;
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.running
            && let Err(error) = self.kill()
        {
            output::tell!("could not end the demo's server: {error:#}");
        }
    }
}
