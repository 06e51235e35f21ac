//! How many rows tables had on the running server, and whether a restored one has them too.
//!
//! A sample counts the tables of a database in one snapshot, so it is a state that the server once showed. WAL has no such states, only an order of
//! commits: a transaction stands in the WAL a moment before others see its rows, so at no position is everything there that a snapshot sees, and
//! nothing else, for certain. What can be said for certain is said by transactions. The sample keeps its snapshot, and a position behind all that the
//! snapshot sees. A server that was recovered to that position or further has all of it; it has more exactly if a transaction that the snapshot did not
//! see has committed there. If none has, every number must be the same. If one has, numbers that are the same are a proof, and those that are not are none.

use std::collections::BTreeMap;
use std::str::FromStr;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::check::{Checked, Kind};
use crate::identifier::quote;
use crate::identity::TimelineId;
use crate::lsn::Lsn;

/// So many differences are named.
const NAMED: usize = 10;

/// Where a sample was taken: its name in the repository.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct SampleName {
    /// The timeline the server was on.
    pub timeline: TimelineId,
    /// Behind all that it sees.
    pub lsn: Lsn,
}

/// A sample.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RowSample {
    /// The format.
    pub format: u32,
    /// Where it was taken.
    #[serde(flatten)]
    pub name: SampleName,
    /// When it began, by the server's clock.
    pub taken_at: DateTime<Utc>,
    /// What was counted.
    pub databases: Vec<SampledDatabase>,
    /// Databases that were not, and why.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub left_out: BTreeMap<String, String>,
}

impl RowSample {
    /// The format.
    pub const FORMAT: u32 = 1;
    /// No sample has more bytes as text: a quarter of a million tables.
    pub const LONGEST: u64 = 32 << 20;
}

/// One database of a sample.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SampledDatabase {
    /// Its name.
    pub name: String,
    /// What was seen.
    pub snapshot: Snapshot,
    /// Behind all of that.
    pub lsn: Lsn,
    /// Tables, with their rows.
    pub tables: Vec<SampledTable>,
    /// Tables that were left out, as they were too large, or nobody may read them.
    pub left_out: u64,
}

/// One table of a sample.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SampledTable {
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub name: String,
    /// Its rows.
    pub rows: u64,
}

/// What a transaction saw, as `pg_current_snapshot()` tells it: everything below `xmin`, nothing from `xmax` on, of those between all but these.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Snapshot {
    xmin: u64,
    /// The first that had not begun.
    pub xmax: u64,
    /// Those that were under way.
    pub running: Vec<u64>,
}

/// The text is no snapshot.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no snapshot: expected xmin:xmax:xid,xid")]
pub struct SnapshotError(String);

impl FromStr for Snapshot {
    type Err = SnapshotError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parsed = || {
            let mut parts = text.split(':');
            let (xmin, xmax) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
            let running = parts.next()?.split(',').filter(|xid| !xid.is_empty()).map(|xid| xid.parse().ok()).collect::<Option<_>>()?;
            parts.next().is_none().then_some(Self { xmin, xmax, running })
        };
        parsed().ok_or_else(|| SnapshotError(text.chars().take(80).collect()))
    }
}

impl TryFrom<String> for Snapshot {
    type Error = SnapshotError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Snapshot> for String {
    fn from(Snapshot { xmin, xmax, running }: Snapshot) -> Self {
        let running = running.iter().map(u64::to_string).collect::<Vec<_>>().join(",");
        format!("{xmin}:{xmax}:{running}")
    }
}

/// What became of transactions that a sample did not see, in the recovered server.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Since {
    /// None of them committed.
    Nothing,
    /// Some did, or it is not known of all.
    Something,
}

