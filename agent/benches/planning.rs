//! How long a plan takes over an archive of a million segments, and how many requests.
//!
//!     cargo bench -p walkeep --bench planning            1,000,000 segments of 16 MiB: a year at 0.5 MB/s
//!     cargo bench -p walkeep --bench planning -- 50000   so many
//!
//! The catalog is generated: a local directory with a file for each segment, a backup each week, a digest for every 64 segments as the
//! agent would have stored them, folded by the same code. The segments that a plan reads hold WAL, the others a few bytes: a plan that read one of these
//! would fail. Each call takes 5 ms longer than the directory does. Median of several targets of each kind; every plan begins with nothing known.
// A benchmark is run by a person: its figures go to the terminal, and what fails shall end it.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use chrono::DateTime;
use walkeep::index::fold;
use walkeep::planning::{Around, Share, View};
use walkeep::repository::{ClusterIdentity, ClusterRepository, Repository};
use walkeep_core::backup::{BackupMethod, BackupRecord};
use walkeep_core::index::{Digest, Indexer, Level};
use walkeep_core::layout::{BackupId, ClusterLayout};
use walkeep_core::plan::estimate::Rates;
use walkeep_core::sha256::Sha256Sum;
use walkeep_core::target::{RecoveryTarget, RestorePointName, TargetKind};
use walkeep_core::{Lsn, MajorVersion, PgTimestamp, SegmentNumber, SegmentSize, SystemIdentifier, TimelineId, WalFileName};
use walkeep_store::{Fault, FaultyStore, LocalStore, Operation, Rule, SharedStore};

const SIZE: SegmentSize = SegmentSize::DEFAULT;
const SYSTEM: SystemIdentifier = SystemIdentifier::new(7_000_000_000_000_000_001);
const LATENCY: Duration = Duration::from_millis(5);
/// Segments between two backups: a week.
const WEEK: u64 = 19_231;
/// Microseconds between two segments.
const STEP: i64 = 31_450_000;
/// Where the generated archive begins: 2025-11-21.
const BEGIN: i64 = 817_000_000_000_000;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let segments: u64 = arguments.first().map_or(1_000_000, |text| text.parse().expect("a number of segments"));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(run(segments));
}

async fn run(segments: u64) {
    let folder = tempfile::tempdir().unwrap();
    let began = Instant::now();
    let store: SharedStore = Arc::new(LocalStore::create(folder.path()).await.unwrap());
    let fast = over(store.clone()).await;
    let wanted: Vec<u64> = (1..10).map(|tenth| segments * tenth / 10 + 77).filter(|number| *number < segments).collect();
    generate(folder.path(), &fast, segments, &wanted).await;
    println!("{segments} segments made in {:.0} s", began.elapsed().as_secs_f64());

    let time = |number: u64| PgTimestamp::from_micros(BEGIN + number as i64 * STEP + 1_500_000);
    type Kind = Box<dyn Fn(u64) -> TargetKind>;
    let kinds: [(&str, Kind); 5] = [
        ("--at", Box::new(move |number| TargetKind::Time(time(number)))),
        ("--xid", Box::new(|number| TargetKind::Xid(xid(number) + 1))),
        ("--lsn", Box::new(|number| TargetKind::Lsn(SegmentNumber::new(number).start(SIZE).saturating_add(80)))),
        ("--restore-point", Box::new(|number| TargetKind::RestorePoint(RestorePointName::parse(&format!("point {number}")).unwrap()))),
        ("--latest", Box::new(|_| TargetKind::Latest)),
    ];
    println!("{:<16} {:>9} {:>9} {:>9} {:>9}", "target", "requests", "most", "seconds", "most");
    for (name, kind) in kinds {
        let (mut requests, mut seconds): (Vec<usize>, Vec<f64>) = Default::default();
        for number in &wanted {
            let slow = Arc::new(FaultyStore::new(store.clone()));
            [Operation::Get, Operation::List].into_iter().for_each(|operation| slow.inject(Rule::new(operation, Fault::Delay(LATENCY))));
            let repository = Arc::new(over(slow.clone()).await);
            let before = slow.calls().len();
            let began = Instant::now();
            let around = Around { server: Err("not asked".into()), rates: Rates::default(), share: Share::Part };
            let mut view = View::load(repository).await.unwrap();
            let plan = view.plan(&RecoveryTarget::new(kind(*number)), &around, &mut |_, _| {}).await.unwrap().unwrap();
            seconds.push(began.elapsed().as_secs_f64());
            requests.push(slow.calls().len() - before);
            let last = plan.last_replayed.expect("commits are replayed").xid;
            assert!(name == "--latest" || last == xid(*number) + 1 || last == xid(*number), "{name} {number}: {last}");
        }
        requests.sort_unstable();
        seconds.sort_by(f64::total_cmp);
        let middle = requests.len() / 2;
        println!(
            "{name:<16} {:>9} {:>9} {:>9.3} {:>9.3}",
            requests[middle],
            requests.last().unwrap(),
            seconds[middle],
            seconds.last().unwrap()
        );
    }
}

