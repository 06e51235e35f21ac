//! Where commands of the documents are run as they stand: a real server, agent and repository, a shell with small programs in place of what would touch the
//! machine, and the table of what is something else here.

mod programs;
mod running;

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::time::Duration;

use walkeep_tests::ports::Port;
use walkeep_tests::postgres::{bin, client, default_version};
use walkeep_tests::walkeep::binary;
use walkeep_tests::{Agent, Cluster, Scratch, Walkeep, cache, process, user, wait_until};

use super::here::{EVERYWHERE, replaced};
use super::shell::{Keeper, Shell};
use super::text::{Block, Command, DOCUMENTS, Document, path};
use crate::story;
use programs::asks;

/// So long a command may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// A block for a shell: file, section, and which of that section's, from 1 on.
pub type Place = (&'static str, &'static str, usize);

pub struct Stage {
    // Servers end before their folders go.
    _keeper: Keeper,
    agent: Option<Agent>,
    pub cluster: Cluster,
    pub walkeep: Walkeep,
    desk: Scratch,
    documents: BTreeMap<&'static str, Document>,
    expected: Vec<Place>,
    open: Option<Open>,
    meanings: Vec<(String, String)>,
    unused: Vec<String>,
    second_port: Port,
    shells: u32,
}

/// The block that is being run.
struct Open {
    block: Block,
    rest: VecDeque<Command>,
    shell: Shell,
    last: String,
}

/// A server as an operator has one: its port and socket folder stand in postgresql.conf, so that `pg_ctl` starts it, and what is restored of it. It runs.
#[track_caller]
pub fn server(settings: &[(&str, &str)]) -> Cluster {
    let cluster = created(settings);
    cluster.start();
    cluster
}

/// [`server`], not started.
#[track_caller]
pub fn created(settings: &[(&str, &str)]) -> Cluster {
    let cluster = story::builder(default_version()).create();
    let own = [("port", cluster.port().to_string()), ("unix_socket_directories", cluster.socket_dir().display().to_string())];
    own.iter().for_each(|(name, value)| cluster.write_conf(name, value));
    settings.iter().for_each(|(name, value)| cluster.write_conf(name, value));
    cluster
}

/// Half of the files of a small server are those of databases to copy. Without them all that is backed up and restored here is done sooner.
#[track_caller]
pub fn drop_templates(cluster: &Cluster) {
    for statement in ["UPDATE pg_database SET datistemplate = false", "DROP DATABASE template0", "DROP DATABASE template1"] {
        cluster.sql(statement);
    }
}

/// The database `shop` of the documents, with a thousand orders.
#[track_caller]
pub fn make_shop(cluster: &Cluster) {
    cluster.sql("CREATE DATABASE shop");
    drop_templates(cluster);
    let tables = "CREATE TABLE orders (id int PRIMARY KEY, customer text); CREATE INDEX ON orders (customer);
         INSERT INTO orders SELECT i, md5(i::text) FROM generate_series(1, 1000) i;
         CREATE SCHEMA app; CREATE TABLE app.item (i int PRIMARY KEY, state text); INSERT INTO app.item SELECT i, 'right' FROM generate_series(1, 1000) i";
    cluster.try_sql_in("shop", tables).unwrap();
}

impl Stage {
    /// For these blocks, each of which the story has to run. The server runs or not; Walkeep's `init` may be to come.
    #[track_caller]
    pub fn new(expected: &[Place], cluster: Cluster, walkeep: Walkeep) -> Self {
        let desk = Scratch::new();
        for folder in ["bin", "asked", "said", "srv", "systemd", "work/packaging/systemd"] {
            desk.dir(folder);
        }
        let sudo = "#!/bin/sh\nif [ \"$1\" = -u ]; then shift 2; fi\nexec \"$@\"\n";
        desk.write("bin/sudo", sudo, 0o755);
        for name in ["systemctl", "journalctl", "aws"] {
            desk.write(format!("bin/{name}"), asks(&desk.join("asked")), 0o755);
        }
        desk.write("work/by-hand.py", std::fs::read(path("packaging/by-hand.py")).unwrap(), 0o755);
        let unit = "packaging/systemd/walkeep.service";
        desk.write(Path::new("work").join(unit), std::fs::read(path(unit)).unwrap(), 0o644);
        Self {
            _keeper: Keeper::of(&[cluster.scratch().path(), desk.path()]),
            agent: None,
            cluster,
            walkeep,
            documents: DOCUMENTS.map(|file| (file, Document::read(file))).into(),
            expected: expected.to_vec(),
            open: None,
            meanings: Vec::new(),
            unused: Vec::new(),
            second_port: Port::free(),
            shells: 0,
            desk,
        }
    }

