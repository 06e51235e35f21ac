//! The stored bytes of an object, proven in one repository to be what was stored: what may be put where another repository has it damaged or not at all.

use bytes::Bytes;
use walkeep_core::layout::ObjectName;
use walkeep_store::ErrorKind;

use super::several::Proven;
use super::{ClusterRepository, Error, Result};

impl ClusterRepository {
    /// The bytes as they are stored; `None` if they are not there. Nothing is believed unread: what cannot be proven here fails, as damaged or as not to be
    /// decrypted. Of a manifest's piece, and of a record of the audit trail, only others prove all: the backup's record, the record behind it.
    pub async fn whole_object(&self, name: &ObjectName) -> Result<Option<Bytes>> {
        let key = self.key(name)?;
        let Some(stored) = self.stored_object(name).await? else { return Ok(None) };
        if self.prove_object(name, &stored).await? == Proven::Outside {
            return Err(Error::CannotDecrypt { key: key.to_string(), reason: "this host has no identity for it".to_owned() });
        }
        match name {
            ObjectName::Pack(_) | ObjectName::BackupManifest(..) | ObjectName::Audit(_) => return Ok(Some(stored)),
            name if name.holds_data() || matches!(name, ObjectName::Wal(_)) => {
                let plain = self.opened(name, stored.clone()).await?;
                self.prove_opened(name, plain).await?;
                return Ok(Some(stored));
            }
            _ => {}
        }
        // What it says was read once more for that: both times the same.
        self.check_whole(name).await?;
        match self.stored_object(name).await? {
            Some(again) if again == stored => Ok(Some(stored)),
            _ => Err(Error::corrupt(key.as_str(), "two reads of it differ")),
        }
    }

    /// The bytes as they lie there, whatever they are; `None` if there are none.
    pub async fn stored_object(&self, name: &ObjectName) -> Result<Option<Bytes>> {
        match self.store().get(&self.key(name)?, None).await {
            Ok(stored) => Ok(Some(stored)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.corrupt_if_store_says_so(name, error.into())),
        }
    }

    /// Takes away what lies there damaged, to make room for the good copy that is at hand.
    pub async fn take_away(&self, name: &ObjectName) -> Result<()> {
        Ok(self.store().delete(&self.key(name)?).await?)
    }

    /// Puts a good copy where nothing lies.
    pub async fn put_back(&self, name: &ObjectName, good: Bytes) -> Result<()> {
        Ok(self.store().put_if_absent(&self.key(name)?, good).await.map(drop)?)
    }
}
