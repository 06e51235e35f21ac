//! Answers that need no server to be understood, and one server that is scripted.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;

fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    [&[kind][..], &(body.len() as u32 + 4).to_be_bytes(), body].concat()
}

/// A server that lets everybody in and streams nothing.
async fn scripted_server() -> (ReplicationConnection, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let port = listener.local_addr().expect("an address").port();
    let server = async {
        let (mut stream, _) = listener.accept().await.expect("accepts");
        let mut length = [0; 4];
        stream.read_exact(&mut length).await.expect("a startup message");
        let mut startup = vec![0; u32::from_be_bytes(length) as usize - 4];
        stream.read_exact(&mut startup).await.expect("whole");
        stream.write_all(&[message(b'R', &[0; 4]), message(b'Z', b"I")].concat()).await.expect("lets in");
        // The command, which is not looked at.
        let _ = stream.read(&mut [0; 500]).await.expect("a command");
        stream.write_all(&message(b'W', &[0, 0, 0])).await.expect("streams");
        stream
    };
    let client = async {
        let text = format!("host=127.0.0.1 port={port} user=u sslmode=disable");
        let params = ConnectionParams::parse(&text, &|_| None).expect("parameters");
        let mut connection = ReplicationConnection::connect(&params, &Options::default()).await.expect("connects");
        let started = connection.start_physical(None, Lsn::ZERO, TimelineId::FIRST).await.expect("starts");
        assert_eq!(started, Started::Streaming);
        connection
    };
    tokio::join!(client, server)
}

#[tokio::test]
async fn an_event_dropped_within_the_servers_error_loses_nothing() {
    let (mut connection, mut server) = scripted_server().await;
    let removed = b"SERROR\0C58P01\0Mrequested WAL segment 000000010000000000000001 has already been removed\0\0";
    server.write_all(&message(b'E', removed)).await.expect("refuses");
    let dropped = tokio::time::timeout(Duration::from_millis(300), connection.next_event()).await;
    assert!(dropped.is_err(), "the answer has not ended: {dropped:?}");
    server.write_all(&message(b'Z', b"I")).await.expect("takes commands again");
    let error = connection.next_event().await.expect_err("the refusal");
    assert!(matches!(error, ReplicationError::WalRemoved(_)), "{error}");
    assert_eq!(connection.state, State::Idle);
}

fn server(code: &str, message: &str) -> ServerError {
    ServerError { severity: "ERROR".into(), code: code.into(), message: message.into(), ..ServerError::default() }
}

#[test]
fn errors_become_decisions() {
    let kind = |code, message, streaming| ReplicationError::classify(server(code, message), streaming);
    assert!(matches!(
        kind("58P01", "requested WAL segment 000000010000000000000001 has already been removed", true),
        ReplicationError::WalRemoved(_)
    ));
    assert!(matches!(kind("58P01", "could not open file", false), ReplicationError::Server(_)));
    assert!(matches!(
        kind("55006", "replication slot \"s1\" is active for PID 4711", false),
        ReplicationError::SlotInUse { pid: Some(4711), .. }
    ));
    assert!(matches!(kind("55000", "can no longer access replication slot \"s\"", false), ReplicationError::SlotLost(_)));
    assert!(matches!(kind("55000", "cannot use a logical replication slot", false), ReplicationError::Server(_)));
    assert!(matches!(
        kind("XX000", "requested starting point 0/9 is ahead of the WAL flush position of this server 0/8", true),
        ReplicationError::AheadOfFlush(_)
    ));
    assert!(matches!(
        kind("XX000", "requested starting point 0/9 on timeline 1 is not in this server's history", false),
        ReplicationError::NotInHistory(_)
    ));
}

#[test]
fn names_and_sizes() {
    for good in ["a", "walkeep_1", &"x".repeat(63)] {
        assert!(check_slot_name(good).is_ok(), "{good}");
    }
    for bad in ["", "A", "a-b", "a\"b", "ä", &"x".repeat(64)] {
        assert!(check_slot_name(bad).is_err(), "{bad}");
    }
    assert_eq!(parse_size("16MB"), Some(16 << 20));
    assert_eq!(parse_size("1GB"), Some(1 << 30));
    assert_eq!(parse_size("1048576"), Some(1 << 20));
    assert_eq!(parse_size("16 MB"), None);
    assert_eq!(parse_size("MB"), None);
    assert_eq!(trailing_number("PID 12"), Some(12));
    assert_eq!(trailing_number("none"), None);
}

#[test]
fn stream_messages_are_checked() {
    assert!(stream_message(Bytes::from_static(b"w\0")).is_err());
    assert!(stream_message(Bytes::from_static(b"x")).is_err());
    assert!(stream_message(Bytes::new()).is_err());
    let mut body = vec![b'k'];
    body.extend(7u64.to_be_bytes());
    body.extend(1i64.to_be_bytes());
    body.push(1);
    let event = stream_message(body.into()).expect("a keepalive");
    assert_eq!(event, Event::Keepalive { server_end: Lsn::new(7), sent_at: PgTimestamp::from_micros(1), reply_requested: true });
}
