//! Who may ask what of the agent; bad configurations; names in the repository that nobody knows; secrets.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use walkeep_protocol::{Request, Response, Verb, call};
use walkeep_tests::process::{self, Process};
use walkeep_tests::walkeep::{binary, run};
use walkeep_tests::{Cluster, Repository, S3Server, Walkeep, http, s3, user, wait_until};

use crate::support::{Store, assert_calm, fetch, switch_and_store, uninitialised, walkeep};

const SOON: Duration = Duration::from_secs(30);

fn mode(path: &Path) -> u32 {
    std::fs::symlink_metadata(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).mode() & 0o7777
}

/// X1
#[test]
fn another_user_is_refused() {
    let cluster = Cluster::builder().segment_mib(1).start();
    let walkeep = walkeep(&cluster, Store::Local);
    let agent = walkeep.agent();
    assert_eq!(mode(&walkeep.socket()), 0o600);
    if !user::is_root() {
        eprintln!("SKIPPED: only root can be another user");
        return;
    }
    let name = cluster.switch_wal();
    let as_nobody = |program: &str, file: &str, to: &[&str]| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"]).arg(binary(program));
        command.args(["--socket", &walkeep.socket().to_string_lossy(), "--timeout", "2s", file]).args(to);
        run(command.env_clear().current_dir("/"))
    };
    let path = cluster.pg_wal().join(&name);
    let target = cluster.pg_wal().join("RECOVERYXLOG");
    for (socket_mode, told) in [(0o600, "ermission denied"), (0o777, "serves nobody else; you are user 65534")] {
        std::fs::set_permissions(walkeep.socket(), PermissionsExt::from_mode(socket_mode)).unwrap();
        let archived = as_nobody("walkeep-archive-cmd", &path.to_string_lossy(), &[]);
        assert!(archived.code == Some(1) && archived.stderr.contains(told), "{archived:?}");
        let restored = as_nobody("walkeep-restore-cmd", &name, &[&target.to_string_lossy()]);
        assert!(restored.code.is_some_and(|code| code > 125) && restored.stderr.contains(told), "{restored:?}");
        for output in [archived, restored] {
            let hint = if socket_mode == 0o600 { "belong to the agent's user and group" } else { "as the same user" };
            assert!(output.stderr.contains("HINT:") && output.stderr.contains(hint), "{output:?}");
        }
    }
    assert!(!target.exists());
    assert_calm(&agent, &["a connection of another user is refused"]);
    agent.stop();
}

