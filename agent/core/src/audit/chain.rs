//! What the chain of records proves: that none in it was changed, taken out or put in between.
//!
//! It cannot prove that the end was not cut off, nor that all of it was not written anew: for that somebody has to remember a hash elsewhere, which
//! [`check`] then looks for.

use std::fmt;

use chrono::TimeDelta;
use serde::Serialize;

use super::copies::Copies;
use super::{Head, Record, hash};
use crate::identity::SystemIdentifier;
use crate::sha256::Sha256Sum;

/// A record may be stored so late with nothing wrong: refused requests are collected for an hour, what an agent tells waits until it reaches the repository, and
/// meanwhile others store theirs.
pub const LATE: TimeDelta = TimeDelta::days(1);

/// A record that is what its place says.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Known {
    /// The record.
    #[serde(flatten)]
    pub record: Record,
    /// The SHA-256 of its bytes.
    pub sha256: Sha256Sum,
}

/// Something that should not be.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case", tag = "finding")]
pub enum Finding {
    /// There are later records and not this one.
    Missing {
        /// Its number.
        number: u32,
        /// The last of a row of them.
        to: u32,
    },
    /// The record behind it names another hash: one of the two was changed.
    Changed {
        /// Its number.
        number: u32,
    },
    /// It follows a record that is not the one before it: somebody wrote it beside those in between.
    Forked {
        /// Its number.
        number: u32,
        /// The record that it follows.
        behind: u32,
    },
    /// It is another record, or another cluster's.
    Misplaced {
        /// The number that its key has.
        number: u32,
        /// What it is.
        is: String,
    },
    /// It cannot be read.
    Unreadable {
        /// Its number.
        number: u32,
        /// Why.
        reason: String,
    },
    /// Several repositories have different records in its place.
    Differs {
        /// Its number.
        number: u32,
        /// Which hash it has where.
        copies: Copies,
    },
    /// No record has the hash that somebody remembers.
    NotThere {
        /// That hash.
        sha256: Sha256Sum,
    },
}

impl Finding {
    /// The record that it is about.
    pub fn number(&self) -> Option<u32> {
        match self {
            Self::Missing { number, .. } | Self::Changed { number } | Self::Forked { number, .. } => Some(*number),
            Self::Misplaced { number, .. } | Self::Unreadable { number, .. } | Self::Differs { number, .. } => Some(*number),
            Self::NotThere { .. } => None,
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing { number, to } if number == to => write!(f, "record {number} is missing"),
            Self::Missing { number, to } => write!(f, "records {number} to {to} are missing"),
            Self::Changed { number } => {
                write!(f, "record {number} has not the hash that record {} names: one of them was changed", number.saturating_add(1))
            }
            Self::Forked { number, behind } => {
                write!(f, "record {number} follows record {behind}: it was not written behind the one before it")
            }
            Self::Misplaced { number, is } => write!(f, "record {number} is {is}"),
            Self::Unreadable { number, reason } => write!(f, "record {number} cannot be read: {reason}"),
            Self::Differs { number, copies } => write!(f, "record {number} is not the same in all repositories: {copies}"),
            Self::NotThere { sha256 } => {
                write!(f, "no record has the hash {sha256}: the end was cut off behind an earlier one, or all was written anew")
            }
        }
    }
}

/// A trail that was looked through.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Checked {
    /// The records that can be read, in their order.
    pub records: Vec<Known>,
    /// What should not be.
    pub findings: Vec<Finding>,
    /// Records whose clock went back: earlier than the record of their own beginning, or by more than [`LATE`] than the one before. No proof of anything.
    pub backwards: Vec<u32>,
    /// The last record.
    pub head: Head,
}

impl Checked {
    /// The records of which one behind them says that it was not the same everywhere. Where they are the same now, and the last one is, and no other repository's
    /// trail is broken, all records are: each names the one before it.
    pub fn questioned(&self) -> impl Iterator<Item = u32> + '_ {
        let doubting = self.records.iter().filter(|known| !known.record.others.is_empty());
        doubting.filter_map(|known| known.record.number.checked_sub(1))
    }
}

/// Looks through the records of a cluster: number and bytes, in their order. `expected` is a hash that somebody noted.
pub fn check<'a>(
    cluster: &str,
    system: SystemIdentifier,
    objects: impl IntoIterator<Item = (u32, &'a [u8])>,
    expected: Option<Sha256Sum>,
) -> Checked {
    let mut checked = Checked::default();
    let mut hashes: Vec<(u32, Sha256Sum)> = Vec::new();
    for (number, bytes) in objects {
        let next = checked.head.number.saturating_add(1);
        if number > next {
            checked.findings.push(Finding::Missing { number: next, to: number - 1 });
        }
        let before = (number == next).then_some(checked.head);
        checked.head = Head::of(number, bytes);
        let sha256 = hash(bytes);
        match read(cluster, system, number, bytes) {
            Ok(record) => {
                checked.findings.extend(before.and_then(|before| link(&record, before, &hashes)));
                if went_back(&record, &checked.records) {
                    checked.backwards.push(number);
                }
                checked.records.push(Known { record, sha256 });
            }
            Err(finding) => checked.findings.push(finding),
        }
        hashes.push((number, sha256));
    }
    if let Some(sha256) = expected.filter(|expected| hashes.iter().all(|(_, sha256)| sha256 != expected)) {
        checked.findings.push(Finding::NotThere { sha256 });
    }
    checked
}

