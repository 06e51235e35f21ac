//! Objects in archived classes: what S3 tells of one, and how it is asked to make it readable.

use std::time::SystemTime;

use aws_sdk_s3::operation::head_object::HeadObjectOutput;
use aws_sdk_s3::primitives::{DateTime, DateTimeFormat};
use aws_sdk_s3::types::{GlacierJobParameters, RestoreRequest, Tier as S3Tier};

use super::S3Store;
use super::errors::Failure;
use crate::archived::{ArchiveClass, Readiness, Thaw, Tier};
use crate::{ErrorKind, Key, Result};

impl S3Store {
    /// Of a certain version, or the present one.
    pub(super) async fn readiness_of(&self, key: &Key, version: Option<&str>) -> Result<Readiness> {
        let head = || async {
            let head =
                self.client.head_object().bucket(&self.options.bucket).key(self.name(key)).set_version_id(version.map(str::to_owned));
            head.send().await.map_err(Failure::from_sdk)
        };
        let look = async {
            match self.request(head).await {
                Ok(head) => Ok(told_by(&head)),
                // Such an answer has no body to say what is missing: the object, or the bucket.
                Err(failure) if failure.is_missing() => self.read(key, version, Some(&(0..1))).await.map(|_| Readiness::Ready),
                // Nor to say whether other keys may be accepted. A GET has them fetched anew.
                Err(failure) if failure.says_nothing() => match self.read(key, version, Some(&(0..1))).await {
                    Err(failure) if failure.kind != ErrorKind::Archived => Err(failure),
                    _ => self.request(head).await.map(|head| told_by(&head)),
                },
                Err(failure) => Err(failure),
            }
        };
        self.call("head", key.as_str(), look).await
    }

    /// Looks first: what is being thawed is not asked for again, and what can be read without costs nothing.
    pub(super) async fn thaw_of(&self, key: &Key, version: Option<&str>, thaw: Thaw) -> Result<Readiness> {
        let class = match self.readiness_of(key, version).await? {
            Readiness::Archived(class) => class,
            // Asked for again, the copy stays longer; the class plays no part then.
            Readiness::Thawed { .. } => ArchiveClass::Glacier,
            readiness => return Ok(readiness),
        };
        let ask = || async {
            let parameters = GlacierJobParameters::builder().tier(tier(thaw.tier)).build().map_err(Failure::not_sent)?;
            let request = RestoreRequest::builder().glacier_job_parameters(parameters);
            // What comes back from Intelligent-Tiering stays in its frequent tier: S3 takes no number of days for it.
            let days = (class != ArchiveClass::IntelligentTiering).then(|| i32::try_from(thaw.days).unwrap_or(i32::MAX));
            let restore = self.client.restore_object().bucket(&self.options.bucket).key(self.name(key));
            let restore = restore.set_version_id(version.map(str::to_owned)).restore_request(request.set_days(days).build());
            match restore.send().await.map_err(Failure::from_sdk) {
                Err(failure) if failure.is_thawing_already() => Ok(()),
                outcome => outcome.map(|_| ()),
            }
        };
        self.call("thaw", key.as_str(), self.request(ask)).await?;
        self.readiness_of(key, version).await
    }
}

fn tier(tier: Tier) -> S3Tier {
    match tier {
        Tier::Bulk => S3Tier::Bulk,
        Tier::Standard => S3Tier::Standard,
        Tier::Expedited => S3Tier::Expedited,
    }
}

fn told_by(head: &HeadObjectOutput) -> Readiness {
    let class = head.storage_class().and_then(|class| ArchiveClass::named(class.as_str()));
    // In that class only some lie in an archive, and those say so.
    let class = class.filter(|class| *class != ArchiveClass::IntelligentTiering || head.archive_status().is_some());
    readiness(class, head.restore())
}

/// `x-amz-restore` is `ongoing-request="true"`, or `ongoing-request="false", expiry-date="Fri, 21 Dec 2012 00:00:00 GMT"`.
fn readiness(class: Option<ArchiveClass>, restore: Option<&str>) -> Readiness {
    let Some(class) = class else { return Readiness::Ready };
    match restore {
        Some(text) if text.contains(r#"ongoing-request="true""#) => Readiness::Thawing,
        Some(text) if text.contains(r#"ongoing-request="false""#) => Readiness::Thawed { until: until(text) },
        _ => Readiness::Archived(class),
    }
}

fn until(restore: &str) -> Option<SystemTime> {
    let (_, rest) = restore.split_once(r#"expiry-date=""#)?;
    let at = DateTime::from_str(rest.split('"').next()?, DateTimeFormat::HttpDate).ok()?;
    SystemTime::try_from(at).ok()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_header_tells_whether_a_copy_is_there() {
        let glacier = Some(ArchiveClass::Glacier);
        assert_eq!(readiness(None, None), Readiness::Ready);
        assert_eq!(readiness(glacier, None), Readiness::Archived(ArchiveClass::Glacier));
        assert_eq!(readiness(glacier, Some(r#"ongoing-request="true""#)), Readiness::Thawing);
        let until = Some(SystemTime::UNIX_EPOCH + Duration::from_secs(1_356_048_000));
        let text = r#"ongoing-request="false", expiry-date="Fri, 21 Dec 2012 00:00:00 GMT""#;
        assert_eq!(readiness(glacier, Some(text)), Readiness::Thawed { until });
        assert_eq!(readiness(glacier, Some(r#"ongoing-request="false", expiry-date="never""#)), Readiness::Thawed { until: None });
    }
}
