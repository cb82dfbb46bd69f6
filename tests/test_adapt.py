"""Dataset adapters: the paper's templates, code files in prompts, filters, a run that is killed."""

import json
import subprocess
import time

import pytest
from test_task import HARBOR_SCRIPT, harbor_python

from data_pipeline import manifest
from data_pipeline.taskgen import (
    adapt,
    adapt_record,
    adapters,
    prompt_files,
    validation,
)
from data_pipeline.taskgen.verifier import number_answer

DOCKERFILE = "FROM debian:12\nWORKDIR /app\n"


def run(tmp_path, kind, rows, *, tokenizer="", **options):
    """The tasks by their prompts, and the reasons of the records that went."""
    data, dockerfile = tmp_path / "data.jsonl", tmp_path / "Dockerfile"
    data.write_text(
        "".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows)
    )
    dockerfile.write_text(DOCKERFILE)
    out = tmp_path / "out"
    tasks_dir = adapt.adapt(
        kind, [str(data)], output_dir=out, tokenizer=tokenizer, overwrite=True,
        options=adapt_record.AdaptOptions(dockerfile=str(dockerfile), **options),
    )  # fmt: skip
    tasks = [validation.check_folder(folder) for folder in tasks_dir.iterdir()]
    return tasks, removed_in(out)


def removed_in(out):
    return [json.loads(line) for line in (out / adapt.REMOVED_FILE).read_text().splitlines()]


def prompts(tasks, kind):
    suffix = f"\n\n{adapters.ADAPTERS[kind].suffix}\n"
    assert all(task.instruction.endswith(suffix) for task in tasks)
    return sorted(task.instruction.removesuffix(suffix) for task in tasks)


SWE_PROMPT = """You will be provided with a partial code base and an issue statement.
<issue>
The sum is wrong, see `src/sums.py`.
</issue>
<code>
[start of README.md]
1 # Sums
2
3 Adds numbers.
[end of README.md]
[start of src/sums.py]
1 def add(a, b):
2     return a - b
[end of src/sums.py]
</code>
"""

# Figures 8 to 10 of the paper.
PAPER = {
    "math": ("What is 1 + 1?", "What is 1 + 1?\n\n"
             "Please place your final answer in a file named '/app/solution.txt'.\n"),
    "code": ("Reverse a list.", "Reverse a list.\n\nWrite Python code to solve the problem. Please "
             "place the solution code in a file named `/app/solution.py`.\n"),
    "swe": (SWE_PROMPT, SWE_PROMPT + "\n\nPlease first localize the bug based on the issue "
            "statement, generate *SEARCH/REPLACE* edits to fix the issue, and save the diff to a "
            "file named `/app/solution.patch`.\n"),
}  # fmt: skip


@pytest.mark.parametrize("kind", PAPER)
def test_the_instruction_is_the_papers(tmp_path, kind):
    prompt, instruction = PAPER[kind]
    [task], removed = run(tmp_path, kind, [{"prompt": prompt, "id": 7}])
    assert task.instruction == instruction and not removed
    assert task.source == f"adapt_{kind}" and task.dockerfile == DOCKERFILE
    assert not task.tests and not task.solution and task.answer_file in instruction
    assert task.info == {"record": "data.jsonl line 1", "record_id": "7"}


