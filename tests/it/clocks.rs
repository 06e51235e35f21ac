//! C3: the clock of Walkeep's host is wrong. Order is LSN and timeline; what is told by time is the server's.

use std::path::Path;

use walkeep_tests::{Cluster, Walkeep, wait_until};

use crate::story::{self, PATIENCE, Restored, plan};
use crate::support::{assert_calm, lsn, wait_durable};

const VERSION: u32 = 15;
/// Where Debian's package puts it; see tests/setup.sh.
pub fn library() -> String {
    format!("/usr/lib/{}-linux-gnu/faketime/libfaketime.so.1", std::env::consts::ARCH)
}

/// Everything that Walkeep does from now on is so far off.
pub fn shift(walkeep: &mut Walkeep, by: Option<&str>) {
    // By env and not from the environment: the library must not be in the program that changes the user, whose semaphore would be root's.
    let words =
        |by| ["env".to_owned(), format!("LD_PRELOAD={}", library()), format!("FAKETIME={by}"), "FAKETIME_DONT_FAKE_MONOTONIC=1".to_owned()];
    walkeep.run_by = by.map(words).into_iter().flatten().collect();
}

#[test]
fn a_wrong_clock_changes_no_order() {
    if !Path::new(&library()).exists() {
        eprintln!("SKIPPED: libfaketime is not here");
        return;
    }
    let cluster: Cluster = story::builder(VERSION).start();
    let mut walkeep = Walkeep::local(&cluster);
    walkeep.ok(&["init"]);
    cluster.sql("CREATE TABLE t (i int PRIMARY KEY, filler text)");
    let mut backups = Vec::new();
    // Ahead, then back: by its host's clock the later backup would be the earlier.
    for by in ["+2h", "-2h"] {
        shift(&mut walkeep, Some(by));
        let agent = walkeep.agent();
        cluster.archive_by(Some(&walkeep.archive_command()));
        story::insert(&cluster, 5);
        backups.push(story::backup(&walkeep));
        story::insert(&cluster, 5);
        cluster.archive_now();
        wait_durable(&agent, lsn(&cluster.sql("SELECT pg_current_wal_flush_lsn()")), PATIENCE);
        let lag = || agent.metric("walkeep_wal_lag_seconds").unwrap();
        wait_until("a wrong clock is no lag", PATIENCE, || lag() < 60.0);
        let off = if by == "+2h" { 7200.0 } else { -7200.0 };
        let against_server = || agent.metric("walkeep_clock_offset_seconds{against=\"server\",repository=\"\"}");
        wait_until("it is seen to be wrong", PATIENCE, || against_server().is_some_and(|ahead: f64| (ahead - off).abs() < 5.0));
        let said = agent.log();
        assert_calm(&agent, &[]);
        agent.stop();
        let year_to_hour = |text: &str| text.get(..13).map(str::to_owned);
        let told = said.lines().next().and_then(year_to_hour);
        let here = cluster.sql("SELECT to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24')");
        assert!(told.is_some() && told != Some(here), "the clock was not shifted: {said}");
    }
    assert!(backups[0] < backups[1], "their names tell the server's time: {backups:?}");
    for by in [Some("+2h"), Some("-2h"), None] {
        shift(&mut walkeep, by);
        let status = walkeep.ok(&["status", "--json"]).json();
        assert_eq!((&status["gaps"], &status["timelines"][0]["holes"]), (&serde_json::json!([]), &serde_json::json!([])));
        assert_eq!(plan(&walkeep, &[])["backup"]["id"], serde_json::json!(backups[1]), "{by:?}: the nearest before the end");
        let time = |row: u32| cluster.sql(&format!("SELECT pg_xact_commit_timestamp(xmin) FROM t WHERE i = {row}"));
        assert_eq!(plan(&walkeep, &["--at", &time(8)])["backup"]["id"], serde_json::json!(backups[0]), "{by:?}: before the second backup");
        if by == Some("-2h") {
            for (args, rows) in [(vec![], 20), (vec!["--at", &time(8)], 8), (vec!["--at", &time(17)], 17)] {
                assert_eq!(Restored::by(&walkeep, VERSION, &args).start().rows(), rows, "{args:?}");
            }
        }
    }
}
