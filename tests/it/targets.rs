//! Every way to say where a recovery stops, with exact row counts, on a server whose rows commit one by one; and what is refused.

use serde_json::Value;
use walkeep_tests::postgres::{Stop, client};
use walkeep_tests::walkeep::run;
use walkeep_tests::{user, wait_until};

use crate::story::{self, PATIENCE, Story, plan, refused};
use crate::support::{lsn, segments_in};

const VERSION: u32 = 15;

/// 40 rows; a backup after row 10; a restore point after row 20; everything stored.
fn forty_rows() -> (Story, String) {
    let story = Story::local(VERSION);
    story.insert(10);
    let backup = story.backup();
    story.insert(10);
    story.cluster.sql("SELECT pg_create_restore_point('after twenty')");
    story.insert(20);
    story.settle();
    (story, backup)
}

/// The commit record of row `i` as pg_waldump tells it: where it begins and its time.
fn commit_record(story: &Story, i: u32) -> (String, String) {
    let xid = story.xid(i);
    let segments = segments_in(&story.cluster.pg_wal());
    let mut command = user::command(client(VERSION, "pg_waldump"));
    command.arg("-p").arg(story.cluster.pg_wal()).args(["-r", "Transaction", "-x", &xid, &segments[0], segments.last().unwrap()]);
    // It ends with an error at the end of what is written.
    let text = run(&mut command).stdout;
    let line = text.lines().find(|line| line.contains("COMMIT")).unwrap_or_else(|| panic!("no commit of {xid} in {text}"));
    let between = |from: &str, to: &str| line.split_once(from).unwrap().1.split_once(to).unwrap().0.to_owned();
    (between("lsn: ", ","), between("COMMIT ", " UTC"))
}

/// The transaction with which `settle` ended the segment: the last one.
fn last_of(story: &Story) -> String {
    plan(&story.walkeep, &["--latest"])["last_replayed"]["xid"].to_string()
}

fn rows_at(story: &Story, args: &[&str]) -> u32 {
    story.restore(args).start().rows()
}

#[test]
fn a_moment_that_is_a_commits_own() {
    let (story, _) = forty_rows();
    let (_, dumped) = commit_record(&story, 25);
    let time = story.commit_time(25);
    assert!(time.starts_with(dumped.trim_end_matches('0')), "{time} {dumped}");
    assert_eq!(rows_at(&story, &["--at", &time]), 25);
    assert_eq!(rows_at(&story, &["--at", &time, "--exclusive"]), 24);
    // Zones are only ways to write a moment.
    let stop = plan(&story.walkeep, &["--at", &time])["stop_lsn"].clone();
    for zone in ["Asia/Kathmandu", "America/Caracas", "Asia/Kolkata", "UTC"] {
        let query = format!("SET timezone = '{zone}'; SELECT pg_xact_commit_timestamp(xmin) FROM t WHERE i = 25");
        let written = story.cluster.sql(&query);
        assert_eq!(plan(&story.walkeep, &["--at", &written])["stop_lsn"], stop, "{written}");
    }
    let in_nepal = story.cluster.sql("SET timezone = 'Asia/Kathmandu'; SELECT pg_xact_commit_timestamp(xmin) FROM t WHERE i = 25");
    assert!(in_nepal.ends_with("+05:45"), "{in_nepal}");
    assert_eq!(rows_at(&story, &["--at", &in_nepal]), 25);
    story.end(&[]);
}

#[test]
fn a_moment_without_a_zone_is_wrong_usage() {
    let (story, _) = forty_rows();
    for (time, advice) in [
        ("2026-11-20 14:30:00", "add the offset from UTC"),
        ("2026-11-20 14:30:00 EEST", "write 2026-11-20 14:30:00+HH:MM"),
        ("2026-11-20 14:30:00 Europe/Kyiv", "can be read in more than one way"),
        ("2026-11-20 24:00:00Z", "2026-11-21"),
        ("yesterday", "write it as"),
    ] {
        for args in [vec!["plan", "--at", time], vec!["restore", "--to", "/nonexistent/data", "--at", time]] {
            let output = story.walkeep.run(&args).expect_code(2);
            assert!(output.stderr.contains(advice), "{time}: {}", output.stderr);
        }
    }
    let both = story.walkeep.run(&["plan", "--xid", "5", "--latest"]).expect_code(2);
    assert!(both.stderr.contains("cannot be used with"), "{}", both.stderr);
    story.end(&[]);
}

