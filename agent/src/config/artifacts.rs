//! `[[cluster.NAME.artifact]]` and `[cluster.NAME.dump]`: what is kept beside WAL and base backups, and when it is made.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use chrono::TimeDelta;
use walkeep_core::artifact::ArtifactName;
use walkeep_core::artifact::retention::Keep;
use walkeep_core::layout::ClusterName;
use walkeep_core::schedule::Schedule;

use super::raw::artifacts::{RawArtifact, RawDump, RawRuns};
use super::raw::{OneOrMore, RawRepository};
use super::retention::bounded;
use super::schedules::{cron, jitter, time, zone};
use super::values::{ByteSize, Secret, check_repository};
use super::{RepositoryConfig, S3Config};

/// So long an artifact may take unless the configuration says otherwise.
const TIMEOUT: Duration = Duration::from_secs(6 * 3600);
/// The most that can be asked for: what lies there without a record for two days was given up.
const LONGEST: Duration = Duration::from_secs(24 * 3600);
/// What dumps' schedule is called.
const DUMP: &str = "dump";
/// Options of pg_dump that are Walkeep's to give.
const OWN_OPTIONS: [&str; 8] = ["-f", "--file", "-F", "--format", "-j", "--jobs", "-d", "--dbname"];

/// When it is made, and what is kept of it.
#[derive(Debug, Clone)]
pub struct Runs {
    /// When; by hand only without.
    pub schedule: Option<Schedule>,
    /// What stays.
    pub keep: Keep,
    /// It is given up after so long.
    pub timeout: Duration,
    /// It is given up when it has more bytes.
    pub max_size: Option<ByteSize>,
}

/// An artifact.
#[derive(Debug, Clone)]
pub struct ArtifactConfig {
    /// Its name.
    pub name: ArtifactName,
    /// What it is made from.
    pub source: ArtifactSource,
    /// Whether nothing at all may be right.
    pub allow_empty: bool,
    /// When, and for how long.
    pub runs: Runs,
}

/// What an artifact is made from.
#[derive(Debug, Clone)]
pub enum ArtifactSource {
    /// A file or a folder.
    Path(PathBuf),
    /// A prefix of a bucket.
    Bucket(Box<S3Config>),
    /// What a command prints.
    Command {
        /// The program and its arguments.
        argv: Vec<String>,
        /// Beside a few variables of the agent's.
        environment: Vec<(String, Secret)>,
    },
}

/// Dumps of databases.
#[derive(Debug, Clone)]
pub struct DumpConfig {
    /// Which; all that take connections without.
    pub databases: Option<Vec<String>>,
    /// Not these.
    pub exclude: Vec<String>,
    /// In pg_dump's directory format, not its custom one.
    pub directory: bool,
    /// Tables at a time, in the directory format.
    pub jobs: u32,
    /// More options of pg_dump's.
    pub options: Vec<String>,
    /// A folder with pg_dump.
    pub bin_dir: Option<PathBuf>,
    /// The folder in which the directory format is written.
    pub scratch: Option<PathBuf>,
    /// When, and for how long.
    pub runs: Runs,
}

/// Checks the artifacts of a cluster.
pub fn check(
    artifacts: &[RawArtifact],
    dumps: Option<&RawDump>,
    cluster: &ClusterName,
) -> Result<(Vec<ArtifactConfig>, Option<DumpConfig>)> {
    let mut checked: Vec<ArtifactConfig> = Vec::new();
    for (index, raw) in artifacts.iter().enumerate() {
        let artifact = one(raw, cluster).with_context(|| format!("[[cluster.{cluster}.artifact]] number {}", index + 1))?;
        let name = &artifact.name;
        ensure!(checked.iter().all(|other| other.name != *name), "[[cluster.{cluster}.artifact]]: two are called {name}");
        checked.push(artifact);
    }
    let dump = dumps.map(|raw| dump(raw, cluster)).transpose().with_context(|| format!("[cluster.{cluster}.dump]"))?;
    Ok((checked, dump))
}

