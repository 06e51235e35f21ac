use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;
use crate::config::Secret;

fn from() -> From {
    From { cluster: "main".into(), host: "db1".into() }
}

fn webhook(port: u16) -> Channel {
    Channel::Webhook(SecretSource::Given(Secret::from(format!("http://127.0.0.1:{port}/hook/sentinel-1"))))
}

/// Answers one request with `answer` and gives back what was asked.
async fn one_request(listener: TcpListener, answer: &'static str) -> String {
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut request = Vec::new();
    while !String::from_utf8_lossy(&request).contains("\"}") && !request.ends_with(b"\r\n\r\n") {
        let mut piece = [0; 4096];
        let read = stream.read(&mut piece).await.unwrap();
        request.extend_from_slice(&piece[..read]);
    }
    stream.write_all(answer.as_bytes()).await.unwrap();
    String::from_utf8(request).unwrap()
}

#[tokio::test]
async fn a_webhook_is_told_and_its_secret_is_in_no_error() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let channel = webhook(listener.local_addr().unwrap().port());
    let message = Message::test(Utc::now());
    let from = from();
    let (request, sent) =
        tokio::join!(one_request(listener, "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"), channel.send(&message, &from));
    sent.unwrap();
    assert!(
        request.starts_with("POST /hook/sentinel-1 HTTP/1.1\r\n") && request.contains("{\"text\":\"Walkeep, TEST: messages of main"),
        "{request}"
    );
    let nobody = channel.send(&message, &from).await.unwrap_err();
    assert!(format!("{nobody:#}").contains("127.0.0.1") && !format!("{nobody:?}").contains("sentinel"), "{nobody:?}");
    for (answer, said) in [
        ("HTTP/1.1 403 Forbidden\r\nconnection: close\r\n\r\ninvalid_token", "403 Forbidden: invalid_token"),
        // It would be somebody whom nobody named.
        ("HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\nconnection: close\r\n\r\n", "302 Found"),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let channel = webhook(listener.local_addr().unwrap().port());
        let (_, sent) = tokio::join!(one_request(listener, answer), channel.send(&message, &from));
        let error = format!("{:?}", sent.unwrap_err());
        assert!(error.contains(said) && !error.contains("sentinel"), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn who_does_not_answer_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let channel = webhook(listener.local_addr().unwrap().port());
    let error = channel.send(&Message::test(Utc::now()), &from()).await.unwrap_err();
    assert!(format!("{error:#}").contains("no answer within 20 s"), "{error:#}");
}

#[tokio::test]
async fn a_command_gets_it_in_its_environment_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("told");
    let argv = |script: String| Channel::Command(["/bin/sh".into(), "-c".into(), script].into());
    argv(format!("env > {}", file.display())).send(&Message::test(Utc::now()), &from()).await.unwrap();
    let told = std::fs::read_to_string(&file).unwrap();
    for line in ["WALKEEP_EVENT=test", "WALKEEP_NAME=main", "WALKEEP_SUBJECT=TEST: messages of main arrive here"] {
        assert!(told.lines().any(|told| told == line), "{line} in {told}");
    }
    assert!(told.contains("WALKEEP_JSON={\"event\":\"test\"") && !told.contains("CARGO"), "{told}");
    let failed = argv("echo no >&2; exit 3".into()).send(&Message::test(Utc::now()), &from()).await.unwrap_err();
    assert!(format!("{failed:#}").contains("exit status: 3: no"), "{failed:#}");
}

/// What a real mail server is told of a mail; the story has another one.
#[tokio::test]
async fn a_mail_server_out_of_reach_is_named() {
    let port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let tls = crate::config::MailTls::None;
    let password = SecretSource::Given(Secret::from("sentinel-2".to_owned()));
    let mail = EmailConfig {
        host: "127.0.0.1".into(),
        port,
        tls,
        login: Some(("u".into(), password)),
        from: "a@b.c".into(),
        to: vec!["d@e.f".into()],
    };
    let error = Channel::Email(Box::new(mail)).send(&Message::test(Utc::now()), &from()).await.unwrap_err();
    assert!(format!("{error:#}").contains(&format!("127.0.0.1:{port}")) && !format!("{error:?}").contains("sentinel"), "{error:?}");
}

#[tokio::test]
async fn what_was_told_is_in_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("notify.webhook.json");
    let rules = Rules { wait: Some(Duration::ZERO), remind: None, most_an_hour: 10 };
    let signs = walkeep_core::alarm::Signs { gaps: Some(1), receives: true, ..Default::default() };
    let judged = || Judge::new(Duration::from_secs(60)).look(&signs, Utc::now());
    let mut memory = Memory::load(file.clone());
    let message = memory.look(&judged(), &rules, Utc::now()).await.unwrap();
    memory.settle(&message, true).await;
    assert!(Memory::load(file.clone()).look(&judged(), &rules, Utc::now()).await.is_none(), "told before");
    std::fs::write(&file, "nonsense").unwrap();
    assert!(Memory::load(file).look(&judged(), &rules, Utc::now()).await.is_some(), "once more is better than never");
}
