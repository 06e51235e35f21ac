//! From what S3 and the network say to what a caller can do.

use std::error::Error as StdError;
use std::fmt;
use std::io;

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::operation::{RequestId, RequestIdExt};
use aws_smithy_runtime_api::client::interceptors::context::InterceptorContext;
use aws_smithy_runtime_api::client::retries::classifiers::{ClassifyRetry, RetryAction};

use super::credentials::are_missing;
use crate::ErrorKind;

/// A failed request. Holds no header and no body: those carry signatures.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) kind: ErrorKind,
    status: Option<u16>,
    code: Option<String>,
    message: String,
    /// What to do, where no code tells it.
    remedy: Option<&'static str>,
}

impl Failure {
    /// A failure that no status tells.
    pub(super) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, status: None, code: None, message: message.into(), remedy: None }
    }

    /// A request that could not be made.
    pub(super) fn not_sent(error: impl fmt::Display) -> Self {
        Self::new(ErrorKind::Unusable, error.to_string())
    }

    /// What an answer that is fine on the whole says of one of many keys: it has a code and no status.
    pub(super) fn of_one(code: Option<&str>, message: Option<&str>) -> Self {
        let kind = match code {
            Some("NoSuchKey") => ErrorKind::NotFound,
            code => kind_of(200, code),
        };
        let message = message.or(code).unwrap_or("without a reason").to_owned();
        Self { kind, status: None, code: code.map(str::to_owned), message, remedy: None }
    }

    /// What the SDK reports.
    pub(super) fn from_sdk<E>(error: SdkError<E, HttpResponse>) -> Self
    where
        E: StdError + ProvideErrorMetadata + Send + Sync + 'static,
    {
        let status = error.raw_response().map(|response| response.status().as_u16());
        match &error {
            SdkError::ServiceError(_) | SdkError::ResponseError(_) => {
                let code = error.code().map(str::to_owned);
                let kind = kind_of(status.unwrap_or_default(), code.as_deref());
                let said = error.message().map_or_else(|| chain(&error), str::to_owned);
                let id = error.request_id().or(error.extended_request_id());
                let message = id.map_or_else(|| said.clone(), |id| format!("{said} (request {id})"));
                Self { kind, status, code, message, remedy: None }
            }
            _ => {
                // The store was not even asked.
                let said = find::<CredentialsError>(&error).map(|source| format!("no credentials could be had: {}", chain(source)));
                let remedy = refused_certificate(&error).map(certificate_hint);
                Self { kind: kind_of_failed_dispatch(&error), status, code: None, message: said.unwrap_or_else(|| chain(&error)), remedy }
            }
        }
    }

    /// In other words: the SDK's are a list of everything it looked at.
    pub(super) fn reworded(self, message: impl Into<String>) -> Self {
        Self { message: message.into(), ..self }
    }

    /// With what to do about it.
    pub(super) fn advised(self, remedy: &'static str) -> Self {
        Self { remedy: Some(remedy), ..self }
    }

    /// The server's word for it is one of these.
    pub(super) fn has_code(&self, codes: &[&str]) -> bool {
        self.code.as_deref().is_some_and(|code| codes.contains(&code))
    }

    /// The request itself is refused.
    pub(super) fn is_bad_request(&self) -> bool {
        self.status == Some(400) && self.kind == ErrorKind::Unusable
    }

    /// Somebody asked for the thaw before.
    pub(super) fn is_thawing_already(&self) -> bool {
        self.code.as_deref() == Some("RestoreAlreadyInProgress")
    }

    /// The condition of a conditional put does not hold.
    pub(super) fn is_precondition(&self) -> bool {
        self.status == Some(412)
    }

    /// Something is not there.
    pub(super) fn is_missing(&self) -> bool {
        self.status == Some(404)
    }

    /// The request is refused without a word why, as every HEAD is.
    pub(super) fn says_nothing(&self) -> bool {
        matches!(self.status, Some(400 | 403)) && self.code.is_none()
    }

    /// A range that begins past the object's end.
    pub(super) fn is_past_the_end(&self) -> bool {
        self.status == Some(416)
    }

    /// The same request may be answered well.
    pub(super) fn is_about_this_answer(&self) -> bool {
        matches!(self.kind, ErrorKind::Transient | ErrorKind::Corrupt)
    }

    /// Other keys may be accepted where these were not.
    pub(super) fn is_about_keys(&self) -> bool {
        self.code.as_deref().is_some_and(|code| KEYS.contains(&code))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(status) = self.status {
            write!(f, "S3 answered {status} {}: ", self.code.as_deref().unwrap_or("without an error code"))?;
        }
        f.write_str(&self.message)?;
        match self.code.as_deref().and_then(hint).or(self.remedy) {
            Some(hint) => write!(f, "; {hint}"),
            None => Ok(()),
        }
    }
}

