//! An S3 server that fails in all its ways, and a spool that is full: the server is unharmed, and nothing is missing afterwards.

use std::time::{Duration, Instant};

use walkeep_tests::walkeep::run;
use walkeep_tests::{Agent, Bucket, Cluster, Fault, FaultProxy, Repository, S3Server, Stop, Walkeep, When, compare_fetched, wait_until};

use crate::story::{self, Story};
use crate::support::{MIB, SERVER_GONE, Tmpfs, assert_calm, end_of, segments_in, switch_and_store, wait_durable};

const SOON: Duration = Duration::from_secs(30);
const RETRIED: &str = "failed; trying again";
/// What archive_command is told while the store does not answer.
const NOT_NOW: [&str; 3] = [RETRIED, "not now request=\"archive", "failed request=\"archive"];

/// A cluster and Walkeep with a bucket behind a proxy, initialised while the store was well.
fn behind_proxy(cluster: &Cluster) -> (FaultProxy, Bucket, Walkeep) {
    let (proxy, bucket) = (S3Server::get().proxy(), S3Server::get().bucket());
    let walkeep = Walkeep::new(cluster, Repository::s3(proxy.endpoint(), &bucket));
    walkeep.ok(&["init"]);
    (proxy, bucket, walkeep)
}

/// Load by both ways while `fault` is armed; at the end, with the store well again, everything is there.
fn load_under(when: When, fault: Fault, expected: &[&str]) {
    let cluster = Cluster::builder().segment_mib(1).archiving().start();
    let (proxy, _, walkeep) = behind_proxy(&cluster);
    let agent = walkeep.agent();
    cluster.archive_by(Some(&walkeep.archive_command()));
    let armed = proxy.arm(when, fault.clone());
    cluster.pgbench_init(1);
    cluster.switch_wal();
    wait_until("the fault acted", SOON, || proxy.hits(armed) >= 3);
    cluster.pgbench_run(&["-c", "2", "-T", "1"]);
    eprintln!("{fault:?} acted {} times", proxy.hits(armed));
    proxy.disarm_all();
    let last = cluster.archive_now();
    wait_durable(&agent, end_of(&last, 1), SOON);
    assert!(compare_fetched(&cluster.oracle(), &walkeep) >= 10);
    assert_eq!(agent.metric("walkeep_conflicts_total"), Some(0.0));
    assert_calm(&agent, expected);
    agent.stop();
}

/// N1
#[test]
fn a_third_of_all_requests_is_slowed_down() {
    load_under(When::any().every(3), Fault::SLOW_DOWN, &NOT_NOW);
}

/// N2
#[test]
fn connections_are_cut() {
    load_under(When::put().every(2), Fault::DropRequest, &NOT_NOW);
}

/// N4
#[test]
fn answers_to_puts_are_lost() {
    load_under(When::put().every(2), Fault::DropAnswer, &NOT_NOW);
}

/// N5
#[test]
fn conditional_puts_conflict_with_nothing() {
    load_under(When::put().every(2), Fault::CONDITIONAL_CONFLICT, &NOT_NOW);
}

/// N8
#[test]
fn etags_are_strange() {
    load_under(When::any(), Fault::StrangeEtag, &NOT_NOW);
}

/// N11
#[test]
fn listings_are_behind_and_in_no_order() {
    load_under(When::list(), Fault::StaleListing("/wal/"), &NOT_NOW);
}

