//! Names of what went: in `walkeep log`, and as a target, `--before-drop`. What no table's row count would tell is asked of the restored server.

use std::time::Duration;

use serde_json::Value;
use walkeep_tests::{wait_until, walkeep::Output};

use crate::story::{self, Story, plan, refused};

/// The agent looks for new relations every 10 s, and takes a snapshot every 30 s at most.
const SNAPSHOT: Duration = Duration::from_secs(120);

fn versions() -> Vec<u32> {
    walkeep_tests::postgres::versions().into_iter().filter(|version| [13, 15, 18].contains(version)).collect()
}

fn removals(story: &Story) -> Vec<Value> {
    let log = story.walkeep.ok(&["log", "--json", "--dropped", "--from", "0/1"]).json();
    log["entries"].as_array().unwrap().clone()
}

/// `schema.name` of the relations of a kind in a list of an entry, sorted.
fn names(entry: &Value, list: &str, kind: &str) -> Vec<String> {
    let files = entry[list].as_array().unwrap().iter().filter(|file| file["kind"] == kind);
    let mut names: Vec<_> = files.map(|file| format!("{}.{}", file["schema"].as_str().unwrap(), file["name"].as_str().unwrap())).collect();
    names.sort();
    names
}

/// The one entry that has this table in a list.
fn entry_of<'a>(entries: &'a [Value], list: &str, table: &str) -> &'a Value {
    let has = |entry: &&Value| entry["what"] == "removed" && names(entry, list, "table").iter().any(|name| name == table);
    let found: Vec<_> = entries.iter().filter(has).collect();
    assert_eq!(found.len(), 1, "{table} in {list}: {entries:#?}");
    found[0]
}

/// Waits until a catalog snapshot shows this table.
#[track_caller]
fn wait_seen(story: &Story, table: &str) {
    let seen = format!("{table} is in the newest catalog snapshot");
    wait_until(&seen, SNAPSHOT, || story.walkeep.run(&["plan", "--before-drop", table]).stderr.contains(&seen));
}

/// How many snapshots are stored.
fn snapshots(story: &Story) -> usize {
    let folder = story.walkeep.local_repository();
    story::listing(&folder).iter().filter(|line| line.contains("/names/") && line.contains(".zst")).count()
}

#[test]
fn what_went_has_a_name_and_leads_back() {
    versions().into_iter().for_each(has_a_name);
}

