//! Against a store in memory with a script of faults. The rule of all of them: whatever happens, the destination is untouched or exact.

use std::collections::BTreeMap;
use std::ops::Range;
use std::os::unix::fs::PermissionsExt;

use async_trait::async_trait;
use proptest::prelude::*;
use walkeep_core::layout::{ObjectName, PartName};
use walkeep_core::{Lsn, MajorVersion, SegmentName, SegmentSize, SystemIdentifier};
use walkeep_store::{Error as StoreError, ErrorKind, Key, ListRequest, Listed, Page, Put, SharedStore, Store};

use bytes::Bytes;

use super::*;
use crate::codec::{self, Description};
use crate::repository::{ClusterIdentity, Repository};

const SYSTEM: SystemIdentifier = SystemIdentifier::new(7_000_000_000_000_000_001);
const OLD: &[u8] = b"what was at the destination before";

#[derive(Debug, Clone, Copy)]
enum Fault {
    Fails(ErrorKind),
    /// The first bytes only: so many hundredths.
    Cut(usize),
    /// One bit is wrong, so many hundredths into the object.
    Flipped(usize),
    Hangs,
}

type Script = Box<dyn Fn(&str, usize) -> Option<Fault> + Send + Sync>;

/// A store whose n-th call for a key (or listing, under its prefix) may go wrong.
#[derive(Default)]
struct Scripted {
    objects: Mutex<BTreeMap<String, Bytes>>,
    calls: Mutex<Vec<String>>,
    script: Mutex<Option<Script>>,
    most_at_once: Mutex<(usize, usize)>,
}

impl std::fmt::Debug for Scripted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Scripted")
    }
}

impl Scripted {
    fn fault(&self, action: &str, place: &str) -> Option<Fault> {
        let call = format!("{action} {place}");
        let mut calls = self.calls.lock().unwrap();
        calls.push(call.clone());
        let nth = calls.iter().filter(|earlier| **earlier == call).count();
        self.script.lock().unwrap().as_ref().and_then(|script| script(&call, nth))
    }

    fn script(&self, script: impl Fn(&str, usize) -> Option<Fault> + Send + Sync + 'static) {
        *self.script.lock().unwrap() = Some(Box::new(script));
    }

    /// Calls so far whose text has this in it; forgets them all.
    fn calls(&self, has: &str) -> usize {
        std::mem::take(&mut *self.calls.lock().unwrap()).iter().filter(|call| call.contains(has)).count()
    }
}

#[async_trait]
impl Store for Scripted {
    fn url(&self) -> String {
        "memory:".into()
    }

    async fn put_if_absent(&self, key: &Key, body: Bytes) -> walkeep_store::Result<Put> {
        match self.objects.lock().unwrap().insert(key.as_str().into(), body) {
            None => Ok(Put::Created),
            Some(_) => Err(StoreError::new(ErrorKind::AlreadyExists, "put", key)),
        }
    }

    async fn get(&self, key: &Key, _range: Option<Range<u64>>) -> walkeep_store::Result<Bytes> {
        let fault = self.fault("get", key.as_str());
        {
            let mut now = self.most_at_once.lock().unwrap();
            now.0 += 1;
            now.1 = now.1.max(now.0);
        }
        tokio::task::yield_now().await;
        self.most_at_once.lock().unwrap().0 -= 1;
        let body = self.objects.lock().unwrap().get(key.as_str()).cloned();
        let body = body.ok_or_else(|| StoreError::new(ErrorKind::NotFound, "get", key));
        match fault {
            None => body,
            Some(Fault::Fails(kind)) => Err(StoreError::new(kind, "get", key)),
            Some(Fault::Cut(at)) => body.map(|body| body.slice(..body.len() * at / 100)),
            Some(Fault::Flipped(at)) => body.map(|body| {
                let mut bytes = body.to_vec();
                let at = bytes.len() * at / 100;
                bytes[at] ^= 1;
                bytes.into()
            }),
            Some(Fault::Hangs) => std::future::pending().await,
        }
    }

    async fn list(&self, request: &ListRequest) -> walkeep_store::Result<Page> {
        match self.fault("list", &request.prefix) {
            Some(Fault::Fails(kind)) => return Err(StoreError::at(kind, "list", &request.prefix)),
            Some(Fault::Hangs) => std::future::pending().await,
            _ => {}
        }
        // One object a page: pages must be followed.
        let objects = self.objects.lock().unwrap();
        let after = |key: &String| request.start_after.as_ref().is_none_or(|after| key > after);
        let mut matching = objects.iter().filter(|(key, _)| key.starts_with(&request.prefix) && after(key));
        let listed = matching.next().map(|(key, body)| Listed {
            key: key.parse().unwrap(),
            size: body.len() as u64,
            modified: std::time::UNIX_EPOCH,
            class: None,
            storage_class: None,
        });
        let next = listed.as_ref().map(|listed| listed.key.to_string());
        Ok(Page { objects: listed.into_iter().collect(), folders: Vec::new(), next, foreign: 0 })
    }

