//! P2, P3, P4, D6: kill -9 at each step of an upload, a backup and a restore. The proxy holds the step, or strace kills at the system call.
//! After each nothing acknowledged is missing, nothing was stored twice, and nothing half is taken for whole.

use std::collections::HashMap;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use walkeep_tests::process::Process;
use walkeep_tests::{
    Cluster, Fault, FaultProxy, Repository, S3Server, Scratch, Walkeep, When, compare_fetched, process, try_wait_for, wait_until,
};

use crate::story::{self, PATIENCE, Story, backups, builder, plan};
use crate::support::{SERVER_GONE, Store, assert_calm, end_of, lsn, segments_in, switch_and_store, traced, uninitialised};

const VERSION: u32 = 15;
const SOON: Duration = Duration::from_secs(30);

/// No name was created twice.
#[track_caller]
fn assert_created_once(proxy: &FaultProxy) {
    let mut created: HashMap<String, u32> = HashMap::new();
    let puts = proxy.requests().into_iter().filter(|request| request.method == "PUT" && request.status == Some(200));
    puts.for_each(|request| *created.entry(request.path).or_default() += 1);
    let twice: Vec<_> = created.iter().filter(|(_, times)| **times > 1).collect();
    assert!(!created.is_empty() && twice.is_empty(), "{twice:?}");
}

// ---- uploads

/// The agent dies while the upload of one segment is held, the next one being stored already.
fn killed_at_an_upload(acknowledge: &str, fault: &Fault) {
    let cluster = Cluster::builder().segment_mib(1).archiving().start();
    let (proxy, bucket) = (S3Server::get().proxy(), S3Server::get().bucket());
    let mut walkeep = Walkeep::new(&cluster, Repository::s3(proxy.endpoint(), &bucket));
    walkeep.acknowledge = acknowledge.to_owned();
    // Nothing overtakes a segment of which parts are stored.
    walkeep.upload_interval = "1h".to_owned();
    walkeep.write_config();
    walkeep.ok(&["init"]);
    cluster.archive_by(None);
    let mut agent = walkeep.agent();
    let before = switch_and_store(&cluster, &agent, 1);
    cluster.sql("CREATE TABLE held AS SELECT generate_series(1, 1000) AS i");
    let name = cluster.sql("SELECT pg_walfile_name(pg_current_wal_insert_lsn())");
    let held = proxy.arm(When::put().path(&format!("/{name}.zst")), fault.clone());
    assert_eq!(cluster.switch_wal(), name);
    let next = cluster.switch_wal();
    let stored = |name: &str| bucket.list("main/").iter().any(|(key, _)| key.ends_with(&crate::story::object(&format!("/{name}"))));
    wait_until("the upload is held", SOON, || proxy.hits(held) > 0 && (*fault == Fault::Hang || stored(&name)));
    wait_until("the next one overtakes it", SOON, || stored(&next));
    assert!(walkeep.spool().join(&name).exists(), "it leaves the spool when it is known to be stored");
    let confirmed = lsn(&cluster.sql("SELECT coalesce(max(flush_lsn), '0/0') FROM pg_stat_replication"));
    if acknowledge == "repository" {
        assert!(confirmed < end_of(&name, 1), "nothing is confirmed before the answer, nor past it");
    }
    agent.kill9();
    proxy.drop_held();
    assert_eq!(stored(&name), *fault == Fault::HoldAnswer);
    let slot = lsn(&cluster.sql("SELECT restart_lsn FROM pg_replication_slots"));
    assert!(acknowledge == "spool" || slot <= end_of(&before, 1) + (1 << 20), "the server keeps it");

    let agent = walkeep.agent();
    switch_and_store(&cluster, &agent, 1);
    cluster.archive_now();
    assert!(compare_fetched(&cluster.oracle(), &walkeep) >= 4, "{acknowledge} {fault:?}");
    assert_created_once(&proxy);
    wait_until("the spool is empty but for what is being written", SOON, || segments_in(&walkeep.spool()).is_empty());
    assert_eq!(agent.metric("walkeep_conflicts_total"), Some(0.0));
    assert_calm(&agent, &[]);
    agent.stop();
}

#[test]
fn the_agent_before_an_upload() {
    killed_at_an_upload("repository", &Fault::Hang);
    killed_at_an_upload("spool", &Fault::Hang);
}

