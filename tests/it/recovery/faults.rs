//! What goes wrong between Walkeep and the store.

use walkeep_tests::{Fault, When, postgres, wait_until};

use super::world::{LONG, Story, Way, World};

/// As short as can be: a service must have started by then.
fn short(way: Way) -> &'static str {
    if way == Way::Agent { "1s" } else { "2s" }
}

/// Each stops the recovery at a segment of its own; the next one can only get further because the one before is healed.
fn stop_the_server(way: Way, faults: &[Fault]) {
    let story = Story::new(World::get(), way, short(way));
    for (number, fault) in faults.iter().enumerate() {
        let segment = &story.world.segments[number + 4];
        eprintln!("{fault:?} on {segment}");
        let armed = story.proxy.arm(When::get().path(segment), fault.clone());
        story.dies(segment, 200);
        assert!(story.proxy.hits(armed) > 0);
        story.proxy.disarm(armed);
    }
    story.recovers();
    assert_eq!(story.strangers(), [""; 0]);
}

const REFUSED: [Fault; 7] = [
    Fault::SLOW_DOWN,
    Fault::INTERNAL,
    Fault::ACCESS_DENIED,
    Fault::EXPIRED_TOKEN,
    Fault::NO_SUCH_BUCKET,
    Fault::NO_SUCH_KEY,
    Fault::Status(404, ""),
];

const DAMAGED: [Fault; 9] = [
    Fault::CutBody(100),
    Fault::ShortBody(100),
    Fault::ShortBody(0),
    Fault::FlipBit(-9),
    Fault::FlipBit(3),
    Fault::FlipBit(400),
    Fault::DropRequest,
    Fault::DropAnswer,
    Fault::ErrorInOk("InternalError"),
];

const SILENT: [Fault; 2] = [Fault::Hang, Fault::StallBody(100)];

#[test]
fn a_refused_segment_stops_the_server_by_the_agent() {
    stop_the_server(Way::Agent, &REFUSED);
}

#[test]
fn a_refused_segment_stops_the_server_by_the_service() {
    stop_the_server(Way::Service, &REFUSED);
}

#[test]
fn a_damaged_segment_stops_the_server_by_the_agent() {
    stop_the_server(Way::Agent, &DAMAGED);
}

#[test]
fn a_damaged_segment_stops_the_server_by_the_service() {
    stop_the_server(Way::Service, &DAMAGED);
}

#[test]
fn silence_stops_the_server() {
    stop_the_server(Way::Agent, &SILENT);
    stop_the_server(Way::Service, &SILENT);
}

/// Until nothing more than the middle is there: the store goes away.
fn store_goes_away(way: Way) {
    let story = Story::new(World::get(), way, "3s");
    let middle = story.world.segments[12].clone();
    let armed = story.proxy.arm(When::get().path(&middle), Fault::Hang);
    let from = story.server.log().len();
    story.launch();
    wait_until("the middle is asked for", LONG, || story.proxy.hits(armed) > 0);
    story.proxy.close();
    // What was not read ahead yet is missing first.
    story.died(from, "0000000100", 200);
    // With nothing but an unreachable store from the start.
    story.dies("0000000", 200);
    story.proxy.disarm_all();
    story.proxy.open();
    story.recovers();
}

#[test]
fn a_store_that_goes_away_stops_the_server() {
    store_goes_away(Way::Agent);
    store_goes_away(Way::Service);
}

/// Not even the end of WAL is believed while nobody knows whether the repository was reached.
fn unreadable_marker(way: Way, fault: &Fault) {
    let story = Story::new(World::get(), way, "2s");
    let middle = story.world.segments[8].clone();
    // While the service starts, it reads the marker too: the fault comes when the middle is asked for.
    let marker = story.proxy.arm(When::get().path("walkeep.json").skip(3), fault.clone());
    let missing = story.proxy.arm(When::get().path(&middle), Fault::NO_SUCH_KEY);
    let from = story.server.log().len();
    story.launch();
    story.died(from, "0000000", 200);
    story.proxy.disarm(missing);
    story.dies("0000000", 200);
    story.proxy.disarm(marker);
    story.recovers();
}

