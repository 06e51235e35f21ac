//! When the certificate of a TLS server ends: asked by a handshake that goes no further.
//!
//! Whoever works with the server verifies the certificate himself, by his own rules, and refuses one that is over. Here it is only looked at, so that somebody is told in time.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use chrono::{DateTime, Utc};
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use walkeep_store::TlsServer;

use crate::postgres::tls;

/// A handshake has so long.
const DEADLINE: Duration = Duration::from_secs(15);

/// When the certificate of this server ends.
pub async fn end_of(server: &TlsServer) -> Result<DateTime<Utc>> {
    let handshake = async {
        let TlsServer { host, port } = server;
        let name = ServerName::try_from(host.clone()).with_context(|| format!("{host:?} is no name of a server"))?;
        let stream = TcpStream::connect((host.as_str(), *port)).await.with_context(|| format!("connect to {host}:{port}"))?;
        let config = Arc::new(tls::with_anyone()?);
        let stream = TlsConnector::from(config).connect(name, stream).await.with_context(|| format!("shake hands with {host}:{port}"))?;
        let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
        certificate.and_then(|certificate| tls::not_after(certificate)).context("it has shown no certificate that can be read")
    };
    tokio::time::timeout(DEADLINE, handshake).await.with_context(|| format!("no answer within {} s", DEADLINE.as_secs()))?
}

#[cfg(test)]
mod tests {
    use rustls::ServerConfig;
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    use tokio::io::AsyncReadExt;
    use tokio::net::TcpListener;
    use tokio_rustls::TlsAcceptor;

    use super::*;

    const CERTIFICATE: &[u8] = include_bytes!("../store/tests/fixtures/tls/server.crt");
    const KEY: &[u8] = include_bytes!("../store/tests/fixtures/tls/server.key");

    #[tokio::test]
    async fn a_server_that_nobody_trusts_is_asked_until_when_its_certificate_holds() {
        let certificate = CertificateDer::from_pem_slice(CERTIFICATE).unwrap();
        let expected = tls::not_after(&certificate).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate], PrivateKeyDer::from_pem_slice(KEY).unwrap())
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let serving = tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let mut stream = TlsAcceptor::from(Arc::new(config)).accept(stream).await.unwrap();
            let mut said = Vec::new();
            // However it hangs up.
            let _ = stream.read_to_end(&mut said).await;
            said
        });
        let found = end_of(&TlsServer { host: "127.0.0.1".into(), port }).await.unwrap();
        assert_eq!(found, expected);
        assert!(found > DateTime::from_timestamp(1_700_000_000, 0).unwrap(), "{found}");
        assert!(serving.await.unwrap().is_empty(), "nothing is said to it");
        assert!(end_of(&TlsServer { host: "127.0.0.1".into(), port }).await.is_err(), "nobody listens any more");
        assert_eq!(tls::not_after(b"nonsense"), None);
    }
}
