//! PostgreSQL servers: every supported version, each in a scratch folder of its own.
//!
//! A data directory is a copy of a template made once per version and segment size, so **clusters of one kind share a system
//! identifier**; [`Builder::fresh`] runs initdb for a test that wants another. Port, socket and address are given on the command line
//! and never written into the data directory: a restored or copied directory starts as it is ([`Cluster::adopt`]).

mod archiving;
mod session;

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::ports::Port;
use crate::process::{self, Process};
use crate::{Scratch, cache, try_wait_for, user, wait_until};

pub use session::Session;

const ALL: std::ops::RangeInclusive<u32> = 13..=18;
const START: Duration = Duration::from_secs(60);
const STOP: Duration = Duration::from_secs(60);

/// The versions that can run here; one line on standard error for each that cannot.
pub fn versions() -> Vec<u32> {
    let (there, missing): (Vec<_>, Vec<_>) = ALL.partition(|version| bin(*version).is_some());
    for version in missing {
        let reason = std::fs::read_to_string(cache().join(format!("skipped/{version}")));
        let reason = reason.unwrap_or_else(|_| "it is not installed and tests/setup.sh does not say why".to_owned());
        eprintln!("SKIPPED postgres {version}: {}", reason.trim());
    }
    there
}

/// The version of tests that name none: `WALKEEP_TEST_PG`, else what the distribution has.
pub fn default_version() -> u32 {
    match std::env::var("WALKEEP_TEST_PG") {
        Ok(named) => named.parse().expect("WALKEEP_TEST_PG is a major version"),
        Err(_) => {
            let distribution = ALL.rev().find(|version| distribution_bin(*version).join("postgres").exists());
            distribution.or_else(|| ALL.rev().find(|version| bin(*version).is_some())).expect("PostgreSQL is installed: run tests/setup.sh")
        }
    }
}

/// The folder of a version's server binaries.
pub fn bin(version: u32) -> Option<PathBuf> {
    let fetched = cache().join(format!("pg/{version}/bin"));
    [distribution_bin(version), fetched].into_iter().find(|bin| bin.join("postgres").exists())
}

/// A client program (psql, pgbench, pg_basebackup, pg_waldump, pg_verifybackup, ...) of `version` where there is one, else of the newest
/// version there is; those of later versions work with older servers, except those that read a data directory.
pub fn client(version: u32, name: &str) -> PathBuf {
    let newest = cache().join("pgtools");
    let newest = std::fs::read_dir(&newest).into_iter().flatten().flatten().map(|entry| entry.path().join("bin")).max();
    let own = ALL.contains(&version).then(|| bin(version)).flatten();
    let distribution = ALL.rev().map(distribution_bin);
    let found = own.into_iter().chain(newest).chain(distribution).map(|bin| bin.join(name)).find(|path| path.exists());
    found.unwrap_or_else(|| panic!("there is no {name}: run tests/setup.sh"))
}

/// A client program of exactly this version: what reads WAL or data files reads only its own. `None`, and one line on standard error, where
/// there is none. `WALKEEP_TEST_TOOLS` may name a folder of further ones, each in `<version>/bin`.
pub fn own_client(version: u32, name: &str) -> Option<PathBuf> {
    let folders = std::env::var_os("WALKEEP_TEST_TOOLS").map(PathBuf::from).into_iter().chain([cache().join("pgtools")]);
    let newest = folders.flat_map(|folder| std::fs::read_dir(folder).into_iter().flatten().flatten());
    let newest = newest.filter(|entry| entry.file_name().to_string_lossy().split('.').next() == Some(&version.to_string()));
    let bins = bin(version).into_iter().chain([distribution_bin(version)]).chain(newest.map(|entry| entry.path().join("bin")));
    let found = bins.map(|bin| bin.join(name)).find(|path| path.exists());
    if found.is_none() {
        let reason = std::fs::read_to_string(cache().join(format!("skipped/{name}-{version}")));
        eprintln!("SKIPPED {name} {version}: {}", reason.as_deref().unwrap_or("it is not installed").trim());
    }
    found
}