def test_harbor_takes_the_tasks_of_every_kind(tmp_path):
    python, folders = harbor_python(), []
    for kind, (prompt, _) in PAPER.items():
        (tmp_path / kind).mkdir()
        row = {"prompt": prompt, "answer": "2"}
        run(tmp_path / kind, kind, [row], answer_tests=True)
        folders += (tmp_path / kind / "out" / "tasks").iterdir()
    done = subprocess.run(
        [python, "-c", HARBOR_SCRIPT, *map(str, folders)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    metadata = [json.loads(line)["metadata"] for line in done.stdout.splitlines()]
    assert [told["verified"] for told in metadata] == [True, False, False]


def test_code_files_lie_in_the_environment(tmp_path):
    [task], _ = run(tmp_path, "swe", [{"prompt": SWE_PROMPT}])
    assert task.files == {
        "README.md": b"# Sums\n\nAdds numbers.\n",
        "src/sums.py": b"def add(a, b):\n    return a - b\n",
    }


A, B = "import os\n\nprint(1)\n", "x = 1\ny = 2\n"
EDIT = (
    "### mathweb/flask/app.py\n<<<<<<< SEARCH\nfrom flask import Flask\n=======\n>>>>>>> REPLACE\n"
)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        (f"[start of a/b.py]\n{A}[end of a/b.py]\n[start of c]\n{B}[end of c]",
         {"a/b.py": A, "c": B}),
        (f"[start of a.py]\n{A}[end of b.py]\n[start of b.py]\n{B}[end of b.py]", {"b.py": B}),
        (f"[start of a.py]\n```\n# x.py\n{A}```\n[end of a.py]",
         {"a.py": f"```\n# x.py\n{A}```\n"}),
        (f'<file path="a/b.py">\n{A}</file> <file name=c.py>{B}</file>', {"a/b.py": A, "c.py": B}),
        (f"<document path='a.py'>\n{A}</document>", {"a.py": A}),
        (f"<file_path>a.py</file_path>\n<file_content>\n{A}</file_content>", {"a.py": A}),
        (f"--- BEGIN FILE ---\n```\n### a/b.py\n{A}### c.py\n{B}```\n--- END FILE ---",
         {"a/b.py": A, "c.py": B}),
        (f"```python\n# src/a.py\n{A}```", {"src/a.py": A}),
        (f"```js\n// ./src/a.js\n{A}```", {"src/a.js": A}),
        (f"```python src/a.py\n{A}```", {"src/a.py": A}),
        (f"```python:src/a.py\n{A}```", {"src/a.py": A}),
        (f"```python title=\"a.py\"\n{A}```", {"a.py": A}),
        (f"**src/a.py**\n```python\n{A}```", {"src/a.py": A}),
        (f"### File: src/a.py\n\n```\n{A}```\n\n`b.py`:\n```\n{B}```", {"src/a.py": A, "b.py": B}),
        (f"````\n# a.py\n{A}```\nno end\n````", {"a.py": f"{A}```\nno end\n"}),
        # What is no file: code without a path, edits, diffs, what is never closed, empty files.
        (f"```python\n{A}```", {}),
        (f"Run this:\n```bash\n{B}```", {}),
        (f"Every edit has this form:\n```python\n{EDIT}```", {}),
        ("a.py\n```diff\n-x\n+y\n```", {}),
        ("a.py\n```\n--- a/x.py\n+++ b/x.py\n```", {}),
        (f"[start of a.py]\n{A}", {}),
        ("[start of a.py]\n\n[end of a.py]", {}),
        ("nothing", {}),
        # Lines that are numbered otherwise stay.
        ("[start of a]\n1 x\n3 y\n[end of a]", {"a": "1 x\n3 y\n"}),
        ("[start of a]\n7: x\n8:\n9:   y\n[end of a]", {"a": "x\n\n  y\n"}),
        ("[start of a]\n  1\tx\n  2\ty\n[end of a]", {"a": "x\ny\n"}),
        ("[start of a]\n1,x\n2,y\n[end of a]", {"a": "1,x\n2,y\n"}),
    ],
)  # fmt: skip
def test_code_files_of_a_prompt(prompt, expected):
    assert prompt_files.find(prompt) == expected


@pytest.mark.parametrize(
    "prompt",
    ["[start of a]\n" * 40_000, '<file path="a">' * 40_000, "```\n" * 100_001, "`" * 500_000,
     "".join(f"[start of {i}]\n" for i in range(20_000)), "a/" * 250_000 + "\n```\nx\n```"],
)  # fmt: skip
def test_hostile_prompts_cost_little(prompt):
    start_s = time.monotonic()
    prompt_files.find(prompt)
    assert time.monotonic() - start_s < 20


