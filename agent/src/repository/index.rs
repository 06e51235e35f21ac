//! The index in the repository: digests of what the WAL says, and maps of the blocks it changes.
//!
//! What is stored here can be made again out of the WAL. So it is the one kind of object that a command removes to put another in its place
//! ([`ClusterRepository::remove_index`]), and one that cannot be believed is passed over by whoever plans.

use bytes::Bytes;
use walkeep_core::index::{BlockMap, BlocksName, Digest, DigestName, Level};
use walkeep_core::layout::ObjectName;
use walkeep_core::{Lsn, TimelineId};
use walkeep_store::{ListRequest, list_all};

use super::wal::Stored;
use super::{ClusterRepository, Error, Result, on_blocking_thread};

/// The most a digest may hold: 64 summaries with 2,000 entries each, and far more.
pub(super) const DIGEST_LIMIT: u64 = 256 << 20;
/// The most a block map may hold. One that would be larger is not stored: blocks of which nothing is known count as changed.
pub(super) const BLOCKS_LIMIT: u64 = 256 << 20;

impl ClusterRepository {
    /// Stores a digest. One that is stored already stays, whatever it says: it was made of the same WAL.
    pub async fn put_digest(&self, digest: &Digest) -> Result<()> {
        let name = digest.name;
        let content = Bytes::from(digest.to_json_lines().map_err(Error::encode)?);
        let put = self.put_object(ObjectName::Digest(name), name.to_string(), Some(name.from), DIGEST_LIMIT, content).await;
        keep_the_first(put)
    }

    /// A digest; `None` if it is not there.
    pub async fn get_digest(&self, name: DigestName) -> Result<Option<Digest>> {
        let object = ObjectName::Digest(name);
        let Some(file) = self.read(&object, &name.to_string(), DIGEST_LIMIT).await? else { return Ok(None) };
        let size = self.identity().segment_size;
        let digest = on_blocking_thread(move || Digest::from_json_lines(name, &file.content, size)).await?;
        digest.map(Some).map_err(|error| Error::corrupt(self.layout().key(&object), error))
    }

    /// The digests of one timeline and level that begin behind `after`, or all.
    pub async fn list_digests(&self, timeline: TimelineId, level: Level, after: Option<Lsn>) -> Result<Vec<DigestName>> {
        let prefix = self.layout().digests_prefix(timeline, level);
        // Keys begin with the first position; this sorts before whatever begins there.
        let start_after = after.map(|after| format!("{prefix}{:016X}", after.get()));
        let page = list_all(self.store().as_ref(), ListRequest { prefix, start_after, ..ListRequest::default() }).await?;
        let names = page.objects.iter().filter_map(|listed| match self.layout().parse(listed.key.as_str()) {
            Some(ObjectName::Digest(name)) => Some(name),
            _ => None,
        });
        Ok(names.collect())
    }

    /// Stores a map of changed blocks; as [`ClusterRepository::put_digest`].
    pub async fn put_blocks(&self, name: BlocksName, blocks: &BlockMap) -> Result<()> {
        let content = Bytes::from(blocks.to_json_lines().map_err(Error::encode)?);
        if content.len() as u64 > BLOCKS_LIMIT {
            tracing::warn!(from = %name.from, to = %name.to, bytes = content.len(), "the map of changed blocks is too large to be of use: not stored");
            return Ok(());
        }
        let put = self.put_object(ObjectName::Blocks(name), blocks_title(name), Some(name.from), BLOCKS_LIMIT, content).await;
        keep_the_first(put)
    }

    /// A map of changed blocks; `None` if it is not there.
    pub async fn get_blocks(&self, name: BlocksName) -> Result<Option<BlockMap>> {
        let object = ObjectName::Blocks(name);
        let Some(file) = self.read(&object, &blocks_title(name), BLOCKS_LIMIT).await? else { return Ok(None) };
        let blocks = on_blocking_thread(move || BlockMap::from_json_lines(&file.content)).await?;
        blocks.map(Some).map_err(|error| Error::corrupt(self.layout().key(&object), error))
    }

    /// The maps of one timeline that begin at `after` or behind it, or all.
    pub async fn list_blocks(&self, timeline: TimelineId, after: Option<Lsn>) -> Result<Vec<BlocksName>> {
        let prefix = self.layout().blocks_prefix(timeline);
        let start_after = after.map(|after| format!("{prefix}{:016X}", after.get()));
        let page = list_all(self.store().as_ref(), ListRequest { prefix, start_after, ..ListRequest::default() }).await?;
        let names = page.objects.iter().filter_map(|listed| match self.layout().parse(listed.key.as_str()) {
            Some(ObjectName::Blocks(name)) => Some(name),
            _ => None,
        });
        Ok(names.collect())
    }

    /// Removes everything that the index has of a timeline; answers how many objects. What does not belong to it stays.
    pub async fn remove_index(&self, timeline: TimelineId) -> Result<u64> {
        let mut removed = 0;
        for level in Level::DOWNWARDS {
            for name in self.list_digests(timeline, level, None).await? {
                self.store().delete(&self.key(&ObjectName::Digest(name))?).await?;
                removed += 1;
            }
        }
        for name in self.list_blocks(timeline, None).await? {
            self.store().delete(&self.key(&ObjectName::Blocks(name))?).await?;
            removed += 1;
        }
        Ok(removed)
    }
}

fn keep_the_first(put: Result<Stored>) -> Result<()> {
    match put {
        Ok(_) | Err(Error::Conflict { .. } | Error::Corrupt { .. } | Error::CannotDecrypt { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

pub(super) fn blocks_title(name: BlocksName) -> String {
    format!("blocks of timeline {} from {} to {}", name.timeline, name.from, name.to)
}
