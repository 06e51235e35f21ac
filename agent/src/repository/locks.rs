//! Object locks: whether objects are locked for as long as the configuration promises, and packs that later backups use for longer.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use chrono::{DateTime, Utc};
use futures::{StreamExt, stream};
use tokio::time::{Instant, timeout_at};
use walkeep_core::backup::BackupRecord;
use walkeep_core::layout::{ObjectName, PackId};
use walkeep_core::manifest::EntryKind;
use walkeep_store::{Error as StoreError, ErrorKind, Lock};

use super::{ClusterRepository, Error, Result, on_blocking_thread};

/// Requests at a time.
const PARALLEL: usize = 16;
/// Clocks differ: the lock's end is reckoned by the host that puts, the time of the put is the store's.
const SLACK: Duration = Duration::from_secs(3600);

/// So long all of a backup's packs may take.
const PATIENCE: Duration = Duration::from_secs(1800);
/// Behind so many failures in a row the next would fail too.
const FAILURES: u64 = 2 * PARALLEL as u64;

/// What came of prolonging the locks of packs.
#[derive(Debug, Default)]
pub struct Prolonged {
    /// Packs that are locked as if they were put now, or nearly.
    pub packs: u64,
    /// Packs that are not.
    pub failed: u64,
    /// Why the first of these is not.
    pub why: Option<Error>,
}

impl ClusterRepository {
    /// How an object of this name is to be locked, if at all.
    pub fn lock_promised(&self, name: &ObjectName) -> Option<Lock> {
        self.store().lock_of(&self.key(name).ok()?)
    }

    /// What of an object's lock is not as promised, in words. `used`: when the newest backup ended that needs it. A promise that is over is none.
    pub async fn lock_fault(&self, name: &ObjectName, put: SystemTime, used: Option<SystemTime>) -> Result<Option<String>> {
        let Some(lock) = self.lock_promised(name) else { return Ok(None) };
        let needed = used.map_or(put, |used| used.max(put)) + lock.time();
        if needed < SystemTime::now() + SLACK {
            return Ok(None);
        }
        let locked = match self.store().locked(&self.key(name)?).await {
            Ok(locked) => locked,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let day = |at: SystemTime| DateTime::<Utc>::from(at).format("%Y-%m-%d %H:%M UTC").to_string();
        let by =
            if used.is_some_and(|used| used > put) { "as the newest backup that uses it is" } else { "as it was promised when it was put" };
        Ok(match locked {
            None => Some(format!("it is not locked, and should be until {}, {by}", day(needed))),
            // What is used for longer may end a little earlier: it is not locked anew for that.
            Some(locked) if locked.until + SLACK < put + lock.time() || locked.until + lock.slack().max(SLACK) < needed => {
                Some(format!("it is locked until {}, and should be until {}, {by}", day(locked.until), day(needed)))
            }
            Some(locked) if locked.mode < lock.mode => Some("it is locked in governance mode, and should be in compliance mode".to_owned()),
            Some(_) => None,
        })
    }

    /// Locks all packs that a backup uses as if they were put now, where packs are to be locked: those that older backups put would be free before it. Not
    /// those that it `put` itself.
    pub async fn prolong_locks(&self, record: &BackupRecord, put: &BTreeSet<PackId>) -> Result<Prolonged> {
        if record.bytes_referenced == 0 || self.lock_promised(&ObjectName::Pack(PackId::new([0; 32]))).is_none() {
            return Ok(Prolonged::default());
        }
        let too_long =
            || StoreError::at(ErrorKind::Transient, "lock", record.id.to_string()).because(format!("not done within {PATIENCE:?}"));
        let deadline = Instant::now() + PATIENCE;
        let packs = timeout_at(deadline, self.packs_of(record)).await.map_err(|_| too_long())??;
        let mut prolonged = self.lock_all(packs.difference(put).copied(), deadline).await;
        if prolonged.failed > 0 {
            prolonged.why.get_or_insert_with(|| too_long().into());
        }
        Ok(prolonged)
    }

    async fn lock_all(&self, packs: impl Iterator<Item = PackId>, deadline: Instant) -> Prolonged {
        let one = |pack: PackId| async move { Ok::<_, Error>(self.store().lock_anew(&self.key(&ObjectName::Pack(pack))?).await?) };
        let asked: Vec<_> = packs.map(one).collect();
        let (all, mut in_a_row) = (asked.len() as u64, 0);
        let mut asked = stream::iter(asked).buffer_unordered(PARALLEL);
        let mut prolonged = Prolonged::default();
        while in_a_row < FAILURES {
            match timeout_at(deadline, asked.next()).await {
                Ok(Some(Ok(()))) => (prolonged.packs, in_a_row) = (prolonged.packs + 1, 0),
                Ok(Some(Err(error))) => {
                    in_a_row += 1;
                    prolonged.why.get_or_insert(error);
                }
                Ok(None) | Err(_) => break,
            }
        }
        prolonged.failed = all - prolonged.packs;
        prolonged
    }

    /// The packs that a backup's manifest names.
    async fn packs_of(&self, record: &BackupRecord) -> Result<BTreeSet<PackId>> {
        let manifest = self.get_manifest(record).await?;
        let packs = on_blocking_thread(move || -> std::io::Result<BTreeSet<PackId>> {
            let mut packs = BTreeSet::new();
            for entry in manifest.iter().map_err(std::io::Error::other)? {
                if let EntryKind::File { content, .. } = entry.map_err(std::io::Error::other)?.kind {
                    packs.extend(content.extents().iter().map(|extent| extent.pack));
                }
            }
            Ok(packs)
        });
        packs.await?.map_err(Error::encode)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use walkeep_store::{Fault, FaultyStore, LockMode, MemoryStore, Operation, Rule};

    use super::*;
    use crate::repository::tests::over;

    #[tokio::test(start_paused = true)]
    async fn a_store_that_does_not_lock_is_not_asked_for_ever() {
        let store = Arc::new(FaultyStore::new(Arc::new(MemoryStore::locking(Lock { mode: LockMode::Compliance, days: 30 }))));
        let repository = over(store.clone()).await;
        let packs = || (0..200).map(|number| PackId::new([number; 32]));
        let asked = || store.count(Operation::Probe) as u64;
        store.inject(Rule::new(Operation::Probe, Fault::Fail(ErrorKind::Denied)));
        let before = asked();
        let denied = repository.lock_all(packs(), Instant::now() + PATIENCE).await;
        assert_eq!((denied.packs, denied.failed), (0, 200));
        assert!(denied.why.is_some() && asked() - before <= FAILURES + PARALLEL as u64, "{denied:?}");
        store.heal();
        store.inject(Rule::new(Operation::Probe, Fault::Hang));
        let began = Instant::now();
        let silent = repository.lock_all(packs(), began + PATIENCE).await;
        assert_eq!((silent.packs, silent.failed, began.elapsed()), (0, 200, PATIENCE));
    }
}