@pytest.mark.parametrize(
    "name", ["../x.py", "/etc/passwd", "a/../../x.py", "/testbed/a.py", "a//b.py", "~/.ssh/../x"]
)
def test_files_outside_the_folder_are_refused(tmp_path, name):
    bad = f"[start of {name}]\n{A}[end of {name}]"
    good = f"[start of a.py]\n{A}[end of a.py]"
    [task], [removed] = run(tmp_path, "swe", [{"prompt": bad}, {"prompt": good}])
    assert list(task.files) == ["a.py"]
    assert removed["reason"] == adapters.BAD_NAME and repr(name) in removed["detail"]


LONG = " ".join(f"word{i}" for i in range(30))
OTHER = " ".join(f"thing{i}" for i in range(30))
# For each filter: options, rows of which all but the first go, and the reason.
FILTERED = [
    ("math", {}, ["{\n"], "bad row"),
    ("math", {}, ["[1]\n"], "bad row"),
    ("math", {}, [{"nothing": "x"}, {"prompt": " \n"}, {"prompt": "-"}, {"prompt": 3}],
     "no prompt"),
    ("math", {"prompt_column": "p"}, [{"prompt": "What is 2?"}], "no prompt"),
    ("math", {"min_response_chars": 9}, [{"prompt": OTHER, "output": "x" * 8}, {"prompt": "q"}],
     "short response"),
    ("math", {"min_response_tokens": 5}, [{"prompt": OTHER, "output": "a b"}], "short response"),
    ("swe", {}, [{"prompt": "The sum is wrong."}], "no code file in the prompt"),
    ("swe", {}, [{"prompt": f"[start of solution.patch]\n{A}[end of solution.patch]"}], "invalid"),
    ("swe", {}, [{"prompt": f"[start of a]\n{A}[end of a]\n[start of a/b]\n{A}[end of a/b]"}],
     "invalid"),
    ("math", {}, [{"prompt": f" {LONG}\n"}, {"prompt": LONG.replace(" ", "\u200b \n")}],
     "duplicate"),
    ("math", {"near_duplicates": 0.8}, [{"prompt": f"{LONG} more"}], "near-duplicate"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "options", "rows", "reason"), FILTERED)
def test_each_filter_takes_what_it_should(tmp_path, kind, options, rows, reason):
    prompt = f"[start of b.py]\n{LONG}\n[end of b.py]" if kind == "swe" else LONG
    good = {"prompt": prompt, "p": prompt, "response": "x y z " * 9}
    tokenizer = "embedded" if "min_response_tokens" in options else ""
    tasks, removed = run(tmp_path, kind, [good, *rows], tokenizer=tokenizer, **options)
    assert prompts(tasks, kind) == [prompt]
    assert [line["reason"] for line in removed] == [reason] * len(rows)
    counts = json.loads((tmp_path / "out" / manifest.FILE).read_text())["counts"]
    assert counts[reason] == len(rows) and counts["kept"] == 1


def test_what_differs_by_a_sign_is_no_repeat(tmp_path):
    rows = [{"prompt": f"{LONG} {sign} {OTHER}"} for sign in "+-*/"]
    tasks, removed = run(tmp_path, "math", rows, near_duplicates=0.95)
    assert len(tasks) == 4 and not removed
    tasks, removed = run(tmp_path, "math", rows, near_duplicates=0.0)
    assert len(tasks) == 4 and not removed


def test_prompts_of_a_benchmark_go(tmp_path):
    words = LONG.split()
    task = tmp_path / "benchmark" / "task-1"
    task.mkdir(parents=True)
    (task / "instruction.md").write_text(f"Please {' '.join(words[:20])}!")
    rows = [{"prompt": f"x {' '.join(words[3:17])} y"}, {"prompt": f"x {' '.join(words[3:16])} y"}]
    benchmarks = (str(tmp_path / "benchmark"),)
    tasks, [removed] = run(tmp_path, "math", rows, benchmarks=benchmarks)
    assert prompts(tasks, "math") == [rows[1]["prompt"]]
    assert removed["reason"] == "contaminated" and "benchmark/task-1" in removed["detail"]


