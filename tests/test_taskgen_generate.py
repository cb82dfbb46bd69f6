"""The engine of seeds and skills, asked over real sockets: nothing is lost, paid twice or unsaid.

The oracles are the scripted teacher's own log, an undisturbed run, and sums that must agree.
"""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest
import teacher_servers as servers

from data_pipeline.taskgen import attempts, demo, funnel, generate, skills, task

ROOT = pathlib.Path(__file__).resolve().parents[1]
# A valid task; the digest of the question makes each instruction another.
OWN_WORDS = " ".join(f"{{{{digest}}}}{i}" for i in range(200))
REPLY = (demo.SCRIPT.parent / "data_processing.md").read_text("utf-8")
GOOD = REPLY.replace("<prompt>\n", f"<prompt>\nBegin with {OWN_WORDS}.\n\n", 1)


def rule(text, *, match="", where="any", template=True, faults=""):
    """The TOML of a rule with one text."""
    told = {"match": match, "where": where, "template": template, "texts": [text]}
    lines = [f"{name} = {json.dumps(value)}" for name, value in told.items()]
    return "\n".join(["[[rule]]", *lines, faults, ""])


def fault(kind, **told):
    """The TOML of a fault of the rule before it."""
    lines = [f"{name} = {json.dumps(value)}" for name, value in {"kind": kind, **told}.items()]
    return "\n".join(["[[rule.fault]]", *lines, ""])


def category(title):
    """What matches the questions about a domain."""
    return f"\\nCategory: {title}\\n"


def run(settings, folder, *, count=12, domains=(), overwrite=False, **options):
    """Make tasks; the folder of the tasks."""
    wanted = skills.SkillOptions(count=count, domains=domains)
    return generate.generate(
        skills.Skills(wanted),
        name="skills",
        inputs=skills.digests(),
        told={"count": count, "domains": list(domains)},
        output_dir=folder,
        settings=settings,
        options=generate.GenerateOptions(**{"check": "none", **options}),
        overwrite=overwrite,
    )


def lines_of(folder):
    return [json.loads(line) for line in (folder / attempts.FILE).read_text().splitlines()]


