"""Generated tasks in containers, by Harbor itself: what solutions score, and doing nothing.

tests/podman/setup.sh installs what this needs. The tasks have the Dockerfile of a domain, built on
an image of this machine instead of a registry's.
"""

import dataclasses
import functools
import json
import os
import pathlib
import shutil
import subprocess

import pytest
from harbor_side import PROGRAM, WHY_NOT

from data_pipeline.taskgen import adapters, domains, making, recipe, tagged, validation
from data_pipeline.taskgen import task as task_module

pytestmark = pytest.mark.slow

HERE = pathlib.Path(__file__).parent / "podman"
IMAGE = "localhost/debian:12-jaxterm"
DOMAIN = "file_operations"
LIMITS = task_module.Limits(network=True)  # compose.yaml cuts it off
BUILD_S, JOB_S = 600, 900

SWE_PROMPT = """The sum of two numbers is wrong.
[start of src/sums.py]
def add(a, b):
    return a - b
[end of src/sums.py]
"""
SWE_SOLUTION = """#!/bin/bash
sed s/-/+/ /app/src/sums.py > /tmp/sums.py
diff -u /app/src/sums.py /tmp/sums.py > /app/solution.patch
"""
# What a teacher replies to a seed.
SEED_REPLY = """
<prompt>
Write the primes below the number in /app/limit.txt to /app/out/primes.json, a JSON list in
ascending order, and their sum to /app/out/sum.txt.
</prompt>
<tests>
import json

def test_primes():
    assert json.load(open("/app/out/primes.json")) == [2, 3, 5, 7, 11, 13]

def test_sum():
    assert int(open("/app/out/sum.txt").read()) == 41
</tests>
<weights>
{"test_primes": 0.7, "test_sum": 0.3}
</weights>
<info>
{"field": "number theory"}
</info>
<files>
<file path="limit.txt">
17
</file>
</files>
<test_requirements>
</test_requirements>
<solution>
#!/bin/bash
set -e
mkdir /app/out
python3 -c '
import json
limit = int(open("/app/limit.txt").read())
primes = [n for n in range(2, limit) if all(n % d for d in range(2, n))]
json.dump(primes, open("/app/out/primes.json", "w"))
open("/app/out/sum.txt", "w").write(str(sum(primes)))
'
</solution>
"""
# And to a combination of skills. One of the four tests has no weight, so they are 8 together.
SKILL_REPLY = """
<prompt>
Write the sum of the column amount of /app/data/amounts.csv to /app/total.txt, and its rows in
ascending order of the amount, below the same header, to /app/sorted.csv.
</prompt>
<tests>
import csv
import socket

def test_total():
    assert open("/app/total.txt").read() == "60\\n"

class TestSorted:
    def test_rows(self):
        rows = list(csv.DictReader(open("/app/sorted.csv")))
        assert [row["name"] for row in rows] == ["b", "c", "a"]

def test_input_is_as_it_was():
    assert open("/app/data/amounts.csv").read() == "name,amount\\na,30\\nb,10\\nc,20\\n"

def test_there_is_no_network():
    assert [name for _, name in socket.if_nameindex()] == ["lo"]
</tests>
<weights>
{"test_total": 4, "TestSorted::test_rows": 2.5, "test_there_is_no_network": 0.5}
</weights>
<info>
{}
</info>
<files>
<file path="data/amounts.csv">
name,amount
a,30
b,10
c,20
</file>
</files>
<test_requirements>
</test_requirements>
"""
SKILL_TOTAL = """#!/bin/bash
awk -F, 'NR > 1 { total += $2 } END { print total }' /app/data/amounts.csv > /app/total.txt
"""
SKILL_SORTED = """
{ head -n 1 /app/data/amounts.csv; tail -n +2 /app/data/amounts.csv | sort -t, -k2,2n; } \\
    > /app/sorted.csv
"""


def adapted(kind, prompt, *, answer=""):
    """The task of a dataset's record."""
    return adapters.adapt(
        kind, {}, prompt=prompt, dockerfile=domains.dockerfile(DOMAIN), location="a:1",
        answer=answer,
    )  # fmt: skip


def generated(source, reply):
    """The task of a teacher's reply."""
    order = recipe.Order(
        name=f"{source}-1",
        messages=(),
        dockerfile=domains.dockerfile(DOMAIN),
        source=source,
        domain=DOMAIN,
        difficulty="easy",
        skills=("csv_parsing", "sorting", "aggregation"),
        takes_solution=source == "seed",
    )
    task = making.task_of(order, tagged.parse(reply, takes_solution=order.takes_solution))
    assert not validation.faults(task)
    return task


def tasks():
    """Label -> a task of each kind, as the generators make them."""
    return {
        "math": adapted("math", "Prove that the sum of two even numbers is even."),
        "math with a number": adapted("math", "What is half of 1.5?", answer="3/4"),
        "code": adapted("code", "Print the sum of the two numbers that are read."),
        "swe": adapted("swe", SWE_PROMPT),
        "seed": generated("seed", SEED_REPLY),
        "skill": generated("skill", SKILL_REPLY),
    }


