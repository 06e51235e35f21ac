//! How fast WAL is decoded on one core, beside `pg_waldump --stats` over the same files.
//!
//!     cargo bench -p walkeep-tests --bench decoder                     real WAL, made here by pgbench
//!     cargo bench -p walkeep-tests --bench decoder -- DIR PG_WALDUMP   the segments of a folder, and the program to compare with
//!
//! Two kinds of WAL: of bulk loading, with large records, and of small transactions without page images, with about 100 bytes a record,
//! which is the worst case. Decoding is page headers, links, CRC, contents and every block reference. The figures are processor time of
//! the one thread, so that other work on the machine counts as little as it can; best and median of several rounds.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use walkeep_core::decoder::{Decoder, first_record};
use walkeep_core::page::{PageHeader, SegmentHeader};
use walkeep_tests::Cluster;
use walkeep_tests::postgres::own_client;

const ROUNDS: usize = 9;
const PIECE: usize = 256 << 10;
/// At least so many bytes are decoded in a round: the kernel may count a thread's time in ticks of 4 ms.
const ROUND: usize = 512 << 20;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    match &arguments[..] {
        [folder, waldump] => compare("the folder's WAL", &segments(Path::new(folder)), Path::new(waldump)),
        [] => {
            let cluster = Cluster::builder().conf("max_wal_size", "4GB").conf("wal_keep_size", "4GB").conf("autovacuum", "off").start();
            let waldump = own_client(cluster.version(), "pg_waldump").expect("a pg_waldump of the default version");
            cluster.pgbench_init(10);
            let before = cluster.switch_wal();
            let (large, _) = split(&cluster, &before);
            compare("bulk loading", &large, &waldump);
            cluster.set("full_page_writes", "off");
            cluster.pgbench_run(&["-M", "prepared", "-c", "4", "-t", "25000"]);
            cluster.switch_wal();
            compare("small transactions", &split(&cluster, &before).1, &waldump);
        }
        _ => panic!("usage: [DIR PG_WALDUMP]"),
    }
}

/// The segments up to `last`, and those after it but for the one that is written.
fn split(cluster: &Cluster, last: &str) -> (Vec<PathBuf>, Vec<PathBuf>) {
    let current = cluster.sql("SELECT pg_walfile_name(pg_current_wal_lsn())");
    let all = segments(&cluster.pg_wal()).into_iter().filter(|path| path.file_name().unwrap().to_str().unwrap() < current.as_str());
    all.partition(|path| path.file_name().unwrap().to_str().unwrap() <= last)
}

fn segments(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut paths: Vec<_> = entries.filter(|path| path.is_file() && path.file_name().is_some_and(|name| name.len() == 24)).collect();
    paths.sort();
    paths
}

fn compare(what: &str, segments: &[PathBuf], waldump: &Path) {
    let wal: Vec<u8> = segments.iter().flat_map(|path| std::fs::read(path).unwrap()).collect();
    let (mut records, mut blocks) = (0, 0);
    let times = ROUND.div_ceil(wal.len());
    let mut rounds: Vec<Duration> = (0..ROUNDS)
        .map(|_| {
            let begin = thread_time();
            (0..times).for_each(|_| (records, blocks) = decode(&wal));
            (thread_time() - begin) / times as u32
        })
        .collect();
    rounds.sort();
    let rate = |time: Duration| wal.len() as f64 / 1e9 / time.as_secs_f64();
    let (best, median) = (rate(rounds[0]), rate(rounds[ROUNDS / 2]));
    println!("{what}: {} MB, {records} records, {blocks} block references", wal.len() / 1_000_000);
    println!("  walkeep-core          best {best:.2} GB/s, median {median:.2} GB/s");
    let (first, last) = (segments.first().unwrap(), segments.last().unwrap());
    let mut dumps: Vec<Duration> = (0..3).map(|_| dump(waldump, first, last)).collect();
    dumps.sort();
    println!("  pg_waldump --stats    best {:.2} GB/s, median {:.2} GB/s (elapsed time)", rate(dumps[0]), rate(dumps[1]));
}

/// Records and block references.
fn decode(wal: &[u8]) -> (u64, u64) {
    let header = SegmentHeader::read(wal).unwrap();
    let mut decoder = Decoder::new(header.start, header.segment_size);
    let mut blocks = 0;
    for mut piece in wal.chunks(PIECE) {
        while let Some(record) = decoder.next_record(&mut piece).unwrap() {
            blocks += record.blocks().filter(|block| std::hint::black_box(block).relation.number > 0).count() as u64;
        }
    }
    assert!(first_record(&PageHeader::decode(wal).unwrap(), header.segment_size) <= decoder.position());
    (decoder.records(), blocks)
}

fn dump(waldump: &Path, first: &Path, last: &Path) -> Duration {
    let begin = Instant::now();
    let mut command = Command::new(waldump);
    command.arg("--stats").args([first, last]).stdout(Stdio::null()).stderr(Stdio::null());
    // It reads up to the end of the last segment, where a record may go on: that is no success, and no matter here.
    command.status().expect("run pg_waldump");
    begin.elapsed()
}

/// Processor time of this thread.
fn thread_time() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(text.split(' ').next().unwrap().parse().unwrap())
}
