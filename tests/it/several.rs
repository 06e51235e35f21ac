//! Several repositories: one is down, lost, damaged, new; what was acknowledged is there, and they end up alike.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use walkeep_tests::process::Process;
use walkeep_tests::walkeep::run;
use walkeep_tests::{Bucket, Cluster, Fault, FaultProxy, Repository, S3Server, Stop, Walkeep, When, compare_fetched, wait_until};

use crate::story::{self, PATIENCE, Restored};
use crate::support::assert_calm;

const VERSION: u32 = 15;
/// What an agent says of a repository that is down.
const DOWN: [&str; 5] = [
    "no catalog snapshot can be stored",
    "does not answer",
    "read from another repository",
    "failed; trying again",
    "not now request=\"archive",
];

/// A server and some buckets, each behind a proxy of its own.
struct Places {
    cluster: Cluster,
    walkeep: Walkeep,
    proxies: Vec<FaultProxy>,
    buckets: Vec<Bucket>,
}

impl Places {
    /// Two, initialised, with an empty table `t`.
    fn begin(rule: &str) -> Self {
        Self::so_many(2, rule)
    }

    fn so_many(count: usize, rule: &str) -> Self {
        let cluster = story::builder(VERSION).start();
        let server = S3Server::get();
        let (proxies, buckets): (Vec<_>, Vec<_>) = (0..count).map(|_| (server.proxy(), server.bucket())).unzip();
        let mut walkeep = Walkeep::new(&cluster, Repository::s3(proxies[0].endpoint(), &buckets[0]));
        for (proxy, bucket) in proxies.iter().zip(&buckets).skip(1) {
            walkeep.repositories.push(Repository::s3(proxy.endpoint(), bucket));
        }
        walkeep.cluster_lines.push_str(&format!("acknowledge_rule = \"{rule}\"\n"));
        walkeep.write_config();
        walkeep.ok(&["init"]);
        cluster.sql("CREATE TABLE t (i int PRIMARY KEY, filler text)");
        Self { cluster, walkeep, proxies, buckets }
    }

    /// From now on a commit returns when the agent says that it is stored.
    fn commits_wait(&self) {
        self.cluster.set("synchronous_standby_names", "walkeep");
        wait_until("commits wait", PATIENCE, || {
            self.cluster.sql("SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'") == "1"
        });
    }

    fn url(&self, index: usize) -> String {
        format!("s3://{}", self.buckets[index].name)
    }

    fn metric_of(&self, name: &str, index: usize) -> String {
        format!("walkeep_repository_{name}{{repository=\"{}\"}}", self.url(index))
    }

    /// What is in a bucket: keys and sizes, but for what `init` and `check` leave, and parts of segments that are whole: on their way out, or left over.
    fn listing(&self, index: usize) -> BTreeMap<String, u64> {
        let all: BTreeMap<String, u64> = self.buckets[index].list("").into_iter().collect();
        let whole = |key: &str| {
            key.split_once(".parts/").is_some_and(|(segment, _)| all.keys().any(|key| key.starts_with(&format!("{segment}.zst"))))
        };
        all.iter().filter(|(key, _)| !key.contains("/probe-") && !whole(key)).map(|(key, size)| (key.clone(), *size)).collect()
    }

    #[track_caller]
    fn wait_alike(&self) {
        self.wait_as_primary(1);
    }

    /// Waits until a further one has what the primary has.
    #[track_caller]
    fn wait_as_primary(&self, index: usize) {
        let difference = || {
            let (one, other) = (self.listing(0), self.listing(index));
            let only = |one: &BTreeMap<String, u64>, other: &BTreeMap<String, u64>| -> Vec<String> {
                one.iter().filter(|(key, size)| other.get(*key) != Some(size)).map(|(key, _)| key.clone()).collect()
            };
            (only(&one, &other), only(&other, &one))
        };
        let alike = walkeep_tests::try_wait_for(PATIENCE, || (difference() == (Vec::new(), Vec::new())).then_some(()));
        assert!(alike.is_some(), "only in the one, only in the other: {:?}", difference());
    }

