//! What several stories need: repositories of each kind, positions in the WAL, waiting for the agent.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use walkeep_tests::{Agent, Cluster, Output, Repository, S3Server, Scratch, Walkeep, process, user, wait_until, walkeep::run};

pub const MIB: u64 = 1 << 20;
/// Log lines that belong to a server that stops while the agent streams.
pub const SERVER_GONE: [&str; 2] = ["the stream ended", "cannot look at the slot"];

/// Where the repository lies.
#[derive(Debug, Clone, Copy)]
pub enum Store {
    Local,
    S3,
}

pub const STORES: [Store; 2] = [Store::Local, Store::S3];

/// Walkeep for `cluster`, its repository not yet there; for changes of its fields.
pub fn uninitialised(cluster: &Cluster, store: Store) -> Walkeep {
    match store {
        Store::Local => Walkeep::local(cluster),
        Store::S3 => {
            let server = S3Server::get();
            Walkeep::new(cluster, Repository::s3(server.endpoint(), &server.bucket()))
        }
    }
}

/// Walkeep for `cluster`, after `walkeep init`.
pub fn walkeep(cluster: &Cluster, store: Store) -> Walkeep {
    let walkeep = uninitialised(cluster, store);
    walkeep.ok(&["init"]);
    walkeep
}

/// A position as PostgreSQL prints it.
pub fn lsn(text: &str) -> u64 {
    let (high, low) = text.trim().split_once('/').unwrap_or_else(|| panic!("{text:?} is no position"));
    let half = |text| u64::from_str_radix(text, 16).unwrap_or_else(|_| panic!("{text:?} is no position"));
    half(high) << 32 | half(low)
}

/// The position after a segment's last byte.
pub fn end_of(segment: &str, segment_mib: u64) -> u64 {
    let number = |from| u64::from_str_radix(&segment[from..from + 8], 16).unwrap();
    (number(8) << 32) + (number(16) + 1) * segment_mib * MIB
}

/// Waits until the agent says that everything up to `end` is in the repository.
#[track_caller]
pub fn wait_durable(agent: &Agent, end: u64, within: Duration) {
    let what = format!("durable up to {:X}/{:X}", end >> 32, end & 0xFFFF_FFFF);
    wait_until(&what, within, || agent.metric("walkeep_wal_durable_bytes").is_some_and(|at| at >= end as f64));
}

/// Ends the server's segment and waits until the stream has stored it; its name.
#[track_caller]
pub fn switch_and_store(cluster: &Cluster, agent: &Agent, segment_mib: u64) -> String {
    let name = cluster.switch_wal();
    wait_durable(agent, end_of(&name, segment_mib), Duration::from_secs(30));
    name
}

/// Fails on any WARN or ERROR of the agent's that contains none of `expected`.
#[track_caller]
pub fn assert_calm(agent: &Agent, expected: &[&str]) {
    let complaints = agent.complaints(expected);
    assert!(complaints.is_empty(), "the agent complained:\n{}", complaints.join("\n"));
}

/// `walkeep wal fetch` of one file: its bytes.
#[track_caller]
pub fn fetch(walkeep: &Walkeep, name: &str) -> Vec<u8> {
    let to = walkeep.scratch().dir("fetched").join(format!("{name}.one"));
    let _ = std::fs::remove_file(&to);
    walkeep.ok(&["wal", "fetch", name, &to.to_string_lossy()]);
    std::fs::read(&to).unwrap()
}

/// Of the parts in a folder those that lie in no other one, in order of their first bytes: what a reader joins. Begin, end, and the file.
pub fn joined_parts(folder: &Path) -> Vec<(u64, u64, PathBuf)> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap().path());
    let named = |path: PathBuf| {
        let name = path.file_name()?.to_str()?;
        let offset = |text: &str| u64::from_str_radix(text, 16).ok();
        Some((offset(name.get(..8)?)?, offset(name.get(9..17)?)?, path))
    };
    let all: Vec<_> = entries.filter_map(named).collect();
    let within = |one: &(u64, u64, PathBuf)| all.iter().any(|other| other.2 != one.2 && other.0 <= one.0 && one.1 <= other.1);
    let mut joined: Vec<_> = all.iter().filter(|one| !within(one)).cloned().collect();
    joined.sort();
    joined
}

/// Names in a folder that are those of whole segments, in order.
pub fn segments_in(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = entries.filter(|name| name.len() == 24 && name.bytes().all(|byte| byte.is_ascii_hexdigit())).collect();
    names.sort_unstable();
    names
}

/// A copy of a server's files under their names, to be compared after the server has gone on.
pub fn copies(walkeep: &Walkeep, folder: &str, from: &Path, names: &[String]) -> PathBuf {
    let to = walkeep.scratch().dir(folder);
    for name in names {
        std::fs::copy(from.join(name), to.join(name)).unwrap();
    }
    to
}

/// A data directory as far as archive_command's file is looked at: `pg_control` and `pg_wal`.
pub struct Offered {
    scratch: Scratch,
}

impl Offered {
    /// Of this cluster, with no file.
    pub fn of(cluster: &Cluster) -> Self {
        let scratch = Scratch::new();
        scratch.dir("data/pg_wal/archive_status");
        scratch.dir("data/global");
        scratch.write("data/global/pg_control", std::fs::read(cluster.data().join("global/pg_control")).unwrap(), 0o600);
        Self { scratch }
    }

    /// A file in its `pg_wal` that waits to be archived.
    pub fn file(&self, name: &str, content: &[u8]) -> PathBuf {
        std::fs::write(self.scratch.join(format!("data/pg_wal/archive_status/{name}.ready")), "").unwrap();
        self.scratch.write(format!("data/pg_wal/{name}"), content, 0o600)
    }
}

/// Runs the archive shim for one file, as PostgreSQL would.
pub fn offer(walkeep: &Walkeep, path: &Path) -> Output {
    let socket = walkeep.socket();
    run(&mut walkeep.command_of("walkeep-archive-cmd", &["--socket", &socket.to_string_lossy(), &path.to_string_lossy()]))
}

/// `command` under strace with these options, all its threads and the paths behind its descriptors shown in `trace`.
pub fn traced(command: &Command, options: &[&str], trace: &Path) -> Command {
    let mut strace = user::command("strace");
    strace.args(["-f", "-qq", "-y", "-e", "signal=none", "-o"]).arg(trace).args(options);
    // strace runs as the servers' account already, who may not choose another.
    strace.args(command.get_args().skip_while(|word| *word != "--").skip(1));
    strace.env_clear().envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    // And what it looks at is closed to that account otherwise.
    strace.env("WALKEEP_TRACEABLE", "1");
    strace
}

/// A small file system of the servers' account, for as long as the value lives.
pub struct Tmpfs(PathBuf);

impl Tmpfs {
    /// At this folder; `None`, and a line that says so, where nothing can be mounted.
    pub fn mount(at: &Path, size: &str) -> Option<Self> {
        let (uid, gid) = (user::account().uid, user::account().gid);
        let options = format!("size={size},mode=0700,uid={uid},gid={gid}");
        let mounted = user::is_root() && process::run(Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(at)).is_ok();
        if !mounted {
            eprintln!("SKIPPED: a tmpfs cannot be mounted here");
        }
        mounted.then(|| Self(at.to_owned()))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Changes it: `size=64m`, `ro`.
    #[track_caller]
    pub fn remount(&self, option: &str) {
        process::run(Command::new("mount").args(["-o", &format!("remount,{option}")]).arg(&self.0)).unwrap();
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = process::run(Command::new("umount").arg("-l").arg(&self.0));
    }
}
