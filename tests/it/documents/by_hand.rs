//! A restore without Walkeep: the steps of packaging/by-hand.md, and those of README.

use std::fs;

use walkeep_tests::keys::is_everything_encrypted;
use walkeep_tests::postgres::default_version;
use walkeep_tests::{Cluster, Keys, Pair, Repository, S3Server, Walkeep, cache, user, wait_until};

use super::stage::{Place, Stage, drop_templates, server};
use super::text::{BY_HAND, README};
use crate::story::{self, PATIENCE, Restored, listing};
use crate::support::joined_parts;

const TITLE: &str = "A restore by hand, without Walkeep";
const HEADING: &str = "Recover by hand, without Walkeep";

pub const PAGE: [Place; 5] = [(BY_HAND, TITLE, 1), (BY_HAND, TITLE, 2), (BY_HAND, TITLE, 3), (BY_HAND, TITLE, 4), (BY_HAND, TITLE, 5)];
pub const README_SAYS: [Place; 4] = [(README, HEADING, 1), (README, HEADING, 2), (README, HEADING, 3), (README, HEADING, 4)];

#[test]
fn the_page_of_a_plain_repository() {
    the_page(false);
}

#[test]
fn the_page_of_an_encrypted_repository() {
    the_page(true);
}

fn the_page(encrypted: bool) {
    let pair = Pair::generate();
    let (s3, cluster) = (S3Server::get(), server(&[]));
    let bucket = s3.bucket();
    let repository = Repository::S3 { endpoint: s3.endpoint(), bucket: bucket.name.clone(), prefix: "production".to_owned(), ca: None };
    let mut walkeep = Walkeep::new(&cluster, repository);
    walkeep.keys = encrypted.then(|| Keys::to_write(&[&pair]));
    walkeep.write_config();
    let mut stage = Stage::archiving(&PAGE, cluster, walkeep);
    let backup = story::backup(&stage.walkeep);
    stage.in_shop("INSERT INTO orders SELECT i, 'late' FROM generate_series(1001, 1234) i");
    let at = stage.now();
    stage.in_shop("DELETE FROM orders");
    stage.settle();
    stage.cluster.kill9();
    stage.kill_agent();

    stage.means("s3://BUCKET/PREFIX", format!("s3://{}/production", bucket.name), "the bucket and prefix of the story");
    stage.means("20261121T034712Z-0000000002000028", &backup, "the backup that the line before it names");
    stage.means("2026-11-20 14:29:00+01", &at, "the moment before the accident");
    stage.open(PAGE[0]);
    stage.run("aws s3 sync");
    let system = stage.system_identifier();
    stage.run("ls /srv/copy/main").says("cluster.json").says(&system);
    stage.means("ROOT", stage.srv("copy/main").join(system).display().to_string(), "as the first step says");
    stage.means("BACKUP", &backup, "the backup that the second step names");
    stage.means(
        "identity.txt",
        stage.desk().write("identity.txt", &pair.identity, 0o600).display().to_string(),
        "where the secret is here",
    );
    stage.open(PAGE[1]);
    stage.run("./by-hand.py").says(&backup);
    stage.open(PAGE[2]);
    match encrypted {
        true => drop(stage.ends(200, "./by-hand.py", "this one is encrypted: the next line is for it")),
        false => {
            stage.run("./by-hand.py");
            fs::rename(stage.srv("restored"), stage.srv("first")).unwrap();
        }
    }
    stage.run("./by-hand.py ROOT restore BACKUP");
    if !encrypted {
        // Both lines do the same.
        assert_eq!(names(&stage.srv("first")), names(&stage.srv("restored")));
    }
    stage.open(PAGE[3]);
    stage.run("echo \"recovery_target_time");
    stage.run("echo \"recovery_target_action");
    stage.open(PAGE[4]);
    stage.run("pg_ctl -D /srv/restored -l /srv/restored.log start");
    stage.wait_writable();
    assert_eq!(stage.in_shop("SELECT count(*) FROM orders"), "1234", "it stopped before the deletion");
    assert_eq!(stage.cluster.sql("SHOW archive_mode"), "off");
    let log = fs::read_to_string(stage.srv("restored.log")).unwrap();
    assert!(log.contains("archive recovery complete"), "{log}");
    stage.end();
}

fn names(folder: &std::path::Path) -> Vec<String> {
    listing(folder).into_iter().filter_map(|line| line.split(' ').next().map(str::to_owned)).collect()
}