    /// The same bytes under every key.
    #[track_caller]
    fn assert_same_bytes(&self) {
        let listing = self.listing(0);
        assert!(listing.len() > 10, "{listing:?}");
        for key in listing.keys() {
            assert!(self.buckets[0].get(key) == self.buckets[1].get(key), "{key}");
        }
    }
}

/// N14: the second is down under load, and the agent is killed meanwhile.
#[test]
fn a_dead_one_holds_up_nobody_and_catches_up_without_gaps() {
    let two = Places::begin("primary");
    let mut agent = two.walkeep.agent();
    two.cluster.archive_by(Some(&two.walkeep.archive_command()));
    two.commits_wait();
    story::insert(&two.cluster, 10);
    wait_until("both have the same", PATIENCE, || agent.metric(&two.metric_of("queue_objects", 1)) == Some(0.0));

    two.proxies[1].close();
    let begun = Instant::now();
    for _ in 0..4 {
        story::insert(&two.cluster, 20);
        two.cluster.switch_wal();
    }
    assert!(begun.elapsed() < Duration::from_secs(30), "commits waited for the dead one: {:?}", begun.elapsed());
    wait_until("the lag of the dead one rises", PATIENCE, || {
        agent.metric(&two.metric_of("behind_seconds", 1)).is_some_and(|seconds| seconds > 2.0)
            && agent.metric(&two.metric_of("queue_objects", 1)).is_some_and(|objects| objects > 3.0)
            && agent.metric(&two.metric_of("up", 1)) == Some(0.0)
    });
    assert_eq!(agent.metric(&two.metric_of("up", 0)), Some(1.0));
    assert_eq!(agent.metric(&two.metric_of("queue_objects", 0)), Some(0.0));
    wait_until("status says so", PATIENCE, || {
        let status = two.walkeep.ok(&["status", "--json"]).json();
        let of = &status["repositories"][1];
        of["url"] == two.url(1)
            && of["answers"] == false
            && of["queue_objects"].as_u64() > Some(3)
            && status["repositories"][0]["answers"] == true
    });
    let told = two.walkeep.ok(&["status"]);
    assert!(
        told.stdout.contains("DOES NOT ANSWER, BEHIND") && told.stderr.contains("could not be asked"),
        "{} {}",
        told.stdout,
        told.stderr
    );

    // With it goes what it knew of the second one's queue.
    agent.kill9();
    drop(agent);
    let agent = two.walkeep.agent();
    story::insert(&two.cluster, 20);
    let id = story::backup(&two.walkeep);
    assert_eq!(story::backups(&two.walkeep), [id]);
    two.proxies[1].open();
    story::insert(&two.cluster, 10);
    story::settle(&two.cluster, &two.walkeep);
    two.cluster.archive_now();
    two.cluster.set("synchronous_standby_names", "");
    two.wait_alike();
    wait_until("nothing waits", PATIENCE, || agent.metric(&two.metric_of("behind_seconds", 1)) == Some(0.0));
    assert_eq!(agent.metric(&two.metric_of("up", 1)), Some(1.0));
    assert_eq!(agent.metric(&two.metric_of("differing_objects_total", 1)), Some(0.0));
    assert_calm(&agent, &DOWN);
    agent.stop();
    // What it stored as its last is there too.
    two.wait_alike();
    two.assert_same_bytes();
    assert!(compare_fetched(&two.cluster.oracle(), &two.walkeep) >= 5);
}

