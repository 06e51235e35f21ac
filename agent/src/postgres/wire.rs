//! One PostgreSQL connection as messages: framing, the simple query protocol, deadlines for answers.
//!
//! Frames are cut here and not by `postgres_protocol`, whose parser does not know CopyBothResponse. Reading is cancel-safe: what
//! was read stays in the buffer, and so does what was not yet written.

use std::collections::HashMap;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use postgres_protocol::message::frontend;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::dial::Transport;
use super::error::{Error, ServerError};

/// How long the server may take to answer a command that has nothing to wait for.
pub(super) const REPLY_TIMEOUT: Duration = Duration::from_secs(60);
/// Longer than any message a server sends in answer to what is asked here (WAL comes in pieces of 128 KiB).
const MAX_MESSAGE: usize = 64 << 20;
/// One full WAL message and its header.
const READ_SIZE: usize = (128 << 10) + 64;
/// Notices kept for whoever asks; more are counted only by the log.
const MAX_NOTICES: usize = 1000;

/// A message from the server that is not about the connection itself.
#[derive(Debug)]
pub(super) enum Message {
    Authentication(Bytes),
    CopyBoth,
    CopyOut,
    CopyData(Bytes),
    CopyDone,
    RowDescription,
    DataRow(Bytes),
    CommandComplete,
    Ready,
    Error(ServerError),
}

/// One row of text columns.
pub(super) type Row = Vec<Option<Bytes>>;

pub(super) struct Wire {
    transport: Transport,
    incoming: BytesMut,
    outgoing: BytesMut,
    parameters: HashMap<String, String>,
    notices: Vec<ServerError>,
}

impl Wire {
    pub fn new(transport: Transport) -> Self {
        Self { transport, incoming: BytesMut::new(), outgoing: BytesMut::new(), parameters: HashMap::new(), notices: Vec::new() }
    }

    pub fn transport(&self) -> &Transport {
        &self.transport
    }

    /// What the server reported about itself, such as `server_version`.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.get(name).map(String::as_str)
    }

    /// The notices and warnings since the last call.
    pub fn take_notices(&mut self) -> Vec<ServerError> {
        std::mem::take(&mut self.notices)
    }

    /// The bytes to be sent with the next flush.
    pub fn outgoing(&mut self) -> &mut BytesMut {
        &mut self.outgoing
    }

    /// Sends what is waiting. Cancel-safe.
    pub async fn flush(&mut self) -> Result<(), Error> {
        while !self.outgoing.is_empty() {
            let written = self.transport.write(&self.outgoing).await?;
            if written == 0 {
                return Err(Error::Closed);
            }
            self.outgoing.advance(written);
        }
        Ok(self.transport.flush().await?)
    }

    /// The next message; notices and parameter reports are kept aside. Cancel-safe.
    pub async fn next(&mut self) -> Result<Message, Error> {
        loop {
            while let Some((tag, body)) = cut(&mut self.incoming)? {
                if let Some(message) = self.sort(tag, body)? {
                    return Ok(message);
                }
            }
            self.incoming.reserve(READ_SIZE);
            if self.transport.read_buf(&mut self.incoming).await? == 0 {
                return Err(Error::Closed);
            }
        }
    }

    /// The next message, within [`REPLY_TIMEOUT`].
    pub async fn reply(&mut self, doing: &str) -> Result<Message, Error> {
        within(REPLY_TIMEOUT, doing, self.next()).await
    }

    fn sort(&mut self, tag: u8, body: Bytes) -> Result<Option<Message>, Error> {
        Ok(Some(match tag {
            b'R' => Message::Authentication(body),
            b'W' => Message::CopyBoth,
            b'H' => Message::CopyOut,
            b'd' => Message::CopyData(body),
            b'c' => Message::CopyDone,
            b'T' => Message::RowDescription,
            b'D' => Message::DataRow(body),
            b'C' | b'I' => Message::CommandComplete,
            b'Z' => Message::Ready,
            b'E' => Message::Error(ServerError::decode(&body)),
            b'N' => {
                let notice = ServerError::decode(&body);
                tracing::debug!(%notice, "the server remarks");
                if self.notices.len() < MAX_NOTICES {
                    self.notices.push(notice);
                }
                return Ok(None);
            }
            b'S' => {
                let mut texts = body.split(|byte| *byte == 0).map(|text| String::from_utf8_lossy(text).into_owned());
                if let (Some(name), Some(value)) = (texts.next(), texts.next()) {
                    self.parameters.insert(name, value);
                }
                return Ok(None);
            }
            b'K' | b'A' => return Ok(None),
            other => return Err(Error::Protocol(format!("message of type {:?}", char::from(other)))),
        }))
    }

    /// Sends a command without waiting for its answer.
    pub async fn send_query(&mut self, command: &str) -> Result<(), Error> {
        frontend::query(command, &mut self.outgoing)?;
        within(REPLY_TIMEOUT, "sending a command", self.flush()).await
    }

    /// Sends a command and reads its whole answer; each message within [`REPLY_TIMEOUT`].
    pub async fn query(&mut self, command: &str) -> Result<Vec<Row>, Error> {
        self.send_query(command).await?;
        let doing = command.split([' ', ';']).next().unwrap_or_default();
        let mut rows = Vec::new();
        loop {
            match self.reply(doing).await? {
                Message::DataRow(body) => rows.push(row(body)?),
                Message::RowDescription | Message::CommandComplete => {}
                Message::Ready => return Ok(rows),
                Message::Error(error) => return Err(self.recover(error).await),
                other => return Err(unexpected(doing, &other)),
            }
        }
    }

    /// After an error: reads on until the server takes commands again, unless it hangs up. Gives back the error to report.
    pub async fn recover(&mut self, error: ServerError) -> Error {
        while !error.is_fatal() {
            match self.reply("recovering from an error").await {
                Ok(Message::Ready) => break,
                Ok(_) => {}
                Err(_) => break,
            }
        }
        Error::Server(error)
    }

    /// Says goodbye, so that the server's log does not speak of a lost connection. Best effort.
    pub async fn terminate(mut self) {
        frontend::terminate(&mut self.outgoing);
        let _ = within(Duration::from_secs(5), "closing", async {
            self.flush().await?;
            Ok(self.transport.shutdown().await?)
        })
        .await;
    }
}

