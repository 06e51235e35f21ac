//! X3: what has secrets in its memory leaves them nowhere when it dies, and shows them to no other process.

use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus};

use walkeep_tests::process::{self, Process};
use walkeep_tests::walkeep::{binary, run};
use walkeep_tests::{Cluster, Repository, S3Server, Walkeep, s3, user, wait_until};

use crate::story::PATIENCE;

const PASSWORD: &str = "SENTINELofTheConnection";

/// Core dumps as large as they like, into `folder`.
fn with_cores(folder: &Path, words: &str) -> Command {
    let mut command = user::command("sh");
    command.arg("-c").arg(format!("cd '{}' && ulimit -c unlimited && exec {words}", folder.display()));
    command
}

fn aborted(child: &mut Child) -> ExitStatus {
    process::signal(child.id(), "ABRT");
    child.wait().unwrap()
}

#[test]
fn who_has_secrets_leaves_no_core_and_shows_no_environment() {
    let cluster = Cluster::builder().segment_mib(1).start();
    let mut walkeep = Walkeep::new(&cluster, Repository::s3(S3Server::get().endpoint(), &S3Server::get().bucket()));
    walkeep.connection = format!("{} password={PASSWORD}", cluster.connection());
    let print = "command = [\"/bin/sh\", \"-c\", \"tr '\\\\0' '\\\\n' < /proc/self/environ; echo THAT WAS MINE; cat /proc/$PPID/environ 2>&1; true\"]";
    walkeep.more = format!("\n[[cluster.main.artifact]]\nname = \"environment\"\n{print}\n");
    walkeep.write_config();
    walkeep.ok(&["init"]);
    let folder = walkeep.scratch().dir("cores");
    user::give(&folder);

    // The limit lets others dump, so that no core means something.
    let mut other = with_cores(&folder, "sleep 100").spawn().unwrap();
    wait_until("it runs", PATIENCE, || {
        std::fs::read_to_string(format!("/proc/{}/comm", other.id())).is_ok_and(|name| name.trim() == "sleep")
    });
    if !aborted(&mut other).core_dumped() {
        eprintln!("SKIPPED the core: nothing leaves one here");
    }
    for left in std::fs::read_dir(&folder).unwrap() {
        std::fs::remove_file(left.unwrap().path()).unwrap();
    }
    let mut agent = with_cores(&folder, &format!("{} agent", binary("walkeep").display()));
    agent.env("WALKEEP_CONFIG", walkeep.config_path()).envs(walkeep.environment.iter().map(|(name, value)| (name, value)));
    agent.process_group(0);
    let log = walkeep.scratch().join("closed.log");
    let mut agent = Process::start(agent, &log).unwrap();
    wait_until("it is ready", PATIENCE, || {
        walkeep_tests::http::get(&walkeep.http_address(), "/readyz").is_ok_and(|(status, _)| status == 200)
    });
    // The same user, whom the kernel would show its own processes.
    for file in ["environ", "mem", "maps"] {
        let looked = run(user::command("head").args(["-c", "1", &format!("/proc/{}/{file}", agent.pid())]));
        assert!(looked.code != Some(0) && looked.stderr.contains("ermission denied"), "{file}: {looked:?}");
    }
    process::signal(agent.pid(), "ABRT");
    let status = agent.wait(PATIENCE).expect("it ends");
    assert!(status.signal() == Some(6) && !status.core_dumped(), "{status:?}");
    let left: Vec<_> = std::fs::read_dir(&folder).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");

    // Commands that it runs are told nothing: neither in their environment nor in their parent's.
    walkeep.ok(&["artifact", "run", "environment"]);
    let to = walkeep.scratch().join("environment");
    walkeep.ok(&["artifact", "get", "environment", "--to", &to.to_string_lossy()]);
    let told = std::fs::read_to_string(&to).unwrap();
    assert!(told.contains("THAT WAS MINE") && told.contains("ermission denied"), "{told}");
    for secret in [PASSWORD, s3::SECRET_KEY] {
        assert!(!told.contains(secret), "{told}");
    }
}
