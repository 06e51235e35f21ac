//! From the configuration to the things a command works with: store, repository, connection.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use futures::FutureExt;
use futures::future::join_all;
use tokio_util::sync::CancellationToken;
use walkeep_core::catalog::Catalog;
use walkeep_core::kind::ObjectKind;
use walkeep_core::layout::ClusterName;
use walkeep_core::safety::Heard;
use walkeep_protocol::{Response, Verb};
use walkeep_store::local::LocalStore;
use walkeep_store::s3::{self, PastS3Store, Placement, Placing, S3Options, S3Store};
use walkeep_store::several::{Fallbacks, Follow, Proof};
use walkeep_store::{Error, ErrorKind, Key, Probed, Several, SharedStore, guarded::GuardedStore};

use super::failure::Failure;
use super::waiting::WaitedFor;
use super::{Global, output};
use crate::artifact::maker::OpenBucket;
use crate::config::{ClusterConfig, Config, RepositoryConfig, S3Config, ServerSideEncryption};
use crate::copies::left_behind;
use crate::encryption::Encryption;
use crate::index::reader::Index;
use crate::postgres::ConnectionParams;
use crate::repository::catalog::LoadedCatalog;
use crate::repository::place::{Agreed, LockRule, OpenStore, PlaceStore};
use crate::repository::{self, ClusterRepository, Repository};

/// So long a command waits, before it begins, to see which of several repositories answer.
const FIRST_TRY: Duration = Duration::from_secs(5);
/// The most one call to a store may take, retries and all: a bound behind the store's own.
const STORE_DEADLINE: Duration = Duration::from_secs(300);

/// Loads the configuration; an error is wrong usage.
pub fn config(global: &Global) -> Result<Config, Failure> {
    let config = Config::load(&global.selection()).map_err(Failure::usage)?;
    for warning in &config.warnings {
        output::tell!("warning: {warning}");
    }
    Ok(config)
}

/// The same of every cluster in the file, unless one was chosen.
pub fn configs(global: &Global) -> Result<Vec<Config>, Failure> {
    let configs = Config::load_all(&global.selection()).map_err(Failure::usage)?;
    for warning in configs.iter().take(1).flat_map(|config| &config.warnings) {
        output::tell!("warning: {warning}");
    }
    Ok(configs)
}

/// Whether a missing directory is created.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    /// By `init`.
    Create,
    /// By everything else: a repository that is not there may be a volume that is not mounted.
    Fail,
}

/// Who uses a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum User {
    /// A person waits for it, and the process ends.
    Command,
    /// Nobody waits.
    Agent,
    /// Nobody waits for long, and the process ends.
    Aside,
}

/// The store of one repository for a command: whoever waits for it is told what for. Every call ends when `stop` fires.
pub async fn store(repository: &RepositoryConfig, missing: Missing, stop: &CancellationToken) -> repository::Result<SharedStore> {
    Ok(dressed(open_store(repository, missing).await?, repository, User::Command, stop))
}

async fn open_store(repository: &RepositoryConfig, missing: Missing) -> repository::Result<SharedStore> {
    Ok(match repository {
        RepositoryConfig::Local { path } => match missing {
            Missing::Create => Arc::new(LocalStore::create(path.clone()).await?),
            Missing::Fail => Arc::new(LocalStore::open(path.clone()).await?),
        },
        RepositoryConfig::S3(config) => {
            let store = S3Store::open(s3_options(config)?).await?;
            match config.as_of {
                // A pack is named by its content, and is read only where a manifest of then names it.
                Some(at) => Arc::new(PastS3Store::new(store, at.into()).with_timeless(|key| ObjectKind::of_key(key) == ObjectKind::Pack)),
                None => Arc::new(store),
            }
        }
    })
}