fn distribution_bin(version: u32) -> PathBuf {
    PathBuf::from(format!("/usr/lib/postgresql/{version}/bin"))
}

/// How to stop a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// Waits for clients.
    Smart,
    /// A clean shutdown.
    Fast,
    /// No shutdown checkpoint: the next start is a crash recovery.
    Immediate,
}

/// What kind of cluster to make.
#[derive(Debug, Clone)]
pub struct Builder {
    version: u32,
    segment_mib: u32,
    fresh: bool,
    settings: Vec<(String, String)>,
}

impl Builder {
    /// The major version, 13 to 18.
    pub fn version(mut self, version: u32) -> Self {
        self.version = version;
        self
    }

    /// The size of a WAL segment; 16 where nothing is said, and 1 makes many small ones.
    pub fn segment_mib(mut self, mib: u32) -> Self {
        self.segment_mib = mib;
        self
    }

    /// A system identifier of its own (costs an initdb).
    pub fn fresh(mut self) -> Self {
        self.fresh = true;
        self
    }

    /// A line of postgresql.conf; the value is quoted here.
    pub fn conf(mut self, name: &str, value: impl Display) -> Self {
        self.settings.push((name.to_owned(), value.to_string()));
        self
    }

    /// archive_mode = on, with no command yet: see [`Cluster::archive_by`].
    pub fn archiving(self) -> Self {
        self.conf("archive_mode", "on").conf("archive_command", "")
    }

    /// The cluster, not started.
    #[track_caller]
    pub fn create(self) -> Cluster {
        let scratch = Scratch::new();
        let data = scratch.join("data");
        if self.fresh {
            initdb(self.version, self.segment_mib, &data).expect("make a data directory");
        } else {
            let template = template(self.version, self.segment_mib).expect("make a template data directory");
            // A template that is a link (in a cache made of links) is copied, not its link: the server would write into it.
            let copy = user::command("cp").args(["-a", "-H", "--reflink=auto"]).arg(&template).arg(&data).output().expect("start cp");
            assert!(copy.status.success(), "cp: {}", String::from_utf8_lossy(&copy.stderr));
        }
        let cluster = Cluster::in_scratch(self.version, scratch, data);
        let settings = [("fsync", "off"), ("shared_buffers", "16MB"), ("log_line_prefix", "%m [%p] "), ("max_wal_size", "256MB")];
        for (name, value) in settings.map(|(name, value)| (name.to_owned(), value.to_owned())).into_iter().chain(self.settings) {
            cluster.write_conf(&name, &value);
        }
        cluster
    }

    /// The cluster, started.
    #[track_caller]
    pub fn start(self) -> Cluster {
        let cluster = self.create();
        cluster.start();
        cluster
    }
}

/// One server and its data directory. Stopped (immediately) and removed when dropped.
#[derive(Debug)]
pub struct Cluster {
    version: u32,
    // The server ends before its folder is removed: fields are dropped in this order.
    server: Mutex<Option<Process>>,
    port: Port,
    data: PathBuf,
    scratch: Scratch,
}

impl Cluster {
    /// A cluster of the default version with 16 MiB segments, no archiving, fsync off.
    pub fn builder() -> Builder {
        Builder { version: default_version(), segment_mib: 16, fresh: false, settings: Vec::new() }
    }

    /// A server for a data directory that is there already, such as a restored one; not started. The directory is not removed.
    #[track_caller]
    pub fn adopt(version: u32, data: impl Into<PathBuf>) -> Self {
        Self::in_scratch(version, Scratch::new(), data.into())
    }

    fn in_scratch(version: u32, scratch: Scratch, data: PathBuf) -> Self {
        scratch.dir("s");
        Self { version, server: Mutex::new(None), port: Port::free(), data, scratch }
    }

