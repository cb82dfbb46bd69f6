"""The recorder's terminal and sandbox: a real shell, its real output, nothing of this machine."""

import contextlib
import dataclasses
import os
import pathlib
import shutil
import signal
import socket
import time

import pytest
import sandboxes

from data_pipeline.recorder import isolation, terminal

FILES = {
    "a.txt": "1\n2\n",
    "run.sh": "#!/bin/sh\necho ran\n",
    "empty/": "",
    "u.txt": "gr\u00fc\u00df\n",
}


@pytest.fixture(params=[sandboxes.SANDBOX])  # so that the tests' names say it
def world(request):
    with isolation.make_world(FILES, sandbox=request.param) as made:
        yield made


@pytest.fixture
def shell(world):
    with terminal.Terminal(world) as made:
        made.read()
        yield made


def typed(shell, keystrokes, duration_s=1.0, *, waits=False):
    shell.send(keystrokes, duration_s, waits=waits)
    return shell.read()


def prompt(world, folder=""):
    return f"root@agent:{world.app}{folder}#"


def test_output_begins_and_ends_with_the_prompt(world, shell):
    assert typed(shell, "cat a.txt\n") == f"{prompt(world)} cat a.txt\n1\n2\n{prompt(world)}"


def test_unicode_and_carriage_returns(world, shell):
    assert typed(shell, "cat u.txt\n").splitlines()[1] == "gr\u00fc\u00df"
    assert "\r" not in typed(shell, "printf 'a\\nb\\n'\n")


def test_a_character_cut_in_two_behind_an_invalid_byte_is_put_together(shell):
    found = typed(shell, "printf '\\377\\303'; sleep 0.3; printf '\\274\\n'\n")
    assert found.splitlines()[1] == "\ufffd\u00fc"


def test_here_document_shows_the_continuation_prompt(world, shell):
    found = typed(shell, "cat > x <<'EOF'\none\ntwo\nEOF\ncat x\n")
    assert found.splitlines()[1:4] == ["> one", "> two", "> EOF"]
    assert found.splitlines()[-3:-1] == ["one", "two"]
    assert (world.folder / "x").read_text() == "one\ntwo\n"


def test_the_folder_and_variables_last(world, shell):
    typed(shell, "mkdir d && cd d && x=5\n")
    assert typed(shell, "echo $x\n") == f"{prompt(world, '/d')} echo $x\n5\n{prompt(world, '/d')}"


def test_errors_are_the_shells_own(shell):
    assert "bash: nosuchtool: command not found" in typed(shell, "nosuchtool\n")
    assert "No such file or directory" in typed(shell, "cat nofile\n")


def test_control_c_ends_a_command_and_d_ends_input(world, shell):
    assert typed(shell, "sleep 60\n", 0.2, waits=True) == f"{prompt(world)} sleep 60"
    assert typed(shell, "C-c") == f"^C\n{prompt(world)}"
    typed(shell, "cat > y\n", 0.1, waits=True)
    typed(shell, "hello\n", 0.1, waits=True)
    typed(shell, "C-d")
    assert (world.folder / "y").read_text() == "hello\n"


def test_a_slow_command_is_awaited_whole(shell):
    assert typed(shell, "sleep 0.7; echo late\n", 0.1).splitlines()[1] == "late"


def test_nothing_is_lost_in_long_output(shell):
    shell.send("seq 1 1500\n", 0.1)
    lines = shell.read().splitlines()
    assert lines[1:-1] == [str(i) for i in range(1, 1501)]


def test_output_is_limited_to_ten_thousand_bytes(shell):
    found = typed(shell, "seq 1 9000\n")
    head, note, tail = found.partition("\n[... ")
    assert note and head.splitlines()[1] == "1" and "\n9000\n" in tail
    assert len(head) == 5000
    assert len(tail.partition("]\n")[2]) == 5000


def test_limit_counts_bytes_and_keeps_characters_whole():
    text = "\u20ac" * 5000
    found = terminal.limit_output(text)
    kept = found.count("\u20ac")
    assert f"{3 * (5000 - kept)} bytes" in found
    assert "\ufffd" not in found
    assert terminal.limit_output("\u20ac" * 3333) == "\u20ac" * 3333


def test_a_line_too_long_for_the_kernel_is_refused(shell):
    with pytest.raises(ValueError, match="4000 is the most"):
        shell.send("echo " + "x" * 5000 + "\n", 1.0)


