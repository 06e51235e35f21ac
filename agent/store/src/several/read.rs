//! Reading from several places: the first that has an object answers, and absence has to be proven.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::future::join_all;
use futures::stream::FuturesUnordered;
use tokio::sync::Notify;

use super::place::{Place, Reason};
use super::{Proof, Several, StoredWhen, is_no_answer};
use crate::listing::folder_of;
use crate::{Error, ErrorKind, Key, ListRequest, Listed, Page, Readiness, Result, Thaw};

/// So long a place is waited for whose answer is not needed for a proof.
const PATIENCE: Duration = Duration::from_secs(10);
/// After so long it is looked whether a place answers at all.
const SLOW: Duration = Duration::from_secs(2);

impl Several {
    /// Reads from the first place that has it.
    pub(super) async fn read(&self, key: &Key, range: Option<Range<u64>>) -> Result<Bytes> {
        let (mut absent, mut failed): (Vec<usize>, Vec<(usize, Error)>) = (Vec::new(), Vec::new());
        // Before anybody is asked: what leaves a queue meanwhile was not there yet when it was looked for.
        let complete: Vec<bool> = (0..self.all().len()).map(|index| self.surely_has(index, key)).collect();
        let slow = Notify::new();
        let ask = |index: usize, suffice: bool| {
            let (slow, range) = (&slow, range.clone());
            async move {
                let Some(place) = self.place(index) else { return (index, Err(Error::new(ErrorKind::Unusable, "get", key))) };
                let call = place.store.get(key, range);
                let asked = async {
                    match suffice {
                        true => place.ask_within(PATIENCE, call).await,
                        false => place.ask(call).await,
                    }
                };
                (index, unless_slow(place, asked, slow).await)
            }
        };
        let (mut next, mut under_way, mut is_slow) = (0..self.all().len(), FuturesUnordered::new(), false);
        under_way.extend(next.next().map(|index| ask(index, false)));
        loop {
            let (index, asked) = tokio::select! {
                answered = under_way.next() => match answered {
                    Some(answered) => answered,
                    None => break,
                },
                // The next one is asked beside it.
                () = slow.notified() => {
                    is_slow = true;
                    under_way.extend(next.next().map(|index| ask(index, self.suffice(&absent, &complete))));
                    continue;
                }
            };
            match asked {
                Ok(bytes) => {
                    let Some(place) = self.place(index) else { continue };
                    let passed = |index: &usize| self.place(*index);
                    absent.iter().filter_map(passed).for_each(|passed| passed.fell_back(Reason::Missing, place, key.as_str()));
                    for (passed, error) in failed.iter().filter_map(|(index, error)| Some((passed(index)?, error))) {
                        let reason = match error.kind() {
                            ErrorKind::Corrupt => Reason::Damaged,
                            // There is nothing wrong with the place.
                            ErrorKind::Archived => continue,
                            _ => Reason::Unreachable,
                        };
                        passed.fell_back(reason, place, key.as_str());
                    }
                    // Those that are still waited for.
                    let answered = |other: &usize| absent.contains(other) || failed.iter().any(|(failed, _)| failed == other);
                    let waited_for = (0..index).filter(|other| !answered(other)).collect::<Vec<_>>();
                    waited_for.iter().filter_map(passed).for_each(|passed| passed.fell_back(Reason::Unreachable, place, key.as_str()));
                    return Ok(bytes);
                }
                Err(error) if error.kind() == ErrorKind::Cancelled => return Err(error),
                Err(error) if error.kind() == ErrorKind::NotFound => absent.push(index),
                Err(error) => failed.push((index, error)),
            }
            if is_slow || under_way.is_empty() {
                under_way.extend(next.next().map(|index| ask(index, self.suffice(&absent, &complete))));
            }
        }
        failed.sort_by_key(|(index, _)| *index);
        // What is there and cannot be read is not absent, whatever the others say.
        if let Some(at) = failed.iter().position(|(_, error)| !is_no_answer(error)) {
            return Err(failed.swap_remove(at).1);
        }
        if failed.is_empty() || self.suffice(&absent, &complete) {
            return Err(Error::new(ErrorKind::NotFound, "get", key));
        }
        Err(self.unproven("get", key.as_str(), &absent, failed))
    }

    /// What another place has under this key, if it is none of `unlike`, which were looked at and are not what was stored. `None` if all have these.
    ///
    /// Fails if none has anything else as far as can be told, and not all could be asked.
    pub async fn get_unlike(&self, key: &Key, range: Option<Range<u64>>, unlike: &[Bytes]) -> Result<Option<Bytes>> {
        let (mut damaged, mut failed) = (Vec::new(), Vec::new());
        for (index, place) in self.all().iter().enumerate() {
            match place.ask(place.store.get(key, range.clone())).await {
                Ok(bytes) if unlike.contains(&bytes) => damaged.push(place),
                Ok(bytes) => {
                    damaged.iter().for_each(|passed| passed.fell_back(Reason::Damaged, place, key.as_str()));
                    return Ok(Some(bytes));
                }
                Err(error) if error.kind() == ErrorKind::Cancelled => return Err(error),
                Err(error) if is_no_answer(&error) => failed.push((index, error)),
                Err(_) => {}
            }
        }
        match failed.is_empty() || self.proof == Proof::Reachable {
            true => Ok(None),
            false => Err(self.unproven("get", key.as_str(), &[], failed)),
        }
    }

