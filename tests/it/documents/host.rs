//! The host is lost, the region is lost.

use walkeep_tests::{Repository, Walkeep, process, user, wait_until};

use super::stage::{Place, Stage, server};
use super::text::RUNBOOK;
use crate::story::{self, PATIENCE};

pub const HOST: [Place; 2] = [(RUNBOOK, "The host is lost", 1), (RUNBOOK, "The host is lost", 2)];
pub const REGION: [Place; 1] = [(RUNBOOK, "The region is lost", 1)];

/// Server and agent are killed, and what they had is gone: data directory and spool.
fn lose(stage: &mut Stage) {
    stage.settle();
    stage.cluster.kill9();
    stage.kill_agent();
    let lost = stage.desk().dir("lost");
    std::fs::rename(stage.cluster.data(), lost.join("data")).unwrap();
    std::fs::rename(stage.walkeep.spool(), lost.join("spool")).unwrap();
    stage.walkeep.scratch().dir("spool");
}

#[test]
fn the_host_is_lost() {
    let cluster = server(&[("max_slot_wal_keep_size", "20GB")]);
    let walkeep = Walkeep::local(&cluster);
    let mut stage = Stage::archiving(&HOST, cluster, walkeep);
    stage.walkeep.ok(&["backup"]);
    stage.in_shop("INSERT INTO orders SELECT i, 'late' FROM generate_series(1001, 1234) i");
    lose(&mut stage);
    stage.open(HOST[0]);
    stage.run("walkeep status").says("recoverable from ");
    stage.run("walkeep plan").as_told("last commit  xid 1061, committed 2026-11-22T21:14:27.591925Z");
    stage.run("walkeep restore --to");
    stage.run("pg_ctl -D");
    stage.until("psql -c 'SELECT pg_is_in_recovery()'", |said| said.has("\n f\n"));
    assert_eq!(stage.in_shop("SELECT count(*) FROM orders"), "1234");
    assert_eq!(stage.cluster.sql("SHOW archive_mode"), "off");

    stage.open(HOST[1]);
    stage.run("psql -c 'ALTER SYSTEM RESET archive_mode'");
    stage.run("pg_ctl -D /var/lib/postgresql/15/main restart");
    assert_eq!(stage.cluster.sql("SHOW archive_mode"), "on");
    stage.run("walkeep lease take");
    stage.run("systemctl start walkeep");
    stage.run("walkeep backup");
    let checked = stage.run("walkeep check");
    let lines: Vec<_> = checked.output.stdout.lines().take_while(|line| !line.is_empty()).collect();
    assert!(lines.len() >= 9 && lines.iter().all(|line| line.starts_with("ok ")), "{lines:?}");
    stage.promised(RUNBOOK, "The host is lost", "the replication slot is gone: making it anew", &stage.agent().log());
    let timelines = stage.walkeep.ok(&["timelines"]).stdout;
    stage.promised(RUNBOOK, "The host is lost", "timeline 2 (left timeline 1 at 0/2004EEA8)", &timelines);
    stage.end();
}

#[test]
fn the_region_is_lost() {
    let cluster = server(&[]);
    let mut walkeep = Walkeep::local(&cluster);
    let second = walkeep.scratch().dir("second");
    walkeep.repositories.push(Repository::Local(second.clone()));
    walkeep.write_config();
    let mut stage = Stage::archiving(&REGION, cluster, walkeep);
    let backup = story::backup(&stage.walkeep);
    stage.settle();
    // By the rule `primary` the other one gets it in the background.
    let both = || [stage.walkeep.local_repository(), second.clone()].map(|folder| objects(&folder));
    wait_until("both have everything", PATIENCE, || both()[0] == both()[1]);
    lose(&mut stage);
    let first = stage.walkeep.local_repository();
    std::fs::rename(&first, stage.desk().join("lost/first")).unwrap();
    stage.walkeep.repositories.remove(0);
    stage.walkeep.write_config();

    stage.open(REGION[0]);
    let status = stage.run("walkeep status");
    assert!(status.has(&backup) && !status.has(&first.display().to_string()), "{}", status.output.stdout);
    stage.run("walkeep plan").as_told("Every object this needs is in the repository");
    let restored = stage.run("walkeep restore --to");
    stage.start(stage.cluster.data());
    assert_eq!(stage.in_shop("SELECT count(*) FROM orders"), "1000");

    // The region is back. Something is in the other one only.
    std::fs::rename(stage.desk().join("lost/first"), &first).unwrap();
    stage.walkeep.repositories.push(Repository::Local(first));
    stage.walkeep.write_config();
    restored.quoted("add its repository again as the second one");
    stage
        .inline(RUNBOOK, "The region is lost", "walkeep copy --from 1 --to 2")
        .as_told("copied 2 objects (1.08 KiB) from ...; 91 were there already");
    stage.end();
}

/// The names of what is stored, but the trail, parts, and scratch.
fn objects(folder: &std::path::Path) -> Vec<String> {
    let found = process::run(user::command("find").arg(folder).args(["-type", "f", "-printf", "%P\\n"])).unwrap();
    let mut names: Vec<_> = found.lines().filter(|name| !name.contains(".parts/") && !name.contains("~")).map(str::to_owned).collect();
    names.sort();
    names
}
