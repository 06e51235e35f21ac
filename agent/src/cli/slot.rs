//! The replication slot in words, for `check` and `status`: how it is, what threatens it, and how long an outage it outlives.
//!
//! Judged by [`walkeep_core::slot`]; nothing is changed here.

use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;
use walkeep_core::slot::{Health, health};

use super::output::{bytes, duration};
use super::setup;
use crate::config::{ClusterConfig, Protect};
use crate::postgres::sql;
use crate::stream::guard::Note;

/// `status` does not wait longer for a server that it does not need.
const PATIENCE: Duration = Duration::from_secs(5);
/// A slot that may hold back fewer segments than this is lost within seconds of load.
const FEW_SEGMENTS: u64 = 16;
/// An outage that nobody needs to be woken for.
const SHORT: Duration = Duration::from_secs(3600);

/// A sentence, and how bad it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    /// Nothing to mend.
    Well(String),
    /// It works, but not as it should.
    Ill(String),
    /// It does not work.
    Failed(String),
}

impl Said {
    /// The sentence.
    pub fn into_text(self) -> String {
        let (Self::Well(text) | Self::Ill(text) | Self::Failed(text)) = self;
        text
    }
}

/// The slot, as `walkeep status --json` prints it.
#[derive(Debug, Serialize)]
pub struct SlotReport {
    /// Its name.
    name: String,
    /// It was given up to protect the server, and WAL has not come since.
    given_up: bool,
    /// PostgreSQL's `wal_status`; `missing` without a slot, nothing if the server does not answer.
    wal_status: Option<String>,
    /// WAL that it holds back.
    retained_bytes: Option<i64>,
    /// WAL that may still be written until it is in danger, if it has a limit.
    safe_bytes: Option<i64>,
    /// All of it in words.
    pub text: String,
}

/// Asks the server, if it answers soon.
pub async fn report(cluster: &ClusterConfig) -> Option<SlotReport> {
    if !cluster.stream {
        return None;
    }
    let ask = async {
        let params = setup::connection(cluster).map_err(|failure| failure.error)?;
        let client = sql::connect_sql(&params).await.context("connect for SQL")?;
        Ok(sql::slot_state(&client, &cluster.slot).await?)
    };
    let asked: Result<Option<sql::SlotState>> = tokio::time::timeout(PATIENCE, ask).await.context("the server does not answer").flatten();
    let text = match (&asked, given_up(cluster)) {
        (Ok(None), Some(text)) => text,
        (Ok(state), _) => state_in_words(state.as_ref(), cluster).into_text(),
        (Err(error), Some(text)) => format!("{text} (not seen: {error:#})"),
        (Err(error), None) => format!("not seen: {error:#}"),
    };
    let state = asked.as_ref().ok().and_then(Option::as_ref);
    Some(SlotReport {
        name: cluster.slot.clone(),
        given_up: given_up(cluster).is_some(),
        wal_status: if matches!(asked, Ok(None)) { Some("missing".into()) } else { state.and_then(|state| state.wal_status.clone()) },
        retained_bytes: state.and_then(|state| state.retained),
        safe_bytes: state.and_then(|state| state.safe_wal_size),
        text,
    })
}

/// That the agent has given the slot up, if it has.
pub fn given_up(cluster: &ClusterConfig) -> Option<String> {
    let given_up = Note::load(cluster)?.given_up?;
    Some(format!(
        "{} was GIVEN UP at {} to protect the server (protect = \"primary\"), when it held back {}; the agent makes it anew once the spool is stored",
        cluster.slot,
        super::output::time(given_up.at),
        bytes(given_up.server_at.bytes_since(given_up.restart_lsn))
    ))
}

