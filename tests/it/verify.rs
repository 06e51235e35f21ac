//! `walkeep verify`: a whole repository is told to be whole, under load too; whatever is taken away or changed is named, with what is lost.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::Duration;

use serde_json::Value;
use walkeep_tests::process::Process;
use walkeep_tests::{Keys, Pair, Repository, S3Server, Walkeep, wait_until};

use crate::story::{self, PATIENCE, Story};

const VERSION: u32 = 15;

/// What is verified.
struct Verified(Value);

impl Verified {
    #[track_caller]
    fn by(walkeep: &Walkeep, args: &[&str], code: i32) -> Self {
        let output = walkeep.run(&[&["verify", "--json"], args].concat());
        assert_eq!(output.code, Some(code), "{}\n{}", output.stdout, output.stderr);
        Self(output.json())
    }

    /// The keys of what is damaged, and how much each matters.
    fn damaged(&self) -> Vec<(String, String)> {
        let text = |finding: &Value, field: &str| finding[field].as_str().unwrap().to_owned();
        let findings = self.0["findings"].as_array().unwrap().iter().filter(|finding| finding["severity"] != "note");
        findings.map(|finding| (text(finding, "severity"), text(finding, "key"))).collect()
    }
}

/// A backup, another one that builds on it, WAL behind each and a second timeline's none; the agent has ended, so its index is stored.
fn settled(story: &mut Story) -> Vec<String> {
    let mut ids = Vec::new();
    for _ in 0..2 {
        story.insert(20);
        ids.push(story.backup());
    }
    story.insert(20);
    story.settle();
    story.stop_agent(&[]);
    ids
}

/// The files of a local repository below its cluster, by their keys, in order.
fn objects(walkeep: &Walkeep) -> Vec<(String, PathBuf)> {
    let root = walkeep.local_repository();
    let mut found = Vec::new();
    let mut folders = vec![root.join("main")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => folders.push(path),
                false => found.push((path.strip_prefix(&root).unwrap().to_string_lossy().into_owned(), path)),
            }
        }
    }
    found.sort();
    found
}

/// The first object whose key has this in it.
#[track_caller]
fn object(objects: &[(String, PathBuf)], part: &str, ends: &str) -> (String, PathBuf) {
    let found = objects.iter().find(|(key, _)| key.contains(part) && key.trim_end_matches(".age").ends_with(ends));
    found.unwrap_or_else(|| panic!("no {part} ... {ends} in {objects:#?}")).clone()
}

/// Changes a file for as long as `while_changed` runs.
fn with_change<T>(path: &Path, change: impl FnOnce(&Path), while_changed: impl FnOnce() -> T) -> T {
    let before = fs::read(path).unwrap();
    change(path);
    let result = while_changed();
    // As it was, and its owner's.
    fs::write(path, before).unwrap();
    std::os::unix::fs::chown(path, Some(walkeep_tests::user::account().uid), Some(walkeep_tests::user::account().gid)).unwrap();
    result
}

fn remove(path: &Path) {
    fs::remove_file(path).unwrap();
}

fn flip(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    fs::write(path, bytes).unwrap();
}

fn cut_to_nothing(path: &Path) {
    fs::write(path, []).unwrap();
}

