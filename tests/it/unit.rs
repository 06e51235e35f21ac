//! The systemd units: their restrictions, put on by other means than systemd (which does not run here), leave the agent and its jobs what they need.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use walkeep_tests::postgres::{bin, client};
use walkeep_tests::process::Process;
use walkeep_tests::walkeep::{Output, run};
use walkeep_tests::{Cluster, Walkeep, http, user, wait_until};

use crate::story::{PATIENCE, builder, insert, settle};

const VERSION: u32 = 15;
const UNIT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../packaging/systemd/walkeep.service");
const OF_ONE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../packaging/systemd/walkeep@.service");
const CONFINED: &str = include_str!("unit/confined.py");

fn lines(path: &str) -> Vec<String> {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().filter(|line| !line.starts_with(['#', '['])).filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

fn values(name: &str) -> Vec<String> {
    let lines = lines(UNIT);
    let values = lines.iter().filter_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    values.flat_map(str::split_whitespace).map(str::to_owned).collect()
}

#[test]
fn both_units_are_restricted_alike() {
    let (all, one): (BTreeSet<_>, BTreeSet<_>) = (lines(UNIT).into_iter().collect(), lines(OF_ONE).into_iter().collect());
    let differing: BTreeSet<&str> = all.symmetric_difference(&one).map(|line| line.split('=').next().unwrap()).collect();
    assert_eq!(differing, BTreeSet::from(["Description", "EnvironmentFile", "ExecStart"]));
}

/// Where a process under the unit may write.
struct Host {
    cluster: Cluster,
    walkeep: Walkeep,
    temporary: PathBuf,
}

impl Host {
    fn new() -> Self {
        let cluster = builder(VERSION).start();
        let mut walkeep = Walkeep::local(&cluster);
        let temporary = walkeep.scratch().dir("temporary");
        let script = walkeep.scratch().write("confined.py", CONFINED, 0o755);
        walkeep.environment.push(("TMPDIR".to_owned(), temporary.display().to_string()));
        let unit = walkeep.scratch().write("unit", std::fs::read_to_string(UNIT).unwrap(), 0o644);
        walkeep.run_by = ["/usr/bin/python3".into(), script, unit].map(|word| word.display().to_string()).to_vec();
        Self { cluster, walkeep, temporary }
    }

    /// What the unit names, as it lies here.
    fn writable(&self) -> Vec<PathBuf> {
        let of = |name: &'static str| values(name).into_iter().map(move |value| format!("{name}={value}"));
        let named = of("ReadWritePaths").chain(of("StateDirectory")).chain(of("RuntimeDirectory"));
        let here = named.map(|named| match named.as_str() {
            "ReadWritePaths=-/var/lib/postgresql" => self.cluster.scratch().path().to_owned(),
            "ReadWritePaths=-/srv/walkeep" => self.walkeep.local_repository(),
            "ReadWritePaths=-/tmp" | "ReadWritePaths=-/var/tmp" => self.temporary.clone(),
            "StateDirectory=walkeep" => self.walkeep.spool(),
            "RuntimeDirectory=walkeep" => self.walkeep.socket().parent().unwrap().to_owned(),
            other => panic!("{other}: what is that here?"),
        });
        here.collect()
    }

    /// `walkeep ARGS`, where nothing else can be written.
    fn command(&self, args: &[&str]) -> Command {
        assert_eq!(values("ProtectSystem"), ["strict"]);
        let inner = self.walkeep.command(args);
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-euc", MOUNT, "sh"]);
        command.arg(self.writable().iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(" "));
        command.arg(inner.get_program()).args(inner.get_args()).current_dir("/").env_clear();
        command.envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))));
        command
    }

    #[track_caller]
    fn ok(&self, args: &[&str]) -> Output {
        run(&mut self.command(args)).expect_code(0)
    }
}

