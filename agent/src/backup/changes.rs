//! What changed between a backup and the next one, out of the index of the WAL: so that unchanged blocks need not be read.
//!
//! Every record that begins between the two backups' starts is looked at: by the stored maps of changed blocks where they tell, and by
//! decoding the WAL where they do not ([`wal`]): in holes, and behind the last map, which the index stores some segments late. Whatever cannot
//! be proven is [`Known::Unknown`], with the reason for the log: then everything is read, which is slower and never wrong. What a block's file
//! is, and what the WAL does not tell of it, is decided in [`walkeep_core::changes`]. Nothing is written here.

mod wal;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use futures::{StreamExt, stream};
use tokio_util::sync::CancellationToken;
use walkeep_core::backup::BackupRecord;
use walkeep_core::catalog::{WalRange, legs};
use walkeep_core::changes::{Changes, holes};
use walkeep_core::control::ControlFile;
use walkeep_core::decoder::record_begin;
use walkeep_core::index::{BlockChanges, BlockMap, BlocksName, Level};
use walkeep_core::layout::GapName;
use walkeep_core::{Lsn, TimelineHistory};

use crate::repository::{ClusterRepository, Error};
use crate::retry::{Backoff, retry};
use wal::{Found, WalReader};

/// How long the repository may fail.
const PATIENCE: Duration = Duration::from_secs(600);
/// Maps read at the same time.
const READS: usize = 8;

/// How much may be spent on the question.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// WAL that is decoded since no map tells of it, in bytes.
    pub wal: u64,
    /// Memory for what changed, in bytes, about.
    pub memory: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { wal: 4 << 30, memory: 256 << 20 }
    }
}

/// The backup that begins.
#[derive(Debug, Clone, Copy)]
pub struct Now<'a> {
    /// The history of the server's timeline.
    pub path: &'a TimelineHistory,
    /// Where its replay will begin: the redo position of the starting checkpoint, which is complete.
    pub start: Lsn,
    /// The server's control file.
    pub control: &'a ControlFile,
    /// The server's `pg_wal`, where it can be read.
    pub pg_wal: Option<&'a Path>,
}

/// What is known.
#[derive(Debug)]
pub enum Known {
    /// Which blocks may be others than in the former backup. All else is what it was.
    Changes(Changes),
    /// Nothing, for this reason.
    Unknown(String),
}

/// What changed since the backup `before`.
pub async fn since(
    repository: &Arc<ClusterRepository>,
    before: &BackupRecord,
    now: Now<'_>,
    limits: Limits,
    cancel: &CancellationToken,
) -> Result<Known> {
    let system = repository.identity().system_identifier;
    if before.system_identifier != system || now.control.system != system {
        bail!("backup {} or the server is of another cluster than the repository's {system}", before.id);
    }
    if let Some(reason) = not_comparable(before, &now) {
        return Ok(Known::Unknown(reason));
    }
    let began = Instant::now();
    let wanted = WalRange { from: before.start_lsn, to: now.start };
    if let Some(reason) = other_history_within(repository, now.path, wanted, cancel).await? {
        return Ok(Known::Unknown(reason));
    }
    let mut maps = match join_maps(repository, now.path, wanted, limits, cancel).await? {
        Ok(maps) => maps,
        Err(reason) => return Ok(Known::Unknown(reason)),
    };
    let mut decoded = 0;
    loop {
        match decode_holes(repository, &now, wanted, &mut maps, limits, &mut decoded, cancel).await? {
            Ok(()) => break,
            Err(reason) if maps.earlier.is_empty() => return Ok(Known::Unknown(reason)),
            // More is told then than changed, and nothing is left out.
            Err(reason) => {
                tracing::debug!(reason, "backup: maps are used that also tell of what changed before the former backup");
                for (records, of_map) in std::mem::take(&mut maps.earlier) {
                    maps.add(records, of_map);
                }
            }
        }
    }
    let Maps { changes, told, .. } = maps;
    tracing::info!(
        since = %before.id, from = %wanted.from, to = %wanted.to, maps = told.len(), decoded, blocks = changes.count(),
        milliseconds = began.elapsed().as_millis() as u64, "backup: changed blocks are known"
    );
    let known = Changes::new(changes, now.control);
    Ok(known.map_or_else(|| Known::Unknown(format!("the server's blocks have {} bytes", now.control.block_size)), Known::Changes))
}

