"""Memory that the kernel holds in pipes and sockets: bounded each, charged to the sandbox."""

import errno
import pathlib

import pytest

from data_pipeline.sandbox import root_view, sandbox, watchdog

pytestmark = pytest.mark.skipif(
    bool(root_view.missing_programs()),
    reason=f"no sandbox without {', '.join(root_view.missing_programs())}",
)
FILL = """
import errno, fcntl, os, socket, threading, time
def fill(file):
    os.set_blocking(file, False)
    held = 0
    try:
        while True: held += os.write(file, bytes(32768))
    except BlockingIOError:
        return held
def told(call, *arguments):
    try:
        return call(*arguments)
    except OSError as fault:
        return errno.errorcode[fault.errno]
"""


def make_box(**settings) -> sandbox.Sandbox:
    defaults = {"cpus": 1, "memory_mb": 128, "storage_mb": 32, "lifetime_s": 120}
    return sandbox.Sandbox(**(defaults | settings))


def run_python(box: sandbox.Sandbox, program: str) -> list[str]:
    done = box.run(["/usr/bin/python3", "-c", FILL + program], timeout_s=60)
    return (done.stdout + done.stderr).decode().split()


def default_bytes(name: str) -> int:
    return int(pathlib.Path(f"/proc/sys/net/core/{name}mem_default").read_text())


def test_buffers_stay_as_large_as_they_are():
    program = """
for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
    one, other = socket.socketpair()
    one.setsockopt(socket.SOL_SOCKET, option, 4 << 20)
    print(one.getsockopt(socket.SOL_SOCKET, option), fill(one.fileno()) < 1 << 19)
for option in (32, 33):  # without the limits of the machine's owner
    print(told(one.setsockopt, socket.SOL_SOCKET, option, 4 << 20))
one.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)  # others are let through
print(one.getsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED))
tcp = socket.socket()
tcp.setsockopt(socket.IPPROTO_TCP, 7, 30)  # of another level
print(tcp.getsockopt(socket.IPPROTO_TCP, 7))
out, into = os.pipe()
print(told(fcntl.fcntl, into, 1031, 1 << 20), told(fcntl.fcntl, into, 1031, 4096), fill(into))
"""
    with make_box() as box:
        found = run_python(box, program)
    expected = [str(default_bytes("w")), "True", str(default_bytes("r")), "True"]
    assert found == [*expected, "EPERM", "EPERM", "1", "30", "EPERM", "4096", "4096"]


def test_open_files_cannot_be_hidden_in_a_thread():
    """A thread with files of its own would show none of them in /proc/PID/fd."""
    program = """
import ctypes, platform
libc = ctypes.CDLL(None, use_errno=True)
unshare, close_range, clone, clone3 = {calls}
def call(*arguments):
    print(libc.syscall(*arguments), errno.errorcode.get(ctypes.get_errno()))
call(unshare, 0x400)
call(close_range, 900, 1000, 2)
call(clone, 0x10000 | 0x800 | 0x100, 0, 0, 0, 0)  # thread, handlers, memory; not the files
call(clone3, 0, 0)
libc.unshare(0x200)  # the folder a thread is in is its own affair
threading.Thread(target=print, args=("thread",)).start()
"""
    x86 = pathlib.Path("/lib64/ld-linux-x86-64.so.2").exists()
    calls = (272, 436, 56, 435) if x86 else (97, 436, 220, 435)
    with make_box() as box:
        found = run_python(box, program.format(calls=calls))
    assert found == [*["-1", "EPERM"] * 3, "-1", "ENOSYS", "thread"]


def test_pipes_do_not_keep_the_huge_pages_that_were_spliced_into_them():
    program = """
import ctypes, platform
number = {"x86_64": 278, "aarch64": 75}[platform.machine()]
libc = ctypes.CDLL(None, use_errno=True)
print(libc.syscall(number, os.pipe()[1], 0, 0, 0), ctypes.get_errno())
"""
    with make_box() as box:
        assert run_python(box, program) == ["-1", str(errno.ENOSYS)]


PIPES = """
for _ in range(5): os.fork()
pipes = [os.pipe() for _ in range(70)]
for _, into in pipes: fill(into)
time.sleep(60)
"""
FIFOS = """
os.fork(), os.fork(), os.fork()
for n in range(300):
    os.mkfifo(f"/app/{os.getpid()}-{n}")
    fill(os.open(f"/app/{os.getpid()}-{n}", os.O_RDWR))
    os.unlink(f"/app/{os.getpid()}-{n}")
time.sleep(60)
"""
IN_FLIGHT = """
import array
way = socket.socketpair()
for _ in range(400):
    pair = socket.socketpair()
    fill(pair[0].fileno())
    numbers = array.array("i", [one.fileno() for one in pair])
    way[0].sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, numbers)])
    for one in pair: one.close()
time.sleep(60)
"""
TCP = """
server = socket.create_server(("127.0.0.1", 0), backlog=1000)
ends = []
for _ in range(200):
    ends.append(socket.create_connection(server.getsockname()))
    ends.append(server.accept()[0])
while True:
    for end in ends: fill(end.fileno())
"""


@pytest.mark.parametrize(
    ("program", "network"),
    [(PIPES, False), (FIFOS, False), (IN_FLIGHT, False), (TCP, False), (PIPES, True)],
)
def test_buffers_that_are_too_many_end_the_sandbox(program, network):
    with make_box(network=network) as box:
        done = box.run(["/usr/bin/python3", "-c", FILL + program], timeout_s=60)
        assert (done.status, box.status) == ("killed", "out_of_memory"), done
        assert "memory_mb=128" in box.reason and "in buffers" in box.reason


def test_sockets_of_the_machine_s_network_are_charged_too():
    program = "pairs = [socket.socketpair() for _ in range(400)]\ntime.sleep(60)"
    with make_box(network=True) as box:
        done = box.run(["/usr/bin/python3", "-c", FILL + program], timeout_s=60)
        assert (done.status, box.status) == ("killed", "out_of_memory"), done


def test_idle_connections_and_inherited_files_cost_little():
    program = """
server = socket.create_server(("127.0.0.1", 0), backlog=1000)
ends = []
for _ in range(300):
    ends.append(socket.create_connection(server.getsockname()))
    ends.append(server.accept()[0])
pipes = [os.pipe() for _ in range(100)]
os.fork(), os.fork(), os.fork()
time.sleep(1)
print("alive")
"""
    with make_box() as box:
        assert run_python(box, program) == ["alive"] * 8
        assert box.status == "running"


def test_the_machine_s_shortage_of_memory_is_no_limit_of_the_sandbox(monkeypatch):
    with make_box() as box:
        monkeypatch.setattr(watchdog, "_HOST_RESERVE_BYTES", 1 << 60)
        box._keeper.wait_ended(timeout_s=20)
        assert box.status == "machine_out_of_memory" and "fewer sandboxes" in box.reason
        with pytest.raises(sandbox.SandboxLost, match=r"\(machine_out_of_memory\)"):
            box.run("true", timeout_s=5)
