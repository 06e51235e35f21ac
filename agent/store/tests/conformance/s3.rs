//! S3 as it is: a real server, right and wrong ways to reach it.

use std::time::{Duration, Instant};

use bytes::Bytes;
use walkeep_store::s3::{Credentials, Sse};
use walkeep_store::{ErrorKind, ListRequest, Put, S3Options, S3Store, Store};

use crate::stub::LossyProxy;
use crate::suite::key;
use crate::weed::{self, Weed};

async fn open(options: S3Options) -> S3Store {
    S3Store::open(options).await.unwrap()
}

/// What each call answers, for a store where none can succeed.
async fn kinds(store: &S3Store) -> Vec<ErrorKind> {
    let key = key("some/object");
    vec![
        store.put_if_absent(&key, Bytes::from_static(b"x")).await.unwrap_err().kind(),
        store.get(&key, None).await.unwrap_err().kind(),
        store.get(&key, Some(0..1)).await.unwrap_err().kind(),
        store.list(&ListRequest::default()).await.unwrap_err().kind(),
        store.delete(&key).await.unwrap_err().kind(),
        store.probe(&key).await.unwrap_err().kind(),
    ]
}

fn wrong_secret(weed: &Weed) -> S3Options {
    S3Options { credentials: weed::credentials("sentinel-wrong-secret"), ..weed.options("wrong") }
}

#[tokio::test]
async fn a_wrong_secret_is_denied() {
    let Some(weed) = weed::server() else { return };
    assert_eq!(kinds(&open(wrong_secret(weed)).await).await, [ErrorKind::Denied; 6]);
}

#[tokio::test]
async fn secrets_show_nowhere() {
    let Some(weed) = weed::server() else { return };
    let options = wrong_secret(weed);
    let mut texts = vec![format!("{options:?}")];
    let store = open(options).await;
    let error = store.put_if_absent(&key("a"), Bytes::from_static(b"x")).await.unwrap_err();
    let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
    assert!(cause.contains("SignatureDoesNotMatch") && cause.contains("secret is wrong"), "{cause}");
    texts.extend([format!("{store:?}"), store.url(), format!("{error:?}"), error.to_string(), cause]);
    for text in texts {
        assert!(!text.contains("sentinel"), "{text}");
    }
}

#[tokio::test]
async fn a_reader_cannot_write() {
    let Some(weed) = weed::server() else { return };
    let writer = weed.store("reader").await;
    writer.put_if_absent(&key("a"), Bytes::from_static(b"x")).await.unwrap();
    let reader = open(S3Options { credentials: weed::reader(), ..weed.options("reader") }).await;
    assert_eq!(reader.get(&key("a"), None).await.unwrap(), "x");
    assert_eq!(reader.put_if_absent(&key("b"), Bytes::from_static(b"x")).await.unwrap_err().kind(), ErrorKind::Denied);
    assert_eq!(reader.delete(&key("a")).await.unwrap_err().kind(), ErrorKind::Denied);
    assert_eq!(reader.probe(&key("scratch")).await.unwrap_err().kind(), ErrorKind::Denied);
}

#[tokio::test]
async fn a_missing_bucket_is_unusable_and_never_not_found() {
    let Some(weed) = weed::server() else { return };
    let store = open(S3Options { bucket: "no-such-bucket".to_owned(), ..weed.options("") }).await;
    assert_eq!(kinds(&store).await, [ErrorKind::Unusable; 6]);
}

#[tokio::test]
async fn tls_needs_the_right_authority() {
    let Some(weed) = weed::server() else { return };
    let https = |host: &str, ca: Option<&str>| S3Options {
        endpoint: Some(format!("https://{host}:{}", weed.https)),
        ca_file: ca.map(weed::tls_fixture),
        ..weed.options("tls")
    };
    for host in ["localhost", "127.0.0.1"] {
        let store = open(https(host, Some("ca.crt"))).await;
        assert!(store.put_if_absent(&key("a"), Bytes::from_static(b"x")).await.is_ok());
        assert_eq!(store.get(&key("a"), None).await.unwrap(), "x");
    }
    for ca in [None, Some("other-ca.crt")] {
        let proxy = LossyProxy::start(weed.https).await;
        let options = S3Options { endpoint: Some(format!("https://localhost:{}", proxy.port)), ..https("localhost", ca) };
        let error = open(options).await.get(&key("a"), None).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unusable, "{ca:?}: {error:?}");
        assert!(format!("{error:#}").contains("`ca_file`"), "{error:#}");
        assert_eq!(proxy.accepted(), 1, "the same certificate would come again");
    }
    for ca in ["server.key", "missing.crt"] {
        assert_eq!(S3Store::open(https("localhost", Some(ca))).await.unwrap_err().kind(), ErrorKind::Misconfigured, "{ca}");
    }
}