/// Why no WAL could tell.
fn not_comparable(before: &BackupRecord, now: &Now<'_>) -> Option<String> {
    let (id, path) = (&before.id, now.path);
    // Until its stop the former backup took in what its timeline wrote: where that is left earlier, it has blocks of another history.
    let stop_timeline = before.stop_timeline.unwrap_or(before.timeline);
    if !path.contains(stop_timeline, before.stop_lsn) || !path.contains(before.timeline, before.start_lsn) {
        return Some(format!(
            "backup {id} ends at {} on timeline {stop_timeline}, which the server's history has left: {path}",
            before.stop_lsn
        ));
    }
    // A standby that lags behind may begin before the primary's backup ended: that one has blocks of its future.
    if before.stop_lsn > now.start {
        return Some(format!("backup {id} ends at {}, behind the start of this one at {}", before.stop_lsn, now.start));
    }
    // `pg_checksums --enable` writes every page, and no WAL.
    if now.control.checksum_version != 0 && before.data_checksums != Some(true) {
        return Some(format!("the pages of backup {id} are not known to have checksums, and the server's have"));
    }
    None
}

/// Whether the WAL of `wanted` is that of two histories: what the server wrote before the seam is not stored.
async fn other_history_within(
    repository: &ClusterRepository,
    path: &TimelineHistory,
    wanted: WalRange,
    cancel: &CancellationToken,
) -> Result<Option<String>> {
    let within = |gap: &GapName| gap.from < wanted.to && gap.to > wanted.from && path.contains(gap.timeline, gap.from);
    let look = || repository.other_histories(within);
    let found = retry("looking for gaps", Backoff::within(PATIENCE), cancel, Error::is_transient, look).await.context("look for gaps")?;
    let open = found.into_iter().find(|(_, closed)| !closed);
    Ok(open.map(|(gap, _)| format!("the WAL stored from {} on is of another history than what is stored before", gap.to)))
}

/// What is known up to now.
#[derive(Default)]
struct Maps {
    changes: BlockChanges,
    /// Every record that begins in one of these is in `changes`.
    told: Vec<WalRange>,
    /// Maps that also tell of what was before: not used where the WAL can be decoded instead, since what was loaded just before the former
    /// backup would count as changed.
    earlier: Vec<(WalRange, BlockChanges)>,
}

impl Maps {
    fn add(&mut self, records: WalRange, changes: BlockChanges) {
        self.told.push(records);
        self.changes.join(changes);
    }

    fn memory(&self) -> u64 {
        self.changes.memory() + self.earlier.iter().map(|(_, changes)| changes.memory()).sum::<u64>()
    }
}

/// Decodes what no map tells of; or why that cannot be.
async fn decode_holes(
    repository: &Arc<ClusterRepository>,
    now: &Now<'_>,
    wanted: WalRange,
    maps: &mut Maps,
    limits: Limits,
    decoded: &mut u64,
    cancel: &CancellationToken,
) -> Result<std::result::Result<(), String>> {
    let holes = holes(wanted, &maps.told, repository.identity().segment_size);
    let bytes: u64 = holes.iter().map(|hole| hole.to.bytes_since(hole.from)).sum();
    if *decoded + bytes > limits.wal {
        return Ok(Err(format!(
            "of {bytes} bytes of WAL from {} to {} no map of changed blocks tells, and at most {} are decoded for it: `walkeep index --rebuild` \
             makes the maps",
            wanted.from, wanted.to, limits.wal
        )));
    }
    let mut reader = WalReader::new(repository, now.path, now.pg_wal, limits.memory, cancel);
    for hole in holes {
        match reader.read(hole).await? {
            Found::Changes(changes) => maps.add(hole, changes),
            Found::Nothing(reason) => return Ok(Err(reason)),
        }
        *decoded += hole.to.bytes_since(hole.from);
        if maps.memory() > limits.memory {
            return Ok(Err(too_much(limits.memory, hole.to)));
        }
    }
    Ok(Ok(()))
}

