//! What can go wrong with a store, named after what the caller does next.

use std::error::Error as StdError;
use std::fmt;

use crate::Key;

/// The result of a store's call.
pub type Result<T> = std::result::Result<T, Error>;

/// What a caller can decide on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The store was reached and says that there is no such object. For S3: `NoSuchKey`, never `NoSuchBucket`.
    NotFound,
    /// An object with other content has this key.
    AlreadyExists,
    /// The credentials do not allow it, are wrong or have expired. Somebody must mend it; trying again soon may help after they did.
    Denied,
    /// Nobody has any credentials for us: no keys in the environment, no such profile. The store was not asked.
    NoCredentials,
    /// The disk, or what the quota allows of it, is full. It may be emptied without us.
    Full,
    /// Time-out, refused connection, 5xx, throttling: trying again may help.
    Transient,
    /// The object is there, in a storage class that cannot be read at once: somebody must have it thawed.
    Archived,
    /// What was read is not what was stored: wrong length or checksum.
    Corrupt,
    /// The store as configured cannot serve: no such bucket, another region, conditional puts ignored, no such directory, a full disk's
    /// read-only remount. Trying again does not help until somebody changes something.
    Unusable,
    /// What is configured on this host contradicts itself or names a file that cannot be used. The store was not asked.
    Misconfigured,
    /// The caller asked to stop.
    Cancelled,
}

impl ErrorKind {
    /// Whether the same call may succeed later without anybody doing anything.
    pub const fn is_transient(self) -> bool {
        matches!(self, Self::Transient | Self::Full)
    }

    /// Whether the store failed. It did not where it answered what it knows of an object, or where the caller cut the call off.
    pub const fn is_failure(self) -> bool {
        !matches!(self, Self::NotFound | Self::AlreadyExists | Self::Cancelled)
    }

    /// A short word for logs and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotFound => "not_found",
            Self::AlreadyExists => "already_exists",
            Self::Denied => "denied",
            Self::NoCredentials => "no_credentials",
            Self::Full => "full",
            Self::Transient => "transient",
            Self::Archived => "archived",
            Self::Corrupt => "corrupt",
            Self::Unusable => "unusable",
            Self::Misconfigured => "misconfigured",
            Self::Cancelled => "cancelled",
        }
    }
}

/// A store's failure: kind, what was being done, where, and the cause.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    action: &'static str,
    place: String,
    in_doubt: bool,
    cause: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    /// A failure while doing `action` (a verb, such as `get`) to `key`.
    pub fn new(kind: ErrorKind, action: &'static str, key: &Key) -> Self {
        Self::at(kind, action, key.as_str())
    }

    /// A failure while doing `action` at a place that is no key, such as a prefix or a URL.
    pub fn at(kind: ErrorKind, action: &'static str, place: impl Into<String>) -> Self {
        Self { kind, action, place: place.into(), in_doubt: false, cause: None }
    }

    /// With its cause.
    pub fn because(mut self, cause: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.cause = Some(cause.into());
        self
    }

    /// The object that is there may not be what was put: see [`Error::is_in_doubt`].
    pub fn in_doubt(mut self) -> Self {
        self.in_doubt = true;
        self
    }

    /// Of [`ErrorKind::AlreadyExists`]: whether the store cannot vouch for the object that is there. Then that it begins as it should proves nothing of the rest;
    /// who has its right bytes may put them ([`crate::Store::replace_in_doubt`]).
    pub fn is_in_doubt(&self) -> bool {
        self.in_doubt
    }

    /// The key, or what was asked for instead of one.
    pub fn place(&self) -> &str {
        &self.place
    }

    /// Whether it is a directory that failed, and not a server: places of a local store are whole paths.
    pub fn is_of_a_directory(&self) -> bool {
        self.place.starts_with('/')
    }

    /// What a caller can decide on.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, action, place, .. } = self;
        match kind {
            ErrorKind::NotFound => write!(f, "{action} {place}: no such object"),
            ErrorKind::AlreadyExists if self.in_doubt => {
                write!(f, "{action} {place}: an object is there already, and an fsync of it has failed: whether it is whole is in doubt")
            }
            ErrorKind::AlreadyExists => write!(f, "{action} {place}: an object with other content is there already"),
            ErrorKind::Denied => write!(f, "{action} {place}: access denied"),
            ErrorKind::NoCredentials => write!(f, "{action} {place}: no credentials"),
            ErrorKind::Full => write!(f, "{action} {place}: the disk is full"),
            ErrorKind::Transient => write!(f, "{action} {place}: not done for now"),
            ErrorKind::Archived => write!(f, "{action} {place}: it lies in an archived storage class"),
            ErrorKind::Corrupt => write!(f, "{action} {place}: what came back is not what was stored"),
            ErrorKind::Unusable => write!(f, "{action} {place}: the store cannot be used as configured"),
            ErrorKind::Misconfigured => write!(f, "{action} {place}: not possible as configured"),
            ErrorKind::Cancelled => write!(f, "{action} {place}: cancelled"),
        }?;
        // `{:#}` tells the causes too, as anyhow's does: a log line that says only "did not answer" hides a full disk.
        let mut cause = if f.alternate() { self.source() } else { None };
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.cause.as_deref().map(|cause| cause as &(dyn StdError + 'static))
    }
}
