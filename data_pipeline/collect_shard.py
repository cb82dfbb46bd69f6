"""Collect's shard-to-shard work: some trials are read, one by one, and their rows written.

It runs in processes of its own, so all that it needs travels in a Shard. What it counts, each count
under a name whose first word is one of KINDS, goes to a file whose presence says that it is done.
"""

import collections
import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from data_pipeline import (
    atif,
    corpus_writer,
    manifest,
    records,
    storage,
    task_labels,
    trials,
)
from data_pipeline.curation import edits, terminus

SOURCE = "rollout"  # of a row whose task says none
RUNNING = "not ended"
DAMAGED_RESULT = "damaged result.json"
BAD_TEXT = "text that no file can hold"
NO_LABELS = "no task.toml found"

# The first word of what is counted.
DROPPED, ENDED, REWARD, FAULT, NUMBER = KINDS = ("dropped", "ended", "reward", "fault", "number")

# Behind the corpus' own columns: those of Harbor's export, and what a row cost.
_OWN_COLUMNS = [
    ("model_provider", pa.string()),
    ("date", pa.string()),
    ("result", pa.string()),  # the reward, or the type of what ended the trial early
    ("trace_source", pa.string()),
    ("input_tokens", pa.int64()),
    ("output_tokens", pa.int64()),
    ("cost_usd", pa.float64()),
]
SCHEMA = pa.schema([f for f in records.CORPUS_SCHEMA if f.name != "extra"] + _OWN_COLUMNS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shard:
    """Some trials to read, and where their rows and counts go."""

    trials: tuple[str, ...]
    labels: Mapping[str, Mapping[str, Any]]  # by the name of the task's folder
    subagents: bool
    keeps_interrupted: bool
    corpus_path: storage.Path
    counts_path: storage.Path


class _Dropped(Exception):
    """A trial leaves no row."""


def write(shard: Shard) -> int:
    """Write the rows of the trials; returns their number."""
    counts = collections.Counter[str]()
    sink = corpus_writer.ParquetSink(shard.corpus_path, SCHEMA)
    try:
        for name in shard.trials:
            try:
                for row in _rows(pathlib.Path(name), shard, counts):
                    sink.write(row)
            except _Dropped as why:
                counts[f"{DROPPED} {why}"] += 1
    except BaseException:
        sink.abandon()
        raise
    if sink.num_rows:
        sink.close()
    else:
        sink.abandon()
    manifest.write_json(shard.counts_path, {"counts": dict(counts)})
    return sink.num_rows


def _rows(
    folder: pathlib.Path, shard: Shard, counts: collections.Counter[str]
) -> list[dict[str, Any]]:
    """All rows of a trial, or none: it raises before it counts one."""
    trial = _trial(folder)
    counts[f"{ENDED} {trial.exception or 'by itself'}"] += 1
    if trial.failure in trials.DONE_AGAIN and not shard.keeps_interrupted:
        raise _Dropped(f"{trial.failure}: {trial.exception}")
    try:
        session = atif.read_session(trial.agent_dir, subagents=shard.subagents)
    except atif.TrajectoryError as error:
        raise _Dropped(
            f"{error.reason}{f': {trial.exception}' if trial.exception else ''}"
        ) from None
    labels = _labels(trial, shard, counts)
    made = [_row(trial, episode, labels, session) for episode in session.episodes]
    counts.update(f"{FAULT} {fault}" for fault in session.faults)
    counts[f"{REWARD} {_bucket(trial, labels)}"] += 1
    counts.update(_numbers(trial, session, made))
    return made


def _trial(folder: pathlib.Path) -> trials.Trial:
    try:
        trial = trials.read(folder)
    except ValueError:
        raise _Dropped(DAMAGED_RESULT) from None
    if trial is None:
        raise _Dropped(RUNNING)
    return trial


def _labels(
    trial: trials.Trial, shard: Shard, counts: collections.Counter[str]
) -> task_labels.Labels:
    folder = pathlib.Path(trial.task_folder)
    told = shard.labels.get(folder.name) or shard.labels.get(trial.task)
    found = task_labels.from_json(told) if told else None
    if not found and trial.task_folder:
        found = task_labels.read(folder)
    if not found:
        counts[f"{FAULT} {NO_LABELS}"] += 1
    return found or task_labels.Labels()


def _row(
    trial: trials.Trial,
    episode: atif.Episode,
    labels: task_labels.Labels,
    session: atif.Session,
) -> dict[str, Any]:
    reward = trial.reward if labels.verified else None
    row = {
        "conversations": [dataclasses.asdict(message) for message in episode.messages],
        "agent": episode.agent if episode.source == atif.MAIN and episode.agent else trial.agent,
        "model": episode.model or trial.model or None,
        "task": trial.task,
        "episode": f"episode-{episode.number}",
        "run_id": trial.run_id,
        "trial_name": trial.name,
        "enable_thinking": _thinks(episode),
        "source": labels.source or trial.source or SOURCE,
        "reward": reward,
        "complete": _is_complete(trial, session),
        "domain": labels.domain or None,
        "difficulty": labels.difficulty or None,
        "untrained_turns": list(episode.copied_turns),
    }
    try:
        checked = records.conversation_from_row(row, location=str(trial.folder)).to_row()
    except ValueError:
        raise _Dropped(BAD_TEXT) from None
    del checked["extra"]
    return checked | {
        "model_provider": trial.model_provider or None,
        "date": trial.started_at or None,
        "result": trial.exception or (None if trial.reward is None else str(trial.reward)),
        "trace_source": episode.source,
        "input_tokens": episode.input_tokens,
        "output_tokens": episode.output_tokens,
        "cost_usd": episode.cost_usd,
    }


def _thinks(episode: atif.Episode) -> bool:
    return any("<think>" in m.content for m in episode.messages if m.role == "assistant")


def _is_complete(trial: trials.Trial, session: atif.Session) -> bool:
    """Whether the agent came to its end: it was not cut short, and said so, and confirmed it."""
    if trial.exception:
        return False
    if not trial.agent.startswith("terminus"):
        return True
    last = [episode for episode in session.episodes if episode.source == atif.MAIN][-1]
    replies = [m.content for m in last.messages if m.role == "assistant"]
    declared = [said for said in map(_declares_complete, replies) if said is not None]
    return len(declared) >= 2 and all(declared[-2:]) and _declares_complete(replies[-1]) is True


def _declares_complete(reply: str) -> bool | None:
    """Whether a reply of Terminus 2 declares the task done; None where it could not be read."""
    if "<tool_call>" in reply:  # the trajectory holds what was understood, not what was said
        return '"name": "mark_task_complete"' in reply
    read = terminus.parse(reply)
    return None if read.error else read.is_complete


def _bucket(trial: trials.Trial, labels: task_labels.Labels) -> str:
    """The reward in words."""
    if not labels.verified:
        return "none: the task is not verified"
    if trial.reward is None:
        return "none: no verdict of the tests"
    return "1" if trial.reward >= 1 else "0" if trial.reward <= 0 else "between"


def _numbers(
    trial: trials.Trial, session: atif.Session, rows: list[dict[str, Any]]
) -> Mapping[str, Any]:
    """What is added up over all trials."""
    refused = replies = 0
    for episode in session.episodes:
        own = {i for i, m in enumerate(episode.messages) if m.role == "assistant"}
        own -= set(episode.copied_turns)
        replies += len(own)
        refused += len(own.intersection(edits.failed_turns(episode.messages)))
    numbers = {
        "trials": 1,
        "rows": len(rows),
        "collapsed": sum(episode.collapsed for episode in session.episodes),
        "replies": replies,
        "refused": refused,
        "thinking_trials": int(any(map(_thinks, session.episodes))),
        "complete": int(bool(rows[0]["complete"])),
        "input_tokens": trial.input_tokens or 0,
        "output_tokens": trial.output_tokens or 0,
        "cost_usd": trial.cost_usd or 0,
    }
    return {f"{NUMBER} {name}": value for name, value in numbers.items()}
