//! Waiting until the WAL that makes a backup consistent is in the repository.
//!
//! A backup without it is worth nothing, so it is not recorded before. Who brings the WAL (the stream, archive_command) does not matter here.
//! The question asked is the one that plans ask later, so that a recorded backup is one a plan accepts.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::time::Instant;
use walkeep_core::catalog::{FirstMissing, WalRange};
use walkeep_core::decoder::{DecodeError, Decoder};
use walkeep_core::event::{WalEvent, WalEventKind};
use walkeep_core::{Lsn, SegmentName, TimelineHistory, TimelineId};

use crate::codec;
use crate::encryption::fingerprint::Likeness;
use crate::repository::{self, ClusterRepository};
use crate::wal_walk::{Stored, Traffic, Visitor};

const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// WAL comes within a second or two, where it comes. What is missing is told after so long, and again after twice and four times as long, and so on.
const TOLD_AFTER: Duration = Duration::from_secs(10);

/// The WAL of a backup.
#[derive(Debug, Clone, Copy)]
pub struct NeededWal {
    /// Replay begins here.
    pub start: Lsn,
    /// And is consistent here.
    pub stop: Lsn,
    /// The timeline at the stop.
    pub timeline: TimelineId,
}

/// The WAL did not come. The backup is not recorded.
#[derive(Debug, thiserror::Error)]
pub enum WalMissing {
    /// A segment is missing.
    #[error(
        "the WAL from {start} to {stop} that makes this backup consistent is not in the repository: {segment} is missing (from {at}), and for {} \
         nothing came. Start `walkeep agent` or check archive_command and pg_stat_archiver, then take the backup again; it was not recorded",
        humantime::format_duration(*.waited)
    )]
    Segment {
        /// Replay begins here.
        start: Lsn,
        /// And is consistent here.
        stop: Lsn,
        /// The first file that is missing.
        segment: SegmentName,
        /// The first position that is missing.
        at: Lsn,
        /// For how long nothing came.
        waited: Duration,
    },
    /// A history file is missing.
    #[error(
        "{}.history is not in the repository, and without it no server can follow the backup's timeline; nothing came for {}. Start `walkeep agent` or \
         check archive_command, then take the backup again; it was not recorded",
        .timeline.hex(),
        humantime::format_duration(*.waited)
    )]
    History {
        /// The timeline.
        timeline: TimelineId,
        /// For how long nothing came.
        waited: Duration,
    },
}

/// The WAL that is stored where the backup lies is not that of this server. The backup is not recorded.
#[derive(Debug, thiserror::Error)]
#[error(
    "what is stored as WAL at {checkpoint} is not this server's: the backup begins with a checkpoint there, and {found}. The server went another way than \
     the archive, as after it was put back to an older copy: `walkeep timelines` shows what is stored. Let the agent archive it (`walkeep check`), then \
     take the backup again; it was not recorded"
)]
pub struct OtherHistory {
    checkpoint: Lsn,
    found: String,
}

enum Missing {
    History,
    Segment(Box<FirstMissing>),
}

impl Missing {
    /// Says on what a backup waits, for so long now.
    fn tell(&self, need: NeededWal, waited: Duration, patience: Duration) {
        let (waited_s, given_up_after_s) = (waited.as_secs(), patience.as_secs());
        const ADVICE: &str = "is `walkeep agent` running, or archive_command set? `walkeep check` tells what hinders them";
        match self {
            Self::History => {
                let history = format!("{}.history", need.timeline.hex());
                tracing::warn!(
                    history,
                    waited_s,
                    given_up_after_s,
                    "backup: waiting for its timeline's history, which is not stored: {ADVICE}"
                );
            }
            Self::Segment(missing) => tracing::warn!(
                segment = %missing.segment, from = %missing.at, to = %need.stop, waited_s, given_up_after_s,
                "backup: waiting for WAL that it needs and that is not stored: {ADVICE}"
            ),
        }
    }
}

