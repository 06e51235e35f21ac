//! Physical replication: a walsender's commands, and the stream of WAL with its status messages.
//!
//! Where to start, what to do with the WAL and when to report it flushed is the caller's. Nothing here times out while WAL is
//! awaited: the server sends a keepalive every half `wal_sender_timeout`, and the caller has the clock to miss it.

use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use chrono::Utc;
use postgres_protocol::message::frontend;
use walkeep_core::{Lsn, PgTimestamp, SegmentSize, SystemIdentifier, TimelineId};

use super::auth;
use super::error::{Error, ServerError};
use super::params::ConnectionParams;
use super::wire::{Message, REPLY_TIMEOUT, Row, Wire, row, text, unexpected, value, within};

/// How a replication session presents itself.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The name in `pg_stat_replication` and for `synchronous_standby_names`; else that of the parameters.
    pub application_name: Option<String>,
    /// The server's `wal_sender_timeout` for this session only.
    pub wal_sender_timeout: Option<Duration>,
}

/// Why a replication command or stream ended.
#[derive(Debug, thiserror::Error)]
pub enum ReplicationError {
    /// The server has deleted the WAL asked for: a gap, if the repository has not got it.
    #[error("the server no longer has the WAL asked for: {0}")]
    WalRemoved(ServerError),
    /// There is no such slot.
    #[error("the replication slot is missing: {0}")]
    SlotMissing(ServerError),
    /// Another walsender uses the slot.
    #[error("the replication slot is in use: {error}")]
    SlotInUse {
        /// The process that has it, if the server said so.
        pid: Option<u32>,
        /// The server's words.
        error: Box<ServerError>,
    },
    /// The server has invalidated the slot; it keeps no WAL for us any more.
    #[error("the replication slot is lost: {0}")]
    SlotLost(ServerError),
    /// The start asked for is beyond what the server has written: another history, or a server that lost WAL.
    #[error("the server has less WAL than was asked for: {0}")]
    AheadOfFlush(ServerError),
    /// The start or timeline asked for is not in the server's past.
    #[error("the server has another history: {0}")]
    NotInHistory(ServerError),
    /// The server said no for another reason.
    #[error("{0}")]
    Server(ServerError),
    /// PostgreSQL would not take the name.
    #[error("{0:?} cannot be a slot's name: lower-case letters, digits and underscores, at most 63")]
    BadSlotName(String),
    /// The connection, not the command, failed.
    #[error(transparent)]
    Connection(Box<Error>),
}

impl ReplicationError {
    /// What the operator can do.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::SlotInUse { .. } => Some("Another agent, or another receiver, uses this slot; each needs its own."),
            Self::AheadOfFlush(_) => Some(
                "The archive has more than the server: was it restored from an older copy without a new timeline? Do not archive from both.",
            ),
            Self::WalRemoved(_) => Some("WAL is missing in the archive from here on: take a new base backup (`walkeep backup`)."),
            Self::NotInHistory(_) => Some("The server's timeline does not continue the archived one; `walkeep timelines` shows both."),
            Self::Connection(error) => error.hint(),
            Self::Server(error) => Error::Server(error.clone()).hint(),
            Self::SlotMissing(_) | Self::SlotLost(_) | Self::BadSlotName(_) => None,
        }
    }
}

impl From<Error> for ReplicationError {
    fn from(error: Error) -> Self {
        match error {
            Error::Server(error) => Self::Server(error),
            other => Self::Connection(Box::new(other)),
        }
    }
}

impl ReplicationError {
    /// The server's words, if it was the server that said no.
    pub fn server(&self) -> Option<&ServerError> {
        match self {
            Self::WalRemoved(error) | Self::SlotMissing(error) | Self::SlotLost(error) => Some(error),
            Self::SlotInUse { error, .. } => Some(error),
            Self::AheadOfFlush(error) | Self::NotInHistory(error) | Self::Server(error) => Some(error),
            Self::BadSlotName(_) => None,
            Self::Connection(error) => error.server(),
        }
    }

    /// Whether the connection is gone: only a new one helps.
    pub fn is_connection_closed(&self) -> bool {
        match self {
            Self::Connection(error) => error.is_connection_closed(),
            other => other.server().is_some_and(ServerError::is_fatal),
        }
    }

