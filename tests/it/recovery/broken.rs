//! What is wrong in the repository itself, or with the processes.

use std::process::Command;

use walkeep_tests::{Cluster, Fault, Repository, S3Server, Walkeep, When, postgres, wait_until};

use super::world::{LONG, Story, Way, World, open, rows};

#[test]
fn an_agent_killed_in_mid_recovery_stops_the_server() {
    let mut story = Story::new(World::get(), Way::Agent, "3s");
    let middle = story.world.segments[12].clone();
    let armed = story.proxy.arm(When::get().path(&middle), Fault::Hang);
    let from = story.server.log().len();
    story.launch();
    wait_until("the middle is asked for", LONG, || story.proxy.hits(armed) > 0);
    story.agent.as_mut().unwrap().kill9();
    assert!(story.walkeep.socket().exists(), "a stale socket is part of the story");
    story.died(from, "0000000", 201);
    story.dies("0000000", 201);
    story.proxy.disarm(armed);
    story.agent = Some(story.walkeep.agent());
    story.recovers();
}

#[test]
fn an_agent_that_comes_back_in_time_is_not_missed() {
    let mut story = Story::new(World::get(), Way::Agent, "60s");
    let middle = story.world.segments[12].clone();
    let armed = story.proxy.arm(When::get().path(&middle), Fault::Hang);
    story.launch();
    wait_until("the middle is asked for", LONG, || story.proxy.hits(armed) > 0);
    story.agent.as_mut().unwrap().kill9();
    story.proxy.disarm(armed);
    story.agent = Some(story.walkeep.agent());
    story.opens(&story.server, 2);
    assert_eq!(story.strangers(), [""; 0]);
}

#[test]
fn where_the_agent_dies_the_service_goes_on() {
    let mut story = Story::new(World::get(), Way::Service, "60s");
    story.agent = Some(story.walkeep.agent());
    let middle = story.world.segments[12].clone();
    let armed = story.proxy.arm(When::get().path(&middle), Fault::Hang);
    story.launch();
    wait_until("the middle is asked for", LONG, || story.proxy.hits(armed) > 0);
    assert_eq!(story.services(), [0; 0], "the agent is there and is asked");
    story.agent.as_mut().unwrap().kill9();
    story.proxy.disarm(armed);
    story.opens(&story.server, 2);
    assert_ne!(story.services(), [0; 0]);
}

#[test]
fn an_agent_that_stands_still_stops_the_server() {
    let story = Story::new(World::get(), Way::Agent, "3s");
    let agent = story.agent.as_ref().unwrap();
    agent.signal("STOP");
    story.dies("0000000", 200);
    agent.signal("CONT");
    story.recovers();
}

/// `change` breaks an object of the middle; the server must stop there, and go on when it is put back.
fn broken_object(story: &Story, segment: &str, change: impl FnOnce(&World)) {
    let (world, key) = (&story.world, story.world.key(segment));
    let whole = world.bucket.get(&key);
    change(world);
    story.dies(segment, 200);
    world.bucket.put(&key, &whole);
}

fn broken_objects(way: Way) {
    let world = World::get().copied();
    let foreign = World::build(Cluster::builder().fresh());
    let story = Story::new(world, way, "2s");
    let segments = story.world.segments.clone();
    eprintln!("a hole");
    broken_object(&story, &segments[4], |world| world.bucket.delete(&world.key(&segments[4])));
    eprintln!("a hole just before the unfinished end");
    broken_object(&story, &segments[23], |world| world.bucket.delete(&world.key(&segments[23])));
    eprintln!("another segment's object");
    broken_object(&story, &segments[7], |world| world.bucket.put(&world.key(&segments[7]), &world.bucket.get(&world.key(&segments[6]))));
    eprintln!("another cluster's object");
    let theirs = foreign.segments.iter().find(|name| segments[5..].contains(name)).unwrap();
    broken_object(&story, theirs, |world| world.bucket.put(&world.key(theirs), &foreign.bucket.get(&foreign.key(theirs))));
    eprintln!("a bit of the stored object");
    broken_object(&story, &segments[9], |world| {
        let mut object = world.bucket.get(&world.key(&segments[9]));
        let middle = object.len() / 2;
        object[middle] ^= 1;
        world.bucket.put(&world.key(&segments[9]), &object);
    });
    eprintln!("half of the stored object");
    broken_object(&story, &segments[10], |world| {
        let object = world.bucket.get(&world.key(&segments[10]));
        world.bucket.put(&world.key(&segments[10]), &object[..object.len() / 2]);
    });
    eprintln!("nothing in the stored object");
    broken_object(&story, &segments[11], |world| world.bucket.put(&world.key(&segments[11]), b""));
    story.recovers();
}

