//! Who the servers and Walkeep run as: user postgres when the tests run as root (PostgreSQL refuses root), else the user of the tests.

use std::ffi::OsStr;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

/// The account that servers and Walkeep run as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// Its name.
    pub name: String,
    /// Its user id.
    pub uid: u32,
    /// Its group id.
    pub gid: u32,
    /// Whether it is another than that of the tests, which are then run by root.
    pub switched: bool,
}

/// Whether the tests run as root.
pub fn is_root() -> bool {
    own_ids().0 == 0
}

/// The account that servers and Walkeep run as.
pub fn account() -> &'static Account {
    static ACCOUNT: OnceLock<Account> = OnceLock::new();
    ACCOUNT.get_or_init(|| {
        let (uid, gid) = own_ids();
        let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
        let mut entries = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>()).filter(|fields| fields.len() > 3);
        if uid != 0 {
            let name = entries.find(|fields| fields[2] == uid.to_string()).map_or_else(|| uid.to_string(), |fields| fields[0].to_owned());
            return Account { name, uid, gid, switched: false };
        }
        let fields = entries.find(|fields| fields[0] == "postgres").expect("there is a user postgres: run tests/setup.sh");
        let id = |text: &str| text.parse().expect("/etc/passwd has numeric ids");
        Account { name: "postgres".to_owned(), uid: id(fields[2]), gid: id(fields[3]), switched: true }
    })
}

fn own_ids() -> (u32, u32) {
    let own = std::fs::metadata("/proc/self").expect("/proc is mounted");
    (own.uid(), own.gid())
}

/// A command as [`account`], in `/`, with an environment of its own: no variable of the tests' caller reaches it.
///
/// It gets SIGKILL when the thread that starts it ends: start what outlives a function by [`crate::process::Process`].
pub fn command(program: impl AsRef<OsStr>) -> Command {
    command_with(program, "KILL", None)
}

/// [`command`] under this umask, such as `"077"`.
pub fn command_with_umask(program: impl AsRef<OsStr>, umask: &str) -> Command {
    command_with(program, "KILL", Some(umask))
}

/// [`command`] with the signal it gets when its starter ends, and an umask.
pub fn command_with(program: impl AsRef<OsStr>, death_signal: &str, umask: Option<&str>) -> Command {
    let account = account();
    let mut command = Command::new("setpriv");
    if account.switched {
        command.args([&format!("--reuid={}", account.uid), &format!("--regid={}", account.gid), "--clear-groups"]);
    }
    command.args(["--pdeathsig", death_signal, "--"]);
    if let Some(umask) = umask {
        command.args(["sh", "-c", r#"umask "$0" && exec "$@""#, umask]);
    }
    command.arg(program).current_dir("/").env_clear();
    clean_environment(&mut command);
    command
}

/// The environment everything gets: only what a program needs to be found and to speak plainly.
pub fn clean_environment(command: &mut Command) {
    command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    command.env("HOME", "/nonexistent").env("LC_ALL", "C.UTF-8").env("USER", &account().name);
    for name in ["RUST_BACKTRACE", "TMPDIR", "LLVM_PROFILE_FILE"] {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
}

/// Gives `path` (not what is below it) to [`account`].
pub fn give(path: &Path) {
    let account = account();
    if account.switched {
        std::os::unix::fs::lchown(path, Some(account.uid), Some(account.gid)).expect("root can give a file away");
    }
}
