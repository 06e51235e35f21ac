//! One table back out of the past, into the running server or a file, by a throw-away server that leaves nothing behind.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use walkeep_tests::postgres::{bin, client, versions};
use walkeep_tests::walkeep::{Output, binary, run};
use walkeep_tests::{Walkeep, process, user, wait_for, wait_until};

use crate::story::{PATIENCE, Story, builder, listing};

/// A story with what an extract needs said.
struct Past {
    story: Story,
    bin_dirs: String,
    scratch: PathBuf,
}

impl Past {
    fn new(version: u32) -> Self {
        Self::of(Story::begin(builder(version), None))
    }

    fn of(story: Story) -> Self {
        let version = story.cluster.version();
        let tools = client(version, "pg_dump").parent().unwrap().to_owned();
        let bin_dirs = format!("{}:{}", bin(version).unwrap().display(), tools.display());
        let scratch = story.walkeep.scratch().dir("x");
        Self { story, bin_dirs, scratch }
    }

    fn args<'a>(&'a self, args: &[&'a str]) -> Vec<&'a str> {
        [&["extract", "--bin-dir", &self.bin_dirs, "--scratch", self.scratch.to_str().unwrap()], args].concat()
    }

    /// Runs it, and nothing may be left of it.
    #[track_caller]
    fn extract(&self, args: &[&str]) -> Output {
        let output = self.story.walkeep.run(&self.args(args));
        assert_eq!(self.left(), Vec::<PathBuf>::new(), "{}{}", output.stdout, output.stderr);
        output
    }

    fn left(&self) -> Vec<PathBuf> {
        std::fs::read_dir(&self.scratch).unwrap().map(|entry| entry.unwrap().path()).collect()
    }

    /// A connection string for `--into`.
    fn dsn(&self, database: &str) -> String {
        self.story.cluster.connection().replace("dbname=postgres", &format!("dbname={database}"))
    }

    fn sql_in(&self, database: &str, query: &str) -> String {
        self.story.cluster.try_sql_in(database, query).expect("run SQL")
    }

    /// The position before what comes next.
    fn now(&self) -> String {
        self.story.cluster.sql("SELECT pg_create_restore_point('here')");
        self.story.cluster.lsn()
    }
}

const SHOP: &str = "CREATE SCHEMA shop;
    CREATE TABLE shop.customers (id int PRIMARY KEY, name text);
    INSERT INTO shop.customers SELECT i, 'customer ' || i FROM generate_series(1, 100) i;
    CREATE TABLE shop.orders (id serial PRIMARY KEY, customer int NOT NULL REFERENCES shop.customers, item text CHECK (item <> ''), \"At\" timestamptz DEFAULT now());
    CREATE INDEX orders_item ON shop.orders (item);
    CREATE FUNCTION shop.touch() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
    CREATE TRIGGER touched BEFORE UPDATE ON shop.orders FOR EACH ROW EXECUTE FUNCTION shop.touch();
    INSERT INTO shop.orders (customer, item) SELECT 1 + i % 100, repeat('item ' || i, 20) FROM generate_series(1, 5000) i;
    CREATE VIEW shop.large AS SELECT * FROM shop.orders WHERE id > 10;
    CREATE TABLE shop.lines (o int REFERENCES shop.orders, n int);
    CREATE TABLE shop.log (d date, t text) PARTITION BY RANGE (d);
    CREATE TABLE shop.log_1 PARTITION OF shop.log FOR VALUES FROM ('2026-01-01') TO ('2026-07-01');
    CREATE TABLE shop.log_2 PARTITION OF shop.log FOR VALUES FROM ('2026-07-01') TO ('2027-01-01');
    CREATE INDEX ON shop.log (t);
    INSERT INTO shop.log SELECT '2026-01-01'::date + i, 'day ' || i FROM generate_series(0, 299) i";

/// What a table is: its content, and everything about it that the catalogs say.
fn picture(past: &Past, database: &str, table: &str) -> String {
    let query = format!(
        "SELECT (SELECT md5(string_agg(r::text, '|' ORDER BY r::text)) FROM {table} r), \
         (SELECT string_agg(pg_get_indexdef(indexrelid), ';' ORDER BY indexrelid::regclass::text) FROM pg_index WHERE indrelid = '{table}'::regclass), \
         (SELECT string_agg(conname || pg_get_constraintdef(oid), ';' ORDER BY conname) FROM pg_constraint WHERE conrelid = '{table}'::regclass), \
         (SELECT string_agg(pg_get_triggerdef(oid), ';' ORDER BY tgname) FROM pg_trigger WHERE tgrelid = '{table}'::regclass AND NOT tgisinternal), \
         (SELECT string_agg(attname || format_type(atttypid, atttypmod) || attnotnull || coalesce(pg_get_expr(adbin, adrelid), ''), ';' ORDER BY attnum) \
          FROM pg_attribute LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum WHERE attrelid = '{table}'::regclass AND attnum > 0)"
    );
    past.sql_in(database, &query)
}

/// The names of what is stored, but for what the live server's agent stores meanwhile: WAL of timeline 1 (a scratch server could only archive another), its lease,
/// names of relations that are new, the index, and the record of the extract in the audit trail.
fn archived(walkeep: &Walkeep) -> Vec<String> {
    let names = listing(&walkeep.local_repository()).into_iter().filter_map(|line| line.split(' ').next().map(str::to_owned));
    let own = ["/wal/00000001", "/leases", "/names", "/index", "/audit", ".tmp~"];
    names.filter(|name| !own.iter().any(|own| name.contains(own))).collect()
}

fn a_dropped_table_comes_back(version: u32) {
    if !versions().contains(&version) {
        return;
    }
    let past = Past::new(version);
    let server = &past.story.cluster;
    server.sql(SHOP);
    past.story.backup();
    server.sql("INSERT INTO shop.orders (customer, item) VALUES (7, 'the last one')");
    let before = picture(&past, "postgres", "shop.orders");
    let log = picture(&past, "postgres", "shop.log");
    // In one transaction with other work, whose locks a paused server would still hold.
    server.sql("BEGIN; INSERT INTO t VALUES (1, 'x'); DROP TABLE shop.orders CASCADE; DROP TABLE shop.log; COMMIT");
    server.sql("CREATE TABLE later (i int)");
    past.story.settle();
    let dropped = past.story.walkeep.ok(&["log", "--dropped", "--json"]).json();
    let at = dropped["entries"].as_array().unwrap().iter().find(|entry| entry["kind"] == "removed" || entry.get("dropped").is_some());
    let at = at.unwrap_or_else(|| panic!("{dropped}"))["lsn"].as_str().unwrap().to_owned();
    let (stored, slots) = (archived(&past.story.walkeep), server.sql("SELECT slot_name FROM pg_replication_slots"));

    let into = past.dsn("postgres");
    let target = ["--lsn", &at, "--exclusive", "--into", &into];
    let extracted = past.extract(&[&["--table", "shop.orders", "--table", "shop.log", "--json"], &target[..]].concat()).expect_code(0);
    let report = extracted.json();
    let rows = |name: &str| {
        let table = report["tables"].as_array().unwrap().iter().find(|table| table["name"] == name).unwrap_or_else(|| panic!("{report}"));
        (table["rows"].as_u64().unwrap(), table["rows_there"].as_u64().unwrap())
    };
    assert_eq!((rows("orders"), rows("log"), report["tables"].as_array().unwrap().len()), ((5001, 5001), (300, 300), 2));
    assert_eq!(report["partial"], true, "{report}");
    assert_eq!(picture(&past, "postgres", "shop.orders"), before);
    assert_eq!(picture(&past, "postgres", "shop.log"), log);
    assert_eq!(server.sql("SELECT count(*) FROM shop.log_2"), "119");
    // The sequence goes on behind: the WAL has it some numbers ahead, as after any crash.
    assert!(server.value::<u32>("INSERT INTO shop.orders (customer, item) VALUES (1, 'new') RETURNING id") > 5001);
    let notes = report["notes"].to_string();
    assert!(notes.contains("ALTER TABLE shop.lines ADD CONSTRAINT lines_o_fkey") && notes.contains("shop.large"), "{notes}");

    // It is there now: refused, by name, before anything is restored; and replaced where that is wanted.
    let refused = past.extract(&[&["--table", "shop.orders"], &target[..]].concat()).expect_code(3);
    assert!(refused.stderr.contains("shop.orders is there already") && !refused.stdout.contains("target"), "{}", refused.stderr);
    let by_name = past.extract(&[&["--table", "orders"], &target[..]].concat()).expect_code(3);
    assert!(by_name.stderr.contains("shop.orders is there already"), "{}", by_name.stderr);
    let unasked = past.extract(&[&["--table", "shop.orders", "--replace"], &target[..]].concat()).expect_code(3);
    assert!(unasked.stderr.contains("--yes"), "{}", unasked.stderr);
    assert_eq!(server.sql("SELECT count(*) FROM shop.orders"), "5002");
    past.extract(&[&["--table", "shop.orders", "--replace", "--yes"], &target[..]].concat()).expect_code(0);
    assert_eq!(picture(&past, "postgres", "shop.orders"), before);

    // Beside it, to compare.
    past.extract(&[&["--table", "shop.orders", "--as", "past"], &target[..]].concat()).expect_code(0);
    assert_eq!(server.sql("SELECT count(*) FROM past.orders o JOIN shop.orders USING (id)"), "5001");

    // The running server and the archive know nothing of all that.
    assert_eq!(archived(&past.story.walkeep), stored, "nothing is archived by the scratch server");
    assert_eq!(server.sql("SELECT slot_name FROM pg_replication_slots"), slots);
    assert_eq!(server.sql("SELECT count(*) FROM t"), "1");
    past.story.end(&[]);
}

macro_rules! comes_back {
    ($($name:ident $version:literal)*) => {$(
        #[test]
        fn $name() {
            a_dropped_table_comes_back($version);
        }
    )*};
}

comes_back! {
    a_dropped_table_comes_back_13 13
    a_dropped_table_comes_back_15 15
    a_dropped_table_comes_back_17 17
    a_dropped_table_comes_back_18 18
}

#[test]
fn files_and_queries() {
    let mut past = Past::new(15);
    let server = &past.story.cluster;
    server.sql(SHOP);
    past.story.backup();
    server.sql("UPDATE shop.customers SET name = 'a \"quoted\" name,' || E'\\nwith two lines' WHERE id = 1");
    let at = past.now();
    let before = picture(&past, "postgres", "shop.orders");
    server.sql("DELETE FROM shop.orders; DELETE FROM shop.customers WHERE id > 50");
    past.story.settle();
    let folder = past.story.walkeep.scratch().dir("out");
    let file = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    for (name, program) in [("orders.sql", "psql"), ("orders.dump", "pg_restore")] {
        let out = file(name);
        let told = past.extract(&["--table", "shop.orders", "--table", "customers", "--lsn", &at, "--out", &out]).expect_code(0);
        for line in ["database      postgres", "shop.orders: 5000 rows", "shop.customers: 100 rows", "fetched ", "took "] {
            assert!(told.stdout.contains(line), "{line}: {}", told.stdout);
        }
        let again = past.extract(&["--table", "shop.orders", "--lsn", &at, "--out", &out]).expect_code(3);
        assert!(again.stderr.contains("exists") && again.stderr.contains("--replace"), "{}", again.stderr);
        server.sql(&format!("CREATE DATABASE {program}"));
        past.sql_in(
            program,
            "CREATE SCHEMA shop; CREATE FUNCTION shop.touch() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'",
        );
        let mut command = user::command(client(15, program));
        command.args(["-d", &past.dsn(program)]);
        run(if program == "psql" { command.args(["-X", "-v", "ON_ERROR_STOP=1", "-f", &out]) } else { command.args(["-e", &out]) })
            .expect_code(0);
        assert_eq!(picture(&past, program, "shop.orders"), before, "{name}");
    }
    let out = file("orders.sql");
    past.extract(&["--table", "shop.customers", "--lsn", &at, "--out", &out, "--replace"]).expect_code(0);
    assert!(!std::fs::read_to_string(&out).unwrap().contains("CREATE TABLE shop.orders"));
    let printed = past.extract(&["--table", "shop.customers", "--lsn", &at, "--out", "-"]).expect_code(0);
    assert!(printed.stdout.contains("CREATE TABLE shop.customers") && printed.stderr.contains("100 rows"), "{}", printed.stderr);

    let query = "SELECT id, name FROM shop.customers WHERE id < 3 ORDER BY id;";
    let csv = file("customers.csv");
    let told = past.extract(&["--query", query, "--lsn", &at, "--out", &csv, "--json"]).expect_code(0).json();
    let expected = "id,name\n1,\"a \"\"quoted\"\" name,\nwith two lines\"\n2,customer 2\n";
    assert_eq!((std::fs::read_to_string(&csv).unwrap().as_str(), &told["rows"]), (expected, &Value::from(2)));
    assert_eq!(past.extract(&["--query", query, "--lsn", &at, "--out", "-"]).expect_code(0).stdout, expected);
    let wrong = past.extract(&["--query", "SELECT nonsense", "--lsn", &at, "--out", &file("no.csv")]).expect_code(1);
    assert!(wrong.stderr.contains("column \"nonsense\" does not exist"), "{}", wrong.stderr);
    past.extract(&["--query", "DELETE FROM shop.customers RETURNING id", "--lsn", &at, "--out", &file("no.csv")]).expect_code(1);
    // A server that cannot recover with files left empty: everything is restored, and the result is the same.
    let faulty = past.story.walkeep.scratch().dir("faulty");
    let real = bin(15).unwrap().join("postgres");
    let script = format!(
        "#!/bin/sh\ncase \"$*\" in *config_file=*) grep -q ignore_invalid_pages \"${{4#config_file=}}\" && {{ echo 'PANIC:  not with me'; exit 1; }};; esac\n\
         exec {} \"$@\"\n",
        real.display()
    );
    std::fs::write(faulty.join("postgres"), script).unwrap();
    std::fs::set_permissions(faulty.join("postgres"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    past.bin_dirs = format!("{}:{}", faulty.display(), past.bin_dirs);
    let again = past.extract(&["--query", query, "--lsn", &at, "--out", "-"]).expect_code(0);
    assert_eq!(again.stdout, expected);
    assert!(again.stderr.contains("not with me; doing it again with the files of every database"), "{}", again.stderr);
    let mut names: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, ["customers.csv", "orders.dump", "orders.sql"], "nothing half is left");
    past.story.end(&[]);
}

#[test]
fn what_cannot_be_done_is_refused_by_name() {
    let past = Past::new(15);
    let server = &past.story.cluster;
    server.sql(SHOP);
    server.sql("CREATE TABLE public.orders (i int)");
    server.sql("CREATE DATABASE empty");
    past.story.backup();
    let at = past.now();
    server.sql("DROP TABLE shop.orders CASCADE");
    past.story.settle();
    let out = past.story.walkeep.scratch().join("x.sql");
    let refused = |args: &[&str], words: &[&str]| {
        let output = past.extract(&[&["--lsn", &at], args].concat()).expect_code(3);
        words.iter().for_each(|word| assert!(output.stderr.contains(word), "{word}: {}", output.stderr));
    };
    let out = out.to_str().unwrap();
    refused(&["--table", "shop.oders", "--out", out], &["no table shop.oders", "shop.orders"]);
    refused(&["--table", "orders", "--out", out], &["several tables", "public.orders, shop.orders"]);
    refused(&["--table", "shop.orders", "--database", "emty", "--out", out], &["no database emty", "empty"]);
    refused(&["--table", "shop.orders", "--database", "empty", "--out", out], &["no table shop.orders in database empty"]);
    // In the empty database there is nothing that the foreign key refers to.
    let into = past.dsn("empty");
    refused(&["--table", "shop.orders", "--into", &into], &["orders_customer_fkey", "shop.customers", "--without-foreign-keys"]);
    let output = past.extract(&["--lsn", &at, "--table", "shop.orders", "--into", &into, "--without-foreign-keys"]).expect_code(1);
    assert!(output.stderr.contains("rolled back") && output.stderr.contains("shop.touch"), "{}", output.stderr);
    assert_eq!(past.sql_in("empty", "SELECT count(*) FROM pg_namespace WHERE nspname = 'shop'"), "0", "all or nothing");
    past.extract(&["--lsn", &at, "--table", "shop.customers", "--table", "shop.log", "--into", &into]).expect_code(0);
    assert_eq!(past.sql_in("empty", "SELECT count(*) FROM shop.log"), "300");
    past.sql_in("empty", "DROP SCHEMA shop CASCADE; CREATE TABLE public.x (i int); CREATE INDEX customers_pkey ON public.x (i)");
    refused(&["--table", "shop.customers", "--as", "public", "--into", &into], &["public.customers_pkey", "index of another table"]);
    // Wrong usage.
    for args in [
        &["--table", "shop.orders"][..],
        &["--out", out],
        &["--table", "a.b.c", "--out", out],
        &["--table", "t", "--out", "file.tar"],
        &["--query", "SELECT 1", "--into", &into],
    ] {
        past.extract(args).expect_code(2);
    }
    let nowhere = past.story.walkeep.run(&["extract", "--table", "shop.orders", "--lsn", "0/1", "--out", out]).expect_code(3);
    assert!(!nowhere.stderr.is_empty());
    past.story.end(&[]);
}

/// Two databases, the other one larger and busy in the stretch that is replayed.
fn other_databases_are_left_empty(version: u32, checksums: bool) {
    if !versions().contains(&version) {
        return;
    }
    let cluster = builder(version).conf("full_page_writes", "on").create();
    if !checksums {
        let tool = client(version, "pg_checksums");
        if tool.starts_with(bin(version).unwrap()) {
            process::run(user::command(tool).arg("-D").arg(cluster.data()).args(["--disable", "--no-sync"])).unwrap();
        }
    }
    cluster.start();
    let past = Past::of(Story::on(cluster));
    let server = &past.story.cluster;
    server.sql("CREATE DATABASE shop");
    server.sql("CREATE DATABASE busy");
    past.sql_in("shop", SHOP);
    past.sql_in(
        "busy",
        "CREATE TABLE a (i int PRIMARY KEY, t text, u int); CREATE INDEX a_u ON a (u); CREATE TABLE b AS SELECT i, repeat('b', 500) t FROM generate_series(1, 12000) i; \
         INSERT INTO a SELECT i, repeat('a', 500), i % 100 FROM generate_series(1, 12000) i; CREATE TABLE c AS TABLE b; CREATE TABLE d AS TABLE b; \
         CREATE INDEX b_hash ON b USING hash (i); CREATE INDEX b_gin ON b USING gin (string_to_array(t, ',')); CREATE INDEX b_brin ON b USING brin (i)",
    );
    past.sql_in("busy", "VACUUM");
    // Never vacuumed before the backup: without checksums the records that make its pages visible bring no images.
    past.sql_in("busy", "CREATE TABLE e AS TABLE b");
    past.story.backup();
    past.sql_in("busy", "UPDATE a SET u = u + 1 WHERE i % 3 = 0; DELETE FROM a WHERE i % 7 = 0; INSERT INTO a SELECT i, 'new', 1 FROM generate_series(50000, 50500) i");
    past.sql_in("busy", "VACUUM (FREEZE) a");
    past.sql_in("busy", "VACUUM e");
    past.sql_in("busy", "DELETE FROM b WHERE i > 6000");
    past.sql_in("busy", "VACUUM (FREEZE) b");
    past.sql_in("busy", "UPDATE b SET i = i + 1; CREATE INDEX b_i ON b (i); INSERT INTO b SELECT i, 'x,y' FROM generate_series(1, 3000) i");
    server.sql("CHECKPOINT");
    past.sql_in("busy", "TRUNCATE c; INSERT INTO c SELECT 1, 'c'; DROP TABLE d; ALTER DATABASE busy SET work_mem = '8MB'");
    past.sql_in("busy", "VACUUM FULL a");
    server.set("full_page_writes", "off");
    past.sql_in("busy", "UPDATE b SET t = 'z' WHERE i % 2 = 0");
    past.sql_in("busy", "VACUUM b");
    server.sql("CHECKPOINT");
    past.sql_in("busy", "DELETE FROM b WHERE i % 5 = 0; UPDATE c SET i = 2");
    past.sql_in("busy", "VACUUM b");
    server.set("full_page_writes", "on");
    // From 15 on it is otherwise written to the WAL page by page.
    let strategy = if version >= 15 { "STRATEGY file_copy" } else { "" };
    server.sql(&format!("CREATE DATABASE copy TEMPLATE busy {strategy}"));
    past.sql_in("copy", "DELETE FROM a WHERE i % 2 = 0");
    let copied = past.sql_in("copy", "SELECT count(*) || ',' || sum(u) FROM a");
    past.sql_in("shop", "INSERT INTO shop.orders (customer, item) VALUES (7, 'the last one'); DELETE FROM shop.orders WHERE id % 10 = 0");
    past.sql_in("shop", "VACUUM shop.orders");
    let before = picture(&past, "shop", "shop.orders");
    let at = past.now();
    past.sql_in("shop", "DROP TABLE shop.orders CASCADE");
    past.story.settle();

    let into = past.dsn("shop");
    let args = ["--table", "shop.orders", "--database", "shop", "--lsn", &at, "--into", &into, "--json"];
    let report = past.extract(&args).expect_code(0).json();
    assert_eq!(picture(&past, "shop", "shop.orders"), before);
    assert_eq!(report["partial"], true, "{report}");
    let (fetched, stored) = (report["fetched_bytes"].as_u64().unwrap(), report["backup_stored_bytes"].as_u64().unwrap());
    let whole = past.extract(&[&args[..], &["--everything", "--replace", "--yes"]].concat()).expect_code(0).json();
    assert_eq!((whole["fetched_bytes"].as_u64().unwrap(), &whole["partial"]), (stored, &Value::from(false)));
    assert_eq!(picture(&past, "shop", "shop.orders"), before);
    assert!(fetched * 3 < stored * 2, "{fetched} of {stored}");
    let passed_over = report["passed_over_pages"].as_u64().unwrap();
    eprintln!("PostgreSQL {version}: {fetched} of {stored} bytes fetched, {passed_over} pages passed over; {}", report["steps"]);
    assert!(passed_over > if checksums { 0 } else { 500 }, "the way around pages that are not there is what this story is about: {report}");

    // What follows is the same in every version.
    if version == 15 && checksums {
        the_database_is_found(&past, &at, &copied);
    }
    past.story.end(&[]);
}

/// Which database is meant, where it is not the obvious one.
fn the_database_is_found(past: &Past, at: &str, copied: &str) {
    // Made of one that would be left empty, and not in the backup: nothing is left empty.
    let copy = past.extract(&["--query", "SELECT count(*), sum(u) FROM a", "--database", "copy", "--lsn", at, "--out", "-"]).expect_code(0);
    assert_eq!(copy.stdout, format!("count,sum\n{copied}\n"));

    // Without a database, and not in the usual one: everything is looked through, and the one that has it is found.
    let found = past.extract(&[
        "--table",
        "shop.customers",
        "--lsn",
        at,
        "--out",
        past.story.walkeep.scratch().join("c.sql").to_str().unwrap(),
        "--json",
    ]);
    let found = found.expect_code(0).json();
    assert_eq!((&found["database"], &found["partial"]), (&Value::from("shop"), &Value::from(false)), "{found}");
    past.sql_in("copy", "CREATE SCHEMA shop; CREATE TABLE shop.customers (i int)");
    past.story.settle();
    let several = past.extract(&["--table", "shop.customers", "--out", "-"]).expect_code(3);
    assert!(several.stderr.contains("several databases have it: copy, shop"), "{}", several.stderr);

    // A database that was another when the backup was taken.
    past.sql_in("postgres", "DROP DATABASE copy");
    past.sql_in("postgres", "ALTER DATABASE busy RENAME TO quiet");
    past.sql_in("postgres", "ALTER DATABASE shop RENAME TO busy");
    past.story.settle();
    let renamed = past.extract(&["--query", "SELECT count(*) FROM shop.customers", "--database", "busy", "--out", "-"]).expect_code(0);
    assert_eq!(renamed.stdout, "count\n100\n");
    assert!(renamed.stderr.contains("busy is another at the target than in the backup"), "{}", renamed.stderr);
}

#[test]
fn other_databases_are_left_empty_13() {
    other_databases_are_left_empty(13, true);
}

#[test]
fn other_databases_are_left_empty_15() {
    other_databases_are_left_empty(15, true);
}

#[test]
fn other_databases_are_left_empty_15_without_checksums() {
    other_databases_are_left_empty(15, false);
}

#[test]
fn other_databases_are_left_empty_18() {
    other_databases_are_left_empty(18, true);
}

/// The process of a scratch server below a folder.
fn scratch_server(folder: &Path) -> Option<u32> {
    let place = std::fs::read_dir(folder).ok()?.flatten().next()?.path();
    std::fs::read_to_string(place.join("data/postmaster.pid")).ok()?.lines().next()?.trim().parse().ok()
}

#[test]
fn nothing_is_left_of_an_extract_that_is_ended() {
    let past = Past::new(15);
    let server = &past.story.cluster;
    server.sql(SHOP);
    past.story.backup();
    let at = past.now();
    past.story.settle();
    let out = past.story.walkeep.scratch().join("never.csv");
    // A query that takes longer than the test waits.
    let args = past.args(&["--query", "SELECT pg_sleep(600)", "--lsn", &at, "--out", out.to_str().unwrap()]);
    for signal in ["TERM", "INT", "KILL"] {
        let mut command = past.story.walkeep.command(&args);
        let mut running = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let pid = wait_for("the scratch server", PATIENCE, || scratch_server(&past.scratch));
        process::signal(running.id(), signal);
        let ended = running.wait().unwrap();
        assert_eq!(ended.code(), (signal != "KILL").then_some(1), "{signal}");
        wait_until("nothing is left", PATIENCE, || past.left().is_empty() && !process::alive(pid));
        assert!(!out.exists());
    }
    // Where the watcher is killed too, the next extract cleans up.
    let mut running = past.story.walkeep.command(&args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let pid = wait_for("the scratch server", PATIENCE, || scratch_server(&past.scratch));
    for child in process::descendants(running.id()) {
        let line = std::fs::read(format!("/proc/{child}/cmdline")).unwrap_or_default();
        if String::from_utf8_lossy(&line).contains("scratch-watch") {
            process::signal(child, "KILL");
        }
    }
    running.kill().unwrap();
    running.wait().unwrap();
    std::thread::sleep(Duration::from_millis(300));
    assert!(process::alive(pid) && past.left().len() == 1, "it lives for now");
    let unmarked = past.scratch.join("walkeep-scratch-of-somebody");
    std::fs::create_dir(&unmarked).unwrap();
    let next = past.story.walkeep.run(&past.args(&["--query", "SELECT 1", "--lsn", &at, "--out", "-"])).expect_code(0);
    assert!(next.stderr.contains("which an extract that was killed had left"), "{}", next.stderr);
    assert_eq!(past.left(), [unmarked], "what has no marker stays");
    wait_until("the server is gone", PATIENCE, || !process::alive(pid));
    past.story.end(&[]);
}

#[test]
fn root_goes_on_as_the_server_account() {
    if !user::is_root() {
        eprintln!("SKIPPED: not run by root");
        return;
    }
    let past = Past::new(15);
    past.story.cluster.sql(SHOP);
    past.story.backup();
    let at = past.now();
    past.story.settle();
    let mut command = std::process::Command::new(binary("walkeep"));
    command.args(past.args(&["--query", "SELECT count(*) FROM shop.orders", "--lsn", &at, "--out", "-"]));
    command.env("WALKEEP_CONFIG", past.story.walkeep.config_path()).envs(past.story.walkeep.environment.iter().cloned()).current_dir("/");
    assert_eq!(run(&mut command).expect_code(0).stdout, "count\n5000\n");
    past.story.end(&[]);
}

/// Without an agent, with tablespaces and prepared transactions, to the end of what is stored.
#[test]
fn without_an_agent_to_the_end_of_what_is_stored() {
    let mut past = Past::of(Story::begin(builder(15).conf("max_prepared_transactions", 2), None));
    let place = past.story.cluster.scratch().dir("space");
    past.story.cluster.sql(&format!("CREATE TABLESPACE fast LOCATION '{}'", place.display()));
    past.story.cluster.sql("CREATE TABLE fast (i int) TABLESPACE fast; INSERT INTO fast SELECT generate_series(1, 10)");
    past.story.backup();
    past.story.cluster.sql("INSERT INTO fast VALUES (11)");
    past.story.cluster.sql("BEGIN; DROP TABLE fast; PREPARE TRANSACTION 'p'");
    past.story.settle();
    past.story.stop_agent(&[]);
    assert_eq!(past.extract(&["--query", "SELECT count(*) FROM fast", "--out", "-"]).expect_code(0).stdout, "count\n11\n");
    let out = past.story.walkeep.scratch().join("fast.sql");
    past.extract(&["--table", "fast", "--out", out.to_str().unwrap()]).expect_code(0);
    assert!(std::fs::read_to_string(&out).unwrap().contains("\n11\n"));
}

/// What belongs to a parent that does not come along stands alone, and the parent that is there is not changed.
fn a_partition_comes_alone(version: u32) {
    if !versions().contains(&version) {
        return;
    }
    let past = Past::new(version);
    let server = &past.story.cluster;
    server.sql(
        "CREATE SCHEMA shop;
         CREATE TABLE shop.log (d date, n int, t text, PRIMARY KEY (d, n)) PARTITION BY RANGE (d);
         CREATE TABLE shop.log_1 PARTITION OF shop.log FOR VALUES FROM ('2026-01-02') TO ('2026-07-01');
         CREATE TABLE shop.log_2 PARTITION OF shop.log FOR VALUES FROM ('2026-07-01') TO ('2027-01-01') PARTITION BY LIST (n);
         CREATE TABLE shop.\"Log 2a\" PARTITION OF shop.log_2 FOR VALUES IN (1, 2);
         CREATE TABLE shop.log_2b PARTITION OF shop.log_2 DEFAULT;
         CREATE INDEX ON shop.log (t);
         INSERT INTO shop.log SELECT '2026-06-20'::date + i, i % 4, 'day ' || i FROM generate_series(0, 99) i;
         CREATE TABLE shop.marks (d date, n int, FOREIGN KEY (d, n) REFERENCES shop.log);
         INSERT INTO shop.marks SELECT d, n FROM shop.log;
         CREATE TABLE shop.parent (i int); INSERT INTO shop.parent VALUES (1);
         CREATE TABLE shop.child (j int) INHERITS (shop.parent); INSERT INTO shop.child VALUES (1, 2), (3, 4)",
    );
    // Bounds are written for every style.
    server.sql("ALTER DATABASE postgres SET datestyle = 'SQL, DMY'");
    past.story.backup();
    let at = past.now();
    past.story.settle();
    let into = past.dsn("postgres");
    let target = ["--lsn", &at, "--into", &into, "--json"];
    let rows = || server.sql("SELECT (SELECT count(*) FROM shop.log) || ',' || (SELECT count(*) FROM shop.parent)");
    assert_eq!(rows(), "100,3");

    // Beside the original, each on its own.
    let one = |table: &str, note: &str| {
        let report = past.extract(&[&["--table", table, "--as", "cmp"], &target[..]].concat()).expect_code(0).json();
        let notes = report["notes"].as_array().unwrap();
        assert!(notes.iter().any(|told| told.as_str().unwrap().ends_with(note)), "{note}: {report}");
        assert_eq!(rows(), "100,3", "the tables that are there are not changed");
        report["tables"][0]["rows_there"].as_u64().unwrap()
    };
    let range = "FOR VALUES FROM ('2026-07-01') TO ('2027-01-01');";
    assert_eq!(
        one("shop.log_1", ": ALTER TABLE shop.log ATTACH PARTITION cmp.log_1 FOR VALUES FROM ('2026-01-02') TO ('2026-07-01');"),
        11
    );
    assert_eq!(one("shop.log_2", &format!(": ALTER TABLE shop.log ATTACH PARTITION cmp.log_2 {range}")), 89);
    assert_eq!(one("shop.child", ": ALTER TABLE cmp.child INHERIT shop.parent;"), 2);
    server.sql("DROP TABLE cmp.log_2");
    assert_eq!(one("shop.log_2b", ": ALTER TABLE shop.log_2 ATTACH PARTITION cmp.log_2b DEFAULT;"), 45);
    let two = r#": ALTER TABLE shop.log_2 ATTACH PARTITION cmp."Log 2a" FOR VALUES IN (1, 2);"#;
    assert_eq!(one(r#"shop."Log 2a""#, two), 44);
    let indexes = |table: &str| server.sql(&format!("SELECT count(*) FROM pg_indexes WHERE schemaname = 'cmp' AND tablename = '{table}'"));
    assert_eq!((indexes("log_1").as_str(), indexes("Log 2a").as_str()), ("2", "2"));
    assert_eq!(
        server.sql("SELECT count(*) FROM pg_inherits WHERE inhrelid = ANY (ARRAY['cmp.log_1', 'cmp.log_2b', 'cmp.child']::regclass[])"),
        "0"
    );

    // With a table that refers to the parent.
    let report =
        past.extract(&[&["--table", "shop.log_1", "--table", "shop.marks", "--as", "two"], &target[..]].concat()).expect_code(0).json();
    let key = "ALTER TABLE shop.marks ADD CONSTRAINT marks_d_n_fkey FOREIGN KEY (d, n) REFERENCES shop.log(d, n);";
    assert!(report["notes"].to_string().contains(key), "{report}");

    // In its own place, after it was dropped; and what is told makes it what it was.
    server.sql("DROP TABLE shop.marks");
    let before = picture(&past, "postgres", "shop.log_1");
    server.sql("DROP TABLE shop.log_1");
    let report = past.extract(&[&["--table", "shop.log_1"], &target[..]].concat()).expect_code(0).json();
    assert_eq!(rows(), "89,3");
    let note =
        report["notes"].as_array().unwrap().iter().find_map(|told| Some(told.as_str()?.split_once("of that: ")?.1.to_owned())).unwrap();
    server.sql(&note);
    assert_eq!(rows(), "100,3");
    assert_eq!(picture(&past, "postgres", "shop.log_1"), before);

    // Replaced, it is alone too.
    past.extract(&[&["--table", "shop.log_1", "--replace", "--yes"], &target[..]].concat()).expect_code(0);
    assert_eq!((rows().as_str(), server.sql("SELECT count(*) FROM shop.log_1").as_str()), ("89,3", "11"));
    server.sql(&note);

    // A file has it alone too; a whole tree stays one.
    let out = past.story.walkeep.scratch().join("log.sql");
    let out = out.to_str().unwrap();
    let told = past.extract(&["--table", "shop.log_1", "--lsn", &at, "--out", out]).expect_code(0);
    assert!(told.stderr.contains("note: shop.log_1 is a table of its own now"), "{}", told.stderr);
    let text = std::fs::read_to_string(out).unwrap();
    assert!(text.contains("log_1_pkey") && !text.contains("ATTACH PARTITION"), "{text}");
    let told = past.extract(&["--table", "shop.log", "--table", "shop.log_1", "--lsn", &at, "--out", out, "--replace"]).expect_code(0);
    assert!(!told.stderr.contains("of its own"), "{}", told.stderr);
    assert_eq!(std::fs::read_to_string(out).unwrap().matches("ALTER TABLE ONLY shop.log ATTACH PARTITION").count(), 2);
    past.story.end(&[]);
}

#[test]
fn a_partition_comes_alone_13() {
    a_partition_comes_alone(13);
}

#[test]
fn a_partition_comes_alone_15() {
    a_partition_comes_alone(15);
}

#[test]
fn a_partition_comes_alone_18() {
    a_partition_comes_alone(18);
}

#[test]
fn what_was_made_later_is_not_dropped() {
    let past = Past::new(15);
    let server = &past.story.cluster;
    server.sql(SHOP);
    server.sql("CREATE TABLE shop.parent (i int); INSERT INTO shop.parent VALUES (1)");
    past.story.backup();
    let at = past.now();
    server.sql(
        "CREATE TABLE shop.log_3 PARTITION OF shop.log FOR VALUES FROM ('2027-01-01') TO ('2028-01-01') PARTITION BY RANGE (d);
         CREATE TABLE shop.\"log\n3a\" PARTITION OF shop.log_3 DEFAULT; INSERT INTO shop.log VALUES ('2027-03-01', 'new');
         CREATE TABLE shop.heir () INHERITS (shop.parent)",
    );
    past.story.settle();
    let into = past.dsn("postgres");
    let replace = |table: &str| past.extract(&["--lsn", &at, "--table", table, "--into", &into, "--replace", "--yes"]);
    let refused = replace("shop.log").expect_code(3).stderr;
    for told in ["shop.log_3 (a partition of shop.log)", r#"shop."log\n3a" (a partition of shop.log_3)"#, "nothing was changed", "--as"] {
        assert!(refused.contains(told), "{told}: {refused}");
    }
    let refused = replace("shop.parent").expect_code(3).stderr;
    assert!(refused.contains("shop.heir (inherits from shop.parent)"), "{refused}");
    assert_eq!(server.sql("SELECT count(*) FROM shop.log"), "301");
    server.sql("ALTER TABLE shop.log DETACH PARTITION shop.log_3");
    replace("shop.log").expect_code(0);
    assert_eq!(server.sql("SELECT (SELECT count(*) FROM shop.log) || ',' || (SELECT count(*) FROM shop.log_3)"), "300,1");

    // Asked in a terminal, the tables are named.
    for (answer, code, rows) in [("n", 3, "0"), ("y", 0, "300")] {
        server.sql("TRUNCATE shop.log");
        let args = past.args(&["--lsn", &at, "--table", "shop.log", "--into", &into, "--replace"]);
        let walkeep = past.story.walkeep.command(&args);
        let words = std::iter::once(walkeep.get_program()).chain(walkeep.get_args()).map(|word| word.to_str().unwrap());
        let line = words.map(|word| format!("'{}'", word.replace('\'', r"'\''"))).collect::<Vec<_>>().join(" ");
        let mut command = std::process::Command::new("script");
        command.args(["-qec", &line, "/dev/null"]).env("WALKEEP_CONFIG", past.story.walkeep.config_path());
        command.envs(past.story.walkeep.environment.iter().cloned()).current_dir("/");
        let mut asked = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stdin = asked.stdin.take().unwrap();
        // The terminal keeps it until it is read; its end would be the end of the terminal.
        writeln!(stdin, "{answer}").unwrap();
        let output = asked.wait_with_output().unwrap();
        drop(stdin);
        let shown = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(code), "{shown}");
        assert!(shown.contains("anew, in one transaction: shop.log, shop.log_1, shop.log_2. Go on? [y/N]"), "{shown}");
        assert_eq!(server.sql("SELECT count(*) FROM shop.log"), rows);
        assert_eq!(past.left(), Vec::<PathBuf>::new());
    }
    past.story.end(&[]);
}

#[test]
fn what_does_not_come_along_is_told() {
    let past = Past::new(15);
    let server = &past.story.cluster;
    server.sql(SHOP);
    server.sql(
        "CREATE TABLE shop.parent (i int); INSERT INTO shop.parent VALUES (1);
         CREATE TABLE shop.heir () INHERITS (shop.parent); INSERT INTO shop.heir VALUES (2), (3);
         CREATE TABLE shop.heirs_heir () INHERITS (shop.heir); INSERT INTO shop.heirs_heir VALUES (4);
         CREATE UNLOGGED TABLE shop.quick (i int); INSERT INTO shop.quick VALUES (1);
         CREATE DOMAIN shop.lo AS oid; CREATE TABLE shop.pictures (i int, picture shop.lo); CREATE TABLE shop.numbers (o oid);
         CREATE MATERIALIZED VIEW shop.stored AS SELECT 1 AS i;
         CREATE TABLE shop.\"two\nlines\u{1b}[31m\" (i int)",
    );
    past.story.backup();
    let before = past.now();
    server.sql("INSERT INTO shop.pictures VALUES (1, lo_from_bytea(0, 'x'))");
    past.story.settle();
    let out = past.story.walkeep.scratch().join("out.sql");
    let out = out.to_str().unwrap();
    let all = ["shop.parent", "shop.quick", "shop.pictures", "shop.numbers", "shop.customers", "shop.\"two\nlines\u{1b}[31m\""];
    let args: Vec<&str> = all.iter().flat_map(|table| ["--table", *table]).chain(["--out", out, "--replace"]).collect();
    let told = past.extract(&args).expect_code(0);
    for note in [
        "note: not copied, a table that inherits from it: shop.heir, rows: 2; --table shop.heir brings it too\n",
        "note: not copied, a table that inherits from it: shop.heirs_heir, rows: 1;",
        "note: shop.quick is unlogged: ",
        "note: not copied: large objects, which columns of type oid may refer to, in shop.numbers, shop.pictures;",
    ] {
        assert!(told.stderr.contains(note), "{note}: {}", told.stderr);
    }
    // And the foreign key of orders.
    assert_eq!(told.stderr.matches("note: ").count(), 5, "{}", told.stderr);
    assert!(told.stdout.contains("shop.\"two\\nlines\\u{1b}[31m\": 0 rows"), "{}", told.stdout);
    let without = past.extract(&[&["--lsn", &before], &args[..]].concat()).expect_code(0);
    assert!(!without.stderr.contains("large objects"), "{}", without.stderr);
    let whole = past.extract(&["--schema", "shop", "--out", out, "--replace"]).expect_code(0);
    assert!(!whole.stderr.contains("inherits"), "{}", whole.stderr);

    for (name, told) in [
        ("shop.stored", "shop.stored is a materialized view in database postgres at the target"),
        ("large", "shop.large is a view"),
        ("shop.\"two\nline\"", "no table shop.\"two\\nline\" in"),
    ] {
        let refused = past.extract(&["--table", name, "--out", out, "--replace"]).expect_code(3).stderr;
        assert!(refused.contains(told), "{told}: {refused}");
        assert!(!refused.contains("two\nlin") && !refused.contains('\u{1b}'), "{refused}");
    }
    past.story.end(&[]);
}
