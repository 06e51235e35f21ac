//! Dumps and artifacts: made, proven, got back by Walkeep and by hand; what fails stores nothing and is told; schedules; what is let go.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use walkeep_tests::postgres::client;
use walkeep_tests::walkeep::run;
use walkeep_tests::{Keys, Pair, Repository, S3Server, Walkeep, s3, user, wait_until};

use crate::story::{self, PATIENCE, Story, listing};
use crate::support::{Store, uninitialised};

const VERSION: u32 = 15;
const SENTINEL: &str = "sentinel-5e1d20";

fn listed(walkeep: &Walkeep) -> Vec<Value> {
    walkeep.ok(&["artifacts", "--json"]).json()["artifacts"].as_array().unwrap().clone()
}

fn configure(walkeep: &mut Walkeep, tables: &str) {
    walkeep.more = format!("\n{tables}\n");
    walkeep.write_config();
}

/// Gets an artifact into a new file.
#[track_caller]
fn got(walkeep: &Walkeep, artifact: &str, file: &str) -> PathBuf {
    let to = walkeep.scratch().dir("got").join(file);
    let _ = std::fs::remove_file(&to);
    walkeep.ok(&["artifact", "get", artifact, "--to", &to.to_string_lossy()]);
    to
}

/// What is stored of artifacts.
fn objects(walkeep: &Walkeep) -> Vec<String> {
    let files = listing(&walkeep.local_repository()).into_iter().filter_map(|line| line.split_once(" f ").map(|(path, _)| path.to_owned()));
    files.filter(|path| path.contains("/artifacts/")).collect()
}

/// Killed, whoever is to ask for its end.
fn is_dead(process: &std::path::Path) -> bool {
    std::fs::read_to_string(process.join("stat")).is_ok_and(|stat| stat.contains(") Z "))
}

#[track_caller]
fn ok(program: impl AsRef<std::ffi::OsStr>, args: &[&str]) -> String {
    run(user::command(program).args(args)).expect_code(0).stdout
}

/// Databases of any name, in both formats of pg_dump, and back by pg_restore.
#[test]
fn databases_are_dumped_and_restored() {
    let mut story = Story::local(VERSION);
    story.insert(50);
    let hostile = ["Shop", "it's \"quoted\"", "../up", "a\\b"];
    for name in hostile {
        story.cluster.sql(&format!("CREATE DATABASE \"{}\"", name.replace('"', "\"\"")));
    }
    configure(&mut story.walkeep, "[cluster.main.dump]\nexclude = [\"a\\\\b\"]\n");
    let made = story.walkeep.ok(&["dump", "--json"]).json();
    let mut databases: Vec<_> = made.as_array().unwrap().iter().map(|record| record["database"].as_str().unwrap().to_owned()).collect();
    databases.sort_unstable();
    assert_eq!(databases, ["../up", "Shop", "it's \"quoted\"", "postgres"]);
    assert_eq!(listed(&story.walkeep).len(), 4);
    assert!(objects(&story.walkeep).iter().all(|path| !path.contains("up/") && !path.contains(['"', '\'', '\\'])));

    let dump = got(&story.walkeep, "dump.postgres", "postgres.dump");
    let restore = client(VERSION, "pg_restore");
    story.cluster.sql("CREATE DATABASE back");
    let into = story.cluster.connection().replace("dbname=postgres", "dbname=back");
    let into = if into.contains("dbname=") { into } else { format!("{into} dbname=back") };
    user::give(&dump);
    ok(&restore, &["--exit-on-error", "--no-owner", "--dbname", &into, &dump.to_string_lossy()]);
    assert_eq!(ok(client(VERSION, "psql"), &["-XAtd", &into, "-c", "SELECT count(*) FROM t"]).trim(), "50");

    // The directory format, of one database.
    let lines = "[cluster.main.dump]\nformat = \"directory\"\njobs = 2\noptions = [\"--no-owner\"]\n";
    configure(&mut story.walkeep, lines);
    story.walkeep.ok(&["dump", "--database", "postgres"]);
    let tar = got(&story.walkeep, "dump.postgres", "postgres.tar");
    let unpacked = story.walkeep.scratch().dir("unpacked");
    user::give(&tar);
    ok("tar", &["-xf", &tar.to_string_lossy(), "-C", &unpacked.to_string_lossy()]);
    assert!(ok(&restore, &["--format=directory", "--list", &unpacked.to_string_lossy()]).contains("TABLE DATA public t"));

    // What is not there fails, named by the command or by the configuration, and stores nothing.
    let before = objects(&story.walkeep);
    let missing = story.walkeep.run(&["dump", "--database", "nowhere"]).expect_code(1);
    assert!(missing.stderr.contains("nowhere") && missing.stderr.contains("exit status"), "{}", missing.stderr);
    configure(&mut story.walkeep, "[cluster.main.dump]\ndatabases = [\"postgres\", \"nowhere\"]\n");
    let missing = story.walkeep.run(&["dump"]).expect_code(1);
    assert!(missing.stderr.contains("there is no database \"nowhere\""), "{}", missing.stderr);
    assert_eq!(objects(&story.walkeep), before);
    story.end(&[]);
}

