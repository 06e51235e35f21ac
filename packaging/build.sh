#!/bin/bash
# The three programs as they are installed: walkeep, and the two shims linked statically. Prints the folder they are in.
set -euo pipefail
cd "$(dirname "$0")/.."
target=${CARGO_TARGET_DIR:-$PWD/target}
triple=$(rustc -vV | sed -n 's/^host: //p')
only=${1:-all}   # all, or shims

# What `walkeep --version` says of its build.
WALKEEP_BUILD_COMMIT=$(git rev-parse --short=12 HEAD 2> /dev/null || echo "none (not built in a git checkout)")
WALKEEP_BUILD_RUSTC=$(rustc --version)
export WALKEEP_BUILD_COMMIT WALKEEP_BUILD_RUSTC

if [ "$only" = all ]; then
  cargo build --locked --quiet --release -p walkeep --bin walkeep
fi
# A static program of the standard library alone starts as quickly as /bin/true, and needs nothing of the image it lies in.
RUSTFLAGS="${RUSTFLAGS:-} -C target-feature=+crt-static" \
  cargo build --locked --quiet --profile shim --target "$triple" -p walkeep-archive-cmd -p walkeep-restore-cmd

dist=$target/dist
mkdir -p "$dist"
install -m 755 "$target/$triple/shim/walkeep-archive-cmd" "$target/$triple/shim/walkeep-restore-cmd" "$dist/"
if [ "$only" = all ]; then
  install -m 755 "$target/release/walkeep" "$dist/"
fi
echo "$dist"
