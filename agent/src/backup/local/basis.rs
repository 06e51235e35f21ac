//! What a backup of the data directory need not read or store, since an older one has it.
//!
//! Which blocks of a relation's files changed is what the WAL says ([`crate::backup::changes`]); where it cannot say, and for all other files, everything
//! is read and compared by content. How a file is put together of old and new is [`walkeep_core::recipe`]'s.

use std::ops::Range;
use std::sync::Arc;

use anyhow::Result;
use tokio_util::sync::CancellationToken;
use walkeep_core::Lsn;
use walkeep_core::changes::{BLOCK_SIZE, Changes, Verdict};
use walkeep_core::control::ControlFile;
use walkeep_core::layout::BackupId;
use walkeep_core::manifest::{Content, Extent, Source};
use walkeep_core::recipe::{EXTENT, Recipe};
use walkeep_core::relative_path::RelativePath;

use super::directory::DataDirectory;
use crate::backup::changes::{self, Known, Limits, Now};
use crate::backup::former::{self, Former};
use crate::backup::pack::Older;
use crate::repository::ClusterRepository;

/// A former backup, and what changed since.
pub struct Basis {
    former: Former,
    changes: Option<Changes>,
}

/// What of a file is read.
pub enum Read {
    /// All of it; these extents are what it was, in order, as far as they are known and stored.
    All(Vec<Option<Extent>>),
    /// What the recipe says.
    Of(Recipe),
}

impl Basis {
    /// Bytes of its files.
    pub fn bytes(&self) -> u64 {
        self.former.record.bytes
    }

    /// Looks for one, for the backup `ours` that begins at `start`; and what interrupted backups stored.
    pub async fn find(
        repository: &Arc<ClusterRepository>,
        ours: &BackupId,
        directory: &DataDirectory,
        control: &ControlFile,
        start: Lsn,
        cancel: &CancellationToken,
    ) -> Result<(Option<Self>, Older)> {
        let Some(path) = repository.replay_path(control.timeline).await? else {
            tracing::info!(
                timeline = control.timeline.get(),
                "backup: the timeline's history is not stored yet; every file is stored anew"
            );
            return Ok((None, Older::default()));
        };
        let (former, older) = former::find(repository, ours, &path, start).await?;
        let Some(former) = former else { return Ok((None, older)) };
        let pg_wal = directory.path().join("pg_wal");
        let now = Now { path: &path, start, control, pg_wal: Some(&pg_wal) };
        let changes = match changes::since(repository, &former.record, now, Limits::default(), cancel).await? {
            Known::Changes(changes) => Some(changes),
            Known::Unknown(reason) => {
                tracing::info!(since = %former.record.id, reason, "backup: the WAL does not tell what changed; every file is read and compared");
                None
            }
        };
        let older = older.join(&former.extents());
        Ok((Some(Self { former, changes }), older))
    }

    /// What of a file of `size` bytes is read.
    pub async fn file(&mut self, path: &RelativePath, size: u64) -> Read {
        let Some(former) = self.former.file(path).await else { return Read::All(Vec::new()) };
        let stored = self.former.stored(path, &former.content);
        if let Some(changes) = &self.changes
            && let Verdict::Blocks(blocks) = changes.of(path, Some(former.content.size()))
        {
            let bytes = |range: &Range<u32>| u64::from(range.start) * u64::from(BLOCK_SIZE)..u64::from(range.end) * u64::from(BLOCK_SIZE);
            let mut changed: Vec<_> = blocks.rows.iter().map(bytes).collect();
            changed.push((u64::from(blocks.all_from) * u64::from(BLOCK_SIZE)).min(size)..size);
            // A page that was damaged is looked at again: it is told until it is mended.
            changed.extend(former.bad_blocks.iter().map(|block| bytes(&(*block..block + 1))));
            changed.extend(lost_stretches(&former.content, &stored));
            return Read::Of(Recipe::of(&former.content, size, &changed));
        }
        let in_order = former.content.is_in_order() && former.content.extents().iter().rev().skip(1).all(|extent| extent.plain == EXTENT);
        let known = former.content.extents().iter().zip(stored).map(|(extent, stored)| stored.then_some(*extent));
        Read::All(if in_order { known.collect() } else { Vec::new() })
    }

    /// Says what of the former backup was not stored any more.
    pub fn tell_lost(&self) {
        self.former.tell_lost();
    }

    /// Which backup it is.
    pub fn into_id(self) -> BackupId {
        self.former.record.id
    }
}

/// Stretches of a file that lay in extents which are not stored any more: they are as good as changed.
fn lost_stretches<'c>(content: &'c Content, stored: &'c [bool]) -> impl Iterator<Item = Range<u64>> + 'c {
    content.located().filter(|(_, run)| matches!(run.source, Source::Extent { index, .. } if !stored[index as usize])).map(|(at, _)| at)
}
