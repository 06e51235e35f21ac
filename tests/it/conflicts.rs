//! One name, one content, for ever: what is offered again, what two servers offer under one name, what is no WAL of this cluster.

use std::time::Duration;

use walkeep_tests::{Agent, Cluster, Stop, Walkeep, compare_fetched, user, wait_until, walkeep::run};

use crate::story;
use crate::support::{MIB, Offered, STORES, Store, assert_calm, fetch, offer, segments_in, switch_and_store, uninitialised, walkeep};

const SOON: Duration = Duration::from_secs(30);
/// What the agent says when it refuses a file.
const REFUSED: [&str; 1] = ["failed request="];

/// Walkeep without the stream: only archive_command brings anything.
fn archive_only(cluster: &Cluster, store: Store) -> Walkeep {
    let mut walkeep = uninitialised(cluster, store);
    walkeep.cluster_lines = "stream = false\n".to_owned();
    walkeep.write_config();
    walkeep.ok(&["init"]);
    walkeep
}

/// Another host's Walkeep for `cluster`, with the repository of `first`.
fn with_repository_of(first: &Walkeep, cluster: &Cluster, lines: &str) -> Walkeep {
    let mut second = Walkeep::new(cluster, first.repositories[0].clone());
    second.cluster_lines = lines.to_owned();
    second.write_config();
    second
}

/// As [`with_repository_of`], with the first's spool too: the whole machine was copied. The lease tells them apart only once both store something.
fn with_machine_of(first: &Walkeep, cluster: &Cluster) -> Walkeep {
    let second = with_repository_of(first, cluster, "");
    let copied = user::command("cp").args(["-a"]).arg(first.spool().join("writer.json")).arg(second.spool()).status().unwrap();
    assert!(copied.success());
    second
}

/// A segment that is archived, in pg_wal still, and its bytes.
fn archived_segment(cluster: &Cluster) -> (String, Vec<u8>) {
    let name = cluster.archive_now();
    let bytes = std::fs::read(cluster.oracle().join(&name)).unwrap();
    (name, bytes)
}

fn changed(bytes: &[u8]) -> Vec<u8> {
    let mut other = bytes.to_vec();
    other[200] ^= 1;
    other
}

/// G1: what is offered again is stored once and answered with success.
#[test]
fn the_same_file_again_is_success() {
    let cluster = Cluster::builder().segment_mib(1).archiving().conf("wal_keep_size", "256MB").start();
    let walkeep = archive_only(&cluster, Store::S3);
    let agent = walkeep.agent();
    cluster.archive_by(Some(&walkeep.archive_command()));
    let (first, _) = archived_segment(&cluster);
    let stored = agent.metric("walkeep_stored_objects_total{source=\"archive\"}").unwrap();
    // Immediate stop with files that wait, and one that was archived but is not known to be.
    cluster.archive_pause();
    let waiting: Vec<_> = (0..3).map(|_| cluster.switch_wal()).collect();
    cluster.stop(Stop::Immediate);
    let status = cluster.pg_wal().join("archive_status");
    std::fs::rename(status.join(format!("{first}.done")), status.join(format!("{first}.ready"))).unwrap();
    cluster.archive_by(Some(&walkeep.archive_command()));
    cluster.start();
    for name in [&first].into_iter().chain(&waiting) {
        cluster.wait_archived(name, SOON);
    }
    wait_until("the first is done again", SOON, || status.join(format!("{first}.done")).exists());
    assert_eq!(agent.metric("walkeep_stored_objects_total{source=\"archive\"}"), Some(stored + 3.0), "stored once each");
    assert_eq!(cluster.value::<u64>("SELECT failed_count FROM pg_stat_archiver"), 0);
    // An agent that remembers nothing of it answers the same, and so does `wal push`.
    agent.stop();
    let agent = walkeep.agent();
    let path = cluster.pg_wal().join(&first);
    offer(&walkeep, &path).expect_code(0);
    let pushed = walkeep.ok(&["wal", "push", &path.to_string_lossy()]);
    assert!(pushed.stdout.contains("stored already"), "{}", pushed.stdout);
    assert!(compare_fetched(&cluster.oracle(), &walkeep) >= 4);
    assert_calm(&agent, &[]);
}

