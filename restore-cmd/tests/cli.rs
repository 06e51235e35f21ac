//! The program as PostgreSQL runs it, against agents that answer well, badly and not at all, with and without a fetch service.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use walkeep_protocol::{Request, Response, Verb, frame};

const SEGMENT: &str = "000000010000000000000003";

/// A data directory and a socket.
struct Place(TempDir);

/// How the shim ended.
#[derive(Debug)]
struct Ended {
    code: Option<i32>,
    stderr: String,
    stdout: String,
    took: Duration,
}

impl Place {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir_all(directory.path().join("data/pg_wal")).unwrap();
        Self(directory)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn socket(&self) -> PathBuf {
        self.path("s")
    }

    fn data(&self) -> PathBuf {
        self.path("data").canonicalize().unwrap()
    }

    /// A program that is the fetch service: this shell script.
    fn walkeep(&self, script: &str) {
        let path = self.path("walkeep");
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_walkeep-restore-cmd"));
        command.args(arguments).current_dir(self.data()).stdin(Stdio::null()).env_clear();
        command.env("WALKEEP_SOCKET", self.socket()).env("WALKEEP_BIN", self.path("walkeep")).env("PATH", "/usr/bin:/bin");
        command
    }

    fn run(&self, arguments: &[&str]) -> Ended {
        end(&mut self.command(arguments))
    }

    fn fetch(&self, name: &str, timeout: &str) -> Ended {
        self.run(&["--timeout", timeout, name, "pg_wal/RECOVERYXLOG"])
    }

    /// An agent that answers one connection after another so, the last answer for ever; counts them.
    fn agent(&self, answers: Vec<Answer>) -> Arc<AtomicUsize> {
        serve(&self.socket(), answers)
    }
}

/// What an agent does with a connection.
#[derive(Clone)]
enum Answer {
    Response(Response),
    Bytes(Vec<u8>),
    HangUp,
    Nothing,
}

fn serve(socket: &Path, answers: Vec<Answer>) -> Arc<AtomicUsize> {
    let listener = UnixListener::bind(socket).unwrap();
    let count = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&count);
    thread::spawn(move || {
        for connection in listener.incoming() {
            let mut stream = connection.unwrap();
            let at = counter.fetch_add(1, Ordering::SeqCst);
            read_request(&mut stream);
            match answers.get(at).or(answers.last()).unwrap() {
                Answer::Response(response) => stream.write_all(&response.encode()).unwrap(),
                Answer::Bytes(bytes) => stream.write_all(bytes).unwrap(),
                Answer::HangUp => {}
                Answer::Nothing => drop(stream.read_to_end(&mut Vec::new())),
            }
        }
    });
    count
}

fn read_request(stream: &mut UnixStream) -> Request {
    let mut header = [0; frame::HEADER];
    stream.read_exact(&mut header).unwrap();
    let mut body = vec![0; frame::body_length(&header).unwrap()];
    stream.read_exact(&mut body).unwrap();
    Request::decode(&body).unwrap()
}

fn end(command: &mut Command) -> Ended {
    let begun = Instant::now();
    let output = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ended { code: output.status.code(), stderr: text(&output.stderr), stdout: text(&output.stdout), took: begun.elapsed() }
}

fn absent() -> Answer {
    Answer::Response(Response::Absent { message: "nowhere".into() })
}

fn done() -> Answer {
    Answer::Response(Response::Done)
}

fn try_later() -> Answer {
    Answer::Response(Response::TryLater { message: "the store does not answer".into() })
}

fn failed() -> Answer {
    Answer::Response(Response::Failed { message: "cannot decrypt".into(), hint: Some("give the key".into()), permanent: false })
}

