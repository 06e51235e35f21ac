//! Gaps: stretches of WAL that are known to be missing, each an immutable record; one that was filled gets a note beside it.

use std::collections::BTreeSet;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use serde::Serialize;
use serde::de::DeserializeOwned;
use walkeep_core::catalog::{GapCause, GapClosing, GapRecord, WalRange};
use walkeep_core::layout::{GapName, ObjectName};
use walkeep_core::sealed;
use walkeep_store::{ErrorKind, ListRequest, list_all};

use super::catalog::READS;
use super::{ClusterRepository, Error, Result};

/// What is listed of gaps.
#[derive(Debug, Default)]
pub(super) struct ListedGaps {
    /// The recorded ones.
    pub recorded: Vec<GapName>,
    /// Those that were filled.
    pub closed: BTreeSet<GapName>,
}

impl ClusterRepository {
    /// Records a gap; a gap that is recorded already keeps its first record.
    pub async fn put_gap(&self, gap: GapName, cause: GapCause) -> Result<()> {
        let record = GapRecord { name: gap, cause, recorded_at: chrono::Utc::now(), closed_at: None };
        self.put_once(&ObjectName::Gap(gap), &record).await
    }

    /// The places of all recorded gaps, filled or not: what their keys say.
    pub async fn gaps(&self) -> Result<Vec<GapName>> {
        Ok(self.listed_gaps().await?.recorded)
    }

    /// The gaps of which something is missing. One that archive_command's copies, or a stream, have filled since is noted as closed.
    pub async fn open_gaps(&self) -> Result<Vec<GapName>> {
        let ListedGaps { recorded, closed } = self.listed_gaps().await?;
        let mut open = Vec::new();
        let unclosed: Vec<GapName> = recorded.into_iter().filter(|gap| !closed.contains(gap)).collect();
        if unclosed.is_empty() {
            return Ok(open);
        }
        // Around it nothing is kept any more: nobody will ask for it.
        let expired = self.expired().await?;
        let is_gone = |gap: &GapName| expired.has_all_of(gap.timeline, WalRange { from: gap.from, to: gap.to });
        for gap in unclosed.into_iter().filter(|gap| !is_gone(gap)) {
            if !self.wal_within(gap.timeline, gap.from, gap.to).await?.missing_within(gap).is_empty() {
                open.push(gap);
                continue;
            }
            match self.gap(gap).await {
                Ok(record) if !record.cause.forbids_replay() => {
                    tracing::info!(timeline = gap.timeline.get(), from = %gap.from, to = %gap.to, "the gap is filled: closing it");
                    self.close_gap(gap).await?;
                }
                Ok(_) | Err(Error::Corrupt { .. }) => open.push(gap),
                Err(error) => return Err(error),
            }
        }
        Ok(open)
    }

