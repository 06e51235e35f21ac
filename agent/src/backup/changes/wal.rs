//! Decoding WAL of which no map tells: out of the server's own `pg_wal` where the files are there and prove themselves, else out of the
//! repository, finished segments or parts.
//!
//! A local file may be recycled while it is read, or be another branch's: page headers, checksums and the links between pages and records
//! tell, and then the repository is asked. Which file to take for a segment is PostgreSQL's rule: that of the newest timeline that has one,
//! each good up to where the history leaves its timeline.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use rustix::fs::OFlags;
use tokio_util::sync::CancellationToken;
use walkeep_core::catalog::{WalRange, legs};
use walkeep_core::decoder::{Decoder, record_begin};
use walkeep_core::index::BlockChanges;
use walkeep_core::page::{LONG_HEADER_SIZE, check_partial_segment};
use walkeep_core::record::{Content, Record, ResourceManager};
use walkeep_core::{Lsn, SegmentName, SegmentNumber, SegmentSize, SystemIdentifier, TimelineHistory, WalFileName};

use super::{PATIENCE, too_much};
use crate::repository::{ClusterRepository, Error};
use crate::retry::{Backoff, retry};

/// Bytes of a local file that are read at once.
const CHUNK: usize = 1 << 20;

/// What a stretch of WAL says.
pub(super) enum Found {
    /// All that it changes.
    Changes(BlockChanges),
    /// Nothing that can be relied on, for this reason.
    Nothing(String),
}

/// Reads WAL along a history.
pub(super) struct WalReader<'a> {
    repository: &'a Arc<ClusterRepository>,
    path: &'a TimelineHistory,
    pg_wal: Option<&'a Path>,
    memory: u64,
    cancel: &'a CancellationToken,
    /// Segments whose local file did not prove itself.
    not_local: BTreeSet<SegmentNumber>,
}

/// A file for a segment, and up to where it is of the history.
#[derive(Clone, Copy)]
struct Candidate {
    segment: SegmentName,
    good_to: Lsn,
}

impl<'a> WalReader<'a> {
    pub(super) fn new(
        repository: &'a Arc<ClusterRepository>,
        path: &'a TimelineHistory,
        pg_wal: Option<&'a Path>,
        memory: u64,
        cancel: &'a CancellationToken,
    ) -> Self {
        Self { repository, path, pg_wal, memory, cancel, not_local: BTreeSet::new() }
    }

    /// What the records change that begin in `range`.
    pub(super) async fn read(&mut self, range: WalRange) -> Result<Found> {
        let size = self.repository.identity().segment_size;
        let mut work = Work::new(range.from, size);
        while record_begin(work.decoder.position(), size) < record_begin(range.to, size) {
            if self.cancel.is_cancelled() {
                bail!("cancelled while the WAL from {} to {} was decoded", range.from, range.to);
            }
            let (at, number) = (work.next, size.segment_of(work.next));
            if at >= range.to {
                return Ok(Found::Nothing(format!("the record at {} does not end before {}", work.decoder.position(), range.to)));
            }
            let fed;
            (work, fed) = self.segment(work, number, range.to).await?;
            if let Some(at) = work.minimal {
                return Ok(Found::Nothing(format!("wal_level is minimal at {at}: not every change is in the WAL")));
            }
            match fed {
                Ok(()) => {}
                Err(reason) => return Ok(Found::Nothing(format!("the WAL at {at} is needed to know what changed: {reason}"))),
            }
            if work.changes.memory() > self.memory {
                return Ok(Found::Nothing(too_much(self.memory, work.next)));
            }
        }
        Ok(Found::Changes(work.changes))
    }

