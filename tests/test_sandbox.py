"""The local sandbox does what a shell on a machine of one's own does: real bubblewrap and tmux."""

import hashlib
import os
import pathlib
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time

import pytest

from data_pipeline.sandbox import (
    cgroup,
    limits,
    root_view,
    sandbox,
    seccomp,
    verifier,
    watchdog,
)

needs_sandbox = pytest.mark.skipif(
    bool(root_view.missing_programs()),
    reason=f"no sandbox without {', '.join(root_view.missing_programs())}",
)


def make_box(**settings) -> sandbox.Sandbox:
    defaults = {"cpus": 1, "memory_mb": 256, "storage_mb": 64, "lifetime_s": 120}
    return sandbox.Sandbox(**(defaults | settings))


@pytest.fixture
def box():
    with make_box() as box:
        yield box


def has_process(mark: str) -> bool:
    """Whether any process of the machine has `mark` in its command line."""
    for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if mark.encode() in path.read_bytes():
                return True
        except OSError:
            continue  # it ended meanwhile
    return False


def wait_until(condition, *, within_s: float = 10.0) -> bool:
    deadline_s = time.monotonic() + within_s
    while time.monotonic() < deadline_s:
        if condition():
            return True
        time.sleep(0.05)
    return condition()


@needs_sandbox
def test_a_command_s_code_output_and_complaint(box):
    done = box.run("echo out; echo err >&2; exit 3", timeout_s=20)
    assert (done.return_code, done.stdout, done.stderr) == (3, b"out\n", b"err\n")
    assert done.status == "ok" and not done.truncated


@needs_sandbox
def test_a_command_as_words_is_not_read_by_a_shell(box):
    done = box.run(["/usr/bin/printf", "%s", "$HOME; `id`"], timeout_s=20)
    assert done.stdout == b"$HOME; `id`"


@needs_sandbox
def test_a_command_ended_by_a_signal_has_the_code_of_a_shell(box):
    assert box.run("kill -SEGV $$", timeout_s=20).return_code == 128 + signal.SIGSEGV


@needs_sandbox
def test_a_program_or_folder_that_is_missing_is_told(box):
    for arguments in ({"command": ["/no/such"]}, {"command": "true", "cwd": "/no/such"}):
        done = box.run(**arguments, timeout_s=20)
        assert (done.return_code, done.status) == (126, "not_started")
        assert b"/no/such" in done.stderr


@needs_sandbox
def test_stdin_folder_and_environment(box):
    data = os.urandom(3_000_000)
    done = box.run("sha256sum", stdin=data, timeout_s=60)
    assert done.stdout.split()[0].decode() == hashlib.sha256(data).hexdigest()
    done = box.run('pwd; echo "$COLOUR $HOME"', cwd="/tmp", env={"COLOUR": "red"}, timeout_s=20)
    assert done.stdout == b"/tmp\nred /root\n"
    assert box.run("head -c 1 >/dev/null", stdin=data, timeout_s=20).status == "ok"


@needs_sandbox
def test_a_command_gets_three_descriptors_and_default_signals(box):
    done = box.run(["/bin/ls", "/proc/self/fd"], timeout_s=20)
    assert done.stdout.split() == [b"0", b"1", b"2", b"3"]  # 3 is the folder that ls reads
    done = box.run("yes | head -1; echo ${PIPESTATUS[0]}", timeout_s=20)
    assert done.stdout == b"y\n141\n"  # SIGPIPE ends `yes`


@needs_sandbox
def test_commands_of_several_threads_run_at_once(box):
    def sleep(number: int):
        results[number] = box.run(f"sleep 1; echo {number}", timeout_s=30).stdout

    results: dict[int, bytes] = {}
    threads = [threading.Thread(target=sleep, args=(number,)) for number in range(8)]
    began_s = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {number: b"%d\n" % number for number in range(8)}
    assert time.monotonic() - began_s < 6


@needs_sandbox
def test_the_time_is_over_even_for_what_ignores_sigterm(box):
    command = "trap '' TERM; (trap '' TERM; sleep 777001) & while :; do sleep 1; done"
    done = box.run(command, timeout_s=1)
    assert (done.return_code, done.status) == (124, "timeout")
    assert wait_until(lambda: not has_process("777001"))  # its group went with it


@needs_sandbox
def test_a_command_can_be_cancelled(box):
    cancelled = threading.Event()
    threading.Timer(0.5, cancelled.set).start()
    done = box.run("sleep 777002", timeout_s=100, cancelled=cancelled)
    assert done.status == "cancelled"
    assert wait_until(lambda: not has_process("777002"))


