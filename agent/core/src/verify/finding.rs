//! What was found, as people and programs are told it.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use serde::{Deserialize, Serialize};

use super::lost::Lost;
use crate::identity::TimelineId;
use crate::lsn::Lsn;

/// So many findings are named; more are counted.
const NAMED: usize = 10_000;

/// How much a finding matters.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Nothing is wrong: something that people may want to know.
    Note,
    /// Something is damaged that no possible restore needs, or that can be made again.
    Minor,
    /// A promise is broken.
    Damage,
}

/// What is wrong.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// It is needed and not there.
    Missing,
    /// No such object can have so many bytes, or it ends before what others refer to.
    Size,
    /// Its content is not what its name, or what refers to it, says.
    Content,
    /// Another repository has something else under its name, and which of them is the good one is not known.
    Differs,
    /// It is not locked for as long as was promised.
    Lock,
    /// What was never finished, or is on its way out.
    Leftover,
    /// Somebody else's.
    Foreign,
}

impl Kind {
    /// Whether a good copy of another repository would mend it.
    pub const fn is_mendable(self) -> bool {
        !matches!(self, Self::Lock | Self::Differs)
    }
}

/// WAL of a timeline.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Stretch {
    /// The timeline.
    pub timeline: TimelineId,
    /// Where it begins.
    pub from: Lsn,
    /// Where it ends.
    pub to: Lsn,
}

impl Stretch {
    /// Two that begin in one segment, with what lies between them.
    fn both(one: Option<Self>, other: Option<Self>) -> Option<Self> {
        match (one, other) {
            (Some(one), Some(other)) => Some(Self { from: one.from.min(other.from), to: one.to.max(other.to), ..one }),
            (one, other) => one.or(other),
        }
    }
}

/// Something that was found.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Finding {
    /// How much it matters.
    pub severity: Severity,
    /// What is wrong.
    pub kind: Kind,
    /// The object; of several that are missing in a row, the first.
    pub key: String,
    /// What is wrong, in words.
    pub reason: String,
    /// Of WAL that is missing, from where to where.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stretch: Option<Stretch>,
    /// What cannot be restored for it.
    #[serde(default, skip_serializing_if = "Lost::is_nothing")]
    pub lost: Lost,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub advice: String,
}

/// All that was found: one finding for each key and kind, the first ones named.
#[derive(Clone, Default, Debug)]
pub struct Findings {
    named: BTreeMap<(String, Kind), Finding>,
    /// Such as found no room.
    more: u64,
}

impl Findings {
    /// Adds one. What is known of its object already gains what else is lost with it.
    pub fn add(&mut self, finding: Finding) {
        let (place, room) = ((finding.key.clone(), finding.kind), self.named.len() < NAMED);
        match self.named.entry(place) {
            Entry::Occupied(known) => {
                let known = known.into_mut();
                known.severity = known.severity.max(finding.severity);
                known.lost.merge(finding.lost);
                known.stretch = Stretch::both(known.stretch, finding.stretch);
            }
            Entry::Vacant(free) if room => drop(free.insert(finding)),
            Entry::Vacant(_) => self.more += 1,
        }
    }

    /// Those that another look found too. What is there for one of them only was on its way in or out.
    pub fn seen_by(mut self, other: &Self) -> Self {
        // With more than are named nobody knows which are the same: then there is no doubt about all of them either.
        if self.more == 0 && other.more == 0 {
            self.named.retain(|place, finding| finding.severity == Severity::Note || other.named.contains_key(place));
        }
        self
    }

    /// Leaves out what does not fit.
    pub fn retain(&mut self, mut keep: impl FnMut(&Finding) -> bool) {
        self.named.retain(|_, finding| keep(finding));
    }

    /// In the order of keys.
    pub fn iter(&self) -> impl Iterator<Item = &Finding> {
        self.named.values()
    }

    /// How many there are of this severity or worse.
    pub fn count(&self, least: Severity) -> u64 {
        self.iter().filter(|finding| finding.severity >= least).count() as u64 + self.more
    }

    /// How many are not named.
    pub fn unnamed(&self) -> u64 {
        self.more
    }

    /// The worst first, each severity in the order of keys.
    pub fn into_sorted(self) -> Vec<Finding> {
        let mut all: Vec<Finding> = self.named.into_values().collect();
        all.sort_by(|a, b| b.severity.cmp(&a.severity).then_with(|| a.key.cmp(&b.key)));
        all
    }
}

impl Extend<Finding> for Findings {
    fn extend<I: IntoIterator<Item = Finding>>(&mut self, findings: I) {
        findings.into_iter().for_each(|finding| self.add(finding));
    }
}
