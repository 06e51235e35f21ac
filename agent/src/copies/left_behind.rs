//! What a command could not bring to every repository, told to the agent: a file beside the spool for each repository that was left behind.
//!
//! The agent finds it within seconds and compares; a command that comes soon after knows by it which repository not to wait for.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use walkeep_core::kind::ObjectKind;
use walkeep_store::Several;
use walkeep_store::several::Follow;

use crate::config::ClusterConfig;
use crate::{codec, durable};

/// A command waits so long for a repository that need not have an object yet.
pub const PATIENCE: Duration = Duration::from_secs(15);
/// For so long a note says that a repository does not answer.
const DEAD_FOR: Duration = Duration::from_secs(60);
/// A note that is younger is not written again.
const FRESH: Duration = Duration::from_secs(10);

/// The folder of what is noted of several repositories.
pub fn folder(cluster: &ClusterConfig) -> PathBuf {
    cluster.spool.join("repositories")
}

/// A file's name for a repository: of its url, which may change its place in the configuration.
pub fn name(url: &str) -> String {
    codec::blake3(url.as_bytes()).to_string().chars().take(16).collect()
}

fn path(folder: &Path, url: &str) -> PathBuf {
    folder.join(format!("{}.behind", name(url)))
}

/// How places follow in a command: at once, and what they do not take within `patience` is noted.
pub fn follow(cluster: &ClusterConfig, patience: Duration) -> Follow {
    let folder = folder(cluster);
    let urls: Vec<String> = cluster.repositories().map(|repository| repository.url()).collect();
    let left = move |index: usize| {
        let Some(url) = urls.get(index) else { return };
        let path = path(&folder, url);
        if age(&path).is_some_and(|age| age < FRESH) {
            return;
        }
        let noted = durable::create_dir(&folder, 0o700).and_then(|()| durable::write_file(&path, format!("{url}\n").as_bytes(), 0o600));
        if let Err(error) = noted {
            tracing::debug!(%error, url, "that a repository was left behind could not be noted: the next comparison finds it");
        }
    };
    Follow::Awaited { patience, left: Box::new(left), names_others: |key| ObjectKind::commits(key.as_str()) }
}

/// What another process found dead a moment ago is not waited for.
pub fn pass_over_dead(cluster: &ClusterConfig, several: &Several) {
    let folder = folder(cluster);
    for (index, repository) in cluster.repositories().enumerate() {
        if age(&path(&folder, &repository.url())).is_some_and(|age| age < DEAD_FOR) {
            several.pass_over(index, "another process of this host waited for it in vain".into(), PATIENCE);
        }
    }
}

/// Takes the note that a repository was left behind.
pub fn take(cluster: &ClusterConfig, url: &str) -> bool {
    std::fs::remove_file(path(&folder(cluster), url)).is_ok()
}

fn age(path: &Path) -> Option<Duration> {
    let at = std::fs::metadata(path).and_then(|found| found.modified()).ok()?;
    SystemTime::now().duration_since(at).ok()
}