@needs_sandbox
def test_output_beyond_the_bound_is_dropped(box):
    done = box.run("yes | head -c 5000000; echo end >&2", timeout_s=60, max_output_bytes=1000)
    assert done.stdout == b"y\n" * 500 and done.truncated
    assert (done.return_code, done.stderr) == (0, b"end\n")


@needs_sandbox
def test_what_runs_in_the_background_goes_on_until_the_end():
    with make_box() as box:
        began_s = time.monotonic()
        assert box.run("sleep 777003 & echo started", timeout_s=30).stdout == b"started\n"
        assert time.monotonic() - began_s < 20
        assert box.run("pgrep -f 777003 || grep -l 777003 /proc/*/cmdline", timeout_s=30).stdout
        assert has_process("777003")
    assert not has_process("777003")


@needs_sandbox
@pytest.mark.skipif(not pathlib.Path("/usr/bin/tmux").exists(), reason="no /usr/bin/tmux")
def test_tmux_lives_between_commands(box):
    started = box.run("tmux new-session -d -x 80 -y 24 -s main 'bash --login'", timeout_s=30)
    assert started.return_code == 0, started.stderr
    box.run("tmux send-keys -t main 'echo $((6 * 7)) > /app/answer' Enter", timeout_s=30)
    assert wait_until(lambda: box.run("cat /app/answer", timeout_s=30).stdout == b"42\n")


@needs_sandbox
def test_files_go_in_and_come_out(box, tmp_path):
    data = os.urandom(100_000)
    box.put_file(data, "/made/for/this/file", 0o750)
    assert box.get_file("/made/for/this/file") == data
    assert box.run("stat -c %a /made/for/this/file", timeout_s=20).stdout == b"750\n"
    (tmp_path / "on host").write_bytes(b"x")
    box.put_file(tmp_path / "on host", "/app/copied")
    assert box.get_file("/app/copied") == b"x"
    with pytest.raises(sandbox.SandboxError, match="No such file"):
        box.get_file("/app/missing")
    with pytest.raises(ValueError, match="absolute"):
        box.put_file(b"", "relative")


@needs_sandbox
def test_folders_go_in_and_come_out_the_same(box, tmp_path):
    source, target = tmp_path / "in", tmp_path / "out"
    (source / "empty").mkdir(parents=True)
    (source / "deep/er").mkdir(parents=True)
    (source / "deep/er/program.sh").write_text("#!/bin/sh\n")
    (source / "deep/er/program.sh").chmod(0o755)
    (source / "name with ' and \n").write_bytes(os.urandom(700_000))
    (source / "nothing").touch(mode=0o600)
    box.put_dir(source, "/app")
    assert box.get_dir("/app", target) == []

    def tree(top: pathlib.Path) -> dict:
        return {
            str(path.relative_to(top)): (path.is_file() and path.read_bytes(), path.stat().st_mode)
            for path in top.rglob("*")
        }

    assert tree(target) == tree(source)


@needs_sandbox
def test_the_view_is_a_machine_of_its_own(box):
    done = box.run("id -u; hostname; ls / | tr '\\n' ' '; ls -A /usr/local/bin /root", timeout_s=20)
    lines = done.stdout.decode().splitlines()
    assert lines[:2] == ["0", "sandbox"]
    assert {"app", "tests", "solution", "logs", "usr", "tmp"} <= set(lines[2].split())
    assert "work" not in lines[2] and "sys" not in lines[2]
    for path in (
        "/app",
        "/root",
        "/tmp",
        "/var/tmp",
        "/logs",
        "/tests",
        "/solution",
        "/home",
        "/x",
    ):
        assert box.run(f"mkdir -p {path} && touch {path}/file", timeout_s=20).return_code == 0


@needs_sandbox
def test_the_list_of_processes_is_short(box):
    for command in (["/bin/cat", "/proc/1/cmdline"], ["/bin/ls", "/proc/1/fd"]):
        assert 0 < len(box.run(command, timeout_s=20).stdout) < 80


@needs_sandbox
def test_cores_are_those_given():
    with make_box(cpus=1) as box:
        assert box.run("nproc", timeout_s=20).stdout == b"1\n"


@needs_sandbox
def test_it_lives_on_when_the_thread_that_started_it_ends():
    box = make_box()
    thread = threading.Thread(target=box.start)
    thread.start()
    thread.join()
    time.sleep(0.3)
    assert box.run("echo alive", timeout_s=20).stdout == b"alive\n"
    box.stop()
    box.stop()
    assert box.status == "stopped"