/// Everything that settles nothing.
fn unsettled() -> Vec<Answer> {
    let half = Response::Absent { message: "half".into() }.encode();
    let mut answers = vec![try_later(), failed(), Answer::HangUp, Answer::Nothing];
    answers.extend((1..half.len()).map(|length| Answer::Bytes(half[..length].to_vec())));
    answers.extend([b"WKP\x02\0\0\0\x01\x01".to_vec(), b"HTTP/1.1 404 Not Found\r\n".to_vec(), vec![0; 8]].map(Answer::Bytes));
    answers
}

#[test]
fn done_is_zero_and_absent_is_one() {
    let place = Place::new();
    let listener = UnixListener::bind(place.socket()).unwrap();
    let destination = place.data().join("pg_wal/RECOVERYXLOG");
    let expected = Verb::Fetch { name: SEGMENT.into(), destination, standby: false };
    let agent = thread::spawn(move || {
        let mut stream = listener.accept().unwrap().0;
        assert_eq!(read_request(&mut stream).verb, expected);
        stream.write_all(&Response::Done.encode()).unwrap();
    });
    let ended = place.fetch(SEGMENT, "20s");
    assert_eq!((ended.code, ended.stderr.as_str(), ended.stdout.as_str()), (Some(0), "", ""));
    agent.join().unwrap();

    let place = Place::new();
    let asked = place.agent(vec![absent()]);
    let ended = place.fetch("00000002.history", "20s");
    assert_eq!(ended.code, Some(1));
    assert_eq!(ended.stderr, "walkeep-restore-cmd: 00000002.history is not in the archive: nowhere\n");
    assert_eq!(asked.load(Ordering::SeqCst), 1);
}

#[test]
fn whatever_settles_nothing_stops_postgresql_at_the_deadline() {
    let runs: Vec<_> = unsettled()
        .into_iter()
        .map(|answer| {
            thread::spawn(move || {
                let place = Place::new();
                place.agent(vec![answer]);
                place.fetch(SEGMENT, "400ms")
            })
        })
        .collect();
    for run in runs {
        let ended = run.join().unwrap();
        assert_eq!(ended.code, Some(200), "{ended:?}");
        assert!(ended.took >= Duration::from_millis(400) && ended.took < Duration::from_secs(10), "{ended:?}");
        assert!(ended.stderr.contains("could not fetch 000000010000000000000003: ") && ended.stderr.contains("HINT:  "), "{ended:?}");
    }
}

fn refused() -> Answer {
    let hint = Some("correct restore_command".into());
    Answer::Response(Response::Failed { message: "another cluster".into(), hint, permanent: true })
}

#[test]
fn a_refusal_for_good_ends_at_once() {
    let place = Place::new();
    let asked = place.agent(vec![refused()]);
    let ended = place.fetch(SEGMENT, "5m");
    assert_eq!((ended.code, asked.load(Ordering::SeqCst)), (Some(204), 1), "{ended:?}");
    let told = format!("walkeep-restore-cmd: could not fetch {SEGMENT}: another cluster\nHINT:  correct restore_command\n");
    assert_eq!(ended.stderr, told);

    let place = Place::new();
    fs::write(place.data().join("standby.signal"), "").unwrap();
    let asked = place.agent(vec![refused()]);
    assert_eq!((place.fetch(SEGMENT, "5m").code, asked.load(Ordering::SeqCst)), (Some(1), 1), "a standby goes on to stream");
    assert_eq!(place.fetch("00000002.history", "5m").code, Some(204));
}