    /// The objects and folders of all places. Where several have one, the primary's; if their sizes differ, the longer one: what is cut off here may be whole
    /// there. A later page may show again what an earlier one did.
    pub(super) async fn list_all_places(&self, request: &ListRequest) -> Result<Page> {
        let cursors = Cursor::parse(request.start_after.as_deref(), self.all().len());
        // Before anybody is asked, for the same reason. What waits for a place is listed for it.
        let complete: Vec<bool> = (0..self.all().len()).map(|index| self.is_known(index)).collect();
        let lacking = self.lacking(request, &complete);
        let complete = complete.as_slice();
        let listings = self.all().iter().zip(&cursors).enumerate().map(|(index, (place, cursor))| async move {
            let start_after = match cursor {
                Cursor::Done => return Ok(None),
                Cursor::Failed(reason) => return Err(Error::at(ErrorKind::Transient, "list", &request.prefix).because(reason.clone())),
                Cursor::From(start_after) => start_after.clone(),
            };
            let request = ListRequest { start_after, ..request.clone() };
            let call = place.store.list(&request);
            match self.suffice(&(0..self.all().len()).filter(|other| *other != index).collect::<Vec<_>>(), complete) {
                true => place.ask_within(PATIENCE, call).await.map(Some),
                false => place.ask(call).await.map(Some),
            }
        });
        let (mut objects, mut folders): (BTreeMap<Key, Listed>, Vec<String>) = Default::default();
        let (mut asked, mut failed, mut next, mut foreign) = (Vec::new(), Vec::new(), Vec::new(), 0);
        for (index, listed) in join_all(listings).await.into_iter().enumerate() {
            match listed {
                Ok(None) => {
                    asked.push(index);
                    next.push(Cursor::Done);
                }
                Ok(Some(page)) => {
                    asked.push(index);
                    next.push(page.next.map_or(Cursor::Done, |next| Cursor::From(Some(next))));
                    foreign += page.foreign;
                    for listed in page.objects {
                        let there = objects.entry(listed.key.clone()).or_insert_with(|| listed.clone());
                        // Archived it is only where no place has it at hand.
                        let class = there.class.and(listed.class);
                        if there.size < listed.size {
                            *there = listed;
                        }
                        there.class = class;
                    }
                    folders.extend(page.folders);
                }
                Err(error) if error.kind() == ErrorKind::Cancelled => return Err(error),
                Err(error) => {
                    next.push(Cursor::Failed(error.to_string()));
                    failed.push((index, error));
                }
            }
        }
        // Those that could not be asked have it, or some of them.
        if !failed.is_empty() {
            for listed in lacking {
                match folder_of(request, listed.key.as_str()) {
                    Some(folder) => folders.push(folder.to_owned()),
                    None => drop(objects.entry(listed.key.clone()).or_insert(listed)),
                }
            }
        }
        if !failed.is_empty() && !self.suffice(&asked, complete) {
            return Err(self.unproven("list", &request.prefix, &[], failed));
        }
        folders.sort_unstable();
        folders.dedup();
        let more = next.iter().any(|cursor| matches!(cursor, Cursor::From(_)));
        Ok(Page { objects: objects.into_values().collect(), folders, foreign, next: more.then(|| Cursor::print(&next)) })
    }

    /// Whether a place has this object, if any place does.
    fn surely_has(&self, index: usize, key: &Key) -> bool {
        self.is_known(index) && self.place(index).is_some_and(|place| !place.queue.holds(key))
    }

    /// What a listing would show as well if nothing waited for those that are `known`; with its first page.
    fn lacking(&self, request: &ListRequest, known: &[bool]) -> Vec<Listed> {
        let start_after = request.start_after.as_deref().unwrap_or_default();
        if start_after.starts_with(MARK) {
            return Vec::new();
        }
        let places = self.all().iter().zip(known).filter(|(_, known)| **known).map(|(place, _)| place);
        places.flat_map(|place| place.queue.below(&request.prefix)).filter(|listed| listed.key.as_str() > start_after).collect()
    }

    /// Whether any place has it at hand, or the best that there is.
    pub(super) async fn readiness_anywhere(&self, key: &Key) -> Result<Readiness> {
        let (mut best, mut failed): (Option<Readiness>, _) = (None, None);
        for place in self.all() {
            match place.ask(place.store.readiness(key)).await {
                Ok(readiness) if readiness.is_readable() => return Ok(readiness),
                Ok(readiness) if best.is_none() || readiness == Readiness::Thawing => best = Some(readiness),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::Cancelled => return Err(error),
                Err(error) => note(&mut failed, error),
            }
        }
        best.ok_or_else(|| failed.unwrap_or_else(|| Error::new(ErrorKind::NotFound, "head", key)))
    }

