//! A server is put back to an older copy of its data directory, on the same timeline, and writes other WAL than what is stored.
//!
//! As long as it has the WAL in which the two histories part it is refused. Once it has removed that it is archived again, behind a gap: nothing
//! crosses the seam of the two.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use walkeep_tests::{Agent, Cluster, Stop, Walkeep, user, wait_until};

use crate::story;
use crate::support::{assert_calm, lsn, segments_in, switch_and_store};

const SOON: Duration = Duration::from_secs(30);
const MIB: u64 = 1 << 20;
const TOLD: &str = "GAP in the archive";

/// Two lives of one server.
struct Twice {
    cluster: Cluster,
    walkeep: Walkeep,
    /// The backup that both begin after.
    backup: String,
    /// The last position of the first life of which rows are told, and how many there are.
    rows_at: (String, u32),
    /// The end of what is stored of it: the start of a segment.
    seam: u64,
}

fn older(cluster: &Cluster) -> PathBuf {
    cluster.data().with_extension("older")
}

fn exchange(cluster: &Cluster, with: &Path) {
    cluster.stop(Stop::Immediate);
    let (data, aside) = (cluster.data(), cluster.data().with_extension("aside"));
    std::fs::rename(data, &aside).unwrap();
    std::fs::rename(with, data).unwrap();
    std::fs::rename(&aside, with).unwrap();
    cluster.start();
}

fn text(at: u64) -> String {
    format!("{:X}/{:X}", at >> 32, at & 0xFFFF_FFFF)
}

fn segment(at: u64) -> String {
    format!("00000001{:08X}{:08X}", at >> 32, (at & 0xFFFF_FFFF) / MIB)
}

fn remove_files(folder: &Path, what: &str) {
    for path in story::listing(folder).iter().filter_map(|line| line.split(' ').next()).filter(|path| path.contains(what)) {
        let _ = std::fs::remove_file(folder.join(path));
    }
}

#[track_caller]
fn gaps(walkeep: &Walkeep) -> Vec<Value> {
    walkeep.ok(&["status", "--json"]).json()["gaps"].as_array().unwrap().clone()
}

#[track_caller]
fn refused_again(walkeep: &Walkeep) {
    let agent = walkeep.launch_agent().unwrap();
    wait_until("it is refused, and again", SOON, || agent.log().matches("other content").count() >= 2);
    assert_eq!(gaps(walkeep), [json!(null); 0], "a conflict alone is no gap");
    agent.stop();
}

impl Twice {
    /// The server has come to the first segment of which nothing is stored, on its second life. The agent is stopped.
    fn begin(version: u32, keeps_parts: bool) -> Self {
        let builder = Cluster::builder().version(version).segment_mib(1).conf("autovacuum", "off").conf("checkpoint_timeout", "1h");
        let cluster = builder.conf("max_wal_size", "4MB").conf("min_wal_size", "2MB").start();
        let walkeep = Walkeep::local(&cluster);
        walkeep.ok(&["init"]);
        let agent = walkeep.agent();
        cluster.sql("CREATE TABLE t (i int PRIMARY KEY, filler text)");
        cluster.sql("CREATE TABLE before_seam AS SELECT 'neither' AS life");
        story::insert(&cluster, 5);
        let backup = story::backup(&walkeep);
        cluster.stop(Stop::Fast);
        assert!(user::command("cp").arg("-a").arg(cluster.data()).arg(older(&cluster)).status().unwrap().success());
        cluster.start();
        story::insert(&cluster, 5);
        let rows_at = (cluster.sql("SELECT pg_current_wal_insert_lsn()"), 10);
        for _ in 0..3 {
            cluster.switch_wal();
            story::insert(&cluster, 1);
        }
        story::settle(&cluster, &walkeep);
        if keeps_parts {
            story::insert(&cluster, 1);
        }
        agent.stop();
        let repository = walkeep.local_repository();
        if !keeps_parts {
            // As if the first life had ended with the segment.
            remove_files(&repository, ".parts/");
            remove_files(&walkeep.spool(), ".writing");
        }
        let whole = story::listing(&repository).into_iter().filter_map(|line| Some(line.split(' ').next()?.rsplit_once('/')?.1.to_owned()));
        let newest =
            whole.filter(|name| *name == story::object(&name[..24.min(name.len())]) && name.starts_with("00000001")).max().unwrap();
        let seam = (u64::from_str_radix(&newest[16..24], 16).unwrap() + 1) * MIB;

        exchange(&cluster, &older(&cluster));
        // Written before the seam only: no WAL that is stored tells of it.
        cluster.sql("INSERT INTO before_seam VALUES ('second')");
        // Some rows more and longer records than in the first life.
        let at = || lsn(&cluster.sql("SELECT pg_current_wal_insert_lsn()"));
        while at() < seam {
            story::insert(&cluster, 2);
            cluster.sql("SELECT pg_logical_emit_message(true, 'second', repeat('life', 50))");
            cluster.switch_wal();
        }
        story::insert(&cluster, 1);
        assert!(at() < seam + MIB);
        Self { cluster, walkeep, backup, rows_at, seam }
    }