    /// The major version.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// The data directory.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// Its `pg_wal`.
    pub fn pg_wal(&self) -> PathBuf {
        self.data.join("pg_wal")
    }

    /// The folder with everything of this cluster: its data directory, socket folder and log.
    pub fn scratch(&self) -> &Scratch {
        &self.scratch
    }

    /// The folder of its Unix socket: `host` of a connection string.
    pub fn socket_dir(&self) -> PathBuf {
        self.scratch.join("s")
    }

    /// Its port, for the Unix socket and on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// A libpq connection string by the Unix socket, as the superuser `postgres`.
    pub fn connection(&self) -> String {
        format!("host={} port={} user=postgres dbname=postgres", self.socket_dir().display(), self.port())
    }

    /// A libpq connection string by TCP.
    pub fn tcp_connection(&self) -> String {
        format!("host=127.0.0.1 port={} user=postgres dbname=postgres", self.port())
    }

    /// The server's log.
    pub fn log(&self) -> String {
        process::read_log(&self.log_path())
    }

    fn log_path(&self) -> PathBuf {
        self.scratch.join("log")
    }

    fn server(&self) -> MutexGuard<'_, Option<Process>> {
        self.server.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    // ---- starting and stopping

    /// Starts the server and waits until it accepts connections (a standby: until it is consistent).
    #[track_caller]
    pub fn start(&self) {
        self.try_start().expect("start PostgreSQL");
    }

    /// [`Cluster::start`], for a start that may fail. The server is not left running.
    pub fn try_start(&self) -> Result<()> {
        self.start_with(&[])
    }

    /// Starts with these variables in the server's environment (`LD_PRELOAD` and `FAKETIME`, say).
    pub fn start_with(&self, environment: &[(&str, &str)]) -> Result<()> {
        self.launch(environment)?;
        let status = || {
            let pidfile = std::fs::read_to_string(self.data.join("postmaster.pid")).unwrap_or_default();
            pidfile.lines().nth(7).map(|status| status.trim().to_owned())
        };
        let ended = try_wait_for(START, || match status().as_deref() {
            Some("ready" | "standby") => Some(None),
            _ => self.server().as_mut().and_then(Process::ended).map(Some),
        });
        match ended {
            Some(None) => Ok(()),
            Some(Some(status)) => bail!("the server ended with {status}:\n{}", process::tail(&self.log())),
            None => {
                self.kill9();
                bail!("the server was not ready after {START:?}:\n{}", process::tail(&self.log()))
            }
        }
    }

    /// Starts the server process and waits for nothing.
    pub fn launch(&self, environment: &[(&str, &str)]) -> Result<()> {
        let mut server = self.server();
        if server.as_mut().is_some_and(|running| running.ended().is_none()) {
            bail!("the server runs already");
        }
        // A killed server's pid file would be read as the new one's.
        let _ = std::fs::remove_file(self.data.join("postmaster.pid"));
        let program = bin(self.version).with_context(|| format!("PostgreSQL {} is not here", self.version))?.join("postgres");
        // Should the test process be killed: an immediate shutdown, which ends the server's children too.
        // By env and not from the environment: a library to be preloaded must not be in the program that changes the user.
        let mut command = user::command_with("env", "QUIT", None);
        command
            .args(environment.iter().map(|(name, value)| format!("{name}={value}")))
            .arg(program)
            .arg("-D")
            .arg(&self.data)
            .args(["-p", &self.port().to_string()]);
        command.arg("-k").arg(self.socket_dir()).args(["-c", "listen_addresses=127.0.0.1"]);
        command.args(["-c", "logging_collector=off", "-c", "log_destination=stderr"]);
        *server = Some(Process::start(command, &self.log_path())?);
        Ok(())
    }

    /// Whether the server process runs.
    pub fn running(&self) -> bool {
        self.server().as_mut().is_some_and(|server| server.ended().is_none())
    }

