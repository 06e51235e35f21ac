//! The status page in a real browser: what it says, by pointer, keys and on a telephone; and who does not get to see it.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::{Value, json};
use walkeep_tests::postgres::{bin, client};
use walkeep_tests::walkeep::{binary, run};
use walkeep_tests::{Agent, Browser, Repository, Scratch, Stop, Walkeep, http, user, wait_for, wait_until};

use crate::story::{PATIENCE, Restored, Story};
use crate::support::{SERVER_GONE, assert_calm};

const VERSION: u32 = 15;
/// Whoever takes it for HTML has an image and a script in the page.
const HOSTILE: &str = "<img src=x onerror=\"window.hacked=1\">&amp;\u{202e}";
const POINT: &str = "it's <b>$(touch /tmp/x)";

fn address(walkeep: &Walkeep) -> String {
    format!("http://{}/", walkeep.http_address())
}

/// The whole of it: a backup, rows, a table with a hostile name that is dropped, a restore point with another.
#[test]
fn it_says_what_status_says_and_gives_the_command() {
    let mut story = Story::local(VERSION);
    story.insert(5);
    story.walkeep.ok(&["backup", "--label", "nightly <i>"]);
    story.insert(5);
    let quoted = HOSTILE.replace('"', "\"\"");
    story.cluster.sql(&format!("CREATE TABLE \"{quoted}\" (i int)"));
    // The name is known from a snapshot of the catalog.
    story.backup();
    story.insert(5);
    let rows = story.cluster.sql("SELECT count(*) FROM t");
    story.cluster.sql(&format!("DROP TABLE \"{quoted}\""));
    story.insert(5);
    story.cluster.sql(&format!("SELECT pg_create_restore_point('{}')", POINT.replace('\'', "''")));
    story.insert(5);
    story.settle();
    // A restore is rehearsed.
    let bin_dirs =
        [bin(VERSION).unwrap(), client(VERSION, "pg_amcheck").parent().unwrap().to_owned()].map(|folder| folder.display().to_string());
    let scratch = story.walkeep.scratch().dir("x");
    story.walkeep.ok(&["drill", "--bin-dir", &bin_dirs.join(":"), "--scratch", &scratch.to_string_lossy(), "--json"]);
    let status = story.walkeep.ok(&["status", "--json"]).json();
    let log = story.walkeep.ok(&["log", "--json"]).json();
    let accident =
        log["entries"].as_array().unwrap().iter().find(|entry| entry.to_string().contains("onerror")).expect("the drop is named");
    let accident = accident["lsn"].as_str().unwrap().to_owned();

    let mut browser = Browser::start();
    browser.dark(false);
    browser.size(1280, 900);
    browser.open(&address(&story.walkeep));
    browser.wait(
        "the timeline is drawn",
        "Boolean(document.querySelector('#timeline svg .recoverable')) && Boolean(document.querySelector('#events table'))",
    );
    says_what_status_says(&mut browser, &status);
    assert_eq!(browser.eval("[document.images.length, window.hacked ?? null, document.querySelectorAll('#main b, #main i:not(.key)').length - document.querySelectorAll('.band > b').length]"), serde_json::json!([0, null, 0]));
    let events = browser.eval("document.querySelector('#events').textContent");
    assert!(events.as_str().unwrap().contains("<img src=x onerror=") && events.as_str().unwrap().contains(POINT), "{events}");
    browser.screenshot("page-light");
    let light = browser.eval("getComputedStyle(document.documentElement).backgroundColor");
    browser.dark(true);
    let dark = browser.eval("getComputedStyle(document.documentElement).backgroundColor");
    assert_ne!(light, dark);
    browser.screenshot("page-dark");
    browser.eval("document.querySelector('#theme').click(); document.querySelector('#theme').click()");
    assert_eq!(
        (browser.text("#theme"), browser.eval("getComputedStyle(document.documentElement).backgroundColor")),
        ("Colours: light".to_owned(), light)
    );

    // By keys: to the end, back over the restore point to the drop, and pick it.
    browser.eval("document.querySelector('#zoom-day').focus()");
    browser.key("Tab", false);
    assert_eq!(browser.eval("document.activeElement.id"), "timeline");
    browser.key("End", false);
    browser.key("ArrowLeft", true);
    browser.wait("the restore point", "document.querySelector('#cursor').textContent.includes('touch /tmp/x')");
    browser.key("ArrowLeft", true);
    browser.wait("the drop", "document.querySelector('#cursor').textContent.includes('dropped')");
    browser.key("+", false);
    browser.key("Enter", false);
    browser.wait("a plan", "Boolean(document.querySelector('#command'))");
    let (command, plan) = (browser.text("#command"), browser.text("#plan"));
    assert!(command.contains(&format!("--lsn {accident} --exclusive --timeline 1 --to ")), "{command}");
    assert!(plan.contains("It can be restored.") && plan.contains("Every object this needs is in the repository."), "{plan}");
    let restored = restore(&story, &command);
    assert_eq!(restored.cluster.sql("SELECT count(*) FROM t"), rows, "just before the drop");
    assert_eq!(restored.cluster.sql(&format!("SELECT count(*) FROM \"{quoted}\"")), "0");
    drop(restored);
    browser.screenshot("page-plan");

    // By pointer: a moment behind the last mark, which is there once the repository was looked at again.
    let room = "(() => { document.querySelector('#timeline').scrollIntoView({ block: 'center' }); \
        const box = document.querySelector('#timeline').getBoundingClientRect(), band = document.querySelector('#timeline svg .recoverable').getBoundingClientRect(); \
        const marks = [...document.querySelectorAll('#timeline svg circle')].map((mark) => mark.getBoundingClientRect().right); \
        const last = Math.max(band.left, box.left, ...marks), right = Math.min(band.right, box.right); \
        return [(last + right) / 2, band.y + band.height / 2, right - last]; })()";
    let place = wait_for("there is room behind the last mark", PATIENCE, || {
        ["0", "End"].iter().for_each(|key| browser.key(key, false));
        (0..10).for_each(|_| browser.key("+", false));
        Some(browser.eval(room)).filter(|place| place[2].as_f64().unwrap() > 100.0)
    });
    browser.eval("document.querySelector('#plan').replaceChildren()");
    browser.click(place[0].as_f64().unwrap(), place[1].as_f64().unwrap());
    browser.wait("a plan of a moment", "Boolean(document.querySelector('#plan .band.good, #plan .band.critical'))");
    let command = browser.text("#command");
    assert!(command.contains("walkeep restore ") && command.contains("--at '20"), "{command}");

    // What cannot be had is refused, and what is no moment.
    for (moment, words) in [("2001-01-01 00:00:00+00", "It cannot be reached."), ("yesterday", "No plan.")] {
        browser.eval(&format!("document.querySelector('#at').value = '{moment}'; document.querySelector('#along').value = ''; document.querySelector('#plan').replaceChildren(); document.querySelector('#ask button').click()"));
        browser.wait(words, &format!("document.querySelector('#plan').textContent.includes('{words}')"));
        assert_eq!(browser.text("#command"), "");
    }
    // A name in a command is one word for a shell.
    browser.eval("document.querySelector('#plan').replaceChildren(); document.querySelector('#events-box').open = true; document.querySelector('#events button').click()");
    browser.wait("a plan of the restore point", "Boolean(document.querySelector('#command'))");
    assert!(browser.text("#command").contains(r"'--restore-point=it'\''s <b>$(touch /tmp/x)'"), "{}", browser.text("#command"));

    // On a telephone nothing is wider than it.
    for dark in [true, false] {
        browser.eval("document.querySelectorAll('details').forEach((box) => { box.open = true; })");
        browser.size(360, 740);
        browser.dark(dark);
        let wide = "[...document.querySelectorAll('body *')].filter((node) => node.getBoundingClientRect().right > 361 && !node.closest('svg, thead, .skip')).map((node) => node.tagName + '#' + node.id + '.' + node.className).join(' ')";
        let width = browser.eval("document.documentElement.scrollWidth");
        assert_eq!((width.as_u64(), browser.eval(wide)), (Some(360), Value::from("")));
        browser.screenshot(if dark { "page-phone-dark" } else { "page-phone-light" });
    }
    // Chromium itself tells of the answer 400 to what is no moment.
    let complaints: Vec<_> = browser.complaints().into_iter().filter(|text| !text.contains("plan.json?at=yesterday")).collect();
    assert_eq!(complaints, [""; 0]);
    let from = address(&story.walkeep);
    let elsewhere: Vec<_> =
        browser.requests().into_iter().filter(|url| !url.starts_with(&from) && !url.starts_with("data:") && url != "about:blank").collect();
    assert_eq!(elsewhere, [""; 0]);
    // A page that is looked at often reads the repository seldom: it polls every 5 s, and the catalog is read each 20 s at most.
    let calls = |metric: &str| story.agent().metric(metric).unwrap_or_default();
    let listed = calls("walkeep_request_duration_seconds_count{operation=\"list\"}");
    (0..50).for_each(|_| assert_eq!(story.agent().get("/page/status.json").unwrap().0, 200));
    let more = calls("walkeep_request_duration_seconds_count{operation=\"list\"}") - listed;
    assert!(more < 50.0, "{more} listings for 50 looks");
    assert_calm(story.agent(), &[]);

    // The server goes on as a promoted one: a second lane that leaves the first.
    story.cluster.stop(Stop::Fast);
    let signal = story.cluster.data().join("standby.signal");
    std::fs::write(&signal, "").unwrap();
    user::give(&signal);
    story.cluster.start();
    story.cluster.promote();
    story.insert(5);
    browser.size(1280, 900);
    browser.wait("two lanes", "document.querySelectorAll('#timeline svg .name').length === 2");
    assert_eq!(browser.eval("[...document.querySelectorAll('#timeline svg .name')].at(-1).textContent"), "timeline 2 from 1");
    browser.eval("document.querySelector('#zoom-all').click()");
    assert_eq!(browser.eval("document.querySelectorAll('#timeline svg .join').length"), 1);
    assert!(browser.text("#along").contains('2'));
    browser.screenshot("page-two-timelines");

    // What is old is not shown as if it were new.
    story.stop_agent(&SERVER_GONE);
    browser.wait("the agent is gone", "!document.querySelector('#stale').hidden");
    assert!(browser.text("#stale").contains("The agent does not answer. What stands here is of 20"), "{}", browser.text("#stale"));
}

