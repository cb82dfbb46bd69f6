"""A task of each kind, as the generators make them, and what its solution and its half score.

The rewards are worked out by hand from the weights in the replies below.
"""

import dataclasses
import json
import pathlib

from data_pipeline.taskgen import adapters, domains, making, recipe, tagged, validation

DOMAIN = "file_operations"

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


def rewards_of_solutions(wanted):
    """Half a skill passes all but TestSorted, of weight 2.5."""
    return dict.fromkeys(wanted, 1.0) | {"half a skill": 5.5 / 8}


def rewards_of_nothing(wanted):
    """The skill's input is as it was, of weight 1, and there is no network, of weight 0.5."""
    return dict.fromkeys(wanted, 0.0) | {"skill": 1.5 / 8}


def rewards_in(job, labels, done):
    """Label -> reward in the folder of a job of Harbor that ended as `done`.

    Args:
        labels: name of a task -> its label.
    """
    results = [json.loads(path.read_text()) for path in job.glob("*/result.json")]
    faults = [result["exception_info"] for result in results if result["exception_info"]]
    assert done.returncode == 0 and not faults, (faults, done.stdout[-2000:], done.stderr[-2000:])
    folders = [pathlib.Path(result["task_id"]["path"]).name for result in results]
    found = [result["verifier_result"]["rewards"]["reward"] for result in results]
    return dict(zip(map(labels.get, folders), found, strict=True))
