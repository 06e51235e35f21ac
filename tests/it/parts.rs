//! The unfinished segment goes into the repository as parts: what is committed is there soon, or before the commit returns.

use std::time::Duration;

use walkeep_tests::{Agent, Bucket, Repository, Request, S3Server, Stop, Walkeep, When, wait_until};

use crate::story::{self, Restored, Story};
use crate::support::{SERVER_GONE, assert_calm, joined_parts, lsn, switch_and_store, wait_durable};

const VERSION: u32 = 15;
const SOON: Duration = Duration::from_secs(30);

/// Keys of parts in the bucket, without their folder.
fn parts(bucket: &Bucket) -> Vec<String> {
    bucket.list("main/").into_iter().filter_map(|(key, _)| key.split_once(".parts/").map(|(_, part)| part.to_owned())).collect()
}

/// No segment ends, nothing is stopped in peace: server and agent are gone at once, and only the bucket is left.
#[test]
fn commits_of_the_unfinished_segment_outlive_server_and_agent() {
    let bucket = S3Server::get().bucket();
    let cluster = story::builder(VERSION).start();
    let walkeep = Walkeep::new(&cluster, Repository::s3(S3Server::get().endpoint(), &bucket));
    walkeep.ok(&["init"]);
    let mut agent = walkeep.agent();
    cluster.sql("CREATE TABLE t (i int PRIMARY KEY, filler text)");
    story::backup(&walkeep);
    story::insert(&cluster, 40);
    let state = cluster.sql(story::STATE);
    wait_durable(&agent, lsn(&cluster.sql("SELECT pg_current_wal_flush_lsn()")), SOON);
    agent.kill9();
    cluster.kill9();
    assert!(!parts(&bucket).is_empty());
    std::fs::rename(cluster.data(), cluster.data().with_extension("gone")).unwrap();
    let restored = Restored::by(&walkeep, VERSION, &[]);
    assert_eq!(restored.start().state(), state);
    assert_eq!(restored.rows(), 40);
}

/// A slow stream leaves few parts, each byte stored once or twice, and none after its segment is stored whole. An idle server causes no request.
#[test]
fn parts_are_few_and_go() {
    let (proxy, bucket) = (S3Server::get().proxy(), S3Server::get().bucket());
    let cluster = story::builder(VERSION).conf("checkpoint_timeout", "1h").conf("bgwriter_lru_maxpages", "0").start();
    let mut walkeep = Walkeep::new(&cluster, Repository::s3(proxy.endpoint(), &bucket));
    walkeep.upload_interval = "100ms".to_owned();
    walkeep.write_config();
    walkeep.ok(&["init"]);
    let agent = walkeep.agent();
    cluster.sql("CREATE TABLE t (i int PRIMARY KEY, filler text)");
    switch_and_store(&cluster, &agent, 1);
    proxy.forget();
    for _ in 0..60 {
        story::insert(&cluster, 1);
        wait_durable(&agent, lsn(&cluster.sql("SELECT pg_current_wal_flush_lsn()")), SOON);
    }
    let put = |request: &Request| request.method == "PUT" && request.path.contains(".parts/");
    let stored: u64 = proxy.requests().iter().filter(|request| put(request)).map(|request| request.sent).sum();
    let puts = proxy.count(&When::put().path(".parts/"));
    eprintln!("{puts} parts of {stored} bytes for 60 commits");
    assert!(puts >= 50, "{puts}: each commit was waited for");
    // What the names, the index and the lease ask for once is none of the WAL's.
    let beside = |request: &Request| ["names", "leases", "index"].iter().any(|place| request.query.contains(place));
    let lists = |request: &Request| When::list().describes(request) && !beside(request);
    assert!(!proxy.requests().iter().any(lists), "nothing of the WAL is listed on the way in");
    wait_until("what was rolled up is removed", SOON, || parts(&bucket).len() <= 24);
    // Nothing moves, nothing is asked. The server writes a record now and then by itself; what was rolled up before is removed after a while.
    let look = |seconds| {
        let position = || cluster.sql("SELECT pg_current_wal_insert_lsn()");
        let at = position();
        wait_durable(&agent, lsn(&at), SOON);
        std::thread::sleep(Duration::from_millis(500));
        let requests = proxy.requests().len();
        std::thread::sleep(Duration::from_secs(seconds));
        let still = position() == at;
        let asked: Vec<_> = proxy.requests().into_iter().skip(requests).filter(|request| request.method != "DELETE").collect();
        (still, asked)
    };
    // The names of the table made above are stored within a minute.
    wait_until("nothing is asked while nothing moves", Duration::from_secs(120), || matches!(look(4), (true, asked) if asked.is_empty()));
    let (still, asked) = look(15);
    assert!(!still || asked.is_empty(), "{asked:?}");
    // An agent that goes on stores nothing twice, and removes what the one before did not live to.
    switch_and_store(&cluster, &agent, 1);
    agent.stop();
    assert!(!parts(&bucket).is_empty());
    let agent = walkeep.agent();
    switch_and_store(&cluster, &agent, 1);
    wait_until("the parts of whole segments are removed", SOON, || parts(&bucket).len() <= 2);
    assert_calm(&agent, &[]);
    agent.stop();
}

