//! A restore that is rehearsed: what passes and what does not, what is left of it, and what it does not touch.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use walkeep_tests::postgres::{bin, client, versions};
use walkeep_tests::walkeep::{Output, binary, run};
use walkeep_tests::{Keys, Pair, Repository, S3Server, Walkeep, process, user, wait_for, wait_until};

use crate::story::{PATIENCE, Story, archive, builder, listing};
use crate::support::{Tmpfs, lsn, wait_durable};

const VERSION: u32 = 15;

/// A story whose restores are rehearsed.
struct Rehearsed {
    story: Story,
    scratch: PathBuf,
    bin_dirs: String,
}

impl Rehearsed {
    fn of(story: Story) -> Self {
        let version = story.cluster.version();
        let tools = client(version, "pg_amcheck").parent().unwrap().to_owned();
        let bin_dirs = format!("{}:{}", bin(version).unwrap().display(), tools.display());
        let scratch = story.walkeep.scratch().dir("x");
        Self { story, scratch, bin_dirs }
    }

    /// With a backup, and rows behind it.
    fn local() -> Self {
        let story = Story::local(VERSION);
        story.insert(20);
        story.backup();
        story.insert(10);
        story.settle();
        Self::of(story)
    }

    fn configure(&mut self, tables: &str) {
        self.story.walkeep.more = format!("\n{tables}\n");
        self.story.walkeep.write_config();
    }

    fn args<'a>(&'a self, args: &[&'a str]) -> Vec<&'a str> {
        [&["drill", "--bin-dir", &self.bin_dirs, "--scratch", self.scratch.to_str().unwrap(), "--json"], args].concat()
    }

    /// Runs it, and nothing may be left of it.
    #[track_caller]
    fn drill(&self, args: &[&str]) -> Output {
        let output = self.story.walkeep.run(&self.args(args));
        assert_eq!(left(&self.scratch), Vec::<PathBuf>::new(), "{}{}", output.stdout, output.stderr);
        output
    }
}

fn left(scratch: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(scratch).unwrap().map(|entry| entry.unwrap().path()).collect()
}

fn listed(walkeep: &Walkeep) -> Vec<Value> {
    walkeep.ok(&["drills", "--json"]).json()["drills"].as_array().unwrap().clone()
}

/// The outcome of the check of this name.
#[track_caller]
fn outcome<'r>(report: &'r Value, name: &str) -> &'r str {
    let results = report["results"].as_array().unwrap();
    let found = results.iter().find(|checked| checked["name"] == name);
    found.unwrap_or_else(|| panic!("{name} in {report:#}"))["outcome"].as_str().unwrap()
}

