//! Names of tables as people write them, and which of those there are were meant.

use std::fmt;

use anyhow::{Result, bail, ensure};

/// A table as it was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableName {
    /// In any schema if it was not said.
    pub schema: Option<String>,
    /// The name.
    pub name: String,
}

impl TableName {
    /// Reads `name` or `schema.name`; as in SQL, letters are small unless in double quotes.
    pub fn parse(text: &str) -> Result<Self> {
        let mut parts = Vec::new();
        let mut rest = text;
        loop {
            let (part, after) = identifier(rest, text)?;
            parts.push(part);
            match after.strip_prefix('.') {
                Some(after) => rest = after,
                None if after.is_empty() => break,
                None => bail!("{text:?} is not a table's name: something stands behind the closing quote"),
            }
        }
        let name = parts.pop().unwrap_or_default();
        let schema = parts.pop();
        ensure!(parts.is_empty(), "{text:?} has more than schema and name: name the database with --database");
        Ok(Self { schema, name })
    }
}

fn identifier<'t>(text: &'t str, whole: &str) -> Result<(String, &'t str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find('.').unwrap_or(text.len());
        let (part, rest) = text.split_at(end);
        ensure!(!part.is_empty(), "{whole:?} is not a table's name: a part of it is empty");
        ensure!(!part.contains('"'), "{whole:?} is not a table's name: a quote stands in the middle of it");
        return Ok((part.to_lowercase(), rest));
    };
    let mut name = String::new();
    let mut chars = quoted.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' if chars.next_if(|(_, next)| *next == '"').is_some() => name.push('"'),
            '"' if name.is_empty() => break,
            '"' => return Ok((name, &quoted[at + 1..])),
            other => name.push(other),
        }
    }
    bail!("{whole:?} is not a table's name: a quoted part is empty or has no end")
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.schema {
            Some(schema) => write!(f, "{}.{}", quote(schema), quote(&self.name)),
            None => f.write_str(&quote(&self.name)),
        }
    }
}

/// For SQL: in quotes where it needs them, or might.
pub fn quote(name: &str) -> String {
    let plain = name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
    if plain && !name.starts_with(|c: char| c.is_ascii_digit()) && !name.is_empty() { name.to_owned() } else { always_quoted(name) }
}

/// For SQL and for patterns of pg_dump: key words too are names in quotes.
pub fn always_quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// The names that are like `wanted`, the nearest first, five at most.
pub fn similar<'n>(wanted: &str, names: impl Iterator<Item = (&'n str, String)>) -> Vec<String> {
    let bound = wanted.chars().count() / 3 + 1;
    let near = |name: &str| {
        let within = name.contains(wanted) || wanted.contains(name);
        let distance = distance(wanted, name);
        (within || distance <= bound).then_some(distance)
    };
    let mut found: Vec<_> = names.filter_map(|(name, shown)| Some((near(&name.to_lowercase())?, shown))).collect();
    found.sort();
    found.into_iter().take(5).map(|(_, shown)| shown).collect()
}

/// How many letters must be put in, taken out or changed.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, letter) in a.chars().enumerate() {
        let mut before = std::mem::replace(&mut row[0], i + 1);
        for (j, other) in b.iter().enumerate() {
            let changed = before + usize::from(letter != *other);
            before = row[j + 1];
            row[j + 1] = changed.min(before + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn name(schema: Option<&str>, name: &str) -> TableName {
        TableName { schema: schema.map(str::to_owned), name: name.to_owned() }
    }

    #[test]
    fn names_are_read_as_in_sql() {
        for (text, expected) in [
            ("orders", name(None, "orders")),
            ("Shop.Orders", name(Some("shop"), "orders")),
            (r#""Shop"."my.""table""""#, name(Some("Shop"), "my.\"table\"")),
            (r#"shop."Orders""#, name(Some("shop"), "Orders")),
        ] {
            assert_eq!(TableName::parse(text).expect(text), expected);
        }
        for bad in ["", ".", "a.", ".a", "a..b", "a.b.c", "\"a", "\"\"", "\"a\"b", "a\"b\""] {
            assert!(TableName::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn similar_names_are_found() {
        let there = ["orders", "order_items", "customers", "Order", "x"].map(|name| (name, name.to_owned()));
        assert_eq!(similar("oders", there.iter().map(|(name, shown)| (*name, shown.clone()))), ["orders", "Order"]);
        assert!(similar("payments", there.iter().map(|(name, shown)| (*name, shown.clone()))).is_empty());
        assert_eq!((distance("kitten", "sitting"), distance("", "ab"), distance("ab", "")), (3, 2, 2));
    }

    proptest! {
        #[test]
        fn quoted_names_are_read_back(schema in ".{1,10}", table in ".{1,10}") {
            prop_assume!(!schema.is_empty() && !table.is_empty());
            let text = format!("{}.{}", always_quoted(&schema), always_quoted(&table));
            prop_assert_eq!(TableName::parse(&text).expect("parses"), name(Some(&schema), &table));
            let shown = name(Some(&schema), &table).to_string();
            prop_assert_eq!(TableName::parse(&shown).expect("parses"), name(Some(&schema), &table));
        }

        #[test]
        fn anything_is_read_without_panic(text in ".{0,20}") {
            let _ = TableName::parse(&text);
        }
    }
}
