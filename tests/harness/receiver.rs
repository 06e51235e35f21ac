//! Who is told when something is wrong: a web server that keeps what it is sent, and a real mail server.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::ports::Port;
use crate::process::Process;
use crate::{S3Server, Scratch, cache, try_wait_for, user};

/// A request that came.
#[derive(Debug, Clone)]
pub struct Received {
    /// `POST`, say.
    pub method: String,
    /// As it was asked for, with its query.
    pub path: String,
    /// The body.
    pub body: String,
}

impl Received {
    /// `text` of a body that is JSON, or the body.
    pub fn text(&self) -> String {
        let json: serde_json::Value = serde_json::from_str(&self.body).unwrap_or_default();
        json["text"].as_str().map_or_else(|| self.body.clone(), str::to_owned)
    }
}

/// A web server on loopback that answers every request with one status and keeps it.
#[derive(Debug)]
pub struct Receiver {
    port: u16,
    status: Arc<AtomicU16>,
    received: Arc<Mutex<Vec<Received>>>,
}

impl Receiver {
    /// Begins to listen; it answers 200.
    #[track_caller]
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("its address").port();
        let (status, received) = (Arc::new(AtomicU16::new(200)), Arc::new(Mutex::new(Vec::new())));
        let (answers, keeps) = (status.clone(), received.clone());
        // Until the process ends: it is asked for nothing more once the test is over.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if let Ok(request) = serve(stream, answers.load(Ordering::SeqCst)) {
                    keeps.lock().unwrap_or_else(PoisonError::into_inner).push(request);
                }
            }
        });
        Self { port, status, received }
    }

    /// A URL that leads here.
    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    /// What it answers from now on.
    pub fn answer(&self, status: u16) {
        self.status.store(status, Ordering::SeqCst);
    }

    /// What came so far, with this method.
    pub fn received(&self, method: &str) -> Vec<Received> {
        let all = self.received.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().filter(|request| request.method == method).cloned().collect()
    }
}

fn serve(mut stream: TcpStream, status: u16) -> Result<Received> {
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut request = Vec::new();
    let head = loop {
        let mut piece = [0; 4096];
        let read = stream.read(&mut piece)?;
        anyhow::ensure!(read > 0, "the request ended early");
        request.extend_from_slice(&piece[..read]);
        if let Some(end) = request.windows(4).position(|four| four == b"\r\n\r\n") {
            break end + 4;
        }
    };
    let text = String::from_utf8_lossy(&request[..head]).into_owned();
    let length = text.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length:")?.trim().parse().ok()).unwrap_or(0);
    while request.len() < head + length {
        let mut piece = [0; 4096];
        let read = stream.read(&mut piece)?;
        anyhow::ensure!(read > 0, "the body ended early");
        request.extend_from_slice(&piece[..read]);
    }
    stream.write_all(format!("HTTP/1.1 {status} Told\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").as_bytes())?;
    let mut words = text.split(' ').map(str::to_owned);
    let (method, path) = (words.next().context("a method")?, words.next().context("a path")?);
    Ok(Received { method, path, body: String::from_utf8_lossy(&request[head..]).into_owned() })
}

/// The Python that has a mail server.
#[track_caller]
fn python() -> PathBuf {
    let folder = std::fs::read_dir(cache().join("mail")).expect("run tests/setup.sh: it fetches a mail server").flatten().next();
    folder.expect("run tests/setup.sh").path().join("bin/python")
}

/// PORT CERTIFICATE KEY starttls|always USER PASSWORD
const WITH_LOGIN: &str = r#"
import ssl, sys, threading
from aiosmtpd.controller import Controller
from aiosmtpd.handlers import Debugging
from aiosmtpd.smtp import AuthResult

port, certificate, key, how, user, password = sys.argv[1:]
tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
tls.load_cert_chain(certificate, key)

def authenticate(server, session, envelope, mechanism, data):
    # Not handled: the server answers by itself.
    return AuthResult(success=(data.login, data.password) == (user.encode(), password.encode()), handled=False)

options = {"ssl_context": tls, "auth_require_tls": False} if how == "always" else {"tls_context": tls, "require_starttls": True}
Controller(Debugging(sys.stdout), hostname="0.0.0.0", port=int(port), auth_required=True, authenticator=authenticate, **options).start()
threading.Event().wait()
"#;

/// A real mail server (aiosmtpd) on loopback that prints what it is given. Ended when dropped.
#[derive(Debug)]
pub struct MailServer {
    process: Process,
    port: Port,
    _scratch: Scratch,
}

impl MailServer {
    /// Starts it and waits until it listens.
    #[track_caller]
    pub fn start() -> Self {
        let (port, scratch) = (Port::free(), Scratch::new());
        let mut command = user::command(python());
        command.env("PYTHONUNBUFFERED", "1").args(["-m", "aiosmtpd", "-n", "-l", &format!("127.0.0.1:{}", port.number())]);
        Self::run(command, port, scratch)
    }

    /// One that takes mail by TLS only, from who logs in as `user` with `password`: by STARTTLS, or TLS from the beginning (`always`). It shows the
    /// certificate of [`S3Server`], for this host's name too.
    #[track_caller]
    pub fn with_login(always: bool, user: &str, password: &str) -> Self {
        let (port, scratch) = (Port::free(), Scratch::new());
        let script = scratch.write("server.py", WITH_LOGIN, 0o644);
        let (certificate, key) = S3Server::get().certificate();
        let mut command = user::command(python());
        command.env("PYTHONUNBUFFERED", "1").arg(script).arg(port.number().to_string()).args([certificate, key]);
        command.args([if always { "always" } else { "starttls" }, user, password]);
        Self::run(command, port, scratch)
    }

    #[track_caller]
    fn run(command: Command, port: Port, scratch: Scratch) -> Self {
        let process = Process::start(command, &scratch.join("mail.log")).expect("start the mail server");
        let listens = try_wait_for(Duration::from_secs(30), || TcpStream::connect(("127.0.0.1", port.number())).ok());
        assert!(listens.is_some(), "the mail server does not listen:\n{}", process.log());
        Self { process, port, _scratch: scratch }
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// The mails it was given, as it prints them.
    pub fn printed(&self) -> String {
        self.process.log()
    }
}