/// Killed at any moment, the agent finds what is stored and goes on behind it: nothing is put a second time.
#[test]
fn a_killed_agent_goes_on_where_the_parts_end() {
    let (proxy, bucket) = (S3Server::get().proxy(), S3Server::get().bucket());
    let cluster = story::builder(VERSION).conf("checkpoint_timeout", "1h").conf("bgwriter_lru_maxpages", "0").start();
    let walkeep = Walkeep::new(&cluster, Repository::s3(proxy.endpoint(), &bucket));
    walkeep.ok(&["init"]);
    let mut agent = walkeep.agent();
    cluster.sql("CREATE TABLE t (i int PRIMARY KEY, filler text)");
    let stored = |agent: &Agent| wait_durable(agent, lsn(&cluster.sql("SELECT pg_current_wal_flush_lsn()")), SOON);
    for round in 0..5 {
        switch_and_store(&cluster, &agent, 1);
        // So few that none are rolled up, which stores their bytes once more on purpose.
        for _ in 0..=round % 3 {
            story::insert(&cluster, 1);
            stored(&agent);
        }
        agent.kill9();
        let ends = |parts: &[String]| parts.iter().map(|part| u32::from_str_radix(&part[9..17], 16).unwrap()).max();
        let segment = cluster.sql("SELECT pg_walfile_name(pg_current_wal_insert_lsn())");
        let of_it = || {
            let keys = bucket.list("main/").into_iter().map(|(key, _)| key);
            let parts = keys.filter_map(|key| key.split_once(&format!("{segment}.parts/")).map(|(_, part)| part.to_owned()));
            parts.collect::<Vec<_>>()
        };
        let before = of_it();
        proxy.forget();
        agent = walkeep.agent();
        stored(&agent);
        assert_eq!(proxy.count(&When::put()), 0, "what is stored is not stored again: {:?}", proxy.requests());
        story::insert(&cluster, 1);
        stored(&agent);
        let after: Vec<_> = of_it().into_iter().filter(|part| !before.contains(part)).collect();
        let begins = after.iter().map(|part| u32::from_str_radix(&part[..8], 16).unwrap()).min();
        assert_eq!(begins, ends(&before), "{before:?}, then {after:?}");
    }
    assert_calm(&agent, &[]);
    agent.stop();
}

/// G10: a server that writes nothing, with `archive_timeout = 0`: the segment may stay unfinished for days, and there is no lag in it.
#[test]
fn an_idle_server_has_no_lag() {
    let cluster = story::builder(VERSION).conf("checkpoint_timeout", "1h").conf("archive_timeout", "0").start();
    let walkeep = Walkeep::local(&cluster);
    walkeep.ok(&["init"]);
    let agent = walkeep.agent();
    cluster.sql("CREATE TABLE t (i int PRIMARY KEY, filler text)");
    story::insert(&cluster, 3);
    let lag = || [agent.metric("walkeep_wal_lag_bytes"), agent.metric("walkeep_wal_lag_seconds")];
    wait_until("it is idle, and stays so", Duration::from_secs(120), || {
        let position = || cluster.sql("SELECT pg_current_wal_insert_lsn()");
        let at = position();
        wait_durable(&agent, lsn(&at), SOON);
        let looks: Vec<_> = (0..20)
            .map(|_| {
                std::thread::sleep(Duration::from_millis(100));
                lag()
            })
            .collect();
        // The server writes a record now and then by itself.
        let still = position() == at;
        assert!(!still || looks.iter().all(|lag| *lag == [Some(0.0), Some(0.0)]), "{looks:?}");
        still
    });
    assert_eq!(agent.get("/readyz").unwrap().0, 200);
    assert_eq!(agent.get("/healthz").unwrap().0, 200);
    assert_eq!(agent.metric("walkeep_gaps"), Some(0.0));
    assert_calm(&agent, &[]);
    agent.stop();
}