#[test]
fn positions_and_transactions_with_and_without_themselves() {
    let (story, _) = forty_rows();
    let (at, _) = commit_record(&story, 30);
    let xid = story.xid(31);
    let time = story.commit_time(33);
    for (kind, value, rows) in [("--lsn", &at, 30), ("--xid", &xid, 31), ("--at", &time, 33)] {
        for (args, rows) in [(vec![kind, value], rows), (vec![kind, value, "--exclusive"], rows - 1)] {
            assert_eq!(rows_at(&story, &args), rows, "{args:?}");
            // What will be there, and what not, with number, time and place.
            let planned = plan(&story.walkeep, &args);
            for (told, row) in [("last_replayed", rows), ("first_not_replayed", rows + 1)] {
                let (at, time) = commit_record(&story, row);
                let start = lsn(planned[told]["start"].as_str().unwrap());
                assert_eq!((planned[told]["xid"].to_string(), start), (story.xid(row), lsn(&at)), "{args:?} {told}");
                let told = planned[told]["time"].as_str().unwrap();
                assert!(told.replace('T', " ").starts_with(time.trim_end_matches('0')), "{args:?}: {told} and {time}");
            }
        }
    }
    let ends = |args: &[&str]| {
        let planned = plan(&story.walkeep, args);
        (planned["last_replayed"]["xid"].to_string(), planned["first_not_replayed"]["xid"].to_string())
    };
    assert_eq!(ends(&["--restore-point", "after twenty"]), (story.xid(20), story.xid(21)));
    assert_eq!(ends(&["--latest"]), (last_of(&story), "null".to_owned()));
    assert_eq!(ends(&["--immediate"]).1, story.xid(11));
    let printed = story.walkeep.ok(&["plan", "--latest"]).stdout;
    assert!(printed.contains("nothing: no transaction ends behind the stop in what is stored"), "{printed}");
    story.end(&[]);
}

#[test]
fn names_ends_and_chosen_backups() {
    let (story, first) = forty_rows();
    let second = story.backup();
    assert_ne!(first, second);
    story.insert(5);
    story.settle();
    assert_eq!(rows_at(&story, &["--restore-point", "after twenty"]), 20);
    assert_eq!(rows_at(&story, &["--immediate"]), 40, "the newest backup");
    assert_eq!(rows_at(&story, &[]), 45);
    assert_eq!(rows_at(&story, &["--timeline", "1", "--latest"]), 45);
    assert_eq!(rows_at(&story, &["--immediate", "--backup", &first]), 10);
    // Both begin alike; what tells them apart is enough.
    let differ = first.bytes().zip(second.bytes()).take_while(|(a, b)| a == b).count() + 1;
    assert_eq!(plan(&story.walkeep, &["--backup", &first[..differ]])["backup"]["id"], Value::from(first.as_str()));
    assert_eq!(rows_at(&story, &["--latest", "--backup", &first[..differ]]), 45);
    let several = story.walkeep.run(&["plan", "--backup", &first[..4]]).expect_code(2);
    assert!(several.stderr.contains(&first) && several.stderr.contains(&second), "{}", several.stderr);
    story.end(&[]);
}

#[test]
fn a_recovery_may_pause_or_shut_down() {
    let (story, _) = forty_rows();
    let time = story.commit_time(15);
    let paused = story.restore(&["--at", &time, "--action", "pause"]);
    assert_eq!(paused.start_paused().rows(), 15);
    assert_eq!(paused.cluster.sql("SELECT pg_is_in_recovery()"), "t");
    assert!(paused.cluster.try_sql("INSERT INTO t VALUES (0, '')").is_err());
    paused.cluster.sql("SELECT pg_wal_replay_resume()");
    wait_until("it is promoted", PATIENCE, || paused.cluster.sql("SELECT pg_is_in_recovery()") == "f");
    assert_eq!(paused.rows(), 15);
    drop(paused);

    let shut = story.restore(&["--at", &time, "--action", "shutdown"]);
    shut.cluster.launch(&[]).unwrap();
    assert!(shut.cluster.wait_end(PATIENCE), "{}", shut.cluster.log());
    assert!(shut.cluster.data().join("recovery.signal").exists());
    assert!(shut.cluster.log().contains("shutdown at recovery target"), "{}", shut.cluster.log());
    story.end(&[]);
}

