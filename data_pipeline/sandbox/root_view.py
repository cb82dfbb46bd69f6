"""What the inside of the sandbox sees: bubblewrap's arguments, and the small files of its /etc.

The root is one tmpfs of limited size that holds everything writable, so /app, /tmp, /root and any
folder that a task makes share one full disk.  The machine's /usr is seen read-only; its /usr/local
(what the machine's owner added) is hidden where the system's own python3 lives in /usr/bin.  There
is no /sys, and of /etc only what programs cannot do without.
"""

import pathlib
import shutil
from collections.abc import Mapping, Sequence

from data_pipeline.sandbox import limits as limits_lib

HOSTNAME = "sandbox"
_LOCAL_BYTES = 256 << 20
_FOLDERS = {
    "/etc": 0o755,
    "/etc/ssl": 0o755,
    "/app": 0o755,
    "/root": 0o700,
    "/tmp": 0o1777,
    "/var/tmp": 0o1777,
    "/var/lib": 0o755,
    "/var/log": 0o755,
    "/run": 0o755,
    "/home": 0o755,
    "/opt": 0o755,
    "/srv": 0o755,
    "/mnt": 0o755,
    "/logs/agent": 0o777,
    "/logs/verifier": 0o777,
    "/logs/artifacts": 0o777,
    "/tests": 0o755,
    "/solution": 0o755,
}
_LOCAL_FOLDERS = {f"/usr/local/{name}": 0o755 for name in ("bin", "etc", "lib", "sbin", "share")}
# Public parts of the machine's /etc; nothing that holds accounts, hosts or keys.
_ETC = (
    "alternatives",
    "ca-certificates",
    "fonts",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "localtime",
    "mime.types",
    "perl",
    "protocols",
    "python3",
    "services",
    "ssl/certs",
    "ssl/openssl.cnf",
    "terminfo",
)
_TEXTS = {
    "/etc/passwd": "root:x:0:0:root:/root:/bin/bash\n"
    "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
    "/etc/group": "root:x:0:\nnogroup:x:65534:\n",
    "/etc/hostname": f"{HOSTNAME}\n",
    "/etc/hosts": f"127.0.0.1 localhost {HOSTNAME}\n::1 localhost\n",
    "/etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
    "/etc/shells": "/bin/sh\n/bin/bash\n",
}
ENVIRONMENT = {
    # /usr/local last: it can be written, and nothing put there stands for one of the system's.
    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/sbin:/usr/local/bin",
    "HOME": "/root",
    "USER": "root",
    "SHELL": "/bin/bash",
    "LANG": "C.UTF-8",
    "TERM": "dumb",
}


def python() -> str:
    """The interpreter that runs the programs inside; "" where the machine has none in /usr."""
    for path in ("/usr/bin/python3", "/usr/local/bin/python3"):
        if pathlib.Path(path).exists():
            return path
    return ""


def _hides_local() -> bool:
    return python() == "/usr/bin/python3"


def folders() -> dict[str, int]:
    """Path inside -> permission bits of the folders that the supervisor makes."""
    return _FOLDERS | (_LOCAL_FOLDERS if _hides_local() else {})


def files(*, network: bool) -> dict[str, str]:
    """Path inside -> text of the files that the supervisor writes."""
    resolver = pathlib.Path("/etc/resolv.conf")
    if not network or not resolver.exists():
        return _TEXTS
    return _TEXTS | {"/etc/resolv.conf": resolver.read_text(encoding="utf-8", errors="replace")}


def disks() -> tuple[str, ...]:
    """Mount points inside whose use counts as memory."""
    return ("/", "/dev/shm", "/usr/local") if _hides_local() else ("/", "/dev/shm")


def arguments(
    *, limits: limits_lib.Limits, network: bool, read_only: Mapping[str, str]
) -> list[str]:
    """Bubblewrap's arguments, up to the command.

    Args:
        limits: sizes of the disks.
        network: share the machine's network; else there is only a loopback of its own.
        read_only: path on the machine -> path inside.
    """
    args = ["--unshare-user", "--unshare-ipc", "--unshare-pid", "--unshare-uts"]
    args += ["--unshare-cgroup-try", "--disable-userns", "--die-with-parent", "--new-session"]
    args += [] if network else ["--unshare-net"]
    args += ["--as-pid-1", "--uid", "0", "--gid", "0", "--hostname", HOSTNAME, "--clearenv"]
    args += ["--size", str(limits.disk_bytes), "--tmpfs", "/", "--ro-bind", "/usr", "/usr"]
    for name in ("bin", "lib", "lib32", "lib64", "libx32", "sbin"):
        args += _root_entry(name)
    if _hides_local():
        size = min(_LOCAL_BYTES, limits.disk_bytes)
        args += ["--size", str(size), "--perms", "0755", "--tmpfs", "/usr/local"]
    # bubblewrap's /dev is a tmpfs without a limit: closed, with a limited /dev/shm on it.
    args += ["--proc", "/proc", "--dev", "/dev", "--size", str(limits.shared_memory_bytes)]
    args += ["--perms", "1777", "--tmpfs", "/dev/shm", "--remount-ro", "/dev"]
    for name in _ETC:
        args += ["--ro-bind-try", f"/etc/{name}", f"/etc/{name}"]
    args += ["--symlink", "../usr/lib/os-release", "/etc/os-release"]
    for outside, inside in read_only.items():
        args += ["--ro-bind", outside, inside]
    return args


def _root_entry(name: str) -> Sequence[str]:
    """How /bin and its like appear: as the link into /usr that they are, or bound."""
    path = pathlib.Path("/", name)
    if path.is_symlink():
        return ["--symlink", f"usr/{name}", f"/{name}"]
    return ["--ro-bind-try", f"/{name}", f"/{name}"]


def missing_programs() -> list[str]:
    """What the machine lacks to run a sandbox at all."""
    needed = ("bwrap", "bash", "tar")
    missing = [name for name in needed if shutil.which(name) is None]
    return missing if python() else [*missing, "python3 (in /usr/bin)"]
