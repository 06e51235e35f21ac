//! What can go wrong between the agent and a PostgreSQL server, in kinds a caller can decide on.

use std::fmt;
use std::io;
use std::time::Duration;

use super::params::ParamsError;

/// An `ERROR`, `FATAL` or `WARNING` in the server's words.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ServerError {
    /// `ERROR`, `FATAL`, `WARNING`…, never translated if the server said so too.
    pub severity: String,
    /// The five characters of the SQLSTATE.
    pub code: String,
    /// The primary message, perhaps translated.
    pub message: String,
    /// More about it.
    pub detail: Option<String>,
    /// What the server suggests.
    pub hint: Option<String>,
}

impl ServerError {
    /// Reads the fields of an ErrorResponse or NoticeResponse; what is missing stays empty.
    pub(super) fn decode(body: &[u8]) -> Self {
        let mut error = ServerError::default();
        for field in body.split(|byte| *byte == 0) {
            let Some((kind, text)) = field.split_first() else { break };
            let text = String::from_utf8_lossy(text).into_owned();
            match kind {
                b'S' if error.severity.is_empty() => error.severity = text,
                b'V' => error.severity = text,
                b'C' => error.code = text,
                b'M' => error.message = text,
                b'D' => error.detail = Some(text),
                b'H' => error.hint = Some(text),
                _ => {}
            }
        }
        error
    }

