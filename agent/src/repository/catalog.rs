//! A catalog out of listings: what the repository holds, as the value that plans are made from.
//!
//! Which questions a catalog answers is [`walkeep_core::catalog`]'s; here is only how it is read.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt, stream};
use walkeep_core::catalog::{Catalog, CatalogBuilder};
use walkeep_core::index::Run;
use walkeep_core::layout::{ObjectName, PartName};
use walkeep_core::parts::reach;
use walkeep_core::{Lsn, SegmentName, SegmentNumber, TimelineHistory, TimelineId, WalFileName};
use walkeep_store::{ListRequest, list_all};

use super::backups::Damaged;
use super::{ClusterRepository, Error, Result};

/// Small objects read at the same time.
pub(super) const READS: usize = 8;

/// How often a segment is looked at again in whose parts there is a hole, before it is told.
const LOOKS: u32 = 5;
const BETWEEN_LOOKS: Duration = Duration::from_secs(1);

/// A catalog, and what could not be taken into it.
#[derive(Debug, Clone)]
pub struct LoadedCatalog {
    /// What is there and can be believed.
    pub catalog: Catalog,
    /// Records and histories that cannot be believed. A plan is made without them.
    pub damaged: Vec<Damaged>,
    /// Objects that were listed under the archive's prefix and are none of Walkeep's.
    pub foreign: u64,
}

/// What a listing of the archive shows beside segments.
struct ListedWal {
    histories: Vec<TimelineId>,
    foreign: u64,
}

/// Every segment there can be.
const ALL: Run = Run { first: SegmentNumber::new(0), end: SegmentNumber::new(u64::MAX) };

/// What lies before, between and behind runs.
fn between(runs: &[Run]) -> Vec<Run> {
    let mut rest = vec![ALL];
    for run in runs {
        if let Some(last) = rest.pop() {
            let (before, behind) = (Run { end: run.first, ..last }, Run { first: run.end, ..last });
            rest.extend([before, behind].into_iter().filter(|rest| rest.first < rest.end));
        }
    }
    rest
}

impl ClusterRepository {
    /// Reads the whole catalog: three listings and every small object.
    pub async fn load_catalog(&self) -> Result<LoadedCatalog> {
        self.load(async |builder: &mut CatalogBuilder| {
            let request = ListRequest { prefix: self.layout().wal_prefix(), ..ListRequest::default() };
            let page = list_all(self.store().as_ref(), request).await?;
            let (mut histories, mut foreign) = (Vec::new(), 0);
            for listed in &page.objects {
                match self.layout().parse(listed.key.as_str()) {
                    Some(ObjectName::Wal(WalFileName::History(timeline))) => histories.push(timeline),
                    Some(name) => builder.object(&name, listed.size),
                    None => foreign += 1,
                }
            }
            Ok(ListedWal { histories, foreign })
        })
        .await
    }

    /// The same without listing the segments that are `told` of, by an index for example: they are believed to be there. All others are
    /// listed. For archives so large that a listing of all takes long; what is decided with it has to be looked at again.
    pub async fn sketch_catalog(&self, told: &BTreeMap<TimelineId, Vec<Run>>) -> Result<LoadedCatalog> {
        self.load(async |builder: &mut CatalogBuilder| {
            let (timelines, histories, foreign) = self.list_timelines().await?;
            self.list_beside(&timelines, told, builder).await?;
            Ok(ListedWal { histories, foreign })
        })
        .await
    }

    /// `catalog` with the archive listed anew, but for what is `told`.
    pub async fn list_again(&self, catalog: &Catalog, told: &BTreeMap<TimelineId, Vec<Run>>) -> Result<Catalog> {
        let mut builder = catalog.without_wal();
        let (timelines, _, _) = self.list_timelines().await?;
        self.list_beside(&timelines, told, &mut builder).await?;
        self.look_again(&mut builder).await?;
        Ok(builder.build())
    }

    /// Lists the segments of these timelines that nobody told of, and takes the others as told.
    async fn list_beside(
        &self,
        timelines: &[TimelineId],
        told: &BTreeMap<TimelineId, Vec<Run>>,
        builder: &mut CatalogBuilder,
    ) -> Result<()> {
        for timeline in timelines {
            let told = told.get(timeline).map_or(&[][..], Vec::as_slice);
            told.iter().for_each(|run| builder.believed(*timeline, *run));
            for rest in between(told) {
                self.list_segments(*timeline, rest, builder).await?;
            }
        }
        Ok(())
    }