/// G2: same name, other content.
#[test]
fn other_content_is_refused_and_changes_nothing() {
    for store in STORES {
        let cluster = Cluster::builder().segment_mib(1).archiving().conf("wal_keep_size", "256MB").start();
        let walkeep = archive_only(&cluster, store);
        let agent = walkeep.agent();
        cluster.archive_by(Some(&walkeep.archive_command()));
        let (name, original) = archived_segment(&cluster);
        cluster.archive_now();
        cluster.sql("CHECKPOINT");
        cluster.stop(Stop::Fast);
        let path = cluster.pg_wal().join(&name);
        std::fs::write(&path, changed(&original)).unwrap();
        let status = cluster.pg_wal().join("archive_status");
        std::fs::rename(status.join(format!("{name}.done")), status.join(format!("{name}.ready"))).unwrap();
        cluster.start();
        wait_until("the refusal is counted", SOON, || cluster.value::<u64>("SELECT failed_count FROM pg_stat_archiver") > 0);
        let log = cluster.log();
        assert!(log.contains(&format!("could not archive pg_wal/{name}")), "{log}");
        assert!(log.contains("already in the repository with other content") && log.contains("HINT"), "{log}");
        assert!(agent.metric("walkeep_conflicts_total").unwrap() >= 1.0);
        offer(&walkeep, &path).expect_code(1);
        let pushed = walkeep.run(&["wal", "push", &path.to_string_lossy()]).expect_code(1);
        assert!(pushed.stderr.contains("other content"), "{}", pushed.stderr);
        assert_eq!(fetch(&walkeep, &name), original, "the first stays");
        // Once the right file is there again, the queue moves on.
        std::fs::write(&path, &original).unwrap();
        cluster.archive_now();
        assert!(compare_fetched(&cluster.oracle(), &walkeep) >= 3);
        assert!(!agent.complaints(&[]).is_empty(), "a conflict is told loudly");
        assert_calm(&agent, &REFUSED);
    }
}

/// G8: another cluster under the same name.
#[test]
fn another_cluster_under_the_name_is_refused_until_it_is_said() {
    let cluster = Cluster::builder().segment_mib(1).archiving().start();
    let walkeep = walkeep(&cluster, Store::Local);
    let agent = walkeep.agent();
    let (name, original) = {
        cluster.archive_by(Some(&walkeep.archive_command()));
        archived_segment(&cluster)
    };
    let other = Cluster::builder().segment_mib(1).fresh().archiving().start();
    // The first agent's socket, as when a second server gets the first one's configuration.
    other.archive_by(Some(&walkeep.archive_command()));
    let refused = other.switch_wal();
    wait_until("the refusal is counted", SOON, || other.value::<u64>("SELECT failed_count FROM pg_stat_archiver") > 0);
    assert!(other.log().contains("belongs to the cluster with system identifier"), "{}", other.log());
    assert_calm(&agent, &REFUSED);
    agent.stop();

    let second = with_repository_of(&walkeep, &other, "");
    let init = second.run(&["init"]).expect_code(3);
    assert!(init.stderr.contains("--new-identity") && init.stderr.contains("refused"), "{}", init.stderr);
    let pushed = second.run(&["wal", "push", &other.pg_wal().join(&refused).to_string_lossy()]).expect_code(1);
    assert!(pushed.stderr.contains("system identifier"), "{}", pushed.stderr);
    // The stream refuses too, and says why where an operator looks.
    let agent = second.launch_agent().unwrap();
    wait_until("the agent says it", SOON, || agent.log().contains("the repository keeps"));
    assert_eq!(agent.metric("walkeep_stored_objects_total{source=\"stream\"}"), Some(0.0));
    agent.stop();

    second.ok(&["init", "--new-identity"]);
    second.ok(&["init"]);
    let agent = second.agent();
    other.archive_by(Some(&second.archive_command()));
    other.archive_now();
    compare_fetched(&other.oracle(), &second);
    assert_calm(&agent, &[]);
    // What was stored of the first is still there, byte for byte.
    let system = cluster.system_identifier();
    let object = walkeep.local_repository().join(format!("main/{system}/wal/00000001/00000000/{}", crate::story::object(&name)));
    let unpacked = run(user::command("zstd").args(["-dc", "--no-progress"]).arg(&object));
    if unpacked.ok() {
        assert_eq!(unpacked.stdout.len(), String::from_utf8_lossy(&original).len());
    } else {
        assert!(object.metadata().unwrap().len() > 100);
    }
}

