//! Backups read from the data directory: under load, of standbys, with damage, beside what is no part of them.

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use walkeep_tests::postgres::{bin, client, versions};
use walkeep_tests::process::Process;
use walkeep_tests::walkeep::run;
use walkeep_tests::{Cluster, Scratch, Stop, Walkeep, user, wait_until};

use crate::story::{self, PATIENCE, Restored, Story, backups};
use crate::support::SERVER_GONE;

const VERSION: u32 = 15;
const PAGE: u64 = 8192;

/// Takes a backup that must be one of the data directory.
#[track_caller]
fn local(walkeep: &Walkeep, args: &[&str]) -> serde_json::Value {
    let output = walkeep.ok(&[&["backup", "--method", "local", "--json"], args].concat());
    let record = output.json();
    assert_eq!(record["method"], "data_directory");
    record
}

/// All of a server's databases, as text.
#[track_caller]
fn dump(cluster: &Cluster) -> String {
    let mut command = user::command(client(cluster.version(), "pg_dumpall"));
    let port = cluster.port().to_string();
    command.args(["-h", cluster.socket_dir().to_str().unwrap(), "-p", &port, "-U", "postgres"]);
    let text = run(&mut command).expect_code(0).stdout;
    // pg_dump puts another key into each script.
    text.lines().filter(|line| !line.contains("restrict ")).map(|line| format!("{line}\n")).collect()
}

/// PostgreSQL's own look at every table and index.
#[track_caller]
fn amcheck(cluster: &Cluster) {
    if cluster.version() < 14 {
        return;
    }
    let mut command = user::command(client(cluster.version(), "pg_amcheck"));
    let port = cluster.port().to_string();
    command.args(["-h", cluster.socket_dir().to_str().unwrap(), "-p", &port, "-U", "postgres", "--all", "--install-missing"]);
    run(&mut command).expect_code(0);
}

fn under_load(version: u32) {
    if !versions().contains(&version) {
        return;
    }
    let story = Story::begin(story::builder(version).conf("autovacuum", "on"), None);
    let places = Scratch::new();
    story.cluster.pgbench_init(2);
    story.cluster.sql("CREATE UNLOGGED TABLE scratchpad AS SELECT generate_series(1, 1000) AS i");
    story.insert(20);
    let done = std::sync::atomic::AtomicBool::new(false);
    let rounds = std::thread::scope(|scope| {
        let ddl = scope.spawn(|| {
            let mut round = 0_u32;
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                let place = places.dir(format!("space-{round}"));
                for statement in [
                    format!("CREATE TABLE made_{round} AS SELECT i, md5(i::text) AS m FROM generate_series(1, 2000) AS i"),
                    format!("CREATE INDEX ON made_{round} (m)"),
                    format!("CREATE TABLESPACE space_{round} LOCATION '{}'", place.display()),
                    format!("CREATE TABLE apart_{round} TABLESPACE space_{round} AS SELECT generate_series(1, 500) AS i"),
                    format!("CREATE DATABASE base_{round}"),
                    "VACUUM FULL pgbench_branches".to_owned(),
                    format!("DROP TABLE apart_{round}"),
                    format!("DROP TABLESPACE space_{round}"),
                    format!("DROP DATABASE base_{round}"),
                    format!("ALTER TABLE made_{round} ADD COLUMN later int DEFAULT 7"),
                    format!("DROP TABLE IF EXISTS made_{}", round / 2),
                    "CREATE TEMP TABLE brief AS SELECT generate_series(1, 5000) AS i".to_owned(),
                ] {
                    story.cluster.sql(&statement);
                }
                round += 1;
            }
            round
        });
        let load = story.cluster.pgbench_spawn(&["-c", "2", "-T", "600"]);
        // 30 MB and more take some seconds. Whatever becomes of them, the statements end.
        let taken: Vec<_> = (0..3).map(|_| story.walkeep.run(&["backup", "--method", "local", "--max-rate", "20000"])).collect();
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        taken.into_iter().for_each(|output| drop(output.expect_code(0)));
        drop(load);
        ddl.join().unwrap()
    });
    assert!(rounds > 1, "{rounds} rounds of DDL");
    wait_until("pgbench is gone", PATIENCE, || {
        story.cluster.sql("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgbench'") == "0"
    });
    // It comes back empty.
    story.cluster.sql("TRUNCATE scratchpad");
    story.settle();
    let original = dump(&story.cluster);
    for backup in backups(&story.walkeep) {
        // No tablespace is left; those that replay makes and drops again it makes where nothing lies any more.
        let restored = story.restore(&["--backup", &backup]);
        restored.start();
        let copy = dump(&restored.cluster);
        let differs = original.lines().zip(copy.lines()).find(|(one, other)| one != other);
        assert!(original == copy, "PostgreSQL {version}, {backup}: {differs:?}");
        amcheck(&restored.cluster);
    }
    story.end(&[]);
}

