//! Recorded gaps are filled where the server that the agent is connected to now still has the WAL: an old primary that came back, a standby that kept
//! more.
//!
//! It is received beside the stream, without the slot, before the stream begins: the slot and the confirmed position stay where they are. Nothing
//! is stored before the server has shown, by a segment behind the gap that is stored already, that it has the same history.

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use tokio_util::sync::CancellationToken;
use walkeep_core::blake3::Blake3Sum;
use walkeep_core::resume::Position;
use walkeep_core::{SegmentName, SegmentNumber, TimelineHistory, TimelineId, WalFileName, page};

use super::Streamer;
use super::ends::receive;
use super::tail::PART_LIMIT;
use crate::encryption::fingerprint::Likeness;
use crate::metrics::Source;
use crate::postgres::replication::Started;
use crate::repository::{self, wal::same_bytes};

/// Segments that are fetched at most before the stream begins, which waits for them: 1 GiB of the usual size.
const MOST: usize = 64;
/// The first page of a segment holds its long header.
const FIRST_PAGE: usize = 8192;

impl Streamer {
    /// Fills what it can of the open gaps along `history`. What fails is told, and tried again at the next connection: the stream goes on.
    pub(super) async fn refill(&self, history: &TimelineHistory, stop: &CancellationToken) {
        if let Err(error) = self.try_to_refill(history, stop).await {
            tracing::warn!(error = format!("{error:#}"), "cannot fill a gap from this server");
        }
    }

    async fn try_to_refill(&self, history: &TimelineHistory, stop: &CancellationToken) -> Result<()> {
        let missing = self.missing_in_gaps(history).await?;
        let (Some(first), Some(last)) = (missing.iter().map(|(_, number)| *number).min(), missing.iter().map(|(_, number)| *number).max())
        else {
            return Ok(());
        };
        let mut connection = self.connect().await?;
        let identity = connection.identify_system().await?;
        let size = self.repository.identity().segment_size;
        let before = first.previous().unwrap_or(first);
        let oldest = self.oldest_on_server(&mut connection, &identity, before, size.segment_of(identity.flush), history).await?;
        connection.close().await;
        let wanted: Vec<_> = missing.into_iter().filter(|(_, number)| *number >= oldest && number.end(size) <= identity.flush).collect();
        if wanted.is_empty() {
            return Ok(());
        }
        if wanted.len() > MOST {
            tracing::warn!(
                segments = wanted.len(),
                "this server has WAL of a recorded gap, but too much to be fetched now: give it by `walkeep wal push`"
            );
            return Ok(());
        }
        if !self.is_same_history(last, history).await? {
            return Ok(());
        }
        tracing::info!(segments = wanted.len(), "this server has WAL of a recorded gap: filling it");
        for (timeline, number) in wanted {
            if stop.is_cancelled() {
                return Ok(());
            }
            match self.ends_within_segment(Position { timeline, lsn: number.start(size) }, history) {
                Some(ends) => self.store_ends(ends).await?,
                None => self.fetch_whole(number.name(timeline, size)).await?,
            }
        }
        self.metrics.open_gaps(self.repository.open_gaps().await?.len());
        Ok(())
    }

    /// The segments of which something is missing in open gaps along `history`, each with the timeline under whose name it is wanted.
    async fn missing_in_gaps(&self, history: &TimelineHistory) -> Result<Vec<(TimelineId, SegmentNumber)>> {
        let size = self.repository.identity().segment_size;
        let mut missing = Vec::new();
        for gap in self.repository.open_gaps().await? {
            // What an old timeline wrote after it was left is not of this history: this server does not have it.
            if history.leaves(gap.timeline).is_none_or(|end| end.is_some_and(|end| gap.to > end)) {
                continue;
            }
            for range in self.repository.wal_within(gap.timeline, gap.from, gap.to).await?.missing_within(gap) {
                let (first, end) = (size.segment_of(range.from), size.segment_of(range.to));
                let end = if size.offset_of(range.to) > 0 { end.next() } else { end };
                missing.extend((first.get()..end.get()).map(|number| (gap.timeline, SegmentNumber::new(number))));
            }
        }
        Ok(missing)
    }

