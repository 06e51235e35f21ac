//! Two primaries of one timeline: a clone's archive_command has brought a segment under a name that the right server wanted.

use std::path::Path;

use walkeep_tests::{Stop, Walkeep, wait_until};

use super::stage::{Place, Stage};
use super::text::RUNBOOK;
use crate::story::{self, PATIENCE};

pub const PLACES: [Place; 2] = [(RUNBOOK, "Two primaries", 1), (RUNBOOK, "Two primaries", 2)];

#[test]
fn a_clone_archives_too() {
    let mut stage = Stage::usual(&PLACES);
    stage.settle();
    stage.cluster.stop(Stop::Fast);
    let clone = stage.cluster.copy();
    stage.cluster.start();
    stage.wait_ready();
    // As another host has it: the same repository, a spool of its own.
    let mut second = Walkeep::new(&clone, stage.walkeep.repositories[0].clone());
    second.keys = stage.walkeep.keys.clone();
    second.write_config();
    for (name, value) in [("port", clone.port().to_string()), ("unix_socket_directories", clone.socket_dir().display().to_string())] {
        clone.write_conf(name, &value);
    }
    clone.write_conf("archive_command", &format!("{} %p", second.archive_command()));
    // The right server's agent has the lease, and the server is idle: of its segment nothing is stored that the clone does not have too.
    let wrong_agent = second.launch_agent().unwrap();
    clone.start();
    clone.try_sql_in("shop", "INSERT INTO orders VALUES (3000, 'wrong')").unwrap();
    wait_until("its agent is told", PATIENCE, || wrong_agent.log().contains("Nothing is stored"));
    let name = clone.switch_wal();
    let file = story::wait_for_file(&stage.walkeep.local_repository(), &story::object(&format!("/{name}")));
    wait_until("its segment is taken", PATIENCE, || clone.value::<u64>("SELECT archived_count FROM pg_stat_archiver") > 0);

    stage.open(PLACES[0]);
    stage.run("walkeep timelines").says("timeline 1");
    stage.run("walkeep lease").says("timeline 1");
    // On the right host, which ends its segment for it: archive_command meets the clone's.
    stage.ends(1, "walkeep check", "the clone has taken the name of the right server's segment").says("FAIL  end to end");
    let variables = [
        ("WALKEEP_CONFIG", second.config_path().display().to_string()),
        ("PGHOST", clone.socket_dir().display().to_string()),
        ("PGPORT", clone.port().to_string()),
    ]
    .map(|(name, value)| (name.to_owned(), value));
    let wrong = stage.again(1, &variables, "the other agent has the lease");
    wrong.says("FAIL  writer").quoted("`check` fails at `writer`");
    stage.promised(RUNBOOK, "Two primaries", "timeline 2 is written by the agent on host ... Nothing is stored", &wrong_agent.log());
    assert!(wrong_agent.metric("walkeep_errors_total{kind=\"lease\"}").is_some_and(|count| count > 0.0));

    // The right server gets the conflict with its own segment.
    let failed = || stage.cluster.sql("SELECT coalesce(last_failed_wal, '') FROM pg_stat_archiver");
    wait_until("the right server is refused", PATIENCE, || failed() == name);
    let told = "000000020000000000000025 is already in the repository with other content ... nothing was overwritten";
    stage.promised(RUNBOOK, "Two primaries", told, &stage.cluster.log());

    // With the segment that `check` has ended there the clone has brought two.
    wait_until("so is the next one", PATIENCE, || clone.value::<u64>("SELECT archived_count FROM pg_stat_archiver") > 1);
    clone.stop(Stop::Immediate);
    wrong_agent.stop();
    let (object, folder) = (file.file_name().unwrap().to_string_lossy().into_owned(), file.parent().unwrap().to_owned());
    let tail = format!("wal/{}/{}/{object}", &name[..8], &name[8..16]);
    assert!(file.display().to_string().ends_with(&tail), "{tail}");
    stage.means("wal/00000002/00000000/000000020000000000000025.zst", tail, "the segment that the clone has brought");
    stage.open(PLACES[1]);
    stage.run("mkdir /srv/wrong");
    stage.run("mv /srv/walkeep/main/");
    assert!(stage.srv("wrong").join(&object).exists());
    // The same of the other, as the text says: those from that name on.
    let brought = segments_in(&folder, &name);
    assert_eq!(brought.len(), 1, "{brought:?}");
    brought.iter().for_each(|object| std::fs::rename(folder.join(object), stage.srv("wrong").join(object)).unwrap());
    // The server's next try comes within a minute; a segment that ends brings it about.
    wait_until("the right server's is stored", PATIENCE, || {
        stage.cluster.switch_wal();
        stage.cluster.sql("SELECT coalesce(last_archived_wal, '') FROM pg_stat_archiver") >= name
    });
    stage.run("psql -c 'SELECT last_archived_wal").says(&name);
    stage.wait_ready();
    stage.run("walkeep backup");
    stage.settle();
    stage.run("walkeep verify");
    assert_eq!(stage.walkeep.ok(&["status", "--json"]).json()["gaps"], serde_json::json!([]));
    stage.end();
}

/// The whole segments in a folder of a repository from this name on.
fn segments_in(folder: &Path, name: &str) -> Vec<String> {
    let names = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|object| object.as_str() >= name && story::object(&object[..24]) == *object).collect()
}
