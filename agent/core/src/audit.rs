//! The audit trail: who did what, from where, and how it ended; numbered records, each naming the hash of the one before.
//!
//! Records are added and never changed. What their chain proves, and what it cannot, is [`chain`]'s to say.

pub mod chain;
pub mod copies;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::identity::SystemIdentifier;
use crate::sha256::Sha256Sum;

/// The most characters of a message, or of one thing said of a subject.
const LONGEST: usize = 1000;

/// What was done, or refused. A word that another version knows is kept as it is.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Kind(Cow<'static, str>);

impl Kind {
    /// A cluster was made known to the repository.
    pub const INIT: Self = Self::of("init");
    /// A base backup.
    pub const BACKUP: Self = Self::of("backup");
    /// A data directory was laid down.
    pub const RESTORE: Self = Self::of("restore");
    /// What a restore needs was asked for out of an archived storage class.
    pub const THAW: Self = Self::of("thaw");
    /// A restore was rehearsed.
    pub const DRILL: Self = Self::of("drill");
    /// Tables or rows were taken out.
    pub const EXTRACT: Self = Self::of("extract");
    /// What the retention policy lets go.
    pub const EXPIRE: Self = Self::of("expire");
    /// What it had let go was brought back.
    pub const UNDO: Self = Self::of("undo");
    /// A backup is held.
    pub const KEEP: Self = Self::of("keep");
    /// It is not any more.
    pub const RELEASE: Self = Self::of("release");
    /// Who may read what is stored from then on.
    pub const KEY: Self = Self::of("key");
    /// The right to write a timeline was taken by an operator's word.
    pub const LEASE: Self = Self::of("lease");
    /// The index was made anew.
    pub const INDEX: Self = Self::of("index");
    /// WAL was found to be missing.
    pub const GAP: Self = Self::of("gap");
    /// The replication slot was given up, to protect the server.
    pub const SLOT: Self = Self::of("slot");
    /// A request to the agent.
    pub const REQUEST: Self = Self::of("request");
    /// The stream of WAL.
    pub const STREAM: Self = Self::of("stream");
    /// Dumps of databases.
    pub const DUMP: Self = Self::of("dump");
    /// An artifact was made.
    pub const ARTIFACT: Self = Self::of("artifact");
    /// An artifact was taken out.
    pub const ARTIFACT_GET: Self = Self::of("artifact-get");
    /// History was copied from one repository into another.
    pub const COPY: Self = Self::of("copy");
    /// Good copies were put where one of several repositories had none.
    pub const REPAIR: Self = Self::of("repair");
    /// The trail itself: records that could not be stored in time.
    pub const AUDIT: Self = Self::of("audit");

    /// A kind called so.
    pub const fn of(word: &'static str) -> Self {
        Self(Cow::Borrowed(word))
    }

    /// The word.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// How it ended, or that it begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It begins: of what was killed there is no other record.
    Begun,
    /// It was done.
    Done,
    /// It was not, or not all of it.
    Failed,
    /// It must not be done, or cannot; nothing was changed.
    Refused,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Begun => "begun",
            Self::Done => "done",
            Self::Failed => "FAILED",
            Self::Refused => "REFUSED",
        })
    }
}

/// Who did it, as far as the host tells. Whoever is root there, or has the repository's credentials, can say what he likes.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Actor {
    /// The operating system's user that the process runs as.
    pub uid: u32,
    /// Its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Who logged in, by the kernel's word, behind `su` and `sudo` too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub login: Option<String>,
    /// Who called sudo, by the environment's word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sudo_user: Option<String>,
    /// From which address, where that came by ssh, by the environment's word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ssh_from: Option<String>,
    /// On which host.
    pub host: String,
    /// The process there.
    pub pid: u32,
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.user {
            Some(user) => write!(f, "{user}@{}", self.host)?,
            None => write!(f, "uid {}@{}", self.uid, self.host)?,
        }
        let person = self.login.as_ref().or(self.sudo_user.as_ref());
        if let Some(person) = person.filter(|person| Some(*person) != self.user.as_ref()) {
            write!(f, " ({person})")?;
        }
        Ok(())
    }
}

/// What is told of one deed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Entry {
    /// When, by that host's clock.
    pub time: DateTime<Utc>,
    /// Who.
    pub actor: Actor,
    /// The program and its version.
    pub program: String,
    /// The command, or the job of the agent.
    pub command: String,
    /// What.
    pub kind: Kind,
    /// What it was done to: a backup, a target, paths. No secrets.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub subject: BTreeMap<String, String>,
    /// With which result.
    pub outcome: Outcome,
    /// What there is to say of the result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// The record of its beginning, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub begun: Option<u32>,
}

