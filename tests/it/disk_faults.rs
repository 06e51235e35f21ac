//! D4: an fsync fails once, and would succeed at the second call, as Linux has it: what it was to make durable is lost. It is written anew from its source,
//! and never acknowledged on the strength of the second call. strace lets the calls fail.

use std::collections::{HashMap, HashSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use walkeep_tests::process::{Process, read_log};
use walkeep_tests::walkeep::run;
use walkeep_tests::{Agent, Cluster, Walkeep, compare_fetched, wait_until};

use crate::story;
use crate::support::{Store, fetch, switch_and_store, traced, uninitialised};

const SOON: Duration = Duration::from_secs(60);

/// A system call in strace's words.
#[derive(Debug)]
struct Call {
    name: String,
    /// The path behind its descriptor, or the first one named.
    path: String,
    /// The last path named.
    target: String,
    /// Made to fail.
    failed: bool,
    whole: String,
}

/// The calls in a trace, in the order of their beginnings.
fn calls(trace: &str) -> Vec<Call> {
    let mut calls: Vec<Call> = Vec::new();
    let mut unfinished: HashMap<&str, usize> = HashMap::new();
    for line in trace.lines() {
        let Some((thread, text)) = line.split_once(' ') else { continue };
        let failed = text.contains("INJECTED");
        if text.contains(" resumed>") {
            if let Some(index) = unfinished.remove(thread) {
                calls[index].failed = failed;
            }
            continue;
        }
        let Some((name, arguments)) = text.trim_start().split_once('(') else { continue };
        let named: Vec<_> = arguments.split('"').collect();
        let behind_descriptor = arguments.split_once('<').and_then(|(_, rest)| rest.split_once('>')).map_or("", |(path, _)| path);
        let path = if name.starts_with("rename") { named.get(1).copied().unwrap_or_default() } else { behind_descriptor };
        let target = named.iter().rev().nth(1).copied().unwrap_or_default();
        if text.ends_with("<unfinished ...>") {
            unfinished.insert(thread, calls.len());
        }
        calls.push(Call { name: name.into(), path: path.into(), target: target.into(), failed, whole: line.into() });
    }
    calls
}

/// No file is fsynced a second time after that failed, nor given its name, unless it was written again from its first byte on; how many calls failed.
#[track_caller]
fn assert_written_anew(trace: &str) -> usize {
    let mut lost: HashSet<String> = HashSet::new();
    let mut failures = 0;
    for call in calls(trace) {
        match call.name.as_str() {
            // Of a folder the names are looked after, see sync_name.
            "fdatasync" | "fsync" if Path::new(&call.path).is_dir() => {}
            "fdatasync" | "fsync" => {
                assert!(!lost.contains(&call.path), "a second fsync after a failure: {}", call.whole);
                if call.failed {
                    failures += 1;
                    lost.insert(call.path);
                }
            }
            "pwrite64" if call.whole.contains(", 0)") || call.whole.contains(", 0 <unfinished") => drop(lost.remove(&call.path)),
            "rename" | "renameat" | "renameat2" => {
                assert!(!lost.iter().any(|path| path.ends_with(&call.path)), "it was given its name after all: {}", call.whole);
                lost.retain(|path| !path.ends_with(&call.target));
            }
            _ => {}
        }
    }
    failures
}

/// strace at a running process and all its threads, until it is dropped.
struct Attached(Process);

impl Attached {
    #[track_caller]
    fn to(agent: &Agent, walkeep: &Walkeep, options: &[&str]) -> (Self, PathBuf) {
        let (trace, log) = (walkeep.scratch().write("trace", "", 0o600), walkeep.scratch().join("strace.log"));
        let mut strace = Command::new("strace");
        strace.args(["-f", "-y", "-s", "16", "-e", "signal=none", "-o"]).arg(&trace).args(options).args(["-p", &agent.pid().to_string()]);
        let strace = Process::start(strace, &log).unwrap();
        wait_until("strace is attached", SOON, || strace.log().contains(" attached"));
        (Self(strace), trace)
    }

    /// It lets go, and the process goes on without it.
    #[track_caller]
    fn detach(mut self) {
        self.0.signal("INT");
        assert!(self.0.wait(SOON).is_some(), "strace lets go: {}", self.0.log());
    }
}

/// Attached, every other call of each thread fails, until three have; then all is well again.
#[track_caller]
fn some_fail(agent: &Agent, walkeep: &Walkeep, injected: &str, traced: &str, mut write: impl FnMut()) {
    let inject = format!("inject={injected}:error=EIO:when=1+2");
    let (strace, trace) = Attached::to(agent, walkeep, &["-e", &format!("trace={traced}"), "-e", &inject]);
    let failures = || read_log(&trace).matches("INJECTED").count();
    wait_until("calls fail", SOON, || {
        write();
        failures() >= 3
    });
    strace.detach();
    let files = assert_written_anew(&read_log(&trace));
    eprintln!("{} calls failed, {files} on files", failures());
    assert!(files > 0, "{}", read_log(&trace));
}

#[test]
fn an_fsync_of_the_spool_fails() {
    for acknowledge in ["repository", "spool"] {
        let cluster = Cluster::builder().segment_mib(1).archiving().conf("wal_keep_size", "256MB").start();
        let mut walkeep = uninitialised(&cluster, Store::Local);
        walkeep.acknowledge = acknowledge.to_owned();
        walkeep.write_config();
        walkeep.ok(&["init"]);
        cluster.archive_by(None);
        let agent = walkeep.agent();
        switch_and_store(&cluster, &agent, 1);
        some_fail(&agent, &walkeep, "fdatasync", "fdatasync,pwrite64,rename", || {
            cluster.sql("SELECT pg_logical_emit_message(false, 'test', repeat('x', 100000))");
            cluster.switch_wal();
        });
        assert!(agent.log().contains("fsync") && agent.log().contains("Input/output error"), "{}", agent.log());
        switch_and_store(&cluster, &agent, 1);
        cluster.archive_now();
        assert!(compare_fetched(&cluster.oracle(), &walkeep) >= 4, "{acknowledge}");
        assert_eq!(walkeep.ok(&["status", "--json"]).json()["gaps"], serde_json::json!([]));
        agent.stop();
    }
}

/// By archive_command alone, so that nothing but the repository is fsynced.
#[test]
fn an_fsync_of_a_local_repository_fails() {
    let cluster = Cluster::builder().segment_mib(1).archiving().start();
    let mut walkeep = uninitialised(&cluster, Store::Local);
    walkeep.cluster_lines = "stream = false\n".to_owned();
    walkeep.write_config();
    walkeep.ok(&["init"]);
    let agent = walkeep.agent();
    cluster.archive_by(Some(&walkeep.archive_command()));
    cluster.archive_now();
    some_fail(&agent, &walkeep, "fsync", "fsync,rename,renameat,renameat2", || drop(cluster.switch_wal()));
    cluster.archive_now();
    assert!(cluster.value::<u64>("SELECT failed_count FROM pg_stat_archiver") > 0, "PostgreSQL was told");
    assert!(compare_fetched(&cluster.oracle(), &walkeep) >= 3);
    agent.stop();
}

/// An object that is there already, with the same bytes, as another writer's: whoever answers for it fsyncs it too. If that fails, its bytes are written anew.
#[test]
fn an_fsync_of_what_is_stored_already_fails() {
    let cluster = Cluster::builder().segment_mib(1).archiving().start();
    let walkeep = uninitialised(&cluster, Store::Local);
    walkeep.ok(&["init"]);
    let name = cluster.switch_wal();
    let file = cluster.pg_wal().join(&name);
    let push = walkeep.command(&["wal", "push", &file.to_string_lossy()]);
    walkeep.ok(&["wal", "push", &file.to_string_lossy()]);
    let object = story::wait_for_file(&walkeep.local_repository(), &story::object(&format!("/{name}")));
    let before = std::fs::metadata(&object).unwrap().ino();
    let trace = walkeep.scratch().write("trace", "", 0o600);
    let path = object.to_string_lossy().into_owned();
    // Of this file only.
    let options = ["-P", &path, "-e", "trace=fsync", "-e", "inject=fsync:error=EIO:when=1"];
    let output = run(&mut traced(&push, &options, &trace));
    assert!(calls(&read_log(&trace)).iter().any(|call| call.failed), "{}\n{output:?}", read_log(&trace));
    // Should it not be told that it worked, PostgreSQL tries again.
    if !output.ok() {
        run(&mut walkeep.command(&["wal", "push", &file.to_string_lossy()])).expect_code(0);
    }
    assert_ne!(std::fs::metadata(&object).unwrap().ino(), before, "acknowledged on the strength of a second fsync: {output:?}");
    assert!(fetch(&walkeep, &name) == std::fs::read(&file).unwrap());
}

/// Stored by an earlier version of the configuration, so with other bytes, and not of this process: it is fsynced before it is counted on.
#[test]
fn what_is_stored_with_other_bytes_is_made_durable_too() {
    let cluster = Cluster::builder().segment_mib(1).archiving().start();
    let mut walkeep = uninitialised(&cluster, Store::Local);
    walkeep.ok(&["init"]);
    let name = cluster.switch_wal();
    let file = cluster.pg_wal().join(&name);
    walkeep.ok(&["wal", "push", &file.to_string_lossy()]);
    let object = story::wait_for_file(&walkeep.local_repository(), &story::object(&format!("/{name}")));
    walkeep.cluster_lines.push_str("wal_compression_level = 9\n");
    walkeep.write_config();
    let push = walkeep.command(&["wal", "push", &file.to_string_lossy()]);
    let trace = walkeep.scratch().write("trace", "", 0o600);
    let path = object.to_string_lossy().into_owned();
    run(&mut traced(&push, &["-P", &path, "-e", "trace=fsync"], &trace)).expect_code(0);
    assert!(!calls(&read_log(&trace)).is_empty(), "counted on without an fsync");
    // One that fails is no success.
    let options = ["-P", &path, "-e", "trace=fsync", "-e", "inject=fsync:error=EIO:when=1+"];
    let output = run(&mut traced(&push, &options, &trace));
    assert!(!output.ok(), "{}\n{output:?}", read_log(&trace));
    run(&mut walkeep.command(&["wal", "push", &file.to_string_lossy()])).expect_code(0);
}

/// A repository that is moved, or of which an older copy is put back, under a running agent: nothing is called stored that nobody finds there.
#[test]
fn nothing_is_stored_in_a_repository_that_was_moved() {
    let mut story = story::Story::local(15);
    story.insert(10);
    story.settle();
    let (repository, aside) = (story.walkeep.local_repository(), story.walkeep.scratch().join("aside"));
    let flushed = || story.cluster.sql("SELECT flush_lsn FROM pg_stat_replication WHERE state = 'streaming'");
    let end = flushed();
    std::fs::rename(&repository, &aside).unwrap();
    story.insert(10);
    let lacking = |agent: &Agent| agent.metric("walkeep_possible_loss_seconds").is_some_and(|loss| loss > 2.0);
    wait_until("the agent sees that it stores nothing", SOON, || lacking(story.agent()));
    assert!(story.agent().log().contains("put it back"), "{}", story.agent().log());
    // Its older copy, as from a backup of the disk.
    let copied = Command::new("cp").arg("-a").arg(&aside).arg(&repository).status().unwrap();
    assert!(copied.success());
    let newest = story::listing(&repository).into_iter().max();
    story.insert(10);
    std::thread::sleep(Duration::from_secs(2));
    assert!(lacking(story.agent()));
    assert_eq!(story::listing(&repository).into_iter().max(), newest, "nothing was stored in the copy");
    let now = flushed();
    assert!(now.is_empty() || now == end, "{now} was confirmed, {end} is stored");
    std::fs::remove_dir_all(&repository).unwrap();
    std::fs::rename(&aside, &repository).unwrap();
    story.settle();
    assert!(compare_fetched(&story.cluster.oracle(), &story.walkeep) >= 1);
    story.stop_agent(&["was moved, unmounted", "put it back", "trying again", "out of reach"]);
}
