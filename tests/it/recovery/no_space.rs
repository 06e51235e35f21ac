//! D2: the disk of pg_wal is full while recovery fetches WAL into it. The server stops, and goes on when there is room.

use std::path::Path;

use walkeep_tests::{process, user, wait_until};

use super::world::{LONG, Story, Way, World, rows};
use crate::support::Tmpfs;

/// A small file system in the place of the server's pg_wal, with what was in it. To be dropped before the server.
fn small_pg_wal(story: &Story, size: &str) -> Option<Tmpfs> {
    let pg_wal = story.server.pg_wal();
    let before = story.walkeep.scratch().join("pg_wal");
    process::run(user::command("cp").arg("-a").arg(&pg_wal).arg(&before)).unwrap();
    let disk = Tmpfs::mount(&pg_wal, size)?;
    process::run(user::command("cp").arg("-a").arg(before.join(".")).arg(&pg_wal)).unwrap();
    Some(disk)
}

/// Files of ours that are not whole, and what PostgreSQL must not find.
fn leftovers(pg_wal: &Path) -> Vec<String> {
    let names = std::fs::read_dir(pg_wal).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.starts_with('.') || name.starts_with("RECOVERY")).collect()
}

fn stops_and_goes_on(way: Way) {
    let story = Story::new(World::get(), way, "2s");
    let Some(disk) = small_pg_wal(&story, "6m") else { return };
    // Twice: it does not open the second time either.
    for _ in 0..2 {
        story.dies("0000000100", 200);
        let log = story.server.log();
        let said = log.lines().rfind(|line| line.contains("No space left on device")).unwrap_or_else(|| panic!("{log}"));
        assert!(said.starts_with("walkeep-restore-cmd") && said.contains("/pg_wal/"), "{said}");
        assert_eq!(leftovers(&story.server.pg_wal()), [""; 0]);
    }
    disk.remount("size=64m");
    story.recovers();
    // Before its disk goes.
    story.server.kill9();
}

#[test]
fn a_full_disk_stops_the_server_by_the_agent() {
    stops_and_goes_on(Way::Agent);
}

#[test]
fn a_full_disk_stops_the_server_by_the_service() {
    stops_and_goes_on(Way::Service);
}

/// A standby waits for room instead, and answers meanwhile.
#[test]
fn a_standby_on_a_full_disk_waits() {
    let story = Story::new(World::get(), Way::Agent, "1s");
    super::servers::make_standby(&story);
    let Some(disk) = small_pg_wal(&story, "6m") else { return };
    story.launch();
    wait_until("the disk is full", LONG, || story.server.log().contains("No space left on device"));
    wait_until("the standby answers", LONG, || story.server.try_sql("SELECT pg_is_in_recovery()").is_ok_and(|answer| answer == "t"));
    assert_ne!(rows(&story.server), story.world.rows);
    disk.remount("size=64m");
    wait_until("the standby has everything", LONG, || rows(&story.server) == story.world.rows);
    assert!(story.server.running() && !story.server.log().contains("FATAL:  could not restore"));
    story.server.promote();
    story.opens(&story.server, 2);
    story.server.kill9();
}
