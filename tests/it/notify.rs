//! Messages to people: what is wrong, that it is over, by every way; and the heartbeat.

use std::net::ToSocketAddrs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use walkeep_tests::{MailServer, Receiver, Repository, S3Server, Stop, Walkeep, process, wait_for, wait_until};

use crate::story::{self, PATIENCE};

const VERSION: u32 = 15;
/// A part of URLs that nobody may read in a log.
const SENTINEL: &str = "sentinel-4711";

/// The messages that came by the webhook.
fn told(receiver: &Receiver) -> Vec<String> {
    receiver.received("POST").iter().map(|request| request.text()).collect()
}

/// The repository is away, and comes back: the failure and its end are told, the heartbeat falls silent meanwhile.
#[test]
fn the_repository_is_away_and_back() {
    let cluster = story::builder(VERSION).start();
    let (server, receiver) = (S3Server::get(), Receiver::start());
    let proxy = server.proxy();
    let mut walkeep = Walkeep::new(&cluster, Repository::s3(proxy.endpoint(), &server.bucket()));
    let lines = walkeep.scratch().join("told");
    walkeep.more = format!(
        "[log]\nlevel = \"debug\"\n[notify]\nwebhook_file = \"{}\"\nwait = \"1s\"\npossible_loss = \"1s\"\nheartbeat_interval = \"1s\"\n\
         command = 'echo \"$WALKEEP_EVENT $WALKEEP_SEVERITY $WALKEEP_SUBJECT\" >> {}'\n",
        walkeep.scratch().write("webhook", receiver.url(&format!("/hook/{SENTINEL}\n")), 0o600).display(),
        lines.display()
    );
    walkeep.scratch().write("told", "", 0o666);
    walkeep.environment.push(("WALKEEP_NOTIFY_HEARTBEAT".into(), receiver.url(&format!("/beat/{SENTINEL}"))));
    walkeep.write_config();
    walkeep.ok(&["init"]);
    let agent = walkeep.agent();
    cluster.sql("CREATE TABLE t (i int PRIMARY KEY, filler text)");
    let beats = || receiver.received("GET").len();
    wait_until("the heart beats", PATIENCE, || beats() > 2);

    proxy.close();
    story::insert(&cluster, 10);
    let failure =
        wait_for("a failure is told", PATIENCE, || told(&receiver).into_iter().find(|text| text.contains("PossibleLoss on main")));
    assert!(failure.contains("- warning: ") && failure.contains("of commits would be lost with the server"), "{failure}");
    wait_until("it is critical", PATIENCE, || told(&receiver).iter().any(|text| text.contains("CRITICAL: PossibleLossLarge")));
    wait_until("the heart stands still", PATIENCE, || agent.log().contains("the heartbeat falls silent"));
    let silent = beats();

    proxy.open();
    let over = |text: &String| text.contains("OK: main has recovered") && text.contains("- over: ");
    wait_until("that it is over is told", PATIENCE, || told(&receiver).iter().any(over));
    wait_until("the heart beats again", PATIENCE, || beats() > silent + 1);
    // By the other way the same was told.
    let by_command = || std::fs::read_to_string(&lines).unwrap();
    wait_until("the command is told too", PATIENCE, || by_command().contains("recovery  OK: main has recovered"));
    assert!(by_command().contains("failure warning WARNING: PossibleLoss on main"), "{}", by_command());
    for channel in ["webhook", "command", "heartbeat"] {
        let sent = agent.metric(&format!("walkeep_notifications_total{{channel=\"{channel}\",result=\"sent\"}}"));
        assert!(sent.is_some_and(|sent| sent >= 2.0), "{channel}: {sent:?}");
    }
    let log = agent.log();
    assert!(log.contains("DEBUG") && !log.contains(SENTINEL), "the URL's secret is in the log");
    assert!(!agent.metrics().contains(SENTINEL));
    agent.stop();
}

