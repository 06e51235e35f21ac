//! One member: its configuration, Patroni, the server that Patroni starts, and the agent beside them.

use std::net::TcpStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use walkeep_tests::ports::Port;
use walkeep_tests::process::Process;
use walkeep_tests::walkeep::{binary, run};
use walkeep_tests::{Agent, Bucket, Repository, S3Server, Scratch, Walkeep, cache, http, postgres, user, wait_until};

use super::VERSION;

/// What README's "Prepare PostgreSQL" and "Base backups" give the role.
pub const GRANTS: &str = "CREATE ROLE walkeep LOGIN REPLICATION; GRANT EXECUTE ON FUNCTION pg_switch_wal() TO walkeep; \
    GRANT EXECUTE ON FUNCTION pg_backup_start, pg_backup_stop TO walkeep; GRANT pg_read_all_settings TO walkeep";

/// A file of `packaging/patroni`.
pub fn packaged(name: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../packaging/patroni")).join(name)
}

fn text(name: &str) -> String {
    std::fs::read_to_string(packaged(name)).unwrap()
}

/// A program of Patroni's; `None` where tests/setup.sh could not have it.
fn patroni(program: &str) -> Option<PathBuf> {
    let versions = std::fs::read_dir(cache().join("patroni")).into_iter().flatten().flatten();
    versions.map(|version| version.path().join("bin").join(program)).find(|path| path.exists())
}

/// etcd, alone. Ended when dropped.
pub struct Dcs {
    port: Port,
    _process: Process,
    _scratch: Scratch,
}

impl Dcs {
    /// `None`, and a line that says so, where something of a Patroni cluster is missing here.
    pub fn start() -> Option<Self> {
        let etcd = cache().join("etcd/etcd");
        let server = postgres::bin(VERSION);
        let complete = ["initdb", "pg_ctl", "pg_isready", "pg_controldata", "pg_basebackup", "pg_rewind"];
        let missing = match &server {
            _ if patroni("patroni").is_none() => Some("Patroni"),
            _ if !etcd.exists() => Some("etcd"),
            Some(bin) if complete.iter().all(|program| bin.join(program).exists()) => None,
            _ => Some("a whole PostgreSQL 15"),
        };
        if let Some(missing) = missing {
            eprintln!("SKIPPED Patroni: {missing} is not here");
            return None;
        }
        let (port, peers, scratch) = (Port::free(), Port::free(), Scratch::new());
        let [clients, peers] = [port.number(), peers.number()].map(|port| format!("http://127.0.0.1:{port}"));
        let mut command = user::command(etcd);
        command.arg("--data-dir").arg(scratch.join("etcd")).args(["--unsafe-no-fsync", "--listen-peer-urls", &peers]);
        command.args(["--listen-client-urls", &clients, "--advertise-client-urls", &clients]);
        let process = Process::start(command, &scratch.join("etcd.log")).unwrap();
        let listens = || TcpStream::connect(("127.0.0.1", port.number())).is_ok();
        wait_until("etcd listens", Duration::from_secs(30), listens);
        Some(Self { port, _process: process, _scratch: scratch })
    }
}

/// How a member comes to its data.
pub enum Role {
    /// It is the first one.
    Initdb,
    /// There is a leader.
    Replica,
    /// It is the first one of a cluster that is made of the repository.
    Restored,
}

pub struct Member {
    pub walkeep: Walkeep,
    name: &'static str,
    etcd: u16,
    ports: [Port; 2],
    agent: Option<Agent>,
    patroni: Option<Process>,
    /// Ends the server that Patroni leaves behind, when its input ends: with this value, or with the test process.
    keeper: Option<Child>,
}

