"""A jaxterm command seen from the shell: exit codes, and errors as one line."""

import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]

# A command of its own: `main` is one line.
SCRIPT = """
from jaxterm import command
def main(run, workdir):
    {line}
command.run(main)
"""


def run_main(line: str, *options: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", SCRIPT.format(line=line), "--config=configs/tiny.py", *options],
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def run_train(*options: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "jaxterm.train", *options],
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--config=configs/tiny.py", "--config.data.row_lenght=77", "--config.exprot.dtype=x",
          "--noconfig.export.enabledd", "--config.data.epochs.zebra=1"),
         "error: --config.data.row_lenght: unknown setting; did you mean --config.data.row_length? "
         "jaxterm/config_sections.py has them all; "
         "--config.exprot.dtype: unknown setting; did you mean --config.export.dtype? "
         "jaxterm/config_sections.py has them all; "
         "--config.export.enabledd: unknown setting; did you mean --config.export.enabled? "
         "jaxterm/config_sections.py has them all; "
         "--config.data.epochs.zebra: unknown setting; did you mean --config.data.epochs? "
         "jaxterm/config_sections.py has them all\n"),
        (("--config=configs/nope.py", "--config.data.epochs=1"),
         "error: --config=configs/nope.py: there is no such file; give one of configs/\n"),
    ],
)  # fmt: skip
def test_a_wrong_setting_or_file_is_one_clear_line(options, expected, tmp_path):
    result = run_train(*options, f"--workdir={tmp_path / 'run'}")
    assert result.returncode == 1
    assert result.stderr == expected
    assert not (tmp_path / "run").exists()


def test_a_folder_is_no_config_and_far_names_get_no_neighbour():
    result = run_main("pass", "--config", "configs", "--config.zebra=1")
    assert result.returncode == 1
    assert result.stderr == (
        "error: --config=configs: there is no such file; give one of configs/; "
        "--config.zebra: unknown setting; jaxterm/config_sections.py has them all\n"
    )


def test_a_workdir_that_cannot_be_made_is_one_clear_line(tmp_path):
    (tmp_path / "file").touch()
    workdir = tmp_path / "file" / "run"
    result = run_train("--config=configs/tiny.py", f"--workdir={workdir}")
    assert result.returncode == 1
    assert f"error: {workdir}" in result.stderr
    assert "Not a directory" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        ("return None", 0, ""),
        ("return command.STOPPED", 75, ""),
        ("raise ValueError('config.x=1 must be 2')", 1, "error: config.x=1 must be 2\n"),
        ("open('/nowhere/at/all')", 1, "error: /nowhere/at/all: No such file or directory\n"),
        ("raise OSError(28, 'No space left on device')", 1,
         "error: [Errno 28] No space left on device\n"),
    ],
)  # fmt: skip
def test_exit_codes_and_user_errors(line, code, message):
    result = run_main(line)
    assert (result.returncode, result.stderr) == (code, message)


def test_debug_shows_the_traceback_and_our_own_faults_always_do():
    result = run_main("open('/nowhere/at/all')", "--debug")
    assert result.returncode == 1
    assert "Traceback" in result.stderr
    assert "Traceback" in run_main("raise RuntimeError('ours')").stderr


def test_overrides_in_a_flagfile_are_checked_and_used(tmp_path):
    flagfile = tmp_path / "flags"
    flagfile.write_text("--config.data.epochs=7\n")
    result = run_main("print(run.data.epochs)", f"--flagfile={flagfile}")
    assert (result.returncode, result.stdout) == (0, "7.0\n"), result.stderr
    flagfile.write_text("--config.data.epoks=7\n")
    result = run_main("pass", f"--flagfile={flagfile}")
    assert result.returncode == 1
    assert "did you mean --config.data.epochs?" in result.stderr
