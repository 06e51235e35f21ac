//! The HTTP client and whom it trusts.

use std::path::Path;

use aws_sdk_s3::config::SharedHttpClient;
use aws_smithy_http_client::Builder;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::{Error, ErrorKind, Result};

/// A client that trusts the authorities of `ca_file` only, or the system's.
///
/// An own authority replaces the system's: whoever pins one does not want every public one beside it.
pub(super) fn client(ca_file: Option<&Path>) -> Result<SharedHttpClient> {
    let trust = match ca_file {
        None => TrustStore::empty().with_native_roots(true),
        Some(path) => TrustStore::empty().with_pem_certificate(authorities(path)?),
    };
    https(trust)
}

/// A client for a server without TLS; it trusts nobody and so needs no authorities on this machine.
pub(super) fn plain_client() -> Result<SharedHttpClient> {
    https(TrustStore::empty())
}

fn https(trust: TrustStore) -> Result<SharedHttpClient> {
    let context = TlsContext::builder().with_trust_store(trust).build().map_err(|error| unusable("certificates", error))?;
    Ok(Builder::new().tls_provider(Provider::rustls(CryptoMode::Ring)).tls_context(context).build_https())
}

/// The file's text, checked here because the HTTP client panics on what it cannot read.
fn authorities(path: &Path) -> Result<Vec<u8>> {
    let place = path.display().to_string();
    let pem = std::fs::read(path).map_err(|error| unusable(&place, error))?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|error| unusable(&place, error))?;
        roots.add(certificate).map_err(|error| unusable(&place, error))?;
    }
    if roots.is_empty() {
        return Err(unusable(&place, "no PEM certificate in the file"));
    }
    Ok(pem)
}

fn unusable(place: &str, cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::at(ErrorKind::Misconfigured, "read authorities", place).because(cause)
}
