//! What `walkeep expire` lets go of artifacts: told and asked for as with backups, but gone at once, without a time of grace.

use anyhow::Context;
use chrono::Utc;

use super::ExpireArgs;
use crate::artifact::retention::{self, Share};
use crate::cli::failure::Failure;
use crate::cli::trail::{Told, is_denied};
use crate::cli::{ask, output};
use crate::config::ClusterConfig;
use crate::repository::ClusterRepository;

/// Lets go what the artifacts' own `keep` does not keep. Answers what that is.
pub async fn let_go(
    repository: &ClusterRepository,
    cluster: &ClusterConfig,
    args: &ExpireArgs,
    told: &Told<'_>,
) -> Result<Vec<Share>, Failure> {
    let shares = retention::look(repository, cluster, Utc::now()).await?;
    if !args.json {
        print(&shares);
    }
    let goes: usize = shares.iter().map(|share| share.expired.len()).sum();
    if args.dry_run || goes == 0 {
        return Ok(shares);
    }
    agreed(&shares, args).await?;
    told.of("artifacts", goes);
    told.begins().await;
    let mut objects = 0;
    for share in &shares {
        let removed = retention::remove(repository, share).await;
        objects += removed.map_err(|error| if is_denied(&error) { Failure::from(error).hint(super::DENIED) } else { error.into() })?.1;
    }
    if !args.json {
        output::say!("removed {} of {}", output::count(objects, "object"), output::count(goes as u64, "artifact"));
    }
    Ok(shares)
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
        for id in &share.expired {
            output::say!("  GOES {name}@{id}");
        }
    }
}

async fn agreed(shares: &[Share], args: &ExpireArgs) -> Result<(), Failure> {
    if let Some(much) = shares.iter().find(|share| share.is_much() && args.allow.is_none_or(|allowed| allowed < share.expired.len())) {
        let (goes, of) = (much.expired.len(), much.expired.len() + much.kept);
        return Err(Failure::refused(format!(
            "{goes} of {of} artifacts called {} would go at once, more than half: none was removed",
            much.name
        ))
        .hint(format!("is its keep what you mean, and are the clocks right? --allow {goes} says that this is wanted")));
    }
    if args.yes {
        return Ok(());
    }
    if !ask::possible() {
        return Err(Failure::refused("these artifacts are removed at once, and nobody is there to be asked: none was")
            .hint("--yes says that it is wanted"));
    }
    match ask::ask("These artifacts are removed at once, for good.".to_owned()).await.context("ask")? {
        true => Ok(()),
        false => Err(Failure::refused("not done: no artifact was removed")),
    }
}
