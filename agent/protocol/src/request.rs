//! What a shim asks of the agent.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use crate::fields::{DecodeError, Reader, Writer};
use crate::frame::{self, FrameError};

/// One request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The cluster's name in the configuration, if the shim was told it. An agent that serves another cluster refuses.
    pub cluster: Option<String>,
    /// What to do.
    pub verb: Verb,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verb {
    /// Say that you are there.
    Ping,
    /// Say how you are.
    Status,
    /// Store this file, durably.
    Archive {
        /// Its absolute path.
        path: PathBuf,
    },
    /// Put this archived file there, whole and durable.
    Fetch {
        /// Its name, as PostgreSQL gave it for `%f`.
        name: String,
        /// The absolute path that PostgreSQL gave for `%p`.
        destination: PathBuf,
        /// Whether a standby asks, which will ask again by itself.
        standby: bool,
    },
}

const PING: u8 = 1;
const ARCHIVE: u8 = 2;
const FETCH: u8 = 3;
const STATUS: u8 = 4;

impl Request {
    /// The whole frame.
    pub fn encode(&self) -> Result<Vec<u8>, FrameError> {
        let begin = |kind| {
            let mut writer = Writer::kind(kind);
            writer.optional_text(self.cluster.as_deref());
            writer
        };
        let writer = match &self.verb {
            Verb::Ping => begin(PING),
            Verb::Status => begin(STATUS),
            Verb::Archive { path } => {
                let mut writer = begin(ARCHIVE);
                writer.bytes(path.as_os_str().as_bytes());
                writer
            }
            Verb::Fetch { name, destination, standby } => {
                let mut writer = begin(FETCH);
                writer.bytes(name.as_bytes()).bytes(destination.as_os_str().as_bytes()).flag(*standby);
                writer
            }
        };
        frame::seal(writer.body())
    }

    /// Reads the body of a frame.
    pub fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(body);
        let kind = reader.byte()?;
        if !(PING..=STATUS).contains(&kind) {
            return Err(DecodeError::UnknownKind { found: kind });
        }
        let cluster = reader.optional_text()?;
        let verb = match kind {
            ARCHIVE => Verb::Archive { path: path(&mut reader)? },
            FETCH => Verb::Fetch { name: reader.text()?, destination: path(&mut reader)?, standby: reader.flag()? },
            STATUS => Verb::Status,
            _ => Verb::Ping,
        };
        reader.end()?;
        Ok(Self { cluster, verb })
    }
}

/// Paths are bytes, not text.
fn path(reader: &mut Reader<'_>) -> Result<PathBuf, DecodeError> {
    reader.bytes().map(|bytes| OsString::from_vec(bytes.to_vec()).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn every_kind() -> Vec<Request> {
        let odd_path: PathBuf = OsString::from_vec(b"/data\xFF\n/pg_wal/RECOVERYXLOG".to_vec()).into();
        let verbs = [
            Verb::Ping,
            Verb::Status,
            Verb::Archive { path: "/data/pg_wal/000000010000000000000003".into() },
            Verb::Archive { path: odd_path.clone() },
            Verb::Fetch { name: "00000002.history".into(), destination: odd_path, standby: true },
            Verb::Fetch { name: String::new(), destination: PathBuf::new(), standby: false },
        ];
        let clusters = [None, Some("main".to_owned())];
        clusters.iter().flat_map(|cluster| verbs.iter().map(|verb| Request { cluster: cluster.clone(), verb: verb.clone() })).collect()
    }

    #[test]
    fn every_kind_round_trips_and_no_other_length_does() {
        for request in every_kind() {
            let frame = request.encode().expect("short");
            let mut body = frame[frame::HEADER..].to_vec();
            assert_eq!(Request::decode(&body).as_ref(), Ok(&request));
            for length in 0..body.len() {
                assert_eq!(Request::decode(&body[..length]), Err(DecodeError::Truncated), "{request:?} cut to {length}");
            }
            body.push(0);
            assert_eq!(Request::decode(&body), Err(DecodeError::Trailing { bytes: 1 }));
        }
    }

    #[test]
    fn hostile_bodies_are_refused() {
        assert_eq!(Request::decode(&[0]), Err(DecodeError::UnknownKind { found: 0 }));
        assert_eq!(Request::decode(&[200, 0]), Err(DecodeError::UnknownKind { found: 200 }));
        assert_eq!(Request::decode(&[PING, 2]), Err(DecodeError::NotAFlag { found: 2 }));
        assert_eq!(Request::decode(&[ARCHIVE, 0, 0xFF, 0xFF, 0xFF, 0xFF, 1]), Err(DecodeError::Truncated));
        assert_eq!(Request::decode(&[PING, 1, 0, 0, 0, 1, 0xFF]), Err(DecodeError::NotText));
    }

    #[test]
    fn no_single_changed_byte_makes_it_panic() {
        for request in every_kind() {
            let frame = request.encode().expect("short");
            for at in frame::HEADER..frame.len() {
                for value in [0, 1, 2, 0x7F, 0x80, 0xFF] {
                    let mut body = frame[frame::HEADER..].to_vec();
                    body[at - frame::HEADER] = value;
                    let _ = Request::decode(&body);
                }
            }
        }
    }

    #[test]
    fn a_path_too_long_for_a_frame_is_refused() {
        let request = Request { cluster: None, verb: Verb::Archive { path: "/".repeat(frame::MAX_BODY).into() } };
        assert!(matches!(request.encode(), Err(FrameError::TooLong { .. })));
    }
}
