//! Object locks: whether objects are locked for as long as the configuration promises, and packs that later backups use for longer.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use chrono::{DateTime, Utc};
use futures::{StreamExt, stream};
use walkeep_core::backup::BackupRecord;
use walkeep_core::layout::{ObjectName, PackId};
use walkeep_core::manifest::EntryKind;
use walkeep_store::{ErrorKind, Lock};

use super::{ClusterRepository, Error, Result, on_blocking_thread};

/// Requests at a time.
const PARALLEL: usize = 16;
/// Clocks differ: the lock's end is reckoned by the host that puts, the time of the put is the store's.
const SLACK: Duration = Duration::from_secs(3600);

/// What came of prolonging the locks of packs.
#[derive(Debug, Default)]
pub struct Prolonged {
    /// Packs that are locked as if they were put now.
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
            Some(locked) if locked.until + SLACK < needed => {
                Some(format!("it is locked until {}, and should be until {}, {by}", day(locked.until), day(needed)))
            }
            Some(locked) if locked.mode < lock.mode => Some("it is locked in governance mode, and should be in compliance mode".to_owned()),
            Some(_) => None,
        })
    }

    /// Locks all packs that a backup uses as if they were put now, where packs are to be locked: those that older backups put would be free before it.
    pub async fn prolong_locks(&self, record: &BackupRecord) -> Result<Prolonged> {
        if record.bytes_referenced == 0 || self.lock_promised(&ObjectName::Pack(PackId::new([0; 32]))).is_none() {
            return Ok(Prolonged::default());
        }
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
        let packs = packs.await?.map_err(Error::encode)?;
        let one = |pack: PackId| async move { Ok::<_, Error>(self.store().lock_anew(&self.key(&ObjectName::Pack(pack))?).await?) };
        let asked: Vec<_> = packs.into_iter().map(one).collect();
        let mut asked = stream::iter(asked).buffer_unordered(PARALLEL);
        let mut prolonged = Prolonged::default();
        while let Some(asked) = asked.next().await {
            match asked {
                Ok(()) => prolonged.packs += 1,
                Err(error) => {
                    prolonged.failed += 1;
                    prolonged.why.get_or_insert(error);
                }
            }
        }
        Ok(prolonged)
    }
}