    /// The timelines of which there are segments, those of which there is a history, and how many objects are none of ours.
    pub async fn list_timelines(&self) -> Result<(Vec<TimelineId>, Vec<TimelineId>, u64)> {
        let prefix = self.layout().wal_prefix();
        let page =
            list_all(self.store().as_ref(), ListRequest { prefix: prefix.clone(), by_folder: true, ..ListRequest::default() }).await?;
        let (mut histories, mut foreign) = (Vec::new(), 0);
        for listed in &page.objects {
            match self.layout().parse(listed.key.as_str()) {
                Some(ObjectName::Wal(WalFileName::History(timeline))) => histories.push(timeline),
                _ => foreign += 1,
            }
        }
        let number = |folder: &String| TimelineId::parse_hex(folder.strip_prefix(&prefix)?.strip_suffix('/')?);
        Ok((page.folders.iter().filter_map(number).collect(), histories, foreign))
    }

    /// Lists the segments of a run.
    async fn list_segments(&self, timeline: TimelineId, run: Run, builder: &mut CatalogBuilder) -> Result<()> {
        let size = self.identity().segment_size;
        let start_after = run.first.previous().map(|before| self.layout().wal_key(WalFileName::Segment(before.name(timeline, size))));
        let mut request = ListRequest { prefix: self.layout().timeline_prefix(timeline), start_after, ..ListRequest::default() };
        loop {
            let page = self.store().list(&request).await?;
            let mut past = false;
            for listed in &page.objects {
                let Some(name) = self.layout().parse(listed.key.as_str()) else { continue };
                let segment = match &name {
                    ObjectName::Wal(WalFileName::Segment(segment)) => *segment,
                    ObjectName::Part(part) => part.segment,
                    _ => continue,
                };
                if segment.number(size).is_some_and(|number| run.contains(number)) {
                    builder.object(&name, listed.size);
                }
                // Not by the segment alone: some servers sort a folder's folders before its files.
                past |= run.end.name(timeline, size).log() < segment.log() && run.end != ALL.end;
            }
            match page.next.filter(|_| !past) {
                Some(next) => request.start_after = Some(next),
                None => return Ok(()),
            }
        }
    }

    async fn load(&self, list_wal: impl AsyncFnOnce(&mut CatalogBuilder) -> Result<ListedWal>) -> Result<LoadedCatalog> {
        // An empty listing of a volume that is not mounted must not become "nothing is stored".
        self.repository().prove_reached().await?;
        let mut builder = self.catalog_builder();
        let (expired, damaged) = self.expired_and_damaged().await?;
        builder.expired(expired);
        // Backups first: one that is committed meanwhile has its WAL in the listing that comes after.
        let mut backups = self.backups().await?;
        // Read twice, told once.
        let told = |damaged: &Damaged| backups.damaged.iter().any(|told| told.key == damaged.key);
        let untold: Vec<Damaged> = damaged.into_iter().filter(|damaged| !told(damaged)).collect();
        backups.damaged.extend(untold);
        backups.records.into_iter().for_each(|record| builder.backup(record));
        let ListedWal { histories, foreign } = list_wal(&mut builder).await?;
        self.look_again(&mut builder).await?;
        let read = |timeline| async move { self.read_or_damaged(self.get_history(timeline).await) };
        let histories: Vec<_> = stream::iter(histories.into_iter().map(read)).buffered(READS).try_collect().await?;
        let read = |gap| async move { self.read_or_damaged(self.gap(gap).await.map(Some)) };
        let listed = self.listed_gaps().await?;
        let gaps: Vec<_> = stream::iter(listed.recorded.into_iter().map(read)).buffered(READS).try_collect().await?;
        self.closings(listed.closed).await?.into_iter().for_each(|closing| builder.gap_closing(closing));
        for history in histories {
            match history {
                Ok(history) => history.into_iter().for_each(|history| builder.history(history)),
                Err(damaged) => backups.damaged.push(damaged),
            }
        }
        for gap in gaps {
            match gap {
                Ok(gap) => gap.into_iter().for_each(|gap| builder.gap(gap)),
                Err(damaged) => backups.damaged.push(damaged),
            }
        }
        Ok(LoadedCatalog { catalog: builder.build(), damaged: backups.damaged, foreign })
    }

