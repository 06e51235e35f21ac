//! Records as JSON that say of themselves whether they are as they were written.
//!
//! The last field, `sha256`, is the SHA-256 of all text before its comma. It is no signature: it tells damage and a hand that edited, not an attacker. A record
//! without it is believed as it is.

use serde::de::{DeserializeOwned, Error as _, IgnoredAny};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

const BEFORE: &[u8] = b",\n  \"sha256\": \"";
const BEHIND: &[u8] = b"\"\n}\n";

/// The text of a record, indented, since people read it too.
pub fn to_json(record: &impl Serialize) -> Result<Vec<u8>, serde_json::Error> {
    let json = serde_json::to_vec_pretty(record)?;
    let Some(fields) = json.strip_suffix(b"\n}") else { return Ok(json) };
    let sum = hex::encode(Sha256::digest(fields));
    Ok([fields, BEFORE, sum.as_bytes(), BEHIND].concat())
}

/// Reads a record; an error if it is not as it was written.
pub fn from_json<T: DeserializeOwned>(json: &[u8]) -> Result<T, serde_json::Error> {
    check(json)?;
    serde_json::from_slice(json)
}

/// Whether a record is as it was written, as far as it says so.
pub fn check(json: &[u8]) -> Result<(), serde_json::Error> {
    #[derive(Deserialize)]
    struct Sealed {
        sha256: Option<IgnoredAny>,
    }
    let Sealed { sha256: Some(_) } = serde_json::from_slice(json)? else { return Ok(()) };
    let parts = json.strip_suffix(BEHIND).and_then(|rest| rest.split_at_checked(rest.len().checked_sub(64)?));
    let whole = parts.and_then(|(rest, sum)| Some((rest.strip_suffix(BEFORE)?, sum)));
    match whole.is_some_and(|(fields, sum)| hex::encode(Sha256::digest(fields)).as_bytes() == sum) {
        true => Ok(()),
        false => Err(serde_json::Error::custom("it was changed since it was written: its own SHA-256 is another one")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Serialize, Deserialize, PartialEq, Debug)]
    struct Record {
        name: String,
        number: u64,
    }

    #[test]
    fn any_changed_byte_is_found() {
        let record = Record { name: "a \"quoted\" one".into(), number: 7 };
        let json = to_json(&record).expect("json");
        assert_eq!(from_json::<Record>(&json).expect("reads"), record);
        assert_eq!(serde_json::from_slice::<Record>(&json).expect("plain JSON"), record);
        for at in 0..json.len() {
            for bit in 0..8 {
                let mut changed = json.clone();
                changed[at] ^= 1 << bit;
                // Where the seal's own name is hit, all else is as it was.
                if let Ok(read) = from_json::<Record>(&changed) {
                    assert_eq!(read, record, "byte {at}, bit {bit}");
                }
            }
        }
        let mut edited: serde_json::Value = serde_json::from_slice(&json).expect("json");
        edited["number"] = 8.into();
        for text in [serde_json::to_vec(&edited), serde_json::to_vec_pretty(&edited)] {
            assert!(from_json::<Record>(&text.expect("json")).is_err());
        }
    }

    #[test]
    fn a_record_without_a_seal_is_believed() {
        let record: Record = from_json(br#"{"name":"old","number":1}"#).expect("reads");
        assert_eq!(record.number, 1);
        assert!(from_json::<Record>(b"{").is_err());
    }
}
