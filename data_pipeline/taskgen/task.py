"""A task, and its folder as Harbor and Terminal-Bench have it.

    NAME/instruction.md           what the agent is asked
    NAME/task.toml                limits and metadata
    NAME/environment/Dockerfile   and files/, which it copies to /app
    NAME/tests/test.sh            writes the reward; with test_outputs.py, weights.json
    NAME/solution/solve.sh        where the task has a solution

A Task is checked where it is made, so that whatever is written lies inside its folder: names come
from models and datasets. What it says is judged by `validation`, what it does by `checking`.
"""

import dataclasses
import functools
import importlib.resources
import json
import math
import os
import pathlib
import posixpath
import re
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

from data_pipeline.taskgen import task_toml
from data_pipeline.taskgen.task_toml import Limits

APP = "/app"
FILES_FOLDER = "files"  # beside the Dockerfile
INSTRUCTION, TASK_TOML, DOCKERFILE = "instruction.md", "task.toml", "environment/Dockerfile"
TESTS, WEIGHTS, SOLUTION = "tests/test_outputs.py", "tests/weights.json", "solution/solve.sh"
_ANSWER_FILE, _TIME_LIMIT = "tests/answer_file.txt", "tests/time_limit_s.txt"
_TEST_SH, _REWARD = "tests/test.sh", "tests/weighted_reward.py"
# What write_task adds to a Dockerfile of a task that has files, and read_task takes away.
_COPY_FILES = f"\n# The task's own files.\nCOPY {FILES_FOLDER}/ {APP}/\n"

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_ANSWER_PATH = re.compile(rf"{APP}(/[A-Za-z0-9_-][A-Za-z0-9_.-]*)+")
_MAX_PART_BYTES, _MAX_PATH_BYTES = 255, 1024
_MAX_WEIGHT = 1000.0
_MAX_FILE_BYTES = 64 << 20  # of one file that is read back


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """A task.

    Attributes:
        name: [a-z0-9][a-z0-9-]{0,62}; also the folder's.
        instruction: what the agent is asked.
        dockerfile: the environment, without the line that copies `files`.
        source: adapt_math, adapt_code, adapt_swe, seed or skill.
        files: relative POSIX path below /app -> content.
        tests: pytest functions; empty: only the presence of `answer_file` is checked.
        answer_file: absolute, below /app; needed where there are no tests.
        weights: test function, or Class::function -> weight; those not named weigh 1.
        solution: a shell script that solves the task; empty: there is none.
        info: free metadata, in [metadata.info] of task.toml.

    Raises:
        ValueError: telling every fault.
    """

    name: str
    instruction: str
    dockerfile: str
    source: str
    domain: str = ""
    difficulty: str = ""
    skills: tuple[str, ...] = ()
    files: Mapping[str, bytes] = dataclasses.field(default_factory=dict)
    tests: str = ""
    answer_file: str = ""
    weights: Mapping[str, float] = dataclasses.field(default_factory=dict)
    solution: str = ""
    info: Mapping[str, str] = dataclasses.field(default_factory=dict)
    limits: Limits = dataclasses.field(default_factory=Limits)

    def __post_init__(self):
        if faults := list(self._faults()):
            raise ValueError("; ".join(faults))

    def _faults(self) -> Iterator[str]:
        if not _NAME.fullmatch(self.name):
            yield f"the task's name {self.name!r} must match {_NAME.pattern}"
        if not self.source:
            yield f"task {self.name}: source must not be empty"
        yield from _path_faults(self.files)
        yield from _weight_faults(self.weights)
        if not self.tests and not self.answer_file:
            yield f"task {self.name}: needs tests, or an answer_file whose presence is checked"
        if self.answer_file and not _ANSWER_PATH.fullmatch(self.answer_file):
            yield f"answer_file={self.answer_file!r} must match {_ANSWER_PATH.pattern}"
        words = (self.source, self.domain, self.difficulty, *self.skills, *self.weights)
        texts = (self.instruction, self.dockerfile, self.tests, self.solution)
        info = (*self.info, *self.info.values())
        if any(not _is_unicode(text) for text in (*words, *texts, *info)):
            yield f"task {self.name}: holds half of a surrogate pair, which no file can"