fn a_good_drill_passes(version: u32, repository: Option<Repository>) {
    if !versions().contains(&version) {
        return;
    }
    let mut here = Rehearsed::of(Story::begin(builder(version), repository));
    let server = &here.story.cluster;
    server.sql("CREATE DATABASE shop");
    server.try_sql_in("shop", "CREATE TABLE orders AS SELECT i, now() AS at FROM generate_series(1, 500) i").unwrap();
    here.story.insert(20);
    here.story.backup();
    here.story.insert(10);
    // A library that no session can load: one of the copy's need not.
    here.story.cluster.sql("ALTER DATABASE shop SET session_preload_libraries = 'nowhere'");
    here.story.settle();
    here.configure(
        r#"
        [[cluster.main.drill.check]]
        name = "rows of t"
        query = "SELECT count(*), max(i) FROM t"
        expect = "30|30"
        [[cluster.main.drill.check]]
        name = "enough orders"
        database = "shop"
        query = "SELECT count(*) FROM orders"
        at_least = 500
        [[cluster.main.drill.check]]
        name = "fresh orders"
        database = "shop"
        query = "SELECT max(at) > current_setting('walkeep.recovered_to')::timestamptz - interval '1 hour' FROM orders"
        "#,
    );
    let output = here.drill(&[]).expect_code(0);
    let report = output.json();
    assert_eq!(report["verdict"], "passed", "{report:#}");
    for name in ["the backup's files", "recovery", "tables", "rows of t", "enough orders", "fresh orders"] {
        assert_eq!(outcome(&report, name), "passed", "{report:#}");
    }
    let has_own = here.bin_dirs.split(':').any(|folder| {
        let program = Path::new(folder).join("pg_checksums");
        program.exists() && run(user::command(program).arg("--version")).stdout.contains(&format!(" {version}."))
    });
    assert_eq!(outcome(&report, "pg_checksums"), if has_own { "passed" } else { "not_done" }, "{report:#}");
    assert_eq!(outcome(&report, "pg_amcheck"), if version < 14 { "not_done" } else { "passed" }, "{report:#}");
    let (rto, rpo) = (report["rto_seconds"].as_f64().unwrap(), report["rpo_seconds"].as_f64().unwrap());
    assert!(rto > 0.0 && rto < 120.0 && rpo > 0.0 && rpo < 300.0, "{report:#}");
    assert_eq!(report["asked"], "newest");

    // What is stored says the same, in each form.
    let drills = listed(&here.story.walkeep);
    assert_eq!(drills.len(), 1);
    let id = drills[0]["id"].as_str().unwrap();
    assert_eq!((id, &drills[0]["verdict"]), (report["id"].as_str().unwrap(), &Value::from("passed")));
    assert!(drills[0].get("results").is_none() && !drills[0].to_string().contains("orders"), "{}", drills[0]);
    assert_eq!(here.story.walkeep.ok(&["drills", id, "--json"]).json(), report);
    let text = here.story.walkeep.ok(&["drills", "--newest"]).stdout;
    assert!(text.starts_with(&format!("Drill {id} of cluster main: passed\n")) && text.contains("\nsigned off by "), "{text}");
    let page = here.story.walkeep.ok(&["drills", id, "--form", "html"]).stdout;
    assert!(page.starts_with("<!DOCTYPE html>") && page.trim_end().ends_with("</html>"), "{page}");
    let table = here.story.walkeep.ok(&["drills"]).stdout;
    assert!(table.contains(id) && table.contains("passed"), "{table}");
    let trail = here.story.walkeep.ok(&["audit", "--json"]).json().to_string();
    assert!(trail.contains("\"drill\"") && trail.contains(id), "{trail}");
    here.story.walkeep.ok(&["verify", "--deep"]);
    here.story.end(&["the catalogs of a database cannot be read"]);
}

#[test]
fn a_good_drill_passes_13() {
    a_good_drill_passes(13, None);
}

#[test]
fn a_good_drill_passes_15() {
    a_good_drill_passes(15, None);
}

#[test]
fn a_good_drill_passes_18() {
    a_good_drill_passes(18, None);
}

#[test]
fn a_good_drill_passes_on_s3() {
    let server = S3Server::get();
    a_good_drill_passes(VERSION, Some(Repository::s3(server.endpoint(), &server.bucket())));
}

/// What answers something else, fails or takes too long is told by its name, and what was restored is not what it should be: exit code 4.
#[test]
fn a_check_that_fails_fails_the_drill() {
    let mut here = Rehearsed::local();
    let check =
        |name: &str, query: &str, more: &str| format!("[[cluster.main.drill.check]]\nname = \"{name}\"\nquery = \"{query}\"\n{more}\n");
    here.configure(
        &[
            check("wrong", "SELECT count(*) FROM t", "expect = 31"),
            check("broken", "SELECT * FROM nowhere", ""),
            check("slow", "SELECT pg_sleep(60)", "timeout = \"1s\""),
            check("writes", "INSERT INTO t VALUES (1000, 'x') RETURNING true", ""),
            check("several", "SELECT true; COMMIT; CREATE TABLE made AS SELECT 1", ""),
            check("ends it", "COMMIT AND CHAIN; SELECT true", ""),
            check("opens it", "SET TRANSACTION READ WRITE", ""),
            check("in a block", "DO 'BEGIN COMMIT; CREATE TABLE made (); END'", ""),
            check("right", "SELECT count(*) FROM t", "expect = 30"),
            check("elsewhere", "SELECT true", "database = \"nowhere\""),
        ]
        .concat(),
    );
    let output = here.drill(&[]).expect_code(4);
    let report = output.json();
    assert_eq!(report["verdict"], "failed");
    let results = report["results"].to_string();
    for name in ["wrong", "broken", "slow", "writes", "several", "ends it", "opens it", "in a block", "elsewhere"] {
        assert_eq!(outcome(&report, name), "failed", "{report:#}");
        assert!(output.stderr.contains(name) && report["reason"].as_str().unwrap().contains(name), "{}", output.stderr);
    }
    for said in [
        "nowhere",
        "statement timeout",
        "read-only transaction",
        "multiple commands",
        "before any query",
        "invalid transaction termination",
        "\"found\":\"30\"",
    ] {
        assert!(results.contains(said), "{said} in {report:#}");
    }
    assert_eq!((outcome(&report, "right"), outcome(&report, "recovery")), ("passed", "passed"));
    assert_eq!(listed(&here.story.walkeep)[0]["verdict"], "failed");
    here.story.end(&[]);
}

