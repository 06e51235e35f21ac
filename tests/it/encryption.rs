//! Encryption: a host that only writes, one that reads, keys that come and go, and whatever is not as it should be.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use walkeep_tests::walkeep::run;
use walkeep_tests::{Agent, Cluster, Keys, Output, Pair, Repository, Stop, Walkeep, wait_until};

use crate::story::{self, PATIENCE, Restored, listing};
use crate::support::{SERVER_GONE, STORES, Store, fetch, lsn, segments_in, switch_and_store, uninitialised, wait_durable};

const VERSION: u32 = 15;
const DIGEST: &str = "SELECT coalesce(sum(hashtextextended(t::text, 0)), 0) || ' of ' || count(*) FROM t";

/// A server whose host only writes, and another host, which reads.
struct World {
    pair: Pair,
    agent: Option<Agent>,
    cluster: Cluster,
    writer: Walkeep,
    reader: Walkeep,
}

impl World {
    #[track_caller]
    fn new(store: Store) -> Self {
        let pair = Pair::generate();
        let cluster = story::builder(VERSION).start();
        let mut writer = uninitialised(&cluster, store);
        writer.keys = Some(Keys::to_write(&[&pair]));
        writer.write_config();
        writer.ok(&["init"]);
        let agent = writer.agent();
        cluster.archive_by(Some(&writer.archive_command()));
        cluster.sql("CREATE TABLE t (i int PRIMARY KEY, filler text)");
        let reader = host(&writer, Keys::to_read(&[&pair]));
        Self { pair, agent: Some(agent), cluster, writer, reader }
    }

    fn agent(&self) -> &Agent {
        self.agent.as_ref().unwrap()
    }

    fn backup(&self, args: &[&str]) -> serde_json::Value {
        self.writer.ok(&[&["backup", "--json"], args].concat()).json()
    }

    /// Restores on the host that reads, and asks there.
    #[track_caller]
    fn restored(&self, args: &[&str]) -> String {
        let restored = Restored::by(&self.reader, VERSION, args);
        restored.start();
        let digest = restored.cluster.sql(DIGEST);
        restored.cluster.stop(Stop::Fast);
        digest
    }

    fn digest(&self) -> String {
        self.cluster.sql(DIGEST)
    }

    #[track_caller]
    fn end(mut self, expected: &[&str]) {
        let agent = self.agent.take().unwrap();
        let complaints = agent.complaints(expected);
        assert!(complaints.is_empty(), "the agent complained:\n{}", complaints.join("\n"));
        agent.stop();
    }
}

/// Another host with the same repository.
fn host(walkeep: &Walkeep, keys: Keys) -> Walkeep {
    let mut other = Walkeep::offline(walkeep.repositories[0].clone());
    other.keys = Some(keys);
    other.write_config();
    other
}

/// What the host kept of the unfinished segment.
fn lose_copies(walkeep: &Walkeep) {
    std::fs::remove_dir_all(walkeep.spool().join("own")).unwrap();
    for entry in std::fs::read_dir(walkeep.spool()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "writing") {
            std::fs::remove_file(path).unwrap();
        }
    }
}

fn written(cluster: &Cluster) -> u64 {
    lsn(&cluster.sql("SELECT pg_current_wal_flush_lsn()"))
}

/// The objects of a local repository, by their paths in it.
fn objects(walkeep: &Walkeep) -> Vec<String> {
    let files = listing(&walkeep.local_repository()).into_iter();
    files.filter_map(|line| line.split_once(" f ").map(|(path, _)| path.to_owned())).collect()
}

/// What the programs `age` and `zstd` make of an object.
fn by_hand(object: &Path, identity: &str, scratch: &Walkeep) -> Output {
    let keys = scratch.scratch().write("by-hand", identity, 0o600);
    let script = "age -d -i \"$1\" \"$2\" | zstd -dcq";
    run(Command::new("bash").args(["-o", "pipefail", "-c", script, "bash"]).arg(keys).arg(object))
}

