//! Pages of listings: what the stores that sort keys themselves share.

use crate::{ListRequest, Listed, Page};

/// At most this many entries a page, as S3 answers: so that every store's caller meets pages.
const PAGE: usize = 1000;

/// Sorts after every key below a folder when appended to it.
pub(crate) const LAST: char = char::MAX;

/// A page being filled, in the order of keys.
pub(crate) struct PageBuilder {
    page: Page,
    room: usize,
    last: Option<String>,
}

impl PageBuilder {
    pub(crate) fn new(request: &ListRequest) -> Self {
        Self { page: Page::default(), room: limit(request), last: None }
    }

    /// Adds an object; false if the page is full, and then ends where it is.
    #[must_use]
    pub(crate) fn object(&mut self, object: Listed) -> bool {
        let mark = object.key.as_str().to_owned();
        self.take(mark, |page| page.objects.push(object))
    }

    /// Adds a folder; false if the page is full, and then ends where it is.
    #[must_use]
    pub(crate) fn folder(&mut self, folder: String) -> bool {
        self.take(format!("{folder}{LAST}"), |page| page.folders.push(folder))
    }

    fn take(&mut self, mark: String, add: impl FnOnce(&mut Page)) -> bool {
        if self.room == 0 {
            self.page.next = self.last.take();
            return false;
        }
        self.room -= 1;
        self.last = Some(mark);
        add(&mut self.page);
        true
    }

    pub(crate) fn finish(self) -> Page {
        self.page
    }
}

/// How many entries to answer at most.
pub(crate) fn limit(request: &ListRequest) -> usize {
    request.limit.unwrap_or(PAGE).clamp(1, PAGE)
}

/// The folder that stands for `key` in the listing of `request`, if one does.
pub(crate) fn folder_of<'k>(request: &ListRequest, key: &'k str) -> Option<&'k str> {
    let below = key.get(request.prefix.len()..).filter(|_| request.by_folder)?;
    below.find('/').and_then(|at| key.get(..request.prefix.len() + at + 1))
}
