//! S3 at its worst: a stub answers what a real server does once in a million requests.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use bytes::Bytes;
use walkeep_store::s3::{Credentials, Sse};
use walkeep_store::{ErrorKind, ListRequest, Probed, Put, Readiness, S3Options, S3Store, Store};

use crate::stub::{Reply, Request, Stub};
use crate::suite::key;

const BODY: Bytes = Bytes::from_static(b"0123456789");

/// A put against a stub that answers so.
async fn put(answer: impl Fn(usize, &Request) -> Reply + Send + Sync + 'static) -> (Result<Put, ErrorKind>, Vec<Request>) {
    let stub = Stub::start(answer).await;
    let outcome = stub.store().await.put_if_absent(&key("k"), BODY).await;
    (outcome.map_err(|error| error.kind()), stub.requests())
}

/// A get against a stub that answers so.
async fn get(answer: impl Fn(usize, &Request) -> Reply + Send + Sync + 'static) -> (Result<Bytes, ErrorKind>, usize) {
    let stub = Stub::start(answer).await;
    let outcome = stub.store().await.get(&key("k"), None).await;
    (outcome.map_err(|error| error.kind()), stub.requests().len())
}

#[tokio::test]
async fn a_server_that_ignores_if_none_match_is_refused() {
    let objects = Mutex::new(HashMap::new());
    let stub = Stub::start(move |_, request| {
        let mut objects = objects.lock().unwrap();
        match request.method.as_str() {
            "PUT" => {
                objects.insert(request.path.clone(), request.body.clone());
                Reply::new(200, "").header("etag", "\"random\"")
            }
            "GET" => objects
                .get(request.path.split('?').next().unwrap())
                .map_or(Reply::error(404, "NoSuchKey"), |body| Reply::new(200, body.clone())),
            _ => Reply::new(204, ""),
        }
    })
    .await;
    let error = stub.store().await.probe(&key("scratch")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unusable);
    assert!(format!("{error:?}").contains("ignores If-None-Match"), "{error:?}");
    let last = stub.requests().pop().unwrap();
    assert_eq!(last.method, "DELETE", "the scratch object stays");
}

#[tokio::test]
async fn a_probe_that_must_not_delete_leaves_its_object_and_says_so() {
    let objects = Mutex::new(HashMap::<String, Vec<u8>>::new());
    let stub = Stub::start(move |_, request| {
        let mut objects = objects.lock().unwrap();
        let path = request.path.split('?').next().unwrap().to_owned();
        match request.method.as_str() {
            "PUT" if objects.contains_key(&path) => Reply::error(412, "PreconditionFailed"),
            "PUT" => {
                objects.insert(path, request.body.clone());
                Reply::new(200, "").header("etag", "\"random\"")
            }
            "GET" => objects.get(&path).map_or(Reply::error(404, "NoSuchKey"), |body| Reply::new(200, body.clone())),
            _ => Reply::error(403, "AccessDenied"),
        }
    })
    .await;
    assert_eq!(stub.store().await.probe(&key("scratch")).await.unwrap(), Probed::Left);
}

#[tokio::test]
async fn puts_are_conditional_and_checked_and_name_no_etag() {
    let (outcome, requests) = put(|_, _| Reply::new(200, "").header("etag", "\"not-an-md5\"")).await;
    assert_eq!(outcome, Ok(Put::Created));
    let headers = &requests[0].headers;
    assert_eq!(headers.get("if-none-match").map(String::as_str), Some("*"));
    assert!(headers.contains_key("x-amz-checksum-crc32"), "{headers:?}");
    assert_eq!(requests[0].path.split('?').next(), Some("/bucket/k"));
}

#[tokio::test]
async fn encryption_and_storage_class_travel() {
    for (sse, algorithm, key_id) in [
        (Sse::BucketDefault, None, None),
        (Sse::Aes256, Some("AES256"), None),
        (Sse::Kms { key_id: None }, Some("aws:kms"), None),
        (Sse::Kms { key_id: Some("arn".to_owned()) }, Some("aws:kms"), Some("arn")),
    ] {
        let stub = Stub::start(|_, _| Reply::new(200, "")).await;
        let options = S3Options { sse, storage_class: Some("STANDARD_IA".to_owned()), send_checksums: false, ..stub.options() };
        S3Store::open(options).await.unwrap().put_if_absent(&key("k"), BODY).await.unwrap();
        let request = stub.requests().remove(0);
        let header = |name: &str| request.headers.get(name).map(String::as_str);
        assert_eq!(header("x-amz-server-side-encryption"), algorithm);
        assert_eq!(header("x-amz-server-side-encryption-aws-kms-key-id"), key_id);
        assert_eq!(header("x-amz-storage-class"), Some("STANDARD_IA"));
        assert_eq!(header("x-amz-checksum-crc32"), None);
    }
}

