//! Keys and passwords are in this process's memory: nobody gets at them by a core dump, or by `/proc`.

use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};

/// Leaves the process open, for whoever has to look into it: a debugger, strace, a core dump.
const OPEN: &str = "WALKEEP_TRACEABLE";

/// Closes this process to other processes of the same user: no core dump, no tracing, no reading of `/proc/PID/environ` and memory; root may. What it
/// starts leaves no core dump either.
pub fn close() {
    if std::env::var_os(OPEN).is_some_and(|value| value == "1") {
        return;
    }
    // A kernel that refuses leaves things as they always were.
    let _ = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) });
    let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
}