macro_rules! versions {
    ($($name:ident $version:literal)*) => {$(
        #[test]
        fn $name() {
            under_load($version);
        }
    )*};
}

versions! {
    under_load_13 13
    under_load_14 14
    under_load_15 15
    under_load_16 16
    under_load_17 17
    under_load_18 18
}

/// Every file below a folder, with its bytes; folders too.
fn content(folder: &Path) -> BTreeMap<String, Option<Vec<u8>>> {
    let lines = story::listing(folder);
    let paths = lines.iter().filter_map(|line| line.split(' ').next().filter(|path| !path.is_empty()));
    paths.map(|path| (path.to_owned(), std::fs::read(folder.join(path)).ok())).collect()
}

#[test]
fn both_methods_restore_the_same_bytes() {
    for version in [13, 15, 18].into_iter().filter(|version| versions().contains(version)) {
        let story = Story::local(version);
        story.cluster.sql("CREATE UNLOGGED TABLE u AS SELECT generate_series(1, 1000) AS i");
        story.cluster.sql("CREATE TABLE v AS SELECT generate_series(1, 10000) AS i");
        story.cluster.sql("VACUUM FREEZE");
        let mut session = story.cluster.session();
        session.send("CREATE TEMP TABLE brief AS SELECT generate_series(1, 5000) AS i;");
        wait_until("there is a temporary table", PATIENCE, || {
            story.cluster.sql("SELECT count(*) FROM pg_class WHERE relname = 'brief' AND relpersistence = 't'") == "1"
        });
        story.insert(10);
        let by_wire = story.walkeep.ok(&["backup", "--method", "protocol", "--json"]).json();
        let by_hand = local(&story.walkeep, &[]);
        assert_eq!(by_wire["method"], "base_backup");
        let [wire, hand] = [by_wire, by_hand].map(|record| {
            let restored = story.restore(&["--backup", record["id"].as_str().unwrap(), "--immediate"]);
            content(restored.cluster.data())
        });
        let only = |one: &BTreeMap<String, _>, other: &BTreeMap<String, _>| {
            // The server sends a map without tablespaces too, an empty one.
            one.keys().filter(|name| !other.contains_key(*name) && *name != "tablespace_map").cloned().collect::<Vec<_>>()
        };
        assert_eq!((only(&wire, &hand), only(&hand, &wire)), (vec![], vec![]), "PostgreSQL {version}");
        // Between the two backups the server wrote its checkpoints, and what they flushed.
        let changed = ["backup_manifest", "backup_label", "tablespace_map", "postgresql.auto.conf", "global/pg_control"];
        let of_server = |name: &str| {
            changed.contains(&name)
                || ["pg_xact/", "pg_commit_ts/", "pg_logical/", "pg_stat/"].iter().any(|folder| name.starts_with(folder))
        };
        for (name, bytes) in wire.iter().filter(|(name, _)| !of_server(name)) {
            let differ = bytes.as_ref().map(Vec::len) != hand[name].as_ref().map(Vec::len) || *bytes != hand[name];
            // The names snapshot and hint bits: catalogs that are read are written.
            assert!(!differ || name.starts_with("base/") || name.starts_with("global/"), "PostgreSQL {version}: {name}");
        }
        assert!(!wire.keys().any(|name| name.contains("/t")), "temporary relations are left out");
        drop(session);
        story.end(&[]);
    }
}

