//! `protect = "primary"`: in an outage of the store the slot is given up at a limit, and never before; what follows is as exact as ever.

use std::time::Duration;

use walkeep_tests::{Agent, Cluster, Fault, FaultProxy, Repository, S3Server, Walkeep, When, wait_until};

use crate::support::{assert_calm, fetch, lsn, segments_in, switch_and_store};

const SOON: Duration = Duration::from_secs(30);
const SLOTS: &str = "SELECT count(*) FROM pg_replication_slots";
/// What is told where all went as it must in an outage.
const OUTAGE: [&str; 8] = [
    "the index of the WAL waits",
    "failed; trying again",
    "the spool is full",
    "SLOT GIVEN UP",
    "the stream ended",
    "making the slot anew that was given up",
    "no base backup begins behind the gap",
    "cannot be compared",
];

/// A server that removes what nothing holds, with a slot of 40 MiB at most above a spool of 32.
fn guarded(acknowledge: &str, kept: &str) -> (Cluster, FaultProxy, Walkeep) {
    let builder = Cluster::builder().segment_mib(1).conf("min_wal_size", "2MB").conf("max_wal_size", "1GB");
    let cluster = builder.conf("wal_keep_size", kept).start();
    let proxy = S3Server::get().proxy();
    let mut walkeep = Walkeep::new(&cluster, Repository::s3(proxy.endpoint(), &S3Server::get().bucket()));
    walkeep.acknowledge = acknowledge.to_owned();
    walkeep.cluster_lines = "protect = \"primary\"\nspool_limit = \"32MiB\"\nslot_limit = \"40MiB\"\n".to_owned();
    walkeep.write_config();
    walkeep.ok(&["init"]);
    (cluster, proxy, walkeep)
}

/// Ends so many segments.
fn write_segments(cluster: &Cluster, segments: usize) -> Vec<String> {
    (0..segments).map(|_| cluster.switch_wal()).collect()
}

#[track_caller]
fn wait_spool_full(agent: &Agent) {
    wait_until("the spool is full", SOON, || agent.metric("walkeep_stream_phase{phase=\"spool_full\"}") == Some(1.0));
}

/// Writes on until the slot is gone.
#[track_caller]
fn overload(cluster: &Cluster, agent: &Agent) {
    wait_until("the slot is given up", SOON, || {
        cluster.switch_wal();
        agent.log().contains("SLOT GIVEN UP")
    });
    assert_eq!(cluster.sql(SLOTS), "0");
    assert_eq!(agent.metric("walkeep_slot_given_up"), Some(1.0));
}

/// The server removes what nothing holds any more: this segment too.
#[track_caller]
fn removed(cluster: &Cluster, segment: &str) {
    cluster.set("max_wal_size", "4MB");
    wait_until("the server has removed it", SOON, || {
        cluster.switch_wal();
        cluster.sql("CHECKPOINT");
        !cluster.pg_wal().join(segment).exists()
    });
}

/// What is in the repository of `names` is what the server wrote; how many of them there are.
fn stored(walkeep: &Walkeep, copies: &std::path::Path, names: &[String]) -> usize {
    let there = names.iter().filter(|name| {
        let to = walkeep.scratch().join("one");
        let _ = std::fs::remove_file(&to);
        let found = walkeep.run(&["wal", "fetch", name, &to.to_string_lossy()]).ok();
        assert!(!found || std::fs::read(&to).unwrap() == std::fs::read(copies.join(name)).unwrap(), "{name}");
        found
    });
    there.count()
}

