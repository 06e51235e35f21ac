//! Who may write: one agent at a time, of one server; whoever is refused is told who the other one is.

use std::time::Duration;

use walkeep_tests::{Agent, Cluster, Stop, Walkeep, user, wait_until};

use crate::support::{
    MIB, Offered, SERVER_GONE, STORES, Store, assert_calm, end_of, fetch, lsn, offer, switch_and_store, uninitialised, wait_durable,
    walkeep,
};

const SOON: Duration = Duration::from_secs(30);
/// A holder's slot has to be unused for a minute, and who is refused looks again every 15 s.
const A_WHILE: Duration = Duration::from_secs(110);
const IDENTITY: &str = "writer.json";

/// Another agent for `cluster` with the same repository.
fn another(first: &Walkeep, cluster: &Cluster, slot: &str) -> Walkeep {
    let mut second = Walkeep::new(cluster, first.repositories[0].clone());
    second.slot = slot.to_owned();
    second.write_config();
    second
}

/// What the agent calls itself in messages.
fn identity(walkeep: &Walkeep) -> String {
    let path = walkeep.spool().join(IDENTITY);
    wait_until("the agent has an identity", SOON, || path.exists());
    let content = std::fs::read(path).unwrap();
    let identity: serde_json::Value = serde_json::from_slice(&content).unwrap();
    format!("writer {}", &identity["id"].as_str().unwrap()[..8])
}

/// Waits until `agent` was refused for `reason`, with both writers named.
#[track_caller]
fn wait_refused(agent: &Agent, reason: &str, both: [&Walkeep; 2]) {
    let names = both.map(identity);
    let told = |line: &str| line.contains(reason) && names.iter().all(|name| line.contains(name));
    wait_until(&format!("refused: {reason}"), A_WHILE, || agent.log().lines().any(told));
}

fn epoch(walkeep: &Walkeep) -> u64 {
    walkeep.ok(&["lease", "--json"]).json()[0]["name"]["epoch"].as_u64().unwrap()
}

/// Waits until the repository has all that `cluster` has, and compares the unfinished segment.
#[track_caller]
fn assert_tail_is_of(cluster: &Cluster, walkeep: &Walkeep, agent: &Agent) {
    let end = lsn(&cluster.lsn());
    wait_durable(agent, end, SOON);
    let name = cluster.sql("SELECT pg_walfile_name(pg_current_wal_insert_lsn())");
    let (stored, length) = (fetch(walkeep, &name), (end % MIB) as usize);
    let written = std::fs::read(cluster.pg_wal().join(&name)).unwrap();
    assert!(length > 0 && stored[..length] == written[..length], "{name} up to byte {length}");
}

/// A server with an agent that has stored what there is.
fn streamed(store: Store) -> (Cluster, Walkeep, Agent) {
    let cluster = Cluster::builder().segment_mib(1).start();
    let walkeep = walkeep(&cluster, store);
    let agent = walkeep.agent();
    cluster.sql("CREATE TABLE t ()");
    assert_tail_is_of(&cluster, &walkeep, &agent);
    (cluster, walkeep, agent)
}

/// A copy of the stopped server, which is idle again, its agent streaming.
fn copy_of_idle(cluster: &Cluster, agent: &Agent) -> Cluster {
    // Else the first look at the catalogs, the agent's own for its snapshot of names, writes WAL: hint bits.
    cluster.sql("VACUUM");
    cluster.stop(Stop::Fast);
    let copy = cluster.copy();
    cluster.start();
    wait_until("it streams again", SOON, || agent.get("/readyz").is_ok_and(|(status, _)| status == 200));
    copy
}

