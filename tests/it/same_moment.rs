//! T5, C1: many sessions commit at once. Some do so in one microsecond, and their records do not lie in the order of their times. What PostgreSQL then
//! makes of a moment is what the plan said, row by row.

use walkeep_tests::postgres::client;
use walkeep_tests::walkeep::run;
use walkeep_tests::{Cluster, user};

use crate::story::{Story, builder, plan};

const VERSION: u32 = 15;

/// A commit of one row, as pg_waldump tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Commit {
    xid: u64,
    /// As text of one form, so that it can be compared.
    time: String,
}

/// Every commit since `start`, in the order of the records.
fn commits(cluster: &Cluster, start: &str, end: &str) -> Vec<Commit> {
    let mut command = user::command(client(VERSION, "pg_waldump"));
    command.env("TZ", "UTC").arg("-p").arg(cluster.pg_wal()).args(["-r", "Transaction", "-s", start, "-e", end]);
    let text = run(&mut command).expect_code(0).stdout;
    let field = |line: &str, from: &str, to: &str| line.split_once(from).unwrap().1.split_once(to).unwrap().0.trim().to_owned();
    let lines = text.lines().filter(|line| line.contains("desc: COMMIT "));
    lines.map(|line| Commit { xid: field(line, "tx:", ",").parse().unwrap(), time: field(line, "COMMIT ", " UTC") }).collect()
}

/// How many commits PostgreSQL replays to this time: up to the first record of a later one (or, exclusive, not of an earlier one).
fn replayed(commits: &[Commit], time: &str, inclusive: bool) -> usize {
    let stops = |commit: &Commit| if inclusive { commit.time.as_str() > time } else { commit.time.as_str() >= time };
    commits.iter().position(stops).unwrap_or(commits.len())
}

#[test]
fn commits_of_one_microsecond() {
    let story = Story::begin(builder(VERSION).conf("synchronous_commit", "off").conf("wal_keep_size", "512MB"), None);
    let cluster = &story.cluster;
    cluster.sql("CREATE TABLE r (id bigint GENERATED ALWAYS AS IDENTITY)");
    story.backup();
    let script = cluster.scratch().write("insert.sql", "INSERT INTO r DEFAULT VALUES;\n", 0o644);
    let script = script.to_string_lossy().into_owned();
    let mut found = None;
    for round in 1..=6 {
        let start = cluster.sql("SELECT pg_current_wal_insert_lsn()");
        let rows: usize = cluster.value("SELECT count(*) FROM r");
        cluster.pgbench_run(&["-c", "10", "-j", "2", "-t", "1000", "-f", &script]);
        cluster.sql("CHECKPOINT");
        let all = commits(cluster, &start, &cluster.sql("SELECT pg_current_wal_flush_lsn()"));
        assert_eq!(all.len(), 10_000);
        // Side by side and of one time, and no other of that time.
        let both = |w: &[Commit]| replayed(&all, &w[1].time, true) == replayed(&all, &w[1].time, false) + 2;
        let pair = all.windows(4).position(|w| w[0].time < w[1].time && w[1].time == w[2].time && w[2].time < w[3].time && both(w));
        // A commit that is written before one of an earlier time; with few processors there may be none.
        let turned = all.windows(2).position(|w| w[0].time > w[1].time);
        eprintln!("round {round}: pair {pair:?}, turned {turned:?}");
        if let Some(pair) = pair {
            found = Some((rows, all, pair, turned));
            if turned.is_some() {
                break;
            }
        }
    }
    let (rows, all, pair, turned) = found.expect("two of tens of thousands of commits share a microsecond");
    story.settle();
    story.settle();

    let mut targets = vec![(&all[pair + 1].time, true), (&all[pair + 1].time, false)];
    match turned {
        Some(turned) => targets.push((&all[turned + 1].time, true)),
        None => eprintln!("SKIPPED: no two commits out of order"),
    }
    for (time, inclusive) in targets {
        let at = format!("{time}+00");
        let args = [&["--at", at.as_str()][..], if inclusive { &[] } else { &["--exclusive"] }].concat();
        let count = replayed(&all, time, inclusive);
        let planned = plan(&story.walkeep, &args);
        eprintln!("{args:?}: {count} commits, {}", planned["warnings"]);
        assert_eq!(planned["last_replayed"]["xid"].as_u64(), Some(all[count - 1].xid), "{args:?}");
        assert_eq!(planned["first_not_replayed"]["xid"].as_u64(), Some(all[count].xid), "{args:?}");
        // Commits of the time asked for that come too late to be had are told.
        let lost = all[count..].iter().filter(|commit| replayed(std::slice::from_ref(*commit), time, inclusive) == 1).count();
        let words = format!("belong to the time asked for, {lost}, are written after");
        let told = planned["warnings"].as_array().unwrap().iter().any(|warning| warning.as_str().unwrap().contains(&words));
        assert_eq!(told, lost > 0, "{args:?}: {lost} lost, {}", planned["warnings"]);
        let clock = &planned["clock"];
        assert_eq!(clock["lost"].as_u64().unwrap_or(0), lost as u64, "{args:?}: {clock}");
        if lost > 0 {
            // Nobody set a clock, and the position that has them all is offered.
            assert_eq!((&clock["cause"], clock["candidates"].as_array().unwrap().len()), (&"same_moment".into(), 1), "{args:?}: {clock}");
            let last = all.iter().rposition(|commit| replayed(std::slice::from_ref(commit), time, inclusive) == 1).unwrap();
            assert_eq!(clock["candidates"][0]["last"]["xid"].as_u64(), Some(all[last].xid), "{args:?}: {clock}");
            let safe = story.restore(&["--lsn", clock["candidates"][0]["lsn"].as_str().unwrap()]);
            assert_eq!(safe.start().cluster.value::<usize>("SELECT count(*) FROM r"), rows + last + 1, "{args:?}: {clock}");
        }
        let restored = story.restore(&args);
        restored.start();
        assert_eq!(restored.cluster.value::<usize>("SELECT count(*) FROM r"), rows + count, "{args:?}");
        let last = format!("SELECT count(*) FROM r WHERE xmin::text IN ('{}', '{}')", all[count - 1].xid, all[count].xid);
        assert_eq!(restored.cluster.sql(&last), "1", "{args:?}");
    }
    story.end(&[]);
}
