//! `packaging/by-hand.py`: a cluster is restored out of a copy of its repository with python3, zstd and age, and no Walkeep.

use std::path::{Path, PathBuf};
use std::process::Command;

use walkeep_tests::s3::Bucket;
use walkeep_tests::walkeep::run;
use walkeep_tests::{Cluster, Keys, Output, Pair, Repository, S3Server, Scratch, Stop, Walkeep, user};

use crate::story::{self, PATIENCE, Restored};
use crate::support::{Store, joined_parts, lsn, uninitialised, wait_durable};

const VERSION: u32 = 15;
const DIGEST: &str = "SELECT (SELECT sum(hashtextextended(t::text, 0)) FROM t), (SELECT sum(hashtextextended(large::text, 0)) FROM large)";

fn by_hand(root: &Path, args: &[&str]) -> Output {
    let mut command = user::command("python3");
    command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../packaging/by-hand.py")).arg(root).args(args);
    run(&mut command)
}

/// The cluster's folder in a repository, with everything that a restore reads.
fn root(repository: &Path) -> PathBuf {
    let mut folders = std::fs::read_dir(repository.join("main")).unwrap().map(|entry| entry.unwrap().path());
    folders.find(|path| path.is_dir()).unwrap()
}

fn largest(folder: &Path) -> PathBuf {
    let files = story::listing(folder).into_iter().filter_map(|line| Some(folder.join(line.split_once(" f ")?.0)));
    files.max_by_key(|path| std::fs::metadata(path).unwrap().len()).unwrap()
}

/// What an S3 client brings.
fn copied(bucket: &Bucket, to: &Path) {
    for (key, _) in bucket.list("") {
        let path = to.join(&key);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bucket.get(&key)).unwrap();
    }
}

