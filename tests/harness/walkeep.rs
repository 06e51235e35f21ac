//! Walkeep itself: its binaries, a configuration for one cluster and its repositories, the agent.
//!
//! The binaries are those of the target folder that the running test lies in: `cargo build --workspace` first, a test run builds
//! libraries only.

use std::fmt::Display;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};

use crate::ports::Port;
use crate::process::{self, Process};
use crate::{Bucket, Cluster, Keys, S3Server, Scratch, http, s3, try_wait_for, user};

const READY: Duration = Duration::from_secs(30);
/// How long an agent may take to end after SIGTERM.
pub const STOP: Duration = Duration::from_secs(5);
const NAMES: [&str; 3] = ["walkeep", "walkeep-archive-cmd", "walkeep-restore-cmd"];

/// The path of one of Walkeep's binaries, where the servers' account can run it.
#[track_caller]
pub fn binary(name: &str) -> PathBuf {
    // Copied once for each test process: the target folder may lie in /root, and a build may replace what is in it.
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| {
        let folder = Scratch::new();
        for name in NAMES {
            let built = built(name);
            let copy = folder.join(name);
            // By another process: a file that this one has open for writing may at the same moment be inherited by a child that another thread
            // starts, and cannot be run for as long as that one has it ("Text file busy").
            let copied = process::run(Command::new("install").args(["-m", "755"]).arg(&built).arg(&copy));
            copied.unwrap_or_else(|error| panic!("{error:#}; run cargo build --workspace first"));
        }
        folder.until_process_ends()
    });
    folder.join(name)
}

fn built(name: &str) -> PathBuf {
    if let Some(folder) = std::env::var_os("WALKEEP_TEST_BIN") {
        return PathBuf::from(folder).join(name);
    }
    let test = std::env::current_exe().expect("a test knows its own path");
    // target/debug/deps/it-0123456789abcdef
    let built = test.ancestors().nth(2).expect("a test lies in target/PROFILE/deps").join(name);
    warn_if_stale(&built);
    built
}

/// A line for who edited the sources and forgot to build the binaries.
fn warn_if_stale(built: &Path) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests lie in the workspace");
    let newest = ["agent", "archive-cmd", "restore-cmd"].iter().filter_map(|folder| newest_source(&root.join(folder))).max();
    let binary = std::fs::metadata(built).and_then(|data| data.modified()).ok();
    if let (Some((changed, source)), Some(binary)) = (newest, binary)
        && changed > binary
    {
        eprintln!("harness: {} is older than {}: cargo build --workspace?", built.display(), source.display());
    }
}

fn newest_source(folder: &Path) -> Option<(SystemTime, PathBuf)> {
    let entries = std::fs::read_dir(folder).ok()?.flatten().map(|entry| entry.path());
    let newest = entries.filter_map(|path| match path.is_dir() {
        true => newest_source(&path),
        false
            if path.extension().is_some_and(|extension| extension == "rs")
                && !path.components().any(|part| part.as_os_str() == "tests") =>
        {
            Some((path.metadata().ok()?.modified().ok()?, path))
        }
        false => None,
    });
    newest.max()
}

/// Where a repository is.
#[derive(Debug, Clone)]
pub enum Repository {
    /// A folder, created here.
    Local(PathBuf),
    /// A bucket.
    S3 {
        /// `http://...` or `https://...`; a proxy's, or the server's.
        endpoint: String,
        /// The bucket's name.
        bucket: String,
        /// The key prefix; may be empty.
        prefix: String,
        /// The authority to trust besides the system's.
        ca: Option<PathBuf>,
    },
}

impl Repository {
    /// A bucket of the test server, at `endpoint` (the server's or a proxy's).
    pub fn s3(endpoint: impl Into<String>, bucket: &Bucket) -> Self {
        Self::S3 { endpoint: endpoint.into(), bucket: bucket.name.clone(), prefix: String::new(), ca: None }
    }

    /// A bucket of the test server by TLS, trusting its authority.
    pub fn s3_tls(bucket: &Bucket) -> Self {
        let server = S3Server::get();
        Self::S3 { endpoint: server.https_endpoint(), bucket: bucket.name.clone(), prefix: String::new(), ca: Some(server.ca()) }
    }

    fn url(&self) -> String {
        match self {
            Self::Local(folder) => format!("file://{}", folder.display()),
            Self::S3 { bucket, prefix, .. } if prefix.is_empty() => format!("s3://{bucket}"),
            Self::S3 { bucket, prefix, .. } => format!("s3://{bucket}/{prefix}"),
        }
    }
}

