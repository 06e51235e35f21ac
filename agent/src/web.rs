//! Requests to others by HTTP, mostly to URLs that are secrets: they are in no error and no log.
//!
//! No redirect is followed, as it would carry the message to somebody whom nobody named.

use anyhow::{Context, Result, bail};
use axum::http::header::{CONTENT_TYPE, USER_AGENT};
use axum::http::{Method, Request, Uri};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use walkeep_core::identifier::printable;

use crate::config::{Secret, check_url};

/// Of an answer so much is read ...
const READ: usize = 64 << 10;
/// ... and of one that is a failure so many characters are told.
const TOLD: usize = 200;

/// The text as JSON, as Slack, Mattermost, Discord (`/slack`) and others take it. What they would read as a link or a call to all is escaped.
pub fn slack(text: &str) -> String {
    let escaped = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    // Mattermost knows these words without brackets.
    let escaped =
        ["@all", "@here", "@channel", "@everyone"].iter().fold(escaped, |text, call| text.replace(call, &call.replace('@', "@\u{2060}")));
    serde_json::json!({ "text": escaped }).to_string()
}

/// What may be told of a URL: where it leads, not what lies behind the host's name.
pub fn shown(url: &str) -> String {
    let parsed = check_url(url).ok();
    let authority = |uri: Uri| Some(format!("{}://{}/...", uri.scheme_str()?, uri.authority()?.as_str().rsplit('@').next()?));
    parsed.and_then(authority).unwrap_or_else(|| "(not a URL)".to_owned())
}

/// Words of a URL that are shorter may be parts of others.
const SECRET: usize = 4;

/// A text without what a URL has behind the host's name: a server may give back what it was asked, or a part of it.
fn without(text: &str, url: &str) -> String {
    let behind = url.split_once("://").and_then(|(_, rest)| Some(&rest[rest.find('/')?..])).unwrap_or_default();
    let words = behind.split(['/', '?', '&', '=', '#']).filter(|word| word.len() >= SECRET);
    let mut secrets: Vec<&str> = words.chain([url, behind]).filter(|secret| secret.len() >= SECRET).collect();
    // The longest first: a shorter one may be a part of it.
    secrets.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
    secrets.into_iter().fold(text.to_owned(), |text, secret| text.replace(secret, "(not shown)"))
}

/// Puts JSON there.
pub async fn post(url: &Secret, json: &str) -> Result<()> {
    ask(Method::POST, url.reveal(), "application/json", Bytes::copy_from_slice(json.as_bytes())).await
}

/// Puts metrics there, in Prometheus' text format.
pub async fn post_text(url: &str, text: String) -> Result<()> {
    ask(Method::POST, url, "text/plain; version=0.0.4", Bytes::from(text)).await
}

/// Asks for it.
pub async fn get(url: &Secret) -> Result<()> {
    ask(Method::GET, url.reveal(), "", Bytes::new()).await
}

async fn ask(method: Method, url: &str, kind: &'static str, body: Bytes) -> Result<()> {
    let uri = check_url(url)?;
    let builder = HttpsConnectorBuilder::new();
    // Anew each time: authorities that were added are trusted, and a request a minute keeps no connection.
    let tls = builder.with_provider_and_native_roots(rustls::crypto::ring::default_provider()).context("read the system's authorities")?;
    let client = Client::builder(TokioExecutor::new()).build(tls.https_or_http().enable_http1().build());
    let mut request = Request::builder().method(method).uri(uri).header(USER_AGENT, concat!("walkeep/", env!("CARGO_PKG_VERSION")));
    if !body.is_empty() {
        request = request.header(CONTENT_TYPE, kind);
    }
    let request = request.body(Full::new(body)).context("write the request")?;
    let answer = client.request(request).await.with_context(|| format!("ask {}", shown(url)))?;
    let status = answer.status();
    if status.is_success() {
        return Ok(());
    }
    let said = Limited::new(answer.into_body(), READ).collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let said = without(&String::from_utf8_lossy(&said), url);
    let told: String = printable(said.trim()).chars().take(TOLD).collect();
    bail!("{} answers {status}: {told}", shown(url))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_called_by_a_name_in_a_text() {
        assert_eq!(slack("a <!channel> & @here\nb"), "{\"text\":\"a &lt;!channel&gt; &amp; @\u{2060}here\\nb\"}");
    }

    #[test]
    fn what_a_server_gives_back_is_not_told() {
        let url = "https://hooks.example.org/services/T0/sentinel-1?token=sentinel-2";
        let text = format!("no {url}, no /services/T0/sentinel-1?token=sentinel-2, no sentinel-1, no sentinel-2: T0");
        assert_eq!(without(&text, url), "no (not shown), no (not shown), no (not shown), no (not shown): T0");
        assert_eq!(without("as it is", "https://hooks.example.org"), "as it is");
    }

    #[test]
    fn of_a_url_only_the_host_is_told() {
        assert_eq!(shown("https://user:pass@hooks.example.org:444/services/T0/sentinel?token=x"), "https://hooks.example.org:444/...");
        assert_eq!(shown("sentinel"), "(not a URL)");
    }
}
