//! What an agent costs where nothing happens, for one cluster and for many: CPU, memory, threads, open files; and how large and how fast its pages are.
//!
//!     cargo bench -p walkeep-tests --bench idle                                  one cluster, then twenty, a minute each
//!     cargo bench -p walkeep-tests --bench idle -- --clusters 5 --seconds 30
//!
//! Each cluster is a real server with a stream, a schedule and a backup; all lie in one local repository.
#![allow(clippy::unwrap_used)]

#[path = "options.rs"]
#[allow(dead_code)]
mod options;

use std::fs;
use std::time::{Duration, Instant};

use options::Options;
use walkeep_tests::{Agent, Browser, Cluster, Walkeep, wait_until};

const VERSION: u32 = 15;
const PATIENCE: Duration = Duration::from_secs(120);
/// Clock ticks a second in /proc, on every Linux.
const TICKS: f64 = 100.0;

fn main() {
    let words = std::env::args().skip(1).filter(|word| word != "--bench");
    let run = Options::parse(["idle".to_owned()].into_iter().chain(words)).and_then(|(_, mut options)| {
        let (clusters, seconds) = (options.take("clusters", 0_usize)?, options.take("seconds", 60_u64)?);
        options.end().map(|()| (clusters, seconds))
    });
    let (clusters, seconds) = run.unwrap_or_else(|problem| panic!("{problem}"));
    match clusters {
        0 => [1, 20].into_iter().for_each(|clusters| measure(clusters, seconds)),
        clusters => measure(clusters, seconds),
    }
}

fn measure(clusters: usize, seconds: u64) {
    let start = |_| Cluster::builder().version(VERSION).segment_mib(1).archiving().conf("shared_buffers", "1MB").start();
    let servers: Vec<Cluster> = (0..clusters).map(start).collect();
    let mut walkeep = Walkeep::local(&servers[0]);
    let schedule = |name: &str| format!("[[cluster.{name}.backup]]\nschedule = \"0 3 * * *\"\n");
    walkeep.more = schedule("main");
    for (number, server) in servers.iter().enumerate().skip(1) {
        let (name, scratch) = (format!("c{number}"), walkeep.scratch());
        walkeep.more += &format!(
            "[cluster.{name}]\nconnection = \"{}\"\ndata_directory = \"{}\"\nspool = \"{}\"\nsocket = \"{}\"\n[[cluster.{name}.repository]]\nurl = \"file://{}\"\n{}",
            server.connection(),
            server.data().display(),
            scratch.dir(format!("spool-{name}")).display(),
            scratch.join(format!("run/{name}.sock")).display(),
            walkeep.local_repository().display(),
            schedule(&name)
        );
    }
    walkeep.write_config();
    let names: Vec<String> = (0..clusters).map(|number| if number == 0 { "main".to_owned() } else { format!("c{number}") }).collect();
    names.iter().for_each(|name| drop(walkeep.ok(&["init", "--cluster", name])));
    let agent = walkeep.agent();
    names.iter().for_each(|name| drop(walkeep.ok(&["backup", "--cluster", name])));
    let all_stored = || agent.metrics().lines().filter(|line| line.starts_with("walkeep_wal_lag_bytes{")).all(|line| line.ends_with(" 0"));
    wait_until("everything is stored", PATIENCE, all_stored);
    std::thread::sleep(Duration::from_secs(5));

    let (cpu, began) = (cpu_seconds(&agent), Instant::now());
    std::thread::sleep(Duration::from_secs(seconds));
    let used = (cpu_seconds(&agent) - cpu) / began.elapsed().as_secs_f64();
    let status = fs::read_to_string(format!("/proc/{}/status", agent.pid())).unwrap();
    let of = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim().to_owned();
    let files = fs::read_dir(format!("/proc/{}/fd", agent.pid())).unwrap().count();
    println!(
        "{clusters} clusters, idle for {seconds} s: {:.2} % of a core, memory {} ({} at most), {} threads, {files} open files",
        used * 100.0,
        of("VmRSS:"),
        of("VmHWM:"),
        of("Threads:")
    );
    page(&agent, "/metrics");
    let json = if clusters == 1 { "/page/status.json" } else { "/page/fleet.json" };
    page(&agent, json);
    let mut browser = Browser::start();
    browser.size(1280, 900);
    let shown = if clusters == 1 { "!document.querySelector('#main').hidden" } else { "document.querySelectorAll('article').length > 1" };
    let mut times: Vec<Duration> = (0..5)
        .map(|_| {
            let began = Instant::now();
            browser.open(&format!("http://{}/", walkeep.http_address()));
            browser.wait("the page is there", shown);
            began.elapsed()
        })
        .collect();
    times.sort_unstable();
    println!("    the page in Chromium: {:?} until it shows what it was told (median of 5)", times[2]);
    agent.stop();
}

/// How large it is, and how long it takes: the median of 21.
fn page(agent: &Agent, path: &str) {
    let get = |_| {
        let began = Instant::now();
        let (status, text) = agent.get(path).unwrap();
        assert_eq!(status, 200, "{text}");
        (began.elapsed(), text.len())
    };
    let mut answers: Vec<(Duration, usize)> = (0..21).map(get).collect();
    answers.sort_unstable();
    let (time, bytes) = answers[10];
    println!("    {path}: {bytes} bytes in {time:?} (median of 21)");
}

fn cpu_seconds(agent: &Agent) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{}/stat", agent.pid())).unwrap();
    // Behind the name, which may hold anything.
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    [11, 12].iter().map(|at| fields[*at].parse::<f64>().unwrap() / TICKS).sum()
}
