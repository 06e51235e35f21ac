//! What the retention policy lets go: told, asked for, out of the catalog, brought back, removed; and that what stays restores.

use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use walkeep_tests::walkeep::run;
use walkeep_tests::{Repository, S3Server, Stop, Walkeep, wait_until};

use crate::clocks::{library, shift};
use crate::story::{self, PATIENCE, Restored, Story, backups};

const VERSION: u32 = 15;

/// The policy from now on, for commands.
fn policy(story: &mut Story, lines: &str) {
    story.walkeep.more = format!("\n[cluster.main.retention]\n{lines}\n");
    story.walkeep.write_config();
}

/// Three backups with ten rows before each, and ten behind the last, apart from each other by more than a second.
fn three(story: &Story) -> Vec<String> {
    let mut ids = Vec::new();
    for _ in 0..3 {
        story.insert(10);
        story.cluster.sql("SELECT pg_switch_wal()");
        sleep(Duration::from_millis(1500));
        ids.push(story.backup());
    }
    sleep(Duration::from_millis(1500));
    story.insert(10);
    story.settle();
    ids
}

fn rows_of(story: &Story, args: &[&str]) -> u32 {
    let restored = Restored::by(&story.walkeep, VERSION, args);
    restored.verify();
    restored.start();
    let rows = restored.rows();
    restored.cluster.stop(Stop::Fast);
    rows
}

#[test]
fn what_goes_is_told_asked_for_and_can_be_brought_back() {
    let mut story = Story::local(VERSION);
    let ids = three(&story);
    let early = story.commit_time(15);
    let late = story.commit_time(25);
    let without = story.walkeep.run(&["expire", "--dry-run"]).expect_code(2);
    assert!(without.stderr.contains("[cluster.main.retention]"), "{}", without.stderr);

    // The newest backup is within the window, the one before begins it.
    policy(&mut story, "window = \"1s\"\nminimum_backups = 1");
    let dry = story.walkeep.ok(&["expire", "--dry-run", "--json"]).json();
    assert_eq!(dry["plan"]["expired"], serde_json::json!([ids[0]]), "{dry}");
    assert_eq!(dry["taken_out"], serde_json::Value::Null);
    assert_eq!(backups(&story.walkeep), ids);
    let asked = story.walkeep.run(&["expire"]).expect_code(3);
    assert!(asked.stdout.contains("GOES") && asked.stderr.contains("nobody is there to be asked"), "{} {}", asked.stdout, asked.stderr);
    story.walkeep.ok(&["keep", &ids[0]]);
    let held = story.walkeep.ok(&["expire", "--dry-run", "--json"]).json();
    assert_eq!(held["plan"]["expired"], serde_json::json!([]), "{held}");
    story.walkeep.ok(&["release", &ids[0]]);

    let gone = story.walkeep.ok(&["expire", "--yes"]);
    assert!(gone.stdout.contains("--undo 1"), "{}", gone.stdout);
    assert_eq!(backups(&story.walkeep), ids[1..]);
    story::refused(&story.walkeep, &["--at", &early]);
    let to = story.walkeep.scratch().join("not-there");
    for command in [&["keep", &ids[0]][..], &["restore", "--backup", &ids[0], "--immediate", "--to", &to.to_string_lossy()]] {
        let refused = story.walkeep.run(command).expect_code(3);
        assert!(refused.stderr.contains("left the catalog") && refused.stderr.contains("expire --undo 1`"), "{}", refused.stderr);
    }
    assert!(story.walkeep.run(&["keep", &ids[1], "--for", "0s"]).expect_code(2).stderr.contains("keeps nothing"));
    let status = story.walkeep.ok(&["status"]);
    assert!(!status.stdout.contains("HOLE"), "{}", status.stdout);

    story.walkeep.ok(&["expire", "--undo", "1"]);
    assert_eq!(backups(&story.walkeep), ids);
    assert_eq!(rows_of(&story, &["--at", &early]), 15);

    // Without a time of grace the objects go at once.
    policy(&mut story, "window = \"1s\"\nminimum_backups = 1\ngrace = \"0s\"");
    let gone = story.walkeep.ok(&["expire", "--yes"]);
    assert!(gone.stdout.contains("left the catalog") && !gone.stdout.contains("--undo"), "{}", gone.stdout);
    let files = story::listing(&story.walkeep.local_repository());
    assert!(!files.iter().any(|file| file.contains(&format!("/backups/{}/", ids[0]))), "{files:#?}");
    assert!(files.iter().any(|file| file.contains(&format!("/backups/{}/", ids[1]))));
    let again = story.walkeep.ok(&["expire", "--yes"]);
    assert!(again.stdout.contains("nothing goes"), "{}", again.stdout);
    assert!(!story.walkeep.ok(&["status"]).stdout.contains("HOLE"));
    story::refused(&story.walkeep, &["--at", &early]);
    assert_eq!(rows_of(&story, &["--at", &late]), 25);
    assert_eq!(rows_of(&story, &["--latest"]), 40);
    // The archive goes on behind it, and the next backup builds on what stayed.
    let next = story.walkeep.ok(&["backup", "--json"]).json();
    assert_eq!(next["parent"], serde_json::json!(ids[2]));
    story.end(&[]);
}

