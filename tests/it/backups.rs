//! Backups that are killed, backups whose WAL comes from nowhere, restores that are killed, modes of files.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use walkeep_tests::process::Process;
use walkeep_tests::walkeep::{binary, run};
use walkeep_tests::{Cluster, Fault, Keys, Pair, Repository, S3Server, Scratch, Walkeep, When, user, wait_until};

use crate::story::{self, PATIENCE, Restored, Story, backups, builder, plan, refused};

const VERSION: u32 = 15;

#[test]
fn a_killed_backup_shows_nowhere() {
    let story = Story::local(VERSION);
    // Enough that there is something to kill within.
    story.cluster.sql("CREATE TABLE big AS SELECT i, repeat(md5(i::text), 30) AS filler FROM generate_series(1, 40000) AS i");
    story.insert(10);
    let began = std::time::Instant::now();
    let first = story.backup();
    let whole = began.elapsed();
    story.insert(10);
    story.settle();
    let mut finished = vec![first.clone()];
    for round in 0..20u32 {
        let log = story.walkeep.scratch().join(format!("killed-{round}.log"));
        let mut backup = Process::start(story.walkeep.command(&["backup"]), &log).unwrap();
        // Moments spread over its whole length; a backup that was faster is one.
        let ended = backup.wait(whole * round / 20).is_some_and(|status| status.success());
        backup.kill();
        let shown = backups(&story.walkeep);
        if ended || shown.len() > finished.len() {
            assert_eq!(shown.len(), finished.len() + 1, "{}", backup.log());
            finished = shown.clone();
        }
        assert_eq!(shown, finished, "round {round}: a killed backup is shown");
        let planned = plan(&story.walkeep, &[]);
        assert_eq!(planned["backup"]["id"].as_str(), finished.last().map(String::as_str));
    }
    let in_backup = || story.cluster.value::<u32>("SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'BASE_BACKUP%'") == 0;
    wait_until("the server has ended the backups", PATIENCE, in_backup);
    assert_eq!(story.walkeep.ok(&["status", "--json"]).json()["backups"], finished.len());

    // What they left does not stand in the way of the next.
    let next = story.backup();
    assert_eq!(backups(&story.walkeep).last(), Some(&next));
    story.insert(5);
    story.settle();
    let restored = story.restore(&["--backup", &next]);
    restored.verify();
    assert_eq!(restored.start().rows(), 25);
    assert_eq!(restored.cluster.sql("SELECT count(*) FROM big"), "40000");
    story.end(&[]);
}

#[test]
fn a_killed_restore_starts_no_server() {
    let story = Story::local(VERSION);
    story.insert(10);
    story.backup();
    let place = Scratch::new();
    let began = std::time::Instant::now();
    story.walkeep.ok(&["restore", "--to", &place.join("whole").to_string_lossy()]);
    let whole = began.elapsed();
    let mut killed = 0;
    for round in 1..=8u32 {
        let to = place.join(format!("killed-{round}"));
        let mut restore =
            Process::start(story.walkeep.command(&["restore", "--to", &to.to_string_lossy()]), &place.join("restore.log")).unwrap();
        let ended = restore.wait(whole * round / 9).is_some();
        restore.kill();
        let some = to.exists() && std::fs::read_dir(&to).unwrap().next().is_some();
        if ended || !some || to.join("global/pg_control").exists() {
            continue;
        }
        killed += 1;
        let half = Cluster::adopt(VERSION, &to);
        let error = half.try_start().unwrap_err().to_string();
        assert!(error.contains("the server ended"), "{error}");
        let before = story::listing(&to);
        let again = story.walkeep.run(&["restore", "--to", &to.to_string_lossy()]).expect_code(3);
        assert!(again.stderr.contains("is not empty") && again.stderr.contains("mpty it and restore again"), "{}", again.stderr);
        assert_eq!(story::listing(&to), before);
    }
    assert!(killed > 0, "no restore was hit half way; a whole one takes {whole:?}");
    story.end(&[]);
}

#[test]
fn modes_do_not_hang_on_the_umask() {
    let story = Story::local(VERSION);
    story.insert(10);
    story.backup();
    let place = Scratch::new();
    for umask in ["000", "077"] {
        let to = place.join(umask);
        let mut command = user::command_with_umask(binary("walkeep"), umask);
        command.env("WALKEEP_CONFIG", story.walkeep.config_path()).args(["restore", "--to", &to.to_string_lossy()]);
        run(&mut command).expect_code(0);
        assert_modes(&to, 0o700, 0o600);
        let restored = Cluster::adopt(VERSION, &to);
        restored.start();
        wait_until("the restored server writes", PATIENCE, || restored.sql("SELECT pg_is_in_recovery()") == "f");
        assert_eq!(restored.sql("SELECT count(*) FROM t"), "10");
    }
    story.end(&[]);
}

