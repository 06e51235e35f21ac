//! Ordinary SQL over the same connection parameters, and the few questions the agent asks a server that way.

use std::convert::Infallible;
use std::error::Error as _;
use std::future::{Ready, ready};
use std::io;
use std::time::{Duration, SystemTime};

use chrono::{DateTime, Utc};
use tokio::task::JoinHandle;
use tokio_postgres::config::{ChannelBinding as SqlChannelBinding, SslMode as SqlSslMode, SslNegotiation};
use tokio_postgres::tls::{ChannelBinding as Binding, TlsConnect, TlsStream};
use tokio_postgres::{Client, Config};
use walkeep_core::plan::ServerNow;
use walkeep_core::slot::Told;
use walkeep_core::{Lsn, PgTimestamp, SegmentSize, SystemIdentifier, TimelineId};
use walkeep_store::noticed::ahead;

use super::auth::kind_matches;
use super::dial::{Dialed, Dialer, Transport};
use super::error::Error;
use super::params::{ChannelBinding, ConnectionParams, TargetSession};
use super::wire::{REPLY_TIMEOUT, within};

/// TLS was already negotiated when the transport was opened; this hands it on.
struct AlreadyOpen;

impl TlsConnect<Transport> for AlreadyOpen {
    type Stream = Transport;
    type Error = Infallible;
    type Future = Ready<Result<Transport, Infallible>>;

    fn connect(self, stream: Transport) -> Self::Future {
        ready(Ok(stream))
    }
}

impl TlsStream for Transport {
    fn channel_binding(&self) -> Binding {
        self.endpoint.clone().map_or_else(Binding::none, Binding::tls_server_end_point)
    }
}

/// Opens a session for SQL with the first host that lets us in. The task that serves it ends when the client is dropped.
pub async fn connect_sql(params: &ConnectionParams) -> Result<Client, Error> {
    Ok(connect(params).await?.client)
}

/// The same, with the task that serves it. Whoever ends the process soon after drops the client and waits for that task: else the server's log
/// says that the client was lost.
pub async fn connect_sql_served(params: &ConnectionParams) -> Result<(Client, JoinHandle<()>), Error> {
    let Opened { client, serving, .. } = connect(params).await?;
    Ok((client, serving))
}

/// The same, with when the server's certificate ends, where there is TLS.
pub async fn connect_sql_certified(params: &ConnectionParams) -> Result<(Client, Option<DateTime<Utc>>), Error> {
    let Opened { client, certificate_ends, .. } = connect(params).await?;
    Ok((client, certificate_ends))
}

struct Opened {
    client: Client,
    serving: JoinHandle<()>,
    certificate_ends: Option<DateTime<Utc>>,
}

async fn connect(params: &ConnectionParams) -> Result<Opened, Error> {
    let mut dialer = Dialer::new(params);
    loop {
        let dialed = dialer.next().await?;
        let (deadline, host) = (dialed.deadline(), dialed.host.clone());
        match Dialed::within(deadline, &host, open(dialed, params)).await {
            Ok(opened) => {
                params.connected(&host);
                return Ok(opened);
            }
            Err(error) => dialer.refused(error)?,
        }
    }
}

async fn open(dialed: Dialed, params: &ConnectionParams) -> Result<Opened, Error> {
    let Dialed { transport, host, wanted, .. } = dialed;
    let certificate_ends = transport.certificate_ends;
    let mut config = Config::new();
    config.user(params.user()).dbname(params.dbname());
    if let Some(password) = params.password(&host, params.dbname()) {
        config.password(password);
    }
    if let Some(options) = &params.options {
        config.options(options);
    }
    if let Some(name) = params.application_name() {
        config.application_name(name);
    }
    config.channel_binding(match params.channel_binding {
        ChannelBinding::Disable => SqlChannelBinding::Disable,
        ChannelBinding::Prefer => SqlChannelBinding::Prefer,
        ChannelBinding::Require => SqlChannelBinding::Require,
    });
    if transport.tls {
        config.ssl_mode(SqlSslMode::Require).ssl_negotiation(SslNegotiation::Direct);
    } else {
        config.ssl_mode(SqlSslMode::Disable);
    }
    let (client, connection) = config.connect_raw(transport, AlreadyOpen).await.map_err(startup_error)?;
    let serving = tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "an SQL connection ended");
        }
    });
    if !matches!(wanted, TargetSession::Any | TargetSession::PreferStandby) {
        let row = client.query_one("SELECT current_setting('transaction_read_only') = 'on', pg_is_in_recovery()", &[]).await?;
        if !kind_matches(wanted, row.try_get(0)?, row.try_get(1)?) {
            return Err(Error::WrongKind { target: host.to_string(), wanted: wanted.as_str() });
        }
    }
    Ok(Opened { client, serving, certificate_ends })
}

