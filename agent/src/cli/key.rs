//! `walkeep key`: who may read what is stored.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use clap::{Args, Subcommand};
use serde::Serialize;

use super::failure::Failure;
use super::trail::Told;
use super::{Global, output, setup};
use crate::config::ClusterConfig;
use crate::durable;
use crate::encryption::Encryption;
use crate::encryption::keys::{self, Recipients};
use crate::repository;

/// What to do with keys.
#[derive(Debug, Subcommand)]
#[command(after_help = "\
Examples:
  walkeep key generate --output identity.txt    a new pair; the file is the secret, keep it where one restores
  walkeep key list                              for whom is encrypted, and what this host can read
  walkeep key add age1...                       from now on that one reads too
  walkeep key remove age1...                    from now on that one does not

No object is stored anew by any of these. An object can be read by those who were recipients when it was stored, for ever: who is removed still
reads what was stored before, who is added does not.")]
pub enum KeyCommand {
    /// Make a new identity and its recipient
    #[command(after_help = "Example:\n  walkeep key generate --output identity.txt")]
    Generate(GenerateArgs),
    /// Show the recipients, and whether this host can read
    #[command(after_help = "Example:\n  walkeep key list --json")]
    List(ListArgs),
    /// Encrypt for one more recipient from now on
    #[command(
        after_help = "Example:\n  walkeep key add age1...\n\nWhat was stored before is not encrypted anew: it cannot be read with the new identity."
    )]
    Add(ChangeArgs),
    /// Encrypt for one recipient less from now on
    #[command(
        after_help = "Example:\n  walkeep key remove age1...\n\nWhat was stored before is not encrypted anew: it can still be read with the removed identity."
    )]
    Remove(ChangeArgs),
}

