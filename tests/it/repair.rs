//! `walkeep verify --repair`: what one of two repositories lost or has damaged comes back from the other, also over a kill; what no other has is left.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;
use walkeep_tests::process::Process;
use walkeep_tests::{Bucket, Fault, FaultProxy, Keys, Pair, Repository, S3Server, Walkeep, When, wait_until};

use crate::story::{self, PATIENCE, Restored, Story, listing};

const VERSION: u32 = 15;

/// A cluster with a directory and a bucket, each with all of it; the agent has ended.
struct Two {
    story: Story,
    proxy: FaultProxy,
    bucket: Bucket,
}

impl Two {
    fn begin() -> Self {
        let cluster = story::builder(VERSION).start();
        let server = S3Server::get();
        let (proxy, bucket) = (server.proxy(), server.bucket());
        let mut walkeep = Walkeep::local(&cluster);
        walkeep.repositories.push(Repository::s3(proxy.endpoint(), &bucket));
        walkeep.write_config();
        let mut story = Story::with(cluster, walkeep);
        for _ in 0..2 {
            story.insert(20);
            story.backup();
        }
        story.insert(20);
        story.settle();
        story.stop_agent(&[]);
        story.walkeep.ok(&["copy", "--from", "1", "--to", "2"]);
        Self { story, proxy, bucket }
    }

    fn walkeep(&self) -> &Walkeep {
        &self.story.walkeep
    }

    #[track_caller]
    fn verify(&self, args: &[&str], code: i32) -> Value {
        let output = self.walkeep().run(&[&["verify", "--json"], args].concat());
        assert_eq!(output.code, Some(code), "{}\n{}", output.stdout, output.stderr);
        output.json()
    }

    /// Keys with this in them, in order.
    fn keys(&self, part: &str) -> Vec<String> {
        let mut keys: Vec<String> = self.bucket.list("main/").into_iter().map(|(key, _)| key).filter(|key| key.contains(part)).collect();
        keys.sort();
        assert!(!keys.is_empty(), "nothing like {part}");
        keys
    }

    fn file(&self, key: &str) -> PathBuf {
        self.walkeep().local_repository().join(key)
    }

    /// Damages it in the bucket.
    fn flip(&self, key: &str) -> Vec<u8> {
        let bad = flipped(self.bucket.get(key));
        self.bucket.delete(key);
        self.bucket.put(key, &bad);
        bad
    }
}

fn flipped(mut bytes: Vec<u8>) -> Vec<u8> {
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    bytes
}

/// Repository, key and who has it whole, of all that is damaged or missing.
fn wrong(report: &Value) -> Vec<(u64, String, Value)> {
    let findings = report["findings"].as_array().unwrap().iter().filter(|finding| finding["severity"] != "note");
    let mut wrong: Vec<_> = findings
        .map(|finding| {
            assert!(finding["whole_in"].is_null() || finding["lost"].is_null(), "{finding}");
            (finding["repository"].as_u64().unwrap(), finding["key"].as_str().unwrap().to_owned(), finding["whole_in"].clone())
        })
        .collect();
    wrong.sort_by_key(|(number, key, _)| (*number, key.clone()));
    wrong
}

