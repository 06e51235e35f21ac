//! Where a restore goes, and what it must not touch: places that are full, foreign, too small or read-only; other major versions.

use std::path::Path;

use walkeep_tests::postgres::versions;
use walkeep_tests::{Cluster, Scratch, Stop, wait_until};

use crate::story::{self, PATIENCE, Story};
use crate::support::Tmpfs;

const VERSION: u32 = 15;

fn ten_rows() -> Story {
    let story = Story::local(VERSION);
    story.insert(10);
    story.backup();
    story
}

fn into(story: &Story, to: &Path, says: &str) {
    let output = story.walkeep.run(&["restore", "--to", &to.to_string_lossy()]).expect_code(3);
    assert!(output.stderr.starts_with("refused: ") && output.stderr.contains(says), "{}", output.stderr);
}

#[test]
fn a_directory_that_is_not_empty() {
    let story = ten_rows();
    let place = &Scratch::new();
    let full = place.dir("full");
    place.write("full/file", "precious", 0o600);
    place.dir("empty");
    std::os::unix::fs::symlink(place.join("empty"), place.join("link")).unwrap();
    place.write("file", "", 0o600);
    let before = (story::listing(place.path()), identity_of(story.cluster.data()));
    into(&story, &full, "is not empty");
    into(&story, &place.join("link"), "is a symbolic link");
    into(&story, &place.join("file"), "is not a directory");
    into(&story, story.cluster.data(), "a server is running there");
    story.cluster.stop(Stop::Fast);
    into(&story, story.cluster.data(), "is a data directory already");
    story.cluster.start();
    assert_eq!((story::listing(place.path()), identity_of(story.cluster.data())), before);
    assert_eq!(story.cluster.sql("SELECT count(*) FROM t"), "10");
    // An empty one will do.
    story.walkeep.ok(&["restore", "--to", &place.join("empty").to_string_lossy()]);
    story.end(&crate::support::SERVER_GONE);
}

/// The places of the running server and of Walkeep itself: a folder in there looks as free as any.
#[test]
fn a_place_within_the_server_or_the_repository() {
    let story = Story::local(VERSION);
    let place = Scratch::new();
    let space = place.dir("space");
    story.far_table(&space);
    story.insert(10);
    story.backup();
    let (data, repository) = (story.cluster.data().to_owned(), story.walkeep.local_repository());
    std::os::unix::fs::symlink(data.join("base"), place.join("link")).unwrap();
    let taken = [
        (data.join("restored"), "it and the configured server's data directory"),
        (place.join("link/restored"), "it and the configured server's data directory"),
        (space.join("restored"), "it and a tablespace of the configured server"),
        (repository.join("restored"), "it and the repository"),
        (story.walkeep.spool().join("restored"), "it and the spool"),
    ];
    for (to, says) in &taken {
        into(&story, to, says);
        let apart = format!("{}={}", space.display(), to.display());
        let new = place.join("new");
        let refused = story.walkeep.run(&["restore", "--to", &new.to_string_lossy(), "--tablespace", &apart]).expect_code(3);
        assert!(refused.stderr.contains(says), "{}", refused.stderr);
        assert!(!to.exists() && !new.exists());
    }
    // Paths are compared by where they lead.
    std::os::unix::fs::symlink(place.path(), place.join("around")).unwrap();
    let into_itself = format!("{}={}", space.display(), place.join("around/new/space").display());
    let refused = story.walkeep.run(&["restore", "--to", place.join("new").to_str().unwrap(), "--tablespace", &into_itself]).expect_code(3);
    assert!(refused.stderr.contains("must not lie in one another"), "{}", refused.stderr);
    let dots = place.join("x/../new");
    let refused = story.walkeep.run(&["restore", "--to", dots.to_str().unwrap()]).expect_code(2);
    assert!(refused.stderr.contains("without `..`"), "{}", refused.stderr);
    let twice = format!("{}={}", space.display(), place.join("one").display());
    let refused = story.walkeep.run(&["restore", "--to", "/tmp/never", "--tablespace", &twice, "--tablespace", &twice]).expect_code(2);
    assert!(refused.stderr.contains("is given twice"), "{}", refused.stderr);
    // What is there already must not be in use for something else either.
    for to in [repository.clone(), story.walkeep.scratch().path().to_owned()] {
        let refused = story.walkeep.run(&["restore", "--delta", "--yes", "--to", &to.to_string_lossy()]).expect_code(3);
        assert!(refused.stderr.contains("it and the"), "{}", refused.stderr);
    }
    story.end(&[]);
}