#[test]
fn an_unreadable_marker_proves_nothing() {
    unreadable_marker(Way::Agent, &Fault::ACCESS_DENIED);
    unreadable_marker(Way::Service, &Fault::NO_SUCH_KEY);
}

#[test]
fn what_heals_in_time_is_not_seen() {
    for way in [Way::Agent, Way::Service] {
        let story = Story::new(World::get(), way, "60s");
        let faults = [REFUSED.as_slice(), &DAMAGED].concat();
        for (number, fault) in faults.into_iter().enumerate() {
            story.proxy.arm(When::get().path(&story.world.segments[number + 2]).times(2), fault);
        }
        story.recovers();
        assert!(!story.server.log().contains("FATAL:  could not restore"), "{}", story.server.log());
    }
}

#[test]
fn every_version_stops_and_goes_on() {
    let versions = postgres::versions();
    for version in [versions.first(), versions.last()].into_iter().flatten() {
        let story = Story::new(World::of(*version), Way::Service, "2s");
        let middle = story.world.segments[10].clone();
        let armed = story.proxy.arm(When::get().path(&middle), Fault::ACCESS_DENIED);
        story.dies(&middle, 200);
        story.proxy.disarm(armed);
        let right = story.restore_command("2s");
        story.set("restore_command", &right.replace("service.sh", "nothing"));
        wait_until("the service has left", LONG, || story.services().is_empty());
        story.dies("0000000", 201);
        story.set("restore_command", &right.replace("--timeout", "--tmeout"));
        story.dies("0000000", 202);
        story.set("restore_command", &right);
        story.recovers();
    }
}

/// The last rows lie in parts of a segment that is not finished. What cannot be read of them is not their end.
fn unfinished_end(way: Way) {
    let story = Story::new(World::get(), way, short(way));
    let parts = story.world.parts();
    assert!(parts.len() >= 3, "{parts:?}");
    let (first, last) = (&parts[0], parts.last().unwrap());
    let tail = &last.rsplit_once(".parts/").unwrap().0[last.rfind(".parts/").unwrap() - 24..];
    let folder = format!("{tail}.parts");
    let end = When::get().path(tail);
    let stories = [
        (end.clone(), Fault::ACCESS_DENIED),
        (When::get().path(first), Fault::SLOW_DOWN),
        (When::get().path(last), Fault::ACCESS_DENIED),
        (When::get().path(last), Fault::NO_SUCH_KEY),
        (When::get().path(last), Fault::NO_SUCH_BUCKET),
        (When::get().path(last), Fault::FlipBit(-9)),
        (When::get().path(last), Fault::CutBody(10)),
        (When::get().path(last), Fault::ShortBody(0)),
        (When::get().path(last), Fault::Hang),
        (When::list().query(&folder), Fault::SLOW_DOWN),
        (When::list().query(&folder), Fault::ACCESS_DENIED),
        (When::list().query(&folder), Fault::NO_SUCH_BUCKET),
        (When::list().query(&folder), Fault::CutBody(100)),
        (When::list().query(&folder), Fault::ShortBody(100)),
        (When::list().query(&folder), Fault::ShortBody(0)),
        (When::list().query(&folder), Fault::ErrorInOk("InternalError")),
    ];
    // What goes through the same code by the service is told by one of three.
    let step = if way == Way::Agent { 1 } else { 3 };
    for (when, fault) in stories.into_iter().step_by(step) {
        eprintln!("{fault:?} on {when:?}");
        let armed = story.proxy.arm(when, fault);
        story.dies(tail, 200);
        assert!(story.proxy.hits(armed) > 0);
        story.proxy.disarm(armed);
    }
    story.recovers();
}

#[test]
fn an_unreadable_end_stops_the_server_by_the_agent() {
    unfinished_end(Way::Agent);
}

#[test]
fn an_unreadable_end_stops_the_server_by_the_service() {
    unfinished_end(Way::Service);
}
