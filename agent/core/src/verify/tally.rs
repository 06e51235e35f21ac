//! How much is stored: objects and bytes by kind, and by the class in which the store keeps them. What a listing of everything tells beside.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::layout::ObjectName;

/// What an object is, as it is counted: finer than [`crate::kind`], which says how it is put.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Group {
    /// Whole segments, and what else the server archives.
    Wal,
    /// Parts of unfinished segments.
    Parts,
    /// Data of backups.
    Packs,
    /// What a backup consists of.
    Manifests,
    /// What the WAL says happened when, and which blocks changed.
    Index,
    /// What relations were called.
    Names,
    /// Dumps and artifacts, with their records.
    Artifacts,
    /// Reports of drills, and the samples that they compare with.
    Drills,
    /// The audit trail.
    Audit,
    /// Records of backups, gaps, leases, expiries, and the like.
    Records,
}

impl Group {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Wal,
        Self::Parts,
        Self::Packs,
        Self::Manifests,
        Self::Index,
        Self::Names,
        Self::Artifacts,
        Self::Drills,
        Self::Audit,
        Self::Records,
    ];

    /// A word for metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Wal => "wal",
            Self::Parts => "parts",
            Self::Packs => "packs",
            Self::Manifests => "manifests",
            Self::Index => "index",
            Self::Names => "names",
            Self::Artifacts => "artifacts",
            Self::Drills => "drills",
            Self::Audit => "audit",
            Self::Records => "records",
        }
    }

    /// Of an object.
    pub const fn of(name: &ObjectName) -> Self {
        match name {
            ObjectName::Wal(_) | ObjectName::OtherPartial { .. } => Self::Wal,
            ObjectName::Part(_) => Self::Parts,
            ObjectName::Pack(_) => Self::Packs,
            ObjectName::BackupManifest(..) => Self::Manifests,
            ObjectName::Digest(_) | ObjectName::Blocks(_) => Self::Index,
            ObjectName::Names(_) => Self::Names,
            ObjectName::ArtifactBegun(_)
            | ObjectName::ArtifactPiece(..)
            | ObjectName::ArtifactSummary(_)
            | ObjectName::ArtifactRecord(_) => Self::Artifacts,
            ObjectName::DrillRecord(_) | ObjectName::DrillReport(..) | ObjectName::Sample(_) => Self::Drills,
            ObjectName::Audit(_) => Self::Audit,
            ObjectName::BackupBegun(_)
            | ObjectName::BackupRecord(_)
            | ObjectName::Gap(_)
            | ObjectName::GapClosing(_)
            | ObjectName::Lease(_)
            | ObjectName::Hold(..)
            | ObjectName::Expiry(_)
            | ObjectName::ExpiryEnd(_) => Self::Records,
        }
    }
}

/// So many objects, and their bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Amount {
    /// Objects.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Amount {
    fn add(&mut self, bytes: u64) {
        self.objects += 1;
        self.bytes = self.bytes.saturating_add(bytes);
    }
}

/// What is stored of a cluster in one repository.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Tally {
    /// By kind. Of one that is missing there is nothing.
    pub kinds: BTreeMap<Group, Amount>,
    /// By the store's class. A directory has none.
    #[serde(default)]
    pub classes: BTreeMap<String, Amount>,
}

impl Tally {
    /// Counts an object.
    pub fn add(&mut self, name: &ObjectName, bytes: u64, class: Option<&str>) {
        self.kinds.entry(Group::of(name)).or_default().add(bytes);
        let Some(class) = class else { return };
        match self.classes.get_mut(class) {
            Some(amount) => amount.add(bytes),
            None => self.classes.entry(class.to_owned()).or_default().add(bytes),
        }
    }

    /// So much of a kind.
    pub fn of(&self, group: Group) -> Amount {
        self.kinds.get(&group).copied().unwrap_or_default()
    }

    /// All together.
    pub fn total(&self) -> Amount {
        self.kinds
            .values()
            .fold(Amount::default(), |sum, one| Amount { objects: sum.objects + one.objects, bytes: sum.bytes.saturating_add(one.bytes) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::SystemIdentifier;
    use crate::layout::ClusterLayout;

    #[test]
    fn objects_are_counted_by_kind_and_class() {
        let layout = ClusterLayout::new(&"main".parse().unwrap(), SystemIdentifier::new(7_000_000_000_000_000_001));
        let (root, mut tally) = (layout.root().to_owned(), Tally::default());
        let wal = format!("{root}wal/00000002/00000001/00000002000000010000000A");
        for (key, group) in [
            (format!("{wal}.zst"), Group::Wal),
            (format!("{root}wal/00000002.history.zst"), Group::Wal),
            (format!("{wal}.parts/00000000-00002000.00000001.zst"), Group::Parts),
            (format!("{root}packs/ab/{}", "ab".repeat(32)), Group::Packs),
            (format!("{root}backups/20261121T034712Z-0000000002000028/manifest.zst"), Group::Manifests),
            (format!("{root}backups/20261121T034712Z-0000000002000028/backup.json"), Group::Records),
            (format!("{root}audit/00000001.json"), Group::Audit),
        ] {
            let name = layout.parse(&key).unwrap_or_else(|| panic!("{key}"));
            assert_eq!(Group::of(&name), group, "{key}");
            tally.add(&name, 10, if group == Group::Packs { Some("STANDARD_IA") } else { Some("STANDARD") });
        }
        assert_eq!(tally.of(Group::Wal), Amount { objects: 2, bytes: 20 });
        assert_eq!(tally.of(Group::Drills), Amount::default());
        assert_eq!(tally.total(), Amount { objects: 7, bytes: 70 });
        assert_eq!(tally.classes["STANDARD_IA"], Amount { objects: 1, bytes: 10 });
        assert_eq!(tally.classes["STANDARD"], Amount { objects: 6, bytes: 60 });
        let text = serde_json::to_string(&tally).unwrap();
        assert_eq!(serde_json::from_str::<Tally>(&text).unwrap(), tally);
        for group in Group::ALL {
            assert_eq!(serde_json::to_value(group).unwrap(), group.as_str());
        }
    }
}