/// A pack with one other byte: the drill finds it, says so, and ends with exit code 4.
#[test]
fn a_damaged_pack_is_found() {
    let here = Rehearsed::local();
    let repository = here.story.walkeep.local_repository();
    let names = listing(&repository);
    let mut packs = names.iter().filter_map(|line| line.split(' ').next()).filter(|name| name.contains("/packs/"));
    let pack = repository.join(packs.find(|name| repository.join(name).is_file()).unwrap());
    let mut bytes = std::fs::read(&pack).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&pack, bytes).unwrap();
    let output = here.drill(&[]).expect_code(4);
    let report = output.json();
    assert_eq!((outcome(&report, "the backup's files"), &report["verdict"]), ("failed", &Value::from("failed")), "{report:#}");
    assert!(report["rto_seconds"].is_null() && output.stderr.contains("the backup's files"), "{}", output.stderr);
    assert_eq!(listed(&here.story.walkeep).len(), 1);
    here.story.end(&[]);
}

/// A page that is damaged on the server itself, so that the backup has it as it was: checksums tell.
#[test]
fn a_damaged_page_is_found() {
    let here = Rehearsed::of(Story::local(VERSION));
    here.story.insert(200);
    let server = &here.story.cluster;
    server.sql("CHECKPOINT");
    let file = server.data().join(server.sql("SELECT pg_relation_filepath('t')"));
    server.stop(walkeep_tests::Stop::Fast);
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[8192 - 40] ^= 0xff;
    std::fs::write(&file, bytes).unwrap();
    server.start();
    here.story.walkeep.run(&["backup", "--json"]);
    here.story.settle();
    let report = here.drill(&[]).expect_code(4).json();
    assert_eq!((outcome(&report, "pg_checksums"), outcome(&report, "recovery")), ("failed", "passed"), "{report:#}");
    let Rehearsed { mut story, .. } = here;
    story.kill_agent();
}

/// A drill of nothing is a failure: without a backup, and of a cluster in which nobody has anything.
#[test]
fn nothing_to_restore_is_a_failure() {
    let here = Rehearsed::of(Story::local(VERSION));
    let output = here.drill(&[]).expect_code(1);
    assert!(output.stderr.contains("nothing that can be restored"), "{}", output.stderr);
    let random = here.drill(&["--random"]).expect_code(1);
    assert!(random.stderr.contains("nothing that can be restored"), "{}", random.stderr);
    let drills = listed(&here.story.walkeep);
    assert_eq!(drills.len(), 2);
    assert!(drills.iter().all(|drill| drill["verdict"] == "failed" && drill["restored"].is_null()), "{drills:?}");

    here.story.cluster.sql("DROP TABLE t");
    here.story.backup();
    here.story.settle();
    let empty = here.drill(&[]).expect_code(4).json();
    assert_eq!((outcome(&empty, "tables"), &empty["verdict"]), ("failed", &Value::from("failed")));
    // A target that somebody names and that cannot be reached says nothing of what is stored.
    let refused = here.drill(&["--lsn", "F/0"]).expect_code(3);
    assert!(refused.stderr.starts_with("refused: "), "{}", refused.stderr);
    assert_eq!(listed(&here.story.walkeep).len(), 3);
    here.story.end(&[]);
}