/// What was decided of them by nobody who can read: rows by both ways of a backup, an incremental one, and WAL behind it.
#[test]
fn a_host_that_only_writes_is_restored_where_the_identity_is() {
    for store in STORES {
        let world = World::new(store);
        story::insert(&world.cluster, 200);
        let name = switch_and_store(&world.cluster, world.agent(), 1);
        world.cluster.sql("CREATE TABLE still AS SELECT g, md5(g::text) FROM generate_series(1, 100000) g");
        story::settle(&world.cluster, &world.writer);
        let first = world.backup(&["--method", "protocol"]);
        story::insert(&world.cluster, 100);
        let taken = world.writer.ok(&["backup", "--json", "--method", "local"]);
        assert!(!taken.stderr.contains("WARN"), "{}", taken.stderr);
        let second = taken.json();
        let at_second = world.digest();
        story::insert(&world.cluster, 100);
        story::settle(&world.cluster, &world.writer);
        // It builds on the older one, whose manifest nobody here can read from the repository.
        assert_eq!(second["parent"], first["id"], "{second}");
        let stored = |record: &serde_json::Value| record["bytes_stored"].as_u64().unwrap();
        assert!(stored(&second) * 4 < stored(&first), "{first} {second}");

        assert_eq!(world.restored(&["--backup", second["id"].as_str().unwrap(), "--immediate"]), at_second);
        assert_eq!(world.restored(&[]), world.digest());
        for command in [&["status"][..], &["backups"], &["timelines"]] {
            world.writer.ok(command);
        }
        let checked = world.writer.ok(&["check"]).stdout;
        assert!(checked.contains("nothing was read back") && !checked.contains("what the server wrote"), "{checked}");
        let to = world.writer.scratch().join("restored").to_string_lossy().into_owned();
        for command in [&["restore", "--to", &to][..], &["index", "--rebuild"], &["wal", "fetch", &name, "/tmp/never"]] {
            let refused = world.writer.run(command);
            assert!(refused.stderr.contains("cannot decrypt") && refused.stderr.contains("has no identity"), "{refused:?}");
            assert!(!refused.stderr.contains("is not in the"), "{refused:?}");
        }
        world.end(&[]);
    }
}

/// Of those who change the recipients at the same time none undoes what another did.
#[test]
fn recipients_that_are_added_at_once_are_all_there() {
    let first = Pair::generate();
    let mut walkeep = Walkeep::offline(Repository::Local("/nonexistent".into()));
    walkeep.keys = Some(Keys::to_write(&[&first]));
    walkeep.write_config();
    let all: Vec<String> = std::iter::repeat_with(|| Pair::generate().recipient).take(8).collect();
    std::thread::scope(|scope| {
        for recipient in &all {
            scope.spawn(|| walkeep.ok(&["key", "add", recipient]));
        }
    });
    let file = walkeep.scratch().join("recipients");
    let count = || std::fs::read_to_string(&file).unwrap().lines().count();
    assert_eq!(count(), 9);
    std::thread::scope(|scope| {
        for recipient in &all[..4] {
            scope.spawn(|| walkeep.ok(&["key", "remove", recipient]));
        }
    });
    assert_eq!(count(), 5);

    // Of a group that its owner is none of, and which may do no more than everybody.
    std::os::unix::fs::chown(&file, None, Some(0)).unwrap();
    walkeep.ok(&["key", "add", &all[0]]);
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o640)).unwrap();
    std::os::unix::fs::chown(&file, None, Some(0)).unwrap();
    let refused = walkeep.run(&["key", "add", &all[1]]).expect_code(1);
    assert!(refused.stderr.contains("Run it as root") && count() == 6, "{refused:?}");
}

