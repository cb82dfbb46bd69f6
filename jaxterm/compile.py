"""Compile the train step for a TPU pod that need not be there, and tell what it will cost.

    python -m jaxterm.compile --config=configs/14b.py --topology=v5p:2x4x4
    python -m jaxterm.compile --config=configs/14b.py --topology=v5p:2x4x4 --output=preflight
    python -m jaxterm.compile --config=configs/8b.py --topology=v6e:4x4 --search
    python -m jaxterm.compile --topology=list

It is the very step that jaxterm.train would run with these settings, compiled by libtpu, which
needs no TPU (uv sync --extra tpu). --output keeps report.json and report.png; --search tries
meshes, remat policies and micro-batches, and ranks what fits. Exit code 1: it does not fit.
"""

import json
import os
import pathlib
import sys

import rich.console
from absl import flags

from jaxterm import command, config
from jaxterm.preflight import analysis, chips, compiled_step, picture, search, table

TOPOLOGY = flags.DEFINE_string(
    "topology", None, "the pod, as v5p:2x4x4; list shows what is known", required=True
)
OUTPUT = flags.DEFINE_string("output", None, "a folder for report.json and report.png")
SEARCH = flags.DEFINE_bool("search", False, "try settings for this pod, and rank those that fit")


def main(run: config.TrainConfig, topology: str, output: pathlib.Path | None) -> int:
    """Compile, show, and write; 0 when the step fits."""
    console = rich.console.Console(highlight=False)
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
    with console.status(f"compiling the train step for {topology}: some minutes"):
        try:
            found = analysis.analyse(compiled_step.compile_step(run, topology))
        except compiled_step.DoesNotFitError as error:
            console.print(f"does not fit: {error}", style="red", markup=False)
            return 1
    table.show(found, console)
    if output is not None:
        _write(output / "report.json", json.dumps(analysis.as_json(found), indent=2) + "\n")
        picture.draw(found, output / "report.png")
        console.print(f"{output}/report.json and report.png", markup=False)
    return 0 if found.fits else 1


def _search(run: config.TrainConfig, topology: str, output: pathlib.Path | None) -> int:
    console = rich.console.Console(highlight=False)
    ranking = search.run(run, topology, console=console, folder=output)
    table.show_ranking(ranking, console)
    return 0 if any(each.found and each.found.fits for each in ranking) else 1


def _write(path: pathlib.Path, text: str) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


def _list_topologies() -> None:
    console = rich.console.Console(highlight=False)
    table.show_chips(chips.CHIPS.values(), chips.KNOWN_TOPOLOGIES, console)


def _output() -> pathlib.Path | None:
    return pathlib.Path(OUTPUT.value).expanduser().resolve() if OUTPUT.value else None


if __name__ == "__main__":
    if any(argument.removeprefix("-") == "-topology=list" for argument in sys.argv[1:]):
        _list_topologies()
        sys.exit(0)
    command.run(lambda run, _: (_search if SEARCH.value else main)(run, TOPOLOGY.value, _output()))
