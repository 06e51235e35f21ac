//! `archive_command`: asks the agent to store one file, and waits.
//!
//! Exit status 0 only after the agent said *durable*: PostgreSQL may recycle the file at once. Everything else is 1, never more than
//! 125: above that PostgreSQL's archiver dies as well and `pg_stat_archiver` does not count the failure. SIGTERM ends the shim at
//! once (the default), so that it does not hold up a server that stops.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use walkeep_protocol::notice::{print, report};
use walkeep_protocol::options::{Invocation, Options, Syntax, absolute, parse};
use walkeep_protocol::{Request, Response, Verb, call};

const PROGRAM: &str = "walkeep-archive-cmd";
const SYNTAX: Syntax = Syntax { files: &["%p"], timeout_variable: "WALKEEP_ARCHIVE_TIMEOUT", starts_walkeep: false };

/// PostgreSQL tries again by itself, so a long wait gains nothing but hides the trouble from `pg_stat_archiver`, and a server that stops
/// waits for it. The agent goes on storing the file meanwhile; the next try then finds it stored.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(60);

/// A server that stops waits for its archive command, and for up to five more tries with a second between them. So once it has been stopping for
/// this long, a try may take [`LAST_TRY`]. The agent goes on storing the file meanwhile, and the next try finds it stored.
const STOPPING_PATIENCE: Duration = Duration::from_secs(2);
const LAST_TRY: Duration = Duration::from_millis(200);

const HELP: &str = "\
Hands one WAL file to the Walkeep agent and returns when it is stored durably.

Usage: walkeep-archive-cmd [OPTIONS] %p

Options:
      --socket PATH    the agent's socket                      [env: WALKEEP_SOCKET]
      --config PATH    read the socket from this configuration [env: WALKEEP_CONFIG]
      --cluster NAME   the cluster's name in the configuration [env: WALKEEP_CLUSTER] [default: main]
      --timeout TIME   wait at most this long, such as 90s     [env: WALKEEP_ARCHIVE_TIMEOUT] [default: 60s]
  -h, --help           print this
  -V, --version        print the version

Without --socket and --config the socket is /run/walkeep/CLUSTER.sock.

Exit status: 0 the file is durable; 1 anything else (PostgreSQL keeps the file and tries again).

Examples, in postgresql.conf:
  archive_command = 'walkeep-archive-cmd %p'
  archive_command = 'walkeep-archive-cmd --cluster billing %p'
By hand, in the data directory:
  walkeep-archive-cmd pg_wal/000000010000000000000003
";

fn main() -> ExitCode {
    std::panic::set_hook(Box::new(|panic| {
        report(PROGRAM, &format!("internal error: {panic}"), Some("Please report this; PostgreSQL keeps the file and tries again."));
        std::process::exit(1);
    }));
    match parse(&SYNTAX, std::env::args_os().skip(1), |name| std::env::var_os(name)) {
        Ok(Invocation::Run(options)) => archive(&options),
        Ok(Invocation::Help) => {
            print(HELP);
            ExitCode::SUCCESS
        }
        Ok(Invocation::Version) => {
            print(concat!("walkeep-archive-cmd ", env!("CARGO_PKG_VERSION"), "\n"));
            ExitCode::SUCCESS
        }
        Err(error) => {
            report(PROGRAM, &error.to_string(), Some("Usage: walkeep-archive-cmd [OPTIONS] %p; see walkeep-archive-cmd --help."));
            ExitCode::FAILURE
        }
    }
}

fn archive(options: &Options) -> ExitCode {
    let file = options.files.first().cloned().unwrap_or_default();
    match ask(options, &file) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Refusal { reason, hint }) => {
            report(PROGRAM, &format!("could not archive {}: {reason}", Path::new(&file).display()), hint.as_deref());
            ExitCode::FAILURE
        }
    }
}

/// Why the file is not archived, and what to do about it.
struct Refusal {
    reason: String,
    hint: Option<String>,
}

impl Refusal {
    fn new(reason: impl ToString, hint: &str) -> Self {
        Self { reason: reason.to_string(), hint: Some(hint.to_owned()) }
    }
}

fn ask(options: &Options, file: &OsString) -> Result<(), Refusal> {
    let usage = |error| Refusal::new(error, "Say with --socket where the agent listens.");
    let socket = options.socket().map_err(usage)?;
    let path = absolute(Path::new(file)).map_err(usage)?;
    leave_with_the_server(&path);
    let request = Request { cluster: options.cluster.clone(), verb: Verb::Archive { path } };
    let deadline = Instant::now() + options.timeout.unwrap_or(DEFAULT_TIMEOUT);
    match call(&socket, &request, deadline) {
        Ok(Response::Done) => Ok(()),
        Ok(Response::Failed { message, hint, .. }) => Err(Refusal { reason: message, hint }),
        Ok(Response::TryLater { message }) => Err(Refusal::new(message, "PostgreSQL keeps the file and tries again.")),
        Ok(Response::Absent { message } | Response::Elsewhere { message } | Response::Told { text: message }) => {
            Err(Refusal::new(message, "The agent answered as if to another request; is it of this version?"))
        }
        Err(error) => Err(Refusal::new(
            format!("{error} (socket {})", socket.display()),
            error.hint().unwrap_or("Is the agent running? PostgreSQL keeps the file and tries again."),
        )),
    }
}

/// Ends this process when the server that runs it has been stopping for a while: a fast shutdown sends no signal to its archive command.
/// The server writes what it is doing into the eighth line of `postmaster.pid`, and when it began is when that file was changed.
fn leave_with_the_server(file: &Path) {
    let Some(pid_file) = file.parent().and_then(Path::parent).map(|data| data.join("postmaster.pid")) else { return };
    let stopping = move || {
        let text = std::fs::read_to_string(&pid_file).ok()?;
        let since = std::fs::metadata(&pid_file).ok()?.modified().ok()?;
        let stopping = text.lines().nth(7).is_some_and(|line| line.trim() == "stopping");
        Some(stopping && since.elapsed().is_ok_and(|since| since > STOPPING_PATIENCE))
    };
    let watch = move || {
        std::thread::sleep(LAST_TRY);
        while stopping() != Some(true) {
            std::thread::sleep(Duration::from_millis(100));
        }
        let hint = "PostgreSQL keeps the file and offers it again when it is back.";
        report(PROGRAM, "the server is stopping, and the file is not stored yet", Some(hint));
        std::process::exit(1);
    };
    // Without the thread the wait is only longer.
    let _ = std::thread::Builder::new().spawn(watch);
}