// ---- what is refused

#[test]
fn a_target_before_the_first_backups_end() {
    let story = Story::local(VERSION);
    story.insert(10);
    let none = refused(&story.walkeep, &["--latest"]);
    assert!(none.contains("no base backup") && none.contains("walkeep backup"), "{none}");
    let early = story.commit_time(10);
    let (xid, at) = (story.xid(10), story.cluster.lsn());
    story.cluster.sql("SELECT pg_create_restore_point('early')");
    let backup = story.backup();
    story.insert(10);
    story.settle();
    for target in [["--at", &early], ["--lsn", &at]] {
        let why = refused(&story.walkeep, &target);
        assert!(why.contains("before the end of the first backup") && why.contains(&backup), "{why}");
    }
    // It is in no WAL from the backup on.
    for (target, what) in
        [(["--xid", xid.as_str()], format!("transaction {xid}")), (["--restore-point", "early"], "restore point \"early\"".to_owned())]
    {
        let why = refused(&story.walkeep, &target);
        let first =
            why.contains(&format!("{what} is not in the WAL")) && why.contains("the earliest reachable is") && why.contains(&backup);
        assert!(first, "{why}");
    }
    // The earliest that is named can be had: a second later, since the time is told in seconds.
    let record = &story.walkeep.ok(&["backups", "--json"]).json()[0];
    assert!(refused(&story.walkeep, &["--at", &early]).contains(record["stop_lsn"].as_str().unwrap()));
    assert_eq!(rows_at(&story, &["--at", &story.commit_time(11)]), 11);
    story.end(&[]);
}

/// The transaction that a refusal offers in place of what was asked for.
fn xid_of(refusal: &str) -> String {
    let (_, rest) = refusal.split_once("--xid ").unwrap_or_else(|| panic!("no transaction is offered: {refusal}"));
    rest.split(')').next().unwrap().to_owned()
}

/// Takes a segment out of the local repository; answers its name.
fn lose(story: &Story, at: &str) -> String {
    let segment = story.cluster.sql(&format!("SELECT pg_walfile_name('{at}')"));
    let object = story::wait_for_file(&story.walkeep.local_repository(), &story::object(&segment));
    // Parts that nobody needs any more would do as well, for the while that they are left.
    let _ = std::fs::remove_dir_all(object.with_file_name(format!("{segment}.parts")));
    std::fs::remove_file(object).unwrap();
    segment
}

#[test]
fn a_target_in_or_behind_a_gap() {
    let story = Story::local(VERSION);
    story.insert(10);
    story.backup();
    story.insert(10);
    story.settle();
    story.insert(10);
    let (lost, _) = commit_record(&story, 25);
    story.settle();
    story.insert(10);
    story.settle();
    let (before, within, behind) = (story.commit_time(19), story.commit_time(25), story.commit_time(35));
    let xid = story.xid(35);
    let segment = lose(&story, &lost);

    let mut nearest = String::new();
    for target in [vec!["--at", &within], vec!["--at", &behind], vec!["--latest"], vec!["--lsn", &story.cluster.lsn()]] {
        let why = refused(&story.walkeep, &target);
        assert!(why.contains(&segment), "{target:?}: {why}");
        if target[0] == "--at" {
            nearest = xid_of(&why);
        }
    }
    let why = refused(&story.walkeep, &["--xid", &xid]);
    assert!(why.contains("could not be searched") && why.contains(&segment), "{why}");
    let status = story.walkeep.ok(&["status"]).stdout;
    assert!(status.contains("HOLE"), "{status}");
    // What happened is read on behind the hole, and the hole is told whatever is asked for.
    let log = story.walkeep.ok(&["log", "--json", "--dropped"]).json();
    assert_eq!((log["holes"].as_array().unwrap().len(), &log["entries"][0]["what"]), (1, &Value::from("hole")), "{log}");
    assert_eq!(log["entries"][0]["lsn"], log["holes"][0]["from"]);
    let commits: u64 = log["minutes"].as_array().unwrap().iter().map(|minute| minute["commits"].as_u64().unwrap()).sum();
    assert!((20..40).contains(&commits), "20 before it and some 10 behind: {log}");
    // What lies before it is as reachable as ever, and exactly what the refusal names.
    assert_eq!(rows_at(&story, &["--at", &before]), 19);
    assert_eq!(rows_at(&story, &["--xid", &nearest]), 20);
    // A new backup behind the gap opens what follows.
    story.backup();
    story.insert(1);
    story.settle();
    assert_eq!(rows_at(&story, &["--latest"]), 41);
    story.end(&[]);
}