fn has_a_name(version: u32) {
    eprintln!("PostgreSQL {version}");
    let mut story = Story::local(version);
    let table = |name: &str, rows: u32| {
        story.cluster.sql(&format!(
            "CREATE TABLE {name} (i serial PRIMARY KEY, filler text); INSERT INTO {name} (filler) SELECT 'x' FROM generate_series(1, {rows})"
        ));
    };
    story.cluster.sql("CREATE SCHEMA s; CREATE SCHEMA other");
    story.cluster.sql("CREATE DATABASE shop");
    story.cluster.try_sql_in("shop", "CREATE TABLE payments AS SELECT i FROM generate_series(1, 77) i").unwrap();
    for (name, rows) in [
        ("orders", 41),
        ("emptied", 42),
        ("compacted", 43),
        ("s.one", 44),
        ("s.two", 45),
        ("s.twice", 1),
        ("other.twice", 2),
        ("\"Odd.Name\"", 1),
    ] {
        table(name, rows);
    }
    story
        .cluster
        .sql("CREATE TABLE parts (i int) PARTITION BY RANGE (i); CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (1) TO (2)");
    story.cluster.sql("CREATE TABLE parts_2 PARTITION OF parts FOR VALUES FROM (2) TO (3); CREATE VIEW s.v AS TABLE s.one");
    story.backup();
    assert!(snapshots(&story) >= 1, "the backup has stored one");
    // The first may be seen by the snapshot that the agent begins with.
    table("early", 1);
    wait_seen(&story, "postgres.public.early");
    table("late", 46);
    wait_seen(&story, "postgres.public.late");

    // Told by nothing: what is only rewritten, and what was never there for others.
    story.cluster.sql("VACUUM FULL compacted");
    story.cluster.sql("REINDEX TABLE orders");
    story.cluster.sql("CREATE TEMPORARY TABLE tmp (i int PRIMARY KEY); DROP TABLE tmp");
    story.insert(5);
    story.cluster.sql("DROP TABLE late");
    story.cluster.sql("BEGIN; INSERT INTO t VALUES (100, ''); DROP TABLE orders; INSERT INTO t VALUES (101, ''); COMMIT");
    story.cluster.sql("TRUNCATE emptied; INSERT INTO emptied VALUES (1, 'later')");
    story.cluster.sql("DROP TABLE compacted");
    story.cluster.sql("DROP TABLE s.twice");
    story.cluster.sql("DROP SCHEMA s CASCADE");
    story.cluster.sql("DROP TABLE other.twice; DROP TABLE \"Odd.Name\"");
    story.cluster.sql("DROP TABLE parts_1");
    story.cluster.sql("CREATE TABLE brief (i int); INSERT INTO brief VALUES (1)");
    story.cluster.sql("DROP TABLE brief");
    story.insert(5);
    story.cluster.sql("DROP DATABASE shop");
    story.insert(1);
    story.settle();
    // What is refused says how far was read: no more comes now.
    story.stop_agent(&[]);

    let entries = removals(&story);
    let late = entry_of(&entries, "dropped", "public.late");
    assert!(names(late, "dropped", "index").contains(&"public.late_pkey".to_owned()), "{late}");
    assert_eq!(names(late, "dropped", "sequence"), ["public.late_i_seq"], "{late}");
    assert_eq!(late["dropped"][0]["database_name"], "postgres");
    let orders = entry_of(&entries, "dropped", "public.orders");
    for file in orders["dropped"].as_array().unwrap() {
        let table = file["kind"] == "table";
        assert_eq!((&file["table"], file["belongs_to"].is_null()), (&Value::from(table), table), "{file}");
        assert!(table || file["belongs_to"] == "public.orders", "{file}");
    }
    assert_eq!(names(orders, "dropped", "toast_table").len(), 1, "{orders}");
    entry_of(&entries, "truncated", "public.emptied");
    entry_of(&entries, "dropped", "public.compacted");
    let schema = entry_of(&entries, "dropped", "s.one");
    assert_eq!(names(schema, "dropped", "table"), ["s.one", "s.two"]);
    entry_of(&entries, "dropped", "public.parts_1");
    let gone: Vec<_> = entries.iter().filter(|entry| entry["what"] == "database_dropped").collect();
    assert_eq!((gone.len(), &gone[0]["database_name"]), (1, &Value::from("shop")), "{gone:?}");
    assert_eq!(
        entries.len(),
        10,
        "late, orders, emptied, compacted, twice, s, twice and the odd one, a partition, brief, shop: {entries:#?}"
    );
    let unnamed = |entry: &&Value| entry["dropped"].as_array().is_some_and(|files| files.iter().any(|file| file["name"].is_null()));
    let unnamed: Vec<_> = entries.iter().filter(unnamed).collect();
    assert!(unnamed.len() == 1 && unnamed[0]["dropped"][0]["number"].is_u64(), "brief alone: {unnamed:#?}");
    words(&story);
    not_one(&story);

    // The last commit before stays, and what else the transaction did is not there.
    let planned = plan(&story.walkeep, &["--before-drop", "orders"]);
    assert_eq!(
        (&planned["first_not_replayed"]["xid"], &planned["target"]["before"]["what"]),
        (&orders["xid"], &"drop".into()),
        "{planned}"
    );
    let restored = story.restore(&["--before-drop", "postgres.public.orders"]);
    assert_eq!(restored.start().cluster.sql("SELECT (SELECT count(*) FROM orders), (SELECT max(i) FROM t)"), "41|5");
    assert_eq!(restored.cluster.sql("SELECT to_regclass('late') IS NULL"), "t");
    drop(restored);
    let restored = story.restore(&["--before-drop", "late"]);
    assert_eq!(restored.start().cluster.sql("SELECT count(*) FROM late"), "46");
    drop(restored);
    let restored = story.restore(&["--before-truncate", "emptied"]);
    assert_eq!(restored.start().cluster.sql("SELECT count(*) FROM emptied"), "42");
    drop(restored);
    let restored = story.restore(&["--before-drop", "s.*"]);
    assert_eq!(restored.start().cluster.sql("SELECT (SELECT count(*) FROM s.one), (SELECT count(*) FROM s.v)"), "44|44");
    drop(restored);
    let restored = story.restore(&["--before-drop-database", "shop"]);
    assert_eq!(restored.start().cluster.try_sql_in("shop", "SELECT count(*) FROM payments").unwrap(), "77");
    assert_eq!(restored.cluster.sql("SELECT max(i) FROM t"), "106", "the last commit before it stays");
    drop(restored);
    story.end(&[]);
}

