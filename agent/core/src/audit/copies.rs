//! One record of the trail as several repositories have it.
//!
//! Records have no sum of their own, and the last one has none behind it that names it: where repositories differ there, nothing in them says which one is
//! true. Whoever adds a record says so in it, and everybody who reads several repositories tells it.

use std::fmt;

use serde::Serialize;

use super::{End, Head};
use crate::sha256::Sha256Sum;

/// Which hash it has where. Those of which most repositories have one first, of as many the one of the first repository.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
#[serde(transparent)]
pub struct Copies(Vec<Copy>);

/// What some of them have.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Copy {
    /// The SHA-256 of its bytes.
    pub sha256: Sha256Sum,
    /// The numbers of the repositories.
    pub repositories: Vec<usize>,
}

impl Copies {
    /// Of the repositories that have it: their numbers, and its hash there.
    pub fn of(all: impl IntoIterator<Item = (usize, Sha256Sum)>) -> Self {
        let mut copies: Vec<Copy> = Vec::new();
        for (repository, sha256) in all {
            match copies.iter_mut().find(|copy| copy.sha256 == sha256) {
                Some(copy) => copy.repositories.push(repository),
                None => copies.push(Copy { sha256, repositories: vec![repository] }),
            }
        }
        copies.sort_by_key(|copy| std::cmp::Reverse(copy.repositories.len()));
        Self(copies)
    }

    /// Whether they differ.
    pub fn differ(&self) -> bool {
        self.0.len() > 1
    }

    /// The repositories that have one.
    pub fn repositories(&self) -> impl Iterator<Item = usize> + '_ {
        self.0.iter().flat_map(|copy| copy.repositories.iter().copied())
    }

    /// As the end of the trail, if any of several repositories told of it.
    pub fn end(&self, number: u32) -> Option<End> {
        let (first, others) = self.0.split_first()?;
        let head = Head { number, hash: Some(first.sha256) };
        let others = others.iter().map(|copy| copy.sha256).collect();
        Some(End { head, others, unconfirmed: first.repositories.len() < 2 })
    }
}

impl fmt::Display for Copies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, Copy { sha256, repositories }) in self.0.iter().enumerate() {
            let word = if repositories.len() == 1 { "repository" } else { "repositories" };
            let numbers = repositories.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and ");
            write!(f, "{}sha256 {sha256} in {word} {numbers}", if index == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::hash;

    #[test]
    fn what_most_have_is_named_and_the_others_beside_it() {
        let [one, two] = [hash(b"1"), hash(b"2")];
        let copies = Copies::of([(1, one), (2, two), (3, two)]);
        let end = End { head: Head { number: 7, hash: Some(two) }, others: vec![one], unconfirmed: false };
        assert_eq!((copies.differ(), copies.end(7)), (true, Some(end)));
        assert_eq!(copies.to_string(), format!("sha256 {two} in repositories 2 and 3, sha256 {one} in repository 1"));
        assert_eq!(copies.repositories().collect::<Vec<_>>(), [2, 3, 1]);
        // Of as many the first one's.
        let copies = Copies::of([(1, one), (2, two)]);
        assert_eq!(copies.end(7), Some(End { head: Head { number: 7, hash: Some(one) }, others: vec![two], unconfirmed: true }));
    }

    #[test]
    fn only_what_more_than_one_tells_is_confirmed() {
        let one = hash(b"1");
        let of = |numbers: &[usize]| Copies::of(numbers.iter().map(|number| (*number, one)));
        assert_eq!(of(&[1, 3]).end(2), Some(End::of(Head { number: 2, hash: Some(one) })));
        assert_eq!(of(&[3]).end(2).map(|end| end.unconfirmed), Some(true));
        assert_eq!((of(&[]).end(2), of(&[1, 2, 3]).differ()), (None, false));
    }
}