/// An error for a message that has no place here.
pub(super) fn unexpected(doing: &str, message: &Message) -> Error {
    Error::Protocol(format!("{doing}: {}", format!("{message:?}").split('(').next().unwrap_or_default()))
}

/// Runs `work`, but not for longer than `after`.
pub(super) async fn within<T>(after: Duration, doing: &str, work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    tokio::time::timeout(after, work).await.unwrap_or_else(|_| Err(Error::Timeout { doing: doing.to_owned(), after }))
}

/// Cuts one whole message off the front: its type and its body.
fn cut(buffer: &mut BytesMut) -> Result<Option<(u8, Bytes)>, Error> {
    let Some((header, _)) = buffer.split_at_checked(5) else { return Ok(None) };
    let tag = header[0];
    let length = u32::from_be_bytes([header[1], header[2], header[3], header[4]]) as usize;
    if !(4..=MAX_MESSAGE).contains(&length) {
        return Err(Error::Protocol(format!("message of type {:?} with a length of {length}", char::from(tag))));
    }
    if buffer.len() < length + 1 {
        buffer.reserve(length + 1 - buffer.len());
        return Ok(None);
    }
    let mut message = buffer.split_to(length + 1).freeze();
    message.advance(5);
    Ok(Some((tag, message)))
}

/// Reads a DataRow.
pub(super) fn row(mut body: Bytes) -> Result<Row, Error> {
    let cut_short = || Error::Protocol("a row is cut short".into());
    let count = body.try_get_u16().map_err(|_| cut_short())?;
    (0..count)
        .map(|_| {
            let length = body.try_get_i32().map_err(|_| cut_short())?;
            match usize::try_from(length) {
                Err(_) => Ok(None),
                Ok(length) if length <= body.len() => Ok(Some(body.split_to(length))),
                Ok(_) => Err(cut_short()),
            }
        })
        .collect()
}

/// A column as text; `None` for NULL, an error if there is no such column.
pub(super) fn text(row: &Row, column: usize) -> Result<Option<&str>, Error> {
    let missing = || Error::Protocol(format!("a row without column {}", column + 1));
    row.get(column)
        .ok_or_else(missing)?
        .as_deref()
        .map(|bytes| std::str::from_utf8(bytes).map_err(|_| Error::Protocol("a value that is not text".into())))
        .transpose()
}

/// A column that must not be NULL, parsed.
pub(super) fn value<T: std::str::FromStr>(row: &Row, column: usize, what: &str) -> Result<T, Error> {
    let text = text(row, column)?.ok_or_else(|| Error::Protocol(format!("no {what}")))?;
    text.parse().map_err(|_| Error::Protocol(format!("{text:?} is not a {what}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_whole_messages_only() {
        let mut buffer = BytesMut::from(&b"Z\0\0\0\x05Id\0\0"[..]);
        assert_eq!(cut(&mut buffer).expect("valid"), Some((b'Z', Bytes::from_static(b"I"))));
        assert_eq!(cut(&mut buffer).expect("valid"), None);
        buffer.extend_from_slice(b"\0\x06ab");
        assert_eq!(cut(&mut buffer).expect("valid"), Some((b'd', Bytes::from_static(b"ab"))));
        for bad in [b"Z\0\0\0\x03", b"Z\xff\0\0\0"] {
            assert!(cut(&mut BytesMut::from(&bad[..])).is_err());
        }
    }

    #[test]
    fn rows_are_checked() {
        let good = row(Bytes::from_static(b"\0\x02\0\0\0\x01a\xff\xff\xff\xff")).expect("a row");
        assert_eq!((text(&good, 0).expect("text"), text(&good, 1).expect("null")), (Some("a"), None));
        assert!(text(&good, 2).is_err());
        assert!(row(Bytes::from_static(b"\0\x01\0\0\0\x09a")).is_err());
        assert!(row(Bytes::from_static(b"\0")).is_err());
    }
}
