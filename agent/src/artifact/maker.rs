//! Makes what the configuration asks for, whoever asks: a command or the agent's schedules.

use std::sync::Arc;

use anyhow::{Context, Result};
use chrono::{DateTime, Utc};
use futures::future::BoxFuture;
use tokio_util::sync::CancellationToken;
use walkeep_core::artifact::ArtifactName;
use walkeep_store::SharedStore;

use super::command::Call;
use super::dump::{Dumper, PgDump};
use super::flow::shown;
use super::{Job, Made, Started, bucket, folder, make};
use crate::config::{ArtifactConfig, ArtifactSource, S3Config};
use crate::repository::ClusterRepository;

/// How a bucket is opened that is not the repository's.
pub type OpenBucket = Arc<dyn Fn(S3Config, CancellationToken) -> BoxFuture<'static, Result<SharedStore>> + Send + Sync>;

/// What artifacts are made with.
#[derive(Clone)]
pub struct Maker {
    repository: Arc<ClusterRepository>,
    open: OpenBucket,
}

impl Maker {
    /// Into this repository.
    pub fn new(repository: Arc<ClusterRepository>, open: OpenBucket) -> Self {
        Self { repository, open }
    }

    /// The repository.
    pub fn repository(&self) -> &Arc<ClusterRepository> {
        &self.repository
    }

    /// Makes an artifact.
    pub async fn artifact(&self, config: &ArtifactConfig, due: Option<DateTime<Utc>>, stop: &CancellationToken) -> Result<Made> {
        let job = Job {
            name: config.name.clone(),
            source: told(&config.source),
            database: None,
            due,
            runs: config.runs.clone(),
            allow_empty: config.allow_empty,
        };
        make(&self.repository, &job, self.start(&config.source, stop), stop).await
    }

    /// Dumps a database.
    pub async fn dump(
        &self,
        dumper: &Dumper,
        with: &PgDump,
        database: &str,
        due: Option<DateTime<Utc>>,
        stop: &CancellationToken,
    ) -> Result<Made> {
        let job = Job {
            name: ArtifactName::of_dump(database),
            source: "pg_dump".to_owned(),
            database: Some(database.to_owned()),
            due,
            runs: dumper.config().runs.clone(),
            allow_empty: false,
        };
        make(&self.repository, &job, dumper.start(with, database), stop).await
    }

    async fn start(&self, source: &ArtifactSource, stop: &CancellationToken) -> Result<Started> {
        let (content, flow) = match source {
            ArtifactSource::Path(path) => {
                let path = path.clone();
                // A folder that hangs (a dead file system) holds up nobody else.
                tokio::task::spawn_blocking(move || folder::start(&path)).await.context("look at the path")??
            }
            ArtifactSource::Bucket(config) => {
                let store = (self.open)((**config).clone(), stop.clone()).await.context("open the bucket")?;
                (walkeep_core::artifact::Content::Tar, bucket::start(store))
            }
            ArtifactSource::Command { argv, environment } => {
                let call = Call { argv: argv.clone(), environment: environment.clone(), open: Vec::new() };
                (walkeep_core::artifact::Content::Bytes, call.start()?)
            }
        };
        Ok(Started { content, flow, program: None })
    }
}

/// What it is made from. Arguments may be secrets.
fn told(source: &ArtifactSource) -> String {
    match source {
        ArtifactSource::Path(path) => shown(path),
        ArtifactSource::Bucket(config) => crate::config::RepositoryConfig::S3(config.clone()).url(),
        ArtifactSource::Command { argv, .. } => {
            format!("command {}", walkeep_core::identifier::printable(argv.first().map_or("", String::as_str)))
        }
    }
}