#[test]
fn what_one_repository_lost_the_other_gives_back() {
    let mut two = Two::begin();
    let whole = two.verify(&["--deep"], 0);
    assert_eq!((whole["whole"].as_bool(), whole["repositories"].as_array().unwrap().len()), (Some(true), 2), "{whole}");
    let packs = two.keys("/packs/");
    let (mine, theirs) = (packs[0].clone(), packs[1].clone());
    let note = two.keys(".backup.zst")[0].clone();
    let segment = note.split_once(".0").map(|(segment, _)| format!("{segment}.zst")).unwrap();
    let record = two.keys("/backup.json")[0].clone();
    let good = [two.bucket.get(&mine), two.bucket.get(&theirs), two.bucket.get(&segment), two.bucket.get(&record)];
    fs::write(two.file(&mine), flipped(good[0].clone())).unwrap();
    fs::remove_file(two.file(&record)).unwrap();
    let bad = two.flip(&theirs);
    two.bucket.delete(&segment);

    let found = two.verify(&["--deep"], 4);
    let (first, second) = (serde_json::json!([1]), serde_json::json!([2]));
    let mut expected = vec![
        (1, mine.clone(), second.clone()),
        (1, record.clone(), second.clone()),
        (2, theirs.clone(), first.clone()),
        (2, segment.clone(), first.clone()),
    ];
    expected.sort_by_key(|(number, key, _)| (*number, key.clone()));
    assert_eq!(wrong(&found), expected, "{found}");
    let told = two.walkeep().run(&["verify"]).expect_code(4);
    assert!(told.stdout.starts_with("everything is whole in one repository at least; 4 objects are"), "{}", told.stdout);
    assert!(two.walkeep().ok(&["status"]).stdout.contains("DAMAGED in one repository, whole in another"));

    let planned = two.verify(&["--repair", "--dry-run"], 4);
    assert_eq!(planned["repair"]["steps"].as_array().unwrap().len(), 4, "{planned}");
    two.walkeep().run(&["verify", "--repair"]).expect_code(3);
    assert_eq!(two.bucket.get(&theirs), bad, "nothing was changed");
    let audit = |two: &Two| two.walkeep().ok(&["audit"]).stdout.matches("repair").count();
    let before = audit(&two);
    let mended = two.verify(&["--repair", "--yes"], 0);
    assert!(mended["whole"] == true && wrong(&mended).is_empty(), "{mended}");
    let steps = mended["repair"]["steps"].as_array().unwrap();
    assert!(steps.len() == 4 && steps.iter().all(|step| step["outcome"]["result"] == "put"), "{mended}");
    assert!(audit(&two) > before);
    for (key, good) in [&mine, &theirs, &segment, &record].into_iter().zip(&good) {
        assert!(two.bucket.get(key) == *good && fs::read(two.file(key)).unwrap() == *good, "{key}");
    }
    two.verify(&["--deep"], 0);

    // What is damaged in both is left as it is in both, and told with what is lost.
    fs::write(two.file(&mine), flipped(good[0].clone())).unwrap();
    let bad = two.flip(&mine);
    let left = two.verify(&["--deep", "--repair", "--yes"], 4);
    assert_eq!(
        wrong(&left).iter().map(|(number, key, _)| (*number, key.as_str())).collect::<Vec<_>>(),
        [(1, mine.as_str()), (2, mine.as_str())]
    );
    assert!(left["findings"][0]["lost"]["backups"].is_array() && left["repair"]["without"].as_array().unwrap().len() == 2, "{left}");
    assert!(two.bucket.get(&mine) == bad && fs::read(two.file(&mine)).unwrap() == bad);

    // The agent tells which one it is, and sees that it is mended.
    fs::write(two.file(&mine), &good[0]).unwrap();
    two.story.walkeep.more = "\n[cluster.main.verify]\ncheck = \"5s\"\nscrub = \"5s\"\n".to_owned();
    two.walkeep().write_config();
    two.story.start_agent();
    let of_bucket = format!("walkeep_verify_repository_damaged_objects{{repository=\"s3://{}\"}}", two.bucket.name);
    let metric = |two: &Two, name: &str| two.story.agent().metric(name);
    wait_until("the damage is counted", PATIENCE, || {
        metric(&two, &of_bucket) == Some(1.0) && metric(&two, "walkeep_verify_damaged_objects") == Some(1.0)
    });
    two.verify(&["--deep", "--repair", "--yes"], 0);
    wait_until("it is seen to be mended", PATIENCE, || metric(&two, "walkeep_verify_damaged_objects") == Some(0.0));
    assert!(metric(&two, "walkeep_verify_unread_since_timestamp_seconds") > Some(0.0));
    two.story.stop_agent(&["verify: something that is stored is damaged or missing"]);
    two.story.walkeep.repositories.truncate(1);
    two.walkeep().write_config();
    let refused = two.walkeep().run(&["verify", "--repair", "--yes"]).expect_code(2);
    assert!(refused.stderr.contains("has one repository"), "{}", refused.stderr);
}