/// Two agents, each with a slot and a spool of its own: the second waits for the first to be gone, however long that was idle.
#[test]
fn a_second_agent_follows_only_when_the_first_is_gone() {
    let (cluster, first, mut agent) = streamed(Store::Local);
    let second = another(&first, &cluster, "second");
    let second_agent = second.launch_agent().unwrap();
    wait_refused(&second_agent, "its slot is in use at this moment", [&first, &second]);
    assert!(second_agent.log().contains("walkeep lease take"), "{}", second_agent.log());
    assert!(second_agent.metric("walkeep_errors_total{kind=\"lease\"}").unwrap() >= 1.0);
    assert!(second_agent.get("/readyz").is_ok_and(|(status, _)| status != 200));
    let checked = second.run(&["check", "--timeout", "1s"]).expect_code(1);
    assert!(checked.stdout.contains("FAIL  writer") && checked.stdout.contains(&identity(&first)), "{}", checked.stdout);
    assert!(first.ok(&["check"]).stdout.contains("is written by this agent, epoch 1"));
    cluster.sql("CREATE TABLE by_the_first_still ()");
    assert_tail_is_of(&cluster, &first, &agent);
    assert_eq!(epoch(&first), 1);
    assert_calm(&agent, &[]);
    agent.kill9();
    cluster.sql("CREATE TABLE by_the_second ()");
    wait_refused(&second_agent, "for less than a minute", [&first, &second]);
    for table in ["stored", "stored_too"] {
        wait_until("the second has followed", A_WHILE, || second_agent.get("/readyz").is_ok_and(|(status, _)| status == 200));
        cluster.sql(&format!("CREATE TABLE {table} ()"));
        assert_tail_is_of(&cluster, &second, &second_agent);
    }
    assert_eq!(epoch(&second), 2);
    // The first is the second one now.
    let agent = first.launch_agent().unwrap();
    wait_refused(&agent, "its slot is in use at this moment", [&first, &second]);
    let stored = agent.metric("walkeep_stored_objects_total{source=\"part\"}");
    assert_eq!(stored, Some(0.0));
    agent.stop();
    let name = switch_and_store(&cluster, &second_agent, 1);
    assert!(fetch(&second, &name) == std::fs::read(cluster.pg_wal().join(&name)).unwrap());
    second_agent.stop();
}

/// An agent that lost its spool, with the same slot: PostgreSQL lets one at a time use it, so the other one is gone.
#[test]
fn who_has_the_slot_follows_at_once() {
    let (cluster, first, mut agent) = streamed(Store::Local);
    agent.kill9();
    let second = another(&first, &cluster, "walkeep");
    let agent = second.agent();
    cluster.sql("CREATE TABLE by_the_second ()");
    assert_tail_is_of(&cluster, &second, &agent);
    assert_eq!(epoch(&second), 2);
    // The server may take a moment to notice that the first one is dead.
    assert_calm(&agent, &["following another writer", "is active for PID"]);
    agent.stop();
    // And each life has an epoch of its own, once it stores something.
    let agent = second.agent();
    assert_eq!(epoch(&second), 2);
    cluster.sql("CREATE TABLE by_the_second_again ()");
    assert_tail_is_of(&cluster, &second, &agent);
    assert_eq!(epoch(&second), 3);
    assert_calm(&agent, &[]);
    agent.stop();
}

/// S1 with an original that is idle: nothing but the lease tells the copied server from it.
#[test]
fn a_copied_server_is_refused_before_it_stores_anything() {
    for store in STORES {
        let (cluster, first, agent) = streamed(store);
        let clone = copy_of_idle(&cluster, &agent);
        clone.start();
        clone.sql("CREATE TABLE copied ()");
        let second = another(&first, &clone, "walkeep");
        let second_agent = second.launch_agent().unwrap();
        wait_refused(&second_agent, "streams from another server", [&first, &second]);
        for source in ["stream", "part"] {
            assert_eq!(second_agent.metric(&format!("walkeep_stored_objects_total{{source=\"{source}\"}}")), Some(0.0));
        }
        cluster.sql("CREATE TABLE original ()");
        assert_tail_is_of(&cluster, &first, &agent);
        assert_calm(&agent, &SERVER_GONE);
        agent.stop();
        // Somebody says that the copy shall go on: it must be what is stored all the same.
        second.ok(&["lease", "take"]);
        wait_until("the copy is compared", SOON, || second_agent.log().contains("other content"));
        assert!(second.ok(&["lease"]).stdout.contains("by an operator's word"));
        second_agent.stop();
    }
}