/// A message that does not arrive is tried again, no more are sent than may be, and a killed agent's successor knows what was told.
#[test]
fn no_message_is_lost_and_none_is_told_twice() {
    let cluster = story::builder(VERSION).start();
    let receiver = Receiver::start();
    let mut walkeep = Walkeep::local(&cluster);
    walkeep.more = "[notify]\nwait = \"1s\"\nmost_an_hour = 2\n".to_owned();
    walkeep.environment.push(("WALKEEP_NOTIFY_WEBHOOK".into(), receiver.url("/hook")));
    walkeep.write_config();
    walkeep.ok(&["init"]);
    let mut agent = walkeep.agent();
    receiver.answer(500);
    cluster.stop(Stop::Fast);
    wait_until("it is tried twice", PATIENCE, || receiver.received("POST").len() >= 2);
    assert!(agent.metric("walkeep_notifications_total{channel=\"webhook\",result=\"failed\"}").is_some_and(|failed| failed >= 2.0));
    receiver.answer(200);
    let sent = |agent: &walkeep_tests::Agent| agent.metric("walkeep_notifications_total{channel=\"webhook\",result=\"sent\"}");
    wait_until("it arrives", PATIENCE, || sent(&agent) == Some(1.0));
    let arrived = receiver.received("POST").len();
    let kept = || {
        let text = std::fs::read_to_string(walkeep.spool().join("notify.webhook.json")).unwrap();
        serde_json::from_str::<serde_json::Value>(&text).unwrap()
    };
    let stream = |kept: serde_json::Value| {
        kept["known"].as_array().unwrap().iter().find(|known| known["alarm"] == "NoStream").cloned().unwrap_or_default()
    };
    wait_until("that it was told is kept", PATIENCE, || stream(kept())["told"].is_string());

    agent.kill9();
    let agent = walkeep.launch_agent().unwrap();
    cluster.start();
    wait_until("its end is told", PATIENCE, || sent(&agent) == Some(1.0));
    let messages = told(&receiver);
    assert_eq!(messages.len(), arrived + 1, "once more and nothing else: {messages:?}");
    assert!(messages.last().unwrap().contains("OK: main has recovered from NoStream"), "{messages:?}");

    // Two within an hour are enough: what comes now waits.
    cluster.stop(Stop::Fast);
    wait_until("it is known", PATIENCE, || stream(kept())["since"].is_string());
    wait_until("it has held for several looks", PATIENCE, || {
        let changed = std::fs::metadata(walkeep.spool().join("notify.webhook.json")).and_then(|data| data.modified()).unwrap();
        changed.elapsed().is_ok_and(|elapsed| elapsed > Duration::from_secs(7))
    });
    assert_eq!(told(&receiver).len(), arrived + 1);
    assert!(stream(kept())["told"].is_null());
    drop(agent);
}

/// By TLS, to a server whose authority is trusted, and with a login: nothing is sent otherwise, and the password is told nowhere.
#[test]
fn mail_goes_by_tls_and_with_a_login() {
    let host = process::run(&mut std::process::Command::new("hostname")).unwrap();
    let host = host.trim();
    let ways = [(true, "smtps://127.0.0.1"), (false, &format!("smtp://{host}"))];
    for (always, server) in ways {
        if (host, 1).to_socket_addrs().is_err() && !always {
            eprintln!("SKIPPED STARTTLS: this host's name {host} has no address");
            continue;
        }
        let mail = MailServer::with_login(always, "walkeep", SENTINEL);
        let mut walkeep = Walkeep::offline(Repository::Local("/nowhere".into()));
        let password = walkeep.scratch().join("password");
        walkeep.scratch().write("password", SENTINEL, 0o600);
        walkeep.more = format!(
            "[notify.email]\nserver = \"{server}:{}\"\nuser = \"walkeep\"\npassword_file = \"{}\"\nfrom = \"walkeep@db.example\"\nto = [\"dba@example.org\"]\n",
            mail.port(),
            password.display()
        );
        walkeep.write_config();
        let untrusted = walkeep.run(&["notify", "--test"]).expect_code(1);
        assert!(untrusted.stdout.contains("certificate"), "{untrusted:?}");
        walkeep.environment.push(("SSL_CERT_FILE".into(), S3Server::get().ca().display().to_string()));
        walkeep.ok(&["notify", "--test"]);
        assert!(mail.printed().contains("Subject: TEST: messages of main arrive here"), "{}", mail.printed());
        walkeep.scratch().write("password", format!("not {SENTINEL}"), 0o600);
        let refused = walkeep.run(&["notify", "--test"]).expect_code(1);
        assert!(refused.stdout.contains("535") && !format!("{refused:?}").contains(SENTINEL), "{refused:?}");
        assert_eq!(mail.printed().matches("Subject: ").count(), 1, "{}", mail.printed());
    }
}