    /// Classifies what the server answers to commands about slots and streams. The code decides where it can; the two refusals that
    /// share XX000 with everything unexpected are known by their English words only.
    fn classify(error: ServerError, streaming: bool) -> Self {
        match error.code.as_str() {
            "58P01" if streaming => Self::WalRemoved(error),
            "42704" => Self::SlotMissing(error),
            "55006" => Self::SlotInUse { pid: trailing_number(&error.message), error: Box::new(error) },
            "55000" if !error.message.contains("logical") => Self::SlotLost(error),
            "XX000" if error.message.contains("is ahead of the WAL flush position") => Self::AheadOfFlush(error),
            "XX000" if error.message.contains("is not in this server's history") => Self::NotInHistory(error),
            _ => Self::Server(error),
        }
    }

    fn of_slot(error: Error) -> Self {
        match error {
            Error::Server(error) => Self::classify(error, false),
            other => Self::Connection(Box::new(other)),
        }
    }
}

fn trailing_number(message: &str) -> Option<u32> {
    let start = message.rfind(|c: char| !c.is_ascii_digit()).map_or(0, |index| index + 1);
    message.get(start..)?.parse().ok()
}

/// Answer to `IDENTIFY_SYSTEM`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// The cluster.
    pub system: SystemIdentifier,
    /// Its current timeline.
    pub timeline: TimelineId,
    /// How far its WAL is flushed (on a standby: replayed).
    pub flush: Lsn,
}

/// A physical slot as `READ_REPLICATION_SLOT` shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    /// From here on the server keeps WAL; none if it keeps none.
    pub restart_lsn: Option<Lsn>,
    /// The timeline of that position.
    pub timeline: Option<TimelineId>,
}

/// Whether a slot had to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Created {
    /// It was made, and keeps WAL from the last checkpoint's redo on.
    New,
    /// There was one of that name already; its state is to be read.
    Existed,
}

/// Answer to `START_REPLICATION`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Started {
    /// WAL follows: call [`ReplicationConnection::next_event`].
    Streaming,
    /// The timeline has no WAL from there on.
    EndOfTimeline {
        /// The timeline that follows in the server's history.
        next: TimelineId,
        /// Where it begins.
        switch: Lsn,
    },
}

/// What comes out of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A piece of WAL; pieces follow each other without a gap and stay within 128 KiB.
    Wal {
        /// The position of the first byte.
        start: Lsn,
        /// How far the server's WAL reaches.
        server_end: Lsn,
        /// The server's clock.
        sent_at: PgTimestamp,
        /// The bytes.
        data: Bytes,
    },
    /// A sign of life.
    Keepalive {
        /// How far the server's WAL reaches.
        server_end: Lsn,
        /// The server's clock.
        sent_at: PgTimestamp,
        /// Whether the server drops us unless a status follows at once.
        reply_requested: bool,
    },
    /// All WAL of the timeline was sent. The connection takes commands again.
    EndOfTimeline {
        /// The timeline that follows in the server's history.
        next: TimelineId,
        /// Where it begins.
        switch: Lsn,
    },
    /// The server ended the stream, as when it shuts down. The connection takes commands again, or is about to be closed.
    Ended,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Idle,
    /// A command was sent and its answer is not read to the end; stays so if the caller dropped the future.
    Busy,
    Streaming,
    /// The server has sent CopyDone, and we too; what remains is the answer's rows.
    Finishing(Option<(TimelineId, Lsn)>),
}

/// What ended a stream, kept until the rest of the server's answer is read: [`ReplicationConnection::next_event`] may be dropped meanwhile.
enum Failure {
    /// The server's error; it may go on to take commands.
    Refused(ServerError),
    /// The connection broke; what the server said before may still be there to be read.
    Broken(Error),
}

/// A session with a walsender.
pub struct ReplicationConnection {
    wire: Wire,
    state: State,
    failure: Option<Failure>,
}

impl ReplicationConnection {
    /// Opens a session for physical replication.
    pub async fn connect(params: &ConnectionParams, options: &Options) -> Result<Self, Error> {
        let mut server_options = params.options.clone().unwrap_or_default();
        if let Some(timeout) = options.wal_sender_timeout {
            server_options.push_str(&format!(" -c wal_sender_timeout={}ms", timeout.as_millis()));
        }
        let mut settings = vec![("replication", "true")];
        if let Some(name) = options.application_name.as_deref().or(params.application_name()) {
            settings.push(("application_name", name));
        }
        if !server_options.is_empty() {
            settings.push(("options", server_options.as_str()));
        }
        Ok(Self { wire: auth::connect(params, &settings).await?, state: State::Idle, failure: None })
    }