#[track_caller]
fn says_what_status_says(browser: &mut Browser, status: &Value) {
    let newest = status["newest_backup"]["id"].as_str().unwrap();
    assert_eq!(browser.text("#backups-count"), status["backups"].to_string());
    assert!(browser.text("#backups").contains(newest) && browser.text("#backups").contains("nightly <i>"), "{}", browser.text("#backups"));
    let earliest = &status["timelines"][0]["windows"][0]["earliest"];
    let time = earliest["time"].as_str().unwrap();
    assert_eq!(browser.text("#from"), format!("{} {} UTC", &time[..10], &time[11..19]));
    assert!(browser.text("#from-more").contains(earliest["backup"].as_str().unwrap()));
    assert_eq!(status["gaps"], serde_json::json!([]));
    let drills = browser.text("#drills");
    assert!(drills.contains("passed") && drills.contains("timeline 1 up to ") && !drills.contains("None yet"), "{drills}");
    assert!(browser.text("#gaps").contains("None"));
    assert_eq!(browser.text("#cluster"), "main");
    let lanes = browser.eval("[...document.querySelectorAll('#timeline svg .name')].map((name) => name.textContent)");
    let timelines: Vec<_> = status["timelines"].as_array().unwrap().iter().map(|one| format!("timeline {}", one["timeline"])).collect();
    assert_eq!(lanes, serde_json::json!(timelines));
    assert!(
        browser.text("#until").ends_with(" UTC")
            && matches!(browser.text("#loss").as_str(), "nothing" | "0.0 s of commits" | "0.1 s of commits"),
        "{} {}",
        browser.text("#until"),
        browser.text("#loss")
    );
    browser.wait("what is wrong was judged", "Boolean(document.querySelector('#alarms .band'))");
    assert!(browser.text("#alarms").contains("No alarm stands."), "{}", browser.text("#alarms"));
}

