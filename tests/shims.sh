#!/bin/bash
# The shims as they are installed need no shared library: archive_command must not depend on what an upgrade does to the system.
set -euo pipefail
cd "$(dirname "$0")/.."
dist=$(packaging/build.sh shims)
for shim in walkeep-archive-cmd walkeep-restore-cmd; do
  if readelf -d "$dist/$shim" 2>/dev/null | grep -q '(NEEDED)'; then
    echo "$shim needs shared libraries:" >&2
    readelf -d "$dist/$shim" | grep '(NEEDED)' >&2
    exit 1
  fi
  "$dist/$shim" --version > /dev/null
  echo "$shim: static, $(stat -c %s "$dist/$shim") bytes"
done
