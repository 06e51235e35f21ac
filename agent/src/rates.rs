//! What was measured on this host: how fast a restore fetches, how fast a recovery replays.
//!
//! A small file, `rates.json`, in the cluster's spool folder, or where there is none (a host on which only restores run) in the user's
//! cache folder. It is a help for estimates and nothing more: what cannot be read counts as not measured, what cannot be written is lost.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use walkeep_core::plan::estimate::{Measured, MeasuredBy, Rates};

use crate::config::ClusterConfig;
use crate::durable::Staged;

/// Other users read it too: the server's, who runs the fetch service, and the operator.
const MODE: u32 = 0o644;

/// Where measurements of a cluster are kept.
#[derive(Debug, Clone)]
pub struct RatesFile {
    path: Option<PathBuf>,
}

impl RatesFile {
    /// The file of this cluster.
    pub fn of(cluster: &ClusterConfig) -> Self {
        let env = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let cache = || env("XDG_CACHE_HOME").or_else(|| env("HOME").map(|home| home.join(".cache")));
        let path = match cluster.spool.is_dir() {
            true => Some(cluster.spool.join("rates.json")),
            false => cache().map(|cache| cache.join("walkeep").join(format!("{}.rates.json", cluster.name))),
        };
        Self { path }
    }

    #[cfg(test)]
    pub(crate) fn at(path: PathBuf) -> Self {
        Self { path: Some(path) }
    }

    /// What was measured.
    pub fn load(&self) -> Rates {
        self.path.as_deref().and_then(|path| read(path).ok()).unwrap_or_default()
    }

    /// Keeps a measurement, unless a longer one is known.
    pub fn note(&self, measured: Measured) {
        let Some(path) = &self.path else { return };
        let mut rates = self.load();
        let slot = match measured.by {
            MeasuredBy::Restore => &mut rates.fetch,
            MeasuredBy::Recovery => &mut rates.replay,
            MeasuredBy::Plan => return,
        };
        if !measured.replaces(slot.as_ref()) {
            return;
        }
        *slot = Some(measured);
        if let Err(error) = write(path, &rates) {
            tracing::debug!(path = %path.display(), error = format!("{error:#}"), "a measurement is not kept");
        }
    }
}

fn read(path: &Path) -> Result<Rates> {
    Ok(serde_json::from_slice(&std::fs::read(path)?)?)
}

fn write(path: &Path, rates: &Rates) -> Result<()> {
    let folder = path.parent().context("it has no folder")?;
    std::fs::create_dir_all(folder)?;
    Staged::write(path, &serde_json::to_vec(rates)?, MODE)?.publish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(by: MeasuredBy, bytes: u64) -> Measured {
        Measured { bytes, millis: 1000, at: chrono::DateTime::UNIX_EPOCH, by }
    }

    #[test]
    fn each_kind_is_kept_by_itself_and_damage_is_nothing_measured() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep").join("rates.json");
        let file = RatesFile::at(path.clone());
        assert_eq!(file.load(), Rates::default());
        file.note(measured(MeasuredBy::Restore, 5000));
        file.note(measured(MeasuredBy::Recovery, 70));
        file.note(measured(MeasuredBy::Restore, 400));
        file.note(measured(MeasuredBy::Plan, 9_000_000));
        let (fetch, replay) = (measured(MeasuredBy::Restore, 5000), measured(MeasuredBy::Recovery, 70));
        assert_eq!(file.load(), Rates { fetch: Some(fetch), replay: Some(replay) });
        std::fs::write(&path, "{\"fetch\":").unwrap();
        assert_eq!(file.load(), Rates::default());
        file.note(replay);
        assert_eq!(file.load(), Rates { fetch: None, replay: Some(replay) });
        RatesFile { path: None }.note(replay);
    }
}
