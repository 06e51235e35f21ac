//! The promise of the stream as a property: whatever happens, and in whatever order, what was reported as flushed can be put together.
//!
//! The real session, uploads, spool and start run against a store in memory that is slow, fails and loses answers. A walsender of the test sends real
//! WAL and notes what is reported to it. Each life of the agent ends by a kill, a lost connection or a stop; after each, everything before the
//! flush position must be fetchable from the store alone (or, with `acknowledge = "spool"`, lie in the spool, cut to what was fsynced).

use std::path::Path;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use anyhow::Result;
use bytes::Bytes;
use chrono::DateTime;
use proptest::prelude::*;
use tokio_util::sync::CancellationToken;
use walkeep_core::{
    Lsn, MajorVersion, PgTimestamp, SegmentName, SegmentNumber, SegmentSize, SystemIdentifier, TimelineHistory, TimelineId,
};
use walkeep_store::several::StoredWhen;
use walkeep_store::{ErrorKind, Fault, FaultyStore, MemoryStore, Operation, Rule};

use super::session::{Ended, Session, Walsender};
use super::*;
use crate::config::{Acknowledge, Protect, RepositoryConfig};
use crate::fetch::find::{Finder, Found};
use crate::postgres::replication::{Event, ReplicationError};
use crate::progress::Snapshot;
use crate::repository::{ClusterIdentity, Repository};

/// Segments 6 to C of a real cluster; see `core/tests/decoder.rs`.
static WAL: LazyLock<Bytes> = LazyLock::new(|| {
    let packed = include_bytes!("../../core/tests/fixtures/wal-15.bin");
    Bytes::from(zstd::decode_all(&packed[..]).unwrap())
});
const SYSTEM: SystemIdentifier = SystemIdentifier::new(7_710_471_828_323_784_901);
const FIRST: Lsn = Lsn::new(0x60_0000);
/// What the server writes at most: not all of the fixture, to be quick.
const MOST: u64 = 4 << 20;
const SIZE: u64 = 1 << 20;
/// As the kernel's pieces of a stream.
const MESSAGE: u64 = 128 << 10;

fn wal(from: Lsn, to: Lsn) -> Bytes {
    WAL.slice(from.bytes_since(FIRST) as usize..to.bytes_since(FIRST) as usize)
}

/// What happens to one call of the store.
#[derive(Debug, Clone)]
struct Trouble {
    operation: Operation,
    call: u64,
    fault: Fault,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Kill,
    ConnectionLost,
    Stop,
    /// As soon as everything is stored.
    Done,
}

/// One life of the agent.
#[derive(Debug, Clone)]
struct Life {
    /// Bytes that the server writes meanwhile.
    writes: u64,
    /// The most bytes of a message.
    message: u64,
    trouble: Vec<Trouble>,
    commits_wait: bool,
    upload_interval_ms: u64,
    /// After so long.
    ends_after_ms: u64,
    end: End,
}

fn trouble() -> impl Strategy<Value = Trouble> {
    let slow = (1u64..60).prop_map(|ms| Fault::Delay(Duration::from_millis(ms)));
    let put = prop_oneof![6 => slow, 1 => Just(Fault::LoseAnswer), 1 => Just(Fault::Fail(ErrorKind::Transient)), 1 => Just(Fault::Hang)];
    (1u64..12, put).prop_map(|(call, fault)| Trouble { operation: Operation::Put, call, fault })
}

fn life() -> impl Strategy<Value = Life> {
    let end = prop_oneof![4 => Just(End::Kill), 1 => Just(End::ConnectionLost), 1 => Just(End::Stop)];
    let writes = prop_oneof![2 => 1..200_000u64, 1 => 1..3 * SIZE];
    (writes, 1..MESSAGE, prop::collection::vec(trouble(), 0..8), any::<bool>(), 1u64..20, 1u64..150, end).prop_map(
        |(writes, message, trouble, commits_wait, upload_interval_ms, ends_after_ms, end)| Life {
            writes,
            message,
            trouble,
            commits_wait,
            upload_interval_ms,
            ends_after_ms,
            end,
        },
    )
}