#[test]
fn unlogged_tables_come_back_empty_and_temporary_ones_not_at_all() {
    let story = Story::local(VERSION);
    story.cluster.sql("CREATE UNLOGGED TABLE u (i int PRIMARY KEY)");
    story.cluster.sql("INSERT INTO u SELECT generate_series(1, 1000)");
    story.cluster.sql("CHECKPOINT");
    let path = story.cluster.sql("SELECT pg_relation_filepath('u')");
    story.insert(10);
    local(&story.walkeep, &[]);
    let restored = story.restore(&["--immediate"]);
    assert!(!restored.cluster.data().join(&path).exists() && restored.cluster.data().join(format!("{path}_init")).exists());
    restored.start();
    assert_eq!(restored.cluster.sql("SELECT count(*) FROM u"), "0");
    assert_eq!(restored.rows(), 10);
    assert_eq!(story.cluster.sql("SELECT count(*) FROM u"), "1000");
    story.end(&[]);
}

/// Changes a byte in a page on the disk, which the server does not read again meanwhile.
fn damage(cluster: &Cluster, table: &str, block: u64) -> String {
    cluster.sql("CHECKPOINT");
    let path = cluster.sql(&format!("SELECT pg_relation_filepath('{table}')"));
    let file = std::fs::File::options().read(true).write(true).open(cluster.data().join(&path)).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, block * PAGE + 5000).unwrap();
    file.write_all_at(&[byte[0] ^ 0xFF], block * PAGE + 5000).unwrap();
    path
}

#[test]
fn a_damaged_page_is_named_and_the_backup_kept() {
    for version in [13, 15, 18].into_iter().filter(|version| versions().contains(version)) {
        let story = Story::local(version);
        story.cluster.sql("CREATE TABLE hurt AS SELECT i, md5(i::text) FROM generate_series(1, 5000) AS i");
        story.insert(10);
        local(&story.walkeep, &[]);
        let path = damage(&story.cluster, "hurt", 3);
        for method in ["local", "protocol"] {
            let output = story.walkeep.run(&["backup", "--full", "--method", method, "--json"]).expect_code(4);
            let record = output.json();
            let expected = serde_json::json!({"pages": 1, "named": [{"file": path, "block": 3, "relation": "postgres.public.hurt"}]});
            assert_eq!(record["damage"], expected, "PostgreSQL {version}, {method}: {}", output.stderr);
            assert!(output.stderr.contains(&format!("block 3 of {path} (postgres.public.hurt)")), "{}", output.stderr);
            assert!(output.stderr.contains("The backup is kept"), "{}", output.stderr);
            assert_eq!(backups(&story.walkeep).last().map(String::as_str), record["id"].as_str());
            let shown = story.walkeep.ok(&["backups"]).stdout;
            assert!(shown.contains(&format!("{}: 1 page", record["id"].as_str().unwrap())), "{shown}");
            // What is whole of it can be had.
            let restored = story.restore(&["--backup", record["id"].as_str().unwrap()]);
            assert_eq!(restored.start().rows(), 10);
            let read = restored.cluster.try_sql("SELECT count(*) FROM hurt").unwrap_err().to_string();
            assert!(read.contains("invalid page in block 3"), "{read}");
        }
        story.end(&[]);
    }
}

#[test]
fn a_file_that_cannot_be_read_ends_the_backup_and_is_named() {
    let mut story = Story::local(VERSION);
    story.cluster.sql("CREATE TABLE hurt AS SELECT i, md5(i::text) FROM generate_series(1, 5000) AS i");
    story.cluster.sql("CHECKPOINT");
    let path = story.cluster.sql("SELECT pg_relation_filepath('hurt')");
    let whole = story.cluster.data().join(&path);
    let trace = story.walkeep.scratch().join("trace");
    let strace = ["strace", "-f", "-qq", "-o", trace.to_str().unwrap(), "-P", whole.to_str().unwrap(), "-e", "inject=pread64:error=EIO"];
    story.walkeep.environment.push(("WALKEEP_TRACEABLE".to_owned(), "1".to_owned()));
    story.walkeep.run_by = strace.map(str::to_owned).to_vec();
    let output = story.walkeep.run(&["backup", "--method", "local"]).expect_code(1);
    assert!(output.stderr.contains(&path) && output.stderr.contains("Input/output error"), "{}", output.stderr);
    story.walkeep.run_by = Vec::new();
    assert_eq!(backups(&story.walkeep), [""; 0]);
    let open = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'walkeep backup'";
    wait_until("the server is out of its backup mode", PATIENCE, || story.cluster.sql(open) == "0");
    local(&story.walkeep, &[]);
    story.end(&[]);
}