/// An agent that cannot decrypt sends to the service, which is asked even though an agent listens; that nobody can is never absence.
#[test]
fn an_agent_that_sends_elsewhere_is_followed() {
    let service = |place: &Place| place.socket().with_file_name(format!("{}.fetch", place.socket().file_name().unwrap().display()));
    let elsewhere = || Answer::Response(Response::Elsewhere { message: "no identity here".into() });
    let place = Place::new();
    place.agent(vec![elsewhere()]);
    let asked = serve(&service(&place), vec![done()]);
    assert_eq!((place.fetch(SEGMENT, "20s").code, asked.load(Ordering::SeqCst)), (Some(0), 1));

    let place = Place::new();
    place.agent(vec![elsewhere()]);
    place.walkeep("echo 'error: no such key' >&2; exit 2");
    let ended = place.fetch(SEGMENT, "5m");
    assert_eq!(ended.code, Some(201), "{ended:?}");
    assert!(ended.stderr.contains("no identity here, and ") && ended.stderr.contains("error: no such key"), "{ended:?}");

    let place = Place::new();
    place.agent(vec![elsewhere()]);
    serve(&service(&place), vec![elsewhere()]);
    assert_eq!(place.fetch(SEGMENT, "5m").code, Some(204));
}

#[test]
fn what_it_waits_for_is_told_while_it_waits() {
    let hint = "HINT:  give the key";
    told_at_once(failed(), &format!("walkeep-restore-cmd: fetching {SEGMENT}: cannot decrypt; trying again"), hint);
    let silent = format!("walkeep-restore-cmd: fetching {SEGMENT}: still waiting for an answer (socket ");
    told_at_once(Answer::Nothing, &silent, "HINT:  The log of the agent");
}

/// The first two lines, of a shim that goes on.
fn told_at_once(answer: Answer, line: &str, hint: &str) {
    let place = Place::new();
    place.agent(vec![answer]);
    let mut shim = place.command(&["--timeout", "5m", SEGMENT, "pg_wal/RECOVERYXLOG"]).stderr(Stdio::piped()).spawn().unwrap();
    let mut told = String::new();
    let mut stderr = shim.stderr.take().unwrap();
    while told.lines().count() < 2 || !told.ends_with('\n') {
        let mut piece = [0; 4096];
        let read = stderr.read(&mut piece).unwrap();
        assert_ne!(read, 0, "it ended: {told}");
        told += &String::from_utf8_lossy(&piece[..read]);
    }
    let lines: Vec<&str> = told.lines().collect();
    assert!(lines.len() == 2 && lines[0].starts_with(line) && lines[1].starts_with(hint), "{told}");
    assert!(shim.try_wait().unwrap().is_none(), "it goes on");
    shim.kill().unwrap();
    shim.wait().unwrap();
}

#[test]
fn a_service_with_a_wrong_configuration_is_not_waited_for() {
    let place = Place::new();
    place.walkeep("echo 'error: no such key' >&2; exit 2");
    let ended = place.fetch(SEGMENT, "5m");
    assert!(ended.code == Some(201) && ended.took < Duration::from_secs(60), "{ended:?}");
    assert!(ended.stderr.contains("error: no such key") && ended.stderr.contains("Correct the configuration"), "{ended:?}");
}

#[test]
fn trouble_that_passes_is_told_and_forgotten() {
    let place = Place::new();
    let asked = place.agent(vec![try_later(), try_later(), failed(), Answer::HangUp, done()]);
    let ended = place.fetch(SEGMENT, "30s");
    assert_eq!((ended.code, asked.load(Ordering::SeqCst)), (Some(0), 5));
    assert_eq!(ended.stderr.matches("the store does not answer; trying again").count(), 1, "told once: {ended:?}");
    assert!(ended.stderr.contains("cannot decrypt; trying again"), "{ended:?}");
}

#[test]
fn an_agent_that_starts_again_is_found() {
    let place = Place::new();
    let socket = place.socket();
    drop(UnixListener::bind(&socket).unwrap());
    let starting = thread::spawn(move || {
        thread::sleep(Duration::from_millis(500));
        fs::remove_file(&socket).unwrap();
        serve(&socket, vec![done()])
    });
    assert_eq!(place.fetch(SEGMENT, "30s").code, Some(0));
    starting.join().unwrap();
}

