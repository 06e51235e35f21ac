//! What streaming is worth, measured: how much a dead host loses, what a synchronous commit costs, what the requests cost, what an outage does.
//!
//! One benchmark for each question, on the tests' harness: real PostgreSQL (with fsync), a real S3 server, Walkeep as it is released. They take
//! minutes, so `make test` only compiles them. Nothing here asserts a speed; what a promise says (no acknowledged commit lost, nothing missing)
//! ends the run with 1 when it does not hold.
//!
//! ```sh
//! cargo build --release --workspace
//! cargo bench -p walkeep-tests --bench stream -- rpo --rounds 30 --pgbackrest 10:6,60:2
//! ```

mod commits;
mod host;
mod load;
mod loss;
mod numbers;
mod options;
mod outage;
mod pgbackrest;
mod requests;
mod restored;
mod rpo;

use std::process::ExitCode;

use options::Options;

const USAGE: &str = "usage: cargo bench -p walkeep-tests --bench stream -- WHAT [OPTIONS]     (cargo build --release --workspace first)

  rpo       server and agent killed together at 50 commits/s, restored from S3 alone
              --rounds 30  --rate 50  --interval 1s  --seed N  --pgbackrest TIMEOUT:ROUNDS,... (archive_timeout in seconds)
  rpo0      the same with the agent as the only synchronous standby, 8 clients at full speed
              --rounds 30  --seed N
  commits   commits/s: asynchronous, acknowledged by repository, by spool, by pg_receivewal --synchronous
              --rounds 3  --seconds 10  --clients 1,8,32
  requests  requests at the store by kind, and their price
              --minutes 10  --interval 1s
  outage    the store away under full write load, beside a server without agent
              --before 120  --outage 600  --after 60 (seconds)  --clients 2  --scale 20  --acknowledge repository
";

fn main() -> ExitCode {
    // cargo bench adds --bench.
    let words = std::env::args().skip(1).filter(|word| word != "--bench");
    let kept = match Options::parse(words) {
        Ok((what, mut options)) => {
            let run = match what.as_str() {
                "rpo" => rpo::asynchronous,
                "rpo0" => rpo::synchronous,
                "commits" => commits::run_every_way,
                "requests" => requests::run,
                "outage" => outage::run,
                _ => return usage(&format!("{what} is not known")),
            };
            match run(&mut options) {
                Ok(kept) => kept,
                Err(error) => return usage(&error),
            }
        }
        Err(error) => return usage(&error),
    };
    if kept { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn usage(error: &str) -> ExitCode {
    eprintln!("{error}\n{USAGE}");
    ExitCode::from(2)
}
