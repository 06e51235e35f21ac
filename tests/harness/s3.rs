//! The S3 server of the tests: SeaweedFS, one for each test process, started by the first test that asks for it.
//!
//! It runs below a small shell that waits for the end of a pipe from the test process: whatever ends that process, the shell then kills
//! the server and removes its data. (A static is never dropped, and a death signal would not remove anything.)

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::ports::Port;
use crate::proxy::FaultProxy;
use crate::{Scratch, cache, process, try_wait_for, user};

/// The region of every bucket.
pub const REGION: &str = "us-east-1";
/// The key id the server knows.
pub const ACCESS_KEY: &str = "walkeeptest";
/// Its secret. Tests look for it where it must not appear.
pub const SECRET_KEY: &str = "walkeeptestSENTINELsecret";

/// Keys that may do only what a policy of `packaging/iam` allows, in a bucket of their own, below [`LEAST_PREFIX`]. One test each: the bucket is
/// there once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Least {
    /// `s3-policy.json`: put, get, list.
    Keeps,
    /// `s3-policy-with-cleanup.json`: also deletes scratch objects and parts.
    CleansUp,
    /// `s3-policy.json` once more, in the bucket of [`Self::Expires`].
    Waits,
    /// `s3-policy-expire.json`: also deletes everything below the prefix.
    Expires,
    /// `s3-policy-restore.json`: only reads, in the bucket of [`Self::Expires`].
    Restores,
}

/// The prefix that the policies are for.
pub const LEAST_PREFIX: &str = "production/wal";

impl Least {
    const ALL: [Self; 5] = [Self::Keeps, Self::CleansUp, Self::Waits, Self::Expires, Self::Restores];

    /// The key id; also the policy's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Keeps => "least-keeps",
            Self::CleansUp => "least-cleans-up",
            Self::Waits => "least-waits",
            Self::Expires => "least-expires",
            Self::Restores => "least-restores",
        }
    }

    /// The bucket's name.
    pub fn bucket_name(self) -> &'static str {
        match self {
            Self::Waits | Self::Restores => Self::Expires.name(),
            other => other.name(),
        }
    }

    /// The policy as it is shipped, for this bucket and prefix.
    pub fn policy(self) -> String {
        let text = match self {
            Self::Keeps | Self::Waits => include_str!("../../packaging/iam/s3-policy.json"),
            Self::CleansUp => include_str!("../../packaging/iam/s3-policy-with-cleanup.json"),
            Self::Expires => include_str!("../../packaging/iam/s3-policy-expire.json"),
            Self::Restores => include_str!("../../packaging/iam/s3-policy-restore.json"),
        };
        text.replace("BUCKET", self.bucket_name()).replace("PREFIX", LEAST_PREFIX)
    }

    /// The bucket, made here by somebody who may.
    #[track_caller]
    pub fn bucket(self) -> Bucket {
        let name = self.bucket_name().to_owned();
        curl(&S3Server::get().endpoint(), "PUT", &format!("/{name}"), &[], None).expect("create a bucket");
        Bucket { name }
    }

    /// The environment of whoever has these keys.
    pub fn credentials(self) -> [(String, String); 2] {
        [("AWS_ACCESS_KEY_ID".to_owned(), self.name().to_owned()), ("AWS_SECRET_ACCESS_KEY".to_owned(), SECRET_KEY.to_owned())]
    }
}

const START: Duration = Duration::from_secs(30);

/// The server.
#[derive(Debug)]
pub struct S3Server {
    http: Port,
    https: Port,
    folder: PathBuf,
    _others: Vec<Port>,
    _keeper: Child,
}

/// A bucket, one for each test that asks.
#[derive(Debug, Clone)]
pub struct Bucket {
    /// Its name.
    pub name: String,
}