/// S1: a data directory copied with cp, both running on timeline 1.
#[test]
fn a_cloned_server_cannot_mix_its_wal_in() {
    let cluster = Cluster::builder().segment_mib(1).archiving().start();
    let walkeep = archive_only(&cluster, Store::S3);
    cluster.stop(Stop::Fast);
    let clone = cluster.copy();
    let second = with_repository_of(&walkeep, &clone, "stream = false\n");
    let (agent, second_agent) = (walkeep.agent(), second.agent());
    cluster.archive_by(Some(&walkeep.archive_command()));
    clone.archive_by(Some(&second.archive_command()));
    cluster.start();
    clone.start();
    cluster.sql("CREATE TABLE original ()");
    clone.sql("CREATE TABLE copied ()");
    let first = cluster.archive_now();
    assert_eq!(clone.switch_wal(), first, "both write the same segment");
    let failed = "SELECT failed_count FROM pg_stat_archiver";
    wait_until("the clone's is refused", SOON, || clone.value::<u64>(failed) > 0);
    assert!(second_agent.metric("walkeep_conflicts_total").unwrap() >= 1.0);
    assert!(clone.log().contains("Two servers write one archive"), "{}", clone.log());
    // The clone's archiver is held at this segment; the original goes on undisturbed.
    clone.switch_wal();
    cluster.archive_now();
    assert_eq!(cluster.value::<u64>(failed), 0);
    assert!(compare_fetched(&cluster.oracle(), &walkeep) >= 2);
    assert!(!clone.oracle().join(&first).exists());
    assert_calm(&agent, &[]);
    assert_calm(&second_agent, &REFUSED);
}

/// S1 again, by the stream: the clone runs ahead of the original, whose next names are still free.
#[test]
fn a_cloned_servers_stream_cannot_mix_its_wal_in() {
    let cluster = Cluster::builder().segment_mib(1).conf("wal_keep_size", "256MB").start();
    let walkeep = walkeep(&cluster, Store::S3);
    cluster.stop(Stop::Fast);
    let clone = cluster.copy();
    cluster.start();
    let agent = walkeep.agent();
    let second = with_machine_of(&walkeep, &clone);
    cluster.sql("CREATE TABLE original ()");
    let first = switch_and_store(&cluster, &agent, 1);
    clone.start();
    clone.pgbench_init(1);
    // It is refused at once, so its agent may never be seen to be ready.
    let second_agent = second.launch_agent().unwrap();
    wait_until("the clone's is refused, and again", SOON, || second_agent.log().matches("other content").count() >= 3);
    assert!(second_agent.metric("walkeep_conflicts_total").unwrap() >= 3.0);
    for source in ["stream", "part"] {
        let stored = second_agent.metric(&format!("walkeep_stored_objects_total{{source=\"{source}\"}}"));
        assert_eq!(stored, Some(0.0), "nothing behind a conflict is stored by the {source}");
    }
    assert!(!second_agent.log().contains("storing what an earlier run received"), "{}", second_agent.log());
    second_agent.stop();
    // The original's names are all still free.
    cluster.pgbench_init(1);
    let last = switch_and_store(&cluster, &agent, 1);
    let names: Vec<_> = segments_in(&cluster.pg_wal()).into_iter().filter(|name| (&first..=&last).contains(&name)).collect();
    assert!(names.len() > 10);
    for name in names {
        assert!(fetch(&walkeep, &name) == std::fs::read(cluster.pg_wal().join(&name)).unwrap(), "{name}");
    }
    assert_eq!(agent.metric("walkeep_conflicts_total"), Some(0.0));
    assert_calm(&agent, &[]);
}

