//! Finds a file in the repository, and proves it or its absence.
//!
//! To PostgreSQL "absent" means "the WAL ends here": it opens the database. So absence is said only when nothing that is stored speaks
//! against it. WAL that lies behind what is missing does: then there is a hole, and recovery must stop instead of end.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures::FutureExt;
use walkeep_core::layout::{GapName, ObjectName};
use walkeep_core::page::SegmentError;
use walkeep_core::parts::Apart;
use walkeep_core::{SegmentName, SegmentNumber, TimelineId, WalFileName};
use walkeep_store::{ErrorKind, ListRequest};

use super::content::{self, Content, Unopened};
use crate::repository::{ClusterIdentity, ClusterRepository, Error};

/// Objects that one page of the look behind a missing segment asks for. One is enough, unless others put objects there, or the server lists the
/// segment's own parts too.
const LOOK: usize = 32;

/// What the repository has under a file's name.
#[derive(Debug)]
pub enum Found {
    /// The file, proven.
    Whole(Content),
    /// A segment that is still being written, filled up with zeros, at which PostgreSQL finds the end of the WAL. It may be longer the
    /// next time.
    Tail {
        /// A whole segment.
        content: Bytes,
        /// Bytes at its front that are WAL.
        wal: u64,
        /// What is stored of it behind a hole: then this is not the end of the WAL.
        apart: Option<Apart>,
    },
    /// Proven absent, for this reason.
    Absent(String),
}

/// Why a file cannot be given, though it may be there.
#[derive(Debug, thiserror::Error)]
pub enum Trouble {
    /// The repository failed.
    #[error(transparent)]
    Repository(#[from] Error),
    /// An object is what its name says, but nothing that PostgreSQL should be given.
    #[error("{key} must not be used: {reason}")]
    Unfit {
        /// The object's key.
        key: String,
        /// What does not fit.
        reason: String,
    },
    /// Nothing under this name, but WAL after it.
    #[error("hole in the archive: {missing} is missing, but {later} is stored")]
    Hole {
        /// What is not there.
        missing: String,
        /// What is, though it was written later.
        later: String,
    },
    /// A stretch within an unfinished segment is not there, and parts behind it are. The agent may be storing it right now.
    #[error("hole in the archive: the bytes {:08X} to {:08X} of {segment}, which is stored in parts, are missing, and later parts are stored", apart.reached, apart.resumes)]
    Apart {
        /// The segment.
        segment: SegmentName,
        /// What was seen.
        apart: Apart,
    },
    /// It was not there, and a moment later it was: it is being stored right now, or it has no beginning.
    #[error("{segment} is being stored, or its beginning is missing: {seen} was seen")]
    Appeared {
        /// The segment.
        segment: SegmentName,
        /// What was listed.
        seen: String,
    },
    /// No cluster with this segment size has such a file.
    #[error("{segment} cannot be a segment of this cluster, whose segments have {size} bytes")]
    Foreign {
        /// The segment.
        segment: SegmentName,
        /// The cluster's segment size.
        size: u64,
    },
}

/// What may help against [`Trouble`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Remedy {
    /// Waiting.
    Wait,
    /// Looking again for some seconds: it may be stored right now.
    Look,
    /// Reading once more: it may have been damaged on its way, or just been replaced.
    Reread,
    /// Nothing that this process can do.
    None,
}

impl Trouble {
    /// What may help.
    pub fn remedy(&self) -> Remedy {
        match self {
            Self::Repository(error) if error.is_transient() => Remedy::Wait,
            Self::Repository(Error::Corrupt { .. }) | Self::Unfit { .. } | Self::Appeared { .. } => Remedy::Reread,
            Self::Repository(Error::Store(error)) if error.kind() == ErrorKind::Corrupt => Remedy::Reread,
            Self::Apart { .. } => Remedy::Look,
            Self::Repository(_) | Self::Hole { .. } | Self::Foreign { .. } => Remedy::None,
        }
    }

    /// Whether the answer stays the same until a person changes something.
    pub fn is_permanent(&self) -> bool {
        match self {
            Self::Repository(error) => error.is_permanent(),
            Self::Foreign { .. } => true,
            // Another server's agent may be storing what is missing; damage may be on the way only.
            Self::Unfit { .. } | Self::Hole { .. } | Self::Apart { .. } | Self::Appeared { .. } => false,
        }
    }

    /// What the operator can do.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Repository(error) => error.hint(),
            Self::Unfit { .. } => {
                "The stored object must not be trusted; restore it from a copy of the repository, or take a new base backup (`walkeep backup`)."
            }
            Self::Hole { .. } => {
                "If another server's agent is storing it, this mends itself. If not, and if there is a copy of the missing file: put it into the pg_wal of a data directory of this cluster, with an empty archive_status/SEGMENT.ready beside it, and `walkeep wal push` it. Else recover to a target before the hole; `walkeep timelines` shows it."
            }
            Self::Apart { .. } => {
                "An agent that is at work mends this itself. If it was killed together with its server while it stored them, what is missing was never confirmed to the server; else parts were lost: take them out of a copy of the repository. Or recover to a target before the hole; `walkeep timelines` shows it, `walkeep log` what was committed before."
            }
            Self::Appeared { .. } => "This mends itself while the agent that stores it runs; if not, `walkeep check` says more.",
            Self::Foreign { .. } => "Check that the data directory belongs to the cluster of this configuration.",
        }
    }
}

