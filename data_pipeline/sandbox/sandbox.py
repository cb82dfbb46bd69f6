"""A sandbox as the rest of the program uses it: start, run commands, move files, stop.

    with sandbox.Sandbox(cpus=1, memory_mb=1024, storage_mb=1024, lifetime_s=600) as box:
        box.put_file(b"print(6 * 7)", "/app/answer.py")
        print(box.run("python3 answer.py", timeout_s=10).stdout)

Processes left in the background (a tmux server, say) go on between two commands and end with the
sandbox.  Nothing inside is trusted: what comes out is bytes of a bounded number, never a path.
"""

import dataclasses
import io
import os
import pathlib
import stat
import threading
from collections.abc import Mapping, Sequence
from typing import BinaryIO, Self

from data_pipeline.sandbox import build, exchange, keeper, root_view, transfer
from data_pipeline.sandbox import limits as limits_lib
from data_pipeline.sandbox.keeper import SandboxEnded, SandboxError, SandboxLost

__all__ = ["Result", "Sandbox", "SandboxEnded", "SandboxError", "SandboxLost", "check"]

MAX_OUTPUT_BYTES = 4 << 20
_TRANSFER_TIMEOUT_S = 600.0
_ANSWER_WITHIN_S = 20.0  # beyond a command's own time
_NOT_STARTED, _TIMED_OUT, _KILLED = 126, 124, 137  # as a shell and `timeout` number them


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """How a command ended.

    Attributes:
        return_code: the exit code; 128 + the signal that ended it; 124 after its time was over.
        stdout: what it wrote, cut at the bound.
        stderr: what it complained about, cut at the bound.
        status: "ok" (it ended by itself, whatever its code), "timeout", "not_started",
            "cancelled", or "killed" (the sandbox ended; its own status says why).
        truncated: more was written than kept.
    """

    return_code: int
    stdout: bytes
    stderr: bytes
    status: str
    truncated: bool = False


