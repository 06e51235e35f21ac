#!/bin/bash
# Builds Walkeep and runs its demo: a throw-away PostgreSQL, a local repository, an accident, a host that dies in mid load, and the way back.
set -euo pipefail
cd "$(dirname "$0")/.."
tests/setup.sh --demo
built=$(packaging/build.sh)

# PostgreSQL refuses to run as root, and the target folder may lie where others cannot read.
bin=$(mktemp -d /tmp/walkeep-demo.XXXXXX)
trap 'rm -rf "$bin"' EXIT
cp "$built"/walkeep "$built"/walkeep-archive-cmd "$built"/walkeep-restore-cmd "$bin/"
chmod -R a+rX "$bin"
if [ "$(id -u)" = 0 ]; then
  cd /
  setpriv --reuid=postgres --regid=postgres --clear-groups env HOME=/tmp PATH="$bin:$PATH" "$bin/walkeep" demo "$@"
else
  PATH="$bin:$PATH" "$bin/walkeep" demo "$@"
fi
