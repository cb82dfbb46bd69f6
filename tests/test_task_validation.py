"""Structural validation: for every rule tasks that break it, and near ones that do not."""

import dataclasses

import pytest

from data_pipeline.taskgen import domains, leaks, references, tests_code, validation
from data_pipeline.taskgen import task as task_module

TESTS = '''
"""The totals of the shop."""
import json
import pathlib


def test_totals():
    totals = json.loads(pathlib.Path("/app/totals.json").read_text())
    assert totals["apples"] == 12, "read /app/elsewhere.txt"


class TestShape:
    def test_keys(self):
        assert set(json.load(open("/app/totals.json"))) == {"apples", "pears"}
'''
GOOD = task_module.Task(
    name="good",
    instruction="Read the sales in /app/sales.csv and write their totals to /app/totals.json.",
    dockerfile="ARG A=1\nFROM debian:12 # x\nWORKDIR /app\nRUN true \\\n  && true\n",
    source="skill",
    domain="data_processing",
    difficulty="easy",
    skills=("sums",),
    files={"sales.csv": b"fruit,count\napples,5\napples,7\npears,1\n"},
    tests=TESTS,
    weights={"test_totals": 2.0, "TestShape::test_keys": 1, "test_keys": 3},
)
ADAPTED = task_module.Task(
    name="adapted",
    instruction="What is 1 + 1? Answer in '/app/solution.txt'.",
    dockerfile="FROM debian:12\n",
    source="adapt_math",
    answer_file="/app/solution.txt",
)
WORDS = " ".join(f"word{i}" for i in range(40))


def changed(**changes):
    return dataclasses.replace(GOOD, **changes)


def test_good_tasks_have_no_fault():
    for task in (GOOD, ADAPTED, changed(source="seed", difficulty="", skills=())):
        assert validation.faults(task) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"instruction": "Do it."}, "the instruction has fewer than 5 words"),
        ({"instruction": GOOD.instruction + "x " * 600_000}, "is longer than 1 MiB"),
        ({"dockerfile": ""}, "does not begin with FROM"),
        ({"dockerfile": "# FROM x\nRUN true\nFROM x\n"}, "does not begin with FROM"),
        ({"dockerfile": "FROM debian:12\nRUN true \\\n"}, "ends within a line"),
        ({"dockerfile": "FROM debian:12\nCOPY files/other.csv /app/\n"}, "copies 'files/other.cs"),
        ({"dockerfile": "FROM debian:12\nADD ../../etc/passwd /app/\n"}, "copies '../../etc/pass"),
        ({"files": GOOD.files | {"big": b"x" * (9 << 20)}}, "'big' is larger than 8 MiB"),
        ({"files": GOOD.files | {str(i): b"x" * (7 << 20) for i in range(5)}}, "32 MiB together"),
        ({"files": GOOD.files | {str(i): b"" for i in range(1000)}}, "1001 files; at most 1000"),
        ({"files": GOOD.files | {"x/test_outputs.py": b""}}, "the agent must not see"),
        ({"files": GOOD.files | {"solve.sh": b""}}, "the agent must not see"),
        ({"domain": ""}, "domain is empty; a task of source skill has one"),
        ({"skills": ()}, "skills is empty"),
        ({"difficulty": ""}, "difficulty is empty"),
        ({"tests": "def test_a(:\n"}, "the tests are no Python: line 1"),
        ({"tests": "x = 1\0\n"}, "the tests are no Python"),
        ({"tests": "(" * 5000 + ")" * 5000}, "the tests are no Python"),
        ({"tests": "x = 1\n", "weights": {}}, "define no function test_"),
        ({"tests": "def test_a(): 1\ndef test_a(): 2\n", "weights": {}}, "define test_a twice"),
        ({"tests": "# " + "x" * (300 << 10)}, "the tests are longer than 256 KiB"),
        ({"weights": {"test_total": 1.0}}, "weight for 'test_total', which no test is called"),
        ({"weights": {"Other::test_keys": 1.0}}, "weight for 'Other::test_keys'"),
    ],
)  # fmt: skip
def test_what_does_not_fit_together_is_told(changes, message):
    found = validation.faults(changed(**changes))
    assert any(message in fault for fault in found), found


