//! Objects in an S3 bucket, of AWS or of a server that speaks like it.
//!
//! What is relied on: a put with `If-None-Match: *` creates or is refused (servers that ignore it are found out by [`Store::probe`]),
//! a get after a put sees it. What is not: ETags (they are no hashes). Listings are no proof that something is
//! absent, and objects' times decide only what is old enough to be removed, with days to spare.
//!
//! Every call has one deadline over all its tries. A put whose answer was lost is tried again and meets its own object: then the bytes
//! decide. A body that came short is fetched again.

mod body;
pub mod config;
mod credentials;
mod errors;
mod listing;
mod locks;
mod noticing;
mod past;
mod placing;
mod thaw;
mod tls;

use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use aws_sdk_s3::config::retry::{RetryConfig, RetryPartition};
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{
    BehaviorVersion, IdentityCache, Region, RequestChecksumCalculation, ResponseChecksumValidation, SharedHttpClient,
};
use aws_sdk_s3::operation::get_object::GetObjectOutput;
use aws_sdk_s3::operation::list_objects_v2::ListObjectsV2Output;
use aws_sdk_s3::types::{ChecksumMode, Delete, EncodingType, ObjectIdentifier, ServerSideEncryption};
use bytes::Bytes;

use crate::{Error, ErrorKind, Key, ListRequest, Noticed, Page, Probed, Put, Readiness, Result, Store, Thaw};
use body::collect;
pub use config::{Credentials, S3Options, Secret, Sse, Timeouts};
use credentials::Refreshing;
use errors::{Failure, RetryMore};
use listing::From;
use noticing::Noticing;
pub use past::PastS3Store;
pub use placing::{Lock, LockMode, Locked, Placement, Placing};

/// The most keys that one request removes (S3's DeleteObjects).
const BATCH: usize = 1000;

/// A store in an S3 bucket.
pub struct S3Store {
    client: aws_sdk_s3::Client,
    credentials: Refreshing,
    options: S3Options,
    /// The options' prefix, empty or ending with `/`.
    prefix: String,
    /// By TLS, and with a checksum.
    body_is_safe: bool,
    noticing: Noticing,
}

impl S3Store {
    /// Prepares the store. Asks nobody, except for the region where AWS's chain has to find it: that the bucket can be reached is the
    /// business of [`Store::probe`].
    ///
    /// Fails with [`ErrorKind::Misconfigured`] if the options contradict themselves, name an unreadable CA file, or no region can be found.
    pub async fn open(options: S3Options) -> Result<Self> {
        let unusable = |cause: &str| Error::at(ErrorKind::Misconfigured, "open", url(&options)).because(cause.to_owned());
        let prefix = options.prefix.trim_matches('/').to_owned();
        if options.bucket.is_empty() {
            return Err(unusable("the bucket's name is empty"));
        }
        if !prefix.is_empty() && prefix.parse::<Key>().is_err() {
            return Err(unusable("the prefix may contain only A-Z a-z 0-9 . _ - and single slashes"));
        }
        let secure = match &options.endpoint {
            Some(endpoint) if endpoint.starts_with("http://") => false,
            Some(endpoint) if !endpoint.starts_with("https://") => {
                return Err(unusable("the endpoint must begin with https:// or http://"));
            }
            _ => true,
        };
        let http = if secure { tls::client(options.ca_file.as_deref())? } else { tls::plain_client()? };
        // Not the store's authority: token services have public certificates.
        let public = tls::public_client()?;
        let region = match region(&options, &public).await {
            Some(region) => region,
            None => return Err(unusable("no region is configured and none was found in the environment or the profile")),
        };
        let credentials = Refreshing::new(options.credentials.clone(), region.clone(), public);
        let noticing = Noticing::default();
        let client = client(&options, http, region, (credentials.clone(), noticing.clone()));
        let prefix = if prefix.is_empty() { prefix } else { prefix + "/" };
        let body_is_safe = secure && options.send_checksums;
        Ok(Self { client, credentials, options, prefix, body_is_safe, noticing })
    }

    fn name(&self, key: &Key) -> String {
        format!("{}{key}", self.prefix)
    }

    /// Runs a call to its deadline and puts its failure into words.
    async fn call<T>(&self, action: &'static str, place: &str, call: impl Future<Output = std::result::Result<T, Failure>>) -> Result<T> {
        let deadline = self.options.timeouts.operation;
        let outcome = tokio::time::timeout(deadline, call).await;
        outcome
            .unwrap_or_else(|_| Err(Failure::new(ErrorKind::Transient, format!("not done within {deadline:?}"))))
            .map_err(|failure| Error::at(failure.kind, action, place).because(failure))
    }

