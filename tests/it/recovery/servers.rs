//! Standbys, several servers, the fetch service's life, reading ahead.

use std::time::Duration;

use walkeep_tests::walkeep::run;
use walkeep_tests::{Cluster, Fault, Stop, Walkeep, When, postgres, process, user, wait_until};

use super::world::{LONG, Story, Way, World, rows};

pub(super) fn make_standby(story: &Story) {
    let data = story.server.data();
    std::fs::rename(data.join("recovery.signal"), data.join("standby.signal")).unwrap();
    story.set("recovery_target_timeline", "latest");
}

fn standby_lives_through(way: Way) {
    let mut story = Story::new(World::get(), way, "2s");
    make_standby(&story);
    let middle = story.world.segments[12].clone();
    let mut before = None;
    for fault in [Fault::ACCESS_DENIED, Fault::FlipBit(-9)] {
        // One fault takes over from the other: without any, the standby would have everything at once.
        let armed = story.proxy.arm(When::get().path(&middle), fault);
        if let Some(before) = before.replace(armed) {
            story.proxy.disarm(before);
        }
        if !story.server.running() {
            story.launch();
        }
        // PostgreSQL asks again and again.
        wait_until("the middle is asked for again", LONG, || story.proxy.hits(armed) > 6);
        assert!(story.server.running());
        assert_eq!(story.server.sql("SELECT pg_is_in_recovery()"), "t");
        assert_ne!(rows(&story.server), story.world.rows);
        if way == Way::Agent {
            story.agent.as_mut().unwrap().kill9();
            let from = story.server.log().len();
            wait_until("the shim misses the agent", LONG, || story.server.log()[from..].contains("could not fetch"));
            assert!(story.server.running());
            story.agent = Some(story.walkeep.agent());
        }
    }
    before.into_iter().for_each(|armed| story.proxy.disarm(armed));
    wait_until("the standby has everything", LONG, || rows(&story.server) == story.world.rows);
    assert!(story.server.running() && !story.server.log().contains("FATAL:  could not restore"));
    // At the end of WAL it stays a standby, and asks again.
    assert_eq!(story.server.sql("SELECT pg_is_in_recovery()"), "t");
    story.server.promote();
    story.opens(&story.server, 2);
}

#[test]
fn a_standby_lives_through_faults_by_the_agent() {
    standby_lives_through(Way::Agent);
}

#[test]
fn a_standby_lives_through_faults_by_the_service() {
    standby_lives_through(Way::Service);
}

#[test]
fn a_standby_dies_rather_than_choose_a_timeline_blindly() {
    let story = Story::new(World::get(), Way::Agent, "2s");
    make_standby(&story);
    story.launch();
    wait_until("the standby has everything", LONG, || {
        story.server.try_sql("SELECT count(*), sum(n) FROM t").is_ok_and(|is| is == story.world.rows)
    });
    let armed = story.proxy.arm(When::get().path("00000002.history"), Fault::ACCESS_DENIED);
    let from = story.server.log().len();
    let _ = story.server.try_sql("SELECT pg_promote(wait => false)");
    story.died(from, "00000002.history", 200);
    story.proxy.disarm(armed);
    story.launch();
    wait_until("the standby is back", LONG, || {
        story.server.try_sql("SELECT count(*), sum(n) FROM t").is_ok_and(|is| is == story.world.rows)
    });
    story.server.promote();
    story.opens(&story.server, 2);
}

#[test]
fn two_servers_recover_at_once() {
    for way in [Way::Agent, Way::Service] {
        let story = Story::new(World::get(), way, "60s");
        let (other, _data) = story.another("60s");
        story.launch();
        story.launch_also(&other);
        story.opens(&story.server, 2);
        story.opens(&other, 2);
        assert_eq!(story.services().len(), usize::from(way == Way::Service));
    }
}

#[test]
fn the_service_leaves_when_nobody_asks_any_more() {
    let story = Story::new(World::get(), Way::Service, "60s");
    story.recovers();
    let services = story.services();
    assert_eq!(services.len(), 1, "{services:?}");
    // Nothing of PostgreSQL's is held: neither its log nor its folder, and its stop does not end the service, nor wait for it.
    let open_files = std::fs::read_dir(format!("/proc/{}/fd", services[0])).unwrap();
    let paths = open_files.filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok()).map(|path| path.display().to_string());
    let held: Vec<_> = paths.filter(|path| path.starts_with(&*story.server.scratch().path().to_string_lossy())).collect();
    assert_eq!(held, [""; 0]);
    assert_eq!(std::fs::read_link(format!("/proc/{}/cwd", services[0])).unwrap().to_string_lossy(), "/");
    wait_until("the service has left", Duration::from_secs(20), || !process::alive(services[0]));
    assert!(!story.service_socket().exists(), "its socket is left behind");
    let log = process::read_log(&story.walkeep.scratch().join("run/main.sock.fetch.log"));
    assert!(!log.contains("ERROR") && !log.contains("panic"), "{log}");
}

