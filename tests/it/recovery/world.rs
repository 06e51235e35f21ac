//! What the stories recover: a repository with a backup and WAL behind it, written once, and servers restored from it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use walkeep_tests::walkeep::binary;
use walkeep_tests::{Agent, Bucket, Cluster, FaultProxy, Repository, S3Server, Scratch, Walkeep, postgres, process, user, wait_until};

/// Segments with rows behind the backup.
const SEGMENTS: usize = 24;
/// Rows in each of them.
const ROWS: u64 = 500;
/// Rows in each of three parts of the segment behind them, which is not finished.
const TAIL_ROWS: u64 = 100;
pub const LONG: Duration = Duration::from_secs(90);

/// A repository that nobody writes to any more: shared by the stories that only read it.
#[derive(Debug, Clone)]
pub struct World {
    pub version: u32,
    pub bucket: Bucket,
    /// In order; each has rows of its own.
    pub segments: Vec<String>,
    /// What [`Story::rows`] must answer when everything was replayed.
    pub rows: String,
    /// A data directory as `walkeep restore` left it.
    template: PathBuf,
    /// `main/SYSTEM/`.
    root: String,
}

impl World {
    /// The one of this version.
    pub fn of(version: u32) -> Self {
        static WORLDS: Mutex<Option<HashMap<u32, World>>> = Mutex::new(None);
        let mut worlds = WORLDS.lock().unwrap_or_else(PoisonError::into_inner);
        worlds.get_or_insert_default().entry(version).or_insert_with(|| Self::build(Cluster::builder().version(version))).clone()
    }

    /// The one of the default version.
    pub fn get() -> Self {
        Self::of(postgres::default_version())
    }

    pub fn build(kind: postgres::Builder) -> Self {
        let primary = kind.segment_mib(1).archiving().start();
        let bucket = S3Server::get().bucket();
        let mut walkeep = Walkeep::new(&primary, Repository::s3(S3Server::get().endpoint(), &bucket));
        // Finished segments have no parts that could stand in for them.
        walkeep.upload_interval = "1h".to_owned();
        walkeep.write_config();
        primary.archive_by(Some(&walkeep.archive_command()));
        walkeep.ok(&["init"]);
        let agent = walkeep.agent();
        primary.sql("CREATE TABLE t (n int, pad text)");
        walkeep.ok(&["backup"]);
        let fill = || primary.sql(&format!("INSERT INTO t SELECT n, repeat(md5(n::text), 20) FROM generate_series(1, {ROWS}) n"));
        let mut segments = Vec::new();
        for _ in 0..SEGMENTS {
            fill();
            segments.push(primary.switch_wal());
        }
        let last = segments.last().unwrap();
        primary.wait_archived(last, LONG);
        // The end is not finished, and comes in parts: an agent that stops stores what it has.
        let mut agent = Some(agent);
        for _ in 0..3 {
            primary.sql(&format!("INSERT INTO t SELECT n, 'tail' FROM generate_series(1, {TAIL_ROWS}) n"));
            let agent = agent.take().unwrap_or_else(|| walkeep.agent());
            let end: f64 = primary.value("SELECT pg_current_wal_flush_lsn() - '0/0'");
            let received = || agent.metric("walkeep_wal_received_bytes").is_some_and(|at| at >= end);
            wait_until("the tail is received", Duration::from_secs(20), received);
            agent.stop();
        }
        let rows = rows(&primary);
        let root = format!("main/{}/", primary.system_identifier());
        // Not a clean stop: that would finish the segment.
        primary.kill9();
        let scratch = Scratch::new();
        let template = scratch.join("data");
        walkeep.ok(&["restore", "--to", &template.to_string_lossy()]);
        scratch.until_process_ends();
        Self { version: primary.version(), bucket, segments, rows, template, root }
    }

