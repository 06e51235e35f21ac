//! From pgBackRest to Walkeep and back, with a real pgBackRest.

use std::path::Path;

use walkeep_tests::{Walkeep, process, user, wait_until};

use super::stage::{Place, Stage, make_shop, server};
use super::text::MIGRATION;
use crate::story::PATIENCE;

const BESIDE: &str = "1. Beside each other";

pub const SWITCH: [Place; 7] = [
    (MIGRATION, BESIDE, 1),
    (MIGRATION, BESIDE, 2),
    (MIGRATION, "2. The first backup, and the proof", 1),
    (MIGRATION, "3. Both in archive_command", 1),
    (MIGRATION, "4. The switch", 1),
    (MIGRATION, "5. The old repository, and the way back", 1),
    (MIGRATION, "Barman", 1),
];
pub const GAP: [Place; 1] = [(MIGRATION, "WAL of the old archive", 1)];

/// A server with the shop that pgBackRest archives, and Walkeep's configuration for it.
fn archived_by_pgbackrest(settings: &[(&str, &str)], expected: &[Place]) -> Option<Stage> {
    if !Path::new("/usr/bin/pgbackrest").exists() {
        eprintln!("SKIPPED: there is no pgbackrest here: run tests/setup.sh");
        return None;
    }
    let cluster = server(settings);
    let walkeep = Walkeep::local(&cluster);
    let mut stage = Stage::new(expected, cluster, walkeep);
    make_shop(&stage.cluster);
    let folder = stage.desk().dir("pgbackrest");
    for name in ["repo", "log", "lock", "spool"] {
        stage.desk().dir(format!("pgbackrest/{name}"));
    }
    let (at, data, sockets) = (folder.display(), stage.cluster.data().display(), stage.cluster.socket_dir());
    let conf = format!(
        "[global]\nrepo1-path={at}/repo\nrepo1-retention-full=2\nlog-path={at}/log\nlock-path={at}/lock\nspool-path={at}/spool\nstart-fast=y\n\
         [main]\npg1-path={data}\npg1-socket-path={}\npg1-port={}\npg1-user=postgres\n",
        sockets.display(),
        stage.cluster.port()
    );
    let conf = stage.desk().write("pgbackrest/conf", conf, 0o600);
    let named = format!("pgbackrest --config={} --stanza=main", conf.display());
    stage.means(
        "pgbackrest --stanza=main",
        &named,
        "the story has a configuration of its own, and the server's environment does not name it",
    );
    process::run(user::command("sh").args(["-c", &format!("{named} stanza-create")])).unwrap();
    stage.cluster.sql(&format!("ALTER SYSTEM SET archive_command = '{named} archive-push %p'"));
    stage.cluster.reload();
    Some(stage)
}

#[test]
fn from_pgbackrest_and_back() {
    let Some(mut stage) = archived_by_pgbackrest(&[], &SWITCH) else { return };
    let grants = stage.block(MIGRATION, BESIDE, "sql", 1);
    stage.cluster.sql(&grants);
    stage.walkeep.connection = stage.walkeep.connection.replace("user=postgres", "user=walkeep");
    stage.walkeep.write_config();
    stage.open(SWITCH[0]);
    stage.run("psql -c \"ALTER SYSTEM SET max_slot_wal_keep_size");
    stage.run("psql -c 'SHOW max_wal_senders'").says("max_replication_slots");
    stage.open(SWITCH[1]);
    stage.run("walkeep init");
    stage.run("systemctl start walkeep");
    let beside = stage.run("walkeep check");
    beside.never_says("FAIL").as_told("warn  archiving  archive_command is not Walkeep's: ...").says("archive-push %p");
    stage.open(SWITCH[2]);
    stage.run("walkeep backup --label first");
    stage.run("walkeep plan").says("\"first\"");
    stage.run("walkeep drill").as_told("Drill ... passed");
    stage.run("walkeep drills --newest").as_told("RTO 2.2 s");

    stage.open(SWITCH[3]);
    stage.run("psql -c \"ALTER SYSTEM SET archive_command");
    stage.cluster.archive_now();
    stage.run("psql -c 'SELECT archived_count");
    assert_eq!(stage.cluster.sql("SELECT failed_count FROM pg_stat_archiver"), "0");

    stage.open(SWITCH[4]);
    stage.run("psql -c \"ALTER SYSTEM SET archive_command");
    let checked = stage.run("walkeep check");
    checked.never_says("FAIL").never_says("warn ").says("ok    archiving");
    stage.run("walkeep backup");
    stage.run("walkeep drill").as_told("passed");

    stage.open(SWITCH[5]);
    stage.run("psql -c \"ALTER SYSTEM SET archive_command");
    stage.run("pgbackrest --stanza=main check");
    stage.run("pgbackrest --stanza=main --type=full backup");
    stage.run("systemctl disable --now walkeep");
    stage.run("psql -c \"SELECT pg_drop_replication_slot('walkeep')\"");
    assert_eq!(stage.cluster.sql("SELECT count(*) FROM pg_replication_slots"), "0");
    // What Walkeep stored stays restorable.
    stage.walkeep.ok(&["plan"]);

    stage.cluster.sql("SELECT pg_create_physical_replication_slot('barman')");
    stage.open(SWITCH[6]);
    stage.run("psql -c \"SELECT pg_drop_replication_slot('barman')\"");
    stage.end();
}

