//! Listings as S3 answers them, and where they go on.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use aws_sdk_s3::operation::list_objects_v2::ListObjectsV2Output;
use aws_sdk_s3::types::EncodingType;

use crate::listing::LAST;
use crate::{ArchiveClass, Key, Listed, Page};

/// Where a listing begins.
///
/// It goes on by the server's own token, never after the last key: a server that sorts otherwise than S3 would skip keys.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum From {
    Start,
    After(String),
    Token(String),
}

/// Begins no key, so a token cannot be taken for one.
const MARK: char = '\0';

impl From {
    pub(super) fn parse(start_after: Option<&str>) -> Self {
        match start_after.map(|text| (text, text.strip_prefix(MARK))) {
            None => Self::Start,
            Some((_, Some(token))) => Self::Token(token.to_owned()),
            Some((text, None)) => Self::After(text.to_owned()),
        }
    }

    pub(super) fn print(&self) -> String {
        match self {
            Self::Start => String::new(),
            Self::After(text) => text.clone(),
            Self::Token(token) => format!("{MARK}{token}"),
        }
    }

    /// What every answer must sort after.
    pub(super) fn floor(&self) -> &str {
        match self {
            Self::After(text) => text,
            _ => "",
        }
    }
}

/// The objects and folders of an answer that sort after `floor`, without the store's prefix, in order.
pub(super) fn translate(prefix: &str, floor: &str, output: &ListObjectsV2Output) -> Page {
    let encoded = output.encoding_type == Some(EncodingType::Url);
    let plain = |text: Option<&str>| plain(prefix, encoded, text);
    let mut page = Page::default();
    for object in output.contents() {
        let Some(name) = plain(object.key()) else { continue };
        match name.parse::<Key>() {
            Ok(key) if name.as_str() > floor => {
                let size = object.size().and_then(|size| u64::try_from(size).ok()).unwrap_or_default();
                // Whatever has no time is taken for new: old things are removed.
                let modified = object.last_modified().and_then(|at| SystemTime::try_from(*at).ok()).unwrap_or_else(SystemTime::now);
                let class = object.storage_class().and_then(|class| ArchiveClass::named(class.as_str()));
                let storage_class = Some(storage_class(object.storage_class().map(|class| class.as_str())));
                page.objects.push(Listed { key, size, modified, class, storage_class });
            }
            Ok(_) => {}
            // What stands for a folder is no object to anybody.
            Err(_) if name.ends_with('/') && object.size() == Some(0) => {}
            Err(_) => {
                page.foreign += 1;
                warn_once(&name);
            }
        }
    }
    for folder in output.common_prefixes() {
        let Some(name) = plain(folder.prefix()) else { continue };
        match name.strip_suffix('/').map(str::parse::<Key>) {
            Some(Ok(_)) if format!("{name}{LAST}").as_str() > floor => page.folders.push(name),
            Some(Ok(_)) => {}
            _ => warn_once(&name),
        }
    }
    page.objects.sort_unstable_by(|a, b| a.key.cmp(&b.key));
    page.folders.sort_unstable();
    page
}

/// S3's name of a class: an object of which a listing does not tell it is an ordinary one.
pub(super) fn storage_class(told: Option<&str>) -> &'static str {
    const KNOWN: [&str; 9] = [
        "STANDARD",
        "REDUCED_REDUNDANCY",
        "STANDARD_IA",
        "ONEZONE_IA",
        "INTELLIGENT_TIERING",
        "GLACIER_IR",
        "GLACIER",
        "DEEP_ARCHIVE",
        "EXPRESS_ONEZONE",
    ];
    match told {
        None | Some("") => "STANDARD",
        Some(told) => KNOWN.into_iter().find(|known| *known == told).unwrap_or("OTHER"),
    }
}

/// A name without the store's prefix.
pub(super) fn plain(prefix: &str, encoded: bool, text: Option<&str>) -> Option<String> {
    let text = text?;
    let text = if encoded { decode(text)? } else { text.to_owned() };
    text.strip_prefix(prefix).map(str::to_owned)
}

/// A name that was sent URL-encoded.
pub(super) fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let digits = [rest.next()?, rest.next()?];
                u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?
            }
            byte => byte,
        });
    }
    String::from_utf8(bytes).ok()
}

/// Tells of an object that no store has put there; once, for a prefix is listed often.
fn warn_once(name: &str) {
    static TOLD: AtomicBool = AtomicBool::new(false);
    if !TOLD.swap(true, Ordering::Relaxed) {
        tracing::warn!(?name, "an object in the repository has a name that is none of ours; it is ignored, as are others like it");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encoded_names_are_read() {
        assert_eq!(decode("a%2Fb+c").as_deref(), Some("a/b c"));
        assert_eq!(decode("a%2"), None);
        assert_eq!(decode("%ff"), None);
    }

    #[test]
    fn places_to_go_on_survive_being_text() {
        for from in [From::Start, From::After("a/b".to_owned()), From::Token("abc".to_owned())] {
            let text = from.print();
            assert_eq!(From::parse(Some(text.as_str()).filter(|text| !text.is_empty())), from);
        }
    }
}