    async fn delete(&self, key: &Key) -> walkeep_store::Result<()> {
        self.objects.lock().unwrap().remove(key.as_str());
        Ok(())
    }

    async fn probe(&self, _scratch: &Key) -> walkeep_store::Result<walkeep_store::Probed> {
        Ok(walkeep_store::Probed::Removed)
    }
}

/// A repository, a fetcher and a destination that holds [`OLD`].
struct Rig {
    store: Arc<Scripted>,
    repository: Arc<ClusterRepository>,
    fetcher: Fetcher,
    folder: tempfile::TempDir,
    size: SegmentSize,
}

impl Rig {
    async fn new() -> Self {
        Self::with(1, PrefetchConfig::NONE).await
    }

    async fn with(mib: u64, prefetch: PrefetchConfig) -> Self {
        let store = Arc::new(Scripted::default());
        let size = SegmentSize::new(mib << 20).unwrap();
        let shared: SharedStore = store.clone();
        let identity = ClusterIdentity {
            system_identifier: SYSTEM,
            major_version: MajorVersion::new(17),
            segment_size: size,
            since: chrono::DateTime::UNIX_EPOCH,
            form: Default::default(),
        };
        let repository = Repository::create(shared).await.unwrap();
        let repository = Arc::new(ClusterRepository::new(repository, "main".parse().unwrap(), identity, 1));
        let config = FetchConfig { prefetch, ..FetchConfig::default() };
        let fetcher = Fetcher::new(Arc::clone(&repository), config, &CancellationToken::new());
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("RECOVERYXLOG"), OLD).unwrap();
        store.calls("");
        Self { store, repository, fetcher, folder, size }
    }

    /// Gives up at the first error that only waiting could help.
    async fn impatient() -> Self {
        let mut rig = Self::new().await;
        rig.fetcher.config.deadline = Duration::ZERO;
        rig
    }

    fn destination(&self) -> PathBuf {
        self.folder.path().join("RECOVERYXLOG")
    }

    fn segment(&self, timeline: u32, number: u64) -> SegmentName {
        walkeep_core::SegmentNumber::new(number).name(walkeep_core::TimelineId::new(timeline).unwrap(), self.size)
    }

    /// Bytes that no other segment has, different in each of its stretches, behind the header of a segment of PostgreSQL 15.
    fn content(&self, segment: SegmentName) -> Bytes {
        let stretch = |n: u32| [segment.to_string().as_bytes(), &n.to_be_bytes(), &[0xA5; 36]].concat().repeat(256);
        let stretches = (0..self.size.bytes() as u32 >> 14).map(stretch);
        let mut content = stretches.collect::<Vec<_>>().concat();
        let start = segment.number(self.size).map_or(0, |number| number.start(self.size).get());
        let header = [
            &0xD110u16.to_le_bytes()[..],
            &2u16.to_le_bytes(),
            &segment.timeline().get().to_le_bytes(),
            &start.to_le_bytes(),
            &[0; 8],
            &self.repository.identity().system_identifier.get().to_le_bytes(),
            &(self.size.bytes() as u32).to_le_bytes(),
            &8192u32.to_le_bytes(),
        ]
        .concat();
        content[..header.len()].copy_from_slice(&header);
        content.into()
    }

    async fn put(&self, segment: SegmentName) {
        self.repository.put_wal(WalFileName::Segment(segment), self.content(segment)).await.unwrap();
    }

    async fn put_part(&self, segment: SegmentName, range: Range<u32>) {
        let content = self.content(segment).slice(range.start as usize..range.end as usize);
        self.repository.put_part(PartName { segment, from: range.start, to: range.end, epoch: 1 }, content).await.unwrap();
    }

    async fn put_history(&self, timeline: u32, text: &'static str) {
        let file = WalFileName::History(walkeep_core::TimelineId::new(timeline).unwrap());
        self.repository.put_wal(file, Bytes::from_static(text.as_bytes())).await.unwrap();
    }

    async fn ask(&self, file: WalFileName) -> Outcome {
        self.fetcher.fetch(file, &self.destination(), FetchMode::default()).await
    }

    /// As somebody who is no recovery asks.
    async fn fetch_elsewhere(&self, segment: SegmentName) -> Outcome {
        let destination = self.folder.path().join("elsewhere");
        self.fetcher.fetch(WalFileName::Segment(segment), &destination, FetchMode::default()).await
    }

    /// Asks for a segment, proves that the destination is exact or untouched, and answers a word about the outcome.
    async fn fetch(&self, segment: SegmentName) -> String {
        std::fs::write(self.destination(), OLD).unwrap();
        let outcome = self.ask(WalFileName::Segment(segment)).await;
        let there = std::fs::read(self.destination()).unwrap();
        assert_eq!(std::fs::read_dir(self.folder.path()).unwrap().count(), 1, "no temporary file is left");
        match outcome {
            Outcome::Done => {
                assert!(there == self.content(segment), "{segment} is exact");
                "done".into()
            }
            Outcome::Absent { why } => {
                assert_eq!(there, OLD);
                format!("absent: {why}")
            }
            Outcome::Failed { why, hint, .. } => {
                assert_eq!(there, OLD);
                assert!(!hint.is_empty());
                format!("failed: {why:#}")
            }
        }
    }
}

