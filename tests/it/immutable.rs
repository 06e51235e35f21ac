//! X6: a bucket that keeps versions and locks them: whoever has the keys can hide what is stored, not remove it, and it is restored as it was.

use std::thread::sleep;
use std::time::Duration;

use walkeep_tests::{Cluster, Repository, S3Server, Stop, Walkeep};

use crate::story::{self, Restored};

const VERSION: u32 = 15;

/// S3 tells whole seconds: so long until what comes is later than what was.
const SECOND: Duration = Duration::from_millis(1500);

fn now() -> String {
    sleep(SECOND);
    let now = String::from_utf8(std::process::Command::new("date").args(["-u", "+%Y-%m-%d %H:%M:%S+00"]).output().unwrap().stdout).unwrap();
    sleep(SECOND);
    now.trim().to_owned()
}

#[test]
fn what_a_thief_deletes_is_restored_as_it_was() {
    let server = S3Server::get();
    let bucket = server.locking_bucket();
    let cluster: Cluster = story::builder(VERSION).start();
    let repository = Repository::S3 { endpoint: server.endpoint(), bucket: bucket.name.clone(), prefix: "deep/in".to_owned(), ca: None };
    let mut walkeep = Walkeep::new(&cluster, repository);
    let set = |walkeep: &mut Walkeep, key: &str, value: &str| {
        walkeep.environment.push((format!("WALKEEP_REPOSITORY_{key}"), value.to_owned()));
    };
    set(&mut walkeep, "OBJECT_LOCK", "compliance");
    set(&mut walkeep, "OBJECT_LOCK_DAYS", "1");
    walkeep.ok(&["init"]);
    let agent = walkeep.agent();
    cluster.archive_by(Some(&walkeep.archive_command()));
    cluster.sql("CREATE TABLE t (i int PRIMARY KEY, filler text)");
    story::insert(&cluster, 10);
    let backup = story::backup(&walkeep);
    story::insert(&cluster, 10);
    story::settle(&cluster, &walkeep);
    // What is replaced within hours goes, as ever.
    story::insert(&cluster, 1);
    story::settle(&cluster, &walkeep);
    let complaints = agent.complaints(&[]);
    assert!(complaints.is_empty(), "{complaints:?}");
    agent.stop();
    let whole = now();

    let all = bucket.list("");
    assert!(all.len() > 10);
    let (mut locked, mut free) = (0, Vec::new());
    for (key, _) in &all {
        match bucket.remove_versions(key) {
            Err(_) => locked += 1,
            Ok(()) => free.push(key.clone()),
        }
        bucket.delete(key);
    }
    let is_free = |key: &str| key.contains(".parts/") || key.contains("/probe-") || key.contains("/index/");
    assert!(locked > 8 && free.iter().all(|key| is_free(key)), "{locked} {free:?}");
    assert!(bucket.list("").is_empty());
    let gone = walkeep.run(&["status"]).expect_code(1);
    assert!(gone.stderr.contains("walkeep.json is missing"), "{gone:?}");

    let status = walkeep.ok(&["status", "--as-of", &whole]);
    assert!(status.stdout.contains(&backup), "{status:?}");
    walkeep.ok(&["plan", "--as-of", &whole]);
    let restored = Restored::by(&walkeep, VERSION, &["--as-of", &whole]);
    restored.start();
    assert_eq!(restored.rows(), 21);
    restored.cluster.stop(Stop::Fast);
    // Before there was anything there is nothing; and nothing is written in the past.
    let early = walkeep.run(&["status", "--as-of", "2020-01-01 00:00:00+00"]).expect_code(1);
    assert!(early.stderr.contains("walkeep.json is missing"), "{early:?}");
    for command in ["backup", "agent", "init", "check"] {
        let refused = walkeep.run(&[command, "--as-of", &whole]).expect_code(2);
        assert!(refused.stderr.contains("read as of"), "{command} {refused:?}");
    }
    for (time, told) in [("yesterday", "as_of"), ("2026-01-01 00:00:00", "zone")] {
        let refused = walkeep.run(&["status", "--as-of", time]).expect_code(2);
        assert!(refused.stderr.contains(told), "{refused:?}");
    }
    assert!(bucket.list("").is_empty());
}

/// The rules that are shipped let nothing go that Walkeep may need. They move segments and packs only, as what every command reads must be at hand; and
/// but for those that say so, not to where it cannot be read at once.
#[test]
fn the_lifecycles_remove_nothing_that_is_kept() {
    for (text, archives) in [
        (include_str!("../../packaging/lifecycle/s3-lifecycle.json"), false),
        (include_str!("../../packaging/lifecycle/s3-lifecycle-versions.json"), false),
        (include_str!("../../packaging/lifecycle/s3-lifecycle-archive.json"), true),
    ] {
        let rules: serde_json::Value = serde_json::from_str(text).unwrap();
        for rule in rules["Rules"].as_array().unwrap() {
            assert!(rule["Expiration"]["Days"].is_null() && rule["Expiration"]["Date"].is_null(), "{rule}");
            for transition in rule["Transitions"].as_array().into_iter().flatten() {
                let class = transition["StorageClass"].as_str().unwrap();
                let is_known = ["STANDARD_IA", "GLACIER_IR"].contains(&class) || archives && ["GLACIER", "DEEP_ARCHIVE"].contains(&class);
                let prefix = rule["Filter"]["And"]["Prefix"].as_str().unwrap();
                assert!(is_known && (prefix.ends_with("/wal/") || prefix.ends_with("/packs/")), "{rule}");
            }
        }
    }
}

