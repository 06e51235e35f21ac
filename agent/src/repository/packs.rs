//! Packs, the objects that hold what files are made of: stored, read in stretches, listed, and compared with what manifests refer to.
//!
//! A listing tells of a pack that it is there and how long it is, which is what is asked before a backup builds on others, and before a restore is
//! planned ([`Packs`], [`Lost`]). Whether its bytes are right is told by reading it only: every extent has its hash in the manifest.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;
use std::ops::Range;
use std::time::SystemTime;

use bytes::Bytes;
use futures::{FutureExt, StreamExt, TryStreamExt, stream};
use tokio::task::spawn_blocking;
use walkeep_core::backup::BackupRecord;
use walkeep_core::layout::{Form, ObjectName, PackId};
use walkeep_core::manifest::{Content, EntryKind, Extent};
use walkeep_core::relative_path::RelativePath;
use walkeep_store::{ArchiveClass, ErrorKind, ListRequest, Listed, Put, list_all};

use super::wal::Stored;
use super::{ClusterRepository, Error, Result, on_blocking_thread};
use crate::codec;
use crate::encryption::format::can_hold;

/// The first letters of packs' names: of very many packs each is listed by itself.
const DIGITS: &str = "0123456789abcdef";
/// Listings at a time.
const LISTINGS: usize = 8;

/// A pack and what is known of it without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListedPack {
    /// Its name.
    pub id: PackId,
    /// Its bytes.
    pub bytes: u64,
    /// When it was put.
    pub put: SystemTime,
}

/// The packs that are there, by their lengths.
#[derive(Debug, Clone, Default)]
pub struct Packs {
    listed: HashMap<PackId, u64>,
    /// Those that are not read at once.
    archived: HashMap<PackId, ArchiveClass>,
    form: Form,
}

impl Packs {
    /// None yet, of objects of this form.
    pub fn none(form: Form) -> Self {
        Self { listed: HashMap::new(), archived: HashMap::new(), form }
    }

    /// Adds one that was listed with so many bytes.
    pub fn add(&mut self, pack: PackId, bytes: u64) {
        self.listed.insert(pack, bytes);
    }

    /// Whether an extent can be there.
    pub fn hold(&self, extent: &Extent) -> bool {
        let holds = |bytes| if self.form == Form::Age { can_hold(bytes) } else { bytes };
        self.listed.get(&extent.pack).is_some_and(|bytes| extent.offset.saturating_add(extent.stored) <= holds(*bytes))
    }

    /// The bytes of one that is there.
    pub fn bytes_of(&self, pack: &PackId) -> Option<u64> {
        self.listed.get(pack).copied()
    }

    /// Those that are there, each with its bytes.
    pub fn lengths(&self) -> &HashMap<PackId, u64> {
        &self.listed
    }

    /// Whether any are not read at once.
    pub fn any_archived(&self) -> bool {
        !self.archived.is_empty()
    }

    /// Its bytes and class, if it lies in one that is not read at once.
    pub fn archived(&self, pack: &PackId) -> Option<(u64, ArchiveClass)> {
        Some((self.listed.get(pack).copied()?, self.archived.get(pack).copied()?))
    }

    /// Why an extent cannot be there.
    pub fn fault(&self, extent: &Extent) -> Option<Fault> {
        match self.listed.get(&extent.pack) {
            None => Some(Fault::Gone),
            Some(_) if self.hold(extent) => None,
            Some(bytes) => Some(Fault::CutOff(*bytes)),
        }
    }
}

/// Why an extent is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Its pack is not there.
    Gone,
    /// It has so many bytes, and not those that are referred to.
    CutOff(u64),
}

/// What a manifest refers to and is not there.
#[derive(Debug, Clone, Default)]
pub struct Lost {
    packs: HashSet<PackId>,
    /// The first one's key, what is wrong with it, and who needs it.
    first: Option<(String, Fault, RelativePath)>,
    /// How many files need any of them.
    files: u64,
}

impl Lost {
    /// Notes what is not there of a file's content. Answers whether all is.
    pub fn note(&mut self, repository: &ClusterRepository, packs: &Packs, path: &RelativePath, content: &Content) -> bool {
        let mut whole = true;
        for (pack, fault) in content.extents().iter().filter_map(|extent| Some((extent.pack, packs.fault(extent)?))) {
            whole = false;
            self.first.get_or_insert_with(|| (repository.layout().key(&ObjectName::Pack(pack)), fault, path.clone()));
            self.packs.insert(pack);
        }
        self.files += u64::from(!whole);
        whole
    }

    /// Whether everything is there.
    pub fn is_nothing(&self) -> bool {
        self.packs.is_empty()
    }
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((key, fault, file)) = &self.first else { return f.write_str("nothing is lost") };
        match fault {
            Fault::Gone => write!(f, "{key} is gone")?,
            Fault::CutOff(bytes) => write!(f, "{key} is cut off at {bytes} bytes")?,
        }
        match self.packs.len() - 1 {
            0 => {}
            1 => f.write_str(", and 1 more pack is gone or cut off")?,
            more => write!(f, ", and {more} more packs are gone or cut off")?,
        }
        write!(f, "; {file} ")?;
        match self.files - 1 {
            0 => f.write_str("needs it"),
            1 => f.write_str("and 1 more file need that"),
            more => write!(f, "and {more} more files need that"),
        }
    }
}