/// A server that was put back to where nothing is kept any more is not told that its WAL is stored: no plan would see it.
#[test]
fn wal_written_anew_where_it_was_let_go_is_refused() {
    let mut story = Story::local(VERSION);
    story.insert(10);
    story.settle();
    let copy = story.walkeep.scratch().join("old-copy");
    let data = story.cluster.data().to_owned();
    let place = |from: &Path, to: &Path| {
        let script = "rm -rf \"$2\" && cp -a \"$1\" \"$2\"";
        run(Command::new("bash").args(["-c", script, "bash"]).arg(from).arg(to)).expect_code(0);
    };
    story.cluster.stop(Stop::Fast);
    place(&data, &copy);
    story.cluster.start();
    for _ in 0..8 {
        story.insert(1);
        story.cluster.switch_wal();
    }
    three(&story);
    policy(&mut story, "window = \"0s\"\nminimum_backups = 1\ngrace = \"0s\"");
    story.walkeep.ok(&["expire", "--yes"]);
    story.cluster.stop(Stop::Fast);
    place(&copy, &data);
    // The plain copies are of the first life.
    std::fs::remove_dir_all(story.cluster.oracle()).unwrap();
    story.cluster.scratch().dir("oracle");
    story.cluster.start();
    story.insert(10);
    let segment = story.cluster.sql("SELECT pg_walfile_name(pg_current_wal_insert_lsn())");
    story.cluster.switch_wal();
    wait_until("archive_command fails", PATIENCE, || story.cluster.sql("SELECT failed_count > 0 FROM pg_stat_archiver") == "t");
    let stored = story::listing(&story.walkeep.local_repository());
    let written: Vec<&String> = stored.iter().filter(|line| line.contains(&segment) && line.contains(" f ")).collect();
    assert!(written.is_empty(), "{written:#?}");
    let pushed = story.walkeep.run(&["wal", "push", &story.cluster.pg_wal().join(&segment).to_string_lossy()]).expect_code(1);
    assert!(pushed.stderr.contains("retention has let go") && pushed.stderr.contains("another url"), "{}", pushed.stderr);

    // At a place of its own it is welcome.
    story.kill_agent();
    let apart = Walkeep::local(&story.cluster);

    apart.ok(&["init"]);
    let agent = apart.agent();
    story.cluster.archive_by(Some(&apart.archive_command()));
    story::settle(&story.cluster, &apart);
    story::backup(&apart);
    let restored = Restored::by(&apart, VERSION, &[]);
    restored.start();
    assert_eq!(restored.rows(), 20);
    restored.cluster.stop(Stop::Fast);
    agent.stop();
}

/// Of a held backup just its own WAL stays; on a server that removes many objects with one request.
#[test]
fn a_held_backup_restores_by_itself_s3() {
    let server = S3Server::get();
    let bucket = server.bucket();
    let mut story = Story::begin(story::builder(VERSION), Some(Repository::s3_tls(&bucket)));
    let ids = three(&story);
    let middle = story.commit_time(15);
    story.walkeep.ok(&["keep", &ids[0], "--for", "30d"]);
    policy(&mut story, "window = \"0s\"\nminimum_backups = 1\ngrace = \"0s\"");
    let told = story.walkeep.ok(&["expire", "--yes", "--json"]).json();
    assert_eq!(told["plan"]["expired"], serde_json::json!([ids[1]]), "{told}");
    assert_eq!(told["carried_out"]["refused"], 0);
    assert!(told["carried_out"]["objects"].as_u64().unwrap() > 5, "{told}");
    story::refused(&story.walkeep, &["--at", &middle]);
    // What was let go is no hole to an agent that begins anew.
    story.stop_agent(&[]);
    story.start_agent();
    story.insert(1);
    story.settle();
    assert_eq!(story.agent().metric("walkeep_gaps"), Some(0.0));
    assert!(!story.agent().log().contains("GAP"), "{}", story.agent().log());
    let listed = story.walkeep.ok(&["backups", "--json"]).json();
    assert!(listed[0]["keep"]["until"].is_string(), "{listed}");
    assert_eq!(rows_of(&story, &["--backup", &ids[0], "--immediate"]), 10);
    assert_eq!(rows_of(&story, &["--latest"]), 41);
    story.end(&[]);
}

