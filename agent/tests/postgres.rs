//! The PostgreSQL client against real servers: 15 from Debian, and every server whose directory is named in `WALKEEP_PG_BINS`.
//!
//! The little helper at the end goes once the shared harness (`walkeep-tests`) does the same.

use std::collections::HashMap;
use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use tokio::time::timeout;
use walkeep::postgres::tar::Entry as TarEntry;
use walkeep::postgres::{
    BackupError, BackupEvent, BackupOptions, BaseBackupStream, ConnectionParams, Created, Error, Event, Options, ReplicationConnection,
    ReplicationError, Started, archiver_stats, connect_sql, is_in_recovery, settings, slot_state, sql,
};
use walkeep_core::{Lsn, SegmentSize, TimelineId};

const DEBIAN_15: &str = "/usr/lib/postgresql/15/bin";
const PATIENCE: Duration = Duration::from_secs(60);

fn params(text: &str) -> ConnectionParams {
    ConnectionParams::parse(text, &|_| None).expect("valid parameters")
}

async fn replication(text: &str) -> ReplicationConnection {
    ReplicationConnection::connect(&params(text), &Options::default()).await.expect("connects")
}

/// Both kinds of session with these parameters.
async fn both(text: &str) -> Result<(), Error> {
    let mut connection = ReplicationConnection::connect(&params(text), &Options::default()).await?;
    connection.identify_system().await.expect("identifies");
    connection.close().await;
    let client = connect_sql(&params(text)).await?;
    assert!(!is_in_recovery(&client).await.expect("answers"));
    Ok(())
}

#[tokio::test]
async fn authentication_over_tcp() {
    let server = Server::start(DEBIAN_15, &[]);
    server.psql("CREATE ROLE scram REPLICATION LOGIN PASSWORD 'geheim'");
    server.psql("SET password_encryption = md5; CREATE ROLE md5 REPLICATION LOGIN PASSWORD 'geheim'");
    server.psql("CREATE ROLE clear REPLICATION LOGIN PASSWORD 'geheim'");
    server.psql("CREATE ROLE starved REPLICATION LOGIN");
    server.hba("host all,replication scram 127.0.0.1/32 scram-sha-256\nhost all,replication md5 127.0.0.1/32 md5\nhost all,replication clear 127.0.0.1/32 password");
    let tcp = format!("host=127.0.0.1 port={} dbname=postgres", server.port);

    for user in ["scram", "md5", "clear"] {
        both(&format!("{tcp} user={user} password=geheim")).await.expect(user);
        let error = both(&format!("{tcp} user={user} password=falsch")).await.expect_err("a wrong password");
        assert_eq!(error.sqlstate(), Some("28P01"), "{error}");
        assert!(error.is_authentication() && !error.to_string().contains("falsch"));
    }
    let error = both(&format!("{tcp} user=scram")).await.expect_err("no password");
    assert!(error.is_authentication(), "{error}");
    let error = both(&format!("{tcp} user=starved password=x")).await.expect_err("no hba line");
    assert_eq!(error.sqlstate(), Some("28000"), "{error}");
    let error = both(&format!("{tcp} user=scram password=geheim channel_binding=require")).await.expect_err("no TLS");
    assert!(matches!(error, Error::Auth(_)), "{error}");
    let error = both(&format!("{tcp} user=scram password=geheim sslmode=require")).await.expect_err("no TLS");
    assert!(matches!(error, Error::TlsRefused { .. }), "{error}");

    let passfile = server.dir.join("pgpass");
    private_file(&passfile, &format!("127.0.0.1:{}:*:scram:geheim\n", server.port));
    both(&format!("{tcp} user=scram passfile={}", passfile.display())).await.expect("by the password file");

    // The first host has nobody listening, the second name does not exist, the third answers.
    let closed = free_port();
    let several = format!("host=127.0.0.1,nobody.invalid,127.0.0.1 port={closed},1,{} dbname=postgres", server.port);
    both(&format!("{several} user=scram password=geheim")).await.expect("the third host");
    let error = both(&format!("{several} user=scram password=falsch")).await.expect_err("a wrong password");
    assert_eq!(error.sqlstate(), Some("28P01"), "{error}");
    let error = both(&format!("{tcp} user=scram password=geheim target_session_attrs=standby")).await.expect_err("it is a primary");
    assert!(matches!(error, Error::WrongKind { .. }), "{error}");
    both(&format!("{tcp} user=scram password=geheim target_session_attrs=prefer-standby")).await.expect("then any");
}

