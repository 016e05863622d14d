"""Who holds a claim, so that the death of a worker on this host is seen at once instead of when its lease ends.

An owner is `host/boot/pid-namespace:pid:start`, read from /proc (see proc(5)); on a system without it nobody is named,
and leases alone decide.
"""

from __future__ import annotations

import getpass
import os
import socket
from collections.abc import Iterable
from functools import cache
from pathlib import Path

_PROC = Path("/proc")
_START_TIME_FIELD = 19  # of /proc/PID/stat, counted from behind the process's name; field 22 in proc(5)


def this_process() -> str | None:
    """This process as an owner; None where its death could not be told."""
    here, start = _here(), _start_time(os.getpid())
    return f"{here}:{os.getpid()}:{start}" if here and start else None


def shown(owner: str) -> str:
    """An owner for people, as `process 4711 of HOST`."""
    here, pid, _ = owner.rsplit(":", 2)
    return f"process {pid} of {here.partition('/')[0]}"


def person() -> str:
    """Who acts by hand, as `user@host`; the user's number where this system has no name for it."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


def dead(owners: Iterable[str | None]) -> frozenset[str]:
    """Those owners that were processes of this host and are no more."""
    here = _here()
    return frozenset(owner for owner in owners if owner and here and _is_dead(owner, here))


def _is_dead(owner: str, here: str) -> bool:
    place, pid, start = owner.rsplit(":", 2)
    return place == here and _start_time(int(pid)) != start


@cache
def _here() -> str | None:
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
        namespace = (_PROC / "self/ns/pid").readlink()
    except OSError:
        return None
    return f"{socket.gethostname()}/{boot}/{str(namespace).strip('pid:[]')}"


def _start_time(pid: int) -> str | None:
    """When the process started, in clock ticks since boot: tells it from a later one with the same number."""
    try:
        stat = (_PROC / str(pid) / "stat").read_text()
    except OSError:
        return None
    state, *rest = stat.rpartition(")")[2].split()
    return None if state == "Z" else rest[_START_TIME_FIELD - 1]
