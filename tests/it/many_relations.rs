//! A cluster of many relations: streamed, backed up, built on and restored.

use walkeep_tests::postgres::bin;

use crate::story::{self, Restored, Story};

const VERSION: u32 = 15;
/// How many there are, and what is in some.
const DIGEST: &str = "SELECT count(*) || ' tables: ' || concat_ws(' ', (SELECT n FROM many_6), (SELECT n FROM many_7), (SELECT n FROM many_9), (SELECT n FROM many_1999)) \
                      FROM pg_class WHERE relkind = 'r' AND relname LIKE 'many\\_%'";

/// Made by SQL, so that catalog, WAL, index and names have them all. `WALKEEP_RELATIONS=100000` makes that many; they need no more than a few thousand to be wrong.
#[test]
fn thousands_of_tables_come_back() {
    let tables: u32 = std::env::var("WALKEEP_RELATIONS").ok().map_or(2000, |text| text.parse().unwrap());
    assert!(bin(VERSION).is_some());
    let story = Story::begin(story::builder(VERSION).conf("max_locks_per_transaction", "256").conf("fsync", "off"), None);
    for first in (0..tables).step_by(1000) {
        let last = (first + 1000).min(tables) - 1;
        story.cluster.sql(&format!(
            "DO $$ BEGIN FOR i IN {first}..{last} LOOP EXECUTE format('CREATE TABLE many_%s AS SELECT %s AS n', i, i); END LOOP; END $$"
        ));
    }
    let take = || story.walkeep.ok(&["backup", "--method", "local", "--json"]).json();
    let first = take();
    assert!(first["files"].as_u64().unwrap() > u64::from(tables), "{first}");
    story.cluster.sql("UPDATE many_7 SET n = -7; DROP TABLE many_8; CREATE TABLE many_more AS SELECT 1 AS n");
    let second = take();
    assert_eq!(second["parent"], first["id"], "{second}");
    let bytes = |record: &serde_json::Value| record["bytes_stored"].as_u64().unwrap();
    assert!(bytes(&second) < bytes(&first) / 2 + 1_000_000, "{first}\n{second}");
    story.cluster.sql("UPDATE many_9 SET n = -9");
    story.settle();
    let now = story.cluster.sql(DIGEST);
    assert_eq!(now, format!("{tables} tables: 6 -7 -9 1999"));
    let restored = Restored::by(&story.walkeep, VERSION, &["--latest"]);
    restored.verify();
    restored.start();
    assert_eq!(restored.cluster.sql(DIGEST), now);
    story.end(&[]);
}