/// Every object is a file that `age` and `zstd` open, and what stays readable says nothing of rows.
#[test]
fn every_object_is_opened_by_hand() {
    let world = World::new(Store::Local);
    story::insert(&world.cluster, 50);
    world.cluster.sql("INSERT INTO t VALUES (1000, 'SENTINELrow')");
    let name = switch_and_store(&world.cluster, world.agent(), 1);
    world.backup(&[]);
    // A part, which an unfinished segment is stored in.
    world.cluster.sql("INSERT INTO t VALUES (1001, 'SENTINELrow')");
    wait_until("a part is stored", PATIENCE, || objects(&world.writer).iter().any(|path| path.contains(".parts/")));
    let (mut kinds, mut opened) = (BTreeSet::new(), 0);
    for path in objects(&world.writer) {
        let object = world.writer.local_repository().join(&path);
        // One that is replaced meanwhile is gone.
        let Ok(content) = std::fs::read(&object) else { continue };
        assert!(!content.windows(11).any(|bytes| bytes == b"SENTINELrow"), "{path} shows a row");
        if path.ends_with(".json") || path.ends_with(".history.zst") {
            continue;
        }
        assert!(path.ends_with(".zst.age"), "{path}");
        let keep = world.writer.scratch().write("object", content, 0o600);
        let output = by_hand(&keep, &world.pair.identity, &world.reader);
        assert!(output.ok(), "{path}: {output:?}");
        assert!(!by_hand(&keep, &Pair::generate().identity, &world.reader).ok(), "{path}");
        kinds.insert(path.split('/').nth(2).unwrap().to_owned());
        opened += 1;
    }
    assert!(opened > 5 && ["backups", "names", "packs", "wal"].iter().all(|kind| kinds.contains(*kind)), "{opened} {kinds:?}");
    // And a segment's is the server's.
    let object = story::wait_for_file(&world.writer.local_repository(), &format!("/{name}.zst.age"));
    let to = world.writer.scratch().join("by-hand.wal");
    let identity = world.writer.scratch().write("identity", &world.pair.identity, 0o600);
    let script = format!("age -d -i {} {} | zstd -dcq > {}", identity.display(), object.display(), to.display());
    run(Command::new("bash").args(["-o", "pipefail", "-c", &script])).expect_code(0);
    assert!(std::fs::read(&to).unwrap() == fetch(&world.reader, &name));
    world.end(&[]);
}

/// Recipients come and go while the agent runs; what is stored is not touched.
#[test]
fn keys_come_and_go() {
    let world = World::new(Store::Local);
    let (a, b) = (&world.pair, Pair::generate());
    let (with_a, with_b) = (&world.reader, host(&world.writer, Keys::to_read(&[&b])));
    let readable = |walkeep: &Walkeep, name: &str| {
        let to = walkeep.scratch().join(format!("fetched-{name}"));
        let output = walkeep.run(&["wal", "fetch", name, &to.to_string_lossy()]);
        assert!(output.ok() || (output.code.unwrap() > 125 && output.stderr.contains("cannot decrypt")), "{output:?}");
        output.ok()
    };
    // The way to what is stored later leads over this timeline's end.
    world.cluster.stop(Stop::Fast);
    std::fs::write(world.cluster.data().join("standby.signal"), "").unwrap();
    world.cluster.start();
    world.cluster.promote();
    let first = switch_and_store(&world.cluster, world.agent(), 1);
    let before = objects(&world.writer);

    // Keys are keys however they are written.
    let file = world.writer.scratch().join("recipients");
    std::fs::write(&file, format!("{}\n{}\n", std::fs::read_to_string(&file).unwrap(), b.recipient.to_uppercase())).unwrap();
    world.writer.ok(&["key", "remove", &b.recipient]);
    assert!(!std::fs::read_to_string(&file).unwrap().to_lowercase().contains(&b.recipient));
    let added = world.writer.ok(&["key", "add", &b.recipient]);
    assert!(added.stdout.contains("2 recipients") && added.stdout.contains("What was stored before cannot"), "{added:?}");
    assert!(world.writer.ok(&["key", "add", &b.recipient]).stdout.contains("already"));
    let second = switch_and_store(&world.cluster, world.agent(), 1);
    let removed = world.writer.ok(&["key", "remove", &a.recipient]);
    assert!(removed.stdout.contains("1 recipient now") && removed.stdout.contains("What was stored before still can"), "{removed:?}");
    assert!(world.writer.run(&["key", "remove", &a.recipient]).expect_code(3).stderr.contains("is not a recipient"));
    let last = world.writer.run(&["key", "remove", &b.recipient]).expect_code(3);
    assert!(last.stderr.contains("only recipient"), "{last:?}");
    let third = switch_and_store(&world.cluster, world.agent(), 1);

    let of = |walkeep: &Walkeep| [&first, &second, &third].map(|name| readable(walkeep, name));
    assert_eq!((of(with_a), of(&with_b)), ([true, true, false], [false, true, true]));
    let whole = |paths: &[String]| paths.iter().filter(|path| !path.contains(".parts/")).cloned().collect::<BTreeSet<_>>();
    assert!(whole(&objects(&world.writer)).is_superset(&whole(&before)), "nothing was replaced");

    // Who is added reads everything from the next full backup on.
    story::insert(&world.cluster, 10);
    world.backup(&["--full"]);
    story::insert(&world.cluster, 10);
    story::settle(&world.cluster, &world.writer);
    with_b.ok(&["plan"]);
    let restored = Restored::by(&with_b, VERSION, &[]);
    restored.start();
    assert_eq!(restored.cluster.sql(DIGEST), world.digest());
    restored.cluster.stop(Stop::Fast);

    let listed = world.writer.ok(&["key", "list", "--json"]).json();
    assert_eq!((listed["recipients"][0]["recipient"].as_str(), listed["can_read"].as_bool()), (Some(&*b.recipient), Some(false)));
    assert!(with_a.ok(&["key", "list"]).stdout.contains("it reads what is stored for it"));
    world.end(&["the recipients have changed", "this host cannot read what is stored", SERVER_GONE[0], SERVER_GONE[1]]);
}

