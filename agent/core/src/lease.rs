//! Writer leases: who may add to the live end of a timeline, and when another writer may follow.
//!
//! A lease is an immutable object `leases/<timeline>/<epoch>.json`, created by a conditional put; the highest epoch is in force. Parts carry the epoch
//! of their writer, and a reader lets a later epoch cut off earlier ones (see [`crate::parts`]): whatever a writer does that was followed and has
//! not noticed yet, its bytes and its follower's are never joined. Nothing here decides by a clock: a lease does not run out. Its writer is gone when
//! the server itself says so, by the slot.

use std::fmt;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::identity::TimelineId;

/// A lease's place: one timeline's epochs are counted from 1, without a hole.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct LeaseName {
    /// The timeline.
    pub timeline: TimelineId,
    /// Its place in the row.
    pub epoch: u32,
}

/// A writer, as it calls itself.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Writer {
    /// Made once, kept in the spool: an agent that begins again with its spool is the same writer.
    pub id: String,
    /// Made anew by each process. Two lives of one writer at the same time are a copied machine.
    pub life: String,
    /// The host it runs on; for people.
    pub host: String,
    /// Its process on that host; for people.
    pub pid: u32,
    /// The servers that its connection may lead to, `host:port` each; a server on the agent's own host is named by that host.
    pub servers: Vec<String>,
    /// Which of them it streams from, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<String>,
    /// The replication slot it streams from.
    pub slot: String,
}

impl Writer {
    /// The servers at one of which it is.
    pub fn places(&self) -> &[String] {
        self.at.as_ref().map_or(&self.servers, std::slice::from_ref)
    }
}

impl fmt::Display for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let short = |id: &str| id.chars().take(8).collect::<String>();
        let (id, life) = (short(&self.id), short(&self.life));
        write!(f, "the agent on host {} (process {}, writer {id}, life {life}, slot {})", self.host, self.pid, self.slot)?;
        write!(f, " for the server {}", self.servers.join(" or "))
    }
}

/// A lease.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LeaseRecord {
    /// Which one.
    pub name: LeaseName,
    /// Whose.
    pub writer: Writer,
    /// When, by the writer's clock; for people.
    pub taken_at: DateTime<Utc>,
    /// A person said that this writer may write, `walkeep lease take`.
    #[serde(default)]
    pub by_operator: bool,
}

/// What a writer does about the newest lease of a timeline.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// It is in force, and this process' own.
    Keep,
    /// To write, take this epoch.
    Take {
        /// The epoch.
        epoch: u32,
        /// The writer that is followed, if it is another one.
        follows: Option<Writer>,
        /// Whoever wrote before may be at work still, and has to have looked before anything is stored.
        after_a_look: bool,
    },
    /// As [`Verdict::Take`], if the holder's slot has not been in use for a while: the servers know at one of which the holder is.
    TakeIfUnused {
        /// The epoch.
        epoch: u32,
        /// The lease in force.
        holder: LeaseRecord,
    },
    /// Somebody else's.
    Refused {
        /// The lease in force.
        holder: LeaseRecord,
        /// Why.
        reason: Refusal,
    },
}

/// Why a writer may not write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// The holder streams from another server.
    OtherServer,
    /// The holder has this agent's identity, but is another process, which began later.
    Twin,
    /// The holder streams from the same server at this moment.
    InUse,
    /// The holder's slot is unused, but not yet for long enough.
    NotLongEnough,
    /// Another writer has followed meanwhile.
    Followed,
    /// It cannot be learned whether the holder is still there.
    Unknown,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OtherServer => "that one streams from another server: one of the two servers is a copy, or has taken the other's place",
            Self::Twin => "that one has the identity of this agent and began later: this machine, or its spool, was copied",
            Self::InUse => "its slot is in use at this moment",
            Self::NotLongEnough => "its slot is not in use any more, but for less than a minute",
            Self::Followed => "that one has followed this agent as the writer",
            Self::Unknown => "the server does not say whether its slot is in use",
        })
    }
}

