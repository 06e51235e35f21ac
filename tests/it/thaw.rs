//! Archived storage classes: what a restore needs is told, asked for, waited for, and nothing else is. The classes are the proxy's, the objects a real
//! server's.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde_json::Value;
use walkeep_tests::{Cluster, FaultProxy, Repository, S3Server, Walkeep, When, wait_until};

use crate::story::{self, Restored};

const VERSION: u32 = 15;
/// So long a copy takes.
const TAKES: Duration = Duration::from_secs(3);

/// A server whose segments and packs lie behind the proxy, with a backup in the middle; the agent has ended.
fn archive() -> (Cluster, FaultProxy, Walkeep) {
    let cluster: Cluster = story::builder(VERSION).start();
    let (proxy, bucket) = (S3Server::get().proxy(), S3Server::get().bucket());
    let walkeep = Walkeep::new(&cluster, Repository::s3(proxy.endpoint(), &bucket));
    walkeep.ok(&["init"]);
    let agent = walkeep.agent();
    cluster.archive_by(Some(&walkeep.archive_command()));
    cluster.sql("CREATE TABLE t (i int PRIMARY KEY, filler text)");
    for _ in 0..4 {
        story::insert(&cluster, 5);
        cluster.switch_wal();
    }
    story::backup(&walkeep);
    for _ in 0..4 {
        story::insert(&cluster, 5);
        cluster.switch_wal();
    }
    story::settle(&cluster, &walkeep);
    agent.stop();
    (cluster, proxy, walkeep)
}

/// What of the repository a restore reads: the keys of GETs of whole segments and packs.
fn read(proxy: &FaultProxy) -> BTreeSet<String> {
    let is_cold = |path: &str| path.contains("/packs/") || (path.contains("/wal/") && !path.contains(".history."));
    let requests = proxy.requests();
    let got = requests.iter().filter(|request| request.method == "GET" && request.status.is_some_and(|status| status < 300));
    got.filter(|request| !request.query.contains("list-type") && is_cold(&request.path)).map(|request| request.path.clone()).collect()
}

fn thawed(proxy: &FaultProxy) -> BTreeSet<String> {
    proxy.thaws().into_iter().map(|thaw| thaw.path).collect()
}

fn class<'v>(plan: &'v Value, name: &str) -> &'v Value {
    plan["archived"].as_array().unwrap().iter().find(|share| share["class"] == name).unwrap_or(&Value::Null)
}

