//! Credentials that follow their source: the profile's file, the role, the token.
//!
//! The SDK reads the shared files once per provider and keeps what never expires for long. Keys are rotated while the agent runs, so the
//! chain is built anew whenever its answer grows old or the server refused it.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use aws_config::default_provider::credentials::DefaultCredentialsChain;
use aws_config::profile::ProfileFileCredentialsProvider;
use aws_config::provider_config::ProviderConfig;
use aws_credential_types::Credentials as Keys;
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::{self, ProvideCredentials, future};
use aws_runtime::env_config::file::{EnvConfigFileKind, EnvConfigFiles};
use aws_sdk_s3::config::{BehaviorVersion, Region, SharedHttpClient};
use tokio::sync::Mutex;

use super::config::Credentials;

/// Keys without an expiry are asked for again after this time.
const KEEP: Duration = Duration::from_secs(300);
/// Keys with one are renewed so long before it.
const MARGIN: Duration = Duration::from_secs(300);
/// Refused keys are not asked for again sooner than this: a wrong key must not become a storm at the metadata service.
const PAUSE: Duration = Duration::from_secs(2);

/// A provider that asks its source again.
#[derive(Debug, Clone)]
pub(super) struct Refreshing {
    source: Credentials,
    region: Region,
    http: SharedHttpClient,
    held: Arc<Mutex<Option<Held>>>,
}

#[derive(Debug)]
struct Held {
    keys: Keys,
    since: Instant,
    refused: bool,
}

impl Refreshing {
    pub(super) fn new(source: Credentials, region: Region, http: SharedHttpClient) -> Self {
        Self { source, region, http, held: Arc::default() }
    }

    /// Says that the server refused the keys; whether trying again with new ones may help.
    pub(super) async fn refuse(&self) -> bool {
        match (&self.source, self.held.lock().await.as_mut()) {
            (Credentials::Static { .. }, _) | (_, None) => false,
            (_, Some(held)) => {
                // Somebody else's refusal may have renewed them already.
                held.refused |= held.since.elapsed() > PAUSE;
                held.refused
            }
        }
    }

    /// What was looked for in vain, where there are no keys.
    pub(super) fn missing(&self) -> String {
        match &self.source {
            Credentials::Static { .. } => "the configured key is empty".to_owned(),
            Credentials::Profile { name, file: None } => {
                format!(
                    "there is no profile {name:?} with keys in the shared AWS files (~/.aws, AWS_CONFIG_FILE, AWS_SHARED_CREDENTIALS_FILE)"
                )
            }
            Credentials::Profile { name, file: Some(file) } => format!("there is no profile {name:?} with keys in {}", file.display()),
            Credentials::Chain => {
                "none in the environment (AWS_ACCESS_KEY_ID), the shared AWS files, web identity, container or instance roles".to_owned()
            }
        }
    }

    /// Under the lock, so that a hundred calls at once ask the source once.
    async fn keys(&self) -> provider::Result {
        let mut held = self.held.lock().await;
        if let Some(held) = held.as_ref().filter(|held| held.is_fresh()) {
            return Ok(held.keys.clone());
        }
        match self.load().await {
            Ok(keys) => {
                *held = Some(Held { keys: keys.clone(), since: Instant::now(), refused: false });
                Ok(keys)
            }
            // The source is away; what it gave before may do for a while.
            Err(error) => match held.as_ref().filter(|held| !held.refused && !held.has_expired(Duration::ZERO)) {
                Some(held) => {
                    tracing::warn!(error = %error, "could not renew the credentials; the old ones are used until they expire");
                    Ok(held.keys.clone())
                }
                None => Err(error),
            },
        }
    }

    /// When those in use end, renewed where they are due to be; nothing if there are none yet.
    pub(super) async fn end(&self) -> Option<Option<SystemTime>> {
        // Why there are none is told where they are needed.
        let _ = self.keys().await;
        self.held.lock().await.as_ref().map(|held| held.keys.expiry())
    }

    async fn load(&self) -> provider::Result {
        let config = ProviderConfig::without_region()
            .with_behavior_version(Some(BehaviorVersion::v2026_01_12()))
            .with_region(Some(self.region.clone()))
            .with_http_client(self.http.clone());
        match &self.source {
            Credentials::Static { access_key, secret_key, session_token } => {
                let token = session_token.as_ref().map(|token| token.reveal());
                Ok(Keys::new(access_key, secret_key.reveal(), token, None, "walkeep"))
            }
            Credentials::Profile { name, file } => {
                let provider = ProfileFileCredentialsProvider::builder().configure(&config).profile_name(name);
                let provider = match file {
                    Some(file) => provider.profile_files(EnvConfigFiles::builder().with_file(EnvConfigFileKind::Credentials, file).build()),
                    None => provider,
                };
                provider.build().provide_credentials().await
            }
            Credentials::Chain => {
                DefaultCredentialsChain::builder().region(self.region.clone()).configure(config).build().await.provide_credentials().await
            }
        }
    }
}

impl Held {
    fn is_fresh(&self) -> bool {
        let young = self.keys.expiry().is_some() || self.since.elapsed() < KEEP;
        !self.refused && young && !self.has_expired(MARGIN)
    }

    fn has_expired(&self, margin: Duration) -> bool {
        self.keys.expiry().is_some_and(|expiry| SystemTime::now() + margin >= expiry)
    }
}

impl ProvideCredentials for Refreshing {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::new(self.keys())
    }
}

/// Whether nobody has any credentials for us, as opposed to a source that does not answer just now.
pub(super) fn are_missing(error: &CredentialsError) -> bool {
    matches!(error, CredentialsError::CredentialsNotLoaded(_) | CredentialsError::InvalidConfiguration(_))
}
