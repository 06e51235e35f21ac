//! What is wrong in the repository itself, or with the processes.

use walkeep_tests::{Fault, When, wait_until};

use super::world::{LONG, Story, Way, World};

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
