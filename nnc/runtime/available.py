"""CPUs of this process, which they are, and memory that a call may still take: of the machine, its
control group, the process."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from functools import cache
from pathlib import Path

GROUPS = Path("/sys/fs/cgroup")
UNLIMITED = 1 << 60
SMALL = 1 << 26  # bytes; less is asked for without looking
_WORDS = ("vendor_id", "cpu family", "model", "stepping", "flags", "CPU part", "Features")


def cpu_count() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0))


@cache
def processor() -> tuple[str, ...]:
    """The first processor as the system describes it: equal ones get equal code from LLVM."""
    first = Path("/proc/cpuinfo").read_text().partition("\n\n")[0]
    rows = (line.partition(":") for line in first.splitlines())
    return os.uname().machine, *(f"{n}:{v}" for n, _, v in rows if n.strip() in _WORDS)


@cache
def physical() -> int:
    """Bytes of memory that the machine has."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def available() -> int:
    """Bytes that are free now, or can be made free, under every limit that holds here."""
    return max(0, min((physical(), *_limits())))


def fits(nbytes: int) -> bool:
    """Whether so many bytes can be had now. What is small is not looked at."""
    return nbytes <= SMALL or nbytes <= available()


def _limits() -> Iterator[int]:
    free = _field(Path("/proc/meminfo"), "MemAvailable:")
    if free is not None:
        yield free * 1024
    for group, most, used, cache_ in _groups():
        limit, now = _number(group / most), _number(group / used)
        if limit is not None and now is not None:
            yield limit - now + (_field(group / "memory.stat", cache_) or 0)
    most_bytes = resource.getrlimit(resource.RLIMIT_AS)[0]
    pages = _number(Path("/proc/self/statm"))
    if most_bytes != resource.RLIM_INFINITY and pages is not None:
        yield most_bytes - pages * os.sysconf("SC_PAGE_SIZE")


@cache
def _groups() -> tuple[tuple[Path, str, str, str], ...]:
    """Control groups of this process with a limit: folder and names of files and of a field."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return ()
    out = []
    for line in lines:
        number, kinds, path = line.split(":", 2)
        first = (GROUPS, "memory.max", "memory.current", "inactive_file")
        if number != "0" and "memory" in kinds.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            first = (GROUPS / "memory", *names)
        elif number != "0":
            continue
        folder = first[0] / path.lstrip("/")
        for group in (folder, *folder.parents):
            if not group.is_relative_to(first[0]):
                break
            if (_number(group / first[1]) or UNLIMITED) < UNLIMITED:
                out.append((group, *first[1:]))
    return tuple(out)


def _number(path: Path) -> int | None:
    """The first number of a file; None when there is none (`max`)."""
    try:
        return int(path.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return None


def _field(path: Path, name: str) -> int | None:
    try:
        words = path.read_text().split()
        return int(words[words.index(name) + 1])
    except (OSError, ValueError, IndexError):
        return None