/// kill -9 when the damaged pack is gone and the good one is not there yet.
#[test]
fn a_repair_that_was_killed_is_finished_by_the_next() {
    let two = Two::begin();
    let pack = two.keys("/packs/")[0].clone();
    let good = two.bucket.get(&pack);
    two.flip(&pack);
    let held = two.proxy.arm(When::put().path(&pack), Fault::Hang);
    let log = two.walkeep().scratch().join("repair.log");
    let mut running = Process::start(two.walkeep().command(&["verify", "--deep", "--repair", "--yes"]), &log).unwrap();
    wait_until("the damaged one is gone", PATIENCE, || two.proxy.hits(held) > 0);
    running.signal("KILL");
    running.wait(Duration::from_secs(5)).expect("it is dead");
    two.proxy.drop_held();
    two.proxy.disarm(held);
    assert!(!two.bucket.list("main/").iter().any(|(key, _)| *key == pack));
    let found = two.verify(&[], 4);
    assert_eq!(wrong(&found), [(2, pack.clone(), serde_json::json!([1]))], "{found}");
    two.verify(&["--repair", "--yes"], 0);
    assert_eq!(two.bucket.get(&pack), good);
    two.verify(&["--deep"], 0);
}

/// What went from one repository with everything that tells of it, before anybody looked there, and a repository that was emptied and begun anew.
#[test]
fn what_a_repository_never_had_is_missed_there_and_one_repair_brings_it() {
    let mut two = Two::begin();
    two.story.walkeep.more = "[[cluster.main.artifact]]\nname = \"motd\"\ncommand = \"date; sleep 1\"\n".to_owned();
    two.walkeep().write_config();
    for _ in 0..2 {
        two.walkeep().ok(&["artifact", "run", "motd"]);
    }
    let backup = two.keys("/backup.json")[0].clone();
    let folder = backup.strip_suffix("backup.json").unwrap().to_owned();
    let artifacts = two.keys("/artifact.json");
    let segments: Vec<String> =
        two.keys("/wal/00000001/").into_iter().filter(|key| key.ends_with(".zst") && !key.contains(".parts/")).collect();
    let segments: Vec<String> = segments.into_iter().filter(|key| !key.ends_with(".backup.zst")).collect();
    let (first, trail) = (segments[0].clone(), two.keys("/audit/").pop().unwrap());
    let all: Vec<String> = two.keys("main/").into_iter().filter(|key| !key.contains("/audit/")).collect();
    let goes =
        |key: &str| key.starts_with(&folder) || key.contains("/packs/") || key.contains("/artifacts/") || key == first || key == trail;
    for key in two.keys("main/").iter().filter(|key| goes(key)) {
        two.bucket.delete(key);
    }
    let found = wrong(&two.verify(&[], 4));
    let of = |part: &str| found.iter().filter(|(_, key, _)| key.contains(part)).count();
    let named = |key: &String| found.iter().any(|(number, named, whole)| (*number, named, whole) == (2, key, &serde_json::json!([1])));
    for key in [&backup, &first, &trail].into_iter().chain(&artifacts) {
        assert!(named(key), "{key}: {found:?}");
    }
    // Packs that the other backup needs are missed by itself, and those of the first come with it.
    assert!(of("/packs/") > 0 && found.iter().all(|(number, _, whole)| *number == 2 && *whole == serde_json::json!([1])), "{found:?}");
    let one = two.walkeep().run(&["verify", "--backup", folder.trim_end_matches('/').rsplit('/').next().unwrap()]).expect_code(4);
    assert!(one.stdout.contains(&backup), "{}", one.stdout);
    let mended = two.verify(&["--repair", "--yes"], 0);
    let steps: Vec<&str> = mended["repair"]["steps"].as_array().unwrap().iter().map(|step| step["key"].as_str().unwrap()).collect();
    let place = |key: &str| steps.iter().position(|step| *step == key).unwrap();
    let last_of_data = steps.iter().rposition(|step| !step.ends_with("/backup.json") && !step.ends_with("/artifact.json")).unwrap();
    assert!(place(&backup) > last_of_data && artifacts.iter().all(|key| place(key) > last_of_data), "{steps:?}");
    let there: Vec<String> = two.keys("main/");
    let gone: Vec<&String> = all.iter().filter(|key| !there.contains(key)).collect();
    assert!(gone.is_empty(), "{gone:?}");
    two.verify(&["--deep"], 0);

    // Emptied and begun anew: a repository with nothing in it says of itself that all is well.
    let everything: Vec<String> = two.bucket.list("").into_iter().map(|(key, _)| key).collect();
    everything.iter().for_each(|key| two.bucket.delete(key));
    two.walkeep().ok(&["init"]);
    let found = two.verify(&[], 4);
    assert!(found["repositories"][0]["whole"] == true && found["repositories"][1]["whole"] == false, "{found}");
    assert!(wrong(&found).iter().any(|(_, key, whole)| *key == backup && *whole == serde_json::json!([1])), "{found}");
    two.verify(&["--repair", "--yes"], 0);
    two.verify(&["--deep"], 0);
    // It alone has everything now.
    two.story.walkeep.repositories.remove(0);
    two.walkeep().write_config();
    two.walkeep().ok(&["verify", "--deep"]);
    two.walkeep().ok(&["artifact", "get", "motd", "--to", "-"]);
    Restored::by(two.walkeep(), VERSION, &["--latest"]).verify();
}

