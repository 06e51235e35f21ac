//! `[cluster.NAME.drill]`: when the agent rehearses a restore, to which point, and what is looked at.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use walkeep_core::drill::check::Expected;
use walkeep_core::layout::ClusterName;
use walkeep_core::schedule::Schedule;

use super::raw::drill::{RawDrill, RawDrillCheck, RawExpected};
use super::schedules::{cron, jitter, time, zone};
use super::values::ByteSize;

/// What the schedule is called.
const LABEL: &str = "drill";
/// So long a drill may take unless the configuration says otherwise.
const DEADLINE: Duration = Duration::from_secs(6 * 3600);
/// The most that can be asked for.
const LONGEST: Duration = Duration::from_secs(7 * 24 * 3600);
/// So long one query may take.
const QUERY: Duration = Duration::from_secs(300);
/// So often rows are counted.
const SAMPLE: Duration = Duration::from_secs(24 * 3600);
/// Bytes of tables that are read for one sample.
const SAMPLE_LIMIT: ByteSize = ByteSize(1 << 30);

/// To which point a drill restores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DrillPoint {
    /// The newest there is.
    Newest,
    /// Any that can be restored.
    Random,
    /// The newest of which it is known how many rows there were.
    Sampled,
}

/// Whether something is to be looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// Where that is possible.
    Auto,
    /// It is a failure if it is not.
    On,
    /// Not at all.
    Off,
}

/// How pg_amcheck looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Amcheck {
    /// Whether it does.
    pub wish: Wish,
    /// At parents in indexes too, and that each row is in each index.
    pub thorough: bool,
}

/// A query, and what it has to answer.
#[derive(Debug, Clone, PartialEq)]
pub struct DrillCheck {
    /// Its name.
    pub name: String,
    /// The database; the connection's otherwise.
    pub database: Option<String>,
    /// The query.
    pub query: String,
    /// The answer.
    pub expected: Expected,
    /// It is given up after so long.
    pub timeout: Duration,
}

/// Drills.
#[derive(Debug, Clone, PartialEq)]
pub struct DrillConfig {
    /// When; by hand only without.
    pub schedule: Option<Schedule>,
    /// To which point.
    pub point: DrillPoint,
    /// It is ended after so long.
    pub deadline: Duration,
    /// The folder in which the throw-away server gets a folder of its own.
    pub scratch: Option<PathBuf>,
    /// A folder with PostgreSQL's programs.
    pub bin_dir: Option<PathBuf>,
    /// Tables and indexes.
    pub amcheck: Amcheck,
    /// Pages.
    pub checksums: Wish,
    /// How often the agent counts rows; never without.
    pub sample: Option<Duration>,
    /// Bytes of tables that it reads for that.
    pub sample_limit: ByteSize,
    /// Queries.
    pub checks: Vec<DrillCheck>,
}

impl Default for DrillConfig {
    /// What is usual: by hand, the newest point, whatever can be looked at.
    fn default() -> Self {
        Self {
            schedule: None,
            point: DrillPoint::Newest,
            deadline: DEADLINE,
            scratch: None,
            bin_dir: None,
            amcheck: Amcheck { wish: Wish::Auto, thorough: false },
            checksums: Wish::Auto,
            sample: None,
            sample_limit: SAMPLE_LIMIT,
            checks: Vec::new(),
        }
    }
}