CHAT = [{"role": "system", "content": "s"}, {"role": "user", "content": "the question"},
        {"role": "assistant", "content": "the reply"}]  # fmt: skip


@pytest.mark.parametrize(
    ("row", "column", "prompt"),
    [
        ({"problem": "p", "solution": "s"}, "problem", "p"),
        ({"question": "q", "answer": "a"}, "question", "q"),
        ({"instruction": "i", "input": "n"}, "instruction", "i"),
        ({"input": "n", "output": "o"}, "input", "n"),
        ({"prompt": None, "input": "-", "problem": " ", "question": "q"}, "question", "q"),
        ({"problem_statement": "p", "patch": "d"}, "problem_statement", "p"),
        ({"messages": CHAT}, "messages", "the question"),
        ({"prompt": CHAT}, "prompt", "the question"),
        ({"conversations": [{"from": "human", "value": "v"}]}, "conversations", "v"),
        ({"messages": CHAT[:1]}, "", ""), ({"messages": [1]}, "", ""), ({"input": "None"}, "", ""),
    ],
)  # fmt: skip
def test_the_prompts_column_is_found(row, column, prompt):
    assert adapters.find_text(row, adapters.PROMPT_COLUMNS, role="user") == (column, prompt)


def test_responses_are_found_in_columns_and_in_messages():
    for row in ({"messages": CHAT}, {"generated_solution": "the reply"}, {"output": "the reply"}):
        assert (
            adapters.find_text(row, adapters.RESPONSE_COLUMNS, role="assistant")[1] == "the reply"
        )


# Answers that are numbers.
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("12", "12"), (" 12\n", "12"), ("12.", "12"), ("1,200", "1200"), ("$1{,}200$", "1200"),
        ("0.5", "1/2"), ("-3/4", "\\frac{-3}{4}"), ("-\\dfrac{3}{4}", "-0.75"), ("+7", "7"),
        ("\\boxed{7}", "7"), ("x = 7", "7"), ("\\(7\\)", "7"), ("\u22127", "-7"), ("7.0", "7"),
        ("0.3333333", "1/3"), (".5", "0.50"), ("1234567.0", "1234567"), ("\\boxed{\\text{7}}", "7"),
    ],
)  # fmt: skip
def test_equal_numbers(text, expected):
    assert number_answer.is_same(text, expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("12", "13"), ("", "12"), ("twelve", "12"), ("12 or 13", "12"), ("0.33", "1/3"),
        ("1e1", "10"), ("1/0", "0"), ("12,00", "1200"), ("-7", "7"), ("7", "x"), ("x", "x"),
        ("7" * 2000, "7"),
        ("7 7", "77"), ("1000001", "1000000"), ("0.0000001", "0.0"), ("\\frac{1}{0}", "1"),
        ("(1, 2)", "1"), ("9" * 51, "9" * 51),
    ],
)  # fmt: skip
def test_other_numbers_and_texts(text, expected):
    assert not number_answer.is_same(text, expected)


def test_answers_that_are_numbers_become_tests(tmp_path):
    rows = [
        {"problem": "What is half of one?", "expected_answer": "\\frac{1}{2}"},
        {"problem": "What is the name of the axiom?", "expected_answer": "choice"},
        {"problem": "What is six times seven?", "expected_answer": 42},
        {"problem": "What is true of all primes?", "expected_answer": True},
        {"problem": "Inject what you like here!", "expected_answer": "'; import os #"},
        {"problem": "Nothing is known about this."},
    ]
    tasks, _ = run(tmp_path, "math", rows, answer_tests=True)
    tested = {task.instruction.split("?")[0]: task for task in tasks if task.tests}
    assert len(tasks) == 6 and set(tested) == {"What is half of one", "What is six times seven"}
    assert tested["What is half of one"].solution.splitlines()[1] == (
        "printf '%s\\n' '\\frac{1}{2}' > /app/solution.txt"
    )
    for task in tested.values():
        compile(task.tests, "t", "exec")
        assert task.limits.network is False
    assert len([t for t in run(tmp_path, "math", rows)[0] if t.tests]) == 0
