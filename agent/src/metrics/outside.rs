//! What is told of the servers that the agent talks to: whether their clocks agree with this host's, and until when they are let in and it is.

use chrono::{DateTime, Utc};
use prometheus::{GaugeVec, IntGaugeVec, Opts};

use super::Maker;

/// The metrics of what lies outside.
#[derive(Debug)]
pub struct OutsideMetrics {
    clock: GaugeVec,
    certificate: IntGaugeVec,
    credentials: IntGaugeVec,
}

/// Who is talked to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Other<'a> {
    /// PostgreSQL.
    Server,
    /// The repository at this url.
    Repository(&'a str),
}

impl<'a> Other<'a> {
    const fn labels(self) -> [&'a str; 2] {
        match self {
            Self::Server => ["server", ""],
            Self::Repository(url) => ["repository", url],
        }
    }
}

impl OutsideMetrics {
    pub(super) fn new(maker: &Maker<'_>) -> prometheus::Result<Self> {
        Ok(Self {
            clock: maker.registered(GaugeVec::new(
                Opts::new(
                    "walkeep_clock_offset_seconds",
                    "How far this host's clock is ahead (below 0: behind) of the server's or of an S3 server's, as its last answer said; what may be due to the answer's way is 0.",
                ),
                &["against", "repository"],
            )?)?,
            certificate: maker.registered(IntGaugeVec::new(
                Opts::new(
                    "walkeep_certificate_expiry_timestamp_seconds",
                    "When the TLS certificate of the server or of an S3 server ends, as a Unix time; 0 without TLS.",
                ),
                &["of", "repository"],
            )?)?,
            credentials: maker.int_gauge_vec(
                "walkeep_credentials_expiry_timestamp_seconds",
                "When the credentials in use for an S3 repository end if they cannot be renewed, as a Unix time; 0 if nobody says that they do.",
                "repository",
            )?,
        })
    }

    /// How far this host's clock is ahead.
    pub fn clock(&self, other: Other<'_>, ahead: f64) {
        self.clock.with_label_values(&other.labels()).set(ahead);
    }

    /// When a certificate ends; `None` if there is none.
    pub fn certificate(&self, other: Other<'_>, end: Option<DateTime<Utc>>) {
        self.certificate.with_label_values(&other.labels()).set(end.map_or(0, |end| end.timestamp()));
    }

    /// When the credentials for a repository end; `None` if nobody says that they do.
    pub fn credentials(&self, url: &str, end: Option<DateTime<Utc>>) {
        self.credentials.with_label_values(&[url]).set(end.map_or(0, |end| end.timestamp()));
    }
}
