//! Holds: that a backup is to be kept beyond the policy, said after it was taken, or that it need not be any more.
//!
//! Each is an object of its own beside the backup's record, which never changes; the one with the highest number holds.

use std::collections::BTreeMap;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures::{StreamExt, TryStreamExt, stream};
use serde::{Deserialize, Serialize};
use walkeep_core::backup::Keep;
use walkeep_core::layout::{BackupId, ObjectName};
use walkeep_core::sealed;
use walkeep_store::{ErrorKind, ListRequest, Put, list_all};

use super::catalog::READS;
use super::{ClusterRepository, Error, Result};

/// What was said of a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hold {
    /// The backup.
    pub backup: BackupId,
    /// To be kept; `None`: not any more.
    pub keep: Option<Keep>,
    /// When it was said, by that host's clock.
    pub at: DateTime<Utc>,
    /// On which host.
    pub host: String,
}

impl ClusterRepository {
    /// What was said last of each backup of which anything was.
    pub async fn holds(&self) -> Result<BTreeMap<BackupId, Hold>> {
        let read = |(id, number): (BackupId, u32)| async move {
            let hold = self.hold(&id, number).await?;
            Ok::<_, Error>(hold.map(|hold| (id, hold)))
        };
        let newest = self.newest_holds(self.layout().backups_prefix()).await?;
        let read: Vec<_> = stream::iter(newest.into_iter().map(read)).buffered(READS).try_collect().await?;
        Ok(read.into_iter().flatten().collect())
    }

    /// What was said of a backup under this number; `None` if nothing was.
    pub(super) async fn hold(&self, id: &BackupId, number: u32) -> Result<Option<Hold>> {
        let name = ObjectName::Hold(id.clone(), number);
        let corrupt = |reason: &dyn std::fmt::Display| Error::corrupt(self.layout().key(&name), reason);
        let parse = |body: &[u8]| {
            let hold: Hold = sealed::from_json(body).map_err(|error| corrupt(&error))?;
            if hold.backup == *id { Ok(hold) } else { Err(corrupt(&format!("it is said of {}", hold.backup))) }
        };
        self.parsed(&name, parse).await
    }

    /// Says it of a backup.
    pub async fn put_hold(&self, hold: &Hold) -> Result<()> {
        let body = Bytes::from(sealed::to_json(hold).map_err(Error::encode)?);
        loop {
            let last = self.newest_holds(self.layout().backup_prefix(&hold.backup)).await?;
            let number = last.get(&hold.backup).map_or(1, |last| last + 1);
            match self.store().put_if_absent(&self.key(&ObjectName::Hold(hold.backup.clone(), number))?, body.clone()).await {
                Ok(Put::Created | Put::AlreadySame) => return Ok(()),
                // Somebody else said something at the same moment: this comes behind it.
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    async fn newest_holds(&self, prefix: String) -> Result<BTreeMap<BackupId, u32>> {
        let mut newest = BTreeMap::new();
        for listed in list_all(self.store().as_ref(), ListRequest { prefix, ..ListRequest::default() }).await?.objects {
            if let Some(ObjectName::Hold(id, number)) = self.layout().parse(listed.key.as_str()) {
                let last = newest.entry(id).or_insert(number);
                *last = number.max(*last);
            }
        }
        Ok(newest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::tests::{memory, record};

    #[tokio::test]
    async fn the_last_word_holds() {
        let (repository, store) = memory().await;
        let hold = |keep| Hold { backup: record(1).id, keep, at: DateTime::UNIX_EPOCH, host: "db1".into() };
        // More than ten: the numbers of keys do not sort as text.
        for _ in 0..6 {
            repository.put_hold(&hold(Some(Keep::Forever))).await.unwrap();
            repository.put_hold(&hold(None)).await.unwrap();
        }
        repository.put_hold(&hold(Some(Keep::Until(DateTime::UNIX_EPOCH)))).await.unwrap();
        let held = repository.holds().await.unwrap();
        assert_eq!(held.values().map(|hold| hold.keep).collect::<Vec<_>>(), [Some(Keep::Until(DateTime::UNIX_EPOCH))]);
        let other = Hold { backup: record(2).id, ..hold(None) };
        let key = repository.key(&ObjectName::Hold(record(1).id, 14)).unwrap();
        store.overwrite(&key, Bytes::from(serde_json::to_vec(&other).unwrap()));
        assert!(matches!(repository.holds().await, Err(Error::Corrupt { .. })), "of another backup");
    }
}
