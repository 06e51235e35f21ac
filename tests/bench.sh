#!/bin/bash
# `make bench`: installs what it needs, builds the programs as they are released, and compares. Arguments: works and options, `all` without any.
set -euo pipefail
cd "$(dirname "$0")/.."
tests/setup.sh --bench
WALKEEP_TEST_BIN=$(packaging/build.sh)
export WALKEEP_TEST_BIN
exec cargo bench --locked --quiet -p walkeep-tests --bench peers -- "${@:-all}"