#[test]
fn an_identity_is_made_once_and_kept_to_oneself() {
    let walkeep = Walkeep::offline(Repository::Local(PathBuf::from("/nonexistent")));
    let file = walkeep.scratch().join("identity.txt");
    let made = walkeep.ok(&["key", "generate", "--output", &file.to_string_lossy()]);
    let text = std::fs::read_to_string(&file).unwrap();
    let identity = text.lines().last().unwrap();
    assert!(identity.starts_with("AGE-SECRET-KEY-1") && !format!("{made:?}").contains(identity), "{made:?}");
    assert_eq!(std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(&file).unwrap()) & 0o777, 0o600);
    let again = walkeep.run(&["key", "generate", "--output", &file.to_string_lossy()]).expect_code(3);
    assert!(again.stderr.contains("is not overwritten") && std::fs::read_to_string(&file).unwrap() == text, "{again:?}");
    // age's own program takes it, and names the same recipient.
    let public = run(Command::new("age-keygen").arg("-y").arg(&file)).expect_code(0).stdout;
    assert!(made.stdout.contains(public.trim()), "{made:?} {public}");
}

/// I2: what cannot be decrypted is never absent.
#[test]
fn a_wrong_identity_cannot_decrypt() {
    let world = World::new(Store::Local);
    story::insert(&world.cluster, 10);
    let name = switch_and_store(&world.cluster, world.agent(), 1);
    world.backup(&[]);
    story::settle(&world.cluster, &world.writer);
    let wrong = host(&world.writer, Keys::to_read(&[&Pair::generate()]));
    let to = wrong.scratch().join("restored");
    for args in [&["plan"][..], &["restore", "--to", &to.to_string_lossy()], &["log"]] {
        let refused = wrong.run(args).expect_code(1);
        assert!(refused.stderr.contains("cannot decrypt") && refused.stderr.contains("none of the identities"), "{args:?} {refused:?}");
    }
    let data = Restored::by(&world.reader, VERSION, &[]);
    let destination = data.cluster.data().join("pg_wal/RECOVERYXLOG");
    let shim = |walkeep: &Walkeep, name: &str| {
        let socket = walkeep.socket();
        let args = ["--socket", &*socket.to_string_lossy(), "--timeout", "20s", name, "pg_wal/RECOVERYXLOG"];
        let mut command = walkeep.command_of("walkeep-restore-cmd", &args);
        run(command.current_dir(data.cluster.data()))
    };
    let refused = shim(&wrong, &name);
    assert!(refused.code.unwrap() > 125 && refused.stderr.contains("cannot decrypt"), "{refused:?}");
    assert!(!destination.exists());
    // What is not there is absent, whatever one can read.
    let absent = shim(&wrong, "0000000100000000000000FE");
    assert_eq!(absent.code, Some(1), "{absent:?}");
    let fetched = wrong.run(&["wal", "fetch", &name, &to.to_string_lossy()]);
    assert!(fetched.code.unwrap() > 125 && fetched.stderr.contains("cannot decrypt"), "{fetched:?}");

    // An agent without an identity sends whoever asks to a fetch service, which has one if its environment has.
    let socket = world.writer.socket();
    let args = ["--socket", &*socket.to_string_lossy(), "--timeout", "20s", &name, "pg_wal/RECOVERYXLOG"];
    let mut command = world.writer.command_of("walkeep-restore-cmd", &args);
    let fetched = run(command.env("WALKEEP_ENCRYPTION_IDENTITY", &world.pair.identity).current_dir(data.cluster.data()));
    assert!(fetched.ok(), "{fetched:?}");
    assert!(std::fs::read(&destination).unwrap() == fetch(&world.reader, &name));
    world.end(&[]);
}