/// The store is away for longer than the server can bear: the slot goes, the spool is stored, the gap is recorded from the first byte that is nowhere,
/// and a backup is taken behind it. The agent is killed meanwhile.
fn given_up(acknowledge: &str) {
    let (cluster, proxy, walkeep) = guarded(acknowledge, "0");
    let mut agent = walkeep.agent();
    switch_and_store(&cluster, &agent, 1);
    walkeep.ok(&["backup"]);
    proxy.close();
    let mut names = write_segments(&cluster, 36);
    wait_spool_full(&agent);
    assert_eq!(cluster.sql(SLOTS), "1", "below its limit it stays");
    overload(&cluster, &agent);
    let spooled = segments_in(&walkeep.spool());
    assert!(spooled.len() >= 30, "{spooled:?}");
    names.retain(|name| cluster.pg_wal().join(name).exists());
    let copies = crate::support::copies(&walkeep, "copies", &cluster.pg_wal(), &names);
    let lost = names.last().unwrap().clone();
    removed(&cluster, &lost);
    agent.kill9();
    let agent = walkeep.launch_agent().unwrap();
    wait_until("it is there", SOON, || agent.get("/healthz").is_ok());
    assert_eq!(agent.metric("walkeep_slot_given_up"), Some(1.0), "it remembers");
    assert_eq!(segments_in(&walkeep.spool()), spooled);
    proxy.open();
    let last = switch_and_store(&cluster, &agent, 1);
    wait_until("it is over", SOON, || agent.metric("walkeep_slot_given_up") == Some(0.0));
    assert_eq!(cluster.sql(SLOTS), "1");
    // One gap, that begins where what was received ends.
    let status = walkeep.ok(&["status", "--json"]).json();
    let gaps = status["gaps"].as_array().unwrap();
    assert_eq!(gaps.len(), 1, "{status}");
    assert_eq!(gaps[0]["cause"], "slot_given_up", "{status}");
    let (from, to) = (lsn(gaps[0]["name"]["from"].as_str().unwrap()), lsn(gaps[0]["name"]["to"].as_str().unwrap()));
    assert!(spooled.iter().all(|name| crate::support::end_of(name, 1) <= from), "{from:X}: {spooled:?}");
    assert!(from < crate::support::end_of(&lost, 1) && to >= crate::support::end_of(&lost, 1), "{from:X} {to:X}: {lost}");
    assert!(to < crate::support::end_of(&last, 1));
    let compared = stored(&walkeep, &copies, &names);
    assert!(compared >= spooled.len() - 1 && compared < names.len(), "{compared} of {}", names.len());
    // And what is written now can be restored.
    wait_until("a backup is taken", SOON, || walkeep.ok(&["backups", "--json"]).json().as_array().unwrap().len() == 2);
    let newest = &walkeep.ok(&["backups", "--json"]).json()[1];
    assert!(lsn(newest["start_lsn"].as_str().unwrap()) >= to, "{newest}");
    walkeep.ok(&["plan"]);
    wait_until("it knows", SOON, || agent.metric("walkeep_backup_due") == Some(0.0));
    // By whom: the agent that gave it up was killed before it could record anything.
    let trail = walkeep.ok(&["audit", "--json"]).json();
    let of_agent = |kind: &str| {
        let records = trail["records"].as_array().unwrap().iter();
        records.filter(|record| record["kind"] == kind && record["command"] == "agent" && record["outcome"] == "done").count()
    };
    assert_eq!(["slot", "gap", "backup"].map(of_agent), [1, 1, 1], "{trail:#}");
    assert_calm(&agent, &[&OUTAGE[..], &["GAP in the archive", "out of reach", "opening the repository"]].concat());
    agent.stop();
    // Once is enough.
    let agent = walkeep.agent();
    switch_and_store(&cluster, &agent, 1);
    assert_eq!(walkeep.ok(&["backups", "--json"]).json().as_array().unwrap().len(), 2);
    assert_calm(&agent, &[]);
    agent.stop();
}

#[test]
fn the_slot_is_given_up_at_its_limit() {
    given_up("repository");
}

/// With `acknowledge = "spool"` the slot follows the spool.
#[test]
fn the_slot_is_given_up_at_its_limit_behind_the_spool() {
    given_up("spool");
}

/// The server happens to have everything still: no gap, no backup.
#[test]
fn what_the_server_still_has_is_no_gap() {
    let (cluster, proxy, walkeep) = guarded("repository", "512MB");
    let agent = walkeep.agent();
    let first = switch_and_store(&cluster, &agent, 1);
    proxy.close();
    write_segments(&cluster, 36);
    overload(&cluster, &agent);
    proxy.open();
    let last = switch_and_store(&cluster, &agent, 1);
    wait_until("it is over", SOON, || agent.metric("walkeep_slot_given_up") == Some(0.0));
    let names: Vec<_> = segments_in(&cluster.pg_wal()).into_iter().filter(|name| (&first..=&last).contains(&name)).collect();
    assert!(names.len() > 40, "{names:?}");
    for name in &names {
        assert!(fetch(&walkeep, name) == std::fs::read(cluster.pg_wal().join(name)).unwrap(), "{name}");
    }
    let status = walkeep.ok(&["status", "--json"]).json();
    assert_eq!((&status["gaps"], &status["timelines"][0]["holes"]), (&serde_json::json!([]), &serde_json::json!([])));
    assert_eq!(status["backups"], 0);
    assert_calm(&agent, &OUTAGE);
    agent.stop();
}