/// How the shell of PostgreSQL ends, with so much memory.
fn restore_command(data: &Path, name: &str, to: &str, megabytes: u64) -> Option<i32> {
    let conf = std::fs::read_to_string(data.join("postgresql.auto.conf")).unwrap();
    let line = conf.lines().find_map(|line| line.strip_prefix("restore_command = '")?.strip_suffix('\'')).unwrap();
    let line = line.replace("''", "'").replace(r"\\", r"\");
    let asked = line.replace("%%", "\0").replace("%f", name).replace("%p", to).replace('\0', "%");
    let mut command = user::command("prlimit");
    run(command.arg(format!("--as={megabytes}000000")).args(["/bin/sh", "-c", &asked])).code
}

/// An object of WAL that is no cluster's: so many zeros that say of themselves that they are `name`.
fn object_of(name: &str, length: usize) -> Vec<u8> {
    let description = format!(r#"{{"format":1,"name":"{name}","system_identifier":"1","length":{length},"blake3":"0"}}"#);
    let scratch = Scratch::new();
    let plain = scratch.write("plain", "\0".repeat(length), 0o644);
    run(Command::new("zstd").arg("-q").arg(&plain)).expect_code(0);
    let frame = std::fs::read(scratch.join("plain.zst")).unwrap();
    [&0x184D_2A5F_u32.to_le_bytes()[..], &(description.len() as u32).to_le_bytes(), description.as_bytes(), &frame].concat()
}

/// What is fetched of an unfinished segment when its parts are not as they were stored: nothing that PostgreSQL would take for the end of the WAL.
fn parts_are_proven(root: &Path, segment: &str, fetched: &dyn Fn(&[&str]) -> Output, to: &str) {
    let folder = root.join("wal").join(&segment[..8]).join(&segment[8..16]).join(format!("{segment}.parts"));
    // Those that were replaced may be there still.
    let parts = joined_parts(&folder);
    for entry in std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()) {
        if !parts.iter().any(|(.., path)| *path == entry) {
            std::fs::remove_file(entry).unwrap();
        }
    }
    assert!(parts.len() > 1, "{parts:?}");
    let fetch = || fetched(&["fetch", segment, to]);
    fetch().expect_code(0);
    let given = std::fs::read(to).unwrap();
    let is_plain = parts[0].2.extension().is_some_and(|end| end == "zst");
    for (index, (from, _, path)) in parts.iter().enumerate() {
        let whole = std::fs::read(path).unwrap();
        std::fs::remove_file(path).unwrap();
        match index + 1 == parts.len() {
            // Nobody can know of it.
            true => drop(fetch().expect_code(u8::from(*from == 0).into())),
            false => {
                let refused = fetch().expect_code(200);
                assert!(refused.stderr.contains(&format!("the bytes from {from} to")), "{refused:?}");
            }
        }
        let described = 8 + u32::from_le_bytes(whole[4..8].try_into().unwrap()) as usize;
        let doubled = [&whole[..], &whole[described.min(whole.len())..]].concat();
        // An encrypted one that is cut off is refused by age.
        for damaged in if is_plain { vec![&whole[..described], &doubled] } else { vec![&whole[..whole.len() / 2]] } {
            std::fs::write(path, damaged).unwrap();
            fetch().expect_code(200);
        }
        std::fs::write(path, whole).unwrap();
    }
    if !is_plain {
        // Beside encrypted ones a plain one is nobody's, whatever it says; but one that was decrypted in its place is missing.
        let beside = folder.join("00000008-00000010.000000FF.zst");
        std::fs::write(&beside, object_of(&format!("{segment} 00000008-00000010.000000FF"), 8)).unwrap();
        fetch().expect_code(0);
        assert!(std::fs::read(to).unwrap() == given);
        std::fs::remove_file(beside).unwrap();
        let (.., last) = parts.last().unwrap();
        let decrypted = last.with_extension("");
        std::fs::rename(last, &decrypted).unwrap();
        assert!(fetch().expect_code(200).stderr.contains("is plain, in an encrypted cluster"));
        std::fs::rename(decrypted, last).unwrap();
    }
    // Behind a hole it is none of the end; where a later writer went on before it, it counts no more.
    let (_, end, path) = parts.last().unwrap();
    let name = path.file_name().unwrap().to_string_lossy().into_owned();
    let (_, kind) = name.split_once(".zst").unwrap();
    for (epoch, code) in [(&name[18..26], 200), ("00000000", 0)] {
        let late = folder.join(format!("{:08X}-{:08X}.{epoch}.zst{kind}", end + 10, end + 20));
        std::fs::copy(path, &late).unwrap();
        fetch().expect_code(code);
        std::fs::remove_file(late).unwrap();
    }
    fetch().expect_code(0);
    assert!(std::fs::read(to).unwrap() == given);
    std::fs::remove_file(to).unwrap();
}

/// A backup, an incremental one, whole segments and an unfinished one, read by nobody but the script.
#[test]
fn a_cluster_is_restored_with_python_zstd_and_age() {
    for encrypted in [false, true] {
        let pair = Pair::generate();
        let cluster = story::builder(VERSION).start();
        let server = S3Server::get();
        let bucket = server.bucket();
        let mut walkeep = match encrypted {
            true => uninitialised(&cluster, Store::Local),
            false => Walkeep::new(
                &cluster,
                Repository::S3 { endpoint: server.endpoint(), bucket: bucket.name.clone(), prefix: String::new(), ca: None },
            ),
        };
        walkeep.keys = encrypted.then(|| Keys::to_write(&[&pair]));
        walkeep.write_config();
        walkeep.ok(&["init"]);
        let agent = walkeep.agent();
        cluster.archive_by(Some(&walkeep.archive_command()));
        cluster.sql("CREATE TABLE t (i int PRIMARY KEY, filler text)");
        cluster.sql("CREATE TABLE large AS SELECT g, md5(g::text) FROM generate_series(1, 50000) g");
        let first = story::backup(&walkeep);
        // What an earlier restore left, which would end this one's recovery at the backup.
        cluster.sql("ALTER SYSTEM SET recovery_target = 'immediate'");
        cluster.sql("ALTER SYSTEM SET recovery_target_action = 'promote'");
        cluster.sql("ALTER SYSTEM SET recovery_end_command = 'false'");
        cluster.sql("UPDATE large SET md5 = 'changed' WHERE g % 5000 = 1");
        let backup = story::backup(&walkeep);
        story::insert(&cluster, 10);
        story::settle(&cluster, &walkeep);
        story::insert(&cluster, 5);
        // Several parts of the segment that is being written.
        for _ in 0..2 {
            story::insert(&cluster, 1);
            wait_durable(&agent, lsn(&cluster.sql("SELECT pg_current_wal_flush_lsn()")), PATIENCE);
        }
        let segment = cluster.sql("SELECT pg_walfile_name(pg_current_wal_insert_lsn())");
        let digest = cluster.sql(DIGEST);
        let scratch = Scratch::new();
        let (copy, data) = (scratch.dir(r#"copy o'f "100%p" \\n"#), scratch.join("restored"));
        match encrypted {
            true => drop(run(Command::new("cp").arg("-a").arg(walkeep.local_repository().join("main")).arg(&copy)).expect_code(0)),
            false => copied(&bucket, &copy),
        }
        agent.stop();
        run(Command::new("chown").arg("-R").arg(&user::account().name).arg(scratch.path())).expect_code(0);
        let root = root(&copy);
        let identity = scratch.write("it's %f.txt", &pair.identity, 0o600).to_string_lossy().into_owned();
        let keys: &[&str] = if encrypted { &["--identity", &identity] } else { &[] };
        let run = |args: &[&str]| by_hand(&root, &[args, keys].concat());

        assert!(by_hand(&root, &["backups"]).expect_code(0).stdout.lines().last().unwrap().starts_with(&backup));
        // One damaged record is no other's trouble.
        let record = root.join("backups").join(&first).join("backup.json");
        std::fs::write(&record, std::fs::read_to_string(&record).unwrap().replacen("\"timeline\": 1", "\"timeline\": 7", 1)).unwrap();
        let listed = by_hand(&root, &["backups"]).expect_code(0);
        assert!(listed.stdout.lines().count() == 1 && listed.stdout.starts_with(&backup) && listed.stderr.contains(&first), "{listed:?}");
        let refused = run(&["restore", &first, &scratch.join("none").to_string_lossy()]).expect_code(200);
        assert!(refused.stderr.contains("its own SHA-256"), "{refused:?}");
        let to = data.to_string_lossy().into_owned();
        run(&["restore", &backup, &to]).expect_code(0);
        assert!(run(&["restore", &backup, &to]).expect_code(200).stderr.contains("is not empty"));
        let missing = scratch.join("fetched").to_string_lossy().into_owned();
        run(&["fetch", "0000000100000000000000FE", &missing]).expect_code(1);
        // PostgreSQL takes 1 to 125 for the end of the archive.
        for wrong in
            [&["fetch", "0000000100000000000000FE"][..], &["fetch", "x", &missing], &["fetch", "--nothing"], &["--absent", "x"], &[]]
        {
            run(wrong).expect_code(200);
        }
        let record = root.parent().unwrap().join("cluster.json");
        std::fs::rename(&record, scratch.join("aside")).unwrap();
        let lost = run(&["fetch", "0000000100000000000000FE", &missing]).expect_code(200);
        assert!(lost.stderr.contains("there is no cluster.json in"), "{lost:?}");
        std::fs::rename(scratch.join("aside"), record).unwrap();
        // One valid object under another's name.
        let mut whole: Vec<PathBuf> =
            story::listing(&root.join("wal")).iter().filter_map(|line| Some(root.join("wal").join(line.split_once(" f ")?.0))).collect();
        whole.retain(|path| {
            path.file_name().unwrap().to_string_lossy().split('.').next().unwrap().len() == 24
                && !path.to_string_lossy().contains(".backup")
        });
        whole.sort();
        let (one, other) = (&whole[0], &whole[1]);
        let own = std::fs::read(one).unwrap();
        std::fs::copy(other, one).unwrap();
        let name = one.file_name().unwrap().to_string_lossy()[..24].to_owned();
        let exchanged = run(&["fetch", &name, &missing]).expect_code(200);
        assert!(exchanged.stderr.contains("it was exchanged"), "{exchanged:?}");
        if encrypted {
            // Decrypted in its place in the copy.
            let decrypted = one.with_extension("");
            std::fs::rename(one, &decrypted).unwrap();
            assert!(run(&["fetch", &name, &missing]).expect_code(200).stderr.contains("is plain, in an encrypted cluster"));
            std::fs::remove_file(decrypted).unwrap();
        } else {
            let zeros = object_of(&name, 1 << 20);
            std::fs::write(one, &zeros).unwrap();
            assert!(run(&["fetch", &name, &missing]).expect_code(200).stderr.contains("is of another cluster"));
        }
        std::fs::write(one, own).unwrap();
        for megabytes in (8..40).step_by(2) {
            let code = restore_command(&data, &name, &missing, megabytes);
            assert!(code.is_none_or(|code| code == 0 || code > 125), "{megabytes} MB: {code:?}");
        }
        assert_eq!(restore_command(&data, "0000000100000000000000FE", &missing, 1000), Some(1));
        parts_are_proven(&root, &segment, &run, &missing);
        if encrypted {
            let locked = by_hand(&root, &["restore", &backup, &missing]).expect_code(200);
            assert!(locked.stderr.contains("say --identity"), "{locked:?}");
        }
        let restored = Restored::laid_down(VERSION, Scratch::new(), &data);
        restored.start();
        assert_eq!(restored.cluster.sql(DIGEST), digest);
        restored.cluster.stop(Stop::Fast);

        // What is not as it was stored is found.
        let pack = largest(&root.join("packs"));
        let mut bytes = std::fs::read(&pack).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(&pack, bytes).unwrap();
        let damaged = run(&["restore", &backup, &scratch.join("again").to_string_lossy()]).expect_code(200);
        assert!(damaged.stderr.contains("is damaged"), "{damaged:?}");
    }
}

/// The `by-hand` of the README, for this repository.
fn readme_script(root: &Path, place: &Scratch) -> PathBuf {
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md")).unwrap();
    let (_, behind) = readme.split_once("`by-hand %f %p`:").unwrap();
    let script = behind.split("```").nth(1).unwrap().strip_prefix("sh\n").unwrap();
    let own = script.lines().find(|line| line.starts_with("root=")).unwrap();
    place.write("by-hand", script.replace(own, &format!("root={}/wal", root.display())), 0o755)
}

/// The server becomes a standby and is promoted: the next timeline.
fn promote(cluster: &Cluster) {
    cluster.stop(Stop::Fast);
    let signal = cluster.data().join("standby.signal");
    std::fs::write(&signal, "").unwrap();
    user::give(&signal);
    cluster.start();
    cluster.promote();
}

/// Of three timelines a history is lost, a segment, a folder: no end of the WAL, neither to the script nor to walkeep, and a history not to the README's script.
#[test]
fn what_is_lost_by_hand_is_no_end() {
    let cluster = story::builder(VERSION).start();
    let mut walkeep = uninitialised(&cluster, Store::Local);
    walkeep.keys = None;
    walkeep.write_config();
    walkeep.ok(&["init"]);
    let agent = walkeep.agent();
    cluster.archive_by(Some(&walkeep.archive_command()));
    cluster.sql("CREATE TABLE t (i int PRIMARY KEY, filler text)");
    let backup = story::backup(&walkeep);
    let mut firsts = Vec::new();
    for timeline in 1..=3 {
        if timeline > 1 {
            promote(&cluster);
        }
        firsts.push(cluster.sql("SELECT pg_walfile_name(pg_current_wal_insert_lsn())"));
        for _ in 0..2 {
            story::insert(&cluster, 10);
            story::settle(&cluster, &walkeep);
        }
    }
    agent.stop();
    cluster.stop(Stop::Fast);
    let root = root(&walkeep.local_repository());
    let scratch = Scratch::new();
    let folder = scratch.dir("fetched");
    user::give(&folder);
    let to = folder.join("file").to_string_lossy().into_owned();
    let script = readme_script(&root, &scratch);
    let by_script = |name: &str| run(user::command("sh").arg(&script).args([name, &to])).code.unwrap();
    let by_hand = |name: &str| by_hand(&root, &["fetch", name, &to]);
    let asked = |name: &str, code: i32| {
        let answer = by_hand(name).expect_code(code);
        assert!(code != 200 || answer.stderr.contains("hole in the archive"), "{answer:?}");
        // It overwrites nothing.
        let _ = std::fs::remove_file(&to);
        let of_walkeep = walkeep.run(&["wal", "fetch", name, &to]);
        assert!(if code < 126 { of_walkeep.code == Some(code) } else { of_walkeep.code > Some(125) }, "{name}: {of_walkeep:?}");
    };
    let without = |paths: &[&str], then: &dyn Fn()| {
        let away = |path: &str| scratch.join(path.replace('/', "-"));
        paths.iter().for_each(|path| std::fs::rename(root.join("wal").join(path), away(path)).unwrap());
        then();
        paths.iter().for_each(|path| std::fs::rename(away(path), root.join("wal").join(path)).unwrap());
    };
    let recovered = || {
        let place = Scratch::new();
        let data = place.join("restored");
        run(Command::new("chown").arg(&user::account().name).arg(place.path())).expect_code(0);
        self::by_hand(&root, &["restore", &backup, &data.to_string_lossy()]).expect_code(0);
        let conf = data.join("postgresql.auto.conf");
        let settings = std::fs::read_to_string(&conf).unwrap();
        std::fs::write(&conf, settings + "recovery_target_action = 'promote'\n").unwrap();
        Restored::laid_down(VERSION, place, &data)
    };

    for timeline in 2..=3 {
        let history = format!("0000000{timeline}.history");
        without(&[&format!("{history}.zst")], &|| {
            asked(&history, 200);
            assert_eq!(by_script(&history), 200);
            let log = recovered().gives_up("5");
            assert!(log.contains("hole in the archive"), "{log}");
        });
    }
    // All of one that lies between.
    without(&["00000002.history.zst", "00000002"], &|| {
        by_hand("00000002.history").expect_code(200);
        assert_eq!(by_script("00000002.history"), 200);
    });
    // The newest with everything of it: nobody can know of it.
    without(&["00000003.history.zst", "00000003"], &|| {
        asked("00000003.history", 1);
        assert_eq!(by_script("00000003.history"), 1);
        assert_eq!(by_script("00000002.history"), 0);
    });
    asked("00000004.history", 1);
    assert_eq!(by_script("00000004.history"), 1);

    for first in &firsts {
        without(&[&format!("{}/00000000/{first}.zst", &first[..8])], &|| asked(first, 200));
    }
    // Before the third timeline began, and behind its end.
    asked(&format!("00000003{}", &firsts[0][8..]), 1);
    asked("0000000300000000000000FE", 1);
    let gaps = root.join("gaps");
    std::fs::create_dir_all(&gaps).unwrap();
    user::give(&gaps);
    let gap = gaps.join("00000003-000000000FE00010-000000000FE00020.json");
    std::fs::write(&gap, "{}").unwrap();
    asked("0000000300000000000000FE", 200);
    std::fs::remove_file(gap).unwrap();
    // A folder is gone; there is another one behind it.
    let behind = root.join("wal/00000001/00000001");
    std::fs::create_dir(&behind).unwrap();
    std::fs::write(behind.join("000000010000000100000000.zst"), "").unwrap();
    without(&["00000001/00000000"], &|| asked(&firsts[0], 200));
    std::fs::remove_dir_all(behind).unwrap();

    let whole = recovered();
    whole.start();
    assert_eq!(whole.rows(), 60);
    assert!(whole.cluster.sql("SELECT pg_walfile_name(pg_current_wal_insert_lsn())").starts_with("00000004"));
    whole.cluster.stop(Stop::Fast);
}
