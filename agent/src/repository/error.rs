//! What can go wrong with a repository, named after what the caller does next.

use walkeep_core::SegmentName;
use walkeep_core::lease::{LeaseRecord, Refusal, Writer};
use walkeep_store::ErrorKind;

use crate::codec::CodecError;

/// The result of a repository's verb.
pub type Result<T> = std::result::Result<T, Error>;

/// A repository's failure.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store failed; its kind says what may help.
    #[error(transparent)]
    Store(#[from] walkeep_store::Error),
    /// The store was reached, and no repository is there.
    #[error(
        "no Walkeep repository at {url}: the marker walkeep.json is missing; is the URL right, is the volume mounted, was `walkeep init` run?"
    )]
    NoRepository {
        /// Where it was looked for.
        url: String,
    },
    /// The repository does not know the cluster.
    #[error("the repository at {url} does not know a cluster called {cluster}")]
    UnknownCluster {
        /// Where the repository lies.
        url: String,
        /// The name.
        cluster: String,
    },
    /// Written by a later Walkeep.
    #[error("the repository at {url} has format {found}, this Walkeep knows format {known}: upgrade Walkeep")]
    Format {
        /// Where it lies.
        url: String,
        /// Its format.
        found: u32,
        /// The format known here.
        known: u32,
    },
    /// The name is taken by other content. Nothing was overwritten.
    #[error("{name} is already in the repository with other content (stored: {stored}; offered: {offered}); nothing was overwritten")]
    Conflict {
        /// The file's name.
        name: String,
        /// What is stored: its BLAKE3 sum's first digits, or words.
        stored: String,
        /// What was offered, likewise.
        offered: String,
    },
    /// The name is taken by an object in an archived storage class. Nothing was overwritten.
    #[error(
        "{name} is in the repository already, in an archived storage class: whether with this content cannot be told before it is thawed"
    )]
    NotComparable {
        /// The file's name.
        name: String,
        /// The object's key.
        key: String,
    },
    /// An object is there, but it is not what its name says.
    #[error("{key} is damaged or was exchanged: {reason}")]
    Corrupt {
        /// The object's key.
        key: String,
        /// What does not fit.
        reason: String,
    },
    /// An object is there, and this host cannot read it.
    #[error("cannot decrypt {key}: {reason}")]
    CannotDecrypt {
        /// The object's key.
        key: String,
        /// Why not.
        reason: String,
    },
    /// Keys are missing, or cannot be used.
    #[error("{0}")]
    Keys(String),
    /// The repository is encrypted and the configuration is not, or the other way about.
    #[error("the repository at {url} keeps {cluster}, which {reason}")]
    NotAsConfigured {
        /// Where it lies.
        url: String,
        /// The cluster.
        cluster: String,
        /// What does not fit.
        reason: &'static str,
    },
    /// Two repositories of one configuration do not keep the same cluster.
    #[error("the repositories {one} and {other} do not agree on {cluster}: {reason}")]
    Disagree {
        /// Where one lies.
        one: String,
        /// Where the other lies.
        other: String,
        /// The cluster's name.
        cluster: String,
        /// In what they differ.
        reason: String,
    },
    /// More of a segment is stored than was compared with the server. Nothing was stored behind it.
    #[error("{segment} was stored further than to byte {compared} since this stream began: beginning again, to compare that first")]
    Overtaken {
        /// The segment.
        segment: SegmentName,
        /// Up to here it was compared.
        compared: u32,
    },
    /// It lies in WAL that left the catalog. Nothing was stored.
    #[error("{segment} lies in WAL that retention has let go: no restore would see it, so it is not archived")]
    LetGo {
        /// The segment.
        segment: SegmentName,
    },
    /// Another writer holds the lease of the timeline. Nothing was stored.
    #[error("timeline {} is written by {}, epoch {}; this is {me}. Nothing is stored: {reason}", holder.name.timeline, holder.writer, holder.name.epoch)]
    Lease {
        /// The lease in force.
        holder: Box<LeaseRecord>,
        /// Who was refused.
        me: Box<Writer>,
        /// Why.
        reason: Refusal,
    },
    /// A value could not be written down, or a task died: a defect of Walkeep.
    #[error("internal error: {0}")]
    Internal(String),
}