/// Everything becomes read-only but the folders of the first argument, and what the kernel makes.
const MOUNT: &str = r#"
mount --make-rprivate /
for path in $1; do mkdir -p "$path"; mount --bind "$path" "$path"; done
while read -r _ _ _ _ place _; do
  case " $1 /dev /proc /sys " in *" $place "*) continue ;; esac
  case "$place" in /dev/*|/proc/*|/sys/*) continue ;; esac
  mount -o remount,bind,ro "$place" || [ "$place" != / ]
done < /proc/self/mountinfo
shift
exec "$@"
"#;

fn can_be_tried() -> bool {
    let has = |path: &str| Path::new(path).exists();
    let tools = has("/usr/bin/systemd-analyze") && has("/usr/bin/python3") && has("/usr/include/x86_64-linux-gnu/asm/unistd_64.h");
    let can = user::is_root() && tools && run(Command::new("unshare").args(["--mount", "true"])).ok();
    if !can {
        eprintln!("SKIPPED unit: root, unshare, systemd-analyze, python3 and an x86-64 machine's headers are needed");
    }
    can
}

/// What the agent does by itself, it does by the same code as the commands.
#[test]
fn everything_works_under_the_units_restrictions() {
    if !can_be_tried() {
        return;
    }
    let mut host = Host::new();
    let outside = host.walkeep.scratch().dir("outside");
    let tools = format!("{}:{}", bin(VERSION).unwrap().display(), client(VERSION, "pg_amcheck").parent().unwrap().display());
    host.walkeep.more = format!(
        "[cluster.main.retention]\nwindow = \"1d\"\n[cluster.main.drill]\nbin_dir = \"{tools}\"\n[cluster.main.dump]\nbin_dir = \"{tools}\"\nformat = \"directory\"\n\
         [[cluster.main.artifact]]\nname = \"inside\"\ncommand = \"date > $TMPDIR/x; cat $TMPDIR/x; rm $TMPDIR/x\"\n\
         [[cluster.main.artifact]]\nname = \"outside\"\ncommand = \"date | tee {}/x\"\n\
         [[cluster.main.artifact]]\nname = \"made\"\ncommand = [\"/usr/bin/python3\", \"-c\", \"import mmap; mmap.mmap(-1, 4096, prot=7)\"]\n\
         [notify]\ncommand = [\"true\"]\n",
        outside.display()
    );
    host.walkeep.write_config();
    host.ok(&["init"]);
    let mut agent = Process::start(host.command(&["agent"]), &host.walkeep.scratch().join("confined.log")).unwrap();
    let address = host.walkeep.http_address();
    wait_until("the agent streams", PATIENCE, || http::get(&address, "/readyz").is_ok_and(|(status, _)| status == 200));
    host.cluster.archive_by(Some(&host.walkeep.archive_command()));
    host.cluster.sql("CREATE TABLE t (i int PRIMARY KEY, filler text)");
    insert(&host.cluster, 20);
    host.ok(&["backup"]);
    insert(&host.cluster, 20);
    host.cluster.switch_wal();
    settle(&host.cluster, &host.walkeep);
    host.ok(&["verify", "--deep"]);
    host.ok(&["dump"]);
    host.ok(&["artifact", "run", "inside"]);
    host.ok(&["notify", "--test"]);
    host.ok(&["backup", "--full"]);
    host.ok(&["expire", "--yes"]);
    let drill = host.ok(&["drill", "--json"]).json();
    assert_eq!(drill["verdict"], "passed", "{drill}");
    host.ok(&["check"]);

    // It is restricted indeed.
    let refused = run(&mut host.command(&["artifact", "run", "outside"]));
    assert!(!refused.ok() && refused.stderr.contains("Read-only file system"), "{refused:?}");
    let refused = run(&mut host.command(&["artifact", "run", "made"]));
    assert!(!refused.ok() && refused.stderr.contains("PermissionError"), "memory to write and to run: {refused:?}");
    let status = std::fs::read_to_string(format!("/proc/{}/status", agent.pid())).unwrap();
    for line in ["Seccomp:\t2", "NoNewPrivs:\t1", "CapEff:\t0000000000000000"] {
        assert!(status.contains(line), "{status}");
    }
    agent.signal("TERM");
    let ended = agent.wait(PATIENCE).expect("the agent ends");
    assert!(ended.success(), "{}", agent.log());
    let log = agent.log();
    let complaints: Vec<_> = log.lines().filter(|line| line.contains(" WARN ") || line.contains(" ERROR ")).collect();
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}