/// How the slot is, and what threatens it.
pub fn state_in_words(state: Option<&sql::SlotState>, cluster: &ClusterConfig) -> Said {
    let name = &cluster.slot;
    let Some(state) = state else {
        return Said::Failed(format!("the slot {name} does not exist: run `walkeep init`, or start the agent"));
    };
    let size = |bytes_or_less: Option<i64>| bytes(bytes_or_less.and_then(|size| u64::try_from(size).ok()).unwrap_or_default());
    let status = state.wal_status.as_deref().unwrap_or("not yet reserving");
    let holds = format!("{name}: {status}, holding back {}", size(state.retained));
    let left = |limit| format!("{} more of max_slot_wal_keep_size = {}", size(state.safe_wal_size), bytes(limit));
    match health(Health::Sound, state.told()) {
        Health::Lost | Health::Missing => {
            let reason = state.invalidation_reason.as_deref().map(|reason| format!(" ({reason})")).unwrap_or_default();
            Said::Failed(format!("the slot {name} is lost{reason}: the server dropped WAL that was not stored; take a new base backup"))
        }
        _ if !state.active => {
            let since = state.inactive_since.as_deref().map(|since| format!(" since {since}")).unwrap_or_default();
            Said::Failed(format!(
                "nobody streams from the slot {name}{since} (wal_status {status}, holding back {}): is the agent running?",
                size(state.retained)
            ))
        }
        Health::Unreserved => {
            Said::Failed(format!("{holds}: more than max_slot_wal_keep_size allows; the next checkpoint may drop WAL that is not stored"))
        }
        Health::Near => Said::Ill(format!(
            "{holds}; only {} may be written before the server drops WAL that is not stored",
            left(state.keep_limit.unwrap_or_default())
        )),
        Health::Sound => match state.keep_limit {
            Some(limit) => Said::Well(format!("{holds}, in use; {} may be written", left(limit))),
            None => Said::Well(format!("{holds}, in use")),
        },
    }
}

/// How long an outage the slot outlives, and what acts first. `rate` is how many bytes of WAL the server writes in a second.
pub fn limit_in_words(settings: &sql::Settings, rate: Option<f64>, cluster: &ClusterConfig) -> Said {
    let lasts = |size: u64| rate.filter(|rate| *rate >= 1.0).map(|rate| Duration::from_secs((size as f64 / rate) as u64));
    let at_rate = |size| match (lasts(size), rate) {
        (Some(time), Some(rate)) => {
            format!(": an outage of {} at this server's average of {} of WAL a second", duration(time), bytes(rate as u64))
        }
        _ => String::new(),
    };
    let limit = settings.max_slot_wal_keep_mb.map(|size| size << 20);
    match (limit, cluster.protect) {
        (None, Protect::Archive) => Said::Ill(
            "max_slot_wal_keep_size is unlimited: while the repository cannot be reached WAL fills the server's disk; set a limit that fits it, \
             or protect = \"primary\""
                .into(),
        ),
        (None, Protect::Primary { slot_limit }) => Said::Ill(format!(
            "the agent gives the slot up at {}{}. Where no agent runs nobody does, as max_slot_wal_keep_size is unlimited: set it well above",
            bytes(slot_limit.0),
            at_rate(slot_limit.0)
        )),
        (Some(limit), Protect::Primary { slot_limit }) if limit < slot_limit.0 => Said::Ill(format!(
            "max_slot_wal_keep_size = {} is less than slot_limit = {}: the server invalidates the slot before the agent gives it up",
            bytes(limit),
            bytes(slot_limit.0)
        )),
        (Some(limit), protect) => {
            let segments = limit / settings.segment_size.bytes();
            let first = match protect {
                Protect::Primary { slot_limit } => slot_limit.0,
                Protect::Archive => limit,
            };
            let text = match protect {
                Protect::Primary { slot_limit } => format!("the agent gives the slot up at {}{}; ", bytes(slot_limit.0), at_rate(slot_limit.0)),
                Protect::Archive => String::new(),
            };
            let text = format!("{text}max_slot_wal_keep_size = {}, {segments} segments{}", bytes(limit), at_rate(limit));
            match (segments < FEW_SEGMENTS, lasts(first).is_some_and(|time| time < SHORT)) {
                (true, _) => Said::Ill(format!("{text}. So little is written within seconds of load: the slot is lost with any pause of the agent")),
                (false, true) => Said::Ill(format!("{text}. What is written beyond that before the repository is back is lost to the archive")),
                (false, false) => Said::Well(text),
            }
        }
    }
}