/// The running server is not even connected to, and of the repository nothing changes but what the drill puts below `drills/` and its record in the trail.
#[test]
fn neither_server_nor_archive_is_touched() {
    let mut story = Story::begin(builder(VERSION).conf("log_connections", "on"), None);
    story.insert(20);
    story.backup();
    story.insert(10);
    story.settle();
    story.stop_agent(&[]);
    let here = Rehearsed::of(story);
    let server = &here.story.cluster;
    // Positions of the WAL go on by themselves, as the server tells now and then which transactions run.
    let state = || server.sql("SELECT string_agg(slot_name || restart_lsn || active, ',') FROM pg_replication_slots");
    let connections = || server.log().matches("connection received").count();
    let of_others = |line: &String| !line.contains("/drills") && !line.contains(" d ");
    let stored = || archive(&here.story.walkeep).into_iter().filter(of_others).collect::<Vec<_>>();
    let (before, was_stored) = (state(), stored());
    for args in [&[][..], &["--random"], &["--sampled"], &["--at", &here.story.commit_time(25)]] {
        let connected = connections();
        here.drill(args).expect_code(0);
        assert_eq!(connections(), connected, "{args:?}");
    }
    assert_eq!((state(), stored()), (before, was_stored));
    assert_eq!(listed(&here.story.walkeep).len(), 4);
}

/// No room, no program, a folder in use: refused with 3, told in a report, and nothing is left.
#[test]
fn what_cannot_be_carried_out_is_refused() {
    let here = Rehearsed::local();
    let small = here.story.walkeep.scratch().dir("small");
    if let Some(disk) = Tmpfs::mount(&small, "8m") {
        let refused =
            here.story.walkeep.run(&["drill", "--bin-dir", &here.bin_dirs, "--scratch", disk.path().to_str().unwrap()]).expect_code(3);
        assert!(refused.stderr.contains("bytes free") && refused.stdout.contains(": FAILED"), "{}{}", refused.stdout, refused.stderr);
        assert!(left(disk.path()).is_empty());
        let drills = listed(&here.story.walkeep);
        assert!(drills[0]["reason"].as_str().unwrap().contains("bytes free"), "{drills:?}");
    }
    // A folder of the running server's.
    let inside = here.story.cluster.data().join("drill");
    let refused = here.story.walkeep.run(&["drill", "--bin-dir", &here.bin_dirs, "--scratch", inside.to_str().unwrap()]).expect_code(3);
    assert!(refused.stderr.contains("data directory") && !inside.exists(), "{}", refused.stderr);
    here.story.end(&[]);
}

/// The processes of a scratch server of this folder.
fn servers(scratch: &Path) -> Vec<u32> {
    let output = run(user::command("pgrep").args(["-f", &format!("postgres .*{}", scratch.display())]));
    output.stdout.lines().filter_map(|line| line.parse().ok()).collect()
}

/// Starts a drill whose query takes long, and waits until it is asked.
fn asked(here: &mut Rehearsed) -> std::process::Child {
    here.configure("[[cluster.main.drill.check]]\nname = \"slow\"\nquery = \"SELECT pg_sleep(120) IS NULL\"\n");
    let mut command = here.story.walkeep.command(&here.args(&[]));
    let drill = process::spawn({
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    })
    .unwrap();
    wait_until("the scratch server runs", PATIENCE, || !servers(&here.scratch).is_empty());
    wait_until("it is asked", PATIENCE, || {
        let list = run(user::command("pgrep").args(["-af", "postgres: .*SELECT"]));
        let folders = left(&here.scratch);
        list.ok() && folders.iter().any(|folder| folder.join("data/postmaster.pid").exists())
    });
    drill
}