@pytest.mark.parametrize(
    "dockerfile",
    [
        "FROM debian:12\nCOPY files/ /app/\n", "FROM debian:12\nCOPY ./files/sales.csv /app/\n",
        "FROM debian:12 AS a\nFROM a\nCOPY --from=a /x /y\nCOPY --chown=0 files /app/\n",
        "# syntax=docker/dockerfile:1\nFROM debian:12\nADD https://example.com/x /x\n",
    ],
)  # fmt: skip
def test_dockerfiles_that_can_be_built_pass(dockerfile):
    assert validation.faults(changed(dockerfile=dockerfile)) == []


@pytest.mark.parametrize("domain", domains.NAMES)
def test_our_own_dockerfiles_pass(domain):
    assert validation.faults(changed(dockerfile=domains.dockerfile(domain))) == []


def test_an_answer_file_is_named_and_not_there():
    task = dataclasses.replace(ADAPTED, instruction="What is one and one?")
    assert "does not name the answer file" in validation.faults(task)[0]
    task = dataclasses.replace(ADAPTED, files={"solution.txt": b"2"})
    assert "is the answer that the agent is to write" in validation.faults(task)[0]


def test_a_folder_is_read_and_all_its_faults_are_told(tmp_path):
    task_module.write_task(GOOD, tmp_path)
    assert validation.check_folder(tmp_path / "good") == GOOD
    task_module.write_task(changed(domain="", weights={"x": 1}), tmp_path)
    with pytest.raises(ValueError, match=r"good: domain is empty.*weight for 'x'"):
        validation.check_folder(tmp_path / "good")


# Files that instruction and tests speak of.
def with_body(body):
    return f"import os, glob, pathlib\ndef test_a():\n    {body}\n"


@pytest.mark.parametrize(
    ("instruction", "body", "fault"),
    [
        # What the tests look at must be asked for.
        ("Write the sum to /app/sum.txt.", "open('/app/sum.txt')", ""),
        ("Write `sum.txt` into the folder /app.", "open('/app/sum.txt')", ""),
        ("Write the sum to /app/sum.txt.", "open('/app/sums.txt')", "look at /app/sums.txt"),
        ("Write the sum to /app/sum.txt.gz now.", "open('/app/sum.txt')", "look at /app/sum.txt"),
        ("Write the sum to a good file there.", "open('/app/sum.txt')", "look at /app/sum.txt"),
        ("Put all results into /app/out please.", "open('/app/out/a/b.txt')", ""),
        ("Put all results into `out/` please.", "open('/app/out/b.txt')", ""),
        ("Write /app/out/a.txt and be done.", "open('/app/out/b.txt')", "look at /app/out/b.txt"),
        ("Sort the lines of the sales in place.", "open('/app/sales.csv')", ""),
        ("Sort the lines of the sales in place.", "open('/app/data/sales.csv')", ""),
        ("Sort the lines of the sales in place.", "os.listdir('/app/data')", ""),
        ("Sort the lines of the sales in place.", "open('/opt/app/x/y')", ""),
        ("Sort the lines of the sales in place.", "open('/app')", ""),
        # What is no whole name is no name.
        ("Write as many parts as you need there.", "glob.glob('/app/part_*.txt')", ""),
        ("Write as many parts as you need there.", "open(f'/app/part_{1}.txt')", ""),
        ("Write as many parts as you need there.", "open('/app/part_' + 'a' + str(1))", ""),
        ("Write as many parts as you need there.", "open('/app/part_%d' % 1)", ""),
        ("Write as many parts as you need there.", "open('/app/part' + '.txt')", "/app/part.txt"),
        # Messages of failures do not count.
        ("Sort the lines of the sales in place.", "assert 1, 'no /app/x.txt'", ""),
        ("Sort the lines of the sales in place.", "assert open('/app/x.txt'), 'm'", "/app/x.txt"),
        # What the instruction has the agent read must be there.
        ("Read /app/in.csv and sort it well.", "pass", "read /app/in.csv"),
        ("Read /app/sales.csv and sort it well.", "pass", ""),
        ("Read /app/data/sales.csv and sort it.", "pass", ""),
        ("You are given /app/in.csv. Sort it.", "pass", "read /app/in.csv"),
        ("Read the sales and write /app/o.csv.", "pass", ""),
        ("Write /app/o.csv. Later read /app/o.csv.", "pass", ""),
        ("The file /app/o.csv will be read by us.", "pass", ""),
        ("Read every file /app/*.csv and sort it.", "pass", ""),
        ("Read /app/built.csv and sort it well.", "pass", ""),
        ("Write a tool that reads /app/c.json here.", "open('/app/c.json')", "read /app/c.json"),
        ("Write a tool that reads /app/c.json here.",
         "pathlib.Path('/app/c.json').write_text('1')", ""),
    ],
)  # fmt: skip
def test_files_are_there_or_asked_for(instruction, body, fault):
    found = list(
        references.unaccounted(
            instruction=instruction,
            dockerfile="FROM debian:12\nRUN seq 9 > /app/built.csv\n",
            code=tests_code.parse(with_body(body)),
            files=["sales.csv", "data/sales.csv"],
        )
    )
    assert (fault in found[0] and len(found) == 1) if fault else not found, found


