//! The last drill, for `walkeep status`.

use chrono::{DateTime, Utc};
use serde::Serialize;
use walkeep_core::drill::{DrillId, DrillRecord, Verdict};

use crate::cli::output;
use crate::repository::{ClusterRepository, Result};

/// So many are looked at: those that were cancelled say nothing.
const NEWEST: usize = 5;

/// What the newest drill said that came to a verdict.
#[derive(Debug, Serialize)]
pub struct LastDrill {
    id: DrillId,
    verdict: Verdict,
    started_at: DateTime<Utc>,
    ended_at: DateTime<Utc>,
    rto_seconds: Option<f64>,
    rpo_seconds: Option<f64>,
}

impl LastDrill {
    /// That of a cluster; `None` if there was none.
    pub async fn of(repository: &ClusterRepository) -> Result<Option<Self>> {
        let (records, _) = repository.drills(NEWEST).await?;
        Ok(Self::among(records))
    }

    fn among(records: Vec<DrillRecord>) -> Option<Self> {
        let facts = records.into_iter().map(|record| record.facts).rfind(|facts| facts.verdict != Verdict::Cancelled)?;
        Some(Self {
            id: facts.id,
            verdict: facts.verdict,
            started_at: facts.started_at,
            ended_at: facts.ended_at,
            rto_seconds: facts.rto_seconds,
            rpo_seconds: facts.rpo_seconds,
        })
    }

    /// In a line.
    pub fn words(last: Option<&Self>, now: DateTime<Utc>) -> String {
        let Some(Self { id, verdict, ended_at, rto_seconds, .. }) = last else {
            return "none yet: whether a restore works is not known; try it with `walkeep drill`".to_owned();
        };
        let age = output::duration((now - *ended_at).to_std().unwrap_or_default());
        let rest = match (verdict, rto_seconds) {
            (Verdict::Passed, Some(seconds)) => format!("; the restored server answered after {seconds:.0} s"),
            (Verdict::Passed, None) => String::new(),
            _ => ": `walkeep drills --newest` says why".to_owned(),
        };
        format!("{id} {verdict} {age} ago{rest}")
    }
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;

    use super::*;

    #[test]
    fn it_says_whether_a_restore_works() {
        let now = DateTime::from_timestamp(1_800_000_000, 0).unwrap();
        let last = |verdict, rto_seconds| {
            let (started_at, ended_at) = (now - TimeDelta::seconds(7300), now - TimeDelta::seconds(7200));
            let last = LastDrill { id: DrillId::new(started_at, 7), verdict, started_at, ended_at, rto_seconds, rpo_seconds: None };
            LastDrill::words(Some(&last), now)
        };
        let id = DrillId::new(now - TimeDelta::seconds(7300), 7);
        assert_eq!(last(Verdict::Passed, Some(41.6)), format!("{id} passed 2h ago; the restored server answered after 42 s"));
        assert_eq!(last(Verdict::Failed, None), format!("{id} FAILED 2h ago: `walkeep drills --newest` says why"));
        assert!(LastDrill::words(None, now).starts_with("none yet"));
    }
}
