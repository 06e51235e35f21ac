//! One file of the archive back to PostgreSQL.
//!
//! Three answers exist, and the second is the dangerous one: *done*, the whole file is at its destination; *absent*, which ends recovery
//! and is said only when [`find`] proves it, or when `pg_wal` has all that there is of an unfinished segment (`received`); *failed*, which is everything else.
//!
//! A file is proven before it is visible: it is written beside its destination and takes the name as the last step of the request itself. So a request
//! that is given up (the shim was killed) leaves the destination alone. What PostgreSQL takes for its own is not fsynced here: before it uses `RECOVERYXLOG` or
//! `RECOVERYHISTORY` under another name it fsyncs it, and after a crash it removes what it finds under these. Under any other name, for pg_rewind and people, lies
//! the old file or the whole new one after a crash too. The folder is not fsynced: at worst the name is lost, and whoever asked asks again.

pub mod content;
pub mod find;
pub mod prefetch;
mod received;
mod replay;
pub mod service;
mod target;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use anyhow::{Context, anyhow};
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};
use walkeep_core::{SegmentName, WalFileName};

use walkeep_store::several::Proof;

use crate::durable::{self, PRIVATE_FILE, Staged};
use crate::rates::RatesFile;
use crate::repository::ClusterRepository;
use crate::retry::{Backoff, retry};
use crate::wal_path;

use content::Content;
use find::{Finder, Found, Remedy, Trouble};
use prefetch::Prefetch;
pub use prefetch::PrefetchConfig;
use replay::ReplayMeter;
pub use service::Activity;

/// How often something damaged is read again: a bit may have flipped on the way.
const REREADS: u32 = 2;

/// How long a hole in a segment's parts is looked at again within one request.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

/// How to fetch.
#[derive(Debug, Clone, Copy)]
pub struct FetchConfig {
    /// No further try is begun this long after a request came. A read under way is not cut off: on a slow line it would never end.
    pub deadline: Duration,
    /// The same for a standby, which can stream from its primary while the repository is out of reach, but not while it waits here.
    pub standby_deadline: Duration,
    /// The same for what fails, as opposed to what takes long: the shim asks again by itself, and can tell PostgreSQL's log the reason only
    /// once it has an answer.
    pub patience: Duration,
    /// How much to read ahead.
    pub prefetch: PrefetchConfig,
}

impl FetchConfig {
    /// For shims, which try again themselves.
    pub fn for_shims() -> Self {
        Self { patience: Duration::from_secs(2), ..Self::default() }
    }

    /// For one file, without a service: nothing is read ahead.
    pub fn one_file() -> Self {
        Self { prefetch: PrefetchConfig::NONE, ..Self::default() }
    }
}

impl Default for FetchConfig {
    fn default() -> Self {
        Self {
            deadline: Duration::from_secs(60),
            standby_deadline: Duration::from_secs(10),
            patience: Duration::from_secs(60),
            prefetch: PrefetchConfig::default(),
        }
    }
}

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FetchMode {
    /// A standby, which asks again and again.
    pub standby: bool,
}

/// The answer to a request.
#[derive(Debug)]
pub enum Outcome {
    /// The file is at its destination, whole and proven.
    Done,
    /// The repository was reached and proves that it has no such file.
    Absent {
        /// What was looked at.
        why: String,
    },
    /// Nobody knows, or it is known and cannot be given. Never to be taken for absent.
    Failed {
        /// What went wrong.
        why: anyhow::Error,
        /// What the operator can do.
        hint: String,
        /// Asking again has the same answer until a person changes something.
        permanent: bool,
    },
}

/// Fetches files of one cluster.
#[derive(Debug)]
pub struct Fetcher {
    finder: Arc<Finder>,
    prefetch: Prefetch,
    config: FetchConfig,
    activity: Activity,
    meter: Option<ReplayMeter>,
    /// Folders in which leftovers of killed processes were looked for.
    tidied: Mutex<HashSet<PathBuf>>,
    cancel: CancellationToken,
    _stop: DropGuard,
}

