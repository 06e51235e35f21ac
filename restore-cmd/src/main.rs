//! `restore_command`: asks the agent to put one archived file in place, and waits.
//!
//! PostgreSQL takes 1 to 125 for "the archive ends here" and opens the database, so 1 means *proven absent* and nothing else. Every
//! other trouble is tried again until a deadline and then ends above 125, which stops the server before it can lose anything. Where no
//! agent listens, the shim starts `walkeep fetch-service` and asks that. The only exception is a standby's segment: see [`verdict`].

mod fetch;
mod service;
mod verdict;

use std::path::Path;
use std::process::ExitCode;
use std::sync::Once;
use std::time::{Duration, Instant};

use walkeep_protocol::notice::{print, report};
use walkeep_protocol::options::{Invocation, Options, Syntax, UsageError, absolute, parse};
use walkeep_protocol::{Request, Verb};

use fetch::Fetch;
use service::Service;
use verdict::{Asker, Verdict};

const PROGRAM: &str = "walkeep-restore-cmd";
const SYNTAX: Syntax = Syntax { files: &["%f", "%p"], timeout_variable: "WALKEEP_RESTORE_TIMEOUT", starts_walkeep: true };

/// Long enough to outlast an agent's restart or a store's failover, after which recovery simply goes on; short enough that a server that
/// cannot recover says so while somebody still watches. The first trouble is in the log at once.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(300);

const HELP: &str = "\
Asks the Walkeep agent to put one archived file in place. Starts the fetch service where no agent runs.

Usage: walkeep-restore-cmd [OPTIONS] %f %p

Options:
      --socket PATH    the agent's socket                        [env: WALKEEP_SOCKET]
      --config PATH    configuration: the socket, the repository [env: WALKEEP_CONFIG]
      --cluster NAME   the cluster's name in the configuration   [env: WALKEEP_CLUSTER] [default: main]
      --timeout TIME   try again for this long, such as 90s      [env: WALKEEP_RESTORE_TIMEOUT] [default: 5m]
      --walkeep PATH   the program that is the fetch service     [env: WALKEEP_BIN] [default: beside this one, or in PATH]
  -h, --help           print this
  -V, --version        print the version

Without --socket and --config the socket is /run/walkeep/CLUSTER.sock. The fetch service listens on SOCKET.fetch and writes what
goes wrong to SOCKET.fetch.log; it leaves when nobody asks any more.

Exit status:
    0  the file is in place, whole and durable
    1  the repository was reached and does not have the file
  200  the time ran out, and the agent could not say
  201  the time ran out without an agent, and no fetch service could be started
  202  wrong usage
  203  internal error
  204  refused for good: asking again would not help
PostgreSQL ends recovery and opens the database at 1 to 125, and stops at 126 and above. Where standby.signal stands and promote does
not, PostgreSQL asks again by itself: trouble with a segment is then tried for at most 10 seconds, and ends with 1.

Examples, in postgresql.conf:
  restore_command = 'walkeep-restore-cmd %f %p'
  restore_command = 'walkeep-restore-cmd --config /srv/restore/walkeep.toml %f %p'
By hand, in the data directory:
  walkeep-restore-cmd 00000002.history pg_wal/RECOVERYHISTORY
";

fn main() -> ExitCode {
    std::panic::set_hook(Box::new(|panic| {
        report(PROGRAM, &format!("internal error: {panic}"), Some("Please report this. PostgreSQL stops rather than lose WAL."));
        std::process::exit(verdict::INTERNAL_ERROR.into());
    }));
    match parse(&SYNTAX, std::env::args_os().skip(1), |name| std::env::var_os(name)).and_then(run) {
        Ok(code) => code.into(),
        Err(error) => {
            report(PROGRAM, &error.to_string(), Some("Usage: walkeep-restore-cmd [OPTIONS] %f %p; see walkeep-restore-cmd --help."));
            verdict::WRONG_USAGE.into()
        }
    }
}

fn run(invocation: Invocation) -> Result<u8, UsageError> {
    match invocation {
        Invocation::Run(options) => restore(&options),
        Invocation::Help => {
            print(HELP);
            Ok(0)
        }
        Invocation::Version => {
            print(concat!("walkeep-restore-cmd ", env!("CARGO_PKG_VERSION"), "\n"));
            Ok(0)
        }
    }
}

/// Once is enough: whoever reads the log knows where to look.
fn tell_silence(request: &Request, socket: &Path) {
    static TOLD: Once = Once::new();
    let Verb::Fetch { name, .. } = &request.verb else { return };
    let message = format!("fetching {name}: still waiting for an answer (socket {})", socket.display());
    let hint = "The log of the agent, or SOCKET.fetch.log of the fetch service, says what it is waiting for.";
    TOLD.call_once(|| report(PROGRAM, &message, Some(hint)));
}

fn restore(options: &Options) -> Result<u8, UsageError> {
    let [name, destination] = options.files.as_slice() else { return Err(UsageError::new("expected %f and %p")) };
    let name = name.to_str().ok_or_else(|| UsageError::new("%f is not UTF-8"))?.to_owned();
    let asker = Asker::find(Path::new("."), &name);
    let socket = options.socket()?;
    let verb = Verb::Fetch { name: name.clone(), destination: absolute(Path::new(destination))?, standby: asker.is_standby() };
    let fetch = Fetch {
        tell_silence,
        service: Service::new(options, &socket)?,
        socket,
        request: Request { cluster: options.cluster.clone(), verb },
        deadline: Instant::now() + asker.patience(options.timeout.unwrap_or(DEFAULT_TIMEOUT)),
    };
    let verdict = fetch.run(|trouble| report(PROGRAM, &format!("fetching {name}: {trouble}; trying again"), trouble.given_hint()));
    let code = verdict.exit_code(|| Asker::find(Path::new("."), &name));
    match &verdict {
        Verdict::Done => {}
        Verdict::Absent(message) => report(PROGRAM, &format!("{name} is not in the archive: {message}"), None),
        Verdict::Refused(trouble) | Verdict::Trouble(trouble) => {
            report(PROGRAM, &format!("could not fetch {name}: {trouble}"), Some(&trouble.hint()))
        }
    }
    Ok(code)
}
