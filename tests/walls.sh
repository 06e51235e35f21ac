#!/bin/bash
# Which crate may use which: the walls of ARCHITECTURE.md, checked on what cargo would link (no dev-dependencies).
set -euo pipefail
cd "$(dirname "$0")/.."

failed=0
wrong() { echo "wall: $*"; failed=1; }
# The names of everything CRATE links, itself left out; fails, and with it this script, where cargo does.
tree() {
  local lines
  lines=$(cargo tree --locked --quiet -p "$1" -e "${2:-normal,build}" --prefix none --target all) || { echo "wall: cargo tree -p $1 failed" >&2; exit 1; }
  awk 'NF { print $1 }' <<< "$lines" | sort -u | grep -vx -- "$1" || true
}
only() { # CRATE ALLOWED...: nothing else
  local crate=$1 found; shift
  found=$(tree "$crate")
  for name in $found; do [[ " $* " == *" $name "* ]] || wrong "$crate uses $name; it may use ${*:-nothing}"; done
}
never() { # CRATE REGEX: none that matches
  local found name
  found=$(tree "$1" normal)
  for name in $found; do [[ ! $name =~ ^($2)$ ]] || wrong "$1 uses $name"; done
}

only walkeep-protocol
only walkeep-archive-cmd walkeep-protocol
only walkeep-restore-cmd walkeep-protocol
never walkeep-core 'tokio.*|async-.*|futures.*|hyper.*|rustix|mio|socket2|nix|rand|getrandom|tempfile|iana-time-zone|walkeep.*|aws-.*|tracing.*'
never walkeep-store 'walkeep-core|walkeep-protocol|walkeep'
# One TLS stack, and no crypto library that wants cmake or the system's OpenSSL.
never walkeep 'openssl|openssl-sys|native-tls|aws-lc-sys|aws-lc-rs'
[ "$failed" = 0 ] && echo "walls: none is crossed"
exit "$failed"
