//! A stored file on its way out: it was got and says that it is the one asked for; its content is proven when it is opened.
//!
//! A segment may have a gigabyte, and many are on their way at once: so it can be opened piece by piece, and not more of them at a time than there are cores.

use std::sync::LazyLock;

use bytes::Bytes;
use futures::FutureExt;
use tokio::sync::Semaphore;
use walkeep_core::layout::ObjectName;

use super::wal::WalFile;
use super::{ClusterRepository, Error, Result, on_blocking_thread};
use crate::codec::{self, CodecError, Description};

/// Files that are opened at the same time, first come, first served. Each gets a core to itself: of many at once the one that is waited for would come last
/// with all others.
static OPENING: LazyLock<Semaphore> = LazyLock::new(|| Semaphore::new(std::thread::available_parallelism().map_or(2, usize::from)));

/// Such a file.
#[derive(Debug)]
pub struct StoredFile {
    key: String,
    /// Plain bytes it may have.
    limit: u64,
    description: Description,
    object: Bytes,
}

impl StoredFile {
    /// What it says of itself.
    pub fn description(&self) -> &Description {
        &self.description
    }

    /// Does what is to be done with it on a thread for such work, when a core is free.
    pub async fn on_a_core<T: Send + 'static>(self, work: impl FnOnce(Self) -> T + Send + 'static) -> Result<T> {
        let _turn = OPENING.acquire().await.map_err(Error::encode)?;
        on_blocking_thread(move || work(self)).await
    }

    /// Its content, proven.
    pub async fn open(self) -> Result<WalFile> {
        self.on_a_core(|stored| stored.content()).await?
    }

    /// The same where one is on such a thread already. CPU work.
    pub fn content(&self) -> Result<WalFile> {
        let (description, content) = codec::decode(&self.object, self.limit).map_err(|error| Error::codec(&self.key, error))?;
        Ok(WalFile { description, content })
    }

    /// The same, given to `take` piece by piece: proven only when this succeeds. CPU work.
    pub fn pieces<E: From<Error>>(&self, mut take: impl FnMut(&[u8]) -> std::result::Result<(), E>) -> std::result::Result<(), E> {
        /// Keeps apart whose error it is.
        enum Either<E> {
            Codec(CodecError),
            Taker(E),
        }
        impl<E> From<CodecError> for Either<E> {
            fn from(error: CodecError) -> Self {
                Self::Codec(error)
            }
        }
        match codec::decode_pieces(&self.object, self.limit, |piece| take(piece).map_err(Either::Taker)) {
            Ok(_) => Ok(()),
            Err(Either::Codec(error)) => Err(Error::codec(&self.key, error).into()),
            Err(Either::Taker(error)) => Err(error),
        }
    }
}

impl ClusterRepository {
    /// Gets an object that says that it holds the file called `title` of this cluster.
    pub(super) async fn get_stored(&self, name: &ObjectName, title: &str, limit: u64) -> Result<Option<StoredFile>> {
        let key = self.key(name)?;
        let Some(object) = self.read_object(name).await? else { return Ok(None) };
        let (description, _) = codec::describe(&object).map_err(|error| Error::codec(key.as_str(), error))?;
        if description.name != title {
            return Err(Error::corrupt(key.as_str(), format!("it holds {}", description.name)));
        }
        if description.system_identifier != self.identity().system_identifier {
            let reason = format!("it belongs to the cluster with system identifier {}", description.system_identifier);
            return Err(Error::corrupt(key.as_str(), reason));
        }
        Ok(Some(StoredFile { key: key.as_str().to_owned(), limit, description, object }))
    }

    /// The same, opened: its content is proven. Of several repositories one that has it whole is read from.
    pub(super) async fn read(&self, name: &ObjectName, title: &str, limit: u64) -> Result<Option<WalFile>> {
        match self.read_once(name, title, limit).await {
            Err(damage) if damage.is_damage() => {
                let read = |place: Self| async move { place.read_once(name, title, limit).await }.boxed();
                self.elsewhere(self.key(name)?.as_str(), damage, Error::is_damage, read).await
            }
            read => read,
        }
    }

    async fn read_once(&self, name: &ObjectName, title: &str, limit: u64) -> Result<Option<WalFile>> {
        match self.get_stored(name, title, limit).await? {
            Some(stored) => stored.open().await.map(Some),
            None => Ok(None),
        }
    }
}