#[test]
fn the_agent_between_an_upload_and_its_report() {
    killed_at_an_upload("repository", &Fault::HoldAnswer);
    killed_at_an_upload("spool", &Fault::HoldAnswer);
}

/// The tail that a stopping agent stores, and a file that archive_command hands over.
#[test]
fn the_agent_at_the_tail_and_at_archive_command() {
    for fault in [Fault::Hang, Fault::HoldAnswer] {
        let cluster = Cluster::builder().segment_mib(1).archiving().start();
        let (proxy, bucket) = (S3Server::get().proxy(), S3Server::get().bucket());
        let mut walkeep = Walkeep::new(&cluster, Repository::s3(proxy.endpoint(), &bucket));
        // The only part is that of the stop.
        walkeep.upload_interval = "1h".to_owned();
        walkeep.write_config();
        walkeep.ok(&["init"]);
        cluster.archive_by(None);
        let mut agent = walkeep.agent();
        switch_and_store(&cluster, &agent, 1);
        cluster.sql("CREATE TABLE tail AS SELECT generate_series(1, 1000) AS i");
        let end = lsn(&cluster.lsn()) as f64;
        wait_until("it is received", SOON, || agent.metric("walkeep_wal_received_bytes").is_some_and(|at| at >= end));
        let held = proxy.arm(When::put().path(".parts/"), fault.clone());
        agent.signal("TERM");
        let parts = || bucket.list("main/").iter().filter(|(key, _)| key.contains(".parts/")).count();
        wait_until("the tail is held", SOON, || proxy.hits(held) > 0 && (fault == Fault::Hang || parts() > 0));
        agent.kill9();
        proxy.drop_held();
        assert_eq!(parts(), usize::from(fault == Fault::HoldAnswer));

        // By archive_command alone, whose shim's agent dies.
        walkeep.cluster_lines = "stream = false\n".to_owned();
        walkeep.write_config();
        let mut agent = walkeep.agent();
        let held = proxy.arm(When::put().path("/wal/"), fault.clone());
        cluster.archive_by(Some(&walkeep.archive_command()));
        let name = cluster.switch_wal();
        wait_until("the file is held", SOON, || proxy.hits(held) > 0);
        agent.kill9();
        wait_until("PostgreSQL is told", SOON, || cluster.value::<u64>("SELECT failed_count FROM pg_stat_archiver") > 0);
        assert!(!cluster.oracle().join(&name).exists(), "not acknowledged");
        proxy.drop_held();
        let agent = walkeep.agent();
        cluster.archive_now();
        assert!(compare_fetched(&cluster.oracle(), &walkeep) >= 3, "{fault:?}");
        assert_created_once(&proxy);
        assert_eq!(agent.metric("walkeep_conflicts_total"), Some(0.0));
        assert_calm(&agent, &[]);
        agent.stop();
    }
}

/// `command` under strace, which kills it at the `when`th of these system calls that one of its threads makes, before the call acts.
fn killed_at(command: &Command, calls: &str, when: u32, trace: &Path) -> Command {
    traced(command, &["-e", &format!("trace={calls}"), "-e", &format!("inject={calls}:signal=KILL:when={when}")], trace)
}

/// What the killed program was about to do.
fn last_call(trace: &Path) -> String {
    let text = process::read_log(trace);
    text.lines().rfind(|line| line.contains('(')).unwrap_or_default().to_owned()
}

