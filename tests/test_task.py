"""Tasks and their folders: there and back, and by Harbor's own models."""

import dataclasses
import json
import pathlib
import random
import shutil
import string
import subprocess
import tomllib

import pytest

from data_pipeline.taskgen import task as task_module
from data_pipeline.taskgen import task_toml

TESTS = "def test_a():\n    assert open('/app/out.txt').read() == 'x'\n"
FULL = task_module.Task(
    name="full-1",
    instruction="Write x to /app/out.txt.\r\n\n  é 🦆 \x7f\n",
    dockerfile="FROM debian:12\nWORKDIR /app",
    source="skill",
    domain="data_processing",
    difficulty="easy",
    skills=("a b", 'quote " and \\ and \x7f and \u2028'),
    files={"data/a b.csv": b"1,2\r\n\x00\xff", ".hidden": b"", "run.sh": b"#!/bin/sh\n"},
    tests=TESTS,
    weights={"test_a": 0.1},
    solution="#!/bin/bash\nprintf x > /app/out.txt\n",
    info={"key.with dots": "line\nline\t\x00", "verified": "false", "": "empty"},
    limits=task_module.Limits(agent_timeout_s=1.5, cpus=2, network=True),
)
PRESENCE = task_module.Task(
    name="presence",
    instruction="Answer in '/app/solution.txt'.",
    dockerfile="FROM debian:12\n",
    source="adapt_math",
    answer_file="/app/solution.txt",
)


def test_reading_is_the_inverse_of_writing(tmp_path):
    for task in (FULL, PRESENCE):
        task_module.write_task(task, tmp_path)
        assert task_module.read_task(tmp_path / task.name) == task
    assert sorted(p.name for p in tmp_path.iterdir()) == ["full-1", "presence"]


def test_random_tasks_are_a_round_trip(tmp_path):
    rng = random.Random(5)
    letters = string.printable + "é\u2028\ufeff🦆\x00\x1b\x7f\\\"'"

    def text(num=30):
        return "".join(rng.choices(letters, k=rng.randrange(1, num)))

    for i in range(200):
        files = {
            f"d{rng.randrange(3)}/f{j} é.txt": rng.randbytes(9) for j in range(rng.randrange(4))
        }
        task = dataclasses.replace(
            FULL if i % 2 else PRESENCE,
            name=f"t-{i}", instruction=text(), dockerfile=text(), source=text(), domain=text(),
            skills=tuple(text() for _ in range(rng.randrange(3))), files=files,
            solution=text() if i % 3 else "", info={text(): text(), text(): text()},
        )  # fmt: skip
        task_module.write_task(task, tmp_path)
        assert task_module.read_task(tmp_path / task.name) == task


def test_layout_is_the_one_that_harbor_documents(tmp_path):
    task_module.write_task(FULL, tmp_path)
    folder = tmp_path / "full-1"
    found = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert found == {
        "instruction.md", "task.toml", "environment/Dockerfile", "environment/files/.hidden",
        "environment/files/data/a b.csv", "environment/files/run.sh", "solution/solve.sh",
        "tests/test.sh", "tests/test_outputs.py", "tests/weighted_reward.py",
        "tests/weights.json", "tests/time_limit_s.txt",
    }  # fmt: skip
    dockerfile = (folder / "environment/Dockerfile").read_text()
    assert dockerfile.splitlines()[-1] == "COPY files/ /app/"
    assert (folder / "tests/test.sh").stat().st_mode & 0o111
    assert (folder / "environment/files/run.sh").stat().st_mode & 0o111
    told = tomllib.loads((folder / "task.toml").read_text())
    assert told["metadata"]["verified"] is True  # whatever `info` says
    assert told["metadata"]["info"]["verified"] == "false"
    assert told["metadata"]["category"] == "data_processing"
    assert told["environment"]["network_mode"] == "public"


