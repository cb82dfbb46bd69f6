"""Is a task well made? By its text alone: nothing of it is executed.

What a Task itself holds (names inside their folder, positive weights) was checked where it was
made; here it is asked whether the parts fit each other. `checking` then runs the task.
"""

import pathlib
import re
from collections.abc import Callable, Iterator

from data_pipeline.taskgen import leaks, references, tests_code
from data_pipeline.taskgen import task as task_module

MAX_INSTRUCTION_BYTES = 1 << 20
MAX_TESTS_BYTES = 256 << 10
MAX_FILE_BYTES, MAX_FILES_BYTES, MAX_FILES = 8 << 20, 32 << 20, 1000
_MIN_INSTRUCTION_WORDS = 5
_OURS = ("test_outputs.py", "solve.sh", "weights.json", "weighted_reward.py")  # never for the agent
_INSTRUCTION = re.compile(r"^\s*([A-Za-z]+)\s+(.*)$")  # of a Dockerfile


def faults(task: task_module.Task) -> list[str]:
    """All that is wrong with a task, in words fit to be sent back to its writer."""
    found = [fault for check in _CHECKS for fault in check(task)]
    if not task.tests:
        return found
    if len(task.tests.encode()) > MAX_TESTS_BYTES:
        return [*found, f"the tests are longer than {MAX_TESTS_BYTES >> 10} KiB"]
    try:
        code = tests_code.parse(task.tests)
    except ValueError as error:
        return [*found, f"the tests are no Python: {error}"]
    return [*found, *_test_faults(task, code)]


def check_folder(folder: pathlib.Path) -> task_module.Task:
    """Read a task and check it.

    Raises:
        ValueError: naming the folder and every fault.
    """
    task = task_module.read_task(folder)
    if found := faults(task):
        raise ValueError(f"{folder}: {'; '.join(found)}")
    return task


def _instruction_faults(task: task_module.Task) -> Iterator[str]:
    if len(task.instruction.split()) < _MIN_INSTRUCTION_WORDS:
        yield f"the instruction has fewer than {_MIN_INSTRUCTION_WORDS} words"
    if len(task.instruction.encode()) > MAX_INSTRUCTION_BYTES:
        yield f"the instruction is longer than {MAX_INSTRUCTION_BYTES >> 20} MiB"
    if task.answer_file and task.answer_file not in task.instruction:
        yield f"the instruction does not name the answer file {task.answer_file}"


def _dockerfile_faults(task: task_module.Task) -> Iterator[str]:
    lines = _logical_lines(task.dockerfile)
    words = [match for line in lines if (match := _INSTRUCTION.match(line))]
    first = next((match[1].upper() for match in words if match[1].upper() != "ARG"), "")
    if first != "FROM":
        yield "the Dockerfile does not begin with FROM"
    if task.dockerfile.rstrip().endswith("\\"):
        yield "the Dockerfile ends within a line"
    for match in words:
        if match[1].upper() in ("COPY", "ADD"):
            yield from _copy_faults(match[2], task)


def _logical_lines(dockerfile: str) -> list[str]:
    lines = [line for line in dockerfile.splitlines() if not line.lstrip().startswith("#")]
    return re.sub(r"\\\s*\n", " ", "\n".join(lines)).splitlines()


def _copy_faults(arguments: str, task: task_module.Task) -> Iterator[str]:
    """The build has one folder to copy from, files/; what a Dockerfile copies must be there."""
    words = [word for word in arguments.split() if not word.startswith("--")]
    if "--from=" in arguments or "[" in arguments or "<<" in arguments:
        return
    for source in words[:-1]:
        name = source.removeprefix("./").rstrip("/")
        below = name.removeprefix(f"{task_module.FILES_FOLDER}/")
        is_there = (name == task_module.FILES_FOLDER and bool(task.files)) or any(
            path == below or path.startswith(f"{below}/") for path in task.files
        )
        if "://" not in source and "*" not in source and not is_there:
            yield f"the Dockerfile copies {source!r}, which is not in the environment"


def _file_faults(task: task_module.Task) -> Iterator[str]:
    if len(task.files) > MAX_FILES:
        yield f"{len(task.files)} files; at most {MAX_FILES} are allowed"
    if sum(map(len, task.files.values())) > MAX_FILES_BYTES:
        yield f"the files are larger than {MAX_FILES_BYTES >> 20} MiB together"
    for path, content in task.files.items():
        if len(content) > MAX_FILE_BYTES:
            yield f"the file {path!r} is larger than {MAX_FILE_BYTES >> 20} MiB"
        if path.rpartition("/")[2] in _OURS and task.tests:
            yield f"the file {path!r} has the name of a file that the agent must not see"
        if path == task.answer_file.removeprefix(f"{task_module.APP}/"):
            yield f"the file {path!r} is the answer that the agent is to write"


def _metadata_faults(task: task_module.Task) -> Iterator[str]:
    wanted = {"seed": ("domain",), "skill": ("domain", "difficulty", "skills")}
    for name in wanted.get(task.source, ()):
        if not getattr(task, name):
            yield f"{name} is empty; a task of source {task.source} has one"
    if task.weights and not task.tests:
        yield "there are weights and no tests"


_CHECKS: tuple[Callable[[task_module.Task], Iterator[str]], ...] = (
    _instruction_faults, _dockerfile_faults, _file_faults, _metadata_faults,
)  # fmt: skip


def _test_faults(task: task_module.Task, code: tests_code.TestsCode) -> Iterator[str]:
    names = code.functions
    if not names:
        yield "the tests define no function test_...()"
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"the tests define {name} twice; the second hides the first"
    known = {form for name in names for form in (name, name.rpartition("::")[2])}
    for name in task.weights:
        if name not in known:
            yield f"there is a weight for {name!r}, which no test is called"
    yield from references.unaccounted(
        instruction=task.instruction, dockerfile=task.dockerfile, code=code, files=task.files
    )
    yield from leaks.find(
        instruction=task.instruction, files=task.files, code=code, solution=task.solution
    )
