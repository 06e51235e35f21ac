//! Gaps: stretches of WAL that are known to be missing, each an immutable record.

use bytes::Bytes;
use walkeep_core::TimelineHistory;
use walkeep_core::catalog::{GapCause, GapRecord};
use walkeep_core::layout::{GapName, ObjectName};
use walkeep_core::resume::unstored;
use walkeep_store::{ErrorKind, ListRequest, list_all};

use super::{ClusterRepository, Error, Result};

impl ClusterRepository {
    /// Records a gap; a gap that is recorded already keeps its first record.
    pub async fn put_gap(&self, gap: GapName, cause: GapCause) -> Result<()> {
        let record = GapRecord { name: gap, cause, recorded_at: chrono::Utc::now(), closed_at: None };
        let body = Bytes::from(serde_json::to_vec_pretty(&record).map_err(Error::encode)?);
        match self.store().put_if_absent(&self.key(&ObjectName::Gap(gap))?, body).await {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// The places of all recorded gaps: what their keys say.
    pub async fn gaps(&self) -> Result<Vec<GapName>> {
        let request = ListRequest { prefix: self.layout().gaps_prefix(), ..ListRequest::default() };
        let page = list_all(self.store().as_ref(), request).await?;
        let gaps = page.objects.iter().filter_map(|listed| match self.layout().parse(listed.key.as_str()) {
            Some(ObjectName::Gap(gap)) => Some(gap),
            _ => None,
        });
        Ok(gaps.collect())
    }

    /// The gaps of which something is still missing: a gap that archive_command's copies, or a later stream, have filled is closed.
    pub async fn open_gaps(&self) -> Result<Vec<GapName>> {
        let size = self.identity().segment_size;
        let mut open = Vec::new();
        for gap in self.gaps().await? {
            let stretches = self.stored_stretches(gap.timeline, size.segment_of(gap.from)).await?;
            let stored: Vec<_> = stretches.into_iter().map(|(from, to)| (gap.timeline, from, to)).collect();
            if !unstored(&TimelineHistory::root(gap.timeline), gap.from, gap.to, &stored).is_empty() {
                open.push(gap);
            }
        }
        Ok(open)
    }

    /// A gap's record.
    pub async fn gap(&self, gap: GapName) -> Result<GapRecord> {
        let key = self.key(&ObjectName::Gap(gap))?;
        let body = self.store().get(&key, None).await?;
        serde_json::from_slice(&body).map_err(|error| Error::corrupt(key.as_str(), error))
    }
}