/// During the startup a broken connection must be told from a refusal: another host may do.
fn startup_error(error: tokio_postgres::Error) -> Error {
    match error.source().and_then(|source| source.downcast_ref::<io::Error>()) {
        Some(source) if error.as_db_error().is_none() && source.kind() != io::ErrorKind::InvalidInput => {
            Error::Io(io::Error::new(source.kind(), source.to_string()))
        }
        _ => error.into(),
    }
}

/// Whether commits wait for the standby of this name, and whether some wait for it to apply what it never applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Waited {
    /// It is, or may be, one of the synchronous standbys.
    pub commits: bool,
    /// `synchronous_commit = remote_apply` is set for the server, a database or a role.
    pub remote_apply: bool,
}

/// Asks whether commits wait for the standby called `application_name`. A role that may not see `sync_state` (it needs pg_read_all_stats) is told
/// by `synchronous_standby_names`, which may name more standbys than commits wait for.
pub async fn waited_for(client: &Client, application_name: &str) -> Result<Waited, Error> {
    let row = client
        .query_one(
            "SELECT coalesce((SELECT bool_or(sync_state IN ('sync', 'quorum')) FROM pg_stat_replication WHERE application_name = $1), \
             position('*' in current_setting('synchronous_standby_names')) > 0 \
             OR position(lower($1) in lower(current_setting('synchronous_standby_names'))) > 0), \
             current_setting('synchronous_commit') = 'remote_apply' \
             OR EXISTS (SELECT FROM pg_db_role_setting WHERE 'synchronous_commit=remote_apply' = ANY (setconfig))",
            &[&application_name],
        )
        .await?;
    Ok(Waited { commits: row.try_get(0)?, remote_apply: row.try_get(1)? })
}

/// How many seconds this host's clock is ahead of the server's; below 0 if it is behind.
pub async fn clock_ahead(client: &Client) -> Result<f64, Error> {
    let asked = SystemTime::now();
    let row = client.query_one("SELECT clock_timestamp()", &[]).await?;
    let answered = SystemTime::now();
    Ok(ahead(asked, answered, row.try_get(0)?, Duration::ZERO))
}

/// A row of `pg_replication_slots`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotState {
    /// From here on the server keeps WAL.
    pub restart_lsn: Option<Lsn>,
    /// Whether a walsender uses it.
    pub active: bool,
    /// Which process.
    pub active_pid: Option<i32>,
    /// `reserved`, `extended`, `unreserved` or `lost`.
    pub wal_status: Option<String>,
    /// How many more bytes of WAL may be written before the slot is in danger of being lost.
    pub safe_wal_size: Option<i64>,
    /// Bytes of WAL that it holds back.
    pub retained: Option<i64>,
    /// Why the server has invalidated it (since PostgreSQL 17).
    pub invalidation_reason: Option<String>,
    /// Since when nobody uses it (since PostgreSQL 17), as the server prints it.
    pub inactive_since: Option<String>,
    /// `max_slot_wal_keep_size` in bytes; `None` without a limit.
    pub keep_limit: Option<u64>,
}

impl SlotState {
    /// For [`walkeep_core::slot::health`].
    pub fn told(&self) -> Told<'_> {
        Told {
            wal_status: self.wal_status.as_deref(),
            invalidated: self.invalidation_reason.is_some(),
            safe: self.safe_wal_size,
            limit: self.keep_limit,
        }
    }
}