impl Member {
    pub fn new(name: &'static str, dcs: &Dcs, bucket: &Bucket) -> Self {
        let endpoint = S3Server::get().endpoint();
        let mut walkeep = Walkeep::offline(Repository::s3(&endpoint, bucket));
        let scratch = walkeep.scratch();
        scratch.dir("patroni");
        scratch.dir("home");
        // Paths and ports are this machine's; all else is as it is shipped.
        let there = [
            ("host=/run/postgresql", format!("host={}", scratch.dir("socket").display())),
            ("/var/lib/postgresql/15/main", scratch.join("data").display().to_string()),
            ("s3://walkeep/production", format!("s3://{}", bucket.name)),
            ("region = \"eu-central-1\"", format!("region = \"us-east-1\"\nendpoint = \"{endpoint}\"")),
            ("127.0.0.1:9187", walkeep.http_address()),
        ];
        let mut toml = text("walkeep.toml");
        for (shipped, here) in &there {
            assert_eq!(toml.matches(shipped).count(), 1, "{shipped} in\n{toml}");
            toml = toml.replace(shipped, here);
        }
        let ports = [Port::free(), Port::free()];
        scratch.write("walkeep.toml", toml, 0o600);
        let environment = [
            ("PGPORT", ports[0].number().to_string()),
            ("WALKEEP_SPOOL", walkeep.spool().display().to_string()),
            ("WALKEEP_SOCKET", walkeep.socket().display().to_string()),
            ("WALKEEP_UPLOAD_INTERVAL", "200ms".to_owned()),
        ];
        walkeep.environment.extend(environment.map(|(name, value)| (name.to_owned(), value)));
        Self { walkeep, name, etcd: dcs.port.number(), ports, agent: None, patroni: None, keeper: None }
    }

    fn data(&self) -> PathBuf {
        self.walkeep.scratch().join("data")
    }

    fn folder(&self) -> PathBuf {
        self.walkeep.scratch().join("patroni")
    }

    /// What is shipped for members, beside what each cluster has of its own.
    pub fn configure(&self, scope: &str, role: Role) {
        let scratch = self.walkeep.scratch();
        let here = |name: &str| text(name).replace("/var/lib/postgresql/15/main", &self.data().to_string_lossy());
        let (name, etcd, [server, rest]) = (self.name, self.etcd, [self.ports[0].number(), self.ports[1].number()]);
        let (data, folder, socket) = (self.data(), scratch.path().display(), scratch.join("socket"));
        let bin = postgres::bin(VERSION).unwrap();
        // As it would stand below bootstrap.dcs.
        let dynamic = match role {
            Role::Restored => text("dynamic.yml").lines().map(|line| format!("    {line}\n")).collect(),
            Role::Initdb | Role::Replica => String::new(),
        };
        let own = format!(
            "scope: {scope}\nname: {name}\netcd3:\n  host: 127.0.0.1:{etcd}\nrestapi:\n  listen: 127.0.0.1:{rest}\n  connect_address: 127.0.0.1:{rest}\n\
             bootstrap:\n  initdb:\n  - encoding: UTF8\n  - data-checksums\n  dcs:\n    ttl: 20\n    loop_wait: 1\n    retry_timeout: 3\n{dynamic}\
             postgresql:\n  listen: 127.0.0.1:{server}\n  connect_address: 127.0.0.1:{server}\n  data_dir: {}\n  bin_dir: {}\n  pgpass: {folder}/pgpass\n  \
             use_pg_rewind: true\n  parameters:\n    unix_socket_directories: {}\n  authentication:\n    superuser:\n      username: postgres\n      password: su\n    \
             replication:\n      username: replicator\n      password: rep\n  pg_hba:\n  - local all all trust\n  - local replication all trust\n  \
             - host all all 127.0.0.1/32 scram-sha-256\n  - host replication all 127.0.0.1/32 scram-sha-256\n",
            data.display(),
            bin.display(),
            socket.display(),
        );
        scratch.write("patroni/10-own.yml", own, 0o600);
        scratch.write("patroni/20-walkeep.yml", here("member.yml"), 0o600);
        if matches!(role, Role::Restored) {
            scratch.write("patroni/30-restore.yml", here("restore.yml"), 0o600);
        }
    }