/// What the host keeps for itself may be lost: a full backup is the price.
#[test]
fn a_lost_spool_costs_a_full_backup() {
    let mut world = World::new(Store::Local);
    story::insert(&world.cluster, 100);
    world.cluster.sql("CREATE TABLE still AS SELECT g, md5(g::text) FROM generate_series(1, 100000) g");
    story::settle(&world.cluster, &world.writer);
    let first = world.backup(&["--method", "local"]);
    story::insert(&world.cluster, 10);
    story::settle(&world.cluster, &world.writer);
    world.agent.take().unwrap().stop();
    std::fs::remove_dir_all(world.writer.spool()).unwrap();
    world.writer.scratch().dir("spool");
    story::insert(&world.cluster, 10);
    world.agent = Some(world.writer.agent());
    story::insert(&world.cluster, 10);
    story::settle(&world.cluster, &world.writer);
    let second = world.backup(&["--method", "local"]);
    let stored = |record: &serde_json::Value| record["bytes_stored"].as_u64().unwrap();
    assert!(second.get("parent").is_none() && stored(&second) * 2 > stored(&first), "{first} {second}");
    story::insert(&world.cluster, 10);
    let third = world.backup(&["--method", "local"]);
    assert!(third["parent"] == second["id"] && stored(&third) * 4 < stored(&second), "{second} {third}");
    story::settle(&world.cluster, &world.writer);
    assert_eq!(world.restored(&[]), world.digest());
    assert_eq!(world.restored(&["--backup", first["id"].as_str().unwrap()]), world.digest());
    world.end(&["this host cannot read what is stored", "following another writer"]);
}

/// What was stored of the unfinished segment can be lost from where this host could read it: then it is compared by fingerprints, stored once more, and the
/// stream goes on, without archive_command's help and without losing a byte in between.
#[test]
fn a_lost_copy_of_the_unfinished_segment_stops_nothing() {
    for key_is_lost in [false, true] {
        let mut world = World::new(Store::Local);
        world.backup(&[]);
        world.cluster.archive_by(None);
        world.cluster.switch_wal();
        let pause = |world: &World| {
            story::insert(&world.cluster, 10);
            wait_durable(world.agent(), written(&world.cluster), PATIENCE);
        };
        pause(&world);
        pause(&world);
        let at = world.digest();
        world.agent.take().unwrap().kill9();
        lose_copies(&world.writer);
        if key_is_lost {
            std::fs::remove_file(world.writer.spool().join("fingerprint.key")).unwrap();
        }
        assert_eq!(world.restored(&[]), at);
        world.agent = Some(world.writer.agent());
        pause(&world);
        assert_eq!(world.restored(&[]), world.digest());
        let taken = world.agent().log();
        assert!(taken.contains("took the lease") && !taken.contains("Overtaken"), "{taken}");
        world.end(&["this host cannot read what is stored"]);
    }
}

