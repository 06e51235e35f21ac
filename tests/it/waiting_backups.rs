//! A repository that does not take a backup's objects: each call that failed is counted, once, and `walkeep status` says on what the backup waits.

use walkeep_tests::{Agent, Fault, Repository, S3Server, Walkeep, When, wait_until};

use crate::schedules::{daily, said, soon, wait_backups, with_schedules};
use crate::story::{self, PATIENCE};
use crate::support::{Tmpfs, assert_calm};

const VERSION: u32 = 15;
const RETRIED: &str = "failed; trying again";

fn counted(agent: &Agent, kind: &str) -> f64 {
    agent.metric(&format!("walkeep_errors_total{{kind=\"{kind}\"}}")).unwrap()
}

/// Waits until it is told that the agent's backup waits for `call`, to people and to programs.
#[track_caller]
fn wait_told(walkeep: &Walkeep, call: &str) {
    let waits = format!("; it waits for the repository ({call})");
    wait_until("it is told", PATIENCE, || {
        let running = walkeep.ok(&["status"]).stdout;
        running
            .lines()
            .any(|line| line.contains("one is being taken: ") && line.contains("the agent, \"nightly\"") && line.ends_with(&waits))
    });
    let status = walkeep.ok(&["status", "--json"]).json();
    assert!(status["backup_running"].as_str().is_some_and(|running| running.ends_with(&waits)), "{status}");
}

#[test]
fn a_backup_whose_packs_are_refused() {
    let cluster = story::builder(VERSION).start();
    let proxy = S3Server::get().proxy();
    let mut walkeep = Walkeep::new(&cluster, Repository::s3(proxy.endpoint(), &S3Server::get().bucket()));
    walkeep.environment.push(("WALKEEP_REPOSITORY_TIMEOUT".into(), "3s".into()));
    let Some(minute) = soon(&mut walkeep) else { return };
    with_schedules(&cluster, &mut walkeep, &daily(minute, 0, "label = \"nightly\""));
    let packs = || When::put().path("/packs/");
    let denied = proxy.arm(packs(), Fault::ACCESS_DENIED);
    let agent = walkeep.agent();
    wait_until("the backup fails", PATIENCE, || said(&agent, "the scheduled backup is not done; trying again"));
    assert_eq!(counted(&agent, "denied"), 1.0, "{} requests", proxy.hits(denied));

    let before = counted(&agent, "transient");
    let slow = proxy.arm(packs(), Fault::SLOW_DOWN);
    proxy.disarm(denied);
    wait_told(&walkeep, "put: transient");
    let (calls, requests) = (counted(&agent, "transient") - before, proxy.hits(slow));
    assert!(calls >= 2.0 && calls < requests as f64, "{calls} calls, and what the store tried by itself: {requests} requests");
    assert_eq!(agent.metric("walkeep_backup_running"), Some(1.0));
    proxy.disarm(slow);
    wait_backups(&walkeep, 1);
    wait_until("it is over", PATIENCE, || said(&agent, "the scheduled backup is done"));
    assert_eq!(counted(&agent, "denied"), 1.0);
    assert_calm(&agent, &[RETRIED, "the scheduled backup is not done; trying again"]);
    agent.stop();
}

#[test]
fn a_backup_for_which_there_is_no_room() {
    let cluster = story::builder(VERSION).start();
    let mut walkeep = Walkeep::local(&cluster);
    // Room for WAL, not for a pack.
    let Some(disk) = Tmpfs::mount(&walkeep.local_repository(), "640k") else { return };
    let Some(minute) = soon(&mut walkeep) else { return };
    with_schedules(&cluster, &mut walkeep, &daily(minute, 0, "label = \"nightly\""));
    let agent = walkeep.agent();
    wait_told(&walkeep, "put: full");
    let before = counted(&agent, "full");
    assert!(before >= 2.0, "{before}");
    wait_until("it goes on to be counted", PATIENCE, || counted(&agent, "full") > before);
    disk.remount("size=64m");
    wait_backups(&walkeep, 1);
    wait_until("it is over", PATIENCE, || said(&agent, "the scheduled backup is done"));
    assert!(!walkeep.ok(&["status"]).stdout.contains("waits for the repository"));
    agent.stop();
}