fn failed_with(outcome: &str, words: &str) {
    assert!(outcome.starts_with("failed: ") && outcome.contains(words), "{outcome:?} should be a failure about {words:?}");
}

#[tokio::test]
async fn a_file_takes_the_place_of_another_whole_and_private() {
    let rig = Rig::new().await;
    let segment = rig.segment(1, 3);
    rig.put(segment).await;
    std::fs::write(rig.folder.path().join(".RECOVERYXLOG.1-1.walkeep-tmp"), b"of a killed process").unwrap();
    std::fs::set_permissions(rig.destination(), std::fs::Permissions::from_mode(0o666)).unwrap();
    assert_eq!(rig.fetch(segment).await, "done");
    assert_eq!(std::fs::metadata(rig.destination()).unwrap().permissions().mode() & 0o7777, 0o600);
    rig.put_history(2, "1\t0/300148\tx\n").await;
    assert!(matches!(rig.ask("00000002.history".parse().unwrap()).await, Outcome::Done));
    assert_eq!(std::fs::read(rig.destination()).unwrap(), b"1\t0/300148\tx\n");
}

#[tokio::test]
async fn absent_is_said_when_it_is_proven() {
    let rig = Rig::new().await;
    assert!(rig.fetch(rig.segment(1, 3)).await.starts_with("absent: "));
    rig.put(rig.segment(1, 2)).await;
    rig.put(rig.segment(2, 9)).await;
    assert!(rig.fetch(rig.segment(1, 3)).await.starts_with("absent: "), "neither earlier WAL nor another timeline speaks against it");
    for file in ["00000003.history", "00000001.history", "000000010000000000000003.partial", "000000010000000000000002.00000028.backup"] {
        assert!(matches!(rig.ask(file.parse().unwrap()).await, Outcome::Absent { .. }), "{file}");
    }
}

#[tokio::test]
async fn no_error_is_ever_taken_for_absent() {
    use ErrorKind::*;
    for kind in [NotFound, AlreadyExists, Denied, Transient, Corrupt, Unusable, Cancelled] {
        for call in ["walkeep.json", "000000010000000000000003.zst", "list"] {
            // An object that is not there is what it is about.
            if kind == NotFound && call.starts_with('0') {
                continue;
            }
            let rig = Rig::impatient().await;
            rig.store.script(move |text, _| text.contains(call).then_some(Fault::Fails(kind)));
            failed_with(&rig.fetch(rig.segment(1, 3)).await, "cannot fetch 000000010000000000000003");
        }
    }
}

#[tokio::test]
async fn without_its_marker_a_repository_proves_nothing() {
    let rig = Rig::new().await;
    rig.store.objects.lock().unwrap().clear();
    failed_with(&rig.fetch(rig.segment(1, 3)).await, "no Walkeep repository");
    let history = rig.ask("00000002.history".parse().unwrap()).await;
    assert!(matches!(history, Outcome::Failed { .. }));
}

#[tokio::test(start_paused = true)]
async fn an_outage_is_waited_for() {
    let rig = Rig::new().await;
    let segment = rig.segment(1, 3);
    rig.put(segment).await;
    rig.store.script(|_, nth| (nth < 6).then_some(Fault::Fails(ErrorKind::Transient)));
    assert_eq!(rig.fetch(segment).await, "done");
    assert_eq!(rig.store.calls("get"), 6);
}

#[tokio::test(start_paused = true)]
async fn a_standby_waits_less() {
    let mut rig = Rig::new().await;
    rig.fetcher.config.standby_deadline = Duration::ZERO;
    rig.store.script(|_, nth| (nth < 6).then_some(Fault::Fails(ErrorKind::Transient)));
    let segment = WalFileName::Segment(rig.segment(1, 3));
    let outcome = rig.fetcher.fetch(segment, &rig.destination(), FetchMode { standby: true }).await;
    assert!(matches!(outcome, Outcome::Failed { .. }));
    assert_eq!(rig.store.calls("get"), 1);
}

