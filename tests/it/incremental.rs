//! Backups that build on older ones: what they cost, that each restores by itself, what makes them read everything, and what an interrupted one leaves.

use walkeep_tests::process::Process;
use walkeep_tests::{Stop, wait_until};

use crate::story::{self, PATIENCE, Restored, Story, backups};

const VERSION: u32 = 15;
/// All rows of a table, as a number.
const DIGEST: &str = "SELECT coalesce(sum(hashtextextended(t::text, 0)), 0) || ' of ' || count(*) FROM big t";

fn take(story: &Story, args: &[&str]) -> serde_json::Value {
    story.walkeep.ok(&[&["backup", "--method", "local", "--json"], args].concat()).json()
}

fn stored(record: &serde_json::Value) -> u64 {
    record["bytes_stored"].as_u64().unwrap()
}

/// A cluster with a table of 40 MB that does not compress, and an index.
fn with_big_table() -> Story {
    let story = Story::local(VERSION);
    story.cluster.sql("CREATE TABLE big (id int PRIMARY KEY, n int DEFAULT 0, noise text)");
    story.cluster.sql(
        "INSERT INTO big SELECT g, 0, string_agg(md5(random()::text), '') FROM generate_series(1, 40000) g, generate_series(1, 30) GROUP BY g",
    );
    story.cluster.sql("VACUUM big");
    story
}

/// Recovery to the moment of the backup's end, and what is in the table then.
fn digest_of(story: &Story, backup: &str) -> String {
    let restored = Restored::by(&story.walkeep, VERSION, &["--backup", backup, "--immediate"]);
    restored.verify();
    restored.start();
    let digest = restored.cluster.sql(DIGEST);
    restored.cluster.stop(Stop::Fast);
    digest
}

#[test]
fn a_backup_costs_what_changed() {
    let story = with_big_table();
    let first = take(&story, &[]);
    assert!(stored(&first) > 15 << 20, "{first}");
    assert!(first.get("parent").is_none());

    let nothing = take(&story, &[]);
    assert_eq!(nothing["parent"], first["id"]);
    assert!(stored(&nothing) < 300_000, "{nothing}");

    story.cluster.sql("UPDATE big SET n = 1 WHERE id % 4000 = 7");
    let scattered = take(&story, &[]);
    // Ten rows on ten pages, as many new versions behind, index pages, and what is small.
    assert!(stored(&scattered) < 1_000_000, "{scattered}");
    let now = story.cluster.sql(DIGEST);

    let full = take(&story, &["--full"]);
    assert!(full.get("parent").is_none(), "{full}");
    assert_eq!(digest_of(&story, scattered["id"].as_str().unwrap()), now);
    assert_eq!(digest_of(&story, full["id"].as_str().unwrap()), now);
    story.end(&[]);
}

/// Fifty in a row, over tables that are made, changed, emptied, cut off and dropped: each restores by itself, alone.
#[test]
fn a_chain_of_fifty() {
    let story = with_big_table();
    let mut expected = vec![(take(&story, &[])["id"].as_str().unwrap().to_owned(), story.cluster.sql(DIGEST))];
    for day in 1..=50 {
        story.cluster.sql(&format!("UPDATE big SET n = {day} WHERE id % 997 = {day}"));
        match day % 7 {
            1 => story
                .cluster
                .sql(&format!("INSERT INTO big SELECT 100000 + {day} * 1000 + g, {day}, md5(g::text) FROM generate_series(1, 300) g")),
            2 => story.cluster.sql("DELETE FROM big WHERE id % 53 = 5 AND id < 20000"),
            3 => story.cluster.sql("VACUUM big"),
            4 => story.cluster.sql(&format!("CREATE TABLE other_{day} AS SELECT * FROM big LIMIT 500")),
            5 => story.cluster.sql("REINDEX TABLE big"),
            6 if day > 30 => story.cluster.sql("VACUUM FULL big"),
            _ => story.cluster.sql("CHECKPOINT"),
        };
        let record = take(&story, &[]);
        assert_eq!(record["parent"], expected.last().unwrap().0.as_str(), "{record}");
        expected.push((record["id"].as_str().unwrap().to_owned(), story.cluster.sql(DIGEST)));
    }
    assert_eq!(backups(&story.walkeep).len(), 51);
    // Each takes a second or two: WALKEEP_CHAIN=1 restores them all.
    let every = std::env::var("WALKEEP_CHAIN").ok().and_then(|step| step.parse().ok()).unwrap_or(5);
    for (backup, digest) in expected.iter().rev().step_by(every) {
        assert_eq!(digest_of(&story, backup), *digest, "{backup}");
    }
    story.end(&[]);
}

