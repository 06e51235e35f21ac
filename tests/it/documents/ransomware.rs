//! Ransomware: everything in a bucket that keeps versions was deleted. And buckets whose objects lie in archived storage classes.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use walkeep_tests::{Repository, S3Server, Walkeep, user, wait_until};

use super::stage::{Place, Stage, server};
use super::text::{README, RUNBOOK};
use crate::story;

pub const DELETED: [Place; 2] = [(RUNBOOK, "Ransomware", 1), (README, "Immutability", 1)];
pub const FROZEN: [Place; 1] = [(README, "Immutability", 2)];

/// S3 tells whole seconds. The present one, once it is another than that of everything before; what comes is of a later one.
fn second() -> u64 {
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let before = now();
    wait_until("the next second", Duration::from_secs(5), || now() > before + 1);
    let between = now() - 1;
    wait_until("the next second", Duration::from_secs(5), || now() > between + 1);
    between
}

/// As the documents write a time, in this zone.
fn written(second: u64, zone: i64) -> String {
    let at = i64::try_from(second).unwrap() + zone * 3600;
    let mut date = user::command("date");
    let shown = walkeep_tests::process::run(date.args(["-u", "-d", &format!("@{at}"), "+%Y-%m-%d %H:%M:%S"])).unwrap();
    format!("{}+{zone:02}", shown.trim())
}

#[test]
fn every_object_was_deleted() {
    let s3 = S3Server::get();
    let bucket = s3.locking_bucket();
    let cluster = server(&[]);
    let repository = Repository::S3 { endpoint: s3.endpoint(), bucket: bucket.name.clone(), prefix: "prod".to_owned(), ca: None };
    let walkeep = Walkeep::new(&cluster, repository);
    let mut stage = Stage::archiving(&DELETED, cluster, walkeep);
    let backup = story::backup(&stage.walkeep);
    stage.in_shop("INSERT INTO orders SELECT i, 'late' FROM generate_series(1001, 1234) i");
    stage.settle();
    stage.stop_agent();
    let whole = second();
    let objects = bucket.list("");
    assert!(objects.len() > 10);
    objects.iter().for_each(|(key, _)| bucket.delete(key));
    assert!(bucket.list("").is_empty());
    stage.cluster.kill9();

    stage.means("2026-11-20 03:00:00+01", written(whole, 1), "a second or two before the deletion");
    stage.open(DELETED[0]);
    let status = stage.run("walkeep status --as-of");
    status.as_told("recoverable from 2026-11-22 21:19:38 UTC ... 1 backup").says(&backup);
    let without = stage.without(" --as-of", 1);
    let told = without.output.stderr.replace(&bucket.name, "walkeep");
    without.quoted("exit code 1");
    stage.promised(RUNBOOK, "Ransomware", "error: no Walkeep repository at s3://walkeep/prod: the marker walkeep.json is missing", &told);
    stage.run("walkeep plan --as-of").says("Every object this needs is in the repository");
    stage.run("walkeep restore --as-of");
    let restored = stage.srv("restored");
    stage.start(&restored);
    assert_eq!(stage.in_shop("SELECT count(*) FROM orders"), "1234");
    stage.stop_started(&restored);
    std::fs::rename(restored, stage.srv("seen")).unwrap();

    stage.means("2026-11-20 03:00:00+00", written(whole, 0), "as above, in another zone");
    stage.open(DELETED[1]);
    stage.run("walkeep plan --as-of").says("Every object this needs is in the repository");
    stage.run("walkeep restore --as-of");
    stage.start(&stage.srv("restored"));
    assert_eq!(stage.in_shop("SELECT count(*) FROM orders"), "1234");
    stage.end();
}

#[test]
fn what_a_restore_needs_is_archived() {
    let (proxy, bucket) = (S3Server::get().proxy(), S3Server::get().bucket());
    let cluster = server(&[]);
    let walkeep = Walkeep::new(&cluster, Repository::s3(proxy.endpoint(), &bucket));
    let mut stage = Stage::archiving(&FROZEN, cluster, walkeep);
    stage.walkeep.ok(&["backup"]);
    let at = stage.now();
    stage.settle();
    stage.stop_agent();
    stage.means("2026-03-01 14:30:00+01", &at, "a moment that is stored");
    proxy.freeze("/packs/", "DEEP_ARCHIVE", Duration::from_secs(1));
    stage.open(FROZEN[0]);
    stage.run("walkeep plan --at").says("DEEP_ARCHIVE").says("bulk up to 48 hours");
    stage.run("walkeep restore --at");
    let asked = proxy.thaws();
    assert!(!asked.is_empty() && asked.iter().all(|thaw| thaw.tier == "Bulk" && thaw.days == Some(7)), "{asked:?}");
    stage.cluster.kill9();
    stage.start(&stage.srv("restored"));
    assert_eq!(stage.in_shop("SELECT count(*) FROM orders"), "1000");
    proxy.freeze_again();
    let before = proxy.thaws().len();
    stage.run("walkeep thaw --at").says("standard");
    assert!(proxy.thaws().len() > before);
    stage.end();
}
