//! archive_command's work: one finished file of `pg_wal` into the repository, and the answer that PostgreSQL acts upon.
//!
//! "Done" is final: PostgreSQL removes the file after it. So it is said only when the repository holds these very bytes, and the
//! bytes are what their name says. Where the file lies and who may ask is decided before ([`crate::wal_path`], [`crate::server`]).

mod ahead;

use std::fs::File;
use std::io::{Read, Seek};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio_util::sync::CancellationToken;
use walkeep_core::blake3::Blake3Sum;
use walkeep_core::page::{self, SegmentError};
use walkeep_core::{SegmentName, TimelineHistory, WalFileName};

use crate::codec;
use crate::index::Queue;
use crate::metrics::{Metrics, Source};
use crate::recent::Recent;
use crate::repository::wal::Stored;
use crate::repository::{self, ClusterRepository};
use crate::wal_path;
use ahead::Ahead;

/// The most bytes of a history or `.backup` file; PostgreSQL writes a few lines.
const SMALL_FILE: u64 = 1 << 20;

/// What tells whose a segment is.
const FIRST_PAGE: usize = 8192;

/// How long to wait for the stream to store the same segment.
const TURN: Duration = Duration::from_secs(5);

/// Why a file was not archived. PostgreSQL keeps it and offers it again.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// Not a file that may be archived from there.
    #[error(transparent)]
    Path(#[from] wal_path::WalPathError),
    /// It could not be read.
    #[error("cannot read {name}: {cause}")]
    Read {
        /// The file.
        name: WalFileName,
        /// Why.
        cause: std::io::Error,
    },
    /// Somebody wrote to it meanwhile.
    #[error("{name} changed while it was read")]
    Changed {
        /// The file.
        name: WalFileName,
    },
    /// A segment that is not what its name says.
    #[error("{name} was refused: {cause}")]
    NotWal {
        /// The file.
        name: WalFileName,
        /// What does not fit.
        cause: SegmentError,
    },
    /// A file of the wrong size.
    #[error("{name} was refused: it has {found} bytes, expected {expected}")]
    Size {
        /// The file.
        name: WalFileName,
        /// What it has.
        found: u64,
        /// What it should have.
        expected: String,
    },
    /// A history file that PostgreSQL would not understand.
    #[error("{name} was refused: {cause}")]
    History {
        /// The file.
        name: WalFileName,
        /// What does not fit.
        cause: walkeep_core::history::HistoryError,
    },
    /// The repository did not take it.
    #[error(transparent)]
    Repository(#[from] repository::Error),
}

impl ArchiveError {
    /// What the operator can do.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Path(error) if error.is_missing() => {
                "There is no such file. A relative path begins in the current directory: PostgreSQL runs the command in its data directory."
            }
            Self::Path(wal_path::WalPathError::NotFinished(_)) => {
                "A copy of a finished segment needs an empty archive_status/SEGMENT.ready beside it, as PostgreSQL makes it."
            }
            Self::Path(_) => {
                "The archive command takes files of this cluster's pg_wal only; check archive_command, --socket and --cluster."
            }
            Self::Read { .. } => "Check the disk and the permissions of pg_wal; the agent must run as the server's user.",
            Self::Changed { .. } => "Nothing was stored. PostgreSQL offers the file again; look who writes to pg_wal.",
            Self::NotWal { .. } | Self::Size { .. } | Self::History { .. } => {
                "Nothing was stored. If this server was initialised anew or upgraded, run `walkeep init --new-identity`."
            }
            Self::Repository(error) => error.hint(),
        }
    }

    /// Whether the answer stays the same until a person changes something.
    pub fn is_permanent(&self) -> bool {
        match self {
            Self::Path(error) => error.is_permanent(),
            Self::Repository(error) => error.is_permanent(),
            Self::Read { .. } | Self::Changed { .. } | Self::NotWal { .. } | Self::Size { .. } | Self::History { .. } => false,
        }
    }

    /// Why such a file is refused, in a word for all of its kind; `None` for what is no refusal but trouble.
    pub fn refusal(&self) -> Option<&'static str> {
        match self {
            Self::Path(error) if error.is_permanent() => Some("path"),
            Self::NotWal { .. } | Self::Size { .. } | Self::History { .. } => Some("not WAL"),
            Self::Repository(error) => error.refusal(),
            Self::Path(_) | Self::Read { .. } | Self::Changed { .. } => None,
        }
    }

    /// Whether asking again may help without anybody doing anything.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Repository(error) if error.is_transient())
    }
}