/// With an end to every call, and a word for who waits.
fn dressed(store: SharedStore, repository: &RepositoryConfig, user: User, stop: &CancellationToken) -> SharedStore {
    let url = store.url();
    let store: SharedStore = Arc::new(GuardedStore::new(store, STORE_DEADLINE, stop.clone()));
    let place = match (user, repository) {
        (User::Agent | User::Aside, _) => return store,
        (User::Command, RepositoryConfig::Local { .. }) => url,
        (User::Command, RepositoryConfig::S3(config)) => format!("{url} at {}", config.endpoint.as_deref().unwrap_or("AWS")),
    };
    Arc::new(WaitedFor::new(store, place))
}

/// The store of a cluster: of one repository, or of several.
async fn cluster_store(cluster: &ClusterConfig, user: User, stop: &CancellationToken) -> repository::Result<SharedStore> {
    // Of the others only the present is known.
    if cluster.further.is_empty() || cluster.repository.as_of().is_some() {
        return Ok(dressed(open_store(&cluster.repository, Missing::Fail).await?, &cluster.repository, user, stop));
    }
    let agreed = Agreed::default();
    let mut places = Vec::new();
    for repository in cluster.repositories() {
        let config = repository.clone();
        let open: OpenStore = Arc::new(move || {
            let config = config.clone();
            async move { open_store(&config, Missing::Fail).await }.boxed()
        });
        places.push(Arc::new(PlaceStore::of(repository.url(), cluster.name.clone(), open, locks(repository), agreed.clone())));
    }
    let tried = join_all(places.iter().map(|place| tokio::time::timeout(FIRST_TRY, place.ready()))).await;
    let (mut reached, mut failed, mut silent) = (false, None, Vec::new());
    for (index, tried) in tried.into_iter().enumerate() {
        match tried {
            Ok(Ok(())) => reached = true,
            Ok(Err(error @ repository::Error::Disagree { .. })) => return Err(error),
            Ok(Err(error)) => drop(failed.get_or_insert(error)),
            Err(_) => silent.push(index),
        }
    }
    if let Some(error) = failed.filter(|_| !reached) {
        return Err(error);
    }
    let dress = |(place, config): (Arc<PlaceStore>, &RepositoryConfig)| dressed(place, config, user, stop);
    let stores: Vec<SharedStore> = places.into_iter().zip(cluster.repositories()).map(dress).collect();
    let follow = match user {
        User::Agent => Follow::Queued,
        User::Command => left_behind::follow(cluster, left_behind::PATIENCE),
        User::Aside => left_behind::follow(cluster, left_behind::PATIENCE / 5),
    };
    let several = Several::new(stores, cluster.stored_when, follow);
    for index in silent {
        several.pass_over(index, format!("no answer within {FIRST_TRY:?}"), FIRST_TRY);
    }
    left_behind::pass_over_dead(cluster, &several);
    Ok(Arc::new(several))
}

/// Fails where the repository is read as it was at an earlier moment.
pub fn refuse_past(cluster: &ClusterConfig) -> Result<(), Failure> {
    match cluster.repository.as_of() {
        None => Ok(()),
        Some(at) => Err(Failure::usage(anyhow!("the repository is read as of {}, and nothing can be written there", output::time(at)))
            .hint("Take as_of out: it is for plan, restore and whatever else only reads.")),
    }
}

/// A name for the object with which the store is tried, that no other try has.
pub fn probe_key(cluster: &ClusterName) -> Result<Key> {
    let key = format!("{cluster}/probe-{}-{}", std::process::id(), chrono::Utc::now().timestamp_micros());
    Ok(key.parse()?)
}

/// What is said of an object that could not be removed.
pub fn left_behind(probed: Probed, key: &Key) -> Option<String> {
    (probed == Probed::Left).then(|| format!("deleting is denied, as it may be: the object of this try, {key}, stays and does no harm"))
}

/// Fails where the configuration names what cannot be used on this host; asks nobody.
pub fn check_repository(cluster: &ClusterConfig) -> Result<(), Failure> {
    keys(cluster)?;
    for repository in cluster.repositories() {
        if let RepositoryConfig::S3(config) = repository {
            s3_options(config)?;
        }
    }
    Ok(())
}

