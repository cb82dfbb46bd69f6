"""Records many sessions and writes them as one Parquet file in the corpus schema."""

import collections
import concurrent.futures
import os
import pathlib
import statistics
import subprocess
import tempfile
from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq
import rich
import rich.progress
import rich.table

from data_pipeline import records
from data_pipeline.recorder import family as family_lib
from data_pipeline.recorder import isolation, session

MAX_CHARS = 6_500
# The corpus schema without the column for what it has no name for: the recorder fills them all.
_OF_OTHERS = ("num_commands", "num_errors", "edits", "untrained_turns", "extra")
SCHEMA = pa.schema([field for field in records.CORPUS_SCHEMA if field.name not in _OF_OTHERS])
_REDRAWS = 8
_STRIDE = 1_000  # a session redrawn because it was too long takes number + STRIDE, + 2 STRIDE, ...


def choose_families(names: Sequence[str], *, sandbox: str) -> list[family_lib.Family]:
    """The families called for (none named: all that this machine has the tools for).

    Raises:
        ValueError: an unknown name, or a named family whose tools are missing.
    """
    known = family_lib.load_all()
    unknown = sorted(set(names) - known.keys())
    if unknown:
        raise ValueError(
            f"--families={','.join(names)} has unknown names: {', '.join(unknown)}; "
            f"known are {', '.join(known)}"
        )
    chosen = [known[name] for name in names] if names else list(known.values())
    tools = sorted({tool for one in chosen for tool in one.tools})
    missing = set(isolation.missing_tools(tools, sandbox=sandbox))
    refused = [one for one in chosen if missing & set(one.tools)]
    if refused and (names or len(refused) == len(chosen)):
        raise ValueError(_refusal(refused, missing) + "; install them or leave these families out")
    if refused:
        rich.print(f"[yellow]left out:[/yellow] {_refusal(refused, missing)}")
    return [one for one in chosen if one not in refused]


def _refusal(refused: Sequence[family_lib.Family], missing: set[str]) -> str:
    """Which families cannot be recorded, and for want of what."""
    return "; ".join(f"{x.name} needs {', '.join(sorted(missing & set(x.tools)))}" for x in refused)


def record(
    families: Sequence[family_lib.Family],
    *,
    num_sessions: int,
    seed: int,
    sandbox: str,
    num_workers: int,
) -> list[dict]:
    """Record sessions, the families taking turns; the same seed gives the same rows in order.

    Raises:
        ValueError: so many sessions of a family that their numbers meet those of redrawn ones, or
            a shell that did not do its work.
    """
    if num_sessions > _STRIDE * len(families):
        raise ValueError(
            f"--sessions={num_sessions} must be at most {_STRIDE} for each family, so "
            f"{_STRIDE * len(families)} for these {len(families)}; record the rest with another "
            "--seed"
        )
    jobs = [(families[i % len(families)], i // len(families)) for i in range(num_sessions)]
    with concurrent.futures.ThreadPoolExecutor(num_workers) as pool:
        futures = [pool.submit(_fitting, one, k, seed=seed, sandbox=sandbox) for one, k in jobs]
        try:
            return [future.result() for future in _tracked(futures)]
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _tracked(futures: list[concurrent.futures.Future]) -> Iterator[concurrent.futures.Future]:
    """The futures in order, under a progress bar."""
    columns = (*rich.progress.Progress.get_default_columns(), rich.progress.MofNCompleteColumn())
    with rich.progress.Progress(*columns) as progress:
        yield from progress.track(futures, description="recording")


def _fitting(family: family_lib.Family, number: int, *, seed: int, sandbox: str) -> dict:
    """One session no longer than MAX_CHARS; too long ones are recorded anew with other drawings."""
    for redraw in range(_REDRAWS):
        row = _play(family, number + redraw * _STRIDE, seed=seed, sandbox=sandbox)
        if num_chars(row) <= MAX_CHARS:
            return row
    raise ValueError(
        f"{family.name} {number}: {_REDRAWS} sessions in a row exceed {MAX_CHARS} characters; "
        "leave this family out with --families"
    )


def _play(family: family_lib.Family, number: int, *, seed: int, sandbox: str) -> dict:
    """session.play; a shell that fails is an error that names the session and the way out."""
    try:
        return session.play(family, number, seed=seed, sandbox=sandbox)
    except (RuntimeError, subprocess.TimeoutExpired) as error:
        raise ValueError(
            f"{family.name} {number}: {error}; on a busy machine lower --num_workers, or leave "
            "this family out with --families"
        ) from error


def num_chars(row: dict) -> int:
    """Characters of all messages."""
    return sum(len(message["content"]) for message in row["conversations"])


def num_turns(row: dict) -> int:
    """Assistant messages."""
    return sum(message["role"] == "assistant" for message in row["conversations"])


def check_output(path: pathlib.Path) -> None:
    """ValueError where no file can be written: told before the recording, not after it."""
    way_out = "name a Parquet file in a folder that can be written"
    if path.is_dir():
        raise ValueError(f"--output={path} is a folder; {way_out}")
    try:
        folder = next(parent for parent in path.absolute().parents if parent.exists())
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"--output={path}: {error.strerror}; {way_out}") from error


def write(rows: Sequence[dict], path: pathlib.Path) -> None:
    """Write the corpus; a partial file never carries the final name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        table = pa.Table.from_pylist(list(rows), schema=SCHEMA)
        pq.write_table(table, partial, compression="zstd", compression_level=19)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def print_summary(rows: Sequence[dict]) -> None:
    """Print sessions, reward, turns and characters for each domain and in all."""
    table = rich.table.Table(title="recorded sessions (reward: mean; turns, characters: median)")
    for name in ("domain", "sessions", "reward", "complete", "turns", "characters"):
        table.add_column(name, justify="left" if name == "domain" else "right", no_wrap=True)
    groups = collections.defaultdict(list)
    for row in rows:
        groups[row["domain"]].append(row)
    for name, group in [*sorted(groups.items()), ("all", list(rows))]:
        table.add_row(name, *_summary(group))
    rich.print(table)


def _summary(rows: Sequence[dict]) -> list[str]:
    """One line's figures."""
    return [
        str(len(rows)),
        f"{statistics.mean(row['reward'] for row in rows):.2f}",
        str(sum(row["complete"] for row in rows)),
        f"{statistics.median(num_turns(row) for row in rows):.0f}",
        f"{statistics.median(num_chars(row) for row in rows):,.0f}",
    ]