#[tokio::test]
async fn a_put_whose_answer_was_lost_is_settled() {
    let Some(weed) = weed::server() else { return };
    let proxy = LossyProxy::start(weed.http).await;
    let through = |name: &str| S3Options { endpoint: Some(format!("http://127.0.0.1:{}", proxy.port)), ..weed.options(name) };

    proxy.lose(1);
    let store = open(through("lost")).await;
    assert_eq!(store.put_if_absent(&key("a"), Bytes::from_static(b"mine")).await.unwrap(), Put::AlreadySame);
    assert!(proxy.all_lost());

    // The only try is lost: the caller does not know, asks again, and learns.
    proxy.lose(1);
    let store = open(S3Options { attempts: 1, ..through("lost") }).await;
    assert_eq!(store.put_if_absent(&key("b"), Bytes::from_static(b"mine")).await.unwrap_err().kind(), ErrorKind::Transient);
    assert_eq!(store.put_if_absent(&key("b"), Bytes::from_static(b"mine")).await.unwrap(), Put::AlreadySame);
    assert_eq!(store.put_if_absent(&key("b"), Bytes::from_static(b"other")).await.unwrap_err().kind(), ErrorKind::AlreadyExists);

    proxy.lose(2);
    let store = open(through("lost")).await;
    assert_eq!(store.get(&key("a"), None).await.unwrap(), "mine");
}

#[tokio::test]
async fn an_unreachable_server_is_transient_and_soon() {
    let dead = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().port()
    };
    let start = Instant::now();
    let store = open(crate::stub::options(dead)).await;
    assert_eq!(kinds(&store).await, [ErrorKind::Transient; 6]);
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
}

#[tokio::test]
async fn server_side_encryption_and_storage_class_are_asked_for() {
    let Some(weed) = weed::server() else { return };
    let store = open(S3Options { sse: Sse::Aes256, storage_class: Some("STANDARD_IA".to_owned()), ..weed.options("sse") }).await;
    assert_eq!(store.put_if_absent(&key("a"), Bytes::from_static(b"x")).await.unwrap(), Put::Created);
    assert_eq!(store.put_if_absent(&key("a"), Bytes::from_static(b"x")).await.unwrap(), Put::AlreadySame);
    assert_eq!(store.get(&key("a"), None).await.unwrap(), "x");
    store.probe(&key("scratch")).await.unwrap();
}

#[tokio::test]
async fn what_contradicts_itself_is_refused_at_once() {
    let bucket = S3Options::new("b");
    for options in [
        S3Options::new(""),
        S3Options { prefix: "a//b".to_owned(), ..bucket.clone() },
        S3Options { prefix: "a b".to_owned(), ..bucket.clone() },
        S3Options { endpoint: Some("localhost:9000".to_owned()), ..bucket.clone() },
    ] {
        assert_eq!(S3Store::open(options).await.unwrap_err().kind(), ErrorKind::Misconfigured);
    }
    let credentials = Credentials::Profile { name: "no-such-profile-of-walkeep".to_owned(), file: None };
    let options = S3Options { credentials, endpoint: Some("http://127.0.0.1:1".to_owned()), ..bucket };
    let error = open(options).await.get(&key("a"), None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoCredentials, "{error:?}");
    assert!(format!("{error:#}").contains("no profile \"no-such-profile-of-walkeep\""), "{error:#}");
}

#[tokio::test]
async fn foreign_objects_are_ignored() {
    let Some(weed) = weed::server() else { return };
    let store = weed.store("foreign/inner").await;
    store.put_if_absent(&key("a/b"), Bytes::from_static(b"x")).await.unwrap();
    for name in ["foreign/inner/a/sp ace", "foreign/inner/new\nline", "foreign/inner/a%2Fb", "foreign/innermost"] {
        weed.put_foreign(name).await;
    }
    let page = walkeep_store::list_all(&store, ListRequest { limit: Some(1), ..Default::default() }).await.unwrap();
    assert_eq!(page.objects.iter().map(|object| object.key.as_str()).collect::<Vec<_>>(), ["a/b"]);
}
