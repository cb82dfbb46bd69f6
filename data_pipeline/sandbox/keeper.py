"""The thread that starts a sandbox's processes, watches what they take, and ends them.

Bubblewrap is started from this very thread and told to die with it, so a sandbox never outlives
its watchdog.  Started by root, bubblewrap runs as a user of the sandbox's own from a range that no
system gives out: the kernel does not bind root by its limits of processes, and root's files stay
out of reach even if the sandbox should break.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import random
import secrets
import select
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Mapping

from data_pipeline.sandbox import cgroup, exchange, root_view, seccomp, supervisor, watchdog
from data_pipeline.sandbox import limits as limits_lib

_FIRST_USER = 1_879_048_192  # above the ranges of containers and of systemd's users
_NUM_USERS = 1 << 28
_START_WITHIN_S = 30.0
_LOG_BYTES = 1 << 14
RUNNING = "running"
_LOST = ("machine_out_of_memory", "died")


class SandboxError(RuntimeError):
    """A sandbox cannot be started, or something inside it went wrong."""


class SandboxEnded(SandboxError):
    """The sandbox is over; the message says why."""


class SandboxLost(SandboxEnded):
    """The sandbox is over by no doing of what ran in it; worth trying again."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Started:
    """What a running sandbox is made of."""

    process: subprocess.Popen
    init: int  # a descriptor of its first process (pidfd)
    channel: exchange.Channel
    dog: watchdog.Watchdog
    group: cgroup.Cgroup | None


