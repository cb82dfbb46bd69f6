"""The life of a local sandbox: how it begins and ends, its limits, and for whom it works."""

import os
import pathlib
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
import time

import boxes
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


@pytest.fixture
def box():
    with boxes.make_box() as box:
        yield box


@boxes.needs_programs
def test_it_lives_on_when_the_thread_that_started_it_ends():
    box = boxes.make_box()
    thread = threading.Thread(target=box.start)
    thread.start()
    thread.join()
    time.sleep(0.3)
    assert box.run("echo alive", timeout_s=20).stdout == b"alive\n"
    box.stop()
    box.stop()
    assert box.status == "stopped"


@boxes.needs_programs
def test_its_lifetime_ends_it():
    with boxes.make_box(lifetime_s=1) as box:
        done = box.run("sleep 777004", timeout_s=60)
        assert (done.status, box.status) == ("killed", "lifetime")
        assert "lifetime_s=1" in box.reason and not boxes.has_process("777004")
        with pytest.raises(sandbox.SandboxEnded, match="lifetime"):
            box.run("true", timeout_s=1)


@boxes.needs_programs
def test_it_dies_with_the_program_that_started_it():
    program = (
        "from data_pipeline.sandbox import sandbox\n"
        "box = sandbox.Sandbox(cpus=1, memory_mb=128, storage_mb=16, lifetime_s=100)\n"
        "box.start()\nbox.run('setsid sleep 777005 & setsid sleep 777005', timeout_s=100)\n"
    )
    top = pathlib.Path(sandbox.__file__).parents[2]
    process = subprocess.Popen([sys.executable, "-c", program], cwd=top)
    assert boxes.wait_until(lambda: boxes.has_process("sleep\x00777005"), within_s=30)
    process.kill()
    process.wait()
    assert boxes.wait_until(lambda: not boxes.has_process("sleep\x00777005"))


def test_it_refuses_to_start_without_bubblewrap(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(sandbox.SandboxError, match=r"needs bwrap.*install the packages bubblewrap"):
        boxes.make_box().start()


@boxes.needs_programs
def test_it_refuses_to_start_where_bubblewrap_fails(monkeypatch, tmp_path):
    tmp_path.chmod(0o755)
    (tmp_path / "bwrap").write_text("#!/bin/sh\necho bwrap: No permissions >&2\nexit 1\n")
    (tmp_path / "bwrap").chmod(0o755)
    for parent in tmp_path.parents[:3]:  # one more under xdist
        if parent.stat().st_uid == os.geteuid():
            parent.chmod(parent.stat().st_mode | stat.S_IXOTH)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    box = boxes.make_box()
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


@boxes.needs_programs
def test_it_cannot_start_twice_nor_after_its_end():
    box = boxes.make_box()
    box.stop()
    with pytest.raises(sandbox.SandboxEnded, match="ended \\(stopped\\)"):
        box.start()
    with boxes.make_box() as box, pytest.raises(sandbox.SandboxEnded, match="starts once"):
        box.start()


@boxes.needs_programs
def test_nothing_stays_open_in_the_program_that_used_it(box):
    def num_open() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = num_open()
    for _ in range(5):
        box.run("echo x; echo y >&2", stdin=b"z", timeout_s=20)
        box.run("true &", timeout_s=20)
        with boxes.make_box() as other:
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


@boxes.needs_programs
def test_usage_is_what_the_programs_take(box):
    before = box._keeper.usage()
    program = "x = bytearray(60 << 20); import time; print('full', flush=True); time.sleep(60)"
    box.run(f'/usr/bin/env python3 -c "{program}" > /tmp/log & ', timeout_s=20)
    box.run("head -c 20971520 /dev/zero > /app/file", timeout_s=30)
    assert boxes.wait_until(lambda: box.run("cat /tmp/log", timeout_s=20).stdout == b"full\n")
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
        with boxes.make_box(read_only={str(folder): verifier.INSIDE}) as box:
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
@boxes.needs_programs
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
        for path in (*tests.glob("test_sandbox*.py"), tests / "boxes.py"):
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