#[test]
fn what_is_missing_is_named_with_what_is_lost() {
    let mut story = Story::local(VERSION);
    let ids = settled(&mut story);
    let told = story.walkeep.ok(&["verify"]);
    assert!(told.stdout.starts_with("everything is there"), "{}", told.stdout);
    let whole = Verified::by(&story.walkeep, &[], 0);
    assert_eq!((&whole.0["whole"], &whole.0["listed"]["backups"]), (&Value::Bool(true), &Value::from(2)));
    assert_eq!(whole.0["listed"]["objects"], objects(&story.walkeep).len() as u64 - 1, "all but cluster.json");

    let objects = objects(&story.walkeep);
    // Segments of the backups' own ranges: from the note that PostgreSQL left of the first one on.
    let own = object(&objects, "/wal/00000001/", ".backup.zst").0;
    let segment = own.rsplit('/').next().unwrap()[..24].to_owned();
    let (segment, segment_path) = object(&objects, "/wal/00000001/", &format!("/{segment}.zst"));
    let pack = object(&objects, "/packs/", "");
    let manifest = object(&objects, &format!("/backups/{}/", ids[0]), "/manifest.zst");
    let record = object(&objects, &format!("/backups/{}/", ids[1]), "/backup.json");
    for (what, (key, path), change) in [
        ("segment removed", (&segment, &segment_path), remove as fn(&Path)),
        ("segment of nothing", (&segment, &segment_path), cut_to_nothing),
        ("pack removed", (&pack.0, &pack.1), remove),
        ("pack of nothing", (&pack.0, &pack.1), cut_to_nothing),
        ("manifest removed", (&manifest.0, &manifest.1), remove),
        ("manifest flipped", (&manifest.0, &manifest.1), flip),
        ("record of nothing", (&record.0, &record.1), cut_to_nothing),
    ] {
        let found = with_change(path, change, || Verified::by(&story.walkeep, &[], 4));
        assert_eq!(found.damaged()[0], ("damage".to_owned(), key.clone()), "{what}: {}", found.0);
        assert_eq!(found.0["whole"], false);
    }
    let found = with_change(&pack.1, remove, || {
        let found = Verified::by(&story.walkeep, &[], 4);
        let user = found.0["findings"][0]["lost"]["backups"][0].as_str().unwrap().to_owned();
        let other = ids.iter().find(|id| **id != user).unwrap();
        let needs_none = story.walkeep.run(&["verify", "--backup", other]);
        assert!(needs_none.code == Some(0) || found.0["findings"][0]["lost"]["backups"].as_array().unwrap().len() == 2);
        Verified::by(&story.walkeep, &["--backup", &user], 4)
    });
    assert_eq!(found.damaged(), [("damage".to_owned(), pack.0.clone())]);
    let told = with_change(&segment_path, remove, || story.walkeep.run(&["verify"]).expect_code(4));
    assert!(told.stdout.starts_with("NOT everything is there: "), "{}", told.stdout);
    assert!(told.stdout.contains(&segment) && told.stdout.contains(&format!("lost: backup {} is of no use", ids[0])), "{}", told.stdout);
    story.walkeep.run(&["verify", "--backup", "20260101T000000Z-0000000000000028"]).expect_code(2);
    // As it was before.
    Verified::by(&story.walkeep, &[], 0);
    // A repository that cannot be looked at is not a damaged one.
    let root = story.walkeep.local_repository();
    let away = root.with_extension("away");
    fs::rename(&root, &away).unwrap();
    story.walkeep.run(&["verify"]).expect_code(1);
    fs::rename(&away, &root).unwrap();
    story.end(&[]);
}

/// Parts are rolled up, backups come and go, objects vanish: none of it is damage.
#[test]
fn nothing_that_the_agent_does_looks_like_damage_s3() {
    let server = S3Server::get();
    let bucket = server.bucket();
    let mut story = Story::begin(story::builder(VERSION), Some(Repository::s3_tls(&bucket)));
    story.walkeep.more = "\n[cluster.main.retention]\nwindow = \"0s\"\nminimum_backups = 1\ngrace = \"0s\"\n".to_owned();
    story.walkeep.write_config();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (story, done) = (&story, &over);
        scope.spawn(move || {
            while !done.load(Ordering::Relaxed) {
                story.insert(50);
            }
        });
        let busy = scope.spawn(move || {
            for _ in 0..4 {
                story.backup();
                sleep(Duration::from_millis(1100));
                story.walkeep.ok(&["expire", "--yes", "--allow", "9"]);
            }
        });
        let mut looks = 0;
        while !busy.is_finished() || looks < 3 {
            let looked = story.walkeep.run(&["verify", "--json"]);
            if looked.code != Some(0) {
                done.store(true, Ordering::Relaxed);
            }
            assert_eq!(looked.code, Some(0), "look {looks}: {}\n{}", looked.stdout, looked.stderr);
            looks += 1;
        }
        done.store(true, Ordering::Relaxed);
    });
    story.end(&[]);
}