/// A folder that must not be written, or lies on a disk that must not: nothing is begun.
#[test]
fn a_place_that_cannot_be_written() {
    let place = Scratch::new();
    // Only root can mount, and make a folder that is not the servers'.
    let Some(disk) = Tmpfs::mount(&place.dir("disk"), "4m") else { return };
    disk.remount("ro");
    let story = Story::local(VERSION);
    let (old, new) = (place.dir("old"), place.dir("new"));
    story.far_table(&old);
    story.insert(10);
    story.backup();
    let theirs = place.join("theirs");
    std::fs::create_dir(&theirs).unwrap();
    let to = place.join("data");
    let restore = |to: &Path, space: &Path, code: i32| {
        let mapping = format!("{}={}", old.display(), space.display());
        story.walkeep.run(&["restore", "--to", &to.to_string_lossy(), "--tablespace", &mapping]).expect_code(code)
    };
    let before = story::listing(place.path());
    for (to, space, path, reason) in [
        (theirs.as_path(), new.as_path(), theirs.as_path(), "cannot be written by user"),
        (&theirs.join("data"), &new, &theirs.join("data"), "theirs: Permission denied"),
        (disk.path(), &new, disk.path(), ": Read-only file system"),
        (&to, &theirs.join("space"), &theirs.join("space"), "theirs: Permission denied"),
        (&to, &disk.path().join("space"), &disk.path().join("space"), "disk: Read-only file system"),
    ] {
        let output = restore(to, space, 3);
        assert!(output.stderr.starts_with(&format!("refused: {}: ", path.display())), "{}", output.stderr);
        assert!(output.stderr.contains(reason), "{reason}: {}", output.stderr);
        assert_eq!(story::listing(place.path()), before, "{reason}");
    }
    // A tablespace whose folder is missing, with those above it, is made.
    restore(&to, &place.join("new/deep/space"), 0);
    let restored = Cluster::adopt(VERSION, &to);
    restored.start();
    wait_until("the restored server writes", PATIENCE, || restored.sql("SELECT pg_is_in_recovery()") == "f");
    assert_eq!(restored.sql("SELECT count(*) FROM far"), "1000");
    story.end(&[]);
}

/// The record of the backup says another major version than its files, as no backup of Walkeep's does: somebody changed it. And what a
/// server of another version does with a restored directory, whose programs Walkeep never sees.
#[test]
fn another_major_version() {
    let story = ten_rows();
    let record = story::wait_for_file(&story.walkeep.local_repository(), "/backup.json");
    let whole = std::fs::read_to_string(&record).unwrap();
    assert!(whole.contains("\"major_version\": 15"), "{whole}");
    let place = Scratch::new();
    let to = place.join("data");
    // Without the sum at its end, by which an edited record is known.
    let unsealed = whole.split(",\n  \"sha256\"").next().unwrap().to_owned() + "\n}\n";
    std::fs::write(&record, unsealed.replace("\"major_version\": 15", "\"major_version\": 16")).unwrap();
    let output = story.walkeep.run(&["restore", "--to", &to.to_string_lossy()]);
    assert!(output.code == Some(3) && output.stderr.starts_with("refused: "), "{output:?}");
    eprintln!("{}", output.stderr);
    assert!(!to.exists());
    // With it, the record is not believed at all.
    std::fs::write(&record, whole.replace("\"major_version\": 15", "\"major_version\": 16")).unwrap();
    let verified = story.walkeep.run(&["verify"]).expect_code(4);
    assert!(verified.stdout.contains("it was changed since it was written"), "{}", verified.stdout);
    std::fs::write(&record, whole).unwrap();
    story.walkeep.ok(&["restore", "--to", &to.to_string_lossy()]);
    let before = story::listing(&to);
    for version in versions().into_iter().filter(|version| *version != VERSION) {
        let other = Cluster::adopt(version, &to);
        let error = other.try_start().unwrap_err().to_string();
        assert!(error.contains("database files are incompatible with server"), "{version}: {error}");
        assert!(error.contains("initialized by PostgreSQL version 15"), "{version}: {error}");
    }
    assert_eq!(story::listing(&to), before);
    let restored = Cluster::adopt(VERSION, &to);
    restored.start();
    wait_until("the restored server writes", PATIENCE, || restored.sql("SELECT pg_is_in_recovery()") == "f");
    assert_eq!(restored.sql("SELECT count(*) FROM t"), "10");
    story.end(&[]);
}

fn identity_of(data: &Path) -> Vec<u8> {
    std::fs::read(data.join("PG_VERSION")).unwrap()
}

#[test]
fn a_disk_that_is_too_small() {
    let place = Scratch::new();
    let Some(disk) = Tmpfs::mount(&place.dir("disk"), "4m") else { return };
    let story = ten_rows();
    let to = disk.path().join("data");
    into(&story, &to, "bytes free");
    assert!(!to.exists());
    story.end(&[]);
}