/// Decides about the newest lease of a timeline, for the writer `me`. `held` is the epoch that this process took, if it did.
///
/// An agent that begins again takes an epoch of its own, so that two processes never write under one. A server with another name is never
/// followed without a person's word: between a copy of a server and the server that it was copied from nothing else decides while their WAL is the same.
pub fn judge(newest: Option<LeaseRecord>, me: &Writer, held: Option<u32>) -> Verdict {
    let take = |epoch, follows| Verdict::Take { epoch, follows, after_a_look: false };
    let Some(newest) = newest else { return take(1, None) };
    let holder = &newest.writer;
    let epoch = newest.name.epoch.saturating_add(1);
    if holder.id == me.id {
        return match held {
            // One that goes on at another server says so: others ask there whether it is gone.
            Some(held) if held == newest.name.epoch && holder.life == me.life && holder.at == me.at => Verdict::Keep,
            Some(_) if holder.life != me.life && !newest.by_operator => Verdict::Refused { holder: newest, reason: Refusal::Twin },
            _ => Verdict::Take { epoch, follows: None, after_a_look: newest.by_operator },
        };
    }
    if !holder.places().iter().all(|server| me.servers.contains(server)) {
        return Verdict::Refused { holder: newest, reason: Refusal::OtherServer };
    }
    // PostgreSQL lets one at a time use a slot: who streams from it now is alone. Another server's slot of that name is another slot.
    if holder.slot == me.slot && holder.places() == me.places() && me.places().len() == 1 {
        return take(epoch, Some(newest.writer));
    }
    Verdict::TakeIfUnused { epoch, holder: newest }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn writer(id: &str, life: &str, server: &str, slot: &str) -> Writer {
        Writer {
            id: id.into(),
            life: life.into(),
            host: "db1".into(),
            pid: 1,
            servers: vec!["standby:5432".into(), server.into()],
            at: Some(server.into()),
            slot: slot.into(),
        }
    }

    fn lease(epoch: u32, writer: &Writer) -> LeaseRecord {
        let mut writer = writer.clone();
        writer.servers.remove(0);
        let name = LeaseName { timeline: TimelineId::FIRST, epoch };
        LeaseRecord { name, writer, taken_at: DateTime::UNIX_EPOCH, by_operator: false }
    }

    fn take(epoch: u32) -> Verdict {
        Verdict::Take { epoch, follows: None, after_a_look: false }
    }

    #[test]
    fn the_first_writer_begins_at_one() {
        assert_eq!(judge(None, &writer("a", "1", "db1:5432", "walkeep"), None), take(1));
    }

    #[test]
    fn each_life_has_its_own_epoch() {
        let me = writer("a", "1", "db1:5432", "walkeep");
        let mine = lease(4, &me);
        assert_eq!(judge(Some(mine.clone()), &me, Some(4)), Verdict::Keep);
        assert_eq!(judge(Some(mine.clone()), &writer("a", "2", "db1:5432", "walkeep"), None), take(5));
        assert_eq!(
            judge(Some(mine.clone()), &writer("a", "1", "standby:5432", "walkeep"), Some(4)),
            take(5),
            "it is asked for elsewhere now"
        );
        assert_eq!(judge(Some(mine), &writer("a", "2", "elsewhere:1", "walkeep"), None), take(5), "its spool is its identity");
    }

    #[test]
    fn a_copied_machine_is_told_from_a_new_life() {
        let (me, twin) = (writer("a", "1", "db1:5432", "walkeep"), writer("a", "2", "db1:5432", "walkeep"));
        let holder = lease(5, &twin);
        assert_eq!(judge(Some(holder.clone()), &me, Some(4)), Verdict::Refused { holder, reason: Refusal::Twin });
        let allowed = LeaseRecord { by_operator: true, ..lease(5, &twin) };
        let after_a_look = Verdict::Take { epoch: 6, follows: None, after_a_look: true };
        assert_eq!(judge(Some(allowed), &me, Some(4)), after_a_look);
    }

    #[test]
    fn another_writer_follows_only_where_the_server_proves_that_the_holder_is_gone() {
        let me = writer("b", "1", "db1:5432", "walkeep");
        let on = |server: &str, slot: &str| lease(1, &writer("a", "9", server, slot));
        let same_slot = on("db1:5432", "walkeep");
        assert_eq!(
            judge(Some(same_slot.clone()), &me, None),
            Verdict::Take { epoch: 2, follows: Some(same_slot.writer), after_a_look: false }
        );
        let other_slot = on("db1:5432", "other");
        assert_eq!(judge(Some(other_slot.clone()), &me, None), Verdict::TakeIfUnused { epoch: 2, holder: other_slot });
        // Both may reach both servers, and each has a slot of that name.
        let at_standby = on("standby:5432", "walkeep");
        assert_eq!(judge(Some(at_standby.clone()), &me, None), Verdict::TakeIfUnused { epoch: 2, holder: at_standby });
        // An earlier version did not say where it is.
        let mut somewhere = on("db1:5432", "walkeep");
        somewhere.writer.at = None;
        assert_eq!(
            judge(Some(somewhere.clone()), &me, None),
            Verdict::Take { epoch: 2, follows: Some(somewhere.writer.clone()), after_a_look: false }
        );
        somewhere.writer.servers.push("standby:5432".into());
        assert_eq!(judge(Some(somewhere.clone()), &me, None), Verdict::TakeIfUnused { epoch: 2, holder: somewhere });
        // Whoever was followed is told so, and goes by the same rules.
        for (slot, held) in [("walkeep", None), ("other", None), ("walkeep", Some(1))] {
            let holder = on("copy:5432", slot);
            assert_eq!(judge(Some(holder.clone()), &me, held), Verdict::Refused { holder, reason: Refusal::OtherServer });
        }
    }
}