/// Retention in such a bucket hides what goes; S3 removes it once the lock is over.
#[test]
fn an_expiry_hides_what_is_locked() {
    let server = S3Server::get();
    let bucket = server.locking_bucket();
    let cluster: Cluster = story::builder(VERSION).start();
    let repository = Repository::S3 { endpoint: server.endpoint(), bucket: bucket.name.clone(), prefix: String::new(), ca: None };
    let mut walkeep = Walkeep::new(&cluster, repository);
    for (key, value) in [("OBJECT_LOCK", "governance"), ("OBJECT_LOCK_DAYS", "2"), ("WAL_STORAGE_CLASS", "STANDARD_IA")] {
        walkeep.environment.push((format!("WALKEEP_REPOSITORY_{key}"), value.to_owned()));
    }
    walkeep.more = "\n[cluster.main.retention]\nwindow = \"0s\"\nminimum_backups = 1\ngrace = \"0s\"\n".to_owned();
    walkeep.write_config();
    walkeep.ok(&["init"]);
    let agent = walkeep.agent();
    cluster.archive_by(Some(&walkeep.archive_command()));
    cluster.sql("CREATE TABLE t (i int PRIMARY KEY, filler text)");
    story::insert(&cluster, 10);
    let first = story::backup(&walkeep);
    sleep(SECOND);
    let before = now();
    story::backup(&walkeep);
    story::settle(&cluster, &walkeep);
    let done = walkeep.ok(&["expire", "--yes", "--json"]).json();
    assert!(done["carried_out"]["refused"] == 0 && done["carried_out"]["backups"][0] == first.as_str(), "{done}");
    assert_eq!(story::backups(&walkeep).len(), 1);
    let then = walkeep.ok(&["backups", "--json", "--as-of", &before]);
    assert!(then.stdout.contains(&first) && !story::backups(&walkeep).contains(&first), "{then:?}");
    assert_eq!(Restored::by(&walkeep, VERSION, &["--as-of", &before, "--backup", &first, "--immediate"]).start().rows(), 10);
    agent.stop();
}

/// What was put before the configuration promised locks is told; a backup locks the packs that it builds on, and only those that are not locked are told still.
#[test]
fn locks_are_looked_at_and_prolonged_for_what_later_backups_use() {
    let server = S3Server::get();
    let bucket = server.locking_bucket();
    let cluster: Cluster = story::builder(VERSION).start();
    let repository = Repository::S3 { endpoint: server.endpoint(), bucket: bucket.name.clone(), prefix: String::new(), ca: None };
    let mut walkeep = Walkeep::new(&cluster, repository);
    walkeep.data_directory = Some(cluster.data().to_owned());
    walkeep.write_config();
    walkeep.ok(&["init"]);
    let agent = walkeep.agent();
    cluster.archive_by(Some(&walkeep.archive_command()));
    cluster.sql("CREATE TABLE t (i int PRIMARY KEY, filler text)");
    story::insert(&cluster, 10);
    walkeep.ok(&["backup", "--method", "local"]);
    agent.stop();
    // Nothing is promised, and nothing locked.
    walkeep.ok(&["verify", "--deep"]);
    for (key, value) in [("OBJECT_LOCK", "governance"), ("OBJECT_LOCK_DAYS", "2")] {
        walkeep.environment.push((format!("WALKEEP_REPOSITORY_{key}"), value.to_owned()));
    }
    let unlocked = |args: &[&str]| {
        let told = walkeep.run(&[&["verify", "--json"], args].concat()).expect_code(4).json();
        let findings = told["findings"].as_array().unwrap().clone();
        assert!(findings.iter().all(|found| found["kind"] == "lock" && found["severity"] == "minor" && found["lost"].is_null()), "{told}");
        findings.iter().map(|found| found["key"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert!(unlocked(&[]).len() > 5);
    let before = unlocked(&["--deep"]);
    let packs = |keys: &[String]| keys.iter().filter(|key| key.contains("/packs/")).count();
    assert!(packs(&before) > 0 && before.iter().any(|key| key.contains("/wal/")), "{before:?}");

    let agent = walkeep.agent();
    story::insert(&cluster, 10);
    let second = walkeep.ok(&["backup", "--method", "local", "--json"]).json();
    assert!(second["bytes_referenced"].as_u64() > Some(0), "{second}");
    story::settle(&cluster, &walkeep);
    assert!(agent.complaints(&[]).is_empty());
    agent.stop();
    let behind = unlocked(&["--deep"]);
    assert!(packs(&behind) < packs(&before) && behind.len() < before.len() && behind.iter().all(|key| before.contains(key)), "{behind:?}");
    let pack = before.iter().find(|key| key.contains("/packs/") && !behind.contains(key)).unwrap();
    assert!(bucket.remove_versions(pack).is_err(), "it is locked now");
}
