//! Alerts: the agent is down, commits hang, archive_command fails, backups are missing; and what a look at the host says.

use walkeep_tests::{Stop, wait_until};

use super::stage::{Place, Stage};
use super::text::RUNBOOK;
use crate::story::PATIENCE;

pub const PLACES: [Place; 6] = [
    (RUNBOOK, "The agent is down", 1),
    (RUNBOOK, "Commits hang", 1),
    (RUNBOOK, "archive_command fails", 1),
    (RUNBOOK, "A backup fails or is missing", 1),
    (RUNBOOK, "A certificate or credentials end", 1),
    (RUNBOOK, "A clock is wrong", 1),
];

#[test]
fn the_agent_is_down() {
    let mut stage = Stage::usual(&PLACES);
    stage.kill_agent();
    stage.open(PLACES[0]);
    stage.ends(3, "systemctl status walkeep", "it is down");
    stage.run("journalctl -u walkeep").says("walkeep");
    stage.ends(1, "walkeep check", "it is down").says("FAIL  agent");

    // Nobody takes what archive_command brings.
    let name = stage.cluster.switch_wal();
    let failed = || stage.cluster.value::<u64>("SELECT failed_count FROM pg_stat_archiver") > 0;
    wait_until("archive_command fails", PATIENCE, failed);
    stage.open(PLACES[2]);
    stage.run("psql -c 'SELECT * FROM pg_stat_archiver'").says(&name);
    stage.run("journalctl -u walkeep");
    let log = stage.cluster.log();
    let said = log.lines().filter(|line| line.contains("walkeep-archive-cmd: ")).map(str::to_owned).collect::<Vec<_>>();
    assert!(!said.is_empty(), "the server's own log says why:\n{log}");

    // A commit that waits for the agent goes on.
    stage.cluster.sql("ALTER SYSTEM SET synchronous_standby_names = '*'");
    stage.cluster.reload();
    let mut session = stage.cluster.session();
    session.send("CREATE TABLE waits ()");
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    wait_until("a commit hangs", PATIENCE, || stage.cluster.sql(waits) == "1");
    stage.open(PLACES[1]);
    stage.run("psql -c \"ALTER SYSTEM SET synchronous_standby_names = ''\"");
    session.finish();
    assert_eq!(stage.cluster.sql("SELECT to_regclass('waits') IS NOT NULL"), "t");

    stage.start_agent();
    wait_until("what waited is archived", PATIENCE, || {
        stage.cluster.switch_wal();
        stage.cluster.sql("SELECT coalesce(last_archived_wal, '') FROM pg_stat_archiver") >= name
    });
    stage.open(PLACES[3]);
    stage.run("walkeep backups");
    stage.run("journalctl -u walkeep");
    stage.run("walkeep backup --label by-hand");
    assert!(stage.walkeep.ok(&["backups"]).stdout.contains("by-hand"));
    stage.open(PLACES[4]);
    stage.run("walkeep check").never_says("FAIL");
    stage.open(PLACES[5]);
    stage.run("date -u").says("UTC");
    stage.run("psql -Atc").says("+00");

    // The agent runs, and no WAL comes.
    stage.cluster.stop(Stop::Fast);
    let is_ready = || stage.agent().get("/readyz").is_ok_and(|(status, _)| status == 200);
    wait_until("the agent sees it", PATIENCE, || !is_ready());
    let why = stage.inline(RUNBOOK, "No WAL comes", "curl -s localhost:9187/readyz");
    assert!(!why.output.stdout.trim().is_empty() && !why.has("ready\n"), "{}", why.output.stdout);
    stage.inline_ends(1, RUNBOOK, "No WAL comes", "walkeep check").says("FAIL  server");
    stage.end();
}
