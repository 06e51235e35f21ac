//! `BASE_BACKUP`: a whole cluster over a replication connection, as one stream of files.
//!
//! The two grammars and framings (up to PostgreSQL 14, and since) end here. Memory is bounded by one message: nothing is read ahead
//! of the caller. WAL is never part of it and the server never waits for its archive: both are the agent's business.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::{Buf, Bytes};
use walkeep_core::{Lsn, TimelineId};

use super::error::{Error, ServerError};
use super::replication::{ReplicationConnection, ReplicationError};
use super::tar::{self, TarError};
use super::wire::{Message, Row, row, text, unexpected, value, within};

/// What the server answers at the end of a base backup with damaged pages.
const DATA_CORRUPTED: &str = "XX001";

/// What to ask for.
#[derive(Debug, Clone)]
pub struct BackupOptions {
    /// The label in `backup_label`.
    pub label: String,
    /// Whether the server hurries the checkpoint it begins with.
    pub fast_checkpoint: bool,
    /// The most the server may send, in kB a second (32 to 1048576).
    pub max_rate_kb: Option<u32>,
    /// Whether the server checks data page checksums while it reads.
    pub verify_checksums: bool,
    /// How long the checkpoint may take.
    pub start_timeout: Duration,
    /// How long the server may be silent afterwards.
    pub idle_timeout: Duration,
}

impl BackupOptions {
    /// The usual: at once, at full speed, with checksums verified.
    pub fn new(label: impl Into<String>) -> Self {
        Self {
            label: label.into(),
            fast_checkpoint: true,
            max_rate_kb: None,
            verify_checksums: true,
            start_timeout: Duration::from_secs(3600),
            idle_timeout: Duration::from_secs(600),
        }
    }

    fn command(&self, modern: bool) -> String {
        let label = self.label.replace('\'', "''");
        let rate = self.max_rate_kb.map(|rate| rate.to_string());
        if modern {
            let mut parts = vec![format!("LABEL '{label}'"), "PROGRESS".into(), "WAIT false".into(), "TABLESPACE_MAP".into()];
            parts.push(format!("CHECKPOINT '{}'", if self.fast_checkpoint { "fast" } else { "spread" }));
            parts.push(format!("VERIFY_CHECKSUMS {}", self.verify_checksums));
            parts.push("MANIFEST 'yes', MANIFEST_CHECKSUMS 'CRC32C'".into());
            parts.extend(rate.map(|rate| format!("MAX_RATE {rate}")));
            return format!("BASE_BACKUP ({})", parts.join(", "));
        }
        let mut parts = vec![format!("BASE_BACKUP LABEL '{label}' PROGRESS NOWAIT TABLESPACE_MAP")];
        parts.extend(self.fast_checkpoint.then(|| "FAST".into()));
        parts.extend(rate.map(|rate| format!("MAX_RATE {rate}")));
        parts.extend((!self.verify_checksums).then(|| "NOVERIFY_CHECKSUMS".into()));
        parts.push("MANIFEST 'yes' MANIFEST_CHECKSUMS 'CRC32C'".into());
        parts.join(" ")
    }
}

/// A tablespace outside the data directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tablespace {
    /// Its object identifier, the name of its link in `pg_tblspc`.
    pub oid: u32,
    /// Where it lies on the server.
    pub location: String,
    /// The server's estimate.
    pub size_kb: Option<u64>,
}

/// What comes out of a base backup. Paths are relative to the data directory; a tablespace's begin with `pg_tblspc/<oid>/`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The checkpoint is done, files follow.
    Started {
        /// Replay begins here.
        start_lsn: Lsn,
        /// On this timeline.
        timeline: TimelineId,
        /// Tablespaces outside the data directory.
        tablespaces: Vec<Tablespace>,
        /// The server's estimate for the data directory.
        data_directory_kb: Option<u64>,
    },
    /// A file, its bytes, a directory; never the links of tablespaces, which are in the file `tablespace_map`.
    Entry(tar::Entry),
    /// Bytes of the backup manifest.
    Manifest(Bytes),
    /// The manifest is complete.
    ManifestEnd,
    /// How many bytes the server has sent, from PostgreSQL 15 on.
    Progress(u64),
    /// The backup is complete. WAL up to here makes it consistent.
    Finished {
        /// The last position replay needs.
        stop_lsn: Lsn,
        /// On this timeline.
        timeline: TimelineId,
        /// What the server remarked.
        notices: Vec<ServerError>,
        /// Whether it found pages whose checksums are wrong. It sends them all the same, and says so at the end.
        damaged: bool,
    },
}

/// Why there is no backup.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// What was sent is not a backup.
    #[error("the server's archive cannot be read: {0}")]
    Archive(TarError),
    /// The server or the connection failed.
    #[error(transparent)]
    Replication(Box<ReplicationError>),
}

