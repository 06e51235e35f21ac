//! Processes that are killed, stopped, doubled, starved: nothing acknowledged is missing, nothing is stored twice with other bytes.

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use walkeep_tests::walkeep::run;
use walkeep_tests::{Cluster, Fault, Output, Repository, S3Server, Stop, Walkeep, When, compare_fetched, process, wait_until};

use crate::support::{SERVER_GONE, STORES, Store, assert_calm, end_of, switch_and_store, uninitialised, wait_durable, walkeep};

const SOON: Duration = Duration::from_secs(30);
const FAILED: &str = "SELECT failed_count FROM pg_stat_archiver";

/// Nothing of a killed process's work is told by a line of its own; what the next one finds may be.
fn times(seed: u64) -> impl Iterator<Item = Duration> {
    eprintln!("seed {seed}");
    let mut state = seed;
    std::iter::repeat_with(move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        Duration::from_micros((state >> 33) % 60_000)
    })
}

fn seed() -> u64 {
    std::env::var("WALKEEP_TEST_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or_else(|| u64::from(std::process::id()))
}

/// Kills every archive shim below the server at moments that a seed gives, until told to stop; how many it killed.
fn kill_shims(cluster: &Cluster, stop: &AtomicBool) -> usize {
    let mut killed = 0;
    for pause in times(seed()) {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        std::thread::sleep(pause);
        for pid in process::descendants(cluster.pid()) {
            let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            // The kernel's name for it is cut at 15 bytes.
            if name.trim() == "walkeep-archive" {
                process::signal(pid, "KILL");
                killed += 1;
            }
        }
    }
    killed
}

/// P1
#[test]
fn a_killed_archive_shim_loses_nothing() {
    for store in STORES {
        let cluster = Cluster::builder().segment_mib(1).archiving().start();
        let mut walkeep = uninitialised(&cluster, store);
        walkeep.cluster_lines = "stream = false\n".to_owned();
        walkeep.write_config();
        walkeep.ok(&["init"]);
        let agent = walkeep.agent();
        cluster.archive_by(Some(&walkeep.archive_command()));
        cluster.pgbench_init(1);
        let stop = AtomicBool::new(false);
        let killed = std::thread::scope(|scope| {
            let killer = scope.spawn(|| kill_shims(&cluster, &stop));
            for _ in 0..30 {
                cluster.pgbench_run(&["-c", "1", "-t", "20"]);
                cluster.switch_wal();
            }
            wait_until("some shims were killed", SOON, || cluster.log().matches("terminated by signal 9").count() > 3);
            stop.store(true, Ordering::Relaxed);
            killer.join().unwrap()
        });
        cluster.archive_now();
        let compared = compare_fetched(&cluster.oracle(), &walkeep);
        eprintln!("{store:?}: {killed} shims killed over {compared} files");
        assert!(killed > 3 && compared >= 30, "{killed} {compared}");
        assert_eq!(agent.metric("walkeep_conflicts_total"), Some(0.0));
        assert_eq!(agent.metric("walkeep_stored_objects_total{source=\"archive\"}"), Some(compared as f64), "each stored once");
        assert_calm(&agent, &[]);
    }
}

/// P2, P5: the agent under load, killed and restarted over and over.
fn restarts(store: Store, acknowledge: &str, rounds: usize, kill: bool) {
    let cluster = Cluster::builder().segment_mib(1).archiving().start();
    let mut walkeep = uninitialised(&cluster, store);
    walkeep.acknowledge = acknowledge.to_owned();
    walkeep.write_config();
    walkeep.ok(&["init"]);
    cluster.archive_by(None);
    cluster.pgbench_init(1);
    let load = cluster.pgbench_spawn(&["-c", "2", "-T", "120"]);
    for pause in times(seed()).take(rounds) {
        let mut agent = walkeep.launch_agent().unwrap();
        wait_until("it streams", SOON, || agent.log().contains("INFO streaming"));
        std::thread::sleep(pause * 10);
        if kill {
            agent.kill9();
        } else {
            agent.signal("TERM");
            wait_until("it ends", Duration::from_secs(5), || agent.ended().is_some());
        }
        assert_calm(&agent, &[]);
    }
    drop(load);
    let agent = walkeep.agent();
    let last = switch_and_store(&cluster, &agent, 1);
    cluster.archive_now();
    let compared = compare_fetched(&cluster.oracle(), &walkeep);
    eprintln!("{store:?} {acknowledge}: {compared} files up to {last}");
    let status = walkeep.ok(&["status", "--json"]).json();
    assert_eq!((&status["gaps"], &status["timelines"][0]["holes"]), (&serde_json::json!([]), &serde_json::json!([])));
    assert_eq!(agent.metric("walkeep_conflicts_total"), Some(0.0));
    assert_calm(&agent, &[]);
    agent.stop();
}

#[test]
fn a_killed_agent_loses_nothing_local() {
    restarts(Store::Local, "repository", 15, true);
}

#[test]
fn a_killed_agent_loses_nothing_s3() {
    restarts(Store::S3, "repository", 10, true);
}

#[test]
fn a_killed_agent_loses_nothing_spool() {
    restarts(Store::S3, "spool", 10, true);
}

#[test]
fn a_restarted_agent_loses_nothing() {
    restarts(Store::Local, "repository", 10, false);
    restarts(Store::S3, "spool", 8, false);
}

/// P6
#[test]
fn a_second_agent_is_told_of_the_first() {
    let cluster = Cluster::builder().segment_mib(1).start();
    let walkeep = walkeep(&cluster, Store::Local);
    let first = walkeep.agent();
    // The same socket.
    let second = run(&mut walkeep.command(&["agent"])).expect_code(1);
    assert!(second.stderr.contains(&format!("another agent (process {})", first.pid())), "{}", second.stderr);
    // Another socket and spool, the same slot.
    let mut other = Walkeep::new(&cluster, walkeep.repositories[0].clone());
    other.slot = walkeep.slot.clone();
    other.write_config();
    let second = other.launch_agent().unwrap();
    wait_until("it says that the slot is in use", SOON, || second.log().contains("Another agent, or another receiver, uses this slot"));
    assert_eq!(second.get("/readyz").unwrap().0, 503);
    let last = switch_and_store(&cluster, &first, 1);
    assert_calm(&first, &[]);
    first.stop();
    // And takes over.
    wait_durable(&second, end_of(&last, 1), SOON);
    switch_and_store(&cluster, &second, 1);
    second.stop();
}

fn archive_shim(walkeep: &Walkeep, cluster: &Cluster, name: &str) -> (Output, Duration) {
    let begun = Instant::now();
    let mut command =
        walkeep.command_of("walkeep-archive-cmd", &["--socket", &walkeep.socket().to_string_lossy(), &format!("pg_wal/{name}")]);
    (run(command.current_dir(cluster.data())), begun.elapsed())
}

/// P7
#[test]
fn shims_without_an_agent() {
    let cluster = Cluster::builder().segment_mib(1).archiving().start();
    let walkeep = walkeep(&cluster, Store::Local);
    cluster.archive_by(Some(&walkeep.archive_command()));
    let name = cluster.switch_wal();
    let restore = |timeout: &str| {
        let mut command = walkeep.command_of(
            "walkeep-restore-cmd",
            &["--socket", &walkeep.socket().to_string_lossy(), "--timeout", timeout, &name, "pg_wal/RECOVERYXLOG"],
        );
        command.env_remove("WALKEEP_CONFIG");
        run(command.current_dir(cluster.data()))
    };
    let fails = |what: &str| {
        let (output, took) = archive_shim(&walkeep, &cluster, &name);
        assert_eq!(output.code, Some(1), "{what}: {}", output.stderr);
        assert!(took < Duration::from_secs(2) && output.stderr.contains("HINT"), "{what}: {took:?} {}", output.stderr);
        let restored = restore("2s");
        assert!(restored.code.is_some_and(|code| code > 125), "{what}: {restored:?}");
        assert!(!cluster.pg_wal().join("RECOVERYXLOG").exists());
    };
    fails("no socket at all");
    let mut agent = walkeep.agent();
    agent.kill9();
    assert!(walkeep.socket().exists(), "a killed agent leaves its socket");
    fails("a stale socket");
    let before: u64 = cluster.value(FAILED);
    cluster.switch_wal();
    wait_until("the failure is counted", SOON, || cluster.value::<u64>(FAILED) > before);
    // A socket on which nobody answers: not for ever.
    let listener = {
        std::fs::remove_file(walkeep.socket()).unwrap();
        std::os::unix::net::UnixListener::bind(walkeep.socket()).unwrap()
    };
    std::fs::set_permissions(walkeep.socket(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let begun = Instant::now();
    let mut command = walkeep.command_of("walkeep-archive-cmd", &["--socket", &walkeep.socket().to_string_lossy(), "--timeout", "1s"]);
    let output = run(command.arg(format!("pg_wal/{name}")).current_dir(cluster.data())).expect_code(1);
    assert!(begun.elapsed() < Duration::from_secs(4), "{output:?}");
    assert!(restore("1s").code.is_some_and(|code| code > 125));
    drop(listener);
    // The next agent takes the place, and what waited is stored.
    std::fs::remove_file(walkeep.socket()).unwrap();
    let agent = walkeep.agent();
    cluster.archive_now();
    assert!(compare_fetched(&cluster.oracle(), &walkeep) >= 2);
    assert_calm(&agent, &[]);
}

/// P8: too few file descriptors. Whatever fails says so; once there are enough again everything is there.
#[test]
fn too_few_descriptors_are_an_error_and_no_damage() {
    let cluster = Cluster::builder().segment_mib(1).archiving().start();
    let walkeep = walkeep(&cluster, Store::S3);
    cluster.archive_by(None);
    let limited = |limit: u32, args: &[&str]| {
        let inner = walkeep.command(args);
        let mut command = Command::new("prlimit");
        command.arg(format!("--nofile={limit}:{limit}")).arg(inner.get_program()).args(inner.get_args());
        command.env_clear().envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?)))).current_dir("/");
        command
    };
    for limit in [4, 8, 12, 16] {
        let output = run(&mut limited(limit, &["status"]));
        assert!(output.code.is_some() && !output.stderr.contains("panicked"), "{limit}: {output:?}");
        let to = walkeep.scratch().join(format!("few-{limit}"));
        let fetched = run(&mut limited(limit, &["wal", "fetch", "000000010000000000000001", &to.to_string_lossy()]));
        assert!(fetched.code.is_some_and(|code| code == 1 || code > 125) && !fetched.stderr.contains("panicked"), "{limit}: {fetched:?}");
        assert!(!to.exists());
    }
    // The running agent, which may then open nothing more.
    let agent = walkeep.agent();
    let set = |limit: &str| {
        process::run(Command::new("prlimit").args(["--pid", &agent.pid().to_string(), &format!("--nofile={limit}")])).unwrap()
    };
    let open = std::fs::read_dir(format!("/proc/{}/fd", agent.pid())).unwrap().count();
    set(&format!("{open}:1024"));
    for _ in 0..5 {
        cluster.switch_wal();
    }
    let waiting = cluster.switch_wal();
    wait_until("it complains of it", SOON, || agent.log().contains("Too many open files"));
    set("1024:1024");
    wait_durable(&agent, end_of(&waiting, 1), Duration::from_secs(60));
    cluster.archive_now();
    assert!(compare_fetched(&cluster.oracle(), &walkeep) >= 6);
    assert!(!agent.log().contains("panicked"), "{}", agent.log());
    agent.stop();
}