/// S1 by a copy out of pg_basebackup: it has no slot, and the one that its agent makes holds only WAL behind everything that is stored.
#[test]
fn a_copy_out_of_a_backup_is_noticed_although_its_slot_holds_nothing_old() {
    for store in STORES {
        let cluster = Cluster::builder().segment_mib(1).conf("wal_keep_size", "256MB").start();
        let walkeep = walkeep(&cluster, store);
        let agent = walkeep.agent();
        switch_and_store(&cluster, &agent, 1);
        let clone = cluster.copy_by_backup();
        let stored = [switch_and_store(&cluster, &agent, 1), switch_and_store(&cluster, &agent, 1)];
        clone.start();
        assert_eq!(clone.sql("SELECT count(*) FROM pg_replication_slots"), "0");
        // Past the original, so that the next names are free, with a checkpoint there: a new slot begins at it.
        while clone.switch_wal() <= stored[1] {}
        clone.sql("CHECKPOINT");
        let second = with_machine_of(&walkeep, &clone);
        let second_agent = second.launch_agent().unwrap();
        wait_until("the clone's is refused, and again", SOON, || second_agent.log().matches("other content").count() >= 3);
        assert!(second_agent.metric("walkeep_conflicts_total").unwrap() >= 3.0);
        for source in ["stream", "part"] {
            let stored = second_agent.metric(&format!("walkeep_stored_objects_total{{source=\"{source}\"}}"));
            assert_eq!(stored, Some(0.0), "nothing behind a conflict is stored by the {source}");
        }
        // Started anew it is refused again: the slot that it made is no proof.
        second_agent.stop();
        let second_agent = second.launch_agent().unwrap();
        wait_until("the clone's is refused once more", SOON, || second_agent.log().contains("other content"));
        assert_eq!(second_agent.metric("walkeep_stored_objects_total{source=\"stream\"}"), Some(0.0));
        second_agent.stop();
        let last = switch_and_store(&cluster, &agent, 1);
        assert!(fetch(&walkeep, &last) == std::fs::read(cluster.pg_wal().join(&last)).unwrap(), "{last} is the original's");
        assert_eq!(agent.metric("walkeep_conflicts_total"), Some(0.0));
        assert_calm(&agent, &[]);
    }
}

/// Where the server no longer has the last segment that is stored, there is nothing to compare with: its records show that it is the same server's.
#[test]
fn a_history_that_cannot_be_compared_is_proven_by_its_records() {
    const PROVEN: &str = "records go on where what is stored ends";
    let cluster = Cluster::builder().segment_mib(1).conf("max_wal_size", "4MB").conf("min_wal_size", "2MB").start();
    let walkeep = walkeep(&cluster, Store::Local);
    let agent = walkeep.agent();
    let last = switch_and_store(&cluster, &agent, 1);
    agent.stop();
    // The usual: the slot stands where everything is stored. That is proof enough.
    cluster.sql("CHECKPOINT");
    wait_until("the stored segment is removed", SOON, || !cluster.pg_wal().join(&last).exists());
    let agent = walkeep.agent();
    assert_calm(&agent, &[]);
    agent.stop();
    // A new slot proves nothing, but the part that was stored at the stop can be compared.
    cluster.sql("SELECT pg_drop_replication_slot('walkeep')");
    cluster.sql("CREATE TABLE t ()");
    cluster.sql("CHECKPOINT");
    let agent = walkeep.agent();
    let last = switch_and_store(&cluster, &agent, 1);
    assert_calm(&agent, &["the replication slot is gone"]);
    agent.stop();
    // Nor is there a part.
    let repository = walkeep.local_repository();
    for part in story::listing(&repository).iter().filter_map(|line| line.split(' ').next()).filter(|path| path.contains(".parts/")) {
        std::fs::remove_file(repository.join(part)).unwrap();
    }
    cluster.sql("SELECT pg_drop_replication_slot('walkeep')");
    cluster.sql("CREATE TABLE u ()");
    cluster.sql("CHECKPOINT");
    wait_until("the stored segment is removed", SOON, || !cluster.pg_wal().join(&last).exists());
    let agent = walkeep.agent();
    switch_and_store(&cluster, &agent, 1);
    assert_eq!(agent.log().matches(PROVEN).count(), 1, "{}", agent.log());
    assert_calm(&agent, &["the replication slot is gone"]);
    cluster.restart();
    switch_and_store(&cluster, &agent, 1);
    assert_eq!(agent.log().matches(PROVEN).count(), 1, "{}", agent.log());
    agent.stop();
    assert_eq!(walkeep.ok(&["status", "--json"]).json()["gaps"], serde_json::json!([]));
}