/// X2
#[test]
fn requests_for_other_files_are_refused() {
    let cluster = Cluster::builder().segment_mib(1).start();
    let walkeep = walkeep(&cluster, Store::Local);
    let agent = walkeep.agent();
    let name = switch_and_store(&cluster, &agent, 1);
    let ask = |verb| call(&walkeep.socket(), &Request { cluster: None, verb }, Instant::now() + SOON).unwrap();
    let refused = |what: &str, response: Response| {
        let Response::Failed { message, .. } = response else { panic!("{what}: {response:?}") };
        assert!(!message.contains("root:"), "{what}: {message}");
    };
    assert_eq!(ask(Verb::Ping), Response::Done);
    // What cannot change by waiting is not waited for.
    let began = Instant::now();
    let elsewhere = walkeep.scratch().join("RECOVERYXLOG");
    for (name, to) in [(name.as_str(), elsewhere.as_path()), ("nonsense", &cluster.pg_wal().join("RECOVERYXLOG"))] {
        let shim =
            run(&mut walkeep
                .command_of("walkeep-restore-cmd", &["--socket", &walkeep.socket().to_string_lossy(), name, &to.to_string_lossy()]));
        assert!(shim.code == Some(204) && shim.stderr.contains("HINT:"), "{shim:?}");
    }
    assert!(began.elapsed() < Duration::from_secs(60), "not until the deadline of 5 minutes");
    let data = cluster.data().to_string_lossy().into_owned();
    let link = cluster.pg_wal().join("0000000100000000000000F0");
    std::os::unix::fs::symlink("/etc/shadow", &link).unwrap();
    for path in [
        "/etc/shadow",
        "/etc/passwd",
        "/proc/self/environ",
        "",
        "pg_wal/000000010000000000000001",
        &format!("{data}/pg_wal/../global/pg_control"),
        &format!("{data}/global/pg_control"),
        &format!("{data}/pg_wal/../../../../../etc/shadow"),
        &format!("{data}/pg_wal/archive_status"),
        &link.to_string_lossy(),
        &format!("{data}/pg_wal/{name}\0/etc/shadow"),
    ] {
        refused(path, ask(Verb::Archive { path: PathBuf::from(path) }));
    }
    std::fs::remove_file(&link).unwrap();
    let outside = walkeep.scratch().join("outside");
    let control = std::fs::read(cluster.data().join("global/pg_control")).unwrap();
    for destination in [
        "/etc/cron.d/walkeep".to_owned(),
        outside.to_string_lossy().into_owned(),
        format!("{data}/postgresql.auto.conf"),
        format!("{data}/global/pg_control"),
        format!("{data}/pg_wal/../global/pg_control"),
        format!("{data}/pg_wal/{name}"),
        format!("{data}/pg_wal/x/RECOVERYXLOG"),
        "RECOVERYXLOG".to_owned(),
    ] {
        let verb = Verb::Fetch { name: name.clone(), destination: PathBuf::from(&destination), standby: false };
        refused(&destination, ask(verb));
    }
    for name in ["../../../etc/shadow", "", "walkeep.json", "0000000100000000000000GG", "%00", &"0".repeat(5000)] {
        let destination = cluster.pg_wal().join("RECOVERYXLOG");
        refused(name, ask(Verb::Fetch { name: name.to_owned(), destination: destination.clone(), standby: false }));
        assert!(!destination.exists());
    }
    assert!(!outside.exists() && !Path::new("/etc/cron.d/walkeep").exists());
    assert_eq!(std::fs::read(cluster.data().join("global/pg_control")).unwrap()[..8], control[..8]);
    // Another cluster's name, and no requests at all.
    let other = Request { cluster: Some("other".into()), verb: Verb::Ping };
    refused("another cluster", call(&walkeep.socket(), &other, Instant::now() + SOON).unwrap());
    for garbage in [&b""[..], b"GET / HTTP/1.1\r\n\r\n", &[0xFF; 64], &[0; 4096], b"WKP"] {
        let mut stream = UnixStream::connect(walkeep.socket()).unwrap();
        let _ = stream.write_all(garbage);
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let _ = stream.read_to_end(&mut Vec::new());
    }
    // Many that say nothing do not keep PostgreSQL out for long.
    let idle: Vec<_> = (0..100).map_while(|_| UnixStream::connect(walkeep.socket()).ok()).collect();
    wait_until("the agent answers again", SOON, || ask(Verb::Ping) == Response::Done);
    drop(idle);
    assert!(!fetch(&walkeep, &name).is_empty());
    assert!(!agent.log().contains("panicked"), "{}", agent.log());
    assert_calm(&agent, &["failed request="]);
    agent.stop();
}

/// X7
#[test]
fn modes_hold_under_a_hostile_umask() {
    let cluster = Cluster::builder().segment_mib(1).start();
    let walkeep = uninitialised(&cluster, Store::Local);
    for folder in ["spool", "run", "repo"] {
        std::fs::remove_dir(walkeep.scratch().join(folder)).unwrap();
    }
    let under_umask = |args: &[&str]| {
        let mut command = user::command_with_umask(binary("walkeep"), "000");
        command.args(args).env("WALKEEP_CONFIG", walkeep.config_path());
        command
    };
    run(&mut under_umask(&["init"])).expect_code(0);
    let mut agent = Process::start(under_umask(&["agent"]), &walkeep.scratch().join("agent.log")).unwrap();
    wait_until("it streams", SOON, || agent.log().contains("INFO streaming"));
    cluster.pgbench_init(1);
    let name = cluster.switch_wal();
    wait_until("it is stored", SOON, || agent.log().contains(&format!("stored segment={name}")));
    cluster.sql("CREATE TABLE t ()");
    wait_until("the next one is begun", SOON, || std::fs::read_dir(walkeep.spool()).unwrap().count() > 0);
    assert_eq!((mode(&walkeep.spool()), mode(&walkeep.scratch().join("run")), mode(&walkeep.socket())), (0o700, 0o700, 0o600));
    let mut folders = vec![walkeep.spool(), walkeep.local_repository()];
    let mut files = 0;
    while let Some(folder) = folders.pop() {
        assert_eq!(mode(&folder) & 0o077, 0, "{}", folder.display());
        for entry in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if entry.is_dir() {
                folders.push(entry);
            } else {
                assert_eq!(mode(&entry) & 0o177, 0, "{}", entry.display());
                files += 1;
            }
        }
    }
    assert!(files > 10);
    agent.signal("TERM");
    assert!(agent.wait(Duration::from_secs(5)).is_some());
}

