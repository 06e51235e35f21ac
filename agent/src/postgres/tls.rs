//! TLS towards PostgreSQL: which certificates `sslmode` demands, and the hash that SCRAM binds to.
//!
//! rustls verifies; what is added here are libpq's ways that web PKI has not: encryption without verification, a chain without a
//! name (verify-ca), a server certificate that is its own root, and names in the subject's CN where there is no subjectAltName.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature, verify_tls13_signature_with_raw_key};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use sha2::{Digest, Sha256, Sha384, Sha512};
use x509_cert::Certificate;
use x509_cert::der::oid::db::rfc4519::COMMON_NAME;
use x509_cert::der::oid::db::{rfc5280, rfc5912};
use x509_cert::der::{Decode, Encode};

use super::error::Error;
use super::params::{ConnectionParams, RootCertificates, SslMode};

/// The TLS configuration for `params`; certificates are read afresh, so that renewed ones count from the next connection on.
pub(super) fn client_config(params: &ConnectionParams) -> Result<Arc<ClientConfig>, Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = Verifier {
        algorithms: provider.signature_verification_algorithms,
        trust: trust(params)?,
        check_name: params.sslmode == SslMode::VerifyFull,
    };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::TlsSetup(error.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match &params.client_certificate {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => builder
            .with_client_auth_cert(read_certificates(certificate)?, read_key(key)?)
            .map_err(|error| Error::TlsSetup(format!("client certificate {}: {error}", certificate.display())))?,
    };
    config.alpn_protocols = vec![b"postgresql".to_vec()];
    Ok(Arc::new(config))
}

/// For a connection over which nothing is said: whoever answers is taken at his word.
pub fn with_anyone() -> Result<ClientConfig, Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = Verifier { algorithms: provider.signature_verification_algorithms, trust: None, check_name: false };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::TlsSetup(error.to_string()))?;
    Ok(builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier)).with_no_client_auth())
}

/// Roots as authorities, and as certificates that a server may present itself.
#[derive(Debug)]
struct Trust {
    store: RootCertStore,
    pinned: Vec<CertificateDer<'static>>,
}

/// Whom to trust; nobody is asked (`None`) if there are no roots and the mode does not demand any.
fn trust(params: &ConnectionParams) -> Result<Option<Trust>, Error> {
    let certificates = match &params.roots {
        RootCertificates::System => {
            let mut store = RootCertStore::empty();
            let found = rustls_native_certs::load_native_certs();
            let (added, _) = store.add_parsable_certificates(found.certs);
            if added == 0 {
                return Err(Error::TlsSetup("sslrootcert=system, but the operating system has no trusted certificates".into()));
            }
            return Ok(Some(Trust { store, pinned: Vec::new() }));
        }
        RootCertificates::DefaultFile(path) if !path.exists() => {
            if params.sslmode >= SslMode::VerifyCa {
                let message = format!("sslmode={} needs {} or sslrootcert", params.sslmode.as_str(), path.display());
                return Err(Error::TlsSetup(message));
            }
            return Ok(None);
        }
        RootCertificates::File(path) | RootCertificates::DefaultFile(path) => read_certificates(path)?,
    };
    let mut store = RootCertStore::empty();
    store.add_parsable_certificates(certificates.iter().cloned());
    Ok(Some(Trust { store, pinned: certificates }))
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let unusable = |problem: String| Error::TlsSetup(format!("certificate file {}: {problem}", path.display()));
    let certificates = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| unusable(error.to_string()))?;
    if certificates.is_empty() { Err(unusable("it holds no certificate".into())) } else { Ok(certificates) }
}

fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, Error> {
    let unusable = |problem: String| Error::TlsSetup(format!("key file {}: {problem}", path.display()));
    let metadata = std::fs::metadata(path).map_err(|error| unusable(error.to_string()))?;
    // As libpq: 0600, or 0640 if it belongs to root.
    let too_wide = if metadata.uid() == 0 { 0o137 } else { 0o177 };
    if metadata.mode() & too_wide != 0 {
        return Err(unusable("group or others may read it; its mode should be 0600".into()));
    }
    PrivateKeyDer::from_pem_file(path).map_err(|error| unusable(error.to_string()))
}