/// D6: at each system call that makes something durable, of the spool and of a repository in a directory.
#[test]
fn the_agent_at_each_durable_step() {
    let cluster = Cluster::builder().segment_mib(1).archiving().conf("wal_keep_size", "256MB").start();
    let mut walkeep = uninitialised(&cluster, Store::Local);
    walkeep.acknowledge = "spool".to_owned();
    walkeep.write_config();
    walkeep.ok(&["init"]);
    cluster.archive_by(None);
    let mut killed = 0;
    let trace = walkeep.scratch().write("trace", "", 0o600);
    for (calls, whens) in [("rename", 1..=2), ("renameat2", 1..=3), ("fsync", 1..=6), ("fdatasync", 1..=2), ("unlink,unlinkat", 1..=3)] {
        for when in whens {
            let log = walkeep.scratch().join(format!("{calls}-{when}.log"));
            let mut agent = Process::start(killed_at(&walkeep.command(&["agent"]), calls, when, &trace), &log).unwrap();
            let mut segments = 0;
            let died = try_wait_for(Duration::from_secs(5), || {
                if segments == 0 || segments < 6 && agent.log().contains("INFO streaming") {
                    segments += 1;
                    cluster.switch_wal();
                }
                agent.ended()
            });
            match died {
                Some(status) => {
                    assert_eq!(status.signal(), Some(9), "{}", agent.log());
                    killed += 1;
                    eprintln!("killed at {}", last_call(&trace));
                }
                None => {
                    eprintln!("{calls} was not called {when} times by any thread");
                    process::descendants(agent.pid()).iter().for_each(|pid| process::signal(*pid, "KILL"));
                    agent.kill();
                }
            }
            assert!(!agent.log().contains("panicked"), "{}", agent.log());
            // A name is a whole file, whatever happened to its writer.
            for name in segments_in(&walkeep.spool()) {
                assert_eq!(std::fs::metadata(walkeep.spool().join(&name)).unwrap().len(), 1 << 20, "{calls} {when}: {name}");
            }
        }
    }
    eprintln!("{killed} agents killed");
    assert!(killed >= 12, "{killed}");
    let agent = walkeep.agent();
    switch_and_store(&cluster, &agent, 1);
    cluster.archive_now();
    assert!(compare_fetched(&cluster.oracle(), &walkeep) >= 8);
    assert_eq!(agent.metric("walkeep_conflicts_total"), Some(0.0));
    let status = walkeep.ok(&["status", "--json"]).json();
    assert_eq!((&status["gaps"], &status["timelines"][0]["holes"]), (&serde_json::json!([]), &serde_json::json!([])));
    wait_until("nothing is left over", SOON, || segments_in(&walkeep.spool()).is_empty());
    assert_calm(&agent, &["this run's spool"]);
    agent.stop();
}

// ---- backups

#[test]
fn a_backup_at_each_step() {
    let (proxy, bucket) = (S3Server::get().proxy(), S3Server::get().bucket());
    let story = Story::begin(builder(VERSION), Some(Repository::s3(proxy.endpoint(), &bucket)));
    story.insert(10);
    let mut whole = vec![story.backup()];
    story.insert(10);
    story.settle();
    // The second backup's packs would have the names of the first's, were its files the same.
    let slow = Fault::Rate(200_000);
    for (path, fault) in [
        ("/packs/", Fault::Hang),
        ("/packs/", slow.clone()),
        ("/packs/", Fault::HoldAnswer),
        ("/manifest.zst", Fault::Hang),
        ("/manifest.zst", Fault::HoldAnswer),
        ("/backup.json", Fault::Hang),
        ("/backup.json", Fault::HoldAnswer),
    ] {
        story.insert(1);
        let from = proxy.requests().len();
        let held = proxy.arm(When::put().path(path), fault.clone());
        let mut backup = Process::start(story.walkeep.command(&["backup", "--full"]), &story.walkeep.scratch().join("killed.log")).unwrap();
        wait_until("the step is reached", PATIENCE, || {
            assert!(backup.ended().is_none(), "{path} {fault:?}: {}", backup.log());
            let request = proxy.requests().into_iter().skip(from).find(|request| request.method == "PUT" && request.path.contains(path));
            proxy.hits(held) > 0
                && request.is_some_and(|request| match fault {
                    Fault::HoldAnswer => request.status == Some(200),
                    Fault::Hang => true,
                    _ => request.sent > 100_000,
                })
        });
        backup.kill();
        proxy.drop_held();
        let shown = backups(&story.walkeep);
        if (path, &fault) == ("/backup.json", &Fault::HoldAnswer) {
            // It was done, although nobody was told.
            assert_eq!(shown.len(), whole.len() + 1);
            whole = shown.clone();
        }
        assert_eq!(shown, whole, "{path} {fault:?}");
        assert_eq!(plan(&story.walkeep, &[])["backup"]["id"].as_str(), whole.last().map(String::as_str), "{path} {fault:?}");
        assert_eq!(story.walkeep.ok(&["status", "--json"]).json()["backups"], whole.len(), "{path} {fault:?}");
    }
    let ended = || story.cluster.value::<u32>("SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'BASE_BACKUP%'") == 0;
    wait_until("the server has ended the backups", PATIENCE, ended);
    story.settle();
    for id in &whole {
        let restored = story.restore(&["--backup", id]);
        restored.verify();
        assert_eq!(restored.start().rows(), 27, "{id}");
    }
    assert_created_once(&proxy);
    story.end(&["trying again", "the stream ended", "cannot look"]);
}

