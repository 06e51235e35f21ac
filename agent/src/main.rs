//! The `walkeep` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    walkeep::cli::main()
}
