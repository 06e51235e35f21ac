//! X5, X6: keys that may put, get and list, and delete nothing: the policies of `packaging/iam` as they are shipped, enforced by the S3 server.

use walkeep_tests::s3::{LEAST_PREFIX, Least};
use walkeep_tests::{Cluster, Fault, Repository, Request, S3Server, Stop, Walkeep, When, compare_fetched, wait_until};

use crate::story::{PATIENCE, Restored, builder, insert, settle};
use crate::support::{SERVER_GONE, assert_calm, switch_and_store};

const VERSION: u32 = 15;
const STAYS: &str = "deleting is denied, as it may be";

/// Everything Walkeep does, with these keys. Answers what `init` and `check` said.
fn whole_story(least: Least) -> String {
    let cluster = builder(VERSION).start();
    let proxy = S3Server::get().proxy();
    let bucket = least.bucket();
    let repository = Repository::S3 { endpoint: proxy.endpoint(), bucket: bucket.name.clone(), prefix: LEAST_PREFIX.to_owned(), ca: None };
    let mut walkeep = Walkeep::new(&cluster, repository);
    for (name, value) in least.credentials() {
        walkeep.environment.iter_mut().find(|(other, _)| *other == name).unwrap().1 = value;
    }
    let init = walkeep.ok(&["init"]);
    let agent = walkeep.agent();
    cluster.archive_by(Some(&walkeep.archive_command()));
    cluster.sql("CREATE TABLE t (i int PRIMARY KEY, filler text)");
    insert(&cluster, 10);
    let check = walkeep.ok(&["check"]);
    walkeep.ok(&["backup"]);
    insert(&cluster, 10);
    settle(&cluster, &walkeep);
    // Trouble on the way makes a client look at what it stored already; that must be allowed too.
    proxy.arm(When::put().times(3), Fault::DropAnswer);
    switch_and_store(&cluster, &agent, 1);
    proxy.disarm_all();
    cluster.archive_now();
    // The tail goes in parts, in one and then another.
    insert(&cluster, 5);
    cluster.stop(Stop::Fast);
    let kept = if least == Least::Keeps { vec!["cannot be removed"] } else { vec![] };
    assert_calm(&agent, &[SERVER_GONE.as_slice(), &["failed; trying again"], &kept].concat());
    agent.stop();
    cluster.start();
    let agent = walkeep.agent();
    insert(&cluster, 5);
    settle(&cluster, &walkeep);
    assert!(compare_fetched(&cluster.oracle(), &walkeep) >= 3);
    for command in ["status", "backups", "timelines", "plan"] {
        walkeep.ok(&[command]);
    }
    let restored = Restored::by(&walkeep, VERSION, &[]);
    assert_eq!(restored.start().rows(), 30);
    let part = |request: &Request| request.method == "DELETE" && request.path.contains(".parts/");
    wait_until("parts are to be removed", PATIENCE, || proxy.requests().iter().any(part));
    assert_calm(&agent, &kept);
    agent.stop();

    // The server refused what the policy does not allow, and nothing but scratch objects and parts was ever to be deleted.
    let refused: Vec<_> = proxy.requests().into_iter().filter(|request| request.status == Some(403)).collect();
    let probe = format!("/{}/{LEAST_PREFIX}/main/probe-", bucket.name);
    for request in &refused {
        assert!(part(request) || request.method == "DELETE" && request.path.starts_with(&probe), "{request:?}");
    }
    let deletes: Vec<_> = proxy.requests().into_iter().filter(|request| request.method == "DELETE").collect();
    assert!(deletes.len() >= 3 && deletes.iter().all(|request| part(request) || request.path.starts_with(&probe)), "{deletes:?}");
    // Denied once, an agent does not ask again.
    assert!(least == Least::CleansUp || deletes.iter().filter(|request| part(request)).count() <= 2, "{deletes:?}");
    assert_eq!(refused.len(), if least == Least::Keeps { deletes.len() } else { 0 });
    let left = bucket.list(&format!("{LEAST_PREFIX}/main/probe-")).len();
    assert_eq!(left, if least == Least::Keeps { 2 } else { 0 });
    format!("{}{}{}", init.stdout, init.stderr, check.stdout)
}

#[test]
fn keys_that_cannot_delete() {
    let said = whole_story(Least::Keeps);
    // Once by each of `init` and `check`.
    assert_eq!(said.matches(STAYS).count(), 2, "{said}");
}

