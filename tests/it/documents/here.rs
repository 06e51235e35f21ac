//! What stands in the documents and is something else in a test, each with the reason. Nothing else of a command is changed.

/// What the documents say everywhere, and why a test has something in its place. See [`super::stage::Stage::here`] for what that is.
pub const EVERYWHERE: [(&str, &str); 19] = [
    ("/usr/lib/postgresql/15/bin/", "the version that is tested may be another, from elsewhere"),
    ("/var/lib/postgresql/15/main", "the data directory of the story's server"),
    ("/var/lib/postgresql/15/restored", "stories run side by side: each has folders of its own"),
    ("/var/lib/walkeep", "the spool of the story"),
    ("/run/walkeep", "the folder of the agent's socket"),
    ("/run/postgresql dbname", "several servers run here: each has a socket folder and a port of its own"),
    ("/run/postgresql user", "as above"),
    ("/etc/walkeep", "the folder with the story's walkeep.toml, which WALKEEP_CONFIG names"),
    ("/etc/systemd/system/", "no unit of the machine's is touched"),
    ("/srv/walkeep", "the repository of the story"),
    ("/srv/", "a folder of the story's own"),
    ("/tmp/etc.tar", "as above"),
    ("127.0.0.1:9187", "each agent has a port of its own"),
    ("localhost:9187", "each agent has a port of its own"),
    ("5499", "a port that is free here"),
    ("walkeep-archive-cmd %p", "the programs lie in the build's folder, not in the server's PATH, and the socket not in its usual place"),
    ("7711104517502838564", "the system identifier of the story's server"),
    ("7710484345924107793", "as above"),
    ("16777216", "the size of a segment of the story's server"),
];

/// Replaces each of `meanings` in one pass, the longest where several begin, and says which were found.
pub fn replaced(text: &str, meanings: &[(String, String)]) -> (String, Vec<String>) {
    let (mut result, mut found, mut rest) = (String::new(), Vec::new(), text);
    while let Some(first) = rest.chars().next() {
        match meanings.iter().filter(|(there, _)| rest.starts_with(there.as_str())).max_by_key(|(there, _)| there.len()) {
            Some((there, here)) => {
                result.push_str(here);
                found.push(there.clone());
                rest = &rest[there.len()..];
            }
            None => {
                result.push(first);
                rest = &rest[first.len_utf8()..];
            }
        }
    }
    (result, found)
}

#[test]
fn what_was_replaced_is_not_replaced_again() {
    let meanings = [("/srv/", "/tmp/srv/"), ("/srv/walkeep", "/tmp/repo")].map(|(there, here)| (there.to_owned(), here.to_owned()));
    let (text, found) = replaced("cp /srv/a /srv/walkeep/b", &meanings);
    assert_eq!((text.as_str(), found), ("cp /tmp/srv/a /tmp/repo/b", vec!["/srv/".to_owned(), "/srv/walkeep".to_owned()]));
}

/// The table has nothing that no document says.
#[test]
fn what_stands_everywhere_stands_somewhere() {
    let texts = super::text::DOCUMENTS.map(|file| std::fs::read_to_string(super::text::path(file)).unwrap()).concat();
    for (there, reason) in EVERYWHERE {
        assert!(texts.contains(there) && reason.len() > 5, "no document has {there}");
    }
}
