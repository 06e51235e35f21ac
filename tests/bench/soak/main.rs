//! Everything at once, for long: load, every job of the agent and faults, in one process of the agent that must not grow.
//!
//!     cargo bench -p walkeep-tests --bench soak                       20 minutes
//!     cargo bench -p walkeep-tests --bench soak -- --minutes 5
//!     cargo bench -p walkeep-tests --bench soak -- --environment MALLOC_ARENA_MAX=8    another variable for the agent than the unit's, MALLOC_ARENA_MAX=1
//!
//! A server under load; an encrypted repository on S3 behind a proxy that breaks, and a second one in a directory that goes away; each minute a backup, a
//! retention run, an artifact, a look at everything, each few minutes a dump, a full backup, a drill; somebody who asks for the page, the metrics and plans.
//! At the end everything is stored in both repositories, verifies, and is restored row by row; and the agent has no more memory, files, sockets, tasks
//! and threads than in the beginning, nor left a file or process behind. Exit code 1 where that is not so.
#![allow(clippy::unwrap_used)]

mod faults;
#[path = "../numbers.rs"]
#[allow(dead_code)]
mod numbers;
#[path = "../options.rs"]
#[allow(dead_code)]
mod options;
mod watch;
mod world;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use faults::Faults;
use options::Options;
use watch::Watch;
use world::World;

/// How often the agent is looked at.
const LOOK: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    let words = std::env::args().skip(1).filter(|word| word != "--bench");
    let run = Options::parse(["soak".to_owned()].into_iter().chain(words)).and_then(|(_, mut options)| {
        let (minutes, seed) = (options.take("minutes", 20_u64)?, options.take("seed", numbers::any_seed())?);
        let environment = options.take("environment", "MALLOC_ARENA_MAX=1".to_owned())?;
        options.end().map(|()| (minutes, seed, environment))
    });
    let (minutes, seed, environment) = run.unwrap_or_else(|problem| panic!("{problem}"));
    println!("soak: {minutes} minutes, seed {seed} {environment}");
    let mut world = World::new(environment.split_once('='));
    let (mut faults, mut watch) = (Faults::new(seed), Watch::new());
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(minutes * 60) {
        faults.go_on(&mut world);
        world.ask();
        watch.look(&world, began.elapsed());
        std::thread::sleep(LOOK);
    }
    faults.end(&mut world);
    watch.print();
    let told = [watch.growth(), world.end()].concat();
    told.iter().for_each(|problem| println!("NOT WELL: {problem}"));
    if told.is_empty() {
        println!("nothing grew, nothing was left, nothing was lost");
    }
    ExitCode::from(u8::from(!told.is_empty()))
}