    /// Lists segments anew in whose parts there is a hole: a writer that is at work fills it, as it stores parts side by side.
    async fn look_again(&self, builder: &mut CatalogBuilder) -> Result<()> {
        let mut holes = builder.holes_in_parts();
        for _ in 0..LOOKS {
            let mut rest = Vec::new();
            if !holes.is_empty() {
                tokio::time::sleep(BETWEEN_LOOKS).await;
            }
            for (segment, seen) in holes {
                let mut parts = Vec::new();
                // Everything of the segment: its whole object's key begins so, and those of its parts.
                let prefix = format!("{}{segment}.", self.layout().log_prefix(segment.timeline(), segment.log()));
                for listed in list_all(self.store().as_ref(), ListRequest { prefix, ..ListRequest::default() }).await?.objects {
                    match self.layout().parse(listed.key.as_str()) {
                        Some(ObjectName::Part(part)) => parts.push((part, listed.size)),
                        Some(name) => builder.object(&name, listed.size),
                        None => {}
                    }
                }
                let names: Vec<PartName> = parts.iter().map(|(part, _)| *part).collect();
                let reached = reach(&names);
                // What was there at the first look is joined: what is apart now came later.
                let is_filled = reached >= seen.to;
                parts.retain(|(part, _)| !is_filled || part.from < reached);
                builder.parts_again(segment, &parts);
                rest.extend((!is_filled).then_some((segment, seen)));
            }
            let open: Vec<SegmentName> = builder.holes_in_parts().into_iter().map(|(segment, _)| segment).collect();
            rest.retain(|(segment, _)| open.contains(segment));
            holes = rest;
        }
        Ok(())
    }

    /// A catalog of the WAL along `path` from segment `from` on, without backups: for asking whether a stretch is complete. One short listing
    /// for each timeline.
    pub async fn wal_catalog(&self, path: &TimelineHistory, from: SegmentNumber) -> Result<Catalog> {
        let size = self.identity().segment_size;
        let mut builder = self.catalog_builder();
        builder.expired(self.expired().await?);
        builder.history(path.clone());
        for timeline in path.ancestors().iter().map(|ancestor| ancestor.timeline).chain([path.timeline()]) {
            // Just before the wanted segment's key: keys sort in LSN order, and the segment before it ends in `.zst`.
            let start_after = from.previous().map(|before| self.layout().wal_key(WalFileName::Segment(before.name(timeline, size))));
            let request = ListRequest { prefix: self.layout().timeline_prefix(timeline), start_after, ..ListRequest::default() };
            for listed in list_all(self.store().as_ref(), request).await?.objects {
                if let Some(name) = self.layout().parse(listed.key.as_str()) {
                    builder.object(&name, listed.size);
                }
            }
        }
        Ok(builder.build())
    }

    /// A catalog of one timeline's WAL from the segment of `from` to that of `to`. One short listing for each 4 GiB between them.
    pub async fn wal_within(&self, timeline: TimelineId, from: Lsn, to: Lsn) -> Result<Catalog> {
        let size = self.identity().segment_size;
        let (first, last) = (size.segment_of(from), size.segment_of(to));
        let mut builder = self.catalog_builder();
        for log in first.name(timeline, size).log()..=last.name(timeline, size).log() {
            let start_after = first.previous().map(|before| before.name(timeline, size)).filter(|before| before.log() == log);
            let start_after = start_after.map(|before| self.layout().wal_key(WalFileName::Segment(before)));
            let request = ListRequest { prefix: self.layout().log_prefix(timeline, log), start_after, ..ListRequest::default() };
            for listed in list_all(self.store().as_ref(), request).await?.objects {
                if let Some(name) = self.layout().parse(listed.key.as_str()) {
                    builder.object(&name, listed.size);
                }
            }
        }
        Ok(builder.build())
    }

    /// The history to replay along to `timeline`: the stored one; timeline 1 has none. `None` if it is not stored.
    pub async fn replay_path(&self, timeline: TimelineId) -> Result<Option<TimelineHistory>> {
        match timeline {
            TimelineId::FIRST => Ok(Some(TimelineHistory::root(timeline))),
            timeline => self.get_history(timeline).await,
        }
    }

    /// A catalog with nothing in it.
    pub(super) fn catalog_builder(&self) -> CatalogBuilder {
        Catalog::builder(self.cluster().clone(), self.identity().system_identifier, self.identity().segment_size)
    }