/// A copy of the server that has gone its own way within the unfinished segment is told by the parts' fingerprints.
#[test]
fn another_servers_parts_are_known_by_their_fingerprints() {
    let mut world = World::new(Store::Local);
    world.cluster.archive_by(None);
    world.cluster.sql("SELECT pg_switch_wal()");
    story::insert(&world.cluster, 3);
    wait_durable(world.agent(), written(&world.cluster), PATIENCE);
    world.agent.take().unwrap().stop();
    world.cluster.stop(Stop::Immediate);
    let copied = world.writer.scratch().join("copied");
    run(Command::new("cp").arg("-a").arg(world.cluster.data()).arg(&copied)).expect_code(0);
    world.cluster.start();
    let agent = world.writer.agent();
    world.cluster.sql("INSERT INTO t SELECT g, 'stored' FROM generate_series(101, 130) g");
    wait_durable(&agent, written(&world.cluster), PATIENCE);
    agent.stop();
    world.cluster.stop(Stop::Immediate);
    run(Command::new("bash").args(["-c", "rm -rf \"$2\" && mv \"$1\" \"$2\"", "bash"]).arg(&copied).arg(world.cluster.data()))
        .expect_code(0);
    world.cluster.start();
    world.cluster.sql("INSERT INTO t SELECT g, 'other rows' FROM generate_series(201, 260) g");
    lose_copies(&world.writer);
    // That it was refused is recorded.
    let archive =
        || objects(&world.writer).into_iter().filter(|path| !path.contains("/audit/") && !path.starts_with(".tmp~")).collect::<Vec<_>>();
    let before = archive();
    let agent = world.writer.agent();
    wait_until("the conflict is told", PATIENCE, || agent.log().contains("by its fingerprint"));
    assert_eq!(archive(), before);
    agent.stop();
}

/// I6: one valid object under another's name is found, of every kind that a restore reads.
#[test]
fn swapped_objects_are_found() {
    let world = World::new(Store::Local);
    story::insert(&world.cluster, 20);
    let (one, other) = (switch_and_store(&world.cluster, world.agent(), 1), switch_and_store(&world.cluster, world.agent(), 1));
    let first = world.backup(&["--method", "protocol"]);
    world.cluster.sql("CREATE TABLE noise AS SELECT string_agg(md5(random()::text), '') FROM generate_series(1, 40000) g, generate_series(1, 20) GROUP BY g");
    let second = world.backup(&["--method", "protocol", "--full"]);
    story::settle(&world.cluster, &world.writer);
    let repository = world.writer.local_repository();
    let swapped = |one: &Path, other: &Path, look: &dyn Fn()| {
        let (own, strange) = (std::fs::read(one).unwrap(), std::fs::read(other).unwrap());
        std::fs::write(one, strange).unwrap();
        look();
        std::fs::write(one, own).unwrap();
    };
    let find = |ends: &str| story::wait_for_file(&repository, ends);
    let to = world.reader.scratch().join("fetched");
    let fetch = || world.reader.run(&["wal", "fetch", &one, &to.to_string_lossy()]);
    swapped(&find(&format!("/{one}.zst.age")), &find(&format!("/{other}.zst.age")), &|| {
        let found = fetch();
        assert!(found.code.unwrap() > 125 && found.stderr.contains(&format!("damaged or was exchanged: it holds {other}")), "{found:?}");
        // A host that only writes would tell the same from another too.
        let offered = world.cluster.pg_wal().join(&one);
        if offered.exists() {
            let again = world.writer.run(&["wal", "push", &offered.to_string_lossy()]);
            assert!(again.code == Some(1) && again.stderr.contains("other content"), "{again:?}");
        }
    });
    assert!(fetch().ok());
    let restore = |record: &serde_json::Value| {
        let to = world.reader.scratch().join("restored");
        let output =
            world.reader.run(&["restore", "--backup", record["id"].as_str().unwrap(), "--immediate", "--to", &to.to_string_lossy()]);
        let _ = std::fs::remove_dir_all(&to);
        output
    };
    let manifest = |record: &serde_json::Value| find(&format!("{}/manifest.zst.age", record["id"].as_str().unwrap()));
    swapped(&manifest(&first), &manifest(&second), &|| {
        let found = restore(&first);
        assert!(found.code == Some(3) && found.stderr.contains("the object was moved or exchanged"), "{found:?}");
    });
    let packs: Vec<PathBuf> =
        objects(&world.writer).iter().filter(|path| path.contains("/packs/")).map(|path| repository.join(path)).collect();
    let largest = |packs: &[PathBuf]| packs.iter().max_by_key(|pack| std::fs::metadata(pack).unwrap().len()).unwrap().clone();
    let large = largest(&packs);
    let rest: Vec<PathBuf> = packs.iter().filter(|pack| **pack != large).cloned().collect();
    swapped(&largest(&rest), &large, &|| {
        let found = [restore(&first), restore(&second)];
        assert!(found.iter().any(|found| found.code == Some(1) && found.stderr.contains("hash")), "{found:?}");
    });
    assert!(restore(&first).ok() && restore(&second).ok());
    world.end(&[]);
}