#[tokio::test(start_paused = true)]
async fn damage_on_the_way_is_read_again_and_damage_in_the_store_is_told() {
    for fault in [Fault::Cut(0), Fault::Cut(1), Fault::Cut(99), Fault::Flipped(5), Fault::Flipped(60), Fault::Fails(ErrorKind::Corrupt)] {
        let rig = Rig::new().await;
        let segment = rig.segment(1, 3);
        rig.put(segment).await;
        rig.store.script(move |_, nth| (nth == 1).then_some(fault));
        assert_eq!(rig.fetch(segment).await, "done", "{fault:?}");
        rig.store.script(move |_, _| Some(fault));
        rig.store.calls("");
        failed_with(&rig.fetch(segment).await, "main/7000000000000000001/wal/00000001/00000000/000000010000000000000003.zst");
        assert_eq!(rig.store.calls("get"), 1 + REREADS as usize, "{fault:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_no_whole_segment_of_its_place_is_not_given() {
    let rig = Rig::new().await;
    let (segment, other) = (rig.segment(1, 3), rig.segment(1, 4));
    let offer = |title: SegmentName, system, start, length| {
        let content = rig.content(title).slice(..length);
        let object = codec::encode(&Description::of(title.to_string(), system, start, &content), &content, 1).unwrap();
        let key = rig.repository.layout().wal_key(WalFileName::Segment(segment));
        rig.store.objects.lock().unwrap().insert(key, object);
    };
    let (start, whole) = (Some(Lsn::new(3 << 20)), 1 << 20);
    offer(segment, SYSTEM, start, whole - 1);
    failed_with(&rig.fetch(segment).await, "expected 1048576 bytes, found 1048575");
    offer(segment, SYSTEM, Some(Lsn::new(4 << 20)), whole);
    failed_with(&rig.fetch(segment).await, "begins at 0/300000");
    offer(other, SYSTEM, start, whole);
    failed_with(&rig.fetch(segment).await, "it holds 000000010000000000000004");
    offer(segment, SystemIdentifier::new(1), start, whole);
    failed_with(&rig.fetch(segment).await, "system identifier 1");
    offer(segment, SYSTEM, start, whole);
    assert_eq!(rig.fetch(segment).await, "done");
    failed_with(&rig.fetch("000000010000000000001000".parse().unwrap()).await, "cannot be a segment of this cluster");
}

#[tokio::test]
async fn wal_behind_a_missing_segment_makes_it_a_hole() {
    let rig = Rig::new().await;
    let missing = rig.segment(1, 4095);
    for later in [rig.segment(1, 4096), rig.segment(1, 1 << 20)] {
        rig.put(later).await;
        failed_with(&rig.fetch(missing).await, "hole in the archive: 0000000100000000");
        failed_with(&rig.fetch(missing).await, &later.to_string());
        rig.store.objects.lock().unwrap().retain(|key, _| !key.contains(&later.to_string()));
    }
    rig.put_part(rig.segment(1, 4096), 0..100).await;
    failed_with(&rig.fetch(missing).await, "hole");
}

#[tokio::test]
async fn foreign_objects_and_notes_are_no_wal() {
    let rig = Rig::new().await;
    let folder = "main/7000000000000000001/wal/00000001/00000000";
    for name in ["000000010000000000000004.gz", "000000010000000000000004.gz.tmp", "zzz", "000000010000000000000003.partial"] {
        rig.store.objects.lock().unwrap().insert(format!("{folder}/{name}"), Bytes::new());
    }
    rig.repository.put_wal("000000010000000000000004.00000028.backup".parse().unwrap(), Bytes::from_static(b"x")).await.unwrap();
    rig.repository.put_wal(WalFileName::Partial(rig.segment(1, 3)), Bytes::from_static(b"x")).await.unwrap();
    assert!(rig.fetch(rig.segment(1, 3)).await.starts_with("absent"), "PostgreSQL does not want its .partial either");
    rig.put(rig.segment(1, 5)).await;
    failed_with(&rig.fetch(rig.segment(1, 3)).await, "hole");
}

#[tokio::test]
async fn before_its_timeline_began_a_segment_is_simply_absent() {
    let rig = Rig::new().await;
    rig.put(rig.segment(2, 5)).await;
    failed_with(&rig.fetch(rig.segment(2, 2)).await, "hole");
    rig.put_history(2, "1\t0/300148\tx\n").await;
    assert!(rig.fetch(rig.segment(2, 2)).await.starts_with("absent: "));
    failed_with(&rig.fetch(rig.segment(2, 3)).await, "hole");
}

#[tokio::test]
async fn a_timeline_with_wal_has_a_history() {
    let rig = Rig::new().await;
    rig.put(rig.segment(2, 5)).await;
    let outcome = rig.ask("00000002.history".parse().unwrap()).await;
    assert!(matches!(outcome, Outcome::Failed { .. }), "else two servers would call their timeline 2");
}

#[tokio::test(start_paused = true)]
async fn an_unfinished_segment_is_filled_up_with_zeros() {
    let rig = Rig::new().await;
    let segment = rig.segment(1, 3);
    let tail = |wal: usize| {
        let mut expected = rig.content(segment).to_vec();
        expected[wal..].fill(0);
        expected
    };
    for (range, wal) in [(0..1000, 1000), (500..3000, 3000), (3000..5000, 5000)] {
        rig.put_part(segment, range).await;
        assert!(matches!(rig.ask(WalFileName::Segment(segment)).await, Outcome::Done));
        assert!(std::fs::read(rig.destination()).unwrap() == tail(wal));
    }
    // Nothing may be replayed up to a hole and taken for everything.
    rig.put(rig.segment(1, 4)).await;
    failed_with(&rig.fetch(segment).await, "from byte 5000 on");
    rig.put_part(segment, 5000..1 << 20).await;
    assert_eq!(rig.fetch(segment).await, "done", "all of it is there");
}

/// PostgreSQL would put it in the place of what a standby has streamed, and maybe replayed.
#[tokio::test]
async fn an_unfinished_segment_is_not_given_to_who_has_as_much() {
    let rig = Rig::new().await;
    let segment = rig.segment(1, 3);
    let own = rig.destination().with_file_name(segment.to_string());
    rig.put_part(segment, 0..3000).await;
    let has = |wal: usize| {
        // A segment that was used before: what is behind its WAL is something else.
        let mut content = vec![0x5A; 1 << 20];
        content[..wal].copy_from_slice(&rig.content(segment)[..wal]);
        std::fs::write(&own, content).unwrap();
    };
    for (wal, given) in [(0, true), (2999, true), (3000, false), (8000, false)] {
        has(wal);
        let outcome = rig.ask(WalFileName::Segment(segment)).await;
        assert!(
            if given { matches!(outcome, Outcome::Done) } else { matches!(outcome, Outcome::Absent { .. }) },
            "pg_wal has {wal} bytes: {outcome:?}"
        );
    }
    std::fs::write(&own, &rig.content(segment)[..2000]).unwrap();
    assert!(matches!(rig.ask(WalFileName::Segment(segment)).await, Outcome::Done), "a file that is cut off has less");
    // A finished one is whole: it is given, whatever lies there.
    has(8000);
    rig.put(segment).await;
    assert!(matches!(rig.ask(WalFileName::Segment(segment)).await, Outcome::Done));
    assert!(std::fs::read(rig.destination()).unwrap() == rig.content(segment));
}

/// A server that is given what lies before a hole takes it for the end of the WAL, and opens.
#[tokio::test(start_paused = true)]
async fn a_hole_in_the_parts_is_not_the_end_of_the_wal() {
    let rig = Rig::new().await;
    let segment = rig.segment(1, 3);
    let file = WalFileName::Segment(segment);
    for range in [0..1000, 2000..3000, 3000..4000] {
        rig.put_part(segment, range).await;
    }
    let began = tokio::time::Instant::now();
    failed_with(&rig.fetch(segment).await, "the bytes 000003E8 to 000007D0");
    assert!(began.elapsed() >= LOOK_AGAIN / 2, "it was looked for again: {:?}", began.elapsed());
    // A standby asks again, and does not open by itself.
    assert!(matches!(rig.fetcher.fetch(file, &rig.destination(), FetchMode { standby: true }).await, Outcome::Done));
    assert!(std::fs::read(rig.destination()).unwrap()[1000..].iter().all(|byte| *byte == 0), "what lies beyond the hole is not given");
    // An agent that is at work fills it, and stores more meanwhile.
    let at_work = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        rig.put_part(segment, 5000..6000).await;
        rig.put_part(segment, 1000..2000).await;
    };
    let (given, ()) = tokio::join!(rig.ask(file), at_work);
    assert!(matches!(given, Outcome::Done), "{given:?}");
    assert_eq!(std::fs::read(rig.destination()).unwrap().iter().rposition(|byte| *byte != 0).map(|last| last < 4000), Some(true));
}

#[tokio::test(start_paused = true)]
async fn parts_that_contradict_each_other_are_damage() {
    let rig = Rig::new().await;
    let segment = rig.segment(1, 3);
    rig.put_part(segment, 0..1000).await;
    let part = PartName { segment, from: 500, to: 2000, epoch: 1 };
    rig.repository.put_part(part, Bytes::from(vec![0; 1500])).await.unwrap();
    failed_with(&rig.fetch(segment).await, &rig.repository.layout().key(&ObjectName::Part(part)));
}

#[tokio::test(start_paused = true)]
async fn parts_without_a_beginning_are_not_absence() {
    let rig = Rig::new().await;
    rig.put_part(rig.segment(1, 3), 500..1000).await;
    failed_with(&rig.fetch(rig.segment(1, 3)).await, "its beginning is missing");
}

#[tokio::test(start_paused = true)]
async fn a_segment_that_comes_meanwhile_is_found() {
    let rig = Rig::new().await;
    let segment = rig.segment(1, 3);
    rig.put(segment).await;
    rig.store
        .script(|call, nth| (call.starts_with("get") && call.contains("03.zst") && nth == 1).then_some(Fault::Fails(ErrorKind::NotFound)));
    assert_eq!(rig.fetch(segment).await, "done");
}

const AHEAD: PrefetchConfig = PrefetchConfig { depth: 8, budget: 256 << 20, parallel: 4 };

/// Until nothing is under way.
async fn settled(rig: &Rig) {
    rig.fetcher.prefetch.tasks.close();
    rig.fetcher.prefetch.tasks.wait().await;
    rig.fetcher.prefetch.tasks.reopen();
}

#[tokio::test]
async fn a_forward_reader_finds_what_follows_ready() {
    let rig = Rig::with(1, AHEAD).await;
    for number in 1..=30 {
        rig.put(rig.segment(1, number)).await;
    }
    for (number, ahead) in (1..).zip([2, 4, 8, 8]) {
        assert_eq!(rig.fetch(rig.segment(1, number)).await, "done");
        settled(&rig).await;
        assert_eq!(rig.fetcher.prefetched_bytes(), ahead << 20, "behind segment {number}");
    }
    assert_eq!(rig.store.calls("get"), 4 + 8);
    assert!(rig.store.most_at_once.lock().unwrap().1 <= 4);
    rig.store.script(|call, _| (1..=12).any(|n| call.ends_with(&format!("{n:08X}.zst"))).then_some(Fault::Fails(ErrorKind::Unusable)));
    for number in 5..=12 {
        assert_eq!(rig.fetch(rig.segment(1, number)).await, "done", "was ready");
    }
    settled(&rig).await;
    assert_eq!(rig.store.calls("get"), 8, "each was read once");
    failed_with(&rig.fetch(rig.segment(1, 12)).await, "cannot be used");
}

#[tokio::test]
async fn a_jump_frees_what_was_read_ahead() {
    let rig = Rig::with(1, AHEAD).await;
    for number in 1..=30 {
        rig.put(rig.segment(1, number)).await;
        rig.put(rig.segment(2, number)).await;
    }
    for number in 1..=4 {
        rig.fetch(rig.segment(1, number)).await;
    }
    settled(&rig).await;
    assert_eq!(rig.fetch(rig.segment(1, 4)).await, "done", "the same once more is no jump");
    assert_eq!(rig.fetcher.prefetched_bytes(), 8 << 20);
    rig.store.calls("");
    assert_eq!(rig.fetch(rig.segment(2, 3)).await, "done", "and exact: of the other timeline");
    settled(&rig).await;
    assert_eq!((rig.store.calls("get"), rig.fetcher.prefetched_bytes()), (3, 2 << 20));
}

#[tokio::test]
async fn what_nobody_asks_for_any_more_is_freed() {
    let rig = Rig::with(1, AHEAD).await;
    for number in 1..=30 {
        rig.put(rig.segment(1, number)).await;
    }
    let seconds = async |seconds| {
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(seconds)).await;
        tokio::time::resume();
        // Whoever was woken by that.
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
    };
    for round in 0..2 {
        for number in 1..=4 {
            assert_eq!(rig.fetch(rig.segment(1, number)).await, "done");
        }
        settled(&rig).await;
        seconds(40).await;
        assert_eq!(rig.fetch(rig.segment(1, 4)).await, "done");
        seconds(40).await;
        assert_eq!(rig.fetcher.prefetched_bytes(), 8 << 20, "round {round}: it was asked less than a minute ago");
        seconds(40).await;
        assert_eq!(rig.fetcher.prefetched_bytes(), 0, "round {round}");
    }
}