def solved():
    """Label -> the tasks with a solution; those that come without get one here."""
    made = tasks()
    solutions = {
        "math": "#!/bin/bash\necho '2a + 2b = 2(a + b)' > /app/solution.txt\n",
        "code": "#!/bin/bash\necho 'print(int(input()) + int(input()))' > /app/solution.py\n",
        "swe": SWE_SOLUTION,
        "skill": SKILL_TOTAL + SKILL_SORTED,
    }
    assert [label for label, task in made.items() if not task.solution] == list(solutions)
    for label, solution in solutions.items():
        made[label] = dataclasses.replace(made[label], solution=solution)
    made["half a skill"] = dataclasses.replace(made["skill"], name="half", solution=SKILL_TOTAL)
    return made


@functools.cache
def environment():
    """Variables under which Harbor meets the settings of tests/podman and its podman-compose."""
    assert PROGRAM is not None
    path = [str(HERE / "bin"), str(PROGRAM.parent), os.environ["PATH"]]
    return os.environ | {
        "PATH": os.pathsep.join(path),
        "CONTAINERS_CONF": str(HERE / "containers.conf"),
        "HARBOR_TELEMETRY": "off",
        "HF_HUB_OFFLINE": "1",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    }


def run(*words, timeout_s=60.0):
    return subprocess.run(
        [str(word) for word in words],
        env=environment(), capture_output=True, timeout=timeout_s, stdin=subprocess.DEVNULL,
        check=False,
    )  # fmt: skip


def missing():
    """What the setup has not brought."""
    if PROGRAM is None:
        return WHY_NOT
    beyond_ours = environment()["PATH"].partition(os.pathsep)[2]
    for name in ("podman", "podman-compose"):
        if not shutil.which(name, path=beyond_ours):
            return f"{name} is not installed"
    found = run("podman", "image", "exists", IMAGE)
    return f"podman has no image {IMAGE}" if found.returncode else ""


@pytest.fixture(scope="module", autouse=True)
def podman(tmp_path_factory):
    """Skips where podman is not set up, but not where CI has just done it; builds the domain's
    layers once, which those of the tasks then begin with."""
    if why := missing():
        told = f"{why}; run tests/podman/setup.sh"
        (pytest.fail if os.environ.get("PODMAN_TESTS") == "required" else pytest.skip)(told)
    context = tmp_path_factory.mktemp("context")
    (context / "Dockerfile").write_text(domains.dockerfile(DOMAIN))
    done = run(
        "podman", "build", "--quiet", "--build-arg", f"BASE_IMAGE={IMAGE}", "--tag",
        f"localhost/jaxterm-{DOMAIN}", context,
        timeout_s=BUILD_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:].decode()


def rewards(agent, wanted, folder):
    """Label -> reward, of one trial of each task."""
    labels = {}
    for label, task in wanted.items():
        task_module.write_task(dataclasses.replace(task, limits=LIMITS), folder / "tasks")
        labels[task.name] = label
    done = run(
        PROGRAM, "run", "--path", folder / "tasks", "--agent", agent, "--env", "podman",
        "--extra-docker-compose", HERE / "compose.yaml", "--n-concurrent", 2,
        "--jobs-dir", folder, "--job-name", "job", "--quiet", "--yes",
        timeout_s=JOB_S,
    )  # fmt: skip
    results = [json.loads(path.read_text()) for path in (folder / "job").glob("*/result.json")]
    faults = [result["exception_info"] for result in results if result["exception_info"]]
    assert done.returncode == 0 and not faults, (faults, done.stdout[-2000:], done.stderr[-2000:])
    folders = [pathlib.Path(result["task_id"]["path"]).name for result in results]
    found = [result["verifier_result"]["rewards"]["reward"] for result in results]
    return dict(zip(map(labels.get, folders), found, strict=True))


def test_solutions_score_one_and_half_a_solution_its_weight(tmp_path):
    wanted = solved()
    found = rewards("oracle", wanted, tmp_path)
    # Half a skill: all but TestSorted, of weight 2.5.
    expected = dict.fromkeys(wanted, 1.0) | {"half a skill": 5.5 / 8}
    assert found == expected


def test_doing_nothing_scores_less(tmp_path):
    wanted = tasks()
    found = rewards("nop", wanted, tmp_path)
    # The skill's input is as it was, of weight 1, and there is no network, of weight 0.5.
    expected = dict.fromkeys(wanted, 0.0) | {"skill": 1.5 / 8}
    assert found == expected


def test_what_a_command_prints_has_no_carriage_returns(tmp_path):
    """podman-compose by itself gives a command a terminal, whose lines end in CR LF."""
    file = tmp_path / "compose.json"
    file.write_text(json.dumps({"services": {"main": {"image": IMAGE, "command": "sleep 600"}}}))
    compose = ("podman-compose", "--in-pod=false", "--project-name", f"lines-{os.getpid()}",
               "-f", HERE / "compose.yaml", "-f", file)  # fmt: skip
    up = run(*compose, "up", "--detach", "--no-build")
    try:
        done = run(*compose, "exec", "main", "sh", "-c", "echo exec; echo $0; exit 3", "exec")
    finally:
        run(*compose, "down")
    assert (done.stdout, done.returncode) == (b"exec\nexec\n", 3), (up.stderr, done.stderr)
