//! The Grafana dashboard of `packaging/grafana`: what it asks for exists, what it asks is PromQL, and people can read it.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use walkeep_tests::walkeep::run;
use walkeep_tests::{Repository, S3Server, Scratch, Walkeep, try_wait_for};

use crate::alerts::{metrics_in, packaging, promtool, told};
use crate::story::{self, PATIENCE};

const VERSION: u32 = 15;

fn dashboard() -> Value {
    let text = std::fs::read_to_string(packaging("grafana/walkeep.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn panels(dashboard: &Value) -> Vec<&Value> {
    dashboard["panels"].as_array().unwrap().iter().collect()
}

fn is_row(panel: &Value) -> bool {
    panel["type"] == "row"
}

/// Each expression, with a name for the panel and query that have it.
fn expressions(dashboard: &Value) -> Vec<(String, &str)> {
    panels(dashboard)
        .into_iter()
        .filter(|panel| !is_row(panel))
        .flat_map(|panel| {
            let queries = panel["targets"].as_array().unwrap();
            queries.iter().map(move |query| (format!("panel_{}_{}", panel["id"], text(query, "refId")), text(query, "expr")))
        })
        .collect()
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_else(|| panic!("no {key} in {value}"))
}

/// The whole numbers of a panel's place: left, top, right and bottom edge.
fn place(panel: &Value) -> [u64; 4] {
    let [x, y, width, height] = ["x", "y", "w", "h"].map(|key| panel["gridPos"][key].as_u64().unwrap());
    [x, y, x + width, y + height]
}

#[test]
fn each_panel_has_its_place_title_unit_and_description() {
    let dashboard = dashboard();
    let panels = panels(&dashboard);
    assert!(panels.len() > 50, "{}", panels.len());
    assert!(dashboard["schemaVersion"].as_u64().unwrap() >= 38, "as Grafana 10 writes it");
    let variables: Vec<_> = dashboard["templating"]["list"].as_array().unwrap().iter().map(|variable| text(variable, "name")).collect();
    assert_eq!(variables, ["datasource", "cluster", "instance"]);
    let numbers: BTreeSet<_> = panels.iter().map(|panel| panel["id"].as_u64().unwrap()).collect();
    assert_eq!(numbers.len(), panels.len(), "each has a number of its own");
    for (index, panel) in panels.iter().enumerate() {
        assert!(!text(panel, "title").is_empty());
        let [left, top, right, bottom] = place(panel);
        assert!(left < right && right <= 24 && top < bottom, "{panel}");
        for other in &panels[..index] {
            let [x, y, to_x, to_y] = place(other);
            assert!(
                right <= x || to_x <= left || bottom <= y || to_y <= top,
                "{} lies over {}",
                text(panel, "title"),
                text(other, "title")
            );
        }
        if is_row(panel) {
            continue;
        }
        assert!(text(panel, "description").ends_with('.'), "{panel}");
        assert!(!text(&panel["fieldConfig"]["defaults"], "unit").is_empty());
        assert_eq!(panel["datasource"]["uid"], "${datasource}", "{panel}");
        assert!(!panel["targets"].as_array().unwrap().is_empty(), "{panel}");
    }
}

/// Sections of the runbook that descriptions name are there.
#[test]
fn what_it_says_of_the_runbook_is_there() {
    let runbook = std::fs::read_to_string(packaging("runbook.md")).unwrap();
    let sections: BTreeSet<_> = runbook.lines().filter_map(|line| line.strip_prefix("## ")).map(str::to_lowercase).collect();
    let dashboard = dashboard();
    let named: Vec<_> = panels(&dashboard).into_iter().filter_map(|panel| panel["description"].as_str()?.split_once("Runbook: ")).collect();
    assert!(named.len() > 10, "{named:?}");
    for (_, rest) in named {
        assert!(sections.contains(&rest.trim_end_matches('.').to_lowercase()), "{rest} is no section: {sections:?}");
    }
}

#[test]
fn each_expression_is_one() {
    let dashboard = dashboard();
    let expressions = expressions(&dashboard);
    for (panel, expr) in &expressions {
        // All but the two that count over all clusters, and ALERTS, whose clusters the rules may have summed up.
        let everywhere = expr.contains("ALERTS{") || expr.starts_with("count(up{");
        assert!(everywhere || expr.contains("cluster=~\"$cluster\""), "{panel} does not ask for the chosen cluster: {expr}");
    }
    let Some(mut check) = promtool() else { return };
    let rules: Vec<_> =
        expressions.iter().map(|(panel, expr)| json!({ "record": panel, "expr": expr.replace("$__rate_interval", "5m") })).collect();
    let scratch = Scratch::new();
    // JSON is YAML.
    let file = scratch.write("dashboard.yml", json!({ "groups": [{ "name": "dashboard", "rules": rules }] }).to_string(), 0o644);
    let checked = run(check.args(["check", "rules"]).arg(&file));
    assert!(checked.ok() && checked.stdout.contains(&format!("{} rules found", expressions.len())), "{checked:?}");
}

/// Every metric is one of an agent that does everything, or one of commands from cron, which README's table names.
#[test]
fn what_it_asks_for_is_there() {
    let cluster = story::builder(VERSION).start();
    let mut walkeep = Walkeep::local(&cluster);
    let server = S3Server::get();
    walkeep.repositories.push(Repository::s3(server.endpoint(), &server.bucket()));
    walkeep.environment.push(("WALKEEP_REPOSITORY_2_PRICES".to_owned(), "STANDARD=0.023".to_owned()));
    let every = "schedule = \"0 3 * * *\"";
    walkeep.more = format!(
        "[[cluster.main.backup]]\n{every}\n[[cluster.main.artifact]]\nname = \"it\"\ncommand = \"echo x\"\n{every}\n\
         [notify]\ncommand = [\"true\"]\n"
    );
    walkeep.write_config();
    walkeep.ok(&["init"]);
    // What is stored is counted where it is looked through.
    walkeep.ok(&["verify"]);
    let agent = walkeep.agent();
    let readme = std::fs::read_to_string(packaging("../README.md")).unwrap();
    let of_runs: BTreeSet<_> = readme
        .lines()
        .filter(|line| line.starts_with("| `walkeep_run_"))
        .flat_map(|line| metrics_in(line.split(" | ").next().unwrap()))
        .collect();
    assert!(of_runs.len() > 4, "{of_runs:?}");
    let dashboard = dashboard();
    let asked: BTreeSet<String> = expressions(&dashboard).iter().flat_map(|(_, expr)| metrics_in(expr)).collect();
    assert!(asked.len() > 50, "{asked:?}");
    let page = || agent.get("/metrics").map(|(_, text)| text).unwrap_or_default();
    let mut missing = BTreeSet::new();
    let complete = try_wait_for(PATIENCE, || {
        let told = told(&page());
        missing = asked.iter().filter(|name| !told.contains(*name) && !of_runs.contains(*name)).cloned().collect();
        missing.is_empty().then_some(())
    });
    assert!(complete.is_some(), "the dashboard asks for {missing:?}, and there is only\n{}", page());
    agent.stop();
}
