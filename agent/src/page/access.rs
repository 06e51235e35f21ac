//! Who may see the page.
//!
//! Without a token it is for this host alone: the agent listens on loopback, and the browser must have asked for this host by such a name. Else a page
//! of somebody else's, whose name is made to lead to 127.0.0.1 (DNS rebinding), could read it in the operator's browser. With a token whoever knows
//! it may see it, from anywhere.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::config::SecretSource;

/// A shorter token may be guessed.
const SHORTEST: usize = 16;

/// The rule.
#[derive(Debug)]
pub struct Access {
    address: SocketAddr,
    token: Option<SecretSource>,
}

impl Access {
    /// For an agent that listens there.
    pub fn new(address: SocketAddr, token: Option<SecretSource>) -> Self {
        Self { address, token }
    }

    fn names_this_host(&self, headers: &HeaderMap) -> bool {
        let Some(host) = headers.get(header::HOST).and_then(|host| host.to_str().ok()) else { return false };
        let name = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((address, _)) => address,
            None => host.rsplit_once(':').map_or(host, |(name, _)| name),
        };
        name.eq_ignore_ascii_case("localhost")
            || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback() || address == self.address.ip())
    }

    fn has_token(&self, headers: &HeaderMap) -> Result<bool, String> {
        let Some(source) = &self.token else { return Ok(true) };
        let token = source.read().map_err(|error| format!("{error:#}"))?;
        if token.reveal().len() < SHORTEST {
            return Err(format!("the token{} has fewer than {SHORTEST} characters", source.place()));
        }
        let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let given = given.and_then(|value| value.strip_prefix("Bearer ")).unwrap_or_default();
        // Of hashes, and by a comparison that takes as long wherever they differ.
        Ok(blake3::hash(given.as_bytes()) == blake3::hash(token.reveal().as_bytes()))
    }
}

/// For all of the page: without a token, from this host by its name only.
pub async fn only_from_here(State(access): State<Arc<Access>>, request: Request, next: Next) -> Response {
    if access.token.is_some() {
        return next.run(request).await;
    }
    if !access.address.ip().is_loopback() {
        let text = "The status page is not shown here: the agent listens for other hosts, and there is no token. Set [listen] token_file, or listen on 127.0.0.1.\n";
        return (StatusCode::FORBIDDEN, text).into_response();
    }
    if !access.names_this_host(request.headers()) {
        let text = "The status page is shown for this host only, as localhost or 127.0.0.1. For other names set [listen] token_file.\n";
        return (StatusCode::FORBIDDEN, text).into_response();
    }
    next.run(request).await
}

/// For what is told: with the token, if there is one; and not for another page's requests.
pub async fn only_who_may(State(access): State<Arc<Access>>, request: Request, next: Next) -> Response {
    let from = request.headers().get("sec-fetch-site").and_then(|value| value.to_str().ok()).unwrap_or("none");
    if !matches!(from, "none" | "same-origin") {
        return (StatusCode::FORBIDDEN, "asked for by another site\n").into_response();
    }
    match access.has_token(request.headers()) {
        Ok(true) => next.run(request).await,
        Ok(false) => (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, "Bearer")], "a token is needed\n").into_response(),
        Err(error) => {
            tracing::warn!(error, "the token of the status page cannot be read: nobody sees it");
            (StatusCode::SERVICE_UNAVAILABLE, "the agent cannot read its token\n").into_response()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: header::HeaderName, value: &str) -> HeaderMap {
        [(name, value.parse().unwrap())].into_iter().collect()
    }

    #[test]
    fn only_names_of_this_host_are_this_host() {
        let access = Access::new("127.0.0.2:9187".parse().unwrap(), None);
        for host in ["localhost", "LOCALHOST:9187", "127.0.0.1:9187", "127.0.0.2", "[::1]:9187", "[::1]"] {
            assert!(access.names_this_host(&headers(header::HOST, host)), "{host}");
        }
        for host in [
            "",
            "evil.example",
            "evil.example:9187",
            "127.0.0.1.evil.example",
            "localhost.evil.example",
            "10.0.0.1:9187",
            "0.0.0.0:9187",
            "[fe80::1]:9187",
        ] {
            assert!(!access.names_this_host(&headers(header::HOST, host)), "{host}");
        }
        assert!(!access.names_this_host(&HeaderMap::new()));
    }

    #[test]
    fn the_token_is_the_whole_token() {
        let token = SecretSource::Given("0123456789abcdef".to_owned().into());
        let access = Access::new("0.0.0.0:9187".parse().unwrap(), Some(token));
        let given = |value: &str| access.has_token(&headers(header::AUTHORIZATION, value)).unwrap();
        assert!(given("Bearer 0123456789abcdef"));
        for wrong in ["Bearer 0123456789abcde", "Bearer 0123456789abcdef0", "Bearer ", "0123456789abcdef", "Basic 0123456789abcdef"] {
            assert!(!given(wrong), "{wrong}");
        }
        assert!(!access.has_token(&HeaderMap::new()).unwrap());
        let unreadable = Access::new("0.0.0.0:9187".parse().unwrap(), Some(SecretSource::File("/nowhere/token".into())));
        assert!(unreadable.has_token(&HeaderMap::new()).is_err());
    }
}