/// Has a server end so many segments, each with `mark` in it; their names.
fn many_segments(cluster: &Cluster, mark: &str, count: usize) -> Vec<String> {
    cluster.sql("CHECKPOINT");
    let script = format!(
        "DO $$ BEGIN FOR i IN 1..{count} LOOP PERFORM pg_logical_emit_message(false, 'race', '{mark}'); PERFORM pg_switch_wal(); END LOOP; END $$"
    );
    let first: String = cluster.sql("SELECT pg_walfile_name(pg_current_wal_insert_lsn())");
    cluster.sql(&script);
    let names: Vec<_> = segments_in(&cluster.pg_wal()).into_iter().filter(|name| *name >= first).take(count).collect();
    assert_eq!(names.len(), count);
    names
}

/// S3: two writers at the same instant, over and over: one of them wins, and what is stored is the winner's.
#[test]
fn of_two_writers_at_once_exactly_one_wins() {
    const ROUNDS: usize = 200;
    // The archiver has no command: the files wait.
    let cluster = Cluster::builder().segment_mib(1).archiving().conf("wal_keep_size", "1GB").start();
    cluster.stop(Stop::Fast);
    let clone = cluster.copy();
    cluster.start();
    clone.start();
    let names = many_segments(&cluster, "original", ROUNDS);
    assert_eq!(many_segments(&clone, "copied", ROUNDS), names);
    for store in STORES {
        let walkeep = archive_only(&cluster, store);
        let second = with_repository_of(&walkeep, &clone, "stream = false\n");
        let (agent, second_agent) = (walkeep.agent(), second.agent());
        let mut won = [0, 0];
        let mut winners = Vec::new();
        for name in &names {
            let one = || offer(&walkeep, &cluster.pg_wal().join(name)).code;
            let other = || offer(&second, &clone.pg_wal().join(name)).code;
            let codes = std::thread::scope(|scope| {
                let other = scope.spawn(other);
                [one(), other.join().unwrap()]
            });
            assert!(codes == [Some(0), Some(1)] || codes == [Some(1), Some(0)], "{name}: {codes:?}");
            let winner = usize::from(codes[1] == Some(0));
            won[winner] += 1;
            winners.push(winner);
        }
        eprintln!("{store:?}: {won:?} won");
        let conflicts = |agent: &Agent| agent.metric("walkeep_conflicts_total").unwrap() as usize;
        assert_eq!([conflicts(&second_agent), conflicts(&agent)], won);
        for (name, winner) in names.iter().zip(winners).step_by(8) {
            let of = [&cluster, &clone][winner];
            assert!(fetch(&walkeep, name) == std::fs::read(of.pg_wal().join(name)).unwrap(), "{name} is not the winner's");
        }
        // Where the two servers' own records differ in length, WAL that is mixed does not link up, and the index says so.
        let expected = [&REFUSED[..], &["so the index leaves it out"]].concat();
        assert_calm(&agent, &expected);
        assert_calm(&second_agent, &expected);
    }
}