/// An agent beside each server, each with both servers in its connection, its own first, and slots of one name: the slot of one server says nothing of
/// the other's.
#[test]
fn a_slot_of_that_name_on_another_server_is_another_slot() {
    let primary = Cluster::builder().segment_mib(1).start();
    let standby = primary.standby();
    let both = |own: &Cluster, other: &Cluster| {
        let (own_socket, other_socket) = (own.socket_dir(), other.socket_dir());
        format!(
            "host={},{} port={},{} user=postgres dbname=postgres",
            own_socket.display(),
            other_socket.display(),
            own.port(),
            other.port()
        )
    };
    let mut first = Walkeep::local(&primary);
    first.connection = both(&primary, &standby);
    first.write_config();
    first.ok(&["init"]);
    let agent = first.agent();
    primary.sql("CREATE TABLE by_the_first ()");
    assert_tail_is_of(&primary, &first, &agent);
    let mut second = another(&first, &standby, "walkeep");
    second.connection = both(&standby, &primary);
    second.write_config();
    let second_agent = second.launch_agent().unwrap();
    wait_refused(&second_agent, "its slot is in use at this moment", [&first, &second]);
    primary.sql("CREATE TABLE by_the_first_still ()");
    assert_tail_is_of(&primary, &first, &agent);
    assert_eq!(epoch(&first), 1);
    assert_eq!(second_agent.metric("walkeep_stored_objects_total{source=\"part\"}"), Some(0.0));
    second_agent.stop();
    assert_calm(&agent, &[]);
    agent.stop();
}

/// A server that was moved, with a spool that was not: one word, and the stream goes on where it was.
#[test]
fn a_moved_server_goes_on_after_a_word() {
    let (cluster, first, agent) = streamed(Store::Local);
    cluster.stop(Stop::Fast);
    agent.stop();
    let moved = cluster.copy();
    moved.start();
    let second = another(&first, &moved, "walkeep");
    let second_agent = second.launch_agent().unwrap();
    wait_refused(&second_agent, "streams from another server", [&first, &second]);
    let taken = second.ok(&["lease", "take"]);
    assert!(taken.stdout.contains(&identity(&first)) && taken.stdout.contains(&identity(&second)), "{}", taken.stdout);
    moved.sql("CREATE TABLE moved ()");
    assert_tail_is_of(&moved, &second, &second_agent);
    let end = switch_and_store(&moved, &second_agent, 1);
    assert!(fetch(&second, &end) == std::fs::read(moved.pg_wal().join(&end)).unwrap());
    second_agent.stop();
}

/// The whole machine is copied, spool and all, and the original idle: whoever stores first under a new epoch is the writer, and the other one is told.
#[test]
fn a_copied_machine_is_noticed_and_nothing_is_mixed() {
    let (cluster, first, agent) = streamed(Store::Local);
    let clone = copy_of_idle(&cluster, &agent);
    let second = another(&first, &clone, "walkeep");
    let copied = std::process::Command::new("cp").arg("-p").arg(first.spool().join(IDENTITY)).arg(second.spool()).status().unwrap();
    assert!(copied.success());
    clone.start();
    let second_agent = second.agent();
    clone.sql("CREATE TABLE by_the_copy ()");
    assert_tail_is_of(&clone, &second, &second_agent);
    let stored = epoch(&second);
    // What the original stores before it looks again bears its old epoch, and counts for nothing. What its spool has then, more than the copy has
    // written, is no continuation of that.
    cluster.sql("CREATE TABLE long AS SELECT generate_series(1, 2000)");
    wait_until("the original is told", A_WHILE, || {
        cluster.sql("SELECT txid_current()");
        agent.log().contains("has the identity of this agent and began later")
    });
    wait_until("its spool was compared", SOON, || agent.log().contains("with other content"));
    clone.sql("CREATE TABLE by_the_copy_still ()");
    assert_tail_is_of(&clone, &second, &second_agent);
    assert_eq!(epoch(&second), stored);
    let end = end_of(&switch_and_store(&clone, &second_agent, 1), 1);
    assert!(end > 0);
    assert_calm(&second_agent, &[]);
    second_agent.stop();
    agent.stop();
}