/// Encrypted or not is decided once.
#[test]
fn what_the_repository_is_not_is_refused() {
    let pair = Pair::generate();
    for (made, later) in [(None, Some(Keys::to_write(&[&pair]))), (Some(Keys::to_write(&[&pair])), None)] {
        let cluster = story::builder(VERSION).start();
        let mut walkeep = uninitialised(&cluster, Store::Local);
        walkeep.keys = made;
        walkeep.write_config();
        walkeep.ok(&["init"]);
        let before = objects(&walkeep);
        walkeep.keys = later;
        walkeep.write_config();
        for args in [&["init"][..], &["status"], &["backup"], &["agent"]] {
            let refused = walkeep.run(args).expect_code(2);
            assert!(
                refused.stderr.contains("is encrypted, and") || refused.stderr.contains("is not encrypted, and"),
                "{args:?} {refused:?}"
            );
            assert!(refused.stderr.contains("first `walkeep init`"), "{args:?} {refused:?}");
        }
        assert_eq!(objects(&walkeep), before);
    }
    // And nobody begins to encrypt for nobody.
    let cluster = story::builder(VERSION).start();
    let mut walkeep = uninitialised(&cluster, Store::Local);
    walkeep.keys = Some(Keys::to_read(&[&pair]));
    walkeep.write_config();
    let refused = walkeep.run(&["init"]).expect_code(2);
    assert!(refused.stderr.contains("no recipients"), "{refused:?}");
    assert!(objects(&walkeep).is_empty());
}