#[test]
fn a_standby_goes_on_after_trouble_with_a_segment_only() {
    let code = |name: &'static str, files: &'static [&'static str], answers: Vec<Answer>| {
        thread::spawn(move || {
            let place = Place::new();
            for file in files {
                fs::write(place.data().join(file), "").unwrap();
            }
            place.agent(answers);
            place.fetch(name, "300ms").code
        })
    };
    let standby: &[&str] = &["standby.signal"];
    let cases = [
        (code(SEGMENT, standby, vec![try_later()]), 1),
        (code(SEGMENT, standby, vec![Answer::HangUp]), 1),
        (code(SEGMENT, standby, vec![absent()]), 1),
        (code(SEGMENT, standby, vec![done()]), 0),
        (code("00000002.history", standby, vec![failed()]), 200),
        (code("00000002.history", standby, vec![absent()]), 1),
        (code(SEGMENT, &["standby.signal", "promote"], vec![try_later()]), 200),
        (code(SEGMENT, &["recovery.signal"], vec![try_later()]), 200),
    ];
    for (at, (run, expected)) in cases.into_iter().enumerate() {
        assert_eq!(run.join().unwrap(), Some(expected), "case {at}");
    }
}

#[test]
fn a_standby_does_not_wait_long() {
    let place = Place::new();
    fs::write(place.data().join("standby.signal"), "").unwrap();
    place.agent(vec![try_later()]);
    let ended = place.fetch(SEGMENT, "5m");
    assert!(ended.code == Some(1) && ended.took < Duration::from_secs(15), "{ended:?}");
}

#[test]
fn a_promotion_meanwhile_counts() {
    let place = Place::new();
    fs::write(place.data().join("standby.signal"), "").unwrap();
    place.agent(vec![try_later()]);
    let promote = place.data().join("promote");
    let promoting = thread::spawn(move || {
        thread::sleep(Duration::from_millis(300));
        fs::write(promote, "").unwrap();
    });
    assert_eq!(place.fetch(SEGMENT, "1s").code, Some(200));
    promoting.join().unwrap();
}

#[test]
fn nobody_to_ask_and_nothing_to_start_is_told() {
    let place = Place::new();
    let none = place.fetch(SEGMENT, "300ms");
    assert_eq!(none.code, Some(201));
    assert!(none.stderr.contains("walkeep cannot be started: No such file"), "{none:?}");

    place.walkeep("echo 'the repository is configured wrongly' >&2; exit 2");
    let broken = place.fetch(SEGMENT, "300ms");
    assert_eq!(broken.code, Some(201));
    assert!(broken.stderr.contains("fetch-service ended (exit status: 2): the repository is configured wrongly"), "{broken:?}");

    // Long enough for a busy machine to start it and see that it does not answer.
    place.walkeep("exec sleep 5");
    let silent = place.fetch(SEGMENT, "2s");
    assert_eq!(silent.code, Some(201));
    assert!(silent.stderr.contains("was started but does not listen on"), "{silent:?}");
}

#[test]
fn the_fetch_service_is_started_detached_and_asked() {
    let place = Place::new();
    let about = place.path("about");
    // Tells how it was started, and has a listener appear where it was told to listen.
    let script = format!(
        "{{ echo \"$@\"; pwd; ps -o pgid= -p $$; echo $$; echo $SECRET; for fd in 0 1 2; do readlink /proc/$$/fd/$fd; done; }} >{0}.tmp\n\
         mv {0}.tmp {0}\nexec sleep 60",
        about.display()
    );
    place.walkeep(&script);
    let fetch_socket = place.path("s.fetch");
    let seen = about.clone();
    let service = thread::spawn(move || {
        while !seen.exists() {
            thread::sleep(Duration::from_millis(10));
        }
        serve(&fetch_socket, vec![done()])
    });
    let config = place.path("c.toml");
    fs::write(&config, "").unwrap();
    let mut command = place.command(&["--timeout", "20s", "--cluster", "x", "--config", "../c.toml", SEGMENT, "pg_wal/RECOVERYXLOG"]);
    let ended = end(command.env("SECRET", "in the environment"));
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""), "a service that starts is no trouble");
    assert!(ended.took < Duration::from_secs(15), "{ended:?}: the service holds our standard error");
    service.join().unwrap();

    let told = fs::read_to_string(&about).unwrap();
    let lines: Vec<&str> = told.lines().map(str::trim).collect();
    let [arguments, directory, group, pid, secret, stdin, stdout, stderr] = lines.as_slice() else { panic!("{told}") };
    assert!(Command::new("kill").arg(pid).status().unwrap().success(), "it outlives the shim");
    let configured = place.data().join("../c.toml");
    assert_eq!(
        *arguments,
        format!("fetch-service --socket {}.fetch --config {} --cluster x", place.socket().display(), configured.display())
    );
    assert_eq!((*directory, *group, *secret), ("/", *pid, "in the environment"));
    assert_eq!((*stdin, *stderr), ("/dev/null", place.path("s.fetch.log").to_str().unwrap()));
    assert!(stdout.ends_with("about.tmp"), "redirected by the script: {stdout}");
}