    /// The same in a bucket of its own, to be changed.
    pub fn copied(&self) -> Self {
        let bucket = S3Server::get().bucket();
        let keys = self.bucket.list("");
        std::thread::scope(|scope| {
            for keys in keys.chunks(keys.len().div_ceil(6)) {
                scope.spawn(|| keys.iter().for_each(|(key, _)| bucket.put(key, &self.bucket.get(key))));
            }
        });
        Self { bucket, ..self.clone() }
    }

    /// The objects of the segment that is not finished.
    pub fn parts(&self) -> Vec<String> {
        let last = self.segments.last().unwrap();
        let keys = self.bucket.list(&self.root).into_iter().map(|(key, _)| key);
        // Parts of finished segments may be left.
        keys.filter(|key| key.split_once(".parts/").is_some_and(|(segment, _)| !segment.ends_with(last.as_str()))).collect()
    }

    /// The object of a file.
    pub fn key(&self, file: &str) -> String {
        let (timeline, rest) = file.split_at(8);
        let log = rest.get(..8).filter(|_| !rest.starts_with('.'));
        let folder = log.map(|log| format!("{timeline}/{log}/")).unwrap_or_default();
        format!("{}wal/{folder}{file}{}", self.root, walkeep_tests::keys::suffix())
    }
}

/// Number and sum of the rows.
pub fn rows(cluster: &Cluster) -> String {
    cluster.sql("SELECT count(*), sum(n) FROM t")
}

/// Who fetches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// An agent that runs already.
    Agent,
    /// The fetch service that the shim starts.
    Service,
}

/// A restored server, and Walkeep with a proxy before the repository.
#[derive(Debug)]
pub struct Story {
    pub server: Cluster,
    pub agent: Option<Agent>,
    pub walkeep: Walkeep,
    pub proxy: FaultProxy,
    pub world: World,
    way: Way,
    _data: Scratch,
}

impl Story {
    /// A server that has not been started, whose shim gives up after `patience`.
    pub fn new(world: World, way: Way, patience: &str) -> Self {
        let proxy = S3Server::get().proxy();
        let mut walkeep = Walkeep::offline(Repository::s3(proxy.endpoint(), &world.bucket));
        walkeep.cluster_lines = "stream = false\n".to_owned();
        walkeep.write_config();
        let service = format!("#!/bin/sh\nexec {} \"$@\" --idle 3s\n", binary("walkeep").display());
        walkeep.scratch().write("service.sh", service, 0o755);
        let (server, data) = server(&world);
        let agent = (way == Way::Agent).then(|| walkeep.agent());
        let story = Self { server, agent, walkeep, proxy, world, way, _data: data };
        story.patience(patience);
        story
    }

    /// Another server of the same world beside the first, asking the same Walkeep.
    pub fn another(&self, patience: &str) -> (Cluster, Scratch) {
        let (server, data) = server(&self.world);
        set(&server, "restore_command", &self.restore_command(patience));
        (server, data)
    }

    /// Changes how long the shim tries.
    pub fn patience(&self, patience: &str) {
        self.set("restore_command", &self.restore_command(patience));
    }

    /// The command. Where an agent shall be asked, nothing else can be.
    pub fn restore_command(&self, patience: &str) -> String {
        let service = self.walkeep.scratch().join("service.sh");
        let service = if self.way == Way::Agent { Path::new("/nonexistent/walkeep") } else { &service };
        let (shim, config) = (binary("walkeep-restore-cmd"), self.walkeep.config_path());
        format!("{} --config {} --timeout {patience} --walkeep {} %f %p", shim.display(), config.display(), service.display())
    }

    /// Adds a line to postgresql.auto.conf.
    pub fn set(&self, name: &str, value: &str) {
        set(&self.server, name, value);
    }

    /// Starts the server and waits for nothing.
    pub fn launch(&self) {
        self.launch_also(&self.server);
    }