/// N11: what a listing leaves out is stored all the same: nothing is taken for absent by it, nothing is stored twice, and no plan promises what it did not see.
#[test]
fn what_a_listing_leaves_out_is_not_absent() {
    let (proxy, bucket) = (S3Server::get().proxy(), S3Server::get().bucket());
    let story = Story::begin(story::builder(15), Some(Repository::s3(proxy.endpoint(), &bucket)));
    story.insert(10);
    story.backup();
    story.insert(10);
    let segment = story.cluster.switch_wal();
    story.settle();
    let to = |name: &str| story.walkeep.scratch().join(name).to_string_lossy().into_owned();

    let stale = proxy.arm(When::list(), Fault::StaleListing("/wal/"));
    story.walkeep.ok(&["wal", "fetch", &segment, &to("fetched")]);
    let planned = story.walkeep.run(&["plan", "--json"]);
    assert_eq!(planned.code, Some(3), "no WAL is seen, so nothing can be promised: {planned:?}");
    assert!(proxy.hits(stale) > 0);
    proxy.disarm(stale);

    // The next backup sees neither the one before nor what it stored: it stores the same once more, under the same names.
    for without in ["/packs/", "/backups/"] {
        let stale = proxy.arm(When::list(), Fault::StaleListing(without));
        story.insert(1);
        story.walkeep.run(&["backup"]);
        assert!(proxy.hits(stale) > 0);
        proxy.disarm(stale);
    }
    story.insert(5);
    story.settle();
    story.walkeep.ok(&["verify", "--deep"]);
    let restored = story.restore(&[]);
    assert_eq!(restored.start().rows(), 27);
    story.end(&NOT_NOW);
}

/// N6
#[test]
fn a_store_that_overwrites_is_refused() {
    let cluster = Cluster::builder().segment_mib(1).start();
    let (proxy, bucket) = (S3Server::get().proxy(), S3Server::get().bucket());
    let walkeep = Walkeep::new(&cluster, Repository::s3(proxy.endpoint(), &bucket));
    proxy.arm(When::put(), Fault::IgnoreIfNoneMatch);
    let init = walkeep.run(&["init"]).expect_code(1);
    assert!(init.stderr.contains("If-None-Match") || init.stderr.contains("condition"), "{}", init.stderr);
    assert_eq!(cluster.sql("SELECT count(*) FROM pg_replication_slots"), "0");
    assert!(!bucket.list("").iter().any(|(key, _)| key.ends_with("cluster.json")), "{:?}", bucket.list(""));
}

/// N12, N9: what is no "not there".
#[test]
fn other_errors_are_not_absence() {
    let cluster = Cluster::builder().segment_mib(1).archiving().start();
    let (proxy, _, walkeep) = behind_proxy(&cluster);
    let absent = "000000010000000000000077";
    let to = walkeep.scratch().join("absent");
    assert_eq!(walkeep.run(&["wal", "fetch", absent, &to.to_string_lossy()]).code, Some(1));
    for fault in [Fault::NO_SUCH_BUCKET, Fault::ACCESS_DENIED, Fault::EXPIRED_TOKEN, Fault::CLOCK_SKEW] {
        proxy.arm(When::get(), fault.clone());
        let begun = Instant::now();
        let output = walkeep.run(&["wal", "fetch", absent, &to.to_string_lossy()]);
        eprintln!("{fault:?}: exit {:?} after {:?}: {}", output.code, begun.elapsed(), output.stderr.lines().last().unwrap_or_default());
        assert!(output.code.is_some_and(|code| code > 125), "{fault:?}: {output:?}");
        proxy.disarm_all();
        // The shim and PostgreSQL are told.
        proxy.arm(When::any(), fault.clone());
        let path = cluster.pg_wal().join(cluster.switch_wal());
        let output = walkeep.run(&["wal", "push", &path.to_string_lossy()]).expect_code(1);
        let Fault::Status(_, code) = fault else { unreachable!() };
        assert!(output.stderr.contains(code), "{output:?}");
        proxy.disarm_all();
        walkeep.ok(&["wal", "push", &path.to_string_lossy()]);
    }
}

fn lag(agent: &Agent) -> (f64, f64) {
    (agent.metric("walkeep_wal_lag_bytes").unwrap(), agent.metric("walkeep_wal_lag_seconds").unwrap())
}

