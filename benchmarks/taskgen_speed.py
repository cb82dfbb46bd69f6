"""Bookkeeping of Terminal-Task-Gen: tasks a second with a teacher that answers at once, and memory.

    PYTHONPATH=. uv run python benchmarks/taskgen_speed.py
    PYTHONPATH=. uv run python benchmarks/taskgen_speed.py --tasks=2000 --stream

The whole of `taskgen skills` but the sandbox: combinations, prompts, requests over HTTP to the
scripted teacher in a process of its own, the cache, parsing, validation, decontamination, novelty,
task folders, the log. First asked, then once more into another folder with the cache of the first.
Each run is a process of its own; memory is its resident size when a tenth of the tasks is settled,
and at the end.
"""

import pathlib
import platform
import re
import subprocess
import sys
import tempfile
import time

from absl import app, flags
from rich import console, table

from data_pipeline.taskgen import attempts, demo, generate

_TASKS = flags.DEFINE_integer("tasks", 10_000, "Tasks to make.")
_STREAM = flags.DEFINE_bool("stream", False, "Whether replies come in pieces of eight words.")
_IN_FLIGHT = flags.DEFINE_integer("in_flight", 16, "Requests at a time.")

# A reply that makes a valid task; {{digest}} makes each instruction another.
_REPLY = pathlib.Path(demo.SCRIPT.parent / "data_processing.md").read_text("utf-8")


def write_script(folder: pathlib.Path) -> pathlib.Path:
    """A script whose every reply is a task of its own."""
    own = " ".join(f"{{{{digest}}}}{i}" for i in range(200))
    prompt = f"{own}. Write /app/weekly.json from the files in /app/readings."
    reply = re.sub("<prompt>.*?</prompt>", f"<prompt>\n{prompt}\n</prompt>", _REPLY, flags=re.S)
    reply = reply.replace("<tests>\n", "<tests>\n# {{digest}}\n", 1)
    script = folder / "script.toml"
    script.write_text(f"[[rule]]\nmatch = ''\ntemplate = true\ntexts = ['''{reply}''']\n")
    return script


def run(folder: pathlib.Path, address: str) -> tuple[float, list[int]]:
    """Seconds of one run of the command, and its resident bytes as tasks are settled."""
    command = [
        sys.executable, "-m", "data_pipeline.taskgen", "skills", f"--count={_TASKS.value}",
        f"--base_url={address}", "--model=scripted", "--check=none", f"--output={folder}",
        f"--stream={str(_STREAM.value).lower()}",
        f"--max_in_flight={_IN_FLIGHT.value}", f"--cache={folder.parent / 'replies.sqlite'}",
    ]  # fmt: skip
    start = time.perf_counter()
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    log, sizes = folder / attempts.FILE, []
    while process.poll() is None:
        time.sleep(0.5)
        done = _lines(log)
        if done >= _TASKS.value // 10:
            sizes.append(_resident_bytes(process.pid))
    seconds = time.perf_counter() - start
    if process.returncode:
        assert process.stderr
        raise RuntimeError(process.stderr.read().decode()[-2000:])
    return seconds, [size for size in sizes if size]


def _lines(path: pathlib.Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def _resident_bytes(pid: int) -> int:
    try:
        text = pathlib.Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    found = re.search(r"VmRSS:\s+(\d+) kB", text)
    return int(found[1]) * 1024 if found else 0


def main(_):
    """Run twice and print the table."""
    shown = table.Table("", "s", "tasks/s", "MiB at a tenth", "MiB at the end")
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        with demo.scripted_teacher(folder, write_script(folder)) as address:
            for what in ("asked", "cached"):
                output = folder / what
                seconds, sizes = run(output, address)
                kept = sum(1 for _ in (output / generate.TASKS_FOLDER).iterdir())
                assert kept == _TASKS.value, f"{kept} tasks are kept of {_TASKS.value}"
                first, last = (f"{size / 2**20:.0f}" for size in (sizes[0], sizes[-1]))
                shown.add_row(what, f"{seconds:.1f}", f"{kept / seconds:.0f}", first, last)
    console.Console(width=100).print(f"Python {platform.python_version()}", shown)


if __name__ == "__main__":
    app.run(main)