/// Settings beside the limit that defeat what the operator wants of the slot.
pub fn other_threats(settings: &sql::Settings, cluster: &ClusterConfig) -> Vec<String> {
    let mut threats = Vec::new();
    if let Some(idle) = settings.idle_slot_timeout {
        threats.push(format!(
            "idle_replication_slot_timeout = {}: the server invalidates the slot of an agent that is away for longer, whatever room there is; set it to 0",
            duration(idle)
        ));
    }
    let archives = settings.archive_mode != "off" && settings.archive_command.as_deref().is_some_and(|command| !command.is_empty());
    if archives && matches!(cluster.protect, Protect::Primary { .. }) {
        threats.push(
            "protect = \"primary\" bounds what the slot holds back only: files that wait for archive_command stay in pg_wal without limit. Who would \
             rather lose WAL than fill the disk leaves archive_mode off"
                .into(),
        );
    }
    threats
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{ByteSize, Config, Selection};
    use walkeep_core::SegmentSize;

    fn cluster(protect: Protect) -> ClusterConfig {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("walkeep.toml");
        std::fs::write(&path, "[cluster.main]\n[[cluster.main.repository]]\nurl = \"file:///srv/w\"\n").unwrap();
        let config = Config::load(&Selection { path: Some(path), cluster: Some("main".into()), ..Selection::default() }).unwrap();
        ClusterConfig { protect, ..config.cluster }
    }

    fn settings(keep_mb: Option<u64>) -> sql::Settings {
        sql::Settings {
            server_version_num: 180_000,
            segment_size: SegmentSize::DEFAULT,
            data_checksums: true,
            wal_level: "replica".into(),
            archive_mode: "on".into(),
            archive_command: Some("walkeep-archive-cmd %p".into()),
            synchronous_standby_names: String::new(),
            synchronous_commit: "on".into(),
            max_slot_wal_keep_mb: keep_mb,
            idle_slot_timeout: None,
            data_directory: None,
        }
    }

    const PRIMARY: Protect = Protect::Primary { slot_limit: ByteSize(10 << 30) };

    #[test]
    fn a_limit_is_told_as_the_outage_it_bridges() {
        let said = |keep_mb, rate, protect| limit_in_words(&settings(keep_mb), rate, &cluster(protect));
        let one_mib = Some(1024.0 * 1024.0);
        let long = said(Some(20_480), one_mib, Protect::Archive);
        assert!(matches!(&long, Said::Well(text) if text.contains("1280 segments: an outage of 5h 41m")), "{long:?}");
        assert!(matches!(said(Some(20_480), Some(1e8), Protect::Archive), Said::Ill(_)), "gone in minutes");
        let few = said(Some(128), one_mib, Protect::Archive);
        assert!(matches!(&few, Said::Ill(text) if text.contains("8 segments")), "{few:?}");
        assert!(matches!(said(Some(20_480), None, Protect::Archive), Said::Well(_)), "an unknown rate threatens nobody");
        assert!(matches!(said(None, one_mib, Protect::Archive), Said::Ill(_)));
        // Whoever acts first is named.
        assert!(said(Some(20_480), one_mib, PRIMARY).into_text().starts_with("the agent gives the slot up at"));
        let server_first = said(Some(5_000), one_mib, PRIMARY);
        assert!(matches!(&server_first, Said::Ill(text) if text.contains("before the agent")), "{server_first:?}");
        assert!(matches!(said(None, one_mib, PRIMARY), Said::Ill(_)));
    }

    #[test]
    fn what_defeats_the_policy_is_told() {
        assert_eq!(other_threats(&settings(None), &cluster(Protect::Archive)), Vec::<String>::new());
        assert!(other_threats(&settings(None), &cluster(PRIMARY))[0].contains("archive_command"));
        let idle = sql::Settings { idle_slot_timeout: Some(Duration::from_secs(60)), ..settings(None) };
        assert!(other_threats(&idle, &cluster(Protect::Archive))[0].contains("idle_replication_slot_timeout"));
    }

    #[test]
    fn a_slot_in_danger_is_said_to_be() {
        let state = |status: &str, safe, active| sql::SlotState {
            restart_lsn: None,
            active,
            active_pid: None,
            wal_status: Some(status.into()),
            safe_wal_size: Some(safe),
            retained: Some(7 << 20),
            invalidation_reason: None,
            inactive_since: None,
            keep_limit: Some(10 << 20),
        };
        let said = |state: &sql::SlotState| state_in_words(Some(state), &cluster(Protect::Archive));
        assert!(matches!(said(&state("reserved", 9 << 20, true)), Said::Well(_)));
        assert!(matches!(said(&state("reserved", 9 << 20, false)), Said::Failed(_)), "nobody streams");
        let near = said(&state("extended", 1 << 20, true));
        assert!(matches!(&near, Said::Ill(text) if text.contains("only 1.00 MiB more")), "{near:?}");
        assert!(said(&state("unreserved", 0, true)).into_text().contains("next checkpoint"));
        assert!(said(&state("lost", 0, false)).into_text().contains("is lost"));
        let idle = sql::SlotState { invalidation_reason: Some("idle_timeout".into()), ..state("reserved", 1, false) };
        assert!(said(&idle).into_text().contains("is lost (idle_timeout)"));
    }
}
