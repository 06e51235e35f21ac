//! A real browser: headless Chromium, driven by its DevTools protocol over a pair of pipes (`--remote-debugging-pipe`), messages of JSON with a zero byte behind each.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::process::Process;
use crate::{Scratch, user};

/// An answer of the browser's takes no longer.
const ANSWER: Duration = Duration::from_secs(60);

/// A browser with one page. Ended when dropped.
#[derive(Debug)]
pub struct Browser {
    process: Process,
    to: File,
    from: Receiver<Value>,
    session: String,
    next: u64,
    events: Vec<Value>,
    _scratch: Scratch,
}

impl Browser {
    /// Starts it with an empty page.
    #[track_caller]
    pub fn start() -> Self {
        let scratch = Scratch::new();
        let pipes = [scratch.join("to"), scratch.join("from")];
        for pipe in &pipes {
            let made = Command::new("mkfifo").arg("-m").arg("666").arg(pipe).status().expect("start mkfifo");
            assert!(made.success(), "mkfifo {}", pipe.display());
        }
        let home = scratch.dir("home");
        let mut command = user::command("sh");
        let script = r#"exec chromium --headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking \
            --disable-component-update --disable-sync --disable-dev-shm-usage --hide-scrollbars --user-data-dir="$HOME/profile" --remote-debugging-pipe about:blank 3< "$0" 4> "$1""#;
        command.args(["-c", script]).args(&pipes).env("HOME", &home);
        let process = Process::start(command, &scratch.join("browser.log")).expect("start Chromium: tests/setup.sh installs it");
        // Both ways each: opening waits for nobody.
        let open = |path: &Path| OpenOptions::new().read(true).write(true).open(path).expect("open an own pipe");
        let (to, answers) = (open(&pipes[0]), open(&pipes[1]));
        let (sender, from) = channel();
        std::thread::spawn(move || {
            let mut reader = BufReader::new(answers);
            loop {
                let mut message = Vec::new();
                if reader.read_until(0, &mut message).is_err() || message.pop() != Some(0) {
                    return;
                }
                let Ok(message) = serde_json::from_slice(&message) else { continue };
                if sender.send(message).is_err() {
                    return;
                }
            }
        });
        let mut browser = Self { process, to, from, session: String::new(), next: 0, events: Vec::new(), _scratch: scratch };
        let target = browser.call("Target.createTarget", json!({ "url": "about:blank" }));
        let attached = browser.call("Target.attachToTarget", json!({ "targetId": target["targetId"], "flatten": true }));
        browser.session = attached["sessionId"].as_str().expect("a session").to_owned();
        for domain in ["Page", "Runtime", "Log", "Network"] {
            browser.call(&format!("{domain}.enable"), json!({}));
        }
        browser
    }

