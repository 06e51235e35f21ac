#!/bin/bash
# The whole test run: what it needs, format, lints, walls, binaries, tests. `make test` and .ci/run are this.
# Every step runs even where an earlier one failed; the last line sums up cargo's results, and the exit code is 0 only if all went well.
set -uo pipefail
cd "$(dirname "$0")/.."
exec < /dev/null
export CARGO_TERM_COLOR=${CARGO_TERM_COLOR:-never}

passed=0 failed=0 ignored=0
broken=()
step() { # NAME COMMAND...
  local name=$1; shift
  echo "== $name"
  "$@" || broken+=("$name")
}
cargo_tests() { # NAME ARGUMENTS...: counts what cargo's test programs say
  local name=$1 out status p f i; shift
  out=$(mktemp)
  echo "== $name"
  cargo test --locked "$@" 2>&1 | tee "$out"
  status=${PIPESTATUS[0]}
  read -r p f i < <(awk '/^test result: / { p += $4; f += $6; i += $8 } END { print p + 0, f + 0, i + 0 }' "$out")
  rm -f "$out"
  passed=$((passed + p)) failed=$((failed + f)) ignored=$((ignored + i))
  # A test program that crashed says no result; nor does one that does not compile.
  [ "$status" = 0 ] || broken+=("$name")
}

step "what the tests need" tests/setup.sh
step "format" cargo fmt --all --check
step "lints" cargo clippy --locked --workspace --all-targets --quiet -- -D warnings
step "walls" tests/walls.sh
step "static shims" tests/shims.sh
step "binaries" cargo build --locked --workspace --quiet
WALKEEP_WEED=${WALKEEP_WEED:-$(tests/setup.sh --weed)}
export WALKEEP_WEED
cargo_tests "unit tests" --workspace --exclude walkeep-tests --no-fail-fast
# Stories start servers: a few at a time, however many cores there are.
cargo_tests "story tests" -p walkeep-tests --no-fail-fast -- --test-threads "${WALKEEP_TEST_THREADS:-3}"
# What could not be compared with is no success either.
missing=$(tests/setup.sh --list | grep '^SKIPPED')
[ -z "$missing" ] || { echo "$missing"; ignored=$((ignored + $(wc -l <<< "$missing"))); }

for name in "${broken[@]}"; do echo "not passed: $name"; done
[ ${#broken[@]} -gt 0 ] && [ "$failed" = 0 ] && failed=${#broken[@]}
echo "$passed passed, $failed failed, $ignored skipped"
[ ${#broken[@]} = 0 ] && [ "$failed" = 0 ]