fn one(raw: &RawArtifact, cluster: &ClusterName) -> Result<ArtifactConfig> {
    let name: ArtifactName = raw.name.as_deref().context("name is missing")?.parse().context("name")?;
    ensure!(!name.is_dump(), "name: {name} is that of a dump");
    let source = match (&raw.path, &raw.url, &raw.command) {
        (Some(path), None, None) => {
            ensure!(path.starts_with('/'), "path: {path:?} is not an absolute path");
            ArtifactSource::Path(path.into())
        }
        (None, Some(url), None) => ArtifactSource::Bucket(Box::new(bucket(raw, url)?)),
        (None, None, Some(command)) => {
            let argv = match command {
                OneOrMore::One(line) => vec!["/bin/sh".to_owned(), "-c".to_owned(), line.clone()],
                OneOrMore::More(argv) => argv.clone(),
            };
            ensure!(argv.first().is_some_and(|program| !program.is_empty()), "command: it has no program");
            // What is wrong may be a secret.
            ensure!(argv.iter().all(|word| !word.contains('\0')), "command: a word of it has a zero byte");
            ArtifactSource::Command { argv, environment: environment(raw)? }
        }
        _ => bail!("exactly one of path, url and command says what it is made from"),
    };
    let is_command = matches!(source, ArtifactSource::Command { .. });
    ensure!(is_command || raw.environment.0.is_empty(), "environment: goes with command only");
    if !matches!(source, ArtifactSource::Bucket(_)) {
        let given = repository(raw, "").keys_of_s3();
        ensure!(given.is_empty(), "{}: goes with url only", given.join(", "));
    }
    let runs = runs(&raw.runs(), cluster, name.as_str())?;
    Ok(ArtifactConfig { name, source, allow_empty: raw.allow_empty.unwrap_or(false), runs })
}

fn environment(raw: &RawArtifact) -> Result<Vec<(String, Secret)>> {
    let one = |(name, value): (&String, &String)| {
        ensure!(!name.is_empty() && !name.contains(['=', '\0']), "environment: {name:?} cannot be a variable's name");
        ensure!(!value.contains('\0'), "environment: the value of {name} has a zero byte");
        Ok((name.clone(), Secret::from(value.clone())))
    };
    raw.environment.0.iter().map(one).collect()
}

fn bucket(raw: &RawArtifact, url: &str) -> Result<S3Config> {
    match check_repository(&repository(raw, url))? {
        RepositoryConfig::S3(config) => Ok(*config),
        RepositoryConfig::Local { .. } => bail!("url: {url:?} is no bucket: a folder is a path"),
    }
}

fn repository(raw: &RawArtifact, url: &str) -> RawRepository {
    RawRepository {
        url: Some(url.to_owned()),
        endpoint: raw.endpoint.clone(),
        region: raw.region.clone(),
        path_style: raw.path_style,
        ca_file: raw.ca_file.clone(),
        profile: raw.profile.clone(),
        access_key_id: raw.access_key_id.clone(),
        secret_access_key_file: raw.secret_access_key_file.clone(),
        session_token_file: raw.session_token_file.clone(),
        ..RawRepository::default()
    }
}

