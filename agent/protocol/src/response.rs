//! What the agent answers.

use crate::fields::{DecodeError, Reader, Writer};
use crate::frame;

/// One answer. PostgreSQL's log shows its words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Response {
    /// Done, durably.
    Done,
    /// How the agent is, as JSON.
    Told {
        /// The JSON.
        text: String,
    },
    /// The repository was reached and proves that the file is not there. Only this may ever become exit status 1 of
    /// restore_command in a recovery that ends where the archive ends.
    Absent {
        /// What was looked for, and where.
        message: String,
    },
    /// Not now: the agent is busy, is stopping, or the repository cannot be reached. Asking again may help.
    TryLater {
        /// Why.
        message: String,
    },
    /// Whoever answers cannot do it here for good, and a process of another environment may: an agent that has no key to decrypt with.
    Elsewhere {
        /// Why not here.
        message: String,
    },
    /// It did not work, and asking again helps only after somebody changed something.
    Failed {
        /// Why.
        message: String,
        /// What to do about it.
        hint: Option<String>,
        /// The same question will have the same answer until a person acts: waiting for it to mend itself only hides the reason.
        permanent: bool,
    },
}

const DONE: u8 = 1;
const ABSENT: u8 = 2;
const TRY_LATER: u8 = 3;
const FAILED: u8 = 4;
const ELSEWHERE: u8 = 5;
const TOLD: u8 = 6;

/// The most bytes of one text, so that every response fits a frame.
const MAX_TEXT: usize = 8 * 1024;

impl Response {
    /// The whole frame. Texts longer than a log line could ever use are cut.
    pub fn encode(&self) -> Vec<u8> {
        let text = |kind, message| {
            let mut writer = Writer::kind(kind);
            writer.bytes(cut(message).as_bytes());
            writer
        };
        let writer = match self {
            Self::Done => Writer::kind(DONE),
            Self::Told { text: told } => text(TOLD, told),
            Self::Absent { message } => text(ABSENT, message),
            Self::TryLater { message } => text(TRY_LATER, message),
            Self::Elsewhere { message } => text(ELSEWHERE, message),
            Self::Failed { message, hint, permanent } => {
                let mut writer = text(FAILED, message);
                writer.optional_text(hint.as_deref().map(cut)).flag(*permanent);
                writer
            }
        };
        frame::seal(writer.body()).expect("two texts of MAX_TEXT fit a frame")
    }

    /// Reads the body of a frame.
    pub fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(body);
        let response = match reader.byte()? {
            DONE => Self::Done,
            TOLD => Self::Told { text: reader.text()? },
            ABSENT => Self::Absent { message: reader.text()? },
            TRY_LATER => Self::TryLater { message: reader.text()? },
            ELSEWHERE => Self::Elsewhere { message: reader.text()? },
            FAILED => Self::Failed { message: reader.text()?, hint: reader.optional_text()?, permanent: reader.flag()? },
            found => return Err(DecodeError::UnknownKind { found }),
        };
        reader.end()?;
        Ok(response)
    }
}

fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_TEXT)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_round_trips_and_no_other_length_does() {
        let message = || "größer".to_owned();
        for response in [
            Response::Done,
            Response::Told { text: message() },
            Response::Absent { message: message() },
            Response::TryLater { message: String::new() },
            Response::Elsewhere { message: message() },
            Response::Failed { message: message(), hint: None, permanent: false },
            Response::Failed { message: message(), hint: Some("mend it".into()), permanent: true },
        ] {
            let frame = response.encode();
            let mut body = frame[frame::HEADER..].to_vec();
            assert_eq!(Response::decode(&body).as_ref(), Ok(&response));
            for length in 0..body.len() {
                assert_eq!(Response::decode(&body[..length]), Err(DecodeError::Truncated), "{response:?} cut to {length}");
            }
            body.push(0);
            assert_eq!(Response::decode(&body), Err(DecodeError::Trailing { bytes: 1 }));
        }
    }

    #[test]
    fn unknown_kinds_are_refused() {
        for kind in (0..DONE).chain(TOLD + 1..=u8::MAX) {
            assert_eq!(Response::decode(&[kind]), Err(DecodeError::UnknownKind { found: kind }));
        }
    }

    #[test]
    fn endless_texts_are_cut_between_characters() {
        let frame = Response::Failed { message: "ß".repeat(100_000), hint: Some("x".repeat(100_000)), permanent: true }.encode();
        let Ok(Response::Failed { message, hint, permanent: true }) = Response::decode(&frame[frame::HEADER..]) else {
            panic!("still a message")
        };
        assert_eq!((message.len(), hint.map(|hint| hint.len())), (MAX_TEXT, Some(MAX_TEXT)));
        let odd = Response::TryLater { message: format!("x{}", "ß".repeat(MAX_TEXT)) }.encode();
        assert!(Response::decode(&odd[frame::HEADER..]).is_ok());
    }
}
