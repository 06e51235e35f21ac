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