    /// Decodes what there is of one segment, up to `to` at most. If the local file fails, it is forgotten what was not whole before: the next
    /// call may be for an earlier segment.
    async fn segment(&mut self, work: Work, number: SegmentNumber, to: Lsn) -> Result<(Work, Result<(), String>)> {
        let candidates = self.candidates(number, work.next, to);
        let mut work = work;
        if let Some(pg_wal) = self.pg_wal.filter(|_| !self.not_local.contains(&number)) {
            let files = candidates.iter().map(|candidate| (*candidate, pg_wal.join(candidate.segment.to_string()))).collect();
            let (system, path, cancel) = (self.repository.identity().system_identifier, self.path.clone(), self.cancel.clone());
            let size = self.repository.identity().segment_size;
            let (fed_work, fed) =
                tokio::task::spawn_blocking(move || feed_local(work, files, &Proof { system, path, size }, &cancel)).await?;
            work = fed_work;
            match fed {
                Ok(true) => return Ok((work, Ok(()))),
                Ok(false) => {}
                Err(reason) => {
                    tracing::debug!(segment = %number.name(self.path.timeline(), size), reason, "not in pg_wal: the repository is asked");
                    self.not_local.insert(number);
                    work.begin_anew();
                    return Ok((work, Ok(())));
                }
            }
            self.not_local.insert(number);
        }
        self.stored(work, &candidates).await
    }

    /// The files to ask for, the newest timeline's first.
    fn candidates(&self, number: SegmentNumber, at: Lsn, to: Lsn) -> Vec<Candidate> {
        let size = self.repository.identity().segment_size;
        let of_leg = |(timeline, leg): (walkeep_core::TimelineId, WalRange)| {
            let good_to = number.end(size).min(leg.to).min(to);
            let segment = number.name(timeline, size);
            (size.align_down(leg.from) <= number.start(size) && good_to > at).then_some(Candidate { segment, good_to })
        };
        legs(self.path).into_iter().rev().filter_map(of_leg).collect()
    }

    /// Decodes a segment out of the repository.
    async fn stored(&self, work: Work, candidates: &[Candidate]) -> Result<(Work, Result<(), String>)> {
        let identity = self.repository.identity();
        let mut reason = "no timeline of the server's history has it".to_owned();
        for candidate in candidates {
            let content = match self.content(candidate.segment).await? {
                Ok(content) => content,
                Err(why) => {
                    reason = why;
                    continue;
                }
            };
            let proof = Proof { system: identity.system_identifier, path: self.path.clone(), size: identity.segment_size };
            let candidate = *candidate;
            return Ok(tokio::task::spawn_blocking(move || feed_stored(work, candidate, &content, &proof)).await?);
        }
        Ok((work, Err(reason)))
    }

    /// A stored segment's bytes, or those of its parts; or why there are none.
    async fn content(&self, segment: SegmentName) -> Result<std::result::Result<Bytes, String>> {
        let read = || async {
            match self.repository.get_wal(WalFileName::Segment(segment)).await {
                Ok(Some(file)) => Ok(file.content),
                Ok(None) => self.repository.get_tail(segment).await,
                Err(error) => Err(error),
            }
        };
        match retry("reading WAL", Backoff::within(PATIENCE), self.cancel, Error::is_transient, read).await {
            Ok(content) if content.is_empty() => Ok(Err(format!("{segment} is neither in pg_wal nor in the repository"))),
            Ok(content) => Ok(Ok(content)),
            Err(Error::Corrupt { key, reason }) => Ok(Err(format!("{key} is damaged: {reason}"))),
            Err(Error::CannotDecrypt { key, reason }) => Ok(Err(format!("{key} cannot be decrypted: {reason}"))),
            Err(error) => Err(error).with_context(|| format!("read {segment}")),
        }
    }
}

/// What the first page of a segment is compared with.
struct Proof {
    system: SystemIdentifier,
    path: TimelineHistory,
    size: SegmentSize,
}

impl Proof {
    fn check(&self, segment: SegmentName, bytes: &[u8]) -> Result<(), String> {
        let checked = check_partial_segment(segment, self.size, self.system, Some(&self.path), bytes);
        checked.map_err(|error| format!("{segment}: {error}"))
    }
}

/// A decoder, and what it has found.
struct Work {
    decoder: Decoder,
    size: SegmentSize,
    /// The byte that the decoder is to be shown next.
    next: Lsn,
    changes: BlockChanges,
    minimal: Option<Lsn>,
}