fn dump(raw: &RawDump, cluster: &ClusterName) -> Result<DumpConfig> {
    let texts = |list: &Option<OneOrMore>| match list {
        None => Vec::new(),
        Some(OneOrMore::One(text)) => vec![text.clone()],
        Some(OneOrMore::More(texts)) => texts.clone(),
    };
    let databases = Some(texts(&raw.databases)).filter(|databases| !databases.is_empty() && *databases != ["*"]);
    ensure!(databases.iter().flatten().all(|database| !database.is_empty()), "databases: a name is empty");
    let directory = match raw.format.as_deref() {
        None | Some("custom") => false,
        Some("directory") => true,
        Some(other) => bail!("format: {other:?} is neither \"custom\" nor \"directory\""),
    };
    let jobs = raw.jobs.unwrap_or(1);
    ensure!((1..=64).contains(&jobs), "jobs: must be from 1 to 64");
    ensure!(directory || jobs == 1, "jobs: more than 1 goes with format = \"directory\" only");
    let options = raw.options.clone().unwrap_or_default();
    for option in &options {
        let name = option.split('=').next().unwrap_or_default();
        // A letter may have its value behind it.
        let is_own = |own: &&str| name == *own || own.len() == 2 && name.starts_with(*own) && !name.starts_with("--");
        ensure!(option.starts_with('-') && !OWN_OPTIONS.iter().any(is_own), "options: {option:?} is not possible here");
    }
    let folder = |key: &str, path: &Option<String>| match path {
        Some(path) if !path.starts_with('/') => Err(anyhow!("{key}: {path:?} is not an absolute path")),
        path => Ok(path.as_ref().map(PathBuf::from)),
    };
    Ok(DumpConfig {
        databases,
        exclude: texts(&raw.exclude),
        directory,
        jobs,
        options,
        bin_dir: folder("bin_dir", &raw.bin_dir)?,
        scratch: folder("scratch", &raw.scratch)?,
        runs: runs(&raw.runs(), cluster, DUMP)?,
    })
}

