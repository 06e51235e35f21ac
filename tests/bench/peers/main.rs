//! Walkeep beside pgBackRest, pg_basebackup, rclone and cp: the same work on the same data in one run, and one table of it.
//!
//! ```sh
//! make bench                                                       everything, with what it needs
//! cargo bench -p walkeep-tests --bench peers -- push,get --rounds 5 --stores s3
//! ```
//!
//! The tools take turns in each round, and medians are compared, because a machine is never the same for long. What is fetched or restored is compared
//! with the original: a row with a difference is worthless and says so, as one whose tool fails. Nothing here asserts a speed.
//!
//! What is measured of a piece of work: the time to its last success; the processor time of the tool and of every process it left behind, and for Walkeep
//! of its agent too; the peak of their resident memory, summed; what the repository grew by. The S3 server takes its share of the same cores and is not
//! in these figures.
#![allow(clippy::unwrap_used)]

mod backups;
mod copies;
mod data;
mod meter;
#[path = "../numbers.rs"]
#[allow(dead_code)]
mod numbers;
#[path = "../options.rs"]
#[allow(dead_code)]
mod options;
mod original;
mod peer;
#[path = "../pgbackrest.rs"]
mod pgbackrest;
mod table;
mod tool;
mod wal;
mod walkeep;

use std::process::ExitCode;

use options::Options;
use table::Table;
use tool::{Kind, StoreKind};

const USAGE: &str =
    "usage: cargo bench -p walkeep-tests --bench peers -- WORK,...|all [OPTIONS]     (packaging/build.sh and tests/setup.sh --bench first)

WAL, on a data directory without a server:
  push              archive_command of segments that are all ready, one call after another as PostgreSQL makes them
  idle              archive_command whose work is done already
  get               restore_command of segments, one after another, without time for their replay
base backups, of a running server:
  full, incr-nothing, incr-range, incr-scattered (1 % of the rows), restore, delta-nothing, delta-1pct (of the blocks)

  --tools walkeep,pgbackrest:zst,pgbackrest:lz4,pg_basebackup,rclone,cp,true     --stores s3,dir     --rounds 3
  --segments 64 (of push)    --scale 65 (of pgbench, 15 MB each)    --megabytes 700 (of realistic rows)
";

/// What is to be measured.
pub struct Plan {
    works: Vec<String>,
    tools: Vec<(Kind, StoreKind)>,
    rounds: u32,
    segments: usize,
    data: data::Data,
}

impl Plan {
    /// Whether this work is asked for.
    pub fn has(&self, work: &str) -> bool {
        self.works.iter().any(|asked| asked == work || asked == "all")
    }
}

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1).filter(|word| word != "--bench").peekable();
    if let Some(job) = words.next_if(|word| word == meter::RUNNER).and_then(|_| words.next()) {
        return meter::run_job(&job);
    }
    match plan(words) {
        Ok(plan) => {
            let mut table = Table::default();
            wal::measure(&plan, &mut table);
            backups::measure(&plan, &mut table);
            table.print(&plan.data, plan.rounds);
            if table.is_sound() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            eprintln!("{error}\n{USAGE}");
            ExitCode::from(2)
        }
    }
}

fn plan(words: impl Iterator<Item = String>) -> Result<Plan, String> {
    let (works, mut options) = Options::parse(words)?;
    let works: Vec<String> = works.split(',').map(str::to_owned).collect();
    let known = wal::WORKS.iter().chain(&backups::WORKS).chain(&["all"]);
    if let Some(unknown) = works.iter().find(|work| !known.clone().any(|known| known == work)) {
        return Err(format!("{unknown} is not known"));
    }
    let kinds = options.list::<Kind>("tools", "walkeep,pgbackrest:zst,pgbackrest:lz4,pg_basebackup,rclone,cp,true")?;
    let stores = options.list::<StoreKind>("stores", "s3,dir")?;
    let (rounds, segments) = (options.take("rounds", 3_u32)?, options.take("segments", 64_usize)?);
    let (scale, megabytes) = (options.take("scale", 65_u32)?, options.take("megabytes", 700_u32)?);
    options.end()?;
    let usable = |kind: &Kind, store: StoreKind| kind.stores().contains(&store) && tool::is_installed(*kind);
    let tools = stores.iter().flat_map(|store| kinds.iter().map(|kind| (*kind, *store))).filter(|(kind, store)| usable(kind, *store));
    let tools = tools.collect();
    Ok(Plan { works, tools, rounds, segments, data: data::Data::made(scale, megabytes, segments) })
}
