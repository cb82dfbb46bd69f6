"""The scripts that lie in a task's tests/ and give its reward.

They run here on their own, with the tests' paths in a folder; in the sandbox they are run as a
whole by test_task_checking.
"""

import json
import pathlib
import shutil
import subprocess
import sys

import pytest

from data_pipeline.taskgen import task as task_module


def reward_of(tmp_path: pathlib.Path, tests: str, weights=None, **env) -> dict:
    folder, logs = tmp_path / "tests", tmp_path / "logs"
    for each in (folder, logs):
        shutil.rmtree(each, ignore_errors=True)
        each.mkdir()
    script = pathlib.Path(task_module.__file__).parent / "verifier" / "weighted_reward.py"
    shutil.copy(script, folder)
    (folder / "test_outputs.py").write_text(tests)
    if weights:
        (folder / "weights.json").write_text(json.dumps(weights))
    subprocess.run(
        [sys.executable, "-I", "-B", str(folder / script.name), str(logs)],
        cwd=tmp_path, env=env, capture_output=True, check=False, timeout=60,
    )  # fmt: skip
    told = json.loads((logs / "tests.json").read_text())
    assert float((logs / "reward.txt").read_text()) == told["reward"]
    return told


THREE = """
import pytest
def test_a(): pass
def test_b(): assert 0
class TestC:
    @pytest.mark.parametrize("x", [1, 2, 3, 4])
    def test_c(self, x): assert x != 2
"""


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        (None, (1 + 3 / 4) / 3),
        ({"test_a": 2, "test_b": 5}, (2 + 3 / 4) / 8),
        ({"TestC::test_c": 4}, (1 + 3) / 6),
        ({"test_c": 4, "TestC::test_c": 8}, (1 + 6) / 10),
    ],
)
def test_the_reward_is_the_weight_of_what_passed(tmp_path, weights, expected):
    told = reward_of(tmp_path, THREE, weights)
    assert told["reward"] == pytest.approx(expected, abs=1e-15)
    outcomes = {test["name"]: test["outcome"] for test in told["tests"]}
    assert outcomes["TestC::test_c[2]"] == outcomes["test_b"] == "failed"
    assert outcomes["TestC::test_c[1]"] == outcomes["test_a"] == "passed"


def test_all_passed_is_exactly_one(tmp_path):
    tests = "import pytest\n" + "".join(
        f"@pytest.mark.parametrize('x', range({n}))\ndef test_{n}(x): pass\n" for n in (3, 7, 11)
    )
    assert reward_of(tmp_path, tests, {"test_3": 0.1, "test_7": 0.7})["reward"] == 1.0


@pytest.mark.parametrize(
    ("tests", "expected"),
    [
        ("", 0.0),
        ("def test_a(:", 0.0),
        ("import nowhere\ndef test_a(): pass", 0.0),
        ("import pytest\ndef test_a(): pytest.skip()", 0.0),
        ("import pytest\n@pytest.mark.xfail\ndef test_a(): assert 0", 0.0),
        ("import pytest\n@pytest.fixture\ndef f():\n yield\n assert 0\ndef test_a(f): pass", 0.0),
        ("import pytest\n@pytest.fixture\ndef f(): assert 0\ndef test_a(f): pass", 0.0),
        # A program under test that ends the process takes only what had not passed before.
        ("import os\ndef test_a(): pass\ndef test_b(): os._exit(0)", 0.5),
        ("import sys\ndef test_a(): sys.exit(0)", 0.0),
        ("def test_a(): pass\ndef test_b(): raise KeyboardInterrupt", 0.5),
        ("import unittest\nclass TestX(unittest.TestCase):\n def test_a(self): pass", 1.0),
    ],
)  # fmt: skip
def test_only_what_passed_counts(tmp_path, tests, expected):
    assert reward_of(tmp_path, tests)["reward"] == expected


def test_what_an_agent_leaves_about_does_not_change_the_tests(tmp_path):
    """Modules beside the tests and in the working folder, settings, plugins by the environment."""
    fixture = "import pytest\n@pytest.fixture(autouse=True)\ndef f(): pytest.skip()\n"
    for name in ("json.py", "math.py", "pytest.py", "conftest.py", "sitecustomize.py"):
        (tmp_path / name).write_text("raise SystemExit(3)" if name != "conftest.py" else fixture)
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = --collect-only\n")
    told = reward_of(
        tmp_path, "import csv\ndef test_a(): pass",
        PYTEST_ADDOPTS="--collect-only", PYTHONPATH=str(tmp_path), PYTEST_PLUGINS="json",
    )  # fmt: skip
    assert told["reward"] == 1.0


def test_the_presence_script_wants_a_file_that_is_not_empty(tmp_path):
    script = pathlib.Path(task_module.__file__).parent / "verifier" / "presence_test.sh"
    logs = tmp_path / "logs"
    text = script.read_text()
    assert text.count("/logs/verifier") == 2
    (tmp_path / "test.sh").write_text(text.replace("/logs/verifier", str(logs)))
    answer = tmp_path / "answer"
    (tmp_path / "answer_file.txt").write_text(f"{answer}\n")

    def reward():
        subprocess.run(["bash", str(tmp_path / "test.sh")], check=True)
        return (logs / "reward.txt").read_text()

    assert reward() == "0\n"
    answer.touch()
    assert reward() == "0\n"
    answer.write_text("1")
    assert reward() == "1\n"
    answer.unlink()
    answer.mkdir()
    assert reward() == "0\n"