/// What only a read tells: each object of a repository flipped, two exchanged, one under another's name.
#[test]
fn what_is_read_and_damaged_is_named() {
    let mut story = Story::local(VERSION);
    let ids = settled(&mut story);
    let told = story.walkeep.ok(&["verify", "--deep"]);
    assert!(told.stdout.starts_with("everything is there and whole: all of it was read"), "{}", told.stdout);
    let objects = objects(&story.walkeep);
    let in_wal = objects.iter().filter(|(key, _)| key.contains("/wal/") || key.contains("/packs/") || key.contains("/index/"));
    let read: Vec<_> = in_wal.chain(objects.iter().filter(|(key, _)| key.contains("/names/"))).cloned().collect();
    assert!(read.len() > 8, "{read:#?}");
    for (key, path) in &read {
        let found = with_change(path, flip, || Verified::by(&story.walkeep, &["--deep"], 4));
        let damaged = found.damaged();
        assert_eq!((damaged.len(), &damaged[0].1), (1, key), "{}", found.0);
        assert_eq!(damaged[0].0 == "damage", key.contains("/packs/") || found.0["findings"][0]["lost"]["wal"].is_array(), "{}", found.0);
    }
    Verified::by(&story.walkeep, &[], 0);
    let segments: Vec<_> = read.iter().filter(|(key, _)| key.contains("/wal/00000001/") && !key.contains(".backup")).collect();
    let (one, other) = (segments[0], segments[1]);
    let content = fs::read(&other.1).unwrap();
    let found = with_change(&one.1, |path| fs::write(path, &content).unwrap(), || Verified::by(&story.walkeep, &["--deep"], 4));
    assert_eq!((found.damaged().len(), &found.damaged()[0].1), (1, &one.0), "{}", found.0);
    assert!(found.0["findings"][0]["reason"].as_str().unwrap().contains("it holds"), "{}", found.0);
    // Remembered until it is seen to be whole.
    let pack = object(&objects, "/packs/", "");
    with_change(&pack.1, flip, || {
        // An object of another time is another one.
        assert_eq!(Verified::by(&story.walkeep, &["--deep", "--older-than", "1h"], 4).damaged()[0].1, pack.0);
        assert_eq!(Verified::by(&story.walkeep, &[], 4).damaged()[0].1, pack.0);
        let status = story.walkeep.ok(&["status"]);
        let mut cluster = status.stdout.lines().skip_while(|line| !line.starts_with("cluster "));
        assert!(cluster.by_ref().take(4).any(|line| line.contains("DAMAGED")), "{}", status.stdout);
    });
    Verified::by(&story.walkeep, &[], 0);
    assert!(!story.walkeep.ok(&["status"]).stdout.contains("DAMAGED"));
    // What was read whole is left out, and of one backup only what it needs is read.
    let all = Verified::by(&story.walkeep, &["--deep"], 0);
    let again = Verified::by(&story.walkeep, &["--deep", "--older-than", "1h"], 0);
    assert_eq!((&again.0["read"]["objects"], &again.0["read"]["known"]), (&Value::from(0), &all.0["read"]["objects"]));
    let told = story.walkeep.ok(&["verify", "--deep", "--older-than", "1h"]).stdout;
    assert!(
        told.starts_with("everything is there: 0 objects (0 B) read now, and whole; ") && !told.contains("all of it was read"),
        "{told}"
    );
    assert!(told.lines().next().unwrap().ends_with("left out, read whole before"), "{told}");
    let none = Verified::by(&story.walkeep, &["--deep", "--older-than", "0s"], 0);
    assert_eq!((&none.0["read"]["known"], &none.0["read"]["objects"]), (&Value::from(0), &all.0["read"]["objects"]));
    assert!(
        story
            .walkeep
            .ok(&["verify", "--deep", "--older-than", "0s"])
            .stdout
            .starts_with("everything is there and whole: all of it was read")
    );
    let one = Verified::by(&story.walkeep, &["--deep", "--backup", &ids[0]], 0);
    let of = |report: &Verified| report.0["read"]["objects"].as_u64().unwrap();
    assert!(of(&one) > 1 && of(&one) < of(&all), "{} of {}", of(&one), of(&all));
    story.end(&[]);
}

