#!/usr/bin/env python3
"""Restores a cluster out of a copy of its repository, without Walkeep.

Needs python3 (its own library only), zstd, and age where the repository is encrypted. by-hand.md says how.

  by-hand.py ROOT backups
  by-hand.py ROOT restore BACKUP DIR [--identity FILE]
  by-hand.py ROOT fetch NAME DESTINATION [--identity FILE]      the restore_command: 0 done, 1 not there, 200 anything else

ROOT is the folder <cluster>/<system identifier> of the repository.
"""
import os

try:
    import argparse
    import hashlib
    import json
    import re
    import shlex
    import shutil
    import subprocess
    import sys
    from pathlib import Path
except BaseException as trouble:
    # Without memory, say. PostgreSQL takes 1 to 125, and python's own 1 too, for the end of the archive.
    try:
        os.write(2, f"by-hand: python3 does not work: {trouble!r}\n".encode())
    finally:
        os._exit(200)

# What restore_command's shell asks for and makes 1 of: python3 ends with 1 of itself where it cannot begin, and never with this.
ABSENT = 44
# Of an earlier recovery, or of a standby: taken out of postgresql.auto.conf, and overruled where they stand in postgresql.conf.
TARGETS = ["recovery_target", "recovery_target_lsn", "recovery_target_name", "recovery_target_time", "recovery_target_xid"]
EMPTIED = ["archive_cleanup_command", "recovery_end_command", "primary_conninfo", "primary_slot_name", "synchronous_standby_names"]
SETTING = re.compile(rb"\s*(recovery_target\w*|restore_command|archive_cleanup_command|recovery_end_command|recovery_min_apply_delay|"
                     rb"primary_conninfo|primary_slot_name|promote_trigger_file)\b", re.IGNORECASE)
WAL_FILE = re.compile(r"[0-9A-F]{8}\.history|[0-9A-F]{24}(\.partial|\.[0-9A-F]{8}\.backup)?")
# In the repository. Of an encrypted cluster plain ones are not Walkeep's; but that something is there they do tell.
STORED = re.compile(r"([0-9A-F]{24})(\.partial)?\.zst(\.age)?")
PARTS = re.compile(r"([0-9A-F]{24})\.parts")
PART = re.compile(r"([0-9A-F]{8})-([0-9A-F]{8})\.([0-9A-F]{8})\.zst(\.age)?")
GAP = re.compile(r"([0-9A-F]{8})-([0-9A-F]{16})-([0-9A-F]{16})\.json")


class Trouble(Exception):
    """What stops the work, in words."""


