//! A server that answers S3 requests as a test dictates, and a proxy that loses answers.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use walkeep_store::s3::{Credentials, Secret, Timeouts};
use walkeep_store::{S3Options, S3Store};

/// One request, as far as tests look at it.
#[derive(Debug, Clone)]
pub struct Request {
    pub method: String,
    pub path: String,
    pub headers: HashMap<String, String>,
    pub body: Vec<u8>,
}

/// What to answer.
#[derive(Debug, Clone)]
pub struct Reply {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    /// Sends only so many bytes of the body it announced, then closes the connection.
    cut: Option<usize>,
    /// Announces no length; the end of the connection is the end of the body.
    unmeasured: bool,
}

impl Reply {
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self { status, headers: Vec::new(), body: body.into(), cut: None, unmeasured: false }
    }

    /// An error as S3 words it.
    pub fn error(status: u16, code: &str) -> Self {
        let xml = format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code><Message>because</Message><RequestId>R1</RequestId></Error>"
        );
        Self::new(status, xml).header("content-type", "application/xml")
    }

    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub fn cut(mut self, after: usize) -> Self {
        self.cut = Some(after);
        self
    }

    /// Never answered.
    pub fn hang() -> Self {
        Self::new(0, "")
    }
}

/// A server; stops with its runtime.
pub struct Stub {
    port: u16,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl Stub {
    /// Answers the n-th request (from 1) by `answer(n, request)`.
    pub async fn start(answer: impl Fn(usize, &Request) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (seen, answer) = (requests.clone(), Arc::new(answer));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (seen, answer) = (seen.clone(), answer.clone());
                tokio::spawn(async move { serve(stream, &seen, &*answer).await });
            }
        });
        Self { port, requests }
    }

    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }

    pub fn options(&self) -> S3Options {
        options(self.port)
    }

    pub async fn store(&self) -> S3Store {
        S3Store::open(self.options()).await.unwrap()
    }
}

/// Options for a server on this machine, patient for a few seconds only.
pub fn options(port: u16) -> S3Options {
    let seconds = std::time::Duration::from_secs;
    S3Options {
        endpoint: Some(format!("http://127.0.0.1:{port}")),
        credentials: Credentials::Static { access_key: "key".to_owned(), secret_key: Secret::new("sentinel-secret"), session_token: None },
        timeouts: Timeouts { connect: seconds(1), attempt: seconds(2), idle: seconds(1), operation: seconds(30) },
        attempts: 3,
        ..S3Options::new("bucket")
    }
}

async fn serve(mut stream: TcpStream, seen: &Mutex<Vec<Request>>, answer: &(dyn Fn(usize, &Request) -> Reply + Send + Sync)) {
    let mut buffer = Vec::new();
    while let Some(request) = read_request(&mut stream, &mut buffer).await {
        let n = {
            let mut seen = seen.lock().unwrap();
            seen.push(request.clone());
            seen.len()
        };
        let reply = answer(n, &request);
        if reply.status == 0 {
            std::future::pending::<()>().await;
        }
        let length = if request.method == "HEAD" { 0 } else { reply.body.len() };
        let mut head = format!("HTTP/1.1 {} Whatever\r\n", reply.status);
        if !reply.unmeasured {
            head += &format!("content-length: {length}\r\n");
        }
        for (name, value) in &reply.headers {
            head += &format!("{name}: {value}\r\n");
        }
        let body = &reply.body[..reply.cut.unwrap_or(length).min(length)];
        let sent = stream.write_all(&[head.as_bytes(), b"\r\n", body].concat()).await;
        if sent.is_err() || reply.cut.is_some() || reply.unmeasured {
            return;
        }
    }
}

async fn read_request(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<Request> {
    let end = loop {
        if let Some(at) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
            break at + 4;
        }
        if stream.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    };
    let head = String::from_utf8(buffer[..end].to_vec()).ok()?;
    let mut lines = head.lines();
    let mut first = lines.next()?.split(' ');
    let (method, path) = (first.next()?.to_owned(), first.next()?.to_owned());
    let header = |line: &str| line.split_once(':').map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()));
    let headers: HashMap<_, _> = lines.filter_map(header).collect();
    let length = headers.get("content-length").map_or(0, |length| length.parse().unwrap());
    while buffer.len() < end + length {
        if stream.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    }
    let body = buffer[end..end + length].to_vec();
    buffer.drain(..end + length);
    Some(Request { method, path, headers, body })
}

/// A way to a real server on which answers get lost: the request goes through, the connection ends before its answer does.
pub struct LossyProxy {
    pub port: u16,
    lose: Arc<AtomicUsize>,
    accepted: Arc<AtomicUsize>,
}

impl LossyProxy {
    pub async fn start(target: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let lose = Arc::new(AtomicUsize::new(0));
        let left = lose.clone();
        let accepted = Arc::new(AtomicUsize::new(0));
        let counter = accepted.clone();
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                counter.fetch_add(1, Ordering::SeqCst);
                let mut far = TcpStream::connect(("127.0.0.1", target)).await.unwrap();
                let left = left.clone();
                tokio::spawn(async move {
                    if left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_err() {
                        return copy_bidirectional(&mut near, &mut far).await.map(|_| ());
                    }
                    let (mut near_read, _near_write) = near.split();
                    let (mut far_read, mut far_write) = far.split();
                    tokio::select! {
                        sent = tokio::io::copy(&mut near_read, &mut far_write) => sent.map(|_| ()),
                        answered = far_read.read_u8() => answered.map(|_| ()),
                    }
                });
            }
        });
        Self { port, lose, accepted }
    }

    /// The answers on the next `n` connections get lost.
    pub fn lose(&self, n: usize) {
        self.lose.store(n, Ordering::SeqCst);
    }

    /// Connections so far.
    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }

    pub fn all_lost(&self) -> bool {
        self.lose.load(Ordering::SeqCst) == 0
    }
}
