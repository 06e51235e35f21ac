//! What can be said about an S3 store.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use super::placing::Placing;

/// Where objects go and how.
#[derive(Debug, Clone)]
pub struct S3Options {
    /// The bucket, which must exist.
    pub bucket: String,
    /// Put before every key, with a `/` between; may be empty.
    pub prefix: String,
    /// A server other than AWS, `http://` or `https://`.
    pub endpoint: Option<String>,
    /// The region; by default AWS's own chain (environment, profile, instance), or `us-east-1` for another server.
    pub region: Option<String>,
    /// Whether the bucket goes into the path and not into the host's name; by default so for another server.
    pub path_style: Option<bool>,
    /// Such as `STANDARD_IA`; by default the bucket's.
    pub storage_class: Option<String>,
    /// What is put otherwise, by its key.
    pub placing: Option<Placing>,
    /// Server-side encryption to ask for.
    pub sse: Sse,
    /// The authorities (PEM) to trust instead of the system's, for the store only.
    pub ca_file: Option<PathBuf>,
    /// Who we are.
    pub credentials: Credentials,
    /// How long to wait.
    pub timeouts: Timeouts,
    /// How often to try one request, all told.
    pub attempts: u32,
    /// Whether to send a checksum with every body, for the server to verify. Off only for servers that refuse the header.
    pub send_checksums: bool,
}

impl S3Options {
    /// A bucket on AWS, everything else by default.
    pub fn new(bucket: impl Into<String>) -> Self {
        Self {
            bucket: bucket.into(),
            prefix: String::new(),
            endpoint: None,
            region: None,
            path_style: None,
            storage_class: None,
            placing: None,
            sse: Sse::default(),
            ca_file: None,
            credentials: Credentials::default(),
            timeouts: Timeouts::default(),
            attempts: 5,
            send_checksums: true,
        }
    }
}

/// Server-side encryption.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Sse {
    /// As the bucket does it.
    #[default]
    BucketDefault,
    /// With the store's keys (SSE-S3).
    Aes256,
    /// With a key of the key management service.
    Kms {
        /// Its id or ARN; by default the account's key for S3.
        key_id: Option<String>,
    },
}

/// Where credentials come from.
#[derive(Debug, Clone, Default)]
pub enum Credentials {
    /// AWS's chain: environment, shared profile, web identity, container and instance roles.
    #[default]
    Chain,
    /// A profile of the shared files, which are read again from time to time and when its keys are refused.
    Profile {
        /// Its name.
        name: String,
        /// The file of credentials; by default AWS's files where AWS's environment variables say.
        file: Option<PathBuf>,
    },
    /// These.
    Static {
        /// The access key's id.
        access_key: String,
        /// The secret.
        secret_key: Secret,
        /// The token that goes with temporary credentials.
        session_token: Option<Secret>,
    },
}

/// A text that shows itself to nobody but the SDK.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Hides the text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    pub(super) fn reveal(&self) -> String {
        self.0.clone()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// How long to wait for what.
#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    /// For a connection.
    pub connect: Duration,
    /// For one try: the request sent and its answer begun.
    pub attempt: Duration,
    /// For the next piece of a body.
    pub idle: Duration,
    /// For a whole call: every try, every pause and the body.
    pub operation: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            attempt: Duration::from_secs(30),
            idle: Duration::from_secs(15),
            operation: Duration::from_secs(60),
        }
    }
}
