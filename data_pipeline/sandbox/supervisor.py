"""PID 1 of the sandbox: starts commands, ends them in time, reaps what they leave behind.

It runs inside, read from a pipe by the system's python3 (3.9 or newer, standard library only).  The
host's requests come through the socket that is its stdin: a 4-byte length, which carries four pipe
ends (stdin, stdout, stderr, status), and a JSON object; the answer is one JSON object written to
the status pipe.  Data goes through the pipes, never through this process.  Commands cannot kill it
(PID 1 takes no signal from its own namespace) nor read or trace it (it is not dumpable); when the
host's end of the socket closes it exits, and the kernel ends every process of the sandbox with it.
"""

import contextlib
import ctypes
import json
import os
import resource
import select
import signal
import socket
import struct
import time

LENGTH = struct.Struct("!I")
READY = b"R"
NUM_PIPES = 4
GRACE_S = 1.0  # between SIGTERM and SIGKILL of a command that ran past its time
_PR_SET_DUMPABLE = 4
_MAX_ERROR_BYTES = 4096
_RESTORED = (signal.SIGINT, signal.SIGPIPE, signal.SIGXFSZ, signal.SIGCHLD)


class Command:
    """One running command: its status pipe and when it must end (monotonic seconds)."""

    def __init__(self, *, status: int, deadline_s: float):
        self.status = status
        self.deadline_s = deadline_s
        self.timed_out = False


def receive(control: socket.socket) -> tuple[dict, list[int]]:
    """The next request and the pipe ends that came with it; exits when the host is gone."""
    head, pipes = b"", []
    while len(head) < LENGTH.size:
        data, more, _, _ = socket.recv_fds(control, LENGTH.size - len(head), NUM_PIPES)
        if not data:
            os._exit(0)
        head += data
        pipes += more
    for pipe in pipes:
        os.set_inheritable(pipe, False)  # recv_fds drops a flag that would ask for it
    (size,) = LENGTH.unpack(head)
    body = b""
    while len(body) < size:
        data = control.recv(size - len(body))
        if not data:
            os._exit(0)
        body += data
    return json.loads(body), pipes


def harden() -> None:
    """Make this process unreadable to the commands, and the sandbox the kernel's first victim."""
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")
    if ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        raise OSError("prctl(PR_SET_DUMPABLE) failed")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Python's own handler would raise


def prepare(config: dict) -> None:
    """Make the folders and the few files of /etc that the root view holds."""
    os.umask(0o022)
    for path, mode in config["folders"].items():
        os.makedirs(path, exist_ok=True)
        os.chmod(path, mode)
    for path, text in config["files"].items():
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)


