//! `acknowledge = "spool"` while the repository is away: the stream goes on into the spool, commits go on, and everything is stored in the end.

use std::time::Duration;

use walkeep_tests::{Agent, Cluster, Fault, FaultProxy, Repository, S3Server, Walkeep, When, wait_until};

use crate::support::{fetch, segments_in, switch_and_store};

const SOON: Duration = Duration::from_secs(30);

/// How the repository is away.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Away {
    Refuses,
    Hangs,
}

fn leave(proxy: &FaultProxy, away: Away) {
    match away {
        Away::Refuses => proxy.close(),
        Away::Hangs => drop(proxy.arm(When::any(), Fault::Hang)),
    }
}

fn come_back(proxy: &FaultProxy) {
    proxy.disarm_all();
    proxy.open();
}

fn spooling(cluster: &Cluster, repository: Repository) -> Walkeep {
    let mut walkeep = Walkeep::new(cluster, repository);
    walkeep.acknowledge = "spool".to_owned();
    walkeep.write_config();
    walkeep
}

/// What is committed is confirmed, and a commit that waits for the agent returns.
#[track_caller]
fn commits_go_on(cluster: &Cluster, agent: &Agent) {
    cluster.sql("CREATE TABLE IF NOT EXISTS t (i int)");
    let wanted = cluster.lsn();
    let flushed = format!("SELECT coalesce(max(flush_lsn) >= '{wanted}', false) FROM pg_stat_replication");
    wait_until("flush follows the spool", SOON, || cluster.sql(&flushed) == "t");
    cluster.set("synchronous_standby_names", "*");
    cluster.sql("INSERT INTO t VALUES (1)");
    cluster.set("synchronous_standby_names", "");
    assert_eq!(agent.metric("walkeep_conflicts_total"), Some(0.0));
}

/// Everything from `first` to `last` is stored as the server has it, and nothing is said to be missing.
#[track_caller]
fn everything_is_stored(cluster: &Cluster, walkeep: &Walkeep, first: &str, last: &str) {
    let names: Vec<_> = segments_in(&cluster.pg_wal()).into_iter().filter(|name| (first..=last).contains(&name.as_str())).collect();
    assert!(names.len() > 4, "{names:?}");
    for name in &names {
        assert!(fetch(walkeep, name) == std::fs::read(cluster.pg_wal().join(name)).unwrap(), "{name}");
    }
    let status = walkeep.ok(&["status", "--json"]).json();
    assert_eq!((&status["gaps"], &status["timelines"][0]["holes"]), (&serde_json::json!([]), &serde_json::json!([])));
}

/// F5: at the agent's start, after kill -9, and after the server was gone.
#[test]
fn the_stream_goes_on_without_the_repository() {
    for away in [Away::Refuses, Away::Hangs] {
        let cluster = Cluster::builder().segment_mib(1).conf("wal_keep_size", "256MB").start();
        let proxy = S3Server::get().proxy();
        let walkeep = spooling(&cluster, Repository::s3(proxy.endpoint(), &S3Server::get().bucket()));
        walkeep.ok(&["init"]);
        let agent = walkeep.agent();
        let first = switch_and_store(&cluster, &agent, 1);
        cluster.sql("CREATE TABLE before ()");
        agent.stop();
        leave(&proxy, away);
        let mut agent = walkeep.launch_agent().unwrap();
        commits_go_on(&cluster, &agent);
        let alone = cluster.switch_wal();
        cluster.sql("CREATE TABLE between AS SELECT generate_series(1, 1000)");
        commits_go_on(&cluster, &agent);
        assert!(walkeep.spool().join(&alone).exists(), "{away:?}: {alone} waits in the spool");
        let end = crate::support::end_of(&first, 1);
        let durable = agent.metric("walkeep_wal_durable_bytes").unwrap();
        assert!(durable < end as f64 + 1024.0 * 1024.0, "{away:?}: nothing that only the spool has counts as durable: {durable}");
        // Out of what the killed one left.
        agent.kill9();
        let agent = walkeep.launch_agent().unwrap();
        commits_go_on(&cluster, &agent);
        cluster.switch_wal();
        // The connection is lost.
        cluster.restart();
        commits_go_on(&cluster, &agent);
        cluster.switch_wal();
        commits_go_on(&cluster, &agent);
        come_back(&proxy);
        let last = switch_and_store(&cluster, &agent, 1);
        everything_is_stored(&cluster, &walkeep, &first, &last);
        // And an agent that finds everything well goes on as ever.
        agent.stop();
        let agent = walkeep.agent();
        let last = switch_and_store(&cluster, &agent, 1);
        everything_is_stored(&cluster, &walkeep, &first, &last);
        agent.stop();
    }
}

/// An agent that knows nothing of what is stored cannot know where to begin: it waits, and says so.
#[test]
fn an_agent_that_never_saw_the_repository_waits_for_it() {
    let cluster = Cluster::builder().segment_mib(1).conf("wal_keep_size", "256MB").start();
    let proxy = S3Server::get().proxy();
    let repository = Repository::s3(proxy.endpoint(), &S3Server::get().bucket());
    let walkeep = spooling(&cluster, repository.clone());
    walkeep.ok(&["init"]);
    let agent = walkeep.agent();
    let first = switch_and_store(&cluster, &agent, 1);
    agent.stop();
    (0..4).for_each(|_| drop(cluster.switch_wal()));
    proxy.close();
    // Another host with the same slot, and an empty spool.
    let second = spooling(&cluster, repository);
    let agent = second.launch_agent().unwrap();
    wait_until("it says so", SOON, || agent.log().contains("nothing is known here of what is stored"));
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(cluster.sql("SELECT count(*) FROM pg_stat_replication"), "0");
    assert_eq!(agent.get("/readyz").unwrap().0, 503);
    proxy.open();
    let last = switch_and_store(&cluster, &agent, 1);
    everything_is_stored(&cluster, &second, &first, &last);
    agent.stop();
}

