//! The program as PostgreSQL runs it, against agents that answer well, badly and not at all.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::ffi::OsStr;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use walkeep_protocol::{Request, Response, Verb, frame};

const SEGMENT: &str = "pg_wal/000000010000000000000003";

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

    fn socket(&self) -> PathBuf {
        self.0.path().join("s")
    }

    fn data(&self) -> PathBuf {
        self.0.path().join("data").canonicalize().unwrap()
    }

    fn command(&self, arguments: &[&OsStr]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_walkeep-archive-cmd"));
        command.args(arguments).current_dir(self.data()).stdin(Stdio::null()).env_clear();
        command
    }

    fn run(&self, arguments: &[&str]) -> Ended {
        let arguments: Vec<&OsStr> = arguments.iter().map(OsStr::new).collect();
        end(self.command(&arguments).env("WALKEEP_SOCKET", self.socket()))
    }

    /// An agent that does this with its only connection.
    fn agent(&self, act: impl FnOnce(UnixStream) + Send + 'static) {
        serve_once(&self.socket(), act);
    }
}

fn serve_once(socket: &Path, act: impl FnOnce(UnixStream) + Send + 'static) {
    let listener = UnixListener::bind(socket).unwrap();
    thread::spawn(move || act(listener.accept().unwrap().0));
}

fn end(command: &mut Command) -> Ended {
    let begun = Instant::now();
    let output = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ended { code: output.status.code(), stderr: text(&output.stderr), stdout: text(&output.stdout), took: begun.elapsed() }
}

fn read_request(stream: &mut UnixStream) -> Request {
    let mut header = [0; frame::HEADER];
    stream.read_exact(&mut header).unwrap();
    let mut body = vec![0; frame::body_length(&header).unwrap()];
    stream.read_exact(&mut body).unwrap();
    Request::decode(&body).unwrap()
}

fn answer(response: Response) -> impl FnOnce(UnixStream) + Send + 'static {
    move |mut stream| {
        read_request(&mut stream);
        stream.write_all(&response.encode()).unwrap();
    }
}

#[test]
fn done_is_zero_and_says_nothing() {
    let place = Place::new();
    let expected = Request { cluster: Some("billing".into()), verb: Verb::Archive { path: place.data().join(SEGMENT) } };
    place.agent(move |mut stream| {
        assert_eq!(read_request(&mut stream), expected);
        stream.write_all(&Response::Done.encode()).unwrap();
    });
    let ended = place.run(&["--cluster", "billing", SEGMENT]);
    assert_eq!((ended.code, ended.stderr.as_str(), ended.stdout.as_str()), (Some(0), "", ""));
}

#[test]
fn a_path_is_bytes_and_links_stay() {
    let place = Place::new();
    let odd = OsStr::from_bytes(b"pg_wal/\xFF\xFE");
    let expected = Verb::Archive { path: place.data().join(odd) };
    place.agent(move |mut stream| {
        assert_eq!(read_request(&mut stream).verb, expected);
        stream.write_all(&Response::Done.encode()).unwrap();
    });
    assert_eq!(end(place.command(&[odd]).env("WALKEEP_SOCKET", place.socket())).code, Some(0));
}

#[test]
fn every_other_answer_is_one_with_its_reason() {
    for (response, expected) in [
        (Response::Absent { message: "not here".into() }, "not here"),
        (Response::TryLater { message: "the agent is stopping".into() }, "the agent is stopping\nHINT:  PostgreSQL keeps the file"),
        (Response::Failed { message: "it is\nno WAL".into(), hint: None, permanent: false }, "it is no WAL\n"),
        (Response::Failed { message: "no".into(), hint: Some("do this".into()), permanent: true }, "no\nHINT:  do this\n"),
    ] {
        let place = Place::new();
        place.agent(answer(response));
        let ended = place.run(&[SEGMENT]);
        assert_eq!(ended.code, Some(1));
        let told = format!("walkeep-archive-cmd: could not archive {SEGMENT}: {expected}");
        assert!(ended.stderr.starts_with(&told), "{ended:?}");
    }
}

#[test]
fn without_an_agent_it_is_one_at_once() {
    let place = Place::new();
    let missing = place.run(&[SEGMENT]);
    drop(UnixListener::bind(place.socket()).unwrap());
    let stale = place.run(&[SEGMENT]);
    for ended in [missing, stale] {
        assert_eq!(ended.code, Some(1));
        assert!(ended.stderr.contains("no agent listens there") && ended.stderr.contains("HINT:  Is the agent running?"), "{ended:?}");
        assert!(ended.took < Duration::from_secs(5), "{ended:?}");
    }
}

#[test]
fn a_hung_agent_costs_no_more_than_the_timeout() {
    let place = Place::new();
    place.agent(|mut stream| drop(stream.read_to_end(&mut Vec::new())));
    let answering = place.run(&["--timeout", "300ms", SEGMENT]);
    fs::remove_file(place.socket()).unwrap();

    // One who never accepts, with a full backlog, so that connecting itself blocks.
    let _listener = UnixListener::bind(place.socket()).unwrap();
    let full: Vec<_> = (0..5000).map(|_| try_connect(&place.socket())).take_while(Option::is_some).collect();
    let connecting = place.run(&["--timeout", "300ms", SEGMENT]);
    drop(full);
    for ended in [answering, connecting] {
        assert_eq!(ended.code, Some(1));
        assert!(ended.stderr.contains("the time ran out while"), "{ended:?}");
        assert!(ended.took >= Duration::from_millis(300) && ended.took < Duration::from_secs(5), "{ended:?}");
    }
}