class Keeper:
    """Keeps one sandbox.

    Attributes:
        status: "new", "running", or why it ended: "stopped", "out_of_memory",
            "too_many_processes", "lifetime", "machine_out_of_memory", "died".
        reason: the same as a sentence.
    """

    def __init__(self, *, limits: limits_lib.Limits, network: bool, read_only: Mapping[str, str]):
        self.status, self.reason = "new", "the sandbox was not started"
        self._limits = limits
        self._network = network
        self._read_only = dict(read_only)
        self._lock = threading.Lock()
        self._started: Started | None = None
        self._fault: BaseException | None = None
        self._ready = threading.Event()
        self._wake = self._wake_in = self._log = -1
        self._thread = threading.Thread(target=self._keep, name="sandbox", daemon=True)

    def start(self) -> exchange.Channel:
        """Start; returns the way to the supervisor.

        Raises:
            SandboxError: bubblewrap is missing or does not work here, with the way out.
            SandboxEnded: it was started before.
        """
        missing = root_view.missing_programs()
        if missing:
            raise SandboxError(
                f"the local sandbox needs {', '.join(missing)}, not found on this machine; "
                "install the packages bubblewrap, bash, tar and python3 of the system"
            )
        with self._lock:
            if self.status != "new":
                raise SandboxEnded(f"a sandbox starts once; this one ended ({self.status})")
            self._wake, self._wake_in = os.pipe()
            self._thread.start()
        self._ready.wait()
        if self._started is None:
            raise SandboxError(f"the sandbox does not start: {self._fault}") from self._fault
        return self._started.channel

    def end(self, status: str, reason: str) -> None:
        """End every process of the sandbox and wait until they are gone; safe to call twice."""
        self._conclude(status, reason)
        with self._lock:
            if self._wake_in >= 0:
                os.write(self._wake_in, b"x")
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()

    def ended(self) -> SandboxEnded:
        """Why it is over, as an exception to be raised."""
        kind = SandboxLost if self.status in _LOST else SandboxEnded
        return kind(f"the sandbox ended ({self.status}): {self.reason}")

    def wait_ended(self, *, timeout_s: float) -> None:
        """Wait until a sandbox that is about to end has said why."""
        self._thread.join(timeout_s)

    def usage(self) -> watchdog.Usage | None:
        """What the sandbox takes now; None when it is over."""
        with self._lock:
            if self.status != RUNNING or self._started is None:
                return None
            try:
                return self._started.dog.look()
            except OSError:
                return None  # it is ending

    def _conclude(self, status: str, reason: str) -> None:
        """The first reason is the one that counts."""
        with self._lock:
            if self.status in ("new", RUNNING):
                self.status, self.reason = status, reason

    def _keep(self) -> None:
        """The thread's life."""
        with contextlib.ExitStack() as stack:
            stack.callback(self._ready.set)
            try:
                started = self._launch(stack)
            except (OSError, ValueError, SandboxError) as fault:
                self._fault = fault
                self._conclude("died", f"it did not start: {fault}")
                return
            with self._lock:
                self._started = started
                if self.status == "new":  # it may have been ended meanwhile
                    self.status, self.reason = RUNNING, "it runs"
            self._ready.set()
            self._watch(started)

    def _watch(self, started: Started) -> None:
        """Look until there is a reason to end."""
        poll = select.poll()
        poll.register(started.init, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        wait_s = watchdog.LOOK_EVERY_S
        while True:
            events = [pipe for pipe, _ in poll.poll(wait_s * 1000)]
            if self._wake in events:
                return
            if started.init in events:
                self._conclude(*self._cause_of_death(started))
                return
            try:
                usage = started.dog.look()
            except OSError:
                continue  # it is going away; poll says so next
            verdict = started.dog.verdict(usage)
            if verdict is not None:
                self._conclude(*verdict)
                return
            wait_s = started.dog.next_look_s(usage)

    def _cause_of_death(self, started: Started) -> tuple[str, str]:
        if started.group is not None and started.group.was_out_of_memory():
            limit = f"memory_mb={self._limits.memory_mb} is the limit"
            return "out_of_memory", f"the kernel ended it for its memory; {limit}"
        said = self._said() or "nothing was said; perhaps the machine ran out of memory"
        return "died", f"its processes were ended from outside ({said})"

    def _said(self) -> str:
        """The end of what bubblewrap and the supervisor complained about."""
        os.set_blocking(self._log, False)
        with contextlib.suppress(BlockingIOError):
            text = os.read(self._log, _LOG_BYTES).decode(errors="replace").strip()
            return text[-500:]
        return ""

    def _launch(self, stack: contextlib.ExitStack) -> Started:
        """Start bubblewrap and the supervisor; what is made is undone in reverse order."""
        stack.callback(self._close_wake)
        group = cgroup.create(self._limits)
        if group is not None:
            stack.callback(group.remove)
        near, far = socket.socketpair()
        channel = exchange.Channel(near)
        stack.callback(channel.close)
        near.settimeout(_START_WITHIN_S)
        with far:
            process, child = self._spawn(far, stack)
        init = os.pidfd_open(child)
        stack.callback(os.close, init)
        stack.callback(_kill, init)
        self._configure(near)
        if group is not None and not group.add(child):
            group = None
        dog = watchdog.Watchdog(
            child, disks=root_view.disks(), network=self._network, limits=self._limits
        )
        stack.callback(self._blind, dog)
        return Started(process=process, init=init, channel=channel, dog=dog, group=group)

    def _close_wake(self) -> None:
        """No thread may write to these numbers once they can belong to something else."""
        with self._lock:
            os.close(self._wake)
            os.close(self._wake_in)
            self._wake = self._wake_in = -1

    def _blind(self, dog: watchdog.Watchdog) -> None:
        with self._lock:
            dog.close()

    def _spawn(
        self, control: socket.socket, stack: contextlib.ExitStack
    ) -> tuple[subprocess.Popen, int]:
        """Start bubblewrap on a part of the cores; returns it and the sandbox's first process."""
        text = pathlib.Path(supervisor.__file__).read_text(encoding="utf-8")
        filter_program = seccomp.program()
        info, info_in = os.pipe()
        stack.callback(os.close, info)
        self._log, log_in = os.pipe()
        stack.callback(os.close, self._log)
        rules, source = _pipe_holding(filter_program), _pipe_holding(text.encode())
        view = root_view.arguments(
            limits=self._limits, network=self._network, read_only=self._read_only
        )
        # Short and without secrets: commands inside and users of the machine see it in `ps`.
        inside = [
            root_view.python(),
            "-I",
            "-S",
            "-c",
            f"import os; exec(os.read({source}, 1 << 16))",
        ]
        command = [
            "bwrap",
            "--info-fd",
            str(info_in),
            "--seccomp",
            str(rules),
            *view,
            "--",
            *inside,
        ]
        user = _own_user()
        cores = os.sched_getaffinity(0)
        os.sched_setaffinity(0, _some(cores, self._limits.cpus))
        try:
            process = subprocess.Popen(
                command,
                stdin=control.fileno(),
                stdout=log_in,
                stderr=log_in,
                pass_fds=(info_in, rules, source),
                cwd="/",
                env={"PATH": os.environ.get("PATH", os.defpath)},
                user=user,
                group=user,
                extra_groups=None if user is None else (),
            )
        finally:
            os.sched_setaffinity(0, cores)
            for pipe in (info_in, rules, source, log_in):
                os.close(pipe)
        stack.callback(_wait, process)
        return process, self._first_process(info)

    def _first_process(self, info: int) -> int:
        """The PID that bubblewrap tells, or the complaint that it made instead."""
        text, deadline_s = b"", time.monotonic() + _START_WITHIN_S
        while b"}" not in text:
            ready, _, _ = select.select([info], [], [], max(0.0, deadline_s - time.monotonic()))
            data = os.read(info, 4096) if ready else b""
            if not data:
                raise SandboxError(self._complaint())
            text += data
        return int(json.loads(text[: text.index(b"}") + 1])["child-pid"])

    def _configure(self, control: socket.socket) -> None:
        """Tell the supervisor what to make, and wait until it has."""
        config = {
            "folders": root_view.folders(),
            "files": root_view.files(network=self._network),
            "limits": self._limits.of_a_process(),
        }
        body = json.dumps(config).encode()
        with contextlib.suppress(OSError):
            control.sendall(supervisor.LENGTH.pack(len(body)) + body)
            if control.recv(1) == supervisor.READY:
                return
        raise SandboxError(self._complaint())

    def _complaint(self) -> str:
        time.sleep(0.1)  # until the last line is written
        said = self._said() or f"no answer within {_START_WITHIN_S:g} s"
        return (
            f"{said}; it needs bubblewrap 0.8 or newer and user namespaces for ordinary users "
            "(sysctl kernel.unprivileged_userns_clone=1, or an AppArmor profile for bwrap)"
        )


def _pipe_holding(data: bytes) -> int:
    """The reading end of a pipe that holds all of some data (less than a pipe takes, 64 KiB)."""
    out, into = os.pipe()
    with os.fdopen(into, "wb") as file:
        file.write(data)
    return out


def _own_user() -> int | None:
    """The number of the user that bubblewrap runs as; None for the one who runs this program."""
    return _FIRST_USER + secrets.randbelow(_NUM_USERS) if os.geteuid() == 0 else None


def _some(cores: set[int], num_cores: int) -> set[int]:
    """Cores to be bound to; which ones is left to chance, so that sandboxes spread."""
    return set(random.sample(sorted(cores), min(num_cores, len(cores))))


def _kill(init: int) -> None:
    """End the sandbox's first process; the kernel ends all others before it is gone."""
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(init, signal.SIGKILL)


def _wait(process: subprocess.Popen) -> None:
    """Wait for bubblewrap, which waits for the sandbox."""
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
