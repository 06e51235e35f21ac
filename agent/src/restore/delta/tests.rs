use std::os::unix::fs::symlink;

use super::super::tests::{cluster, control, world};
use super::*;

/// A directory in which a restore was, and what happened to it since.
#[tokio::test]
async fn only_what_differs_is_fetched_and_what_does_not_belong_goes() {
    let world = world(cluster(), |_| {}).await;
    let mut options = world.options();
    let whole = world.restore(options.clone()).await.unwrap();
    let (data, outside) = (world.data(), world.dir.path().join("outside"));
    let want = fs::read(data.join("base/1/1")).unwrap();

    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("precious"), b"stay").unwrap();
    let mut changed = want.clone();
    changed[5] ^= 1;
    fs::write(data.join("base/1/1"), &changed).unwrap();
    fs::write(data.join("base/1/2"), vec![1; 10]).unwrap();
    fs::create_dir(data.join("base/7")).unwrap();
    fs::write(data.join("base/7/old"), b"x").unwrap();
    fs::write(data.join("pg_wal/000000010000000000000009"), b"x").unwrap();
    fs::write(data.join("pg_wal/archive_status/000000010000000000000009.ready"), b"").unwrap();
    symlink(&outside, data.join("base/link")).unwrap();
    // A file became a link that leads out.
    fs::remove_file(data.join("base/1/3")).unwrap();
    symlink(outside.join("precious"), data.join("base/1/3")).unwrap();

    let refused = world.refusal(options.clone()).await;
    assert!(refused.contains("is a data directory already"), "{refused}");
    options.delta = true;
    let survey = super::super::look_over(&world.repository, &world.plan, &options, &Default::default()).await.unwrap();
    assert!(survey.files >= 6 && survey.wal == 1 && survey.unarchived == 1, "{survey:?}");
    for gone in ["base/7", "base/link", "base/1/3", "pg_wal/000000010000000000000009"] {
        assert!(survey.remove.contains(&data.join(gone)), "{gone}: {survey:?}");
    }
    let delta = world.restore(options.clone()).await.unwrap();
    assert_eq!(fs::read(data.join("base/1/1")).unwrap(), want);
    assert_eq!(fs::read(data.join("base/1/2")).unwrap(), vec![0; 2 << 20]);
    assert_eq!(fs::read(data.join("base/1/3")).unwrap(), b"");
    assert!(!data.join("base/7").exists() && fs::symlink_metadata(data.join("base/link")).is_err());
    assert_eq!(fs::read(outside.join("precious")).unwrap(), b"stay");
    assert_eq!(fs::read_dir(data.join("pg_wal")).unwrap().count(), 1);
    assert!(delta.fetched > 0 && delta.fetched < whole.fetched, "{} of {}", delta.fetched, whole.fetched);
    assert!(data.join("global/pg_control").exists());
}

#[tokio::test]
async fn what_is_no_directory_of_this_cluster_is_not_touched() {
    let world = world(cluster(), |_| {}).await;
    let mut options = world.options();
    options.delta = true;
    let data = world.data();
    fs::create_dir(&data).unwrap();
    fs::write(data.join("letters"), b"dear").unwrap();
    assert!(world.refusal(options.clone()).await.contains("is no data directory"));

    fs::write(data.join("PG_VERSION"), b"16\n").unwrap();
    assert!(world.refusal(options.clone()).await.contains("of PostgreSQL 16, the backup of 15"));
    fs::write(data.join("PG_VERSION"), b"15\n").unwrap();
    fs::create_dir(data.join("global")).unwrap();
    fs::write(data.join("global/pg_control"), control(|bytes| bytes[0] = 8)).unwrap();
    assert!(world.refusal(options.clone()).await.contains("another cluster, with system identifier 8"));
    fs::write(data.join("global/pg_control"), control(|_| {})).unwrap();
    fs::write(data.join("postmaster.pid"), format!("{}\n", std::process::id())).unwrap();
    assert!(world.refusal(options.clone()).await.contains("a server is running there"));
    assert_eq!(fs::read(data.join("letters")).unwrap(), b"dear");

    // The tablespace's place belongs to somebody else.
    fs::write(data.join("postmaster.pid"), "999999999\n").unwrap();
    let space = world.dir.path().join("space");
    fs::create_dir(&space).unwrap();
    fs::write(space.join("theirs"), b"x").unwrap();
    assert!(world.refusal(options.clone()).await.contains("choose another place"));
    fs::remove_file(space.join("theirs")).unwrap();
    world.restore(options).await.unwrap();
    assert!(!data.join("letters").exists() && !data.join("postmaster.pid").exists());
}