impl Fetcher {
    /// Fetches from `repository` until `cancel`. Of several repositories each has to say that a file is absent.
    pub fn new(repository: Arc<ClusterRepository>, config: FetchConfig, cancel: &CancellationToken) -> Self {
        let finder = Arc::new(Finder::new(Arc::new(repository.demanding(Proof::Every))));
        let cancel = cancel.child_token();
        Self {
            prefetch: Prefetch::new(Arc::clone(&finder), config.prefetch, cancel.clone()),
            finder,
            config,
            activity: Activity::new(),
            meter: None,
            tidied: Mutex::default(),
            _stop: cancel.clone().drop_guard(),
            cancel,
        }
    }

    /// The same, measuring how fast recoveries replay what is fetched.
    pub fn measuring(mut self, file: RatesFile) -> Self {
        self.meter = Some(ReplayMeter::new(file));
        self
    }

    /// Puts the archived file `name` at `destination`, with mode 0600, in the place of a file that is there. Which paths may be written is
    /// the caller's matter. May be dropped at any time: the destination is then as it was.
    #[tracing::instrument(skip_all, fields(file = %name))]
    pub async fn fetch(&self, name: WalFileName, destination: &Path, mode: FetchMode) -> Outcome {
        let _busy = self.activity.begin();
        tokio::select! {
            biased;
            () = self.cancel.cancelled() => {
                let why = anyhow!("fetching {name} was given up because Walkeep stops");
                Outcome::Failed { why, hint: "Ask again.".into(), permanent: false }
            }
            outcome = self.answer(name, destination, mode) => outcome,
        }
    }

    /// When there was work last.
    pub fn activity(&self) -> &Activity {
        &self.activity
    }

    /// Bytes that are read ahead or being read ahead.
    pub fn prefetched_bytes(&self) -> u64 {
        self.prefetch.bytes()
    }

    /// Gives up what is under way and waits until nothing is.
    pub async fn close(&self) {
        self.cancel.cancel();
        self.prefetch.close().await;
    }

    async fn answer(&self, name: WalFileName, destination: &Path, mode: FetchMode) -> Outcome {
        let asked = Instant::now();
        let meter = self.meter.as_ref().filter(|_| !mode.standby);
        let deadline = if mode.standby { self.config.standby_deadline } else { self.config.deadline };
        if let Some(placed) = self.place_ahead(name, destination, deadline).await {
            return match placed {
                Ok(segment) => {
                    let size = self.finder.identity().segment_size.bytes();
                    self.served(segment, destination);
                    meter.inspect(|meter| meter.served(segment, size, asked, destination));
                    Outcome::Done
                }
                Err(why) => misplaced(why, name, destination),
            };
        }
        let left = deadline.saturating_sub(asked.elapsed());
        let found = match self.find(name, destination, mode, left).await {
            Ok(found) => found,
            Err(trouble) => {
                let (hint, permanent) = (trouble.hint().into(), trouble.is_permanent());
                return Outcome::Failed { why: anyhow::Error::new(trouble).context(format!("cannot fetch {name}")), hint, permanent };
            }
        };
        let (content, finished) = match found {
            Found::Whole(content) => (content, true),
            Found::Tail { content, wal, apart } => {
                if let WalFileName::Segment(segment) = name
                    && received::has_as_much(segment, destination, &content, wal).await
                {
                    return Outcome::Absent {
                        why: format!("of {segment}, which is unfinished, the repository has nothing that pg_wal lacks"),
                    };
                }
                match apart {
                    None => tracing::info!(wal, "giving the unfinished end of the WAL, filled up with zeros"),
                    Some(apart) => tracing::warn!(
                        wal,
                        resumes = apart.resumes,
                        "a part of the unfinished segment is missing: giving what lies before it, filled up with zeros"
                    ),
                }
                (Content::Memory(content), false)
            }
            Found::Absent(why) => {
                meter.inspect(|meter| meter.absent(destination));
                return Outcome::Absent { why };
            }
        };
        if let Err(why) = self.put(content, destination).await {
            return misplaced(why, name, destination);
        }
        if let WalFileName::Segment(segment) = name
            && finished
        {
            let size = self.finder.identity().segment_size.bytes();
            self.served(segment, destination);
            meter.inspect(|meter| meter.served(segment, size, asked, destination));
        }
        Outcome::Done
    }