#[tokio::test]
async fn a_server_that_says_nothing_times_out() {
    let silent = TcpListener::bind("127.0.0.1:0").expect("binds");
    let port = silent.local_addr().expect("bound").port();
    let text = format!("host=127.0.0.1 port={port} user=u connect_timeout=1");
    let error = timeout(Duration::from_secs(10), both(&text)).await.expect("gives up by itself").expect_err("silence");
    assert!(matches!(error, Error::Timeout { .. }), "{error}");
}

#[tokio::test]
async fn tls_and_channel_binding() {
    let server = Server::start(DEBIAN_15, &[]);
    let tls = server.dir.join("tls");
    make_certificates(&tls);
    let own = |name: &str| tls.join(name).display().to_string();
    for (name, value) in
        [("ssl", "on"), ("ssl_cert_file", &own("server.crt")), ("ssl_key_file", &own("server.key")), ("ssl_ca_file", &own("ca.crt"))]
    {
        server.psql(&format!("ALTER SYSTEM SET {name} = '{value}'"));
    }
    server.psql("CREATE ROLE scram REPLICATION LOGIN PASSWORD 'geheim'");
    server.psql("CREATE ROLE client REPLICATION LOGIN");
    server.psql("CREATE ROLE plainonly REPLICATION LOGIN");
    server.hba(
        "hostnossl all,replication plainonly 127.0.0.1/32 trust\nhostssl all,replication scram 127.0.0.1/32 scram-sha-256\n\
         hostssl all,replication client 127.0.0.1/32 cert",
    );
    let port = server.port;
    let (ca, other_ca) = (own("ca.crt"), own("other.crt"));
    let scram = format!("port={port} dbname=postgres user=scram password=geheim");
    // The certificate names "localhost" and 127.0.0.1; "127.0.0.2" is the same server under a name it has not.
    let good = [
        format!("{scram} host=localhost sslmode=verify-full sslrootcert={ca} channel_binding=require"),
        format!("{scram} host=127.0.0.1 sslmode=verify-full sslrootcert={ca}"),
        format!("{scram} host=wrong.example hostaddr=127.0.0.1 sslmode=verify-ca sslrootcert={ca} channel_binding=require"),
        format!("{scram} host=wrong.example hostaddr=127.0.0.1 sslmode=require channel_binding=require"),
        format!("{scram} host=127.0.0.1 channel_binding=disable"),
        format!("{scram} host=127.0.0.1 sslmode=allow"),
        format!("host=127.0.0.1 port={port} dbname=postgres user=plainonly"),
        format!(
            "host=localhost port={port} dbname=postgres user=client sslmode=verify-full sslrootcert={ca} sslcert={} sslkey={}",
            own("client.crt"),
            own("client.key")
        ),
    ];
    for text in &good {
        both(text).await.unwrap_or_else(|error| panic!("{text}: {error}"));
    }
    // It was made for two days a moment ago.
    let (client, ends) = sql::connect_sql_certified(&params(&good[0])).await.expect("let in");
    let left = ends.expect("there is TLS") - chrono::Utc::now();
    assert!(left > chrono::TimeDelta::hours(47) && left <= chrono::TimeDelta::hours(48), "{left}");
    let ahead = sql::clock_ahead(&client).await.expect("it tells the time");
    assert!(ahead.abs() < 1.0, "{ahead}");
    let (_, ends) = sql::connect_sql_certified(&params(&good[6])).await.expect("let in");
    assert_eq!(ends, None, "there is no TLS");
    let bad = [
        format!("{scram} host=wrong.example hostaddr=127.0.0.1 sslmode=verify-full sslrootcert={ca}"),
        format!("{scram} host=localhost hostaddr=127.0.0.1 sslmode=verify-full sslrootcert={other_ca}"),
        format!("{scram} host=localhost hostaddr=127.0.0.1 sslmode=verify-ca sslrootcert={other_ca}"),
        format!("{scram} host=localhost hostaddr=127.0.0.1 sslmode=require sslrootcert={other_ca}"),
    ];
    for text in &bad {
        let error = both(text).await.expect_err(text);
        assert!(matches!(error, Error::Tls { .. }), "{text}: {error}");
    }
    let error = both(&format!("{scram} host=localhost hostaddr=127.0.0.1 sslmode=verify-full sslrootcert=/nonexistent"))
        .await
        .expect_err("no such file");
    assert!(matches!(error, Error::TlsSetup(_)), "{error}");
    let error = both(&format!("{scram} host=127.0.0.1 sslmode=disable")).await.expect_err("hostssl only");
    assert_eq!(error.sqlstate(), Some("28000"), "{error}");
    let error = both(&format!("host=127.0.0.1 port={port} user=plainonly sslmode=require")).await.expect_err("hostnossl only");
    assert_eq!(error.sqlstate(), Some("28000"), "{error}");
    let text = format!(
        "host=localhost hostaddr=127.0.0.1 port={port} user=client sslmode=require channel_binding=require sslcert={} sslkey={}",
        own("client.crt"),
        own("client.key")
    );
    let error = both(&text).await.expect_err("no SCRAM");
    assert!(matches!(error, Error::Auth(_)), "{error}");

    // Certificates that web PKI would not take: self-signed and its own root, named only in CN; and X.509 v1.
    for name in ["selfsigned", "v1"] {
        server.psql(&format!("ALTER SYSTEM SET ssl_cert_file = '{}'", own(&format!("{name}.crt"))));
        server.psql("SELECT pg_reload_conf()");
        let root = own(&format!("{name}.crt"));
        let text = format!("{scram} host=localhost hostaddr=127.0.0.1 sslmode=verify-full sslrootcert={root} channel_binding=require");
        eventually(|| both(&text)).await;
        let text = format!("{scram} host=127.0.0.1 sslmode=verify-full sslrootcert={root}");
        assert!(matches!(both(&text).await, Err(Error::Tls { .. })), "the CN is localhost");
    }
}