#[test]
fn a_target_behind_the_end() {
    let (story, _) = forty_rows();
    let why = refused(&story.walkeep, &["--lsn", "7F/0"]);
    assert!(why.contains("after the end of the stored WAL") && why.contains("--latest"), "{why}");
    let why = refused(&story.walkeep, &["--at", "2099-01-01 00:00:00Z"]);
    assert!(why.contains("lies in the future by the server's clock") && why.contains("--latest"), "{why}");
    let last = xid_of(&refused(&story.walkeep, &["--at", "2099-01-01 00:00:00Z"]));
    assert_eq!(rows_at(&story, &["--xid", &last]), 40);
    for target in [["--xid", "4000000"], ["--restore-point", "nobody made it"]] {
        let why = refused(&story.walkeep, &target);
        assert!(why.contains("is not in the WAL") && why.contains(&format!("--xid {last}")), "{why}");
    }
    let why = refused(&story.walkeep, &["--timeline", "7"]);
    assert!(why.contains("timeline 7 is unknown; known are 1"), "{why}");
    let unknown = story.walkeep.run(&["plan", "--backup", "2001"]).expect_code(2);
    assert!(unknown.stderr.contains("walkeep backups"), "{}", unknown.stderr);

    story.end(&[]);
}

/// T3: a moment after the last commit, of an idle server. PostgreSQL itself would end with FATAL, as no later commit comes.
#[test]
fn a_moment_after_the_last_commit() {
    let (mut story, _) = forty_rows();
    let last = last_of(&story);
    let idle = story.cluster.sql("SELECT clock_timestamp()");
    // The server is there and says that it wrote nothing else.
    let lost = || story.cluster.log().matches("connection to client lost").count();
    let before = lost();
    let planned = plan(&story.walkeep, &["--at", &idle]);
    assert_eq!((planned["last_replayed"]["xid"].to_string(), &planned["first_not_replayed"]), (last.clone(), &Value::Null), "{planned}");
    assert_eq!(planned["proven_by"]["server"]["timeline"], 1, "{planned}");
    assert_eq!(rows_at(&story, &["--at", &idle]), 40);
    assert_eq!(rows_at(&story, &["--at", &idle, "--exclusive"]), 40);

    assert_eq!(lost(), before, "who asks a server says goodbye: {}", story.cluster.log());

    // What it has written since is not stored: no longer proven.
    story.stop_agent(&[]);
    story.cluster.archive_by(None);
    story.insert(1);
    let later = story.cluster.sql("SELECT clock_timestamp()");
    let why = story.walkeep.run(&["plan", "--at", &later]).expect_code(3).stderr;
    assert!(why.contains("not all that the server has written is stored") && why.contains(&format!("--xid {last}")), "{why}");
    // It is not there: what was committed is not known. What is known is offered.
    story.cluster.stop(Stop::Immediate);
    let why = refused(&story.walkeep, &["--at", &idle]);
    assert!(why.contains("the server cannot tell: cannot connect") && why.contains("--latest"), "{why}");
    assert_eq!(xid_of(&why), last);
    assert_eq!(rows_at(&story, &["--xid", &last]), 40);
    // Of a server that ended in order the last record says so, and its time, to the second.
    story.cluster.start();
    let agent = story.walkeep.agent();
    story.cluster.archive_by(Some(&story.walkeep.archive_command()));
    let between = story.cluster.sql("SELECT clock_timestamp()");
    let seconds = || story.cluster.value::<u64>("SELECT extract(epoch FROM clock_timestamp())::bigint");
    let now = seconds();
    wait_until("the clock goes on", PATIENCE, || seconds() >= now + 2);
    story.cluster.stop(Stop::Fast);
    agent.stop();
    let planned = plan(&story.walkeep, &["--at", &between]);
    assert!(planned["proven_by"]["record"]["lsn"].is_string(), "{planned}");
    assert_eq!(rows_at(&story, &["--at", &between]), 41);
    let why = refused(&story.walkeep, &["--at", "2099-01-01 00:00:00Z"]);
    assert!(why.contains("the server cannot tell"), "{why}");
    story.end(&[]);
}