/// How a command of Walkeep's ended.
#[derive(Debug, Clone)]
pub struct Output {
    /// Its exit code; none where a signal ended it.
    pub code: Option<i32>,
    /// What it printed.
    pub stdout: String,
    /// What it printed on standard error.
    pub stderr: String,
}

impl Output {
    /// Exit 0?
    pub fn ok(&self) -> bool {
        self.code == Some(0)
    }

    /// Panics with everything printed unless the exit code is this; the output itself for more.
    #[track_caller]
    pub fn expect_code(self, code: i32) -> Self {
        assert!(self.code == Some(code), "exit {:?} where {code} was expected\n{}{}", self.code, self.stdout, self.stderr);
        self
    }

    /// Standard output as JSON.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error} in {}\n{}", self.stdout, self.stderr))
    }
}

/// A configuration of Walkeep's for one cluster named `main`, with its folders; commands that use it.
///
/// Fields can be changed before [`Walkeep::write_config`], which every constructor has called once.
#[derive(Debug)]
pub struct Walkeep {
    /// libpq connection string of the server.
    pub connection: String,
    /// The data directory, if the agent is to know it.
    pub data_directory: Option<PathBuf>,
    /// The replication slot's name.
    pub slot: String,
    /// How often an unfinished segment is uploaded.
    pub upload_interval: String,
    /// `repository` or `spool`.
    pub acknowledge: String,
    /// The first is the primary one.
    pub repositories: Vec<Repository>,
    /// Keys, where the repository is encrypted.
    pub keys: Option<Keys>,
    /// More lines of `[cluster.main]`.
    pub cluster_lines: String,
    /// More lines at the end: other tables.
    pub more: String,
    /// Environment of every command; the S3 credentials are in it from the start.
    pub environment: Vec<(String, String)>,
    /// Words before every command: what runs it, as the servers' account (`env LD_PRELOAD=...`).
    pub run_by: Vec<String>,
    scratch: Scratch,
    http: Port,
}

impl Walkeep {
    /// For this cluster and one repository.
    #[track_caller]
    pub fn new(cluster: &Cluster, repository: Repository) -> Self {
        let mut walkeep = Self::offline(repository);
        walkeep.connection = cluster.connection();
        walkeep.data_directory = Some(cluster.data().to_owned());
        walkeep.write_config();
        walkeep
    }

    /// For this cluster and a repository in a local folder, [`Walkeep::local_repository`].
    #[track_caller]
    pub fn local(cluster: &Cluster) -> Self {
        let mut walkeep = Self::new(cluster, Repository::Local(PathBuf::new()));
        walkeep.repositories = vec![Repository::Local(walkeep.scratch.dir("repo"))];
        walkeep.write_config();
        walkeep
    }

    /// For no server at all.
    #[track_caller]
    pub fn offline(repository: Repository) -> Self {
        let scratch = Scratch::new();
        scratch.dir("spool");
        scratch.dir("run");
        let credentials = [
            ("AWS_ACCESS_KEY_ID", s3::ACCESS_KEY),
            ("AWS_SECRET_ACCESS_KEY", s3::SECRET_KEY),
            // No look for an instance's credentials where these are taken away.
            ("AWS_EC2_METADATA_DISABLED", "true"),
        ];
        let walkeep = Self {
            connection: format!("host={} user=postgres", scratch.path().display()),
            data_directory: None,
            slot: "walkeep".to_owned(),
            upload_interval: "200ms".to_owned(),
            acknowledge: "repository".to_owned(),
            repositories: vec![repository],
            keys: Keys::of_this_run(),
            cluster_lines: String::new(),
            more: String::new(),
            environment: credentials.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
            run_by: Vec::new(),
            http: Port::free(),
            scratch,
        };
        walkeep.write_config();
        walkeep
    }

    /// Writes the configuration anew.
    #[track_caller]
    pub fn write_config(&self) {
        if let Some(keys) = &self.keys {
            self.scratch.write("recipients", keys.recipients.join("\n") + "\n", 0o644);
            self.scratch.write("identities", keys.identities.join("\n") + "\n", 0o600);
        }
        self.scratch.write("walkeep.toml", self.config(), 0o600);
    }

