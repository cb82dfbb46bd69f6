"""The whole way in miniature, with no model: tasks, trials, a corpus, in about two minutes.

    python -m data_pipeline.taskgen demo
    python -m data_pipeline.taskgen demo --output=runs/demo --environment=podman

A scripted teacher (a small local server that speaks the OpenAI protocol and plays the lines of
demo_script/) is asked for four tasks from the shipped skills. One of them passes with nothing done
and is rejected; one comes cut short and is asked for again. The three that are left are tried by
Terminus 2, played by the same server, in real shells: through Harbor (`uv tool install harbor`) in
the local sandbox (bubblewrap, tmux). Their own tests judge them; the trials are collected and
curated into a corpus that `data_pipeline.prepare` takes.

Where Harbor or bubblewrap is missing the demo ends after the tasks, and says what to install.
"""

import contextlib
import dataclasses
import pathlib
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from absl import flags
from rich import console as rich_console
from rich import table as rich_table

from data_pipeline import cli, collect, curate, harbor, manifest, rollout, rollout_options
from data_pipeline.sandbox import sandbox
from data_pipeline.taskgen import attempts, generate, skills, teacher

SCRIPT = pathlib.Path(__file__).parent / "demo_script" / "script.toml"
DOMAINS = ("data_processing", "debugging", "file_operations", "security")
_ADDRESS = re.compile(r"http://127\.0\.0\.1:\d+\S*")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """Where the demo's shells run."""

    environment: str = dataclasses.field(
        default=rollout_options.LOCAL,
        metadata=cli.flag("of the trials: local, or any of Harbor's (podman, docker, ...)"),
    )


def demo(output_dir: pathlib.Path, options: DemoOptions) -> Mapping[str, int]:
    """Run every stage below `output_dir`; returns the counts that are shown at the end."""
    console = rich_console.Console(stderr=True)
    has_sandbox = _has_sandbox(console)
    with scripted_teacher(output_dir) as address:
        console.rule("tasks from skills, written by a scripted teacher")
        tasks = _generate(output_dir / "skills", address, has_sandbox=has_sandbox)
        counts = _funnel_of_tasks(output_dir / "skills")
        if not _has_harbor(console) or not (
            has_sandbox or options.environment != rollout_options.LOCAL
        ):
            _show(counts, console)
            return counts
        console.rule("trials: Terminus 2 through Harbor")
        told = rollout_options.RolloutOptions(
            model="scripted", base_url=address, environment=options.environment, concurrency=2
        )
        rollout.rollout(tasks, output_dir=output_dir / "rollout", options=told)
    console.rule("a corpus")
    collected = collect.collect(
        output_dir / "rollout", output_dir=output_dir / "corpus", options=collect.CollectOptions()
    )
    curated = curate.curate(
        [str(output_dir / "corpus")],
        output_dir=output_dir / "curated",
        options=curate.CurateOptions(),
    )
    counts |= _funnel_of_trials(output_dir, collected)
    _show(counts, console)
    console.print(f"the corpus is in {curated.train}", soft_wrap=True)
    return counts


@contextlib.contextmanager
def scripted_teacher(output_dir: pathlib.Path, script: pathlib.Path = SCRIPT) -> Iterator[str]:
    """A server in a process of its own; its address, up to /v1."""
    output_dir.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "data_pipeline.taskgen.scripted_teacher", str(script)]
    command += ["--port=0", f"--log={output_dir / 'teacher.jsonl'}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    try:
        line = process.stdout.readline()
        found = _ADDRESS.search(line)
        if not found:
            raise ValueError(f"the scripted teacher did not start: {line.strip() or 'no output'}")
        yield found[0]
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()


def _generate(output_dir: pathlib.Path, address: str, *, has_sandbox: bool) -> pathlib.Path:
    told = skills.SkillOptions(count=len(DOMAINS), domains=DOMAINS, difficulty="easy")
    recipe = skills.Skills(told)
    return generate.generate(
        recipe,
        name="skills",
        inputs=skills.digests(),
        told=recipe.told,
        output_dir=output_dir,
        settings=teacher.Settings(
            base_url=address,
            model="scripted",
            # Prices only so that the funnel shows what a kept task costs.
            dollars_per_million_input=0.3,
            dollars_per_million_output=1.2,
        ),
        options=generate.GenerateOptions(check="sandbox" if has_sandbox else "none"),
    )


def _has_sandbox(console: rich_console.Console) -> bool:
    try:
        sandbox.check()
    except sandbox.SandboxError as error:
        console.print(
            f"demo: no local sandbox ({error}); tasks are not tried", soft_wrap=True, markup=False
        )
        return False
    return True


def _has_harbor(console: rich_console.Console) -> bool:
    try:
        harbor.find_program("")
    except ValueError as error:
        console.print(f"demo: {error}; it ends here", soft_wrap=True, markup=False)
        return False
    return True


def _funnel_of_tasks(folder: pathlib.Path) -> dict[str, int]:
    with contextlib.closing(attempts.Log(folder, len(DOMAINS))) as log:
        endings = log.totals.endings
    return {"tasks asked for": endings.total(), "tasks kept": endings["kept"]}


def _funnel_of_trials(output_dir: pathlib.Path, collected: Mapping[str, Any]) -> dict[str, int]:
    ended = manifest.read(output_dir / "rollout", stage="rollout")["counts"]["ended"]
    return {
        "trials": ended,
        "of full reward": collected["rewards"].get("1", 0),
        "rows collected": collected["rows"],
        "rows curated": manifest.read(output_dir / "curated", stage="curate")["counts"]["train"],
    }


def _show(counts: Mapping[str, int], console: rich_console.Console) -> None:
    shown = rich_table.Table("taskgen demo", "")
    shown.columns[1].justify = "right"
    for name, count in counts.items():
        shown.add_row(name, f"{count:,}")
    console.print(shown)


def define_flags() -> None:
    """Of this command."""
    cli.define_flags(DemoOptions)
    flags.DEFINE_string("output", "runs/taskgen-demo", "the folder to write")


def main(argv: list[str]) -> None:
    """Run the command."""
    cli.require(not argv, f"unexpected {' '.join(argv)}: every setting is a --flag, see --help")
    demo(cli.local_output_dir(), cli.options_from_flags(DemoOptions))
