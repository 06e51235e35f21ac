#!/usr/bin/env python3
"""Restores a cluster out of a copy of its repository, without Walkeep.

Needs python3 (its own library only), zstd, and age where the repository is encrypted. by-hand.md says how.

  by-hand.py ROOT backups
  by-hand.py ROOT restore BACKUP DIR [--identity FILE]
  by-hand.py ROOT fetch NAME DESTINATION [--identity FILE]      the restore_command: 0 done, 1 not there, 200 anything else

ROOT is the folder <cluster>/<system identifier> of the repository.
"""
import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path


class Trouble(Exception):
    """What stops the work, in words."""


def piped(command, data):
    """What a program makes of `data`."""
    done = subprocess.run(command, input=data, stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False)
    if done.returncode:
        raise Trouble(f"{command[0]}: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout


class Repository:
    def __init__(self, root, identity):
        self.root, self.identity = Path(root), identity
        known = sorted(self.root.parent.glob("cluster*.json"))
        self.encrypted = any(json.loads(path.read_text()).get("encryption") for path in known)

    def find(self, name):
        """An object by its key without .age; None if it is not there. Beside an encrypted cluster's a plain one is somebody else's, but for histories."""
        ends = ["", ".age"] if not self.encrypted or name.endswith(".history.zst") else [".age"]
        return next((path for end in ends if (path := self.root / (name + end)).is_file()), None)

    def read(self, path):
        """An object, decrypted."""
        data = path.read_bytes()
        if path.suffix != ".age":
            return data
        if not self.identity:
            raise Trouble(f"{path} is encrypted: say --identity FILE")
        return piped(["age", "-d", "-i", self.identity], data)

    def content(self, path, called=None):
        """What a zstd file holds; descriptions and notes in it are passed over. One of WAL must say of itself what it is called."""
        data = self.read(path)
        if called is not None:
            length = int.from_bytes(data[4:8], "little")
            found = json.loads(data[8:8 + length])["name"] if data[:4] == b"\x5f\x2a\x4d\x18" else "no WAL"
            if found != called:
                raise Trouble(f"{path} holds {found}: it was exchanged")
        return piped(["zstd", "-dcq"], data)

    def backups(self):
        """The records of backups, the oldest first; what has none was never finished."""
        found = [json.loads(path.read_text()) for path in self.root.glob("backups/*/backup.json")]
        return sorted(found, key=lambda record: record["id"])

    def manifest(self, record):
        """The lines of a backup's manifest, proven by the hash in its record."""
        folder, text, number = f"backups/{record['id']}/manifest", b"", 1
        while path := self.find(folder + (".zst" if number == 1 else f".{number}.zst")):
            text, number = text + self.content(path), number + 1
        *lines, last = text.splitlines(keepends=True)
        sums = {hashlib.sha256(b"".join(lines)).hexdigest(), json.loads(last)["sha256"], record["manifest_sha256"]}
        if len(sums) != 1:
            raise Trouble(f"{folder}.zst is damaged, or a piece of it is missing")
        return [json.loads(line) for line in lines]


class Packs:
    """Packs, each proven by its name and decrypted once; the last ones are kept."""

    def __init__(self, repository, names):
        self.repository, self.names, self.open = repository, names, {}

    def extent(self, number, offset, stored, plain):
        if number not in self.open:
            name = self.names[number]
            key = f"packs/{name[:2]}/{name}"
            path = self.repository.find(key) or self.repository.find(key + ".zst")
            if path is None:
                raise Trouble(f"{key} is not there")
            if hashlib.sha256(path.read_bytes()).hexdigest() != name:
                raise Trouble(f"{path} is damaged")
            if len(self.open) >= 4:
                self.open.pop(next(iter(self.open)))
            self.open[number] = self.repository.read(path)
        data = piped(["zstd", "-dcq"], self.open[number][offset:offset + stored])
        if len(data) != plain:
            raise Trouble(f"an extent of pack {self.names[number]} has {len(data)} bytes, expected {plain}")
        return data


def restore(repository, backup, to, identity):
    record = next((record for record in repository.backups() if record["id"] == backup), None)
    if record is None:
        raise Trouble(f"there is no backup {backup}")
    target = Path(to)
    if target.exists() and any(target.iterdir()):
        raise Trouble(f"{to} is not empty")
    lines = repository.manifest(record)
    packs = Packs(repository, {line["pack"]: line["id"] for line in lines if "pack" in line})
    entries = [line for line in lines if "path" in line]
    os.umask(0o077)
    target.mkdir(parents=True, exist_ok=True)
    tablespaces = []
    # Without pg_control no server starts: it is the last to come.
    for entry in sorted(entries, key=lambda entry: entry["path"] == "global/pg_control"):
        path = target / entry["path"]
        if not path.resolve().is_relative_to(target.resolve()):
            raise Trouble(f"{entry['path']!r} leads out of {to}")
        if entry["kind"] != "file":
            path.mkdir(parents=True, exist_ok=True)
            tablespaces += [entry["path"]] if entry["kind"] == "tablespace" else []
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        extents = entry.get("extents", [])
        runs = entry.get("runs") or [[index, 0, extent[3]] for index, extent in enumerate(extents)]
        read = {}
        with open(path, "wb") as file:
            for run in runs:
                if len(run) == 1:
                    file.seek(run[0], os.SEEK_CUR)
                    continue
                index, start, length = run
                if index not in read:
                    read = {index: packs.extent(*extents[index][:4])}
                file.write(read[index][start:start + length])
            file.truncate(entry["size"])
            os.fsync(file.fileno())
        path.chmod(entry["mode"])
    target.chmod(0o700)
    for name in ("standby.signal", "postmaster.pid"):
        (target / name).unlink(missing_ok=True)
    (target / "recovery.signal").touch()
    command = [sys.executable, os.path.abspath(__file__), os.path.abspath(repository.root), "fetch", "%f", "%p"]
    command += ["--identity", os.path.abspath(identity)] if identity else []
    with open(target / "postgresql.auto.conf", "a", encoding="utf-8") as conf:
        conf.write(f"\nrestore_command = '{' '.join(command)}'\narchive_mode = off\nprimary_conninfo = ''\nsynchronous_standby_names = ''\n")
    for path in tablespaces:
        print(f"a tablespace lies in {target / path}: move it, and put a link to it there")
    print(f"{to} is ready: look at postgresql.auto.conf, add a recovery_target if it is not to go on to the end, and start the server")


def parts(repository, folder):
    """The beginning of an unfinished segment. Where a later epoch begins, earlier ones count no more."""
    named = re.compile(r"([0-9A-F]{8})-([0-9A-F]{8})\.([0-9A-F]{8})\.zst(\.age)?$")
    found = [(match, path) for path in folder.iterdir() if (match := named.match(path.name))]
    data = b""
    for epoch in sorted({match[3] for match, _ in found}):
        own = sorted((int(match[1], 16), path) for match, path in found if match[3] == epoch)
        data = data[:own[0][0]]
        for start, path in own:
            if start > len(data):
                break
            stem = path.name.removesuffix(".age").removesuffix(".zst")
            piece = repository.content(path, f"{folder.name.removesuffix('.parts')} {stem}")
            data = data[:start] + piece + data[start + len(piece):]
    return data


def fetch(repository, name, destination):
    if not repository.root.joinpath("wal").is_dir():
        raise Trouble(f"{repository.root}/wal is not there: is it mounted?")
    folder = f"wal/{name[:8]}/{name[8:16]}"
    key = f"wal/{name}.zst" if name.endswith(".history") else f"{folder}/{name}.zst"
    if path := repository.find(key):
        data = repository.content(path, name)
    elif (folder := repository.root / folder / f"{name}.parts").is_dir() and (data := parts(repository, folder)):
        identity = json.loads(sorted(repository.root.parent.glob("cluster*.json"))[-1].read_text())
        data = data.ljust(identity["segment_size"], b"\0")
    else:
        return 1
    temporary = destination + ".by-hand"
    Path(temporary).write_bytes(data)
    os.rename(temporary, destination)
    return 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root")
    parser.add_argument("verb", choices=["backups", "restore", "fetch"])
    parser.add_argument("arguments", nargs="*")
    parser.add_argument("--identity", metavar="FILE")
    args = parser.parse_args()
    for program in ["zstd"] + (["age"] if args.identity else []):
        if shutil.which(program) is None:
            raise Trouble(f"{program} is not installed")
    repository = Repository(args.root, args.identity)
    if args.verb == "backups" and not args.arguments:
        for record in repository.backups():
            print(record["id"], record["ended_at"], f"timeline {record['timeline']}", record["start_lsn"], record["stop_lsn"], record["label"])
        return 0
    if len(args.arguments) != 2:
        parser.error(f"{args.verb} takes two arguments" if args.verb != "backups" else "backups takes none")
    if args.verb == "restore":
        restore(repository, *args.arguments, args.identity)
        return 0
    return fetch(repository, *args.arguments)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (Trouble, OSError, ValueError, KeyError) as trouble:
        what = str(trouble) if isinstance(trouble, (Trouble, OSError)) else repr(trouble)
        print(f"by-hand: {what}", file=sys.stderr)
        # PostgreSQL takes 1 to 125 for the end of the archive.
        sys.exit(200)