#[tokio::test]
async fn a_backward_or_wandering_reader_is_not_run_ahead_of() {
    let rig = Rig::with(1, AHEAD).await;
    for number in 1..=30 {
        rig.put(rig.segment(1, number)).await;
    }
    for number in (10..=20).rev().chain([3, 5, 7, 1]) {
        assert!(matches!(rig.fetch_elsewhere(rig.segment(1, number)).await, Outcome::Done));
    }
    settled(&rig).await;
    assert_eq!((rig.store.calls("get"), rig.fetcher.prefetched_bytes()), (15, 0));
    assert!(matches!(rig.fetch_elsewhere(rig.segment(1, 2)).await, Outcome::Done));
    settled(&rig).await;
    assert_eq!(rig.store.calls("get"), 2, "two in a row are a direction");
}

#[tokio::test]
async fn reading_ahead_stops_at_the_end() {
    let rig = Rig::with(1, PrefetchConfig { parallel: 1, ..AHEAD }).await;
    for number in 1..=3 {
        rig.put(rig.segment(1, number)).await;
    }
    for number in 1..=3 {
        assert_eq!(rig.fetch(rig.segment(1, number)).await, "done");
        settled(&rig).await;
    }
    assert_eq!(rig.store.calls("000004.zst"), 1);
    rig.put_part(rig.segment(1, 4), 0..64).await;
    for reached in [64, 128] {
        assert!(matches!(rig.ask(WalFileName::Segment(rig.segment(1, 4))).await, Outcome::Done));
        let given = std::fs::read(rig.destination()).unwrap();
        assert_eq!(given.iter().rposition(|byte| *byte != 0), Some(reached - 1), "an unfinished segment is not kept");
        if reached == 64 {
            rig.put_part(rig.segment(1, 4), 64..128).await;
        }
    }
    rig.store.objects.lock().unwrap().retain(|key, _| !key.contains("parts"));
    rig.put(rig.segment(1, 4)).await;
    rig.put(rig.segment(1, 5)).await;
    assert_eq!(rig.fetch(rig.segment(1, 4)).await, "done");
    settled(&rig).await;
    assert_eq!(rig.fetcher.prefetched_bytes(), 1 << 20, "5 is there, 6 is not");
}

