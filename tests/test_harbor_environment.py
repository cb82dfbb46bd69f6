"""Real Harbor runs real trials in the local sandbox: its oracle and nop agents, and Terminus 2.

Harbor is another program with an interpreter of its own; one run has many tasks, since starting it
takes longest.  What a trial says is read from the files that Harbor writes.
"""

import http.server
import json
import os
import pathlib
import shutil
import subprocess
import tempfile
import threading

import pytest

from data_pipeline.sandbox import root_view, verifier

HARBOR = shutil.which("harbor") or shutil.which(
    "harbor", path=str(pathlib.Path.home() / ".local/bin")
)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(HARBOR is None, reason="no program harbor: uv tool install harbor"),
    pytest.mark.skipif(
        bool(root_view.missing_programs()),
        reason=f"no sandbox without {', '.join(root_view.missing_programs())}",
    ),
]
CHECKOUT = pathlib.Path(__file__).parents[1]
ENVIRONMENT = "data_pipeline.harbor_environment:LocalSandbox"

TEST_SH = """#!/bin/bash
python3 -m pytest -q -p no:cacheprovider /tests/test_outputs.py
[ $? -eq 0 ] && reward=1 || reward=0
echo $reward > /logs/verifier/reward.txt
"""
TEST_PY = """
import os

def test_greeting():
    assert open("/app/greeting.txt").read() == "bonjour\\n"

def test_the_environment():
    assert open("/app/given.txt").read() == "given" and os.environ["FLAVOUR"] == "salt"
"""
GREET = "printf 'bonjour\\n' > greeting.txt\n"
EAT = """python3 -c '
import os, time
for _ in range(5): os.fork()
x = bytearray(60 << 20)
time.sleep(60)'
"""
BOMB = "exec python3 -c '\nimport os\nwhile True:\n    try: os.fork()\n    except OSError: pass'\n"
FILL = GREET + "cat /dev/zero > /app/full\ncat /dev/zero > /tmp/full\ntrue\n"
REACH = (
    "python3 -c 'import socket; socket.create_connection((\"127.0.0.1\", {port}), 3)' && " + GREET
)
LINKS = f"""{GREET}cd /logs/agent
ln -s /etc/passwd l; ln -s ../../../../../../etc up; mkfifo p; echo x > kept
"""


def write_task(
    folder: pathlib.Path,
    name: str,
    *,
    solution: str = GREET,
    network: str = "no-network",
    run: str = "true",
    agent: str = "",
) -> None:
    """A task that wants /app/greeting.txt."""
    task = folder / name
    for part in ("environment", "tests", "solution"):
        (task / part).mkdir(parents=True)
    (task / "instruction.md").write_text("Write bonjour and a newline to /app/greeting.txt.\n")
    dockerfile = f"FROM debian:12\nENV FLAVOUR=salt\nWORKDIR /app\nCOPY given.txt ./\nRUN {run}\n"
    (task / "environment/Dockerfile").write_text(dockerfile)
    (task / "environment/given.txt").write_text("given")
    (task / "tests/test.sh").write_text(TEST_SH)
    (task / "tests/test_outputs.py").write_text(TEST_PY)
    (task / "solution/solve.sh").write_text(f"#!/bin/bash\n{solution}")
    (task / "task.toml").write_text(
        f'version = "1.0"\n[agent]\ntimeout_sec = 120.0\n{agent}\n[verifier]\ntimeout_sec = 120.0\n'
        "[environment]\nbuild_timeout_sec = 120.0\ncpus = 1\nmemory_mb = 192\nstorage_mb = 64\n"
        f'network_mode = "{network}"\n'
        + ('allowed_hosts = ["example.com"]\n' if network == "allowlist" else "")
    )


@pytest.fixture(scope="module")
def packages():
    folder = pathlib.Path(tempfile.mkdtemp(prefix="verifier-"))  # every user may come here
    yield verifier.collect(folder)
    shutil.rmtree(folder)