/// The archive command's side of the agent.
#[derive(Debug)]
pub struct Archiver {
    archives: Arc<Archives>,
    ahead: Option<Arc<Ahead>>,
}

/// What storing a file needs.
#[derive(Debug)]
struct Archives {
    repository: Arc<ClusterRepository>,
    recent: Arc<Recent>,
    metrics: Arc<Metrics>,
    index: Queue,
    cancel: CancellationToken,
}

/// Why a file is stored now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Because {
    /// PostgreSQL offers it.
    Offered,
    /// It will. Nothing of it is stored in parts; and what fails now is counted when it fails for PostgreSQL.
    Ahead,
}

impl Archiver {
    /// Stores into `repository`.
    pub fn new(
        repository: Arc<ClusterRepository>,
        recent: Arc<Recent>,
        metrics: Arc<Metrics>,
        index: Queue,
        cancel: CancellationToken,
    ) -> Self {
        Self { archives: Arc::new(Archives { repository, recent, metrics, index, cancel }), ahead: None }
    }

    /// The same, storing the segments that wait behind one that is offered.
    pub fn looking_ahead(mut self) -> Self {
        self.ahead = Ahead::new(self.archives.clone());
        self
    }

    /// Stores the file if it is what its name says; the same content again is fine. Answers only when it is durable.
    pub async fn archive(&self, source: wal_path::Source) -> Result<Stored, ArchiveError> {
        let (WalFileName::Segment(segment), Some(ahead)) = (source.name, &self.ahead) else {
            return self.archives.store(source, Because::Offered).await;
        };
        let path = source.path.clone();
        let known = ahead.claim(segment).await.filter(|known| known.is_of(source.stamp));
        let (stored, new) = match known {
            Some(known) => (Stored::Already, known.new),
            None => {
                let stored = self.archives.store(source, Because::Offered).await?;
                (stored, matches!(stored, Stored::New { .. }))
            }
        };
        ahead::go_on(ahead, path, segment, new);
        Ok(stored)
    }
}

impl Archives {
    async fn store(&self, source: wal_path::Source, because: Because) -> Result<Stored, ArchiveError> {
        let name = source.name;
        let put = async {
            if let WalFileName::Segment(segment) = name {
                return self.store_segment(source, segment, because).await;
            }
            let expected = self.expected_size(name);
            let content = on_blocking_thread(move || read(source, expected)).await??;
            self.check(name, &content)?;
            self.counted(because, self.repository.put_wal(name, content).await)
        };
        tokio::select! {
            put = put => put,
            () = self.cancel.cancelled() => Err(repository::Error::cancelled("put", name).into()),
        }
    }

    fn counted(&self, because: Because, put: repository::Result<Stored>) -> Result<Stored, ArchiveError> {
        match &put {
            Ok(stored) => self.metrics.stored(Source::Archive, *stored),
            Err(error) if because == Because::Offered => self.metrics.refused(error),
            Err(_) => {}
        }
        Ok(put?)
    }

    /// In pieces: only the object is in memory.
    async fn store_segment(&self, source: wal_path::Source, segment: SegmentName, because: Because) -> Result<Stored, ArchiveError> {
        let wal_path::Source { name, file, bytes, stamp, .. } = source;
        let (expected, identity) = (self.repository.identity().segment_size.bytes(), self.repository.identity());
        if bytes != expected {
            return Err(ArchiveError::Size { name, found: bytes, expected: expected.to_string() });
        }
        let unreadable = move |cause| ArchiveError::Read { name, cause };
        let (page, file) = on_blocking_thread(move || first_page(file)).await?.map_err(unreadable)?;
        page::check_partial_segment(segment, identity.segment_size, identity.system_identifier, None, &page)
            .map_err(|cause| ArchiveError::NotWal { name, cause })?;
        self.repository.refuse_let_go(segment).await.inspect_err(|error| self.metrics.refused(error))?;
        // Not for long: if the stream cannot store it, the reason is PostgreSQL's to know now.
        let _turn = tokio::time::timeout(TURN, self.recent.turn(segment)).await.ok();
        let mut file = file;
        if let Some(stored) = self.recent.hash_of(segment) {
            let (hash, hashed) = on_blocking_thread(move || hash_of(file)).await?.map_err(unreadable)?;
            if hash == stored && self.is_still_there(segment, hash).await? {
                return Ok(Stored::Already);
            }
            file = hashed;
        }
        let pack = self.repository.packer(segment)?;
        let (packed, mut file) = on_blocking_thread(move || pack(&mut file).map(|packed| (packed, file))).await?.map_err(unreadable)?;
        // What was checked, hashed and compressed is one content.
        if wal_path::Stamp::of(&file.metadata().map_err(unreadable)?) != stamp {
            return Err(ArchiveError::Changed { name });
        }
        // Another server's stream may have acknowledged its beginning, and other bytes.
        if because == Because::Offered && self.has_parts(segment).await? {
            let (content, read) = on_blocking_thread(move || whole(file)).await?.map_err(unreadable)?;
            let compared = self.repository.compare_with_parts(segment, &content).await;
            compared.inspect_err(|error| self.metrics.refused(error))?;
            file = read;
        }
        let stored = self.counted(because, self.repository.put_segment(&packed).await)?;
        self.recent.note(segment, packed.hash());
        self.index.offer_while_it_is(segment, file, stamp);
        Ok(stored)
    }

