//! Expiry in the worst moment: killed, and beside all else that reads and writes the repository.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use walkeep_tests::walkeep::run;
use walkeep_tests::{Repository, S3Server, Stop};

use crate::story::{self, Restored, Story, backups};

const VERSION: u32 = 15;
const POLICY: &str = "\n[cluster.main.retention]\nwindow = \"0s\"\nminimum_backups = 1\n";

/// R2: killed at any moment, what is kept is whole and restores, and the next run does the rest.
#[test]
fn a_killed_expire_breaks_nothing() {
    let mut story = Story::local(VERSION);
    story.walkeep.more = format!("{POLICY}grace = \"0s\"\n");
    story.walkeep.write_config();
    let seed: u64 = std::env::var("WALKEEP_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or_else(|| std::time::UNIX_EPOCH.elapsed().unwrap().subsec_nanos().into());
    eprintln!("WALKEEP_SEED={seed}");
    let mut rows = 0;
    let expire = ["expire", "--yes", "--allow", "99"];
    let timed = |story: &Story| {
        let began = Instant::now();
        run(&mut story.walkeep.command(&expire)).expect_code(0);
        began.elapsed()
    };
    let mut whole = Duration::from_millis(300);
    for round in 0..8u64 {
        for _ in 0..2 {
            story.insert(5);
            story.cluster.switch_wal();
            story.backup();
            sleep(Duration::from_millis(1100));
            rows += 5;
        }
        story.settle();
        // Anywhere in it, and a little behind.
        let after =
            whole.mul_f64((seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(round * 2_654_435_761) >> 33) as f64 % 1000.0 / 900.0);
        let mut killed = story.walkeep.command(&expire).spawn().unwrap();
        sleep(after);
        let _ = killed.kill();
        killed.wait().unwrap();
        let newest = backups(&story.walkeep).pop().expect("one backup is left");
        story.walkeep.ok(&["verify"]);
        let restored = Restored::by(&story.walkeep, VERSION, &[]);
        restored.verify();
        if round % 3 == 0 {
            assert_eq!(restored.start().rows(), rows, "round {round}, killed after {after:?}");
            restored.cluster.stop(Stop::Fast);
        }
        whole = timed(&story);
        assert_eq!(backups(&story.walkeep), [newest], "the next run did the rest");
    }
    story.walkeep.ok(&["verify", "--deep"]);
    story.end(&[]);
}

/// R3: beside the stream, backups, restores and looks, for a while.
#[test]
fn an_expire_beside_everything_else_breaks_nothing_s3() {
    let bucket = S3Server::get().bucket();
    let mut story = Story::begin(story::builder(VERSION), Some(Repository::s3_tls(&bucket)));
    story.walkeep.more = format!("{POLICY}grace = \"15s\"\n");
    story.walkeep.write_config();
    story.insert(10);
    story.backup();
    let (over, deadline) = (AtomicBool::new(false), Instant::now() + Duration::from_secs(40));
    std::thread::scope(|scope| {
        let (story, over) = (&story, &over);
        let goes_on = move || !over.load(Ordering::Relaxed) && Instant::now() < deadline;
        let all = [
            scope.spawn(move || {
                while goes_on() {
                    story.insert(50);
                    sleep(Duration::from_millis(200));
                }
                0
            }),
            scope.spawn(move || {
                let mut taken = 0;
                while goes_on() {
                    story.backup();
                    sleep(Duration::from_millis(1100));
                    taken += 1;
                }
                taken
            }),
            scope.spawn(move || {
                let mut done = 0;
                while goes_on() {
                    story.walkeep.ok(&["expire", "--yes", "--allow", "99"]);
                    done += 1;
                }
                done
            }),
            scope.spawn(move || {
                let mut restored = 0;
                while goes_on() {
                    Restored::by(&story.walkeep, VERSION, &[]).verify();
                    restored += 1;
                }
                restored
            }),
            scope.spawn(move || {
                let mut looked = 0;
                while goes_on() {
                    story.walkeep.ok(&["verify"]);
                    looked += 1;
                }
                looked
            }),
        ];
        let counts: Vec<Result<i32, _>> =
            all.into_iter().map(|thread| thread.join().inspect_err(|_| over.store(true, Ordering::Relaxed))).collect();
        eprintln!("backups, expiries, restores, looks: {counts:?}");
        assert!(counts.iter().skip(1).all(|count| count.as_ref().is_ok_and(|count| *count > 0)), "{counts:?}");
    });
    story.settle();
    story.walkeep.ok(&["verify", "--deep"]);
    let rows: u32 = story.cluster.value("SELECT count(*) FROM t");
    let restored = Restored::by(&story.walkeep, VERSION, &[]);
    restored.verify();
    assert_eq!(restored.start().rows(), rows);
    story.end(&[]);
}
