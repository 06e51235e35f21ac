//! The session that puts a server into backup mode, and keeps it there for as long as it lives.
//!
//! Never the exclusive mode: what that leaves in the data directory keeps a crashed server from starting. Everything asked of the server during a
//! local backup is asked here, over one connection.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use chrono::{DateTime, Utc};
use tokio::task::JoinHandle;
use tokio_postgres::Client;
use walkeep_core::control::ControlFile;
use walkeep_core::{Lsn, PgTimestamp, SegmentSize, SystemIdentifier, TimelineId};

use crate::postgres::ConnectionParams;
use crate::postgres::sql::connect_sql_served;

/// From this version on the functions have their new names, and no exclusive mode.
const RENAMED: u32 = 150_000;
/// What takes no time on a server that lives.
const ANSWER: Duration = Duration::from_secs(60);
const MICROS: &str = "(extract(epoch FROM greatest(clock_timestamp(), pg_catalog.pg_last_xact_replay_timestamp()) \
                      - timestamptz '2000-01-01 00:00+00') * 1000000)::bigint";

/// What a server says of itself before a backup.
#[derive(Debug, Clone)]
pub struct ServerFacts {
    pub system: SystemIdentifier,
    pub version_num: u32,
    pub segment_size: SegmentSize,
    pub in_recovery: bool,
    pub port: u16,
    /// Seconds since 1970.
    pub started: i64,
    pub now: DateTime<Utc>,
    /// As far as this role may see them.
    pub data_directory: Option<String>,
    pub config_files: Vec<String>,
    /// Whether this role may begin and end a backup.
    pub may_back_up: bool,
    /// Up to 14: where statistics lie.
    pub stats_folder: Option<String>,
}

/// What `pg_control` says, asked of the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ControlSeen {
    checkpoint: Lsn,
    redo: Lsn,
    timeline: TimelineId,
}

impl ControlSeen {
    /// What a file says.
    pub fn of(file: &ControlFile) -> Self {
        Self { checkpoint: file.checkpoint, redo: file.redo, timeline: file.timeline }
    }
}

/// A backup that the server has ended.
#[derive(Debug)]
pub struct Stopped {
    pub stop_lsn: Lsn,
    /// The timeline of the position; a primary's is that of the start.
    pub standby_timeline: Option<TimelineId>,
    /// `backup_label`, byte for byte.
    pub label: Vec<u8>,
    /// `tablespace_map`; empty without tablespaces.
    pub tablespace_map: Vec<u8>,
    pub now: DateTime<Utc>,
}

/// A connection to the server. Dropped, it ends, and the backup mode with it.
pub struct Session {
    client: Client,
    version_num: u32,
}

/// What knows when a session has ended.
pub struct Served(JoinHandle<()>);

impl Served {
    /// Waits until the connection is gone, and with it the backup.
    pub async fn lost(&mut self) -> anyhow::Error {
        // However it ended.
        let _ = (&mut self.0).await;
        anyhow::anyhow!("the connection to the server was lost, and with it its backup mode: the backup was not recorded; take it again")
    }

    /// Waits until the server knows that the session has ended.
    pub async fn ended(self) {
        let _ = tokio::time::timeout(ANSWER, self.0).await;
    }
}

impl Session {
    /// Connects, and asks what the server is. The session has no time-outs that would end it in the middle.
    pub async fn open(params: &ConnectionParams) -> Result<(Self, Served, ServerFacts)> {
        let (client, serving) = connect_sql_served(params).await.context("connect to the server")?;
        let mut session = Self { client, version_num: 0 };
        let facts = within("asking the server what it is", session.facts()).await?;
        session.version_num = facts.version_num;
        Ok((session, Served(serving), facts))
    }

    async fn facts(&self) -> Result<ServerFacts> {
        // What belongs to later versions is simply not found in earlier ones.
        let query = format!(
            "SELECT (SELECT system_identifier::text FROM pg_catalog.pg_control_system()), \
             pg_catalog.current_setting('server_version_num')::int, \
             (SELECT setting::bigint FROM pg_catalog.pg_settings WHERE name = 'wal_segment_size'), \
             pg_catalog.pg_is_in_recovery(), pg_catalog.current_setting('port')::int, \
             extract(epoch FROM pg_catalog.pg_postmaster_start_time())::bigint, {MICROS}, \
             (SELECT pg_catalog.jsonb_object_agg(name, setting)::text FROM pg_catalog.pg_settings \
             WHERE name IN ('data_directory', 'config_file', 'hba_file', 'ident_file', 'stats_temp_directory')), \
             (SELECT count(pg_catalog.set_config(name, '0', false)) FROM pg_catalog.pg_settings \
             WHERE name IN ('statement_timeout', 'lock_timeout', 'idle_session_timeout', 'transaction_timeout')), \
             (SELECT bool_and(pg_catalog.has_function_privilege(oid, 'EXECUTE')) FROM pg_catalog.pg_proc \
             WHERE pronamespace = 'pg_catalog'::regnamespace AND (proname, pronargs) IN \
             (('pg_backup_start', 2), ('pg_backup_stop', 1), ('pg_start_backup', 3), ('pg_stop_backup', 2)))"
        );
        let row = self.client.query_one(&query, &[]).await.context("ask the server what it is")?;
        let files: serde_json::Map<String, serde_json::Value> = match row.try_get::<_, Option<&str>>(7)? {
            Some(text) => serde_json::from_str(text).context("read the server's settings")?,
            None => serde_json::Map::new(),
        };
        let setting = |name: &str| files.get(name).and_then(|value| value.as_str()).filter(|text| !text.is_empty()).map(str::to_owned);
        let version: i32 = row.try_get(1)?;
        let port: i32 = row.try_get(4)?;
        let segment_size = u64::try_from(row.try_get::<_, i64>(2)?).context("the server's segment size is negative")?;
        Ok(ServerFacts {
            system: SystemIdentifier::new(row.try_get::<_, &str>(0)?.parse().context("read the server's system identifier")?),
            version_num: u32::try_from(version).context("the server's version is negative")?,
            segment_size: SegmentSize::new(segment_size)?,
            in_recovery: row.try_get(3)?,
            port: u16::try_from(port).context("the server's port is none")?,
            started: row.try_get(5)?,
            now: moment(row.try_get(6)?)?,
            data_directory: setting("data_directory"),
            config_files: ["config_file", "hba_file", "ident_file"].into_iter().filter_map(setting).collect(),
            may_back_up: row.try_get::<_, Option<bool>>(9)?.unwrap_or_default(),
            stats_folder: setting("stats_temp_directory"),
        })
    }

