//! The pod's containers as processes, each file of theirs as it is shipped but for the paths.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use walkeep_tests::ports::Port;
use walkeep_tests::process::{self, Process};
use walkeep_tests::walkeep::{binary, run};
use walkeep_tests::{Bucket, S3Server, Scratch, http, postgres, s3, try_wait_for, user, wait_until};

use super::manifests::packaging;

const PATIENCE: Duration = Duration::from_secs(60);

pub struct Pod {
    scratch: Scratch,
    ports: [Port; 2],
    version: u32,
    bucket: String,
}

/// A container's process. Killed when dropped.
pub struct Running {
    process: Process,
    address: String,
    signal: &'static str,
}

impl Running {
    /// As the kubelet ends it.
    #[track_caller]
    pub fn stop(mut self) {
        self.process.signal(self.signal);
        let ended = self.process.wait(PATIENCE).unwrap_or_else(|| panic!("it goes on:\n{}", process::tail(&self.process.log())));
        assert!(ended.success(), "it ended with {ended}:\n{}", process::tail(&self.process.log()));
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("---- a container's log ends\n{}", process::tail(&self.process.log()));
        }
    }
}

#[track_caller]
pub fn wait_ready(agent: &Running) {
    for path in ["/healthz", "/readyz"] {
        wait_until(path, PATIENCE, || http::get(&agent.address, path).is_ok_and(|(status, _)| status == 200));
    }
}

impl Pod {
    /// Its volumes are empty; the shims are where the init container puts them.
    pub fn new(config: &str, bucket: &Bucket) -> Self {
        let scratch = Scratch::new();
        // An emptyDir is open to all in the pod.
        let socket = scratch.dir("run");
        process::run(Command::new("chmod").arg("0777").arg(&socket)).unwrap();
        for folder in ["volume", "spool", "sock", "etc", "opt"] {
            scratch.dir(folder);
        }
        let pod = Self { scratch, ports: [Port::free(), Port::free()], version: postgres::default_version(), bucket: bucket.name.clone() };
        for name in ["postgresql.conf", "pg_hba.conf", "pg_ident.conf"] {
            pod.scratch.write(format!("etc/{name}"), pod.here(&format!("base/{name}")), 0o644);
        }
        pod.scratch.write("walkeep.toml", pod.here(config), 0o644);
        pod.scratch.write("restore.sh", pod.here("components/restore/restore.sh"), 0o644);
        let shims = ["walkeep-archive-cmd", "walkeep-restore-cmd"].map(binary);
        process::run(Command::new("cp").args(shims).arg(pod.scratch.join("opt"))).unwrap();
        pod
    }

    /// A shipped file with this machine's paths.
    fn here(&self, name: &str) -> String {
        let mut text = std::fs::read_to_string(packaging("kubernetes").join(name)).unwrap();
        let at = |folder: &str| self.scratch.join(folder).display().to_string();
        for (there, here) in [
            ("/var/lib/postgresql/data", at("volume")),
            ("/var/lib/walkeep", at("spool")),
            ("/var/run/postgresql", at("sock")),
            ("/etc/postgresql", at("etc")),
            ("/opt/walkeep", at("opt")),
            ("/run/walkeep", at("run")),
        ] {
            text = text.replace(there, &here);
        }
        text
    }

    pub fn data(&self) -> PathBuf {
        self.scratch.join("volume/pgdata")
    }

    fn environment(&self, command: &mut Command) {
        let path = format!("{}:/usr/local/bin:/usr/bin:/bin", binary("walkeep").parent().unwrap().display());
        command.env("PATH", path).env("PGDATA", self.data()).env("PGPORT", self.ports[0].number().to_string());
        command.env("WALKEEP_CONFIG", self.scratch.join("walkeep.toml"));
        command.env("AWS_ACCESS_KEY_ID", s3::ACCESS_KEY).env("AWS_SECRET_ACCESS_KEY", s3::SECRET_KEY);
        command.env("WALKEEP_REPOSITORY_URL", format!("s3://{}", self.bucket)).env("WALKEEP_REPOSITORY_REGION", s3::REGION);
        command.env("WALKEEP_REPOSITORY_ENDPOINT", S3Server::get().endpoint()).env("WALKEEP_UPLOAD_INTERVAL", "200ms");
        command.env("WALKEEP_LISTEN_HTTP", self.address());
    }