/// A backup over the wire has its files in another order, and another way to them.
#[test]
fn what_came_over_the_wire_is_built_on() {
    let story = with_big_table();
    story.walkeep.ok(&["backup", "--method", "protocol"]);
    story.cluster.sql("UPDATE big SET n = 1 WHERE id = 5");
    let second = take(&story, &[]);
    assert!(stored(&second) < 4 << 20, "{second}");
    assert_eq!(digest_of(&story, second["id"].as_str().unwrap()), story.cluster.sql(DIGEST));
    story.end(&[]);
}

/// D2, D5: what a listing shows to be lost is noticed before anybody relies on it, and the next backup does not.
#[test]
fn lost_packs_are_told_and_stored_anew() {
    let story = with_big_table();
    let first = take(&story, &[]);
    story.cluster.sql("UPDATE big SET n = 1 WHERE id % 4000 = 7");
    take(&story, &[]);
    let lost = one_pack(&story, &[], |path| std::fs::remove_file(path).unwrap());
    for args in [vec!["plan"], vec!["plan", "--json"], vec!["restore", "--to", "/tmp/never"]] {
        let refused = story.walkeep.run(&args).expect_code(3);
        let told = refused.stdout + &refused.stderr;
        assert!(told.contains("cannot be restored whole") && told.contains(&format!("{lost} is gone; ")), "{args:?}: {told}");
    }
    assert!(!std::path::Path::new("/tmp/never").exists());

    let before = packs(&story);
    let taken = story.walkeep.ok(&["backup", "--method", "local", "--json"]);
    assert!(taken.stderr.contains("packs of older backups are lost") && taken.stderr.contains(&lost), "{}", taken.stderr);
    let third = taken.json();
    assert_eq!(third["parent"].as_str().map(|_| ()), Some(()), "what is there is used: {third}");
    assert!(stored(&third) < stored(&first), "{third}");
    let now = story.cluster.sql(DIGEST);
    assert_eq!(story::plan(&story.walkeep, &[])["backup"]["id"], third["id"]);
    assert_eq!(digest_of(&story, third["id"].as_str().unwrap()), now);
    assert!(packs(&story).len() > before.len());

    // The newest is of no use: the one before is.
    let before = packs(&story);
    let full = take(&story, &["--full"]);
    let cut = one_pack(&story, &before, |path| std::fs::File::options().write(true).open(path).unwrap().set_len(100).unwrap());
    let planned = story::plan(&story.walkeep, &[]);
    assert_eq!(planned["backup"]["id"], third["id"]);
    let warned = planned["warnings"].to_string();
    assert!(warned.contains(full["id"].as_str().unwrap()) && warned.contains(&format!("{cut} is cut off at 100 bytes")), "{warned}");
    let over_the_wire = story.walkeep.ok(&["backup", "--method", "protocol", "--json"]).json();
    assert_eq!(digest_of(&story, over_the_wire["id"].as_str().unwrap()), now);
    story.end(&[]);
}

/// The names of all packs.
fn packs(story: &Story) -> Vec<String> {
    let listed = story::listing(&story.walkeep.local_repository());
    listed.iter().filter_map(|line| line.split(' ').next()).filter(|name| name.contains("/packs/")).map(str::to_owned).collect()
}

/// Does something to the largest pack beside these. Answers its key.
fn one_pack(story: &Story, beside: &[String], damage: impl Fn(&std::path::Path)) -> String {
    let repository = story.walkeep.local_repository();
    let size = |name: &String| std::fs::metadata(repository.join(name)).map_or(0, |found| if found.is_file() { found.len() } else { 0 });
    let name = packs(story).into_iter().filter(|name| !beside.contains(name)).max_by_key(size).unwrap();
    damage(&repository.join(&name));
    name
}