/// The store is back before the limit is reached: nothing happens to the slot, and nothing is lost. Nor does the agent give up a slot that holds back more
/// than the limit for another reason, as long as it can be read.
#[test]
fn nothing_is_given_up_in_time() {
    let (cluster, proxy, walkeep) = guarded("repository", "0");
    let agent = walkeep.agent();
    switch_and_store(&cluster, &agent, 1);
    proxy.close();
    write_segments(&cluster, 34);
    wait_spool_full(&agent);
    proxy.open();
    switch_and_store(&cluster, &agent, 1);
    agent.stop();
    // Away for long: far more than the limit waits.
    write_segments(&cluster, 60);
    let agent = walkeep.agent();
    switch_and_store(&cluster, &agent, 1);
    let status = walkeep.ok(&["status", "--json"]).json();
    assert_eq!((&status["gaps"], &status["timelines"][0]["holes"]), (&serde_json::json!([]), &serde_json::json!([])));
    assert!(!agent.log().contains("GIVEN UP"), "{}", agent.log());
    assert_calm(&agent, &["the spool is full"]);
    agent.stop();
}

/// An agent that is restarted in an outage cannot use its spool, as it does not know where to begin: after a while its server is protected all the same.
#[test]
fn a_restarted_agent_protects_its_server_too() {
    let (cluster, proxy, walkeep) = guarded("repository", "0");
    let agent = walkeep.agent();
    switch_and_store(&cluster, &agent, 1);
    agent.stop();
    proxy.close();
    write_segments(&cluster, 44);
    let agent = walkeep.launch_agent().unwrap();
    wait_until("the slot is given up", SOON * 2, || agent.log().contains("SLOT GIVEN UP"));
    assert_eq!(cluster.sql(SLOTS), "0");
    proxy.open();
    switch_and_store(&cluster, &agent, 1);
    wait_until("it is over", SOON, || agent.metric("walkeep_slot_given_up") == Some(0.0));
    agent.stop();
}

/// `max_slot_wal_keep_size`: the slot is told to be in danger before it is lost, once each, in the log, by the metrics and by `status`.
#[test]
fn a_slot_near_its_limit_is_told_before_it_is_lost() {
    let builder = Cluster::builder().segment_mib(1).conf("min_wal_size", "2MB").conf("max_wal_size", "1GB");
    let cluster = builder.conf("max_slot_wal_keep_size", "32MB").start();
    let proxy = S3Server::get().proxy();
    let walkeep = Walkeep::new(&cluster, Repository::s3(proxy.endpoint(), &S3Server::get().bucket()));
    walkeep.ok(&["init"]);
    let agent = walkeep.agent();
    switch_and_store(&cluster, &agent, 1);
    let check = walkeep.ok(&["check"]).stdout;
    assert!(check.contains("max_slot_wal_keep_size = 32.00 MiB, 32 segments"), "{check}");
    wait_until("it was looked at", SOON, || agent.metric("walkeep_slot_retained_bytes").is_some_and(|bytes| bytes >= 0.0));
    // What is there can be read: status has something to say.
    let away = proxy.arm(When::put(), Fault::SLOW_DOWN);
    write_segments(&cluster, 27);
    wait_until("it is told", SOON, || agent.log().contains("nearly as much WAL as max_slot_wal_keep_size allows"));
    assert!(agent.metric("walkeep_slot_retained_bytes").unwrap() > 26e6);
    assert!(agent.metric("walkeep_slot_safe_wal_bytes").unwrap() < 0.2 * 32.0 * 1024.0 * 1024.0);
    let status = walkeep.ok(&["status"]).stdout;
    assert!(status.contains("may be written before the server drops WAL"), "{status}");
    assert_eq!(walkeep.ok(&["status", "--json"]).json()["slot"]["wal_status"], "reserved");
    wait_until("it is lost", SOON, || {
        cluster.switch_wal();
        cluster.sql("CHECKPOINT");
        cluster.sql("SELECT wal_status FROM pg_replication_slots") == "lost"
    });
    wait_until("that is told", SOON, || agent.log().contains("the server has invalidated the slot"));
    let status = walkeep.ok(&["status"]).stdout;
    assert!(status.contains("the slot walkeep is lost"), "{status}");
    // Its connection is gone with it, and it waits for the repository: this WAL it never saw.
    let lost = write_segments(&cluster, 2).remove(1);
    removed(&cluster, &lost);
    proxy.disarm(away);
    switch_and_store(&cluster, &agent, 1);
    wait_until("the gap is counted", SOON, || agent.metric("walkeep_gaps") == Some(1.0));
    assert_eq!(walkeep.ok(&["status", "--json"]).json()["gaps"].as_array().unwrap().len(), 1);
    for told in ["nearly as much WAL", "the server has invalidated the slot", "GAP in the archive"] {
        assert_eq!(agent.log().matches(told).count(), 1, "{told}: {}", agent.log());
    }
    agent.stop();
}
