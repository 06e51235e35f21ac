//! Object locks after the put: asked for, and prolonged.

use std::time::SystemTime;

use aws_sdk_s3::primitives::DateTime;
use aws_sdk_s3::types::{ObjectLockRetention, ObjectLockRetentionMode};

use super::errors::Failure;
use super::placing::{Lock, LockMode, Locked};
use super::{S3Store, placing};
use crate::{ErrorKind, Key};

/// What servers say of an object, or of a whole bucket, without locks.
const NO_LOCK: [&str; 4] =
    ["NoSuchObjectLockConfiguration", "ObjectLockConfigurationNotFoundError", "InvalidRequest", "NoSuchRetentionConfiguration"];

impl S3Store {
    /// Asked by a request of its own: the answer to a HEAD leaves the lock out where the permission to see it is missing, and says nothing of that.
    pub(super) async fn lock_found(&self, key: &Key) -> std::result::Result<Option<Locked>, Failure> {
        let asked = self.client.get_object_retention().bucket(&self.options.bucket).key(self.name(key)).send().await;
        let output = match asked.map_err(Failure::from_sdk) {
            Ok(output) => output,
            Err(failure) if failure.has_code(&NO_LOCK) => return Ok(None),
            Err(failure) => return Err(failure),
        };
        Ok(output.retention.and_then(|retention| {
            let mode = match retention.mode()? {
                ObjectLockRetentionMode::Compliance => LockMode::Compliance,
                _ => LockMode::Governance,
            };
            Some(Locked { mode, until: SystemTime::try_from(*retention.retain_until_date()?).ok()? })
        }))
    }

    pub(super) async fn lock_again(&self, key: &Key, lock: Lock) -> std::result::Result<(), Failure> {
        let locked = match self.lock_found(key).await {
            Ok(locked) => locked,
            // Who may not look may lock all the same.
            Err(failure) if failure.kind == ErrorKind::Denied => None,
            Err(failure) => return Err(failure),
        };
        let Some(Locked { mode, until }) = lock.anew(locked, SystemTime::now()) else { return Ok(()) };
        let mode = match mode {
            LockMode::Governance => ObjectLockRetentionMode::Governance,
            LockMode::Compliance => ObjectLockRetentionMode::Compliance,
        };
        let until = DateTime::from(until);
        let retention = ObjectLockRetention::builder().mode(mode).retain_until_date(until).build();
        let put = self.client.put_object_retention().bucket(&self.options.bucket).key(self.name(key)).retention(retention);
        put.send().await.map(|_| ()).map_err(|error| match Failure::from_sdk(error) {
            failure if failure.is_bad_request() => failure.advised(placing::NEEDS_LOCKS),
            failure => failure,
        })
    }
}
