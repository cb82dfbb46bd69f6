"""The instructions of benchmarks, against which a corpus is decontaminated.

A benchmark is a folder with Harbor tasks (instruction.md) or old Terminal-Bench tasks (task.yaml)
anywhere below it, or a JSONL file whose rows have `instruction`, `prompt` or `problem_statement`.
"""

import json
from collections.abc import Iterator, Sequence

import yaml

from data_pipeline import storage

_COLUMNS = ("instruction", "prompt", "problem_statement")
_NAMES = ("task_id", "instance_id", "id", "name")  # columns that may name a row


def read(benchmarks: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Name and instruction of every task.

    Raises:
        ValueError: naming a path that holds none, or a file that cannot be read.
    """
    return tuple(task for name in benchmarks for task in _tasks_of(storage.as_path(name)))


def _tasks_of(path: storage.Path) -> list[tuple[str, str]]:
    if path.is_dir():
        found = list(_from_folder(path))
    elif path.is_file() and path.suffix == ".jsonl":
        found = list(_from_jsonl(path))
    else:
        raise ValueError(f"--benchmarks={path}: name a folder of tasks or a .jsonl file")
    if not found:
        raise ValueError(
            f"--benchmarks={path}: no task there; a folder of tasks holds instruction.md or "
            "task.yaml files, at any depth"
        )
    if empty := [name for name, instruction in found if not instruction.strip()]:
        raise ValueError(f"--benchmarks={path}: the instruction of {empty[0]} is empty; remove it")
    return found


def _from_folder(folder: storage.Path) -> Iterator[tuple[str, str]]:
    for file in storage.find(folder, ("instruction.md", "task.yaml")):
        name = file.parent.relative_to(folder).as_posix()
        text = _text_of(file)
        yield (
            f"{folder.name}/{name}" if name != "." else folder.name,
            text if file.suffix == ".md" else _instruction_in_yaml(text, file),
        )


def _text_of(file: storage.Path) -> str:
    try:
        return file.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not UTF-8 ({error})") from error


def _instruction_in_yaml(text: str, file: storage.Path) -> str:
    try:
        task = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{file}: not valid YAML ({error})") from error
    instruction = task.get("instruction") if isinstance(task, dict) else None
    if not isinstance(instruction, str):
        raise ValueError(f"{file}: no `instruction`; a Terminal-Bench task has one")
    return instruction


def _from_jsonl(file: storage.Path) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(_text_of(file).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{file} line {number}: not valid JSON ({error})") from error
        texts = (
            [row[c] for c in _COLUMNS if isinstance(row.get(c), str)] if type(row) is dict else []
        )
        if not texts:
            raise ValueError(f"{file} line {number}: no text in {', '.join(_COLUMNS)}")
        names = [str(row[column]) for column in _NAMES if column in row]
        yield names[0] if names else f"{file.name} line {number}", texts[0]
