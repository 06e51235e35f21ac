//! Options of a benchmark: `--name value`, each with its default where it is used.

use std::collections::BTreeMap;
use std::str::FromStr;

/// What was given; each option is taken once, and [`Options::end`] refuses what nobody took.
#[derive(Debug)]
pub struct Options(BTreeMap<String, String>);

impl Options {
    /// The benchmark's name and its options.
    pub fn parse(mut words: impl Iterator<Item = String>) -> Result<(String, Self), String> {
        let what = words.next().ok_or("say what to measure")?;
        let mut given = BTreeMap::new();
        while let Some(word) = words.next() {
            let name = word.strip_prefix("--").ok_or_else(|| format!("{word} is no option"))?;
            let value = words.next().ok_or_else(|| format!("--{name} needs a value"))?;
            given.insert(name.to_owned(), value);
        }
        Ok((what, Self(given)))
    }

    /// An option's value.
    pub fn take<T: FromStr>(&mut self, name: &str, default: T) -> Result<T, String> {
        match self.0.remove(name) {
            Some(text) => text.parse().map_err(|_| format!("--{name} cannot be {text}")),
            None => Ok(default),
        }
    }

    /// An option's values, separated by commas.
    pub fn list<T: FromStr>(&mut self, name: &str, default: &str) -> Result<Vec<T>, String> {
        let text = self.take(name, default.to_owned())?;
        let words = text.split(',').filter(|word| !word.is_empty());
        words.map(|word| word.parse().map_err(|_| format!("--{name} cannot have {word}"))).collect()
    }

    /// All were taken.
    pub fn end(&self) -> Result<(), String> {
        match self.0.keys().next() {
            Some(name) => Err(format!("--{name} is not an option of this benchmark")),
            None => Ok(()),
        }
    }
}