/// A folder, a prefix of a bucket and a command's output, encrypted on a host that cannot read them; got on one that can, and by hand.
#[test]
fn folders_buckets_and_commands_come_back_on_another_host() {
    let pair = Pair::generate();
    let cluster = story::builder(VERSION).start();
    let mut writer = uninitialised(&cluster, Store::Local);
    writer.keys = Some(Keys::to_write(&[&pair]));
    let folder = writer.scratch().dir("etc");
    for (name, content) in [("postgresql.conf", "port = 5432\n"), ("conf.d/x y.conf", "a"), ("-rf", ""), (&"n".repeat(150), "long")] {
        std::fs::create_dir_all(folder.join(name).parent().unwrap()).unwrap();
        std::fs::write(folder.join(name), content).unwrap();
    }
    std::os::unix::fs::symlink("/etc/shadow", folder.join("link")).unwrap();
    ok_root("chown", &["-R", "--no-dereference", &format!("{}", user::account().uid), &folder.to_string_lossy()]);
    let bucket = S3Server::get().bucket();
    bucket.put("app/uploads/a/1.txt", b"one");
    bucket.put("app/uploads/2.bin", &[7; 10_000]);
    bucket.put("app/other", b"not this");
    let secret = writer.scratch().write("s3.secret", s3::SECRET_KEY, 0o600);
    let tables = format!(
        "[[cluster.main.artifact]]\nname = \"etc\"\npath = \"{}\"\n\
         [[cluster.main.artifact]]\nname = \"uploads\"\nurl = \"s3://{}/app/uploads\"\nendpoint = \"{}\"\nregion = \"us-east-1\"\naccess_key_id = \"{}\"\nsecret_access_key_file = \"{}\"\n\
         [[cluster.main.artifact]]\nname = \"db\"\ncommand = \"cat $FILE && echo token $TOKEN >&2\"\nenvironment = {{ FILE = \"{}/postgresql.conf\", TOKEN = \"{SENTINEL}\" }}\n",
        folder.display(),
        bucket.name,
        S3Server::get().endpoint(),
        s3::ACCESS_KEY,
        secret.display(),
        folder.display(),
    );
    configure(&mut writer, &tables);
    writer.ok(&["init"]);
    for name in ["etc", "uploads", "db"] {
        let made = writer.ok(&["artifact", "run", name]);
        assert!(!made.stdout.contains(SENTINEL) && !made.stderr.contains(SENTINEL));
    }
    assert!(writer.run(&["artifact", "get", "etc", "--to", "-"]).expect_code(1).stderr.contains("decrypt"));
    let mut reader = Walkeep::offline(Repository::Local(writer.local_repository()));
    reader.keys = Some(Keys::to_read(&[&pair]));
    reader.write_config();

    let unpack = |artifact: &str| {
        let tar = got(&reader, artifact, &format!("{artifact}.tar"));
        user::give(&tar);
        let to = reader.scratch().dir(artifact);
        ok("tar", &["-xf", &tar.to_string_lossy(), "-C", &to.to_string_lossy()]);
        to
    };
    let etc = unpack("etc");
    ok_root("diff", &["-r", "--no-dereference", &folder.to_string_lossy(), &etc.to_string_lossy()]);
    let uploads = unpack("uploads");
    assert_eq!(std::fs::read(uploads.join("a/1.txt")).unwrap(), b"one");
    assert_eq!(std::fs::read(uploads.join("2.bin")).unwrap(), [7; 10_000]);
    assert!(!uploads.join("other").exists());
    assert_eq!(reader.ok(&["artifact", "get", "db", "--to", "-"]).stdout, "port = 5432\n");

    // By hand: the pieces in their order, opened.
    let keys = reader.scratch().write("by-hand", &pair.identity, 0o600);
    let record = listed(&writer).into_iter().find(|record| record["name"] == "db").unwrap();
    let place = format!("*/artifacts/db/{}/0*.zst.age", record["id"].as_str().unwrap());
    let script = format!(
        "for piece in {}/main/{place}; do age -d -i {} \"$piece\" | zstd -dcq; done",
        writer.local_repository().display(),
        keys.display()
    );
    assert_eq!(run(Command::new("bash").args(["-o", "pipefail", "-c", &script])).expect_code(0).stdout, "port = 5432\n");

    // Nothing is overwritten, and nothing that is secret lies anywhere.
    let to = reader.scratch().write("there", "mine", 0o600);
    let refused = reader.run(&["artifact", "get", "db", "--to", &to.to_string_lossy()]).expect_code(3);
    assert!(refused.stderr.contains("exists"), "{}", refused.stderr);
    assert_eq!(std::fs::read(&to).unwrap(), b"mine");
    reader.run(&["artifact", "get", "nothing", "--to", "-"]).expect_code(3);
    reader.run(&["artifact", "get", "db", "--at", "2001-01-01T00:00:00Z", "--to", "-"]).expect_code(3);
    ok_root("sh", &["-c", &format!("! grep -r {SENTINEL} {}", writer.local_repository().display())]);
    let audit = writer.ok(&["audit", "--json"]).json();
    let kinds: Vec<_> = audit["records"].as_array().unwrap().iter().map(|record| record["kind"].as_str().unwrap().to_owned()).collect();
    assert_eq!(kinds.iter().filter(|kind| *kind == "artifact").count(), 3);
    assert_eq!(kinds.iter().filter(|kind| *kind == "artifact-get").count(), 7, "{kinds:?}");
}