/// Compares a database with its sample; `now` has the rows of its tables, of those that are there.
pub fn compare(sample: &SampledDatabase, now: &BTreeMap<(String, String), u64>, since: Since) -> Checked {
    let name = format!("rows of {}", quote(&sample.name));
    let found = |table: &SampledTable| now.get(&(table.schema.clone(), table.name.clone())).copied();
    let (same, differ): (Vec<_>, Vec<_>) = sample.tables.iter().partition(|table| found(table) == Some(table.rows));
    let rows: u64 = same.iter().map(|table| table.rows).sum();
    let alike = format!("{} of {} tables have as many rows as they had at {} ({rows} in all)", same.len(), sample.tables.len(), sample.lsn);
    let left_out = match sample.left_out {
        0 => String::new(),
        left_out => format!("; {left_out} more were not counted then"),
    };
    if sample.tables.is_empty() {
        return Checked::not_done(Kind::Rows, &name, format!("the sample has no table of it{left_out}"));
    }
    let told = |table: &&SampledTable| {
        let there = found(table).map_or_else(|| "none such".to_owned(), |rows| rows.to_string());
        format!("{}.{} {} then, {there} now", quote(&table.schema), quote(&table.name), table.rows)
    };
    let more = if differ.len() > NAMED { format!(" and {} more", differ.len() - NAMED) } else { String::new() };
    let named = differ.iter().take(NAMED).map(told).collect::<Vec<_>>().join(", ") + &more;
    match (differ.is_empty(), since, same.is_empty()) {
        (true, ..) => Checked::passed(Kind::Rows, &name, alike + &left_out),
        (false, Since::Nothing, _) => {
            Checked::failed(Kind::Rows, &name, format!("{alike}; nothing was committed since, and these have not: {named}{left_out}"))
        }
        (false, Since::Something, all) => {
            let says =
                format!("{alike}; transactions committed since, and these have other numbers, which proves nothing: {named}{left_out}");
            if all { Checked::not_done(Kind::Rows, &name, says) } else { Checked::passed(Kind::Rows, &name, says) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drill::Outcome;

    fn database(tables: &[(&str, u64)]) -> SampledDatabase {
        let table = |(name, rows): &(&str, u64)| SampledTable { schema: "public".into(), name: (*name).into(), rows: *rows };
        let snapshot = "10:12:10,11".parse().expect("a snapshot");
        SampledDatabase {
            name: "shop".into(),
            snapshot,
            lsn: Lsn::new(0x300_0000),
            tables: tables.iter().map(table).collect(),
            left_out: 0,
        }
    }

    fn now(tables: &[(&str, u64)]) -> BTreeMap<(String, String), u64> {
        tables.iter().map(|(name, rows)| (("public".to_owned(), (*name).to_owned()), *rows)).collect()
    }

    #[test]
    fn numbers_that_differ_count_only_where_nothing_was_committed_since() {
        let sample = database(&[("a", 5), ("b", 7)]);
        for (there, since, outcome) in [
            (now(&[("a", 5), ("b", 7), ("c", 1)]), Since::Nothing, Outcome::Passed),
            (now(&[("a", 5), ("b", 7)]), Since::Something, Outcome::Passed),
            (now(&[("a", 5), ("b", 6)]), Since::Nothing, Outcome::Failed),
            (now(&[("a", 5)]), Since::Nothing, Outcome::Failed),
            (now(&[("a", 5), ("b", 6)]), Since::Something, Outcome::Passed),
            (now(&[("a", 4), ("b", 6)]), Since::Something, Outcome::NotDone),
        ] {
            let checked = compare(&sample, &there, since);
            assert_eq!(checked.outcome, outcome, "{checked:?}");
            assert_eq!(checked.says.contains("b 7 then"), there.get(&("public".into(), "b".into())) != Some(&7), "{checked:?}");
        }
        assert_eq!(compare(&database(&[]), &now(&[]), Since::Nothing).outcome, Outcome::NotDone);
    }

    #[test]
    fn snapshots_are_read_as_postgresql_writes_them() {
        for text in ["10:12:10,11", "10:10:"] {
            assert_eq!(text.parse::<Snapshot>().map(String::from).as_deref(), Ok(text));
        }
        for text in ["", "10", "10:12", "a:1:", "1:2:x", "1:2:3:4"] {
            assert!(text.parse::<Snapshot>().is_err(), "{text}");
        }
        let sample = RowSample {
            format: RowSample::FORMAT,
            name: SampleName { timeline: TimelineId::FIRST, lsn: Lsn::new(0x300_0000) },
            taken_at: DateTime::UNIX_EPOCH,
            databases: vec![database(&[("a", 5)])],
            left_out: BTreeMap::new(),
        };
        let json = serde_json::to_string(&sample).expect("json");
        assert_eq!(serde_json::from_str::<RowSample>(&json).expect("reads"), sample);
    }
}