def path_fault(path: str) -> str:
    """Why `path` cannot name a file below a folder; empty where it can."""
    parts = path.split("/")
    if not path or path.startswith("/"):
        return "is not a relative path"
    if any(part in ("", ".", "..") for part in parts):
        return "has an empty part, `.` or `..`"
    if not _is_unicode(path) or any(ord(c) < 32 or ord(c) == 127 or c == "\\" for c in path):
        return "has a control character, a backslash or half of a surrogate pair"
    if len(path.encode()) > _MAX_PATH_BYTES or any(
        len(part.encode()) > _MAX_PART_BYTES for part in parts
    ):
        return f"is longer than {_MAX_PATH_BYTES} bytes, or a part than {_MAX_PART_BYTES}"
    return ""


def write_task(task: Task, folder: pathlib.Path) -> None:
    """Write folder/NAME, whole or not at all; replaces one that is there."""
    temporary, target = folder / f".{task.name}.new", folder / task.name
    try:
        temporary.mkdir(parents=True)
    except FileExistsError:
        _remove(temporary)
        temporary.mkdir()
    made, contents = {""}, _contents(task)
    for name, content in contents.items():
        _make_folders(temporary, posixpath.dirname(name), made)
        mode = 0o755 if content.startswith(b"#!") else 0o644
        _write_file(f"{temporary}/{name}", content, mode)
    try:
        temporary.rename(target)
    except OSError:  # something is there
        _remove(target)
        temporary.rename(target)


def _make_folders(root: pathlib.Path, name: str, made: set[str]) -> None:
    """root/NAME and what is above it, but for those `made` before."""
    if name not in made:
        _make_folders(root, posixpath.dirname(name), made)
        os.mkdir(f"{root}/{name}")
        made.add(name)


def _write_file(path: str, content: bytes, mode: int) -> None:
    """A new file with the mode told, whatever the umask."""
    opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
    with open(opened, "wb", buffering=0) as file:
        os.fchmod(opened, mode)
        left = memoryview(content)
        while left:
            left = left[file.write(left) :]


def remove_task(name: str, folder: pathlib.Path) -> None:
    """Remove folder/NAME, and what a kill left of writing it, where they are there."""
    for path in (folder / f".{name}.new", folder / name):
        _remove(path)


def read_task(folder: pathlib.Path) -> Task:
    """The task that write_task left.

    Raises:
        ValueError: naming the file that is absent, damaged, a link, or no part of such a task.
    """
    found = _files_in(folder)
    try:
        table = task_toml.parse(_text(found, TASK_TOML, folder))
        task = Task(
            name=folder.name,
            instruction=_text(found, INSTRUCTION, folder),
            dockerfile=_dockerfile_in(found, folder),
            files=_app_files(found),
            tests=_text(found, TESTS, folder) if TESTS in found else "",
            weights=_weights_in(found, folder),
            solution=_text(found, SOLUTION, folder) if SOLUTION in found else "",
            **table,
        )
    except ValueError as error:
        told = str(error)
        raise ValueError(told if str(folder) in told else f"{folder}: {told}") from error
    if _TEST_SH not in found:
        raise ValueError(f"{folder / _TEST_SH}: no such file; write the task again")
    if unknown := sorted(found.keys() - _contents(task).keys()):
        raise ValueError(f"{folder / unknown[0]}: is no part of the task; remove it")
    return task


def _contents(task: Task) -> dict[str, bytes]:
    """Relative path -> content of every file of the folder."""
    dockerfile = task.dockerfile + (_COPY_FILES if task.files else "")
    contents = {
        INSTRUCTION: task.instruction.encode(),
        TASK_TOML: _task_toml(task).encode(),
        DOCKERFILE: dockerfile.encode(),
    }
    for path, content in task.files.items():
        contents[f"environment/{FILES_FOLDER}/{path}"] = content
    if task.tests:
        contents |= {
            _TEST_SH: _shipped("test.sh"),
            _REWARD: _shipped("weighted_reward.py"),
            TESTS: task.tests.encode(),
            _TIME_LIMIT: f"{_tests_time_limit_s(task.limits.verifier_timeout_s):g}\n".encode(),
        }
        if task.weights:
            contents[WEIGHTS] = (json.dumps(dict(task.weights), indent=1) + "\n").encode()
    else:
        contents[_TEST_SH] = _shipped("presence_test.sh")
        contents[_ANSWER_FILE] = f"{task.answer_file}\n".encode()
    if task.solution:
        contents[SOLUTION] = task.solution.encode()
    return contents


