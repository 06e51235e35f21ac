//! Every cluster of a file, for one agent that serves them all: read one by one, and what two of them must not share.

use anyhow::{Result, bail};

use super::{Config, Selection, environment};

impl Config {
    /// What one agent serves: the chosen cluster, or every one in the file.
    pub fn load_all(selection: &Selection) -> Result<Vec<Self>> {
        let names = match &selection.cluster {
            Some(_) => Vec::new(),
            None => Self::names(selection)?,
        };
        if names.len() < 2 {
            return Ok(vec![Self::load(selection)?]);
        }
        if let Some(variable) = environment::given_to_one(&|name| std::env::var(name).ok()) {
            bail!("{variable} is for one cluster, and the agent serves {}: take it out, or choose one with --cluster", names.join(", "));
        }
        let one = |name: &String| Self::load(&Selection { cluster: Some(name.clone()), ..selection.clone() });
        let configs = names.iter().map(one).collect::<Result<Vec<_>>>()?;
        refuse_shared(&configs)?;
        Ok(configs)
    }
}

/// Each would take the other's for its own.
fn refuse_shared(configs: &[Config]) -> Result<()> {
    for (at, one) in configs.iter().enumerate() {
        for other in &configs[..at] {
            let (one, other) = (&one.cluster, &other.cluster);
            let slots = one.stream && other.stream && one.connection.reveal() == other.connection.reveal() && one.slot == other.slot;
            let shared = [(one.socket == other.socket, "socket"), (one.spool == other.spool, "spool"), (slots, "connection and slot")];
            if let Some((_, what)) = shared.iter().find(|(is_shared, _)| *is_shared) {
                bail!("[cluster.{}] and [cluster.{}] have the same {what}: each needs its own", other.name, one.name);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str, chosen: Option<&str>) -> Result<Vec<Config>> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("walkeep.toml");
        std::fs::write(&path, text).unwrap();
        Config::load_all(&Selection { path: Some(path), cluster: chosen.map(str::to_owned), as_of: None })
    }

    fn cluster(name: &str, lines: &str) -> String {
        format!("[cluster.{name}]\nconnection = \"host=/run/{name}\"\n{lines}\n[[cluster.{name}.repository]]\nurl = \"file:///srv/w\"\n")
    }

    #[test]
    fn all_are_served_or_the_chosen_one() {
        let two = cluster("b", "") + &cluster("a", "");
        let names = |configs: &[Config]| configs.iter().map(|config| config.cluster.name.to_string()).collect::<Vec<_>>();
        assert_eq!(names(&load(&two, None).unwrap()), ["a", "b"]);
        assert_eq!(names(&load(&two, Some("b")).unwrap()), ["b"]);
        assert_eq!(names(&load(&cluster("only", ""), None).unwrap()), ["only"]);
    }

    #[test]
    fn what_must_not_be_shared_is_refused() {
        for (lines, what) in [
            ("socket = \"/run/walkeep/x.sock\"", "socket"),
            ("spool = \"/var/lib/walkeep/x\"", "spool"),
            ("connection = \"host=db\"", "connection and slot"),
        ] {
            let both = |name| cluster(name, lines).replace(&format!("connection = \"host=/run/{name}\"\nconnection"), "connection");
            let error = format!("{:#}", load(&(both("a") + &both("b")), None).unwrap_err());
            assert!(error.contains(what) && error.contains("[cluster.a] and [cluster.b]"), "{error}");
        }
        let apart = |name: &str, slot: &str| cluster(name, &format!("slot = \"{slot}\"")).replace(&format!("host=/run/{name}"), "host=db");
        assert_eq!(load(&(apart("a", "one") + &apart("b", "two")), None).unwrap().len(), 2);
    }
}
