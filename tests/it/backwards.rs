//! C1: the server's clock is set forwards and back. What PostgreSQL makes of a time is what the plan says, and every position that the plan
//! offers in its place restores to exactly the rows it tells.

use std::path::Path;

use serde_json::Value;
use walkeep_tests::postgres::Stop;

use crate::clocks::library;
use crate::story::{Story, plan, refused};

/// Whether the clock can be set here.
fn clock_can_be_set() -> bool {
    let there = Path::new(&library()).exists();
    if !there {
        eprintln!("SKIPPED: libfaketime is not here");
    }
    there
}

/// The server starts anew with its clock so far off.
fn set_clock(story: &Story, by: &str) {
    story.cluster.stop(Stop::Fast);
    let library = library();
    let environment = [("LD_PRELOAD", library.as_str()), ("FAKETIME", by), ("FAKETIME_DONT_FAKE_MONOTONIC", "1")];
    story.cluster.start_with(if by == "0" { &[] } else { &environment }).unwrap();
}

fn rows_at(story: &Story, args: &[&str]) -> u32 {
    story.restore(args).start().rows()
}

/// What is offered in place of PostgreSQL's stop: LSN, commits gained, lost and later, minutes the clock went back, whether it is safe.
fn candidates(planned: &Value) -> Vec<(String, u64, u64, u64, i64, bool)> {
    let number = |candidate: &Value, name: &str| candidate[name].as_u64().unwrap();
    let one = |candidate: &Value| {
        let minutes = (candidate["back_micros"].as_i64().unwrap() + 30_000_000) / 60_000_000;
        let lsn = candidate["lsn"].as_str().unwrap().to_owned();
        let counts = (number(candidate, "gained"), number(candidate, "lost"), number(candidate, "later"));
        (lsn, counts.0, counts.1, counts.2, minutes, candidate["safe"].as_bool().unwrap())
    };
    planned["clock"]["candidates"].as_array().unwrap().iter().map(one).collect()
}

fn a_clock_set_back(version: u32) {
    if !clock_can_be_set() {
        return;
    }
    let story = Story::local(version);
    story.insert(5);
    story.backup();
    story.insert(5);
    set_clock(&story, "+2h");
    story.insert(5);
    set_clock(&story, "0");
    story.insert(3);
    let asked = story.cluster.sql("SELECT clock_timestamp()");
    story.insert(2);
    set_clock(&story, "-1h");
    story.insert(4);
    set_clock(&story, "0");
    story.insert(1);
    story.settle();

    // Ten rows, then the clock was ahead; rows 16 to 18, and later 21 to 24, carry times up to the one asked for.
    let planned = plan(&story.walkeep, &["--at", &asked]);
    assert_eq!(planned["last_replayed"]["xid"].to_string(), story.xid(10), "{planned}");
    assert_eq!(planned["first_not_replayed"]["xid"].to_string(), story.xid(11), "{planned}");
    assert_eq!((&planned["clock"]["cause"], &planned["clock"]["lost"]), (&Value::from("set_back"), &Value::from(7)), "{planned}");
    let offered = candidates(&planned);
    let told: Vec<_> = offered.iter().map(|(_, gained, lost, later, minutes, safe)| (*gained, *lost, *later, *minutes, *safe)).collect();
    assert_eq!(told, [(3, 4, 5, 120, false), (7, 0, 7, 60, true)], "{planned}");
    assert_eq!(rows_at(&story, &["--at", &asked]), 10);
    for ((lsn, ..), row) in offered.iter().zip([18, 24]) {
        assert_eq!(rows_at(&story, &["--lsn", lsn]), row, "{lsn}");
        assert_eq!(plan(&story.walkeep, &["--lsn", lsn])["last_replayed"]["xid"].to_string(), story.xid(row));
    }
    let printed = story.walkeep.ok(&["plan", "--at", &asked]).stdout;
    let safe = &offered[1].0;
    for words in
        [format!("--lsn {safe}: 7 more commits"), "was set back by 1h 59m".to_owned(), "loses nothing of the time asked for".to_owned()]
    {
        assert!(printed.contains(&words), "{words}: {printed}");
    }
    assert!(printed.contains(&format!("the server's clock was set back; with all of them: --lsn {safe}")), "{printed}");
    story.end(&["the stream", "connect", "terminating", "server", "slot"]);
}

#[test]
fn a_clock_set_back_on_13() {
    a_clock_set_back(13);
}

#[test]
fn a_clock_set_back_on_15() {
    a_clock_set_back(15);
}

#[test]
fn a_clock_set_back_on_18() {
    a_clock_set_back(18);
}

/// The time was passed before the backup already: what leads there is told.
#[test]
fn a_time_that_came_before_the_backup_too() {
    if !clock_can_be_set() {
        return;
    }
    let story = Story::local(15);
    story.insert(3);
    let first = story.backup();
    set_clock(&story, "+2h");
    story.insert(2);
    let ahead = story.cluster.sql("SELECT clock_timestamp()");
    story.insert(1);
    let second = story.backup();
    set_clock(&story, "0");
    story.insert(2);
    let between = story.cluster.sql("SELECT clock_timestamp()");
    story.insert(1);
    let third = story.backup();
    story.insert(2);
    let last = story.cluster.sql("SELECT clock_timestamp()");
    story.insert(1);
    story.settle();

    // After the newest backup the clock ran well.
    let planned = plan(&story.walkeep, &["--at", &last]);
    assert_eq!((&planned["backup"]["id"], &planned["clock"]), (&Value::from(third.as_str()), &Value::Null), "{planned}");
    assert_eq!(planned["earlier_pass"]["from"], Value::from(first.as_str()), "its clock had shown that time already: {planned}");
    assert_eq!(rows_at(&story, &["--at", &last]), 11);
    // From the first one the clock comes to it at once.
    assert_eq!(rows_at(&story, &["--at", &last, "--backup", &first]), 3);
    // Before the newest: only the first leads there, and the clock runs past it; the safe position has what came when it was set back.
    let planned = plan(&story.walkeep, &["--at", &between]);
    assert_eq!(planned["backup"]["id"], Value::from(first.as_str()), "{planned}");
    let offered = candidates(&planned);
    assert_eq!((offered.len(), offered[0].1, offered[0].3, offered[0].5), (1, 2, 3, true), "{planned}");
    assert_eq!(rows_at(&story, &["--at", &between]), 3);
    assert_eq!(plan(&story.walkeep, &["--lsn", &offered[0].0])["backup"]["id"], Value::from(second.as_str()));
    assert_eq!(rows_at(&story, &["--lsn", &offered[0].0]), 8);
    // In the clock's future now, and it was there once.
    let why = refused(&story.walkeep, &["--at", &ahead]);
    assert!(why.contains("lies in the future by the server's clock") && why.contains(&format!("--backup {first}")), "{why}");
    assert_eq!(rows_at(&story, &["--at", &ahead, "--backup", &first]), 5);
    story.end(&["the stream", "connect", "terminating", "server", "slot"]);
}