impl Work {
    fn new(from: Lsn, size: SegmentSize) -> Self {
        let decoder = Decoder::new(from, size);
        Self { next: decoder.reads_from(), decoder, size, changes: BlockChanges::default(), minimal: None }
    }

    /// Goes on behind the last whole record.
    fn begin_anew(&mut self) {
        self.decoder = Decoder::new(self.decoder.position(), self.size);
        self.next = self.decoder.reads_from();
    }

    /// Takes the bytes at `next`, from the file of `segment`.
    fn take(&mut self, bytes: &[u8], segment: SegmentName) -> Result<(), String> {
        self.next = self.next.saturating_add(bytes.len() as u64);
        let mut rest = bytes;
        while let Some(record) = self.decoder.next_record(&mut rest).map_err(|error| format!("{segment}: {error}"))? {
            self.changes.record(&record);
            if is_minimal(&record) {
                self.minimal = self.minimal.or(Some(record.start));
            }
        }
        match self.decoder.end() {
            Some(end) => Err(format!("the WAL in {segment} ends at {end}")),
            None if self.decoder.timeline() > Some(segment.timeline()) => Err(format!("{segment} has pages of a later timeline")),
            None => Ok(()),
        }
    }
}

/// Whether the record says that not every change is logged.
fn is_minimal(record: &Record<'_>) -> bool {
    if record.resource_manager != ResourceManager::XLOG {
        return false;
    }
    let level = match record.content() {
        Content::ParameterChange { wal_level } | Content::CheckpointRedo { wal_level } => Some(wal_level),
        Content::Checkpoint(checkpoint) => checkpoint.wal_level,
        Content::EndOfRecovery(end) => end.wal_level,
        _ => None,
    };
    level == Some(0)
}

/// Decodes the first of these files that is there. Whether there was one; else why it cannot be believed.
fn feed_local(mut work: Work, files: Vec<(Candidate, PathBuf)>, proof: &Proof, cancel: &CancellationToken) -> (Work, Result<bool, String>) {
    for (candidate, path) in files {
        match open(&path) {
            Ok(Some(file)) => {
                let fed = feed_file(&mut work, candidate, &file, proof, cancel);
                return (work, fed.map(|()| true));
            }
            Ok(None) => {}
            Err(error) => return (work, Err(format!("{}: {error}", path.display()))),
        }
    }
    (work, Ok(false))
}

/// A regular file; `None` if there is nothing of that name.
fn open(path: &Path) -> std::io::Result<Option<File>> {
    // Without NONBLOCK a named pipe would hold us until somebody writes to it.
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Ok(file) if file.metadata()?.is_file() => Ok(Some(file)),
        Ok(_) => Err(std::io::Error::other("it is not a regular file")),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn feed_file(work: &mut Work, candidate: Candidate, file: &File, proof: &Proof, cancel: &CancellationToken) -> Result<(), String> {
    let Candidate { segment, good_to } = candidate;
    let cannot = |error: std::io::Error| format!("{segment}: {error}");
    let mut header = [0; LONG_HEADER_SIZE];
    file.read_exact_at(&mut header, 0).map_err(cannot)?;
    proof.check(segment, &header)?;
    let mut buffer = vec![0; CHUNK];
    while work.next < good_to {
        if cancel.is_cancelled() {
            return Err("cancelled".to_owned());
        }
        let chunk = &mut buffer[..good_to.bytes_since(work.next).min(CHUNK as u64) as usize];
        file.read_exact_at(chunk, proof.size.offset_of(work.next)).map_err(cannot)?;
        work.take(chunk, segment)?;
    }
    Ok(())
}

fn feed_stored(mut work: Work, candidate: Candidate, content: &[u8], proof: &Proof) -> (Work, Result<(), String>) {
    let Candidate { segment, good_to } = candidate;
    let fed = proof.check(segment, content).and_then(|()| {
        let offset = proof.size.offset_of(work.next) as usize;
        let wanted = good_to.bytes_since(work.next) as usize;
        let bytes = content.get(offset..offset + wanted);
        let bytes = bytes.ok_or_else(|| format!("{segment} is stored up to its byte {} only", content.len()))?;
        work.take(bytes, segment)
    });
    (work, fed)
}