/// I8: what is not what its name says.
#[test]
fn what_is_not_this_clusters_wal_is_refused() {
    let cluster = Cluster::builder().segment_mib(1).archiving().conf("wal_keep_size", "256MB").start();
    let walkeep = archive_only(&cluster, Store::Local);
    let agent = walkeep.agent();
    cluster.archive_by(None);
    let (name, good) = archived_segment(&cluster);
    let offered = Offered::of(&cluster);
    let patched = |at: usize, with: &[u8]| {
        let mut bytes = good.clone();
        bytes[at..at + with.len()].copy_from_slice(with);
        bytes
    };
    let next = format!("{}{:08X}", &name[..16], u32::from_str_radix(&name[16..], 16).unwrap() + 1);
    let other_timeline = format!("00000002{}", &name[8..]);
    let long = [good.as_slice(), &[0; 8192]].concat();
    let cases: [(&str, &str, Vec<u8>); 13] = [
        ("no WAL at all", &name, vec![b'x'; MIB as usize]),
        ("zeros", &name, vec![0; MIB as usize]),
        ("empty", &name, Vec::new()),
        ("a byte short", &name, good[..good.len() - 1].to_vec()),
        ("half", &name, good[..good.len() / 2].to_vec()),
        ("longer", &name, long),
        ("its successor's name", &next, good.clone()),
        ("the magic of another version", &name, patched(0, &[0x01])),
        ("another position", &name, patched(8, &[0, 0, 0, 0, 9, 0, 0, 0])),
        ("a timeline of the future", &name, patched(4, &[9])),
        ("another cluster's", &name, patched(24, &[1, 2, 3])),
        ("a history with no lines that are any", "00000002.history", b"nonsense\n".to_vec()),
        ("an empty history", "00000002.history", Vec::new()),
    ];
    for (what, name, bytes) in cases {
        let path = offered.file(name, &bytes);
        let refused = offer(&walkeep, &path);
        assert_eq!(refused.code, Some(1), "{what}: {}", refused.stderr);
        assert!(refused.stderr.contains("refused") && refused.stderr.contains(name), "{what}: {}", refused.stderr);
        assert_eq!(walkeep.run(&["wal", "push", &path.to_string_lossy()]).code, Some(1), "{what}");
        std::fs::remove_file(path).unwrap();
    }
    for name in
        ["postgresql.conf", "0000000100000000000000", "00000001000000000000000g", "00000001000000000000000a", &format!("{name}.tmp")]
    {
        offer(&walkeep, &offered.file(name, &good)).expect_code(1);
    }
    assert_eq!(agent.metric("walkeep_stored_objects_total{source=\"archive\"}"), Some(0.0));
    for nothing in [&name, &next, &other_timeline] {
        assert_eq!(walkeep.run(&["wal", "fetch", nothing, "/tmp/walkeep-test-nothing"]).code, Some(1), "{nothing}");
    }
    offer(&walkeep, &offered.file(&name, &good)).expect_code(0);
    assert_eq!(fetch(&walkeep, &name), good);
    assert_calm(&agent, &REFUSED);
}

/// Two promotions leave two different `.partial` under one name; neither holds the queue up.
#[test]
fn partials_and_small_files_are_archived() {
    let cluster = Cluster::builder().segment_mib(1).archiving().start();
    let walkeep = archive_only(&cluster, Store::S3);
    let agent = walkeep.agent();
    cluster.archive_by(Some(&walkeep.archive_command()));
    // .backup
    cluster.base_backup(&cluster.scratch().join("backup"), &["-X", "none"]);
    let backup =
        || std::fs::read_dir(cluster.oracle()).unwrap().any(|entry| entry.unwrap().path().extension().is_some_and(|e| e == "backup"));
    wait_until("the .backup file is archived", SOON, backup);
    // .history and .partial, by a promotion in the middle of a segment.
    let standby = cluster.standby();
    cluster.sql("CREATE TABLE t AS SELECT generate_series(1, 100)");
    cluster.wait_replayed(&standby);
    standby.promote();
    standby.archive_by(Some(&walkeep.archive_command()));
    let last = standby.archive_now();
    assert!(last.starts_with("00000002"));
    let promoted = std::fs::read_dir(standby.oracle()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let archived: Vec<_> = std::fs::read_dir(cluster.oracle())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .chain(promoted)
        .collect();
    assert!(archived.iter().any(|name| name == "00000002.history"), "{archived:?}");
    let partial = archived.iter().find(|name| name.ends_with(".partial")).unwrap_or_else(|| panic!("{archived:?}"));
    compare_fetched(&cluster.oracle(), &walkeep);
    compare_fetched(&standby.oracle(), &walkeep);
    // Another one of that name: kept too, and the first is still what is fetched.
    let first = fetch(&walkeep, partial);
    let offered = Offered::of(&cluster);
    let path = offered.file(partial, &changed(&first));
    offer(&walkeep, &path).expect_code(0);
    offer(&walkeep, &path).expect_code(0);
    assert_eq!(fetch(&walkeep, partial), first);
    // S2: a second 00000002.history of other content is refused.
    let history = String::from_utf8(fetch(&walkeep, "00000002.history")).unwrap();
    let path =
        offered.file("00000002.history", format!("{}\n", history.trim_end().replace("no recovery target", "another story")).as_bytes());
    let refused = offer(&walkeep, &path).expect_code(1);
    assert!(refused.stderr.contains("other content"), "{}", refused.stderr);
    assert_eq!(fetch(&walkeep, "00000002.history"), history.as_bytes());
    assert_calm(&agent, &["another .partial of this name", REFUSED[0]]);
}