    fn config(&self) -> String {
        let mut text = String::from("[cluster.main]\n");
        line(&mut text, "connection", &self.connection);
        if let Some(data) = &self.data_directory {
            line(&mut text, "data_directory", data.display());
        }
        line(&mut text, "spool", self.spool().display());
        line(&mut text, "socket", self.socket().display());
        line(&mut text, "slot", &self.slot);
        line(&mut text, "upload_interval", &self.upload_interval);
        line(&mut text, "acknowledge", &self.acknowledge);
        text.push_str(&self.cluster_lines);
        if let Some(keys) = &self.keys {
            text.push_str("\n[cluster.main.encryption]\n");
            for (name, file, given) in
                [("recipients_file", "recipients", &keys.recipients), ("identity_file", "identities", &keys.identities)]
            {
                if !given.is_empty() {
                    line(&mut text, name, self.scratch.join(file).display());
                }
            }
        }
        for repository in &self.repositories {
            text.push_str("\n[[cluster.main.repository]]\n");
            line(&mut text, "url", repository.url());
            if let Repository::S3 { endpoint, ca, .. } = repository {
                line(&mut text, "endpoint", endpoint);
                line(&mut text, "region", s3::REGION);
                text.push_str("path_style = true\n");
                if let Some(ca) = ca {
                    line(&mut text, "ca_file", ca.display());
                }
            }
        }
        text.push_str("\n[listen]\n");
        line(&mut text, "http", self.http_address());
        text.push_str(&self.more);
        text
    }

    /// The configuration file.
    pub fn config_path(&self) -> PathBuf {
        self.scratch.join("walkeep.toml")
    }

    /// The folder of everything of this Walkeep.
    pub fn scratch(&self) -> &Scratch {
        &self.scratch
    }

    /// The spool.
    pub fn spool(&self) -> PathBuf {
        self.scratch.join("spool")
    }

    /// The agent's socket.
    pub fn socket(&self) -> PathBuf {
        self.scratch.join("run/main.sock")
    }

    /// The folder of [`Walkeep::local`]'s repository.
    pub fn local_repository(&self) -> PathBuf {
        self.scratch.join("repo")
    }

    /// Where the agent serves HTTP.
    pub fn http_address(&self) -> String {
        format!("127.0.0.1:{}", self.http.number())
    }

    /// The archive shim's command line, without the file: for [`Cluster::archive_by`].
    pub fn archive_command(&self) -> String {
        format!("{} --socket {}", binary("walkeep-archive-cmd").display(), self.socket().display())
    }

    /// `walkeep wal push` as a command line without the file: archiving without an agent. Give it to [`Cluster::archive_by`].
    pub fn push_command(&self) -> String {
        let environment: Vec<_> = self.environment.iter().map(|(name, value)| format!("{name}={value}")).collect();
        format!("env {} {} --config {} wal push", environment.join(" "), binary("walkeep").display(), self.config_path().display())
    }

    /// A whole restore_command with the restore shim.
    pub fn restore_command(&self) -> String {
        format!("{} --socket {} %f \"%p\"", binary("walkeep-restore-cmd").display(), self.socket().display())
    }

    /// `walkeep ARGS` as a command of the servers' account, not started.
    pub fn command(&self, args: &[&str]) -> Command {
        self.command_of("walkeep", args)
    }

    /// One of [`NAMES`] as a command, not started.
    pub fn command_of(&self, name: &str, args: &[&str]) -> Command {
        let mut command = match self.run_by.split_first() {
            None => user::command(binary(name)),
            Some((program, words)) => {
                let mut command = user::command(program);
                command.args(words).arg(binary(name));
                command
            }
        };
        command.env("WALKEEP_CONFIG", self.config_path()).envs(self.environment.iter().map(|(name, value)| (name, value))).args(args);
        command
    }

    /// Runs `walkeep ARGS` to its end.
    #[track_caller]
    pub fn run(&self, args: &[&str]) -> Output {
        run(&mut self.command(args))
    }

    /// Runs `walkeep ARGS`, which must succeed.
    #[track_caller]
    pub fn ok(&self, args: &[&str]) -> Output {
        self.run(args).expect_code(0)
    }

    /// Starts the agent and waits until it is ready.
    #[track_caller]
    pub fn agent(&self) -> Agent {
        self.try_agent().expect("start the agent")
    }