/// How an artifact's bucket is opened.
pub fn bucket_opener() -> OpenBucket {
    Arc::new(|config, stop| {
        async move {
            let store: SharedStore = Arc::new(S3Store::open(s3_options(&config)?).await.map_err(repository::Error::from)?);
            let store: SharedStore = Arc::new(GuardedStore::new(store, STORE_DEADLINE, stop));
            Ok(store)
        }
        .boxed()
    })
}

fn s3_options(config: &S3Config) -> repository::Result<S3Options> {
    let mut options = S3Options::new(config.bucket.clone());
    options.prefix = config.prefix.clone();
    options.endpoint = config.endpoint.clone();
    options.region = config.region.clone().or_else(|| region_of_another_server(config));
    options.path_style = config.path_style;
    options.storage_class = config.storage_class.clone();
    options.placing = Some(placing(config));
    options.sse = match &config.encryption {
        ServerSideEncryption::Bucket => s3::Sse::BucketDefault,
        ServerSideEncryption::Aes256 => s3::Sse::Aes256,
        ServerSideEncryption::Kms { key_id } => s3::Sse::Kms { key_id: key_id.clone() },
    };
    options.ca_file = config.ca_file.clone();
    options.credentials = match (&config.access_key_id, &config.secret_access_key_file, &config.profile) {
        (Some(access_key), Some(secret), _) => s3::Credentials::Static {
            access_key: access_key.clone(),
            secret_key: secret_from(secret)?,
            session_token: config.session_token_file.as_deref().map(secret_from).transpose()?,
        },
        (_, _, Some(profile)) => s3::Credentials::Profile { name: profile.clone(), file: None },
        _ => s3::Credentials::Chain,
    };
    if let Some(timeout) = config.timeout {
        options.timeouts.operation = timeout;
    }
    Ok(options)
}

/// By kind: what stays until retention lets it go may be locked and may lie where it is cheap.
fn placing(config: &S3Config) -> Placing {
    let (wal, backup, lock) = (config.wal_storage_class.clone(), config.backup_storage_class.clone(), config.object_lock);
    Placing::by(move |key| {
        let kind = ObjectKind::of_key(key.as_str());
        let storage_class = match kind {
            ObjectKind::Wal => wal.clone(),
            ObjectKind::Pack | ObjectKind::Artifact => backup.clone(),
            _ => None,
        };
        Placement { storage_class, lock: lock.filter(|_| kind.stays()) }
    })
}

/// The same of a repository that is not opened yet, as far as locks go.
fn locks(config: &RepositoryConfig) -> LockRule {
    let lock = match config {
        RepositoryConfig::S3(config) => config.object_lock,
        RepositoryConfig::Local { .. } => None,
    };
    Arc::new(move |key| lock.filter(|_| ObjectKind::of_key(key.as_str()).stays()))
}

/// Servers other than AWS take any region; asking AWS's metadata service for one would only cost time.
fn region_of_another_server(config: &S3Config) -> Option<String> {
    config.endpoint.as_ref()?;
    let from_env = ["AWS_REGION", "AWS_DEFAULT_REGION"].into_iter().find_map(|name| std::env::var(name).ok());
    Some(from_env.unwrap_or_else(|| "us-east-1".into()))
}

/// A warning and no refusal, other than ssh's: in a container a secret is often mounted so, and nobody else is in there.
fn warn_of_readers(path: &Path) {
    static TOLD: std::sync::Once = std::sync::Once::new();
    if let Ok(found) = std::fs::metadata(path)
        && found.mode() & 0o077 != 0
    {
        TOLD.call_once(|| {
            let mode = found.mode() & 0o7777;
            output::tell!("warning: the secret in {} can be used by other users of this host (mode {mode:04o}): chmod 400", path.display());
        });
    }
}