/// N2: the store is gone for a while, under load.
#[test]
fn an_outage_of_the_store() {
    let cluster = Cluster::builder().segment_mib(1).archiving().start();
    let (proxy, _, walkeep) = behind_proxy(&cluster);
    let agent = walkeep.agent();
    cluster.archive_by(Some(&walkeep.archive_command()));
    switch_and_store(&cluster, &agent, 1);
    let durable = agent.metric("walkeep_wal_durable_bytes").unwrap();
    proxy.close();
    // The server does not notice.
    cluster.pgbench_init(1);
    cluster.pgbench_run(&["-c", "2", "-T", "2"]);
    wait_until("the lag rises", SOON, || {
        let (bytes, seconds) = lag(&agent);
        bytes > (10 * MIB) as f64 && seconds > 1.5
    });
    assert_eq!(agent.metric("walkeep_wal_durable_bytes"), Some(durable), "nothing is said to be durable");
    let restart = cluster.sql("SELECT restart_lsn FROM pg_replication_slots");
    assert!(crate::support::lsn(&restart) as f64 <= durable, "the server keeps it");
    wait_until("PostgreSQL is told", SOON, || cluster.value::<u64>("SELECT failed_count FROM pg_stat_archiver") > 0);
    assert!(agent.metric("walkeep_errors_total{kind=\"transient\"}").unwrap() > 0.0);
    proxy.open();
    let last = cluster.switch_wal();
    wait_durable(&agent, end_of(&last, 1), Duration::from_secs(60));
    wait_until("the lag falls", SOON, || lag(&agent).0 < MIB as f64);
    cluster.archive_now();
    assert!(compare_fetched(&cluster.oracle(), &walkeep) >= 12);
    // The index may be due in that time.
    assert_calm(&agent, &[NOT_NOW.as_slice(), &["the index of the WAL waits"]].concat());
    agent.stop();
}

/// The spool's limit is reached in an outage; the server keeps the rest.
#[test]
fn a_full_spool_pauses_the_stream() {
    let cluster = Cluster::builder().segment_mib(1).archiving().conf("max_wal_size", "1GB").start();
    let (proxy, _, mut walkeep) = behind_proxy(&cluster);
    walkeep.cluster_lines = "spool_limit = \"32MiB\"\n".to_owned();
    walkeep.write_config();
    cluster.archive_by(None);
    let agent = walkeep.agent();
    proxy.close();
    cluster.pgbench_init(4);
    cluster.pgbench_run(&["-c", "2", "-T", "1"]);
    wait_until("the spool is full", SOON, || agent.metric("walkeep_stream_phase{phase=\"spool_full\"}") == Some(1.0));
    let spooled = || segments_in(&walkeep.spool()).len();
    assert!((30..=32).contains(&spooled()), "{}", spooled());
    // Neither reads on nor loses the connection, and the server goes on writing.
    cluster.pgbench_init(2);
    assert!((30..=32).contains(&spooled()));
    assert!(resident_mib(&agent) < 300, "{} MiB", resident_mib(&agent));
    assert_eq!(cluster.sql("SELECT count(*) FROM pg_stat_replication"), "1");
    proxy.open();
    let last = cluster.switch_wal();
    wait_durable(&agent, end_of(&last, 1), Duration::from_secs(60));
    wait_until("it streams", SOON, || agent.metric("walkeep_stream_phase{phase=\"streaming\"}") == Some(1.0));
    cluster.archive_now();
    assert!(compare_fetched(&cluster.oracle(), &walkeep) > 60);
    assert_calm(&agent, &[RETRIED, "the spool is full"]);
    agent.stop();
}