/// Does what the command says, but into a folder of the test's.
fn restore(story: &Story, command: &str) -> Restored {
    let folder = Scratch::new();
    let place = folder.join("data");
    let (front, _) = command.rsplit_once(" --to ").unwrap();
    let front = front.strip_prefix("walkeep ").expect("it is Walkeep's");
    let line = format!("exec {} {front} --to {}", binary("walkeep").display(), place.display());
    let mut shell = user::command("sh");
    shell.args(["-c", &line]).envs(story.walkeep.environment.iter().map(|(name, value)| (name, value)));
    run(&mut shell).expect_code(0);
    let restored = Restored::laid_down(VERSION, folder, &place);
    restored.start();
    restored
}

/// One request as it is written here; the status and the whole answer.
fn raw(address: &str, request: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    (answer.split(' ').nth(1).unwrap().parse().unwrap(), answer)
}

fn asked(address: &str, path: &str, headers: &str) -> (u16, String) {
    raw(address, &format!("GET {path} HTTP/1.1\r\nConnection: close\r\n{headers}\r\n"))
}

/// Whoever is elsewhere sees nothing without the token, and no other site reads it in the operator's browser.
#[test]
fn nobody_else_sees_it() {
    let mut walkeep = Walkeep::offline(Repository::Local("/nowhere/at-all".into()));
    walkeep.cluster_lines.push_str("stream = false\n");
    walkeep.write_config();
    let (address, port) = (walkeep.http_address(), walkeep.http_address().rsplit_once(':').unwrap().1.to_owned());
    let agent = walkeep.launch_agent().unwrap();
    let answers = || http::get(&address, "/healthz").is_ok_and(|(status, _)| status == 200);
    wait_until("it listens", PATIENCE, answers);
    let here = format!("Host: {address}\r\n");
    for path in ["/", "/page/page.js", "/page/timeline.js", "/page/page.css", "/page/status.json"] {
        let (status, answer) = asked(&address, path, &here);
        assert_eq!(status, 200, "{path}");
        let head = answer.split("\r\n\r\n").next().unwrap().to_lowercase();
        for header in [
            "content-security-policy: default-src 'none'; script-src 'self'; style-src 'self';",
            "x-content-type-options: nosniff",
            "x-frame-options: deny",
            "referrer-policy: no-referrer",
        ] {
            assert!(head.contains(header), "{path} has no {header}: {head}");
        }
        // DNS rebinding: somebody else's name leads here.
        for host in ["evil.example", "127.0.0.1.evil.example:80", "localhost.evil.example"] {
            let (status, answer) = asked(&address, path, &format!("Host: {host}\r\n"));
            assert!(status == 403 && !answer.contains("main"), "{path} for {host}: {answer}");
        }
    }
    assert_eq!(asked(&address, "/page/status.json", &format!("{here}Sec-Fetch-Site: cross-site\r\n")).0, 403);
    assert_eq!(raw(&address, &format!("POST /page/plan.json HTTP/1.1\r\nConnection: close\r\n{here}Content-Length: 0\r\n\r\n")).0, 405);
    assert_eq!(asked(&address, "/page/plan.json", &here).0, 400, "the repository is not open");
    assert_eq!(asked(&address, "/metrics", "Host: db1.example\r\n").0, 200, "whoever scrapes uses its name");
    drop(agent);

    // For other hosts: not without a token.
    walkeep.environment.push(("WALKEEP_LISTEN_HTTP".into(), format!("0.0.0.0:{port}")));
    let agent = walkeep.launch_agent().unwrap();
    wait_until("it listens", PATIENCE, answers);
    for path in ["/", "/page/status.json"] {
        let (status, answer) = asked(&address, path, &here);
        assert!(status == 403 && answer.contains("token_file"), "{path}: {answer}");
    }
    assert_eq!(asked(&address, "/metrics", &here).0, 200);
    drop(agent);
    walkeep.environment.push(("WALKEEP_LISTEN_PAGE".into(), "true".into()));
    let refused = walkeep.run(&["agent"]).expect_code(2);
    assert!(refused.stderr.contains("[listen]: page") && refused.stderr.contains("token"), "{}", refused.stderr);

    let token = walkeep.scratch().write("token", "0123456789-sentinel-token\n", 0o600);
    walkeep.environment.push(("WALKEEP_LISTEN_TOKEN_FILE".into(), token.display().to_string()));
    let agent = walkeep.launch_agent().unwrap();
    wait_until("it listens", PATIENCE, answers);
    let elsewhere = "Host: db1.example\r\n";
    assert_eq!(asked(&address, "/", elsewhere).0, 200, "the page itself says nothing");
    for wrong in ["", "Authorization: Bearer 0123456789-sentinel-toke\r\n", "Authorization: Basic 0123456789-sentinel-token\r\n"] {
        let (status, answer) = asked(&address, "/page/status.json", &format!("{elsewhere}{wrong}"));
        assert!(status == 401 && !answer.contains("phase"), "{answer}");
    }
    let (status, answer) = asked(&address, "/page/status.json", &format!("{elsewhere}Authorization: Bearer 0123456789-sentinel-token\r\n"));
    assert!(status == 200 && answer.contains("\"phase\""), "{answer}");
    // In the browser.
    let mut browser = Browser::start();
    browser.open(&format!("http://{address}/"));
    browser.wait("it is asked for", "!document.querySelector('#login').hidden");
    browser.eval("document.querySelector('#token').value = 'wrong'; document.querySelector('#login button').click()");
    browser.wait("it is wrong", "document.querySelector('#refused').textContent.includes('not the token')");
    browser.eval("document.querySelector('#token').value = '0123456789-sentinel-token'; document.querySelector('#login button').click()");
    browser.wait("it is shown", "!document.querySelector('#main').hidden && document.querySelector('#cluster').textContent === 'main'");
    assert!(!agent.log().contains("sentinel"), "the token is in the log");
}

/// An agent that begins anew goes on with the lag that the one before it has seen.
#[test]
fn the_lag_is_kept_over_restarts() {
    let mut story = Story::local(VERSION);
    let lag = |agent: &Agent| -> Option<Value> {
        let (_, text) = agent.get("/page/status.json").ok()?;
        Some(serde_json::from_str::<Value>(&text).ok()?["lag"].clone())
    };
    let file = story.walkeep.spool().join("lag.json");
    wait_until("it is kept", PATIENCE, || file.exists());
    story.stop_agent(&[]);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() / 60 * 60;
    let minutes = json!([{ "at": now - 90_000, "loss_ms": 9, "bytes": 9 }, { "at": now - 7200, "loss_ms": 1234, "bytes": 5 }]);
    std::fs::write(&file, minutes.to_string()).unwrap();
    story.start_agent();
    let known =
        wait_for("the page tells it", PATIENCE, || lag(story.agent()).filter(|lag| lag.as_array().is_some_and(|lag| lag.len() > 1)));
    assert_eq!(
        (&known[0]["at"], &known[0]["loss_ms"]),
        (&json!(now - 7200), &json!(1234)),
        "and what is older than a day is gone: {known}"
    );
    story.end(&[]);
}