/// A spool that root made: the stream says so again and again, archive_command is served, and all is well once somebody mended it.
#[test]
fn an_unusable_spool_is_told_until_it_is_mended() {
    let cluster = Cluster::builder().segment_mib(1).archiving().start();
    let walkeep = walkeep(&cluster, Store::Local);
    std::fs::set_permissions(walkeep.spool(), PermissionsExt::from_mode(0o500)).unwrap();
    let agent = walkeep.launch_agent().unwrap();
    let counted = || agent.metric("walkeep_errors_total{kind=\"spool\"}").is_some_and(|count| count >= 3.0);
    wait_until("it is counted again and again", SOON, counted);
    let (status, why) = agent.get("/readyz").unwrap();
    assert!(status == 503 && why.contains("spool") && why.contains("cannot be used"), "{status} {why}");
    cluster.archive_by(Some(&walkeep.archive_command()));
    let name = cluster.switch_wal();
    wait_until("archive_command is served", SOON, || {
        walkeep.run(&["timelines"]).stdout.contains("WAL stored up to") && {
            let to = walkeep.scratch().join("fetched");
            let _ = std::fs::remove_file(&to);
            walkeep.run(&["wal", "fetch", &name, &to.to_string_lossy()]).ok()
        }
    });
    std::fs::set_permissions(walkeep.spool(), PermissionsExt::from_mode(0o700)).unwrap();
    wait_until("it streams", Duration::from_secs(60), || agent.get("/readyz").is_ok_and(|(status, _)| status == 200));
    assert_calm(&agent, &["starting the stream failed"]);
    agent.stop();
}

/// I1
#[test]
fn bad_configurations_name_the_line() {
    let walkeep = Walkeep::offline(Repository::Local(PathBuf::from("/nonexistent")));
    let good = std::fs::read_to_string(walkeep.config_path()).unwrap();
    let lines = good.lines().count();
    let huge = format!("{good}\n[log]\nlevel = \"{}\"\nunknown = 1\n", "x".repeat(3 << 20));
    let cases: Vec<(&str, Vec<u8>, Option<usize>)> = vec![
        ("no TOML", [good.as_bytes(), b"this is no toml\n"].concat(), Some(lines + 1)),
        ("an unknown table", [good.as_bytes(), b"[unheard]\nof = 1\n"].concat(), Some(lines + 1)),
        ("an unknown key", good.replacen("spool =", "spoool =", 1).into_bytes(), Some(3)),
        ("a number for a text", good.replacen("slot = \"walkeep\"", "slot = 7", 1).into_bytes(), None),
        ("a key twice", [good.as_bytes(), b"http = \"127.0.0.1:1\"\nhttp = \"127.0.0.1:2\"\n"].concat(), None),
        ("no UTF-8", [good.as_bytes(), b"# \xFF\xFE\n"].concat(), Some(lines + 1)),
        ("zeros", vec![0; 4096], Some(1)),
        ("binary", (0..=255).cycle().take(100_000).collect(), None),
        ("an unclosed text", [good.as_bytes(), b"x = \"abc\n"].concat(), Some(lines + 1)),
        ("empty", Vec::new(), None),
        ("a bad slot", good.replacen("slot = \"walkeep\"", "slot = \"Wal keep; DROP\"", 1).into_bytes(), None),
        ("a bad interval", good.replacen("200ms", "soon", 1).into_bytes(), None),
        ("a bad limit", good.replacen("slot =", "spool_limit = \"-1\"\nslot =", 1).into_bytes(), None),
        ("a relative path", good.replacen("spool = \"/", "spool = \"", 1).into_bytes(), None),
        ("huge", huge.into_bytes(), None),
        ("deep", format!("x = {}{}\n", "[".repeat(20_000), "]".repeat(20_000)).into_bytes(), None),
    ];
    for (what, text, line) in cases {
        walkeep.scratch().write("walkeep.toml", text, 0o600);
        for command in [&["status"][..], &["agent"], &["init"], &["check"], &["backup"]] {
            let output = walkeep.run(command);
            assert_eq!(output.code, Some(2), "{what}, {command:?}: {:.2000}", output.stderr);
            assert!(!output.stderr.contains("panicked") && output.stderr.contains("error: "), "{what}: {:.2000}", output.stderr);
            if let Some(line) = line {
                assert!(output.stderr.contains(&format!("line {line}")), "{what}: line {line}: {:.2000}", output.stderr);
            }
        }
        let fetched = walkeep.run(&["wal", "fetch", "000000010000000000000001", "/tmp/nowhere/x"]);
        assert!(fetched.code.is_some_and(|code| code > 125), "{what}: {:?}", fetched.code);
        let shim = |name: &str, args: &[&str]| {
            let mut command = walkeep.command_of(name, &["--config", &walkeep.config_path().to_string_lossy(), "--timeout", "500ms"]);
            run(command.args(args))
        };
        assert_eq!(shim("walkeep-archive-cmd", &["pg_wal/000000010000000000000001"]).code, Some(1), "{what}");
        let restored = shim("walkeep-restore-cmd", &["000000010000000000000001", "pg_wal/RECOVERYXLOG"]);
        assert!(restored.code.is_some_and(|code| code > 125), "{what}: {restored:?}");
    }
    let missing = walkeep.run(&["status", "--config", "/nonexistent.toml"]).expect_code(2);
    assert!(missing.stderr.contains("/nonexistent.toml"), "{}", missing.stderr);
}