def _task_toml(task: Task) -> str:
    return task_toml.render(
        source=task.source,
        domain=task.domain,
        difficulty=task.difficulty,
        skills=task.skills,
        answer_file=task.answer_file,
        verified=bool(task.tests),
        info=task.info,
        limits=task.limits,
    )


def _tests_time_limit_s(verifier_timeout_s: float) -> float:
    """Leaves pytest time to end (test.sh kills it 5 s later), and its start time to be slow."""
    left = min(15.0, max(0.1 * verifier_timeout_s, min(6.0, verifier_timeout_s / 2)))
    return verifier_timeout_s - left


@functools.cache
def _shipped(name: str) -> bytes:
    """A file of verifier/, which goes into every task's tests/ as it is."""
    folder = importlib.resources.files("data_pipeline.taskgen") / "verifier"
    return (folder / name).read_bytes()


def _files_in(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """Relative path -> path of the files; links and files of other kinds are refused."""
    if folder.is_symlink() or not folder.is_dir():
        raise ValueError(f"{folder}: is not the folder of a task")
    found = {}
    for place, folders, names in os.walk(folder):
        for name in (*folders, *names):
            path = pathlib.Path(place, name)
            if path.is_symlink() or not (path.is_dir() or path.is_file()):
                raise ValueError(f"{path}: is a link or no ordinary file; a task holds none")
        found |= {
            pathlib.Path(place, name).relative_to(folder).as_posix(): pathlib.Path(place, name)
            for name in names
        }
    return found


def _text(found: Mapping[str, pathlib.Path], name: str, folder: pathlib.Path) -> str:
    try:
        return _bytes(found[name]).decode("utf-8")
    except KeyError:
        raise ValueError(f"{folder / name}: no such file; a task has one") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{folder / name}: not UTF-8 ({error})") from error


def _bytes(path: pathlib.Path) -> bytes:
    if path.stat().st_size > _MAX_FILE_BYTES:
        raise ValueError(f"{path}: is larger than {_MAX_FILE_BYTES >> 20} MiB")
    return path.read_bytes()


def _dockerfile_in(found: Mapping[str, pathlib.Path], folder: pathlib.Path) -> str:
    return _text(found, DOCKERFILE, folder).removesuffix(_COPY_FILES if _app_paths(found) else "")


def _app_paths(found: Mapping[str, pathlib.Path]) -> dict[str, pathlib.Path]:
    prefix = f"environment/{FILES_FOLDER}/"
    return {n.removeprefix(prefix): path for n, path in found.items() if n.startswith(prefix)}


def _app_files(found: Mapping[str, pathlib.Path]) -> dict[str, bytes]:
    return {name: _bytes(path) for name, path in sorted(_app_paths(found).items())}


def _weights_in(found: Mapping[str, pathlib.Path], folder: pathlib.Path) -> dict[str, Any]:
    if WEIGHTS not in found:
        return {}
    try:
        weights = json.loads(_text(found, WEIGHTS, folder))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{folder / WEIGHTS}: not valid JSON ({error})") from error
    if not isinstance(weights, dict):
        raise ValueError(f"{folder / WEIGHTS}: must be an object of test -> weight")
    return weights


def _path_faults(files: Mapping[str, bytes]) -> Iterator[str]:
    for path in files:
        if fault := path_fault(path):
            yield f"the file {path!r} {fault}; name it below {APP}, as data/input.csv"
    above = {"/".join(path.split("/")[:i]) for path in files for i in range(1, path.count("/") + 1)}
    for path in sorted(above & files.keys()):
        yield f"{path!r} is both a file and a folder of other files"


def _weight_faults(weights: Mapping[str, Any]) -> Iterator[str]:
    for name, weight in weights.items():
        is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not is_number or not math.isfinite(weight) or not 0 < weight <= _MAX_WEIGHT:
            yield f"the weight of {name!r} is {weight!r}; it must be in (0, {_MAX_WEIGHT:g}]"


def _is_unicode(text: str) -> bool:
    return text.isascii() or not any("\ud800" <= c <= "\udfff" for c in text)


def _remove(path: pathlib.Path) -> None:
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)