/// Three, of which the third is dead: the second catches up all the same with what the queue forgot, and with what only a command brought.
#[test]
fn a_dead_third_does_not_hold_up_the_second() {
    let three = Places::so_many(3, "primary");
    let mut agent = three.walkeep.agent();
    three.cluster.archive_by(Some(&three.walkeep.archive_command()));
    three.commits_wait();
    story::insert(&three.cluster, 10);
    let lost = three.cluster.switch_wal();
    wait_until("all have the same", PATIENCE, || {
        [1, 2].iter().all(|index| agent.metric(&three.metric_of("queue_objects", *index)) == Some(0.0))
    });

    three.proxies[2].close();
    story::insert(&three.cluster, 10);
    three.proxies[1].close();
    story::insert(&three.cluster, 10);
    three.cluster.switch_wal();
    agent.kill9();
    drop(agent);
    // The primary lost something that the second has, and the third would have.
    let listing = three.listing(0);
    let lost = listing.keys().find(|key| key.contains(&format!("{lost}.zst"))).expect("it was archived");
    assert!(three.listing(1).contains_key(lost));
    three.buckets[0].delete(lost);
    let agent = three.walkeep.agent();
    story::insert(&three.cluster, 10);
    three.proxies[1].open();
    story::backup(&three.walkeep);
    story::insert(&three.cluster, 10);
    three.cluster.switch_wal();
    story::settle(&three.cluster, &three.walkeep);
    wait_until("the primary has it again", PATIENCE, || three.listing(0).contains_key(lost));
    three.wait_as_primary(1);
    wait_until("the second lacks nothing", PATIENCE, || {
        agent.metric(&three.metric_of("behind_seconds", 1)) == Some(0.0) && agent.metric(&three.metric_of("queue_objects", 1)) == Some(0.0)
    });
    assert!(agent.metric(&three.metric_of("behind_seconds", 2)).is_some_and(|seconds| seconds > 1.0));
    assert_eq!(agent.metric(&three.metric_of("up", 2)), Some(0.0));

    three.proxies[2].open();
    three.cluster.set("synchronous_standby_names", "");
    three.wait_as_primary(2);
    assert_calm(&agent, &DOWN);
    agent.stop();
}

/// A command has no queue: what it leaves behind it notes, and the agent brings it.
#[test]
fn what_a_command_left_behind_the_agent_brings() {
    let two = Places::begin("primary");
    let agent = two.walkeep.agent();
    two.cluster.archive_by(Some(&two.walkeep.archive_command()));
    story::insert(&two.cluster, 10);
    wait_until("they were compared", PATIENCE, || {
        two.walkeep.ok(&["status", "--json"]).json()["repositories"][1]["compared_at"].is_string()
    });
    two.wait_alike();
    let compared = || two.walkeep.ok(&["status", "--json"]).json()["repositories"][1]["compared_at"].to_string();
    let before = compared();
    two.proxies[1].close();
    story::backup(&two.walkeep);
    assert!(!two.listing(1).keys().any(|key| key.ends_with("backup.json")), "{:?}", two.listing(1));
    two.proxies[1].open();
    story::settle(&two.cluster, &two.walkeep);
    two.wait_alike();
    assert!(two.listing(1).keys().any(|key| key.ends_with("backup.json")));
    wait_until("that was a comparison", PATIENCE, || compared() != before);
    assert_calm(&agent, &DOWN);
    agent.stop();
}

/// The first one takes connections and answers nothing.
#[test]
fn a_frozen_one_is_passed_over_within_the_deadline() {
    let two = Places::begin("primary");
    let mut agent = two.walkeep.agent();
    two.cluster.archive_by(Some(&two.walkeep.archive_command()));
    let mut stored = Vec::new();
    for _ in 0..3 {
        story::insert(&two.cluster, 10);
        stored.push(two.cluster.switch_wal());
    }
    story::settle(&two.cluster, &two.walkeep);
    two.wait_alike();
    let frozen = two.proxies[0].arm(When::any(), Fault::Hang);
    let to = two.cluster.pg_wal().join("RECOVERYXLOG");
    let fetch = |name: &str| {
        let (socket, to) = (two.walkeep.socket(), to.to_string_lossy().into_owned());
        let socket = socket.to_string_lossy();
        let began = Instant::now();
        let fetched = run(&mut two.walkeep.command_of("walkeep-restore-cmd", &["--timeout", "20s", "--socket", &socket, name, &to]));
        assert_eq!(fetched.code, Some(0), "{}", fetched.stderr);
        assert_eq!(std::fs::read(&to).unwrap(), std::fs::read(two.cluster.oracle().join(name)).unwrap());
        std::fs::remove_file(&to).unwrap();
        began.elapsed()
    };
    let with_agent: Vec<Duration> = stored.iter().map(|name| fetch(name)).collect();
    eprintln!("by the agent: {with_agent:?}");
    assert!(with_agent.iter().all(|took| *took < Duration::from_secs(15)), "{with_agent:?}");
    assert!(with_agent[2] < Duration::from_secs(3), "it is known by now: {with_agent:?}");
    agent.kill9();
    // Without an agent the shim starts the service itself, which opens them first.
    let alone: Vec<Duration> = stored.iter().map(|name| fetch(name)).collect();
    eprintln!("without one: {alone:?}");
    two.proxies[0].disarm(frozen);
}