impl StdError for Failure {}

/// Refusals of the keys themselves.
const KEYS: &[&str] = &["InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "TokenRefreshRequired"];

/// What to do about an answer.
///
/// Absence needs S3's own word for it: a 404 without `NoSuchKey` comes from a missing bucket, a proxy or a wrong address.
fn kind_of(status: u16, code: Option<&str>) -> ErrorKind {
    match code {
        Some("NoSuchKey") if status == 404 => return ErrorKind::NotFound,
        Some("InvalidObjectState") => return ErrorKind::Archived,
        Some("AccessDenied" | "AllAccessDisabled" | "AccountProblem" | "InvalidSecurity" | "NotSignedUp") => return ErrorKind::Denied,
        Some(code) if KEYS.contains(&code) => return ErrorKind::Denied,
        Some("RequestTimeTooSkewed" | "RequestExpired") => return ErrorKind::Unusable,
        // The body was damaged or cut on its way there.
        Some("BadDigest" | "InvalidDigest" | "IncompleteBody" | "XAmzContentSHA256Mismatch" | "XAmzContentChecksumMismatch") => {
            return ErrorKind::Transient;
        }
        Some("ConditionalRequestConflict" | "OperationAborted" | "SlowDown" | "RequestTimeout" | "TemporaryRedirect") => {
            return ErrorKind::Transient;
        }
        _ => {}
    }
    match status {
        401 | 403 => ErrorKind::Denied,
        408 | 409 | 425 | 429 => ErrorKind::Transient,
        501 | 505 => ErrorKind::Unusable,
        // 2xx: an error, or nothing that can be read, inside an answer that says it is fine.
        0..=299 | 500.. => ErrorKind::Transient,
        _ => ErrorKind::Unusable,
    }
}

/// What the operator can do, where the server's own words do not say.
fn hint(code: &str) -> Option<&'static str> {
    Some(match code {
        "NoSuchBucket" => "create the bucket or correct its name",
        "PermanentRedirect" | "AuthorizationHeaderMalformed" | "IllegalLocationConstraintException" => {
            "the bucket is in another region: correct `region` or `endpoint`"
        }
        "RequestTimeTooSkewed" | "RequestExpired" => "set this machine's clock",
        "InvalidAccessKeyId" | "SignatureDoesNotMatch" => "the access key or its secret is wrong",
        "ExpiredToken" | "InvalidToken" | "TokenRefreshRequired" => "the session token has expired: renew the credentials",
        "InvalidObjectState" => {
            "it has to be thawed first: `walkeep thaw` asks for all that a restore needs, `aws s3api restore-object` for one object"
        }
        "GlacierExpeditedRetrievalNotAvailable" => "there is no room in this tier for now: take another one (--tier standard)",
        _ => return None,
    })
}

