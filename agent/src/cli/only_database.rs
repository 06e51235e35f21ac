//! `restore --only-database`: from names to what is needed of the backup, and whether these databases are still there at the target.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use walkeep_core::journal::{Edge, Entry, Happening, Window};
use walkeep_core::partial::Needed;
use walkeep_core::plan::RestorePlan;
use walkeep_core::target::print_time;

use super::failure::Failure;
use super::restore::refusal_or_failure;
use super::{log, output, plan};
use crate::journal;
use crate::planning::View;
use crate::repository::ClusterRepository;
use crate::restore;

/// What is needed for these databases. Refuses those that the backup does not know, or that the WAL drops before the target.
pub async fn needed(
    repository: &Arc<ClusterRepository>,
    plan: &RestorePlan,
    names: &[String],
    stop: &CancellationToken,
) -> Result<Needed, Failure> {
    let shared = restore::shared(repository, plan, stop).await.map_err(refusal_or_failure)?;
    let needed = shared.only(plan, names).map_err(|refusal| refusal_or_failure(refusal.into()))?;
    let entries = between_backup_and_stop(repository, plan).await?;
    for name in names {
        let oids = shared.oids(name);
        let is_it = |entry: &&Entry| matches!(entry.what, Happening::DatabaseDropped { database, .. } if oids.contains(&database));
        if let Some(dropped) = entries.iter().find(is_it) {
            tell_dropped(name, dropped, &entries)?;
        }
    }
    Ok(needed)
}

/// What happened to the server in what is replayed.
async fn between_backup_and_stop(repository: &Arc<ClusterRepository>, plan: &RestorePlan) -> Result<Vec<Entry>, Failure> {
    let view = View::load(repository.clone()).await?;
    let path = log::path(view.catalog(), Some(plan.timeline))?;
    let window = Window { from: Some(Edge::Lsn(plan.backup.start_lsn)), to: Some(Edge::Lsn(plan.stop_lsn)) };
    let mut on_progress = plan::wal_progress("for dropped databases");
    let account = journal::read(repository, view.index(), view.catalog(), &path, window, &mut on_progress).await?;
    Ok(account.map(|account| account.summary.entries).unwrap_or_default())
}

/// The restored server would not have it; or one that was made since, of which the WAL does not say the name.
fn tell_dropped(name: &str, dropped: &Entry, entries: &[Entry]) -> Result<(), Failure> {
    let time = dropped.time.and_then(print_time).map(|time| format!(" ({time})")).unwrap_or_default();
    let when = format!("database {name:?} is dropped at {}{time}, before the target", dropped.lsn);
    let made_since = entries.iter().any(|entry| entry.lsn > dropped.lsn && matches!(entry.what, Happening::DatabaseCreated { .. }));
    if made_since {
        output::tell!("warning: {when}; a database was made since, and unless that has its name the restored server does not have it");
        return Ok(());
    }
    let reason = format!("{when}: the restored server would not have it");
    Err(Failure::refused(reason).hint(format!("To just before: --lsn {} --exclusive", dropped.lsn)))
}
