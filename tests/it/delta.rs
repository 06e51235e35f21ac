//! Restores into a directory that has something in it, and of one database only.

use std::fs;

use walkeep_tests::{Cluster, Scratch, Stop, user};

use crate::story::{Restored, Story};

const VERSION: u32 = 15;
const DIGEST: &str = "SELECT coalesce(sum(hashtextextended(t::text, 0)), 0) || ' of ' || count(*) FROM big t";

fn with_table() -> Story {
    let story = Story::local(VERSION);
    story.cluster.sql("CREATE TABLE big AS SELECT g AS id, md5(random()::text) AS noise FROM generate_series(1, 200000) g");
    // Else the first look at the rows changes every page: hint bits.
    story.cluster.sql("VACUUM big");
    story
}

/// The accident happened on this server: it becomes again what it was, and most of it is left where it lies.
#[test]
fn the_server_itself_becomes_what_it_was() {
    let mut story = with_table();
    story.backup();
    story.cluster.sql("SELECT pg_create_restore_point('before')");
    let before = story.cluster.sql(DIGEST);
    story.cluster.sql("UPDATE big SET noise = 'gone' WHERE id <= 200");
    story.cluster.sql("CREATE TABLE later AS SELECT generate_series(1, 1000)");
    story.settle();
    let data = story.cluster.data().to_owned();
    let to = data.to_string_lossy().into_owned();
    let delta = ["restore", "--restore-point", "before", "--to", &to, "--delta"];

    // A server runs there; nobody is there to be asked; without the option nothing is overwritten.
    let running = story.walkeep.run(&[&delta[..], &["--yes"]].concat()).expect_code(3);
    assert!(running.stderr.contains("a server is running there"), "{}", running.stderr);
    assert_eq!(story.cluster.sql("SELECT count(*) FROM later"), "1000");
    story.cluster.stop(Stop::Fast);
    story.stop_agent(&["server", "the stream ended", "cannot"]);
    std::os::unix::fs::symlink("/nowhere", data.join("a-link")).unwrap();
    let asked = story.walkeep.run(&delta).expect_code(3);
    assert!(asked.stderr.contains("a-link -> /nowhere\n") && asked.stderr.contains(" files, links and folders\n"), "{}", asked.stderr);
    assert!(asked.stderr.contains("nobody is there to be asked") && asked.stderr.contains("--yes"), "{}", asked.stderr);
    story.walkeep.run(&delta[..5]).expect_code(3);

    let done = story.walkeep.ok(&[&delta[..], &["--yes", "--json"]].concat()).json();
    let [fetched, stored] = ["fetched", "stored"].map(|key| done[key].as_u64().unwrap());
    assert!(fetched < stored / 2, "{fetched} of {stored} bytes were fetched");
    let again = Cluster::adopt(VERSION, data);
    again.start_with(&[]).expect("start the restored server");
    walkeep_tests::wait_until("it writes", crate::story::PATIENCE, || again.sql("SELECT pg_is_in_recovery()") == "f");
    assert_eq!(again.sql(DIGEST), before);
    assert_eq!(again.sql("SELECT to_regclass('later') IS NULL"), "t");
    again.stop(Stop::Fast);
}

/// A copy of the data directory beside the running server: its links lead to that server's tablespaces.
#[test]
fn a_copy_leaves_the_originals_tablespaces_alone() {
    let story = Story::local(VERSION);
    let place = Scratch::new();
    let space = place.dir("space");
    story.cluster.sql(&format!("CREATE TABLESPACE apart LOCATION '{}'", space.display()));
    story.cluster.sql("CREATE TABLE big TABLESPACE apart AS SELECT g AS id, md5(random()::text) AS noise FROM generate_series(1, 20000) g");
    story.backup();
    story.cluster.stop(Stop::Fast);
    let copy = place.join("copy");
    assert!(user::command("cp").arg("-a").arg(story.cluster.data()).arg(&copy).status().unwrap().success());
    story.cluster.start();
    story.cluster.sql("UPDATE big SET noise = 'new' WHERE id % 2 = 0");
    story.cluster.sql("CHECKPOINT");
    let digest = story.cluster.sql(DIGEST);
    let is_untouched = || {
        story.cluster.restart();
        assert_eq!(story.cluster.sql(DIGEST), digest);
    };
    let mut args = vec!["restore", "--immediate", "--delta", "--yes", "--to", copy.to_str().unwrap()];
    let refused = story.walkeep.run(&args).expect_code(3);
    assert!(refused.stderr.contains("a tablespace of the configured server"), "{}", refused.stderr);
    let named = format!("{0}={0}", space.display());
    args.extend(["--tablespace", &named]);
    story.walkeep.run(&args).expect_code(3);
    is_untouched();
    // With places of its own the copy becomes the backup.
    let own = format!("{}={}", space.display(), place.join("own").display());
    args.truncate(6);
    args.extend(["--tablespace", &own]);
    story.walkeep.ok(&args);
    is_untouched();
    story.end(&crate::support::SERVER_GONE);
}

