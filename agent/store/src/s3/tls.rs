//! The HTTP client and whom it trusts.

use std::path::Path;

use aws_sdk_s3::config::SharedHttpClient;
use aws_smithy_http_client::Builder;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore};
use pem_rfc7468::LineEnding;
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::{Error, ErrorKind, Result};

/// What errors call the system's authorities.
const SYSTEM: &str = "the system's trusted certificates";

/// A client that trusts the authorities of `ca_file` only, or the system's.
///
/// An own authority replaces the system's: whoever pins one does not want every public one beside it.
pub(super) fn client(ca_file: Option<&Path>) -> Result<SharedHttpClient> {
    let pem = match ca_file {
        None => system()?,
        Some(path) => authorities(path)?,
    };
    https(TrustStore::empty().with_pem_certificate(pem))
}

/// A client for a server without TLS; it trusts nobody and so needs no authorities on this machine.
pub(super) fn plain_client() -> Result<SharedHttpClient> {
    https(TrustStore::empty())
}

/// A client that trusts the system's authorities, or nobody if this machine has none: it may never meet a server that wants one.
pub(super) fn public_client() -> Result<SharedHttpClient> {
    client(None).or_else(|error| {
        tracing::debug!(%error, "no authorities for token services");
        plain_client()
    })
}

/// The system's authorities as PEM.
///
/// The HTTP client would look for them itself, but it keeps an empty finding (no `ca-certificates` on the machine, no descriptor left) for the
/// life of the process and only then fails, at the first connection and without the reason.
fn system() -> Result<Vec<u8>> {
    let found = rustls_native_certs::load_native_certs();
    let mut pem = String::new();
    for certificate in &found.certs {
        // A system's bundle may hold one that nobody can use; the HTTP client panics on such.
        if RootCertStore::empty().add(certificate.clone()).is_ok() {
            pem += &pem_rfc7468::encode_string("CERTIFICATE", LineEnding::LF, certificate)
                .map_err(|error| unusable(SYSTEM, error.to_string()))?;
        }
    }
    match found.errors.into_iter().next() {
        _ if !pem.is_empty() => Ok(pem.into_bytes()),
        Some(error) => Err(unusable(SYSTEM, error)),
        None => Err(unusable(SYSTEM, "there are none; install the package ca-certificates, or name a file with ca_file")),
    }
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
