"""Where a session's shell runs: a folder seen as /app, inside bubblewrap or (on request) without.

`bwrap` gives the shell its own read-only root, no network, the host name `agent`, its own process
table and /tmp; the task's folder is mounted as /app.  `none` is a plain temporary folder with a
clean environment: no protection at all, for machines without bubblewrap; paths that a task calls
/app/... are then spelled with the folder's real name (`World.localize`).
"""

import contextlib
import dataclasses
import os
import pathlib
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence

SANDBOXES = ("bwrap", "none")
APP = "/app"
FIXED_MTIME_S = (
    1_705_312_800  # 2024-01-15 10:00 UTC: `ls -l` prints the same line at every recording
)
_ENVIRONMENT = {
    "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
    "LC_ALL": "C.UTF-8",
    "TZ": "UTC",
    "TERM": "dumb",
    "PYTHONHASHSEED": "0",
    "PYTHONDONTWRITEBYTECODE": "1",
}
# CPU seconds, KiB of a file, KiB of memory, core files.
_LIMITS = 'ulimit -t 60; ulimit -f 65536; ulimit -v 4194304; ulimit -c 0; exec "$@"'


@dataclasses.dataclass(frozen=True, kw_only=True)
class World:
    """One task's folder and the way commands run in it.

    Attributes:
        folder: the task's folder as this process sees it.
        home: the scratch folder beside it (home directory, passwd) as this process sees it.
        sandbox: "bwrap" or "none".
    """

    folder: pathlib.Path
    home: pathlib.Path
    sandbox: str

    @property
    def app(self) -> str:
        """The task's folder as the shell sees it."""
        return APP if self.sandbox == "bwrap" else str(self.folder)

    def localize(self, text: str) -> str:
        """Spell /app as the shell sees it; in bubblewrap the text stays as it is."""
        return text if self.sandbox == "bwrap" else re.sub(r"/app\b", str(self.folder), text)

    def environment(self) -> dict[str, str]:
        """The whole environment of a command: nothing of this process's own leaks into it."""
        home = "/root" if self.sandbox == "bwrap" else str(self.home)
        return _ENVIRONMENT | {"HOME": home}

    def argv(self, command: Sequence[str]) -> list[str]:
        """The command line that runs `command` inside the sandbox, under resource limits."""
        limited = ["bash", "-c", _LIMITS, "bash", *command]
        return limited if self.sandbox == "none" else [*self._bwrap(), "--", *limited]

    def run(self, command: str, *, timeout_s: float = 30.0) -> tuple[int, str]:
        """Run one shell line in the folder; returns its exit status and stdout + stderr."""
        done = subprocess.run(
            self.argv(["bash", "-c", self.localize(command)]),
            cwd=self.folder,
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout_s,
            check=False,
        )
        return done.returncode, done.stdout.decode("utf-8", errors="replace")

    def _bwrap(self) -> list[str]:
        """Bubblewrap's own arguments."""
        bwrap = shutil.which("bwrap") or "bwrap"  # by our own PATH; the command's is another
        args = [bwrap, "--unshare-all", "--die-with-parent", "--hostname", "agent"]
        args += ["--uid", "0", "--gid", "0", "--proc", "/proc", "--dev", "/dev"]
        args += ["--ro-bind", "/usr", "/usr"]
        for name in ("bin", "lib", "lib64", "sbin"):
            args += _root_entry(name)
        if pathlib.Path("/usr/bin/python3").exists():
            args += ["--tmpfs", "/usr/local"]  # what the machine's owner added is no part of a task
        for name in ("alternatives", "ld.so.cache"):
            args += ["--ro-bind-try", f"/etc/{name}", f"/etc/{name}"]
        for name in ("passwd", "group"):
            args += ["--ro-bind", str(self.home / name), f"/etc/{name}"]
        args += ["--tmpfs", "/tmp", "--dir", "/root", "--bind", str(self.folder), APP]
        return [*args, "--remount-ro", "/", "--chdir", APP]


def _root_entry(name: str) -> list[str]:
    """How /bin and its like appear: as the link into /usr that they are, or bound."""
    path = pathlib.Path("/", name)
    if path.is_symlink():
        return ["--symlink", f"usr/{name}", f"/{name}"]
    return ["--ro-bind-try", f"/{name}", f"/{name}"]


@contextlib.contextmanager
def make_world(files: Mapping[str, str | bytes], *, sandbox: str) -> Iterator[World]:
    """A fresh folder holding `files` (relative path -> content), removed at the end.

    A path that ends in "/" makes an empty folder; one whose content starts with "#!" becomes
    executable.  All time stamps are the same fixed instant.
    """
    with tempfile.TemporaryDirectory(prefix="task-") as root:
        base = pathlib.Path(root).resolve()
        world = World(folder=base / "app", home=base / "home", sandbox=sandbox)
        world.folder.mkdir()
        world.home.mkdir()
        (world.home / "passwd").write_text("root:x:0:0:root:/root:/bin/bash\n")
        (world.home / "group").write_text("root:x:0:\n")
        for name, content in files.items():
            _put(world, name, content)
        for path in [world.folder, *world.folder.rglob("*")]:
            os.utime(path, (FIXED_MTIME_S, FIXED_MTIME_S), follow_symlinks=False)
        yield world


def _put(world: World, name: str, content: str | bytes) -> None:
    """Write one file of the environment."""
    path = world.folder / name
    if name.endswith("/"):
        path.mkdir(parents=True, exist_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    data = world.localize(content).encode() if isinstance(content, str) else content
    path.write_bytes(data)
    path.chmod(0o755 if data.startswith(b"#!") else 0o644)


def check_sandbox(sandbox: str) -> None:
    """Raise ValueError when this machine cannot run the sandbox, with the way out."""
    if sandbox not in SANDBOXES:
        raise ValueError(f"--sandbox={sandbox} must be one of {', '.join(SANDBOXES)}")
    if sandbox == "none":
        return
    way_out = "install the package bubblewrap, or pass --sandbox=none to run without any isolation"
    if shutil.which("bwrap") is None:
        raise ValueError(f"--sandbox=bwrap needs the program bwrap, which is not here; {way_out}")
    with make_world({}, sandbox="bwrap") as world:
        status, output = world.run("true")
    if status != 0:
        raise ValueError(f"--sandbox=bwrap does not work here ({output.strip()[:200]}); {way_out}")


def missing_tools(tools: Sequence[str], *, sandbox: str) -> list[str]:
    """Those of the programs that the sandbox does not have."""
    with make_world({}, sandbox=sandbox) as world:
        line = "; ".join(f"command -v {tool} >/dev/null || echo {tool}" for tool in tools)
        return world.run(line)[1].split() if tools else []
