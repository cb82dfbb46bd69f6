"""Tasks run in the real sandbox: which are kept, which are rejected, and why."""

import dataclasses
import pathlib
import signal
import tempfile
import threading
import time
import types
from concurrent import futures

import pytest

from data_pipeline.sandbox import sandbox, watchdog
from data_pipeline.taskgen import adapters, checking, domains, making
from data_pipeline.taskgen import task as task_module

try:
    sandbox.check()
except sandbox.SandboxError as error:
    pytest.skip(f"no sandbox runs here: {error}", allow_module_level=True)

TESTS = """
import json
import pathlib

def totals():
    return json.loads(pathlib.Path("/app/totals.json").read_text())

def test_apples():
    assert totals()["apples"] == 12

def test_pears():
    assert totals()["pears"] == 1

def test_the_sales_are_still_there():
    assert pathlib.Path("/app/sales.csv").read_text().startswith("fruit,count")
"""
SOLUTION = r"""#!/bin/bash
set -e
python3 - <<'END'
import collections, csv, json
totals = collections.Counter()
for row in csv.DictReader(open("/app/sales.csv")):
    totals[row["fruit"]] += int(row["count"])
json.dump(totals, open("/app/totals.json", "w"))
END
"""
GOOD = task_module.Task(
    name="good",
    instruction="Read the sales in /app/sales.csv and write their totals to /app/totals.json.",
    dockerfile="FROM debian:12\nWORKDIR /app\nRUN mkdir -p /app/made && echo 1 > /app/made/x\n",
    source="seed",
    domain="data_processing",
    files={"sales.csv": b"fruit,count\napples,5\napples,7\npears,1\n"},
    tests=TESTS,
    weights={"test_apples": 2.0, "test_the_sales_are_still_there": 0.5},
    solution=SOLUTION,
    limits=task_module.Limits(
        agent_timeout_s=20, verifier_timeout_s=30, build_timeout_s=20, memory_mb=512,
        storage_mb=64,
    ),
)  # fmt: skip


PRESENCE = task_module.Task(
    name="presence", instruction="Answer in /app/solution.txt, please.", source="adapt_math",
    dockerfile="FROM debian:12\n", answer_file="/app/solution.txt",
    solution="echo 2 > /app/solution.txt\n",
)  # fmt: skip


pytestmark = pytest.mark.filterwarnings("ignore:.*skipped:UserWarning")  # installs, as they must be


@pytest.fixture(scope="module")
def checker():
    return checking.Checker(num_workers=2)


def changed(**changes):
    return dataclasses.replace(GOOD, **changes)


def test_a_good_task_is_kept(checker):
    outcome = checker.check(GOOD)
    assert outcome.ending == "kept" and not outcome.reason
    assert outcome.untouched_reward == pytest.approx(0.5 / 3.5)  # of the weights, by hand
    assert outcome.solution_reward == 1.0


@pytest.mark.parametrize("domain", domains.NAMES)
def test_tasks_run_in_every_domain_of_ours(checker, domain):
    outcome = checker.check(changed(dockerfile=domains.dockerfile(domain), domain=domain))
    assert outcome.ending == "kept" and outcome.solution_reward == 1.0, outcome.reason
    assert outcome.warnings  # packages cannot be installed there


def test_a_task_without_solution_is_kept_where_doing_nothing_fails(checker):
    outcome = checker.check(changed(solution=""))
    assert outcome.ending == "kept" and outcome.solution_reward is None
    assert outcome.untouched_reward < 1


def test_a_task_without_tests_wants_its_answer(checker):
    task = PRESENCE
    outcome = checker.check(task)
    assert (outcome.ending, outcome.untouched_reward, outcome.solution_reward) == ("kept", 0.0, 1.0)
    outcome = checker.check(dataclasses.replace(task, files={"solution.txt": b"2"}))
    assert outcome.ending == "passes_untouched"
    outcome = checker.check(dataclasses.replace(task, solution="touch /app/solution.txt\n"))
    assert outcome.ending == "unsolvable"


def test_a_number_for_an_answer_is_really_tested(checker):
    task = adapters.adapt(
        "math", {}, prompt="What is one half of three?", answer="\\frac{3}{2}",
        dockerfile="FROM debian:12\n", location="x",
    )  # fmt: skip
    assert checker.check(task).ending == "kept"
    for answer, ending in (("1.5", "kept"), ("x = 3/2.", "kept"), ("1.4", "unsolvable")):
        solution = f"echo '{answer}' > /app/solution.txt\n"
        assert checker.check(dataclasses.replace(task, solution=solution)).ending == ending


ONE = "def test_a():\n    assert open('/app/x').read() == 'x'\n"


