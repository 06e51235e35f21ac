//! Backups by the clock: at their time, made up for after downtime, one at a time, again after an outage, given up at a stop.
//!
//! The clock of Walkeep's host is moved to a few seconds before a whole minute, so that a schedule in whole minutes is due soon.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use walkeep_tests::process::Process;
use walkeep_tests::{Agent, Cluster, Repository, S3Server, Walkeep, wait_for, wait_until};

use crate::clocks::{library, shift};
use crate::story::{self, PATIENCE, Restored};
use crate::support::assert_calm;

const VERSION: u32 = 15;
/// Agent and server are ready before the minute is full.
const LEAD_S: i64 = 15;

/// The clock is set so that a minute is full soon; that minute of the day, in UTC.
pub fn soon(walkeep: &mut Walkeep) -> Option<i64> {
    if !Path::new(&library()).exists() {
        eprintln!("SKIPPED: libfaketime is not here");
        return None;
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs().cast_signed();
    // Ahead of the server's clock, never behind it: what a backup says of the server's time must not lie in the agent's future.
    let by = (60 - LEAD_S - now).rem_euclid(60);
    shift(walkeep, Some(&format!("{by:+}")));
    Some((now + by + LEAD_S).rem_euclid(86_400) / 60)
}

/// A schedule at this minute of each day in UTC, where clocks are so many minutes ahead.
pub fn daily(minute: i64, ahead: i64, more: &str) -> String {
    let there = (minute + ahead).rem_euclid(1440);
    format!("\n[[cluster.main.backup]]\nschedule = \"{} {} * * *\"\n{more}\n", there % 60, there / 60)
}

/// A server and Walkeep for it, with these schedules from now on.
pub fn with_schedules(cluster: &Cluster, walkeep: &mut Walkeep, schedules: &str) {
    walkeep.ok(&["init"]);
    walkeep.more = schedules.to_owned();
    walkeep.write_config();
    cluster.sql("CREATE TABLE t (i int PRIMARY KEY, filler text)");
    story::insert(cluster, 10);
}

fn backups(walkeep: &Walkeep) -> Vec<serde_json::Value> {
    walkeep.ok(&["backups", "--json"]).json().as_array().unwrap().clone()
}

#[track_caller]
pub fn wait_backups(walkeep: &Walkeep, number: usize) -> Vec<serde_json::Value> {
    wait_for(&format!("{number} backups"), PATIENCE, || Some(backups(walkeep)).filter(|backups| backups.len() == number))
}

fn of(metric: &str, label: &str) -> String {
    format!("{metric}{{schedule=\"{label}\"}}")
}

pub fn said(agent: &Agent, text: &str) -> bool {
    agent.log().contains(text)
}

#[test]
fn a_schedule_fires_at_its_time_and_once() {
    let cluster = story::builder(VERSION).start();
    let mut walkeep = Walkeep::local(&cluster);
    let Some(minute) = soon(&mut walkeep) else { return };
    let nightly = daily(minute, 345, "timezone = \"Asia/Kathmandu\"\nlabel = \"nightly\"\nkeep = \"30d\"");
    with_schedules(&cluster, &mut walkeep, &nightly);
    let before = walkeep.ok(&["status", "--json"]).json();
    let agent = walkeep.agent();
    let taken = wait_backups(&walkeep, 1);
    assert_eq!(taken[0]["label"], "nightly");
    assert!(taken[0]["keep"]["until"].is_string(), "{}", taken[0]);
    // For the very minute that was announced.
    let due = &taken[0]["due"];
    assert_eq!(due.as_str().unwrap().get(17..), Some("00Z"), "{due}");
    assert_eq!(&before["schedules"][0]["next"]["due"], due, "{before}");
    let there = before["schedules"][0]["next"]["begins_there"].as_str().unwrap();
    assert!(there.ends_with("+05:45"), "{there}");

    let status = walkeep.ok(&["status", "--json"]).json();
    let schedule = &status["schedules"][0];
    assert_eq!((&schedule["last"]["backup"], &schedule["overdue"]), (&taken[0]["id"], &serde_json::Value::Null), "{status}");
    let text = walkeep.ok(&["status"]).stdout;
    let id = taken[0]["id"].as_str().unwrap();
    for part in ["schedule    nightly: ", " Asia/Kathmandu", " UTC (", "+0545", &format!("last {id}")] {
        assert!(text.contains(part), "{part} in\n{text}");
    }
    wait_until("it is counted", PATIENCE, || {
        agent.metric("walkeep_backup_attempts_total{result=\"done\",schedule=\"nightly\"}") == Some(1.0)
    });
    let metric = |name| agent.metric(&of(name, "nightly")).unwrap();
    assert!(metric("walkeep_backup_last_success_timestamp_seconds") > 1e9);
    let day_s = metric("walkeep_backup_next_timestamp_seconds") - metric("walkeep_backup_last_success_timestamp_seconds");
    assert!((80_000.0..90_000.0).contains(&day_s), "{day_s}");
    assert_eq!((metric("walkeep_backup_overdue"), agent.metric("walkeep_backup_running")), (0.0, Some(0.0)));
    assert_calm(&agent, &[]);
    agent.stop();

    // Another agent knows what was done, and what was taken by hand is not the schedule's.
    walkeep.ok(&["backup", "--label", "nightly"]);
    let agent = walkeep.agent();
    wait_until("it knows", PATIENCE, || said(&agent, "backups by schedule"));
    assert!(agent.log().contains(&format!("last=\"{}", &due.as_str().unwrap()[..16])), "{}", agent.log());
    story::insert(&cluster, 10);
    story::settle(&cluster, &walkeep);
    assert_eq!(backups(&walkeep).len(), 2);
    assert_calm(&agent, &[]);
    agent.stop();
    assert_eq!(Restored::by(&walkeep, VERSION, &["--backup", id]).start().rows(), 20);
}

#[test]
fn the_newest_missed_run_is_made_up_for() {
    let cluster = story::builder(VERSION).start();
    let mut walkeep = Walkeep::local(&cluster);
    let Some(minute) = soon(&mut walkeep) else { return };
    // Three days ago it began, and nothing was ever done.
    let now = walkeep.run_by.clone();
    shift(&mut walkeep, Some("-3d"));
    let missed = daily(minute - 120, 0, "label = \"missed\"");
    let passed = daily(minute - 120, 0, "label = \"passed\"\ncatch_up = false");
    with_schedules(&cluster, &mut walkeep, &(missed + &passed));
    walkeep.run_by = now;
    let text = walkeep.ok(&["status"]).stdout;
    assert!(text.contains("OVERDUE: no backup for") && text.contains(", if an agent runs then"), "{text}");
    assert_eq!(text.matches("OVERDUE").count(), 1, "one is made up for, the other is not\n{text}");
    let agent = walkeep.agent();
    let taken = wait_backups(&walkeep, 1);
    assert_eq!(taken[0]["label"], "missed");
    assert!(said(&agent, "missed=2"), "{}", agent.log());
    wait_until("it is done", PATIENCE, || said(&agent, "the scheduled backup is done"));
    assert!(!walkeep.ok(&["status"]).stdout.contains("OVERDUE"));
    assert_calm(&agent, &[]);
    agent.stop();
    let agent = walkeep.agent();
    wait_until("both are known", PATIENCE, || agent.log().matches("backups by schedule").count() == 2);
    // Two looks at the clock later.
    std::thread::sleep(Duration::from_secs(5));
    assert_eq!(backups(&walkeep), taken);
    assert_calm(&agent, &[]);
    agent.stop();
}

/// The clock is put forward over the time, and back again, while the agent runs.
#[test]
fn a_clock_that_is_set_is_followed_and_confuses_nothing() {
    let cluster = story::builder(VERSION).start();
    let mut walkeep = Walkeep::local(&cluster);
    let Some(minute) = soon(&mut walkeep) else { return };
    follow_clock(&mut walkeep, "+0");
    with_schedules(&cluster, &mut walkeep, &daily(minute + 240, 0, ""));
    let agent = walkeep.agent();
    wait_until("the schedule is known", PATIENCE, || said(&agent, "backups by schedule"));
    assert_eq!(backups(&walkeep).len(), 0);
    set_clock(&walkeep, "+5h");
    let taken = wait_backups(&walkeep, 1);
    assert!(taken[0]["due"].is_string(), "{}", taken[0]);
    wait_until("both clocks are compared", PATIENCE, || said(&agent, "the server's are minutes apart"));
    set_clock(&walkeep, "+0");
    let ended = agent.metric(&of("walkeep_backup_last_success_timestamp_seconds", "scheduled")).unwrap();
    wait_until("it is seen that the clock is back", PATIENCE, || next_of(&agent) - ended < 5.0 * 3600.0);
    assert_calm(&agent, &["minutes apart", "still to come"]);
    agent.stop();
    // The moment that comes again is done, for whoever reads the repository.
    let agent = walkeep.agent();
    wait_until("the schedule is known", PATIENCE, || said(&agent, "backups by schedule"));
    set_clock(&walkeep, "+5h");
    wait_until("it is seen that the clock is ahead", PATIENCE, || next_of(&agent) - ended > 20.0 * 3600.0);
    assert_eq!(backups(&walkeep), taken);
    agent.stop();
}

/// An agent whose clock is a day ahead until somebody puts it right, as on a machine that starts before its clock was set.
#[test]
fn a_backup_under_a_clock_that_was_ahead_stops_no_schedule() {
    let cluster = story::builder(VERSION).start();
    let mut walkeep = Walkeep::local(&cluster);
    let Some(_) = soon(&mut walkeep) else { return };
    let each_minute = |more| format!("\n[[cluster.main.backup]]\nschedule = \"* * * * *\"\n{more}\n");
    // `init` too is under that clock: the cluster is kept since tomorrow.
    follow_clock(&mut walkeep, &into_minute(86_400, 45));
    let strict = each_minute("label = \"strict\"\ncatch_up = false");
    with_schedules(&cluster, &mut walkeep, &(each_minute("label = \"eager\"") + &strict));
    let agent = walkeep.agent();
    let ahead = wait_for("both are taken", PATIENCE, || {
        Some(backups(&walkeep)).filter(|backups| ["eager", "strict"].iter().all(|label| !dues_of(backups, label).is_empty()))
    });
    wait_until("and done", PATIENCE, || agent.log().matches("the scheduled backup is done").count() >= 2);
    set_clock(&walkeep, &into_minute(0, 40));
    wait_until("it is told", PATIENCE, || agent.log().matches("for a moment that is still to come").count() >= 2);
    let text = walkeep.ok(&["status"]).stdout;
    assert!(text.contains("none taken yet") && text.contains("which is still to come: it does not count before"), "{text}");
    for label in ["eager", "strict"] {
        let tomorrow = &dues_of(&ahead, label)[0];
        wait_until(&format!("a backup of {label} by the right clock"), PATIENCE, || {
            dues_of(&backups(&walkeep), label).iter().any(|due| due < tomorrow)
        });
    }
    let status = walkeep.ok(&["status", "--json"]).json();
    let schedules = status["schedules"].as_array().unwrap();
    assert!(schedules.iter().all(|schedule| schedule["last"].is_object() && schedule["ahead"].is_object()), "{status}");
    assert_calm(&agent, &["minutes apart", "still to come"]);
    agent.stop();
}

/// For which moments the backups of a schedule were due.
fn dues_of(backups: &[serde_json::Value], label: &str) -> Vec<String> {
    let ours = backups.iter().filter(|backup| backup["label"] == label);
    ours.map(|backup| backup["due"].as_str().unwrap().to_owned()).collect()
}

/// What sets a clock so many seconds ahead, and to this second of a minute.
fn into_minute(ahead_s: i64, second: i64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs().cast_signed();
    format!("{:+}", ahead_s + second - now.rem_euclid(60))
}

/// Everything that Walkeep does from now on is so far off, until the clock is set again.
fn follow_clock(walkeep: &mut Walkeep, by: &str) {
    let file = format!("FAKETIME_TIMESTAMP_FILE={}", set_clock(walkeep, by).display());
    walkeep.run_by.retain(|word| !word.starts_with("FAKETIME="));
    walkeep.run_by.extend([file, "FAKETIME_NO_CACHE=1".to_owned()]);
}

/// Sets the clock of programs that follow this file.
fn set_clock(walkeep: &Walkeep, by: &str) -> PathBuf {
    walkeep.scratch().write("clock", by, 0o644)
}

/// When the agent's only schedule has its next run.
fn next_of(agent: &Agent) -> f64 {
    agent.metric(&of("walkeep_backup_next_timestamp_seconds", "scheduled")).unwrap_or_default()
}

#[test]
fn one_backup_at_a_time() {
    let cluster = story::builder(VERSION).start();
    let mut walkeep = Walkeep::local(&cluster);
    let Some(minute) = soon(&mut walkeep) else { return };
    with_schedules(&cluster, &mut walkeep, &daily(minute, 0, "label = \"nightly\""));
    let agent = walkeep.agent();
    let log = walkeep.scratch().join("slow.log");
    let mut slow = Process::start(walkeep.command(&["backup", "--max-rate", "32"]), &log).unwrap();
    let holder = || walkeep.ok(&["status", "--json"]).json()["backup_running"].as_str().map(str::to_owned);
    let holder = wait_for("it is at work", PATIENCE, holder);
    assert!(holder.contains("`walkeep backup`, since "), "{holder}");
    let refused = walkeep.run(&["backup"]).expect_code(3);
    assert!(refused.stderr.contains("refused: another backup of this cluster is under way: process "), "{}", refused.stderr);
    assert!(refused.stderr.contains(&holder), "{}", refused.stderr);
    wait_until("the schedule waits", PATIENCE, || said(&agent, "the scheduled backup waits for its turn"));
    assert_eq!(backups(&walkeep).len(), 0);
    slow.kill();
    let taken = wait_backups(&walkeep, 1);
    assert_eq!(taken[0]["label"], "nightly");
    assert_calm(&agent, &["waits for its turn"]);
    agent.stop();
}

/// Two schedules for one moment, and WAL that archive_command alone brings.
#[test]
fn schedules_of_one_moment_follow_each_other_without_a_stream_too() {
    let cluster = story::builder(VERSION).start();
    let mut walkeep = Walkeep::local(&cluster);
    walkeep.cluster_lines.push_str("stream = false\n");
    let Some(minute) = soon(&mut walkeep) else { return };
    let daily_and_weekly = daily(minute, 0, "label = \"daily\"") + &daily(minute, 0, "label = \"weekly\"\nkeep = \"forever\"");
    with_schedules(&cluster, &mut walkeep, &daily_and_weekly);
    let agent = walkeep.agent();
    cluster.archive_by(Some(&walkeep.archive_command()));
    let taken = wait_backups(&walkeep, 2);
    assert_eq!([&taken[0]["label"], &taken[1]["label"]], ["daily", "weekly"]);
    assert_eq!((&taken[0]["due"], taken[0]["keep"].is_null(), &taken[1]["keep"]), (&taken[1]["due"], true, &"forever".into()));
    let time = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    let apart =
        cluster.sql(&format!("SELECT timestamptz '{}' >= timestamptz '{}'", time(&taken[1]["started_at"]), time(&taken[0]["ended_at"])));
    assert_eq!(apart, "t", "{taken:?}");
    assert_calm(&agent, &[]);
    agent.stop();
}

#[test]
fn after_an_outage_it_is_tried_again() {
    let cluster = story::builder(VERSION).start();
    let proxy = S3Server::get().proxy();
    let mut walkeep = Walkeep::new(&cluster, Repository::s3(proxy.endpoint(), &S3Server::get().bucket()));
    walkeep.environment.push(("WALKEEP_REPOSITORY_TIMEOUT".into(), "3s".into()));
    walkeep.acknowledge = "spool".to_owned();
    walkeep.write_config();
    let Some(minute) = soon(&mut walkeep) else { return };
    with_schedules(&cluster, &mut walkeep, &daily(minute, 0, "label = \"nightly\""));
    let agent = walkeep.agent();
    wait_until("the schedule is known", PATIENCE, || said(&agent, "backups by schedule"));
    proxy.close();
    wait_until("it fails", PATIENCE, || said(&agent, "the scheduled backup is not done; trying again"));
    wait_until("and again", PATIENCE, || said(&agent, "failures=2"));
    proxy.open();
    let taken = wait_backups(&walkeep, 1);
    assert_eq!(taken[0]["label"], "nightly");
    wait_until("it is over", PATIENCE, || said(&agent, "the scheduled backup is done"));
    agent.stop();
}

#[test]
fn a_stop_does_not_wait_for_a_backup() {
    let cluster = story::builder(VERSION).start();
    let mut walkeep = Walkeep::local(&cluster);
    let Some(minute) = soon(&mut walkeep) else { return };
    with_schedules(&cluster, &mut walkeep, &daily(minute, 0, "max_rate = \"32KiB\""));
    let agent = walkeep.agent();
    wait_until("a backup is under way", PATIENCE, || agent.metric("walkeep_backup_running") == Some(1.0));
    let running = walkeep.ok(&["status"]).stdout;
    assert!(running.contains("one is being taken: process ") && running.contains("the agent, \"scheduled\""), "{running}");
    let refused = walkeep.run(&["backup"]).expect_code(3);
    assert!(refused.stderr.contains("the agent, \"scheduled\""), "{}", refused.stderr);
    assert_calm(&agent, &[]);
    // At most the five seconds that any stop may take.
    agent.stop();
    assert_eq!(backups(&walkeep).len(), 0);
    // It is still due.
    walkeep.more = walkeep.more.replace("max_rate = \"32KiB\"", "");
    walkeep.write_config();
    let agent = walkeep.agent();
    let taken = wait_backups(&walkeep, 1);
    assert_eq!(taken[0]["label"], "scheduled");
    assert_calm(&agent, &[]);
    agent.stop();
}

#[test]
fn a_schedule_that_can_never_fire_is_refused_at_the_start() {
    let mut walkeep = Walkeep::offline(Repository::Local("/nonexistent".into()));
    let line = 1 + std::fs::read_to_string(walkeep.config_path()).unwrap().lines().count();
    walkeep.more = "[[cluster.main.backup]]\nschedule = \"0 3 31 feb *\"\n".to_owned();
    walkeep.write_config();
    for command in ["agent", "status", "backup"] {
        let refused = walkeep.run(&[command]).expect_code(2);
        let told = format!("walkeep.toml, line {}: schedule: \"0 3 31 feb *\": it can never fire", line + 1);
        assert!(refused.stderr.contains(&told), "{told} in\n{}", refused.stderr);
    }
}

#[test]
fn a_backup_by_hand_has_its_label_and_is_kept() {
    let cluster = story::builder(VERSION).start();
    let walkeep = Walkeep::local(&cluster);
    walkeep.ok(&["init"]);
    let agent = walkeep.agent();
    let told = walkeep.ok(&["backup", "--label", "pre-migration", "--keep", "forever"]).stdout;
    assert!(told.contains("kept forever"), "{told}");
    walkeep.ok(&["backup", "--label", "month's end", "--keep", "30d"]);
    walkeep.ok(&["backup"]);
    let taken = backups(&walkeep);
    assert_eq!((&taken[0]["label"], &taken[0]["keep"]), (&"pre-migration".into(), &"forever".into()));
    let (until, ended) = (taken[1]["keep"]["until"].as_str().unwrap(), taken[1]["ended_at"].as_str().unwrap());
    let days = cluster.sql(&format!("SELECT round(extract(epoch FROM timestamptz '{until}' - timestamptz '{ended}') / 86400)"));
    assert_eq!(days, "30");
    assert_eq!((taken[2]["keep"].is_null(), taken[2]["due"].is_null()), (true, true));
    let table = walkeep.ok(&["backups"]).stdout;
    for part in ["pre-migration", "forever", "month's end", &format!("until {}", &until[..10])] {
        assert!(table.contains(part), "{part} in\n{table}");
    }
    for wrong in [["--keep", "30"], ["--keep", "always"], ["--label", "a\nb"]] {
        walkeep.run(&["backup", wrong[0], wrong[1]]).expect_code(2);
    }
    assert_eq!(backups(&walkeep).len(), 3);
    assert_calm(&agent, &[]);
    agent.stop();
}