#[tokio::test]
async fn a_request_waits_for_what_is_under_way_and_tries_for_itself() {
    let mut rig = Rig::with(1, AHEAD).await;
    rig.fetcher.config.deadline = Duration::from_millis(20);
    for number in 1..=6 {
        rig.put(rig.segment(1, number)).await;
    }
    // The first read of 3 never ends, that of 4 fails.
    rig.store.script(|call, nth| match nth {
        1 if call.ends_with("3.zst") => Some(Fault::Hangs),
        1 if call.ends_with("4.zst") => Some(Fault::Fails(ErrorKind::Transient)),
        _ => None,
    });
    for number in 1..=6 {
        assert_eq!(rig.fetch(rig.segment(1, number)).await, "done");
    }
    rig.fetcher.close().await;
    assert_eq!(rig.fetcher.prefetched_bytes(), 0);
    failed_with(&rig.fetch(rig.segment(1, 1)).await, "stops");
}

#[tokio::test]
async fn a_fetcher_that_is_dropped_stops_reading() {
    let rig = Rig::with(1, AHEAD).await;
    for number in 1..=2 {
        rig.put(rig.segment(1, number)).await;
    }
    rig.store.script(|call, _| call.ends_with("3.zst").then_some(Fault::Hangs));
    for number in 1..=2 {
        rig.fetch(rig.segment(1, number)).await;
    }
    let tasks = rig.fetcher.prefetch.tasks.clone();
    tasks.close();
    let Rig { fetcher, folder, .. } = rig;
    drop(fetcher);
    tasks.wait().await;
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn a_request_that_is_dropped_leaves_the_destination_alone() {
    // One thread for blocking work, in order: so the test can hold it up and knows when it is done.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(1).build().unwrap();
    runtime.block_on(async {
        let drained = || async { tokio::task::spawn_blocking(|| ()).await.unwrap() };
        let rig = Rig::new().await;
        let (segment, destination) = (rig.segment(1, 3), rig.destination());
        rig.put(segment).await;
        // Dropped before it is polled, in each of its waits, and when it is done.
        let mut finished = false;
        for polls in 0.. {
            std::fs::write(&destination, OLD).unwrap();
            let mut request = Box::pin(rig.fetcher.fetch(WalFileName::Segment(segment), &destination, FetchMode::default()));
            for _ in 1..polls {
                if futures::poll!(&mut request).is_ready() {
                    finished = true;
                    break;
                }
                drained().await;
            }
            if finished {
                break;
            }
            // What the last poll begins does not get far before the request is gone.
            let (release, held) = std::sync::mpsc::channel::<()>();
            let hold = tokio::task::spawn_blocking(move || held.recv());
            if polls > 0 {
                assert!(futures::poll!(&mut request).is_pending() || std::fs::read(&destination).unwrap() == rig.content(segment));
            }
            let before = std::fs::read(&destination).unwrap();
            drop(request);
            drop(release);
            assert!(hold.await.unwrap().is_err());
            drained().await;
            assert!(std::fs::read(&destination).unwrap() == before, "after {polls} polls nothing changes any more");
            assert_eq!(std::fs::read_dir(rig.folder.path()).unwrap().count(), 1);
            assert!(polls < 20);
        }
    });
}

#[tokio::test]
async fn large_segments_stay_within_the_budget() {
    let rig = Rig::with(64, AHEAD).await;
    assert_eq!(rig.fetcher.prefetch.slots, 4);
    let rig = Rig::with(1024, AHEAD).await;
    assert_eq!(rig.fetcher.prefetch.slots, 0);
    let rig = Rig::with(1, PrefetchConfig { budget: 3 << 20, ..AHEAD }).await;
    for number in 1..=12 {
        rig.put(rig.segment(1, number)).await;
    }
    for number in 1..=9 {
        assert_eq!(rig.fetch(rig.segment(1, number)).await, "done");
        assert!(rig.fetcher.prefetched_bytes() <= 3 << 20);
    }
    settled(&rig).await;
    assert_eq!(rig.store.calls("zst"), 9 + 3, "each once, and three more");
}

#[tokio::test]
async fn a_full_disk_is_a_failure_that_leaves_nothing() {
    let rig = Rig::new().await;
    let segment = rig.segment(1, 3);
    rig.put(segment).await;
    let folder = rig.folder.path().join("full");
    std::fs::create_dir(&folder).unwrap();
    let mount = |args: &[&str]| std::process::Command::new(args[0]).args(&args[1..]).arg(&folder).status().is_ok_and(|s| s.success());
    if !mount(&["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs"]) {
        eprintln!("SKIPPED: a small tmpfs cannot be mounted here; that needs root");
        return;
    }
    let outcome = rig.fetcher.fetch(WalFileName::Segment(segment), &folder.join("RECOVERYXLOG"), FetchMode::default()).await;
    let left = std::fs::read_dir(&folder).unwrap().count();
    assert!(mount(&["umount"]));
    assert_eq!(left, 0);
    let Outcome::Failed { why, hint, .. } = outcome else { panic!("{outcome:?}") };
    assert!(format!("{why:#}").contains("No space left") && hint.contains("free space"), "{why:#} {hint}");
}

#[tokio::test]
async fn requests_count_as_activity() {
    let rig = Rig::new().await;
    let before = rig.fetcher.activity().idle_for();
    rig.store.script(|_, _| Some(Fault::Hangs));
    let destination = rig.destination();
    let mut request = Box::pin(rig.fetcher.fetch("00000002.history".parse().unwrap(), &destination, FetchMode::default()));
    assert!(futures::poll!(&mut request).is_pending());
    assert_eq!(rig.fetcher.activity().idle_for(), Duration::ZERO);
    drop(request);
    assert!(rig.fetcher.activity().wait_idle(before, &CancellationToken::new()).await);
}

fn fault() -> impl Strategy<Value = Option<Fault>> {
    use ErrorKind::*;
    let kinds = proptest::sample::select(vec![NotFound, AlreadyExists, Denied, Transient, Corrupt, Unusable, Cancelled]);
    prop_oneof![
        4 => Just(None),
        2 => kinds.prop_map(|kind| Some(Fault::Fails(kind))),
        1 => (0usize..100).prop_map(|at| Some(Fault::Cut(at))),
        1 => (0usize..100).prop_map(|at| Some(Fault::Flipped(at))),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Segments 1 to 6 are stored but for 5, which is a hole; what is asked for is given exactly or not at all, and nothing
    /// that is stored, or lies before what is stored, is called absent.
    #[test]
    fn whatever_goes_wrong_the_destination_is_untouched_or_exact(
        faults in proptest::collection::vec(fault(), 1..40),
        requests in proptest::collection::vec(1u64..8, 1..12),
        forward: bool,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let mut rig = Rig::with(1, PrefetchConfig { depth: 3, budget: 3 << 20, parallel: 2 }).await;
            rig.fetcher.config.deadline = Duration::from_secs(1);
            for number in [1, 2, 3, 4, 6] {
                rig.put(rig.segment(1, number)).await;
            }
            let turn = std::sync::atomic::AtomicUsize::new(0);
            rig.store.script(move |call, _| {
                let fault = faults[turn.fetch_add(1, Ordering::Relaxed) % faults.len()];
                // A store that says of a stored object that it is not there lies; nothing helps against that.
                fault.filter(|fault| !matches!(fault, Fault::Fails(ErrorKind::NotFound)) || call.contains("walkeep.json"))
            });
            let requests = if forward { (1..8).collect() } else { requests };
            for number in requests {
                let outcome = rig.fetch(rig.segment(1, number)).await;
                assert!(number == 7 || !outcome.starts_with("absent"), "{number} {outcome}");
                assert!(![5, 7].contains(&number) || outcome != "done");
            }
        });
    }
}