impl S3Server {
    /// The server of this test process.
    #[track_caller]
    pub fn get() -> &'static Self {
        // A failure is kept as well: the tests after the first do not wait for it again.
        static SERVER: OnceLock<Result<S3Server, String>> = OnceLock::new();
        match SERVER.get_or_init(|| Self::start().map_err(|error| format!("{error:#}"))) {
            Ok(server) => server,
            Err(error) => panic!("start the S3 server (run tests/setup.sh): {error}"),
        }
    }

    /// `http://127.0.0.1:PORT`.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.http.number())
    }

    /// `https://localhost:PORT`, with a certificate of [`S3Server::ca`].
    pub fn https_endpoint(&self) -> String {
        format!("https://localhost:{}", self.https.number())
    }

    /// The certificate of the server's own authority, in PEM.
    pub fn ca(&self) -> PathBuf {
        self.folder.join("tls/ca.crt")
    }

    /// The certificate that it signed, for loopback and this host's name, and its key.
    pub fn certificate(&self) -> (PathBuf, PathBuf) {
        (self.folder.join("tls/s.crt"), self.folder.join("tls/s.key"))
    }

    /// The HTTP port.
    pub fn port(&self) -> u16 {
        self.http.number()
    }

    /// A new proxy in front of the server. Outages are the proxy's ([`FaultProxy::close`]): the server is shared by all tests.
    #[track_caller]
    pub fn proxy(&self) -> FaultProxy {
        FaultProxy::to(self.port())
    }

    /// A new, empty bucket.
    #[track_caller]
    pub fn bucket(&self) -> Bucket {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let name = format!("test-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        curl(&self.endpoint(), "PUT", &format!("/{name}"), &[], None).expect("create a bucket");
        Bucket { name }
    }

    /// A new bucket that keeps versions, and in which objects can be locked.
    #[track_caller]
    pub fn locking_bucket(&self) -> Bucket {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let name = format!("locking-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let lock = "x-amz-bucket-object-lock-enabled: true";
        curl_with(&self.endpoint(), "PUT", &format!("/{name}"), &[], None, &[lock]).expect("create a bucket");
        Bucket { name }
    }

    fn start() -> Result<Self> {
        let weed = newest_weed()?;
        // Kept: the shell that ends the server removes it.
        let scratch = Scratch::new();
        let folder = scratch.path().to_owned();
        let data = scratch.dir("data");
        make_certificates(&scratch.dir("tls"))?;
        let mut identities = vec![serde_json::json!({
            "name": "walkeep",
            "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        })];
        identities.extend(Least::ALL.map(|least| {
            serde_json::json!({
                "name": least.name(),
                "credentials": [{"accessKey": least.name(), "secretKey": SECRET_KEY}],
                "actions": [],
                "policyNames": [least.name()],
            })
        }));
        let policies = Least::ALL.map(|least| serde_json::json!({"name": least.name(), "content": least.policy()}));
        let identities = serde_json::json!({"identities": identities, "policies": policies});
        let config = scratch.write("s3.json", identities.to_string(), 0o600);
        // Each bucket is a collection; seven volumes for each, as is usual, would soon be all that fit.
        scratch.write("master.toml", "[master.volume_growth]\ncopy_1 = 1\n", 0o644);

        let [http, https, master, volume, filer] = std::array::from_fn(|_| Port::free_with_grpc());
        let mut server = user::command_with(weed, "KILL", None);
        server.args(["server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.telemetry=false", "-filer", "-s3"]);
        server.args(["-s3.port.iceberg=0", "-s3.port.lance=0", "-s3.autoCreateBucket=false"]);
        server.args(["-volume.max=10000", "-master.volumeSizeLimitMB=256", "-volume.minFreeSpace=100MiB"]);
        server.arg(format!("-dir={}", data.display())).arg(format!("-s3.config={}", config.display()));
        server.arg(format!("-s3.cert.file={}", folder.join("tls/s.crt").display()));
        server.arg(format!("-s3.key.file={}", folder.join("tls/s.key").display()));
        let ports =
            [("s3.port", &http), ("s3.port.https", &https), ("master.port", &master), ("volume.port", &volume), ("filer.port", &filer)];
        for (name, port) in ports {
            server.arg(format!("-{name}={}", port.number()));
        }

        let log_path = folder.join("log");
        let log = File::create(&log_path)?;
        // Its own sockets lie in /tmp, named after ports.
        let numbers = [&http, &master, &volume, &filer].map(Port::number);
        let sockets = numbers.map(|port| format!("/tmp/seaweedfs-*-{port}.sock /tmp/seaweedfs-*-{}.sock", port + 10_000));
        let script = r#"cd "$1" || exit; s=$2; shift 2; "$@" & p=$!; cat > /dev/null; kill -s KILL $p; wait $p; rm -rf "$PWD" $s"#;
        let mut keeper = Command::new("sh");
        keeper.args(["-c", script, "sh"]).arg(&folder).arg(sockets.join(" ")).arg(server.get_program()).args(server.get_args());
        keeper.env_clear().stdin(Stdio::piped()).stdout(log.try_clone()?).stderr(log).process_group(0);
        user::clean_environment(&mut keeper);
        keeper.env("WEED_S3_SSE_KEY", "walkeep");
        let keeper = keeper.spawn().context("start sh")?;
        std::mem::forget(scratch);

        let started = Self { http, https, folder, _others: vec![master, volume, filer], _keeper: keeper };
        let mut last = String::new();
        let ready = || {
            let made = curl(&started.endpoint(), "PUT", "/ready", &[], None);
            let put = made.and_then(|_| curl(&started.endpoint(), "PUT", "/ready/probe", &[], Some(b"1")));
            put.map_err(|error| last = format!("{error:#}")).ok()
        };
        match try_wait_for(START, ready) {
            Some(_) => Ok(started),
            None => bail!("{last} after {START:?}; its log ends\n{}", process::tail(&process::read_log(&log_path))),
        }
    }
}

impl Bucket {
    /// Puts an object past every proxy, over what is there.
    #[track_caller]
    pub fn put(&self, key: &str, body: &[u8]) {
        curl(&S3Server::get().endpoint(), "PUT", &self.path(key), &[], Some(body)).expect("put an object");
    }

    /// An object's bytes.
    #[track_caller]
    pub fn get(&self, key: &str) -> Vec<u8> {
        curl(&S3Server::get().endpoint(), "GET", &self.path(key), &[], None).expect("get an object")
    }

    /// Deletes an object.
    #[track_caller]
    pub fn delete(&self, key: &str) {
        curl(&S3Server::get().endpoint(), "DELETE", &self.path(key), &[], None).expect("delete an object");
    }

    /// Removes every version of an object for good, if the server lets that be done.
    pub fn remove_versions(&self, key: &str) -> Result<()> {
        let endpoint = S3Server::get().endpoint();
        let text = curl(&endpoint, "GET", &format!("/{}", self.name), &[("prefix", key), ("versions", "")], None)?;
        let text = String::from_utf8_lossy(&text).into_owned();
        for version in between(&text, "<Version>", "</Version>") {
            if between(version, "<Key>", "</Key>").next() == Some(key) {
                let id = between(version, "<VersionId>", "</VersionId>").next().unwrap_or_default();
                curl(&endpoint, "DELETE", &self.path(key), &[("versionId", id)], None)?;
            }
        }
        Ok(())
    }

    /// Deletes it with everything in it.
    #[track_caller]
    pub fn remove(&self) {
        curl(&S3Server::get().endpoint(), "DELETE", &format!("/{}", self.name), &[], None).expect("delete a bucket");
    }

    /// The keys that begin with `prefix`, in order, with the objects' sizes.
    #[track_caller]
    pub fn list(&self, prefix: &str) -> Vec<(String, u64)> {
        let mut found = Vec::new();
        let mut after = String::new();
        loop {
            // In the order that the signature wants them in.
            let query = [("list-type", "2"), ("prefix", prefix), ("start-after", &after)];
            let text = curl(&S3Server::get().endpoint(), "GET", &format!("/{}", self.name), &query, None).expect("list a bucket");
            let text = String::from_utf8_lossy(&text);
            for entry in between(&text, "<Contents>", "</Contents>") {
                let key = between(entry, "<Key>", "</Key>").next().unwrap_or_default();
                let key = key.replace("&lt;", "<").replace("&gt;", ">").replace("&#34;", "\"").replace("&#39;", "'").replace("&amp;", "&");
                let size = between(entry, "<Size>", "</Size>").next().and_then(|size| size.parse().ok()).unwrap_or(0);
                found.push((key, size));
            }
            if !text.contains("<IsTruncated>true</IsTruncated>") {
                return found;
            }
            after = found.last().map(|(key, _)| key.clone()).unwrap_or_default();
        }
    }

    fn path(&self, key: &str) -> String {
        format!("/{}/{}", self.name, encode(key, "/"))
    }
}

/// Deletes what lies at this encoded path (`/bucket/key`) of a server with the test server's credentials, if anything does.
pub(crate) fn delete_at(endpoint: &str, path: &str) -> Result<()> {
    curl(endpoint, "DELETE", path, &[], None).map(drop)
}

/// One signed request, by the curl program, which can sign.
fn curl(endpoint: &str, method: &str, path: &str, query: &[(&str, &str)], body: Option<&[u8]>) -> Result<Vec<u8>> {
    curl_with(endpoint, method, path, query, body, &[])
}

fn curl_with(endpoint: &str, method: &str, path: &str, query: &[(&str, &str)], body: Option<&[u8]>, headers: &[&str]) -> Result<Vec<u8>> {
    let query: Vec<_> = query.iter().map(|(name, value)| format!("{name}={}", encode(value, ""))).collect();
    let url = format!("{endpoint}{path}{}{}", if query.is_empty() { "" } else { "?" }, query.join("&"));
    let mut command = Command::new("curl");
    command.args(["-q", "-sS", "--noproxy", "*", "--max-time", "60", "--aws-sigv4", &format!("aws:amz:{REGION}:s3")]);
    command.args(["--user", &format!("{ACCESS_KEY}:{SECRET_KEY}"), "-H", "x-amz-content-sha256: UNSIGNED-PAYLOAD"]);
    command.args(["-X", method, "-w", "\n%{http_code}", &url]);
    command.args(headers.iter().flat_map(|header| ["-H", header]));
    let mut file = tempfile::NamedTempFile::new()?;
    if let Some(body) = body {
        std::io::Write::write_all(&mut file, body)?;
        command.arg("--data-binary").arg(format!("@{}", file.path().display())).args(["-H", "Content-Type: application/octet-stream"]);
    }
    let output = command.stdin(Stdio::null()).output().context("start curl")?;
    let end = output.stdout.iter().rposition(|byte| *byte == b'\n').unwrap_or(0);
    let (answer, status) = output.stdout.split_at(end);
    match status {
        [b'\n', b'2', ..] => Ok(answer.to_vec()),
        _ => bail!(
            "{method} {path}: {}{} {}",
            String::from_utf8_lossy(&output.stderr),
            String::from_utf8_lossy(status).trim(),
            String::from_utf8_lossy(answer)
        ),
    }
}

/// Percent-encodes everything but plain characters and those of `keep`.
fn encode(text: &str, keep: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) || keep.as_bytes().contains(&byte);
    text.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

/// The texts between `open` and the next `close`.
fn between<'a>(text: &'a str, open: &'a str, close: &'a str) -> impl Iterator<Item = &'a str> {
    text.split(open).skip(1).filter_map(move |rest| rest.split_once(close).map(|(inner, _)| inner))
}

fn newest_weed() -> Result<PathBuf> {
    let folder = cache().join("s3");
    let found = std::fs::read_dir(&folder).into_iter().flatten().flatten().map(|entry| entry.path().join("bin/weed"));
    found.filter(|weed| weed.exists()).max().with_context(|| format!("no weed in {}", folder.display()))
}

fn make_certificates(folder: &Path) -> Result<()> {
    let openssl = |args: &[&str]| process::run(user::command("openssl").current_dir(folder).args(args));
    let extensions = folder.join("names");
    let host = process::run(&mut Command::new("hostname"))?;
    std::fs::write(&extensions, format!("subjectAltName=DNS:localhost,DNS:*.localhost,DNS:{},IP:127.0.0.1\n", host.trim()))?;
    let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
    openssl(&[&["req", "-x509", "-keyout", "ca.key", "-out", "ca.crt", "-days", "30", "-subj", "/CN=walkeep tests"], &key[..]].concat())?;
    openssl(&[&["req", "-keyout", "s.key", "-out", "s.csr", "-subj", "/CN=localhost"], &key[..]].concat())?;
    let sign = "x509 -req -in s.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 30 -out s.crt -extfile names";
    openssl(&sign.split(' ').collect::<Vec<_>>())?;
    Ok(())
}