    /// [`Walkeep::agent`] for a start that may fail.
    pub fn try_agent(&self) -> Result<Agent> {
        let mut agent = self.launch_agent()?;
        let address = self.http_address();
        let answered = try_wait_for(READY, || {
            if let Some(status) = agent.process.ended() {
                return Some(Err(status));
            }
            http::get(&address, "/readyz").is_ok_and(|(status, _)| status == 200).then_some(Ok(()))
        });
        match answered {
            Some(Ok(())) => Ok(agent),
            Some(Err(status)) => bail!("the agent ended with {status}:\n{}", process::tail(&agent.log())),
            None => bail!("the agent was not ready after {READY:?}:\n{}", process::tail(&agent.log())),
        }
    }

    /// Starts the agent and waits for nothing.
    pub fn launch_agent(&self) -> Result<Agent> {
        let log = self.scratch.join("agent.log");
        let from = process::read_log(&log).len();
        let process = Process::start(self.command(&["agent"]), &log).context("start the agent")?;
        Ok(Agent { process, address: self.http_address(), from })
    }
}

/// Runs a command to its end, whatever its end.
#[track_caller]
pub fn run(command: &mut Command) -> Output {
    let output = command.stdin(std::process::Stdio::null()).output().expect("start a command");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Output { code: output.status.code(), stdout: text(&output.stdout), stderr: text(&output.stderr) }
}

/// A running agent. Killed when dropped; [`Agent::stop`] ends it as an operator would.
#[derive(Debug)]
pub struct Agent {
    process: Process,
    address: String,
    from: usize,
}

impl Agent {
    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// What this run of the agent logged.
    pub fn log(&self) -> String {
        self.process.log().get(self.from..).unwrap_or_default().to_owned()
    }

    /// How it ended, if it did.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.process.ended()
    }

    /// SIGKILL.
    pub fn kill9(&mut self) {
        self.process.kill();
    }

    /// Sends a signal, such as `"STOP"`, `"CONT"` or `"HUP"`.
    pub fn signal(&self, name: &str) {
        self.process.signal(name);
    }

    /// SIGTERM; it must end with exit code 0 within [`STOP`].
    #[track_caller]
    pub fn stop(mut self) {
        self.process.signal("TERM");
        let status = self.process.wait(STOP);
        let ended = status.unwrap_or_else(|| panic!("the agent went on for {STOP:?} after SIGTERM:\n{}", process::tail(&self.log())));
        assert!(ended.success(), "the agent ended with {ended}:\n{}", process::tail(&self.log()));
    }

    /// GETs a page: status and text.
    pub fn get(&self, path: &str) -> Result<(u16, String)> {
        http::get(&self.address, path)
    }

    /// The text of `/metrics`.
    #[track_caller]
    pub fn metrics(&self) -> String {
        let (status, text) = self.get("/metrics").expect("the agent serves metrics");
        assert_eq!(status, 200, "{text}");
        text
    }

    /// The first sample of `/metrics` whose name, with its labels but the cluster's, begins with this. None, too, where nobody answers: an agent that was
    /// just launched may not listen yet.
    pub fn metric(&self, name: &str) -> Option<f64> {
        let (_, text) = self.get("/metrics").ok().filter(|(status, _)| *status == 200)?;
        let begins = |line: &String| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ', ',']));
        text.lines().map(without_cluster).find(begins)?.rsplit(' ').next()?.parse().ok()
    }

    /// Log lines of level WARN or ERROR that contain none of `expected`: a story that went well has none.
    pub fn complaints(&self, expected: &[&str]) -> Vec<String> {
        let log = self.log();
        let lines = log.lines().filter(|line| line.contains("WARN") || line.contains("ERROR"));
        lines.filter(|line| !expected.iter().any(|text| line.contains(text))).map(str::to_owned).collect()
    }
}

/// A sample without the first of its labels, which says whose it is.
fn without_cluster(sample: &str) -> String {
    let Some((name, (_, rest))) = sample.split_once("{cluster=\"").and_then(|(name, rest)| Some((name, rest.split_once('"')?))) else {
        return sample.to_owned();
    };
    match rest.strip_prefix(',') {
        Some(labels) => format!("{name}{{{labels}"),
        None => format!("{name}{}", rest.trim_start_matches('}')),
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.process.kill();
        if std::thread::panicking() {
            eprintln!("---- the agent's log ends\n{}", process::tail(&self.log()));
        }
    }
}

/// Adds a TOML string.
fn line(text: &mut String, name: &str, value: impl Display) {
    // JSON's strings, as serde_json writes them, are TOML's basic strings.
    let value = serde_json::Value::from(value.to_string());
    writeln!(text, "{name} = {value}").expect("write to a string");
}
