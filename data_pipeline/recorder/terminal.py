"""A real bash in a real pseudo-terminal, typed into and read back as Terminus 2 does.

How the end of a command is known without touching what it prints: bash tells us through a pipe of
its own, just before it draws a prompt, what that prompt will be (PROMPT_COMMAND for PS1, a command
substitution inside PS2), so reading goes on until the screen ends with that very prompt.  Lines are
typed one at a time, as by hand; typed all at once, the terminal would echo them all before the
first one's output.
"""

import codecs
import contextlib
import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time

from data_pipeline.recorder import isolation

COLUMNS, ROWS = 160, 40
MAX_OUTPUT_BYTES = 10_000
MAX_LINE_BYTES = 4_000  # the kernel's line editor holds 4,096
PROMPT = r"root@agent:\w# "
KEYS = {"C-c": b"\x03", "C-d": b"\x04"}
_PATIENCE_S = 30.0


class Terminal:
    """A shell at work in `world`; use it as a context manager."""

    def __init__(self, world: isolation.World):
        self._line = ""  # the unfinished last line of the screen: where the next output begins
        self._new = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._announced = b""
        self._master, slave = pty.openpty()
        self._bell, bell = os.pipe()
        try:
            fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
            self._process = _start_shell(world, slave, bell)
        except BaseException:
            self._close_descriptors()
            raise
        finally:
            os.close(slave)
            os.close(bell)
        os.set_blocking(self._master, False)
        os.set_blocking(self._bell, False)
        try:
            self._await_prompt(_PATIENCE_S, must=True)
            self.send(" export -n PS1 PS2 PROMPT_COMMAND; unset HISTFILE\n", 1.0)
        except BaseException:
            self.close()
            raise
        self._new, self._line = "", self._screen().rsplit("\n", 1)[-1]

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the shell and everything it started."""
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # it has not made its own group yet
                os.killpg(self._process.pid, signal.SIGHUP)  # bash passes it on to its jobs
            try:
                self._process.wait(timeout=1.0)
            except subprocess.TimeoutExpired:
                self._process.kill()
        self._process.wait()
        self._close_descriptors()

    def _close_descriptors(self) -> None:
        os.close(self._master)
        os.close(self._bell)

    def send(self, keystrokes: str, duration_s: float, *, waits: bool = False) -> None:
        """Type keystrokes; return when the shell is ready again.

        Args:
            keystrokes: text typed verbatim, or one of the key names C-c and C-d.
            duration_s: how long a command that `waits` is watched.
            waits: the command is not expected to come back to a prompt in time (it hangs, or reads
                the keyboard).  Any other command must, however slow the machine is.

        Raises:
            RuntimeError: the shell ended, or did not come back to a prompt.
        """
        for line in _typed(keystrokes):
            os.write(self._master, line)
            ends = line.endswith(b"\n") or line in KEYS.values()
            must = ends and not waits
            self._await_prompt(_PATIENCE_S if must else duration_s, must=must)

    def read(self) -> str:
        """What is new on the screen since the last call, from the line the cursor was on.

        Trailing blanks are cut, as a terminal's screen does not hold them.
        """
        text = self._screen()
        self._line, self._new = text.rsplit("\n", 1)[-1], ""
        return limit_output(text.rstrip())

    def _screen(self) -> str:
        """The unfinished line and what followed it, with the terminal's line ends undone."""
        return self._line + self._new.replace("\r\n", "\n")

    def _await_prompt(self, limit_s: float, *, must: bool) -> None:
        """Read until the announced prompt stands at the end of the screen, or time is up."""
        deadline = time.monotonic() + limit_s
        self._announced = b""
        while (left_s := deadline - time.monotonic()) > 0:
            select.select([self._master, self._bell], [], [], min(left_s, 1.0))
            self._drain()
            prompt = self._announced.rpartition(b"\n")[0].rpartition(b"\n")[2].decode()
            if prompt and self._new.endswith(prompt):
                return
            if self._process.poll() is not None:  # its descriptors, closed, are always ready
                raise RuntimeError(f"the shell ended: {self._new[-500:]!r}")
        if must:
            raise RuntimeError(f"no prompt within {limit_s:.0f} s: {self._new[-500:]!r}")

    def _drain(self) -> None:
        """Take everything both descriptors hold now."""
        self._announced += _read_all(self._bell)
        self._new += self._decoder.decode(_read_all(self._master))


def limit_output(text: str) -> str:
    """At most 10,000 bytes: longer output keeps its first and last 5,000, in whole characters."""
    data = text.encode()
    if len(data) <= MAX_OUTPUT_BYTES:
        return text
    half = MAX_OUTPUT_BYTES // 2
    head = data[:half].decode(errors="ignore")
    tail = data[-half:].decode(errors="ignore")
    num_cut = len(data) - len(head.encode()) - len(tail.encode())
    return f"{head}\n[... {num_cut} bytes in the middle are not shown ...]\n{tail}"


def _start_shell(world: isolation.World, slave: int, bell: int) -> subprocess.Popen:
    """Bash in the terminal `slave`, announcing its prompts on `bell`."""
    # `env` last: the bash that sets the limits is not interactive and would drop the prompts.
    # What runs in the background ignores ^C, and would hand that down.
    shell = ["setsid", "-c", "env", "--default-signal=INT,QUIT", *_prompts(bell)]
    shell += ["bash", "--noediting", "--norc", "--noprofile"]
    return subprocess.Popen(
        world.argv(shell),
        cwd=world.folder,
        env=world.environment(),
        stdin=slave,
        stdout=slave,
        stderr=slave,
        pass_fds=[bell],
        start_new_session=world.sandbox == "bwrap",  # else setsid would have to fork
    )


def _prompts(bell: int) -> list[str]:
    """Shell variables that announce each prompt on the descriptor `bell` before drawing it."""
    return [
        f"PS1={PROMPT}",
        rf"PS2=$(printf '> \n' >&{bell})> ",
        r"PROMPT_COMMAND=printf '%s\n' " + rf'"${{PS1@P}}" >&{bell}',
    ]


def _typed(keystrokes: str) -> list[bytes]:
    """Keystrokes as the pieces that are typed one after the other."""
    if keystrokes.strip() in KEYS:
        return [KEYS[keystrokes.strip()]]
    lines = [line.encode() for line in keystrokes.splitlines(keepends=True)]
    for line in lines:
        if len(line) > MAX_LINE_BYTES:
            raise ValueError(f"a typed line has {len(line)} bytes; {MAX_LINE_BYTES} is the most")
    return lines


def _read_all(descriptor: int) -> bytes:
    """Everything that can be read without waiting; nothing at the end of file."""
    chunks = []
    while True:
        try:
            chunk = os.read(descriptor, 65536)
        except BlockingIOError:
            break
        except OSError:  # EIO: the terminal's other end is closed, its shell has ended
            break
        if not chunk:
            break
        chunks.append(chunk)
    return b"".join(chunks)