/// Reads what the stored maps tell of `wanted`; or why that is too much.
async fn join_maps(
    repository: &Arc<ClusterRepository>,
    path: &TimelineHistory,
    wanted: WalRange,
    limits: Limits,
    cancel: &CancellationToken,
) -> Result<std::result::Result<Maps, String>> {
    let size = repository.identity().segment_size;
    let mut names: Vec<(BlocksName, Lsn)> = Vec::new();
    // A map that began in an earlier window is only decoded again.
    let oldest = Level::SEGMENTS.window(size.segment_of(wanted.from)).first.start(size);
    for (timeline, leg) in legs(path) {
        if leg.to <= wanted.from || leg.from >= wanted.to {
            continue;
        }
        let list = || repository.list_blocks(timeline, Some(oldest));
        let listed = retry("listing the maps of changed blocks", Backoff::within(PATIENCE), cancel, Error::is_transient, list).await;
        let listed = listed.context("list the maps of changed blocks")?;
        let of_leg = |name: &BlocksName| name.from < wanted.to.min(leg.to) && name.to > wanted.from && name.from < name.to;
        names.extend(listed.into_iter().filter(of_leg).map(|name| (name, leg.to)));
    }
    let mut all = Maps::default();
    let mut maps = stream::iter(names).map(|(name, end)| async move { (map(repository, name, cancel).await, end) }).buffered(READS);
    while let Some((map, end)) = maps.next().await {
        if cancel.is_cancelled() {
            bail!("cancelled while the maps of changed blocks were read");
        }
        let Some(BlockMap { records: Some(records), minimal: false, changes: of_map }) = map? else { continue };
        // Behind the switch the map is of another branch: its blocks are read for nothing, the branch's own WAL tells the rest.
        let records = WalRange { from: records.from, to: records.to.min(end) };
        match record_begin(records.from, size) < record_begin(wanted.from, size) {
            true => all.earlier.push((records, of_map)),
            false => all.add(records, of_map),
        }
        if all.memory() > limits.memory {
            return Ok(Err(too_much(limits.memory, records.to)));
        }
    }
    Ok(Ok(all))
}

fn too_much(limit: u64, at: Lsn) -> String {
    format!("what changed up to {at} takes more than {limit} bytes of memory")
}

/// A stored map; `None` if it went, or cannot be believed.
async fn map(repository: &ClusterRepository, name: BlocksName, cancel: &CancellationToken) -> Result<Option<BlockMap>> {
    let get = || repository.get_blocks(name);
    match retry("reading a map of changed blocks", Backoff::within(PATIENCE), cancel, Error::is_transient, get).await {
        Err(Error::Corrupt { key, reason }) => {
            tracing::warn!(
                key,
                reason,
                "a map of changed blocks cannot be believed: its WAL is decoded. `walkeep index --rebuild` mends it"
            );
            Ok(None)
        }
        Err(Error::CannotDecrypt { key, reason }) => {
            tracing::info!(key, reason, "a map of changed blocks cannot be read here: its WAL is decoded, where the server still has it");
            Ok(None)
        }
        read => read.with_context(|| format!("read the changed blocks from {} to {}", name.from, name.to)),
    }
}

#[cfg(test)]
mod tests {
    use walkeep_core::TimelineId;
    use walkeep_core::catalog::GapCause;

    use super::*;
    use crate::repository::tests::{memory, record};

    fn control(timeline: u32) -> ControlFile {
        let file = include_bytes!("../../core/tests/fixtures/pg_control-15.bin");
        let mut control = ControlFile::parse(file).unwrap();
        control.timeline = TimelineId::new(timeline).unwrap();
        control.checksum_version = 0;
        control.system = walkeep_core::SystemIdentifier::new(7);
        control
    }

