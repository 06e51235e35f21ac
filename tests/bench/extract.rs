//! From "orders is gone" to the table back in the running server: how long it takes, step by step.
//!
//!     cargo bench -p walkeep-tests --bench extract                       a cluster of 2 GB, half of it the table
//!     cargo bench -p walkeep-tests --bench extract -- --megabytes 200 --after 50 --rounds 3
//!
//! A shop of customers and orders, with keys and indexes, in one database, and as much data again in another one. A base backup, then work (`--after`
//! megabytes of WAL at least), then DROP TABLE. The clock starts there: `walkeep log` finds the drop, `walkeep extract` brings the table back, and the rows
//! are counted. Everything is on this machine: server, repository, scratch folder.
#![allow(clippy::unwrap_used)]

#[path = "numbers.rs"]
#[allow(dead_code)]
mod numbers;
#[path = "options.rs"]
#[allow(dead_code)]
mod options;

use std::time::{Duration, Instant};

use options::Options;
use walkeep_tests::postgres::{bin, client};
use walkeep_tests::{Cluster, Walkeep, wait_until};

const VERSION: u32 = 15;

fn main() {
    let words = std::env::args().skip(1).filter(|word| word != "--bench");
    let run = Options::parse(["extract".to_owned()].into_iter().chain(words)).and_then(|(_, mut options)| {
        let (megabytes, after, rounds) =
            (options.take("megabytes", 2000_u64)?, options.take("after", 200_u64)?, options.take("rounds", 1_u32)?);
        options.end().map(|()| (megabytes, after, rounds))
    });
    let (megabytes, after, rounds) = run.unwrap_or_else(|problem| panic!("{problem}"));
    let totals: Vec<f64> = (0..rounds).map(|_| measure(megabytes, after)).collect();
    println!("median of {rounds}: {:.1} s", numbers::median(&totals));
}

fn measure(megabytes: u64, after: u64) -> f64 {
    let settings = |builder: walkeep_tests::postgres::Builder| builder.conf("max_wal_size", "4GB").conf("shared_buffers", "256MB");
    let server = settings(Cluster::builder().version(VERSION).archiving()).start();
    let walkeep = Walkeep::local(&server);
    walkeep.ok(&["init"]);
    let _agent = walkeep.agent();
    server.archive_by(Some(&walkeep.archive_command()));
    server.sql("CREATE DATABASE shop");
    server.sql("CREATE DATABASE other");
    let sql = |database: &str, text: &str| server.try_sql_in(database, text).expect("run SQL");
    sql(
        "shop",
        "CREATE TABLE customers (id int PRIMARY KEY, name text NOT NULL, email text UNIQUE); \
         INSERT INTO customers SELECT i, 'Customer ' || i, 'c' || i || '@example.org' FROM generate_series(1, 20000) i; \
         CREATE TABLE orders (id bigserial PRIMARY KEY, customer int NOT NULL REFERENCES customers, placed timestamptz NOT NULL, amount numeric(10, 2) NOT NULL, \
         status text NOT NULL, note text); CREATE INDEX ON orders (customer, placed); CREATE INDEX ON orders (placed) WHERE status = 'open'",
    );
    // About 200 bytes a row, and 60 of its indexes.
    let rows = megabytes * 1_000_000 / 2 / 260;
    let insert = |from: u64, to: u64| {
        format!(
            "INSERT INTO orders (customer, placed, amount, status, note) SELECT 1 + (i * 7919) % 20000, timestamptz '2026-01-01' + i * interval '1 second', \
             (i * 31) % 100000 / 100.0, (ARRAY['open', 'paid', 'sent', 'returned'])[1 + i % 4], md5(i::text) || md5((i + 1)::text) || md5((i + 2)::text) \
             FROM generate_series({from}::bigint, {to}) i"
        )
    };
    sql("shop", &insert(1, rows));
    sql(
        "other",
        &format!(
            "CREATE TABLE filler AS SELECT i, repeat(md5(i::text), 8) AS t FROM generate_series(1, {}) i",
            megabytes * 1_000_000 / 2 / 290
        ),
    );
    sql("shop", "VACUUM ANALYZE");
    walkeep.ok(&["backup"]);
    let begin = server.lsn();
    let (mut last, mut written) = (rows, 0);
    while written < after {
        sql("shop", &format!("{}; UPDATE orders SET status = 'paid' WHERE id % 97 = {}", insert(last + 1, last + 5000), last % 97));
        sql("other", "UPDATE filler SET i = i + 1 WHERE i % 101 = 0");
        last += 5000;
        written = server.value::<u64>(&format!("SELECT (pg_current_wal_lsn() - '{begin}'::pg_lsn)::bigint / 1000000"));
    }
    let expected = sql("shop", "SELECT count(*) || ' rows, ' || sum(amount) FROM orders");
    let size = sql(
        "shop",
        "SELECT pg_size_pretty(pg_total_relation_size('orders')) || ' of ' || pg_size_pretty(sum(pg_database_size(oid))) FROM pg_database",
    );
    println!("\norders has {expected}: {size}; {written} MB of WAL since the backup");

    let began = Instant::now();
    sql("shop", "DROP TABLE orders");
    server.sql("SELECT pg_switch_wal()");
    let step = |what: &str, since: Instant| println!("  {what:<34} {:8.2} s", since.elapsed().as_secs_f64());
    let mut at = None;
    wait_until("the drop is in the repository", Duration::from_secs(120), || {
        let log = walkeep.ok(&["log", "--dropped", "--json"]).json();
        let entries = log["entries"].as_array().unwrap();
        at = entries.iter().find_map(|entry| entry.get("dropped").and(entry["lsn"].as_str()).map(str::to_owned));
        at.is_some()
    });
    step("walkeep log finds the drop", began);
    let tools = client(VERSION, "pg_dump").parent().unwrap().to_owned();
    let bin_dirs = format!("{}:{}", bin(VERSION).unwrap().display(), tools.display());
    let into = server.connection().replace("dbname=postgres", "dbname=shop");
    let extracting = Instant::now();
    let at = at.unwrap();
    let args = [
        "extract",
        "--table",
        "orders",
        "--database",
        "shop",
        "--lsn",
        &at,
        "--exclusive",
        "--into",
        &into,
        "--bin-dir",
        &bin_dirs,
        "--json",
    ];
    let report = walkeep.ok(&args).json();
    for taken in report["steps"].as_array().unwrap() {
        println!("    {:<32} {:8.2} s", taken["step"].as_str().unwrap(), taken["seconds"].as_f64().unwrap());
    }
    step("walkeep extract", extracting);
    let total = began.elapsed().as_secs_f64();
    let (fetched, stored) = (report["fetched_bytes"].as_u64().unwrap(), report["backup_stored_bytes"].as_u64().unwrap());
    println!(
        "  {:<34} {total:8.2} s; fetched {} of {} MB of the backup",
        "from the drop to the table back",
        fetched / 1_000_000,
        stored / 1_000_000
    );
    assert_eq!(sql("shop", "SELECT count(*) || ' rows, ' || sum(amount) FROM orders"), expected);
    total
}
