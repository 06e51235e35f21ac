//! A reverse proxy in front of the S3 server that logs every request and injects faults by request.
//!
//! It speaks HTTP/1.1 on a port of 127.0.0.1 and forwards byte for byte, the `Host` header too: signatures are computed for the proxy's
//! address and stay valid, since the server behind checks them against the header it gets. Each request is forwarded on a connection of
//! its own. It does not speak TLS.
//!
//! A [`Fault`] is armed for the requests that a [`When`] describes; of several that match, the first armed acts.

mod archive;
mod serve;
mod stale;
mod wire;

use std::collections::HashMap;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crate::ports::Port;
use archive::Archive;
pub use archive::Thaw;

/// Which requests.
#[derive(Debug, Clone, Default)]
pub struct When {
    method: Option<String>,
    path: Option<String>,
    query: Option<String>,
    skip: u64,
    times: Option<u64>,
    every: Option<u64>,
}

impl When {
    /// Every request.
    pub fn any() -> Self {
        Self::default()
    }

    /// Requests with this method.
    pub fn method(method: &str) -> Self {
        Self { method: Some(method.to_owned()), ..Self::default() }
    }

    /// PUTs.
    pub fn put() -> Self {
        Self::method("PUT")
    }

    /// GETs, listings too.
    pub fn get() -> Self {
        Self::method("GET")
    }

    /// Listings (version 2).
    pub fn list() -> Self {
        Self::get().query("list-type=2")
    }

    /// Only where the decoded path (`/bucket/key`) contains this.
    pub fn path(mut self, part: &str) -> Self {
        self.path = Some(part.to_owned());
        self
    }

    /// Only where the query, as sent, contains this.
    pub fn query(mut self, part: &str) -> Self {
        self.query = Some(part.to_owned());
        self
    }

    /// Lets the first `count` of them pass.
    pub fn skip(mut self, count: u64) -> Self {
        self.skip = count;
        self
    }

    /// Only `count` of them; what comes later passes.
    pub fn times(mut self, count: u64) -> Self {
        self.times = Some(count);
        self
    }

    /// Only the next one.
    pub fn once(self) -> Self {
        self.times(1)
    }

    /// Only each `count`th of them.
    pub fn every(mut self, count: u64) -> Self {
        self.every = Some(count);
        self
    }

    /// Whether a request is of this kind, the counts aside.
    pub fn describes(&self, request: &Request) -> bool {
        self.method.as_ref().is_none_or(|method| *method == request.method)
            && self.path.as_ref().is_none_or(|part| request.path.contains(part))
            && self.query.as_ref().is_none_or(|part| request.query.contains(part))
    }

    /// Whether the `seen`th request of this kind (from 1) is meant.
    fn meant(&self, seen: u64) -> bool {
        let Some(past) = seen.checked_sub(self.skip).filter(|past| *past > 0) else { return false };
        match self.every {
            Some(every) => past % every == 0 && self.times.is_none_or(|times| past / every <= times),
            None => self.times.is_none_or(|times| past <= times),
        }
    }
}

