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

    /// By so much an object's lock may end earlier before it is prolonged: else each backup would ask for every pack.
    pub fn slack(&self) -> Duration {
        (self.time() / 10).max(Duration::from_secs(24 * 3600)).min(self.time() / 2)
    }

    /// How an object is to be locked anew that is locked so; `None` where it is for long enough. Never for a shorter time, nor less strictly.
    pub fn anew(&self, locked: Option<Locked>, now: SystemTime) -> Option<Locked> {
        let wanted = Locked { mode: self.mode, until: now + self.time() };
        match locked {
            None => Some(wanted),
            Some(locked) if locked.mode >= self.mode && locked.until + self.slack() >= wanted.until => None,
            Some(locked) => Some(Locked { mode: locked.mode.max(self.mode), until: locked.until.max(wanted.until) }),
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_made_longer_or_stricter_and_never_less() {
        let (now, day) = (SystemTime::now(), Duration::from_secs(24 * 3600));
        let lock = Lock { mode: LockMode::Governance, days: 30 };
        let locked = |mode, days: u32| Some(Locked { mode, until: now + day * days });
        let (governance, compliance) = (LockMode::Governance, LockMode::Compliance);
        assert_eq!(lock.anew(None, now), locked(governance, 30));
        assert_eq!(lock.anew(locked(governance, 26), now), locked(governance, 30));
        // Nearly as long, or longer since the days were fewer.
        assert_eq!((lock.anew(locked(governance, 27), now), lock.anew(locked(compliance, 90), now)), (None, None));
        assert_eq!(lock.anew(locked(compliance, 26), now), locked(compliance, 30));
        let strict = Lock { mode: compliance, days: 30 };
        assert_eq!(strict.anew(locked(governance, 90), now), locked(compliance, 90));
        assert_eq!([1, 5, 30].map(|days| Lock { days, ..lock }.slack()), [day / 2, day, day * 3]);
    }
}