impl From<Error> for BackupError {
    fn from(error: Error) -> Self {
        Self::from(ReplicationError::from(error))
    }
}

impl From<ReplicationError> for BackupError {
    fn from(error: ReplicationError) -> Self {
        Self::Replication(Box::new(error))
    }
}

/// What the bytes of CopyData are at the moment.
enum Part {
    /// Between archives.
    None,
    /// A tar archive; paths get this prefix.
    Archive {
        reader: tar::Reader,
        prefix: String,
    },
    Manifest,
}

enum Phase {
    /// Reading the result sets before the files: which one, and what they said.
    Preparing {
        sets: u8,
        start: Option<(Lsn, TimelineId)>,
        data_directory_kb: Option<u64>,
    },
    Copying,
    Done,
}

/// A base backup under way. Dropped early, it closes the connection, which aborts the backup on the server.
pub struct BaseBackupStream {
    connection: ReplicationConnection,
    options: BackupOptions,
    /// One CopyOut with a type byte in each message, from 15 on; else one CopyOut for each archive.
    modern: bool,
    phase: Phase,
    part: Part,
    tablespaces: Vec<Tablespace>,
    /// Up to 14: the prefixes of the archives to come.
    archives: VecDeque<String>,
    stop: Option<(Lsn, TimelineId)>,
}

impl BaseBackupStream {
    /// Asks for a backup; what comes of it is in the events.
    pub async fn start(mut connection: ReplicationConnection, options: BackupOptions) -> Result<Self, BackupError> {
        let modern = connection.server_version_num().await? >= 150_000;
        connection.begin()?;
        connection.wire().take_notices();
        connection.wire().send_query(&options.command(modern)).await?;
        Ok(Self {
            connection,
            options,
            modern,
            phase: Phase::Preparing { sets: 0, start: None, data_directory_kb: None },
            part: Part::None,
            tablespaces: Vec::new(),
            archives: VecDeque::new(),
            stop: None,
        })
    }

    /// The next event; `None` after [`Event::Finished`]. Cancel-safe.
    pub async fn next(&mut self) -> Result<Option<Event>, BackupError> {
        loop {
            if let Part::Archive { reader, prefix } = &mut self.part
                && let Some(entry) = reader.next_entry().map_err(BackupError::Archive)?
            {
                return Ok(Some(placed(entry, prefix)));
            }
            let (after, doing) = match self.phase {
                Phase::Done => return Ok(None),
                Phase::Preparing { .. } => (self.options.start_timeout, "starting the base backup"),
                Phase::Copying => (self.options.idle_timeout, "receiving the base backup"),
            };
            let message = within(after, doing, self.connection.wire().next()).await?;
            if let Some(event) = self.take(message).await? {
                return Ok(Some(event));
            }
        }
    }

    async fn take(&mut self, message: Message) -> Result<Option<Event>, BackupError> {
        match message {
            Message::RowDescription => {
                if let Phase::Preparing { sets, .. } = &mut self.phase {
                    *sets = sets.saturating_add(1);
                }
                Ok(None)
            }
            Message::DataRow(body) => self.take_row(&row(body)?).map(|()| None),
            Message::CommandComplete => Ok(None),
            Message::CopyOut => self.begin_copy(),
            Message::CopyData(body) if self.modern => self.take_tagged(body),
            Message::CopyData(body) => self.take_data(body),
            Message::CopyDone => Ok(self.end_part()?.then_some(Event::ManifestEnd)),
            Message::Ready => {
                self.phase = Phase::Done;
                let stop = self.stop.ok_or_else(|| protocol("it ended without a stop position"))?;
                Ok(Some(self.finished(stop, false)))
            }
            Message::Error(error) => {
                self.phase = Phase::Done;
                let error = self.connection.wire().recover(error).await;
                match (error, self.stop) {
                    // Everything was sent, the stop position too: what is damaged on the server is no reason to have no backup.
                    (Error::Server(error), Some(stop)) if error.code == DATA_CORRUPTED => {
                        tracing::warn!(message = error.message, "the server ended the base backup");
                        Ok(Some(self.finished(stop, true)))
                    }
                    (other, _) => Err(other.into()),
                }
            }
            other => Err(unexpected("base backup", &other).into()),
        }
    }

    fn finished(&mut self, (stop_lsn, timeline): (Lsn, TimelineId), damaged: bool) -> Event {
        Event::Finished { stop_lsn, timeline, notices: self.connection.wire().take_notices(), damaged }
    }