    /// Which cluster this is, and where it is.
    pub async fn identify_system(&mut self) -> Result<Identity, ReplicationError> {
        let row = one_row(self.command("IDENTIFY_SYSTEM").await?, "IDENTIFY_SYSTEM")?;
        Ok(Identity {
            system: value(&row, 0, "system identifier")?,
            timeline: value(&row, 1, "timeline")?,
            flush: value(&row, 2, "WAL position")?,
        })
    }

    /// A setting, as `SHOW` prints it.
    pub async fn show(&mut self, name: &str) -> Result<String, ReplicationError> {
        if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'.') {
            return Err(Error::Protocol(format!("{name:?} is no setting's name")).into());
        }
        let row = one_row(self.command(&format!("SHOW {name}")).await?, "SHOW")?;
        Ok(value(&row, 0, "setting")?)
    }

    /// Whether the server is in recovery.
    pub async fn is_standby(&mut self) -> Result<bool, ReplicationError> {
        match self.wire.parameter("in_hot_standby") {
            Some(value) => Ok(value == "on"),
            // Before 14 the server does not report it; on a standby no transaction may write.
            None => Ok(self.show("transaction_read_only").await? == "on"),
        }
    }

    /// Such as 150018.
    pub async fn server_version_num(&mut self) -> Result<u32, ReplicationError> {
        let text = self.show("server_version_num").await?;
        Ok(text.parse().map_err(|_| Error::Protocol(format!("server_version_num is {text:?}")))?)
    }

    /// The size of the cluster's WAL segments.
    pub async fn segment_size(&mut self) -> Result<SegmentSize, ReplicationError> {
        let text = self.show("wal_segment_size").await?;
        let size = parse_size(&text).and_then(|bytes| SegmentSize::new(bytes).ok());
        Ok(size.ok_or_else(|| Error::Protocol(format!("wal_segment_size is {text:?}")))?)
    }

    /// Makes a physical slot that keeps WAL at once.
    pub async fn create_physical_slot(&mut self, name: &str) -> Result<Created, ReplicationError> {
        check_slot_name(name)?;
        match self.command(&format!("CREATE_REPLICATION_SLOT \"{name}\" PHYSICAL RESERVE_WAL")).await {
            Ok(_) => Ok(Created::New),
            Err(error) if error.sqlstate() == Some("42710") => Ok(Created::Existed),
            Err(error) => Err(ReplicationError::of_slot(error)),
        }
    }

    /// Reads a physical slot; `None` if there is none of that name. From PostgreSQL 15 on; see `sql` for earlier ones.
    pub async fn read_slot(&mut self, name: &str) -> Result<Option<Slot>, ReplicationError> {
        check_slot_name(name)?;
        let rows = self.command(&format!("READ_REPLICATION_SLOT \"{name}\"")).await.map_err(ReplicationError::of_slot)?;
        let row = one_row(rows, "READ_REPLICATION_SLOT")?;
        if text(&row, 0)?.is_none() {
            return Ok(None);
        }
        let restart_lsn = text(&row, 1)?.map(|_| value(&row, 1, "WAL position")).transpose()?;
        let timeline = text(&row, 2)?.map(|_| value(&row, 2, "timeline")).transpose()?;
        Ok(Some(Slot { restart_lsn, timeline }))
    }

    /// Drops a slot that nobody uses.
    pub async fn drop_slot(&mut self, name: &str) -> Result<(), ReplicationError> {
        check_slot_name(name)?;
        self.command(&format!("DROP_REPLICATION_SLOT \"{name}\"")).await.map_err(ReplicationError::of_slot)?;
        Ok(())
    }

    /// The content of a timeline's history file. Timeline 1 has none: SQLSTATE 58P01.
    pub async fn timeline_history(&mut self, timeline: TimelineId) -> Result<Vec<u8>, ReplicationError> {
        let rows = self.command(&format!("TIMELINE_HISTORY {}", timeline.get())).await?;
        let row = one_row(rows, "TIMELINE_HISTORY")?;
        let content = row.get(1).cloned().flatten();
        Ok(content.ok_or_else(|| Error::Protocol("TIMELINE_HISTORY without content".into()))?.to_vec())
    }

    /// Asks for WAL from `start` on, which should be the start of a segment. Some refusals only come with the first event.
    pub async fn start_physical(&mut self, slot: Option<&str>, start: Lsn, timeline: TimelineId) -> Result<Started, ReplicationError> {
        let slot = match slot {
            Some(name) => {
                check_slot_name(name)?;
                format!("SLOT \"{name}\" ")
            }
            None => String::new(),
        };
        self.begin()?;
        self.wire.send_query(&format!("START_REPLICATION {slot}PHYSICAL {start} TIMELINE {}", timeline.get())).await?;
        let mut end = None;
        loop {
            match self.wire.reply("START_REPLICATION").await? {
                Message::CopyBoth => {
                    self.state = State::Streaming;
                    return Ok(Started::Streaming);
                }
                Message::DataRow(body) => end = Some(timeline_switch(&row(body)?)?),
                Message::RowDescription | Message::CommandComplete => {}
                Message::Ready => {
                    self.state = State::Idle;
                    let (next, switch) = end.ok_or_else(|| Error::Protocol("START_REPLICATION ended without a word".into()))?;
                    return Ok(Started::EndOfTimeline { next, switch });
                }
                Message::Error(error) => return Err(self.failed(error, false).await),
                other => return Err(unexpected("START_REPLICATION", &other).into()),
            }
        }
    }

    /// The stream's next event. Cancel-safe: dropped, it loses nothing.
    pub async fn next_event(&mut self) -> Result<Event, ReplicationError> {
        if self.failure.is_some() {
            return Err(self.explain_failure().await);
        }
        if !matches!(self.state, State::Streaming | State::Finishing(_)) {
            return Err(Error::Protocol("no WAL is being streamed".into()).into());
        }
        loop {
            if let Err(error) = self.wire.flush().await {
                return Err(self.fail(Failure::Broken(error)).await);
            }
            match (self.wire.next().await?, self.state) {
                (Message::CopyData(body), State::Streaming) => return Ok(stream_message(body)?),
                (Message::CopyDone, State::Streaming) => {
                    frontend::copy_done(self.wire.outgoing());
                    self.state = State::Finishing(None);
                }
                (Message::DataRow(body), State::Finishing(_)) => {
                    self.state = State::Finishing(Some(timeline_switch(&row(body)?)?));
                }
                (Message::RowDescription | Message::CommandComplete, _) => {
                    // Without CopyDone: the server is shutting down and hangs up next.
                    if self.state == State::Streaming {
                        self.state = State::Finishing(None);
                    }
                }
                (Message::Ready, State::Finishing(end)) => {
                    self.state = State::Idle;
                    return Ok(end.map_or(Event::Ended, |(next, switch)| Event::EndOfTimeline { next, switch }));
                }
                (Message::Error(error), _) => return Err(self.fail(Failure::Refused(error)).await),
                (other, _) => return Err(unexpected("streaming WAL", &other).into()),
            }
        }
    }

    /// Tells the server how far WAL (up to, not including, each position) is written, flushed and applied; the slot follows `flush`.
    pub async fn send_status(&mut self, write: Lsn, flush: Lsn, apply: Lsn, reply_now: bool) -> Result<(), ReplicationError> {
        if self.state != State::Streaming {
            return Ok(());
        }
        let mut body = BytesMut::with_capacity(34);
        body.put_u8(b'r');
        for position in [write, flush, apply] {
            body.put_u64(position.get());
        }
        body.put_i64(PgTimestamp::from_utc(Utc::now()).micros());
        body.put_u8(u8::from(reply_now));
        frontend::CopyData::new(body).map_err(Error::Io)?.write(self.wire.outgoing());
        match within(REPLY_TIMEOUT, "reporting the WAL position", self.wire.flush()).await {
            Ok(()) => Ok(()),
            Err(error) => Err(self.fail(Failure::Broken(error)).await),
        }
    }

    /// Ends the stream from this side; afterwards the connection takes commands again. WAL still under way is thrown away.
    pub async fn stop(&mut self) -> Result<(), ReplicationError> {
        if self.state == State::Streaming {
            frontend::copy_done(self.wire.outgoing());
        } else if !matches!(self.state, State::Finishing(_)) {
            return Ok(());
        }
        self.state = State::Busy;
        within(REPLY_TIMEOUT, "ending the stream", self.wire.flush()).await?;
        loop {
            match self.wire.reply("ending the stream").await? {
                Message::Ready => break,
                Message::Error(error) => return Err(self.failed(error, true).await),
                _ => {}
            }
        }
        self.state = State::Idle;
        Ok(())
    }

    /// Says goodbye.
    pub async fn close(self) {
        self.wire.terminate().await;
    }

    pub(super) fn wire(&mut self) -> &mut Wire {
        &mut self.wire
    }

    /// Marks the start of a command; refused while another one is under way.
    pub(super) fn begin(&mut self) -> Result<(), Error> {
        match std::mem::replace(&mut self.state, State::Busy) {
            State::Idle => Ok(()),
            other => {
                self.state = other;
                Err(Error::Protocol("the connection is busy with an earlier command".into()))
            }
        }
    }

    async fn command(&mut self, command: &str) -> Result<Vec<Row>, Error> {
        self.begin()?;
        let result = self.wire.query(command).await;
        if matches!(&result, Ok(_) | Err(Error::Server(_))) {
            self.state = State::Idle;
        }
        result
    }

    async fn fail(&mut self, failure: Failure) -> ReplicationError {
        self.state = State::Busy;
        self.failure = Some(failure);
        self.explain_failure().await
    }

    /// Cancel-safe: the failure is forgotten only when it is told.
    async fn explain_failure(&mut self) -> ReplicationError {
        if let Some(Failure::Refused(error)) = &self.failure {
            let error = error.clone();
            let told = self.failed(error, true).await;
            self.failure = None;
            return told;
        }
        let words = self.last_words().await;
        match (words, self.failure.take()) {
            (Some(error), _) => ReplicationError::classify(error, true),
            (None, Some(Failure::Broken(error))) => error.into(),
            (None, _) => Error::Closed.into(),
        }
    }

    /// What the server said before it hung up, if that arrived: it tells more than the broken pipe that a write met.
    async fn last_words(&mut self) -> Option<ServerError> {
        let read = within(Duration::from_secs(1), "reading the rest", async {
            loop {
                if let Message::Error(error) = self.wire.next().await? {
                    return Ok(error);
                }
            }
        });
        read.await.ok()
    }

    async fn failed(&mut self, error: ServerError, streaming: bool) -> ReplicationError {
        self.state = State::Busy;
        let fatal = error.is_fatal();
        let error = match self.wire.recover(error).await {
            Error::Server(error) => error,
            other => return ReplicationError::Connection(Box::new(other)),
        };
        if !fatal {
            self.state = State::Idle;
        }
        ReplicationError::classify(error, streaming)
    }
}