# Leaks.
CODE = " ".join(f"step{i}" for i in range(30))
PROSE = "Write the totals of every fruit to /app/totals.json as one object, please, and be quick."


def found_leaks(*, instruction=PROSE, files=None, tests="", solution=""):
    code = tests_code.parse(tests) if tests else None
    return list(
        leaks.find(instruction=instruction, files=files or {}, code=code, solution=solution)
    )


SHORT = " ".join(CODE.split()[: leaks.RUN_WORDS - 1])
RUN = " ".join(CODE.split()[5 : 5 + leaks.RUN_WORDS])
SPLIT_RUN = RUN.replace(" ", "();\n  ").upper()  # case and signs hide nothing


@pytest.mark.parametrize(
    ("given", "secret"),
    [
        ({"instruction": f"Do: {RUN} so"}, {"solution": CODE}),
        ({"instruction": f"Do: {SPLIT_RUN} so"}, {"solution": CODE}),
        ({"instruction": f"Like {RUN}."}, {"tests": f"def test_a(): assert open('x') == '{CODE}'"}),
        ({"instruction": f"Like {RUN}."}, {"tests": f"WANTED = '''{CODE}'''"}),
        ({"instruction": "so " + ", ".join(map(str, range(20)))},
         {"tests": f"def test_a(): assert f() == {list(range(20))}"}),
        ({"instruction": "so " + ", ".join(map(str, range(20)))},
         {"tests": f"W = {{'a': {list(range(20))}}}"}),
        ({"files": {"a.py": f"# {CODE}\n# more of it".encode()}}, {"solution": CODE}),
        ({"files": {"b.txt": f"{CODE} and".encode()}}, {"tests": f"W = '{CODE}'"}),
    ],
)  # fmt: skip
def test_leaks_are_found(given, secret):
    assert len(found_leaks(**given, **secret)) == 1


@pytest.mark.parametrize(
    ("given", "secret"),
    [
        ({}, {"solution": CODE, "tests": f"W = '{CODE}'"}),
        ({"instruction": f"The header is {SHORT}."}, {"solution": CODE}),
        ({"instruction": f"The header is {SHORT}."}, {"tests": f"W = '{CODE}'"}),
        # Docstrings and messages say what the instruction says.
        (
            {},
            {"tests": f"'''{PROSE}'''\ndef test_a():\n  '''{PROSE}'''\n  assert 0, '''{PROSE}'''"},
        ),
        ({}, {"tests": f"import pytest\ndef test_a():\n  pytest.fail('''{PROSE}''')"}),
        ({}, {"tests": f"def test_a():\n  raise ValueError('''{PROSE}''')"}),
        # A mended file is mostly what it was; an output may repeat part of its input.
        ({"files": {"a.py": f"{RUN} {SHORT} bug".encode()}}, {"solution": CODE}),
        ({"files": {"in.csv": f"{CODE} {WORDS}".encode()}}, {"tests": f"W = '{CODE}'"}),
        ({"files": {"in.csv": b"apples"}}, {"tests": "W = 'apples'"}),
        ({"files": {"in.bin": bytes(range(256))}}, {"solution": CODE}),
    ],
)
def test_what_is_no_leak_passes(given, secret):
    assert found_leaks(**given, **secret) == []


def test_a_leak_makes_a_task_invalid_and_shows_the_words():
    [fault] = validation.faults(changed(instruction=f"{GOOD.instruction} {RUN}", solution=CODE))
    assert fault.startswith("the instruction gives away 16 words in a row of the solution ('step5")