def call_harbor(tasks: pathlib.Path, agent: list[str], jobs: pathlib.Path, *, options=()) -> str:
    """Run all tasks; returns what Harbor printed."""
    assert HARBOR is not None
    command = [HARBOR, "run", "-p", str(tasks), "-a", *agent, "-e", ENVIRONMENT, "-n", "2"]
    env = {
        "PATH": os.environ["PATH"],
        "HOME": os.environ["HOME"],
        "PYTHONPATH": str(CHECKOUT),
        "HARBOR_TELEMETRY": "off",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "HF_HUB_OFFLINE": "1",
        "OPENAI_API_KEY": "none",
    }
    done = subprocess.run(
        [*command, "-o", str(jobs), "--yes", *options],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout + done.stderr


def run_harbor(tasks: pathlib.Path, agent: list[str], jobs: pathlib.Path, *, options=()) -> dict:
    """Run all tasks; returns task -> (folder of the trial, what its result.json says)."""
    printed = call_harbor(tasks, agent, jobs, options=options)
    found = {}
    for path in jobs.glob("*/*/result.json"):
        result = json.loads(path.read_text())
        found[result["task_name"].rsplit("/")[-1]] = (path.parent, result)
    assert set(found) == {path.name for path in tasks.iterdir()}, printed[-5000:]
    return found


def reward(result: dict) -> float | None:
    rewards = (result["verifier_result"] or {}).get("rewards") or {}
    return rewards.get("reward")


@pytest.fixture(scope="module")
def oracle(tmp_path_factory, packages):
    """One run of Harbor's oracle agent on tasks that end in different ways."""
    top = tmp_path_factory.mktemp("oracle")
    server = http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    reach = REACH.format(port=server.server_port)
    with server:
        write_task(top / "tasks", "good")
        write_task(top / "tasks", "eats", solution=EAT)
        write_task(top / "tasks", "bombs", solution=BOMB)
        write_task(top / "tasks", "fills", solution=FILL)
        write_task(top / "tasks", "links", solution=LINKS)
        write_task(top / "tasks", "offline", solution=reach)
        write_task(top / "tasks", "online", solution=reach, network="public")
        write_task(top / "tasks", "broken", run="exit 5")
        write_task(top / "tasks", "somebody", agent='user = "somebody"')
        options = ["--ek", f"verifier_packages={packages}", "--ek", "max_processes=100"]
        yield run_harbor(top / "tasks", ["oracle"], top / "jobs", options=options)


@pytest.mark.parametrize(
    ("task", "expected"), [("good", 1.0), ("links", 1.0), ("online", 1.0), ("offline", 0.0)]
)
def test_the_oracle_s_reward(oracle, task, expected):
    _, result = oracle[task]
    assert result["exception_info"] is None
    assert reward(result) == expected


@pytest.mark.parametrize(
    ("task", "kind", "message"),
    [
        ("eats", "SandboxEnded", "out_of_memory"),
        ("bombs", "SandboxEnded", "too_many_processes"),
        ("fills", "SandboxError", "out_of_disk"),
        ("broken", "SandboxBuildFailedError", "line 5 (RUN): exit code 5"),
        ("somebody", "ValueError", "one user, root"),
    ],
)
def test_a_trial_that_cannot_go_on_says_why(oracle, task, kind, message):
    _, result = oracle[task]
    told = result["exception_info"]
    assert told is not None and not reward(result)
    assert kind in told["exception_traceback"] and message in told["exception_traceback"]


def test_the_agent_s_links_do_not_come_out(oracle):
    folder, _ = oracle["links"]
    names = {path.name for path in (folder / "agent").iterdir()}
    assert "kept" in names and not names & {"l", "up", "p"}


def test_a_list_of_allowed_hosts_is_refused_before_anything_runs(tmp_path):
    write_task(tmp_path / "tasks", "listed", network="allowlist")
    printed = " ".join(call_harbor(tmp_path / "tasks", ["nop"], tmp_path / "jobs").split())
    assert "network_mode='allowlist' is not supported by local-sandbox" in printed


def test_doing_nothing_earns_nothing_and_a_missing_pytest_is_told(tmp_path, packages):
    write_task(tmp_path / "tasks", "good")
    options = ["--ek", f"verifier_packages={packages}"]
    _, result = run_harbor(tmp_path / "tasks", ["nop"], tmp_path / "jobs", options=options)["good"]
    assert (result["exception_info"], reward(result)) == (None, 0.0)
    has_pytest = [root_view.python(), "-I", "-c", "import pytest"]
    if subprocess.run(has_pytest, capture_output=True, check=False).returncode == 0:
        return  # the system's own is used then
    _, result = run_harbor(tmp_path / "tasks", ["nop"], tmp_path / "none")["good"]
    assert "verifier_packages=FOLDER" in result["exception_info"]["exception_message"]


class Script(http.server.BaseHTTPRequestHandler):
    """As much of the OpenAI protocol as Terminus 2 needs; types one command, then is done."""

    def do_POST(self):
        question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        num_turns = sum(message["role"] == "assistant" for message in question["messages"])
        keys = "id > who.txt; printf 'bonjour\\n' > greeting.txt; ls\n"
        commands = [{"keystrokes": keys, "duration": 1.0}] if num_turns == 0 else []
        action = {
            "analysis": "a",
            "plan": "p",
            "commands": commands,
            "task_complete": num_turns > 0,
        }
        message = {"role": "assistant", "content": json.dumps(action)}
        answer = {
            "id": "1",
            "object": "chat.completion",
            "created": 1,
            "model": question["model"],
            "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
            "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
        }
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, *arguments):
        pass


@pytest.mark.skipif(
    not pathlib.Path("/usr/bin/tmux").exists(), reason="Terminus 2 needs tmux in /usr/bin"
)
def test_terminus_2_types_into_the_sandbox_s_terminal(tmp_path, packages):
    write_task(tmp_path / "tasks", "good")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Script) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        agent = ["terminus-2", "-m", "openai/scripted"]
        agent += ["--ak", f"api_base=http://127.0.0.1:{server.server_port}/v1"]
        options = ["--ek", f"verifier_packages={packages}"]
        found = run_harbor(tmp_path / "tasks", agent, tmp_path / "jobs", options=options)
        server.shutdown()
    folder, result = found["good"]
    assert (result["exception_info"], reward(result)) == (None, 1.0)
    trajectory = json.loads((folder / "agent/trajectory.json").read_text())
    assert trajectory["schema_version"].startswith("ATIF")
    seen = json.dumps(trajectory["steps"])
    assert "greeting.txt" in seen and "given.txt" in seen  # what `ls` printed