// ---- restores

/// What a killed restore left: nothing, or what no server starts on and no restore is done over.
#[track_caller]
fn assert_half(walkeep: &Walkeep, to: &Path) {
    assert!(!to.join("global/pg_control").exists());
    if !to.exists() || std::fs::read_dir(to).unwrap().next().is_none() {
        return;
    }
    let error = Cluster::adopt(VERSION, to).try_start().unwrap_err().to_string();
    assert!(error.contains("the server ended"), "{error}");
    let before = story::listing(to);
    let again = walkeep.run(&["restore", "--to", &to.to_string_lossy()]).expect_code(3);
    assert!(again.stderr.contains("is not empty"), "{}", again.stderr);
    assert_eq!(story::listing(to), before);
}

#[test]
fn a_restore_at_each_step() {
    let (proxy, bucket) = (S3Server::get().proxy(), S3Server::get().bucket());
    let story = Story::begin(builder(VERSION), Some(Repository::s3(proxy.endpoint(), &bucket)));
    story.insert(10);
    story.backup();
    story.insert(10);
    story.settle();
    let place = Scratch::new();
    let packs = When::get().path("/packs/");
    proxy.forget();
    story.walkeep.ok(&["restore", "--to", &place.join("whole").to_string_lossy()]);
    let reads = proxy.count(&packs) as u64;
    assert!(reads >= 4, "{reads}");
    // An encrypted pack's header is read first.
    let headers = u64::from(walkeep_tests::keys::is_everything_encrypted());
    // Held in the order of a restore: the plan, the manifest, the small files, the first and the last of the others.
    let steps = [
        When::get().path("/backup.json"),
        When::get().path("/manifest.zst"),
        packs.clone(),
        packs.clone().skip(1),
        packs.clone().skip(2 + headers),
        packs.clone().skip(reads - 1),
    ];
    for (number, when) in steps.into_iter().enumerate() {
        let to = place.join(format!("held-{number}"));
        let held = proxy.arm(when, Fault::Hang);
        let mut restore =
            Process::start(story.walkeep.command(&["restore", "--to", &to.to_string_lossy()]), &place.join("restore.log")).unwrap();
        wait_until("the step is reached", PATIENCE, || {
            assert!(restore.ended().is_none(), "{}", restore.log());
            proxy.hits(held) > 0
        });
        restore.kill();
        proxy.drop_held();
        // Before everything was looked at nothing is made.
        assert_eq!(to.exists(), number >= 4, "step {number}");
        assert_half(&story.walkeep, &to);
    }
    // Its end: settings, links, fsync, and the name that makes it whole.
    let (mut half, mut ended) = (0, 0);
    let trace = place.write("trace", "", 0o600);
    for (calls, whens) in [("syncfs", 1..=1), ("fsync", 1..=3), ("rename", 1..=5)] {
        for when in whens {
            let to = place.join(format!("{calls}-{when}"));
            let restore = story.walkeep.command(&["restore", "--to", &to.to_string_lossy()]);
            let mut restore = Process::start(killed_at(&restore, calls, when, &trace), &place.join("restore.log")).unwrap();
            let status = restore.wait(PATIENCE).unwrap_or_else(|| panic!("{calls} {when}: {}", restore.log()));
            assert!(status.success() || status.signal() == Some(9), "{status}: {}", restore.log());
            if status.success() {
                ended += 1;
                assert!(to.join("global/pg_control").exists());
            } else {
                half += 1;
                assert_half(&story.walkeep, &to);
            }
            eprintln!("{status} at {}", last_call(&trace));
        }
    }
    assert_eq!((half, ended), (8, 1));
    let restored = story.restore(&[]);
    restored.verify();
    assert_eq!(restored.start().rows(), 20);
    story.end(&["trying again", SERVER_GONE[0], SERVER_GONE[1]]);
}