    fn address(&self) -> String {
        format!("127.0.0.1:{}", self.ports[1].number())
    }

    fn bin(&self, name: &str) -> PathBuf {
        postgres::bin(self.version).unwrap().join(name)
    }

    #[track_caller]
    fn done(&self, mut command: Command) -> String {
        self.environment(&mut command);
        let said = run(&mut command);
        assert!(said.ok(), "{}: {said:?}", process::shown(&command));
        said.stdout + &said.stderr
    }

    pub fn initdb(&self) {
        let mut initdb = user::command(self.bin("initdb"));
        initdb.args(["--data-checksums", "-U", "postgres", "-A", "trust", "-D"]).arg(self.data());
        self.done(initdb);
    }

    /// The container `postgres`, once it answers and is open.
    #[track_caller]
    pub fn postgres(&self) -> Running {
        let mut server = user::command(self.bin("postgres"));
        self.environment(&mut server);
        // As the image's entrypoint starts it: the data directory comes by PGDATA. Its port is this machine's.
        server.args([
            "-c",
            &format!("config_file={}", self.scratch.join("etc/postgresql.conf").display()),
            "-c",
            "listen_addresses=127.0.0.1",
        ]);
        let process = Process::start(server, &self.scratch.join("postgres.log")).unwrap();
        let mut running = Running { process, address: String::new(), signal: "INT" };
        let opened = try_wait_for(PATIENCE, || match running.process.ended() {
            Some(ended) => Some(Err(ended)),
            None => self.try_sql("SELECT pg_is_in_recovery()").filter(|answer| answer == "f").map(Ok),
        });
        assert!(matches!(opened, Some(Ok(_))), "{opened:?}\n{}", process::tail(&running.process.log()));
        running
    }

    /// The sidecar.
    pub fn agent(&self) -> Running {
        let mut agent = user::command(binary("walkeep"));
        self.environment(&mut agent);
        let process = Process::start(
            {
                agent.arg("agent");
                agent
            },
            &self.scratch.join("agent.log"),
        )
        .unwrap();
        Running { process, address: self.address(), signal: "TERM" }
    }

    /// `kubectl exec ... -- walkeep ARGS`.
    #[track_caller]
    pub fn walkeep(&self, args: &[&str]) -> String {
        let mut command = user::command(binary("walkeep"));
        self.environment(command.args(args));
        let said = run(&mut command);
        assert!(said.ok(), "{args:?}: {said:?}");
        said.stdout
    }

    /// The init container `restore`.
    #[track_caller]
    pub fn restore(&self, target: &str) -> String {
        let mut command = user::command("sh");
        command.arg(self.scratch.join("restore.sh")).env("TARGET", target);
        self.done(command)
    }

    fn psql(&self) -> Command {
        let mut psql = user::command(postgres::client(self.version, "psql"));
        psql.args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-d", "postgres", "-h"]).arg(self.scratch.join("sock"));
        psql
    }

    pub fn psql_file(&self, name: &str) {
        let mut psql = self.psql();
        psql.arg("-f").arg(self.scratch.write("first.sql", self.here(name), 0o644));
        self.done(psql);
    }

    fn try_sql(&self, sql: &str) -> Option<String> {
        let mut psql = self.psql();
        self.environment(psql.args(["-c", sql]));
        let answered = run(&mut psql);
        answered.ok().then(|| answered.stdout.trim_end().to_owned())
    }

    #[track_caller]
    pub fn sql(&self, sql: &str) -> String {
        let answered = self.try_sql(sql);
        answered.unwrap_or_else(|| {
            panic!("no answer to {sql}\n{}", process::tail(&process::read_log(Path::new(&self.scratch.join("postgres.log")))))
        })
    }
}
