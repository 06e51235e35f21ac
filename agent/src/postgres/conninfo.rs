//! The two written forms of libpq's connection parameters, as lists of keys and values.
//!
//! Only the syntax is known here; [`super::params`] knows the keys. Errors never repeat the text: it may hold a password.

use super::params::ParamsError;

/// Keys and values in the order written; of a repeated key the last counts.
pub(super) type Pairs = Vec<(String, String)>;

/// Splits a connection string of either form.
pub(super) fn split(text: &str) -> Result<Pairs, ParamsError> {
    match text.strip_prefix("postgresql://").or_else(|| text.strip_prefix("postgres://")) {
        Some(rest) => split_url(rest),
        None => split_keywords(text),
    }
}

/// The parameters as a keyword/value string for a program's argument, which everybody on the host can read; the password apart. What is in `given`
/// stands for what the text leaves open.
pub fn without_password(text: &str, given: &[(&str, &str)]) -> Result<(String, Option<String>), ParamsError> {
    let pairs = split(text)?;
    let password = pairs.iter().rev().find(|(key, _)| key == "password").map(|(_, value)| value.clone());
    let open = given.iter().filter(|(key, _)| !pairs.iter().any(|(there, value)| there == key && !value.is_empty()));
    let open = open.map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    let shown = pairs.iter().filter(|(key, value)| key != "password" && !value.is_empty()).cloned().chain(open);
    let quoted = shown.map(|(key, value)| format!("{key}='{}'", value.replace('\\', r"\\").replace('\'', r"\'")));
    Ok((quoted.collect::<Vec<_>>().join(" "), password.filter(|password| !password.is_empty())))
}

fn syntax(what: impl Into<String>) -> ParamsError {
    ParamsError::Syntax(what.into())
}

fn split_keywords(text: &str) -> Result<Pairs, ParamsError> {
    let mut pairs = Pairs::new();
    let mut chars = text.chars().peekable();
    loop {
        while chars.next_if(|c| c.is_ascii_whitespace()).is_some() {}
        if chars.peek().is_none() {
            return Ok(pairs);
        }
        let mut key = String::new();
        while let Some(c) = chars.next_if(|c| !c.is_ascii_whitespace() && *c != '=') {
            key.push(c);
        }
        while chars.next_if(|c| c.is_ascii_whitespace()).is_some() {}
        if chars.next_if_eq(&'=').is_none() {
            // The word may be a piece of an unquoted password, so only its place is told.
            return Err(syntax(format!("\"=\" is missing after word {} of the connection string", pairs.len() + 1)));
        }
        while chars.next_if(|c| c.is_ascii_whitespace()).is_some() {}
        let quoted = chars.next_if_eq(&'\'').is_some();
        let mut value = String::new();
        loop {
            match chars.next() {
                Some('\\') => value.extend(chars.next()),
                Some('\'') if quoted => break,
                Some(c) if !quoted && c.is_ascii_whitespace() => break,
                Some(c) => value.push(c),
                None if quoted => return Err(syntax(format!("the quoted value of {key} is not closed"))),
                None => break,
            }
        }
        pairs.push((key, value));
    }
}

fn split_url(rest: &str) -> Result<Pairs, ParamsError> {
    let mut pairs = Pairs::new();
    let mut rest = rest;
    let before_path = rest.find('/').unwrap_or(rest.len());
    if let Some(at) = rest[..before_path].find('@') {
        let (user, password) = rest[..at].split_once(':').map_or((&rest[..at], None), |(user, password)| (user, Some(password)));
        if !user.is_empty() {
            pairs.push(("user".into(), decode(user)?));
        }
        if let Some(password) = password.filter(|password| !password.is_empty()) {
            pairs.push(("password".into(), decode(password)?));
        }
        rest = &rest[at + 1..];
    }
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, tail) = rest.split_at(end);
    if !authority.is_empty() {
        let mut hosts = Vec::new();
        let mut ports = Vec::new();
        for part in authority.split(',') {
            let (host, port) = split_host(part)?;
            hosts.push(decode(host)?);
            ports.push(decode(port)?);
        }
        if hosts.iter().any(|host| !host.is_empty()) {
            pairs.push(("host".into(), hosts.join(",")));
        }
        if ports.iter().any(|port| !port.is_empty()) {
            pairs.push(("port".into(), ports.join(",")));
        }
    }
    let (path, query) = tail.split_once('?').unwrap_or((tail, ""));
    if let Some(dbname) = path.strip_prefix('/').filter(|name| !name.is_empty()) {
        pairs.push(("dbname".into(), decode(dbname)?));
    }
    for part in query.split('&').filter(|part| !part.is_empty()) {
        let (key, value) = part.split_once('=').ok_or_else(|| syntax("a parameter of the connection URL has no \"=\""))?;
        let key = decode(key)?;
        if value.contains('=') {
            return Err(syntax(format!("the value of {key} in the connection URL has an \"=\" that is not written %3D")));
        }
        let value = decode(value)?;
        match (key.as_str(), value.as_str()) {
            ("ssl", "true") => pairs.push(("sslmode".into(), "require".into())),
            _ => pairs.push((key, value)),
        }
    }
    Ok(pairs)
}

