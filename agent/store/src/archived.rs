//! Storage classes whose objects cannot be read at once, and what it takes to read one: a copy that the store makes for some days.
//!
//! Such classes are S3's. Times are those that AWS tells (S3 User Guide, "Understanding archive retrieval options"); another server may take others.

use std::fmt;
use std::time::{Duration, SystemTime};

/// A class whose objects have to be thawed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ArchiveClass {
    /// S3 Glacier Flexible Retrieval.
    Glacier,
    /// S3 Glacier Deep Archive.
    DeepArchive,
    /// One of S3 Intelligent-Tiering, which has tiers of both kinds. A listing does not tell whether an object lies in one.
    IntelligentTiering,
}

impl ArchiveClass {
    /// The class that S3 calls so; `None` for those that are read at once, GLACIER_IR among them.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "GLACIER" => Some(Self::Glacier),
            "DEEP_ARCHIVE" => Some(Self::DeepArchive),
            "INTELLIGENT_TIERING" => Some(Self::IntelligentTiering),
            _ => None,
        }
    }

    /// S3's name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Glacier => "GLACIER",
            Self::DeepArchive => "DEEP_ARCHIVE",
            Self::IntelligentTiering => "INTELLIGENT_TIERING",
        }
    }

    /// How long thawing takes, mostly: from, to. `None` where the class does not know this tier.
    pub const fn takes(self, tier: Tier) -> Option<(Duration, Duration)> {
        const fn hours(hours: u64) -> Duration {
            Duration::from_secs(hours * 3600)
        }
        const fn minutes(minutes: u64) -> Duration {
            Duration::from_secs(minutes * 60)
        }
        Some(match (self, tier) {
            (Self::Glacier, Tier::Expedited) => (minutes(1), minutes(5)),
            (Self::Glacier, Tier::Standard) => (hours(3), hours(5)),
            (Self::Glacier, Tier::Bulk) => (hours(5), hours(12)),
            (Self::DeepArchive, Tier::Expedited) => return None,
            (Self::DeepArchive, Tier::Standard) => (Duration::ZERO, hours(12)),
            (Self::DeepArchive, Tier::Bulk) => (Duration::ZERO, hours(48)),
            // As long as the slower of its two.
            (Self::IntelligentTiering, Tier::Expedited) => (minutes(1), minutes(5)),
            (Self::IntelligentTiering, Tier::Standard) => (hours(3), hours(12)),
            (Self::IntelligentTiering, Tier::Bulk) => (hours(5), hours(48)),
        })
    }
}

impl fmt::Display for ArchiveClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How fast, and how dear.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tier {
    /// The cheapest.
    Bulk,
    /// The usual one.
    Standard,
    /// The fastest; for some classes only, and not always to be had.
    Expedited,
}

impl Tier {
    /// Every tier, the cheapest first.
    pub const ALL: [Self; 3] = [Self::Bulk, Self::Standard, Self::Expedited];

    /// A word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Bulk => "bulk",
            Self::Standard => "standard",
            Self::Expedited => "expedited",
        }
    }
}

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Thaw {
    /// How long the copy stays, in days.
    pub days: u32,
    /// How fast it is made.
    pub tier: Tier,
}

/// Whether an object can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readiness {
    /// At once, as any.
    Ready,
    /// It is archived, and a copy is there until then.
    Thawed {
        /// Until when, where the store says so.
        until: Option<SystemTime>,
    },
    /// A copy is being made.
    Thawing,
    /// It is archived.
    Archived(ArchiveClass),
}

impl Readiness {
    /// Whether it can be read now.
    pub const fn is_readable(self) -> bool {
        matches!(self, Self::Ready | Self::Thawed { .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_that_are_read_at_once_are_none() {
        for class in [ArchiveClass::Glacier, ArchiveClass::DeepArchive, ArchiveClass::IntelligentTiering] {
            assert_eq!(ArchiveClass::named(class.as_str()), Some(class));
            assert!(class.takes(Tier::Bulk).unwrap().1 > class.takes(Tier::Standard).unwrap().1);
        }
        for name in ["STANDARD", "STANDARD_IA", "ONEZONE_IA", "GLACIER_IR", "REDUCED_REDUNDANCY", "SOMETHING_NEW", ""] {
            assert_eq!(ArchiveClass::named(name), None);
        }
        assert_eq!(ArchiveClass::DeepArchive.takes(Tier::Expedited), None);
    }
}
