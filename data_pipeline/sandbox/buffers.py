"""What the kernel holds for a sandbox in pipes and sockets; no process is charged with it.

Each is charged the most that it can hold at its default size, filled or not: how full a Unix socket
is, no file tells, and the filter (`seccomp.py`) lets none be made larger.  TCP alone grows by
itself, and tells what it holds.  The sockets of a sandbox with a network of its own are counted by
the kernel, wherever they are: open, closed and unread, on the way through another socket.
"""

import contextlib
import os
import pathlib
import re
import stat

PIPE_BYTES = 64 << 10  # 16 pages
_DEFAULTS = ("wmem_default", "rmem_default")
_USUAL_DEFAULT = 212_992
_OVERSHOOT = 2  # a datagram as large as the buffer is let in while the buffer is not yet full
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_TCP_NOTICED_BYTES = 8 << 20  # of the whole machine; below, nobody's queues are added up
_TCP_OVERHEAD = 2  # memory of a queue over its bytes
_USED = re.compile(rb"^sockets: used (\d+)", re.MULTILINE)
_TCP = re.compile(rb"^TCP6?: inuse (\d+)", re.MULTILINE)
_TCP_PAGES = re.compile(rb"^TCP: .* mem (\d+)", re.MULTILINE)
_QUEUES = re.compile(rb" ([0-9A-F]{8}):([0-9A-F]{8}) ")  # to be sent, to be read


class Buffers:
    """Counts the pipes and sockets of one sandbox.

    Args:
        proc: a descriptor of its /proc.
        shares_network: its sockets are among the machine's, so only open ones are found.
    """

    def __init__(self, proc: int, *, shares_network: bool):
        self._proc = proc
        self._shares_network = shares_network
        self._socket_bytes = _OVERSHOOT * _default_bytes()

    def most_bytes(self, num_files: int) -> int:
        """No less than what that many open files hold, besides `socket_bytes`."""
        return num_files * (self._socket_bytes if self._shares_network else PIPE_BYTES)

    def socket_bytes(self) -> int:
        """Sockets of a network of its own; quick."""
        if self._shares_network:
            return 0
        found = self._read("sockstat") + self._read("sockstat6")
        num_tcp = sum(int(number) for number in _TCP.findall(found))
        num_others = max(0, sum(int(number) for number in _USED.findall(found)) - num_tcp)
        machine = sum(int(number) for number in _TCP_PAGES.findall(found)) * _PAGE_BYTES
        tcp = min(machine, self._queued_bytes()) if machine > _TCP_NOTICED_BYTES else 0
        return num_others * self._socket_bytes + tcp

    def open_bytes(self) -> int:
        """Open pipes, and sockets of the machine's network, each once; asks for every open file.

        Pipes on the way through a socket are not found: they are no more than one process may
        open.
        """
        pipes, sockets = set(), set()
        for name in filter(str.isdigit, os.listdir(self._proc)):
            # The process, or the file, may be gone meanwhile; PID 1 may be out of reach.
            with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
                for mode, file in self._files_of(name):
                    if stat.S_ISFIFO(mode):
                        pipes.add(file)
                    elif stat.S_ISSOCK(mode):
                        sockets.add(file)
        num_sockets = len(sockets) if self._shares_network else 0
        return len(pipes) * PIPE_BYTES + num_sockets * self._socket_bytes

    def _files_of(self, name: str):
        folder = os.open(f"{name}/fd", os.O_RDONLY | os.O_DIRECTORY, dir_fd=self._proc)
        try:
            for number in os.listdir(folder):
                with contextlib.suppress(FileNotFoundError):
                    found = os.stat(number, dir_fd=folder)
                    yield found.st_mode, (found.st_dev, found.st_ino)
        finally:
            os.close(folder)

    def _queued_bytes(self) -> int:
        """What lies in the queues of TCP, read and unread."""
        queues = _QUEUES.findall(self._read("tcp") + self._read("tcp6"))
        return _TCP_OVERHEAD * sum(int(out, 16) + int(into, 16) for out, into in queues)

    def _read(self, name: str) -> bytes:
        """A file about the sandbox's network; empty where there is no IPv6."""
        with contextlib.suppress(FileNotFoundError):
            file = os.open(f"1/net/{name}", os.O_RDONLY, dir_fd=self._proc)
            with os.fdopen(file, "rb") as text:
                return text.read()
        return b""


def _default_bytes() -> int:
    """The larger default of a socket's two buffers; the usual one where it is not told."""
    found = [_USUAL_DEFAULT]
    for name in _DEFAULTS:
        with contextlib.suppress(OSError):
            found.append(int(pathlib.Path("/proc/sys/net/core", name).read_text()))
    return max(found)