#[test]
fn a_gap_is_filled_from_the_old_archive() {
    let settings = [("max_slot_wal_keep_size", "2MB"), ("max_wal_size", "4MB"), ("min_wal_size", "2MB")];
    let Some(mut stage) = archived_by_pgbackrest(&settings, &GAP) else { return };
    stage.walkeep.ok(&["init"]);
    stage.start_agent();
    stage.walkeep.ok(&["backup"]);
    stage.settle();
    stage.stop_agent();
    let lost = "SELECT count(*) FROM pg_replication_slots WHERE wal_status = 'lost'";
    wait_until("the slot is lost", PATIENCE, || {
        stage.cluster.archive_now();
        stage.cluster.sql("CHECKPOINT");
        stage.cluster.sql(lost) == "1"
    });
    stage.start_agent();
    stage.settle();

    stage.open(GAP[0]);
    let refused = stage.ends(3, "walkeep plan", "WAL is missing");
    let (_, missing) = refused.output.stderr.split_once("WAL is missing from ").unwrap_or_else(|| panic!("{}", refused.output.stderr));
    let words = missing.split(|character: char| !character.is_ascii_hexdigit()).filter(|word| word.len() == 24).take(2);
    let [first, last] = words.map(|name| u64::from_str_radix(&name[8..], 16).unwrap()).collect::<Vec<_>>()[..] else { panic!("{missing}") };
    let names: Vec<_> = (first..=last).map(|number| format!("00000001{number:016X}")).collect();
    let documented = "000000010000000000000010 000000010000000000000011 000000010000000000000012";
    stage.means(documented, names.join(" "), "the segments that the plan names");
    stage.run("mkdir -p /srv/old/global");
    stage.run("cp /var/lib/postgresql");
    let pushed = stage.run("for name in");
    pushed.as_told("000000010000000000000010: stored, 496662 bytes");
    assert_eq!(pushed.output.stdout.matches(": stored, ").count(), names.len(), "{}", pushed.output.stdout);
    let after = stage.run("walkeep status && walkeep plan");
    after.as_told("closed gap: timeline 1 from 0/1005CFE0 to 0/13000000").says("Every object this needs is in the repository");
    // The same once more; and one that differs.
    let segment = stage.srv("old/pg_wal").join(&names[0]);
    let words = ["wal", "push", segment.to_str().unwrap()];
    stage.promised(MIGRATION, GAP[0].1, "was stored already, with the same content", &stage.walkeep.ok(&words).stdout);
    let mut bytes = std::fs::read(&segment).unwrap();
    bytes[200] ^= 1;
    std::fs::write(&segment, bytes).unwrap();
    let differs = stage.walkeep.run(&words).expect_code(1).stderr;
    stage.promised(MIGRATION, GAP[0].1, "already in the repository with other content", &differs);
    stage.run("rm -r /srv/old");
    stage.end();
}
