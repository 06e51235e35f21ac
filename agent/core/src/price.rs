//! What it costs to store something, by list prices: an estimate.
//!
//! Storage alone: no requests, no transfer, no reading of what is dear to read, no earlier versions of a bucket that keeps them, no minimum of size or time that a class
//! may charge.

use std::collections::BTreeMap;
use std::str::FromStr;

use crate::verify::Tally;

/// Prices are for so many bytes: AWS bills by it, and calls it a GB.
const GIB: f64 = (1u64 << 30) as f64;

/// US dollars for a GB and a month, by storage class.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Prices(BTreeMap<String, f64>);

/// The text does not say what storing costs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no price: write STANDARD=0.023 STANDARD_IA=0.0125, in US dollars for a GB and a month")]
pub struct PriceError {
    text: String,
}

impl Prices {
    /// Amazon's list prices in us-east-1 for the first 50 TB, as they were in 2026. Other regions are up to twice as dear.
    pub fn of_aws() -> Self {
        let prices = [
            ("STANDARD", 0.023),
            ("REDUCED_REDUNDANCY", 0.024),
            ("STANDARD_IA", 0.0125),
            ("ONEZONE_IA", 0.01),
            // In which of its tiers an object lies no listing tells: the dearest.
            ("INTELLIGENT_TIERING", 0.023),
            ("GLACIER_IR", 0.004),
            ("GLACIER", 0.0036),
            ("DEEP_ARCHIVE", 0.00099),
            ("EXPRESS_ONEZONE", 0.11),
        ];
        Self(prices.map(|(class, price)| (class.to_owned(), price)).into())
    }

    /// These, where `other` does not say something else.
    #[must_use]
    pub fn but(mut self, other: Self) -> Self {
        self.0.extend(other.0);
        self
    }

    /// What a month costs; `None` if the price of something that is stored is not known.
    pub fn of_a_month(&self, tally: &Tally) -> Option<f64> {
        let one = |(class, amount): (&String, &crate::verify::Amount)| Some(self.0.get(class)? * amount.bytes as f64 / GIB);
        let known = tally.classes.values().map(|amount| amount.objects).sum::<u64>() == tally.total().objects;
        if known { tally.classes.iter().map(one).sum() } else { None }
    }
}

impl FromStr for Prices {
    type Err = PriceError;

    fn from_str(text: &str) -> Result<Self, PriceError> {
        let one = |word: &str| {
            let (class, price) = word.split_once('=')?;
            let is_class = !class.is_empty() && class.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_');
            let price: f64 = price.parse().ok()?;
            (is_class && price.is_finite() && price >= 0.0).then(|| (class.to_owned(), price))
        };
        let wrong = |word: &str| PriceError { text: word.chars().take(80).collect() };
        let words = text.split([' ', ',']).filter(|word| !word.is_empty());
        let prices: BTreeMap<_, _> = words.map(|word| one(word).ok_or_else(|| wrong(word))).collect::<Result<_, _>>()?;
        if prices.is_empty() { Err(wrong(text)) } else { Ok(Self(prices)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verify::{Amount, Group};

    fn tally(classes: &[(&str, u64)]) -> Tally {
        let amount = |bytes| Amount { objects: 1, bytes };
        let classes: BTreeMap<_, _> = classes.iter().map(|(class, bytes)| ((*class).to_owned(), amount(*bytes))).collect();
        let total = Amount { objects: classes.len() as u64, bytes: classes.values().map(|amount| amount.bytes).sum() };
        Tally { kinds: [(Group::Packs, total)].into(), classes }
    }

    #[test]
    fn each_class_has_its_price() {
        let stored = tally(&[("STANDARD", 100 << 30), ("GLACIER_IR", 1000 << 30)]);
        let cost = Prices::of_aws().of_a_month(&stored).unwrap();
        assert!((cost - 6.3).abs() < 1e-9, "{cost}");
        let own: Prices = "STANDARD=0.01, GLACIER_IR=0".parse().unwrap();
        assert_eq!(Prices::of_aws().but(own.clone()).of_a_month(&stored), Some(1.0));
        assert_eq!(own.of_a_month(&tally(&[("STANDARD", 1), ("STANDARD_IA", 1)])), None, "of a part nothing is known");
        assert_eq!(own.of_a_month(&Tally::default()), Some(0.0));
        let without_class = Tally { kinds: [(Group::Wal, Amount { objects: 1, bytes: 1 })].into(), ..Tally::default() };
        assert_eq!(own.of_a_month(&without_class), None);
    }

    #[test]
    fn what_is_no_price_is_refused() {
        for text in ["", "0.023", "STANDARD", "standard=1", "STANDARD=cheap", "STANDARD=-1", "STANDARD=NaN", "=1", "STANDARD=1 IA"] {
            assert!(text.parse::<Prices>().is_err(), "{text}");
        }
    }
}