def test_folders_above_a_task_are_made(tmp_path):
    task_module.write_task(FULL, tmp_path / "new" / "tasks")
    assert task_module.read_task(tmp_path / "new" / "tasks" / FULL.name) == FULL


def test_writing_again_replaces_the_whole_folder(tmp_path):
    task_module.write_task(FULL, tmp_path)
    task_module.write_task(dataclasses.replace(FULL, files={"b": b"2"}), tmp_path)
    assert task_module.read_task(tmp_path / "full-1").files == {"b": b"2"}


def test_a_link_where_the_task_goes_is_replaced_and_not_followed(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("x")
    folder = tmp_path / "tasks"
    folder.mkdir()
    for name in ("full-1", ".full-1.new"):
        (folder / name).symlink_to(outside)
    task_module.write_task(FULL, folder)
    assert [p.name for p in outside.iterdir()] == ["precious"]
    assert task_module.read_task(folder / "full-1") == FULL


@pytest.mark.parametrize(
    "path",
    ["/etc/passwd", "../x", "a/../../x", "a/./b", "a//b", "", "a/", "a\nb", "a\\b", "\ud800",
     "x" * 256, "a/" * 600 + "b", "..", "a\x7f"],
)  # fmt: skip
def test_names_outside_the_folder_are_refused(path):
    with pytest.raises(ValueError, match="the file "):
        dataclasses.replace(FULL, files={path: b""})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "../x"}, r"the task's name '\.\./x' must match"),
        ({"name": "a/b"}, "must match"),
        ({"name": "-a"}, "must match"),
        ({"name": "A"}, "must match"),
        ({"name": "a" * 64}, "must match"),
        ({"name": "a\n"}, "must match"),
        ({"name": ""}, "must match"),
        ({"source": ""}, "source must not be empty"),
        ({"files": {"a": b"", "a/b": b""}}, "'a' is both a file and a folder"),
        ({"tests": "", "answer_file": ""}, "needs tests, or an answer_file"),
        ({"answer_file": "/etc/x"}, "answer_file='/etc/x' must match"),
        ({"answer_file": "/app/../x"}, "must match"),
        ({"answer_file": "/app/$(id)"}, "must match"),
        ({"answer_file": "/app/x\n"}, "must match"),
        ({"weights": {"test_a": 0}}, r"the weight of 'test_a' is 0; it must be in \(0, 1000\]"),
        ({"weights": {"test_a": float("nan")}}, "is nan"),
        ({"weights": {"test_a": float("inf")}}, "is inf"),
        ({"weights": {"test_a": True}}, "is True"),
        ({"weights": {"test_a": "1"}}, "is '1'"),
        ({"instruction": "\ud800"}, "half of a surrogate pair"),
        ({"info": {"a": "\udfff"}}, "half of a surrogate pair"),
    ],
)
def test_what_cannot_be_a_task_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(FULL, **changes)


def test_limits_are_positive():
    with pytest.raises(ValueError, match="cpus=0 must be positive"):
        task_module.Limits(cpus=0)
    with pytest.raises(ValueError, match="agent_timeout_s=inf must be positive"):
        task_module.Limits(agent_timeout_s=float("inf"))


def _remove(name):
    return lambda folder: (folder / name).unlink()


def _write(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def _link(name, target):
    return lambda folder: (folder / name).symlink_to(target)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_remove("instruction.md"), r"instruction\.md: no such file"),
        (_remove("task.toml"), r"task\.toml: no such file"),
        (_remove("environment/Dockerfile"), "Dockerfile: no such file"),
        (_remove("tests/test.sh"), r"test\.sh: no such file"),
        (_remove("tests/test_outputs.py"), "needs tests"),
        (_write("instruction.md", b"\xff"), r"instruction\.md: not UTF-8"),
        (_write("task.toml", b"= 1"), r"full-1: task\.toml: not valid TOML"),
        (_write("task.toml", b""), r"metadata\.source is absent; it must be a str"),
        (_write("tests/weights.json", b"[1]"), r"weights\.json: must be an object"),
        (_write("tests/weights.json", b"{"), r"weights\.json: not valid JSON"),
        (_write("tests/conftest.py", b""), r"tests/conftest\.py: is no part of the task"),
        (_link("environment/files/link", "/etc/passwd"), "files/link: is a link"),
        (_link("environment/files/up", "../.."), "files/up: is a link"),
    ],
)
def test_a_damaged_folder_is_an_error_that_names_the_file(tmp_path, damage, message):
    task_module.write_task(FULL, tmp_path)
    damage(tmp_path / "full-1")
    with pytest.raises(ValueError, match=message):
        task_module.read_task(tmp_path / "full-1")