@needs_sandbox
def test_its_lifetime_ends_it():
    with make_box(lifetime_s=1) as box:
        done = box.run("sleep 777004", timeout_s=60)
        assert (done.status, box.status) == ("killed", "lifetime")
        assert "lifetime_s=1" in box.reason and not has_process("777004")
        with pytest.raises(sandbox.SandboxEnded, match="lifetime"):
            box.run("true", timeout_s=1)


@needs_sandbox
def test_it_dies_with_the_program_that_started_it():
    program = (
        "from data_pipeline.sandbox import sandbox\n"
        "box = sandbox.Sandbox(cpus=1, memory_mb=128, storage_mb=16, lifetime_s=100)\n"
        "box.start()\nbox.run('setsid sleep 777005 & setsid sleep 777005', timeout_s=100)\n"
    )
    top = pathlib.Path(sandbox.__file__).parents[2]
    process = subprocess.Popen([sys.executable, "-c", program], cwd=top)
    assert wait_until(lambda: has_process("sleep\x00777005"), within_s=30)
    process.kill()
    process.wait()
    assert wait_until(lambda: not has_process("sleep\x00777005"))


def test_it_refuses_to_start_without_bubblewrap(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(sandbox.SandboxError, match=r"needs bwrap.*install the packages bubblewrap"):
        make_box().start()


@needs_sandbox
def test_it_refuses_to_start_where_bubblewrap_fails(monkeypatch, tmp_path):
    tmp_path.chmod(0o755)
    (tmp_path / "bwrap").write_text("#!/bin/sh\necho bwrap: No permissions >&2\nexit 1\n")
    (tmp_path / "bwrap").chmod(0o755)
    for parent in tmp_path.parents[:3]:  # one more under xdist
        if parent.stat().st_uid == os.geteuid():
            parent.chmod(parent.stat().st_mode | stat.S_IXOTH)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    box = make_box()
    with pytest.raises(sandbox.SandboxError, match=r"No permissions.*user namespaces"):
        box.start()
    with pytest.raises(sandbox.SandboxEnded, match="did not start"):
        box.run("true", timeout_s=1)


def test_limits_are_checked_together():
    with pytest.raises(ValueError, match=r"cpus=0 must be 1 or more; memory_mb=1 must be 64"):
        limits.Limits(cpus=0, memory_mb=1, lifetime_s=10)
    assert limits.Limits(memory_mb=100, storage_mb=200, lifetime_s=1).disk_bytes == 100 << 20


def test_the_filter_is_known_for_both_machines_and_no_other():
    assert len(seccomp.program("x86_64")) % 8 == len(seccomp.program("aarch64")) % 8 == 0
    with pytest.raises(ValueError, match="knows x86_64, aarch64; this is riscv64"):
        seccomp.program("riscv64")


@needs_sandbox
def test_it_cannot_start_twice_nor_after_its_end():
    box = make_box()
    box.stop()
    with pytest.raises(sandbox.SandboxEnded, match="ended \\(stopped\\)"):
        box.start()
    with make_box() as box, pytest.raises(sandbox.SandboxEnded, match="starts once"):
        box.start()


@needs_sandbox
def test_nothing_stays_open_in_the_program_that_used_it(box):
    def num_open() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = num_open()
    for _ in range(5):
        box.run("echo x; echo y >&2", stdin=b"z", timeout_s=20)
        box.run("true &", timeout_s=20)
        with make_box() as other:
            other.put_file(b"x", "/app/x")
            other.get_file("/app/x")
    assert num_open() == before


def test_a_control_group_holds_the_limits_where_one_can_be_made():
    numbers = limits.Limits(cpus=2, memory_mb=128, max_processes=50, lifetime_s=1)
    group = cgroup.create(numbers)
    if group is None:
        pytest.skip("this user has no cgroup v2 with memory and pids to make one in")
    with subprocess.Popen(["/bin/sleep", "60"]) as process:
        assert group.add(process.pid)
        text = pathlib.Path(f"/proc/{process.pid}/cgroup").read_text()
        folder = pathlib.Path("/sys/fs/cgroup" + text.strip().rsplit("::")[-1])
        assert int((folder / "memory.max").read_text()) == 128 << 20
        assert int((folder / "pids.max").read_text()) == 58
        process.kill()
    assert not group.was_out_of_memory()
    group.remove()
    assert not folder.exists()


def test_the_machine_s_shortage_of_memory_is_not_the_group_s(tmp_path):
    """The kernel counts each of its kills, but calls on the limit only where that was reached."""
    events, group = tmp_path / "memory.events", cgroup.Cgroup(tmp_path)
    events.write_text("low 0\nhigh 0\nmax 0\noom 0\noom_kill 3\noom_group_kill 1\n")
    assert not group.was_out_of_memory()
    events.write_text("low 0\nhigh 0\nmax 40\noom 1\noom_kill 3\noom_group_kill 1\n")
    assert group.was_out_of_memory()


@needs_sandbox
def test_usage_is_what_the_programs_take(box):
    before = box._keeper.usage()
    program = "x = bytearray(60 << 20); import time; print('full', flush=True); time.sleep(60)"
    box.run(f'/usr/bin/env python3 -c "{program}" > /tmp/log & ', timeout_s=20)
    box.run("head -c 20971520 /dev/zero > /app/file", timeout_s=30)
    assert wait_until(lambda: box.run("cat /tmp/log", timeout_s=20).stdout == b"full\n")
    usage = box._keeper.usage()
    assert isinstance(usage, watchdog.Usage) and before is not None
    assert 60 << 20 <= usage.private_bytes - before.private_bytes < 75 << 20
    assert 20 << 20 <= usage.disk_bytes - before.disk_bytes < 21 << 20


def test_the_verifier_s_packages_run_tests_inside():
    folder = pathlib.Path(tempfile.mkdtemp(prefix="verifier-"))
    try:
        verifier.collect(folder)
        if root_view.missing_programs():
            pytest.skip("no sandbox here")
        with make_box(read_only={str(folder): verifier.INSIDE}) as box:
            box.put_file(b"def test_a(): assert 1\ndef test_b(): assert 0\n", "/tests/test_x.py")
            done = box.run(
                "python3 -m pytest -q /tests/test_x.py; touch /opt/verifier/x",
                env={"PYTHONPATH": verifier.INSIDE},
                timeout_s=120,
            )
        assert b"1 failed, 1 passed" in done.stdout, done.stderr
        assert b"Read-only file system" in done.stderr
    finally:
        shutil.rmtree(folder)


def _public_python(folder: pathlib.Path) -> dict[str, str]:
    """Copy this interpreter to where every user may run it; returns its environment."""
    base, version = pathlib.Path(sys.base_prefix), f"python3.{sys.version_info.minor}"
    without = shutil.ignore_patterns(
        "test", "tests", "site-packages", "idlelib", "tkinter", "*.pyc"
    )
    shutil.copytree(base / "lib" / version, folder / "lib" / version, ignore=without)
    for library in (base / "lib").glob("libpython*.so*"):
        shutil.copy2(library, folder / "lib" / library.name)
    (folder / "bin").mkdir()
    shutil.copy2(os.path.realpath(sys.executable), folder / "bin/python3")
    return {"PYTHONHOME": str(folder), "LD_LIBRARY_PATH": str(folder / "lib")}


@pytest.mark.slow
@needs_sandbox
@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("setpriv") is None,
    reason="only root with setpriv can run the tests again as somebody else",
)
def test_all_of_this_holds_for_an_ordinary_user():
    tests = pathlib.Path(__file__).parent
    with tempfile.TemporaryDirectory(prefix="ordinary-") as name:
        folder = pathlib.Path(name)
        folder.chmod(0o755)
        env = _public_python(folder / "python")
        verifier.collect(folder / "packages")
        shutil.copytree(
            tests.parent / "data_pipeline/sandbox", folder / "copy/data_pipeline/sandbox"
        )
        (folder / "copy/data_pipeline/__init__.py").touch()
        for path in tests.glob("test_sandbox*.py"):
            shutil.copy(path, folder / "copy")
        subprocess.run(["chmod", "-R", "a+rX", str(folder)], check=True)
        env |= {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "PYTHONDONTWRITEBYTECODE": "1"}
        env |= {"PYTHONPATH": f"{folder / 'packages'}:{folder / 'copy'}"}
        user = ["setpriv", "--reuid=1878000001", "--regid=1878000001", "--clear-groups"]
        pytest_args = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow", "-rs"]
        done = subprocess.run(
            [*user, str(folder / "python/bin/python3"), *pytest_args, "-c", "/dev/null", "."],
            cwd=folder / "copy",
            env=env,
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert " passed" in done.stdout and "no sandbox without" not in done.stdout
