//! The proxy against a small server of the test's own, which answers what it got.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use walkeep_tests::http::request;
use walkeep_tests::{Fault, FaultProxy, When, wait_until};

const BODY: &[u8] = b"0123456789";

/// A server that answers GET with [`BODY`], `/chunked` in chunks, and anything else with the body it got; returns its port.
fn server() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let stream = stream.unwrap();
            std::thread::spawn(move || answer(&stream));
        }
    });
    port
}

fn answer(mut stream: &TcpStream) -> Option<()> {
    let mut reader = BufReader::new(stream);
    loop {
        let (mut head, mut length) = (String::new(), 0);
        while reader.read_line(&mut head).ok()? > 2 {
            let last = head.lines().last()?.to_ascii_lowercase();
            if let Some(value) = last.strip_prefix("content-length:") {
                length = value.trim().parse().ok()?;
            }
        }
        if head.contains("expect: 100-continue") {
            stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").ok()?;
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).ok()?;
        if head.contains("/chunked") {
            stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\n0123\r\n6\r\n456789\r\n0\r\n\r\n").ok()?;
            continue;
        }
        if head.starts_with("GET") {
            body = BODY.to_vec();
        }
        write!(stream, "HTTP/1.1 200 OK\r\nETag: \"plain\"\r\nContent-Length: {}\r\n\r\n", body.len()).ok()?;
        stream.write_all(&body).ok()?;
    }
}

fn get(proxy: &FaultProxy) -> (u16, String, Vec<u8>) {
    request(&proxy.address(), "GET", "/b/key", &[], b"").unwrap()
}

#[test]
fn passes_what_no_fault_is_for() {
    let proxy = FaultProxy::to(server());
    assert_eq!(get(&proxy).2, BODY);
    assert_eq!(request(&proxy.address(), "GET", "/chunked", &[], b"").unwrap().2, BODY);
    let (status, _, body) = request(&proxy.address(), "PUT", "/b/a%20b?x=1&y", &[("Expect", "100-continue")], b"body").unwrap();
    assert_eq!((status, body.as_slice()), (200, &b"body"[..]));
    let log = proxy.requests();
    assert_eq!((log[2].path.as_str(), log[2].query.as_str(), log[2].sent), ("/b/a b", "x=1&y", 4));
    assert_eq!(proxy.count(&When::get()), 2);
    assert_eq!(proxy.count(&When::any().path("a b").query("x=1")), 1);
    proxy.forget();
    assert!(proxy.requests().is_empty());
}

#[test]
fn a_connection_serves_many_requests() {
    let proxy = FaultProxy::to(server());
    let mut stream = TcpStream::connect(proxy.address()).unwrap();
    proxy.arm(When::any().skip(1).once(), Fault::SLOW_DOWN);
    let mut statuses = Vec::new();
    for _ in 0..3 {
        stream.write_all(b"PUT /k HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nok").unwrap();
        let mut reader = BufReader::new(&stream);
        let mut head = String::new();
        while reader.read_line(&mut head).unwrap() > 2 {}
        let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).unwrap().parse().unwrap();
        reader.read_exact(&mut vec![0; length]).unwrap();
        statuses.push(head[9..12].to_owned());
    }
    assert_eq!(statuses, ["200", "503", "200"]);
}

#[test]
fn error_answers_are_as_s3_gives_them() {
    let proxy = FaultProxy::to(server());
    for fault in [Fault::SLOW_DOWN, Fault::ACCESS_DENIED, Fault::EXPIRED_TOKEN, Fault::NO_SUCH_BUCKET, Fault::ErrorInOk("InternalError")] {
        proxy.arm(When::get().once(), fault.clone());
        let (status, _, body) = get(&proxy);
        let (expected, code) = match fault {
            Fault::Status(status, code) => (status, code),
            _ => (200, "InternalError"),
        };
        assert_eq!(status, expected);
        assert!(String::from_utf8(body).unwrap().contains(&format!("<Code>{code}</Code>")));
        assert_eq!(proxy.requests().last().unwrap().fault, Some(fault));
        assert_eq!(get(&proxy).0, 200);
    }
}

