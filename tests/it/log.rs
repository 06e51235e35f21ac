//! `walkeep log` against what a real server did: every kind of removal, told from what only looks like one.

use serde_json::Value;

use crate::story::{self, Story, plan};
use crate::support::lsn;

const VERSION: u32 = 15;

fn log(story: &Story, args: &[&str]) -> Value {
    story.walkeep.ok(&[&["log", "--json"], args].concat()).json()
}

/// The entries of a kind.
fn of<'a>(log: &'a Value, what: &str) -> Vec<&'a Value> {
    log["entries"].as_array().unwrap().iter().filter(|entry| entry["what"] == what).collect()
}

/// The file numbers in a list of an entry.
fn numbers(entry: &Value, list: &str) -> Vec<u64> {
    let mut all: Vec<u64> = entry[list].as_array().unwrap().iter().map(|file| file["number"].as_u64().unwrap()).collect();
    all.sort_unstable();
    all
}

/// The files of these relations, and of their indexes and TOAST tables where that is asked for.
fn files(story: &Story, relations: &str, whole: bool) -> Vec<u64> {
    let query = match whole {
        false => format!("SELECT relfilenode FROM pg_class WHERE oid IN ({relations})"),
        true => format!(
            "WITH r AS (SELECT oid FROM pg_class WHERE oid IN ({relations}) UNION SELECT reltoastrelid FROM pg_class WHERE oid IN ({relations}))
             SELECT relfilenode FROM pg_class WHERE oid IN (SELECT oid FROM r)
                OR oid IN (SELECT indexrelid FROM pg_index WHERE indrelid IN (SELECT oid FROM r))"
        ),
    };
    let mut all: Vec<u64> = story.cluster.rows(&query).iter().map(|row| row[0].parse().unwrap()).collect();
    all.sort_unstable();
    all
}

/// Runs the statements as one transaction; answers its number.
fn transaction(story: &Story, statements: &str) -> u64 {
    let mut session = story.cluster.session();
    session.sql("BEGIN");
    let xid = session.sql("SELECT pg_current_xact_id()").trim().parse().unwrap();
    session.sql(statements);
    session.sql("COMMIT");
    xid
}

/// The one removal that the transaction is told to have done.
fn removal(log: &Value, xid: u64) -> &Value {
    let found: Vec<_> = of(log, "removed").into_iter().filter(|entry| entry["xid"] == xid).collect();
    assert_eq!(found.len(), 1, "of {xid}: {log}");
    found[0]
}

#[test]
fn what_was_dropped_is_told_from_what_was_rewritten() {
    walkeep_tests::postgres::versions().into_iter().for_each(dropped_is_told_from_rewritten);
}