/// What is wrong with the configuration ends with 2, whichever command finds it, and is not called an outage or a refusal of the store.
#[test]
fn what_the_configuration_gets_wrong_is_two() {
    let mut walkeep = Walkeep::offline(Repository::Local(PathBuf::from("/nonexistent")));
    let good = std::fs::read_to_string(walkeep.config_path()).unwrap();
    let s3 = |lines: &str| good.replace("url = \"file:///nonexistent\"", &format!("url = \"s3://bucket/p\"\n{lines}"));
    let endpoint = "endpoint = \"http://127.0.0.1:1\"\n";
    let keys = |secret: &str| s3(&format!("{endpoint}access_key_id = \"AK\"\nsecret_access_key_file = \"{secret}\""));
    let empty = walkeep.scratch().join("empty");
    walkeep.scratch().write("empty", "\n", 0o600);
    walkeep.environment.retain(|(name, _)| name == "AWS_EC2_METADATA_DISABLED");
    let cases = [
        ("a bad endpoint", s3("endpoint = \"localhost:9000\""), "endpoint", &["status"][..]),
        ("a key of S3 beside a directory", good.replace("url = \"file", "region = \"x\"\nurl = \"file"), "region: goes with", &["status"]),
        ("a bad prefix", good.replace("file:///nonexistent", "s3://bucket/a b"), "prefix", &["status"]),
        ("a bad bucket", good.replace("file:///nonexistent", "s3://buck et"), "bucket", &["plan"]),
        ("no secret", keys("/nonexistent/secret"), "/nonexistent/secret", &["status"]),
        ("no secret", keys("/nonexistent/secret"), "/nonexistent/secret", &["agent"]),
        ("an empty secret", keys(&empty.to_string_lossy()), "the file is empty", &["check"]),
        (
            "no authority",
            s3(&format!("{}ca_file = \"/nonexistent/ca\"", endpoint.replace("http:", "https:"))),
            "/nonexistent/ca",
            &["plan"],
        ),
        ("no credentials", s3(endpoint), "no credentials: none in the environment", &["status"]),
        ("no credentials", s3(endpoint), "no credentials: none in the environment", &["check"]),
        ("no profile", s3(&format!("{endpoint}profile = \"nobody\"")), "no profile \"nobody\"", &["backups"]),
        ("a bad connection", good.replace("user=postgres", "user=postgres x"), "connection", &["init"]),
        ("a bad connection", good.replace("user=postgres", "usr=postgres"), "connection", &["check"]),
        ("a bad connection", good.replace("user=postgres", "port=x"), "connection", &["agent"]),
    ];
    for (what, text, told, command) in cases {
        walkeep.scratch().write("walkeep.toml", text, 0o600);
        let output = walkeep.run(command);
        let said = format!("{}{}", output.stdout, output.stderr);
        assert!(output.code == Some(2) && said.contains(told), "{what}, {command:?}: {output:?}");
        assert!(!said.contains("denied") && !said.contains("for now"), "{what}, {command:?}: {output:?}");
        let fetched = walkeep.run(&["wal", "fetch", "000000010000000000000001", "/nonexistent/x"]);
        assert_eq!(fetched.code, Some(126), "{what}: never the end of the archive");
    }
    walkeep.environment.push(("WALKEEP_SPOL".into(), "/x".into()));
    walkeep.write_config();
    let misspelt = walkeep.run(&["status"]);
    assert!(misspelt.code == Some(1) && misspelt.stderr.contains("warning: WALKEEP_SPOL is set"), "a warning only: {misspelt:?}");
}

