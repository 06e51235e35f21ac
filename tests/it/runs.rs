//! How commands from cron ended: a file that node_exporter reads, and a real Pushgateway.

use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

use walkeep_tests::ports::Port;
use walkeep_tests::process::Process;
use walkeep_tests::{Scratch, cache, try_wait_for, user};

use crate::story::{Story, listing};

/// A Pushgateway on loopback; none where it could not be fetched.
fn gateway(scratch: &Scratch) -> Option<(Process, Port)> {
    let program = cache().join("prometheus-pushgateway/prometheus-pushgateway");
    if !program.exists() {
        eprintln!("SKIPPED Pushgateway: tests/setup.sh could not have it");
        return None;
    }
    let port = Port::free();
    let mut command = user::command(program);
    command.arg(format!("--web.listen-address=127.0.0.1:{}", port.number()));
    let process = Process::start(command, &scratch.join("gateway.log")).unwrap();
    let listens = try_wait_for(Duration::from_secs(30), || TcpStream::connect(("127.0.0.1", port.number())).ok());
    assert!(listens.is_some(), "{}", process.log());
    Some((process, port))
}

fn pushed(port: &Port) -> String {
    let output = Command::new("curl").args(["-sSf", &format!("http://127.0.0.1:{}/metrics", port.number())]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The value of a command's metric, whatever other labels it has.
fn value(text: &str, name: &str, command: &str) -> Option<f64> {
    let label = format!("command=\"{command}\"");
    let line = text.lines().find(|line| line.starts_with(&format!("{name}{{")) && line.contains(&label))?;
    line.rsplit(' ').next()?.parse().ok()
}

#[test]
fn how_a_command_ended_is_in_a_file_and_at_the_gateway() {
    let mut story = Story::local(15);
    let folder = story.walkeep.scratch().dir("textfile");
    let gateway = gateway(story.walkeep.scratch());
    let push = gateway.as_ref().map_or_else(String::new, |(_, port)| format!("pushgateway = \"http://127.0.0.1:{}\"\n", port.number()));
    story.walkeep.more = format!("\n[metrics]\ntextfile = \"{}\"\n{push}backup_names = true\n", folder.display());
    story.walkeep.write_config();
    let stored = story.walkeep.ok(&["backup", "--json"]).json()["bytes_stored"].as_f64();
    story.walkeep.ok(&["verify"]);
    story.walkeep.run(&["backup", "--label", "not\na label"]).expect_code(2);
    story.stop_agent(&[]);
    let told = |command: &str| std::fs::read_to_string(folder.join(format!("walkeep_main_{command}.prom"))).unwrap();
    let all = |of: &str, command: &str, name: &str| (value(of, name, command), name.to_owned());
    for name in ["walkeep_run_last_status", "backup_last_run_status"] {
        assert_eq!(value(&told("backup"), name, "backup"), Some(1.0), "{name}");
    }
    assert_eq!(value(&told("verify"), "walkeep_run_last_exit_code", "verify"), Some(0.0));
    assert!(stored.is_some() && value(&told("backup"), "backup_size_bytes", "backup") == stored, "{stored:?}: {}", told("backup"));
    let success = value(&told("backup"), "walkeep_run_last_success_timestamp_seconds", "backup");

    // Something is damaged, and the server is gone: both fail, and the last success is known.
    let repository = story.walkeep.local_repository();
    let files = listing(&repository).into_iter().filter_map(|line| line.split(' ').next().map(str::to_owned));
    let mut packs = files.filter(|path| path.contains("/packs/") && repository.join(path).is_file());
    std::fs::remove_file(repository.join(packs.next().unwrap())).unwrap();
    story.walkeep.run(&["verify"]).expect_code(4);
    story.cluster.stop(walkeep_tests::Stop::Fast);
    story.walkeep.run(&["backup"]).expect_code(1);
    let mut places = vec![told("backup") + &told("verify")];
    places.extend(gateway.as_ref().map(|(_, port)| pushed(port)));
    for text in &places {
        for (found, name) in [
            all(text, "backup", "walkeep_run_last_success_timestamp_seconds"),
            all(text, "backup", "backup_last_success_timestamp_seconds"),
        ] {
            assert_eq!(found, success, "{name}: {text}");
        }
        assert_eq!(value(text, "walkeep_run_last_status", "backup"), Some(0.0), "{text}");
        assert_eq!(value(text, "walkeep_run_last_exit_code", "verify"), Some(4.0), "{text}");
    }
    let promtool = cache().join("promtool/promtool");
    if promtool.exists() {
        let check = format!("{} check metrics < {}/walkeep_main_verify.prom", promtool.display(), folder.display());
        let output = Command::new("sh").args(["-c", &check]).output().unwrap();
        assert!(output.status.success(), "{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    }

    // Neither can be written: a warning, and the command ends as it would.
    drop(gateway);
    std::fs::remove_dir_all(&folder).unwrap();
    let output = story.walkeep.run(&["verify"]).expect_code(4);
    assert!(output.stderr.contains("could not be written to [metrics] textfile"), "{}", output.stderr);
    assert!(push.is_empty() || output.stderr.contains("could not be pushed"), "{}", output.stderr);
}
