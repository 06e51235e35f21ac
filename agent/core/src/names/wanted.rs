//! A table as an operator writes it: `orders`, `public.orders`, `shop.public."Order"`, or a schema's tables, `sales.*`.

use std::fmt;
use std::str::FromStr;

use super::relation::RelationName;
use crate::identifier::{edits, identifier, shown};

/// What is looked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Wanted {
    database: Option<String>,
    schema: Option<String>,
    /// `None` for all tables of the schema.
    name: Option<String>,
}

/// The text names no table.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} names no table: {problem}")]
pub struct WantedError {
    text: String,
    problem: &'static str,
}

impl Wanted {
    /// Whether it is all tables of a schema.
    pub fn is_schema(&self) -> bool {
        self.name.is_none()
    }

    /// Whether it is this relation; for a schema, one of its relations.
    pub fn is(&self, relation: &RelationName) -> bool {
        self.fits(&relation.database_name, &relation.schema, Some(&relation.name))
    }

    /// Whether it is the table of this name, or with `None` the schema.
    pub fn fits(&self, database: &str, schema: &str, name: Option<&str>) -> bool {
        let same = |wanted: &Option<String>, found: &str| wanted.as_deref().is_none_or(|wanted| wanted == found);
        same(&self.database, database) && same(&self.schema, schema) && (self.name.is_none() || self.name.as_deref() == name)
    }

    /// How near a relation's name is: 0 for the same but for case or quotes; `None` if it is another.
    pub fn distance(&self, relation: &RelationName) -> Option<usize> {
        let (wanted, found) = match (&self.name, &self.schema) {
            (Some(name), _) => (name, &relation.name),
            (None, Some(schema)) => (schema, &relation.schema),
            (None, None) => return None,
        };
        let (wanted, found) = (wanted.to_lowercase(), found.to_lowercase());
        let most = if wanted.chars().count() < 4 { 1 } else { 2 };
        let edits = edits(&wanted, &found);
        (edits <= most || wanted.len() >= 4 && found.contains(&wanted)).then_some(edits)
    }
}

impl FromStr for Wanted {
    type Err = WantedError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = |problem| WantedError { text: text.chars().take(200).collect(), problem };
        let mut parts = Vec::new();
        let mut rest = text;
        loop {
            let (part, behind) =
                if rest == "*" { (None, "") } else { identifier(rest).map(|(part, behind)| (Some(part), behind)).map_err(wrong)? };
            parts.push(part);
            match behind.strip_prefix('.') {
                Some(next) => rest = next,
                None if behind.is_empty() => break,
                None => {
                    return Err(wrong(
                        "write TABLE, SCHEMA.TABLE, DATABASE.SCHEMA.TABLE or SCHEMA.*, in double quotes what is not a plain name",
                    ));
                }
            }
        }
        if parts.len() > 3 {
            return Err(wrong("it has more than three parts"));
        }
        let name = parts.pop().flatten();
        let schema = parts.pop().flatten();
        if name.is_none() && schema.is_none() {
            return Err(wrong("of which schema? Write SCHEMA.*"));
        }
        Ok(Self { database: parts.pop().flatten(), schema, name })
    }
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for part in [&self.database, &self.schema].into_iter().flatten() {
            write!(f, "{}.", shown(part))?;
        }
        f.write_str(&self.name.as_deref().map_or("*".to_owned(), shown))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lsn::Lsn;
    use crate::names::RelationKind;
    use proptest::prelude::*;

    fn relation(name: &str) -> RelationName {
        let (database_name, schema, name) = ("shop".to_owned(), "public".to_owned(), name.to_owned());
        RelationName { database_name, schema, name, kind: RelationKind::Table, belongs_to: None, named_at: Lsn::ZERO }
    }

    #[test]
    fn names_are_read_as_postgresql_reads_them() {
        let is = |text: &str, name: &str| text.parse::<Wanted>().expect(text).is(&relation(name));
        for text in ["orders", "Orders", "\"orders\"", "public.ORDERS", "shop.public.orders", "\"shop\".public.\"orders\"", "public.*"] {
            assert!(is(text, "orders"), "{text}");
        }
        assert!(is("\"Or\"\"d.er s\"", "Or\"d.er s") && is("ümläut_1$", "ümläut_1$"));
        for text in ["\"Orders\"", "private.orders", "other.public.orders", "order", "private.*"] {
            assert!(!is(text, "orders"), "{text}");
        }
        for text in ["", ".", "a.", ".a", "a.b.c.d", "\"a", "\"\"", "a b", "a-b", "1a", "*", "a.*.b", "a..b", "\"a\"b", "a*"] {
            assert!(text.parse::<Wanted>().is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_nearly_it_is_similar() {
        let distance = |text: &str, name: &str| text.parse::<Wanted>().expect(text).distance(&relation(name));
        assert_eq!([distance("orders", "Orders"), distance("order", "orders"), distance("oders", "orders")], [Some(0), Some(1), Some(1)]);
        assert_eq!([distance("orders", "orders_2026"), distance("orders", "users"), distance("t", "u2")], [Some(5), None, None]);
    }

    proptest! {
        #[test]
        fn any_name_can_be_written(database in "\\PC{1,20}", schema in "\\PC{1,20}", name in "\\PC{1,20}") {
            // What is shown as an escape is for people to see, and cannot be read back.
            let seen = |name: &str| crate::identifier::printable(name) == name;
            prop_assume!([&database, &schema, &name].into_iter().all(|name| seen(name)));
            let relation = RelationName { database_name: database, schema, ..relation(&name) };
            let wanted: Wanted = relation.to_string().parse().expect("its own name");
            prop_assert!(wanted.is(&relation));
            prop_assert_eq!(wanted.to_string().parse::<Wanted>(), Ok(wanted));
        }

        #[test]
        fn any_text_is_an_error_or_a_name(text in "\\PC{0,40}") {
            if crate::identifier::printable(&text) == text
                && let Ok(wanted) = text.parse::<Wanted>()
            {
                prop_assert_eq!(wanted.to_string().parse::<Wanted>(), Ok(wanted));
            }
        }
    }
}
