//! The alerts of `packaging/prometheus`: promtool accepts them, each fires when its time has come and not before, each asks for metrics that the agent
//! has, and each leads to a section of the runbook.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use walkeep_tests::walkeep::run;
use walkeep_tests::{Repository, S3Server, Walkeep, cache, wait_until};

use crate::story::{self, PATIENCE};

const VERSION: u32 = 15;
const TESTS: [&str; 2] = ["walkeep.tests.yml", "walkeep.slow.tests.yml"];

pub fn packaging(name: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../packaging")).join(name)
}

fn rules() -> String {
    std::fs::read_to_string(packaging("prometheus/walkeep.rules.yml")).unwrap()
}

pub fn promtool() -> Option<Command> {
    let program = cache().join("promtool/promtool");
    if !program.exists() {
        eprintln!("SKIPPED promtool: tests/setup.sh could not have it");
        return None;
    }
    let mut command = Command::new(program);
    command.current_dir(packaging("prometheus"));
    Some(command)
}

/// The names behind this key of the rules.
fn named(text: &str, key: &str) -> Vec<String> {
    let lines = text.lines().filter_map(|line| line.trim().trim_start_matches("- ").strip_prefix(key));
    lines.map(|value| value.trim().to_owned()).collect()
}

/// Words that begin so: metrics, in expressions.
pub fn metrics_in(text: &str) -> BTreeSet<String> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let words = text.split(|c| !is_name(c)).filter(|word| word.starts_with("walkeep_"));
    words.map(str::to_owned).collect()
}

/// The metrics on an agent's page.
pub fn told(page: &str) -> BTreeSet<String> {
    let samples = page.lines().filter(|line| !line.starts_with('#'));
    samples.filter_map(|line| line.split(['{', ' ']).next()).map(str::to_owned).collect()
}

#[test]
fn each_fires_in_its_time_and_not_before() {
    let rules = rules();
    let alerts = named(&rules, "alert:");
    assert!(alerts.len() > 20, "{alerts:?}");
    assert_eq!(named(&rules, "summary:").len(), alerts.len());
    assert_eq!(named(&rules, "labels:").iter().filter(|labels| labels.contains("severity: ")).count(), alerts.len());
    let tests: String = TESTS.map(|name| std::fs::read_to_string(packaging("prometheus").join(name)).unwrap()).concat();
    for alert in &alerts {
        let of_it: Vec<_> = tests.lines().filter(|line| line.contains(&format!("alertname=\"{alert}\""))).collect();
        assert!(of_it.iter().any(|line| line.ends_with("exp_samples: []}")), "{alert} has no case where it is silent");
        assert!(of_it.iter().any(|line| line.contains("value: 1")), "{alert} has no case where it fires");
    }
    let (Some(mut check), Some(mut test)) = (promtool(), promtool()) else { return };
    let checked = run(check.args(["check", "rules", "walkeep.rules.yml"]));
    assert!(checked.ok() && checked.stdout.contains(&format!("{} rules found", alerts.len())), "{checked:?}");
    let tested = run(test.args(["test", "rules"]).args(TESTS));
    assert!(tested.ok(), "{tested:?}");
}

#[test]
fn each_leads_to_its_section_of_the_runbook() {
    let runbook = std::fs::read_to_string(packaging("runbook.md")).unwrap();
    // As GitHub and others make them of headings.
    let anchor = |heading: &str| heading.to_lowercase().replace(' ', "-").replace(['\'', '`', ','], "");
    let anchors: BTreeSet<String> =
        runbook.lines().filter_map(|line| Some(anchor(line.trim_start_matches('#').strip_prefix(' ')?))).collect();
    let rules = rules();
    let urls = named(&rules, "runbook_url:");
    assert_eq!(urls.len(), named(&rules, "alert:").len());
    let links = runbook.split("](#").skip(1).map(|rest| rest.split(')').next().unwrap());
    for target in urls.iter().map(|url| url.split_once('#').unwrap().1).chain(links) {
        assert!(anchors.contains(target), "{target} is no section: {anchors:?}");
    }
}

/// An agent that does everything has every metric that the rules ask for, and promtool finds nothing wrong with how they are told.
#[test]
fn the_agent_has_what_they_ask_for() {
    let cluster = story::builder(VERSION).start();
    let server = S3Server::get();
    let buckets = [server.bucket(), server.bucket()];
    let mut walkeep = Walkeep::new(&cluster, Repository::s3(server.endpoint(), &buckets[0]));
    walkeep.repositories.push(Repository::s3_tls(&buckets[1]));
    let every = "schedule = \"0 3 * * *\"";
    walkeep.more = format!(
        "[[cluster.main.backup]]\n{every}\n[[cluster.main.artifact]]\nname = \"it\"\ncommand = \"echo x\"\n{every}\n\
         [cluster.main.retention]\nwindow = \"7d\"\nautomatic = true\n[metrics]\nbackup_names = true\n"
    );
    walkeep.write_config();
    walkeep.ok(&["init"]);
    let agent = walkeep.agent();
    let asked = metrics_in(&named(&rules(), "expr:").join("\n"));
    let page = || agent.get("/metrics").map(|(_, text)| text).unwrap_or_default();
    let mut missing = BTreeSet::new();
    let complete = walkeep_tests::try_wait_for(PATIENCE, || {
        missing = asked.difference(&told(&page())).cloned().collect();
        missing.is_empty().then_some(())
    });
    assert!(complete.is_some(), "rules ask for {missing:?}, and there is only\n{}", page());
    wait_until("WAL was seen", PATIENCE, || agent.metric("walkeep_possible_loss_seconds").is_some_and(|loss| loss >= 0.0));
    for name in ["walkeep_recoverable_until_timestamp_seconds", "walkeep_disk_free_bytes{disk=\"spool\"}", "walkeep_spool_limit_bytes"] {
        assert!(agent.metric(name).is_some_and(|value| value > 0.0), "{name} in\n{}", page());
    }
    wait_until("copies are told by the name of backup scripts", PATIENCE, || {
        agent.metric("backup_cross_region_replication_status") == Some(1.0)
    });
    assert_eq!(agent.metric("backup_last_run_status"), Some(1.0), "there was none yet");
    // Of whom there is a certificate, and whose clock that is.
    let of = |name: &str, labels: &str| agent.metric(&format!("walkeep_{name}{{{labels}}}"));
    let urls = buckets.each_ref().map(|bucket| format!("repository=\"s3://{}\"", bucket.name));
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
    let ends = |url: &String| of("certificate_expiry_timestamp_seconds", &format!("of=\"repository\",{url}"));
    wait_until("the certificate was looked at", PATIENCE, || ends(&urls[1]).is_some_and(|at| at > now + 29.0 * 86_400.0));
    wait_until("there is none without TLS", PATIENCE, || ends(&urls[0]) == Some(0.0));
    assert_eq!(of("certificate_expiry_timestamp_seconds", "of=\"server\",repository=\"\""), Some(0.0), "over a Unix socket there is none");
    for url in &urls {
        assert_eq!(of("credentials_expiry_timestamp_seconds", url), Some(0.0), "a static key has no end");
        wait_until("its clock was seen", PATIENCE, || {
            of("clock_offset_seconds", &format!("against=\"repository\",{url}")).is_some_and(|ahead| ahead.abs() < 5.0)
        });
    }
    if let Some(mut check) = promtool() {
        let mut child =
            check.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), page().as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
    }
    agent.stop();
}