/// A connection, unless that takes long.
fn try_connect(socket: &Path) -> Option<UnixStream> {
    let (sender, receiver) = std::sync::mpsc::channel();
    let socket = socket.to_owned();
    thread::spawn(move || sender.send(UnixStream::connect(socket)));
    receiver.recv_timeout(Duration::from_millis(500)).ok().and_then(Result::ok)
}

#[test]
fn a_broken_answer_is_one() {
    let whole = Response::Failed { message: "half".into(), hint: None, permanent: false }.encode();
    let mut answers: Vec<Vec<u8>> = (0..whole.len()).map(|length| whole[..length].to_vec()).collect();
    answers.extend([b"HTTP/1.1 200 OK\r\n\r\n".to_vec(), b"WKP\x02\0\0\0\x01\x01".to_vec(), b"WKP\x01\xFF\xFF\xFF\xFF".to_vec()]);
    answers.extend([b"WKP\x01\0\0\0\x01\x09".to_vec(), b"WKP\x01\0\0\0\0".to_vec(), b"WKP\x01\0\0\0\x02\x01\x01".to_vec()]);
    for bytes in answers {
        let place = Place::new();
        let sent = bytes.clone();
        place.agent(move |mut stream| {
            read_request(&mut stream);
            stream.write_all(&sent).unwrap();
        });
        let ended = place.run(&[SEGMENT]);
        assert_eq!(ended.code, Some(1), "{bytes:?}: {ended:?}");
        assert!(ended.stderr.lines().count() == 2, "{ended:?}");
    }
}

#[test]
fn an_agent_that_answers_before_it_reads_is_heard() {
    let place = Place::new();
    place.agent(|mut stream| stream.write_all(&Response::TryLater { message: "busy".into() }.encode()).unwrap());
    let ended = place.run(&[SEGMENT]);
    assert!(ended.code == Some(1) && ended.stderr.contains("busy"), "{ended:?}");
}

#[test]
fn wrong_usage_is_one_with_the_usage() {
    let place = Place::new();
    for arguments in [&[] as &[&str], &["a", "b"], &["--sock", "x", "a"], &["--timeout", "soon", "a"], &["--walkeep", "x", "a"], &[""]] {
        let ended = place.run(arguments);
        assert_eq!(ended.code, Some(1), "{arguments:?}");
        assert!(ended.stderr.contains("HINT:  Usage: walkeep-archive-cmd [OPTIONS] %p"), "{ended:?}");
    }
}

#[test]
fn help_and_version_are_zero() {
    let place = Place::new();
    let help = place.run(&["--help"]);
    assert!(help.code == Some(0) && help.stdout.contains("archive_command = 'walkeep-archive-cmd %p'"), "{help:?}");
    let version = place.run(&["--version"]);
    assert_eq!((version.code, version.stdout), (Some(0), format!("walkeep-archive-cmd {}\n", env!("CARGO_PKG_VERSION"))));
}

#[test]
fn the_socket_comes_from_the_configuration() {
    let place = Place::new();
    let config = place.0.path().join("walkeep.toml");
    fs::write(&config, format!("[cluster.billing]\nsocket = \"{}\"\n", place.socket().display())).unwrap();
    place.agent(answer(Response::Done));
    let ended = end(place.command(&["--config".as_ref(), config.as_ref(), SEGMENT.as_ref()]).env("WALKEEP_CLUSTER", "billing"));
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let wrong = end(place.command(&[SEGMENT.as_ref()]).env("WALKEEP_CONFIG", &config).env("WALKEEP_CLUSTER", "other"));
    assert!(wrong.code == Some(1) && wrong.stderr.contains("walkeep.toml: there is no [cluster.other]"), "{wrong:?}");
    let default = end(place.command(&[SEGMENT.as_ref()]).env("WALKEEP_CLUSTER", "nobody-has-this"));
    assert!(default.stderr.contains("(socket /run/walkeep/nobody-has-this.sock)"), "{default:?}");
}

#[test]
fn sigterm_ends_it_at_once() {
    let place = Place::new();
    let (sender, receiver) = std::sync::mpsc::channel();
    place.agent(move |mut stream| {
        read_request(&mut stream);
        sender.send(()).unwrap();
        let _ = stream.read_to_end(&mut Vec::new());
    });
    let mut child = place.command(&[SEGMENT.as_ref()]).env("WALKEEP_SOCKET", place.socket()).spawn().unwrap();
    receiver.recv_timeout(Duration::from_secs(10)).unwrap();
    let begun = Instant::now();
    assert!(Command::new("kill").arg(child.id().to_string()).status().unwrap().success());
    assert_eq!(child.wait().unwrap().signal(), Some(15));
    assert!(begun.elapsed() < Duration::from_secs(5));
}

#[test]
fn a_log_that_is_gone_changes_nothing() {
    let place = Place::new();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let status = place.command(&[SEGMENT.as_ref()]).env("WALKEEP_SOCKET", place.socket()).stderr(writer).status().unwrap();
    assert_eq!(status.code(), Some(1));
}
