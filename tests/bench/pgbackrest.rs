//! pgBackRest beside us: whole segments by archive_command, on the same S3 server (by TLS: it knows no other way) or in a folder.
#![allow(dead_code)]

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
#[derive(Debug)]
pub struct PgBackRest {
    config: PathBuf,
    scratch: Scratch,
}

/// Where its repository lies.
#[derive(Debug, Clone, Copy)]
pub enum Lies<'a> {
    /// In a bucket.
    In(&'a Bucket),
    /// In a folder.
    Below(&'a Path),
}

impl PgBackRest {
    /// For this server, or for a host without one.
    pub fn new(bucket: &Bucket, cluster: Option<&Cluster>) -> Self {
        Self::with(Lies::In(bucket), cluster.map(Cluster::data), cluster, "zst")
    }

    /// The same for any repository, data directory and compression.
    pub fn with(repository: Lies, data: Option<&Path>, cluster: Option<&Cluster>, compression: &str) -> Self {
        let scratch = Scratch::new();
        let dir = |name: &str| scratch.dir(name).display().to_string();
        let mut text = match repository {
            Lies::In(bucket) => in_bucket(bucket),
            Lies::Below(folder) => format!("[global]\nrepo1-path={}\n", folder.display()),
        };
        text.push_str(&format!(
            "repo1-bundle=y\nrepo1-retention-full=9\nprocess-max=2\ncompress-type={compression}\narchive-async=y\nstart-fast=y\n\
             archive-get-queue-max=512MiB\nspool-path={}\nlock-path={}\nlog-path={}\nlog-level-file=off\nlog-level-console=warn\n[main]\n",
            dir("spool"),
            dir("lock"),
            dir("log"),
        ));
        let data = data.map_or_else(|| scratch.join("data"), Path::to_owned);
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
        self.line("archive-push %p")
    }

    /// One of its commands as a shell has it.
    pub fn line(&self, args: &str) -> String {
        format!("pgbackrest --config={} --stanza=main {args}", self.config.display())
    }

    /// Forgets what it has read ahead, and what it remembers of what it pushed.
    pub fn empty_spool(&self) {
        run(Command::new("sh").args(["-c", r#"rm -rf "$0"/*"#]).arg(self.scratch.join("spool"))).expect("empty an own folder");
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

fn in_bucket(bucket: &Bucket) -> String {
    let server = S3Server::get();
    let port = server.https_endpoint().rsplit(':').next().unwrap_or_default().to_owned();
    format!(
        "[global]\nrepo1-type=s3\nrepo1-s3-bucket={}\nrepo1-s3-endpoint=localhost\nrepo1-storage-host=localhost\nrepo1-storage-port={port}\n\
         repo1-storage-ca-file={}\nrepo1-s3-uri-style=path\nrepo1-s3-region={REGION}\nrepo1-s3-key={ACCESS_KEY}\nrepo1-s3-key-secret={SECRET_KEY}\n\
         repo1-path=/r\n",
        bucket.name,
        server.ca().display(),
    )
}
