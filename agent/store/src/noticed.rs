//! What the calls to a server have shown of it, beside their answers.

use std::time::{Duration, SystemTime};

/// What was noticed. What is not known yet, or cannot be of such a store, is `None`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Noticed {
    /// How many seconds this host's clock is ahead of the server's; below 0 if it is behind. As the last answer said it.
    pub ahead: Option<f64>,
    /// When the credentials in use end: `Some(None)` if nobody says that they do.
    pub credentials_end: Option<Option<SystemTime>>,
    /// With whom calls are encrypted; `Some(None)` if they are not.
    pub tls: Option<Option<TlsServer>>,
}

/// A server that is reached by TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsServer {
    /// Its name or address.
    pub host: String,
    /// Its port.
    pub port: u16,
}

impl TlsServer {
    /// Of a request's URI; `None` for one without TLS.
    pub fn of_uri(uri: &str) -> Option<Self> {
        let rest = uri.strip_prefix("https://")?;
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        // An address of IPv6 has colons of its own, in brackets.
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => (host, port.parse().ok()?),
            _ => (authority, 443),
        };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        (!host.is_empty()).then(|| Self { host: host.to_owned(), port })
    }
}

/// How many seconds a clock that showed the first two times, before and after it asked another one, is ahead of that other one, which showed `told` and shows only
/// multiples of `grain`. It is taken to be as right as it can be: what may be due to the time that the answer took, or to the grain, is none.
pub fn ahead(asked: SystemTime, answered: SystemTime, told: SystemTime, grain: Duration) -> f64 {
    let least = seconds_since(asked, told) - grain.as_secs_f64();
    let most = seconds_since(answered, told);
    // A clock that was set back meanwhile says nothing.
    if least > most { 0.0 } else { 0f64.clamp(least, most) }
}

fn seconds_since(later: SystemTime, earlier: SystemTime) -> f64 {
    match later.duration_since(earlier) {
        Ok(since) => since.as_secs_f64(),
        Err(error) => -error.duration().as_secs_f64(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: f64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs_f64(1_000.0 + seconds)
    }

    #[test]
    fn a_clock_is_off_only_as_far_as_that_is_certain() {
        let second = Duration::from_secs(1);
        for (asked, answered, told, grain, expected) in [
            (0.5, 0.7, 0.0, second, 0.0),
            // The answer took its time, and so it may have been written at any moment of that.
            (0.0, 5.0, 3.0, second, 0.0),
            (0.0, 5.0, 3.0, Duration::ZERO, 0.0),
            (100.5, 100.7, 0.0, second, 99.5),
            (-100.0, -99.5, 0.0, second, -99.5),
            (100.5, 100.75, 0.0, Duration::ZERO, 100.5),
            (0.0, -500.0, 0.0, second, 0.0),
        ] {
            let found = ahead(at(asked), at(answered), at(told), grain);
            assert!((found - expected).abs() < 1e-6, "{asked} {answered} {told}: {found}, not {expected}");
        }
    }

    #[test]
    fn with_whom_is_spoken_is_read_from_the_uri() {
        let server = |uri: &str| TlsServer::of_uri(uri).map(|server| (server.host, server.port));
        assert_eq!(
            server("https://b.s3.eu-central-1.amazonaws.com/k?x-id=GetObject"),
            Some(("b.s3.eu-central-1.amazonaws.com".into(), 443))
        );
        assert_eq!(server("https://localhost:9000/b/k"), Some(("localhost".into(), 9000)));
        assert_eq!(server("https://[::1]:9000/b"), Some(("::1".into(), 9000)));
        assert_eq!(server("https://[::1]"), Some(("::1".into(), 443)));
        assert_eq!(server("http://localhost:9000/b/k"), None);
        assert_eq!(server("https:///"), None);
    }
}