    /// The server removes everything before the seam.
    fn remove_before_seam(&self) {
        self.cluster.sql("SELECT pg_drop_replication_slot('walkeep')");
        wait_until("the WAL before is removed", SOON, || {
            self.cluster.sql("CHECKPOINT");
            segments_in(&self.cluster.pg_wal()).into_iter().all(|name| name >= segment(self.seam))
        });
        assert!(self.cluster.pg_wal().join(segment(self.seam)).exists());
    }

    fn agent_into_gap(&self) -> Agent {
        let agent = self.walkeep.launch_agent().unwrap();
        wait_until("the gap is told", SOON, || agent.log().contains(TOLD));
        wait_until("and it streams again", SOON, || agent.get("/readyz").is_ok_and(|(status, _)| status == 200));
        agent
    }

    fn upload_interval(&mut self, interval: &str) {
        self.walkeep.upload_interval = interval.to_owned();
        self.walkeep.write_config();
    }

    fn written(&self) -> String {
        self.cluster.sql("SELECT pg_current_wal_flush_lsn()")
    }

    #[track_caller]
    fn rows(&self, args: &[&str]) -> u32 {
        story::Restored::by(&self.walkeep, self.cluster.version(), args).start().rows()
    }
}

fn put_back(version: u32) {
    let twice = Twice::begin(version, false);
    let Twice { cluster, walkeep, backup, rows_at, seam } = &twice;
    refused_again(walkeep);
    assert_eq!(story::plan(walkeep, &["--latest"])["backup"]["id"], json!(backup));
    twice.remove_before_seam();
    let agent = twice.agent_into_gap();
    assert_eq!(agent.metric("walkeep_gaps"), Some(1.0));
    story::insert(cluster, 5);
    let behind = twice.written();
    story::settle(cluster, walkeep);

    // Told wherever the archive is listed.
    let [gap] = &gaps(walkeep)[..] else { panic!("{:?}", gaps(walkeep)) };
    assert_eq!((&gap["cause"], &gap["open"], &gap["name"]["timeline"]), (&json!("other_history"), &json!(true), &json!(1)), "{gap}");
    let (from, to) = (lsn(gap["name"]["from"].as_str().unwrap()), lsn(gap["name"]["to"].as_str().unwrap()));
    assert!(to == *seam && from < to && from >= to - MIB && from > lsn(&rows_at.0), "{gap}");
    let timelines = walkeep.ok(&["timelines", "--json"]).json();
    let windows = timelines[0]["windows"].as_array().unwrap();
    assert_eq!((windows.len(), &windows[0]["latest"]), (1, &json!(text(from))), "{timelines}");
    let said = walkeep.ok(&["timelines"]).stdout;
    assert!(said.contains("GAP: ") && said.contains("put back to an older state"), "{said}");

    // Nothing crosses it, and before it everything is as it was.
    for target in [&["--lsn", &behind][..], &["--latest"]] {
        let why = story::refused(walkeep, target);
        assert!(why.contains("put back to an older state"), "{why}");
    }
    assert_eq!(twice.rows(&["--lsn", &rows_at.0]), rows_at.1);

    // A backup behind it leads on: nothing of it is taken from the first life.
    let second = story::backup(walkeep);
    story::insert(cluster, 1);
    let later = twice.written();
    story::settle(cluster, walkeep);
    assert_eq!(story::plan(walkeep, &["--lsn", &later])["backup"]["id"], json!(second));
    let state =
        "SELECT count(*), md5(string_agg(t::text, '' ORDER BY i)), (SELECT string_agg(life, ' ' ORDER BY life) FROM before_seam) FROM t";
    let restored = story::Restored::by(walkeep, version, &["--latest"]);
    restored.start();
    assert_eq!(restored.cluster.sql(state), cluster.sql(state));
    drop(restored);
    assert_eq!(twice.rows(&["--lsn", &rows_at.0]), rows_at.1);
    walkeep.ok(&["log"]);
    walkeep.ok(&["status"]);
    assert_calm(&agent, &[TOLD, "the replication slot is gone"]);
    agent.stop();

    // It is told once, also where nothing of the slot is left.
    cluster.sql("SELECT pg_drop_replication_slot('walkeep')");
    let agent = walkeep.agent();
    switch_and_store(cluster, &agent, 1);
    assert_eq!(gaps(walkeep).len(), 1);
    assert_calm(&agent, &["the replication slot is gone"]);
    agent.stop();
}

