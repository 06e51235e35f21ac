//! Ends of old timelines that the server has under another name only.
//!
//! A server reads the end of an old timeline out of the next timeline's first segment. With two switches in one segment, that one may be gone:
//! a server that archives renames it to `.partial` when its timeline ends. But each timeline's first segment begins with a copy of the one before, so
//! the segment of the timeline that went on has the same bytes up to each switch.

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use walkeep_core::layout::PartName;
use walkeep_core::resume::Position;
use walkeep_core::{Lsn, SegmentNumber, TimelineHistory, TimelineId, page};

use super::Streamer;
use super::tail::PART_LIMIT;
use crate::metrics::Source;
use crate::postgres::replication::{Event, ReplicationConnection, Started};
use crate::repository::wal::same_bytes;

/// Timelines that end within one segment, and the one that goes on behind it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Ends {
    segment: SegmentNumber,
    /// Oldest first, each with how many bytes of the segment are its own or its ancestors'.
    timelines: Vec<(TimelineId, u64)>,
    heir: TimelineId,
}

/// An old timeline's unfinished segment as stored, to be compared with.
struct Stored {
    timeline: TimelineId,
    end: u64,
    tail: Bytes,
    epoch: u32,
}

impl Ends {
    /// The timeline that goes on behind the segment.
    pub(super) fn heir(&self) -> TimelineId {
        self.heir
    }
}

impl Streamer {
    /// The timelines from `at` on that end within its segment, if there are.
    pub(super) fn ends_within_segment(&self, at: Position, history: &TimelineHistory) -> Option<Ends> {
        let size = self.repository.identity().segment_size;
        let segment = size.segment_of(at.lsn);
        let heir = history.timeline_at(Lsn::new(segment.end(size).get() - 1));
        let ancestors = history.ancestors().iter().filter(|ancestor| ancestor.timeline >= at.timeline);
        let timelines: Vec<_> = ancestors
            .filter(|ancestor| size.segment_of(ancestor.switch) == segment && size.offset_of(ancestor.switch) > 0)
            .map(|ancestor| (ancestor.timeline, size.offset_of(ancestor.switch)))
            .collect();
        timelines.first().is_some_and(|(timeline, _)| *timeline == at.timeline).then_some(Ends { segment, timelines, heir })
    }

    /// Stores them as parts, out of the heir's segment.
    pub(super) async fn store_ends(&self, ends: Ends) -> Result<()> {
        let Ends { segment, timelines, heir } = ends;
        let size = self.repository.identity().segment_size;
        let start = segment.start(size);
        let mut stored = Vec::new();
        for (timeline, end) in timelines {
            tracing::info!(timeline = timeline.get(), end = %start.saturating_add(end), heir = heir.get(), "storing the timeline's end out of a later one");
            let name = segment.name(timeline, size);
            let tail = self.repository.get_tail(name).await;
            let tail = self.repository.if_readable(tail, "the end of a timeline with what is stored of it")?.unwrap_or_default();
            let epoch = self.epoch_of_ended(timeline).await?;
            stored.push(Stored { timeline, end, tail, epoch });
        }
        let wanted = stored.iter().map(|stored| stored.end).max().unwrap_or_default();
        let mut connection = self.connect().await?;
        let started = connection.start_physical(Some(&self.cluster.slot), start, heir).await?;
        ensure!(started == Started::Streaming, "timeline {heir} has no WAL from {start} on");
        let (mut from, mut beyond) = (0, Bytes::new());
        while from < wanted {
            let to = wanted.min(from + PART_LIMIT);
            let bytes =
                receive(&mut connection, start.saturating_add(from), (to - from) as usize, &mut beyond).await.context("receive WAL")?;
            for stored in &stored {
                self.store_end(segment, stored, from, &bytes).await?;
            }
            from = to;
        }
        connection.close().await;
        Ok(())
    }

    /// What of `bytes`, which begin at `from`, is the timeline's, after a look at what is stored of it.
    async fn store_end(&self, segment: SegmentNumber, stored: &Stored, from: u64, bytes: &[u8]) -> Result<()> {
        let identity = self.repository.identity();
        let name = segment.name(stored.timeline, identity.segment_size);
        if from == 0 {
            page::check_partial_segment(name, identity.segment_size, identity.system_identifier, None, bytes)
                .with_context(|| format!("refuse the end of {name} as streamed"))?;
        }
        let to = stored.end.min(from + bytes.len() as u64);
        if to <= from {
            return Ok(());
        }
        let bytes = &bytes[..(to - from) as usize];
        let before = stored.tail.get(from as usize..).unwrap_or_default();
        same_bytes(name, from as usize, before, bytes).inspect_err(|error| self.metrics.refused(error))?;
        let shared = before.len().min(bytes.len());
        if shared < bytes.len() {
            let part = PartName { segment: name, from: from as u32 + shared as u32, to: to as u32, epoch: stored.epoch };
            let put = self.repository.put_part(part, Bytes::copy_from_slice(&bytes[shared..])).await?;
            self.metrics.stored(Source::Part, put);
        }
        Ok(())
    }
}

/// The `length` bytes from `at` on; what came beyond them stays in `beyond` for the next call. The slot is not moved.
pub(super) async fn receive(connection: &mut ReplicationConnection, at: Lsn, length: usize, beyond: &mut Bytes) -> Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(length);
    loop {
        let now = beyond.split_to(beyond.len().min(length - bytes.len()));
        bytes.extend_from_slice(&now);
        if bytes.len() == length {
            return Ok(bytes);
        }
        let expected = at.saturating_add(bytes.len() as u64);
        match connection.next_event().await? {
            Event::Wal { start, data, .. } => {
                ensure!(start == expected, "the server sent WAL from {start} where {expected} was expected");
                *beyond = data;
            }
            Event::Keepalive { reply_requested: true, .. } => connection.send_status(expected, Lsn::ZERO, Lsn::ZERO, false).await?,
            Event::Keepalive { .. } => {}
            Event::EndOfTimeline { .. } | Event::Ended => anyhow::bail!("the stream ended at {expected}"),
        }
    }
}