/// More than half of all at once goes only when somebody says how many; and a clock that is ahead lets nothing go.
#[test]
fn what_looks_like_a_mistake_is_refused() {
    let mut story = Story::local(VERSION);
    let mut ids = Vec::new();
    for _ in 0..5 {
        story.insert(2);
        ids.push(story.backup());
        sleep(Duration::from_millis(1100));
    }
    story.settle();
    if Path::new(&library()).exists() {
        policy(&mut story, "window = \"30d\"\nminimum_backups = 1");
        shift(&mut story.walkeep, Some("+2y"));
        let told = story.walkeep.ok(&["expire", "--yes", "--json"]).json();
        assert_eq!(told["plan"]["expired"], serde_json::json!([]), "{told}");
        shift(&mut story.walkeep, None);
    }
    policy(&mut story, "window = \"0s\"\nminimum_backups = 1");
    let refused = story.walkeep.run(&["expire", "--yes"]).expect_code(3);
    assert!(refused.stderr.contains("4 of 5 backups would go at once"), "{}", refused.stderr);
    story.walkeep.run(&["expire", "--yes", "--allow", "3"]).expect_code(3);
    assert_eq!(backups(&story.walkeep), ids);
    story.walkeep.ok(&["expire", "--yes", "--allow", "4"]);
    assert_eq!(backups(&story.walkeep), ids[4..]);
    story.end(&[]);
}

/// What was promised to be there for a day is there, whatever this host's clock says; where all clocks agree, it goes behind the grace.
#[test]
fn a_clock_that_is_ahead_removes_nothing_in_its_grace() {
    if !Path::new(&library()).exists() {
        eprintln!("SKIPPED: libfaketime is not here");
        return;
    }
    let mut story = Story::local(VERSION);
    let ids = three(&story);
    let early = story.commit_time(15);
    let lies = |story: &Story, id: &str| {
        let files = story::listing(&story.walkeep.local_repository());
        files.iter().any(|file| file.contains(&format!("/backups/{id}/")))
    };
    policy(&mut story, "window = \"0s\"\nminimum_backups = 1\ngrace = \"1d\"");
    story.walkeep.ok(&["expire", "--yes", "--allow", "9"]);
    shift(&mut story.walkeep, Some("+2d"));
    let told = story.walkeep.ok(&["expire", "--yes"]);
    assert!(told.stderr.contains("number 1: its objects stay until"), "{} {}", told.stdout, told.stderr);
    shift(&mut story.walkeep, None);
    assert!(lies(&story, &ids[0]));
    story.walkeep.ok(&["expire", "--undo", "1"]);
    assert_eq!(backups(&story.walkeep), ids);
    assert_eq!(rows_of(&story, &["--at", &early]), 15);

    policy(&mut story, "window = \"0s\"\nminimum_backups = 1\ngrace = \"1s\"");
    story.walkeep.ok(&["expire", "--yes", "--allow", "9"]);
    assert!(lies(&story, &ids[0]));
    sleep(Duration::from_millis(1500));
    story.backup();
    story.walkeep.ok(&["expire", "--yes"]);
    assert!(!lies(&story, &ids[0]));
    story.end(&[]);
}

/// Behind a backup that the agent took.
#[test]
fn the_agent_lets_go_by_itself_where_it_is_told_to() {
    let cluster = story::builder(VERSION).start();
    let mut walkeep = walkeep_tests::Walkeep::local(&cluster);
    let Some(minute) = crate::schedules::soon(&mut walkeep) else { return };
    let retention = "[cluster.main.retention]\nwindow = \"0s\"\nminimum_backups = 1\ngrace = \"0s\"\nautomatic = true\n";
    crate::schedules::with_schedules(&cluster, &mut walkeep, &format!("{}\n{retention}", crate::schedules::daily(minute, 0, "")));
    // Before there is an agent whose schedule could be faster.
    let by_hand = story::backup(&walkeep);
    let agent = walkeep.agent();
    cluster.archive_by(Some(&walkeep.archive_command()));
    wait_until("the agent has let go", PATIENCE, || agent.log().contains("retention: left the catalog"));
    wait_until("it is counted", PATIENCE, || agent.metric("walkeep_expire_last_success_timestamp_seconds").is_some_and(|at| at > 0.0));
    let left = backups(&walkeep);
    assert!(left.len() == 1 && left[0] != by_hand, "{left:?}");
    agent.stop();
}