#[test]
fn an_agent_comes_before_a_fetch_service() {
    let place = Place::new();
    let service = serve(&place.path("s.fetch"), vec![absent()]);
    let agent = place.agent(vec![done()]);
    assert_eq!(place.fetch(SEGMENT, "20s").code, Some(0));
    assert_eq!((agent.load(Ordering::SeqCst), service.load(Ordering::SeqCst)), (1, 0));
}

#[test]
fn a_socket_without_its_directory_gets_one() {
    let place = Place::new();
    place.walkeep("exit 3");
    let socket = place.path("run/s");
    let ended = end(place.command(&["--timeout", "200ms", SEGMENT, "pg_wal/RECOVERYXLOG"]).env("WALKEEP_SOCKET", &socket));
    assert_eq!(ended.code, Some(201), "{ended:?}");
    assert_eq!(fs::metadata(place.path("run")).unwrap().permissions().mode() & 0o777, 0o700);
    let nowhere = end(place.command(&["--timeout", "200ms", SEGMENT, "p"]).env("WALKEEP_SOCKET", place.path("no/run/s")));
    assert!(nowhere.code == Some(201) && nowhere.stderr.contains("s.fetch.log cannot be created"), "{nowhere:?}");
}

#[test]
fn wrong_usage_stops_postgresql_too() {
    let place = Place::new();
    let missing = place.path("missing.toml");
    for arguments in [&[] as &[&str], &[SEGMENT], &["a", "b", "c"], &["--sock", "x", "a", "b"], &["--timeout", "-1", "a", "b"], &["", "b"]]
    {
        let ended = place.run(arguments);
        assert_eq!(ended.code, Some(202), "{arguments:?}");
        assert!(ended.stderr.contains("HINT:  Usage: walkeep-restore-cmd [OPTIONS] %f %p"), "{ended:?}");
    }
    let unreadable = end(place.command(&["--config", missing.to_str().unwrap(), "a", "b"]).env_remove("WALKEEP_SOCKET"));
    assert!(unreadable.code == Some(202) && unreadable.stderr.contains("missing.toml: No such file"), "{unreadable:?}");
}

#[test]
fn help_and_version_are_zero() {
    let place = Place::new();
    let help = place.run(&["--help"]);
    assert!(help.code == Some(0) && help.stdout.contains("restore_command = 'walkeep-restore-cmd %f %p'"), "{help:?}");
    let version = place.run(&["--version"]);
    assert_eq!((version.code, version.stdout), (Some(0), format!("walkeep-restore-cmd {}\n", env!("CARGO_PKG_VERSION"))));
}

#[test]
fn a_log_that_is_gone_changes_nothing() {
    let place = Place::new();
    place.agent(vec![absent()]);
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let status = place.command(&[SEGMENT, "p"]).stderr(writer).status().unwrap();
    assert_eq!(status.code(), Some(1));
}
