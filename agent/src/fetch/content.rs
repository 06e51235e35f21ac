//! What PostgreSQL is given: proven, fit for it, and already where it is wanted.
//!
//! A segment for a recovery is opened straight into a file without a name in the folder of its destination: given one, it is in its place, nothing can be left
//! over from a killed process, nothing torn can be taken for whole. Where that cannot be (a full disk, an old file system, another reader than a recovery), it is
//! opened in memory.

use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use walkeep_core::{TimelineHistory, WalFileName, page};

use super::find::Trouble;
use crate::durable::Unnamed;
use crate::repository::stored::StoredFile;
use crate::repository::{ClusterIdentity, Error};

/// A file's content.
#[derive(Debug)]
pub enum Content {
    /// In the folder where it is wanted.
    Written(Unnamed),
    /// In memory.
    Memory(Bytes),
}

/// A finished file that was got and not opened yet.
#[derive(Debug)]
pub struct Unopened {
    pub(super) stored: StoredFile,
    pub(super) file: WalFileName,
    pub(super) key: String,
    pub(super) identity: ClusterIdentity,
}

/// Why a file could not be opened into a folder.
enum Failure {
    /// It is not what it should be.
    Trouble(Trouble),
    /// The folder does not take it.
    Folder(io::Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Trouble(error.into())
    }
}

impl Unopened {
    /// Opens it, into `folder` if that can be.
    pub async fn open(self, folder: Option<PathBuf>) -> Result<Content, Trouble> {
        let Self { stored, file, key, identity } = self;
        let unfit = move |reason: String| Trouble::Unfit { key: key.clone(), reason };
        let open = move |stored: StoredFile| {
            if let Some(folder) = folder {
                match written(&stored, &folder, |front| check_front(file, front, &identity).map_err(&unfit)) {
                    Ok(content) => return Ok(Content::Written(content)),
                    Err(Failure::Trouble(trouble)) => return Err(trouble),
                    Err(Failure::Folder(error)) => {
                        tracing::debug!(%file, folder = %folder.display(), %error, "it stays in memory until it is asked for");
                    }
                }
            }
            let content = stored.content()?.content;
            check(file, &content, &identity).map_err(unfit)?;
            Ok(Content::Memory(content))
        };
        stored.on_a_core(open).await?
    }
}

fn written(stored: &StoredFile, folder: &Path, check: impl Fn(&[u8]) -> Result<(), Trouble>) -> Result<Unnamed, Failure> {
    let mut file = Unnamed::begin(folder).map_err(Failure::Folder)?;
    let mut front = true;
    stored.pieces(|piece| {
        if std::mem::take(&mut front) {
            check(piece).map_err(Failure::Trouble)?;
        }
        file.append(piece).map_err(Failure::Folder)
    })?;
    Ok(file)
}

/// The last look at a file's content before PostgreSQL can see it. Name, cluster and hash are proven by the repository already.
pub(super) fn check(file: WalFileName, content: &[u8], identity: &ClusterIdentity) -> Result<(), String> {
    match file {
        WalFileName::Segment(segment) => {
            let checked = page::check_segment(segment, identity.segment_size, identity.system_identifier, None, content);
            checked.map_err(|error| error.to_string())
        }
        WalFileName::History(timeline) => TimelineHistory::parse(timeline, content).map(drop).map_err(|error| error.to_string()),
        WalFileName::Partial(_) | WalFileName::BackupHistory { .. } => Ok(()),
    }
}

/// The same for a segment's first piece; its length is described.
fn check_front(file: WalFileName, front: &[u8], identity: &ClusterIdentity) -> Result<(), String> {
    let WalFileName::Segment(segment) = file else { return Err("it is no segment".to_owned()) };
    let checked = page::check_partial_segment(segment, identity.segment_size, identity.system_identifier, None, front);
    checked.map_err(|error| error.to_string())
}