    /// Runs a request, and once more with new keys if those at hand were refused and others can be had.
    async fn request<T, R>(&self, request: impl Fn() -> R) -> std::result::Result<T, Failure>
    where
        R: Future<Output = std::result::Result<T, Failure>>,
    {
        match request().await {
            Err(failure) if failure.is_about_keys() && self.credentials.refuse().await => request().await,
            Err(failure) if failure.kind == ErrorKind::NoCredentials => Err(failure.reworded(self.credentials.missing())),
            outcome => outcome,
        }
    }

    async fn create(&self, key: &Key, body: Bytes) -> std::result::Result<Put, Failure> {
        // More than once only if the object that was in the way is gone when looked at.
        for _ in 0..3 {
            match self.request(|| self.put_once(key, body.clone())).await {
                Ok(()) => return Ok(Put::Created),
                Err(failure) if failure.is_precondition() => {}
                Err(failure) => return Err(failure),
            }
            match self.read(key, None, None).await {
                Ok(there) if there == body => return Ok(Put::AlreadySame),
                Ok(_) => return Err(Failure::new(ErrorKind::AlreadyExists, "its bytes differ from those at hand")),
                Err(failure) if failure.kind == ErrorKind::NotFound => {}
                Err(failure) => return Err(failure),
            }
        }
        Err(Failure::new(ErrorKind::Transient, "an object with this key is there and is not, again and again"))
    }

    async fn put_once(&self, key: &Key, body: Bytes) -> std::result::Result<(), Failure> {
        let put = self.client.put_object().bucket(&self.options.bucket).key(self.name(key)).if_none_match("*");
        let placement = self.options.placing.as_ref().map(|placing| placing.of(key)).unwrap_or_default();
        let is_locked = placement.lock.is_some();
        let put = placing::place(put, placement, self.options.storage_class.as_deref());
        let put = match &self.options.sse {
            Sse::BucketDefault => put,
            Sse::Aes256 => put.server_side_encryption(ServerSideEncryption::Aes256),
            Sse::Kms { key_id } => put.server_side_encryption(ServerSideEncryption::AwsKms).set_ssekms_key_id(key_id.clone()),
        };
        let put = put.body(body.into()).customize();
        // By TLS nobody can change the body on its way; the checksum tells damage. Hashing it for the signature would say the same once more.
        let put = if self.body_is_safe { put.disable_payload_signing() } else { put };
        put.send().await.map(|_| ()).map_err(|error| match Failure::from_sdk(error) {
            failure if is_locked && failure.is_bad_request() => failure.advised(placing::NEEDS_LOCKS),
            failure => failure,
        })
    }

    /// Up to [`BATCH`] of them; answers those that stay.
    async fn delete_batch(&self, keys: &[Key]) -> std::result::Result<Vec<(Key, Failure)>, Failure> {
        let named = keys.iter().map(|key| ObjectIdentifier::builder().key(self.name(key)).build());
        let named = named.collect::<std::result::Result<Vec<_>, _>>().map_err(Failure::not_sent)?;
        let delete = Delete::builder().set_objects(Some(named)).quiet(true).build().map_err(Failure::not_sent)?;
        let output = self.client.delete_objects().bucket(&self.options.bucket).delete(delete).send().await.map_err(Failure::from_sdk)?;
        let mut stay = Vec::new();
        for error in output.errors() {
            let failure = Failure::of_one(error.code(), error.message());
            if failure.kind == ErrorKind::NotFound {
                continue;
            }
            let key = error.key().and_then(|name| name.strip_prefix(&self.prefix)).and_then(|key| key.parse().ok());
            match key {
                Some(key) => stay.push((key, failure)),
                // An answer that names no key of these says that something else is wrong.
                None => return Err(failure),
            }
        }
        Ok(stay)
    }