    /// One command of the protocol, and its result.
    #[track_caller]
    pub fn call(&mut self, method: &str, parameters: Value) -> Value {
        self.next += 1;
        let id = self.next;
        let mut message = json!({ "id": id, "method": method, "params": parameters });
        if !self.session.is_empty() {
            message["sessionId"] = self.session.clone().into();
        }
        let mut bytes = message.to_string().into_bytes();
        bytes.push(0);
        self.to.write_all(&bytes).expect("write to Chromium");
        let end = Instant::now() + ANSWER;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let message = self.from.recv_timeout(left).unwrap_or_else(|_| panic!("no answer to {method}:\n{}", self.process.log()));
            if message["id"] == id {
                assert!(message["error"].is_null(), "{method}: {}", message["error"]);
                return message["result"].clone();
            }
            self.events.push(message);
        }
    }

    /// Goes there, and waits until the page is whole.
    #[track_caller]
    pub fn open(&mut self, url: &str) {
        let went = self.call("Page.navigate", json!({ "url": url }));
        assert!(went["errorText"].is_null(), "{url}: {went}");
        let there = format!("document.readyState === 'complete' && location.href.startsWith({})", Value::from(url));
        self.wait("the page is loaded", &there);
    }

    /// What an expression of the page's own language gives.
    #[track_caller]
    pub fn eval(&mut self, expression: &str) -> Value {
        let parameters = json!({ "expression": expression, "returnByValue": true, "awaitPromise": true });
        let result = self.call("Runtime.evaluate", parameters);
        assert!(result["exceptionDetails"].is_null(), "{expression}: {}", result["exceptionDetails"]);
        result["result"]["value"].clone()
    }

    /// The text of the first element of this kind, as it is seen.
    #[track_caller]
    pub fn text(&mut self, selector: &str) -> String {
        let quoted = Value::from(selector);
        self.eval(&format!("document.querySelector({quoted})?.innerText ?? ''")).as_str().unwrap_or_default().to_owned()
    }

    /// Waits until an expression is true.
    #[track_caller]
    pub fn wait(&mut self, what: &str, expression: &str) {
        let end = Instant::now() + ANSWER;
        while self.eval(expression) != true {
            if Instant::now() > end {
                let text = self.eval("document.body?.innerText ?? ''");
                panic!("waited {ANSWER:?} in vain: {what}; the page says\n{}", text.as_str().unwrap_or_default());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// A key is pressed, with Shift or without.
    #[track_caller]
    pub fn key(&mut self, key: &str, shift: bool) {
        for kind in ["keyDown", "keyUp"] {
            let mut event = json!({ "type": kind, "key": key, "modifiers": if shift { 8 } else { 0 } });
            if key == "Enter" && kind == "keyDown" {
                event["text"] = "\r".into();
            }
            if key == "Tab" {
                (event["code"], event["windowsVirtualKeyCode"]) = ("Tab".into(), 9.into());
            }
            self.call("Input.dispatchKeyEvent", event);
        }
    }

    /// A click there, in pixels of the window.
    #[track_caller]
    pub fn click(&mut self, x: f64, y: f64) {
        for kind in ["mousePressed", "mouseReleased"] {
            self.call("Input.dispatchMouseEvent", json!({ "type": kind, "x": x, "y": y, "button": "left", "clickCount": 1 }));
        }
    }

    /// The window has so many pixels.
    #[track_caller]
    pub fn size(&mut self, width: u32, height: u32) {
        let parameters = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600 });
        self.call("Emulation.setDeviceMetricsOverride", parameters);
    }

    /// The system wishes dark colours, or light ones.
    #[track_caller]
    pub fn dark(&mut self, dark: bool) {
        let value = if dark { "dark" } else { "light" };
        self.call("Emulation.setEmulatedMedia", json!({ "features": [{ "name": "prefers-color-scheme", "value": value }] }));
    }

    /// The whole page as a PNG, kept as an artifact of the test; where.
    #[track_caller]
    pub fn screenshot(&mut self, name: &str) -> PathBuf {
        let shot = self.call("Page.captureScreenshot", json!({ "format": "png", "captureBeyondViewport": true }));
        let folder = artifacts();
        std::fs::create_dir_all(&folder).expect("make the folder of artifacts");
        let path = folder.join(format!("{name}.png"));
        std::fs::write(&path, decoded(shot["data"].as_str().expect("a picture"))).expect("write an artifact");
        path
    }

    /// What the console was told as a warning or an error so far, and exceptions.
    pub fn complaints(&self) -> Vec<String> {
        let is_one = |event: &&Value| match event["method"].as_str() {
            Some("Runtime.exceptionThrown") => true,
            Some("Runtime.consoleAPICalled") => matches!(event["params"]["type"].as_str(), Some("error" | "warning" | "assert")),
            Some("Log.entryAdded") => matches!(event["params"]["entry"]["level"].as_str(), Some("error" | "warning")),
            _ => false,
        };
        self.events.iter().filter(is_one).map(|event| event["params"].to_string()).collect()
    }

    /// Every URL that was asked for so far.
    pub fn requests(&self) -> Vec<String> {
        let sent = self.events.iter().filter(|event| event["method"] == "Network.requestWillBeSent");
        sent.filter_map(|event| event["params"]["request"]["url"].as_str().map(str::to_owned)).collect()
    }
}

/// Where pictures are kept for whoever looks at a test run: `WALKEEP_TEST_ARTIFACTS`, or beside the tests' programs.
fn artifacts() -> PathBuf {
    let beside = || {
        let test = std::env::current_exe().expect("a test knows its own path");
        test.ancestors().nth(3).expect("a test lies in target/PROFILE/deps").join("artifacts/page")
    };
    std::env::var_os("WALKEEP_TEST_ARTIFACTS").map_or_else(beside, PathBuf::from)
}

/// Base64.
fn decoded(text: &str) -> Vec<u8> {
    let digit = |letter: u8| match letter {
        b'A'..=b'Z' => u32::from(letter - b'A'),
        b'a'..=b'z' => u32::from(letter - b'a') + 26,
        b'0'..=b'9' => u32::from(letter - b'0') + 52,
        b'+' => 62,
        _ => 63,
    };
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    for four in text.trim_end_matches('=').as_bytes().chunks(4) {
        let bits = four.iter().fold(0, |bits, letter| bits << 6 | digit(*letter)) << (6 * (4 - four.len()));
        bytes.extend_from_slice(&bits.to_be_bytes()[1..four.len()]);
    }
    bytes
}