/// A command of whoever runs the tests, who may read everything.
#[track_caller]
fn ok_root(program: &str, args: &[&str]) {
    run(Command::new(program).args(args)).expect_code(0);
}

/// What fails, or is killed, leaves no artifact; what follows is none the worse.
#[test]
fn what_fails_stores_nothing() {
    let mut story = Story::local(VERSION);
    let flag = story.walkeep.scratch().join("flag");
    let command = |lines: &str| format!("[[cluster.main.artifact]]\nname = \"it\"\n{lines}\n");
    for (lines, said) in [
        ("command = [\"/bin/sh\", \"-c\", \"echo half; echo broken pump >&2; exit 4\"]", "exit status: 4: broken pump"),
        ("command = [\"/bin/true\"]", "it is empty"),
        ("command = [\"/nowhere/program\"]", "start /nowhere/program"),
        ("command = \"sleep 60\"\ntimeout = \"300ms\"", "longer than 300ms"),
        ("command = \"yes\"\nmax_size = \"1MiB\"", "max_size"),
        ("path = \"/nowhere/at/all\"", "/nowhere/at/all"),
    ] {
        configure(&mut story.walkeep, &command(lines));
        let failed = story.walkeep.run(&["artifact", "run", "it"]).expect_code(1);
        assert!(failed.stderr.contains(said), "{lines}: {}", failed.stderr);
        assert_eq!(objects(&story.walkeep), Vec::<String>::new(), "{lines}");
        let left: Vec<_> = listing(&story.walkeep.local_repository()).into_iter().filter(|line| line.contains("/artifacts/it/")).collect();
        assert_eq!(left, Vec::<String>::new(), "{lines}");
    }
    // Killed half way: its first piece is there, and nobody lists it.
    // One of its processes has left its group, and its parent.
    let pids = story.walkeep.scratch().join("pids");
    let script = format!(
        "echo $$ > {0}; (setsid sh -c 'echo $$ >> {0}; sleep 600' > /dev/null &); head -c 40000000 /dev/zero; touch {1}; sleep 60",
        pids.display(),
        flag.display()
    );
    configure(&mut story.walkeep, &command(&format!("command = {}", Value::from(script))));
    let mut killed = story.walkeep.command(&["artifact", "run", "it"]).stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
    wait_until("a piece is stored", PATIENCE, || {
        flag.exists() && objects(&story.walkeep).iter().any(|path| path.ends_with(&story::object("/00000001")))
    });
    killed.kill().unwrap();
    killed.wait().unwrap();
    let begun = std::fs::read_to_string(&pids).unwrap();
    let begun: Vec<PathBuf> = begun.lines().map(|pid| PathBuf::from("/proc").join(pid)).collect();
    assert_eq!(begun.len(), 2);
    wait_until("its processes have ended", PATIENCE, || begun.iter().all(|process| !process.join("environ").exists() || is_dead(process)));
    assert_eq!(listed(&story.walkeep).len(), 0);
    story.walkeep.run(&["artifact", "get", "it", "--to", "-"]).expect_code(3);
    configure(&mut story.walkeep, &command("command = \"echo whole\""));
    story.walkeep.ok(&["artifact", "run", "it"]);
    assert_eq!(story.walkeep.ok(&["artifact", "get", "it", "--to", "-"]).stdout, "whole\n");
    assert_eq!(listed(&story.walkeep).len(), 1);

    // Damage is damage.
    let id = listed(&story.walkeep)[0]["id"].as_str().unwrap().to_owned();
    let is_piece = |path: &String| path.contains(&id) && path.ends_with(&story::object("/00000001"));
    let piece = objects(&story.walkeep).into_iter().find(is_piece).unwrap();
    let path = story.walkeep.local_repository().join(piece);
    let mut bytes = std::fs::read(&path).unwrap();
    let last = bytes.len() - 6;
    bytes[last] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let to = story.walkeep.scratch().join("damaged");
    story.walkeep.run(&["artifact", "get", "it", "--to", &to.to_string_lossy()]).expect_code(4);
    assert!(!to.exists());
    let outcomes: Vec<_> = story.walkeep.ok(&["audit", "--json", "--kind", "artifact"]).json()["records"]
        .as_array()
        .unwrap()
        .iter()
        .map(|record| record["outcome"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(outcomes, [vec!["failed"; 6], vec!["done"]].concat());
    // What commands say may be rows, queries and keys: who looks is told, and the trail, which everybody reads who has the bucket, is not.
    configure(&mut story.walkeep, "[cluster.main.dump]\n");
    let dumped = story.walkeep.run(&["dump", "--database", "nowhere"]).expect_code(1);
    assert!(dumped.stderr.contains("does not exist") && dumped.stderr.contains("not dumped: nowhere"), "{}", dumped.stderr);
    let trail = story.walkeep.ok(&["audit", "--json"]).stdout;
    assert!(trail.contains("not dumped: nowhere") && trail.contains("ended with exit status: 4"), "{trail}");
    assert!(!trail.contains("does not exist") && !trail.contains("broken pump"), "{trail}");
    story.end(&[]);
}

/// The agent makes them by the clock, alarms, tries again, and lets go.
#[test]
fn the_agent_makes_them_by_the_clock() {
    let cluster = story::builder(VERSION).start();
    let mut walkeep = Walkeep::local(&cluster);
    let good = walkeep.scratch().join("good");
    let every = "schedule = \"* * * * *\"\n";
    configure(
        &mut walkeep,
        &format!(
            "[[cluster.main.artifact]]\nname = \"good\"\ncommand = \"echo fine\"\nkeep_last = 1\n{every}\
             [[cluster.main.artifact]]\nname = \"bad\"\ncommand = \"cat {} || (echo no {SENTINEL} >&2; exit 1)\"\nenvironment = {{ TOKEN = \"{SENTINEL}\" }}\n{every}\
             [cluster.main.dump]\n{every}",
            good.display()
        ),
    );
    walkeep.ok(&["init"]);
    let agent = walkeep.agent();
    let minute = Duration::from_secs(90);
    let metric = |name: &str| agent.metric(name);
    wait_until("one was made", minute, || {
        metric("walkeep_artifact_last_success_timestamp_seconds{name=\"good\"}").is_some_and(|at| at > 0.0)
    });
    wait_until("the dump was made", minute, || {
        metric("walkeep_artifact_last_success_timestamp_seconds{name=\"dump.postgres\"}").is_some_and(|at| at > 0.0)
    });
    wait_until("the failure shows", minute, || metric("walkeep_artifact_last_run_status{name=\"bad\"}") == Some(0.0));
    assert_eq!(metric("walkeep_artifact_last_run_status{name=\"good\"}"), Some(1.0));
    assert_eq!(metric("walkeep_artifact_last_success_timestamp_seconds{name=\"bad\"}"), Some(0.0));
    assert!(metric("walkeep_artifact_next_timestamp_seconds{name=\"good\"}").is_some_and(|at| at > 0.0));
    assert!(agent.log().contains("the artifact is not made; trying again") && agent.log().contains("(not shown)"));
    assert!(!agent.log().contains(SENTINEL), "{}", agent.log());
    // Once it can be made it is, without anybody doing anything else.
    walkeep.scratch().write("good", "now", 0o644);
    wait_until("it is made", minute, || metric("walkeep_artifact_last_run_status{name=\"bad\"}") == Some(1.0));
    let outcomes = || walkeep.ok(&["audit", "--json"]).json()["records"].as_array().unwrap().clone();
    let is = |record: &Value, outcome: &str, name: &str| record["outcome"] == outcome && record["subject"]["artifact"] == name;
    wait_until("it is in the trail", PATIENCE, || outcomes().iter().any(|record| is(record, "done", "bad")));
    assert!(
        outcomes().iter().any(|record| is(record, "failed", "bad")) && outcomes().iter().any(|record| is(record, "done", "dump.postgres"))
    );
    let shown = walkeep.ok(&["artifacts"]).stdout;
    assert!(
        shown.contains("good: * * * * * UTC, next ") && shown.contains("dump: * * * * * UTC, next ") && !shown.contains("OVERDUE"),
        "{shown}"
    );
    let due: Vec<_> = listed(&walkeep).into_iter().filter(|record| record["name"] == "good").map(|record| record["due"].clone()).collect();
    assert!(due.iter().all(Value::is_string), "{due:?}");
    let distinct: std::collections::BTreeSet<_> = due.iter().map(Value::to_string).collect();
    assert_eq!(distinct.len(), due.len(), "no moment twice: {due:?}");
    agent.stop();
}

#[test]
fn older_ones_are_let_go_and_the_newest_never() {
    let mut story = Story::local(VERSION);
    let table = |keep: &str| format!("[[cluster.main.artifact]]\nname = \"it\"\ncommand = \"echo x\"\n{keep}\n");
    configure(&mut story.walkeep, &table(""));
    let mut ids = Vec::new();
    for _ in 0..4 {
        ids.push(story.walkeep.ok(&["artifact", "run", "it", "--json"]).json()[0]["id"].as_str().unwrap().to_owned());
    }
    let left = |walkeep: &Walkeep| -> Vec<String> {
        let mut left: Vec<_> = listed(walkeep).iter().map(|record| record["id"].as_str().unwrap().to_owned()).collect();
        left.sort_by_key(|id| ids.iter().position(|known| known == id));
        left
    };
    story.walkeep.run(&["expire", "--yes"]).expect_code(2);
    configure(&mut story.walkeep, &table("keep_last = 2"));
    let dry = story.walkeep.ok(&["expire", "--dry-run"]).stdout;
    assert!(dry.contains(&format!("GOES it@{}", ids[0])) && !dry.contains(&ids[2]), "{dry}");
    assert!(story.walkeep.run(&["expire"]).expect_code(3).stderr.contains("nobody is there to be asked"));
    assert_eq!(left(&story.walkeep), ids);
    let gone = story.walkeep.ok(&["expire", "--yes"]).stdout;
    assert!(gone.contains("number 1 left the catalog; until "), "{gone}");
    assert_eq!(left(&story.walkeep), ids[2..]);
    // For a day they can be had back.
    let dry = story.walkeep.ok(&["expire", "--dry-run"]).stdout;
    assert!(dry.contains(": 2 artifacts; --undo 1 brings it back until "), "{dry}");
    let back = story.walkeep.ok(&["expire", "--undo", "1"]).stdout;
    assert!(back.contains("2 artifacts are in the catalog again"), "{back}");
    assert_eq!(left(&story.walkeep), ids);
    let policy = "[cluster.main.retention]\nwindow = \"7d\"\ngrace = \"0s\"\n";
    configure(&mut story.walkeep, &(table("keep_last = 2") + policy));
    let gone = story.walkeep.ok(&["expire", "--yes", "--json"]).json();
    assert_eq!(gone["carried_out"]["artifacts"].as_array().map(Vec::len), Some(2), "{gone}");
    assert_eq!(left(&story.walkeep), ids[2..]);
    assert!(!objects(&story.walkeep).iter().any(|path| path.contains(&ids[0])), "all of it is gone");
    story.walkeep.ok(&["verify"]);
    for _ in 0..2 {
        ids.push(story.walkeep.ok(&["artifact", "run", "it", "--json"]).json()[0]["id"].as_str().unwrap().to_owned());
    }
    configure(&mut story.walkeep, &table("keep_last = 1"));
    let refused = story.walkeep.run(&["expire", "--yes"]).expect_code(3);
    assert!(refused.stderr.contains("3 of 4 artifacts called it"), "{}", refused.stderr);
    story.walkeep.ok(&["expire", "--yes", "--allow", "3"]);
    assert_eq!(listed(&story.walkeep).len(), 1);
    let told = story.walkeep.ok(&["expire", "--yes", "--json"]).json();
    assert_eq!(told["artifacts"], serde_json::json!([]));
    story.end(&[]);
}