async fn over(store: SharedStore) -> ClusterRepository {
    let identity = ClusterIdentity {
        system_identifier: SYSTEM,
        major_version: MajorVersion::new(15),
        segment_size: SIZE,
        since: DateTime::UNIX_EPOCH,
        form: Default::default(),
    };
    ClusterRepository::new(Repository::create(store).await.unwrap(), "main".parse().unwrap(), identity, 3)
}

/// The first of the three transactions of a segment.
fn xid(number: u64) -> u32 {
    1000 + 3 * number as u32
}

async fn generate(root: &Path, repository: &ClusterRepository, segments: u64, wanted: &[u64]) {
    let layout = ClusterLayout::new(&"main".parse().unwrap(), SYSTEM);
    let name = |number: u64| WalFileName::Segment(SegmentNumber::new(number).name(TimelineId::FIRST, SIZE));
    let mut folder = None;
    let mut summaries = Vec::new();
    // What every segment says, moved to its place: decoding a million of them would be another benchmark.
    let pattern = Indexer::new(SegmentNumber::new(0), SIZE).segment(&content(0)).unwrap().summary;
    for number in 0..segments {
        let key = root.join(layout.wal_key(name(number)));
        if folder.as_deref() != key.parent() {
            folder = key.parent().map(Path::to_owned);
            std::fs::create_dir_all(folder.as_ref().unwrap()).unwrap();
        }
        let is_read = |wanted: &u64| (*wanted..=*wanted + 1).contains(&number) || number % WEEK == 0;
        match wanted.iter().any(is_read) {
            true => drop(repository.put_wal(name(number), Bytes::from(content(number))).await.unwrap()),
            false => std::fs::write(&key, b"not read").unwrap(),
        }
        if number % WEEK == 0 {
            repository.commit_backup(&backup(number)).await.unwrap();
        }
        summaries.push(moved(&pattern, number));
        let next = SegmentNumber::new(number + 1);
        if Level::SEGMENTS.window(next).first == next || number + 1 == segments {
            let digest = Digest::of(TimelineId::FIRST, Level::SEGMENTS, std::mem::take(&mut summaries), SIZE).unwrap();
            repository.put_digest(&digest).await.unwrap();
            for level in [1, 2].map(|level| Level::new(level).unwrap()) {
                if level.window(next).first == next {
                    fold(repository, TimelineId::FIRST, level, SegmentNumber::new(number)).await.unwrap();
                }
            }
        }
    }
}

fn moved(pattern: &walkeep_core::index::Summary, number: u64) -> walkeep_core::index::Summary {
    let mut summary = pattern.clone();
    let start = SegmentNumber::new(number).start(SIZE).get();
    let place = |lsn: &mut Lsn| *lsn = Lsn::new(lsn.get() + start);
    let time = |time: &mut PgTimestamp| *time = PgTimestamp::from_micros(time.micros() + number as i64 * STEP);
    summary.segments = vec![walkeep_core::index::Run::single(SegmentNumber::new(number))];
    [&mut summary.records.from, &mut summary.records.to].into_iter().for_each(place);
    let ended = summary.transactions.as_mut().unwrap();
    for transaction in [&mut ended.first, &mut ended.last].into_iter().chain(&mut ended.last_commit) {
        transaction.xid += 3 * number as u32;
        time(&mut transaction.time);
        [&mut transaction.start, &mut transaction.end].into_iter().for_each(place);
    }
    [&mut ended.lowest, &mut ended.highest].into_iter().for_each(time);
    [&mut ended.oldest_xid, &mut ended.newest_xid].into_iter().for_each(|xid| *xid += 3 * number as u32);
    summary.clock.iter_mut().for_each(time);
    summary.rates.iter_mut().for_each(|rate| time(&mut rate.minute));
    for entry in &mut summary.entries {
        [&mut entry.lsn, &mut entry.end].into_iter().for_each(place);
        entry.time.iter_mut().for_each(time);
        if let walkeep_core::journal::Happening::RestorePoint { name } = &mut entry.what {
            *name = format!("point {number}");
        }
    }
    // A restore point a segment would be another server.
    if number % 1000 > 100 {
        summary.entries.clear();
    }
    summary
}