/// What goes wrong.
#[derive(Debug, Clone, PartialEq)]
pub enum Fault {
    /// This status with S3's error document for this code; the server is not asked.
    Status(u16, &'static str),
    /// Status 200 with S3's error document in the body; the server is not asked.
    ErrorInOk(&'static str),
    /// The connection is closed before the request is forwarded.
    DropRequest,
    /// The request is forwarded and done; the connection is closed instead of an answer.
    DropAnswer,
    /// The request is forwarded and done; its answer comes when the fault is disarmed.
    HoldAnswer,
    /// The answer's head is right, its body ends after so many bytes with the connection.
    CutBody(u64),
    /// The answer's body is shortened to so many bytes and its `Content-Length` says so too: a short object that looks whole.
    ShortBody(u64),
    /// The lowest bit of the answer's byte at this offset is turned over (counted from the end of the body where negative).
    FlipBit(i64),
    /// No answer, until the fault is disarmed; then the request goes on.
    Hang,
    /// The answer's body stops after so many bytes until the fault is disarmed.
    StallBody(u64),
    /// The request is forwarded so much later.
    Delay(Duration),
    /// Both bodies go at so many bytes a second.
    Rate(u64),
    /// The object is put over what is there in spite of `If-None-Match`, as by a server that does not know the condition. (The proxy deletes
    /// what is there first: the header cannot be taken away, it is part of what was signed.)
    IgnoreIfNoneMatch,
    /// The answer to a listing lacks the objects whose key has this text, as one that is behind, and has the others in the wrong order.
    StaleListing(&'static str),
    /// The answer's `ETag` is not the content's MD5.
    StrangeEtag,
}

impl Fault {
    /// 503 SlowDown.
    pub const SLOW_DOWN: Self = Self::Status(503, "SlowDown");
    /// 500 InternalError.
    pub const INTERNAL: Self = Self::Status(500, "InternalError");
    /// 403 AccessDenied.
    pub const ACCESS_DENIED: Self = Self::Status(403, "AccessDenied");
    /// 400 ExpiredToken.
    pub const EXPIRED_TOKEN: Self = Self::Status(400, "ExpiredToken");
    /// 404 NoSuchBucket.
    pub const NO_SUCH_BUCKET: Self = Self::Status(404, "NoSuchBucket");
    /// 404 NoSuchKey.
    pub const NO_SUCH_KEY: Self = Self::Status(404, "NoSuchKey");
    /// 409 ConditionalRequestConflict.
    pub const CONDITIONAL_CONFLICT: Self = Self::Status(409, "ConditionalRequestConflict");
    /// 403 RequestTimeTooSkewed.
    pub const CLOCK_SKEW: Self = Self::Status(403, "RequestTimeTooSkewed");
}

/// A request as it was logged.
#[derive(Debug, Clone)]
pub struct Request {
    /// When its head was read, since the proxy's start.
    pub at: Duration,
    /// `GET`, `PUT`, ...
    pub method: String,
    /// The decoded path, `/bucket/key`.
    pub path: String,
    /// The query as sent, without its `?`.
    pub query: String,
    /// The headers, names in lower case; not `authorization`.
    pub headers: Vec<(String, String)>,
    /// Bytes of the request's body that were read.
    pub sent: u64,
    /// Bytes of the answer's body that were handed on.
    pub received: u64,
    /// The status the client was answered; `None` while or where it got none.
    pub status: Option<u16>,
    /// The fault that acted on it.
    pub fault: Option<Fault>,
}

impl Request {
    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }
}

/// A fault that was armed; hand it to [`FaultProxy::disarm`] or [`FaultProxy::hits`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Armed(u64);

/// The proxy. Closed when dropped.
#[derive(Debug)]
pub struct FaultProxy {
    shared: Arc<Shared>,
    port: Port,
    accepting: Mutex<Option<std::thread::JoinHandle<()>>>,
}

#[derive(Debug)]
struct Shared {
    upstream: SocketAddr,
    started: Instant,
    state: Mutex<State>,
    changed: Condvar,
    next: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    open: bool,
    /// How often it was closed: whoever waited meanwhile may only see that it is open again.
    closed: u64,
    rules: Vec<Rule>,
    log: Vec<Request>,
    archive: Archive,
    connections: HashMap<u64, TcpStream>,
}

#[derive(Debug)]
struct Rule {
    id: u64,
    when: When,
    fault: Fault,
    seen: u64,
    hits: u64,
}

impl FaultProxy {
    /// A proxy for the server on 127.0.0.1 at this port.
    #[track_caller]
    pub fn to(upstream: u16) -> Self {
        let shared = Shared {
            upstream: SocketAddr::from(([127, 0, 0, 1], upstream)),
            started: Instant::now(),
            state: Mutex::default(),
            changed: Condvar::new(),
            next: AtomicU64::new(0),
        };
        let proxy = Self { shared: Arc::new(shared), port: Port::free(), accepting: Mutex::new(None) };
        proxy.open();
        proxy
    }

    /// `127.0.0.1:PORT`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port.number())
    }

    /// `http://127.0.0.1:PORT`, the endpoint to configure.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address())
    }

    /// Arms a fault.
    pub fn arm(&self, when: When, fault: Fault) -> Armed {
        let id = self.shared.next.fetch_add(1, Ordering::Relaxed);
        self.shared.state().rules.push(Rule { id, when, fault, seen: 0, hits: 0 });
        Armed(id)
    }

    /// Disarms one fault; what it held goes on.
    pub fn disarm(&self, armed: Armed) {
        self.shared.state().rules.retain(|rule| rule.id != armed.0);
        self.shared.changed.notify_all();
    }

    /// Disarms every fault; what they held goes on.
    pub fn disarm_all(&self) {
        self.shared.state().rules.clear();
        self.shared.changed.notify_all();
    }

    /// How often a fault acted so far; 0 once it is disarmed.
    pub fn hits(&self, armed: Armed) -> u64 {
        self.shared.state().rules.iter().find(|rule| rule.id == armed.0).map_or(0, |rule| rule.hits)
    }