    /// Puts in place what was read ahead; `None` if it was not.
    async fn place_ahead(&self, name: WalFileName, destination: &Path, deadline: Duration) -> Option<anyhow::Result<SegmentName>> {
        let WalFileName::Segment(segment) = name else { return None };
        let ready = self.prefetch.claim(segment)?.content(deadline).await?;
        Some(self.put(ready.content, destination).await.map(|()| segment))
    }

    fn served(&self, segment: SegmentName, destination: &Path) {
        self.prefetch.served(segment, recovery_folder(destination));
    }

    /// What the repository has, tried again while that may help.
    ///
    /// A segment with a hole in its parts would end the recovery there, and the server would open. Given it is all the same to whoever does not open at the
    /// end of the WAL: a standby, which asks again, and a recovery with a target, at which PostgreSQL stops, or fails if it does not come to it.
    async fn find(&self, name: WalFileName, destination: &Path, mode: FetchMode, left: Duration) -> Result<Found, Trouble> {
        let rereads = AtomicU32::new(0);
        let (began, seen_to) = (Instant::now(), OnceLock::new());
        let again = |trouble: &Trouble| match trouble.remedy() {
            Remedy::Wait => true,
            Remedy::Look => began.elapsed() < LOOK_AGAIN,
            Remedy::Reread => rereads.fetch_add(1, Ordering::Relaxed) < REREADS,
            Remedy::None => false,
        };
        let look = async || match (self.finder.find(name, recovery_folder(destination)).await?, name) {
            (Found::Tail { wal, apart: Some(apart), .. }, WalFileName::Segment(segment))
                if wal < u64::from(*seen_to.get_or_init(|| apart.to)) && !mode.standby && !target::is_set(destination) =>
            {
                Err(Trouble::Apart { segment, apart })
            }
            (found, _) => Ok(found),
        };
        let left = left.min(self.config.patience);
        retry("reading the file", Backoff::within(left), &self.cancel, again, look).await
    }

    /// Gives the file its name, and writes it before if it is not there yet.
    async fn put(&self, content: Content, destination: &Path) -> anyhow::Result<()> {
        self.tidy(destination).await;
        let content = match content {
            // From here on there is no await: a request that was given up must not change the destination afterwards.
            Content::Written(file) if Some(file.folder()) == recovery_folder(destination) => return file.publish(destination),
            // Another server asks than the one before.
            Content::Written(file) => tokio::task::spawn_blocking(|| file.read()).await?.context("read what was read ahead")?.into(),
            Content::Memory(content) => content,
        };
        let path = destination.to_owned();
        let write = move || {
            let write = if wal_path::is_scratch(&path) { Staged::write_volatile } else { Staged::write };
            write(&path, &content, PRIVATE_FILE)
        };
        // If this is dropped while it waits, the file is written to its end on its thread, and removed.
        let staged = tokio::task::spawn_blocking(write).await.context("write the file")??;
        // No await, as above.
        staged.publish()
    }

    /// Removes what killed processes left in the folder of `path`, once.
    async fn tidy(&self, path: &Path) {
        let folder = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        if !self.tidied.lock().unwrap_or_else(PoisonError::into_inner).insert(folder.clone()) {
            return;
        }
        let remove = move || {
            if let Err(error) = durable::remove_abandoned(&folder) {
                tracing::debug!(folder = %folder.display(), %error, "could not look for leftovers");
            }
        };
        // Nothing depends on it.
        let _ = tokio::task::spawn_blocking(remove).await;
    }
}

/// The folder that a recovery wants its segments in, if it is one that asks.
fn recovery_folder(destination: &Path) -> Option<&Path> {
    destination.parent().filter(|_| wal_path::is_scratch(destination))
}

fn misplaced(why: anyhow::Error, name: WalFileName, destination: &Path) -> Outcome {
    let hint = format!("Check free space and permissions of the folder of {}.", destination.display());
    Outcome::Failed { why: why.context(format!("cannot put {name} in place")), hint, permanent: false }
}

#[cfg(test)]
mod tests;
