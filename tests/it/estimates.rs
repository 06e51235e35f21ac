//! How long a restore may take: told from what was measured, on the way and on this host, and never without a measurement.

use serde_json::Value;

use crate::story::{Story, plan};

const VERSION: u32 = 15;

#[test]
fn rates_are_measured_and_never_invented() {
    let mut story = Story::local(VERSION);
    story.insert(10);
    story.backup();
    for _ in 0..8 {
        story.insert(10);
        story.settle();
    }
    let planned = plan(&story.walkeep, &["--latest"]);
    let estimate = &planned["estimate"];
    let lsn = |name: &str| crate::support::lsn(name);
    let replayed = lsn(planned["stop_lsn"].as_str().unwrap()) - lsn(planned["backup"]["start_lsn"].as_str().unwrap());
    assert_eq!((&estimate["replay"]["bytes"], &planned["replay_bytes"]), (&Value::from(replayed), &Value::from(replayed)), "{planned}");
    assert_eq!(
        (&estimate["replay"]["seconds"], &estimate["seconds"]),
        (&Value::Null, &Value::Null),
        "nothing was replayed here: {planned}"
    );
    assert_eq!(estimate["fetch"]["measured"]["by"], "plan", "{planned}");
    assert_eq!(estimate["fetch"]["measured"]["bytes"], planned["wal_bytes"], "it read every byte of its WAL: {planned}");
    let printed = story.walkeep.ok(&["plan"]).stdout;
    assert!(
        printed.contains("as fast as this plan read") && printed.contains("to replay the WAL") && printed.contains("not measured here yet"),
        "{printed}"
    );

    // A restore and its recovery, by the agent; then by the service that the command starts where no agent runs.
    for by_agent in [true, false] {
        if !by_agent {
            std::fs::remove_file(story.walkeep.spool().join("rates.json")).unwrap();
            story.stop_agent(&[]);
        }
        let summary = story
            .walkeep
            .ok(&["restore", "--json", "--to", &story.walkeep.scratch().join(format!("to{by_agent}")).to_string_lossy()])
            .json();
        assert_eq!(
            summary["measured"]["bytes"].as_u64().unwrap() + planned["wal_bytes"].as_u64().unwrap(),
            planned["fetch_bytes"].as_u64().unwrap()
        );
        story.restore(&["--latest"]).start();
        let planned = plan(&story.walkeep, &["--latest"]);
        let estimate = &planned["estimate"];
        assert_eq!(
            (&estimate["fetch"]["measured"]["by"], &estimate["replay"]["measured"]["by"]),
            (&Value::from("restore"), &Value::from("recovery"))
        );
        // Eight segments one after the other, of which the last is not known to be replayed, nor the first to have been asked for once.
        let measured = estimate["replay"]["measured"]["bytes"].as_u64().unwrap() >> 20;
        assert!((6..=10).contains(&measured), "{planned}");
        let seconds = |part: &Value| part["seconds"].as_u64().unwrap();
        assert_eq!(estimate["seconds"].as_u64().unwrap(), seconds(&estimate["fetch"]) + seconds(&estimate["replay"]));
        let printed = story.walkeep.ok(&["plan"]).stdout;
        assert!(printed.contains("time          about ") && printed.matches("(measured here 20").count() == 2, "{printed}");
    }
    story.end(&[]);
}
