#!/usr/bin/python3
"""confined.py UNIT COMMAND...: runs a command under those restrictions of a systemd unit that a process can put on itself.

System calls, address families, memory that is both written and run, new privileges, open files, the umask: as systemd does it, by seccomp and prctl.
What is mounted how is its caller's work. x86-64.
"""
import ctypes
import errno
import os
import re
import resource
import struct
import subprocess
import sys

PR_SET_SECCOMP, SECCOMP_MODE_FILTER, PR_SET_NO_NEW_PRIVS, PR_SET_MDWE = 22, 2, 38, 65
# Of linux/bpf_common.h and linux/seccomp.h.
LOAD, EQUAL, RETURN = 0x20, 0x15, 0x06
ALLOW, ERRNO, KILL, AUDIT_ARCH_X86_64 = 0x7FFF0000, 0x00050000, 0x80000000, 0xC000003E
FAMILIES = {"AF_UNIX": 1, "AF_INET": 2, "AF_INET6": 10, "AF_NETLINK": 16}

libc = ctypes.CDLL(None, use_errno=True)


def directives(path):
    found = {}
    with open(path) as unit:
        for line in unit:
            name, equals, value = line.strip().partition("=")
            if equals and not name.startswith("#"):
                found.setdefault(name, []).append(value)
    return found


def prctl(option, *arguments):
    arguments = [ctypes.c_ulong(argument) if isinstance(argument, int) else argument for argument in arguments]
    arguments += [ctypes.c_ulong(0)] * (4 - len(arguments))
    if libc.prctl(option, *arguments) != 0:
        sys.exit(f"prctl({option}): {os.strerror(ctypes.get_errno())}")


def calls_of(group):
    """The names in a group of systemd's, and in those that it names."""
    lines = subprocess.run(["systemd-analyze", "syscall-filter", group], check=True, capture_output=True, text=True).stdout.splitlines()
    for line in (line.strip() for line in lines[1:]):
        if line.startswith("@"):
            yield from calls_of(line)
        elif line and not line.startswith("#"):
            yield line


def numbers():
    with open("/usr/include/x86_64-linux-gnu/asm/unistd_64.h") as header:
        return {name: int(number) for name, number in re.findall(r"#define __NR_(\w+) (\d+)", header.read())}


def program(unit):
    known = numbers()
    allowed = sorted({known[name] for group in unit["SystemCallFilter"] for name in calls_of(group) if name in known})
    families = [FAMILIES[name] for name in unit["RestrictAddressFamilies"][0].split()]
    refused = ERRNO | getattr(errno, unit["SystemCallErrorNumber"][0])

    def step(code, value, if_so=0, if_not=0):
        return struct.pack("HBBI", code, if_so, if_not, value)

    def one_of(values):
        return [part for value in values for part in (step(EQUAL, value, 0, 1), step(RETURN, ALLOW))]

    steps = [step(LOAD, 4), step(EQUAL, AUDIT_ARCH_X86_64, 1, 0), step(RETURN, KILL), step(LOAD, 0)]
    of_families = [step(LOAD, 16), *one_of(families), step(RETURN, ERRNO | errno.EAFNOSUPPORT)]
    steps += [step(EQUAL, known["socket"], 0, len(of_families)), *of_families]
    return steps + one_of(allowed) + [step(RETURN, refused)]


def main():
    unit, command = directives(sys.argv[1]), sys.argv[2:]
    os.umask(int(unit["UMask"][0], 8))
    files = int(unit["LimitNOFILE"][0])
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    steps = program(unit)
    assert unit["NoNewPrivileges"] == ["yes"] and unit["MemoryDenyWriteExecute"] == ["yes"]
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    prctl(PR_SET_MDWE, 1)
    code = ctypes.create_string_buffer(b"".join(steps))
    filter = struct.pack("HxxxxxxP", len(steps), ctypes.addressof(code))
    prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.create_string_buffer(filter))
    os.execvp(command[0], command)


main()
