//! Opening the transport to a server: every host and address in turn, TCP or Unix socket, TLS as `sslmode` says.
//!
//! What is said over the transport is [`super::auth`]'s and `tokio_postgres`'s business; they report back a server that refused,
//! because whether another attempt follows (without TLS, another host) is decided here.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::BytesMut;
use chrono::{DateTime, Utc};
use postgres_protocol::message::frontend;
use rustix::net::sockopt;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::Instant;
use tokio_rustls::TlsConnector;

use super::error::Error;
use super::params::{ConnectionParams, Host, Keepalives, SslMode, TargetSession};
use super::tls;

trait Socket: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Socket for T {}

/// An open connection on which the startup message is the next thing to send.
pub(super) struct Transport {
    io: Box<dyn Socket>,
    /// Whether nobody on a network can listen: TLS or a Unix socket.
    pub private: bool,
    /// Whether it is TLS.
    pub tls: bool,
    /// The server certificate's hash for channel binding.
    pub endpoint: Option<Vec<u8>>,
    /// When that certificate ends.
    pub certificate_ends: Option<DateTime<Utc>>,
}

impl AsyncRead for Transport {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Transport {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// A transport, and what the startup over it has to know.
pub(super) struct Dialed {
    pub transport: Transport,
    pub host: Host,
    /// What the server must be to be kept.
    pub wanted: TargetSession,
    deadline: Option<(Instant, Duration)>,
}

impl Dialed {
    /// Carries out the startup within what is left of `connect_timeout`.
    pub async fn within<T>(
        deadline: Option<(Instant, Duration)>,
        host: &Host,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        match deadline {
            None => work.await,
            Some((at, after)) => tokio::time::timeout_at(at, work)
                .await
                .unwrap_or_else(|_| Err(Error::Timeout { doing: format!("connecting to {host}"), after })),
        }
    }

    pub fn deadline(&self) -> Option<(Instant, Duration)> {
        self.deadline
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Encryption {
    Never,
    IfOffered,
    Must,
}

#[derive(Clone)]
struct Attempt {
    host: Host,
    /// Resolved; `None` for Unix sockets.
    address: Option<SocketAddr>,
    encryption: Encryption,
    /// What to try if the server refuses this.
    fallback: Option<Encryption>,
    wanted: TargetSession,
}

enum Step {
    Resolve(Host, TargetSession),
    Try(Attempt),
}

/// The attempts that are left.
pub(super) struct Dialer<'a> {
    params: &'a ConnectionParams,
    steps: VecDeque<Step>,
    current: Option<Attempt>,
    config: Option<Arc<ClientConfig>>,
    errors: Vec<Error>,
}

impl<'a> Dialer<'a> {
    pub fn new(params: &'a ConnectionParams) -> Self {
        let passes = match params.target_session {
            TargetSession::PreferStandby => vec![TargetSession::Standby, TargetSession::Any],
            other => vec![other],
        };
        let steps = passes.iter().flat_map(|wanted| params.in_order().into_iter().map(|host| Step::Resolve(host, *wanted))).collect();
        Self { params, steps, current: None, config: None, errors: Vec::new() }
    }

    /// The next transport that can be opened; once none is left, everything that went wrong.
    pub async fn next(&mut self) -> Result<Dialed, Error> {
        loop {
            match self.steps.pop_front() {
                None => return Err(self.failure()),
                Some(Step::Resolve(host, wanted)) => {
                    if let Err(error) = self.resolve(host, wanted).await {
                        self.errors.push(error);
                    }
                }
                Some(Step::Try(attempt)) => {
                    let deadline = self.params.connect_timeout.map(|after| (Instant::now() + after, after));
                    match Dialed::within(deadline, &attempt.host, self.open(&attempt)).await {
                        Ok(transport) => {
                            let (host, wanted) = (attempt.host.clone(), attempt.wanted);
                            let fallback = attempt.fallback.filter(|_| transport.tls == (attempt.encryption != Encryption::Never));
                            self.current = Some(Attempt { fallback, ..attempt });
                            return Ok(Dialed { transport, host, wanted, deadline });
                        }
                        Err(error @ Error::TlsSetup(_)) => return Err(error),
                        Err(error) => {
                            if matches!(error, Error::Tls { .. }) {
                                self.fall_back(attempt);
                            }
                            self.errors.push(error);
                        }
                    }
                }
            }
        }
    }

    /// Records that the startup over the last transport failed; gives the error back if it is final.
    pub fn refused(&mut self, error: Error) -> Result<(), Error> {
        let attempt = self.current.take();
        let may_pass = error.is_unavailable_now() || matches!(error, Error::WrongKind { .. });
        let final_refusal = match &error {
            Error::Server(_) => !may_pass && attempt.as_ref().is_none_or(|attempt| attempt.fallback.is_none()),
            _ => !error.is_connection_closed() && !may_pass,
        };
        if final_refusal && self.errors.is_empty() {
            return Err(error);
        }
        let server_spoke = matches!(error, Error::Server(_)) && !may_pass;
        self.errors.push(error);
        match attempt {
            Some(attempt) if server_spoke && attempt.fallback.is_some() => self.fall_back(attempt),
            _ if final_refusal => return Err(self.failure()),
            _ => {}
        }
        Ok(())
    }

