//! The Debian package: installed, upgraded, removed and purged on a copy of this machine that goes with the test; and the tarball beside it.

use std::path::{Path, PathBuf};
use std::process::Command;

use walkeep_tests::walkeep::{Output, binary, run};
use walkeep_tests::{Scratch, user};

fn sh(script: &str) -> Output {
    run(Command::new("sh").args(["-euc", script]))
}

/// The packages, made of the programs under test.
fn packages(scratch: &Scratch) -> (PathBuf, PathBuf) {
    let (from, to) = (scratch.dir("from"), scratch.dir("to"));
    for name in ["walkeep", "walkeep-archive-cmd", "walkeep-restore-cmd"] {
        let stripped = run(Command::new("strip").arg("-o").arg(from.join(name)).arg(binary(name)));
        assert!(stripped.ok(), "{stripped:?}");
    }
    let mut command = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../packaging/package.sh"));
    // How well it is compressed is not what is looked at here.
    command.env("DPKG_DEB_COMPRESSOR_TYPE", "none").arg("--from").arg(&from).arg("--to").arg(&to);
    let made = run(&mut command);
    assert!(made.ok(), "{made:?}");
    let paths: Vec<_> = made.stdout.lines().map(PathBuf::from).collect();
    (paths[0].clone(), paths[1].clone())
}

/// Runs it as root on a copy of this machine: what it changes goes into memory and is gone behind it.
fn on_a_copy(scratch: &Scratch, package: &Path, script: &str) -> Output {
    let place = scratch.dir("copy");
    let (place, package) = (place.display(), package.display());
    let file = scratch.write("script", script, 0o755);
    // mount -t overlay wants its upper folder on another kind of file system than an overlay, which a container's root may be.
    let command = format!(
        "mount -t tmpfs tmpfs {place}; mkdir {place}/up {place}/work {place}/root\n\
         mount -t overlay overlay -o lowerdir=/,upperdir={place}/up,workdir={place}/work {place}/root\n\
         mount -t proc proc {place}/root/proc; mount -t tmpfs tmpfs {place}/root/run\n\
         cp {package} {place}/root/tmp/walkeep.deb; cp {} {place}/root/tmp/script\n\
         chroot {place}/root /tmp/script",
        file.display()
    );
    run(Command::new("unshare").args(["--mount", "--pid", "--fork", "sh", "-euc", &command]))
}

const INSTALLED: &str = r#"#!/bin/bash
set -euxo pipefail
export DEBIAN_FRONTEND=noninteractive
# As on a host without PostgreSQL, or with it.
if [ "$1" = without ]; then userdel postgres; rm -rf /var/lib/postgresql; fi
dpkg --force-depends -i /tmp/walkeep.deb > /tmp/said 2>&1
grep -q 'fill in /etc/walkeep/walkeep.toml' /tmp/said
[ "$(stat -c '%a %U %G' /etc/walkeep)" = '750 root postgres' ]
[ "$(stat -c '%a %U %G' /etc/walkeep/walkeep.toml)" = '640 root postgres' ]
[ "$(stat -c '%a %U %G' /var/lib/walkeep)" = '700 postgres postgres' ]
walkeep --version | grep -q '^licence: MIT'
for program in walkeep walkeep-archive-cmd walkeep-restore-cmd; do [ "$(command -v $program)" = /usr/bin/$program ]; done
# What the example says is a configuration, which its user can read: only the repository is not there.
code=0; runuser -u postgres -- walkeep status > /tmp/said 2>&1 || code=$?
cat /tmp/said >&2; [ $code = 1 ]
systemd-analyze verify /usr/lib/systemd/system/walkeep.service /usr/lib/systemd/system/walkeep@main.service
zcat /usr/share/man/man1/walkeep-restore.1.gz | grep -q 'before'
bash -c 'source /usr/share/bash-completion/completions/walkeep; complete -p walkeep'
dpkg --verify walkeep
# An upgrade leaves the configuration and the spool alone.
echo '# mine' >> /etc/walkeep/walkeep.toml
echo wal > /var/lib/walkeep/000000010000000000000001
dpkg --force-depends -i /tmp/walkeep.deb > /tmp/said 2>&1
! grep -q 'fill in' /tmp/said
tail -n 1 /etc/walkeep/walkeep.toml | grep -q '# mine'
# So does a removal.
dpkg -r walkeep
[ ! -e /usr/bin/walkeep ] && [ ! -e /usr/lib/systemd/system/walkeep.service ]
[ -e /etc/walkeep/walkeep.toml ] && [ -e /var/lib/walkeep/000000010000000000000001 ]
# And whoever purges it keeps keys, and WAL that may be stored nowhere else.
echo AGE-SECRET-KEY > /etc/walkeep/identity.txt
dpkg -P walkeep > /tmp/said 2>&1
[ ! -e /etc/walkeep/walkeep.toml ] && [ -e /etc/walkeep/identity.txt ] && [ -e /var/lib/walkeep/000000010000000000000001 ]
[ "$(grep -c 'and stays' /tmp/said)" = 2 ]
echo all of it
"#;

#[test]
fn it_installs_upgrades_and_goes() {
    if !user::is_root() || !sh("command -v dpkg systemd-analyze strip unshare chroot").ok() {
        eprintln!("SKIPPED package: root, dpkg, systemd-analyze and binutils are needed");
        return;
    }
    let scratch = Scratch::new();
    let (package, tarball) = packages(&scratch);
    for host in ["with", "without"] {
        let ran = on_a_copy(&scratch, &package, &INSTALLED.replace("\"$1\"", host));
        if ran.stderr.contains("unknown filesystem type 'overlay'") || ran.stderr.contains("mount: ") {
            eprintln!("SKIPPED package: no overlay can be mounted here: {}", ran.stderr);
            return;
        }
        assert!(ran.ok() && ran.stdout.ends_with("all of it\n"), "{host} PostgreSQL's user: {}\n{}", ran.stdout, ran.stderr);
    }
    let unpacked = scratch.dir("unpacked");
    let ran = sh(&format!(
        "tar -C {0} -xzf {1}; {0}/*/usr/bin/walkeep --version; find {0}/*/usr/share/doc/walkeep",
        unpacked.display(),
        tarball.display()
    ));
    assert!(ran.ok() && ran.stdout.contains("licence: MIT"), "{ran:?}");
    for file in
        ["README.md", "runbook.md", "migration.md", "sizing.md", "examples/prometheus/walkeep.rules.yml", "examples/grafana/walkeep.json"]
    {
        assert!(ran.stdout.contains(&format!("/doc/walkeep/{file}\n")), "no {file}: {ran:?}");
    }
}