/// The backup is the last thing that happened: the moment after it is the backup's own end.
#[test]
fn a_moment_after_a_backup_behind_which_nothing_was_committed() {
    let story = Story::local(VERSION);
    story.insert(10);
    story.backup();
    let idle = story.cluster.sql("SELECT clock_timestamp()");
    let planned = plan(&story.walkeep, &["--at", &idle]);
    assert_eq!(planned["last_replayed"], Value::Null, "{planned}");
    let printed = story.walkeep.ok(&["plan", "--at", &idle]).stdout;
    assert!(printed.contains("none between the backup's start and the stop"), "{printed}");
    assert_eq!(rows_at(&story, &["--at", &idle]), 10);
    story.end(&[]);
}

/// A prepared transaction is told by its own number and ends with COMMIT PREPARED.
#[test]
fn prepared_transactions() {
    let story = Story::begin(story::builder(VERSION).conf("max_prepared_transactions", 5), None);
    story.insert(3);
    story.backup();
    story.insert(2);
    story.cluster.sql("BEGIN; INSERT INTO t VALUES (1006, ''); PREPARE TRANSACTION 'kept'");
    story.cluster.sql("BEGIN; INSERT INTO t VALUES (1007, ''); PREPARE TRANSACTION 'dropped'");
    let prepared = |gid: &str| story.cluster.sql(&format!("SELECT transaction FROM pg_prepared_xacts WHERE gid = '{gid}'"));
    let (kept, dropped) = (prepared("kept"), prepared("dropped"));
    story.cluster.sql("INSERT INTO t VALUES (7, '')");
    story.cluster.sql("COMMIT PREPARED 'kept'");
    story.cluster.sql("INSERT INTO t VALUES (8, '')");
    story.cluster.sql("ROLLBACK PREPARED 'dropped'");
    story.cluster.sql("INSERT INTO t VALUES (9, '')");
    story.settle();
    let xids = |args: &[&str]| {
        let planned = plan(&story.walkeep, args);
        (planned["last_replayed"]["xid"].to_string(), planned["first_not_replayed"]["xid"].to_string())
    };
    let (seven, eight, nine) = (story.xid(7), story.xid(8), story.xid(9));
    assert_eq!(xids(&["--xid", &kept]), (kept.clone(), eight.clone()));
    assert_eq!(xids(&["--xid", &kept, "--exclusive"]), (seven, kept.clone()));
    assert_eq!(xids(&["--xid", &dropped]), (eight.clone(), nine));
    assert_eq!(xids(&["--xid", &dropped, "--exclusive"]), (eight, dropped.clone()));
    let open = |args: &[&str]| {
        let restored = story.restore(args);
        restored.start();
        (restored.rows(), restored.cluster.sql("SELECT coalesce(string_agg(gid, ',' ORDER BY gid), '') FROM pg_prepared_xacts"))
    };
    assert_eq!(open(&["--xid", &kept]), (7, "dropped".to_owned()));
    assert_eq!(open(&["--xid", &kept, "--exclusive"]), (6, "dropped,kept".to_owned()));
    assert_eq!(open(&["--xid", &dropped]), (8, String::new()));
    assert_eq!(open(&["--xid", &dropped, "--exclusive"]), (8, "dropped".to_owned()));
    let time = story.cluster.sql("SELECT pg_xact_commit_timestamp(xmin) FROM t WHERE i = 1006");
    assert_eq!(open(&["--at", &time]), (7, "dropped".to_owned()));
    assert_eq!(open(&["--at", &time, "--exclusive"]), (6, "dropped,kept".to_owned()));
    story.end(&[]);
}

