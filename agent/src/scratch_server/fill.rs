//! The data directory of a throw-away server: a plan's backup, restored into the place.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Result;
use tokio_util::sync::CancellationToken;
use walkeep_core::partial::Needed;
use walkeep_core::plan::RestorePlan;
use walkeep_core::target::TargetAction;

use super::Place;
use crate::repository::ClusterRepository;
use crate::restore::{self, InUse, Shared, Summary};
use crate::transfer::Watch;

/// How it is restored.
#[derive(Debug, Clone)]
pub struct Filling {
    /// How the server gets WAL.
    pub restore_command: String,
    /// Whose content is needed.
    pub needed: Needed,
    /// Ranged reads at a time.
    pub parallelism: usize,
    /// Where nothing may be written.
    pub in_use: Vec<InUse>,
}

/// Restores the plan's backup into the place, ready for [`super::Server::start`]; tablespaces come to lie in there too.
pub async fn fill(
    repository: Arc<ClusterRepository>,
    plan: &RestorePlan,
    shared: &Shared,
    place: &Place,
    filling: Filling,
    watch: &Watch<'_>,
    cancel: &CancellationToken,
) -> Result<Summary> {
    let mut options = restore::Options::new(place.data(), filling.restore_command);
    let moved = |(oid, old): &(u32, String)| (PathBuf::from(old), place.path().join(format!("t{oid}")));
    options.tablespaces = shared.tablespaces.iter().map(moved).collect();
    options.action = TargetAction::Promote;
    options.throw_away = true;
    options.needed = filling.needed;
    options.parallelism = filling.parallelism;
    options.in_use = filling.in_use;
    restore::restore(repository, plan, options, watch, cancel).await
}
