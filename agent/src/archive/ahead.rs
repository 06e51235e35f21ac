//! Segments that PostgreSQL will offer next, stored before it does.
//!
//! The archiver offers one file at a time and waits for each: behind an outage, or a burst of writes, that uses one core and one connection. So once a
//! segment was stored, those behind it that are marked `.ready` are stored as well, some at a time, and the archiver's question for them is answered from
//! memory. The answer is the same: it is given when the repository has acknowledged the bytes, and only if the file that is offered is the file that was read,
//! which its inode, length and times tell.
//!
//! A segment goes ahead only if nothing before it would be left in parts with a whole segment behind: see [`crate::recent::sides`]. What fails here is not told
//! to PostgreSQL; it fails once more when the file is offered, or it does not.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tracing::Instrument;
use walkeep_core::SegmentName;

use super::{ArchiveError, Archives, Because, on_blocking_thread};
use crate::recent::sides::AheadGuard;
use crate::repository::wal::Stored;
use crate::wal_path::{self, Stamp};

/// Segments that may be under way or wait for their question, which costs a name each.
const DEPTH: usize = 128;
/// Segments under way at the same time.
const PARALLEL: u64 = 4;
/// The most plain bytes of them; as objects they have a part of that.
const MEMORY: u64 = 192 << 20;
/// What was stored longer ago is looked at once more before it is acknowledged.
const FRESH: Duration = Duration::from_secs(60);

/// What is stored, or being stored, ahead of its question.
#[derive(Debug)]
pub(super) struct Ahead {
    archives: Arc<Archives>,
    entries: Mutex<BTreeMap<SegmentName, Entry>>,
    room: Arc<Semaphore>,
    looking: AtomicBool,
}

/// How a segment ended: nothing while it is under way, and nobody to tell it once it has failed.
type Entry = watch::Receiver<Option<Known>>;

/// A segment that was stored out of this file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Known {
    stamp: Stamp,
    at: Instant,
    /// As far as this process knows, nobody else has written the like.
    pub(super) new: bool,
}

impl Known {
    /// Whether the file that is offered is this one, and was stored lately.
    pub(super) fn is_of(&self, stamp: Stamp) -> bool {
        self.stamp == stamp && self.at.elapsed() < FRESH
    }
}

/// What [`Ahead::begin`] finds.
enum Place {
    /// A free one: who has it tells how it ended.
    Free(watch::Sender<Option<Known>>),
    /// It is stored, or on its way.
    Taken,
    /// There is none, or it has failed and is not passed by before PostgreSQL knows why.
    None,
}

impl Ahead {
    /// What `archives` would do; `None` where one segment takes all the memory.
    pub(super) fn new(archives: Arc<Archives>) -> Option<Arc<Self>> {
        let room = (MEMORY / archives.repository.identity().segment_size.bytes()).min(PARALLEL) as usize;
        let ahead = || Self { archives, entries: Mutex::default(), room: Arc::new(Semaphore::new(room)), looking: AtomicBool::new(false) };
        (room > 0).then(ahead).map(Arc::new)
    }

    /// PostgreSQL offers `segment`: what is known of it, once it is known. What comes before is forgotten.
    pub(super) async fn claim(&self, segment: SegmentName) -> Option<Known> {
        let entry = {
            let mut entries = self.entries();
            let entry = entries.remove(&segment);
            // Where the archiver goes on elsewhere, what waits for it waits in vain.
            entries.retain(|name, _| name.timeline() == segment.timeline() && *name > segment);
            entry
        };
        // A task that ended without a word has failed.
        entry?.wait_for(Option::is_some).await.ok().and_then(|known| *known)
    }

    fn entries(&self) -> MutexGuard<'_, BTreeMap<SegmentName, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self, segment: SegmentName) -> Place {
        let mut entries = self.entries();
        match entries.get(&segment) {
            Some(entry) if entry.borrow().is_some() || entry.has_changed().is_ok() => Place::Taken,
            Some(_) => Place::None,
            None if entries.len() >= DEPTH => Place::None,
            None => {
                let (told, entry) = watch::channel(None);
                entries.insert(segment, entry);
                Place::Free(told)
            }
        }
    }

    fn forget(&self, segment: SegmentName) {
        self.entries().remove(&segment);
    }
}

/// `segment`, which lies at `path`, is stored: begins with those behind it, beside the caller, unless that is being done already. `new`: it was not
/// there before.
pub(super) fn go_on(ahead: &Arc<Ahead>, path: PathBuf, segment: SegmentName, new: bool) {
    if ahead.looking.swap(true, Ordering::AcqRel) {
        return;
    }
    let ahead = ahead.clone();
    let looking = async move {
        let cancel = ahead.archives.cancel.clone();
        // What is cut off has told nobody that it is stored.
        let _ = cancel.run_until_cancelled(look(&ahead, &path, segment, new)).await;
        ahead.looking.store(false, Ordering::Release);
    };
    tokio::spawn(looking.in_current_span());
}

/// Begins with one segment after the other, until one is not ready, or must not go ahead, or enough wait for their question.
async fn look(ahead: &Arc<Ahead>, path: &Path, mut segment: SegmentName, mut new: bool) {
    let size = ahead.archives.repository.identity().segment_size;
    loop {
        let Some(number) = segment.number(size) else { return };
        segment = number.next().name(segment.timeline(), size);
        let path = path.with_file_name(segment.to_string());
        if !wal_path::is_ready(&path) {
            return;
        }
        let told = match ahead.begin(segment) {
            Place::Free(told) => told,
            Place::Taken => continue,
            Place::None => return,
        };
        let Some(right) = right_to_store(ahead, segment).await else { return ahead.forget(segment) };
        let store = store(ahead.archives.clone(), path, right, told);
        if new {
            tokio::spawn(store.in_current_span());
            continue;
        }
        // Somebody has been here before: if his WAL differs from here on, nothing behind may be mixed with it.
        match store.await {
            Some(known) => new = known.new,
            None => return,
        }
    }
}

/// Room in memory, and the right of way.
type Right = (OwnedSemaphorePermit, AheadGuard);

/// The right to store `segment` before it is offered, once there is room; none if bytes of it may be confirmed already, or others are to be.
async fn right_to_store(ahead: &Ahead, segment: SegmentName) -> Option<Right> {
    let room = ahead.room.clone().acquire_owned().await.ok()?;
    let side = ahead.archives.recent.sides().ahead()?;
    let parts = ahead.archives.repository.list_parts(segment).await;
    let parts = parts.inspect_err(|error| tracing::debug!(%segment, %error, "not looked ahead of archive_command")).ok()?;
    parts.is_empty().then_some((room, side))
}

/// Stores the segment at `path` as if it had been offered, and tells how that ended.
async fn store(archives: Arc<Archives>, path: PathBuf, right: Right, told: watch::Sender<Option<Known>>) -> Option<Known> {
    let system = archives.repository.identity().system_identifier;
    let checked = path.clone();
    let work = async {
        let source = on_blocking_thread(move || wal_path::check_source(&checked, system)).await??;
        let stamp = source.stamp;
        let stored = archives.store(source, Because::Ahead).await?;
        Ok::<_, ArchiveError>(Known { stamp, at: Instant::now(), new: matches!(stored, Stored::New { .. }) })
    };
    let known = archives.cancel.run_until_cancelled(work).await?;
    let known = known.inspect_err(|error| tracing::debug!(path = %path.display(), %error, "not stored ahead of archive_command")).ok()?;
    drop(right);
    told.send_replace(Some(known));
    Some(known)
}

#[cfg(test)]
mod tests;