    /// What the server reads in its own `pg_control` now.
    pub async fn control(&self) -> Result<ControlSeen> {
        let query = "SELECT checkpoint_lsn::text, redo_lsn::text, timeline_id FROM pg_catalog.pg_control_checkpoint()";
        let row = within("asking for the server's pg_control", async { Ok(self.client.query_one(query, &[]).await?) }).await?;
        let timeline: i32 = row.try_get(2)?;
        Ok(ControlSeen {
            checkpoint: row.try_get::<_, &str>(0)?.parse()?,
            redo: row.try_get::<_, &str>(1)?.parse()?,
            timeline: timeline_of(timeline)?,
        })
    }

    /// About how many bytes there are to copy, if the role may know: for people who wait.
    pub async fn size(&self) -> Option<u64> {
        let query = "SELECT sum(pg_catalog.pg_tablespace_size(oid))::bigint FROM pg_catalog.pg_tablespace";
        let row = within("asking for the cluster's size", async { Ok(self.client.query_one(query, &[]).await?) }).await.ok()?;
        u64::try_from(row.try_get::<_, Option<i64>>(0).ok()??).ok()
    }

    /// Begins the backup: the server makes a checkpoint, which takes at most `timeout`. Answers the position of its redo.
    pub async fn start(&self, label: &str, fast: bool, timeout: Duration) -> Result<Lsn> {
        let function = match self.version_num >= RENAMED {
            true => "pg_catalog.pg_backup_start($1, $2)",
            false => "pg_catalog.pg_start_backup($1, $2, false)",
        };
        // What the session is for, seen in pg_stat_activity.
        let query = format!("SELECT {function}::text, pg_catalog.set_config('application_name', 'walkeep backup', false)");
        let asked = tokio::time::timeout(timeout, self.client.query_one(&query, &[&label, &fast])).await;
        let row = asked.with_context(|| format!("the server's checkpoint was not done within {}", humantime::format_duration(timeout)))?;
        let row =
            row.context("put the server into backup mode (the role needs EXECUTE on pg_backup_start and pg_backup_stop, or superuser)")?;
        Ok(row.try_get::<_, &str>(0)?.parse()?)
    }

    /// Ends the backup; whether its WAL is stored is asked elsewhere.
    pub async fn stop(&self, was_in_recovery: bool) -> Result<Stopped> {
        let function = match self.version_num >= RENAMED {
            true => "pg_catalog.pg_backup_stop(false)",
            false => "pg_catalog.pg_stop_backup(false, false)",
        };
        // As bytes: in a database of encoding SQL_ASCII a path need be no UTF-8.
        let bytes = |column: &str| format!("pg_catalog.convert_to({column}, pg_catalog.getdatabaseencoding())");
        let query = format!("SELECT lsn::text, {}, {}, {MICROS} FROM {function}", bytes("labelfile"), bytes("spcmapfile"));
        let asked = async { Ok(self.client.query_one(&query, &[]).await?) };
        let row = within("ending the server's backup mode", asked).await.context("end the backup on the server")?;
        let standby_timeline = match was_in_recovery {
            false => None,
            true => {
                let query = "SELECT min_recovery_end_timeline FROM pg_catalog.pg_control_recovery()";
                let row = within("asking for the standby's timeline", async { Ok(self.client.query_one(query, &[]).await?) }).await?;
                Some(timeline_of(row.try_get(0)?)?)
            }
        };
        Ok(Stopped {
            stop_lsn: row.try_get::<_, &str>(0)?.parse()?,
            standby_timeline,
            label: row.try_get(1)?,
            tablespace_map: row.try_get::<_, Option<Vec<u8>>>(2)?.unwrap_or_default(),
            now: moment(row.try_get(3)?)?,
        })
    }
}

fn moment(micros: i64) -> Result<DateTime<Utc>> {
    PgTimestamp::from_micros(micros).to_utc().context("the server's clock is beyond all years")
}

fn timeline_of(number: i32) -> Result<TimelineId> {
    match TimelineId::new(number.cast_unsigned()) {
        Some(timeline) => Ok(timeline),
        None => bail!("the server says that it is on timeline 0"),
    }
}

async fn within<T>(doing: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::time::timeout(ANSWER, work).await.with_context(|| format!("{doing}: no answer within {}", humantime::format_duration(ANSWER)))?
}