/// SIGTERM: the server is ended, everything removed, and a record says that it was cancelled.
#[test]
fn a_drill_is_cancelled() {
    let mut here = Rehearsed::local();
    let drill = asked(&mut here);
    process::signal(drill.id(), "TERM");
    let ended = drill.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(1), "{said}");
    assert!(said.contains("cancelled"), "{said}");
    assert!(left(&here.scratch).is_empty() && servers(&here.scratch).is_empty());
    let drills = listed(&here.story.walkeep);
    assert_eq!((drills.len(), &drills[0]["verdict"]), (1, &Value::from("cancelled")));

    // And by its deadline.
    let late = here.drill(&["--deadline", "5s"]).expect_code(1);
    assert!(late.stderr.contains("longer than 5s"), "{}", late.stderr);
    assert!(servers(&here.scratch).is_empty());
    assert_eq!(listed(&here.story.walkeep)[1]["verdict"], "failed");

    // A report that goes is missed, though no restore needs it.
    let repository = here.story.walkeep.local_repository();
    let names = listing(&repository);
    let report =
        names.iter().filter_map(|line| line.split(' ').next()).find(|name| name.contains("/drills/") && name.contains("report.html"));
    std::fs::remove_file(repository.join(report.unwrap())).unwrap();
    let verified = here.story.walkeep.run(&["verify", "--json"]).expect_code(4).json();
    assert!(verified["findings"].to_string().contains(report.unwrap()), "{verified}");
    here.story.end(&[]);
}

/// kill -9: the watcher removes what is left; where that was killed too, the next drill does.
#[test]
fn nothing_is_left_behind_a_kill() {
    let mut here = Rehearsed::local();
    let mut drill = asked(&mut here);
    process::signal(drill.id(), "KILL");
    drill.wait().unwrap();
    wait_until("the watcher has removed everything", PATIENCE, || left(&here.scratch).is_empty() && servers(&here.scratch).is_empty());

    let mut drill = asked(&mut here);
    let watcher = wait_for("its watcher", PATIENCE, || {
        let found = run(user::command("pgrep").args(["-f", &format!("scratch-watch {}", here.scratch.display())]));
        found.stdout.lines().next().and_then(|pid| pid.parse::<u32>().ok())
    });
    process::signal(watcher, "KILL");
    process::signal(drill.id(), "KILL");
    drill.wait().unwrap();
    std::thread::sleep(Duration::from_millis(500));
    assert!(!left(&here.scratch).is_empty());
    here.configure("");
    let next = here.drill(&[]).expect_code(0);
    assert!(next.stderr.contains("which was left by one that was killed"), "{}", next.stderr);
    assert!(servers(&here.scratch).is_empty());
    // Of what was killed the trail has the beginning.
    let trail = here.story.walkeep.ok(&["audit", "--json"]).json().to_string();
    assert!(trail.contains("begun"), "{trail}");
    here.story.end(&[]);
}

/// Begun by root, it goes on as the account of the server.
#[test]
fn root_drills_as_the_servers_account() {
    if !user::is_root() {
        return;
    }
    let here = Rehearsed::local();
    let mut command = std::process::Command::new(binary("walkeep"));
    command.args(here.args(&[])).env("WALKEEP_CONFIG", here.story.walkeep.config_path()).current_dir("/");
    let output = run(command.envs(here.story.walkeep.environment.iter().cloned()));
    let report = output.expect_code(0).json();
    assert_ne!(report["signed_off_by"]["uid"], 0, "{report:#}");
    assert!(left(&here.scratch).is_empty());
    here.story.end(&[]);
}

/// How many counts of rows are stored.
fn samples(walkeep: &Walkeep) -> usize {
    listing(&walkeep.local_repository()).iter().filter(|line| line.contains("/samples/") && line.contains(" f ")).count()
}

/// Waits until rows were counted that are there now: of two new counts the second began behind this.
#[track_caller]
fn counted(story: &Story) {
    for _ in 0..2 {
        let before = samples(&story.walkeep);
        // A count at the same position would be no new one.
        story.cluster.sql("SELECT pg_create_restore_point('counted')");
        wait_until("rows are counted", PATIENCE, || samples(&story.walkeep) > before);
    }
    wait_durable(story.agent(), lsn(&story.cluster.lsn()), PATIENCE);
}

