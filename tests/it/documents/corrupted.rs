//! Data is corrupted: a page on the disk is wrong.

use std::os::unix::fs::FileExt;

use walkeep_tests::Stop;

use super::stage::{Place, Stage};
use super::text::RUNBOOK;
use crate::story;

pub const PLACES: [Place; 1] = [(RUNBOOK, "Data is corrupted", 1)];

#[test]
fn data_is_corrupted() {
    let mut stage = Stage::usual(&PLACES);
    let good = story::backup(&stage.walkeep);
    let path = stage.in_shop("SELECT pg_relation_filepath('orders')");
    stage.cluster.stop(Stop::Fast);
    let file = std::fs::File::options().write(true).open(stage.cluster.data().join(path)).unwrap();
    file.write_all_at(&[0xAA; 300], 3 * 8192 + 5000).unwrap();
    stage.cluster.start();
    stage.wait_ready();

    let named = stage.inline_ends(4, RUNBOOK, "Data is corrupted", "walkeep backup --full");
    let told = "error: 1 page of the server had wrong checksums: block 20 of base/16385/16421 (shop.public.orders). The backup is kept, with these pages as they were";
    named.as_told(told).quoted("exit code 4");
    stage.means("20261122T211205Z", &good[..good.len() - 2], "the beginning of the ID of the backup before the damage");
    stage.open(PLACES[0]);
    stage.run("walkeep backups").says(&good).says("1 page had wrong checksums");
    stage.run("walkeep verify");
    stage.run("walkeep extract --latest").as_told("recovered.orders: 200500 rows read, 200500 there now");
    let counted = stage.run("psql shop");
    counted.says(" 1000\n");

    // Without --backup the newest one is taken, bad page and all.
    let mut words: Vec<String> =
        ["extract", "--latest", "--table", "public.orders", "--as", "again", "--database", "shop"].map(str::to_owned).into();
    words.extend(["--into".to_owned(), stage.cluster.connection().replace("dbname=postgres", "dbname=shop")]);
    let failed = stage.walkeep.run(&words.iter().map(String::as_str).collect::<Vec<_>>()).expect_code(1);
    counted.quoted("error: count the rows of recovered.orders: ... invalid page in block 20");
    assert!(super::said::matches(&failed.stderr, "error: count the rows of again.orders: ... invalid page in block 20"), "{failed:?}");
    assert_eq!(stage.in_shop("SELECT to_regclass('again.orders') IS NULL"), "t");

    // In one transaction, as the text says; then 0 again.
    for words in ["DROP TABLE public.orders", "ALTER TABLE recovered.orders SET SCHEMA public"] {
        counted.quoted(words);
    }
    stage.in_shop("DROP TABLE public.orders; ALTER TABLE recovered.orders SET SCHEMA public");
    stage.cluster.sql("CHECKPOINT");
    stage.inline(RUNBOOK, "Data is corrupted", "walkeep backup --full");
    stage.end();
}
