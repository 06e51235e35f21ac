//! The whole story of each version: archive, stream, back up, work on, plan, restore, start, and every row is there.

use serde_json::Value;
use walkeep_tests::postgres::versions;
use walkeep_tests::{Repository, S3Server};

use crate::story::{STATE, Story, builder, insert_statement, plan};

fn whole_story(version: u32, repository: Option<Repository>) {
    if !versions().contains(&version) {
        return;
    }
    let story = Story::begin(builder(version), repository);
    story.insert(50);
    // Work goes on while the backup is taken.
    let mut working = story.cluster.session();
    working.send(&insert_statement(200));
    let backup = story.backup();
    working.finish();
    drop(working);
    story.insert(30);
    let (before, time) = (story.cluster.sql(STATE), story.commit_time(280));
    story.insert(20);
    story.settle();
    story.insert(5);
    let end = story.cluster.sql(STATE);
    assert_eq!(end.split('|').next(), Some("305"));
    story.settle();

    let planned = plan(&story.walkeep, &["--at", &time]);
    assert_eq!(planned["backup"]["id"], Value::from(backup.as_str()));
    assert_eq!(planned["last_replayed"]["xid"].to_string(), story.xid(280));
    assert_eq!(planned["first_not_replayed"]["xid"].to_string(), story.xid(281));
    assert!(story.walkeep.ok(&["plan", "--at", &time]).stdout.contains("Every object this needs is in the repository"));

    for (target, wanted) in [(vec!["--latest"], end), (vec!["--at", &time], before)] {
        let restored = story.restore(&target);
        restored.verify();
        restored.start();
        assert_eq!(restored.state(), wanted, "{target:?}");
        // It is a server like any other: it writes, on a timeline of its own.
        restored.cluster.sql("INSERT INTO t VALUES (0, 'restored')");
        assert!(restored.cluster.switch_wal().starts_with("00000002"));
    }
    story.end(&[]);
}

macro_rules! versions {
    ($($name:ident $version:literal)*) => {$(
        #[test]
        fn $name() {
            whole_story($version, None);
        }
    )*};
}

versions! {
    postgres_13_is_restored 13
    postgres_14_is_restored 14
    postgres_15_is_restored 15
    postgres_16_is_restored 16
    postgres_17_is_restored 17
    postgres_18_is_restored 18
}

fn s3() -> Option<Repository> {
    let server = S3Server::get();
    Some(Repository::s3(server.endpoint(), &server.bucket()))
}

#[test]
fn postgres_15_is_restored_from_s3() {
    whole_story(15, s3());
}

#[test]
fn postgres_18_is_restored_from_s3_by_tls() {
    let server = S3Server::get();
    whole_story(18, Some(Repository::s3_tls(&server.bucket())));
}
