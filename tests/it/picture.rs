//! The picture of the recoverable window: what a real history looks like in the terminal, in the JSON and in the SVG.

use serde_json::Value;
use walkeep_tests::walkeep::{Output, run};
use walkeep_tests::{Stop, Walkeep, user};

use crate::story::Story;
use crate::support::SERVER_GONE;

const VERSION: u32 = 15;
/// Whoever calls a restore point this gets no script.
const NAME: &str = "<script>alert(1)</script> & \"so\"";

/// What is drawn, found by an XML parser: the texts of all titles, and how many things could run or fetch something.
const READ: &str = "
import re, sys, xml.etree.ElementTree as tree
root = tree.parse(sys.argv[1]).getroot()
name = lambda element: element.tag.split('}')[1]
assert root.tag == '{http://www.w3.org/2000/svg}svg', root.tag
live = [e for e in root.iter() if name(e) in ('script', 'image', 'use', 'a', 'foreignObject') or any('href' in k or k.startswith('on') for k in e.attrib)]
style = ''.join(e.text for e in root.iter() if name(e) == 'style')
assert not live and '@import' not in style and not re.search(r'url\\((?!#)', style), (live, style)
for e in root.iter():
    if name(e) == 'title': print(e.text.replace(chr(10), ' | '))
";

/// The titles in an SVG.
fn titles(path: &str) -> Vec<String> {
    run(user::command("/usr/bin/python3").args(["-c", READ, path])).expect_code(0).stdout.lines().map(str::to_owned).collect()
}

/// The picture's lane of a timeline.
fn lane(output: &Value, timeline: u64) -> &Value {
    let lanes = output["picture"]["lanes"].as_array().unwrap_or_else(|| panic!("no picture in {output}"));
    lanes.iter().find(|lane| lane["timeline"] == timeline).unwrap_or_else(|| panic!("no timeline {timeline} in {output}"))
}

fn kinds(lane: &Value, list: &str) -> Vec<String> {
    lane[list].as_array().unwrap().iter().map(|of| of["kind"].as_str().unwrap().to_owned()).collect()
}

/// The lines of the text's lanes.
fn lanes(output: &Output) -> Vec<String> {
    output.stdout.lines().filter(|line| line.starts_with("timeline ") && !line.contains(['(', ','])).map(str::to_owned).collect()
}

#[test]
fn the_recoverable_window_is_drawn() {
    let story = Story::local(VERSION);
    story.cluster.sql("CREATE TABLE gone (i int); CREATE TABLE emptied AS SELECT 1 i");
    story.insert(2);
    let backup = story.backup();
    story.cluster.sql(&format!("SELECT pg_create_restore_point('{NAME}')"));
    story.insert(2);
    story.cluster.sql("DROP TABLE gone");
    story.cluster.sql("CREATE DATABASE other");
    story.cluster.sql("DROP DATABASE other");
    story.settle();
    // A promotion: a second timeline.
    story.cluster.stop(Stop::Fast);
    let signal = story.cluster.data().join("standby.signal");
    std::fs::write(&signal, "").unwrap();
    user::give(&signal);
    story.cluster.start();
    story.cluster.promote();
    story.cluster.sql("TRUNCATE emptied");
    story.settle();

    // The catalog alone, without reading WAL.
    let status = story.walkeep.ok(&["status", "--json"]).json();
    assert_eq!(kinds(lane(&status, 1), "marks"), ["backup"], "{status}");
    assert!(lane(&status, 1)["marks"][0]["label"].as_str().unwrap().contains(&backup), "{status}");
    assert!(kinds(lane(&status, 2), "spans").contains(&"recoverable".to_owned()), "{status}");
    assert_eq!(lane(&status, 2)["parent"]["timeline"], 1, "{status}");
    assert_eq!(lane(&status, 2)["parent"]["lsn"], status["timelines"][1]["parent"][1], "{status}");
    let words = story.walkeep.ok(&["status"]);
    let drawn = lanes(&words);
    assert!(drawn.len() == 2 && drawn[0].contains('B') && drawn.iter().all(|line| line.contains('━')), "{}", words.stdout);
    assert!(
        !words.stdout.contains('\u{1b}') && words.stdout.lines().rev().take(8).all(|line| line.chars().count() <= 80),
        "{}",
        words.stdout
    );

    // With what happened.
    let log = story.walkeep.ok(&["log", "--json"]).json();
    let marks = kinds(lane(&log, 1), "marks");
    for kind in ["backup", "restore_point", "dropped", "database_dropped"] {
        assert!(marks.contains(&kind.to_owned()), "{kind}: {log}");
    }
    assert_eq!(kinds(lane(&log, 2), "marks"), ["truncated"], "{log}");
    let removed = log["entries"].as_array().unwrap().iter().find(|entry| entry["what"] == "removed").unwrap();
    let drop = lane(&log, 1)["marks"].as_array().unwrap().iter().find(|mark| mark["kind"] == "dropped").unwrap();
    assert_eq!((&drop["lsn"], &drop["time"]), (&removed["lsn"], &removed["time"]), "{log}");
    assert_eq!(log["picture"]["axis"]["by"], "time", "{log}");
    let words = story.walkeep.ok(&["log"]);
    assert!(lanes(&words).len() == 2 && words.stdout.contains("D database dropped"), "{}", words.stdout);
    for ascii in [story.walkeep.command(&["log", "--ascii"]), without_utf8(&story.walkeep)].iter_mut().map(run) {
        assert!(lanes(&ascii).len() == 2 && lanes(&ascii).iter().all(|line| line.is_ascii() && line.contains('=')), "{}", ascii.stdout);
    }
    assert!(lanes(&story.walkeep.ok(&["log", "--no-picture"])).is_empty());
    assert!(story.walkeep.ok(&["log", "--no-picture", "--json"]).json().get("picture").is_none());

    terminal(&story.walkeep);
    files(&story, removed["lsn"].as_str().unwrap());
    story.end(&SERVER_GONE);
}

