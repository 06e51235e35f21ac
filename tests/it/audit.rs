//! The audit trail: every deed with who and result, two writers at once, what was changed or taken out, credentials that only read.

use std::path::PathBuf;
use std::process::Stdio;

use serde_json::Value;
use walkeep_tests::walkeep::{binary, run};
use walkeep_tests::{Fault, Repository, S3Server, Scratch, Walkeep, When, user, wait_until};

use crate::story::{self, PATIENCE, Restored, Story, listing};
use crate::support::offer;

const VERSION: u32 = 15;
const SENTINEL: &str = "sentinel-7f3a91";

fn audit(walkeep: &Walkeep, args: &[&str]) -> Value {
    walkeep.ok(&[&["audit", "--json"], args].concat()).json()
}

/// Command, outcome: what is in the trail of these kinds.
fn told(trail: &Value) -> Vec<(String, String)> {
    let text = |record: &Value, name: &str| record[name].as_str().unwrap_or_else(|| panic!("{record}")).to_owned();
    trail["records"].as_array().unwrap().iter().map(|record| (text(record, "kind"), text(record, "outcome"))).collect()
}

fn records(walkeep: &Walkeep) -> Vec<PathBuf> {
    let repository = walkeep.local_repository();
    let files = listing(&repository).into_iter().filter_map(|line| line.split_once(" f ").map(|(path, _)| path.to_owned()));
    files.filter(|path| path.contains("/audit/") && path.ends_with(".json")).map(|path| repository.join(path)).collect()
}

#[test]
fn every_deed_is_there_with_who_and_result() {
    let mut story = Story::local(VERSION);
    story.insert(5);
    story.cluster.sql("SELECT pg_switch_wal()");
    let first = story.backup();
    std::thread::sleep(std::time::Duration::from_millis(1500));
    let second = story.backup();
    story.settle();
    let to = Restored::by(&story.walkeep, VERSION, &["--backup", &first, "--immediate"]);
    let nowhere = story.walkeep.scratch().join("nowhere").to_string_lossy().into_owned();
    story.walkeep.run(&["restore", "--at", "2001-01-01 00:00:00Z", "--to", &nowhere]).expect_code(3);
    story.walkeep.ok(&["keep", &first, "--for", "30d"]);
    story.walkeep.ok(&["release", &first]);
    story.walkeep.more = "\n[cluster.main.retention]\nwindow = \"0s\"\nminimum_backups = 1\n".to_owned();
    story.walkeep.write_config();
    story.walkeep.ok(&["expire", "--dry-run"]);
    story.walkeep.run(&["expire"]).expect_code(3);
    story.walkeep.ok(&["expire", "--yes"]);
    story.walkeep.ok(&["expire", "--undo", "1"]);
    let into = format!("host={} dbname=nowhere password={SENTINEL}", nowhere);
    story.walkeep.run(&["extract", "--query", &format!("SELECT '{SENTINEL}'"), "--out", "/nowhere/x.csv"]).expect_code(1);
    story.walkeep.run(&["extract", "--table", "t", "--into", &into]);
    // Reports leave nothing, nor does what was there already.
    for command in [&["status"][..], &["backups"], &["plan"], &["index"], &["lease"], &["init"]] {
        story.walkeep.ok(command);
    }

    let trail = audit(&story.walkeep, &[]);
    let expected = [
        ("init", "done"),
        ("backup", "done"),
        ("backup", "done"),
        ("restore", "begun"),
        ("restore", "done"),
        ("restore", "refused"),
        ("keep", "done"),
        ("release", "done"),
        ("expire", "refused"),
        ("expire", "begun"),
        ("expire", "done"),
        ("undo", "done"),
        ("extract", "failed"),
        ("extract", "failed"),
    ];
    assert_eq!(told(&trail), expected.map(|(kind, outcome)| (kind.to_owned(), outcome.to_owned())), "{trail:#}");
    let record = |number: usize| trail["records"][number].clone();
    let account = user::account();
    for record in trail["records"].as_array().unwrap() {
        assert_eq!(record["actor"]["uid"], account.uid, "{record}");
        assert!(record["actor"]["host"].as_str().is_some_and(|host| !host.is_empty()));
        assert_eq!(record["program"], format!("walkeep {}", env!("CARGO_PKG_VERSION")));
    }
    assert_eq!((&record(1)["subject"]["backup"], &record(2)["subject"]["backup"]), (&Value::from(first.as_str()), &Value::from(second)));
    assert_eq!((&record(3)["subject"]["backup"], &record(4)["begun"]), (&Value::from(first.as_str()), &Value::from(4)));
    assert_eq!(record(4)["subject"]["to"], to.cluster.data().to_string_lossy().into_owned());
    assert!(record(5)["message"].as_str().unwrap().contains("backup"), "{}", record(5));
    assert_eq!(record(5)["subject"]["target"], "--at 2001-01-01 00:00:00Z");
    assert_eq!(record(10)["subject"]["backups"], first);
    assert_eq!((&trail["findings"], &trail["without_end"]), (&serde_json::json!([]), &serde_json::json!([])));

    assert_eq!(told(&audit(&story.walkeep, &["--kind", "keep"])).len(), 1);
    assert_eq!(told(&audit(&story.walkeep, &["--to", "2001-01-01T00:00:00Z"])).len(), 0);
    let shown = story.walkeep.ok(&["audit"]).stdout;
    assert!(shown.contains("14 records; the last is number 14, sha256 ") && shown.contains("REFUSED"), "{shown}");
    let files = records(&story.walkeep);
    assert_eq!(files.len(), 14);
    for file in files {
        assert!(!std::fs::read_to_string(&file).unwrap().contains(SENTINEL), "{}", file.display());
    }
    story.end(&[]);
}