/// A file that may not be read, and a damaged one.
#[test]
fn an_object_that_cannot_be_read_hides_no_other_damage() {
    let two = Two::begin();
    let packs = two.keys("/packs/");
    let proxied = two.proxy.arm(When::get().path(&packs[0]), Fault::Status(403, "AccessDenied"));
    two.flip(&packs[1]);
    let output = two.walkeep().run(&["verify", "--deep"]).expect_code(4);
    assert!(output.stdout.contains("NOT READ: 1 object in repository 2") && output.stdout.contains(&packs[0]), "{}", output.stdout);
    assert!(output.stdout.contains(&packs[1]), "{}", output.stdout);
    // The damaged one is mended; that the other was not read is told by the repair too.
    let mended = two.verify(&["--deep", "--repair", "--yes"], 1);
    assert!(wrong(&mended).is_empty() && mended["repositories"][1]["refused"] == 1, "{mended}");
    two.proxy.disarm(proxied);
    two.verify(&["--deep"], 0);
}

/// A backup that one lacks and the other has with a damaged pack: nobody can restore it, and that is said.
#[test]
fn a_backup_that_no_repository_has_whole_is_not_called_whole_elsewhere() {
    let two = Two::begin();
    let backup = two.keys("/backup.json").pop().unwrap();
    let folder = backup.strip_suffix("backup.json").unwrap().to_owned();
    let packs = two.keys("/packs/");
    for key in two.keys("main/").iter().filter(|key| key.starts_with(&folder) || key.contains("/packs/")) {
        two.bucket.delete(key);
    }
    for pack in &packs {
        fs::write(two.file(pack), flipped(fs::read(two.file(pack)).unwrap())).unwrap();
    }
    let mended = two.verify(&["--repair", "--yes"], 4);
    assert!(!two.bucket.list("main/").iter().any(|(key, _)| *key == backup), "its record is not put without its packs");
    let damage = |report: &Value| {
        let all = report["findings"].as_array().unwrap().iter().filter(|finding| finding["severity"] == "damage");
        all.map(|finding| (finding["repository"].as_u64().unwrap(), finding["key"].as_str().unwrap().to_owned())).collect::<Vec<_>>()
    };
    for report in [&mended, &two.verify(&[], 4)] {
        let told = damage(report);
        assert!(packs.iter().any(|pack| told.contains(&(1, pack.clone()))), "{report}");
        assert!(told.contains(&(2, backup.clone())), "{report}");
    }
    let output = two.walkeep().run(&["verify"]).expect_code(4);
    assert!(output.stdout.starts_with("NOT everything is there"), "{}", output.stdout);
    assert!(two.walkeep().ok(&["status"]).stdout.contains("DAMAGED: "));
}