/// On a backup that is made of two.
#[test]
fn what_the_readme_has() {
    let cluster = server(&[]);
    drop_templates(&cluster);
    cluster.sql("CREATE TABLE orders AS SELECT i AS id, md5(i::text) AS customer FROM generate_series(1, 20000) i");
    let walkeep = Walkeep::local(&cluster);
    let mut stage = Stage::new(&README_SAYS, cluster, walkeep);
    stage.walkeep.ok(&["init"]);
    stage.start_agent();
    stage.archive();
    stage.walkeep.ok(&["backup"]);
    stage.cluster.sql("UPDATE orders SET customer = 'other' WHERE id % 5000 = 1");
    let backup = story::backup(&stage.walkeep);
    stage.cluster.sql("INSERT INTO orders SELECT i, 'late' FROM generate_series(20001, 21234) i");
    stage.settle();
    let whole = stage.cluster.switch_wal();
    let kept = stage.desk().join("whole");
    fs::copy(stage.cluster.pg_wal().join(&whole), &kept).unwrap();
    stage.settle();
    stage.cluster.sql("INSERT INTO orders VALUES (30000, 'in parts')");
    let unfinished = stage.cluster.sql("SELECT pg_walfile_name(pg_current_wal_insert_lsn())");
    stage.stop_agent();
    let system = stage.system_identifier();
    let mut root = stage.walkeep.local_repository().join("main").join(&system);
    if let Some(keys) = stage.walkeep.keys.as_ref().filter(|_| is_everything_encrypted()) {
        // First what it says of an encrypted repository, in a copy.
        let copy = stage.desk().dir("copy").join(&system);
        walkeep_tests::walkeep::run(user::command("cp").arg("-a").arg(&root).arg(&copy)).expect_code(0);
        stage.desk().write("work/identity.txt", &keys.identities[0], 0o600);
        root = copy;
        stage.walkeep.environment.push(("root".to_owned(), root.display().to_string()));
        for span in stage.spans(README, HEADING).iter().filter(|span| span.starts_with("find ")) {
            stage.inline(README, HEADING, span);
        }
        stage.walkeep.environment.pop();
    }
    stage.walkeep.environment.extend([("root".to_owned(), root.display().to_string()), ("id".to_owned(), backup.clone())]);
    let named = |name: &str| format!("{}/{}", &name[..8], &name[8..16]);
    stage.means("00000001/00000000/000000010000000000000004", format!("{}/{whole}", named(&whole)), "a segment of the story's");
    stage.means("000000010000000000000004", &whole, "a segment of the story's");
    stage.means("00000001/00000000/000000010000000000000005", format!("{}/{unfinished}", named(&unfinished)), "the unfinished segment");
    stage.means("000000010000000000000005", &unfinished, "the unfinished segment of the story's");

    stage.open(README_SAYS[0]);
    stage.run("f=$root/wal");
    stage.run("zstd -d");
    assert!(fs::read(stage.work().join(&whole)).unwrap() == fs::read(&kept).unwrap());
    let described = stage.run("tail -c +9").json();
    assert_eq!(described["name"], whole);
    match cache().join("b3sum/b3sum").exists() {
        true => drop(stage.run("b3sum").says(described["blake3"].as_str().unwrap())),
        false => stage.skip("b3sum", "the package b3sum could not be had"),
    }
    stage.open(README_SAYS[1]);
    stage.run("parts=$root/wal");
    stage.run("for name in");
    stage.run("truncate -s 16777216");
    let joined = fs::read(stage.work().join(&unfinished)).unwrap();
    let parts = joined_parts(&root.join("wal").join(named(&unfinished)).join(format!("{unfinished}.parts")));
    let end = usize::try_from(parts.iter().map(|(_, end, _)| *end).max().unwrap()).unwrap();
    let written = fs::read(stage.cluster.pg_wal().join(&unfinished)).unwrap();
    assert!(end > 0 && joined.len() == 1 << 20 && joined[..end] == written[..end]);

    stage.open(README_SAYS[2]);
    stage.run("(cd \"$root/backups/$id\"");
    while stage.run_next() {}
    let by_hand = stage.work().join("restored");
    let restored = Restored::by(&stage.walkeep, default_version(), &["--backup", &backup]);
    let mut compared = 0;
    for name in names(&by_hand) {
        let file = by_hand.join(&name);
        // What a restore writes itself.
        if !file.is_file() || name.ends_with(".conf") || ["tablespace_map", "backup_manifest"].contains(&name.as_str()) {
            continue;
        }
        assert!(fs::read(&file).unwrap() == fs::read(restored.cluster.data().join(&name)).unwrap(), "{name}");
        compared += 1;
    }
    assert!(compared > 250, "{compared} files");

    // The server comes up with the script as restore_command, and has everything but the unfinished segment.
    let script = stage
        .block(README, HEADING, "sh", 4)
        .replace(&stage.walkeep.local_repository().join("main").join(&system).display().to_string(), &root.display().to_string());
    stage.ran(README_SAYS[3]);
    let script = stage.desk().write("by-hand", script, 0o755);
    fs::write(by_hand.join("recovery.signal"), "").unwrap();
    user::give(&by_hand.join("recovery.signal"));
    let server = Cluster::adopt(default_version(), by_hand);
    server.write_conf("archive_mode", "off");
    server.write_conf("restore_command", &format!("{} %f %p", script.display()));
    server.start();
    wait_until("it writes", PATIENCE, || server.sql("SELECT pg_is_in_recovery()") == "f");
    assert_eq!(server.sql("SELECT count(*), max(id) FROM orders"), "21234|21234");
    drop(server);
    stage.end();
}
