//! Catalog snapshots: what relations were called, each an immutable object. What is in one, `walkeep_core::names` knows.

use bytes::Bytes;
use walkeep_core::layout::{ObjectName, SnapshotName};
use walkeep_core::names::{Snapshot, SnapshotWriter};
use walkeep_store::{ListRequest, list_all};

use super::{ClusterRepository, Error, Result, on_blocking_thread};

/// Room for the header's line.
pub(super) const HEADER: u64 = 4096;

impl ClusterRepository {
    /// The snapshots there are, by timeline and position.
    pub async fn list_names(&self) -> Result<Vec<SnapshotName>> {
        let request = ListRequest { prefix: self.layout().names_prefix(), ..ListRequest::default() };
        let page = list_all(self.store().as_ref(), request).await?;
        let names = page.objects.iter().filter_map(|listed| match self.layout().parse(listed.key.as_str()) {
            Some(ObjectName::Names(name)) => Some(name),
            _ => None,
        });
        let mut names: Vec<SnapshotName> = names.collect();
        names.sort_unstable();
        Ok(names)
    }

    /// Stores a snapshot. One of the same position that is there already stays: both say what could be seen there.
    pub async fn put_names(&self, name: SnapshotName, text: String) -> Result<()> {
        let content = Bytes::from(text);
        match self.put_object(ObjectName::Names(name), title(name), Some(name.lsn), SnapshotWriter::LONGEST + HEADER, content).await {
            Ok(_) | Err(Error::Conflict { .. } | Error::CannotDecrypt { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The text of a snapshot that was listed.
    pub async fn names_text(&self, name: SnapshotName) -> Result<Bytes> {
        let object = ObjectName::Names(name);
        let file = self.read(&object, &title(name), SnapshotWriter::LONGEST + HEADER).await?;
        let gone = || Error::corrupt(self.layout().key(&object), "it was listed a moment ago and is gone");
        file.map(|file| file.content).ok_or_else(gone)
    }

    /// A snapshot that was listed.
    pub async fn names(&self, name: SnapshotName) -> Result<Snapshot> {
        let (text, key) = (self.names_text(name).await?, self.layout().key(&ObjectName::Names(name)));
        on_blocking_thread(move || {
            let text = std::str::from_utf8(&text).map_err(|error| Error::corrupt(key.as_str(), error))?;
            let snapshot = Snapshot::parse(text).map_err(|error| Error::corrupt(key.as_str(), error))?;
            let is_it = (snapshot.header.timeline, snapshot.header.lsn) == (name.timeline, name.lsn);
            if is_it { Ok(snapshot) } else { Err(Error::corrupt(key.as_str(), "it is the snapshot of another position")) }
        })
        .await?
    }
}

pub(super) fn title(name: SnapshotName) -> String {
    format!("names {} {:016X}", name.timeline.hex(), name.lsn.get())
}

#[cfg(test)]
mod tests {
    use walkeep_core::names::Header;
    use walkeep_core::{Lsn, PgTimestamp, TimelineId};

    use super::*;
    use crate::repository::tests::memory;

    fn text(lsn: u64, database: &str) -> String {
        let mut writer = SnapshotWriter::default();
        writer.database(5, database, 1663, None);
        let (lsn, taken_at) = (Lsn::new(lsn), PgTimestamp::from_micros(0));
        writer.finish(&Header { format: 1, timeline: TimelineId::FIRST, lsn, until: lsn, taken_at, left_out: 0 })
    }

    #[tokio::test]
    async fn a_snapshot_is_stored_once_and_read_back() {
        let (repository, store) = memory().await;
        let name = |lsn| SnapshotName { timeline: TimelineId::FIRST, lsn: Lsn::new(lsn) };
        for (lsn, database) in [(0x1_0000_0000, "later"), (0x200, "first"), (0x200, "another")] {
            repository.put_names(name(lsn), text(lsn, database)).await.unwrap();
        }
        assert_eq!(repository.list_names().await.unwrap(), [name(0x200), name(0x1_0000_0000)]);
        let snapshot = repository.names(name(0x200)).await.unwrap();
        assert_eq!(snapshot.databases().map(|database| database.name.as_str()).collect::<Vec<_>>(), ["first"]);

        repository.put_names(name(0x300), text(0x301, "elsewhere")).await.unwrap();
        assert!(repository.names(name(0x300)).await.unwrap_err().to_string().contains("another position"));
        let key = repository.layout().key(&ObjectName::Names(name(0x200)));
        store.overwrite(&key.parse().unwrap(), Bytes::from_static(b"x"));
        assert!(matches!(repository.names(name(0x200)).await, Err(Error::Corrupt { .. })));
    }
}
