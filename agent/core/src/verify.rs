//! Whether everything is there that a repository promises: what listings, records and the catalog say, as findings.
//!
//! Nothing is read here. The agent lists and reads, hands in what it saw, and carries what it was told ([`Finding`]) to people: each names its object, says what
//! is wrong with it, what of restores is lost with that, and what to do. What may be missing is the catalog's to say: recorded gaps and what retention let go
//! are no damage, and no rule about them is made anew.

mod continuity;
mod finding;
mod judge;
mod lacking;
mod listing;
mod lost;
mod sizes;
mod tally;
#[cfg(test)]
mod tests;
mod unlike;

pub use continuity::{continuity, vanished};
pub use finding::{Finding, Findings, Kind, Severity, Stretch};
pub use judge::Judge;
pub use lacking::{Side, lacking};
pub use listing::{ArtifactFolder, BackupFolder, DrillFolder, Listing};
pub use lost::{Lost, LostWal};
pub use sizes::possible_bytes;
pub use tally::{Amount, Group, Tally};
pub use unlike::{Unlike, packs_lacking, taken_when, unlike};
