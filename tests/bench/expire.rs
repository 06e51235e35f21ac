//! What an expiry of very many objects costs: seconds, requests, memory.
//!
//!     cargo bench -p walkeep-tests --bench expire                                a million segments in a local repository
//!     cargo bench -p walkeep-tests --bench expire -- --objects 100000 --store s3  a hundred thousand in SeaweedFS
//!
//! The segments are empty objects under the keys of segments before the only backup: which of them go is decided by listings and records, and nobody reads
//! what goes. The server begins far up in its WAL (pg_resetwal), so that there is room for them below.
#![allow(clippy::unwrap_used)]

#[path = "options.rs"]
#[allow(dead_code)]
mod options;

use std::fmt::Write as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use options::Options;
use walkeep_tests::postgres::own_client;
use walkeep_tests::{Cluster, FaultProxy, Repository, S3Server, Stop, Walkeep, s3, user};

const VERSION: u32 = 15;
/// Segments of 1 MiB in each 4 GiB of WAL.
const IN_LOG: u64 = 4096;
/// The first segment of the server.
const BEGINS: u64 = 0x200 * IN_LOG;

fn main() {
    let words = std::env::args().skip(1).filter(|word| word != "--bench");
    let run = Options::parse(["expire".to_owned()].into_iter().chain(words)).and_then(|(_, mut options)| {
        let (objects, store) = (options.take("objects", 1_000_000_u64)?, options.take("store", "local".to_owned())?);
        options.end().map(|()| (objects, store))
    });
    let (objects, store) = run.unwrap_or_else(|problem| panic!("{problem}"));
    assert!(objects < BEGINS, "no more than {BEGINS}");
    measure(objects, &store);
}

fn measure(objects: u64, store: &str) {
    let server = Cluster::builder().version(VERSION).segment_mib(1).fresh().start();
    server.stop(Stop::Fast);
    let reset = own_client(VERSION, "pg_resetwal").expect("pg_resetwal of the server's version");
    let first = format!("00000001{:08X}{:08X}", BEGINS / IN_LOG, BEGINS % IN_LOG);
    walkeep_tests::process::run(user::command(reset).args(["-f", "-l", &first, "-D"]).arg(server.data())).unwrap();
    server.start();
    let proxy = (store == "s3").then(|| S3Server::get().proxy());
    let bucket = proxy.as_ref().map(|_| S3Server::get().bucket());
    let mut walkeep = match (&proxy, &bucket) {
        (Some(proxy), Some(bucket)) => Walkeep::new(&server, Repository::s3(proxy.endpoint(), bucket)),
        _ => Walkeep::local(&server),
    };
    walkeep.more = "\n[cluster.main.retention]\nwindow = \"0s\"\nminimum_backups = 1\ngrace = \"0s\"\n".to_owned();
    walkeep.write_config();
    walkeep.ok(&["init"]);
    let agent = walkeep.agent();
    walkeep.ok(&["backup"]);
    agent.stop();

    let began = Instant::now();
    let root = format!("main/{}/wal/00000001", server.system_identifier());
    let keys = (BEGINS - objects..BEGINS).map(|number| {
        let (log, low) = (number / IN_LOG, number % IN_LOG);
        format!("{root}/{log:08X}/00000001{log:08X}{low:08X}.zst")
    });
    match &bucket {
        None => {
            let repository = walkeep.local_repository();
            for key in keys {
                let path = repository.join(key);
                if !path.parent().unwrap().is_dir() {
                    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                }
                std::fs::File::create(path).unwrap();
            }
            if user::is_root() {
                let owner = &user::account().name;
                walkeep_tests::process::run(Command::new("chown").arg("-R").arg(owner).arg(repository.join("main"))).unwrap();
            }
        }
        Some(bucket) => put(&bucket.name, &keys.collect::<Vec<_>>()),
    }
    println!("{objects} objects put in {:.0} s", began.elapsed().as_secs_f64());
    proxy.as_ref().inspect(|proxy| proxy.forget());
    for what in ["status", "expire"] {
        let args: &[&str] = if what == "status" { &["status", "--json"] } else { &["expire", "--yes", "--json"] };
        let (seconds, memory, told) = timed(&walkeep, args);
        let requests = proxy.as_ref().map(by_method).unwrap_or_default();
        println!("{what}: {seconds:.1} s, {:.0} MB at most{requests}", memory as f64 / 1e6);
        if what == "expire" {
            println!("{}", told["carried_out"]);
        }
    }
}

fn by_method(proxy: &FaultProxy) -> String {
    let mut text = String::new();
    for method in ["GET", "PUT", "POST", "DELETE", "HEAD"] {
        let count = proxy.requests().iter().filter(|request| request.method == method).count();
        if count > 0 {
            write!(text, ", {count} {method}").unwrap();
        }
    }
    proxy.forget();
    text
}

/// Runs it to its end; the most memory it had, as the kernel tells while it runs.
fn timed(walkeep: &Walkeep, args: &[&str]) -> (f64, u64, serde_json::Value) {
    let began = Instant::now();
    let out = walkeep.scratch().join("told");
    let mut command = walkeep.command(args);
    command.stdin(Stdio::null()).stdout(std::fs::File::create(&out).unwrap());
    let mut child = command.spawn().unwrap();
    let mut memory = 0;
    let status = loop {
        let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
        memory = memory.max(peak.unwrap_or_default() * 1024);
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    assert!(status.success(), "{args:?}: {status}");
    (began.elapsed().as_secs_f64(), memory, serde_json::from_slice(&std::fs::read(&out).unwrap()).unwrap())
}

/// By curl, many in one process.
fn put(bucket: &str, keys: &[String]) {
    let server = S3Server::get().endpoint();
    let folder = walkeep_tests::Scratch::new();
    for some in keys.chunks(5000) {
        let lines: String = some.iter().map(|key| format!("upload-file = \"/dev/null\"\nurl = \"{server}/{bucket}/{key}\"\n")).collect();
        let list = folder.join("list");
        std::fs::write(&list, lines).unwrap();
        let mut curl = Command::new("curl");
        curl.args(["-sS", "--fail", "--parallel", "--parallel-max", "32", "--aws-sigv4", &format!("aws:amz:{}:s3", s3::REGION)]);
        curl.args(["-u", &format!("{}:{}", s3::ACCESS_KEY, s3::SECRET_KEY), "-H", "x-amz-content-sha256: UNSIGNED-PAYLOAD", "-K"])
            .arg(&list);
        let output = curl.stdin(Stdio::null()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}