/// The log for people.
fn words(story: &Story) {
    let Output { stdout: log, .. } = story.walkeep.ok(&["log", "--dropped", "--from", "0/1"]);
    for expected in [
        "DROPPED table postgres.public.late",
        "with 1 index, 1 sequence, 1 TOAST table",
        "TRUNCATED table postgres.public.emptied",
        "DROPPED table postgres.s.one, postgres.s.two",
        "with it went every table that the schema postgres.s had",
        "DROPPED table postgres.other.twice, postgres.public.\"Odd.Name\"",
        "(no snapshot saw it)",
        "DATABASE shop DROPPED",
    ] {
        assert!(log.contains(expected), "{expected}: {log}");
    }
    let plan = story.walkeep.ok(&["plan", "--before-drop", "orders"]).stdout;
    assert!(plan.contains("before        DROP of postgres.public.orders, xid "), "{plan}");
}

/// Names that lead to several moments, or to none.
fn not_one(story: &Story) {
    let told = refused(&story.walkeep, &["--before-drop", "twice"]);
    let options: Vec<_> = told.lines().filter(|line| line.contains("--exclusive")).collect();
    assert_eq!(options.len(), 2, "{told}");
    for (option, name) in options.iter().zip(["postgres.s.twice", "postgres.other.twice"]) {
        assert!(option.contains(&format!("DROP of {name}, xid ")), "{told}");
        let words: Vec<_> = option.split_whitespace().take(3).collect();
        let chosen = plan(&story.walkeep, &words);
        let named = plan(&story.walkeep, &["--before-drop", name]);
        assert_eq!(chosen["stop_lsn"], named["stop_lsn"], "{told}");
    }
    let told = refused(&story.walkeep, &["--before-drop", "odd.name"]);
    assert!(told.contains("a drop of odd.name was not found") && told.contains("walkeep log --dropped"), "{told}");
    let told = refused(&story.walkeep, &["--before-drop", "order"]);
    assert!(told.contains("similar names went: postgres.public.orders"), "{told}");
    let told = refused(&story.walkeep, &["--before-drop", "brief"]);
    assert!(told.contains("went that no snapshot saw"), "{told}");
    // One partition is not the table.
    let told = refused(&story.walkeep, &["--before-drop", "public.parts"]);
    assert!(told.contains("was not found") && told.contains("postgres.public.parts_1"), "{told}");
    let told = refused(&story.walkeep, &["--before-truncate", "orders"]);
    assert!(told.contains("a truncation of orders was not found"), "{told}");
    let told = refused(&story.walkeep, &["--before-drop-database", "stop"]);
    assert!(told.contains("a drop of the database stop was not found") && told.contains("similar names went: shop"), "{told}");
    for (args, advice) in [
        (["--before-drop", "a b"], "names no table"),
        (["--before-drop", "*"], "of which schema"),
        (["--before-truncate", "\"a"], "not closed"),
    ] {
        let wrong = story.walkeep.run(&[&["plan"], &args[..]].concat()).expect_code(2);
        assert!(wrong.stderr.contains(advice), "{}", wrong.stderr);
    }
    let wrong = story.walkeep.run(&["plan", "--before-drop", "orders", "--exclusive"]).expect_code(2);
    assert!(wrong.stderr.contains("just before the drop anyway"), "{}", wrong.stderr);
}

/// Nothing is stored twice, and nothing at all while nothing changes.
#[test]
fn a_snapshot_is_stored_when_it_says_something_new() {
    let mut story = Story::local(15);
    story.backup();
    let first = snapshots(&story);
    story.insert(10);
    story.backup();
    assert_eq!(snapshots(&story), first, "rows are no news");
    story.cluster.sql("ALTER TABLE t RENAME TO renamed");
    story.backup();
    // One by the backup, and one by the agent if it looked in that very moment: they do not know of each other.
    let renamed = snapshots(&story);
    assert!((first + 1..=first + 2).contains(&renamed), "{renamed}");
    // Dropped twice under one name, in one schema.
    story.cluster.sql("CREATE TABLE again (i int)");
    story.backup();
    story.cluster.sql("DROP TABLE again; CREATE TABLE again (j int)");
    story.backup();
    story.cluster.sql("DROP TABLE again; ALTER TABLE renamed RENAME TO t");
    story.settle();
    story.stop_agent(&[]);
    let told = refused(&story.walkeep, &["--before-drop", "public.again"]);
    assert_eq!(told.matches("DROP of postgres.public.again, xid ").count(), 2, "{told}");
    story.end(&[]);
}