fn dropped_is_told_from_rewritten(version: u32) {
    eprintln!("PostgreSQL {version}");
    let story = Story::local(version);
    let table = |name: &str| {
        story.cluster.sql(&format!("CREATE TABLE {name} (i int PRIMARY KEY, filler text); INSERT INTO {name} VALUES (1, 'x'), (2, 'y')"));
    };
    ["orders", "emptied", "refilled", "compacted", "mixed"].into_iter().for_each(table);
    story
        .cluster
        .sql("CREATE SCHEMA s; CREATE TABLE s.one (t text); CREATE TABLE s.two (i int PRIMARY KEY); CREATE VIEW s.v AS TABLE s.one");
    story.backup();
    story.insert(3);

    // Not of interest: rewritten, temporary, made and dropped again, an index rebuilt.
    story.cluster.sql("VACUUM FULL compacted");
    story.cluster.sql("CLUSTER orders USING orders_pkey");
    story.cluster.sql("REINDEX TABLE orders");
    story.cluster.sql("CREATE TEMPORARY TABLE tmp (i int PRIMARY KEY, filler text); INSERT INTO tmp VALUES (1, 'x'); DROP TABLE tmp");
    story
        .cluster
        .sql("BEGIN; CREATE TABLE brief (i int PRIMARY KEY, filler text); INSERT INTO brief VALUES (1, 'x'); DROP TABLE brief; COMMIT");
    story.cluster.sql("CREATE MATERIALIZED VIEW m AS TABLE t; REFRESH MATERIALIZED VIEW m");
    story.cluster.sql("BEGIN; SAVEPOINT a; DROP TABLE orders; ROLLBACK TO a; INSERT INTO t VALUES (100, ''); COMMIT");
    story.cluster.sql("DELETE FROM t WHERE i = 100");
    let rewritten = files(&story, "'compacted'::regclass, 'm'::regclass", true);

    let orders = files(&story, "'orders'::regclass", true);
    let orders_table = files(&story, "'orders'::regclass", false);
    let rows_before = story.cluster.value::<u32>("SELECT count(*) FROM t");
    let dropped = transaction(&story, "INSERT INTO t SELECT 50; SAVEPOINT a; DROP TABLE orders; RELEASE a; CREATE TABLE fresh (i int)");
    let emptied_toast = "(SELECT reltoastrelid FROM pg_class WHERE oid = 'emptied'::regclass)";
    let emptied = files(&story, &format!("'emptied'::regclass, {emptied_toast}"), false);
    let truncated = transaction(&story, "TRUNCATE emptied");
    let refilled_file = files(&story, "'refilled'::regclass", false);
    let refilled = transaction(&story, "TRUNCATE refilled; INSERT INTO refilled VALUES (7, 'z')");
    let both_file = files(&story, "'mixed'::regclass", false);
    let compacted = files(&story, "'compacted'::regclass", true);
    let both = transaction(&story, "DROP TABLE compacted; TRUNCATE mixed");
    let schema = files(&story, "'s.one'::regclass, 's.two'::regclass", true);
    let cascade = transaction(&story, "DROP SCHEMA s CASCADE");
    let index = files(&story, "'mixed_pkey'::regclass", false);
    let unindexed = transaction(&story, "ALTER TABLE mixed DROP CONSTRAINT mixed_pkey");
    story.cluster.sql("CREATE UNLOGGED TABLE unlogged (i int PRIMARY KEY); CREATE TABLE counted (i serial, t text)");
    let unlogged_files = files(&story, "'unlogged'::regclass", true);
    let unlogged = transaction(&story, "DROP TABLE unlogged");
    let counted_toast = "(SELECT reltoastrelid FROM pg_class WHERE oid = 'counted'::regclass)";
    let counted_files = files(&story, &format!("'counted'::regclass, {counted_toast}"), false);
    let counted = transaction(&story, "TRUNCATE counted RESTART IDENTITY");
    // The table is rewritten; its index and its TOAST table are dropped and made anew.
    let retyped_index = files(&story, "'emptied_pkey'::regclass", false);
    let retyped = transaction(&story, "ALTER TABLE emptied ALTER i TYPE bigint");
    story.cluster.sql("CREATE DATABASE other");
    let database: u64 = story.cluster.value("SELECT oid FROM pg_database WHERE datname = 'other'");
    story.cluster.sql("DROP DATABASE other");
    let point = story.cluster.sql("SELECT pg_create_restore_point('after all')");
    story.settle();

    let log = log(&story, &[]);
    let entry = removal(&log, dropped);
    assert_eq!(numbers(entry, "dropped"), orders, "{entry}");
    let tables: Vec<_> = entry["dropped"].as_array().unwrap().iter().filter(|file| file["table"] == true).collect();
    assert_eq!(tables.iter().map(|file| file["number"].as_u64().unwrap()).collect::<Vec<_>>(), orders_table);
    assert_eq!(numbers(removal(&log, truncated), "truncated"), emptied);
    assert!(numbers(removal(&log, refilled), "truncated").contains(&refilled_file[0]), "{log}");
    let entry = removal(&log, both);
    assert_eq!(numbers(entry, "dropped"), compacted, "{entry}");
    assert!(numbers(entry, "truncated").contains(&both_file[0]), "{entry}");
    let entry = removal(&log, cascade);
    assert_eq!(numbers(entry, "dropped"), schema, "{entry}");
    let entry = removal(&log, unindexed);
    assert_eq!((numbers(entry, "dropped"), &entry["dropped"][0]["table"]), (index, &Value::from(false)), "{entry}");
    let entry = removal(&log, unlogged);
    assert_eq!(numbers(entry, "dropped"), unlogged_files, "{entry}");
    let entry = removal(&log, counted);
    assert_eq!((numbers(entry, "truncated"), numbers(entry, "dropped")), (counted_files, vec![]), "{entry}");
    let entry = removal(&log, retyped);
    assert!(numbers(entry, "dropped").contains(&retyped_index[0]) && entry["rewritten"] == 1, "{entry}");
    assert!(entry["dropped"].as_array().unwrap().iter().all(|file| file["table"] == false), "no table is gone: {entry}");
    assert_eq!(of(&log, "removed").len(), 9, "and nothing else: {log}");
    let named: Vec<u64> = of(&log, "removed").iter().flat_map(|entry| numbers(entry, "unclear")).collect();
    assert!(named.is_empty(), "{named:?}");
    assert!(rewritten.iter().any(|file| compacted.contains(file)), "VACUUM FULL came before the drop");

    let gone = of(&log, "database_dropped");
    assert_eq!((gone.len(), &gone[0]["database"], &gone[0]["committed"]), (1, &Value::from(database), &Value::from(true)), "{log}");
    assert_eq!(of(&log, "database_created").len(), 1);
    let points = of(&log, "restore_point");
    assert_eq!((points.len(), &points[0]["name"], &points[0]["end"]), (1, &Value::from("after all"), &Value::from(point.trim())));
    let commits: u64 = log["minutes"].as_array().unwrap().iter().map(|minute| minute["commits"].as_u64().unwrap()).sum();
    assert!(commits >= 20, "{log}");

    // The position told is the commit's: just before it the table is there, and what else the transaction did is not.
    let entry = removal(&log, dropped);
    let at = entry["lsn"].as_str().unwrap();
    let planned = plan(&story.walkeep, &["--lsn", at, "--exclusive"]);
    assert_eq!(planned["first_not_replayed"]["xid"], Value::from(dropped), "{planned}");
    let restored = story.restore(&["--lsn", at, "--exclusive"]);
    assert_eq!(restored.start().cluster.sql("SELECT count(*) FROM orders"), "2");
    assert_eq!(restored.rows(), rows_before);
    drop(restored);

    windows(&story, entry, points[0]);
    story.end(&[]);
}