/// A copy of a data directory has links to the original's tablespaces, which is no word of the operator's that they may be overwritten.
#[tokio::test]
async fn a_tablespace_that_is_not_named_must_be_proven() {
    let world = world(cluster(), |_| {}).await;
    let space = world.dir.path().join("space");
    let whole = world.options();
    world.restore(whole.clone()).await.unwrap();
    // As if the backup's own place were that of the world.
    let record = world.repository.backup(&world.plan.backup.id).await.unwrap().unwrap();
    let manifest = world.repository.get_manifest(&record).await.unwrap();
    let target = |named, is_server| Target {
        data: world.data(),
        tablespaces: vec![super::super::target_dir::Space { oid: 16400, new: space.clone(), named }],
        replayed: Vec::new(),
        dir_mode: 0o700,
        delta: true,
        is_server,
    };
    let surveyed = |named, is_server| survey(&target(named, is_server), &manifest, &record);
    let refused = surveyed(false, false).unwrap_err().to_string();
    assert!(refused.contains("nothing tells whether it is") && refused.contains("nothing was touched"), "{refused}");
    for found in [surveyed(true, false), surveyed(false, true)] {
        assert_eq!(found.unwrap().outside, std::slice::from_ref(&space));
    }
    // A restore that did not come to its end had found it empty.
    fs::rename(world.data().join(CONTROL), world.data().join(CONTROL_WAITING)).unwrap();
    surveyed(false, false).unwrap();
}

#[tokio::test]
async fn two_restores_at_once_are_kept_apart() {
    let world = world(cluster(), |_| {}).await;
    let mut options = world.options();
    world.restore(options.clone()).await.unwrap();
    options.delta = true;
    for folder in [world.data(), world.dir.path().join("space")] {
        let other = fs::File::open(&folder).unwrap();
        other.lock().unwrap();
        let refused = world.refusal(options.clone()).await;
        assert!(refused.contains("another restore is at work in it"), "{refused}");
        drop(other);
        world.restore(options.clone()).await.unwrap();
    }
}

/// Files have their lengths before they have their bytes.
#[tokio::test]
async fn one_that_was_cut_off_early_is_gone_on_with() {
    let world = world(cluster(), |_| {}).await;
    let mut options = world.options();
    world.restore(options.clone()).await.unwrap();
    fs::remove_file(world.data().join(CONTROL)).unwrap();
    fs::write(world.data().join("PG_VERSION"), [0; 3]).unwrap();
    options.delta = true;
    world.restore(options).await.unwrap();
    assert_eq!(fs::read(world.data().join("PG_VERSION")).unwrap(), b"15\n");
}

/// Cut off anywhere, it starts no server, and doing it again completes it.
#[tokio::test]
async fn one_that_was_cut_off_is_gone_on_with() {
    use walkeep_store::{ErrorKind, Fault, Operation, Rule};
    let world = world(cluster(), |_| {}).await;
    let mut options = world.options();
    let whole = world.restore(options.clone()).await.unwrap();
    let want = fs::read(world.data().join("base/1/1")).unwrap();
    options.delta = true;
    let mut begun = 0;
    for call in 1.. {
        fs::write(world.data().join("base/1/1"), vec![3; want.len()]).unwrap();
        world.faulty.inject(Rule::new(Operation::Get, Fault::Fail(ErrorKind::Denied)).on("packs/").from_call(call).times(1));
        let cut = world.restore(options.clone()).await;
        world.faulty.heal();
        if cut.is_ok() {
            break;
        }
        begun += u32::from(!world.data().join("global/pg_control").exists());
        let again = world.restore(options.clone()).await.unwrap();
        assert_eq!(fs::read(world.data().join("base/1/1")).unwrap(), want);
        assert!(again.fetched <= whole.fetched && world.data().join("global/pg_control").exists());
    }
    assert!(begun > 0);
}