    /// The postmaster's process id.
    #[track_caller]
    pub fn pid(&self) -> u32 {
        self.server().as_ref().expect("the server was started").pid()
    }

    /// Stops the server and waits until it is gone.
    #[track_caller]
    pub fn stop(&self, how: Stop) {
        self.signal_stop(how);
        assert!(self.wait_end(STOP), "the server did not stop ({how:?}) in {STOP:?}:\n{}", process::tail(&self.log()));
    }

    /// Asks the server to stop and does not wait.
    #[track_caller]
    pub fn signal_stop(&self, how: Stop) {
        let signal = match how {
            Stop::Smart => "TERM",
            Stop::Fast => "INT",
            Stop::Immediate => "QUIT",
        };
        if let Some(server) = self.server().as_ref() {
            server.signal(signal);
        }
    }

    /// Waits for the server's end by itself; false when it goes on after `within`.
    pub fn wait_end(&self, within: Duration) -> bool {
        try_wait_for(within, || (!self.running()).then_some(())).is_some()
    }

    /// SIGKILL for the server and all its children, archive commands too: what a power cut leaves, but for the disk's cache.
    pub fn kill9(&self) {
        if let Some(server) = self.server().as_mut() {
            let all = process::descendants(server.pid());
            server.kill();
            all.iter().for_each(|pid| process::signal(*pid, "KILL"));
            try_wait_for(STOP, || all.iter().all(|pid| !process::alive(*pid)).then_some(()));
        }
    }

    /// [`Cluster::kill9`] and a start.
    #[track_caller]
    pub fn crash(&self) {
        self.kill9();
        self.start();
    }

    /// A fast stop and a start.
    #[track_caller]
    pub fn restart(&self) {
        self.stop(Stop::Fast);
        self.start();
    }

    /// Ends recovery and waits until the server writes.
    #[track_caller]
    pub fn promote(&self) {
        self.sql("SELECT pg_promote(wait => true)");
        wait_until("the promoted server writes", START, || self.sql("SELECT pg_is_in_recovery()") == "f");
    }

    // ---- settings

    /// Adds a line to postgresql.conf; counts from the next start or [`Cluster::reload`].
    #[track_caller]
    pub fn write_conf(&self, name: &str, value: &str) {
        use std::io::Write;
        let mut file = std::fs::File::options().append(true).open(self.data.join("postgresql.conf")).expect("open postgresql.conf");
        writeln!(file, "{name} = '{}'", value.replace('\'', "''")).expect("write postgresql.conf");
    }

    /// Changes a setting of the running server that needs no restart, and waits until it holds.
    #[track_caller]
    pub fn set(&self, name: &str, value: &str) {
        self.write_conf(name, value);
        self.reload();
    }

    /// Reads the configuration again and waits until the server has.
    #[track_caller]
    pub fn reload(&self) {
        let loaded = self.sql("SELECT pg_conf_load_time()");
        self.sql("SELECT pg_reload_conf()");
        // Each new session's load time is the postmaster's.
        wait_until("the configuration is read again", START, || self.sql("SELECT pg_conf_load_time()") != loaded);
    }

    // ---- asking

    /// Runs SQL (several statements are one transaction) and returns psql's plain output: rows in lines, fields between `|`.
    #[track_caller]
    pub fn sql(&self, query: &str) -> String {
        self.try_sql(query).expect("run SQL")
    }

    /// [`Cluster::sql`] for what may fail.
    pub fn try_sql(&self, query: &str) -> Result<String> {
        self.try_sql_in("postgres", query)
    }

    /// [`Cluster::try_sql`] in another database.
    pub fn try_sql_in(&self, database: &str, query: &str) -> Result<String> {
        let mut command = self.psql(database);
        command.args(["-v", "ON_ERROR_STOP=1", "-c", query]);
        let mut text = process::run(&mut command)?;
        text.truncate(text.trim_end_matches('\n').len());
        Ok(text)
    }

