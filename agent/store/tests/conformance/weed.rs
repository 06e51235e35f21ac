//! SeaweedFS as an S3 server, one for the whole test run, on free ports of the loopback.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use walkeep_store::s3::{Credentials, Secret};
use walkeep_store::{S3Options, S3Store};

pub const BUCKET: &str = "walkeep";
const ACCESS_KEY: &str = "testkey";
const SECRET_KEY: &str = "testsecrettestsecret";

pub struct Weed {
    pub http: u16,
    pub https: u16,
}

impl Weed {
    /// Options for its bucket, below a prefix that the test has for itself.
    pub fn options(&self, prefix: &str) -> S3Options {
        S3Options {
            prefix: prefix.to_owned(),
            endpoint: Some(format!("http://127.0.0.1:{}", self.http)),
            credentials: credentials(SECRET_KEY),
            ..S3Options::new(BUCKET)
        }
    }

    /// Puts an object under a name that no store would give.
    pub async fn put_foreign(&self, name: &str) {
        self.client().put_object().bucket(BUCKET).key(name).body(b"foreign".to_vec().into()).send().await.unwrap();
    }

    /// A bucket of its own that keeps versions and knows locks.
    pub async fn locking_bucket(&self, name: &str) -> String {
        let name = format!("{name}-{}", std::process::id());
        self.client().create_bucket().bucket(&name).object_lock_enabled_for_bucket(true).send().await.unwrap();
        name
    }

    /// Until when an object is locked.
    pub async fn lock_of(&self, bucket: &str, name: &str) -> Option<std::time::SystemTime> {
        let head = self.client().head_object().bucket(bucket).key(name).send().await.unwrap();
        head.object_lock_retain_until_date().map(|at| std::time::SystemTime::try_from(*at).unwrap())
    }

    /// Removes every version of an object, as a thief with all permissions would.
    pub async fn remove_versions(&self, bucket: &str, name: &str) -> Result<(), String> {
        let listed = self.client().list_object_versions().bucket(bucket).prefix(name).send().await.unwrap();
        for version in listed.versions() {
            let remove = self.client().delete_object().bucket(bucket).key(name).set_version_id(version.version_id().map(str::to_owned));
            remove.send().await.map_err(|error| format!("{error:?}"))?;
        }
        Ok(())
    }

    /// The SDK itself, for what stores do not do.
    fn client(&self) -> aws_sdk_s3::Client {
        use aws_sdk_s3::config::retry::RetryConfig;
        use aws_sdk_s3::config::{BehaviorVersion, Credentials, Region};
        let config = aws_sdk_s3::Config::builder()
            .behavior_version(BehaviorVersion::v2026_01_12())
            .http_client(aws_smithy_http_client::Builder::new().build_http())
            .region(Region::new("us-east-1"))
            .endpoint_url(format!("http://127.0.0.1:{}", self.http))
            .force_path_style(true)
            .retry_config(RetryConfig::disabled())
            .credentials_provider(Credentials::new(ACCESS_KEY, SECRET_KEY, None, None, "test"));
        aws_sdk_s3::Client::from_conf(config.build())
    }

    pub async fn store(&self, prefix: &str) -> S3Store {
        S3Store::open(self.options(prefix)).await.unwrap()
    }
}

pub fn credentials(secret: &str) -> Credentials {
    Credentials::Static { access_key: ACCESS_KEY.to_owned(), secret_key: Secret::new(secret), session_token: None }
}

pub fn tls_fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tls").join(name)
}

/// The server, started at the first call; `None` only if the S3 tests are to be left out.
pub fn server() -> Option<&'static Weed> {
    static SERVER: OnceLock<Weed> = OnceLock::new();
    if std::env::var_os("WALKEEP_SKIP_S3").is_some_and(|value| value == "1") {
        eprintln!("SKIPPED: WALKEEP_SKIP_S3=1, nothing was tested against an S3 server");
        return None;
    }
    Some(SERVER.get_or_init(start))
}

