//! Damage in one of two repositories, and `verify` where all is well.

use walkeep_tests::{Repository, Walkeep};

use super::stage::{Place, Stage, server};
use super::text::{README, RUNBOOK};
use crate::story::{self, listing};

pub const PLACES: [Place; 3] = [(RUNBOOK, "Damage", 1), (RUNBOOK, "Damage", 2), (README, "Verification", 1)];

#[test]
fn a_pack_is_damaged_in_one_of_two() {
    let cluster = server(&[]);
    let mut walkeep = Walkeep::local(&cluster);
    walkeep.repositories.push(Repository::Local(walkeep.scratch().dir("second")));
    walkeep.write_config();
    let mut stage = Stage::archiving(&PLACES, cluster, walkeep);
    let backup = story::backup(&stage.walkeep);
    stage.settle();
    stage.stop_agent();
    stage.walkeep.ok(&["copy", "--from", "1", "--to", "2"]);

    stage.means("20261121T034712Z-0000000002000028", &backup, "the backup that there is");
    stage.open(PLACES[2]);
    stage.run("walkeep verify  ");
    stage.run("walkeep verify --deep --rate");
    let known = stage.run("walkeep verify --deep --older-than");
    known.never_says("damaged");
    stage.run("walkeep verify --backup");
    stage.run("walkeep verify --deep --repair --dry-run");
    assert_eq!(stage.run("walkeep verify --json").json()["whole"], true);

    let folder = stage.walkeep.local_repository();
    let files = listing(&folder).into_iter().filter_map(|line| line.split_once(" f ").map(|(path, _)| folder.join(path)));
    let pack =
        files.filter(|path| path.display().to_string().contains("/packs/")).max_by_key(|path| path.metadata().unwrap().len()).unwrap();
    let mut bytes = std::fs::read(&pack).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    // Listings tell it too.
    bytes.truncate(middle + 1);
    std::fs::write(&pack, &bytes).unwrap();
    let key = pack.file_name().unwrap().to_string_lossy().into_owned();

    stage.start_agent();
    stage.open(PLACES[0]);
    stage.ends(4, "walkeep verify", "something is damaged").says(&key);
    stage.run("walkeep plan").says("Every object this needs is in the repository");
    stage.run("walkeep backup --full");
    stage.stop_agent();
    stage.open(PLACES[1]);
    stage.ends(4, "walkeep verify --deep --repair --dry-run", "it ends before it mends").says("(damaged), from 2");
    stage.answered("y", "walkeep verify --deep --repair").says("Go on? [y/N]");
    stage.walkeep.ok(&["verify", "--deep"]);
    stage.end();
}