/// The other way round: the primary lost some.
#[test]
fn what_the_primary_lost_is_copied_back() {
    let two = Places::begin("primary");
    let agent = two.walkeep.agent();
    two.cluster.archive_by(Some(&two.walkeep.archive_command()));
    for _ in 0..3 {
        story::insert(&two.cluster, 10);
        two.cluster.switch_wal();
    }
    story::backup(&two.walkeep);
    story::settle(&two.cluster, &two.walkeep);
    two.wait_alike();
    agent.stop();
    let before = two.listing(0);
    let lost: Vec<&String> =
        before.keys().filter(|key| key.contains("/packs/") || key.ends_with("backup.json") || key.contains(".zst")).collect();
    assert!(lost.len() > 5, "{before:?}");
    lost.iter().for_each(|key| two.buckets[0].delete(key));
    let dry = two.walkeep.ok(&["copy", "--from", "2", "--to", "1", "--dry-run", "--json"]).json();
    assert_eq!(dry["objects"].as_u64(), Some(lost.len() as u64), "{dry}");
    let copied = two.walkeep.ok(&["copy", "--from", "2", "--to", "1", "--json"]).json();
    assert_eq!((copied["objects"].as_u64(), copied["incomplete"].as_array().map(Vec::len)), (Some(lost.len() as u64), Some(0)), "{copied}");
    // And the copy's own record in the trail.
    let mut behind = two.listing(0);
    behind.retain(|key, _| before.contains_key(key) || !key.contains("/audit/"));
    assert_eq!(behind, before);
    two.assert_same_bytes();
    assert_eq!(two.walkeep.ok(&["copy", "--from", "2", "--to", "1", "--json"]).json()["objects"].as_u64(), Some(0));
}

/// What is left of a region that is gone.
#[test]
fn the_second_one_alone_is_planned_and_restored_from() {
    let mut two = Places::begin("primary");
    let agent = two.walkeep.agent();
    two.cluster.archive_by(Some(&two.walkeep.archive_command()));
    story::insert(&two.cluster, 30);
    story::backup(&two.walkeep);
    story::insert(&two.cluster, 10);
    story::settle(&two.cluster, &two.walkeep);
    two.wait_alike();
    agent.stop();

    two.proxies[0].close();
    let planned = two.walkeep.ok(&["plan", "--latest"]);
    assert!(planned.stderr.contains(&two.url(0)) && planned.stderr.contains("could not be asked"), "{}", planned.stderr);
    let restored = Restored::by(&two.walkeep, VERSION, &["--latest"]);
    // No decision on what is absent, as long as the lost one is configured: the 6th story. An expiry neither.
    two.walkeep.more.push_str("\n[cluster.main.retention]\nwindow = \"0s\"\nminimum_backups = 1\n");
    two.walkeep.write_config();
    let refused = two.walkeep.run(&["expire", "--yes"]).expect_code(1);
    assert!(refused.stderr.contains(&two.url(0)), "{}", refused.stderr);
    two.walkeep.repositories.remove(0);
    two.walkeep.cluster_lines.clear();
    two.walkeep.write_config();
    restored.start();
    assert_eq!(restored.rows(), 40);
    restored.cluster.stop(Stop::Fast);
}