#[tokio::test]
async fn streams_the_same_wal_that_the_server_has() {
    for bin in servers() {
        let server = Server::start(&bin, &[]);
        let mut connection = replication(&server.unix()).await;
        let version = connection.server_version_num().await.expect("a version");
        let identity = connection.identify_system().await.expect("identifies");
        let size = connection.segment_size().await.expect("a size");
        assert_eq!(size, SegmentSize::DEFAULT);
        assert_eq!(connection.create_physical_slot("walkeep").await.expect("made"), Created::New);
        assert_eq!(connection.create_physical_slot("walkeep").await.expect("there"), Created::Existed);
        let sql = connect_sql(&params(&server.unix())).await.expect("connects");
        let state = slot_state(&sql, "walkeep").await.expect("answers").expect("exists");
        assert_eq!((state.active, state.wal_status.as_deref()), (false, Some("reserved")));
        if version >= 150_000 {
            let slot = connection.read_slot("walkeep").await.expect("reads").expect("exists");
            assert_eq!((slot.restart_lsn, slot.timeline), (state.restart_lsn, Some(identity.timeline)));
            assert_eq!(connection.read_slot("nobody").await.expect("reads"), None);
        }
        let found = settings(&sql).await.expect("answers");
        assert_eq!((found.server_version_num, found.segment_size), (version, size));
        assert_eq!((found.data_checksums, found.wal_level.as_str(), found.max_slot_wal_keep_mb), (true, "replica", None));
        assert_eq!(archiver_stats(&sql).await.expect("answers").archived, 0);

        let start = state.restart_lsn.expect("reserved");
        let start = Lsn::new(start.get() / size.bytes() * size.bytes());
        let begun = connection.start_physical(Some("walkeep"), start, identity.timeline).await.expect("starts");
        assert_eq!(begun, Started::Streaming);

        let mut busy = server.pgbench();
        let (mut received, mut keepalives) = (Vec::new(), 0);
        let mut end = None;
        let deadline = tokio::time::Instant::now() + 2 * PATIENCE;
        loop {
            assert!(tokio::time::Instant::now() < deadline, "{version}: {} bytes, waiting for {end:?}", received.len());
            let position = Lsn::new(start.get() + received.len() as u64);
            if end.is_none()
                && busy.try_wait().expect("a child").is_some_and(|status| {
                    assert!(status.success(), "pgbench failed");
                    true
                })
            {
                let row = sql.query_one("SELECT pg_switch_wal()::text", &[]).await.expect("switches");
                end = Some(row.get::<_, &str>(0).parse::<Lsn>().expect("an LSN"));
            }
            if end.is_some_and(|end| position >= end) && keepalives > 0 {
                break;
            }
            match timeout(Duration::from_millis(200), connection.next_event()).await {
                Err(_) => connection.send_status(position, position, Lsn::ZERO, true).await.expect("sent"),
                Ok(event) => match event.expect("streams") {
                    Event::Wal { start, data, server_end, .. } => {
                        assert_eq!(start, position);
                        assert!(data.len() <= 128 << 10 && server_end >= start);
                        received.extend_from_slice(&data);
                    }
                    Event::Keepalive { reply_requested, .. } => {
                        keepalives += 1;
                        if reply_requested {
                            connection.send_status(position, position, Lsn::ZERO, false).await.expect("sent");
                        }
                    }
                    other => panic!("{other:?}"),
                },
            }
        }
        connection.send_status(end.expect("set"), end.expect("set"), Lsn::ZERO, false).await.expect("sent");
        let mut second = replication(&server.unix()).await;
        let error = second.start_physical(Some("walkeep"), start, identity.timeline).await.expect_err("in use");
        assert!(matches!(&error, ReplicationError::SlotInUse { pid: Some(_), .. }), "{error}");

        connection.stop().await.expect("stops");
        connection.identify_system().await.expect("takes commands again");
        let state = slot_state(&sql, "walkeep").await.expect("answers").expect("exists");
        assert_eq!(state.restart_lsn, end, "the slot follows flush");
        connection.drop_slot("walkeep").await.expect("dropped");
        assert!(matches!(connection.drop_slot("walkeep").await, Err(ReplicationError::SlotMissing(_))));

        let segments = received.len() / size.bytes() as usize;
        assert!(segments >= 1, "{} bytes", received.len());
        let mut compared = 0;
        for index in 0..segments {
            let number = start.get() / size.bytes() + index as u64;
            let name = format!("{}{:08X}{:08X}", identity.timeline.hex(), number >> 8, number & 0xFF);
            if let Ok(file) = fs::read(server.data.join("pg_wal").join(&name)) {
                let part = &received[index * size.bytes() as usize..][..size.bytes() as usize];
                assert!(file == part, "{name} differs");
                compared += 1;
            }
        }
        assert!(compared >= 1, "the server has no segment to compare with");
        eprintln!("{version}: {} bytes of WAL, {compared} segments equal, {keepalives} keepalives", received.len());
    }
}