/// The newest record of the trail, changed in one of three: by whom it was done nobody can tell, so nothing is removed, and it is told until a person has decided.
#[test]
fn a_changed_last_record_of_the_trail_is_told_and_no_repair_spreads_it() {
    let cluster = story::builder(VERSION).start();
    let mut walkeep = Walkeep::local(&cluster);
    let folders: Vec<PathBuf> =
        std::iter::once(walkeep.local_repository()).chain(["second", "third"].map(|name| walkeep.scratch().dir(name))).collect();
    walkeep.repositories = folders.iter().cloned().map(Repository::Local).collect();
    walkeep.write_config();
    walkeep.ok(&["init"]);
    for _ in 0..2 {
        walkeep.ok(&["index", "--rebuild"]);
    }
    let system = fs::read_dir(folders[0].join("main")).unwrap().map(|entry| entry.unwrap().path()).find(|path| path.is_dir()).unwrap();
    let audit = system.strip_prefix(&folders[0]).unwrap().join("audit");
    let number = fs::read_dir(folders[0].join(&audit)).unwrap().count();
    let [record, another] = [number, 1].map(|number| audit.join(format!("{number:08}.json")));
    let good = fs::read_to_string(folders[1].join(&record)).unwrap();
    let changed = good.replace("\"user\": \"", "\"user\": \"no");
    assert_ne!(changed, good);
    fs::write(folders[0].join(&record), &changed).unwrap();
    let check = |args: &[&str], code: i32| {
        let output = walkeep.run(args).expect_code(code);
        assert!(
            code == 0 || output.stdout.contains("repositories 2 and 3") || output.stderr.contains("repositories 2 and 3"),
            "{output:?}"
        );
    };
    check(&["verify"], 4);
    check(&["verify", "--deep"], 4);
    check(&["audit", "--check"], 4);
    // A reason to repair, and records behind it.
    fs::remove_file(folders[2].join(&another)).unwrap();
    check(&["verify", "--repair", "--yes"], 4);
    assert!(folders[2].join(&another).is_file() && fs::read_dir(folders[0].join(&audit)).unwrap().count() > number);
    for args in [&["verify"][..], &["verify"], &["verify", "--deep", "--repair", "--yes"], &["verify"], &["verify", "--deep"], &["audit"]] {
        check(args, 4);
    }
    let lying: Vec<String> = folders.iter().map(|folder| fs::read_to_string(folder.join(&record)).unwrap()).collect();
    assert_eq!(lying, [changed, good.clone(), good.clone()]);
    assert!(walkeep.ok(&["status"]).stdout.contains("DAMAGED: "));
    // By the hash that was noted a person decides.
    fs::write(folders[0].join(&record), good).unwrap();
    for args in [&["verify"][..], &["verify", "--deep"], &["audit", "--check"]] {
        check(args, 0);
    }
}