/// What was reported so far.
#[derive(Debug, Clone, Copy)]
struct Reported {
    /// The last flush position: where the slot stands.
    slot: Lsn,
    /// The furthest: it is promised for ever.
    flushed: Lsn,
    /// What the agent says of the repository.
    durable: Lsn,
}

/// Sends WAL, notes what is reported.
struct Sender {
    at: Lsn,
    written: Lsn,
    message: u64,
    reported: Arc<Mutex<Reported>>,
    progress: Arc<Progress>,
    lost: CancellationToken,
    other_from: Lsn,
}

impl Walsender for Sender {
    async fn next_event(&mut self) -> Result<Event, ReplicationError> {
        if self.lost.is_cancelled() {
            return Ok(Event::Ended);
        }
        // What comes next is not there yet for as long as a network takes.
        tokio::time::sleep(Duration::from_micros(300)).await;
        let start = self.at;
        let end = start.saturating_add(self.message).min(self.written);
        if start == end {
            self.lost.cancelled().await;
            return Ok(Event::Ended);
        }
        self.at = end;
        let mut data = wal(start, end);
        if end > self.other_from {
            let own = start.max(self.other_from).bytes_since(start) as usize;
            data = data.iter().enumerate().map(|(at, byte)| if at < own { *byte } else { !byte }).collect();
        }
        Ok(Event::Wal { start, server_end: self.written, data, sent_at: PgTimestamp::from_micros(0) })
    }

    async fn send_status(&mut self, write: Lsn, flush: Lsn, apply: Lsn, _: bool) -> Result<(), ReplicationError> {
        let Snapshot { received, spooled, durable, .. } = self.progress.snapshot();
        assert!(received >= spooled && spooled >= durable, "received {received}, spooled {spooled}, durable {durable}");
        assert!(write >= flush && write <= self.at && apply == Lsn::ZERO, "write {write}, flush {flush}, apply {apply}");
        let mut reported = self.reported.lock().unwrap();
        *reported = Reported { slot: flush, flushed: flush.max(reported.flushed), durable: durable.max(reported.durable) };
        Ok(())
    }

    async fn stop(&mut self) -> Result<(), ReplicationError> {
        Ok(())
    }
}

/// What outlives an agent.
struct World {
    store: Arc<FaultyStore>,
    spool: tempfile::TempDir,
    acknowledge: Acknowledge,
    /// How far the server has written.
    written: Lsn,
    /// From here on it has other WAL than the fixture.
    other_from: Lsn,
    reported: Arc<Mutex<Reported>>,
}

fn identity() -> ClusterIdentity {
    ClusterIdentity {
        system_identifier: SYSTEM,
        major_version: MajorVersion::new(15),
        segment_size: SegmentSize::new(SIZE).unwrap(),
        since: DateTime::UNIX_EPOCH,
        form: Default::default(),
    }
}

fn segment(number: u64) -> SegmentName {
    SegmentNumber::new(number).name(TimelineId::FIRST, identity().segment_size)
}

/// A process: when it is dropped nothing of it goes on.
fn process() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

impl World {
    fn new(acknowledge: Acknowledge) -> Self {
        let store = Arc::new(FaultyStore::new(Arc::new(MemoryStore::new())));
        process().block_on(Repository::create(store.clone())).unwrap();
        // In memory where that is possible: it is fsynced often, and what is lost is decided here.
        let memory = Path::new("/dev/shm");
        let spool = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
        let reported = Reported { slot: FIRST, flushed: FIRST, durable: FIRST };
        Self { store, spool: spool.unwrap(), acknowledge, written: FIRST, other_from: Lsn::MAX, reported: Arc::new(Mutex::new(reported)) }
    }

    fn reported(&self) -> Reported {
        *self.reported.lock().unwrap()
    }

    async fn repository(&self) -> Arc<ClusterRepository> {
        let repository = Repository::open(self.store.clone()).await.unwrap();
        Arc::new(ClusterRepository::new(repository, "main".parse().unwrap(), identity(), 1))
    }