/// N15: what is cut off, damaged or gone in the primary.
#[test]
fn damage_in_one_is_told_and_the_other_is_read() {
    let two = Places::begin("primary");
    let agent = two.walkeep.agent();
    two.cluster.archive_by(Some(&two.walkeep.archive_command()));
    story::insert(&two.cluster, 20);
    story::backup(&two.walkeep);
    let mut segments = Vec::new();
    for _ in 0..3 {
        story::insert(&two.cluster, 10);
        segments.push(two.cluster.switch_wal());
    }
    story::settle(&two.cluster, &two.walkeep);
    two.wait_alike();
    agent.stop();

    let listing = two.listing(0);
    let key = |part: &str| listing.keys().find(|key| key.contains(part)).unwrap_or_else(|| panic!("{part} in {listing:?}")).clone();
    let bucket = &two.buckets[0];
    let cut = key(&format!("{}.zst", segments[0]));
    bucket.put(&cut, &bucket.get(&cut)[..500]);
    let flipped = key(&format!("{}.zst", segments[1]));
    let mut bytes = bucket.get(&flipped);
    *bytes.last_mut().unwrap() ^= 1;
    bucket.put(&flipped, &bytes);
    bucket.delete(&key(&format!("{}.zst", segments[2])));
    let (record, manifest) = (key("/backup.json"), key("/manifest.zst"));
    bucket.put(&record, b"{}");
    let mut bytes = bucket.get(&manifest);
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    bucket.put(&manifest, &bytes);
    for pack in listing.keys().filter(|key| key.contains("/packs/")) {
        let mut bytes = bucket.get(pack);
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        bucket.put(pack, &bytes);
    }
    let restored = Restored::by(&two.walkeep, VERSION, &["--latest"]);
    restored.verify();
    restored.start();
    assert_eq!(restored.rows(), 50);
    restored.cluster.stop(Stop::Fast);
    let to = two.walkeep.scratch().join("again");
    let told = two.walkeep.ok(&["restore", "--latest", "--to", &to.to_string_lossy()]);
    assert!(told.stderr.contains(&two.url(0)) && told.stderr.contains("damaged"), "{}", told.stderr);
    for segment in &segments {
        let to = two.walkeep.scratch().join(segment);
        let fetched = two.walkeep.ok(&["wal", "fetch", segment, &to.to_string_lossy()]);
        assert!(fetched.stderr.contains("read from another repository"), "{}", fetched.stderr);
        assert_eq!(std::fs::read(to).unwrap(), std::fs::read(two.cluster.oracle().join(segment)).unwrap());
    }
    // Where it is damaged in both, that is said.
    two.buckets[1].put(&cut, b"nothing");
    let to = two.walkeep.scratch().join("both");
    let failed = two.walkeep.run(&["wal", "fetch", &segments[0], &to.to_string_lossy()]);
    assert!(failed.code > Some(125) && failed.stderr.contains("damaged"), "{failed:?}");
}

/// A new second one is filled by `walkeep copy`, which is killed half way.
#[test]
fn history_is_copied_into_a_new_repository() {
    let cluster = story::builder(VERSION).start();
    let server = S3Server::get();
    let (proxies, buckets) = (vec![server.proxy(), server.proxy()], vec![server.bucket(), server.bucket()]);
    let walkeep = Walkeep::new(&cluster, Repository::s3(proxies[0].endpoint(), &buckets[0]));
    walkeep.ok(&["init"]);
    let agent = walkeep.agent();
    cluster.archive_by(Some(&walkeep.archive_command()));
    cluster.sql("CREATE TABLE t (i int PRIMARY KEY, filler text)");
    for _ in 0..4 {
        story::insert(&cluster, 10);
        cluster.switch_wal();
    }
    story::backup(&walkeep);
    story::insert(&cluster, 10);
    story::settle(&cluster, &walkeep);
    agent.stop();

    let mut two = Places { cluster, walkeep, proxies, buckets };
    two.walkeep.repositories.push(Repository::s3(two.proxies[1].endpoint(), &two.buckets[1]));
    two.walkeep.write_config();
    let dry = two.walkeep.run(&["copy", "--to", "2", "--dry-run", "--json"]).expect_code(0).json();
    let all = two.listing(0).keys().filter(|key| !key.ends_with("walkeep.json") && !key.ends_with("cluster.json")).count() as u64;
    assert_eq!((dry["objects"].as_u64(), two.listing(1).len()), (Some(all), 0), "{dry}");
    let log = two.walkeep.scratch().join("copy.log");
    let mut copying = Process::start(two.walkeep.command(&["copy", "--to", "2", "--rate", "300KiB"]), &log).unwrap();
    wait_until("some of it is there", PATIENCE, || two.listing(1).len() > 5);
    copying.kill();
    drop(copying);
    let half = two.listing(1);
    assert!(half.len() < two.listing(0).len() && !half.keys().any(|key| key.ends_with("backup.json")), "{half:?}");
    let copied = two.walkeep.ok(&["copy", "--to", &two.url(1), "--json"]).json();
    assert!(copied["there_already"].as_u64() > Some(2) && copied["objects"].as_u64() < Some(all), "{copied}");
    two.wait_alike();
    two.assert_same_bytes();
    // From a repository that was never written by an agent.
    two.walkeep.repositories.remove(0);
    two.walkeep.write_config();
    let restored = Restored::by(&two.walkeep, VERSION, &["--latest"]);
    restored.start();
    assert_eq!(restored.rows(), 50);
    restored.cluster.stop(Stop::Fast);
}