def signal_group(group: int, number: int) -> None:
    """Send a signal to a process group that may be gone."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def answer(status: int, reply: dict) -> None:
    """Write the reply and close the status pipe; the host may have gone away."""
    with contextlib.suppress(OSError):
        os.write(status, json.dumps(reply).encode())
    os.close(status)


def become(request: dict, pipes: list[int], limits: dict) -> None:
    """In the child: turn into the command."""
    signal.set_wakeup_fd(-1)
    for number in _RESTORED:
        signal.signal(number, signal.SIG_DFL)
    os.setsid()
    for target, pipe in enumerate(pipes[:3]):
        os.dup2(pipe, target)
    os.chdir(request["cwd"])
    for name, most in limits.items():
        kind = getattr(resource, "RLIMIT_" + name)
        hard = resource.getrlimit(kind)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (most, most))
    os.execvpe(request["argv"][0], request["argv"], request["env"])


def fork_command(request: dict, pipes: list[int], limits: dict) -> int:
    """Start the command; returns its PID, or raises OSError with what kept it from starting."""
    fault_in, fault_out = os.pipe()  # closed by a successful exec
    try:
        pid = os.fork()
    except OSError:
        os.close(fault_in)
        os.close(fault_out)
        raise
    if pid == 0:
        try:
            become(request, pipes, limits)
        except BaseException as fault:
            os.write(fault_out, str(fault).encode()[:_MAX_ERROR_BYTES])
        os._exit(126)
    os.close(fault_out)
    fault = os.read(fault_in, _MAX_ERROR_BYTES)
    os.close(fault_in)
    if fault:
        os.waitpid(pid, 0)
        raise OSError(fault.decode(errors="replace"))
    return pid


class Supervisor:
    """The commands that run, and the loop that waits for requests, ends and deadlines."""

    def __init__(self, control: socket.socket, *, limits: dict):
        self.control = control
        self.limits = limits
        self.commands = {}
        self.poll = select.poll()
        self.wake, wake_in = os.pipe()
        os.set_blocking(self.wake, False)
        os.set_blocking(wake_in, False)
        signal.set_wakeup_fd(wake_in, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self.poll.register(control, select.POLLIN)
        self.poll.register(self.wake, select.POLLIN)

    def serve(self) -> None:
        """Never returns; the process ends when the host closes the socket."""
        while True:
            for pipe, _ in self.poll.poll(self.wait_ms()):
                if pipe == self.control.fileno():
                    self.start()
                elif pipe == self.wake:
                    os.read(self.wake, 65536)
                else:
                    self.abandon(pipe)
            self.end_overdue()
            self.reap()

    def wait_ms(self):
        """Until the next deadline; None where no command has one."""
        deadlines = [command.deadline_s for command in self.commands.values()]
        if not deadlines:
            return None
        return max(0.0, min(deadlines) - time.monotonic()) * 1000 + 1

    def start(self) -> None:
        """Take one request."""
        request, pipes = receive(self.control)
        try:
            pid = fork_command(request, pipes, self.limits)
        except OSError as fault:
            answer(pipes[3], {"error": str(fault)})
        else:
            deadline_s = time.monotonic() + request["timeout_s"]
            self.commands[pid] = Command(status=pipes[3], deadline_s=deadline_s)
            # No events: poll reports an error where the reader of the status has closed it.
            self.poll.register(pipes[3], 0)
        for pipe in pipes[:3]:
            os.close(pipe)

    def abandon(self, status: int) -> None:
        """End the command whose caller has gone away."""
        self.poll.unregister(status)
        for pid, command in self.commands.items():
            if command.status == status:
                command.timed_out = True
                signal_group(pid, signal.SIGKILL)

    def end_overdue(self) -> None:
        """SIGTERM at the deadline, SIGKILL a moment later, to the whole process group."""
        now_s = time.monotonic()
        for pid, command in self.commands.items():
            if now_s < command.deadline_s:
                continue
            signal_group(pid, signal.SIGKILL if command.timed_out else signal.SIGTERM)
            command.deadline_s = now_s + GRACE_S
            command.timed_out = True

    def reap(self) -> None:
        """Collect every process that ended, commands and orphans."""
        while True:
            try:
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if ended is None:
                return
            command = self.commands.pop(ended.si_pid, None)
            if command is not None and command.timed_out:
                signal_group(ended.si_pid, signal.SIGKILL)  # before its number can be used again
            _, code = os.waitpid(ended.si_pid, 0)
            if command is not None:
                self.report(command, code)

    def report(self, command: Command, code: int) -> None:
        """Tell the host how the command ended."""
        with contextlib.suppress(KeyError):  # abandoned before
            self.poll.unregister(command.status)
        code = os.waitstatus_to_exitcode(code)
        reply = {"return_code": code if code >= 0 else 128 - code, "timed_out": command.timed_out}
        answer(command.status, reply)


def main() -> None:
    """Wait for the configuration, then serve."""
    control = socket.socket(fileno=0)
    os.set_inheritable(0, False)
    os.closerange(3, 64)  # what bubblewrap left open
    harden()
    config, _ = receive(control)
    prepare(config)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    control.sendall(READY)
    Supervisor(control, limits=config["limits"]).serve()


if __name__ == "__main__":
    main()
