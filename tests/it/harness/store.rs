use std::process::Command;

use walkeep_tests::{Fault, S3Server, When, http, s3, user};

#[test]
fn objects_come_back_and_are_listed() {
    let bucket = S3Server::get().bucket();
    bucket.put("a/b c&d", b"one\ntwo");
    bucket.put("a/e", b"");
    assert_eq!(bucket.get("a/b c&d"), b"one\ntwo");
    assert_eq!(bucket.list("a/"), [("a/b c&d".to_owned(), 7), ("a/e".to_owned(), 0)]);
    bucket.delete("a/e");
    assert_eq!(bucket.list("").len(), 1);
    assert!(S3Server::get().bucket().list("").is_empty());
}

#[test]
fn buckets_are_many() {
    for _ in 0..30 {
        S3Server::get().bucket().put("k", &[7; 4096]);
    }
}

/// curl, signing for whatever address it speaks to.
fn curl(args: &[&str]) -> (u16, Vec<u8>) {
    let mut command = Command::new("curl");
    command.args(["-q", "-sS", "--noproxy", "*", "--max-time", "20", "--aws-sigv4", "aws:amz:us-east-1:s3"]);
    command.args(["--user", &format!("{}:{}", s3::ACCESS_KEY, s3::SECRET_KEY), "-H", "x-amz-content-sha256: UNSIGNED-PAYLOAD"]);
    let output = command.args(["-w", "\n%{http_code}"]).args(args).output().unwrap();
    let end = output.stdout.iter().rposition(|byte| *byte == b'\n').unwrap();
    let status = String::from_utf8_lossy(&output.stdout[end + 1..]).parse().unwrap();
    (status, output.stdout[..end].to_vec())
}

#[test]
fn signed_requests_pass_the_proxy_and_its_faults_hold() {
    let bucket = S3Server::get().bucket();
    let proxy = S3Server::get().proxy();
    let url = format!("{}/{}/wal/one", proxy.endpoint(), bucket.name);
    let put = ["-X", "PUT", "--data-binary", "content", "-H", "If-None-Match: *", &url];
    assert_eq!(curl(&put).0, 200);
    assert_eq!(curl(&put).0, 412);
    let armed = proxy.arm(When::put().path("wal/"), Fault::IgnoreIfNoneMatch);
    assert_eq!(curl(&put).0, 200);
    proxy.disarm(armed);
    // curl asks to continue before a body of this size.
    let large = vec![b'x'; 3 << 20];
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &large).unwrap();
    let from = format!("@{}", file.path().display());
    let sent = curl(&["-X", "PUT", "--data-binary", &from, "-H", "Expect: 100-continue", &url]);
    assert_eq!(sent.0, 200);
    assert_eq!(curl(&[&url]), (200, large.clone()));
    assert_eq!(bucket.get("wal/one"), large);
    let log = proxy.requests();
    assert_eq!(log.iter().map(|request| request.status.unwrap()).collect::<Vec<_>>(), [200, 412, 200, 200, 200]);
    assert_eq!((log[3].sent, log[4].received), (3 << 20, 3 << 20));
    // A put whose answer is lost has happened.
    proxy.arm(When::put().once(), Fault::DropAnswer);
    let lost = format!("{}/{}/lost", proxy.endpoint(), bucket.name);
    assert_eq!(curl(&["-X", "PUT", "--data-binary", "landed", &lost]).0, 0);
    assert_eq!(bucket.get("lost"), b"landed");
}

#[test]
fn a_wrong_key_is_refused_and_none_too() {
    let bucket = S3Server::get().bucket();
    bucket.put("k", b"v");
    let address = S3Server::get().endpoint().replace("http://", "");
    assert_eq!(http::get(&address, &format!("/{}/k", bucket.name)).unwrap().0, 403);
    let missing = format!("{}/no-such-bucket/k", S3Server::get().endpoint());
    assert_eq!(curl(&["-X", "PUT", "--data-binary", "v", &missing]).0, 404);
}

#[test]
fn tls_needs_the_own_authority() {
    let server = S3Server::get();
    let reach = |args: &[&str]| {
        let mut command = user::command("curl");
        command.args(["-q", "-sS", "-o", "/dev/null", "--noproxy", "*"]).args(args).arg(server.https_endpoint());
        command.output().unwrap().status.code()
    };
    assert_eq!(reach(&["--cacert", server.ca().to_str().unwrap()]), Some(0));
    assert_eq!(reach(&[]), Some(60), "curl: certificate problem");
}