/// N16: the link is much slower than the WAL. The spool fills to its limit and not beyond, the agent's memory does not follow, the server writes on; and when
/// the link is fast again nothing is missing.
#[test]
fn a_slow_link() {
    let cluster = Cluster::builder().segment_mib(1).archiving().conf("max_wal_size", "1GB").start();
    let (proxy, _, mut walkeep) = behind_proxy(&cluster);
    walkeep.cluster_lines = "spool_limit = \"32MiB\"\n".to_owned();
    walkeep.write_config();
    cluster.archive_by(None);
    let agent = walkeep.agent();
    switch_and_store(&cluster, &agent, 1);
    // The one that streams: the agent asks for the slot's state on connections of their own, for a moment each.
    let walsender = || cluster.sql("SELECT pid FROM pg_stat_replication WHERE state <> 'startup'");
    let (before, streams) = (memory_mib(&agent, "VmHWM"), walsender());
    let slow = proxy.arm(When::put(), Fault::Rate(16_000));
    let mut load = cluster.pgbench_spawn(&["-i", "-q", "-s", "6"]);
    let mut most = 0;
    wait_until("the load is over", SOON * 2, || {
        let sizes = std::fs::read_dir(walkeep.spool()).unwrap().filter_map(|entry| Some(entry.ok()?.metadata().ok()?.len()));
        most = most.max(sizes.sum::<u64>());
        load.ended().is_some()
    });
    wait_until("the spool is full", SOON, || agent.metric("walkeep_stream_phase{phase=\"spool_full\"}") == Some(1.0));
    let (peak, behind) = (memory_mib(&agent, "VmHWM"), lag(&agent).0);
    eprintln!("memory {before} MiB before, {peak} at most; the spool {most} bytes at most; {behind} bytes behind");
    assert!(proxy.hits(slow) > 0 && behind > (30 * MIB) as f64, "the metric shows it: {behind}");
    assert!(most <= 32 * MIB, "{most}");
    assert!(peak <= before + 48, "{before} MiB before, {peak} then");
    assert_eq!(walsender(), streams, "backpressure, not a lost connection");
    proxy.disarm_all();
    let last = cluster.switch_wal();
    wait_durable(&agent, end_of(&last, 1), Duration::from_secs(60));
    cluster.archive_now();
    assert!(compare_fetched(&cluster.oracle(), &walkeep) > 60);
    assert_eq!(walkeep.ok(&["status", "--json"]).json()["gaps"], serde_json::json!([]));
    assert_calm(&agent, &[RETRIED, "the spool is full"]);
    agent.stop();
}

/// The server is to stop while the spool is full and the store away: it waits for nobody longer than its own settings say, and nothing is lost.
fn stop_with_a_full_spool(acknowledge: &str, wal_sender_timeout: &str) {
    let builder = Cluster::builder().segment_mib(1).archiving().conf("max_wal_size", "1GB");
    let cluster = builder.conf("wal_sender_timeout", wal_sender_timeout).start();
    let (proxy, _, mut walkeep) = behind_proxy(&cluster);
    walkeep.acknowledge = acknowledge.to_owned();
    walkeep.cluster_lines = "spool_limit = \"32MiB\"\n".to_owned();
    walkeep.write_config();
    cluster.archive_by(None);
    let agent = walkeep.agent();
    switch_and_store(&cluster, &agent, 1);
    proxy.close();
    cluster.pgbench_init(4);
    wait_until("the spool is full", SOON, || agent.metric("walkeep_stream_phase{phase=\"spool_full\"}") == Some(1.0));
    cluster.sql("CREATE TABLE last AS SELECT generate_series(1, 100) AS i");
    let begun = Instant::now();
    cluster.stop(Stop::Fast);
    eprintln!("{acknowledge}, wal_sender_timeout = {wal_sender_timeout}: the stop took {:?}", begun.elapsed());
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    // It comes back while the store is still away, and goes on.
    cluster.start();
    assert_eq!(cluster.sql("SELECT count(*) FROM last"), "100");
    cluster.sql("INSERT INTO last SELECT generate_series(101, 200)");
    assert_eq!(agent.get("/readyz").unwrap().0, 503);
    proxy.open();
    let last = cluster.switch_wal();
    wait_durable(&agent, end_of(&last, 1), Duration::from_secs(60));
    cluster.archive_now();
    assert!(compare_fetched(&cluster.oracle(), &walkeep) >= 40);
    assert_eq!(walkeep.ok(&["status", "--json"]).json()["gaps"], serde_json::json!([]));
    assert_eq!(agent.metric("walkeep_conflicts_total"), Some(0.0));
    assert_calm(&agent, &[RETRIED, "the spool is full", SERVER_GONE[0], SERVER_GONE[1]]);
    agent.stop();
}