    /// Asks the first place that takes it, unless some place has it at hand or is about to.
    pub(super) async fn thaw_somewhere(&self, key: &Key, thaw: Thaw) -> Result<Readiness> {
        let readiness = self.readiness_anywhere(key).await?;
        if matches!(readiness, Readiness::Ready | Readiness::Thawing) {
            return Ok(readiness);
        }
        let mut failed = None;
        for place in self.all() {
            match place.ask(place.store.thaw(key, thaw)).await {
                Ok(readiness) => return Ok(readiness),
                Err(error) if error.kind() == ErrorKind::Cancelled => return Err(error),
                Err(error) => note(&mut failed, error),
            }
        }
        Err(failed.unwrap_or_else(|| Error::new(ErrorKind::NotFound, "thaw", key)))
    }

    /// Whether what these places do not have is absent, if those that are `complete` have it if any place does.
    fn suffice(&self, asked: &[usize], complete: &[bool]) -> bool {
        let complete = |index: &usize| complete.get(*index).is_some_and(|complete| *complete);
        match self.proof {
            Proof::Every => asked.len() == self.all().len(),
            Proof::Enough => (self.when() != StoredWhen::Any && asked.contains(&0)) || asked.iter().any(complete),
            Proof::Reachable => !asked.is_empty(),
        }
    }

    /// Nobody has it who could be asked, and that is no proof.
    fn unproven(&self, action: &'static str, what: &str, absent: &[usize], failed: Vec<(usize, Error)>) -> Error {
        let kind = failed.first().map_or(ErrorKind::Transient, |(_, error)| error.kind());
        let url = |index: usize| self.place(index).map_or("", |place| place.url.as_str());
        let not_there: Vec<_> = absent.iter().map(|index| format!("not in {}", url(*index))).collect();
        let silent: Vec<_> = failed.iter().map(|(index, error)| format!("{} could not be asked ({error:#})", url(*index))).collect();
        let says = not_there.into_iter().chain(silent).collect::<Vec<_>>().join(", ");
        Error::at(kind, action, what).because(format!("{says}; a repository that is gone for good can be taken out of the configuration"))
    }
}

/// Keeps the first failure, but for that of a place that does not have it: another one may.
fn note(failed: &mut Option<Error>, error: Error) {
    if failed.as_ref().is_none_or(|failed| failed.kind() == ErrorKind::NotFound) {
        *failed = Some(error);
    }
}

/// Waits for a place. Tells `slow` once, if that takes long and it does not answer something small either: who reads a large object on a slow line waits for it,
/// and who waits for a frozen place does not.
async fn unless_slow<T>(place: &Place, asked: impl Future<Output = T>, slow: &Notify) -> T {
    tokio::pin!(asked);
    loop {
        tokio::select! {
            answered = &mut asked => return answered,
            () = tokio::time::sleep(SLOW) => {}
        }
        tokio::select! {
            answered = &mut asked => return answered,
            answers = place.answers_at_once() => if !answers {
                break;
            }
        }
    }
    slow.notify_one();
    asked.await
}

/// How far the listing of one place is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Cursor {
    From(Option<String>),
    Done,
    /// It could not be asked at an earlier page: of what it has nothing more is told.
    Failed(String),
}

/// What a cursor of several places begins with; no key and no server's token does.
const MARK: char = '\u{1}';

impl Cursor {
    fn parse(start_after: Option<&str>, places: usize) -> Vec<Self> {
        let parts = start_after.and_then(|text| text.strip_prefix(MARK));
        let Some(parts) = parts else { return vec![Self::From(start_after.map(str::to_owned)); places] };
        let one = |text: &str| match text.split_at_checked(1) {
            Some(("n", next)) => Self::From(Some(next.to_owned())),
            Some(("f", reason)) => Self::Failed(reason.to_owned()),
            _ => Self::Done,
        };
        parts.split(MARK).map(one).chain(std::iter::repeat(Self::Done)).take(places).collect()
    }

    fn print(all: &[Self]) -> String {
        let one = |cursor: &Self| match cursor {
            Self::From(next) => format!("{MARK}n{}", next.as_deref().unwrap_or_default()),
            Self::Done => format!("{MARK}d"),
            Self::Failed(reason) => format!("{MARK}f{}", reason.replace(MARK, " ")),
        };
        all.iter().map(one).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_told_and_understood() {
        let cursors = vec![Cursor::From(Some("main/1".into())), Cursor::Done, Cursor::Failed("down".into())];
        assert_eq!(Cursor::parse(Some(&Cursor::print(&cursors)), 3), cursors);
        assert_eq!(Cursor::parse(Some("a/b"), 2), vec![Cursor::From(Some("a/b".into())); 2]);
        assert_eq!(Cursor::parse(None, 1), vec![Cursor::From(None)]);
    }
}
