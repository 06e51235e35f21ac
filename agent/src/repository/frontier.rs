//! How far WAL is stored, asked with a few short listings: what a stream needs to know when it begins.

use std::collections::BTreeSet;
use std::time::SystemTime;

use walkeep_core::layout::ObjectName;
use walkeep_core::{Lsn, SegmentName, SegmentNumber, TimelineId, WalFileName};
use walkeep_store::{ListRequest, list_all};

use super::{ClusterRepository, Result};

impl ClusterRepository {
    /// The newest whole segment stored on `timeline`. Two or three requests, however long the archive.
    pub async fn newest_segment(&self, timeline: TimelineId) -> Result<Option<SegmentNumber>> {
        let request = ListRequest { prefix: self.layout().timeline_prefix(timeline), by_folder: true, ..ListRequest::default() };
        let logs = list_all(self.store().as_ref(), request).await?.folders;
        for log in logs.into_iter().rev() {
            let page = list_all(self.store().as_ref(), ListRequest { prefix: log, by_folder: true, ..ListRequest::default() }).await?;
            let newest = page.objects.iter().rev().find_map(|listed| self.segment_number(listed.key.as_str(), timeline));
            if newest.is_some() {
                return Ok(newest);
            }
        }
        Ok(None)
    }

    /// When WAL of `timeline` was stored last, by the store's clock: of the newest 4 GiB, where what is stored last lies. Two requests, or three.
    pub async fn last_stored(&self, timeline: TimelineId) -> Result<Option<SystemTime>> {
        let request = ListRequest { prefix: self.layout().timeline_prefix(timeline), by_folder: true, ..ListRequest::default() };
        let logs = list_all(self.store().as_ref(), request).await?.folders;
        for log in logs.into_iter().rev() {
            let page = list_all(self.store().as_ref(), ListRequest { prefix: log, ..ListRequest::default() }).await?;
            let newest = page.objects.iter().map(|listed| listed.modified).max();
            if newest.is_some() {
                return Ok(newest);
            }
        }
        Ok(None)
    }

    /// The oldest segment of which parts are stored on `timeline`, one on which no whole segment is: where an agent began to store it.
    pub async fn first_parts(&self, timeline: TimelineId) -> Result<Option<SegmentNumber>> {
        let request = ListRequest { prefix: self.layout().timeline_prefix(timeline), ..ListRequest::default() };
        let page = list_all(self.store().as_ref(), request).await?;
        let mut parts = page.objects.iter().filter_map(|listed| match self.layout().parse(listed.key.as_str())? {
            ObjectName::Part(part) => part.segment.number(self.identity().segment_size),
            _ => None,
        });
        Ok(parts.next())
    }

    /// The stretches of whole segments stored on `timeline` at or after `from`, merged: first and one-past-last positions.
    pub async fn stored_stretches(&self, timeline: TimelineId, from: SegmentNumber) -> Result<Vec<(Lsn, Lsn)>> {
        let size = self.identity().segment_size;
        let prefix = self.layout().timeline_prefix(timeline);
        // Just before the wanted segment's key: keys sort in LSN order, and the segment before it ends in `.zst`.
        let start_after = from.previous().map(|before| self.layout().wal_key(WalFileName::Segment(before.name(timeline, size))));
        let page = list_all(self.store().as_ref(), ListRequest { prefix, start_after, ..ListRequest::default() }).await?;
        let mut stretches: Vec<(Lsn, Lsn)> = Vec::new();
        for number in page.objects.iter().filter_map(|listed| self.segment_number(listed.key.as_str(), timeline)) {
            match stretches.last_mut() {
                Some((_, end)) if *end == number.start(size) => *end = number.end(size),
                _ => stretches.push((number.start(size), number.end(size))),
            }
        }
        Ok(stretches)
    }

    /// Segments that are stored whole and in parts as well, in the 4 GiB around `at`. One or two short listings.
    pub async fn whole_with_parts(&self, timeline: TimelineId, at: Lsn) -> Result<Vec<SegmentName>> {
        let mut left = Vec::new();
        let segment = self.identity().segment_size.segment_of(at);
        let logs: BTreeSet<u32> = [Some(segment), segment.previous()]
            .into_iter()
            .flatten()
            .map(|number| number.name(timeline, self.identity().segment_size).log())
            .collect();
        for log in logs {
            let request = ListRequest { prefix: self.layout().log_prefix(timeline, log), by_folder: true, ..ListRequest::default() };
            let page = list_all(self.store().as_ref(), request).await?;
            let whole: BTreeSet<SegmentNumber> =
                page.objects.iter().filter_map(|listed| self.segment_number(listed.key.as_str(), timeline)).collect();
            let size = self.identity().segment_size;
            let names = whole.into_iter().map(|number| number.name(timeline, size));
            left.extend(names.filter(|name| page.folders.contains(&self.layout().parts_prefix(*name))));
        }
        Ok(left)
    }

    fn segment_number(&self, key: &str, timeline: TimelineId) -> Option<SegmentNumber> {
        match self.layout().parse(key)? {
            ObjectName::Wal(WalFileName::Segment(name)) if name.timeline() == timeline => name.number(self.identity().segment_size),
            _ => None,
        }
    }
}