    /// Of a certain version, or the present one.
    async fn read(&self, key: &Key, version: Option<&str>, range: Option<&Range<u64>>) -> std::result::Result<Bytes, Failure> {
        let mut pause = Duration::from_millis(50);
        for attempt in 1.. {
            let output = match self.request(|| self.get_once(key, version, range)).await {
                Ok(output) => output,
                Err(failure) if range.is_some() && failure.is_past_the_end() => return Ok(Bytes::new()),
                Err(failure) => return Err(failure),
            };
            // The SDK's own tries end where the body begins.
            match collect(output, range, self.options.timeouts.idle).await {
                Err(failure) if failure.is_about_this_answer() && attempt < self.options.attempts => tokio::time::sleep(pause).await,
                outcome => return outcome,
            }
            pause = (pause * 2).min(Duration::from_secs(2));
        }
        unreachable!("the loop above is endless but for its returns")
    }

    async fn get_once(
        &self,
        key: &Key,
        version: Option<&str>,
        range: Option<&Range<u64>>,
    ) -> std::result::Result<GetObjectOutput, Failure> {
        let get = self.client.get_object().bucket(&self.options.bucket).key(self.name(key)).set_version_id(version.map(str::to_owned));
        let get = match range {
            // Only for whole objects: some servers send the whole object's checksum with a part of it.
            None => get.checksum_mode(ChecksumMode::Enabled),
            // An empty range cannot be said; its first byte asks whether the object is there.
            Some(range) => get.range(format!("bytes={}-{}", range.start, range.end.saturating_sub(1).max(range.start))),
        };
        get.send().await.map_err(Failure::from_sdk)
    }

    async fn list_once(&self, request: &ListRequest, from: &From) -> std::result::Result<ListObjectsV2Output, Failure> {
        let list = self.client.list_objects_v2().bucket(&self.options.bucket).encoding_type(EncodingType::Url);
        let list = list.prefix(format!("{}{}", self.prefix, request.prefix));
        let list = match from {
            From::Start => list,
            From::After(text) => list.start_after(format!("{}{text}", self.prefix)),
            From::Token(token) => list.continuation_token(token),
        };
        let limit = request.limit.and_then(|limit| i32::try_from(limit.clamp(1, 1000)).ok());
        let list = list.set_delimiter(request.by_folder.then(|| "/".to_owned())).set_max_keys(limit);
        list.send().await.map_err(Failure::from_sdk)
    }

    async fn page(&self, request: &ListRequest) -> std::result::Result<Page, Failure> {
        let mut from = From::parse(request.start_after.as_deref());
        // A page may be empty and yet not the last, or hold only what is no object of ours.
        for _ in 0..1000 {
            let output = self.request(|| self.list_once(request, &from)).await?;
            let page = listing::translate(&self.prefix, from.floor(), &output);
            if !output.is_truncated.unwrap_or_default() {
                return Ok(page);
            }
            let next = match output.next_continuation_token {
                Some(token) => From::Token(token),
                None => return Err(Failure::new(ErrorKind::Transient, "the listing is cut and does not say how to go on")),
            };
            if next == from {
                return Err(Failure::new(ErrorKind::Transient, "the listing does not advance"));
            }
            if !page.objects.is_empty() || !page.folders.is_empty() {
                return Ok(Page { next: Some(next.print()), ..page });
            }
            from = next;
        }
        Err(Failure::new(ErrorKind::Transient, "the listing consists of empty pages"))
    }
}

#[async_trait]
impl Store for S3Store {
    fn url(&self) -> String {
        url(&self.options)
    }

    async fn put_if_absent(&self, key: &Key, body: Bytes) -> Result<Put> {
        self.call("put", key.as_str(), self.create(key, body)).await
    }

    async fn get(&self, key: &Key, range: Option<Range<u64>>) -> Result<Bytes> {
        self.call("get", key.as_str(), self.read(key, None, range.as_ref())).await
    }

    async fn list(&self, request: &ListRequest) -> Result<Page> {
        self.call("list", &request.prefix, self.page(request)).await
    }

    async fn delete(&self, key: &Key) -> Result<()> {
        let delete = || async {
            let delete = self.client.delete_object().bucket(&self.options.bucket).key(self.name(key));
            match delete.send().await.map_err(Failure::from_sdk) {
                Err(failure) if failure.kind == ErrorKind::NotFound => Ok(()),
                outcome => outcome.map(|_| ()),
            }
        };
        self.call("delete", key.as_str(), self.request(delete)).await
    }

    async fn delete_many(&self, keys: &[Key]) -> Result<Vec<(Key, Error)>> {
        let mut stay = Vec::new();
        for batch in keys.chunks(BATCH) {
            let place = batch.first().map_or("", Key::as_str);
            let failed = self.call("delete", place, self.request(|| self.delete_batch(batch))).await?;
            stay.extend(failed.into_iter().map(|(key, failure)| {
                let error = Error::at(failure.kind, "delete", key.as_str()).because(failure);
                (key, error)
            }));
        }
        Ok(stay)
    }

