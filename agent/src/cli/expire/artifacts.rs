//! What `walkeep expire` lets go of artifacts: told, asked for, and taken out of the catalog, as with backups.

use anyhow::Context;
use chrono::{DateTime, Utc};
use walkeep_core::artifact::ArtifactPlace;
use walkeep_core::expiry::Expiry;

use super::ExpireArgs;
use crate::artifact::retention::{self, Share};
use crate::cli::failure::Failure;
use crate::cli::trail::Told;
use crate::cli::{ask, output};
use crate::config::ClusterConfig;
use crate::expire;
use crate::repository::ClusterRepository;

/// What goes, and the record by which it went.
#[derive(Debug, Default)]
pub struct LetGo {
    pub shares: Vec<Share>,
    pub taken_out: Option<Expiry>,
}

/// Takes out what the artifacts' own `keep` does not keep.
pub async fn take_out(
    repository: &ClusterRepository,
    cluster: &ClusterConfig,
    args: &ExpireArgs,
    now: DateTime<Utc>,
    told: &Told<'_>,
) -> Result<LetGo, Failure> {
    let shares = retention::look(repository, cluster, now).await?;
    if !args.json {
        print(&shares);
    }
    let places: Vec<ArtifactPlace> = shares.iter().flat_map(Share::places).collect();
    if args.dry_run || places.is_empty() {
        return Ok(LetGo { shares, taken_out: None });
    }
    agreed(&shares, args).await?;
    told.of("artifacts", places.len());
    told.begins().await;
    let taken_out = expire::take_out_artifacts(repository, places, now).await?;
    Ok(LetGo { shares, taken_out: Some(taken_out) })
}

fn print(shares: &[Share]) {
    for share in shares {
        let (goes, name) = (share.expired.len() as u64, &share.name);
        output::say!(
            "artifact {name}: {} stay, {} go, {} stored",
            share.kept,
            output::count(goes, "older one"),
            output::bytes(share.bytes)
        );
        for place in share.places() {
            output::say!("  GOES {place}");
        }
    }
}

async fn agreed(shares: &[Share], args: &ExpireArgs) -> Result<(), Failure> {
    if let Some(much) = shares.iter().find(|share| share.is_much() && args.allow.is_none_or(|allowed| allowed < share.expired.len())) {
        let (goes, of) = (much.expired.len(), much.expired.len() + much.kept);
        return Err(Failure::refused(format!(
            "{goes} of {of} artifacts called {} would go at once, more than half: none was let go",
            much.name
        ))
        .hint(format!("is its keep what you mean, and are the clocks right? --allow {goes} says that this is wanted")));
    }
    if args.yes {
        return Ok(());
    }
    if !ask::possible() {
        return Err(Failure::refused("these artifacts leave the catalog, and nobody is there to be asked: none did")
            .hint("--yes says that it is wanted"));
    }
    match ask::ask("These artifacts leave the catalog.".to_owned()).await.context("ask")? {
        true => Ok(()),
        false => Err(Failure::refused("not done: no artifact was let go")),
    }
}