/// The server was promoted meanwhile: its new timeline's history is stored before anything of it, so this waits for the repository.
#[test]
fn a_new_timeline_waits_for_the_repository() {
    let primary = Cluster::builder().segment_mib(1).conf("wal_keep_size", "256MB").start();
    let standby = primary.standby();
    let proxy = S3Server::get().proxy();
    let walkeep = spooling(&standby, Repository::s3(proxy.endpoint(), &S3Server::get().bucket()));
    walkeep.ok(&["init"]);
    let agent = walkeep.agent();
    let first = primary.switch_wal();
    primary.sql("CREATE TABLE t ()");
    primary.wait_replayed(&standby);
    wait_until("it is stored", SOON, || walkeep.run(&["wal", "fetch", &first, "/dev/null/x"]).code != Some(1));
    proxy.close();
    primary.switch_wal();
    primary.wait_replayed(&standby);
    standby.promote();
    standby.sql("CREATE TABLE on_two ()");
    std::thread::sleep(Duration::from_secs(2));
    assert!(segments_in(&walkeep.spool()).iter().all(|name| name.starts_with("00000001")), "{:?}", segments_in(&walkeep.spool()));
    proxy.open();
    let last = switch_and_store(&standby, &agent, 1);
    assert!(last.starts_with("00000002"), "{last}");
    let status = walkeep.ok(&["status", "--json"]).json();
    assert_eq!(status["gaps"], serde_json::json!([]), "{status}");
    for timeline in status["timelines"].as_array().unwrap() {
        assert_eq!(timeline["holes"], serde_json::json!([]), "{status}");
    }
    agent.stop();
}

/// Files of the spool are gone with what was confirmed. What the server still has is fetched again; what it has not is a gap, and told.
#[test]
fn what_the_spool_lost_is_not_passed_over() {
    for server_has_it in [true, false] {
        let cluster = Cluster::builder().segment_mib(1).conf("min_wal_size", "2MB").conf("max_wal_size", "4MB").start();
        if server_has_it {
            cluster.set("wal_keep_size", "256MB");
        }
        let proxy = S3Server::get().proxy();
        let walkeep = spooling(&cluster, Repository::s3(proxy.endpoint(), &S3Server::get().bucket()));
        walkeep.ok(&["init"]);
        let mut agent = walkeep.agent();
        let first = switch_and_store(&cluster, &agent, 1);
        proxy.close();
        let mut waiting = Vec::new();
        for table in ["a", "b", "c", "d", "e"] {
            cluster.sql(&format!("CREATE TABLE {table} ()"));
            waiting.push(cluster.switch_wal());
        }
        commits_go_on(&cluster, &agent);
        agent.kill9();
        for name in &waiting[1..3] {
            std::fs::remove_file(walkeep.spool().join(name)).unwrap();
        }
        if !server_has_it {
            wait_until("the server removed it", SOON, || {
                cluster.sql("CHECKPOINT");
                !cluster.pg_wal().join(&waiting[2]).exists()
            });
        }
        // Without the repository nothing shows yet, and nothing is forgotten.
        let agent = walkeep.launch_agent().unwrap();
        commits_go_on(&cluster, &agent);
        cluster.switch_wal();
        commits_go_on(&cluster, &agent);
        agent.stop();
        proxy.open();
        let agent = walkeep.launch_agent().unwrap();
        let last = switch_and_store(&cluster, &agent, 1);
        if server_has_it {
            everything_is_stored(&cluster, &walkeep, &first, &last);
        } else {
            wait_until("the gap is in the metrics", SOON, || agent.metric("walkeep_gaps") == Some(1.0));
            let status = walkeep.ok(&["status", "--json"]).json();
            let gap = &status["gaps"][0]["name"];
            let at = |side: &str| crate::support::lsn(gap[side].as_str().unwrap());
            let end = |name: &str| crate::support::end_of(name, 1);
            assert_eq!((at("from"), at("to")), (end(&waiting[0]), end(&waiting[2])), "{status}");
            // And it goes on behind it, also after the next start.
            agent.stop();
            let agent = walkeep.agent();
            switch_and_store(&cluster, &agent, 1);
            assert_eq!(walkeep.ok(&["status", "--json"]).json()["gaps"].as_array().unwrap().len(), 1);
        }
    }
}

/// Another repository in the configuration, which is not there at the start: what the spool knows is of the old one, so the agent waits, and goes on by itself.
#[test]
fn another_repository_is_waited_for() {
    let cluster = Cluster::builder().segment_mib(1).conf("wal_keep_size", "256MB").start();
    let mut walkeep = spooling(&cluster, Repository::Local("/nowhere".into()));
    walkeep.repositories = vec![Repository::Local(walkeep.scratch().dir("old"))];
    walkeep.write_config();
    walkeep.ok(&["init"]);
    let mut agent = walkeep.agent();
    switch_and_store(&cluster, &agent, 1);
    commits_go_on(&cluster, &agent);
    agent.kill9();
    walkeep.repositories = vec![Repository::Local(walkeep.scratch().dir("new"))];
    walkeep.write_config();
    let agent = walkeep.launch_agent().unwrap();
    wait_until("it says so", SOON, || agent.log().contains("nothing is known here of what is stored"));
    assert_eq!(agent.get("/readyz").unwrap().0, 503);
    walkeep.ok(&["init"]);
    let name = switch_and_store(&cluster, &agent, 1);
    assert!(fetch(&walkeep, &name) == std::fs::read(cluster.pg_wal().join(&name)).unwrap(), "{name}");
    agent.stop();
}