    /// A program of Patroni's with the environment that its unit would give it: where Walkeep's programs and configuration are.
    fn command(&self, program: &str) -> Command {
        let mut command = user::command(patroni(program).unwrap());
        let path = format!("{}:{}", binary("walkeep").parent().unwrap().display(), "/usr/local/bin:/usr/bin:/bin");
        command.env("PATH", path).env("WALKEEP_CONFIG", self.walkeep.config_path()).env("HOME", self.walkeep.scratch().join("home"));
        command.envs(self.walkeep.environment.iter().filter(|(name, _)| name != "PGPORT").map(|(name, value)| (name, value)));
        command
    }

    /// Starts Patroni, which starts the server.
    pub fn launch(&mut self) {
        let mut command = self.command("patroni");
        command.arg(self.folder());
        self.patroni = Some(Process::start(command, &self.walkeep.scratch().join("patroni.log")).unwrap());
        let mut keeper = Command::new("sh");
        let end = r#"cat > /dev/null; pid=$(head -n 1 "$0/postmaster.pid") && grep -qaF "$0" "/proc/$pid/cmdline" && kill -s KILL "$pid""#;
        keeper.args(["-c", end]).arg(self.data()).process_group(0);
        keeper.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        self.keeper = Some(keeper.spawn().unwrap());
    }

    pub fn launch_agent(&mut self) {
        self.agent = Some(self.walkeep.launch_agent().unwrap());
    }

    #[track_caller]
    pub fn agent(&self) -> &Agent {
        self.agent.as_ref().expect("an agent that was launched")
    }

    /// The host is gone: the agent, Patroni and the server at the same moment.
    pub fn kill9(&mut self) {
        self.agent = None;
        if let Some(mut patroni) = self.patroni.take() {
            patroni.kill();
        }
        if let Some(mut keeper) = self.keeper.take() {
            drop(keeper.stdin.take());
            keeper.wait().unwrap();
        }
    }

    /// What Patroni and the server wrote.
    pub fn log(&self) -> String {
        walkeep_tests::process::read_log(&self.walkeep.scratch().join("patroni.log"))
    }

    /// A page of Patroni's; empty while it does not answer.
    pub fn rest(&self, path: &str) -> String {
        http::get(&format!("127.0.0.1:{}", self.ports[1].number()), path).map(|(_, body)| body).unwrap_or_default()
    }

    #[track_caller]
    pub fn wait_leader(&self, within: Duration) {
        let address = format!("127.0.0.1:{}", self.ports[1].number());
        wait_until("it is the leader", within, || http::get(&address, "/primary").is_ok_and(|(status, _)| status == 200));
    }

    #[track_caller]
    pub fn patronictl(&self, args: &[&str]) {
        let mut command = self.command("patronictl");
        let said = run(command.arg("-c").arg(self.folder()).args(args));
        assert!(said.ok(), "{args:?}: {said:?}");
    }

    /// Asks the server; `None` while it does not answer.
    pub fn try_sql(&self, sql: &str) -> Option<String> {
        let mut psql = user::command(postgres::client(VERSION, "psql"));
        psql.args(["-XAtqc", sql, "-U", "postgres", "-d", "postgres", "-v", "ON_ERROR_STOP=1"]);
        psql.arg("-h").arg(self.walkeep.scratch().join("socket")).args(["-p", &self.ports[0].number().to_string()]);
        let answered = run(&mut psql);
        answered.ok().then(|| answered.stdout.trim_end().to_owned())
    }

    #[track_caller]
    pub fn sql(&self, sql: &str) -> String {
        self.try_sql(sql).unwrap_or_else(|| panic!("{} does not answer {sql}\n{}", self.name, walkeep_tests::process::tail(&self.log())))
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("---- Patroni's log of {} ends\n{}", self.name, walkeep_tests::process::tail(&self.log()));
        }
        self.kill9();
    }
}
