"""The local sandbox does what a shell on a machine of one's own does: real bubblewrap and tmux."""

import hashlib
import os
import pathlib
import signal
import threading
import time

import boxes
import pytest

from data_pipeline.sandbox import (
    sandbox,
)


@pytest.fixture
def box():
    with boxes.make_box() as box:
        yield box


@boxes.needs_programs
def test_a_command_s_code_output_and_complaint(box):
    done = box.run("echo out; echo err >&2; exit 3", timeout_s=20)
    assert (done.return_code, done.stdout, done.stderr) == (3, b"out\n", b"err\n")
    assert done.status == "ok" and not done.truncated


@boxes.needs_programs
def test_a_command_as_words_is_not_read_by_a_shell(box):
    done = box.run(["/usr/bin/printf", "%s", "$HOME; `id`"], timeout_s=20)
    assert done.stdout == b"$HOME; `id`"


@boxes.needs_programs
def test_a_command_ended_by_a_signal_has_the_code_of_a_shell(box):
    assert box.run("kill -SEGV $$", timeout_s=20).return_code == 128 + signal.SIGSEGV


@boxes.needs_programs
def test_a_program_or_folder_that_is_missing_is_told(box):
    for arguments in ({"command": ["/no/such"]}, {"command": "true", "cwd": "/no/such"}):
        done = box.run(**arguments, timeout_s=20)
        assert (done.return_code, done.status) == (126, "not_started")
        assert b"/no/such" in done.stderr


@boxes.needs_programs
def test_stdin_folder_and_environment(box):
    data = os.urandom(3_000_000)
    done = box.run("sha256sum", stdin=data, timeout_s=60)
    assert done.stdout.split()[0].decode() == hashlib.sha256(data).hexdigest()
    done = box.run('pwd; echo "$COLOUR $HOME"', cwd="/tmp", env={"COLOUR": "red"}, timeout_s=20)
    assert done.stdout == b"/tmp\nred /root\n"
    assert box.run("head -c 1 >/dev/null", stdin=data, timeout_s=20).status == "ok"


@boxes.needs_programs
def test_a_command_gets_three_descriptors_and_default_signals(box):
    done = box.run(["/bin/ls", "/proc/self/fd"], timeout_s=20)
    assert done.stdout.split() == [b"0", b"1", b"2", b"3"]  # 3 is the folder that ls reads
    done = box.run("yes | head -1; echo ${PIPESTATUS[0]}", timeout_s=20)
    assert done.stdout == b"y\n141\n"  # SIGPIPE ends `yes`


@boxes.needs_programs
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


@boxes.needs_programs
def test_the_time_is_over_even_for_what_ignores_sigterm(box):
    command = "trap '' TERM; (trap '' TERM; sleep 777001) & while :; do sleep 1; done"
    done = box.run(command, timeout_s=1)
    assert (done.return_code, done.status) == (124, "timeout")
    assert boxes.wait_until(lambda: not boxes.has_process("777001"))  # its group went with it


@boxes.needs_programs
def test_a_command_can_be_cancelled(box):
    cancelled = threading.Event()
    threading.Timer(0.5, cancelled.set).start()
    done = box.run("sleep 777002", timeout_s=100, cancelled=cancelled)
    assert done.status == "cancelled"
    assert boxes.wait_until(lambda: not boxes.has_process("777002"))


@boxes.needs_programs
def test_output_beyond_the_bound_is_dropped(box):
    done = box.run("yes | head -c 5000000; echo end >&2", timeout_s=60, max_output_bytes=1000)
    assert done.stdout == b"y\n" * 500 and done.truncated
    assert (done.return_code, done.stderr) == (0, b"end\n")


@boxes.needs_programs
def test_what_runs_in_the_background_goes_on_until_the_end():
    with boxes.make_box() as box:
        began_s = time.monotonic()
        assert box.run("sleep 777003 & echo started", timeout_s=30).stdout == b"started\n"
        assert time.monotonic() - began_s < 20
        assert box.run("pgrep -f 777003 || grep -l 777003 /proc/*/cmdline", timeout_s=30).stdout
        assert boxes.has_process("777003")
    assert not boxes.has_process("777003")


@boxes.needs_programs
@pytest.mark.skipif(not pathlib.Path("/usr/bin/tmux").exists(), reason="no /usr/bin/tmux")
def test_tmux_lives_between_commands(box):
    started = box.run("tmux new-session -d -x 80 -y 24 -s main 'bash --login'", timeout_s=30)
    assert started.return_code == 0, started.stderr
    box.run("tmux send-keys -t main 'echo $((6 * 7)) > /app/answer' Enter", timeout_s=30)
    assert boxes.wait_until(lambda: box.run("cat /app/answer", timeout_s=30).stdout == b"42\n")


@boxes.needs_programs
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


@boxes.needs_programs
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


@boxes.needs_programs
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


@boxes.needs_programs
def test_the_list_of_processes_is_short(box):
    for command in (["/bin/cat", "/proc/1/cmdline"], ["/bin/ls", "/proc/1/fd"]):
        assert 0 < len(box.run(command, timeout_s=20).stdout) < 80


@boxes.needs_programs
def test_cores_are_those_given():
    with boxes.make_box(cpus=1) as box:
        assert box.run("nproc", timeout_s=20).stdout == b"1\n"