    /// Whether a stored segment behind `last` is the server's too; false if there is none to compare.
    async fn is_same_history(&self, last: SegmentNumber, history: &TimelineHistory) -> Result<bool> {
        let size = self.repository.identity().segment_size;
        let catalog = self.repository.wal_catalog(history, last.next()).await?;
        let stored = history.lineage().flat_map(|timeline| catalog.stored_ranges(timeline).iter().map(move |range| (timeline, range)));
        let whole = stored.filter_map(|(timeline, range)| {
            let number = size.segment_of(range.from);
            let owned = history.timeline_at(number.start(size)) == timeline;
            (owned && number.end(size) <= range.to).then(|| number.name(timeline, size))
        });
        let Some(segment) = whole.min_by_key(|segment| segment.number(size)) else { return Ok(false) };
        match self.repository.get_wal(WalFileName::Segment(segment)).await {
            Ok(Some(stored)) => self.compare_with_server(segment, &stored.content).await.map(|()| true),
            Ok(None) => Ok(false),
            Err(repository::Error::CannotDecrypt { .. }) => self.is_like_the_servers(segment).await,
            Err(error) => Err(error.into()),
        }
    }

    /// The same by its fingerprint, where what is stored cannot be read; false if that says nothing.
    async fn is_like_the_servers(&self, segment: SegmentName) -> Result<bool> {
        let mut hash = blake3::Hasher::new();
        let take = |_, bytes: &[u8]| {
            hash.update(bytes);
            Ok(())
        };
        self.receive_segment(segment, take).await?;
        let hash = Blake3Sum::new(*hash.finalize().as_bytes());
        match self.repository.likeness_of_segment(segment, hash).await? {
            Some(Likeness::Same) => Ok(true),
            Some(Likeness::Other) => {
                let (stored, offered) = ("another content, by its fingerprint".into(), "this server's".into());
                Err(repository::Error::Conflict { name: segment.to_string(), stored, offered }.into())
            }
            Some(Likeness::Unknown) | None => Ok(false),
        }
    }

    async fn compare_with_server(&self, segment: SegmentName, stored: &Bytes) -> Result<()> {
        self.receive_segment(segment, |from, bytes| self.same(segment, from, &stored[from..from + bytes.len()], bytes)).await
    }

    /// Receives a whole segment into the spool, compares it with what is stored of it in parts, and stores it.
    async fn fetch_whole(&self, segment: SegmentName) -> Result<()> {
        let tail = self.repository.get_tail(segment).await;
        let tail = self.repository.if_readable(tail, "a segment in a gap with what is stored of it")?.unwrap_or_default();
        let mut writer = self.spool.create(segment)?;
        let identity = self.repository.identity();
        self.receive_segment(segment, |from, bytes| {
            self.same(segment, from, tail.get(from..).unwrap_or_default(), bytes)?;
            if from == 0 {
                page::check_partial_segment(segment, identity.segment_size, identity.system_identifier, None, &bytes[..FIRST_PAGE])
                    .with_context(|| format!("refuse {segment} as streamed"))?;
            }
            tokio::task::block_in_place(|| writer.append(bytes))
        })
        .await?;
        tokio::task::block_in_place(|| writer.seal())?;
        let (hash, path) = (tokio::task::block_in_place(|| self.spool.hash(segment))?, self.spool.path(segment));
        let packed = self.repository.pack_segment(segment, hash, move || std::fs::File::open(path)).await?;
        let stored = self.repository.put_segment(&packed).await.inspect_err(|error| self.metrics.refused(error))?;
        self.metrics.stored(Source::Stream, stored);
        tracing::info!(%segment, "stored; it was in a gap");
        self.spool.remove(segment)
    }

    fn same(&self, segment: SegmentName, from: usize, stored: &[u8], offered: &[u8]) -> Result<()> {
        Ok(same_bytes(segment, from, stored, offered).inspect_err(|error| self.metrics.refused(error))?)
    }

    /// Gives a finished segment's bytes, as the server sends them, piece by piece with their offsets to `take`.
    async fn receive_segment(&self, segment: SegmentName, mut take: impl FnMut(usize, &[u8]) -> Result<()>) -> Result<()> {
        let size = self.repository.identity().segment_size;
        let start = segment.number(size).context("a segment of this size")?.start(size);
        let mut connection = self.connect().await?;
        let started = connection.start_physical(None, start, segment.timeline()).await?;
        ensure!(started == Started::Streaming, "timeline {} has no WAL from {start} on", segment.timeline());
        let (mut from, mut beyond) = (0, Bytes::new());
        while from < size.bytes() {
            let length = PART_LIMIT.min(size.bytes() - from);
            let bytes = receive(&mut connection, start.saturating_add(from), length as usize, &mut beyond).await.context("receive WAL")?;
            take(from as usize, &bytes)?;
            from += length;
        }
        connection.close().await;
        Ok(())
    }
}