@pytest.mark.parametrize(
    ("changes", "ending", "reason"),
    [
        ({"tests": "def test_a(): pass\n"}, "passes_untouched", "where nothing was done"),
        ({"tests": "def helper(): pass\n"}, "invalid", "pytest cannot collect the tests"),
        ({"tests": "import nowhere\n" + ONE}, "invalid", "No module named 'nowhere'"),
        ({"tests": "def test_a(:\n"}, "invalid", "SyntaxError"),
        ({"tests": "import os\nos._exit(0)\n" + ONE}, "invalid", "pytest cannot collect"),
        ({"dockerfile": "FROM debian:12\nRUN echo no; exit 3\n"}, "invalid", "line 2 (RUN)"),
        ({"dockerfile": "FROM debian:12\nCOPY nowhere /app/\n"}, "invalid", "nowhere"),
        ({"solution": "echo sorry; exit 4\n"}, "unsolvable", "(exit code 4): sorry"),
        ({"solution": "printf y > /app/x\n"}, "unsolvable", "does not pass test_a: "),
        ({"solution": "true\n"}, "unsolvable", "No such file"),
        ({"solution": "sleep 60\n", "limits": dataclasses.replace(GOOD.limits, agent_timeout_s=1)},
         "unsolvable", "the solution fails (timeout)"),
        ({"tests": "import time\ntime.sleep(60)\n" + ONE,
          "limits": dataclasses.replace(GOOD.limits, verifier_timeout_s=12)},
         "invalid", "pytest cannot collect"),
        # The tests come after the solution.
        ({"solution": "cat /tests/*.py && printf x > /app/x\n"}, "unsolvable", "(exit code 1)"),
        ({"solution": "head -c 200M /dev/zero > /app/big; printf x > /app/x\n"}, "unsolvable", ""),
    ],
)  # fmt: skip
def test_bad_tasks_are_rejected_with_the_reason(checker, changes, ending, reason):
    base = {"tests": ONE, "weights": {}, "solution": "printf x > /app/x\n"}
    outcome = checker.check(changed(**(base | changes)))
    assert outcome.ending == ending and reason in outcome.reason, outcome
    assert "/tmp/" not in outcome.reason  # it goes to the teacher


def test_memory_that_runs_out_is_the_tasks_fault(checker):
    limits = dataclasses.replace(GOOD.limits, memory_mb=128, storage_mb=32)
    eats = "python3 -c 'x = [bytearray(1 << 20) for _ in range(4096)]'\n"
    outcome = checker.check(changed(solution=eats, limits=limits))
    assert outcome.ending in ("unsolvable", "invalid") and outcome.reason


def test_what_passed_before_a_test_that_hangs_counts(checker):
    limits = dataclasses.replace(GOOD.limits, verifier_timeout_s=12)
    tests = f"import time\n{ONE}def test_b():\n    time.sleep(100)\n"
    outcome = checker.check(
        changed(tests=tests, weights={}, solution="printf x > /app/x\n", limits=limits)
    )
    assert outcome.ending == "unsolvable" and outcome.solution_reward == 0.5


def test_an_agent_cannot_pass_by_what_it_leaves_about(checker):
    """Modules in /app, a conftest.py and settings on the way to the tests, environment files."""
    cheat = r"""
    echo 'raise SystemExit(0)' | tee /app/json.py /app/pytest.py /app/pathlib.py > /dev/null
    mkdir -p /tests
    echo 'raise SystemExit(0)' | tee /conftest.py /tests/conftest.py > /app/conftest.py
    printf '[pytest]\naddopts = --co\n' | tee /pytest.ini /tests/pytest.ini > /app/pytest.ini
    mkdir -p /logs/verifier
    echo 1 > /logs/verifier/reward.txt
    """
    outcome = checker.check(changed(solution=cheat))
    assert outcome.ending == "unsolvable"
    assert outcome.solution_reward == outcome.untouched_reward


@pytest.mark.parametrize("task", [GOOD, PRESENCE], ids=["tests", "presence"])
def test_an_agent_cannot_pass_by_programs_that_it_leaves_about(checker, task):
    """Each gives the full reward, whatever it was started for."""
    cheat = r"""
    printf '#!/bin/bash\necho 1 > /logs/verifier/reward.txt; echo /etc/passwd\n' > /tmp/forged
    printf '{"reward": 1, "tests": [{"name": "a", "outcome": "passed"}]}' > /tmp/tests.json
    echo 'cp /tmp/tests.json /logs/verifier/' >> /tmp/forged
    /bin/chmod +x /tmp/forged
    for name in python3 timeout cat dirname mkdir chmod bash env [; do
        for folder in /usr/local/bin /usr/local/sbin; do cp /tmp/forged "$folder/$name"; done
    done
    """
    outcome = checker.check(dataclasses.replace(task, solution=cheat))
    assert outcome.ending == "unsolvable", outcome
    assert outcome.solution_reward == outcome.untouched_reward


