//! What commands share that start a throw-away server: under which account, in which folder, with which programs.

mod account;
mod shown;

use std::path::{Path, PathBuf};

use walkeep_core::plan::RestorePlan;

use super::failure::Failure;
use super::restore::in_use;
use crate::config::Config;
use crate::restore;
use crate::scratch_server::NotFound;
pub use account::go_on_as_server_account;
pub use shown::Shown;

/// Where the scratch folder is made: where it was said, else beside the spool, where the agent may write too, or among the system's temporary files;
/// the first with room for the whole backup, or the one with the most room.
pub fn parent(named: Option<&Path>, config: &Config, plan: &RestorePlan) -> PathBuf {
    if let Some(named) = named {
        return std::path::absolute(named).unwrap_or_else(|_| named.to_owned());
    }
    let beside = config.cluster.spool.parent().map(Path::to_owned);
    let in_use = in_use(&config.cluster, None);
    let places: Vec<_> = beside.into_iter().chain([std::env::temp_dir()]).collect();
    let usable = places.iter().filter(|place| place.is_dir() && restore::check_directory(&place.join("walkeep-scratch"), &in_use).is_ok());
    let with_room: Vec<_> = usable.map(|place| (place, room(place))).collect();
    let first = with_room.iter().find(|(_, room)| *room > plan.restore_bytes + (2 << 30));
    let most = with_room.iter().max_by_key(|(_, room)| *room);
    first.or(most).map_or_else(std::env::temp_dir, |(place, _)| (*place).clone())
}

fn room(path: &Path) -> u64 {
    rustix::fs::statvfs(path).map_or(0, |disk| disk.f_bavail.saturating_mul(disk.f_frsize))
}

/// A program that is not there.
pub fn missing(error: NotFound) -> Failure {
    let hint = error.hint();
    Failure::refused(error.to_string()).hint(hint)
}
