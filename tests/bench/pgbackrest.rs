//! pgBackRest beside us: whole segments by archive_command, switched by archive_timeout, on the same S3 server (by TLS: it knows no other way).

use std::path::{Path, PathBuf};
use std::process::Command;

use walkeep_tests::process::run;
use walkeep_tests::s3::{ACCESS_KEY, REGION, SECRET_KEY};
use walkeep_tests::{Bucket, Cluster, S3Server, Scratch, user};

/// Whether it is installed; a line that says so where it is not.
pub fn installed() -> bool {
    let there = run(Command::new("pgbackrest").arg("version"));
    match &there {
        Ok(version) => println!("beside it: {}", version.trim()),
        Err(_) => println!("SKIPPED pgBackRest: not installed (Debian: apt-get install pgbackrest)"),
    }
    there.is_ok()
}

/// pgBackRest on one host.
pub struct PgBackRest {
    config: PathBuf,
    scratch: Scratch,
}

impl PgBackRest {
    /// For this server, or for a host without one.
    pub fn new(bucket: &Bucket, cluster: Option<&Cluster>) -> Self {
        let scratch = Scratch::new();
        let dir = |name: &str| scratch.dir(name).display().to_string();
        let server = S3Server::get();
        let port = server.https_endpoint().rsplit(':').next().unwrap_or_default().to_owned();
        let mut text = format!(
            "[global]\nrepo1-type=s3\nrepo1-s3-bucket={}\nrepo1-s3-endpoint=localhost\nrepo1-storage-host=localhost\nrepo1-storage-port={port}\n\
             repo1-storage-ca-file={}\nrepo1-s3-uri-style=path\nrepo1-s3-region={REGION}\nrepo1-s3-key={ACCESS_KEY}\nrepo1-s3-key-secret={SECRET_KEY}\n\
             repo1-path=/r\nrepo1-bundle=y\nrepo1-retention-full=9\nprocess-max=2\ncompress-type=zst\narchive-async=y\nstart-fast=y\n\
             spool-path={}\nlock-path={}\nlog-path={}\nlog-level-file=off\nlog-level-console=warn\n[main]\n",
            bucket.name,
            server.ca().display(),
            dir("spool"),
            dir("lock"),
            dir("log"),
        );
        let data = cluster.map_or_else(|| scratch.join("data"), |cluster| cluster.data().to_owned());
        text.push_str(&format!("pg1-path={}\n", data.display()));
        if let Some(cluster) = cluster {
            let (socket, port) = (cluster.socket_dir(), cluster.port());
            text.push_str(&format!("pg1-socket-path={}\npg1-port={port}\npg1-user=postgres\n", socket.display()));
        }
        Self { config: scratch.write("pgbackrest.conf", text, 0o600), scratch }
    }

    /// What its processes can be known by.
    pub fn folder(&self) -> &Path {
        self.scratch.path()
    }

    /// The archive command.
    pub fn archive_command(&self) -> String {
        format!("pgbackrest --config={} --stanza=main archive-push %p", self.config.display())
    }

    /// Runs one of its commands.
    pub fn ok(&self, args: &[&str]) {
        let mut command = user::command("pgbackrest");
        command.arg(format!("--config={}", self.config.display())).arg("--stanza=main").args(args);
        run(&mut command).expect("run pgbackrest");
    }

    /// Restores the newest state, and says where.
    pub fn restore(&self) -> PathBuf {
        let data = self.scratch.dir("data");
        std::fs::set_permissions(&data, std::os::unix::fs::PermissionsExt::from_mode(0o700)).expect("set the mode of an own folder");
        self.ok(&["--archive-mode=off", "restore"]);
        data
    }
}