/// A server that takes the connection and never answers: whoever waits is told what for, long before the command gives up.
#[test]
fn a_silent_store_is_told_while_it_is_waited_for() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", silent.local_addr().unwrap());
    let repository = Repository::S3 { endpoint: endpoint.clone(), bucket: "b".into(), prefix: String::new(), ca: None };
    let walkeep = Walkeep::offline(repository);
    let to = walkeep.scratch().join("to").to_string_lossy().into_owned();
    let start = |args: &[&str]| walkeep.command(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let commands = [&["status"][..], &["plan"], &["restore", "--to", &to], &["wal", "fetch", "000000010000000000000001", &to]];
    for (args, mut command) in commands.map(|args| (args, start(args))) {
        let mut told = String::new();
        BufReader::new(command.stderr.take().unwrap()).read_line(&mut told).unwrap();
        assert!(told.starts_with(&format!("waiting for s3://b at {endpoint}: no answer to get walkeep.json")), "{args:?}: {told}");
        assert!(command.try_wait().unwrap().is_none(), "{args:?} goes on waiting");
        process::signal(command.id(), "KILL");
        command.wait().unwrap();
    }
}

/// What failed is told once, and the hint is about that and nothing else.
#[test]
fn hints_are_about_what_failed() {
    let walkeep = Walkeep::offline(Repository::Local(PathBuf::from("/nonexistent/repository")));
    let mounted = walkeep.run(&["status"]).expect_code(1).stderr;
    assert!(mounted.contains("/nonexistent/repository") && mounted.contains("mounted") && mounted.contains("`walkeep init`"), "{mounted}");
    let down = walkeep.run(&["init"]).expect_code(1).stderr;
    assert_eq!(down.matches("No such file or directory").count(), 1, "{down}");
    assert!(down.contains("Is the server running") && !down.contains("pg_hba") && !down.contains("role"), "{down}");
    let cluster = Cluster::builder().segment_mib(1).start();
    let mut walkeep = Walkeep::local(&cluster);
    walkeep.connection = cluster.connection().replace("user=postgres", "user=nobody_here");
    walkeep.write_config();
    let refused = walkeep.run(&["init"]).expect_code(1).stderr;
    assert!(refused.contains("nobody_here") && refused.contains("pg_hba.conf"), "{refused}");
    walkeep.connection = cluster.connection();
    walkeep.write_config();
    std::fs::set_permissions(walkeep.local_repository(), PermissionsExt::from_mode(0o500)).unwrap();
    let closed = walkeep.run(&["init"]).expect_code(1).stderr;
    assert!(closed.contains("must belong to the user") && !closed.contains("credentials"), "{closed}");
}

/// What cannot be done whatever the repository holds is said before it is asked.
#[test]
fn what_cannot_be_meant_is_refused_before_anything_is_read() {
    let walkeep = Walkeep::offline(Repository::Local(PathBuf::from("/nonexistent/repository")));
    let to = walkeep.scratch().join("to").to_string_lossy().into_owned();
    for target in
        [&["--exclusive"][..], &["--immediate", "--exclusive"], &["--latest", "--exclusive"], &["--restore-point", "p", "--exclusive"]]
    {
        let plan = walkeep.run(&[&["plan"], target].concat()).expect_code(2);
        assert!(plan.stderr.contains("--exclusive goes with"), "{plan:?}");
        walkeep.run(&[&["restore", "--to", &to], target].concat()).expect_code(2);
    }
    walkeep.run(&["plan", "--at", "2026-11-20 14:30:00"]).expect_code(2);
    for action in ["pause", "shutdown"] {
        let refused = walkeep.run(&["restore", "--to", &to, "--action", action]).expect_code(2);
        assert!(refused.stderr.contains("--action"), "{refused:?}");
    }
    // The repository is not even there: the directory comes first.
    walkeep.run(&["restore", "--to", &to]).expect_code(1);
    walkeep.scratch().dir("full");
    walkeep.scratch().write("full/file", "", 0o600);
    let closed = walkeep.scratch().dir("closed");
    std::fs::set_permissions(&closed, PermissionsExt::from_mode(0o500)).unwrap();
    let scratch = |name: &str| walkeep.scratch().join(name).to_string_lossy().into_owned();
    for (to, why) in [
        (scratch("full"), "is not empty"),
        (scratch("closed"), "cannot be written"),
        (scratch("closed/new"), "cannot be made"),
        (scratch("full/file/new"), "not a directory"),
        (scratch("walkeep.toml"), "is not a directory"),
    ] {
        let refused = walkeep.run(&["restore", "--to", &to]).expect_code(3);
        assert!(refused.stderr.starts_with("refused: ") && refused.stderr.to_lowercase().contains(why), "{to}: {refused:?}");
    }
}