#[test]
fn what_is_read_ahead_when_the_service_dies_is_neither_stale_nor_torn() {
    let story = Story::new(World::get(), Way::Service, "60s");
    story.proxy.arm(When::get().path("/wal/"), Fault::Rate(150_000));
    story.launch();
    let mut killed = 0;
    for number in [4, 8, 12, 16, 20] {
        let name = &story.world.segments[number];
        let asked = || {
            story.proxy.count(&When::get().path(name)) > 0 || story.server.try_sql("SELECT pg_is_in_recovery()").is_ok_and(|is| is == "f")
        };
        wait_until("the next ones are read ahead", LONG, asked);
        for pid in story.services() {
            process::signal(pid, "KILL");
            killed += 1;
        }
    }
    assert!(killed >= 3, "{killed} services were killed");
    story.opens(&story.server, 2);
    assert_eq!(story.strangers(), [""; 0]);
}

#[test]
fn read_ahead_wal_is_that_of_the_archive() {
    let story = Story::new(World::get(), Way::Service, "60s");
    story.recovers();
    let (listed, read) = (story.proxy.count(&When::list()), story.proxy.count(&When::get().path(".zst")));
    eprintln!("{listed} listings, {read} reads of objects");
    // Every segment once, and little besides: nothing is read twice, and no listing for each.
    for name in &story.world.segments {
        assert_eq!(story.proxy.count(&When::get().path(&format!("{name}.zst"))), 1, "{name} was read more than once");
    }
    assert!(listed < 20, "{listed} listings");
}

/// The old primary went on after the standby was promoted, and has removed the WAL that pg_rewind looks for.
#[test]
fn rewind_fetches_what_the_old_primary_removed() {
    let primary = Cluster::builder().segment_mib(1).conf("wal_log_hints", "on").conf("wal_keep_size", "64MB").start();
    let walkeep = Walkeep::local(&primary);
    walkeep.ok(&["init"]);
    let agent = walkeep.agent();
    primary.sql("CREATE TABLE t (n int, pad text); CHECKPOINT");
    let standby = primary.standby();
    primary.wait_replayed(&standby);
    standby.promote();
    let mut segments = Vec::new();
    for _ in 0..5 {
        primary.sql("INSERT INTO t SELECT n, 'lost' FROM generate_series(1, 1000) n");
        segments.push(primary.switch_wal());
    }
    standby.sql("INSERT INTO t SELECT n, 'kept' FROM generate_series(1, 10) n");
    // A clean stop waits until everything is stored.
    primary.stop(Stop::Fast);
    let _agent = agent;
    for name in std::fs::read_dir(primary.pg_wal()).unwrap().map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()) {
        if name.len() == 24 && name.as_str() <= segments.last().unwrap().as_str() {
            std::fs::remove_file(primary.pg_wal().join(name)).unwrap();
        }
    }
    primary.write_conf("restore_command", &walkeep.restore_command());
    let rewind = || {
        let mut command = user::command(postgres::bin(primary.version()).unwrap().join("pg_rewind"));
        command.arg("-D").arg(primary.data()).arg("--source-server").arg(standby.connection());
        command.args(["--restore-target-wal", "--no-ensure-shutdown"]);
        command
    };
    let done = run(&mut rewind()).expect_code(0);
    assert!(done.stderr.contains("Done!"), "{}", done.stderr);
    // The rewound server is a standby of the new primary.
    std::fs::write(primary.data().join("standby.signal"), "").unwrap();
    user::give(&primary.data().join("standby.signal"));
    primary.write_conf("primary_conninfo", &standby.connection());
    primary.write_conf("restore_command", "");
    primary.start();
    standby.wait_replayed(&primary);
    assert_eq!(rows(&primary), "10|55");
}

/// Promoting a standby that cannot fetch what it lacks: while the shim tries, and while PostgreSQL pauses between two tries.
#[test]
fn a_standby_in_trouble_is_not_promoted_with_fewer_rows() {
    for (fault, patience) in [(Fault::Hang, "4s"), (Fault::ACCESS_DENIED, "1s")] {
        let story = Story::new(World::get(), Way::Agent, patience);
        make_standby(&story);
        let middle = story.world.segments[12].clone();
        let pauses = fault == Fault::ACCESS_DENIED;
        let armed = story.proxy.arm(When::get().path(&middle), fault);
        story.launch();
        wait_until("the middle is asked for", LONG, || story.proxy.hits(armed) > 0);
        wait_until("PostgreSQL pauses", LONG, || !pauses || story.server.log().contains(&format!("could not fetch {middle}")));
        let from = story.server.log().len();
        // The answer may be lost with the server.
        let _ = story.server.try_sql("SELECT pg_promote(wait => false)");
        story.died(from, &middle, 200);
        story.proxy.disarm(armed);
        story.launch();
        let all = || story.server.try_sql("SELECT count(*), sum(n) FROM t").is_ok_and(|is| is == story.world.rows);
        wait_until("the standby has everything", LONG, all);
        story.server.promote();
        story.opens(&story.server, 2);
    }
}