fn start() -> Weed {
    let weed = PathBuf::from(std::env::var_os("WALKEEP_WEED").unwrap_or_default());
    assert!(
        weed.is_file(),
        "no S3 server at {:?}: run tests/setup.sh and export WALKEEP_WEED=$(tests/setup.sh --weed), as `make test` does",
        weed
    );
    // Its own name, for the server outlives any guard of this process and removes the folder itself.
    let folder = tempfile::Builder::new().prefix("walkeep-weed-").tempdir().unwrap().keep();
    fs::create_dir(folder.join("data")).unwrap();
    fs::write(folder.join("s3.json"), s3_json()).unwrap();
    let [master, volume, filer, http, https] = free_ports();
    let arguments = [
        "server".to_owned(),
        format!("-dir={}", folder.join("data").display()),
        "-ip=127.0.0.1".to_owned(),
        "-ip.bind=127.0.0.1".to_owned(),
        "-master.telemetry=false".to_owned(),
        format!("-master.port={master}"),
        format!("-volume.port={volume}"),
        "-volume.max=0".to_owned(),
        "-master.volumeSizeLimitMB=256".to_owned(),
        "-filer".to_owned(),
        format!("-filer.port={filer}"),
        "-s3".to_owned(),
        format!("-s3.port={http}"),
        format!("-s3.port.https={https}"),
        format!("-s3.cert.file={}", tls_fixture("server.crt").display()),
        format!("-s3.key.file={}", tls_fixture("server.key").display()),
        format!("-s3.config={}", folder.join("s3.json").display()),
        "-s3.port.iceberg=0".to_owned(),
        "-s3.port.lance=0".to_owned(),
        "-s3.autoCreateBucket=false".to_owned(),
    ];
    // The shell ends the server and its folder when our end of the pipe closes, however this process dies.
    let script = r#"folder=$1; shift; "$@" >"$folder/log" 2>&1 </dev/null & pid=$!; read -r _; kill "$pid"; wait "$pid"; rm -rf "$folder""#;
    let mut shell = Command::new("sh");
    shell.args(["-c", script, "sh"]).arg(&folder).arg(&weed).args(arguments).env("WEED_S3_SSE_KEY", "test");
    let child = shell.stdin(Stdio::piped()).spawn().unwrap();
    // Kept open as long as this process lives.
    std::mem::forget(child);
    let server = Weed { http, https };
    wait_until_it_serves(&server, &folder);
    server
}

fn s3_json() -> String {
    let identity = |name: &str, key: &str, actions: &str| {
        format!(r#"{{"name":"{name}","credentials":[{{"accessKey":"{key}","secretKey":"{SECRET_KEY}"}}],"actions":[{actions}]}}"#)
    };
    let admin = identity("admin", ACCESS_KEY, r#""Admin","Read","Write","List","Tagging""#);
    let reader = identity("reader", "readerkey", r#""Read","List""#);
    format!(r#"{{"identities":[{admin},{reader}]}}"#)
}

/// Credentials of a user who may only read.
pub fn reader() -> Credentials {
    Credentials::Static { access_key: "readerkey".to_owned(), secret_key: Secret::new(SECRET_KEY), session_token: None }
}

/// Five ports that are free, and so are those 10000 above, which the server takes for gRPC.
fn free_ports() -> [u16; 5] {
    let mut held = Vec::new();
    // Below the kernel's own choice of ports; another test process begins elsewhere.
    for base in (0..500).map(|i| 12000 + (std::process::id() % 500 + i) as u16 % 500 * 20) {
        held.clear();
        for port in base..base + 5 {
            let both = [port, port + 10000].map(|port| TcpListener::bind(("127.0.0.1", port)));
            held.extend(both.into_iter().flatten());
        }
        if held.len() == 10 {
            return [base, base + 1, base + 2, base + 3, base + 4];
        }
    }
    panic!("no free ports");
}

fn wait_until_it_serves(server: &Weed, folder: &Path) {
    let start = Instant::now();
    let log = || fs::read_to_string(folder.join("log")).unwrap_or_default();
    loop {
        assert!(start.elapsed() < Duration::from_secs(60), "the S3 server did not start: {}", log());
        if TcpStream::connect(("127.0.0.1", server.http)).is_ok() && create_bucket(server) {
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// On a thread with a runtime of its own: the caller is inside one.
fn create_bucket(server: &Weed) -> bool {
    let client = server.client();
    let create = async move { client.create_bucket().bucket(BUCKET).send().await.is_ok() };
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    std::thread::spawn(move || runtime().block_on(create)).join().unwrap()
}