    fn history(switch: &str) -> TimelineHistory {
        TimelineHistory::parse(TimelineId::new(2).unwrap(), format!("1\t{switch}\tpromoted\n").as_bytes()).unwrap()
    }

    fn reason(before: &BackupRecord, path: &TimelineHistory, start: Lsn, control: &ControlFile) -> Option<String> {
        not_comparable(before, &Now { path, start, control, pg_wal: None })
    }

    /// Up to its stop a backup holds what its own timeline wrote.
    #[test]
    fn a_backup_that_the_history_leaves_before_its_end_is_not_compared() {
        let (before, control, later) = (record(3), control(2), Lsn::new(9 << 20));
        assert_eq!((before.start_lsn, before.stop_lsn), (Lsn::new(0x30_0000), Lsn::new(0x30_03E8)));
        assert_eq!(reason(&before, &history("0/3003E8"), later, &control), None, "left at its end");
        for switch in ["0/3003E0", "0/300000", "0/200000"] {
            let reason = reason(&before, &history(switch), later, &control).unwrap();
            assert!(reason.contains("which the server's history has left: timeline 1 up to"), "{reason}");
        }
        let mut of_another = record(3);
        of_another.timeline = TimelineId::new(3).unwrap();
        assert!(reason(&of_another, &history("0/900000"), later, &control).is_some(), "a timeline that is no ancestor");
    }

    #[test]
    fn a_backup_that_ends_behind_the_start_is_not_compared() {
        let (path, control) = (TimelineHistory::root(TimelineId::FIRST), control(1));
        assert_eq!(reason(&record(3), &path, Lsn::new(0x30_03E8), &control), None);
        assert!(reason(&record(3), &path, Lsn::new(0x30_03E7), &control).unwrap().contains("behind the start"));
    }

    #[test]
    fn pages_that_got_checksums_meanwhile_are_read() {
        let (path, mut control, start) = (TimelineHistory::root(TimelineId::FIRST), control(1), Lsn::new(9 << 20));
        let with = |checksums| BackupRecord { data_checksums: checksums, ..record(3) };
        assert!([None, Some(false), Some(true)].into_iter().all(|before| reason(&with(before), &path, start, &control).is_none()));
        control.checksum_version = 1;
        assert!([None, Some(false)].into_iter().all(|before| reason(&with(before), &path, start, &control).is_some()));
        assert_eq!(reason(&with(Some(true)), &path, start, &control), None);
    }

    #[tokio::test]
    async fn another_clusters_backup_is_an_error_and_no_wal_is_unknown() {
        let (repository, _) = memory().await;
        let (repository, path, control, cancel) =
            (Arc::new(repository), TimelineHistory::root(TimelineId::FIRST), control(1), CancellationToken::new());
        let now = Now { path: &path, start: Lsn::new(9 << 20), control: &control, pg_wal: None };
        let Known::Unknown(reason) = since(&repository, &record(3), now, Limits::default(), &cancel).await.unwrap() else {
            panic!("known")
        };
        assert!(reason.contains("000000010000000000000003 is neither in pg_wal nor in the repository"), "{reason}");
        // Maps of both sides may be there; what the server wrote before the seam is not.
        let seam = |from, to| GapName { timeline: TimelineId::FIRST, from: Lsn::new(from), to: Lsn::new(to) };
        for (gap, is_told) in [(seam(0x20_0000, 0x30_0000), false), (seam(0x90_0000, 0xA0_0000), false), (seam(0x4F_FF00, 0x50_0000), true)]
        {
            repository.put_gap(gap, GapCause::OtherHistory).await.unwrap();
            let known = since(&repository, &record(3), now, Limits::default(), &cancel).await.unwrap();
            assert!(matches!(known, Known::Unknown(reason) if reason.contains("another history") == is_told), "{gap:?}");
        }
        let of_another = BackupRecord { system_identifier: walkeep_core::SystemIdentifier::new(8), ..record(3) };
        assert!(since(&repository, &of_another, now, Limits::default(), &cancel).await.is_err());
    }
}