/// Checks what was written.
pub fn check(raw: &RawDrill, cluster: &ClusterName) -> Result<DrillConfig> {
    let schedule = match &raw.schedule {
        None => {
            let given = [("timezone", raw.timezone.is_some()), ("jitter", raw.jitter.is_some()), ("catch_up", raw.catch_up.is_some())];
            let idle = given.into_iter().find(|(_, given)| *given);
            ensure!(idle.is_none(), "{}: goes with schedule only", idle.map_or("", |(key, _)| key));
            None
        }
        Some(text) => Some(Schedule {
            cluster: cluster.to_string(),
            label: LABEL.to_owned(),
            cron: cron(Some(text)).context("schedule")?,
            zone: zone(raw.timezone.as_deref()).context("timezone")?,
            jitter: raw.jitter.as_deref().map_or(Ok(Duration::ZERO), jitter).context("jitter")?,
            catch_up: raw.catch_up.unwrap_or(true),
        }),
    };
    let point = match raw.target.as_deref() {
        None | Some("newest") => DrillPoint::Newest,
        Some("random") => DrillPoint::Random,
        Some("sampled") => DrillPoint::Sampled,
        Some(other) => bail!("target: {other:?} is none of \"newest\", \"random\" and \"sampled\""),
    };
    let deadline = raw.deadline.as_deref().map_or(Ok(DEADLINE), time).context("deadline")?;
    ensure!(!deadline.is_zero() && deadline <= LONGEST, "deadline: must be more than nothing and at most 7 days");
    let amcheck = match raw.amcheck.as_deref() {
        Some("thorough") => Amcheck { wish: Wish::On, thorough: true },
        text => Amcheck { wish: wish(text).context("amcheck: or \"thorough\"")?, thorough: false },
    };
    // Who drills wants to compare; who does not is left alone by counts of rows.
    let usual = raw.schedule.is_some() || point == DrillPoint::Sampled;
    let sample = match raw.sample.as_deref() {
        None => usual.then_some(SAMPLE),
        Some("off") => None,
        Some(text) => Some(time(text).context("sample: or \"off\"")?),
    };
    ensure!(sample.is_none_or(|every| every >= Duration::from_secs(1)), "sample: must be at least 1s");
    let checks = raw.check.iter().enumerate();
    let checks = checks.map(|(index, check)| query(check).with_context(|| format!("[[check]] number {}", index + 1)));
    let checks: Vec<DrillCheck> = checks.collect::<Result<_>>()?;
    for (index, check) in checks.iter().enumerate() {
        ensure!(checks[..index].iter().all(|other| other.name != check.name), "[[check]]: two are called {:?}", check.name);
    }
    Ok(DrillConfig {
        schedule,
        point,
        deadline,
        scratch: folder("scratch", raw.scratch.as_deref())?,
        bin_dir: folder("bin_dir", raw.bin_dir.as_deref())?,
        amcheck,
        checksums: wish(raw.checksums.as_deref()).context("checksums")?,
        sample,
        sample_limit: raw.sample_limit.as_deref().map_or(Ok(SAMPLE_LIMIT), ByteSize::parse).context("sample_limit")?,
        checks,
    })
}

fn folder(key: &str, path: Option<&str>) -> Result<Option<PathBuf>> {
    ensure!(path.is_none_or(|path| path.starts_with('/')), "{key}: {:?} is not an absolute path", path.unwrap_or_default());
    Ok(path.map(PathBuf::from))
}

fn wish(text: Option<&str>) -> Result<Wish> {
    match text {
        None | Some("auto") => Ok(Wish::Auto),
        Some("on") => Ok(Wish::On),
        Some("off") => Ok(Wish::Off),
        Some(other) => bail!("{other:?} is none of \"auto\", \"on\" and \"off\""),
    }
}

