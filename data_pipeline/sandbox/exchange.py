"""The host's side of one command: four pipes, what may come back, and when to give up.

The supervisor gets the far ends with the request.  Output beyond a bound is counted and dropped
(`Capture`) or ends the command (`Spool`), so endless output costs the host nothing.
"""

import contextlib
import json
import os
import select
import socket
import struct
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import BinaryIO, Protocol, cast

_LENGTH = struct.Struct("!I")
_CHUNK_BYTES = 1 << 16
_DRAIN_BYTES = 1 << 20  # what may still lie in a pipe when its command has ended
_MAX_REQUEST_BYTES = 8 << 20
_CHECK_EVERY_S = 0.2
_IN_MEMORY_BYTES = 8 << 20


class TooMuchOutput(Exception):
    """A command wrote more than its caller takes."""


class Sink(Protocol):
    """Takes a command's output."""

    def write(self, data: bytes, /) -> object:
        """Take some bytes."""
        ...


class Capture:
    """Keeps the first `limit` bytes and counts all."""

    def __init__(self, limit: int):
        self._left = limit
        self._kept: list[bytes] = []
        self.num_bytes = 0

    def write(self, data: bytes) -> None:
        """Take some bytes."""
        self.num_bytes += len(data)
        if self._left > 0:
            self._kept.append(data[: self._left])
            self._left -= len(self._kept[-1])

    def value(self) -> bytes:
        """The bytes kept."""
        return b"".join(self._kept)


def temporary_file() -> BinaryIO:
    """A file without a name, in memory while it is small; its user closes it."""
    return cast(BinaryIO, tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY_BYTES))


class Spool:
    """Keeps up to `limit` bytes, on the machine's disk when they are many; more is an error."""

    def __init__(self, limit: int):
        self._left = limit
        self.file = temporary_file()

    def write(self, data: bytes) -> None:
        """Take some bytes.

        Raises:
            TooMuchOutput: beyond the limit.
        """
        self._left -= len(data)
        if self._left < 0:
            raise TooMuchOutput
        self.file.write(data)


class Channel:
    """The socket to the supervisor; requests of several threads go one after the other."""

    def __init__(self, control: socket.socket):
        self._control = control
        self._lock = threading.Lock()

    def send(self, request: dict, pipes: list[int]) -> None:
        """Send one request with its pipe ends.

        Raises:
            ValueError: a request of more than 8 MiB.
            OSError: the supervisor is gone.
        """
        body = json.dumps(request).encode()
        if len(body) > _MAX_REQUEST_BYTES:
            raise ValueError(f"a command of {len(body)} bytes is longer than {_MAX_REQUEST_BYTES}")
        with self._lock:
            socket.send_fds(self._control, [_LENGTH.pack(len(body))], pipes)
            self._control.sendall(body)

    def close(self) -> None:
        """Close, once no thread is sending; the supervisor exits then."""
        with self._lock:
            self._control.close()


@contextlib.contextmanager
def _pipes() -> Iterator[tuple[list[int], list[int]]]:
    """(stdin, stdout, stderr, status): our ends and the command's; whatever is open is closed."""
    pairs = [os.pipe() for _ in range(4)]
    ours = [pairs[0][1], *(pair[0] for pair in pairs[1:])]
    theirs = [pairs[0][0], *(pair[1] for pair in pairs[1:])]
    try:
        yield ours, theirs
    finally:
        for pipe in (*ours, *theirs):
            with contextlib.suppress(OSError):
                os.close(pipe)


class Exchange:
    """One command's traffic.

    Args:
        stdin: what the command reads.
        stdout: takes what it writes.
        stderr: takes what it complains about.
        give_up_s: seconds after which the supervisor is taken for dead.
        cancelled: set by another thread to end the command.
    """

    def __init__(
        self,
        *,
        stdin: BinaryIO,
        stdout: Sink,
        stderr: Sink,
        give_up_s: float,
        cancelled: threading.Event,
    ):
        self._stdin = stdin
        self._sinks = (stdout, stderr)
        self._give_up_s = give_up_s
        self._cancelled = cancelled
        self._pending = b""

    def run(self, channel: Channel, request: dict) -> dict | None:
        """Send the request and carry data until it ends.

        Returns:
            The supervisor's reply; {"cancelled": true} after a cancel; None where there is no
            reply, because the sandbox ended or its supervisor does not answer.

        Raises:
            TooMuchOutput: a sink takes no more; the command is ended.
            ValueError: the request is too long.
            OSError: the supervisor is gone.
        """
        with _pipes() as (ours, theirs):
            channel.send(request, theirs)
            while theirs:
                os.close(theirs.pop())
            return self._carry(ours)

    def _carry(self, ours: list[int]) -> dict | None:
        stdin, stdout, stderr, status = ours
        outputs = dict(zip((stdout, stderr), self._sinks, strict=True))
        poll = select.poll()
        os.set_blocking(stdin, False)
        poll.register(stdin, select.POLLOUT)
        for pipe in (stdout, stderr, status):
            poll.register(pipe, select.POLLIN)
        give_up_at_s = time.monotonic() + self._give_up_s
        reply = b""
        while True:
            if self._cancelled.is_set():
                return {"cancelled": True}
            if time.monotonic() > give_up_at_s:
                return None
            for pipe, _ in poll.poll(_CHECK_EVERY_S * 1000):
                if pipe == stdin:
                    if not self._feed(stdin):
                        poll.unregister(stdin)
                        os.close(ours.pop(0))
                    continue
                data = os.read(pipe, _CHUNK_BYTES)
                if pipe == status:
                    reply += data
                    if not data or len(reply) > _CHUNK_BYTES:
                        _drain(outputs)
                        return _parsed(reply)
                elif data:
                    outputs[pipe].write(data)
                else:
                    poll.unregister(pipe)
                    del outputs[pipe]

    def _feed(self, stdin: int) -> bool:
        """Write some of stdin; whether there is more to write."""
        self._pending = self._pending or self._stdin.read(_CHUNK_BYTES)
        if not self._pending:
            return False
        try:
            self._pending = self._pending[os.write(stdin, self._pending) :]
        except BlockingIOError:
            return True
        except BrokenPipeError:
            return False
        return True


def _drain(outputs: dict[int, Sink]) -> None:
    """Take what lies in the pipes; a process left in the background may hold them open."""
    for pipe, sink in outputs.items():
        os.set_blocking(pipe, False)
        with contextlib.suppress(BlockingIOError):
            for _ in range(_DRAIN_BYTES // _CHUNK_BYTES):
                data = os.read(pipe, _CHUNK_BYTES)
                if not data:
                    break
                sink.write(data)


def _parsed(reply: bytes) -> dict | None:
    """The reply as an object; None for anything else."""
    try:
        found = json.loads(reply)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