/// The agent is the only synchronous standby: what a commit has returned for is in the bucket.
#[test]
fn a_commit_returns_when_it_is_in_the_repository() {
    let bucket = S3Server::get().bucket();
    let cluster = story::builder(VERSION).conf("synchronous_standby_names", "walkeep").conf("synchronous_commit", "local").start();
    let mut walkeep = Walkeep::new(&cluster, Repository::s3(S3Server::get().endpoint(), &bucket));
    // Such an interval shows that nobody waits for it.
    walkeep.upload_interval = "1h".to_owned();
    walkeep.write_config();
    walkeep.ok(&["init"]);
    let mut agent = walkeep.agent();
    cluster.sql("CREATE TABLE t (i int PRIMARY KEY, filler text)");
    wait_until("it knows that commits wait", SOON, || agent.metric("walkeep_commits_wait") == Some(1.0));
    let loss = walkeep.run(&["check"]).stdout;
    assert!(
        loss.lines().any(|line| line.contains("loss") && line.contains("none: a commit returns when it is in the repository")),
        "{loss}"
    );
    story::backup(&walkeep);
    for _ in 0..20 {
        cluster.sql("SET synchronous_commit = on; INSERT INTO t SELECT coalesce(max(i), 0) + 1 FROM t");
    }
    agent.kill9();
    cluster.kill9();
    let restored = Restored::by(&walkeep, VERSION, &[]);
    assert_eq!(restored.start().rows(), 20);
}

/// Commits that wait with `remote_apply` never return: told, before anybody has to guess.
#[test]
fn remote_apply_is_told() {
    let cluster = story::builder(VERSION).conf("synchronous_standby_names", "walkeep").conf("synchronous_commit", "local").start();
    let walkeep = Walkeep::local(&cluster);
    walkeep.ok(&["init"]);
    let agent = walkeep.agent();
    cluster.sql("ALTER DATABASE postgres SET synchronous_commit = remote_apply");
    wait_until("the agent says it", SOON, || agent.log().contains("remote_apply"));
    let checked = walkeep.run(&["check"]);
    assert!(checked.stdout.contains("never returns"), "{}", checked.stdout);
    agent.stop();
}

