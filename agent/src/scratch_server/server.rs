//! A throw-away server: its settings, its start, its recovery up to the moment when it can be asked.
//!
//! It reads a configuration of its own: none of the original's settings reach it but those of the recovery. It opens for writing at the target
//! instead of pausing there: a paused server still holds the locks of transactions that were under way, so a table about to be dropped could
//! not be read; and a hot standby needs the original's max_connections and the like. Its new timeline exists in its own pg_wal only.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use walkeep_core::partial::{Reference, reference};
use walkeep_core::target::quote_conf;
use walkeep_core::{MajorVersion, SegmentSize};

use super::Place;
use crate::durable;
use crate::postgres::{ConnectionParams, connect_sql};

/// Libraries that the original loads into sessions of a database or a role: they may not be here, and are none of a scratch server's business.
pub const NO_LIBRARIES: &str = "-c session_preload_libraries= -c local_preload_libraries=";
/// The port is only the socket's number: nothing listens on the network.
const PORT: u16 = 5432;
/// A server that logs nothing for so long, and is not ready, is given up. It tells each WAL file that it fetched, and from 15 on each 10 s of replay.
const SILENCE: Duration = Duration::from_secs(900);

/// What a server is to be.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Its version.
    pub major: MajorVersion,
    /// The size of its segments.
    pub segment_size: SegmentSize,
    /// Whether pages that replay does not find are passed over; [`Recovery::invalid`] has them.
    pub ignore_invalid_pages: bool,
}

impl Settings {
    /// Its `postgresql.conf`.
    fn text(&self, place: &Place) -> Result<String> {
        let sockets = place.sockets();
        let hba = place.path().join("pg_hba.conf");
        let path = |path: &Path| path.to_str().map(quote_conf).with_context(|| format!("{} is not UTF-8", path.display()));
        // From a row of settings for everybody to those that only later versions know.
        let mut lines: Vec<String> = [
            "listen_addresses = ''",
            "unix_socket_permissions = 0700",
            "ssl = off",
            // Nothing goes anywhere else, and nobody else's work is taken up: archive, standbys, subscriptions, jobs of extensions.
            "archive_mode = off",
            "max_wal_senders = 0",
            "max_replication_slots = 0",
            "max_logical_replication_workers = 0",
            "max_worker_processes = 0",
            "shared_preload_libraries = ''",
            "hot_standby = off",
            "wal_level = replica",
            "autovacuum = off",
            "fsync = off",
            "full_page_writes = off",
            "synchronous_commit = off",
            "max_connections = 12",
            "superuser_reserved_connections = 3",
            // Recovery needs as many as were prepared at a time.
            "max_prepared_transactions = 500",
            "max_locks_per_transaction = 256",
            "shared_buffers = '128MB'",
            "huge_pages = off",
            "jit = off",
            "restart_after_crash = off",
            "logging_collector = off",
            "log_destination = 'stderr'",
            "log_line_prefix = '%m [%p] '",
            "log_min_messages = warning",
            "log_checkpoints = on",
            "log_statement = 'none'",
            "log_timezone = 'UTC'",
            "TimeZone = 'UTC'",
            // The log is read by this program.
            "lc_messages = 'C'",
        ]
        .map(str::to_owned)
        .into();
        let mib = (self.segment_size.bytes() >> 20).max(1);
        lines.push(format!("port = {PORT}"));
        lines.push(format!("unix_socket_directories = {}", path(&sockets)?));
        lines.push(format!("hba_file = {}", path(&hba)?));
        lines.push(format!("ident_file = {}", path(&place.path().join("pg_ident.conf"))?));
        lines.push(format!("min_wal_size = '{}MB'", 2 * mib));
        lines.push(format!("max_wal_size = '{}MB'", (4 * mib).max(1024)));
        if self.major.get() >= 15 {
            lines.push("log_startup_progress_interval = '10s'".to_owned());
            // Recovery of a backup that has one wants it.
            lines.push("allow_in_place_tablespaces = on".to_owned());
        }
        if self.major.get() >= 17 {
            lines.push("event_triggers = off".to_owned());
        }
        if self.major.get() >= 18 {
            lines.push("io_method = 'sync'".to_owned());
        }
        if self.ignore_invalid_pages {
            lines.push("ignore_invalid_pages = on".to_owned());
        }
        Ok(lines.join("\n") + "\n")
    }
}

/// How far a recovery is.
#[derive(Debug, Clone, Default)]
pub struct Recovery {
    /// WAL files that were fetched.
    pub files: u64,
    /// Pages that replay did not find.
    pub invalid: Vec<Reference>,
}

/// The server ended before it could be asked.
#[derive(Debug, thiserror::Error)]
#[error("the scratch server ended with {status}: {said}")]
pub struct Ended {
    status: ExitStatus,
    said: String,
}

/// A server that was started. It ends with its [`Place`].
#[derive(Debug)]
pub struct Server {
    child: Child,
    data: PathBuf,
    sockets: PathBuf,
    log: PathBuf,
    read: u64,
    rest: String,
}