/// Arguments of `walkeep key generate`.
#[derive(Debug, Args)]
pub struct GenerateArgs {
    /// The file for the identity, mode 0600; must not exist [default: standard output]
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Arguments of `walkeep key list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Arguments of `walkeep key add` and `remove`.
#[derive(Debug, Args)]
pub struct ChangeArgs {
    /// The public key, age1...
    recipient: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs `walkeep key`.
pub fn run(global: &Global, command: &KeyCommand, told: &Told<'_>) -> Result<(), Failure> {
    match command {
        KeyCommand::Generate(_) | KeyCommand::List(_) => told.nothing(),
        KeyCommand::Add(args) => told.of("add", &args.recipient),
        KeyCommand::Remove(args) => told.of("remove", &args.recipient),
    }
    match command {
        KeyCommand::Generate(args) => generate(args),
        KeyCommand::List(args) => list(&setup::config(global)?.cluster, args.json),
        KeyCommand::Add(args) => add(&setup::config(global)?.cluster, args),
        KeyCommand::Remove(args) => remove(&setup::config(global)?.cluster, args),
    }
}

fn generate(args: &GenerateArgs) -> Result<(), Failure> {
    #[derive(Serialize)]
    struct Report<'a> {
        recipient: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        identity: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        identity_file: Option<&'a Path>,
    }
    let (identity, recipient) = keys::generate();
    // As age-keygen writes it, so that the age program takes the file too.
    let made = output::time(chrono::Utc::now());
    let text = format!("# created: {made}\n# public key: {recipient}\n{}\n", identity.reveal());
    if let Some(path) = &args.output {
        let staged = durable::Staged::write(path, text.as_bytes(), durable::PRIVATE_FILE)?;
        if !staged.publish_new()? {
            return Err(Failure::refused(format!("{} exists: an identity is not overwritten", path.display())));
        }
        durable::sync_parent(path)?;
    }
    let shown = args.output.is_none().then(|| identity.reveal());
    if args.json {
        return Ok(output::json(&Report { recipient: &recipient, identity: shown, identity_file: args.output.as_deref() })?);
    }
    match &args.output {
        Some(path) => {
            output::say!("recipient  {recipient}");
            output::say!(
                "identity   in {}; without a copy of it nothing that is encrypted for this recipient alone can be read",
                path.display()
            );
        }
        None => output::say!("{}", text.trim_end()),
    }
    Ok(())
}

/// A recipient as it is shown.
#[derive(Debug, Serialize)]
struct Shown {
    recipient: String,
    from: &'static str,
    read_here: bool,
}

#[derive(Debug, Serialize)]
struct List {
    recipients: Vec<Shown>,
    recipients_file: Option<PathBuf>,
    can_read: bool,
    /// Of identities here, the recipients that nothing is encrypted for.
    other_identities: Vec<String>,
}

fn keys_of(cluster: &ClusterConfig) -> Result<std::sync::Arc<Encryption>, Failure> {
    let none = || Failure::usage(anyhow!("no [cluster.{}.encryption] in the configuration: nothing is encrypted", cluster.name));
    setup::keys(cluster)?.ok_or_else(|| none().hint("README, Encryption: a pair of keys, and recipients or recipients_file in that table."))
}

fn look(keys: &Encryption) -> Result<List, Failure> {
    let all = keys.source().now().map_err(repository::Error::keys)?.texts();
    let (written, own) = (keys.source().written().texts(), keys.identities().recipients());
    let other_identities = own.iter().filter(|recipient| !all.contains(recipient)).cloned().collect();
    let shown = |recipient: String| Shown {
        from: if written.contains(&recipient) { "configuration" } else { "recipients_file" },
        read_here: own.contains(&recipient),
        recipient,
    };
    let recipients = all.into_iter().map(shown).collect();
    Ok(List { recipients, recipients_file: keys.source().file().map(Path::to_owned), can_read: keys.can_read(), other_identities })
}

fn list(cluster: &ClusterConfig, json: bool) -> Result<(), Failure> {
    let list = look(&*keys_of(cluster)?)?;
    if json {
        return Ok(output::json(&list)?);
    }
    for Shown { recipient, from, read_here } in &list.recipients {
        let here = if *read_here { ", its identity is here" } else { "" };
        output::say!("{recipient}  {from}{here}");
    }
    if list.recipients.is_empty() {
        output::say!("no recipients: nothing can be stored from this host");
    }
    for recipient in &list.other_identities {
        output::say!("{recipient}  not a recipient now; its identity is here, for what was stored before");
    }
    match list.can_read {
        true => output::say!("this host has an identity: it reads what is stored for it"),
        false => output::say!("this host has no identity: it writes, and cannot read what it stored"),
    }
    Ok(())
}

#[derive(Debug, Serialize)]
struct Changed<'a> {
    recipients: Vec<String>,
    changed: bool,
    note: &'a str,
}

fn add(cluster: &ClusterConfig, args: &ChangeArgs) -> Result<(), Failure> {
    const NOTE: &str = "What is stored from now on can be read with its identity too. What was stored before cannot: nothing is encrypted anew. Whoever needs \
                        that keeps an identity of before, or takes a full backup now (`walkeep backup --full`), from which on the new one suffices.";
    let keys = keys_of(cluster)?;
    let recipient = recipient(args)?;
    let file = file_of(&keys, cluster)?;
    let _alone = alone(file)?;
    let present = look(&keys)?.recipients.iter().any(|known| known.recipient == recipient);
    if !present {
        let mut text = std::fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
        text.push_str(&recipient);
        text.push('\n');
        write(&keys, file, &text)?;
    }
    tell(cluster, args.json, !present, if present { "It is a recipient already." } else { NOTE })
}

fn remove(cluster: &ClusterConfig, args: &ChangeArgs) -> Result<(), Failure> {
    const NOTE: &str = "What is stored from now on cannot be read with its identity. What was stored before still can: nothing is encrypted anew. Whoever must \
                        not read that any more must not reach the repository, or begin another one. Keep the identity as long as there are backups that use packs \
                        from now and before: a full backup (`walkeep backup --full`) uses none of them.";
    let keys = keys_of(cluster)?;
    let recipient = recipient(args)?;
    let file = file_of(&keys, cluster)?;
    let _alone = alone(file)?;
    let now = look(&keys)?.recipients;
    if keys.source().written().texts().contains(&recipient) {
        let reason = format!("{recipient} stands in the configuration itself, not in {}", file.display());
        return Err(Failure::refused(reason).hint("Remove it from recipients there, and restart the agent."));
    }
    if !now.iter().any(|known| known.recipient == recipient) {
        return Err(Failure::refused(format!("{recipient} is not a recipient: nothing was changed")).hint("`walkeep key list` names them"));
    }
    if now.len() == 1 {
        return Err(Failure::refused("it is the only recipient: nothing could be stored").hint("Add another one first."));
    }
    let text = std::fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
    // As a key, not as text: bech32 may be written in capitals too.
    let is_it = |line: &str| Recipients::parse(line).is_ok_and(|written| written.to_string() == recipient);
    let kept: Vec<&str> = text.lines().filter(|line| !is_it(line)).collect();
    write(&keys, file, &(kept.join("\n") + "\n"))?;
    if look(&*keys_of(cluster)?)?.recipients.iter().any(|known| known.recipient == recipient) {
        return Err(Failure::from(anyhow!("{recipient} is still a recipient: {} was written meanwhile by somebody else", file.display())));
    }
    tell(cluster, args.json, true, NOTE)
}

fn recipient(args: &ChangeArgs) -> Result<String, Failure> {
    Recipients::parse(&args.recipient).map(|recipient| recipient.to_string()).map_err(|error| Failure::usage(error.into()))
}

fn file_of<'a>(keys: &'a Encryption, cluster: &ClusterConfig) -> Result<&'a Path, Failure> {
    keys.source().file().ok_or_else(|| {
        let reason = anyhow!("no recipients_file in [cluster.{}.encryption]", cluster.name);
        Failure::usage(reason).hint(
            "Change recipients in the configuration and restart the agent; or name a recipients_file, which is read again when it changes.",
        )
    })
}

/// The file, locked: what another one adds or removes meanwhile is read here, or comes behind this.
fn alone(path: &Path) -> Result<File, Failure> {
    let lock = || -> std::io::Result<File> {
        loop {
            // NFS locks only what is open for writing.
            let file = File::options().read(true).write(true).open(path).or_else(|_| File::open(path))?;
            file.lock()?;
            // Whoever had the lock has put another file in its place, which another one may have locked by now.
            let (own, now) = (file.metadata()?, std::fs::metadata(path)?);
            if (own.dev(), own.ino()) == (now.dev(), now.ino()) {
                return Ok(file);
            }
        }
    };
    Ok(lock().with_context(|| format!("lock {}", path.display()))?)
}

/// At once or not at all: an agent reads it at any moment. It stays where a link leads, and whose it was; nothing is written that the agent would refuse.
fn write(keys: &Encryption, file: &Path, text: &str) -> Result<(), Failure> {
    keys.source().with(file, text).map_err(|error| {
        Failure::refused(error.to_string())
            .hint("Nothing was changed. A file that shall name nobody is taken out of the configuration instead.")
    })?;
    let file = std::fs::canonicalize(file).with_context(|| format!("look at {}", file.display()))?;
    let found = std::fs::metadata(&file).with_context(|| format!("look at {}", file.display()))?;
    let mode = found.mode() & 0o777;
    let hint = "Nothing was changed. Run it as root, or give the file and its folder to the user and a group of who changes it.";
    let staged = durable::Staged::write(&file, text.as_bytes(), mode).map_err(|error| Failure::from(error).hint(hint))?;
    if let Err(error) = staged.give_to(found.uid(), found.gid()) {
        // A group that may do no more than everybody: its owner may let go of that, and only of that.
        let group_is_idle = (mode >> 3) & 0o7 & !mode == 0;
        if !group_is_idle || rustix::process::geteuid().as_raw() != found.uid() {
            return Err(Failure::from(error).hint(hint));
        }
    }
    staged.publish()?;
    Ok(durable::sync_parent(&file)?)
}

fn tell(cluster: &ClusterConfig, json: bool, changed: bool, note: &str) -> Result<(), Failure> {
    let recipients: Vec<String> = look(&*keys_of(cluster)?)?.recipients.into_iter().map(|shown| shown.recipient).collect();
    if json {
        return Ok(output::json(&Changed { recipients, changed, note })?);
    }
    let count = recipients.len();
    output::say!("{} now. {note}", if count == 1 { "1 recipient".to_owned() } else { format!("{count} recipients") });
    Ok(())
}
