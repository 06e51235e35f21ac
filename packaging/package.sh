#!/bin/bash
# A Debian package and a tarball, out of the three programs. Prints where they are.
#
#   packaging/package.sh               builds the programs first (packaging/build.sh)
#   packaging/package.sh --from DIR    takes them from there
#   packaging/package.sh --to DIR      puts the packages there [default: target/package]
set -euo pipefail
cd "$(dirname "$0")/.."
from= to=${CARGO_TARGET_DIR:-$PWD/target}/package
while [ $# -gt 0 ]; do
  case $1 in
    --from) from=$2; shift 2 ;;
    --to) to=$2; shift 2 ;;
    *) echo "usage: packaging/package.sh [--from DIR] [--to DIR]" >&2; exit 2 ;;
  esac
done
command -v dpkg-deb > /dev/null || { echo "dpkg-deb is needed, which Debian and Ubuntu have" >&2; exit 1; }
[ -n "$from" ] || from=$(packaging/build.sh)

version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml)
arch=$(dpkg --print-architecture)
# Of one source the same package, byte for byte: times are those of the last change.
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2> /dev/null || date +%s)}
export SOURCE_DATE_EPOCH
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
root=$work/root
umask 022

put() { install -D -m "$1" "$2" "$root/$3"; }
for program in walkeep walkeep-archive-cmd walkeep-restore-cmd; do put 755 "$from/$program" "usr/bin/$program"; done
doc=usr/share/doc/walkeep
for page in README.md CHANGELOG.md ARCHITECTURE.md packaging/runbook.md packaging/migration.md packaging/sizing.md packaging/comparison.md packaging/by-hand.md packaging/patroni.md packaging/kubernetes.md; do put 644 "$page" "$doc/${page##*/}"; done
# Links lead to where these files lie there.
sed -i -E 's#\]\(packaging/(runbook|migration|sizing|comparison|by-hand|patroni|kubernetes)\.md#](\1.md#g; s#\]\(packaging/pictures/#](pictures/#g; s#\]\(packaging/(iam|lifecycle|prometheus|grafana)/#](examples/\1/#g' "$root/$doc/README.md"
for picture in packaging/pictures/*.png; do put 644 "$picture" "$doc/pictures/${picture##*/}"; done
put 755 packaging/by-hand.py "$doc/by-hand.py"
put 644 LICENSE "$doc/copyright"
put 644 packaging/walkeep.example.toml "$doc/examples/walkeep.toml"
for kind in iam lifecycle prometheus grafana patroni; do
  for file in packaging/"$kind"/*; do put 644 "$file" "$doc/examples/$kind/${file##*/}"; done
done
(cd packaging && find kubernetes -type f) | while read -r file; do put 644 "packaging/$file" "$doc/examples/$file"; done
for unit in walkeep.service walkeep@.service; do
  put 644 "packaging/systemd/$unit" "usr/lib/systemd/system/$unit"
  sed -i 's|/usr/local/bin/|/usr/bin/|' "$root/usr/lib/systemd/system/$unit"
done
put 644 packaging/systemd/walkeep.tmpfiles.conf usr/lib/tmpfiles.d/walkeep.conf
install -d -m 755 "$root/usr/share/man/man1" "$root/usr/share/bash-completion/completions" "$root/usr/share/zsh/vendor-completions" \
  "$root/usr/share/fish/vendor_completions.d" "$root/etc/walkeep"
"$from/walkeep" man "$root/usr/share/man/man1" > /dev/null
gzip -9n "$root"/usr/share/man/man1/*.1
"$from/walkeep" completions bash > "$root/usr/share/bash-completion/completions/walkeep"
"$from/walkeep" completions zsh > "$root/usr/share/zsh/vendor-completions/_walkeep"
"$from/walkeep" completions fish > "$root/usr/share/fish/vendor_completions.d/walkeep.fish"

# ---- a tarball: the programs and everything beside them, without a package manager
mkdir -p "$to"
name=walkeep-$version-linux-$(uname -m)
tar --sort=name --owner=0 --group=0 --numeric-owner --mtime="@$SOURCE_DATE_EPOCH" --transform "s|^\.|$name|" -C "$root" -cf - . | gzip -9n > "$to/$name.tar.gz.new"
mv "$to/$name.tar.gz.new" "$to/$name.tar.gz"

# ---- the Debian package
# The C library that the agent was linked with is the oldest it runs on; the shims need none.
libc=$(objdump -T "$from/walkeep" 2> /dev/null | grep -o 'GLIBC_2\.[0-9]*' | sort -uV | tail -n 1 | sed 's/GLIBC_//' || true)
install -d -m 755 "$root/DEBIAN"
cat > "$root/DEBIAN/control" <<CONTROL
Package: walkeep
Version: $version
Architecture: $arch
Maintainer: Walkeep contributors <walkeep@localhost>
Installed-Size: $(du -sk "$root" | cut -f1)
Depends: libc6 (>= ${libc:-2.31}), adduser
Recommends: postgresql-common, ca-certificates
Section: database
Priority: optional
Description: WAL archiving and point-in-time recovery for PostgreSQL
 Streams every commit into a bucket or a directory about a second later, takes
 base backups, says which moment can be had back, and brings it back.
CONTROL
for script in postinst prerm postrm; do install -m 755 "packaging/debian/$script" "$root/DEBIAN/$script"; done
(cd "$root" && find . -type f -not -path './DEBIAN/*' -printf '%P\0' | sort -z | xargs -0 md5sum > DEBIAN/md5sums)
dpkg-deb --root-owner-group --build "$root" "$to/walkeep_${version}_$arch.deb" > /dev/null
echo "$to/walkeep_${version}_$arch.deb"
echo "$to/$name.tar.gz"