    async fn has_parts(&self, segment: SegmentName) -> Result<bool, ArchiveError> {
        let parts = self.repository.list_parts(segment).await.inspect_err(|error| self.metrics.refused(error))?;
        Ok(!parts.is_empty())
    }

    /// After this answer the server may remove its copy, so what was stored a while ago is looked at once more: one small request.
    async fn is_still_there(&self, segment: SegmentName, hash: Blake3Sum) -> Result<bool, ArchiveError> {
        let is_there = self.repository.has_segment(segment, hash).await.map_err(|error| error.in_comparing(segment));
        let is_there = is_there.inspect_err(|error| self.metrics.refused(error))?;
        if !is_there {
            tracing::warn!(%segment, "it was stored by the stream and is gone from the repository, or another: storing it again");
        }
        Ok(is_there)
    }

    fn expected_size(&self, name: WalFileName) -> Size {
        match name {
            WalFileName::Segment(_) | WalFileName::Partial(_) => Size::Exactly(self.repository.identity().segment_size.bytes()),
            WalFileName::History(_) | WalFileName::BackupHistory { .. } => Size::AtMost(SMALL_FILE),
        }
    }

    /// Refuses what is not WAL of this cluster and place.
    fn check(&self, name: WalFileName, content: &[u8]) -> Result<(), ArchiveError> {
        let identity = self.repository.identity();
        match name {
            WalFileName::Segment(segment) | WalFileName::Partial(segment) => {
                page::check_segment(segment, identity.segment_size, identity.system_identifier, None, content)
                    .map_err(|cause| ArchiveError::NotWal { name, cause })
            }
            WalFileName::History(timeline) => {
                TimelineHistory::parse(timeline, content).map(drop).map_err(|cause| ArchiveError::History { name, cause })
            }
            WalFileName::BackupHistory { .. } => Ok(()),
        }
    }
}

/// How large a file may be.
#[derive(Debug, Clone, Copy)]
enum Size {
    Exactly(u64),
    AtMost(u64),
}

fn read(source: wal_path::Source, size: Size) -> Result<Bytes, ArchiveError> {
    let wal_path::Source { name, file, bytes, .. } = source;
    let (fits, limit, expected) = match size {
        Size::Exactly(size) => (bytes == size, size, size.to_string()),
        Size::AtMost(size) => ((1..=size).contains(&bytes), size, format!("1 to {size}")),
    };
    if !fits {
        return Err(ArchiveError::Size { name, found: bytes, expected });
    }
    let mut content = Vec::with_capacity(bytes as usize);
    // One byte more than it may have: a file that grows meanwhile is noticed.
    file.take(limit + 1).read_to_end(&mut content).map_err(|cause| ArchiveError::Read { name, cause })?;
    match content.len() as u64 {
        found if found == bytes => Ok(Bytes::from(content)),
        found => Err(ArchiveError::Size { name, found, expected }),
    }
}

fn first_page(mut file: File) -> std::io::Result<(Vec<u8>, File)> {
    let mut page = vec![0; FIRST_PAGE];
    file.read_exact(&mut page)?;
    Ok((page, file))
}

fn hash_of(mut file: File) -> std::io::Result<(Blake3Sum, File)> {
    file.rewind()?;
    let (hash, _) = codec::blake3_of(&mut file)?;
    Ok((hash, file))
}

fn whole(mut file: File) -> std::io::Result<(Vec<u8>, File)> {
    let mut content = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut content)?;
    Ok((content, file))
}

async fn on_blocking_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, repository::Error> {
    tokio::task::spawn_blocking(work).await.map_err(|died| repository::Error::Internal(died.to_string()))
}