/// With an identity everything is read; without one packs are compared with their names, and the rest is told not to be checked.
#[test]
fn what_cannot_be_decrypted_is_not_called_whole() {
    let (pair, cluster) = (Pair::generate(), story::builder(VERSION).start());
    let mut walkeep = Walkeep::local(&cluster);
    walkeep.keys = Some(Keys { recipients: vec![pair.recipient.clone()], identities: vec![pair.identity.clone()] });
    walkeep.write_config();
    let mut story = Story::with(cluster, walkeep);
    settled(&mut story);
    let objects = objects(&story.walkeep);
    let all = Verified::by(&story.walkeep, &["--deep"], 0);
    assert_eq!((&all.0["not_checked"], &all.0["whole"]), (&Value::from(0), &Value::Bool(true)));
    let is_segment = |key: &str| key.contains("/wal/00000001/") && !key.contains(".backup.") && !key.contains(".parts/");
    let segment = objects.iter().find(|(key, _)| is_segment(key)).unwrap().clone();
    let pack = object(&objects, "/packs/", "");
    for (key, path) in [&segment, &pack] {
        let found = with_change(path, flip, || Verified::by(&story.walkeep, &["--deep"], 4));
        assert_eq!(found.damaged()[0].1, *key);
    }
    story.walkeep.keys = Some(Keys::to_write(&[&pair]));
    story.walkeep.write_config();
    let writer = story.walkeep.ok(&["verify", "--deep"]);
    assert!(writer.stdout.starts_with("everything that this host can decrypt is there and whole"), "{}", writer.stdout);
    assert!(writer.stdout.contains("NOT CHECKED: "), "{}", writer.stdout);
    let looked = story.walkeep.ok(&["verify"]).stdout;
    assert!(
        looked.starts_with("everything is there, as far as listings, records and those manifests tell that can be read here"),
        "{looked}"
    );
    let of_writer = Verified::by(&story.walkeep, &["--deep"], 0);
    assert!(of_writer.0["not_checked"].as_u64().unwrap() > 5, "{}", of_writer.0);
    let found = with_change(&pack.1, flip, || Verified::by(&story.walkeep, &["--deep"], 4));
    assert_eq!(found.damaged()[0].1, pack.0);
    with_change(&segment.1, flip, || Verified::by(&story.walkeep, &["--deep"], 0));
    story.end(&[]);
}

/// The agent reads by itself, says what is damaged, and sees that it is mended.
#[test]
fn the_agent_says_what_is_damaged() {
    let mut story = Story::local(VERSION);
    settled(&mut story);
    story.walkeep.more = "\n[cluster.main.verify]\ncheck = \"5s\"\nscrub = \"5s\"\n".to_owned();
    story.walkeep.write_config();
    let pack = object(&objects(&story.walkeep), "/packs/", "");
    story.start_agent();
    let metric = |story: &Story, name: &str| story.agent().metric(&format!("walkeep_verify_{name}"));
    wait_until("everything was read", PATIENCE, || metric(&story, "bytes_total") > Some(0.0));
    wait_until("it is whole", PATIENCE, || metric(&story, "last_success_timestamp_seconds") > Some(0.0));
    assert_eq!(metric(&story, "damaged_objects"), Some(0.0));
    let url = format!("file://{}", story.walkeep.local_repository().display());
    let counted =
        |name: &str, kind: &str| story.agent().metric(&format!("walkeep_repository_{name}{{kind=\"{kind}\",repository=\"{url}\"}}"));
    let stored = self::objects(&story.walkeep);
    let packs = stored.iter().filter(|(key, _)| key.contains("/packs/"));
    let bytes: u64 = packs.clone().map(|(_, path)| path.metadata().unwrap().len()).sum();
    assert_eq!((counted("objects", "packs"), counted("bytes", "packs")), (Some(packs.count() as f64), Some(bytes as f64)));
    assert!(counted("objects", "wal") > Some(0.0) && counted("objects", "records") > Some(0.0));
    let when = story.agent().metric(&format!("walkeep_repository_counted_timestamp_seconds{{repository=\"{url}\"}}"));
    assert!(when > Some(1_700_000_000.0), "{when:?}");
    assert!(!story.agent().metrics().contains("walkeep_repository_cost_estimate_usd{"), "nobody knows what a directory costs");
    let told = &story.walkeep.ok(&["status", "--json"]).json()["stored"][0];
    assert_eq!((&told["kinds"]["packs"]["bytes"], &told["estimated_usd_per_month"]), (&bytes.into(), &serde_json::Value::Null), "{told}");
    let status = story.walkeep.ok(&["status"]);
    assert!(status.stdout.lines().any(|line| line.starts_with("stored      ") && line.contains(" objects, ")), "{}", status.stdout);
    with_change(&pack.1, flip, || {
        wait_until("the damage is counted", PATIENCE, || metric(&story, "damaged_objects") == Some(1.0));
        let status = story.walkeep.ok(&["status"]);
        let mut cluster = status.stdout.lines().skip_while(|line| !line.starts_with("cluster "));
        assert!(cluster.by_ref().take(4).any(|line| line.contains("DAMAGED") && line.contains(&pack.0)), "{}", status.stdout);
        assert!(story.agent().log().contains(&pack.0), "{}", story.agent().log());
    });
    wait_until("it is seen to be mended", PATIENCE, || metric(&story, "damaged_objects") == Some(0.0));
    story.end(&["verify: something that is stored is damaged or missing"]);
}

