//! From an open transport to a session: the startup message, authentication, and the check of `target_session_attrs`.

use bytes::Bytes;
use postgres_protocol::authentication::{md5_hash, sasl};
use postgres_protocol::message::frontend;

use super::dial::{Dialed, Dialer};
use super::error::Error;
use super::params::{ChannelBinding, ConnectionParams, Host, TargetSession};
use super::wire::{Message, Wire, text, unexpected};

const SCRAM: &str = "SCRAM-SHA-256";
const SCRAM_PLUS: &str = "SCRAM-SHA-256-PLUS";

/// Opens a session for physical replication with the first host that lets us in. `settings` are further startup parameters.
pub(super) async fn connect(params: &ConnectionParams, settings: &[(&str, &str)]) -> Result<Wire, Error> {
    let mut dialer = Dialer::new(params);
    loop {
        let dialed = dialer.next().await?;
        let (deadline, host) = (dialed.deadline(), dialed.host.clone());
        match Dialed::within(deadline, &host, open(dialed, params, settings)).await {
            Ok(wire) => {
                params.connected(&host);
                return Ok(wire);
            }
            Err(error) => dialer.refused(error)?,
        }
    }
}

async fn open(dialed: Dialed, params: &ConnectionParams, settings: &[(&str, &str)]) -> Result<Wire, Error> {
    let Dialed { transport, host, wanted, .. } = dialed;
    let mut wire = Wire::new(transport);
    let fixed = [("user", params.user.as_str()), ("client_encoding", "UTF8")];
    frontend::startup_message(fixed.into_iter().chain(settings.iter().copied()), wire.outgoing())?;
    wire.flush().await?;
    authenticate(&mut wire, params, &host).await?;
    match wire.next().await? {
        Message::Ready => {}
        Message::Error(error) => return Err(Error::Server(error)),
        other => return Err(unexpected("starting the session", &other)),
    }
    check_kind(&mut wire, wanted, &host).await?;
    Ok(wire)
}

async fn check_kind(wire: &mut Wire, wanted: TargetSession, host: &Host) -> Result<(), Error> {
    // Before 14 the server does not report this, and a walsender has no SQL; on a standby no transaction may write.
    let read_only = match wanted {
        TargetSession::Any | TargetSession::PreferStandby => return Ok(()),
        _ => {
            let rows = wire.query("SHOW transaction_read_only").await?;
            rows.first().map(|row| text(row, 0)).transpose()?.flatten() == Some("on")
        }
    };
    let standby = wire.parameter("in_hot_standby").map_or(read_only, |value| value == "on");
    if kind_matches(wanted, read_only, standby) {
        return Ok(());
    }
    Err(Error::WrongKind { target: host.to_string(), wanted: wanted.as_str() })
}

/// Whether a server of this kind is one that is wanted.
pub(super) fn kind_matches(wanted: TargetSession, read_only: bool, standby: bool) -> bool {
    match wanted {
        TargetSession::Any | TargetSession::PreferStandby => true,
        TargetSession::ReadWrite => !read_only && !standby,
        TargetSession::ReadOnly => read_only || standby,
        TargetSession::Primary => !standby,
        TargetSession::Standby => standby,
    }
}

async fn authenticate(wire: &mut Wire, params: &ConnectionParams, host: &Host) -> Result<(), Error> {
    let password = || {
        params
            .password(host, "replication")
            .ok_or_else(|| Error::Auth(format!("{host} asks for a password for {}, and none is given", params.user)))
    };
    let mut bound = false;
    let binding_demanded = params.channel_binding == ChannelBinding::Require;
    loop {
        let body = authentication(wire).await?;
        let (kind, body) = method(&body)?;
        // What is not SCRAM would show the password, or its weak hash, to whoever pretends to be the server.
        if binding_demanded && kind != 10 && !bound {
            return Err(Error::Auth(format!("channel_binding=require, but {host} does not use SCRAM with channel binding")));
        }
        match kind {
            0 => return Ok(()),
            3 => {
                if !wire.transport().private {
                    tracing::warn!(%host, "the server asks for the password in clear text, and the connection is not encrypted");
                }
                frontend::password_message(password()?.as_bytes(), wire.outgoing())?;
                wire.flush().await?;
            }
            5 => {
                let salt = body.try_into().map_err(|_| Error::Protocol("an MD5 salt that is not 4 bytes".into()))?;
                let hash = md5_hash(params.user.as_bytes(), password()?.as_bytes(), salt);
                frontend::password_message(hash.as_bytes(), wire.outgoing())?;
                wire.flush().await?;
            }
            10 => bound = scram(wire, params, body, &password()?, host).await?,
            7..=9 => return Err(Error::Auth(format!("{host} asks for GSSAPI, which is not supported"))),
            other => return Err(Error::Auth(format!("{host} asks for authentication method {other}, which is not supported"))),
        }
    }
}

async fn authentication(wire: &mut Wire) -> Result<Bytes, Error> {
    match wire.next().await? {
        Message::Authentication(body) => Ok(body),
        Message::Error(error) => Err(Error::Server(error)),
        other => Err(unexpected("authentication", &other)),
    }
}

fn method(body: &[u8]) -> Result<(u32, &[u8]), Error> {
    let (kind, rest) = body.split_first_chunk::<4>().ok_or_else(|| Error::Protocol("an authentication request cut short".into()))?;
    Ok((u32::from_be_bytes(*kind), rest))
}

/// Proves the password and has the server prove that it knows it too; whether the proof was bound to the server's certificate.
async fn scram(wire: &mut Wire, params: &ConnectionParams, offered: &[u8], password: &str, host: &Host) -> Result<bool, Error> {
    let offers = |name: &str| offered.split(|byte| *byte == 0).any(|offer| offer == name.as_bytes());
    let endpoint = wire.transport().endpoint.clone().filter(|_| params.channel_binding != ChannelBinding::Disable);
    let (binding, mechanism, bound) = match endpoint {
        Some(hash) if offers(SCRAM_PLUS) => (sasl::ChannelBinding::tls_server_end_point(hash), SCRAM_PLUS, true),
        _ if params.channel_binding == ChannelBinding::Require => {
            return Err(Error::Auth(format!("channel_binding=require, but it cannot be had with {host} (it needs TLS and {SCRAM_PLUS})")));
        }
        Some(_) if offers(SCRAM) => (sasl::ChannelBinding::unrequested(), SCRAM, false),
        None if offers(SCRAM) => (sasl::ChannelBinding::unsupported(), SCRAM, false),
        _ => return Err(Error::Auth(format!("{host} offers no SASL mechanism that is supported"))),
    };
    let refused = |error: std::io::Error| Error::Auth(format!("SCRAM with {host}: {error}"));
    let mut exchange = sasl::ScramSha256::new(password.as_bytes(), binding);
    frontend::sasl_initial_response(mechanism, exchange.message(), wire.outgoing())?;
    wire.flush().await?;
    let challenge = authentication(wire).await?;
    match method(&challenge)? {
        (11, data) => exchange.update(data).map_err(refused)?,
        (other, _) => return Err(Error::Protocol(format!("authentication message {other} in the middle of SCRAM"))),
    }
    frontend::sasl_response(exchange.message(), wire.outgoing())?;
    wire.flush().await?;
    let proof = authentication(wire).await?;
    match method(&proof)? {
        (12, data) => exchange.finish(data).map_err(refused)?,
        (other, _) => return Err(Error::Protocol(format!("authentication message {other} in place of the server's proof"))),
    }
    Ok(bound)
}
