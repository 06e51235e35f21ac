//! HTTP/1.1 as far as a proxy must understand it: heads, and where bodies end.

use std::io::{BufRead, Error, ErrorKind, Read, Result};

/// The head of a request or an answer, its lines as they came.
#[derive(Debug, Clone)]
pub struct Head {
    /// The first line, without its end.
    pub first: String,
    /// The header lines: name, value.
    pub headers: Vec<(String, String)>,
}

/// Where a body ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Length {
    Bytes(u64),
    Chunked,
    UntilClose,
}

impl Head {
    /// Reads one; `None` when the other side closed before its first byte.
    pub fn read(from: &mut impl BufRead) -> Result<Option<Self>> {
        let Some(first) = line(from)? else { return Ok(None) };
        let mut headers = Vec::new();
        loop {
            let text = line(from)?.ok_or_else(|| Error::from(ErrorKind::UnexpectedEof))?;
            if text.is_empty() {
                return Ok(Some(Self { first, headers }));
            }
            let (name, value) = text.split_once(':').ok_or_else(|| Error::from(ErrorKind::InvalidData))?;
            headers.push((name.to_owned(), value.trim().to_owned()));
        }
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    pub fn remove(&mut self, name: &str) {
        self.headers.retain(|(key, _)| !key.eq_ignore_ascii_case(name));
    }

    pub fn set(&mut self, name: &str, value: &str) {
        self.remove(name);
        self.headers.push((name.to_owned(), value.to_owned()));
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        let mut text = format!("{}\r\n", self.first);
        for (name, value) in &self.headers {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        text.push_str("\r\n");
        text.into_bytes()
    }

    /// The status of an answer.
    pub fn status(&self) -> u16 {
        self.first.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0)
    }

    /// Whether the sender closes after this message.
    pub fn closes(&self) -> bool {
        self.get("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"))
    }

    /// Where a request's body ends.
    pub fn request_length(&self) -> Length {
        match self.given_length() {
            Length::UntilClose => Length::Bytes(0),
            given => given,
        }
    }

    /// Where an answer's body ends.
    pub fn answer_length(&self, method: &str) -> Length {
        match self.status() {
            100..200 | 204 | 304 => Length::Bytes(0),
            _ if method == "HEAD" => Length::Bytes(0),
            _ => self.given_length(),
        }
    }

    fn given_length(&self) -> Length {
        if self.get("transfer-encoding").is_some_and(|value| value.to_ascii_lowercase().contains("chunked")) {
            return Length::Chunked;
        }
        self.get("content-length").and_then(|value| value.parse().ok()).map_or(Length::UntilClose, Length::Bytes)
    }
}

/// Hands a body on, piece by piece, to `each`, which gets its content and what stood on the wire for it.
pub fn pump(from: &mut impl BufRead, length: Length, mut each: impl FnMut(&[u8], &[u8]) -> Result<()>) -> Result<()> {
    match length {
        Length::Bytes(count) => pieces(from, Some(count), &mut |piece| each(piece, piece)),
        Length::UntilClose => pieces(from, None, &mut |piece| each(piece, piece)),
        Length::Chunked => loop {
            let text = line(from)?.ok_or_else(|| Error::from(ErrorKind::UnexpectedEof))?;
            let size = text.split(';').next().and_then(|digits| u64::from_str_radix(digits.trim(), 16).ok());
            let size = size.ok_or_else(|| Error::from(ErrorKind::InvalidData))?;
            each(b"", format!("{text}\r\n").as_bytes())?;
            if size > 0 {
                pieces(from, Some(size), &mut |piece| each(piece, piece))?;
            }
            // A chunk's line end; after the last chunk: trailers up to an empty line.
            loop {
                let text = line(from)?.ok_or_else(|| Error::from(ErrorKind::UnexpectedEof))?;
                each(b"", format!("{text}\r\n").as_bytes())?;
                if size > 0 || text.is_empty() {
                    break;
                }
            }
            if size == 0 {
                return Ok(());
            }
        },
    }
}

fn pieces(from: &mut impl Read, count: Option<u64>, each: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    let mut left = count;
    while left != Some(0) {
        let most = left.map_or(buffer.len(), |left| buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX)));
        let read = from.read(&mut buffer[..most])?;
        if read == 0 {
            return if left.is_none() { Ok(()) } else { Err(ErrorKind::UnexpectedEof.into()) };
        }
        left = left.map(|left| left - read as u64);
        each(&buffer[..read])?;
    }
    Ok(())
}

fn line(from: &mut impl BufRead) -> Result<Option<String>> {
    let mut bytes = Vec::new();
    if from.take(64 * 1024).read_until(b'\n', &mut bytes)? == 0 {
        return Ok(None);
    }
    if bytes.pop() != Some(b'\n') {
        return Err(ErrorKind::UnexpectedEof.into());
    }
    if bytes.last() == Some(&b'\r') {
        bytes.pop();
    }
    String::from_utf8(bytes).map(Some).map_err(|_| ErrorKind::InvalidData.into())
}
