//! How a command ended, for those who cannot scrape it: a file for node_exporter's textfile collector, a push to a Pushgateway.
//!
//! A command line that makes no sense, and a rehearsal (`--dry-run`), are no runs. What cannot be written or pushed is told, and hinders nothing.

use std::fmt::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use chrono::{DateTime, Utc};

use super::failure::{Exit, Failure};
use super::{Global, output};
use crate::config::{Config, MetricsConfig};
use crate::durable::Staged;
use crate::web;

/// A Pushgateway has so long.
const DEADLINE: Duration = Duration::from_secs(10);
/// node_exporter is another user.
const MODE: u32 = 0o644;

/// The commands of which it is told, with the word that is their label.
const TOLD: [(&str, &str); 7] = [
    ("backup", "backup"),
    ("verify", "verify"),
    ("expire", "expire"),
    ("copy", "copy"),
    ("drill", "drill"),
    ("dump", "dump"),
    ("artifact run", "artifact"),
];

/// Runs a command and tells how it ended.
pub async fn told<T>(global: &Global, command: &str, run: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let began = Instant::now();
    let ended = run.await;
    tell(global, command, began, &ended, None).await;
    ended
}

/// Tells how a command ended that began then; of a backup, how many bytes it stored.
pub async fn tell<T>(global: &Global, command: &str, began: Instant, ended: &Result<T, Failure>, bytes: Option<u64>) {
    let Some((_, command)) = TOLD.iter().find(|(name, _)| *name == command) else { return };
    let exit = match ended {
        Ok(_) => 0,
        Err(failure) if failure.exit == Exit::Usage => return,
        Err(failure) => failure.exit.number(),
    };
    // What is wrong with the configuration the command has told.
    let Ok(config) = Config::load(&global.selection()) else { return };
    let cluster = config.cluster.name.as_str();
    let run = Run { cluster, command, exit, seconds: began.elapsed().as_secs_f64(), at: Utc::now(), bytes };
    let (file, push) = (run.to_file(&config.metrics), run.push(&config.metrics).await);
    for (what, told) in [("written to [metrics] textfile", file), ("pushed to [metrics] pushgateway", push)] {
        if let Err(error) = told {
            output::tell_later(format!("warning: how it ended could not be {what}: {error:#}"));
        }
    }
}

/// One run of a command.
struct Run<'a> {
    cluster: &'a str,
    command: &'a str,
    exit: u8,
    seconds: f64,
    at: DateTime<Utc>,
    bytes: Option<u64>,
}

impl Run<'_> {
    fn to_file(&self, config: &MetricsConfig) -> Result<()> {
        let Some(folder) = &config.textfile else { return Ok(()) };
        let path = folder.join(format!("walkeep_{}_{}.prom", self.cluster, self.command));
        // A collector reads what is there, so a failure keeps the last success.
        let success = if self.exit == 0 { Some(self.at.timestamp()) } else { last_success(&path) };
        Staged::write_volatile(&path, self.text(config, success).as_bytes(), MODE)?.publish()
    }

    async fn push(&self, config: &MetricsConfig) -> Result<()> {
        let Some(gateway) = &config.pushgateway else { return Ok(()) };
        // POST leaves what is not in it as it was: the last success.
        let success = (self.exit == 0).then(|| self.at.timestamp());
        let url = format!("{gateway}/metrics/job/walkeep/cluster/{}/command/{}", self.cluster, self.command);
        let pushed = web::post_text(&url, self.text(config, success));
        tokio::time::timeout(DEADLINE, pushed).await.with_context(|| format!("no answer within {} s", DEADLINE.as_secs()))?
    }

    fn text(&self, config: &MetricsConfig, success: Option<i64>) -> String {
        let mut text = Text { run: self, text: String::new() };
        let done = u8::from(self.exit == 0);
        text.gauge("walkeep_run_last_status", "1 if the command's last run succeeded, else 0.", done);
        text.gauge("walkeep_run_last_exit_code", "The exit code of its last run.", self.exit);
        text.gauge("walkeep_run_last_timestamp_seconds", "When its last run ended, as a Unix time.", self.at.timestamp());
        text.gauge("walkeep_run_last_duration_seconds", "How long its last run took.", self.seconds);
        if let Some(success) = success {
            text.gauge(LAST_SUCCESS, "When its last run that succeeded ended, as a Unix time.", success);
        }
        if let Some(bytes) = self.bytes {
            text.gauge("walkeep_run_last_bytes", "Bytes that its last run stored.", bytes);
        }
        if config.backup_names {
            match self.command {
                "backup" => {
                    text.gauge("backup_last_run_status", "1 if the last backup succeeded, else 0.", done);
                    text.gauge("backup_duration_seconds", "How long the last backup took.", self.seconds);
                    success.iter().for_each(|at| {
                        text.gauge("backup_last_success_timestamp_seconds", "When the last good backup ended, as a Unix time.", at);
                    });
                    self.bytes.iter().for_each(|bytes| text.gauge("backup_size_bytes", "Bytes that the last backup stored.", bytes));
                }
                "copy" => {
                    text.gauge(
                        "backup_cross_region_replication_status",
                        "1 if the last copy to another repository succeeded, else 0.",
                        done,
                    );
                }
                "drill" => {
                    text.gauge("backup_recovery_test_last_run_status", "1 if the last drill passed, else 0.", done);
                    success.iter().for_each(|at| {
                        let help = "When the last drill that passed ended, as a Unix time.";
                        text.gauge("backup_recovery_test_last_success_timestamp_seconds", help, at);
                    });
                }
                _ => {}
            }
        }
        text.text
    }
}