fn without_utf8(walkeep: &Walkeep) -> std::process::Command {
    let mut command = walkeep.command(&["log"]);
    command.env("LC_ALL", "C");
    command
}

/// In a terminal: its width, and colours unless they are not wanted.
fn terminal(walkeep: &Walkeep) {
    let status = walkeep.command(&["status"]);
    let in_terminal = |variables: &str| {
        let mut command = user::command("script");
        command.envs(status.get_envs().filter_map(|(name, value)| Some((name, value?)))).env("LC_ALL", "C.UTF-8").env("TERM", "xterm");
        let line = format!("stty cols 50; {variables} {} status", walkeep_tests::walkeep::binary("walkeep").display());
        run(command.args(["-qec", &line, "/dev/null"])).expect_code(0).stdout
    };
    let coloured = in_terminal("");
    assert!(coloured.contains("\u{1b}[32m"), "{coloured}");
    let plain = in_terminal("NO_COLOR=1");
    let drawn: Vec<_> = plain.lines().filter(|line| line.contains('━')).collect();
    assert!(!plain.contains('\u{1b}') && drawn.iter().all(|line| line.trim_end().chars().count() <= 50) && drawn.len() > 1, "{plain}");
    assert!(drawn.iter().any(|line| line.trim_end().chars().count() > 45), "the width is used: {plain}");
}

/// `--svg`.
fn files(story: &Story, dropped_at: &str) {
    let path = story.walkeep.scratch().join("window.svg");
    let path = path.to_str().unwrap();
    story.walkeep.ok(&["log", "--svg", path]);
    let told = titles(path);
    let has = |words: &[&str]| told.iter().any(|title| words.iter().all(|word| title.contains(word)));
    assert!(has(&[NAME]), "{told:?}");
    assert!(has(&["dropped at ", dropped_at]) && has(&["timeline 2 left timeline 1 at "]) && has(&["recoverable: "]), "{told:?}");

    // Nothing is overwritten without being asked, and nothing is left beside it.
    std::fs::write(path, "mine").unwrap();
    for command in ["log", "status"] {
        let refused = story.walkeep.run(&[command, "--svg", path]).expect_code(3);
        assert!(refused.stderr.contains("exists") && refused.stderr.contains("--replace"), "{}", refused.stderr);
    }
    assert_eq!(std::fs::read_to_string(path).unwrap(), "mine");
    story.walkeep.ok(&["status", "--replace", "--svg", path]);
    assert!(titles(path).iter().any(|title| title.starts_with("backup ")), "{:?}", titles(path));
    let beside = std::fs::read_dir(story.walkeep.scratch().path())
        .unwrap()
        .filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().contains("walkeep-tmp"));
    assert_eq!(beside.count(), 0);
    story.walkeep.run(&["status", "--replace"]).expect_code(2);
}

#[test]
fn nothing_stored_is_no_picture() {
    let cluster = crate::story::builder(VERSION).start();
    let walkeep = Walkeep::local(&cluster);
    walkeep.ok(&["init"]);
    let status = walkeep.ok(&["status"]);
    assert!(lanes(&status).is_empty() && !status.stdout.contains("by position"), "{}", status.stdout);
    assert!(walkeep.ok(&["status", "--json"]).json().get("picture").is_none());
    let path = walkeep.scratch().join("window.svg");
    let refused = walkeep.run(&["status", "--svg", path.to_str().unwrap()]).expect_code(3);
    assert!(refused.stderr.contains("nothing is stored") && !path.exists(), "{}", refused.stderr);
}