#[test]
fn a_lost_session_ends_the_backup_at_once() {
    let story = Story::local(VERSION);
    story.insert(10);
    let log = story.walkeep.scratch().join("backup.log");
    let mut backup = Process::start(story.walkeep.command(&["backup", "--method", "local", "--max-rate", "1000"]), &log).unwrap();
    let started = "SELECT pid FROM pg_stat_activity WHERE application_name = 'walkeep backup'";
    let mut pid = String::new();
    wait_until("the backup runs", PATIENCE, || {
        pid = story.cluster.sql(started);
        assert!(backup.ended().is_none(), "{}", backup.log());
        !pid.is_empty()
    });
    story.cluster.sql(&format!("SELECT pg_terminate_backend({pid})"));
    // Of 20 s that it would go on.
    let status = backup.wait(Duration::from_secs(5)).expect("it ends at once");
    assert_eq!(status.code(), Some(1), "{}", backup.log());
    assert!(backup.log().contains("the connection to the server was lost"), "{}", backup.log());
    assert_eq!(backups(&story.walkeep), [""; 0]);
    story.end(&[]);
}

#[test]
fn no_other_directory_is_read() {
    let mut story = Story::local(VERSION);
    story.insert(10);
    let standby = story.cluster.standby();
    story.cluster.wait_replayed(&standby);
    let copy = story.cluster.copy();
    let fresh = Cluster::builder().version(VERSION).fresh().start();
    let places = [
        (standby.data().to_owned(), "is another directory than that of the server"),
        (copy.data().to_owned(), "is another directory than that of the server"),
        (fresh.data().to_owned(), "belongs to the cluster with system identifier"),
        (story.walkeep.scratch().join("nowhere"), "No such file or directory"),
        (story.walkeep.scratch().path().to_owned(), "open global/pg_control"),
    ];
    for (place, says) in places {
        story.walkeep.data_directory = Some(place);
        story.walkeep.write_config();
        let refused = story.walkeep.run(&["backup", "--method", "local"]).expect_code(1);
        assert!(refused.stderr.contains(says), "{says}: {}", refused.stderr);
        let output = story.walkeep.ok(&["backup", "--json"]);
        assert_eq!(output.json()["method"], "base_backup");
        assert!(output.stderr.contains("BASE_BACKUP") && output.stderr.contains(says), "{}", output.stderr);
    }
    // Who may not see where the server's directory is, is told by the lock file and by pg_control.
    story.cluster.sql("CREATE ROLE modest LOGIN REPLICATION");
    story.cluster.sql("GRANT EXECUTE ON FUNCTION pg_backup_start, pg_backup_stop TO modest");
    story.walkeep.connection = story.cluster.connection().replace("user=postgres", "user=modest");
    for (place, says) in [(standby.data(), "has port"), (copy.data(), "no server runs in")] {
        story.walkeep.data_directory = Some(place.to_owned());
        story.walkeep.write_config();
        let refused = story.walkeep.run(&["backup", "--method", "local"]).expect_code(1);
        assert!(refused.stderr.contains(says), "{says}: {}", refused.stderr);
    }
    // A copy that was made with the lock file.
    std::fs::copy(story.cluster.data().join("postmaster.pid"), copy.data().join("postmaster.pid")).unwrap();
    user::give(&copy.data().join("postmaster.pid"));
    story.cluster.sql("CHECKPOINT");
    let refused = story.walkeep.run(&["backup", "--method", "local"]).expect_code(1);
    assert!(refused.stderr.contains("it is a copy of the server's data directory"), "{}", refused.stderr);
    std::fs::remove_file(copy.data().join("postmaster.pid")).unwrap();
    story.walkeep.data_directory = Some(story.cluster.data().to_owned());
    story.walkeep.write_config();
    local(&story.walkeep, &[]);
    story.end(&[]);
}