const LAST_SUCCESS: &str = "walkeep_run_last_success_timestamp_seconds";

/// Of the run before.
fn last_success(path: &Path) -> Option<i64> {
    let text = std::fs::read_to_string(path).ok()?;
    text.lines().find_map(|line| line.strip_prefix(LAST_SUCCESS)?.rsplit(' ').next()?.parse().ok())
}

struct Text<'a> {
    run: &'a Run<'a>,
    text: String,
}

impl Text<'_> {
    fn gauge(&mut self, name: &str, help: &str, value: impl std::fmt::Display) {
        let Run { cluster, command, .. } = self.run;
        let line = format!("# HELP {name} {help}\n# TYPE {name} gauge\n{name}{{cluster=\"{cluster}\",command=\"{command}\"}} {value}\n");
        // Into a string it cannot fail.
        let _ = self.text.write_str(&line);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_keeps_the_last_success_in_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let config = MetricsConfig { textfile: Some(folder.path().to_owned()), backup_names: true, ..MetricsConfig::default() };
        let at = |seconds| DateTime::from_timestamp(seconds, 0).unwrap();
        let run = |exit, seconds, bytes| Run { cluster: "main", command: "backup", exit, seconds: 1.5, at: at(seconds), bytes };
        run(0, 100, Some(7)).to_file(&config).unwrap();
        run(1, 200, None).to_file(&config).unwrap();
        run(1, 300, None).to_file(&config).unwrap();
        let files: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert_eq!(files, [folder.path().join("walkeep_main_backup.prom")]);
        let text = std::fs::read_to_string(&files[0]).unwrap();
        let has = |line: &str| text.lines().any(|found| found == line);
        let labels = "{cluster=\"main\",command=\"backup\"}";
        for (name, value) in [
            ("walkeep_run_last_success_timestamp_seconds", "100"),
            ("walkeep_run_last_timestamp_seconds", "300"),
            ("walkeep_run_last_status", "0"),
            ("walkeep_run_last_exit_code", "1"),
            ("walkeep_run_last_duration_seconds", "1.5"),
            ("backup_last_run_status", "0"),
            ("backup_last_success_timestamp_seconds", "100"),
        ] {
            assert!(has(&format!("{name}{labels} {value}")), "{name}: {text}");
        }
    }

    #[test]
    fn a_drill_is_a_test_of_recovery() {
        let folder = tempfile::tempdir().unwrap();
        let config = MetricsConfig { textfile: Some(folder.path().to_owned()), backup_names: true, ..MetricsConfig::default() };
        let run = |exit, seconds| {
            let at = DateTime::from_timestamp(seconds, 0).unwrap();
            Run { cluster: "main", command: "drill", exit, seconds: 60.0, at, bytes: None }.to_file(&config).unwrap();
        };
        run(0, 100);
        run(1, 200);
        let text = std::fs::read_to_string(folder.path().join("walkeep_main_drill.prom")).unwrap();
        let labels = "{cluster=\"main\",command=\"drill\"}";
        for (name, value) in [
            ("walkeep_run_last_status", "0"),
            ("backup_recovery_test_last_run_status", "0"),
            ("backup_recovery_test_last_success_timestamp_seconds", "100"),
        ] {
            assert!(text.lines().any(|line| line == format!("{name}{labels} {value}")), "{name}: {text}");
        }
        assert!(!text.contains("backup_last_run_status"), "{text}");
    }
}