/// Words that were wrong, or came at the wrong time.
#[test]
fn words_fit_what_they_are_about() {
    let cluster = Cluster::builder().segment_mib(1).start();
    let mut walkeep = walkeep(&cluster, Store::Local);
    walkeep.ok(&["backup"]);
    let plan = walkeep.ok(&["plan"]).stdout;
    assert!(plan.contains("To do it: walkeep restore") && !plan.contains("1 files") && !plan.contains("1 objects"), "{plan}");
    let to = walkeep.scratch().join("restored");
    let restored = walkeep.ok(&["restore", "--to", &to.to_string_lossy()]).stdout;
    assert!(restored.contains("stops at") && !restored.contains("To do it"), "{restored}");
    assert_eq!(walkeep.ok(&["timelines", "--json"]).json()[0]["ancestry_known"], true);
    let missing = cluster.pg_wal().join("0000000100000000000000F0");
    let pushed = walkeep.run(&["wal", "push", &missing.to_string_lossy()]).expect_code(1).stderr;
    assert!(pushed.contains("0000000100000000000000F0: No such file") && pushed.contains("hint: There is no such file"), "{pushed}");
    let current = cluster.sql("SELECT pg_walfile_name(pg_current_wal_lsn())").trim().to_owned();
    let pushed = walkeep.run(&["wal", "push", &cluster.pg_wal().join(current).to_string_lossy()]).expect_code(1).stderr;
    assert!(pushed.contains("is not finished") && pushed.contains(".ready"), "{pushed}");
    let secret = walkeep.scratch().write("secret", "HUSH77", 0o644);
    let config = std::fs::read_to_string(walkeep.config_path()).unwrap();
    let s3 = format!(
        "url = \"s3://b\"\nendpoint = \"http://127.0.0.1:1\"\naccess_key_id = \"AK\"\nsecret_access_key_file = \"{}\"\n",
        secret.display()
    );
    let url = format!("url = \"file://{}\"\n", walkeep.local_repository().display());
    walkeep.scratch().write("walkeep.toml", config.replace(&url, &s3), 0o600);
    let open = walkeep.run(&["status"]).expect_code(1).stderr;
    assert!(open.contains("(mode 0644): chmod 400") && !open.contains("HUSH77"), "{open}");
    walkeep.cluster_lines.clear();
    walkeep.write_config();
    if user::is_root() {
        let mut init = Command::new(binary("walkeep"));
        let output = run(init.args(["init", "--offline"]).env_clear().env("WALKEEP_CONFIG", walkeep.config_path()));
        assert!(output.ok() && output.stderr.contains("warning: run as root") && output.stderr.contains("chown -R"), "{output:?}");
    }
}

/// A certificate that is not trusted is told at once, and with what to do.
#[test]
fn a_refused_certificate_is_told_with_the_remedy() {
    let walkeep = Walkeep::offline(Repository::S3 {
        endpoint: S3Server::get().https_endpoint(),
        bucket: S3Server::get().bucket().name,
        prefix: String::new(),
        ca: None,
    });
    let output = walkeep.run(&["status"]).expect_code(1);
    assert!(output.stderr.contains("certificate") && output.stderr.contains("`ca_file`"), "{output:?}");
}

/// I5
#[test]
fn hostile_names_in_the_repository_are_ignored() {
    let cluster = Cluster::builder().segment_mib(1).start();
    let bucket = S3Server::get().bucket();
    let walkeep = Walkeep::new(&cluster, Repository::s3(S3Server::get().endpoint(), &bucket));
    walkeep.ok(&["init"]);
    let agent = walkeep.agent();
    let name = switch_and_store(&cluster, &agent, 1);
    let status = || {
        let mut status = walkeep.ok(&["status", "--json"]).json();
        status["agent"] = serde_json::Value::Null;
        status
    };
    agent.stop();
    let before = status();
    let root = format!("main/{}", cluster.system_identifier());
    let folder = format!("{root}/wal/00000001/00000000");
    for key in [
        format!("{folder}/0000000100000000000000FE.gz.tmp"),
        format!("{folder}/0000000100000000000000fe.zst"),
        format!("{folder}/0000000100000000000000FE.zst.tmp"),
        format!("{folder}/0000000200000000000000FE.zst"),
        format!("{folder}/0000000100000001000000FE.zst"),
        format!("{folder}/new\nline.zst"),
        format!("{folder}/{}", "x".repeat(700)),
        format!("{folder}/'; DROP TABLE wal; --"),
        format!("{folder}/$(touch owned)"),
        format!("{folder}/{name}.parts/zzz"),
        format!("{root}/wal/00000000.history.zst"),
        format!("{root}/wal/FFFFFFFFF.history.zst"),
        format!("{root}/gaps/00000001-nonsense.json"),
        format!("{root}/backups/../../escape/backup.json"),
        format!("{root}/backups/nonsense/backup.json"),
        "main/18446744073709551615/wal/00000001/00000000/0000000100000000000000FE.zst".to_owned(),
        "other/cluster.json".to_owned(),
    ] {
        // A server may refuse such a key itself.
        let put = std::panic::catch_unwind(|| bucket.put(&key, b"hostile"));
        eprintln!("{key:?}: {}", if put.is_ok() { "put" } else { "refused by the server" });
    }
    assert_eq!(status(), before);
    for command in [&["timelines"][..], &["backups"], &["status"]] {
        let output = walkeep.ok(command);
        assert!(!output.stdout.contains("DROP") && !output.stderr.contains("panicked"), "{output:?}");
    }
    let agent = walkeep.agent();
    switch_and_store(&cluster, &agent, 1);
    assert!(!fetch(&walkeep, &name).is_empty());
    assert_calm(&agent, &["a name that is none of ours"]);
    agent.stop();
}

