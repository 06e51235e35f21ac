//! What breaks, one thing after the other and some at the same time; each is mended a while later.

use std::time::{Duration, Instant};

use walkeep_tests::proxy::Armed;
use walkeep_tests::{Fault, When};

use crate::numbers::Random;
use crate::world::World;

/// What lasts until it is mended.
enum Broken {
    /// The S3 server is away.
    Store,
    /// A fault of the proxy's.
    Armed(Armed),
    /// The directory of the second repository.
    Directory,
    /// The server.
    Server,
}

/// The faults of a run.
pub struct Faults {
    random: Random,
    broken: Vec<(Instant, Broken)>,
    next: Instant,
    count: u32,
}

impl Faults {
    pub fn new(seed: u64) -> Self {
        Self { random: Random::new(seed), broken: Vec::new(), next: Instant::now() + Duration::from_secs(5), count: 0 }
    }

    fn seconds(&mut self, from: u64, to: u64) -> Duration {
        self.random.between(Duration::from_secs(from), Duration::from_secs(to))
    }

    /// Mends what has been broken long enough, and breaks the next thing if it is time.
    pub fn go_on(&mut self, world: &mut World) {
        let now = Instant::now();
        while let Some(at) = self.broken.iter().position(|(until, _)| *until <= now) {
            let (_, broken) = self.broken.swap_remove(at);
            mend(world, broken);
        }
        if now >= self.next {
            self.next = now + self.seconds(8, 20);
            self.break_one(world);
        }
    }

    fn break_one(&mut self, world: &mut World) {
        self.count += 1;
        let lasts = Instant::now() + self.seconds(2, 12);
        let choice = self.seconds(0, 12).as_secs();
        let is = |what: fn(&Broken) -> bool| self.broken.iter().any(|(_, broken)| what(broken));
        let server_is_away = is(|broken| matches!(broken, Broken::Server));
        let arm = |when: When, fault: Fault| Some(Broken::Armed(world.proxy.arm(when, fault)));
        let broken = match choice {
            0 => arm(When::put().every(3), Fault::SLOW_DOWN),
            1 => arm(When::put().every(4), Fault::DropAnswer),
            2 => arm(When::any().every(5), Fault::DropRequest),
            3 => arm(When::get().every(2), Fault::CutBody(100)),
            4 => arm(When::any().every(7), Fault::Hang),
            5 => arm(When::any().every(2), Fault::Delay(Duration::from_millis(900))),
            6 | 7 if !is(|broken| matches!(broken, Broken::Store)) => {
                world.proxy.close();
                Some(Broken::Store)
            }
            8 if !is(|broken| matches!(broken, Broken::Directory)) => {
                world.take_second_away();
                Some(Broken::Directory)
            }
            9 if !server_is_away => {
                world.stop_server();
                Some(Broken::Server)
            }
            10 if !server_is_away => {
                world.cut_stream();
                None
            }
            _ if !server_is_away => {
                world.write_much();
                None
            }
            _ => None,
        };
        self.broken.extend(broken.map(|broken| (lasts, broken)));
    }

    /// Mends everything.
    pub fn end(self, world: &mut World) {
        self.broken.into_iter().for_each(|(_, broken)| mend(world, broken));
        println!("{} faults", self.count);
    }
}

fn mend(world: &mut World, broken: Broken) {
    match broken {
        Broken::Store => world.proxy.open(),
        Broken::Armed(armed) => world.proxy.disarm(armed),
        Broken::Directory => world.bring_second_back(),
        Broken::Server => world.start_server(),
    }
}
