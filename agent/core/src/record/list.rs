//! Lists inside records: elements of one size, read where they lie.

use std::fmt;
use std::marker::PhantomData;

use crate::le::u32_at;

/// Something of fixed size in a list.
pub trait Element: Sized {
    /// Reads one from exactly its bytes.
    #[doc(hidden)]
    fn read(bytes: &[u8]) -> Option<Self>;
}

impl Element for u32 {
    fn read(bytes: &[u8]) -> Option<Self> {
        u32_at(bytes, 0)
    }
}

/// A list inside a record. Nothing is copied until it is iterated over.
pub struct List<'a, T> {
    bytes: &'a [u8],
    element_size: usize,
    of: PhantomData<T>,
}

impl<'a, T: Element> List<'a, T> {
    pub(super) const EMPTY: Self = Self { bytes: &[], element_size: 1, of: PhantomData };

    /// `count` elements at the beginning of `bytes`, and what follows them.
    pub(super) fn split(bytes: &'a [u8], count: u32, element_size: usize) -> Option<(Self, &'a [u8])> {
        let length = usize::try_from(count).ok()?.checked_mul(element_size)?;
        let (bytes, rest) = bytes.split_at_checked(length)?;
        Some((Self { bytes, element_size, of: PhantomData }, rest))
    }

    /// A count and so many elements at the beginning of `bytes`, and what follows them.
    pub(super) fn split_counted(bytes: &'a [u8], element_size: usize) -> Option<(Self, &'a [u8])> {
        Self::split(bytes.get(4..)?, u32_at(bytes, 0)?, element_size)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.bytes.len() / self.element_size
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The elements.
    pub fn iter(&self) -> impl Iterator<Item = T> + use<'a, T> {
        self.bytes.chunks_exact(self.element_size).filter_map(T::read)
    }
}

impl<T> Clone for List<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for List<'_, T> {}

impl<T: Element + fmt::Debug> fmt::Debug for List<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}
