//! The lag of the last hours, over the agent's restarts: `lag.json` in the spool, for the status page. What cannot be read begins anew, what cannot be written is lost.

use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};
use walkeep_core::lag::{LagHistory, Worst};

use crate::durable::Staged;

const MODE: u32 = 0o600;

/// The file of one cluster.
#[derive(Debug, Clone)]
pub struct LagFile(PathBuf);

impl LagFile {
    /// In this spool.
    pub fn of(spool: &Path) -> Self {
        Self(spool.join("lag.json"))
    }

    /// What was kept.
    pub fn load(&self, now: DateTime<Utc>) -> LagHistory {
        let minutes = std::fs::read(&self.0).ok().and_then(|text| serde_json::from_slice(&text).ok());
        LagHistory::of(minutes.unwrap_or_default(), now)
    }

    /// Keeps it. Each minute, and of a day: at most 100 kB.
    pub fn keep(&self, minutes: &[Worst]) {
        let kept = serde_json::to_vec(minutes).map_err(anyhow::Error::new).and_then(|text| Staged::write(&self.0, &text, MODE)?.publish());
        if let Err(error) = kept {
            tracing::debug!(path = %self.0.display(), error = format!("{error:#}"), "the lag of the last hours is not kept");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_there_again_and_nonsense_is_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let file = LagFile::of(folder.path());
        assert_eq!(file.load(DateTime::UNIX_EPOCH), LagHistory::default());
        let minutes = [Worst { at: 60, loss_ms: None, bytes: 7 }, Worst { at: 120, loss_ms: Some(5), bytes: 0 }];
        file.keep(&minutes);
        assert_eq!(file.load(DateTime::UNIX_EPOCH).minutes(), minutes);
        std::fs::write(folder.path().join("lag.json"), "[{").unwrap();
        assert_eq!(file.load(DateTime::UNIX_EPOCH), LagHistory::default());
        LagFile::of(Path::new("/nonexistent")).keep(&minutes);
    }
}