/// Reads files of one cluster and judges what it finds.
#[derive(Debug)]
pub struct Finder {
    repository: Arc<ClusterRepository>,
}

impl Finder {
    /// Finds in `repository`.
    pub fn new(repository: Arc<ClusterRepository>) -> Self {
        Self { repository }
    }

    /// Which cluster it is.
    pub fn identity(&self) -> &ClusterIdentity {
        self.repository.identity()
    }

    /// One try. `folder` as for [`Finder::whole`].
    pub async fn find(&self, file: WalFileName, folder: Option<&Path>) -> Result<Found, Trouble> {
        if let Some(content) = self.whole(file, folder.map(Path::to_owned)).await? {
            return Ok(Found::Whole(content));
        }
        match file {
            WalFileName::Segment(segment) => self.find_unfinished(segment).await,
            WalFileName::History(timeline) => self.absent_history(timeline).await,
            WalFileName::Partial(_) | WalFileName::BackupHistory { .. } => Ok(self.absent(file)),
        }
    }

    /// The finished file, fit to be given; `None` if the repository was reached and has none. A segment is put into `folder` at once, if one is given. Where
    /// one of several repositories has it damaged, another one's is given.
    pub async fn whole(&self, file: WalFileName, folder: Option<PathBuf>) -> Result<Option<Content>, Trouble> {
        match self.whole_once(&self.repository, file, folder.clone()).await {
            Err(damage) if damage.remedy() == Remedy::Reread => {
                let read = |place: ClusterRepository| {
                    let folder = folder.clone();
                    async move { self.whole_once(&place, file, folder).await }.boxed()
                };
                self.repository
                    .elsewhere(
                        &self.repository.layout().wal_key(file),
                        damage,
                        |trouble: &Trouble| trouble.remedy() == Remedy::Reread,
                        read,
                    )
                    .await
            }
            found => found,
        }
    }

    async fn whole_once(
        &self,
        repository: &ClusterRepository,
        file: WalFileName,
        folder: Option<PathBuf>,
    ) -> Result<Option<Content>, Trouble> {
        let Some(stored) = repository.get_stored_wal(file).await? else { return Ok(None) };
        if let WalFileName::Segment(segment) = file {
            let (start, size) = (self.number(segment)?.start(self.identity().segment_size), self.identity().segment_size.bytes());
            let description = stored.description();
            if description.start != Some(start) {
                return Err(self.unfit(file, format!("it does not say that it begins at {start}")));
            }
            if description.length != size {
                return Err(self.unfit(file, SegmentError::Length { expected: size, found: description.length }.to_string()));
            }
        }
        let folder = folder.filter(|_| matches!(file, WalFileName::Segment(_)));
        let found = Unopened { stored, file, key: self.repository.layout().wal_key(file), identity: self.identity().clone() };
        found.open(folder).await.map(Some)
    }

    /// A segment that is not stored as one object: what is stored of it in parts, if it is the last one.
    async fn find_unfinished(&self, segment: SegmentName) -> Result<Found, Trouble> {
        let number = self.number(segment)?;
        let file = WalFileName::Segment(segment);
        let (tail, apart) = self.repository.get_tail_and_more(segment).await?;
        let (wal, size) = (tail.len() as u64, self.identity().segment_size.bytes());
        if wal < size
            && let Some(later) = self.stored_from(segment, wal == 0).await?
        {
            return match later {
                Later::Itself(seen) => Err(Trouble::Appeared { segment, seen }),
                Later::Behind(_) if wal == 0 && self.begins_after(segment.timeline(), number).await? => {
                    Ok(Found::Absent(format!("{segment} lies before the beginning of its timeline")))
                }
                Later::Behind(later) if wal == 0 => Err(Trouble::Hole { missing: segment.to_string(), later }),
                Later::Behind(later) => Err(Trouble::Hole { missing: format!("{segment} from byte {wal} on"), later }),
            };
        }
        if let Some(gap) = self.recorded_gap(segment, number, wal).await? {
            let later = format!("a gap was recorded there (timeline {} from {} to {}), and later WAL", gap.timeline, gap.from, gap.to);
            return Err(Trouble::Hole { missing: segment.to_string(), later });
        }
        if wal == 0 {
            return Ok(self.absent(file));
        }
        let mut content = Vec::from(tail);
        content.resize(size as usize, 0);
        content::check(file, &content, self.identity()).map_err(|reason| self.unfit(file, reason))?;
        let content = Bytes::from(content);
        Ok(if wal == size { Found::Whole(Content::Memory(content)) } else { Found::Tail { content, wal, apart } })
    }

