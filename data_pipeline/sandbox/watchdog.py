"""Measures what a sandbox takes, from outside, and says when it takes too much.

Only the sandbox's own /proc and disks are looked at, through folders opened before the first
command ran: one look costs a few system calls a process.  A process is charged its anonymous
memory, swap and page tables; shared memory and the disk (a tmpfs) are charged once, as the larger
of the two, since files of the disk that are mapped count as shared memory too.  Pipes and sockets
are charged by `buffers.py`.
"""

import contextlib
import dataclasses
import os
import re
import time

from data_pipeline.sandbox import buffers
from data_pipeline.sandbox import limits as limits_lib

LOOK_EVERY_S = 0.1
LOOK_SOON_S = 0.02  # once half of the memory is taken
_CROWDED_S = 3.0  # this long near the limit of processes is a fork bomb, not a peak
_CROWDED_SHARE = 0.9
_INODE_BYTES = 1024  # kernel memory of an empty file, about
_HOST_RESERVE_BYTES = 256 << 20
_KIB = 1024
_FIELD = re.compile(rb"^(\w+):\s+(\d+)", re.MULTILINE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Usage:
    """What a sandbox takes at one moment.

    Attributes:
        num_processes: processes and threads.
        private_bytes: anonymous memory, swap and page tables.
        shared_bytes: shared memory that processes have mapped.
        disk_bytes: what the writable disks hold, with their inodes.
        buffer_bytes: what pipes and sockets can hold; pipes only where that could be too much.
        num_files: room for open files, of all processes.
        disk_full: there is no room left on the root's disk.
    """

    num_processes: int
    private_bytes: int
    shared_bytes: int
    disk_bytes: int
    buffer_bytes: int
    num_files: int
    disk_full: bool

    @property
    def memory_bytes(self) -> int:
        """Memory of the machine that the sandbox holds."""
        return self.private_bytes + max(self.shared_bytes, self.disk_bytes) + self.buffer_bytes


class Watchdog:
    """Looks at one sandbox.

    Args:
        init: PID of the sandbox's first process, as the machine counts.
        disks: mount points inside; the first is the root's.
        network: it shares the machine's.
        limits: what it may take.

    Raises:
        OSError: where this user may not look into the sandbox.
    """

    def __init__(
        self, init: int, *, disks: tuple[str, ...], network: bool, limits: limits_lib.Limits
    ):
        self._limits = limits
        self._born_s = self._looked_s = time.monotonic()
        self._crowded_s = 0.0
        with contextlib.ExitStack() as stack:
            self._proc = _open(f"/proc/{init}/root/proc", stack)
            self._disks = [_open(f"/proc/{init}/root{disk}", stack) for disk in disks]
            self._buffers = buffers.Buffers(self._proc, shares_network=network)
            self._open = stack.pop_all()

    def close(self) -> None:
        """Let go of the sandbox's folders."""
        self._open.close()

    def look(self) -> Usage:
        """Measure."""
        usage, opened = self._measure(_of_status), 0
        most = usage.memory_bytes + self._buffers.most_bytes(usage.num_files)
        if most > self._limits.memory_bytes:
            opened = self._buffers.open_bytes()
        if usage.memory_bytes + opened > self._limits.memory_bytes:
            # Pages that a fork shares were counted once a process: count them exactly.
            usage = self._measure(_of_pages)
        return dataclasses.replace(usage, buffer_bytes=usage.buffer_bytes + opened)

    def next_look_s(self, usage: Usage) -> float:
        """How long to wait before the next look."""
        near = usage.memory_bytes > self._limits.memory_bytes // 2
        return LOOK_SOON_S if near else LOOK_EVERY_S

    def verdict(self, usage: Usage) -> tuple[str, str] | None:
        """Why the sandbox must end (a status and a sentence), or None."""
        limits, now_s = self._limits, time.monotonic()
        if usage.memory_bytes > limits.memory_bytes:
            parts = f"{usage.disk_bytes >> 20} on its disk, {usage.buffer_bytes >> 20} in buffers"
            took = f"{usage.memory_bytes >> 20} MiB of memory ({parts})"
            return "out_of_memory", f"it took {took}; memory_mb={limits.memory_mb} is the limit"
        if _available_bytes() < _HOST_RESERVE_BYTES:
            left = f"fewer than {_HOST_RESERVE_BYTES >> 20} MiB of memory left"
            return "machine_out_of_memory", f"the machine has {left}; run fewer sandboxes at once"
        if self._is_crowded(usage, now_s):
            limit = f"max_processes={limits.max_processes}"
            return "too_many_processes", f"it stayed at its limit of {limit} for {_CROWDED_S:g} s"
        if now_s - self._born_s > limits.lifetime_s:
            return "lifetime", f"its lifetime_s={limits.lifetime_s:g} is over"
        return None

    def _is_crowded(self, usage: Usage, now_s: float) -> bool:
        """Whether it was near its limit of processes for longer, of late, than it was not."""
        since_s, self._looked_s = now_s - self._looked_s, now_s
        is_near = usage.num_processes >= _CROWDED_SHARE * self._limits.max_processes
        self._crowded_s = max(0.0, self._crowded_s + (since_s if is_near else -since_s))
        return self._crowded_s > _CROWDED_S

    def _measure(self, of_process) -> Usage:
        num_processes = private = shared = num_files = 0
        for name in os.listdir(self._proc):
            if name.isdigit():
                # It may have ended since.
                with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                    threads, own, common, files = of_process(self._proc, name)
                    num_processes += threads
                    private += own
                    shared += common
                    num_files += files
        found = [os.fstatvfs(disk) for disk in self._disks]
        disk = sum(
            (at.f_blocks - at.f_bfree) * at.f_frsize + (at.f_files - at.f_ffree) * _INODE_BYTES
            for at in found
        )
        return Usage(
            num_processes=num_processes,
            private_bytes=private,
            shared_bytes=shared,
            disk_bytes=disk,
            buffer_bytes=self._buffers.socket_bytes(),
            num_files=num_files,
            disk_full=found[0].f_bfree == 0 or found[0].f_ffree == 0,
        )


def _open(path: str, stack: contextlib.ExitStack) -> int:
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    stack.callback(os.close, folder)
    return folder


def _fields(proc: int, path: str) -> dict[bytes, int]:
    """Name -> number of a file of /proc; sizes are KiB there."""
    file = os.open(path, os.O_RDONLY, dir_fd=proc)
    try:
        return {name: int(value) for name, value in _FIELD.findall(os.read(file, 16384))}
    finally:
        os.close(file)


def _of_status(proc: int, name: str) -> tuple[int, int, int, int]:
    """Threads, private bytes, shared bytes, room for files; quick, counts forked pages twice."""
    found = _fields(proc, f"{name}/status")
    own = sum(found.get(field, 0) for field in (b"RssAnon", b"VmSwap", b"VmPTE"))
    shared = found.get(b"RssShmem", 0)
    return found.get(b"Threads", 1), own * _KIB, shared * _KIB, found.get(b"FDSize", 0)


def _of_pages(proc: int, name: str) -> tuple[int, int, int, int]:
    """The same, each page divided by the number of processes that hold it; slow."""
    threads, own, _, num_files = _of_status(proc, name)
    try:
        pages = _fields(proc, f"{name}/smaps_rollup")
    except PermissionError:
        return _of_status(proc, name)
    if b"Pss_Anon" not in pages:  # a zombie, or a kernel before 5.4
        return threads, own, 0, num_files
    found = _fields(proc, f"{name}/status")
    own = pages[b"Pss_Anon"] + found.get(b"VmSwap", 0) + found.get(b"VmPTE", 0)
    return threads, own * _KIB, pages[b"Pss_Shmem"] * _KIB, num_files


def _available_bytes() -> int:
    """Memory that the machine can still give."""
    with open("/proc/meminfo", "rb") as file:
        found = dict(_FIELD.findall(file.read()))
    return int(found[b"MemAvailable"]) * _KIB
