"""What a hostile program in the local sandbox tries; each time the machine must not notice.

Nothing is simulated: the programs run in real sandboxes, and what they reach for (files, services,
keys, a parent process) really is on the machine that runs the test.
"""

import ctypes
import errno
import functools
import http.server
import os
import pathlib
import socket
import threading
import time

import pytest

from data_pipeline.sandbox import root_view, sandbox

pytestmark = pytest.mark.skipif(
    bool(root_view.missing_programs()),
    reason=f"no sandbox without {', '.join(root_view.missing_programs())}",
)
SECRET = "hidden-marmalade-91"


def make_box(**settings) -> sandbox.Sandbox:
    defaults = {"cpus": 1, "memory_mb": 256, "storage_mb": 32, "lifetime_s": 120}
    return sandbox.Sandbox(**(defaults | settings))


@pytest.fixture
def box():
    with make_box() as box:
        yield box


def run_python(box: sandbox.Sandbox, program: str, *, timeout_s: float = 60) -> sandbox.Result:
    return box.run(["/usr/bin/env", "python3", "-c", program], timeout_s=timeout_s)


def num_processes() -> int:
    """Threads of the whole machine."""
    return int(pathlib.Path("/proc/loadavg").read_text().split()[3].split("/")[1])


def commands_with(mark: str) -> list[int]:
    """PIDs of the machine whose command line holds `mark`."""
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if mark.encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue  # it ended meanwhile
    return found


# Files and keys of the machine.


@pytest.mark.parametrize(
    "command",
    [
        "touch /usr/escaped",
        "echo x > /usr/bin/escaped",
        "rm -f /usr/bin/env",
        "touch /dev/escaped",
        "echo 1 > /proc/sys/kernel/panic",
        "echo b > /proc/sysrq-trigger",
        "mknod /tmp/disk b 254 0 && cat /tmp/disk",
        "mount -t tmpfs none /mnt",
        "mount -o remount,rw /usr",
        "umount /usr",
        "unshare --user --map-root-user true",
        "unshare --mount true",
        "nsenter --target 1 --mount true",
        "chroot /app /bin/true",
        "echo core > /proc/sys/kernel/core_pattern",
        "hostname escaped",
        "python3 -c 'import os; os.setuid(1000)'",
    ],
)
def test_the_machine_s_files_and_settings_cannot_be_changed(box, command):
    before = os.stat("/usr/bin").st_mtime_ns, socket.gethostname()
    done = box.run(command, timeout_s=30)
    assert done.return_code != 0 and done.stderr, "the command was expected to be refused"
    assert (os.stat("/usr/bin").st_mtime_ns, socket.gethostname()) == before
    assert not any(path.name == "escaped" for top in ("/usr", "/usr/bin", "/dev")
                   for path in pathlib.Path(top).iterdir())  # fmt: skip