class Sandbox:
    """One sandbox; a context manager.

    Args:
        cpus: cores that its processes are bound to.
        memory_mb: MiB of processes and disk together (the disk is memory).
        storage_mb: MiB of its disk; no more than memory_mb is given.
        max_processes: processes and threads at the same time.
        network: share the machine's network; otherwise there is none.
        lifetime_s: seconds from start to end, whatever is running.
        read_only: path on the machine -> path inside; readable by every user where root starts it.
        env: environment variables of every command.

    Raises:
        ValueError: a limit that is too small, or a path that is not absolute.
    """

    def __init__(
        self,
        *,
        cpus: int,
        memory_mb: int,
        storage_mb: int,
        max_processes: int = 256,
        network: bool = False,
        lifetime_s: float,
        read_only: Mapping[str, str] | None = None,
        env: Mapping[str, str] | None = None,
    ):
        self.limits = limits_lib.Limits(
            cpus=cpus,
            memory_mb=memory_mb,
            storage_mb=storage_mb,
            max_processes=max_processes,
            lifetime_s=lifetime_s,
        )
        binds = dict(read_only or {})
        for path in (*binds, *binds.values()):
            if not path.startswith("/"):
                raise ValueError(f"read_only: {path!r} must be an absolute path")
        self.env = root_view.ENVIRONMENT | dict(env or {})
        self.workdir = "/app"
        self._keeper = keeper.Keeper(limits=self.limits, network=network, read_only=binds)
        self._channel: exchange.Channel | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *fault) -> None:
        self.stop()

    @property
    def status(self) -> str:
        """How it is: "new", "running", or why it ended.

        Which is "stopped", "out_of_memory", "too_many_processes", "lifetime", or what nothing
        inside brought about: "machine_out_of_memory" or "died".
        """
        return self._keeper.status

    @property
    def reason(self) -> str:
        """The status as a sentence."""
        return self._keeper.reason

    def ended(self) -> SandboxEnded:
        """The exception for a sandbox that is over; a SandboxLost where nothing inside ended it."""
        return self._keeper.ended()

    @property
    def is_disk_full(self) -> bool:
        """Whether nothing more can be written inside."""
        usage = self._keeper.usage()
        return usage is not None and usage.disk_full

    def start(self) -> None:
        """Start the sandbox.

        Raises:
            SandboxError: bubblewrap is missing or does not work on this machine.
        """
        self._channel = self._keeper.start()

    def stop(self) -> None:
        """End every process and drop the disk; safe to call twice."""
        self._keeper.end("stopped", "it was stopped by its owner")

    def run(
        self,
        command: str | Sequence[str],
        *,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        timeout_s: float,
        stdin: bytes = b"",
        max_output_bytes: int = MAX_OUTPUT_BYTES,
        cancelled: threading.Event | None = None,
    ) -> Result:
        """Run a shell line (by bash) or a program with its arguments.

        Args:
            command: the shell line, or the program and its arguments.
            cwd: folder inside; the Dockerfile's WORKDIR (else /app) where not given.
            env: variables besides those of the sandbox.
            timeout_s: then its process group gets SIGTERM, and SIGKILL a second later.
            stdin: what it can read.
            max_output_bytes: of stdout and of stderr; the rest is dropped.
            cancelled: set by another thread, the command is killed.

        Raises:
            SandboxEnded: the sandbox is over.
        """
        output, complaint = exchange.Capture(max_output_bytes), exchange.Capture(max_output_bytes)
        reply = self._exchange(
            command,
            cwd=cwd or self.workdir,
            env=self.env | dict(env or {}),
            timeout_s=timeout_s,
            stdin=io.BytesIO(stdin),
            stdout=output,
            stderr=complaint,
            cancelled=cancelled,
        )
        code, status, text = _outcome(reply)
        return Result(
            return_code=code,
            stdout=output.value(),
            stderr=complaint.value() + text.encode(),
            status=status,
            truncated=max(output.num_bytes, complaint.num_bytes) > max_output_bytes,
        )

    def put_file(self, data: bytes | pathlib.Path, inside_path: str, mode: int = 0o644) -> None:
        """Write a file inside, with the folders above it.

        Args:
            data: the content, or a regular file on the machine (a link is not followed).
            inside_path: an absolute path; a file, link or pipe of that name is replaced.
            mode: permission bits.

        Raises:
            ValueError: not a regular file, or not an absolute path.
            SandboxError: it cannot be written; the disk is full, say.
        """
        source = io.BytesIO(data) if isinstance(data, bytes) else _open_regular(data)
        with source:
            self._transfer("write", inside_path, str(mode), stdin=source)

    def put_dir(self, host_dir: pathlib.Path, inside_dir: str) -> None:
        """Copy a folder's content into a folder inside; links stay links and are not followed.

        Raises:
            SandboxError: it cannot be written; the disk is full, say.
        """
        with exchange.temporary_file() as stream:
            transfer.pack(os.path.realpath(host_dir), stream)
            stream.seek(0)
            self._transfer("unpack", inside_dir, stdin=stream)

    def get_file(self, inside_path: str, *, max_bytes: int | None = None) -> bytes:
        """Read a regular file inside.

        Args:
            inside_path: an absolute path; links are followed, inside.
            max_bytes: the size of the disk where not given.

        Raises:
            SandboxError: it is missing, not a regular file, or larger.
        """
        with self._transfer("read", inside_path, max_bytes=max_bytes) as stream:
            return stream.read()

    def get_dir(
        self, inside_dir: str, host_dir: pathlib.Path, *, max_bytes: int | None = None
    ) -> list[str]:
        """Copy a folder's regular files and folders out; returns the links left out.

        Every name stays below `host_dir` (made where missing), whatever the inside says.

        Raises:
            SandboxError: it is missing, larger than max_bytes (the size of the disk where not
                given), or its names do not stay inside.
        """
        with self._transfer("pack", inside_dir, max_bytes=max_bytes) as stream:
            pathlib.Path(host_dir).mkdir(parents=True, exist_ok=True)
            try:
                return transfer.unpack(
                    stream, host_dir, links=False, max_bytes=self.limits.disk_bytes
                )
            except transfer.TransferError as fault:
                raise SandboxError(f"{inside_dir} of the sandbox: {fault}") from fault

    def build(self, environment_dir: pathlib.Path, *, timeout_s: float) -> list[str]:
        """Do what `environment_dir`/Dockerfile says, as far as a sandbox can; returns warnings.

        See `build.py` for what that is; its ENV and WORKDIR become those of later commands.

        Raises:
            ValueError: the Dockerfile, or a RUN line of it that fails.
        """
        return build.build(self, pathlib.Path(environment_dir), timeout_s=timeout_s)

    def _transfer(
        self, action: str, path: str, *rest: str, stdin: BinaryIO | None = None,
        max_bytes: int | None = None,
    ) -> BinaryIO:  # fmt: skip
        """Run the transfer program inside; returns its output, to be closed by the caller."""
        if not path.startswith("/") or "\0" in path:
            raise ValueError(f"{path!r} must be an absolute path inside the sandbox")
        source = pathlib.Path(transfer.__file__).read_text(encoding="utf-8")
        limit = self.limits.disk_bytes if max_bytes is None else max_bytes
        output, complaint = exchange.Spool(limit), exchange.Capture(4096)
        try:
            reply = self._exchange(
                [root_view.python(), "-I", "-S", "-c", source, action, path, *rest],
                cwd="/",
                env=root_view.ENVIRONMENT,
                timeout_s=_TRANSFER_TIMEOUT_S,
                stdin=stdin or io.BytesIO(),
                stdout=output,
                stderr=complaint,
            )
        except exchange.TooMuchOutput as fault:
            raise SandboxError(f"{path} of the sandbox is larger than {limit} bytes") from fault
        code, status, text = _outcome(reply)
        if status == "killed":
            raise self.ended()
        if code != 0:
            said = complaint.value().decode(errors="replace").strip() or text or status
            full = "; its disk is full (out_of_disk)" if self.is_disk_full else ""
            raise SandboxError(f"{action} {path} in the sandbox failed: {said[:500]}{full}")
        output.file.seek(0)
        return output.file

    def _exchange(
        self,
        command: str | Sequence[str],
        *,
        cwd: str,
        env: Mapping[str, str],
        timeout_s: float,
        stdin: BinaryIO,
        stdout: exchange.Sink,
        stderr: exchange.Sink,
        cancelled: threading.Event | None = None,
    ) -> dict | None:
        """Run one command; None when the sandbox ended meanwhile."""
        if self._channel is None or self.status != keeper.RUNNING:
            raise self.ended()
        argv = ["/bin/bash", "-c", command] if isinstance(command, str) else list(command)
        request = {"argv": argv, "cwd": cwd, "env": dict(env), "timeout_s": timeout_s}
        talk = exchange.Exchange(
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            give_up_s=timeout_s + _ANSWER_WITHIN_S,
            cancelled=cancelled or threading.Event(),
        )
        try:
            reply = talk.run(self._channel, request)
        except OSError:
            reply = None
        if reply is None:
            self._keeper.wait_ended(timeout_s=2.0)
            if self.status == keeper.RUNNING:
                self._keeper.end("died", "its supervisor does not answer")
        return reply


def _outcome(reply: dict | None) -> tuple[int, str, str]:
    """Return code, status and what there is to say about it."""
    if reply is None:
        return _KILLED, "killed", ""
    if "cancelled" in reply:
        return _KILLED, "cancelled", ""
    if "error" in reply:
        return _NOT_STARTED, "not_started", f"the command cannot start: {reply['error']}\n"
    if reply.get("timed_out"):
        return _TIMED_OUT, "timeout", ""
    return int(reply["return_code"]), "ok", ""


def _open_regular(path: pathlib.Path) -> BinaryIO:
    """Open a file of the machine that is neither a link nor special."""
    file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise ValueError(f"{path} must be a regular file to be put into the sandbox")
    return os.fdopen(file, "rb")


def check() -> None:
    """Raise SandboxError where this machine cannot run a sandbox, with the way out."""
    with Sandbox(cpus=1, memory_mb=128, storage_mb=16, lifetime_s=60) as box:
        done = box.run("true", timeout_s=10)
    if done.return_code != 0:
        raise SandboxError(f"a command in the sandbox fails: {done.stderr.decode()!r}")
