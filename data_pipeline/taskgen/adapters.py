"""Dataset adapters: a math, code or code-repair record becomes a task, without a model.

The instruction is the record's prompt, as it is, and the sentence of the paper that says where the
answer goes (arXiv 2602.21193, figures 8 to 10). Such tasks have no tests: that the answer file is
there is all that is checked. A math record with a number for an answer may have a real test.
"""

import dataclasses
import hashlib
import importlib.resources
import shlex
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from data_pipeline.taskgen import prompt_files, validation
from data_pipeline.taskgen import task as task_module
from data_pipeline.taskgen.verifier import number_answer

Kind = Literal["math", "code", "swe"]
NO_PROMPT, NO_CODE_FILE, BAD_NAME, INVALID = (
    "no prompt", "no code file in the prompt", "file name outside its folder", "invalid",
)  # fmt: skip

PROMPT_COLUMNS = (
    "prompt", "problem", "question", "instruction", "input", "problem_statement", "query", "text",
    "messages", "conversations",
)  # fmt: skip
RESPONSE_COLUMNS = (
    "response", "output", "generated_solution", "completion", "r1_generation", "solution",
    "messages", "conversations",
)  # fmt: skip
ANSWER_COLUMNS = ("expected_answer", "final_answer", "answer", "ground_truth")
_ID_COLUMNS = ("id", "instance_id", "problem_id", "uuid", "task_id")
_PLACEHOLDERS = ("", "-", "n/a", "none", "null")  # datasets write them where a prompt was withheld
_NUMBER_TEST_MARK = 'EXPECTED = ""'


@dataclasses.dataclass(frozen=True)
class Adapter:
    """What is the same in all tasks of a kind.

    Attributes:
        domain: whose Dockerfile the tasks have.
    """

    suffix: str
    answer_file: str
    domain: str


ADAPTERS: Mapping[str, Adapter] = {
    "math": Adapter(
        "Please place your final answer in a file named '/app/solution.txt'.",
        "/app/solution.txt",
        "scientific_computing",
    ),
    "code": Adapter(
        "Write Python code to solve the problem. Please place the solution code in a file named "
        "`/app/solution.py`.",
        "/app/solution.py",
        "software_engineering",
    ),
    "swe": Adapter(
        "Please first localize the bug based on the issue statement, generate *SEARCH/REPLACE* "
        "edits to fix the issue, and save the diff to a file named `/app/solution.patch`.",
        "/app/solution.patch",
        "software_engineering",
    ),
}


class Unadaptable(ValueError):
    """A record that makes no task.

    Attributes:
        reason: which of the reasons above; the message is the detail.
    """

    def __init__(self, reason: str, detail: str):
        super().__init__(detail)
        self.reason = reason


def find_text(values: Mapping[str, Any], columns: Sequence[str], *, role: str) -> tuple[str, str]:
    """The first of the columns that holds a text, and the text; both empty where none does.

    In a column of messages the text is the first one of the role (user or assistant).
    """
    for column in columns:
        text = _text_of(values.get(column), role)
        if text.strip().lower() not in _PLACEHOLDERS:
            return column, text
    return "", ""


def adapt(
    kind: Kind,
    values: Mapping[str, Any],
    *,
    prompt: str,
    dockerfile: str,
    location: str,
    answer: str = "",
) -> task_module.Task:
    """The task of a record.

    Args:
        kind: of the dataset.
        values: the record.
        prompt: of the record.
        dockerfile: of the environment.
        location: where the record was read.
        answer: expected; a test is made of it where it is a number.

    Raises:
        Unadaptable: naming the reason.
    """
    adapter = ADAPTERS[kind]
    info = {"record": location}
    if record_id := next((values[c] for c in _ID_COLUMNS if values.get(c) is not None), None):
        info["record_id"] = str(record_id)[:200]
    digest = hashlib.sha256(prompt.encode("utf-8", "replace")).hexdigest()
    try:
        task = task_module.Task(
            name=f"{kind}-{digest[:20]}",
            instruction=f"{prompt}\n\n{adapter.suffix}\n",
            dockerfile=dockerfile,
            source=f"adapt_{kind}",
            domain=adapter.domain,
            files=_code_files(prompt) if kind == "swe" else {},
            answer_file=adapter.answer_file,
            info=info,
            **(_number_test(answer) if kind == "math" else {}),
        )
    except Unadaptable:
        raise
    except ValueError as error:
        raise Unadaptable(INVALID, str(error)) from error
    if faults := validation.faults(task):
        raise Unadaptable(INVALID, "; ".join(faults))
    return task


def _text_of(value: Any, role: str) -> str:
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        return ""
    names = {"user": ("user", "human"), "assistant": ("assistant", "gpt")}[role]
    for message in value:
        if not isinstance(message, Mapping):
            return ""
        if message.get("role", message.get("from")) in names:
            text = message.get("content", message.get("value"))
            return text if isinstance(text, str) else ""
    return ""


def _code_files(prompt: str) -> dict[str, bytes]:
    found = prompt_files.find(prompt)
    if not found:
        raise Unadaptable(NO_CODE_FILE, "in none of the forms that are known")
    for path in found:
        if fault := task_module.path_fault(path):
            raise Unadaptable(BAD_NAME, f"the file {path!r} {fault}")
    return {path: text.encode() for path, text in found.items()}


def _number_test(answer: str) -> dict[str, Any]:
    """Tests and solution for an answer that is a number; nothing for another, whose forms are too
    many to be compared without wronging right ones."""
    if number_answer.number(answer) is None:
        return {}
    source = importlib.resources.files("data_pipeline.taskgen") / "verifier" / "number_answer.py"
    tests = source.read_text("utf-8").replace(_NUMBER_TEST_MARK, f"EXPECTED = {answer!r}")
    solve = f"#!/bin/bash\nprintf '%s\\n' {shlex.quote(answer)} > /app/solution.txt\n"
    return {"tests": tests, "solution": solve}