    fn config(&self, life: &Life) -> ClusterConfig {
        ClusterConfig {
            artifacts: Vec::new(),
            dump: None,
            drill: crate::config::DrillConfig::default(),
            name: "main".parse().unwrap(),
            connection: "host=/nonexistent".to_owned().into(),
            data_directory: None,
            config_files: true,
            spool: self.spool.path().join("spool"),
            spool_limit: ByteSize(64 << 20),
            socket: self.spool.path().join("socket"),
            slot: "walkeep".to_owned(),
            application_name: "walkeep".to_owned(),
            upload_interval: Duration::from_millis(life.upload_interval_ms),
            acknowledge: self.acknowledge,
            compression_level: 1,
            wal_compression_level: 1,
            upload_parallelism: 4,
            stream: true,
            protect: Protect::Archive,
            repository: RepositoryConfig::Local { path: "/nonexistent".into() },
            further: Vec::new(),
            stored_when: StoredWhen::Primary,
            compare_interval: Duration::from_secs(24 * 3600),
            encryption: None,
            backups: Vec::new(),
            retention: None,
            verify: crate::config::Verify { check: None, scrub: None, read_what_costs: false, rate: 1 },
        }
    }

    /// One life, to its end.
    fn live(&mut self, life: &Life) -> Result<()> {
        self.written = self.written.saturating_add(life.writes).min(FIRST.saturating_add(MOST));
        self.store.heal();
        // Only a kill ends what hangs without a deadline.
        for Trouble { operation, call, fault } in
            life.trouble.iter().filter(|trouble| life.end == End::Kill || trouble.fault != Fault::Hang)
        {
            self.store.inject(Rule::new(*operation, fault.clone()).from_call(*call).times(1));
        }
        let process = process();
        let ended = process.block_on(async {
            let (lost, stop) = (CancellationToken::new(), CancellationToken::new());
            let mut lives = Box::pin(self.stream(life, &lost, &stop));
            tokio::select! {
                ended = &mut lives => return ended,
                () = self.over(life) => {}
            }
            match life.end {
                End::Kill => return Ok(()),
                End::ConnectionLost => lost.cancel(),
                End::Stop | End::Done => stop.cancel(),
            }
            self.store.heal();
            lives.await
        });
        drop(process);
        self.store.heal();
        ended
    }

    async fn over(&self, life: &Life) {
        if life.end != End::Done {
            return tokio::time::sleep(Duration::from_millis(life.ends_after_ms)).await;
        }
        let everything = async {
            while self.reported().durable < self.written {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), everything).await.expect("everything is stored");
    }

    /// As [`Streamer`] does, without a server to connect to.
    async fn stream(&self, life: &Life, lost: &CancellationToken, stop: &CancellationToken) -> Result<()> {
        let (recent, metrics, progress) = (Arc::<Recent>::default(), Arc::new(Metrics::new()?), Arc::<Progress>::default());
        progress.set_commits_wait(life.commits_wait);
        let repository = self.repository().await;
        let params = ConnectionParams::parse("host=/nonexistent", &|_| None)?;
        let streamer = Streamer::new(
            self.config(life),
            params,
            repository.clone(),
            recent.clone(),
            metrics.clone(),
            progress.clone(),
            Queue::nobody(),
        )?;
        let reaper = Reaper::start(repository.clone(), stop.clone());
        let to = Destination { repository, spool: streamer.spool.clone(), recent, metrics, reaper, index: Queue::nobody() };
        let mut uploads = Uploads::new(to, streamer.cluster.upload_parallelism, CancellationToken::new());
        let ended = self.stream_with(&streamer, &mut uploads, life, lost, stop).await;
        uploads.end().await;
        match ended {
            // The agent would begin again after a pause.
            Err(error) if error.downcast_ref::<repository::Error>().is_some_and(begins_again) => Ok(()),
            Err(error) if !lost.is_cancelled() => Err(error),
            _ => Ok(()),
        }
    }