    /// A server with the shop, which streams and archives into a local repository, and has a backup.
    #[track_caller]
    pub fn usual(expected: &[Place]) -> Self {
        let cluster = server(&[]);
        let walkeep = Walkeep::local(&cluster);
        let stage = Self::archiving(expected, cluster, walkeep);
        stage.walkeep.ok(&["backup"]);
        stage
    }

    /// This server and this Walkeep, with the shop; it streams and archives.
    #[track_caller]
    pub fn archiving(expected: &[Place], cluster: Cluster, walkeep: Walkeep) -> Self {
        let mut stage = Self::new(expected, cluster, walkeep);
        stage.walkeep.ok(&["init"]);
        make_shop(&stage.cluster);
        stage.start_agent();
        stage.archive();
        stage
    }

    /// archive_command as README has it.
    #[track_caller]
    pub fn archive(&self) {
        self.cluster.set("archive_command", &self.here("walkeep-archive-cmd %p"));
    }

    #[track_caller]
    pub fn start_agent(&mut self) {
        self.agent = Some(self.walkeep.agent());
    }

    #[track_caller]
    pub fn agent(&self) -> &Agent {
        self.agent.as_ref().expect("an agent that runs")
    }

    #[track_caller]
    pub fn stop_agent(&mut self) {
        self.agent.take().expect("an agent that runs").stop();
    }

    /// SIGKILL.
    pub fn kill_agent(&mut self) {
        drop(self.agent.take());
    }

    /// Everything that is written is stored.
    #[track_caller]
    pub fn settle(&self) {
        story::settle(&self.cluster, &self.walkeep);
    }

    /// The clock of the server, in the zone of the documents; behind it something is committed.
    #[track_caller]
    pub fn now(&self) -> String {
        let time = "SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC' + interval '1 hour', 'YYYY-MM-DD HH24:MI:SS.US') || '+01'";
        let now = self.cluster.sql(time);
        self.cluster.sql("SELECT pg_logical_emit_message(true, 'test', 'behind it')");
        now
    }

    /// SQL in the shop.
    #[track_caller]
    pub fn in_shop(&self, query: &str) -> String {
        self.cluster.try_sql_in("shop", query).unwrap()
    }

    /// A folder or file below `/srv` of the documents.
    pub fn srv(&self, name: &str) -> PathBuf {
        self.desk.join("srv").join(name)
    }

    /// The folder in which the commands are run.
    pub fn work(&self) -> PathBuf {
        self.desk.join("work")
    }

    /// Everything of the story's own.
    pub fn desk(&self) -> &Scratch {
        &self.desk
    }

    /// The port that the documents call 5499.
    pub fn second_port(&self) -> u16 {
        self.second_port.number()
    }

    /// In this story's commands `there` is `here`, because ... Some command must have it.
    pub fn means(&mut self, there: &str, here: impl Into<String>, because: &str) {
        assert!(because.len() > 5);
        self.meanings.retain(|(other, _)| other != there);
        self.meanings.push((there.to_owned(), here.into()));
        self.unused.push(there.to_owned());
    }

    /// What stands for a place of [`EVERYWHERE`] in this story.
    pub fn here(&self, there: &str) -> String {
        let connection = || format!("{} port={}", self.cluster.socket_dir().display(), self.cluster.port());
        let shown = |path: &Path| path.display().to_string();
        match there {
            "/usr/lib/postgresql/15/bin/" => shown(&bin(self.cluster.version()).unwrap()) + "/",
            "/var/lib/postgresql/15/main" => shown(self.cluster.data()),
            "/var/lib/postgresql/15/restored" => shown(&self.srv("restored")),
            "/var/lib/walkeep" => shown(&self.walkeep.spool()),
            "/run/walkeep" => shown(self.walkeep.socket().parent().unwrap()),
            "/run/postgresql dbname" => connection() + " dbname",
            "/run/postgresql user" => connection() + " user",
            "/etc/walkeep" => shown(self.walkeep.scratch().path()),
            "/etc/systemd/system/" => shown(&self.desk.join("systemd")) + "/",
            "/srv/walkeep" => shown(&self.walkeep.local_repository()),
            "/srv/" => shown(&self.desk.join("srv")) + "/",
            "/tmp/etc.tar" => shown(&self.work().join("etc.tar")),
            "127.0.0.1:9187" | "localhost:9187" => self.walkeep.http_address(),
            "5499" => self.second_port.number().to_string(),
            "walkeep-archive-cmd %p" => self.walkeep.archive_command() + " %p",
            "7711104517502838564" | "7710484345924107793" => self.system_identifier(),
            "16777216" => (1 << 20).to_string(),
            other => panic!("nothing stands for {other}"),
        }
    }