/// A segment with three commits, a restore point, and a switch to the next.
fn content(number: u64) -> Vec<u8> {
    let start = SegmentNumber::new(number).start(SIZE).get();
    let mut segment = vec![0; SIZE.bytes() as usize];
    for page in (0..segment.len()).step_by(8192) {
        let long = page == 0;
        put(&mut segment, page, &0xD110u16.to_le_bytes());
        put(&mut segment, page + 2, &(if long { 2u16 } else { 0 }).to_le_bytes());
        put(&mut segment, page + 4, &1u32.to_le_bytes());
        put(&mut segment, page + 8, &(start + page as u64).to_le_bytes());
    }
    put(&mut segment, 24, &SYSTEM.get().to_le_bytes());
    put(&mut segment, 32, &(SIZE.bytes() as u32).to_le_bytes());
    put(&mut segment, 36, &8192u32.to_le_bytes());
    let time = |second: i64| (BEGIN + number as i64 * STEP + second * 1_000_000).to_le_bytes().to_vec();
    let mut point = time(2);
    point.extend_from_slice(format!("point {number}").as_bytes());
    point.resize(72, 0);
    let records = [
        (xid(number), 1, 0, time(0)),
        (xid(number) + 1, 1, 0, time(1)),
        (0, 0, 0x70, point),
        (xid(number) + 2, 1, 0, time(20)),
        (0, 0, 0x40, vec![]),
    ];
    let (mut at, mut previous) = (40, 0);
    for (xid, manager, info, data) in records {
        previous = record(&mut segment, start, at, previous, (xid, manager, info), &data);
        at = (at + 24 + if data.is_empty() { 0 } else { 2 + data.len() }).next_multiple_of(8);
    }
    segment
}

fn put(segment: &mut [u8], at: usize, bytes: &[u8]) {
    segment[at..at + bytes.len()].copy_from_slice(bytes);
}

/// Writes a record; answers its position, which the next one names.
fn record(segment: &mut [u8], start: u64, at: usize, previous: u64, (xid, manager, info): (u32, u8, u8), data: &[u8]) -> u64 {
    let body = if data.is_empty() { Vec::new() } else { [&[255, data.len() as u8], data].concat() };
    let mut header = Vec::new();
    header.extend_from_slice(&(24 + body.len() as u32).to_le_bytes());
    header.extend_from_slice(&xid.to_le_bytes());
    header.extend_from_slice(&previous.to_le_bytes());
    header.extend_from_slice(&[info, manager, 0, 0]);
    let crc = crc32c::crc32c_append(crc32c::crc32c(&body), &header);
    header.extend_from_slice(&crc.to_le_bytes());
    put(segment, at, &header);
    put(segment, at + 24, &body);
    start + at as u64
}

fn backup(number: u64) -> BackupRecord {
    let start_lsn = SegmentNumber::new(number).start(SIZE).saturating_add(40);
    let at = |second: i64| PgTimestamp::from_micros(BEGIN + number as i64 * STEP + second * 1_000_000).to_utc().unwrap();
    BackupRecord {
        format: BackupRecord::FORMAT,
        id: BackupId::new(at(0), start_lsn),
        cluster: "main".into(),
        system_identifier: SYSTEM,
        label: "weekly".into(),
        timeline: TimelineId::FIRST,
        stop_timeline: None,
        start_lsn,
        stop_lsn: start_lsn.saturating_add(40),
        checkpoint_lsn: None,
        started_at: at(0),
        ended_at: at(1),
        server_version_num: 150_018,
        major_version: MajorVersion::new(15),
        segment_size: SIZE,
        method: BackupMethod::BaseBackup,
        from_standby: false,
        files: 0,
        bytes: 0,
        bytes_stored: 0,
        bytes_referenced: 0,
        tablespaces: Vec::new(),
        manifest_sha256: Sha256Sum::new([0; 32]),
        manifest_pieces: 1,
        parent: None,
        keep: None,
        due: None,
        data_checksums: None,
        damage: None,
    }
}