/// An operator tries whether messages arrive.
#[test]
fn each_way_can_be_tried() {
    let (receiver, mail) = (Receiver::start(), MailServer::start());
    let mut walkeep = Walkeep::offline(Repository::Local("/nowhere".into()));
    let nobody = walkeep.run(&["notify", "--test"]).expect_code(2);
    assert!(nobody.stderr.contains("nobody is told"), "{}", nobody.stderr);

    let told = walkeep.scratch().write("told", "", 0o666);
    walkeep.more = format!(
        "[notify]\nwebhook = \"{}\"\ncommand = ['/bin/sh', '-c', 'echo \"$WALKEEP_TEXT\" > {}']\n\
         [notify.email]\nserver = \"smtp://127.0.0.1:{}\"\nfrom = \"walkeep@db.example\"\nto = [\"dba@example.org\", \"boss@example.org\"]\n",
        receiver.url(&format!("/hook/{SENTINEL}")),
        told.display(),
        mail.port()
    );
    walkeep.write_config();
    let listed = walkeep.ok(&["notify"]);
    assert!(listed.stdout.contains("dba@example.org") && !listed.stdout.contains(SENTINEL), "{}", listed.stdout);
    assert_eq!(receiver.received("POST").len(), 0, "it only lists them");
    let tried = walkeep.ok(&["notify", "--test", "--json"]).json();
    let arrived: Vec<_> =
        tried.as_array().unwrap().iter().map(|one| (one["channel"].as_str().unwrap(), one["arrived"].as_bool())).collect();
    assert_eq!(arrived, [("webhook", Some(true)), ("email", Some(true)), ("command", Some(true))]);
    assert!(receiver.received("POST")[0].text().contains("TEST: messages of main arrive here"));
    assert!(std::fs::read_to_string(&told).unwrap().contains("Nothing is wrong: somebody tried"));
    let printed = mail.printed();
    for line in
        ["From: Walkeep <walkeep@db.example>", "Subject: TEST: messages of main arrive here", "To: dba@example.org, boss@example.org"]
    {
        assert!(printed.contains(line), "{line} in {printed}");
    }
    assert!(printed.contains("Message-ID: <") && printed.contains("Date: "), "{printed}");

    // Whoever does not take it is named, and the others are tried all the same.
    receiver.answer(403);
    let failed = walkeep.run(&["notify", "--test"]).expect_code(1);
    assert!(
        failed.stdout.contains("webhook") && failed.stdout.contains("403") && failed.stdout.contains("taken after"),
        "{}",
        failed.stdout
    );
    assert!(failed.stderr.contains("no message arrived by webhook") && !(failed.stderr + &failed.stdout).contains(SENTINEL));

    // By TLS: a server whose authority nobody trusts gets nothing, and of one that is trusted the answer is told.
    let server = S3Server::get();
    walkeep.more = format!("[notify]\nwebhook = \"{}/hook/{SENTINEL}\"\n", server.https_endpoint());
    walkeep.write_config();
    let untrusted = walkeep.run(&["notify", "--test"]).expect_code(1);
    assert!(untrusted.stdout.contains("certificate") && !untrusted.stdout.contains(" answers "), "{}", untrusted.stdout);
    walkeep.environment.push(("SSL_CERT_FILE".into(), server.ca().display().to_string()));
    let trusted = walkeep.run(&["notify", "--test"]).expect_code(1);
    assert!(trusted.stdout.contains(" answers 4") && !trusted.stdout.contains(SENTINEL), "{}", trusted.stdout);

    // A secret that everybody reads is none.
    std::fs::set_permissions(walkeep.config_path(), PermissionsExt::from_mode(0o644)).unwrap();
    let shown = walkeep.run(&["notify"]).expect_code(2);
    assert!(shown.stderr.contains("notify.webhook_file") && !shown.stderr.contains(SENTINEL), "{}", shown.stderr);
}
