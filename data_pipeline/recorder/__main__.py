"""Record terminal sessions: scripted solvers in a real shell, as a corpus in Parquet.

    python -m data_pipeline.recorder --output=sessions.parquet
    python -m data_pipeline.recorder --output=more.parquet --sessions=2000 --seed=8 --num_workers=8
    python -m data_pipeline.recorder --output=two.parquet --families=csv_to_json,log_status_counts
    python -m data_pipeline.recorder --output=open.parquet --sandbox=none

Each session runs in bubblewrap (package `bubblewrap`): its own root, no network.  --sandbox=none
runs the same tasks in a temporary folder without any isolation.
"""

import pathlib
import time

import rich
from absl import flags

from data_pipeline import cli
from data_pipeline.recorder import isolation, record

_OUTPUT = flags.DEFINE_string("output", "", "Parquet file to write.")
_SESSIONS = flags.DEFINE_integer("sessions", 360, "How many sessions.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 7, "The same seed records the same sessions.")
_FAMILIES = flags.DEFINE_list("families", [], "Names of task families; all when left out.")
_SANDBOX = flags.DEFINE_enum("sandbox", "bwrap", isolation.SANDBOXES, "Where the shell runs.")
_NUM_WORKERS = flags.DEFINE_integer("num_workers", 2, "Sessions at a time.", lower_bound=1)


def main(argv: list[str]) -> None:
    """Record, write, print the table."""
    cli.require(not argv, f"unexpected {' '.join(argv)}: every setting is a --flag, see --help")
    cli.require(bool(_OUTPUT.value), "--output is not set; name the Parquet file to write")
    start_s, path = time.monotonic(), pathlib.Path(_OUTPUT.value)
    isolation.check_sandbox(_SANDBOX.value)
    families = record.choose_families(_FAMILIES.value, sandbox=_SANDBOX.value)
    record.check_output(path)
    if _SANDBOX.value == "none":
        rich.print("[yellow]--sandbox=none: the shells run without isolation[/yellow]")
    rows = record.record(
        families,
        num_sessions=_SESSIONS.value,
        seed=_SEED.value,
        sandbox=_SANDBOX.value,
        num_workers=_NUM_WORKERS.value,
    )
    record.write(rows, path)
    record.print_summary(rows)
    took_s = time.monotonic() - start_s
    print(f"{path}: {path.stat().st_size:,} bytes, {len(families)} families, {took_s:.0f} s")


if __name__ == "__main__":
    cli.run(main)
