//! The `walkeep` program.

use std::process::ExitCode;

/// Megabytes come and go with every extent and segment: the system's allocator gives each back and faults it in anew, page by page, and what it keeps it keeps for
/// good. This one keeps what was freed for some seconds.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    walkeep::cli::main()
}
