//! Listing files as objects: in the order of keys' bytes, reading no folder that cannot hold an answer.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use rustix::fs::FileType;

use super::files::{DOUBT, Files};
use super::temporary::TEMP;
use crate::listing::PageBuilder;
use crate::{Key, ListRequest, Listed, Page};

/// One page of the files below the root.
pub(super) fn list(files: &Files, request: &ListRequest) -> io::Result<Page> {
    let mut page = PageBuilder::new(request);
    walk(files, "", request, &mut page)?;
    // A removed directory can still be read, and is empty.
    files.prove_root()?;
    Ok(page.finish())
}

/// Adds what is below `folder` (empty, or ending with `/`); false if the page is full.
fn walk(files: &Files, folder: &str, request: &ListRequest, page: &mut PageBuilder) -> io::Result<bool> {
    for Entry { path, is_folder } in sorted_entries(files, folder)? {
        let room = if is_folder {
            if !may_hold(&path, request) {
                true
            } else if !request.by_folder || path.len() <= request.prefix.len() {
                walk(files, &path, request, page)?
            } else if any_object(files, &path, request)? {
                page.folder(path)
            } else {
                true
            }
        } else if is_wanted(&path, request) {
            match object(files, &path)? {
                Some(object) => page.object(object),
                None => true,
            }
        } else {
            true
        };
        if !room {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether the request asks for any object below the folder: an empty folder is no folder to an object store.
fn any_object(files: &Files, folder: &str, request: &ListRequest) -> io::Result<bool> {
    for Entry { path, is_folder } in sorted_entries(files, folder)? {
        let found = match is_folder {
            true => may_hold(&path, request) && any_object(files, &path, request)?,
            false => is_wanted(&path, request) && object(files, &path)?.is_some(),
        };
        if found {
            return Ok(true);
        }
    }
    Ok(false)
}

fn is_wanted(path: &str, request: &ListRequest) -> bool {
    path.starts_with(&request.prefix) && request.start_after.as_deref().is_none_or(|after| path > after)
}

/// Whether a folder (ending with `/`) may hold what is asked for.
fn may_hold(folder: &str, request: &ListRequest) -> bool {
    let prefix = folder.starts_with(&request.prefix) || request.prefix.starts_with(folder);
    prefix && request.start_after.as_deref().is_none_or(|after| after < folder || after.starts_with(folder))
}

fn object(files: &Files, path: &str) -> io::Result<Option<Listed>> {
    let Ok(key) = path.parse::<Key>() else { return Ok(None) };
    // It may have been deleted since the folder was read.
    Ok(files.stat(path)?.map(|stat| {
        let since_epoch =
            Duration::new(u64::try_from(stat.st_mtime).unwrap_or_default(), u32::try_from(stat.st_mtime_nsec).unwrap_or_default());
        let size = u64::try_from(stat.st_size).unwrap_or_default();
        Listed { key, size, modified: SystemTime::UNIX_EPOCH + since_epoch, class: None, storage_class: None }
    }))
}

struct Entry {
    path: String,
    is_folder: bool,
}

/// A folder's objects and folders; the latter end with `/`, as they sort among keys.
fn sorted_entries(files: &Files, folder: &str) -> io::Result<Vec<Entry>> {
    let Some(read) = files.entries(folder.trim_end_matches('/'))? else { return Ok(Vec::new()) };
    let mut entries = Vec::new();
    for entry in read {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") || (folder.is_empty() && is_not_listed(name.to_bytes())) {
            continue;
        }
        let Some(path) = name.to_str().ok().map(|name| format!("{folder}{name}")).filter(|path| path.parse::<Key>().is_ok()) else {
            warn_once(folder, &name.to_string_lossy());
            continue;
        };
        let kind = match entry.file_type() {
            FileType::Unknown => match files.stat(&path)? {
                Some(stat) => FileType::from_raw_mode(stat.st_mode),
                None => continue,
            },
            kind => kind,
        };
        match kind {
            FileType::RegularFile => entries.push(Entry { path, is_folder: false }),
            FileType::Directory => entries.push(Entry { path: path + "/", is_folder: true }),
            _ => warn_once(folder, &name.to_string_lossy()),
        }
    }
    entries.sort_unstable_by(|a, b| a.path.cmp(&b.path));
    Ok(entries)
}

/// What the store itself keeps beside its objects.
fn is_not_listed(name: &[u8]) -> bool {
    name == TEMP.as_bytes() || name == DOUBT.as_bytes()
}

/// Tells of a file that no store has put there; once, for a folder is read often.
fn warn_once(folder: &str, name: &str) {
    static TOLD: AtomicBool = AtomicBool::new(false);
    if !TOLD.swap(true, Ordering::Relaxed) {
        tracing::warn!(folder, ?name, "a file in the repository is no object and is ignored, as are others like it");
    }
}