def piped(command, data):
    """What a program makes of `data`."""
    done = subprocess.run(command, input=data, stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False)
    if done.returncode:
        raise Trouble(f"{command[0]}: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout


def is_there(path):
    """Whether a file is there. What cannot be looked at is not absent."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def listed(folder):
    """What lies in a folder, in order; nothing in one that is not there."""
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def lsn(position):
    """A position in the WAL as PostgreSQL writes it."""
    return f"{position >> 32:X}/{position & 0xFFFFFFFF:X}"


def sealed(path):
    """A record as it was written: its last field is the SHA-256 of the text before that."""
    data = path.read_bytes()
    try:
        record = json.loads(data)
    except ValueError as error:
        raise Trouble(f"{path} is damaged: {error}") from error
    if not isinstance(record, dict):
        raise Trouble(f"{path} is damaged: it is no record")
    fields, _, seal = data.rpartition(b',\n  "sha256": "')
    if "sha256" in record and seal != hashlib.sha256(fields).hexdigest().encode() + b'"\n}\n':
        raise Trouble(f"{path} is damaged: its own SHA-256 is another one")
    return record


class Repository:
    def __init__(self, root, identity):
        self.root, self.identity = Path(root), identity
        # By its path as it was given, or where a link leads.
        folders = [Path(os.path.abspath(root)).parent, self.root.resolve().parent]
        paths = next((paths for folder in folders if (paths := list(folder.glob("cluster*.json")))), [])
        if not paths:
            raise Trouble(f"there is no cluster.json in {folders[0]}: it lies beside ROOT in the repository, and says whether objects are encrypted "
                          f"and how long a WAL segment is. Copy <cluster>/cluster*.json there")
        known = [sealed(path) for path in paths]
        # Of several clusters that had the name, ROOT's.
        own = [record for record in known if str(record["system_identifier"]) == self.root.resolve().name] or known
        self.systems = {str(record["system_identifier"]) for record in own}
        self.encrypted = any(record.get("encryption") for record in own)
        sizes = {record["segment_size"] for record in own}
        if len(sizes) != 1:
            raise Trouble(f"the records {folders[0]}/cluster*.json disagree on segment_size, and none is of {self.root.resolve().name}")
        self.segment_size = sizes.pop()

    def find(self, name):
        """An object by its key without .age; None if it is not there. Beside an encrypted cluster's a plain one is somebody else's, but for histories."""
        ends = ["", ".age"] if not self.encrypted or name.endswith(".history.zst") else [".age"]
        return next((path for end in ends if is_there(path := self.root / (name + end))), None)

    def read(self, path):
        """An object, decrypted."""
        data = path.read_bytes()
        if path.suffix != ".age":
            return data
        if not self.identity:
            raise Trouble(f"{path} is encrypted: say --identity FILE")
        return piped(["age", "-d", "-i", self.identity], data)

    def content(self, path, called=None, start=None):
        """What a zstd file holds; descriptions and notes in it are passed over. One of WAL must say of itself what it is called, whose it is and where it begins."""
        data, said = self.read(path), {"name": "no WAL"}
        if called is not None:
            if data[:4] == b"\x5f\x2a\x4d\x18":
                said = json.loads(data[8:8 + int.from_bytes(data[4:8], "little")])
            if said["name"] != called:
                raise Trouble(f"{path} holds {said['name']}: it was exchanged")
            if str(said["system_identifier"]) not in self.systems:
                raise Trouble(f"{path} is of another cluster: it says {said['system_identifier']}")
            if said.get("start") != (None if start is None else lsn(start)):
                raise Trouble(f"{path} says that it begins at {said.get('start')}: it was exchanged")
        plain = piped(["zstd", "-dcq"], data)
        # Cut off behind its description it is a valid file still, of nothing.
        if len(plain) != said.get("length", len(plain)):
            raise Trouble(f"{path} is damaged: it holds {len(plain)} bytes, and says {said['length']}")
        return plain

    def start(self, segment):
        """Where a segment begins in the WAL."""
        number = int(segment[16:24], 16)
        if number * self.segment_size >= 1 << 32:
            raise Trouble(f"{segment} cannot be a segment of this cluster, whose segments have {self.segment_size} bytes")
        return (int(segment[8:16], 16) << 32) + number * self.segment_size

    def wal(self, timeline, log=""):
        """The WAL that is stored of a timeline, from a folder on: the segment, whether it is a .partial, and the path."""
        for folder in listed(self.root / "wal" / timeline):
            for path in listed(folder) if folder.name >= log else []:
                if match := STORED.fullmatch(path.name):
                    yield match[1], bool(match[2]), path
                elif match := PARTS.fullmatch(path.name):
                    yield from ((match[1], False, part) for part in listed(path) if PART.fullmatch(part.name))

    def begins(self, timeline):
        """Where a timeline left its parent, by its history; 0 if that is not stored."""
        path = self.find(f"wal/{timeline}.history.zst")
        text = self.content(path, f"{timeline}.history").decode() if path else ""
        lines = [line.split() for line in text.splitlines() if line.strip() and not line.strip().startswith("#")]
        high, low = lines[-1][1].split("/") if lines else ("0", "0")
        return (int(high, 16) << 32) + int(low, 16)

    def backup(self, path):
        """The record of a backup; what has none was never finished."""
        record = sealed(path)
        if record.get("id") != path.parent.name:
            raise Trouble(f"{path} is the record of another backup")
        return record

    def backups(self):
        """The records of backups, the oldest first. One that is damaged says nothing of the others."""
        for path in sorted(self.root.glob("backups/*/backup.json")):
            try:
                yield self.backup(path)
            except (Trouble, OSError) as trouble:
                print(f"by-hand: left out: {trouble}", file=sys.stderr)

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


def restore_command(repository, identity):
    """What PostgreSQL's shell is to run. 1 is for what is proven to be absent, and for nothing that befalls python3 or the shell."""
    quote = lambda words: " ".join(shlex.quote(word).replace("%", "%%") for word in words)
    program = quote([sys.executable, os.path.abspath(__file__), os.path.abspath(repository.root), "fetch"])
    options = quote(["--absent", str(ABSENT)] + (["--identity", os.path.abspath(identity)] if identity else []))
    line = f'{program} "%f" "%p" {options}; s=$?; [ $s -eq {ABSENT} ] && exit 1; [ $s -eq 0 ] || exit 200'
    # PostgreSQL 15 and older cut it off there, names included.
    if len(os.fsencode(line)) > 960:
        raise Trouble("restore_command would be longer than PostgreSQL takes: use shorter paths for ROOT, this script and the identity")
    return line


def quoted(value):
    """A value in a configuration file. Backslashes are escapes there, and a line ends it."""
    for plain, escaped in [("\\", "\\\\"), ("'", "''"), ("\n", "\\n"), ("\r", "\\r")]:
        value = value.replace(plain, escaped)
    return f"'{value}'"


def settings(target, command):
    """Takes what an earlier recovery left out of postgresql.auto.conf, whose later lines win, and adds this one's."""
    path = target / "postgresql.auto.conf"
    before = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    kept = b"".join(line for line in before if not SETTING.match(line))
    lines = [f"restore_command = {quoted(command)}", "archive_mode = 'off'", "recovery_min_apply_delay = 0"]
    lines += [f"{name} = ''" for name in EMPTIED + TARGETS]
    lines += ["recovery_target_timeline = 'latest'", "recovery_target_inclusive = on", "recovery_target_action = 'pause'"]
    with open(path, "wb") as conf:
        conf.write(kept + b"\n# Added by by-hand.py.\n" + os.fsencode("\n".join(lines) + "\n"))
        conf.flush()
        os.fsync(conf.fileno())


def restore(repository, backup, to, identity):
    path = repository.root / "backups" / os.path.basename(backup) / "backup.json"
    if not is_there(path):
        raise Trouble(f"there is no backup {backup}")
    record = repository.backup(path)
    target = Path(to)
    if target.exists() and any(target.iterdir()):
        raise Trouble(f"{to} is not empty")
    command = restore_command(repository, identity)
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
    settings(target, command)
    (target / "recovery.signal").touch()
    for path in tablespaces:
        print(f"a tablespace lies in {target / path}: move it, and put a link to it there")
    print(f"{to} is ready: look at postgresql.auto.conf, add a recovery_target if it is not to go on to the end, and start the server")


def parts(repository, folder):
    """The beginning of an unfinished segment. Where a later epoch begins, earlier ones count no more."""
    segment = folder.name.removesuffix(".parts")
    named = [(*(int(match[field], 16) for field in (1, 2, 3)), path) for path in listed(folder) if (match := PART.fullmatch(path.name))]
    found = [part for part in named if part[3].suffix == ".age" or not repository.encrypted]
    counting = []
    for start, end, epoch, path in found:
        counts_to = min([end] + [begins for begins, _, other, _ in found if other > epoch])
        counting += [(start, end, counts_to, path)] if counts_to > start else []
    data = b""
    while following := [part for part in counting if part[0] <= len(data) < part[2]]:
        start, end, counts_to, path = max(following, key=lambda part: part[2])
        stem = path.name.removesuffix(".age").removesuffix(".zst")
        piece = repository.content(path, f"{segment} {stem}", repository.start(segment) + start)
        if len(piece) != end - start:
            raise Trouble(f"{path} is damaged: it holds {len(piece)} bytes, and its name says {end - start}")
        piece = piece[:counts_to - start]
        if data[start:] != piece[:len(data) - start]:
            raise Trouble(f"{path} contradicts the part before it")
        data = data[:start] + piece
    # What others put beside them is passed over, unless it may be what is missing.
    for _, end, _, path in named:
        if end > len(data) and path.suffix != ".age":
            refuse_plain(repository, path)
    if behind := sorted(part for part in counting if part[0] > len(data)):
        raise Trouble(f"of the unfinished segment the bytes from {len(data)} to {behind[0][0]} are missing, and {behind[0][3]} lies behind them: "
                      f"to recover up to there take {len(behind)} of {folder} out of the copy, all that begin behind it")
    return data


def refuse_plain(repository, path):
    """Nobody knows who wrote it: it is not given; and as what it may have been is gone, nothing is absent."""
    if repository.encrypted and is_there(path):
        raise Trouble(f"{path} is plain, in an encrypted cluster: if it was decrypted in this copy, put the .age file back in its place; "
                      f"if it is somebody else's, take it out")


def prove_end(repository, segment, reached):
    """Fails if something is stored that was written behind the first bytes of a segment, which are all that there is of it: that is a hole, and no end."""
    timeline, start = segment[:8], repository.start(segment)
    missing = f"{segment} from byte {reached} on" if reached else segment
    for name, partial, path in repository.wal(timeline, segment[8:16]):
        # A .partial of this very segment says nothing of what comes behind it.
        if name > segment or (name == segment and not reached and not partial):
            if not reached and start // repository.segment_size < repository.begins(timeline) // repository.segment_size:
                return
            raise Trouble(f"hole in the archive: {missing} is missing, but {path} is stored")
    for path in listed(repository.root / "gaps"):
        if (match := GAP.fullmatch(path.name)) and match[1] == timeline:
            begin, end = int(match[2], 16), int(match[3], 16)
            if begin < start + repository.segment_size and start + reached < end:
                raise Trouble(f"hole in the archive: {missing} is missing, and {path} tells of a gap there: the server did write WAL")


def prove_no_timeline(repository, history):
    """Fails if anything is stored of a timeline whose history is not, or of a later one: PostgreSQL would look no further, and take its number again."""
    timeline = history[:8]
    if timeline == "00000001":
        return
    for path in listed(repository.root / "wal"):
        if path.name > timeline and WAL_FILE.fullmatch(path.name.removesuffix(".zst")):
            raise Trouble(f"hole in the archive: {history} is missing, but {path} is stored")
        stored = repository.wal(path.name) if path.name >= timeline else []
        for _, _, wal in stored:
            raise Trouble(f"hole in the archive: {history} is missing, but {wal} is stored")


def fetch(repository, name, destination, absent):
    if WAL_FILE.fullmatch(name) is None:
        raise Trouble(f"{name} is no WAL file's name")
    if not repository.root.joinpath("wal").is_dir():
        raise Trouble(f"{repository.root}/wal is not there: is it mounted?")
    folder = f"wal/{name[:8]}/{name[8:16]}"
    key = f"wal/{name}.zst" if name.endswith(".history") else f"{folder}/{name}.zst"
    is_segment = len(name) == 24
    start = repository.start(name[:24]) if is_segment or name.endswith(".partial") else None
    if path := repository.find(key):
        data = repository.content(path, name, start)
        if is_segment and len(data) != repository.segment_size:
            raise Trouble(f"{path} is damaged: a segment has {repository.segment_size} bytes, and it holds {len(data)}")
    else:
        refuse_plain(repository, repository.root / key)
        data = parts(repository, repository.root / folder / f"{name}.parts") if is_segment else b""
        if name.endswith(".history"):
            prove_no_timeline(repository, name)
        if is_segment and len(data) < repository.segment_size:
            prove_end(repository, name, len(data))
        if not data:
            return absent
        data = data.ljust(repository.segment_size, b"\0")
    temporary = destination + ".by-hand"
    Path(temporary).write_bytes(data)
    os.rename(temporary, destination)
    return 0


class Parser(argparse.ArgumentParser):
    def error(self, message):
        raise Trouble(f"{message}; {self.format_usage().strip()}")


def main():
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root")
    parser.add_argument("verb", choices=["backups", "restore", "fetch"])
    parser.add_argument("arguments", nargs="*")
    parser.add_argument("--identity", metavar="FILE")
    parser.add_argument("--absent", metavar="CODE", type=int, default=1, help=argparse.SUPPRESS)
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
    return fetch(repository, *args.arguments, args.absent)


if __name__ == "__main__":
    code = 200
    try:
        code = main()
        sys.stdout.flush()
    except SystemExit as ended:
        code = ended.code or 0
    # PostgreSQL takes 1 to 125 for the end of the archive: whatever it is that was not expected, it is none of these.
    except BaseException as trouble:
        code = 200
        what = str(trouble) if isinstance(trouble, (Trouble, OSError)) else repr(trouble)
        print(f"by-hand: {what}", file=sys.stderr)
    finally:
        os._exit(code)