/// No repository has all of a backup, and each object of it is whole in one of three: nothing is lost, and one repair brings all of it together.
#[test]
fn a_backup_that_lies_whole_in_several_places_together_is_not_lost() {
    let mut story = Story::local(VERSION);
    story.insert(20);
    let backup = story.backup();
    story.settle();
    story.stop_agent(&[]);
    let mut folders = vec![story.walkeep.local_repository()];
    for name in ["second", "third"] {
        let folder = story.walkeep.scratch().join(name);
        let copied = std::process::Command::new("cp").arg("-a").args([&folders[0], &folder]).status().unwrap();
        assert!(copied.success());
        folders.push(folder);
    }
    story.walkeep.repositories = folders.iter().cloned().map(Repository::Local).collect();
    story.walkeep.write_config();
    let walkeep = &story.walkeep;
    walkeep.ok(&["verify", "--deep"]);
    let files = listing(&folders[0]).into_iter().filter_map(|line| line.split_once(" f ").map(|(path, _)| path.to_owned()));
    let files: Vec<String> = files.collect();
    let one = |part: &str| files.iter().filter(|file| file.contains(part)).max().cloned().unwrap_or_else(|| panic!("{part}: {files:?}"));
    let (record, manifest, pack) = (one(&format!("{backup}/backup.json")), one(&format!("{backup}/manifest")), one("/packs/"));
    let at = |number: usize, key: &str| folders[number - 1].join(key);
    let good = [(1, &record), (2, &manifest), (3, &pack)].map(|(number, key)| fs::read(at(number, key)).unwrap());
    fs::remove_file(at(1, &manifest)).unwrap();
    fs::write(at(1, &pack), [good[2].as_slice(), b"junk"].concat()).unwrap();
    for key in [&record, &pack] {
        fs::remove_file(at(2, key)).unwrap();
    }
    fs::remove_file(at(3, &record)).unwrap();
    fs::write(at(3, &manifest), b"").unwrap();
    for args in [&["verify", "--json"][..], &["verify", "--deep", "--json"]] {
        let found = walkeep.run(args).expect_code(4).json();
        let findings = found["findings"].as_array().unwrap();
        assert!(findings.iter().all(|finding| finding["severity"] != "damage" && finding["lost"].is_null()), "{found:#}");
        let of_record: Vec<_> = findings.iter().filter(|finding| finding["key"] == record.as_str()).collect();
        assert_eq!(of_record.len(), 2, "{found:#}");
        for finding in of_record {
            assert_eq!(finding["whole_in"], serde_json::json!([1]), "{finding}");
        }
    }
    let told = walkeep.run(&["verify"]).expect_code(4);
    assert!(told.stdout.starts_with("everything is whole in one repository at least"), "{}", told.stdout);
    let mended = walkeep.run(&["verify", "--deep", "--repair", "--yes"]).expect_code(0);
    assert!(!mended.stdout.contains("; it is left as it is"), "{}", mended.stdout);
    for number in 1..=3 {
        for (key, good) in [&record, &manifest, &pack].into_iter().zip(&good) {
            assert!(fs::read(at(number, key)).unwrap() == *good, "{number}: {key}");
        }
    }
    walkeep.ok(&["verify", "--deep"]);
}