/// No answer came: because of the network mostly, but a refused certificate and missing credentials stay as they are.
fn kind_of_failed_dispatch(error: &(dyn StdError + 'static)) -> ErrorKind {
    if let Some(credentials) = find::<CredentialsError>(error) {
        return if are_missing(credentials) { ErrorKind::NoCredentials } else { ErrorKind::Transient };
    }
    if refused_certificate(error).is_some() { ErrorKind::Unusable } else { ErrorKind::Transient }
}

/// The TLS error, if it is about the server's certificate: asking again would be answered with the same one.
fn refused_certificate<'e>(error: &'e (dyn StdError + 'static)) -> Option<&'e rustls::Error> {
    let about_it = |error: &&rustls::Error| matches!(error, rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented);
    find::<rustls::Error>(error).filter(about_it)
}

fn certificate_hint(error: &rustls::Error) -> &'static str {
    use rustls::CertificateError as Why;
    match error {
        rustls::Error::InvalidCertificate(
            Why::Expired | Why::ExpiredContext { .. } | Why::NotValidYet | Why::NotValidYetContext { .. },
        ) => "renew the server's certificate, or set this machine's clock",
        rustls::Error::InvalidCertificate(Why::NotValidForName | Why::NotValidForNameContext { .. }) => {
            "the certificate is for another name: correct `endpoint`"
        }
        _ => "if the server's certificate is of an authority of your own, name that authority's file in `ca_file`",
    }
}

/// The first cause of this type. An `io::Error` skips the error it wraps when asked for its source, so it is looked into.
fn find<'e, T: StdError + 'static>(error: &'e (dyn StdError + 'static)) -> Option<&'e T> {
    let wrapped = || error.downcast_ref::<io::Error>()?.get_ref().and_then(|inner| find::<T>(inner));
    error.downcast_ref::<T>().or_else(wrapped).or_else(|| error.source().and_then(find::<T>))
}

/// The error and its causes as one sentence, without repetitions.
pub(super) fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        let cause = error.to_string();
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
        next = error.source();
    }
    text
}

/// Retries that the SDK leaves out: a conflict between two conditional puts, and an error inside an answer of 200.
#[derive(Debug)]
pub(super) struct RetryMore;

impl ClassifyRetry for RetryMore {
    fn classify_retry(&self, context: &InterceptorContext) -> RetryAction {
        let failed = context.output_or_error().is_some_and(|outcome| outcome.is_err());
        let connector = context.output_or_error().and_then(|outcome| outcome.err()).and_then(|error| error.as_connector_error());
        if connector.is_some_and(|error| refused_certificate(error).is_some()) {
            return RetryAction::RetryForbidden;
        }
        match context.response().map(|response| response.status().as_u16()) {
            Some(409 | 200..=299) if failed => RetryAction::transient_error(),
            _ => RetryAction::NoActionIndicated,
        }
    }

    fn name(&self) -> &'static str {
        "walkeep: conflicts and errors inside success"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_named_after_what_helps() {
        for (status, code, kind) in [
            (404, Some("NoSuchKey"), ErrorKind::NotFound),
            (404, Some("NoSuchBucket"), ErrorKind::Unusable),
            (404, None, ErrorKind::Unusable),
            (200, Some("NoSuchKey"), ErrorKind::Transient),
            (301, Some("PermanentRedirect"), ErrorKind::Unusable),
            (400, Some("AuthorizationHeaderMalformed"), ErrorKind::Unusable),
            (400, Some("ExpiredToken"), ErrorKind::Denied),
            (400, Some("BadDigest"), ErrorKind::Transient),
            (403, Some("AccessDenied"), ErrorKind::Denied),
            (403, Some("InvalidAccessKeyId"), ErrorKind::Denied),
            (403, Some("InvalidObjectState"), ErrorKind::Archived),
            (403, Some("RequestTimeTooSkewed"), ErrorKind::Unusable),
            (403, None, ErrorKind::Denied),
            (409, Some("ConditionalRequestConflict"), ErrorKind::Transient),
            (429, None, ErrorKind::Transient),
            (500, Some("InternalError"), ErrorKind::Transient),
            (503, Some("SlowDown"), ErrorKind::Transient),
            (501, Some("NotImplemented"), ErrorKind::Unusable),
        ] {
            assert_eq!(kind_of(status, code), kind, "{status} {code:?}");
        }
    }
}
