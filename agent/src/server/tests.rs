use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixStream as BlockingStream;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use tempfile::TempDir;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use walkeep_protocol::{CallError, call};

use super::*;

/// Says back what it was asked; waits, and notices being dropped, where the file is called `slow`.
#[derive(Default)]
struct Echo {
    begun: Notify,
    release: Notify,
    finished: AtomicUsize,
    dropped: AtomicBool,
}

struct NoticeDrop<'a>(&'a AtomicBool);

impl Drop for NoticeDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

impl Echo {
    async fn wait_if_slow(&self, slow: bool) {
        if slow {
            let notice = NoticeDrop(&self.dropped);
            self.begun.notify_one();
            self.release.notified().await;
            std::mem::forget(notice);
        }
        self.finished.fetch_add(1, Ordering::SeqCst);
    }
}

#[async_trait]
impl Handler for Echo {
    async fn archive(&self, path: PathBuf) -> Response {
        assert_ne!(path, Path::new("/panic"), "asked to panic");
        self.wait_if_slow(path.ends_with("slow")).await;
        Response::Done
    }

    fn status(&self) -> Response {
        Response::Told { text: "well".into() }
    }

    async fn fetch(&self, name: String, destination: PathBuf, standby: bool) -> Response {
        self.wait_if_slow(name == "slow").await;
        Response::Absent { message: format!("{name} {} {standby}", destination.display()) }
    }
}

fn private_directory() -> TempDir {
    tempfile::Builder::new().permissions(fs::Permissions::from_mode(0o700)).tempdir().unwrap()
}

