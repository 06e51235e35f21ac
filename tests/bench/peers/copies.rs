//! Plain copies: what the disk, the network and the starting of processes cost before any tool does its work. No order, no proof, no fsync.

use std::path::{Path, PathBuf};

use walkeep_tests::postgres::client;
use walkeep_tests::s3::{ACCESS_KEY, REGION, SECRET_KEY};
use walkeep_tests::{Cluster, S3Server};

use crate::tool::{Place, Tool, rclone};

/// What a copy of a data directory leaves out, as globs of a shell's `case`.
const LEFT_OUT: &str = "pg_wal|postmaster.pid";

/// `/bin/true`.
#[derive(Debug)]
pub struct Nothing(Place);

impl Nothing {
    /// It needs nothing.
    pub fn new(place: Place) -> Self {
        Self(place)
    }
}

impl Tool for Nothing {
    fn place(&self) -> &Place {
        &self.0
    }

    fn archive(&self) -> Option<String> {
        Some("/bin/true %p".to_owned())
    }

    fn fetch(&self) -> Option<String> {
        Some("/bin/true %f %p".to_owned())
    }
}

/// `cp`.
#[derive(Debug)]
pub struct Copy {
    place: Place,
    data: PathBuf,
}

impl Copy {
    /// Of this data directory.
    pub fn new(place: Place, data: &Path) -> Self {
        Self { place, data: data.to_owned() }
    }

    fn repository(&self) -> String {
        folder(&self.place).display().to_string()
    }
}

impl Tool for Copy {
    fn place(&self) -> &Place {
        &self.place
    }

    fn archive(&self) -> Option<String> {
        Some(format!("cp %p {}/%f", self.repository()))
    }

    fn fetch(&self) -> Option<String> {
        Some(format!("cp {}/%f %p", self.repository()))
    }

    fn full(&self) -> Option<String> {
        let copy = format!("for e in *; do case $e in {LEFT_OUT}) ;; *) cp -a $e {0}/b/ || exit 1 ;; esac; done", self.repository());
        Some(format!("mkdir -p {0}/b && cd {1} && {copy}", self.repository(), self.data.display()))
    }

    fn restore(&self, to: &Path) -> Option<String> {
        Some(format!("cp -a {}/b/. {}/", self.repository(), to.display()))
    }
}

/// `pg_basebackup`, plain: what PostgreSQL itself does.
#[derive(Debug)]
pub struct BaseBackup {
    place: Place,
    line: Option<String>,
}

impl BaseBackup {
    /// Of this server.
    pub fn new(place: Place, server: Option<&Cluster>) -> Self {
        let line = server.map(|server| {
            let program = client(server.version(), "pg_basebackup");
            format!("{} -h {} -p {} -U postgres -c fast -X stream", program.display(), server.socket_dir().display(), server.port())
        });
        Self { place, line }
    }
}

impl Tool for BaseBackup {
    fn place(&self) -> &Place {
        &self.place
    }

    fn full(&self) -> Option<String> {
        self.line.as_ref().map(|line| format!("{line} -D {}/b", folder(&self.place).display()))
    }
}

/// `rclone copy`, four files at a time: of WAL the first call copies all there is, and the others find it done.
#[derive(Debug)]
pub struct Rclone {
    place: Place,
    data: PathBuf,
    scratch: walkeep_tests::Scratch,
}

impl Rclone {
    /// Of this data directory.
    pub fn new(place: Place, data: &Path) -> Self {
        Self { place, data: data.to_owned(), scratch: walkeep_tests::Scratch::new() }
    }

    fn line(&self, args: &str) -> String {
        format!("{} copy {args} --transfers 4 --no-check-dest", rclone().display())
    }

    fn bucket(&self) -> String {
        match &self.place {
            Place::Bucket(bucket) => format!("s:{}", bucket.name),
            Place::Folder(_) => unreachable!("rclone is given buckets only"),
        }
    }
}

impl Tool for Rclone {
    fn place(&self) -> &Place {
        &self.place
    }

    fn archive(&self) -> Option<String> {
        let all = self.line(&format!("pg_wal {} --exclude 'archive_status/**'", self.bucket()));
        let done = self.scratch.join("done");
        Some(format!("test -e {0} || {{ {all} && touch {0}; }}", done.display()))
    }

    fn fetch(&self) -> Option<String> {
        let here = self.scratch.join("in");
        let all = self.line(&format!("{} {}", self.bucket(), here.display()));
        Some(format!("test -e {0} || {all}; mv {0}/%f %p", here.display()))
    }

    fn full(&self) -> Option<String> {
        let left_out: String = LEFT_OUT.split('|').map(|name| format!(" --exclude {name} --exclude '{name}/**'")).collect();
        Some(self.line(&format!("{} {}/b{left_out}", self.data.display(), self.bucket())))
    }

    fn restore(&self, to: &Path) -> Option<String> {
        Some(self.line(&format!("{}/b {}", self.bucket(), to.display())))
    }

    fn environment(&self) -> Vec<(String, String)> {
        let server = S3Server::get();
        let (endpoint, ca) = (server.https_endpoint(), server.ca().display().to_string());
        let variables = [
            ("RCLONE_CONFIG", "/dev/null"),
            ("RCLONE_CONFIG_S_TYPE", "s3"),
            ("RCLONE_CONFIG_S_PROVIDER", "SeaweedFS"),
            ("RCLONE_CONFIG_S_ENDPOINT", &endpoint),
            ("RCLONE_CONFIG_S_REGION", REGION),
            ("RCLONE_CONFIG_S_ACCESS_KEY_ID", ACCESS_KEY),
            ("RCLONE_CONFIG_S_SECRET_ACCESS_KEY", SECRET_KEY),
            ("RCLONE_CA_CERT", &ca),
            ("RCLONE_S3_NO_CHECK_BUCKET", "true"),
            ("RCLONE_S3_UPLOAD_CUTOFF", "200M"),
        ];
        variables.map(|(name, value)| (name.to_owned(), value.to_owned())).into()
    }

    fn fetch_anew(&mut self) {
        let _ = std::fs::remove_dir_all(self.scratch.join("in"));
    }
}

fn folder(place: &Place) -> PathBuf {
    match place {
        Place::Folder(scratch) => scratch.join("repo"),
        Place::Bucket(_) => unreachable!("plain copies are given folders only"),
    }
}
