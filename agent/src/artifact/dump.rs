//! Dumps of databases: which there are, and pg_dump for each.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use walkeep_core::MajorVersion;
use walkeep_core::artifact::Content;

use super::command::Call;
use super::flow::Flow;
use super::{Started, folder};
use crate::config::{DumpConfig, Secret};
use crate::postgres::{ConnectionParams, catalogs, connect_sql, without_password};
use crate::scratch_server::{Place, Programs};

/// What libpq's programs read a password from.
const PASSWORD: &str = "PGPASSWORD";

/// Where databases are dumped from.
#[derive(Debug, Clone)]
pub struct Dumper {
    config: DumpConfig,
    connection: Secret,
    params: ConnectionParams,
    data_directory: Option<PathBuf>,
}

/// pg_dump of a version that can read the server.
#[derive(Debug, Clone)]
pub struct PgDump {
    program: PathBuf,
    server: MajorVersion,
}

impl Dumper {
    /// With this configuration, from the server of this connection.
    pub fn new(config: DumpConfig, connection: Secret, params: ConnectionParams, data_directory: Option<PathBuf>) -> Self {
        Self { config, connection, params, data_directory }
    }

    /// The configuration.
    pub fn config(&self) -> &DumpConfig {
        &self.config
    }

    /// The databases that are to be dumped, and with what. One that is named and is not there is an error: its dump would be missed.
    pub async fn look(&self) -> Result<(Vec<String>, PgDump)> {
        let client = connect_sql(&self.params).await.context("connect for SQL")?;
        let version: String = client.query_one("SHOW server_version_num", &[]).await.context("ask for the server's version")?.get(0);
        let server = MajorVersion::from_version_num(version.parse().context("understand the server's version")?);
        let found = catalogs::databases(&client).await.context("list the databases")?;
        let programs = Programs::new(server, self.config.bin_dir.as_slice(), self.data_directory.as_deref());
        let program = programs.clients().map_err(|error| {
            let hint = error.hint();
            anyhow::Error::new(error).context(format!("pg_dump must be as new as the server, PostgreSQL {server}: {hint} (bin_dir)"))
        })?;
        let taken: Vec<String> = match &self.config.databases {
            Some(named) => {
                for name in named {
                    ensure!(found.iter().any(|database| database.name == *name), "there is no database {name:?}");
                }
                named.clone()
            }
            None => found.into_iter().filter(|database| database.connectable && !database.template).map(|database| database.name).collect(),
        };
        let taken = taken.into_iter().filter(|name| !self.config.exclude.contains(name)).collect();
        Ok((taken, PgDump { program: program.pg_dump, server }))
    }

    /// Begins with a database.
    pub async fn start(&self, with: &PgDump, database: &str) -> Result<Started> {
        let (conninfo, password) = without_password(self.connection.reveal(), &[]).context("the connection")?;
        // Of a key that is there twice the last one counts.
        let quoted = database.replace('\\', r"\\").replace('\'', r"\'");
        let mut argv = vec![with.program.display().to_string(), "--no-password".into(), format!("--dbname={conninfo} dbname='{quoted}'")];
        argv.extend(self.config.options.iter().cloned());
        let password = password.or_else(|| std::env::var(PASSWORD).ok());
        let environment: Vec<(String, Secret)> =
            password.map(|password| (PASSWORD.to_owned(), Secret::from(password))).into_iter().collect();
        let libpq = std::env::vars().filter(|(name, _)| name.starts_with("PG") && name != PASSWORD);
        let open: Vec<(String, String)> = libpq.chain([("PGAPPNAME".to_owned(), "walkeep-dump".to_owned())]).collect();
        let program = Some(format!("{} for PostgreSQL {}", folder::last_name(&with.program), with.server));
        if !self.config.directory {
            argv.push("--format=custom".into());
            return Ok(Started { content: Content::PgDump, flow: Call { argv, environment, open }.start()?, program });
        }
        let parent = self.config.scratch.clone().unwrap_or_else(std::env::temp_dir);
        let (place, removed) = scratch(parent).await?;
        for path in removed {
            tracing::info!(folder = %path.display(), "removed what a process that was killed had left");
        }
        let dump = place.path().join("dump");
        argv.extend(["--format=directory".into(), format!("--jobs={}", self.config.jobs), format!("--file={}", dump.display())]);
        Call { argv, environment, open }.run().await?;
        let (_, flow): (_, Flow) = folder::start(&dump)?;
        Ok(Started { content: Content::PgDumpDirectory, flow: flow.out_of(place), program })
    }
}

async fn scratch(parent: PathBuf) -> Result<(Place, Vec<PathBuf>)> {
    let made = tokio::task::spawn_blocking(move || Place::make(Path::new(&parent), "walkeep dump"));
    made.await.context("make a scratch folder")?
}