#[tokio::test]
async fn what_passes_is_retried() {
    for (status, code) in
        [(503, "SlowDown"), (500, "InternalError"), (409, "ConditionalRequestConflict"), (200, "InternalError"), (200, "Unheard")]
    {
        let (outcome, requests) =
            put(move |n, _| if n == 1 { Reply::error(status, code) } else { Reply::new(200, "").header("etag", "\"e\"") }).await;
        assert_eq!((outcome, requests.len()), (Ok(Put::Created), 2), "{status} {code}");
        let (outcome, requests) = put(move |_, _| Reply::error(status, code)).await;
        assert_eq!((outcome, requests.len()), (Err(ErrorKind::Transient), 3), "{status} {code} for ever");
    }
}

#[tokio::test]
async fn what_stays_is_not_retried() {
    for (status, code, kind) in [
        (403, "AccessDenied", ErrorKind::Denied),
        (403, "InvalidAccessKeyId", ErrorKind::Denied),
        (400, "ExpiredToken", ErrorKind::Denied),
        (301, "PermanentRedirect", ErrorKind::Unusable),
        (400, "AuthorizationHeaderMalformed", ErrorKind::Unusable),
        (404, "NoSuchBucket", ErrorKind::Unusable),
        (501, "NotImplemented", ErrorKind::Unusable),
    ] {
        let (outcome, requests) = put(move |_, _| Reply::error(status, code)).await;
        assert_eq!((outcome, requests.len()), (Err(kind), 1), "put: {status} {code}");
        let (outcome, requests) = get(move |_, _| Reply::error(status, code)).await;
        assert_eq!((outcome, requests), (Err(kind), 1), "get: {status} {code}");
    }
    // The SDK tries once more, with the server's time.
    let (outcome, requests) = get(|_, _| Reply::error(403, "RequestTimeTooSkewed")).await;
    assert_eq!(outcome, Err(ErrorKind::Unusable));
    assert!(requests <= 3, "{requests} requests");
}

#[tokio::test]
async fn a_head_that_is_refused_without_a_word_is_asked_for_the_reason() {
    let told = |reply: Reply| async move {
        let answer = move |n: usize, request: &Request| match (request.method.as_str(), n) {
            ("HEAD", 1) => Reply::new(400, ""),
            ("HEAD", _) => Reply::new(200, "").header("x-amz-storage-class", "GLACIER").header("x-amz-restore", "ongoing-request=\"true\""),
            _ => reply.clone(),
        };
        let stub = Stub::start(answer).await;
        let readiness = stub.store().await.readiness(&key("k")).await.map_err(|error| format!("{:?} {error:?}", error.kind()));
        (readiness, stub.requests().len())
    };
    let (refused, requests) = told(Reply::error(400, "ExpiredToken")).await;
    assert!(refused.as_ref().is_err_and(|error| error.starts_with("Denied") && error.contains("ExpiredToken")), "{refused:?}");
    assert_eq!(requests, 2);
    // Nobody objects to the keys any more.
    assert_eq!(told(Reply::error(403, "InvalidObjectState")).await, (Ok(Readiness::Thawing), 3));
}

#[tokio::test]
async fn only_no_such_key_is_not_found() {
    assert_eq!(get(|_, _| Reply::error(404, "NoSuchKey")).await, (Err(ErrorKind::NotFound), 1));
    for reply in
        [Reply::new(404, ""), Reply::new(404, "<html>no such page</html>"), Reply::error(404, "NoSuchUpload"), Reply::error(404, "")]
    {
        let (outcome, _) = get(move |_, _| reply.clone()).await;
        assert_eq!(outcome, Err(ErrorKind::Unusable));
    }
    let (outcome, _) = get(|_, _| Reply::new(404, "<Error><Code>NoSuchKey</C").cut(10)).await;
    assert_ne!(outcome, Err(ErrorKind::NotFound));
}