/// What tells a lost row: a count of the running server, where nothing was committed since. What was committed since makes a difference none.
#[test]
fn rows_are_compared_with_those_of_the_running_server() {
    let cluster = builder(VERSION).start();
    let mut walkeep = Walkeep::local(&cluster);
    walkeep.more = "\n[cluster.main.drill]\nsample = \"2s\"\n".to_owned();
    walkeep.write_config();
    let mut here = Rehearsed::of(Story::with(cluster, walkeep));
    here.story.cluster.sql("CREATE TABLE fixed AS SELECT generate_series(1, 400) AS i; CREATE UNLOGGED TABLE quick (i int)");
    here.story.insert(30);
    here.story.backup();
    // Ending a segment would be a transaction, as this is done here.
    counted(&here.story);
    let report = here.drill(&[]).expect_code(0).json();
    assert_eq!(outcome(&report, "rows of postgres"), "passed", "{report:#}");
    assert!(report["results"].to_string().contains("2 of 2 tables have as many rows"), "{report:#}");

    // Behind the count.
    here.story.stop_agent(&[]);
    here.configure("[cluster.main.drill]\nsample = \"off\"\n");
    here.story.start_agent();
    here.story.insert(5);
    here.story.settle();
    let newest = here.drill(&[]).expect_code(0).json();
    let said = newest["results"].to_string();
    assert!(said.contains("1 of 2 tables") && said.contains("public.t 30 then, 35 now") && said.contains("proves nothing"), "{newest:#}");
    let sampled = here.drill(&["--sampled"]).expect_code(0).json();
    assert!(sampled["results"].to_string().contains("2 of 2 tables have as many rows"), "{sampled:#}");
    assert_eq!(sampled["asked"], "sampled");
    let earlier = here.drill(&["--at", &here.story.commit_time(3)]).expect_code(3);
    assert!(earlier.stderr.contains("refused"), "{}", earlier.stderr);

    // Rows that nobody deleted: the file of a table loses its end while the server is stopped.
    here.configure("[cluster.main.drill]\nsample = \"2s\"\n");
    here.story.stop_agent(&[]);
    here.story.start_agent();
    counted(&here.story);
    here.story.stop_agent(&[]);
    here.configure("");
    let server = &here.story.cluster;
    let file = server.data().join(server.sql("SELECT pg_relation_filepath('fixed')"));
    server.sql("CHECKPOINT");
    server.stop(walkeep_tests::Stop::Fast);
    std::fs::OpenOptions::new().write(true).open(&file).unwrap().set_len(8192).unwrap();
    server.start();
    here.story.start_agent();
    here.story.backup();
    let lost = here.drill(&[]).expect_code(4).json();
    assert_eq!((outcome(&lost, "rows of postgres"), &lost["verdict"]), ("failed", &Value::from("failed")), "{lost:#}");
    assert!(lost["results"].to_string().contains("public.fixed 400 then"), "{lost:#}");
    here.story.end(&["the stream ended", "cannot look at the slot"]);
}

