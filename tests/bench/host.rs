//! A host: PostgreSQL as in production, and whatever archives it. Its death takes all of that at once, disks too.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use walkeep_tests::postgres::Builder;
use walkeep_tests::{Cluster, process, wait_until};

use crate::numbers::now;

/// A server that syncs its files, and has room.
pub fn server() -> Builder {
    Cluster::builder().conf("fsync", "on").conf("shared_buffers", "256MB").conf("max_wal_size", "4GB").conf("max_connections", "100")
}

/// SIGKILL for the server with all its processes, for `others`, and for whatever was started for files in `folder`, all in one go; the
/// moment of it.
pub fn power_cut(cluster: &Cluster, others: &[u32], folder: Option<&Path>) -> f64 {
    let mut pids = others.to_vec();
    pids.push(cluster.pid());
    pids.extend(process::descendants(cluster.pid()));
    pids.extend(folder.map(started_for).unwrap_or_default());
    kill(&pids);
    // Not before: the last answers come while the signals go out.
    let at = now();
    wait_until("all processes of the host are gone", Duration::from_secs(30), || pids.iter().all(|pid| !process::alive(*pid)));
    at
}

/// Ends what was started for files in this folder and went its own way since.
pub fn kill_started_for(folder: &Path) {
    kill(&started_for(folder));
}

fn kill(pids: &[u32]) {
    let pids = pids.iter().map(u32::to_string);
    let _ = Command::new("sh").args(["-c", r#"kill -s KILL "$@" 2> /dev/null"#, "sh"]).args(pids).status();
}

/// Processes whose command line names a file in the folder, or the folder.
fn started_for(folder: &Path) -> Vec<u32> {
    let folder = folder.to_string_lossy();
    let entries = std::fs::read_dir("/proc").expect("/proc is mounted").flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()).filter(|pid| *pid != std::process::id());
    let names =
        |pid: &u32| std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| String::from_utf8_lossy(&line).contains(&*folder));
    pids.filter(names).collect()
}