    pub(super) fn read_or_damaged<T>(&self, read: Result<T>) -> Result<std::result::Result<T, Damaged>> {
        match read {
            Ok(value) => Ok(Ok(value)),
            Err(Error::Corrupt { key, reason }) => Ok(Err(Damaged { key, reason })),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::tests::{memory, record, segment};
    use bytes::Bytes;
    use walkeep_core::catalog::GapCause;
    use walkeep_core::layout::GapName;

    /// Parts are stored side by side: a hole that is filled a moment later is none, one that stays is.
    #[tokio::test(start_paused = true)]
    async fn a_hole_in_parts_is_looked_at_again() {
        let (repository, _) = memory().await;
        let part = |from: u32, to: u32| PartName { segment: segment(1), from, to, epoch: 1 };
        let put = |from: u32, to: u32| repository.put_part(part(from, to), Bytes::from(vec![1; (to - from) as usize]));
        put(0, 10).await.unwrap();
        put(20, 30).await.unwrap();
        let hole = async || repository.load_catalog().await.unwrap().catalog.hole_in_parts(TimelineId::FIRST);
        let (from, to) = (Lsn::new((1 << 20) + 10), Lsn::new((1 << 20) + 20));
        assert_eq!(hole().await, Some(walkeep_core::catalog::WalRange { from, to }));
        let later = async {
            tokio::time::sleep(Duration::from_millis(2500)).await;
            put(40, 50).await.unwrap();
            put(10, 20).await.unwrap();
        };
        let (found, ()) = tokio::join!(hole(), later);
        assert_eq!(found, None, "what was there is joined, and what has come since is the writer's at work");
        assert_eq!(hole().await.map(|hole| hole.to), Some(Lsn::new((1 << 20) + 40)));
        repository.put_wal(WalFileName::Segment(segment(1)), Bytes::from(vec![1; 1 << 20])).await.unwrap();
        assert_eq!(hole().await, None, "the whole segment lies beside them");
    }

    #[tokio::test]
    async fn everything_that_is_stored_is_in_the_catalog() {
        let (repository, store) = memory().await;
        repository.commit_backup(&record(1)).await.unwrap();
        for number in [1, 2, 4] {
            repository.put_wal(WalFileName::Segment(segment(number)), Bytes::from(vec![1; 1 << 20])).await.unwrap();
        }
        let two = TimelineId::new(2).unwrap();
        repository.put_wal(WalFileName::History(two), Bytes::from_static(b"1\t0/280000\tno reason\n")).await.unwrap();
        let gap = GapName { timeline: TimelineId::FIRST, from: Lsn::new(3 << 20), to: Lsn::new(4 << 20) };
        repository.put_gap(gap, GapCause::SlotLost).await.unwrap();
        store.overwrite(&format!("{}foreign", repository.layout().wal_prefix()).parse().unwrap(), Bytes::new());

        let loaded = repository.load_catalog().await.unwrap();
        assert_eq!((loaded.foreign, loaded.damaged.len(), loaded.catalog.ignored()), (1, 0, 0));
        let catalog = loaded.catalog;
        assert_eq!(catalog.stored_ranges(TimelineId::FIRST).len(), 2);
        assert_eq!((catalog.backups().len(), catalog.gaps().len()), (1, 1));
        assert_eq!(catalog.newest_timeline(), Some(two));

        let path = TimelineHistory::root(TimelineId::FIRST);
        let catalog = repository.wal_catalog(&path, SegmentNumber::new(2)).await.unwrap();
        assert!(catalog.coverage(&path, Lsn::new(2 << 20), Lsn::new(3 << 20)).is_ok());
        assert_eq!(catalog.coverage(&path, Lsn::new(2 << 20), Lsn::new((3 << 20) + 1)).unwrap_err().at, Lsn::new(3 << 20));

        store.overwrite(&repository.layout().wal_key(WalFileName::History(two)).parse().unwrap(), Bytes::from_static(b"x"));
        let loaded = repository.load_catalog().await.unwrap();
        assert_eq!(loaded.damaged.len(), 1);
        assert_eq!(loaded.catalog.newest_timeline(), Some(TimelineId::FIRST));
    }

    #[tokio::test]
    async fn a_store_that_is_no_repository_has_no_catalog() {
        let (repository, store) = memory().await;
        walkeep_store::Store::delete(store.as_ref(), &walkeep_core::layout::MARKER_KEY.parse().unwrap()).await.unwrap();
        assert!(matches!(repository.load_catalog().await, Err(Error::NoRepository { .. })));
    }
}