    async fn stream_with(
        &self,
        streamer: &Streamer,
        uploads: &mut Uploads,
        life: &Life,
        lost: &CancellationToken,
        stop: &CancellationToken,
    ) -> Result<Ended> {
        streamer.hand_over_leftovers(streamer.spool.leftovers()?.whole, uploads).await?;
        if !streamer.settle_spool(uploads, stop).await? {
            return Ok(Ended::Stopped);
        }
        let history = TimelineHistory::root(TimelineId::FIRST);
        let stored = streamer.newest_stored(&history).await?;
        let server = Identity { system: identity().system_identifier, timeline: TimelineId::FIRST, flush: self.written };
        let host = streamer.params.hosts()[0].clone();
        let start = streamer.position_by(Some(self.reported().slot), &stored, (&host, &server), &history).await?;
        let mut connection = Sender {
            at: start.at.lsn,
            written: self.written,
            message: life.message,
            reported: self.reported.clone(),
            progress: streamer.progress.clone(),
            lost: lost.clone(),
            other_from: self.other_from,
        };
        let session = Session {
            connection: &mut connection,
            start,
            acknowledge: streamer.cluster.acknowledge,
            spool: &streamer.spool,
            spool_limit: streamer.cluster.spool_limit.0,
            upload_interval: streamer.cluster.upload_interval,
            upload_parallelism: streamer.cluster.upload_parallelism,
            identity: streamer.repository.identity(),
            uploads,
            progress: &streamer.progress,
            notes: &streamer.notes,
            params: &streamer.params,
            metrics: &streamer.metrics,
        };
        session.run(stop).await
    }

    /// The power went: what was not fsynced is gone from the unfinished files. No more was confirmed than was fsynced, so at most that is left.
    fn lose_unsynced(&self) {
        let flushed = self.reported().flushed;
        let number = identity().segment_size.segment_of(flushed);
        for entry in std::fs::read_dir(self.spool.path().join("spool")).into_iter().flatten().flatten() {
            let name = entry.file_name().into_string().unwrap();
            if name == format!("{}.writing", segment(number.get())) {
                let file = std::fs::File::options().write(true).open(entry.path()).unwrap();
                let fsynced = flushed.bytes_since(number.start(identity().segment_size));
                file.set_len(file.metadata().unwrap().len().min(fsynced)).unwrap();
            }
        }
    }

    /// Everything before the flush position can be put together, and is what the server wrote. Of the spool, as far as whole records reach: no
    /// commit waits for less.
    fn look(&self) {
        let mut to = self.reported().flushed;
        if self.acknowledge == Acknowledge::Spool {
            let start = identity().segment_size.align_down(to);
            to = valid_end(start, identity().segment_size, &wal(start, to));
        }
        process().block_on(async {
            let finder = Finder::new(self.repository().await);
            let mut from = FIRST;
            while from < to {
                let number = identity().segment_size.segment_of(from);
                let end = number.end(identity().segment_size).min(to);
                let bytes = end.bytes_since(from) as usize;
                let found = self.stored(&finder, number).await;
                let held = match (&found, self.acknowledge) {
                    (Ok(held), _) if held.len() >= bytes => held.clone(),
                    (found, Acknowledge::Repository) => {
                        let found = found.as_ref().map(Bytes::len);
                        panic!("{to} is confirmed; of {} the store gives {found:?}; there are {:#?}", segment(number.get()), self.state())
                    }
                    (_, Acknowledge::Spool) => self.spooled(number),
                };
                assert!(
                    held.len() >= bytes,
                    "{to} is confirmed; of {} there are {} bytes; {:#?}",
                    segment(number.get()),
                    held.len(),
                    self.state()
                );
                assert!(held[..bytes] == wal(from, end), "{} is not what the server wrote", segment(number.get()));
                from = end;
            }
        });
    }