/// Of the parts of the unfinished segment one in the middle is lost. What was committed behind it is there no more, and no server may open as if it had never
/// been; what was committed before is as reachable as ever.
#[test]
fn a_part_that_is_lost_is_no_end_of_the_wal() {
    let mut story = Story::local(VERSION);
    story.insert(3);
    story.backup();
    story.settle();
    let flushed = |story: &Story| lsn(&story.cluster.sql("SELECT pg_current_wal_flush_lsn()"));
    let segment = story.cluster.sql("SELECT pg_walfile_name(pg_current_wal_insert_lsn())");
    let folder = format!("{segment}.parts");
    let rest = story::listing(&story.walkeep.local_repository().join("main"));
    let log = rest.iter().filter_map(|line| line.split(' ').next()).find(|path| path.ends_with("/wal/00000001/00000000")).unwrap();
    let folder = story.walkeep.local_repository().join("main").join(log).join(folder);
    // The rows, each with its transaction and where it is stored.
    let mut rows = Vec::new();
    while joined_parts(&folder).len() < 5 {
        story.insert(1);
        let at = flushed(&story);
        wait_durable(story.agent(), at, SOON);
        let row = story.cluster.value::<u32>("SELECT max(i) FROM t");
        rows.push((row, story.xid(row), at));
        assert!(rows.len() < 40, "{:?}", joined_parts(&folder));
    }
    let last = rows.last().unwrap().clone();
    let laid_down = Restored::by(&story.walkeep, VERSION, &[]);
    story.kill_agent();
    let parts = joined_parts(&folder);
    let (from, to, lost) = parts[2].clone();
    let size = 1 << 20;
    let begin = last.2 / size * size;
    let before = rows.iter().rfind(|(_, _, at)| *at <= begin + from).expect("rows before the hole").clone();
    assert!(before.0 < last.0 && parts.len() > 3, "{parts:?}");
    let aside = story.walkeep.scratch().join("aside");
    std::fs::rename(&lost, &aside).unwrap();

    let position = |offset: u64| format!("{:X}/{:X}", (begin + offset) >> 32, (begin + offset) & 0xFFFF_FFFF);
    for command in ["status", "timelines"] {
        let said = story.walkeep.ok(&[command]).stdout;
        assert!(said.contains(&format!("HOLE: WAL from {} to {} is missing", position(from), position(to))), "{said}");
    }
    for args in [&["status"][..], &["status", "--all"]] {
        let said = story.walkeep.ok(args).stdout;
        assert!(
            said.contains("NOT SAFE") && said.contains(&format!("WAL is missing from {} to {}", position(from), position(to))),
            "{said}"
        );
    }
    let why = story::refused(&story.walkeep, &["--latest"]);
    assert!(why.contains(&position(from)) && why.contains("parts are stored behind it"), "{why}");
    let why = story::refused(&story.walkeep, &["--xid", &last.1]);
    assert!(why.contains("could not be searched"), "{why}");
    let to = story.walkeep.scratch().join("fetched").to_string_lossy().into_owned();
    let fetched = story.walkeep.run(&["wal", "fetch", &segment, &to]);
    assert!(fetched.code.is_some_and(|code| code > 125) && fetched.stderr.contains("hole in the archive"), "{fetched:?}");
    // One that was laid down before.
    let said = laid_down.gives_up("5s");
    assert!(said.contains("hole in the archive"), "{said}");
    let drill = story.walkeep.run(&["drill", "--scratch", &story.walkeep.scratch().dir("x").to_string_lossy()]);
    assert!(drill.code == Some(1) && drill.stderr.contains("parts are stored behind it"), "{drill:?}");
    let verified = story.walkeep.run(&["verify"]).expect_code(4);
    assert_eq!(verified.stdout.matches("parts behind them are stored").count(), 1, "{}", verified.stdout);
    // In the very segment, before the hole.
    let restored = story.restore(&["--xid", &before.1]);
    assert_eq!(restored.start().rows(), before.0);
    drop(restored);

    // The first one is no other matter.
    let first = parts[0].2.clone();
    std::fs::rename(&aside, &lost).unwrap();
    std::fs::rename(&first, &aside).unwrap();
    assert!(story.walkeep.ok(&["status"]).stdout.contains("HOLE"));
    story::refused(&story.walkeep, &["--latest"]);
    // Put back, all is there.
    std::fs::rename(&aside, &first).unwrap();
    assert!(!story.walkeep.ok(&["status"]).stdout.contains("HOLE"));
    let restored = story.restore(&[]);
    assert_eq!(restored.start().rows(), last.0);
    drop(restored);
    // An agent that goes on closes a hole: the server has it still.
    std::fs::remove_file(&lost).unwrap();
    story.start_agent();
    story.insert(1);
    wait_durable(story.agent(), flushed(&story), SOON);
    assert!(!story.walkeep.ok(&["status"]).stdout.contains("HOLE"));
    assert_eq!(story.restore(&[]).start().rows(), last.0 + 1);
    story.end(&[]);
}

/// Its only source is the repository: a standby follows through parts.
#[test]
fn a_standby_follows_by_restore_command_alone() {
    let story = Story::local(VERSION);
    story.insert(3);
    story.backup();
    let standby = story.restore(&[]);
    std::fs::rename(standby.cluster.data().join("recovery.signal"), standby.cluster.data().join("standby.signal")).unwrap();
    standby.launch();
    story.insert(5);
    wait_until("the standby has them", story::PATIENCE, || standby.rows() == 8);
    assert_eq!(standby.cluster.sql("SELECT pg_is_in_recovery()"), "t");
    standby.cluster.stop(Stop::Fast);
    drop(standby);
    story.end(&SERVER_GONE);
}