    /// The requests so far, in the order of their arrival.
    pub fn requests(&self) -> Vec<Request> {
        self.shared.state().log.clone()
    }

    /// How many requests of this kind came so far (the counts in `when` play no part).
    pub fn count(&self, when: &When) -> usize {
        self.shared.state().log.iter().filter(|request| when.describes(request)).count()
    }

    /// Forgets the requests so far. Do this while none is under way.
    pub fn forget(&self) {
        self.shared.state().log.clear();
    }

    /// From now on objects of which the decoded path (`/bucket/key`) contains this lie in this archived class; a copy of one is made in so much time.
    pub fn freeze(&self, part: &str, class: &'static str, takes: Duration) {
        self.shared.state().archive.freeze(part, class, takes);
    }

    /// The copies that were made are there no more.
    pub fn freeze_again(&self) {
        self.shared.state().archive.freeze_again();
    }

    /// What was asked to be thawed, in the order in which it was.
    pub fn thaws(&self) -> Vec<Thaw> {
        self.shared.state().archive.thaws.clone()
    }

    /// Refuses connections and cuts those there are: the server is gone.
    pub fn close(&self) {
        let mut accepting = self.accepting.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let Some(thread) = accepting.take() else { return };
        {
            let mut state = self.shared.state();
            state.open = false;
            state.closed += 1;
            state.connections.drain().for_each(|(_, stream)| drop(stream.shutdown(Shutdown::Both)));
        }
        self.shared.changed.notify_all();
        // Wakes the thread that accepts.
        let _ = TcpStream::connect(("127.0.0.1", self.port.number()));
        let _ = thread.join();
    }

    /// Cuts all connections and forgets what was held, as if the client had died before the server saw any of it; all faults are disarmed.
    #[track_caller]
    pub fn drop_held(&self) {
        self.close();
        self.disarm_all();
        self.open();
    }

    /// Accepts connections again.
    #[track_caller]
    pub fn open(&self) {
        let mut accepting = self.accepting.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if accepting.is_none() {
            // For a moment another test process that looks for a free port may have it, or a child between fork and exec the old socket.
            let bind = || TcpListener::bind(("127.0.0.1", self.port.number())).ok();
            let listener = crate::try_wait_for(Duration::from_secs(10), bind).expect("listen on a port of ours");
            self.shared.state().open = true;
            let shared = Arc::clone(&self.shared);
            *accepting = Some(std::thread::spawn(move || accept(&listener, &shared)));
        }
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.close();
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    while let Ok((client, _)) = listener.accept() {
        let id = shared.next.fetch_add(1, Ordering::Relaxed);
        let mut state = shared.state();
        if !state.open {
            return;
        }
        if let Ok(handle) = client.try_clone() {
            state.connections.insert(id, handle);
        }
        drop(state);
        let shared = Arc::clone(shared);
        std::thread::spawn(move || {
            // A connection that breaks is one of the faults, or the client's wish.
            let _ = serve::connection(&client, &shared);
            let _ = client.shutdown(Shutdown::Both);
            shared.state().connections.remove(&id);
        });
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Logs a request and says which fault acts on it.
    fn admit(&self, mut request: Request) -> (usize, Option<(u64, Fault)>) {
        let mut state = self.state();
        let mut acting = None;
        for rule in state.rules.iter_mut().filter(|rule| rule.when.describes(&request)) {
            rule.seen += 1;
            if acting.is_none() && rule.when.meant(rule.seen) {
                rule.hits += 1;
                acting = Some((rule.id, rule.fault.clone()));
            }
        }
        request.fault = acting.as_ref().map(|(_, fault)| fault.clone());
        state.log.push(request);
        (state.log.len() - 1, acting)
    }

    fn note(&self, entry: usize, change: impl FnOnce(&mut Request)) {
        if let Some(request) = self.state().log.get_mut(entry) {
            change(request);
        }
    }

    /// Waits until the rule is disarmed; false when the proxy was closed meanwhile.
    fn wait_disarmed(&self, rule: u64) -> bool {
        let state = self.state();
        let closed = state.closed;
        let goes_on = |state: &State| state.open && state.closed == closed;
        let held = |state: &mut State| goes_on(state) && state.rules.iter().any(|other| other.id == rule);
        let state = self.changed.wait_while(state, held).unwrap_or_else(std::sync::PoisonError::into_inner);
        goes_on(&state)
    }
}