#[test]
fn every_command_has_help() {
    let walkeep = Walkeep::offline(Repository::Local(PathBuf::from("/nonexistent")));
    for command in [
        "",
        "init",
        "agent",
        "check",
        "backup",
        "status",
        "backups",
        "timelines",
        "lease",
        "key generate",
        "key list",
        "key add",
        "key remove",
        "plan",
        "restore",
        "thaw",
        "demo",
        "wal push",
        "wal fetch",
    ] {
        let args: Vec<_> = command.split(' ').filter(|word| !word.is_empty()).chain(["--help"]).collect();
        let help = walkeep.ok(&args);
        assert!(help.stdout.contains("Usage: walkeep") && help.stdout.contains("Example"), "{command}: {}", help.stdout);
        assert!(help.stderr.is_empty(), "{command}: {}", help.stderr);
    }
    for shim in ["walkeep-archive-cmd", "walkeep-restore-cmd"] {
        let help = run(&mut walkeep.command_of(shim, &["--help"])).expect_code(0);
        assert!(help.stdout.contains("Usage:") && help.stdout.contains("Exit status"), "{}", help.stdout);
        assert!(run(&mut walkeep.command_of(shim, &["--version"])).expect_code(0).stdout.starts_with(shim));
    }
    walkeep.run(&["no-such-command"]).expect_code(2);
    walkeep.run(&["status", "--no-such-option"]).expect_code(2);
    assert!(walkeep.run(&["wal", "fetch", "--no-such-option"]).code.unwrap() > 125);
}

/// `walkeep status | head -1`: the reader has gone before, or while, the command speaks. Nothing panics, and the work is done.
#[test]
fn a_reader_that_goes_away_changes_nothing() {
    let cluster = Cluster::builder().segment_mib(1).start();
    let walkeep = uninitialised(&cluster, Store::Local);
    let restored = walkeep.scratch().join("restored");
    let closed = || {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        writer
    };
    for args in [
        &["init"][..],
        &["init", "--json"],
        &["backup"],
        &["status"],
        &["status", "--json"],
        &["backups"],
        &["timelines"],
        &["plan"],
        &["plan", "--json"],
        &["restore", "--to", &restored.to_string_lossy()],
        &["--help"],
        &["--version"],
    ] {
        let output = walkeep.command(args).stdin(Stdio::null()).stdout(closed()).stderr(Stdio::piped()).spawn().unwrap();
        let output = output.wait_with_output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(0) && !told.contains("panicked"), "{args:?}: {:?} {told}", output.status);
    }
    assert!(restored.join("global/pg_control").exists(), "the restore was done to its end");
    for (args, code) in [(&["status"][..], 0), (&["check", "--timeout", "1s"], 1), (&["plan", "--lsn", "FF/0"], 3), (&["status", "--x"], 2)]
    {
        let status = walkeep.command(args).stdin(Stdio::null()).stdout(closed()).stderr(closed()).status().unwrap();
        assert_eq!(status.code(), Some(code), "{args:?} with nobody to listen at all");
    }
    // A full disk behind the redirection is another matter.
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    assert_eq!(walkeep.command(&["status"]).stdout(full).stderr(Stdio::null()).status().unwrap().code(), Some(1));
    // The agent's log is read by nobody, and the agent goes on.
    let mut agent = walkeep.command(&["agent"]).stdin(Stdio::null()).stdout(closed()).stderr(closed()).spawn().unwrap();
    wait_until("it streams", SOON, || http::get(&walkeep.http_address(), "/readyz").is_ok_and(|(status, _)| status == 200));
    assert!(agent.try_wait().unwrap().is_none());
    process::signal(agent.id(), "TERM");
    assert_eq!(agent.wait().unwrap().code(), Some(0));
}