#[test]
fn keys_that_can_delete_scratch_objects_and_parts_only() {
    let said = whole_story(Least::CleansUp);
    assert!(!said.contains(STAYS), "{said}");
}

/// The policies are no broader than that: what they must not allow is refused, or the stories above would prove nothing.
#[test]
fn the_policies_allow_no_more() {
    let cluster = Cluster::builder().segment_mib(1).start();
    let elsewhere = Least::Keeps;
    let server = S3Server::get();
    for (bucket, prefix) in [(elsewhere.name().to_owned(), "elsewhere".to_owned()), (server.bucket().name, LEAST_PREFIX.to_owned())] {
        let mut walkeep = Walkeep::new(&cluster, Repository::S3 { endpoint: server.endpoint(), bucket, prefix, ca: None });
        walkeep.environment.retain(|(name, _)| !name.starts_with("AWS_ACCESS") && !name.starts_with("AWS_SECRET"));
        walkeep.environment.extend(elsewhere.credentials());
        let output = walkeep.run(&["init"]).expect_code(1);
        assert!(output.stderr.contains("access denied") && output.stderr.contains("AccessDenied"), "{}", output.stderr);
    }
}

/// What may not be removed is told and stays out of the catalog; keys that may remove it, later, finish the work.
#[test]
fn what_may_not_be_removed_goes_later() {
    let cluster = builder(VERSION).start();
    let bucket = Least::Expires.bucket();
    let server = S3Server::get();
    let repository = Repository::S3 { endpoint: server.endpoint(), bucket: bucket.name.clone(), prefix: LEAST_PREFIX.to_owned(), ca: None };
    let mut walkeep = Walkeep::new(&cluster, repository);
    walkeep.more = "\n[cluster.main.retention]\nwindow = \"0s\"\nminimum_backups = 1\ngrace = \"0s\"\n".to_owned();
    walkeep.write_config();
    let use_keys = |walkeep: &mut Walkeep, least: Least| {
        for (name, value) in least.credentials() {
            walkeep.environment.iter_mut().find(|(other, _)| *other == name).unwrap().1 = value;
        }
    };
    use_keys(&mut walkeep, Least::Waits);
    walkeep.ok(&["init"]);
    let agent = walkeep.agent();
    cluster.archive_by(Some(&walkeep.archive_command()));
    cluster.sql("CREATE TABLE t (i int PRIMARY KEY, filler text)");
    insert(&cluster, 10);
    walkeep.ok(&["backup"]);
    switch_and_store(&cluster, &agent, 1);
    std::thread::sleep(std::time::Duration::from_millis(1100));
    let kept = crate::story::backup(&walkeep);
    settle(&cluster, &walkeep);
    let refused = walkeep.run(&["expire", "--yes"]).expect_code(1);
    assert!(refused.stderr.contains("access denied") && refused.stderr.contains("s3:DeleteObject"), "{}", refused.stderr);
    assert_eq!(crate::story::backups(&walkeep), std::slice::from_ref(&kept), "{}\n{}", refused.stdout, refused.stderr);
    use_keys(&mut walkeep, Least::Expires);
    let done = walkeep.ok(&["expire", "--yes", "--json"]).json();
    assert_eq!(done["carried_out"]["backups"].as_array().map(Vec::len), Some(1), "{done}");
    assert!(!bucket.list(LEAST_PREFIX).iter().any(|(key, _)| key.contains("/backup.json") && !key.contains(&kept)));
    agent.stop();
    // Who only reads restores, and can do nothing else.
    use_keys(&mut walkeep, Least::Restores);
    assert_eq!(Restored::by(&walkeep, VERSION, &[]).start().rows(), 10);
    let refused = walkeep.run(&["keep", &kept]).expect_code(1);
    assert!(refused.stderr.contains("access denied"), "{}", refused.stderr);
    // But for the record of it.
    let trail = walkeep.ok(&["audit", "--json"]).json();
    let newest: Vec<_> =
        trail["records"].as_array().unwrap().iter().rev().map(|record| format!("{} {}", record["kind"], record["outcome"])).collect();
    assert_eq!(newest[..3], ["\"keep\" \"failed\"", "\"restore\" \"done\"", "\"restore\" \"begun\""]);
}
