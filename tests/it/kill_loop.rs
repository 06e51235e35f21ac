//! Agent, server and store are killed, frozen, slowed down, cut off and brought back at random moments, timelines change meanwhile; then every
//! timeline's bytes are compared with plain copies.
//!
//! Each time the agent dies, what the slot says was confirmed is fetched at once, from the store alone: acknowledged means restorable at
//! that moment, not when the next agent has mended it. The seed is printed; `WALKEEP_SEED` and `WALKEEP_ROUNDS` run one again, or longer. Only
//! the choices are the same then: what the processes make of them is theirs.

mod compare;
mod world;

use std::time::Duration;

use walkeep_tests::process;
use world::{Death, World};

/// Enough for each thing to happen about twice, in a few seconds.
const ROUNDS: u32 = 20;

/// SplitMix64.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        bits ^ (bits >> 31)
    }

    /// A number below `limit`.
    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    fn one_in(&mut self, chances: u64) -> bool {
        self.below(chances) == 0
    }

    fn pause(&mut self, most: Duration) {
        std::thread::sleep(Duration::from_micros(self.below(most.as_micros() as u64)));
    }
}

/// Says on a failure how to see it again.
struct Recipe {
    seed: u64,
    rounds: u32,
}

impl Drop for Recipe {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let Self { seed, rounds } = self;
            eprintln!("once more: WALKEEP_SEED={seed} WALKEEP_ROUNDS={rounds} cargo test -p walkeep-tests --test it -- kill_loop");
        }
    }
}

fn from_environment<T: std::str::FromStr>(name: &str) -> Option<T> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

#[test]
fn whatever_is_killed_nothing_confirmed_is_lost() {
    let seed = from_environment("WALKEEP_SEED").unwrap_or_else(|| u64::from(std::process::id()));
    let rounds = from_environment("WALKEEP_ROUNDS").unwrap_or(ROUNDS);
    eprintln!("seed {seed}, {rounds} rounds");
    let _recipe = Recipe { seed, rounds };
    let (mut dice, mut world) = (Dice(seed), World::new());
    for round in 1..=rounds {
        dice.pause(Duration::from_millis(300));
        world.sample();
        if round == rounds / 2 {
            world.fail_over(dice.one_in(2));
        }
        step(&mut world, &mut dice);
    }
    world.settle();
    world.compare();
    world.end();
}

/// One thing breaks, is mended, or goes on.
fn step(world: &mut World, dice: &mut Dice) {
    match dice.below(16) {
        0..=4 => match world.agent_runs() {
            true => world.end_agent(if dice.one_in(4) { Death::Asked } else { Death::Killed }),
            false => world.start_agent(),
        },
        5..=6 => world.freeze_or_thaw(),
        7..=8 => world.cut_or_mend_store(),
        9 => world.slow_or_quick_store(),
        10 => world.lose_answers_or_not(),
        11..=12 => match world.server_runs() {
            true => world.stop_server(dice.one_in(2)),
            false => world.start_server(),
        },
        13 => world.write(1 + dice.below(4) as u32),
        14 => world.end_segment(),
        // Rare: a new standby takes seconds.
        _ if dice.one_in(3) => match world.has_standby() {
            true => world.fail_over(dice.one_in(2)),
            false => world.grow_standby(),
        },
        _ => world.checkpoint(),
    }
}

/// The agent's log must never say this.
const NEVER: [&str; 4] = ["panicked", "GAP in the archive", "other content", "kind=conflict"];

fn assert_sane(log: &str) {
    for text in NEVER {
        assert!(!log.contains(text), "{text:?} in the agent's log:\n{}", process::tail(log));
    }
}
