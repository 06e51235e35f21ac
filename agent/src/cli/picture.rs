//! The recoverable window drawn in the terminal, and into a file: what `walkeep log` and `walkeep status` share.
//!
//! What is in the picture is the core's ([`walkeep_core::picture`]); here is how wide the terminal is, and where the file goes.

use std::io::{IsTerminal, stdout};
use std::path::PathBuf;

use clap::Args;
use walkeep_core::picture::{Picture, TextStyle};

use super::failure::Failure;
use super::output;
use crate::durable;

/// Columns where nobody tells how many there are.
const WIDTH: usize = 80;
/// A picture wider than this is not easier to read.
const WIDEST: usize = 160;
/// The file holds names and positions, no data: whoever may look at the folder may look at it.
const FILE_MODE: u32 = 0o644;

/// How the picture is wanted.
#[derive(Debug, Args)]
pub struct PictureArgs {
    /// Write the picture of the recoverable window as an SVG to this file, which must not exist
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Replace the file if it exists
    #[arg(long, requires = "svg")]
    replace: bool,
    /// Leave the picture out
    #[arg(long)]
    no_picture: bool,
    /// Draw with ASCII characters only [default: where the locale is not UTF-8]
    #[arg(long)]
    ascii: bool,
}

impl PictureArgs {
    /// Looks whether the file may be written, before anything that takes time.
    pub fn check(&self) -> Result<(), Failure> {
        match &self.svg {
            Some(path) if !self.replace && path.symlink_metadata().is_ok() => Err(taken(path)),
            _ => Ok(()),
        }
    }

    /// The picture for the JSON.
    pub fn for_json(&self, picture: &Option<Picture>) -> Option<Picture> {
        picture.clone().filter(|_| !self.no_picture)
    }

    /// Draws it on the terminal.
    pub fn draw(&self, picture: &Option<Picture>) {
        if let Some(picture) = picture.as_ref().filter(|_| !self.no_picture) {
            output::say!("\n{}", picture.text(self.style()).trim_end());
        }
    }

    /// Writes the file.
    pub fn write(&self, picture: &Option<Picture>, heading: &str) -> Result<(), Failure> {
        let Some(path) = &self.svg else { return Ok(()) };
        let nothing = || Failure::refused(format!("nothing is stored, so there is no picture: {} was not written", path.display()));
        let svg = picture.as_ref().ok_or_else(nothing)?.svg(heading);
        let staged = durable::Staged::write(path, svg.as_bytes(), FILE_MODE)?;
        if self.replace {
            staged.publish()?;
        } else if !staged.publish_new()? {
            return Err(taken(path));
        }
        Ok(durable::sync_parent(path)?)
    }

    fn style(&self) -> TextStyle {
        let terminal = stdout().is_terminal();
        let size = if terminal { rustix::termios::tcgetwinsize(stdout()).ok() } else { None };
        let width = size.map(|size| usize::from(size.ws_col)).filter(|columns| *columns > 0).unwrap_or(WIDTH).min(WIDEST);
        let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let locale = ["LC_ALL", "LC_CTYPE", "LANG"].into_iter().find_map(set).unwrap_or_default().to_ascii_lowercase();
        let utf8 = locale.contains("utf-8") || locale.contains("utf8");
        let colour = terminal && set("NO_COLOR").is_none() && set("TERM").is_none_or(|term| term != "dumb");
        TextStyle { width, ascii: self.ascii || !utf8, colour }
    }
}

fn taken(path: &std::path::Path) -> Failure {
    Failure::refused(format!("{} exists", path.display())).hint("name another file, or add --replace")
}