    /// Of the server, whether it runs or not.
    pub fn system_identifier(&self) -> String {
        let mut program = user::command(bin(self.cluster.version()).unwrap().join("pg_controldata"));
        let told = process::run(program.arg("-D").arg(self.cluster.data())).unwrap();
        let line = told.lines().find(|line| line.starts_with("Database system identifier:")).unwrap();
        line.split_whitespace().last().unwrap().to_owned()
    }

    /// A text of a document with what is something else here.
    pub fn translated(&mut self, text: &str) -> String {
        let there = EVERYWHERE.iter().map(|(there, _)| *there).filter(|there| text.contains(there));
        let everywhere: Vec<_> = there.map(|there| (there.to_owned(), self.here(there))).collect();
        let (text, found) = replaced(text, &[self.meanings.clone(), everywhere].concat());
        self.unused.retain(|there| !found.contains(there));
        text
    }

    /// A block that is no shell's, with what is something else here.
    #[track_caller]
    pub fn block(&mut self, file: &str, section: &str, language: &str, number: usize) -> String {
        let text = self.documents[file].block(section, language, number).text.clone();
        self.translated(&text)
    }

    /// What commands have in their environment, as whoever is logged in on the host of the story.
    pub fn environment(&self) -> Vec<(String, String)> {
        let version = self.cluster.version();
        // Of the tested version first; what is not there is of a later one.
        let folders = [
            self.desk.join("bin"),
            binary("walkeep").parent().unwrap().to_owned(),
            bin(version).unwrap(),
            client(version, "psql").parent().unwrap().to_owned(),
            client(version, "pg_amcheck").parent().unwrap().to_owned(),
            cache().join("b3sum"),
        ];
        let path = folders.map(|folder| folder.display().to_string()).join(":");
        let own = [
            ("PATH", format!("{path}:/usr/local/bin:/usr/bin:/bin")),
            ("PGHOST", self.cluster.socket_dir().display().to_string()),
            ("PGPORT", self.cluster.port().to_string()),
            ("PGUSER", "postgres".to_owned()),
            ("WALKEEP_CONFIG", self.walkeep.config_path().display().to_string()),
            ("SHELL", "/bin/bash".to_owned()),
        ];
        own.map(|(name, value)| (name.to_owned(), value)).into_iter().chain(self.walkeep.environment.clone()).collect()
    }

    /// psql of the server at another port of the story's socket folder.
    #[track_caller]
    pub fn sql_at(&self, port: u16, query: &str) -> String {
        let mut command = user::command(client(self.cluster.version(), "psql"));
        command.envs(self.environment()).args(["-XAtq", "-p", &port.to_string(), "-c", query]);
        process::run(&mut command).unwrap().trim().to_owned()
    }

    /// Starts a server that a command has restored, and waits until it writes.
    #[track_caller]
    pub fn start(&self, data: &Path) {
        let log = data.with_extension("log");
        let mut pg_ctl = user::command(bin(self.cluster.version()).unwrap().join("pg_ctl"));
        pg_ctl.envs(self.environment()).arg("-D").arg(data).arg("-l").arg(log).arg("start");
        process::run(&mut pg_ctl).unwrap();
        self.wait_writable();
    }

    /// Ends a server that a command has started.
    #[track_caller]
    pub fn stop_started(&self, data: &Path) {
        let mut pg_ctl = user::command(bin(self.cluster.version()).unwrap().join("pg_ctl"));
        process::run(pg_ctl.arg("-D").arg(data).args(["-m", "fast", "stop"])).unwrap();
    }

    /// The server at the story's port has recovered.
    #[track_caller]
    pub fn wait_writable(&self) {
        let is_writable = || self.cluster.try_sql("SELECT pg_is_in_recovery()").is_ok_and(|answer| answer == "f");
        wait_until("the restored server writes", PATIENCE, is_writable);
    }

    /// The agent streams.
    #[track_caller]
    pub fn wait_ready(&self) {
        wait_until("the agent is ready", PATIENCE, || self.agent().get("/readyz").is_ok_and(|(status, _)| status == 200));
    }
}
