//! Names of tables as people write them, and which of those there are were meant.

use std::fmt;

use anyhow::{Result, anyhow, ensure};
use walkeep_core::identifier::{self, quote};

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
        let mut parts = identifier::parts(text).map_err(|problem| anyhow!("{text:?} is not a table's name: {problem}"))?;
        let name = parts.pop().unwrap_or_default();
        let schema = parts.pop();
        ensure!(parts.is_empty(), "{text:?} has more than schema and name: name the database with --database");
        Ok(Self { schema, name })
    }
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.schema {
            Some(schema) => write!(f, "{}.{}", quote(schema), quote(&self.name)),
            None => f.write_str(&quote(&self.name)),
        }
    }
}

/// The names that are like `wanted`, the nearest first, five at most.
pub fn similar<'n>(wanted: &str, names: impl Iterator<Item = (&'n str, String)>) -> Vec<String> {
    let bound = wanted.chars().count() / 3 + 1;
    let near = |name: &str| {
        let within = name.contains(wanted) || wanted.contains(name);
        let distance = identifier::edits(wanted, name);
        (within || distance <= bound).then_some(distance)
    };
    let mut found: Vec<_> = names.filter_map(|(name, shown)| Some((near(&name.to_lowercase())?, shown))).collect();
    found.sort();
    found.into_iter().take(5).map(|(_, shown)| shown).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

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
    }
}