fn runs(raw: &RawRuns, cluster: &ClusterName, label: &str) -> Result<Runs> {
    let zone = zone(raw.timezone.as_deref()).context("timezone")?;
    let schedule = match &raw.schedule {
        None => None,
        Some(text) => Some(Schedule {
            cluster: cluster.to_string(),
            label: label.to_owned(),
            cron: cron(Some(text)).context("schedule")?,
            zone,
            jitter: raw.jitter.as_deref().map_or(Ok(Duration::ZERO), jitter).context("jitter")?,
            catch_up: raw.catch_up.unwrap_or(true),
        }),
    };
    let timeout = raw.timeout.as_deref().map_or(Ok(TIMEOUT), time).context("timeout")?;
    ensure!(!timeout.is_zero() && timeout <= LONGEST, "timeout: must be more than nothing and at most a day");
    let kept = |text: &str| TimeDelta::from_std(bounded(time(text)?)?).ok().with_context(|| format!("{text:?} is too long"));
    ensure!(raw.keep_last != Some(0), "keep_last: must be at least 1: the newest one is never let go");
    Ok(Runs {
        schedule,
        keep: Keep {
            last: raw.keep_last,
            time: raw.keep.as_deref().map(kept).transpose().context("keep")?,
            daily: raw.daily.unwrap_or(0),
            weekly: raw.weekly.unwrap_or(0),
            monthly: raw.monthly.unwrap_or(0),
            yearly: raw.yearly.unwrap_or(0),
            zone,
        },
        timeout,
        max_size: raw.max_size.as_deref().map(ByteSize::parse).transpose().context("max_size")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::raw::parse_table;

    fn checked(text: &str) -> Result<(Vec<ArtifactConfig>, Option<DumpConfig>)> {
        let table = parse_table(text, "test")?;
        let raw: super::super::raw::Raw = table.try_into()?;
        let main = &raw.cluster["main"];
        check(&main.artifact, main.dump.as_ref(), &"main".parse()?)
    }

    fn refused(text: &str) -> String {
        format!("{:#}", checked(text).unwrap_err())
    }

    #[test]
    fn artifacts_are_made_from_one_thing() {
        let (artifacts, dump) = checked(
            r#"
            [[cluster.main.artifact]]
            name = "etc"
            path = "/etc/postgresql"
            schedule = "@daily"
            keep_last = 7
            [[cluster.main.artifact]]
            name = "redis"
            command = ["redis-cli", "--rdb", "-"]
            environment = { REDISCLI_AUTH = "sentinel" }
            timeout = "10min"
            max_size = "1GiB"
            [[cluster.main.artifact]]
            name = "line"
            command = "sqlite3 /srv/app.db .dump | cat"
            [[cluster.main.artifact]]
            name = "uploads"
            url = "s3://app/uploads"
            endpoint = "http://127.0.0.1:8333"
            [cluster.main.dump]
            databases = ["shop", "crm"]
            format = "directory"
            jobs = 2
            options = ["--no-owner", "--schema=x"]
            "#,
        )
        .unwrap();
        assert_eq!(artifacts.iter().map(|artifact| artifact.name.as_str()).collect::<Vec<_>>(), ["etc", "redis", "line", "uploads"]);
        assert_eq!((artifacts[0].runs.keep.last, artifacts[0].runs.schedule.is_some()), (Some(7), true));
        assert!(!format!("{artifacts:?}").contains("sentinel"));
        let ArtifactSource::Command { argv, .. } = &artifacts[2].source else { panic!("{artifacts:?}") };
        assert_eq!(argv[..2], ["/bin/sh", "-c"]);
        let ArtifactSource::Bucket(bucket) = &artifacts[3].source else { panic!("{artifacts:?}") };
        assert_eq!((bucket.bucket.as_str(), bucket.prefix.as_str()), ("app", "uploads"));
        let dump = dump.unwrap();
        assert_eq!((dump.databases.unwrap().len(), dump.directory, dump.jobs), (2, true, 2));
    }

    #[test]
    fn what_cannot_be_meant_is_refused_with_its_key() {
        let artifact = |lines: &str| refused(&format!("[[cluster.main.artifact]]\n{lines}\n"));
        for (lines, said) in [
            ("path = \"/x\"", "name is missing"),
            ("name = \"A\"\npath = \"/x\"", "cannot name an artifact"),
            ("name = \"dump.x\"\npath = \"/x\"", "that of a dump"),
            ("name = \"a\"", "exactly one of path, url and command"),
            ("name = \"a\"\npath = \"/x\"\ncommand = \"y\"", "exactly one of"),
            ("name = \"a\"\npath = \"x\"", "not an absolute path"),
            ("name = \"a\"\ncommand = []", "no program"),
            ("name = \"a\"\npath = \"/x\"\nregion = \"y\"", "region: goes with url only"),
            ("name = \"a\"\npath = \"/x\"\nenvironment = { A = \"b\" }", "environment: goes with command only"),
            ("name = \"a\"\nurl = \"file:///x\"", "is no bucket"),
            ("name = \"a\"\npath = \"/x\"\ntimeout = \"2d\"", "at most a day"),
            ("name = \"a\"\npath = \"/x\"\nschedule = \"x\"", "schedule"),
            ("name = \"a\"\npath = \"/x\"\nkeep = \"300000y\"", "more than a hundred years"),
            ("name = \"a\"\npath = \"/x\"\nkeep_last = 0", "keep_last: must be at least 1"),
            ("name = \"a\"\npath = \"/x\"\npaths = \"x\"", "unknown field `paths`"),
        ] {
            let refused = artifact(lines);
            assert!(refused.contains(said), "{lines}: {refused}");
        }
        let twice = "[[cluster.main.artifact]]\nname = \"a\"\npath = \"/x\"\n";
        assert!(refused(&twice.repeat(2)).contains("two are called a"));
        for (line, said) in [
            ("format = \"plain\"", "neither"),
            ("jobs = 2", "directory"),
            ("options = [\"--file=x\"]", "not possible"),
            ("options = [\"-fx\"]", "not possible"),
            ("options = [\"x\"]", "not possible"),
        ] {
            let refused = refused(&format!("[cluster.main.dump]\n{line}\n"));
            assert!(refused.contains(said), "{line}: {refused}");
        }
    }
}