def test_the_machine_s_files_cannot_be_read(tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET_KEY", SECRET)
    path = tmp_path / "id_rsa"
    path.write_text(SECRET)
    places = [str(path), f"/proc/1/root{path}", f"/proc/self/root/oldroot{path}", f"/..{path}"]
    places += [f"/proc/1/cwd{path}", f"/proc/1/fd/0/..{path}", f"/usr/../..{path}", "/etc/shadow"]
    with make_box() as box:
        for place in places:
            assert box.run(["/bin/cat", place], timeout_s=20).return_code != 0, place
        search = f"grep -rs {SECRET[:-1]}[9]* /proc/*/environ /proc/*/cmdline /etc /root /home /run"
        done = box.run(f"ls {path.parent}; env; {search}; true", timeout_s=60)
        assert SECRET.encode() not in done.stdout
        names = box.run("ls -A /home /root /run /mnt /srv /usr/local/bin", timeout_s=20).stdout
        for home in (*pathlib.Path("/home").iterdir(), pathlib.Path.home()):
            if home.name not in ("", "root"):
                assert home.name.encode() not in names.split()
        assert box.run("cat /proc/mounts", timeout_s=20).stdout.count(b" / tmpfs ") == 1


def test_the_first_process_cannot_be_read_traced_or_killed(box):
    program = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
print(libc.ptrace(16, 1, 0, 0), ctypes.get_errno())
for name in ("mem", "maps", "environ", "fd/0"):
    try:
        print(name, os.open(f"/proc/1/{name}", os.O_RDWR if name == "mem" else os.O_RDONLY))
    except OSError as fault:
        print(name, fault.errno)
"""
    done = run_python(box, program)
    lines = done.stdout.decode().splitlines()
    assert lines[0] == f"-1 {errno.EPERM}", done.stderr
    assert {line.split()[1] for line in lines[1:]} <= {str(errno.EACCES), str(errno.EPERM)}
    for number in ("KILL", "STOP", "TERM", "INT", "SEGV", "CHLD", "USR1", "HUP"):
        box.run(f"kill -{number} 1", timeout_s=20)
    assert box.run("sleep 60 & kill -9 -1; echo $?", timeout_s=20).stdout == b"0\n"
    assert box.run("echo alive", timeout_s=20).stdout == b"alive\n"


def test_the_processes_of_the_machine_cannot_be_seen_or_killed(box):
    own = os.getpid()
    done = box.run(
        f"ls -d /proc/[0-9]* | wc -l; kill -9 {own}; kill -9 {os.getppid()}", timeout_s=20
    )
    assert int(done.stdout) < 8
    assert done.stderr.count(b"No such process") == 2
    if os.geteuid() == 0:  # nor is it anyone's who has files or processes here
        box.run("sleep 777100 &", timeout_s=20)
        users = {os.stat(f"/proc/{pid}").st_uid for pid in commands_with("sleep\x00777100")}
        assert users and min(users) >= 1_879_048_192


def test_kernel_keys_of_the_machine_cannot_be_read(box):
    libc = ctypes.CDLL(None, use_errno=True)
    numbers = {"x86_64": (248, 250), "aarch64": (217, 219)}[os.uname().machine]
    libc.syscall(numbers[0], b"user", b"sandbox-test", SECRET.encode(), len(SECRET), -3)
    program = f"""
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
for arguments in ((0, -3, 0), (10, -3, b"user", b"sandbox-test", 0)):
    print(libc.syscall({numbers[1]}, *arguments), ctypes.get_errno())
"""
    assert run_python(box, program).stdout.decode().split("\n")[:2] == [f"-1 {errno.EPERM}"] * 2


# The network.

CONNECT = """
import socket, sys
for kind, address in {targets!r}:
    one = socket.socket(getattr(socket, kind), socket.SOCK_STREAM)
    one.settimeout(3)
    try:
        one.connect(address)
        print("connected", address)
    except OSError as fault:
        print("refused", fault.errno)
"""


@pytest.fixture
def services():
    """A web server on the loopback and an abstract Unix socket, both of the machine."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    name = f"\0sandbox-test-{os.getpid()}"
    with server, socket.socket(socket.AF_UNIX) as abstract:
        abstract.bind(name)
        abstract.listen()
        yield [("AF_INET", ("127.0.0.1", server.server_port)), ("AF_UNIX", name)]


def test_there_is_no_network_unless_it_is_given(services):
    program = CONNECT.format(targets=services)
    with make_box() as box:
        assert run_python(box, program).stdout.count(b"refused") == 2
        outside = CONNECT.format(targets=[("AF_INET", ("192.0.2.1", 80))])
        assert run_python(box, outside).stdout == b"refused %d\n" % errno.ENETUNREACH
        assert (
            b"refused"
            in run_python(box, CONNECT.format(targets=[("AF_INET", ("8.8.8.8", 53))])).stdout
        )
        devices = box.run("tail -n +3 /proc/net/dev | cut -d: -f1", timeout_s=20).stdout.split()
        assert set(devices) <= {b"lo"}
    with make_box(network=True) as box:  # the same program does reach them then
        assert run_python(box, program).stdout.count(b"connected") == 2


def test_sockets_that_no_namespace_holds_are_refused(box):
    program = """
import socket
for family in (40, 17, 38, 29, 31):  # vsock, packet, alg, can, bluetooth
    try:
        socket.socket(family, socket.SOCK_DGRAM)
        print("open")
    except OSError as fault:
        print(fault.errno)
"""
    assert run_python(box, program).stdout.split() == [b"%d" % errno.EAFNOSUPPORT] * 5


# Processes, memory, disk.


SHELL_BOMB = ":(){ :|:& };: ; sleep 1; while pgrep bash | grep -v $$ >/dev/null; do sleep 1; done"
PATIENT_BOMB = """exec python3 -c '
import os
while True:
    try:
        os.fork()
    except OSError:
        pass
'"""


@pytest.mark.parametrize("bomb", [SHELL_BOMB, PATIENT_BOMB])
def test_a_fork_bomb_hurts_only_itself(bomb):
    before, worst = num_processes(), 0
    with make_box(max_processes=100) as box:
        thread = threading.Thread(target=box.run, args=(bomb,), kwargs={"timeout_s": 60})
        thread.start()
        while thread.is_alive():
            worst = max(worst, num_processes())
            time.sleep(0.05)
        if bomb == PATIENT_BOMB:
            assert box.status == "too_many_processes" and "max_processes=100" in box.reason
            with pytest.raises(sandbox.SandboxEnded, match="too_many_processes"):
                box.run("true", timeout_s=1)
        else:  # it starves itself
            assert box.status in ("running", "too_many_processes")
    assert before + 10 < worst < before + 400


def test_a_process_that_eats_memory_fails_by_itself(box):
    done = run_python(box, "x = bytearray(400 << 20)")
    assert done.return_code == 1 and b"MemoryError" in done.stderr
    assert box.run("echo alive", timeout_s=20).stdout == b"alive\n"


MANY_EATERS = (
    "import os\nfor _ in range(5): os.fork()\nx = bytearray(60 << 20)\nimport time; time.sleep(60)"
)
SHARED = """
import mmap, time
x = mmap.mmap(-1, 600 << 20)
for at in range(0, len(x), 4096): x[at] = 1
time.sleep(60)
"""
SOCKETS = """
import contextlib, socket, time
for one, other in (pairs := [socket.socketpair() for _ in range(400)]):
    one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
    one.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True: one.send(bytes(65536))
time.sleep(60)
"""
EMPTY_FILES = "n = 0\nwhile True:\n open(f'/app/{n}', 'w').close(); n += 1"


@pytest.mark.parametrize("program", [MANY_EATERS, SHARED, EMPTY_FILES, SOCKETS])
def test_processes_that_eat_memory_together_end_the_sandbox(program):
    with make_box(memory_mb=128) as box:
        done = run_python(box, program, timeout_s=100)
        assert (done.status, box.status) == ("killed", "out_of_memory"), done
        assert "memory_mb=128" in box.reason


def test_memory_that_nobody_is_charged_with_is_not_given(box):
    program = """
import ctypes, os
try:
    os.memfd_create("x")
except OSError as fault:
    print(fault.errno)
libc = ctypes.CDLL(None, use_errno=True)
print(libc.shmget(0, 1 << 30, 0o1600), ctypes.get_errno(), libc.shmget(0, 4096, 0o1600) >= 0)
with open("/dev/shm/x", "wb") as file:
    file.write(bytes(200 << 20))
"""
    done = run_python(box, program)
    expected = f"{errno.ENOSYS}\n-1 {errno.ENOSPC} True\n"
    assert done.stdout.decode() == expected and b"No space left" in done.stderr


def test_a_full_disk_is_the_sandbox_s_own(box):
    done = box.run("cat /dev/zero > /app/big; cat /dev/zero > /tmp/more", timeout_s=60)
    assert done.stderr.count(b"No space left") == 2
    assert box.status == "running" and box.is_disk_full
    with pytest.raises(sandbox.SandboxError, match=r"No space left.*disk is full"):
        box.put_file(bytes(1 << 20), "/app/one")
    held = box.run("du -cB1 /app /tmp /root | tail -1", timeout_s=20).stdout
    assert 31 << 20 < int(held.split()[0]) <= 32 << 20
    assert box.run("rm -f /app/* /tmp/* /root/*; echo x > /app/y", timeout_s=20).return_code == 0
    assert not box.is_disk_full


def test_endless_output_costs_the_machine_nothing(box):
    began_s = time.monotonic()
    done = box.run("yes & cat /dev/zero >&2", timeout_s=2, max_output_bytes=1 << 20)
    assert done.status == "timeout" and done.truncated
    assert max(len(done.stdout), len(done.stderr)) == 1 << 20
    assert time.monotonic() - began_s < 30
    assert box.run("echo alive", timeout_s=20).stdout == b"alive\n"


def test_the_cores_cannot_be_widened(box):
    program = "import os; os.sched_setaffinity(0, range(os.cpu_count()))"
    assert b"PermissionError" in run_python(box, program).stderr


def test_nothing_is_left_over(box):
    hide = "(trap '' TERM HUP INT; exec setsid setsid sleep 777200) & disown -a; sleep 0.5"
    box.run(f"{hide}; nohup sh -c 'while :; do sleep 777200; done' >/dev/null 2>&1 &", timeout_s=20)
    assert commands_with("777200")
    box.stop()
    assert not commands_with("777200")


def test_a_sandbox_killed_from_outside_says_so(box):
    box.run("sleep 777300 & disown", timeout_s=20)
    threading.Timer(0.5, functools.partial(_kill_parents_of, "sleep\x00777300")).start()
    done = box.run("sleep 60", timeout_s=100)
    assert (done.status, box.status) == ("killed", "died")
    assert "ended from outside" in box.reason and not commands_with("777300")


def _kill_parents_of(mark: str) -> None:
    for pid in commands_with(mark):
        status = pathlib.Path(f"/proc/{pid}/status").read_text()
        os.kill(int(status.split("PPid:")[1].split()[0]), 9)
