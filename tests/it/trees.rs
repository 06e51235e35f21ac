//! Timelines as a tree: servers restored out of each other, all archiving into one repository, and every branch can be had again.

use walkeep_tests::{Agent, Repository, Walkeep};

use crate::story::{self, Restored, STATE, Story, plan};
use crate::support::assert_calm;

const VERSION: u32 = 15;

/// A restored server that archives under the name of the first: with an agent, a slot and a spool of its own.
struct Branch {
    agent: Agent,
    restored: Restored,
    walkeep: Walkeep,
}

impl Branch {
    #[track_caller]
    fn grow(story: &Story, slot: &str, target: &[&str]) -> Self {
        let restored = story.restore(&[target, &["--keep-archiving"]].concat());
        let mut walkeep = Walkeep::new(&restored.cluster, Repository::Local(story.walkeep.local_repository()));
        walkeep.slot = slot.to_owned();
        walkeep.write_config();
        restored.cluster.archive_by(Some(&walkeep.archive_command()));
        restored.start();
        walkeep.ok(&["init"]);
        let agent = walkeep.agent();
        Self { agent, restored, walkeep }
    }

    /// Works on and waits until all of it is stored; what there is then.
    #[track_caller]
    fn work(&self, rows: u32) -> String {
        story::insert(&self.restored.cluster, rows);
        story::settle(&self.restored.cluster, &self.walkeep);
        self.restored.state()
    }

    fn commit_time(&self, i: u32) -> String {
        self.restored.cluster.sql(&format!("SELECT pg_xact_commit_timestamp(xmin) FROM t WHERE i = {i}"))
    }

    #[track_caller]
    fn end(self) {
        assert_calm(&self.agent, &[]);
        self.agent.stop();
    }
}

#[test]
fn every_branch_of_a_tree_can_be_had_again() {
    let story = Story::local(VERSION);
    story.insert(10);
    story.backup();
    story.insert(20);
    story.settle();
    let trunk = story.cluster.sql(STATE);

    // 1 -> 2, with a backup of its own.
    let second = Branch::grow(&story, "second", &["--at", &story.commit_time(20)]);
    assert_eq!(second.restored.rows(), 20);
    second.work(5);
    let own = story::backup(&second.walkeep);
    let two = second.work(5);
    // 1 -> 3, from before the first promotion.
    let third = Branch::grow(&story, "third", &["--timeline", "1", "--at", &story.commit_time(15)]);
    assert_eq!(third.restored.rows(), 15);
    let three = third.work(3);
    // 1 -> 2 -> 4, from the backup that the second took.
    let fourth = Branch::grow(&story, "fourth", &["--timeline", "2", "--at", &second.commit_time(27)]);
    assert_eq!(fourth.restored.rows(), 27);
    let four = fourth.work(2);
    // The first goes on, as if nothing had happened.
    story.insert(1);
    story.settle();
    let trunk_now = story.cluster.sql(STATE);
    assert_ne!(trunk, trunk_now);

    let branches = [("1", &trunk_now, 31), ("2", &two, 30), ("3", &three, 18), ("4", &four, 29)];
    for (timeline, state, rows) in branches {
        let restored = story.restore(&["--timeline", timeline]);
        assert_eq!(&restored.start().state(), state, "timeline {timeline}");
        assert_eq!(restored.rows(), rows);
    }
    // Without a word about timelines it is the newest; the plan tells of those that are left out.
    let planned = plan(&story.walkeep, &[]);
    assert_eq!(planned["timeline"], 4);
    assert_eq!(planned["backup"]["id"].as_str(), Some(own.as_str()));
    let timelines: Vec<_> = planned["path"].as_array().unwrap().iter().map(|leg| leg["timeline"].clone()).collect();
    assert_eq!(timelines, [2, 4], "from the backup on");
    let warnings = planned["warnings"].to_string();
    assert!(warnings.contains("--timeline 2"), "{warnings}");
    assert_eq!(story.restore(&[]).start().state(), four);
    // A moment on the trunk that the newest timeline does not know: asked for there it is found.
    let late = story.commit_time(31);
    let planned = plan(&story.walkeep, &["--timeline", "1", "--at", &late, "--exclusive"]);
    assert_eq!(planned["timeline"], 1);
    assert_eq!(story.restore(&["--timeline", "1", "--at", &late, "--exclusive"]).start().rows(), 30);

    let tree = story.walkeep.ok(&["timelines"]).stdout;
    for line in
        ["timeline 1 (the first)", "timeline 2 (left timeline 1 at", "timeline 3 (left timeline 1 at", "timeline 4 (left timeline 2 at"]
    {
        assert!(tree.contains(line), "{line}: {tree}");
    }
    for branch in [second, third, fourth] {
        branch.end();
    }
    story.end(&[]);
}

#[test]
fn a_restored_server_leaves_the_archive_alone() {
    let mut story = Story::local(VERSION);
    story.insert(10);
    story.cluster.sql("ALTER SYSTEM SET synchronous_standby_names = 'nobody'");
    story.backup();
    story.cluster.sql("ALTER SYSTEM RESET synchronous_standby_names");
    story.insert(10);
    story.settle();
    story.cluster.archive_pause();
    story.stop_agent(&[]);

    let before = story::archive(&story.walkeep);
    let restored = story.restore(&["--latest"]);
    restored.start();
    assert_eq!(restored.cluster.sql("SHOW archive_mode"), "off");
    assert_eq!(restored.cluster.sql("SHOW synchronous_standby_names"), "");
    assert_eq!(restored.cluster.sql("SHOW primary_conninfo"), "");
    story::insert(&restored.cluster, 10);
    restored.cluster.switch_wal();
    restored.cluster.sql("CHECKPOINT");
    restored.cluster.switch_wal();
    assert_eq!(restored.rows(), 30);
    assert_eq!(restored.cluster.sql("SELECT archived_count + failed_count FROM pg_stat_archiver"), "0");
    restored.cluster.restart();
    assert_eq!(restored.rows(), 30);
    assert_eq!(story::archive(&story.walkeep), before);

    // Who wants it gets it.
    let kept = story.restore(&["--immediate", "--keep-archiving", "--keep-synchronous-standbys", "--action", "pause"]);
    kept.launch();
    assert_eq!(kept.cluster.sql("SHOW archive_mode"), "on");
    assert_eq!(kept.cluster.sql("SHOW synchronous_standby_names"), "nobody");
    assert_eq!(story::archive(&story.walkeep), before);
}