/// A database that lets nobody in but its own is told once, by `check` too, and keeps nothing else from being named.
#[test]
fn a_database_that_does_not_let_the_agent_in_is_told() {
    let mut story = Story::local(15);
    // It is closed before it is there: else the agent might look into it in between. What it is made of, and what is in it, has the same file number.
    story.cluster.sql("CREATE DATABASE model");
    story.cluster.try_sql_in("model", "CREATE TABLE secret (i int)").unwrap();
    story.cluster.sql("CREATE TABLE open (i int)");
    let file = story.cluster.try_sql_in("model", "SELECT relfilenode FROM pg_class WHERE relname = 'secret'").unwrap();
    // A superuser is not kept out by CONNECT.
    let hba = story.cluster.data().join("pg_hba.conf");
    let rules = std::fs::read_to_string(&hba).unwrap();
    std::fs::write(&hba, format!("local closed postgres reject\nhost closed postgres all reject\n{rules}")).unwrap();
    story.cluster.reload();
    // Nobody may be in a database that is copied, and the agent looks into it now and then.
    wait_until("the database is copied", crate::story::PATIENCE, || story.cluster.try_sql("CREATE DATABASE closed TEMPLATE model").is_ok());
    story.backup();
    wait_seen(&story, "postgres.public.open");
    let check = story.walkeep.ok(&["check"]).stdout;
    let warned: Vec<_> = check.lines().filter(|line| line.starts_with("warn") && line.contains("names")).collect();
    assert!(warned.len() == 1 && warned[0].contains("closed (") && warned[0].contains("pg_hba.conf"), "{check}");

    std::fs::write(&hba, rules).unwrap();
    story.cluster.reload();
    story.cluster.try_sql_in("closed", "DROP TABLE secret").unwrap();
    story.cluster.sql("DROP TABLE open");
    story.settle();
    story.stop_agent(&["the catalogs of a database cannot be read"]);
    let entries = removals(&story);
    entry_of(&entries, "dropped", "public.open");
    let by_number = |entry: &&Value| entry["dropped"][0]["number"].as_u64() == file.parse().ok() && entry["dropped"][0]["name"].is_null();
    assert_eq!(entries.iter().filter(by_number).count(), 1, "{entries:#?}");
    story.end(&[]);
}

/// A name that another table had before: the drop of that one must not be taken for the one that is meant.
#[test]
fn a_renamed_table_is_called_what_it_was_called_last() {
    let story = Story::local(15);
    story.cluster.sql("CREATE TABLE orders AS SELECT 1 AS i FROM generate_series(1, 100); CREATE TABLE orders_new AS TABLE orders");
    story.backup();
    wait_seen(&story, "postgres.public.orders_new");
    story.cluster.sql("BEGIN; ALTER TABLE orders RENAME TO orders_old; ALTER TABLE orders_new RENAME TO orders; COMMIT");
    wait_seen(&story, "postgres.public.orders_old");
    story.cluster.sql("DROP TABLE orders_old");
    story.cluster.sql("INSERT INTO orders SELECT 1 FROM generate_series(1, 800)");
    story.cluster.sql("DROP TABLE orders");
    story.settle();
    let planned = plan(&story.walkeep, &["--before-drop", "orders"]);
    assert!(planned["target"]["before"]["named_at"].is_string() && planned["target"]["before"]["unnamed"] == 0, "{planned}");
    let restored = story.restore(&["--before-drop", "orders"]);
    assert_eq!(restored.start().cluster.sql("SELECT count(*) FROM orders"), "900");
    drop(restored);
    // One that came and went too fast for a snapshot is told beside the one that is known.
    story.cluster.sql("CREATE TABLE orders (i int PRIMARY KEY)");
    story.cluster.sql("DROP TABLE orders");
    story.settle();
    let planned = story.walkeep.ok(&["plan", "--before-drop", "orders"]).stdout;
    assert!(
        planned.contains("so called when the catalogs were read at") && planned.contains("a table went of which no snapshot knew the name"),
        "{planned}"
    );
    story.end(&[]);
}