    /// The rows of a query; fields are split at `|`.
    #[track_caller]
    pub fn rows(&self, query: &str) -> Vec<Vec<String>> {
        self.sql(query).lines().map(|line| line.split('|').map(str::to_owned).collect()).collect()
    }

    /// The one value of a query.
    #[track_caller]
    pub fn value<T: FromStr<Err: std::fmt::Debug>>(&self, query: &str) -> T {
        let text = self.sql(query);
        text.parse().unwrap_or_else(|error| panic!("{query}: {text:?}: {error:?}"))
    }

    fn psql(&self, database: &str) -> std::process::Command {
        let mut command = user::command(client(self.version, "psql"));
        command.arg("-XAtq").arg("-h").arg(self.socket_dir()).args(["-p", &self.port().to_string(), "-U", "postgres", "-d", database]);
        command
    }

    /// A session that stays open, for transactions that last.
    #[track_caller]
    pub fn session(&self) -> Session {
        Session::open(self.psql("postgres")).expect("open a session")
    }

    /// Fills pgbench's tables; `scale` 1 is 100,000 rows, about 15 MB.
    #[track_caller]
    pub fn pgbench_init(&self, scale: u32) {
        process::run(self.pgbench().args(["-i", "-q", "-s", &scale.to_string(), "postgres"])).expect("run pgbench -i");
    }

    /// Runs pgbench (`["-c", "2", "-T", "5"]`) to its end and returns its report.
    #[track_caller]
    pub fn pgbench_run(&self, args: &[&str]) -> String {
        process::run(self.pgbench().args(["-n"]).args(args).arg("postgres")).expect("run pgbench")
    }

    /// Starts pgbench beside the test; ended when dropped.
    #[track_caller]
    pub fn pgbench_spawn(&self, args: &[&str]) -> Process {
        let mut command = self.pgbench();
        command.args(["-n"]).args(args).arg("postgres");
        Process::start(command, &self.scratch.join("pgbench.log")).expect("start pgbench")
    }

    fn pgbench(&self) -> std::process::Command {
        let mut command = user::command(client(self.version, "pgbench"));
        command.arg("-h").arg(self.socket_dir()).args(["-p", &self.port().to_string(), "-U", "postgres"]);
        command
    }

    /// The position up to which WAL is written.
    #[track_caller]
    pub fn lsn(&self) -> String {
        self.sql("SELECT pg_current_wal_lsn()")
    }

    /// Ends the current segment (a little is written first, so that there is something to end) and returns its name.
    #[track_caller]
    pub fn switch_wal(&self) -> String {
        self.sql("SELECT pg_logical_emit_message(true, 'test', 'switch')");
        let name = self.sql("SELECT pg_walfile_name(pg_current_wal_insert_lsn())");
        self.sql("SELECT pg_switch_wal()");
        name
    }

    /// The system identifier.
    #[track_caller]
    pub fn system_identifier(&self) -> u64 {
        self.value("SELECT system_identifier FROM pg_control_system()")
    }

    // ---- other clusters out of this one

    /// A base backup by pg_basebackup into `to`, which becomes a folder of the servers' account.
    #[track_caller]
    pub fn base_backup(&self, to: &Path, args: &[&str]) {
        let mut command = user::command(client(self.version, "pg_basebackup"));
        command.arg("-D").arg(to).args(["-d", &self.connection(), "-c", "fast", "--no-sync"]).args(args);
        process::run(&mut command).expect("run pg_basebackup");
    }

    /// A standby that streams from here; started.
    #[track_caller]
    pub fn standby(&self) -> Cluster {
        let scratch = Scratch::new();
        let data = scratch.join("data");
        self.base_backup(&data, &["-X", "stream"]);
        let standby = Self::in_scratch(self.version, scratch, data);
        standby.follow(self);
        standby
    }