/// What a stream acknowledged out of parts is not hidden behind a segment of a copy of the server: neither one that the copy's archive_command offers, nor
/// one in a spool.
#[test]
fn a_copys_segment_does_not_take_the_place_of_what_is_acknowledged() {
    let (cluster, first, agent) = streamed(Store::Local);
    let clone = copy_of_idle(&cluster, &agent);
    cluster.sql("CREATE TABLE original ()");
    assert_tail_is_of(&cluster, &first, &agent);
    clone.start();
    clone.sql("CREATE TABLE copied ()");
    let name = clone.switch_wal();
    assert_eq!(name, cluster.sql("SELECT pg_walfile_name(pg_current_wal_insert_lsn())"));
    let copied = std::fs::read(clone.pg_wal().join(&name)).unwrap();
    let offered = offer(&first, &Offered::of(&clone).file(&name, &copied));
    assert!(offered.code == Some(1) && offered.stderr.contains("with other content"), "{offered:?}");
    assert_eq!(agent.metric("walkeep_conflicts_total"), Some(1.0));
    assert_tail_is_of(&cluster, &first, &agent);
    agent.stop();
    let leftover = first.spool().join(&name);
    std::fs::write(&leftover, &copied).unwrap();
    user::give(&leftover);
    let agent = first.launch_agent().unwrap();
    wait_until("the leftover was compared", SOON, || agent.log().contains("with other content"));
    agent.stop();
    std::fs::remove_file(&leftover).unwrap();
    // What belongs to the parts goes in by both ways.
    let agent = first.agent();
    cluster.sql("CREATE TABLE original_still ()");
    assert_tail_is_of(&cluster, &first, &agent);
    let name = switch_and_store(&cluster, &agent, 1);
    let own = std::fs::read(cluster.pg_wal().join(&name)).unwrap();
    assert_eq!(offer(&first, &Offered::of(&cluster).file(&name, &own)).code, Some(0));
    assert!(fetch(&first, &name) == own);
    agent.stop();
}

/// An agent beside each server. The primary dies with its agent, before that one has stored everything; the standby's agent stores the old timeline's
/// end, which both servers have alike, and the new timeline, without a word from anybody.
#[test]
fn the_standbys_agent_goes_on_after_a_promotion() {
    let primary = Cluster::builder().segment_mib(1).start();
    let standby = primary.standby();
    let mut first = uninitialised(&primary, Store::Local);
    first.upload_interval = "1h".to_owned();
    first.write_config();
    first.ok(&["init"]);
    let mut agent = first.agent();
    primary.sql("CREATE TABLE stored ()");
    switch_and_store(&primary, &agent, 1);
    let second = another(&first, &standby, "walkeep");
    let second_agent = second.launch_agent().unwrap();
    primary.sql("CREATE TABLE received_and_not_stored ()");
    wait_refused(&second_agent, "streams from another server", [&first, &second]);
    primary.wait_replayed(&standby);
    agent.kill9();
    primary.stop(Stop::Immediate);
    standby.promote();
    standby.sql("CREATE TABLE on_the_new_timeline ()");
    wait_until("it streams", SOON, || second_agent.get("/readyz").is_ok_and(|(status, _)| status == 200));
    assert_tail_is_of(&standby, &second, &second_agent);
    let history = String::from_utf8(fetch(&second, "00000002.history")).unwrap();
    let switch = lsn(history.lines().last().unwrap().split('\t').nth(1).unwrap());
    let (old, length) = (format!("00000001{:08X}{:08X}", switch >> 32, (switch & 0xFFFF_FFFF) >> 20), (switch % MIB) as usize);
    let new = std::fs::read(standby.pg_wal().join(old.replacen("00000001", "00000002", 1))).unwrap();
    assert!(length > 0 && fetch(&second, &old)[..length] == new[..length], "the old timeline up to {switch:X}");
    let status = second.ok(&["status", "--json"]).json();
    assert_eq!(status["gaps"], serde_json::json!([]), "{status}");
    let leases = second.ok(&["lease", "--json"]).json();
    assert_ne!(leases[0]["writer"]["id"], leases[1]["writer"]["id"], "{leases}");
    second_agent.stop();
}