/// Waits until `need` is stored; gives up when nothing of it has come for `patience`.
pub async fn wait_for_wal(repository: &ClusterRepository, need: NeededWal, patience: Duration) -> Result<()> {
    let (mut waiting_since, mut reached, mut pause) = (Instant::now(), Lsn::ZERO, FIRST_PAUSE);
    let mut told_after = TOLD_AFTER;
    loop {
        let waited = waiting_since.elapsed();
        match look(repository, need).await {
            Ok(None) => return Ok(()),
            Ok(Some(Missing::Segment(missing))) if missing.at > reached => {
                tracing::info!(segment = %missing.segment, "waiting for WAL");
                (waiting_since, reached, pause, told_after) = (Instant::now(), missing.at, FIRST_PAUSE, TOLD_AFTER);
            }
            Ok(Some(Missing::Segment(missing))) if waited > patience => {
                let FirstMissing { segment, at, .. } = *missing;
                return Err(WalMissing::Segment { start: need.start, stop: need.stop, segment, at, waited: patience }.into());
            }
            Ok(Some(Missing::History)) if waited > patience => {
                return Err(WalMissing::History { timeline: need.timeline, waited: patience }.into());
            }
            Ok(Some(missing)) if waited > told_after => {
                missing.tell(need, waited, patience);
                told_after *= 2;
            }
            Ok(Some(_)) => {}
            Err(error) if error.is_transient() && waited <= patience => tracing::warn!(%error, "could not look for the backup's WAL"),
            Err(error) => return Err(error.into()),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Proves that the WAL that is stored is that of the server the backup was taken from: the backup's checkpoint is in it, at its place. A server that was put
/// back to an older copy would find WAL of its former life there, and replay of that would ruin the restore.
///
/// Where nothing stored can be read, the segment with the checkpoint is compared by its fingerprint with the file in `pg_wal`, if the server's is here.
pub async fn prove_checkpoint(repository: &Arc<ClusterRepository>, need: NeededWal, checkpoint: Lsn, pg_wal: Option<&Path>) -> Result<()> {
    let refuse = |found: String| Err(OtherHistory { checkpoint, found }.into());
    let Some(path) = repository.replay_path(need.timeline).await? else { bail!("the history of timeline {} is gone", need.timeline) };
    let size = repository.identity().segment_size;
    let catalog = repository.wal_catalog(&path, size.segment_of(checkpoint)).await?;
    let stored = Stored { repository, catalog: &catalog, path: &path, traffic: &Traffic::default() };
    let range = WalRange { from: checkpoint, to: need.stop.max(checkpoint.saturating_add(1)) };
    let decoder = Decoder::new(checkpoint, size).every_record();
    let first = match stored.walk(range, decoder, First(None), &mut |_, _| {}).await {
        Ok((First(first), _)) => first,
        Err(error) if error.root_cause().is::<DecodeError>() => {
            return refuse(format!("nothing there can be read as a record ({})", error.root_cause()));
        }
        Err(error) => {
            let context = "look for the backup's checkpoint in the WAL that is stored";
            let error = error.downcast::<repository::Error>().map_err(|error| error.context(context))?;
            let segment = size.segment_of(checkpoint).name(path.timeline_at(checkpoint), size);
            if matches!(error, repository::Error::CannotDecrypt { .. }) {
                match likeness_to_the_servers(repository, segment, pg_wal).await? {
                    Some(Likeness::Same) => return Ok(()),
                    Some(Likeness::Other) => {
                        return refuse("another content than that of the server's file, by its fingerprint".to_owned());
                    }
                    Some(Likeness::Unknown) | None => {}
                }
            }
            repository.if_readable(Err::<(), _>(error), "the stored WAL with the backup's checkpoint").context(context)?;
            return Ok(());
        }
    };
    match first {
        Some(WalEvent { start, kind: WalEventKind::Checkpoint { redo, .. }, .. }) if start == checkpoint && redo == need.start => Ok(()),
        Some(WalEvent { kind: WalEventKind::Checkpoint { redo, .. }, .. }) => {
            refuse(format!("the one there goes back to {redo}, not to {}", need.start))
        }
        Some(event) => refuse(format!("the record at {} is none", event.start)),
        None => refuse("no record begins there".to_owned()),
    }
}

/// Whether a stored segment has the fingerprint of the file in `pg_wal`; `None` where one of the two is not there.
async fn likeness_to_the_servers(repository: &ClusterRepository, segment: SegmentName, pg_wal: Option<&Path>) -> Result<Option<Likeness>> {
    let Some(file) = pg_wal.map(|folder| folder.join(segment.to_string())) else { return Ok(None) };
    let hashed = tokio::task::spawn_blocking(move || codec::blake3_of(&mut std::fs::File::open(file)?)).await?;
    // Recycled since, or never here.
    let Ok((hash, _)) = hashed else { return Ok(None) };
    Ok(repository.likeness_of_segment(segment, hash).await?)
}

/// Whether looking again may help.
pub fn is_transient(error: &anyhow::Error) -> bool {
    error.chain().filter_map(|cause| cause.downcast_ref::<repository::Error>()).any(repository::Error::is_transient)
}

/// The first record.
struct First(Option<WalEvent>);

impl Visitor for First {
    fn drain(&mut self, decoder: &mut Decoder, mut bytes: &[u8]) -> Result<(), DecodeError> {
        while self.0.is_none()
            && let Some(event) = decoder.next_event(&mut bytes)?
        {
            self.0 = Some(event);
        }
        Ok(())
    }

    fn goes_on(&mut self, _segments: u64) -> bool {
        self.0.is_none()
    }
}

async fn look(repository: &ClusterRepository, need: NeededWal) -> repository::Result<Option<Missing>> {
    let path: TimelineHistory = match repository.replay_path(need.timeline).await? {
        Some(path) => path,
        None => return Ok(Some(Missing::History)),
    };
    let from = repository.identity().segment_size.segment_of(need.start);
    let catalog = repository.wal_catalog(&path, from).await?;
    Ok(catalog.coverage(&path, need.start, need.stop).err().map(Missing::Segment))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::tests::{memory, segment};
    use bytes::Bytes;
    use walkeep_core::WalFileName;
    use walkeep_core::layout::PartName;

    const MIB: u64 = 1 << 20;

    fn need(timeline: u32) -> NeededWal {
        NeededWal { start: Lsn::new(2 * MIB + 40), stop: Lsn::new(4 * MIB + 100), timeline: TimelineId::new(timeline).unwrap() }
    }

    #[tokio::test(start_paused = true)]
    async fn segments_and_then_parts_are_enough() {
        let (repository, _) = memory().await;
        for number in [2, 3] {
            repository.put_wal(WalFileName::Segment(segment(number)), Bytes::from(vec![1; MIB as usize])).await.unwrap();
        }
        let waiting = wait_for_wal(&repository, need(1), Duration::from_secs(600));
        let coming = async {
            tokio::time::sleep(Duration::from_secs(300)).await;
            let part = PartName { segment: segment(4), from: 0, to: 100, epoch: 1 };
            repository.put_part(part, Bytes::from(vec![1; 100])).await.unwrap();
        };
        tokio::join!(waiting, coming).0.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_waited_for_is_told_while_it_is() {
        use std::sync::{Arc, Mutex};
        #[derive(Clone, Default)]
        struct Lines(Arc<Mutex<Vec<u8>>>);
        impl std::io::Write for Lines {
            fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
                self.0.lock().unwrap().extend_from_slice(bytes);
                Ok(bytes.len())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let lines = Lines::default();
        let writer = lines.clone();
        let _logged = tracing::subscriber::set_default(
            tracing_subscriber::fmt().with_max_level(tracing::Level::WARN).with_ansi(false).with_writer(move || writer.clone()).finish(),
        );
        let (repository, _) = memory().await;
        wait_for_wal(&repository, need(1), Duration::from_secs(100)).await.unwrap_err();
        let told = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        // After 10, 20, 40 and 80 seconds.
        assert_eq!(told.lines().count(), 4, "{told}");
        assert!(told.lines().all(|line| line.contains("000000010000000000000002") && line.contains("given_up_after_s=100")), "{told}");
    }

    /// A store that is away for a moment, when all of a backup is stored, must not cost the backup.
    #[tokio::test]
    async fn only_an_outage_is_worth_another_look() {
        use walkeep_store::{ErrorKind, Fault, FaultyStore, Operation, Rule};
        let (_, store) = memory().await;
        let faulty = Arc::new(FaultyStore::new(store));
        let repository = Arc::new(crate::repository::tests::over(faulty.clone()).await);
        let content = Bytes::from(vec![1; MIB as usize]);
        for number in 2..=4 {
            repository.put_wal(WalFileName::Segment(segment(number)), content.clone()).await.unwrap();
        }
        for operation in [Operation::List, Operation::Get] {
            faulty.inject(Rule::new(operation, Fault::Fail(ErrorKind::Transient)));
            let error = prove_checkpoint(&repository, need(1), Lsn::new(2 * MIB + 40), None).await.unwrap_err();
            assert!(is_transient(&error), "{error:#}");
            faulty.heal();
        }
        let error = prove_checkpoint(&repository, need(1), Lsn::new(2 * MIB + 40), None).await.unwrap_err();
        assert!(error.is::<OtherHistory>() && !is_transient(&error), "{error:#}");
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_missing_file_is_named() {
        let (repository, _) = memory().await;
        repository.put_wal(WalFileName::Segment(segment(2)), Bytes::from(vec![1; MIB as usize])).await.unwrap();
        let error = wait_for_wal(&repository, need(1), Duration::from_secs(60)).await.unwrap_err();
        assert!(error.to_string().contains("000000010000000000000003 is missing (from 0/300000)"), "{error}");
        let error = wait_for_wal(&repository, need(2), Duration::from_secs(60)).await.unwrap_err();
        assert!(error.to_string().starts_with("00000002.history is not in the repository"), "{error}");
    }
}