    /// [`Story::launch`] for another server.
    pub fn launch_also(&self, server: &Cluster) {
        // The service finds its credentials in the server's environment.
        let environment: Vec<_> = self.walkeep.environment.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        server.launch(&environment).unwrap();
    }

    /// Starts the server, which must go down because `file` cannot be fetched, with this exit code of the shim.
    #[track_caller]
    pub fn dies(&self, file: &str, code: u8) {
        let from = self.server.log().len();
        self.launch();
        self.died(from, file, code);
    }

    /// The server must go down because a file whose name begins so cannot be fetched.
    #[track_caller]
    pub fn died(&self, from: usize, file: &str, code: u8) {
        let ended = self.server.wait_end(LONG);
        let log = self.server.log()[from..].to_owned();
        assert!(ended, "the server goes on without {file}:\n{}", process::tail(&log));
        let fatal = log.lines().find(|line| line.contains("FATAL:  could not restore file")).unwrap_or_else(|| panic!("no FATAL:\n{log}"));
        assert!(fatal.contains(&format!("file \"{file}")), "{fatal}\nand not of {file}:\n{log}");
        assert!(fatal.ends_with(&format!("child process exited with exit code {code}")), "{fatal}\n{log}");
        assert!(!log.contains("selected new timeline ID") && !log.contains("recovery complete"), "{log}");
        assert!(!self.server.pg_wal().join("00000003.history").exists());
        // Where not even a segment was asked for, recovery has not begun.
        if file.starts_with("00000001") {
            assert_eq!(self.state(), "in archive recovery");
        }
    }

    /// What pg_control says.
    pub fn state(&self) -> String {
        let mut command = user::command(postgres::client(self.server.version(), "pg_controldata"));
        let text = process::run(command.arg("-D").arg(self.server.data())).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("Database cluster state:"));
        line.unwrap_or_default().trim().to_owned()
    }

    /// Starts the server, which must open with every row, on timeline 2.
    #[track_caller]
    pub fn recovers(&self) {
        self.launch();
        self.opens(&self.server, 2);
    }

    /// A server that was started must open with every row.
    #[track_caller]
    pub fn opens(&self, server: &Cluster, timeline: u32) {
        open(server, timeline);
        assert_eq!(rows(server), self.world.rows, "the server opened with other rows");
    }
}

impl Drop for Story {
    fn drop(&mut self) {
        self.server.kill9();
        for pid in self.services() {
            process::signal(pid, "KILL");
        }
        if std::thread::panicking() {
            let log = self.walkeep.scratch().join("run/main.sock.fetch.log");
            eprintln!("---- the fetch service's log ends\n{}", process::tail(&process::read_log(&log)));
        }
    }
}

/// Waits until the server writes; it must be on this timeline then.
#[track_caller]
pub fn open(server: &Cluster, timeline: u32) {
    let opened = || {
        assert!(server.running(), "the server went down instead of opening:\n{}", process::tail(&server.log()));
        server.try_sql("SELECT pg_is_in_recovery()").is_ok_and(|answer| answer == "f")
    };
    wait_until("the server opens", LONG, opened);
    assert_eq!(server.sql("SELECT left(pg_walfile_name(pg_current_wal_lsn()), 8)"), format!("{timeline:08X}"));
}

fn server(world: &World) -> (Cluster, Scratch) {
    let scratch = Scratch::new();
    let data = scratch.join("data");
    process::run(user::command("cp").args(["-a", "--reflink=auto"]).arg(&world.template).arg(&data)).unwrap();
    let server = Cluster::adopt(world.version, data);
    // The primary kept its archive_command in postgresql.conf.
    set(&server, "archive_command", "");
    (server, scratch)
}

fn set(server: &Cluster, name: &str, value: &str) {
    use std::io::Write;
    let mut file = std::fs::File::options().append(true).open(server.data().join("postgresql.auto.conf")).unwrap();
    writeln!(file, "{name} = '{}'", value.replace('\'', "''")).unwrap();
}