#[test]
fn a_server_stops_while_the_spool_is_full() {
    stop_with_a_full_spool("repository", "2s");
    stop_with_a_full_spool("spool", "2s");
}

#[test]
fn a_server_that_never_times_out_stops_while_the_spool_is_full() {
    stop_with_a_full_spool("repository", "0");
}

fn resident_mib(agent: &Agent) -> u64 {
    memory_mib(agent, "VmRSS")
}

/// `VmRSS`: at this moment; `VmHWM`: at most so far.
fn memory_mib(agent: &Agent, what: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", agent.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(what)?.strip_prefix(':')).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
}

/// The server is gone for ever, and the store was away when it went: what was acknowledged out of the spool is stored all the same.
#[test]
fn a_spool_without_its_server_is_stored() {
    let cluster = Cluster::builder().segment_mib(1).archiving().start();
    let (proxy, _, mut walkeep) = behind_proxy(&cluster);
    walkeep.acknowledge = "spool".to_owned();
    walkeep.write_config();
    cluster.archive_by(None);
    let agent = walkeep.agent();
    switch_and_store(&cluster, &agent, 1);
    proxy.close();
    cluster.pgbench_init(1);
    cluster.archive_now();
    let wanted = cluster.lsn();
    wait_until("the spool has it", SOON, || {
        cluster.sql(&format!("SELECT coalesce(max(flush_lsn) >= '{wanted}', false) FROM pg_stat_replication")) == "t"
    });
    cluster.kill9();
    std::fs::remove_dir_all(cluster.data()).unwrap();
    assert!(segments_in(&walkeep.spool()).len() > 10);
    agent.stop();
    proxy.open();
    let agent = walkeep.launch_agent().unwrap();
    // But for the notes.
    let wal = || {
        std::fs::read_dir(walkeep.spool())
            .unwrap()
            .filter(|entry| entry.as_ref().unwrap().path().extension().is_none_or(|kind| kind != "json"))
            .count()
    };
    wait_until("the spool is empty", Duration::from_secs(60), || wal() == 0);
    assert!(compare_fetched(&cluster.oracle(), &walkeep) > 10);
    assert_calm(&agent, &SERVER_GONE);
    drop(agent);
}

/// D1: no space left for the spool, before its limit is reached.
#[test]
fn no_space_for_the_spool() {
    for acknowledge in ["repository", "spool"] {
        let cluster = Cluster::builder().segment_mib(1).archiving().start();
        let (proxy, _, mut walkeep) = behind_proxy(&cluster);
        walkeep.acknowledge = acknowledge.to_owned();
        walkeep.write_config();
        let spool = walkeep.spool();
        let Some(tmpfs) = Tmpfs::mount(&spool, "12m") else { return };
        cluster.archive_by(None);
        let agent = walkeep.agent();
        let away = proxy.arm(When::put(), Fault::SLOW_DOWN);
        cluster.pgbench_init(1);
        cluster.pgbench_run(&["-c", "2", "-T", "1"]);
        wait_until("it complains", SOON, || agent.log().contains("No space left on device"));
        let lengths = segments_in(&spool).into_iter().map(|name| std::fs::metadata(spool.join(name)).unwrap().len());
        assert!(lengths.clone().count() > 3 && lengths.clone().all(|length| length == MIB), "a whole name is a whole segment");
        cluster.sql("SELECT 1");
        proxy.disarm(away);
        if acknowledge == "spool" {
            tmpfs.remount("size=64m");
        }
        let last = cluster.switch_wal();
        wait_durable(&agent, end_of(&last, 1), Duration::from_secs(60));
        cluster.archive_now();
        assert!(compare_fetched(&cluster.oracle(), &walkeep) >= 12);
        assert_eq!(walkeep.ok(&["status", "--json"]).json()["gaps"], serde_json::json!([]));
        cluster.stop(Stop::Fast);
        assert_calm(&agent, &[RETRIED, SERVER_GONE[0], SERVER_GONE[1], "No space left"]);
        agent.stop();
        drop(tmpfs);
    }
}