/// P9
#[test]
fn a_frozen_agent_comes_back() {
    let cluster = Cluster::builder().segment_mib(1).archiving().conf("wal_sender_timeout", "1s").start();
    let walkeep = walkeep(&cluster, Store::S3);
    cluster.archive_by(None);
    let agent = walkeep.agent();
    switch_and_store(&cluster, &agent, 1);
    for _ in 0..2 {
        agent.signal("STOP");
        cluster.pgbench_init(1);
        wait_until("the server gives it up", SOON, || cluster.sql("SELECT count(*) FROM pg_stat_replication") == "0");
        agent.signal("CONT");
        switch_and_store(&cluster, &agent, 1);
        cluster.archive_now();
    }
    assert!(compare_fetched(&cluster.oracle(), &walkeep) >= 20);
    assert!(cluster.log().contains("terminating walsender process due to replication timeout"));
    assert_calm(&agent, &SERVER_GONE);
    agent.stop();
}

/// P10
#[test]
fn a_hanging_store_does_not_hold_up_a_server_that_stops() {
    let cluster = Cluster::builder().segment_mib(1).archiving().start();
    let proxy = S3Server::get().proxy();
    let walkeep = Walkeep::new(&cluster, Repository::s3(proxy.endpoint(), &S3Server::get().bucket()));
    walkeep.ok(&["init"]);
    let agent = walkeep.agent();
    cluster.archive_by(Some(&walkeep.archive_command()));
    cluster.archive_now();
    let hanging = proxy.arm(When::put(), Fault::Hang);
    let name = cluster.switch_wal();
    wait_until("both hang", SOON, || proxy.hits(hanging) > 0 && shim_below(cluster.pid()).is_some());
    let begun = Instant::now();
    cluster.stop(Stop::Fast);
    // The archiver waits for its command, which gets no signal in a fast stop; the agent lets go of the stream after a while.
    assert!(begun.elapsed() < Duration::from_secs(30), "the stop took {:?}", begun.elapsed());
    eprintln!("the stop took {:?}", begun.elapsed());
    // The shim itself ends at once when it is told to.
    let mut shim = walkeep.command_of("walkeep-archive-cmd", &["--socket", &walkeep.socket().to_string_lossy(), &format!("pg_wal/{name}")]);
    let mut shim = process::Process::start(
        {
            shim.current_dir(cluster.data());
            shim
        },
        Path::new(&walkeep.scratch().join("shim.log")),
    )
    .unwrap();
    wait_until("it waits", SOON, || {
        std::fs::read_to_string(format!("/proc/{}/comm", shim.pid())).is_ok_and(|name| name.trim() == "walkeep-archive")
    });
    shim.signal("TERM");
    assert!(shim.wait(Duration::from_secs(1)).is_some(), "the shim goes at once");
    proxy.disarm(hanging);
    cluster.start();
    cluster.archive_now();
    switch_and_store(&cluster, &agent, 1);
    assert!(compare_fetched(&cluster.oracle(), &walkeep) >= 3);
    agent.stop();
}

fn shim_below(pid: u32) -> Option<u32> {
    process::descendants(pid)
        .into_iter()
        .find(|pid| std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "walkeep-archive"))
}
