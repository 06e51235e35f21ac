//! `walkeep keep` and `walkeep release`: holds on single backups.

use std::time::Duration;

use anyhow::{Context, anyhow};
use chrono::Utc;
use clap::Args;
use tokio_util::sync::CancellationToken;
use walkeep_core::backup::{Keep, KeepFor};
use walkeep_core::layout::BackupId;
use walkeep_store::several::Proof;

use super::failure::Failure;
use super::trail::Told;
use super::{Global, output, setup};
use crate::expire;
use crate::repository::ClusterRepository;
use crate::repository::holds::Hold;

/// Arguments of `walkeep keep`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  walkeep keep 20261121T034712Z-0000000002000028                    for ever
  walkeep keep 20261121T034712Z-0000000002000028 --for 90d          so long from now on

What was said last holds, also over the --keep with which the backup was taken. `walkeep backups` shows it.")]
pub struct KeepArgs {
    /// The backup, as `walkeep backups` names it
    backup: BackupId,
    /// For how long from now on: a time such as 90d, or forever
    #[arg(long = "for", value_name = "90d|forever", default_value = "forever")]
    time: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Arguments of `walkeep release`.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  walkeep release 20261121T034712Z-0000000002000028

Nothing is removed by it: the next `walkeep expire` decides by the policy.")]
pub struct ReleaseArgs {
    /// The backup, as `walkeep backups` names it
    backup: BackupId,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs `walkeep keep`.
pub async fn keep(global: &Global, args: KeepArgs, told: &Told<'_>) -> Result<(), Failure> {
    let time: KeepFor = crate::config::keep_for(&args.time).context("--for").map_err(Failure::usage)?;
    if time == KeepFor::Time(Duration::ZERO) {
        return Err(Failure::usage(anyhow!("--for {} keeps nothing", args.time)).hint("`walkeep release` leaves a backup to the policy"));
    }
    let keep = time.from(Utc::now()).with_context(|| format!("--for {} is too long", args.time)).map_err(Failure::usage)?;
    told.of("kept", output::kept(&keep));
    say(global, args.backup, Some(keep), args.json, told).await
}

/// Runs `walkeep release`.
pub async fn release(global: &Global, args: ReleaseArgs, told: &Told<'_>) -> Result<(), Failure> {
    say(global, args.backup, None, args.json, told).await
}

async fn say(global: &Global, backup: BackupId, keep: Option<Keep>, json: bool, told: &Told<'_>) -> Result<(), Failure> {
    told.of("backup", &backup);
    let config = setup::config(global)?;
    let repository = setup::cluster_repository(&config.cluster, &CancellationToken::new()).await?.demanding(Proof::Every);
    let known = repository.backups().await.context("read the backups")?;
    if known.expired.iter().any(|record| record.id == backup) {
        return Err(left_the_catalog(&repository, &backup).await?);
    }
    if !known.records.iter().any(|record| record.id == backup) {
        return Err(Failure::refused(format!("there is no backup {backup}")).hint("`walkeep backups` lists them"));
    }
    let hold = Hold { backup, keep, at: Utc::now(), host: crate::writer::host() };
    repository.put_hold(&hold).await.context("note it in the repository")?;
    // Somebody may have let it go in that moment.
    let left = repository.expired().await.context("look whether it is still there")?.has_backup(&hold.backup);
    if left && hold.keep.is_some() {
        output::tell!("note: that it is to be kept is noted: should it be brought back, it is kept");
        return Err(left_the_catalog(&repository, &hold.backup).await?);
    }
    if json {
        output::json(&hold)?;
    } else {
        match &hold.keep {
            Some(keep) => output::say!("{} is kept {}", hold.backup, output::kept(keep)),
            None => output::say!("{} is left to the retention policy", hold.backup),
        }
    }
    Ok(())
}

/// The refusal of what needs a backup that left the catalog.
pub async fn left_the_catalog(repository: &ClusterRepository, backup: &BackupId) -> Result<Failure, Failure> {
    Ok(match expire::left_with(repository, backup).await? {
        Some(number) => Failure::refused(format!("{backup} has left the catalog under number {number}"))
            .hint(format!("`walkeep expire --undo {number}` brings it back while its time of grace runs")),
        None => Failure::refused(format!("{backup} has left the catalog, and its objects are being removed")),
    })
}