impl Server {
    /// Starts `postgres` on the place's data directory.
    pub fn start(place: &Place, postgres: &Path, settings: &Settings) -> Result<Self> {
        let write = |name: &str, text: &str| durable::write_file(&place.path().join(name), text.as_bytes(), durable::PRIVATE_FILE);
        write("postgresql.conf", &settings.text(place)?)?;
        // The folder's mode keeps everybody else out.
        write("pg_hba.conf", "local all all trust\n")?;
        write("pg_ident.conf", "")?;
        let log = place.path().join("log");
        let file = File::create(&log).with_context(|| format!("create {}", log.display()))?;
        let data = place.data();
        let mut config = std::ffi::OsString::from("config_file=");
        config.push(place.path().join("postgresql.conf"));
        let mut command = Command::new(postgres);
        command.arg("-D").arg(&data).arg("-c").arg(config).current_dir(&data);
        // A terminal's Ctrl-C is for this program, which ends the server itself.
        command.process_group(0).stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        for name in ["PGDATA", "PGPORT", "PGHOST", "PGOPTIONS", "PGUSER", "PGDATABASE", "PGPASSWORD"] {
            command.env_remove(name);
        }
        let child = command.spawn().with_context(|| format!("start {}", postgres.display()))?;
        Ok(Self { child, data, sockets: place.sockets(), log, read: 0, rest: String::new() })
    }

    /// Waits until the recovery is over and the server can be asked.
    pub async fn recovered(&mut self, watch: &(dyn Fn(&Recovery) + Send + Sync)) -> Result<Recovery> {
        let mut recovery = Recovery::default();
        let mut moved = Instant::now();
        loop {
            let ready = self.is_ready();
            if self.read_log(&mut recovery)? {
                moved = Instant::now();
                watch(&recovery);
            }
            if ready {
                return Ok(recovery);
            }
            if let Some(status) = self.child.try_wait()? {
                self.read_log(&mut recovery)?;
                bail!(Ended { status, said: self.last_words()? });
            }
            if moved.elapsed() > SILENCE {
                bail!(
                    "the scratch server said nothing for {} s and is not ready; its last words: {}",
                    SILENCE.as_secs(),
                    self.last_words()?
                );
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// As the server writes it to the eighth line of its pid file.
    fn is_ready(&self) -> bool {
        let file = fs::read_to_string(self.data.join("postmaster.pid")).unwrap_or_default();
        file.lines().nth(7).is_some_and(|status| status.trim() == "ready")
    }

    /// Reads what was logged since; whether anything was.
    fn read_log(&mut self, recovery: &mut Recovery) -> Result<bool> {
        let mut file = File::open(&self.log).with_context(|| format!("open {}", self.log.display()))?;
        file.seek(SeekFrom::Start(self.read))?;
        let mut bytes = Vec::new();
        self.read += file.read_to_end(&mut bytes)? as u64;
        self.rest.push_str(&String::from_utf8_lossy(&bytes));
        while let Some((line, rest)) = self.rest.split_once('\n') {
            recovery.files += u64::from(line.contains("restored log file \"") && line.ends_with("from archive"));
            recovery.invalid.extend(reference(line));
            self.rest = rest.to_owned();
        }
        Ok(!bytes.is_empty())
    }

    /// The errors of the log's end, or the end itself.
    fn last_words(&self) -> Result<String> {
        let log = String::from_utf8_lossy(&fs::read(&self.log)?).into_owned();
        let lines: Vec<&str> = log.lines().collect();
        let end = &lines[lines.len().saturating_sub(40)..];
        let bad = |line: &&&str| ["FATAL", "PANIC", "ERROR", "HINT", "DETAIL", "error:", "hint:"].iter().any(|word| line.contains(word));
        let told: Vec<&str> = end.iter().filter(bad).copied().collect();
        Ok(if told.is_empty() { end[end.len().saturating_sub(5)..].join("\n") } else { told.join("\n") })
    }

    /// How to connect as `user`.
    pub fn params(&self, user: &str, database: &str) -> Result<ConnectionParams> {
        let quote = |text: &str| format!("'{}'", text.replace('\\', r"\\").replace('\'', r"\'"));
        let text = format!(
            "host={} port={PORT} user={} dbname={} options='{NO_LIBRARIES}' application_name=walkeep sslmode=disable",
            quote(&self.sockets.to_string_lossy()),
            quote(user),
            quote(database)
        );
        Ok(ConnectionParams::parse(&text, &|_| None)?)
    }

    /// A session.
    pub async fn connect(&self, user: &str, database: &str) -> Result<tokio_postgres::Client> {
        Ok(connect_sql(&self.params(user, database)?).await?)
    }

    /// A session as the superuser, in the first of these databases that lets it in: its name, and the session.
    pub async fn superuser(&self, superusers: &[String], databases: &[&str]) -> Result<(String, tokio_postgres::Client)> {
        let names = superusers.iter().rev().map(String::as_str).chain(["postgres"]);
        let mut first = None;
        for name in names {
            for database in databases {
                match self.connect(name, database).await {
                    Ok(client) => return Ok((name.to_owned(), client)),
                    Err(error) => drop(first.get_or_insert(error)),
                }
            }
        }
        Err(first.context("the backup has no superuser")?).context("connect to the scratch server")
    }

    /// Shuts the server down, so that its files say all that it knew.
    pub async fn shut_down(&mut self) -> Result<()> {
        let pid = self.child.id().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?)).context("the scratch server has ended")?;
        kill_process(pid, Signal::INT).context("shut the scratch server down")?;
        let status = self.child.wait().await.context("wait for the scratch server's end")?;
        if !status.success() {
            bail!(Ended { status, said: self.last_words()? });
        }
        Ok(())
    }

    /// What libpq's programs find the server by.
    pub fn environment(&self, user: &str, database: &str) -> Vec<(&'static str, std::ffi::OsString)> {
        vec![
            ("PGHOST", self.sockets.clone().into()),
            ("PGPORT", PORT.to_string().into()),
            ("PGUSER", user.into()),
            ("PGDATABASE", database.into()),
            ("PGOPTIONS", NO_LIBRARIES.into()),
        ]
    }
}