#[tokio::test]
async fn a_412_is_settled_by_the_bytes() {
    let there = |body: &'static str| {
        move |_: usize, request: &Request| match request.method.as_str() {
            "PUT" => Reply::error(412, "PreconditionFailed"),
            _ => Reply::new(200, body).header("etag", "\"same\""),
        }
    };
    assert_eq!(put(there("0123456789")).await.0, Ok(Put::AlreadySame));
    assert_eq!(put(there("9876543210")).await.0, Err(ErrorKind::AlreadyExists));
    assert_eq!(put(there("")).await.0, Err(ErrorKind::AlreadyExists));

    let coming_and_going = |n: usize, request: &Request| match (request.method.as_str(), n) {
        ("PUT", 1) => Reply::error(412, "PreconditionFailed"),
        ("PUT", _) => Reply::new(200, ""),
        _ => Reply::error(404, "NoSuchKey"),
    };
    assert_eq!(put(coming_and_going).await.0, Ok(Put::Created));
    let unreadable = |_: usize, request: &Request| match request.method.as_str() {
        "PUT" => Reply::error(412, "PreconditionFailed"),
        _ => Reply::error(403, "AccessDenied"),
    };
    assert_eq!(put(unreadable).await.0, Err(ErrorKind::Denied), "nobody knows whether it is the same");
}

#[tokio::test]
async fn bodies_that_come_short_are_fetched_again() {
    let (outcome, requests) = get(|n, _| if n < 3 { Reply::new(200, BODY).cut(n * 3) } else { Reply::new(200, BODY) }).await;
    assert_eq!((outcome, requests), (Ok(BODY), 3));
    let (outcome, requests) = get(|_, _| Reply::new(200, BODY).cut(9)).await;
    assert_eq!((outcome, requests), (Err(ErrorKind::Transient), 3));
}

#[tokio::test]
async fn bodies_that_are_wrong_are_corrupt() {
    let wrong = |_: usize, _: &Request| Reply::new(200, BODY).header("x-amz-checksum-crc32", "AAAAAA==");
    assert_eq!(get(wrong).await, (Err(ErrorKind::Corrupt), 3));
    let once = |n: usize, _: &Request| {
        if n == 1 { Reply::new(200, "012345678x").header("x-amz-checksum-crc32", "poTHxg==") } else { Reply::new(200, BODY) }
    };
    assert_eq!(get(once).await, (Ok(BODY), 2));
}

#[tokio::test]
async fn ranges_are_checked() {
    let range = |status: u16, body: &'static str, told: Option<&'static str>| async move {
        let reply = Reply::new(status, body);
        let reply = told.map_or(reply.clone(), |told| reply.header("content-range", told));
        let stub = Stub::start(move |_, _| reply.clone()).await;
        stub.store().await.get(&key("k"), Some(2..5)).await.map_err(|error| error.kind())
    };
    assert_eq!(range(206, "234", Some("bytes 2-4/10")).await, Ok(Bytes::from_static(b"234")));
    assert_eq!(range(206, "23", Some("bytes 2-3/4")).await, Ok(Bytes::from_static(b"23")), "the object ends there");
    assert_eq!(range(200, "0123456789", None).await, Err(ErrorKind::Unusable), "a server that ignores ranges");
    assert_eq!(range(206, "012", Some("bytes 0-2/10")).await, Err(ErrorKind::Transient), "another part");
    assert_eq!(range(206, "23", Some("bytes 2-3/10")).await, Err(ErrorKind::Transient), "less than asked for");
    assert_eq!(range(206, "234", None).await, Err(ErrorKind::Unusable), "a part of nothing known");
}

#[tokio::test]
async fn a_silent_server_costs_a_bounded_time() {
    let start = Instant::now();
    let (outcome, requests) = get(|_, _| Reply::hang()).await;
    assert_eq!((outcome, requests), (Err(ErrorKind::Transient), 3));
    assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());

    let stub = Stub::start(|_, _| Reply::hang()).await;
    let mut options = stub.options();
    options.timeouts.operation = Duration::from_millis(300);
    let start = Instant::now();
    let error = S3Store::open(options).await.unwrap().list(&ListRequest::default()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Transient);
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
}

fn listing(keys: &[&str], next: Option<&str>) -> Reply {
    let contents: String = keys.iter().map(|key| format!("<Contents><Key>{key}</Key><Size>1</Size></Contents>")).collect();
    let token = next.map(|token| format!("<NextContinuationToken>{token}</NextContinuationToken>")).unwrap_or_default();
    let cut = next.is_some();
    Reply::new(200, format!("<ListBucketResult>{contents}<IsTruncated>{cut}</IsTruncated>{token}</ListBucketResult>"))
}

#[tokio::test]
async fn listings_are_followed_to_their_end() {
    let token =
        |request: &Request| request.path.split(['?', '&']).find_map(|part| part.strip_prefix("continuation-token=").map(str::to_owned));
    // One at a time, an empty page and one of foreign names in between, out of order.
    let stub = Stub::start(move |_, request| match token(request).as_deref() {
        None => listing(&["b"], Some("t1")),
        Some("t1") => listing(&[], Some("t2")),
        Some("t2") => listing(&["../x", "a b"], Some("t3")),
        _ => listing(&["a"], None),
    })
    .await;
    let page = walkeep_store::list_all(&stub.store().await, ListRequest::default()).await.unwrap();
    assert_eq!(page.objects.iter().map(|object| object.key.as_str()).collect::<Vec<_>>(), ["a", "b"]);

    for answer in [
        || listing(&["a"], Some("same")),
        || listing(&[], Some("same")),
        || Reply::error(200, "InternalError"),
        || Reply::new(200, "<html/>"),
    ] {
        let stub = Stub::start(move |_, _| answer()).await;
        let error = walkeep_store::list_all(&stub.store().await, ListRequest::default()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Transient, "{error:?}");
    }
}

