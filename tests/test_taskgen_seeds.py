"""Tasks from seed problems, by a scripted teacher: what it is asked, and what is kept."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import teacher_servers as servers
from sandboxes import needs_sandbox

from data_pipeline.taskgen import attempts, generate, seeds, task

REPLY = """
<prompt>
{words}
/app/masses.txt holds a mass in kilograms on each line. Write their sum, with two decimals, to
/app/total.txt.
</prompt>
<tests>
import pathlib


def test_total():
    assert pathlib.Path("/app/total.txt").read_text().strip() == "6.50"
</tests>
<weights>
{{"test_total": 1}}
</weights>
<info>
{{"title": "masses"}}
</info>
<files>
<file path="masses.txt">
1.5
5.0
</file>
</files>
<test_requirements>
</test_requirements>
<solution>
{solution}
</solution>
"""
RIGHT = "awk '{s += $1} END {printf \"%.2f\\n\", s}' masses.txt > total.txt"
WRONG = "echo 7 > total.txt"
SECRET = (
    "the reference takes the sum with compensated summation and rounds it half to even at the end, "
    "which gives six and a half kilograms"
)


def rule(match, text):
    told = {"match": match, "where": "any", "texts": [text]}
    return "\n".join(["[[rule]]", *(f"{k} = {json.dumps(v)}" for k, v in told.items()), ""])


def reply(words, solution):
    return REPLY.format(words=words, solution=solution)


def run(files, server, folder, **options):
    told = seeds.SeedOptions()
    recipe = seeds.Seeds(files, told)
    generate.generate(
        recipe, name="seeds", inputs={}, told={}, output_dir=folder,
        settings=server.settings(max_tokens=4000),
        options=generate.GenerateOptions(**options),
    )  # fmt: skip
    lines = (folder / attempts.FILE).read_text().splitlines()
    return {line["index"]: line for line in map(json.loads, lines)}


@needs_sandbox
def test_a_seed_is_kept_where_its_own_solution_passes_its_tests(tmp_path):
    seeds_file = tmp_path / "seeds.jsonl"
    rows = [
        {"problem": "Sum the masses of a balance.", "domain": "Physics", "solution": SECRET},
        {"problem": "Sum the masses of a freighter.", "domain": "data processing"},
        {"nothing": 1},
    ]
    seeds_file.write_text("\n".join(map(json.dumps, rows)) + "\nno json\n")
    script = rule("balance", reply("A balance stands in a laboratory.", RIGHT))
    script += rule("freighter", reply("A freighter lies in the harbour.", WRONG))
    with servers.served(script, tmp_path) as server:
        found = run([seeds_file], server, tmp_path / "out")
        questions = [event["body"]["messages"] for event in server.events("came")]
    assert [found[i]["ending"] for i in (0, 1)] == ["kept", "unsolvable"]
    assert found[1]["num_replies"] == 3  # its fault was sent back twice
    assert any(SECRET in message["content"] for message in questions[0] + questions[1])
    kept = task.read_task(tmp_path / "out" / "tasks" / found[0]["name"])
    assert kept.domain == "scientific_computing" and kept.info["label"] == "physics"
    assert kept.solution and "data-processing" in found[1]["name"]
    folder = tmp_path / "out" / "tasks" / found[0]["name"]
    for path in folder.rglob("*"):  # the reference is nowhere in the task
        assert path.is_dir() or SECRET not in path.read_text("utf-8", errors="replace"), path


def test_a_reference_that_is_quoted_to_the_agent_is_no_task(tmp_path):
    seeds_file = tmp_path / "seeds.jsonl"
    rows = [{"problem": "Sum the masses of a balance.", "solution": SECRET}]
    seeds_file.write_text(json.dumps(rows[0]) + "\n")
    with servers.served(rule("", reply(SECRET.capitalize(), RIGHT)), tmp_path) as server:
        found = run([seeds_file], server, tmp_path / "out", check="none", max_repairs=0)
    assert found[0]["ending"] == "invalid" and "gives away" in found[0]["reason"]


def test_a_number_is_a_reference_too(tmp_path):
    seeds_file = tmp_path / "seeds.jsonl"
    seeds_file.write_text('{"problem": "Sum the masses of a balance.", "answer": 6.5}\n')
    with servers.served(rule("", reply("A balance.", RIGHT)), tmp_path) as server:
        run([seeds_file], server, tmp_path / "out", check="none")
        [event] = server.events("came")
    assert "6.5" in event["body"]["messages"][-1]["content"]


@needs_sandbox
def test_a_task_that_needs_what_this_machine_lacks_is_kept_and_counted(tmp_path):
    seeds_file = tmp_path / "seeds.jsonl"
    seeds_file.write_text('{"problem": "Sum the masses.", "domain": "data science"}\n')
    text = reply("A balance.", RIGHT).replace("import pathlib", "import numpy_of_no_machine", 1)
    text = text.replace("<test_requirements>", "<test_requirements>\nnumpy-of-no-machine==1.0")
    with servers.served(rule("", text), tmp_path) as server:
        found = run([seeds_file], server, tmp_path / "out")
        assert server.num_sent() == 1  # no repair is paid for
    assert found[0]["ending"] == "kept" and found[0]["reason"].startswith("not tried")
    told = json.loads((tmp_path / "out" / "funnel.json").read_text())
    assert told["kept_untried"] == 1


def test_a_leaked_solution_is_no_task(tmp_path):
    seeds_file = tmp_path / "seeds.parquet"
    pq.write_table(pa.table({"question": ["Sum the masses of a balance."]}), seeds_file)
    steps = "\n".join(f"echo step number {i} of the long solution > /app/s{i}" for i in range(6))
    script = rule("", reply(f"Do exactly this:\n\n{steps}\n\n", steps))
    with servers.served(script, tmp_path) as server:
        found = run([seeds_file], server, tmp_path / "out", check="none", max_repairs=0)
    assert found[0]["ending"] == "invalid"
    assert "solution" in found[0]["reason"]


def test_files_without_a_seed_and_unknown_domains_are_named(tmp_path):
    empty = tmp_path / "empty.jsonl"
    empty.write_text('{"text": "no column of ours"}\n')
    with pytest.raises(ValueError, match=r"empty.jsonl: no seed there .*problem, question"):
        seeds.Seeds([empty], seeds.SeedOptions())
    with pytest.raises(ValueError, match="--domain=alchemy must be one of data_processing"):
        seeds.SeedOptions(domain="alchemy")