#[test]
fn what_is_archived_is_told_asked_for_and_restored() {
    let (cluster, proxy, walkeep) = archive();
    let before = walkeep.ok(&["plan", "--json"]).json();
    assert_eq!(before["archived"].as_array().map(Vec::len), Some(0), "{before}");
    // All that a restore reads, found out by one.
    proxy.forget();
    let first = Restored::by(&walkeep, VERSION, &[]);
    first.start();
    assert_eq!(first.rows(), 40);
    let needed = read(&proxy);
    drop(first);

    // The packs, and the first segment that is replayed. To say where the WAL ends the plan reads none of these.
    let segment = before["wal"][0]["segment"].as_str().unwrap();
    proxy.freeze("/packs/", "DEEP_ARCHIVE", TAKES);
    proxy.freeze(&format!("/{segment}"), "GLACIER", TAKES);
    let planned = walkeep.ok(&["plan", "--json"]).json();
    let (packs, wal) = (class(&planned, "DEEP_ARCHIVE"), class(&planned, "GLACIER"));
    assert_eq!(packs["objects"], needed.iter().filter(|path| path.contains("/packs/")).count(), "{planned} {needed:?}");
    assert_eq!((&wal["objects"], &wal["seconds"]["standard"]), (&Value::from(1), &serde_json::json!([10800, 18000])), "{planned}");
    let told = walkeep.ok(&["plan"]).stdout;
    assert!(told.contains("DEEP_ARCHIVE") && told.contains("bulk up to 48 hours") && told.contains("expedited 1 to 5 minutes"), "{told}");

    let to = walkeep.scratch().join("refused");
    let place = to.to_string_lossy().into_owned();
    let refused = walkeep.run(&["restore", "--to", &place]).expect_code(3);
    assert!(refused.stderr.contains("--thaw") && refused.stderr.contains("GLACIER: bulk 5 to 12 hours"), "{refused:?}");
    let object = if packs["objects"] == 1 { "object" } else { "objects" };
    assert!(refused.stderr.contains(&format!("{} {object} of {} bytes in DEEP_ARCHIVE", packs["objects"], packs["bytes"])), "{refused:?}");
    assert!(!to.exists() && proxy.thaws().is_empty(), "nothing was written, nothing asked for");
    let refused = walkeep.run(&["thaw", "--tier", "expedited"]).expect_code(2);
    assert!(refused.stderr.contains("DEEP_ARCHIVE") && proxy.thaws().is_empty(), "{refused:?}");
    let refused = walkeep.run(&["restore", "--to", &place, "--tier", "bulk"]).expect_code(2);
    assert!(refused.stderr.contains("--thaw"), "{refused:?}");

    // All WAL is archived: to say where it ends the index is enough.
    proxy.freeze("/wal/", "GLACIER", TAKES);
    let planned = walkeep.ok(&["plan", "--json"]).json();
    assert_eq!(class(&planned, "GLACIER")["objects"], needed.iter().filter(|path| path.contains("/wal/")).count(), "{planned}");

    // restore --thaw: it waits, and the server finds all that it asks for.
    let begun = Instant::now();
    let restored = Restored::by(&walkeep, VERSION, &["--thaw", "--tier", "bulk", "--thaw-days", "3"]);
    assert!(begun.elapsed() >= TAKES, "it waited");
    restored.start();
    assert_eq!(restored.rows(), 40);
    // Exactly what is needed was asked for, each once, in that tier.
    let asked = proxy.thaws();
    assert_eq!(thawed(&proxy), needed);
    assert_eq!(asked.len(), needed.len(), "each once");
    assert!(asked.iter().all(|thaw| thaw.tier == "Bulk" && thaw.days == Some(3)), "{asked:?}");
    // What is thawed is at hand: nothing is refused, nothing asked for again.
    let planned = walkeep.ok(&["plan", "--json"]).json();
    assert_eq!(planned["archived"].as_array().map(Vec::len), Some(0), "{planned}");
    let again = walkeep.ok(&["thaw", "--thaw-days", "3", "--json"]).json();
    assert!(again["objects"] == 0 && again["waiting_for"].as_array().is_some_and(Vec::is_empty), "{again}");
    assert_eq!(proxy.thaws().len(), asked.len());
    // Longer: the copies are kept longer, and nobody waits.
    let longer = walkeep.ok(&["thaw", "--thaw-days", "30", "--json"]).json();
    assert!(longer["objects"] == 0 && longer["prolonged"] == needed.len(), "{longer}");

    // For a transaction in the middle the plan has to read WAL: that is thawed first, with what is known to be needed beside it, and planned again.
    drop(restored);
    proxy.freeze_again();
    let xid = cluster.sql("SELECT xmin FROM t WHERE i = 31");
    let refused = walkeep.run(&["plan", "--xid", &xid]).expect_code(3);
    assert!(refused.stderr.contains("archived storage class") && refused.stderr.contains("walkeep thaw"), "{refused:?}");
    let json = walkeep.run(&["plan", "--xid", &xid, "--json"]).expect_code(3).json();
    assert!(json["reason"]["archived"].as_str().is_some_and(|key| key.contains("/wal/")), "{json}");
    let restored = Restored::by(&walkeep, VERSION, &["--xid", &xid, "--thaw"]);
    assert_eq!(restored.start().rows(), 31);

    // The deed and what it was about are in the trail.
    let trail = walkeep.ok(&["audit", "--json"]).stdout;
    assert!(trail.contains("\"kind\": \"thaw\"") || trail.contains("\"kind\":\"thaw\""), "{trail}");
    drop(cluster);
}

