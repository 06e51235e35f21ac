//! `walkeep artifact get`: an artifact into a file or to standard output.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use clap::Args;
use walkeep_core::artifact::ArtifactName;
use walkeep_core::target::parse_time;

use crate::artifact::get::{self, Found, Which};
use crate::cli::failure::{Exit, Failure};
use crate::cli::trail::Told;
use crate::cli::{Global, output, setup};
use crate::durable::Filled;
use crate::repository;

/// Arguments of `walkeep artifact get`.
#[derive(Debug, Args)]
pub struct GetArgs {
    /// Its name, and which one [default: the newest]; `walkeep artifacts` lists them
    #[arg(value_name = "NAME[@ID]")]
    artifact: String,
    /// The newest that had ended at this moment, with its zone
    #[arg(long, value_name = "TIME")]
    at: Option<String>,
    /// The file to make, or - for standard output
    #[arg(long, value_name = "PATH")]
    to: PathBuf,
}

/// Runs `walkeep artifact get`.
pub async fn get(global: &Global, args: GetArgs, told: &Told<'_>) -> Result<(), Failure> {
    let (name, which) = args.which()?;
    told.of("artifact", &args.artifact);
    told.of("to", args.to.display());
    let config = setup::config(global)?;
    let to_stdout = args.to == Path::new("-");
    if !to_stdout && std::fs::symlink_metadata(&args.to).is_ok() {
        return Err(Failure::refused(format!("{} exists: nothing is overwritten", args.to.display())));
    }
    let stop = setup::stop_on_signals()?;
    let repository = setup::cluster_repository(&config.cluster, &stop).await?;
    let Found { record, left_out } = get::find(&repository, &name, &which).await.map_err(failure)?;
    if let Some(key) = left_out.first() {
        // An older one in its place would be taken for the newest.
        let error = anyhow!("{key} cannot be believed, and may be the one that was asked for: nothing was written");
        let older = record.map_or_else(String::new, |record| format!("; {} is the newest that can be read", record.place()));
        return Err(Failure { exit: Exit::Damaged, ..Failure::from(error) }.hint(format!("NAME@ID takes another one{older}")));
    }
    let Some(record) = record else {
        let by_then = args.at.as_ref().map_or_else(String::new, |at| format!(" that had ended by {at}"));
        return Err(Failure::refused(format!("there is no artifact {}{by_then}", args.artifact)).hint("`walkeep artifacts` lists them"));
    };
    told.of("id", &record.id);
    if to_stdout {
        // A reader that has gone took what it wanted, and says so itself.
        get::write(&repository, &record, &mut std::io::stdout()).await.map_err(failure)?;
        return Ok(());
    }
    let file = Filled::begin_unnamed(&args.to)?;
    let mut to = std::io::BufWriter::with_capacity(1 << 20, file.file());
    get::write(&repository, &record, &mut to).await.map_err(failure)?;
    to.flush().context("write it")?;
    drop(to);
    file.publish(false).with_context(|| format!("make {}", args.to.display()))?;
    output::tell!("{}: {} in {}", record.place(), output::bytes(record.bytes), args.to.display());
    Ok(())
}

/// What is not what was stored is damage.
fn failure(error: anyhow::Error) -> Failure {
    let damaged = error.chain().any(|cause| matches!(cause.downcast_ref(), Some(repository::Error::Corrupt { .. })));
    let failure = Failure::from(error);
    let another = "Another one of the name may be whole: `walkeep artifacts` lists them, NAME@ID takes one. Of several repositories `walkeep verify --deep --repair` mends what one of them has whole.";
    if damaged { Failure { exit: Exit::Damaged, ..failure }.hint(another) } else { failure }
}

impl GetArgs {
    fn which(&self) -> Result<(ArtifactName, Which), Failure> {
        let usage = |error: anyhow::Error| Failure::usage(error);
        let (name, id) = self.artifact.split_once('@').map_or((self.artifact.as_str(), None), |(name, id)| (name, Some(id)));
        let name = name.parse().map_err(|error| usage(anyhow!("{error}")))?;
        let which = match (id, &self.at) {
            (Some(_), Some(_)) => return Err(usage(anyhow!("either an ID or --at"))),
            (Some(id), None) => Which::Id(id.parse().map_err(|error| usage(anyhow!("{error}")))?),
            (None, Some(time)) => {
                let time = parse_time(time).map_err(|error| usage(anyhow!("{error}")))?;
                Which::At(time.to_utc().context("--at is no moment").map_err(usage)?)
            }
            (None, None) => Which::Newest,
        };
        Ok((name, which))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_helps_with_damage_is_another_artifact() {
        let damaged = anyhow::Error::new(repository::Error::corrupt("main/7/artifacts/etc/1/00000001.zst", "its hash is another one"));
        let failure = failure(damaged.context("read it"));
        assert!(
            failure.exit == Exit::Damaged
                && failure.hint.as_deref().is_some_and(|hint| hint.contains("NAME@ID") && !hint.contains("base backup"))
        );
    }
}