fn went_back(record: &Record, before: &[Known]) -> bool {
    let (time, begun) = (record.entry.time, record.entry.begun);
    let own = begun.and_then(|begun| before.iter().rfind(|known| known.record.number == begun));
    own.is_some_and(|own| own.record.entry.time > time)
        || before.last().is_some_and(|last| last.record.entry.time.signed_duration_since(time) > LATE)
}

fn read(cluster: &str, system: SystemIdentifier, number: u32, bytes: &[u8]) -> Result<Record, Finding> {
    let record: Record = serde_json::from_slice(bytes).map_err(|error| Finding::Unreadable { number, reason: error.to_string() })?;
    if record.format != Record::FORMAT {
        return Err(Finding::Unreadable { number, reason: format!("it has format {}: upgrade Walkeep", record.format) });
    }
    let misplaced = |is: String| Err(Finding::Misplaced { number, is });
    if record.number != number {
        return misplaced(format!("record {}", record.number));
    }
    if (record.cluster.as_str(), record.system_identifier) != (cluster, system) {
        return misplaced(format!("one of cluster {} with system identifier {}", record.cluster, record.system_identifier));
    }
    Ok(record)
}

/// Whether the record follows the one that lies before it.
fn link(record: &Record, before: Head, hashes: &[(u32, Sha256Sum)]) -> Option<Finding> {
    if record.follows(before.hash) {
        return None;
    }
    let number = record.number;
    let behind = hashes.iter().rfind(|(_, hash)| Some(*hash) == record.previous).map(|(number, _)| *number);
    match (behind, before.number) {
        (Some(behind), _) => Some(Finding::Forked { number, behind }),
        // The first one names another, or the second none.
        (None, 0) => Some(Finding::Misplaced { number, is: "said to follow another record".into() }),
        (None, _) if record.previous.is_none() => Some(Finding::Forked { number, behind: 0 }),
        (None, before) => Some(Finding::Changed { number: before }),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use chrono::DateTime;

    use super::*;
    use crate::audit::{Actor, Entry, Kind, Outcome};

    const SYSTEM: SystemIdentifier = SystemIdentifier::new(7);

    fn entry(second: i64) -> Entry {
        Entry {
            time: DateTime::from_timestamp(second, 0).expect("a time"),
            actor: Actor { uid: 26, user: None, login: None, sudo_user: None, ssh_from: None, host: "db1".into(), pid: 1 },
            program: "walkeep 0.1.0".into(),
            command: "backup".into(),
            kind: Kind::BACKUP,
            subject: BTreeMap::from([("label".to_owned(), "nightly".to_owned())]),
            outcome: Outcome::Done,
            message: None,
            begun: None,
        }
    }

    fn behind(head: Head, second: i64) -> Vec<u8> {
        let record = Record::behind(head, "main", SYSTEM, entry(second)).expect("a number");
        serde_json::to_vec_pretty(&record).expect("JSON")
    }

    fn trail(records: u32) -> Vec<(u32, Vec<u8>)> {
        let mut head = Head::default();
        let one = |number: u32| {
            let bytes = behind(head, i64::from(number));
            head = Head::of(number, &bytes);
            (number, bytes)
        };
        (1..=records).map(one).collect()
    }

    fn look(trail: &[(u32, Vec<u8>)], expected: Option<Sha256Sum>) -> Checked {
        check("main", SYSTEM, trail.iter().map(|(number, bytes)| (*number, bytes.as_slice())), expected)
    }

    fn findings(trail: &[(u32, Vec<u8>)]) -> Vec<Finding> {
        look(trail, None).findings
    }

    #[test]
    fn a_whole_trail_has_nothing_to_say() {
        assert_eq!(look(&[], None), Checked::default());
        let trail = trail(5);
        let checked = look(&trail, Some(hash(&trail[2].1)));
        assert_eq!((checked.findings.as_slice(), checked.backwards.as_slice(), checked.records.len()), (&[][..], &[][..], 5));
        assert_eq!(checked.head, Head::of(5, &trail[4].1));
    }

    #[test]
    fn what_is_gone_is_named() {
        let whole = trail(6);
        let without = |gone: &[u32]| findings(&whole.iter().filter(|(number, _)| !gone.contains(number)).cloned().collect::<Vec<_>>());
        assert_eq!(without(&[1]), [Finding::Missing { number: 1, to: 1 }]);
        assert_eq!(without(&[3, 4]), [Finding::Missing { number: 3, to: 4 }]);
        assert_eq!(without(&[2, 5]), [Finding::Missing { number: 2, to: 2 }, Finding::Missing { number: 5, to: 5 }]);
        // The end: only who noted its hash can know.
        assert_eq!(without(&[6]), []);
        let noted = hash(&whole[5].1);
        assert_eq!(look(&whole[..5], Some(noted)).findings, [Finding::NotThere { sha256: noted }]);
    }

    #[test]
    fn every_change_of_a_byte_is_found() {
        let whole = trail(3);
        for at in 0..2 {
            for byte in 0..whole[at].1.len() {
                let mut trail = whole.clone();
                trail[at].1[byte] ^= 1;
                let numbers: Vec<_> = findings(&trail).iter().filter_map(Finding::number).collect();
                assert!(numbers.iter().any(|number| [at as u32 + 1, at as u32 + 2].contains(number)), "byte {byte} of {at}: {numbers:?}");
            }
        }
        let mut trail = whole;
        trail[1].1 = String::from_utf8(trail[1].1.clone()).expect("text").replace("nightly", "mightly").into_bytes();
        assert_eq!(findings(&trail), [Finding::Changed { number: 2 }]);
    }

    #[test]
    fn a_record_beside_others_or_of_elsewhere_is_found() {
        let mut forked = trail(4);
        forked[3].1 = behind(Head::of(2, &forked[1].1), 4);
        // Its number says 3: it is a copy of the place.
        assert_eq!(findings(&forked), [Finding::Misplaced { number: 4, is: "record 3".into() }]);
        forked[3].1 = behind(Head { number: 3, ..Head::of(2, &forked[1].1) }, 4);
        assert_eq!(findings(&forked), [Finding::Forked { number: 4, behind: 2 }]);
        forked[3].1 = behind(Head { number: 3, hash: None }, 4);
        assert_eq!(findings(&forked), [Finding::Forked { number: 4, behind: 0 }]);
        let elsewhere = check("other", SYSTEM, forked[..1].iter().map(|(number, bytes)| (*number, bytes.as_slice())), None);
        assert!(matches!(elsewhere.findings[..], [Finding::Misplaced { number: 1, .. }]), "{elsewhere:?}");
        let odd = [(1, b"{}".to_vec())];
        assert!(matches!(findings(&odd)[..], [Finding::Unreadable { number: 1, .. }]));
        let later = [(1, behind(Head { number: 0, hash: Some(hash(b"x")) }, 1))];
        assert!(matches!(findings(&later)[..], [Finding::Misplaced { number: 1, .. }]));
    }

    /// Behind two that differ: it follows either, and nothing else.
    #[test]
    fn a_record_behind_two_that_differ_follows_either_and_proves_none() {
        let whole = trail(2);
        let mut forged = whole.clone();
        forged[1].1 = behind(Head::of(1, &whole[0].1), 77);
        let others = vec![hash(&forged[1].1)];
        let end = super::super::End { head: Head::of(2, &whole[1].1), others, unconfirmed: false };
        let third = Record::at_end(end, "main", SYSTEM, entry(3)).expect("a number");
        assert!(!third.proves() && third.follows(Some(hash(&forged[1].1))) && !third.follows(None));
        let third = (3, serde_json::to_vec_pretty(&third).expect("JSON"));
        for trail in [&whole, &forged] {
            let checked = look(&[trail.as_slice(), std::slice::from_ref(&third)].concat(), None);
            assert_eq!((checked.findings.as_slice(), checked.questioned().collect::<Vec<_>>()), (&[][..], vec![2]));
        }
        forged[1].1 = behind(Head::of(1, &whole[0].1), 78);
        forged.push(third);
        assert_eq!(findings(&forged), [Finding::Changed { number: 2 }]);
    }

    #[test]
    fn a_clock_that_goes_back_is_a_note() {
        const DAY: i64 = 86_400;
        let first = behind(Head::default(), 2 * DAY);
        let second = behind(Head::of(1, &first), DAY - 1);
        let checked = look(&[(1, first), (2, second)], None);
        assert_eq!((checked.findings.len(), checked.backwards), (0, vec![2]));
        // The end of a deed is never before its beginning.
        let first = behind(Head::default(), 100);
        let of = |begun| Record::behind(Head::of(1, &first), "main", SYSTEM, Entry { begun, ..entry(50) }).expect("a number");
        let second = |begun| serde_json::to_vec_pretty(&of(begun)).expect("JSON");
        assert_eq!(look(&[(1, first.clone()), (2, second(Some(1)))], None).backwards, [2]);
        // What waited to be stored is behind what others stored meanwhile.
        assert_eq!(look(&[(1, first.clone()), (2, second(None))], None).backwards, [0; 0]);
    }
}