#[test]
fn a_thaw_is_asked_for_now_and_waited_for_later() {
    let (_cluster, proxy, walkeep) = archive();
    let long = Duration::from_secs(20);
    proxy.freeze("/packs/", "GLACIER", long);
    let begun = Instant::now();
    let asked = walkeep.ok(&["thaw", "--tier", "expedited", "--no-wait"]);
    assert!(begun.elapsed() < long / 2 && asked.stdout.contains("expedited takes 1 to 5 minutes"), "{asked:?}");
    let packs = proxy.thaws().len();
    assert!(packs > 0);
    let place = walkeep.scratch().join("later");
    let to = place.to_string_lossy().into_owned();
    let refused = walkeep.run(&["restore", "--to", &to, "--thaw", "--no-wait"]).expect_code(3);
    assert!(refused.stderr.contains("being thawed") && !place.exists(), "{refused:?}");
    let planned = walkeep.ok(&["plan", "--json"]).json();
    assert_eq!(
        (&class(&planned, "GLACIER")["thawing"], &class(&planned, "GLACIER")["objects"]),
        (&Value::from(packs), &Value::from(packs))
    );
    // A wait that is over too soon, and one that is stopped, leave the thaw as it is.
    let over = walkeep.run(&["thaw", "--thaw-timeout", "2s"]).expect_code(1);
    assert!(over.stderr.contains("run it again"), "{over:?}");
    proxy.forget();
    let mut waiting = walkeep.command(&["thaw"]).spawn().unwrap();
    wait_until("it waits", story::PATIENCE, || proxy.count(&When::method("HEAD")) > packs);
    let pid = waiting.id().to_string();
    assert!(std::process::Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    assert_eq!(waiting.wait().unwrap().code(), Some(1), "stopped in the middle");
    let done = walkeep.ok(&["thaw"]);
    assert!(done.stdout.contains("can be read"), "{done:?}");
    assert_eq!(proxy.thaws().len(), packs, "asked for once, by the first");
    let restored = Restored::by(&walkeep, VERSION, &[]);
    restored.start();
    assert_eq!(restored.rows(), 40);
}

/// A server that asks for WAL that is archived stops, and does not open in the middle.
#[test]
fn archived_wal_is_not_the_end_of_wal() {
    let (_cluster, proxy, walkeep) = archive();
    let restored = Restored::by(&walkeep, VERSION, &[]);
    let planned = walkeep.ok(&["plan", "--json"]).json();
    let segment = planned["wal"][0]["segment"].as_str().unwrap();
    proxy.freeze("/wal/", "GLACIER", TAKES);
    let to = walkeep.scratch().join("one");
    let fetched = walkeep.run(&["wal", "fetch", segment, &to.to_string_lossy()]);
    assert!(fetched.code.is_some_and(|code| code > 125) && fetched.stderr.contains("InvalidObjectState"), "{fetched:?}");
    assert!(!to.exists());
    let log = restored.gives_up("3s");
    assert!(log.contains("archived storage class"), "{log}");
    // `extract` says the same before it begins.
    proxy.freeze("/packs/", "GLACIER", TAKES);
    let out = walkeep.scratch().join("rows.sql");
    let refused = walkeep.run(&["extract", "--table", "t", "--immediate", "--out", &out.to_string_lossy()]);
    assert!(refused.code == Some(3) && refused.stderr.contains("walkeep thaw"), "{refused:?}");
    // Verification by listings goes on; what cannot be read is counted and is no damage.
    walkeep.ok(&["verify"]);
    let deep = walkeep.ok(&["verify", "--deep", "--json"]).json();
    assert!(deep["read"]["archived"].as_u64().is_some_and(|count| count > 5), "{deep}");
}

/// A file that is offered again after what is stored of it was archived: nobody says that it is the same before it was compared, and only it is thawed for that.
#[test]
fn what_is_offered_again_is_compared_when_it_is_thawed() {
    let cluster = Cluster::builder().segment_mib(1).archiving().start();
    let (proxy, bucket) = (S3Server::get().proxy(), S3Server::get().bucket());
    let walkeep = Walkeep::new(&cluster, Repository::s3(proxy.endpoint(), &bucket));
    walkeep.ok(&["init"]);
    let names = [cluster.switch_wal(), cluster.switch_wal()];
    let path = |name: &str| cluster.pg_wal().join(name).to_string_lossy().into_owned();
    for name in &names {
        walkeep.ok(&["wal", "push", &path(name)]);
    }
    let agent = walkeep.agent();
    proxy.freeze("/wal/", "GLACIER", TAKES);
    let name = names[0].as_str();
    let refused = walkeep.run(&["wal", "push", &path(name)]).expect_code(1);
    assert!(refused.stderr.contains("cannot be told before it is thawed") && refused.stderr.contains("walkeep thaw --wal"), "{refused:?}");
    let shim = format!("{} {}", walkeep.archive_command(), path(name));
    let refused = walkeep_tests::walkeep::run(std::process::Command::new("sh").args(["-c", &shim]));
    assert!(refused.code == Some(1) && refused.stderr.contains("walkeep thaw --wal"), "{refused:?}");
    agent.stop();
    let asked = walkeep.ok(&["thaw", "--wal", name, "--no-wait"]);
    assert!(asked.stdout.contains("1 object") && asked.stdout.contains("not waited for"), "{asked:?}");
    let thawed = walkeep.ok(&["thaw", "--wal", name]);
    assert!(thawed.stdout.contains("can be read"), "{thawed:?}");
    let asked = proxy.thaws();
    assert!(asked.len() == 1 && asked[0].path.contains(name), "{asked:?}");
    let pushed = walkeep.ok(&["wal", "push", &path(name)]);
    assert!(pushed.stdout.contains("was stored already, with the same content"), "{pushed:?}");
    walkeep.run(&["wal", "push", &path(&names[1])]).expect_code(1);
    walkeep.run(&["thaw", "--wal", name, "--latest"]).expect_code(2);
}