    async fn readiness(&self, key: &Key) -> Result<Readiness> {
        self.readiness_of(key, None).await
    }

    async fn thaw(&self, key: &Key, thaw: Thaw) -> Result<Readiness> {
        self.thaw_of(key, None, thaw).await
    }

    async fn probe(&self, scratch: &Key) -> Result<Probed> {
        crate::probe::probe(self, scratch).await
    }

    fn lock_of(&self, key: &Key) -> Option<Lock> {
        self.options.placing.as_ref()?.of(key).lock
    }

    async fn locked(&self, key: &Key) -> Result<Option<Locked>> {
        self.call("look at the lock of", key.as_str(), self.request(|| self.lock_found(key))).await
    }

    async fn lock_anew(&self, key: &Key) -> Result<()> {
        let Some(lock) = self.lock_of(key) else { return Ok(()) };
        self.call("lock", key.as_str(), self.request(|| self.lock_again(key, lock))).await
    }

    async fn noticed(&self) -> Noticed {
        let end = tokio::time::timeout(self.options.timeouts.operation, self.credentials.end()).await;
        Noticed { credentials_end: end.ok().flatten(), ..self.noticing.noticed() }
    }
}

impl fmt::Debug for S3Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The client's own Debug prints its whole configuration.
        f.debug_struct("S3Store").field("url", &self.url()).finish_non_exhaustive()
    }
}

fn url(options: &S3Options) -> String {
    let prefix = options.prefix.trim_matches('/');
    match prefix {
        "" => format!("s3://{}", options.bucket),
        _ => format!("s3://{}/{prefix}", options.bucket),
    }
}

async fn region(options: &S3Options, http: &SharedHttpClient) -> Option<Region> {
    if let Some(region) = &options.region {
        return Some(Region::new(region.clone()));
    }
    if options.endpoint.is_some() {
        // Another server: asking AWS's instance metadata would only cost time.
        let from_environment = ["AWS_REGION", "AWS_DEFAULT_REGION"].iter().find_map(|name| std::env::var(name).ok());
        return Some(Region::new(from_environment.unwrap_or_else(|| "us-east-1".to_owned())));
    }
    let loader = aws_config::defaults(BehaviorVersion::v2026_01_12()).http_client(http.clone()).no_credentials();
    let loader = match &options.credentials {
        Credentials::Profile { name, .. } => loader.profile_name(name),
        _ => loader,
    };
    loader.load().await.region().cloned()
}

fn client(
    options: &S3Options,
    http: SharedHttpClient,
    region: Region,
    (credentials, noticing): (Refreshing, Noticing),
) -> aws_sdk_s3::Client {
    static OPENED: AtomicU64 = AtomicU64::new(0);
    let timeouts = &options.timeouts;
    let timeouts = TimeoutConfig::builder()
        .connect_timeout(timeouts.connect)
        .operation_attempt_timeout(timeouts.attempt)
        .operation_timeout(timeouts.operation)
        .build();
    let retries = RetryConfig::standard().with_max_attempts(options.attempts.max(1)).with_max_backoff(Duration::from_secs(5));
    let checksums =
        if options.send_checksums { RequestChecksumCalculation::WhenSupported } else { RequestChecksumCalculation::WhenRequired };
    let config = aws_sdk_s3::Config::builder()
        .behavior_version(BehaviorVersion::v2026_01_12())
        .http_client(http)
        .region(region)
        .credentials_provider(credentials)
        // They are kept by their provider, which can be told that they were refused.
        .identity_cache(IdentityCache::no_cache())
        .force_path_style(options.path_style.unwrap_or(options.endpoint.is_some()))
        .retry_config(retries)
        // The SDK's budget of retries is per region and process; the trouble of one store must not take another's.
        .retry_partition(RetryPartition::new(format!("walkeep store {}", OPENED.fetch_add(1, Ordering::Relaxed))))
        .retry_classifier(RetryMore)
        .interceptor(noticing)
        .timeout_config(timeouts)
        .request_checksum_calculation(checksums)
        .response_checksum_validation(ResponseChecksumValidation::WhenRequired);
    let config = match &options.endpoint {
        Some(endpoint) => config.endpoint_url(endpoint),
        None => config,
    };
    aws_sdk_s3::Client::from_conf(config.build())
}