def contents(folder):
    """Relative path -> bytes of every file."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_each_order_has_a_line_and_each_kept_one_a_folder(tmp_path):
    with servers.served(rule(GOOD), tmp_path) as server:
        tasks = run(server.settings(max_tokens=4000), tmp_path / "out", count=20)
        assert server.num_sent() == 20
    lines = lines_of(tmp_path / "out")
    assert [line["index"] for line in lines] == list(range(20))
    assert {line["ending"] for line in lines} == {"kept"}
    made = {path.name: task.read_task(path) for path in tasks.iterdir()}
    assert made.keys() == {line["name"] for line in lines}
    wanted = {order.name: order for _, order in skills.Skills(skills.SkillOptions(count=20)).orders(
        lambda index: False)}  # fmt: skip
    for name, one in made.items():
        assert (one.domain, one.skills) == (wanted[name].domain, wanted[name].skills)
        assert 3 <= len(one.skills) <= 5 and one.difficulty in ("easy", "medium")
    told = json.loads((tmp_path / "out" / funnel.FILE).read_text())
    assert told["steps"][0]["left"] == told["steps"][-1]["left"] == 20
    billed = [line["input_tokens"] + line["output_tokens"] for line in lines]
    assert sum(billed) == told["input_tokens"] + told["output_tokens"]


@pytest.mark.parametrize(
    "kind, first_error",
    [("length", "cut at the limit of tokens"), ("malformed", ""), ("cut", ""), ("status", "")],
)
def test_what_a_fault_cost_a_reply_is_asked_again(kind, first_error, tmp_path):
    """A reply cut short goes back to the teacher with the fault; a broken one is sent for again."""
    script = rule(GOOD, faults=fault(kind, times=3))
    with servers.served(script, tmp_path) as server:
        run(server.settings(max_tokens=4000), tmp_path / "out", count=6)
        came = server.events("came")
    assert {line["ending"] for line in lines_of(tmp_path / "out")} == {"kept"}
    assert len(came) == 6 + 3
    asked_again = [e for e in came if len(e["body"]["messages"]) > 2]
    assert len(asked_again) == (3 if kind == "length" else 0)
    for event in asked_again:
        assert first_error in event["body"]["messages"][-1]["content"]


def test_faulty_replies_are_repaired_or_recorded_with_their_reason(tmp_path):
    no_tests = GOOD.replace("def test_", "def check_")
    outside = GOOD.replace('path="readings/north.csv"', 'path="../../north.csv"')
    script = "".join(
        (
            rule("I had rather not.", match=category("Security")),
            rule(no_tests, match=category("Debugging")),
            rule(outside, match=category("Data querying")),
            rule(GOOD),
        )
    )
    domains = ("security", "debugging", "data_querying", "file_operations")
    with servers.served(script, tmp_path) as server:
        run(server.settings(max_tokens=4000), tmp_path / "out", count=4, domains=domains)
        asked = server.num_sent()
    lines = lines_of(tmp_path / "out")
    found = {line["name"].removeprefix("skill-")[:-12]: line for line in lines}  # -MARK-NUMBER
    reasons = {name: line["reason"] for name, line in found.items()}
    assert "<prompt>" in reasons["security"] and "absent" in reasons["security"]
    assert "test_" in reasons["debugging"]
    assert "north.csv" in reasons["data-querying"]
    assert found["file-operations"]["ending"] == "kept"
    for name in ("security", "debugging", "data-querying"):
        assert found[name]["ending"] == "unparsed"
        assert found[name]["num_replies"] == 3  # the first, and two repairs
    assert asked == 3 * 3 + 1
    kept_in = tmp_path / "out" / "tasks" / found["file-operations"]["name"]
    assert all(kept_in in path.parents for path in tmp_path.rglob("north.csv"))


def test_contaminated_and_repeated_tasks_are_left_out(tmp_path):
    same = "The same instruction for two domains: count the words of each file in /app/readings."
    repeated = REPLY.replace("<prompt>\n", f"<prompt>\n{same}\n\n", 1)
    benchmark = tmp_path / "benchmark.jsonl"
    words = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"
    benchmark.write_text(json.dumps({"instruction": f"Do {words} now", "id": "b1"}) + "\n")
    planted = GOOD.replace("Write /app/weekly.json", f"{words}. Write /app/weekly.json", 1)
    script = "".join(
        (
            rule(repeated, match=category("Security"), template=False),
            rule(repeated, match=category("Debugging"), template=False),
            rule(planted, match=category("Data querying")),
            rule(GOOD),
        )
    )
    domains = ("security", "debugging", "data_querying", "file_operations")
    with servers.served(script, tmp_path) as server:
        tasks = run(
            server.settings(max_tokens=4000), tmp_path / "out", count=4, domains=domains,
            benchmarks=(str(benchmark),),
        )  # fmt: skip
    endings = sorted(line["ending"] for line in lines_of(tmp_path / "out"))
    assert endings == ["contaminated", "kept", "kept", "repeated"]
    reasons = {line["ending"]: line["reason"] for line in lines_of(tmp_path / "out")}
    assert "b1" in reasons["contaminated"]
    kept = [path.name for path in tasks.iterdir()]
    assert len(kept) == 2 and any(name in reasons["repeated"] for name in kept)


def test_output_does_not_depend_on_which_reply_comes_first(tmp_path):
    slow = fault("delay", delay_s=0.3, each="question", times=1)
    script = rule(GOOD, match=category("Security"), faults=slow) + rule(GOOD)
    found = []
    for in_flight in (1, 16):
        folder = tmp_path / str(in_flight)
        folder.mkdir()
        with servers.served(script, folder) as server:
            run(server.settings(max_tokens=4000, max_in_flight=in_flight), folder / "out")
        endings = [
            {name: line[name] for name in ("index", "name", "ending")}
            for line in lines_of(folder / "out")
        ]
        found.append((contents(folder / "out" / "tasks"), endings))
    assert found[0] == found[1]


def test_the_budget_stops_cleanly_and_a_larger_one_goes_on(tmp_path):
    with servers.served(rule(GOOD), tmp_path) as server:
        limited = server.settings(max_tokens=4000, max_in_flight=2, max_total_tokens=15_000)
        with pytest.raises(
            generate.StoppedError, match=r"max_total_tokens=15000.*raise it"
        ) as told:
            run(limited, tmp_path / "out")
        first = server.num_sent()
        assert 0 < first < 12 and f"{12 - first} of 12" in str(told.value)
        assert len(lines_of(tmp_path / "out")) == first  # what was paid for is settled
        each = server.billed() / first
        assert server.billed() < 15_000 + 2 * each
        enough = server.settings(max_tokens=4000, max_in_flight=2, max_total_tokens=10**9)
        run(enough, tmp_path / "out")
        assert server.num_sent() == 12  # none twice
    assert len(lines_of(tmp_path / "out")) == 12


def test_a_teacher_that_is_gone_loses_nothing(tmp_path):
    with servers.served(rule(GOOD), tmp_path) as server:
        gone = server.settings(max_tokens=4000, max_in_flight=1, max_attempts=1)
    with pytest.raises(generate.StoppedError, match=r"12 of 12 .* left.*does not answer"):
        run(gone, tmp_path / "out")
    assert lines_of(tmp_path / "out") == []
    with servers.served(rule(GOOD), tmp_path) as server:
        run(server.settings(max_tokens=4000), tmp_path / "out")
    assert len(lines_of(tmp_path / "out")) == 12


def test_a_wrong_key_stops_at_once(tmp_path):
    with servers.served('api_key = "right"\n' + rule(GOOD), tmp_path) as server:
        with pytest.raises(generate.StoppedError, match="401"):
            run(server.settings(max_tokens=4000, max_in_flight=2), tmp_path / "out", count=200)
        assert server.num_sent() < 40


def command(url, folder, *, count=60):
    return [
        sys.executable, "-m", "data_pipeline.taskgen", "skills", f"--count={count}",
        f"--base_url={url}", "--model=scripted", "--check=none", f"--output={folder}",
        "--max_in_flight=4", "--max_tokens=4000", "--timeout_s=20", "--first_pause_s=0.01",
    ]  # fmt: skip


def test_a_killed_command_goes_on_and_pays_nothing_twice(tmp_path):
    script = rule(GOOD, faults=fault("delay", delay_s=0.05, times=0))
    with servers.served(script, tmp_path) as server:
        process = subprocess.Popen(
            command(server.url, tmp_path / "killed"), cwd=ROOT,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        log = tmp_path / "killed" / attempts.FILE
        deadline = time.monotonic() + 60
        while not (log.exists() and log.read_bytes().count(b"\n") >= 10):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert not (tmp_path / "killed" / "manifest.json").exists()
        with log.open("ab") as file:
            file.write(b'{"index": 11, "na')  # as a kill in the middle of a line leaves it
        done = subprocess.run(
            command(server.url, tmp_path / "killed"), cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert 60 <= server.num_sent() <= 60 + 4  # those in flight when it was killed
        again = subprocess.run(
            command(server.url, tmp_path / "killed"), cwd=ROOT, capture_output=True, text=True
        )
        assert again.returncode == 0 and "is done already" in again.stderr
        undisturbed = server.num_sent()
        whole = subprocess.run(
            command(server.url, tmp_path / "whole"), cwd=ROOT, capture_output=True, text=True
        )
        assert whole.returncode == 0, whole.stderr
        assert server.num_sent() == undisturbed + 60
    assert contents(tmp_path / "killed" / "tasks") == contents(tmp_path / "whole" / "tasks")
    assert len(lines_of(tmp_path / "killed")) == 60


def test_a_repair_that_is_refused_leaves_the_first_fault_and_its_cost(tmp_path):
    refusal = fault("status", status=400, times=0)
    script = rule("", match="cannot be used as it is", where="last", faults=refusal)
    with servers.served(script + rule("I had rather not."), tmp_path) as server:
        run(server.settings(max_tokens=4000), tmp_path / "out", count=3)
        billed = server.billed()
    lines = lines_of(tmp_path / "out")
    assert [line["ending"] for line in lines] == ["unparsed"] * 3
    assert all(line["num_replies"] == 1 and "absent" in line["reason"] for line in lines)
    told = json.loads((tmp_path / "out" / funnel.FILE).read_text())
    assert told["input_tokens"] + told["output_tokens"] == billed > 0


def test_the_funnel_counts_what_failed_requests_cost_too(tmp_path):
    with servers.served(rule(GOOD, faults=fault("cut", times=3)), tmp_path) as server:
        run(server.settings(max_tokens=4000), tmp_path / "out", count=6)
        billed = server.billed()
    told = json.loads((tmp_path / "out" / funnel.FILE).read_text())
    of_replies = sum(x["input_tokens"] + x["output_tokens"] for x in lines_of(tmp_path / "out"))
    # What a cut reply will be billed is not told; the client takes no less than came.
    assert told["input_tokens"] + told["output_tokens"] >= billed > of_replies


def test_overwriting_pays_for_nothing_again(tmp_path):
    with servers.served(rule(GOOD), tmp_path) as server:
        run(server.settings(max_tokens=4000), tmp_path / "out", count=3)
        run(
            server.settings(max_tokens=4000), tmp_path / "out", count=3, overwrite=True,
            near_duplicates=0,
        )  # fmt: skip
        assert server.num_sent() == 3
    assert [line["ending"] for line in lines_of(tmp_path / "out")] == ["kept"] * 3


def test_a_folder_whose_order_turns_out_bad_after_a_kill_is_removed(tmp_path):
    """The folder is written before the line, so a kill may leave one without the other."""
    script = rule(REPLY, template=False)
    with servers.served(script, tmp_path) as server:
        settings = server.settings(max_tokens=4000)
        run(settings, tmp_path / "first", count=2)
        endings = {line["name"]: line["ending"] for line in lines_of(tmp_path / "first")}
        [repeated] = [name for name, ending in endings.items() if ending == "repeated"]
        [kept] = [name for name, ending in endings.items() if ending == "kept"]
        limited = server.settings(max_tokens=4000, max_in_flight=1, max_total_tokens=1)
        with pytest.raises(generate.StoppedError):
            run(limited, tmp_path / "out", count=2)
        left = tmp_path / "out" / "tasks"
        for name in (repeated, f".{repeated}.new"):
            shutil.copytree(tmp_path / "first" / "tasks" / kept, left / name)
        run(settings, tmp_path / "out", count=2)
    assert [path.name for path in left.iterdir()] == [kept]


def test_a_damaged_log_is_named(tmp_path):
    with servers.served(rule(GOOD), tmp_path) as server:
        limited = server.settings(max_tokens=4000, max_in_flight=1, max_total_tokens=1)
        with pytest.raises(generate.StoppedError):
            run(limited, tmp_path / "out", count=3)
        (tmp_path / "out" / attempts.FILE).write_text('{"index": 7}\n')
        with pytest.raises(ValueError, match=r"attempts.jsonl line 1: damaged"):
            run(limited, tmp_path / "out", count=3)


def test_an_interrupt_stops_and_the_same_command_goes_on(tmp_path):
    script = rule(GOOD, faults=fault("delay", delay_s=0.2, times=0))
    with servers.served(script, tmp_path) as server:
        process = subprocess.Popen(
            command(server.url, tmp_path / "out", count=30), cwd=ROOT, text=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )  # fmt: skip
        log = tmp_path / "out" / attempts.FILE
        deadline = time.monotonic() + 60
        while not (log.exists() and log.read_bytes().count(b"\n") >= 3):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
        assert process.returncode == 1 and "stopped; the same command goes on" in said
        assert "Traceback" not in said
        done = subprocess.run(
            command(server.url, tmp_path / "out", count=30), cwd=ROOT, capture_output=True
        )
        assert done.returncode == 0 and len(lines_of(tmp_path / "out")) == 30


def test_earlier_combinations_are_kept_away_from_and_make_another_plan(tmp_path):
    with servers.served(rule(GOOD), tmp_path) as server:
        tasks = run(server.settings(max_tokens=4000), tmp_path / "out", count=30)
    alone = skills.Skills(skills.SkillOptions(count=30))
    after = skills.Skills(skills.SkillOptions(count=30, earlier=(str(tasks),)))
    assert alone.told["earlier"] != after.told["earlier"]

    def drawn(recipe):
        return {order.skills for _, order in recipe.orders(lambda index: False)}

    assert not drawn(alone) & drawn(after)
    with pytest.raises(ValueError, match="no task there; name an OUTPUT/tasks"):
        skills.Skills(skills.SkillOptions(earlier=(str(tmp_path),)))


@pytest.mark.parametrize("name", ["skills", "seeds", "demo"])
def test_outputs_in_a_bucket_are_refused(name, tmp_path):
    (tmp_path / "seeds.jsonl").write_text('{"problem": "x"}\n')
    words = [str(tmp_path / "seeds.jsonl")] if name == "seeds" else []
    done = subprocess.run(
        [sys.executable, "-m", "data_pipeline.taskgen", name, *words, "--output=gs://b/x",
         *(["--model=m"] if name != "demo" else [])],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1 and "name a local folder" in done.stderr


def test_settings_that_would_make_another_corpus_are_refused(tmp_path):
    with servers.served(rule(GOOD), tmp_path) as server:
        run(server.settings(max_tokens=4000), tmp_path / "out", count=3)
        with pytest.raises(ValueError, match=r"made with other settings.*max_repairs"):
            run(server.settings(max_tokens=4000), tmp_path / "out", count=3, max_repairs=0)
        run(server.settings(max_tokens=4000, max_in_flight=3), tmp_path / "out", count=3)
        assert server.num_sent() == 3