struct Server {
    directory: TempDir,
    echo: Arc<Echo>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Server {
    fn start(limits: Limits) -> Self {
        let directory = private_directory();
        let listener = Listener::bind(&directory.path().join("s")).unwrap();
        let (echo, stop) = (Arc::new(Echo::default()), CancellationToken::new());
        let handler: Arc<dyn Handler> = Arc::clone(&echo) as _;
        let task = tokio::spawn(serve(listener, "main", handler, limits, stop.clone()));
        Self { directory, echo, stop, task }
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("s")
    }

    fn ask(&self, cluster: Option<&str>, verb: Verb) -> JoinHandle<Result<Response, CallError>> {
        let (socket, cluster) = (self.socket(), cluster.map(Into::into));
        tokio::task::spawn_blocking(move || call(&socket, &Request { cluster, verb }, Instant::now() + Duration::from_secs(20)))
    }

    /// The answer to bytes that no shim would send.
    async fn say(&self, bytes: &[u8]) -> Option<Response> {
        let (socket, bytes) = (self.socket(), bytes.to_vec());
        let spoken = tokio::task::spawn_blocking(move || {
            let mut stream = BlockingStream::connect(socket).unwrap();
            stream.write_all(&bytes).unwrap();
            let mut answer = Vec::new();
            // What the server did not care to read resets the connection, after the answer.
            let _ = stream.read_to_end(&mut answer);
            answer.get(frame::HEADER..).map(|body| Response::decode(body).unwrap())
        });
        spoken.await.unwrap()
    }
}

fn archive(path: &str) -> Verb {
    Verb::Archive { path: path.into() }
}

fn fetch(name: &str) -> Verb {
    Verb::Fetch { name: name.into(), destination: "/data/pg_wal/RECOVERYXLOG".into(), standby: true }
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn every_verb_reaches_the_handler() {
    let server = Server::start(Limits::default());
    assert_eq!(server.ask(None, Verb::Ping).await.unwrap().unwrap(), Response::Done);
    assert_eq!(server.ask(Some("main"), archive("/a")).await.unwrap().unwrap(), Response::Done);
    let message = "00000002.history /data/pg_wal/RECOVERYXLOG true".into();
    assert_eq!(server.ask(None, fetch("00000002.history")).await.unwrap().unwrap(), Response::Absent { message });
    let other = server.ask(Some("other"), archive("/a")).await.unwrap().unwrap();
    assert!(matches!(other, Response::Failed { ref message, .. } if message.contains("serves cluster main, not other")), "{other:?}");
    assert_eq!(server.echo.finished.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn bad_speakers_get_an_answer_and_do_no_harm() {
    let server = Server::start(Limits { transfer: Duration::from_millis(200), ..Limits::default() });
    for bytes in
        [&b"GET / HTTP/1.1\r\n\r\n"[..], b"WKP\x07\0\0\0\0", b"WKP\x01\xFF\xFF\xFF\xFF", b"WKP\x01\0\0\0\x01\x63", b"WKP\x01\0\0\0\0"]
    {
        let answer = server.say(bytes).await;
        assert!(matches!(answer, Some(Response::Failed { .. })), "{bytes:?}: {answer:?}");
    }
    let half = server.say(b"WKP\x01\0\0\0\x09\x02").await;
    assert!(matches!(half, Some(Response::TryLater { ref message }) if message.contains("in time")), "{half:?}");
    assert!(matches!(server.ask(None, archive("/panic")).await.unwrap(), Err(CallError::HungUp)));
    assert_eq!(server.ask(None, Verb::Ping).await.unwrap().unwrap(), Response::Done);
}

#[tokio::test]
async fn one_connection_too_many_is_told_so() {
    let server = Server::start(Limits { connections: 1, ..Limits::default() });
    let slow = server.ask(None, archive("/slow"));
    server.echo.begun.notified().await;
    let busy = server.ask(None, archive("/quick")).await.unwrap().unwrap();
    assert_eq!(busy, Response::TryLater { message: "the agent is busy with 1 requests".into() });
    server.echo.release.notify_one();
    assert_eq!(slow.await.unwrap().unwrap(), Response::Done);
}

#[tokio::test]
async fn work_has_a_deadline() {
    let server = Server::start(Limits { request: Duration::from_millis(50), ..Limits::default() });
    let late = server.ask(None, archive("/slow")).await.unwrap().unwrap();
    assert!(matches!(late, Response::TryLater { ref message } if message.contains("gave up")), "{late:?}");
    assert!(server.echo.dropped.load(Ordering::SeqCst));
}

#[tokio::test]
async fn a_shim_that_leaves_takes_its_fetch_along_but_not_its_archive() {
    let server = Server::start(Limits::default());
    let leave_during = async |verb| {
        let mut stream = BlockingStream::connect(server.socket()).unwrap();
        stream.write_all(&Request { cluster: None, verb }.encode().unwrap()).unwrap();
        server.echo.begun.notified().await;
    };
    leave_during(archive("/slow")).await;
    server.echo.release.notify_one();
    until("the archive finishes", || server.echo.finished.load(Ordering::SeqCst) == 1).await;
    assert!(!server.echo.dropped.load(Ordering::SeqCst));
    leave_during(fetch("slow")).await;
    until("the fetch is dropped", || server.echo.dropped.load(Ordering::SeqCst)).await;
    assert_eq!(server.echo.finished.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn stopping_finishes_what_is_under_way() {
    let server = Server::start(Limits::default());
    let slow = server.ask(None, archive("/slow"));
    server.echo.begun.notified().await;
    server.stop.cancel();
    until("the socket is gone", || !server.socket().exists()).await;
    assert!(matches!(server.ask(None, Verb::Ping).await.unwrap(), Err(CallError::NobodyListens(_))));
    assert!(matches!(Listener::bind(&server.socket()), Err(BindError::Taken { .. })), "the lock is kept while requests finish");
    server.echo.release.notify_one();
    assert_eq!(slow.await.unwrap().unwrap(), Response::Done);
    server.task.await.unwrap();
    Listener::bind(&server.directory.path().join("s")).unwrap();
}

#[tokio::test]
async fn stopping_does_not_wait_for_ever() {
    let server = Server::start(Limits { drain: Duration::from_millis(50), ..Limits::default() });
    let slow = server.ask(None, archive("/slow"));
    server.echo.begun.notified().await;
    server.stop.cancel();
    assert_eq!(slow.await.unwrap().unwrap(), stopping());
    server.task.await.unwrap();
}

#[tokio::test]
async fn a_second_agent_is_told_of_the_first() {
    let server = Server::start(Limits::default());
    let error = Listener::bind(&server.socket()).unwrap_err().to_string();
    assert!(error.contains(&format!("another agent (process {})", std::process::id())), "{error}");
    assert_eq!(server.ask(None, Verb::Ping).await.unwrap().unwrap(), Response::Done, "the first one's socket is untouched");
}

#[tokio::test]
async fn only_a_stale_socket_is_removed() {
    let directory = private_directory();
    let path = directory.path().join("s");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    drop(Listener::bind(&path).expect("a stale socket is replaced"));
    assert!(!path.exists());

    let alive = std::os::unix::net::UnixListener::bind(&path).unwrap();
    assert!(matches!(Listener::bind(&path), Err(BindError::Taken { .. })));
    drop(alive);
    fs::remove_file(&path).unwrap();

    fs::write(&path, "a file").unwrap();
    assert!(matches!(Listener::bind(&path), Err(BindError::NotASocket(_))));
    assert_eq!(fs::read(&path).unwrap(), b"a file");
    fs::remove_file(&path).unwrap();

    symlink(directory.path().join("elsewhere"), &path).unwrap();
    assert!(matches!(Listener::bind(&path), Err(BindError::NotASocket(_))));
}

#[tokio::test]
async fn directory_and_socket_are_the_users_alone() {
    let directory = tempfile::tempdir().unwrap();
    let run = directory.path().join("run");
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    let listener = Listener::bind(&run.join("s")).unwrap();
    assert_eq!((mode(&run), mode(&run.join("s")), mode(&run.join("s.lock"))), (0o700, 0o600, 0o600));
    drop(listener);
    fs::set_permissions(&run, fs::Permissions::from_mode(0o770)).unwrap();
    let error = Listener::bind(&run.join("s")).unwrap_err().to_string();
    assert!(error.contains("has mode 770") && error.contains("mode 700 is best"), "{error}");
    assert!(matches!(Listener::bind(Path::new("s")), Err(BindError::NotAbsolute(_))));
    assert!(matches!(Listener::bind(&directory.path().join("a/b/s")), Err(BindError::Io { .. })), "only one directory is made");
}

#[tokio::test]
async fn another_user_is_refused() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: needs root to become another user");
        return;
    }
    let server = Server::start(Limits::default());
    let socket = server.socket();
    let as_nobody = move |socket: &Path| {
        // Refused before a request is read, so none is sent.
        let script = "import socket,sys\ns=socket.socket(socket.AF_UNIX)\ns.connect(sys.argv[1])\nsys.stdout.buffer.write(s.recv(65536))";
        let output = Command::new("runuser").args(["-u", "nobody", "--", "python3", "-c", script]).arg(socket).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
    };
    let said = tokio::task::spawn_blocking(move || {
        let kept_out = as_nobody(&socket);
        // As if an administrator had opened everything: the peer's credentials still tell.
        fs::set_permissions(socket.parent().unwrap(), fs::Permissions::from_mode(0o777)).unwrap();
        fs::set_permissions(&socket, fs::Permissions::from_mode(0o777)).unwrap();
        (kept_out, as_nobody(&socket))
    });
    let (kept_out, refused) = said.await.unwrap();
    assert!(kept_out.contains("Permission denied"), "{kept_out}");
    assert!(refused.contains("serves nobody else"), "{refused}");
    assert_eq!(server.echo.finished.load(Ordering::SeqCst), 0);
}
