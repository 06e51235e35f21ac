//! The `walkeep` program.

use std::process::ExitCode;

/// Megabytes come and go with every extent and segment: the system's allocator gives each back and faults it in anew, page by page, and what it keeps it keeps for
/// good. This one keeps what was freed for some seconds. It serves libraries in C too (zstd above all): each thread that compresses had an arena of the system's.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    walkeep::cli::main()
}