/// A machine without `ca-certificates`: nothing is needed where there is no TLS, and where there is it is said at once.
#[test]
fn a_machine_without_authorities() {
    let mut walkeep = Walkeep::offline(Repository::s3(S3Server::get().endpoint(), &S3Server::get().bucket()));
    let none = walkeep.scratch().write("no-authorities.pem", "", 0o600);
    walkeep.environment.push(("SSL_CERT_FILE".into(), none.to_string_lossy().into_owned()));
    let empty = walkeep.run(&["status"]);
    assert!(empty.code == Some(1) && empty.stderr.contains("walkeep init"), "it got as far as the bucket: {empty:?}");
    walkeep.repositories = vec![Repository::s3_tls(&S3Server::get().bucket())];
    walkeep.write_config();
    assert!(walkeep.run(&["status"]).stderr.contains("walkeep init"), "its own authority is enough");
    if let Repository::S3 { ca, .. } = &mut walkeep.repositories[0] {
        *ca = None;
    }
    walkeep.write_config();
    let refused = walkeep.run(&["status"]);
    assert!(!refused.ok() && refused.stderr.contains("ca-certificates") && refused.stderr.contains("ca_file"), "{refused:?}");
    assert!(!refused.stderr.contains("panicked"), "{refused:?}");
}

/// What the stream stored is looked at once more before archive_command is told "done": after that the server may remove its copy.
#[test]
fn what_others_deleted_is_archived_again() {
    let cluster = Cluster::builder().segment_mib(1).archiving().start();
    let walkeep = Walkeep::local(&cluster);
    walkeep.ok(&["init"]);
    cluster.archive_by(None);
    let agent = walkeep.agent();
    let name = switch_and_store(&cluster, &agent, 1);
    let object = story::wait_for_file(&walkeep.local_repository(), &story::object(&format!("/{name}")));
    let offer = || {
        let file = cluster.pg_wal().join(&name);
        run(&mut walkeep.command_of("walkeep-archive-cmd", &["--socket", &walkeep.socket().to_string_lossy(), &file.to_string_lossy()]))
    };
    cluster.archive_now();
    offer().expect_code(0);
    std::fs::remove_file(&object).unwrap();
    offer().expect_code(0);
    assert!(object.exists());
    assert!(compare_fetched(&cluster.oracle(), &walkeep) >= 1);
    assert_calm(&agent, &["is gone from the repository"]);
    agent.stop();
}

/// A hole that others made is filled when the stream begins anew, if the server still has the WAL; else it is a gap.
#[test]
fn what_others_deleted_is_streamed_again_or_a_gap() {
    for kept in [true, false] {
        let size = if kept { "256MB" } else { "0" };
        let cluster = Cluster::builder().segment_mib(1).archiving().conf("wal_keep_size", size).conf("max_wal_size", "4MB").start();
        let mut walkeep = Walkeep::local(&cluster);
        walkeep.upload_interval = "1h".to_owned();
        walkeep.write_config();
        walkeep.ok(&["init"]);
        cluster.archive_by(None);
        let agent = walkeep.agent();
        let names: Vec<String> = (0..6).map(|_| switch_and_store(&cluster, &agent, 1)).collect();
        cluster.archive_now();
        agent.stop();
        for name in &names[2..4] {
            std::fs::remove_file(story::wait_for_file(&walkeep.local_repository(), &story::object(&format!("/{name}")))).unwrap();
        }
        if !kept {
            cluster.sql("CHECKPOINT");
            wait_until("the server has removed it", SOON, || !cluster.pg_wal().join(&names[3]).exists());
        }
        let agent = walkeep.agent();
        switch_and_store(&cluster, &agent, 1);
        cluster.archive_now();
        let gaps = walkeep.ok(&["status", "--json"]).json()["gaps"].as_array().unwrap().len();
        if kept {
            assert!(compare_fetched(&cluster.oracle(), &walkeep) >= 7);
            assert_eq!(gaps, 0);
            assert_calm(&agent, &[]);
        } else {
            assert_eq!(gaps, 1);
            assert_eq!(agent.metric("walkeep_gaps"), Some(1.0));
            assert_calm(&agent, &["the stream ended", "GAP in the archive", "cannot be compared"]);
        }
        agent.stop();
        // Once told, it is no reason to begin there again.
        let agent = walkeep.agent();
        switch_and_store(&cluster, &agent, 1);
        assert_calm(&agent, &[]);
        agent.stop();
    }
}

