//! Commands of the documents that no story runs, each with the reason.

/// File, how the command begins, and why it is not run here.
pub const NOT_RUN: [(&str, &str, &str); 14] = [
    (README, "make demo", "it installs packages and builds everything anew; CI runs it as a step of its own"),
    (README, "make test", "it is what runs this"),
    (
        README,
        "make build",
        "an optimised build takes many minutes; what it makes is built by tests/shims.sh and by whoever makes a package",
    ),
    (README, "sudo install -m 755 target/dist/*", "it would put programs into the machine's /usr/local/bin"),
    (README, "make package", "it wants the optimised build; tests/it/package.rs looks at what a package has"),
    (README, "sudo apt install ./target/package/", "it would install a package on the machine that tests"),
    (README, "ssh -L", "there is no other host with an ssh server; the page behind the tunnel is tests/it/page.rs's"),
    (README, "make it T=faults", "it is what runs this, for other stories"),
    (README, "cargo test", "it is what runs this, for another crate"),
    (README, "make bench", "measurements take minutes and want a quiet machine"),
    (README, "cargo bench", "measurements take minutes and want a quiet machine"),
    (README, "make fmt", "it would change the source tree, and remove the test's cache"),
    (RUNBOOK, "timedatectl", "it asks systemd, which does not run where tests do"),
    (
        MIGRATION,
        "barman receive-wal --stop main",
        "Barman is in no package that the tests' machine has; the section says when it was tried",
    ),
];

use super::text::{MIGRATION, README, RUNBOOK};

/// Why a command is not run, if it is not.
pub fn reason(file: &str, command: &str) -> Option<&'static str> {
    NOT_RUN.iter().find(|(of, begins, _)| *of == file && command.starts_with(begins)).map(|(.., reason)| *reason)
}