    /// Of the gaps that are wanted, those behind which another history is stored, each with whether it was closed: the first history went on after all.
    pub async fn other_histories(&self, is_wanted: impl Fn(&GapName) -> bool) -> Result<Vec<(GapName, bool)>> {
        let ListedGaps { recorded, closed } = self.listed_gaps().await?;
        let mut found = Vec::new();
        for gap in recorded.into_iter().filter(is_wanted) {
            match self.gap(gap).await {
                Ok(record) if record.cause == GapCause::OtherHistory => found.push((gap, closed.contains(&gap))),
                Ok(_) | Err(Error::Corrupt { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(found)
    }

    /// Notes that a gap is none any more.
    pub async fn close_gap(&self, gap: GapName) -> Result<()> {
        self.put_once(&ObjectName::GapClosing(gap), &GapClosing { name: gap, closed_at: chrono::Utc::now() }).await
    }

    /// A gap's record.
    pub async fn gap(&self, gap: GapName) -> Result<GapRecord> {
        let record: GapRecord = self.read_json(&ObjectName::Gap(gap)).await?;
        self.is_of(&ObjectName::Gap(gap), record.name == gap)?;
        Ok(record)
    }

    /// The note that a gap was filled.
    pub(super) async fn closing(&self, gap: GapName) -> Result<GapClosing> {
        let closing: GapClosing = self.read_json(&ObjectName::GapClosing(gap)).await?;
        self.is_of(&ObjectName::GapClosing(gap), closing.name == gap)?;
        Ok(closing)
    }

    /// A record that lies under another one's name would hide what is missing there.
    fn is_of(&self, name: &ObjectName, is: bool) -> Result<()> {
        is.then_some(())
            .ok_or_else(|| Error::corrupt(self.layout().key(name), "it is said of another gap: the object was moved or exchanged"))
    }

    /// The notes of these closed gaps. One that cannot be believed says nothing: what is stored decides.
    pub(super) async fn closings(&self, closed: BTreeSet<GapName>) -> Result<Vec<GapClosing>> {
        let read = |gap| async move {
            match self.closing(gap).await {
                Ok(closing) => Ok(Some(closing)),
                Err(Error::Corrupt { key, reason }) => {
                    tracing::warn!(key, reason, "the note that a gap was filled cannot be read");
                    Ok(None)
                }
                Err(error) => Err(error),
            }
        };
        let closings: Vec<Option<GapClosing>> = stream::iter(closed.into_iter().map(read)).buffered(READS).try_collect().await?;
        Ok(closings.into_iter().flatten().collect())
    }

    pub(super) async fn listed_gaps(&self) -> Result<ListedGaps> {
        let request = ListRequest { prefix: self.layout().gaps_prefix(), ..ListRequest::default() };
        let page = list_all(self.store().as_ref(), request).await?;
        let mut gaps = ListedGaps::default();
        for listed in &page.objects {
            match self.layout().parse(listed.key.as_str()) {
                Some(ObjectName::Gap(gap)) => gaps.recorded.push(gap),
                Some(ObjectName::GapClosing(gap)) => drop(gaps.closed.insert(gap)),
                _ => {}
            }
        }
        Ok(gaps)
    }

    async fn put_once(&self, name: &ObjectName, record: &impl Serialize) -> Result<()> {
        let body = Bytes::from(sealed::to_json(record).map_err(Error::encode)?);
        match self.store().put_if_absent(&self.key(name)?, body).await {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    async fn read_json<T: DeserializeOwned>(&self, name: &ObjectName) -> Result<T> {
        let key = self.key(name)?;
        let parse = |body: &[u8]| sealed::from_json(body).map_err(|error| Error::corrupt(key.as_str(), error));
        let read = self.parsed(name, parse).await?;
        read.ok_or_else(|| walkeep_store::Error::new(ErrorKind::NotFound, "get", &key).into())
    }
}

#[cfg(test)]
mod tests {
    use walkeep_core::{Lsn, TimelineId, WalFileName};

    use super::*;
    use crate::repository::tests::{memory, segment};

    fn gap() -> GapName {
        GapName { timeline: TimelineId::FIRST, from: Lsn::new((3 << 20) + 500), to: Lsn::new(6 << 20) }
    }

    async fn store(repository: &ClusterRepository, number: u64) {
        repository.put_wal(WalFileName::Segment(segment(number)), Bytes::from(vec![1; 1 << 20])).await.unwrap();
    }

    #[tokio::test]
    async fn a_gap_is_closed_once_nothing_of_it_is_missing() {
        let (repository, memory) = memory().await;
        repository.put_gap(gap(), GapCause::SlotLost).await.unwrap();
        for number in [2, 7, 3, 5] {
            store(&repository, number).await;
        }
        assert_eq!(repository.open_gaps().await.unwrap(), [gap()]);
        let reports = repository.load_catalog().await.unwrap().catalog.gap_reports();
        let missing: Vec<_> = reports[0].missing.iter().map(|range| (range.from.get(), range.to.get())).collect();
        assert_eq!((reports[0].open, missing), (true, vec![(4 << 20, 5 << 20)]));

        store(&repository, 4).await;
        // Nobody has noted it yet: what is stored decides.
        let reports = repository.load_catalog().await.unwrap().catalog.gap_reports();
        assert_eq!((reports[0].open, reports[0].record.closed_at), (false, None));
        assert_eq!(repository.open_gaps().await.unwrap(), []);
        let catalog = repository.load_catalog().await.unwrap().catalog;
        assert!(!catalog.gap_reports()[0].open && catalog.gaps()[0].closed_at.is_some());
        assert_eq!((repository.gaps().await.unwrap(), repository.open_gaps().await.unwrap()), (vec![gap()], vec![]));

        let name = WalFileName::Segment(segment(4));
        walkeep_store::Store::delete(memory.as_ref(), &repository.layout().wal_key(name).parse().unwrap()).await.unwrap();
        let catalog = repository.load_catalog().await.unwrap().catalog;
        assert!(catalog.gap_reports()[0].open && catalog.gaps()[0].closed_at.is_none(), "missing again");
    }

    #[tokio::test]
    async fn wal_that_must_not_be_replayed_stays_a_gap_though_it_is_stored() {
        let (repository, _) = memory().await;
        repository.put_gap(gap(), GapCause::MinimalWal).await.unwrap();
        for number in 3..6 {
            store(&repository, number).await;
        }
        assert_eq!(repository.open_gaps().await.unwrap(), [gap()]);
        assert!(repository.load_catalog().await.unwrap().catalog.gap_reports()[0].open);
    }

    #[tokio::test]
    async fn a_seam_stays_a_gap_until_it_is_said_to_be_none() {
        let (repository, _) = memory().await;
        let seam = GapName { from: Lsn::new((4 << 20) - 100), to: Lsn::new(4 << 20), ..gap() };
        repository.put_gap(gap(), GapCause::SlotLost).await.unwrap();
        repository.put_gap(seam, GapCause::OtherHistory).await.unwrap();
        for number in 3..6 {
            store(&repository, number).await;
        }
        assert_eq!(repository.open_gaps().await.unwrap(), [seam]);
        assert_eq!(repository.other_histories(|_| true).await.unwrap(), [(seam, false)]);
        assert_eq!(repository.other_histories(|gap| gap.to > seam.to).await.unwrap(), []);
        repository.close_gap(seam).await.unwrap();
        assert_eq!(
            (repository.open_gaps().await.unwrap(), repository.other_histories(|_| true).await.unwrap()),
            (vec![], vec![(seam, true)])
        );
        let reports = repository.load_catalog().await.unwrap().catalog.gap_reports();
        assert!(reports.iter().all(|report| !report.open && !report.record.blocks()), "{reports:?}");
    }
}
