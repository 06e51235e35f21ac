//! What is made of the command line's own description: completions for shells, man pages; and what the binary says of itself.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::LazyLock;

use anyhow::Context;
use clap::{Args, Command, CommandFactory};
use clap_complete::Shell;

use super::failure::Failure;
use super::{Cli, output};

/// The name under which it is called.
const NAME: &str = "walkeep";

/// Version, build and licence. The build's facts come from packaging/build.sh.
pub static LONG_VERSION: LazyLock<String> = LazyLock::new(|| {
    let mut text = env!("CARGO_PKG_VERSION").to_owned();
    let facts = [("commit", option_env!("WALKEEP_BUILD_COMMIT")), ("built with", option_env!("WALKEEP_BUILD_RUSTC"))];
    for (name, value) in facts {
        let _ = write!(text, "\n{name}: {}", value.unwrap_or("unknown (not by packaging/build.sh)"));
    }
    let _ = write!(text, "\nfor: {} {}", std::env::consts::ARCH, std::env::consts::OS);
    let _ = write!(text, "\nlicence: {}", env!("CARGO_PKG_LICENSE"));
    text
});

/// Arguments of `walkeep completions`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  walkeep completions bash > /etc/bash_completion.d/walkeep
  walkeep completions zsh > \"${fpath[1]}/_walkeep\"
  walkeep completions fish > ~/.config/fish/completions/walkeep.fish

The Debian package brings them along.")]
pub struct CompletionsArgs {
    /// The shell
    shell: Shell,
}

/// Arguments of `walkeep man`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  walkeep man ./man && man ./man/walkeep-restore.1\n\nThe Debian package brings them along.")]
pub struct ManArgs {
    /// The directory to write walkeep.1, walkeep-backup.1 and so on into; it must exist
    dir: PathBuf,
}

/// Prints completions.
pub fn completions(args: &CompletionsArgs) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), NAME, &mut script);
    output::say!("{}", String::from_utf8_lossy(&script).trim_end());
    Ok(())
}

/// Writes man pages: one for each command, named as git's are.
pub fn man(args: &ManArgs) -> Result<(), Failure> {
    let pages = pages(&Cli::command(), NAME)?;
    for (name, page) in &pages {
        let path = args.dir.join(format!("{name}.1"));
        std::fs::write(&path, page).with_context(|| format!("write {}", path.display()))?;
    }
    output::say!("{} in {}", output::count(pages.len() as u64, "man page"), args.dir.display());
    Ok(())
}

fn pages(command: &Command, name: &str) -> anyhow::Result<Vec<(String, Vec<u8>)>> {
    let (called, display): (&'static str, &'static str) = (name.to_owned().leak(), name.replace('-', " ").leak());
    let mut page = Vec::new();
    // clap has the name of a page only for as long as the program lives.
    let described = command.clone().name(called).display_name(called).bin_name(display).version(env!("CARGO_PKG_VERSION"));
    clap_mangen::Man::new(described).render(&mut page).with_context(|| format!("make the man page {name}"))?;
    let mut pages = vec![(name.to_owned(), page)];
    for command in command.get_subcommands().filter(|command| !command.is_hide_set() && command.get_name() != "help") {
        pages.extend(self::pages(command, &format!("{name}-{}", command.get_name()))?);
    }
    Ok(pages)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page_and_every_shell_knows_every_command() {
        let command = Cli::command();
        let pages = pages(&command, NAME).unwrap();
        let named: Vec<_> = pages.iter().map(|(name, _)| name.as_str()).collect();
        for name in ["walkeep", "walkeep-backup", "walkeep-key-add", "walkeep-wal-fetch", "walkeep-artifact-get"] {
            assert!(named.contains(&name), "{name} in {named:?}");
        }
        assert!(!named.iter().any(|name| name.contains("fetch-service")), "{named:?}");
        let restore = &pages.iter().find(|(name, _)| name == "walkeep-restore").unwrap().1;
        let restore = String::from_utf8_lossy(restore);
        assert!(restore.contains("\\-\\-before\\-drop") && restore.contains("walkeep restore"), "{restore}");
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), NAME, &mut script);
            let script = String::from_utf8(script).unwrap();
            for command in command.get_subcommands().filter(|command| !command.is_hide_set()) {
                assert!(script.contains(command.get_name()), "{} for {shell}", command.get_name());
            }
        }
    }

    #[test]
    fn the_binary_says_what_it_is() {
        for word in [env!("CARGO_PKG_VERSION"), "commit: ", "licence: MIT"] {
            assert!(LONG_VERSION.contains(word), "{}", *LONG_VERSION);
        }
    }
}