fn secret_from(path: &Path) -> repository::Result<s3::Secret> {
    let unusable = |cause: String| Error::at(ErrorKind::Misconfigured, "read the secret in", path.display().to_string()).because(cause);
    warn_of_readers(path);
    let text = std::fs::read_to_string(path).map_err(|error| unusable(error.to_string()))?;
    if text.trim().is_empty() {
        return Err(unusable("the file is empty".into()).into());
    }
    Ok(s3::Secret::new(text.trim_end_matches(['\r', '\n'])))
}

/// The repository of a cluster as its present identity, read from the repository itself: no server is needed.
pub async fn cluster_repository(cluster: &ClusterConfig, stop: &CancellationToken) -> repository::Result<ClusterRepository> {
    known_cluster(cluster, cluster_store(cluster, User::Command, stop).await?).await
}

/// [`cluster_repository`] for what a command does beside its work, which is not to hold it up.
pub async fn repository_aside(cluster: &ClusterConfig, stop: &CancellationToken) -> repository::Result<ClusterRepository> {
    known_cluster(cluster, cluster_store(cluster, User::Aside, stop).await?).await
}

/// [`cluster_repository`] for the agent, for which nobody waits.
pub async fn agent_repository(cluster: &ClusterConfig, stop: &CancellationToken) -> repository::Result<ClusterRepository> {
    known_cluster(cluster, cluster_store(cluster, User::Agent, stop).await?).await
}

/// [`cluster_repository`] for who only looks: what is left of several repositories is shown, and what could not be asked is told.
pub async fn what_is_left(cluster: &ClusterConfig, stop: &CancellationToken) -> repository::Result<ClusterRepository> {
    let repository = left(cluster, User::Command, stop).await?;
    tell_silent(&repository);
    Ok(repository)
}

/// The same where nobody is told what could not be asked.
pub async fn what_is_left_quietly(cluster: &ClusterConfig, stop: &CancellationToken) -> repository::Result<ClusterRepository> {
    left(cluster, User::Aside, stop).await
}

async fn left(cluster: &ClusterConfig, user: User, stop: &CancellationToken) -> repository::Result<ClusterRepository> {
    let store = cluster_store(cluster, user, stop).await?;
    let store = store.demanding(Proof::Reachable).unwrap_or(store);
    known_cluster(cluster, store).await
}

/// Tells which of several repositories could not be asked.
fn tell_silent(repository: &ClusterRepository) {
    let states = repository.repository().store().several().map(Several::states).unwrap_or_default();
    for (url, (reason, _)) in states.into_iter().filter_map(|state| Some((state.url, state.down?))) {
        output::tell!(
            "warning: the repository {url} could not be asked: what only it has is not in this. If it is gone for good, take it out of the \
             configuration. ({reason})"
        );
    }
}

/// Tells what one of several repositories did not have whole, and another one did.
pub fn tell_fallbacks(repository: &ClusterRepository) {
    for state in repository.repository().store().several().map(Several::states).unwrap_or_default() {
        let Fallbacks { missing, damaged, .. } = state.fallbacks;
        let counts = [(missing, "missing"), (damaged, "damaged")].into_iter().filter(|(count, _)| *count > 0);
        let said: Vec<_> = counts.map(|(count, word)| format!("{} {word}", output::count(count, "time"))).collect();
        if !said.is_empty() {
            output::tell!("warning: in the repository {} objects were {}: read from another repository", state.url, said.join(" and "));
        }
    }
}