@pytest.fixture
def starts(monkeypatch):
    """The sandboxes that were `started`; the first `left` of them suffer the `fault`."""
    started, start, build = [], sandbox.Sandbox.start, sandbox.Sandbox.build
    starts = types.SimpleNamespace(started=started, fault="", left=0)
    reserve_bytes = watchdog._HOST_RESERVE_BYTES

    def start_counted(box):
        started.append(box)
        if starts.fault == "does not start" and len(started) <= starts.left:
            box.stop()  # a sandbox that is over does not start
        return start(box)

    def build_or_die(box, *arguments, **named):
        if len(started) <= starts.left:
            if starts.fault == "died":
                signal.pidfd_send_signal(box._keeper._started.init, signal.SIGKILL)
            elif starts.fault == "machine_out_of_memory":
                monkeypatch.setattr(watchdog, "_HOST_RESERVE_BYTES", 1 << 60)
                box._keeper.wait_ended(timeout_s=20)
                monkeypatch.setattr(watchdog, "_HOST_RESERVE_BYTES", reserve_bytes)
        return build(box, *arguments, **named)

    monkeypatch.setattr(sandbox.Sandbox, "start", start_counted)
    monkeypatch.setattr(sandbox.Sandbox, "build", build_or_die)
    monkeypatch.setattr(checking, "_PAUSE_S", 0.01)
    return starts


FAULTS = ["machine_out_of_memory", "died", "does not start"]


@pytest.mark.parametrize("fault", FAULTS)
def test_what_the_machine_cut_off_is_done_again(checker, starts, fault):
    starts.fault, starts.left = fault, 1
    outcome = checker.check(GOOD)
    assert outcome.ending == "kept", outcome
    assert [box.status for box in starts.started[1:]] == ["stopped"] * 2  # untouched, solution


@pytest.mark.parametrize("fault", FAULTS)
def test_the_machine_s_failure_says_nothing_about_a_task(checker, starts, fault):
    starts.fault, starts.left = fault, 1000
    with pytest.raises(sandbox.SandboxError, match=fault.replace("does not start", "starts once")):
        checker.check(GOOD)
    assert len(starts.started) == 3


def test_a_sandbox_that_is_lost_under_a_test_is_no_fault_of_it(checker, starts):
    """It dies while the tests run, not while it is made."""
    tests = "import time\n" + ONE.replace(":\n", ":\n    time.sleep(3)\n")
    task = changed(tests=tests, weights={}, solution="printf x > /app/x\n")

    def kill():
        while not starts.started or starts.started[0].status != "running":
            time.sleep(0.01)
        time.sleep(2)
        signal.pidfd_send_signal(starts.started[0]._keeper._started.init, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    outcome = checker.check(task)
    killer.join()
    assert outcome.ending == "kept", outcome
    assert [box.status for box in starts.started] == ["died", "stopped", "stopped"]


def test_tests_see_neither_the_network_nor_the_machine(checker, tmp_path):
    (tmp_path / "secret").write_text("x")
    tests = (
        "import os, socket\n"
        "def test_network():\n    socket.create_connection(('1.1.1.1', 53), timeout=2)\n"
        f"def test_host():\n    assert os.path.exists({str(tmp_path / 'secret')!r})\n"
    )
    outcome = checker.check(changed(tests=tests, weights={}, solution=""))
    assert outcome.ending == "kept" and outcome.untouched_reward == 0.0


def test_many_tasks_come_back_in_their_order(checker):
    kinds = {"kept": {}, "unsolvable": {"solution": "true"}, "passes_untouched": {
        "tests": "def test_a(): pass", "weights": {}}}  # fmt: skip
    expected = list(kinds) * 3
    read = []

    def tasks():
        for i, kind in enumerate(expected):
            read.append(i)
            yield changed(name=f"t-{i}", **kinds[kind])

    found = []
    for task, outcome in checker.check_all(tasks()):
        found.append((task.name, outcome.ending))
        assert len(read) <= len(found) + 5  # a long list is not read at once
    assert found == [(f"t-{i}", kind) for i, kind in enumerate(expected)]


def test_the_engine_is_told_by_an_exception():
    check = checking.SandboxCheck(1)
    check(GOOD)
    with pytest.raises(making.Rejected, match="where nothing was done") as error:
        check(changed(tests="def test_a(): pass", weights={}))
    assert error.value.ending == "passes_untouched"


def test_a_check_that_is_cancelled_ends_at_once():
    limits = dataclasses.replace(GOOD.limits, agent_timeout_s=300)
    slow = changed(solution="sleep 250\n", limits=limits)
    check = checking.SandboxCheck(1)
    with futures.ThreadPoolExecutor(2) as pool:
        under_way = pool.submit(check, slow)
        waiting = pool.submit(check, slow)  # there is room for one
        with pytest.raises(TimeoutError):
            under_way.result(timeout=10)  # the solution sleeps by then
        begin = time.monotonic()
        check.cancel()
        for each in (under_way, waiting):
            with pytest.raises(sandbox.SandboxError):
                each.result(timeout=30)
    assert time.monotonic() - begin < 20


def test_checking_leaves_nothing_on_the_disk(monkeypatch):
    with tempfile.TemporaryDirectory() as place:
        folder = pathlib.Path(place)
        folder.chmod(0o755)  # sandboxes run as another user, who must get at the packages
        monkeypatch.setattr(tempfile, "tempdir", place)
        checker = checking.Checker(1)
        assert checker.check(GOOD).ending == "kept"
        [left] = folder.glob("taskgen-*")
        assert [path.name for path in left.iterdir()] == ["packages"]
        del checker
        assert not list(folder.glob("taskgen-*"))