/// C2: what is ambiguous or cannot be is refused; every way to write a moment leads to the same stop.
#[test]
fn moments_around_the_calendars_corners() {
    let (story, _) = forty_rows();
    let stop = |time: &str| plan(&story.walkeep, &["--at", time])["stop_lsn"].clone();
    // The hour that comes twice when summer time ends is told apart by its offset: here the same moment in both, and UTC.
    let in_zone = |offset: &str| {
        let local = format!("pg_xact_commit_timestamp(xmin) AT TIME ZONE INTERVAL '{offset}'");
        story.cluster.sql(&format!("SELECT to_char({local}, 'YYYY-MM-DD HH24:MI:SS.US') || '{offset}' FROM t WHERE i = 25"))
    };
    let exact = stop(&story.commit_time(25));
    for offset in ["+02:00", "+01:00", "+00:00", "+05:45", "-03:30", "+14:00", "-12:00"] {
        assert_eq!(stop(&in_zone(offset)), exact, "{offset}: {}", in_zone(offset));
    }
    for (time, advice) in [
        ("2026-10-25 02:30:00 Europe/Berlin", "can be read in more than one way"),
        ("2026-10-25 02:30:00 CEST", "offset that was in force"),
        ("2026-12-31 23:59:60Z", "second 59"),
        ("2026-12-31 24:00:00Z", "2027-01-01"),
        ("10000-01-01 00:00:00Z", "0001 to 9999"),
        ("2026-11-20 14:30:00.1234567Z", "six digits"),
        ("2026-11-20 14:30:00+16:00", "up to 15:59"),
        ("2027-02-29 00:00:00Z", "exist"),
    ] {
        let output = story.walkeep.run(&["plan", "--at", time]).expect_code(2);
        assert!(output.stderr.contains(advice), "{time}: {}", output.stderr);
    }
    // The ends of what can be written are moments like any other: before everything, and after.
    assert!(refused(&story.walkeep, &["--at", "0001-01-01 00:00:00+15:59"]).contains("before the end of the first backup"));
    assert!(refused(&story.walkeep, &["--at", "9999-12-31 23:59:59.999999-15:59"]).contains("lies in the future by the server's clock"));
    story.end(&[]);
}

#[test]
fn a_backup_whose_own_wal_is_lost() {
    let story = Story::local(VERSION);
    story.insert(10);
    let first = story.backup();
    story.insert(10);
    story.settle();
    let second = story.backup();
    story.insert(10);
    story.settle();
    let time = story.commit_time(25);
    let record = story.walkeep.ok(&["backups", "--json"]).json()[1].clone();
    assert_eq!(record["id"], Value::from(second.as_str()));
    // The older one cannot cross the hole either: nothing leads behind it.
    let segment = lose(&story, record["start_lsn"].as_str().unwrap());
    let why = refused(&story.walkeep, &["--at", &time]);
    assert!(why.contains(&segment), "{why}");
    // To a moment before the hole the older one leads.
    let planned = plan(&story.walkeep, &["--at", &story.commit_time(19)]);
    assert_eq!(planned["backup"]["id"], Value::from(first.as_str()));
    let status = story.walkeep.ok(&["status"]).stdout;
    assert!(status.contains(&format!("backup {second} is of no use")), "{status}");
    // Asked for by name it is refused.
    let why = refused(&story.walkeep, &["--backup", &second]);
    assert!(why.contains("can be made consistent") && why.contains(&segment), "{why}");
    // The newest that can be made consistent is taken where the newest cannot.
    assert_eq!(rows_at(&story, &["--immediate"]), 10);
    story.end(&[]);
}

#[test]
fn without_an_agent_the_tail_too_is_restored() {
    let (mut story, _) = forty_rows();
    // An agent that ends stores the unfinished segment in parts; without it the command fetches by itself.
    story.insert(7);
    let time = story.commit_time(45);
    story.stop_agent(&[]);
    assert_eq!(rows_at(&story, &["--latest"]), 47);
    assert_eq!(rows_at(&story, &["--at", &time, "--exclusive"]), 44);
}