#[track_caller]
fn assert_modes(folder: &Path, dir: u32, file: u32) {
    let data = folder.symlink_metadata().unwrap();
    assert_eq!(data.mode() & 0o7777, dir, "{}", folder.display());
    for entry in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap()) {
        match entry.file_type().unwrap() {
            kind if kind.is_dir() => assert_modes(&entry.path(), dir, file),
            kind if kind.is_file() => assert_eq!(entry.metadata().unwrap().mode() & 0o7777, file, "{}", entry.path().display()),
            _ => {}
        }
    }
}

#[test]
fn without_an_agent_a_backup_brings_its_own_wal() {
    let cluster = story::builder(VERSION).conf("archive_mode", "off").start();
    let walkeep = Walkeep::local(&cluster);
    walkeep.ok(&["init"]);
    cluster.sql("CREATE TABLE t (i int PRIMARY KEY, filler text)");
    story::insert(&cluster, 10);
    let output = walkeep.ok(&["backup"]);
    assert!(output.stderr.contains("streaming the backup's WAL from here"), "{}", output.stderr);
    assert!(output.stdout.contains("all WAL it needs is in the repository"), "{}", output.stdout);
    story::insert(&cluster, 10);
    // Nobody archives what comes after: only the backup itself can be had.
    for target in [vec!["--latest"], vec!["--immediate"]] {
        let restored = Restored::by(&walkeep, VERSION, &target);
        assert_eq!(restored.start().rows(), 10, "{target:?}");
    }
    // The slot kept what comes after: an agent that is started later closes the row.
    let agent = walkeep.agent();
    story::settle(&cluster, &walkeep);
    assert_eq!(Restored::by(&walkeep, VERSION, &["--latest"]).start().rows(), 20);
    assert_eq!(agent.complaints(&[]), Vec::<String>::new());
    agent.stop();
}

#[test]
fn a_backup_whose_wal_never_comes_is_none() {
    let cluster = story::builder(VERSION).start();
    let mut walkeep = Walkeep::local(&cluster);
    walkeep.cluster_lines = "stream = false\n".to_owned();
    walkeep.write_config();
    walkeep.ok(&["init"]);
    cluster.sql("CREATE TABLE t (i int PRIMARY KEY, filler text)");
    let needed = cluster.sql("SELECT pg_walfile_name(pg_current_wal_insert_lsn())");
    let output = walkeep.run(&["backup", "--wal-timeout", "1s"]).expect_code(1);
    // The backup begins at the next checkpoint, in this segment or the next.
    assert!(output.stderr.contains(" is missing (from ") && output.stderr.contains(&needed[..22]), "{needed}: {}", output.stderr);
    assert!(output.stderr.contains("it was not recorded"), "{}", output.stderr);
    assert_eq!(backups(&walkeep), Vec::<String>::new());
    assert!(refused(&walkeep, &[]).contains("no base backup"));

    // Archived by the command alone it comes.
    cluster.archive_by(Some(&walkeep.push_command()));
    story::insert(&cluster, 10);
    let agent_less = walkeep.ok(&["backup", "--wal-timeout", "1min"]);
    assert!(agent_less.stdout.contains("all WAL it needs is in the repository"), "{}", agent_less.stdout);
    story::insert(&cluster, 10);
    let last = cluster.archive_now();
    cluster.wait_archived(&last, Duration::from_secs(30));
    assert_eq!(Restored::by(&walkeep, VERSION, &[]).start().rows(), 20);
}

/// What it stored is removed before it is recorded: it is no backup.
#[test]
fn a_pack_that_goes_while_the_backup_is_taken() {
    for keys in [None, Some(Pair::generate())] {
        let (cluster, server) = (builder(VERSION).start(), S3Server::get());
        let (proxy, bucket) = (server.proxy(), server.bucket());
        let mut walkeep = Walkeep::new(&cluster, Repository::s3(proxy.endpoint(), &bucket));
        // A host that only writes cannot read the manifest again.
        walkeep.keys = keys.as_ref().map(|pair| Keys::to_write(&[pair]));
        walkeep.write_config();
        let story = Story::with(cluster, walkeep);
        story.insert(5);
        let held = proxy.arm(When::put().path("/manifest"), Fault::Hang);
        let mut backup = Process::start(story.walkeep.command(&["backup"]), &story.walkeep.scratch().join("backup.log")).unwrap();
        wait_until("its packs are stored", PATIENCE, || proxy.hits(held) > 0);
        let packs: Vec<_> = bucket.list("").into_iter().map(|(key, _)| key).filter(|key| key.contains("/packs/")).collect();
        bucket.delete(&packs[0]);
        proxy.disarm(held);
        let ended = backup.wait(PATIENCE).expect("the backup ends");
        let said = backup.log();
        assert!(!ended.success() && said.contains("is gone") && said.contains("was not recorded"), "{ended}: {said}");
        assert_eq!(backups(&story.walkeep), Vec::<String>::new());
        story.backup();
    }
}
