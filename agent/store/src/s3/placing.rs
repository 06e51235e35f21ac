//! How an object is put, by its key: its storage class, and for how long nobody may remove it.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_sdk_s3::operation::put_object::builders::PutObjectFluentBuilder;
use aws_sdk_s3::primitives::DateTime;
use aws_sdk_s3::types::{ObjectLockMode, StorageClass};

use crate::Key;

/// What to do where a lock is refused.
pub(super) const NEEDS_LOCKS: &str = "with object_lock the bucket must have been made with object lock (which keeps versions)";

/// How one object is put.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Placement {
    /// Such as `STANDARD_IA`; by default the store's, or the bucket's.
    pub storage_class: Option<String>,
    /// Object lock; by default the bucket's.
    pub lock: Option<Lock>,
}

/// Object lock: until its end no version of the object can be removed or changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lock {
    /// Who may remove it all the same.
    pub mode: LockMode,
    /// How many days, from the put on.
    pub days: u32,
}

/// Who may remove a locked object: the later one here is the stricter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LockMode {
    /// Whoever has a permission for just that.
    Governance,
    /// Nobody, not even the account's owner.
    Compliance,
}

/// How an object is locked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Locked {
    /// Who may remove it all the same.
    pub mode: LockMode,
    /// Until when.
    pub until: SystemTime,
}

impl Lock {
    /// For how long.
    pub fn time(&self) -> Duration {
        Duration::from_secs(u64::from(self.days) * 24 * 3600)
    }
}

/// Decides it for each key.
#[derive(Clone)]
pub struct Placing(Arc<dyn Fn(&Key) -> Placement + Send + Sync>);

impl Placing {
    /// By this rule.
    pub fn by(rule: impl Fn(&Key) -> Placement + Send + Sync + 'static) -> Self {
        Self(Arc::new(rule))
    }

    pub(super) fn of(&self, key: &Key) -> Placement {
        (self.0)(key)
    }
}

impl fmt::Debug for Placing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Placing")
    }
}

/// Says so in the request.
pub(super) fn place(put: PutObjectFluentBuilder, placement: Placement, default_class: Option<&str>) -> PutObjectFluentBuilder {
    let class = placement.storage_class.as_deref().or(default_class).map(StorageClass::from);
    let put = put.set_storage_class(class);
    let Some(lock) = placement.lock else { return put };
    let mode = match lock.mode {
        LockMode::Governance => ObjectLockMode::Governance,
        LockMode::Compliance => ObjectLockMode::Compliance,
    };
    let until = SystemTime::now() + lock.time();
    put.object_lock_mode(mode).object_lock_retain_until_date(DateTime::from(until))
}