#[test]
fn tablespaces_of_all_kinds_are_read() {
    for version in [13, 15, 18].into_iter().filter(|version| versions().contains(version)) {
        let mut builder = story::builder(version);
        if version >= 15 {
            builder = builder.conf("allow_in_place_tablespaces", "on");
        }
        let story = Story::begin(builder, None);
        let places = Scratch::new();
        let old = places.dir("with blank");
        story.cluster.sql(&format!("CREATE TABLESPACE apart LOCATION '{}'", old.display()));
        story.cluster.sql("CREATE TABLE far TABLESPACE apart AS SELECT generate_series(1, 1000) AS i");
        if version >= 15 {
            story.cluster.sql("CREATE TABLESPACE within LOCATION ''");
            story.cluster.sql("CREATE TABLE near TABLESPACE within AS SELECT generate_series(1, 500) AS i");
        }
        // Another server's folder beside ours is not ours.
        std::fs::create_dir(old.join("PG_9_000000000")).unwrap();
        std::fs::write(old.join("PG_9_000000000/secret"), "secret").unwrap();
        story.insert(10);
        let record = local(&story.walkeep, &[]);
        assert_eq!(record["tablespaces"][0]["path"], old.to_str().unwrap());
        assert!(record["tablespaces"][0]["bytes"].as_u64().unwrap() >= 40_000, "{record}");
        story.cluster.sql("INSERT INTO far SELECT generate_series(1001, 1500)");
        story.settle();
        let mapping = format!("{}={}", old.display(), places.join("new").display());
        let restored = story.restore(&["--tablespace", &mapping]);
        assert!(!places.join("new/PG_9_000000000").exists());
        restored.start();
        assert_eq!(restored.cluster.sql("SELECT count(*) FROM far"), "1500", "PostgreSQL {version}");
        if version >= 15 {
            assert_eq!(restored.cluster.sql("SELECT count(*) FROM near"), "500", "PostgreSQL {version}");
        }
        story.end(&[]);
    }
}

/// A standby with Walkeep that reads its data directory, beside a primary whose agent runs.
fn with_standby() -> (Story, Cluster) {
    let mut story = Story::local(VERSION);
    story.insert(10);
    let standby = story.cluster.standby();
    story.cluster.wait_replayed(&standby);
    story.walkeep.connection = standby.connection();
    story.walkeep.data_directory = Some(standby.data().to_owned());
    story.walkeep.write_config();
    (story, standby)
}

#[test]
fn a_standby_is_read_and_no_segment_need_end() {
    let (story, standby) = with_standby();
    story.insert(5);
    story.cluster.wait_replayed(&standby);
    let segment = "SELECT pg_walfile_name(pg_current_wal_insert_lsn())";
    let before = story.cluster.sql(segment);
    let record = local(&story.walkeep, &["--wal-timeout", "20s"]);
    assert_eq!(record["from_standby"], true);
    assert_eq!(story.cluster.sql(segment), before, "the primary's segment was not ended for it");
    story.insert(10);
    story.settle();
    let restored = story.restore(&[]);
    assert!(!restored.cluster.data().join("standby.signal").exists());
    assert_eq!(restored.start().rows(), 25);
    assert_eq!(standby.sql("SELECT pg_is_in_recovery()"), "t");
    story.end(&[]);
}

#[test]
fn a_promotion_meanwhile_gives_no_backup() {
    let (story, standby) = with_standby();
    let log = story.walkeep.scratch().join("standby-backup.log");
    let mut backup = Process::start(story.walkeep.command(&["backup", "--method", "local", "--max-rate", "6000"]), &log).unwrap();
    let started = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'walkeep backup'";
    wait_until("the backup runs", PATIENCE, || {
        assert!(backup.ended().is_none(), "{}", backup.log());
        standby.sql(started) == "1"
    });
    standby.promote();
    let status = backup.wait(PATIENCE).unwrap();
    assert_eq!(status.code(), Some(1), "{}", backup.log());
    assert!(backup.log().contains("the standby was promoted during online backup"), "{}", backup.log());
    assert_eq!(backups(&story.walkeep), [""; 0]);
    story.end(&[]);
}