/// The agent rehearses by the clock, beside its stream, and its metrics tell how it went; a stop does not wait for it.
#[test]
fn the_agent_drills_by_the_clock() {
    let cluster = builder(VERSION).start();
    let mut walkeep = Walkeep::local(&cluster);
    let textfile = walkeep.scratch().dir("textfile");
    let scratch = walkeep.scratch().dir("x");
    let tools = client(VERSION, "pg_amcheck").parent().unwrap().to_owned();
    let drill = format!(
        "\n[metrics]\ntextfile = \"{}\"\nbackup_names = true\n[cluster.main.drill]\nschedule = \"* * * * *\"\nscratch = \"{}\"\nbin_dir = \"{}\"\n",
        textfile.display(),
        scratch.display(),
        tools.display()
    );
    walkeep.more.clone_from(&drill);
    walkeep.write_config();
    let mut story = Story::with(cluster, walkeep);
    assert_eq!(story.agent().metric("walkeep_drill_last_run_status"), Some(1.0));
    assert_eq!(story.agent().metric("walkeep_drill_last_success_timestamp_seconds"), Some(0.0));
    story.insert(20);
    story.backup();
    story.insert(5);
    let passed = || story.agent().metric("walkeep_drill_last_success_timestamp_seconds").is_some_and(|at| at > 0.0);
    wait_until("a drill by the clock", Duration::from_secs(150), passed);
    let drills = listed(&story.walkeep);
    let first = drills.iter().find(|drill| drill["verdict"] == "passed").unwrap();
    assert!(first["due"].is_string(), "{first}");
    let report = story.walkeep.ok(&["drills", first["id"].as_str().unwrap(), "--json"]).json();
    assert_eq!(outcome(&report, "rows of postgres"), "passed", "{report:#}");
    for metric in [
        "walkeep_drill_rto_seconds",
        "walkeep_drill_rpo_seconds",
        "walkeep_drill_last_duration_seconds",
        "walkeep_drill_next_timestamp_seconds",
    ] {
        assert!(story.agent().metric(metric).is_some_and(|value| value > 0.0), "{metric}");
    }
    assert_eq!(story.agent().metric("walkeep_drill_last_run_status"), Some(1.0));
    assert_eq!(story.agent().metric("backup_recovery_test_last_run_status"), Some(1.0));
    assert!(story.agent().metric("backup_recovery_test_last_success_timestamp_seconds") > Some(0.0));
    let told = std::fs::read_to_string(textfile.join("walkeep_main_drill.prom")).unwrap();
    assert!(told.contains("backup_recovery_test_last_run_status{cluster=\"main\",command=\"drill\"} 1\n"), "{told}");
    let status = story.walkeep.ok(&["status"]);
    assert!(status.stdout.lines().any(|line| line.starts_with("drill       ") && line.contains(" passed ")), "{}", status.stdout);

    // One that fails, and one that is under way at a stop.
    story.walkeep.more = format!("{drill}[[cluster.main.drill.check]]\nname = \"wrong\"\nquery = \"SELECT pg_sleep(3) IS NULL\"\n");
    story.walkeep.write_config();
    let failed = || story.agent().metric("walkeep_drill_last_run_status") == Some(0.0);
    wait_until("a drill that fails", Duration::from_secs(150), failed);
    assert_eq!(story.agent().metric("backup_recovery_test_last_run_status"), Some(0.0));
    assert_eq!(story.walkeep.ok(&["status", "--json"]).json()["last_drill"]["verdict"], "failed");
    assert!(story.agent().log().contains("the drill failed") && story.agent().log().contains("wrong"));
    wait_until("another one", Duration::from_secs(150), || !left(&scratch).is_empty());
    story.stop_agent(&["the drill failed", "the drill could not be carried out"]);
    wait_until("nothing is left of it", PATIENCE, || left(&scratch).is_empty() && servers(&scratch).is_empty());
}