/// R7: a thousand keys a request, and of each key what became of it.
#[tokio::test]
async fn of_many_removals_each_failure_is_told() {
    let errors = "<DeleteResult><Error><Key>k/0007</Key><Code>AccessDenied</Code><Message>locked</Message></Error>\
                  <Error><Key>k/0009</Key><Code>InternalError</Code></Error><Error><Key>k/0011</Key><Code>NoSuchKey</Code></Error></DeleteResult>";
    let first = |request: &Request| String::from_utf8_lossy(&request.body).contains("k/0007");
    let stub = Stub::start(move |_, request| Reply::new(200, if first(request) { errors } else { "<DeleteResult></DeleteResult>" })).await;
    let keys: Vec<_> = (0..2500).map(|number| key(&format!("k/{number:04}"))).collect();
    let stay = stub.store().await.delete_many(&keys).await.unwrap();
    let told: Vec<_> = stay.iter().map(|(key, error)| (key.as_str(), error.kind())).collect();
    assert_eq!(told, [("k/0007", ErrorKind::Denied), ("k/0009", ErrorKind::Transient)]);
    let asked: Vec<_> = stub.requests().iter().map(|request| String::from_utf8_lossy(&request.body).matches("<Key>").count()).collect();
    assert_eq!(asked, [1000, 1000, 500]);
    // One that says nothing of what it did, or fails as a whole, is no success.
    for reply in [Reply::error(200, "InternalError"), Reply::error(503, "SlowDown")] {
        let stub = Stub::start(move |_, _| reply.clone()).await;
        assert_eq!(stub.store().await.delete_many(&keys[..2]).await.unwrap_err().kind(), ErrorKind::Transient);
    }
}

#[tokio::test]
async fn rotated_keys_are_picked_up() {
    // The stub accepts the key of the second file only.
    let accepts = |request: &Request| request.headers.get("authorization").is_some_and(|text| text.contains("Credential=NEWKEY/"));
    let stub =
        Stub::start(move |_, request| if accepts(request) { Reply::new(200, BODY) } else { Reply::error(403, "InvalidAccessKeyId") }).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("credentials");
    let write = |id: &str| std::fs::write(&file, format!("[rotated]\naws_access_key_id = {id}\naws_secret_access_key = s\n")).unwrap();
    write("OLDKEY");
    let options =
        S3Options { credentials: Credentials::Profile { name: "rotated".to_owned(), file: Some(file.clone()) }, ..stub.options() };
    let store = S3Store::open(options).await.unwrap();
    assert_eq!(store.get(&key("k"), None).await.unwrap_err().kind(), ErrorKind::Denied);
    write("NEWKEY");
    let deadline = Instant::now() + Duration::from_secs(10);
    while store.get(&key("k"), None).await.is_err() {
        assert!(Instant::now() < deadline, "the new key was never used");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// What answers tell of the server's clock, whatever else they say.
#[tokio::test]
async fn a_clock_that_is_off_is_noticed() {
    let date = "Sun, 06 Nov 1994 08:49:37 GMT";
    for (status, code) in [(200, ""), (403, "RequestTimeTooSkewed")] {
        let reply = if status == 200 { Reply::new(200, BODY) } else { Reply::error(status, code) };
        let stub = Stub::start(move |_, _| reply.clone().header("Date", date)).await;
        let store = stub.store().await;
        assert_eq!(store.noticed().await.ahead, None, "nothing was asked yet");
        assert_eq!(store.get(&key("k"), None).await.is_ok(), status == 200);
        let noticed = store.noticed().await;
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
        let off = noticed.ahead.unwrap() - (now - 784_111_777.0);
        assert!(off.abs() < 5.0, "{status}: {noticed:?}");
        assert_eq!((noticed.credentials_end, noticed.tls), (Some(None), Some(None)), "keys for ever, and no TLS");
    }
    let stub = Stub::start(|_, _| Reply::new(200, BODY)).await;
    let store = stub.store().await;
    store.get(&key("k"), None).await.unwrap();
    assert_eq!(store.noticed().await.ahead, None, "it does not say what time it is");
}