#[test]
fn a_broken_object_stops_the_server_by_the_agent() {
    broken_objects(Way::Agent);
}

#[test]
fn a_broken_object_stops_the_server_by_the_service() {
    broken_objects(Way::Service);
}

/// The configuration points to another cluster's repository, of the same name.
#[test]
fn another_clusters_repository_stops_the_server() {
    let foreign = World::build(Cluster::builder().fresh());
    let world = World::get();
    let mut story = Story::new(world.clone(), Way::Service, "2s");
    story.walkeep.repositories = vec![Repository::s3(story.proxy.endpoint(), &foreign.bucket)];
    story.walkeep.write_config();
    story.dies("0000000", 204);
    story.walkeep.repositories = vec![Repository::s3(story.proxy.endpoint(), &S3Server::get().bucket())];
    story.walkeep.write_config();
    wait_until("the service has left", LONG, || story.services().is_empty());
    story.dies("0000000", 200);
    for pid in story.services() {
        walkeep_tests::process::signal(pid, "KILL");
    }
    story.walkeep.repositories = vec![Repository::s3(story.proxy.endpoint(), &world.bucket)];
    story.walkeep.write_config();
    story.recovers();
}

/// Timeline 2 behind the world's WAL: written by a restored server, archived without an agent.
fn with_second_timeline() -> (World, String) {
    let world = World::get().copied();
    let story = Story::new(world.clone(), Way::Service, "60s");
    story.set("archive_mode", "on");
    story.set("archive_command", &format!("{} %p", story.walkeep.push_command()));
    story.recovers();
    story.server.sql("INSERT INTO t SELECT n, 'second' FROM generate_series(1, 100) n");
    let second = story.server.switch_wal();
    let all = rows(&story.server);
    for file in ["00000002.history", &second] {
        let key = world.key(file);
        wait_until(&format!("{file} is archived"), LONG, || world.bucket.list(&key).len() == 1);
    }
    // What a promotion leaves where the last segment did not come from the archive.
    let partial = format!("{}.partial", world.segments[23]);
    let name = story.walkeep.scratch().join("segment");
    story.walkeep.ok(&["wal", "fetch", &world.segments[23], &name.to_string_lossy()]);
    let partial = story.server.pg_wal().join(partial);
    std::fs::rename(name, &partial).unwrap();
    story.walkeep.ok(&["wal", "push", &partial.to_string_lossy()]);
    (world, all)
}

#[test]
fn a_history_that_cannot_be_fetched_is_never_absent() {
    let (world, all) = with_second_timeline();
    // To the newest timeline, and on the first one: there the history is asked for only at the end, to choose a timeline.
    for (way, target, last) in [(Way::Agent, "latest", all.as_str()), (Way::Service, "1", &world.rows)] {
        let story = Story::new(world.clone(), way, "2s");
        story.set("recovery_target_timeline", target);
        let faults = [Fault::SLOW_DOWN, Fault::ACCESS_DENIED, Fault::NO_SUCH_BUCKET, Fault::NO_SUCH_KEY, Fault::FlipBit(-3), Fault::Hang];
        for fault in faults {
            eprintln!("{fault:?} for {target}");
            let armed = story.proxy.arm(When::get().path("00000002.history"), fault);
            story.dies("00000002.history", 200);
            story.proxy.disarm(armed);
        }
        eprintln!("deleted for {target}");
        let key = world.key("00000002.history");
        let history = world.bucket.get(&key);
        world.bucket.delete(&key);
        story.dies("00000002.history", 200);
        world.bucket.put(&key, &history);
        story.launch();
        open(&story.server, 3);
        assert_eq!(rows(&story.server), last);
    }
}