impl Error {
    /// Why nothing was stored, in a word, where that was refused for good reason; `None` for trouble.
    pub fn refusal(&self) -> Option<&'static str> {
        match self {
            Self::Conflict { .. } => Some("conflict"),
            Self::Lease { .. } => Some("lease"),
            Self::LetGo { .. } => Some("let go"),
            _ => None,
        }
    }

    /// Whether the store does not let these credentials do it.
    pub fn is_denied(&self) -> bool {
        matches!(self, Self::Store(error) if error.kind() == ErrorKind::Denied)
    }

    /// The key of the object, if it lies in an archived storage class.
    pub fn archived(&self) -> Option<&str> {
        match self {
            Self::Store(error) if error.kind() == ErrorKind::Archived => Some(error.place()),
            Self::NotComparable { key, .. } => Some(key),
            _ => None,
        }
    }

    /// The same where what is stored was to be compared with what is offered as `name`.
    pub fn in_comparing(self, name: impl std::fmt::Display) -> Self {
        match self.archived() {
            Some(key) => Self::NotComparable { name: name.to_string(), key: key.to_owned() },
            None => self,
        }
    }

    /// The object at `key` cannot be believed.
    pub fn corrupt(key: impl Into<String>, reason: impl std::fmt::Display) -> Self {
        Self::Corrupt { key: key.into(), reason: reason.to_string() }
    }

    /// The agent stops while `action` was under way for `name`.
    pub fn cancelled(action: &'static str, name: impl std::fmt::Display) -> Self {
        Self::Store(walkeep_store::Error::at(ErrorKind::Cancelled, action, name.to_string()))
    }

    pub(crate) fn encode(error: impl std::fmt::Display) -> Self {
        Self::Internal(error.to_string())
    }

    pub(crate) fn codec(key: &str, error: CodecError) -> Self {
        Self::corrupt(key, error)
    }

    /// Whether what was read is not what was stored: another copy may be whole.
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Corrupt { .. } => true,
            Self::Store(error) => error.kind() == ErrorKind::Corrupt,
            _ => false,
        }
    }

    /// Whether the same call may succeed later without anybody doing anything.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Store(error) if error.kind().is_transient())
    }

    /// Whether work that must be done in the end should be tried again later: everything that somebody or something may mend without
    /// this process (an outage, expired credentials, a lost mount), but not a conflict or a damaged object.
    pub fn is_mendable(&self) -> bool {
        match self {
            Self::Store(error) => error.is_in_doubt() || !matches!(error.kind(), ErrorKind::Cancelled | ErrorKind::AlreadyExists),
            Self::NoRepository { .. } | Self::UnknownCluster { .. } | Self::Format { .. } | Self::Keys(_) => true,
            Self::NotComparable { .. } => true,
            Self::CannotDecrypt { .. } | Self::NotAsConfigured { .. } | Self::Disagree { .. } => false,
            Self::Conflict { .. } | Self::Corrupt { .. } | Self::Overtaken { .. } | Self::LetGo { .. } => false,
            Self::Lease { .. } | Self::Internal(_) => false,
        }
    }

    /// Whether the same call fails until a person changes something on this host: waiting would only hide the reason.
    pub fn is_permanent(&self) -> bool {
        match self {
            Self::Format { .. } | Self::UnknownCluster { .. } => true,
            Self::CannotDecrypt { .. } | Self::NotAsConfigured { .. } | Self::Disagree { .. } | Self::Keys(_) | Self::LetGo { .. } => true,
            Self::Store(error) => error.kind() == ErrorKind::Misconfigured,
            Self::NoRepository { .. }
            | Self::Conflict { .. }
            | Self::NotComparable { .. }
            | Self::Corrupt { .. }
            | Self::Overtaken { .. }
            | Self::Lease { .. }
            | Self::Internal(_) => false,
        }
    }

    /// Whether the configuration is at fault, and not what it leads to.
    pub fn is_configuration(&self) -> bool {
        match self {
            Self::Store(error) => matches!(error.kind(), ErrorKind::Misconfigured | ErrorKind::NoCredentials),
            Self::Keys(_) | Self::NotAsConfigured { .. } | Self::Disagree { .. } => true,
            _ => false,
        }
    }

    /// A short word for logs and metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Store(error) => error.kind().as_str(),
            Self::NoRepository { .. } => "no_repository",
            Self::UnknownCluster { .. } => "unknown_cluster",
            Self::Format { .. } => "format",
            Self::Conflict { .. } => "conflict",
            Self::NotComparable { .. } => "archived",
            Self::Corrupt { .. } => "corrupt",
            Self::CannotDecrypt { .. } => "cannot_decrypt",
            Self::Keys(_) => "keys",
            Self::NotAsConfigured { .. } => "not_as_configured",
            Self::Disagree { .. } => "disagree",
            Self::Overtaken { .. } => "overtaken",
            Self::LetGo { .. } => "let_go",
            Self::Lease { .. } => "lease",
            Self::Internal(_) => "internal",
        }
    }

    /// What the operator can do.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Store(error) if error.is_in_doubt() => {
                "Look at the repository's disk. The host that stored the object stores it anew when it is offered there; if it is of no other use, remove the file and it is stored when it is offered again."
            }
            Self::Store(error) => match error.kind() {
                ErrorKind::Denied if error.is_of_a_directory() => {
                    "The repository must belong to the user who runs the agent: run every command as that user, and give back what root made (chown -R)."
                }
                ErrorKind::Denied => "Check the repository's credentials and their permissions (get, put, list on the prefix).",
                ErrorKind::NoCredentials => {
                    "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY for this command, or profile, or access_key_id with secret_access_key_file, in the configuration."
                }
                ErrorKind::Misconfigured => "Correct the configuration of the repository.",
                ErrorKind::Unusable if error.is_of_a_directory() => {
                    "Is the repository's disk mounted, and writable? Where there never was a repository, `walkeep init` makes one."
                }
                ErrorKind::Unusable => "Check the repository's url, endpoint, region and ca_file.",
                ErrorKind::Full => "Make room on the repository's disk, or raise its quota.",
                ErrorKind::Transient if error.is_of_a_directory() => "Look at the repository's disk: the system's log may say more.",
                ErrorKind::Transient => {
                    "Is the repository's server up, and reachable from here, and what its credentials come from? Check endpoint and network."
                }
                ErrorKind::Archived => {
                    "`walkeep thaw` with a restore's target asks for all that it needs, and waits: minutes to hours. Then try again."
                }
                ErrorKind::Corrupt => "Run `walkeep check`; the object or the way to it is damaged.",
                ErrorKind::NotFound | ErrorKind::AlreadyExists => "See the log of the agent.",
                ErrorKind::Cancelled => "It was told to stop. Run it again for what is left.",
            },
            Self::NoRepository { .. } => "Check the url, or run `walkeep init`.",
            Self::UnknownCluster { .. } => "Run `walkeep init` for this cluster first, or correct --cluster.",
            Self::Format { .. } => "Upgrade Walkeep on this host.",
            Self::Conflict { .. } => {
                "Two servers write one archive, or a file changed after it was archived. Find the second writer before anything else; `walkeep timelines` shows what is stored."
            }
            Self::NotComparable { .. } => {
                "Nothing was overwritten, and nothing is called archived that was not compared. `walkeep thaw --wal NAME` makes what is stored readable: minutes to hours. The next offer of the file settles it."
            }
            Self::Corrupt { .. } => {
                "The stored object must not be trusted; restore it from a copy of the repository, or take a new base backup that builds on nothing stored (`walkeep backup --full`)."
            }
            Self::CannotDecrypt { .. } => {
                "Give this command one of the identities that it was encrypted for: identity_file in [cluster.NAME.encryption], \
                 WALKEEP_ENCRYPTION_IDENTITY_FILE, WALKEEP_ENCRYPTION_IDENTITY or the systemd credential walkeep-identity. `walkeep key list` shows what it has."
            }
            Self::Keys(_) => "Correct [cluster.NAME.encryption]; `walkeep key list` shows what it means.",
            Self::NotAsConfigured { .. } => {
                "Whether a cluster is encrypted is decided by its first `walkeep init`, for ever. Make [cluster.NAME.encryption] fit, or begin another \
                 repository (another url) and take a base backup there."
            }
            Self::LetGo { .. } => {
                "This server was put back to an old copy of itself, or is on a timeline that is not kept. If it is to go on like this, give it a place of its own: \
                 another cluster's name in the configuration or another url, `walkeep init`, and a backup. Within its time of grace `walkeep expire --undo` brings back what was let go."
            }
            Self::Disagree { .. } => {
                "All repositories of a configuration keep the same. Correct the url of the wrong one; a new one is made ready by `walkeep init`."
            }
            Self::Overtaken { .. } => "Nothing, if it is told once: an upload of an earlier process arrived late.",
            Self::Lease { .. } => {
                "Two agents must not write one archive. Stop the other one; if it is gone for good, or this one shall take its place, run `walkeep lease take` here."
            }
            Self::Internal(_) => "This is a defect of Walkeep; please report it.",
        }
    }
}