/// What somebody says, as it is recorded: no control characters, and not without an end.
pub fn recorded(text: &str) -> String {
    let mut short: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(LONGEST).collect();
    if text.chars().nth(LONGEST).is_some() {
        short.push_str("...");
    }
    short
}

/// A record of the trail.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Record {
    /// The format.
    pub format: u32,
    /// Its place, counted from 1.
    pub number: u32,
    /// The SHA-256 of the record before, all of its object's bytes; none for the first.
    pub previous: Option<Sha256Sum>,
    /// Of which cluster it is.
    pub cluster: String,
    /// The same by its system identifier.
    pub system_identifier: SystemIdentifier,
    /// What other repositories had in the place of the one before when this was written. It follows each of them, and proves none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub others: Vec<Sha256Sum>,
    /// Of several repositories only one told of the one before when this was written: it proves nothing against what another one has.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unconfirmed: bool,
    /// What it tells.
    #[serde(flatten)]
    pub entry: Entry,
}

/// The last record of a trail, as far as it is known.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Head {
    /// Its number; 0 before the first.
    pub number: u32,
    /// The SHA-256 of its object's bytes.
    pub hash: Option<Sha256Sum>,
}

impl Head {
    /// Of a record's bytes.
    pub fn of(number: u32, bytes: &[u8]) -> Self {
        Self { number, hash: Some(hash(bytes)) }
    }
}

/// Where a trail ends, as the next record will name it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct End {
    /// The last record.
    pub head: Head,
    /// Hashes of what other repositories have in its place.
    pub others: Vec<Sha256Sum>,
    /// Whether of several repositories only one told of it.
    pub unconfirmed: bool,
}

impl End {
    /// Of which there is no doubt.
    pub fn of(head: Head) -> Self {
        Self { head, ..Self::default() }
    }
}

impl Record {
    /// The format of records.
    pub const FORMAT: u32 = 1;

    /// What follows `head`; `None` when there are no more numbers.
    pub fn behind(head: Head, cluster: &str, system: SystemIdentifier, entry: Entry) -> Option<Self> {
        Self::at_end(End::of(head), cluster, system, entry)
    }

    /// The same behind an end that several repositories told of.
    pub fn at_end(end: End, cluster: &str, system: SystemIdentifier, entry: Entry) -> Option<Self> {
        let End { head, others, unconfirmed } = end;
        let (number, cluster) = (head.number.checked_add(1)?, cluster.to_owned());
        let previous = head.hash;
        Some(Self { format: Self::FORMAT, number, previous, cluster, system_identifier: system, others, unconfirmed, entry })
    }

    /// Whether it was written behind a record with this hash, or behind none.
    pub fn follows(&self, before: Option<Sha256Sum>) -> bool {
        self.previous == before || before.is_some_and(|before| self.others.contains(&before))
    }

    /// Whether the record that it names is proven by it: who wrote it had that record itself, or saw no repository with another one and more than one with it.
    pub fn proves(&self) -> bool {
        self.others.is_empty() && !self.unconfirmed
    }
}

/// The SHA-256 of a record's bytes.
pub fn hash(bytes: &[u8]) -> Sha256Sum {
    Sha256Sum::new(Sha256::digest(bytes).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_did_it_is_told_in_one_word_and_the_person_behind() {
        let actor = Actor { uid: 26, user: None, login: None, sudo_user: None, ssh_from: None, host: "db1".into(), pid: 7 };
        assert_eq!(actor.to_string(), "uid 26@db1");
        let postgres = Actor { user: Some("postgres".into()), login: Some("postgres".into()), ..actor };
        assert_eq!(postgres.to_string(), "postgres@db1");
        assert_eq!(Actor { login: None, sudo_user: Some("ann".into()), ..postgres.clone() }.to_string(), "postgres@db1 (ann)");
        assert_eq!(Actor { login: Some("bob".into()), sudo_user: Some("ann".into()), ..postgres }.to_string(), "postgres@db1 (bob)");
    }

    #[test]
    fn what_is_recorded_is_one_line_with_an_end() {
        assert_eq!(recorded("a\nb\u{1b}[0m"), "a b [0m");
        assert_eq!(recorded(&"ä".repeat(LONGEST)), "ä".repeat(LONGEST));
        assert_eq!(recorded(&"ä".repeat(LONGEST + 1)), "ä".repeat(LONGEST) + "...");
    }
}