    fn take_row(&mut self, row: &Row) -> Result<(), BackupError> {
        match &mut self.phase {
            Phase::Preparing { sets: 1, start, .. } => *start = Some(position(row)?),
            Phase::Preparing { data_directory_kb, .. } => {
                let size_kb = text(row, 2)?.and_then(|size| size.parse().ok());
                // Archives come in the order of the rows; the data directory's has no OID and comes last.
                if text(row, 0)?.is_none() {
                    *data_directory_kb = size_kb;
                    self.archives.push_back(String::new());
                } else {
                    let oid: u32 = value(row, 0, "tablespace OID")?;
                    self.archives.push_back(format!("pg_tblspc/{oid}/"));
                    self.tablespaces.push(Tablespace { oid, location: value(row, 1, "tablespace location")?, size_kb });
                }
            }
            _ => self.stop = Some(position(row)?),
        }
        Ok(())
    }

    fn begin_copy(&mut self) -> Result<Option<Event>, BackupError> {
        if !self.modern {
            self.part = match self.archives.pop_front() {
                Some(prefix) => Part::Archive { reader: tar::Reader::default(), prefix },
                None => Part::Manifest,
            };
        }
        let Phase::Preparing { start, data_directory_kb, .. } = self.phase else { return Ok(None) };
        self.phase = Phase::Copying;
        let (start_lsn, timeline) = start.ok_or_else(|| protocol("files came before the start position"))?;
        Ok(Some(Event::Started { start_lsn, timeline, tablespaces: self.tablespaces.clone(), data_directory_kb }))
    }

    fn take_tagged(&mut self, mut body: Bytes) -> Result<Option<Event>, BackupError> {
        let tag = body.try_get_u8().map_err(|_| protocol("an empty message"))?;
        match tag {
            b'd' => self.take_data(body),
            b'p' => Ok(Some(Event::Progress(body.try_get_u64().map_err(|_| protocol("a progress report cut short"))?))),
            b'm' => {
                self.end_part()?;
                self.part = Part::Manifest;
                Ok(None)
            }
            b'n' => {
                self.end_part()?;
                let name = body.split(|byte| *byte == 0).next().unwrap_or_default();
                let name = std::str::from_utf8(name).unwrap_or_default();
                let prefix = match name.strip_suffix(".tar") {
                    Some("base") => String::new(),
                    Some(oid) if oid.parse::<u32>().is_ok() => format!("pg_tblspc/{oid}/"),
                    _ => return Err(protocol(&format!("an archive named {name:?}")).into()),
                };
                self.part = Part::Archive { reader: tar::Reader::default(), prefix };
                Ok(None)
            }
            other => Err(protocol(&format!("a message of type {:?}", char::from(other))).into()),
        }
    }

    fn take_data(&mut self, body: Bytes) -> Result<Option<Event>, BackupError> {
        match &mut self.part {
            Part::Archive { reader, .. } => {
                reader.push(body);
                Ok(None)
            }
            Part::Manifest => Ok(Some(Event::Manifest(body))),
            Part::None => Err(protocol("data that belongs to no archive").into()),
        }
    }

    /// Ends what was being read; whether it was the manifest.
    fn end_part(&mut self) -> Result<bool, BackupError> {
        match std::mem::replace(&mut self.part, Part::None) {
            Part::None => Ok(false),
            Part::Manifest => Ok(true),
            Part::Archive { reader, .. } => Ok(reader.finish().map(|()| false).map_err(BackupError::Archive)?),
        }
    }
}

fn protocol(what: &str) -> Error {
    Error::Protocol(format!("base backup: {what}"))
}

fn position(row: &Row) -> Result<(Lsn, TimelineId), Error> {
    Ok((value(row, 0, "WAL position")?, value(row, 1, "timeline")?))
}

/// The entry as it lies in the data directory.
fn placed(mut entry: tar::Entry, prefix: &str) -> Event {
    match &mut entry {
        tar::Entry::File { path, .. } | tar::Entry::Directory { path, .. } | tar::Entry::Symlink { path, .. } => path.insert_str(0, prefix),
        tar::Entry::Data(_) | tar::Entry::FileEnd => {}
    }
    Event::Entry(entry)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_of_both_grammars() {
        let mut options = BackupOptions::new("it's");
        assert_eq!(
            options.command(true),
            "BASE_BACKUP (LABEL 'it''s', PROGRESS, WAIT false, TABLESPACE_MAP, CHECKPOINT 'fast', VERIFY_CHECKSUMS true, \
             MANIFEST 'yes', MANIFEST_CHECKSUMS 'CRC32C')"
        );
        options.max_rate_kb = Some(1024);
        options.verify_checksums = false;
        assert_eq!(
            options.command(false),
            "BASE_BACKUP LABEL 'it''s' PROGRESS NOWAIT TABLESPACE_MAP FAST MAX_RATE 1024 NOVERIFY_CHECKSUMS \
             MANIFEST 'yes' MANIFEST_CHECKSUMS 'CRC32C'"
        );
    }
}
