//! Rehearsals: by hand as the runbook has it, and `walkeep drill`.

use super::stage::{Place, Stage};
use super::text::{README, RUNBOOK};

pub const PLACES: [Place; 2] = [(RUNBOOK, "Drill", 1), (README, "Drills", 1)];

#[test]
fn a_restore_is_rehearsed() {
    let mut stage = Stage::usual(&PLACES);
    stage.in_shop("INSERT INTO orders SELECT i, 'late' FROM generate_series(1001, 1234) i");
    stage.settle();
    stage.open(PLACES[0]);
    stage.run("walkeep plan --latest").says("Every object this needs is in the repository");
    stage.run("walkeep restore --latest");
    stage.run("pg_ctl -D /srv/drill -o");
    stage.until("psql -p 5499", |said| said.has("\n f\n"));
    let port = stage.second_port();
    let checked = stage.run("pg_amcheck");
    assert_eq!((checked.output.stdout.as_str(), checked.output.stderr.as_str()), ("", ""), "it is silent");
    checked.quoted("`pg_amcheck --all --install-missing` is silent");
    assert_eq!(stage.sql_at(port, "SHOW archive_mode"), "off");
    stage.run("pg_ctl -D /srv/drill stop");
    stage.run("rm -r /srv/drill");
    assert!(!stage.srv("drill").exists());

    stage.open(PLACES[1]);
    stage.run("walkeep drill  ").says("passed");
    stage.run("walkeep drill --random").says("passed");
    assert_eq!(stage.run("walkeep drills  ").output.stdout.matches("passed").count(), 2);
    let report = stage.run("walkeep drills --newest");
    report.says("passed").says("RTO");
    for (form, begins) in [("html", "<"), ("json", "{")] {
        let shown = stage.walkeep.ok(&["drills", "--newest", "--form", form]).stdout;
        assert!(shown.starts_with(begins), "{shown}");
    }
    stage.end();
}