    fn failure(&mut self) -> Error {
        match self.errors.len() {
            1 => self.errors.remove(0),
            _ => Error::EveryHost(std::mem::take(&mut self.errors)),
        }
    }

    fn fall_back(&mut self, attempt: Attempt) {
        if let Some(encryption) = attempt.fallback {
            self.steps.push_front(Step::Try(Attempt { encryption, fallback: None, ..attempt }));
        }
    }

    async fn resolve(&mut self, host: Host, wanted: TargetSession) -> Result<(), Error> {
        let (encryption, fallback) = match (&host, self.params.sslmode) {
            (Host::Unix { .. }, _) | (_, SslMode::Disable) => (Encryption::Never, None),
            (_, SslMode::Allow) => (Encryption::Never, Some(Encryption::Must)),
            (_, SslMode::Prefer) => (Encryption::IfOffered, Some(Encryption::Never)),
            _ => (Encryption::Must, None),
        };
        let addresses: Vec<Option<SocketAddr>> = match &host {
            Host::Unix { .. } => vec![None],
            Host::Tcp { address: Some(address), port, .. } => vec![Some(SocketAddr::new(*address, *port))],
            Host::Tcp { name, port, .. } => {
                let name = name.as_deref().unwrap_or("localhost");
                let failed = |cause| Error::Connect { target: host.to_string(), cause };
                let lookup = async { tokio::net::lookup_host((name, *port)).await.map_err(failed) };
                let deadline = self.params.connect_timeout.map(|after| (Instant::now() + after, after));
                Dialed::within(deadline, &host, lookup).await?.map(Some).collect()
            }
        };
        for address in addresses.into_iter().rev() {
            self.steps.push_front(Step::Try(Attempt { host: host.clone(), address, encryption, fallback, wanted }));
        }
        Ok(())
    }

    async fn open(&mut self, attempt: &Attempt) -> Result<Transport, Error> {
        let target = attempt.host.to_string();
        let failed = |cause| Error::Connect { target: target.clone(), cause };
        let Some(address) = attempt.address else {
            let stream = UnixStream::connect(&target).await.map_err(failed)?;
            return Ok(Transport { io: Box::new(stream), private: true, tls: false, endpoint: None, certificate_ends: None });
        };
        let mut stream = TcpStream::connect(address).await.map_err(failed)?;
        stream.set_nodelay(true).map_err(failed)?;
        keep_alive(&stream, &self.params.keepalives).map_err(failed)?;
        if attempt.encryption == Encryption::Never || !ask_for_tls(&mut stream).await.map_err(failed)? {
            return match attempt.encryption {
                Encryption::Must => Err(Error::TlsRefused { target }),
                _ => Ok(Transport { io: Box::new(stream), private: false, tls: false, endpoint: None, certificate_ends: None }),
            };
        }
        let config = match &self.config {
            Some(config) => Arc::clone(config),
            None => Arc::clone(self.config.insert(tls::client_config(self.params)?)),
        };
        let name = server_name(&attempt.host, address, self.params.sslmode)?;
        let stream = TlsConnector::from(config).connect(name, stream).await.map_err(|cause| Error::Tls { target, cause })?;
        let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
        let endpoint = certificate.and_then(tls::endpoint_hash);
        let certificate_ends = certificate.and_then(|certificate| tls::not_after(certificate));
        Ok(Transport { io: Box::new(stream), private: true, tls: true, endpoint, certificate_ends })
    }
}

async fn ask_for_tls(stream: &mut TcpStream) -> io::Result<bool> {
    let mut request = BytesMut::new();
    frontend::ssl_request(&mut request);
    stream.write_all(&request).await?;
    // Exactly one byte: what follows belongs to TLS, and anything sent earlier must not be taken for the server's.
    match stream.read_u8().await? {
        b'S' => Ok(true),
        b'N' => Ok(false),
        other => Err(io::Error::new(io::ErrorKind::InvalidData, format!("answered 0x{other:02X} when asked for TLS"))),
    }
}

fn server_name(host: &Host, address: SocketAddr, mode: SslMode) -> Result<ServerName<'static>, Error> {
    let name = match host {
        Host::Tcp { name: Some(name), .. } => ServerName::try_from(name.clone()).ok(),
        _ => None,
    };
    match name {
        Some(name) => Ok(name),
        None if mode == SslMode::VerifyFull => Err(Error::TlsSetup("sslmode=verify-full needs a valid host name in \"host\"".into())),
        None => Ok(ServerName::IpAddress(address.ip().into())),
    }
}

fn keep_alive(stream: &TcpStream, keepalives: &Keepalives) -> io::Result<()> {
    sockopt::set_socket_keepalive(stream, !keepalives.off)?;
    if let Some(idle) = keepalives.idle {
        sockopt::set_tcp_keepidle(stream, idle)?;
    }
    if let Some(interval) = keepalives.interval {
        sockopt::set_tcp_keepintvl(stream, interval)?;
    }
    if let Some(count) = keepalives.count {
        sockopt::set_tcp_keepcnt(stream, count)?;
    }
    if let Some(timeout) = keepalives.user_timeout {
        sockopt::set_tcp_user_timeout(stream, u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX))?;
    }
    Ok(())
}
