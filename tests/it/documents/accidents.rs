//! A table was dropped, a migration failed, a wrong deployment: the server goes on.

use super::stage::{Place, Stage};
use super::text::{README, RUNBOOK};

pub const DROPPED: [Place; 4] =
    [(RUNBOOK, "A table was dropped", 1), (RUNBOOK, "A table was dropped", 2), (README, "Restore", 2), (README, "One table back", 1)];

pub const DEPLOYED: [Place; 2] = [(RUNBOOK, "A wrong deployment", 1), (RUNBOOK, "A wrong deployment", 2)];

pub const MIGRATED: [Place; 3] = [(RUNBOOK, "A migration failed", 1), (README, "Restore", 1), (README, "Restore", 3)];

const FROM: &str = "2026-11-20 14:00:00+01";
const AT: &str = "2026-11-20 14:29:00+01";

#[test]
fn a_table_was_dropped() {
    let mut stage = Stage::usual(&DROPPED);
    let from = stage.now();
    stage.means(FROM, &from, "a time shortly before the accident");
    stage.in_shop("DROP TABLE orders");
    stage.settle();
    stage.open(DROPPED[2]);
    stage.run("sudo -u postgres walkeep log --dropped").says("DROPPED table shop.public.orders");
    stage.run("sudo -u postgres walkeep plan --before-drop").says("Every object this needs is in the repository");
    stage.open(DROPPED[0]);
    stage.run("walkeep log --dropped --from").as_told("DROPPED table shop.public.orders with 2 indexes, 1 TOAST table");
    let planned = stage.run("walkeep plan --before-drop");
    planned.as_told("before  DROP of shop.public.orders, xid 753").as_told("Every object this needs is in the repository");
    stage.run("walkeep extract --before-drop").as_told("table  public.orders: 200500 rows read, 200500 there now");
    assert_eq!(stage.in_shop("SELECT count(*) FROM orders"), "1000");
    assert_eq!(stage.in_shop("SELECT count(*) FROM pg_indexes WHERE tablename = 'orders'"), "2", "it is back with its indexes");

    let before = stage.now();
    stage.means(AT, &before, "the moment before the accident");
    stage.in_shop("DELETE FROM orders WHERE id > 10");
    stage.settle();
    stage.open(DROPPED[1]);
    stage.run("walkeep log --from").says("a minute");
    stage.run("walkeep extract --at").says("before.orders: 1000 rows read, 1000 there now");
    stage.run("psql shop").says(" 1000\n");
    assert_eq!(stage.in_shop("SELECT count(*) FROM orders"), "10", "the present is as it was");

    // A schema of the shop's name in the shop.
    stage.in_shop("CREATE SCHEMA shop; CREATE TABLE shop.orders AS SELECT i AS id FROM generate_series(1, 500) i");
    stage.walkeep.ok(&["backup"]);
    let before = stage.now();
    stage.means("2026-11-20 14:30:00+01", &before, "the moment before the accident");
    stage.in_shop("DROP TABLE shop.orders");
    stage.settle();
    stage.open(DROPPED[3]);
    let told = stage.run("sudo -u postgres walkeep log --dropped").output.stdout;
    let line = told.lines().find(|line| line.contains("DROPPED table shop.shop.orders")).unwrap_or_else(|| panic!("{told}"));
    let lsn = line.split_whitespace().find(|word| word.contains('/')).unwrap_or_else(|| panic!("{line}"));
    stage.means("16/B374D848", lsn, "the LSN that the line before tells");
    stage.run("sudo -u postgres walkeep extract --table shop.orders --lsn").says("shop.orders: 500 rows read, 500 there now");
    assert_eq!(stage.in_shop("SELECT count(*) FROM shop.orders"), "500");
    stage.run("sudo -u postgres walkeep extract --table shop.orders --at");
    assert!(std::fs::read(stage.work().join("orders.dump")).unwrap().starts_with(b"PGDMP"), "it is for pg_restore");
    stage.run("sudo -u postgres walkeep extract --query");
    let csv = std::fs::read_to_string(stage.work().join("orders.csv")).unwrap();
    assert!(csv.starts_with("id\n1\n") && csv.lines().count() == 100, "{csv}");
    stage.end();
}

#[test]
fn a_wrong_deployment() {
    let mut stage = Stage::usual(&DEPLOYED);
    let from = stage.now();
    stage.means(FROM, &from, "a time shortly before the accident");
    let before = stage.now();
    stage.means(AT, &before, "the moment before the accident");
    stage.in_shop("UPDATE app.item SET state = 'wrong' WHERE i <= 600");
    stage.settle();
    stage.open(DEPLOYED[0]);
    stage.run("walkeep log --from").as_told("commits from ..., 1 minute: 10 a minute");
    stage.run("walkeep extract --at").as_told("app_before.item: 1000 rows read, 1000 there now");
    stage.run("psql shop -c 'SELECT").says("(600 rows)").says("right | wrong");
    stage.run("psql shop -c 'UPDATE").says("UPDATE 600\n");
    assert_eq!(stage.in_shop("SELECT count(*) FROM app.item WHERE state = 'right'"), "1000");
    stage.open(DEPLOYED[1]);
    stage.run("walkeep restore --at");
    stage.run("pg_ctl -D /srv/look -o");
    stage.until("psql -p 5499", |said| said.has("| paused")).as_told("t | paused");
    stage.run("pg_ctl -D /srv/look stop");
    assert!(!stage.srv("look").exists());
    stage.end();
}

#[test]
fn a_migration_failed() {
    let mut stage = Stage::usual(&MIGRATED);
    stage.inline(RUNBOOK, "A migration failed", "walkeep backup --label before-v42 --keep 30d");
    // The other thing that is to be done before one.
    let documented = "SELECT pg_create_restore_point('before_v42')";
    let before = stage.now();
    stage.cluster.sql(documented);
    stage.in_shop("ALTER TABLE orders DROP COLUMN customer");
    stage.settle();
    stage.open(MIGRATED[0]);
    let log = stage.run("walkeep log --restore-points");
    log.quoted(documented).as_told("restore point \"before_v42\"");
    stage.run("walkeep plan --restore-point").says("\"before-v42\"");
    stage.run("walkeep restore --restore-point");
    std::fs::rename(stage.srv("restored"), stage.srv("before")).unwrap();

    stage.means("2026-11-20 14:30:00+01", &before, "the moment before the accident");
    stage.open(MIGRATED[1]);
    stage.run("sudo -u postgres walkeep status").says("recoverable");
    stage
        .run("sudo -u postgres walkeep plan --at")
        .says("last commit")
        .says("not replayed")
        .says("To do it: walkeep restore with the same target");
    stage.open(MIGRATED[2]);
    stage.run("sudo -u postgres walkeep restore --at");
    // It has the port of the old one.
    stage.cluster.stop(walkeep_tests::Stop::Fast);
    for restored in ["restored", "before"] {
        if restored == "before" {
            std::fs::rename(stage.srv("restored"), stage.srv("seen")).unwrap();
            std::fs::rename(stage.srv("before"), stage.srv("restored")).unwrap();
            stage.again(0, &[], "the other restored copy comes up too");
        } else {
            stage.run("sudo -u postgres /usr/lib/postgresql/15/bin/pg_ctl");
        }
        stage.wait_writable();
        assert_eq!(stage.in_shop("SELECT count(customer) FROM orders"), "1000", "{restored}: the column is there again");
        stage.stop_started(&stage.srv("restored"));
    }
    stage.end();
}