fn one_row(rows: Vec<Row>, command: &str) -> Result<Row, Error> {
    rows.into_iter().next().ok_or_else(|| Error::Protocol(format!("{command} without a row")))
}

fn check_slot_name(name: &str) -> Result<(), ReplicationError> {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    if (1..=63).contains(&name.len()) && name.bytes().all(allowed) {
        return Ok(());
    }
    Err(ReplicationError::BadSlotName(name.chars().take(100).collect()))
}

fn timeline_switch(row: &Row) -> Result<(TimelineId, Lsn), Error> {
    Ok((value(row, 0, "timeline")?, value(row, 1, "WAL position")?))
}

fn stream_message(mut body: Bytes) -> Result<Event, Error> {
    let cut_short = |_| Error::Protocol("a message in the WAL stream is cut short".into());
    match body.try_get_u8().map_err(cut_short)? {
        b'w' => {
            let start = Lsn::new(body.try_get_u64().map_err(cut_short)?);
            let server_end = Lsn::new(body.try_get_u64().map_err(cut_short)?);
            let sent_at = PgTimestamp::from_micros(body.try_get_i64().map_err(cut_short)?);
            Ok(Event::Wal { start, server_end, sent_at, data: body })
        }
        b'k' => {
            let server_end = Lsn::new(body.try_get_u64().map_err(cut_short)?);
            let sent_at = PgTimestamp::from_micros(body.try_get_i64().map_err(cut_short)?);
            Ok(Event::Keepalive { server_end, sent_at, reply_requested: body.try_get_u8().map_err(cut_short)? != 0 })
        }
        other => Err(Error::Protocol(format!("message of type {:?} in the WAL stream", char::from(other)))),
    }
}

/// A size as `SHOW` prints it: a number and B, kB, MB or GB.
fn parse_size(text: &str) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let unit: u64 = match &text[digits..] {
        "" | "B" => 1,
        "kB" => 1 << 10,
        "MB" => 1 << 20,
        "GB" => 1 << 30,
        _ => return None,
    };
    text[..digits].parse::<u64>().ok()?.checked_mul(unit)
}

#[cfg(test)]
mod tests;