#[test]
fn what_was_changed_or_taken_out_is_found() {
    let story = Story::local(VERSION);
    let backup = story.backup();
    for _ in 0..3 {
        story.walkeep.ok(&["keep", &backup]);
    }
    let files = records(&story.walkeep);
    assert_eq!(files.len(), 5);
    let head = audit(&story.walkeep, &["--check"])["head"]["hash"].as_str().unwrap().to_owned();
    story.walkeep.ok(&["audit", "--check", "--expect", &head]);

    let third = std::fs::read_to_string(&files[2]).unwrap();
    let changed = third.replace(&backup, "20000101T000000Z-0000000000000000");
    assert_ne!(changed, third);
    std::fs::write(&files[2], changed).unwrap();
    let broken = story.walkeep.run(&["audit"]).expect_code(4);
    assert!(broken.stderr.contains("/audit/00000003.json (record 3 has not the hash that record 4 names"), "{}", broken.stderr);
    std::fs::remove_file(&files[2]).unwrap();
    let broken = story.walkeep.run(&["audit", "--json"]).expect_code(4);
    assert!(broken.stderr.contains("/audit/00000003.json (record 3 is missing)"), "{}", broken.stderr);
    assert_eq!(broken.json()["findings"][0]["finding"], "missing");
    std::fs::write(&files[2], third).unwrap();
    user::give(&files[2]);
    story.walkeep.ok(&["audit", "--check", "--expect", &head]);

    // The end: nothing in the trail tells, but the hash that was noted.
    std::fs::remove_file(&files[4]).unwrap();
    story.walkeep.ok(&["audit", "--check"]);
    let cut = story.walkeep.run(&["audit", "--check", "--expect", &head]).expect_code(4);
    assert!(cut.stderr.contains("no record has the hash"), "{}", cut.stderr);
    // What follows is beside what was taken out.
    story.walkeep.ok(&["release", &backup]);
    story.walkeep.run(&["audit", "--check", "--expect", &head]).expect_code(4);
    story.end(&[]);
}

