//! Identifiers of SQL as people write them and as they are written back: parts of a table's name.

/// Splits `a.b."C"` into its identifiers, by PostgreSQL's rules: letters are small unless in double quotes.
pub fn parts(text: &str) -> Result<Vec<String>, &'static str> {
    let mut parts = Vec::new();
    let mut rest = text;
    loop {
        let (part, behind) = identifier(rest)?;
        parts.push(part);
        match behind.strip_prefix('.') {
            Some(next) => rest = next,
            None if behind.is_empty() => return Ok(parts),
            None => return Err("what is not a plain name needs double quotes"),
        }
    }
}

/// The first identifier, by PostgreSQL's rules, and what is behind it.
pub fn identifier(text: &str) -> Result<(String, &str), &'static str> {
    if let Some(mut rest) = text.strip_prefix('"') {
        let mut name = String::new();
        loop {
            let (part, behind) = rest.split_once('"').ok_or("a double quote is not closed")?;
            name.push_str(part);
            match behind.strip_prefix('"') {
                Some(more) => {
                    name.push('"');
                    rest = more;
                }
                None if name.is_empty() => return Err("a name is empty"),
                None => return Ok((name, behind)),
            }
        }
    }
    let end = text.find(|letter| !is_plain(letter)).unwrap_or(text.len());
    let (name, behind) = text.split_at(end);
    match name.chars().next() {
        None => Err("a name is empty, or needs double quotes"),
        Some(first) if first.is_ascii_digit() || first == '$' => Err("a name that begins so needs double quotes"),
        Some(_) => Ok((name.to_ascii_lowercase(), behind)),
    }
}

fn is_plain(letter: char) -> bool {
    letter.is_ascii_alphanumeric() || matches!(letter, '_' | '$') || !letter.is_ascii()
}

/// A name as it may be written: in double quotes where it needs them.
pub fn quote(name: &str) -> String {
    let plain = name.chars().all(|letter| is_plain(letter) && !letter.is_ascii_uppercase());
    let begins_well = name.chars().next().is_some_and(|first| !first.is_ascii_digit() && first != '$');
    if plain && begins_well { name.to_owned() } else { format!("\"{}\"", name.replace('"', "\"\"")) }
}

/// The same for people: see [`printable`].
pub fn shown(name: &str) -> String {
    printable(&quote(name))
}

/// The same, always in double quotes: for SQL that is run, where a name may be a key word.
pub fn always_quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A text with names in it, as it may be shown to people, who must not be led astray by line ends, what terminals obey and changes of direction
/// within a name.
pub fn printable(text: &str) -> String {
    let is_unseen =
        |letter: char| letter.is_control() || matches!(letter, '\u{200B}'..='\u{200F}' | '\u{2028}'..='\u{202E}' | '\u{2066}'..='\u{2069}');
    let mut shown = String::with_capacity(text.len());
    for letter in text.chars() {
        if is_unseen(letter) { shown.extend(letter.escape_debug()) } else { shown.push(letter) }
    }
    shown
}

/// Insertions, removals and changes of a letter that make one of the other (Levenshtein).
pub fn edits(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (at, letter) in one.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], at + 1);
        for (column, found) in other.iter().enumerate() {
            let changed = diagonal + usize::from(letter != *found);
            diagonal = row[column + 1];
            row[column + 1] = changed.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row[other.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_have_parts() {
        assert_eq!(parts(r#"Shop."my.""table""".x"#).expect("parts"), ["shop", "my.\"table\"", "x"]);
        for bad in ["", ".", "a.", ".a", "a..b", "\"a", "\"\"", "\"a\"b", "a\"b\"", "a b", "1a"] {
            assert!(parts(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_shown_is_in_one_line_and_one_direction() {
        assert_eq!((shown("orders"), shown("a\nb\u{1b}[31m\u{202e}")), ("orders".into(), "\"a\\nb\\u{1b}[31m\\u{202e}\"".into()));
    }

    #[test]
    fn edits_are_counted() {
        assert_eq!((edits("kitten", "sitting"), edits("", "ab"), edits("ab", "")), (3, 2, 2));
    }

    #[test]
    fn what_terminals_obey_is_escaped() {
        assert_eq!(printable("a\nb\u{1b}[2J \"Größe\" '\u{9b}"), "a\\nb\\u{1b}[2J \"Größe\" '\\u{9b}");
    }

    proptest! {
        #[test]
        fn quoted_names_are_read_back(one in ".{1,10}", two in ".{1,10}") {
            prop_assume!(!one.is_empty() && !two.is_empty());
            prop_assert_eq!(parts(&format!("{}.{}", always_quoted(&one), quote(&two))).expect("parts"), [one, two]);
        }

        #[test]
        fn anything_is_read_without_panic(text in ".{0,20}") {
            let _ = parts(&text);
        }
    }
}
