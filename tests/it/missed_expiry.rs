//! A repository that was away while another one let go: what is gone does not come back from it, by whatever way.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use walkeep_tests::Repository;
use walkeep_tests::walkeep::run;

use crate::story::{self, Story, backups};

const VERSION: u32 = 15;

/// What is stored but for the audit trail, which each command goes on with.
fn stored(folder: &Path) -> BTreeSet<String> {
    story::listing(folder).into_iter().filter(|line| line.contains(" f ") && !line.contains("/audit/")).collect()
}

#[test]
fn what_is_gone_is_not_offered_nor_brought_back() {
    let mut story = Story::local(VERSION);
    let mut ids = Vec::new();
    for _ in 0..3 {
        story.insert(5);
        story.cluster.switch_wal();
        ids.push(story.backup());
    }
    story.settle();
    story.stop_agent(&[]);
    let grace = |story: &mut Story, grace: &str| {
        story.walkeep.more = format!("\n[cluster.main.retention]\nwindow = \"0s\"\nminimum_backups = 1\ngrace = \"{grace}\"\n");
        story.walkeep.write_config();
    };
    grace(&mut story, "1d");
    story.walkeep.ok(&["expire", "--yes", "--allow", "9"]);
    let (first, second) = (story.walkeep.local_repository(), story.walkeep.scratch().join("second"));
    run(Command::new("cp").arg("-a").arg(&first).arg(&second)).expect_code(0);
    grace(&mut story, "0s");
    story.walkeep.ok(&["expire", "--yes"]);
    let left = stored(&first);
    let of_gone = |line: &&String| line.contains(&format!("/backups/{}/", ids[0]));
    assert!(!left.iter().any(|line| of_gone(&line)) && stored(&second).iter().any(|line| of_gone(&line)));

    // It is back, and has missed all of that.
    story.walkeep.repositories.push(Repository::Local(second.clone()));
    grace(&mut story, "1d");
    let dry = story.walkeep.ok(&["expire", "--dry-run"]);
    assert!(!dry.stdout.contains("--undo") && !dry.stdout.contains("number 1"), "{}", dry.stdout);
    let undo = story.walkeep.run(&["expire", "--undo", "1"]).expect_code(3);
    assert!(undo.stderr.contains("all of it is gone") && !undo.stdout.contains("taken back"), "{} {}", undo.stdout, undo.stderr);
    let copied = story.walkeep.ok(&["copy", "--from", "2", "--to", "1", "--json"]).json();
    assert_eq!(copied["objects"], 0, "{copied}");
    assert_eq!(stored(&first), left);
    // The next run removes what it still has of it, without waiting once more.
    story.walkeep.ok(&["expire", "--yes"]);
    assert!(!stored(&second).iter().any(|line| of_gone(&line)));
    assert!(!stored(&second).iter().any(|line| line.contains("expired/00000001")));
    assert_eq!(backups(&story.walkeep), ids[2..]);
    story.walkeep.ok(&["copy", "--to", "2"]);
    story.walkeep.ok(&["verify"]);
}