#[test]
fn fetching_by_name_tells_absence_from_failure() {
    let (world, _) = with_second_timeline();
    let proxy = S3Server::get().proxy();
    let walkeep = Walkeep::offline(Repository::s3(proxy.endpoint(), &world.bucket));
    let fetch = |name: &str, code: i32| {
        let to = walkeep.scratch().join("fetched");
        let _ = std::fs::remove_file(&to);
        let output = walkeep.run(&["wal", "fetch", name, &to.to_string_lossy()]).expect_code(code);
        assert_eq!(to.exists(), code == 0, "{name}");
        assert!(code == 0 || !output.stderr.is_empty());
        std::fs::read(&to).unwrap_or_default()
    };
    let names: Vec<_> = world.bucket.list("").into_iter().filter_map(|(key, _)| Some(key.rsplit_once('/')?.1.to_owned())).collect();
    let stored = |kind: &str| {
        names
            .iter()
            .find_map(|name| name.strip_suffix(walkeep_tests::keys::suffix()).filter(|name| name.ends_with(kind)))
            .unwrap()
            .to_owned()
    };
    let (note, partial) = (stored(".backup"), stored(".partial"));
    let middle = &world.segments[5];

    assert!(String::from_utf8(fetch(&note, 0)).unwrap().contains("START WAL LOCATION"));
    assert!(String::from_utf8(fetch("00000002.history", 0)).unwrap().starts_with("1\t"));
    assert_eq!(fetch(&partial, 0).len(), 1 << 20);
    // pg_waldump believes it.
    fetch(middle, 0);
    let fetched = walkeep.scratch().join(middle);
    std::fs::rename(walkeep.scratch().join("fetched"), &fetched).unwrap();
    let dump = Command::new(postgres::client(world.version, "pg_waldump")).arg(&fetched).output().unwrap();
    assert!(String::from_utf8_lossy(&dump.stdout).contains("INSERT"), "{}", String::from_utf8_lossy(&dump.stderr));

    fetch("00000003.history", 1);
    fetch("0000000100000000000000FE.partial", 1);
    fetch("0000000100000000000000FE.00000028.backup", 1);
    fetch("0000000200000000000000FE", 1);
    // Before the first that is stored there is something behind: it is missing, not the end.
    fetch("000000010000000000000001", 126);
    fetch("nonsense", 126);
    for file in [middle, "00000002.history", &partial, &note] {
        for fault in [Fault::ACCESS_DENIED, Fault::NO_SUCH_BUCKET, Fault::FlipBit(-3)] {
            let armed = proxy.arm(When::get().path(&format!("{file}.zst")), fault);
            fetch(file, 126);
            proxy.disarm(armed);
        }
        // What may heal is tried again.
        proxy.arm(When::get().path(&format!("{file}.zst")).times(2), Fault::CutBody(50));
        fetch(file, 0);
    }
    let marker = proxy.arm(When::get().path("walkeep.json"), Fault::ACCESS_DENIED);
    fetch("00000003.history", 126);
    proxy.disarm(marker);
    let there = walkeep.scratch().write("there", "mine", 0o600);
    walkeep.run(&["wal", "fetch", middle, &there.to_string_lossy()]).expect_code(126);
    assert_eq!(std::fs::read(&there).unwrap(), b"mine");
    // Wrong usage too must not look like the end of the archive.
    walkeep.run(&["wal", "fetch", middle]).expect_code(126);
}