/// What a rule asks for is waited for.
#[test]
fn all_waits_for_all() {
    let two = Places::begin("all");
    let agent = two.walkeep.agent();
    two.cluster.archive_by(Some(&two.walkeep.archive_command()));
    two.commits_wait();
    story::insert(&two.cluster, 5);
    two.proxies[1].close();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| story::insert(&two.cluster, 1));
        std::thread::sleep(Duration::from_secs(3));
        assert!(!waiting.is_finished(), "a commit returned that is in one repository only");
        two.proxies[1].open();
        wait_until("the commit returns", PATIENCE, || waiting.is_finished());
    });
    two.cluster.set("synchronous_standby_names", "");
    story::settle(&two.cluster, &two.walkeep);
    two.cluster.archive_now();
    assert_calm(&agent, &DOWN);
    agent.stop();
    two.wait_alike();
    assert!(compare_fetched(&two.cluster.oracle(), &two.walkeep) >= 1);
}

#[test]
fn any_goes_on_without_the_primary() {
    let two = Places::begin("any");
    let agent = two.walkeep.agent();
    two.cluster.archive_by(Some(&two.walkeep.archive_command()));
    two.commits_wait();
    story::insert(&two.cluster, 5);
    wait_until("they were compared", PATIENCE, || {
        two.walkeep.ok(&["status", "--json"]).json()["repositories"][1]["compared_at"].is_string()
    });
    two.proxies[0].close();
    let begun = Instant::now();
    for _ in 0..3 {
        story::insert(&two.cluster, 10);
        two.cluster.switch_wal();
    }
    eprintln!("30 commits with the primary down: {:?}", begun.elapsed());
    assert!(begun.elapsed() < PATIENCE);
    assert!(agent.metric(&two.metric_of("queue_objects", 0)).is_some_and(|objects| objects > 0.0));
    two.proxies[0].open();
    story::insert(&two.cluster, 5);
    two.cluster.set("synchronous_standby_names", "");
    two.cluster.archive_now();
    two.wait_alike();
    story::settle(&two.cluster, &two.walkeep);
    assert_calm(&agent, &DOWN);
    agent.stop();
    two.wait_alike();
    two.assert_same_bytes();
    assert!(compare_fetched(&two.cluster.oracle(), &two.walkeep) >= 3);
}

/// 1.2: not there is said only if every repository says it.
#[test]
fn absence_needs_every_repository() {
    let two = Places::begin("primary");
    let agent = two.walkeep.agent();
    two.cluster.archive_by(Some(&two.walkeep.archive_command()));
    story::insert(&two.cluster, 10);
    let stored = two.cluster.archive_now();
    two.wait_alike();
    let absent = "0000000100000000000000F7";
    let to = two.cluster.pg_wal().join("RECOVERYXLOG");
    let fetch = |name: &str| {
        let (socket, to) = (two.walkeep.socket(), to.to_string_lossy().into_owned());
        let args = ["--timeout", "20s", "--socket", &socket.to_string_lossy(), name, &to].map(str::to_owned);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        run(&mut two.walkeep.command_of("walkeep-restore-cmd", &args))
    };
    assert_eq!(fetch(absent).code, Some(1));
    for index in [0, 1] {
        two.proxies[index].close();
        for name in [absent, "00000002.history"] {
            let failed = fetch(name);
            assert!(failed.code > Some(125), "{failed:?}");
            let told = failed.stderr.contains(&two.url(index)) && failed.stderr.contains("taken out of the configuration");
            assert!(told, "{index}: {}", failed.stderr);
        }
        // What is there needs no proof.
        assert_eq!(fetch(&stored).code, Some(0));
        std::fs::remove_file(&to).unwrap();
        two.proxies[index].open();
        wait_until("absence is proven again", PATIENCE, || fetch(absent).code == Some(1));
    }
    assert_calm(&agent, &[DOWN.as_slice(), &["failed request=\"fetch"]].concat());
    agent.stop();
}