/// A host without any identity that keeps nothing of its own sees by listings alone what one of two repositories lost; nothing is called lost or whole that it cannot open.
#[test]
fn what_a_host_that_only_writes_cannot_open_is_neither_lost_nor_whole() {
    let (pair, cluster) = (Pair::generate(), story::builder(VERSION).start());
    let mut walkeep = Walkeep::local(&cluster);
    walkeep.keys = Some(Keys { recipients: vec![pair.recipient.clone()], identities: vec![pair.identity.clone()] });
    walkeep.write_config();
    let mut story = Story::with(cluster, walkeep);
    for _ in 0..2 {
        story.insert(20);
        story.backup();
    }
    story.insert(20);
    story.settle();
    story.stop_agent(&[]);
    let folders = [story.walkeep.local_repository(), story.walkeep.scratch().join("second")];
    assert!(std::process::Command::new("cp").arg("-a").args(&folders).status().unwrap().success());
    let host = |keys: Keys| {
        let mut other = Walkeep::offline(Repository::Local(folders[0].clone()));
        other.repositories.push(Repository::Local(folders[1].clone()));
        other.keys = Some(keys);
        other.write_config();
        other
    };
    let (writer, reader) = (host(Keys::to_write(&[&pair])), host(Keys::to_read(&[&pair])));
    for (walkeep, begins) in
        [(&writer, "everything is there, as far as "), (&reader, "everything is there, as far as listings, records and manifests tell")]
    {
        let told = walkeep.ok(&["verify"]).stdout;
        assert!(told.starts_with(begins), "{told}");
    }
    assert!(writer.ok(&["verify", "--deep"]).stdout.starts_with("everything that this host can decrypt is there and whole; of all else "));
    let files = listing(&folders[0]).into_iter().filter_map(|line| line.split_once(" f ").map(|(path, _)| path.to_owned()));
    let files: Vec<String> = files.collect();
    let note = files.iter().find(|file| file.contains(".backup.zst")).unwrap();
    let segment = format!("{}.zst.age", note.split_once(".0").unwrap().0);
    let pack = files.iter().find(|file| file.contains("/packs/")).unwrap();
    // Its findings but for notes, each without what is lost.
    let verify = |walkeep: &Walkeep, args: &[&str]| {
        let report = walkeep.run(&[&["verify", "--json"], args].concat()).expect_code(4).json();
        let found = report["findings"].as_array().unwrap().iter().filter(|finding| finding["severity"] != "note");
        let one = |finding: &Value| {
            assert!(finding["lost"].is_null() && finding["severity"] == "minor", "{finding}");
            (
                finding["repository"].as_u64().unwrap(),
                finding["key"].as_str().unwrap().to_owned(),
                finding["whole_in"].clone(),
                finding["listed_in"].clone(),
            )
        };
        (found.map(one).collect::<Vec<_>>(), report)
    };
    let (none, first, second) = (Value::Null, serde_json::json!([1]), serde_json::json!([2]));
    let at = |number: usize, key: &str| folders[number - 1].join(key);
    let restore =
        |key: &str| assert!(std::process::Command::new("cp").arg("-a").arg(at(2, key)).arg(at(1, key)).status().unwrap().success());

    fs::remove_file(at(1, &segment)).unwrap();
    assert_eq!(verify(&writer, &[]).0, [(1, segment.clone(), none.clone(), second.clone())]);
    assert_eq!(verify(&reader, &[]).0, [(1, segment.clone(), second.clone(), none.clone())]);
    let told = writer.run(&["verify"]).expect_code(4).stdout;
    assert!(
        told.starts_with("nothing is known to be lost of everything; ") && told.contains("listed in 2, not proven from here"),
        "{told}"
    );
    assert!(writer.ok(&["status"]).stdout.contains("DAMAGED in one repository, listed in another: "));
    let left = verify(&writer, &["--repair", "--yes"]).1;
    assert!(left["repair"]["steps"].as_array().unwrap().is_empty() && left["repair"]["without"][0]["unproven"] == true, "{left}");
    restore(&segment);

    let whole = fs::read(at(1, &segment)).unwrap();
    fs::write(at(1, &segment), &whole[..whole.len() - 100]).unwrap();
    for args in [&[][..], &["--deep"]] {
        let (found, report) = verify(&writer, args);
        assert_eq!(found, [(1, segment.clone(), none.clone(), second.clone()), (2, segment.clone(), none.clone(), first.clone())]);
        let reason = report["findings"][0]["reason"].as_str().unwrap();
        assert!(reason.contains(&format!("{} bytes here and {} in repository 2", whole.len() - 100, whole.len())), "{reason}");
        assert_eq!(verify(&reader, args).0, [(1, segment.clone(), second.clone(), none.clone())]);
    }
    restore(&segment);

    // Packs have their names to be compared with: they are mended too.
    fs::remove_file(at(1, pack)).unwrap();
    assert_eq!(verify(&writer, &[]).0, [(1, pack.clone(), second.clone(), none.clone())]);
    assert_eq!(verify(&reader, &[]).0, [(1, pack.clone(), second.clone(), none.clone())]);
    writer.run(&["verify", "--repair", "--yes"]).expect_code(0);
    assert_eq!(fs::read(at(1, pack)).unwrap(), fs::read(at(2, pack)).unwrap());
    reader.ok(&["verify", "--deep"]);
    // An identity that opens nothing is told as what it is.
    let wrong = host(Keys::to_read(&[&Pair::generate()]));
    assert!(wrong.run(&["verify", "--deep"]).expect_code(1).stderr.contains("not opened by any identity of this host"));
}
