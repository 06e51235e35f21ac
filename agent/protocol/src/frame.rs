//! Frames: `WKP`, the protocol's version, the length of what follows, and that many bytes.
//!
//! The length is looked at before anything is allocated, so that no peer can make the other side wait for, or hold, more than
//! [`MAX_BODY`] bytes.

use std::fmt;

/// The version of the protocol that this crate speaks. Shims and agent of one package always agree; those of two may not.
pub const VERSION: u8 = 1;

/// Bytes before the body.
pub const HEADER: usize = 8;

/// The most bytes that one body may have.
pub const MAX_BODY: usize = 64 * 1024;

const MAGIC: [u8; 3] = *b"WKP";

/// The frame cannot be written or is not one of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FrameError {
    /// The peer speaks something else.
    NotWalkeep {
        /// Its first bytes.
        found: [u8; 3],
    },
    /// The peer speaks another version of the protocol.
    Version {
        /// Its version.
        found: u8,
    },
    /// The body is longer than [`MAX_BODY`].
    TooLong {
        /// Its length.
        length: usize,
    },
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotWalkeep { found } => {
                write!(f, "the other side does not speak Walkeep's protocol (it began with {})", found.escape_ascii())
            }
            Self::Version { found } => write!(f, "the other side speaks version {found} of Walkeep's protocol, this one version {VERSION}"),
            Self::TooLong { length } => write!(f, "a message of {length} bytes is longer than the {MAX_BODY} that are allowed"),
        }
    }
}

impl std::error::Error for FrameError {}

/// The frame around `body`.
pub fn seal(body: &[u8]) -> Result<Vec<u8>, FrameError> {
    let too_long = FrameError::TooLong { length: body.len() };
    let length = u32::try_from(body.len()).ok().filter(|_| body.len() <= MAX_BODY).ok_or(too_long)?;
    let mut frame = Vec::with_capacity(HEADER + body.len());
    frame.extend(MAGIC);
    frame.push(VERSION);
    frame.extend(length.to_be_bytes());
    frame.extend(body);
    Ok(frame)
}

/// How many bytes of body follow this header.
pub fn body_length(header: &[u8; HEADER]) -> Result<usize, FrameError> {
    let [m0, m1, m2, version, length @ ..] = *header;
    if [m0, m1, m2] != MAGIC {
        return Err(FrameError::NotWalkeep { found: [m0, m1, m2] });
    }
    if version != VERSION {
        return Err(FrameError::Version { found: version });
    }
    let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
    if length > MAX_BODY {
        return Err(FrameError::TooLong { length });
    }
    Ok(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header_of(frame: &[u8]) -> [u8; HEADER] {
        frame[..HEADER].try_into().expect("a header")
    }

    #[test]
    fn a_frame_tells_its_length() {
        for length in [0, 1, MAX_BODY] {
            let frame = seal(&vec![7; length]).expect("short enough");
            assert_eq!(frame.len(), HEADER + length);
            assert_eq!(body_length(&header_of(&frame)), Ok(length));
        }
    }

    #[test]
    fn too_long_is_refused_on_both_sides() {
        assert_eq!(seal(&vec![0; MAX_BODY + 1]), Err(FrameError::TooLong { length: MAX_BODY + 1 }));
        assert!(matches!(body_length(b"WKP\x01\xFF\xFF\xFF\xFF"), Err(FrameError::TooLong { .. })));
        assert!(matches!(body_length(b"WKP\x01\x00\x01\x00\x01"), Err(FrameError::TooLong { length: 65537 })));
    }

    #[test]
    fn other_speakers_are_told_apart_from_other_versions() {
        assert_eq!(body_length(b"HTTP/1.1"), Err(FrameError::NotWalkeep { found: *b"HTT" }));
        assert_eq!(body_length(b"WKP\x02\x00\x00\x00\x00"), Err(FrameError::Version { found: 2 }));
    }
}