/// N10: a clock that is more than a quarter of an hour off. S3 refuses what is signed by it; the answer has the right time, by which it is asked once more.
#[test]
fn a_clock_that_is_off_is_no_endless_story() {
    if !std::path::Path::new(&crate::clocks::library()).exists() {
        eprintln!("SKIPPED: libfaketime is not here");
        return;
    }
    let cluster = Cluster::builder().segment_mib(1).archiving().start();
    let (proxy, _, mut walkeep) = behind_proxy(&cluster);
    for by in ["+1h", "-1h"] {
        crate::clocks::shift(&mut walkeep, Some(by));
        proxy.forget();
        let path = cluster.pg_wal().join(cluster.switch_wal());
        let pushed = walkeep.run(&["wal", "push", &path.to_string_lossy()]);
        let requests = proxy.requests();
        let refused = requests.iter().filter(|request| request.status == Some(403)).count();
        eprintln!("{by}: exit {:?}, {} requests, {refused} of them refused: {}", pushed.code, requests.len(), pushed.stderr);
        assert!(refused <= 6, "{by}: {refused} refusals of {}", requests.len());
        let is_told = pushed.stderr.contains("RequestTimeTooSkewed") && pushed.stderr.contains("set this machine's clock");
        assert!(pushed.code == Some(0) || pushed.code == Some(1) && is_told, "{by}: {pushed:?}");
    }
}

/// N13: every object is put by one request. There is no upload in parts that a kill could leave behind, however large a pack is.
#[test]
fn nothing_is_uploaded_in_parts() {
    let cluster = Cluster::builder().segment_mib(1).archiving().start();
    let (proxy, bucket, walkeep) = behind_proxy(&cluster);
    let agent = walkeep.agent();
    cluster.archive_by(Some(&walkeep.archive_command()));
    cluster.sql("CREATE TABLE noise AS SELECT gen_random_uuid() AS a, gen_random_uuid() AS b FROM generate_series(1, 400000)");
    // Killed while a pack is under way, too.
    let pack = || When::put().path("/packs/");
    let held = proxy.arm(pack(), Fault::Hang);
    let mut killed = walkeep.command(&["backup"]).spawn().unwrap();
    wait_until("a pack is under way", SOON, || proxy.hits(held) > 0);
    killed.kill().unwrap();
    killed.wait().unwrap();
    proxy.drop_held();
    assert!(!bucket.list("").iter().any(|(key, _)| key.contains("/packs/")), "an object is there whole or not at all");
    crate::story::backup(&walkeep);
    assert!(bucket.list("").iter().any(|(key, bytes)| key.contains("/packs/") && *bytes > 8 << 20), "{:?}", bucket.list(""));
    let in_parts = |request: &&walkeep_tests::Request| request.query.contains("upload");
    assert_eq!(proxy.requests().iter().filter(in_parts).count(), 0);
    walkeep.ok(&["verify", "--deep"]);
    agent.stop();
}