/// The state of a physical slot; `None` if there is none of that name.
pub async fn slot_state(client: &Client, name: &str) -> Result<Option<SlotState>, Error> {
    // Columns of later versions by way of JSON, where those of earlier ones are simply missing.
    let query = "SELECT restart_lsn::text, active, active_pid, wal_status, safe_wal_size, \
                 pg_wal_lsn_diff(CASE WHEN pg_is_in_recovery() THEN greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn()) \
                 ELSE pg_current_wal_lsn() END, restart_lsn)::bigint, \
                 to_jsonb(slot) ->> 'invalidation_reason', to_jsonb(slot) ->> 'inactive_since', \
                 (SELECT setting::bigint * 1024 * 1024 FROM pg_catalog.pg_settings WHERE name = 'max_slot_wal_keep_size') \
                 FROM pg_catalog.pg_replication_slots slot WHERE slot_name = $1::text AND slot_type = 'physical'";
    // The stream asks this too, before it begins: a server that took the connection and then hangs must not hold it up for ever.
    let asked = within(REPLY_TIMEOUT, "reading the slot", async { Ok(client.query_opt(query, &[&name]).await?) });
    let Some(row) = asked.await? else { return Ok(None) };
    let restart_lsn: Option<&str> = row.try_get(0)?;
    Ok(Some(SlotState {
        restart_lsn: restart_lsn.map(parse_lsn).transpose()?,
        active: row.try_get(1)?,
        active_pid: row.try_get(2)?,
        wal_status: row.try_get(3)?,
        safe_wal_size: row.try_get(4)?,
        retained: row.try_get(5)?,
        invalidation_reason: row.try_get(6)?,
        inactive_since: row.try_get(7)?,
        // -1 is no limit.
        keep_limit: row.try_get::<_, Option<i64>>(8)?.and_then(|bytes| bytes.try_into().ok()),
    }))
}

fn parse_lsn(text: &str) -> Result<Lsn, Error> {
    text.parse().map_err(|error| Error::Protocol(format!("{error}")))
}

/// The settings that decide how a cluster can be archived. `None`: this role may not see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Such as 150018.
    pub server_version_num: u32,
    /// The size of WAL segments.
    pub segment_size: SegmentSize,
    /// Whether data pages have checksums.
    pub data_checksums: bool,
    /// `minimal`, `replica` or `logical`.
    pub wal_level: String,
    /// `off`, `on` or `always`.
    pub archive_mode: String,
    /// The command; `(disabled)` while `archive_mode` is off.
    pub archive_command: Option<String>,
    /// Which standbys commits wait for.
    pub synchronous_standby_names: String,
    /// What they wait for.
    pub synchronous_commit: String,
    /// How much WAL slots may hold back, in MB; `None` without limit.
    pub max_slot_wal_keep_mb: Option<u64>,
    /// After how long without use the server invalidates a slot (since PostgreSQL 18); `None` if never.
    pub idle_slot_timeout: Option<Duration>,
    /// Where the cluster lies.
    pub data_directory: Option<String>,
}

/// Reads [`Settings`].
pub async fn settings(client: &Client) -> Result<Settings, Error> {
    let names = [
        "server_version_num",
        "wal_segment_size",
        "data_checksums",
        "wal_level",
        "archive_mode",
        "archive_command",
        "synchronous_standby_names",
        "synchronous_commit",
        "max_slot_wal_keep_size",
        "data_directory",
    ];
    let rows = client.query("SELECT name, setting FROM pg_catalog.pg_settings WHERE name = ANY($1)", &[&names.as_slice()]).await?;
    let mut found = std::collections::HashMap::new();
    for row in rows {
        found.insert(row.try_get::<_, String>(0)?, row.try_get::<_, Option<String>>(1)?.unwrap_or_default());
    }
    let idle = "SELECT extract(epoch FROM current_setting('idle_replication_slot_timeout', true)::interval)::float8";
    let idle: Option<f64> = client.query_one(idle, &[]).await?.try_get(0)?;
    let mut take = |name: &str| found.remove(name);
    let missing = |name: &str| Error::Protocol(format!("the server shows no setting {name}, or one that cannot be read"));
    let mut need = |name: &str| take(name).ok_or_else(|| missing(name));
    let segment_size = need("wal_segment_size")?.parse().ok().and_then(|bytes| SegmentSize::new(bytes).ok());
    Ok(Settings {
        server_version_num: need("server_version_num")?.parse().map_err(|_| missing("server_version_num"))?,
        segment_size: segment_size.ok_or_else(|| missing("wal_segment_size"))?,
        data_checksums: need("data_checksums")? == "on",
        wal_level: need("wal_level")?,
        archive_mode: need("archive_mode")?,
        synchronous_standby_names: need("synchronous_standby_names")?,
        synchronous_commit: need("synchronous_commit")?,
        max_slot_wal_keep_mb: need("max_slot_wal_keep_size")?.parse().ok(),
        idle_slot_timeout: idle.filter(|seconds| *seconds > 0.0).and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()),
        archive_command: take("archive_command"),
        data_directory: take("data_directory"),
    })
}

