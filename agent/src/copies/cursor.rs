//! Up to what comparison a repository was seen to have everything: a small file beside the spool.
//!
//! Lost or wrong, it costs a comparison from the beginning, or one more. One that was interrupted by the agent's end goes on where it was, so that a large archive
//! is got through however often the agent is restarted; what was stored meanwhile in the folders that it had behind it, only a whole one behind it finds.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use walkeep_store::several::Mark;

use super::left_behind;
use crate::config::ClusterConfig;
use crate::durable::{self, Staged};

/// How often the file is written while a comparison goes on.
const WRITE: Duration = Duration::from_secs(5);

/// What the file says.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Noted {
    url: String,
    /// When the last comparison that came to its end began.
    complete_at: Option<DateTime<Utc>>,
    /// The one that did not.
    under_way: Option<UnderWay>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct UnderWay {
    began: DateTime<Utc>,
    pass: usize,
    folder: String,
}

/// The cursor of one repository.
#[derive(Debug)]
pub struct Cursor {
    path: PathBuf,
    noted: Noted,
    /// Whether the comparison under way began in this process.
    own: bool,
    written: Option<Instant>,
}

impl Cursor {
    /// What was noted of the repository at `url`.
    pub fn load(cluster: &ClusterConfig, url: &str) -> Self {
        let path = left_behind::folder(cluster).join(format!("{}.json", left_behind::name(url)));
        let read = std::fs::read(&path).ok().and_then(|text| serde_json::from_slice::<Noted>(&text).ok());
        let noted = read.filter(|noted| noted.url == url).unwrap_or_else(|| Noted { url: url.to_owned(), ..Noted::default() });
        Self { path, noted, own: false, written: None }
    }

    /// Whether the last whole comparison began so long ago, or never did.
    pub fn is_due(&self, interval: Duration) -> bool {
        let since = self.noted.complete_at.map(|at| (Utc::now() - at).abs());
        since.is_none_or(|since| since.to_std().is_ok_and(|since| since >= interval))
    }

    /// When a comparison that came to its end began last.
    pub fn complete_at(&self) -> Option<DateTime<Utc>> {
        self.noted.complete_at
    }

    /// Whether the next comparison begins at the beginning.
    pub fn is_new(&self) -> bool {
        self.noted.under_way.is_none()
    }

    /// Begins a comparison, or goes on with the one that was interrupted: where it is.
    pub fn begin(&mut self) -> Mark {
        match &self.noted.under_way {
            Some(under_way) => Mark { pass: under_way.pass, folder: under_way.folder.clone() },
            None => {
                self.noted.under_way = Some(UnderWay { began: Utc::now(), pass: 0, folder: String::new() });
                self.own = true;
                Mark::default()
            }
        }
    }

    /// What was compared before is open again: the next comparison begins at the beginning.
    pub fn anew(&mut self) {
        self.noted.under_way = None;
    }

    /// The comparison is so far, and what it found has been brought where it was missing.
    pub fn note(&mut self, mark: &Mark) {
        if let Some(under_way) = &mut self.noted.under_way {
            (under_way.pass, under_way.folder) = (mark.pass, mark.folder.clone());
        }
        if self.written.is_none_or(|written| written.elapsed() >= WRITE) {
            self.write();
        }
    }

    /// The comparison came to its end; whether it was a whole one.
    pub fn complete(&mut self) -> bool {
        let began = self.noted.under_way.take().map(|under_way| under_way.began);
        if self.own {
            self.noted.complete_at = began;
        }
        self.write();
        std::mem::take(&mut self.own)
    }

    /// Without fsync: what a crash loses is compared again.
    fn write(&mut self) {
        self.written = Some(Instant::now());
        let text = serde_json::to_vec_pretty(&self.noted).unwrap_or_default();
        let folder = self.path.parent().map_or(Ok(()), |folder| durable::create_dir(folder, 0o700));
        let written = folder.and_then(|()| Staged::write_volatile(&self.path, &text, 0o600)).and_then(Staged::publish);
        if let Err(error) = written {
            tracing::debug!(%error, "how far a comparison is could not be noted: the next one begins anew");
        }
    }
}
