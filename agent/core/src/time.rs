//! PostgreSQL's timestamps as they stand in WAL records and control files.

use std::fmt;

use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Deserialize, Serialize};

/// Seconds from 1970-01-01 to 2000-01-01 UTC, PostgreSQL's epoch.
const POSTGRES_EPOCH_SECONDS: i64 = 946_684_800;

/// A moment in microseconds since 2000-01-01 00:00 UTC.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PgTimestamp(i64);

impl PgTimestamp {
    /// The moment `micros` microseconds after 2000-01-01 00:00 UTC.
    pub const fn from_micros(micros: i64) -> Self {
        Self(micros)
    }

    /// Microseconds since 2000-01-01 00:00 UTC.
    pub const fn micros(self) -> i64 {
        self.0
    }

    /// The moment so many seconds after 1970-01-01 00:00 UTC, as checkpoints count; `None` for one that PostgreSQL cannot have written.
    pub fn from_unix_seconds(seconds: i64) -> Option<Self> {
        seconds.checked_sub(POSTGRES_EPOCH_SECONDS)?.checked_mul(1_000_000).map(Self)
    }

    /// The same moment for people; `None` beyond chrono's range of years.
    pub fn to_utc(self) -> Option<DateTime<Utc>> {
        self.0.checked_add(POSTGRES_EPOCH_SECONDS * 1_000_000).and_then(DateTime::from_timestamp_micros)
    }

    /// The moment of `time`, cut to whole microseconds as PostgreSQL keeps them.
    pub fn from_utc(time: DateTime<Utc>) -> Self {
        Self(time.timestamp_micros() - POSTGRES_EPOCH_SECONDS * 1_000_000)
    }
}

impl fmt::Display for PgTimestamp {
    /// RFC 3339 in UTC with microseconds: `2026-11-21T03:47:12.000001Z`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.to_utc() {
            Some(time) => f.write_str(&time.to_rfc3339_opts(SecondsFormat::Micros, true)),
            None => write!(f, "{} microseconds since 2000-01-01", self.0),
        }
    }
}

impl fmt::Debug for PgTimestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for PgTimestamp {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PgTimestamp {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        DateTime::<Utc>::deserialize(deserializer).map(Self::from_utc)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_from_2000() {
        assert_eq!(PgTimestamp::from_micros(0).to_string(), "2000-01-01T00:00:00.000000Z");
        assert_eq!(PgTimestamp::from_micros(1).to_utc().map(PgTimestamp::from_utc), Some(PgTimestamp::from_micros(1)));
        assert!(PgTimestamp::from_micros(i64::MAX).to_string().contains("microseconds"));
    }
}