/// What cannot be changed is found before anything is.
#[test]
fn what_cannot_be_overwritten_is_told_first() {
    let mut story = with_table();
    story.backup();
    story.settle();
    story.cluster.stop(Stop::Fast);
    story.stop_agent(&["server", "the stream ended", "cannot"]);
    let data = story.cluster.data().to_owned();
    fs::set_permissions(data.join("PG_VERSION"), std::os::unix::fs::PermissionsExt::from_mode(0o000)).unwrap();
    let args = ["restore", "--immediate", "--delta", "--yes", "--to", data.to_str().unwrap()];
    let refused = story.walkeep.run(&args).expect_code(3);
    assert!(refused.stderr.contains("PG_VERSION: cannot be changed by user"), "{}", refused.stderr);
    assert!(data.join("global/pg_control").exists(), "nothing was touched");
    fs::set_permissions(data.join("PG_VERSION"), std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    // What may only be read, as a server's key, is replaced.
    let map = data.join("base/1/pg_filenode.map");
    let original = fs::read(&map).unwrap();
    fs::write(&map, b"damaged").unwrap();
    fs::set_permissions(&map, std::os::unix::fs::PermissionsExt::from_mode(0o400)).unwrap();
    story.walkeep.ok(&args);
    assert_eq!(fs::read(&map).unwrap(), original);
}

/// Of the others only what all databases share is fetched.
#[test]
fn one_database_alone() {
    let story = with_table();
    story.cluster.sql("CREATE DATABASE shop");
    story.cluster.try_sql_in("shop", "CREATE TABLE orders AS SELECT g AS id FROM generate_series(1, 5000) g").unwrap();
    story.backup();
    story.cluster.try_sql_in("shop", "INSERT INTO orders SELECT g FROM generate_series(5001, 6000) g").unwrap();
    story.cluster.sql("UPDATE big SET noise = 'later' WHERE id = 5");
    story.settle();
    let to = story.walkeep.scratch().join("none");
    let none = story.walkeep.run(&["restore", "--to", to.to_str().unwrap(), "--only-database", "shopp"]).expect_code(3);
    assert!(!to.exists());
    assert!(none.stderr.contains("has no database \"shopp\"") && none.stderr.contains("shop"), "{}", none.stderr);
    story.cluster.sql("CREATE DATABASE gone");
    story.backup();
    story.cluster.sql("DROP DATABASE gone");
    story.settle();
    let dropped = story.walkeep.run(&["restore", "--to", to.to_str().unwrap(), "--only-database", "gone"]).expect_code(3);
    assert!(dropped.stderr.contains("\"gone\" is dropped at") && dropped.stderr.contains("--exclusive"), "{}", dropped.stderr);
    let restored = Restored::by(&story.walkeep, VERSION, &["--only-database", "shop"]);
    restored.launch();
    let in_shop = |query: &str| restored.cluster.try_sql_in("shop", query).unwrap();
    walkeep_tests::wait_until("it writes", crate::story::PATIENCE, || in_shop("SELECT pg_is_in_recovery()") == "f");
    assert_eq!(in_shop("SELECT count(*), sum(id) FROM orders"), format!("6000|{}", 6000 * 6001 / 2));
    // The others refuse, and harm nobody; they can be dropped.
    let refused = restored.cluster.try_sql("SELECT 1").unwrap_err().to_string();
    assert!(refused.contains("FATAL") && !refused.contains("PANIC"), "{refused}");
    in_shop("DROP DATABASE postgres");
    in_shop("VACUUM");
    assert_eq!(in_shop("SELECT count(*) FROM orders"), "6000");
    story.end(&[]);
}
