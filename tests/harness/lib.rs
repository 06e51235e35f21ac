//! The harness of Walkeep's tests: real PostgreSQL servers, a real S3 server, a proxy that injects faults, and Walkeep's own binaries.
//!
//! Everything here blocks and **panics** where a test would have to give up: a panic keeps the scratch folders as evidence and prints
//! where they are, an error returned from a test would not. What a test wants to look at itself comes from the `try_` forms. Everything
//! started is ended when its value is dropped, and also when the test process is killed. Nothing sleeps for a fixed time: see
//! [`wait_until`].
//!
//! `tests/setup.sh` installs what this needs. Environment: `WALKEEP_TEST_CACHE` (the folder of `setup.sh`), `WALKEEP_TEST_PG` (the version
//! where a test names none), `WALKEEP_TEST_TOOLS` (client programs of further versions), `WALKEEP_TEST_BIN` (Walkeep's binaries), `WALKEEP_TEST_KEEP=1` (remove no scratch folder),
//! `WALKEEP_TEST_ENCRYPTION=1` (every repository is encrypted).

pub mod browser;
pub mod http;
pub mod keys;
pub mod oracle;
pub mod ports;
pub mod postgres;
pub mod process;
pub mod proxy;
pub mod receiver;
pub mod s3;
pub mod scratch;
pub mod user;
pub mod walkeep;

use std::path::PathBuf;
use std::time::{Duration, Instant};

pub use browser::Browser;
pub use keys::{Keys, Pair};
pub use oracle::{compare_archives, compare_fetched};
pub use postgres::{Builder, Cluster, Session, Stop};
pub use proxy::{Fault, FaultProxy, Request, When};
pub use receiver::{MailServer, Receiver};
pub use s3::{Bucket, S3Server};
pub use scratch::Scratch;
pub use walkeep::{Agent, Output, Repository, Walkeep};

/// Waits until `condition` holds, looking every few milliseconds; panics with `what` when it does not within `within`.
#[track_caller]
pub fn wait_until(what: &str, within: Duration, mut condition: impl FnMut() -> bool) {
    wait_for(what, within, || condition().then_some(()));
}

/// Waits until `probe` answers something and returns it; panics with `what` when it does not within `within`.
#[track_caller]
pub fn wait_for<T>(what: &str, within: Duration, probe: impl FnMut() -> Option<T>) -> T {
    match try_wait_for(within, probe) {
        Some(value) => value,
        None => panic!("waited {within:?} in vain: {what}"),
    }
}

/// Waits until `probe` answers something; `None` when it does not within `within`.
pub fn try_wait_for<T>(within: Duration, mut probe: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + within;
    let mut pause = Duration::from_millis(2);
    loop {
        if let Some(value) = probe() {
            return Some(value);
        }
        if Instant::now() >= deadline {
            return None;
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

/// The folder that `tests/setup.sh` fills.
pub fn cache() -> PathBuf {
    if let Some(named) = std::env::var_os("WALKEEP_TEST_CACHE") {
        return PathBuf::from(named);
    }
    if user::is_root() {
        return PathBuf::from("/var/cache/walkeep-tests");
    }
    let base = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let home = || PathBuf::from(std::env::var_os("HOME").expect("HOME or WALKEEP_TEST_CACHE is set")).join(".cache");
    base.unwrap_or_else(home).join("walkeep-tests")
}