/// A pack, to be put.
#[derive(Debug, Clone)]
pub struct PackObject {
    id: PackId,
    object: Bytes,
}

impl PackObject {
    /// Its name: the SHA-256 of what is stored.
    pub fn id(&self) -> PackId {
        self.id
    }
}

impl ClusterRepository {
    /// Makes the object of a pack. Where it is encrypted, the same bytes make another object each time.
    pub async fn pack_object(&self, pack: Bytes) -> Result<PackObject> {
        let sealer = self.sealer(&ObjectName::Pack(PackId::new([0; 32])))?;
        let made = on_blocking_thread(move || {
            let object = sealer.seal(None, pack)?;
            std::io::Result::Ok(PackObject { id: PackId::new(codec::sha256(&object)), object })
        });
        made.await?.map_err(Error::encode)
    }

    /// Stores a pack under its name.
    pub async fn put_pack(&self, PackObject { id, object }: &PackObject) -> Result<Stored> {
        let (id, bytes) = (*id, object.len() as u64);
        let key = self.key(&ObjectName::Pack(id))?;
        let put = match self.store().put_if_absent(&key, object.clone()).await {
            // The name says what it was to hold.
            Err(error) if error.is_in_doubt() && self.store().replace_in_doubt(&key, object.clone()).await? => {
                self.store().put_if_absent(&key, object.clone()).await
            }
            put => put,
        };
        match put {
            Ok(Put::Created) => Ok(Stored::New { bytes }),
            Ok(Put::AlreadySame) => Ok(Stored::Already),
            // The name is the content's hash: other bytes there are damage, not another pack.
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                Err(Error::corrupt(self.layout().key(&ObjectName::Pack(id)), "its bytes do not have the SHA-256 that names it"))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// A stretch of a pack, which may span several extents. Their hashes are the caller's to check.
    pub async fn get_extents(&self, pack: PackId, range: Range<u64>) -> Result<Bytes> {
        let name = ObjectName::Pack(pack);
        let found = match self.extents_once(pack, range.clone()).await {
            Err(damage) if damage.is_damage() => {
                let read = |place: Self| {
                    let range = range.clone();
                    async move { place.extents_once(pack, range).await }.boxed()
                };
                self.elsewhere(&self.layout().key(&name), damage, Error::is_damage, read).await?
            }
            found => found?,
        };
        if let Some(bytes) = found {
            return Ok(bytes);
        }
        // Nothing is decided on absence here, and whoever asks was promised the pack.
        self.repository().prove_reached().await?;
        Err(Error::corrupt(self.layout().key(&name), "a manifest refers to it and it is gone"))
    }

    async fn extents_once(&self, pack: PackId, range: Range<u64>) -> Result<Option<Bytes>> {
        let Some(bytes) = self.read_stretch(pack, range.clone()).await? else { return Ok(None) };
        match bytes.len() as u64 == range.end.saturating_sub(range.start) {
            true => Ok(Some(bytes)),
            false => Err(Error::corrupt(self.layout().key(&ObjectName::Pack(pack)), format!("it ends before byte {}", range.end))),
        }
    }

    /// The packs that are there: one request for each thousand.
    pub async fn packs(&self) -> Result<Packs> {
        let prefix = self.layout().packs_prefix();
        let page = self.store().list(&ListRequest { prefix: prefix.clone(), ..ListRequest::default() }).await?;
        let all = match page.next {
            None => page.objects,
            Some(_) => {
                let below = DIGITS.chars().map(|digit| ListRequest { prefix: format!("{prefix}{digit}"), ..ListRequest::default() });
                let listings = below.map(|request| list_all(self.store().as_ref(), request));
                let pages: Vec<_> = stream::iter(listings).buffer_unordered(LISTINGS).try_collect().await?;
                pages.into_iter().flat_map(|page| page.objects).collect()
            }
        };
        let listed = all.iter().filter_map(|listed| self.listed_pack(listed)).map(|pack| (pack.id, pack.bytes)).collect();
        let archived = all.iter().filter_map(|listed| Some((self.listed_pack(listed)?.id, listed.class?))).collect();
        Ok(Packs { listed, archived, form: self.identity().form })
    }

    /// What the manifest of a backup refers to and is not there. Reads all of it.
    pub async fn lost_packs(&self, record: &BackupRecord) -> Result<Lost> {
        let (manifest, packs) = tokio::try_join!(self.get_manifest(record), self.packs())?;
        let repository = self.clone();
        let looked = spawn_blocking(move || {
            let mut lost = Lost::default();
            for entry in manifest.iter()? {
                let entry = entry?;
                if let EntryKind::File { content, .. } = &entry.kind {
                    lost.note(&repository, &packs, &entry.path, content);
                }
            }
            Ok(lost)
        });
        looked.await.map_err(Error::encode)?
    }

    /// What is not there of a backup that is about to be recorded, in words. A host that cannot read its manifest looks at the packs alone that it `put`.
    pub async fn gone_meanwhile(&self, record: &BackupRecord, put: &BTreeSet<PackId>) -> Result<Option<String>> {
        if self.can_read() {
            match self.lost_packs(record).await {
                // It has an identity, but not for what it writes.
                Err(Error::CannotDecrypt { .. }) => {}
                lost => return lost.map(|lost| (!lost.is_nothing()).then(|| lost.to_string())),
            }
        }
        let packs = self.packs().await?;
        let gone = put.iter().find(|pack| packs.bytes_of(pack).is_none());
        Ok(gone.map(|pack| format!("{} is gone", self.layout().key(&ObjectName::Pack(*pack)))))
    }

    /// All packs that were put before `before`.
    pub async fn packs_before(&self, before: SystemTime) -> Result<Vec<ListedPack>> {
        let mut request = ListRequest { prefix: self.layout().packs_prefix(), ..ListRequest::default() };
        let mut packs = Vec::new();
        loop {
            let page = self.store().list(&request).await?;
            packs.extend(page.objects.iter().filter_map(|listed| self.listed_pack(listed)).filter(|pack| pack.put < before));
            match page.next {
                Some(next) => request.start_after = Some(next),
                None => return Ok(packs),
            }
        }
    }

    /// Removes a pack, which no manifest may name.
    pub async fn remove_pack(&self, id: PackId) -> Result<()> {
        Ok(self.store().delete(&self.key(&ObjectName::Pack(id))?).await?)
    }

    fn listed_pack(&self, listed: &Listed) -> Option<ListedPack> {
        match self.layout().parse(listed.key.as_str())? {
            ObjectName::Pack(id) => Some(ListedPack { id, bytes: listed.size, put: listed.modified }),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::tests::memory;

    #[tokio::test]
    async fn packs_are_named_by_their_content_and_read_in_pieces() {
        let (repository, store) = memory().await;
        let pack = repository.pack_object(Bytes::from_static(b"0123456789")).await.unwrap();
        let id = pack.id();
        assert_eq!(repository.put_pack(&pack).await.unwrap(), Stored::New { bytes: 10 });
        assert_eq!(repository.put_pack(&pack).await.unwrap(), Stored::Already);
        assert_eq!(repository.get_extents(id, 2..5).await.unwrap(), "234");
        let short = repository.get_extents(id, 8..12).await.unwrap_err();
        assert!(matches!(short, Error::Corrupt { .. }), "{short}");
        let gone = repository.get_extents(PackId::new([1; 32]), 0..1).await.unwrap_err();
        assert!(matches!(gone, Error::Corrupt { .. }), "{gone}");
        store.overwrite(&repository.key(&ObjectName::Pack(id)).unwrap(), Bytes::from_static(b"other"));
        assert!(matches!(repository.put_pack(&pack).await, Err(Error::Corrupt { .. })));
    }

    #[tokio::test]
    async fn what_is_gone_or_short_is_told() {
        let (repository, store) = memory().await;
        let (mut packs, mut files) = (Vec::new(), Vec::new());
        for number in 0..3u8 {
            let object = repository.pack_object(Bytes::from(vec![number; 100])).await.unwrap();
            repository.put_pack(&object).await.unwrap();
            let pack = object.id();
            packs.push(pack);
            let extent = |offset| Extent { pack, offset, stored: 50, plain: 50, hash: codec::blake3(&[number]) };
            let content = Content::in_order(vec![extent(0), extent(50)]).unwrap();
            files.push((RelativePath::parse(&format!("base/5/{number}")).unwrap(), content));
        }
        let key = |pack: PackId| -> walkeep_store::Key { repository.layout().key(&ObjectName::Pack(pack)).parse().unwrap() };
        let told = async || {
            let (listed, mut lost) = (repository.packs().await.unwrap(), Lost::default());
            let whole: Vec<bool> = files.iter().map(|(path, content)| lost.note(&repository, &listed, path, content)).collect();
            (whole, lost.is_nothing(), lost.to_string())
        };
        assert_eq!(told().await, (vec![true; 3], true, "nothing is lost".to_owned()));
        store.overwrite(&key(packs[1]), Bytes::from_static(&[1; 99]));
        assert_eq!(told().await, (vec![true, false, true], false, format!("{} is cut off at 99 bytes; base/5/1 needs it", key(packs[1]))));
        walkeep_store::Store::delete(store.as_ref(), &key(packs[0])).await.unwrap();
        let text = format!("{} is gone, and 1 more pack is gone or cut off; base/5/0 and 1 more file need that", key(packs[0]));
        assert_eq!(told().await, (vec![false, false, true], false, text));
    }

    #[tokio::test]
    async fn more_than_a_page_is_listed_side_by_side() {
        let (repository, _) = memory().await;
        for number in 0..1100u32 {
            let object = repository.pack_object(Bytes::from(number.to_le_bytes().to_vec())).await.unwrap();
            repository.put_pack(&object).await.unwrap();
        }
        assert_eq!(repository.packs().await.unwrap().listed.len(), 1100);
    }
}