fn query(raw: &RawDrillCheck) -> Result<DrillCheck> {
    let name = raw.name.clone().context("name is missing")?;
    ensure!(!name.trim().is_empty() && name.chars().count() <= 100, "name: must have 1 to 100 characters");
    ensure!(!name.chars().any(char::is_control), "name: {name:?} has characters that cannot be shown");
    let query = raw.query.clone().context("query is missing")?;
    ensure!(!query.trim().is_empty() && !query.contains('\0'), "query: it is empty, or no text");
    let expected = match (&raw.expect, raw.at_least, raw.at_most) {
        (None, None, None) => Expected::True,
        (None, least, most) => {
            ensure!(least.zip(most).is_none_or(|(least, most)| least <= most), "at_least: is more than at_most");
            ensure!([least, most].into_iter().flatten().all(|bound| !bound.is_nan()), "at_least, at_most: must be numbers");
            Expected::Number(least, most)
        }
        (Some(expect), None, None) => Expected::Text(match expect {
            RawExpected::Text(text) => text.clone(),
            RawExpected::Integer(number) => number.to_string(),
            // As PostgreSQL prints it.
            RawExpected::Boolean(truth) => if *truth { "t" } else { "f" }.to_owned(),
        }),
        (Some(_), ..) => bail!("expect: does not go with at_least or at_most"),
    };
    let timeout = raw.timeout.as_deref().map_or(Ok(QUERY), time).context("timeout")?;
    ensure!(!timeout.is_zero() && timeout <= LONGEST, "timeout: must be more than nothing and at most 7 days");
    Ok(DrillCheck { name, database: raw.database.clone(), query, expected, timeout })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::raw::parse_table;

    fn checked(text: &str) -> Result<DrillConfig> {
        let raw: super::super::raw::Raw = parse_table(text, "test")?.try_into()?;
        check(&raw.cluster["main"].drill, &"main".parse()?)
    }

    #[test]
    fn what_is_not_said_is_usual() {
        assert_eq!(checked("[cluster.main]\n").unwrap(), DrillConfig::default());
        let said = checked(
            r#"
            [cluster.main.drill]
            schedule = "@weekly"
            target = "random"
            amcheck = "thorough"
            [[cluster.main.drill.check]]
            name = "orders"
            database = "shop"
            query = "SELECT count(*) FROM orders"
            at_least = 10
            [[cluster.main.drill.check]]
            name = "fresh"
            query = "SELECT true"
            [[cluster.main.drill.check]]
            name = "two"
            query = "SELECT 2"
            expect = 2
            timeout = "10s"
            "#,
        )
        .unwrap();
        assert_eq!((said.point, said.amcheck), (DrillPoint::Random, Amcheck { wish: Wish::On, thorough: true }));
        assert_eq!(said.sample, Some(SAMPLE));
        let expected: Vec<_> = said.checks.iter().map(|check| check.expected.clone()).collect();
        assert_eq!(expected, [Expected::Number(Some(10.0), None), Expected::True, Expected::Text("2".into())]);
    }

    #[test]
    fn what_cannot_be_meant_is_refused_with_its_key() {
        for (lines, said) in [
            ("jitter = \"1h\"", "jitter: goes with schedule only"),
            ("schedule = \"x\"", "schedule"),
            ("target = \"oldest\"", "none of \"newest\""),
            ("deadline = \"0s\"", "deadline"),
            ("amcheck = \"maybe\"", "amcheck"),
            ("checksums = \"thorough\"", "checksums"),
            ("scratch = \"x\"", "not an absolute path"),
            ("sample = \"10ms\"", "at least 1s"),
            ("checks = 1", "unknown field `checks`"),
            ("[[cluster.main.drill.check]]\nquery = \"x\"", "name is missing"),
            ("[[cluster.main.drill.check]]\nname = \"a\"", "query is missing"),
            ("[[cluster.main.drill.check]]\nname = \"a\"\nquery = \"x\"\nexpect = 1\nat_least = 1", "does not go with"),
            ("[[cluster.main.drill.check]]\nname = \"a\"\nquery = \"x\"\nat_most = 1\nat_least = 2", "more than at_most"),
            (
                "[[cluster.main.drill.check]]\nname = \"a\"\nquery = \"x\"\n[[cluster.main.drill.check]]\nname = \"a\"\nquery = \"x\"",
                "two are called",
            ),
        ] {
            let refused = format!("{:#}", checked(&format!("[cluster.main.drill]\n{lines}\n")).unwrap_err());
            assert!(refused.contains(said), "{lines}: {refused}");
        }
    }
}