async fn known_cluster(cluster: &ClusterConfig, store: SharedStore) -> repository::Result<ClusterRepository> {
    // Of several repositories each has shown that it agrees, or will before it is used: those that answer are enough here.
    let identities = match store.demanding(Proof::Reachable) {
        Some(store) => Repository::open(store).await?.identities(&cluster.name).await?,
        None => Repository::open(store.clone()).await?.identities(&cluster.name).await?,
    };
    let repository = Repository::reached(store);
    let identity = identities.into_iter().next_back();
    let unknown = || repository::Error::UnknownCluster { url: repository.url(), cluster: cluster.name.to_string() };
    let identity = identity.ok_or_else(unknown)?;
    let repository = ClusterRepository::new(repository, cluster.name.clone(), identity, cluster.compression_level)
        .with_wal_level(cluster.wal_compression_level)
        .with_encryption(keys(cluster)?);
    repository.check_form()?;
    Ok(repository)
}

/// The keys, if the configuration has any.
pub fn keys(cluster: &ClusterConfig) -> repository::Result<Option<Arc<Encryption>>> {
    if let Some(file) = cluster.encryption.as_ref().and_then(|config| config.identity_file.as_ref()) {
        warn_of_readers(file);
    }
    Encryption::of(cluster).map_err(repository::Error::keys)
}

/// What the repository holds; what cannot be believed is told on standard error and left out.
pub async fn catalog(repository: &ClusterRepository) -> Result<Catalog> {
    let loaded = repository.load_catalog().await.context("read the catalog")?;
    tell_loaded(&loaded);
    Ok(loaded.catalog)
}

/// Tells what of the catalog could not be used.
pub fn tell_loaded(loaded: &LoadedCatalog) {
    for damaged in &loaded.damaged {
        output::tell!("warning: {} is damaged and left out: {}", damaged.key, damaged.reason);
    }
    if loaded.foreign > 0 {
        let objects = output::count(loaded.foreign, "object");
        output::tell!("warning: {objects} in the archive not of Walkeep's making; left alone");
    }
}

/// Tells which digests of the index could not be used.
pub fn tell_damaged(index: &Index) {
    for damaged in index.damaged() {
        output::tell!(
            "warning: {} cannot be believed ({}): read from the WAL instead; `walkeep index --rebuild` mends it",
            damaged.key,
            damaged.reason
        );
    }
}

/// How to reach the server; an error is one of configuration.
pub fn connection(cluster: &ClusterConfig) -> Result<ConnectionParams, Failure> {
    let env = |name: &str| std::env::var(name).ok();
    let params = ConnectionParams::parse(cluster.connection.reveal(), &env);
    params.with_context(|| format!("[cluster.{}] connection", cluster.name)).map_err(Failure::usage)
}

/// Fires at SIGINT or SIGTERM; a second one leaves at once.
pub fn stop_on_signals() -> Result<CancellationToken> {
    use tokio::signal::unix::{SignalKind, signal};
    let token = CancellationToken::new();
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let fired = token.clone();
    tokio::spawn(async move {
        for first in [true, false] {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if first {
                fired.cancel();
            } else {
                std::process::exit(1);
            }
        }
    });
    Ok(token)
}

/// Whether an agent answers on the cluster's socket.
pub async fn agent_answers(cluster: &ClusterConfig) -> bool {
    matches!(call_agent(cluster, Verb::Ping).await, Some(Response::Done))
}

/// What the agent on the cluster's socket says of itself; `None` if none answers, and nothing within if it says nothing, as an older one does.
pub async fn ask_agent(cluster: &ClusterConfig) -> Option<Option<Heard>> {
    match call_agent(cluster, Verb::Status).await {
        Some(Response::Told { text }) => Some(serde_json::from_str(&text).ok()),
        _ => agent_answers(cluster).await.then_some(None),
    }
}

async fn call_agent(cluster: &ClusterConfig, verb: Verb) -> Option<Response> {
    let (socket, name) = (cluster.socket.clone(), cluster.name.to_string());
    let asked = tokio::task::spawn_blocking(move || {
        let request = walkeep_protocol::Request { cluster: Some(name), verb };
        walkeep_protocol::call(&socket, &request, std::time::Instant::now() + Duration::from_secs(3))
    });
    asked.await.ok()?.ok()
}
