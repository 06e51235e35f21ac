//! The fields of a body: flags, byte strings, text. Lengths are checked against what is there before they are believed.

use std::fmt;

/// The body of a frame is not a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DecodeError {
    /// It ends within a field.
    Truncated,
    /// Bytes follow the last field.
    Trailing {
        /// How many.
        bytes: usize,
    },
    /// No message has this kind.
    UnknownKind {
        /// The kind.
        found: u8,
    },
    /// A flag is neither 0 nor 1.
    NotAFlag {
        /// Its value.
        found: u8,
    },
    /// A text is not UTF-8.
    NotText,
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Truncated => f.write_str("the message ends within a field"),
            Self::Trailing { bytes } => write!(f, "{bytes} bytes follow the message's last field"),
            Self::UnknownKind { found } => write!(f, "no message has the kind {found}"),
            Self::NotAFlag { found } => write!(f, "{found} is neither yes nor no"),
            Self::NotText => f.write_str("a text in the message is not UTF-8"),
        }
    }
}

impl std::error::Error for DecodeError {}

/// Writes fields.
#[derive(Default)]
pub(crate) struct Writer(Vec<u8>);

impl Writer {
    pub(crate) fn kind(kind: u8) -> Self {
        Self(vec![kind])
    }

    pub(crate) fn flag(&mut self, value: bool) -> &mut Self {
        self.0.push(value.into());
        self
    }

    pub(crate) fn bytes(&mut self, value: &[u8]) -> &mut Self {
        // A length that does not fit makes the body longer than any frame, which is refused when it is sealed.
        self.0.extend(u32::try_from(value.len()).unwrap_or(u32::MAX).to_be_bytes());
        self.0.extend(value);
        self
    }

    pub(crate) fn optional_text(&mut self, value: Option<&str>) -> &mut Self {
        self.flag(value.is_some());
        match value {
            Some(value) => self.bytes(value.as_bytes()),
            None => self,
        }
    }

    pub(crate) fn body(&self) -> &[u8] {
        &self.0
    }
}

/// Reads fields.
pub(crate) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn new(body: &'a [u8]) -> Self {
        Self(body)
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], DecodeError> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(DecodeError::Truncated)?;
        self.0 = rest;
        Ok(taken)
    }

    pub(crate) fn byte(&mut self) -> Result<u8, DecodeError> {
        let (&byte, rest) = self.0.split_first().ok_or(DecodeError::Truncated)?;
        self.0 = rest;
        Ok(byte)
    }

    pub(crate) fn flag(&mut self) -> Result<bool, DecodeError> {
        match self.byte()? {
            0 => Ok(false),
            1 => Ok(true),
            found => Err(DecodeError::NotAFlag { found }),
        }
    }

    pub(crate) fn bytes(&mut self) -> Result<&'a [u8], DecodeError> {
        let (length, rest) = self.0.split_first_chunk::<4>().ok_or(DecodeError::Truncated)?;
        self.0 = rest;
        self.take(usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX))
    }

    pub(crate) fn text(&mut self) -> Result<String, DecodeError> {
        str::from_utf8(self.bytes()?).map(str::to_owned).map_err(|_| DecodeError::NotText)
    }

    pub(crate) fn optional_text(&mut self) -> Result<Option<String>, DecodeError> {
        if self.flag()? { self.text().map(Some) } else { Ok(None) }
    }

    pub(crate) fn end(self) -> Result<(), DecodeError> {
        if self.0.is_empty() { Ok(()) } else { Err(DecodeError::Trailing { bytes: self.0.len() }) }
    }
}
