//! X4: a store whose certificate is over, not yet valid, for another name or of nobody known is refused, and so is one that leads away from TLS.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use walkeep_tests::ports::Port;
use walkeep_tests::{Repository, S3Server, Scratch, Walkeep, user, wait_until};

use crate::clocks::library;
use crate::story::PATIENCE;

/// A TLS server that answers with files of its folder. Killed when dropped.
struct Server(Child, Port);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn openssl(folder: &Path, clock: Option<&str>, words: &str) {
    let mut command = Command::new("openssl");
    command.current_dir(folder).args(words.split(' '));
    if let Some(by) = clock {
        command.env("LD_PRELOAD", library()).env("FAKETIME", by);
    }
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{words}: {}", String::from_utf8_lossy(&output.stderr));
}

const KEY: &str = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";

/// A certificate for `names` of the folder's authority, made when the clock showed this.
fn certificate(folder: &Path, name: &str, names: &str, clock: Option<&str>) {
    std::fs::write(folder.join("names"), format!("subjectAltName={names}\n")).unwrap();
    openssl(folder, clock, &format!("req -keyout {name}.key -out {name}.csr -subj /CN=x {KEY}"));
    openssl(
        folder,
        clock,
        &format!("x509 -req -in {name}.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 30 -out {name}.crt -extfile names"),
    );
}

fn serve(folder: &Path, name: &str) -> Server {
    let port = Port::free();
    let mut command = Command::new("openssl");
    command.current_dir(folder).args(["s_server", "-quiet", "-HTTP", "-accept", &format!("127.0.0.1:{}", port.number())]);
    command.args(["-cert", &format!("{name}.crt"), "-key", &format!("{name}.key")]);
    let server = Server(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap(), port);
    wait_until("it listens", PATIENCE, || std::net::TcpStream::connect(("127.0.0.1", server.1.number())).is_ok());
    server
}

fn walkeep(endpoint: String, ca: PathBuf) -> Walkeep {
    Walkeep::offline(Repository::S3 { endpoint, bucket: "bucket".to_owned(), prefix: String::new(), ca: Some(ca) })
}

#[test]
fn a_store_that_cannot_be_trusted_is_refused() {
    if !Path::new(&library()).exists() {
        eprintln!("SKIPPED: libfaketime is not here");
        return;
    }
    let scratch = Scratch::new();
    let folder = scratch.dir("tls");
    openssl(&folder, Some("-3y"), &format!("req -x509 -keyout ca.key -out ca.crt -days 3650 -subj /CN=authority {KEY}"));
    openssl(&folder, None, &format!("req -x509 -keyout own.key -out own.crt -days 30 -subj /CN=localhost {KEY}"));
    certificate(&folder, "over", "DNS:localhost", Some("-1y"));
    certificate(&folder, "early", "DNS:localhost", Some("+1y"));
    certificate(&folder, "elsewhere", "DNS:example.org", None);
    certificate(&folder, "good", "DNS:localhost", None);
    user::give(&folder);
    user::give(&folder.join("ca.crt"));
    for (name, told) in [
        ("over", "renew the server's certificate"),
        ("early", "set this machine's clock"),
        ("elsewhere", "for another name"),
        ("own", "`ca_file`"),
    ] {
        let server = serve(&folder, name);
        let refused = walkeep(format!("https://localhost:{}", server.1.number()), folder.join("ca.crt")).run(&["status"]).expect_code(1);
        assert!(refused.stderr.contains("certificate") && refused.stderr.contains(told), "{name}: {refused:?}");
    }

    // Trusted, but it leads to plain HTTP: nobody goes there, neither with a request nor with its signature.
    let plain = S3Server::get().proxy();
    let away =
        format!("HTTP/1.1 307 Temporary Redirect\r\nLocation: {}/bucket/walkeep.json\r\nContent-Length: 0\r\n\r\n", plain.endpoint());
    std::fs::create_dir(folder.join("bucket")).unwrap();
    for name in ["walkeep.json", "walkeep.json?x-id=GetObject"] {
        std::fs::write(folder.join("bucket").join(name), &away).unwrap();
    }
    let server = serve(&folder, "good");
    let refused = walkeep(format!("https://localhost:{}", server.1.number()), folder.join("ca.crt")).run(&["status"]).expect_code(1);
    assert!(refused.stderr.contains("307"), "{refused:?}");
    assert!(plain.requests().is_empty(), "{:?}", plain.requests());
    // A server that speaks plain HTTP where TLS is wanted.
    let refused = walkeep(plain.endpoint().replace("http://127.0.0.1", "https://localhost"), folder.join("ca.crt")).run(&["status"]);
    assert!(refused.code == Some(1) && plain.requests().is_empty(), "{refused:?} {:?}", plain.requests());
}