#[test]
fn writers_at_once_lose_no_record() {
    let server = S3Server::get();
    let story = Story::begin(story::builder(VERSION), Some(Repository::s3_tls(&server.bucket())));
    let backup = story.backup();
    let keep = || {
        let mut command = story.walkeep.command(&["keep", &backup]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let running: Vec<_> = (0..8).map(|_| keep()).collect();
    for command in running {
        let output = command.wait_with_output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let trail = audit(&story.walkeep, &["--kind", "keep"]);
    assert_eq!((told(&trail).len(), &trail["total"]), (8, &Value::from(10)));
    story.end(&[]);
}

/// What root records in a directory is the agent's to read: it adds behind it.
#[test]
fn a_record_of_root_is_open_to_the_agent() {
    if !user::is_root() {
        eprintln!("SKIPPED: not root");
        return;
    }
    let story = Story::local(VERSION);
    std::fs::remove_dir_all(records(&story.walkeep)[0].parent().unwrap()).unwrap();
    let mut command = std::process::Command::new(binary("walkeep"));
    let nowhere = story.walkeep.scratch().join("nowhere");
    command.args(["restore", "--at", "2001-01-01 00:00:00Z", "--to"]).arg(nowhere).env("WALKEEP_CONFIG", story.walkeep.config_path());
    let refused = run(&mut command).expect_code(3);
    assert!(!refused.stderr.contains("audit trail"), "{}", refused.stderr);
    story.backup();
    let trail = audit(&story.walkeep, &[]);
    assert_eq!(told(&trail), [("restore".to_owned(), "refused".to_owned()), ("backup".to_owned(), "done".to_owned())]);
    assert_eq!((&trail["records"][0]["actor"]["uid"], &trail["records"][0]["actor"]["user"]), (&Value::from(0), &Value::from("root")));
    story.end(&[]);
}

/// A shim that asks for what it may not have is in the trail, once for many times.
#[test]
fn refused_requests_are_counted() {
    let story = Story::local(VERSION);
    let elsewhere = Scratch::new();
    let file = elsewhere.write("000000010000000000000001", "x", 0o600);
    for _ in 0..5 {
        assert_ne!(offer(&story.walkeep, &file).code, Some(0));
    }
    wait_until("the refusal is recorded", PATIENCE, || !told(&audit(&story.walkeep, &["--kind", "request"])).is_empty());
    let trail = audit(&story.walkeep, &["--kind", "request"]);
    assert_eq!(told(&trail), [("request".to_owned(), "refused".to_owned())]);
    let record = &trail["records"][0];
    assert_eq!(
        (&record["command"], &record["subject"]["archive"]),
        (&Value::from("agent"), &Value::from(file.to_string_lossy().into_owned()))
    );
    story.end(&["failed"]);
}

/// The agent's stop is no way to have no record.
#[test]
fn a_backup_that_the_agents_stop_interrupts_is_recorded() {
    let (proxy, bucket) = (S3Server::get().proxy(), S3Server::get().bucket());
    let cluster = story::builder(VERSION).start();
    let mut walkeep = Walkeep::new(&cluster, Repository::s3(proxy.endpoint(), &bucket));
    walkeep.more = "\n[[cluster.main.backup]]\nschedule = \"* * * * *\"\n".to_owned();
    walkeep.write_config();
    walkeep.ok(&["init"]);
    let slow = proxy.arm(When::put().path("packs/"), Fault::Delay(std::time::Duration::from_millis(2000)));
    let agent = walkeep.agent();
    wait_until("a backup is under way", std::time::Duration::from_secs(90), || proxy.hits(slow) > 0);
    agent.stop();
    let trail = audit(&walkeep, &["--kind", "backup"]);
    assert_eq!(told(&trail), [("backup".to_owned(), "failed".to_owned())], "{trail:#}");
    assert_eq!(trail["records"][0]["message"], "given up: the agent stops");
}

/// What was killed shows, and a trail that cannot be written hinders no restore.
#[test]
fn a_killed_restore_shows_and_credentials_that_only_read_restore() {
    let proxy = S3Server::get().proxy();
    let bucket = S3Server::get().bucket();
    let story = Story::begin(story::builder(VERSION), Some(Repository::s3(proxy.endpoint(), &bucket)));
    story.insert(7);
    story.backup();
    story.settle();

    let hanging = proxy.arm(When::get().path("packs/"), Fault::Hang);
    let folder = Scratch::new();
    let to = folder.join("killed").to_string_lossy().into_owned();
    let mut killed = story.walkeep.command(&["restore", "--to", &to]).stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
    wait_until("the restore has begun", PATIENCE, || !told(&audit(&story.walkeep, &["--kind", "restore"])).is_empty());
    killed.kill().unwrap();
    killed.wait().unwrap();
    proxy.disarm(hanging);
    let trail = audit(&story.walkeep, &["--kind", "restore"]);
    assert_eq!(told(&trail), [("restore".to_owned(), "begun".to_owned())]);
    assert_eq!(trail["without_end"], serde_json::json!([trail["records"][0]["number"]]));

    let denied = proxy.arm(When::put().path("audit/"), Fault::ACCESS_DENIED);
    let to = folder.join("restored").to_string_lossy().into_owned();
    let restored = story.walkeep.ok(&["restore", "--to", &to]);
    assert_eq!(restored.stderr.matches("this is not in the audit trail").count(), 1, "{}", restored.stderr);
    proxy.disarm(denied);
    assert_eq!(audit(&story.walkeep, &[])["total"], trail["total"]);
    story.end(&[]);
}