#[test]
fn bodies_are_cut_shortened_and_flipped() {
    let proxy = FaultProxy::to(server());
    let with = |fault| {
        proxy.arm(When::get().once(), fault);
        let (_, head, body) = get(&proxy);
        (head.contains("Content-Length: 10"), body)
    };
    assert_eq!(with(Fault::CutBody(3)), (true, b"012".to_vec()));
    assert_eq!(with(Fault::ShortBody(3)), (false, b"012".to_vec()));
    assert_eq!(with(Fault::FlipBit(2)), (true, b"0133456789".to_vec()));
    assert_eq!(with(Fault::FlipBit(-1)), (true, b"0123456788".to_vec()));
    assert!(with(Fault::StrangeEtag).0);
}

#[test]
fn an_etag_can_be_anything() {
    let proxy = FaultProxy::to(server());
    assert!(get(&proxy).1.contains("plain"));
    proxy.arm(When::get(), Fault::StrangeEtag);
    assert!(!get(&proxy).1.contains("plain"));
}

#[test]
fn counts_choose_requests() {
    let proxy = FaultProxy::to(server());
    let third = proxy.arm(When::get().every(3).times(2), Fault::SLOW_DOWN);
    let statuses: Vec<_> = (0..12).map(|_| get(&proxy).0).collect();
    assert_eq!(statuses, [200, 200, 503, 200, 200, 503, 200, 200, 200, 200, 200, 200]);
    assert_eq!(proxy.hits(third), 2);
}

#[test]
fn a_lost_request_and_a_lost_answer_differ_in_what_the_server_saw() {
    let proxy = FaultProxy::to(server());
    for (fault, sent) in [(Fault::DropRequest, 0), (Fault::DropAnswer, 4)] {
        proxy.arm(When::put().once(), fault);
        assert!(request(&proxy.address(), "PUT", "/k", &[], b"body").is_err());
        let log = proxy.requests();
        assert_eq!((log.last().unwrap().sent, log.last().unwrap().status), (sent, None));
    }
}

#[test]
fn what_hangs_goes_on_when_disarmed() {
    let proxy = FaultProxy::to(server());
    for fault in [Fault::Hang, Fault::StallBody(4)] {
        let armed = proxy.arm(When::get(), fault);
        std::thread::scope(|scope| {
            let client = scope.spawn(|| get(&proxy).2);
            wait_until("the request hangs", Duration::from_secs(10), || proxy.hits(armed) == 1);
            assert!(!client.is_finished());
            proxy.disarm(armed);
            assert_eq!(client.join().unwrap(), BODY);
        });
    }
    let begun = Instant::now();
    proxy.arm(When::get().once(), Fault::Delay(Duration::from_millis(200)));
    get(&proxy);
    proxy.arm(When::get().once(), Fault::Rate(50));
    get(&proxy);
    assert!(begun.elapsed() >= Duration::from_millis(400), "{:?}", begun.elapsed());
}

#[test]
fn an_answer_that_is_held_comes_after_the_server_acted() {
    let proxy = FaultProxy::to(server());
    let held = proxy.arm(When::any(), Fault::HoldAnswer);
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| get(&proxy));
        let answered = || proxy.requests().first().is_some_and(|request| request.status == Some(200));
        wait_until("the server has answered", Duration::from_secs(10), answered);
        assert!(!asking.is_finished());
        proxy.disarm(held);
        assert_eq!(asking.join().unwrap().0, 200);
    });
}

#[test]
fn a_closed_proxy_refuses_and_cuts_until_it_opens() {
    let proxy = FaultProxy::to(server());
    proxy.arm(When::get(), Fault::Hang);
    std::thread::scope(|scope| {
        let client = scope.spawn(|| request(&proxy.address(), "GET", "/", &[], b"").is_err());
        wait_until("the request hangs", Duration::from_secs(10), || proxy.requests().len() == 1);
        proxy.close();
        assert!(client.join().unwrap());
    });
    proxy.disarm_all();
    // A child of another test, between fork and exec, may have the old socket for a moment.
    wait_until("connections are refused", Duration::from_secs(10), || TcpStream::connect(proxy.address()).is_err());
    proxy.open();
    assert_eq!(get(&proxy).0, 200);
}