/// X3
#[test]
fn secrets_are_told_nowhere() {
    const PASSWORD: &str = "SENTINELpassword";
    let cluster = Cluster::builder().segment_mib(1).start();
    let proxy = S3Server::get().proxy();
    let mut walkeep = Walkeep::new(&cluster, Repository::s3(proxy.endpoint(), &S3Server::get().bucket()));
    walkeep.connection = format!("{} password={PASSWORD}", cluster.connection());
    walkeep.more = "\n[log]\nlevel = \"trace\"\n".to_owned();
    walkeep.write_config();
    let mut told = vec![("init", format!("{:?}", walkeep.ok(&["init"])))];
    let agent = walkeep.agent();
    switch_and_store(&cluster, &agent, 1);
    // Trouble of every kind, which is told with all details.
    proxy.close();
    cluster.switch_wal();
    wait_until("it complains", SOON, || agent.log().contains("trying again"));
    proxy.open();
    cluster.restart();
    switch_and_store(&cluster, &agent, 1);
    told.push(("the log", agent.log()));
    for page in ["/metrics", "/", "/healthz", "/readyz", "/status"] {
        told.push((page, agent.get(page).map(|(_, text)| text).unwrap_or_default()));
    }
    told.push((
        "the command line",
        String::from_utf8_lossy(&std::fs::read(format!("/proc/{}/cmdline", agent.pid())).unwrap()).into_owned(),
    ));
    for command in [&["status"][..], &["check"], &["status", "--json"]] {
        told.push((command[0], format!("{:?}", walkeep.run(command))));
    }
    agent.stop();
    walkeep.connection = format!("postgres://postgres:{PASSWORD}@127.0.0.1:1/x?unheard=of&connect_timeout=1");
    walkeep.write_config();
    told.push(("a refused URL", format!("{:?}", walkeep.run(&["check"]))));
    walkeep.connection = format!("host=127.0.0.1 port=1 password='{PASSWORD}");
    walkeep.write_config();
    told.push(("an unclosed quote", format!("{:?}", walkeep.run(&["check"]))));
    walkeep.connection = format!("host=127.0.0.1 port={PASSWORD} password={PASSWORD}");
    assert!(told[1].1.contains("DEBUG"), "it is talkative");
    for (place, text) in told {
        for secret in [PASSWORD, s3::SECRET_KEY] {
            let line = text.lines().find(|line| line.contains(secret));
            assert!(line.is_none(), "{secret} in {place}: {line:?}");
        }
    }
}

/// Credentials that end, as of a role or a login: when they do is told, and new ones are taken in time.
#[test]
fn credentials_that_end_are_renewed() {
    let cluster = Cluster::builder().segment_mib(1).start();
    let server = S3Server::get();
    let mut walkeep = Walkeep::new(&cluster, Repository::s3(server.endpoint(), &server.bucket()));
    let key = |name: &str| walkeep.environment.iter().find(|(known, _)| known == name).unwrap().1.clone();
    let scratch = walkeep.scratch();
    let given = scratch.write("given", "", 0o666);
    // Fresh for some seconds: they are renewed five minutes before their end.
    let script = format!(
        "#!/bin/sh\necho x >> {}\nprintf '{{\"Version\": 1, \"AccessKeyId\": \"{}\", \"SecretAccessKey\": \"{}\", \"Expiration\": \"%s\"}}' \"$(date -u -d '+305 seconds' +%FT%TZ)\"\n",
        given.display(),
        key("AWS_ACCESS_KEY_ID"),
        key("AWS_SECRET_ACCESS_KEY")
    );
    let script = scratch.write("credentials", script, 0o755);
    let shared = scratch.write("aws", format!("[default]\ncredential_process = {}\n", script.display()), 0o644);
    walkeep.environment.retain(|(name, _)| !name.starts_with("AWS_"));
    walkeep.environment.push(("AWS_CONFIG_FILE".to_owned(), shared.display().to_string()));
    walkeep.ok(&["init"]);
    let given = || std::fs::read_to_string(&given).unwrap().lines().count();
    let (before, agent) = (given(), walkeep.agent());
    let end = || agent.metric("walkeep_credentials_expiry_timestamp_seconds").filter(|end| *end > 0.0);
    wait_until("their end is told", SOON, || end().is_some());
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
    let left = end().unwrap() - now;
    assert!((270.0..=306.0).contains(&left), "{left} s");
    wait_until("new ones are taken", SOON, || {
        switch_and_store(&cluster, &agent, 1);
        given() >= before + 2
    });
    assert_calm(&agent, &[]);
    agent.stop();
}