    /// Files of the spool and what was asked of the store, for a message.
    fn state(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.spool.path().join("spool")).into_iter().flatten().flatten();
        let files = entries.map(|entry| format!("{:?} {}", entry.file_name(), entry.metadata().map_or(0, |data| data.len())));
        files.chain(self.store.calls().iter().map(|call| format!("{call:?}"))).collect()
    }

    /// What of a segment the store gives to `restore_command`, without what it is filled up with.
    async fn stored(&self, finder: &Finder, number: SegmentNumber) -> Result<Bytes, String> {
        match finder.find(walkeep_core::WalFileName::Segment(segment(number.get())), None).await {
            Ok(Found::Whole(crate::fetch::content::Content::Memory(content))) => Ok(content),
            Ok(Found::Whole(content)) => Err(format!("{content:?} without a folder")),
            Ok(Found::Tail { content, wal, .. }) => Ok(content.slice(..wal as usize)),
            Ok(Found::Absent(reason)) => Err(reason),
            Err(trouble) => Err(trouble.to_string()),
        }
    }

    fn spooled(&self, number: SegmentNumber) -> Bytes {
        let spool = crate::spool::Spool::open(&self.spool.path().join("spool"), identity().segment_size).unwrap();
        let name = segment(number.get());
        Bytes::from(spool.read(name).or_else(|_| spool.read_unfinished(name)).unwrap_or_default())
    }
}

/// What is over at the next attempt: a put of the life before may have arrived after this one had looked.
fn begins_again(error: &repository::Error) -> bool {
    error.is_mendable() || matches!(error, repository::Error::Overtaken { .. })
}

fn keeps_the_promise(acknowledge: Acknowledge, lives: &[Life]) {
    let mut world = World::new(acknowledge);
    for life in lives {
        world.live(life).unwrap();
        if acknowledge == Acknowledge::Spool && life.end == End::Kill && life.commits_wait {
            world.lose_unsynced();
        }
        world.look();
    }
    // In peace everything gets there.
    world.live(&in_peace(0)).unwrap();
    assert_eq!(world.reported().flushed, world.written);
    world.acknowledge = Acknowledge::Repository;
    world.look();
}

/// Until everything is stored, `writes` more bytes too.
fn in_peace(writes: u64) -> Life {
    let (message, upload_interval_ms) = (MESSAGE, 1);
    Life { writes, message, trouble: vec![], commits_wait: true, upload_interval_ms, ends_after_ms: 0, end: End::Done }
}

/// A segment and some of the next one are stored, and the last report did not reach the server any more.
fn with_a_report_lost() -> World {
    let mut world = World::new(Acknowledge::Repository);
    world.live(&in_peace(SIZE + 300_000)).unwrap();
    let before = FIRST.saturating_add(SIZE + 1000);
    *world.reported.lock().unwrap() = Reported { slot: before, flushed: before, durable: before };
    world
}

/// The stream then begins with the segment before, to compare it. What is stored of the next one is not stored again.
#[test]
fn parts_behind_a_compared_segment_go_on() {
    let mut world = with_a_report_lost();
    let puts = world.store.count(Operation::Put);
    world.live(&in_peace(0)).unwrap();
    assert_eq!(world.reported().slot, world.written);
    assert_eq!(world.store.count(Operation::Put), puts);
}

/// Nor is anything put beside it that a copy of the server has written instead.
#[test]
fn a_copy_that_differs_within_the_unfinished_segment_is_a_conflict() {
    let mut world = with_a_report_lost();
    world.other_from = FIRST.saturating_add(SIZE + 200_000);
    let puts = world.store.count(Operation::Put);
    let refused = world.live(&in_peace(100_000)).unwrap_err();
    assert!(matches!(refused.downcast_ref(), Some(repository::Error::Conflict { .. })), "{refused:#}");
    assert_eq!(world.store.count(Operation::Put), puts);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 50, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn confirmed_is_restorable_from_the_store(lives in prop::collection::vec(life(), 1..6)) {
        keeps_the_promise(Acknowledge::Repository, &lives);
    }

    #[test]
    fn confirmed_is_in_the_store_or_fsynced(lives in prop::collection::vec(life(), 1..6)) {
        keeps_the_promise(Acknowledge::Spool, &lives);
    }
}