def test_a_shell_that_ends_is_noticed_at_once(shell):
    with pytest.raises(RuntimeError, match=r"^the shell ended: .*exit"):  # not: no prompt in 30 s
        shell.send("exit\n", 1.0)


def test_a_shell_that_does_not_start_leaves_no_descriptor(world):
    nowhere = dataclasses.replace(world, folder=world.folder / "gone")
    before = os.listdir("/proc/self/fd")
    with pytest.raises(FileNotFoundError, match="gone"):
        terminal.Terminal(nowhere)
    assert os.listdir("/proc/self/fd") == before


@sandboxes.needs_bwrap
def test_bubblewrap_is_started_from_where_it_was_found(tmp_path, monkeypatch):
    real = shutil.which("bwrap")
    (tmp_path / "bwrap").write_text(f'#!/bin/sh\ntouch {tmp_path}/started\nexec {real} "$@"\n')
    (tmp_path / "bwrap").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with isolation.make_world(FILES, sandbox="bwrap") as world, terminal.Terminal(world) as shell:
        assert typed(shell, "cat a.txt\n").splitlines()[1] == "1"
    assert (tmp_path / "started").exists()


def test_history_and_announcements_leave_no_trace(world, shell):
    assert typed(shell, "env | grep -cE 'PS1|PS2|PROMPT|HIST'\n").splitlines()[1] == "0"
    assert not list(world.home.rglob(".bash_history"))


def test_close_ends_what_the_shell_started(world):
    with terminal.Terminal(world) as shell:
        shell.send("sleep 987654 &\n", 0.1)
    deadline = time.monotonic() + 5
    while sleeps := running(b"987654"):
        assert time.monotonic() < deadline, sleeps
        time.sleep(0.02)


def running(argument):
    """Command lines of this machine's processes that contain `argument`."""
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # the process has ended meanwhile
            found.append(path.read_bytes())
    return [line for line in found if argument in line]


@sandboxes.needs_bwrap
def test_bubblewrap_hides_the_machine(world, shell):
    assert typed(shell, "pwd; hostname; whoami\n").splitlines()[1:4] == ["/app", "agent", "root"]
    found = typed(shell, "ls /; ls /home /root /work 2>&1; ls /usr/local; env\n")
    assert socket.gethostname() not in found.split()
    assert str(world.folder.parent) not in found
    assert os.path.expanduser("~/.") not in found


@sandboxes.needs_bwrap
def test_bubblewrap_has_no_network_and_a_read_only_root(shell):
    assert "Read-only file system" in typed(shell, "touch /x\n")
    script = "import socket; socket.create_connection(('192.0.2.1', 80), 3)"
    assert "Network is unreachable" in typed(shell, f'python3 -c "{script}"\n')


@sandboxes.needs_bwrap
def test_memory_and_cpu_are_limited(world):
    status, output = world.run("python3 -c 'x = bytearray(6 * 2**30)'")
    assert status != 0 and "MemoryError" in output


def test_files_have_fixed_times_and_modes(world):
    listing = world.run("ls -l --time-style=+%s a.txt run.sh")[1]
    assert listing.count(str(isolation.FIXED_MTIME_S)) == 2
    assert "-rwxr-xr-x" in listing and "-rw-r--r--" in listing
    assert (world.folder / "empty").is_dir()


def test_missing_tools_are_named():
    assert isolation.missing_tools(["bash", "nosuchtool"], sandbox=sandboxes.SANDBOX) == [
        "nosuchtool"
    ]


def test_missing_bubblewrap_says_the_way_out(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match="--sandbox=none"):
        isolation.check_sandbox("bwrap")
    with pytest.raises(ValueError, match="must be one of bwrap, none"):
        isolation.check_sandbox("docker")


def test_without_isolation_app_is_the_folder(tmp_path):
    with isolation.make_world({"s.sh": "cat /app/t /apple\n"}, sandbox="none") as world:
        assert (world.folder / "s.sh").read_text() == f"cat {world.folder}/t /apple\n"
        with terminal.Terminal(world) as shell:
            shell.send("pwd\n", 0.1)
            assert str(world.folder) in shell.read()


def test_control_c_works_where_this_process_ignores_it(world):
    """As one that a shell started in the background does."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with terminal.Terminal(world) as shell:
            shell.read()
            typed(shell, "sleep 60\n", 0.2, waits=True)
            assert typed(shell, "C-c") == f"^C\n{prompt(world)}"
    finally:
        signal.signal(signal.SIGINT, before)
