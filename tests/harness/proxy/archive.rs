//! Archived storage classes, which the server behind does not have: objects that are listed in such a class, cannot be read, and can once a copy of
//! them was asked for and its time has come.
//!
//! As S3 has it: a GET is refused with `InvalidObjectState`, HEAD tells class and `x-amz-restore`, `POST ?restore` is answered 202, while the copy is
//! made 409 `RestoreAlreadyInProgress`, behind that 200.

use std::collections::HashMap;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use super::serve::decode;

/// A thaw that was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Thaw {
    /// The decoded path, `/bucket/key`.
    pub path: String,
    /// The tier.
    pub tier: String,
    /// The days.
    pub days: Option<u32>,
}

/// What is archived, and what was asked for.
#[derive(Debug, Default)]
pub(super) struct Archive {
    classes: Vec<Class>,
    asked: HashMap<String, Instant>,
    pub thaws: Vec<Thaw>,
}

#[derive(Debug)]
struct Class {
    part: String,
    name: &'static str,
    takes: Duration,
}

/// How an object is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Frozen,
    Thawing,
    Thawed,
}

impl Archive {
    pub fn freeze(&mut self, part: &str, name: &'static str, takes: Duration) {
        self.classes.push(Class { part: part.to_owned(), name, takes });
    }

    pub fn is_empty(&self) -> bool {
        self.classes.is_empty()
    }

    /// The copies' time is over.
    pub fn freeze_again(&mut self) {
        self.asked.clear();
    }

    /// The class and state of the object at a path, if it is archived.
    pub fn state(&self, path: &str) -> Option<(&'static str, State)> {
        let class = self.classes.iter().find(|class| path.contains(&class.part))?;
        let state = match self.asked.get(path) {
            None => State::Frozen,
            Some(since) if since.elapsed() < class.takes => State::Thawing,
            Some(_) => State::Thawed,
        };
        Some((class.name, state))
    }

    /// Takes a request to thaw: status and error code.
    pub fn thaw(&mut self, path: &str, body: &str) -> (u16, Option<&'static str>) {
        let Some((class, state)) = self.state(path) else { return (403, Some("InvalidObjectState")) };
        let between = |tag: &str| body.split_once(&format!("<{tag}>"))?.1.split('<').next().map(str::to_owned);
        let tier = between("Tier").unwrap_or_else(|| "Standard".to_owned());
        if class == "DEEP_ARCHIVE" && tier == "Expedited" {
            return (400, Some("InvalidArgument"));
        }
        if state == State::Thawing {
            return (409, Some("RestoreAlreadyInProgress"));
        }
        self.asked.entry(path.to_owned()).or_insert_with(Instant::now);
        self.thaws.push(Thaw { path: path.to_owned(), tier, days: between("Days").and_then(|days| days.parse().ok()) });
        (if state == State::Frozen { 202 } else { 200 }, None)
    }

    /// The headers that HEAD answers beside the others.
    pub fn headers(&self, path: &str) -> Vec<(&'static str, String)> {
        let Some((class, state)) = self.state(path) else { return Vec::new() };
        let restore = match state {
            State::Frozen => None,
            State::Thawing => Some(r#"ongoing-request="true""#.to_owned()),
            State::Thawed => Some(format!(r#"ongoing-request="false", expiry-date="{}""#, self.expiry(path))),
        };
        let class = Some(("x-amz-storage-class", class.to_owned()));
        class.into_iter().chain(restore.map(|text| ("x-amz-restore", text))).collect()
    }

    /// By the last request for it, counted from now.
    fn expiry(&self, path: &str) -> String {
        let days = self.thaws.iter().rev().find(|thaw| thaw.path == path).and_then(|thaw| thaw.days).unwrap_or(1);
        let until = SystemTime::now() + Duration::from_secs(u64::from(days) * 24 * 3600);
        let seconds = until.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let mut date = Command::new("date");
        date.args(["-u", "-d", &format!("@{seconds}"), "+%a, %d %b %Y %H:%M:%S GMT"]).env("LC_ALL", "C");
        String::from_utf8_lossy(&date.output().expect("run date").stdout).trim().to_owned()
    }

    /// A listing's document with the classes of what is archived.
    pub fn classes_in(&self, bucket: &str, document: &str) -> String {
        let mut told = String::with_capacity(document.len());
        let mut rest = document;
        while let Some((at, end)) = ["Contents", "Version"].iter().filter_map(|tag| element(rest, tag)).min() {
            let (before, from) = rest.split_at(at);
            let (one, behind) = from.split_at(end - at);
            told.push_str(before);
            told.push_str(&self.class_in(bucket, one));
            rest = behind;
        }
        told + rest
    }

    fn class_in(&self, bucket: &str, one: &str) -> String {
        let key = one.split_once("<Key>").and_then(|(_, rest)| rest.split_once("</Key>")).map_or("", |(key, _)| key);
        let Some((class, _)) = self.state(&format!("/{bucket}/{}", decode(key))) else { return one.to_owned() };
        let plain = match element(one, "StorageClass") {
            Some((from, to)) => format!("{}{}", &one[..from], &one[to..]),
            None => one.to_owned(),
        };
        plain.replacen("</Key>", &format!("</Key><StorageClass>{class}</StorageClass>"), 1)
    }
}

/// Where the first element of this name begins and ends.
pub(super) fn element(text: &str, tag: &str) -> Option<(usize, usize)> {
    let (open, close) = (format!("<{tag}>"), format!("</{tag}>"));
    let from = text.find(&open)?;
    let to = from + text[from..].find(&close)? + close.len();
    Some((from, to))
}
