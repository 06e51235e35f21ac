//! Processes that are killed, stopped, doubled, starved: nothing acknowledged is missing, nothing is stored twice with other bytes.

use std::process::Command;
use std::time::{Duration, Instant};

use walkeep_tests::process::Process;
use walkeep_tests::walkeep::run;
use walkeep_tests::{Cluster, Fault, Repository, S3Server, Stop, Walkeep, When, compare_fetched, process, wait_until};

use crate::support::{
    SERVER_GONE, STORES, Store, assert_calm, end_of, fetch, segments_in, switch_and_store, uninitialised, wait_durable, walkeep,
};

const SOON: Duration = Duration::from_secs(30);
const FAILED: &str = "SELECT failed_count FROM pg_stat_archiver";

/// Moments within 60 ms, the same ones for the same seed.
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

/// The archive shim that this server's archiver runs at this moment.
fn shim_below(server: u32) -> Option<u32> {
    // The kernel's name for it is cut at 15 bytes.
    process::descendants(server).into_iter().find(|pid| comm(*pid) == "walkeep-archive")
}

fn comm(pid: u32) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_owned()
}

/// P1
#[test]
fn a_killed_archive_shim_loses_nothing() {
    for store in STORES {
        let cluster = Cluster::builder().segment_mib(1).archiving().conf("wal_keep_size", "256MB").start();
        let mut walkeep = uninitialised(&cluster, store);
        walkeep.cluster_lines = "stream = false\n".to_owned();
        walkeep.write_config();
        walkeep.ok(&["init"]);
        let agent = walkeep.agent();
        // Below the archiver. A shim's death would end it too, and the next would start 10 s later: a shell stands between.
        let command = format!("#!/bin/sh\n{} \"$1\" || exit 1\n", walkeep.archive_command());
        let command = cluster.scratch().write("command.sh", command, 0o755);
        cluster.archive_by(Some(&command.to_string_lossy()));
        let mut moments = times(seed());
        let (mut killed, begun) = (0, Instant::now());
        while killed < 4 && begun.elapsed() < SOON {
            cluster.switch_wal();
            std::thread::sleep(moments.next().unwrap() / 4);
            if let Some(pid) = shim_below(cluster.pid()) {
                process::signal(pid, "KILL");
                killed += 1;
            }
        }
        cluster.archive_now();
        // By hand, at every moment from its start to after its end.
        cluster.archive_by(None);
        let mut finished = 0;
        for moment in moments.take(40) {
            let name = cluster.switch_wal();
            let mut shim = Process::start(archive_shim(&walkeep, &cluster, &name), &walkeep.scratch().join("shim.log")).unwrap();
            std::thread::sleep(moment / 2);
            finished += u32::from(shim.ended().is_some_and(|status| status.success()));
            shim.kill();
            run(&mut archive_shim(&walkeep, &cluster, &name)).expect_code(0);
        }
        cluster.archive_now();
        for name in segments_in(&cluster.oracle()) {
            run(&mut archive_shim(&walkeep, &cluster, &name)).expect_code(0);
        }
        let compared = compare_fetched(&cluster.oracle(), &walkeep);
        eprintln!("{store:?}: {killed} shims killed below the server, {} by hand, {compared} files", 40 - finished);
        assert!(killed == 4 && finished < 40 && compared >= 40, "{killed} {finished} {compared}");
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

/// P5: so often that it never gets far.
#[test]
fn fifty_restarts_lose_nothing() {
    let cluster = Cluster::builder().segment_mib(1).archiving().start();
    let walkeep = walkeep(&cluster, Store::S3);
    cluster.archive_by(None);
    cluster.pgbench_init(1);
    let load = cluster.pgbench_spawn(&["-c", "2", "-R", "300", "-T", "600"]);
    for (round, pause) in times(seed()).take(50).enumerate() {
        let mut agent = walkeep.launch_agent().unwrap();
        // From before the socket is bound to the middle of the first uploads.
        std::thread::sleep(pause * 4);
        if round % 5 == 4 {
            agent.signal("TERM");
            wait_until("it ends", SOON, || agent.ended().is_some());
        } else {
            agent.kill9();
        }
        assert_calm(&agent, &[]);
    }
    drop(load);
    let agent = walkeep.agent();
    switch_and_store(&cluster, &agent, 1);
    cluster.archive_now();
    assert!(compare_fetched(&cluster.oracle(), &walkeep) >= 5);
    let status = walkeep.ok(&["status", "--json"]).json();
    assert_eq!((&status["gaps"], &status["timelines"][0]["holes"]), (&serde_json::json!([]), &serde_json::json!([])));
    assert_eq!(agent.metric("walkeep_conflicts_total"), Some(0.0));
    assert_calm(&agent, &[]);
    agent.stop();
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

/// The archive shim as PostgreSQL would run it.
fn archive_shim(walkeep: &Walkeep, cluster: &Cluster, name: &str) -> Command {
    let mut command =
        walkeep.command_of("walkeep-archive-cmd", &["--socket", &walkeep.socket().to_string_lossy(), &format!("pg_wal/{name}")]);
    command.current_dir(cluster.data());
    command
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
        let begun = Instant::now();
        let output = run(&mut archive_shim(&walkeep, &cluster, &name));
        let took = begun.elapsed();
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
    let output = run(archive_shim(&walkeep, &cluster, &name).env("WALKEEP_ARCHIVE_TIMEOUT", "1s")).expect_code(1);
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
    let name = cluster.switch_wal();
    walkeep.ok(&["wal", "push", &cluster.pg_wal().join(&name).to_string_lossy()]);
    for limit in [4, 8, 9, 10, 11, 12, 13] {
        let to = walkeep.scratch().join(format!("few-{limit}"));
        let fetched = run(&mut limited(limit, &["wal", "fetch", &name, &to.to_string_lossy()]));
        // Not 1 nor 101, say: PostgreSQL would open the database.
        assert!(fetched.code.is_some_and(|code| code == 0 || code > 125), "{limit}: {fetched:?}");
        assert_eq!(to.exists(), fetched.ok(), "{limit}: {fetched:?}");
    }
    // The agent. Too few for it to start, or to stream, or to store: it says so, and goes on or leaves.
    for limit in [10, 12, 14, 16, 18, 20] {
        let mut agent = Process::start(limited(limit, &["agent"]), &walkeep.scratch().join("limited.log")).unwrap();
        cluster.switch_wal();
        let told = |agent: &mut Process| {
            agent.ended().is_some() || agent.log().contains("Too many open files") || agent.log().contains("INFO stored")
        };
        wait_until("it ends, complains or works", Duration::from_secs(60), || told(&mut agent));
        agent.kill();
        let log = agent.log();
        eprintln!("{limit} descriptors: {}", log.lines().last().unwrap_or_default());
        assert!(!log.contains("panicked"), "{log}");
        std::fs::remove_file(walkeep.scratch().join("limited.log")).unwrap();
    }
    let agent = walkeep.agent();
    switch_and_store(&cluster, &agent, 1);
    cluster.archive_now();
    assert!(compare_fetched(&cluster.oracle(), &walkeep) >= 6);
    assert_calm(&agent, &[]);
    agent.stop();
}

/// P9. While it is frozen it answers no scrape, and that is the alarm; when it is back, its lag is told until everything is stored.
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
    // The archiver waits for its command, which gets no signal in a fast stop, and makes up to five more tries with pauses of its own.
    assert!(begun.elapsed() < Duration::from_secs(12), "the stop took {:?}", begun.elapsed());
    eprintln!("the stop took {:?}", begun.elapsed());
    // The shim itself ends at once when it is told to.
    let mut shim = Process::start(archive_shim(&walkeep, &cluster, &name), &walkeep.scratch().join("shim.log")).unwrap();
    wait_until("it runs", SOON, || comm(shim.pid()) == "walkeep-archive");
    shim.signal("TERM");
    assert!(shim.wait(Duration::from_secs(1)).is_some(), "the shim goes at once");
    proxy.disarm(hanging);
    cluster.start();
    cluster.archive_now();
    switch_and_store(&cluster, &agent, 1);
    assert!(compare_fetched(&cluster.oracle(), &walkeep) >= 3);
    agent.stop();
}

/// P10 without archive_command: what the server waits for is the stream alone. The bytes stay in the spool and are stored later.
#[test]
fn a_hanging_store_does_not_hold_up_the_stream_of_a_server_that_stops() {
    let cluster = Cluster::builder().segment_mib(1).conf("wal_keep_size", "256MB").start();
    let proxy = S3Server::get().proxy();
    let walkeep = Walkeep::new(&cluster, Repository::s3(proxy.endpoint(), &S3Server::get().bucket()));
    walkeep.ok(&["init"]);
    let agent = walkeep.agent();
    let first = switch_and_store(&cluster, &agent, 1);
    let hanging = proxy.arm(When::put(), Fault::Hang);
    let whole = cluster.switch_wal();
    cluster.sql("CREATE TABLE t AS SELECT generate_series(1, 1000)");
    wait_until("it hangs", SOON, || proxy.hits(hanging) > 0);
    let durable = agent.metric("walkeep_wal_durable_bytes");
    let begun = Instant::now();
    cluster.stop(Stop::Fast);
    eprintln!("the stop took {:?}", begun.elapsed());
    assert!(begun.elapsed() < Duration::from_secs(5), "the stop took {:?}", begun.elapsed());
    assert_eq!(agent.metric("walkeep_wal_durable_bytes"), durable, "nothing of it counts as durable");
    assert!(walkeep.spool().join(&whole).exists(), "{whole} waits in the spool");
    // The server is gone for good; what was received is stored all the same.
    let tail = segments_in(&cluster.pg_wal()).into_iter().find(|name| *name > whole).unwrap();
    let writing = walkeep.spool().join(format!("{tail}.writing"));
    assert!(writing.metadata().unwrap().len() > 1000, "and so does the tail");
    proxy.disarm(hanging);
    wait_until("the spool is empty", SOON, || !writing.exists() && !walkeep.spool().join(&whole).exists());
    for name in [&first, &whole] {
        assert!(fetch(&walkeep, name) == std::fs::read(cluster.pg_wal().join(name)).unwrap(), "{name}");
    }
    assert!(fetch(&walkeep, &tail)[..1000] == std::fs::read(cluster.pg_wal().join(&tail)).unwrap()[..1000], "{tail}");
    assert_calm(&agent, &SERVER_GONE);
    agent.stop();
}
