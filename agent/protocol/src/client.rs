//! The blocking client: one call, one answer, never later than its deadline.

use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use crate::fields::DecodeError;
use crate::frame::{self, FrameError, HEADER};
use crate::request::Request;
use crate::response::Response;

/// Why there was no answer.
#[derive(Debug)]
pub enum CallError {
    /// Nobody listens on the socket: it is not there, or was left behind by a process that is gone.
    NobodyListens(io::Error),
    /// The deadline passed.
    TimedOut {
        /// What was being waited for.
        during: &'static str,
    },
    /// The agent went away before it had answered whole: it may or may not have done what was asked.
    HungUp,
    /// The frame of the request or of the answer is wrong.
    Frame(FrameError),
    /// The answer is no message.
    Decode(DecodeError),
    /// Another failure of the socket.
    Socket {
        /// What was being done.
        during: &'static str,
        /// Its cause.
        cause: io::Error,
    },
}

impl CallError {
    fn socket(during: &'static str, cause: io::Error) -> Self {
        match cause.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => Self::TimedOut { during },
            ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => Self::HungUp,
            _ => Self::Socket { during, cause },
        }
    }

    /// What to do about it, where the cause says it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Socket { cause, .. } if cause.kind() == ErrorKind::PermissionDenied => Some(
                "The socket and its directory belong to the agent's user and group, and only that user and root are served: run the agent as \
                 PostgreSQL's user (User= and Group= of its unit), or look who owns the directory.",
            ),
            _ => None,
        }
    }
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NobodyListens(cause) => write!(f, "no agent listens there ({cause})"),
            Self::TimedOut { during } => write!(f, "the time ran out while {during}"),
            Self::HungUp => f.write_str("the agent hung up before it answered"),
            Self::Frame(error) => error.fmt(f),
            Self::Decode(error) => write!(f, "the agent's answer cannot be read: {error}"),
            Self::Socket { during, cause } => write!(f, "{cause} while {during}"),
        }
    }
}

impl std::error::Error for CallError {}

/// Sends `request` to the agent at `socket` and waits for its answer until `deadline`.
pub fn call(socket: &Path, request: &Request, deadline: Instant) -> Result<Response, CallError> {
    let frame = request.encode().map_err(CallError::Frame)?;
    let mut stream = connect(socket, deadline)?;
    match send(&mut stream, &frame, deadline) {
        // An agent that refuses early closes its end: its answer is there to be read all the same.
        Ok(()) | Err(CallError::HungUp) => receive(&mut stream, deadline),
        Err(error) => Err(error),
    }
}

/// Connecting blocks while the agent's backlog is full, and the standard library knows no time limit for that: a thread waits in
/// our place, and is left behind with the process when time is up.
fn connect(socket: &Path, deadline: Instant) -> Result<UnixStream, CallError> {
    let during = "connecting to the agent";
    let (sender, receiver) = mpsc::sync_channel(1);
    let path = socket.to_owned();
    let helper = thread::Builder::new().stack_size(64 * 1024).spawn(move || sender.send(connect_patiently(&path)));
    let connected = match helper {
        Ok(_) => receiver.recv_timeout(left(deadline, during)?).map_err(|_| CallError::TimedOut { during })?,
        // No thread to be had: better without a limit than not at all.
        Err(_) => connect_patiently(socket),
    };
    connected.map_err(|cause| match cause.kind() {
        ErrorKind::NotFound | ErrorKind::ConnectionRefused => CallError::NobodyListens(cause),
        _ => CallError::socket(during, cause),
    })
}

fn connect_patiently(socket: &Path) -> io::Result<UnixStream> {
    loop {
        match UnixStream::connect(socket) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

fn send(stream: &mut UnixStream, mut bytes: &[u8], deadline: Instant) -> Result<(), CallError> {
    let during = "sending the request to the agent";
    while !bytes.is_empty() {
        let timeout = Some(left(deadline, during)?);
        match stream.set_write_timeout(timeout).and_then(|()| stream.write(bytes)) {
            Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(CallError::socket(during, error)),
        }
    }
    Ok(())
}

fn receive(stream: &mut UnixStream, deadline: Instant) -> Result<Response, CallError> {
    let mut header = [0; HEADER];
    fill(stream, &mut header, deadline)?;
    let mut body = vec![0; frame::body_length(&header).map_err(CallError::Frame)?];
    fill(stream, &mut body, deadline)?;
    Response::decode(&body).map_err(CallError::Decode)
}

fn fill(stream: &mut UnixStream, buffer: &mut [u8], deadline: Instant) -> Result<(), CallError> {
    let during = "waiting for the agent's answer";
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        let timeout = Some(left(deadline, during)?);
        match stream.set_read_timeout(timeout).and_then(|()| stream.read(rest)) {
            Ok(0) => return Err(CallError::HungUp),
            Ok(read) => filled += read,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(CallError::socket(during, error)),
        }
    }
    Ok(())
}

/// The time left; none left is an error.
fn left(deadline: Instant, during: &'static str) -> Result<Duration, CallError> {
    let left = deadline.saturating_duration_since(Instant::now());
    // The kernel counts microseconds, and zero would mean for ever.
    if left < Duration::from_micros(1) { Err(CallError::TimedOut { during }) } else { Ok(left) }
}