#[test]
fn configuration_outside_the_data_directory_comes_along() {
    let cluster = story::builder(VERSION).create();
    let etc = Scratch::new();
    let conf = etc.dir("etc");
    // As Debian lays a cluster out.
    for name in ["postgresql.conf", "pg_hba.conf", "pg_ident.conf"] {
        std::fs::copy(cluster.data().join(name), conf.join(name)).unwrap();
        std::fs::remove_file(cluster.data().join(name)).unwrap();
    }
    etc.dir("etc/conf.d");
    etc.write("etc/conf.d/own.conf", "work_mem = '7MB'\n", 0o644);
    let lines = [
        format!("data_directory = '{}'", cluster.data().display()),
        format!("hba_file = '{}'", conf.join("pg_hba.conf").display()),
        format!("ident_file = '{}'", conf.join("pg_ident.conf").display()),
        // The server takes relative names from where the link is.
        format!("include_dir = '{}'", conf.join("conf.d").display()),
    ];
    let text = std::fs::read_to_string(conf.join("postgresql.conf")).unwrap() + "\n" + &lines.join("\n") + "\n";
    std::fs::write(conf.join("postgresql.conf"), text).unwrap();
    std::os::unix::fs::symlink(conf.join("postgresql.conf"), cluster.data().join("postgresql.conf")).unwrap();
    run(std::process::Command::new("chown").args(["-R", &user::account().name]).arg(etc.path())).expect_code(0);
    cluster.start();
    let story = Story::on(cluster);
    story.insert(10);
    local(&story.walkeep, &[]);
    let to = etc.join("restored");
    let output = story.walkeep.ok(&["restore", "--to", to.to_str().unwrap()]);
    let kept = to.join("walkeep_config").join(conf.strip_prefix("/").unwrap());
    for name in ["pg_hba.conf", "pg_ident.conf", "conf.d/own.conf"] {
        assert_eq!(std::fs::read(kept.join(name)).unwrap(), std::fs::read(conf.join(name)).unwrap(), "{name}");
    }
    assert!(!to.join("postgresql.conf").exists());
    let config = to.join("walkeep_config").join(story.cluster.data().join("postgresql.conf").strip_prefix("/").unwrap());
    assert!(output.stdout.contains(&format!("config_file={}", config.display())), "{}", output.stdout);
    story.end(&[]);
}

#[test]
fn a_hundred_thousand_files_are_walked_in_little_memory() {
    let story = Story::local(VERSION);
    let base = story.cluster.data().join("base/5");
    for number in 0..100_000 {
        std::fs::write(base.join(format!("{}", 900_000_000 + number)), "").unwrap();
    }
    let report = story.walkeep.scratch().join("time");
    let mut walkeep = story.walkeep;
    walkeep.run_by = ["/usr/bin/time", "-f", "%M %e", "-o", report.to_str().unwrap()].map(str::to_owned).to_vec();
    let record = local(&walkeep, &[]);
    assert!(record["files"].as_u64().unwrap() > 100_000, "{record}");
    let text = std::fs::read_to_string(&report).unwrap();
    let peak_kb: u64 = text.split_whitespace().next().unwrap().parse().unwrap();
    eprintln!("100,000 files: kB and seconds {}", text.trim());
    assert!(peak_kb < 300 << 10, "{peak_kb} kB");
    assert!(bin(VERSION).is_some());
}

#[test]
fn pg_wal_behind_a_link_and_other_links() {
    let cluster = story::builder(VERSION).create();
    let pg_wal = cluster.pg_wal();
    let moved = cluster.scratch().join("waldir");
    std::fs::rename(&pg_wal, &moved).unwrap();
    std::os::unix::fs::symlink(&moved, &pg_wal).unwrap();
    let secret = cluster.scratch().join("secret");
    std::fs::write(&secret, "secret").unwrap();
    std::os::unix::fs::symlink(&secret, cluster.data().join("own")).unwrap();
    cluster.start();
    let story = Story::on(cluster);
    story.insert(10);
    let output = story.walkeep.ok(&["backup", "--method", "local"]);
    assert!(output.stderr.contains("own") && output.stderr.contains("left out"), "{}", output.stderr);
    story.cluster.stop(Stop::Fast);
    let restored = Restored::by(&story.walkeep, VERSION, &[]);
    let pg_wal = restored.cluster.pg_wal();
    assert!(pg_wal.symlink_metadata().unwrap().is_dir() && pg_wal.join("archive_status").is_dir());
    assert!(!restored.cluster.data().join("own").exists());
    assert_eq!(restored.start().rows(), 10);
    drop(restored);
    story.end(&SERVER_GONE);
}