/// Places repositories that do not keep the same are no configuration.
#[test]
fn another_clusters_repository_is_refused() {
    let one = story::builder(VERSION).start();
    let other = Cluster::builder().version(VERSION).fresh().start();
    let stranger = Walkeep::local(&other);
    stranger.ok(&["init"]);
    let mut walkeep = Walkeep::local(&one);
    walkeep.ok(&["init"]);
    walkeep.repositories.push(Repository::Local(stranger.local_repository()));
    walkeep.write_config();
    for command in [&["status"][..], &["plan"], &["init"], &["copy", "--to", "2"]] {
        let refused = walkeep.run(command).expect_code(2);
        assert!(refused.stderr.contains("do not agree on main"), "{command:?}: {}", refused.stderr);
        assert!(refused.stderr.contains(&stranger.local_repository().display().to_string()), "{}", refused.stderr);
    }
    assert!(walkeep.try_agent().is_err());
}

/// A segment that the second lacks is damaged in the only other one: that is told for as long as it is so, and what comes behind it is brought.
#[test]
fn what_no_other_one_can_give_stays_known() {
    let two = Places::begin("primary");
    let agent = two.walkeep.agent();
    two.cluster.archive_by(Some(&two.walkeep.archive_command()));
    story::insert(&two.cluster, 10);
    let segment = two.cluster.switch_wal();
    story::settle(&two.cluster, &two.walkeep);
    two.wait_alike();
    agent.stop();
    let listing = two.listing(0);
    let key = listing.keys().find(|key| key.contains(&format!("{segment}.zst"))).unwrap().clone();
    let whole = two.buckets[0].get(&key);
    let mut bytes = whole.clone();
    *bytes.last_mut().unwrap() ^= 1;
    two.buckets[0].put(&key, &bytes);
    two.buckets[1].delete(&key);

    let agent = two.walkeep.agent();
    wait_until("it is known", PATIENCE, || agent.metric(&two.metric_of("stuck_objects", 1)) == Some(1.0));
    story::insert(&two.cluster, 10);
    two.cluster.switch_wal();
    story::backup(&two.walkeep);
    story::settle(&two.cluster, &two.walkeep);
    wait_until("what came behind it is there, a backup too", PATIENCE, || {
        let (one, other) = (two.listing(0), two.listing(1));
        one.keys().filter(|key| !other.contains_key(*key)).eq([&key]) && one.keys().any(|key| key.ends_with("/backup.json"))
    });
    assert_eq!(agent.metric(&two.metric_of("queue_objects", 1)), Some(1.0));
    assert!(agent.metric(&two.metric_of("behind_seconds", 1)).is_some_and(|seconds| seconds > 1.0), "the alarm sees it");
    wait_until("status says so", PATIENCE, || {
        let told = two.walkeep.ok(&["status"]).stdout;
        told.contains("BEHIND: 1 object wait") && told.contains("1 object of that no other repository can give")
    });
    assert!(agent.log().contains("no other one can give") && agent.log().contains(&segment), "{}", agent.log());
    // Put there meanwhile, it is found by whoever begins anew.
    two.buckets[1].put(&key, &whole);
    agent.stop();
    let agent = two.walkeep.agent();
    wait_until("nothing is lacking", PATIENCE, || agent.metric(&two.metric_of("stuck_objects", 1)) == Some(0.0));
    agent.stop();
}
