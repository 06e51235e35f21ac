//! The fetch service that the shim starts where no agent runs: `walkeep fetch-service`.
//!
//! It outlives the shim, so it must hold nothing of PostgreSQL's: it has its own process group (PostgreSQL signals whole groups), `/` as
//! its directory, and no standard input or output. Above all its standard error is a file: the server's log is a pipe, and the logging
//! collector waits at shutdown for everybody who holds its other end. Our environment goes along: the store's credentials may be in it.

use std::ffi::OsString;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use walkeep_protocol::options::{Options, UsageError, absolute};

/// How much of the service's log is shown.
const TAIL: u64 = 600;

/// The exit code by which `walkeep` says that its configuration is wrong.
const WRONG_CONFIGURATION: i32 = 2;

/// The service of one socket.
pub struct Service {
    socket: PathBuf,
    log: PathBuf,
    program: PathBuf,
    arguments: Vec<OsString>,
    child: Option<Child>,
}

/// What came of starting it.
pub enum State {
    /// It runs, and may listen soon.
    Starting,
    /// It cannot be started, or has ended; with the reason.
    Failed(String),
    /// It has ended because its configuration is wrong, and will again.
    Misconfigured(String),
}

impl Service {
    /// The service beside the agent's `socket`.
    pub fn new(options: &Options, agent: &Path) -> Result<Self, UsageError> {
        let beside = |suffix: &str| {
            let mut path = agent.as_os_str().to_owned();
            path.push(suffix);
            PathBuf::from(path)
        };
        let socket = beside(".fetch");
        let mut arguments: Vec<OsString> = vec!["fetch-service".into(), "--socket".into(), socket.clone().into()];
        if let Some(config) = &options.config {
            arguments.extend(["--config".into(), absolute(config)?.into()]);
        }
        if let Some(cluster) = &options.cluster {
            arguments.extend(["--cluster".into(), cluster.into()]);
        }
        let program = match &options.walkeep {
            Some(program) => absolute(program)?,
            None => beside_this_program().unwrap_or_else(|| "walkeep".into()),
        };
        Ok(Self { socket, log: beside(".fetch.log"), program, arguments, child: None })
    }

    /// Where it listens.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Starts it unless it runs. Of two that start at once, one leaves again: the service itself sees to that.
    pub fn start(&mut self) -> State {
        match self.child.as_mut().map(Child::try_wait) {
            Some(Ok(None)) => State::Starting,
            Some(Ok(Some(status))) => {
                self.child = None;
                let why = format!("{} fetch-service ended ({status}){}", self.program.display(), self.last_words());
                if status.code() == Some(WRONG_CONFIGURATION) { State::Misconfigured(why) } else { State::Failed(why) }
            }
            Some(Err(error)) => State::Failed(format!("the fetch service cannot be watched: {error}")),
            None => match self.spawn() {
                Ok(child) => {
                    self.child = Some(child);
                    State::Starting
                }
                Err(why) => State::Failed(why),
            },
        }
    }

    fn spawn(&self) -> Result<Child, String> {
        let log = self.create_log().map_err(|error| format!("{} cannot be created: {error}", self.log.display()))?;
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).current_dir("/").process_group(0);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        command.spawn().map_err(|error| format!("{} cannot be started: {error}", self.program.display()))
    }

    fn create_log(&self) -> io::Result<File> {
        if let Some(directory) = self.log.parent().filter(|directory| !directory.exists()) {
            DirBuilder::new().mode(0o700).create(directory)?;
        }
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&self.log)
    }

    /// Why nobody answered although the service runs.
    pub fn silence(&self) -> String {
        format!(
            "{} fetch-service was started but does not listen on {}{}",
            self.program.display(),
            self.socket.display(),
            self.last_words()
        )
    }

    /// The end of its log.
    fn last_words(&self) -> String {
        let read = || {
            let mut log = File::open(&self.log)?;
            let length = log.metadata()?.len();
            log.seek(SeekFrom::Start(length.saturating_sub(TAIL)))?;
            let mut bytes = Vec::new();
            log.take(TAIL).read_to_end(&mut bytes)?;
            io::Result::Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
        };
        match read() {
            Ok(words) if !words.is_empty() => format!(": {words}"),
            _ => format!(" without a word in {}", self.log.display()),
        }
    }
}

fn beside_this_program() -> Option<PathBuf> {
    let program = std::env::current_exe().ok()?.with_file_name("walkeep");
    program.is_file().then_some(program)
}