/// `--from`, `--to`, the filters and the words for people.
fn windows(story: &Story, dropped: &Value, point: &Value) {
    let at = dropped["lsn"].as_str().unwrap();
    let only = log(story, &["--dropped", "--to", dropped["end"].as_str().unwrap()]);
    assert_eq!(only["entries"], serde_json::json!([dropped]));
    let from_time = log(story, &["--dropped", "--from", dropped["time"].as_str().unwrap(), "--to", dropped["time"].as_str().unwrap()]);
    assert_eq!(from_time["entries"], serde_json::json!([dropped]));
    let after = log(story, &["--from", dropped["end"].as_str().unwrap()]);
    assert!(of(&after, "removed").iter().all(|entry| lsn(entry["lsn"].as_str().unwrap()) > lsn(at)), "{after}");
    assert_eq!(log(story, &["--restore-points"])["entries"], serde_json::json!([point]));
    // Without --from it is the newest backup before --to, not the newest of all.
    let later = story.backup();
    assert_eq!(log(story, &["--dropped", "--to", dropped["end"].as_str().unwrap()])["entries"], serde_json::json!([dropped]), "{later}");
    assert!(of(&log(story, &[]), "removed").is_empty(), "the newest backup began after all");
    let words = story.walkeep.ok(&["log", "--from", "0/1"]).stdout;
    for expected in [
        "DROPPED table postgres.public.orders",
        "TRUNCATED table postgres.public.emptied",
        "DATABASE",
        "restore point \"after all\"",
        "a minute",
        at,
    ] {
        assert!(words.contains(expected), "{expected}: {words}");
    }
    for (args, advice) in [(["--from", "2026-11-20 14:30:00"], "offset from UTC"), (["--to", "yesterday"], "write it as")] {
        let wrong = story.walkeep.run(&[&["log"], &args[..]].concat()).expect_code(2);
        assert!(wrong.stderr.contains(advice), "{}", wrong.stderr);
    }
    let turned = story.walkeep.run(&["log", "--from", "0/2000000", "--to", "0/1000000"]).expect_code(2);
    assert!(turned.stderr.contains("--from is not before --to"), "{}", turned.stderr);
    let unknown = story.walkeep.run(&["log", "--timeline", "7"]).expect_code(3);
    assert!(unknown.stderr.contains("timeline 7 is unknown"), "{}", unknown.stderr);
}

#[test]
fn shutdowns_big_transactions_and_prepared_drops_are_told() {
    let story = Story::begin(story::builder(VERSION).conf("max_prepared_transactions", 2), None);
    story.cluster.sql("CREATE TABLE gone (i int PRIMARY KEY)");
    story.backup();
    let gone = files(&story, "'gone'::regclass", true);
    // Prepared before a restart, which must not make it forgotten.
    story.cluster.sql("BEGIN; DROP TABLE gone; PREPARE TRANSACTION 'p'");
    let xid: u64 = story.cluster.value("SELECT transaction FROM pg_prepared_xacts");
    story.cluster.restart();
    story.cluster.sql("COMMIT PREPARED 'p'");
    let big = transaction(&story, "INSERT INTO t SELECT i, repeat('x', 1000) FROM generate_series(1000, 21000) i");
    story.settle();
    let log = log(&story, &[]);
    let entry = removal(&log, xid);
    assert_eq!((numbers(entry, "dropped"), numbers(entry, "unclear")), (gone, vec![]));
    assert_eq!(of(&log, "shutdown_checkpoint").len(), 1, "{log}");
    let told = of(&log, "big_transaction");
    assert_eq!((told.len(), &told[0]["xid"], &told[0]["committed"]), (1, &Value::from(big), &Value::from(true)), "{log}");
    assert!(told[0]["wal_bytes"].as_u64().unwrap() > 16 << 20, "{log}");
    story.end(&crate::support::SERVER_GONE);
}