#[test]
fn a_server_put_back_is_archived_behind_a_gap_on_13() {
    put_back(13);
}

#[test]
fn a_server_put_back_is_archived_behind_a_gap_on_18() {
    put_back(18);
}

/// The agent dies between the record and what follows, and the first life's server is the one that comes back.
#[test]
fn the_first_history_goes_on_after_all() {
    let mut twice = Twice::begin(15, false);
    twice.remove_before_seam();
    twice.upload_interval("1h");
    let mut agent = twice.agent_into_gap();
    agent.kill9();
    // Killed again, it is the same gap; and its host is lost with what was received.
    remove_files(&twice.walkeep.spool(), ".writing");
    let mut agent = twice.walkeep.agent();
    wait_until("it streams", SOON, || agent.metric("walkeep_wal_received_bytes").is_some_and(|at| at > twice.seam as f64));
    agent.kill9();
    assert_eq!(gaps(&twice.walkeep).len(), 1);
    remove_files(&twice.walkeep.spool(), ".writing");

    twice.upload_interval("1s");
    let Twice { cluster, walkeep, backup, .. } = &twice;
    exchange(cluster, &older(cluster));
    let agent = walkeep.agent();
    wait_until("the gap is none", SOON, || agent.metric("walkeep_gaps") == Some(0.0));
    story::insert(cluster, 5);
    story::settle(cluster, walkeep);
    assert!(gaps(walkeep).iter().all(|gap| gap["open"] == false && gap["closed_at"].is_string()), "{:?}", gaps(walkeep));
    assert_eq!(story::plan(walkeep, &["--latest"])["backup"]["id"], json!(backup));
    assert_eq!(twice.rows(&["--latest"]), 18);
    assert_calm(&agent, &[]);
    agent.stop();
}

/// Where a part of the next segment is stored it is compared, as long as the server has it. Then the rest of it is missing: a gap like any other.
#[test]
fn with_a_part_stored_behind_it_is_refused_and_then_a_plain_gap() {
    let twice = Twice::begin(15, true);
    let Twice { cluster, walkeep, seam, .. } = &twice;
    refused_again(walkeep);
    twice.remove_before_seam();
    refused_again(walkeep);
    cluster.sql("SELECT pg_drop_replication_slot('walkeep')");
    cluster.switch_wal();
    story::insert(cluster, 1);
    wait_until("the segment is removed", SOON, || {
        cluster.sql("CHECKPOINT");
        !cluster.pg_wal().join(segment(*seam)).exists()
    });
    let agent = twice.agent_into_gap();
    story::settle(cluster, walkeep);
    let [gap] = &gaps(walkeep)[..] else { panic!("{:?}", gaps(walkeep)) };
    let from = lsn(gap["name"]["from"].as_str().unwrap());
    assert!(gap["cause"] == "slot_lost" && from > *seam && from < seam + MIB && gap["name"]["to"] == text(seam + MIB), "{gap}");
    assert!(story::refused(walkeep, &["--lsn", &twice.written()]).contains("WAL is missing"));
    agent.stop();
}

/// What is stored where it lies is the WAL of the server's former life: replayed onto the backup it would ruin it.
#[test]
fn a_backup_of_a_server_that_was_put_back_is_not_recorded() {
    let cluster = Cluster::builder().version(15).segment_mib(1).conf("autovacuum", "off").conf("checkpoint_timeout", "1h").start();
    let walkeep = Walkeep::local(&cluster);
    walkeep.ok(&["init"]);
    let agent = walkeep.agent();
    cluster.sql("CREATE TABLE t (i int PRIMARY KEY, filler text)");
    story::insert(&cluster, 5);
    cluster.stop(Stop::Fast);
    assert!(user::command("cp").arg("-a").arg(cluster.data()).arg(older(&cluster)).status().unwrap().success());
    cluster.start();
    for _ in 0..6 {
        story::insert(&cluster, 20);
        cluster.switch_wal();
    }
    story::settle(&cluster, &walkeep);
    agent.stop();
    exchange(&cluster, &older(&cluster));
    let agent = walkeep.launch_agent().unwrap();
    wait_until("it is refused", SOON, || agent.log().contains("the server has less WAL"));
    cluster.sql("INSERT INTO t VALUES (1000, 'second life')");
    for method in ["local", "protocol"] {
        let refused = walkeep.run(&["backup", "--method", method]).expect_code(1);
        assert!(
            refused.stderr.contains("is not this server's") && refused.stderr.contains("it was not recorded"),
            "{method}: {}",
            refused.stderr
        );
    }
    assert_eq!(story::backups(&walkeep), [""; 0]);
}
