"""A control group of the sandbox's own (cgroup v2), where this user may make one.

It holds memory, processes and CPU time exactly, where the watchdog is a moment late.  Where there
is none (no cgroup v2, or none delegated to this user) the sandbox relies on the watchdog and the
per-process limits, which are always on.
"""

import contextlib
import pathlib
import secrets
import time

from data_pipeline.sandbox import limits as limits_lib

_ROOT = pathlib.Path("/sys/fs/cgroup")
_CPU_PERIOD_US = 100_000
_EMPTY_WITHIN_S = 2.0


class Cgroup:
    """One control group; made by `create`."""

    def __init__(self, folder: pathlib.Path):
        self._folder = folder

    def add(self, pid: int) -> bool:
        """Move a process in, with all that it starts later; whether that was allowed."""
        try:
            (self._folder / "cgroup.procs").write_text(str(pid))
        except OSError:
            return False
        return True

    def was_out_of_memory(self) -> bool:
        """Whether the kernel had to kill for this group's limit, not for the machine's memory."""
        with contextlib.suppress(OSError):
            lines = (self._folder / "memory.events").read_text().splitlines()
            counts = dict(line.split(maxsplit=1) for line in lines)
            # The machine's shortage counts as oom_kill too, but reaches no limit of the group.
            return all(counts.get(name, "0") != "0" for name in ("oom", "oom_kill"))
        return False

    def remove(self) -> None:
        """Remove the group; its processes have been killed, the kernel may take a moment."""
        deadline_s = time.monotonic() + _EMPTY_WITHIN_S
        while time.monotonic() < deadline_s:
            try:
                self._folder.rmdir()
                return
            except FileNotFoundError:
                return
            except OSError:
                time.sleep(0.02)


def _candidates() -> list[pathlib.Path]:
    """Groups below which a new one could be made: beside our own, or below it."""
    with contextlib.suppress(OSError):
        for line in pathlib.Path("/proc/self/cgroup").read_text().splitlines():
            if line.startswith("0::"):
                own = _ROOT / line[3:].lstrip("/")
                return [own.parent, own] if own != _ROOT else [own]
    return []


def create(limits: limits_lib.Limits) -> Cgroup | None:
    """A control group with these limits, or None where this user cannot make one."""
    for parent in _candidates():
        with contextlib.suppress(OSError):
            controllers = (parent / "cgroup.subtree_control").read_text().split()
            if {"memory", "pids"} <= set(controllers):
                return _make(parent / f"sandbox-{secrets.token_hex(8)}", controllers, limits)
    return None


def _make(folder: pathlib.Path, controllers: list[str], limits: limits_lib.Limits) -> Cgroup:
    folder.mkdir()
    settings = {
        "memory.max": str(limits.memory_bytes),
        "pids.max": str(limits.max_processes + 8),  # bubblewrap and the supervisor besides
    }
    if "cpu" in controllers:
        settings["cpu.max"] = f"{limits.cpus * _CPU_PERIOD_US} {_CPU_PERIOD_US}"
    try:
        for name, value in settings.items():
            (folder / name).write_text(value)
        for name, value in (("memory.swap.max", "0"), ("memory.oom.group", "1")):
            if (folder / name).exists():  # not every kernel has them
                (folder / name).write_text(value)
    except OSError:
        folder.rmdir()
        raise
    return Cgroup(folder)