/// X3: a secret that is given in every way is told nowhere.
#[test]
fn identities_are_told_nowhere() {
    let mut world = World::new(Store::Local);
    let pairs: Vec<Pair> = (0..3).map(|_| Pair::generate()).collect();
    world.agent.take().unwrap().stop();
    // By file, by environment, and as systemd hands it over; all at once, at the most talkative.
    world.writer.keys = Some(Keys { recipients: vec![world.pair.recipient.clone()], identities: vec![pairs[0].identity.clone()] });
    world.writer.more = "\n[log]\nlevel = \"trace\"\n".to_owned();
    world.writer.write_config();
    let credentials = world.writer.scratch().dir("credentials");
    world.writer.scratch().write("credentials/walkeep-identity", &pairs[2].identity, 0o600);
    for (name, value) in
        [("WALKEEP_ENCRYPTION_IDENTITY", pairs[1].identity.clone()), ("CREDENTIALS_DIRECTORY", credentials.to_string_lossy().into_owned())]
    {
        world.writer.environment.push((name.to_owned(), value));
    }
    let agent = world.writer.agent();
    story::insert(&world.cluster, 10);
    let name = switch_and_store(&world.cluster, &agent, 1);
    let mut told = vec![("backup", format!("{:?}", world.writer.run(&["backup"])))];
    let to = world.writer.scratch().join("fetched").to_string_lossy().into_owned();
    for args in [&["key", "list"][..], &["key", "list", "--json"], &["plan"], &["status"], &["check"], &["wal", "fetch", &name, &to]] {
        told.push((args[0], format!("{:?}", world.writer.run(args))));
    }
    assert!(told.iter().any(|(_, text)| text.contains(&pairs[2].recipient)), "all three were read");
    told.push(("the log", agent.log()));
    assert!(agent.log().contains("DEBUG"), "it is talkative");
    for page in ["/metrics", "/", "/healthz", "/readyz", "/status"] {
        told.push((page, agent.get(page).map(|(_, text)| text).unwrap_or_default()));
    }
    let read = |path: String| String::from_utf8_lossy(&std::fs::read(path).unwrap()).into_owned();
    told.push(("the command line", read(format!("/proc/{}/cmdline", agent.pid()))));
    for folder in [world.writer.spool(), world.writer.local_repository()] {
        for line in listing(&folder) {
            let Some((path, _)) = line.split_once(" f ") else { continue };
            told.push(("a file", String::from_utf8_lossy(&std::fs::read(folder.join(path)).unwrap_or_default()).into_owned()));
        }
    }
    agent.stop();
    // Where it does not belong, it is refused and not shown.
    for (variable, value) in [
        ("WALKEEP_ENCRYPTION_RECIPIENTS", pairs[1].identity.clone()),
        ("WALKEEP_ENCRYPTION_IDENTITY", format!("{}X", pairs[1].identity)),
        ("WALKEEP_ENCRYPTION_IDENTITY_FILE", pairs[1].identity.clone()),
    ] {
        let output = run(world.writer.command(&["status"]).env(variable, value)).expect_code(2);
        assert!(output.stderr.contains("not shown"), "{output:?}");
        told.push((variable, format!("{output:?}")));
    }
    world.writer.keys = Some(Keys { recipients: vec![pairs[0].identity.clone()], identities: Vec::new() });
    world.writer.write_config();
    told.push(("a recipients file", format!("{:?}", world.writer.run(&["status"]).expect_code(2))));
    for (place, text) in told {
        for pair in &pairs {
            // The scheme's name is no secret, and any stretch of the rest is.
            let secret = &pair.identity["AGE-SECRET-KEY-1".len()..][..20];
            let line = text.lines().find(|line| line.to_uppercase().contains(secret));
            assert!(line.is_none(), "an identity in {place}: {line:?}");
        }
    }
}

/// Files for archiving that were stored by another host's key cannot be compared: that is said, and nothing is overwritten.
#[test]
fn what_cannot_be_compared_is_not_believed() {
    let mut world = World::new(Store::Local);
    let name = switch_and_store(&world.cluster, world.agent(), 1);
    let copy = world.cluster.pg_wal().join(&name);
    assert!(segments_in(&world.cluster.pg_wal()).contains(&name));
    world.writer.ok(&["wal", "push", &copy.to_string_lossy()]);
    world.agent.take().unwrap().stop();
    std::fs::remove_file(world.writer.spool().join("fingerprint.key")).unwrap();
    let refused = world.writer.run(&["wal", "push", &copy.to_string_lossy()]).expect_code(1);
    assert!(refused.stderr.contains("nor know it again by its fingerprint"), "{refused:?}");
    // With an identity it can.
    let mut both = world.writer.command(&["wal", "push", &copy.to_string_lossy()]);
    run(both.env("WALKEEP_ENCRYPTION_IDENTITY", &world.pair.identity)).expect_code(0);
}