#[tokio::test]
async fn answers_keep_the_server_from_hanging_up() {
    let server = Server::start(DEBIAN_15, &[]);
    let options = Options { application_name: Some("walkeep test".into()), wal_sender_timeout: Some(Duration::from_secs(2)) };
    let mut connection = ReplicationConnection::connect(&params(&server.unix()), &options).await.expect("connects");
    assert_eq!(connection.show("wal_sender_timeout").await.expect("shows"), "2s");
    assert_eq!(connection.show("application_name").await.expect("shows"), "walkeep test");
    assert!(connection.show("x; DROP TABLE y").await.is_err());
    let identity = connection.identify_system().await.expect("identifies");
    connection.start_physical(None, identity.flush, identity.timeline).await.expect("starts");
    let error = connection.identify_system().await.expect_err("it streams");
    assert!(!error.is_connection_closed(), "{error}");
    let until = tokio::time::Instant::now() + Duration::from_secs(5);
    let mut requested = 0;
    while let Ok(event) = tokio::time::timeout_at(until, connection.next_event()).await {
        if let Event::Keepalive { reply_requested: true, .. } = event.expect("still connected") {
            requested += 1;
            connection.send_status(identity.flush, identity.flush, Lsn::ZERO, false).await.expect("sent");
        }
    }
    assert!(requested >= 2, "{requested}");
    // And without answers it does.
    let gone = timeout(Duration::from_secs(10), async {
        loop {
            if let Err(error) = connection.next_event().await {
                return error;
            }
        }
    });
    assert!(gone.await.expect("hangs up").is_connection_closed());
}