/// Ctrl-C: what was read is remembered, and the next one goes on.
#[test]
fn what_was_stopped_goes_on() {
    let mut story = Story::local(VERSION);
    settled(&mut story);
    // Slow enough to be stopped in the middle: packs come last.
    let objects = objects(&story.walkeep);
    let wal: u64 = objects.iter().filter(|(key, _)| key.contains("/wal/")).map(|(_, path)| path.metadata().unwrap().len()).sum();
    let rate = format!("{}B/s", wal / 8);
    let log = story.walkeep.scratch().join("verify.log");
    let command = story.walkeep.command(&["verify", "--deep", "--rate", &rate, "--parallel", "1"]);
    let mut running = Process::start(command, &log).unwrap();
    sleep(Duration::from_secs(3));
    running.signal("INT");
    let ended = running.wait(Duration::from_secs(5)).expect("it ends soon");
    assert_eq!(ended.code(), Some(1), "{}", running.log());
    assert!(running.log().contains("it was stopped before everything was read"), "{}", running.log());
    let rest = Verified::by(&story.walkeep, &["--deep", "--older-than", "1h"], 0);
    let of = |field: &str| rest.0["read"][field].as_u64().unwrap();
    assert!(of("known") > 0 && of("objects") > 0, "{}", rest.0);
    story.end(&[]);
}

/// What lies beside WAL and backups is looked at too: artifacts by their records, and by their bytes with `--deep`; the audit trail by its chain.
#[test]
fn artifacts_and_the_trail_are_verified() {
    let mut story = Story::local(VERSION);
    let folder = story.walkeep.scratch().dir("etc");
    fs::write(folder.join("a.conf"), vec![b'x'; 100_000]).unwrap();
    story.walkeep.more = format!("\n[[cluster.main.artifact]]\nname = \"etc\"\npath = \"{}\"\n", folder.display());
    story.walkeep.write_config();
    story.walkeep.ok(&["artifact", "run", "etc"]);
    settled(&mut story);
    Verified::by(&story.walkeep, &["--deep"], 0);
    let objects = objects(&story.walkeep);
    let find = |end: &str| objects.iter().find(|(key, _)| key.ends_with(end)).unwrap().clone();
    let (piece, summary, record, audit) =
        (find("/00000001.zst"), find("/summary.zst"), find("/artifact.json"), find("/audit/00000001.json"));
    let changed = |path: &Path| {
        let mut bytes = fs::read(path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(path, bytes).unwrap();
    };
    let gone = |path: &Path| fs::remove_file(path).unwrap();
    type Harm<'a> = &'a dyn Fn(&Path);
    let harms: [(&(String, PathBuf), Harm<'_>, &[&str]); 6] = [
        (&piece, &gone, &[]),
        (&piece, &changed, &["--deep"]),
        (&summary, &gone, &[]),
        (&record, &changed, &[]),
        (&audit, &changed, &[]),
        (&audit, &gone, &[]),
    ];
    for ((key, path), harm, args) in harms {
        let own = fs::read(path).unwrap();
        harm(path);
        let found = Verified::by(&story.walkeep, args, 4).damaged();
        assert_eq!(found, [("damage".to_owned(), key.clone())], "{args:?}");
        fs::write(path, own).unwrap();
    }
    Verified::by(&story.walkeep, &["--deep"], 0);
}