fn split_host(part: &str) -> Result<(&str, &str), ParamsError> {
    if let Some(inner) = part.strip_prefix('[') {
        let (address, after) =
            inner.split_once(']').ok_or_else(|| syntax("an IPv6 address in the connection URL is not closed with \"]\""))?;
        return match after.strip_prefix(':') {
            Some(port) => Ok((address, port)),
            None if after.is_empty() => Ok((address, "")),
            None => Err(syntax("after \"]\" in the connection URL only a port may follow")),
        };
    }
    Ok(part.split_once(':').unwrap_or((part, "")))
}

fn decode(text: &str) -> Result<String, ParamsError> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        rest = tail;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let digit = |index: usize| tail.get(index).and_then(|byte| char::from(*byte).to_digit(16));
        match (digit(0), digit(1)) {
            (Some(0), Some(0)) => return Err(syntax("%00 is not allowed in a connection URL")),
            (Some(high), Some(low)) => bytes.push((high * 16 + low) as u8),
            _ => return Err(syntax("a \"%\" in the connection URL is not followed by two hexadecimal digits")),
        }
        rest = &tail[2..];
    }
    String::from_utf8(bytes).map_err(|_| syntax("a part of the connection URL is not UTF-8 once decoded"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(text: &str) -> Vec<(String, String)> {
        split(text).expect("parses")
    }

    fn own(list: &[(&str, &str)]) -> Vec<(String, String)> {
        list.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn keywords_with_quotes_and_escapes() {
        assert_eq!(pairs(""), own(&[]));
        assert_eq!(
            pairs(r" host = a,b  user='o\'neil x' password=a\ b\\c options='' dbname=d"),
            own(&[("host", "a,b"), ("user", "o'neil x"), ("password", r"a b\c"), ("options", ""), ("dbname", "d")])
        );
        assert_eq!(pairs("host=a=b"), own(&[("host", "a=b")]));
        for bad in ["host", "user=a secret", "user='open"] {
            let error = split(bad).expect_err(bad).to_string();
            assert!(!error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn the_password_stands_apart() {
        let (shown, password) =
            without_password("postgres://u:p%27w@h/d'b?sslmode=require", &[("dbname", "x"), ("user", "me")]).expect("parses");
        assert_eq!((shown.as_str(), password.as_deref()), (r"user='u' host='h' dbname='d\'b' sslmode='require'", Some("p'w")));
        assert_eq!(split(&shown).expect("parses").len(), 4);
        assert_eq!(without_password("host=h user=''", &[("user", "me")]), Ok(("host='h' user='me'".to_owned(), None)));
    }

    #[test]
    fn urls() {
        assert_eq!(pairs("postgresql://"), own(&[]));
        assert_eq!(
            pairs("postgres://us%40er:p%3Aw@h1:1,[::1]:2,h3/db%20x?sslmode=require&application_name=a"),
            own(&[
                ("user", "us@er"),
                ("password", "p:w"),
                ("host", "h1,::1,h3"),
                ("port", "1,2,"),
                ("dbname", "db x"),
                ("sslmode", "require"),
                ("application_name", "a"),
            ])
        );
        assert_eq!(pairs("postgresql://%2Frun%2Fpg/d"), own(&[("host", "/run/pg"), ("dbname", "d")]));
        assert_eq!(pairs("postgresql:///d?host=/tmp&ssl=true"), own(&[("dbname", "d"), ("host", "/tmp"), ("sslmode", "require")]));
        for bad in [
            "postgresql://[::1",
            "postgresql://[::1]x",
            "postgresql://%zz",
            "postgresql://h/%00",
            "postgresql://h/?a",
            "postgresql://h/?a=b=c",
        ] {
            assert!(split(bad).is_err(), "{bad}");
        }
    }
}