#[tokio::test]
async fn refusals_of_a_stream_have_their_kinds() {
    let server = Server::start(DEBIAN_15, &[]);
    let mut connection = replication(&server.unix()).await;
    let identity = connection.identify_system().await.expect("identifies");
    let timeline = identity.timeline;

    let error = connection.start_physical(Some("nobody"), identity.flush, timeline).await.expect_err("missing");
    assert!(matches!(error, ReplicationError::SlotMissing(_)), "{error}");
    let error = connection.start_physical(Some("No\"body"), identity.flush, timeline).await.expect_err("a bad name");
    assert!(matches!(error, ReplicationError::BadSlotName(_)), "{error}");
    let error = connection.start_physical(None, identity.flush, TimelineId::new(7).expect("not 0")).await.expect_err("no such timeline");
    assert!(matches!(error, ReplicationError::NotInHistory(_)), "{error}");
    let error = connection.timeline_history(timeline).await.expect_err("timeline 1 has none");
    assert_eq!(error.server().map(|error| error.code.as_str()), Some("58P01"));

    connection.start_physical(None, Lsn::new(identity.flush.get() + (64 << 20)), timeline).await.expect("W comes first");
    let error = connection.next_event().await.expect_err("ahead");
    assert!(matches!(error, ReplicationError::AheadOfFlush(_)), "{error}");

    for _ in 0..3 {
        server.psql("SELECT pg_switch_wal(); CHECKPOINT");
    }
    connection.start_physical(None, Lsn::new(16 << 20), timeline).await.expect("W comes first");
    let error = connection.next_event().await.expect_err("removed");
    assert!(matches!(error, ReplicationError::WalRemoved(_)), "{error}");
    connection.identify_system().await.expect("takes commands again");

    // A server that stops waits until its WAL is confirmed, then ends the stream.
    let identity = connection.identify_system().await.expect("identifies");
    connection.start_physical(None, identity.flush, timeline).await.expect("starts");
    server.pg_ctl(&["stop", "-m", "fast", "-W"]);
    let mut position = identity.flush;
    let ended = timeout(PATIENCE, async {
        loop {
            match connection.next_event().await {
                Ok(Event::Wal { start, data, .. }) => position = start.saturating_add(data.len() as u64),
                Ok(Event::Keepalive { .. }) => {}
                other => return other,
            }
            connection.send_status(position, position, Lsn::ZERO, false).await?;
        }
    });
    match ended.await.expect("ends") {
        Ok(Event::Ended) => {}
        Err(error) if error.is_connection_closed() => {}
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn follows_a_promotion() {
    for bin in servers() {
        let primary = Server::start(&bin, &[]);
        let standby = primary.standby().await;
        let text = standby.unix();
        let sql = connect_sql(&params(&format!("{text} target_session_attrs=standby"))).await.expect("a standby");
        assert!(is_in_recovery(&sql).await.expect("answers"));
        let mut connection = replication(&format!("{text} target_session_attrs=standby")).await;
        let identity = connection.identify_system().await.expect("identifies");
        let start = Lsn::new(identity.flush.get() / (16 << 20) * (16 << 20));
        connection.start_physical(None, start, identity.timeline).await.expect("starts");
        standby.pg_ctl(&["promote", "-w"]);
        let mut position = start;
        let end = timeout(PATIENCE, async {
            loop {
                match connection.next_event().await.expect("streams") {
                    Event::Wal { start, data, .. } => {
                        assert_eq!(start, position);
                        position = start.saturating_add(data.len() as u64);
                    }
                    Event::Keepalive { .. } => connection.send_status(position, position, Lsn::ZERO, false).await.expect("sent"),
                    other => return other,
                }
            }
        });
        let Event::EndOfTimeline { next, switch } = end.await.expect("ends") else { panic!("no end of timeline") };
        assert_eq!((next.get(), switch), (2, position));
        let history = connection.timeline_history(next).await.expect("a history");
        let history = walkeep_core::TimelineHistory::parse(next, &history).expect("readable");
        assert_eq!(history.parent().map(|parent| (parent.timeline, parent.switch)), Some((identity.timeline, switch)));

        let again = connection.start_physical(None, switch, identity.timeline).await.expect("answers");
        assert_eq!(again, Started::EndOfTimeline { next, switch });
        let beyond = connection.start_physical(None, switch.saturating_add(1 << 24), identity.timeline).await.expect_err("beyond");
        assert!(matches!(beyond, ReplicationError::NotInHistory(_)), "{beyond}");
        let segment = Lsn::new(switch.get() / (16 << 20) * (16 << 20));
        assert_eq!(connection.start_physical(None, segment, next).await.expect("goes on"), Started::Streaming);
        assert!(matches!(connection.next_event().await, Ok(Event::Wal { start, .. }) if start == segment));
        connection.stop().await.expect("stops");
        connection.close().await;
    }
}

/// Writes a backup down and gives back where it starts and stops.
async fn take_backup(connection: ReplicationConnection, target: &Path, options: BackupOptions) -> Result<(Lsn, Lsn), BackupError> {
    let mut stream = BaseBackupStream::start(connection, options).await?;
    let mut file: Option<(fs::File, u64)> = None;
    let mut manifest = Vec::new();
    let (mut start, mut progress, mut manifest_ended) = (None, 0, false);
    while let Some(event) = timeout(PATIENCE, stream.next()).await.expect("in time")? {
        match event {
            BackupEvent::Started { start_lsn, tablespaces, data_directory_kb, .. } => {
                assert!(data_directory_kb.is_some_and(|size| size > 1000));
                fs::create_dir_all(target).expect("made");
                for tablespace in tablespaces {
                    fs::create_dir_all(target.join(format!("pg_tblspc/{}", tablespace.oid))).expect("made");
                }
                start = Some(start_lsn);
            }
            BackupEvent::Entry(TarEntry::File { path, size, .. }) => {
                let path = target.join(path);
                fs::create_dir_all(path.parent().expect("inside")).expect("made");
                file = Some((fs::File::create(path).expect("made"), size));
            }
            BackupEvent::Entry(TarEntry::Data(bytes)) => {
                let (file, left) = file.as_mut().expect("a file began");
                *left -= bytes.len() as u64;
                file.write_all(&bytes).expect("written");
            }
            BackupEvent::Entry(TarEntry::FileEnd) => assert_eq!(file.take().expect("a file began").1, 0),
            BackupEvent::Entry(TarEntry::Directory { path, .. }) => fs::create_dir_all(target.join(path)).expect("made"),
            BackupEvent::Entry(TarEntry::Symlink { path, .. }) => panic!("a link: {path}"),
            BackupEvent::Manifest(bytes) => manifest.extend_from_slice(&bytes),
            BackupEvent::ManifestEnd => manifest_ended = true,
            BackupEvent::Progress(bytes) => progress = bytes,
            BackupEvent::Finished { stop_lsn, .. } => {
                assert!(manifest_ended);
                fs::write(target.join("backup_manifest"), &manifest).expect("written");
                eprintln!("base backup: progress {progress}, manifest {} bytes", manifest.len());
                return Ok((start.expect("started"), stop_lsn));
            }
        }
    }
    panic!("ended without Finished")
}

#[tokio::test]
async fn a_base_backup_that_verifies_and_starts() {
    for bin in servers() {
        let server = Server::start(&bin, &[]);
        server.psql("CREATE TABLE t AS SELECT generate_series(1, 100000) AS n");
        let space = server.dir.join("space");
        fs::create_dir(&space).expect("made");
        chown(&space);
        server.psql(&format!("CREATE TABLESPACE space LOCATION '{}'", space.display()));
        server.psql("CREATE TABLE s TABLESPACE space AS SELECT generate_series(1, 1000) AS n");
        let mut connection = replication(&server.unix()).await;
        connection.create_physical_slot("keeps_wal").await.expect("made");
        let target = server.dir.join("backup");
        let mut options = BackupOptions::new("it's a test");
        options.max_rate_kb = Some(1 << 20);
        let (start, stop) = take_backup(connection, &target, options).await.expect("a backup");
        assert!(stop > start);
        let label = fs::read_to_string(target.join("backup_label")).expect("a label");
        assert!(label.contains("LABEL: it's a test") && label.contains(&format!("START WAL LOCATION: {start}")), "{label}");

        // The tool of 15 refuses the manifests of 17 and later; those servers bring none of their own.
        if server.version < 17 {
            let verify = Command::new(format!("{DEBIAN_15}/pg_verifybackup")).arg("-n").arg(&target).output().expect("runs");
            assert!(verify.status.success(), "{}", String::from_utf8_lossy(&verify.stderr));
        }
        // The server has kept the WAL: with it, the copy starts.
        run(Command::new("cp").arg("-a").arg(format!("{}/.", server.data.join("pg_wal").display())).arg(target.join("pg_wal")));
        let moved = server.dir.join("space-of-the-copy");
        let oid = fs::read_dir(target.join("pg_tblspc")).expect("a directory").next().expect("one").expect("readable").path();
        run(Command::new("cp").arg("-a").arg(&oid).arg(&moved));
        let map = fs::read_to_string(target.join("tablespace_map")).expect("a map");
        fs::write(target.join("tablespace_map"), map.replace(&space.display().to_string(), &moved.display().to_string())).expect("written");
        run(Command::new("rm").arg("-r").arg(&oid));
        run(Command::new("chmod").arg("-R").arg("go-rwx").arg(&target));
        run(Command::new("chown").arg("-R").arg("postgres:postgres").arg(&target).arg(&moved));
        let copy = Server::start_at(&bin, &target, &[]);
        let sql = connect_sql(&params(&copy.unix())).await.expect("connects");
        let row = sql.query_one("SELECT (SELECT sum(n) FROM t), (SELECT count(*) FROM s)", &[]).await.expect("answers");
        assert_eq!((row.get::<_, i64>(0), row.get::<_, i64>(1)), (5_000_050_000, 1000));
    }
}

#[tokio::test]
async fn damaged_pages_are_told_after_the_backup() {
    for bin in servers() {
        let server = Server::start(&bin, &[]);
        server.psql("CREATE TABLE t AS SELECT generate_series(1, 10000) AS n");
        server.psql("CHECKPOINT");
        let path = server.psql("SELECT pg_relation_filepath('t')");
        let path = server.data.join(path.trim());
        let mut bytes = fs::read(&path).expect("a table");
        bytes[8192 + 5000] ^= 0xFF;
        fs::write(&path, bytes).expect("written");
        let connection = replication(&server.unix()).await;
        // Everything is sent, and the stop position; then it is an error. The backup is worth keeping.
        let mut stream = BaseBackupStream::start(connection, BackupOptions::new("x")).await.expect("begins");
        let (notices, damaged) = loop {
            match timeout(PATIENCE, stream.next()).await.expect("in time").expect("goes on") {
                Some(BackupEvent::Finished { notices, damaged, .. }) => break (notices, damaged),
                Some(_) => {}
                None => panic!("ended without Finished"),
            }
        };
        assert!(damaged && notices.iter().any(|notice| notice.message.contains("block 1")), "{notices:?}");
        let mut options = BackupOptions::new("x");
        options.verify_checksums = false;
        take_backup(replication(&server.unix()).await, &server.dir.join("unverified"), options).await.expect("not looked at");
    }
}

// ---- helper: private servers -------------------------------------------------------------------------------------------------

/// Directories of servers to test: Debian's 15 and those in `WALKEEP_PG_BINS`, separated by colons.
fn servers() -> Vec<String> {
    let more = std::env::var("WALKEEP_PG_BINS").unwrap_or_default();
    std::iter::once(DEBIAN_15).chain(more.split(':').filter(|bin| !bin.is_empty())).map(str::to_owned).collect()
}

struct Server {
    bin: PathBuf,
    version: u32,
    /// Removed on drop.
    _root: Option<tempfile::TempDir>,
    dir: PathBuf,
    data: PathBuf,
    port: u16,
}

impl Server {
    fn start(bin: &str, settings: &[&str]) -> Self {
        let root = tempfile::Builder::new().prefix("wk-").tempdir_in("/tmp").expect("a directory");
        fs::set_permissions(root.path(), fs::Permissions::from_mode(0o755)).expect("mode set");
        chown(root.path());
        let data = root.path().join("data");
        let initdb = Path::new(bin).join("initdb");
        run(as_postgres(&initdb).args(["-A", "trust", "-U", "postgres", "-k", "-N", "--locale=C", "-E", "UTF8", "-D"]).arg(&data));
        let mut server = Self::start_at(bin, &data, settings);
        server._root = Some(root);
        server
    }

    fn start_at(bin: &str, data: &Path, settings: &[&str]) -> Self {
        let version = fs::read_to_string(data.join("PG_VERSION")).expect("a version").trim().parse().expect("a number");
        let dir = data.parent().expect("a parent").to_owned();
        let server = Server { bin: bin.into(), version, _root: None, dir, data: data.to_owned(), port: free_port() };
        let mut options = format!(
            "-p {} -k {} -c listen_addresses=127.0.0.1 -c fsync=off -c max_wal_size=256MB -c logging_collector=off",
            server.port,
            server.dir.display()
        );
        for setting in settings {
            options.push_str(&format!(" -c {setting}"));
        }
        server.pg_ctl(&["start", "-w", "-t", "60", "-l", &server.log(), "-o", &options]);
        server
    }

    fn unix(&self) -> String {
        format!("host={} port={} user=postgres dbname=postgres", self.dir.display(), self.port)
    }

    fn log(&self) -> String {
        self.data.with_extension("log").display().to_string()
    }

    fn pg_ctl(&self, args: &[&str]) {
        run(as_postgres(&self.bin.join("pg_ctl")).arg("-D").arg(&self.data).args(args));
    }

    fn psql(&self, sql: &str) -> String {
        let mut command = Command::new(format!("{DEBIAN_15}/psql"));
        command.args(["-X", "-qAt", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-d", "postgres", "-h"]).arg(&self.dir);
        let commands = sql.split("; ").flat_map(|sql| ["-c", sql]);
        String::from_utf8(run(command.args(["-p", &self.port.to_string()]).args(commands)).stdout).expect("text")
    }

    fn hba(&self, lines: &str) {
        fs::write(self.data.join("pg_hba.conf"), format!("local all,replication all trust\n{lines}\n").replace("all,replication", "all"))
            .expect("written");
        let mut all = fs::read_to_string(self.data.join("pg_hba.conf")).expect("readable");
        let replication: String = all.lines().map(|line| line.replacen(" all ", " replication ", 1) + "\n").collect();
        all.push_str(&replication);
        fs::write(self.data.join("pg_hba.conf"), all).expect("written");
        self.pg_ctl(&["restart", "-w", "-m", "fast", "-l", &self.log()]);
    }

    fn pgbench(&self) -> std::process::Child {
        let script = self.dir.join("load.sql");
        fs::write(
            &script,
            "INSERT INTO load SELECT n, repeat('x', 200) FROM generate_series(1, 500) n;\nUPDATE load SET b = 'y' WHERE a = 7;\n",
        )
        .expect("written");
        self.psql("CREATE TABLE load (a int, b text)");
        let mut command = Command::new(format!("{DEBIAN_15}/pgbench"));
        command.args(["-n", "-c", "2", "-t", "120", "-U", "postgres", "-h"]).arg(&self.dir);
        command.args(["-p", &self.port.to_string(), "-f"]).arg(script).arg("postgres");
        command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().expect("runs")
    }

    /// A standby of this server, made with what is being tested.
    async fn standby(&self) -> Server {
        let mut connection = replication(&self.unix()).await;
        connection.create_physical_slot("standby").await.expect("made");
        let data = self.dir.join("standby").join("data");
        take_backup(connection, &data, BackupOptions::new("standby")).await.expect("a backup");
        fs::write(data.join("standby.signal"), "").expect("written");
        run(Command::new("chmod").arg("-R").arg("go-rwx").arg(&data));
        run(Command::new("chown").arg("-R").arg("postgres:postgres").arg(data.parent().expect("a parent")));
        let from = format!("primary_conninfo='host={} port={} user=postgres'", self.dir.display(), self.port);
        Server::start_at(&self.bin.display().to_string(), &data, &[&from, "primary_slot_name=standby"])
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = as_postgres(&self.bin.join("pg_ctl")).arg("-D").arg(&self.data).args(["stop", "-m", "immediate"]).output();
    }
}

fn root() -> bool {
    rustix::process::geteuid().is_root()
}

fn as_postgres(program: &Path) -> Command {
    if !root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]).arg(program).current_dir("/");
    command
}

fn chown(path: &Path) {
    if root() {
        run(Command::new("chown").arg("-R").arg("postgres:postgres").arg(path));
    }
}

fn run(command: &mut Command) -> Output {
    let output = command.output().expect("the program exists");
    assert!(output.status.success(), "{command:?}: {}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    output
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port").port()
}

fn private_file(path: &Path, content: &str) {
    let mut file = fs::OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(path).expect("opens");
    file.write_all(content.as_bytes()).expect("written");
}

/// Tries again until it succeeds, at most for as long as patience lasts.
async fn eventually<F: Future<Output = Result<(), Error>>>(attempt: impl Fn() -> F) {
    let mut last = None;
    let all = timeout(PATIENCE, async {
        while let Err(error) = attempt().await {
            last = Some(error);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    assert!(all.await.is_ok(), "{last:?}");
}

/// Two authorities; of the first one a server's and a client's certificate; and a self-signed and a v1 one with the server's key.
fn make_certificates(dir: &Path) {
    fs::create_dir(dir).expect("made");
    let openssl = |text: &str| {
        run(Command::new("openssl").current_dir(dir).args(text.split(' ')));
    };
    for name in ["ca", "other"] {
        openssl(&format!("req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN={name} -keyout {name}.key -out {name}.crt"));
    }
    let extensions =
        HashMap::from([("server", "subjectAltName=DNS:localhost,IP:127.0.0.1\n"), ("client", "extendedKeyUsage=clientAuth\n")]);
    for (name, common) in [("server", "x"), ("client", "client")] {
        fs::write(dir.join("ext"), extensions[name]).expect("written");
        openssl(&format!("req -new -newkey rsa:2048 -nodes -subj /CN={common} -keyout {name}.key -out {name}.csr"));
        openssl(&format!("x509 -req -in {name}.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile ext -out {name}.crt"));
    }
    openssl("req -x509 -key server.key -days 2 -subj /CN=localhost -out selfsigned.crt");
    openssl("req -new -key server.key -subj /CN=localhost -out v1.csr");
    openssl("x509 -req -in v1.csr -signkey server.key -days 2 -out v1.crt");
    for name in ["server.key", "client.key"] {
        fs::set_permissions(dir.join(name), fs::Permissions::from_mode(0o600)).expect("mode set");
    }
    if root() {
        run(Command::new("chown").arg("postgres:postgres").arg(dir.join("server.key")));
    }
    let text = run(Command::new("openssl").args(["x509", "-noout", "-text", "-in"]).arg(dir.join("v1.crt"))).stdout;
    assert!(String::from_utf8_lossy(&text).contains("Version: 1"), "openssl makes no v1 certificates any more");
}