def test_wrong_types_in_task_toml_are_all_told():
    text = '[metadata]\nsource = 1\ndomain = ""\nskills = [1]\n[environment]\ncpus = "2"\n'
    with pytest.raises(ValueError) as error:
        task_toml.parse(text)
    for part in (
        "metadata.source is of type int; it must be a str", "agent.timeout_sec is absent",
        "environment.cpus is of type str", "must hold strings", "network_mode='' must be",
    ):  # fmt: skip
        assert part in str(error.value)


# What Harbor itself says. Its interpreter is the one that the first line of the command names.
HARBOR_SCRIPT = """
import json, pathlib, sys
from harbor.models.task.task import Task
for folder in sys.argv[1:]:
    assert Task.is_valid_dir(folder), folder
    task = Task(folder)
    environment = task.config.environment
    print(json.dumps({
        "name": task.name, "instruction": task.instruction, "metadata": task.config.metadata,
        "limits": [task.config.agent.timeout_sec, task.config.verifier.timeout_sec,
                   environment.build_timeout_sec, environment.cpus, environment.memory_mb,
                   environment.storage_mb, environment.network_mode.value],
        "deprecated": environment.allow_internet,
    }))
"""


def harbor_python() -> str:
    """The interpreter of the `harbor` command, also where uv put it outside PATH; else skips."""
    if command := shutil.which("harbor"):
        with open(command, "rb") as file:
            first = file.readline().decode(errors="replace").strip()
        if first.startswith("#!/"):
            return first[2:]
    if uv := shutil.which("uv"):
        done = subprocess.run([uv, "tool", "dir"], capture_output=True, text=True, check=False)
        python = pathlib.Path(done.stdout.strip()) / "harbor" / "bin" / "python"
        if done.returncode == 0 and python.exists():
            return str(python)
    pytest.skip("needs Harbor: uv tool install harbor")


def test_harbor_takes_every_kind_of_task(tmp_path):
    python = harbor_python()
    tasks = [
        FULL, PRESENCE, dataclasses.replace(FULL, name="bare", files={}, weights={}, solution=""),
        *(dataclasses.replace(FULL, name=f"s-{source.replace('_', '-')}", source=source)
          for source in ("adapt_math", "adapt_code", "adapt_swe", "seed", "skill")),
    ]  # fmt: skip
    for task in tasks:
        task_module.write_task(task, tmp_path)
    done = subprocess.run(
        [python, "-W", "error::DeprecationWarning:harbor", "-c", HARBOR_SCRIPT,
         *(str(tmp_path / task.name) for task in tasks)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for task, line in zip(tasks, done.stdout.splitlines(), strict=True):
        seen, limits = json.loads(line), task.limits
        assert seen["name"] == task.name
        assert seen["instruction"] == task.instruction.replace("\r\n", "\n")
        assert seen["metadata"]["skills"] == list(task.skills)
        assert seen["metadata"]["info"] == dict(task.info)
        assert seen["limits"] == [
            limits.agent_timeout_s, limits.verifier_timeout_s, limits.build_timeout_s, limits.cpus,
            limits.memory_mb, limits.storage_mb, "public" if limits.network else "no-network",
        ]  # fmt: skip