/// How many bytes of WAL the server writes in a second, since its statistics began. `None` before PostgreSQL 14, and where they are too young to say.
pub async fn wal_rate(client: &Client) -> Result<Option<f64>, Error> {
    let there = client.query_one("SELECT to_regclass('pg_catalog.pg_stat_wal') IS NOT NULL", &[]).await?;
    if !there.try_get::<_, bool>(0)? {
        return Ok(None);
    }
    let query = "SELECT wal_bytes::float8 / extract(epoch FROM age)::float8 \
                 FROM (SELECT wal_bytes, clock_timestamp() - stats_reset AS age FROM pg_catalog.pg_stat_wal) AS since WHERE age > interval '10 minutes'";
    Ok(client.query_opt(query, &[]).await?.map(|row| row.try_get(0)).transpose()?.flatten())
}

/// `pg_stat_archiver`: how the server's own archiver fares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArchiverStats {
    /// How many files were archived since the statistics began.
    pub archived: i64,
    /// The last of them.
    pub last_archived: Option<String>,
    /// When.
    pub last_archived_at: Option<PgTimestamp>,
    /// How many attempts failed.
    pub failed: i64,
    /// The file that failed last.
    pub last_failed: Option<String>,
    /// When.
    pub last_failed_at: Option<PgTimestamp>,
}

/// Reads [`ArchiverStats`].
pub async fn archiver_stats(client: &Client) -> Result<ArchiverStats, Error> {
    let micros = |column: &str| format!("(extract(epoch FROM {column} - timestamptz '2000-01-01 00:00+00') * 1000000)::bigint");
    let query = format!(
        "SELECT archived_count, last_archived_wal, {}, failed_count, last_failed_wal, {} FROM pg_catalog.pg_stat_archiver",
        micros("last_archived_time"),
        micros("last_failed_time")
    );
    let row = client.query_one(&query, &[]).await?;
    Ok(ArchiverStats {
        archived: row.try_get(0)?,
        last_archived: row.try_get(1)?,
        last_archived_at: row.try_get::<_, Option<i64>>(2)?.map(PgTimestamp::from_micros),
        failed: row.try_get(3)?,
        last_failed: row.try_get(4)?,
        last_failed_at: row.try_get::<_, Option<i64>>(5)?.map(PgTimestamp::from_micros),
    })
}

/// Whether the server is a standby, or still recovering.
pub async fn is_in_recovery(client: &Client) -> Result<bool, Error> {
    Ok(client.query_one("SELECT pg_catalog.pg_is_in_recovery()", &[]).await?.try_get(0)?)
}

/// A server that writes, now; `None` for one that is in recovery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WritesNow {
    /// Which cluster it is.
    pub system_identifier: SystemIdentifier,
    /// Its clock and position.
    pub now: ServerNow,
}

/// Reads the server's clock, then where it writes.
pub async fn writes_now(client: &Client) -> Result<Option<WritesNow>, Error> {
    if is_in_recovery(client).await? {
        return Ok(None);
    }
    let clock = "SELECT (extract(epoch FROM clock_timestamp() - timestamptz '2000-01-01 00:00+00') * 1000000)::bigint, \
                 (SELECT system_identifier FROM pg_catalog.pg_control_system())";
    let row = client.query_one(clock, &[]).await?;
    let (clock, system): (i64, i64) = (row.try_get(0)?, row.try_get(1)?);
    // A statement of its own: it is read after the clock.
    let position = "SELECT lsn::text, pg_catalog.pg_walfile_name(lsn), pg_catalog.pg_current_wal_flush_lsn()::text, \
                    (SELECT setting::bigint FROM pg_catalog.pg_settings WHERE name = 'wal_writer_delay') \
                    FROM pg_catalog.pg_current_wal_insert_lsn() AS lsn";
    let row = client.query_one(position, &[]).await?;
    let (lsn, file, flushed, delay): (String, String, String, i64) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?, row.try_get(3)?);
    let timeline = file.get(..8).and_then(|digits| u32::from_str_radix(digits, 16).ok()).and_then(TimelineId::new);
    let (Ok(writes_at), Ok(flushed_to), Some(timeline)) = (lsn.parse::<Lsn>(), flushed.parse::<Lsn>(), timeline) else {
        return Err(Error::Protocol(format!("the position {lsn} in {file}")));
    };
    let flush_delay = delay.saturating_mul(3 * 1000);
    let now = ServerNow { timeline, clock: PgTimestamp::from_micros(clock), writes_at, flushed_to, flush_delay };
    Ok(Some(WritesNow { system_identifier: SystemIdentifier::new(system as u64), now }))
}