/// The agent cannot decrypt what it stores; a drill by its schedule, in an environment that can, leaves a record that it reads.
#[test]
fn of_an_encrypted_cluster_the_record_is_plain_and_the_report_is_not() {
    let cluster = builder(VERSION).start();
    let mut walkeep = Walkeep::local(&cluster);
    let pair = Pair::generate();
    let keys = Keys { identities: vec![pair.identity.clone()], ..Keys::to_write(&[&pair]) };
    walkeep.keys = Some(keys);
    walkeep.write_config();
    let mut here = Rehearsed::of(Story::with(cluster, walkeep));
    here.story.insert(20);
    here.story.backup();
    here.story.insert(5);
    here.story.settle();
    here.configure("[[cluster.main.drill.check]]\nname = \"secret\"\nquery = \"SELECT 'sentinel-77'\"\nexpect = \"sentinel-77\"\n");
    let report = here.drill(&[]).expect_code(0).json();
    assert_eq!(outcome(&report, "secret"), "passed");
    let id = report["id"].as_str().unwrap();
    let repository = here.story.walkeep.local_repository();
    let names = listing(&repository);
    let of_drill: Vec<_> = names.iter().filter_map(|line| line.split(' ').next()).filter(|name| name.contains(&format!("{id}/"))).collect();
    assert_eq!(of_drill.len(), 4, "{of_drill:?}");
    for name in &of_drill {
        let text = String::from_utf8_lossy(&std::fs::read(repository.join(name)).unwrap()).into_owned();
        assert!(!text.contains("sentinel-77"), "{name}");
        assert_eq!(text.starts_with("age-encryption.org"), name.ends_with(".age"), "{name}");
        assert_eq!(name.ends_with(".age"), !name.ends_with("drill.json"), "{name}");
    }
    // Without the identity: the list can be read, reports cannot.
    let keys = here.story.walkeep.keys.as_mut().unwrap();
    let identities = std::mem::take(&mut keys.identities);
    here.story.walkeep.write_config();
    assert_eq!(listed(&here.story.walkeep)[0]["verdict"], "passed");
    let unreadable = here.story.walkeep.run(&["drills", id]).expect_code(1);
    assert!(unreadable.stderr.contains("decrypt"), "{}", unreadable.stderr);
    here.story.walkeep.keys.as_mut().unwrap().identities = identities;
    here.story.walkeep.write_config();
    assert!(here.story.walkeep.ok(&["drills", id]).stdout.contains("sentinel-77"));
    here.story.end(&[]);
}

/// With two repositories that have the same, the second in a folder, and a patience of seconds; the agent has stopped.
fn of_two() -> (Rehearsed, PathBuf) {
    let cluster = builder(VERSION).start();
    let mut walkeep = Walkeep::local(&cluster);
    let second = walkeep.scratch().dir("second");
    walkeep.repositories.push(Repository::Local(second.clone()));
    walkeep.environment.push(("WALKEEP_RESTORE_TIMEOUT".to_owned(), "3s".to_owned()));
    walkeep.write_config();
    let mut here = Rehearsed::of(Story::with(cluster, walkeep));
    here.story.insert(20);
    here.story.backup();
    for _ in 0..3 {
        here.story.insert(5);
        here.story.settle();
    }
    let first = here.story.walkeep.local_repository();
    wait_until("both have all", PATIENCE, || files(&first).len() == files(&second).len());
    here.drill(&[]).expect_code(0);
    here.story.stop_agent(&[]);
    (here, second)
}

fn files(folder: &Path) -> Vec<String> {
    let names = listing(folder).into_iter().filter(|line| line.contains(" f "));
    names.filter_map(|line| line.split(' ').next().map(str::to_owned)).collect()
}

/// WAL that is out of reach ends a recovery, and says nothing of what is stored: every repository is asked whether there is a newer timeline.
#[test]
fn wal_out_of_reach_is_no_damage() {
    let (here, second) = of_two();
    std::fs::rename(&second, second.with_extension("away")).unwrap();
    let away = here.drill(&[]).expect_code(1);
    assert!(away.json()["reason"].as_str().unwrap().contains("could not be had from the repository"), "{}", away.stdout);
    assert!(away.stderr.contains("could not be asked"), "{}", away.stderr);
}

/// WAL that is damaged in one of two repositories is read in the other; in both, it is damage.
#[test]
fn damaged_wal_is_found() {
    let (here, second) = of_two();
    let plan = crate::story::plan(&here.story.walkeep, &[]);
    let segment = plan["wal"][1]["segment"].as_str().unwrap();
    for (folder, code) in [(here.story.walkeep.local_repository(), 0), (second, 4)] {
        let names = files(&folder);
        let object = folder.join(names.iter().find(|name| name.contains(segment) && !name.contains(".parts")).unwrap());
        let mut bytes = std::fs::read(&object).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(&object, bytes).unwrap();
        let report = here.drill(&[]).expect_code(code).json();
        assert_eq!(outcome(&report, "recovery"), if code == 0 { "passed" } else { "failed" }, "{report:#}");
        assert_eq!(report["results"].to_string().contains("is damaged"), code != 0, "{report:#}");
    }
}