    /// Whether the server closes the connection with it.
    pub fn is_fatal(&self) -> bool {
        matches!(self.severity.as_str(), "FATAL" | "PANIC")
    }
}

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} (SQLSTATE {})", self.severity, self.message, self.code)?;
        if let Some(detail) = &self.detail {
            write!(f, "; {detail}")?;
        }
        if let Some(hint) = &self.hint {
            write!(f, "; hint: {hint}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ServerError {}

impl From<&tokio_postgres::error::DbError> for ServerError {
    fn from(error: &tokio_postgres::error::DbError) -> Self {
        Self {
            severity: error.severity().to_owned(),
            code: error.code().code().to_owned(),
            message: error.message().to_owned(),
            detail: error.detail().map(str::to_owned),
            hint: error.hint().map(str::to_owned),
        }
    }
}

/// No connection, or a connection or command that failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The connection parameters make no sense.
    #[error(transparent)]
    Params(#[from] ParamsError),
    /// No socket could be opened, or its name not resolved.
    #[error("cannot connect to {target}: {cause}")]
    Connect {
        /// The host and port, or the socket's path.
        target: String,
        /// Why; in the words above already, so not the error's `source`.
        cause: io::Error,
    },
    /// The server did not answer in time.
    #[error("{doing}: no answer within {} s", after.as_secs_f32())]
    Timeout {
        /// What was being waited for.
        doing: String,
        /// How long.
        after: Duration,
    },
    /// `sslmode` demands TLS and the server has none.
    #[error("{target} does not accept TLS, which sslmode demands")]
    TlsRefused {
        /// The host and port.
        target: String,
    },
    /// Certificates or keys here cannot be used.
    #[error("TLS: {0}")]
    TlsSetup(String),
    /// The handshake failed: above all, a certificate that is not trusted.
    #[error("TLS handshake with {target}: {cause}")]
    Tls {
        /// The host and port.
        target: String,
        /// Why; in the words above already, so not the error's `source`.
        cause: io::Error,
    },
    /// The client cannot or will not answer what the server asks for to let it in.
    #[error("authentication: {0}")]
    Auth(String),
    /// The server is not of the kind that `target_session_attrs` asks for.
    #[error("{target} is not a server as target_session_attrs={wanted} asks for")]
    WrongKind {
        /// The host and port.
        target: String,
        /// The setting.
        wanted: &'static str,
    },
    /// None of several hosts or addresses could be used.
    #[error("no server could be used: {}", list(.0))]
    EveryHost(Vec<Error>),
    /// The server said no.
    #[error("{0}")]
    Server(ServerError),
    /// The server closed the connection without a word.
    #[error("the server closed the connection")]
    Closed,
    /// Reading or writing failed.
    #[error("the connection broke: {0}")]
    Io(io::Error),
    /// What came is not what PostgreSQL sends.
    #[error("unexpected answer: {0}")]
    Protocol(String),
    /// A query by way of `tokio_postgres` failed for another reason than the above.
    #[error("SQL: {0}")]
    Sql(tokio_postgres::Error),
}

fn list(errors: &[Error]) -> String {
    errors.iter().map(Error::to_string).collect::<Vec<_>>().join("; ")
}

impl Error {
    /// The server's error code, if it was the server that said no.
    pub fn sqlstate(&self) -> Option<&str> {
        self.server().map(|error| error.code.as_str())
    }

    /// The server's words, if it was the server that said no.
    pub fn server(&self) -> Option<&ServerError> {
        match self {
            Error::Server(error) => Some(error),
            Error::EveryHost(errors) => errors.iter().find_map(Error::server),
            _ => None,
        }
    }

    /// Whether the connection is gone: only a new one helps.
    pub fn is_connection_closed(&self) -> bool {
        match self {
            Error::Closed | Error::Io(_) | Error::Timeout { .. } => true,
            Error::Server(error) => error.is_fatal(),
            Error::Sql(error) => error.is_closed(),
            _ => false,
        }
    }

    /// Whether a server answered, and it was a standby where `target_session_attrs` asks for the primary.
    pub fn is_standby_for_primary(&self) -> bool {
        match self {
            Error::WrongKind { wanted, .. } => *wanted == "primary",
            Error::EveryHost(errors) => errors.iter().any(Error::is_standby_for_primary),
            _ => false,
        }
    }

    /// Whether the server (or this client) refused the credentials: class 28, or nothing to answer with.
    pub fn is_authentication(&self) -> bool {
        matches!(self, Error::Auth(_)) || self.sqlstate().is_some_and(|code| code.starts_with("28"))
    }

    /// What the operator can do.
    pub fn hint(&self) -> Option<&'static str> {
        if self.is_authentication() || self.sqlstate() == Some("42501") {
            return Some(
                "Check the role (LOGIN REPLICATION), its password, and pg_hba.conf, which needs a line for database `replication` and one for `all`.",
            );
        }
        if self.is_unavailable_now() {
            return Some("The server is starting, stopping or has no connection to spare: try again.");
        }
        match self {
            Error::Connect { .. } => {
                Some("Is the server running, and does `connection` name its host, or the directory of its socket, and its port?")
            }
            Error::Timeout { .. } => Some("Can the server's host be reached from here? A firewall may swallow what is sent."),
            Error::TlsRefused { .. } | Error::TlsSetup(_) | Error::Tls { .. } => {
                Some("Check sslmode, sslrootcert and the server's certificate.")
            }
            Error::Params(_) => Some("Correct `connection`, or the PG... variables of the environment."),
            Error::EveryHost(errors) => errors.iter().find_map(Error::hint),
            _ => None,
        }
    }

    /// Whether the server is starting, stopping or recovering and may let us in later.
    pub fn is_unavailable_now(&self) -> bool {
        self.sqlstate().is_some_and(|code| matches!(code, "57P01" | "57P02" | "57P03" | "53300"))
    }
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<tokio_postgres::Error> for Error {
    fn from(error: tokio_postgres::Error) -> Self {
        match error.as_db_error() {
            Some(server) => Error::Server(server.into()),
            None if error.is_closed() => Error::Closed,
            None => Error::Sql(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_told_once_and_the_hint_is_about_it() {
        let down = || Error::Connect { target: "db port 5432".into(), cause: io::ErrorKind::ConnectionRefused.into() };
        let told = format!("{:#}", anyhow::Error::new(super::super::ReplicationError::from(down())).context("connect"));
        assert_eq!(told.matches("connection refused").count(), 1, "{told}");
        let told = format!("{:#}", anyhow::Error::new(Error::from(io::Error::other("cut"))));
        assert_eq!(told.matches("cut").count(), 1, "{told}");
        assert!(down().hint().is_some_and(|hint| hint.contains("running") && !hint.contains("pg_hba")));
        let refused = Error::Server(ServerError::decode(b"SFATAL\0C28000\0Mno pg_hba.conf entry\0\0"));
        assert!(refused.hint().is_some_and(|hint| hint.contains("pg_hba")));
        assert!(Error::EveryHost(vec![Error::Closed, down()]).hint().is_some_and(|hint| hint.contains("running")));
    }

    #[test]
    fn reads_the_servers_words() {
        let error = ServerError::decode(b"SFEHLER\0VERROR\0C58P01\0Mweg\0Ddetail\0Htip\0Fx.c\0\0");
        assert_eq!(error.to_string(), "ERROR: weg (SQLSTATE 58P01); detail; hint: tip");
        assert!(!error.is_fatal());
        let error = Error::EveryHost(vec![Error::Closed, Error::Server(ServerError::decode(b"SFATAL\0C28P01\0Mno\0\0"))]);
        assert!(error.is_authentication());
        assert_eq!(ServerError::decode(b""), ServerError::default());
    }
}