    /// Starts this stopped server as a standby that streams from `primary`.
    #[track_caller]
    pub fn follow(&self, primary: &Cluster) {
        self.write_conf("primary_conninfo", &primary.connection());
        std::fs::write(self.data.join("standby.signal"), "").expect("write standby.signal");
        user::give(&self.data.join("standby.signal"));
        self.start();
    }

    /// pg_rewind of this stopped server's data directory to where `source`, which runs, is.
    #[track_caller]
    pub fn rewind(&self, source: &Cluster) {
        // Before 16, pg_rewind asks the source's last checkpoint for its timeline, and finds nothing to do if that was before the promotion.
        source.sql("CHECKPOINT");
        let program = bin(self.version).expect("PostgreSQL is here").join("pg_rewind");
        let mut command = user::command(program);
        command.arg("--target-pgdata").arg(&self.data).args(["--no-sync", "--source-server", &source.connection()]);
        process::run(&mut command).expect("run pg_rewind");
    }

    /// A copy of the data directory as it lies there, same system identifier and timeline; not started. Stop the server first for a
    /// clean one.
    #[track_caller]
    pub fn copy(&self) -> Cluster {
        let scratch = Scratch::new();
        let data = scratch.join("data");
        process::run(user::command("cp").args(["-a", "--reflink=auto"]).arg(&self.data).arg(&data)).expect("copy the data directory");
        let _ = std::fs::remove_file(data.join("postmaster.pid"));
        Self::in_scratch(self.version, scratch, data)
    }

    /// A server out of a pg_basebackup of this one, on the same timeline: nobody promoted it; not started.
    #[track_caller]
    pub fn copy_by_backup(&self) -> Cluster {
        let scratch = Scratch::new();
        let data = scratch.join("data");
        self.base_backup(&data, &["-X", "stream"]);
        Self::in_scratch(self.version, scratch, data)
    }

    /// Waits until `standby` has replayed what is written here now.
    #[track_caller]
    pub fn wait_replayed(&self, standby: &Cluster) {
        let query = format!("SELECT pg_last_wal_replay_lsn() >= '{}'", self.lsn());
        wait_until("the standby has replayed everything", START, || standby.sql(&query) == "t");
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.signal_stop(Stop::Immediate);
        if !self.wait_end(Duration::from_secs(10)) {
            self.kill9();
        }
        if std::thread::panicking() {
            eprintln!("---- the log of PostgreSQL in {} ends\n{}", self.data.display(), process::tail(&self.log()));
        }
    }
}

/// The template of this kind of cluster, made by the first who asks for it.
fn template(version: u32, segment_mib: u32) -> Result<PathBuf> {
    static MAKING: Mutex<()> = Mutex::new(());
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| cache().join("templates"));
    std::fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    let path = folder.join(format!("{version}-{segment_mib}"));
    let _guard = MAKING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if !path.exists() {
        // Another test process may be making it too; whoever is first to rename has made it.
        let scratch = Scratch::new();
        let made = scratch.join("data");
        initdb(version, segment_mib, &made)?;
        let near = folder.join(format!(".{version}-{segment_mib}.{}", std::process::id()));
        process::run(std::process::Command::new("cp").arg("-a").arg(&made).arg(&near))?;
        if std::fs::rename(&near, &path).is_err() {
            std::fs::remove_dir_all(&near)?;
        }
    }
    Ok(path)
}

fn initdb(version: u32, segment_mib: u32, data: &Path) -> Result<()> {
    let bin = bin(version).with_context(|| format!("PostgreSQL {version} is not here: run tests/setup.sh"))?;
    let mut command = user::command(bin.join("initdb"));
    command.arg("-D").arg(data).args(["-A", "trust", "-U", "postgres", "-k", "-N", "-E", "UTF8", "--locale=C"]);
    process::run(command.arg(format!("--wal-segsize={segment_mib}"))).map(drop)
}
