//! The recoverable window as a picture: one lane a timeline, with its backups, holes, switches and accidents.
//!
//! Made of what a [`Catalog`] knows, and of what a log of the WAL told if there is one; drawn as [text](Picture::text) or as an
//! [SVG](Picture::svg). It decides nothing: what can be restored is the catalog's word. Positions are exact; where on the axis they stand
//! is for the eye, see `axis`.

mod axis;
mod clock;
mod label;
mod lanes;
mod svg;
#[cfg(test)]
mod tests;
mod text;

use serde::Serialize;

use crate::catalog::{Catalog, WalRange};
use crate::history::TimelineHistory;
use crate::identity::TimelineId;
use crate::lsn::Lsn;
use crate::names::NamedEntry;
use crate::time::PgTimestamp;

pub use axis::{Axis, By};
pub use label::label;
pub use text::TextStyle;

/// The recoverable window, as lanes along one axis.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Picture {
    /// What the positions along it mean.
    pub axis: Axis,
    /// The timelines, oldest first.
    pub lanes: Vec<Lane>,
}

/// A timeline.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Lane {
    /// Its number.
    pub timeline: TimelineId,
    /// The timeline it grew out of, and where; `None` for the first, and where its history is not stored.
    pub parent: Option<Switch>,
    /// Where it begins and ends in the picture.
    pub from: Point,
    /// See [`Lane::from`].
    pub to: Point,
    /// Whether there is more of it before the picture begins.
    pub more_before: bool,
    /// Whether there is more of it behind its end.
    pub more_after: bool,
    /// Stretches of WAL. What can be restored lies over what is stored.
    pub spans: Vec<Span>,
    /// Single moments, in their order.
    pub marks: Vec<Mark>,
}

/// Where a timeline grew out of another.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Switch {
    /// The other.
    pub timeline: TimelineId,
    /// The first position that is not the other's.
    #[serde(flatten)]
    pub point: Point,
}

/// A position, and where it stands in the picture.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Point {
    /// The position.
    pub lsn: Lsn,
    /// The server's clock, where it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time: Option<PgTimestamp>,
    /// From 0, the left end of the axis, to 1.
    pub at: f64,
}

/// A stretch of WAL.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Span {
    /// What is true of it.
    pub kind: SpanKind,
    /// Its first position.
    pub from: Point,
    /// The first position behind it.
    pub to: Point,
    /// Why it is missing, where that was recorded.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub label: String,
}

/// What is true of a stretch of WAL.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SpanKind {
    /// It is stored.
    Stored,
    /// Each position of it can be restored.
    Recoverable,
    /// It is missing, or must not be replayed.
    Missing,
}

/// A single moment.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Mark {
    /// What it is.
    pub kind: MarkKind,
    /// Where: of a backup its end, from which on it can be restored; of an accident the position to stop before.
    #[serde(flatten)]
    pub point: Point,
    /// In a few words.
    pub label: String,
}

/// What a moment is marked for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum MarkKind {
    /// A base backup.
    Backup,
    /// A base backup from which nothing can be restored.
    UselessBackup,
    /// A restore point.
    RestorePoint,
    /// Relations were dropped.
    Dropped,
    /// Tables were truncated.
    Truncated,
    /// Relations were dropped or rewritten: the WAL alone does not tell.
    Unclear,
    /// A database was dropped.
    DatabaseDropped,
}

/// What marks are called in a legend.
const MARKS: [(MarkKind, &str); 7] = [
    (MarkKind::Backup, "backup"),
    (MarkKind::UselessBackup, "backup of no use"),
    (MarkKind::RestorePoint, "restore point"),
    (MarkKind::Dropped, "dropped"),
    (MarkKind::Truncated, "truncated"),
    (MarkKind::Unclear, "dropped or rewritten"),
    (MarkKind::DatabaseDropped, "database dropped"),
];

impl MarkKind {
    /// Whether somebody may want to go back before it.
    pub fn is_accident(self) -> bool {
        matches!(self, Self::Dropped | Self::Truncated | Self::Unclear | Self::DatabaseDropped)
    }
}

/// What was read out of the WAL, for a picture of that stretch.
#[derive(Clone, Copy, Debug)]
pub struct Told<'a> {
    /// The stretch; the picture shows no more than it.
    pub read: WalRange,
    /// The history along which it was read.
    pub path: &'a TimelineHistory,
    /// What happened, with the names that are known.
    pub entries: &'a [NamedEntry<'a>],
    /// Positions and what the server's clock said there.
    pub clock: &'a [(Lsn, PgTimestamp)],
}

impl Picture {
    /// The picture of what a repository holds, with what happened if that was read. `None` where there is nothing to draw.
    pub fn of(catalog: &Catalog, told: Option<Told<'_>>) -> Option<Self> {
        lanes::picture(catalog, told)
    }
}