    /// A recorded gap in the segment, behind its first `wal` bytes: the server did write WAL there, so this is not the end of it.
    async fn recorded_gap(&self, segment: SegmentName, number: SegmentNumber, wal: u64) -> Result<Option<GapName>, Trouble> {
        let size = self.identity().segment_size;
        let (from, to) = (number.start(size).saturating_add(wal), number.end(size));
        let touches = |gap: &GapName| gap.timeline == segment.timeline() && gap.from < to && from < gap.to;
        Ok(self.repository.gaps().await?.into_iter().find(touches))
    }

    /// The first WAL of the timeline that is stored at or behind `segment`; only behind it unless `itself`.
    async fn stored_from(&self, segment: SegmentName, itself: bool) -> Result<Option<Later>, Trouble> {
        let layout = self.repository.layout();
        // Every key of a segment is its name, a dot and more; '/' is the next character after the dot.
        let behind = if itself { "" } else { "/" };
        let start_after = format!("{}{segment}{behind}", layout.log_prefix(segment.timeline(), segment.log()));
        // What another timeline's promotion left of this very segment says nothing about what comes after it.
        let own_partial = ObjectName::Wal(WalFileName::Partial(segment));
        // Servers that sort folder by folder list its parts behind that key too.
        let own = |name: &ObjectName| match name {
            ObjectName::Wal(WalFileName::Segment(found)) => *found == segment,
            ObjectName::Part(part) => part.segment == segment,
            _ => false,
        };
        let later = self.first_wal(segment.timeline(), Some(start_after), |name| *name != own_partial && (itself || !own(name))).await?;
        Ok(later.map(|name| match name {
            ObjectName::Wal(WalFileName::Segment(found)) if found == segment => Later::Itself(layout.key(&name)),
            ObjectName::Part(part) if part.segment == segment => Later::Itself(layout.key(&name)),
            name => Later::Behind(layout.key(&name)),
        }))
    }

    /// The first object with WAL, in the order of a timeline's keys, that `counts`.
    async fn first_wal(
        &self,
        timeline: TimelineId,
        start_after: Option<String>,
        counts: impl Fn(&ObjectName) -> bool + Send,
    ) -> Result<Option<ObjectName>, Trouble> {
        let layout = self.repository.layout();
        let prefix = layout.timeline_prefix(timeline);
        let mut request = ListRequest { prefix, start_after, limit: Some(LOOK), ..ListRequest::default() };
        loop {
            let page = self.repository.repository().store().list(&request).await.map_err(Error::from)?;
            // Everything else there is a backup's note or nothing of ours.
            let is_wal = |name: &ObjectName| {
                matches!(name, ObjectName::Wal(WalFileName::Segment(_) | WalFileName::Partial(_)) | ObjectName::Part(_))
            };
            let mut names = page.objects.iter().filter_map(|listed| layout.parse(listed.key.as_str()));
            if let Some(found) = names.find(|name| is_wal(name) && counts(name)) {
                return Ok(Some(found));
            }
            match page.next {
                Some(next) => request.start_after = Some(next),
                None => return Ok(None),
            }
        }
    }

    /// Whether the timeline's history says that its first segment comes after `number`.
    async fn begins_after(&self, timeline: TimelineId, number: SegmentNumber) -> Result<bool, Trouble> {
        let history = self.repository.get_history(timeline).await?;
        Ok(history.is_some_and(|history| number < self.identity().segment_size.segment_of(history.begins())))
    }

    /// A history that is not stored. A server that is told so takes the timeline for its own; if there is WAL of it already, two
    /// servers would write one timeline.
    async fn absent_history(&self, timeline: TimelineId) -> Result<Found, Trouble> {
        let file = WalFileName::History(timeline);
        let wal = if timeline == TimelineId::FIRST { None } else { self.first_wal(timeline, None, |_| true).await? };
        match wal {
            Some(wal) => Err(Trouble::Hole { missing: file.to_string(), later: self.repository.layout().key(&wal) }),
            None => Ok(self.absent(file)),
        }
    }

    fn absent(&self, file: WalFileName) -> Found {
        Found::Absent(format!("{file} is not in the repository {}", self.repository.repository().url()))
    }

    fn unfit(&self, file: WalFileName, reason: String) -> Trouble {
        Trouble::Unfit { key: self.repository.layout().wal_key(file), reason }
    }

    fn number(&self, segment: SegmentName) -> Result<SegmentNumber, Trouble> {
        let size = self.identity().segment_size;
        segment.number(size).ok_or(Trouble::Foreign { segment, size: size.bytes() })
    }
}

/// Where stored WAL lies, seen from a segment that is not there.
enum Later {
    /// It is of this very segment.
    Itself(String),
    /// It is of a later one.
    Behind(String),
}