/// Killed in the middle: nothing is listed, nothing else is harmed, and what was stored is not stored again.
#[test]
fn an_interrupted_backup_is_gone_on_with() {
    let story = with_big_table();
    story.cluster.sql("CREATE TABLE more AS SELECT * FROM big");
    story.cluster.sql("CREATE TABLE and_more AS SELECT * FROM big");
    let command = story.walkeep.command(&["backup", "--method", "local", "--max-rate", "20000"]);
    let mut backup = Process::start(command, &story.walkeep.scratch().join("killed.log")).unwrap();
    let pieces = || story::listing(&story.walkeep.local_repository()).iter().filter(|name| name.contains("/manifest")).count();
    wait_until("a piece of its manifest is stored", PATIENCE, || pieces() > 0);
    backup.kill();
    assert_eq!(backups(&story.walkeep).len(), 0);
    let whole = take(&story, &[]);
    let bytes = whole["bytes_referenced"].as_u64().unwrap();
    assert!(stored(&whole) < bytes - (20 << 20), "{whole}");
    assert_eq!(digest_of(&story, whole["id"].as_str().unwrap()), story.cluster.sql(DIGEST));
    story.end(&[]);
}

/// Killed at a random moment, again and again, while rows change: what is listed is whole, nothing else is, and the next one always comes about.
#[test]
fn killed_at_any_moment() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let seed = number("WALKEEP_SEED").unwrap_or_else(|| u64::from(std::process::id()));
    let rounds = number("WALKEEP_ROUNDS").unwrap_or(20);
    eprintln!("seed {seed}, {rounds} rounds: WALKEEP_SEED={seed} WALKEEP_ROUNDS={rounds} does them again");
    let story = with_big_table();
    take(&story, &[]);
    let began = std::time::Instant::now();
    take(&story, &[]);
    let usual = u64::try_from(began.elapsed().as_millis()).unwrap().max(1);
    let (mut dice, mut killed) = (seed, 0);
    for round in 1..=rounds {
        story.cluster.sql(&format!("UPDATE big SET n = {round} WHERE id % 1009 = {round}"));
        let command = story.walkeep.command(&["backup", "--method", if round % 4 == 0 { "protocol" } else { "local" }]);
        let mut backup = Process::start(command, &story.walkeep.scratch().join("killed.log")).unwrap();
        dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let ended = backup.wait(std::time::Duration::from_millis((dice >> 33) % usual));
        backup.kill();
        killed += u64::from(ended.is_none());
    }
    eprintln!("{killed} of {rounds} were killed");
    assert!(killed > 0);
    let listed = backups(&story.walkeep);
    wait_until("no session is left in backup mode", PATIENCE, || {
        story.cluster.sql("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'walkeep backup' OR backend_type = 'walsender' AND state = 'backup'") == "0"
    });
    let last = take(&story, &[]);
    let last = last["id"].as_str().unwrap();
    assert_eq!(digest_of(&story, last), story.cluster.sql(DIGEST));
    for backup in &listed {
        Restored::by(&story.walkeep, VERSION, &["--backup", backup, "--immediate"]).verify();
    }
    nothing_is_left_of_the_killed(&story, last);
    story.end(&[]);
}

/// A week later the next backup removes what the killed ones left, and nothing that `listed` needs.
fn nothing_is_left_of_the_killed(story: &Story, listed: &str) {
    let without_record = || {
        let text = story.walkeep.ok(&["backups"]).stdout;
        text.lines().filter(|line| line.contains("no backup yet")).count()
    };
    let repository = story.walkeep.local_repository();
    // One of them for certain, behind its beginning.
    let command = story.walkeep.command(&["backup", "--full", "--max-rate", "5000"]);
    let before = without_record();
    let mut backup = Process::start(command, &story.walkeep.scratch().join("killed.log")).unwrap();
    wait_until("it has begun", PATIENCE, || without_record() > before);
    backup.kill();
    for line in story::listing(&repository) {
        let path = repository.join(line.split(' ').next().unwrap());
        if path.is_file() {
            let file = std::fs::File::open(&path).unwrap();
            file.set_modified(std::time::SystemTime::now() - std::time::Duration::from_secs(8 * 24 * 3600)).unwrap();
        }
    }
    take(story, &["--full"]);
    assert_eq!(without_record(), 0);
    assert_eq!(digest_of(story, listed), story.cluster.sql(DIGEST));
}