#[derive(Debug)]
struct Verifier {
    algorithms: WebPkiSupportedAlgorithms,
    trust: Option<Trust>,
    check_name: bool,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(trust) = &self.trust else { return Ok(ServerCertVerified::assertion()) };
        if trust.pinned.iter().any(|root| root == end_entity) {
            check_dates(end_entity, now)?;
        } else {
            let parsed = ParsedCertificate::try_from(end_entity)?;
            verify_server_cert_signed_by_trust_anchor(&parsed, &trust.store, intermediates, now, self.algorithms.all)?;
        }
        if self.check_name {
            check_name(end_entity, server_name)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        if ParsedCertificate::try_from(cert).is_ok() {
            return verify_tls13_signature(message, cert, dss, &self.algorithms);
        }
        // X.509 v1, as `openssl x509 -req` still makes: web PKI does not know it, but its key can be checked like any other.
        let key = decode(cert)?.tbs_certificate.subject_public_key_info.to_der().map_err(|_| bad_encoding())?;
        verify_tls13_signature_with_raw_key(message, &SubjectPublicKeyInfoDer::from(key), dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

fn bad_encoding() -> rustls::Error {
    CertificateError::BadEncoding.into()
}

fn decode(certificate: &CertificateDer<'_>) -> Result<Certificate, rustls::Error> {
    Certificate::from_der(certificate).map_err(|_| bad_encoding())
}

/// Until when a certificate is valid; `None` if that cannot be read.
pub fn not_after(certificate: &[u8]) -> Option<DateTime<Utc>> {
    let not_after = Certificate::from_der(certificate).ok()?.tbs_certificate.validity.not_after.to_unix_duration();
    DateTime::from_timestamp(not_after.as_secs().try_into().ok()?, 0)
}

fn check_dates(certificate: &CertificateDer<'_>, now: UnixTime) -> Result<(), rustls::Error> {
    let validity = decode(certificate)?.tbs_certificate.validity;
    if now.as_secs() < validity.not_before.to_unix_duration().as_secs() {
        return Err(CertificateError::NotValidYet.into());
    }
    if now.as_secs() > validity.not_after.to_unix_duration().as_secs() {
        return Err(CertificateError::Expired.into());
    }
    Ok(())
}

fn check_name(certificate: &CertificateDer<'_>, name: &ServerName<'_>) -> Result<(), rustls::Error> {
    let decoded = decode(certificate)?;
    let extensions = decoded.tbs_certificate.extensions.as_deref().unwrap_or_default();
    if extensions.iter().any(|extension| extension.extn_id == rfc5280::ID_CE_SUBJECT_ALT_NAME) {
        return verify_server_name(&ParsedCertificate::try_from(certificate)?, name);
    }
    let wanted = name.to_str();
    let common_names = decoded.tbs_certificate.subject.0.iter().flat_map(|set| set.0.iter()).filter(|part| part.oid == COMMON_NAME);
    let matches = |common: &str| {
        let wildcard = common.strip_prefix("*.").zip(wanted.split_once('.'));
        common.eq_ignore_ascii_case(&wanted)
            || (matches!(name, ServerName::DnsName(_)) && wildcard.is_some_and(|(suffix, (_, rest))| suffix.eq_ignore_ascii_case(rest)))
    };
    // A CN is one of a few string types whose content is the text itself.
    let found = common_names.map(|part| part.value.value()).any(|value| std::str::from_utf8(value).is_ok_and(matches));
    if found { Ok(()) } else { Err(CertificateError::NotValidForName.into()) }
}

/// `tls-server-end-point` (RFC 5929): the hash of the server's certificate by its signature's own digest; `None` if it has none.
pub(super) fn endpoint_hash(certificate: &CertificateDer<'_>) -> Option<Vec<u8>> {
    let algorithm = Certificate::from_der(certificate).ok()?.signature_algorithm.oid;
    let bytes: &[u8] = certificate;
    match algorithm {
        rfc5912::SHA_1_WITH_RSA_ENCRYPTION | rfc5912::SHA_256_WITH_RSA_ENCRYPTION | rfc5912::ECDSA_WITH_SHA_256 => {
            Some(Sha256::digest(bytes).to_vec())
        }
        rfc5912::SHA_384_WITH_RSA_ENCRYPTION | rfc5912::ECDSA_WITH_SHA_384 => Some(Sha384::digest(bytes).to_vec()),
        rfc5912::SHA_512_WITH_RSA_ENCRYPTION | rfc5912::ECDSA_WITH_SHA_512 => Some(Sha512::digest(bytes).to_vec()),
        _ => None,
    }
}
