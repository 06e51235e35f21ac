use std::collections::VecDeque;

use super::*;
use crate::codec;
use crate::repository::tests::memory;
use crate::transfer::unwatched;

/// Events in a row; without the last, as if the connection broke.
struct Script(VecDeque<BackupEvent>);

impl Source for Script {
    async fn next(&mut self) -> Result<Option<BackupEvent>, BackupError> {
        Ok(self.0.pop_front())
    }
}

fn label() -> Vec<u8> {
    b"START WAL LOCATION: 0/200028 (file 000000010000000000000002)\nCHECKPOINT LOCATION: 0/200060\n\
      BACKUP METHOD: streamed\nBACKUP FROM: standby\nSTART TIMELINE: 1\n"
        .to_vec()
}

/// A small cluster; `lie` changes what the server's manifest says of a file.
fn script(lie: Option<&str>) -> VecDeque<BackupEvent> {
    let files: Vec<(&str, Vec<u8>)> = vec![
        ("pg_tblspc/16400/PG_15/1", vec![1; 300]),
        (LABEL_FILE, label()),
        ("PG_VERSION", b"15\n".to_vec()),
        ("base/1/1", vec![7; 3 << 20]),
        ("base/1/2", Vec::new()),
        ("global/pg_control", vec![9; 8192]),
    ];
    let tablespaces = vec![crate::postgres::Tablespace { oid: 16400, location: "/srv/fast".into(), size_kb: Some(1) }];
    let mut events = VecDeque::from([BackupEvent::Started {
        start_lsn: Lsn::new(0x20_0028),
        timeline: TimelineId::FIRST,
        tablespaces,
        data_directory_kb: Some(3100),
    }]);
    let mut lines = Vec::new();
    events.push_back(BackupEvent::Entry(TarEntry::Directory { path: "base".into(), mode: 0o40700 }));
    for (path, content) in files {
        let size = content.len() as u64;
        let sum = crc32c::crc32c(if lie == Some(path) { b"lie" } else { &content });
        lines.push(format!(
            "{{ \"Path\": \"{path}\", \"Size\": {size}, \"Checksum-Algorithm\": \"CRC32C\", \"Checksum\": \"{}\" }}",
            hex::encode(sum.to_le_bytes())
        ));
        events.push_back(BackupEvent::Entry(TarEntry::File { path: path.into(), mode: 0o600, size, mtime: 5 }));
        events.extend(content.chunks(100_000).map(|piece| BackupEvent::Entry(TarEntry::Data(piece.to_vec().into()))));
        events.push_back(BackupEvent::Entry(TarEntry::FileEnd));
    }
    let body = format!(
        "{{ \"Files\": [\n{}\n],\n\"WAL-Ranges\": [{{ \"Start-LSN\": \"0/200028\", \"End-LSN\": \"0/200100\" }}],\n",
        lines.join(",\n")
    );
    let manifest = format!("{body}\"Manifest-Checksum\": \"{}\"}}\n", hex::encode(codec::sha256(body.as_bytes())));
    events.push_back(BackupEvent::Manifest(manifest.into_bytes().into()));
    events.push_back(BackupEvent::ManifestEnd);
    events.push_back(BackupEvent::Finished {
        stop_lsn: Lsn::new(0x20_0100),
        timeline: TimelineId::FIRST,
        notices: Vec::new(),
        damaged: false,
    });
    events
}

async fn run(events: VecDeque<BackupEvent>) -> Result<Received> {
    let (repository, _) = memory().await;
    let mut meter = Meter::new(&unwatched);
    let making = (Workers::start(1, 1)?, Older::default());
    receive(
        Arc::new(repository),
        Script(events),
        (DateTime::UNIX_EPOCH, &crate::backup::Options::new("nightly").begun()),
        making,
        &Damage::default(),
        &mut meter,
        &CancellationToken::new(),
    )
    .await
}

#[tokio::test]
async fn everything_sent_is_in_the_manifest() {
    let received = run(script(None)).await.unwrap();
    assert!(received.label.from_standby);
    assert_eq!(received.tablespaces, [Tablespace { oid: 16400, path: "/srv/fast".into(), bytes: 300 }]);
    assert_eq!(
        (received.packed.totals.files, received.packed.trailer.entries),
        (7, 9),
        "with the server's manifest; a folder and a tablespace"
    );
    assert_eq!(received.id.as_str(), "19700101T000000Z-0000000000200028");
}

#[tokio::test]
async fn a_file_that_is_not_as_the_server_read_it_is_named() {
    let error = run(script(Some("base/1/1"))).await.unwrap_err();
    assert!(error.to_string().contains("base/1/1: another CRC-32C"), "{error}");
}

#[tokio::test]
async fn a_stream_that_breaks_or_lies_is_no_backup() {
    let whole = script(None);
    for cut in 0..whole.len() {
        assert!(run(whole.iter().take(cut).cloned().collect()).await.is_err(), "cut after {cut}");
    }
    for path in ["../etc/passwd", "/etc/passwd", "a/../../b", ""] {
        let mut events = script(None);
        events.insert(1, BackupEvent::Entry(TarEntry::File { path: path.into(), mode: 0o600, size: 0, mtime: 0 }));
        assert!(run(events).await.is_err(), "{path:?}");
    }
    let mut events = script(None);
    events.insert(1, BackupEvent::Entry(TarEntry::FileEnd));
    events.insert(1, BackupEvent::Entry(TarEntry::File { path: "PG_VERSION".into(), mode: 0o600, size: 0, mtime: 0 }));
    assert!(run(events).await.unwrap_err().to_string().contains("PG_VERSION twice"));
    let mut events = script(None);
    events.insert(1, BackupEvent::Entry(TarEntry::Symlink { path: "pg_wal".into(), target: "/srv/wal".into() }));
    assert!(run(events).await.unwrap_err().to_string().contains("link"));
}
